//! Abort (Base 5.1): ends a command of any queue of the controller early, if it still can be.

use super::queue::{Action, Queue};
use super::slot::Stage;
use crate::bdev::AbortOutcome;
use crate::nvme::{AdminOpcode, Status};

/// Dword 0 of Abort's completion, bit 0: the command was not aborted.
const NOT_ABORTED: u64 = 1;

impl Queue {
    /// Runs an Abort command on the admin queue; for a command of another queue it asks that queue's connection.
    pub fn run_abort(&mut self, slot: u16) {
        let d10 = self.slots[slot].entry.cdw10.get();
        let (sqid, cid) = (d10 as u16, (d10 >> 16) as u16);
        if sqid == 0 {
            let aborted = cid != self.slots[slot].cid() && self.abort_here(cid);
            return self.abort_answered(slot, aborted);
        }
        let connection = self.controller().and_then(|c| c.shared.io_connection(sqid));
        match connection {
            Some(connection) => self.actions.push(Action::AbortElsewhere { connection, cid, slot }),
            None => self.abort_answered(slot, false),
        }
    }

    /// Completes an Abort command with what became of it.
    pub fn abort_answered(&mut self, slot: u16, aborted: bool) {
        let ours = self
            .slots
            .get_used(slot)
            .is_some_and(|s| s.stage == Stage::Executing && s.entry.opcode == AdminOpcode::Abort as u8);
        if ours {
            self.complete_with(slot, Status::SUCCESS, if aborted { 0 } else { NOT_ABORTED });
        }
    }

    /// Aborts the command `cid` of this queue. False: there is none, or it is too far.
    pub fn abort_here(&mut self, cid: u16) -> bool {
        let Some(slot) = self.slots.find(cid) else { return false };
        match self.slots[slot].stage {
            Stage::WaitBuffer | Stage::WaitPartner => {
                self.complete(slot, Status::ABORTED_BY_REQUEST);
                true
            }
            Stage::WaitData => {
                // Its data is on the way and has to be received; then it ends.
                self.slots[slot].doomed = Some(Status::ABORTED_BY_REQUEST);
                true
            }
            Stage::Executing => self.abort_executing(slot),
            Stage::Free | Stage::Answered => false,
        }
    }

    fn abort_executing(&mut self, slot: u16) -> bool {
        if let Some(controller) = self.controller() {
            let Some(at) = controller.event_requests.iter().position(|&s| s == slot) else { return false };
            controller.event_requests.remove(at);
            self.complete(slot, Status::ABORTED_BY_REQUEST);
            return true;
        }
        let (nsid, io) = (self.slots[slot].entry.nsid.get(), self.slots[slot].io);
        let (Some(namespace), Some(io)) = (self.namespace(nsid), io) else { return false };
        // Asked: the device ends it one way or the other; its own completion tells the host.
        namespace.channel.abort(io) == AbortOutcome::Aborted
    }
}
