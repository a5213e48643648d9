//! The data connections of one reactor: what its machines send, and what became of it.
//!
//! A lane is named by the peer's reactor at its other end. Acknowledgements of one turn of the reactor's loop go out
//! together, in one message.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use smallvec::SmallVec;

use super::owner::Owner;
use super::payload::Blocks;
use super::shard::{Shard, ShardEvent};
use crate::env::SgList;
use crate::reactor::{self, Task};
use crate::replication::core::{
    Answer, Answered, Data, Digest, Forward, ForwardBody, Incoming, Lane, OpId, Outgoing, PeerRefusal, Range,
    Verdict,
};
use crate::replication::link::{
    AckEntry, AckStatus, Acks, CloseReason, Connection, Header, LinkOwner, Message, Ordered, Room, SendError,
    Span, Write,
};
use crate::replication::{Epoch, Generation, Sequence};

/// Runs of acknowledgements in one message; the rest goes into the next.
const ACK_RUNS: usize = 128;
/// How often an acknowledgement waits for what the same turn still completes: disks in memory end within it, and one
/// message then says both that a write arrived and that it was applied.
const ACK_PATIENCE: u8 = 3;

/// Whose message it was.
#[derive(Clone, Copy)]
struct Sender {
    volume: u16,
    op: OpId,
    range: Range,
}

struct LaneState {
    connection: Rc<Connection>,
    outgoing: Outgoing<Sender>,
    incoming: Incoming<(u16, AckStatus)>,
    /// Its connection asked to hold back, and has not said that there is room again.
    full: bool,
}

#[derive(Default)]
pub(super) struct Lanes {
    lanes: RefCell<Vec<Option<LaneState>>>,
    generation: Cell<Generation>,
    /// The newest epoch that arrived, told back with acknowledgements.
    epoch: Cell<Epoch>,
    acks_scheduled: Cell<bool>,
    patience: Cell<u8>,
}

/// Sends acknowledgements at the end of a turn.
pub(super) struct AckTask(Weak<Shard>);

impl Task for AckTask {
    fn run(self: Rc<Self>) {
        if let Some(shard) = self.0.upgrade() {
            shard.lanes.send_acks(self);
        }
    }
}

impl Lanes {
    pub(super) fn ack_task(shard: &Weak<Shard>) -> Rc<AckTask> {
        Rc::new(AckTask(shard.clone()))
    }

    /// A data connection passed its handshake. Sequences begin anew.
    pub(super) fn attach(&self, lane: Lane, connection: Rc<Connection>) {
        let mut lanes = self.lanes.borrow_mut();
        let index = usize::from(lane);
        if lanes.len() <= index {
            lanes.resize_with(index + 1, || None);
        }
        let state = LaneState {
            connection,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            full: false,
        };
        lanes[index] = Some(state);
    }

    /// Closes all connections; what was unanswered the machines know.
    pub(super) fn detach_all(&self) {
        let lanes = std::mem::take(&mut *self.lanes.borrow_mut());
        lanes.into_iter().flatten().for_each(|lane| lane.connection.close(CloseReason::Local));
    }

    pub(super) fn set_generation(&self, generation: Generation) {
        self.generation.set(generation);
    }

    /// The last sequence sent on each lane.
    pub(super) fn last_sent(&self) -> Vec<(Lane, Sequence)> {
        let lanes = self.lanes.borrow();
        let named = lanes.iter().enumerate().filter_map(|(n, l)| l.as_ref().map(|l| (n as Lane, l)));
        named.map(|(n, lane)| (n, lane.outgoing.last())).collect()
    }

    /// Whether everything through these sequences has arrived.
    pub(super) fn have_arrived(&self, lasts: &[(Lane, Sequence)]) -> bool {
        let lanes = self.lanes.borrow();
        lasts.iter().all(|&(lane, last)| {
            last == Sequence(0)
                || lanes
                    .get(usize::from(lane))
                    .and_then(Option::as_ref)
                    .is_some_and(|lane| lane.incoming.arrived() >= last)
        })
    }

    /// Bytes sent so far on the lanes that stand.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.lanes.borrow().iter().flatten().map(|lane| lane.connection.sent_bytes()).sum()
    }

    /// A machine's message to the peer. While the lane's connection asks for it, the shard's machines hold back.
    pub(super) fn forward(&self, owner: &Owner, lane: Lane, op: OpId, bytes: u32, forward: Forward<Blocks>) {
        let mut lanes = self.lanes.borrow_mut();
        // A machine sends only while its link is up; what finds no lane is resent or dirty when the link goes down.
        let Some(Some(state)) = lanes.get_mut(usize::from(lane)) else { return };
        if state.forward(owner, op, bytes, forward) == Room::No && !std::mem::replace(&mut state.full, true) {
            drop(lanes);
            if let Some(shard) = owner.shard.upgrade() {
                shard.hold_back();
            }
        }
    }

    /// A lane's connection has room again.
    fn writable(&self, shard: &Shard, lane: Lane) {
        let full = {
            let mut lanes = self.lanes.borrow_mut();
            if let Some(Some(state)) = lanes.get_mut(usize::from(lane)) {
                state.full = false;
            }
            lanes.iter().flatten().any(|lane| lane.full)
        };
        if !full {
            shard.go_on();
        }
    }

    /// A machine's answer to the peer.
    pub(super) fn answer(
        &self,
        shard: &Rc<Shard>,
        lane: Lane,
        volume: u16,
        sequence: Sequence,
        answer: Answer,
    ) {
        let status = match answer {
            Answer::Applied => AckStatus::Applied,
            Answer::Pinned => AckStatus::Pinned,
            Answer::Failed(refusal) => status_of(refusal),
            Answer::Compared(verdict) => status_of_verdict(verdict),
        };
        if let Some(Some(state)) = self.lanes.borrow_mut().get_mut(usize::from(lane)) {
            state.incoming.end(sequence, (volume, status));
        }
        self.schedule_acks(shard);
    }

    fn schedule_acks(&self, shard: &Rc<Shard>) {
        if !self.acks_scheduled.replace(true) {
            self.patience.set(ACK_PATIENCE);
            reactor::schedule(shard.ack_task());
        }
    }

    fn send_acks(&self, task: Rc<AckTask>) {
        let patience = self.patience.get();
        if patience > 0 {
            self.patience.set(patience - 1);
            return reactor::schedule(task);
        }
        self.acks_scheduled.set(false);
        let mut more = false;
        for state in self.lanes.borrow_mut().iter_mut().flatten() {
            if !state.incoming.has_news() {
                continue;
            }
            let mut entries: SmallVec<[AckEntry; 16]> = SmallVec::new();
            let mut ended = 0;
            let arrived = state.incoming.report(ACK_RUNS, |run| {
                let (volume, status) = run.status;
                ended += run.count;
                entries.push(AckEntry { volume, first: run.first, count: run.count, status });
            });
            // First what arrived: the primary then finds each message received before it is applied.
            let received = AckEntry { volume: 0, first: arrived, count: 1, status: AckStatus::Received };
            entries.insert(0, received);
            more |= state.incoming.has_news();
            let acks = Acks {
                generation: self.generation.get(),
                epoch: self.epoch.get(),
                buffer_used: 0,
                buffer_limit: 0,
                entries: entries.len() as u16,
            };
            let bytes: SmallVec<[u8; 16 * AckEntry::BYTES]> =
                entries.iter().flat_map(AckEntry::encode).collect();
            // A connection that is full or closed is about to tell so itself: what was not acknowledged stays unknown.
            let _ = state.connection.send_bytes(&Message::Acks(acks), &bytes);
        }
        if more {
            self.acks_scheduled.set(true);
            reactor::schedule(task);
        }
    }

    /// The peer acknowledged messages of ours. `Err`: it acknowledged what was never sent.
    fn acked(&self, shard: &Shard, lane: Lane, entry: AckEntry) -> Result<(), ()> {
        let mut changed: SmallVec<[Answered<Sender>; 32]> = SmallVec::new();
        let known = {
            let mut lanes = self.lanes.borrow_mut();
            let Some(Some(state)) = lanes.get_mut(usize::from(lane)) else { return Ok(()) };
            let through = Sequence(entry.first.0 + u64::from(entry.count.max(1)) - 1);
            if entry.status == AckStatus::Received {
                state.outgoing.received_through(through, |a| changed.push(a))
            } else {
                state.outgoing.ended(entry.first, entry.count, |a| changed.push(a))
            }
        };
        if !known {
            return Err(());
        }
        for answered in changed {
            let (Answered::Received(sender) | Answered::Ended(sender)) = answered;
            let Some(owner) = shard.owner(sender.volume) else { continue };
            let mut sensible = true;
            owner.primary(|machine, out| match answered {
                Answered::Received(sender) => machine.received(sender.op, out),
                Answered::Ended(sender) => match ending(entry.status) {
                    // What is read comes as data.
                    Ending::Applied if machine.awaits_data(sender.op) => sensible = false,
                    Ending::Applied if entry.status == AckStatus::Pinned => machine.pinned(sender.op, out),
                    Ending::Applied => machine.applied(sender.op, out),
                    Ending::Compared(verdict) => sensible = machine.compared(sender.op, verdict, out),
                    Ending::Refused(refusal) => machine.peer_refused(sender.range, refusal, out),
                },
            });
            if !sensible {
                return Err(());
            }
        }
        Ok(())
    }

    /// The peer forwarded a write or a flush.
    fn arrived(
        &self,
        shard: &Rc<Shard>,
        lane: Lane,
        volume: u16,
        sequence: Sequence,
        forward: Forward<Blocks>,
    ) -> Result<(), ()> {
        let in_order = match self.lanes.borrow_mut().get_mut(usize::from(lane)) {
            Some(Some(state)) => state.incoming.arrive(sequence),
            _ => return Ok(()),
        };
        let owner = shard.owner(volume).filter(|_| in_order).ok_or(())?;
        self.epoch.set(self.epoch.get().max(forward.epoch));
        owner.secondary(|machine, out| machine.forwarded(lane, sequence, forward, out));
        self.schedule_acks(shard);
        shard.something_arrived();
        Ok(())
    }

    /// What the peer wanted to read.
    pub(super) fn read_data(
        &self,
        owner: &Owner,
        lane: Lane,
        sequence: Sequence,
        range: Range,
        content: Blocks,
    ) {
        let mut lanes = self.lanes.borrow_mut();
        let Some(Some(state)) = lanes.get_mut(usize::from(lane)) else { return };
        let block = u64::from(owner.block_bytes);
        let message = Message::ReadData(Span {
            generation: self.generation.get(),
            epoch: self.epoch.get(),
            sequence,
            volume: owner.index,
            offset: range.lba * block,
            len: range.blocks * owner.block_bytes,
        });
        // The peer asks for no more than it has room for: a queue that is full is a peer that takes nothing.
        send(&state.connection, &message, content.into_bufs());
    }

    /// The peer sent what it was asked for. `Err`: it was not.
    fn data_arrived(&self, shard: &Shard, lane: Lane, span: &Span, payload: SgList) -> Result<(), ()> {
        let owner = shard.owner(span.volume).ok_or(())?;
        let range = blocks_of(span, &owner)?;
        let mut sender = None;
        let known = match self.lanes.borrow_mut().get_mut(usize::from(lane)) {
            Some(Some(state)) => state.outgoing.ended(span.sequence, 1, |answered| {
                if let Answered::Ended(of) = answered {
                    sender = Some(of);
                }
            }),
            _ => return Ok(()),
        };
        let asked = |sender: &Sender| sender.volume == span.volume && sender.range == range;
        let sender = sender.filter(|sender| known && asked(sender)).ok_or(())?;
        let mut sensible = false;
        let content = Blocks::new(payload, owner.block_bytes);
        owner.primary(|machine, out| sensible = machine.read_data(sender.op, content, out));
        if sensible { Ok(()) } else { Err(()) }
    }

    /// A message of a data connection.
    pub(super) fn message(&self, shard: &Rc<Shard>, lane: Lane, header: Header, payload: SgList) {
        let outcome = match header.message {
            Message::Write(w) => shard.owner(w.volume).ok_or(()).and_then(|owner| {
                let block = u64::from(owner.block_bytes);
                if w.offset % block != 0 || u64::from(w.len) % block != 0 || w.len == 0 {
                    return Err(());
                }
                let range = Range::new(w.offset / block, (u64::from(w.len) / block) as u32);
                let data = if w.zeroes {
                    Data::Zeroes
                } else {
                    Data::Bytes(Blocks::new(payload, owner.block_bytes))
                };
                let body = ForwardBody::Write { range, data, fua: w.fua, preserve: !w.sync_copy };
                let forward = Forward { epoch: w.epoch, generation: w.generation, body };
                self.arrived(shard, lane, w.volume, w.sequence, forward)
            }),
            Message::Flush(f) => {
                let forward = Forward { epoch: f.epoch, generation: f.generation, body: ForwardBody::Flush };
                self.arrived(shard, lane, f.volume, f.sequence, forward)
            }
            Message::Verify(v) => shard.owner(v.volume).ok_or(()).and_then(|owner| {
                let range = blocks_of(&v, &owner)?;
                let digest =
                    Digest(payload.first().and_then(|bytes| bytes.with(|b| b.try_into().ok())).ok_or(())?);
                let body = ForwardBody::Verify { range, digest };
                let forward = Forward { epoch: v.epoch, generation: v.generation, body };
                self.arrived(shard, lane, v.volume, v.sequence, forward)
            }),
            Message::Read(r) => shard.owner(r.volume).ok_or(()).and_then(|owner| {
                let body = ForwardBody::Read { range: blocks_of(&r, &owner)? };
                let forward = Forward { epoch: r.epoch, generation: r.generation, body };
                self.arrived(shard, lane, r.volume, r.sequence, forward)
            }),
            Message::ReadData(span) => self.data_arrived(shard, lane, &span, payload),
            Message::Acks(_) => {
                let mut outcome = Ok(());
                let bytes: SmallVec<[u8; 512]> =
                    payload.iter().flat_map(|b| b.with(SmallVec::<[u8; 512]>::from_slice)).collect();
                match AckEntry::parse_all(&bytes) {
                    Ok(entries) => {
                        for entry in entries {
                            outcome = match entry {
                                Ok(entry) => self.acked(shard, lane, entry),
                                Err(_) => Err(()),
                            };
                            if outcome.is_err() {
                                break;
                            }
                        }
                    }
                    Err(_) => outcome = Err(()),
                }
                outcome
            }
            _ => Err(()),
        };
        if outcome.is_err() {
            shard.tell(ShardEvent::LaneBroken { lane });
        }
    }
}

impl LaneState {
    fn forward(&mut self, owner: &Owner, op: OpId, bytes: u32, forward: Forward<Blocks>) -> Room {
        let volume = owner.index;
        let Forward { epoch, generation, body } = forward;
        match body {
            ForwardBody::Write { range, data, fua, preserve } => {
                let sequence = self.outgoing.send(Sender { volume, op, range });
                let message = Message::Write(Write {
                    generation,
                    epoch,
                    sequence,
                    volume,
                    offset: range.lba * u64::from(owner.block_bytes),
                    len: bytes,
                    fua,
                    zeroes: matches!(data, Data::Zeroes),
                    sync_copy: !preserve,
                });
                let payload = match data {
                    Data::Bytes(blocks) => blocks.into_bufs(),
                    Data::Zeroes => SgList::new(),
                };
                send(&self.connection, &message, payload)
            }
            ForwardBody::Verify { range, digest } => {
                let sequence = self.outgoing.send(Sender { volume, op, range });
                let block = u64::from(owner.block_bytes);
                let message = Message::Verify(Span {
                    generation,
                    epoch,
                    sequence,
                    volume,
                    offset: range.lba * block,
                    len: range.blocks * owner.block_bytes,
                });
                taken(&self.connection, self.connection.send_bytes(&message, &digest.0))
            }
            ForwardBody::Read { range } => {
                let sequence = self.outgoing.send(Sender { volume, op, range });
                let offset = range.lba * u64::from(owner.block_bytes);
                let len = range.blocks * owner.block_bytes;
                let span = Span { generation, epoch, sequence, volume, offset, len };
                send(&self.connection, &Message::Read(span), SgList::new())
            }
            ForwardBody::Flush => {
                let sequence = self.outgoing.send(Sender { volume, op, range: Range::new(0, 0) });
                let ordered = Ordered { generation, epoch, sequence, volume, value: 0 };
                send(&self.connection, &Message::Flush(ordered), SgList::new())
            }
        }
    }
}

/// The blocks that a message is about; `Err` if they are not whole ones.
fn blocks_of(span: &Span, owner: &Owner) -> Result<Range, ()> {
    let block = u64::from(owner.block_bytes);
    let whole = span.offset.is_multiple_of(block) && u64::from(span.len).is_multiple_of(block);
    whole.then(|| Range::new(span.offset / block, (u64::from(span.len) / block) as u32)).ok_or(())
}

/// Sends a machine's message. A queue over its hard limit closes the connection: the machines hold back long before, so
/// something is wrong with it.
fn send(connection: &Rc<Connection>, message: &Message, payload: SgList) -> Room {
    taken(connection, connection.send(message, payload))
}

fn taken(connection: &Rc<Connection>, outcome: Result<Room, SendError>) -> Room {
    outcome.unwrap_or_else(|_| {
        connection.close(CloseReason::Deadline("taking what was sent"));
        Room::Yes
    })
}

fn status_of(refusal: PeerRefusal) -> AckStatus {
    match refusal {
        PeerRefusal::DiskWrite => AckStatus::WriteError,
        PeerRefusal::CopyBeforeWrite => AckStatus::PreserveError,
        PeerRefusal::HungDisk => AckStatus::BufferFull,
        PeerRefusal::OldGeneration => AckStatus::OldGeneration,
        PeerRefusal::Protocol => AckStatus::OutOfRange,
        PeerRefusal::Broken => AckStatus::Broken,
    }
}

fn status_of_verdict(verdict: Verdict) -> AckStatus {
    match verdict {
        Verdict::Equal => AckStatus::Applied,
        Verdict::Differs => AckStatus::Differs,
        Verdict::Unreadable => AckStatus::Unreadable,
        Verdict::Hung => AckStatus::HungRead,
    }
}

/// What an acknowledgement says of a message that has ended.
enum Ending {
    /// What was sent to be compared is equal.
    Applied,
    Compared(Verdict),
    Refused(PeerRefusal),
}

fn ending(status: AckStatus) -> Ending {
    match status {
        AckStatus::Applied | AckStatus::Received | AckStatus::Pinned => Ending::Applied,
        AckStatus::Differs => Ending::Compared(Verdict::Differs),
        AckStatus::Unreadable => Ending::Compared(Verdict::Unreadable),
        AckStatus::HungRead => Ending::Compared(Verdict::Hung),
        AckStatus::WriteError => Ending::Refused(PeerRefusal::DiskWrite),
        AckStatus::PreserveError => Ending::Refused(PeerRefusal::CopyBeforeWrite),
        AckStatus::BufferFull => Ending::Refused(PeerRefusal::HungDisk),
        AckStatus::OutOfRange => Ending::Refused(PeerRefusal::Protocol),
        AckStatus::OldGeneration => Ending::Refused(PeerRefusal::OldGeneration),
        AckStatus::Broken => Ending::Refused(PeerRefusal::Broken),
    }
}

/// One lane's connection, as the link sees its owner.
pub(super) struct LaneOwner {
    pub shard: Weak<Shard>,
    pub lane: Lane,
}

impl LinkOwner for LaneOwner {
    fn message(&self, _connection: &Rc<Connection>, header: Header, payload: SgList) {
        if let Some(shard) = self.shard.upgrade() {
            shard.lanes.message(&shard, self.lane, header, payload);
        }
    }

    fn writable(&self, _connection: &Rc<Connection>) {
        if let Some(shard) = self.shard.upgrade() {
            shard.lanes.writable(&shard, self.lane);
        }
    }

    fn closed(&self, _connection: &Rc<Connection>, reason: CloseReason) {
        if let Some(shard) = self.shard.upgrade() {
            shard.tell(ShardEvent::LaneClosed { lane: self.lane, reason: reason.to_string() });
        }
    }
}
