//! A pair that lost its link and finds together again by itself: only what changed is copied, while hosts go on, and
//! the last checkpoint stands until it is done.

mod common;

use common::load::*;
use common::node::Node;
use common::pair::{GROUP, Pair, group};
use common::stamps::{self, BLOCK, Writer};
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const SIZE_MIB: u64 = 64;
const MIB: usize = 1 << 20;
/// The writers have the first part of the volume.
const WRITTEN_MIB: u64 = 12;
const WRITTEN_BLOCKS: u64 = WRITTEN_MIB << 8;

/// A pair in step, on a cable, with a checkpoint of noise all over it but where the writers write.
fn pair() -> (Pair, Vec<u8>) {
    let pair = Pair::nodes_with_a_cable(SIZE_MIB);
    pair.create_groups(json!({"peer_timeout_ms": 1000}), json!({"peer_timeout_ms": 1000}));
    pair.export_volume();
    pair.replicate("full");
    let mut content = noise(7, (SIZE_MIB as usize) << 20);
    content[..WRITTEN_MIB as usize * MIB].fill(0);
    let mut volume = pair.volume();
    for at in (WRITTEN_MIB as usize * MIB..content.len()).step_by(MIB) {
        volume.write(at as u64, &content[at..at + MIB]);
    }
    pair.checkpoint();
    (pair, content)
}

fn set_rate(pair: &Pair, mib_per_second: u64) {
    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "resync_rate_mb": mib_per_second}));
}

/// What the primary says of the copy that runs.
fn wait_for_sync(pair: &Pair) -> Value {
    wait_until("the copy runs", PATIENCE, || group(&pair.primary)["sync"].is_object());
    group(&pair.primary)["sync"].clone()
}

fn left(pair: &Pair) -> u64 {
    let sync = group(&pair.primary)["sync"].clone();
    sync["left_bytes"].as_u64().unwrap_or(0)
}

fn lose_the_link(pair: &Pair) {
    pair.cable().cut();
    wait_for_state(&pair.primary, "resync required");
    wait_for_state(&pair.secondary, "primary lost");
}

fn assert_in_step(pair: &Pair, writers: &[Writer]) {
    pair.checkpoint();
    let volume = pair.volume().read_all();
    assert_same(&volume, &pair.view().read_all(), "the view after the checkpoint");
    let end = stamps::progress(writers);
    stamps::assert_one_point_in_time(writers, &volume, &end.acknowledged, &end.issued);
}

/// Writes all over the first part of the volume, a block in every bit of the primary's map.
fn change(pair: &Pair, seed: u64, mib: u64) {
    let mut volume = pair.volume();
    for at in (0..mib << 20).step_by(64 << 10) {
        volume.write(at, &noise(seed + at, BLOCK));
    }
}

#[test]
fn a_link_that_comes_back_brings_the_pair_in_step_under_load_by_copying_what_changed() {
    let (pair, image) = pair();
    let mut writers = writers(&pair, WRITTEN_BLOCKS, 4);
    wait_for_progress(&writers, 50);
    lose_the_link(&pair);
    wait_for_progress(&writers, 200);
    set_rate(&pair, 1);
    pair.cable().mend();
    let sync = wait_for_sync(&pair);
    let total = sync["total_bytes"].as_u64().expect("a total");
    assert!((1..=WRITTEN_MIB << 20).contains(&total), "what was not written is not copied: {sync}");
    assert_eq!(group(&pair.primary)["state"], "syncing");
    assert_eq!(group(&pair.secondary)["state"], "inconsistent");
    wait_until("a rate is known", PATIENCE, || {
        let sync = group(&pair.primary)["sync"].clone();
        sync["bytes_per_second"].as_u64() > Some(0) && sync["seconds_left"].is_u64()
    });
    wait_for_progress(&writers, 50);
    // Neither a checkpoint nor what would be a part of two states; the view is what it was.
    assert!(pair.primary.try_rpc("replication_do_checkpoint", json!({"group": GROUP})).is_err());
    let latest = json!({"group": GROUP, "keep": "latest"});
    let error = pair.secondary.try_rpc("replication_failover", latest).expect_err("it is inconsistent");
    assert!(error.message.contains("inconsistent"), "{error:?}");
    assert_same(&image, &pair.view().read_all(), "the view while the copy runs");
    assert!(left(&pair) > 0, "the copy was meant to be running still");
    set_rate(&pair, 0);
    pair.wait_until_in_step();
    assert!(group(&pair.primary)["error"].is_null());
    wait_for_progress(&writers, 50);
    stop(&mut writers);
    assert_in_step(&pair, &writers);
}

#[test]
fn a_copy_that_is_interrupted_or_stopped_goes_on_with_what_is_left() {
    let (pair, _) = pair();
    lose_the_link(&pair);
    change(&pair, 1, 8);
    set_rate(&pair, 2);
    pair.cable().mend();
    let first = wait_for_sync(&pair)["total_bytes"].as_u64().expect("a total");
    assert_eq!(first, 8 << 20);
    wait_until("a part of it is done", PATIENCE, || (1..6 << 20).contains(&left(&pair)));
    pair.cable().cut();
    wait_for_state(&pair.primary, "resync required");
    pair.cable().mend();
    let second = wait_for_sync(&pair)["total_bytes"].as_u64().expect("a total");
    assert!(second < 7 << 20, "{second} of {first}");
    wait_until("more of it is done", PATIENCE, || (1..4 << 20).contains(&left(&pair)));
    pair.primary.rpc("replication_stop", json!({"group": GROUP}));
    let stopped = group(&pair.primary);
    assert_eq!(stopped["state"], "stopped");
    assert!((1..5 << 20).contains(&stopped["dirty_bytes"].as_u64().expect("bytes")), "{stopped}");
    wait_until("the secondary has heard", PATIENCE, || group(&pair.secondary)["connected"] == false);
    pair.primary.rpc("replication_start", json!({"group": GROUP, "sync": "changed"}));
    let third = wait_for_sync(&pair)["total_bytes"].as_u64().expect("a total");
    assert!(third < 5 << 20, "{third} of {second}");
    set_rate(&pair, 0);
    pair.wait_until_in_step();
    assert_in_step(&pair, &[]);
}

#[test]
fn a_primary_that_dies_in_the_middle_of_the_copy_leaves_the_last_checkpoint_to_go_on_from() {
    let (mut pair, image) = pair();
    lose_the_link(&pair);
    change(&pair, 3, 8);
    set_rate(&pair, 1);
    pair.cable().mend();
    wait_for_sync(&pair);
    wait_until("a part of it is done", PATIENCE, || (1..7 << 20).contains(&left(&pair)));
    pair.primary.kill();
    pair.failover("checkpoint");
    assert_same(&image, &pair.survivor().read_all(), "the volume after the failover");
    wait_for_state(&pair.secondary, "standalone");
    assert_same(&image, &pair.survivor().read_all(), "the volume on its disk");
}

#[test]
fn a_secondary_that_began_anew_needs_a_full_sync_and_says_so() {
    let pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({"peer_timeout_ms": 1000}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    pair.volume().write(0, &noise(1, MIB));
    // The same name, and nothing else that it had before.
    pair.secondary.rpc("nvmf_delete_subsystem", json!({"nqn": common::pair::VOLUME_NQN}));
    pair.secondary.rpc("nvmf_delete_subsystem", json!({"nqn": common::pair::VIEW_NQN}));
    pair.secondary.rpc("replication_group_delete", json!({"group": GROUP}));
    pair.create_secondary(json!({}));
    wait_until("the primary says what is to be done", PATIENCE, || {
        let seen = group(&pair.primary);
        let error = seen["error"].as_str().unwrap_or_default().to_owned();
        seen["state"] == "resync required" && error.contains("start with sync `full`")
    });
    pair.volume().write(0, &noise(2, MIB));
    let changed = json!({"group": GROUP, "sync": "changed"});
    let error = pair.primary.try_rpc("replication_start", changed).expect_err("nobody knows what it lacks");
    assert_eq!(error.code, -22, "{error:?}");
    pair.replicate("full");
    pair.checkpoint();
    pair.failover("checkpoint");
    wait_for_state(&pair.secondary, "standalone");
}

#[test]
fn links_that_are_lost_over_and_over_under_load_cost_no_write() {
    let (pair, _) = pair();
    let mut writers = writers(&pair, WRITTEN_BLOCKS, 4);
    let seed = std::process::id();
    println!("seed {seed}");
    let mut random = u64::from(seed) | 1;
    for round in 0..12 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        set_rate(&pair, random % 4 * 8);
        wait_for_progress(&writers, 10);
        pair.cable().cut();
        std::thread::sleep(Duration::from_millis(random >> 16 & 0x7ff));
        pair.cable().mend();
        if round % 3 == 2 {
            wait_for_progress(&writers, 10);
            set_rate(&pair, 0);
            pair.wait_until_in_step();
            pair.checkpoint();
        }
        std::thread::sleep(Duration::from_millis(random >> 32 & 0x3ff));
    }
    set_rate(&pair, 0);
    wait_for_progress(&writers, 10);
    pair.wait_until_in_step();
    stop(&mut writers);
    assert_in_step(&pair, &writers);
}

/// The configuration of the secondary of [`Pair`] over a disk and a record in `folder`, as a file.
fn secondary_on(folder: &Path, link_port: u16) -> Value {
    json!({"name": GROUP, "role": "secondary", "disk_buffer": true, "buffer_limit_mb": 256, "granule_kb": 4,
           "listen": {"transport": "tcp", "address": "127.0.0.1", "port": link_port},
           "volumes": [{"name": "v0", "bdev": "File0"}], "metadata": folder.join("meta")})
}

fn file_disk(folder: &Path) -> Value {
    json!({"name": "File0", "filename": folder.join("disk"), "block_size": 4096})
}

#[test]
fn a_secondary_that_was_killed_and_started_again_gets_what_it_may_lack_and_not_the_whole_volume() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut pair = Pair::nodes(SIZE_MIB);
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).and_then(|f| f.set_len(SIZE_MIB << 20)).expect("a file for a disk");
    pair.secondary.rpc("bdev_uring_create", file_disk(folder.path()));
    let volumes = json!([{"name": "v0", "bdev": "File0"}]);
    let metadata = json!({"volumes": volumes, "metadata": folder.path().join("meta")});
    pair.create_groups(json!({}), metadata);
    pair.export_volume();
    pair.replicate("full");
    let mut volume = pair.volume();
    let content = noise(7, (SIZE_MIB as usize) << 20);
    for at in (0..content.len()).step_by(MIB) {
        volume.write(at as u64, &content[at..at + MIB]);
    }
    volume.flush().expect("flushed");
    let mut writers = writers(&pair, WRITTEN_BLOCKS, 4);
    for round in 0..3 {
        wait_for_progress(&writers, 50);
        pair.checkpoint();
        wait_for_progress(&writers, 50);
        set_rate(&pair, 1);
        pair.secondary.kill();
        wait_for_state(&pair.primary, "resync required");
        wait_for_progress(&writers, 50);
        pair.secondary = Node::builder("secondary").cores("1").memory_mib(512).start();
        pair.secondary.rpc("bdev_uring_create", file_disk(folder.path()));
        pair.secondary.rpc("nvmf_create_transport", json!({"trtype": "TCP"}));
        pair.secondary.rpc("replication_group_create", secondary_on(folder.path(), pair.link_port));
        let sync = wait_for_sync(&pair);
        let total = sync["total_bytes"].as_u64().expect("a total");
        assert!((1..=WRITTEN_MIB << 20).contains(&total), "round {round}: {sync}");
        let checkpoint = json!({"group": GROUP, "keep": "checkpoint"});
        let error =
            pair.secondary.try_rpc("replication_failover", checkpoint).expect_err("its buffer is gone");
        assert!(error.message.contains("inconsistent"), "{error:?}");
        set_rate(&pair, 0);
        pair.wait_until_in_step();
    }
    stop(&mut writers);
    pair.checkpoint();
    let expected = pair.volume().read_all();
    pair.primary.kill();
    pair.failover("latest");
    wait_for_state(&pair.secondary, "standalone");
    common::pair::export(
        &pair.secondary,
        "127.0.0.1",
        pair.secondary_port,
        common::pair::VOLUME_NQN,
        "v0",
        0x100,
        false,
    );
    assert_same(&expected, &pair.survivor().read_all(), "the volume after the failover");
}

fn sent_bytes(pair: &Pair) -> u64 {
    group(&pair.primary)["sent_bytes"].as_u64().expect("bytes")
}

fn set(pair: &Pair, options: Value) {
    let mut params = json!({"group": GROUP});
    params.as_object_mut().expect("members").extend(options.as_object().expect("members").clone());
    pair.primary.rpc("replication_set_options", params);
}

#[test]
fn a_full_copy_sends_neither_zeroes_nor_by_checksum_what_the_peer_has() {
    let pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    assert!(sent_bytes(&pair) < 1 << 20, "an empty disk is no content: {}", sent_bytes(&pair));
    let content = noise(3, 32 * MIB);
    let mut volume = pair.volume();
    for at in (0..content.len()).step_by(MIB) {
        volume.write(at as u64, &content[at..at + MIB]);
    }
    pair.checkpoint();
    pair.primary.rpc("replication_stop", json!({"group": GROUP}));
    wait_until("the secondary has heard", PATIENCE, || group(&pair.secondary)["connected"] == false);
    for at in (0..32).step_by(4) {
        volume.write(at * MIB as u64, &noise(at, BLOCK));
    }
    set(&pair, json!({"resync_checksum": true, "resync_rate_mb": 64}));
    let before = sent_bytes(&pair);
    pair.primary.rpc("replication_start", json!({"group": GROUP, "sync": "full"}));
    let sync = wait_for_sync(&pair);
    assert_eq!(sync["total_bytes"], SIZE_MIB << 20, "{sync}");
    wait_until("equal pieces are found", PATIENCE, || {
        group(&pair.primary)["sync"]["equal_bytes"].as_u64().is_none_or(|bytes| bytes > 8 << 20)
    });
    pair.wait_until_in_step();
    let sent = sent_bytes(&pair) - before;
    assert!((8 * BLOCK as u64..4 << 20).contains(&sent), "eight pieces differ, and {sent} bytes were sent");
    assert_in_step(&pair, &[]);
}

#[test]
fn a_copy_rests_while_it_is_paused_and_hosts_go_on() {
    let (pair, _) = pair();
    lose_the_link(&pair);
    change(&pair, 5, 8);
    pair.primary.rpc("replication_sync_pause", json!({"group": GROUP}));
    pair.cable().mend();
    let paused = wait_for_sync(&pair);
    assert_eq!((&paused["paused"], &paused["left_bytes"]), (&json!(true), &json!(8 << 20)), "{paused}");
    assert!(paused["seconds_left"].is_null(), "{paused}");
    let mut volume = pair.volume();
    for round in 0..200 {
        volume.write((round % 64) << 16, &noise(round, BLOCK));
    }
    assert_eq!(group(&pair.primary)["state"], "syncing");
    // Not less: nothing was copied. What hosts write reaches the peer all the same.
    assert_eq!(left(&pair), 8 << 20);
    // It rests over an interruption, too, and where it was going on already.
    pair.cable().cut();
    wait_for_state(&pair.primary, "resync required");
    set_rate(&pair, 2);
    pair.cable().mend();
    assert_eq!(wait_for_sync(&pair)["paused"], true);
    pair.primary.rpc("replication_sync_resume", json!({"group": GROUP}));
    wait_until("a part of it is done", PATIENCE, || (1..7 << 20).contains(&left(&pair)));
    pair.primary.rpc("replication_sync_pause", json!({"group": GROUP}));
    wait_until("what was under way has ended", PATIENCE, || {
        let before = left(&pair);
        std::thread::sleep(Duration::from_millis(200));
        left(&pair) == before
    });
    assert_eq!(group(&pair.primary)["state"], "syncing");
    set_rate(&pair, 0);
    pair.primary.rpc("replication_sync_resume", json!({"group": GROUP}));
    pair.wait_until_in_step();
    assert_in_step(&pair, &[]);
    let refused = pair.secondary.try_rpc("replication_sync_pause", json!({"group": GROUP}));
    assert_eq!(refused.expect_err("it copies nothing").code, -95);
}

#[test]
fn a_copy_makes_way_for_hosts_whose_writes_take_longer_than_they_should() {
    let (pair, _) = pair();
    lose_the_link(&pair);
    let mut volume = pair.volume();
    for at in (WRITTEN_MIB as usize * MIB..(WRITTEN_MIB as usize + 24) * MIB).step_by(MIB) {
        volume.write(at as u64, &noise(at as u64, MIB));
    }
    // No write is that quick.
    set(&pair, json!({"resync_latency_target_us": 1}));
    let mut writers = writers(&pair, WRITTEN_BLOCKS, 4);
    pair.cable().mend();
    wait_for_sync(&pair);
    let began = std::time::Instant::now();
    // It goes on, at its slowest.
    wait_until("half of it is done", PATIENCE, || left(&pair) < 12 << 20);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2), "as quick as without hosts: {took:?}");
    set(&pair, json!({"resync_latency_target_us": 0}));
    pair.wait_until_in_step();
    stop(&mut writers);
    assert_in_step(&pair, &writers);
}
