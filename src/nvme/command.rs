//! Submission queue entries (Base 3.3.3.1, figures 86 to 91) and the opcodes of the three command sets.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{SglDescriptor, assert_layout};

/// The 64 bytes of a command, common to all command sets.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SubmissionEntry {
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    pub cid: U16,
    /// Namespace identifier; for a fabrics command its low byte is FCTYPE.
    pub nsid: U32,
    pub cdw2: U32,
    pub cdw3: U32,
    pub mptr: U64,
    pub sgl: SglDescriptor,
    pub cdw10: U32,
    pub cdw11: U32,
    pub cdw12: U32,
    pub cdw13: U32,
    pub cdw14: U32,
    pub cdw15: U32,
}
assert_layout!(SubmissionEntry, 64, cid @ 2, nsid @ 4, mptr @ 16, sgl @ 24, cdw10 @ 40, cdw15 @ 60);

/// FUSE, bits 9:8 of dword 0 (Base 3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    None,
    First,
    Second,
    Reserved,
}

/// PSDT value for "SGL, metadata pointer is an address": the only one Fabrics allows (Base 3.3.3.1).
pub const PSDT_SGL: u8 = 1;

impl SubmissionEntry {
    /// A command that uses SGLs, as every command over Fabrics does.
    pub fn new(opcode: u8, cid: u16) -> SubmissionEntry {
        SubmissionEntry { opcode, flags: PSDT_SGL << 6, cid: cid.into(), ..Default::default() }
    }

    /// A fabrics command of the given type (Base 6).
    pub fn fabrics(fctype: FabricsType, cid: u16) -> SubmissionEntry {
        let mut entry = Self::new(AdminOpcode::FABRICS, cid);
        entry.nsid = u32::from(fctype as u8).into();
        entry
    }

    pub fn fuse(&self) -> Fuse {
        match self.flags & 3 {
            0 => Fuse::None,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    pub fn set_fuse(&mut self, fuse: Fuse) {
        self.flags = self.flags & !3 | fuse as u8;
    }

    pub fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// FCTYPE of a fabrics command (byte 4).
    pub fn fctype(&self) -> u8 {
        self.nsid.get() as u8
    }

    /// Starting LBA, dwords 10 and 11 of the NVM commands (NVM 3.2).
    pub fn slba(&self) -> u64 {
        u64::from(self.cdw11.get()) << 32 | u64::from(self.cdw10.get())
    }

    pub fn set_slba(&mut self, lba: u64) {
        self.cdw10 = (lba as u32).into();
        self.cdw11 = ((lba >> 32) as u32).into();
    }

    /// Number of blocks; on the wire it is 0's based (dword 12 bits 15:0).
    pub fn num_blocks(&self) -> u32 {
        (self.cdw12.get() & 0xffff) + 1
    }

    /// Sets NLB from a count of 1 to 65536 blocks; keeps the flags of dword 12.
    pub fn set_num_blocks(&mut self, blocks: u32) {
        self.cdw12 = (self.cdw12.get() & !0xffff | blocks.saturating_sub(1) & 0xffff).into();
    }

    /// Force unit access (dword 12 bit 30).
    pub fn fua(&self) -> bool {
        self.cdw12.get() & IO_FUA != 0
    }
}

/// Dword 12 of Read, Write, Compare, Write Zeroes: limited retry, force unit access.
pub const IO_LIMITED_RETRY: u32 = 1 << 31;
pub const IO_FUA: u32 = 1 << 30;
/// Dword 12 of Write Zeroes: the range may be deallocated (NVM 3.2.8).
pub const WRITE_ZEROES_DEAC: u32 = 1 << 25;
/// Dword 11 of Dataset Management: deallocate (NVM 3.2.3).
pub const DSM_DEALLOCATE: u32 = 1 << 2;
/// Most ranges one Dataset Management command carries (NVM 3.2.3).
pub const DSM_MAX_RANGES: usize = 256;

/// One range of Dataset Management (NVM 3.2.3, figure 40).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DsmRange {
    pub attributes: U32,
    pub length_blocks: U32,
    pub starting_lba: U64,
}
assert_layout!(DsmRange, 16, starting_lba @ 8);

/// One source range of Copy, descriptor format 0 (NVM 3.2.2, figure 32).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CopyRange {
    pub reserved0: [u8; 8],
    pub starting_lba: U64,
    /// 0's based.
    pub num_blocks: U16,
    pub reserved18: [u8; 6],
    pub eilbrt: U32,
    pub elbat: U16,
    pub elbatm: U16,
}
assert_layout!(CopyRange, 32, starting_lba @ 8, num_blocks @ 16, eilbrt @ 24);

/// Admin commands (Base 5, figure 138).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AdminOpcode {
    DeleteSq = 0x00,
    CreateSq = 0x01,
    GetLogPage = 0x02,
    DeleteCq = 0x04,
    CreateCq = 0x05,
    Identify = 0x06,
    Abort = 0x08,
    SetFeatures = 0x09,
    GetFeatures = 0x0a,
    AsyncEventRequest = 0x0c,
    KeepAlive = 0x18,
    Fabrics = 0x7f,
}

impl AdminOpcode {
    /// The one opcode of all fabrics commands, on admin and I/O queues (Base 6).
    pub const FABRICS: u8 = 0x7f;

    pub fn from_wire(opcode: u8) -> Option<AdminOpcode> {
        Some(match opcode {
            0x00 => Self::DeleteSq,
            0x01 => Self::CreateSq,
            0x02 => Self::GetLogPage,
            0x04 => Self::DeleteCq,
            0x05 => Self::CreateCq,
            0x06 => Self::Identify,
            0x08 => Self::Abort,
            0x09 => Self::SetFeatures,
            0x0a => Self::GetFeatures,
            0x0c => Self::AsyncEventRequest,
            0x18 => Self::KeepAlive,
            0x7f => Self::Fabrics,
            _ => return None,
        })
    }
}

/// I/O commands of the NVM command set (NVM 3.2, figure 22; reservations: Base 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IoOpcode {
    Flush = 0x00,
    Write = 0x01,
    Read = 0x02,
    Compare = 0x05,
    WriteZeroes = 0x08,
    DatasetManagement = 0x09,
    ReservationRegister = 0x0d,
    ReservationReport = 0x0e,
    ReservationAcquire = 0x11,
    ReservationRelease = 0x15,
    Copy = 0x19,
    Fabrics = 0x7f,
}

impl IoOpcode {
    pub fn from_wire(opcode: u8) -> Option<IoOpcode> {
        Some(match opcode {
            0x00 => Self::Flush,
            0x01 => Self::Write,
            0x02 => Self::Read,
            0x05 => Self::Compare,
            0x08 => Self::WriteZeroes,
            0x09 => Self::DatasetManagement,
            0x0d => Self::ReservationRegister,
            0x0e => Self::ReservationReport,
            0x11 => Self::ReservationAcquire,
            0x15 => Self::ReservationRelease,
            0x19 => Self::Copy,
            0x7f => Self::Fabrics,
            _ => return None,
        })
    }
}

/// Fabrics command types (Base 6, figure 380).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FabricsType {
    PropertySet = 0x00,
    Connect = 0x01,
    PropertyGet = 0x04,
    AuthenticationSend = 0x05,
    AuthenticationReceive = 0x06,
    Disconnect = 0x08,
}

impl FabricsType {
    pub fn from_wire(fctype: u8) -> Option<FabricsType> {
        Some(match fctype {
            0x00 => Self::PropertySet,
            0x01 => Self::Connect,
            0x04 => Self::PropertyGet,
            0x05 => Self::AuthenticationSend,
            0x06 => Self::AuthenticationReceive,
            0x08 => Self::Disconnect,
            _ => return None,
        })
    }
}

/// Direction of a command's data, encoded in bits 1:0 of every opcode (Base 3.3.3.1) or, for fabrics, of FCTYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirection {
    None,
    HostToController,
    ControllerToHost,
    Bidirectional,
}

impl SubmissionEntry {
    pub fn data_direction(&self) -> DataDirection {
        let code = if self.opcode == AdminOpcode::FABRICS { self.fctype() } else { self.opcode };
        match code & 3 {
            0 => DataDirection::None,
            1 => DataDirection::HostToController,
            2 => DataDirection::ControllerToHost,
            _ => DataDirection::Bidirectional,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_command_has_its_fields_where_the_specification_puts_them() {
        let mut entry = SubmissionEntry::new(IoOpcode::Write as u8, 0x1234);
        entry.set_slba(0x1_2345_6789_abcd);
        entry.cdw12 = IO_FUA.into();
        entry.set_num_blocks(65536);
        entry.set_fuse(Fuse::Second);
        let bytes = entry.as_bytes();
        assert_eq!(&bytes[..4], &[0x01, 0x42, 0x34, 0x12]);
        assert_eq!(entry.slba(), 0x1_2345_6789_abcd);
        assert_eq!(entry.num_blocks(), 65536);
        assert!(entry.fua());
        assert_eq!(entry.fuse(), Fuse::Second);
        assert_eq!(entry.data_direction(), DataDirection::HostToController);
    }

    #[test]
    fn every_opcode_reads_back_as_itself() {
        for code in 0..=255u8 {
            if let Some(op) = AdminOpcode::from_wire(code) {
                assert_eq!(op as u8, code);
            }
            if let Some(op) = IoOpcode::from_wire(code) {
                assert_eq!(op as u8, code);
            }
            if let Some(op) = FabricsType::from_wire(code) {
                assert_eq!(op as u8, code);
            }
        }
    }
}
