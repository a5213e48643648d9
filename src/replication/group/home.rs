//! A group at home: its machine, and what carries out the machine's outputs.
//!
//! Invariants: lives on [`HOME`]; the machine is never called from within its own outputs (orders, messages and
//! completions come back by the loop); at most one session stands or is being made, and what is heard of an older one
//! is ignored.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use uuid::Uuid;

use super::dial::Dial;
use super::faults::{Fault, Faults};
use super::history::Export;
use super::options::*;
use super::sizes::Watch;
use super::split_brain::{Parting, SplitBrainInfo};
use super::verify::VerifyReport;
use super::{HOME, orders};
use crate::bdev::{Access, Bdev};
use crate::env::{SgList, clock};
use crate::reactor::{self, Reply, TimerHandler};

use crate::replication::core::*;
use crate::replication::journal::Journal;
use crate::replication::link::{
    CloseReason, Connection, Header, Heartbeat, LinkOwner, Listener, Message, RefusalCode, encode_control,
    parse_control,
};
use crate::replication::metadata::{FileRole, Record, VolumeRecord, Writer, WriterOwner};
use crate::replication::volume::{Quotas, Shard, ShardEvent, VolumeShared, shard_of};
use crate::replication::{Epoch, Generation};

/// How often the peers tell each other that they are there. Each may have a timeout of its own, so this goes by the
/// shortest that there can be: four in it.
const HEARTBEAT: Duration = Duration::from_millis(PEER_TIMEOUT_MIN_MS as u64 / 4);
/// Tags of timers: the machine's carry their round above.
const TAG_HEARTBEAT: u64 = 7;
const TAG_BITS: u32 = 3;

/// Hears of what an operator may want to know: the kind of event and what it is about.
pub type Observer = Arc<dyn Fn(&'static str, String) + Send + Sync>;

/// What of a group does not change while it exists. Shared by all reactors and the control thread.
pub(super) struct Fixed {
    pub serial: u64,
    pub name: String,
    pub uuid: Uuid,
    pub node: Uuid,
    pub role: RoleOptions,
    pub volumes: Vec<Arc<VolumeShared>>,
    pub bdevs: Vec<Arc<Bdev>>,
    pub reactors: u16,
    pub buffer: bool,
    pub granule_bytes: u32,
    pub quotas: Quotas,
    pub exports: Mutex<Vec<Export>>,
    pub journal: Option<Journal>,
    /// Changes at run time.
    pub peer_timeout_ms: AtomicU32,
    pub observer: Observer,
    /// On the disks below, while the group exists.
    pub watches: Mutex<Vec<Watch>>,
    /// The last committed epoch, for reactors that join late.
    pub committed: AtomicU64,
    /// The generation in which this node took over as a secondary; 0: it did not.
    pub promoted_generation: AtomicU64,
}

thread_local! {
    static HOMES: RefCell<HashMap<u64, Rc<Home>>> = RefCell::new(HashMap::new());
    /// Groups whose shard on this reactor has its secondary's machines.
    static SECONDARIES: RefCell<hashbrown::HashSet<u64>> = RefCell::new(hashbrown::HashSet::new());
}

impl Fixed {
    pub fn committed(&self) -> Epoch {
        Epoch(self.committed.load(Ordering::Relaxed))
    }

    /// What others than the home ask of the record.
    pub fn note(&self, record: GroupRecord) {
        self.committed.store(record.committed.0, Ordering::Relaxed);
        let promoted = if record.promoted { record.generation.0 } else { 0 };
        self.promoted_generation.store(promoted, Ordering::Relaxed);
    }

    pub fn exports(&self) -> MutexGuard<'_, Vec<Export>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn peer_timeout(&self) -> Duration {
        Duration::from_millis(self.peer_timeout_ms.load(Ordering::Relaxed).into())
    }

    pub fn is_primary(&self) -> bool {
        matches!(self.role, RoleOptions::Primary(_))
    }

    /// Gives the calling reactor's shard its machines, once; before its first session a secondary has no view at all.
    pub fn become_secondary(&self, shard: &Shard, generation: Generation, committed: Epoch) -> bool {
        if !SECONDARIES.with(|s| s.borrow_mut().insert(self.serial)) {
            return true;
        }
        let made = shard.become_secondary(
            self.buffer,
            self.journal.as_ref(),
            &self.quotas,
            HUNG_IO,
            generation,
            committed,
        );
        if let Err(error) = &made {
            tracing::error!("group `{}`: no disk buffer or journal on this reactor: {error}", self.name);
        }
        made.is_ok()
    }

    /// The group is deleted.
    pub fn forget_secondary(&self) {
        SECONDARIES.with(|s| s.borrow_mut().remove(&self.serial));
    }

    pub fn tell(&self, kind: &'static str, what: impl std::fmt::Display) {
        (self.observer)(kind, format!("{}: {what}", self.name));
    }
}

pub(super) enum Machine {
    Primary(PrimaryGroup),
    Secondary(SecondaryGroup),
}

/// What a command of the control thread ends with, and how long it took.
pub(super) type CommandResult = Result<(Success, Duration), (GroupError, Option<String>)>;

struct Waiting {
    reply: Reply<CommandResult>,
    since_ns: u64,
}

pub(super) struct Home {
    pub fixed: Arc<Fixed>,
    pub machine: RefCell<Machine>,
    writer: Rc<Writer>,
    commands: RefCell<HashMap<u64, Waiting>>,
    next_command: Cell<u64>,
    /// The session that stands or is being made; 0 is none.
    pub session: Cell<u64>,
    /// What the peer of that session said of its volumes.
    pub peer_sizes: RefCell<Vec<VolumeSize>>,
    pub control: RefCell<Option<Rc<Connection>>>,
    pub dial: Dial,
    pub listener: RefCell<Option<Rc<Listener>>>,
    /// What is wrong with the link to the peer.
    pub error: RefCell<Option<String>>,
    pub faults: RefCell<Faults>,
    pub verify: VerifyReport,
    /// When the checkpoints that are kept were committed, in ms since 1970.
    pub commit_times: RefCell<BTreeMap<Epoch, u64>>,
    /// While it stands.
    pub split_brain: RefCell<Option<SplitBrainInfo>>,
    /// A caller that is to be told of it.
    pub parting: RefCell<Option<Parting>>,
    /// An upper bound of what the peer lacks, as it was counted for the last handshake.
    pub dirty_bytes: Cell<u64>,
    heartbeats: Cell<u64>,
    /// When the copy that runs began.
    syncing_since_ns: Cell<u64>,
    /// When the replacement of a disk that is being filled began to be.
    pub filling_since_ns: Cell<u64>,
    drains: RefCell<HashMap<usize, usize>>,
    this: Weak<Home>,
    deleted: Cell<bool>,
    /// Hosts are served: a primary from its first start on.
    pub serving: AtomicBool,
}

/// The home of a group, on its reactor.
pub(super) fn home_of(serial: u64) -> Option<Rc<Home>> {
    HOMES.with(|h| h.borrow().get(&serial).cloned())
}

impl Home {
    /// On [`HOME`].
    pub fn install(fixed: Arc<Fixed>, machine: Machine, writer: Rc<Writer>) -> Rc<Home> {
        let home = Rc::new_cyclic(|this: &Weak<Home>| Home {
            fixed: fixed.clone(),
            machine: RefCell::new(machine),
            writer,
            commands: RefCell::default(),
            next_command: Cell::new(1),
            session: Cell::new(0),
            peer_sizes: RefCell::default(),
            control: RefCell::default(),
            dial: Dial::default(),
            listener: RefCell::default(),
            error: RefCell::default(),
            faults: RefCell::default(),
            verify: VerifyReport::default(),
            commit_times: RefCell::default(),
            split_brain: RefCell::default(),
            parting: RefCell::default(),
            dirty_bytes: Cell::new(0),
            heartbeats: Cell::new(0),
            syncing_since_ns: Cell::new(0),
            filling_since_ns: Cell::new(0),
            drains: RefCell::default(),
            this: this.clone(),
            deleted: Cell::new(false),
            serving: AtomicBool::new(false),
        });
        HOMES.with(|h| h.borrow_mut().insert(fixed.serial, home.clone()));
        home.arm_heartbeat();
        home
    }

    pub fn this(&self) -> Weak<Home> {
        self.this.clone()
    }

    /// The group is deleted: nothing of it goes on.
    pub fn uninstall(&self) {
        self.deleted.set(true);
        self.close_session();
        if let Some(listener) = self.listener.take() {
            listener.stop();
        }
        HOMES.with(|h| h.borrow_mut().remove(&self.fixed.serial));
    }

    pub fn record(&self) -> GroupRecord {
        match &*self.machine.borrow() {
            Machine::Primary(group) => group.record(),
            Machine::Secondary(group) => group.record(),
        }
    }

    /// Gives a command a number, under which its reply is sent.
    pub fn command(&self, reply: Reply<CommandResult>) -> u64 {
        let command = self.next_command.replace(self.next_command.get() + 1);
        self.commands.borrow_mut().insert(command, Waiting { reply, since_ns: clock::now() });
        command
    }

    /// Gives a primary's machine an input and carries out its outputs.
    pub fn primary(&self, f: impl FnOnce(&mut PrimaryGroup, &mut Vec<GroupOutput>)) {
        let mut out = Vec::new();
        if let Machine::Primary(group) = &mut *self.machine.borrow_mut() {
            f(group, &mut out);
        }
        self.carry_out(out);
    }

    /// Gives a secondary's machine an input and carries out its outputs.
    pub fn secondary(&self, f: impl FnOnce(&mut SecondaryGroup, &mut Vec<GroupOutput>)) {
        let mut out = Vec::new();
        if let Machine::Secondary(group) = &mut *self.machine.borrow_mut() {
            f(group, &mut out);
        }
        self.carry_out(out);
    }

    fn carry_out(&self, out: Vec<GroupOutput>) {
        for output in out {
            match output {
                GroupOutput::ToStripes(order) => orders::give(&self.fixed, &order),
                GroupOutput::Send(control) => self.send(&control),
                GroupOutput::Connect => self.dial_session(),
                GroupOutput::Reconnect => self.reconnect_later(),
                GroupOutput::Disconnect => self.close_session(),
                GroupOutput::PersistRecord(record, bytes) => self.persist(record, &bytes),
                GroupOutput::Resize { volume, bytes } => self.resize(volume, bytes),
                GroupOutput::ArmTimer { armed, after_ms } => {
                    let tag = armed.round << TAG_BITS | armed.timer as u64;
                    let after = Duration::from_millis(u64::from(after_ms));
                    reactor::timer_after(after, self.alarm(), tag);
                }
                GroupOutput::Reply { command, result } => self.reply(command, result),
                GroupOutput::Event(event) => self.event(event),
            }
        }
        self.fixed.note(self.record());
    }

    fn reply(&self, command: u64, result: Result<Success, GroupError>) {
        let promoted = matches!(result, Ok(Success::Generation(_)));
        if promoted {
            self.fixed.bdevs.iter().for_each(|bdev| bdev.set_access(Access::Optimized));
            self.error.take();
            self.faults.borrow_mut().clear_all();
            self.fixed.tell("replication_promoted", "this node serves the volumes now");
        }
        let Some(waiting) = self.commands.borrow_mut().remove(&command) else { return };
        let took = Duration::from_nanos(clock::now().saturating_sub(waiting.since_ns));
        let detail = || match result {
            // What the last attempts failed with says more than that they did.
            Err(GroupError::NoPeer | GroupError::Refused) => self.error.borrow().clone(),
            _ => None,
        };
        waiting.reply.send(result.map(|success| (success, took)).map_err(|error| (error, detail())));
    }

    fn send(&self, control: &Control) {
        let (message, payload) = encode_control(self.record().generation, control);
        if let Some(connection) = &*self.control.borrow() {
            // A connection that cannot send is about to end, and says so itself.
            let _ = connection.send_bytes(&message, &payload);
        }
    }

    fn persist(&self, record: GroupRecord, volume_bytes: &[u64]) {
        let promoted_role = if record.promoted { FileRole::Promoted } else { FileRole::Secondary };
        let volumes = self.fixed.bdevs.iter().zip(volume_bytes).map(|(bdev, bytes)| VolumeRecord {
            name: bdev.name().to_string(),
            uuid: bdev.uuid(),
            num_blocks: bytes / u64::from(bdev.block_size()),
            block_size: bdev.block_size(),
        });
        let record = Record {
            group: self.fixed.uuid,
            node: self.fixed.node,
            role: if self.fixed.is_primary() { FileRole::Primary } else { promoted_role },
            consistent: !record.inconsistent,
            generation: record.generation,
            committed_epoch: record.committed,
            journal: self.fixed.journal.as_ref().filter(|_| record.journaled).map(Journal::uuid),
            lineage: record.lineage,
            past: record.past,
            volumes: volumes.collect(),
        };
        let Some(this) = self.this.upgrade() else { return };
        if !self.writer.write(&record, this, 0) {
            // The machine has one write under way at most; after a hang the deadline of the command has told.
            tracing::error!("group `{}`: its record is being written still", self.fixed.name);
        }
    }

    fn event(&self, event: GroupEvent) {
        let name = &self.fixed.name;
        let failed = |kind: &'static str, text: String| {
            tracing::warn!("group `{name}`: {text}");
            self.error.replace(Some(text.clone()));
            self.fixed.tell(kind, text);
        };
        match event {
            GroupEvent::LinkLost => {
                let known = self.error.borrow().clone();
                failed(
                    "replication_link_lost",
                    known.unwrap_or_else(|| "the link to the peer is lost".into()),
                );
            }
            GroupEvent::Behind => failed(
                "replication_behind",
                if self.fixed.is_primary() {
                    "hosts waited too long for the secondary: it is left behind, and made equal again after a while".to_string()
                } else {
                    GroupError::Behind.to_string()
                },
            ),
            GroupEvent::StartFailed(error) => {
                // What the peer said says more than that it refused.
                let said = self.error.borrow().clone().filter(|_| error == GroupError::Refused);
                failed("replication_start_failed", said.unwrap_or_else(|| error.to_string()));
                self.probe_later();
            }
            GroupEvent::SyncFailed => {
                failed(
                    "replication_sync_failed",
                    "a copy for the peer could not read this node's disk".to_string(),
                );
            }
            GroupEvent::CheckpointFailed(error) => failed("replication_checkpoint_failed", error.to_string()),
            GroupEvent::PeerFailed(refusal) => self.fault(
                Fault::Disk,
                "replication_peer_failed",
                format!("{refusal}; the volumes come in step by themselves when it works again"),
            ),
            GroupEvent::DiskFailed(failure) => {
                self.fault(Fault::Disk, "replication_disk_failed", failure.to_string());
            }
            GroupEvent::DiskDetached { .. }
            | GroupEvent::FillStarted { .. }
            | GroupEvent::FillFailed { .. }
            | GroupEvent::DiskAttached { .. } => self.disk_event(event),
            GroupEvent::PeerRecordFailed => self.fault(
                Fault::Checkpoint,
                "replication_checkpoint_failed",
                GroupError::PeerMetadata.to_string(),
            ),
            GroupEvent::Fenced => {
                self.fixed.bdevs.iter().for_each(|bdev| bdev.set_access(Access::Inaccessible));
                failed("replication_fenced", GroupError::Fenced.to_string());
            }
            GroupEvent::BufferOverrun(epoch) => self.fault(
                Fault::Checkpoint,
                "replication_buffer_overrun",
                format!(
                    "the disk buffer is full: originals through epoch {epoch} were given up, checkpoint soon"
                ),
            ),
            GroupEvent::JournalOverrun(epoch) => self.fault(
                Fault::Checkpoint,
                "replication_journal_overrun",
                format!(
                    "the journal is full: a loss of power leaves no way back until epoch {epoch} is committed, checkpoint \
                     soon"
                ),
            ),
            GroupEvent::JournalFailed => self.fault(
                Fault::Disk,
                "replication_journal_failed",
                "the journal failed a write: nothing is applied any more; make its disk work, or give another one, then \
                 start again"
                    .to_string(),
            ),
            GroupEvent::HungDisk => self.fault(
                Fault::Disk,
                "replication_hung_disk",
                "hung disk: the secondary's disk does not answer, writes are held in memory".to_string(),
            ),
            GroupEvent::DrainFailed => self.fault(
                Fault::Disk,
                "replication_drain_failed",
                "a write of held data to this node's disk failed; it is retried: make the disk work".to_string(),
            ),
            GroupEvent::SyncStarted => {
                self.syncing_since_ns.set(clock::now());
                self.fixed.tell("replication_sync_started", "the volumes are being copied")
            }
            GroupEvent::SyncFinished => {
                self.error.take();
                self.faults.borrow_mut().clear_all();
                self.dial.settled();
                self.fixed.tell("replication_sync_finished", "the volumes are in step");
            }
            GroupEvent::BufferWatermark(percent) => {
                self.fixed
                    .tell("replication_buffer_watermark", format!("the disk buffer is {percent} % full"));
            }
            GroupEvent::JournalWatermark(percent) => {
                self.fixed.tell("replication_journal_watermark", format!("the journal is {percent} % full"));
            }
            GroupEvent::DiskHealed => {
                self.faults.borrow_mut().clear(Fault::Disk);
                self.fixed.tell("replication_disk_healed", "everything held in memory is on the disk");
            }
            GroupEvent::Drained => {
                self.faults.borrow_mut().clear(Fault::Disk);
                self.fixed.tell("replication_drained", "the disk buffer is on the disk");
            }
            GroupEvent::Committed(epoch) => {
                self.faults.borrow_mut().clear(Fault::Checkpoint);
                self.note_commit(epoch);
            }
            GroupEvent::HistoryDropped(_) | GroupEvent::HistoryLost(_) | GroupEvent::RolledBack(_) => {
                self.history_event(event);
            }
            GroupEvent::VerifyStarted => self.verify_started(),
            GroupEvent::VerifyEnded(how) => self.verify_ended(how),
            GroupEvent::DiskGrew { .. }
            | GroupEvent::DiskTooSmall { .. }
            | GroupEvent::GrowthFailed { .. }
            | GroupEvent::GrowthHung { .. } => self.size_event(event),
        }
    }

    /// Something failed that stays in sight until it has healed; told once.
    pub(super) fn fault(&self, kind: Fault, event: &'static str, text: String) {
        if self.faults.borrow_mut().set(kind, &text) {
            tracing::warn!("group `{}`: {text}", self.fixed.name);
            self.fixed.tell(event, text);
        }
    }

    /// What a shard told.
    pub fn shard_event(&self, reactor: usize, event: ShardEvent) {
        match event {
            ShardEvent::Stripe { event: StripeEvent::CopyFinished, .. } => {
                self.primary(|group, out| group.volume_copied(reactor, out));
            }
            ShardEvent::Stripe { event: StripeEvent::Extended, volume } => {
                self.primary(|group, out| group.extended(volume, out));
            }
            ShardEvent::Stripe { event: StripeEvent::DiskFailed(failure), volume } => {
                self.primary(|group, out| group.disk_failed(volume, failure, out));
                self.secondary(|group, out| group.event(StripeEvent::DiskFailed(failure), out));
            }
            ShardEvent::Stripe { event: StripeEvent::Filled, volume } => {
                self.primary(|group, out| group.filled(volume, out));
            }
            ShardEvent::Stripe { event: StripeEvent::FillFailed, volume } => {
                self.primary(|group, out| group.replacement_failed(volume, None, out));
            }
            ShardEvent::Stripe { event: StripeEvent::Drained, .. } => {
                if self.all_volumes(&self.drains, reactor) {
                    self.secondary(|group, out| group.drained(out));
                }
            }
            ShardEvent::Stripe { event, volume } => {
                if let StripeEvent::Differs { round, range } = event {
                    self.difference(volume, round, range);
                }
                self.primary(|group, out| group.event(event, out));
                self.secondary(|group, out| group.event(event, out));
            }
            ShardEvent::LaneClosed { reason, .. } => {
                if reason != CloseReason::Local.to_string() {
                    self.session_lost(&format!("the link to the peer is lost: {reason}"));
                }
            }
            ShardEvent::LaneBroken { .. } => self.session_lost("the peer broke the link protocol"),
        }
    }

    /// Counts the volumes of a reactor that are done; true when all are.
    fn all_volumes(&self, counts: &RefCell<HashMap<usize, usize>>, reactor: usize) -> bool {
        let mut counts = counts.borrow_mut();
        let count = counts.entry(reactor).or_default();
        *count += 1;
        let all = *count >= self.fixed.volumes.len();
        if all {
            counts.remove(&reactor);
        }
        all
    }

    /// Closes the connections of the session, if there is one.
    pub fn close_session(&self) {
        self.dial.cancel();
        if self.session.replace(0) == 0 {
            return;
        }
        if let Some(control) = self.control.take() {
            control.finish(CloseReason::Local);
        }
        orders::give(&self.fixed, &ToStripes::LinkDown);
    }

    /// The session that stands, or is being made, has failed.
    pub fn session_lost(&self, why: &str) {
        if self.session.get() == 0 || self.deleted.get() {
            return;
        }
        self.error.replace(Some(why.to_string()));
        self.close_session();
        self.primary(|group, out| group.disconnected(out));
        self.secondary(|group, out| group.disconnected(out));
        self.redial_later();
    }

    fn alarm(&self) -> Rc<Alarm> {
        Rc::new(Alarm(self.this.clone()))
    }

    fn arm_heartbeat(&self) {
        reactor::timer_after(HEARTBEAT, self.alarm(), TAG_HEARTBEAT);
    }

    /// Asks the reactors what the peer lacks, for a handshake; then goes on.
    pub fn count_dirty(&self, then: impl FnOnce(&Home) + Send + 'static) {
        let counted = Arc::new((
            AtomicU32::new(u32::from(self.fixed.reactors)),
            AtomicU64::new(0),
            Mutex::new(Some(then)),
        ));
        for reactor in 0..usize::from(self.fixed.reactors) {
            let (serial, counted) = (self.fixed.serial, counted.clone());
            reactor::spawn_call(reactor, move || {
                let bytes = shard_of(serial).map_or(0, |shard| shard.dirty_bytes());
                counted.1.fetch_add(bytes, Ordering::AcqRel);
                if counted.0.fetch_sub(1, Ordering::AcqRel) != 1 {
                    return;
                }
                let all = counted.1.load(Ordering::Acquire);
                let then = counted.2.lock().unwrap_or_else(PoisonError::into_inner).take();
                reactor::spawn_call(HOME, move || {
                    if let (Some(home), Some(then)) = (home_of(serial), then) {
                        home.dirty_bytes.set(all);
                        then(&home);
                    }
                });
            });
        }
    }

    fn silence(&self) -> Option<Duration> {
        let control = self.control.borrow();
        let heard = control.as_ref()?.last_received_ns();
        Some(Duration::from_nanos(reactor::now().saturating_sub(heard)))
    }

    fn heartbeat(&self) {
        self.arm_heartbeat();
        let timeout = self.fixed.peer_timeout();
        if self.silence().is_some_and(|silence| silence > timeout) {
            let text = format!("nothing was heard of the peer for {timeout:?}");
            return self.session_lost(&text);
        }
        // Not before the hello was answered: the secondary hands the socket on only if nothing came behind the hello.
        let beats = self.fixed.is_primary() && !self.dial.is_waiting();
        let control = self.control.borrow();
        if let Some(connection) = control.as_ref().filter(|_| beats) {
            self.heartbeats.set(self.heartbeats.get() + 1);
            let record = self.record();
            let heartbeat = Heartbeat {
                generation: record.generation,
                epoch: record.newest,
                number: self.heartbeats.get(),
                sent_ns: clock::now(),
            };
            let _ = connection.send_bytes(&Message::Heartbeat(heartbeat), &[]);
        }
    }

    fn peer(&self) -> Peer {
        match self.silence() {
            Some(silence) if silence < self.fixed.peer_timeout() / 2 => Peer::Heard,
            _ => Peer::Silent,
        }
    }

    /// How long the disks have been being made equal, if they are.
    pub fn syncing_since(&self) -> Option<Duration> {
        let syncing = matches!(&*self.machine.borrow(), Machine::Primary(group) if group.state() == PrimaryState::Syncing);
        syncing.then(|| Duration::from_nanos(clock::now().saturating_sub(self.syncing_since_ns.get())))
    }

    /// A message of the control connection after the handshake.
    fn control_message(&self, connection: &Rc<Connection>, header: &Header, payload: &SgList) {
        match header.message {
            Message::Heartbeat(heartbeat) => {
                let _ = connection.send_bytes(&Message::HeartbeatReply(heartbeat), &[]);
            }
            Message::HeartbeatReply(_) => {}
            Message::HelloReply(hello) => self.hello_reply(connection, hello, payload),
            Message::Bye { .. } => self.session_lost("the peer ended the session"),
            _ => match parse_control(header, payload) {
                Ok(Some((generation, control))) => self.control(connection, generation, control),
                _ => self.session_lost("the peer broke the link protocol"),
            },
        }
    }

    fn control(&self, connection: &Rc<Connection>, generation: Generation, control: Control) {
        let mine = self.record().generation;
        if generation < mine {
            let text = format!("generation {generation} there, {mine} here");
            connection.refuse(RefusalCode::OldGeneration, mine, &text);
            return self.session_lost("the peer is of an older generation");
        }
        self.primary(|group, out| group.message(control.clone(), out));
        self.secondary(|group, out| {
            if matches!(control, Control::Begin { .. }) {
                group.adopt_generation(generation);
                let sizes: Vec<u64> = self.peer_sizes.borrow().iter().map(|size| size.volume_bytes).collect();
                group.connected(&sizes);
            }
            group.message(control, out);
        });
    }
}

/// What a timer holds of a home: a deleted group is not kept, and its metadata file not locked, until the last one fires.
struct Alarm(Weak<Home>);

impl TimerHandler for Alarm {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        if let Some(home) = self.0.upgrade().filter(|home| !home.deleted.get()) {
            home.timer(tag);
        }
    }
}

impl Home {
    fn timer(&self, tag: u64) {
        let timer = match tag & ((1 << TAG_BITS) - 1) {
            0 => Timer::Deadline,
            1 => Timer::Settle,
            2 => Timer::Interval,
            3 => Timer::Growth,
            4 => Timer::Behind,
            5 => Timer::Record,
            _ => return self.heartbeat(),
        };
        let armed = Armed { timer, round: tag >> TAG_BITS };
        let peer = self.peer();
        self.primary(|group, out| group.timer(armed, peer, out));
        self.secondary(|group, out| group.timer(armed, out));
    }
}

impl WriterOwner for Home {
    fn record_written(self: Rc<Self>, _tag: u64, result: Result<(), std::io::Error>) {
        let ok = result.is_ok();
        match result {
            Ok(()) => self.faults.borrow_mut().clear(Fault::Record),
            Err(error) => {
                let text = format!("{} ({error})", GroupError::Metadata);
                self.fault(Fault::Record, "replication_record_failed", text);
            }
        }
        self.primary(|group, out| group.persisted(ok, out));
        self.secondary(|group, out| group.persisted(ok, out));
    }
}

/// The control connection's owner.
pub(super) struct ControlOwner {
    pub home: Weak<Home>,
    pub session: u64,
}

impl ControlOwner {
    fn home(&self) -> Option<Rc<Home>> {
        self.home.upgrade().filter(|home| home.session.get() == self.session)
    }
}

impl LinkOwner for ControlOwner {
    fn message(&self, connection: &Rc<Connection>, header: Header, payload: SgList) {
        if let Some(home) = self.home() {
            home.control_message(connection, &header, &payload);
        }
    }

    fn writable(&self, _connection: &Rc<Connection>) {}

    fn closed(&self, _connection: &Rc<Connection>, reason: CloseReason) {
        let Some(home) = self.home() else { return };
        match reason {
            CloseReason::Refused { code, text } => home.refused(code, &text),
            CloseReason::Local => {}
            reason => home.session_lost(&format!("the link to the peer is lost: {reason}")),
        }
    }
}

/// The listener that a group's shards tell; runs on any reactor.
pub(super) fn shard_listener(serial: u64) -> Arc<dyn Fn(usize, ShardEvent) + Send + Sync> {
    Arc::new(move |reactor, event| {
        reactor::spawn_call(HOME, move || {
            if let Some(home) = home_of(serial) {
                home.shard_event(reactor, event);
            }
        });
    })
}
