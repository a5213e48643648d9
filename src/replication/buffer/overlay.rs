//! The secondary's own writes.
//!
//! A whole granule needs nothing but a page. Of a partial one the rest is taken from the view: from the overlay or the
//! undo maps here, or, when only the disk has it, from what the caller has read under the same range lock ([`Fill`]).

use std::ops::Range;

use smallvec::SmallVec;

use super::index::Place;
use super::layer::PageRuns;
use super::{BufferError, DiskBuffer, Granule};
use crate::env::{Buf, sg_len};

/// What is written.
#[derive(Clone, Copy)]
pub enum OverlayData<'a> {
    /// As many bytes as the range has, from a position in the list on.
    Bytes {
        list: &'a [Buf],
        from: usize,
    },
    Zeroes,
}

/// Content of a granule as the view has it, read by the caller.
#[derive(Clone, Copy)]
pub struct Fill<'a> {
    pub granule: Granule,
    /// The whole granule; a short one at the end of the volume.
    pub content: &'a [Buf],
}

/// Walks along a list of buffers.
pub(super) struct Cursor<'a> {
    list: &'a [Buf],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(mut list: &'a [Buf], mut at: usize) -> Cursor<'a> {
        while let Some(buf) = list.first().filter(|buf| buf.len() <= at) {
            at -= buf.len();
            list = &list[1..];
        }
        Cursor { list, at }
    }

    /// Copies the next bytes into `to`.
    pub(super) fn copy_to(&mut self, to: &Buf, offset: usize, len: usize) {
        self.take(len, |done, buf, at, part| to.copy_from(offset + done, buf, at, part));
    }

    /// Calls `f` with (offset in the taken bytes, buffer, offset in the buffer, length) for the next `len` bytes.
    pub(super) fn take(&mut self, len: usize, mut f: impl FnMut(usize, &Buf, usize, usize)) {
        let mut done = 0;
        while done < len {
            let Some(buf) = self.list.first() else { return };
            let part = (buf.len() - self.at).min(len - done);
            f(done, buf, self.at, part);
            done += part;
            self.at += part;
            if self.at == buf.len() {
                self.list = &self.list[1..];
                self.at = 0;
            }
        }
    }

    pub(super) fn is_zero(&self, len: usize) -> bool {
        let mut zero = true;
        let mut ahead = Cursor { list: self.list, at: self.at };
        ahead.take(len, |_, buf, at, part| zero = zero && buf.slice(at, part).is_zero());
        zero
    }
}

/// The pages that a write has reserved, handed out one by one.
struct Pages {
    runs: PageRuns,
}

impl Pages {
    fn take(&mut self) -> Option<u32> {
        let run = self.runs.iter_mut().find(|run| run.count > 0)?;
        run.first += 1;
        run.count -= 1;
        Some(run.first - 1)
    }
}

impl DiskBuffer {
    fn check_range(&self, range: &Range<u64>) -> Result<(), BufferError> {
        if range.is_empty() || range.end > self.volume_bytes { Err(BufferError::OutOfRange) } else { Ok(()) }
    }

    /// Granules of which a write covers a part only, and of which only the disk has the rest.
    pub fn fills_needed(&self, range: Range<u64>) -> SmallVec<[Granule; 2]> {
        let granules = self.granules(&range);
        let edges = [granules.start, granules.end.saturating_sub(1)];
        let edges = if edges[0] == edges[1] { &edges[..1] } else { &edges[..] };
        let needed = edges.iter().map(|&granule| Granule(granule)).filter(|&granule| {
            let whole = self.granule_range(granule);
            (whole.start < range.start || whole.end > range.end)
                && self.overlay.get(granule).is_none()
                && self.find_undo(granule).is_none()
        });
        needed.collect()
    }

    /// Writes into the overlay. All or nothing.
    pub fn overlay_write(
        &mut self,
        range: Range<u64>,
        data: OverlayData<'_>,
        fills: &[Fill<'_>],
    ) -> Result<(), BufferError> {
        self.check_range(&range)?;
        let missing =
            self.fills_needed(range.clone()).into_iter().find(|g| !fills.iter().any(|f| f.granule == *g));
        if let Some(granule) = missing {
            return Err(BufferError::FillMissing(granule));
        }
        let granules = self.granules(&range);
        let mut wanted = 0u32;
        for granule in granules.clone().map(Granule) {
            let whole = self.granule_range(granule);
            let covered = range.start <= whole.start && range.end >= whole.end;
            let needs_none = covered && matches!(data, OverlayData::Zeroes);
            wanted += u32::from(!needs_none && self.overlay.private_page(granule).is_none());
        }
        let mut pages = Pages { runs: self.overlay.reserve(&self.supply, wanted)? };
        let mut cursor = match data {
            OverlayData::Bytes { list, from } => Cursor::new(list, from),
            OverlayData::Zeroes => Cursor::new(&[], 0),
        };
        let mut outcome = Ok(());
        for granule in granules.map(Granule) {
            outcome = self.write_granule(granule, &range, data, &mut cursor, &mut pages, fills);
            if outcome.is_err() {
                break;
            }
        }
        self.overlay.release(&pages.runs);
        outcome
    }

    fn write_granule(
        &mut self,
        granule: Granule,
        range: &Range<u64>,
        data: OverlayData<'_>,
        cursor: &mut Cursor<'_>,
        pages: &mut Pages,
        fills: &[Fill<'_>],
    ) -> Result<(), BufferError> {
        let whole = self.granule_range(granule);
        let part = range.start.max(whole.start)..range.end.min(whole.end);
        let (at, len) = ((part.start - whole.start) as usize, (part.end - part.start) as usize);
        let zeroes = match data {
            OverlayData::Zeroes => true,
            OverlayData::Bytes { .. } => part == whole && cursor.is_zero(len),
        };
        if zeroes && part == whole {
            cursor.take(len, |_, _, _, _| {});
            return Ok(self.overlay.put(&mut self.supply, granule, Place::Zero)?);
        }
        let in_place = self.overlay.private_page(granule);
        let new = if in_place.is_none() { pages.take() } else { None };
        let Some(page) = in_place.or_else(|| self.overlay.pages(new?, 1)) else {
            return Err(BufferError::Full);
        };
        if new.is_some() && part != whole {
            self.fill_page(granule, &page, fills)?;
        } else if new.is_some() && len < page.len() {
            // The volume ends in this granule: what was in the page before must not show should the volume grow.
            page.fill(len, page.len() - len, 0);
        }
        match data {
            OverlayData::Bytes { .. } => cursor.copy_to(&page, at, len),
            OverlayData::Zeroes => page.fill(at, len, 0),
        }
        if let Some(number) = new {
            self.overlay.put(&mut self.supply, granule, Place::Page(number))?;
        }
        Ok(())
    }

    /// Puts the granule's content as the view has it into a new page.
    fn fill_page(&self, granule: Granule, page: &Buf, fills: &[Fill<'_>]) -> Result<(), BufferError> {
        let found = self.overlay.get(granule).map(|place| (&self.overlay, place));
        match found.or_else(|| self.find_undo(granule)) {
            Some((_, Place::Zero)) => page.fill(0, page.len(), 0),
            Some((layer, Place::Page(number))) => {
                let old = layer.pages(number, 1).ok_or(BufferError::FillMissing(granule))?;
                page.copy_from(0, &old, 0, page.len());
            }
            None => {
                let fill = fills.iter().find(|fill| fill.granule == granule);
                let fill = fill.ok_or(BufferError::FillMissing(granule))?;
                let len = sg_len(fill.content).min(page.len());
                Cursor::new(fill.content, 0).copy_to(page, 0, len);
                page.fill(len, page.len() - len, 0);
            }
        }
        Ok(())
    }
}
