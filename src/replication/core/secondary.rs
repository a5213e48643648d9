//! The secondary's stripe machine: what the primary forwards for the stripes that one reactor owns of one volume.
//! The secondary VM's own I/O is in `view`, what happens after a failover in `promoted`; they share this state.
//!
//! Invariants. No in-place write is submitted before the originals of its granules are in its epoch's undo layer,
//! unless that epoch is said to be lost. Overlapping writes are applied in the order of their arrival. Every message gets
//! exactly one answer, within the deadline. A payload is kept until the disk gave the I/O back.

use super::super::{Epoch, Generation, Sequence};
use super::dirty::DirtyMap;
use super::group::Originals;
use super::journaling::Journaling;
use super::maps::{BufferFull, GranuleMaps};
use super::mutation::{Mutation, active};
use super::past::Past;
use super::peer_read::PeerRead;
use super::pinning::{Progress, Room};
use super::range_lock::{LockId, RangeLock};
use super::table::{OpId, Table};
use super::types::*;
use super::verify_secondary::Comparison;
use super::view::Own;
use smallvec::SmallVec;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
pub struct SecondaryConfig {
    pub geometry: Geometry,
    /// False: nothing is preserved, there is no view, and only `latest` can be promised.
    pub buffer: bool,
    /// Originals are durable in a journal before anything is written in place, and what is prepared is flushed.
    pub journal: bool,
    /// Ticks after which an I/O counts as hung, unless the disk is only slow: that is while others end, and none that
    /// the disk got a whole such time later.
    pub hung_ticks: u32,
}

/// How a forwarded message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Applied,
    /// The disk hangs; the write is kept in memory.
    Pinned,
    Failed(PeerRefusal),
    /// To what was sent to be compared.
    Compared(Verdict),
}

#[derive(Clone, Debug)]
pub enum SecondaryOutput<P> {
    /// Reads whole granules to be preserved; comes back by [`SecondaryStripes::preserve_read`].
    PreserveRead {
        op: OpId,
        range: Range,
    },
    /// Makes an original durable (`None`: nothing), and that originals through `lost_through` are not all kept; comes
    /// back by [`SecondaryStripes::journaled`].
    Journal {
        op: OpId,
        epoch: Epoch,
        range: Range,
        content: Option<P>,
        lost_through: Epoch,
    },
    /// Reads for the view, into the host's own buffer; comes back by [`SecondaryStripes::view_read`].
    ViewRead {
        op: OpId,
        range: Range,
        into: P,
    },
    /// Reads what a write of part of a granule leaves; comes back by [`SecondaryStripes::base_read`].
    BaseRead {
        op: OpId,
        range: Range,
    },
    /// Reads what is compared with the primary; comes back by [`SecondaryStripes::verify_read`].
    VerifyRead {
        op: OpId,
        range: Range,
    },
    /// Goes to the disk; comes back by [`SecondaryStripes::write_done`].
    SubmitWrite {
        op: OpId,
        range: Range,
        data: Data<P>,
        fua: bool,
    },
    /// Comes back by [`SecondaryStripes::flush_done`].
    SubmitFlush {
        op: OpId,
    },
    /// To the primary.
    Answer {
        lane: Lane,
        sequence: Sequence,
        answer: Answer,
    },
    /// To the primary: what it wants to read.
    ReadData {
        lane: Lane,
        sequence: Sequence,
        range: Range,
        content: P,
    },
    /// To the secondary's own host.
    Reply {
        token: Token,
        result: Result<(), Refusal>,
    },
    /// Every write of the epoch that arrived is on the disk or held in memory.
    Prepared {
        epoch: Epoch,
        result: Result<Standing, PeerRefusal>,
    },
    Event(StripeEvent),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Waiting,
    /// There is no room for what it overwrites, and a failover is under way that promises that.
    Withheld,
    Preserving {
        left: u16,
        failed: bool,
    },
    /// The journal is told that originals through this epoch are not all kept.
    Marking {
        through: Epoch,
    },
    Writing,
    /// The disk, or the journal, failed a pinned write; it is tried again at the next tick.
    Retrying,
    /// Rolled back by a failover; only waits for the disk to give its I/O back.
    Abandoned {
        left: u16,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    No,
    /// In `pins`; reads that go to the disk prefer it.
    Pinned {
        bytes: u64,
    },
}

pub(super) struct Forwarded<P> {
    pub lane: Lane,
    pub sequence: Sequence,
    pub epoch: Epoch,
    pub range: Range,
    pub data: Data<P>,
    pub fua: bool,
    pub lock: Option<LockId>,
    pub order: u64,
    pub stage: Stage,
    pub held: Held,
    pub answered: bool,
    /// When it came, and when the disk got what it does for it now.
    pub since: u32,
    pub started: u32,
    /// Brings what lies behind the volume's end, before it becomes a part of the volume: no original of it is worth
    /// keeping, and every state of the volume has it.
    pub behind: bool,
}

impl<P> Forwarded<P> {
    /// Whether the write is a part of the content through the epoch.
    pub fn belongs_to(&self, through: Epoch) -> bool {
        self.behind || self.epoch <= through
    }
}

pub(super) struct Barrier {
    pub lane: Lane,
    pub sequence: Sequence,
    order: u64,
    waiting: u32,
    pub since: u32,
}

pub(super) enum Op<P> {
    Forwarded(Forwarded<P>),
    Barrier(Barrier),
    Own(Own<P>),
    Drain {
        range: Range,
        lock: LockId,
    },
    Verify(Comparison),
    PeerRead(PeerRead),
    /// The flush of what is being prepared.
    Flush,
    /// Makes durable what was drained.
    DrainFlush,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Follower,
    /// Serving hosts. Forwarded writes through `visible` are part of the content, later ones are not.
    Promoted {
        visible: Epoch,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Preparing {
    pub epoch: Epoch,
    pub unanswered: u32,
}

pub struct SecondaryStripes<P, M> {
    /// Its geometry has the blocks that there is room for: never fewer than the volume has, never fewer than before.
    pub(super) config: SecondaryConfig,
    /// The volume's size.
    blocks: u64,
    /// Through here the primary may write; more than the volume has while it grows.
    limit: u64,
    pub(super) maps: M,
    pub(super) ops: Table<Op<P>>,
    pub(super) lock: RangeLock<OpId>,
    /// Orders the secondary VM's own writes; it never waits for a forwarded one.
    pub(super) own_lock: RangeLock<OpId>,
    pub(super) role: Role,
    pub(super) generation: Generation,
    pub(super) committed: Epoch,
    /// A failover is under way that promises what the originals lead back to: they are not given up.
    pub(super) promising: bool,
    /// The newest epoch seen.
    pub(super) open: Epoch,
    /// Originals of epochs through this one were not all kept.
    pub(super) lost_through: Epoch,
    pub(super) journaling: Journaling,
    pub(super) past: Past,
    /// Pinned writes in the order of arrival.
    pub(super) pins: Vec<(u64, OpId)>,
    pub(super) barriers: Vec<OpId>,
    /// Rises whenever something that a read may have missed goes from memory; such a read starts again.
    pub(super) changes: u64,
    pub(super) broken: Option<PeerRefusal>,
    pub(super) preparing: Option<Preparing>,
    pub(super) short_of_room: VecDeque<OpId>,
    pub(super) draining: super::promoted::Draining,
    pub(super) unflushed_drain: bool,
    /// No flush has covered what a session copied: a record that says "consistent" would not be true after a loss of
    /// power.
    pub(super) unflushed_session: bool,
    pub(super) dirty: DirtyMap,
    watermark: u8,
    order: u64,
    pub(super) tick: u32,
    pub(super) progress: Progress,
}

/// No original is ever kept from here on.
const NEVER: Epoch = Epoch(u64::MAX);
/// Percent of the buffer's limit at which events ask for a checkpoint: early enough for one at leisure, and urgent.
const WATERMARKS: [u8; 2] = [75, 90];
/// Below this the secondary's own writes may find room: the rest of the limit is kept for originals.
pub(super) const ROOM_PERCENT: u8 = 93;

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    pub fn new(config: SecondaryConfig, maps: M, generation: Generation, committed: Epoch) -> Self {
        SecondaryStripes {
            config,
            blocks: config.geometry.blocks,
            limit: config.geometry.blocks,
            maps,
            ops: Table::new(),
            lock: RangeLock::new(),
            own_lock: RangeLock::new(),
            role: Role::Follower,
            generation,
            committed,
            promising: false,
            open: committed,
            lost_through: if config.buffer { Epoch(0) } else { NEVER },
            journaling: Journaling::default(),
            past: Past::default(),
            pins: Vec::new(),
            barriers: Vec::new(),
            changes: 0,
            broken: None,
            preparing: None,
            short_of_room: VecDeque::new(),
            draining: super::promoted::Draining::default(),
            unflushed_drain: false,
            unflushed_session: false,
            dirty: DirtyMap::new(config.geometry),
            watermark: 0,
            order: 0,
            tick: 0,
            progress: Progress::default(),
        }
    }

    pub fn maps(&self) -> &M {
        &self.maps
    }

    pub fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    pub fn committed(&self) -> Epoch {
        self.committed
    }

    pub fn dirty(&self) -> &DirtyMap {
        &self.dirty
    }

    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Writes that are held in memory as the content of the disk.
    pub fn held(&self) -> usize {
        self.pins.len()
    }

    /// Why this machine no longer follows, if so.
    pub fn broken(&self) -> Option<PeerRefusal> {
        self.broken
    }

    /// Whether there is a consistent view, and so something to roll back to.
    pub fn has_view(&self) -> bool {
        matches!(self.role, Role::Promoted { .. }) || self.committed >= self.lost_through
    }

    /// A session begins with both disks said or about to be made equal; `base` is the last checkpoint. The volume has the
    /// primary's size, for which there is room. What is still on its way to the disk from an earlier session goes there
    /// before anything of this one.
    pub fn begin(&mut self, generation: Generation, base: Epoch, blocks: u64, originals: Originals) {
        self.link_down();
        self.release_promise();
        self.resize(blocks);
        self.generation = generation;
        self.journaling.begin();
        self.broken = None;
        let lost = match originals {
            Originals::Kept => None,
            Originals::Anew | Originals::Copied => Some(Epoch(0)),
            Originals::Lost(through) => Some(through),
        };
        if let Some(lost_through) = lost {
            self.committed = base;
            self.open = base;
            self.lost_through = if self.config.buffer { lost_through } else { NEVER };
            self.maps.drop_all();
            self.forget_past(base);
        }
        self.pin_everything();
        // What it copies differs from what the disk had; of a full sync the copies themselves tell.
        self.unflushed_session |= originals != Originals::Anew;
        self.changes += 1;
    }

    /// Makes room for a volume of so many blocks: the primary is about to bring what lies behind the present end.
    pub fn extend(&mut self, blocks: u64) -> Result<(), BufferFull> {
        self.maps.extend(blocks)?;
        let room = &mut self.config.geometry.blocks;
        *room = blocks.max(*room);
        self.dirty.extend(blocks);
        self.limit = blocks.max(self.blocks);
        // The last granule may be longer now than what was read for it.
        self.changes += 1;
        Ok(())
    }

    /// The volume has so many blocks from now on; those that are new are in step.
    pub fn resize(&mut self, blocks: u64) {
        // Whoever asks for a size has made sure of the room; without it the primary's writes there are refused.
        let _ = self.extend(blocks);
        self.blocks = blocks.min(self.config.geometry.blocks);
        self.limit = self.blocks;
        self.dirty.set_blocks(self.blocks);
    }

    /// The primary is gone: what arrived is still applied, but there is nobody to answer.
    pub fn link_down(&mut self) {
        self.preparing = None;
        self.cancel_flush();
        let mut unsubmitted = Vec::new();
        self.ops.for_each_mut(|id, op| match op {
            Op::Forwarded(write) => write.answered = true,
            Op::Barrier(barrier) if barrier.waiting > 0 => unsubmitted.push(id),
            Op::Verify(comparison) => comparison.answered = true,
            Op::PeerRead(read) => read.answered = true,
            _ => {}
        });
        for id in unsubmitted {
            self.ops.remove(id);
        }
        self.barriers.clear();
    }

    /// Messages of an older generation are refused from now on.
    pub fn set_generation(&mut self, generation: Generation) {
        self.generation = self.generation.max(generation);
    }

    /// A message of the primary, in the order of its lane.
    pub fn forwarded(
        &mut self,
        lane: Lane,
        sequence: Sequence,
        forward: Forward<P>,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let refusal = match &forward.body {
            _ if !active(Mutation::GenerationIgnored)
                && (self.role != Role::Follower || forward.generation < self.generation) =>
            {
                Some(PeerRefusal::OldGeneration)
            }
            _ if forward.epoch <= self.committed => Some(PeerRefusal::Protocol),
            ForwardBody::Write { range, .. }
            | ForwardBody::Verify { range, .. }
            | ForwardBody::Read { range }
                if !self.may_write(*range) =>
            {
                Some(PeerRefusal::Protocol)
            }
            _ if self.broken.is_some() => Some(PeerRefusal::Broken),
            _ => None,
        };
        if let Some(refusal) = refusal {
            let answer = Answer::Failed(refusal);
            return out.push(SecondaryOutput::Answer { lane, sequence, answer });
        }
        self.open = self.open.max(forward.epoch);
        let order = self.order;
        self.order += 1;
        match forward.body {
            ForwardBody::Write { range, data, fua, preserve } => {
                if !preserve {
                    // From its arrival on: it may wait behind what hangs until long after its epoch's commit.
                    self.unflushed_session = true;
                    self.lose_through(forward.epoch, out);
                }
                let aligned = self.config.geometry.aligned(range);
                let behind = range.lba >= self.blocks;
                let id = self.ops.insert(Op::Forwarded(Forwarded {
                    lane,
                    sequence,
                    epoch: forward.epoch,
                    range,
                    data,
                    fua,
                    lock: None,
                    order,
                    stage: Stage::Waiting,
                    held: Held::No,
                    answered: false,
                    since: self.tick,
                    started: self.tick,
                    behind,
                }));
                let (lock, held) = self.lock.enter(aligned, id);
                if let Some(write) = self.forwarded_mut(id) {
                    write.lock = Some(lock);
                }
                if held || active(Mutation::NoLockAtSecondary) {
                    self.start(id, out);
                }
            }
            ForwardBody::Verify { range, digest } => self.compare(lane, sequence, range, digest, out),
            ForwardBody::Read { range } => self.read_for_peer(lane, sequence, range, out),
            ForwardBody::Flush => {
                let waiting = self.ops.iter().filter(|(_, op)| is_unanswered(op, None)).count() as u32;
                let barrier = Barrier { lane, sequence, order, waiting, since: self.tick };
                let id = self.ops.insert(Op::Barrier(barrier));
                self.barriers.push(id);
                if waiting == 0 {
                    out.push(SecondaryOutput::SubmitFlush { op: id });
                }
            }
        }
    }

    pub(super) fn forwarded_mut(&mut self, id: OpId) -> Option<&mut Forwarded<P>> {
        match self.ops.get_mut(id) {
            Some(Op::Forwarded(write)) => Some(write),
            _ => None,
        }
    }

    /// Within the volume, or behind its end while it grows; not over the border.
    fn may_write(&self, range: Range) -> bool {
        let whole = range.end() <= self.blocks || range.lba >= self.blocks;
        range.blocks > 0 && whole && range.end() <= self.limit
    }

    /// Whether originals of this epoch are to be kept.
    pub(super) fn preserves(&self, epoch: Epoch) -> bool {
        let wanted = self.role == Role::Follower && epoch > self.committed && epoch > self.lost_through;
        wanted && !active(Mutation::SkipPreserve)
    }

    /// The same, for the last checkpoint's sake or that of an earlier one.
    fn keeps(&self, epoch: Epoch) -> bool {
        self.preserves(epoch) || self.keeps_past(epoch)
    }

    /// The write holds its range: preserve what its epoch lacks, or write at once.
    pub(super) fn start(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Forwarded(write)) = self.ops.get(id) else { return };
        let (epoch, range, behind) = (write.epoch, write.range, write.behind);
        if matches!(self.role, Role::Promoted { visible } if !write.belongs_to(visible)) {
            return self.forget(id, out);
        }
        if behind {
            return self.submit_write(id, out);
        }
        let mut left = 0;
        if self.keeps(epoch) {
            let mut missing: Option<Range> = None;
            for granule in self.config.geometry.granules(range) {
                if self.maps.undo_contains(epoch, granule) {
                    if let Some(range) = missing.take() {
                        out.push(SecondaryOutput::PreserveRead { op: id, range });
                        left += 1;
                    }
                    continue;
                }
                let blocks = self.config.geometry.granule_range(granule);
                missing = Some(match missing {
                    Some(run) => Range::new(run.lba, run.blocks + blocks.blocks),
                    None => blocks,
                });
            }
            if let Some(range) = missing {
                out.push(SecondaryOutput::PreserveRead { op: id, range });
                left += 1;
            }
        }
        match left {
            0 => self.secure(id, out),
            left => {
                let tick = self.tick;
                if let Some(write) = self.forwarded_mut(id) {
                    write.stage = Stage::Preserving { left, failed: false };
                    write.started = tick;
                }
            }
        }
    }

    /// What a write brought from behind the volume's end is about to be acknowledged, and may be seen soon. The granule
    /// over which the volume ended until now may be in the maps without that end, or with what the disk had there before.
    pub(super) fn complete_granule(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Forwarded(write)) = self.ops.get(id) else { return };
        if !write.behind || write.answered {
            return;
        }
        let whole = self.config.geometry.granule_range(self.config.geometry.granule_of(write.range.lba));
        if whole.lba == write.range.lba {
            return;
        }
        let Some(piece) = whole.intersection(write.range) else { return };
        let completed = self.maps.complete(piece, &write.data, 0);
        self.changes += 1;
        self.note_completed(self.config.geometry.granule_of(piece.lba), out);
        if completed.is_err() {
            self.lose(self.open, out);
        }
    }

    pub(super) fn submit_write(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let tick = self.tick;
        let Some(write) = self.forwarded_mut(id) else { return };
        if active(Mutation::DropZeroes) && matches!(write.data, Data::Zeroes) {
            return self.forget_applied(id, out);
        }
        write.stage = Stage::Writing;
        write.started = tick;
        let (range, fua, data) = (write.range, write.fua, write.data.clone());
        out.push(SecondaryOutput::SubmitWrite { op: id, range, data, fua });
        if active(Mutation::AnswerBeforeWrite) {
            self.answer(id, Answer::Applied, out);
        }
    }

    /// Originals were read; `None` when reading failed.
    pub fn preserve_read(
        &mut self,
        id: OpId,
        range: Range,
        content: Option<&P>,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let Some(write) = self.forwarded_mut(id) else { return };
        let epoch = write.epoch;
        if matches!(write.stage, Stage::Preserving { .. })
            && let Some(content) = content
        {
            let kept = self.keep(epoch, range, content, out);
            if self.journals(epoch) {
                // Also where not all was kept: what was is not read again.
                if let Some(Stage::Preserving { failed, .. }) = self.forwarded_mut(id).map(|w| &mut w.stage) {
                    *failed |= !kept;
                }
                let lost_through = self.lost_for_journal();
                let content = Some(content.clone());
                return out.push(SecondaryOutput::Journal { op: id, epoch, range, content, lost_through });
            }
            return self.preserved(id, kept, out);
        }
        self.preserved(id, content.is_some(), out);
    }

    /// One of the runs that a write preserves is done with.
    pub(super) fn preserved(&mut self, id: OpId, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(write) = self.forwarded_mut(id) else { return };
        let epoch = write.epoch;
        let ended = match &mut write.stage {
            Stage::Preserving { left, failed } => {
                *left = left.saturating_sub(1);
                *failed |= !ok;
                *left == 0
            }
            Stage::Abandoned { left } => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.forget(id, out);
                }
                return;
            }
            _ => return,
        };
        if !ended {
            return;
        }
        let promising = self.promising;
        let needed = self.preserves(epoch) || promising && self.keeps_past(epoch);
        let Some(write) = self.forwarded_mut(id) else { return };
        let failed = matches!(write.stage, Stage::Preserving { failed: true, .. });
        match (failed && needed, write.answered) {
            (false, _) => {
                if failed && self.keeps_past(epoch) {
                    self.lose_past(epoch, out);
                }
                self.secure(id, out);
            }
            (true, true) if promising => write.stage = Stage::Withheld,
            // The primary was told that it is held: it goes in, and the roll-back is what is lost.
            (true, true) => {
                self.lose(epoch, out);
                self.secure(id, out);
            }
            (true, false) => self.fail(id, PeerRefusal::CopyBeforeWrite, out),
        }
    }

    /// Preserves what was read of these granules; false when there is no room for all of it and there has to be.
    fn keep(&mut self, epoch: Epoch, range: Range, content: &P, out: &mut Vec<SecondaryOutput<P>>) -> bool {
        let epoch = if active(Mutation::PreserveForLaterEpoch) { epoch.next() } else { epoch };
        for granule in self.config.geometry.granules(range) {
            if !self.keeps(epoch) {
                return true;
            }
            let at = (self.config.geometry.granule_range(granule).lba - range.lba) as u32;
            if self.maps.undo_contains(epoch, granule)
                || self.maps.undo_insert(epoch, granule, content, at).is_ok()
            {
                continue;
            }
            if self.promising {
                return false;
            }
            if !self.preserves(epoch) {
                self.lose_past(epoch, out);
                continue;
            }
            // Earlier checkpoints go first.
            self.lose_past(self.committed, out);
            if self.maps.undo_insert(epoch, granule, content, at).is_err() {
                self.lose(self.open, out);
            }
        }
        self.watch(out);
        true
    }

    /// Gives up the roll-back to epochs before `through`: frees what was kept for it, fails what needs it.
    fn lose(&mut self, through: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        self.lose_through(through, out);
        out.push(SecondaryOutput::Event(StripeEvent::BufferOverrun(through)));
    }

    /// Another machine of the group lost the originals of this epoch, so the group has.
    pub fn lose_through(&mut self, through: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        if self.role != Role::Follower || through <= self.lost_through {
            return;
        }
        self.lost_through = through;
        self.maps.drop_through(through);
        self.changes += 1;
        self.room(out);
    }

    pub(super) fn watch(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        let fullness = self.maps.fullness();
        for mark in WATERMARKS {
            if fullness >= mark && self.watermark < mark {
                self.watermark = mark;
                out.push(SecondaryOutput::Event(StripeEvent::BufferWatermark(mark)));
            }
        }
    }

    /// A write of the disk ended, whoever's it was.
    pub fn write_done(&mut self, id: OpId, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        let role = self.role;
        match self.ops.get_mut(id) {
            Some(Op::Forwarded(write)) if write.stage == Stage::Writing => {
                self.progress.note_end(self.tick, write.started);
                self.journaling.unflushed = true;
                let kept = !matches!(role, Role::Promoted { visible } if !write.belongs_to(visible))
                    && !active(Mutation::RetryForgotten);
                match (ok, write.answered) {
                    (true, _) => {
                        if write.behind {
                            self.complete_granule(id, out);
                        }
                        self.forget_applied(id, out);
                    }
                    (false, true) if kept => {
                        write.stage = Stage::Retrying;
                        let range = write.range;
                        out.push(SecondaryOutput::Event(StripeEvent::DrainFailed(range)));
                    }
                    (false, true) => self.forget(id, out),
                    (false, false) => self.fail(id, PeerRefusal::DiskWrite, out),
                }
            }
            Some(Op::Drain { .. }) => self.drained(id, ok, out),
            Some(Op::Own(_)) => self.own_written(id, ok, out),
            _ => {}
        }
    }

    fn forget_applied(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        self.answer(id, Answer::Applied, out);
        self.forget(id, out);
    }

    /// The machine stops applying: going on past a lost write would tear the order that `latest` promises.
    pub(super) fn fail(&mut self, id: OpId, refusal: PeerRefusal, out: &mut Vec<SecondaryOutput<P>>) {
        self.break_off(refusal, out);
        self.answer(id, Answer::Failed(refusal), out);
        self.forget(id, out);
        if let Some(Preparing { epoch, .. }) = self.preparing.take() {
            out.push(SecondaryOutput::Prepared { epoch, result: Err(refusal) });
        }
    }

    /// Nothing more is applied in this session.
    pub(super) fn break_off(&mut self, refusal: PeerRefusal, out: &mut Vec<SecondaryOutput<P>>) {
        if self.broken.is_some() {
            return;
        }
        self.broken = Some(refusal);
        // Of a journal that failed it was said already.
        if !self.journaling.has_failed() {
            let failure = DiskFailure::Follower(refusal);
            out.push(SecondaryOutput::Event(StripeEvent::DiskFailed(failure)));
        }
    }

    pub(super) fn answer(&mut self, id: OpId, answer: Answer, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(write) = self.forwarded_mut(id) else { return };
        if write.answered {
            return;
        }
        write.answered = true;
        let (lane, sequence, order, epoch) = (write.lane, write.sequence, write.order, write.epoch);
        out.push(SecondaryOutput::Answer { lane, sequence, answer });
        for at in 0..self.barriers.len() {
            let id = self.barriers[at];
            if let Some(Op::Barrier(barrier)) = self.ops.get_mut(id)
                && order < barrier.order
                && barrier.waiting > 0
            {
                barrier.waiting -= 1;
                if barrier.waiting == 0 {
                    out.push(SecondaryOutput::SubmitFlush { op: id });
                }
            }
        }
        if let Some(preparing) = &mut self.preparing
            && epoch <= preparing.epoch
            && !matches!(answer, Answer::Failed(_))
        {
            preparing.unanswered = preparing.unanswered.saturating_sub(1);
            if preparing.unanswered == 0 {
                let epoch = preparing.epoch;
                self.preparing = None;
                self.all_accounted(epoch, out);
            }
        }
    }

    /// Whether no write is held in memory as the content of the disk.
    pub(super) fn holds_nothing(&self) -> bool {
        self.pins.is_empty()
    }

    /// A checkpoint that waits for the disk to take what it holds looks again.
    fn look_again(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        if let Some(Preparing { epoch, unanswered: 0 }) = self.preparing {
            self.preparing = None;
            self.all_accounted(epoch, out);
        }
    }

    /// The write is over: unpin, let the next one have the range.
    pub(super) fn forget(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Forwarded(write)) = self.ops.remove(id) else { return };
        if let Held::Pinned { bytes } = write.held {
            self.unpin(id, write.order, bytes);
            if self.pins.is_empty() {
                out.push(SecondaryOutput::Event(StripeEvent::DiskHealed));
                self.look_again(out);
            }
        }
        if let Some(lock) = write.lock {
            self.unlock(lock, out);
        }
    }

    pub(super) fn unlock(&mut self, lock: LockId, out: &mut Vec<SecondaryOutput<P>>) {
        let mut granted = SmallVec::new();
        self.lock.release(lock, &mut granted);
        for id in granted {
            match self.ops.get(id) {
                Some(Op::Forwarded(_)) => self.start(id, out),
                Some(Op::Own(_)) => self.own_granted(id, out),
                Some(Op::Verify(_)) => self.comparison_granted(id, out),
                Some(Op::PeerRead(_)) => self.peer_read_granted(id, out),
                _ => {}
            }
        }
        self.drain_more(out);
    }

    /// A flush of the disk ended.
    pub fn flush_done(&mut self, id: OpId, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        match self.ops.get(id) {
            Some(Op::Own(_)) => self.own_flushed(id, ok, out),
            Some(Op::Flush) => self.prepare_flushed(id, ok, out),
            Some(Op::Barrier(_)) => {
                let Some(Op::Barrier(barrier)) = self.ops.remove(id) else { return };
                let Some(at) = self.barriers.iter().position(|&other| other == id) else { return };
                self.barriers.swap_remove(at);
                let answer = if ok { Answer::Applied } else { Answer::Failed(PeerRefusal::DiskWrite) };
                if !ok {
                    self.break_off(PeerRefusal::DiskWrite, out);
                }
                let Barrier { lane, sequence, .. } = barrier;
                out.push(SecondaryOutput::Answer { lane, sequence, answer });
            }
            Some(Op::DrainFlush) => {
                self.ops.remove(id);
                self.drain_flushed(ok, out);
            }
            _ => {}
        }
    }

    /// Tells when every write of the epoch is accounted for. The caller knows that all of them have arrived.
    pub fn prepare(&mut self, epoch: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        if let Some(refusal) = self.broken {
            return out.push(SecondaryOutput::Prepared { epoch, result: Err(refusal) });
        }
        let unanswered = self.ops.iter().filter(|(_, op)| is_unanswered(op, Some(epoch))).count() as u32;
        if active(Mutation::DropOnPrepare) {
            self.maps.drop_through(epoch);
        }
        if unanswered == 0 {
            self.preparing = None;
            self.all_accounted(epoch, out);
        } else {
            self.preparing = Some(Preparing { epoch, unanswered });
        }
    }

    /// The checkpoint waits no longer: what the disk has not taken of the epoch is pinned now. Where there is no room
    /// for that it is the checkpoint that fails, by its deadline: a disk that is only slow takes the rest.
    pub fn settle(&mut self, epoch: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        self.pin_where(|write| write.epoch <= epoch, Room::OrWait, out);
        self.settle_flush(epoch, out);
    }

    /// The epoch is durable for the whole group: the view moves to it.
    pub fn commit(&mut self, epoch: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        self.preparing = None;
        self.cancel_flush();
        if epoch <= self.committed || self.role != Role::Follower {
            return;
        }
        self.committed = epoch;
        self.open = self.open.max(epoch);
        self.keep_committed(epoch);
        self.changes += 1;
        self.watermark = 0;
        self.room(out);
    }

    /// The epoch goes on: its number is burned, its layer stays.
    pub fn abort(&mut self) {
        if active(Mutation::AbortDropsLayers) {
            self.maps.drop_through(self.committed.next());
        }
        self.preparing = None;
        self.cancel_flush();
    }
}

fn is_unanswered<P>(op: &Op<P>, through: Option<Epoch>) -> bool {
    match op {
        Op::Forwarded(write) => !write.answered && through.is_none_or(|epoch| write.epoch <= epoch),
        _ => false,
    }
}
