//! The receiving half of a connection: bytes become messages.
//!
//! Everything lands in a staging buffer first. The payload of a write, or of what was read, is copied from there into a
//! buffer of its own, aligned for any disk; what of it has not arrived yet is received straight into that buffer. Payloads
//! of other messages are handed out where they are: acknowledgements must get through when the pool is empty, and so must
//! what was read, behind which they may stand: it then takes ordinary memory, no more than was asked for.

use smallvec::smallvec;

use super::message::{Header, Message, WireError, parse};
use super::wire::{CONTROL_BYTES_MAX, HEADER_BYTES};
use crate::env::{Buf, SgList};
use crate::reactor;

/// One receive takes at most this much: 60 writes of 4 KiB, and still within a core's second-level cache.
const STAGING_BYTES: usize = 256 << 10;
const _: () = assert!(CONTROL_BYTES_MAX as usize + HEADER_BYTES <= STAGING_BYTES);

/// The payload of a write, or of what was read, of which a part is still to come.
struct Target {
    header: Header,
    buf: Buf,
    filled: usize,
}

pub(super) struct RecvSide {
    staging: Buf,
    start: usize,
    end: usize,
    target: Option<Target>,
}

pub(super) enum Next {
    Message(Header, SgList),
    /// Everything that is complete was taken.
    Receive,
    /// No buffer for a payload now.
    NoMemory,
    Failed(WireError),
}

/// Where the next bytes go.
pub(super) enum Into {
    Staging(Buf),
    TargetAndStaging(Buf, Buf),
}

fn staging() -> Option<Buf> {
    reactor::alloc(STAGING_BYTES).or_else(|| Buf::heap(STAGING_BYTES))
}

fn checked(header: Header, payload: SgList) -> Next {
    let wrong = header
        .payload_crc
        .is_some_and(|expected| payload.iter().fold(0, |crc, buf| buf.crc32c(crc)) != expected);
    if wrong { Next::Failed(WireError::PayloadChecksum) } else { Next::Message(header, payload) }
}

impl RecvSide {
    pub(super) fn new() -> Option<RecvSide> {
        Some(RecvSide { staging: staging()?, start: 0, end: 0, target: None })
    }

    /// Whether bytes wait that are not a whole message yet.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end && self.target.is_none()
    }

    /// Forgets what has arrived.
    pub(super) fn discard(&mut self) {
        (self.start, self.end, self.target) = (0, 0, None);
    }

    /// The next complete message.
    pub(super) fn next(&mut self) -> Next {
        if let Some(target) = &self.target {
            if target.filled < target.buf.len() {
                return Next::Receive;
            }
            let Some(target) = self.target.take() else { return Next::Receive };
            return checked(target.header, smallvec![target.buf]);
        }
        let available = self.end - self.start;
        if available < HEADER_BYTES {
            return Next::Receive;
        }
        let header = match self.staging.with(|bytes| parse(&bytes[self.start..self.end])) {
            Ok(header) => header,
            Err(error) => return Next::Failed(error),
        };
        let len = header.payload_len as usize;
        let (at, here) = (self.start + HEADER_BYTES, len.min(available - HEADER_BYTES));
        if len == 0 {
            self.start = at;
            return Next::Message(header, SgList::new());
        }
        if !matches!(header.message, Message::Write(_) | Message::ReadData(_)) {
            if here < len {
                return Next::Receive;
            }
            self.start = at + len;
            return checked(header, smallvec![self.staging.slice(at, len)]);
        }
        let heap = || matches!(header.message, Message::ReadData(_)).then(|| Buf::heap(len)).flatten();
        let Some(buf) = reactor::alloc(len).or_else(heap) else { return Next::NoMemory };
        buf.copy_from(0, &self.staging, at, here);
        self.start = at + here;
        if here == len {
            return checked(header, smallvec![buf]);
        }
        self.target = Some(Target { header, buf, filled: here });
        Next::Receive
    }

    /// Where to receive next. `None`: no memory.
    pub(super) fn arm(&mut self) -> Option<Into> {
        let left = self.end - self.start;
        if !self.staging.is_unique() {
            // Somebody kept a control payload: it stays as it is, and we go on elsewhere.
            let new = staging()?;
            new.copy_from(0, &self.staging, self.start, left);
            self.staging = new;
        } else if left > 0 && self.start > 0 {
            let whole = self.staging.slice(0, STAGING_BYTES);
            self.staging.copy_from(0, &whole, self.start, left);
        }
        (self.start, self.end) = (0, left);
        let free = self.staging.slice(left, STAGING_BYTES - left);
        Some(match &self.target {
            Some(target) => Into::TargetAndStaging(
                target.buf.slice(target.filled, target.buf.len() - target.filled),
                free,
            ),
            None => Into::Staging(free),
        })
    }

    /// `count` bytes arrived where `arm` said.
    pub(super) fn received(&mut self, count: usize) {
        let mut rest = count;
        if let Some(target) = &mut self.target {
            let part = rest.min(target.buf.len() - target.filled);
            target.filled += part;
            rest -= part;
        }
        self.end = (self.end + rest).min(STAGING_BYTES);
    }
}
