//! The secondary's group machine and earlier checkpoints: which are kept, and the way back to one.
//!
//! Invariants. What every reactor may drop is told to all of them after each commit, so that all volumes keep the same
//! epochs. A roll-back says "inconsistent" durably before anything is written, and "consistent" with the epoch as the
//! last checkpoint when all of it is durable. The disks are then those of no lineage: nobody knows what they lack.

use super::super::Epoch;
use super::group::*;
use super::group_secondary::{Out, Persisting, SecondaryGroup, SecondaryState, Spreading, reply};
use super::history::KeptEpoch;

impl SecondaryGroup {
    /// Keeps so many epochs before the last one (0: none) while they take no more than so many bytes.
    pub fn set_history(&mut self, epochs: u32, limit_bytes: u64, out: &mut Out) {
        let last = self.record().committed;
        // Without a session no machine has it; after a failover hosts may have overwritten it.
        let shown = self.has_view() && !self.restarted && !self.record().promoted;
        let lost = self.history.set_limits(epochs, limit_bytes, shown.then_some(last));
        self.tell_history(lost, out);
    }

    /// What is kept, oldest first; the last is the last checkpoint.
    pub fn history(&self) -> Vec<KeptEpoch> {
        self.history.list()
    }

    /// A reactor has moved so much into the history with what it was told last.
    pub fn moved(&mut self, bytes: u64) {
        self.history.moved(bytes);
    }

    /// Tells every reactor what is kept. `lost`: the newest exported epoch that was given up.
    pub(super) fn tell_history(&self, lost: Option<Epoch>, out: &mut Out) {
        let from = self.history.from(self.record().committed);
        out.push(GroupOutput::ToStripes(ToStripes::History { from }));
        if let Some(epoch) = lost {
            out.push(GroupOutput::Event(GroupEvent::HistoryDropped(epoch)));
        }
    }

    /// An epoch is on every reactor.
    pub(super) fn history_committed(&mut self, epoch: Epoch, out: &mut Out) {
        let lost = self.history.committed(epoch);
        if self.history.is_on() {
            self.tell_history(lost, out);
        }
    }

    /// After a failover the last checkpoint is one of the earlier ones.
    pub(super) fn history_taken_over(&mut self, out: &mut Out) {
        let lost = self.history.settle();
        if self.history.is_on() {
            self.tell_history(lost, out);
        }
    }

    /// A machine could not keep originals of this epoch, for the history alone or at all.
    pub(super) fn history_lost(&mut self, epoch: Epoch, out: &mut Out) {
        let (changed, exported) = self.history.lose_before(epoch);
        if changed {
            self.tell_history(exported, out);
            out.push(GroupOutput::Event(GroupEvent::HistoryLost(epoch)));
        }
    }

    /// Hosts overwrite more after a failover than there is room for.
    pub(super) fn history_short(&mut self, out: &mut Out) {
        if self.history.list().len() > 1 {
            let lost = self.history.give_up_oldest();
            self.tell_history(lost, out);
        }
    }

    /// Holds an epoch for a user, or says that it is not kept.
    pub fn export(&mut self, epoch: Epoch) -> Result<(), GroupError> {
        if self.history.export(epoch) { Ok(()) } else { Err(GroupError::NotKept(epoch)) }
    }

    /// One user less.
    pub fn end_export(&mut self, epoch: Epoch, out: &mut Out) {
        self.history.end_export(epoch);
        self.tell_history(None, out);
    }

    /// Makes all volumes what they were at the end of an epoch. No session stands, and no hosts use a node that took over.
    pub fn roll_back(&mut self, command: u64, epoch: Epoch, out: &mut Out) {
        use SecondaryState::*;
        let error = match self.state() {
            Stopped | PrimaryLost | Standalone if self.is_busy() || self.is_connected() => {
                Some(GroupError::NotStopped(self.state().name()))
            }
            Stopped | PrimaryLost | Standalone if self.history.contains(epoch) => None,
            Stopped | PrimaryLost | Standalone => Some(GroupError::NotKept(epoch)),
            state => Some(GroupError::NotStopped(state.name())),
        };
        if let Some(error) = error {
            return reply(out, command, Err(error));
        }
        self.rolls_back = Some(RollBack { epoch, from: self.state() });
        self.set_state(RollingBack);
        self.spreading = Spreading::RollBack { command, left: self.reactors(), refused: false, asked: true };
        out.push(GroupOutput::ToStripes(ToStripes::HoldPast { epoch }));
    }

    /// Every reactor has answered whether it can, or has begun.
    pub(super) fn roll_back_spread(&mut self, command: u64, refused: bool, asked: bool, out: &mut Out) {
        let Some(RollBack { epoch, from }) = self.rolls_back else { return };
        match (asked, refused) {
            (true, true) => {
                out.push(GroupOutput::ToStripes(ToStripes::Release));
                self.end_roll_back(from);
                reply(out, command, Err(GroupError::NotKept(epoch)));
            }
            (true, false) => {
                let (inconsistent, journaled) = (true, false);
                let mut record = GroupRecord { committed: epoch, inconsistent, journaled, ..self.record() };
                record.disown();
                self.timers.arm(Timer::Deadline, self.failover_timeout_ms(), out);
                self.persist(record, Persisting::RollBack { command }, out);
            }
            // It held what it needs. Whatever happened, some reactors are at the epoch and some not: the record says so.
            (false, true) => {
                self.leads_back = false;
                self.end_roll_back(SecondaryState::Syncing);
                reply(out, command, Err(GroupError::NotKept(epoch)));
            }
            (false, false) => {
                if from == SecondaryState::Standalone {
                    // Hosts may come: what they see and write is the epoch's already.
                    let drained = self.draining == 0;
                    let state = if drained { SecondaryState::Standalone } else { SecondaryState::Draining };
                    self.end_roll_back(state);
                    out.push(GroupOutput::Event(GroupEvent::RolledBack(epoch)));
                }
                reply(out, command, Ok(Success::Epoch(epoch)));
                self.note_drained(out);
            }
        }
    }

    /// The record says that the disks are between two states, or could not be written.
    pub(super) fn roll_back_recorded(&mut self, command: u64, ok: bool, out: &mut Out) {
        let Some(RollBack { epoch, from }) = self.rolls_back else { return };
        self.timers.cancel(Timer::Deadline);
        if !ok {
            out.push(GroupOutput::ToStripes(ToStripes::Release));
            self.end_roll_back(from);
            return reply(out, command, Err(GroupError::Metadata));
        }
        self.leads_back = true;
        self.history.roll_back_to(epoch);
        self.draining = self.reactors();
        self.spreading = Spreading::RollBack { command, left: self.reactors(), refused: false, asked: false };
        out.push(GroupOutput::ToStripes(ToStripes::RollBack { epoch }));
    }

    fn end_roll_back(&mut self, state: SecondaryState) {
        self.rolls_back = None;
        self.set_state(state);
    }

    /// The record says that all of the epoch is on the disks.
    pub(super) fn rolled_back_recorded(&mut self, out: &mut Out) {
        self.leads_back = false;
        let Some(RollBack { epoch, from }) = self.rolls_back else { return };
        self.end_roll_back(from);
        self.rolled_back = true;
        out.push(GroupOutput::Event(GroupEvent::RolledBack(epoch)));
    }
}

/// A roll-back under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RollBack {
    pub epoch: Epoch,
    /// The state before, and after.
    pub from: SecondaryState,
}
