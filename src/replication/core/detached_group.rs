//! The primary's group machine when a disk below a volume fails: whether the group goes on through the peer, and the way back
//! to a disk. The stripe machines' part, and what both keep to, is in `detached`.
//!
//! Invariants. No disk is detached unless the peer is in step: has everything that was ever acknowledged here. The record
//! calls this node inconsistent before anything is acknowledged without a disk, and until every volume has a whole one
//! again. While a volume has none, the only session there can be is one with the peer as it was left: one that was
//! restarted may have lost something, and nobody else has it.

use super::group::*;
use super::group_primary::{Out, PrimaryGroup, PrimaryState, reply};
use super::growth::Growth;
use super::types::{DiskFailure, OnDiskFailure};
use std::collections::VecDeque;

/// The disk below a volume, as an operator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    Attached,
    /// There is none, or a replacement that is filled as soon as the peer is there.
    Detached {
        replacement: bool,
    },
    /// A replacement is being filled: the reactors that have not ended.
    Filling {
        left: u16,
    },
    /// The replacement is whole; the record is about to say so.
    Filled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    /// Every machine of the group stops, and tells whether the peer has all.
    Suspending {
        volume: u16,
        failure: DiskFailure,
        left: u32,
        has_all: bool,
    },
    /// The record is to say that a volume has no disk.
    Detaching {
        volume: u16,
        failure: DiskFailure,
    },
    /// The record is to say that every volume has one.
    Attaching {
        volume: u16,
    },
}

pub(super) struct Disks {
    pub policy: OnDiskFailure,
    states: Vec<DiskState>,
    step: Step,
    /// Failed while another one was being decided on.
    waiting: VecDeque<(u16, DiskFailure)>,
}

impl Disks {
    pub fn new(policy: OnDiskFailure, volumes: usize) -> Disks {
        Disks {
            policy,
            states: vec![DiskState::Attached; volumes],
            step: Step::Idle,
            waiting: VecDeque::new(),
        }
    }

    /// Whether a volume has no whole disk here.
    pub fn leans(&self) -> bool {
        self.states.iter().any(|&state| state != DiskState::Attached)
    }
}

impl PrimaryGroup {
    /// The disk below each volume.
    pub fn disk_states(&self) -> &[DiskState] {
        &self.disks.states
    }

    pub(super) fn leans(&self) -> bool {
        self.disks.leans()
    }

    /// Whether the peer must not be left alone: a volume has no disk here, or is about to have none.
    pub(super) fn needs_peer(&self) -> bool {
        self.leans() || self.disks.step != Step::Idle
    }

    fn state_of(&mut self, volume: u16) -> Option<&mut DiskState> {
        self.disks.states.get_mut(usize::from(volume))
    }

    /// The disk below a volume failed something.
    pub fn disk_failed(&mut self, volume: u16, failure: DiskFailure, out: &mut Out) {
        match self.state_of(volume).copied() {
            None | Some(DiskState::Detached { .. }) => {}
            Some(DiskState::Attached) => self.decide(volume, failure, out),
            Some(DiskState::Filled) => self.disks.waiting.push_back((volume, failure)),
            Some(DiskState::Filling { .. }) => self.replacement_failed(volume, Some(failure), out),
        }
    }

    fn decide(&mut self, volume: u16, failure: DiskFailure, out: &mut Out) {
        if self.disks.policy == OnDiskFailure::Report {
            return out.push(GroupOutput::Event(GroupEvent::DiskFailed(failure)));
        }
        match self.disks.step {
            Step::Suspending { volume: other, .. } | Step::Detaching { volume: other, .. }
                if other == volume => {}
            Step::Idle if self.peer_has_all() => {
                let machines = u32::from(self.reactors()) * self.disks.states.len() as u32;
                self.disks.step = Step::Suspending { volume, failure, left: machines, has_all: true };
                out.push(GroupOutput::ToStripes(ToStripes::Suspend));
            }
            Step::Idle => self.keep_disk(failure, out),
            _ if self.disks.waiting.iter().any(|&(other, _)| other == volume) => {}
            _ => self.disks.waiting.push_back((volume, failure)),
        }
    }

    fn peer_has_all(&self) -> bool {
        let in_step = self.state() == PrimaryState::Running && self.copies_left == 0;
        in_step && self.growth == Growth::Idle && !self.is_leaving()
    }

    /// The hosts have the error, as if nothing else could be done.
    fn keep_disk(&mut self, failure: DiskFailure, out: &mut Out) {
        self.disks.step = Step::Idle;
        out.push(GroupOutput::ToStripes(ToStripes::KeepDisk));
        out.push(GroupOutput::Event(GroupEvent::DiskFailed(failure)));
        // The others that failed meanwhile had their error with it.
        self.disks.waiting.clear();
    }

    /// One more machine has stopped.
    pub fn suspended(&mut self, has: bool, out: &mut Out) {
        let Step::Suspending { volume, failure, left, has_all } = &mut self.disks.step else { return };
        *has_all &= has;
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let (volume, failure, has_all) = (*volume, *failure, *has_all);
        if !has_all {
            return self.keep_disk(failure, out);
        }
        self.disks.step = Step::Detaching { volume, failure };
        self.set_inconsistent(true);
        self.persist(out);
    }

    /// The record that was asked for last was written, or could not be.
    pub(super) fn disks_recorded(&mut self, ok: bool, out: &mut Out) {
        match self.disks.step {
            Step::Detaching { volume, failure } if ok => {
                self.set_state(volume, DiskState::Detached { replacement: false });
                self.end_growth();
                out.push(GroupOutput::ToStripes(ToStripes::Detach { volume }));
                out.push(GroupOutput::Event(GroupEvent::DiskDetached { volume, failure }));
                self.next_failure(out);
            }
            Step::Detaching { failure, .. } => {
                if !self.leans() {
                    // Which of the two records counts is not known: another one makes it sure.
                    self.set_inconsistent(false);
                    self.persist(out);
                }
                self.keep_disk(failure, out);
            }
            Step::Attaching { volume } => {
                if !ok {
                    // It is whole all the same, and gets every write; only a restart would not know.
                    return self.persist(out);
                }
                self.attached(volume, out);
            }
            Step::Idle | Step::Suspending { .. } => {}
        }
    }

    fn next_failure(&mut self, out: &mut Out) {
        self.disks.step = Step::Idle;
        for volume in 0..self.disks.states.len() as u16 {
            if self.state_of(volume).copied() == Some(DiskState::Filled) {
                return self.record_disk(volume, out);
            }
        }
        if let Some((volume, failure)) = self.disks.waiting.pop_front() {
            self.disk_failed(volume, failure, out);
        }
    }

    fn set_state(&mut self, volume: u16, state: DiskState) {
        if let Some(place) = self.state_of(volume) {
            *place = state;
        }
    }

    /// A replacement is below the volume: fills it while hosts go on.
    pub fn disk_attach(&mut self, command: u64, volume: u16, out: &mut Out) {
        let result = match (self.state_of(volume).copied(), self.state()) {
            (Some(DiskState::Detached { .. }), PrimaryState::Running) if self.copies_left == 0 => {
                self.begin_fill(volume, out);
                Ok(Success::Done)
            }
            (Some(DiskState::Detached { .. }), PrimaryState::Running) => Err(GroupError::Copying),
            (Some(DiskState::Detached { .. }), state) => Err(GroupError::WrongState(state.name())),
            _ => Err(GroupError::HasDisk),
        };
        reply(out, command, result);
    }

    fn begin_fill(&mut self, volume: u16, out: &mut Out) {
        let left = self.reactors();
        self.set_state(volume, DiskState::Filling { left });
        out.push(GroupOutput::ToStripes(ToStripes::Fill { volume }));
        out.push(GroupOutput::Event(GroupEvent::FillStarted { volume }));
    }

    /// The session stands, and nothing is left of what it began with: replacements are filled from the beginning.
    pub(super) fn fill_again(&mut self, out: &mut Out) {
        for volume in 0..self.disks.states.len() as u16 {
            if self.state_of(volume).copied() == Some(DiskState::Detached { replacement: true }) {
                self.begin_fill(volume, out);
            }
        }
    }

    /// One more reactor has filled, and flushed, what it owns.
    pub fn filled(&mut self, volume: u16, out: &mut Out) {
        let Some(DiskState::Filling { left }) = self.state_of(volume) else { return };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        self.set_state(volume, DiskState::Filled);
        if self.disks.step == Step::Idle {
            self.record_disk(volume, out);
        }
    }

    fn record_disk(&mut self, volume: u16, out: &mut Out) {
        let whole = |state: &DiskState| matches!(state, DiskState::Attached | DiskState::Filled);
        let others = self.disks.states.iter().enumerate();
        let all = others.filter(|&(at, _)| at != usize::from(volume)).all(|(_, state)| whole(state));
        self.disks.step = Step::Attaching { volume };
        if all {
            self.set_inconsistent(false);
            self.persist(out);
        } else {
            self.attached(volume, out);
        }
    }

    fn attached(&mut self, volume: u16, out: &mut Out) {
        self.set_state(volume, DiskState::Attached);
        let leans = self.leans();
        out.push(GroupOutput::ToStripes(ToStripes::AttachDisk { volume, leans }));
        out.push(GroupOutput::Event(GroupEvent::DiskAttached { volume }));
        self.next_failure(out);
        self.grow(out);
    }

    /// The replacement failed, or the peer could not read what is to be on it.
    pub fn replacement_failed(&mut self, volume: u16, failure: Option<DiskFailure>, out: &mut Out) {
        if !matches!(self.state_of(volume), Some(DiskState::Filling { .. })) {
            return;
        }
        self.set_state(volume, DiskState::Detached { replacement: false });
        out.push(GroupOutput::ToStripes(ToStripes::Detach { volume }));
        out.push(GroupOutput::Event(GroupEvent::FillFailed { volume, failure }));
    }

    /// The session is over: what was being filled is begun anew with the next one.
    pub(super) fn end_fill(&mut self) {
        for state in &mut self.disks.states {
            if matches!(state, DiskState::Filling { .. }) {
                *state = DiskState::Detached { replacement: true };
            }
        }
    }
}
