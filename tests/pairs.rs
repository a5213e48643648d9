//! A pair whose link or secondary does not keep up: lost links that block, and every acknowledgement mode with a slow
//! secondary, up to the death of the primary.

mod common;

use common::load::*;
use common::pair::{DISK, GROUP, Pair, group};
use common::stamps::{self, Progress, Writer};
use common::wait_until;
use serde_json::json;

const SIZE_MIB: u64 = 16;
/// Blocks of the stamps in a volume of `SIZE_MIB`.
const BLOCKS: u64 = SIZE_MIB << 8;
/// How far the peer may lag behind acknowledged writes (docs/replication.md), and what the writers have outstanding.
const LAG_LIMIT: u64 = (64 << 20) + (1 << 20);

#[test]
fn with_block_a_cut_link_holds_writes_back_until_an_operator_decides_and_the_secondary_lacks_none() {
    let pair = Pair::nodes_with_a_cable(SIZE_MIB);
    pair.create_groups(json!({"on_link_loss": "block"}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    let mut writers = writers(&pair, BLOCKS, 4);
    wait_for_progress(&writers, 100);
    pair.checkpoint();
    wait_for_progress(&writers, 100);
    pair.cable().cut();
    wait_for_state(&pair.primary, "resync required");
    let acknowledged_at_last = wait_for_silence(&writers);
    let seen = group(&pair.primary);
    assert_eq!(seen["on_link_loss"], "block", "{seen}");
    assert_eq!(seen["connected"], false, "{seen}");
    assert!(seen["dirty_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{seen}");
    assert!(seen["error"].is_string(), "{seen}");

    // Nobody heard of a write that the secondary does not have.
    wait_for_state(&pair.secondary, "primary lost");
    pair.failover("latest");
    let issued = stamps::progress(&writers).issued;
    let survived = pair.survivor().read_all();
    stamps::assert_one_point_in_time(&writers, &survived, &acknowledged_at_last, &issued);

    // The operator takes the risk: what was held back is acknowledged, and no write failed.
    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "on_link_loss": "continue"}));
    wait_for_progress(&writers, 100);
    assert_eq!(group(&pair.primary)["on_link_loss"], "continue");
    assert_same(&survived, &pair.survivor().read_all(), "the secondary while the cut-off node goes on");

    // Once it can hear that it was replaced, it serves no more, and says that it has what the other has not.
    pair.cable().mend();
    wait_for_state(&pair.primary, "split brain");
    wait_for_end(&mut writers);
    assert_same(&survived, &pair.survivor().read_all(), "the secondary after the old primary came back");
}

#[test]
fn with_block_what_a_stopped_secondary_held_back_goes_on_when_the_pair_is_in_step_again() {
    let pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({"on_link_loss": "block"}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    let mut writers = writers(&pair, BLOCKS, 4);
    wait_for_progress(&writers, 50);
    pair.secondary.signal("STOP");
    wait_for_state(&pair.primary, "resync required");
    let before = wait_for_silence(&writers);
    assert!(pair.primary.try_rpc("replication_do_checkpoint", json!({"group": GROUP})).is_err());
    pair.secondary.signal("CONT");
    pair.wait_until_in_step();
    wait_for_progress(&writers, 50);
    stop(&mut writers);
    assert!(acknowledged(&writers).iter().zip(&before).all(|(now, then)| now > then));
    pair.checkpoint();
    let volume = pair.volume().read_all();
    assert_same(&volume, &pair.view().read_all(), "the view after the checkpoint");
    let end = stamps::progress(&writers);
    stamps::assert_one_point_in_time(&writers, &volume, &end.acknowledged, &end.issued);
}

/// A pair under load whose secondary's disk takes `mib_per_second`, and what was acknowledged at its last checkpoint.
fn slow_pair(ack: &str, mib_per_second: u64) -> (Pair, Vec<Writer>, Vec<usize>) {
    let pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({"ack": ack}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    let writers = writers(&pair, BLOCKS, 8);
    wait_for_progress(&writers, 300);
    let at_checkpoint = acknowledged(&writers);
    pair.checkpoint();
    limit_secondary(&pair, mib_per_second);
    (pair, writers, at_checkpoint)
}

fn limit_secondary(pair: &Pair, mib_per_second: u64) {
    pair.secondary.rpc("bdev_set_qos_limit", json!({"name": DISK, "rw_mbytes_per_sec": mib_per_second}));
}

/// How far the secondary lags. It is slow, which is no fault, and within the limit.
#[track_caller]
fn lag_of_healthy(pair: &Pair) -> u64 {
    let (primary, secondary) = (group(&pair.primary), group(&pair.secondary));
    assert_eq!((&primary["state"], &secondary["state"]), (&json!("running"), &json!("running")), "{primary}");
    assert!(primary["error"].is_null() && secondary["error"].is_null(), "{primary}, {secondary}");
    let lag = primary["lag_bytes"].as_u64().expect("a number of bytes");
    assert!(lag <= LAG_LIMIT, "the secondary lags by {lag} bytes");
    lag
}

/// Resident memory of a node, beside its data buffers: those have a limit of their own.
fn resident_kib(node: &common::node::Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("a running node");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

fn bounded_and_drained_by_applied(ack: &str, reached_mib: u64) {
    let (pair, mut writers, _) = slow_pair(ack, 4);
    wait_until("the secondary lags as far as it can", PATIENCE, || {
        lag_of_healthy(&pair) >= reached_mib << 20
    });
    // At the limit hosts go on, at the pace of the secondary's disk.
    wait_for_progress(&writers, 30);
    lag_of_healthy(&pair);
    for node in [&pair.primary, &pair.secondary] {
        // 256 MiB and two volumes for data buffers, and what a process of this kind needs.
        assert!(resident_kib(node) < (256 + 3 * SIZE_MIB + 128) << 10, "{} KiB", resident_kib(node));
    }
    // A checkpoint under this lag has everything of its epoch.
    let before = acknowledged(&writers);
    pair.primary.rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 8000}));
    let after = stamps::progress(&writers).issued;
    limit_secondary(&pair, 32);
    stamps::assert_one_point_in_time(&writers, &pair.view().read_all(), &before, &after);

    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "ack": "applied"}));
    wait_until("the lag is gone but for what is under way", PATIENCE, || {
        group(&pair.primary)["lag_bytes"].as_u64().is_some_and(|lag| lag <= 8 * 4096)
    });
    wait_for_progress(&writers, 30);
    assert_eq!(group(&pair.primary)["ack"], "applied");
    stop(&mut writers);
    pair.checkpoint();
    let volume = pair.volume().read_all();
    assert_same(&volume, &pair.view().read_all(), "the view after the checkpoint");
    let end = stamps::progress(&writers);
    stamps::assert_one_point_in_time(&writers, &volume, &end.acknowledged, &end.issued);
}

#[test]
fn with_local_a_slow_secondary_lags_up_to_the_limit_and_applied_drains_it_under_load() {
    bounded_and_drained_by_applied("local", 63);
}

#[test]
fn with_received_a_slow_secondary_lags_within_the_limit_and_applied_drains_it_under_load() {
    bounded_and_drained_by_applied("received", 24);
}

/// The primary dies under load while the secondary's disk lags; what is left, and how far the load was at the last
/// checkpoint and in the end.
fn killed_primary(ack: &str) -> (Vec<Writer>, Vec<u8>, Vec<usize>, Progress) {
    let (mut pair, mut writers, at_checkpoint) = slow_pair(ack, 8);
    let lags = if ack == "applied" { 4096 } else { 8 << 20 };
    wait_until("the secondary lags", PATIENCE, || lag_of_healthy(&pair) >= lags);
    pair.primary.kill();
    wait_for_end(&mut writers);
    wait_for_state(&pair.secondary, "primary lost");
    pair.failover("latest");
    let survived = pair.survivor().read_all();
    limit_secondary(&pair, 0);
    wait_until("the disk has everything", PATIENCE, || {
        let seen = group(&pair.secondary);
        seen["state"] == "standalone" && seen["buffer"]["pinned_bytes"] == 0
    });
    assert_same(&survived, &pair.survivor().read_all(), "the volume once the disk has everything");
    let end = stamps::progress(&writers);
    (writers, survived, at_checkpoint, end)
}

#[test]
fn the_death_of_the_primary_loses_nothing_that_was_acknowledged_as_applied() {
    let (writers, survived, _, end) = killed_primary("applied");
    stamps::assert_one_point_in_time(&writers, &survived, &end.acknowledged, &end.issued);
}

#[test]
fn the_death_of_the_primary_loses_nothing_that_was_acknowledged_as_received() {
    let (writers, survived, _, end) = killed_primary("received");
    stamps::assert_one_point_in_time(&writers, &survived, &end.acknowledged, &end.issued);
}

#[test]
fn the_death_of_the_primary_leaves_one_point_in_time_after_the_last_checkpoint_with_local() {
    let (writers, survived, at_checkpoint, end) = killed_primary("local");
    stamps::assert_one_point_in_time(&writers, &survived, &at_checkpoint, &end.issued);
}
