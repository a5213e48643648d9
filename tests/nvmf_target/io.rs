//! I/O commands, queues that are full, disks that hang, and shutdown.

use std::time::{Duration, Instant};

use crate::admin::request_event;
use crate::peer::{BLOCKS, BOTH, Fixture, HOST, NONE, NQN, Peer, pattern};
use lockstep::bdev::delay::{self, Hang};
use lockstep::nvme::command::{DSM_DEALLOCATE, DsmRange};
use lockstep::nvme::fabrics::{CATTR_DISABLE_SQ_FLOW_CONTROL, ConnectCommand, ConnectData};
use lockstep::nvme::property::{self};
use lockstep::nvme::tcp::*;
use lockstep::nvme::{AdminOpcode, Fuse, IoOpcode, Status, SubmissionEntry};
use lockstep::target::nvmf::{NamespaceOptions, TransportOptions};
use zerocopy::{FromBytes, IntoBytes};

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
