//! Where a granule's page is: granule number → [`Place`], in 8 bytes an entry.
//!
//! Extendible hashing: a directory, addressed by the top bits of the hash, points to leaves of 512 slots. A full
//! leaf splits in two; nothing else moves, so no insert ever costs more than one split (about a microsecond) and,
//! rarely, a doubling of the directory (4 bytes a leaf). A table that rehashes as a whole would stall every write of
//! the volume for milliseconds at the sizes that a buffer reaches.
//!
//! Eight neighbouring granules share a hash, so a run of granules reads neighbouring slots: one cache line for 8.

use std::hash::BuildHasher;

/// Bits of a slot that hold the place; the other 38 hold the granule number.
const PLACE_BITS: u32 = 26;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

/// Granule numbers are below this: 1 PiB of volume at 4 KiB a granule.
pub const GRANULES_MAX: u64 = 1 << (64 - PLACE_BITS);

const SLOTS: usize = 512;
/// A leaf splits at three quarters: probes stay short, and two halves still have room to grow.
const SPLIT_AT: u16 = 384;
/// A leaf that cannot be split fills up to here, so that a probe always ends at an empty slot.
const LEAF_MAX: u16 = SLOTS as u16 - 1;
/// 16 million leaves, 6 billion granules: far above any memory. What would need more is refused.
const DEPTH_MAX: u32 = 24;

const EMPTY: u64 = u64::MAX;

/// Where the content of a granule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A page, by number within the layer.
    Page(u32),
    /// All zeroes: no page.
    Zero,
}

/// Page numbers are below this (two values above it are taken, and all ones is an empty slot).
pub const PAGES_MAX: u32 = (PLACE_MASK - 2) as u32;
const RAW_ZERO: u64 = PLACE_MASK - 1;
/// Forgotten: the slot stays (probes walk over it), the granule is absent.
const RAW_GONE: u64 = PLACE_MASK - 2;

fn encode(place: Place) -> u64 {
    match place {
        Place::Page(page) => {
            debug_assert!(page < PAGES_MAX);
            u64::from(page)
        }
        Place::Zero => RAW_ZERO,
    }
}

fn decode(slot: u64) -> Option<Place> {
    match slot & PLACE_MASK {
        RAW_GONE => None,
        RAW_ZERO => Some(Place::Zero),
        page => Some(Place::Page(page as u32)),
    }
}

/// No room for this entry: the directory has reached its limit, or the granule number has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index of a buffer layer is full")]
pub struct IndexFull;

type Slots = Box<[u64; SLOTS]>;

struct Leaf {
    slots: Slots,
    used: u16,
    depth: u8,
}

/// Leaves that were used before: a new epoch begins without asking the heap.
#[derive(Default)]
pub struct LeafPool {
    spare: Vec<Slots>,
}

/// 4 MiB of leaves: those of about 1 GiB of buffer.
const SPARE_MAX: usize = 1024;

impl LeafPool {
    fn take(&mut self) -> Slots {
        match self.spare.pop() {
            Some(mut slots) => {
                slots.fill(EMPTY);
                slots
            }
            None => Box::new([EMPTY; SLOTS]),
        }
    }

    fn put(&mut self, slots: Slots) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(slots);
        }
    }

    pub fn bytes(&self) -> u64 {
        (self.spare.len() * size_of::<[u64; SLOTS]>() + self.spare.capacity() * size_of::<Slots>()) as u64
    }
}

pub struct Index {
    directory: Vec<u32>,
    depth: u32,
    leaves: Vec<Leaf>,
    len: u64,
    /// Makes collisions unpredictable to whoever chooses the addresses.
    seed: u64,
}

impl Default for Index {
    fn default() -> Index {
        let seed = std::hash::RandomState::new().hash_one(0u64);
        Index { directory: Vec::new(), depth: 0, leaves: Vec::new(), len: 0, seed }
    }
}

impl Index {
    /// Granules present.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the index itself uses.
    pub fn bytes(&self) -> u64 {
        let leaves =
            self.leaves.capacity() * size_of::<Leaf>() + self.leaves.len() * size_of::<[u64; SLOTS]>();
        (leaves + self.directory.capacity() * size_of::<u32>()) as u64
    }

    fn hash(&self, granule: u64) -> u64 {
        let wide = u128::from((granule >> 3) ^ self.seed) * 0x9e37_79b9_7f4a_7c15;
        let folded = (wide >> 64) as u64 ^ wide as u64;
        folded.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (folded >> 32)
    }

    /// A leaf's slots that a granule may be in, in the order of the probe.
    fn probe(hash: u64, granule: u64) -> impl Iterator<Item = usize> {
        let home = ((hash & 63) << 3 | granule & 7) as usize;
        (0..SLOTS).map(move |step| (home + step) & (SLOTS - 1))
    }

    fn directory_slot(&self, hash: u64) -> usize {
        ((hash >> 1) >> (63 - self.depth)) as usize
    }

    fn leaf_of(&self, hash: u64) -> Option<usize> {
        self.directory.get(self.directory_slot(hash)).map(|&id| id as usize)
    }

    /// The slot that holds the granule, or the empty one where its probe ends.
    fn find(leaf: &Leaf, hash: u64, granule: u64) -> Option<usize> {
        Self::probe(hash, granule).find(|&at| {
            let slot = leaf.slots[at];
            slot == EMPTY || slot >> PLACE_BITS == granule
        })
    }

    pub fn get(&self, granule: u64) -> Option<Place> {
        if self.len == 0 || granule >= GRANULES_MAX {
            return None;
        }
        let hash = self.hash(granule);
        let leaf = &self.leaves[self.leaf_of(hash)?];
        match leaf.slots[Self::find(leaf, hash, granule)?] {
            EMPTY => None,
            slot => decode(slot),
        }
    }

    /// Puts the granule at `place` and returns where it was.
    pub fn insert(
        &mut self,
        pool: &mut LeafPool,
        granule: u64,
        place: Place,
    ) -> Result<Option<Place>, IndexFull> {
        if granule >= GRANULES_MAX {
            return Err(IndexFull);
        }
        let hash = self.hash(granule);
        let new = granule << PLACE_BITS | encode(place);
        loop {
            let id = self.leaf_for(pool, hash);
            let leaf = &mut self.leaves[id];
            let at = Self::find(leaf, hash, granule).ok_or(IndexFull)?;
            let old = leaf.slots[at];
            if old != EMPTY {
                leaf.slots[at] = new;
                let before = decode(old);
                self.len += u64::from(before.is_none());
                return Ok(before);
            }
            if leaf.used >= SPLIT_AT && self.split(pool, id, hash) {
                continue;
            }
            let leaf = &mut self.leaves[id];
            if leaf.used >= LEAF_MAX {
                return Err(IndexFull);
            }
            leaf.slots[at] = new;
            leaf.used += 1;
            self.len += 1;
            return Ok(None);
        }
    }

    /// Makes the granule absent; returns where it was.
    pub fn forget(&mut self, granule: u64) -> Option<Place> {
        if self.len == 0 || granule >= GRANULES_MAX {
            return None;
        }
        let hash = self.hash(granule);
        let id = self.leaf_of(hash)?;
        let leaf = &mut self.leaves[id];
        let at = Self::find(leaf, hash, granule)?;
        if leaf.slots[at] == EMPTY {
            return None;
        }
        let before = decode(leaf.slots[at])?;
        leaf.slots[at] = granule << PLACE_BITS | RAW_GONE;
        self.len -= 1;
        Some(before)
    }

    /// The leaf that the hash belongs to; the first entry makes the first leaf.
    fn leaf_for(&mut self, pool: &mut LeafPool, hash: u64) -> usize {
        if self.directory.is_empty() {
            self.directory.push(0);
            self.depth = 0;
            self.leaves.push(Leaf { slots: pool.take(), used: 0, depth: 0 });
        }
        self.directory[self.directory_slot(hash)] as usize
    }

    /// Splits a leaf by the next bit of the hash. `false` when the directory may not grow any further.
    fn split(&mut self, pool: &mut LeafPool, id: usize, hash: u64) -> bool {
        let depth = u32::from(self.leaves[id].depth);
        if depth == self.depth {
            if self.depth == DEPTH_MAX {
                return false;
            }
            self.directory = self.directory.iter().flat_map(|&leaf| [leaf, leaf]).collect();
            self.depth += 1;
        }
        let old = std::mem::replace(&mut self.leaves[id].slots, pool.take());
        let other = self.leaves.len();
        self.leaves[id].used = 0;
        self.leaves[id].depth += 1;
        self.leaves.push(Leaf { slots: pool.take(), used: 0, depth: depth as u8 + 1 });
        // The directory's entries of this leaf are neighbours; the upper half of them goes to the new one.
        let span = 1usize << (self.depth - depth);
        let first = self.directory_slot(hash) & !(span - 1);
        self.directory[first + span / 2..first + span].fill(other as u32);
        for &slot in old.iter().filter(|&&slot| slot != EMPTY && decode(slot).is_some()) {
            let granule = slot >> PLACE_BITS;
            let hash = self.hash(granule);
            let upper = hash >> (63 - depth) & 1 == 1;
            let leaf = &mut self.leaves[if upper { other } else { id }];
            if let Some(at) = Self::find(leaf, hash, granule) {
                leaf.slots[at] = slot;
                leaf.used += 1;
            }
        }
        pool.put(old);
        true
    }

    /// Takes the index apart, at most `budget` leaves at a time. `true` when nothing is left.
    pub fn recycle(&mut self, pool: &mut LeafPool, budget: usize) -> bool {
        self.len = 0;
        self.directory = Vec::new();
        for _ in 0..budget {
            match self.leaves.pop() {
                Some(leaf) => pool.put(leaf.slots),
                None => break,
            }
        }
        self.leaves.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, Place),
        Forget(u64),
    }

    fn granule() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..2000, (0u64..5000).prop_map(|n| n * 4096), 0..GRANULES_MAX]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (granule(), 0..PAGES_MAX).prop_map(|(g, p)| Step::Insert(g, Place::Page(p))),
            1 => granule().prop_map(|g| Step::Insert(g, Place::Zero)),
            1 => granule().prop_map(Step::Forget),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_holds_what_an_ordered_map_holds(steps in prop::collection::vec(step(), 1..6000)) {
            let (mut index, mut pool, mut model) = (Index::default(), LeafPool::default(), BTreeMap::new());
            for step in &steps {
                match *step {
                    Step::Insert(g, place) => {
                        prop_assert_eq!(index.insert(&mut pool, g, place), Ok(model.insert(g, place)));
                    }
                    Step::Forget(g) => prop_assert_eq!(index.forget(g), model.remove(&g)),
                }
            }
            prop_assert_eq!(index.len(), model.len() as u64);
            for (&g, &place) in &model {
                prop_assert_eq!(index.get(g), Some(place));
            }
        }
    }

    #[test]
    fn a_recycled_index_gives_its_leaves_to_the_next() {
        let (mut index, mut pool) = (Index::default(), LeafPool::default());
        for g in 0..10_000 {
            assert_eq!(index.insert(&mut pool, g, Place::Zero), Ok(None));
        }
        let leaves = index.leaves.len();
        assert!(!index.recycle(&mut pool, leaves - 1));
        assert!(index.recycle(&mut pool, 10));
        assert_eq!((index.len(), index.get(5)), (0, None));
        assert!(pool.bytes() >= leaves as u64 * 4096);
    }

    #[test]
    fn a_granule_beyond_the_limit_is_refused() {
        let (mut index, mut pool) = (Index::default(), LeafPool::default());
        assert_eq!(index.insert(&mut pool, GRANULES_MAX, Place::Zero), Err(IndexFull));
        assert_eq!(index.get(GRANULES_MAX), None);
        assert_eq!(index.forget(GRANULES_MAX), None);
    }

    #[test]
    fn an_entry_costs_less_than_a_fiftieth_of_its_granule() {
        for stride in [1, 2, 8, 64, 4096, 1_000_003] {
            let (mut index, mut pool) = (Index::default(), LeafPool::default());
            for n in 0..65_536u64 {
                assert_eq!(index.insert(&mut pool, n * stride, Place::Page(n as u32)), Ok(None));
            }
            let per_entry = index.bytes() / 65_536;
            assert!(per_entry <= 40, "{per_entry} bytes an entry at stride {stride}");
        }
    }
}
