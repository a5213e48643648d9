//! The part of a controller that every thread may look at.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::facts::ControllerFacts;
use super::options::ControllerOptions;

/// Where a controller is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// The first attempt.
    Connecting,
    Live,
    /// Lost; attempts go on and I/O waits.
    Reconnecting,
    /// Lost; attempts go on and I/O fails.
    Failing,
    /// Given up, or detached.
    Gone,
}

impl Life {
    /// SPDK's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Life::Connecting => "connecting",
            Life::Live => "enabled",
            Life::Reconnecting => "reconnect_is_delayed",
            Life::Failing => "failed",
            Life::Gone => "deleting",
        }
    }
}

pub(super) struct Inside {
    pub(super) life: Life,
    /// Counts connections: an I/O queue belongs to one.
    pub(super) generation: u64,
    pub(super) facts: ControllerFacts,
    /// I/O queues granted, and the identifiers in use.
    granted: u16,
    taken: Vec<u16>,
    pub(super) reconnects: u64,
}

pub(super) struct Shared {
    pub(super) serial: u64,
    pub(super) options: ControllerOptions,
    /// Index of the reactor that has the admin queue.
    pub(super) home: usize,
    inside: Mutex<Inside>,
}

impl Shared {
    pub(super) fn new(options: ControllerOptions, home: usize) -> Shared {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Shared {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            options,
            home,
            inside: Mutex::new(Inside {
                life: Life::Connecting,
                generation: 0,
                facts: ControllerFacts::default(),
                granted: 0,
                taken: Vec::new(),
                reconnects: 0,
            }),
        }
    }

    /// Never on the data path: taken when a connection comes or goes.
    pub(super) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller granted `count` I/O queues.
    pub(super) fn grant(&self, count: u16) {
        self.inside().granted = count;
    }

    /// A queue identifier for an I/O queue; or how many there are, all of them in use.
    pub(super) fn take_qid(&self) -> Result<u16, u16> {
        let mut inside = self.inside();
        let free = (1..=inside.granted).find(|qid| !inside.taken.contains(qid));
        let qid = free.ok_or(inside.granted)?;
        inside.taken.push(qid);
        Ok(qid)
    }

    pub(super) fn give_qid(&self, qid: u16) {
        self.inside().taken.retain(|&q| q != qid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_identifiers_follow_what_the_controller_grants() {
        let address = "127.0.0.1:4420".parse().expect("address");
        let shared = Shared::new(ControllerOptions::new("a", address, "nqn.2026-11.io.lockstep:a"), 0);
        shared.grant(2);
        assert_eq!((shared.take_qid(), shared.take_qid(), shared.take_qid()), (Ok(1), Ok(2), Err(2)));
        shared.grant(1);
        shared.give_qid(2);
        assert_eq!(shared.take_qid(), Err(1));
        shared.give_qid(1);
        shared.grant(3);
        let got: Vec<_> = std::iter::from_fn(|| shared.take_qid().ok()).collect();
        assert_eq!(got, [1, 2, 3]);
    }
}
