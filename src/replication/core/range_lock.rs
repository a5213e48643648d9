//! The range lock: who may work on which blocks. First come, first served: an entry waits for every earlier entry that
//! it overlaps, granted or waiting, so overlapping work keeps the order in which it arrived.
//!
//! An entry counts the earlier entries it conflicts with; a release takes one from each later one and grants those
//! that reach zero. Entries are found through a hash of the regions they touch, so the cost is that of the neighbours
//! in the same regions, not of everything in flight. Entries that span many regions are few and kept in one list.
//! No allocation once the vectors have grown to the number of entries in flight.

use super::types::Range;
use smallvec::SmallVec;

/// Regions of the hash are this many blocks: 512 KiB of 4 KiB blocks, 64 KiB of 512 byte blocks. Larger regions make
/// neighbours collide, smaller ones make ordinary transfers touch many.
const REGION_SHIFT: u32 = 7;
/// Buckets of the hash. 1,024 in flight at random leave about one entry in each.
const BUCKETS: usize = 1024;
/// An entry that touches more regions is kept in the list of wide ones.
const REGIONS_MAX: u64 = 4;

/// Names one entry of a range lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockId(u32);

impl LockId {
    /// Names no entry; releasing it does nothing.
    pub(super) const NONE: LockId = LockId(u32::MAX);
}

struct Entry<T> {
    range: Range,
    order: u64,
    blockers: u32,
    owner: Option<T>,
}

pub struct RangeLock<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    buckets: Vec<Vec<u32>>,
    wide: Vec<u32>,
    order: u64,
}

fn regions(range: Range) -> (u64, u64) {
    (range.lba >> REGION_SHIFT, (range.end().max(range.lba + 1) - 1) >> REGION_SHIFT)
}

fn bucket(region: u64) -> usize {
    // Fibonacci hashing: neighbouring regions go to distant buckets, multiples of a power of two as well.
    (region.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - BUCKETS.trailing_zeros())) as usize
}

impl<T: Copy> Default for RangeLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> RangeLock<T> {
    pub fn new() -> RangeLock<T> {
        RangeLock {
            entries: Vec::new(),
            free: Vec::new(),
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            wide: Vec::new(),
            order: 0,
        }
    }

    /// Enters a range. `true`: it is held at once. Otherwise `owner` comes out of a later [`RangeLock::release`].
    pub fn enter(&mut self, range: Range, owner: T) -> (LockId, bool) {
        let order = self.order;
        self.order += 1;
        let mut blockers = 0;
        self.for_each_neighbour(range, |entry| {
            if entry.range.overlaps(range) {
                blockers += 1;
            }
        });
        let entry = Entry { range, order, blockers, owner: Some(owner) };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        let (first, last) = regions(range);
        if last - first >= REGIONS_MAX {
            self.wide.push(index);
        } else {
            for region in first..=last {
                self.buckets[bucket(region)].push(index);
            }
        }
        (LockId(index), blockers == 0)
    }

    /// Whether nothing that was entered overlaps the range.
    pub fn is_free(&self, range: Range) -> bool {
        let mut free = true;
        self.for_each_neighbour(range, |entry| free &= !entry.range.overlaps(range));
        free
    }

    /// Leaves: granted entries are pushed in the order in which they came.
    pub fn release(&mut self, id: LockId, granted: &mut SmallVec<[T; 8]>) {
        let Some(entry) = self.entries.get_mut(id.0 as usize) else { return };
        if entry.owner.take().is_none() {
            return;
        }
        let (range, order) = (entry.range, entry.order);
        let (first, last) = regions(range);
        if last - first >= REGIONS_MAX {
            self.wide.retain(|&index| index != id.0);
        } else {
            for region in first..=last {
                let list = &mut self.buckets[bucket(region)];
                if let Some(at) = list.iter().position(|&index| index == id.0) {
                    list.swap_remove(at);
                }
            }
        }
        self.free.push(id.0);
        let mut ready: SmallVec<[(u64, T); 8]> = SmallVec::new();
        self.for_each_neighbour_mut(range, |entry| {
            if entry.order > order && entry.range.overlaps(range) {
                entry.blockers -= 1;
                if entry.blockers == 0
                    && let Some(owner) = entry.owner
                {
                    ready.push((entry.order, owner));
                }
            }
        });
        ready.sort_unstable_by_key(|&(order, _)| order);
        granted.extend(ready.into_iter().map(|(_, owner)| owner));
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an entry found in the bucket of `region` is to be looked at there. A pair of neighbours may share
    /// several regions, and several regions a bucket; it is counted in the first region they share, and once.
    fn counts_here(range: Range, other: Range, region: u64) -> bool {
        let (first, last) = regions(range);
        let (other_first, other_last) = regions(other);
        region == first.max(other_first) && region <= last.min(other_last)
    }

    /// Whether the entry at `at` of a bucket stands further ahead as well: several of its regions may share the bucket.
    fn was_seen(entry: Range, list: &[u32], at: usize) -> bool {
        let (first, last) = regions(entry);
        first != last && list[..at].contains(&list[at])
    }

    fn for_each_neighbour(&self, range: Range, mut look: impl FnMut(&Entry<T>)) {
        let (first, last) = regions(range);
        if last - first >= REGIONS_MAX {
            self.entries.iter().filter(|entry| entry.owner.is_some()).for_each(look);
            return;
        }
        for &index in &self.wide {
            look(&self.entries[index as usize]);
        }
        for region in first..=last {
            for (at, &index) in self.buckets[bucket(region)].iter().enumerate() {
                let entry = &self.entries[index as usize];
                let list = &self.buckets[bucket(region)];
                if Self::counts_here(range, entry.range, region) && !Self::was_seen(entry.range, list, at) {
                    look(entry);
                }
            }
        }
    }

    fn for_each_neighbour_mut(&mut self, range: Range, mut look: impl FnMut(&mut Entry<T>)) {
        let (first, last) = regions(range);
        if last - first >= REGIONS_MAX {
            self.entries.iter_mut().filter(|entry| entry.owner.is_some()).for_each(look);
            return;
        }
        for &index in &self.wide {
            look(&mut self.entries[index as usize]);
        }
        for region in first..=last {
            let list = &self.buckets[bucket(region)];
            for (at, &index) in list.iter().enumerate() {
                let entry = &mut self.entries[index as usize];
                if Self::counts_here(range, entry.range, region) && !Self::was_seen(entry.range, list, at) {
                    look(entry);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn release(lock: &mut RangeLock<u32>, id: LockId) -> Vec<u32> {
        let mut granted = SmallVec::new();
        lock.release(id, &mut granted);
        granted.to_vec()
    }

    #[test]
    fn overlapping_entries_are_granted_in_the_order_of_arrival() {
        let mut lock = RangeLock::new();
        let (a, held) = lock.enter(Range::new(0, 8), 0);
        assert!(held);
        let (b, held) = lock.enter(Range::new(4, 8), 1);
        assert!(!held);
        let (c, held) = lock.enter(Range::new(10, 4), 2);
        assert!(!held, "it must not overtake the waiting entry that it overlaps");
        let (_, held) = lock.enter(Range::new(100, 4), 3);
        assert!(held);
        assert_eq!(release(&mut lock, a), [1]);
        assert_eq!(release(&mut lock, b), [2]);
        assert!(release(&mut lock, c).is_empty());
        assert!(release(&mut lock, c).is_empty(), "releasing twice does nothing");
        assert_eq!(lock.len(), 1);
    }

    proptest! {
        #[test]
        fn the_lock_agrees_with_a_list_that_compares_everything(
            steps in proptest::collection::vec((any::<bool>(), 0u64..4000, 1u32..1200, any::<u16>()), 1..200)
        ) {
            let mut lock = RangeLock::new();
            // (owner, range, id, held) in the order of arrival
            let mut model: Vec<(u32, Range, LockId, bool)> = Vec::new();
            for (number, (enter, lba, blocks, pick)) in steps.into_iter().enumerate() {
                if enter || model.is_empty() {
                    let range = Range::new(lba, if pick % 3 == 0 { blocks } else { blocks % 16 + 1 });
                    let free = model.iter().all(|entry| !entry.1.overlaps(range));
                    prop_assert_eq!(lock.is_free(range), free);
                    let (id, held) = lock.enter(range, number as u32);
                    prop_assert_eq!(held, free);
                    model.push((number as u32, range, id, held));
                } else {
                    let holders: Vec<usize> = (0..model.len()).filter(|&at| model[at].3).collect();
                    let gone = model.remove(holders[usize::from(pick) % holders.len()]);
                    let granted = release(&mut lock, gone.2);
                    let mut expected = Vec::new();
                    for at in 0..model.len() {
                        if !model[at].3 && model[..at].iter().all(|earlier| !earlier.1.overlaps(model[at].1)) {
                            expected.push(model[at].0);
                        }
                    }
                    for entry in &mut model {
                        entry.3 |= expected.contains(&entry.0);
                    }
                    prop_assert_eq!(granted, expected);
                }
                prop_assert_eq!(lock.len(), model.len());
            }
        }
    }
}
