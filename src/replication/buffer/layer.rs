//! One layer: granules and their pages, for one epoch's originals or for the overlay.
//!
//! Invariants: pages are cut from chunks in order and belong to the layer until it is dropped, so that dropping a layer
//! is dropping its chunks. A page that may be in use outside (its chunk has handles other than the layer's own) is never
//! written: what replaces it gets another page.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::index::{Index, IndexFull, LeafPool, PAGES_MAX, Place};
use super::quota::{Claim, Quota};
use super::{BufferError, Granule};
use crate::env::Buf;

/// Where chunks come from: the reactor's pool, or the heap in tests.
pub trait PageSource {
    /// A contiguous buffer, contents undefined. `None`: no memory now; what is in flight gives some back.
    fn chunk(&self, len: usize) -> Option<Buf>;

    /// A chunk is not needed any more, except perhaps by readers of its pages.
    fn give_back(&self, chunk: Buf) {
        drop(chunk);
    }
}

thread_local! {
    /// Bytes of chunks that this reactor's buffers have from its pool.
    static FROM_POOL: Cell<usize> = const { Cell::new(0) };
}

/// Pages of the calling reactor's pool, up to half of its share, and of the heap beyond: were the pool empty until the
/// next commit, nothing could be received that the commit waits for.
pub struct ReactorPages;

impl PageSource for ReactorPages {
    fn chunk(&self, len: usize) -> Option<Buf> {
        let share = crate::reactor::memory_limit() / crate::reactor::count() / 2;
        let taken = FROM_POOL.get() + len;
        let pooled = if taken <= share { crate::reactor::alloc(len) } else { None };
        if pooled.is_some() {
            FROM_POOL.set(taken);
        }
        pooled.or_else(|| Buf::heap(len))
    }

    fn give_back(&self, chunk: Buf) {
        if chunk.region().is_some() {
            FROM_POOL.set(FROM_POOL.get().saturating_sub(chunk.len()));
        }
    }
}

/// Largest chunk of originals: a hugepage, so that 256 MiB are dropped in 128 steps.
pub const UNDO_CHUNK_BYTES: usize = 2 << 20;
/// Largest chunk of the overlay: small, because one reader of a chunk keeps all of its pages from being rewritten.
pub const OVERLAY_CHUNK_BYTES: usize = 64 << 10;
/// Smallest chunk: what a layer begins with, doubled until the largest is reached, so that many nearly empty layers
/// (a volume has one on each reactor) cost little.
const CHUNK_BYTES_MIN: usize = 64 << 10;

/// Near the limit chunks get smaller, down to what the pools hand out.
const CHUNK_BYTES_FLOOR: usize = 4096;

struct Chunk {
    buf: Buf,
    pages: u32,
}

/// Consecutive pages of one chunk. Numbers only: a handle would make the chunk look used.
#[derive(Clone, Copy)]
pub(super) struct PageRun {
    pub(super) first: u32,
    pub(super) count: u32,
}

pub(super) type PageRuns = SmallVec<[PageRun; 2]>;

/// What a layer takes memory from.
pub(super) struct Supply {
    pub(super) source: Rc<dyn PageSource>,
    pub(super) quota: Arc<Quota>,
    /// For what is kept of earlier checkpoints.
    pub(super) history: Arc<Quota>,
    pub(super) leaves: LeafPool,
}

impl Supply {
    fn quota_of(&self, claim: Claim) -> &Quota {
        match claim {
            Claim::History => &self.history,
            Claim::Undo | Claim::Overlay => &self.quota,
        }
    }
}

pub(super) struct Layer {
    index: Index,
    chunks: Vec<Chunk>,
    /// The next page of the last chunk.
    next: u32,
    /// Pages whose content was replaced; usable once their chunk has no other user.
    free: Vec<u32>,
    /// A bit for each region of the volume that may have granules here: the layer is hashed, and this finds the next
    /// granule in address order without sorting it.
    regions: Vec<Cell<u64>>,
    region_shift: u32,
    granule_shift: u32,
    /// Pages of a largest chunk, as a shift.
    chunk_shift: u32,
    claim: Claim,
    /// Pages that hold a granule or are reserved for one.
    pages_used: u64,
    chunk_bytes: u64,
}

impl Layer {
    pub(super) fn new(claim: Claim, granule_shift: u32, region_shift: u32) -> Layer {
        let largest = match claim {
            Claim::Undo | Claim::History => UNDO_CHUNK_BYTES,
            Claim::Overlay => OVERLAY_CHUNK_BYTES,
        };
        let chunk_shift = largest.trailing_zeros().saturating_sub(granule_shift);
        Layer {
            index: Index::default(),
            chunks: Vec::new(),
            next: 0,
            free: Vec::new(),
            regions: Vec::new(),
            region_shift,
            granule_shift,
            chunk_shift,
            claim,
            pages_used: 0,
            chunk_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub(super) fn get(&self, granule: Granule) -> Option<Place> {
        self.index.get(granule.0)
    }

    pub(super) fn granule_bytes(&self) -> usize {
        1 << self.granule_shift
    }

    /// Bytes of pages in use.
    pub(super) fn data_bytes(&self) -> u64 {
        self.pages_used << self.granule_shift
    }

    pub(super) fn claim(&self) -> Claim {
        self.claim
    }

    /// Counts what the layer holds, and takes from now on, for another purpose. Nothing is refused.
    pub(super) fn count_as(&mut self, claim: Claim, supply: &Supply) {
        supply.quota_of(claim).add(self.chunk_bytes);
        supply.quota_of(self.claim).give_back(self.chunk_bytes);
        self.claim = claim;
    }

    /// Bytes of chunks held.
    pub(super) fn held_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    pub(super) fn bookkeeping_bytes(&self) -> u64 {
        let lists = self.chunks.capacity() * size_of::<Chunk>()
            + self.free.capacity() * size_of::<u32>()
            + self.regions.capacity() * size_of::<u64>();
        self.index.bytes() + (lists + size_of::<Layer>()) as u64
    }

    fn chunk_of(&self, page: u32) -> Option<(&Chunk, u32)> {
        let chunk = self.chunks.get((page >> self.chunk_shift) as usize)?;
        Some((chunk, page & ((1 << self.chunk_shift) - 1)))
    }

    /// `count` consecutive pages as one buffer. They must lie in one chunk: see [`Layer::follows`].
    pub(super) fn pages(&self, first: u32, count: u32) -> Option<Buf> {
        let (chunk, page) = self.chunk_of(first)?;
        let (offset, len) = ((page as usize) << self.granule_shift, (count as usize) << self.granule_shift);
        (page + count <= chunk.pages).then(|| chunk.buf.slice(offset, len))
    }

    /// Whether `next` lies right behind `page` in memory.
    pub(super) fn follows(&self, page: u32, next: u32) -> bool {
        next == page + 1 && page >> self.chunk_shift == next >> self.chunk_shift
    }

    /// Whether nobody outside this layer can see the page, so that it may be written.
    fn is_private(&self, page: u32) -> bool {
        self.chunk_of(page).is_some_and(|(chunk, _)| chunk.buf.is_unique())
    }

    /// Takes `count` pages, contiguous where the chunks allow it. All or nothing.
    pub(super) fn reserve(&mut self, supply: &Supply, count: u32) -> Result<PageRuns, BufferError> {
        let mut runs = PageRuns::new();
        let mut left = count;
        while left > 0 {
            let single = if left == 1 { self.reuse() } else { None };
            match single.or_else(|| self.bump(left)) {
                Some(run) => {
                    left -= run.count;
                    runs.push(run);
                }
                None => {
                    if let Err(error) = self.grow(supply, left) {
                        self.release(&runs);
                        return Err(error);
                    }
                }
            }
        }
        Ok(runs)
    }

    /// A page that was in use before, if nobody looks at it any more.
    fn reuse(&mut self) -> Option<PageRun> {
        let first = *self.free.last()?;
        if !self.is_private(first) {
            return None;
        }
        self.free.pop();
        self.pages_used += 1;
        Some(PageRun { first, count: 1 })
    }

    /// The next pages of the last chunk, at most `count`.
    fn bump(&mut self, count: u32) -> Option<PageRun> {
        let chunk = self.chunks.last()?;
        let count = count.min(chunk.pages - self.next);
        if count == 0 {
            return None;
        }
        let first = ((self.chunks.len() as u32 - 1) << self.chunk_shift) + self.next;
        self.next += count;
        self.pages_used += u64::from(count);
        Some(PageRun { first, count })
    }

    /// Takes another chunk: for `count` pages, or as many as quota and memory allow.
    fn grow(&mut self, supply: &Supply, count: u32) -> Result<(), BufferError> {
        if (self.chunks.len() as u64 + 1) << self.chunk_shift > u64::from(PAGES_MAX) {
            return Err(BufferError::Full);
        }
        let smallest = CHUNK_BYTES_MIN.max(self.granule_bytes());
        let largest = self.granule_bytes() << self.chunk_shift;
        let doubled = self.chunks.last().map_or(smallest, |last| last.buf.len() * 2);
        let wanted = ((count as usize) << self.granule_shift).next_power_of_two();
        let mut bytes = doubled.max(wanted).clamp(smallest.min(largest), largest);
        let mut error = BufferError::Full;
        loop {
            let quota = supply.quota_of(self.claim);
            if quota.take(self.claim, bytes as u64) {
                if let Some(buf) = supply.source.chunk(bytes) {
                    let pages = (bytes >> self.granule_shift) as u32;
                    self.chunks.push(Chunk { buf, pages });
                    self.chunk_bytes += bytes as u64;
                    self.next = 0;
                    return Ok(());
                }
                quota.give_back(bytes as u64);
                error = BufferError::NoMemory;
            }
            if bytes / 2 < self.granule_bytes().max(CHUNK_BYTES_FLOOR) {
                return Err(error);
            }
            bytes /= 2;
        }
    }

    /// Gives reserved pages back that hold no granule.
    pub(super) fn release(&mut self, runs: &[PageRun]) {
        for run in runs {
            self.free_pages(run.first, run.count);
        }
    }

    pub(super) fn free_pages(&mut self, first: u32, count: u32) {
        self.free.extend((first..first + count).rev());
        self.pages_used -= u64::from(count);
    }

    /// Puts the granule at `place`; a page that it had before becomes free.
    pub(super) fn put(
        &mut self,
        supply: &mut Supply,
        granule: Granule,
        place: Place,
    ) -> Result<(), IndexFull> {
        if let Some(Place::Page(old)) = self.index.insert(&mut supply.leaves, granule.0, place)? {
            self.free_pages(old, 1);
        }
        let region = granule.0 >> self.region_shift;
        let (word, bit) = ((region / 64) as usize, 1 << (region % 64));
        if word >= self.regions.len() {
            self.regions.resize(word + 1, Cell::new(0));
        }
        self.regions[word].set(self.regions[word].get() | bit);
        Ok(())
    }

    /// The first region from `region` on that may have granules.
    pub(super) fn next_region(&self, region: u64) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let first = (region / 64) as usize;
        let words = self.regions.iter().enumerate().skip(first).map(|(at, word)| {
            let from = if at == first { !0 << (region % 64) } else { !0 };
            (at as u64, word.get() & from)
        });
        words
            .into_iter()
            .find(|(_, bits)| *bits != 0)
            .map(|(at, bits)| at * 64 + u64::from(bits.trailing_zeros()))
    }

    /// The region turned out to have none.
    pub(super) fn clear_region(&self, region: u64) {
        if let Some(word) = self.regions.get((region / 64) as usize) {
            word.set(word.get() & !(1 << (region % 64)));
        }
    }

    /// The granule's page for writing in place: its own if nobody else can see it.
    pub(super) fn private_page(&self, granule: Granule) -> Option<Buf> {
        match self.get(granule)? {
            Place::Page(page) if self.is_private(page) => self.pages(page, 1),
            _ => None,
        }
    }

    /// Makes the granule absent.
    pub(super) fn forget(&mut self, granule: Granule) -> bool {
        match self.index.forget(granule.0) {
            Some(Place::Page(page)) => {
                self.free_pages(page, 1);
                true
            }
            Some(Place::Zero) => true,
            None => false,
        }
    }

    /// Gives memory back, at most `budget` times 2 MiB, or as many leaves. `true` when nothing is left.
    pub(super) fn recycle(&mut self, supply: &mut Supply, budget: usize) -> bool {
        let largest = self.granule_bytes() << self.chunk_shift;
        for _ in 0..budget.saturating_mul(UNDO_CHUNK_BYTES / largest) {
            let Some(chunk) = self.chunks.pop() else {
                self.free = Vec::new();
                self.regions = Vec::new();
                self.pages_used = 0;
                return self.index.recycle(&mut supply.leaves, budget);
            };
            self.chunk_bytes -= chunk.buf.len() as u64;
            supply.quota_of(self.claim).give_back(chunk.buf.len() as u64);
            supply.source.give_back(chunk.buf);
        }
        false
    }
}
