//! What the secondary's machine needs of the disk buffer, and no more.

use super::super::Epoch;
use super::types::{Data, Range};

/// The buffer is at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk buffer is at its limit")]
pub struct BufferFull;

/// The undo layers and the overlay of the stripes of one machine. Ranges given to it lie within one granule.
///
/// *View* is what the secondary's own VM sees of it: the overlay, else the oldest undo layer that has the granule.
pub trait GranuleMaps<P> {
    fn undo_contains(&self, epoch: Epoch, granule: u64) -> bool;

    /// Keeps the original of a granule for `epoch`, which is not below any that was inserted before and not dropped.
    /// The granule stands in `content` from block `at` on.
    fn undo_insert(&mut self, epoch: Epoch, granule: u64, content: &P, at: u32) -> Result<(), BufferFull>;

    fn view_contains(&self, granule: u64) -> bool;

    /// Copies blocks of a granule that the view contains into `into` at block `at`.
    fn view_read(&self, range: Range, into: &mut P, at: u32);

    /// The whole granule as the view has it.
    fn view_content(&self, granule: u64) -> Option<Data<P>>;

    /// Writes blocks of one granule into the overlay, taken from block `from` of `data`. What the range does not cover
    /// comes from the overlay, else the oldest undo layer, else `base`, which is then given.
    fn overlay_write(
        &mut self,
        range: Range,
        data: &Data<P>,
        from: u32,
        base: Option<&P>,
    ) -> Result<(), BufferFull>;

    /// Drops every undo layer through `epoch`, and the overlay; in constant time.
    fn drop_through(&mut self, epoch: Epoch);

    /// As `drop_through`, but keeps the undo layers, out of the view. Returns the bytes that they hold.
    fn keep_through(&mut self, epoch: Epoch) -> u64;

    /// Drops what is kept of epochs through `epoch`; of all of them, also what hosts have overwritten.
    fn drop_kept(&mut self, epoch: Epoch);

    /// What is kept of later epochs than `epoch` is a part of the view again, and so is what hosts have overwritten. The
    /// overlay is dropped.
    fn take_back_to(&mut self, epoch: Epoch);

    /// Whether the granule as it was at the end of `epoch` is in memory; no layer of a later epoch is gone.
    fn past_contains(&self, epoch: Epoch, granule: u64) -> bool;

    /// As `view_read`, of the end of an epoch.
    fn past_read(&self, epoch: Epoch, range: Range, into: &mut P, at: u32);

    /// Whether what a host's write after a failover replaces is kept.
    fn overwritten_contains(&self, granule: u64) -> bool;

    /// Keeps what a host's write after a failover replaces, and that is not kept. The granule stands in the content from
    /// the block on; `None`: the view has it.
    fn overwritten_insert(&mut self, granule: u64, content: Option<(&P, u32)>) -> Result<(), BufferFull>;

    /// Percent of the history's limit in use.
    fn history_percent(&self) -> u8;

    fn drop_overlay(&mut self);

    fn drop_all(&mut self);

    /// Takes one granule out of everything: it is on the disk now.
    fn remove(&mut self, granule: u64);

    /// The first granule at or after `from` that the view contains.
    fn next_buffered(&self, from: u64) -> Option<u64>;

    /// Counts memory that is held elsewhere against the limit.
    fn reserve(&mut self, bytes: u64) -> Result<(), BufferFull>;

    fn release(&mut self, bytes: u64);

    /// Takes granules of a volume of so many blocks from now on; never fewer than before. What is held of a granule that
    /// was short until now has an end that nobody sees before [`GranuleMaps::complete`] brought its content.
    fn extend(&mut self, blocks: u64) -> Result<(), BufferFull>;

    /// A range within one granule, up to that granule's end, became a part of the volume: puts its content, from block
    /// `from` of `data` on, behind what any layer holds of the granule.
    fn complete(&mut self, range: Range, data: &Data<P>, from: u32) -> Result<(), BufferFull>;

    /// Percent of the limit in use.
    fn fullness(&self) -> u8;
}
