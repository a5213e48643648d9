//! Completion queue entries (Base 3.3.3.2).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Status, assert_layout};

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CompletionEntry {
    /// Command specific; Property Get and Connect answer here.
    pub dw0: U32,
    pub dw1: U32,
    /// Submission queue head; 0 when SQ flow control is off (Base 3.3.2.1.1).
    pub sqhd: U16,
    /// Reserved over Fabrics.
    pub sqid: U16,
    pub cid: U16,
    /// Status in bits 15:1, phase tag (always 0 over Fabrics) in bit 0.
    pub status: U16,
}
assert_layout!(CompletionEntry, 16, sqhd @ 8, cid @ 12, status @ 14);

impl CompletionEntry {
    pub fn new(cid: u16, status: Status) -> CompletionEntry {
        CompletionEntry { cid: cid.into(), status: status.to_wire().into(), ..Default::default() }
    }

    pub fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }

    /// Dwords 0 and 1 as one value, as Property Get returns an 8-byte property.
    pub fn value(&self) -> u64 {
        u64::from(self.dw1.get()) << 32 | u64::from(self.dw0.get())
    }

    pub fn set_value(&mut self, value: u64) {
        self.dw0 = (value as u32).into();
        self.dw1 = ((value >> 32) as u32).into();
    }
}
