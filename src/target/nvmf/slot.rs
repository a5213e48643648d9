//! The commands of a queue, in slots made once when the queue is connected.
//!
//! Invariants: a slot is on the free list or in use; one in use answers once and is then freed by the transport when
//! its answer went into a send. No allocation per command.

use crate::bdev::IoId;
use crate::env::Buf;
use crate::nvme::{CompletionEntry, Status, SubmissionEntry};

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Free,
    /// No buffer was free; the command waits its turn.
    WaitBuffer,
    /// An R2T is on its way or out, the host's data is coming.
    WaitData,
    /// One half of a fused pair, its data here, its partner not yet.
    WaitPartner,
    /// At the controller or the bdev; an Asynchronous Event Request rests here.
    Executing,
    /// Completed; its answer waits to be sent.
    Answered,
}

/// One command.
pub struct Slot {
    pub entry: SubmissionEntry,
    pub stage: Stage,
    /// Data of the command, either direction; `data_len` bytes of it count.
    pub data: Option<Buf>,
    pub data_len: u32,
    /// The data goes to the host.
    pub to_host: bool,
    /// Bytes received so far.
    pub received: u32,
    /// Running data digest of what was received, and whether a PDU's digest was wrong.
    pub digest: u32,
    pub digest_failed: bool,
    /// What the command ends with as soon as its data has arrived, instead of running.
    pub doomed: Option<Status>,
    /// The other half of a fused pair.
    pub partner: Option<u16>,
    /// At the bdev: its name there (of the last one when there are several), and how many are out.
    pub io: Option<IoId>,
    pub outstanding: u16,
    /// First error of several I/Os.
    pub failure: Option<Status>,
    pub completion: CompletionEntry,
}

impl Slot {
    fn new() -> Slot {
        Slot {
            entry: SubmissionEntry::default(),
            stage: Stage::Free,
            data: None,
            data_len: 0,
            to_host: false,
            received: 0,
            digest: 0,
            digest_failed: false,
            doomed: None,
            partner: None,
            io: None,
            outstanding: 0,
            failure: None,
            completion: CompletionEntry::default(),
        }
    }

    pub fn cid(&self) -> u16 {
        self.entry.cid.get()
    }
}

/// The slots of one queue.
pub struct Slots {
    all: Vec<Slot>,
    free: Vec<u16>,
}

impl Slots {
    pub fn new(count: u16) -> Slots {
        let mut slots = Slots { all: Vec::new(), free: Vec::new() };
        slots.grow(count);
        slots
    }

    /// Makes it `count` slots; those in use stay where they are.
    pub fn grow(&mut self, count: u16) {
        let have = self.all.len() as u16;
        self.all.resize_with(usize::from(count.max(have)), Slot::new);
        self.free.splice(0..0, (have..count.max(have)).rev());
    }

    /// A free slot for `entry`, or none: the host sent more than the queue holds.
    pub fn take(&mut self, entry: SubmissionEntry) -> Option<u16> {
        let index = self.free.pop()?;
        let slot = &mut self.all[usize::from(index)];
        debug_assert_eq!(slot.stage, Stage::Free);
        slot.entry = entry;
        slot.stage = Stage::Executing;
        slot.data = None;
        slot.data_len = 0;
        slot.to_host = false;
        slot.received = 0;
        slot.digest = 0;
        slot.digest_failed = false;
        slot.doomed = None;
        slot.partner = None;
        slot.io = None;
        slot.outstanding = 0;
        slot.failure = None;
        Some(index)
    }

    /// Puts a slot back.
    pub fn release(&mut self, index: u16) {
        let slot = &mut self.all[usize::from(index)];
        debug_assert_ne!(slot.stage, Stage::Free);
        slot.stage = Stage::Free;
        slot.data = None;
        self.free.push(index);
    }

    /// The slot of that number, if there is one in use: for numbers that come from a host.
    pub fn get_used(&mut self, index: u16) -> Option<&mut Slot> {
        self.all.get_mut(usize::from(index)).filter(|s| s.stage != Stage::Free)
    }

    /// The command of that identifier, not yet answered.
    pub fn find(&self, cid: u16) -> Option<u16> {
        let at = |s: &Slot| !matches!(s.stage, Stage::Free | Stage::Answered) && s.cid() == cid;
        self.all.iter().position(at).map(|i| i as u16)
    }
}

impl std::ops::Index<u16> for Slots {
    type Output = Slot;

    fn index(&self, index: u16) -> &Slot {
        &self.all[usize::from(index)]
    }
}

impl std::ops::IndexMut<u16> for Slots {
    fn index_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.all[usize::from(index)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_found_by_their_command_and_freed() {
        let mut slots = Slots::new(2);
        let a = slots.take(SubmissionEntry::new(2, 7)).expect("free");
        let b = slots.take(SubmissionEntry::new(2, 8)).expect("free");
        assert!(slots.take(SubmissionEntry::new(2, 9)).is_none());
        assert_eq!(slots.find(8), Some(b));
        slots.grow(4);
        assert!(slots.get_used(3).is_none() && slots.get_used(100).is_none());
        slots.release(a);
        assert_eq!(slots.find(7), None);
    }
}
