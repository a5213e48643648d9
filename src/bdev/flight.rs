//! What a channel knows of an I/O that has not ended.

use std::rc::Rc;

use super::io::{Io, IoOwner, Op};

/// Names an I/O on its channel; never reused within a channel's first 2^32 I/Os.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IoId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl IoId {
    pub(super) const NONE: IoId = IoId { index: u32::MAX, generation: 0 };
}

/// Where an I/O is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// In one of the layer's queues.
    Waiting,
    AtDevice,
    /// The layer ended it early; the device still has the box and the buffers.
    Orphaned,
}

/// Kept beside the box, because a device that hangs keeps the box.
pub(super) struct Flight {
    pub(super) owner: Rc<dyn IoOwner>,
    pub(super) tag: u64,
    pub(super) lba: u64,
    pub(super) num_blocks: u64,
    pub(super) start_ns: u64,
    pub(super) generation: u32,
    pub(super) op: Op,
    pub(super) stage: Stage,
    /// A part of an emulated I/O: neither counted nor held up.
    pub(super) internal: bool,
}

impl Flight {
    /// A fresh box that tells the owner the end of an I/O whose own box is not to be had.
    pub(super) fn stand_in(&self) -> Box<Io> {
        let mut io = Io::new(self.op);
        (io.lba, io.num_blocks, io.tag) = (self.lba, self.num_blocks, self.tag);
        io
    }
}

/// A range of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) lba: u64,
    pub(super) num_blocks: u64,
}

impl Range {
    pub(super) fn overlaps(&self, lba: u64, num_blocks: u64) -> bool {
        self.lba < lba.saturating_add(num_blocks) && lba < self.lba.saturating_add(self.num_blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_when_they_share_a_block() {
        let range = Range { lba: 8, num_blocks: 8 };
        assert!(range.overlaps(15, 1) && range.overlaps(0, 9) && range.overlaps(0, u64::MAX));
        assert!(!range.overlaps(16, 4) && !range.overlaps(0, 8));
    }
}
