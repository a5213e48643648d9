//! A primary that loses its own disk under load: by option the group goes on through the peer, no host notices, nothing that
//! was acknowledged is lost, and nothing stale is served, until a replacement is filled.

mod common;

use common::load::*;
use common::node::Node;
use common::noise;
use common::pair::{DISK, Disk, GROUP, Pair, Shape, disk_name, group, volume_name};
use common::stamps::{self, BLOCK, Writer};
use common::wait_until;
use serde_json::{Value, json};

const SIZE_MIB: u64 = 24;
const BLOCKS: u64 = SIZE_MIB << 8;

fn failing(number: usize) -> String {
    format!("EE_{}", disk_name(number))
}

/// A pair in step that detaches; the disks of its primary can be made to fail.
fn pair(shape: Shape, primary: Value) -> Pair {
    let disks = shape.disks.len();
    let pair = Pair::of(shape);
    for number in 0..disks {
        pair.primary.rpc("bdev_error_create", json!({"base_name": disk_name(number)}));
    }
    let volumes: Vec<Value> =
        (0..disks).map(|number| json!({"name": volume_name(number), "bdev": failing(number)})).collect();
    let mut params = json!({"on_disk_failure": "detach", "volumes": volumes});
    if let (Some(params), Value::Object(primary)) = (params.as_object_mut(), primary) {
        params.extend(primary);
    }
    pair.create_groups(params, json!({}));
    pair.export_volume();
    pair.replicate("full");
    pair
}

fn simple() -> Pair {
    pair(Shape { memory_mib: 384, ..Shape::simple(SIZE_MIB) }, json!({}))
}

/// From now on the disk fails all I/O of this kind.
fn fail(pair: &Pair, number: usize, io_type: &str) {
    pair.primary.rpc(
        "bdev_error_inject_error",
        json!({"name": failing(number), "io_type": io_type, "error_type": "failure", "num": u32::MAX}),
    );
}

/// The disk works again, with what it had: nobody may ever see that.
fn heal(pair: &Pair, number: usize) {
    pair.primary.rpc(
        "bdev_error_inject_error",
        json!({"name": failing(number), "io_type": "clear", "error_type": "failure"}),
    );
}

fn disk_of(pair: &Pair, number: usize) -> String {
    group(&pair.primary)["volumes"][number]["disk"].as_str().expect("a word").to_owned()
}

#[track_caller]
fn wait_for_disk(pair: &Pair, number: usize, state: &str) {
    wait_until(&format!("the disk of volume {number} is {state}"), PATIENCE, || {
        disk_of(pair, number) == state
    });
}

fn error(node: &Node) -> String {
    let error = node.rpc("replication_get_error", json!({"group": GROUP}))["error"].clone();
    error.as_str().unwrap_or_default().to_owned()
}

fn events(node: &Node, kind: &str) -> Vec<String> {
    let all = node.rpc("notify_get_notifications", json!({"id": 0, "max": 1000}));
    let wanted = all.as_array().expect("a list").iter().filter(|event| event["type"] == kind);
    wanted.map(|event| event["ctx"].as_str().expect("a text").to_owned()).collect()
}

fn create_replacement(pair: &Pair, name: &str) {
    let blocks = BLOCKS + 64;
    pair.primary.rpc("bdev_malloc_create", json!({"name": name, "num_blocks": blocks, "block_size": BLOCK}));
}

fn attach(pair: &Pair, number: usize, bdev: &str) {
    let params = json!({"group": GROUP, "volume": volume_name(number), "bdev": bdev});
    pair.primary.rpc("replication_disk_attach", params);
}

/// Online verify finds no difference between the nodes' disks.
#[track_caller]
fn assert_verified(pair: &Pair) {
    pair.primary.rpc("replication_verify_start", json!({"group": GROUP, "rate_mb": 1000}));
    let report = || group(&pair.primary)["verify"].clone();
    wait_until("the verify ends", PATIENCE, || report()["state"] != "running");
    assert_eq!(
        (&report()["state"], &report()["differing_bytes"]),
        (&json!("finished"), &json!(0)),
        "{}",
        report()
    );
}

/// A failover has every write that was acknowledged.
fn assert_failover(mut pair: Pair, writers: &mut [Writer]) {
    pair.primary.kill();
    wait_for_end(writers);
    pair.failover("latest");
    let end = stamps::progress(writers);
    let survived = pair.survivor().read_all();
    stamps::assert_one_point_in_time(writers, &survived, &end.acknowledged, &end.issued);
}

#[test]
fn a_disk_that_fails_under_load_is_replaced_and_no_host_ever_notices() {
    let pair = simple();
    let mut writers = writers(&pair, BLOCKS, 3);
    wait_for_progress(&writers, 100);
    fail(&pair, 0, "all");
    wait_for_disk(&pair, 0, "detached");
    wait_for_progress(&writers, 100);
    let told = error(&pair.primary);
    assert!(told.contains("volume `v0` has no disk on this node"), "{told}");
    assert_eq!(events(&pair.primary, "replication_disk_detached").len(), 1);
    assert_eq!(group(&pair.primary)["state"], "running");
    // It works again, with stale content: nobody looks.
    heal(&pair, 0);
    pair.checkpoint();
    wait_for_progress(&writers, 50);
    stop(&mut writers);
    let end = stamps::progress(&writers);
    let content = pair.volume().read_all();
    stamps::assert_one_point_in_time(&writers, &content, &end.acknowledged, &end.issued);
    pair.checkpoint();
    assert_same(&content, &pair.view().read_all(), "the view after a checkpoint without a disk");

    let mut writers = common::load::writers(&pair, BLOCKS, 0);
    let mut volume = pair.volume();
    volume.write_zeroes(0, (SIZE_MIB << 20) as usize).expect("zeroes for new writers");
    writers.extend(common::load::writers(&pair, BLOCKS, 3));
    wait_for_progress(&writers, 50);
    create_replacement(&pair, "New0");
    attach(&pair, 0, "New0");
    wait_for_disk(&pair, 0, "attached");
    wait_for_progress(&writers, 50);
    wait_until("nothing is wrong any more", PATIENCE, || error(&pair.primary).is_empty());
    assert_eq!(events(&pair.primary, "replication_disk_attached").len(), 1);
    assert_verified(&pair);
    assert_eq!(group(&pair.primary)["volumes"][0]["bdev"], "New0");
    // The old one is free.
    pair.primary.rpc("bdev_error_delete", json!({"name": failing(0)}));
    assert_failover(pair, &mut writers);
}

#[test]
fn every_kind_of_failure_and_every_mode_leads_there() {
    for (io_type, ack) in [("read", "applied"), ("write", "local"), ("flush", "received")] {
        let pair = pair(Shape { memory_mib: 384, ..Shape::simple(SIZE_MIB) }, json!({"ack": ack}));
        let mut writers = writers(&pair, BLOCKS / 2, 2);
        wait_for_progress(&writers, 50);
        fail(&pair, 0, io_type);
        let mut volume = pair.volume();
        let offset = (SIZE_MIB << 20) - (1 << 20);
        wait_until("the disk is detached", PATIENCE, || {
            volume.write(offset, &noise(7, 1 << 20));
            assert!(volume.flush().expect("the connection lives").is_success(), "{io_type}");
            assert!(
                volume.read(offset, 1 << 20) == noise(7, 1 << 20),
                "{io_type}: what was written reads back"
            );
            disk_of(&pair, 0) == "detached"
        });
        wait_for_progress(&writers, 50);
        assert_eq!(volume.read(offset + 4096, 8192), noise(7, 1 << 20)[4096..12288]);
        assert_failover(pair, &mut writers);
    }
}

#[test]
fn a_primary_that_is_killed_without_its_disk_never_serves_what_that_has() {
    let kept = tempfile::tempdir().expect("a folder");
    let record = kept.path().join("group.meta");
    let shape = Shape { memory_mib: 384, ..Shape::simple(SIZE_MIB) };
    let mut pair = pair(shape, json!({"metadata": record}));
    let mut writers = writers(&pair, BLOCKS, 2);
    wait_for_progress(&writers, 50);
    fail(&pair, 0, "write");
    wait_for_disk(&pair, 0, "detached");
    wait_for_progress(&writers, 50);
    pair.primary.kill();
    wait_for_end(&mut writers);
    // It comes back.
    let node = Node::builder("primary").memory_mib(256).start();
    node.rpc("bdev_malloc_create", json!({"name": DISK, "num_blocks": BLOCKS, "block_size": BLOCK}));
    let endpoint = json!({"transport": "tcp", "address": "127.0.0.1", "port": common::node::free_port()});
    let params = |role: &str, end: &str| {
        json!({"name": GROUP, "role": role, "volumes": [{"name": "v0", "bdev": DISK}], "metadata": record,
               end: endpoint})
    };
    let refused = node.try_rpc("replication_group_create", params("primary", "peer")).expect_err("stale");
    assert!(
        refused.message.contains("lost its disk") && refused.message.contains("Fail over at the peer"),
        "{refused:?}"
    );
    pair.failover("latest");
    let end = stamps::progress(&writers);
    let survived = pair.survivor().read_all();
    stamps::assert_one_point_in_time(&writers, &survived, &end.acknowledged, &end.issued);
    // As a secondary it may be overwritten, and says what it is until then.
    node.rpc("replication_group_create", params("secondary", "listen"));
    assert_eq!(group(&node)["state"], "inconsistent");
    let refused = node.try_rpc("replication_failover", json!({"group": GROUP, "keep": "latest"}));
    assert!(refused.expect_err("nothing to serve").message.contains("inconsistent"));
}

#[test]
fn without_disk_and_link_there_is_an_error_in_bounded_time_and_with_the_same_peer_it_goes_on() {
    let pair = pair(Shape { cable: true, memory_mib: 384, ..Shape::simple(SIZE_MIB) }, json!({}));
    let mut writers = writers(&pair, BLOCKS / 2, 2);
    wait_for_progress(&writers, 50);
    fail(&pair, 0, "all");
    wait_for_disk(&pair, 0, "detached");
    wait_for_progress(&writers, 50);
    heal(&pair, 0);
    pair.cable().cut();
    // The writers, and a reader, hear of it; nobody gets anything stale.
    for writer in &mut writers {
        assert!(writer.wait(PATIENCE).starts_with("write "), "an error");
    }
    assert!(pair.volume().try_read(0, BLOCK).expect("the connection lives").is_err());
    let told = error(&pair.primary);
    assert!(told.contains("has no disk on this node") && told.contains("peer"), "{told}");
    pair.cable().mend();
    pair.wait_until_in_step();
    let end = stamps::progress(&writers);
    let content = pair.volume().read_all();
    stamps::assert_one_point_in_time(&writers, &content, &end.acknowledged, &end.issued);
    let mut volume = pair.volume();
    volume.write((SIZE_MIB << 20) - 8192, &noise(3, 8192));
    pair.checkpoint();
    assert_same(&volume.read_all(), &pair.view().read_all(), "the view");
    // A lost link in the middle of a replacement begins it again.
    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "resync_rate_mb": 4}));
    create_replacement(&pair, "New0");
    attach(&pair, 0, "New0");
    assert_eq!(disk_of(&pair, 0), "filling");
    assert!(group(&pair.primary)["volumes"][0]["fill"]["left_bytes"].as_u64() > Some(0));
    pair.cable().cut();
    wait_until("the link is lost", PATIENCE, || group(&pair.primary)["state"] != "running");
    pair.cable().mend();
    pair.wait_until_in_step();
    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "resync_rate_mb": 0}));
    wait_for_disk(&pair, 0, "attached");
    assert_verified(&pair);
}

#[test]
fn a_disk_that_only_hangs_is_detached_and_is_no_replacement_before_it_gave_everything_back() {
    let pair = simple();
    let mut writers = writers(&pair, BLOCKS, 2);
    wait_for_progress(&writers, 50);
    let inject = |error_type: &str, count: u32| {
        let params = json!({"name": failing(0), "io_type": "write", "error_type": error_type, "num": count});
        pair.primary.rpc("bdev_error_inject_error", params);
    };
    inject("pending", u32::MAX);
    wait_for_disk(&pair, 0, "detached");
    wait_for_progress(&writers, 100);
    assert!(events(&pair.primary, "replication_disk_detached")[0].contains("to answer"));
    inject("pending", 0);
    let params = json!({"group": GROUP, "volume": "v0", "bdev": failing(0)});
    let refused =
        pair.primary.try_rpc("replication_disk_attach", params.clone()).expect_err("it holds writes");
    assert!(refused.code == -16 && refused.message.contains("not given back"), "{refused:?}");
    // Late, and to nobody.
    pair.primary.rpc("bdev_error_resume_pending", json!({"name": failing(0)}));
    wait_until("the disk has given everything back", PATIENCE, || {
        pair.primary.try_rpc("replication_disk_attach", params.clone()).is_ok()
    });
    wait_for_disk(&pair, 0, "attached");
    wait_for_progress(&writers, 50);
    assert_verified(&pair);
    assert_failover(pair, &mut writers);
}

#[test]
fn of_several_volumes_and_reactors_one_loses_its_disk() {
    let disk = Disk { mib: SIZE_MIB, block_size: BLOCK as u32 };
    let pair = pair(
        Shape {
            primary_cores: "0,1",
            secondary_cores: "0,1",
            disks: vec![disk; 2],
            memory_mib: 512,
            cable: false,
        },
        json!({"ack": "received"}),
    );
    let hosts = || vec![(0, pair.volume_of(0)), (1, pair.volume_of(1))];
    let mut writers =
        vec![Writer::across(hosts(), 0, BLOCKS / 2), Writer::across(hosts(), BLOCKS / 2, BLOCKS / 2)];
    wait_for_progress(&writers, 100);
    fail(&pair, 1, "write");
    wait_for_disk(&pair, 1, "detached");
    assert_eq!(disk_of(&pair, 0), "attached");
    wait_for_progress(&writers, 100);
    heal(&pair, 1);
    pair.checkpoint();
    let refused = pair
        .primary
        .try_rpc("replication_disk_attach", json!({"group": GROUP, "volume": "v0", "bdev": failing(1)}));
    assert!(refused.expect_err("it has one").message.contains("the volume has a disk"));
    // The same disk again: it is filled anew.
    attach(&pair, 1, &failing(1));
    wait_for_disk(&pair, 1, "attached");
    wait_for_progress(&writers, 100);
    stop(&mut writers);
    let end = stamps::progress(&writers);
    let images = [pair.volume_of(0).read_all(), pair.volume_of(1).read_all()];
    let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    stamps::assert_images_of_one_point_in_time(&writers, &images, &end.acknowledged, &end.issued);
    assert_verified(&pair);
    pair.checkpoint();
    for (number, image) in images.iter().enumerate() {
        assert_same(image, &pair.view_of(number).read_all(), "the view");
    }
}
