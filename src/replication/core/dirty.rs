//! What the peer lacks: one bit for [`DIRTY_BYTES`] of the stripes that a machine owns. A bit too many costs a copy,
//! a bit too few costs the data; so bits are set before a write can make the disks differ and cleared only when
//! a copy that was read later is on its way. In memory; the activity log that makes it survive a crash hooks in at
//! [`DirtyMap::mark`].

use super::types::{DIRTY_BYTES, Geometry, Range, STRIPE_BYTES};

pub struct DirtyMap {
    words: Vec<u64>,
    geometry: Geometry,
    marked: u64,
}

const BITS_OF_STRIPE: u64 = STRIPE_BYTES / DIRTY_BYTES;
const _: () = assert!(BITS_OF_STRIPE == 64, "one word a stripe");

impl DirtyMap {
    pub fn new(geometry: Geometry) -> DirtyMap {
        let stripes = geometry.blocks.div_ceil(geometry.stripe_blocks());
        let owned = stripes.div_ceil(u64::from(geometry.owners.max(1)));
        DirtyMap { words: vec![0; owned as usize], geometry, marked: 0 }
    }

    /// Makes room for a volume of so many blocks; never less than there was.
    pub fn extend(&mut self, blocks: u64) {
        let more = DirtyMap::new(Geometry { blocks, ..self.geometry }).words.len();
        self.words.resize(more.max(self.words.len()), 0);
    }

    /// The volume ends here from now on.
    pub fn set_blocks(&mut self, blocks: u64) {
        self.extend(blocks);
        self.geometry.blocks = blocks;
    }

    /// The word of a stripe that this machine owns.
    fn word(&self, stripe: u64) -> usize {
        (stripe / u64::from(self.geometry.owners.max(1))) as usize
    }

    fn bit_blocks(&self) -> u64 {
        DIRTY_BYTES / u64::from(self.geometry.block_bytes)
    }

    fn each_mask(&self, range: Range, mut look: impl FnMut(usize, u64)) {
        if range.blocks == 0 {
            return;
        }
        let mut bit = range.lba / self.bit_blocks();
        let last = (range.end() - 1) / self.bit_blocks();
        while bit <= last {
            let stripe = bit / BITS_OF_STRIPE;
            let upto = last.min(stripe * BITS_OF_STRIPE + BITS_OF_STRIPE - 1);
            let count = upto - bit + 1;
            let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
            let word = self.word(stripe);
            if word < self.words.len() {
                look(word, ones << (bit % BITS_OF_STRIPE));
            }
            bit = upto + 1;
        }
    }

    pub fn mark(&mut self, range: Range) {
        let mut masks = smallvec::SmallVec::<[(usize, u64); 4]>::new();
        self.each_mask(range, |word, mask| masks.push((word, mask)));
        for (word, mask) in masks {
            self.marked += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
    }

    /// Marks everything that this machine owns of the volume.
    pub fn mark_all(&mut self) {
        let Geometry { blocks, owner, owners, .. } = self.geometry;
        let stripe_blocks = self.geometry.stripe_blocks();
        let stripes = blocks.div_ceil(stripe_blocks);
        for stripe in (u64::from(owner)..stripes).step_by(usize::from(owners.max(1))) {
            let lba = stripe * stripe_blocks;
            self.mark(Range::new(lba, stripe_blocks.min(blocks - lba) as u32));
        }
    }

    /// The first marked piece at or after a block, within one stripe and at most so many blocks long.
    pub fn next(&self, from: u64, most: u32) -> Option<Range> {
        let bit_blocks = self.bit_blocks();
        let owners = u64::from(self.geometry.owners.max(1));
        let owner = u64::from(self.geometry.owner);
        // The end of a piece may be the end of the volume, in the middle of a bit.
        let bit = from.div_ceil(bit_blocks);
        let stripe = bit / BITS_OF_STRIPE;
        let first = stripe.saturating_sub(owner).div_ceil(owners);
        for at in first as usize..self.words.len() {
            let here = at as u64 * owners + owner;
            let behind = if here == stripe { u64::MAX << (bit % BITS_OF_STRIPE) } else { u64::MAX };
            let word = self.words[at] & behind;
            if word == 0 {
                continue;
            }
            let start = word.trailing_zeros();
            let run = u64::from((word >> start).trailing_ones()).min((u64::from(most) / bit_blocks).max(1));
            let lba = (here * BITS_OF_STRIPE + u64::from(start)) * bit_blocks;
            let end = (lba + run * bit_blocks).min(self.geometry.blocks);
            return (lba < end).then(|| Range::new(lba, (end - lba) as u32));
        }
        None
    }

    /// Clears the bits that the range covers from end to end.
    pub fn clear(&mut self, range: Range) {
        let bit = self.bit_blocks();
        let from = range.lba.div_ceil(bit) * bit;
        let to = if range.end() >= self.geometry.blocks { range.end() } else { range.end() / bit * bit };
        if to <= from {
            return;
        }
        let mut masks = smallvec::SmallVec::<[(usize, u64); 4]>::new();
        self.each_mask(Range::new(from, (to - from) as u32), |word, mask| masks.push((word, mask)));
        for (word, mask) in masks {
            self.marked -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
    }

    pub fn is_dirty(&self, range: Range) -> bool {
        let mut dirty = false;
        self.each_mask(range, |word, mask| dirty |= self.words[word] & mask != 0);
        dirty
    }

    /// An upper bound of the bytes that differ.
    pub fn bytes(&self) -> u64 {
        self.marked * DIRTY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(owners: u16, owner: u16) -> Geometry {
        Geometry { blocks: 16 * 1024, block_bytes: 4096, granule_blocks: 1, owners, owner }
    }

    #[test]
    fn a_mark_covers_every_block_of_the_range_and_is_cleared_only_by_a_covering_one() {
        let mut map = DirtyMap::new(geometry(1, 0));
        map.mark(Range::new(15, 2));
        assert_eq!(map.bytes(), 2 * DIRTY_BYTES);
        assert!(
            map.is_dirty(Range::new(0, 1))
                && map.is_dirty(Range::new(31, 1))
                && !map.is_dirty(Range::new(32, 1))
        );
        map.clear(Range::new(0, 15));
        assert_eq!(map.bytes(), 2 * DIRTY_BYTES, "a bit that was copied in part stays");
        map.clear(Range::new(0, 16));
        assert_eq!(map.bytes(), DIRTY_BYTES);
        map.mark(Range::new(1000, 1024));
        map.clear(Range::new(0, 16 * 1024));
        assert_eq!(map.bytes(), 0);
    }

    #[test]
    fn a_map_that_grows_keeps_its_marks_and_takes_those_of_the_new_end() {
        let mut map = DirtyMap::new(Geometry { blocks: 1000, ..geometry(2, 0) });
        map.mark(Range::new(999, 1));
        map.extend(5 * 1024);
        map.mark(Range::new(4 * 1024, 1));
        assert!(map.is_dirty(Range::new(999, 1)) && map.is_dirty(Range::new(4 * 1024, 1)));
        map.clear(Range::new(0, 1000));
        assert_eq!(map.bytes(), DIRTY_BYTES, "the last bit of the old size is covered by its last block");
        map.set_blocks(5 * 1024);
        map.mark(Range::new(999, 1));
        map.clear(Range::new(0, 1000));
        assert!(map.is_dirty(Range::new(1000, 1)), "and is not any more when the volume goes on behind it");
    }

    #[test]
    fn what_is_marked_is_found_piece_by_piece_and_nothing_else() {
        for owner in 0..3 {
            let mut map = DirtyMap::new(Geometry { blocks: 16 * 1024 + 5, ..geometry(3, owner) });
            assert_eq!(map.next(0, 64), None);
            map.mark_all();
            let pieces = |map: &DirtyMap| {
                let next = |last: &Range| map.next(last.end(), 64);
                std::iter::successors(map.next(0, 64), next).take(2000).collect::<Vec<Range>>()
            };
            let all = pieces(&map);
            let owned = |lba: u64| Geometry::owner_of(lba, 4096, 3) == owner;
            let blocks: u64 = all.iter().map(|range| u64::from(range.blocks)).sum();
            assert_eq!(blocks, (0..16 * 1024 + 5).filter(|&lba| owned(lba)).count() as u64);
            assert!(all.iter().all(|range| owned(range.lba) && owned(range.end() - 1) && range.blocks <= 64));
            all.iter().for_each(|&range| map.clear(range));
            assert_eq!((map.bytes(), pieces(&map)), (0, Vec::new()));
            let stripe = 3 * 1024 + u64::from(owner) * 1024;
            map.mark(Range::new(stripe + 100, 1));
            map.mark(Range::new(stripe + 1023, 1));
            assert_eq!(pieces(&map), [Range::new(stripe + 96, 16), Range::new(stripe + 1008, 16)]);
        }
    }

    #[test]
    fn stripes_of_other_reactors_take_no_room() {
        let mut map = DirtyMap::new(geometry(4, 1));
        assert_eq!(map.words.len(), 4);
        map.mark(Range::new(1024, 1));
        map.mark(Range::new(5 * 1024, 1));
        assert!(map.is_dirty(Range::new(1024, 1)) && map.is_dirty(Range::new(5 * 1024 + 15, 1)));
        assert_eq!(map.bytes(), 2 * DIRTY_BYTES);
    }
}
