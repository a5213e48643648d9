//! A group's durable record: identity, role, generation, the last committed epoch.
//!
//! Invariants: the file has two slots that are written in turn, so that a crash in the middle of a write leaves the
//! other one whole; the valid slot with the higher sequence counts; a record counts as written only when the device
//! said that it is durable. `docs/metadata-format.md` draws the slots byte by byte.
//!
//! [`Store::open`] is for threads that may block; writing goes through the calling reactor's ring ([`Writer`]).

mod record;
mod slots;
mod store;

pub use record::{FileRole, Record, RecordError, SLOT_BYTES, VolumeRecord};
pub use slots::Slots;
pub use store::{MetadataError, Store, Writer, WriterOwner};
