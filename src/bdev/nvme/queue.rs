//! One queue: a TCP connection, its handshake, its commands in flight.
//!
//! Invariants: a command that `submit` took ends exactly once, through `QueueOwner::command_done`, from the reactor's
//! loop and never inside a call; its buffers come back only when neither the controller nor the kernel can still use
//! them: a queue that ends first gets its receive and send back from the kernel, then ends its commands, then says
//! `queue_closed`, which is its last word. Everything sent in one turn of the loop goes out in one `sendmsg`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::command::{Command, Completed};
use super::error::QueueError;
use super::receive::Receiver;
use super::send::{Outgoing, Sender};
use crate::env::{SgList, sg_len};
use crate::nvme::command::{DataDirection, Fuse};
use crate::nvme::fabrics::{ConnectCommand, ConnectData};
use crate::nvme::tcp::{
    Digests, IcReq, IcResp, MAXH2CDATA_MIN, PduError, PduType, SEND_BUFFER_BYTES, TermReq,
};
use crate::nvme::{CompletionEntry, Status, SubmissionEntry};
use crate::reactor::{self, Done, Lane, OpId, RingFile, RingOwner, Task, TimerHandler, TimerId, ring};

/// Most commands of one queue: command identifiers below this, as Linux has them.
pub const MAX_DEPTH: u16 = 4096;
/// Bytes in the capsule that every controller accepts on the admin queue and for fabrics commands (TCP 3.4).
pub const FABRICS_IN_CAPSULE_BYTES: u32 = 8192;
/// Commands are looked at for their deadline no more often than this.
const SHORTEST_SCAN: Duration = Duration::from_millis(5);
/// The tag of the queue's own Connect command.
const CONNECT_TAG: u64 = u64::MAX;

const OP_CONNECT: u64 = 0;
const OP_SEND: u64 = 1;
const OP_RECEIVE: u64 = 2;
const TIMER_OPEN: u64 = 0;
const TIMER_SCAN: u64 = 1;

/// What to connect to, and how.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    pub address: SocketAddr,
    pub subnqn: String,
    pub hostnqn: String,
    pub hostid: [u8; 16],
    /// 0 is the admin queue.
    pub qid: u16,
    /// The controller that the queue belongs to; `CNTLID_DYNAMIC` on the admin queue.
    pub cntlid: u16,
    /// Commands in flight at most.
    pub depth: u16,
    pub kato_ms: u32,
    pub digests: Digests,
    /// The most data that goes in the capsule, bytes (admin: `FABRICS_IN_CAPSULE_BYTES`; I/O: from IOCCSZ).
    pub in_capsule_bytes: u32,
    /// From TCP connect to the answer to Connect.
    pub connect_timeout: Duration,
    /// After this time the owner hears of a command that has not ended; `None`: never.
    pub command_timeout: Option<Duration>,
    /// Without: the queue is ready after ICResp and the owner sends what it likes (tests of targets).
    pub fabrics_connect: bool,
}

/// Hears of a queue. Calls come from the reactor's loop.
pub trait QueueOwner {
    /// Connected; `connect` is the answer to Connect (dword 0: the controller identifier).
    fn queue_ready(self: Rc<Self>, queue: &Rc<QueuePair>, connect: CompletionEntry);
    fn command_done(self: Rc<Self>, queue: &Rc<QueuePair>, done: Completed);
    /// A command is `times` times as old as the command timeout allows. It stays in flight.
    fn command_expired(self: Rc<Self>, _queue: &Rc<QueuePair>, _cid: u16, _tag: u64, _times: u32) {}
    /// The last call: every command has ended.
    fn queue_closed(self: Rc<Self>, queue: &Rc<QueuePair>, why: QueueError);
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    TcpConnect,
    Handshake,
    FabricsConnect,
    Ready,
    /// Waiting for the kernel to give back what it has.
    Closing(QueueError),
    Closed,
}

/// One command identifier.
pub(super) struct Slot {
    pub(super) used: bool,
    pub(super) generation: u32,
    pub(super) entry: SubmissionEntry,
    pub(super) data: SgList,
    pub(super) len: u32,
    pub(super) direction: DataDirection,
    pub(super) received: u32,
    /// The data came damaged: whatever the controller says, the command failed.
    pub(super) damaged: bool,
    tag: u64,
    start_ns: u64,
    expired: u32,
}

pub(super) struct State {
    phase: Phase,
    pub(super) slots: Vec<Slot>,
    free: Vec<u16>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) digests: Digests,
    pub(super) done: Vec<Completed>,
    sending: bool,
    receiving: Option<OpId>,
    flush_scheduled: bool,
    open_timer: Option<TimerId>,
    scan_timer: Option<TimerId>,
    connected: Option<CompletionEntry>,
    owner: Option<Rc<dyn QueueOwner>>,
}

/// A queue on the calling reactor.
pub struct QueuePair {
    options: QueueOptions,
    file: RingFile,
    pub(super) state: RefCell<State>,
    in_flight: Cell<u32>,
}

impl QueuePair {
    /// Begins to connect; the owner hears how it went.
    pub fn open(options: QueueOptions, owner: Rc<dyn QueueOwner>) -> Result<Rc<QueuePair>, QueueError> {
        let fail =
            |e: std::io::Error| QueueError::Connect { address: options.address, reason: e.to_string() };
        let domain = socket2::Domain::for_address(options.address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).map_err(fail)?;
        socket.set_tcp_nodelay(true).map_err(fail)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES).map_err(fail)?;
        let file = RingFile::new(Arc::new(OwnedFd::from(socket)), Lane::Interrupt);
        let depth = options.depth.clamp(1, MAX_DEPTH);
        let slots = (0..depth).map(|_| Slot {
            used: false,
            generation: 0,
            entry: SubmissionEntry::default(),
            data: SgList::new(),
            len: 0,
            direction: DataDirection::None,
            received: 0,
            damaged: false,
            tag: 0,
            start_ns: 0,
            expired: 0,
        });
        let state = State {
            phase: Phase::TcpConnect,
            slots: slots.collect(),
            free: (0..depth).rev().collect(),
            sender: Sender::new(options.in_capsule_bytes).ok_or(QueueError::NoMemory)?,
            receiver: Receiver::new().ok_or(QueueError::NoMemory)?,
            digests: Digests::default(),
            done: Vec::with_capacity(usize::from(depth)),
            sending: false,
            receiving: None,
            flush_scheduled: false,
            open_timer: None,
            scan_timer: None,
            connected: None,
            owner: Some(owner),
        };
        let queue = Rc::new(QueuePair { options, file, state: RefCell::new(state), in_flight: Cell::new(0) });
        let timer = reactor::timer_after(queue.options.connect_timeout, queue.clone(), TIMER_OPEN);
        queue.state.borrow_mut().open_timer = Some(timer);
        let id = ring::connect(&queue.file, queue.options.address.into(), queue.clone(), OP_CONNECT);
        queue.state.borrow_mut().receiving = Some(id);
        Ok(queue)
    }

    pub fn options(&self) -> &QueueOptions {
        &self.options
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.get() as usize
    }

    /// Commands that `submit` takes now.
    pub fn room(&self) -> usize {
        let state = self.state.borrow();
        if state.phase == Phase::Ready { state.free.len() } else { 0 }
    }

    /// Takes a command and gives its identifier; `None` (and the command is gone) if there is no [`QueuePair::room`].
    pub fn submit(self: &Rc<Self>, command: Command, tag: u64) -> Option<u16> {
        let mut state = self.state.borrow_mut();
        if state.phase != Phase::Ready || state.free.is_empty() {
            return None;
        }
        Some(self.put(&mut state, command, tag))
    }

    /// Takes two commands as a fused pair, next to each other; both end, each with its own tag. `None` without room.
    pub fn submit_fused(
        self: &Rc<Self>,
        mut first: Command,
        mut second: Command,
        tags: (u64, u64),
    ) -> Option<(u16, u16)> {
        let mut state = self.state.borrow_mut();
        if state.phase != Phase::Ready || state.free.len() < 2 {
            return None;
        }
        first.entry.set_fuse(Fuse::First);
        second.entry.set_fuse(Fuse::Second);
        Some((self.put(&mut state, first, tags.0), self.put(&mut state, second, tags.1)))
    }

    fn put(self: &Rc<Self>, state: &mut State, command: Command, tag: u64) -> u16 {
        let cid = state.free.pop().unwrap_or_default();
        let mut entry = command.entry;
        entry.cid = cid.into();
        if !command.data.is_empty() {
            entry.sgl = command.sgl(state.sender.in_capsule_bytes);
        }
        let slot = &mut state.slots[usize::from(cid)];
        slot.used = true;
        slot.generation = slot.generation.wrapping_add(1);
        slot.len = sg_len(&command.data) as u32;
        slot.entry = entry;
        slot.data = command.data;
        slot.direction = command.direction;
        (slot.received, slot.damaged, slot.expired) = (0, false, 0);
        (slot.tag, slot.start_ns) = (tag, reactor::now());
        if slot.direction == DataDirection::ControllerToHost {
            state.receiver.expect(slot.len);
        }
        self.in_flight.set(self.in_flight.get() + 1);
        state.sender.queue.push_back(Outgoing::Capsule(cid));
        self.schedule_flush(state);
        cid
    }

    fn schedule_flush(self: &Rc<Self>, state: &mut State) {
        if !state.flush_scheduled && !state.sending {
            state.flush_scheduled = true;
            reactor::schedule(self.clone());
        }
    }

    /// Sends what waits, as much as one operation takes.
    fn flush(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if state.sending || !matches!(state.phase, Phase::Handshake | Phase::FabricsConnect | Phase::Ready) {
            return;
        }
        let State { sender, slots, digests, .. } = &mut *state;
        if sender.encode(slots, *digests) {
            let pieces = std::mem::take(&mut sender.pieces);
            state.sending = true;
            drop(state);
            let mut pieces = pieces;
            ring::send(&self.file, pieces.drain(..), self.clone(), OP_SEND);
            self.state.borrow_mut().sender.pieces = pieces;
        }
    }

    /// Ends the queue. `queue_closed` follows, after every command has ended.
    pub fn close(self: &Rc<Self>, why: QueueError) {
        let mut state = self.state.borrow_mut();
        if matches!(state.phase, Phase::Closing(_) | Phase::Closed) {
            return;
        }
        state.phase = Phase::Closing(why);
        for timer in [state.open_timer.take(), state.scan_timer.take()].into_iter().flatten() {
            reactor::timer_cancel(timer);
        }
        // Ends a receive or send in progress; fails on a socket that is not connected, which has neither.
        let _ = rustix::net::shutdown(self.file.fd(), rustix::net::Shutdown::Both);
        if let Some(id) = state.receiving {
            ring::cancel(id);
        }
        // The end is reported from the loop, not from inside this call.
        state.flush_scheduled = true;
        reactor::schedule(self.clone());
    }

    /// Reports the end once the kernel has given everything back.
    fn finish_close(self: &Rc<Self>) {
        let (owner, why) = {
            let mut state = self.state.borrow_mut();
            let Phase::Closing(why) = &state.phase else { return };
            if state.sending || state.receiving.is_some() {
                return;
            }
            let why = why.clone();
            state.phase = Phase::Closed;
            state.sender.queue.clear();
            let State { slots, done, .. } = &mut *state;
            for slot in slots.iter_mut().filter(|s| s.used) {
                slot.used = false;
                let data = std::mem::take(&mut slot.data);
                done.push(Completed { tag: slot.tag, entry: None, received: slot.received, data });
            }
            state.done.retain(|d| d.tag != CONNECT_TAG);
            self.in_flight.set(0);
            (state.owner.take(), why)
        };
        let Some(owner) = owner else { return };
        self.report(&owner);
        owner.queue_closed(self, why);
    }

    /// Tells the owner of commands that ended.
    fn report(self: &Rc<Self>, owner: &Rc<dyn QueueOwner>) {
        let mut done = std::mem::take(&mut self.state.borrow_mut().done);
        for one in done.drain(..) {
            owner.clone().command_done(self, one);
        }
        let mut state = self.state.borrow_mut();
        if state.done.is_empty() {
            state.done = done;
        }
    }

    /// Everything that arrived has been looked at: report, receive on.
    fn after_receive(self: &Rc<Self>, outcome: Result<(), QueueError>) {
        if let Err(why) = outcome {
            tracing::debug!("queue {} to {}: {why}", self.options.qid, self.options.address);
            if let QueueError::Protocol(violation) = &why {
                self.terminate(*violation);
            }
            return self.close(why);
        }
        self.receive();
        let (owner, connected) = {
            let mut state = self.state.borrow_mut();
            if !state.sender.queue.is_empty() {
                self.schedule_flush(&mut state);
            }
            (state.owner.clone(), state.connected.take())
        };
        let Some(owner) = owner else { return };
        if let Some(entry) = connected {
            if !entry.status().is_success() {
                return self.close(QueueError::Refused { what: "the connection", status: entry.status() });
            }
            if let Some(timer) = self.state.borrow_mut().open_timer.take() {
                reactor::timer_cancel(timer);
            }
            self.arm_scan();
            owner.clone().queue_ready(self, entry);
        }
        self.report(&owner);
    }

    /// Tells the controller what it did wrong, unless that would cut into another PDU or wait.
    fn terminate(&self, violation: PduError) {
        if !self.state.borrow().sending {
            let pdu = TermReq::new(PduType::H2cTermReq, violation, 0);
            let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
            // The connection ends in any case; the reason is a courtesy.
            let _ = rustix::net::send(self.file.fd(), pdu.as_bytes(), flags);
        }
    }

    /// Arms the next receive.
    fn receive(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if state.receiving.is_some() || matches!(state.phase, Phase::Closing(_) | Phase::Closed) {
            return;
        }
        let State { receiver, slots, .. } = &mut *state;
        let id = receiver.arm(&self.file, slots, self.clone(), OP_RECEIVE);
        state.receiving = Some(id);
    }

    /// A completion came from the controller. An unknown identifier is the controller's fault.
    pub(super) fn complete(&self, state: &mut State, mut entry: CompletionEntry) -> bool {
        let cid = entry.cid.get();
        let Some(slot) = state.slots.get_mut(usize::from(cid)).filter(|s| s.used) else { return false };
        slot.used = false;
        if slot.damaged && entry.status().is_success() {
            entry.status = Status::TRANSIENT_TRANSPORT_ERROR.to_wire().into();
        }
        let data = std::mem::take(&mut slot.data);
        let done = Completed { tag: slot.tag, entry: Some(entry), received: slot.received, data };
        if slot.direction == DataDirection::ControllerToHost {
            state.receiver.unexpect(slot.len);
        }
        state.free.push(cid);
        self.in_flight.set(self.in_flight.get() - 1);
        if done.tag == CONNECT_TAG && state.phase == Phase::FabricsConnect {
            state.phase = Phase::Ready;
            state.connected = Some(entry);
        } else {
            state.done.push(done);
        }
        true
    }

    /// The connection's parameters are agreed: go on with Connect.
    pub(super) fn handshake_done(self: &Rc<Self>, state: &mut State, pdu: &IcResp) -> Result<(), QueueError> {
        if state.phase != Phase::Handshake {
            return Err(QueueError::Parameters("a second ICResp came"));
        }
        if pdu.cpda != 0 {
            return Err(QueueError::Parameters("it asks for aligned data (CPDA)"));
        }
        let maxh2cdata = pdu.maxh2cdata.get();
        if maxh2cdata < MAXH2CDATA_MIN || !maxh2cdata.is_multiple_of(4) {
            return Err(QueueError::Parameters("MAXH2CDATA is below 4096 or no multiple of 4"));
        }
        if Digests::from_dgst(pdu.dgst) != self.options.digests {
            return Err(QueueError::Parameters("it did not agree to the digests asked for"));
        }
        state.digests = self.options.digests;
        state.sender.maxh2cdata = maxh2cdata;
        if !self.options.fabrics_connect {
            state.phase = Phase::Ready;
            state.connected = Some(CompletionEntry::default());
            return Ok(());
        }
        let o = &self.options;
        let command = ConnectCommand::new(0, o.qid, o.depth, o.kato_ms);
        let data = ConnectData::new(o.hostid, o.cntlid, &o.subnqn, &o.hostnqn);
        let buf = reactor::alloc(size_of::<ConnectData>()).ok_or(QueueError::NoMemory)?;
        buf.write_at(0, data.as_bytes());
        state.phase = Phase::FabricsConnect;
        // Connect's data goes in the capsule on every queue.
        let limit = std::mem::replace(&mut state.sender.in_capsule_bytes, FABRICS_IN_CAPSULE_BYTES as usize);
        self.put(state, Command::new(command.to_entry(), SgList::from_iter([buf])), CONNECT_TAG);
        state.sender.in_capsule_bytes = limit;
        Ok(())
    }

    fn arm_scan(self: &Rc<Self>) {
        if let Some(timeout) = self.options.command_timeout {
            let timer = reactor::timer_after((timeout / 4).max(SHORTEST_SCAN), self.clone(), TIMER_SCAN);
            self.state.borrow_mut().scan_timer = Some(timer);
        }
    }

    /// Tells the owner of commands that are too old.
    fn scan(self: &Rc<Self>) {
        let Some(timeout) = self.options.command_timeout else { return };
        let timeout_ns = timeout.as_nanos() as u64;
        let now = reactor::now();
        let mut expired: VecDeque<(u16, u64, u32)> = VecDeque::new();
        let owner = {
            let mut state = self.state.borrow_mut();
            for (cid, slot) in state.slots.iter_mut().enumerate().filter(|(_, s)| s.used) {
                let times = (now.saturating_sub(slot.start_ns) / timeout_ns.max(1)) as u32;
                if times > slot.expired {
                    slot.expired = times;
                    expired.push_back((cid as u16, slot.tag, times));
                }
            }
            state.owner.clone()
        };
        let Some(owner) = owner else { return };
        self.arm_scan();
        for (cid, tag, times) in expired {
            owner.clone().command_expired(self, cid, tag, times);
        }
    }

    fn connected(self: &Rc<Self>, result: Result<u32, rustix::io::Errno>) {
        if let Err(errno) = result {
            let reason = errno.to_string();
            return self.close(QueueError::Connect { address: self.options.address, reason });
        }
        let mut state = self.state.borrow_mut();
        if state.phase != Phase::TcpConnect {
            return;
        }
        state.phase = Phase::Handshake;
        // As Linux: no alignment asked for, one R2T at a time.
        let pdu = IcReq::new(self.options.digests, 0, 0);
        let Some(buf) = reactor::alloc(size_of::<IcReq>()) else {
            drop(state);
            return self.close(QueueError::NoMemory);
        };
        buf.write_at(0, pdu.as_bytes());
        state.sender.queue.push_back(Outgoing::Raw(buf));
        self.schedule_flush(&mut state);
        drop(state);
        self.receive();
    }
}

impl RingOwner for QueuePair {
    fn ring_done(self: Rc<Self>, tag: u64, done: Done) {
        let closing = {
            let mut state = self.state.borrow_mut();
            match tag {
                OP_SEND => state.sending = false,
                _ => state.receiving = None,
            }
            matches!(state.phase, Phase::Closing(_) | Phase::Closed)
        };
        if closing {
            return self.finish_close();
        }
        match (tag, done.result) {
            (OP_CONNECT, result) => self.connected(result),
            (OP_SEND, Ok(sent)) => {
                let mut state = self.state.borrow_mut();
                if sent as usize != state.sender.batch_bytes {
                    drop(state);
                    return self.close(QueueError::EndOfStream);
                }
                if !state.sender.queue.is_empty() {
                    self.schedule_flush(&mut state);
                }
            }
            (OP_SEND, Err(errno)) => self.close(QueueError::Socket(errno.to_string())),
            (_, Ok(0)) => self.close(QueueError::EndOfStream),
            (_, Ok(bytes)) => {
                let outcome = self.received(bytes as usize);
                self.after_receive(outcome);
            }
            (_, Err(errno)) => self.close(QueueError::Socket(errno.to_string())),
        }
    }
}

impl Task for QueuePair {
    fn run(self: Rc<Self>) {
        self.state.borrow_mut().flush_scheduled = false;
        self.flush();
        self.finish_close();
    }
}

impl TimerHandler for QueuePair {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        match tag {
            TIMER_OPEN => {
                self.state.borrow_mut().open_timer = None;
                self.close(QueueError::Deadline(self.options.connect_timeout));
            }
            _ => {
                self.state.borrow_mut().scan_timer = None;
                self.scan();
            }
        }
    }
}
