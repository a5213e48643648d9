//! A reactor's private buffer pool: size classes carved from the arena's chunks.
//!
//! Invariants: `alloc` is called on the owning thread only (`Pool` is not `Send` once in use); a buffer may be
//! dropped on any thread and comes back through the home's lock-free queue; a segment is in exactly one of: a free
//! list, the return queue, or use. No lock and no system call per buffer; a lock only per 2 MiB chunk.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam_queue::SegQueue;

use super::arena::{Arena, CHUNK_BYTES};
use super::buf::{Buf, Home as SegmentHome, Segment};

/// Smallest class: one ordinary page, which is also the alignment of every buffer.
const SMALLEST_SHIFT: u32 = 12;
const LARGEST_SHIFT: u32 = CHUNK_BYTES.trailing_zeros();
/// Classes of 4 KiB, 8 KiB … 2 MiB.
pub const CLASSES: usize = (LARGEST_SHIFT - SMALLEST_SHIFT + 1) as usize;

thread_local! {
    /// The id of the pool that this thread owns, 0 for none.
    static OWNED: Cell<u64> = const { Cell::new(0) };
    static FREE: RefCell<FreeLists> = const { RefCell::new(FreeLists { lists: [const { Vec::new() }; CLASSES] }) };
}

struct FreeLists {
    lists: [Vec<NonNull<Segment>>; CLASSES],
}

struct Returned(NonNull<Segment>, u8);
// SAFETY: a segment in the queue belongs to nobody else; segments live for ever.
unsafe impl Send for Returned {}

/// The part of a pool that other threads may touch: where buffers come back.
pub(super) struct Home {
    id: u64,
    returns: SegQueue<Returned>,
}

impl Home {
    pub(super) fn give_back(&'static self, segment: NonNull<Segment>, class: u8) {
        let mine = OWNED.try_with(|owned| owned.get() == self.id).unwrap_or(false);
        let kept = mine
            && FREE
                .try_with(|free| {
                    if let Ok(mut free) = free.try_borrow_mut() {
                        free.lists[class as usize].push(segment);
                        true
                    } else {
                        false
                    }
                })
                .unwrap_or(false);
        if !kept {
            self.returns.push(Returned(segment, class));
        }
    }
}

/// Counters of one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    pub chunks: u64,
    /// Allocations that found no memory and had to wait.
    pub exhausted: u64,
}

/// Shared counters, written by the owner and read by the control thread.
#[derive(Default)]
pub struct PoolCounters {
    chunks: AtomicU64,
    exhausted: AtomicU64,
}

impl PoolCounters {
    pub fn snapshot(&self) -> PoolStats {
        PoolStats {
            chunks: self.chunks.load(Ordering::Relaxed),
            exhausted: self.exhausted.load(Ordering::Relaxed),
        }
    }
}

/// A thread's pool. At most one per thread.
pub struct Pool {
    arena: &'static Arena,
    home: &'static Home,
    counters: std::sync::Arc<PoolCounters>,
    /// Chunks by class, so that a chunk whose buffers are all free can serve another class.
    chunks: RefCell<Vec<(u8, NonNull<[Segment]>)>>,
    _owned_by_this_thread: PhantomData<*mut ()>,
}

impl Pool {
    /// Makes the calling thread's pool.
    pub fn new(arena: &'static Arena) -> Pool {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        OWNED.with(|owned| {
            debug_assert_eq!(owned.get(), 0, "one pool per thread");
            owned.set(id);
        });
        let home = Box::leak(Box::new(Home { id, returns: SegQueue::new() }));
        let chunks = RefCell::new(Vec::new());
        Pool { arena, home, counters: Default::default(), chunks, _owned_by_this_thread: PhantomData }
    }

    pub fn counters(&self) -> std::sync::Arc<PoolCounters> {
        self.counters.clone()
    }

    /// One contiguous buffer of `len` bytes, contents undefined; `None` when the memory limit is reached (wait for
    /// buffers to come back) or `len` is 0 or above 2 MiB.
    pub fn alloc(&self, len: usize) -> Option<Buf> {
        if len == 0 || len > CHUNK_BYTES {
            return None;
        }
        let shift = len.next_power_of_two().trailing_zeros().max(SMALLEST_SHIFT);
        let class = (shift - SMALLEST_SHIFT) as usize;
        let segment = FREE.with(|free| {
            let free = &mut *free.borrow_mut();
            if let Some(segment) = free.lists[class].pop() {
                return Some(segment);
            }
            while let Some(Returned(segment, class)) = self.home.returns.pop() {
                free.lists[class as usize].push(segment);
            }
            if free.lists[class].is_empty() && !self.carve(free, class) {
                self.counters.exhausted.fetch_add(1, Ordering::Relaxed);
            }
            free.lists[class].pop()
        })?;
        Some(Buf::first(segment, len))
    }

    /// Gives `class` the segments of one more chunk: a new one, or one whose buffers are all free.
    fn carve(&self, free: &mut FreeLists, class: usize) -> bool {
        let size = 1usize << (SMALLEST_SHIFT + class as u32);
        let (base, region) = match self.arena.take() {
            Some(chunk) => (chunk.base, chunk.region),
            None => match self.reclaim(free, class) {
                Some(found) => found,
                None => return false,
            },
        };
        let segments: Vec<Segment> = (0..CHUNK_BYTES / size)
            .map(|index| Segment {
                refs: AtomicU32::new(0),
                // SAFETY: `index * size` is inside the chunk.
                base: unsafe { base.add(index * size) },
                size: size as u32,
                region,
                home: SegmentHome::Pool { home: self.home, class: class as u8 },
            })
            .collect();
        // Segments stay where they are until their chunk is reclaimed: handles point at them.
        let segments: &'static mut [Segment] = Vec::leak(segments);
        free.lists[class].extend(segments.iter().rev().map(NonNull::from));
        self.chunks.borrow_mut().push((class as u8, NonNull::from(segments)));
        self.counters.chunks.store(self.chunks.borrow().len() as u64, Ordering::Relaxed);
        true
    }

    /// Takes a chunk away from another class that uses none of its segments. A slow path: memory is at its limit.
    fn reclaim(&self, free: &mut FreeLists, wanted: usize) -> Option<(NonNull<u8>, u32)> {
        let mut chunks = self.chunks.borrow_mut();
        let idle = |class: u8, segments: NonNull<[Segment]>| {
            let listed = &free.lists[class as usize];
            listed.len() >= segments.len()
                && listed.iter().filter(|s| inside(segments, **s)).count() == segments.len()
        };
        let index =
            chunks.iter().position(|&(class, segments)| class as usize != wanted && idle(class, segments))?;
        let (class, segments) = chunks.swap_remove(index);
        free.lists[class as usize].retain(|s| !inside(segments, *s));
        // SAFETY: all of them were on the free list, so no handle points at them; they were leaked in `carve`.
        let segments = unsafe { Box::from_raw(segments.as_ptr()) };
        let first = segments.first()?;
        Some((first.base, first.region))
    }
}

/// Whether `segment` is one of `segments`.
fn inside(segments: NonNull<[Segment]>, segment: NonNull<Segment>) -> bool {
    let first = segments.as_ptr() as *const Segment as usize;
    let at = segment.as_ptr() as usize;
    at >= first && at < first + segments.len() * size_of::<Segment>()
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Buffers that come back later go to the queue of a pool that nobody owns any more: memory of a thread
        // that ended stays taken, which happens only when the node ends.
        let _ = OWNED.try_with(|owned| owned.set(0));
        let _ = FREE.try_with(|free| free.borrow_mut().lists.iter_mut().for_each(Vec::clear));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_return_home_also_from_another_thread() {
        let pool = Pool::new(Arena::leak(CHUNK_BYTES));
        let mut held: Vec<Buf> = std::iter::from_fn(|| pool.alloc(4096)).collect();
        assert_eq!(held.len(), CHUNK_BYTES / 4096);
        assert_eq!(pool.counters().snapshot().exhausted, 1);
        let moved = held.split_off(10);
        std::thread::spawn(move || drop(moved)).join().expect("thread");
        assert!(pool.alloc(4096).is_some());
        drop(held);
    }

    #[test]
    fn a_chunk_that_is_wholly_free_serves_another_class() {
        let pool = Pool::new(Arena::leak(CHUNK_BYTES));
        let small = pool.alloc(512).expect("first");
        assert!(pool.alloc(CHUNK_BYTES).is_none());
        drop(small);
        let large = pool.alloc(CHUNK_BYTES).expect("reclaimed");
        assert_eq!(large.len(), CHUNK_BYTES);
        drop(large);
        assert!(pool.alloc(128 << 10).is_some());
    }

    #[test]
    fn a_length_of_nothing_or_above_a_chunk_is_refused() {
        let pool = Pool::new(Arena::leak(CHUNK_BYTES));
        assert!(pool.alloc(0).is_none());
        assert!(pool.alloc(CHUNK_BYTES + 1).is_none());
    }
}
