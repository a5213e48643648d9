//! PDUs: transfers, digests, the handshake, and whatever a hostile peer sends.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::peer::{BLOCKS, BOTH, Fixture, HOST, NONE, NQN, Peer, pattern};
use lockstep::nvme::fabrics::{ConnectCommand, ConnectData};
use lockstep::nvme::property::{self};
use lockstep::nvme::tcp::*;
use lockstep::nvme::{AdminOpcode, IoOpcode, Status, SubmissionEntry};
use lockstep::target::nvmf::TransportOptions;
use zerocopy::IntoBytes;

const ALL_DIGESTS: [Digests; 4] =
    [NONE, BOTH, Digests { header: true, data: false }, Digests { header: false, data: true }];

#[test]
fn what_is_written_in_capsules_and_by_r2t_reads_back_with_every_choice_of_digests() {
    let fixture = Fixture::new();
    for (n, digests) in ALL_DIGESTS.into_iter().enumerate() {
        let (_admin, mut io) = fixture.io(digests);
        let (small, large) = (pattern(4096, n), pattern(128 << 10, n + 50));
        let entry = io.range(IoOpcode::Write as u8, 8, 8);
        let cid = io.submit_with(entry, &small);
        let completion = io.completion(&mut Vec::new());
        assert_eq!((completion.cid.get(), completion.status()), (cid, Status::SUCCESS));
        assert_eq!(io.write_by_r2t(1000, &large).status(), Status::SUCCESS);
        assert_eq!(io.read(8, 8).1, small);
        assert_eq!(io.read(1000, 256).1, large);
    }
}

#[test]
fn data_pdus_may_come_in_pieces_and_several_transfers_may_be_open_at_once() {
    let fixture = Fixture::new();
    let (_admin, mut io) = fixture.io(BOTH);
    let data: Vec<Vec<u8>> = (0..4).map(|n| pattern(32 << 10, n)).collect();
    let mut open = Vec::new();
    for n in 0..4u64 {
        let entry = io.range(IoOpcode::Write as u8, n * 64, 64);
        io.submit(entry);
    }
    for _ in 0..4 {
        open.push(io.r2t());
    }
    // The last one first, each in pieces of odd lengths.
    for (n, r2t) in open.iter().enumerate().rev() {
        let (cid, ttag) = (r2t.cccid.get(), r2t.ttag.get());
        let cuts = [0, 512, 5000, 20000, 32 << 10];
        for pair in cuts.windows(2) {
            let last = pair[1] == 32 << 10;
            io.send_data(cid, ttag, pair[0] as u32, &data[n][pair[0]..pair[1]], last);
        }
        assert_eq!(io.completion(&mut Vec::new()).cid.get(), cid);
    }
    for (n, want) in data.iter().enumerate() {
        assert_eq!(&io.read(n as u64 * 64, 64).1, want);
    }
}

#[test]
fn a_stream_cut_at_any_byte_is_put_together_again() {
    let fixture = Fixture::new();
    let (_admin, mut io) = fixture.io(BOTH);
    let mut bytes = Vec::new();
    let data = pattern(1024, 3);
    for n in 0..8 {
        let mut entry = io.range(IoOpcode::Write as u8, n * 2, 2);
        entry.sgl = lockstep::nvme::SglDescriptor::in_capsule(1024);
        bytes.extend(io.encode(CapsuleCmd::new(entry, 1024, BOTH).as_bytes(), &data));
    }
    for piece in bytes.chunks(97) {
        io.send(piece);
    }
    for _ in 0..8 {
        assert_eq!(io.completion(&mut Vec::new()).status(), Status::SUCCESS);
    }
    assert_eq!(io.read(14, 2).1, data);
}

#[test]
fn a_wrong_data_digest_costs_the_command_and_not_the_connection() {
    let fixture = Fixture::new();
    let (_admin, mut io) = fixture.io(BOTH);
    let data = pattern(4096, 1);
    // In the capsule.
    let mut entry = io.range(IoOpcode::Write as u8, 0, 8);
    entry.sgl = lockstep::nvme::SglDescriptor::in_capsule(4096);
    let mut bytes = io.encode(CapsuleCmd::new(entry, 4096, BOTH).as_bytes(), &data);
    *bytes.last_mut().expect("digest") ^= 1;
    io.send(&bytes);
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::TRANSIENT_TRANSPORT_ERROR);
    // In a data PDU.
    let entry = io.range(IoOpcode::Write as u8, 0, 8);
    let cid = io.submit(entry);
    let r2t = io.r2t();
    let pdu = DataPdu::h2c(cid, r2t.ttag.get(), 0, 4096, true, BOTH);
    let mut bytes = io.encode(pdu.as_bytes(), &data);
    *bytes.last_mut().expect("digest") ^= 1;
    io.send(&bytes);
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::TRANSIENT_TRANSPORT_ERROR);
    // Nothing of it was written, and all goes on.
    assert_eq!(io.read(0, 8).1, vec![0; 4096]);
    assert_eq!(io.write_by_r2t(0, &data).status(), Status::SUCCESS);
}

#[test]
fn every_violation_is_answered_by_a_term_req_with_its_reason() {
    let fixture = Fixture::new();
    let (_other_admin, mut other) = fixture.io(NONE);
    let write = |io: &mut Peer| {
        let entry = io.range(IoOpcode::Write as u8, 0, 8);
        let cid = io.submit(entry);
        (cid, io.r2t())
    };
    type Case = (&'static str, Fes, u32, Box<dyn Fn(&mut Peer)>);
    let cases: Vec<Case> = vec![
        (
            "an unknown PDU type",
            Fes::InvalidHeaderField,
            0,
            Box::new(|io| io.send(&[0x0b, 0, 24, 0, 24, 0, 0, 0])),
        ),
        (
            "a PDU that only a controller sends",
            Fes::InvalidHeaderField,
            0,
            Box::new(|io| {
                io.send(R2t::new(0, 0, 0, 0, NONE).as_bytes());
            }),
        ),
        ("a second ICReq", Fes::PduSequence, 0, Box::new(|io| io.send(IcReq::new(NONE, 0, 0).as_bytes()))),
        (
            "a wrong header length",
            Fes::InvalidHeaderField,
            2,
            Box::new(|io| io.send(&[4, 0, 71, 0, 72, 0, 0, 0])),
        ),
        (
            "a capsule beyond the limit",
            Fes::InvalidHeaderField,
            4,
            Box::new(|io| {
                io.send(CapsuleCmd::new(SubmissionEntry::new(1, 1), 1 << 20, NONE).as_bytes());
            }),
        ),
        (
            "an unknown transfer tag",
            Fes::InvalidHeaderField,
            10,
            Box::new(|io| {
                io.send_data(1, 999, 0, &[0; 512], true);
            }),
        ),
        (
            "data of another command",
            Fes::InvalidHeaderField,
            8,
            Box::new(move |io| {
                let (cid, r2t) = write(io);
                io.send_data(cid ^ 1, r2t.ttag.get(), 0, &[0; 4096], true);
            }),
        ),
        (
            "data beyond what was asked for",
            Fes::DataOutOfRange,
            0,
            Box::new(move |io| {
                let (cid, r2t) = write(io);
                io.send_data(cid, r2t.ttag.get(), 0, &[0; 4608], true);
            }),
        ),
        (
            "data out of order",
            Fes::DataOutOfRange,
            0,
            Box::new(move |io| {
                let (cid, r2t) = write(io);
                io.send_data(cid, r2t.ttag.get(), 512, &[0; 512], false);
            }),
        ),
        (
            "an early last PDU",
            Fes::InvalidHeaderField,
            1,
            Box::new(move |io| {
                let (cid, r2t) = write(io);
                io.send_data(cid, r2t.ttag.get(), 0, &[0; 512], true);
            }),
        ),
        (
            "more data in a PDU than MAXH2CDATA",
            Fes::LimitExceeded,
            0,
            Box::new(move |io| {
                let (cid, r2t) = write(io);
                io.send(DataPdu::h2c(cid, r2t.ttag.get(), 0, 1 << 20, true, NONE).as_bytes());
            }),
        ),
    ];
    for (what, fes, fei, violate) in cases {
        let (_admin, mut io) = fixture.io(NONE);
        violate(&mut io);
        assert_eq!(io.expect_term_req(), (fes as u16, fei), "{what}");
        // Nobody else noticed.
        assert_eq!(other.read(0, 1).0.status(), Status::SUCCESS, "after {what}");
    }
    let (_admin, mut io) = fixture.io(BOTH);
    let entry = io.range(IoOpcode::Read as u8, 0, 1);
    let mut bytes = io.encode(CapsuleCmd::new(entry, 0, BOTH).as_bytes(), &[]);
    bytes[72..76].copy_from_slice(&[1, 2, 3, 4]);
    io.send(&bytes);
    assert_eq!(io.expect_term_req(), (Fes::HeaderDigest as u16, 0x0403_0201));
}

#[test]
fn before_the_handshake_only_an_icreq_is_welcome() {
    let fixture = Fixture::new();
    let mut peer = fixture.peer(NONE);
    drop(std::mem::replace(&mut peer.socket, fixture.socket()));
    peer.send(CapsuleCmd::new(SubmissionEntry::new(2, 1), 0, NONE).as_bytes());
    assert_eq!(peer.expect_term_req().0, Fes::PduSequence as u16);
    peer.socket = fixture.socket();
    let mut version_9 = IcReq::new(NONE, 0, 0);
    version_9.pfv = 9.into();
    peer.send(version_9.as_bytes());
    assert_eq!(peer.expect_term_req(), (Fes::UnsupportedParameter as u16, 8));
}

#[test]
fn a_connection_that_says_nothing_is_closed_at_the_deadline() {
    let options =
        TransportOptions { connect_deadline: Duration::from_millis(300), ..TransportOptions::default() };
    let fixture = Fixture::with(options, 64 << 20);
    let mut silent = fixture.peer(NONE);
    let start = Instant::now();
    assert!(silent.try_receive().is_none());
    assert!(start.elapsed() >= Duration::from_millis(250) && start.elapsed() < Duration::from_secs(5));
    // A connected one stays.
    let (mut admin, _) = fixture.admin(NONE, 0);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(admin.get_property(property::CSTS, false), 1);
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
}

#[test]
fn thousands_of_random_and_mutated_pdus_disturb_nobody() {
    let fixture = Fixture::new();
    let (_admin, mut good) = fixture.io(NONE);
    let mut random = Random(2026);
    for round in 0..2000 {
        let mut socket = fixture.socket();
        let mut bytes = IcReq::new(NONE, 0, 0).as_bytes().to_vec();
        let connect = ConnectCommand::new(1, 0, 31, 0).to_entry();
        bytes.extend(CapsuleCmd::new(connect, 1024, NONE).as_bytes());
        bytes.extend(ConnectData::new([7; 16], 0xffff, NQN, HOST).as_bytes());
        for _ in 0..10 {
            let mut capsule = CapsuleCmd::new(SubmissionEntry::new(random.next() as u8, 1), 0, NONE);
            capsule.entry.nsid = ((random.next() % 3) as u32).into();
            capsule.entry.cdw10 = (random.next() as u32).into();
            bytes.extend(capsule.as_bytes());
        }
        for _ in 0..random.next() % 8 {
            // Most of the time behind the handshake.
            let from = if round % 4 == 0 { 0 } else { 128 };
            let at = from + (random.next() as usize) % (bytes.len() - from);
            bytes[at] = random.next() as u8;
        }
        // It may be closed already: that is the point.
        let _ = socket.write_all(&bytes);
        if round % 100 == 0 {
            assert_eq!(good.read(0, 1).0.status(), Status::SUCCESS);
        }
    }
    assert_eq!(good.read(0, 8).0.status(), Status::SUCCESS);
}

#[test]
fn queues_survive_any_order_of_commands_fuses_and_data() {
    let fixture = Fixture::new();
    fixture.add_slow_disk(1000);
    let (_admin, mut good) = fixture.io(NONE);
    let mut random = Random(7);
    let opcodes = [0u8, 1, 1, 1, 2, 2, 5, 5, 8, 9, 0x19, 0x7f, 0xfe];
    for round in 0..200 {
        let digests = ALL_DIGESTS[round % 4];
        let (mut admin, mut io) = fixture.io(digests);
        let mut bytes = Vec::new();
        for _ in 0..60 {
            let len = [0, 16, 512, 1024, 4096, 8192][random.next() as usize % 6];
            let data = vec![random.next() as u8; len];
            if random.next().is_multiple_of(5) {
                let (cid, tag) = (random.next() as u16 % 70, random.next() as u16 % 40);
                let (offset, len) = ((random.next() % 3) as u32 * 512, data.len().max(4));
                let pdu =
                    DataPdu::h2c(cid, tag, offset, len as u32, random.next().is_multiple_of(2), digests);
                bytes.extend(io.encode(pdu.as_bytes(), &vec![1; len]));
                continue;
            }
            let opcode = opcodes[random.next() as usize % opcodes.len()];
            let mut entry = io.range(opcode, random.next() % (BLOCKS + 8), 1 + random.next() as u32 % 16);
            entry.nsid = ((random.next() % 3) as u32).into();
            entry.flags = [0x40, 0x40, 0x40, 0x41, 0x42, 0x43, 0x00][random.next() as usize % 7];
            if random.next().is_multiple_of(3) {
                entry.sgl.length = ((random.next() % 9000) as u32).into();
            }
            if data.is_empty() || random.next().is_multiple_of(2) {
                bytes.extend(io.encode(CapsuleCmd::new(entry, 0, digests).as_bytes(), &[]));
            } else {
                entry.sgl = lockstep::nvme::SglDescriptor::in_capsule(data.len() as u32);
                bytes.extend(io.encode(CapsuleCmd::new(entry, data.len(), digests).as_bytes(), &data));
            }
        }
        let _ = io.socket.write_all(&bytes);
        // Some commands die on the way, some with their controller.
        let mut entry = admin.entry(AdminOpcode::Abort as u8, 0, 0);
        entry.cdw10 = ((random.next() as u32 % 60) << 16 | 1).into();
        admin.submit(entry);
        if random.next().is_multiple_of(3) {
            admin.set_property_blindly(property::CC, 0);
        }
        if round % 20 == 0 {
            assert_eq!(good.read(0, 1).0.status(), Status::SUCCESS);
        }
    }
    assert_eq!(good.read(0, 8).0.status(), Status::SUCCESS);
}
