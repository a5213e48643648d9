//! What a primary without a disk reads from the secondary.
//!
//! A read has its place on the lane: it returns what the disk has after all writes that came before it there, as the
//! forwarded writes made it: what is held in memory for a disk that hangs, then the disk; nothing of the disk buffer. So
//! whatever the primary acknowledged is in it.
//!
//! Invariants. Every read gets exactly one answer. It waits for the writes before it no longer than after what a disk counts
//! as hung: by then they are held in memory, and it takes them from there. A read of the disk that hangs is waited for as
//! long again.

use super::super::Sequence;
use super::maps::GranuleMaps;
use super::range_lock::LockId;
use super::secondary::{Answer, Op, SecondaryOutput, SecondaryStripes};
use super::table::OpId;
use super::types::*;
use smallvec::SmallVec;

pub(super) struct PeerRead {
    lane: Lane,
    sequence: Sequence,
    range: Range,
    lock: Option<LockId>,
    /// Since when it waits for the range, or else for the disk.
    since: u32,
    /// At the disk: what had left memory when the read was submitted.
    reading: Option<u64>,
    pub answered: bool,
}

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    pub(super) fn read_for_peer(
        &mut self,
        lane: Lane,
        sequence: Sequence,
        range: Range,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let since = self.tick;
        let read = PeerRead { lane, sequence, range, lock: None, since, reading: None, answered: false };
        let id = self.ops.insert(Op::PeerRead(read));
        let (lock, held) = self.lock.enter(range, id);
        if let Some(read) = self.peer_read(id) {
            read.lock = Some(lock);
        }
        if held {
            self.peer_read_granted(id, out);
        }
    }

    fn peer_read(&mut self, id: OpId) -> Option<&mut PeerRead> {
        match self.ops.get_mut(id) {
            Some(Op::PeerRead(read)) => Some(read),
            _ => None,
        }
    }

    /// The writes that came before are on the disk. One that was not waited for any longer reads already.
    pub(super) fn peer_read_granted(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(read) = self.peer_read(id) else { return };
        match (read.answered, read.reading) {
            (true, None) => self.end_peer_read(id, out),
            (_, Some(_)) => {}
            (false, None) => self.submit_peer_read(id, out),
        }
    }

    fn submit_peer_read(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let (changes, tick) = (self.changes, self.tick);
        let Some(read) = self.peer_read(id) else { return };
        (read.reading, read.since) = (Some(changes), tick);
        let range = read.range;
        out.push(SecondaryOutput::VerifyRead { op: id, range });
    }

    /// What the disk has; `None` when reading failed.
    pub(super) fn peer_has_read(&mut self, id: OpId, content: Option<&P>, out: &mut Vec<SecondaryOutput<P>>) {
        let changes = self.changes;
        let Some(read) = self.peer_read(id) else { return };
        // What was held in memory may have gone to the disk after the disk was read.
        if !read.answered && read.reading != Some(changes) {
            return self.submit_peer_read(id, out);
        }
        if !read.answered {
            read.answered = true;
            let (lane, sequence, range) = (read.lane, read.sequence, read.range);
            out.push(match content {
                Some(content) => {
                    let mut content = content.clone();
                    self.put_pins(range, &mut content);
                    SecondaryOutput::ReadData { lane, sequence, range, content }
                }
                None => {
                    let answer = Answer::Compared(Verdict::Unreadable);
                    SecondaryOutput::Answer { lane, sequence, answer }
                }
            });
        }
        self.end_peer_read(id, out);
    }

    /// Puts what is held in memory over what was read from the disk, in the order in which it came.
    fn put_pins(&self, range: Range, into: &mut P) {
        for &(_, id) in &self.pins {
            let Some(Op::Forwarded(write)) = self.ops.get(id) else { continue };
            if let Some(piece) = write.range.intersection(range) {
                let from = (piece.lba - write.range.lba) as u32;
                write.data.copy_to(from, into, (piece.lba - range.lba) as u32, piece.blocks);
            }
        }
    }

    fn end_peer_read(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::PeerRead(read)) = self.ops.remove(id) else { return };
        if let Some(lock) = read.lock {
            self.unlock(lock, out);
        }
    }

    /// A read that waits for writes which hang goes to the disk without them; one that hangs there is answered, and keeps
    /// nobody from the range.
    pub(super) fn hurry_peer_reads(
        &mut self,
        is_hung: impl Fn(u32) -> bool,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let mut late = SmallVec::<[OpId; 4]>::new();
        for (id, op) in self.ops.iter() {
            if let Op::PeerRead(read) = op
                && !read.answered
                && is_hung(read.since)
            {
                late.push(id);
            }
        }
        for id in late {
            let Some(read) = self.peer_read(id) else { continue };
            if read.reading.is_none() {
                self.submit_peer_read(id, out);
                continue;
            }
            read.answered = true;
            let (lane, sequence, lock) = (read.lane, read.sequence, read.lock.take());
            let answer = Answer::Compared(Verdict::Hung);
            out.push(SecondaryOutput::Answer { lane, sequence, answer });
            if let Some(lock) = lock {
                self.unlock(lock, out);
            }
        }
    }
}
