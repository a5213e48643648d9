//! The secondary's stripe machine and earlier checkpoints: what it keeps of them, how they are read, and the way back.
//!
//! Invariants. While an epoch can be shown, no write of a later one goes in place before its originals are kept, whoever
//! writes: the primary, also a write that was held in memory over its epoch's commit, or, after a failover, this node's own
//! hosts. What finds no room ends the history and says so; no write fails or waits for its sake. A roll-back makes the epoch
//! the last checkpoint again and drains, as a failover does.

use super::super::Epoch;
use super::maps::GranuleMaps;
use super::promoted::Draining;
use super::secondary::{Op, Role, SecondaryOutput, SecondaryStripes};
use super::table::OpId;
use super::types::*;
use super::view::{Own, OwnKind, OwnLock, OwnStage};
use smallvec::SmallVec;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Past {
    /// The oldest epoch that can be shown; `None`: there is no history.
    from: Option<Epoch>,
    /// A roll-back of a follower is under way: it serves nobody, and its hosts' writes are refused.
    rolling_back: bool,
    /// The group was told that room is short, and has not answered.
    told: bool,
    /// What commits and failovers moved into the history and the group has not heard of.
    moved_bytes: u64,
}

/// Percent of the history's limit from which the oldest epoch is given up for what hosts overwrite after a failover.
const SHORT_PERCENT: u8 = 90;

/// Whether the content of a granule, now or at the end of an epoch, is in memory.
pub(super) fn buffered<P, M: GranuleMaps<P>>(maps: &M, at: Option<Epoch>, granule: u64) -> bool {
    match at {
        None => maps.view_contains(granule),
        Some(epoch) => maps.past_contains(epoch, granule),
    }
}

pub(super) fn read_buffered<P, M: GranuleMaps<P>>(
    maps: &M,
    at: Option<Epoch>,
    range: Range,
    into: &mut P,
    to: u32,
) {
    match at {
        None => maps.view_read(range, into, to),
        Some(epoch) => maps.past_read(epoch, range, into, to),
    }
}

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    /// Keeps what leads back to the epochs from this one on, which are committed; `None`: nothing.
    pub fn set_history(&mut self, from: Option<Epoch>) {
        self.past.told = false;
        let floor = self.past.from.unwrap_or(match self.role {
            Role::Follower => self.committed,
            // What hosts have overwritten meanwhile was not kept.
            Role::Promoted { .. } => Epoch(u64::MAX),
        });
        self.past.from = from.filter(|_| self.config.buffer).map(|from| from.max(floor));
        self.maps.drop_kept(self.past.from.unwrap_or(Epoch(u64::MAX)));
        self.changes += 1;
    }

    fn floor(&self) -> Option<Epoch> {
        self.past.from.map(|from| from.max(self.lost_through))
    }

    /// Whether the content at the end of the epoch is there.
    pub fn shows(&self, epoch: Epoch) -> bool {
        epoch <= self.committed && self.floor().is_some_and(|floor| epoch >= floor)
    }

    /// Whether originals of this epoch lead back to one that can be shown, although it is committed.
    pub(super) fn keeps_past(&self, epoch: Epoch) -> bool {
        let over = matches!(self.role, Role::Promoted { .. }) || epoch <= self.committed;
        over && self.floor().is_some_and(|floor| floor <= self.committed && epoch > floor)
    }

    /// Originals of this epoch are not all kept: the epochs before it cannot be shown any more.
    pub(super) fn lose_past(&mut self, epoch: Epoch, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(floor) = self.floor().filter(|&floor| floor < epoch) else { return };
        self.past.from = Some(epoch);
        self.maps.drop_kept(epoch);
        self.changes += 1;
        if floor <= self.committed {
            out.push(SecondaryOutput::Event(StripeEvent::HistoryLost(epoch)));
        }
    }

    /// A new session begins with other disks.
    pub(super) fn forget_past(&mut self, base: Epoch) {
        self.past.from = self.past.from.map(|_| base);
    }

    /// What was committed with the epoch.
    pub(super) fn keep_committed(&mut self, epoch: Epoch) {
        match self.past.from {
            Some(_) => self.past.moved_bytes += self.maps.keep_through(epoch),
            None => self.maps.drop_through(epoch),
        }
    }

    /// The disk as it is becomes the volume: what leads back from it to the last checkpoint is kept as well.
    pub(super) fn keep_all(&mut self) {
        match self.floor() {
            Some(floor) if floor <= self.committed => {
                self.past.moved_bytes += self.maps.keep_through(Epoch(u64::MAX));
            }
            _ => self.maps.drop_all(),
        }
    }

    /// Bytes that commits and failovers have moved into the history since this was asked last.
    pub fn take_moved_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.past.moved_bytes)
    }

    /// Reads a volume as it was at the end of an epoch.
    pub fn read_past(
        &mut self,
        token: Token,
        epoch: Epoch,
        range: Range,
        into: P,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let refusal = match range {
            _ if !self.shows(epoch) => Some(Refusal::Dropped),
            range if range.blocks == 0 || range.end() > self.config.geometry.blocks => {
                Some(Refusal::OutOfRange)
            }
            _ => None,
        };
        if let Some(refusal) = refusal {
            return out.push(SecondaryOutput::Reply { token, result: Err(refusal) });
        }
        let kind = OwnKind::Read { into };
        self.enter(Own { at: Some(epoch), ..Own::new(token, kind, range) }, out);
    }

    // ---- what hosts overwrite after a failover

    /// Whether what hosts overwrite is worth keeping.
    fn keeps_overwritten(&self) -> bool {
        let promoted = matches!(self.role, Role::Promoted { .. });
        promoted && self.floor().is_some_and(|floor| floor <= self.committed)
    }

    /// A host's write holds its range: what it overwrites is kept first, while there is a history.
    pub(super) fn preserve_own(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let geometry = self.config.geometry;
        let Some(Op::Own(own)) = self.ops.get(id).filter(|_| self.keeps_overwritten()) else {
            return self.move_aside(id, out);
        };
        let mut missing = SmallVec::<[Range; 4]>::new();
        let mut kept = true;
        for granule in geometry.granules(own.range) {
            let whole = geometry.granule_range(granule);
            if self.maps.overwritten_contains(granule) {
                continue;
            }
            if self.maps.view_contains(granule) {
                kept &= self.maps.overwritten_insert(granule, None).is_ok();
                continue;
            }
            match missing.last_mut().filter(|run| run.end() == whole.lba) {
                Some(run) => run.blocks += whole.blocks,
                None => missing.push(whole),
            }
        }
        if !kept {
            self.lose_past(Epoch(u64::MAX), out);
        }
        if !kept || missing.is_empty() {
            return self.move_aside(id, out);
        }
        if let Some(own) = self.own_mut(id) {
            own.stage = OwnStage::Preserving { left: missing.len() as u16 };
        }
        for range in missing {
            out.push(SecondaryOutput::BaseRead { op: id, range });
        }
    }

    /// Originals of a host's write were read; `None` when reading failed.
    pub(super) fn own_preserved(
        &mut self,
        id: OpId,
        range: Range,
        content: Option<&P>,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let geometry = self.config.geometry;
        let mut kept = content.is_some();
        for granule in geometry.granules(range) {
            let Some(content) = content.filter(|_| kept && self.keeps_overwritten()) else { break };
            let at = (geometry.granule_range(granule).lba - range.lba) as u32;
            kept = self.maps.overwritten_contains(granule)
                || self.maps.overwritten_insert(granule, Some((content, at))).is_ok();
        }
        if !kept {
            self.lose_past(Epoch(u64::MAX), out);
        }
        if !self.past.told && self.maps.history_percent() >= SHORT_PERCENT {
            self.past.told = true;
            out.push(SecondaryOutput::Event(StripeEvent::HistoryShort));
        }
        let Some(own) = self.own_mut(id) else { return };
        let OwnStage::Preserving { left } = &mut own.stage else { return };
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.move_aside(id, out);
        }
    }

    // ---- the way back

    /// Whether the epoch can be gone back to. If so, what that rests on is not given up any more, as before a failover.
    pub fn hold_past(&mut self, epoch: Epoch) -> bool {
        self.promising = self.shows(epoch);
        self.promising
    }

    /// Makes the volume what it was at the end of the epoch, and that the last checkpoint again. The record says
    /// "inconsistent" before. Ends with [`StripeEvent::Drained`]. Nobody writes: a follower has no session, and a node that
    /// took over no hosts; what is under way of either is undone as well.
    pub fn roll_back_to(&mut self, epoch: Epoch, out: &mut Vec<SecondaryOutput<P>>) -> Result<(), Refusal> {
        if !self.shows(epoch) {
            return Err(Refusal::Dropped);
        }
        self.link_down();
        self.release_promise();
        self.changes += 1;
        let follower = self.role == Role::Follower;
        self.maps.take_back_to(epoch);
        self.committed = epoch;
        self.role = Role::Promoted { visible: epoch };
        self.past.rolling_back = true;
        self.refuse_own_writes(out);
        self.past.rolling_back = follower;
        self.roll_back(out);
        self.unflushed_drain = true;
        self.draining = Draining::Running { cursor: 0, in_flight: 0 };
        self.drain_more(out);
        Ok(())
    }

    /// Ends the own hosts' writes that have not gone to the disk. Those that have end with the disk, and are undone.
    fn refuse_own_writes(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        self.short_of_room.clear();
        let mut waiting = SmallVec::<[OpId; 16]>::new();
        self.ops.for_each_mut(|id, op| {
            let Op::Own(own) = op else { return };
            match (&own.kind, own.stage) {
                (OwnKind::Read { .. } | OwnKind::Flush, _) => {}
                (_, OwnStage::Moving { .. } | OwnStage::Writing) => own.undone = true,
                _ => waiting.push(id),
            }
        });
        for id in waiting {
            self.own_end(id, Err(Refusal::Stopped), out);
        }
    }

    /// The drain has ended: a follower is one again.
    pub(super) fn note_rolled_back(&mut self) {
        if std::mem::take(&mut self.past.rolling_back) {
            self.role = Role::Follower;
        }
    }

    /// Whether a host's command is refused because the volume goes back to an earlier checkpoint.
    pub(super) fn refuses(&self, kind: &OwnKind<P>) -> bool {
        self.past.rolling_back && !matches!(kind, OwnKind::Read { .. } | OwnKind::Flush)
    }
}

impl<P> Own<P> {
    pub fn new(token: Token, kind: OwnKind<P>, range: Range) -> Own<P> {
        Own {
            token,
            kind,
            range,
            stage: OwnStage::Waiting,
            lock: OwnLock::None,
            bases: SmallVec::new(),
            at: None,
            undone: false,
        }
    }
}
