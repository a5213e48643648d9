//! What the secondary's VM reads: overlay → undo (oldest) → disk, in runs.

use std::ops::Range;

use super::index::Place;
use super::layer::Layer;
use super::{DiskBuffer, Granule};
use crate::env::Buf;

/// Where a part of the view comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    Overlay,
    Undo,
    Disk,
}

#[derive(Clone, Debug)]
pub enum Content {
    /// The buffer holds it. The memory stays as it is while the handle lives.
    Bytes(Buf),
    Zeroes,
    /// The disk has it (or what stands in for the disk).
    OnDisk,
}

/// A run of bytes of the volume with one source.
#[derive(Clone, Debug)]
pub struct Piece {
    pub range: Range<u64>,
    pub map: Map,
    pub content: Content,
}

/// Where one granule is.
#[derive(Clone, Copy)]
struct Found<'a> {
    map: Map,
    place: Option<(&'a Layer, Place)>,
}

/// The pieces of a range, in order, without gaps.
pub struct View<'a> {
    buffer: &'a DiskBuffer,
    range: Range<u64>,
    /// The granule at the beginning of `range`, when the step before has looked already.
    ahead: Option<Found<'a>>,
    /// Nothing is buffered at all: one piece.
    all_on_disk: bool,
}

impl DiskBuffer {
    /// The view of a range of bytes. After a read of the disk look again: a forwarded write may have preserved a granule
    /// meanwhile.
    pub fn view(&self, range: Range<u64>) -> View<'_> {
        let all_on_disk = self.overlay.is_empty() && self.open_layers().all(Layer::is_empty);
        View { buffer: self, range, ahead: None, all_on_disk }
    }

    fn find(&self, granule: Granule) -> Found<'_> {
        let place = |layer: &'_ Layer| if layer.is_empty() { None } else { layer.get(granule) };
        if let Some(found) = place(&self.overlay) {
            return Found { map: Map::Overlay, place: Some((&self.overlay, found)) };
        }
        self.find_undo(granule).map_or(Found { map: Map::Disk, place: None }, |found| Found {
            map: Map::Undo,
            place: Some(found),
        })
    }

    /// The oldest original of a granule: what it contained at the last commit.
    pub(super) fn find_undo(&self, granule: Granule) -> Option<(&Layer, Place)> {
        let layers = self.open_layers().filter(|layer| !layer.is_empty());
        layers.into_iter().find_map(|layer| layer.get(granule).map(|place| (layer, place)))
    }
}

impl<'a> Found<'a> {
    /// Whether `next`, the granule behind, continues the same piece whose last granule is this.
    fn continues(&self, next: &Found<'a>) -> bool {
        self.map == next.map
            && match (self.place, next.place) {
                (None, None) => true,
                (Some((_, Place::Zero)), Some((_, Place::Zero))) => true,
                (Some((a, Place::Page(one))), Some((b, Place::Page(other)))) => {
                    std::ptr::eq(a, b) && a.follows(one, other)
                }
                _ => false,
            }
    }
}

impl Iterator for View<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let start = self.range.start;
        if start >= self.range.end {
            return None;
        }
        if self.all_on_disk {
            self.range.start = self.range.end;
            return Some(Piece { range: start..self.range.end, map: Map::Disk, content: Content::OnDisk });
        }
        let buffer = self.buffer;
        let granules = buffer.granules(&self.range);
        let first = self.ahead.take().unwrap_or_else(|| buffer.find(Granule(granules.start)));
        let (mut last, mut count) = (first, 1u32);
        for granule in granules.start + 1..granules.end {
            let next = buffer.find(Granule(granule));
            if !last.continues(&next) {
                self.ahead = Some(next);
                break;
            }
            last = next;
            count += 1;
        }
        let end = ((granules.start + u64::from(count)) << buffer.granule_shift).min(self.range.end);
        self.range.start = end;
        let content = match first.place {
            None => Content::OnDisk,
            Some((_, Place::Zero)) => Content::Zeroes,
            Some((layer, Place::Page(page))) => {
                let skip = (start - (granules.start << buffer.granule_shift)) as usize;
                let pages = layer.pages(page, count)?;
                Content::Bytes(pages.slice(skip, (end - start) as usize))
            }
        };
        Some(Piece { range: start..end, map: first.map, content })
    }
}
