//! What a device can't do itself, made of what it can: write-zeroes and unmap from writes, compare from reads,
//! compare-and-write from both under a range lock, which makes it atomic against every other write of the bdev on
//! any reactor.
//!
//! An emulated I/O is rare and may allocate; its parts go to the device one after the other.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::channel::Channel;
use super::error::IoError;
use super::flight::{IoId, Range};
use super::io::{Io, IoOwner, Op};
use super::ranges::{LockId, LockOwner};
use crate::env::{Buf, SgList};
use crate::reactor::{self, TimerHandler};

/// Zeroes go out in writes of this size: large enough for any device's full speed.
const ZERO_BYTES: usize = 1 << 20;
/// The one buffer of zeroes behind each such write.
const ZERO_BUF_BYTES: usize = 64 << 10;
/// Comparing reads in pieces of this size.
const COMPARE_BYTES: usize = 128 << 10;
/// How long to wait for a buffer when the pool is at its limit.
const RETRY: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Locking,
    Comparing,
    Writing,
    Zeroing,
}

/// One emulated I/O.
pub(super) struct Emulation {
    channel: Rc<Channel>,
    parent: RefCell<Option<Box<Io>>>,
    parent_id: IoId,
    phase: Cell<Phase>,
    /// Blocks that this phase is through with.
    done: Cell<u64>,
    lock: Cell<Option<LockId>>,
    part: Cell<Option<IoId>>,
    aborted: Cell<bool>,
}

impl Emulation {
    pub(super) fn start(channel: &Rc<Channel>, io: Box<Io>) {
        let phase = match io.op {
            Op::WriteZeroes | Op::Unmap => Phase::Zeroing,
            Op::Compare => Phase::Comparing,
            Op::CompareAndWrite => Phase::Locking,
            // A device without a cache has nothing to flush; a reset is made of aborts.
            Op::Flush | Op::Reset => return io.complete(Ok(())),
            Op::Read | Op::Write => return io.complete(Err(IoError::Unsupported)),
        };
        let range = Range { lba: io.lba, num_blocks: io.num_blocks };
        let emulation = Rc::new(Emulation {
            channel: channel.clone(),
            parent_id: io.id(),
            parent: RefCell::new(Some(io)),
            phase: Cell::new(phase),
            done: Cell::new(0),
            lock: Cell::new(None),
            part: Cell::new(None),
            aborted: Cell::new(false),
        });
        channel.emulations.borrow_mut().push(emulation.clone());
        if phase == Phase::Locking {
            let lock = channel.lock_range(range, emulation.clone());
            emulation.lock.set(Some(lock));
        } else {
            emulation.step();
        }
    }

    pub(super) fn parent_id(&self) -> IoId {
        self.parent_id
    }

    /// Ends after the part that is at the device, which is asked to hurry.
    pub(super) fn abort(&self) {
        self.aborted.set(true);
        if let Some(part) = self.part.get() {
            self.channel.device.abort(part);
        }
    }

    /// Sends the next part, or ends.
    fn step(self: &Rc<Self>) {
        if self.aborted.get() {
            return self.end(Err(IoError::Aborted));
        }
        let part = {
            let parent = self.parent.borrow();
            let Some(parent) = parent.as_deref() else { return };
            match self.phase.get() {
                Phase::Locking => return,
                Phase::Comparing => self.compare_part(parent),
                Phase::Writing => self.write_part(parent),
                Phase::Zeroing => self.zero_part(parent),
            }
        };
        match part {
            Some(part) => {
                let id = self.channel.submit_part(part, self.clone());
                self.part.set(Some(id));
            }
            None => {
                reactor::timer_after(RETRY, self.clone(), 0);
            }
        }
    }

    fn part(&self, op: Op, parent: &Io, num_blocks: u64) -> Box<Io> {
        let mut part = Io::new(op);
        (part.lba, part.num_blocks) = (parent.lba + self.done.get(), num_blocks);
        part
    }

    /// Blocks of the next piece of at most `bytes`.
    fn piece(&self, parent: &Io, bytes: usize) -> u64 {
        let block_size = u64::from(self.channel.bdev.block_size());
        (parent.num_blocks - self.done.get()).min(bytes as u64 / block_size)
    }

    fn compare_part(&self, parent: &Io) -> Option<Box<Io>> {
        if self.channel.is_native(Op::Compare) {
            let mut part = self.part(Op::Compare, parent, parent.num_blocks);
            part.data = expected(parent).clone();
            return Some(part);
        }
        let blocks = self.piece(parent, COMPARE_BYTES);
        let mut part = self.part(Op::Read, parent, blocks);
        part.data.push(reactor::alloc(self.bytes(blocks))?);
        Some(part)
    }

    fn write_part(&self, parent: &Io) -> Option<Box<Io>> {
        let mut part = self.part(Op::Write, parent, parent.num_blocks);
        part.data = parent.data.clone();
        part.fua = parent.fua;
        Some(part)
    }

    fn zero_part(&self, parent: &Io) -> Option<Box<Io>> {
        let blocks = self.piece(parent, ZERO_BYTES);
        let mut part = self.part(Op::Write, parent, blocks);
        part.data = zeroes(self.bytes(blocks))?;
        part.fua = parent.fua;
        Some(part)
    }

    fn bytes(&self, blocks: u64) -> usize {
        blocks as usize * self.channel.bdev.block_size() as usize
    }

    /// What a part brought: the next phase, or how the whole ended.
    fn after(&self, part: &Io) -> Result<bool, IoError> {
        part.result?;
        let parent = self.parent.borrow();
        let Some(parent) = parent.as_deref() else { return Ok(true) };
        if part.op == Op::Read {
            let offset = self.bytes(self.done.get());
            if !part.data.iter().all(|read| equals_at(expected(parent), offset, read)) {
                return Err(IoError::Miscompare);
            }
        }
        self.done.set(self.done.get() + part.num_blocks);
        if self.done.get() < parent.num_blocks {
            return Ok(false);
        }
        if self.phase.get() == Phase::Comparing && parent.op == Op::CompareAndWrite {
            self.phase.set(Phase::Writing);
            self.done.set(0);
            return Ok(false);
        }
        Ok(true)
    }

    fn end(self: &Rc<Self>, result: Result<(), IoError>) {
        if let Some(lock) = self.lock.take() {
            self.channel.unlock_range(lock);
        }
        self.channel.emulations.borrow_mut().retain(|e| !Rc::ptr_eq(e, self));
        if let Some(parent) = self.parent.take() {
            parent.complete(result);
        }
    }
}

impl IoOwner for Emulation {
    fn io_done(self: Rc<Self>, part: Box<Io>) {
        self.part.set(None);
        let outcome = self.after(&part);
        part.recycle();
        match outcome {
            Ok(false) => self.step(),
            Ok(true) => self.end(Ok(())),
            Err(error) => self.end(Err(error)),
        }
    }
}

impl LockOwner for Emulation {
    fn range_locked(self: Rc<Self>) {
        self.phase.set(Phase::Comparing);
        self.step();
    }
}

impl TimerHandler for Emulation {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        self.step();
    }
}

fn expected(parent: &Io) -> &SgList {
    if parent.op == Op::CompareAndWrite { &parent.compare } else { &parent.data }
}

/// `bytes` of zeroes, all of them from one small buffer; `None` when the pool is at its limit.
pub(super) fn zeroes(bytes: usize) -> Option<SgList> {
    let buf = reactor::alloc(bytes.min(ZERO_BUF_BYTES))?;
    buf.fill(0, buf.len(), 0);
    let whole = std::iter::repeat_n(buf.len(), bytes / buf.len());
    let rest = Some(bytes % buf.len()).filter(|&rest| rest > 0);
    Some(whole.chain(rest).map(|len| buf.slice(0, len)).collect())
}

/// Whether `bufs` at `offset` hold the bytes of `other`.
fn equals_at(bufs: &[Buf], mut offset: usize, other: &Buf) -> bool {
    let mut at = 0;
    for buf in bufs {
        if offset >= buf.len() {
            offset -= buf.len();
            continue;
        }
        let len = (buf.len() - offset).min(other.len() - at);
        if len == 0 {
            break;
        }
        if !buf.with(|a| other.with(|b| a[offset..offset + len] == b[at..at + len])) {
            return false;
        }
        (at, offset) = (at + len, 0);
    }
    at == other.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_compare_across_buffer_borders() {
        let a = Buf::heap(1024).expect("heap");
        a.write_at(500, b"0123456789");
        let list = [a.slice(0, 505), a.slice(505, 519)];
        assert!(equals_at(&list, 500, &a.slice(500, 10)));
        assert!(!equals_at(&list, 499, &a.slice(500, 10)));
        assert!(!equals_at(&list, 1020, &a.slice(0, 10)));
    }
}
