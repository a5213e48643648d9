//! Range locks: nobody else writes a range of a bdev, on any reactor, while its holder has it.
//!
//! A lock enters the bdev's table, then every reactor hears of it: from then on its channel holds back new writes to
//! the range, and it answers when those at its device have ended. With all answers in, the lock is taken. Locks on
//! overlapping ranges are taken one after the other, in the order of asking.
//!
//! Invariants: a channel made later copies the table, so it can't miss a lock; reads pass; without locks an I/O pays
//! for one test of a flag.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::channel::{self, Channel};
use super::device::Bdev;
use super::flight::{Flight, Range, Stage};
use super::io::{Io, Op};
use crate::reactor;

/// Names a lock of a bdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LockId(u64);

#[derive(Debug, Clone, Copy)]
struct Lock {
    id: LockId,
    range: Range,
    /// The reactor that asked for it.
    home: usize,
}

#[derive(Default)]
struct Table {
    next: u64,
    active: Vec<Lock>,
    queued: VecDeque<Lock>,
}

/// A bdev's locks.
#[derive(Default)]
pub(super) struct LockTable(Mutex<Table>);

/// A lock as one channel sees it.
pub(super) struct LocalLock {
    id: LockId,
    range: Range,
    /// Older writes to the range that are still at the device.
    draining: usize,
    home: usize,
}

/// Hears that a lock is taken.
pub(super) trait LockOwner {
    fn range_locked(self: Rc<Self>);
}

/// A lock that was asked for on this channel and is not taken yet.
pub(super) struct Request {
    id: LockId,
    missing: usize,
    owner: Rc<dyn LockOwner>,
}

impl LockTable {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a new channel must know.
    pub(super) fn active(&self) -> Vec<LocalLock> {
        self.table().active.iter().map(|l| LocalLock::new(l, 0)).collect()
    }

    fn ask(&self, range: Range, home: usize) -> (Lock, bool) {
        let mut table = self.table();
        table.next += 1;
        let lock = Lock { id: LockId(table.next), range, home };
        let free = table.is_free(&lock, table.queued.len());
        if free {
            table.active.push(lock);
        } else {
            table.queued.push_back(lock);
        }
        (lock, free)
    }

    /// Removes a lock; gives those that may be taken now.
    fn remove(&self, id: LockId) -> Vec<Lock> {
        let mut table = self.table();
        table.active.retain(|l| l.id != id);
        let mut ready = Vec::new();
        let mut at = 0;
        while let Some(&lock) = table.queued.get(at) {
            if table.is_free(&lock, at) {
                table.queued.remove(at);
                table.active.push(lock);
                ready.push(lock);
            } else {
                at += 1;
            }
        }
        ready
    }
}

impl Table {
    /// Whether nothing active, nor any of the first `before` in the queue, is in the way.
    fn is_free(&self, lock: &Lock, before: usize) -> bool {
        let Range { lba, num_blocks } = lock.range;
        !self.active.iter().chain(self.queued.iter().take(before)).any(|l| l.range.overlaps(lba, num_blocks))
    }
}

impl LocalLock {
    fn new(lock: &Lock, draining: usize) -> LocalLock {
        LocalLock { id: lock.id, range: lock.range, draining, home: lock.home }
    }
}

/// Whether a lock concerns the I/O: compare-and-write takes a lock of its own.
fn writes(op: Op) -> bool {
    op.modifies() && op != Op::CompareAndWrite
}

/// Makes a lock known to every reactor.
fn announce(bdev: &Arc<Bdev>, lock: Lock) {
    let bdev = bdev.clone();
    reactor::send_to_all(move || match channel::find(bdev.serial()) {
        Some(channel) => channel.hear_of(&lock),
        None => answer(bdev.serial(), lock.id, lock.home),
    });
}

fn answer(serial: u64, id: LockId, home: usize) {
    reactor::spawn_call(home, move || {
        if let Some(channel) = channel::find(serial) {
            channel.answered(id);
        }
    });
}

impl Channel {
    /// Asks for a lock; `owner` hears when it is taken.
    pub(super) fn lock_range(self: &Rc<Channel>, range: Range, owner: Rc<dyn LockOwner>) -> LockId {
        let (lock, free) = self.bdev.locks().ask(range, reactor::core_index());
        self.lock_requests.borrow_mut().push(Request { id: lock.id, missing: reactor::count(), owner });
        if free {
            announce(&self.bdev, lock);
        }
        lock.id
    }

    /// Gives a lock back.
    pub(super) fn unlock_range(self: &Rc<Channel>, id: LockId) {
        let ready = self.bdev.locks().remove(id);
        let serial = self.bdev.serial();
        reactor::send_to_all(move || {
            if let Some(channel) = channel::find(serial) {
                channel.forget(id);
            }
        });
        ready.into_iter().for_each(|lock| announce(&self.bdev, lock));
    }

    fn hear_of(self: &Rc<Channel>, lock: &Lock) {
        let Range { lba, num_blocks } = lock.range;
        let draining = self
            .flights
            .borrow()
            .iter()
            .filter(|(_, f)| f.stage != Stage::Waiting && !f.internal && writes(f.op))
            .filter(|(_, f)| Range { lba: f.lba, num_blocks: f.num_blocks }.overlaps(lba, num_blocks))
            .count();
        let mut locks = self.locks.borrow_mut();
        locks.retain(|l| l.id != lock.id);
        locks.push(LocalLock::new(lock, draining));
        self.special.set(true);
        if draining == 0 {
            answer(self.bdev.serial(), lock.id, lock.home);
        }
    }

    /// A lock is gone: what it held goes on.
    fn forget(self: &Rc<Channel>, id: LockId) {
        self.locks.borrow_mut().retain(|l| l.id != id);
        self.note_special();
        let held = std::mem::take(&mut *self.held.borrow_mut());
        for io in held {
            self.set_stage(io.id, Stage::AtDevice);
            self.dispatch(io);
        }
    }

    fn answered(&self, id: LockId) {
        let mut requests = self.lock_requests.borrow_mut();
        let Some(at) = requests.iter().position(|r| r.id == id) else { return };
        requests[at].missing -= 1;
        if requests[at].missing == 0 {
            let request = requests.swap_remove(at);
            drop(requests);
            request.owner.range_locked();
        }
    }

    /// Whether a lock keeps the I/O from starting.
    #[cold]
    pub(super) fn is_locked(&self, io: &Io) -> bool {
        writes(io.op) && self.locks.borrow().iter().any(|l| l.range.overlaps(io.lba, io.num_blocks))
    }

    /// Counts an I/O that left the device off the locks that waited for it. Newer writes to a locked range are held
    /// back, so whatever ends there is older than the lock.
    pub(super) fn drained(&self, flight: &Flight) {
        if !writes(flight.op) {
            return;
        }
        for lock in self.locks.borrow_mut().iter_mut() {
            if lock.draining > 0 && lock.range.overlaps(flight.lba, flight.num_blocks) {
                lock.draining -= 1;
                if lock.draining == 0 {
                    answer(self.bdev.serial(), lock.id, lock.home);
                }
            }
        }
    }
}
