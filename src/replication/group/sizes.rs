//! The sizes of a group's volumes: what the disks below tell, what the group machine makes of it, what an operator hears.

use std::sync::Arc;

use super::HOME;
use super::home::{Fixed, Home, Machine, home_of};
use super::options::{ReplicationError, VolumeInfo};
use crate::bdev::{Bdev, BdevEvent, WatchId};
use crate::reactor::{self, ReactorSet, parcel};
use crate::replication::core::{GroupEvent, Side, VolumeSize};
use crate::replication::volume::VolumeShared;

/// How long the control thread may take to hand a reactor something.
const SOON: std::time::Duration = std::time::Duration::from_secs(5);

/// Tells the group's home whenever the disk below one of its volumes changes its size.
pub(super) fn watch(fixed: &Arc<Fixed>, reactors: &Arc<ReactorSet>) -> Vec<Watch> {
    (0..)
        .zip(&fixed.volumes)
        .map(|(volume, below)| watch_one(fixed.serial, volume, &below.base(), reactors))
        .collect()
}

/// The same for one disk.
pub(super) fn watch_one(serial: u64, volume: u16, base: &Arc<Bdev>, reactors: &Arc<ReactorSet>) -> Watch {
    let reactors = Arc::downgrade(reactors);
    let id = base.watch(move |event| {
        if event != BdevEvent::Resized {
            return;
        }
        let look = move || {
            if let Some(home) = home_of(serial) {
                home.measure(volume);
            }
        };
        if reactor::in_reactor() {
            reactor::spawn_call(HOME, look);
        } else if let Some(reactors) = reactors.upgrade()
            && let Err(error) = reactors.post(HOME, parcel(look), SOON)
        {
            tracing::error!("a replication group was not told of its disk's new size: {error}");
        }
    });
    Watch { base: base.clone(), id }
}

/// On a disk, until it is dropped.
pub(super) struct Watch {
    base: Arc<Bdev>,
    id: WatchId,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.base.unwatch(self.id);
    }
}

impl Home {
    /// Looks again how large the disk below a volume is.
    pub(super) fn measure(&self, volume: u16) {
        let Some(below) = self.fixed.volumes.get(usize::from(volume)) else { return };
        let bytes = below.disk_bytes();
        self.primary(|group, out| group.disk_resized(volume, bytes, out));
        self.secondary(|group, out| group.disk_resized(volume, bytes, out));
    }

    /// The volume has this size for its hosts from now on.
    pub(super) fn resize(&self, volume: u16, bytes: u64) {
        let at = usize::from(volume);
        let (Some(bdev), Some(shared)) = (self.fixed.bdevs.get(at), self.fixed.volumes.get(at)) else {
            return;
        };
        let blocks = bytes / u64::from(bdev.block_size());
        shared.set_num_blocks(blocks);
        if bdev.num_blocks() == blocks {
            return;
        }
        match bdev.resize(blocks) {
            Ok(()) => {
                tracing::info!("volume `{}` has {blocks} blocks now", bdev.name());
                self.fixed.tell("replication_resized", format!("`{}` has {blocks} blocks now", bdev.name()));
            }
            Err(error) => tracing::error!("volume `{}` keeps its size: {error}", bdev.name()),
        }
    }

    pub(super) fn size_event(&self, event: GroupEvent) {
        let name = |volume: u16| self.fixed.volumes.get(usize::from(volume)).map_or("", |v| v.name.as_str());
        match event {
            GroupEvent::DiskGrew { volume, side } => {
                let (there, other) = places(side);
                let text = format!(
                    "the disk of volume `{}` grew {there}: the volume follows when that {other} has grown too and \
                     the pair is in step",
                    name(volume)
                );
                tracing::info!("group `{}`: {text}", self.fixed.name);
                self.fixed.tell("replication_disk_grew", text);
            }
            GroupEvent::DiskTooSmall { volume, side } => {
                let text = too_small(name(volume), side);
                tracing::error!("group `{}`: {text}", self.fixed.name);
                self.fixed.tell("replication_disk_too_small", text);
            }
            GroupEvent::GrowthFailed { volume, error } => {
                let text = format!("volume `{}` keeps its size: {error}", name(volume));
                tracing::warn!("group `{}`: {text}", self.fixed.name);
                self.fixed.tell("replication_resize_failed", text);
            }
            GroupEvent::GrowthHung { volume } => {
                let text = format!(
                    "the secondary has not taken on the new size of volume `{}` in time; look at its metadata file \
                     and its reactors",
                    name(volume)
                );
                tracing::warn!("group `{}`: {text}", self.fixed.name);
                self.fixed.tell("replication_resize_failed", text);
            }
            _ => {}
        }
    }

    /// The sizes of the peer's disks in bytes, as far as they are known.
    pub(super) fn known_peer_disks(&self) -> Vec<Option<u64>> {
        match &*self.machine.borrow() {
            Machine::Primary(group) => group.peer_disks().collect(),
            Machine::Secondary(_) => Vec::new(),
        }
    }
}

/// The sizes that a group's machine begins with.
pub(super) fn of(fixed: &Fixed) -> Vec<VolumeSize> {
    let size = |(bdev, below): (&Arc<Bdev>, &Arc<VolumeShared>)| VolumeSize {
        volume_bytes: bdev.size_bytes(),
        disk_bytes: below.disk_bytes(),
    };
    fixed.bdevs.iter().zip(&fixed.volumes).map(size).collect()
}

/// Refuses to start over a disk that shrank: what it lacks can be neither copied nor followed.
pub(super) fn check(fixed: &Fixed) -> Result<(), ReplicationError> {
    for below in &fixed.volumes {
        let (has, needs) = (below.base().num_blocks(), below.num_blocks());
        if has < needs {
            return Err(ReplicationError::Invalid(format!(
                "volume `{}` has {needs} blocks, and the disk `{}` only {has}: grow it to what it was",
                below.name,
                below.base().name()
            )));
        }
    }
    Ok(())
}

/// A volume as an operator sees it.
pub(super) fn describe(
    ((bdev, below), peer_disk): ((&Arc<Bdev>, &Arc<VolumeShared>), Option<u64>),
) -> VolumeInfo {
    let mut info = VolumeInfo {
        name: bdev.name().to_string(),
        bdev: below.base().name().to_string(),
        uuid: bdev.uuid(),
        num_blocks: bdev.num_blocks(),
        block_size: bdev.block_size(),
        base_num_blocks: below.base().num_blocks(),
        peer_base_num_blocks: peer_disk.map(|bytes| bytes / u64::from(bdev.block_size())),
        disk: "attached",
        fill: None,
        notice: None,
    };
    info.notice = notice(&info);
    info
}

fn too_small(name: &str, side: Side) -> String {
    format!(
        "the disk of volume `{name}` {} is smaller than the volume, whose end can be neither read nor written: grow it to \
         what it was, then start with sync `full`",
        places(side).0
    )
}

fn places(side: Side) -> (&'static str, &'static str) {
    match side {
        Side::Here => ("here", "on the peer"),
        Side::Peer => ("on the peer", "here"),
    }
}

/// What is wrong with the volumes' sizes, if anything.
pub(super) fn complaint(volumes: &[VolumeInfo]) -> Option<String> {
    volumes.iter().find_map(|volume| {
        let side = match volume {
            v if v.base_num_blocks < v.num_blocks => Side::Here,
            v if v.peer_base_num_blocks.is_some_and(|disk| disk < v.num_blocks) => Side::Peer,
            _ => return None,
        };
        Some(too_small(&volume.name, side))
    })
}

/// What an operator may do to make the volume larger.
pub(super) fn notice(info: &VolumeInfo) -> Option<String> {
    let peer = info.peer_base_num_blocks?;
    let (small, large) = (peer.min(info.base_num_blocks), peer.max(info.base_num_blocks));
    (large > info.num_blocks && small == info.num_blocks).then(|| {
        let place = if peer == small { "on the peer" } else { "here" };
        format!("grow the disk {place} to {large} blocks too, and the volume has them")
    })
}
