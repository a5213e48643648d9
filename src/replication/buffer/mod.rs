//! The disk buffer of one volume's stripes on their owning reactor: what the secondary keeps in memory so that it
//! can go back to the last checkpoint (undo), let its own VM write meanwhile (overlay), and stand in for a disk that
//! does not answer (redo).
//!
//! Invariants. One undo layer per uncommitted epoch, oldest first, each holding what its granules contained when its
//! epoch began. A granule is in a layer at most once, and once in an undo layer its content never changes. The view of
//! the secondary's VM is overlay → undo (oldest) → committed redo → disk. Commit, abort and failover swap layers
//! and touch no granule; memory goes back later, in bounded steps. Pages that a reader
//! still holds stay alive by their count and are never written.
//!
//! Called by the owning reactor's thread only; nothing here blocks, does I/O or looks at a clock.

pub mod index;
