//! One group's share of one reactor. The group's home reactor gives orders by running closures on the shard's
//! reactor; the shard tells what happens by [`ShardEvent`]s, and never waits.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::device::VolumeShared;
use super::lanes::{AckTask, LaneOwner, Lanes};
use super::maps::Maps;
use super::owner::{Machine, Owner};
use super::payload::Blocks;
use crate::bdev::{Bdev, BdevError};
use crate::reactor::{self, TimerHandler, TimerId};
use crate::replication::buffer::{BufferError, DiskBuffer, Quota, ReactorPages};
use crate::replication::core::{
    AckMode, CopyOptions, Journaled, Keep, LAG_BYTES, Lane, OnDiskFailure, OnLinkLoss, Originals, Pace,
    PeerRefusal, PrimaryConfig, PrimaryStripes, Refusal, SecondaryConfig, SecondaryStripes, Session,
    Standing, StripeEvent,
};
use crate::replication::journal::{self, Journal, Writer};
use crate::replication::link::{Connection, LinkOwner};
use crate::replication::{Epoch, Generation, Sequence};

/// The machines' step of time. Hung disks are noticed in units of it; an idle node wakes this often.
pub const TICK: Duration = Duration::from_millis(20);

/// How long a host's command waits for the peer while this node has no disk: longer than a link takes to be made again,
/// shorter than the 30 s after which guests give up.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_TICKS: u32 = (PATIENCE.as_millis() / TICK.as_millis()) as u32;
/// How long the disk may have a write before it counts as failed, if the group can go on without: the peer has everything,
/// so it is better to be wrong about a disk that is slow than to let hosts wait.
const HUNG_DISK: Duration = Duration::from_secs(5);
const HUNG_TICKS: u32 = (HUNG_DISK.as_millis() / TICK.as_millis()) as u32;

/// What a shard tells its group.
#[derive(Clone, Debug)]
pub enum ShardEvent {
    Stripe {
        volume: u16,
        event: StripeEvent,
    },
    LaneClosed {
        lane: Lane,
        reason: String,
    },
    /// The peer broke the protocol on this lane.
    LaneBroken {
        lane: Lane,
    },
}

/// What a shard holds and has under way.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardUsage {
    pub sent_bytes: u64,
    pub lag_bytes: u64,
    pub dirty_bytes: u64,
    pub undo_bytes: u64,
    pub history_bytes: u64,
    pub overlay_bytes: u64,
    pub redo_bytes: u64,
    pub bookkeeping_bytes: u64,
    pub journal_bytes: u64,
    pub in_flight: usize,
    /// What the copy that was begun last has to copy in all, and what is left of it.
    pub copy_bytes: u64,
    pub copy_left_bytes: u64,
    /// Bytes of it that the peer had already.
    pub copy_equal_bytes: u64,
    /// Bytes that the present verify, or else the last one, has compared.
    pub verified_bytes: u64,
    /// What is left to fill of replacements of disks.
    pub fill_left_bytes: u64,
}

/// Tells when a step of a checkpoint is done on this reactor.
pub type Prepared = Box<dyn FnOnce(Result<Standing, PeerRefusal>)>;

/// How much memory a group may have, on all reactors.
#[derive(Clone)]
pub struct Quotas {
    /// For the disk buffer.
    pub buffer: Arc<Quota>,
    /// For what leads back to earlier checkpoints.
    pub history: Arc<Quota>,
}

/// Why a reactor cannot have a secondary's share.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Journal(#[from] BdevError),
}

struct Preparing {
    epoch: Epoch,
    /// Messages that must have arrived before the machines are asked.
    lasts: Vec<(Lane, Sequence)>,
    asked: bool,
    left: usize,
    result: Result<Standing, PeerRefusal>,
    done: Prepared,
}

/// Hears what happens in a shard; runs on the shard's reactor.
pub type Listener = Arc<dyn Fn(usize, ShardEvent) + Send + Sync>;

pub struct Shard {
    group: u64,
    here: usize,
    owners: RefCell<Vec<Rc<Owner>>>,
    pub(super) lanes: Lanes,
    ack_task: Rc<AckTask>,
    listener: Listener,
    preparing: RefCell<Option<Preparing>>,
    /// A secondary's, if its group has one.
    journal: RefCell<Option<Rc<Writer>>>,
    timer: Cell<Option<TimerId>>,
    /// What this reactor may copy.
    pace: RefCell<Pace>,
    times_writes: Cell<bool>,
    /// Ticks that a host may wait for the peer before that is left behind.
    patience: Cell<Option<u32>>,
    /// What a verify may compare in a tick.
    verify_bytes: Cell<u64>,
    this: Weak<Shard>,
}

thread_local! {
    static SHARDS: RefCell<HashMap<u64, Rc<Shard>>> = RefCell::new(HashMap::new());
}

/// The calling reactor's share of a group, by the group's serial number.
pub fn shard_of(group: u64) -> Option<Rc<Shard>> {
    SHARDS.with(|s| s.borrow().get(&group).cloned())
}

impl Shard {
    /// Makes the calling reactor's share of a group.
    pub fn create(
        group: u64,
        volumes: &[Arc<VolumeShared>],
        listener: Listener,
    ) -> Result<Rc<Shard>, BdevError> {
        let bases = volumes.iter().map(|v| v.base().channel()).collect::<Result<Vec<_>, _>>()?;
        let shard = Rc::new_cyclic(|this: &Weak<Shard>| Shard {
            group,
            here: reactor::core_index(),
            owners: RefCell::default(),
            lanes: Lanes::default(),
            ack_task: Lanes::ack_task(this),
            listener,
            preparing: RefCell::default(),
            journal: RefCell::default(),
            timer: Cell::new(None),
            pace: RefCell::default(),
            times_writes: Cell::new(false),
            patience: Cell::new(None),
            verify_bytes: Cell::new(0),
            this: this.clone(),
        });
        let make = |(index, (volume, base)): (usize, (&Arc<VolumeShared>, _))| {
            Owner::new(volume.clone(), index as u16, base, Rc::downgrade(&shard))
        };
        *shard.owners.borrow_mut() = volumes.iter().zip(bases).enumerate().map(make).collect();
        SHARDS.with(|s| s.borrow_mut().insert(group, shard.clone()));
        shard.arm();
        Ok(shard)
    }

    /// Ends the share: closes the lanes, refuses what comes now. What the disks still have keeps its memory.
    pub fn destroy(&self) {
        if let Some(timer) = self.timer.take() {
            reactor::timer_cancel(timer);
        }
        self.lanes.detach_all();
        for owner in self.owners() {
            owner.forget();
        }
        self.journal.take();
        SHARDS.with(|s| s.borrow_mut().remove(&self.group));
    }

    fn arm(&self) {
        if let Some(this) = self.this.upgrade() {
            self.timer.set(Some(reactor::timer_after(TICK, this, 0)));
        }
    }

    fn owners(&self) -> Vec<Rc<Owner>> {
        self.owners.borrow().clone()
    }

    pub(super) fn owner(&self, volume: u16) -> Option<Rc<Owner>> {
        self.owners.borrow().get(usize::from(volume)).cloned()
    }

    pub(super) fn ack_task(&self) -> Rc<AckTask> {
        self.ack_task.clone()
    }

    pub(super) fn tell(&self, event: ShardEvent) {
        (self.listener)(self.here, event);
    }

    pub(super) fn event(&self, volume: u16, event: StripeEvent) {
        self.tell(ShardEvent::Stripe { volume, event });
    }

    /// Becomes a primary's share: reads and writes of hosts work from now on.
    pub fn become_primary(&self, ack: AckMode, on_link_loss: OnLinkLoss, on_disk_failure: OnDiskFailure) {
        let owners = self.owners();
        // The volumes share the reactor's lanes, and so what these may hold.
        let lag_limit_bytes = LAG_BYTES / owners.len().max(1) as u64;
        for owner in owners {
            let geometry = owner.shared.geometry(self.here as u16);
            let config = PrimaryConfig { geometry, ack, on_link_loss, on_disk_failure, lag_limit_bytes };
            let mut machine = PrimaryStripes::new(config);
            machine.stay_together();
            *owner.machine.borrow_mut() = Machine::Primary(Box::new(machine));
        }
    }

    /// Becomes a secondary's share. `quotas` are the group's; `hung` after which a disk counts as hung.
    pub fn become_secondary(
        &self,
        buffer: bool,
        journal: Option<&Journal>,
        quotas: &Quotas,
        hung: Duration,
        generation: Generation,
        committed: Epoch,
    ) -> Result<(), ShardError> {
        if let Some(journal) = journal {
            let user: Weak<dyn journal::User> = self.this.clone();
            let writer = Writer::new(journal, user)?;
            writer.committed(committed);
            self.journal.replace(Some(writer));
        }
        let hung_ticks = (hung.as_millis() / TICK.as_millis()).clamp(1, u128::from(u32::MAX)) as u32;
        for owner in self.owners() {
            let geometry = owner.shared.geometry(self.here as u16);
            let volume_bytes = geometry.blocks * u64::from(geometry.block_bytes);
            let mut buffers = DiskBuffer::new(
                owner.shared.granule_bytes,
                volume_bytes,
                Rc::new(ReactorPages),
                quotas.buffer.clone(),
            )?;
            buffers.set_history_quota(quotas.history.clone());
            let maps = Maps::new(buffers, owner.block_bytes);
            let config = SecondaryConfig { geometry, buffer, journal: journal.is_some(), hung_ticks };
            let machine = SecondaryStripes::new(config, maps, generation, committed);
            *owner.machine.borrow_mut() = Machine::Secondary(Box::new(machine));
        }
        self.lanes.set_generation(generation);
        Ok(())
    }

    /// No I/O of hosts any more. What is in flight below ends by itself.
    pub fn stop(&self) {
        self.lanes.detach_all();
        for owner in self.owners() {
            *owner.machine.borrow_mut() = Machine::Stopped;
            owner.refuse_pieces();
        }
    }

    /// The owner of a lane's connection, to be given to the link.
    pub fn lane_owner(&self, lane: Lane) -> Rc<dyn LinkOwner> {
        Rc::new(LaneOwner { shard: self.this.clone(), lane })
    }

    /// A data connection passed its handshake.
    pub fn attach(&self, lane: Lane, connection: Rc<Connection>) {
        self.lanes.attach(lane, connection);
    }

    fn primaries(&self, mut f: impl FnMut(&mut PrimaryStripes<Blocks>, &mut Vec<super::primary::Out>)) {
        for owner in self.owners() {
            owner.primary(|machine, out| f(machine, out));
        }
    }

    fn secondaries(
        &self,
        mut f: impl FnMut(&mut SecondaryStripes<Blocks, Maps>, &mut Vec<super::secondary::Out>),
    ) {
        for owner in self.owners() {
            owner.secondary(|machine, out| f(machine, out));
        }
    }

    // ---- the size of a volume, for either role

    /// Makes room for more of a volume. A primary copies what is new; a secondary tells whether it has the room.
    pub fn extend(&self, volume: u16, bytes: u64) -> bool {
        let Some(owner) = self.owner(volume) else { return false };
        let blocks = owner.blocks(bytes);
        let mut room = true;
        owner.primary(|machine, out| machine.extend(blocks, out));
        owner.secondary(|machine, _| room = machine.extend(blocks).is_ok());
        room
    }

    /// The volume has this size from now on.
    pub fn resize(&self, volume: u16, bytes: u64) {
        let Some(owner) = self.owner(volume) else { return };
        let blocks = owner.blocks(bytes);
        owner.primary(|machine, _| machine.resize(blocks));
        owner.secondary(|machine, _| machine.resize(blocks));
    }

    // ---- orders to a primary

    pub fn link_up(&self, session: Session) {
        self.lanes.set_generation(session.generation);
        self.primaries(|machine, out| machine.link_up(session, out));
    }

    /// Closes the lanes of a lost or ended session, for either role.
    pub fn link_down(&self) {
        self.lanes.detach_all();
        self.preparing.take();
        self.primaries(|machine, out| machine.link_down(out));
        self.secondaries(|machine, _| machine.link_down());
    }

    /// A lane has as much to send as it should hold. From within a machine's outputs.
    pub(super) fn hold_back(&self) {
        for owner in self.owners() {
            if let Machine::Primary(machine) = &mut *owner.machine.borrow_mut() {
                machine.hold_back();
            }
        }
    }

    /// Every lane has room again.
    pub(super) fn go_on(&self) {
        self.primaries(|machine, out| machine.go_on(out));
    }

    /// First step of a cut.
    pub fn freeze(&self) {
        self.primaries(|machine, _| machine.freeze());
    }

    /// Second step of a cut, when all shards are frozen: what belongs to the closed epoch on each lane.
    pub fn stamp(&self, next: Epoch, preserve: bool) -> Vec<(Lane, Sequence)> {
        let lasts = self.lanes.last_sent();
        self.primaries(|machine, out| machine.stamp(next, preserve, out));
        lasts
    }

    /// Goes on without a cut.
    pub fn thaw(&self) {
        self.primaries(|machine, out| machine.thaw(out));
    }

    /// The record has a name for what this node does without its peer.
    pub fn go_alone(&self) {
        self.primaries(|machine, out| machine.go_alone(out));
    }

    /// An upper bound of what the peer lacks.
    pub fn dirty_bytes(&self) -> u64 {
        let bytes = |owner: &Rc<Owner>| match &*owner.machine.borrow() {
            Machine::Stopped => 0,
            Machine::Primary(machine) => machine.dirty().bytes(),
            Machine::Secondary(machine) => machine.dirty().bytes(),
        };
        self.owners.borrow().iter().map(bytes).sum()
    }

    pub fn fence(&self) {
        self.primaries(|machine, out| machine.fence(out));
        self.lanes.detach_all();
    }

    /// The peer may have lost what it acknowledged.
    pub fn peer_restarted(&self) {
        self.primaries(|machine, _| machine.peer_restarted());
    }

    /// Copies everything, or only what the peer is known to lack.
    pub fn start_copy(&self, only_dirty: bool) {
        self.pace.borrow_mut().begin();
        let compare = self.pace.borrow().options().compare;
        self.primaries(|machine, out| {
            machine.set_compares(compare);
            machine.start_copy(only_dirty, out);
        });
    }

    /// How copies are made: those that are under way as well. Of a rate each reactor has its share, also when others have
    /// nothing left to copy.
    pub fn set_copies(&self, options: CopyOptions, reactors: u16) {
        self.pace.borrow_mut().set(options, reactors);
        self.times_writes.set(options.latency_target_us.is_some());
        self.primaries(|machine, _| machine.set_compares(options.compare));
        self.allow_copies();
    }

    /// How long hosts may wait for the peer before it is left behind.
    pub fn set_patience(&self, patience_ms: Option<u32>) {
        let tick_ms = TICK.as_millis() as u32;
        self.patience.set(patience_ms.map(|patience| patience.div_ceil(tick_ms)));
    }

    fn watch_peer(&self) {
        if let Some(patience) = self.patience.get() {
            self.primaries(|machine, out| machine.watch_peer(patience, out));
        }
    }

    /// Divides a tick's worth among the machines that copy.
    fn allow_copies(&self) {
        let copies = |owner: &&Rc<Owner>| matches!(&*owner.machine.borrow(), Machine::Primary(m) if m.is_copying() || m.is_filling());
        let owners = self.owners();
        let copying = owners.iter().filter(copies).count() as u64;
        let bytes = self.pace.borrow_mut().tick((1000 / TICK.as_millis()) as u64, copying > 0);
        let share = bytes.map(|bytes| if bytes == 0 { 0 } else { (bytes / copying.max(1)).max(1) });
        for owner in owners {
            owner.primary(|machine, out| machine.allow_copy(share, out));
        }
    }

    /// Whether [`Shard::wrote`] is of any use.
    pub(super) fn times_writes(&self) -> bool {
        self.times_writes.get()
    }

    /// A host's write ended.
    pub(super) fn wrote(&self, took: Duration) {
        self.pace.borrow_mut().wrote(took.as_micros() as u64);
    }

    /// Launches nothing, until the disks are kept or one is gone.
    pub fn suspend(&self) {
        self.primaries(|machine, out| machine.suspend(out));
    }

    pub fn keep_disk(&self) {
        self.primaries(|machine, out| machine.keep_disk(out));
    }

    /// The volume has no disk here from now on.
    pub fn detach_disk(&self, volume: u16) {
        for owner in self.owners() {
            owner.primary(|machine, out| machine.detach(owner.index == volume, out));
        }
    }

    /// A replacement is below the volume.
    pub fn replace_base(&self, volume: u16) -> Result<(), BdevError> {
        self.owner(volume).map_or(Ok(()), |owner| owner.replace_base())
    }

    /// I/Os that a disk, which is or was below a volume, has not given back to this reactor.
    pub fn at_disk(&self, volume: u16, disk: &Arc<Bdev>) -> usize {
        self.owner(volume).map_or(0, |owner| owner.at_disk(disk))
    }

    pub fn fill(&self, volume: u16) {
        if let Some(owner) = self.owner(volume) {
            owner.primary(|machine, out| machine.fill(out));
        }
    }

    /// The replacement is the volume's disk; `leans` if another volume has none.
    pub fn attach_disk(&self, volume: u16, leans: bool) {
        for owner in self.owners() {
            owner.primary(|machine, out| machine.attach(owner.index == volume, leans, out));
        }
    }

    /// Compares everything with the peer's disks, one volume after the other, at most so many bytes a second. A disk that
    /// answers nothing for `patience` ends it.
    pub fn start_verify(&self, round: u32, rate_bytes: u64, patience: Duration) {
        let ticks = (patience.as_millis() / TICK.as_millis()).clamp(1, u128::from(u32::MAX)) as u32;
        self.verify_bytes.set((rate_bytes * TICK.as_millis() as u64 / 1000).max(1));
        self.primaries(|machine, out| machine.start_verify(round, ticks, out));
    }

    pub fn cancel_verify(&self) {
        self.primaries(|machine, out| machine.cancel_verify(out));
    }

    /// Time for the volume whose turn it is.
    fn verify_tick(&self) {
        let bytes = self.verify_bytes.get();
        let turn = |owner: &&Rc<Owner>| match &*owner.machine.borrow() {
            Machine::Primary(machine) => machine.is_verifying(),
            _ => false,
        };
        let first = self.owners.borrow().iter().find(turn).cloned();
        if let Some(owner) = first {
            owner.primary(|machine, out| machine.verify_tick(bytes, out));
        }
    }

    pub fn set_ack(&self, ack: AckMode) {
        self.primaries(|machine, out| machine.set_ack(ack, out));
    }

    pub fn set_on_link_loss(&self, policy: OnLinkLoss) {
        self.primaries(|machine, out| machine.set_on_link_loss(policy, out));
    }

    // ---- orders to a secondary

    /// A session begins, with the volumes' sizes in their order.
    pub fn begin(&self, generation: Generation, base: Epoch, volume_bytes: &[u64], originals: Originals) {
        self.lanes.set_generation(generation);
        self.nothing_leads_back_beyond(base);
        for (owner, bytes) in self.owners().iter().zip(volume_bytes) {
            owner.secondary(|machine, _| machine.begin(generation, base, owner.blocks(*bytes), originals));
        }
    }

    /// Tells when every write of the epoch has arrived here and is accounted for.
    pub fn prepare(&self, epoch: Epoch, lasts: Vec<(Lane, Sequence)>, done: Prepared) {
        let left = self.owners.borrow().len();
        let result = Ok(Standing::Durable);
        let preparing = Preparing { epoch, lasts, asked: false, left, result, done };
        self.preparing.replace(Some(preparing));
        self.something_arrived();
    }

    /// Messages arrived: a prepare may have waited for them.
    pub(super) fn something_arrived(&self) {
        let epoch = match &mut *self.preparing.borrow_mut() {
            Some(p) if !p.asked && self.lanes.have_arrived(&p.lasts) => {
                p.asked = true;
                p.epoch
            }
            _ => return,
        };
        if self.owners.borrow().is_empty() {
            return self.machine_prepared(epoch, Ok(Standing::Durable));
        }
        self.secondaries(|machine, out| machine.prepare(epoch, out));
    }

    pub(super) fn machine_prepared(&self, epoch: Epoch, result: Result<Standing, PeerRefusal>) {
        let ended = {
            let mut preparing = self.preparing.borrow_mut();
            let Some(p) = preparing.as_mut().filter(|p| p.epoch == epoch) else { return };
            p.left = p.left.saturating_sub(1);
            if p.result == Ok(Standing::Durable) || p.result.is_ok() && result.is_err() {
                p.result = result;
            }
            if p.left > 0 {
                return;
            }
            preparing.take()
        };
        if let Some(p) = ended {
            (p.done)(p.result);
        }
    }

    /// The checkpoint waits no longer: what the disk has not taken is pinned.
    pub fn settle(&self, epoch: Epoch) {
        self.secondaries(|machine, out| machine.settle(epoch, out));
    }

    pub fn commit(&self, epoch: Epoch) {
        self.nothing_leads_back_beyond(epoch);
        self.secondaries(|machine, out| machine.commit(epoch, out));
    }

    fn nothing_leads_back_beyond(&self, epoch: Epoch) {
        if let Some(journal) = &*self.journal.borrow() {
            journal.committed(epoch);
        }
    }

    pub(super) fn journal(&self) -> Option<Rc<Writer>> {
        self.journal.borrow().clone()
    }

    pub fn abort(&self) {
        self.preparing.take();
        self.secondaries(|machine, _| machine.abort());
    }

    /// Another shard lost originals of epochs through this one.
    pub fn lose_through(&self, through: Epoch) {
        self.secondaries(|machine, out| machine.lose_through(through, out));
    }

    /// Whether every volume keeps what a failover promises, until it is carried out or released.
    pub fn hold_promise(&self, keep: Keep) -> bool {
        let mut all = true;
        self.secondaries(|machine, _| all &= machine.hold_promise(keep));
        all
    }

    pub fn release_promise(&self) {
        self.secondaries(|machine, _| machine.release_promise());
    }

    /// Whether every volume has a view to go back to.
    pub fn has_view(&self) -> bool {
        let mut all = true;
        self.secondaries(|machine, _| all &= machine.has_view());
        all
    }

    // ---- earlier checkpoints

    /// What leads back to this epoch and to later ones is kept; `None`: nothing.
    pub fn set_history(&self, from: Option<Epoch>) {
        self.secondaries(|machine, _| machine.set_history(from));
    }

    /// What commits and failovers moved into the history since this was asked last.
    pub fn take_moved_bytes(&self) -> u64 {
        let mut bytes = 0;
        self.secondaries(|machine, _| bytes += machine.take_moved_bytes());
        bytes
    }

    /// Whether every volume can be made what it was at the end of the epoch; if so, that is not given up any more.
    pub fn hold_past(&self, epoch: Epoch) -> bool {
        let mut held = 0;
        self.secondaries(|machine, _| held += usize::from(machine.hold_past(epoch)));
        held == self.owners.borrow().len()
    }

    /// Makes the volumes what they were at the end of the epoch.
    pub fn roll_back(&self, epoch: Epoch) -> Result<(), Refusal> {
        let mut result = Ok(());
        self.secondaries(|machine, out| {
            if let Err(refusal) = machine.roll_back_to(epoch, out) {
                result = Err(refusal);
            }
        });
        result
    }

    pub fn set_generation(&self, generation: Generation) {
        self.lanes.set_generation(generation);
        self.secondaries(|machine, _| machine.set_generation(generation));
    }

    /// Becomes what the failover promised.
    pub fn promote(&self, keep: Keep, generation: Generation) -> Result<(), Refusal> {
        self.lanes.detach_all();
        self.preparing.take();
        let mut result = Ok(());
        self.secondaries(|machine, out| {
            if let Err(refusal) = machine.promote(keep, generation, out) {
                result = Err(refusal);
            }
        });
        result
    }

    /// What the shard holds, added to `usage`.
    pub fn usage(&self) -> ShardUsage {
        let mut usage = ShardUsage { sent_bytes: self.lanes.sent_bytes(), ..ShardUsage::default() };
        usage.journal_bytes = self.journal.borrow().as_ref().map_or(0, |journal| journal.used_bytes());
        for owner in self.owners() {
            match &*owner.machine.borrow() {
                Machine::Stopped => {}
                Machine::Primary(machine) => {
                    usage.lag_bytes += machine.lag_bytes();
                    usage.dirty_bytes += machine.dirty().bytes();
                    usage.in_flight += machine.in_flight();
                    let (all, left) = machine.copy_progress();
                    usage.copy_bytes += all;
                    usage.copy_left_bytes += left;
                    usage.copy_equal_bytes += machine.equal_bytes();
                    usage.fill_left_bytes += machine.fill_left().unwrap_or(0);
                    usage.verified_bytes += machine.verified_blocks() * u64::from(owner.block_bytes);
                }
                Machine::Secondary(machine) => {
                    let buffer = machine.maps().usage();
                    usage.undo_bytes += buffer.undo_bytes;
                    usage.history_bytes += buffer.history_bytes;
                    usage.overlay_bytes += buffer.overlay_bytes;
                    usage.redo_bytes += buffer.redo_bytes;
                    usage.bookkeeping_bytes += buffer.bookkeeping_bytes;
                    usage.dirty_bytes += machine.dirty().bytes();
                    usage.in_flight += machine.in_flight();
                }
            }
        }
        usage
    }
}

impl journal::User for Shard {
    fn journaled(&self, (volume, op): journal::Token, outcome: Journaled) {
        if let Some(owner) = self.owner(volume) {
            owner.secondary(|machine, out| machine.journaled(op, outcome, out));
        }
    }

    fn journal_watermark(&self, percent: u8) {
        self.event(0, StripeEvent::JournalWatermark(percent));
    }
}

impl TimerHandler for Shard {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        self.allow_copies();
        for owner in self.owners() {
            owner.feed();
            owner.primary(|machine, out| machine.disk_tick(HUNG_TICKS, PATIENCE_TICKS, out));
            owner.secondary(|machine, out| {
                machine.maps_mut().recycle();
                machine.tick(out);
            });
        }
        self.verify_tick();
        self.watch_peer();
        self.arm();
    }
}
