//! Disks of a primary that failed: what an operator hears, and how a replacement comes below a volume.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::HOME;
use super::faults::Fault;
use super::home::{Fixed, Home, Machine};
use super::list::Groups;
use super::options::{ReplicationError, SyncInfo, VolumeInfo};
use super::sizes;
use crate::bdev::Bdev;
use crate::env::clock;
use crate::replication::core::{DiskState, GroupEvent};
use crate::replication::volume::{VolumeShared, shard_of};

/// How long a reactor may take for something that waits for nothing.
const SOON: Duration = Duration::from_secs(5);

impl Home {
    pub(super) fn disk_event(&self, event: GroupEvent) {
        let name = |volume: u16| self.fixed.bdevs.get(usize::from(volume)).map_or("?", |bdev| bdev.name());
        let tell = |kind: &'static str, text: String| {
            tracing::warn!("group `{}`: {text}", self.fixed.name);
            self.fixed.tell(kind, text);
        };
        match event {
            GroupEvent::DiskDetached { volume, failure } => {
                let what = failure.what();
                let text = format!("volume `{}`: the disk failed {what} and is detached", name(volume));
                tell("replication_disk_detached", text);
            }
            GroupEvent::FillStarted { volume } => {
                self.filling_since_ns.set(clock::now());
                self.faults.borrow_mut().clear(Fault::Disk);
                tracing::info!("group `{}`: the disk of `{}` is being filled", self.fixed.name, name(volume));
            }
            GroupEvent::FillFailed { volume, failure } => {
                let text = match failure {
                    Some(failure) => format!(
                        "volume `{}`: the replacement of its disk failed {}: attach another one",
                        name(volume),
                        failure.what()
                    ),
                    None => format!(
                        "volume `{}`: the peer's disk failed a read of what was to be on the replacement: make it work, \
                         then attach the replacement again",
                        name(volume)
                    ),
                };
                self.fault(Fault::Disk, "replication_disk_failed", text);
            }
            GroupEvent::DiskAttached { volume } => {
                self.faults.borrow_mut().clear(Fault::Disk);
                let text = format!("volume `{}`: the disk is filled, and is what is read", name(volume));
                tell("replication_disk_attached", text);
            }
            _ => {}
        }
    }

    /// The disk below each volume of a primary, and how long the one that is being filled has been.
    pub(super) fn disk_states(&self) -> (Vec<DiskState>, Duration) {
        let states = match &*self.machine.borrow() {
            Machine::Primary(group) => group.disk_states().to_vec(),
            Machine::Secondary(_) => Vec::new(),
        };
        (states, Duration::from_nanos(clock::now().saturating_sub(self.filling_since_ns.get())))
    }
}

/// Says of each volume how its disk is; `left_bytes` is what is left to fill.
pub(super) fn describe(
    volumes: &mut [VolumeInfo],
    states: &[DiskState],
    left_bytes: u64,
    paused: bool,
    since: Duration,
) {
    for (volume, state) in volumes.iter_mut().zip(states) {
        volume.disk = match state {
            DiskState::Attached => "attached",
            DiskState::Detached { .. } => "detached",
            DiskState::Filling { .. } | DiskState::Filled => "filling",
        };
        if volume.disk == "filling" {
            let total = volume.num_blocks * u64::from(volume.block_size);
            volume.fill = Some(SyncInfo::new(total, left_bytes.min(total), 0, paused, since));
        }
    }
}

/// What is wrong with the disks of a group, and what to do.
pub(super) fn complaint(volumes: &[VolumeInfo]) -> Option<String> {
    let volume = volumes.iter().find(|volume| volume.disk != "attached")?;
    let name = &volume.name;
    Some(match volume.disk {
        "filling" => format!("volume `{name}` has no disk on this node until its replacement is filled"),
        _ => format!(
            "volume `{name}` has no disk on this node: the peer alone has its content, and what is read and written goes there. \
             Attach a replacement with replication_disk_attach, or fail over to the peer"
        ),
    })
}

impl Groups {
    /// Puts a replacement below a volume whose disk was detached.
    pub fn disk_attach(&self, name: &str, volume: &str, bdev: &str) -> Result<(), ReplicationError> {
        let fixed = self.fixed(name)?;
        if !fixed.is_primary() {
            return Err(ReplicationError::Role(name.to_string(), "secondary"));
        }
        let at = fixed.volumes.iter().position(|shared| shared.name == volume);
        let at = at.ok_or_else(|| ReplicationError::NoVolume(volume.to_string()))?;
        let number = at as u16;
        self.check_detached(&fixed, number)?;
        let shared = &fixed.volumes[at];
        let (old, new) = (shared.base(), self.registry().get(bdev)?);
        let same = Arc::ptr_eq(&old, &new);
        check(shared, &new)?;
        let serial = fixed.serial;
        let disk = new.clone();
        let held = move || shard_of(serial).map_or(0, |shard| shard.at_disk(number, &disk));
        let held: usize = self.reactors().call_all(SOON, held)?.into_iter().sum();
        if held > 0 {
            return Err(ReplicationError::DiskBusy(bdev.to_string()));
        }
        if !same {
            new.claim(&format!("replication group {name}"))?;
            if let Err(error) = self.put_below(&fixed, number, &new) {
                let _ = self.put_below(&fixed, number, &old);
                new.release();
                return Err(error);
            }
            old.release();
            self.rename_disk(name, at, bdev);
        }
        self.ask_primary(&fixed, move |group, command, out| group.disk_attach(command, number, out))
    }

    fn check_detached(&self, fixed: &Arc<Fixed>, volume: u16) -> Result<(), ReplicationError> {
        use crate::replication::core::GroupError;
        let serial = fixed.serial;
        let states = self.reactors().call(HOME, SOON, move || {
            super::home::home_of(serial).map(|home| home.disk_states().0).unwrap_or_default()
        })?;
        match states.get(usize::from(volume)) {
            Some(DiskState::Detached { .. }) => Ok(()),
            _ => Err(GroupError::HasDisk.into()),
        }
    }

    /// Every reactor's I/O goes to this disk from now on; as yet there is none.
    fn put_below(&self, fixed: &Arc<Fixed>, volume: u16, base: &Arc<Bdev>) -> Result<(), ReplicationError> {
        let shared = &fixed.volumes[usize::from(volume)];
        shared.replace_base(base.clone());
        let serial = fixed.serial;
        let replace = move || shard_of(serial).map_or(Ok(()), |shard| shard.replace_base(volume));
        self.reactors().call_all(SOON, replace)?.into_iter().collect::<Result<(), _>>()?;
        let watch = sizes::watch_one(serial, volume, base, self.reactors());
        let mut watches = fixed.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = watches.get_mut(usize::from(volume)) {
            *place = watch;
        }
        Ok(())
    }
}

fn check(shared: &VolumeShared, new: &Bdev) -> Result<(), ReplicationError> {
    let wrong = |text: String| Err(ReplicationError::Invalid(text));
    if new.block_size() != shared.block_size() {
        let (has, needs) = (new.block_size(), shared.block_size());
        return wrong(format!("`{}` has blocks of {has} bytes, the volume of {needs}", new.name()));
    }
    if new.num_blocks() < shared.num_blocks() {
        let (has, needs) = (new.num_blocks(), shared.num_blocks());
        return wrong(format!("`{}` has {has} blocks, the volume {needs}: give a larger disk", new.name()));
    }
    Ok(())
}
