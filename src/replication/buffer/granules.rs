//! One granule at a time: what the secondary's state machine asks, and how a failover finds what is left to drain.

use std::ops::Range;

use super::index::Place;
use super::layer::{Layer, Supply};
use super::overlay::Cursor;
use super::view::Content;
use super::{BufferError, DiskBuffer, Granule};
use crate::env::{Buf, sg_len};
use crate::replication::Epoch;

/// Puts `len` bytes into a page for a granule that the layer does not have; zeroes take none.
pub(super) fn insert(
    layer: &mut Layer,
    supply: &mut Supply,
    granule: Granule,
    mut from: Cursor<'_>,
    len: usize,
) -> Result<(), BufferError> {
    if from.is_zero(len) {
        return Ok(layer.put(supply, granule, Place::Zero)?);
    }
    let page = layer.reserve(supply, 1)?.first().map(|run| run.first).ok_or(BufferError::Full)?;
    if let Some(buf) = layer.pages(page, 1) {
        from.copy_to(&buf, 0, len);
        // What was in the page before is none of this volume's business, should the volume grow.
        buf.fill(len, buf.len() - len, 0);
    }
    Ok(layer.put(supply, granule, Place::Page(page))?)
}

impl DiskBuffer {
    /// Keeps a granule's original for `epoch`, opening the epoch if it is new: the granule's bytes stand in `content`
    /// from `at` on. `false` if it was kept before, which changes nothing.
    pub fn undo_insert(
        &mut self,
        epoch: Epoch,
        granule: Granule,
        content: &[Buf],
        at: usize,
    ) -> Result<bool, BufferError> {
        if self.undo.back().is_none_or(|(last, _)| *last < epoch) {
            self.open_epoch(epoch)?;
        }
        if self.contains(epoch, granule) {
            return Ok(false);
        }
        let len = self.original_bytes(granule, content, at);
        let from = Cursor::new(content, at);
        self.with_layer(epoch, |layer, supply| insert(layer, supply, granule, from, len).map(|()| true))
    }

    /// How much of a granule's content is given: it may have been read when the volume still ended within it.
    pub(super) fn original_bytes(&self, granule: Granule, content: &[Buf], at: usize) -> usize {
        let whole = self.granule_range(granule);
        (whole.end.saturating_sub(whole.start) as usize).min(sg_len(content).saturating_sub(at))
    }

    /// A range up to the end of one granule became a part of the volume: puts its content (`None` is zeroes), which stands
    /// in `content` from `at` on, behind what any layer holds of the granule. Nobody has seen anything there before.
    pub fn complete(
        &mut self,
        range: Range<u64>,
        content: Option<&[Buf]>,
        at: usize,
    ) -> Result<(), BufferError> {
        let granule = self.granule_of(range.start);
        let from = (range.start - self.granule_range(granule).start) as usize;
        let len = (range.end - range.start) as usize;
        let supply = &mut self.supply;
        let single = [&mut self.overlay, &mut self.overwritten];
        for layer in self.undo.iter_mut().map(|(_, layer)| layer).chain(single) {
            let mut cursor = Cursor::new(content.unwrap_or_default(), at);
            let zero = content.is_none() || cursor.is_zero(len);
            let page = match layer.get(granule) {
                None => continue,
                Some(Place::Zero) if zero => continue,
                Some(Place::Page(page)) => page,
                Some(Place::Zero) => {
                    let page =
                        layer.reserve(supply, 1)?.first().map(|run| run.first).ok_or(BufferError::Full)?;
                    layer.put(supply, granule, Place::Page(page))?;
                    if let Some(buf) = layer.pages(page, 1) {
                        buf.fill(0, buf.len(), 0);
                    }
                    page
                }
            };
            if let Some(buf) = layer.pages(page, 1) {
                if zero { buf.fill(from, len, 0) } else { cursor.copy_to(&buf, from, len) }
            }
        }
        Ok(())
    }

    /// Whether the view of a granule is in memory.
    pub fn view_contains(&self, granule: Granule) -> bool {
        self.overlay.get(granule).is_some() || self.find_undo(granule).is_some()
    }

    /// The whole granule (a short one at the end of the volume) as the view has it.
    pub fn view_content(&self, granule: Granule) -> Content {
        self.view(self.granule_range(granule)).next().map_or(Content::OnDisk, |piece| piece.content)
    }

    /// Copies what the buffer has of a range into `into` from `at` on. Parts that only the disk has are left alone;
    /// returns whether there were none.
    pub fn view_read(&self, range: Range<u64>, into: &[Buf], at: usize) -> bool {
        let start = range.start;
        let mut complete = true;
        for piece in self.view(range) {
            let len = (piece.range.end - piece.range.start) as usize;
            let mut target = Cursor::new(into, at + (piece.range.start - start) as usize);
            match piece.content {
                Content::Bytes(page) => {
                    target.take(len, |done, buf, at, part| buf.copy_from(at, &page, done, part));
                }
                Content::Zeroes => target.take(len, |_, buf, at, part| buf.fill(at, part, 0)),
                Content::OnDisk => complete = false,
            }
        }
        complete
    }

    /// Drops everything: the disk as it is becomes the volume. O(1) a layer.
    pub fn drop_all(&mut self) {
        self.drop_through(Epoch(u64::MAX));
        self.drop_overlay();
        self.drop_overwritten();
        self.kept_through = Epoch(0);
    }

    /// The first granule from `from` on that is in memory: a drain goes through the volume with this, writes
    /// [`DiskBuffer::view_content`] of each to the disk, and then forgets it.
    ///
    /// Looks into a region of some thousand granules at most before it finds one or knows that the region has none,
    /// which it then remembers.
    pub fn next_buffered(&self, from: Granule) -> Option<Granule> {
        let mut from = from.0;
        let end = self.volume_bytes.div_ceil(self.granule_bytes());
        loop {
            let layers = self.open_layers().chain([&self.overlay]);
            let region = layers.filter_map(|layer| layer.next_region(from >> self.region_shift)).min()?;
            let (start, next) = (region << self.region_shift, (region + 1) << self.region_shift);
            if start >= end {
                return None;
            }
            let mut candidates = from.max(start)..next.min(end);
            if let Some(granule) = candidates.find(|&granule| self.view_contains(Granule(granule))) {
                return Some(Granule(granule));
            }
            if from <= start {
                let layers = self.open_layers().chain([&self.overlay]);
                layers.into_iter().for_each(|layer| layer.clear_region(region));
            }
            from = next;
        }
    }
}
