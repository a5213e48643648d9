//! Earlier checkpoints of a group, for the control thread: listing them, showing them as bdevs, going back to one.
//!
//! Invariants. A bdev of an epoch is known to its group, which holds the epoch for it as far as the limits go, and takes it
//! away when the group ends. No host uses a node that took over while it goes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use uuid::Uuid;

use super::HOME;
use super::faults::Fault;
use super::home::{Fixed, Home, Machine, home_of};
use super::list::{Groups, SOON};
use super::options::*;
use crate::bdev::{Access, Bdev, BdevError};
use crate::replication::Epoch;
use crate::replication::core::{GroupError, GroupEvent, KeptEpoch, Success};
use crate::replication::volume;

/// The most checkpoints that are kept before the last one: each has a layer on every reactor for every volume.
pub const HISTORY_EPOCHS_MAX: u32 = 256;
/// The most bdevs of checkpoints of a group: one for each volume of a full restore, and some to look around.
const EXPORTS_MAX: usize = 128;

/// A checkpoint that can be shown.
#[derive(Clone, Debug, Serialize)]
pub struct EpochInfo {
    pub epoch: u64,
    /// When it was committed here, in ms since 1970; not known of one from before this group was made here.
    pub committed_unix_ms: Option<u64>,
    /// What keeping it costs; 0 for the last one, whose originals are in the disk buffer anyway.
    pub bytes: u64,
    /// The bdevs that show it.
    pub bdevs: Vec<String>,
}

/// The checkpoints of a group.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryInfo {
    /// Checkpoints that may be kept before the last one.
    pub history_epochs: u32,
    pub limit_bytes: u64,
    pub used_bytes: u64,
    /// Oldest first; the last is the last committed checkpoint.
    pub epochs: Vec<EpochInfo>,
}

/// A bdev that shows a checkpoint.
pub(super) struct Export {
    bdev: Arc<Bdev>,
    epoch: Epoch,
}

impl Home {
    /// A checkpoint was committed.
    pub(super) fn note_commit(&self, epoch: Epoch) {
        let Machine::Secondary(group) = &*self.machine.borrow() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = group.history();
        let mut times = self.commit_times.borrow_mut();
        times.insert(epoch, now.as_millis() as u64);
        times.retain(|&known, _| known == epoch || kept.iter().any(|kept| kept.epoch == known));
    }

    /// What became of the checkpoints that are kept.
    pub(super) fn history_event(&self, event: GroupEvent) {
        match event {
            GroupEvent::HistoryDropped(epoch) => self.fault(
                Fault::Checkpoint,
                "replication_history_dropped",
                format!(
                    "the checkpoint of epoch {epoch} was given up although a bdev shows it: history_limit_mb is used up"
                ),
            ),
            GroupEvent::HistoryLost(Epoch(u64::MAX)) => self.fault(
                Fault::Checkpoint,
                "replication_history_lost",
                "no earlier checkpoint can be shown any more: what was overwritten since could not be kept".to_string(),
            ),
            GroupEvent::HistoryLost(epoch) => self.fault(
                Fault::Checkpoint,
                "replication_history_lost",
                format!("checkpoints before epoch {epoch} cannot be shown any more: originals could not be kept"),
            ),
            GroupEvent::RolledBack(epoch) => {
                self.error.take();
                self.faults.borrow_mut().clear_all();
                let text = format!("rolled back to the checkpoint of epoch {epoch}");
                self.fixed.tell("replication_rolled_back", text);
            }
            _ => {}
        }
    }

    fn kept(&self) -> Vec<(KeptEpoch, Option<u64>)> {
        let Machine::Secondary(group) = &*self.machine.borrow() else { return Vec::new() };
        let times = self.commit_times.borrow();
        group.history().into_iter().map(|kept| (kept, times.get(&kept.epoch).copied())).collect()
    }
}

impl Fixed {
    /// Tells the group how much may be kept of earlier checkpoints.
    pub(super) fn set_history(&self, home: &Home, epochs: u32, limit_bytes: u64) {
        self.quotas.history.set_limit_bytes(limit_bytes);
        home.secondary(|group, out| group.set_history(epochs, limit_bytes, out));
    }
}

impl Groups {
    fn secondary(&self, name: &str) -> Result<Arc<Fixed>, ReplicationError> {
        let fixed = self.fixed(name)?;
        if fixed.is_primary() {
            return Err(ReplicationError::Role(name.to_string(), "primary"));
        }
        Ok(fixed)
    }

    /// The checkpoints that can be shown, and gone back to.
    pub fn history(&self, name: &str) -> Result<HistoryInfo, ReplicationError> {
        let fixed = self.secondary(name)?;
        let history_epochs = match self.options().into_iter().find(|options| options.name == name) {
            Some(GroupOptions { role: RoleOptions::Secondary(options), .. }) => options.history_epochs,
            _ => 0,
        };
        self.describe_history(&fixed, history_epochs)
    }

    pub(super) fn describe_history(
        &self,
        fixed: &Fixed,
        history_epochs: u32,
    ) -> Result<HistoryInfo, ReplicationError> {
        let serial = fixed.serial;
        let kept = self.reactors.call(HOME, SOON, move || home_of(serial).map(|home| home.kept()))?;
        let kept = kept.ok_or_else(|| ReplicationError::NotFound(fixed.name.clone()))?;
        let exports = fixed.exports();
        let bdevs = |epoch| {
            let of_it = exports.iter().filter(|export| export.epoch == epoch);
            of_it.map(|export| export.bdev.name().to_string()).collect()
        };
        let info = |(kept, committed_unix_ms): (KeptEpoch, _)| EpochInfo {
            epoch: kept.epoch.0,
            committed_unix_ms,
            bytes: kept.bytes,
            bdevs: bdevs(kept.epoch),
        };
        Ok(HistoryInfo {
            history_epochs,
            limit_bytes: fixed.quotas.history.limit_bytes(),
            used_bytes: fixed.quotas.history.used_bytes(),
            epochs: kept.into_iter().map(info).collect(),
        })
    }

    /// Makes a bdev that shows a volume as it was at the end of an epoch.
    pub fn export_epoch(
        &self,
        group: &str,
        volume: &str,
        epoch: Epoch,
        name: &str,
        uuid: Uuid,
    ) -> Result<(), ReplicationError> {
        let fixed = self.secondary(group)?;
        let shared = fixed.volumes.iter().find(|shared| shared.name == volume).ok_or_else(|| {
            ReplicationError::Invalid(format!("group `{group}` has no volume named `{volume}`"))
        })?;
        if fixed.exports().len() >= EXPORTS_MAX {
            let text = format!("group `{group}` has {EXPORTS_MAX} bdevs of checkpoints; delete one first");
            return Err(ReplicationError::Invalid(text));
        }
        let serial = fixed.serial;
        let hold = move || {
            let mut held = Err(GroupError::NotKept(epoch));
            if let Some(home) = home_of(serial) {
                home.secondary(|group, _| held = group.export(epoch));
            }
            held
        };
        self.reactors.call(HOME, SOON, hold)??;
        let made = volume::create_past(name, uuid, shared, epoch)
            .and_then(|bdev| self.registry.add(bdev.clone()).map(|()| bdev));
        match made {
            Ok(bdev) => {
                fixed.exports().push(Export { bdev, epoch });
                Ok(())
            }
            Err(error) => {
                self.let_go(&fixed, epoch);
                Err(error.into())
            }
        }
    }

    fn let_go(&self, fixed: &Fixed, epoch: Epoch) {
        let serial = fixed.serial;
        let let_go = move || {
            if let Some(home) = home_of(serial) {
                home.secondary(|group, out| group.end_export(epoch, out));
            }
        };
        if let Err(error) = self.reactors.call(HOME, SOON, let_go) {
            tracing::error!("group `{}` holds epoch {epoch} on: {error}", fixed.name);
        }
    }

    /// Deletes a bdev that [`Groups::export_epoch`] made.
    pub fn delete_export(&self, name: &str) -> Result<(), ReplicationError> {
        let is_it = |export: &Export| export.bdev.name() == name;
        let all = self.all_fixed();
        let Some(fixed) = all.into_iter().find(|fixed| fixed.exports().iter().any(is_it)) else {
            return Err(BdevError::NotFound(name.to_string()).into());
        };
        self.registry.remove(name, &self.reactors)?;
        let mut exports = fixed.exports();
        let gone = exports.iter().position(is_it).map(|at| exports.remove(at));
        drop(exports);
        if let Some(export) = gone {
            self.let_go(&fixed, export.epoch);
        }
        Ok(())
    }

    /// Whoever uses a bdev of one of the group's checkpoints.
    pub(super) fn export_in_use(fixed: &Fixed) -> Option<(String, String)> {
        let claimed = |export: &Export| export.bdev.claimant().map(|by| (export.bdev.name().to_string(), by));
        fixed.exports().iter().find_map(claimed)
    }

    /// The group ends: nothing shows its checkpoints any more.
    pub(super) fn end_exports(&self, fixed: &Fixed) {
        let exports = std::mem::take(&mut *fixed.exports());
        for export in exports {
            if let Err(error) = self.registry.pull_out(&export.bdev, &self.reactors) {
                tracing::error!("group `{}`: removing `{}`: {error}", fixed.name, export.bdev.name());
            }
        }
    }

    /// Makes all volumes of a secondary without a session what they were at the end of an epoch. When it returns they can
    /// be read so; the disks follow. `user` names who has a bdev's hosts, if anybody.
    pub fn roll_back(
        &self,
        name: &str,
        epoch: Epoch,
        user: impl Fn(&str) -> Option<String>,
    ) -> Result<Duration, ReplicationError> {
        let fixed = self.secondary(name)?;
        let promoted = fixed.promoted_generation.load(Ordering::Relaxed) > 0;
        if !promoted {
            return self.ask_roll_back(&fixed, epoch);
        }
        // Its hosts would go on with what they have in memory of a volume that is another one.
        let claimant = format!("the roll-back of group {name}");
        let mut claimed = Vec::new();
        let mut outcome = Ok(Duration::ZERO);
        for bdev in &fixed.bdevs {
            // Once it is claimed nobody exports it any more.
            let free = bdev.claim(&claimant).and_then(|()| {
                claimed.push(bdev);
                let name = bdev.name().to_string();
                user(&name).map_or(Ok(()), |claimant| Err(BdevError::Claimed { name, claimant }))
            });
            if let Err(error) = free {
                outcome = Err(error.into());
                break;
            }
        }
        if outcome.is_ok() {
            fixed.bdevs.iter().for_each(|bdev| bdev.set_access(Access::Inaccessible));
            outcome = self.ask_roll_back(&fixed, epoch);
            fixed.bdevs.iter().for_each(|bdev| bdev.set_access(Access::Optimized));
        }
        claimed.into_iter().for_each(|bdev| bdev.release());
        outcome
    }

    fn ask_roll_back(&self, fixed: &Arc<Fixed>, epoch: Epoch) -> Result<Duration, ReplicationError> {
        let done: (Success, Duration) = self.ask(fixed, FAILOVER_TIMEOUT, move |home, command| {
            home.secondary(|group, out| group.roll_back(command, epoch, out));
        })?;
        Ok(done.1)
    }
}
