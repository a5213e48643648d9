//! Receiving: bytes into capsules and data, capsules into commands.
//!
//! A receive fills the staging buffer, from which capsules are taken one by one; the payload of an H2CData PDU that
//! is not in the staging buffer yet is received straight into its command's buffer, and what follows it into the
//! staging buffer by the same call. A command that finds no buffer waits, the connection does not: the payloads that
//! free buffers are behind it in the stream. Only a host that sends more commands than its queue holds is not read
//! until one of them was answered.

use std::rc::Rc;

use rustix::io::Errno;

use super::connection::{Connection, Phase, RECEIVE, State};
use crate::env::Buf;
use crate::nvme::sgl::SglKind;
use crate::nvme::tcp::*;
use crate::nvme::{Status, SubmissionEntry};
use crate::reactor::{self, ring};

use super::super::options::ADMIN_IN_CAPSULE;
use super::super::queue::Need;
use super::super::slot::Stage;

// Staging buffers come from the heap: the kernel copies into them, no device does, and a connection must not fail
// because commands hold all of the data buffers.

/// Staging buffer of a connection at first, and of an admin queue: holds the largest capsule with its data.
const STAGING_SMALL: usize = 32 << 10;
/// Staging buffer of an I/O queue: some 30 writes of 4 KiB come in by one call.
const STAGING_LARGE: usize = 128 << 10;
/// What is received into the staging buffer while payloads of data PDUs are expected: their headers, and little of
/// the payload itself, which is better received in place.
const EXPECTING_WINDOW: usize = 2048;

/// What the next byte is.
enum Mode {
    Header,
    /// Payload of a data PDU: `left` bytes to come, at `offset` of the slot's data.
    Payload {
        slot: u16,
        offset: usize,
        left: usize,
        digest: bool,
    },
    /// The data digest behind the payload.
    Digest {
        slot: u16,
    },
}

pub struct Receiver {
    staging: Buf,
    start: usize,
    end: usize,
    mode: Mode,
    /// The next command found no slot; nothing is read until there is one.
    blocked: bool,
    pub in_flight: bool,
    /// Bytes of the receive in flight that go to the payload.
    direct: usize,
    /// Commands whose data was asked for and is not all here.
    expecting: u32,
    wants_large: bool,
    /// Running digest of the PDU whose payload is being received.
    digest: u32,
}

/// A header copied out of the staging buffer.
enum Arrived {
    IcReq(IcReq),
    TermReq(TermReq),
    Command(SubmissionEntry),
    Data(DataPdu),
}

impl Receiver {
    pub fn new() -> Option<Receiver> {
        Some(Receiver {
            staging: Buf::heap(STAGING_SMALL)?,
            start: 0,
            end: 0,
            mode: Mode::Header,
            blocked: false,
            in_flight: false,
            direct: 0,
            expecting: 0,
            wants_large: false,
            digest: 0,
        })
    }

    pub fn want_large(&mut self) {
        self.wants_large = true;
    }

    pub fn waits_for_slot(&self) -> bool {
        self.blocked
    }

    fn available(&self) -> usize {
        self.end - self.start
    }

    /// Makes room for at least the largest PDU behind what is there.
    fn make_room(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if std::mem::take(&mut self.wants_large)
                && let Some(large) = Buf::heap(STAGING_LARGE)
            {
                self.staging = large;
            }
        } else if self.staging.len() - self.end < self.staging.len() / 2 && self.start > 0 {
            let len = self.available();
            self.staging.copy_from(0, &self.staging, self.start, len);
            self.start = 0;
            self.end = len;
        }
    }
}

/// What a header in the staging buffer came to.
type Parsed = Result<Option<(Frame, Arrived)>, PduError>;

fn parse_at(staging: &Buf, start: usize, end: usize, rules: &Rules) -> Parsed {
    staging.with(|bytes| {
        let Some((frame, header)) = crate::nvme::tcp::parse(&bytes[start..end], rules)? else {
            return Ok(None);
        };
        Ok(Some((
            frame,
            match header {
                Header::IcReq(pdu) => Arrived::IcReq(*pdu),
                Header::TermReq(pdu) => Arrived::TermReq(*pdu),
                Header::CapsuleCmd(pdu) => Arrived::Command(pdu.entry),
                Header::H2cData(pdu) => Arrived::Data(*pdu),
                // The rules let only what a host sends through.
                _ => return Err(PduError::field(0)),
            },
        )))
    })
}

impl Connection {
    /// A receive ended.
    pub fn received(self: &Rc<Self>, state: &mut State, result: Result<u32, Errno>) {
        let rx = &mut state.receiver;
        rx.in_flight = false;
        let direct = std::mem::take(&mut rx.direct);
        if state.phase >= Phase::Closing {
            return;
        }
        let count = match result {
            Ok(0) => return self.begin_close(state, "by the host"),
            Ok(n) => n as usize,
            Err(Errno::INTR | Errno::AGAIN) => return self.start_receive(state),
            Err(error) => return self.begin_close(state, &format!("receive failed: {error}")),
        };
        if state.phase == Phase::Terminating {
            return self.start_receive(state);
        }
        let payload = count.min(direct);
        rx.end += count - payload;
        if payload > 0 {
            self.take_payload(state, payload);
        }
        self.receive(state);
    }

    /// Works on what is in the staging buffer, then receives more.
    pub fn receive(self: &Rc<Self>, state: &mut State) {
        state.receiver.blocked = false;
        while state.phase < Phase::Draining {
            let progress = match state.receiver.mode {
                Mode::Header => self.header(state),
                Mode::Payload { slot, offset, left, .. } => {
                    let rx = &mut state.receiver;
                    let count = left.min(rx.available());
                    if count > 0 {
                        if let Some(data) = &state.queue.slots[slot].data {
                            data.copy_from(offset, &rx.staging, rx.start, count);
                        }
                        rx.start += count;
                        self.take_payload(state, count);
                    }
                    count > 0
                }
                Mode::Digest { slot } => self.data_digest(state, slot),
            };
            if !progress {
                break;
            }
        }
        // While draining nothing is read: what the host still sends goes unanswered, as in any disconnect.
        let reads = state.phase < Phase::Draining || state.phase == Phase::Terminating;
        if !state.receiver.blocked && reads {
            self.start_receive(state);
        }
    }

    fn start_receive(self: &Rc<Self>, state: &mut State) {
        let rx = &mut state.receiver;
        if rx.in_flight {
            return;
        }
        rx.in_flight = true;
        if state.phase == Phase::Terminating {
            // Only to be thrown away.
            (rx.start, rx.end) = (0, 0);
        }
        if let Mode::Payload { slot, offset, left, .. } = rx.mode
            && let Some(data) = &state.queue.slots[slot].data
        {
            // Here the staging buffer is empty: the payload took all of it.
            (rx.start, rx.end) = (0, 0);
            rx.direct = left;
            let pieces = [data.slice(offset, left), rx.staging.slice(0, EXPECTING_WINDOW)];
            ring::recv_vectored(&self.file, pieces.into_iter(), false, self.clone(), RECEIVE);
            return;
        }
        rx.make_room();
        let mut room = rx.staging.len() - rx.end;
        if rx.expecting > 0 {
            room = room.min(EXPECTING_WINDOW);
        }
        ring::recv(&self.file, rx.staging.slice(rx.end, room), false, self.clone(), RECEIVE);
    }

    fn rules(&self, state: &State) -> Rules {
        let options = state.queue.transport();
        Rules {
            direction: Direction::HostToController,
            digests: state.digests,
            // CPDA is 0.
            data_alignment: 4,
            max_in_capsule: options.in_capsule_data_size.max(ADMIN_IN_CAPSULE),
            max_data: options.max_io_size,
        }
    }

    /// Takes one PDU's header, and its data if that is in a capsule. False: more bytes or a slot are needed.
    fn header(self: &Rc<Self>, state: &mut State) -> bool {
        let rx = &state.receiver;
        if rx.available() == 0 {
            return false;
        }
        let parsed = parse_at(&rx.staging, rx.start, rx.end, &self.rules(state));
        let outcome = match parsed {
            Ok(None) => return false,
            Ok(Some((frame, arrived))) => self.pdu(state, &frame, arrived),
            Err(error) => Err(error),
        };
        outcome.unwrap_or_else(|error| {
            let rx = &state.receiver;
            let len = rx.available().min(TERM_REQ_DATA_MAX);
            let header = rx.staging.with(|bytes| {
                let bytes = &bytes[rx.start..rx.start + len];
                // The header alone, if its length can be believed.
                let hlen = bytes.get(2).map_or(len, |&h| usize::from(h).clamp(8, len.max(8)));
                bytes[..hlen.min(len)].to_vec()
            });
            self.terminate(state, error, &header);
            false
        })
    }

    fn pdu(self: &Rc<Self>, state: &mut State, frame: &Frame, arrived: Arrived) -> Result<bool, PduError> {
        match (state.phase, arrived) {
            (_, Arrived::TermReq(pdu)) => {
                let (fes, fei) = (pdu.fes.get(), pdu.fei.get());
                tracing::warn!(peer = %state.queue.peer, fes, fei, "the host terminated the connection");
                self.begin_close(state, "terminated by the host");
                Ok(false)
            }
            (Phase::Handshake, Arrived::IcReq(pdu)) => {
                state.receiver.start += frame.plen;
                self.handshake(state, &pdu);
                Ok(true)
            }
            (Phase::Handshake, _) | (_, Arrived::IcReq(_)) => Err(PduError::new(Fes::PduSequence)),
            (_, Arrived::Command(entry)) => {
                if state.receiver.available() < frame.plen {
                    return Ok(false);
                }
                let taken = self.command(state, entry, frame);
                if taken {
                    state.receiver.start += frame.plen;
                }
                Ok(taken)
            }
            (_, Arrived::Data(pdu)) => {
                if state.receiver.available() < frame.data_offset {
                    return Ok(false);
                }
                self.begin_payload(state, &pdu, frame)?;
                state.receiver.start += frame.data_offset;
                Ok(true)
            }
        }
    }

    fn handshake(&self, state: &mut State, pdu: &IcReq) {
        let digests = Digests::from_dgst(pdu.dgst);
        state.alignment = (usize::from(pdu.hpda) + 1) * 4;
        let max_data = state.queue.transport().max_io_size.max(MAXH2CDATA_MIN);
        state.transmitter.ic_resp(IcResp::new(digests, max_data));
        state.digests = digests;
        state.phase = Phase::Running;
    }

    /// A command whose whole capsule is in the staging buffer. False: it finds no slot now.
    fn command(self: &Rc<Self>, state: &mut State, entry: SubmissionEntry, frame: &Frame) -> bool {
        Self::sign_of_life(state);
        let need = state.queue.plan(&entry);
        let Some(slot) = state.queue.slots.take(entry) else {
            state.receiver.blocked = true;
            return false;
        };
        match (state.queue.admit(slot, need), entry.sgl.kind()) {
            (Need::Reject(status), _) => state.queue.complete(slot, status),
            (Need::Nothing, _) => state.queue.run(slot, &self.owner()),
            (Need::ToHost(len), _) => {
                state.queue.slots[slot].to_host = true;
                state.queue.slots[slot].data_len = len;
                self.need_buffer(state, slot);
            }
            (Need::FromHost(len), SglKind::InCapsule) => {
                state.queue.slots[slot].data_len = len;
                match self.copy_capsule(state, &entry, frame, len as usize) {
                    Ok(buf) => {
                        state.queue.slots[slot].data = Some(buf);
                        state.queue.run(slot, &self.owner());
                    }
                    Err(status) => state.queue.complete(slot, status),
                }
            }
            (Need::FromHost(len), SglKind::Transport) => {
                state.queue.slots[slot].data_len = len;
                self.need_buffer(state, slot);
            }
            (Need::FromHost(_), SglKind::Other) => state.queue.complete(slot, Status::SGL_TYPE_INVALID.dnr()),
        }
        true
    }

    /// Copies `len` bytes of a capsule's data to a buffer. When the pool is at its limit that buffer comes from the
    /// heap: it is small, there is at most one a slot, and a capsule that waited here would keep back the payloads
    /// that others hold their buffers for.
    fn copy_capsule(
        &self,
        state: &State,
        entry: &SubmissionEntry,
        frame: &Frame,
        len: usize,
    ) -> Result<Buf, Status> {
        let rx = &state.receiver;
        let at = rx.start + frame.data_offset;
        if frame.data_digest {
            let digest = rx.staging.with(|bytes| {
                let data = &bytes[at..at + frame.data_len];
                let sent = &bytes[at + frame.data_len..at + frame.data_len + DIGEST_LEN];
                data_digest_append(0, data).to_le_bytes() == sent
            });
            if !digest {
                return Err(Status::TRANSIENT_TRANSPORT_ERROR);
            }
        }
        let offset =
            usize::try_from(entry.sgl.address.get()).map_err(|_| Status::INVALID_SGL_OFFSET.dnr())?;
        if offset > frame.data_len {
            return Err(Status::INVALID_SGL_OFFSET.dnr());
        }
        if len > frame.data_len - offset {
            return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
        let buf = self.alloc(state, len).or_else(|| Buf::heap(len)).ok_or(Status::COMMAND_INTERRUPTED)?;
        buf.copy_from(0, &rx.staging, at + offset, len);
        Ok(buf)
    }

    /// A buffer, unless others wait for one.
    fn alloc(&self, state: &State, len: usize) -> Option<Buf> {
        match state.waiting.is_empty() && !self.group.buffers_are_short() {
            true => reactor::alloc(len),
            false => None,
        }
    }

    /// Gets a buffer for a command, now or in its turn.
    fn need_buffer(self: &Rc<Self>, state: &mut State, slot: u16) {
        let len = state.queue.slots[slot].data_len as usize;
        match self.alloc(state, len) {
            Some(buf) => self.have_buffer(state, slot, buf),
            None => {
                state.queue.slots[slot].stage = Stage::WaitBuffer;
                state.waiting.push_back(slot);
                if !std::mem::replace(&mut state.listed, true) {
                    self.group.wait_for_buffer(self);
                }
            }
        }
    }

    /// A command has its buffer: it runs, or its data is asked for.
    pub fn have_buffer(self: &Rc<Self>, state: &mut State, slot: u16, buf: Buf) {
        let s = &mut state.queue.slots[slot];
        s.data = Some(buf);
        if s.to_host {
            s.stage = Stage::Executing;
            state.queue.run(slot, &self.owner());
        } else {
            s.stage = Stage::WaitData;
            state.receiver.expecting += 1;
            state.transmitter.request_data(slot);
        }
    }

    /// The header of an H2CData PDU: it must be exactly what an R2T asked for, in order.
    fn begin_payload(&self, state: &mut State, pdu: &DataPdu, frame: &Frame) -> Result<(), PduError> {
        let tag = pdu.ttag.get();
        let slot = state.queue.slots.get_used(tag).filter(|s| s.stage == Stage::WaitData);
        let slot = slot.ok_or(PduError::field(10))?;
        if slot.cid() != pdu.cccid.get() {
            return Err(PduError::field(8));
        }
        let (offset, len) = (pdu.datao.get(), pdu.datal.get());
        let end = offset.saturating_add(len);
        if offset != slot.received || end > slot.data_len {
            return Err(PduError::new(Fes::DataOutOfRange));
        }
        if frame.flags & FLAG_LAST != 0 && end != slot.data_len {
            return Err(PduError::field(1));
        }
        let rx = &mut state.receiver;
        rx.digest = 0;
        rx.mode = Mode::Payload {
            slot: tag,
            offset: offset as usize,
            left: len as usize,
            digest: frame.data_digest,
        };
        Ok(())
    }

    /// `count` more bytes of a payload are in their place.
    fn take_payload(self: &Rc<Self>, state: &mut State, count: usize) {
        let Mode::Payload { slot, offset, left, digest } = state.receiver.mode else { return };
        let s = &mut state.queue.slots[slot];
        if digest && let Some(data) = &s.data {
            let sum = state.receiver.digest;
            state.receiver.digest = data.with(|b| data_digest_append(sum, &b[offset..offset + count]));
        }
        s.received += count as u32;
        state.receiver.mode = match left - count {
            0 if digest => Mode::Digest { slot },
            0 => Mode::Header,
            left => Mode::Payload { slot, offset: offset + count, left, digest },
        };
        if matches!(state.receiver.mode, Mode::Header) {
            self.payload_done(state, slot);
        }
    }

    fn data_digest(self: &Rc<Self>, state: &mut State, slot: u16) -> bool {
        let rx = &mut state.receiver;
        if rx.available() < DIGEST_LEN {
            return false;
        }
        let mut sent = [0; DIGEST_LEN];
        rx.staging.read_at(rx.start, &mut sent);
        rx.start += DIGEST_LEN;
        rx.mode = Mode::Header;
        if rx.digest.to_le_bytes() != sent {
            state.queue.slots[slot].digest_failed = true;
        }
        self.payload_done(state, slot);
        true
    }

    /// A data PDU is complete: the command runs if it was the last one.
    fn payload_done(self: &Rc<Self>, state: &mut State, slot: u16) {
        let s = &mut state.queue.slots[slot];
        if s.received < s.data_len {
            return;
        }
        state.receiver.expecting -= 1;
        s.stage = Stage::Executing;
        match s.digest_failed {
            true => state.queue.complete(slot, Status::TRANSIENT_TRANSPORT_ERROR),
            false => state.queue.run(slot, &self.owner()),
        }
    }
}
