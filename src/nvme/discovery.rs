//! Discovery log page (Base 5.16.1.23): how a host finds subsystems.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::nqn::NQN_FIELD;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogHeader {
    /// Changes whenever the log changes.
    pub genctr: U64,
    pub numrec: U64,
    pub recfmt: U16,
    pub reserved18: [u8; 2],
    pub tdlpl: U32,
    pub reserved24: [u8; 1000],
}
assert_layout!(DiscoveryLogHeader, 1024, numrec @ 8, recfmt @ 16, tdlpl @ 20);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogEntry {
    pub trtype: u8,
    pub adrfam: u8,
    pub subtype: u8,
    pub treq: u8,
    pub portid: U16,
    /// 0xffff: dynamic controller model.
    pub cntlid: U16,
    /// Largest admin submission queue.
    pub asqsz: U16,
    pub eflags: U16,
    pub reserved12: [u8; 20],
    /// ASCII, padded with spaces.
    pub trsvcid: [u8; 32],
    pub reserved64: [u8; 192],
    pub subnqn: [u8; NQN_FIELD],
    /// ASCII, padded with spaces.
    pub traddr: [u8; 256],
    /// TCP: byte 0 is the security type, 0 = none.
    pub tsas: [u8; 256],
}
assert_layout!(DiscoveryLogEntry, 1024, portid @ 4, asqsz @ 8, eflags @ 10, trsvcid @ 32, subnqn @ 256, traddr @ 512, tsas @ 768);

/// TRTYPE.
pub const TRTYPE_RDMA: u8 = 1;
pub const TRTYPE_TCP: u8 = 3;

/// ADRFAM.
pub const ADRFAM_IPV4: u8 = 1;
pub const ADRFAM_IPV6: u8 = 2;

/// SUBTYPE.
pub const SUBTYPE_REFERRAL: u8 = 1;
pub const SUBTYPE_NVME: u8 = 2;
pub const SUBTYPE_CURRENT_DISCOVERY: u8 = 3;

/// TREQ bits 1:0: a secure channel is not required.
pub const TREQ_NOT_SPECIFIED: u8 = 0;
pub const TREQ_REQUIRED: u8 = 1;
pub const TREQ_NOT_REQUIRED: u8 = 2;

/// EFLAGS: this record's information is returned at other ports too; an explicit persistent connection to the
/// discovery controller is supported.
pub const EFLAGS_DUPRETINFO: u16 = 1;
pub const EFLAGS_EPCSD: u16 = 2;
