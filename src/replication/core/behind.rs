//! Leaving a peer behind that is too slow: the primary ends the session on purpose, marks what the peer lacks, and makes it
//! equal again later, as after a lost link.
//!
//! Invariants. No write is acknowledged without the peer before the peer knows that it is behind, or is lost: from then on it
//! refuses to be promoted with `latest` as long as it has its last checkpoint. That checkpoint stands all the while. The
//! pauses between the attempts double while the peer falls behind again and again, so a link that is too slow for good is
//! not in the hosts' way more than a small part of the time.

use super::super::Epoch;
use super::group::*;
use super::group_primary::{Out, PrimaryGroup, PrimaryState};
use super::primary::{Local, PrimaryOutput, PrimaryStripes};
use super::types::*;

/// The pause after the peer fell behind for the first time; it doubles with each further time.
const PAUSE_MS: u32 = 2000;
/// Doublings: the longest pause is two minutes.
const DOUBLINGS: u32 = 6;
/// In step for so long, a peer that falls behind does so for the first time again.
const CALM_MS: u32 = 60_000;
/// While copies are made, hosts' writes stand in line with those: they may wait so many times as long.
const COPYING_PATIENCE: u32 = 4;

/// The primary's group: where it is with a slow peer.
#[derive(Default)]
pub(super) struct Behind {
    /// The peer was told and has not answered.
    told: bool,
    /// How often it fell behind without having been in step for long.
    times: u32,
}

/// A machine's: how long hosts' writes have been waiting for the peer.
#[derive(Default)]
pub(super) struct Watch {
    pub tick: u32,
    told: bool,
}

impl Watch {
    /// A session begins.
    pub fn begin(&mut self) {
        self.told = false;
    }
}

impl<P: Payload> PrimaryStripes<P> {
    /// One step of time. Says once a session if a host's command has been waiting for the peer for more than so many.
    pub fn watch_peer(&mut self, patience: u32, out: &mut Vec<PrimaryOutput<P>>) {
        self.watch.tick = self.watch.tick.wrapping_add(1);
        // Without a disk of its own it can leave nobody behind.
        if self.watch.told || !self.is_linked() || self.detached.needs_peer() {
            return;
        }
        let patience = if self.is_copying() { patience.saturating_mul(COPYING_PATIENCE) } else { patience };
        let (tick, congested) = (self.watch.tick, self.is_congested());
        let waits = self.ops.iter().any(|(_, op)| {
            let for_peer = match op.local {
                Local::Done => true,
                Local::Waiting => congested,
                Local::Submitted | Local::Failing | Local::Failed => false,
            };
            for_peer && !op.replied && tick.wrapping_sub(op.since) > patience
        });
        if waits {
            self.watch.told = true;
            out.push(PrimaryOutput::Event(StripeEvent::Congested));
        }
    }
}

impl PrimaryGroup {
    /// Hosts wait too long for the peer.
    pub(super) fn congested(&mut self, out: &mut Out) {
        let follows = matches!(self.state(), PrimaryState::Running | PrimaryState::Syncing);
        if self.behind.told || !follows || self.needs_peer() {
            return;
        }
        self.behind.told = true;
        self.timers.arm(Timer::Behind, self.begin_timeout_ms(), out);
        out.push(GroupOutput::Send(Control::Behind { epoch: self.record().newest }));
    }

    /// The peer knows.
    pub(super) fn behind_there(&mut self, out: &mut Out) {
        if !std::mem::take(&mut self.behind.told) {
            return;
        }
        self.end_session(PrimaryState::Behind, GroupError::Behind, out);
        let pause = PAUSE_MS << self.behind.times.min(DOUBLINGS);
        self.behind.times += 1;
        self.timers.arm(Timer::Behind, pause, out);
        out.push(GroupOutput::Event(GroupEvent::Behind));
    }

    /// Whether the peer was told that it is left behind, and this node is about to go on alone.
    pub(super) fn is_leaving(&self) -> bool {
        self.behind.told
    }

    /// The session is over, however it ended.
    pub(super) fn forget_behind(&mut self) {
        self.behind.told = false;
        self.timers.cancel(Timer::Behind);
    }

    /// The disks are in step.
    pub(super) fn caught_up(&mut self, out: &mut Out) {
        if self.behind.times > 0 && !self.behind.told {
            self.timers.arm(Timer::Behind, CALM_MS, out);
        }
    }

    pub(super) fn behind_timer(&mut self, out: &mut Out) {
        match self.state() {
            PrimaryState::Behind => self.seek_again(out),
            // It did not even say that it knows: a lost link.
            PrimaryState::Running | PrimaryState::Syncing if self.behind.told => {
                self.lose(GroupError::LinkLost, out);
            }
            PrimaryState::Running => self.behind.times = 0,
            _ => {}
        }
    }
}

/// The secondary's answer.
pub(super) fn answer(epoch: Epoch) -> GroupOutput {
    GroupOutput::Send(Control::Behind { epoch })
}
