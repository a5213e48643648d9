//! Connecting, identifying, logs, features, events, ANA and discovery.

use std::time::{Duration, Instant};

use crate::peer::{BLOCKS, BOTH, Fixture, HOST, NONE, NQN, Peer};
use lockstep::bdev::Access;
use lockstep::nvme::event::AsyncEvent;
use lockstep::nvme::fabrics::{ConnectCommand, ConnectData};
use lockstep::nvme::identify::IdentifyController;
use lockstep::nvme::identify_ns::{IdentifyNamespace, NamespaceIds};
use lockstep::nvme::log::{self, AnaGroup, AnaHeader, AnaState, LogRequest};
use lockstep::nvme::nqn::DISCOVERY_NQN;
use lockstep::nvme::property::{self, Cc};
use lockstep::nvme::{AdminOpcode, IoOpcode, Status, feature};
use lockstep::target::nvmf::NamespaceOptions;
use zerocopy::FromBytes;

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

pub fn request_event(admin: &mut Peer) -> u16 {
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
