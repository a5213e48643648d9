//! What the peer acknowledged and could still lose by a restart: writes that no flush of its disk has covered since, and
//! what its memory holds for a disk that hangs. Kept by stripe, so that a write costs one store and a flush nothing; after
//! a restart of the peer whole stripes are copied, which is more than was lost and never less.
//!
//! Flushes are counted in rounds. A write belongs to the round that is open when it is sent; a flush closes the round, and
//! when the peer has carried it out on every lane, everything through that round is durable there.

use super::types::{Geometry, Range};

pub(super) struct Unsettled {
    /// The round of the last write to each stripe that this machine owns; 0: none.
    stripes: Vec<u64>,
    geometry: Geometry,
    open: u64,
    durable: u64,
}

/// Held in the peer's memory: no flush settles it.
const HELD: u64 = u64::MAX;

impl Unsettled {
    pub fn new(geometry: Geometry) -> Unsettled {
        let mut unsettled = Unsettled { stripes: Vec::new(), geometry, open: 1, durable: 0 };
        unsettled.extend(geometry.blocks);
        unsettled
    }

    /// Makes room for a volume of so many blocks; never less than there was.
    pub fn extend(&mut self, blocks: u64) {
        let stripes = blocks.div_ceil(self.geometry.stripe_blocks());
        let owned = stripes.div_ceil(u64::from(self.geometry.owners.max(1))) as usize;
        self.stripes.resize(owned.max(self.stripes.len()), 0);
    }

    fn stamp(&mut self, range: Range, round: u64) {
        let owners = u64::from(self.geometry.owners.max(1));
        let last = self.geometry.stripe_of(range.end().saturating_sub(1));
        for stripe in self.geometry.stripe_of(range.lba)..=last {
            if let Some(stamp) = self.stripes.get_mut((stripe / owners) as usize) {
                *stamp = round.max(*stamp);
            }
        }
    }

    /// A write goes to the peer.
    pub fn sent(&mut self, range: Range) {
        self.stamp(range, self.open);
    }

    /// The peer holds a write in its memory.
    pub fn held(&mut self, range: Range) {
        self.stamp(range, HELD);
    }

    /// A flush goes to the peer; its round, which [`Unsettled::flushed`] takes.
    pub fn flush(&mut self) -> u64 {
        let round = self.open;
        self.open += 1;
        round
    }

    /// The peer has carried a flush out on every lane.
    pub fn flushed(&mut self, round: u64) {
        self.durable = self.durable.max(round);
    }

    /// What may be lost, in a volume of so many blocks. It is not lost twice: the caller has it copied.
    pub fn take(&mut self, blocks: u64, mut lost: impl FnMut(Range)) {
        let (owners, owner) = (u64::from(self.geometry.owners.max(1)), u64::from(self.geometry.owner));
        let stripe_blocks = self.geometry.stripe_blocks();
        for (at, stamp) in (0..).zip(&mut self.stripes) {
            let lba = (at * owners + owner) * stripe_blocks;
            if std::mem::take(stamp) > self.durable && lba < blocks {
                lost(Range::new(lba, stripe_blocks.min(blocks - lba) as u32));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(unsettled: &mut Unsettled) -> Vec<(u64, u32)> {
        let mut all = Vec::new();
        unsettled.take(5 * 1024 + 7, |range| all.push((range.lba, range.blocks)));
        all
    }

    #[test]
    fn a_flush_settles_what_was_sent_before_it_and_nothing_that_is_held() {
        let geometry =
            Geometry { blocks: 5 * 1024 + 7, block_bytes: 4096, granule_blocks: 1, owners: 2, owner: 1 };
        let mut unsettled = Unsettled::new(geometry);
        unsettled.sent(Range::new(1024, 1));
        let first = unsettled.flush();
        unsettled.sent(Range::new(3 * 1024 + 5, 1));
        unsettled.flushed(first);
        assert_eq!(lost(&mut unsettled), [(3 * 1024, 1024)], "it came after the flush");
        assert_eq!(lost(&mut unsettled), [], "and is copied now");
        unsettled.sent(Range::new(1024, 1));
        let lost_flush = unsettled.flush();
        unsettled.held(Range::new(5 * 1024, 1));
        unsettled.sent(Range::new(5 * 1024, 1));
        let second = unsettled.flush();
        unsettled.flushed(second);
        unsettled.flushed(lost_flush);
        assert_eq!(
            lost(&mut unsettled),
            [(5 * 1024, 7)],
            "a later flush covers what an earlier one would have"
        );
    }
}
