//! The NVMe/TCP parser: from untrusted bytes to a checked header, or to the error a TermReq reports.
//!
//! Framing (`Frame::of`) needs the 8 common bytes and says how long everything is; `parse` needs the whole header.
//! Data is not looked at here: it may be scattered, and only its receiver knows where it goes.

use std::fmt;

use zerocopy::FromBytes;

use super::{
    CapsuleCmd, CapsuleResp, CommonHeader, DIGEST_LEN, DataPdu, Digests, FLAG_DDGST, FLAG_HDGST, FLAG_LAST,
    FLAG_SUCCESS, Fes, IcReq, IcResp, PDA_MAX, PFV_1_0, PduType, R2t, TERM_REQ_DATA_MAX, TermReq,
    header_digest,
};

/// Who the bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    HostToController,
    ControllerToHost,
}

/// What this connection agreed on, and the receiver's limits.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub direction: Direction,
    pub digests: Digests,
    /// Data must start at a multiple of this many bytes (4 times HPDA or CPDA plus one).
    pub data_alignment: u32,
    /// Most data bytes in a command capsule.
    pub max_in_capsule: u32,
    /// Most data bytes in one H2CData or C2HData PDU.
    pub max_data: u32,
}

/// A violation of the protocol that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PduError {
    pub fes: Fes,
    /// Fatal error information: the offset of the wrong field, or the header digest received.
    pub fei: u32,
}

impl PduError {
    /// A header field has a value that it must not have.
    pub const fn field(offset: u32) -> PduError {
        PduError { fes: Fes::InvalidHeaderField, fei: offset }
    }

    pub const fn new(fes: Fes) -> PduError {
        PduError { fes, fei: 0 }
    }
}

impl fmt::Display for PduError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fes {
            Fes::InvalidHeaderField => write!(f, "invalid PDU header field at byte {}", self.fei),
            Fes::PduSequence => write!(f, "PDU out of sequence"),
            Fes::HeaderDigest => write!(f, "header digest error"),
            Fes::DataOutOfRange => write!(f, "data transfer out of range"),
            Fes::LimitExceeded => write!(f, "data transfer or R2T limit exceeded"),
            Fes::UnsupportedParameter => write!(f, "unsupported parameter at byte {}", self.fei),
        }
    }
}

impl std::error::Error for PduError {}

/// Offsets of fields, as TermReq reports them.
mod at {
    pub const KIND: u32 = 0;
    pub const FLAGS: u32 = 1;
    pub const HLEN: u32 = 2;
    pub const PDO: u32 = 3;
    pub const PLEN: u32 = 4;
    pub const PFV: u32 = 8;
    pub const PDA: u32 = 10;
    pub const DATAL: u32 = 16;
}

/// How long a PDU and its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: PduType,
    pub flags: u8,
    /// Header without digest.
    pub hlen: usize,
    /// Header with its digest.
    pub header_end: usize,
    /// Where the data starts; equals `header_end` without data.
    pub data_offset: usize,
    pub data_len: usize,
    /// A data digest follows the data.
    pub data_digest: bool,
    pub plen: usize,
}

impl Frame {
    /// Checks a common header against the rules and computes the PDU's shape.
    pub fn of(common: &CommonHeader, rules: &Rules) -> Result<Frame, PduError> {
        let kind = PduType::from_wire(common.kind).ok_or(PduError::field(at::KIND))?;
        let from_host =
            matches!(kind, PduType::IcReq | PduType::H2cTermReq | PduType::CapsuleCmd | PduType::H2cData);
        if from_host != (rules.direction == Direction::HostToController) {
            return Err(PduError::field(at::KIND));
        }
        let hlen = kind.header_len();
        if usize::from(common.hlen) != hlen {
            return Err(PduError::field(at::HLEN));
        }
        let digests = match kind {
            PduType::IcReq | PduType::IcResp | PduType::H2cTermReq | PduType::C2hTermReq => {
                Digests::default()
            }
            _ => rules.digests,
        };
        if (common.flags & FLAG_HDGST != 0) != digests.header {
            return Err(PduError::field(at::FLAGS));
        }
        let header_end = hlen + digests.header_len();
        let plen = common.plen.get() as usize;
        let mut frame = Frame {
            kind,
            flags: common.flags,
            hlen,
            header_end,
            data_offset: header_end,
            data_len: 0,
            data_digest: false,
            plen,
        };
        match kind {
            PduType::IcReq | PduType::IcResp | PduType::CapsuleResp | PduType::R2t => {
                if plen != header_end {
                    return Err(PduError::field(at::PLEN));
                }
            }
            PduType::H2cTermReq | PduType::C2hTermReq => {
                if plen < hlen || plen > hlen + TERM_REQ_DATA_MAX {
                    return Err(PduError::field(at::PLEN));
                }
                frame.data_len = plen - hlen;
            }
            PduType::CapsuleCmd | PduType::H2cData | PduType::C2hData => {
                frame.locate_data(common, rules, digests)?
            }
        }
        Ok(frame)
    }

    fn locate_data(
        &mut self,
        common: &CommonHeader,
        rules: &Rules,
        digests: Digests,
    ) -> Result<(), PduError> {
        if self.plen < self.header_end {
            return Err(PduError::field(at::PLEN));
        }
        if self.plen == self.header_end {
            // Only a capsule may come without data.
            return if self.kind == PduType::CapsuleCmd { Ok(()) } else { Err(PduError::field(at::PLEN)) };
        }
        if (common.flags & FLAG_DDGST != 0) != digests.data {
            return Err(PduError::field(at::FLAGS));
        }
        let pdo = usize::from(common.pdo);
        let alignment = rules.data_alignment.max(1) as usize;
        if pdo < self.header_end || !pdo.is_multiple_of(alignment) {
            return Err(PduError::field(at::PDO));
        }
        let data_and_digest = self.plen.checked_sub(pdo).ok_or(PduError::field(at::PDO))?;
        let data_len = data_and_digest.checked_sub(digests.data_len()).ok_or(PduError::field(at::PLEN))?;
        if data_len == 0 {
            return Err(PduError::field(at::PLEN));
        }
        let limit = if self.kind == PduType::CapsuleCmd { rules.max_in_capsule } else { rules.max_data };
        if data_len > limit as usize {
            return Err(match self.kind {
                PduType::CapsuleCmd => PduError::field(at::PLEN),
                _ => PduError::new(Fes::LimitExceeded),
            });
        }
        self.data_offset = pdo;
        self.data_len = data_len;
        self.data_digest = digests.data;
        Ok(())
    }
}

/// A checked header.
#[derive(Clone, Copy, Debug)]
pub enum Header<'a> {
    IcReq(&'a IcReq),
    IcResp(&'a IcResp),
    /// Either direction; the frame's kind tells.
    TermReq(&'a TermReq),
    CapsuleCmd(&'a CapsuleCmd),
    CapsuleResp(&'a CapsuleResp),
    H2cData(&'a DataPdu),
    C2hData(&'a DataPdu),
    R2t(&'a R2t),
}

/// Parses the PDU that starts at `bytes[0]`. `Ok(None)`: correct so far, but its header is not all there yet.
/// The header's digest is verified; data and data digest, at `frame.data_offset`, are the caller's.
pub fn parse<'a>(bytes: &'a [u8], rules: &Rules) -> Result<Option<(Frame, Header<'a>)>, PduError> {
    let Ok((common, _)) = CommonHeader::ref_from_prefix(bytes) else { return Ok(None) };
    let frame = Frame::of(common, rules)?;
    if bytes.len() < frame.header_end {
        return Ok(None);
    }
    let (header, rest) = bytes.split_at(frame.hlen);
    if frame.header_end > frame.hlen {
        let received = &rest[..DIGEST_LEN];
        if received != header_digest(header) {
            let digest = u32::from_le_bytes([received[0], received[1], received[2], received[3]]);
            return Err(PduError { fes: Fes::HeaderDigest, fei: digest });
        }
    }
    // The lengths were checked above, so none of these views can fail; an error stays an error all the same.
    let header = match frame.kind {
        PduType::IcReq => Header::IcReq(view(header)?),
        PduType::IcResp => Header::IcResp(view(header)?),
        PduType::H2cTermReq | PduType::C2hTermReq => Header::TermReq(view(header)?),
        PduType::CapsuleCmd => Header::CapsuleCmd(view(header)?),
        PduType::CapsuleResp => Header::CapsuleResp(view(header)?),
        PduType::H2cData => Header::H2cData(view(header)?),
        PduType::C2hData => Header::C2hData(view(header)?),
        PduType::R2t => Header::R2t(view(header)?),
    };
    header.check(&frame)?;
    Ok(Some((frame, header)))
}

fn view<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned>(
    bytes: &[u8],
) -> Result<&T, PduError> {
    T::ref_from_bytes(bytes).map_err(|_| PduError::field(at::HLEN))
}

impl Header<'_> {
    /// What the fields behind the common header must fulfil by themselves.
    fn check(&self, frame: &Frame) -> Result<(), PduError> {
        match self {
            Header::IcReq(pdu) => check_ic(pdu.pfv.get(), pdu.hpda),
            Header::IcResp(pdu) => check_ic(pdu.pfv.get(), pdu.cpda),
            Header::H2cData(pdu) => check_data(pdu, frame),
            Header::C2hData(pdu) => {
                if frame.flags & FLAG_SUCCESS != 0 && frame.flags & FLAG_LAST == 0 {
                    return Err(PduError::field(at::FLAGS));
                }
                check_data(pdu, frame)
            }
            Header::TermReq(_) | Header::CapsuleCmd(_) | Header::CapsuleResp(_) | Header::R2t(_) => Ok(()),
        }
    }
}

fn check_ic(pfv: u16, alignment: u8) -> Result<(), PduError> {
    if pfv != PFV_1_0 {
        return Err(PduError { fes: Fes::UnsupportedParameter, fei: at::PFV });
    }
    if alignment > PDA_MAX {
        return Err(PduError::field(at::PDA));
    }
    Ok(())
}

fn check_data(pdu: &DataPdu, frame: &Frame) -> Result<(), PduError> {
    if pdu.datal.get() as usize != frame.data_len {
        return Err(PduError::field(at::DATAL));
    }
    if pdu.datao.get().checked_add(pdu.datal.get()).is_none() {
        return Err(PduError::new(Fes::DataOutOfRange));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::super::*;
    use super::*;
    use crate::nvme::{Status, fabrics::ConnectCommand};

    fn rules(direction: Direction, digests: Digests) -> Rules {
        Rules { direction, digests, data_alignment: 4, max_in_capsule: 8192, max_data: 131072 }
    }

    fn from_host(digests: Digests) -> Rules {
        rules(Direction::HostToController, digests)
    }

    fn with_digest(header: &[u8], digests: Digests) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if digests.header {
            bytes.extend(header_digest(header));
        }
        bytes
    }

    const BOTH: Digests = Digests { header: true, data: true };
    const NONE: Digests = Digests { header: false, data: false };

    #[test]
    fn the_connect_capsule_looks_like_the_one_observed_from_linux() {
        let entry = ConnectCommand::new(0, 0, 31, 5000).to_entry();
        let bytes = with_digest(CapsuleCmd::new(entry, 1024, BOTH).as_bytes(), BOTH);
        let (frame, header) = parse(&bytes, &from_host(BOTH)).unwrap().unwrap();
        assert_eq!((bytes[1], bytes[2], bytes[3], frame.plen), (3, 72, 76, 1104));
        assert_eq!((frame.data_offset, frame.data_len, frame.data_digest), (76, 1024, true));
        let Header::CapsuleCmd(capsule) = header else { panic!("{header:?}") };
        assert_eq!(capsule.entry.opcode, 0x7f);
    }

    #[test]
    fn every_built_pdu_parses_in_its_direction_and_in_no_other() {
        for digests in
            [NONE, BOTH, Digests { header: true, data: false }, Digests { header: false, data: true }]
        {
            let host: [Vec<u8>; 4] = [
                IcReq::new(digests, 0, 3).as_bytes().to_vec(),
                with_digest(CapsuleCmd::new(SubmissionEntry::new(2, 9), 0, digests).as_bytes(), digests),
                with_digest(DataPdu::h2c(1, 2, 4096, 512, true, digests).as_bytes(), digests),
                TermReq::new(PduType::H2cTermReq, PduError::field(2), 24).as_bytes().to_vec(),
            ];
            let controller: [Vec<u8>; 5] = [
                IcResp::new(digests, 131072).as_bytes().to_vec(),
                with_digest(
                    CapsuleResp::new(CompletionEntry::new(1, Status::SUCCESS), digests).as_bytes(),
                    digests,
                ),
                with_digest(DataPdu::c2h(1, 0, 512, true, true, digests).as_bytes(), digests),
                with_digest(R2t::new(1, 2, 0, 8192, digests).as_bytes(), digests),
                TermReq::new(PduType::C2hTermReq, PduError::field(2), 24).as_bytes().to_vec(),
            ];
            let (h2c, c2h) = (from_host(digests), rules(Direction::ControllerToHost, digests));
            for pdu in &host {
                assert!(parse(pdu, &h2c).unwrap().is_some());
                assert_eq!(parse(pdu, &c2h).unwrap_err(), PduError::field(0));
            }
            for pdu in &controller {
                assert!(parse(pdu, &c2h).unwrap().is_some());
                assert_eq!(parse(pdu, &h2c).unwrap_err(), PduError::field(0));
            }
        }
    }

    #[test]
    fn a_cut_off_header_is_waited_for() {
        let bytes = with_digest(CapsuleCmd::new(SubmissionEntry::new(2, 9), 0, BOTH).as_bytes(), BOTH);
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len], &from_host(BOTH)).unwrap().is_none());
        }
    }

    #[test]
    fn each_violation_has_its_error_status_and_offset() {
        let check = |mutate: &dyn Fn(&mut Vec<u8>), digests: Digests, want: PduError| {
            let pdu = DataPdu::h2c(1, 2, 0, 4096, true, digests);
            let mut bytes = pdu.as_bytes().to_vec();
            mutate(&mut bytes);
            let bytes = with_digest(&bytes, digests);
            assert_eq!(parse(&bytes, &from_host(digests)).unwrap_err(), want);
        };
        check(&|b| b[0] = 0x08, NONE, PduError::field(0));
        check(&|b| b[0] = 0x55, NONE, PduError::field(0));
        check(&|b| b[1] |= FLAG_HDGST, NONE, PduError::field(1));
        check(&|b| b[1] &= !FLAG_HDGST, BOTH, PduError::field(1));
        check(&|b| b[1] |= FLAG_DDGST, NONE, PduError::field(1));
        check(&|b| b[1] &= !FLAG_DDGST, BOTH, PduError::field(1));
        check(&|b| b[2] = 25, NONE, PduError::field(2));
        check(&|b| b[3] = 20, NONE, PduError::field(3));
        check(&|b| b[3] = 26, NONE, PduError::field(3));
        check(&|b| b[4..8].copy_from_slice(&10u32.to_le_bytes()), NONE, PduError::field(4));
        check(&|b| b[4..8].copy_from_slice(&24u32.to_le_bytes()), NONE, PduError::field(4));
        check(
            &|b| b[4..8].copy_from_slice(&(24u32 + 131073).to_le_bytes()),
            NONE,
            PduError::new(Fes::LimitExceeded),
        );
        check(&|b| b[16] = 1, NONE, PduError::field(16));
        check(&|b| b[12..16].fill(0xff), NONE, PduError::new(Fes::DataOutOfRange));
    }

    #[test]
    fn a_wrong_header_digest_is_reported_with_the_digest_received() {
        let mut bytes = with_digest(CapsuleCmd::new(SubmissionEntry::new(2, 9), 0, BOTH).as_bytes(), BOTH);
        bytes[72..76].copy_from_slice(&0xdead_beefu32.to_le_bytes());
        let error = parse(&bytes, &from_host(BOTH)).unwrap_err();
        assert_eq!(error, PduError { fes: Fes::HeaderDigest, fei: 0xdead_beef });
    }

    #[test]
    fn another_protocol_version_is_an_unsupported_parameter() {
        let mut bytes = IcReq::new(NONE, 0, 0).as_bytes().to_vec();
        bytes[8] = 1;
        let error = parse(&bytes, &from_host(NONE)).unwrap_err();
        assert_eq!(error, PduError { fes: Fes::UnsupportedParameter, fei: 8 });
    }

    #[test]
    fn too_much_in_capsule_data_is_an_invalid_length() {
        let bytes = CapsuleCmd::new(SubmissionEntry::new(1, 1), 8196, NONE).as_bytes().to_vec();
        assert_eq!(parse(&bytes, &from_host(NONE)).unwrap_err(), PduError::field(4));
    }

    #[test]
    fn the_data_digest_of_pieces_equals_that_of_the_whole() {
        let data: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let whole = data_digest_append(0, &data);
        assert_eq!(data_digest_append(data_digest_append(0, &data[..333]), &data[333..]), whole);
        // The check value of CRC32C: "123456789" (RFC 3720 B.4's polynomial).
        assert_eq!(data_digest_append(0, b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            header: bool, data: bool, to_host: bool,
        ) {
            let direction = if to_host { Direction::ControllerToHost } else { Direction::HostToController };
            let _ = parse(&bytes, &rules(direction, Digests { header, data }));
        }

        #[test]
        fn a_mutated_pdu_never_panics_and_keeps_its_lengths_in_bounds(
            at in 0usize..76, value: u8, header: bool, data: bool, len in 0usize..8192,
        ) {
            let digests = Digests { header, data };
            let mut bytes = CapsuleCmd::new(SubmissionEntry::new(1, 1), len, digests).as_bytes().to_vec();
            if at < bytes.len() {
                bytes[at] = value;
            }
            let bytes = with_digest(&bytes, digests);
            if let Ok(Some((frame, _))) = parse(&bytes, &from_host(digests)) {
                prop_assert!(frame.data_offset + frame.data_len <= frame.plen);
                prop_assert!(frame.header_end <= frame.data_offset);
                prop_assert!(frame.data_len <= 131072);
            }
        }

        #[test]
        fn data_headers_round_trip(cid: u16, ttag: u16, offset in 0u32..1 << 30, len in 1u32..131072, last: bool) {
            let bytes = with_digest(DataPdu::h2c(cid, ttag, offset, len, last, BOTH).as_bytes(), BOTH);
            let (frame, header) = parse(&bytes, &from_host(BOTH)).unwrap().unwrap();
            let Header::H2cData(pdu) = header else { return Err(TestCaseError::fail("kind")) };
            prop_assert_eq!((pdu.cccid.get(), pdu.ttag.get()), (cid, ttag));
            prop_assert_eq!((pdu.datao.get(), pdu.datal.get()), (offset, len));
            prop_assert_eq!((frame.data_len, frame.flags & FLAG_LAST != 0), (len as usize, last));
        }
    }
}
