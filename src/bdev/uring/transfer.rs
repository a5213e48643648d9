//! The data path: one ring operation after the other until an I/O is through.
//!
//! Short reads and writes are continued; what the medium can't zero by itself is written; memory that O_DIRECT does
//! not take is bounced.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use slab::Slab;

use super::medium::{MEMORY_ALIGN, Medium};
use crate::bdev::device::DeviceChannel;
use crate::bdev::emulate;
use crate::bdev::error::IoError;
use crate::bdev::flight::IoId;
use crate::bdev::io::{Io, Op};
use crate::env::{Buf, SgList, sg_len};
use crate::reactor::{self, Done, Lane, OpId, RingFile, RingOwner, TimerHandler, ring};

/// FALLOC_FL_KEEP_SIZE with FALLOC_FL_PUNCH_HOLE, and with FALLOC_FL_ZERO_RANGE.
const PUNCH_HOLE: i32 = 0x01 | 0x02;
const ZERO_RANGE: i32 = 0x01 | 0x10;
/// Zeroes are written in pieces of this size where fallocate does not do it.
const ZERO_BYTES: u64 = 1 << 20;
/// Bounce buffers come in pieces of this size.
const BOUNCE_BYTES: usize = 128 << 10;
/// An operation that the kernel asks to repeat is repeated this often: more means that it never will go through.
const MAX_RETRIES: u8 = 100;
/// How long to wait for a buffer when the pool is at its limit.
const STARVED: Duration = Duration::from_millis(1);

/// What the operation at the ring does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Transfer,
    Sync,
    PunchHole,
    ZeroRange,
    WriteZeroes,
}

struct Pending {
    io: Box<Io>,
    step: Step,
    /// Bytes that this step is through with.
    done: u64,
    /// What the ring works on, where it is not `io.data`.
    other: Option<SgList>,
    op: Option<OpId>,
    polled: bool,
    retries: u8,
}

/// One reactor's end of the file.
pub(super) struct UringChannel {
    medium: Arc<Medium>,
    file: RingFile,
    lane: Cell<Lane>,
    pending: RefCell<Slab<Pending>>,
    /// I/Os that wait for a buffer.
    starved: RefCell<VecDeque<Pending>>,
}

impl UringChannel {
    pub(super) fn new(medium: Arc<Medium>) -> UringChannel {
        let lane = if medium.pollable { Lane::Polled } else { Lane::Interrupt };
        let file = RingFile::new(medium.file.clone(), lane);
        UringChannel {
            medium,
            file,
            lane: Cell::new(lane),
            pending: RefCell::default(),
            starved: RefCell::default(),
        }
    }

    fn block_bytes(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.medium.block_size)
    }

    /// The way to zero a range that is left to try.
    fn zero_step(&self, op: Op) -> Step {
        let ways = [(Step::PunchHole, &self.medium.no_punch), (Step::ZeroRange, &self.medium.no_zero_range)];
        let possible = |(step, no): (Step, &AtomicBool)| (!no.load(Ordering::Relaxed)).then_some(step);
        let mut ways = ways.into_iter().filter_map(possible);
        let way = if op == Op::Unmap { ways.next() } else { ways.next_back() };
        way.unwrap_or(Step::WriteZeroes)
    }

    /// Sends the next operation of an I/O to the ring.
    fn go(self: &Rc<Self>, mut p: Pending) {
        let total = self.block_bytes(p.io.num_blocks);
        let starved = match p.step {
            Step::Transfer if p.other.is_none() && self.medium.direct && !is_aligned(&p.io.data) => {
                p.other = bounce(&p.io);
                p.other.is_none()
            }
            Step::WriteZeroes => {
                p.other = emulate::zeroes((total - p.done).min(ZERO_BYTES) as usize);
                p.other.is_none()
            }
            _ => false,
        };
        if starved {
            if self.starved.borrow().is_empty() {
                reactor::timer_after(STARVED, self.clone(), 0);
            }
            self.starved.borrow_mut().push_back(p);
            return;
        }
        let offset = self.block_bytes(p.io.lba) + p.done;
        let mut pending = self.pending.borrow_mut();
        let entry = pending.vacant_entry();
        let (tag, owner) = (entry.key() as u64, self.clone() as Rc<dyn RingOwner>);
        // Polling devices have no durable writes.
        let lane = if p.io.fua { Lane::Interrupt } else { self.lane.get() };
        p.polled = lane == Lane::Polled;
        let op = match p.step {
            Step::Transfer => {
                let whole: &[Buf] = p.other.as_deref().unwrap_or(&p.io.data);
                let rest;
                let bufs = if p.done == 0 {
                    whole
                } else {
                    rest = skip(whole, p.done as usize);
                    &rest
                };
                if p.io.op == Op::Read {
                    ring::read(lane, &self.file, bufs, offset, owner, tag)
                } else {
                    ring::write(lane, &self.file, bufs, offset, p.io.fua, owner, tag)
                }
            }
            Step::WriteZeroes => {
                let bufs: &[Buf] = p.other.as_deref().unwrap_or(&[]);
                ring::write(lane, &self.file, bufs, offset, p.io.fua, owner, tag)
            }
            Step::Sync => ring::sync_data(&self.file, owner, tag),
            Step::PunchHole => ring::fallocate(&self.file, PUNCH_HOLE, offset, total, owner, tag),
            Step::ZeroRange => ring::fallocate(&self.file, ZERO_RANGE, offset, total, owner, tag),
        };
        p.op = Some(op);
        entry.insert(p);
    }

    /// An operation went through: `count` is what the system call returned.
    fn succeeded(self: &Rc<Self>, mut p: Pending, count: u64) {
        match p.step {
            Step::Sync => p.io.complete(Ok(())),
            Step::PunchHole | Step::ZeroRange if p.io.fua => {
                p.step = Step::Sync;
                self.go(p);
            }
            Step::PunchHole | Step::ZeroRange => p.io.complete(Ok(())),
            Step::Transfer | Step::WriteZeroes => {
                // A direct transfer that stopped inside a block goes on from that block's beginning.
                p.done += count - count % u64::from(self.medium.block_size);
                let total = self.block_bytes(p.io.num_blocks);
                if p.done >= total {
                    if let (Op::Read, Some(bounced)) = (p.io.op, &p.other) {
                        copy_list(&p.io.data, bounced);
                    }
                    p.io.complete(Ok(()));
                } else if count < u64::from(self.medium.block_size) {
                    // Nothing more to be had: the file ends here, it was cut while we had it.
                    p.io.complete(Err(IoError::Device));
                } else {
                    self.go(p);
                }
            }
        }
    }

    fn failed(self: &Rc<Self>, mut p: Pending, errno: Errno) {
        let unsupported = matches!(errno, Errno::OPNOTSUPP | Errno::NOSYS);
        match (p.step, errno) {
            (_, Errno::AGAIN | Errno::INTR) if p.retries < MAX_RETRIES => {
                p.retries += 1;
                self.go(p);
            }
            (Step::PunchHole, _) if unsupported => {
                self.medium.no_punch.store(true, Ordering::Relaxed);
                p.step = self.zero_step(p.io.op);
                self.go(p);
            }
            (Step::ZeroRange, _) if unsupported => {
                self.medium.no_zero_range.store(true, Ordering::Relaxed);
                p.step = self.zero_step(p.io.op);
                self.go(p);
            }
            (Step::Transfer | Step::WriteZeroes, _) if p.polled && unsupported => {
                tracing::info!("`{}` cannot be polled after all: interrupts are used", self.medium.filename);
                self.lane.set(Lane::Interrupt);
                self.go(p);
            }
            _ => {
                if IoError::from_errno(errno) == IoError::Device {
                    tracing::warn!(
                        "`{}`: {:?} of {} blocks at {} failed: {errno}",
                        self.medium.filename,
                        p.io.op,
                        p.io.num_blocks,
                        p.io.lba
                    );
                }
                p.io.complete(Err(IoError::from_errno(errno)));
            }
        }
    }
}

impl DeviceChannel for UringChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        let step = match io.op {
            op if op.modifies() && self.medium.read_only => {
                return io.complete(Err(IoError::WriteProtected));
            }
            Op::Read | Op::Write => Step::Transfer,
            Op::Flush if self.medium.read_only => return io.complete(Ok(())),
            Op::Flush => Step::Sync,
            Op::WriteZeroes | Op::Unmap => self.zero_step(io.op),
            Op::Compare | Op::CompareAndWrite | Op::Reset => return io.complete(Err(IoError::Unsupported)),
        };
        self.go(Pending { io, step, done: 0, other: None, op: None, polled: false, retries: 0 });
    }

    fn abort(&self, id: IoId) {
        let op = self.pending.borrow().iter().find(|(_, p)| p.io.id() == id).map(|(_, p)| (p.op, p.polled));
        if let Some((Some(op), false)) = op {
            ring::cancel(op);
        }
    }
}

impl RingOwner for UringChannel {
    fn ring_done(self: Rc<Self>, tag: u64, done: Done) {
        let Some(pending) = self.pending.borrow_mut().try_remove(tag as usize) else { return };
        match done.result {
            Ok(count) => self.succeeded(pending, count.into()),
            Err(errno) => self.failed(pending, errno),
        }
    }
}

impl TimerHandler for UringChannel {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        let starved = std::mem::take(&mut *self.starved.borrow_mut());
        starved.into_iter().for_each(|p| self.go(p));
    }
}

/// Whether O_DIRECT takes the memory as it is.
fn is_aligned(bufs: &[Buf]) -> bool {
    bufs.iter().all(|b| (b.as_ptr() as usize | b.len()).is_multiple_of(MEMORY_ALIGN))
}

/// Aligned buffers for an I/O's data, with the data in them if it is a write; `None` when the pool is at its limit.
fn bounce(io: &Io) -> Option<SgList> {
    let total = sg_len(&io.data);
    let piece = |at: usize| reactor::alloc((total - at).min(BOUNCE_BYTES));
    let list = (0..total).step_by(BOUNCE_BYTES).map(piece).collect::<Option<SgList>>()?;
    if io.op == Op::Write {
        copy_list(&list, &io.data);
    }
    Some(list)
}

/// The list without its first `bytes`.
fn skip(bufs: &[Buf], mut bytes: usize) -> SgList {
    let mut rest = SgList::new();
    for buf in bufs {
        let gone = bytes.min(buf.len());
        bytes -= gone;
        if gone < buf.len() {
            rest.push(buf.slice(gone, buf.len() - gone));
        }
    }
    rest
}

/// Copies between lists of one length.
fn copy_list(to: &[Buf], from: &[Buf]) {
    let (mut from, mut offset) = (from.iter(), 0);
    let mut source = from.next();
    for target in to {
        let mut at = 0;
        while let Some(buf) = source.filter(|_| at < target.len()) {
            let len = (target.len() - at).min(buf.len() - offset);
            target.copy_from(at, buf, offset, len);
            (at, offset) = (at + len, offset + len);
            if offset == buf.len() {
                (source, offset) = (from.next(), 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_skipped_and_copied_across_buffer_borders() {
        let a = Buf::heap(100).expect("heap");
        a.write_at(0, &(0..100).collect::<Vec<u8>>());
        let list = [a.slice(0, 10), a.slice(10, 50), a.slice(60, 40)];
        let rest = skip(&list, 30);
        assert_eq!(rest.iter().map(Buf::len).collect::<Vec<_>>(), [30, 40]);
        let b = Buf::heap(100).expect("heap");
        copy_list(&[b.slice(0, 33), b.slice(33, 67)], &list);
        assert!(a.with(|a| b.with(|b| a == b)));
        assert!(!is_aligned(&list) && is_aligned(&[Buf::heap(1024).expect("heap").slice(512, 512)]));
    }
}
