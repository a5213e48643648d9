//! The secondary's stripe machine with a journal: what must be durable before a write goes in place, and before a
//! checkpoint counts as one that survives a loss of power.
//!
//! Invariants. A write of an uncommitted epoch goes in place only when the originals of its granules are durable in the
//! journal, or when it is durable there that originals of its epoch are not all kept. A granule in an undo layer whose
//! lock is free is in the journal as well: whoever put it there held the lock until it was. What is prepared as durable was
//! flushed, and nothing of it is held in memory.

use super::super::Epoch;
use super::maps::GranuleMaps;
use super::mutation::{Mutation, active};
use super::secondary::{Forwarded, Op, Preparing, Role, SecondaryOutput, SecondaryStripes, Stage};
use super::table::OpId;
use super::types::*;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Journaling {
    /// Originals of epochs through this one are not all in the journal.
    lost_through: Epoch,
    /// The journal says so, durably, of epochs through this one.
    said_through: Epoch,
    /// The journal failed a write.
    broken: bool,
    /// The disk took writes since its last flush.
    pub unflushed: bool,
    flushing: Option<(Epoch, OpId)>,
}

impl Journaling {
    /// A session begins: nothing of an earlier one counts.
    pub fn begin(&mut self) {
        *self = Journaling { unflushed: true, ..Journaling::default() };
    }

    /// Whether the journal failed a write in this session.
    pub fn has_failed(&self) -> bool {
        self.broken
    }
}

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    /// Originals of epochs through this one are not all where a loss of power would leave them.
    pub(super) fn lost_for_journal(&self) -> Epoch {
        self.journaling.lost_through.max(self.lost_through)
    }

    /// Whether originals of this epoch go to the journal.
    pub(super) fn journals(&self, epoch: Epoch) -> bool {
        self.config.journal
            && self.preserves(epoch)
            && epoch > self.journaling.lost_through
            && !self.journaling.broken
    }

    /// Whether a write that is tried again has to wait for another journal, or for a failover.
    pub(super) fn is_stuck(&self, write: &Forwarded<P>) -> bool {
        self.journaling.broken && self.role == Role::Follower && write.epoch > self.committed
    }

    /// Everything that the write lacked was preserved: it goes in place if that is durable, or known to be lost.
    pub(super) fn secure(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let (follows, committed) = (self.role == Role::Follower, self.committed);
        let (lost_through, tick) = (self.lost_for_journal(), self.tick);
        let (broken, said_through) = (self.journaling.broken, self.journaling.said_through);
        let journal = self.config.journal && follows;
        let Some(write) = self.forwarded_mut(id) else { return };
        let epoch = write.epoch;
        if !journal || write.behind || epoch <= committed {
            return self.submit_write(id, out);
        }
        if broken {
            // What the primary was told to be held stays so; the rest fails.
            return match write.answered {
                true => write.stage = Stage::Retrying,
                false => self.fail(id, PeerRefusal::CopyBeforeWrite, out),
            };
        }
        if epoch > lost_through || epoch <= said_through {
            return self.submit_write(id, out);
        }
        write.stage = Stage::Marking { through: lost_through };
        write.started = tick;
        let range = write.range;
        out.push(SecondaryOutput::Journal { op: id, epoch, range, content: None, lost_through });
    }

    /// A request to the journal ended.
    pub fn journaled(&mut self, id: OpId, outcome: Journaled, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(write) = self.forwarded_mut(id) else { return };
        let stage = write.stage;
        match outcome {
            Journaled::Durable => {}
            Journaled::Full => self.lose_journal(out),
            Journaled::Failed if self.role == Role::Follower && !self.journaling.broken => {
                self.journaling.broken = true;
                out.push(SecondaryOutput::Event(StripeEvent::JournalFailed));
            }
            Journaled::Failed => {}
        }
        match stage {
            Stage::Marking { through } => {
                if outcome == Journaled::Durable {
                    self.journaling.said_through = self.journaling.said_through.max(through);
                }
                self.secure(id, out);
            }
            Stage::Preserving { .. } | Stage::Abandoned { .. } => self.preserved(id, true, out),
            Stage::Waiting | Stage::Withheld | Stage::Writing | Stage::Retrying => {}
        }
    }

    /// The way back after a loss of power is given up until everything that is open now is committed.
    fn lose_journal(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        if self.role == Role::Follower && self.journaling.lost_through < self.open {
            self.journaling.lost_through = self.open;
            out.push(SecondaryOutput::Event(StripeEvent::JournalOverrun(self.open)));
        }
    }

    /// The end of a granule came when the volume grew. If the granule was preserved without it, the journal does not have
    /// what a later write may overwrite there.
    pub(super) fn note_completed(&mut self, granule: u64, out: &mut Vec<SecondaryOutput<P>>) {
        let preserved = (self.committed.0 + 1..=self.open.0)
            .rev()
            .take(EPOCHS_LOOKED_AT)
            .any(|epoch| self.maps.undo_contains(Epoch(epoch), granule));
        if self.config.journal && preserved {
            self.lose_journal(out);
        }
    }

    /// Every write of the epoch is on the disk or held in memory: with a journal the disk is flushed, and where a copy ends.
    pub(super) fn all_accounted(&mut self, epoch: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        let held = |&(_, id): &(u64, OpId)| match self.ops.get(id) {
            Some(Op::Forwarded(write)) => write.epoch <= epoch,
            _ => false,
        };
        if self.unflushed_session && !self.holds_nothing() && !active(Mutation::SyncUnflushed) {
            // The record will say that the node is consistent, whatever happens to its memory.
            self.preparing = Some(Preparing { epoch, unanswered: 0 });
            return;
        }
        let volatile = !self.config.journal || self.journaling.broken || self.pins.iter().any(held);
        let needed = self.unflushed_session && !active(Mutation::SyncUnflushed)
            || (!volatile && self.journaling.unflushed);
        if !needed {
            let standing = if volatile { Standing::Volatile } else { Standing::Durable };
            return out.push(SecondaryOutput::Prepared { epoch, result: Ok(standing) });
        }
        let op = self.ops.insert(Op::Flush);
        self.journaling.flushing = Some((epoch, op));
        self.journaling.unflushed = false;
        out.push(SecondaryOutput::SubmitFlush { op });
    }

    pub(super) fn prepare_flushed(&mut self, id: OpId, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        self.ops.remove(id);
        if !ok {
            // A disk tells once that it lost something, also if nobody waits any more.
            self.journaling.unflushed = true;
            self.broken.get_or_insert(PeerRefusal::DiskWrite);
            out.push(SecondaryOutput::Event(StripeEvent::FlushFailed));
        }
        let Some((epoch, _)) = self.journaling.flushing.take_if(|flushing| flushing.1 == id) else { return };
        self.unflushed_session &= !ok;
        let standing = match self.config.journal && !self.journaling.broken {
            true => Standing::Durable,
            false => Standing::Volatile,
        };
        let result = if ok { Ok(standing) } else { Err(PeerRefusal::DiskWrite) };
        out.push(SecondaryOutput::Prepared { epoch, result });
    }

    /// Nobody waits for the flush any more; whether it did anything is not known.
    pub(super) fn cancel_flush(&mut self) -> Option<Epoch> {
        let (epoch, _) = self.journaling.flushing.take()?;
        self.journaling.unflushed = true;
        Some(epoch)
    }

    /// The checkpoint waits no longer for the flush.
    pub(super) fn settle_flush(&mut self, epoch: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        let flushes = self.journaling.flushing.is_some_and(|flushing| flushing.0 == epoch);
        // The end of a copy needs it; there the checkpoint fails by its deadline.
        if flushes && !self.unflushed_session {
            self.cancel_flush();
            out.push(SecondaryOutput::Prepared { epoch, result: Ok(Standing::Volatile) });
        }
    }
}

/// Undo layers that can be open at once.
const EPOCHS_LOOKED_AT: usize = 64;
