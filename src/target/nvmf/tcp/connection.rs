//! A connection and the queue it carries: its life from ICReq to the last buffer that comes back.
//!
//! Every entry (a completion of the ring, of a bdev, a timer, a task, a message) borrows the state once, works, and
//! ends in [`Connection::settle`], which does what the queue asked for. Nothing that is called while the state is
//! borrowed calls back into the connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::directory::ConnectionId;
use super::super::group::{self, Group};
use super::super::queue::{Action, Queue, QueueOrigin, Role};
use super::super::slot::Stage;
use super::super::view::View;
use super::receive::Receiver;
use super::send::Transmitter;
use crate::bdev::{Io, IoOwner};
use crate::nvme::tcp::{Digests, PduError, SEND_BUFFER_BYTES};
use crate::reactor::{self, Done, Lane, RingFile, RingOwner, Task, TimerHandler, TimerId};

/// Ring operations of a connection.
pub const RECEIVE: u64 = 1;
pub const SEND: u64 = 2;

/// Timers of a connection; also their places in `State::timers`.
mod timer {
    pub const CONNECT: usize = 0;
    pub const KEEP_ALIVE: usize = 1;
    pub const RESET: usize = 2;
    pub const HOST: usize = 3;
    pub const LINGER: usize = 4;
    pub const COUNT: usize = 5;
}

/// How often a reset looks whether the I/O queues are gone.
const RESET_POLL: Duration = Duration::from_millis(1);
/// How long a terminated connection waits for its host to read the TermReq and close.
const LINGER: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for the ICReq.
    Handshake,
    Running,
    /// Reads no more; closes when what it has begun is answered.
    Draining,
    /// A TermReq is going out; what comes in is thrown away.
    Terminating,
    /// The socket is shut; waits for what is in flight.
    Closing,
    /// Removed from the group.
    Closed,
}

pub struct Connection {
    pub key: u64,
    pub group: Rc<Group>,
    pub file: RingFile,
    pub state: RefCell<State>,
}

pub struct State {
    pub phase: Phase,
    pub queue: Queue,
    pub receiver: Receiver,
    pub transmitter: Transmitter,
    pub digests: Digests,
    /// Alignment of data that we send, bytes.
    pub alignment: usize,
    /// Slots that wait for a buffer, in order.
    pub waiting: VecDeque<u16>,
    /// Whether the group has this connection on its list of those who wait for buffers.
    pub listed: bool,
    timers: [Option<TimerId>; timer::COUNT],
    keep_alive: Duration,
    last_sign_ns: u64,
    /// What the group's counters know of this connection: an admin queue (true) or an I/O queue.
    counted: Option<bool>,
}

impl Connection {
    /// Takes a new socket. Fails when there is no memory for its buffers or the peer is gone already.
    pub fn open(
        group: &Rc<Group>,
        key: u64,
        socket: OwnedFd,
        portal: u64,
        view: Arc<View>,
    ) -> std::io::Result<Rc<Connection>> {
        let no_memory = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let (peer, local) = {
            let socket = socket2::SockRef::from(&socket);
            socket.set_tcp_nodelay(true)?;
            socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
            let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
            (
                socket.peer_addr()?.as_socket().unwrap_or(unknown),
                socket.local_addr()?.as_socket().unwrap_or(unknown),
            )
        };
        let id = ConnectionId { reactor: reactor::core_index(), key };
        let deadline = view.transport.connect_deadline;
        let origin = QueueOrigin { id, portal, peer, local, view, discovery: group.shared.discovery.clone() };
        let connection = Rc::new(Connection {
            key,
            group: group.clone(),
            file: RingFile::new(Arc::new(socket), Lane::Interrupt),
            state: RefCell::new(State {
                phase: Phase::Handshake,
                queue: Queue::new(origin),
                receiver: Receiver::new().ok_or_else(no_memory)?,
                transmitter: Transmitter::new().ok_or_else(no_memory)?,
                digests: Digests::default(),
                alignment: 4,
                waiting: VecDeque::new(),
                listed: false,
                timers: [None; timer::COUNT],
                keep_alive: Duration::ZERO,
                last_sign_ns: reactor::now(),
                counted: None,
            }),
        });
        let state = &mut *connection.state.borrow_mut();
        connection.arm(state, timer::CONNECT, deadline);
        connection.receive(state);
        tracing::debug!(%peer, "connection accepted");
        Ok(connection.clone())
    }

    fn arm(self: &Rc<Self>, state: &mut State, which: usize, delay: Duration) {
        self.disarm(state, which);
        state.timers[which] = Some(reactor::timer_after(delay, self.clone(), which as u64));
    }

    fn disarm(&self, state: &mut State, which: usize) {
        if let Some(id) = state.timers[which].take() {
            reactor::timer_cancel(id);
        }
    }

    pub fn owner(self: &Rc<Self>) -> Rc<dyn IoOwner> {
        self.clone()
    }

    /// Takes over a new view.
    pub fn apply(self: &Rc<Self>, view: Arc<View>) {
        let state = &mut *self.state.borrow_mut();
        if state.phase >= Phase::Closing {
            return;
        }
        if !state.queue.apply(view) {
            self.begin_close(state, "its host, listener or subsystem was taken away");
        }
        self.settle(state);
    }

    pub fn refresh(self: &Rc<Self>) {
        let state = &mut *self.state.borrow_mut();
        state.queue.refresh();
        self.settle(state);
    }

    pub fn abort(self: &Rc<Self>, cid: u16) -> bool {
        let state = &mut *self.state.borrow_mut();
        let aborted = state.queue.abort_here(cid);
        self.settle(state);
        aborted
    }

    pub fn abort_answered(self: &Rc<Self>, slot: u16, aborted: bool) {
        let state = &mut *self.state.borrow_mut();
        state.queue.abort_answered(slot, aborted);
        self.settle(state);
    }

    /// A capsule arrived: the host is alive.
    pub fn sign_of_life(state: &mut State) {
        state.last_sign_ns = reactor::now();
    }

    /// Does what the queue asked for, and sends what it completed.
    pub fn settle(self: &Rc<Self>, state: &mut State) {
        while let Some(action) = state.queue.actions.pop() {
            self.act(state, action);
        }
        if state.phase >= Phase::Closing {
            while let Some(slot) = state.queue.ready.pop_front() {
                state.queue.slots.release(slot);
            }
            return self.try_finish(state);
        }
        if state.counted.is_none() && !matches!(state.queue.role, Role::Unconnected) {
            self.connected(state);
        }
        if state.transmitter.is_needed(&state.queue) {
            if state.transmitter.schedule() {
                reactor::schedule(self.clone());
            }
        } else if state.phase == Phase::Draining && !state.transmitter.in_flight && state.queue.in_flight == 0
        {
            self.begin_close(state, "the target shuts down");
            self.try_finish(state);
        }
    }

    pub fn is_admin(&self) -> bool {
        matches!(self.state.borrow().queue.role, Role::Admin(_))
    }

    /// Ends the connection once the commands at the bdevs have ended and were answered.
    pub fn drain(self: &Rc<Self>) {
        let state = &mut *self.state.borrow_mut();
        match state.phase {
            Phase::Running => state.phase = Phase::Draining,
            Phase::Handshake => self.begin_close(state, "the target shuts down"),
            Phase::Draining | Phase::Terminating | Phase::Closing | Phase::Closed => {}
        }
        self.settle(state);
    }

    fn connected(self: &Rc<Self>, state: &mut State) {
        let admin = state.queue.qid == 0;
        state.counted = Some(admin);
        self.group.queue_connected(admin);
        self.disarm(state, timer::CONNECT);
        if !admin {
            state.receiver.want_large();
        }
        let cntlid = match &state.queue.role {
            Role::Admin(controller) => controller.shared.cntlid,
            Role::Io(shared) => shared.cntlid,
            Role::Unconnected => 0,
        };
        let nqn = state.queue.subsystem.as_ref().map_or("discovery", |s| &s.nqn);
        tracing::info!(peer = %state.queue.peer, nqn, cntlid, qid = state.queue.qid, "queue connected");
    }

    fn act(self: &Rc<Self>, state: &mut State, action: Action) {
        match action {
            Action::KeepAlive(time) => {
                state.keep_alive = time;
                state.last_sign_ns = reactor::now();
                match time.is_zero() {
                    true => self.disarm(state, timer::KEEP_ALIVE),
                    false => self.arm(state, timer::KEEP_ALIVE, time),
                }
            }
            Action::EndIoQueues => {
                self.end_io_queues(state);
                self.arm(state, timer::RESET, RESET_POLL);
            }
            Action::AwaitHost(time) => self.arm(state, timer::HOST, time),
            Action::StopAwaiting => self.disarm(state, timer::HOST),
            Action::AbortElsewhere { connection, cid, slot } => {
                let home = state.queue.id;
                reactor::spawn_call(connection.reactor, move || {
                    let aborted = group::abort(connection.key, cid);
                    reactor::spawn_call(home.reactor, move || {
                        group::abort_answered(home.key, slot, aborted);
                    });
                });
            }
        }
    }

    fn end_io_queues(&self, state: &State) {
        let Role::Admin(controller) = &state.queue.role else { return };
        for ConnectionId { reactor, key } in controller.shared.io_connections() {
            reactor::spawn_call(reactor, move || group::disconnect(key));
        }
    }

    /// A violation of the protocol: tells the host by a TermReq with the offending header, and ends.
    pub fn terminate(self: &Rc<Self>, state: &mut State, error: PduError, header: &[u8]) {
        if state.phase >= Phase::Terminating {
            return;
        }
        tracing::warn!(peer = %state.queue.peer, qid = state.queue.qid, %error, "connection terminated");
        state.phase = Phase::Terminating;
        state.transmitter.terminate(error, header);
        self.arm(state, timer::LINGER, LINGER);
    }

    /// Ends the connection for a reason that the host need not be told.
    pub fn close(self: &Rc<Self>, reason: &str) {
        let state = &mut *self.state.borrow_mut();
        self.begin_close(state, reason);
        self.settle(state);
    }

    /// Shuts the socket; the rest happens when what is in flight has ended.
    pub fn begin_close(self: &Rc<Self>, state: &mut State, reason: &str) {
        if state.phase >= Phase::Closing {
            return;
        }
        state.phase = Phase::Closing;
        tracing::info!(peer = %state.queue.peer, qid = state.queue.qid, "connection closed: {reason}");
        // Fails when the peer was faster, which is as good.
        let _ = rustix::net::shutdown(self.file.fd().as_fd(), rustix::net::Shutdown::Both);
        for which in 0..timer::COUNT {
            self.disarm(state, which);
        }
        state.waiting.clear();
        if let Role::Admin(controller) = &state.queue.role {
            controller.shared.kill();
        }
        self.end_io_queues(state);
    }

    fn try_finish(self: &Rc<Self>, state: &mut State) {
        let busy = state.receiver.in_flight || state.transmitter.in_flight || state.queue.in_flight > 0;
        if state.phase != Phase::Closing || busy {
            return;
        }
        state.phase = Phase::Closed;
        match &state.queue.role {
            Role::Admin(controller) => controller.destroy(),
            Role::Io(shared) => shared.leave(state.queue.qid, state.queue.id),
            Role::Unconnected => {}
        }
        state.queue.namespaces.clear();
        self.group.remove(self.key, state.counted);
    }

    /// Commands that wait for a buffer.
    pub fn commands_without_buffer(&self) -> usize {
        self.state.borrow().waiting.len()
    }

    /// Tries again for buffers. False: there are still too few, and the group keeps this connection on its list.
    pub fn retry_buffers(self: &Rc<Self>) -> bool {
        let state = &mut *self.state.borrow_mut();
        while let Some(&slot) = state.waiting.front() {
            // It may have been aborted meanwhile.
            if state.queue.slots.get_used(slot).is_none_or(|s| s.stage != Stage::WaitBuffer) {
                state.waiting.pop_front();
                continue;
            }
            let Some(buf) = reactor::alloc(state.queue.slots[slot].data_len as usize) else { break };
            state.waiting.pop_front();
            self.have_buffer(state, slot, buf);
        }
        state.listed = !state.waiting.is_empty();
        let served = !state.listed;
        self.settle(state);
        served
    }
}

impl PartialOrd for Phase {
    fn partial_cmp(&self, other: &Phase) -> Option<std::cmp::Ordering> {
        (*self as u8).partial_cmp(&(*other as u8))
    }
}

impl RingOwner for Connection {
    fn ring_done(self: Rc<Self>, tag: u64, done: Done) {
        let state = &mut *self.state.borrow_mut();
        match tag {
            RECEIVE => self.received(state, done.result),
            _ => self.sent(state, done.result),
        }
        self.settle(state);
    }
}

impl IoOwner for Connection {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        let state = &mut *self.state.borrow_mut();
        state.queue.io_done(io);
        self.settle(state);
    }
}

impl Task for Connection {
    fn run(self: Rc<Self>) {
        let state = &mut *self.state.borrow_mut();
        self.flush(state);
        self.settle(state);
    }
}

impl TimerHandler for Connection {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        let state = &mut *self.state.borrow_mut();
        let which = tag as usize;
        state.timers[which] = None;
        match which {
            timer::CONNECT => self.begin_close(state, "no queue was connected in time"),
            timer::KEEP_ALIVE => {
                let silent = Duration::from_nanos(reactor::now().saturating_sub(state.last_sign_ns));
                match state.keep_alive.checked_sub(silent).filter(|left| !left.is_zero()) {
                    Some(left) => self.arm(state, timer::KEEP_ALIVE, left),
                    None => self.begin_close(state, "keep alive timeout"),
                }
            }
            timer::RESET => {
                if state.queue.poll_reset(reactor::now()) {
                    self.arm(state, timer::RESET, RESET_POLL);
                }
            }
            timer::HOST => self.begin_close(state, "the host did not come back to its controller"),
            _ => self.begin_close(state, "terminated"),
        }
        self.settle(state);
    }
}
