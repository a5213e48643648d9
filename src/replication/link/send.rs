//! The sending half of a connection: messages become one list of buffers, sent by one system call a turn.
//!
//! Headers and small payloads are written into chunks that are used again when the kernel is done with them; headers
//! that follow each other are one entry of the list. Payloads are passed on by reference.

use std::collections::VecDeque;

use super::message::Message;
use super::wire::HEADER_BYTES;
use crate::env::{Buf, SgList, sg_len};
use crate::reactor;
use crate::reactor::ring::MAX_IOVECS;

/// Bytes queued from which on the owner is asked to hold back: some milliseconds of a fast network.
pub const SEND_BYTES_HIGH: usize = 16 << 20;
/// Buffers queued from which on the owner is asked to hold back: four system calls' worth.
pub const SEND_ENTRIES_HIGH: usize = 4 * MAX_IOVECS;
/// Beyond this many times either limit a message is refused, and the link is as good as lost.
pub const SEND_HARD_FACTOR: usize = 16;

/// Chunk for headers and small payloads: stays in the cache, and serves 512 writes.
const CHUNK_BYTES: usize = 32 << 10;
/// Payloads up to this go into the chunk beside their header: a full Acks does.
const INLINE_MAX: usize = 4096;
/// Chunks kept for later.
const SPARE_CHUNKS: usize = 8;

/// Whether there is room for more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Yes,
    /// Hold back what can wait until `writable` is called.
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the connection is closed")]
    Closed,
    #[error("the peer does not keep up: its send queue is full")]
    Full,
    #[error("no memory for a message")]
    NoMemory,
}

#[derive(Default)]
pub(super) struct SendSide {
    ready: VecDeque<Buf>,
    chunk: Option<Buf>,
    /// The part of `chunk` that was written and is not in `ready` yet.
    open: std::ops::Range<usize>,
    spare: VecDeque<Buf>,
    /// Bytes and entries not sent yet, those in flight included.
    queued_bytes: usize,
    queued_entries: usize,
    flight: Option<(usize, usize)>,
    held_back: bool,
}

fn memory(len: usize) -> Option<Buf> {
    // Messages that end other work must get out even when the pool is empty.
    reactor::alloc(len).or_else(|| Buf::heap(len))
}

impl SendSide {
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes + self.open.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flight.is_none() && self.ready.is_empty() && self.open.is_empty()
    }

    fn over(&self, factor: usize) -> bool {
        self.queued_bytes >= SEND_BYTES_HIGH * factor || self.queued_entries >= SEND_ENTRIES_HIGH * factor
    }

    fn room(&mut self) -> Room {
        self.held_back |= self.over(1);
        if self.held_back { Room::No } else { Room::Yes }
    }

    /// Queues a message with a payload by reference.
    pub(super) fn push(
        &mut self,
        message: &Message,
        payload: SgList,
        checksum: bool,
    ) -> Result<Room, SendError> {
        if self.over(SEND_HARD_FACTOR) {
            return Err(SendError::Full);
        }
        let len = sg_len(&payload);
        let crc = (checksum && len > 0).then(|| payload.iter().fold(0, |crc, buf| buf.crc32c(crc)));
        self.write(&[&message.encode(len as u32, crc)])?;
        if !payload.is_empty() {
            self.close_open();
            payload.into_iter().for_each(|buf| self.entry(buf));
        }
        Ok(self.room())
    }

    /// Queues a message whose payload is copied: control messages and acknowledgements.
    pub(super) fn push_bytes(
        &mut self,
        message: &Message,
        payload: &[u8],
        checksum: bool,
    ) -> Result<Room, SendError> {
        if self.over(SEND_HARD_FACTOR) {
            return Err(SendError::Full);
        }
        let crc = (checksum && !payload.is_empty()).then(|| crc32c::crc32c(payload));
        let header = message.encode(payload.len() as u32, crc);
        if payload.len() <= INLINE_MAX {
            self.write(&[&header, payload])?;
        } else {
            let copy = memory(payload.len()).ok_or(SendError::NoMemory)?;
            copy.write_at(0, payload);
            self.write(&[&header])?;
            self.close_open();
            self.entry(copy);
        }
        Ok(self.room())
    }

    fn entry(&mut self, buf: Buf) {
        self.queued_bytes += buf.len();
        self.queued_entries += 1;
        self.ready.push_back(buf);
    }

    /// Appends bytes to the open part of the chunk.
    fn write(&mut self, parts: &[&[u8]]) -> Result<(), SendError> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let fits = self.chunk.as_ref().is_some_and(|chunk| self.open.end + len <= chunk.len());
        if !fits {
            self.close_open();
            let full = self.chunk.take();
            let used = self.spare.front().is_some_and(Buf::is_unique);
            let next = if used { self.spare.pop_front() } else { None };
            self.spare.extend(full.filter(|_| self.spare.len() < SPARE_CHUNKS));
            self.chunk = Some(next.or_else(|| memory(CHUNK_BYTES)).ok_or(SendError::NoMemory)?);
            self.open = 0..0;
        }
        let Some(chunk) = &self.chunk else { return Err(SendError::NoMemory) };
        for part in parts {
            chunk.write_at(self.open.end, part);
            self.open.end += part.len();
        }
        Ok(())
    }

    /// Makes an entry of what was written.
    fn close_open(&mut self) {
        if let Some(chunk) = &self.chunk
            && !self.open.is_empty()
        {
            let written = chunk.slice(self.open.start, self.open.len());
            self.open.start = self.open.end;
            self.entry(written);
        }
    }

    /// The next list to send, if there is something and nothing is in flight.
    pub(super) fn take(&mut self) -> Option<impl Iterator<Item = Buf>> {
        if self.flight.is_some() {
            return None;
        }
        self.close_open();
        let count = self.ready.len().min(MAX_IOVECS);
        if count == 0 {
            return None;
        }
        let bytes = self.ready.iter().take(count).map(Buf::len).sum();
        self.flight = Some((bytes, count));
        Some(self.ready.drain(..count))
    }

    /// What was in flight went out. The bytes that went, and whether the owner may go on after it was held back.
    pub(super) fn sent(&mut self) -> (usize, bool) {
        let (bytes, entries) = self.flight.take().unwrap_or_default();
        self.queued_bytes -= bytes;
        self.queued_entries -= entries;
        // Half, so that the owner is not called for each message at the limit.
        let low = self.queued_bytes <= SEND_BYTES_HIGH / 2 && self.queued_entries <= SEND_ENTRIES_HIGH / 2;
        let resume = self.held_back && low;
        self.held_back &= !resume;
        (bytes, resume)
    }

    pub(super) fn flight_bytes(&self) -> usize {
        self.flight.map_or(0, |(bytes, _)| bytes)
    }

    /// The connection is gone: lets all buffers go.
    pub(super) fn clear(&mut self) {
        *self = SendSide::default();
    }
}

const _: () = assert!(HEADER_BYTES + INLINE_MAX <= CHUNK_BYTES);
