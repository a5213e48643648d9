//! Online verify, the secondary's part: compares a range of its disk with the primary's digest.
//!
//! What is compared is the disk itself, without the disk buffer: what the forwarded writes made of it. The range lock
//! gives the comparison its place among them. Invariant: every comparison gets exactly one answer, within the time
//! after which a disk counts as hung; and it holds its range no longer than that, whatever the disk does.

use super::super::Sequence;
use super::maps::GranuleMaps;
use super::range_lock::LockId;
use super::secondary::{Answer, Op, SecondaryOutput, SecondaryStripes};
use super::table::OpId;
use super::types::*;
use smallvec::SmallVec;

pub(super) struct Comparison {
    lane: Lane,
    sequence: Sequence,
    range: Range,
    digest: Digest,
    lock: Option<LockId>,
    since: u32,
    reading: bool,
    pub answered: bool,
}

impl<P: Payload, M: GranuleMaps<P>> SecondaryStripes<P, M> {
    pub(super) fn compare(
        &mut self,
        lane: Lane,
        sequence: Sequence,
        range: Range,
        digest: Digest,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let since = self.tick;
        let id = self.ops.insert(Op::Verify(Comparison {
            lane,
            sequence,
            range,
            digest,
            lock: None,
            since,
            reading: false,
            answered: false,
        }));
        let (lock, held) = self.lock.enter(range, id);
        if let Some(comparison) = self.comparison(id) {
            comparison.lock = Some(lock);
        }
        if held {
            self.comparison_granted(id, out);
        }
    }

    fn comparison(&mut self, id: OpId) -> Option<&mut Comparison> {
        match self.ops.get_mut(id) {
            Some(Op::Verify(comparison)) => Some(comparison),
            _ => None,
        }
    }

    /// Everything that came before is on the disk.
    pub(super) fn comparison_granted(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(comparison) = self.comparison(id) else { return };
        if comparison.answered {
            return self.end_comparison(id, out);
        }
        comparison.reading = true;
        let range = comparison.range;
        out.push(SecondaryOutput::VerifyRead { op: id, range });
    }

    /// What the disk has; `None` when reading failed.
    pub fn verify_read(&mut self, id: OpId, content: Option<&P>, out: &mut Vec<SecondaryOutput<P>>) {
        if matches!(self.ops.get(id), Some(Op::PeerRead(_))) {
            return self.peer_has_read(id, content, out);
        }
        let Some(comparison) = self.comparison(id) else { return };
        if !comparison.answered {
            let verdict = match content {
                None => Verdict::Unreadable,
                Some(content) if content.digest() == comparison.digest => Verdict::Equal,
                Some(_) => Verdict::Differs,
            };
            self.answer_comparison(id, verdict, out);
        }
        self.end_comparison(id, out);
    }

    fn answer_comparison(&mut self, id: OpId, verdict: Verdict, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(comparison) = self.comparison(id) else { return };
        comparison.answered = true;
        let (lane, sequence) = (comparison.lane, comparison.sequence);
        out.push(SecondaryOutput::Answer { lane, sequence, answer: Answer::Compared(verdict) });
    }

    fn end_comparison(&mut self, id: OpId, out: &mut Vec<SecondaryOutput<P>>) {
        let Some(Op::Verify(comparison)) = self.ops.remove(id) else { return };
        if let Some(lock) = comparison.lock {
            self.unlock(lock, out);
        }
    }

    /// A disk that hangs is waited for no longer: neither by the primary, nor by writes into the range. A read is no
    /// danger to them; what it returns in the end nobody looks at.
    pub(super) fn give_up_comparisons(
        &mut self,
        is_hung: impl Fn(u32) -> bool,
        out: &mut Vec<SecondaryOutput<P>>,
    ) {
        let mut hung = SmallVec::<[OpId; 4]>::new();
        for (id, op) in self.ops.iter() {
            if let Op::Verify(comparison) = op
                && comparison.lock.is_some()
                && is_hung(comparison.since)
            {
                hung.push(id);
            }
        }
        for id in hung {
            let Some(comparison) = self.comparison(id) else { continue };
            let (reading, answered, lock) = (comparison.reading, comparison.answered, comparison.lock.take());
            if !answered {
                self.answer_comparison(id, Verdict::Hung, out);
            }
            if !reading {
                self.ops.remove(id);
            }
            if let Some(lock) = lock {
                self.unlock(lock, out);
            }
        }
    }
}
