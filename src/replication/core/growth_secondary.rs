//! The secondary's part in the growth of a volume: see `growth`.
//!
//! One record, and one thing at a time that all reactors carry out: so messages that come while a size is being taken
//! on wait for it, in their order, and so does a size while a commit is being written.

use super::group::*;
use super::group_secondary::{Out, Persisting, SecondaryGroup, SecondaryState, Spreading};

/// Messages that may wait. The primary has one step of a checkpoint and one of a growth under way, and may abort.
const WAITING_MAX: usize = 16;

fn is_size(message: &Control) -> bool {
    matches!(message, Control::Extend { .. } | Control::Resize { .. })
}

impl SecondaryGroup {
    /// The sizes of the volumes, and of the disks below them.
    pub fn sizes(&self) -> impl Iterator<Item = VolumeSize> {
        self.volumes.iter().copied()
    }

    fn is_resizing(&self) -> bool {
        matches!(self.persisting, Persisting::Resize { .. })
            || matches!(self.spreading, Spreading::Extend { .. } | Spreading::Resize { .. })
    }

    fn must_wait(&self, message: &Control) -> bool {
        self.is_resizing() || (is_size(message) && self.is_busy())
    }

    /// A message of the primary.
    pub fn message(&mut self, message: Control, out: &mut Out) {
        if self.waiting.is_empty() && !self.must_wait(&message) {
            return self.take(message, out);
        }
        if self.waiting.len() >= WAITING_MAX {
            return out.push(GroupOutput::Disconnect);
        }
        self.waiting.push_back(message);
    }

    /// What was in the way may be over.
    pub(super) fn next_message(&mut self, out: &mut Out) {
        while let Some(message) = self.waiting.front()
            && !self.must_wait(message)
        {
            if let Some(message) = self.waiting.pop_front() {
                self.take(message, out);
            }
        }
    }

    fn may_have(&self, volume: u16, bytes: u64) -> bool {
        let fits = |size: &VolumeSize| (size.volume_bytes..=size.disk_bytes).contains(&bytes);
        self.state() == SecondaryState::Following && self.volumes.get(usize::from(volume)).is_some_and(fits)
    }

    pub(super) fn volume_bytes(&self, volume: u16) -> u64 {
        self.volumes.get(usize::from(volume)).map_or(0, |size| size.volume_bytes)
    }

    /// The primary is about to copy what lies behind the volume's end.
    pub(super) fn extend(&mut self, volume: u16, bytes: u64, out: &mut Out) {
        if !self.may_have(volume, bytes) {
            let bytes = self.volume_bytes(volume);
            return out.push(GroupOutput::Send(Control::Extend { volume, bytes }));
        }
        self.spreading = Spreading::Extend { volume, bytes, left: self.reactors(), refused: false };
        out.push(GroupOutput::ToStripes(ToStripes::Extend { volume, bytes }));
    }

    /// Everything through the new end is in step.
    pub(super) fn resize(&mut self, volume: u16, bytes: u64, out: &mut Out) {
        if !self.may_have(volume, bytes) {
            let bytes = self.volume_bytes(volume);
            return out.push(GroupOutput::Send(Control::Resize { volume, bytes }));
        }
        let mut all: Vec<u64> = self.volumes.iter().map(|size| size.volume_bytes).collect();
        if let Some(size) = all.get_mut(usize::from(volume)) {
            *size = bytes;
        }
        self.pending_bytes = all;
        self.persist(self.record(), Persisting::Resize { volume }, out);
    }

    /// The record has the new size.
    pub(super) fn resize_recorded(&mut self, volume: u16, ok: bool, out: &mut Out) {
        let bytes = self.volume_bytes(volume);
        if ok {
            self.spreading = Spreading::Resize { volume, left: self.reactors() };
            out.push(GroupOutput::ToStripes(ToStripes::Resize { volume, bytes }));
        } else {
            self.answer(Control::Resize { volume, bytes }, out);
        }
    }

    /// Every reactor has the new size.
    pub(super) fn resized(&self, volume: u16, out: &mut Out) {
        let bytes = self.volume_bytes(volume);
        out.push(GroupOutput::Resize { volume, bytes });
        self.answer(Control::Resize { volume, bytes }, out);
    }

    /// A session began: the volumes have the primary's sizes.
    pub(super) fn take_sizes(&self, out: &mut Out) {
        for (volume, size) in (0..).zip(&self.volumes) {
            out.push(GroupOutput::Resize { volume, bytes: size.volume_bytes });
        }
    }

    /// Tells the primary what the disks have; it heard so in the handshake, and they may have changed since.
    pub(super) fn tell_disks(&self, out: &mut Out) {
        for (volume, size) in (0..).zip(&self.volumes) {
            self.answer(Control::DiskSize { volume, bytes: size.disk_bytes }, out);
        }
    }

    pub(super) fn answer(&self, answer: Control, out: &mut Out) {
        if self.is_connected() {
            out.push(GroupOutput::Send(answer));
        }
    }

    /// The disk below a volume has another size.
    pub fn disk_resized(&mut self, volume: u16, bytes: u64, out: &mut Out) {
        let Some(size) = self.volumes.get_mut(usize::from(volume)) else { return };
        if std::mem::replace(&mut size.disk_bytes, bytes) == bytes {
            return;
        }
        let side = Side::Here;
        if bytes < size.volume_bytes {
            out.push(GroupOutput::Event(GroupEvent::DiskTooSmall { volume, side }));
        } else if bytes > size.volume_bytes {
            out.push(GroupOutput::Event(GroupEvent::DiskGrew { volume, side }));
        }
        self.answer(Control::DiskSize { volume, bytes }, out);
    }
}
