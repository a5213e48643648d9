//! What is under way on one data connection, at both of its ends. The volumes of a reactor share the connection, so
//! these belong to the reactor, beside the machines of its volumes.
//!
//! [`Outgoing`] finds by its sequence, without searching, what was sent and not yet answered. [`Incoming`] notices a gap
//! in the order, and gathers answers so that one message carries many.

use super::super::Sequence;
use std::collections::VecDeque;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Sent,
    Received,
    Ended,
}

/// What an acknowledgement changed for one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered<T> {
    Received(T),
    Ended(T),
}

/// The sender's end. `T` says whose message it was.
pub struct Outgoing<T> {
    last: Sequence,
    /// The sequence of the oldest entry is `last - entries.len() + 1`.
    entries: VecDeque<(T, Progress)>,
    received: Sequence,
}

impl<T: Copy> Default for Outgoing<T> {
    fn default() -> Self {
        Outgoing { last: Sequence(0), entries: VecDeque::new(), received: Sequence(0) }
    }
}

impl<T: Copy> Outgoing<T> {
    pub fn last(&self) -> Sequence {
        self.last
    }

    /// Messages that have not ended at the peer.
    pub fn unended(&self) -> usize {
        self.entries.len()
    }

    pub fn send(&mut self, owner: T) -> Sequence {
        self.last = self.last.next();
        self.entries.push_back((owner, Progress::Sent));
        self.last
    }

    fn oldest(&self) -> u64 {
        self.last.0 + 1 - self.entries.len() as u64
    }

    /// Everything through this has arrived. `false` when it was never sent: the connection is to be closed.
    pub fn received_through(&mut self, through: Sequence, mut answered: impl FnMut(Answered<T>)) -> bool {
        if through > self.last {
            return false;
        }
        let oldest = self.oldest();
        for sequence in (self.received.0 + 1).max(oldest)..=through.0 {
            let (owner, progress) = &mut self.entries[(sequence - oldest) as usize];
            if *progress == Progress::Sent {
                *progress = Progress::Received;
                answered(Answered::Received(*owner));
            }
        }
        self.received = self.received.max(through);
        true
    }

    /// The `count` messages from `first` on have ended. Disks finish out of order, so may these.
    pub fn ended(&mut self, first: Sequence, count: u32, mut answered: impl FnMut(Answered<T>)) -> bool {
        let Some(end) = first.0.checked_add(u64::from(count)) else { return false };
        if first.0 == 0 || end > self.last.0 + 1 {
            return false;
        }
        let oldest = self.oldest();
        for sequence in first.0.max(oldest)..end {
            let (owner, progress) = &mut self.entries[(sequence - oldest) as usize];
            if *progress != Progress::Ended {
                *progress = Progress::Ended;
                answered(Answered::Ended(*owner));
            }
        }
        while self.entries.front().is_some_and(|entry| entry.1 == Progress::Ended) {
            self.entries.pop_front();
        }
        true
    }

    /// The connection starts anew: nothing is under way, sequences count from 1. What was unanswered the machines know.
    pub fn reset(&mut self) {
        self.entries.clear();
        self.last = Sequence(0);
        self.received = Sequence(0);
    }
}

/// A run of messages that ended alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<S> {
    pub first: Sequence,
    pub count: u32,
    pub status: S,
}

/// The receiver's end. `S` says how a message ended.
pub struct Incoming<S> {
    arrived: Sequence,
    reported: Sequence,
    ended: Vec<(Sequence, S)>,
}

impl<S: Copy + PartialEq> Default for Incoming<S> {
    fn default() -> Self {
        Incoming { arrived: Sequence(0), reported: Sequence(0), ended: Vec::new() }
    }
}

impl<S: Copy + PartialEq> Incoming<S> {
    /// Through this everything has arrived.
    pub fn arrived(&self) -> Sequence {
        self.arrived
    }

    /// `false` when it is not the next one.
    pub fn arrive(&mut self, sequence: Sequence) -> bool {
        let next = sequence == self.arrived.next();
        if next {
            self.arrived = sequence;
        }
        next
    }

    pub fn end(&mut self, sequence: Sequence, status: S) {
        self.ended.push((sequence, status));
    }

    /// Whether there is anything to tell the sender.
    pub fn has_news(&self) -> bool {
        self.reported < self.arrived || !self.ended.is_empty()
    }

    /// What to tell: everything that ended since the last time, as runs; at most `limit` of them. Returns through where
    /// messages have arrived.
    pub fn report(&mut self, limit: usize, mut run: impl FnMut(Run<S>)) -> Sequence {
        self.ended.sort_unstable_by_key(|entry| entry.0);
        let (mut taken, mut runs) = (0, 0);
        let mut open: Option<Run<S>> = None;
        for &(sequence, status) in &self.ended {
            match &mut open {
                Some(last) if last.first.0 + u64::from(last.count) == sequence.0 && last.status == status => {
                    last.count += 1;
                }
                _ => {
                    if runs == limit {
                        break;
                    }
                    runs += 1;
                    if let Some(last) = open.replace(Run { first: sequence, count: 1, status }) {
                        run(last);
                    }
                }
            }
            taken += 1;
        }
        if let Some(last) = open {
            run(last);
        }
        self.ended.drain(..taken);
        self.reported = self.arrived;
        self.arrived
    }

    pub fn reset(&mut self) {
        self.arrived = Sequence(0);
        self.reported = Sequence(0);
        self.ended.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_message_in_any_order_and_a_senseless_one_is_refused() {
        let mut lane = Outgoing::default();
        for owner in ['a', 'b', 'c'] {
            lane.send(owner);
        }
        let mut seen = Vec::new();
        assert!(lane.received_through(Sequence(2), |answer| seen.push(answer)));
        assert!(lane.ended(Sequence(2), 2, |answer| seen.push(answer)));
        assert!(lane.ended(Sequence(1), 3, |answer| seen.push(answer)));
        assert!(lane.received_through(Sequence(3), |answer| seen.push(answer)));
        use Answered::*;
        assert_eq!(seen, [Received('a'), Received('b'), Ended('b'), Ended('c'), Ended('a')]);
        assert_eq!(lane.unended(), 0);
        assert!(!lane.received_through(Sequence(4), |_| ()));
        assert!(!lane.ended(Sequence(3), 2, |_| ()) && !lane.ended(Sequence(0), 1, |_| ()));
        assert!(!lane.ended(Sequence(u64::MAX), 2, |_| ()));
        lane.reset();
        assert_eq!(lane.send('d'), Sequence(1));
    }

    #[test]
    fn answers_are_gathered_into_runs_and_a_gap_is_noticed() {
        let mut lane = Incoming::default();
        assert!(lane.arrive(Sequence(1)) && lane.arrive(Sequence(2)) && lane.arrive(Sequence(3)));
        assert!(!lane.arrive(Sequence(5)) && !lane.arrive(Sequence(3)));
        for (sequence, status) in [(3, 'y'), (1, 'y'), (2, 'n')] {
            lane.end(Sequence(sequence), status);
        }
        let mut runs = Vec::new();
        assert_eq!(lane.report(2, |run| runs.push((run.first.0, run.count, run.status))), Sequence(3));
        assert_eq!(runs, [(1, 1, 'y'), (2, 1, 'n')]);
        assert!(lane.has_news());
        lane.report(2, |run| runs.push((run.first.0, run.count, run.status)));
        assert_eq!(runs[2], (3, 1, 'y'));
        assert!(!lane.has_news());
    }
}
