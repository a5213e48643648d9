//! The chain of undo layers and the overlay: their life from opening an epoch to giving the memory back.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use super::index::{GRANULES_MAX, LeafPool};
use super::layer::{Layer, PageSource, Supply};
use super::quota::{Claim, Quota};
use super::{BufferError, GRANULE_BYTES_MAX, GRANULE_BYTES_MIN, Granule};
use crate::replication::Epoch;

/// Undo layers that wait for their memory to go back keep at most this many names; more are recycled at once.
const RETIRED_MAX: usize = 64;

/// A layer marks which of about so many regions of the volume it has granules in: 8 KiB.
const REGIONS: u64 = 1 << 16;
/// A region has at least 1024 granules.
const REGION_SHIFT_MIN: u32 = 10;

pub struct DiskBuffer {
    /// The first of the undo layers lead back from the last checkpoint to earlier ones; the view does not look at them.
    pub(super) kept: usize,
    /// Layers through this epoch are kept or gone.
    pub(super) kept_through: Epoch,
    pub(super) granule_shift: u32,
    /// Granules of a region, as a shift.
    pub(super) region_shift: u32,
    pub(super) volume_bytes: u64,
    pub(super) undo: VecDeque<(Epoch, Layer)>,
    pub(super) overlay: Layer,
    /// What the hosts of a node that took over have overwritten: leads back from the disk to what all layers lead to.
    pub(super) overwritten: Layer,
    retired: Vec<Layer>,
    pub(super) supply: Supply,
    pinned_bytes: u64,
}

/// Bytes by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferUsage {
    /// Pages of originals.
    pub undo_bytes: u64,
    /// Pages of originals that lead back from the last checkpoint to earlier ones.
    pub history_bytes: u64,
    /// Pages of the secondary's own writes.
    pub overlay_bytes: u64,
    /// Payloads that stand in for a disk that hangs.
    pub redo_bytes: u64,
    /// Chunks that all layers hold, those on their way back included.
    pub held_bytes: u64,
    /// Indexes, lists, heads.
    pub bookkeeping_bytes: u64,
}

impl DiskBuffer {
    /// `granule_bytes` is a power of two. No epoch is open yet.
    pub fn new(
        granule_bytes: u32,
        volume_bytes: u64,
        source: Rc<dyn PageSource>,
        quota: Arc<Quota>,
    ) -> Result<DiskBuffer, BufferError> {
        if !granule_bytes.is_power_of_two()
            || !(GRANULE_BYTES_MIN..=GRANULE_BYTES_MAX).contains(&granule_bytes)
        {
            return Err(BufferError::GranuleSize);
        }
        let granule_shift = granule_bytes.trailing_zeros();
        let granules = volume_bytes.div_ceil(u64::from(granule_bytes));
        if granules > GRANULES_MAX {
            return Err(BufferError::OutOfRange);
        }
        let region_shift =
            (granules.div_ceil(REGIONS).next_power_of_two().trailing_zeros()).max(REGION_SHIFT_MIN);
        Ok(DiskBuffer {
            kept: 0,
            kept_through: Epoch(0),
            granule_shift,
            region_shift,
            volume_bytes,
            undo: VecDeque::new(),
            overlay: Layer::new(Claim::Overlay, granule_shift, region_shift),
            overwritten: Layer::new(Claim::History, granule_shift, region_shift),
            retired: Vec::new(),
            supply: Supply {
                source,
                quota,
                history: Arc::new(Quota::new(u64::MAX)),
                leaves: LeafPool::default(),
            },
            pinned_bytes: 0,
        })
    }

    /// Takes granules of a volume of so many bytes from now on; never fewer than before.
    pub fn extend(&mut self, volume_bytes: u64) -> Result<(), BufferError> {
        if volume_bytes.div_ceil(self.granule_bytes()) > GRANULES_MAX {
            return Err(BufferError::OutOfRange);
        }
        self.volume_bytes = volume_bytes.max(self.volume_bytes);
        Ok(())
    }

    pub fn granule_bytes(&self) -> u64 {
        1 << self.granule_shift
    }

    pub fn granule_of(&self, offset: u64) -> Granule {
        Granule(offset >> self.granule_shift)
    }

    /// The bytes of a granule; the last one of a volume may be short.
    pub fn granule_range(&self, granule: Granule) -> Range<u64> {
        let start = granule.0 << self.granule_shift;
        start..(start + self.granule_bytes()).min(self.volume_bytes)
    }

    /// The granules that a range of bytes touches.
    pub fn granules(&self, range: &Range<u64>) -> Range<u64> {
        range.start >> self.granule_shift..range.end.div_ceil(self.granule_bytes())
    }

    pub fn quota(&self) -> &Arc<Quota> {
        &self.supply.quota
    }

    /// How much of the quota is in use, in percent; without what this buffer is about to give back.
    pub fn used_percent(&self) -> u64 {
        let own = self.retired.iter().filter(|layer| layer.claim() != Claim::History);
        let retired = own.map(Layer::held_bytes).sum();
        self.supply.quota.percent_without(retired)
    }

    /// Opens an epoch above all that are open: originals of its writes go into a layer of its own. O(1).
    pub fn open_epoch(&mut self, epoch: Epoch) -> Result<(), BufferError> {
        if self.undo.back().is_some_and(|(last, _)| *last >= epoch) {
            return Err(BufferError::EpochOrder(epoch));
        }
        let old = epoch <= self.kept_through;
        let claim = if old { Claim::History } else { Claim::Undo };
        self.undo.push_back((epoch, Layer::new(claim, self.granule_shift, self.region_shift)));
        self.kept += usize::from(old);
        Ok(())
    }

    /// Epochs that have an undo layer, oldest first: those that are kept, then those that are not committed.
    pub fn epochs(&self) -> impl Iterator<Item = Epoch> {
        self.undo.iter().map(|(epoch, _)| *epoch)
    }

    /// The layers that the view is made of, oldest first.
    pub(super) fn open_layers(&self) -> impl Iterator<Item = &Layer> {
        self.undo.range(self.kept..).map(|(_, layer)| layer)
    }

    /// Drops the undo layers of all epochs through `epoch`: they are committed. O(1) a layer.
    pub fn drop_through(&mut self, epoch: Epoch) {
        while self.undo.front().is_some_and(|(oldest, _)| *oldest <= epoch) {
            if let Some((_, layer)) = self.undo.pop_front() {
                self.kept = self.kept.saturating_sub(1);
                self.retire(layer);
            }
        }
    }

    /// Drops the overlay: the secondary's VM starts again from the checkpoint. O(1).
    pub fn drop_overlay(&mut self) {
        let layer = std::mem::replace(
            &mut self.overlay,
            Layer::new(Claim::Overlay, self.granule_shift, self.region_shift),
        );
        self.retire(layer);
    }

    pub(super) fn drop_overwritten(&mut self) {
        let empty = Layer::new(Claim::History, self.granule_shift, self.region_shift);
        let layer = std::mem::replace(&mut self.overwritten, empty);
        self.retire(layer);
    }

    pub(super) fn retire(&mut self, layer: Layer) {
        if layer.held_bytes() > 0 || !layer.is_empty() {
            self.retired.push(layer);
            if self.retired.len() > RETIRED_MAX {
                self.recycle_step(usize::MAX);
            }
        }
    }

    /// Gives memory of dropped layers back: at most about `budget` times 2 MiB, and as many leaves of index. `true` when
    /// nothing is left to do. Takes below a microsecond for 2 MiB of originals, a few for 2 MiB of overlay.
    pub fn recycle_step(&mut self, budget: usize) -> bool {
        while let Some(layer) = self.retired.last_mut() {
            if !layer.recycle(&mut self.supply, budget) {
                return false;
            }
            self.retired.pop();
            if budget != usize::MAX {
                break;
            }
        }
        self.retired.is_empty()
    }

    fn layer(&self, epoch: Epoch) -> Result<&Layer, BufferError> {
        let found = self.undo.iter().rev().find(|(e, _)| *e == epoch);
        found.map(|(_, layer)| layer).ok_or(BufferError::NoLayer(epoch))
    }

    pub(super) fn with_layer<R>(
        &mut self,
        epoch: Epoch,
        f: impl FnOnce(&mut Layer, &mut Supply) -> Result<R, BufferError>,
    ) -> Result<R, BufferError> {
        match self.undo.iter_mut().rev().find(|(e, _)| *e == epoch) {
            Some((_, layer)) => f(layer, &mut self.supply),
            None => Err(BufferError::NoLayer(epoch)),
        }
    }

    /// Whether the granule's original is kept for `epoch`.
    pub fn contains(&self, epoch: Epoch, granule: Granule) -> bool {
        self.layer(epoch).is_ok_and(|layer| layer.get(granule).is_some())
    }

    /// Makes granules absent from everything that the view is made of: what is now on disk is their content.
    pub fn forget(&mut self, granules: Range<u64>) {
        let open = self.undo.range_mut(self.kept..).map(|(_, layer)| layer);
        for layer in open.chain([&mut self.overlay]) {
            if !layer.is_empty() {
                granules.clone().for_each(|granule| {
                    layer.forget(Granule(granule));
                });
            }
        }
    }

    /// Counts a payload that stands in for a disk that hangs against the quota. `false`: no room.
    pub fn pin(&mut self, bytes: u64) -> bool {
        let taken = self.supply.quota.take(Claim::Undo, bytes);
        if taken {
            self.pinned_bytes += bytes;
        }
        taken
    }

    /// The payload was let go.
    pub fn unpin(&mut self, bytes: u64) {
        let bytes = bytes.min(self.pinned_bytes);
        self.pinned_bytes -= bytes;
        self.supply.quota.give_back(bytes);
    }

    pub fn usage(&self) -> BufferUsage {
        let mut usage = BufferUsage {
            overlay_bytes: self.overlay.data_bytes(),
            redo_bytes: self.pinned_bytes,
            ..BufferUsage::default()
        };
        for (at, (_, layer)) in self.undo.iter().enumerate() {
            let bytes = if at < self.kept { &mut usage.history_bytes } else { &mut usage.undo_bytes };
            *bytes += layer.data_bytes();
        }
        usage.history_bytes += self.overwritten.data_bytes();
        let single = [&self.overlay, &self.overwritten];
        for layer in self.undo.iter().map(|(_, layer)| layer).chain(single).chain(&self.retired) {
            usage.held_bytes += layer.held_bytes();
            usage.bookkeeping_bytes += layer.bookkeeping_bytes();
        }
        usage.bookkeeping_bytes += size_of::<DiskBuffer>() as u64 + self.supply.leaves.bytes();
        usage
    }
}

impl Drop for DiskBuffer {
    fn drop(&mut self) {
        self.drop_through(Epoch(u64::MAX));
        self.drop_overlay();
        self.drop_overwritten();
        self.recycle_step(usize::MAX);
        self.supply.quota.give_back(self.pinned_bytes);
    }
}
