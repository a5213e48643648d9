//! The journal: the disk buffer's originals on a disk, so that a secondary that loses power finds the way back to its last
//! committed checkpoint by itself.
//!
//! Invariants. No in-place write of an uncommitted epoch goes to the secondary's disk before its originals are durable
//! here, or before it is durable here that they are not (*lost*). What was needed to go back to the last committed epoch is
//! never overwritten. At a start, either everything that is needed is there and whole, or the node says that it needs a
//! sync; a batch whose write was cut off by the loss of power is not needed, since nothing was written in place for it.
//!
//! * `format`: the bytes, which `docs/journal-format.md` draws. * `area`: one reactor's ring of batches, without I/O.
//! * `blocking`: disks for those who may wait: a start rolls back before anything else goes on.
//! * `writer`: carries an area out on its reactor; records that come while a write is under way share the next one.
//! * `replay`: what a start finds, and the roll-back; over any disks. * `store`: opening, checking and formatting, for the
//!   control thread, which may block.

mod area;
mod blocking;
mod format;
#[cfg(test)]
mod group_model;
#[cfg(test)]
mod group_tests;
mod replay;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub use area::Request;
pub use replay::{RollBack, Unrecoverable};
pub use store::{Journal, JournalError, JournalOptions, Opened};
pub use writer::{Token, User, Writer};
