//! The NVMe/TCP target from outside: a host that says exactly what a test wants, over real sockets.

mod nvmf_peer;

use std::io::Write;
use std::time::{Duration, Instant};

use lockstep::bdev::Access;
use lockstep::bdev::delay::{self, Hang};
use lockstep::nvme::command::{DSM_DEALLOCATE, DsmRange};
use lockstep::nvme::event::AsyncEvent;
use lockstep::nvme::fabrics::{CATTR_DISABLE_SQ_FLOW_CONTROL, ConnectCommand, ConnectData};
use lockstep::nvme::identify::IdentifyController;
use lockstep::nvme::identify_ns::{IdentifyNamespace, NamespaceIds};
use lockstep::nvme::log::{self, AnaGroup, AnaHeader, AnaState, LogRequest};
use lockstep::nvme::nqn::DISCOVERY_NQN;
use lockstep::nvme::property::{self, Cc};
use lockstep::nvme::tcp::*;
use lockstep::nvme::{AdminOpcode, Fuse, IoOpcode, Status, SubmissionEntry, feature};
use lockstep::target::nvmf::{NamespaceOptions, TransportOptions};
use nvmf_peer::{BLOCKS, BOTH, Fixture, HOST, NONE, NQN, Peer};
use zerocopy::{FromBytes, IntoBytes};

const ALL_DIGESTS: [Digests; 4] =
    [NONE, BOTH, Digests { header: true, data: false }, Digests { header: false, data: true }];

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512 + seed) as u8).collect()
}

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

#[test]
fn connect_is_refused_with_the_reason() {
    let fixture = Fixture::new();
    fixture.target.allow_any_host(NQN, false).expect("hosts");
    let mut peer = fixture.peer(NONE);
    let command = |qid, sqsize| ConnectCommand::new(0, qid, sqsize, 0);
    let data = |cntlid, nqn: &str, host: &str| ConnectData::new([7; 16], cntlid, nqn, host);
    let place = |data: bool, offset: u32| u32::from(data) << 16 | offset;
    let bad = Status::CONNECT_INVALID_PARAMETERS;
    let other = "nqn.2026-11.io.lockstep:other";
    assert!(
        peer.connect_with(command(0, 31), data(0xffff, NQN, HOST)).status().is(Status::CONNECT_INVALID_HOST)
    );
    fixture.target.add_host(NQN, HOST).expect("host");
    let mut refused = |command, data, status: Status, dw0| {
        let completion = peer.connect_with(command, data);
        assert!(completion.status().is(status) && completion.status().is_dnr(), "{}", completion.status());
        assert_eq!(completion.dw0.get(), dw0);
    };
    refused(command(0, 31), data(0xffff, other, HOST), bad, place(true, 256));
    refused(command(0, 31), data(0xffff, NQN, "a\nb"), bad, place(true, 512));
    refused(command(0, 31), data(5, NQN, HOST), bad, place(true, 16));
    refused(command(0, 0), data(0xffff, NQN, HOST), bad, place(false, 44));
    refused(command(0, 500), data(0xffff, NQN, HOST), bad, place(false, 44));
    refused(command(1, 31), data(99, NQN, HOST), bad, place(true, 16));
    let mut format = command(0, 31);
    format.recfmt = 1.into();
    refused(format, data(0xffff, NQN, HOST), Status::CONNECT_INCOMPATIBLE_FORMAT, 0);
    // An I/O queue needs an enabled controller of the same host.
    let mut admin = fixture.peer(NONE);
    let cntlid = admin.connect(0, 0xffff, NQN, 0).dw0.get() as u16;
    refused(command(1, 31), data(cntlid, NQN, HOST), bad, place(false, 42));
    admin.set_property(property::CC, Cc::ENABLE.0.into());
    let mut stranger = data(cntlid, NQN, HOST);
    stranger.hostid = [8; 16];
    refused(command(1, 31), stranger, Status::CONNECT_INVALID_HOST, 0);
    refused(command(1000, 31), data(cntlid, NQN, HOST), Status::INVALID_QUEUE_ID, 0);
    assert_eq!(peer.connect(1, cntlid, NQN, 0).status(), Status::SUCCESS);
    // The same queue a second time.
    let mut again = fixture.peer(NONE);
    assert!(again.connect(1, cntlid, NQN, 0).status().is(Status::INVALID_QUEUE_ID));
    // Any command but Connect comes too early on a new connection.
    let mut early = fixture.peer(NONE);
    let entry = early.range(IoOpcode::Read as u8, 0, 1);
    assert!(early.run(entry).0.status().is(Status::COMMAND_SEQUENCE_ERROR));
}

#[test]
fn a_host_taken_off_the_list_is_disconnected() {
    let fixture = Fixture::new();
    fixture.target.allow_any_host(NQN, false).expect("hosts");
    fixture.target.add_host(NQN, HOST).expect("host");
    let (mut admin, mut io) = fixture.io(NONE);
    assert_eq!(io.read(0, 1).0.status(), Status::SUCCESS);
    fixture.target.remove_host(NQN, HOST).expect("host");
    assert!(admin.try_receive().is_none() && io.try_receive().is_none());
}

fn identify(admin: &mut Peer, cns: u32, nsid: u32) -> (Status, Vec<u8>) {
    let mut entry = admin.entry(AdminOpcode::Identify as u8, nsid, 4096);
    entry.cdw10 = cns.into();
    let (completion, data) = admin.run(entry);
    (completion.status(), data)
}

#[test]
fn identify_tells_what_linux_needs() {
    let fixture = Fixture::new();
    let (mut admin, cntlid) = fixture.admin(NONE, 0);
    let (_, data) = identify(&mut admin, 1, 0);
    let c = IdentifyController::read_from_bytes(&data).expect("length");
    assert_eq!((c.cntlid.get(), c.mdts, c.sqes, c.cqes), (cntlid, 5, 0x66, 0x44));
    assert_eq!((c.ioccsz.get(), c.iorcsz.get(), c.icdoff.get()), ((64 + 4096) / 16, 1, 0));
    assert_eq!((c.aerl, c.acl, c.elpe, c.cntrltype), (3, 3, 127, 1));
    assert_eq!(c.cmic & 8, 8);
    assert_eq!(lockstep::nvme::get_nul_terminated(&c.subnqn), Some(NQN));
    let (_, data) = identify(&mut admin, 0, 1);
    let ns = IdentifyNamespace::read_from_bytes(&data).expect("length");
    assert_eq!((ns.nsze.get(), ns.block_size(), ns.anagrpid.get()), (BLOCKS, Some(512), 1));
    let (_, data) = identify(&mut admin, 3, 1);
    assert_eq!(NamespaceIds::parse(&data).nguid, ns.nguid);
    assert_eq!(identify(&mut admin, 2, 0).1[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    for cns in [5, 6, 7, 8, 0x1c] {
        assert_eq!(identify(&mut admin, cns, u32::from(cns != 7)).0, Status::SUCCESS, "CNS {cns:x}");
    }
    assert_eq!(identify(&mut admin, 0, 2), (Status::SUCCESS, vec![0; 4096]));
    assert!(identify(&mut admin, 0, 999).0.is(Status::INVALID_NAMESPACE));
    assert!(identify(&mut admin, 3, 2).0.is(Status::INVALID_NAMESPACE));
    assert!(identify(&mut admin, 0x7f, 1).0.is(Status::INVALID_FIELD));
}

fn get_log(admin: &mut Peer, page: u8, len: u64, offset: u64) -> (Status, Vec<u8>) {
    let mut entry = admin.entry(AdminOpcode::GetLogPage as u8, 0, len as u32);
    let request = LogRequest {
        page,
        lsp: 0,
        retain_event: false,
        length_bytes: len,
        offset_bytes: offset,
        offset_is_index: false,
    };
    request.write(&mut entry);
    let (completion, data) = admin.run(entry);
    (completion.status(), data)
}

#[test]
fn every_promised_log_page_can_be_read_whole_and_in_parts() {
    let fixture = Fixture::new();
    let (mut admin, _) = fixture.admin(BOTH, 0);
    for page in [
        log::SUPPORTED_PAGES,
        log::ERROR,
        log::SMART,
        log::FIRMWARE,
        log::CHANGED_NAMESPACES,
        log::COMMAND_EFFECTS,
        log::ANA,
        log::FEATURE_EFFECTS,
        log::MI_COMMAND_EFFECTS,
        log::RESERVATION,
    ] {
        let (status, whole) = get_log(&mut admin, page, 4096, 0);
        assert_eq!((status, whole.len()), (Status::SUCCESS, 4096), "page {page:x}");
        let part = get_log(&mut admin, page, 32, 16).1;
        assert_eq!(part, whole[16..48], "page {page:x}");
    }
    assert!(get_log(&mut admin, 0x55, 64, 0).0.is(Status::INVALID_LOG_PAGE));
    assert!(get_log(&mut admin, log::SMART, 64, 1 << 20).0.is(Status::INVALID_FIELD));
    // The errors just made are in the error log.
    assert_ne!(get_log(&mut admin, log::ERROR, 64, 0).1[..8], [0; 8]);
}

#[test]
fn linux_gets_the_queues_features_and_properties_it_asks_for() {
    let fixture = Fixture::new();
    let mut admin = fixture.peer(NONE);
    assert!(admin.connect(0, 0xffff, NQN, 5000).status().is_success());
    let cap = admin.get_property(property::CAP, true);
    assert_eq!((cap & 0xffff, cap >> 16 & 1), (127, 1));
    admin.set_property(property::CC, 0x46_0060);
    admin.set_property(property::CC, 0x46_0061);
    assert_eq!(admin.get_property(property::CSTS, false), 1);
    assert_eq!(admin.get_property(property::VS, false), 0x1_0400);
    let set = |admin: &mut Peer, id: u8, value: u32| {
        let mut entry = admin.entry(AdminOpcode::SetFeatures as u8, 0, 0);
        entry.cdw10 = u32::from(id).into();
        entry.cdw11 = value.into();
        admin.run(entry).0
    };
    assert_eq!(set(&mut admin, feature::NUMBER_OF_QUEUES, 0x3_0003).dw0.get(), 126 << 16 | 126);
    assert_eq!(set(&mut admin, feature::ASYNC_EVENT_CONFIGURATION, 0x900).status(), Status::SUCCESS);
    let mut entry = admin.entry(AdminOpcode::GetFeatures as u8, 0, 0);
    entry.cdw10 = u32::from(feature::ASYNC_EVENT_CONFIGURATION).into();
    assert_eq!(admin.run(entry).0.dw0.get(), 0x900);
    let entry = admin.entry(AdminOpcode::KeepAlive as u8, 0, 0);
    assert_eq!(admin.run(entry).0.status(), Status::SUCCESS);
    for opcode in [AdminOpcode::CreateSq, AdminOpcode::CreateCq, AdminOpcode::DeleteSq, AdminOpcode::DeleteCq]
    {
        let entry = admin.entry(opcode as u8, 0, 0);
        assert!(admin.run(entry).0.status().is(Status::INVALID_OPCODE));
    }
}

#[test]
fn io_that_the_namespace_cannot_do_is_refused() {
    let fixture = Fixture::new();
    let (_admin, mut io) = fixture.io(NONE);
    let read = IoOpcode::Read as u8;
    let entry = io.range(read, BLOCKS - 1, 2);
    assert!(io.run(entry).0.status().is(Status::LBA_OUT_OF_RANGE));
    let entry = io.range(read, u64::MAX, 2);
    assert!(io.run(entry).0.status().is(Status::LBA_OUT_OF_RANGE));
    let entry = io.range(read, 0, 257);
    assert!(io.run(entry).0.status().is(Status::INVALID_FIELD), "beyond MDTS");
    let mut entry = io.range(read, 0, 8);
    entry.sgl.length = 512.into();
    assert!(io.run(entry).0.status().is(Status::DATA_SGL_LENGTH_INVALID));
    let mut entry = io.range(read, 0, 8);
    entry.nsid = 2.into();
    assert!(io.run(entry).0.status().is(Status::INVALID_NAMESPACE));
    entry = io.range(read, 0, 8);
    entry.flags = 0;
    assert!(io.run(entry).0.status().is(Status::INVALID_FIELD), "PRPs");
    let mut entry = io.range(IoOpcode::Write as u8, 0, 8);
    entry.sgl.identifier = 0x40;
    assert!(io.run(entry).0.status().is(Status::SGL_TYPE_INVALID));
    let entry = io.entry(0xc1, 1, 0);
    assert!(io.run(entry).0.status().is(Status::INVALID_OPCODE));
    let mut entry = io.range(IoOpcode::Write as u8, 0, 8);
    entry.sgl = lockstep::nvme::SglDescriptor::in_capsule(4096);
    entry.sgl.address = 4096.into();
    let pdu = CapsuleCmd::new(entry, 4096, NONE);
    let bytes = io.encode(pdu.as_bytes(), &[1; 4096]);
    io.send(&bytes);
    assert!(io.completion(&mut Vec::new()).status().is(Status::DATA_SGL_LENGTH_INVALID));
}

#[test]
fn zeroes_deallocation_flush_and_compare_do_what_they_say() {
    let fixture = Fixture::new();
    let (_admin, mut io) = fixture.io(NONE);
    let data = pattern(8192, 9);
    assert_eq!(io.write_by_r2t(0, &data).status(), Status::SUCCESS);
    let mut entry = io.range(IoOpcode::WriteZeroes as u8, 0, 2);
    entry.sgl = Default::default();
    assert_eq!(io.run(entry).0.status(), Status::SUCCESS);
    let mut dsm = io.entry(IoOpcode::DatasetManagement as u8, 1, 32);
    dsm.cdw10 = 1.into();
    dsm.cdw11 = DSM_DEALLOCATE.into();
    let range = |lba: u64, blocks: u32| DsmRange {
        starting_lba: lba.into(),
        length_blocks: blocks.into(),
        ..Default::default()
    };
    io.submit_with(dsm, [range(4, 1), range(6, 2)].as_bytes());
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::SUCCESS);
    let mut want = data.clone();
    want[..1024].fill(0);
    want[2048..2560].fill(0);
    want[3072..4096].fill(0);
    assert_eq!(io.read(0, 16).1, want);
    dsm.cid = io.cid().into();
    io.submit_with(dsm, [range(4, 1), range(BLOCKS, 1)].as_bytes());
    assert!(io.completion(&mut Vec::new()).status().is(Status::LBA_OUT_OF_RANGE));
    let entry = io.entry(IoOpcode::Flush as u8, 1, 0);
    assert_eq!(io.run(entry).0.status(), Status::SUCCESS);
    let compare = io.range(IoOpcode::Compare as u8, 8, 8);
    io.submit_with(compare, &want[4096..]);
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::SUCCESS);
    want[4096] ^= 1;
    io.submit_with(compare, &want[4096..]);
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::COMPARE_FAILURE);
}

fn fused(io: &mut Peer, opcode: IoOpcode, fuse: Fuse, lba: u64) -> SubmissionEntry {
    let mut entry = io.range(opcode as u8, lba, 1);
    entry.set_fuse(fuse);
    entry
}

#[test]
fn fused_compare_and_write_is_one_step_and_a_half_without_its_partner_is_aborted() {
    let fixture = Fixture::new();
    let (_admin, mut io) = fixture.io(NONE);
    let (old, new) = (vec![0u8; 512], pattern(512, 4));
    let pair = |io: &mut Peer, expected: &[u8], new: &[u8]| {
        let first = fused(io, IoOpcode::Compare, Fuse::First, 5);
        let second = fused(io, IoOpcode::Write, Fuse::Second, 5);
        io.submit_with(first, expected);
        io.submit_with(second, new);
        [io.completion(&mut Vec::new()).status(), io.completion(&mut Vec::new()).status()]
    };
    assert_eq!(pair(&mut io, &old, &new), [Status::SUCCESS, Status::SUCCESS]);
    assert_eq!(pair(&mut io, &old, &old), [Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED]);
    assert_eq!(io.read(5, 1).1, new);
    // By R2T, and the data of the second half comes first.
    let first = fused(&mut io, IoOpcode::Compare, Fuse::First, 5);
    let second = fused(&mut io, IoOpcode::Write, Fuse::Second, 5);
    io.submit(first);
    io.submit(second);
    let (a, b) = (io.r2t(), io.r2t());
    io.send_data(b.cccid.get(), b.ttag.get(), 0, &old, true);
    io.send_data(a.cccid.get(), a.ttag.get(), 0, &new, true);
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::SUCCESS);
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::SUCCESS);
    assert_eq!(io.read(5, 1).1, old);
    // A second half alone.
    let second = fused(&mut io, IoOpcode::Write, Fuse::Second, 5);
    io.submit_with(second, &new);
    assert!(io.completion(&mut Vec::new()).status().is(Status::ABORTED_MISSING_FUSED));
    // A first half followed by something else.
    let first = fused(&mut io, IoOpcode::Compare, Fuse::First, 5);
    let first = io.submit_with(first, &old);
    let read = io.range(IoOpcode::Read as u8, 5, 1);
    let read = io.submit(read);
    let mut data = Vec::new();
    let done = io.completion(&mut data);
    assert_eq!(done.cid.get(), first);
    assert!(done.status().is(Status::ABORTED_MISSING_FUSED));
    assert_eq!(io.completion(&mut data).cid.get(), read);
    // Halves that do not match.
    let first = fused(&mut io, IoOpcode::Compare, Fuse::First, 5);
    let second = fused(&mut io, IoOpcode::Write, Fuse::Second, 6);
    io.submit_with(first, &old);
    io.submit_with(second, &new);
    assert!(io.completion(&mut Vec::new()).status().is(Status::ABORTED_FAILED_FUSED));
    assert!(io.completion(&mut Vec::new()).status().is(Status::INVALID_FIELD));
    assert_eq!(io.read(5, 2).1, vec![0; 1024]);
}

#[test]
fn more_commands_than_the_queue_has_wait_and_are_all_answered() {
    let fixture = Fixture::new();
    let (_admin, mut io) = fixture.io(NONE);
    let mut bytes = Vec::new();
    for n in 0..500u64 {
        let entry = io.range(IoOpcode::Read as u8, n, 1);
        bytes.extend(io.encode(CapsuleCmd::new(entry, 0, NONE).as_bytes(), &[]));
    }
    io.send(&bytes);
    for _ in 0..500 {
        assert_eq!(io.completion(&mut Vec::new()).status(), Status::SUCCESS);
    }
}

#[test]
fn commands_wait_for_buffers_when_memory_is_short() {
    // One chunk for the large buffers: half as many as the commands below want at once.
    let fixture = Fixture::with(TransportOptions::default(), 6 << 20);
    let (_admin, mut io) = fixture.io(NONE);
    let data = pattern(128 << 10, 2);
    let mut cids = Vec::new();
    for _ in 0..30 {
        let entry = io.range(IoOpcode::Write as u8, 0, 256);
        cids.push(io.submit(entry));
    }
    let mut done = 0;
    while done < 30 {
        let pdu = io.receive();
        match pdu.frame.kind {
            PduType::R2t => {
                let r2t = R2t::read_from_bytes(&pdu.header).expect("length");
                io.send_data(r2t.cccid.get(), r2t.ttag.get(), 0, &data, true);
            }
            PduType::CapsuleResp => {
                let resp = CapsuleResp::read_from_bytes(&pdu.header).expect("length");
                assert_eq!(resp.entry.status(), Status::SUCCESS);
                done += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(io.read(0, 256).1, data);
    // Small ones in their capsules wait behind large ones that hold all the memory.
    let large: Vec<u16> = (0..30)
        .map(|_| {
            let entry = io.range(IoOpcode::Write as u8, 0, 256);
            io.submit(entry)
        })
        .collect();
    let small: Vec<u16> = (0..10)
        .map(|n| {
            let entry = io.range(IoOpcode::Write as u8, 512 + n * 8, 8);
            io.submit_with(entry, &data[..4096])
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    let mut left: Vec<u16> = large.into_iter().chain(small).collect();
    while !left.is_empty() {
        let pdu = io.receive();
        if pdu.frame.kind == PduType::R2t {
            let r2t = R2t::read_from_bytes(&pdu.header).expect("length");
            io.send_data(r2t.cccid.get(), r2t.ttag.get(), 0, &data, true);
        } else {
            let resp = CapsuleResp::read_from_bytes(&pdu.header).expect("length");
            assert_eq!(resp.entry.status(), Status::SUCCESS);
            left.retain(|&cid| cid != resp.entry.cid.get());
        }
    }
    assert_eq!(io.read(512, 80).1, data[..4096].repeat(10));
}

#[test]
fn a_silent_host_is_gone_after_its_keep_alive_time_and_a_talking_one_is_not() {
    let fixture = Fixture::new();
    let (mut silent, _) = fixture.admin(NONE, 1000);
    let (mut alive, _) = fixture.admin(NONE, 1000);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        let entry = alive.entry(AdminOpcode::KeepAlive as u8, 0, 0);
        assert_eq!(alive.run(entry).0.status(), Status::SUCCESS);
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(silent.try_receive().is_none());
    assert_eq!(alive.get_property(property::CSTS, false), 1);
    assert_eq!(fixture.target.controllers(NQN).expect("controllers").len(), 1);
}

#[test]
fn a_reset_ends_the_io_queues_before_the_controller_is_not_ready() {
    let fixture = Fixture::new();
    let (mut admin, mut io) = fixture.io(NONE);
    admin.set_property(property::CC, 0);
    assert!(io.try_receive().is_none());
    let start = Instant::now();
    while admin.get_property(property::CSTS, false) != 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "RDY does not fall");
    }
    admin.set_property(property::CC, Cc::ENABLE.0.into());
    assert_eq!(admin.get_property(property::CSTS, false), 1);
    admin.set_property(property::CC, Cc::ENABLE.with_shn_normal().0.into());
    while admin.get_property(property::CSTS, false) & 0b1100 != 0b1000 {
        assert!(start.elapsed() < Duration::from_secs(5), "no shutdown");
    }
}

fn request_event(admin: &mut Peer) -> u16 {
    let entry = admin.entry(AdminOpcode::AsyncEventRequest as u8, 0, 0);
    admin.submit(entry)
}

fn enable_events(admin: &mut Peer, bits: u32) {
    let mut entry = admin.entry(AdminOpcode::SetFeatures as u8, 0, 0);
    entry.cdw10 = u32::from(feature::ASYNC_EVENT_CONFIGURATION).into();
    entry.cdw11 = bits.into();
    assert_eq!(admin.run(entry).0.status(), Status::SUCCESS);
}

#[test]
fn a_host_hears_of_namespaces_that_come_change_and_go() {
    let fixture = Fixture::new();
    let (mut admin, _) = fixture.admin(NONE, 0);
    enable_events(&mut admin, feature::AEC_NAMESPACE | feature::AEC_ANA);
    let first = request_event(&mut admin);
    let second = request_event(&mut admin);
    fixture.add_disk("Disk1");
    let nsid = fixture.target.add_ns(NQN, NamespaceOptions::new("Disk1")).expect("namespace");
    let event = admin.completion(&mut Vec::new());
    assert_eq!((event.cid.get(), AsyncEvent(event.dw0.get())), (first, AsyncEvent::NAMESPACE_CHANGED));
    // Silent until the log is read.
    fixture.target.remove_ns(NQN, nsid).expect("namespace");
    let changed = get_log(&mut admin, log::CHANGED_NAMESPACES, 4096, 0).1;
    assert_eq!(changed[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    fixture.bdevs.get("Disk0").expect("bdev").resize(BLOCKS / 2).expect("resize");
    let event = admin.completion(&mut Vec::new());
    assert_eq!((event.cid.get(), AsyncEvent(event.dw0.get())), (second, AsyncEvent::NAMESPACE_CHANGED));
    // At most four requests rest.
    for _ in 0..4 {
        request_event(&mut admin);
    }
    let fifth = request_event(&mut admin);
    let refused = admin.completion(&mut Vec::new());
    assert_eq!(refused.cid.get(), fifth);
    assert!(refused.status().is(Status::AER_LIMIT_EXCEEDED));
}

fn ana_state(admin: &mut Peer) -> (u64, u8) {
    let page = get_log(admin, log::ANA, 1024, 0).1;
    let (header, rest) = AnaHeader::read_from_prefix(&page).expect("header");
    let (group, rest) = AnaGroup::read_from_prefix(rest).expect("group");
    assert_eq!((header.num_groups.get(), group.group_id.get(), group.num_nsids.get()), (1, 1, 1));
    assert_eq!(rest[..4], [1, 0, 0, 0]);
    (header.change_count.get(), group.state)
}

#[test]
fn ana_follows_the_role_of_the_volume() {
    let fixture = Fixture::new();
    let (mut admin, mut io) = fixture.io(NONE);
    enable_events(&mut admin, feature::AEC_ANA);
    assert_eq!(ana_state(&mut admin), (0, AnaState::Optimized as u8));
    let request = request_event(&mut admin);
    let disk = fixture.bdevs.get("Disk0").expect("bdev");
    disk.set_access(Access::Inaccessible);
    let event = admin.completion(&mut Vec::new());
    assert_eq!((event.cid.get(), AsyncEvent(event.dw0.get())), (request, AsyncEvent::ANA_CHANGED));
    assert_eq!(ana_state(&mut admin), (1, AnaState::Inaccessible as u8));
    assert_eq!(io.read(0, 1).0.status(), Status::ANA_INACCESSIBLE);
    assert_eq!(io.write_refused(), Status::ANA_INACCESSIBLE);
    request_event(&mut admin);
    disk.set_access(Access::Optimized);
    assert_eq!(AsyncEvent(admin.completion(&mut Vec::new()).dw0.get()), AsyncEvent::ANA_CHANGED);
    assert_eq!(ana_state(&mut admin), (2, AnaState::Optimized as u8));
    assert_eq!(io.read(0, 1).0.status(), Status::SUCCESS);
    // By configuration, per listener.
    request_event(&mut admin);
    let set = |state| fixture.target.listener_set_ana_state(NQN, &fixture.address, state, None);
    set(AnaState::NonOptimized).expect("state");
    assert_eq!(AsyncEvent(admin.completion(&mut Vec::new()).dw0.get()), AsyncEvent::ANA_CHANGED);
    assert_eq!(ana_state(&mut admin).1, AnaState::NonOptimized as u8);
    assert_eq!(io.read(0, 1).0.status(), Status::SUCCESS);
    set(AnaState::Inaccessible).expect("state");
    assert_eq!(io.read(0, 1).0.status(), Status::ANA_INACCESSIBLE);
}

#[test]
fn discovery_lists_what_a_host_may_use_and_tells_of_changes() {
    let fixture = Fixture::new();
    let mut peer = fixture.peer(NONE);
    assert!(peer.connect(0, 0xffff, DISCOVERY_NQN, 0).status().is_success());
    peer.set_property(property::CC, Cc::ENABLE.0.into());
    enable_events(&mut peer, feature::AEC_DISCOVERY);
    request_event(&mut peer);
    let page = get_log(&mut peer, log::DISCOVERY, 2048, 0).1;
    let genctr = u64::from_le_bytes(page[..8].try_into().expect("length"));
    assert_eq!(page[8..16], 1u64.to_le_bytes());
    let entry = &page[1024..];
    assert_eq!((entry[0], entry[1], entry[2]), (3, 1, 2));
    assert_eq!(lockstep::nvme::get_padded(&entry[32..64]), fixture.address.trsvcid);
    assert_eq!(lockstep::nvme::get_nul_terminated(&entry[256..512]), Some(NQN));
    assert_eq!(lockstep::nvme::get_padded(&entry[512..768]), "127.0.0.1");
    let other = lockstep::target::nvmf::ListenAddress::new("127.0.0.1", "0").expect("address");
    let other = fixture.target.add_listener(NQN, &other).expect("listener");
    assert_eq!(AsyncEvent(peer.completion(&mut Vec::new()).dw0.get()), AsyncEvent::DISCOVERY_CHANGED);
    let page = get_log(&mut peer, log::DISCOVERY, 1024, 0).1;
    assert_ne!(genctr, u64::from_le_bytes(page[..8].try_into().expect("length")));
    fixture.target.remove_listener(NQN, &other).expect("listener");
    assert!(get_log(&mut peer, log::SMART, 512, 0).0.is(Status::INVALID_LOG_PAGE));
    let entry = peer.entry(AdminOpcode::Abort as u8, 0, 0);
    assert!(peer.run(entry).0.status().is(Status::INVALID_OPCODE));
}

#[test]
fn abort_ends_commands_that_wait_and_says_so_when_there_is_nothing_to_abort() {
    let fixture = Fixture::new();
    let (mut admin, mut io) = fixture.io(NONE);
    let abort = |admin: &mut Peer, sqid: u32, cid: u16| {
        let mut entry = admin.entry(AdminOpcode::Abort as u8, 0, 0);
        entry.cdw10 = (u32::from(cid) << 16 | sqid).into();
        admin.submit(entry)
    };
    // A write whose data has not come: ends when it has.
    let write = io.range(IoOpcode::Write as u8, 0, 8);
    let cid = io.submit(write);
    let r2t = io.r2t();
    abort(&mut admin, 1, cid);
    assert_eq!(admin.completion(&mut Vec::new()).dw0.get(), 0);
    io.send_data(cid, r2t.ttag.get(), 0, &[1; 4096], true);
    assert_eq!(io.completion(&mut Vec::new()).status(), Status::ABORTED_BY_REQUEST);
    assert_eq!(io.read(0, 8).1, vec![0; 4096]);
    // Nothing of that name, and no such queue.
    abort(&mut admin, 1, 999);
    assert_eq!(admin.completion(&mut Vec::new()).dw0.get(), 1);
    abort(&mut admin, 9, 1);
    assert_eq!(admin.completion(&mut Vec::new()).dw0.get(), 1);
    // An event request.
    let event = request_event(&mut admin);
    let by = abort(&mut admin, 0, event);
    let aborted = admin.completion(&mut Vec::new());
    assert_eq!((aborted.cid.get(), aborted.status()), (event, Status::ABORTED_BY_REQUEST));
    let done = admin.completion(&mut Vec::new());
    assert_eq!((done.cid.get(), done.dw0.get()), (by, 0));
}

#[test]
fn without_flow_control_the_queue_head_is_not_reported() {
    let fixture = Fixture::new();
    let mut peer = fixture.peer(NONE);
    let mut command = ConnectCommand::new(0, 0, 31, 0);
    command.cattr = CATTR_DISABLE_SQ_FLOW_CONTROL;
    let completion = peer.connect_with(command, ConnectData::new([7; 16], 0xffff, NQN, HOST));
    assert_eq!((completion.status(), completion.sqhd.get()), (Status::SUCCESS, 0xffff));
}

#[test]
fn a_bdev_that_is_pulled_out_takes_its_namespace_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.add_disk("Disk1");
    assert_eq!(fixture.target.add_ns(NQN, NamespaceOptions::new("Disk1")).expect("namespace"), 2);
    let (_admin, mut io) = fixture.io(NONE);
    let mut entry = io.range(IoOpcode::Read as u8, 0, 1);
    entry.nsid = 2.into();
    assert_eq!(io.run(entry).0.status(), Status::SUCCESS);
    fixture.bdevs.remove("Disk1", &fixture.reactors).expect("removal");
    assert!(io.run(entry).0.status().is(Status::INVALID_NAMESPACE));
    assert_eq!(io.read(0, 1).0.status(), Status::SUCCESS);
    let infos = fixture.target.subsystems();
    assert_eq!(infos[1].namespaces.len(), 1);
}

fn on_slow_disk(io: &mut Peer, opcode: IoOpcode, lba: u64) -> SubmissionEntry {
    let mut entry = io.range(opcode as u8, lba, 8);
    entry.nsid = 2.into();
    entry
}

#[test]
fn a_target_that_shuts_down_answers_what_it_has_begun() {
    let fixture = Fixture::new();
    fixture.add_slow_disk(300_000);
    let (_admin, mut io) = fixture.io(NONE);
    let data = pattern(4096, 1);
    for n in 0..20 {
        let entry = on_slow_disk(&mut io, IoOpcode::Write, n * 8);
        io.submit_with(entry, &data);
    }
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    assert!(fixture.target.shut_down(Duration::from_secs(5)).expect("shut down"));
    assert!(start.elapsed() >= Duration::from_millis(150));
    for _ in 0..20 {
        assert_eq!(io.completion(&mut Vec::new()).status(), Status::SUCCESS);
    }
    assert!(io.try_receive().is_none());
}

#[test]
fn io_that_hangs_holds_up_its_own_connection_and_nothing_else() {
    let fixture = Fixture::new();
    let slow = fixture.add_slow_disk(0);
    let everything = Hang { op: None, range: None };
    delay::set_hang(&slow, everything, true).expect("hang");
    let (mut admin, mut io) = fixture.io(NONE);
    let data = pattern(4096, 1);
    for n in 0..10 {
        let entry = on_slow_disk(&mut io, IoOpcode::Write, n * 8);
        io.submit_with(entry, &data);
    }
    // The same queue goes on with another disk, in any order.
    assert_eq!(io.read(0, 8).0.status(), Status::SUCCESS);
    drop(io);
    std::thread::sleep(Duration::from_millis(50));
    // A reset waits for what hangs.
    admin.set_property(property::CC, 0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(admin.get_property(property::CSTS, false), 1);
    let (_other_admin, mut other) = fixture.io(NONE);
    assert_eq!(other.read(0, 8).0.status(), Status::SUCCESS);
    delay::set_hang(&slow, everything, false).expect("release");
    let start = Instant::now();
    while admin.get_property(property::CSTS, false) != 0 {
        assert!(start.elapsed() < Duration::from_secs(3), "RDY does not fall");
    }
    let entry = on_slow_disk(&mut other, IoOpcode::Read, 0);
    assert_eq!(other.run(entry).1, data, "the writes that hung were done");
}

#[test]
fn hosts_that_vanish_under_load_leave_nothing_behind() {
    let fixture = Fixture::new();
    fixture.add_slow_disk(20_000);
    for round in 0..20 {
        let (admin, mut io) = fixture.io(if round % 2 == 0 { NONE } else { BOTH });
        let data = pattern(4096, round);
        for n in 0..20 {
            let write = on_slow_disk(&mut io, IoOpcode::Write, n * 8);
            match n % 3 {
                0 => io.submit(write),
                1 => io.submit_with(write, &data),
                _ => {
                    let read = on_slow_disk(&mut io, IoOpcode::Read, n * 8);
                    io.submit(read)
                }
            };
        }
        match round % 3 {
            0 => drop((admin, io)),
            1 => drop((io, admin)),
            // Cut in the middle of a PDU.
            _ => io.send(&[4, 0, 72]),
        }
    }
    let start = Instant::now();
    while !fixture.target.queues(NQN).expect("queues").is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "queues are left over");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_getters_show_controllers_and_queues() {
    let fixture = Fixture::new();
    let (admin, io) = fixture.io(NONE);
    let controllers = fixture.target.controllers(NQN).expect("controllers");
    assert_eq!((controllers.len(), controllers[0].num_io_queues), (1, 1));
    assert_eq!((controllers[0].hostnqn.as_str(), controllers[0].hostid), (HOST, [7; 16]));
    let queues = fixture.target.queues(NQN).expect("queues");
    assert_eq!(queues.iter().map(|q| (q.qid, q.sqsize)).collect::<Vec<_>>(), [(0, 31), (1, 31)]);
    assert_ne!(queues[0].reactor, queues[1].reactor);
    let stats = fixture.target.stats().expect("stats");
    assert_eq!(stats.iter().map(|s| s.current_admin_qpairs).sum::<u64>(), 1);
    assert_eq!(stats.iter().map(|s| s.current_io_qpairs).sum::<u64>(), 1);
    drop((admin, io));
    let start = Instant::now();
    while !fixture.target.controllers(NQN).expect("controllers").is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "the controller stays");
        std::thread::sleep(Duration::from_millis(5));
    }
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
