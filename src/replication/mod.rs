//! Replication: groups of volumes, epochs, the disk buffer, the link between two nodes.
//!
//! `core` holds the protocol as pure state machines; `buffer` the secondary's undo and overlay maps; `link` the wire
//! format and the connections. Everything of a volume's stripe belongs to one reactor and is used by its thread only.

pub mod buffer;
pub mod core;
pub mod group;
pub mod journal;
pub mod link;
pub mod metadata;
pub mod volume;
mod words;

pub use words::{Epoch, Generation, Lineage, NAMES_KEPT, Past, Sequence};
