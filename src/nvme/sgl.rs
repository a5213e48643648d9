//! SGL descriptors (Base 4.1.2): how a command names its data. Over Fabrics there is exactly one, in the command.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address, or the offset into the capsule for subtype "offset".
    pub address: U64,
    pub length: U32,
    pub reserved: [u8; 3],
    /// Descriptor type in bits 7:4, subtype in bits 3:0.
    pub identifier: u8,
}
assert_layout!(SglDescriptor, 16, length @ 8, identifier @ 15);

/// Where a command's data is, as NVMe/TCP allows it (TCP 3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglKind {
    /// Data block, subtype offset: the data is in the capsule, `address` bytes behind the in-capsule data offset.
    InCapsule,
    /// Transport data block: the transport moves the data by data PDUs.
    Transport,
    /// Any other type or subtype; not usable over TCP.
    Other,
}

impl SglDescriptor {
    const IN_CAPSULE: u8 = 0x01;
    const TRANSPORT: u8 = 0x5a;

    /// Data block descriptor, subtype offset 0: `length` bytes follow in the capsule.
    pub fn in_capsule(length: u32) -> SglDescriptor {
        SglDescriptor { length: length.into(), identifier: Self::IN_CAPSULE, ..Default::default() }
    }

    /// Transport data block of `length` bytes.
    pub fn transport(length: u32) -> SglDescriptor {
        SglDescriptor { length: length.into(), identifier: Self::TRANSPORT, ..Default::default() }
    }

    pub fn kind(&self) -> SglKind {
        match self.identifier {
            Self::IN_CAPSULE => SglKind::InCapsule,
            Self::TRANSPORT => SglKind::Transport,
            _ => SglKind::Other,
        }
    }
}
