//! Online verify, the primary's group: when one may begin, when it ends and how, and the copies that repair.
//!
//! Invariants. At most one runs, and only while the pair is in step and nothing is copied. It never outlives its session.
//! What differs is marked before it is counted, so a repair is the copying of what is marked, as at the beginning of
//! every session: through the lanes, with originals kept.

use super::group::*;
use super::group_primary::{Out, PrimaryGroup, PrimaryState, reply};
use super::growth::Growth;
use super::types::VerifyFault;

/// How far the last verify is or came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyState {
    /// There was none.
    #[default]
    Never,
    Running,
    /// Everything was compared, and what differed is being copied.
    Repairing,
    Finished,
    Stopped,
    Failed(VerifyFault),
}

impl VerifyState {
    pub fn is_active(self) -> bool {
        matches!(self, VerifyState::Running | VerifyState::Repairing)
    }
}

#[derive(Default)]
pub(super) struct GroupVerify {
    state: VerifyState,
    round: u32,
    repair: bool,
    /// Machines that have not compared all they own.
    left: u32,
    differs: bool,
    /// The copies of the repair have begun.
    copying: bool,
}

impl PrimaryGroup {
    pub fn verify_state(&self) -> VerifyState {
        self.verify.state
    }

    /// The verify that runs, or else the last one: whether it repairs, and its number.
    pub fn verify_repairs(&self) -> bool {
        self.verify.repair
    }

    pub fn verify_round(&self) -> u32 {
        self.verify.round
    }

    /// Begins to compare the nodes, at most so many bytes a second.
    pub fn verify_start(&mut self, command: u64, rate_bytes: u64, repair: bool, out: &mut Out) {
        let refusal = match self.state() {
            PrimaryState::Fenced => Some(GroupError::Fenced),
            PrimaryState::Running if self.verify.state.is_active() => Some(GroupError::Verifying),
            PrimaryState::Running if self.copies_left > 0 => Some(GroupError::Copying),
            PrimaryState::Running => None,
            state => Some(GroupError::WrongState(state.name())),
        };
        if let Some(error) = refusal {
            return reply(out, command, Err(error));
        }
        let round = self.verify.round.wrapping_add(1);
        let left = u32::from(self.reactors()) * self.volumes.len() as u32;
        self.verify =
            GroupVerify { state: VerifyState::Running, round, repair, left, ..GroupVerify::default() };
        out.push(GroupOutput::ToStripes(ToStripes::Verify { round, rate_bytes }));
        out.push(GroupOutput::Event(GroupEvent::VerifyStarted));
        reply(out, command, Ok(Success::Done));
    }

    /// Ends the verify. What it has found stays marked; copies that have begun go on.
    pub fn verify_stop(&mut self, command: u64, out: &mut Out) {
        if !self.verify.state.is_active() {
            return reply(out, command, Err(GroupError::NotVerifying));
        }
        self.end_verify(VerifyState::Stopped, out);
        reply(out, command, Ok(Success::Done));
    }

    /// Ends the verify, if one runs.
    pub(super) fn end_verify(&mut self, how: VerifyState, out: &mut Out) {
        if !self.verify.state.is_active() {
            return;
        }
        self.verify.state = how;
        if how != VerifyState::Finished {
            out.push(GroupOutput::ToStripes(ToStripes::VerifyStop));
        }
        out.push(GroupOutput::Event(GroupEvent::VerifyEnded(how)));
    }

    /// A machine found a difference.
    pub(super) fn differs(&mut self, round: u32) {
        self.verify.differs |= round == self.verify.round;
    }

    pub(super) fn verify_failed(&mut self, round: u32, fault: VerifyFault, out: &mut Out) {
        if round == self.verify.round {
            self.end_verify(VerifyState::Failed(fault), out);
        }
    }

    /// One more machine has compared all it owns.
    pub(super) fn verified(&mut self, round: u32, out: &mut Out) {
        if self.verify.state != VerifyState::Running || round != self.verify.round {
            return;
        }
        self.verify.left = self.verify.left.saturating_sub(1);
        if self.verify.left > 0 {
            return;
        }
        if !self.verify.repair || !self.verify.differs {
            return self.end_verify(VerifyState::Finished, out);
        }
        self.verify.state = VerifyState::Repairing;
        self.repair(out);
    }

    /// Copies what was found, as soon as no growing volume copies. `true`: the copies have begun.
    pub(super) fn repair(&mut self, out: &mut Out) -> bool {
        let may = self.growth == Growth::Idle && self.copies_left == 0;
        if self.verify.state != VerifyState::Repairing || self.verify.copying || !may {
            return false;
        }
        self.verify.copying = true;
        self.start_copies(true, out);
        true
    }

    /// Every reactor has copied what was marked.
    pub(super) fn repaired(&mut self, out: &mut Out) {
        if self.verify.state == VerifyState::Repairing && self.verify.copying {
            self.end_verify(VerifyState::Finished, out);
        }
    }
}
