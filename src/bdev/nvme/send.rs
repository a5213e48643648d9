//! What a queue sends: capsules, data asked for by R2T, raw bytes.
//!
//! Headers (and digests) of a batch lie one behind the other in one buffer, so that commands without data become one
//! piece; data goes out from where it is. One batch is in flight at a time: the buffer is free when it went out.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::queue::Slot;
use super::sg;
use crate::env::{Buf, sg_len};
use crate::nvme::command::DataDirection;
use crate::nvme::sgl::SglKind;
use crate::nvme::tcp::{CapsuleCmd, DIGEST_LEN, DataPdu, Digests, header_digest};
use crate::reactor::{self, ring::MAX_IOVECS};

/// Room for the headers of about 800 commands in one batch.
const HEADER_BYTES: usize = 64 << 10;
/// The longest header with both digests.
const LONGEST_HEADER: usize = size_of::<CapsuleCmd>() + 2 * DIGEST_LEN;

/// Something to be sent.
pub(super) enum Outgoing {
    Capsule(u16),
    /// Data that an R2T asked for; void if the slot has another generation by now.
    Data {
        cid: u16,
        generation: u32,
        ttag: u16,
        offset: u32,
        len: u32,
    },
    Raw(Buf),
}

pub(super) struct Sender {
    pub(super) queue: VecDeque<Outgoing>,
    pub(super) pieces: Vec<Buf>,
    pub(super) batch_bytes: usize,
    pub(super) in_capsule_bytes: usize,
    pub(super) maxh2cdata: u32,
    headers: Buf,
    /// Headers written, and those of them that are in a piece already.
    written: usize,
    taken: usize,
}

impl Sender {
    pub(super) fn new(in_capsule_bytes: u32) -> Option<Sender> {
        Some(Sender {
            queue: VecDeque::new(),
            pieces: Vec::new(),
            batch_bytes: 0,
            in_capsule_bytes: in_capsule_bytes as usize,
            maxh2cdata: 0,
            headers: reactor::alloc(HEADER_BYTES)?,
            written: 0,
            taken: 0,
        })
    }

    /// Turns what waits into pieces, as much as one operation takes. False if there is nothing to send.
    pub(super) fn encode(&mut self, slots: &[Slot], digests: Digests) -> bool {
        debug_assert!(self.pieces.is_empty());
        (self.written, self.taken, self.batch_bytes) = (0, 0, 0);
        while self.written + LONGEST_HEADER <= HEADER_BYTES {
            // Headers before, the data's pieces, a digest behind.
            let needed = match self.queue.front() {
                Some(Outgoing::Capsule(cid) | Outgoing::Data { cid, .. }) => {
                    slots[usize::from(*cid)].data.len() + 2
                }
                Some(Outgoing::Raw(_)) => 2,
                None => break,
            };
            if !self.pieces.is_empty() && self.pieces.len() + needed > MAX_IOVECS {
                break;
            }
            match self.queue.pop_front() {
                Some(Outgoing::Capsule(cid)) => self.capsule(&slots[usize::from(cid)], digests),
                Some(Outgoing::Data { cid, generation, ttag, offset, len }) => {
                    let slot = &slots[usize::from(cid)];
                    if slot.used && slot.generation == generation {
                        self.data(slot, cid, ttag, offset, len, digests);
                    }
                }
                Some(Outgoing::Raw(buf)) => self.piece(buf),
                None => break,
            }
        }
        self.take_headers();
        !self.pieces.is_empty()
    }

    fn header(&mut self, bytes: &[u8]) {
        self.headers.write_at(self.written, bytes);
        self.written += bytes.len();
        self.batch_bytes += bytes.len();
    }

    fn take_headers(&mut self) {
        if self.written > self.taken {
            self.pieces.push(self.headers.slice(self.taken, self.written - self.taken));
            self.taken = self.written;
        }
    }

    fn piece(&mut self, buf: Buf) {
        self.take_headers();
        self.batch_bytes += buf.len();
        self.pieces.push(buf);
    }

    fn pdu(&mut self, header: &[u8], digests: Digests) {
        self.header(header);
        if digests.header {
            self.header(&header_digest(header));
        }
    }

    fn payload(&mut self, slot: &Slot, offset: usize, len: usize, digests: Digests) {
        for part in sg::range(&slot.data, offset, len) {
            self.piece(part);
        }
        if digests.data {
            let digest = sg::crc32c(&slot.data, offset, len);
            self.header(&digest.to_le_bytes());
        }
    }

    fn capsule(&mut self, slot: &Slot, digests: Digests) {
        let in_capsule = slot.direction == DataDirection::HostToController
            && slot.len > 0
            && slot.entry.sgl.kind() == SglKind::InCapsule;
        let len = if in_capsule { slot.len as usize } else { 0 };
        debug_assert_eq!(sg_len(&slot.data), slot.len as usize);
        let pdu = CapsuleCmd::new(slot.entry, len, digests);
        self.pdu(pdu.as_bytes(), digests);
        if len > 0 {
            self.payload(slot, 0, len, digests);
        }
    }

    /// One H2CData PDU; what is left of the R2T's range goes first in the queue again.
    fn data(&mut self, slot: &Slot, cid: u16, ttag: u16, offset: u32, len: u32, digests: Digests) {
        let now = len.min(self.maxh2cdata);
        let last = now == len;
        let pdu = DataPdu::h2c(cid, ttag, offset, now, last, digests);
        self.pdu(pdu.as_bytes(), digests);
        self.payload(slot, offset as usize, now as usize, digests);
        if !last {
            let generation = slot.generation;
            let rest = Outgoing::Data { cid, generation, ttag, offset: offset + now, len: len - now };
            self.queue.push_front(rest);
        }
    }
}
