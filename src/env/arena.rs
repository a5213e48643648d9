//! The process's data memory: regions of huge pages, handed out in chunks of 2 MiB.
//!
//! Invariants: never more than `limit_bytes`; chunks that were handed out stay mapped for the life of the arena,
//! which pools keep alive for ever. Any thread; a lock is taken per chunk, never per buffer.

use std::ptr::NonNull;
use std::sync::Mutex;

use super::mapping::{Mapping, PageKind};

/// The unit that pools take: one 2 MiB huge page.
pub const CHUNK_BYTES: usize = 2 << 20;

/// Regions grow by this much at a time: small enough to start quickly, large enough that a node with 64 GiB of
/// buffers needs few enough regions to register each of them with a ring.
const REGION_BYTES: usize = 64 << 20;

/// The most regions an arena has: also the size of a ring's table of registered buffers.
pub const MAX_REGIONS: usize = 1024;

struct State {
    regions: Vec<Mapping>,
    /// Chunks of the newest region that nobody took yet.
    fresh: Vec<Chunk>,
    mapped_bytes: usize,
    taken_bytes: usize,
    failed: bool,
}

/// Memory for data buffers.
pub struct Arena {
    state: Mutex<State>,
    limit_bytes: usize,
    region_bytes: usize,
}

/// 2 MiB of an arena.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    pub(super) base: NonNull<u8>,
    pub(super) region: u32,
}

// SAFETY: a chunk is an address in an arena that lives for ever.
unsafe impl Send for Chunk {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaStats {
    pub limit_bytes: usize,
    pub mapped_bytes: usize,
    pub taken_bytes: usize,
    /// Pages of the first region; `None` before anything was mapped.
    pub page_kind: Option<PageKind>,
}

impl Arena {
    /// An arena of at most `limit_bytes`, nothing mapped yet. It is never freed: buffers point into it.
    pub fn leak(limit_bytes: usize) -> &'static Arena {
        let limit_bytes = limit_bytes.next_multiple_of(CHUNK_BYTES).max(CHUNK_BYTES);
        let region_bytes = REGION_BYTES.max((limit_bytes / (MAX_REGIONS / 2)).next_multiple_of(CHUNK_BYTES));
        let state =
            State { regions: Vec::new(), fresh: Vec::new(), mapped_bytes: 0, taken_bytes: 0, failed: false };
        Box::leak(Box::new(Arena { state: Mutex::new(state), limit_bytes, region_bytes }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One more chunk, or `None` at the limit or when the machine has no memory.
    pub(super) fn take(&self) -> Option<Chunk> {
        let mut state = self.state();
        if state.fresh.is_empty() {
            self.grow(&mut state)?;
        }
        let chunk = state.fresh.pop()?;
        state.taken_bytes += CHUNK_BYTES;
        Some(chunk)
    }

    fn grow(&self, state: &mut State) -> Option<()> {
        let len = self.region_bytes.min(self.limit_bytes - state.mapped_bytes);
        if len == 0 || state.regions.len() == MAX_REGIONS || state.failed {
            return None;
        }
        let mapping = match Mapping::new(len) {
            Ok(mapping) => mapping,
            Err(error) => {
                state.failed = true;
                tracing::error!("no memory for data buffers after {} MiB: {error}", state.mapped_bytes >> 20);
                return None;
            }
        };
        let region = state.regions.len() as u32;
        for index in (0..len / CHUNK_BYTES).rev() {
            // SAFETY: `index` chunks lie inside the mapping just made.
            let base = unsafe { mapping.base().add(index * CHUNK_BYTES) };
            state.fresh.push(Chunk { base, region });
        }
        state.mapped_bytes += len;
        state.regions.push(mapping);
        Some(())
    }

    /// Address and length of a region, for registering it with a ring or device.
    pub fn region(&self, index: u32) -> Option<(*mut u8, usize)> {
        self.state().regions.get(index as usize).map(|m| (m.base().as_ptr(), m.len()))
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub fn stats(&self) -> ArenaStats {
        let state = self.state();
        ArenaStats {
            limit_bytes: self.limit_bytes,
            mapped_bytes: state.mapped_bytes,
            taken_bytes: state.taken_bytes,
            page_kind: state.regions.first().map(Mapping::page_kind),
        }
    }
}
