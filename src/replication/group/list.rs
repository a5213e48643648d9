//! The groups of a node, for the control thread. Calls wait for their outcome, at most until the command's deadline.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::home::{self, CommandResult, Fixed, Home, Machine, Observer, home_of};
use super::options::*;
use super::recover::{Way, recover};
use super::verify::VerifyInfo;
use super::{HOME, claim, disks, faults, recorded, sizes};
use crate::bdev::{Access, Bdev, Registry};
use crate::reactor::ReactorSet;
use crate::replication::buffer::Quota;
use crate::replication::core::*;
use crate::replication::metadata::Store;
use crate::replication::volume::{self, Quotas, Shard, ShardUsage, VolumeShared, shard_of};
use crate::replication::{Epoch, Generation};

/// The most groups of a node, and the most volumes of a group: what one hello and one record hold.
const MAX_GROUPS: usize = 64;
const MAX_VOLUMES: usize = 64;
/// How long a reactor may take for something that waits for nothing.
pub(super) const SOON: Duration = Duration::from_secs(5);
/// Above every deadline of the machines, so that theirs names what hung.
const MARGIN: Duration = Duration::from_secs(3);
/// A granule is at least a block, and at most what a partial write should have to read.
const GRANULE_MAX: u32 = 1 << 20;

struct Entry {
    fixed: Arc<Fixed>,
    options: GroupOptions,
}

/// The groups of a node. From the control thread.
pub struct Groups {
    pub(super) reactors: Arc<ReactorSet>,
    pub(super) registry: Arc<Registry>,
    observer: Observer,
    groups: Mutex<BTreeMap<String, Entry>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn primary(role: &RoleOptions) -> Option<&PrimaryOptions> {
    match role {
        RoleOptions::Primary(options) => Some(options),
        RoleOptions::Secondary(_) => None,
    }
}

impl Groups {
    /// `observer` hears of events from any thread and must not block.
    pub fn new(
        reactors: Arc<ReactorSet>,
        registry: Arc<Registry>,
        observer: impl Fn(&'static str, String) + Send + Sync + 'static,
    ) -> Groups {
        Groups { reactors, registry, observer: Arc::new(observer), groups: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all_fixed(&self) -> Vec<Arc<Fixed>> {
        self.lock().values().map(|entry| entry.fixed.clone()).collect()
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn reactors(&self) -> &Arc<ReactorSet> {
        &self.reactors
    }

    /// A volume has another disk below: a saved configuration names it.
    pub(super) fn rename_disk(&self, group: &str, volume: usize, bdev: &str) {
        if let Some(place) =
            self.lock().get_mut(group).and_then(|entry| entry.options.volumes.get_mut(volume))
        {
            place.bdev = bdev.to_string();
        }
    }

    pub(super) fn ask_primary(
        &self,
        fixed: &Arc<Fixed>,
        f: impl FnOnce(&mut PrimaryGroup, u64, &mut Vec<GroupOutput>) + Send + 'static,
    ) -> Result<(), ReplicationError> {
        self.ask(fixed, SOON, |home, command| home.primary(|group, out| f(group, command, out)))?;
        Ok(())
    }

    pub(super) fn fixed(&self, name: &str) -> Result<Arc<Fixed>, ReplicationError> {
        let found = self.lock().get(name).map(|entry| entry.fixed.clone());
        found.ok_or_else(|| ReplicationError::NotFound(name.to_string()))
    }

    /// What made each group, in the order of their names.
    pub fn options(&self) -> Vec<GroupOptions> {
        let options = |entry: &Entry| {
            let promoted = entry.fixed.promoted_generation.load(Ordering::Relaxed);
            let promoted_generation = (promoted > 0).then_some(Generation(promoted));
            GroupOptions { promoted_generation, ..entry.options.clone() }
        };
        self.lock().values().map(options).collect()
    }

    fn check(&self, options: &GroupOptions) -> Result<(), ReplicationError> {
        let groups = self.lock();
        if groups.contains_key(&options.name) {
            return Err(ReplicationError::Exists(options.name.clone()));
        }
        let invalid = |text: String| Err(ReplicationError::Invalid(text));
        let limit = crate::replication::link::wire::NAME_BYTES_MAX;
        let names = options.volumes.iter().map(|v| &v.name).chain([&options.name]);
        if let Some(name) = names.into_iter().find(|name| name.is_empty() || name.len() > limit) {
            return invalid(format!("`{name}`: names have 1 to {limit} bytes"));
        }
        if groups.len() >= MAX_GROUPS {
            return invalid(format!("a node has at most {MAX_GROUPS} groups"));
        }
        if options.volumes.is_empty() || options.volumes.len() > MAX_VOLUMES {
            return invalid(format!("a group has 1 to {MAX_VOLUMES} volumes"));
        }
        if let RoleOptions::Secondary(secondary) = &options.role {
            let granule = secondary.granule_bytes;
            if !granule.is_power_of_two() || !(512..=GRANULE_MAX).contains(&granule) {
                return invalid("granule_kb must be a power of two from 1 to 1024".to_string());
            }
            if secondary.history_epochs > 0 && !secondary.disk_buffer {
                return invalid("history_epochs needs a disk buffer: set disk_buffer to true".to_string());
            }
            if secondary.journal.is_some() && !secondary.disk_buffer {
                return invalid("buffer_journal is for a disk buffer: set disk_buffer to true".to_string());
            }
            if secondary.disk_buffer && secondary.buffer_limit_bytes == 0 {
                return invalid("buffer_limit_mb must not be 0".to_string());
            }
        }
        Ok(())
    }

    /// Makes a group and its volumes. Nothing is replicated, and no host is served, before it is started.
    pub fn create(&self, options: GroupOptions) -> Result<(), ReplicationError> {
        self.check(&options)?;
        let claimant = format!("replication group {}", options.name);
        let mut bases: Vec<Arc<Bdev>> = Vec::new();
        let release = |bases: &[Arc<Bdev>]| bases.iter().for_each(|base| base.release());
        for volume in &options.volumes {
            let claimed =
                self.registry.get(&volume.bdev).and_then(|base| base.claim(&claimant).map(|()| base));
            match claimed {
                Ok(base) => bases.push(base),
                Err(error) => {
                    release(&bases);
                    return Err(error.into());
                }
            }
        }
        let made = self.make(&options, &bases);
        match made {
            Ok(fixed) => {
                self.lock().insert(options.name.clone(), Entry { fixed, options });
                Ok(())
            }
            Err(error) => {
                release(&bases);
                Err(error)
            }
        }
    }

    fn make(&self, options: &GroupOptions, bases: &[Arc<Bdev>]) -> Result<Arc<Fixed>, ReplicationError> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let mut store = Store::open(&options.metadata)?;
        let uuid = identity(&[&options.name]);
        let (mut record, node, blocks) = recorded::read(&store, uuid, options, bases)?;
        let (buffer, granule_bytes, limit) = match &options.role {
            RoleOptions::Secondary(s) => (s.disk_buffer, s.granule_bytes, s.buffer_limit_bytes),
            RoleOptions::Primary(_) => (false, bases.iter().map(|b| b.block_size()).max().unwrap_or(512), 0),
        };
        if let Some(base) = bases.iter().find(|base| base.block_size() > granule_bytes) {
            let text =
                format!("granules of {granule_bytes} bytes are smaller than the blocks of `{}`", base.name());
            return Err(ReplicationError::Invalid(text));
        }
        let recovered = recover(&mut store, uuid, options, bases, &self.registry, &self.reactors)?;
        let (journal, way) = recovered.map_or((None, Way::NotAsked), |(journal, way)| (Some(journal), way));
        if let Way::RolledBack { .. } = way {
            (record.journaled, record.inconsistent) = (true, false);
            // The peer knows what the disks lacked before they went back, and not what they lack now.
            record.disown();
        }
        let reactors = self.reactors.count() as u16;
        let share = |((volume, base), &blocks): ((&VolumeOptions, &Arc<Bdev>), &u64)| {
            VolumeShared::new(&volume.name, &options.name, base.clone(), blocks, reactors, granule_bytes)
        };
        let volumes: Vec<Arc<VolumeShared>> =
            options.volumes.iter().zip(bases).zip(&blocks).map(share).collect();
        let bdevs: Vec<Arc<Bdev>> = volumes
            .iter()
            .map(|volume| volume::create(volume.clone(), identity(&[&options.name, &volume.name])))
            .collect::<Result<_, _>>()?;
        let fixed = Arc::new(Fixed {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            name: options.name.clone(),
            uuid,
            node,
            role: options.role.clone(),
            volumes,
            bdevs,
            reactors,
            buffer,
            granule_bytes,
            quotas: Quotas { buffer: Arc::new(Quota::new(limit)), history: Arc::new(Quota::new(0)) },
            exports: Mutex::default(),
            journal,
            peer_timeout_ms: AtomicU32::new(options.peer_timeout_ms),
            observer: self.observer.clone(),
            watches: Mutex::default(),
            committed: AtomicU64::default(),
            promoted_generation: AtomicU64::default(),
        });
        fixed.note(record);
        let built = self.build(&fixed, store, record);
        match built {
            Ok(()) => {
                self.say(&fixed, way);
                Ok(fixed)
            }
            Err(error) => {
                self.tear_down(&fixed);
                Err(error)
            }
        }
    }

    /// What the start did with the journal.
    fn say(&self, fixed: &Arc<Fixed>, way: Way) {
        match way {
            Way::NotAsked => {}
            Way::RolledBack { committed, bytes } => {
                let text =
                    format!("rolled back to the checkpoint of epoch {committed}: {bytes} bytes undone");
                tracing::info!("group `{}`: {text}", fixed.name);
                fixed.tell("replication_rolled_back", text);
            }
            Way::NeedsSync(why) => {
                let text = format!(
                    "the volumes cannot be rolled back to the last checkpoint, and need a sync from the primary: {why}"
                );
                tracing::warn!("group `{}`: {text}", fixed.name);
                fixed.tell("replication_needs_sync", &text);
                let serial = fixed.serial;
                let note = move || {
                    if let Some(home) = home_of(serial) {
                        home.error.replace(Some(text));
                    }
                };
                if let Err(error) = self.reactors.call(HOME, SOON, note) {
                    tracing::error!("group `{}`: {error}", fixed.name);
                }
            }
        }
    }

    fn build(&self, fixed: &Arc<Fixed>, store: Store, record: GroupRecord) -> Result<(), ReplicationError> {
        let (serial, volumes) = (fixed.serial, fixed.volumes.clone());
        let shard = move || Shard::create(serial, &volumes, home::shard_listener(serial)).map(|_| ());
        self.reactors.call_all(SOON, shard)?.into_iter().collect::<Result<(), _>>()?;
        *lock(&fixed.watches) = sizes::watch(fixed, &self.reactors);
        let shared = fixed.clone();
        let install = move || -> Result<(), ReplicationError> {
            let no_memory =
                || ReplicationError::Invalid("no buffer memory for the group's record".to_string());
            let writer = store.into_writer().ok_or_else(no_memory)?;
            let machine = machine(&shared, record);
            let home = Home::install(shared.clone(), machine, writer);
            match &shared.role {
                RoleOptions::Secondary(options) => {
                    home.listen(options.listen)?;
                    shared.set_history(&home, options.history_epochs, options.history_limit_bytes);
                }
                RoleOptions::Primary(_) => {}
            }
            Ok(())
        };
        self.reactors.call(HOME, SOON, install)??;
        for bdev in &fixed.bdevs {
            let access = if fixed.is_primary() { Access::Optimized } else { Access::Inaccessible };
            bdev.set_access(access);
            self.registry.add(bdev.clone())?;
        }
        if record.promoted && !fixed.is_primary() {
            // It was promoted before the node ended: it goes on serving, and follows nobody.
            let (shared, generation) = (fixed.clone(), record.generation);
            let promote = move || {
                shard_of(shared.serial).is_some_and(|shard| {
                    shared.become_secondary(&shard, generation, shared.committed())
                        && shard.promote(Keep::Latest, generation).is_ok()
                })
            };
            self.reactors.call_all(SOON, promote)?;
            fixed.bdevs.iter().for_each(|bdev| bdev.set_access(Access::Optimized));
        }
        Ok(())
    }

    fn tear_down(&self, fixed: &Arc<Fixed>) {
        self.end_exports(fixed);
        for bdev in &fixed.bdevs {
            if self.registry.get(bdev.name()).is_ok_and(|known| known.serial() == bdev.serial())
                && let Err(error) = self.registry.pull_out(bdev, &self.reactors)
            {
                tracing::error!("group `{}`: removing `{}`: {error}", fixed.name, bdev.name());
            }
        }
        lock(&fixed.watches).clear();
        let serial = fixed.serial;
        let uninstall = move || {
            if let Some(home) = home_of(serial) {
                home.uninstall();
            }
        };
        let shared = fixed.clone();
        let destroy = move || {
            shared.forget_secondary();
            if let Some(shard) = shard_of(serial) {
                shard.destroy();
            }
        };
        let ended = self
            .reactors
            .call(HOME, SOON, uninstall)
            .and_then(|()| self.reactors.call_all(SOON, destroy).map(|_| ()));
        if let Err(error) = ended {
            tracing::error!("group `{}` did not end in order: {error}", fixed.name);
        }
        if let Some(journal) = &fixed.journal {
            journal.release();
        }
    }

    /// Ends a group: its volumes go away, its disks are free. The record stays in its file.
    pub fn delete(&self, name: &str) -> Result<(), ReplicationError> {
        let fixed = self.fixed(name)?;
        if let Some((bdev, claimant)) = fixed.bdevs.iter().find_map(|b| b.claimant().map(|c| (b, c))) {
            let name = bdev.name().to_string();
            return Err(crate::bdev::BdevError::Claimed { name, claimant }.into());
        }
        if let Some((name, claimant)) = Groups::export_in_use(&fixed) {
            return Err(crate::bdev::BdevError::Claimed { name, claimant }.into());
        }
        self.tear_down(&fixed);
        fixed.volumes.iter().for_each(|volume| volume.base().release());
        self.lock().remove(name);
        Ok(())
    }

    /// Ends every group in order: what is in flight ends, nothing new comes.
    pub fn delete_all(&self) {
        for fixed in self.all_fixed() {
            self.tear_down(&fixed);
            fixed.volumes.iter().for_each(|volume| volume.base().release());
            self.lock().remove(&fixed.name);
        }
    }

    pub(super) fn ask(
        &self,
        fixed: &Arc<Fixed>,
        deadline: Duration,
        f: impl FnOnce(&Home, u64) + Send + 'static,
    ) -> Result<(Success, Duration), ReplicationError> {
        let serial = fixed.serial;
        let outcome: CommandResult = self.reactors.ask(HOME, deadline + MARGIN, move |reply| {
            if let Some(home) = home_of(serial) {
                let command = home.command(reply);
                f(&home, command);
            }
        })?;
        outcome.map_err(|(error, detail)| match detail {
            Some(detail) => ReplicationError::Peer { error, detail },
            None => ReplicationError::Group(error),
        })
    }

    /// A primary: connects and brings the disks in step, as told, and waits at most `wait_ms` for the peer's answer; the
    /// attempts go on after that. A secondary: waits for its primary.
    pub fn start(&self, name: &str, sync: SyncMode, wait_ms: u32) -> Result<(), ReplicationError> {
        let fixed = self.fixed(name)?;
        sizes::check(&fixed)?;
        if let Some(options) = primary(&fixed.role) {
            let (serial, ack, policy) = (fixed.serial, options.ack, options.on_link_loss);
            let (copies, patience) = (copies(options), options.behind_after_ms);
            let on_disk_failure = options.on_disk_failure;
            let fresh = self.reactors.call(HOME, SOON, move || {
                home_of(serial).is_some_and(|home| !home.serving.swap(true, Ordering::Relaxed))
            })?;
            if fresh {
                let reactors = fixed.reactors;
                let serve = move || {
                    if let Some(shard) = shard_of(serial) {
                        shard.become_primary(ack, policy, on_disk_failure);
                        shard.set_copies(copies, reactors);
                        shard.set_patience(patience);
                    }
                };
                self.reactors.call_all(SOON, serve)?;
            }
        }
        self.ask(&fixed, Duration::from_millis(wait_ms.into()), move |home, command| {
            home.primary(|group, out| group.start(command, sync, wait_ms, out));
            home.secondary(|group, out| group.start(command, out));
        })?;
        Ok(())
    }

    /// Ends the session. With `failover` a secondary then serves what its own VM saw.
    pub fn stop(&self, name: &str, failover: bool) -> Result<(), ReplicationError> {
        let fixed = self.fixed(name)?;
        if failover && !fixed.is_primary() {
            return self.failover(name, Keep::Overlay).map(|_| ());
        }
        self.ask(&fixed, SOON, |home, command| {
            home.primary(|group, out| group.stop(command, out));
            home.secondary(|group, out| group.stop(command, out));
        })?;
        Ok(())
    }

    fn checkpoint(
        &self,
        name: &str,
        timeout_ms: Option<u32>,
        f: impl FnOnce(&mut PrimaryGroup, u64, &mut Vec<GroupOutput>) + Send + 'static,
    ) -> Result<(Epoch, Duration), ReplicationError> {
        let fixed = self.fixed(name)?;
        if !fixed.is_primary() {
            return Err(ReplicationError::Role(name.to_string(), "secondary"));
        }
        // The machine's own deadline is the one that counts; commit and abort use the group's.
        let longest = Duration::from_millis(u64::from(timeout_ms.unwrap_or(u32::MAX / 64)));
        match self.ask(&fixed, longest, |home, command| home.primary(|group, out| f(group, command, out)))? {
            (Success::Epoch(epoch), took) => Ok((epoch, took)),
            (_, took) => Ok((Epoch(0), took)),
        }
    }

    pub fn prepare_checkpoint(&self, name: &str, timeout_ms: Option<u32>) -> Result<Epoch, ReplicationError> {
        let prepared = self
            .checkpoint(name, timeout_ms, move |group, command, out| group.prepare(command, timeout_ms, out));
        Ok(prepared?.0)
    }

    pub fn commit_checkpoint(&self, name: &str, epoch: Epoch) -> Result<(), ReplicationError> {
        self.checkpoint(name, None, move |group, command, out| group.commit(command, epoch, out))?;
        Ok(())
    }

    pub fn abort_checkpoint(&self, name: &str, epoch: Epoch) -> Result<(), ReplicationError> {
        self.checkpoint(name, None, move |group, command, out| group.abort(command, epoch, out))?;
        Ok(())
    }

    /// Prepares and commits. Returns the epoch and how long it took.
    pub fn do_checkpoint(
        &self,
        name: &str,
        timeout_ms: Option<u32>,
    ) -> Result<(Epoch, Duration), ReplicationError> {
        self.checkpoint(name, timeout_ms, move |group, command, out| {
            group.do_checkpoint(command, timeout_ms, out)
        })
    }

    /// Makes a secondary the node that serves. Returns the new generation, and how long it took until hosts could write.
    pub fn failover(&self, name: &str, keep: Keep) -> Result<(Generation, Duration), ReplicationError> {
        let fixed = self.fixed(name)?;
        if fixed.is_primary() {
            return Err(ReplicationError::Role(name.to_string(), "primary"));
        }
        let promoted = self.ask(&fixed, FAILOVER_TIMEOUT, move |home, command| {
            home.secondary(|group, out| group.failover(command, keep, out));
        });
        match promoted? {
            (Success::Generation(generation), took) => Ok((generation, took)),
            (_, took) => Ok((Generation(0), took)),
        }
    }

    /// Begins to compare the nodes' disks, at most so many bytes a second.
    pub fn verify_start(&self, name: &str, rate_bytes: u64, repair: bool) -> Result<(), ReplicationError> {
        self.verify(name, move |group, command, out| group.verify_start(command, rate_bytes, repair, out))
    }

    pub fn verify_stop(&self, name: &str) -> Result<(), ReplicationError> {
        self.verify(name, |group, command, out| group.verify_stop(command, out))
    }

    fn verify(
        &self,
        name: &str,
        f: impl FnOnce(&mut PrimaryGroup, u64, &mut Vec<GroupOutput>) + Send + 'static,
    ) -> Result<(), ReplicationError> {
        let fixed = self.fixed(name)?;
        if !fixed.is_primary() {
            return Err(ReplicationError::Role(name.to_string(), "secondary"));
        }
        self.ask(&fixed, SOON, |home, command| home.primary(|group, out| f(group, command, out)))?;
        Ok(())
    }

    pub fn set_options(&self, name: &str, changes: Changes) -> Result<(), ReplicationError> {
        let fixed = self.fixed(name)?;
        let for_primary = changes.ack.is_some()
            || changes.on_link_loss.is_some()
            || changes.checkpoint_timeout_ms.is_some()
            || changes.checkpoint_interval_ms.is_some()
            || changes.behind_after_ms.is_some()
            || changes.has_copies();
        if for_primary && !fixed.is_primary() {
            return Err(ReplicationError::Role(name.to_string(), "secondary"));
        }
        let for_secondary = changes.buffer_limit_bytes.is_some()
            || changes.history_epochs.is_some()
            || changes.history_limit_bytes.is_some();
        if for_secondary && fixed.is_primary() {
            return Err(ReplicationError::Role(name.to_string(), "primary"));
        }
        if let Some(limit) = changes.buffer_limit_bytes {
            fixed.quotas.buffer.set_limit_bytes(limit);
        }
        if let Some(timeout) = changes.peer_timeout_ms {
            fixed.peer_timeout_ms.store(timeout, Ordering::Relaxed);
        }
        let for_history = changes.history_epochs.is_some() || changes.history_limit_bytes.is_some();
        if for_history && !fixed.buffer {
            let text = "the group keeps no disk buffer, so it has no history".to_string();
            return Err(ReplicationError::Invalid(text));
        }
        self.refuse_contradictions(name, &changes)?;
        let kept = self.lock().get_mut(name).map(|entry| {
            keep(&mut entry.options, changes);
            entry.options.role.clone()
        });
        let copies = kept.as_ref().and_then(primary).filter(|_| changes.has_copies()).map(copies);
        let history = match &kept {
            Some(RoleOptions::Secondary(s)) if for_history => Some((s.history_epochs, s.history_limit_bytes)),
            _ => None,
        };
        let (serial, shared) = (fixed.serial, fixed.clone());
        let apply = move || {
            let Some(home) = home_of(serial) else { return };
            if let Some((epochs, limit_bytes)) = history {
                shared.set_history(&home, epochs, limit_bytes);
            }
            home.primary(|group, out| {
                if let Some(timeout) = changes.checkpoint_timeout_ms {
                    group.set_timeouts(timeout, out);
                }
                if let Some(interval) = changes.checkpoint_interval_ms {
                    group.set_interval(interval, out);
                }
                if let Some(copies) = copies {
                    out.push(GroupOutput::ToStripes(ToStripes::SetCopies(copies)));
                }
                if let Some(patience) = changes.behind_after_ms {
                    out.push(GroupOutput::ToStripes(ToStripes::SetPatience(patience)));
                }
                if let Some(ack) = changes.ack {
                    out.push(GroupOutput::ToStripes(ToStripes::SetAck(ack)));
                }
                if let Some(policy) = changes.on_link_loss {
                    out.push(GroupOutput::ToStripes(ToStripes::SetOnLinkLoss(policy)));
                }
            });
        };
        self.reactors.call(HOME, SOON, apply)?;
        Ok(())
    }

    /// A peer that is left behind, and hosts that wait while it is away: it cannot be both.
    fn refuse_contradictions(&self, name: &str, changes: &Changes) -> Result<(), ReplicationError> {
        let mut wanted = match self.lock().get(name) {
            Some(entry) => entry.options.clone(),
            None => return Ok(()),
        };
        keep(&mut wanted, *changes);
        match primary(&wanted.role) {
            Some(options) => options.check(),
            None => Ok(()),
        }
    }

    /// All groups, or one, as they are now.
    pub fn info(&self, name: Option<&str>) -> Result<Vec<GroupInfo>, ReplicationError> {
        let wanted: Vec<(Arc<Fixed>, GroupOptions)> = match name {
            Some(name) => {
                let groups = self.lock();
                let entry = groups.get(name).ok_or_else(|| ReplicationError::NotFound(name.to_string()))?;
                vec![(entry.fixed.clone(), entry.options.clone())]
            }
            None => self.lock().values().map(|e| (e.fixed.clone(), e.options.clone())).collect(),
        };
        wanted.iter().map(|(fixed, options)| self.describe(fixed, options)).collect()
    }

    fn describe(&self, fixed: &Arc<Fixed>, options: &GroupOptions) -> Result<GroupInfo, ReplicationError> {
        let serial = fixed.serial;
        let usages: Vec<ShardUsage> = self
            .reactors
            .call_all(SOON, move || shard_of(serial).map(|shard| shard.usage()).unwrap_or_default())?;
        let at_home = move || {
            let home = home_of(serial)?;
            let error = home.faults.borrow().with(home.error.borrow().clone());
            let control = home.control.borrow();
            let sent = control.as_ref().map_or(0, |control| control.sent_bytes());
            let (state, promoted, newest, back) = match &*home.machine.borrow() {
                Machine::Primary(group) => (group.state().name(), true, group.open_epoch(), None),
                Machine::Secondary(group) => {
                    let (promoted, newest) = (group.record().promoted, group.record().newest);
                    (group.state_name(), promoted, newest, group.rolled_back_to())
                }
            };
            let sizes = home.known_peer_disks();
            let (syncing, verify) = (home.syncing_since(), home.verify_info());
            let split_brain = home.split_brain.borrow().clone();
            let progress = (syncing, verify, back, split_brain, home.disk_states());
            Some((state, promoted, newest, home.record(), error, control.is_some(), sent, sizes, progress))
        };
        let (state, is_primary, newest, record, error, connected, control_sent, peer_disks, progress) = self
            .reactors
            .call(HOME, SOON, at_home)?
            .ok_or_else(|| ReplicationError::NotFound(fixed.name.clone()))?;
        let (since, verify, back, split_brain, (disk_states, filling)) = progress;
        let state = if split_brain.is_some() { "split brain" } else { state };
        let error = split_brain.as_ref().map(|info| info.to_string()).or(error);
        let sum = |f: fn(&ShardUsage) -> u64| usages.iter().map(f).sum::<u64>();
        let paused = primary(&options.role).is_some_and(|options| options.resync_paused);
        let progress = |since| {
            let (left, equal) = (sum(|u| u.copy_left_bytes), sum(|u| u.copy_equal_bytes));
            SyncInfo::new(sum(|u| u.copy_bytes), left, equal, paused, since)
        };
        let sync = since.map(progress);
        let peers = peer_disks.into_iter().chain(std::iter::repeat(None));
        let mut volumes: Vec<VolumeInfo> =
            fixed.bdevs.iter().zip(&fixed.volumes).zip(peers).map(sizes::describe).collect();
        disks::describe(&mut volumes, &disk_states, sum(|u| u.fill_left_bytes), paused, filling);
        let total: u64 = fixed.bdevs.iter().map(|bdev| bdev.size_bytes()).sum();
        let verify = verify.map(|(info, took)| info.with_progress(took, sum(|u| u.verified_bytes), total));
        let differs = verify.as_ref().and_then(VerifyInfo::complaint);
        let error =
            faults::joined([disks::complaint(&volumes), sizes::complaint(&volumes).or(error)]).or(differs);
        let history = match &options.role {
            RoleOptions::Secondary(s) if s.history_epochs > 0 => {
                Some(self.describe_history(fixed, s.history_epochs)?)
            }
            _ => None,
        };
        let (ack, policy, peer) = match &options.role {
            RoleOptions::Primary(p) => (ack_name(p.ack), policy_name(p.on_link_loss), p.peer),
            RoleOptions::Secondary(s) => ("", "", s.listen),
        };
        Ok(GroupInfo {
            name: fixed.name.clone(),
            uuid: fixed.uuid,
            role: if is_primary { GroupRole::Primary } else { GroupRole::Secondary },
            state,
            epoch: newest.0,
            committed_epoch: record.committed.0,
            generation: record.generation.0,
            ack,
            on_link_loss: policy,
            peer_timeout_ms: options.peer_timeout_ms,
            volumes,
            peer: peer.to_string(),
            connected,
            sent_bytes: sum(|u| u.sent_bytes) + control_sent,
            lag_bytes: sum(|u| u.lag_bytes),
            dirty_bytes: sum(|u| u.dirty_bytes),
            buffer: BufferInfo {
                undo_bytes: sum(|u| u.undo_bytes),
                overlay_bytes: sum(|u| u.overlay_bytes),
                pinned_bytes: sum(|u| u.redo_bytes),
                limit_bytes: fixed.quotas.buffer.limit_bytes(),
            },
            history,
            journal: fixed.journal.as_ref().map(|journal| JournalInfo {
                journal: journal.place().to_string(),
                size_bytes: journal.size_bytes(),
                used_bytes: sum(|u| u.journal_bytes),
                rolled_back_to: back.map(|epoch| epoch.0),
            }),
            sync,
            verify,
            split_brain,
            error,
        })
    }
}

/// How the options want copies to be made.
fn copies(options: &PrimaryOptions) -> CopyOptions {
    CopyOptions {
        rate_bytes: Some(options.resync_rate_bytes).filter(|&rate| rate > 0),
        latency_target_us: Some(options.resync_latency_target_us).filter(|&target| target > 0),
        compare: options.resync_checksum,
        paused: options.resync_paused,
    }
}

/// Keeps changed options with those that made the group, so that a saved configuration has them.
fn keep(options: &mut GroupOptions, changes: Changes) {
    options.peer_timeout_ms = changes.peer_timeout_ms.unwrap_or(options.peer_timeout_ms);
    match &mut options.role {
        RoleOptions::Primary(primary) => {
            primary.ack = changes.ack.unwrap_or(primary.ack);
            primary.on_link_loss = changes.on_link_loss.unwrap_or(primary.on_link_loss);
            primary.checkpoint_timeout_ms =
                changes.checkpoint_timeout_ms.unwrap_or(primary.checkpoint_timeout_ms);
            primary.checkpoint_interval_ms =
                changes.checkpoint_interval_ms.unwrap_or(primary.checkpoint_interval_ms);
            primary.resync_rate_bytes = changes.resync_rate_bytes.unwrap_or(primary.resync_rate_bytes);
            primary.resync_latency_target_us =
                changes.resync_latency_target_us.unwrap_or(primary.resync_latency_target_us);
            primary.resync_checksum = changes.resync_checksum.unwrap_or(primary.resync_checksum);
            primary.behind_after_ms = changes.behind_after_ms.unwrap_or(primary.behind_after_ms);
            primary.resync_paused = changes.resync_paused.unwrap_or(primary.resync_paused);
        }
        RoleOptions::Secondary(secondary) => {
            secondary.buffer_limit_bytes = changes.buffer_limit_bytes.unwrap_or(secondary.buffer_limit_bytes);
            secondary.history_epochs = changes.history_epochs.unwrap_or(secondary.history_epochs);
            secondary.history_limit_bytes =
                changes.history_limit_bytes.unwrap_or(secondary.history_limit_bytes);
        }
    }
}

fn machine(fixed: &Fixed, record: GroupRecord) -> Machine {
    let mut machine = unnamed_machine(fixed, record);
    let seed = claim::nonce();
    match &mut machine {
        Machine::Primary(group) => group.seed_names(seed),
        Machine::Secondary(group) => group.seed_names(seed),
    }
    machine
}

fn unnamed_machine(fixed: &Fixed, record: GroupRecord) -> Machine {
    let milliseconds = |duration: Duration| duration.as_millis() as u32;
    let sizes = sizes::of(fixed);
    match &fixed.role {
        RoleOptions::Primary(options) => Machine::Primary(PrimaryGroup::new(
            PrimaryGroupConfig {
                reactors: fixed.reactors,
                checkpoint_timeout_ms: options.checkpoint_timeout_ms,
                checkpoint_interval_ms: options.checkpoint_interval_ms,
                begin_timeout_ms: milliseconds(BEGIN_TIMEOUT),
                on_disk_failure: options.on_disk_failure,
            },
            record,
            &sizes,
        )),
        RoleOptions::Secondary(_) => Machine::Secondary(SecondaryGroup::new(
            SecondaryGroupConfig {
                reactors: fixed.reactors,
                buffer: fixed.buffer,
                failover_timeout_ms: milliseconds(FAILOVER_TIMEOUT),
            },
            record,
            &sizes,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn options(role: RoleOptions) -> GroupOptions {
        GroupOptions {
            name: "g0".to_string(),
            volumes: Vec::new(),
            metadata: PathBuf::new(),
            role,
            peer_timeout_ms: PEER_TIMEOUT_MS,
            promoted_generation: None,
        }
    }

    fn on_primary(changes: Changes) -> (AckMode, OnLinkLoss, u32, u32, u32) {
        let mut options = options(RoleOptions::Primary(PrimaryOptions {
            peer: ([127, 0, 0, 1], 1).into(),
            ack: AckMode::Applied,
            on_link_loss: OnLinkLoss::Continue,
            checkpoint_timeout_ms: 10,
            checkpoint_interval_ms: 20,
            resync_rate_bytes: 0,
            resync_latency_target_us: 0,
            resync_checksum: false,
            resync_paused: false,
            behind_after_ms: None,
            on_disk_failure: OnDiskFailure::Report,
        }));
        keep(&mut options, changes);
        let peer_timeout_ms = options.peer_timeout_ms;
        let RoleOptions::Primary(p) = options.role else { panic!("the role changed") };
        (p.ack, p.on_link_loss, p.checkpoint_timeout_ms, p.checkpoint_interval_ms, peer_timeout_ms)
    }

    #[test]
    fn a_saved_configuration_has_what_was_changed_and_keeps_the_rest() {
        let before = (AckMode::Applied, OnLinkLoss::Continue, 10, 20, PEER_TIMEOUT_MS);
        let none = Changes::default();
        assert_eq!(on_primary(none), before);
        assert_eq!(
            on_primary(Changes { ack: Some(AckMode::Local), ..none }),
            (AckMode::Local, before.1, 10, 20, before.4)
        );
        assert_eq!(
            on_primary(Changes { on_link_loss: Some(OnLinkLoss::Block), ..none }),
            (before.0, OnLinkLoss::Block, 10, 20, before.4)
        );
        assert_eq!(on_primary(Changes { checkpoint_timeout_ms: Some(11), ..none }).2, 11);
        assert_eq!(on_primary(Changes { checkpoint_interval_ms: Some(0), ..none }).3, 0);
        assert_eq!(on_primary(Changes { peer_timeout_ms: Some(1234), ..none }).4, 1234);

        let mut options = options(RoleOptions::Secondary(SecondaryOptions {
            listen: ([127, 0, 0, 1], 1).into(),
            disk_buffer: true,
            buffer_limit_bytes: 1 << 20,
            granule_bytes: 4096,
            history_epochs: 0,
            history_limit_bytes: 1 << 20,
            journal: None,
        }));
        keep(
            &mut options,
            Changes { buffer_limit_bytes: Some(2 << 20), peer_timeout_ms: Some(1234), ..none },
        );
        assert_eq!(options.peer_timeout_ms, 1234);
        let RoleOptions::Secondary(secondary) = options.role else { panic!("the role changed") };
        assert_eq!((secondary.buffer_limit_bytes, secondary.granule_bytes), (2 << 20, 4096));
    }
}
