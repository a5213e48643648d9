//! What hangs instead of failing: a peer that is stopped, a disk that never answers, a link that is cut in the middle
//! of a message. Every call ends by its deadline with an error that names what hung, the node goes on answering, and
//! nothing that was acknowledged in `applied` mode is lost.

mod common;

use common::load::{PATIENCE, wait_for_progress, wait_for_state};
use common::nvme::Host;
use common::pair::{DISK, GROUP, Pair, group};
use common::stamps::{self, BLOCK, Writer};
use common::wait_until;
use serde_json::json;
use std::time::{Duration, Instant};

const SIZE_MIB: u64 = 16;
const REGION: u64 = (SIZE_MIB << 8) / 2;
/// What a deadline may be missed by on two busy cores.
const GRACE: Duration = Duration::from_millis(1500);

fn writers(pair: &Pair) -> Vec<Writer> {
    (0..2).map(|i| Writer::start(pair.volume(), i * REGION, REGION)).collect()
}

/// A checkpoint that must fail by its deadline; the words of its error.
#[track_caller]
fn failing_checkpoint(pair: &Pair, timeout_ms: u64) -> String {
    let from = Instant::now();
    let error = pair
        .primary
        .try_rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": timeout_ms}))
        .expect_err("a checkpoint that cannot be");
    assert!(
        from.elapsed() < Duration::from_millis(timeout_ms) + GRACE,
        "it took {:?}: {error:?}",
        from.elapsed()
    );
    assert!(!error.message.is_empty());
    error.message
}

#[track_caller]
fn assert_answers_at_once(pair: &Pair) {
    let from = Instant::now();
    group(&pair.primary);
    assert!(from.elapsed() < GRACE, "replication_get_groups took {:?}", from.elapsed());
}

#[test]
fn a_stopped_secondary_costs_a_checkpoint_its_deadline_and_the_writers_a_bounded_wait() {
    let pair = Pair::start(SIZE_MIB);
    let mut writers = writers(&pair);
    std::thread::sleep(Duration::from_millis(200));
    pair.checkpoint();
    pair.secondary.signal("STOP");
    let message = failing_checkpoint(&pair, 700);
    assert!(
        message.contains("secondary") || message.contains("peer"),
        "the error names what hung: {message}"
    );
    assert_answers_at_once(&pair);
    // The default is to go on alone once the peer counts as lost.
    let at: Vec<usize> = stamps::progress(&writers).acknowledged;
    wait_until("the writers go on without the peer", Duration::from_secs(20), || {
        stamps::progress(&writers).acknowledged.iter().zip(&at).all(|(now, then)| *now > then + 100)
    });
    assert_ne!(group(&pair.primary)["state"], "running", "a lost peer shows");
    failing_checkpoint(&pair, 700);
    pair.secondary.signal("CONT");
    for writer in &mut writers {
        assert_eq!(writer.stop(), "stopped");
    }
    let end = stamps::progress(&writers);
    stamps::assert_one_point_in_time(&writers, &pair.volume().read_all(), &end.acknowledged, &end.issued);
    assert_answers_at_once(&pair);
}

#[test]
fn a_link_cut_in_the_middle_of_a_message_loses_nothing_that_was_acknowledged() {
    let mut pair = Pair::nodes_with_a_cable(SIZE_MIB);
    pair.create_groups(json!({"on_link_loss": "block"}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    let mut writers = writers(&pair);
    std::thread::sleep(Duration::from_millis(300));
    pair.checkpoint();
    std::thread::sleep(Duration::from_millis(100));
    pair.cable().cut();
    let message = failing_checkpoint(&pair, 700);
    assert!(
        message.contains("secondary") || message.contains("peer") || message.contains("link"),
        "{message}"
    );
    assert_answers_at_once(&pair);
    pair.primary.kill();
    for writer in &mut writers {
        writer.wait(Duration::from_secs(10));
    }
    pair.failover("latest");
    let end = stamps::progress(&writers);
    stamps::assert_one_point_in_time(&writers, &pair.survivor().read_all(), &end.acknowledged, &end.issued);
}

#[test]
fn a_cut_link_lets_the_primary_go_on_and_the_secondary_keeps_its_last_checkpoint() {
    let pair = Pair::nodes_with_a_cable(SIZE_MIB);
    pair.create_groups(json!({"on_link_loss": "continue"}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    let mut writers = writers(&pair);
    std::thread::sleep(Duration::from_millis(300));
    let mut view = pair.view();
    pair.checkpoint();
    let image = view.read_all();
    pair.cable().cut();
    let at = stamps::progress(&writers).acknowledged;
    wait_until("the writers go on without the peer", Duration::from_secs(20), || {
        stamps::progress(&writers).acknowledged.iter().zip(&at).all(|(now, then)| *now > then + 100)
    });
    for writer in &mut writers {
        assert_eq!(writer.stop(), "stopped");
    }
    assert!(image == view.read_all(), "the view moved without a checkpoint");
    pair.failover("checkpoint");
    assert!(image == pair.survivor().read_all(), "the volume after the failover is not the last checkpoint");
}

/// A pair whose secondary's disk can be told to hang.
fn pair_with_a_disk_that_can_hang(on_secondary: bool) -> Pair {
    let pair = Pair::nodes(SIZE_MIB);
    let node = if on_secondary { &pair.secondary } else { &pair.primary };
    node.rpc("bdev_error_create", json!({"base_name": DISK}));
    let volumes = json!({"volumes": [{"name": "v0", "bdev": format!("EE_{DISK}")}]});
    if on_secondary {
        pair.create_groups(json!({}), volumes);
    } else {
        pair.create_groups(volumes, json!({}));
    }
    pair.export_volume();
    pair.replicate("full");
    pair
}

fn hang(pair: &Pair, on_secondary: bool, io_type: &str, count: u32) {
    let node = if on_secondary { &pair.secondary } else { &pair.primary };
    node.rpc(
        "bdev_error_inject_error",
        json!({"name": format!("EE_{DISK}"), "io_type": io_type, "error_type": "pending", "num": count}),
    );
}

#[test]
fn a_write_that_hangs_on_the_secondarys_disk_does_not_stop_the_next_checkpoint() {
    let pair = pair_with_a_disk_that_can_hang(true);
    let mut volume = pair.volume();
    volume.write(0, &vec![0x11; 64 * 1024]);
    pair.checkpoint();
    hang(&pair, true, "write", 1);
    // The acknowledgement of this one waits for the disk, so it has a writer of its own.
    let mut stuck = pair.volume();
    let writer = std::thread::spawn(move || stuck.try_write(0, &[0x22; BLOCK]).is_ok());
    std::thread::sleep(Duration::from_millis(300));
    assert!(!writer.is_finished(), "the write does not hang");
    volume.write(8 * BLOCK as u64, &[0x33; BLOCK]);
    let from = Instant::now();
    pair.primary.rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 3000}));
    assert!(from.elapsed() < Duration::from_millis(3000) + GRACE);
    let mut view = pair.view();
    assert_eq!(view.read(0, BLOCK), vec![0x22; BLOCK], "the hung write is part of the checkpoint");
    assert_eq!(view.read(8 * BLOCK as u64, BLOCK), vec![0x33; BLOCK]);
    assert_eq!(view.read(BLOCK as u64, BLOCK), vec![0x11; BLOCK]);
    assert_answers_at_once(&pair);
    drop(pair);
    let _ = writer.join();
}

#[test]
fn a_read_that_hangs_on_the_secondarys_disk_ends_the_checkpoint_by_its_deadline() {
    let pair = pair_with_a_disk_that_can_hang(true);
    let mut volume = pair.volume();
    volume.write(0, &vec![0x11; 64 * 1024]);
    pair.checkpoint();
    // The copy before write hangs, so this write's old data is never known.
    hang(&pair, true, "read", 1);
    let mut stuck = pair.volume();
    let writer = std::thread::spawn(move || stuck.try_write(0, &[0x22; BLOCK]).is_ok());
    std::thread::sleep(Duration::from_millis(300));
    assert!(!writer.is_finished(), "the write does not hang");
    let from = Instant::now();
    let outcome =
        pair.primary.try_rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 1000}));
    assert!(
        from.elapsed() < Duration::from_millis(1000) + GRACE,
        "it took {:?}: {outcome:?}",
        from.elapsed()
    );
    let expected = if outcome.is_ok() { 0x22 } else { 0x11 };
    assert_eq!(
        pair.view().read(0, BLOCK),
        vec![expected; BLOCK],
        "the view is the last checkpoint: {outcome:?}"
    );
    assert_answers_at_once(&pair);
    drop(pair);
    let _ = writer.join();
}

#[test]
fn a_write_that_hangs_on_the_primarys_disk_holds_up_no_other_and_no_answer() {
    let pair = pair_with_a_disk_that_can_hang(false);
    hang(&pair, false, "write", 1);
    let mut stuck = pair.volume();
    let writer = std::thread::spawn(move || stuck.try_write(0, &[0x22; BLOCK]).is_ok());
    std::thread::sleep(Duration::from_millis(300));
    assert!(!writer.is_finished(), "the write does not hang");
    let mut other: Host = pair.volume();
    let from = Instant::now();
    other.write(8 * BLOCK as u64, &[0x33; BLOCK]);
    assert!(from.elapsed() < GRACE, "another write took {:?}", from.elapsed());
    let from = Instant::now();
    let outcome =
        pair.primary.try_rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 1000}));
    assert!(
        from.elapsed() < Duration::from_millis(1000) + GRACE,
        "it took {:?}: {outcome:?}",
        from.elapsed()
    );
    assert_answers_at_once(&pair);
    drop(pair);
    let _ = writer.join();
}

/// What the secondary told of, by the event's name.
fn events(pair: &Pair, kind: &str) -> usize {
    let all = pair.secondary.rpc("notify_get_notifications", json!({}));
    all.as_array().expect("a list").iter().filter(|event| event["type"] == kind).count()
}

/// The load goes on while a disk takes nothing, checkpoints and a failover too; when it answers it has everything.
fn a_disk_that_hangs_for_ever(keep: &str) {
    let mut pair = pair_with_a_disk_that_can_hang(true);
    let mut writers = writers(&pair);
    wait_for_progress(&writers, 50);
    pair.checkpoint();
    hang(&pair, true, "write", 1_000_000);
    let mut cut = Vec::new();
    for _ in 0..3 {
        let before = stamps::progress(&writers).acknowledged;
        pair.checkpoint();
        cut = vec![before, stamps::progress(&writers).issued];
        let view = pair.view().read_all();
        stamps::assert_one_point_in_time(&writers, &view, &cut[0], &cut[1]);
        wait_for_progress(&writers, 2);
    }
    assert!(events(&pair, "replication_hung_disk") > 0, "nobody said that the disk hangs");
    assert!(group(&pair.secondary)["buffer"]["pinned_bytes"].as_u64() > Some(0));
    pair.primary.kill();
    for writer in &mut writers {
        assert_ne!(writer.wait(PATIENCE), "stopped");
    }
    let end = stamps::progress(&writers);
    pair.failover(keep);
    let image = pair.survivor().read_all();
    let (earliest, latest) =
        if keep == "latest" { (&end.acknowledged, &end.issued) } else { (&cut[0], &cut[1]) };
    stamps::assert_one_point_in_time(&writers, &image, earliest, latest);
    assert_eq!(
        group(&pair.secondary)["state"],
        "serving, draining the buffer",
        "nothing of it is on the disk"
    );
    // What a host writes now is on top of what hangs.
    let mut survivor = pair.survivor();
    let mut after = image;
    after[..BLOCK].fill(0x5a);
    let newest = std::thread::spawn(move || survivor.write(0, &[0x5a; BLOCK]));
    std::thread::sleep(Duration::from_millis(200));
    let disk = format!("EE_{DISK}");
    let params = json!({"name": disk, "io_type": "clear", "error_type": "pending", "num": 1});
    pair.secondary.rpc("bdev_error_inject_error", params);
    pair.secondary.rpc("bdev_error_resume_pending", json!({"name": disk}));
    newest.join().expect("the write is taken");
    wait_for_state(&pair.secondary, "standalone");
    assert_eq!(group(&pair.secondary)["buffer"]["pinned_bytes"], 0);
    assert!(after == pair.survivor().read_all(), "the volume once the disk has answered");
}

#[test]
fn with_a_disk_that_hangs_for_ever_checkpoints_go_on_and_the_last_one_survives() {
    a_disk_that_hangs_for_ever("checkpoint");
}

#[test]
fn with_a_disk_that_hangs_for_ever_every_acknowledged_write_survives() {
    a_disk_that_hangs_for_ever("latest");
}
