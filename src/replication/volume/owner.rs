//! One volume's stripes on one reactor: the machine of the node's role, the disk below, the host's pieces in flight.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use slab::Slab;

use super::device::VolumeShared;
use super::maps::Maps;
use super::payload::Blocks;
use super::piece::Piece;
use super::shard::Shard;
use crate::bdev::{Bdev, BdevError, Channel, Io, IoError, IoOwner, Op};
use crate::env::SgList;
use crate::reactor;
use crate::replication::Epoch;
use crate::replication::core::{
    Command, Data, DiskFailure, OpId, PrimaryOutput, PrimaryStripes, Range, Refusal, SecondaryOutput,
    SecondaryStripes, StripeEvent,
};

/// Largest single buffer of a read that the machines ask for; a stripe's worth is several.
const READ_BUFFER_BYTES: usize = 1 << 20;

/// The machine of the node's present role.
pub(super) enum Machine {
    /// Before the start and after the end: no I/O.
    Stopped,
    Primary(Box<PrimaryStripes<Blocks>>),
    /// Also after a failover, until the group is deleted.
    Secondary(Box<SecondaryStripes<Blocks, Maps>>),
}

/// What an I/O of the disk below is for.
pub(super) enum Job {
    Write(OpId),
    Flush(OpId),
    CompareRead(OpId, Blocks),
    HostRead(OpId),
    CopyRead(OpId, Blocks),
    Preserve(OpId, Range, Blocks),
    View(OpId, Range),
    Base(OpId, Range, Blocks),
    Verify(OpId, Blocks),
}

/// A read that waits for buffer memory.
#[derive(Clone, Copy)]
pub(super) enum Starved {
    Copy(OpId, Range),
    Preserve(OpId, Range),
    Base(OpId, Range),
    Verify(OpId, Range),
}

impl Starved {
    fn range(self) -> Range {
        let (Starved::Copy(_, range)
        | Starved::Preserve(_, range)
        | Starved::Base(_, range)
        | Starved::Verify(_, range)) = self;
        range
    }
}

pub(super) struct Owner {
    pub shared: Arc<VolumeShared>,
    /// The volume's place in its group.
    pub index: u16,
    base: RefCell<Rc<Channel>>,
    pub shard: Weak<Shard>,
    pub machine: RefCell<Machine>,
    jobs: RefCell<Slab<(Job, Rc<Channel>)>>,
    pieces: RefCell<Slab<Box<Piece>>>,
    starved: RefCell<VecDeque<Starved>>,
    /// Host's commands that wait for buffer memory.
    hungry: RefCell<VecDeque<Box<Piece>>>,
    pub primary_out: RefCell<Vec<PrimaryOutput<Blocks>>>,
    pub secondary_out: RefCell<Vec<SecondaryOutput<Blocks>>>,
    pub block_bytes: u32,
}

thread_local! {
    static OWNERS: RefCell<HashMap<u64, Rc<Owner>>> = RefCell::new(HashMap::new());
}

/// Where a read goes.
pub(super) enum ReadPath {
    Disk,
    Owners,
}

/// How the calling reactor reads the volume.
pub(super) fn read_path(volume: &VolumeShared) -> Result<ReadPath, IoError> {
    OWNERS.with(|o| match o.borrow().get(&volume.serial) {
        Some(owner) => match &*owner.machine.borrow() {
            Machine::Stopped => Err(IoError::Inaccessible),
            Machine::Primary(machine) => {
                let path = if machine.reads_disk() { ReadPath::Disk } else { ReadPath::Owners };
                machine.may_read().map(|()| path).map_err(io_error)
            }
            Machine::Secondary(_) => Ok(ReadPath::Owners),
        },
        None => Err(IoError::Inaccessible),
    })
}

/// The disk below a primary failed a host's read. `true` if it is to go to the owners: they try again, and decide.
pub(super) fn read_failed(volume: &VolumeShared) -> bool {
    let Some(owner) = OWNERS.with(|o| o.borrow().get(&volume.serial).cloned()) else { return false };
    if matches!(&*owner.machine.borrow(), Machine::Primary(machine) if machine.takes_failed_reads()) {
        return true;
    }
    if let Some(shard) = owner.shard.upgrade() {
        shard.event(owner.index, StripeEvent::DiskFailed(DiskFailure::Read));
    }
    false
}

/// A host's piece for the stripes of the calling reactor.
pub(super) fn take(piece: Box<Piece>) {
    match OWNERS.with(|o| o.borrow().get(&piece.volume.serial).cloned()) {
        Some(owner) => owner.take(piece),
        None => piece.end(Err(IoError::Inaccessible)),
    }
}

/// How the front-ends hear of a machine's refusal.
pub(super) fn io_error(refusal: Refusal) -> IoError {
    match refusal {
        Refusal::Disk => IoError::Device,
        // Another path may lead to the peer.
        Refusal::NoDisk => IoError::Disconnected,
        Refusal::Miscompare => IoError::Miscompare,
        Refusal::Fenced | Refusal::Stopped => IoError::Inaccessible,
        Refusal::ViewLost | Refusal::NoView => IoError::Inaccessible,
        Refusal::OutOfRange => IoError::OutOfRange,
        Refusal::Dropped => IoError::Removed,
    }
}

impl Owner {
    pub fn new(shared: Arc<VolumeShared>, index: u16, base: Rc<Channel>, shard: Weak<Shard>) -> Rc<Owner> {
        let block_bytes = shared.block_size();
        let owner = Rc::new(Owner {
            shared,
            index,
            base: RefCell::new(base),
            shard,
            machine: RefCell::new(Machine::Stopped),
            jobs: RefCell::default(),
            pieces: RefCell::default(),
            starved: RefCell::default(),
            hungry: RefCell::default(),
            primary_out: RefCell::default(),
            secondary_out: RefCell::default(),
            block_bytes,
        });
        OWNERS.with(|o| o.borrow_mut().insert(owner.shared.serial, owner.clone()));
        owner
    }

    pub fn blocks(&self, bytes: u64) -> u64 {
        bytes / u64::from(self.block_bytes)
    }

    /// The volume is deleted: pieces that come now are refused.
    pub fn forget(&self) {
        OWNERS.with(|o| o.borrow_mut().remove(&self.shared.serial));
        self.refuse_pieces();
    }

    /// Ends the hosts' commands that have not ended: there is no machine any more that would.
    pub fn refuse_pieces(&self) {
        let pieces: Vec<Box<Piece>> =
            self.pieces.borrow_mut().drain().chain(self.hungry.borrow_mut().drain(..)).collect();
        pieces.into_iter().for_each(|piece| piece.end(Err(IoError::Inaccessible)));
    }

    fn take(self: &Rc<Owner>, mut piece: Box<Piece>) {
        let range = Range::new(piece.lba, piece.blocks);
        if let Some(epoch) = piece.at {
            return self.take_past(piece, epoch, range);
        }
        let blocks = |bufs: &mut SgList| Blocks::new(std::mem::take(bufs), self.block_bytes);
        let command = match piece.op {
            Op::Read => Command::Read { range, into: blocks(&mut piece.data) },
            Op::Write => Command::Write { range, data: Data::Bytes(blocks(&mut piece.data)), fua: piece.fua },
            // What reads as zeroes everywhere is written as zeroes: devices differ in what a discard leaves behind.
            Op::WriteZeroes | Op::Unmap => Command::Write { range, data: Data::Zeroes, fua: piece.fua },
            Op::Flush => Command::Flush,
            Op::CompareAndWrite => {
                let Some(scratch) = self.alloc(range) else {
                    return self.hungry.borrow_mut().push_back(piece);
                };
                let (compare, data) = (blocks(&mut piece.compare), blocks(&mut piece.data));
                Command::CompareAndWrite { range, compare, data, scratch, fua: piece.fua }
            }
            Op::Compare | Op::Reset => return piece.end(Err(IoError::Unsupported)),
        };
        if matches!(*self.machine.borrow(), Machine::Stopped) {
            return piece.end(Err(IoError::Inaccessible));
        }
        piece.since_ns = if self.times(piece.op) { reactor::now() } else { 0 };
        let token = self.pieces.borrow_mut().insert(piece) as u64;
        if matches!(*self.machine.borrow(), Machine::Primary(_)) {
            self.primary(|machine, out| machine.submit(token, command, out));
        } else {
            self.secondary(|machine, out| machine.submit(token, command, out));
        }
    }

    /// Whether somebody wants to know how long a host's command takes.
    fn times(&self, op: Op) -> bool {
        let writes = matches!(op, Op::Write | Op::WriteZeroes | Op::Unmap | Op::CompareAndWrite);
        writes && self.shard.upgrade().is_some_and(|shard| shard.times_writes())
    }

    /// A read of the volume as it was at the end of an epoch.
    fn take_past(self: &Rc<Owner>, mut piece: Box<Piece>, epoch: Epoch, range: Range) {
        if !matches!(*self.machine.borrow(), Machine::Secondary(_)) {
            return piece.end(Err(IoError::Removed));
        }
        let into = Blocks::new(std::mem::take(&mut piece.data), self.block_bytes);
        let token = self.pieces.borrow_mut().insert(piece) as u64;
        self.secondary(|machine, out| machine.read_past(token, epoch, range, into, out));
    }

    /// Ends a host's command.
    pub fn reply(&self, token: u64, result: Result<(), Refusal>) {
        if let Some(piece) = self.pieces.borrow_mut().try_remove(token as usize) {
            if piece.since_ns > 0
                && let Some(shard) = self.shard.upgrade()
            {
                shard.wrote(Duration::from_nanos(reactor::now().saturating_sub(piece.since_ns)));
            }
            piece.end(result.map_err(io_error));
        }
    }

    /// Buffers for a range.
    pub fn alloc(&self, range: Range) -> Option<Blocks> {
        let mut left = range.blocks as usize * self.block_bytes as usize;
        let mut bufs = SgList::new();
        while left > 0 {
            let len = left.min(READ_BUFFER_BYTES);
            bufs.push(reactor::alloc(len)?);
            left -= len;
        }
        Some(Blocks::new(bufs, self.block_bytes))
    }

    /// Another disk is below from now on. What the old one still has comes back to nobody.
    pub fn replace_base(&self) -> Result<(), BdevError> {
        let channel = self.shared.base().channel()?;
        self.base.replace(channel);
        Ok(())
    }

    /// I/Os that a disk, which is or was below, has not given back.
    pub fn at_disk(&self, disk: &Arc<Bdev>) -> usize {
        self.jobs.borrow().iter().filter(|(_, (_, channel))| Arc::ptr_eq(channel.bdev(), disk)).count()
    }

    /// Submits an I/O to the disk below.
    pub fn disk(self: &Rc<Owner>, op: Op, range: Range, bufs: SgList, fua: bool, job: Job) {
        let mut io = Io::new(op);
        if op.has_range() {
            (io.lba, io.num_blocks) = (range.lba, u64::from(range.blocks));
        }
        io.data = bufs;
        io.fua = fua;
        let base = self.base.borrow().clone();
        io.tag = self.jobs.borrow_mut().insert((job, base.clone())) as u64;
        base.submit(io, self.clone());
    }

    /// Writes what a machine wants written.
    pub fn disk_write(self: &Rc<Owner>, op: OpId, range: Range, data: Data<Blocks>, fua: bool) {
        match data {
            Data::Bytes(blocks) => self.disk(Op::Write, range, blocks.into_bufs(), fua, Job::Write(op)),
            Data::Zeroes => self.disk(Op::WriteZeroes, range, SgList::new(), fua, Job::Write(op)),
        }
    }

    /// Reads that found no buffer memory, once more; in order, as far as memory goes.
    pub fn feed(self: &Rc<Owner>) {
        loop {
            let Some(starved) = self.starved.borrow_mut().pop_front() else { break };
            let Some(blocks) = self.alloc(starved.range()) else {
                // Its turn stays: looking at all that wait behind it each time would take the reactor's whole time.
                return self.starved.borrow_mut().push_front(starved);
            };
            self.read_into(starved, blocks);
        }
        for _ in 0..self.hungry.borrow().len() {
            let Some(piece) = self.hungry.borrow_mut().pop_front() else { return };
            self.take(piece);
        }
    }

    /// Reads for the machine into new buffers, or waits for memory.
    pub fn read_for(self: &Rc<Owner>, what: Starved) {
        match self.alloc(what.range()) {
            Some(blocks) => self.read_into(what, blocks),
            None => self.starved.borrow_mut().push_back(what),
        }
    }

    fn read_into(self: &Rc<Owner>, what: Starved, blocks: Blocks) {
        let range = what.range();
        let bufs = blocks.bufs().iter().cloned().collect();
        let job = match what {
            Starved::Copy(op, _) => Job::CopyRead(op, blocks),
            Starved::Preserve(op, range) => Job::Preserve(op, range, blocks),
            Starved::Base(op, range) => Job::Base(op, range, blocks),
            Starved::Verify(op, _) => Job::Verify(op, blocks),
        };
        self.disk(Op::Read, range, bufs, false, job);
    }
}

impl IoOwner for Owner {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        let job = self.jobs.borrow_mut().try_remove(io.tag as usize).map(|(job, _)| job);
        let ok = io.result.is_ok();
        io.recycle();
        match job {
            Some(Job::Write(op)) => {
                if matches!(*self.machine.borrow(), Machine::Primary(_)) {
                    self.primary(|machine, out| machine.local_done(op, ok, out));
                } else {
                    self.secondary(|machine, out| machine.write_done(op, ok, out));
                }
            }
            Some(Job::Flush(op)) => {
                if matches!(*self.machine.borrow(), Machine::Primary(_)) {
                    self.primary(|machine, out| machine.local_done(op, ok, out));
                } else {
                    self.secondary(|machine, out| machine.flush_done(op, ok, out));
                }
            }
            Some(Job::CompareRead(op, content)) => {
                self.primary(|machine, out| machine.compare_read(op, ok.then_some(&content), out));
            }
            Some(Job::HostRead(op)) => self.primary(|machine, out| machine.host_read(op, ok, out)),
            Some(Job::CopyRead(op, content)) => {
                self.primary(|machine, out| machine.copy_read(op, ok.then_some(content), out));
            }
            Some(Job::Preserve(op, range, content)) => {
                self.secondary(|machine, out| machine.preserve_read(op, range, ok.then_some(&content), out));
            }
            Some(Job::View(op, range)) => {
                self.secondary(|machine, out| machine.view_read(op, range, ok, None, out));
            }
            Some(Job::Base(op, range, content)) => {
                self.secondary(|machine, out| machine.base_read(op, range, ok.then_some(content), out));
            }
            Some(Job::Verify(op, content)) => {
                let content = ok.then_some(&content);
                if matches!(*self.machine.borrow(), Machine::Primary(_)) {
                    self.primary(|machine, out| machine.verify_read(op, content, out));
                } else {
                    self.secondary(|machine, out| machine.verify_read(op, content, out));
                }
            }
            None => {}
        }
        if !self.starved.borrow().is_empty() || !self.hungry.borrow().is_empty() {
            self.feed();
        }
    }
}
