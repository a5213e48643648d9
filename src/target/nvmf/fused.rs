//! Fused operations (Base 3.4.2, NVM 2.1.6): Compare and Write as one atomic step.
//!
//! The two commands are adjacent in the submission queue: the second one is the very next command after the first.
//! Their data may come in any order. Either half without its partner ends with "missing fused command"; a half whose
//! partner failed by itself ends with "failed fused command".

use std::rc::Rc;

use super::io::{IoTag, status_of};
use super::queue::{FusedFirst, Need, Queue, Role};
use super::slot::Stage;
use crate::bdev::{Io, IoError, IoOwner, Op};
use crate::nvme::{Fuse, IoOpcode, Status};

impl Queue {
    /// Looks at a newly arrived command's part in a fused pair; may turn its need into a rejection.
    pub fn admit(&mut self, slot: u16, need: Need) -> Need {
        let entry = self.slots[slot].entry;
        let fuse = entry.fuse();
        if fuse == Fuse::None {
            if self.fused != FusedFirst::None {
                self.abandon_first();
            }
            return need;
        }
        if !matches!(self.role, Role::Io(_)) {
            return need;
        }
        match fuse {
            Fuse::First => {
                self.abandon_first();
                let rejected = match need {
                    Need::Reject(status) => Some(status),
                    _ if entry.opcode != IoOpcode::Compare as u8 => Some(Status::INVALID_FIELD.dnr()),
                    _ => None,
                };
                self.fused = if rejected.is_some() { FusedFirst::Failed } else { FusedFirst::Waiting(slot) };
                rejected.map_or(need, Need::Reject)
            }
            Fuse::Second => self.admit_second(slot, need),
            Fuse::None | Fuse::Reserved => Need::Reject(Status::INVALID_FIELD.dnr()),
        }
    }

    fn admit_second(&mut self, slot: u16, need: Need) -> Need {
        let first = match std::mem::replace(&mut self.fused, FusedFirst::None) {
            FusedFirst::None => return Need::Reject(Status::ABORTED_MISSING_FUSED.dnr()),
            FusedFirst::Failed => return Need::Reject(Status::ABORTED_FAILED_FUSED),
            FusedFirst::Waiting(first) => first,
        };
        let (a, b) = (&self.slots[first].entry, &self.slots[slot].entry);
        let same_range = a.nsid == b.nsid && a.slba() == b.slba() && a.num_blocks() == b.num_blocks();
        let rejected = match need {
            Need::Reject(status) => Some(status),
            _ if b.opcode != IoOpcode::Write as u8 || !same_range => Some(Status::INVALID_FIELD.dnr()),
            _ => None,
        };
        if let Some(status) = rejected {
            self.doom(first, Status::ABORTED_FAILED_FUSED);
            return Need::Reject(status);
        }
        if self.slots[first].doomed.is_some() {
            return Need::Reject(Status::ABORTED_FAILED_FUSED);
        }
        self.slots[first].partner = Some(slot);
        self.slots[slot].partner = Some(first);
        need
    }

    /// The first half's second did not follow.
    fn abandon_first(&mut self) {
        if let FusedFirst::Waiting(first) = std::mem::replace(&mut self.fused, FusedFirst::None) {
            self.doom(first, Status::ABORTED_MISSING_FUSED.dnr());
        }
    }

    /// Ends a half that has not begun, now or when its data has arrived.
    pub fn doom(&mut self, slot: u16, status: Status) {
        match self.slots[slot].stage {
            Stage::WaitPartner | Stage::WaitBuffer => self.complete(slot, status),
            Stage::WaitData => self.slots[slot].doomed = self.slots[slot].doomed.or(Some(status)),
            Stage::Free | Stage::Executing | Stage::Answered => {}
        }
    }

    /// A command that completed by itself takes its fused partner with it.
    pub fn unfuse(&mut self, slot: u16) {
        if self.fused == FusedFirst::Waiting(slot) {
            self.fused = FusedFirst::Failed;
        }
        if let Some(partner) = self.slots[slot].partner.take() {
            self.slots[partner].partner = None;
            self.doom(partner, Status::ABORTED_FAILED_FUSED);
        }
    }

    /// One half has its data: runs the pair if the other has it too.
    pub fn run_half(&mut self, slot: u16, owner: &Rc<dyn IoOwner>) {
        self.slots[slot].stage = Stage::WaitPartner;
        let Some(partner) = self.slots[slot].partner else { return };
        if self.slots[partner].stage != Stage::WaitPartner {
            return;
        }
        let (first, second) = match self.slots[slot].entry.fuse() {
            Fuse::First => (slot, partner),
            _ => (partner, slot),
        };
        let entry = self.slots[first].entry;
        let channel = match self.usable(entry.nsid.get()) {
            Ok(namespace) => namespace.channel.clone(),
            Err(status) => return self.complete(first, status),
        };
        let (Some(expected), Some(data)) = (self.slots[first].data.take(), self.slots[second].data.take())
        else {
            return self.complete(first, Status::INTERNAL_ERROR);
        };
        for half in [first, second] {
            self.slots[half].stage = Stage::Executing;
            self.slots[half].partner = None;
        }
        let mut io = Io::new(Op::CompareAndWrite);
        io.lba = entry.slba();
        io.num_blocks = entry.num_blocks().into();
        io.fua = self.slots[second].entry.fua();
        io.compare.push(expected);
        io.data.push(data);
        io.tag = IoTag { slot: first, second: Some(second) }.into();
        self.in_flight += 1;
        let id = channel.submit(io, owner.clone());
        self.slots[first].io = Some(id);
        self.slots[second].io = Some(id);
    }

    pub fn pair_done(&mut self, first: u16, second: u16, result: Result<(), IoError>) {
        let (a, b) = match result {
            Ok(()) => (Status::SUCCESS, Status::SUCCESS),
            Err(error) => (status_of(error, Op::CompareAndWrite), Status::ABORTED_FAILED_FUSED),
        };
        self.complete(first, a);
        self.complete(second, b);
    }
}
