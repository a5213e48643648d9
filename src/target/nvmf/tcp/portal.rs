//! A listening socket: accepts connections on one reactor and hands them out.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::group;
use super::super::options::ListenAddress;
use crate::reactor::{self, Done, Lane, OpId, RingFile, RingOwner, TimerHandler, ring};

/// Wait after a failed accept (out of descriptors, most likely) before the next one.
const RETRY: Duration = Duration::from_millis(100);

pub struct Portal {
    id: u64,
    address: ListenAddress,
    file: RingFile,
    accept: RefCell<Option<OpId>>,
    closed: Cell<bool>,
}

impl Portal {
    pub fn open(id: u64, socket: OwnedFd, address: ListenAddress) -> Rc<Portal> {
        let file = RingFile::new(Arc::new(socket), Lane::Interrupt);
        let portal =
            Rc::new(Portal { id, address, file, accept: RefCell::new(None), closed: Cell::new(false) });
        tracing::info!("listening on {}", portal.address);
        portal.arm();
        portal
    }

    fn arm(self: &Rc<Self>) {
        *self.accept.borrow_mut() = Some(ring::accept_many(&self.file, self.clone(), 0));
    }

    /// Accepts no more; the socket closes when the ring has let go of it.
    pub fn close(&self) {
        self.closed.set(true);
        if let Some(op) = self.accept.borrow_mut().take() {
            ring::cancel(op);
        }
    }
}

impl RingOwner for Portal {
    fn ring_done(self: Rc<Self>, _tag: u64, done: Done) {
        if self.closed.get() {
            return;
        }
        match (done.result, done.socket) {
            (_, Some(socket)) => group::accepted(socket, self.id),
            (Err(error), _) => tracing::warn!("accepting at {} failed: {error}", self.address),
            (Ok(_), None) => {}
        }
        if !done.more {
            match done.result {
                Ok(_) => self.arm(),
                Err(_) => {
                    reactor::timer_after(RETRY, self, 0);
                }
            }
        }
    }
}

impl TimerHandler for Portal {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        if !self.closed.get() {
            self.arm();
        }
    }
}
