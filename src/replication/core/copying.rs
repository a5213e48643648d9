//! Copies of the primary's disk to the peer's: of all that is marked when a session begins, and of what lies behind a
//! volume's end when it grows. Hosts go on meanwhile.
//!
//! Invariants. A copy holds its range while it is read, and takes its place on the lane among the writes. Its marks are
//! cleared when the range is held and about to be read, so that a mark set from then on belongs to a write which the copy
//! does not contain; they are set again if the copy is not acknowledged, or if the peer was only asked whether it has the
//! content and has not. So whatever interrupts a copy leaves what is left.

use super::mutation::{Mutation, active};
use super::primary::{Kind, Link, Local, PrimaryOutput, PrimaryStripes, Source};
use super::table::OpId;
use super::types::*;
use super::verify::VERIFY_BYTES;

/// What is copied to the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    Marked,
    /// What lies behind the volume's end and is to become a part of it: through this block. No host sees it yet.
    Behind {
        end: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copying {
    Idle,
    /// The next block to copy; how many operations are under way.
    Running {
        cursor: u64,
        in_flight: u32,
        scope: Scope,
    },
}

/// Bytes that one copy moves: large enough for the disks' sequential rate, small enough that a foreground write which
/// waits for its range waits under a millisecond.
const COPY_BYTES: u32 = 256 << 10;
/// Copies of one machine under way together; 2 MiB in flight keep a fast link busy and foreground latency low.
const COPY_DEPTH: u32 = 8;

impl<P: Payload> PrimaryStripes<P> {
    /// What the last copy that was begun has to copy in all, and what is left of it.
    pub fn copy_progress(&self) -> (u64, u64) {
        match self.copying {
            Copying::Idle => (self.copy_bytes, 0),
            Copying::Running { in_flight, .. } => {
                let left = self.dirty.bytes() + u64::from(in_flight) * u64::from(COPY_BYTES);
                (self.copy_bytes, left.min(self.copy_bytes))
            }
        }
    }

    /// Whether there is anything to copy that an allowance would be for.
    pub fn is_copying(&self) -> bool {
        matches!(self.copying, Copying::Running { scope: Scope::Marked, .. })
    }

    /// The source of a copy; `None` when reading failed.
    pub fn copy_read(&mut self, id: OpId, content: Option<P>, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Kind::Copy { range, source, round } = &mut op.kind else { return };
        let (range, round) = (*range, *round);
        let failed = content.is_none();
        if let Some(content) = content {
            *source = match source {
                Source::Unread { compare: true } => Source::Digest(content.digest()),
                _ if content.is_zero() => Source::Content(Data::Zeroes),
                _ => Source::Content(Data::Bytes(content)),
            };
        }
        match (self.is_stale(round), failed) {
            (false, false) => self.launch(id, out),
            (true, _) => self.drop_copy(id, range),
            (false, true) => {
                self.drop_copy(id, range);
                self.copying = Copying::Idle;
                out.push(PrimaryOutput::Event(StripeEvent::CopyFailed(range)));
            }
        }
        self.unlock(id, out);
        self.settle(id, out);
    }

    pub(super) fn is_stale(&self, round: u32) -> bool {
        self.copying == Copying::Idle || round != self.copy_round
    }

    pub(super) fn drop_copy(&mut self, id: OpId, range: Range) {
        self.mark(range, true);
        if let Some(op) = self.ops.get_mut(id) {
            op.local = Local::Done;
            op.replied = true;
        }
    }

    /// Copies what this machine owns and is marked to the peer, through the range lock, while hosts go on. For the rest
    /// `only_dirty` says that it is equal; otherwise everything is marked first, so that whatever interrupts the copy
    /// leaves what is left of it.
    pub fn start_copy(&mut self, only_dirty: bool, out: &mut Vec<PrimaryOutput<P>>) {
        if !only_dirty {
            self.dirty.mark_all();
        }
        self.copy_bytes = self.dirty.bytes();
        self.equal_bytes = 0;
        self.copy(0, Scope::Marked, out);
    }

    /// Whether what is copied from now on is compared by checksum first, and sent only if the peer has something else.
    pub fn set_compares(&mut self, compares: bool) {
        self.compares = compares;
    }

    /// Bytes of the copy that was begun last which the peer had already.
    pub fn equal_bytes(&self) -> u64 {
        self.equal_bytes
    }

    /// So many bytes may be copied until the next allowance; `None`: as many as go. What was left of the last one is
    /// not kept.
    pub fn allow_copy(&mut self, bytes: Option<u64>, out: &mut Vec<PrimaryOutput<P>>) {
        self.allowance = bytes.map(|bytes| {
            let bytes = bytes.min(i64::MAX as u64) as i64;
            self.allowance.unwrap_or(0).saturating_add(bytes).min(bytes)
        });
        self.copy_more(out);
        self.fill_more(out);
    }

    /// Takes what a piece costs out of the allowance, if there is one; `false` when it is used up.
    pub(super) fn takes_allowance(&mut self, range: Range) -> bool {
        let bytes = i64::from(range.blocks) * i64::from(self.config.geometry.block_bytes);
        match &mut self.allowance {
            Some(left) if *left <= 0 => false,
            Some(left) => {
                *left -= bytes;
                true
            }
            None => true,
        }
    }

    /// Makes room for a volume of so many blocks, and copies what this machine owns behind the volume's present end to
    /// the peer, which has made room before.
    pub fn extend(&mut self, blocks: u64, out: &mut Vec<PrimaryOutput<P>>) {
        self.make_room(blocks);
        self.copy(self.blocks, Scope::Behind { end: blocks }, out);
    }

    fn copy(&mut self, cursor: u64, scope: Scope, out: &mut Vec<PrimaryOutput<P>>) {
        if matches!(self.link, Link::Up { .. }) {
            self.copying = Copying::Running { cursor, in_flight: 0, scope };
            self.copy_round = self.copy_round.wrapping_add(1);
            self.again.clear();
            self.copy_more(out);
        }
    }

    /// A copy, or the comparison before it, was answered by the peer.
    pub(super) fn copy_ended(&mut self, range: Range, round: u32, verdict: Option<Verdict>) {
        let equal = verdict.is_none_or(|verdict| verdict == Verdict::Equal);
        if !equal {
            // Its marks were cleared for a copy that is still to be made.
            self.dirty.mark(range);
        }
        let Copying::Running { in_flight, .. } = &mut self.copying else { return };
        if round != self.copy_round {
            return;
        }
        *in_flight -= 1;
        match (equal, verdict) {
            (false, _) => self.again.push_back(range),
            (true, Some(_)) => {
                self.equal_bytes += u64::from(range.blocks) * u64::from(self.config.geometry.block_bytes);
            }
            (true, None) => {}
        }
    }

    pub(super) fn copy_more(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        while let Copying::Running { cursor, in_flight, scope } = self.copying {
            let again = self.again.front().copied();
            let Some(range) = again.or_else(|| self.next_copy(cursor, scope)) else {
                if in_flight == 0 || active(Mutation::CopyEndsEarly) {
                    self.copying = Copying::Idle;
                    out.push(PrimaryOutput::Event(match scope {
                        Scope::Marked => StripeEvent::CopyFinished,
                        Scope::Behind { .. } => StripeEvent::Extended,
                    }));
                }
                return;
            };
            if in_flight >= COPY_DEPTH {
                return;
            }
            if scope == Scope::Marked && !self.takes_allowance(range) {
                return;
            }
            self.again.pop_front();
            let cursor = if again.is_some() { cursor } else { range.end() };
            self.copying = Copying::Running { cursor, in_flight: in_flight + 1, scope };
            let compare = self.compares && again.is_none() && scope == Scope::Marked;
            let source = Source::Unread { compare };
            self.enter_own(Kind::Copy { range, source, round: self.copy_round }, out);
        }
    }

    /// The next piece at or after `cursor` in a stripe that this machine owns.
    fn next_copy(&self, cursor: u64, scope: Scope) -> Option<Range> {
        match scope {
            Scope::Marked if active(Mutation::CopySkipsPieces) && cursor > 0 => None,
            Scope::Marked => {
                let most = if self.compares { VERIFY_BYTES } else { COPY_BYTES };
                self.dirty.next(cursor, most / self.config.geometry.block_bytes)
            }
            Scope::Behind { end } => self.next_owned(cursor, end, COPY_BYTES),
        }
    }

    pub(super) fn next_owned(&self, cursor: u64, end: u64, most_bytes: u32) -> Option<Range> {
        let geometry = &self.config.geometry;
        let owners = u64::from(geometry.owners.max(1));
        let stripe = geometry.stripe_of(cursor);
        let ahead = (u64::from(geometry.owner) + owners - stripe % owners) % owners;
        let lba = if ahead == 0 { cursor } else { (stripe + ahead) * geometry.stripe_blocks() };
        if lba >= end {
            return None;
        }
        let stripe_end = (geometry.stripe_of(lba) + 1) * geometry.stripe_blocks();
        let end = (lba + u64::from(most_bytes / geometry.block_bytes)).min(stripe_end).min(end);
        Some(Range::new(lba, (end - lba) as u32))
    }
}
