//! The I/O of the secondary's own hosts. As a follower: reads of the merged view, writes into the overlay. Promoted:
//! writes go to the disk, in the range lock of the forwarded writes.
//!
//! A read of the disk is followed by a second look at the maps: what a forwarded write preserved meanwhile is taken
//! from there. If something left the maps or the pins meanwhile, the read starts again.

use super::super::Epoch;
use super::maps::GranuleMaps;
use super::mutation::{Mutation, active};
use super::past::{buffered, read_buffered};
use super::range_lock::LockId;
use super::secondary::{Op, Role, SecondaryOutput, SecondaryStripes};
use super::table::OpId;
use super::types::*;
use smallvec::SmallVec;

/// Percent of the buffer's limit from which the secondary VM's writes wait for a checkpoint: the rest is for originals,
/// which cannot wait.
const OVERLAY_LIMIT_PERCENT: u8 = 90;

pub(super) enum OwnKind<P> {
    Read { into: P },
    Write { data: Data<P>, fua: bool },
    Compare { compare: P, data: P, scratch: P, fua: bool },
    Flush,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OwnStage {
    Waiting,
    /// Reads of the disk under way; what they read counts only if nothing changed since.
    Reading {
        left: u16,
        failed: bool,
        changes: u64,
    },
    /// What the write replaces is read, to be kept.
    Preserving {
        left: u16,
    },
    /// Granules that the write covers in part go from the maps to the disk first.
    Moving {
        left: u16,
        failed: bool,
    },
    Writing,
}

/// Which lock the command holds: its own kind's as a follower, the forwarded writes' when promoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OwnLock {
    None,
    View(LockId),
    Disk(LockId),
}

pub(super) struct Own<P> {
    pub token: Token,
    pub kind: OwnKind<P>,
    pub range: Range,
    pub stage: OwnStage,
    pub lock: OwnLock,
    pub bases: SmallVec<[(u64, P); 2]>,
    /// A read of the volume as it was at the end of this epoch.
    pub at: Option<Epoch>,
    /// A roll-back overtook the write: what it does is undone.
    pub undone: bool,
}

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    /// A command of the secondary's own host.
    pub fn submit(&mut self, token: Token, command: Command<P>, out: &mut Vec<SecondaryOutput<P>>) {
        let (kind, range) = match command {
            Command::Read { range, into } => (OwnKind::Read { into }, range),
            Command::Write { range, data, fua } => (OwnKind::Write { data, fua }, range),
            Command::CompareAndWrite { range, compare, data, scratch, fua } => {
                (OwnKind::Compare { compare, data, scratch, fua }, range)
            }
            Command::Flush => (OwnKind::Flush, Range::new(0, 0)),
        };
        let flush = matches!(kind, OwnKind::Flush);
        let refusal = match range {
            _ if !self.config.buffer && self.role == Role::Follower => Some(Refusal::NoView),
            _ if !self.has_view() => Some(Refusal::ViewLost),
            _ if self.refuses(&kind) => Some(Refusal::Stopped),
            range if range.end() > self.config.geometry.blocks => Some(Refusal::OutOfRange),
            range if range.blocks == 0 && !flush => Some(Refusal::OutOfRange),
            _ => None,
        };
        if let Some(refusal) = refusal {
            return out.push(SecondaryOutput::Reply { token, result: Err(refusal) });
        }
        self.enter(Own::new(token, kind, range), out);
    }

    pub(super) fn enter(&mut self, own: Own<P>, out: &mut Vec<SecondaryOutput<P>>) {
        let (range, promoted) = (own.range, self.role != Role::Follower);
        let locks = !matches!(own.kind, OwnKind::Read { .. } | OwnKind::Flush);
        let id = self.ops.insert(Op::Own(own));
        if !locks {
            return self.own_granted(id, out);
        }
        let aligned = self.config.geometry.aligned(range);
        let lock = if promoted { &mut self.lock } else { &mut self.own_lock };
        let (lock, held) = lock.enter(aligned, id);
        if let Some(own) = self.own_mut(id) {
            own.lock = if promoted { OwnLock::Disk(lock) } else { OwnLock::View(lock) };
        }
        if held {
            self.own_granted(id, out);
        }
    }

    pub(super) fn own_mut(&mut self, id: OpId) -> Option<&mut Own<P>> {
        match self.ops.get_mut(id) {
            Some(Op::Own(own)) => Some(own),
            _ => None,
        }
    }

    /// The command holds what it needs and begins.
    pub(super) fn own_granted(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let promoted = self.role != Role::Follower;
        let Some(Op::Own(own)) = self.ops.get(id) else { return };
        if self.refuses(&own.kind) {
            return self.own_end(id, Err(Refusal::Stopped), out);
        }
        let Some(own) = self.own_mut(id) else { return };
        match (&own.kind, promoted) {
            (OwnKind::Read { .. } | OwnKind::Compare { .. }, _) => self.read(id, out),
            (OwnKind::Write { .. }, false) => self.fill(id, out),
            (OwnKind::Write { .. }, true) => self.preserve_own(id, out),
            // The view is memory, and the disk's share of it is the primary's to flush.
            (OwnKind::Flush, false) => self.own_end(id, Ok(()), out),
            (OwnKind::Flush, true) => {
                own.stage = OwnStage::Writing;
                out.push(SecondaryOutput::SubmitFlush { op: id });
            }
        }
    }

    /// Copies what the maps have, reads the rest.
    fn read(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let (geometry, changes) = (self.config.geometry, self.changes);
        let Some(Op::Own(own)) = self.ops.get(id) else { return };
        let at = own.at;
        match at {
            Some(epoch) if !self.shows(epoch) => return self.own_end(id, Err(Refusal::Dropped), out),
            None if !self.has_view() => return self.own_end(id, Err(Refusal::ViewLost), out),
            _ => {}
        }
        let pinned = self.visible_pins(own.range, self.visible(at));
        let held = |piece: Range| pinned.iter().any(|pin| pin.intersection(piece) == Some(piece));
        let Some(Op::Own(own)) = self.ops.get_mut(id) else { return };
        let range = own.range;
        let (OwnKind::Read { into } | OwnKind::Compare { scratch: into, .. }) = &mut own.kind else { return };
        let mut left = 0;
        let mut missing: Option<Range> = None;
        let mut ask = |missing: &mut Option<Range>, into: &P| {
            if let Some(run) = missing.take() {
                let into = into.slice((run.lba - range.lba) as u32, run.blocks);
                out.push(SecondaryOutput::ViewRead { op: id, range: run, into });
                left += 1;
            }
        };
        for granule in geometry.granules(range) {
            let Some(piece) = geometry.granule_range(granule).intersection(range) else { continue };
            if buffered(&self.maps, at, granule) {
                ask(&mut missing, into);
                read_buffered(&self.maps, at, piece, into, (piece.lba - range.lba) as u32);
            } else if held(piece) {
                ask(&mut missing, into);
            } else {
                missing = Some(match missing {
                    Some(run) => Range::new(run.lba, run.blocks + piece.blocks),
                    None => piece,
                });
            }
        }
        ask(&mut missing, into);
        own.stage = OwnStage::Reading { left, failed: false, changes };
        if left == 0 {
            self.have_read(id, out);
        }
    }

    /// A piece of the disk was read for the view. `elsewhere` has the content if it is not in the buffer given.
    pub fn view_read(
        &mut self,
        id: OpId,
        range: Range,
        ok: bool,
        elsewhere: Option<&P>,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let Some(own) = self.own_mut(id) else { return };
        let OwnStage::Reading { left, failed, .. } = &mut own.stage else { return };
        *left = left.saturating_sub(1);
        *failed |= !ok;
        let ended = *left == 0;
        let start = own.range.lba;
        if let (OwnKind::Read { into } | OwnKind::Compare { scratch: into, .. }, Some(content)) =
            (&mut own.kind, elsewhere)
        {
            into.copy_from((range.lba - start) as u32, content, 0, range.blocks);
        }
        if ended {
            self.have_read(id, out);
        }
    }

    /// Everything was read: look again, patch, and answer or go on.
    fn have_read(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Own(own)) = self.ops.get_mut(id) else { return };
        let OwnStage::Reading { failed, changes, .. } = own.stage else { return };
        if changes != self.changes && !active(Mutation::ReadIgnoresChanges) {
            return self.read_again(id, out);
        }
        if failed {
            return self.own_end(id, Err(Refusal::Disk), out);
        }
        let (range, geometry, at) = (own.range, self.config.geometry, own.at);
        let visible = self.visible(at);
        let Some(own) = self.own_mut(id) else { return };
        let mut taken = match &mut own.kind {
            OwnKind::Read { into } | OwnKind::Compare { scratch: into, .. } => into.clone(),
            _ => return,
        };
        for granule in geometry.granules(range) {
            let Some(piece) = geometry.granule_range(granule).intersection(range) else { continue };
            if active(Mutation::NoSecondLook) {
                continue;
            }
            if buffered(&self.maps, at, granule) {
                read_buffered(&self.maps, at, piece, &mut taken, (piece.lba - range.lba) as u32);
            } else {
                self.patch(piece, &mut taken, (piece.lba - range.lba) as u32, visible);
            }
        }
        let Some(own) = self.own_mut(id) else { return };
        match &mut own.kind {
            OwnKind::Read { into } => {
                *into = taken;
                self.own_end(id, Ok(()), out);
            }
            OwnKind::Compare { compare, data, fua, .. } => {
                if !compare.equals(&taken) {
                    return self.own_end(id, Err(Refusal::Miscompare), out);
                }
                own.kind = OwnKind::Write { data: Data::Bytes(data.clone()), fua: *fua };
                self.own_granted(id, out);
            }
            _ => {}
        }
    }

    fn read_again(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let promoted = self.role != Role::Follower;
        match self.ops.get(id) {
            // It was under way when the node was promoted: it needs the other lock now.
            Some(Op::Own(own)) if promoted && matches!(own.lock, OwnLock::View(_)) => self.reenter(id, out),
            _ => self.read(id, out),
        }
    }

    /// Takes the command out of the view's lock and into the disk's.
    pub(super) fn reenter(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Own(mut own)) = self.ops.remove(id) else { return };
        let lock = std::mem::replace(&mut own.lock, OwnLock::None);
        own.stage = OwnStage::Waiting;
        own.bases.clear();
        self.enter(own, out);
        self.own_unlock(lock, out);
    }

    /// The last epoch that belongs to the content, now or at the end of an epoch.
    fn visible(&self, at: Option<Epoch>) -> Epoch {
        match (at, self.role) {
            (Some(epoch), _) => epoch,
            (None, Role::Follower) => self.committed,
            (None, Role::Promoted { visible }) => visible,
        }
    }

    /// The parts of a range that need not be read from the disk, which may hang.
    fn visible_pins(&self, range: Range, visible: Epoch) -> SmallVec<[Range; 8]> {
        let pins = self.pins.iter().filter_map(|&(_, id)| match self.ops.get(id) {
            Some(Op::Forwarded(write)) if write.belongs_to(visible) => write.range.intersection(range),
            _ => None,
        });
        pins.collect()
    }

    /// Puts pinned writes that belong to the view over what was read from the disk.
    fn patch(&self, range: Range, into: &mut P, at: u32, visible: Epoch) {
        if active(Mutation::ForgetPins) {
            return;
        }
        for &(_, id) in &self.pins {
            let Some(Op::Forwarded(write)) = self.ops.get(id) else { continue };
            if let Some(piece) = write.range.intersection(range).filter(|_| write.belongs_to(visible)) {
                let from = (piece.lba - write.range.lba) as u32;
                write.data.copy_to(from, into, at + (piece.lba - range.lba) as u32, piece.blocks);
            }
        }
    }

    /// A write as a follower: granules that it covers in part and that no map has are read first.
    fn fill(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        if !self.has_view() {
            return self.own_end(id, Err(Refusal::ViewLost), out);
        }
        let (geometry, changes) = (self.config.geometry, self.changes);
        let Some(Op::Own(own)) = self.ops.get_mut(id) else { return };
        own.bases.clear();
        let mut left = 0;
        for granule in geometry.granules(own.range) {
            let whole = geometry.granule_range(granule);
            if whole.intersection(own.range) != Some(whole) && !self.maps.view_contains(granule) {
                out.push(SecondaryOutput::BaseRead { op: id, range: whole });
                left += 1;
            }
        }
        own.stage = OwnStage::Reading { left, failed: false, changes };
        if left == 0 {
            self.overlay(id, out);
        }
    }

    /// A granule was read for a write that covers a part of it; `None` when reading failed.
    pub fn base_read(
        &mut self,
        id: OpId,
        range: Range,
        content: Option<P>,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let granule = self.config.geometry.granule_of(range.lba);
        let Some(own) = self.own_mut(id) else { return };
        if matches!(own.stage, OwnStage::Preserving { .. }) {
            return self.own_preserved(id, range, content.as_ref(), out);
        }
        let OwnStage::Reading { left, failed, .. } = &mut own.stage else { return };
        *left = left.saturating_sub(1);
        *failed |= content.is_none();
        let ended = *left == 0;
        if let Some(content) = content {
            own.bases.push((granule, content));
        }
        if ended {
            self.overlay(id, out);
        }
    }

    fn overlay(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Own(own)) = self.ops.get_mut(id) else { return };
        let OwnStage::Reading { failed, changes, .. } = own.stage else { return };
        if changes != self.changes {
            return self.fill(id, out);
        }
        if failed {
            return self.own_end(id, Err(Refusal::Disk), out);
        }
        let geometry = self.config.geometry;
        let range = own.range;
        let mut bases = std::mem::take(&mut own.bases);
        let OwnKind::Write { data, .. } = &own.kind else { return };
        let data = data.clone();
        for (granule, base) in &mut bases {
            self.patch(geometry.granule_range(*granule), base, 0, self.visible(None));
        }
        let mut full = self.maps.fullness() >= OVERLAY_LIMIT_PERCENT;
        for granule in geometry.granules(range) {
            let Some(piece) = geometry.granule_range(granule).intersection(range) else { continue };
            let base = bases.iter().find(|base| base.0 == granule).map(|base| &base.1);
            let from = (piece.lba - range.lba) as u32;
            full = full || self.maps.overlay_write(piece, &data, from, base).is_err();
        }
        if full {
            // Nothing was acknowledged, so what went in of it is a write in flight.
            if let Some(own) = self.own_mut(id) {
                own.stage = OwnStage::Waiting;
            }
            self.short_of_room.push_back(id);
        } else {
            self.own_end(id, Ok(()), out);
        }
        self.watch(out);
    }

    /// Room was made, or the view was lost: writes that waited for it try again.
    pub(super) fn room(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        for _ in 0..self.short_of_room.len() {
            if let Some(id) = self.short_of_room.pop_front() {
                self.own_granted(id, out);
            }
        }
    }

    pub(super) fn own_end(
        &mut self,
        id: OpId,
        result: Result<(), Refusal>,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let Some(Op::Own(own)) = self.ops.remove(id) else { return };
        out.push(SecondaryOutput::Reply { token: own.token, result });
        self.own_unlock(own.lock, out);
    }

    fn own_unlock(&mut self, lock: OwnLock, out: &mut Vec<SecondaryOutput<P>>) {
        match lock {
            OwnLock::None => {}
            OwnLock::Disk(lock) => self.unlock(lock, out),
            OwnLock::View(lock) => {
                let mut granted = SmallVec::new();
                self.own_lock.release(lock, &mut granted);
                for id in granted {
                    match self.role {
                        Role::Follower => self.own_granted(id, out),
                        Role::Promoted { .. } => self.reenter(id, out),
                    }
                }
            }
        }
    }

    pub(super) fn own_flushed(&mut self, id: OpId, ok: bool, out: &mut Vec<SecondaryOutput<P>>) {
        self.own_end(id, if ok { Ok(()) } else { Err(Refusal::Disk) }, out);
    }
}
