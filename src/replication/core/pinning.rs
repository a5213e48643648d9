//! A disk that hangs: what it has not taken is held in memory as its content, so that checkpoints and failovers go on.
//!
//! Invariants. What is pinned is part of every view and of the drain until the disk gives its I/O back, and its buffer is
//! not used for anything else before. A disk that is only slow is told from one that hangs by what it ends meanwhile.

use super::super::Sequence;
use super::maps::GranuleMaps;
use super::secondary::{
    Answer, Forwarded, Held, Op, Preparing, ROOM_PERCENT, SecondaryOutput, SecondaryStripes, Stage,
};
use super::table::OpId;
use super::types::*;
use smallvec::SmallVec;

/// What becomes of a write that is to be pinned and finds no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    /// The machine stops following: a disk that hangs may never take it.
    OrBreak,
    /// It goes on waiting for the disk.
    OrWait,
}

/// How the disk gets on: one that is slow ends writes in about the order in which they came, however old they are.
#[derive(Clone, Copy, Default)]
pub(super) struct Progress {
    /// When a forwarded write last ended, and when the youngest that ended had gone to the disk.
    last_end: u32,
    youngest_ended: u32,
}

impl Progress {
    /// A write that had gone to the disk at `started` ended.
    pub fn note_end(&mut self, tick: u32, started: u32) {
        self.last_end = tick;
        if is_older(self.youngest_ended, started) {
            self.youngest_ended = started;
        }
    }

    /// Whether what the disk got at `since` hangs: it is old, and nothing ends any more, or what came much later has ended.
    fn is_hung(&self, since: u32, tick: u32, limit: u32) -> bool {
        let overtaken =
            is_older(since, self.youngest_ended) && self.youngest_ended.wrapping_sub(since) >= limit;
        let stalled = tick.wrapping_sub(self.last_end) >= limit;
        tick.wrapping_sub(since) >= limit && (stalled || overtaken)
    }
}

/// Whether tick `a` came before tick `b`; ticks wrap around.
fn is_older(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < u32::MAX / 2
}

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    /// The passing of time, in the shell's steps: what the disk holds up for too long is pinned.
    pub fn tick(&mut self, out: &mut Vec<SecondaryOutput<P>>) {
        self.tick = self.tick.wrapping_add(1);
        let (progress, tick, limit) = (self.progress, self.tick, self.config.hung_ticks);
        let is_hung = |since| progress.is_hung(since, tick, limit);
        let at_the_disk = |write: &Forwarded<P>| write.stage != Stage::Waiting;
        self.pin_where(|write| at_the_disk(write) && is_hung(write.started), Room::OrBreak, out);
        // What waits for its range hangs with what has the range; behind a disk that is only slow it takes its turn.
        if !self.pins.is_empty() || self.broken.is_some() {
            self.pin_where(|write| is_hung(write.since), Room::OrBreak, out);
        }
        let mut hung = SmallVec::<[(OpId, Lane, Sequence); 4]>::new();
        let mut retry = SmallVec::<[OpId; 4]>::new();
        let mut again = SmallVec::<[OpId; 4]>::new();
        let promising = self.promising;
        for (id, op) in self.ops.iter() {
            match op {
                Op::Barrier(barrier) if is_hung(barrier.since) => {
                    hung.push((id, barrier.lane, barrier.sequence));
                }
                Op::Forwarded(write) if write.stage == Stage::Retrying && !self.is_stuck(write) => {
                    retry.push(id)
                }
                Op::Forwarded(write) if write.stage == Stage::Withheld && !promising => again.push(id),
                _ => {}
            }
        }
        for (id, lane, sequence) in hung {
            if let Some(at) = self.barriers.iter().position(|&other| other == id) {
                self.barriers.swap_remove(at);
                out.push(SecondaryOutput::Answer { lane, sequence, answer: Answer::Pinned });
                out.push(SecondaryOutput::Event(StripeEvent::HungDisk(Range::new(0, 0))));
            }
        }
        for id in retry {
            self.submit_write(id, out);
        }
        for id in again {
            self.start(id, out);
        }
        self.give_up_comparisons(is_hung, out);
        self.hurry_peer_reads(is_hung, out);
        // Memory comes back after what freed it: in steps, and from the buffers of other machines.
        if !self.short_of_room.is_empty() && self.maps.fullness() < ROOM_PERCENT {
            self.room(out);
        }
        self.drain_again(out);
    }

    pub(super) fn pin_where(
        &mut self,
        wanted: impl Fn(&Forwarded<P>) -> bool,
        room: Room,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let mut chosen = SmallVec::<[(u64, OpId); 16]>::new();
        for (id, op) in self.ops.iter() {
            if let Op::Forwarded(write) = op
                && !write.answered
                && wanted(write)
            {
                chosen.push((write.order, id));
            }
        }
        chosen.sort_unstable();
        for (_, id) in chosen {
            self.pin(id, room, out);
        }
    }

    fn pin_bytes(&self, write: &Forwarded<P>) -> u64 {
        match write.data {
            Data::Bytes(_) => u64::from(write.range.blocks) * u64::from(self.config.geometry.block_bytes),
            Data::Zeroes => 0,
        }
    }

    /// Keeps the payload as the content of the disk and tells the primary so.
    fn pin(&mut self, id: OpId, room: Room, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Forwarded(write)) = self.ops.get(id) else { return };
        let (bytes, order, range) = (self.pin_bytes(write), write.order, write.range);
        if self.maps.reserve(bytes).is_err() {
            if room == Room::OrWait {
                return;
            }
            self.break_off(PeerRefusal::HungDisk, out);
            self.answer(id, Answer::Failed(PeerRefusal::HungDisk), out);
            if let Some(Preparing { epoch, .. }) = self.preparing.take() {
                out.push(SecondaryOutput::Prepared { epoch, result: Err(PeerRefusal::HungDisk) });
            }
            return;
        }
        if self.pins.is_empty() {
            out.push(SecondaryOutput::Event(StripeEvent::HungDisk(range)));
        }
        self.hold(id, order, bytes);
        self.complete_granule(id, out);
        self.answer(id, Answer::Pinned, out);
        self.watch(out);
    }

    fn hold(&mut self, id: OpId, order: u64, bytes: u64) {
        if let Some(write) = self.forwarded_mut(id) {
            write.held = Held::Pinned { bytes };
        }
        let at = self.pins.partition_point(|pin| pin.0 < order);
        self.pins.insert(at, (order, id));
    }

    /// Everything under way becomes content at once, whatever the quota says: there is no other copy of it.
    pub(super) fn pin_everything(&mut self) {
        let mut all = Vec::new();
        for (id, op) in self.ops.iter() {
            if let Op::Forwarded(write) = op
                && write.held == Held::No
                && !matches!(write.stage, Stage::Abandoned { .. })
            {
                all.push((write.order, id));
            }
        }
        for (order, id) in all {
            self.hold(id, order, 0);
        }
    }

    pub(super) fn unpin(&mut self, id: OpId, order: u64, bytes: u64) {
        let at = self.pins.partition_point(|pin| pin.0 < order);
        if self.pins.get(at).is_some_and(|pin| pin.1 == id) {
            self.pins.remove(at);
        }
        self.maps.release(bytes);
        // A read that is under way may have counted on patching it in.
        self.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_does_not_hang_and_one_that_was_overtaken_or_stands_still_does() {
        struct At(Progress, u32);
        impl At {
            fn is_hung(&self, since: u32) -> bool {
                self.0.is_hung(since, self.1, 50)
            }
        }
        let at = |tick, last_end, youngest_ended| At(Progress { last_end, youngest_ended }, tick);
        assert!(!at(49, 0, 0).is_hung(0), "too young");
        assert!(at(50, 0, 0).is_hung(0), "nothing ends");
        assert!(!at(500, 499, 10).is_hung(20), "those before it still end");
        assert!(!at(500, 499, 60).is_hung(20), "those about its age end");
        assert!(at(500, 499, 70).is_hung(20), "much later ones have ended");
        assert!(at(500, 450, 10).is_hung(20), "nothing ends any more");
        let end = u32::MAX;
        assert!(!at(20, 19, end - 40).is_hung(end - 30), "over the end of the count");
        assert!(at(40, 39, 25).is_hung(end - 30));
    }
}
