//! One reactor's ring of batches: what is written next, and where. No I/O.
//!
//! Invariants. One batch is under way at a time, so only the newest can be torn. A batch is overwritten only after a later
//! one is durable that says that it is not needed any more. One block is always left, for a batch without records: with it
//! the ring tells that older batches are not needed, or that originals were lost.

use std::collections::VecDeque;

use super::format::{BATCH_BYTES, BLOCK_BYTES, Head, RECORDS_MAX, Record, Ring};
use crate::env::{Buf, SgList, sg_len};
use crate::replication::Epoch;
use crate::replication::core::Journaled as Outcome;

/// What is to be durable before an in-place write is submitted.
#[derive(Debug)]
pub struct Request<T> {
    pub token: T,
    pub volume: u16,
    pub epoch: Epoch,
    /// In bytes of the volume.
    pub offset: u64,
    /// The original; empty for one that only says what was lost.
    pub content: SgList,
    /// Originals of epochs through this one are not all kept.
    pub lost_through: Epoch,
}

struct Pending<T> {
    request: Request<T>,
    /// Bytes that earlier batches took.
    taken: usize,
    failed: bool,
}

/// A batch whose place is not free yet.
#[derive(Clone, Copy, Debug)]
struct Kept {
    sequence: u64,
    /// With what was left out before it, at the end of the ring.
    bytes: u64,
    /// The newest epoch that it has an original of.
    through: Epoch,
}

struct UnderWay<T> {
    oldest: u64,
    lost_through: Epoch,
    head_before: u64,
    /// Requests that end with this batch.
    ending: Vec<(T, bool)>,
}

pub(super) struct Area<T> {
    ring: Ring,
    bytes: u64,
    /// Where the next batch goes.
    head: u64,
    /// Of the newest durable batch, or of the one under way.
    sequence: u64,
    kept: VecDeque<Kept>,
    kept_bytes: u64,
    committed: Epoch,
    /// Durable.
    lost_through: Epoch,
    pending: VecDeque<Pending<T>>,
    under_way: Option<UnderWay<T>>,
    /// Requests' list of the last batch, for reuse.
    spare: Vec<(T, bool)>,
}

const BLOCK: u64 = BLOCK_BYTES as u64;

impl<T: Copy> Area<T> {
    /// An empty ring of so many bytes, a multiple of a block.
    pub fn new(ring: Ring, bytes: u64) -> Area<T> {
        Area {
            ring,
            bytes,
            head: 0,
            sequence: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            committed: Epoch(0),
            lost_through: Epoch(0),
            pending: VecDeque::new(),
            under_way: None,
            spare: Vec::new(),
        }
    }

    pub fn request(&mut self, request: Request<T>) {
        self.pending.push_back(Pending { request, taken: 0, failed: false });
    }

    /// Nothing leads back beyond this epoch any more.
    pub fn committed(&mut self, epoch: Epoch) {
        self.committed = self.committed.max(epoch);
    }

    pub fn used_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Bytes that are in use for good: without what the next batch frees.
    pub fn needed_percent(&self) -> u64 {
        let dead = self.kept.iter().take_while(|kept| self.is_dead(kept, self.lost_through));
        let needed = self.kept_bytes - dead.map(|kept| kept.bytes).sum::<u64>();
        needed * 100 / self.bytes.max(1)
    }

    pub fn has_work(&self) -> bool {
        !self.pending.is_empty() && self.under_way.is_none()
    }

    fn is_dead(&self, kept: &Kept, lost_through: Epoch) -> bool {
        kept.through <= self.committed.max(lost_through)
    }

    /// The oldest batch that a batch written now has to keep.
    fn oldest(&self, lost_through: Epoch, sequence: u64) -> u64 {
        let needed = self.kept.iter().find(|kept| !self.is_dead(kept, lost_through));
        needed.map_or(sequence, |kept| kept.sequence)
    }

    /// Builds the next batch in `buffer`, of [`BATCH_BYTES`]. Tells where in the ring to write how many of its bytes; the
    /// end comes by [`Area::written`]. Requests without room are told so.
    pub fn next(&mut self, buffer: &Buf, end: &mut impl FnMut(T, Outcome)) -> Option<(u64, usize)> {
        self.pass(end);
        if !self.has_work() {
            return None;
        }
        let sequence = self.sequence + 1;
        let lost_through = self.lost_by_next();
        let oldest = self.oldest(lost_through, sequence);
        let mut ending = std::mem::take(&mut self.spare);
        let (skip, room) = self.place();
        let mut batch = Batch { at: BLOCK_BYTES, records: 0, through: Epoch(0), room };
        self.fill(buffer, &mut batch, &mut ending);
        if batch.records == 0
            && ending.is_empty()
            && self.kept.front().is_none_or(|kept| kept.sequence >= oldest)
        {
            // Nothing fits, and nothing becomes free by saying so.
            self.spare = ending;
            self.refuse(end);
            return self.next(buffer, end);
        }
        let skip = if batch.at == BLOCK_BYTES { 0 } else { skip };
        let head = Head {
            ring: self.ring,
            sequence,
            oldest,
            lost_through,
            blocks: (batch.at / BLOCK_BYTES) as u32,
            records: batch.records as u16,
        };
        buffer.with_mut(|bytes| head.encode(&mut bytes[..BLOCK_BYTES]));
        let at = if skip > 0 { 0 } else { self.head };
        self.under_way = Some(UnderWay { oldest, lost_through, head_before: self.head, ending });
        self.sequence = sequence;
        self.head = (at + batch.at as u64) % self.bytes;
        let kept = Kept { sequence, bytes: skip + batch.at as u64, through: batch.through };
        self.kept_bytes += kept.bytes;
        self.kept.push_back(kept);
        Some((at, batch.at))
    }

    /// Where a batch with records would go: what is left out before it, and the room there.
    fn place(&self) -> (u64, usize) {
        let free = (self.bytes - self.kept_bytes).saturating_sub(BLOCK);
        let to_end = self.bytes - self.head;
        let (here, at_start) = (free.min(to_end), free.saturating_sub(to_end));
        let wanted =
            self.pending.iter().map(|p| sg_len(&p.request.content) - p.taken + BLOCK_BYTES).sum::<usize>();
        let enough = (wanted + BLOCK_BYTES).min(BATCH_BYTES) as u64;
        let (skip, room) = if here >= enough || here >= at_start { (0, here) } else { (to_end, at_start) };
        (skip, (room as usize).min(BATCH_BYTES))
    }

    /// Takes from the requests in their order what fits.
    fn fill(&mut self, buffer: &Buf, batch: &mut Batch, ending: &mut Vec<(T, bool)>) {
        while let Some(pending) = self.pending.front_mut() {
            let left = sg_len(&pending.request.content) - pending.taken;
            let taken =
                if pending.failed { left } else { batch.take(buffer, &pending.request, pending.taken) };
            pending.taken += taken;
            if taken < left {
                return;
            }
            ending.push((pending.request.token, !pending.failed));
            self.pending.pop_front();
        }
    }

    /// What the next batch says to be lost. If it says more than the last one, everything here goes with it, so that there
    /// is room for what comes after.
    fn lost_by_next(&self) -> Epoch {
        let asked = self.pending.iter().map(|pending| pending.request.lost_through).max().unwrap_or_default();
        match asked > self.lost_through {
            true => self.kept.iter().map(|kept| kept.through).max().unwrap_or_default().max(asked),
            false => self.lost_through,
        }
    }

    /// Requests that only say what the ring says already.
    fn pass(&mut self, end: &mut impl FnMut(T, Outcome)) {
        let lost_through = self.lost_through;
        self.pending.retain(|pending| {
            let said = pending.request.content.is_empty() && pending.request.lost_through <= lost_through;
            if said {
                end(pending.request.token, Outcome::Durable);
            }
            !said
        });
    }

    /// Whoever waits with an original is told that there is no room.
    fn refuse(&mut self, end: &mut impl FnMut(T, Outcome)) {
        self.pending.retain(|pending| {
            let original = !pending.request.content.is_empty();
            if original {
                end(pending.request.token, Outcome::Full);
            }
            !original
        });
    }

    /// The batch is durable, or the disk failed it.
    pub fn written(&mut self, ok: bool, mut end: impl FnMut(T, Outcome)) {
        let Some(mut batch) = self.under_way.take() else { return };
        if ok {
            self.lost_through = batch.lost_through;
            while let Some(kept) = self.kept.front().filter(|kept| kept.sequence < batch.oldest) {
                self.kept_bytes -= kept.bytes;
                self.kept.pop_front();
            }
        } else {
            // The next one takes its place and its number, so that at most one of the two is ever found.
            if let Some(kept) = self.kept.pop_back() {
                self.kept_bytes -= kept.bytes;
            }
            self.head = batch.head_before;
            self.sequence -= 1;
            if let Some(partly) = self.pending.front_mut().filter(|pending| pending.taken > 0) {
                partly.failed = true;
            }
        }
        for (token, complete) in batch.ending.drain(..) {
            end(token, if ok && complete { Outcome::Durable } else { Outcome::Failed });
        }
        self.spare = batch.ending;
    }
}

/// A batch that is being filled.
struct Batch {
    at: usize,
    records: usize,
    through: Epoch,
    room: usize,
}

impl Batch {
    /// Takes as much of a request as there is room for, from `from` on; returns how much.
    fn take<T>(&mut self, buffer: &Buf, request: &Request<T>, from: usize) -> usize {
        let total = sg_len(&request.content);
        let mut done = from;
        while done < total {
            if self.records == RECORDS_MAX {
                break;
            }
            let left = self.room.saturating_sub(self.at);
            let zero = is_zero(&request.content, done);
            let len = if zero { total - done } else { (total - done).min(left) };
            // A head takes a block as well, whatever follows it.
            if len == 0 || self.room < BLOCK_BYTES {
                break;
            }
            let crc = (!zero).then(|| {
                let place = buffer.slice(self.at, len);
                copy(&request.content, done, &place);
                place.crc32c(0)
            });
            let record = Record {
                epoch: request.epoch,
                volume: request.volume,
                offset: request.offset + done as u64,
                bytes: len as u32,
                crc,
            };
            buffer.with_mut(|bytes| record.encode(&mut bytes[..BLOCK_BYTES], self.records));
            self.at += record.room();
            self.records += 1;
            self.through = self.through.max(request.epoch);
            done += len;
        }
        done - from
    }
}

/// Whether everything from `from` on is zeroes.
fn is_zero(list: &[Buf], from: usize) -> bool {
    let mut skip = from;
    list.iter().all(|buf| {
        let before = skip.min(buf.len());
        skip -= before;
        before == buf.len() || buf.slice(before, buf.len() - before).is_zero()
    })
}

/// Fills `into` with what stands in a list from `from` on.
fn copy(list: &[Buf], from: usize, into: &Buf) {
    let (mut skip, mut done) = (from, 0);
    for buf in list {
        let before = skip.min(buf.len());
        skip -= before;
        let len = (buf.len() - before).min(into.len() - done);
        if len > 0 {
            into.copy_from(done, buf, before, len);
            done += len;
        }
    }
}
