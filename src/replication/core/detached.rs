//! A primary without its disk: what a stripe machine does when the disk below fails something and the group goes on
//! through the peer, until a replacement is filled.
//!
//! The way there has two steps, as a cut has. *Suspended*, a machine launches nothing and acknowledges nothing that the peer
//! has not applied; it tells when the peer has all that was ever acknowledged here, or that it has not. Only when every
//! machine of the group has all, and the durable record says that this disk is worth nothing, the disk is *detached*. So:
//!
//! Invariants. Nothing is acknowledged without the disk before the record says so and every reactor knows: none reads it
//! any more. From then on, until the replacement is attached, whatever is acknowledged the peer has applied, in every mode
//! and for every volume of the group. The peer's lanes are the order of everything: what is read is read behind the writes
//! that came before on the lane. A replacement gets every write from the moment it is being filled, under the range lock, and
//! is read only when all of it was copied and flushed and the record says so. Nothing is marked dirty of a volume without a
//! disk: there is nothing here that the peer could lack.

use super::primary::{Kind, Link, Local, Op, Peer, PrimaryOutput, PrimaryStripes};
use super::table::OpId;
use super::types::*;
use std::collections::VecDeque;

/// What is read from the peer at once to fill a replacement: as much as a copy to the peer moves.
const FILL_BYTES: u32 = 256 << 10;
/// Such reads under way together.
const FILL_DEPTH: u32 = 8;
/// Ticks between two looks whether the disk hangs: a look goes over all that is under way.
const LOOK_TICKS: u32 = 25;

/// The disk below the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LocalDisk {
    Attached,
    /// Nothing goes there, and nothing that is still there counts.
    Gone,
    /// A replacement is being filled: the next block to copy, and how many copies are under way.
    Filling {
        cursor: u64,
        in_flight: u32,
        round: u32,
    },
    /// It is filled; what was copied is being made durable.
    Flushing,
    /// It is whole, and the record will say so. Still the peer is what is read.
    Filled,
}

pub(super) struct Detached {
    pub disk: LocalDisk,
    /// Between a failure of a disk and the decision what becomes of it: whether it was told that the peer has all.
    suspended: Option<Told>,
    /// A volume of the group has no disk here.
    pub leans: bool,
    fill_round: u32,
    /// Reads that wait for the link, or for others to end.
    waiting: VecDeque<OpId>,
    /// Blocks under way from the peer.
    reading_blocks: u64,
    tick: u32,
    /// The tick in which the disk was last said to hang.
    said_hung: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Nothing,
    Answer,
}

impl Default for Detached {
    fn default() -> Detached {
        Detached {
            disk: LocalDisk::Attached,
            suspended: None,
            leans: false,
            fill_round: 0,
            waiting: VecDeque::new(),
            reading_blocks: 0,
            tick: 0,
            said_hung: None,
        }
    }
}

impl Detached {
    /// Whether an acknowledgement takes that the peer has applied the write, whatever the mode.
    pub fn needs_peer(&self) -> bool {
        self.leans || self.suspended.is_some()
    }

    pub fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    pub fn is_attached(&self) -> bool {
        self.disk == LocalDisk::Attached
    }

    /// Whether writes go to the disk below as well.
    pub fn takes_writes(&self) -> bool {
        self.disk != LocalDisk::Gone
    }

    /// Whether flushes do: before a replacement is filled the end of that covers everything.
    pub fn takes_flushes(&self) -> bool {
        matches!(self.disk, LocalDisk::Attached | LocalDisk::Flushing | LocalDisk::Filled)
    }

    pub fn now(&self) -> u32 {
        self.tick
    }
}

impl<P: Payload> PrimaryStripes<P> {
    /// Whether the calling reactor's reads go to the disk below.
    pub fn reads_disk(&self) -> bool {
        self.detached.is_attached() && !self.detached.is_suspended()
    }

    /// Whether a failed read of the disk below is to come here, because the peer may have the answer.
    pub fn takes_failed_reads(&self) -> bool {
        self.config.on_disk_failure == OnDiskFailure::Detach
    }

    /// What a failure of the disk below does to the operation: it waits for the group's decision, or it ends. `true`: it waits.
    pub(super) fn disk_failed(
        &mut self,
        id: OpId,
        failure: DiskFailure,
        out: &mut Vec<PrimaryOutput<P>>,
    ) -> bool {
        out.push(PrimaryOutput::Event(StripeEvent::DiskFailed(failure)));
        let decides = self.config.on_disk_failure == OnDiskFailure::Detach
            && matches!(self.detached.disk, LocalDisk::Attached | LocalDisk::Flushing | LocalDisk::Filled);
        if decides && let Some(op) = self.ops.get_mut(id) {
            op.local = Local::Failing;
        }
        decides
    }

    /// First step: launches nothing more, and tells when the peer has everything that was acknowledged here.
    pub fn suspend(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if self.detached.suspended.is_none() {
            self.detached.suspended = Some(Told::Nothing);
        }
        self.tell_if_suspended(out);
    }

    /// The peer lacks something, or may: nothing else can be said after that until the decision.
    pub(super) fn tell_if_suspended(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if self.detached.suspended != Some(Told::Nothing) {
            return;
        }
        let up = matches!(self.link, Link::Up { preserve: true, .. });
        let lacks = !up || self.is_copying() || self.dirty.bytes() > 0;
        let under_way = |op: &Op<P>| matches!(op.peer, Peer::Sent { .. }) && !op.awaits_data();
        if !lacks && self.ops.iter().any(|(_, op)| under_way(op)) {
            return;
        }
        self.detached.suspended = Some(Told::Answer);
        out.push(PrimaryOutput::Event(StripeEvent::Suspended { has_all: !lacks }));
    }

    /// The disk stays: what it failed its hosts hear, everything else goes on.
    pub fn keep_disk(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        self.detached.suspended = None;
        for id in self.in_order(|op| op.local == Local::Failing) {
            self.fail_here(id, out);
        }
        self.settle_all(out);
        self.unpark(out);
        self.read_more(out);
    }

    /// Ends an operation that the disk failed.
    pub(super) fn fail_here(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        op.local = Local::Failed;
        let range = op.range();
        if matches!(op.kind, Kind::Write { .. } | Kind::Compare { .. }) && op.peer != Peer::NotSent {
            self.mark(range, false);
        }
        self.unlock(id, out);
        self.settle(id, out);
    }

    /// Second step: a volume of the group goes on without its disk; `here` if it is this one's. The record says so.
    pub fn detach(&mut self, here: bool, out: &mut Vec<PrimaryOutput<P>>) {
        self.detached.suspended = None;
        self.detached.leans = true;
        if here {
            self.disk_gone(out);
        }
        self.settle_all(out);
        self.unpark(out);
        self.read_more(out);
    }

    /// Nothing that the disk still has to do counts any more.
    fn disk_gone(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        self.detached.disk = LocalDisk::Gone;
        self.cancel_verify(out);
        for id in self.in_order(|op| matches!(op.local, Local::Failing | Local::Submitted)) {
            let Some(op) = self.ops.get_mut(id) else { continue };
            match (&op.kind, op.peer) {
                (Kind::Fill { .. }, _) => {
                    self.unlock(id, out);
                    self.ops.remove(id);
                    continue;
                }
                // It failed before it was launched: its old content, or what it reads, comes from the peer.
                (Kind::Read { .. } | Kind::Compare { .. }, Peer::NotSent) => {
                    op.local = Local::Waiting;
                    self.read_there(id, out);
                    continue;
                }
                _ => op.local = Local::Done,
            }
            self.unlock(id, out);
        }
    }

    /// A replacement is there: from now on it gets every write, and is filled with what the peer has.
    pub fn fill(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if self.detached.disk != LocalDisk::Gone {
            return;
        }
        self.detached.fill_round = self.detached.fill_round.wrapping_add(1);
        self.detached.disk = LocalDisk::Filling { cursor: 0, in_flight: 0, round: self.detached.fill_round };
        self.fill_more(out);
    }

    /// The replacement is the disk from now on. `leans` if another volume of the group has none.
    pub fn attach(&mut self, here: bool, leans: bool, out: &mut Vec<PrimaryOutput<P>>) {
        if here {
            self.detached.disk = LocalDisk::Attached;
        }
        self.detached.leans = leans;
        self.settle_all(out);
        self.unpark(out);
        self.read_more(out);
    }

    /// What is left to fill, in bytes, if anything is.
    pub fn fill_left(&self) -> Option<u64> {
        let block = u64::from(self.config.geometry.block_bytes);
        match self.detached.disk {
            LocalDisk::Filling { cursor, .. } => {
                let owners = u64::from(self.config.geometry.owners.max(1));
                Some(self.blocks.saturating_sub(cursor) * block / owners)
            }
            LocalDisk::Flushing | LocalDisk::Filled => Some(0),
            LocalDisk::Attached | LocalDisk::Gone => None,
        }
    }

    pub fn is_filling(&self) -> bool {
        matches!(self.detached.disk, LocalDisk::Filling { .. })
    }

    pub(super) fn fill_more(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        while let LocalDisk::Filling { cursor, in_flight, round } = self.detached.disk {
            let Some(range) = self.next_owned(cursor, self.blocks, FILL_BYTES) else {
                if in_flight == 0 {
                    self.detached.disk = LocalDisk::Flushing;
                    self.enter_own(Kind::FillFlush { round }, out);
                }
                return;
            };
            if in_flight >= FILL_DEPTH || !self.takes_allowance(range) {
                return;
            }
            let cursor = range.end();
            self.detached.disk = LocalDisk::Filling { cursor, in_flight: in_flight + 1, round };
            self.enter_own(Kind::Fill { range, round }, out);
        }
    }

    fn is_stale_fill(&self, round: u32) -> bool {
        let filling = matches!(self.detached.disk, LocalDisk::Filling { .. } | LocalDisk::Flushing);
        !filling || round != self.detached.fill_round
    }

    /// A copy for the replacement holds its range.
    pub(super) fn fill_granted(&mut self, id: OpId, round: u32, out: &mut Vec<PrimaryOutput<P>>) {
        if self.is_stale_fill(round) {
            self.unlock(id, out);
            self.ops.remove(id);
        } else {
            self.read_there(id, out);
        }
    }

    /// The replacement took, or failed, what was copied to it.
    pub(super) fn filled_here(&mut self, id: OpId, ok: bool, out: &mut Vec<PrimaryOutput<P>>) {
        self.unlock(id, out);
        let Some(op) = self.ops.remove(id) else { return };
        let (Kind::Fill { round, .. } | Kind::FillFlush { round }) = op.kind else { return };
        if self.is_stale_fill(round) {
            return;
        }
        if !ok {
            let flush = matches!(op.kind, Kind::FillFlush { .. });
            return self.replacement_failed(if flush { DiskFailure::Flush } else { DiskFailure::Write }, out);
        }
        match &mut self.detached.disk {
            LocalDisk::Filling { in_flight, .. } => {
                *in_flight = in_flight.saturating_sub(1);
                self.fill_more(out);
            }
            disk => {
                *disk = LocalDisk::Filled;
                out.push(PrimaryOutput::Event(StripeEvent::Filled));
            }
        }
    }

    /// The replacement is no better than what it replaces.
    pub(super) fn replacement_failed(&mut self, failure: DiskFailure, out: &mut Vec<PrimaryOutput<P>>) {
        out.push(PrimaryOutput::Event(StripeEvent::DiskFailed(failure)));
        self.disk_gone(out);
        self.settle_all(out);
    }

    /// A host's read that did not go to the disk from where it came.
    pub(super) fn enter_read(&mut self, op: Op<P>, out: &mut Vec<PrimaryOutput<P>>) {
        let id = self.ops.insert(op);
        if self.reads_disk() { self.read_here(id, out) } else { self.read_there(id, out) }
    }

    fn read_here(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        if let Kind::Read { range, into } = &op.kind {
            out.push(PrimaryOutput::HostRead { op: id, range: *range, into: into.clone() });
        }
    }

    /// A read of the disk below, for a host, ended.
    pub fn host_read(&mut self, id: OpId, ok: bool, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        if !matches!(op.kind, Kind::Read { .. }) || op.local != Local::Waiting || op.peer != Peer::NotSent {
            return;
        }
        if ok {
            op.local = Local::Done;
            return self.settle(id, out);
        }
        if !self.detached.is_attached() {
            return self.read_there(id, out);
        }
        if !self.disk_failed(id, DiskFailure::Read, out) {
            self.fail_here(id, out);
        }
    }

    /// Asks the peer for what an operation reads, as soon as that may be: a read, the old content of a compare, a copy.
    pub(super) fn read_there(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        self.detached.waiting.push_back(id);
        self.read_more(out);
    }

    /// Whether no more should be asked of the peer now: what is on its way back is bounded as the lag is.
    fn reads_wait(&self) -> bool {
        let bytes = self.detached.reading_blocks * u64::from(self.config.geometry.block_bytes);
        let down = !matches!(self.link, Link::Up { .. });
        let from_peer = down || self.congested || bytes >= self.config.lag_limit_bytes;
        self.detached.is_suspended() || !self.detached.is_attached() && from_peer
    }

    pub(super) fn read_more(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        while !self.reads_wait()
            && let Some(id) = self.detached.waiting.pop_front()
        {
            self.send_read(id, out);
        }
    }

    fn send_read(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get(id) else { return };
        if self.detached.is_attached() {
            // The decision was to keep the disk, or there is one again.
            return match op.kind {
                Kind::Compare { .. } => self.granted(id, out),
                _ => self.read_here(id, out),
            };
        }
        let Link::Up { generation, .. } = self.link else { return };
        if let Kind::Fill { round, .. } = op.kind
            && self.is_stale_fill(round)
        {
            self.unlock(id, out);
            self.ops.remove(id);
            return;
        }
        let Some(op) = self.ops.get_mut(id) else { return };
        let range = op.range();
        op.peer = Peer::Sent { unreceived: 1, unapplied: 1 };
        self.detached.reading_blocks += u64::from(range.blocks);
        self.lag_ops += 1;
        let lane = Geometry::owner_of(range.lba, self.config.geometry.block_bytes, self.lanes);
        let forward = Forward { epoch: self.epoch, generation, body: ForwardBody::Read { range } };
        out.push(PrimaryOutput::Send { op: id, lane, bytes: 0, forward });
    }

    /// Whether the operation waits for data of the peer, and for nothing else.
    pub fn awaits_data(&self, id: OpId) -> bool {
        self.ops.get(id).is_some_and(Op::awaits_data)
    }

    /// A read of the peer ended, one way or the other.
    fn read_ended(&mut self, id: OpId) -> bool {
        let Some(op) = self.ops.get_mut(id).filter(|op| op.awaits_data()) else { return false };
        op.peer = Peer::NotSent;
        let blocks = u64::from(op.range().blocks);
        self.detached.reading_blocks = self.detached.reading_blocks.saturating_sub(blocks);
        self.lag_ops = self.lag_ops.saturating_sub(1);
        true
    }

    /// What the peer has in the range that an operation asked for. `false` if none did.
    pub fn read_data(&mut self, id: OpId, content: P, out: &mut Vec<PrimaryOutput<P>>) -> bool {
        if self.ops.get(id).is_none() {
            // Its host was told long ago that it takes too long.
            return true;
        }
        if !self.read_ended(id) {
            return false;
        }
        let stale = match self.ops.get(id).map(|op| &op.kind) {
            Some(Kind::Fill { round, .. }) => self.is_stale_fill(*round),
            _ => false,
        };
        let now = self.detached.tick;
        let Some(op) = self.ops.get_mut(id) else { return true };
        match &mut op.kind {
            Kind::Read { range, into } => {
                into.copy_from(0, &content, 0, range.blocks);
                op.local = Local::Done;
                self.settle(id, out);
            }
            Kind::Compare { .. } => self.compare_read(id, Some(&content), out),
            Kind::Fill { .. } if stale => {
                self.unlock(id, out);
                self.ops.remove(id);
            }
            Kind::Fill { range, .. } => {
                let (range, data) = (*range, Data::Bytes(content));
                (op.local, op.asked) = (Local::Submitted, now);
                out.push(PrimaryOutput::SubmitWrite { op: id, range, data, fua: false });
            }
            _ => {}
        }
        self.read_more(out);
        self.catch_up(out);
        true
    }

    /// The peer's disk failed a read, or hangs: nobody can tell what is there.
    pub(super) fn read_failed_there(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        if !self.read_ended(id) {
            return;
        }
        let Some(op) = self.ops.get_mut(id) else { return };
        if matches!(op.kind, Kind::Fill { .. }) {
            self.unlock(id, out);
            self.ops.remove(id);
            out.push(PrimaryOutput::Event(StripeEvent::FillFailed));
            self.disk_gone(out);
        } else {
            op.local = Local::Failed;
            self.unlock(id, out);
            self.settle(id, out);
        }
        self.read_more(out);
    }

    /// The link is gone: what was being read is asked for again when there is another, behind what is sent again; a
    /// replacement that is not whole is begun anew then.
    pub(super) fn reads_lost(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        for id in self.in_order(Op::awaits_data) {
            if self.read_ended(id) {
                self.detached.waiting.push_back(id);
            }
        }
        self.detached.reading_blocks = 0;
        if matches!(self.detached.disk, LocalDisk::Filling { .. } | LocalDisk::Flushing) {
            // What the replacement has of writes still holds its ranges: those that begin it anew wait for it.
            self.detached.disk = LocalDisk::Gone;
        }
        self.tell_if_suspended(out);
    }

    /// The passing of time. A disk that has had a write or flush for `hung` ticks has failed it. What waits for a peer that is
    /// not there, or for a decision, ends with an error after `patience` of them: there is no data anywhere here.
    pub fn disk_tick(&mut self, hung: u32, patience: u32, out: &mut Vec<PrimaryOutput<P>>) {
        self.detached.tick = self.detached.tick.wrapping_add(1);
        self.look_for_hangs(hung, out);
        self.give_up_waiting(patience, out);
    }

    fn look_for_hangs(&mut self, hung: u32, out: &mut Vec<PrimaryOutput<P>>) {
        let now = self.detached.tick;
        let old = |since: u32| now.wrapping_sub(since) >= hung;
        let looks = self.config.on_disk_failure == OnDiskFailure::Detach
            && now.is_multiple_of(LOOK_TICKS.min(hung))
            && self.detached.takes_writes()
            && !self.detached.is_suspended()
            && self.detached.said_hung.is_none_or(old);
        if !looks || !self.ops.iter().any(|(_, op)| op.local == Local::Submitted && old(op.asked)) {
            return;
        }
        self.detached.said_hung = Some(now);
        if self.is_filling() {
            self.replacement_failed(DiskFailure::Hung, out);
        } else {
            out.push(PrimaryOutput::Event(StripeEvent::DiskFailed(DiskFailure::Hung)));
        }
    }

    fn give_up_waiting(&mut self, patience: u32, out: &mut Vec<PrimaryOutput<P>>) {
        let waits = !matches!(self.link, Link::Up { .. }) || self.detached.is_suspended();
        if !waits || !self.detached.needs_peer() {
            return;
        }
        let now = self.detached.tick;
        for id in self.in_order(|op| !op.replied && now.wrapping_sub(op.asked) >= patience) {
            let Some(op) = self.ops.get(id) else { continue };
            if op.local == Local::Submitted {
                self.reply(id, Err(Refusal::NoDisk), out);
            } else {
                self.refuse(id, Refusal::NoDisk, out);
            }
        }
    }

    /// Whether launching has to wait because of the peer, or of a decision.
    pub(super) fn launches_wait(&self) -> bool {
        let up = matches!(self.link, Link::Up { .. });
        self.detached.is_suspended() || self.detached.leans && !up
    }
}

impl<P> Op<P> {
    /// Under way to read from the peer.
    pub(super) fn awaits_data(&self) -> bool {
        let reads = match self.kind {
            Kind::Read { .. } | Kind::Fill { .. } => true,
            // Before it is launched.
            Kind::Compare { .. } => self.local == Local::Waiting,
            _ => false,
        };
        reads && matches!(self.peer, Peer::Sent { .. })
    }
}
