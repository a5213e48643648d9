//! How a volume grows: the primary's group machine decides, the secondary's follows.
//!
//! A volume's size is in the records of both nodes; the disk below may be larger. When both disks are, the volume takes
//! the smaller size of the two, in steps of which each may be the last one:
//!
//! 1. *Extend*: the secondary makes room on every reactor. Nobody sees anything of it.
//! 2. The primary copies what lies behind the volume's end, whatever it is, to the secondary. No host can write there
//!    yet, so one pass is enough, and no original of it is worth keeping.
//! 3. *Resize*: the secondary's record gets the new size, then its machines: from now on they keep originals there.
//! 4. The primary's record gets the new size, and only then its hosts.
//!
//! Invariants. What the primary's hosts see as the volume's size, the records of both nodes have, and every block of it
//! is in step or marked. A loss of the link before step 3 leaves both nodes with the old size, after it the secondary
//! has the new one: the next session gives it the primary's again. Sizes in a record never exceed what the primary's
//! disk and the secondary's had at that time, so that a legal pair finds together again. One volume grows at a time,
//! while the pair is in step and nothing else is copied.

use super::group::*;
use super::group_primary::{Out, PrimaryGroup, PrimaryState};

/// One durable write of the secondary, and a message to each of its reactors.
const GROWTH_TIMEOUT_MS: u32 = 10_000;

/// A volume as the primary's group knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sized {
    pub here: VolumeSize,
    /// 0 until the first session.
    peer_disk: u64,
    /// Not tried again before a disk's size changes.
    given_up: u64,
}

impl Sized {
    pub fn new(here: VolumeSize) -> Sized {
        Sized { here, peer_disk: 0, given_up: 0 }
    }

    /// The size that the volume could have.
    fn possible(&self) -> u64 {
        self.here.disk_bytes.min(self.peer_disk)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    Idle,
    Extending { volume: u16, bytes: u64 },
    Copying { volume: u16, bytes: u64, left: u16 },
    Resizing { volume: u16, bytes: u64 },
    Recording { volume: u16, bytes: u64 },
}

impl Growth {
    fn target(self) -> Option<(u16, u64)> {
        match self {
            Growth::Idle => None,
            Growth::Extending { volume, bytes }
            | Growth::Copying { volume, bytes, .. }
            | Growth::Resizing { volume, bytes }
            | Growth::Recording { volume, bytes } => Some((volume, bytes)),
        }
    }
}

impl PrimaryGroup {
    /// The sizes of the volumes, and of the disks below them.
    pub fn sizes(&self) -> impl Iterator<Item = VolumeSize> {
        self.volumes.iter().map(|volume| volume.here)
    }

    /// The size of the disk below each volume on the peer, as the last session knew it.
    pub fn peer_disks(&self) -> impl Iterator<Item = Option<u64>> {
        self.volumes.iter().map(|volume| Some(volume.peer_disk).filter(|&bytes| bytes > 0))
    }

    /// What the record has to say of the volumes' sizes.
    pub(super) fn recorded_bytes(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.volumes.iter().map(|volume| volume.here.volume_bytes).collect();
        if let Growth::Recording { volume, bytes } = self.growth
            && let Some(size) = all.get_mut(usize::from(volume))
        {
            *size = bytes;
        }
        all
    }

    /// What the peer said of itself when the session began; `false` if it lacks the end of a volume.
    pub(super) fn meet(&mut self, peers: &[VolumeSize]) -> bool {
        let mut whole = true;
        for (volume, peer) in self.volumes.iter_mut().zip(peers) {
            volume.peer_disk = peer.disk_bytes;
            volume.given_up = 0;
            whole &= peer.volume_bytes >= volume.here.volume_bytes;
        }
        whole
    }

    /// The disk below a volume has another size.
    pub fn disk_resized(&mut self, volume: u16, bytes: u64, out: &mut Out) {
        self.disk_changed(volume, bytes, Side::Here, out);
    }

    pub(super) fn peer_disk_resized(&mut self, volume: u16, bytes: u64, out: &mut Out) {
        self.disk_changed(volume, bytes, Side::Peer, out);
    }

    fn disk_changed(&mut self, volume: u16, bytes: u64, side: Side, out: &mut Out) {
        let Some(sized) = self.volumes.get_mut(usize::from(volume)) else { return };
        let place = match side {
            Side::Here => &mut sized.here.disk_bytes,
            Side::Peer => &mut sized.peer_disk,
        };
        if std::mem::replace(place, bytes) == bytes {
            return;
        }
        sized.given_up = 0;
        let (size, possible) = (sized.here.volume_bytes, sized.possible());
        if bytes < size {
            out.push(GroupOutput::Event(GroupEvent::DiskTooSmall { volume, side }));
        } else if bytes > size && possible <= size {
            out.push(GroupOutput::Event(GroupEvent::DiskGrew { volume, side }));
        }
        self.grow(out);
    }

    /// Begins to grow a volume that can, if nothing is in the way.
    pub(super) fn grow(&mut self, out: &mut Out) {
        if self.state() != PrimaryState::Running || self.growth != Growth::Idle || self.copies_left > 0 {
            return;
        }
        if self.leans() {
            return;
        }
        if self.repair(out) {
            return;
        }
        let can =
            |sized: &Sized| sized.possible() > sized.here.volume_bytes && sized.possible() != sized.given_up;
        let Some(at) = self.volumes.iter().position(can) else { return };
        let (volume, bytes) = (at as u16, self.volumes[at].possible());
        self.growth = Growth::Extending { volume, bytes };
        self.timers.arm(Timer::Growth, GROWTH_TIMEOUT_MS, out);
        out.push(GroupOutput::Send(Control::Extend { volume, bytes }));
    }

    /// The secondary's answer: it has made room.
    pub(super) fn extended_there(&mut self, volume: u16, bytes: u64, out: &mut Out) {
        let Growth::Extending { volume: asked, bytes: wanted } = self.growth else { return };
        if asked != volume {
            return;
        }
        if bytes != wanted {
            return self.give_up(GroupError::PeerKeepsSize(bytes), out);
        }
        self.timers.cancel(Timer::Growth);
        self.growth = Growth::Copying { volume, bytes, left: self.reactors() };
        out.push(GroupOutput::ToStripes(ToStripes::Extend { volume, bytes }));
    }

    /// One more reactor's machine of the growing volume has copied what it owns of the new end.
    pub fn extended(&mut self, volume: u16, out: &mut Out) {
        let Growth::Copying { volume: growing, bytes, left } = &mut self.growth else { return };
        if *growing != volume {
            return;
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let bytes = *bytes;
        self.growth = Growth::Resizing { volume, bytes };
        self.timers.arm(Timer::Growth, GROWTH_TIMEOUT_MS, out);
        out.push(GroupOutput::Send(Control::Resize { volume, bytes }));
    }

    /// The secondary's answer: its record has the new size.
    pub(super) fn resized_there(&mut self, volume: u16, bytes: u64, out: &mut Out) {
        let Growth::Resizing { volume: asked, bytes: wanted } = self.growth else { return };
        if asked != volume {
            return;
        }
        if bytes != wanted {
            return self.give_up(GroupError::PeerKeepsSize(bytes), out);
        }
        self.timers.cancel(Timer::Growth);
        self.growth = Growth::Recording { volume, bytes };
        self.persist(out);
    }

    /// The record that was asked for last was written, or could not be.
    pub(super) fn recorded(&mut self, ok: bool, out: &mut Out) {
        let Growth::Recording { volume, bytes } = self.growth else { return };
        if !ok {
            return self.give_up(GroupError::Metadata, out);
        }
        self.growth = Growth::Idle;
        if let Some(sized) = self.volumes.get_mut(usize::from(volume)) {
            sized.here.volume_bytes = bytes;
        }
        out.push(GroupOutput::ToStripes(ToStripes::Resize { volume, bytes }));
        out.push(GroupOutput::Resize { volume, bytes });
        self.grow(out);
    }

    /// The copy of the new end could not read its source.
    pub(super) fn source_failed(&mut self, out: &mut Out) {
        if matches!(self.growth, Growth::Copying { .. }) {
            self.give_up(GroupError::Source, out);
        }
    }

    fn give_up(&mut self, error: GroupError, out: &mut Out) {
        self.timers.cancel(Timer::Growth);
        let Some((volume, bytes)) = std::mem::replace(&mut self.growth, Growth::Idle).target() else {
            return;
        };
        if let Some(sized) = self.volumes.get_mut(usize::from(volume)) {
            sized.given_up = bytes;
        }
        out.push(GroupOutput::Event(GroupEvent::GrowthFailed { volume, error }));
        self.grow(out);
    }

    pub(super) fn growth_hangs(&self, out: &mut Out) {
        // A late answer is as good; if the peer is gone, the link's own deadline ends it.
        if let Some((volume, _)) = self.growth.target() {
            out.push(GroupOutput::Event(GroupEvent::GrowthHung { volume }));
        }
    }

    /// The session is over. What both records are about to have goes on.
    pub(super) fn end_growth(&mut self) {
        self.timers.cancel(Timer::Growth);
        if !matches!(self.growth, Growth::Recording { .. }) {
            self.growth = Growth::Idle;
        }
    }
}
