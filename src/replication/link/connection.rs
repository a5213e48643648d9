//! One TCP connection of the link, on one reactor.
//!
//! Invariants: messages go out in the order in which they were sent, those of one turn of the reactor by one system
//! call; messages are delivered in order; `closed` is called exactly once, from the reactor's loop, whatever ends the
//! connection and whoever asked for it, and nothing is delivered after it. A peer's bytes can end this connection and
//! nothing else. When the pool has no buffer for a payload the connection waits; it does not fail.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::body::{printable, refusal_text};
use super::message::{Header, Message, RefusalCode, WireError};
use super::receive::{Into, Next, RecvSide};
use super::send::{Room, SendError, SendSide};
use crate::env::SgList;
use crate::reactor::ring::{self, Done, Lane, RingFile, RingOwner};
use crate::reactor::{self, Task, TimerHandler, TimerId};
use crate::replication::Generation;

const TAG_SEND: u64 = 0;
const TAG_RECV: u64 = 1;
const TAG_DEADLINE: u64 = 2;
const TAG_MEMORY: u64 = 3;
const TAG_FINISH: u64 = 4;

/// How soon to ask the pool again: buffers come back with every completion.
const MEMORY_RETRY: Duration = Duration::from_millis(1);
/// A connection that ends in order waits this long for its last bytes to leave.
const FINISH_DEADLINE: Duration = Duration::from_secs(1);

/// Who uses a connection. Called from the reactor's loop.
pub trait LinkOwner {
    /// A message. The payload of a write may be kept; that of any other message is only good until the call returns.
    fn message(&self, connection: &Rc<Connection>, header: Header, payload: SgList);
    /// After `Room::No`: there is room again.
    fn writable(&self, connection: &Rc<Connection>);
    /// The connection is gone.
    fn closed(&self, connection: &Rc<Connection>, reason: CloseReason);
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the peer closed the connection")]
    PeerClosed,
    #[error("the connection failed: {0}")]
    Io(Errno),
    #[error("{0}")]
    Wire(WireError),
    #[error("the peer refuses this node ({code:?}): {text}")]
    Refused { code: RefusalCode, text: String },
    #[error("this node refused the peer ({code:?}): {text}")]
    Refusing { code: RefusalCode, text: String },
    #[error("{0} took too long")]
    Deadline(&'static str),
    #[error("the connection was closed by this node")]
    Local,
    #[error("no memory for a connection")]
    NoMemory,
}

enum State {
    Open,
    /// Sends what is queued, then closes for this reason.
    Finishing(CloseReason),
    /// Waits for the loop to tell the owner.
    Closing(CloseReason),
    /// The owner was told, or the socket was taken over by another reactor.
    Closed,
}

pub struct Connection {
    file: RefCell<Option<RingFile>>,
    peer: SocketAddr,
    owner: RefCell<Option<Rc<dyn LinkOwner>>>,
    state: RefCell<State>,
    send: RefCell<SendSide>,
    recv: RefCell<RecvSide>,
    scheduled: Cell<bool>,
    /// A receive is in flight.
    receiving: Cell<bool>,
    payload_checksums: Cell<bool>,
    deadline: Cell<Option<(TimerId, &'static str)>>,
    last_received: Cell<u64>,
    sent_bytes: Cell<u64>,
    received_bytes: Cell<u64>,
}

impl Connection {
    /// Takes over a connected socket (blocking mode: the ring waits, not the thread) on the calling reactor.
    pub fn start(
        socket: Arc<OwnedFd>,
        peer: SocketAddr,
        owner: Rc<dyn LinkOwner>,
    ) -> Result<Rc<Connection>, CloseReason> {
        rustix::net::sockopt::set_tcp_nodelay(&socket, true).map_err(CloseReason::Io)?;
        let connection = Rc::new(Connection {
            file: RefCell::new(Some(RingFile::new(socket, Lane::Interrupt))),
            peer,
            owner: RefCell::new(Some(owner)),
            state: RefCell::new(State::Open),
            send: RefCell::default(),
            recv: RefCell::new(RecvSide::new().ok_or(CloseReason::NoMemory)?),
            scheduled: Cell::new(false),
            receiving: Cell::new(false),
            payload_checksums: Cell::new(false),
            deadline: Cell::new(None),
            last_received: Cell::new(reactor::now()),
            sent_bytes: Cell::new(0),
            received_bytes: Cell::new(0),
        });
        connection.receive();
        Ok(connection)
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn is_open(&self) -> bool {
        matches!(*self.state.borrow(), State::Open)
    }

    /// When something last arrived, on the reactor's clock ([`reactor::now`]).
    pub fn last_received_ns(&self) -> u64 {
        self.last_received.get()
    }

    /// Bytes that left, headers included.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.get()
    }

    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.get()
    }

    /// Bytes that wait or are on their way out.
    pub fn queued_bytes(&self) -> usize {
        self.send.borrow().queued_bytes()
    }

    /// From now on payloads carry checksums: as negotiated.
    pub fn set_payload_checksums(&self, on: bool) {
        self.payload_checksums.set(on);
    }

    /// Closes the connection unless [`Connection::clear_deadline`] comes in time. `what` names what took too long.
    pub fn set_deadline(self: &Rc<Self>, delay: Duration, what: &'static str) {
        self.clear_deadline();
        let timer = reactor::timer_after(delay, self.clone(), TAG_DEADLINE);
        self.deadline.set(Some((timer, what)));
    }

    pub fn clear_deadline(&self) {
        if let Some((timer, _)) = self.deadline.take() {
            reactor::timer_cancel(timer);
        }
    }

    /// Sends a message with its payload by reference, in this turn. The payload stays as it is until it has left.
    pub fn send(self: &Rc<Self>, message: &Message, payload: SgList) -> Result<Room, SendError> {
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        let room = self.send.borrow_mut().push(message, payload, self.payload_checksums.get())?;
        self.schedule();
        Ok(room)
    }

    /// Sends a message with a payload that is copied: for control messages and acknowledgements.
    pub fn send_bytes(self: &Rc<Self>, message: &Message, payload: &[u8]) -> Result<Room, SendError> {
        if !self.is_open() {
            return Err(SendError::Closed);
        }
        let room = self.send.borrow_mut().push_bytes(message, payload, self.payload_checksums.get())?;
        self.schedule();
        Ok(room)
    }

    /// Tells the peer why it is not talked to, and closes.
    pub fn refuse(self: &Rc<Self>, code: RefusalCode, generation: Generation, text: &str) {
        let reason = CloseReason::Refusing { code, text: text.to_owned() };
        self.refuse_because(code, generation, text, reason);
    }

    fn refuse_because(
        self: &Rc<Self>,
        code: RefusalCode,
        generation: Generation,
        text: &str,
        reason: CloseReason,
    ) {
        // A peer that cannot even be told is closed all the same.
        let _ = self.send_bytes(&Message::Refusal { code, generation }, refusal_text(text));
        self.finish(reason);
    }

    /// Closes once everything that was sent has left and the peer has closed as well, or after a second. Nothing is
    /// delivered meanwhile.
    pub fn finish(self: &Rc<Self>, reason: CloseReason) {
        if !self.is_open() {
            return;
        }
        *self.state.borrow_mut() = State::Finishing(reason);
        reactor::timer_after(FINISH_DEADLINE, self.clone(), TAG_FINISH);
        self.end_sending();
    }

    /// When finishing and all is sent: tells the peer that no more comes. Closing at once would reset the connection
    /// if the peer's bytes are unread here, and take away what it has not read yet.
    fn end_sending(&self) {
        let done = matches!(*self.state.borrow(), State::Finishing(_)) && self.send.borrow().is_idle();
        if let Some(file) = self.file.borrow().as_ref().filter(|_| done) {
            // Fails only on a socket that is dead already; the receive says so.
            let _ = rustix::net::shutdown(file.fd(), rustix::net::Shutdown::Write);
        }
    }

    /// Closes now; what was not sent is dropped. The owner's `closed` comes from the reactor's loop. A connection that
    /// was finishing keeps its reason.
    pub fn close(self: &Rc<Self>, reason: CloseReason) {
        let mut state = self.state.borrow_mut();
        let reason = match &*state {
            State::Open => reason,
            State::Finishing(earlier) => earlier.clone(),
            State::Closing(_) | State::Closed => return,
        };
        *state = State::Closing(reason);
        drop(state);
        self.clear_deadline();
        if let Some(file) = self.file.take() {
            // Ends what is in flight; fails only on a socket that is dead already.
            let _ = rustix::net::shutdown(file.fd(), rustix::net::Shutdown::Both);
        }
        self.schedule();
    }

    /// Gives the socket to another reactor. Only from within [`LinkOwner::message`], with nothing sent or received
    /// beyond that message: `None`, and a connection as before, otherwise. No callback comes any more.
    pub fn detach(&self) -> Option<Arc<OwnedFd>> {
        let quiet = !self.receiving.get()
            && self.send.borrow().is_idle()
            && self.recv.try_borrow().is_ok_and(|recv| recv.is_empty());
        if !self.is_open() || !quiet {
            return None;
        }
        self.clear_deadline();
        let file = self.file.take()?;
        *self.state.borrow_mut() = State::Closed;
        self.owner.take();
        Some(file.fd().clone())
    }

    fn schedule(self: &Rc<Self>) {
        if !self.scheduled.replace(true) {
            reactor::schedule(self.clone());
        }
    }

    fn flush(self: &Rc<Self>) {
        let file = self.file.borrow();
        let Some(file) = &*file else { return };
        let mut send = self.send.borrow_mut();
        if let Some(list) = send.take() {
            ring::send(file, list, self.clone(), TAG_SEND);
        }
    }

    fn receive(self: &Rc<Self>) {
        let armed = self.recv.borrow_mut().arm();
        let file = self.file.borrow();
        let Some(file) = &*file else { return };
        self.receiving.set(armed.is_some());
        match armed {
            Some(Into::Staging(buf)) => {
                ring::recv(file, buf, false, self.clone(), TAG_RECV);
            }
            Some(Into::TargetAndStaging(target, staging)) => {
                let bufs = [target, staging].into_iter().filter(|buf| !buf.is_empty());
                ring::recv_vectored(file, bufs, false, self.clone(), TAG_RECV);
            }
            None => {
                reactor::timer_after(MEMORY_RETRY, self.clone(), TAG_MEMORY);
            }
        }
    }

    /// Delivers what is complete, and asks for more.
    fn deliver(self: &Rc<Self>) {
        loop {
            let owner = self.owner.borrow().clone();
            let Some(owner) = owner else { return };
            match &*self.state.borrow() {
                State::Open => {}
                State::Finishing(_) => {
                    self.recv.borrow_mut().discard();
                    return self.receive();
                }
                State::Closing(_) | State::Closed => return,
            }
            let next = self.recv.borrow_mut().next();
            match next {
                Next::Message(Header { message: Message::Refusal { code, .. }, .. }, text) => {
                    let text = text.first().map_or_else(String::new, |text| text.with(printable));
                    return self.close(CloseReason::Refused { code, text });
                }
                Next::Message(header, payload) => owner.message(self, header, payload),
                Next::Receive => return self.receive(),
                Next::NoMemory => {
                    reactor::timer_after(MEMORY_RETRY, self.clone(), TAG_MEMORY);
                    return;
                }
                Next::Failed(error) => {
                    let code = match error {
                        WireError::Version(_) => RefusalCode::Version,
                        WireError::HeaderChecksum | WireError::PayloadChecksum => RefusalCode::Checksum,
                        _ => RefusalCode::Malformed,
                    };
                    let text = error.to_string();
                    self.refuse_because(code, Generation(0), &text, CloseReason::Wire(error));
                }
            }
        }
    }

    fn sent(self: &Rc<Self>, done: Done) {
        let expected = self.send.borrow().flight_bytes();
        match done.result {
            Ok(count) if count as usize == expected => {}
            Ok(_) => return self.close(CloseReason::PeerClosed),
            Err(error) => return self.close(CloseReason::Io(error)),
        }
        let (bytes, resume) = self.send.borrow_mut().sent();
        self.sent_bytes.set(self.sent_bytes.get() + bytes as u64);
        self.flush();
        self.end_sending();
        let owner = self.owner.borrow().clone().filter(|_| resume && self.is_open());
        if let Some(owner) = owner {
            owner.writable(self);
        }
    }

    fn received(self: &Rc<Self>, done: Done) {
        self.receiving.set(false);
        match done.result {
            Ok(0) => return self.close(CloseReason::PeerClosed),
            Err(error) => return self.close(CloseReason::Io(error)),
            Ok(count) => {
                self.last_received.set(reactor::now());
                self.received_bytes.set(self.received_bytes.get() + u64::from(count));
                self.recv.borrow_mut().received(count as usize);
            }
        }
        self.deliver();
    }
}

impl RingOwner for Connection {
    fn ring_done(self: Rc<Self>, tag: u64, done: Done) {
        if !matches!(*self.state.borrow(), State::Open | State::Finishing(_)) {
            return;
        }
        match tag {
            TAG_SEND => self.sent(done),
            _ => self.received(done),
        }
    }
}

impl Task for Connection {
    fn run(self: Rc<Self>) {
        self.scheduled.set(false);
        let state = std::mem::replace(&mut *self.state.borrow_mut(), State::Closed);
        match state {
            State::Closing(reason) => {
                self.send.borrow_mut().clear();
                if let Some(owner) = self.owner.take() {
                    owner.closed(&self, reason);
                }
            }
            other => {
                *self.state.borrow_mut() = other;
                self.flush();
            }
        }
    }
}

impl TimerHandler for Connection {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        match tag {
            TAG_DEADLINE => {
                if let Some((_, what)) = self.deadline.take() {
                    self.close(CloseReason::Deadline(what));
                }
            }
            // A connection that is still there has not finished in time, and keeps its reason.
            TAG_FINISH => self.close(CloseReason::Local),
            _ => self.deliver(),
        }
    }
}
