//! The primary's group machine: sessions with the peer, cuts and checkpoints, the full sync.
//!
//! Invariants. An epoch number is used for one cut only. Every command is answered once, by its deadline at the
//! latest. A checkpoint that fails leaves the group as it was but for the burned number.

use super::super::{Epoch, Lineage};
use super::behind::Behind;
use super::detached_group::Disks;
use super::group::*;
use super::growth::{Growth, Sized};
use super::identity::{Identity, Names};
use super::mutation::{Mutation, active};
use super::primary::Session;
use super::types::{OnDiskFailure, StripeEvent, VerifyFault};
use super::verify_group::{GroupVerify, VerifyState};

#[derive(Clone, Copy, Debug)]
pub struct PrimaryGroupConfig {
    /// Reactors of this node.
    pub reactors: u16,
    pub checkpoint_timeout_ms: u32,
    /// 0: only on command.
    pub checkpoint_interval_ms: u32,
    /// How long a peer that was reached may take to be ready for the session.
    pub begin_timeout_ms: u32,
    pub on_disk_failure: OnDiskFailure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrimaryState {
    Stopped,
    /// Tries to reach the peer, until it is there or the group is stopped.
    Connecting,
    /// Connected; waiting for the peer to be ready for the session.
    Beginning,
    Syncing,
    Running,
    /// Serving alone because the peer is too slow; it is made equal after a pause.
    Behind,
    /// Serving alone after a loss; the peer needs a resync, and gets it as soon as it is there if that can be.
    ResyncRequired,
    Fenced,
}

impl PrimaryState {
    pub fn name(self) -> &'static str {
        match self {
            PrimaryState::Stopped => "stopped",
            PrimaryState::Connecting => "connecting",
            PrimaryState::Beginning => "connecting",
            PrimaryState::Syncing => "syncing",
            PrimaryState::Running => "running",
            PrimaryState::Behind => "behind",
            PrimaryState::ResyncRequired => "resync required",
            PrimaryState::Fenced => "fenced",
        }
    }
}

/// Who asked for the checkpoint, and how far it is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Prepare(u64),
    Whole(u64),
    Interval,
    EndOfSync,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    /// Until the peer has what was written before every reactor knew of the session: a cut before that would lack it.
    CatchingUp {
        wish: Wish,
        timeout_ms: u32,
    },
    Freezing {
        wish: Wish,
        left: u16,
        timeout_ms: u32,
    },
    Stamping {
        wish: Wish,
        left: u16,
        timeout_ms: u32,
        lasts: Vec<Last>,
    },
    Preparing {
        wish: Wish,
    },
    Prepared,
    Committing {
        wish: Wish,
    },
    Aborting {
        command: u64,
    },
}

pub struct PrimaryGroup {
    config: PrimaryGroupConfig,
    record: GroupRecord,
    state: PrimaryState,
    step: Step,
    /// The epoch of the step.
    epoch: Epoch,
    sync: SyncMode,
    /// After a loss: the session is made again without being asked for.
    reconnects: bool,
    /// What the session that is being made will have as its lineage.
    offered: Lineage,
    lanes: u16,
    starting: Option<u64>,
    /// Reactors that still copy what the beginning of the session left to copy.
    pub(super) copies_left: u32,
    /// Of each of them, the volumes that it has copied.
    copied_volumes: Vec<usize>,
    /// The copies that are left are those that a session without a sync begins with.
    catching_up: bool,
    pub(super) volumes: Vec<Sized>,
    pub(super) growth: Growth,
    pub(super) verify: GroupVerify,
    pub(super) behind: Behind,
    pub(super) disks: Disks,
    pub(super) timers: Timers,
    pub(super) persisting: bool,
    persist_again: bool,
    names: Names,
    /// The identity that the record on the disk has, and that of the write under way.
    pub(super) durable: Identity,
    writing: Identity,
    /// Machines hold writes back until this node has a name for going on alone.
    pub(super) wants_alone: bool,
    /// The peer may have taken on this node's name although `base` stands: it was told to, or this node does not remember.
    pub(super) offered_name: bool,
    /// A name that the peer was offered and nobody heard whether it took it on: the marks hold for it as for `base`.
    pub(super) in_doubt: Lineage,
    /// What the peer said in the handshake.
    pub(super) peer_is_consistent: bool,
}

pub(super) type Out = Vec<GroupOutput>;

impl PrimaryGroup {
    pub fn new(config: PrimaryGroupConfig, record: GroupRecord, volumes: &[VolumeSize]) -> PrimaryGroup {
        PrimaryGroup {
            config,
            record,
            state: PrimaryState::Stopped,
            step: Step::Idle,
            epoch: Epoch(0),
            sync: SyncMode::None,
            reconnects: false,
            offered: Lineage(0),
            lanes: 1,
            starting: None,
            copies_left: 0,
            copied_volumes: vec![0; config.reactors.into()],
            catching_up: false,
            volumes: volumes.iter().map(|&size| Sized::new(size)).collect(),
            growth: Growth::Idle,
            verify: GroupVerify::default(),
            behind: Behind::default(),
            disks: Disks::new(config.on_disk_failure, volumes.len()),
            timers: Timers::default(),
            persisting: false,
            persist_again: false,
            names: Names::new(0),
            durable: record.identity(),
            writing: record.identity(),
            wants_alone: false,
            offered_name: true,
            in_doubt: Lineage(0),
            peer_is_consistent: false,
        }
    }

    /// Where names come from: a number that no other machine has.
    pub fn seed_names(&mut self, seed: u64) {
        self.names = Names::new(seed);
    }

    pub(super) fn fresh_name(&mut self) -> Lineage {
        self.names.fresh()
    }

    pub(super) fn record_mut(&mut self) -> &mut GroupRecord {
        &mut self.record
    }

    pub fn state(&self) -> PrimaryState {
        self.state
    }

    pub fn record(&self) -> GroupRecord {
        self.record
    }

    pub(super) fn begin_timeout_ms(&self) -> u32 {
        self.config.begin_timeout_ms
    }

    pub(super) fn reactors(&self) -> u16 {
        self.config.reactors
    }

    /// The epoch that writes carry now.
    pub fn open_epoch(&self) -> Epoch {
        self.record.newest
    }

    pub fn set_timeouts(&mut self, checkpoint_timeout_ms: u32, out: &mut Out) {
        self.config.checkpoint_timeout_ms = checkpoint_timeout_ms;
        self.arm_interval(out);
    }

    pub fn set_interval(&mut self, interval_ms: u32, out: &mut Out) {
        self.config.checkpoint_interval_ms = interval_ms;
        self.arm_interval(out);
    }

    fn arm_interval(&mut self, out: &mut Out) {
        if self.state == PrimaryState::Running && self.config.checkpoint_interval_ms > 0 {
            self.timers.arm(Timer::Interval, self.config.checkpoint_interval_ms, out);
        } else {
            self.timers.cancel(Timer::Interval);
        }
    }

    /// Begins a session with the peer, as soon as it is there. The command is answered when it is, or after `wait_ms`
    /// with an error although the attempts go on; at once if that is 0.
    pub fn start(&mut self, command: u64, sync: SyncMode, wait_ms: u32, out: &mut Out) {
        match self.state {
            PrimaryState::Stopped | PrimaryState::ResyncRequired | PrimaryState::Behind => {}
            state => return reply(out, command, Err(GroupError::WrongState(state.name()))),
        }
        if self.leans() && sync == SyncMode::Full {
            return reply(out, command, Err(GroupError::Detached));
        }
        self.state = PrimaryState::Connecting;
        self.sync = sync;
        self.reconnects = false;
        if wait_ms == 0 {
            reply(out, command, Ok(Success::Done));
        } else {
            self.starting = Some(command);
            self.timers.arm(Timer::Deadline, wait_ms, out);
        }
        out.push(GroupOutput::Connect);
    }

    /// Whether the peer is sought, now or again and again.
    pub fn wants_peer(&self) -> bool {
        match self.state {
            PrimaryState::Connecting => true,
            PrimaryState::ResyncRequired => self.reconnects,
            _ => false,
        }
    }

    /// All connections stand and the handshake agreed; `volumes` is what the peer says of its volumes.
    pub fn connected(&mut self, peer: &Greeting, volumes: &[VolumeSize], out: &mut Out) {
        if !self.wants_peer() {
            return;
        }
        let whole = self.meet(volumes);
        if self.leans() {
            self.sync = SyncMode::Resumed;
            if !whole || peer.restarted || !self.record.lineage.is_shared_with(peer.lineage) {
                return self.start_failed(GroupError::Stranded, out);
            }
        } else if let Err(error) = self.judge(peer, whole, self.sync) {
            return self.start_failed(error, out);
        }
        self.peer_is_consistent = peer.consistent;
        if peer.restarted {
            out.push(GroupOutput::ToStripes(ToStripes::PeerRestarted));
        }
        self.record.newest = self.record.newest.max(peer.newest).next();
        self.record.generation = self.record.generation.max(peer.generation);
        if !self.sync.goes_on() {
            self.record.committed = Epoch(self.record.newest.0 - 1);
        }
        self.offered = match self.sync {
            SyncMode::Changed | SyncMode::Resumed => peer.lineage,
            SyncMode::Full | SyncMode::None => Lineage(peer.session),
        };
        self.lanes = peer.lanes;
        self.state = PrimaryState::Beginning;
        if self.starting.is_none() {
            self.timers.arm(Timer::Deadline, self.config.begin_timeout_ms, out);
        }
        self.persist(out);
        let (epoch, sync, lineage) = (self.record.newest, self.sync, self.offered);
        out.push(GroupOutput::Send(Control::Begin { epoch, sync, lineage }));
    }

    pub(super) fn set_inconsistent(&mut self, inconsistent: bool) {
        self.record.inconsistent = inconsistent;
    }

    pub(super) fn persist(&mut self, out: &mut Out) {
        if self.persisting {
            self.persist_again = true;
            return;
        }
        self.persisting = true;
        self.writing = self.record.identity();
        out.push(GroupOutput::PersistRecord(self.record, self.recorded_bytes()));
    }

    /// The record is durable, or could not be made so. The primary's own record only keeps numbers from being used
    /// again; what decides is the secondary's.
    pub fn persisted(&mut self, ok: bool, out: &mut Out) {
        self.persisting = false;
        if ok {
            self.durable = self.writing;
        }
        if std::mem::take(&mut self.persist_again) {
            self.persist(out);
        } else {
            self.recorded(ok, out);
            self.disks_recorded(ok, out);
        }
        self.may_go_alone(ok, out);
    }

    /// A message of the peer.
    pub fn message(&mut self, message: Control, out: &mut Out) {
        match message {
            Control::Begin { epoch, .. } => self.begun(epoch, out),
            Control::Prepared { epoch, ended } => self.prepared(epoch, ended, out),
            Control::Committed { epoch, ended } => self.committed(epoch, ended, out),
            Control::Aborted { epoch, .. } => {
                if let Step::Aborting { command } = self.step
                    && epoch == self.epoch
                {
                    self.end_step();
                    reply(out, command, Ok(Success::Epoch(epoch)));
                }
            }
            Control::Extend { volume, bytes } => self.extended_there(volume, bytes, out),
            Control::Resize { volume, bytes } => self.resized_there(volume, bytes, out),
            Control::DiskSize { volume, bytes } => self.peer_disk_resized(volume, bytes, out),
            Control::Behind { .. } => self.behind_there(out),
            Control::SyncEnd { .. }
            | Control::Prepare { .. }
            | Control::Commit { .. }
            | Control::Abort { .. } => {}
        }
    }

    fn begun(&mut self, epoch: Epoch, out: &mut Out) {
        if self.state != PrimaryState::Beginning || epoch != self.record.newest {
            return;
        }
        self.timers.cancel(Timer::Deadline);
        // The peer's disk is of this lineage now. What it lacks the machines know, from here on whatever happens.
        if self.sync == SyncMode::Changed {
            self.learn_name(self.offered);
        } else {
            let mut identity = self.record.identity();
            identity.pair(self.offered);
            self.record.set_identity(identity);
            self.persist(out);
        }
        self.wants_alone = false;
        let full = self.sync == SyncMode::Full;
        let session =
            Session { lanes: self.lanes, generation: self.record.generation, epoch, preserve: !full };
        out.push(GroupOutput::ToStripes(ToStripes::LinkUp(session)));
        self.catching_up = !self.sync.copies() && !active(Mutation::CutBeforeCaughtUp);
        if !self.sync.copies() {
            self.state = PrimaryState::Running;
            self.arm_interval(out);
        } else {
            self.state = PrimaryState::Syncing;
            out.push(GroupOutput::Event(GroupEvent::SyncStarted));
        }
        // What was written before every reactor knew of the session the peer lacks, whatever the caller knew.
        self.start_copies(!full, out);
        if let Some(command) = self.starting.take() {
            reply(out, command, Ok(Success::Done));
        }
    }

    /// Lets every machine copy to the peer. What one of them told of an earlier copy counts no more: it was on its way
    /// when its session was lost, and would let this copy seem to end before the last volume has begun.
    pub(super) fn start_copies(&mut self, only_dirty: bool, out: &mut Out) {
        self.copied_volumes.fill(0);
        self.copies_left = u32::from(self.config.reactors);
        out.push(GroupOutput::ToStripes(ToStripes::StartCopy { only_dirty }));
    }

    /// The machine of one volume and reactor has copied all it owns.
    pub fn volume_copied(&mut self, reactor: usize, out: &mut Out) {
        let volumes = self.volumes.len();
        let Some(copied) = self.copied_volumes.get_mut(reactor) else { return };
        *copied += 1;
        if *copied >= volumes {
            *copied = 0;
            self.copied(out);
        }
    }

    /// Every machine of one reactor has copied all it owns.
    pub fn copied(&mut self, out: &mut Out) {
        if !matches!(self.state, PrimaryState::Syncing | PrimaryState::Running) || self.copies_left == 0 {
            return;
        }
        self.copies_left -= 1;
        match (self.copies_left, self.state) {
            (0, PrimaryState::Syncing) => {
                self.cut(Wish::EndOfSync, self.config.checkpoint_timeout_ms, out);
            }
            (0, _) => {
                if std::mem::take(&mut self.catching_up) && self.sync == SyncMode::Resumed {
                    out.push(GroupOutput::Event(GroupEvent::SyncFinished));
                }
                if let Step::CatchingUp { wish, timeout_ms } = self.step {
                    self.freeze(wish, timeout_ms, out);
                }
                self.repaired(out);
                self.fill_again(out);
                self.grow(out);
            }
            _ => {}
        }
    }

    pub fn prepare(&mut self, command: u64, timeout_ms: Option<u32>, out: &mut Out) {
        self.checkpoint(Wish::Prepare(command), command, timeout_ms, out);
    }

    pub fn do_checkpoint(&mut self, command: u64, timeout_ms: Option<u32>, out: &mut Out) {
        self.checkpoint(Wish::Whole(command), command, timeout_ms, out);
    }

    fn checkpoint(&mut self, wish: Wish, command: u64, timeout_ms: Option<u32>, out: &mut Out) {
        match (self.state, &self.step) {
            (PrimaryState::Running, Step::Idle) => {
                self.cut(wish, timeout_ms.unwrap_or(self.config.checkpoint_timeout_ms), out);
            }
            (PrimaryState::Running, _) => reply(out, command, Err(GroupError::Busy)),
            (PrimaryState::Fenced, _) => reply(out, command, Err(GroupError::Fenced)),
            (state, _) => reply(out, command, Err(GroupError::WrongState(state.name()))),
        }
    }

    fn cut(&mut self, wish: Wish, timeout_ms: u32, out: &mut Out) {
        self.epoch = self.record.newest;
        self.timers.arm(Timer::Deadline, timeout_ms, out);
        if self.catching_up {
            self.step = Step::CatchingUp { wish, timeout_ms };
        } else {
            self.freeze(wish, timeout_ms, out);
        }
    }

    fn freeze(&mut self, wish: Wish, timeout_ms: u32, out: &mut Out) {
        self.step = Step::Freezing { wish, left: self.config.reactors, timeout_ms };
        out.push(GroupOutput::ToStripes(ToStripes::Freeze));
    }

    /// One more reactor has frozen its machines.
    pub fn frozen(&mut self, out: &mut Out) {
        let Step::Freezing { wish, left, timeout_ms } = &mut self.step else { return };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let (wish, timeout_ms) = (*wish, *timeout_ms);
        self.step = Step::Stamping { wish, left: self.config.reactors, timeout_ms, lasts: Vec::new() };
        self.record.newest = self.epoch.next();
        out.push(GroupOutput::ToStripes(ToStripes::Stamp { next: self.record.newest, preserve: true }));
    }

    /// One more reactor has stamped its machines; `lasts` of its connections.
    pub fn stamped(&mut self, mut more: Vec<Last>, out: &mut Out) {
        let Step::Stamping { wish, left, timeout_ms, lasts } = &mut self.step else { return };
        lasts.append(&mut more);
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let (wish, timeout_ms, lasts) = (*wish, *timeout_ms, std::mem::take(lasts));
        self.step = Step::Preparing { wish };
        out.push(GroupOutput::Send(Control::Prepare { epoch: self.epoch, timeout_ms, lasts }));
    }

    fn prepared(&mut self, epoch: Epoch, ended: Ended, out: &mut Out) {
        let Step::Preparing { wish } = self.step else { return };
        if epoch != self.epoch {
            return;
        }
        if let Some(error) = error_of(ended, epoch) {
            out.push(GroupOutput::Send(Control::Abort { epoch }));
            return self.step_failed(error, out);
        }
        match wish {
            Wish::Prepare(command) => {
                self.timers.cancel(Timer::Deadline);
                self.step = Step::Prepared;
                reply(out, command, Ok(Success::Epoch(epoch)));
            }
            Wish::EndOfSync => {
                let lineage = self.record.lineage;
                self.offered_name = true;
                out.push(GroupOutput::Send(Control::SyncEnd { epoch, lineage }));
                self.send_commit(wish, out);
            }
            Wish::Whole(_) | Wish::Interval => self.send_commit(wish, out),
        }
    }

    fn send_commit(&mut self, wish: Wish, out: &mut Out) {
        self.step = Step::Committing { wish };
        out.push(GroupOutput::Send(Control::Commit { epoch: self.epoch }));
    }

    pub fn commit(&mut self, command: u64, epoch: Epoch, out: &mut Out) {
        if let Some(error) = self.not_prepared(epoch) {
            return reply(out, command, Err(error));
        }
        self.timers.arm(Timer::Deadline, self.config.checkpoint_timeout_ms, out);
        self.send_commit(Wish::Whole(command), out);
    }

    pub fn abort(&mut self, command: u64, epoch: Epoch, out: &mut Out) {
        if let Some(error) = self.not_prepared(epoch) {
            return reply(out, command, Err(error));
        }
        self.timers.arm(Timer::Deadline, self.config.checkpoint_timeout_ms, out);
        self.step = Step::Aborting { command };
        out.push(GroupOutput::Send(Control::Abort { epoch }));
    }

    fn not_prepared(&self, epoch: Epoch) -> Option<GroupError> {
        match (self.state, &self.step) {
            (PrimaryState::Fenced, _) => Some(GroupError::Fenced),
            (PrimaryState::Running, Step::Prepared) if epoch == self.epoch => None,
            (PrimaryState::Running, Step::Prepared | Step::Idle) => Some(GroupError::WrongEpoch(epoch)),
            (PrimaryState::Running, _) => Some(GroupError::Busy),
            (state, _) => Some(GroupError::WrongState(state.name())),
        }
    }

    fn committed(&mut self, epoch: Epoch, ended: Ended, out: &mut Out) {
        if ended == Ended::Ok && epoch > self.record.committed && epoch < self.record.newest {
            // Also when it comes after the deadline: then this is how the outcome becomes known.
            self.record.committed = epoch;
            if matches!(self.step, Step::Committing { wish: Wish::EndOfSync }) && epoch == self.epoch {
                self.end_base();
            }
            self.persist(out);
            out.push(GroupOutput::Event(GroupEvent::Committed(epoch)));
        }
        let Step::Committing { wish } = self.step else { return };
        if epoch != self.epoch {
            return;
        }
        if let Some(error) = error_of(ended, epoch) {
            if error == GroupError::PeerMetadata {
                out.push(GroupOutput::Event(GroupEvent::PeerRecordFailed));
            }
            return self.step_failed(error, out);
        }
        self.end_step();
        match wish {
            Wish::Prepare(command) | Wish::Whole(command) => reply(out, command, Ok(Success::Epoch(epoch))),
            Wish::Interval => {}
            Wish::EndOfSync => {
                self.state = PrimaryState::Running;
                out.push(GroupOutput::Event(GroupEvent::SyncFinished));
                self.caught_up(out);
                self.grow(out);
            }
        }
        self.arm_interval(out);
    }

    fn end_step(&mut self) {
        self.step = Step::Idle;
        self.timers.cancel(Timer::Deadline);
    }

    /// Ends the step under way with an error for whoever asked for it.
    fn step_failed(&mut self, error: GroupError, out: &mut Out) {
        let step = std::mem::replace(&mut self.step, Step::Idle);
        self.timers.cancel(Timer::Deadline);
        let wish = match step {
            Step::Idle | Step::Prepared => return,
            Step::Aborting { command } => return reply(out, command, Err(error)),
            Step::Freezing { wish, .. } | Step::Stamping { wish, .. } => {
                out.push(GroupOutput::ToStripes(ToStripes::Thaw));
                wish
            }
            Step::CatchingUp { wish, .. } | Step::Preparing { wish } | Step::Committing { wish } => wish,
        };
        match wish {
            Wish::Prepare(command) | Wish::Whole(command) => reply(out, command, Err(error)),
            Wish::Interval => out.push(GroupOutput::Event(GroupEvent::CheckpointFailed(error))),
            Wish::EndOfSync if self.state == PrimaryState::Syncing => {
                // Everything was copied; only the cut that ends the sync is to be tried again.
                out.push(GroupOutput::Event(GroupEvent::CheckpointFailed(error)));
                self.timers.arm(Timer::Interval, self.config.checkpoint_timeout_ms, out);
            }
            Wish::EndOfSync => {}
        }
        self.arm_interval_unless_syncing(out);
    }

    fn arm_interval_unless_syncing(&mut self, out: &mut Out) {
        if self.state != PrimaryState::Syncing {
            self.arm_interval(out);
        }
    }

    pub fn timer(&mut self, armed: Armed, peer: Peer, out: &mut Out) {
        if !self.timers.is_current(armed) {
            return;
        }
        match armed.timer {
            Timer::Interval if self.state == PrimaryState::Syncing && self.copies_left == 0 => {
                self.cut(Wish::EndOfSync, self.config.checkpoint_timeout_ms, out);
            }
            Timer::Interval => match (self.state, &self.step) {
                (PrimaryState::Running, Step::Idle) => {
                    self.cut(Wish::Interval, self.config.checkpoint_timeout_ms, out);
                }
                _ => self.arm_interval(out),
            },
            Timer::Settle => {}
            Timer::Record => self.persist(out),
            Timer::Growth => self.growth_hangs(out),
            Timer::Behind => self.behind_timer(out),
            Timer::Deadline => self.deadline(peer, out),
        }
    }

    fn deadline(&mut self, peer: Peer, out: &mut Out) {
        if matches!(self.state, PrimaryState::Connecting | PrimaryState::Beginning) {
            return self.no_peer_yet(out);
        }
        let epoch = self.epoch;
        let hung = match peer {
            Peer::Heard => GroupError::HungPeer(epoch),
            Peer::Silent => GroupError::HungLink(epoch),
        };
        let error = match self.step {
            Step::Idle | Step::Prepared => return,
            Step::Freezing { .. } | Step::Stamping { .. } => GroupError::HungReactor(epoch),
            Step::Preparing { .. } => {
                out.push(GroupOutput::Send(Control::Abort { epoch }));
                hung
            }
            Step::Committing { .. } => GroupError::OutcomeUnknown(epoch),
            Step::CatchingUp { .. } | Step::Aborting { .. } => hung,
        };
        self.step_failed(error, out);
    }

    /// Whoever waits for the start hears that the peer is not there. The attempts go on.
    fn no_peer_yet(&mut self, out: &mut Out) {
        if let Some(command) = self.starting.take() {
            reply(out, command, Err(GroupError::NoPeer));
        }
        if self.state == PrimaryState::Beginning {
            self.seek();
            out.push(if self.reconnects { GroupOutput::Reconnect } else { GroupOutput::Connect });
        }
    }

    fn seek(&mut self) {
        let lost = self.reconnects;
        self.state = if lost { PrimaryState::ResyncRequired } else { PrimaryState::Connecting };
    }

    fn start_failed(&mut self, error: GroupError, out: &mut Out) {
        self.timers.cancel(Timer::Deadline);
        self.reconnects = false;
        self.state = PrimaryState::ResyncRequired;
        out.push(GroupOutput::Disconnect);
        if let Some(command) = self.starting.take() {
            reply(out, command, Err(error));
        }
        out.push(GroupOutput::Event(GroupEvent::StartFailed(error)));
    }

    /// The connections are gone, or the handshake was refused.
    pub fn disconnected(&mut self, out: &mut Out) {
        match self.state {
            // The shell tries again.
            PrimaryState::Connecting => {}
            PrimaryState::Beginning => {
                self.seek();
                if self.starting.is_none() {
                    self.timers.cancel(Timer::Deadline);
                }
            }
            PrimaryState::Syncing | PrimaryState::Running => self.lose(GroupError::LinkLost, out),
            PrimaryState::Stopped
            | PrimaryState::ResyncRequired
            | PrimaryState::Behind
            | PrimaryState::Fenced => {}
        }
    }

    pub(super) fn lose(&mut self, error: GroupError, out: &mut Out) {
        self.end_session(PrimaryState::ResyncRequired, error, out);
        out.push(GroupOutput::Event(GroupEvent::LinkLost));
        out.push(GroupOutput::Reconnect);
    }

    /// Looks for a peer again that was left behind.
    pub(super) fn seek_again(&mut self, out: &mut Out) {
        self.state = PrimaryState::ResyncRequired;
        out.push(GroupOutput::Reconnect);
    }

    /// The volumes go on serving alone, and what the peer lacks is known.
    pub(super) fn end_session(&mut self, state: PrimaryState, error: GroupError, out: &mut Out) {
        self.state = state;
        self.forget_behind();
        // What the peer lacks is marked, or about to be by the machines: that is all it needs.
        self.sync = SyncMode::Changed;
        self.reconnects = true;
        out.push(GroupOutput::Disconnect);
        out.push(GroupOutput::ToStripes(ToStripes::LinkDown));
        self.end_growth();
        self.end_fill();
        self.end_verify(VerifyState::Failed(VerifyFault::LinkLost), out);
        self.step_failed(error, out);
        self.step = Step::Idle;
        self.arm_interval(out);
    }

    /// The peer refused for good (another identity, version or size): trying again cannot help.
    pub fn refused(&mut self, error: GroupError, out: &mut Out) {
        match self.state {
            // A peer that was in step once may be in the middle of being made again.
            PrimaryState::Beginning if self.reconnects => self.disconnected(out),
            PrimaryState::Connecting | PrimaryState::Beginning => self.start_failed(error, out),
            _ => self.disconnected(out),
        }
    }

    /// The peer, or a message of it, has a newer generation: this node lost its role.
    pub fn fenced(&mut self, out: &mut Out) {
        if self.state == PrimaryState::Fenced {
            return;
        }
        self.state = PrimaryState::Fenced;
        self.forget_behind();
        self.reconnects = false;
        out.push(GroupOutput::Disconnect);
        out.push(GroupOutput::ToStripes(ToStripes::Fence));
        self.end_growth();
        self.end_fill();
        self.end_verify(VerifyState::Failed(VerifyFault::Fenced), out);
        if let Some(command) = self.starting.take() {
            reply(out, command, Err(GroupError::Fenced));
        }
        self.step_failed(GroupError::Fenced, out);
        self.step = Step::Idle;
        out.push(GroupOutput::Event(GroupEvent::Fenced));
    }

    /// What a stripe machine had to tell.
    pub fn event(&mut self, event: StripeEvent, out: &mut Out) {
        match event {
            StripeEvent::PeerFailed(super::types::PeerRefusal::OldGeneration) => self.fenced(out),
            StripeEvent::PeerFailed(refusal) => {
                if matches!(self.state, PrimaryState::Running | PrimaryState::Syncing) {
                    out.push(GroupOutput::Event(GroupEvent::PeerFailed(refusal)));
                    self.lose(GroupError::HungDisk(self.epoch), out);
                }
            }
            // Its map does not hold any more, as if the peer had another disk.
            StripeEvent::PeerFlushFailed => self.record.disown(),
            StripeEvent::WantsAlone => self.go_alone(out),
            StripeEvent::CopyFailed(_) => {
                let copying = self.state == PrimaryState::Running && self.copies_left > 0;
                if self.state == PrimaryState::Syncing || copying {
                    out.push(GroupOutput::Event(GroupEvent::SyncFailed));
                    self.lose(GroupError::LinkLost, out);
                } else {
                    self.source_failed(out);
                }
            }
            StripeEvent::Congested => self.congested(out),
            StripeEvent::Differs { round, .. } => self.differs(round),
            StripeEvent::VerifyFinished { round } => self.verified(round, out),
            StripeEvent::VerifyFailed { round, fault } => self.verify_failed(round, fault, out),
            // What the shell gives by the volume.
            StripeEvent::DiskFailed(_) | StripeEvent::Filled | StripeEvent::FillFailed => {}
            StripeEvent::Suspended { has_all } => self.suspended(has_all, out),
            StripeEvent::CopyFinished
            | StripeEvent::Extended
            | StripeEvent::HungDisk(_)
            | StripeEvent::DiskHealed
            | StripeEvent::BufferWatermark(_)
            | StripeEvent::BufferOverrun(_)
            | StripeEvent::JournalWatermark(_)
            | StripeEvent::JournalOverrun(_)
            | StripeEvent::JournalFailed
            | StripeEvent::FlushFailed
            | StripeEvent::HistoryLost(_)
            | StripeEvent::HistoryShort
            | StripeEvent::DrainFailed(_)
            | StripeEvent::Drained => {}
        }
    }

    /// Ends the session on purpose. The volumes go on serving alone.
    pub fn stop(&mut self, command: u64, out: &mut Out) {
        if let Some(starting) = self.starting.take() {
            reply(out, starting, Err(GroupError::Stopped));
        }
        if matches!(self.state, PrimaryState::Syncing | PrimaryState::Running) {
            out.push(GroupOutput::ToStripes(ToStripes::LinkDown));
        }
        self.reconnects = false;
        if self.state != PrimaryState::Fenced {
            self.state = PrimaryState::Stopped;
        }
        self.end_growth();
        self.end_fill();
        self.end_verify(VerifyState::Stopped, out);
        self.step_failed(GroupError::Stopped, out);
        self.step = Step::Idle;
        self.timers.cancel(Timer::Deadline);
        self.timers.cancel(Timer::Interval);
        self.forget_behind();
        out.push(GroupOutput::Disconnect);
        reply(out, command, Ok(Success::Done));
    }
}

pub(super) fn reply(out: &mut Out, command: u64, result: Result<Success, GroupError>) {
    out.push(GroupOutput::Reply { command, result });
}

fn error_of(ended: Ended, epoch: Epoch) -> Option<GroupError> {
    match ended {
        Ended::Ok => None,
        Ended::Timeout | Ended::Disk => Some(GroupError::HungDisk(epoch)),
        Ended::WrongEpoch => Some(GroupError::WrongEpoch(epoch)),
        Ended::Metadata => Some(GroupError::PeerMetadata),
        Ended::Unrecoverable => Some(GroupError::Unrecoverable(epoch)),
        Ended::NotRunning => Some(GroupError::WrongState("not following at the peer")),
    }
}
