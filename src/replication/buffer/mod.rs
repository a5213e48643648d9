//! The disk buffer of one volume's stripes on their owning reactor: what the secondary keeps in memory so that it
//! can go back to the last checkpoint (undo) and let its own VM write meanwhile (overlay).
//!
//! Invariants. One undo layer per uncommitted epoch, oldest first, each holding what its granules contained when its
//! epoch began. A granule is in a layer at most once, and once in an undo layer its content never changes. The view of
//! the secondary's VM is overlay → undo (oldest) → disk. Commit, abort and failover move layers and touch no granule;
//! memory goes back later, in bounded steps ([`DiskBuffer::recycle_step`]). Pages that a reader still holds stay alive
//! by their count and are never written. Layers of committed epochs may be kept ([`DiskBuffer::keep_through`]): they lead
//! back to earlier checkpoints, have a quota of their own, and no part in the view.
//!
//! Called by the owning reactor's thread only; nothing here blocks, does I/O or looks at a clock. Addresses are bytes of
//! the volume, granules are numbered over the whole volume.

mod disk_buffer;
mod granules;
mod history;
pub mod index;
mod layer;
mod overlay;
mod quota;
mod view;

pub use disk_buffer::{BufferUsage, DiskBuffer};
pub use layer::{OVERLAY_CHUNK_BYTES, PageSource, ReactorPages, UNDO_CHUNK_BYTES};
pub use overlay::{Fill, OverlayData};
pub use quota::{Claim, Quota};
pub use view::{Content, Map, Piece, View};

use super::Epoch;

/// The unit of preserving, by number: byte offset / granule size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granule(pub u64);

/// Smallest granule: the smallest block.
pub const GRANULE_BYTES_MIN: u32 = 512;
/// Largest granule: a partial write fills one of these.
pub const GRANULE_BYTES_MAX: u32 = 1 << 20;

/// Why the buffer did not take something. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    #[error("the disk buffer is at its limit: checkpoint, or raise buffer_limit_mb")]
    Full,
    #[error("no data buffers left on this reactor: wait, or start the node with more --memory")]
    NoMemory,
    #[error("epoch {0} has no undo layer: it was committed or dropped meanwhile, or never opened")]
    NoLayer(Epoch),
    #[error("epoch {0} cannot be opened: epochs only rise")]
    EpochOrder(Epoch),
    #[error("a partial write needs the content of granule {0:?} first")]
    FillMissing(Granule),
    #[error("the range is empty, or outside the volume")]
    OutOfRange,
    #[error("granule_kb must be a power of two from 0.5 to 1024")]
    GranuleSize,
}

impl From<index::IndexFull> for BufferError {
    fn from(_: index::IndexFull) -> BufferError {
        BufferError::Full
    }
}

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod tests;
