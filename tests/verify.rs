//! Online verify between real nodes whose disks are files: what changes behind a node's back is found, exactly, told and
//! repaired, while hosts write and checkpoints go on.

mod common;

use common::load::*;
use common::node::Node;
use common::pair::{Disk, GROUP, Pair, Shape, VOLUME, disk_name, group, volume_name};
use common::stamps::{BLOCK, Writer};
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
/// Not a multiple of a stripe, nor of what is compared at once.
const SIZE: u64 = 33 * MIB + 12_288;
/// The writers keep to the blocks before this.
const LOADED: u64 = 16 * MIB;
const VOLUMES: usize = 2;

fn path_of(node: &Node, number: usize) -> PathBuf {
    node.dir().join(format!("disk{number}"))
}

fn open(node: &Node, number: usize) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path_of(node, number)).expect("the disk's file")
}

/// A pair in step, with two reactors each, whose disks are files of noise.
fn pair_on_files() -> Pair {
    let disk = Disk { mib: 1, block_size: BLOCK as u32 };
    let pair = Pair::of(Shape {
        primary_cores: "0,1",
        secondary_cores: "0,1",
        disks: vec![disk; VOLUMES],
        memory_mib: 384,
        cable: false,
    });
    let file = |number| format!("File{number}");
    for node in [&pair.primary, &pair.secondary] {
        for number in 0..VOLUMES {
            let disk = open(node, number);
            disk.write_all_at(&noise(number as u64, SIZE as usize), 0).expect("noise");
            node.rpc(
                "bdev_uring_create",
                json!({"name": file(number), "filename": path_of(node, number), "block_size": BLOCK}),
            );
        }
    }
    let volumes: Vec<Value> =
        (0..VOLUMES).map(|number| json!({"name": volume_name(number), "bdev": file(number)})).collect();
    pair.create_groups(json!({"volumes": volumes}), json!({"volumes": volumes}));
    pair.export_volume();
    pair.replicate("full");
    pair
}

/// Changes a range of a node's disk behind its back, past what the page cache may hold of it.
fn rot(node: &Node, number: usize, offset: u64, bytes: usize) {
    let file = open(node, number);
    let mut content = vec![0; bytes];
    file.read_exact_at(&mut content, offset).expect("the old content");
    content.iter_mut().for_each(|byte| *byte ^= 0x10);
    file.write_all_at(&content, offset).expect("another content");
    file.sync_all().expect("it is on the disk, where a read past the cache finds it");
}

fn verify(pair: &Pair, params: Value) {
    let mut all = json!({"group": GROUP});
    if let (Some(all), Value::Object(params)) = (all.as_object_mut(), params) {
        all.extend(params);
    }
    pair.primary.rpc("replication_verify_start", all);
}

fn report(pair: &Pair) -> Value {
    group(&pair.primary)["verify"].clone()
}

#[track_caller]
fn wait_for_end_of_verify(pair: &Pair) -> Value {
    wait_until("the verify ends", PATIENCE, || {
        !["running", "repairing"].contains(&report(pair)["state"].as_str().expect("a state"))
    });
    report(pair)
}

fn found(report: &Value) -> BTreeSet<(String, u64, u64)> {
    let ranges = report["differences"].as_array().expect("an array");
    let number = |range: &Value, name: &str| range[name].as_u64().expect("a number");
    let range = |range: &Value| {
        let volume = range["volume"].as_str().expect("a name").to_owned();
        (volume, number(range, "offset"), number(range, "bytes"))
    };
    ranges.iter().map(range).collect()
}

fn events(node: &Node, kind: &str) -> Vec<String> {
    let all = node.rpc("notify_get_notifications", json!({}));
    let wanted = all.as_array().expect("a list").iter().filter(|event| event["type"] == kind);
    wanted.map(|event| event["ctx"].as_str().expect("a text").to_owned()).collect()
}

/// Writers on the first part of both volumes.
fn load(pair: &Pair) -> Vec<Writer> {
    let blocks = LOADED / BLOCK as u64;
    (0..VOLUMES)
        .map(|number| {
            pair.volume_of(number).write_zeroes(0, LOADED as usize).expect("zeroes for the writers");
            Writer::start(pair.volume_of(number), 0, blocks)
        })
        .collect()
}

fn assert_disks_equal(pair: &Pair) {
    for number in 0..VOLUMES {
        let [here, there] = [&pair.primary, &pair.secondary].map(|node| {
            let mut content = vec![0; SIZE as usize];
            open(node, number).read_exact_at(&mut content, 0).expect("the disk's content");
            content
        });
        assert_same(&here, &there, "the two nodes' disks");
    }
}

#[test]
fn what_rots_on_the_secondary_is_found_exactly_under_load_and_repaired() {
    let pair = pair_on_files();
    assert_eq!(report(&pair), Value::Null, "there was none");
    let mut writers = load(&pair);
    wait_for_progress(&writers, 50);

    // Nothing differs, however much is written and however often a checkpoint is cut meanwhile.
    verify(&pair, json!({"rate_mb": 40}));
    for _ in 0..5 {
        pair.checkpoint();
        wait_for_progress(&writers, 10);
    }
    let clean = wait_for_end_of_verify(&pair);
    assert_eq!((&clean["state"], &clean["differing_bytes"]), (&json!("finished"), &json!(0)), "{clean}");
    assert_eq!(clean["checked_bytes"], json!(SIZE * VOLUMES as u64), "{clean}");
    assert_eq!(clean["total_bytes"], clean["checked_bytes"], "{clean}");
    assert_eq!(group(&pair.primary)["error"], Value::Null);

    // One byte, a run over a border of stripes, and the last block.
    rot(&pair.secondary, 0, 17 * MIB + 5000, 1);
    rot(&pair.secondary, 1, 20 * MIB - 8192, 16_384);
    rot(&pair.secondary, 1, SIZE - 4096, 4096);
    let expected: BTreeSet<(String, u64, u64)> = [
        (volume_name(0), 17 * MIB + 4096, 4096),
        (volume_name(1), 20 * MIB - 8192, 16_384),
        (volume_name(1), SIZE - 4096, 4096),
    ]
    .into();
    verify(&pair, json!({"rate_mb": 200}));
    let report_only = wait_for_end_of_verify(&pair);
    assert_eq!(found(&report_only), expected, "{report_only}");
    assert_eq!(report_only["differing_bytes"], json!(24_576), "{report_only}");
    let seen = group(&pair.primary);
    assert!(seen["dirty_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "what differs is marked: {seen}");
    assert!(seen["error"].as_str().is_some_and(|text| text.contains("24576 bytes")), "{seen}");

    verify(&pair, json!({"rate_mb": 200, "repair": true}));
    pair.checkpoint();
    let repaired = wait_for_end_of_verify(&pair);
    assert_eq!(repaired["state"], "finished", "{repaired}");
    assert_eq!(found(&repaired), expected, "what is only reported stays as it is: {repaired}");
    let seen = group(&pair.primary);
    assert_eq!((&seen["dirty_bytes"], &seen["error"]), (&json!(0), &Value::Null), "{seen}");

    verify(&pair, json!({"rate_mb": 200}));
    let again = wait_for_end_of_verify(&pair);
    assert_eq!((&again["state"], &again["differing_bytes"]), (&json!("finished"), &json!(0)), "{again}");
    stop(&mut writers);
    assert_disks_equal(&pair);
    pair.checkpoint();
    for number in 0..VOLUMES {
        let volume = pair.volume_of(number).read_all();
        assert_same(&volume, &pair.view_of(number).read_all(), "the view after the checkpoint");
    }
    assert_eq!(events(&pair.primary, "replication_verify_started").len(), 4);
    assert!(events(&pair.primary, "replication_verify_difference").len() >= 2 * expected.len());
    let ends = events(&pair.primary, "replication_verify_finished");
    let words =
        ["the same content", "24576 bytes: see", "24576 bytes differed and were copied", "the same content"];
    assert!(ends.len() == 4 && ends.iter().zip(words).all(|(end, words)| end.contains(words)), "{ends:?}");
}

#[test]
fn a_hung_disk_a_lost_peer_and_a_stop_end_a_verify_with_a_word_on_why() {
    let mut pair = pair_on_files();
    let refused = |node: &Node, method: &str| {
        let error = node.try_rpc(method, json!({"group": GROUP})).expect_err("it must be refused");
        (error.code, error.message)
    };
    assert_eq!(refused(&pair.primary, "replication_verify_stop").0, -1, "there is none");
    assert_eq!(refused(&pair.secondary, "replication_verify_start").0, -95, "it is for the primary");
    for rate_mb in [0, 65_537] {
        let params = json!({"group": GROUP, "rate_mb": rate_mb});
        let error = pair.primary.try_rpc("replication_verify_start", params).expect_err("no such rate");
        assert!(error.code == -22 && error.message.contains("rate_mb"), "{error:?}");
    }

    verify(&pair, json!({"rate_mb": 1}));
    assert_eq!(refused(&pair.primary, "replication_verify_start").0, -1, "one at a time");
    wait_until("it is under way", PATIENCE, || {
        let report = report(&pair);
        report["checked_bytes"].as_u64() > Some(0) && report["seconds_left"].as_u64() > Some(1)
    });
    pair.primary.rpc("replication_verify_stop", json!({"group": GROUP}));
    let stopped = report(&pair);
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    assert!(stopped["checked_bytes"].as_u64() < stopped["total_bytes"].as_u64(), "{stopped}");

    let mut writers = load(&pair);
    wait_for_progress(&writers, 20);
    verify(&pair, json!({"rate_mb": 1}));
    pair.secondary.kill();
    let failed = wait_for_end_of_verify(&pair);
    assert_eq!(failed["state"], "failed", "{failed}");
    assert!(failed["error"].as_str().is_some_and(|text| text.contains("link")), "{failed}");
    wait_for_progress(&writers, 20);
    stop(&mut writers);
    let (code, message) = refused(&pair.primary, "replication_verify_start");
    assert!(code == -1 && message.contains("resync required"), "{message}");
}

/// A pair whose disks can be told to fail.
fn pair_with_bad_disks() -> Pair {
    let pair = Pair::nodes(16);
    for node in [&pair.primary, &pair.secondary] {
        node.rpc("bdev_error_create", json!({"base_name": disk_name(0)}));
    }
    let volumes = json!({"volumes": [{"name": VOLUME, "bdev": bad_disk()}]});
    pair.create_groups(volumes.clone(), volumes);
    pair.export_volume();
    pair.replicate("full");
    pair
}

fn bad_disk() -> String {
    format!("EE_{}", disk_name(0))
}

/// The next read of the node's disk ends so, or does not.
fn spoil_a_read(node: &Node, how: &str) {
    let params = json!({"name": bad_disk(), "io_type": "read", "error_type": how, "num": 1});
    node.rpc("bdev_error_inject_error", params);
}

#[test]
fn a_disk_that_hangs_or_fails_ends_a_verify_is_named_and_holds_up_no_host() {
    let pair = pair_with_bad_disks();
    for (node, how, words) in [
        (&pair.secondary, "pending", "the secondary's disk did not answer"),
        (&pair.secondary, "failure", "the secondary's disk failed a read"),
        (&pair.primary, "failure", "this node's disk failed a read"),
    ] {
        spoil_a_read(node, how);
        verify(&pair, json!({"rate_mb": 100}));
        let failed = wait_for_end_of_verify(&pair);
        assert_eq!(failed["state"], "failed", "{how}: {failed}");
        assert!(failed["error"].as_str().is_some_and(|text| text.contains(words)), "{how}: {failed}");
        assert_eq!(group(&pair.primary)["state"], "running", "the pair goes on");
        assert!(
            events(&pair.primary, "replication_verify_failed")
                .last()
                .is_some_and(|text| text.contains(words))
        );
        // The first range is the one that was being read.
        pair.volume().write(0, &noise(5, BLOCK));
        pair.checkpoint();
    }
    pair.secondary.rpc("bdev_error_resume_pending", json!({"name": bad_disk()}));
    verify(&pair, json!({"rate_mb": 100}));
    let clean = wait_for_end_of_verify(&pair);
    assert_eq!((&clean["state"], &clean["differing_bytes"]), (&json!("finished"), &json!(0)), "{clean}");
}
