//! The disk buffer as the secondary's machine sees it: blocks and granules instead of bytes.

use super::payload::Blocks;
use crate::replication::Epoch;
use crate::replication::buffer::{BufferError, BufferUsage, Content, DiskBuffer, Fill, Granule, OverlayData};
use crate::replication::core::mutation::{Mutation, active};
use crate::replication::core::{BufferFull, Data, GranuleMaps, Range};

/// Chunks of dropped layers that go back to the pool in one step: a few microseconds.
const RECYCLE_BUDGET: usize = 8;
/// How many epochs a lane may be behind another: each costs the primary a cut that was not prepared in time.
const EPOCHS_BEHIND: u64 = 16;

pub struct Maps {
    buffer: DiskBuffer,
    block_bytes: u32,
    /// Layers through this epoch were dropped.
    dropped: Epoch,
}

impl Maps {
    pub fn new(buffer: DiskBuffer, block_bytes: u32) -> Maps {
        Maps { buffer, block_bytes, dropped: Epoch(0) }
    }

    /// Gives a little of the memory of dropped layers back; true when there is no more.
    pub fn recycle(&mut self) -> bool {
        self.buffer.recycle_step(RECYCLE_BUDGET)
    }

    pub fn usage(&self) -> BufferUsage {
        self.buffer.usage()
    }

    /// Lanes run ahead of each other, so an epoch's layer may be needed after that of the next: none is left out.
    fn open_through(&mut self, epoch: Epoch) -> Result<(), BufferFull> {
        let last = self.buffer.epochs().last().unwrap_or(self.dropped);
        if last >= epoch {
            return Ok(());
        }
        for number in (last.0 + 1).max(epoch.0.saturating_sub(EPOCHS_BEHIND))..=epoch.0 {
            self.buffer.open_epoch(Epoch(number)).map_err(|_| BufferFull)?;
        }
        Ok(())
    }

    /// What finds no room is tried again with the memory of dropped layers, which goes back in steps otherwise.
    fn with_room(
        &mut self,
        mut f: impl FnMut(&mut DiskBuffer) -> Result<(), BufferError>,
    ) -> Result<(), BufferFull> {
        if f(&mut self.buffer).is_ok() {
            return Ok(());
        }
        self.buffer.recycle_step(usize::MAX);
        f(&mut self.buffer).map_err(|_| BufferFull)
    }

    fn at(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.block_bytes)
    }

    fn bytes(&self, range: Range) -> std::ops::Range<u64> {
        self.at(range.lba)..self.at(range.end())
    }
}

impl GranuleMaps<Blocks> for Maps {
    fn undo_contains(&self, epoch: Epoch, granule: u64) -> bool {
        self.buffer.contains(epoch, Granule(granule))
    }

    fn undo_insert(
        &mut self,
        epoch: Epoch,
        granule: u64,
        content: &Blocks,
        at: u32,
    ) -> Result<(), BufferFull> {
        let at = self.at(at.into()) as usize;
        self.open_through(epoch)?;
        let insert = |buffer: &mut DiskBuffer| {
            buffer.undo_insert(epoch, Granule(granule), content.bufs(), at).map(|_| ())
        };
        self.with_room(insert)
    }

    fn view_contains(&self, granule: u64) -> bool {
        self.buffer.view_contains(Granule(granule))
    }

    fn view_read(&self, range: Range, into: &mut Blocks, at: u32) {
        let at = self.at(at.into()) as usize;
        let complete = self.buffer.view_read(self.bytes(range), into.bufs(), at);
        debug_assert!(complete, "only what the view contains is read from it");
    }

    fn view_content(&self, granule: u64) -> Option<Data<Blocks>> {
        match self.buffer.view_content(Granule(granule)) {
            Content::Bytes(buf) => {
                Some(Data::Bytes(Blocks::new([buf].into_iter().collect(), self.block_bytes)))
            }
            Content::Zeroes => Some(Data::Zeroes),
            Content::OnDisk => None,
        }
    }

    fn overlay_write(
        &mut self,
        range: Range,
        data: &Data<Blocks>,
        from: u32,
        base: Option<&Blocks>,
    ) -> Result<(), BufferFull> {
        let bytes = self.bytes(range);
        let data = match data {
            Data::Bytes(blocks) => {
                OverlayData::Bytes { list: blocks.bufs(), from: self.at(from.into()) as usize }
            }
            Data::Zeroes => OverlayData::Zeroes,
        };
        let granule = self.buffer.granule_of(bytes.start);
        let fill = base.map(|base| Fill { granule, content: base.bufs() });
        self.with_room(|buffer| buffer.overlay_write(bytes.clone(), data, fill.as_slice()))
    }

    fn drop_through(&mut self, epoch: Epoch) {
        self.dropped = self.dropped.max(epoch);
        self.buffer.drop_through(epoch);
        if !active(Mutation::CommitKeepsOverlay) {
            self.buffer.drop_overlay();
        }
    }

    fn keep_through(&mut self, epoch: Epoch) -> u64 {
        self.buffer.drop_overlay();
        self.buffer.keep_through(epoch)
    }

    fn drop_kept(&mut self, epoch: Epoch) {
        self.buffer.drop_kept(epoch);
    }

    fn take_back_to(&mut self, epoch: Epoch) {
        self.buffer.drop_overlay();
        self.buffer.take_back_to(epoch);
    }

    fn past_contains(&self, epoch: Epoch, granule: u64) -> bool {
        self.buffer.past_contains(epoch, Granule(granule))
    }

    fn past_read(&self, epoch: Epoch, range: Range, into: &mut Blocks, at: u32) {
        let at = self.at(at.into()) as usize;
        let complete = self.buffer.past_read(epoch, self.bytes(range), into.bufs(), at);
        debug_assert!(complete, "only what is kept is read from it");
    }

    fn overwritten_contains(&self, granule: u64) -> bool {
        self.buffer.overwritten_contains(Granule(granule))
    }

    fn overwritten_insert(
        &mut self,
        granule: u64,
        content: Option<(&Blocks, u32)>,
    ) -> Result<(), BufferFull> {
        let content = content.map(|(content, at)| (content.bufs(), self.at(at.into()) as usize));
        self.buffer.overwritten_insert(Granule(granule), content).map_err(|_| BufferFull)
    }

    fn history_percent(&self) -> u8 {
        self.buffer.history_percent().min(100) as u8
    }

    fn drop_overlay(&mut self) {
        self.buffer.drop_overlay();
    }

    fn drop_all(&mut self) {
        self.buffer.drop_all();
    }

    fn remove(&mut self, granule: u64) {
        self.buffer.forget(granule..granule + 1);
    }

    fn next_buffered(&self, from: u64) -> Option<u64> {
        self.buffer.next_buffered(Granule(from)).map(|granule| granule.0)
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), BufferFull> {
        if self.buffer.pin(bytes) { Ok(()) } else { Err(BufferFull) }
    }

    fn release(&mut self, bytes: u64) {
        self.buffer.unpin(bytes);
    }

    fn extend(&mut self, blocks: u64) -> Result<(), BufferFull> {
        self.buffer.extend(self.at(blocks)).map_err(|_| BufferFull)
    }

    fn complete(&mut self, range: Range, data: &Data<Blocks>, from: u32) -> Result<(), BufferFull> {
        let (bytes, at) = (self.bytes(range), self.at(from.into()) as usize);
        let content = match data {
            Data::Bytes(blocks) => Some(blocks.bufs()),
            Data::Zeroes => None,
        };
        self.buffer.complete(bytes, content, at).map_err(|_| BufferFull)
    }

    fn fullness(&self) -> u8 {
        self.buffer.used_percent().min(100) as u8
    }
}
