//! Sending: everything that was completed since the last send goes out in one.
//!
//! Invariants: one send is in flight at most, so the header buffer is ours to write whenever none is; a slot is free
//! again as soon as its answer is in a send (the ring keeps the buffers). A batch is bounded, the rest goes next.

use std::collections::VecDeque;
use std::rc::Rc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::super::queue::Queue;
use super::connection::{Connection, Phase, SEND, State};
use crate::env::Buf;
use crate::nvme::tcp::*;
use crate::nvme::{Status, tcp};
use crate::reactor::ring;

/// Headers of one batch.
const HEADER_BYTES: usize = 16 << 10;
/// The most that one answer takes of the header buffer: data header with digest and padding for the largest HPDA,
/// data digest, response with digest.
const ANSWER_MAX: usize = 24 + 4 + 128 + 4 + 24 + 4;
/// Payload bytes of one batch: enough to fill the pipe, not so much that answers wait for long transfers.
const BATCH_BYTES: usize = 1 << 20;
/// Pieces of one batch; each answer adds at most three.
const BATCH_PIECES: usize = 512;

/// Something that goes out besides answers.
enum Outgoing {
    IcResp(IcResp),
    /// Asks for the data of the command in this slot.
    R2t(u16),
    TermReq(TermReq, Vec<u8>),
}

pub struct Transmitter {
    outgoing: VecDeque<Outgoing>,
    header: Buf,
    used: usize,
    /// Headers from here to `used` are not in `pieces` yet.
    run: usize,
    pieces: Vec<Buf>,
    bytes: usize,
    pub in_flight: bool,
    scheduled: bool,
    terminating: bool,
}

impl Transmitter {
    pub fn new() -> Option<Transmitter> {
        Some(Transmitter {
            outgoing: VecDeque::new(),
            header: Buf::heap(HEADER_BYTES)?,
            used: 0,
            run: 0,
            pieces: Vec::with_capacity(BATCH_PIECES + 4),
            bytes: 0,
            in_flight: false,
            scheduled: false,
            terminating: false,
        })
    }

    pub fn is_needed(&self, queue: &Queue) -> bool {
        !self.in_flight && (!self.outgoing.is_empty() || (!queue.ready.is_empty() && !self.terminating))
    }

    /// True: the caller schedules the flush now.
    pub fn schedule(&mut self) -> bool {
        !std::mem::replace(&mut self.scheduled, true)
    }

    pub fn ic_resp(&mut self, pdu: IcResp) {
        self.outgoing.push_back(Outgoing::IcResp(pdu));
    }

    pub fn request_data(&mut self, slot: u16) {
        self.outgoing.push_back(Outgoing::R2t(slot));
    }

    /// The last PDU of this connection; nothing else goes out any more.
    pub fn terminate(&mut self, error: PduError, header: &[u8]) {
        let header = &header[..header.len().min(TERM_REQ_DATA_MAX)];
        let pdu = TermReq::new(PduType::C2hTermReq, error, header.len());
        self.outgoing.clear();
        self.terminating = true;
        self.outgoing.push_back(Outgoing::TermReq(pdu, header.to_vec()));
    }

    fn has_room(&self) -> bool {
        self.used + ANSWER_MAX <= HEADER_BYTES
            && self.pieces.len() + 3 <= BATCH_PIECES
            && self.bytes < BATCH_BYTES
    }

    fn put(&mut self, bytes: &[u8]) {
        self.header.write_at(self.used, bytes);
        self.used += bytes.len();
        self.bytes += bytes.len();
    }

    fn put_header(&mut self, pdu: &[u8], digests: Digests) {
        self.put(pdu);
        if digests.header {
            self.put(&header_digest(pdu));
        }
    }

    /// Headers written so far become a piece, so that a payload can follow.
    fn cut(&mut self) {
        if self.used > self.run {
            self.pieces.push(self.header.slice(self.run, self.used - self.run));
            self.run = self.used;
        }
    }

    fn put_payload(&mut self, data: Buf) {
        self.cut();
        self.bytes += data.len();
        self.pieces.push(data);
    }
}

/// A data header whose data starts at a multiple of `alignment`: what comes between is zero.
fn align(pdu: &mut DataPdu, alignment: usize) -> usize {
    let offset = usize::from(pdu.common.pdo);
    let padding = offset.next_multiple_of(alignment) - offset;
    pdu.common.pdo = (offset + padding) as u8;
    pdu.common.plen = (pdu.common.plen.get() + padding as u32).into();
    padding
}

impl Connection {
    /// Builds a batch and sends it.
    pub fn flush(self: &Rc<Self>, state: &mut State) {
        state.transmitter.scheduled = false;
        if state.transmitter.in_flight || state.phase >= Phase::Closing {
            return;
        }
        state.transmitter.used = 0;
        state.transmitter.run = 0;
        state.transmitter.bytes = 0;
        let digests = state.digests;
        while state.transmitter.has_room() {
            match state.transmitter.outgoing.pop_front() {
                Some(Outgoing::IcResp(pdu)) => state.transmitter.put(pdu.as_bytes()),
                Some(Outgoing::TermReq(pdu, header)) => {
                    state.transmitter.put(pdu.as_bytes());
                    state.transmitter.put(&header);
                }
                Some(Outgoing::R2t(index)) => {
                    let slot = &state.queue.slots[index];
                    let pdu = R2t::new(slot.cid(), index, 0, slot.data_len, digests);
                    state.transmitter.put_header(pdu.as_bytes(), digests);
                }
                None => break,
            }
        }
        let mut answered = 0;
        while state.phase < Phase::Terminating && state.transmitter.has_room() {
            let Some(slot) = state.queue.ready.pop_front() else { break };
            self.answer(state, slot);
            answered += 1;
        }
        if answered > 0 {
            self.group.completed.set(self.group.completed.get() + answered);
        }
        state.transmitter.cut();
        if !state.transmitter.pieces.is_empty() {
            state.transmitter.in_flight = true;
            let pieces = state.transmitter.pieces.drain(..);
            ring::send(&self.file, pieces, self.clone(), SEND);
        }
        if answered > 0 && state.receiver.waits_for_slot() {
            self.receive(state);
        }
    }

    /// Puts one command's data and completion into the batch, and frees its slot.
    fn answer(&self, state: &mut State, index: u16) {
        let success = state.queue.transport().c2h_success;
        let digests = state.digests;
        let tx = &mut state.transmitter;
        let slot = &mut state.queue.slots[index];
        let (cid, completion) = (slot.cid(), slot.completion);
        let mut finished = false;
        if slot.to_host
            && completion.status() == Status::SUCCESS
            && let Some(mut data) = slot.data.take()
        {
            let len = slot.data_len as usize;
            data.narrow(0, len);
            finished = success && completion.value() == 0;
            let mut pdu = DataPdu::c2h(cid, 0, len as u32, true, finished, digests);
            let padding = align(&mut pdu, state.alignment);
            tx.put_header(pdu.as_bytes(), digests);
            tx.put(&[0; 128][..padding]);
            let digest = digests.data.then(|| data.crc32c(0).to_le_bytes());
            tx.put_payload(data);
            if let Some(digest) = digest {
                tx.put(&digest);
            }
        }
        if !finished {
            let pdu = tcp::CapsuleResp::new(completion, digests);
            tx.put_header(pdu.as_bytes(), digests);
        }
        state.queue.slots.release(index);
    }

    /// A send ended.
    pub fn sent(self: &Rc<Self>, state: &mut State, result: Result<u32, Errno>) {
        state.transmitter.in_flight = false;
        match result {
            Ok(n) if n as usize == state.transmitter.bytes => {
                if state.phase == Phase::Terminating && state.transmitter.outgoing.is_empty() {
                    // The host reads the TermReq and then the end of the stream.
                    let _ = rustix::net::shutdown(self.file.fd(), rustix::net::Shutdown::Write);
                }
            }
            Ok(_) => self.begin_close(state, "the connection broke off in a send"),
            Err(error) => self.begin_close(state, &format!("send failed: {error}")),
        }
    }
}
