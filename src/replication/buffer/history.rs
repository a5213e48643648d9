//! Undo layers of committed epochs that are kept: what leads back from the last checkpoint to earlier ones.
//!
//! Invariants. The content at the end of a committed epoch is the first hit over the layers of later epochs, oldest first,
//! else the disk's; so it can be shown as long as no layer of a later epoch was dropped, and layers are dropped from the
//! oldest on only. What is kept counts for the history's quota and never for the buffer's. Keeping and taking back move
//! layers and touch no granule.

use std::ops::Range;
use std::sync::Arc;

use super::granules::insert;
use super::index::Place;
use super::layer::Layer;
use super::overlay::Cursor;
use super::quota::{Claim, Quota};
use super::view::Content;
use super::{BufferError, DiskBuffer, Granule};
use crate::env::Buf;
use crate::replication::Epoch;

impl DiskBuffer {
    /// What is kept counts for this, from the first layer on.
    pub fn set_history_quota(&mut self, quota: Arc<Quota>) {
        debug_assert_eq!(self.kept, 0, "nothing was counted elsewhere");
        self.supply.history = quota;
    }

    /// Keeps the layers of all epochs through `epoch`, which are committed, out of the view. O(1) a layer. Returns the
    /// bytes that this took over.
    pub fn keep_through(&mut self, epoch: Epoch) -> u64 {
        self.kept_through = self.kept_through.max(epoch);
        let mut bytes = 0;
        while let Some((_, layer)) = self.undo.get_mut(self.kept).filter(|(oldest, _)| *oldest <= epoch) {
            bytes += layer.held_bytes();
            layer.count_as(Claim::History, &self.supply);
            self.kept += 1;
        }
        bytes
    }

    /// Drops what is kept of the epochs through `epoch`; of all of them, also what hosts have overwritten. O(1) a layer.
    pub fn drop_kept(&mut self, epoch: Epoch) {
        while self.kept > 0 && self.undo.front().is_some_and(|(oldest, _)| *oldest <= epoch) {
            if let Some((_, layer)) = self.undo.pop_front() {
                self.kept -= 1;
                self.retire(layer);
            }
        }
        if epoch == Epoch(u64::MAX) {
            self.drop_overwritten();
        }
    }

    /// Makes the end of `epoch` the content that the view begins with: what was kept of later epochs is a part of the view
    /// again. O(1) a layer.
    pub fn take_back_to(&mut self, epoch: Epoch) {
        self.kept_through = epoch;
        while self.kept > 0 && self.undo.get(self.kept - 1).is_some_and(|(newest, _)| *newest > epoch) {
            self.kept -= 1;
            self.undo[self.kept].1.count_as(Claim::Undo, &self.supply);
        }
        if !self.overwritten.is_empty() {
            let mut layer = Layer::new(Claim::History, self.granule_shift, self.region_shift);
            std::mem::swap(&mut layer, &mut self.overwritten);
            layer.count_as(Claim::Undo, &self.supply);
            // What it has of a granule is what the layers before it lead to, so it comes last.
            let last = self.undo.back().map_or(epoch, |(last, _)| (*last).max(epoch));
            self.undo.push_back((last.next(), layer));
        }
    }

    /// Whether what a host's write replaces is kept.
    pub fn overwritten_contains(&self, granule: Granule) -> bool {
        self.overwritten.get(granule).is_some()
    }

    /// Keeps a granule that a host of a node that took over is about to overwrite, and that is not kept: it stands in
    /// `content` from `at` on; `None`: the view has it.
    pub fn overwritten_insert(
        &mut self,
        granule: Granule,
        content: Option<(&[Buf], usize)>,
    ) -> Result<(), BufferError> {
        let page;
        let (content, at) = match (content, self.view_content(granule)) {
            (Some(given), _) => given,
            (None, Content::Bytes(buf)) => {
                page = [buf];
                (&page[..], 0)
            }
            (None, Content::Zeroes) => {
                return Ok(self.overwritten.put(&mut self.supply, granule, Place::Zero)?);
            }
            (None, Content::OnDisk) => return Err(BufferError::FillMissing(granule)),
        };
        let len = self.original_bytes(granule, content, at);
        insert(&mut self.overwritten, &mut self.supply, granule, Cursor::new(content, at), len)
    }

    /// How much of the history's quota is in use, in percent.
    pub fn history_percent(&self) -> u64 {
        self.supply.history.percent_without(0)
    }

    /// The oldest original of a granule that is later than `epoch`: what it contained at that epoch's end.
    fn find_after(&self, epoch: Epoch, granule: Granule) -> Option<(&Layer, Place)> {
        let from = self.undo.partition_point(|(number, _)| *number <= epoch);
        let layers = self.undo.range(from..).map(|(_, layer)| layer).filter(|layer| !layer.is_empty());
        let last = Some(&self.overwritten).filter(|layer| !layer.is_empty());
        layers.chain(last).find_map(|layer| layer.get(granule).map(|place| (layer, place)))
    }

    /// Whether the content of a granule at the end of `epoch` is in memory.
    pub fn past_contains(&self, epoch: Epoch, granule: Granule) -> bool {
        self.find_after(epoch, granule).is_some()
    }

    /// Copies a range within one granule, as it was at the end of `epoch`, into `into` from `at` on. `false` if only the
    /// disk has it.
    pub fn past_read(&self, epoch: Epoch, range: Range<u64>, into: &[Buf], at: usize) -> bool {
        let granule = self.granule_of(range.start);
        let len = (range.end - range.start) as usize;
        let skip = (range.start - self.granule_range(granule).start) as usize;
        let mut target = Cursor::new(into, at);
        match self.find_after(epoch, granule) {
            None => return false,
            Some((_, Place::Zero)) => target.take(len, |_, buf, at, part| buf.fill(at, part, 0)),
            Some((layer, Place::Page(page))) => {
                let Some(page) = layer.pages(page, 1) else { return false };
                target.take(len, |done, buf, at, part| buf.copy_from(at, &page, skip + done, part));
            }
        }
        true
    }
}
