//! From a block-layer I/O to NVMe commands, and from an NVMe status to a block-layer error.

use zerocopy::IntoBytes;

use super::command::Command;
use super::facts::{ControllerFacts, MAX_COMMAND_BLOCKS, NamespaceFacts};
use super::sg;
use crate::bdev::{Io, IoError, Op};
use crate::env::SgList;
use crate::nvme::command::{DSM_DEALLOCATE, DsmRange, IO_FUA, WRITE_ZEROES_DEAC};
use crate::nvme::{IoOpcode, Status, SubmissionEntry};
use crate::reactor;

/// The next command of an I/O.
pub(super) enum Part {
    /// `whole`: it carries all of the I/O, with the I/O's own list of buffers.
    One {
        command: Command,
        blocks: u64,
        whole: bool,
    },
    Fused {
        compare: Command,
        write: Command,
        blocks: u64,
    },
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    NoMemory,
    Fails(IoError),
}

/// The blocks that an I/O's commands count up to; one for what has no range.
pub(super) fn blocks(io: &Io) -> u64 {
    if io.op.has_range() { io.num_blocks } else { 1 }
}

/// Whether the device does `op`.
pub(super) fn supports(op: Op, facts: &ControllerFacts, namespace: &NamespaceFacts) -> bool {
    match op {
        Op::Read | Op::Write | Op::Flush | Op::Reset => true,
        Op::WriteZeroes => facts.write_zeroes,
        // The block layer promises zeroes; a mere hint to deallocate does not.
        Op::Unmap => facts.write_zeroes || facts.deallocate && namespace.reads_zeroes,
        Op::Compare => facts.compare,
        Op::CompareAndWrite => facts.compare_and_write,
    }
}

fn command(opcode: IoOpcode, namespace: &NamespaceFacts, lba: u64, blocks: u64) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(opcode as u8, 0);
    entry.nsid = namespace.nsid.into();
    entry.set_slba(lba);
    entry.set_num_blocks(blocks as u32);
    entry
}

/// Makes the command for what comes after the first `issued` blocks.
pub(super) fn next(
    io: &mut Io,
    issued: u64,
    namespace: &NamespaceFacts,
    facts: &ControllerFacts,
) -> Result<Part, Problem> {
    let left = blocks(io) - issued;
    let lba = io.lba + issued;
    let block_size = u64::from(namespace.block_size);
    let up_to = |bytes: u64| (bytes / block_size).clamp(1, MAX_COMMAND_BLOCKS).min(left);
    let plain = |entry| Command::new(entry, SgList::new());
    let opcode = match io.op {
        Op::Read => IoOpcode::Read,
        Op::Write => IoOpcode::Write,
        Op::Compare => IoOpcode::Compare,
        Op::Flush => {
            let mut entry = SubmissionEntry::new(IoOpcode::Flush as u8, 0);
            entry.nsid = namespace.nsid.into();
            return Ok(Part::One { command: plain(entry), blocks: 1, whole: true });
        }
        Op::WriteZeroes | Op::Unmap if facts.write_zeroes => {
            let blocks = up_to(facts.max_zeroes_bytes);
            let mut entry = command(IoOpcode::WriteZeroes, namespace, lba, blocks);
            let deallocate = io.op == Op::Unmap && namespace.zeroes_deallocate;
            let flags = if io.fua { IO_FUA } else { 0 } | if deallocate { WRITE_ZEROES_DEAC } else { 0 };
            entry.cdw12 = (entry.cdw12.get() | flags).into();
            return Ok(Part::One { command: plain(entry), blocks, whole: blocks == io.num_blocks });
        }
        Op::Unmap => return deallocate(lba, left, namespace),
        Op::CompareAndWrite => {
            let all = up_to(facts.max_transfer_bytes);
            if all < left {
                return Err(Problem::Fails(IoError::Invalid));
            }
            let mut write = command(IoOpcode::Write, namespace, lba, all);
            write.cdw12 = (write.cdw12.get() | if io.fua { IO_FUA } else { 0 }).into();
            let compare = command(IoOpcode::Compare, namespace, lba, all);
            return Ok(Part::Fused {
                compare: Command::new(compare, std::mem::take(&mut io.compare)),
                write: Command::new(write, std::mem::take(&mut io.data)),
                blocks: all,
            });
        }
        Op::WriteZeroes | Op::Reset => return Err(Problem::Fails(IoError::Unsupported)),
    };
    let blocks = up_to(facts.max_transfer_bytes);
    let mut entry = command(opcode, namespace, lba, blocks);
    if io.fua {
        entry.cdw12 = (entry.cdw12.get() | IO_FUA).into();
    }
    let whole = blocks == io.num_blocks;
    let data = if whole {
        std::mem::take(&mut io.data)
    } else {
        sg::range(&io.data, (issued * block_size) as usize, (blocks * block_size) as usize).collect()
    };
    Ok(Part::One { command: Command::new(entry, data), blocks, whole })
}

fn deallocate(lba: u64, left: u64, namespace: &NamespaceFacts) -> Result<Part, Problem> {
    let blocks = left.min(u64::from(u32::MAX));
    let range =
        DsmRange { attributes: 0.into(), length_blocks: (blocks as u32).into(), starting_lba: lba.into() };
    let buf = reactor::alloc(size_of::<DsmRange>()).ok_or(Problem::NoMemory)?;
    buf.write_at(0, range.as_bytes());
    let mut entry = SubmissionEntry::new(IoOpcode::DatasetManagement as u8, 0);
    entry.nsid = namespace.nsid.into();
    entry.cdw11 = DSM_DEALLOCATE.into();
    Ok(Part::One { command: Command::new(entry, SgList::from_iter([buf])), blocks, whole: false })
}

/// Whether the controller says that the same command may succeed a little later.
pub(super) fn is_worth_retrying(status: Status) -> bool {
    let passing =
        [Status::TRANSIENT_TRANSPORT_ERROR, Status::COMMAND_INTERRUPTED, Status::NAMESPACE_NOT_READY];
    !status.is_dnr() && passing.iter().any(|s| status.is(*s))
}

/// The block layer's word for a failed command; `None`: the connection ended before there was a status.
pub(super) fn error_of(status: Option<Status>) -> IoError {
    let Some(status) = status else { return IoError::Disconnected };
    let any = |list: &[Status]| list.iter().any(|s| status.is(*s));
    if status.is_path_error() {
        IoError::Inaccessible
    } else if any(&[Status::COMPARE_FAILURE]) {
        IoError::Miscompare
    } else if any(&[Status::LBA_OUT_OF_RANGE]) {
        IoError::OutOfRange
    } else if any(&[Status::INVALID_OPCODE]) {
        IoError::Unsupported
    } else if any(&[Status::INVALID_FIELD, Status::DATA_SGL_LENGTH_INVALID]) {
        IoError::Invalid
    } else if any(&[Status::INVALID_NAMESPACE]) {
        IoError::Removed
    } else if any(&[Status::CAPACITY_EXCEEDED]) {
        IoError::NoSpace
    } else if any(&[Status::WRITE_TO_READ_ONLY]) {
        IoError::WriteProtected
    } else if any(&[
        Status::ABORTED_BY_REQUEST,
        Status::ABORTED_SQ_DELETION,
        Status::ABORTED_FAILED_FUSED,
        Status::ABORTED_MISSING_FUSED,
    ]) {
        IoError::Aborted
    } else {
        IoError::Device
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Access;
    use crate::env::Buf;

    fn namespace() -> NamespaceFacts {
        NamespaceFacts {
            nsid: 3,
            block_size: 512,
            num_blocks: 1 << 20,
            uuid: None,
            ana_group: 1,
            access: Access::Optimized,
            reads_zeroes: true,
            zeroes_deallocate: true,
        }
    }

    fn facts() -> ControllerFacts {
        ControllerFacts {
            max_transfer_bytes: 4096,
            max_zeroes_bytes: u64::MAX,
            write_zeroes: true,
            ..Default::default()
        }
    }

    #[test]
    fn an_io_beyond_the_transfer_limit_is_cut_into_commands_that_cover_it() {
        let mut io = Io::new(Op::Write);
        (io.lba, io.num_blocks, io.fua) = (100, 20, true);
        io.data = [5120, 5120].iter().map(|&n| Buf::heap(n).expect("heap")).collect();
        let mut issued = 0;
        let mut seen = Vec::new();
        while issued < blocks(&io) {
            let part = next(&mut io, issued, &namespace(), &facts());
            let Ok(Part::One { command, blocks, whole }) = part else { panic!("one command") };
            assert!(!whole && command.entry.fua() && command.entry.nsid.get() == 3);
            assert_eq!(crate::env::sg_len(&command.data) as u64, blocks * 512);
            seen.push((command.entry.slba(), command.entry.num_blocks()));
            issued += blocks;
        }
        assert_eq!(seen, [(100, 8), (108, 8), (116, 4)]);
    }

    #[test]
    fn an_unmap_writes_zeroes_and_may_deallocate() {
        let mut io = Io::new(Op::Unmap);
        (io.lba, io.num_blocks) = (0, 100_000);
        let Ok(Part::One { command, blocks, .. }) = next(&mut io, 0, &namespace(), &facts()) else {
            panic!("one command")
        };
        assert_eq!((command.entry.opcode, blocks), (IoOpcode::WriteZeroes as u8, 65536));
        assert_ne!(command.entry.cdw12.get() & WRITE_ZEROES_DEAC, 0);
    }

    #[test]
    fn a_compare_and_write_that_one_command_cannot_carry_fails() {
        let mut io = Io::new(Op::CompareAndWrite);
        (io.lba, io.num_blocks) = (0, 9);
        let part = next(&mut io, 0, &namespace(), &facts());
        assert!(matches!(part, Err(Problem::Fails(IoError::Invalid))));
    }
}
