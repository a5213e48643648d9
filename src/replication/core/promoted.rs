//! After a failover: the machine serves hosts, and what the buffer holds drains into the disk.
//!
//! Invariants. What a host reads is the maps' content until the disk has it. Draining may start again from the
//! beginning at any time without harm. A host's write never waits for a granule that nobody is writing; the drain
//! skips what hosts hold.

use super::super::{Epoch, Generation};
use super::maps::GranuleMaps;
use super::mutation::{Mutation, active};
use super::secondary::{Forwarded, Held, Op, Role, SecondaryOutput, SecondaryStripes, Stage};
use super::table::OpId;
use super::types::*;
use super::view::{OwnKind, OwnLock, OwnStage};
use smallvec::SmallVec;

/// What a failover promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Latest,
    Checkpoint,
    Overlay,
}

/// Granules under way to the disk together: enough to keep a disk busy, few enough that a host's write waits behind
/// well under 5 ms of them.
const DRAIN_DEPTH: u32 = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Draining {
    #[default]
    Idle,
    Running {
        cursor: u64,
        in_flight: u32,
    },
    /// The disk failed a write; goes on at the next tick.
    Paused {
        in_flight: u32,
    },
    /// Everything is on the disk; now it is made durable.
    Flushing,
}

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    /// Whether the promise can be kept. If so, what it rests on is not given up any more, as it is for writes of the
    /// primary when the buffer is full: those that would need that wait. There is no primary to wait for them.
    pub fn hold_promise(&mut self, keep: Keep) -> bool {
        let can = keep == Keep::Latest || self.has_view();
        self.promising = can && keep != Keep::Latest;
        can
    }

    /// The failover did not come about: the primary's writes go first again.
    pub fn release_promise(&mut self) {
        self.promising = false;
    }

    /// Becomes the volume that was promised. Constant time but for what is in flight. The record of the new generation
    /// is durable before.
    pub fn promote(
        &mut self,
        keep: Keep,
        generation: Generation,
        out: &mut Vec<SecondaryOutput<P>>,
    ) -> Result<(), Refusal> {
        if keep != Keep::Latest && !self.has_view() {
            return Err(if self.config.buffer { Refusal::ViewLost } else { Refusal::NoView });
        }
        self.link_down();
        self.release_promise();
        self.set_generation(generation);
        self.changes += 1;
        match keep {
            Keep::Latest => {
                self.role = Role::Promoted { visible: Epoch(u64::MAX) };
                self.pin_everything();
                self.keep_all();
            }
            Keep::Checkpoint | Keep::Overlay => {
                match keep {
                    Keep::Checkpoint => self.maps.drop_overlay(),
                    // It goes over the checkpoint, of which nothing is kept.
                    _ => self.lose_past(Epoch(u64::MAX), out),
                }
                self.role = Role::Promoted { visible: self.committed };
                self.roll_back(out);
            }
        }
        // Until a flush a loss of power could bring back what was rolled back.
        self.unflushed_drain = keep != Keep::Latest && !active(Mutation::DrainUnflushed);
        self.draining = Draining::Running { cursor: 0, in_flight: 0 };
        self.adopt_own(out);
        self.drain_more(out);
        Ok(())
    }

    /// Forwarded writes after the promised epoch are undone: those that wait are forgotten, those on the disk are held
    /// until it gives them back, and their originals drain over them.
    pub(super) fn roll_back(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        let committed = self.committed;
        let late =
            |write: &Forwarded<P>| !write.belongs_to(committed) && !active(Mutation::RollBackKeepsWaiting);
        let mut waiting = SmallVec::<[OpId; 16]>::new();
        let mut unpin = SmallVec::<[(OpId, u64, u64); 16]>::new();
        self.ops.for_each_mut(|id, op| {
            let Op::Forwarded(write) = op else { return };
            if !late(write) {
                return;
            }
            if let Held::Pinned { bytes } = write.held {
                write.held = Held::No;
                unpin.push((id, write.order, bytes));
            }
            match write.stage {
                Stage::Waiting | Stage::Withheld | Stage::Retrying => waiting.push(id),
                Stage::Preserving { left, .. } => write.stage = Stage::Abandoned { left },
                Stage::Marking { .. } => write.stage = Stage::Abandoned { left: 1 },
                Stage::Writing | Stage::Abandoned { .. } => {}
            }
        });
        for (id, order, bytes) in unpin {
            self.unpin(id, order, bytes);
        }
        for id in waiting {
            self.forget(id, out);
        }
    }

    /// Commands of the follower that are under way go on in the new role.
    fn adopt_own(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        self.short_of_room.clear();
        let mut writes = SmallVec::<[OpId; 16]>::new();
        for (id, op) in self.ops.iter() {
            if let Op::Own(own) = op
                && matches!(own.lock, OwnLock::View(_))
                && !(matches!(own.kind, OwnKind::Compare { .. })
                    && matches!(own.stage, OwnStage::Reading { .. }))
            {
                writes.push(id);
            }
        }
        for id in writes {
            self.reenter(id, out);
        }
    }

    /// A host's write holds its range: granules that it covers in part and that the maps have go to the disk first.
    pub(super) fn move_aside(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let geometry = self.config.geometry;
        let Some(Op::Own(own)) = self.ops.get_mut(id) else { return };
        let mut left = 0;
        for granule in geometry.granules(own.range) {
            let whole = geometry.granule_range(granule);
            if whole.intersection(own.range) != Some(whole)
                && let Some(data) = self.maps.view_content(granule)
            {
                out.push(SecondaryOutput::SubmitWrite { op: id, range: whole, data, fua: false });
                left += 1;
            }
        }
        own.stage = OwnStage::Moving { left, failed: false };
        if left == 0 {
            self.write_own(id, out);
        }
    }

    fn write_own(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(own) = self.own_mut(id) else { return };
        let OwnKind::Write { data, fua } = &own.kind else { return };
        let (range, data, fua) = (own.range, data.clone(), *fua);
        own.stage = OwnStage::Writing;
        self.dirty.mark(range);
        out.push(SecondaryOutput::SubmitWrite { op: id, range, data, fua });
    }

    pub(super) fn own_written(&mut self, id: OpId, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        let geometry = self.config.geometry;
        let Some(own) = self.own_mut(id) else { return };
        let range = own.range;
        match &mut own.stage {
            OwnStage::Moving { left, failed } => {
                *left = left.saturating_sub(1);
                *failed |= !ok;
                match (*left, *failed) {
                    (0, _) if own.undone => self.own_end(id, Err(Refusal::Stopped), out),
                    (0, true) => self.own_end(id, Err(Refusal::Disk), out),
                    (0, false) => self.write_own(id, out),
                    _ => {}
                }
            }
            OwnStage::Writing if own.undone => self.own_end(id, Err(Refusal::Stopped), out),
            OwnStage::Writing => {
                if ok {
                    geometry.granules(range).for_each(|granule| self.maps.remove(granule));
                    self.dirty.mark(geometry.aligned(range));
                }
                self.own_end(id, if ok { Ok(()) } else { Err(Refusal::Disk) }, out);
            }
            OwnStage::Waiting | OwnStage::Reading { .. } | OwnStage::Preserving { .. } => {}
        }
    }

    /// Sends further granules to the disk, up to the depth.
    pub(super) fn drain_more(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        let mut wrapped = false;
        while let Draining::Running { cursor, in_flight } = self.draining {
            if in_flight >= DRAIN_DEPTH {
                return;
            }
            let Some(granule) = self.maps.next_buffered(cursor) else {
                if cursor > 0 && !wrapped {
                    wrapped = true;
                    self.draining = Draining::Running { cursor: 0, in_flight };
                    continue;
                }
                // What is held in memory is not on the disk either; it looks here again when it is.
                if cursor == 0
                    && in_flight == 0
                    && (self.holds_nothing() || active(Mutation::DrainIgnoresPins))
                {
                    self.end_drain(out);
                }
                return;
            };
            let range = self.config.geometry.granule_range(granule);
            let free = self.lock.is_free(range);
            let Some(data) = (if free { self.maps.view_content(granule) } else { None }) else {
                self.draining = Draining::Running { cursor: granule + 1, in_flight };
                continue;
            };
            self.draining = Draining::Running { cursor: granule + 1, in_flight: in_flight + 1 };
            // The id is known only after the insertion, the lock only after the entry: enter with what names it.
            let id = self.ops.insert(Op::Drain { range, lock: super::range_lock::LockId::NONE });
            let (lock, _) = self.lock.enter(range, id);
            if let Some(Op::Drain { lock: place, .. }) = self.ops.get_mut(id) {
                *place = lock;
            }
            self.dirty.mark(range);
            out.push(SecondaryOutput::SubmitWrite { op: id, range, data, fua: false });
        }
    }

    fn end_drain(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        if self.unflushed_drain {
            self.draining = Draining::Flushing;
            let id = self.ops.insert(Op::DrainFlush);
            out.push(SecondaryOutput::SubmitFlush { op: id });
        } else {
            self.draining = Draining::Idle;
            self.note_rolled_back();
            out.push(SecondaryOutput::Event(StripeEvent::Drained));
        }
    }

    pub(super) fn drain_flushed(&mut self, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        self.unflushed_drain = !ok;
        if ok {
            self.end_drain(out);
        } else {
            self.draining = Draining::Paused { in_flight: 0 };
            out.push(SecondaryOutput::Event(StripeEvent::DrainFailed(Range::new(0, 0))));
        }
    }

    pub(super) fn drained(&mut self, id: OpId, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Drain { range, lock }) = self.ops.remove(id) else { return };
        if ok {
            self.maps.remove(self.config.geometry.granule_of(range.lba));
        } else {
            out.push(SecondaryOutput::Event(StripeEvent::DrainFailed(range)));
        }
        self.draining = match self.draining {
            Draining::Running { cursor, in_flight } if ok => {
                Draining::Running { cursor, in_flight: in_flight.saturating_sub(1) }
            }
            Draining::Running { in_flight, .. } | Draining::Paused { in_flight } => {
                Draining::Paused { in_flight: in_flight.saturating_sub(1) }
            }
            ended @ (Draining::Idle | Draining::Flushing) => ended,
        };
        self.unlock(lock, out);
    }

    /// After a failure of the disk: from the beginning.
    pub(super) fn drain_again(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        if let Draining::Paused { in_flight } = self.draining {
            self.draining = Draining::Running { cursor: 0, in_flight };
        }
        self.drain_more(out);
    }
}
