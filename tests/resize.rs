//! Disks that grow and shrink below a replicated volume, as an operator does it: files made longer, a rescan on each
//! node, hosts that go on meanwhile.

mod common;

use common::guest::Guest;
use common::node::Node;
use common::nvme::Host;
use common::pair::{GROUP, Pair, VOLUME, VOLUME_NQN, group};
use common::stamps::{BLOCK, Writer};
use common::{first_difference, noise, wait_until};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Neither is a multiple of a stripe, and the smaller one ends within a granule of 16 KiB.
const SMALL: u64 = 17 * MIB + 4096;
const LARGE: u64 = 38 * MIB + 8192;
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn assert_same(left: &[u8], right: &[u8], what: &str) {
    assert_eq!(left.len(), right.len(), "{what}: the lengths");
    if let Some(block) = first_difference(left, right, BLOCK) {
        panic!("{what}: the first difference is in block {block}");
    }
}

fn file_of(node: &Node) -> File {
    let path = node.dir().join("disk");
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("the disk's file")
}

/// Gives a node's disk another size; what is new of it is noise.
fn set_disk(node: &Node, bytes: u64, seed: u64) {
    let file = file_of(node);
    let old = file.metadata().expect("its size").len();
    file.set_len(bytes).expect("another size");
    if bytes > old {
        file.write_all_at(&noise(seed, (bytes - old) as usize), old).expect("noise");
    }
}

fn rescan(node: &Node) {
    node.rpc("bdev_uring_rescan", json!({"name": "File0"}));
}

fn volume_of(node: &Node) -> Value {
    group(node)["volumes"][0].clone()
}

fn has_size(node: &Node, bytes: u64) -> bool {
    volume_of(node)["num_blocks"] == bytes / BLOCK as u64
}

/// A pair in step whose disks are files of [`SMALL`] bytes.
fn pair_on_files() -> Pair {
    let pair = Pair::nodes(16);
    for (node, seed) in [(&pair.primary, 1), (&pair.secondary, 2)] {
        set_disk(node, SMALL, seed);
        let filename = node.dir().join("disk");
        node.rpc("bdev_uring_create", json!({"name": "File0", "filename": filename, "block_size": BLOCK}));
    }
    let volumes = json!([{"name": VOLUME, "bdev": "File0"}]);
    pair.create_groups(json!({"volumes": volumes}), json!({"volumes": volumes, "granule_kb": 16}));
    pair.export_volume();
    pair.replicate("full");
    pair
}

fn grow_both(pair: &Pair) {
    for (node, seed) in [(&pair.primary, 11), (&pair.secondary, 12)] {
        set_disk(node, LARGE, seed);
        rescan(node);
    }
    for node in [&pair.primary, &pair.secondary] {
        wait_until("the volume has grown", PATIENCE, || has_size(node, LARGE));
    }
}

#[test]
fn a_volume_grows_under_load_and_its_new_end_survives_a_failover() {
    let mut pair = pair_on_files();
    let mut volume = pair.volume();
    volume.write_zeroes(0, 8 << 20).expect("zeroes for the writers");
    let regions = (8 << 8) / 2;
    let mut writers: Vec<Writer> =
        (0..2).map(|i| Writer::start(pair.volume(), i * regions, regions)).collect();
    pair.checkpoint();
    // The last block, whose granule the volume is to go on in, is held in the buffer: as an original and as a write.
    volume.write(SMALL - BLOCK as u64, &noise(3, BLOCK));
    pair.view().write(SMALL - BLOCK as u64, &noise(4, BLOCK));

    set_disk(&pair.primary, LARGE, 11);
    rescan(&pair.primary);
    wait_until("the notice says what to do", PATIENCE, || {
        let known = volume_of(&pair.primary);
        known["base_num_blocks"] == LARGE / BLOCK as u64
            && known["notice"].as_str().is_some_and(|text| text.contains("on the peer"))
    });
    assert!(has_size(&pair.primary, SMALL), "one disk alone changes nothing: {}", volume_of(&pair.primary));
    set_disk(&pair.secondary, LARGE, 12);
    rescan(&pair.secondary);
    for node in [&pair.primary, &pair.secondary] {
        wait_until("the volume has grown", PATIENCE, || has_size(node, LARGE));
    }
    assert_eq!(volume_of(&pair.primary)["notice"], Value::Null);

    let mut volume = pair.volume();
    assert_eq!(volume.blocks, LARGE / BLOCK as u64, "a host sees the new size");
    let new = SMALL as usize..LARGE as usize;
    let theirs = noise(11, new.len());
    assert_same(&volume.read(SMALL, new.len()), &theirs, "the new end of the primary");
    let mut view = pair.view();
    assert_eq!(view.blocks, LARGE / BLOCK as u64, "the secondary's view has grown as well");
    assert_same(&view.read(SMALL, new.len()), &theirs, "the new end of the view");
    assert_same(&view.read(SMALL - BLOCK as u64, BLOCK), &noise(4, BLOCK), "the secondary VM's own write");
    volume.write(SMALL - 4096, &noise(5, 1 << 20));
    volume.write(LARGE - MIB, &noise(6, 1 << 20));
    assert_same(&view.read(SMALL, new.len()), &theirs, "the view until the next checkpoint");
    std::thread::sleep(Duration::from_millis(200));
    for writer in &mut writers {
        assert_eq!(writer.stop(), "stopped");
        assert!(writer.acknowledged() > 20, "the load made too little progress to prove anything");
    }
    pair.checkpoint();
    let image = volume.read_all();
    assert_eq!(image.len() as u64, LARGE);
    assert_same(&image, &view.read_all(), "the view after a checkpoint");
    volume.write(LARGE - 2 * MIB, &noise(7, 1 << 20));

    pair.primary.kill();
    pair.failover("checkpoint");
    let mut survivor = pair.survivor();
    assert_same(&image, &survivor.read_all(), "the volume after the failover");
    survivor.write(LARGE - MIB, &noise(8, 1 << 20));
    assert_same(&survivor.read(LARGE - MIB, 1 << 20), &noise(8, 1 << 20), "what was written after it");
}

#[test]
fn a_growth_that_a_lost_link_interrupts_is_made_up_for_in_the_next_session() {
    let pair = pair_on_files();
    set_disk(&pair.secondary, LARGE, 12);
    rescan(&pair.secondary);
    wait_until("the primary knows", PATIENCE, || {
        volume_of(&pair.primary)["peer_base_num_blocks"] == LARGE / BLOCK as u64
    });
    pair.secondary.signal("STOP");
    set_disk(&pair.primary, LARGE, 11);
    rescan(&pair.primary);
    wait_until("the link is lost", PATIENCE, || group(&pair.primary)["state"] == "resync required");
    pair.secondary.signal("CONT");
    assert!(has_size(&pair.primary, SMALL), "hosts were told nothing");
    let mut volume = pair.volume();
    volume.write(0, &noise(9, 1 << 20));
    pair.wait_until_in_step();
    for node in [&pair.primary, &pair.secondary] {
        wait_until("the volume has grown", PATIENCE, || has_size(node, LARGE));
    }
    pair.checkpoint();
    assert_same(&pair.volume().read_all(), &pair.view().read_all(), "the view");
}

#[test]
fn a_group_that_is_made_again_has_the_size_of_its_record() {
    let pair = pair_on_files();
    grow_both(&pair);
    for node in [&pair.primary, &pair.secondary] {
        node.rpc("replication_stop", json!({"group": GROUP}));
    }
    // One disk grows on while nobody looks: that alone does not make the volume larger.
    set_disk(&pair.secondary, LARGE + MIB, 13);
    for (node, nqns) in [(&pair.primary, 1), (&pair.secondary, 2)] {
        for nqn in [VOLUME_NQN, common::pair::VIEW_NQN].iter().take(nqns) {
            node.rpc("nvmf_delete_subsystem", json!({"nqn": nqn}));
        }
        node.rpc("replication_group_delete", json!({"group": GROUP}));
        rescan(node);
    }
    let volumes = json!([{"name": VOLUME, "bdev": "File0"}]);
    pair.create_groups(json!({"volumes": volumes}), json!({"volumes": volumes, "granule_kb": 16}));
    assert!(has_size(&pair.primary, LARGE) && has_size(&pair.secondary, LARGE));
    pair.export_volume();
    pair.replicate("none");
    set_disk(&pair.primary, LARGE + MIB, 14);
    rescan(&pair.primary);
    wait_until("the volume has grown again", PATIENCE, || has_size(&pair.secondary, LARGE + MIB));
    wait_until("on both nodes", PATIENCE, || has_size(&pair.primary, LARGE + MIB));
    pair.checkpoint();
    assert_same(&pair.volume().read_all(), &pair.view().read_all(), "the view");
}

#[test]
fn a_disk_that_shrank_is_reported_costs_its_end_alone_and_can_be_made_good() {
    let pair = pair_on_files();
    let mut volume = pair.volume();
    let before = noise(21, 1 << 20);
    volume.write(0, &before);
    set_disk(&pair.primary, SMALL / 2 / 4096 * 4096, 0);
    rescan(&pair.primary);
    assert!(has_size(&pair.primary, SMALL), "the volume keeps its size");
    wait_until("the group says so", PATIENCE, || {
        let error = group(&pair.primary)["error"].clone();
        error
            .as_str()
            .is_some_and(|text| text.contains("is smaller than the volume") && text.contains("here"))
    });
    assert_eq!(volume.blocks, SMALL / BLOCK as u64);
    assert_same(&volume.read(0, 1 << 20), &before, "what is still there");
    assert!(
        volume.try_read(SMALL - MIB, BLOCK).expect("an answer").is_err(),
        "what is not ends with an error"
    );
    let write = volume.try_write(SMALL - MIB, &noise(22, BLOCK)).expect("an answer");
    assert!(!write.is_success(), "{write:?}");
    volume.write(MIB, &before);
    pair.primary.rpc("replication_stop", json!({"group": GROUP}));
    let refused = pair.primary.try_rpc("replication_start", json!({"group": GROUP, "sync": "full"}));
    let error = refused.expect_err("a start over a disk that shrank");
    assert!(error.message.contains("File0") && error.message.contains("grow it"), "{error:?}");

    set_disk(&pair.primary, SMALL, 23);
    rescan(&pair.primary);
    pair.replicate("full");
    assert_eq!(group(&pair.primary)["error"], Value::Null);
    pair.checkpoint();
    assert_same(&pair.volume().read_all(), &pair.view().read_all(), "the view");

    // The same on the other node.
    set_disk(&pair.secondary, SMALL / 2 / 4096 * 4096, 0);
    rescan(&pair.secondary);
    wait_until("both say so", PATIENCE, || {
        let says = |node: &Node, place: &str| {
            let error = group(node)["error"].clone();
            error.as_str().is_some_and(|text| text.contains("is smaller") && text.contains(place))
        };
        says(&pair.primary, "on the peer") && says(&pair.secondary, "here")
    });
    let mut volume: Host = pair.volume();
    volume.write(SMALL - MIB, &noise(24, BLOCK));
    assert_eq!(volume.read(SMALL - MIB, BLOCK), noise(24, BLOCK), "the primary goes on alone");
    wait_until("the peer counts as lost", PATIENCE, || group(&pair.primary)["state"] == "resync required");
}

#[test]
fn linux_sees_the_new_size_on_a_multipath_device_and_keeps_what_it_wrote_there_over_a_failover() {
    let mut pair = pair_on_files();
    let mut guest = Guest::builder().boot();
    guest.run(&format!(
        r#"
        connect {} {VOLUME_NQN} --reconnect-delay=1 --ctrl-loss-tmo=600
        connect {} {VOLUME_NQN} --reconnect-delay=1 --ctrl-loss-tmo=600
        wait_for 10 test -b /dev/nvme0n1
        wait_for 10 grep -q '^optimized' /sys/class/nvme/nvme0/nvme0c0n1/ana_state
        [ "$(cat /sys/block/nvme0n1/size)" = {} ] || fail "the size is $(cat /sys/block/nvme0n1/size)"
        "#,
        pair.primary_port,
        pair.secondary_port,
        SMALL / 512
    ));
    grow_both(&pair);
    guest.run(&format!(
        r#"
        wait_for 30 grep -qx {} /sys/block/nvme0n1/size
        dd if=/dev/urandom of=/tmp/pattern bs=64k count=64 2>/dev/null
        dd if=/tmp/pattern of=/dev/nvme0n1 bs=64k seek={seek} oflag=direct 2>/dev/null || fail write
        "#,
        LARGE / 512,
        seek = 30 * MIB / 65536
    ));
    pair.primary.kill();
    pair.failover("latest");
    guest.run(&format!(
        r#"
        wait_for 30 grep -q '^optimized' /sys/class/nvme/nvme1/nvme0c1n1/ana_state
        drop_caches
        dd if=/dev/nvme0n1 bs=64k skip={} count=64 iflag=direct 2>/dev/null | cmp - /tmp/pattern || fail 'the data differs'
        [ "$(io_errors)" = 0 ] || fail 'the kernel reports I/O errors'
        "#,
        30 * MIB / 65536
    ));
}
