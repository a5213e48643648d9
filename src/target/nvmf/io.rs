//! I/O commands of the NVM command set: checked, turned into bdev I/Os, and their outcomes into status.

use std::rc::Rc;

use smallvec::SmallVec;
use zerocopy::FromBytes;

use super::queue::{Need, Queue, QueueNamespace};
use super::slot::Stage;
use crate::bdev::{Io, IoError, IoOwner, Op};
use crate::nvme::command::{DSM_DEALLOCATE, DSM_MAX_RANGES, DsmRange, WRITE_ZEROES_DEAC};
use crate::nvme::log::AnaState;
use crate::nvme::{Fuse, IoOpcode, Status, SubmissionEntry};

/// `Io::tag` of a queue's I/O: the slot, and for a fused pair the slot of its second half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoTag {
    pub slot: u16,
    pub second: Option<u16>,
}

const PAIR: u64 = 1 << 32;

impl From<IoTag> for u64 {
    fn from(tag: IoTag) -> u64 {
        let second = tag.second.map_or(0, |s| u64::from(s) << 16 | PAIR);
        u64::from(tag.slot) | second
    }
}

impl From<u64> for IoTag {
    fn from(tag: u64) -> IoTag {
        IoTag { slot: tag as u16, second: (tag & PAIR != 0).then_some((tag >> 16) as u16) }
    }
}

/// The status of a failed I/O: the one place that maps the block layer's errors.
pub fn status_of(error: IoError, op: Op) -> Status {
    match error {
        IoError::Device if op.modifies() => Status::WRITE_FAULT,
        IoError::Device if op == Op::Flush || op == Op::Reset => Status::INTERNAL_ERROR,
        IoError::Device => Status::UNRECOVERED_READ_ERROR,
        IoError::OutOfRange => Status::LBA_OUT_OF_RANGE.dnr(),
        IoError::Invalid => Status::INVALID_FIELD.dnr(),
        IoError::Unsupported => Status::INVALID_OPCODE.dnr(),
        IoError::Miscompare => Status::COMPARE_FAILURE,
        IoError::Aborted => Status::ABORTED_BY_REQUEST,
        IoError::Removed => Status::INVALID_NAMESPACE.dnr(),
        IoError::NoSpace => Status::CAPACITY_EXCEEDED.dnr(),
        IoError::WriteProtected => Status::WRITE_TO_READ_ONLY.dnr(),
        // A multipath host goes on by its other path.
        IoError::Inaccessible => Status::ANA_INACCESSIBLE,
        IoError::Disconnected => Status::INTERNAL_PATH_ERROR,
        IoError::TimedOut => Status::INTERNAL_ERROR,
    }
}

/// What a command to a namespace in this state ends with; `None`: it runs.
fn path_status(state: AnaState) -> Option<Status> {
    match state {
        AnaState::Optimized | AnaState::NonOptimized => None,
        AnaState::Inaccessible => Some(Status::ANA_INACCESSIBLE),
        AnaState::PersistentLoss => Some(Status::ANA_PERSISTENT_LOSS),
        AnaState::Change => Some(Status::ANA_TRANSITION),
    }
}

/// The block layer's operation of a command with a range.
fn op_of(opcode: IoOpcode) -> Option<Op> {
    Some(match opcode {
        IoOpcode::Read => Op::Read,
        IoOpcode::Write => Op::Write,
        IoOpcode::Compare => Op::Compare,
        IoOpcode::WriteZeroes => Op::WriteZeroes,
        _ => return None,
    })
}

impl QueueNamespace {
    /// Checks the range of a command; returns its length in bytes.
    fn check_range(&self, entry: &SubmissionEntry) -> Result<u64, Status> {
        let blocks = u64::from(entry.num_blocks());
        let end = entry.slba().checked_add(blocks).ok_or(Status::LBA_OUT_OF_RANGE.dnr())?;
        if end > self.view.bdev.num_blocks() {
            return Err(Status::LBA_OUT_OF_RANGE.dnr());
        }
        Ok(blocks << self.block_shift)
    }

    /// Whether the device deallocates by itself; the block layer would write zeroes instead, which nobody wants from
    /// a hint.
    fn deallocates(&self) -> bool {
        self.view.bdev.device().supports(Op::Unmap)
    }
}

impl Queue {
    /// The namespace, if I/O may go to it now.
    pub fn usable(&self, nsid: u32) -> Result<&QueueNamespace, Status> {
        let namespace = self.namespace(nsid).ok_or(Status::INVALID_NAMESPACE.dnr())?;
        match path_status(namespace.state()) {
            None => Ok(namespace),
            Some(status) => Err(status),
        }
    }

    /// Which data an I/O command needs.
    pub fn plan_io(&self, entry: &SubmissionEntry) -> Need {
        match self.check_io(entry) {
            Ok(need) => need,
            Err(status) => Need::Reject(status),
        }
    }

    fn check_io(&self, entry: &SubmissionEntry) -> Result<Need, Status> {
        let opcode = IoOpcode::from_wire(entry.opcode).ok_or(Status::INVALID_OPCODE.dnr())?;
        let namespace = self.usable(entry.nsid.get())?;
        // Data comes by SGL over Fabrics (Base 3.3.3.1).
        let psdt_ok = matches!(entry.psdt(), 1 | 2);
        let data = |len: u64, need: fn(u32) -> Need| {
            if len > u64::from(self.transport().max_io_size) || !psdt_ok {
                return Err(Status::INVALID_FIELD.dnr());
            }
            if u64::from(entry.sgl.length.get()) < len {
                return Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
            }
            Ok(need(len as u32))
        };
        match opcode {
            IoOpcode::Flush => Ok(Need::Nothing),
            IoOpcode::Read => data(namespace.check_range(entry)?, Need::ToHost),
            IoOpcode::Write | IoOpcode::Compare => data(namespace.check_range(entry)?, Need::FromHost),
            IoOpcode::WriteZeroes => {
                namespace.check_range(entry)?;
                Ok(Need::Nothing)
            }
            IoOpcode::DatasetManagement => {
                let ranges = u64::from(entry.cdw10.get() & 0xff) + 1;
                let deallocate = entry.cdw11.get() & DSM_DEALLOCATE != 0;
                // The other attributes are hints, and deallocation is one where the device cannot do it.
                if !deallocate || !namespace.deallocates() {
                    return Ok(Need::Nothing);
                }
                data(ranges * size_of::<DsmRange>() as u64, Need::FromHost)
            }
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    pub fn run_io(&mut self, slot: u16, owner: &Rc<dyn IoOwner>) {
        let entry = &self.slots[slot].entry;
        if entry.fuse() != Fuse::None {
            return self.run_half(slot, owner);
        }
        // Roles and namespaces may have changed while the data came.
        let (opcode, nsid) = (entry.opcode, entry.nsid.get());
        let channel = match self.usable(nsid) {
            Ok(namespace) => namespace.channel.clone(),
            Err(status) => return self.complete(slot, status),
        };
        let entry = &self.slots[slot].entry;
        let mut io = match IoOpcode::from_wire(opcode) {
            Some(IoOpcode::Flush) => Io::new(Op::Flush),
            Some(IoOpcode::DatasetManagement) => return self.run_dsm(slot, owner),
            Some(other) => match op_of(other) {
                Some(op) => {
                    // Zeroes that may be deallocated are what an unmap promises.
                    let deallocate = entry.cdw12.get() & WRITE_ZEROES_DEAC != 0;
                    let unmaps = channel.bdev().device().supports(Op::Unmap);
                    let op = if op == Op::WriteZeroes && deallocate && unmaps { Op::Unmap } else { op };
                    let mut io = Io::new(op);
                    io.lba = entry.slba();
                    io.num_blocks = entry.num_blocks().into();
                    io.fua = op.modifies() && entry.fua();
                    io
                }
                None => return self.complete(slot, Status::INVALID_OPCODE.dnr()),
            },
            None => return self.complete(slot, Status::INVALID_OPCODE.dnr()),
        };
        let s = &mut self.slots[slot];
        s.stage = Stage::Executing;
        if let Some(data) = s.data.take() {
            io.data.push(data);
        }
        io.tag = IoTag { slot, second: None }.into();
        s.outstanding = 1;
        self.in_flight += 1;
        let id = channel.submit(io, owner.clone());
        self.slots[slot].io = Some(id);
    }

    /// Deallocates every range of a Dataset Management command.
    fn run_dsm(&mut self, slot: u16, owner: &Rc<dyn IoOwner>) {
        let Some(data) = self.slots[slot].data.take() else {
            return self.complete(slot, Status::SUCCESS);
        };
        let nsid = self.slots[slot].entry.nsid.get();
        let len = self.slots[slot].data_len as usize;
        let Ok(namespace) = self.usable(nsid) else {
            return self.complete(slot, Status::INVALID_NAMESPACE.dnr());
        };
        let channel = namespace.channel.clone();
        let size = namespace.view.bdev.num_blocks();
        let ranges: SmallVec<[(u64, u64); 16]> = data.with(|bytes| {
            let ranges = <[DsmRange]>::ref_from_bytes(&bytes[..len]).unwrap_or(&[]);
            let pair = |r: &DsmRange| (r.starting_lba.get(), u64::from(r.length_blocks.get()));
            ranges.iter().take(DSM_MAX_RANGES).map(pair).filter(|r| r.1 > 0).collect()
        });
        if ranges.iter().any(|&(lba, blocks)| lba.checked_add(blocks).is_none_or(|end| end > size)) {
            return self.complete(slot, Status::LBA_OUT_OF_RANGE.dnr());
        }
        if ranges.is_empty() {
            return self.complete(slot, Status::SUCCESS);
        }
        self.slots[slot].stage = Stage::Executing;
        self.slots[slot].outstanding = ranges.len() as u16;
        self.in_flight += ranges.len() as u32;
        for (lba, blocks) in ranges {
            let mut io = Io::new(Op::Unmap);
            (io.lba, io.num_blocks) = (lba, blocks);
            io.tag = IoTag { slot, second: None }.into();
            let id = channel.submit(io, owner.clone());
            self.slots[slot].io = Some(id);
        }
    }

    /// A bdev I/O of this queue ended.
    pub fn io_done(&mut self, mut io: Box<Io>) {
        self.in_flight -= 1;
        let (tag, op, result) = (IoTag::from(io.tag), io.op, io.result);
        let data = io.data.pop();
        io.recycle();
        if let Some(second) = tag.second {
            return self.pair_done(tag.slot, second, result);
        }
        let slot = &mut self.slots[tag.slot];
        if slot.to_host {
            slot.data = data;
        }
        if let Err(error) = result {
            slot.failure = slot.failure.or(Some(status_of(error, op)));
        }
        slot.outstanding -= 1;
        if slot.outstanding == 0 {
            let status = slot.failure.unwrap_or(Status::SUCCESS);
            self.complete(tag.slot, status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_single_commands_and_pairs_read_back() {
        for tag in [
            IoTag { slot: 0, second: None },
            IoTag { slot: 65535, second: Some(0) },
            IoTag { slot: 3, second: Some(65535) },
        ] {
            assert_eq!(IoTag::from(u64::from(tag)), tag);
        }
    }

    #[test]
    fn a_role_that_forbids_io_is_a_path_error_without_do_not_retry() {
        for state in [AnaState::Inaccessible, AnaState::Change, AnaState::PersistentLoss] {
            let status = path_status(state).expect("refused");
            assert!(status.is_path_error() && !status.is_dnr());
        }
        let status = status_of(IoError::Inaccessible, Op::Write);
        assert!(status.is(Status::ANA_INACCESSIBLE) && !status.is_dnr());
    }
}
