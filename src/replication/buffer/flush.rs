//! Draining the buffer into the disk after a failover: undo in address order, the oldest original of each granule, then
//! the overlay. Bounded steps; the position is a number that can be kept, so that a flush that failed goes on there.
//!
//! The layers are hashed, so their granules are sorted first: in runs of a bounded size, which the flush then merges.
//! Granules that are forgotten meanwhile (overwritten by the new primary's host) are passed over; nothing may be
//! inserted into a layer that is being flushed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::index::Place;
use super::layer::Layer;
use super::{DiskBuffer, Granule, Map};
use crate::env::SgList;

/// Granules sorted in one step: some ten microseconds.
const SORT_GRANULES: usize = 1024;

/// What the volume is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushKeep {
    /// The last checkpoint: undo only.
    Checkpoint,
    /// What the secondary's VM saw: undo, except where overlay covers it, then overlay.
    Overlay,
}

/// Consecutive granules to write to the disk.
#[derive(Debug)]
pub struct FlushRun {
    pub map: Map,
    /// Bytes of the volume.
    pub range: std::ops::Range<u64>,
    /// `None`: zeroes.
    pub data: Option<SgList>,
}

#[derive(Debug)]
pub enum FlushStep {
    /// Still sorting: call again.
    Working,
    Write(FlushRun),
    /// Everything was handed out.
    Done,
}

/// One sorted run and how far it was merged.
struct Sorted {
    granules: Vec<u64>,
    next: usize,
}

enum Phase {
    /// Sorting the granules of a map; the next leaf to read, over all layers of it.
    Sort {
        map: Map,
        layer: usize,
        leaf: usize,
    },
    Merge {
        map: Map,
    },
    Done,
}

/// A flush under way.
pub struct Flush {
    keep: FlushKeep,
    phase: Phase,
    batch: Vec<u64>,
    sorted: Vec<Sorted>,
    /// The next granule of each run.
    heads: BinaryHeap<Reverse<(u64, u32)>>,
    /// Granules of the current map below this were handed out.
    cursor: u64,
}

impl Flush {
    pub fn new(keep: FlushKeep) -> Flush {
        Flush::resume(keep, Map::Undo, 0)
    }

    /// Goes on where another flush stood: see [`Flush::position`].
    pub fn resume(keep: FlushKeep, map: Map, cursor: u64) -> Flush {
        Flush {
            keep,
            phase: Phase::Sort { map, layer: 0, leaf: 0 },
            batch: Vec::new(),
            sorted: Vec::new(),
            heads: BinaryHeap::new(),
            cursor,
        }
    }

    /// The map in work, and the granule below which all of it was handed out.
    pub fn position(&self) -> (Map, u64) {
        match self.phase {
            Phase::Sort { map, .. } | Phase::Merge { map } => (map, self.cursor),
            Phase::Done => (Map::Disk, 0),
        }
    }

    /// One bounded step: sorts a little, or hands out a run of at most `max_granules`.
    pub fn step(&mut self, buffer: &DiskBuffer, max_granules: u32) -> FlushStep {
        match self.phase {
            Phase::Sort { map, layer, leaf } => {
                self.phase = self.sort(buffer, map, layer, leaf);
                FlushStep::Working
            }
            Phase::Merge { map } => match self.merge(buffer, map, max_granules) {
                Some(run) => FlushStep::Write(run),
                None if !self.heads.is_empty() => FlushStep::Working,
                None => {
                    self.sorted = Vec::new();
                    self.cursor = 0;
                    self.phase = match (map, self.keep) {
                        (Map::Undo, FlushKeep::Overlay) => {
                            Phase::Sort { map: Map::Overlay, layer: 0, leaf: 0 }
                        }
                        _ => Phase::Done,
                    };
                    FlushStep::Working
                }
            },
            Phase::Done => FlushStep::Done,
        }
    }

    /// Reads leaves until a run is full, and sorts it.
    fn sort(&mut self, buffer: &DiskBuffer, map: Map, mut layer: usize, mut leaf: usize) -> Phase {
        while let Some(source) = source(buffer, map, layer) {
            if leaf == source.index().leaf_count() {
                (layer, leaf) = (layer + 1, 0);
                continue;
            }
            source.index().leaf_granules(leaf, &mut self.batch);
            leaf += 1;
            if self.batch.len() >= SORT_GRANULES {
                self.finish_run();
                return Phase::Sort { map, layer, leaf };
            }
        }
        self.finish_run();
        Phase::Merge { map }
    }

    fn finish_run(&mut self) {
        let cursor = self.cursor;
        self.batch.retain(|&granule| granule >= cursor);
        self.batch.sort_unstable();
        if let Some(&first) = self.batch.first() {
            self.heads.push(Reverse((first, self.sorted.len() as u32)));
            self.sorted.push(Sorted { granules: self.batch.as_slice().to_vec(), next: 1 });
        }
        self.batch.clear();
    }

    /// The smallest granule that was not handed out yet.
    fn peek(&self) -> Option<u64> {
        self.heads.peek().map(|Reverse((granule, _))| *granule)
    }

    fn pop(&mut self) {
        if let Some(Reverse((_, run))) = self.heads.pop() {
            let sorted = &mut self.sorted[run as usize];
            if let Some(&granule) = sorted.granules.get(sorted.next) {
                sorted.next += 1;
                self.heads.push(Reverse((granule, run)));
            }
        }
    }

    /// The next run; `None` at the end, or when a step's worth of granules was passed over.
    fn merge(&mut self, buffer: &DiskBuffer, map: Map, max_granules: u32) -> Option<FlushRun> {
        let mut first: Option<u64> = None;
        let mut end = 0;
        let mut data: Option<SgList> = None;
        let mut last_page: Option<(*const Layer, u32)> = None;
        for _ in 0..max_granules.max(SORT_GRANULES as u32) {
            let Some(granule) = self.peek() else { break };
            // The same granule in several layers, or handed out before.
            if granule < self.cursor {
                self.pop();
                continue;
            }
            let Some((layer, place)) = self.lookup(buffer, map, Granule(granule)) else {
                self.pop();
                self.cursor = granule + 1;
                if first.is_some() {
                    break;
                }
                continue;
            };
            let bytes = buffer.granule_range(Granule(granule));
            let zero = place == Place::Zero;
            if let Some(first) = first {
                let full = granule - first >= u64::from(max_granules);
                if granule != end || full || zero != data.is_none() {
                    break;
                }
            }
            if let Place::Page(page) = place {
                let list = data.get_or_insert_default();
                let joined = last_page
                    .is_some_and(|(of, before)| std::ptr::eq(of, layer) && layer.follows(before, page));
                // A contiguous page makes the last entry longer instead of adding one.
                let run_pages =
                    if joined { list.pop().map_or(0, |buf| buf.len() / layer.granule_bytes()) } else { 0 };
                let start = page - run_pages as u32;
                let len = run_pages * layer.granule_bytes() + (bytes.end - bytes.start) as usize;
                list.extend(layer.pages(start, run_pages as u32 + 1).map(|buf| buf.slice(0, len)));
                last_page = Some((layer, page));
            }
            first.get_or_insert(granule);
            end = granule + 1;
            self.cursor = end;
            self.pop();
        }
        let first = first?;
        let range = buffer.granule_range(Granule(first)).start..buffer.granule_range(Granule(end - 1)).end;
        Some(FlushRun { map, range, data })
    }

    fn lookup<'a>(&self, buffer: &'a DiskBuffer, map: Map, granule: Granule) -> Option<(&'a Layer, Place)> {
        if buffer.granule_range(granule).is_empty() {
            return None;
        }
        let overlay = || buffer.overlay.get(granule).map(|place| (&buffer.overlay, place));
        match (map, self.keep) {
            (Map::Undo, FlushKeep::Overlay) if overlay().is_some() => None,
            (Map::Undo, _) => buffer.find_undo(granule),
            _ => overlay(),
        }
    }
}

/// The layers of a map, by number.
fn source(buffer: &DiskBuffer, map: Map, layer: usize) -> Option<&Layer> {
    match map {
        Map::Undo => buffer.undo.get(layer).map(|(_, layer)| layer),
        Map::Overlay => (layer == 0).then_some(&buffer.overlay),
        Map::Disk => None,
    }
}
