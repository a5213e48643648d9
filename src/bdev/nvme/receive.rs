//! What a queue receives: answers, data, requests for data.
//!
//! Bytes arrive in a staging buffer, from where short payloads are copied to their place (the one copy on this way:
//! a receive per short payload would cost more). Of a long payload only what came along with its header is copied;
//! the rest is received in place, by a call that also takes what follows into the staging buffer.

use std::rc::Rc;

use super::error::QueueError;
use super::queue::{QueuePair, Slot, State};
use super::send::Outgoing;
use super::sg;
use crate::env::Buf;
use crate::nvme::command::DataDirection;
use crate::nvme::tcp::{
    DIGEST_LEN, Digests, Direction, FLAG_LAST, FLAG_SUCCESS, Fes, Header, IcResp, PduError, Rules, parse,
};
use crate::nvme::{CompletionEntry, Status};
use crate::reactor::{self, OpId, RingFile, RingOwner, ring};

/// The staging buffer: 60 answers with 4 KiB each.
const STAGING_BYTES: usize = 256 << 10;
/// When reads in flight are this long on average, little is received into the staging buffer, so that most of their
/// data arrives in place.
const LONG_READ_BYTES: u64 = 32 << 10;
/// What is received beside long payloads: enough for the next header and some completions.
const LITTLE_BYTES: usize = 2048;
/// Remaining payloads shorter than this are not worth a scattered receive.
const IN_PLACE_BYTES: usize = 4096;
/// Bytes of a header that may be incomplete at the end of the staging buffer.
const TAIL_BYTES: usize = 4096;
/// A C2HData PDU longer than this is refused: no controller has a transfer that long.
const MAX_C2H_BYTES: u32 = 1 << 30;

/// A data PDU of which not everything has come.
struct Payload {
    cid: u16,
    /// Where in the command's data the PDU's data begins, and how much it is.
    start: u32,
    len: u32,
    done: u32,
    flags: u8,
    digest: bool,
}

pub(super) struct Receiver {
    staging: Buf,
    begin: usize,
    end: usize,
    payload: Option<Payload>,
    /// Bytes of the current receive that go in place.
    in_place: usize,
    reads: u64,
    read_bytes: u64,
}

/// What a header says, free of the staging buffer.
enum Incoming {
    IcResp(IcResp),
    Answer(CompletionEntry),
    Data(Payload),
    Ready { cid: u16, ttag: u16, offset: u32, len: u32 },
    Terminated { fes: u16, fei: u32 },
}

impl Receiver {
    pub(super) fn new() -> Option<Receiver> {
        Some(Receiver {
            staging: reactor::alloc(STAGING_BYTES)?,
            begin: 0,
            end: 0,
            payload: None,
            in_place: 0,
            reads: 0,
            read_bytes: 0,
        })
    }

    /// A command that reads `len` bytes is in flight.
    pub(super) fn expect(&mut self, len: u32) {
        self.reads += 1;
        self.read_bytes += u64::from(len);
    }

    pub(super) fn unexpect(&mut self, len: u32) {
        self.reads -= 1;
        self.read_bytes -= u64::from(len);
    }

    /// Starts a receive.
    pub(super) fn arm(
        &mut self,
        file: &RingFile,
        slots: &[Slot],
        owner: Rc<dyn RingOwner>,
        tag: u64,
    ) -> OpId {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if STAGING_BYTES - self.end < TAIL_BYTES {
            let len = self.end - self.begin;
            self.staging.copy_from(0, &self.staging, self.begin, len);
            (self.begin, self.end) = (0, len);
        }
        let long = self.read_bytes > self.reads * LONG_READ_BYTES;
        let room = STAGING_BYTES - self.end;
        let staging = self.staging.slice(self.end, if long { room.min(LITTLE_BYTES) } else { room });
        self.in_place = 0;
        if let Some(p) = &self.payload {
            let (offset, left) = ((p.start + p.done) as usize, (p.len - p.done) as usize);
            if left >= IN_PLACE_BYTES {
                self.in_place = left;
                let parts = sg::range(&slots[usize::from(p.cid)].data, offset, left).chain([staging]);
                return ring::recv_vectored(file, parts, false, owner, tag);
            }
        }
        ring::recv(file, staging, false, owner, tag)
    }

    /// Takes what is left of a payload from the staging buffer. True when it is complete.
    fn take_payload(&mut self, slots: &mut [Slot]) -> bool {
        let Some(p) = &mut self.payload else { return true };
        let slot = &mut slots[usize::from(p.cid)];
        let take = ((p.len - p.done) as usize).min(self.end - self.begin);
        if take > 0 {
            sg::copy_in(&slot.data, (p.start + p.done) as usize, &self.staging, self.begin, take);
            self.begin += take;
            p.done += take as u32;
        }
        if p.done < p.len {
            return false;
        }
        if p.digest {
            if self.end - self.begin < DIGEST_LEN {
                return false;
            }
            let mut digest = [0; DIGEST_LEN];
            self.staging.read_at(self.begin, &mut digest);
            self.begin += DIGEST_LEN;
            slot.damaged |=
                u32::from_le_bytes(digest) != sg::crc32c(&slot.data, p.start as usize, p.len as usize);
        }
        true
    }

    /// The next header, if it is all there.
    fn next(&mut self, digests: Digests) -> Result<Option<Incoming>, QueueError> {
        let rules = Rules {
            direction: Direction::ControllerToHost,
            digests,
            data_alignment: 1,
            max_in_capsule: 0,
            max_data: MAX_C2H_BYTES,
        };
        let (begin, available) = (self.begin, self.end - self.begin);
        let found = self.staging.with(|bytes| {
            let bytes = &bytes[begin..begin + available];
            let Some((frame, header)) = parse(bytes, &rules)? else { return Ok(None) };
            // The whole TermReq is not needed, the padding before data is.
            if bytes.len() < frame.data_offset {
                return Ok(None);
            }
            let incoming = match header {
                Header::IcResp(pdu) => Incoming::IcResp(*pdu),
                Header::CapsuleResp(pdu) => Incoming::Answer(pdu.entry),
                Header::C2hData(pdu) => Incoming::Data(Payload {
                    cid: pdu.cccid.get(),
                    start: pdu.datao.get(),
                    len: pdu.datal.get(),
                    done: 0,
                    flags: frame.flags,
                    digest: frame.data_digest,
                }),
                Header::R2t(pdu) => Incoming::Ready {
                    cid: pdu.cccid.get(),
                    ttag: pdu.ttag.get(),
                    offset: pdu.r2to.get(),
                    len: pdu.r2tl.get(),
                },
                Header::TermReq(pdu) => Incoming::Terminated { fes: pdu.fes.get(), fei: pdu.fei.get() },
                // The rules let only a controller's PDUs pass.
                Header::IcReq(_) | Header::CapsuleCmd(_) | Header::H2cData(_) => {
                    return Err(PduError::new(Fes::PduSequence));
                }
            };
            Ok(Some((frame.data_offset, incoming)))
        });
        Ok(found.map_err(QueueError::Protocol)?.map(|(len, incoming)| {
            self.begin += len;
            incoming
        }))
    }
}

impl QueuePair {
    /// Looks at `bytes` that arrived.
    pub(super) fn received(self: &Rc<Self>, bytes: usize) -> Result<(), QueueError> {
        let state = &mut *self.state.borrow_mut();
        let in_place = bytes.min(state.receiver.in_place);
        if let Some(p) = &mut state.receiver.payload {
            p.done += in_place as u32;
        }
        state.receiver.end += bytes - in_place;
        loop {
            if state.receiver.payload.is_some() {
                if !state.receiver.take_payload(&mut state.slots) {
                    return Ok(());
                }
                self.payload_done(state)?;
            }
            let Some(incoming) = state.receiver.next(state.digests)? else { return Ok(()) };
            match incoming {
                Incoming::IcResp(pdu) => self.handshake_done(state, &pdu)?,
                Incoming::Answer(entry) => {
                    if !self.complete(state, entry) {
                        return Err(PduError::new(Fes::PduSequence).into());
                    }
                }
                Incoming::Data(payload) => {
                    check_payload(&state.slots, &payload)?;
                    state.receiver.payload = Some(payload);
                }
                Incoming::Ready { cid, ttag, offset, len } => {
                    let generation = check_ready(&state.slots, cid, offset, len)?;
                    let data = Outgoing::Data { cid, generation, ttag, offset, len };
                    state.sender.queue.push_back(data);
                }
                Incoming::Terminated { fes, fei } => return Err(QueueError::Terminated { fes, fei }),
            }
        }
    }

    fn payload_done(&self, state: &mut State) -> Result<(), QueueError> {
        let Some(p) = state.receiver.payload.take() else { return Ok(()) };
        state.slots[usize::from(p.cid)].received += p.len;
        let ended = FLAG_LAST | FLAG_SUCCESS;
        if p.flags & ended == ended && !self.complete(state, CompletionEntry::new(p.cid, Status::SUCCESS)) {
            return Err(PduError::new(Fes::PduSequence).into());
        }
        Ok(())
    }
}

fn slot_of(slots: &[Slot], cid: u16, direction: DataDirection) -> Result<&Slot, QueueError> {
    let slot = slots.get(usize::from(cid)).filter(|s| s.used && s.direction == direction);
    slot.ok_or(PduError::new(Fes::PduSequence).into())
}

fn check_payload(slots: &[Slot], p: &Payload) -> Result<(), QueueError> {
    let slot = slot_of(slots, p.cid, DataDirection::ControllerToHost)?;
    // The sum did not overflow: the parser looked at it. No byte comes twice, so their number is bounded as well.
    if p.start + p.len > slot.len || p.len > slot.len - slot.received.min(slot.len) {
        return Err(PduError::new(Fes::DataOutOfRange).into());
    }
    Ok(())
}

fn check_ready(slots: &[Slot], cid: u16, offset: u32, len: u32) -> Result<u32, QueueError> {
    let slot = slot_of(slots, cid, DataDirection::HostToController)?;
    if len == 0 || offset.checked_add(len).is_none_or(|end| end > slot.len) {
        return Err(PduError::new(Fes::DataOutOfRange).into());
    }
    Ok(slot.generation)
}
