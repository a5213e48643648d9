//! The secondary's group machine: sessions, the secondary's half of checkpoints, failover.
//!
//! Invariants. What a message or a command changes for good is durable before anybody is told. There is one record and
//! never more than one write of it under way: a late commit and a failover race for it, and the one that came second
//! finds the other done. After a failover no message is accepted any more.

use super::super::{Epoch, Generation, Lineage};
use super::behind;
use super::group::*;
use super::group_history::RollBack;
use super::history::History;
use super::identity::Names;
use super::mutation::{Mutation, active};
use super::promoted::Keep;
use super::types::{DiskFailure, PeerRefusal, Standing, StripeEvent};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
pub struct SecondaryGroupConfig {
    /// Reactors of this node.
    pub reactors: u16,
    pub buffer: bool,
    /// How long a failover may take to become durable and to be carried out.
    pub failover_timeout_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondaryState {
    /// Waits for a primary; what it has is from before.
    Waiting,
    /// The disk is being made equal to the primary's, or that was interrupted.
    Syncing,
    Following,
    /// The primary is gone; view and buffer stand.
    PrimaryLost,
    Fencing,
    /// Goes back to an earlier checkpoint.
    RollingBack,
    /// Serves hosts while the buffer drains.
    Draining,
    Standalone,
    Stopped,
}

impl SecondaryState {
    pub fn name(self) -> &'static str {
        match self {
            SecondaryState::Waiting => "waiting for the primary",
            SecondaryState::Syncing => "inconsistent",
            SecondaryState::Following => "running",
            SecondaryState::PrimaryLost => "primary lost",
            SecondaryState::Fencing => "fencing",
            SecondaryState::RollingBack => "rolling back",
            SecondaryState::Draining => "serving, draining the buffer",
            SecondaryState::Standalone => "standalone",
            SecondaryState::Stopped => "stopped",
        }
    }
}

/// What becomes true with the record that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persisting {
    Nothing,
    Begin {
        epoch: Epoch,
        sync: SyncMode,
        kept: bool,
    },
    Commit {
        epoch: Epoch,
    },
    Promotion {
        keep: Keep,
        command: u64,
    },
    /// The disks are about to go back to an earlier checkpoint.
    RollBack {
        command: u64,
    },
    /// The buffer is on the disk.
    Drained,
    /// No map says any more what the disk lacks.
    Disowned,
    /// A volume has another size.
    Resize {
        volume: u16,
    },
}

/// What the reactors are carrying out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spreading {
    Nothing,
    Begin {
        epoch: Epoch,
        sync: SyncMode,
        left: u16,
    },
    Commit {
        epoch: Epoch,
        left: u16,
    },
    /// Before a failover becomes durable every machine makes sure of what it promises. `late`: its caller was told that
    /// it failed.
    Hold {
        keep: Keep,
        command: u64,
        left: u16,
        refused: bool,
        late: bool,
    },
    Promotion {
        command: u64,
        left: u16,
        refused: bool,
    },
    /// `asked`: whether each can; otherwise each has begun.
    RollBack {
        command: u64,
        left: u16,
        refused: bool,
        asked: bool,
    },
    Extend {
        volume: u16,
        bytes: u64,
        left: u16,
        refused: bool,
    },
    Resize {
        volume: u16,
        left: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checkpoint {
    None,
    Preparing { epoch: Epoch, left: u16, standing: Standing },
    Prepared { epoch: Epoch, standing: Standing },
}

pub struct SecondaryGroup {
    config: SecondaryGroupConfig,
    record: GroupRecord,
    /// What the record becomes with the write under way.
    pending: GroupRecord,
    state: SecondaryState,
    checkpoint: Checkpoint,
    pub(super) volumes: Vec<VolumeSize>,
    /// What the record says of the volumes' sizes with the write under way.
    pub(super) pending_bytes: Vec<u64>,
    /// The primary's sizes, which the volumes have from the beginning of the session on.
    primary_bytes: Vec<u64>,
    /// Messages that wait until a size was taken on.
    pub(super) waiting: VecDeque<Control>,
    pub(super) persisting: Persisting,
    pub(super) spreading: Spreading,
    /// Failovers that wait for the record.
    failovers: VecDeque<(u64, Keep)>,
    /// The epoch whose commit ends the copy, and the name of what is here then.
    sync_ends_with: Option<(Epoch, Lineage)>,
    names: Names,
    lost_through: Epoch,
    /// While the record says inconsistent: the buffer still leads back to the last checkpoint.
    pub(super) leads_back: bool,
    /// The disks are at the last checkpoint, to which a journal or a roll-back led, until a session begins.
    pub(super) rolled_back: bool,
    /// No session has begun since this machine was made.
    pub(super) restarted: bool,
    /// The record may still name a lineage that the disk has lost.
    disowned: bool,
    pub(super) history: History,
    pub(super) rolls_back: Option<RollBack>,
    pub(super) draining: u16,
    connected: bool,
    /// The primary went on without this node, which it found too slow, until the next session begins.
    behind: bool,
    pub(super) timers: Timers,
}

pub(super) type Out = Vec<GroupOutput>;

impl SecondaryGroup {
    pub fn new(config: SecondaryGroupConfig, record: GroupRecord, volumes: &[VolumeSize]) -> SecondaryGroup {
        let state = match (record.promoted, record.inconsistent) {
            (_, true) => SecondaryState::Syncing,
            (true, false) => SecondaryState::Standalone,
            (false, false) => SecondaryState::Waiting,
        };
        let rolled_back = record.journaled && state == SecondaryState::Waiting;
        SecondaryGroup {
            config,
            record,
            pending: record,
            state,
            checkpoint: Checkpoint::None,
            volumes: volumes.to_vec(),
            pending_bytes: volumes.iter().map(|size| size.volume_bytes).collect(),
            primary_bytes: Vec::new(),
            waiting: VecDeque::new(),
            persisting: Persisting::Nothing,
            spreading: Spreading::Nothing,
            failovers: VecDeque::new(),
            sync_ends_with: None,
            names: Names::new(1),
            // The buffer is memory: after a restart the disk is ahead of the last checkpoint, and nothing leads back; but a
            // journal has done so by now.
            lost_through: if rolled_back { Epoch(0) } else { Epoch(u64::MAX) },
            rolled_back,
            leads_back: false,
            restarted: true,
            disowned: false,
            history: History::default(),
            rolls_back: None,
            draining: 0,
            connected: false,
            behind: false,
            timers: Timers::default(),
        }
    }

    /// Where names come from: a number that no other machine has.
    pub fn seed_names(&mut self, seed: u64) {
        self.names = Names::new(seed);
    }

    pub fn state(&self) -> SecondaryState {
        self.state
    }

    pub(super) fn set_state(&mut self, state: SecondaryState) {
        self.state = state;
    }

    pub(super) fn failover_timeout_ms(&self) -> u32 {
        self.config.failover_timeout_ms
    }

    pub fn state_name(&self) -> &'static str {
        match self.state {
            SecondaryState::Following | SecondaryState::PrimaryLost if self.behind => "behind",
            state => state.name(),
        }
    }

    pub fn record(&self) -> GroupRecord {
        self.record
    }

    /// Whether a primary may connect.
    pub fn accepts(&self) -> bool {
        use SecondaryState::*;
        matches!(self.state, Waiting | Syncing | Following | PrimaryLost) && !self.connected
    }

    /// Whether what the last checkpoint promised is still there.
    pub fn has_view(&self) -> bool {
        let reachable = !self.record.inconsistent || self.leads_back;
        self.config.buffer && reachable && self.record.committed >= self.lost_through
    }

    /// The checkpoint to which a journal led back when the node started, until a session begins.
    pub fn rolled_back_to(&self) -> Option<Epoch> {
        self.rolled_back.then_some(self.record.committed)
    }

    /// Whether this node's memory of earlier sessions is gone; the next session is told.
    pub fn is_restarted(&self) -> bool {
        self.restarted
    }

    pub(super) fn reactors(&self) -> u16 {
        self.config.reactors
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// All connections of a primary stand and the handshake agreed; its volumes have these sizes.
    pub fn connected(&mut self, volume_bytes: &[u64]) {
        self.connected = true;
        self.primary_bytes = volume_bytes.to_vec();
    }

    pub fn disconnected(&mut self, out: &mut Out) {
        if !std::mem::take(&mut self.connected) {
            return;
        }
        self.checkpoint = Checkpoint::None;
        self.waiting.clear();
        self.sync_ends_with = None;
        self.timers.cancel(Timer::Settle);
        if matches!(self.state, SecondaryState::Following) {
            self.state = SecondaryState::PrimaryLost;
        }
        out.push(GroupOutput::ToStripes(ToStripes::LinkDown));
        out.push(GroupOutput::Event(if self.behind { GroupEvent::Behind } else { GroupEvent::LinkLost }));
    }

    /// A session that cannot begin is over: the primary hears of it by its connection, and may come again.
    fn close_session(&mut self, out: &mut Out) {
        out.push(GroupOutput::Disconnect);
        self.disconnected(out);
    }

    pub(super) fn take(&mut self, message: Control, out: &mut Out) {
        match message {
            Control::Begin { epoch, sync, lineage } => self.begin(epoch, sync, lineage, out),
            Control::Behind { epoch } => {
                self.behind = true;
                out.push(behind::answer(epoch));
            }
            Control::SyncEnd { epoch, lineage } => self.sync_ends_with = Some((epoch, lineage)),
            Control::Prepare { epoch, timeout_ms, lasts } => self.prepare(epoch, timeout_ms, lasts, out),
            Control::Commit { epoch } => self.commit(epoch, out),
            Control::Abort { epoch } => self.abort(epoch, out),
            Control::Extend { volume, bytes } => self.extend(volume, bytes, out),
            Control::Resize { volume, bytes } => self.resize(volume, bytes, out),
            Control::Prepared { .. }
            | Control::Committed { .. }
            | Control::Aborted { .. }
            | Control::DiskSize { .. } => {}
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.persisting != Persisting::Nothing || self.spreading != Spreading::Nothing
    }

    fn follows(&self) -> bool {
        matches!(self.state, SecondaryState::Following | SecondaryState::Syncing)
    }

    pub(super) fn persist(&mut self, record: GroupRecord, what: Persisting, out: &mut Out) {
        self.persisting = what;
        self.candidate(record);
        out.push(GroupOutput::PersistRecord(record, self.pending_bytes.clone()));
    }

    /// Numbers that must never fall rise at once, in memory; the rest when it is durable.
    fn candidate(&mut self, record: GroupRecord) {
        self.record.newest = self.record.newest.max(record.newest);
        self.pending = record;
    }

    fn begin(&mut self, epoch: Epoch, sync: SyncMode, lineage: Lineage, out: &mut Out) {
        use SecondaryState::*;
        let accepted = matches!(self.state, Waiting | Syncing | Following | PrimaryLost);
        let sizes = &self.primary_bytes;
        let fits = sizes.len() == self.volumes.len()
            && sizes.iter().zip(&self.volumes).all(|(&bytes, here)| bytes <= here.disk_bytes);
        // Copying what changed brings only a disk in step of which the primary knows what it lacks.
        let ran_on = sync != SyncMode::Resumed || !self.restarted && !self.record.inconsistent;
        let known = ran_on && (!sync.goes_on() || self.record.lineage.is_shared_with(lineage));
        if !accepted || !fits || !known || self.is_busy() || epoch <= self.record.newest {
            return self.close_session(out);
        }
        let same_size = sizes.iter().zip(&self.volumes).all(|(&bytes, here)| bytes == here.volume_bytes);
        let kept = sync.goes_on() && same_size && self.has_view();
        let committed = if sync.goes_on() { self.record.committed } else { Epoch(epoch.0 - 1) };
        let inconsistent = sync.copies() && !active(Mutation::ConsistentBeforeSynced);
        // What the disks hold now may not be durable; the first checkpoint makes it so.
        let mut record =
            GroupRecord { committed, newest: epoch, inconsistent, journaled: false, ..self.record };
        let mut identity = record.identity();
        match sync {
            SyncMode::Full => identity.begin_copy(lineage),
            SyncMode::None => identity.pair(lineage),
            // What it had it has until everything else is here.
            SyncMode::Changed | SyncMode::Resumed => {}
        }
        record.set_identity(identity);
        self.pending_bytes = self.primary_bytes.clone();
        self.persist(record, Persisting::Begin { epoch, sync, kept }, out);
    }

    /// The handshake of a session carried this generation, not older than ours.
    pub fn adopt_generation(&mut self, generation: Generation) {
        self.record.generation = self.record.generation.max(generation);
    }

    fn prepare(&mut self, epoch: Epoch, timeout_ms: u32, lasts: Vec<Last>, out: &mut Out) {
        let ended = match (self.follows(), self.checkpoint) {
            (false, _) => Some(Ended::NotRunning),
            _ if epoch <= self.record.committed || epoch < self.record.newest => Some(Ended::WrongEpoch),
            _ if self.is_busy() => Some(Ended::NotRunning),
            _ => None,
        };
        if let Some(ended) = ended {
            return out.push(GroupOutput::Send(Control::Prepared { epoch, ended }));
        }
        self.record.newest = epoch.next();
        let standing = Standing::Durable;
        self.checkpoint = Checkpoint::Preparing { epoch, left: self.config.reactors, standing };
        out.push(GroupOutput::ToStripes(ToStripes::Prepare { epoch, lasts }));
        self.timers.arm(Timer::Settle, timeout_ms / 2, out);
    }

    /// One more reactor has everything of the epoch, or cannot.
    pub fn prepared(&mut self, epoch: Epoch, result: Result<Standing, PeerRefusal>, out: &mut Out) {
        let Checkpoint::Preparing { epoch: expected, left, standing } = &mut self.checkpoint else { return };
        if epoch != *expected {
            return;
        }
        *left = left.saturating_sub(1);
        if result == Ok(Standing::Volatile) {
            *standing = Standing::Volatile;
        }
        let standing = *standing;
        let ended = match result {
            Err(_) => Ended::Disk,
            Ok(_) if *left == 0 => Ended::Ok,
            Ok(_) => return,
        };
        self.timers.cancel(Timer::Settle);
        self.checkpoint = match ended {
            Ended::Ok => Checkpoint::Prepared { epoch, standing },
            _ => Checkpoint::None,
        };
        out.push(GroupOutput::Send(Control::Prepared { epoch, ended }));
    }

    fn commit(&mut self, epoch: Epoch, out: &mut Out) {
        let standing = match self.checkpoint {
            Checkpoint::Prepared { epoch: prepared, standing } if prepared == epoch => Some(standing),
            _ => None,
        };
        let prepared = standing.is_some();
        if !self.follows() || !prepared || self.is_busy() {
            let ended = if prepared { Ended::NotRunning } else { Ended::WrongEpoch };
            return out.push(GroupOutput::Send(Control::Committed { epoch, ended }));
        }
        let ends = self.sync_ends_with.filter(|(last, _)| *last == epoch);
        let synced = ends.is_some();
        let inconsistent = self.record.inconsistent && !synced;
        let journaled = standing == Some(Standing::Durable);
        let mut record = GroupRecord { committed: epoch, inconsistent, journaled, ..self.record };
        if let Some((_, name)) = ends {
            let mut identity = record.identity();
            identity.end_target(name);
            record.set_identity(identity);
        }
        if active(Mutation::CommitBeforeRecord) {
            out.push(GroupOutput::Send(Control::Committed { epoch, ended: Ended::Ok }));
        }
        self.persist(record, Persisting::Commit { epoch }, out);
    }

    fn abort(&mut self, epoch: Epoch, out: &mut Out) {
        let ours = matches!(self.checkpoint,
            Checkpoint::Preparing { epoch: e, .. } | Checkpoint::Prepared { epoch: e, .. } if e == epoch);
        if ours && !self.is_busy() {
            self.checkpoint = Checkpoint::None;
            self.timers.cancel(Timer::Settle);
            out.push(GroupOutput::ToStripes(ToStripes::Abort));
        }
        out.push(GroupOutput::Send(Control::Aborted { epoch, ended: Ended::Ok }));
    }

    /// The record is durable, or could not be made so.
    pub fn persisted(&mut self, ok: bool, out: &mut Out) {
        let what = std::mem::replace(&mut self.persisting, Persisting::Nothing);
        if ok {
            let newest = self.record.newest.max(self.pending.newest);
            self.record = GroupRecord { newest, ..self.pending };
            for (size, &bytes) in self.volumes.iter_mut().zip(&self.pending_bytes) {
                size.volume_bytes = bytes;
            }
        } else {
            self.pending_bytes = self.volumes.iter().map(|size| size.volume_bytes).collect();
        }
        let reactors = self.config.reactors;
        let mut retry_later = false;
        match (what, ok) {
            (Persisting::Nothing, _) => {}
            (Persisting::Drained, true) => self.rolled_back_recorded(out),
            (Persisting::RollBack { command }, ok) => self.roll_back_recorded(command, ok, out),
            (Persisting::Disowned, true) => self.disowned = false,
            (Persisting::Drained, false) if active(Mutation::NoRetryOfRecord) => {}
            // Without it a restart would take the node for one in the middle of its drain, or the disk for whole.
            (Persisting::Drained | Persisting::Disowned, false) => {
                self.timers.arm(Timer::Interval, self.config.failover_timeout_ms, out);
                retry_later = true;
            }
            (Persisting::Begin { epoch, sync, kept }, true) => {
                self.behind = false;
                self.spreading = Spreading::Begin { epoch, sync, left: reactors };
                self.rolled_back = false;
                self.disowned &= self.record.lineage == Lineage(0);
                let originals = self.originals(epoch, sync, kept);
                let (generation, base) = (self.record.generation, self.record.committed);
                let volume_bytes = self.pending_bytes.clone();
                out.push(GroupOutput::ToStripes(ToStripes::Begin {
                    generation,
                    base,
                    volume_bytes,
                    originals,
                }));
            }
            (Persisting::Begin { .. }, false) => self.close_session(out),
            (Persisting::Commit { epoch }, true) => {
                self.checkpoint = Checkpoint::None;
                self.spreading = Spreading::Commit { epoch, left: reactors };
                out.push(GroupOutput::ToStripes(ToStripes::Commit { epoch }));
            }
            (Persisting::Commit { epoch }, false) => {
                out.push(GroupOutput::Send(Control::Committed { epoch, ended: Ended::Metadata }));
            }
            (Persisting::Resize { volume }, ok) => self.resize_recorded(volume, ok, out),
            (Persisting::Promotion { keep, command }, true) => {
                self.spreading = Spreading::Promotion { command, left: reactors, refused: false };
                self.draining = reactors;
                let generation = self.record.generation;
                out.push(GroupOutput::ToStripes(ToStripes::Promote { keep, generation }));
            }
            (Persisting::Promotion { command, .. }, false) => {
                self.stay(out);
                reply(out, command, Err(GroupError::Metadata));
            }
        }
        self.next_failover(out);
        if !retry_later {
            self.note_disowned(out);
        }
        self.next_message(out);
    }

    /// What a beginning session makes of the buffer.
    fn originals(&mut self, epoch: Epoch, sync: SyncMode, kept: bool) -> Originals {
        self.leads_back = kept;
        self.restarted = false;
        match (sync, kept) {
            (SyncMode::Changed | SyncMode::Resumed, true) => Originals::Kept,
            (SyncMode::Changed | SyncMode::Resumed, false) => {
                self.history.lose_before(Epoch(u64::MAX));
                self.lost_through = epoch;
                Originals::Lost(epoch)
            }
            (SyncMode::Full, _) => {
                self.history.lose_before(Epoch(u64::MAX));
                self.lost_through = Epoch(0);
                Originals::Copied
            }
            (SyncMode::None, _) => {
                self.history.lose_before(Epoch(u64::MAX));
                self.lost_through = Epoch(0);
                Originals::Anew
            }
        }
    }

    /// One more reactor has carried out what it was told.
    pub fn done(&mut self, ok: bool, out: &mut Out) {
        match &mut self.spreading {
            Spreading::Nothing => {}
            Spreading::Begin { left, .. }
            | Spreading::Commit { left, .. }
            | Spreading::Resize { left, .. } => {
                *left = left.saturating_sub(1);
                if *left > 0 {
                    return;
                }
            }
            Spreading::Hold { left, refused, .. }
            | Spreading::Promotion { left, refused, .. }
            | Spreading::RollBack { left, refused, .. }
            | Spreading::Extend { left, refused, .. } => {
                *left = left.saturating_sub(1);
                *refused |= !ok;
                if *left > 0 {
                    return;
                }
            }
        }
        match std::mem::replace(&mut self.spreading, Spreading::Nothing) {
            Spreading::Nothing => {}
            Spreading::Begin { epoch, sync, .. } => {
                let syncing = sync.copies();
                self.state = if syncing { SecondaryState::Syncing } else { SecondaryState::Following };
                if syncing {
                    out.push(GroupOutput::Event(GroupEvent::SyncStarted));
                }
                self.take_sizes(out);
                if self.history.is_on() {
                    self.tell_history(None, out);
                }
                if self.connected {
                    let lineage = self.record.lineage;
                    out.push(GroupOutput::Send(Control::Begin { epoch, sync, lineage }));
                    self.tell_disks(out);
                } else if !syncing {
                    self.state = SecondaryState::PrimaryLost;
                }
            }
            Spreading::Commit { epoch, .. } => {
                if self.state == SecondaryState::Syncing && !self.record.inconsistent {
                    self.state = SecondaryState::Following;
                    out.push(GroupOutput::Event(GroupEvent::SyncFinished));
                }
                self.history_committed(epoch, out);
                out.push(GroupOutput::Event(GroupEvent::Committed(epoch)));
                if self.connected {
                    out.push(GroupOutput::Send(Control::Committed { epoch, ended: Ended::Ok }));
                }
            }
            Spreading::Extend { volume, bytes, refused, .. } => {
                let bytes = if refused { self.volume_bytes(volume) } else { bytes };
                self.answer(Control::Extend { volume, bytes }, out);
            }
            Spreading::Resize { volume, .. } => self.resized(volume, out),
            Spreading::Hold { keep, command, refused: false, late: false, .. } => {
                self.record_promotion(keep, command, out);
            }
            Spreading::Hold { command, late, .. } => {
                self.stay(out);
                if !late {
                    reply(out, command, Err(GroupError::ViewLost));
                }
            }
            Spreading::RollBack { command, refused, asked, .. } => {
                self.roll_back_spread(command, refused, asked, out);
            }
            Spreading::Promotion { command, refused: true, .. } => {
                self.state = SecondaryState::PrimaryLost;
                self.timers.cancel(Timer::Deadline);
                reply(out, command, Err(GroupError::ViewLost));
            }
            Spreading::Promotion { command, .. } => {
                self.timers.cancel(Timer::Deadline);
                let drained = self.draining == 0;
                self.state = if drained { SecondaryState::Standalone } else { SecondaryState::Draining };
                reply(out, command, Ok(Success::Generation(self.record.generation)));
                self.history_taken_over(out);
                self.note_drained(out);
            }
        }
        self.next_failover(out);
        self.note_disowned(out);
        self.next_message(out);
    }

    /// Makes this node the one that serves. The primary is refused from here on, before anything is durable.
    pub fn failover(&mut self, command: u64, keep: Keep, out: &mut Out) {
        use SecondaryState::*;
        let error = match self.state {
            Fencing | RollingBack | Draining | Standalone | Stopped => {
                Some(GroupError::WrongState(self.state.name()))
            }
            Waiting | Syncing | Following | PrimaryLost => self.cannot_keep(keep),
        };
        if let Some(error) = error {
            return reply(out, command, Err(error));
        }
        self.state = Fencing;
        self.timers.arm(Timer::Deadline, self.config.failover_timeout_ms, out);
        out.push(GroupOutput::Disconnect);
        self.disconnected(out);
        self.failovers.push_back((command, keep));
        self.next_failover(out);
    }

    fn cannot_keep(&self, keep: Keep) -> Option<GroupError> {
        match keep {
            // Neither what the primary had nor what this node had: a part of both.
            Keep::Latest if self.record.inconsistent => Some(GroupError::Inconsistent),
            Keep::Latest | Keep::Overlay if self.rolled_back => Some(GroupError::RolledBack),
            // The last checkpoint is older, but a guest that goes on from it knows that.
            Keep::Latest if self.behind && self.has_view() => Some(GroupError::Behind),
            Keep::Latest => None,
            _ if self.record.inconsistent && !self.leads_back => Some(GroupError::Inconsistent),
            _ if !self.config.buffer => Some(GroupError::NoBuffer),
            _ if !self.has_view() => Some(GroupError::ViewLost),
            _ => None,
        }
    }

    fn next_failover(&mut self, out: &mut Out) {
        if self.is_busy() {
            return;
        }
        let Some((command, keep)) = self.failovers.pop_front() else { return };
        // A begin that was under way may have changed what there is to keep.
        if let Some(error) = self.cannot_keep(keep) {
            self.stay(out);
            return reply(out, command, Err(error));
        }
        self.state = SecondaryState::Fencing;
        let left = self.config.reactors;
        self.spreading = Spreading::Hold { keep, command, left, refused: false, late: false };
        let generation = self.record.generation;
        out.push(GroupOutput::ToStripes(ToStripes::Hold { keep, generation }));
    }

    /// A failover did not come about.
    fn stay(&mut self, out: &mut Out) {
        self.state =
            if self.record.inconsistent { SecondaryState::Syncing } else { SecondaryState::PrimaryLost };
        self.timers.cancel(Timer::Deadline);
        out.push(GroupOutput::ToStripes(ToStripes::Release));
    }

    /// Every machine keeps what the failover promises.
    fn record_promotion(&mut self, keep: Keep, command: u64, out: &mut Out) {
        let raised = u64::from(!active(Mutation::GenerationNotRaised));
        let generation = Generation(self.record.generation.0 + raised);
        // Until the buffer is on the disk, the disk alone is neither the old state nor the promised one.
        let inconsistent = keep != Keep::Latest;
        let mut record =
            GroupRecord { generation, promoted: true, inconsistent, journaled: false, ..self.record };
        let mut identity = record.identity();
        identity.promote(self.names.fresh());
        record.set_identity(identity);
        self.persist(record, Persisting::Promotion { keep, command }, out);
    }

    pub fn timer(&mut self, armed: Armed, out: &mut Out) {
        if !self.timers.is_current(armed) {
            return;
        }
        match (armed.timer, self.checkpoint) {
            (Timer::Settle, Checkpoint::Preparing { epoch, .. }) => {
                out.push(GroupOutput::ToStripes(ToStripes::Settle { epoch }));
            }
            (Timer::Interval, _) => {
                self.note_drained(out);
                self.note_disowned(out);
            }
            (Timer::Deadline, _) if self.state == SecondaryState::RollingBack => {
                // As there: when the record ends after all, the roll-back is carried out.
                if let Persisting::RollBack { command } = self.persisting {
                    reply(out, command, Err(GroupError::Metadata));
                }
            }
            (Timer::Deadline, _) if self.state == SecondaryState::Fencing => {
                // When the record is written after all, the promotion is carried out.
                if let Spreading::Hold { command, late, .. } = &mut self.spreading {
                    *late = true;
                    reply(out, *command, Err(GroupError::HungNode));
                } else if let Persisting::Promotion { command, .. } = self.persisting {
                    reply(out, command, Err(GroupError::Metadata));
                } else if let Some((command, _)) = self.failovers.pop_front() {
                    self.state = SecondaryState::PrimaryLost;
                    reply(out, command, Err(GroupError::Metadata));
                }
            }
            _ => {}
        }
    }

    /// Every machine of one reactor has drained its buffer.
    pub fn drained(&mut self, out: &mut Out) {
        self.draining = self.draining.saturating_sub(1);
        if self.draining == 0 && self.state == SecondaryState::Draining {
            self.state = SecondaryState::Standalone;
            out.push(GroupOutput::Event(GroupEvent::Drained));
        }
        self.note_drained(out);
    }

    /// What was promised is on the disk: a restart finds it there.
    pub(super) fn note_drained(&mut self, out: &mut Out) {
        let ended = match self.state {
            SecondaryState::RollingBack => self.draining == 0 && self.leads_back,
            state => state == SecondaryState::Standalone,
        };
        if ended && self.record.inconsistent && !self.is_busy() {
            let record = GroupRecord { inconsistent: false, ..self.record };
            self.persist(record, Persisting::Drained, out);
        }
    }

    /// A restart does not find a lineage that the disk has lost.
    fn note_disowned(&mut self, out: &mut Out) {
        if self.disowned && !self.is_busy() {
            self.persist(self.record, Persisting::Disowned, out);
        }
    }

    /// What a stripe machine had to tell.
    pub fn event(&mut self, event: StripeEvent, out: &mut Out) {
        let event = match event {
            StripeEvent::HistoryLost(epoch) => return self.history_lost(epoch, out),
            StripeEvent::HistoryShort => return self.history_short(out),
            StripeEvent::BufferOverrun(epoch) => {
                self.history_lost(epoch, out);
                self.lost_through = self.lost_through.max(epoch);
                out.push(GroupOutput::ToStripes(ToStripes::LoseThrough(epoch)));
                GroupEvent::BufferOverrun(epoch)
            }
            StripeEvent::BufferWatermark(percent) => GroupEvent::BufferWatermark(percent),
            StripeEvent::JournalWatermark(percent) => GroupEvent::JournalWatermark(percent),
            StripeEvent::JournalOverrun(epoch) => GroupEvent::JournalOverrun(epoch),
            StripeEvent::JournalFailed => GroupEvent::JournalFailed,
            StripeEvent::FlushFailed => {
                // No map says what this disk lacks now, and a restart must not bring the lineage back.
                self.record.disown();
                self.pending.disown();
                self.disowned = true;
                self.note_disowned(out);
                GroupEvent::DiskFailed(DiskFailure::Follower(PeerRefusal::DiskWrite))
            }
            StripeEvent::HungDisk(_) => GroupEvent::HungDisk,
            StripeEvent::DiskHealed => GroupEvent::DiskHealed,
            StripeEvent::DrainFailed(_) => GroupEvent::DrainFailed,
            StripeEvent::DiskFailed(failure) => GroupEvent::DiskFailed(failure),
            StripeEvent::Drained
            | StripeEvent::Congested
            | StripeEvent::WantsAlone
            | StripeEvent::PeerFailed(_)
            | StripeEvent::Suspended { .. }
            | StripeEvent::Filled
            | StripeEvent::FillFailed
            | StripeEvent::PeerFlushFailed
            | StripeEvent::CopyFailed(_)
            | StripeEvent::CopyFinished
            | StripeEvent::Extended
            | StripeEvent::Differs { .. }
            | StripeEvent::VerifyFinished { .. }
            | StripeEvent::VerifyFailed { .. } => return,
        };
        out.push(GroupOutput::Event(event));
    }

    pub fn stop(&mut self, command: u64, out: &mut Out) {
        out.push(GroupOutput::Disconnect);
        self.disconnected(out);
        match self.state {
            SecondaryState::Fencing | SecondaryState::RollingBack | SecondaryState::Draining => {
                return reply(out, command, Err(GroupError::WrongState(self.state.name())));
            }
            SecondaryState::Standalone => {}
            _ => self.state = SecondaryState::Stopped,
        }
        reply(out, command, Ok(Success::Done));
    }

    /// Waits for a primary again.
    pub fn start(&mut self, command: u64, out: &mut Out) {
        match self.state {
            SecondaryState::Stopped => {
                self.state =
                    if self.record.inconsistent { SecondaryState::Syncing } else { SecondaryState::Waiting };
                reply(out, command, Ok(Success::Done));
            }
            SecondaryState::Waiting | SecondaryState::Syncing | SecondaryState::PrimaryLost => {
                reply(out, command, Ok(Success::Done));
            }
            // It took over and waits for nobody: a configuration from before that must not keep the node from serving.
            SecondaryState::Standalone => reply(out, command, Ok(Success::Done)),
            state => reply(out, command, Err(GroupError::WrongState(state.name()))),
        }
    }
}

pub(super) fn reply(out: &mut Out, command: u64, result: Result<Success, GroupError>) {
    out.push(GroupOutput::Reply { command, result });
}
