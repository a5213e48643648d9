//! The numbers of replication, each a type of its own, so that mixing them does not compile.

use std::fmt;

/// The writes between two checkpoints; numbered, never merged, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing token of a group: rises at every promotion; a message of an older one is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names the beginning that two disks have in common: the session that last made them equal, in full or on the caller's
/// word. A primary's dirty map says what a disk of the same lineage lacks, and nothing about any other. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lineage(pub u64);

impl Lineage {
    /// Whether the map of the one holds for the disk of the other.
    pub fn is_shared_with(self, other: Lineage) -> bool {
        self.0 != 0 && self == other
    }
}

/// Older names that a node remembers: as many times as a pair can part, without a peer that was away all the while being
/// taken for a stranger.
pub const NAMES_KEPT: usize = 8;

/// The names that led to a [`Lineage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Past {
    /// What the peer's disk was equal to when this node went on without it, or began to copy to it; the marks are relative
    /// to it. 0: the peer has the present name.
    pub base: Lineage,
    /// Older names, the newest first.
    pub history: [Lineage; NAMES_KEPT],
}

/// A message's place in one data connection, counted from 1 without gaps; 0 is "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    pub fn next(self) -> Sequence {
        Sequence(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
