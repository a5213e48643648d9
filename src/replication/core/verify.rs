//! Online verify, the primary's part: compares what one machine owns with the peer's disk while hosts go on.
//!
//! A range is compared at one point of the stream of writes. Here it is read while the range lock is held: what was
//! launched before is on the disk, nothing later is. The digest then takes its place on the lane, behind the same writes;
//! the peer reads its disk when it has applied exactly those. So a difference is never one of timing. Hosts wait as long
//! as for a sync copy: for one read of the local disk, and only those that write into the range.
//!
//! A range that differs is compared again in pieces, each at its own point of the stream, to tell what differs. What is
//! found is marked in the dirty map, so that the copies which follow, now or in a later session, take it along.

use super::primary::{Kind, Link, Peer, PrimaryOutput, PrimaryStripes};
use super::table::OpId;
use super::types::*;
use std::collections::VecDeque;

/// Compared at once: large enough that the messages cost little, small enough that a digest takes well under 0.1 ms of
/// the reactor's time.
pub const VERIFY_BYTES: u32 = 128 << 10;
/// Differences are told this exactly.
const PIECE_BYTES: u32 = 4096;
/// Ranges under way together: the disks' and the link's delays are hidden at a gigabyte a second.
const VERIFY_DEPTH: u32 = 4;
/// Ticks whose share of the rate may be made up for.
const CREDIT_TICKS: i64 = 4;

/// Where a verify is. Between two of them the counts of the last one stay.
#[derive(Default)]
pub(super) struct Verifying {
    running: bool,
    round: u32,
    cursor: u64,
    in_flight: u32,
    /// Of ranges that differ.
    pieces: VecDeque<Range>,
    /// Bytes that may be compared now; below 0 when the last range was more.
    credit: i64,
    /// Ticks without an answer after which a disk hangs, and those that have passed.
    patience: u32,
    waited: u32,
    checked: u64,
}

impl<P: Payload> PrimaryStripes<P> {
    /// Whether a verify runs here.
    pub fn is_verifying(&self) -> bool {
        self.verifying.running
    }

    /// Whether time is what it waits for.
    #[cfg(test)]
    pub(super) fn wants_to_verify(&self) -> bool {
        self.verifying.running && self.verifying.in_flight < VERIFY_DEPTH && self.verifying.credit <= 0
    }

    /// Blocks that the present verify, or else the last one, has compared.
    pub fn verified_blocks(&self) -> u64 {
        self.verifying.checked
    }

    /// Begins to compare everything this machine owns, from the next [`PrimaryStripes::verify_tick`] on. `patience` is
    /// how many ticks may pass without an answer.
    pub fn start_verify(&mut self, round: u32, patience: u32, out: &mut Vec<PrimaryOutput<P>>) {
        self.cancel_verify(out);
        let running = matches!(self.link, Link::Up { .. });
        self.verifying = Verifying { running, round, patience, ..Verifying::default() };
        // What owns nothing has ended.
        self.verify_more(out);
    }

    /// Ends the verify, if one runs. Its ranges are free at once.
    pub fn cancel_verify(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        if !std::mem::take(&mut self.verifying.running) {
            return;
        }
        self.verifying.pieces.clear();
        let unsent =
            |kind: &Kind<P>, peer: Peer| matches!(kind, Kind::Verify { .. }) && peer == Peer::NotSent;
        let ids: Vec<OpId> =
            self.ops.iter().filter(|(_, op)| unsent(&op.kind, op.peer)).map(|(id, _)| id).collect();
        for id in ids {
            self.unlock(id, out);
            self.ops.remove(id);
        }
    }

    /// Time for so many bytes more.
    pub fn verify_tick(&mut self, bytes: u64, out: &mut Vec<PrimaryOutput<P>>) {
        let verifying = &mut self.verifying;
        if !verifying.running {
            return;
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / (2 * CREDIT_TICKS));
        let most = (bytes * CREDIT_TICKS).max(i64::from(VERIFY_BYTES));
        verifying.credit = (verifying.credit + bytes).min(most);
        if verifying.in_flight > 0 {
            verifying.waited += 1;
            if verifying.waited >= verifying.patience {
                return self.verify_hangs(out);
            }
        }
        self.verify_more(out);
    }

    fn verify_hangs(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        let waits_here =
            |kind: &Kind<P>, peer: Peer| matches!(kind, Kind::Verify { .. }) && peer == Peer::NotSent;
        let here = self.ops.iter().any(|(_, op)| waits_here(&op.kind, op.peer));
        let fault = if here { VerifyFault::HungHere } else { VerifyFault::HungThere };
        self.fail_verify(fault, out);
    }

    fn fail_verify(&mut self, fault: VerifyFault, out: &mut Vec<PrimaryOutput<P>>) {
        let round = self.verifying.round;
        self.cancel_verify(out);
        out.push(PrimaryOutput::Event(StripeEvent::VerifyFailed { round, fault }));
    }

    fn verify_more(&mut self, out: &mut Vec<PrimaryOutput<P>>) {
        while self.verifying.running {
            let fresh = self.next_owned(self.verifying.cursor, self.blocks, VERIFY_BYTES);
            let verifying = &mut self.verifying;
            let Some(range) = verifying.pieces.front().copied().or(fresh) else {
                if verifying.in_flight == 0 {
                    verifying.running = false;
                    let round = verifying.round;
                    out.push(PrimaryOutput::Event(StripeEvent::VerifyFinished { round }));
                }
                return;
            };
            if verifying.in_flight >= VERIFY_DEPTH || verifying.credit <= 0 {
                return;
            }
            if verifying.pieces.pop_front().is_none() {
                verifying.cursor = range.end();
            }
            verifying.in_flight += 1;
            verifying.credit -= i64::from(range.blocks) * i64::from(self.config.geometry.block_bytes);
            let round = verifying.round;
            self.enter_own(Kind::Verify { range, digest: None, round }, out);
        }
    }

    /// What the local disk has; `None` when reading failed.
    pub fn verify_read(&mut self, id: OpId, content: Option<&P>, out: &mut Vec<PrimaryOutput<P>>) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Kind::Verify { digest, .. } = &mut op.kind else { return };
        let Some(content) = content else { return self.fail_verify(VerifyFault::UnreadableHere, out) };
        *digest = Some(content.digest());
        self.verifying.waited = 0;
        self.launch(id, out);
        self.unlock(id, out);
        self.settle(id, out);
    }

    /// The peer has compared a range.
    pub(super) fn judged(
        &mut self,
        range: Range,
        round: u32,
        verdict: Verdict,
        out: &mut Vec<PrimaryOutput<P>>,
    ) {
        let piece = (PIECE_BYTES / self.config.geometry.block_bytes).max(1);
        let verifying = &mut self.verifying;
        if !verifying.running || verifying.round != round {
            return;
        }
        verifying.in_flight -= 1;
        verifying.waited = 0;
        match verdict {
            Verdict::Equal => verifying.checked += u64::from(range.blocks),
            Verdict::Differs if range.blocks > piece => {
                let mut lba = range.lba;
                while lba < range.end() {
                    let blocks = u64::from(piece).min(range.end() - lba) as u32;
                    verifying.pieces.push_back(Range::new(lba, blocks));
                    lba += u64::from(blocks);
                }
            }
            Verdict::Differs => {
                verifying.checked += u64::from(range.blocks);
                self.dirty.mark(range);
                out.push(PrimaryOutput::Event(StripeEvent::Differs { round, range }));
            }
            Verdict::Unreadable => return self.fail_verify(VerifyFault::UnreadableThere, out),
            Verdict::Hung => return self.fail_verify(VerifyFault::HungThere, out),
        }
        self.verify_more(out);
    }
}
