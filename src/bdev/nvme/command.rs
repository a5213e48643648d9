//! One command on its way through a queue, and what became of it.

use crate::env::{SgList, sg_len};
use crate::nvme::command::DataDirection;
use crate::nvme::{CompletionEntry, SglDescriptor, Status, SubmissionEntry};

/// A command with its data. The queue fills in the command identifier and the data pointer.
#[derive(Debug)]
pub struct Command {
    pub entry: SubmissionEntry,
    /// What to send, or where to receive.
    pub data: SgList,
    /// Taken from the opcode; tests of a target may say otherwise.
    pub direction: DataDirection,
}

impl Command {
    pub fn new(entry: SubmissionEntry, data: SgList) -> Command {
        Command { direction: entry.data_direction(), entry, data }
    }

    pub(super) fn sends_data(&self) -> bool {
        self.direction == DataDirection::HostToController && !self.data.is_empty()
    }

    /// The data pointer: in the capsule if it is sent and not longer than `in_capsule_bytes`, else the transport's.
    pub(super) fn sgl(&self, in_capsule_bytes: usize) -> SglDescriptor {
        let len = sg_len(&self.data) as u32;
        if self.sends_data() && len as usize <= in_capsule_bytes {
            SglDescriptor::in_capsule(len)
        } else {
            SglDescriptor::transport(len)
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Completed {
    /// The submitter's.
    pub tag: u64,
    /// The completion entry; `None` if the connection ended before it came.
    pub entry: Option<CompletionEntry>,
    /// Bytes received for the command.
    pub received: u32,
    /// The command's buffers: nobody uses them any more.
    pub data: SgList,
}

impl Completed {
    /// The status; "command aborted by host" if the connection ended before one came.
    pub fn status(&self) -> Status {
        self.entry.map_or(Status::HOST_ABORTED, |e| e.status())
    }
}
