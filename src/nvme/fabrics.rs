//! Fabrics commands (Base 6): Connect and the property commands.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::command::{AdminOpcode, FabricsType, PSDT_SGL};
use super::nqn::NQN_FIELD;
use super::{SglDescriptor, SubmissionEntry, assert_layout, put_nul_terminated};

/// Connect command (Base 6.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectCommand {
    pub opcode: u8,
    pub flags: u8,
    pub cid: U16,
    pub fctype: u8,
    pub reserved5: [u8; 19],
    pub sgl: SglDescriptor,
    /// Record format: 0.
    pub recfmt: U16,
    /// 0 is the admin queue.
    pub qid: U16,
    /// Queue size, 0's based.
    pub sqsize: U16,
    /// See `CATTR_*`.
    pub cattr: u8,
    pub reserved47: u8,
    pub kato_ms: U32,
    pub reserved52: [u8; 12],
}
assert_layout!(ConnectCommand, 64, fctype @ 4, sgl @ 24, recfmt @ 40, qid @ 42, sqsize @ 44, cattr @ 46, kato_ms @ 48);

/// CATTR bit 2: the host does without SQ flow control (Base 6.3).
pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;

/// Connect data (Base 6.3, figure 387).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    pub hostid: [u8; 16],
    pub cntlid: U16,
    pub reserved18: [u8; 238],
    pub subnqn: [u8; NQN_FIELD],
    pub hostnqn: [u8; NQN_FIELD],
    pub reserved768: [u8; 256],
}
assert_layout!(ConnectData, 1024, cntlid @ 16, subnqn @ 256, hostnqn @ 512);

/// CNTLID of an admin queue's Connect under the dynamic controller model: "any".
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// Greatest controller identifier a controller may have (Base 3.1.4).
pub const CNTLID_MAX: u16 = 0xffef;

impl ConnectCommand {
    pub fn new(cid: u16, qid: u16, sqsize: u16, kato_ms: u32) -> ConnectCommand {
        let mut c = ConnectCommand::new_zeroed();
        c.opcode = AdminOpcode::FABRICS;
        c.flags = PSDT_SGL << 6;
        c.cid = cid.into();
        c.fctype = FabricsType::Connect as u8;
        c.sgl = SglDescriptor::in_capsule(size_of::<ConnectData>() as u32);
        c.qid = qid.into();
        c.sqsize = sqsize.into();
        c.kato_ms = kato_ms.into();
        c
    }

    pub fn from_entry(entry: &SubmissionEntry) -> ConnectCommand {
        zerocopy::transmute!(*entry)
    }

    pub fn to_entry(self) -> SubmissionEntry {
        zerocopy::transmute!(self)
    }
}

impl ConnectData {
    pub fn new(hostid: [u8; 16], cntlid: u16, subnqn: &str, hostnqn: &str) -> ConnectData {
        let mut data = ConnectData::new_zeroed();
        data.hostid = hostid;
        data.cntlid = cntlid.into();
        put_nul_terminated(&mut data.subnqn, subnqn);
        put_nul_terminated(&mut data.hostnqn, hostnqn);
        data
    }
}

/// "Invalid parameters" of Connect says where (Base 6.3, figure 385): dword 0 = IPO, IATTR in bit 16
/// (0: in the command, 1: in the connect data).
pub fn connect_invalid(in_data: bool, offset: u16) -> u32 {
    u32::from(in_data) << 16 | u32::from(offset)
}

/// Property Get and Property Set (Base 6.5, 6.6) share their fields; Get ignores the value.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertyCommand {
    pub opcode: u8,
    pub flags: u8,
    pub cid: U16,
    pub fctype: u8,
    pub reserved5: [u8; 35],
    /// Bits 2:0: 0 = four bytes, 1 = eight bytes.
    pub attrib: u8,
    pub reserved41: [u8; 3],
    pub offset: U32,
    pub value: U64,
    pub reserved56: [u8; 8],
}
assert_layout!(PropertyCommand, 64, fctype @ 4, attrib @ 40, offset @ 44, value @ 48);

impl PropertyCommand {
    fn new(fctype: FabricsType, cid: u16, offset: u32, eight_bytes: bool) -> PropertyCommand {
        let mut c = PropertyCommand::new_zeroed();
        c.opcode = AdminOpcode::FABRICS;
        c.flags = PSDT_SGL << 6;
        c.cid = cid.into();
        c.fctype = fctype as u8;
        c.attrib = u8::from(eight_bytes);
        c.offset = offset.into();
        c
    }

    pub fn get(cid: u16, offset: u32, eight_bytes: bool) -> PropertyCommand {
        Self::new(FabricsType::PropertyGet, cid, offset, eight_bytes)
    }

    pub fn set(cid: u16, offset: u32, eight_bytes: bool, value: u64) -> PropertyCommand {
        let mut c = Self::new(FabricsType::PropertySet, cid, offset, eight_bytes);
        c.value = value.into();
        c
    }

    /// 4 or 8, or `None` for a reserved size.
    pub fn size_bytes(&self) -> Option<usize> {
        match self.attrib & 7 {
            0 => Some(4),
            1 => Some(8),
            _ => None,
        }
    }

    pub fn from_entry(entry: &SubmissionEntry) -> PropertyCommand {
        zerocopy::transmute!(*entry)
    }

    pub fn to_entry(self) -> SubmissionEntry {
        zerocopy::transmute!(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_command_reads_back_from_its_queue_entry() {
        let c = ConnectCommand::from_entry(&ConnectCommand::new(7, 3, 127, 5000).to_entry());
        assert_eq!((c.cid.get(), c.qid.get(), c.sqsize.get(), c.kato_ms.get()), (7, 3, 127, 5000));
        assert_eq!(c.sgl.length.get(), 1024);
    }

    #[test]
    fn property_sizes_other_than_four_and_eight_are_refused() {
        let mut c = PropertyCommand::set(1, 0x14, false, 5);
        assert_eq!(c.size_bytes(), Some(4));
        c.attrib = 1;
        assert_eq!(c.size_bytes(), Some(8));
        c.attrib = 2;
        assert_eq!(c.size_bytes(), None);
    }
}
