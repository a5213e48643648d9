//! Outgoing connections: one attempt with a deadline, and how long to wait before the next.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::reactor::ring::{self, Done, Lane, RingFile, RingOwner};
use crate::reactor::{self, OpId, TimerHandler, TimerId};

/// First wait after a failure: a peer that restarts is back soon.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait: what an operator who just repaired the peer has patience for.
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);

/// Waits between attempts, doubling.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: BACKOFF_FIRST }
    }
}

impl Backoff {
    /// How long to wait before the next attempt.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(BACKOFF_LONGEST);
        wait
    }

    /// The peer was reached.
    pub fn reset(&mut self) {
        self.next = BACKOFF_FIRST;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("connecting to {0} failed: {1}")]
    Io(SocketAddr, Errno),
    #[error("{0} did not answer within the deadline")]
    Deadline(SocketAddr),
}

/// Gets the outcome of an attempt, exactly once, from the reactor's loop.
pub trait ConnectOwner {
    fn connected(&self, tag: u64, outcome: Result<Arc<OwnedFd>, ConnectError>);
}

/// An attempt under way.
pub struct Attempt {
    address: SocketAddr,
    tag: u64,
    owner: RefCell<Option<Rc<dyn ConnectOwner>>>,
    file: RingFile,
    operation: Cell<Option<OpId>>,
    timer: Cell<Option<TimerId>>,
}

const TAG_CONNECT: u64 = 0;

fn socket(address: SocketAddr) -> Result<OwnedFd, ConnectError> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP));
    socket.map(OwnedFd::from).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        ConnectError::Io(address, errno)
    })
}

/// Begins to connect from the calling reactor.
pub fn connect(
    address: SocketAddr,
    deadline: Duration,
    owner: Rc<dyn ConnectOwner>,
    tag: u64,
) -> Result<Rc<Attempt>, ConnectError> {
    let file = RingFile::new(Arc::new(socket(address)?), Lane::Interrupt);
    let attempt = Rc::new(Attempt {
        address,
        tag,
        owner: RefCell::new(Some(owner)),
        file,
        operation: Cell::new(None),
        timer: Cell::new(None),
    });
    let operation = ring::connect(&attempt.file, SockAddr::from(address), attempt.clone(), TAG_CONNECT);
    attempt.operation.set(Some(operation));
    attempt.timer.set(Some(reactor::timer_after(deadline, attempt.clone(), TAG_CONNECT)));
    Ok(attempt)
}

impl Attempt {
    /// Gives up; the owner is not called any more.
    pub fn cancel(&self) {
        self.owner.take();
        self.end();
    }

    fn end(&self) {
        if let Some(timer) = self.timer.take() {
            reactor::timer_cancel(timer);
        }
        if let Some(operation) = self.operation.take() {
            ring::cancel(operation);
        }
    }

    fn outcome(&self, outcome: Result<Arc<OwnedFd>, ConnectError>) {
        let owner = self.owner.take();
        self.end();
        if let Some(owner) = owner {
            owner.connected(self.tag, outcome);
        }
    }
}

impl RingOwner for Attempt {
    fn ring_done(self: Rc<Self>, _tag: u64, done: Done) {
        self.operation.take();
        let outcome = done.result.map(|_| self.file.fd().clone());
        self.outcome(outcome.map_err(|errno| ConnectError::Io(self.address, errno)));
    }
}

impl TimerHandler for Attempt {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        self.timer.take();
        self.outcome(Err(ConnectError::Deadline(self.address)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit_and_begins_again() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.wait(), BACKOFF_FIRST);
    }
}
