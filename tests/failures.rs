//! The seven failures that QEMU's description of its block replication lists, one after the other, between real nodes:
//! each has its state, its event, an error that `replication_get_error` names, and a way back. The table is in
//! `docs/replication.md`.

mod common;

use common::load::*;
use common::node::Node;
use common::noise;
use common::pair::{DISK, GROUP, Pair, Shape, group};
use common::stamps::BLOCK;
use common::wait_until;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE_MIB: u64 = 16;

/// The name of the disk that can be made to fail.
fn failing() -> String {
    format!("EE_{DISK}")
}

fn volumes() -> Value {
    json!({"volumes": [{"name": "v0", "bdev": failing()}]})
}

fn merged(mut params: Value, extra: Value) -> Value {
    if let (Some(params), Value::Object(extra)) = (params.as_object_mut(), extra) {
        params.extend(extra);
    }
    params
}

/// A pair in step, full of noise and with a checkpoint of it, both of whose disks can be made to fail.
fn pair(shape: Shape, secondary: Value) -> Pair {
    let pair = Pair::of(shape);
    for node in [&pair.primary, &pair.secondary] {
        node.rpc("bdev_error_create", json!({"base_name": DISK}));
    }
    pair.create_groups(volumes(), merged(volumes(), secondary));
    pair.export_volume();
    pair.replicate("full");
    pair.volume().write(0, &noise(1, (SIZE_MIB << 20) as usize));
    pair.checkpoint();
    pair
}

fn simple() -> Pair {
    pair(Shape::simple(SIZE_MIB), json!({}))
}

/// The next `count` I/Os of this kind fail.
fn inject(node: &Node, bdev: &str, io_type: &str, count: u32) {
    node.rpc(
        "bdev_error_inject_error",
        json!({"name": bdev, "io_type": io_type, "error_type": "failure", "num": count}),
    );
}

fn heal(node: &Node, bdev: &str) {
    node.rpc("bdev_error_inject_error", json!({"name": bdev, "io_type": "clear", "error_type": "failure"}));
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

/// `replication_get_error` and an event of this kind say the words, now or soon.
#[track_caller]
fn assert_told(node: &Node, event: &str, words: &str) {
    wait_until(&format!("{event}: {words}"), PATIENCE, || {
        events(node, event).iter().any(|text| text.contains(words)) && error(node).contains(words)
    });
}

#[track_caller]
fn wait_until_well(pair: &Pair) {
    pair.wait_until_in_step();
    wait_until("nothing is wrong any more", PATIENCE, || {
        error(&pair.primary).is_empty() && error(&pair.secondary).is_empty()
    });
}

/// A checkpoint, after which the secondary has exactly what the primary has.
#[track_caller]
fn assert_equal(pair: &Pair) {
    pair.checkpoint();
    assert_same(&pair.volume().read_all(), &pair.view().read_all(), "the view after a checkpoint");
}

#[track_caller]
fn assert_fails(pair: &Pair, write: &[u8]) {
    let completion = pair.volume().try_write(0, write).expect("the connection lives");
    assert!(!completion.is_success(), "the disk should have failed");
}

#[test]
fn what_the_primarys_disk_fails_its_host_hears_and_the_operator_too() {
    let pair = simple();
    let node = &pair.primary;
    inject(node, &failing(), "write", 1);
    assert_fails(&pair, &noise(2, BLOCK));
    assert_told(node, "replication_disk_failed", "this node's disk failed a write");
    assert_eq!(group(node)["state"], "running");
    assert!(group(node)["dirty_bytes"].as_u64() > Some(0), "what may differ is marked");
    // Everything else goes on, the next checkpoint too.
    let mut volume = pair.volume();
    volume.write(1 << 20, &noise(3, BLOCK));
    pair.checkpoint();
    inject(node, &failing(), "read", 1);
    assert!(volume.try_read(0, BLOCK).expect("the connection lives").is_err());
    assert_told(node, "replication_disk_failed", "this node's disk failed a read");
    inject(node, &failing(), "flush", 1);
    assert!(!volume.flush().expect("the connection lives").is_success());
    assert_told(node, "replication_disk_failed", "this node's disk failed a flush");
    // The way back: the next session copies what is marked.
    node.rpc("replication_stop", json!({"group": GROUP}));
    node.rpc("replication_start", json!({"group": GROUP, "sync": "changed"}));
    wait_until_well(&pair);
    assert_eq!(group(node)["dirty_bytes"], 0);
    assert_equal(&pair);
}

#[test]
fn a_write_that_cannot_be_forwarded_costs_the_link_and_comes_over_later() {
    let pair = pair(Shape { cable: true, ..Shape::simple(SIZE_MIB) }, json!({}));
    pair.cable().cut();
    let mut volume = pair.volume();
    volume.write(0, &noise(2, BLOCK));
    for node in [&pair.primary, &pair.secondary] {
        assert_told(node, "replication_link_lost", "peer");
    }
    assert_eq!(group(&pair.primary)["state"], "resync required");
    assert_eq!(group(&pair.secondary)["state"], "primary lost");
    pair.cable().mend();
    wait_until_well(&pair);
    assert_equal(&pair);
}

/// The secondary's disk fails something of the write that follows; the session ends, and the next one makes it good.
fn the_secondary_fails(io_type: &str, said: &str) {
    let pair = simple();
    let before = pair.view().read_all();
    inject(&pair.secondary, &failing(), io_type, 1);
    let mut volume = pair.volume();
    volume.write(0, &noise(2, BLOCK));
    // Either node may be in step again already.
    wait_until("the primary tells of it", PATIENCE, || {
        events(&pair.primary, "replication_peer_failed").iter().any(|text| text.contains(said))
    });
    let told = events(&pair.secondary, "replication_disk_failed");
    assert!(told.iter().any(|text| text.contains(said)), "{told:?}");
    assert_eq!(volume.read(0, BLOCK), noise(2, BLOCK), "acknowledged");
    wait_until_well(&pair);
    assert_equal(&pair);
    assert!(before != pair.view().read_all());
}

#[test]
fn an_original_that_cannot_be_read_costs_the_session_and_nothing_that_was_acknowledged() {
    the_secondary_fails("read", "could not preserve the original");
}

#[test]
fn a_write_that_the_secondarys_disk_fails_costs_the_session_and_nothing_that_was_acknowledged() {
    the_secondary_fails("write", "the secondary's disk failed a write");
}

#[test]
fn a_secondary_whose_disk_goes_on_failing_says_so_until_the_disk_works() {
    let pair = simple();
    inject(&pair.secondary, &failing(), "write", u32::MAX);
    let mut volume = pair.volume();
    volume.write(0, &noise(2, BLOCK));
    assert_told(&pair.primary, "replication_peer_failed", "the secondary's disk failed a write");
    assert_told(&pair.secondary, "replication_disk_failed", "the secondary's disk failed a write");
    volume.write(1 << 20, &noise(3, BLOCK));
    heal(&pair.secondary, &failing());
    wait_until_well(&pair);
    assert_equal(&pair);
}

#[test]
fn a_full_buffer_says_what_is_lost_until_the_next_checkpoint() {
    let pair = pair(Shape::simple(SIZE_MIB), json!({"buffer_limit_mb": SIZE_MIB / 4}));
    pair.volume().write(0, &noise(2, (SIZE_MIB << 20) as usize));
    assert_told(&pair.secondary, "replication_buffer_overrun", "the disk buffer is full");
    assert_eq!(group(&pair.secondary)["state"], "running", "writes go on");
    pair.checkpoint();
    wait_until_well(&pair);
    assert_equal(&pair);
}

#[test]
fn a_journal_that_fails_ends_the_session_and_a_working_one_begins_the_next() {
    let shape = Shape { memory_mib: 384, ..Shape::simple(SIZE_MIB) };
    let pair = Pair::of(shape);
    for node in [&pair.primary, &pair.secondary] {
        node.rpc("bdev_error_create", json!({"base_name": DISK}));
    }
    let node = &pair.secondary;
    node.rpc("bdev_malloc_create", json!({"name": "Journal0", "num_blocks": 8192, "block_size": 4096}));
    node.rpc("bdev_error_create", json!({"base_name": "Journal0"}));
    pair.create_groups(volumes(), merged(volumes(), json!({"buffer_journal": "EE_Journal0"})));
    pair.export_volume();
    pair.replicate("full");
    pair.volume().write(0, &noise(1, 1 << 20));
    pair.checkpoint();
    inject(node, "EE_Journal0", "write", u32::MAX);
    pair.volume().write(0, &noise(2, BLOCK));
    assert_told(node, "replication_journal_failed", "the journal failed a write");
    assert_told(&pair.primary, "replication_peer_failed", "its journal the write");
    heal(node, "EE_Journal0");
    wait_until_well(&pair);
    assert_equal(&pair);
}

/// A file system of its own, of which a file can be made immutable even for those that have it open.
struct FileSystem(tempfile::TempDir);

impl FileSystem {
    fn mount() -> FileSystem {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("mnt")).expect("a mount point");
        let image = dir.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("an image");
        sh("mkfs.ext4", &["-q", &image.display().to_string()]);
        sh(
            "mount",
            &["-o", "loop", &image.display().to_string(), &dir.path().join("mnt").display().to_string()],
        );
        FileSystem(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("mnt").join(name)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path().join("mnt")).status();
    }
}

fn sh(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {arguments:?} needs root and e2fsprogs");
}

fn set_immutable(path: &Path, immutable: bool) {
    sh("chattr", &[if immutable { "+i" } else { "-i" }, &path.display().to_string()]);
}

#[test]
fn a_commit_that_cannot_be_recorded_leaves_the_last_checkpoint_standing() {
    let place = FileSystem::mount();
    let record = place.path("group.meta");
    let pair = pair(Shape::simple(SIZE_MIB), json!({"metadata": record}));
    let checkpoint = pair.view().read_all();
    let mut volume = pair.volume();
    volume.write(0, &noise(2, BLOCK));
    set_immutable(&record, true);
    let refused = pair
        .primary
        .try_rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 20_000}))
        .expect_err("a commit without a record");
    assert!(refused.message.contains("the secondary could not write the record"), "{refused:?}");
    assert_told(&pair.primary, "replication_checkpoint_failed", "the secondary could not write the record");
    assert_told(&pair.secondary, "replication_record_failed", "the record of the group could not be written");
    for node in [&pair.primary, &pair.secondary] {
        assert_eq!(group(node)["state"], "running");
    }
    assert_same(&checkpoint, &pair.view().read_all(), "the view without the commit");
    set_immutable(&record, false);
    pair.checkpoint();
    wait_until_well(&pair);
    assert_equal(&pair);
    // Once more, and the secondary takes over: it goes back to the last one that was recorded.
    let checkpoint = volume.read_all();
    volume.write(0, &noise(3, BLOCK));
    set_immutable(&record, true);
    pair.primary
        .try_rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 20_000}))
        .expect_err("a commit without a record");
    set_immutable(&record, false);
    pair.failover("checkpoint");
    assert_same(&checkpoint, &pair.survivor().read_all(), "the volume after the failover");
}

#[test]
fn a_failover_whose_flush_fails_serves_what_was_promised_and_tries_again() {
    let mut pair = simple();
    let promised = pair.view().read_all();
    pair.volume().write(0, &noise(2, 4 << 20));
    pair.primary.kill();
    let node = &pair.secondary;
    inject(node, &failing(), "write", u32::MAX);
    pair.failover("checkpoint");
    assert_told(node, "replication_drain_failed", "a write of held data to this node's disk failed");
    assert_eq!(group(node)["state"], "serving, draining the buffer");
    assert_same(&promised, &pair.survivor().read_all(), "what is served meanwhile");
    heal(node, &failing());
    wait_for_state(node, "standalone");
    wait_until("nothing is wrong any more", PATIENCE, || error(node).is_empty());
    assert!(!events(node, "replication_drained").is_empty());
    assert_same(&promised, &pair.survivor().read_all(), "what is served after that");
}
