//! The primary's stripe machine: every write of the stripes that one reactor owns of one volume.
//!
//! Invariants. Two writes that overlap are never in flight to the local disk together. A write goes to the local disk
//! and to the peer in the same step, so both see one order. Whatever the peer may lack is dirty before its host hears
//! of it. While frozen nothing is launched. Once fenced nothing is acknowledged. What the peer has not applied is bounded
//! by the lag limit and what hosts have outstanding, in every mode.
//!
//! A flush takes no range: it covers what was acknowledged before it came, which is on its way on every lane already.

use super::super::{Epoch, Generation};
use super::behind::Watch;
use super::copying::Copying;
use super::detached::Detached;
use super::dirty::DirtyMap;
use super::mutation::{Mutation, active};
use super::range_lock::{LockId, RangeLock};
use super::table::{OpId, Table};
use super::types::*;
use super::unsettled::Unsettled;
use super::verify::Verifying;
use smallvec::SmallVec;
use std::collections::VecDeque;

/// How far the peer's disk may lag behind what `local` and `received` acknowledge, over the volumes of a reactor. At
/// 10 Gbit/s it takes the peer 50 ms to catch up, the most that a loss of the primary may cost in `local` mode; beyond
/// it a write waits until the peer has caught up that far, which is how a slow peer slows the hosts down.
pub const LAG_BYTES: u64 = 64 << 20;
/// What a write counts for at least: the buffer that holds it.
const LAG_UNIT: u64 = 4096;

#[derive(Clone, Copy, Debug)]
pub struct PrimaryConfig {
    pub geometry: Geometry,
    pub ack: AckMode,
    pub on_link_loss: OnLinkLoss,
    pub on_disk_failure: OnDiskFailure,
    /// This machine's part of [`LAG_BYTES`].
    pub lag_limit_bytes: u64,
}

/// A connection to the peer that passed its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Reactors of the peer: one lane to each, stripes dealt out among them as among our own.
    pub lanes: u16,
    pub generation: Generation,
    /// The first epoch of the session.
    pub epoch: Epoch,
    /// False while a full sync runs.
    pub preserve: bool,
}

#[derive(Clone, Debug)]
pub enum PrimaryOutput<P> {
    /// Reads the old content for a compare; comes back by [`PrimaryStripes::compare_read`].
    CompareRead {
        op: OpId,
        range: Range,
        into: P,
    },
    /// Reads for a host; comes back by [`PrimaryStripes::host_read`].
    HostRead {
        op: OpId,
        range: Range,
        into: P,
    },
    /// Reads the source of a full sync; comes back by [`PrimaryStripes::copy_read`].
    CopyRead {
        op: OpId,
        range: Range,
    },
    /// Reads what is to be compared with the peer; comes back by [`PrimaryStripes::verify_read`].
    VerifyRead {
        op: OpId,
        range: Range,
    },
    /// Goes to the local disk; comes back by [`PrimaryStripes::local_done`].
    SubmitWrite {
        op: OpId,
        range: Range,
        data: Data<P>,
        fua: bool,
    },
    SubmitFlush {
        op: OpId,
    },
    /// Goes to the peer; comes back by [`PrimaryStripes::received`] and [`PrimaryStripes::applied`], or by
    /// [`PrimaryStripes::read_data`].
    Send {
        op: OpId,
        lane: Lane,
        bytes: u32,
        forward: Forward<P>,
    },
    Reply {
        token: Token,
        result: Result<(), Refusal>,
    },
    Event(StripeEvent),
}

pub(super) enum Kind<P> {
    Write {
        range: Range,
        data: Data<P>,
        fua: bool,
    },
    Compare {
        range: Range,
        compare: P,
        data: P,
        scratch: P,
        fua: bool,
    },
    /// The round that it closes at the peer; 0 where it closes none.
    Flush {
        round: u64,
    },
    /// `round` tells the copies of an earlier full sync, which a lost link ended, from those of this one.
    Copy {
        range: Range,
        source: Source<P>,
        round: u32,
    },
    /// Not from the disk below, or that failed it.
    Read {
        range: Range,
        into: P,
    },
    /// Copies from the peer to the replacement of the disk below.
    Fill {
        range: Range,
        round: u32,
    },
    /// Makes durable what was filled.
    FillFlush {
        round: u32,
    },
    /// Compares the disks; takes its place among the writes as a copy does.
    Verify {
        range: Range,
        digest: Option<Digest>,
        round: u32,
    },
}

/// What a copy brings the peer.
pub(super) enum Source<P> {
    /// It is to be read; to be compared by checksum first, or not.
    Unread {
        compare: bool,
    },
    Content(Data<P>),
    /// Only if the peer's disk has something else, the content follows.
    Digest(Digest),
}

/// The local half of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Local {
    /// In the range lock, parked, or reading for a compare or a copy.
    Waiting,
    Submitted,
    Done,
    /// The disk failed it; the group decides whether that counts.
    Failing,
    Failed,
}

/// The peer's half. A flush goes out on every lane, everything else on one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    NotSent,
    Sent {
        unreceived: u16,
        unapplied: u16,
    },
    Applied,
    /// The link went away before the answer: the range is dirty.
    Lost,
}

pub(super) struct Op<P> {
    pub kind: Kind<P>,
    token: Token,
    /// Arrival order, in which operations are sent again.
    order: u64,
    /// When it came.
    pub since: u32,
    /// When it came, or else was launched, as the disk is watched.
    pub asked: u32,
    lock: Option<LockId>,
    pub local: Local,
    pub peer: Peer,
    pub replied: bool,
    /// In the queue of those that wait for the peer to catch up.
    held_back: bool,
}

impl<P> Op<P> {
    pub(super) fn range(&self) -> Range {
        match self.kind {
            Kind::Write { range, .. }
            | Kind::Compare { range, .. }
            | Kind::Copy { range, .. }
            | Kind::Read { range, .. }
            | Kind::Fill { range, .. }
            | Kind::Verify { range, .. } => range,
            Kind::Flush { .. } | Kind::FillFlush { .. } => Range::new(0, 0),
        }
    }

    /// What it brings the peer's disk.
    fn payload_bytes(&self, block_bytes: u32) -> u32 {
        match self.kind {
            Kind::Verify { .. }
            | Kind::Read { .. }
            | Kind::Fill { .. }
            | Kind::Copy { source: Source::Digest(_), .. } => 0,
            _ => self.range().blocks * block_bytes,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Link {
    Up {
        generation: Generation,
        preserve: bool,
    },
    /// Before the first session nothing waits for the peer, whatever the policy.
    Down {
        lost: bool,
    },
}

/// Whether launching is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gate {
    Open,
    Frozen,
    Fenced,
}

/// Whether writes may go on without the peer, while there is no link. The first one that would is held until this node has
/// a name for what it does alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Alone {
    No,
    Asked,
    Yes,
}

pub struct PrimaryStripes<P> {
    /// Its geometry has the blocks that there is room for: never fewer than the volume has, never fewer than before.
    pub(super) config: PrimaryConfig,
    /// The volume's size.
    pub(super) blocks: u64,
    pub(super) ops: Table<Op<P>>,
    lock: RangeLock<OpId>,
    pub(super) lanes: u16,
    lag_bytes: u64,
    pub(super) lag_ops: u64,
    /// Done but for the peer's lag, in the order in which they are acknowledged when it has caught up.
    lagging: VecDeque<OpId>,
    pub(super) link: Link,
    pub(super) gate: Gate,
    alone: Alone,
    /// A connection to the peer takes no more for now.
    pub(super) congested: bool,
    pub(super) epoch: Epoch,
    pub(super) dirty: DirtyMap,
    unsettled: Unsettled,
    /// Granted, but the gate was shut or the link is down and writes wait for it.
    parked: VecDeque<OpId>,
    pub(super) copying: Copying,
    pub(super) copy_round: u32,
    /// What was marked when the copy began.
    pub(super) copy_bytes: u64,
    /// Bytes of it that the peer had already.
    pub(super) equal_bytes: u64,
    /// Whether pieces are compared by checksum before they are sent.
    pub(super) compares: bool,
    /// Pieces that were compared and are different, to be sent.
    pub(super) again: VecDeque<Range>,
    /// What may be copied before the next allowance; less than nothing after a piece that was larger than it.
    pub(super) allowance: Option<i64>,
    pub(super) verifying: Verifying,
    pub(super) watch: Watch,
    pub(super) detached: Detached,
    order: u64,
}

impl<P: Payload> PrimaryStripes<P> {
    pub fn new(config: PrimaryConfig) -> PrimaryStripes<P> {
        PrimaryStripes {
            config,
            blocks: config.geometry.blocks,
            ops: Table::new(),
            lock: RangeLock::new(),
            lanes: 1,
            lag_bytes: 0,
            lag_ops: 0,
            lagging: VecDeque::new(),
            link: Link::Down { lost: false },
            gate: Gate::Open,
            alone: Alone::Yes,
            congested: false,
            epoch: Epoch(0),
            dirty: DirtyMap::new(config.geometry),
            unsettled: Unsettled::new(config.geometry),
            parked: VecDeque::new(),
            copying: Copying::Idle,
            copy_round: 0,
            copy_bytes: 0,
            equal_bytes: 0,
            compares: false,
            again: VecDeque::new(),
            allowance: None,
            verifying: Verifying::default(),
            watch: Watch::default(),
            detached: Detached::default(),
            order: 0,
        }
    }

    pub fn dirty(&self) -> &DirtyMap {
        &self.dirty
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Operations that have not ended on both sides.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Bytes sent and not on the peer's disk.
    pub fn lag_bytes(&self) -> u64 {
        self.lag_bytes
    }

    #[cfg(any(test, feature = "simulation"))]
    pub fn token_of(&self, id: OpId) -> Token {
        self.ops.get(id).map_or(0, |op| op.token)
    }

    /// A host's command. Reads need no machine, unless the disk below failed them or is gone: they go to it as they are.
    pub fn submit(&mut self, token: Token, command: Command<P>, out: &mut Vec<PrimaryOutput<P>>) {
        let kind = match command {
            Command::Write { range, data, fua } => Kind::Write { range, data, fua },
            Command::CompareAndWrite { range, compare, data, scratch, fua } => {
                Kind::Compare { range, compare, data, scratch, fua }
            }
            Command::Flush => Kind::Flush { round: 0 },
            Command::Read { range, into } => Kind::Read { range, into },
        };
        if self.gate == Gate::Fenced {
            return out.push(PrimaryOutput::Reply { token, result: Err(Refusal::Fenced) });
        }
        let op = Op {
            kind,
            token,
            order: self.order,
            since: self.watch.tick,
            asked: self.detached.now(),
            lock: None,
            local: Local::Waiting,
            peer: Peer::NotSent,
            replied: false,
            held_back: false,
        };
        self.order += 1;
        let range = op.range();
        let whole = range.blocks == 0 || range.end() <= self.config.geometry.blocks;
        if !whole || (range.blocks == 0 && !matches!(op.kind, Kind::Flush { .. })) {
            return out.push(PrimaryOutput::Reply { token, result: Err(Refusal::OutOfRange) });
        }
        if matches!(op.kind, Kind::Read { .. }) {
            return self.enter_read(op, out);
        }
        self.enter(op, out);
    }

    /// Whether a read may be answered from the local disk.
    pub fn may_read(&self) -> Result<(), Refusal> {
        if self.gate == Gate::Fenced { Err(Refusal::Fenced) } else { Ok(()) }
    }

    pub(super) fn enter(&mut self, op: Op<P>, out: &mut Vec<PrimaryOutput<P>>) -> OpId {
        let range = op.range();
        let id = self.ops.insert(op);
        if range.blocks == 0 || active(Mutation::NoLockAtPrimary) {
            self.granted(id, out);
            return id;
        }
        let (lock, held) = self.lock.enter(range, id);
        if let Some(op) = self.ops.get_mut(id) {
            op.lock = Some(lock);
        }
        if held {
            self.granted(id, out);
        }
        id
    }

    fn shut(&self) -> bool {
        self.gate == Gate::Frozen
            || self.congested
            || self.launches_wait()
            || (self.link == Link::Down { lost: true } && self.config.on_link_loss == OnLinkLoss::Block)
            || (matches!(self.link, Link::Down { .. }) && self.alone != Alone::Yes)
    }

    /// Somebody waits to go on without the peer.
    fn ask_to_go_alone(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        let blocks = self.link == Link::Down { lost: true } && self.config.on_link_loss == OnLinkLoss::Block;
        let blocks = blocks || self.detached.needs_peer();
        if matches!(self.link, Link::Down { .. }) && self.alone == Alone::No && !blocks {
            self.alone = Alone::Asked;
            out.push(PrimaryOutput::Event(StripeEvent::WantsAlone));
        }
    }

    /// Until [`PrimaryStripes::go_alone`] nothing is acknowledged without the peer. A machine that was just made may, as one
    /// of a volume that never had a peer.
    pub fn stay_together(&mut self) {
        self.alone = Alone::No;
    }

    /// The record has a name for what this node does without its peer.
    pub fn go_alone(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if matches!(self.link, Link::Down { .. }) {
            self.alone = Alone::Yes;
            self.settle_all(out);
            self.unpark(out);
        }
    }

    /// The operation holds its range.
    pub(super) fn granted(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get(id) else { return };
        match &op.kind {
            Kind::Compare { .. } if !self.reads_disk() => self.read_there(id, out),
            Kind::Fill { round, .. } => self.fill_granted(id, *round, out),
            Kind::Read { .. } => {}
            Kind::Compare { range, scratch, .. } => {
                out.push(PrimaryOutput::CompareRead { op: id, range: *range, into: scratch.clone() });
            }
            Kind::Copy { range, round, .. } => {
                if self.is_stale(*round) {
                    let range = *range;
                    self.drop_copy(id, range);
                    self.unlock(id, out);
                    return self.finish(id);
                }
                // A bit set from here on belongs to a write that the copy does not contain.
                let range = *range;
                self.dirty.clear(range);
                out.push(PrimaryOutput::CopyRead { op: id, range });
            }
            Kind::Verify { range, .. } => out.push(PrimaryOutput::VerifyRead { op: id, range: *range }),
            Kind::Write { .. } | Kind::Flush { .. } | Kind::FillFlush { .. } => self.launch(id, out),
        }
    }

    /// Sends the operation to the local disk and to the peer, or parks it while that is not allowed.
    pub(super) fn launch(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        if self.gate == Gate::Fenced {
            return self.refuse(id, Refusal::Fenced, out);
        }
        if self.shut() {
            self.parked.push_back(id);
            return self.ask_to_go_alone(out);
        }
        let (writes, flushes) = (self.detached.takes_writes(), self.detached.takes_flushes());
        let now = self.detached.now();
        let Some(op) = self.ops.get_mut(id) else { return };
        op.asked = now;
        match &op.kind {
            Kind::Write { .. } | Kind::Compare { .. } if !writes => op.local = Local::Done,
            Kind::Flush { .. } if !flushes => op.local = Local::Done,
            Kind::Write { range, data, fua } => {
                op.local = Local::Submitted;
                out.push(PrimaryOutput::SubmitWrite { op: id, range: *range, data: data.clone(), fua: *fua });
            }
            Kind::Compare { range, data, fua, .. } => {
                op.local = Local::Submitted;
                let data = Data::Bytes(data.clone());
                out.push(PrimaryOutput::SubmitWrite { op: id, range: *range, data, fua: *fua });
            }
            Kind::Flush { .. } => {
                op.local = Local::Submitted;
                out.push(PrimaryOutput::SubmitFlush { op: id });
            }
            Kind::FillFlush { .. } => {
                op.local = Local::Submitted;
                return out.push(PrimaryOutput::SubmitFlush { op: id });
            }
            Kind::Copy { .. } | Kind::Verify { .. } | Kind::Read { .. } | Kind::Fill { .. } => {
                op.local = Local::Done;
            }
        }
        self.forward(id, out);
        if !writes {
            // The lane keeps the order from here on.
            self.unlock(id, out);
        }
    }

    /// Sends the operation to the peer, or marks what the peer will lack.
    fn forward(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let (generation, preserve) = match self.link {
            Link::Up { generation, preserve } => (generation, preserve),
            Link::Down { .. } if active(Mutation::ForgetDirtyAlone) => return,
            Link::Down { .. } => {
                return self.mark_lacking(id);
            }
        };
        let (epoch, range) = (self.epoch, op.range());
        let body = match &op.kind {
            Kind::Write { range, data, fua } => {
                ForwardBody::Write { range: *range, data: data.clone(), fua: *fua, preserve }
            }
            Kind::Compare { range, data, fua, .. } => {
                ForwardBody::Write { range: *range, data: Data::Bytes(data.clone()), fua: *fua, preserve }
            }
            Kind::Copy { range, source: Source::Content(data), .. } => {
                ForwardBody::Write { range: *range, data: data.clone(), fua: false, preserve }
            }
            Kind::Verify { range, digest: Some(digest), .. }
            | Kind::Copy { range, source: Source::Digest(digest), .. } => {
                ForwardBody::Verify { range: *range, digest: *digest }
            }
            Kind::Copy { source: Source::Unread { .. }, .. } | Kind::Verify { digest: None, .. } => return,
            Kind::Read { .. } | Kind::Fill { .. } | Kind::FillFlush { .. } => return,
            Kind::Flush { .. } => ForwardBody::Flush,
        };
        match &mut op.kind {
            Kind::Flush { round } => *round = self.unsettled.flush(),
            Kind::Verify { .. } | Kind::Copy { source: Source::Digest(_), .. } => {}
            Kind::Write { .. } | Kind::Compare { .. } | Kind::Copy { .. } => self.unsettled.sent(range),
            _ => {}
        }
        let lanes = match op.kind {
            Kind::Flush { .. } => 0..self.lanes,
            _ => {
                let lane = Geometry::owner_of(range.lba, self.config.geometry.block_bytes, self.lanes);
                lane..lane + 1
            }
        };
        let bytes = op.payload_bytes(self.config.geometry.block_bytes);
        let sent = lanes.len() as u16;
        self.lag_bytes += u64::from(bytes);
        self.lag_ops += 1;
        for lane in lanes {
            let forward = Forward { epoch, generation, body: body.clone() };
            out.push(PrimaryOutput::Send { op: id, lane, bytes, forward });
        }
        op.peer = Peer::Sent { unreceived: sent, unapplied: sent };
    }

    /// The old content for a compare; `None` when reading failed.
    pub fn compare_read(&mut self, id: OpId, content: Option<&P>, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get(id) else { return };
        let Kind::Compare { compare, .. } = &op.kind else { return };
        if op.local != Local::Waiting {
            return;
        }
        let equal = content.map(|content| content.equals(compare));
        let refusal = match equal {
            Some(true) => return self.launch(id, out),
            Some(false) => Refusal::Miscompare,
            None if !self.detached.is_attached() => return self.read_there(id, out),
            None if self.disk_failed(id, DiskFailure::Read, out) => return,
            None => Refusal::Disk,
        };
        if let Some(op) = self.ops.get_mut(id) {
            op.local = Local::Done;
        }
        self.reply(id, Err(refusal), out);
        self.unlock(id, out);
        self.finish(id);
    }

    /// What the peer may lack; of what lies behind the volume's end it lacks everything anyhow.
    pub(super) fn mark(&mut self, range: Range, is_copy: bool) {
        if self.detached.is_attached() && (!is_copy || range.lba < self.blocks) {
            self.dirty.mark(range);
        }
    }

    /// What the peer may lack of an operation; of a compared range it lacks nothing.
    fn mark_lacking(&mut self, id: OpId) {
        let Some(op) = self.ops.get(id) else { return };
        let (range, is_copy) = (op.range(), matches!(op.kind, Kind::Copy { .. }));
        if !matches!(op.kind, Kind::Verify { .. } | Kind::Read { .. }) {
            self.mark(range, is_copy);
        }
    }

    /// A local write or flush ended.
    pub fn local_done(&mut self, id: OpId, ok: bool, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        if op.local != Local::Submitted {
            return;
        }
        let ok = ok || active(Mutation::AckLocalErrors);
        if matches!(op.kind, Kind::Fill { .. } | Kind::FillFlush { .. }) {
            return self.filled_here(id, ok, out);
        }
        op.local = Local::Done;
        if !ok {
            let failure = if op.range().blocks > 0 { DiskFailure::Write } else { DiskFailure::Flush };
            match () {
                () if self.is_filling() => self.replacement_failed(failure, out),
                () if !self.detached.takes_writes() || self.disk_failed(id, failure, out) => {}
                () => return self.fail_here(id, out),
            }
        }
        self.unlock(id, out);
        self.settle(id, out);
    }

    pub(super) fn unlock(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(lock) = self.ops.get_mut(id).and_then(|op| op.lock.take()) else { return };
        let mut granted = SmallVec::new();
        self.lock.release(lock, &mut granted);
        for id in granted {
            self.granted(id, out);
        }
    }

    pub(super) fn reply(&mut self, id: OpId, result: Result<(), Refusal>, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        if op.replied {
            return;
        }
        op.replied = true;
        if matches!(
            op.kind,
            Kind::Copy { .. } | Kind::Verify { .. } | Kind::Fill { .. } | Kind::FillFlush { .. }
        ) {
            return;
        }
        let result = if self.gate == Gate::Fenced { Err(Refusal::Fenced) } else { result };
        out.push(PrimaryOutput::Reply { token: op.token, result });
    }

    /// Whether the peer lags further behind than hosts may run ahead.
    fn is_behind(&self) -> bool {
        let limit = self.config.lag_limit_bytes;
        self.lag_bytes > limit || self.lag_ops > limit / LAG_UNIT
    }

    /// Replies if the acknowledgement mode allows, and forgets what has ended on both sides.
    pub(super) fn settle(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let behind = self.is_behind();
        let (needs_peer, gone) = (self.detached.needs_peer(), !self.detached.takes_writes());
        let Some(op) = self.ops.get_mut(id) else { return };
        let result = match (op.local, op.peer) {
            (Local::Submitted, Peer::Applied) if gone => Some(Ok(())),
            (Local::Waiting | Local::Submitted | Local::Failing, _) => None,
            (Local::Failed, _) => Some(Err(Refusal::Disk)),
            (Local::Done, Peer::NotSent | Peer::Applied) => Some(Ok(())),
            (Local::Done, _) if needs_peer => None,
            (Local::Done, Peer::Sent { unreceived, .. }) => match self.config.ack {
                AckMode::Applied if unreceived > 0 || !active(Mutation::AckAppliedOnReceipt) => None,
                AckMode::Received if unreceived > 0 && !active(Mutation::AckReceivedAtOnce) => None,
                _ if !behind => Some(Ok(())),
                _ => {
                    if !op.replied && !std::mem::replace(&mut op.held_back, true) {
                        self.lagging.push_back(id);
                    }
                    None
                }
            },
            (Local::Done, Peer::Lost) => match self.config.on_link_loss {
                OnLinkLoss::Continue if self.alone == Alone::Yes || op.replied => Some(Ok(())),
                OnLinkLoss::Continue => {
                    self.ask_to_go_alone(out);
                    None
                }
                OnLinkLoss::Block => None,
            },
        };
        if let Some(result) = result {
            self.reply(id, result, out);
        }
        self.finish(id);
    }

    /// The peer came nearer: acknowledges what its lag held back, as far as it goes.
    pub(super) fn catch_up(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        while let Some(&id) = self.lagging.front() {
            let waits = self.ops.get(id).is_some_and(|op| !op.replied);
            if waits && self.is_behind() {
                return;
            }
            self.lagging.pop_front();
            if let Some(op) = self.ops.get_mut(id) {
                op.held_back = false;
            }
            self.settle(id, out);
        }
    }

    pub(super) fn finish(&mut self, id: OpId) {
        let Some(op) = self.ops.get(id) else { return };
        let local_ended = matches!(op.local, Local::Done | Local::Failed);
        if op.replied && local_ended && op.lock.is_none() && !matches!(op.peer, Peer::Sent { .. }) {
            self.ops.remove(id);
        }
    }

    /// The peer has it in memory (on one more lane, if it is a flush).
    pub fn received(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        if let Peer::Sent { unreceived, .. } = &mut op.peer {
            *unreceived = unreceived.saturating_sub(1);
            self.settle(id, out);
        }
    }

    /// The peer has it on its disk (on one more lane, if it is a flush).
    pub fn applied(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        self.ended_there(id, Verdict::Equal, out);
    }

    /// The peer has compared a range. `false` if that is not what it was sent.
    pub fn compared(&mut self, id: OpId, verdict: Verdict, out: &mut Vec<PrimaryOutput<P>>) -> bool {
        if self.awaits_data(id) {
            self.read_failed_there(id, out);
            return matches!(verdict, Verdict::Unreadable | Verdict::Hung);
        }
        let known = self.ops.get(id).is_none_or(|op| {
            matches!(op.kind, Kind::Verify { .. } | Kind::Copy { source: Source::Digest(_), .. })
        });
        if known {
            self.ended_there(id, verdict, out);
        }
        known
    }

    fn ended_there(&mut self, id: OpId, verdict: Verdict, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Peer::Sent { unapplied, .. } = &mut op.peer else { return };
        *unapplied = unapplied.saturating_sub(1);
        if *unapplied == 0 {
            op.peer = Peer::Applied;
            let bytes = op.payload_bytes(self.config.geometry.block_bytes);
            let verified = match op.kind {
                Kind::Verify { range, round, .. } => Some((range, round)),
                _ => None,
            };
            if let Kind::Flush { round } = op.kind {
                self.unsettled.flushed(round);
            }
            self.lag_bytes = self.lag_bytes.saturating_sub(u64::from(bytes));
            self.lag_ops = self.lag_ops.saturating_sub(1);
            let copied = match op.kind {
                Kind::Copy { range, round, ref source } => {
                    Some((range, round, matches!(source, Source::Digest(_)).then_some(verdict)))
                }
                _ => None,
            };
            if let Some((range, round, verdict)) = copied {
                self.copy_ended(range, round, verdict);
            }
            self.settle(id, out);
            self.catch_up(out);
            self.tell_if_suspended(out);
            if copied.is_some_and(|(_, round, _)| round == self.copy_round) {
                self.copy_more(out);
            }
            if let Some((range, round)) = verified {
                self.judged(range, round, verdict, out);
            }
        }
    }

    /// As [`PrimaryStripes::applied`], but that the peer has it in memory only, because its disk hangs.
    pub fn pinned(&mut self, id: OpId, out: &mut Vec<PrimaryOutput<P>>) {
        match self.ops.get_mut(id).map(|op| &mut op.kind) {
            Some(Kind::Flush { round }) => *round = 0,
            Some(Kind::Write { range, .. } | Kind::Compare { range, .. } | Kind::Copy { range, .. }) => {
                self.unsettled.held(*range);
            }
            _ => {}
        }
        self.applied(id, out);
    }

    /// The peer was restarted: what it acknowledged and no flush covered may be gone.
    pub fn peer_restarted(&mut self) {
        let dirty = &mut self.dirty;
        self.unsettled.take(self.blocks, |range| dirty.mark(range));
    }

    /// A connection has as much to send as it should hold: nothing more is launched until [`PrimaryStripes::go_on`].
    pub fn hold_back(&mut self) {
        self.congested = true;
    }

    pub(super) fn is_congested(&self) -> bool {
        self.congested
    }

    pub(super) fn is_linked(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// There is room on every connection again.
    pub fn go_on(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        self.congested = false;
        self.unpark(out);
        self.read_more(out);
    }

    /// The peer could not do what it was sent. What is unanswered becomes dirty when the group drops the link, which
    /// is what it does with this event.
    pub fn peer_refused(&mut self, range: Range, refusal: PeerRefusal, out: &mut Vec<PrimaryOutput<P>>) {
        self.mark(range, false);
        if range.blocks == 0 && refusal == PeerRefusal::DiskWrite {
            out.push(PrimaryOutput::Event(StripeEvent::PeerFlushFailed));
        }
        out.push(PrimaryOutput::Event(StripeEvent::PeerFailed(refusal)));
    }

    pub fn set_ack(&mut self, ack: AckMode, out: &mut Vec<PrimaryOutput<P>>) {
        self.config.ack = ack;
        self.settle_all(out);
    }

    pub fn set_on_link_loss(&mut self, policy: OnLinkLoss, out: &mut Vec<PrimaryOutput<P>>) {
        self.config.on_link_loss = policy;
        self.settle_all(out);
        self.unpark(out);
    }

    /// What is in flight adopts a changed option: a weaker mode releases at once, a stronger one holds what has not
    /// been acknowledged yet.
    pub(super) fn settle_all(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        for id in self.in_order(|_| true) {
            self.settle(id, out);
        }
    }

    pub(super) fn in_order(&self, wanted: impl Fn(&Op<P>) -> bool) -> Vec<OpId> {
        let mut ids: Vec<(u64, OpId)> =
            self.ops.iter().filter(|(_, op)| wanted(op)).map(|(id, op)| (op.order, id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn unpark(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        while !self.shut()
            && let Some(id) = self.parked.pop_front()
        {
            if let Some(Kind::Copy { range, round, .. }) = self.ops.get(id).map(|op| &op.kind)
                && self.is_stale(*round)
            {
                let range = *range;
                self.drop_copy(id, range);
                self.finish(id);
            } else {
                self.launch(id, out);
                self.settle(id, out);
            }
        }
        if !self.parked.is_empty() {
            self.ask_to_go_alone(out);
        }
    }

    /// Ends an operation that was never launched.
    pub(super) fn refuse(&mut self, id: OpId, refusal: Refusal, out: &mut Vec<PrimaryOutput<P>>) {
        if let Some(op) = self.ops.get_mut(id) {
            op.local = Local::Failed;
        }
        self.reply(id, Err(refusal), out);
        self.unlock(id, out);
        self.finish(id);
    }

    /// The connections to the peer stand. What a lost link left unacknowledged is sent again, in order.
    pub fn link_up(&mut self, session: Session, out: &mut Vec<PrimaryOutput<P>>) {
        self.lanes = session.lanes.max(1);
        self.watch.begin();
        self.link = Link::Up { generation: session.generation, preserve: session.preserve };
        self.alone = Alone::No;
        self.epoch = session.epoch;
        for id in self.in_order(|op| op.peer == Peer::Lost && !op.replied) {
            self.forward(id, out);
        }
        self.unpark(out);
        self.read_more(out);
    }

    /// The connections are gone: what the peer had not confirmed is dirty.
    pub fn link_down(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if matches!(self.link, Link::Up { .. }) {
            self.link = Link::Down { lost: true };
        }
        self.copying = Copying::Idle;
        self.again.clear();
        self.cancel_verify(out);
        (self.lag_bytes, self.lag_ops, self.congested) = (0, 0, false);
        self.lagging.clear();
        // A copy whose source is being read has cleared its marks, and the next session may look for them before it ends.
        for id in self.in_order(|op| matches!(op.kind, Kind::Copy { .. }) && op.peer == Peer::NotSent) {
            if let Some(range) = self.ops.get(id).map(Op::range) {
                self.mark(range, true);
            }
        }
        self.reads_lost(out);
        let lost = self.in_order(|op| matches!(op.peer, Peer::Sent { .. }));
        for &id in &lost {
            if let Some(op) = self.ops.get_mut(id) {
                (op.peer, op.held_back) = (Peer::Lost, false);
            }
            if !active(Mutation::ForgetDirtyOnLoss) {
                self.mark_lacking(id);
            }
        }
        for id in lost {
            self.settle(id, out);
        }
        self.unpark(out);
    }

    /// Stop launching: the first step of a cut. Disks and links go on.
    pub fn freeze(&mut self) {
        if self.gate == Gate::Open && !active(Mutation::NeverFreeze) {
            self.gate = Gate::Frozen;
        }
    }

    /// The second step, when every machine of the group is frozen: closes the epoch, goes on in `next`.
    /// The caller notes the last sequence of every connection before it stamps.
    pub fn stamp(&mut self, next: Epoch, preserve: bool, out: &mut Vec<PrimaryOutput<P>>) {
        self.epoch = next;
        if let Link::Up { preserve: now, .. } = &mut self.link {
            *now = preserve;
        }
        self.thaw(out);
    }

    /// Goes on without a cut.
    pub fn thaw(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if self.gate == Gate::Frozen {
            self.gate = Gate::Open;
            self.unpark(out);
        }
    }

    /// A newer generation took over: nothing is acknowledged any more.
    pub fn fence(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if active(Mutation::FenceIgnored) {
            return self.link_down(out);
        }
        self.gate = Gate::Fenced;
        self.link_down(out);
        self.settle_all(out);
        for id in self.in_order(|op| !op.replied) {
            self.reply(id, Err(Refusal::Fenced), out);
            self.finish(id);
        }
    }

    /// The volume has so many blocks from now on: both nodes' records say so.
    pub fn resize(&mut self, blocks: u64) {
        self.make_room(blocks);
        self.blocks = blocks;
        self.dirty.set_blocks(blocks);
    }

    pub(super) fn make_room(&mut self, blocks: u64) {
        let room = &mut self.config.geometry.blocks;
        *room = blocks.max(*room);
        self.dirty.extend(blocks);
        self.unsettled.extend(blocks);
    }

    /// Begins an operation that no host asked for.
    pub(super) fn enter_own(&mut self, kind: Kind<P>, out: &mut Vec<PrimaryOutput<P>>) {
        let op = Op {
            kind,
            token: 0,
            order: self.order,
            since: self.watch.tick,
            asked: self.detached.now(),
            lock: None,
            local: Local::Waiting,
            peer: Peer::NotSent,
            replied: true,
            held_back: false,
        };
        self.order += 1;
        self.enter(op, out);
    }
}
