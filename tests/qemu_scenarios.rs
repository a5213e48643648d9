//! The thirteen scenarios of QEMU's replication unit test (tests/unit/test-replication.c), by their names, on two
//! real nodes, and compared exactly: the original's comparison passes wrong data.
//!
//! Where ours differs: QEMU's primary node only forwards (its disk is another child of a quorum), so a read through
//! it fails; our volume is the disk, so reads work once replication was started. Before that, both refuse.

mod common;

use common::nvme::Host;
use common::pair::{GROUP, Pair, group};
use common::wait_until;
use serde_json::json;
use std::time::Duration;

/// QEMU's image size, and the half at which its patterns meet.
const SIZE_MIB: u64 = 64;
const SIZE: usize = (SIZE_MIB as usize) << 20;
const HALF: usize = SIZE / 2;

/// Both disks hold 0x11, the group exists, replication has not started.
fn stopped_pair() -> Pair {
    let pair = Pair::nodes(SIZE_MIB);
    pair.format(0x11);
    pair.create_groups(json!({}), json!({}));
    pair.export_volume();
    pair
}

fn started_pair() -> Pair {
    let pair = stopped_pair();
    pair.replicate("none");
    pair
}

/// Started, the primary has overwritten the upper half, and the secondary VM the lower half of its view.
fn pair_with_both_writing() -> (Pair, Host) {
    let pair = started_pair();
    let mut view = pair.view();
    pair.volume().write(HALF as u64, &vec![0x22; HALF]);
    assert_holds(&mut view, 0, 0x11);
    assert_holds(&mut view, HALF, 0x11);
    view.write(0, &vec![0x33; HALF]);
    assert_holds(&mut view, 0, 0x33);
    (pair, view)
}

#[track_caller]
fn assert_holds(host: &mut Host, offset: usize, byte: u8) {
    let bytes = host.read(offset as u64, HALF);
    if let Some(at) = bytes.iter().position(|&b| b != byte) {
        panic!("byte {} is {:#04x}, expected {byte:#04x}", offset + at, bytes[at]);
    }
}

#[track_caller]
fn assert_reads_refused(mut host: Host) {
    let outcome = host.try_read(0, 4096).expect("an answer");
    assert!(outcome.is_err(), "a read succeeded before replication was started");
}

#[track_caller]
fn assert_writes_refused(mut host: Host) {
    let outcome = host.try_write(0, &[0; 4096]).expect("an answer");
    assert!(!outcome.is_success(), "a write succeeded before replication was started");
}

fn wait_until_flushed(pair: &Pair) {
    wait_until("the disk buffer is flushed", Duration::from_secs(60), || {
        let buffer = &group(&pair.secondary)["buffer"];
        buffer["undo_bytes"] == 0 && buffer["overlay_bytes"] == 0
    });
}

#[test]
fn primary_read() {
    assert_reads_refused(stopped_pair().volume());
}

#[test]
fn primary_write() {
    assert_writes_refused(stopped_pair().volume());
}

#[test]
fn primary_start() {
    let pair = started_pair();
    let mut volume = pair.volume();
    assert_holds(&mut volume, 0, 0x11);
    volume.write(0, &vec![0x22; SIZE]);
    assert_holds(&mut volume, 0, 0x22);
    assert_holds(&mut volume, HALF, 0x22);
}

#[test]
fn primary_stop() {
    let pair = started_pair();
    pair.primary.rpc("replication_stop", json!({"group": GROUP, "failover": true}));
}

#[test]
fn primary_do_checkpoint() {
    let pair = started_pair();
    let result = pair.checkpoint();
    assert_eq!(group(&pair.primary)["committed_epoch"], result["epoch"]);
}

#[test]
fn primary_get_error_all() {
    let pair = started_pair();
    assert_eq!(pair.primary.rpc("replication_get_error", json!({"group": GROUP}))["error"], json!(null));
}

#[test]
fn secondary_read() {
    assert_reads_refused(stopped_pair().view());
}

#[test]
fn secondary_write() {
    assert_writes_refused(stopped_pair().view());
}

#[test]
fn secondary_start() {
    let (pair, mut view) = pair_with_both_writing();
    assert_holds(&mut view, HALF, 0x11);
    pair.failover("overlay");
}

#[test]
fn secondary_stop() {
    let (pair, view) = pair_with_both_writing();
    drop(view);
    pair.secondary.rpc("replication_stop", json!({"group": GROUP, "failover": true}));
    let mut survivor = pair.survivor();
    for _ in 0..2 {
        assert_holds(&mut survivor, 0, 0x33);
        // Overwritten by the primary and never checkpointed: the original.
        assert_holds(&mut survivor, HALF, 0x11);
        wait_until_flushed(&pair);
    }
}

#[test]
fn secondary_continuous_replication() {
    let (mut pair, view) = pair_with_both_writing();
    drop(view);
    pair.primary.kill();
    pair.failover("overlay");
    // From now on it is a primary: it takes writes, and answers for its state without a peer.
    let mut survivor = pair.survivor();
    assert_holds(&mut survivor, 0, 0x33);
    assert_holds(&mut survivor, HALF, 0x11);
    wait_until_flushed(&pair);
    survivor.write(0, &[0x44; 4096]);
    assert_eq!(group(&pair.secondary)["role"], "primary");
    assert_eq!(survivor.read(0, 4096), vec![0x44; 4096]);
    assert_eq!(survivor.read(4096, 4096), vec![0x33; 4096]);
    assert_holds(&mut survivor, HALF, 0x11);
}

#[test]
fn secondary_do_checkpoint() {
    let (pair, mut view) = pair_with_both_writing();
    pair.checkpoint();
    // Both maps dropped: the primary's state, and nothing of the secondary VM's writes.
    assert_holds(&mut view, 0, 0x11);
    assert_holds(&mut view, HALF, 0x22);
}

#[test]
fn secondary_get_error_all() {
    let pair = started_pair();
    assert_eq!(pair.secondary.rpc("replication_get_error", json!({"group": GROUP}))["error"], json!(null));
}
