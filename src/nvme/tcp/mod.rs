//! NVMe/TCP protocol data units (TCP 3.6): headers, builders, digests. The parser is in `parse`.

pub mod parse;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{CompletionEntry, SubmissionEntry, assert_layout};

pub use parse::{Direction, Frame, Header, PduError, Rules, parse};

/// PDU types (TCP 3.6.1, figure 25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PduType {
    IcReq = 0x00,
    IcResp = 0x01,
    H2cTermReq = 0x02,
    C2hTermReq = 0x03,
    CapsuleCmd = 0x04,
    CapsuleResp = 0x05,
    H2cData = 0x06,
    C2hData = 0x07,
    R2t = 0x09,
}

impl PduType {
    pub fn from_wire(kind: u8) -> Option<PduType> {
        Some(match kind {
            0x00 => Self::IcReq,
            0x01 => Self::IcResp,
            0x02 => Self::H2cTermReq,
            0x03 => Self::C2hTermReq,
            0x04 => Self::CapsuleCmd,
            0x05 => Self::CapsuleResp,
            0x06 => Self::H2cData,
            0x07 => Self::C2hData,
            0x09 => Self::R2t,
            _ => return None,
        })
    }

    /// Length of this type's header without digest.
    pub const fn header_len(self) -> usize {
        match self {
            Self::IcReq | Self::IcResp => 128,
            Self::CapsuleCmd => 72,
            _ => 24,
        }
    }
}

/// Bytes that the kernel may hold for sending: as much as SPDK asks for. The kernel's own choice begins small and
/// grows by round trips, so that long transfers stall on it again and again. The receiving side is left to the
/// kernel, whose choice there measured better than any fixed size.
pub const SEND_BUFFER_BYTES: usize = 2 << 20;

/// FLAGS of the common header.
pub const FLAG_HDGST: u8 = 1 << 0;
pub const FLAG_DDGST: u8 = 1 << 1;
/// Last data PDU of a transfer (H2CData, C2HData).
pub const FLAG_LAST: u8 = 1 << 2;
/// C2HData only: the command succeeded, no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Length of a header or data digest.
pub const DIGEST_LEN: usize = 4;
/// The longest header there is, with its digest.
pub const HEADER_MAX: usize = 128 + DIGEST_LEN;
/// A TermReq carries at most this much of the offending header (TCP 3.6.2.4).
pub const TERM_REQ_DATA_MAX: usize = 128;
/// The only PDU format version.
pub const PFV_1_0: u16 = 0;
/// HPDA and CPDA: 0's based multiples of 4 bytes, at most this.
pub const PDA_MAX: u8 = 31;
/// MAXH2CDATA is at least this (TCP 3.6.2.3).
pub const MAXH2CDATA_MIN: u32 = 4096;

/// Common header (TCP 3.6.1).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    pub kind: u8,
    pub flags: u8,
    /// Length of the header without digest.
    pub hlen: u8,
    /// Offset of the data from the start of the PDU.
    pub pdo: u8,
    /// Length of the whole PDU with digests and padding.
    pub plen: U32,
}
assert_layout!(CommonHeader, 8, kind @ 0, flags @ 1, hlen @ 2, pdo @ 3, plen @ 4);

/// DGST bits of ICReq and ICResp.
pub const DGST_HEADER: u8 = 1;
pub const DGST_DATA: u8 = 2;

/// Initialize connection request (TCP 3.6.2.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcReq {
    pub common: CommonHeader,
    pub pfv: U16,
    /// Alignment of data the controller sends, 0's based dwords.
    pub hpda: u8,
    pub dgst: u8,
    /// Outstanding R2Ts a command may have, 0's based.
    pub maxr2t: U32,
    pub reserved16: [u8; 112],
}
assert_layout!(IcReq, 128, pfv @ 8, hpda @ 10, dgst @ 11, maxr2t @ 12);

/// Initialize connection response (TCP 3.6.2.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcResp {
    pub common: CommonHeader,
    pub pfv: U16,
    /// Alignment of data the host sends, 0's based dwords.
    pub cpda: u8,
    pub dgst: u8,
    /// Most data bytes of one H2CData PDU.
    pub maxh2cdata: U32,
    pub reserved16: [u8; 112],
}
assert_layout!(IcResp, 128, pfv @ 8, cpda @ 10, dgst @ 11, maxh2cdata @ 12);

/// Terminate connection request, both directions (TCP 3.6.2.4, 3.6.2.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TermReq {
    pub common: CommonHeader,
    /// Fatal error status: a `Fes`.
    pub fes: U16,
    /// Fatal error information: the offset of the invalid field, or the digest received.
    pub fei: U32,
    pub reserved14: [u8; 10],
}
assert_layout!(TermReq, 24, fes @ 8, fei @ 10);

/// Command capsule (TCP 3.6.2.6); in-capsule data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    pub common: CommonHeader,
    pub entry: SubmissionEntry,
}
assert_layout!(CapsuleCmd, 72, entry @ 8);

/// Response capsule (TCP 3.6.2.7).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    pub common: CommonHeader,
    pub entry: CompletionEntry,
}
assert_layout!(CapsuleResp, 24, entry @ 8);

/// H2CData and C2HData share their layout (TCP 3.6.2.8, 3.6.2.9); C2HData has no transfer tag.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataPdu {
    pub common: CommonHeader,
    /// Command the data belongs to.
    pub cccid: U16,
    /// Transfer tag of the R2T that asked for it; reserved in C2HData.
    pub ttag: U16,
    /// Offset into the command's data.
    pub datao: U32,
    pub datal: U32,
    pub reserved20: [u8; 4],
}
assert_layout!(DataPdu, 24, cccid @ 8, ttag @ 10, datao @ 12, datal @ 16);

/// Ready to transfer (TCP 3.6.2.10).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct R2t {
    pub common: CommonHeader,
    pub cccid: U16,
    pub ttag: U16,
    pub r2to: U32,
    pub r2tl: U32,
    pub reserved20: [u8; 4],
}
assert_layout!(R2t, 24, cccid @ 8, ttag @ 10, r2to @ 12, r2tl @ 16);

/// Fatal error status of a TermReq (TCP 3.6.2.4, figure 29).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Fes {
    InvalidHeaderField = 1,
    PduSequence = 2,
    HeaderDigest = 3,
    DataOutOfRange = 4,
    /// Data transfer limit exceeded (controller), R2T limit exceeded (host).
    LimitExceeded = 5,
    UnsupportedParameter = 6,
}

/// Digests agreed on by ICReq and ICResp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

impl Digests {
    pub fn from_dgst(dgst: u8) -> Digests {
        Digests { header: dgst & DGST_HEADER != 0, data: dgst & DGST_DATA != 0 }
    }

    pub fn to_dgst(self) -> u8 {
        u8::from(self.header) | u8::from(self.data) << 1
    }

    /// Bytes between a header and its data.
    pub const fn header_len(self) -> usize {
        if self.header { DIGEST_LEN } else { 0 }
    }

    pub const fn data_len(self) -> usize {
        if self.data { DIGEST_LEN } else { 0 }
    }
}

/// Header digest: CRC32C of the header as it goes over the wire, little endian (TCP 3.3.1.1).
pub fn header_digest(header: &[u8]) -> [u8; DIGEST_LEN] {
    crc32c::crc32c(header).to_le_bytes()
}

/// Data digest of scattered data: feed each piece, starting with 0; padding is not part of it (TCP 3.3.1.2).
pub fn data_digest_append(so_far: u32, piece: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, piece)
}

/// Common header of a PDU with `data_len` bytes of data that start right behind the header (and its digest):
/// both are multiples of 4, so that no padding is needed for alignments up to 4 bytes.
fn common(kind: PduType, flags: u8, digests: Digests, data_len: usize) -> CommonHeader {
    let hlen = kind.header_len();
    let header_end = hlen + digests.header_len();
    let mut flags = flags | if digests.header { FLAG_HDGST } else { 0 };
    let (mut pdo, mut plen) = (0, header_end);
    if data_len > 0 {
        pdo = header_end;
        plen += data_len + digests.data_len();
        flags |= if digests.data { FLAG_DDGST } else { 0 };
    }
    CommonHeader { kind: kind as u8, flags, hlen: hlen as u8, pdo: pdo as u8, plen: (plen as u32).into() }
}

impl IcReq {
    pub fn new(digests: Digests, hpda: u8, maxr2t: u32) -> IcReq {
        let mut pdu = IcReq::new_zeroed();
        pdu.common = common(PduType::IcReq, 0, Digests::default(), 0);
        pdu.pfv = PFV_1_0.into();
        pdu.hpda = hpda;
        pdu.dgst = digests.to_dgst();
        pdu.maxr2t = maxr2t.into();
        pdu
    }
}

impl IcResp {
    pub fn new(digests: Digests, maxh2cdata: u32) -> IcResp {
        let mut pdu = IcResp::new_zeroed();
        pdu.common = common(PduType::IcResp, 0, Digests::default(), 0);
        pdu.pfv = PFV_1_0.into();
        pdu.dgst = digests.to_dgst();
        pdu.maxh2cdata = maxh2cdata.into();
        pdu
    }
}

impl TermReq {
    /// `kind` says who terminates; `offending_len` bytes of the offending header follow.
    pub fn new(kind: PduType, error: PduError, offending_len: usize) -> TermReq {
        let mut pdu = TermReq::new_zeroed();
        pdu.common = common(kind, 0, Digests::default(), 0);
        pdu.common.plen = ((size_of::<TermReq>() + offending_len.min(TERM_REQ_DATA_MAX)) as u32).into();
        pdu.fes = (error.fes as u16).into();
        pdu.fei = error.fei.into();
        pdu
    }
}

impl CapsuleCmd {
    pub fn new(entry: SubmissionEntry, in_capsule_len: usize, digests: Digests) -> CapsuleCmd {
        CapsuleCmd { common: common(PduType::CapsuleCmd, 0, digests, in_capsule_len), entry }
    }
}

impl CapsuleResp {
    pub fn new(entry: CompletionEntry, digests: Digests) -> CapsuleResp {
        CapsuleResp { common: common(PduType::CapsuleResp, 0, digests, 0), entry }
    }
}

impl DataPdu {
    fn new(
        kind: PduType,
        flags: u8,
        cid: u16,
        ttag: u16,
        offset: u32,
        len: u32,
        digests: Digests,
    ) -> DataPdu {
        let mut pdu = DataPdu::new_zeroed();
        pdu.common = common(kind, flags, digests, len as usize);
        pdu.cccid = cid.into();
        pdu.ttag = ttag.into();
        pdu.datao = offset.into();
        pdu.datal = len.into();
        pdu
    }

    /// Host to controller data for the R2T `ttag`.
    pub fn h2c(cid: u16, ttag: u16, offset: u32, len: u32, last: bool, digests: Digests) -> DataPdu {
        let flags = if last { FLAG_LAST } else { 0 };
        Self::new(PduType::H2cData, flags, cid, ttag, offset, len, digests)
    }

    /// Controller to host data; `success` (only with `last`) also completes the command.
    pub fn c2h(cid: u16, offset: u32, len: u32, last: bool, success: bool, digests: Digests) -> DataPdu {
        let flags = if last { FLAG_LAST } else { 0 } | if last && success { FLAG_SUCCESS } else { 0 };
        Self::new(PduType::C2hData, flags, cid, 0, offset, len, digests)
    }
}

impl R2t {
    pub fn new(cid: u16, ttag: u16, offset: u32, len: u32, digests: Digests) -> R2t {
        let mut pdu = R2t::new_zeroed();
        pdu.common = common(PduType::R2t, 0, digests, 0);
        pdu.cccid = cid.into();
        pdu.ttag = ttag.into();
        pdu.r2to = offset.into();
        pdu.r2tl = len.into();
        pdu
    }
}
