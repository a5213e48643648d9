//! Earlier checkpoints between real nodes: each that is listed is shown, exported and gone back to exactly, while the load
//! goes on, within its limits.

mod common;

use common::guest::Guest;
use common::load::*;
use common::node::Node;
use common::nvme::Host;
use common::pair::{Disk, GROUP, Pair, Shape, VOLUME_NQN, export, group, volume_name};
use common::stamps::{self, BLOCK, Writer};
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

fn history(node: &Node) -> Value {
    node.rpc("replication_get_history", json!({"group": GROUP}))
}

/// The epochs that can be shown, oldest first.
fn epochs(node: &Node) -> Vec<u64> {
    let listed = history(node);
    let epochs = listed["epochs"].as_array().expect("a list");
    epochs.iter().map(|epoch| epoch["epoch"].as_u64().expect("a number")).collect()
}

fn checkpoint(pair: &Pair) -> u64 {
    pair.checkpoint()["epoch"].as_u64().expect("the epoch")
}

fn wait_for_epochs(pair: &Pair, count: usize) {
    wait_until("the checkpoints are listed", LIMIT, || epochs(&pair.secondary).len() == count);
}

fn nqn_of(name: &str) -> String {
    format!("nqn.2026-01.io.lockstep.test:{name}")
}

/// Makes a bdev of a volume at an epoch on the secondary, and a subsystem for it.
fn show(pair: &Pair, name: &str, volume: &str, epoch: u64) {
    let params = json!({"name": name, "group": GROUP, "volume": volume, "epoch": epoch});
    assert_eq!(pair.secondary.rpc("bdev_replication_epoch_create", params), json!(name));
    export(&pair.secondary, "127.0.0.1", pair.secondary_port, &nqn_of(name), name, 0x200, false);
}

fn shown(pair: &Pair, name: &str) -> Host {
    Host::connect(pair.secondary_port, &nqn_of(name))
}

fn hide(pair: &Pair, name: &str) {
    pair.secondary.rpc("nvmf_delete_subsystem", json!({"nqn": nqn_of(name)}));
    pair.secondary.rpc("bdev_replication_epoch_delete", json!({"name": name}));
}

fn image_of(pair: &Pair, volume: usize, epoch: u64) -> Vec<u8> {
    let name = format!("look-{volume}-{epoch}");
    show(pair, &name, &volume_name(volume), epoch);
    let image = shown(pair, &name).read_all();
    hide(pair, &name);
    image
}

/// A pair in step whose secondary keeps checkpoints.
fn pair_with_history(shape: Shape, history: Value) -> Pair {
    let pair = Pair::of(shape);
    pair.create_groups(json!({}), history);
    pair.export_volume();
    pair.replicate("full");
    pair
}

fn events(node: &Node, kind: &str) -> usize {
    let all = node.rpc("notify_get_notifications", json!({"id": 0, "max": 1000}));
    all.as_array().expect("a list").iter().filter(|event| event["type"] == kind).count()
}

/// Overwrites so much of a volume that every checkpoint has something to lead back over.
fn overwrite(host: &mut Host, seed: u64, pieces: u64) {
    let blocks = host.blocks * host.block_size as u64 / BLOCK as u64;
    for piece in 0..pieces {
        let at = (seed * 131 + piece * 977) % (blocks - 4) * BLOCK as u64;
        match piece % 7 {
            0 => assert!(host.write_zeroes(at, 4 * BLOCK).expect("an answer").is_success()),
            part => host.write(at, &noise(seed * 1000 + piece, BLOCK * (1 + part as usize % 3))),
        }
    }
}

#[test]
fn a_file_is_restored_from_an_exported_checkpoint_while_the_guest_goes_on() {
    let pair = pair_with_history(Shape::simple(64), json!({"history_epochs": 4}));
    let mut guest = Guest::builder().boot();
    guest.run(&format!(
        r#"
        connect {} {VOLUME_NQN}
        wait_for 10 test -b /dev/nvme0n1
        mkfs.ext4 -q -F /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt || fail mkfs
        dd if=/dev/urandom of=/mnt/precious bs=64k count=100 2>/dev/null
        sha256sum </mnt/precious >/tmp/sum; sync; fsfreeze --freeze /mnt || fail freeze
        "#,
        pair.primary_port
    ));
    let good = checkpoint(&pair);
    guest
        .run("fsfreeze --unfreeze /mnt; dd if=/dev/zero of=/mnt/precious bs=64k count=100 2>/dev/null; sync");
    checkpoint(&pair);
    guest.run("rm /mnt/precious; dd if=/dev/urandom of=/mnt/other bs=64k count=100 2>/dev/null; sync");
    checkpoint(&pair);
    wait_for_epochs(&pair, 4);
    show(&pair, "restore", "v0", good);
    // The guest writes on, and checkpoints go on, while it looks at its own past on another disk.
    guest.run(&format!(
        r#"
        (
            n=0
            while [ ! -e /tmp/stop ]; do
                dd if=/dev/urandom of=/mnt/load bs=64k count=40 conv=fsync
                n=$((n + 1)); echo $n >/tmp/rounds
            done
            echo done >/tmp/done
        ) >/dev/null 2>&1 &
        wait_for 30 test -s /tmp/rounds
        connect {} {}
        wait_for 10 test -b /dev/nvme1n1
        [ "$(cat /sys/block/nvme1n1/ro)" = 1 ] || fail 'the kernel takes the past for writable'
        mkdir /tmp/past && mount -t ext4 -o ro,noload /dev/nvme1n1 /tmp/past || fail 'mount of the past'
        dd if=/tmp/past/precious of=/mnt/restored bs=64k 2>/dev/null && sync
        "#,
        pair.secondary_port,
        nqn_of("restore")
    ));
    checkpoint(&pair);
    guest.run(
        r#"
        drop_caches
        [ "$(sha256sum </mnt/restored)" = "$(cat /tmp/sum)" ] || fail 'the file is not what it was'
        [ "$(sha256sum </tmp/past/precious)" = "$(cat /tmp/sum)" ] || fail 'the past has changed'
        [ ! -e /tmp/past/other ] || fail 'a file from after the checkpoint is in the past'
        touch /tmp/stop; wait_for 60 test -e /tmp/done
        umount /tmp/past && umount /mnt || fail umount
        e2fsck -fn /dev/nvme0n1 >/tmp/fsck 2>&1 || fail "fsck: $(cat /tmp/fsck)"
        [ "$(io_errors)" = 0 ] || fail 'the kernel reports I/O errors'
        "#,
    );
}

#[test]
fn every_listed_checkpoint_of_every_volume_is_shown_exactly_while_the_load_goes_on() {
    let disks = vec![Disk { mib: 12, block_size: 4096 }, Disk { mib: 12, block_size: 512 }];
    let shape = Shape { disks, primary_cores: "0-1", secondary_cores: "0-1", ..Shape::simple(0) };
    let pair = pair_with_history(shape, json!({"history_epochs": 3}));
    let mut volumes = [pair.volume_of(0), pair.volume_of(1)];
    let mut cuts: Vec<(u64, [Vec<u8>; 2])> = Vec::new();
    for round in 0..6 {
        volumes.iter_mut().for_each(|volume| overwrite(volume, round, 60));
        let images = volumes.each_mut().map(Host::read_all);
        cuts.push((checkpoint(&pair), images));
    }
    wait_for_epochs(&pair, 4);
    let expected: Vec<u64> = cuts[2..].iter().map(|cut| cut.0).collect();
    assert_eq!(epochs(&pair.secondary), expected, "the last one and three before it");
    let listed = history(&pair.secondary);
    let times: Vec<u64> = listed["epochs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|epoch| epoch["committed_unix_ms"].as_u64().expect("a time"))
        .collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{times:?}");
    assert!(listed["used_bytes"].as_u64() > Some(0), "{listed}");
    // From here on somebody writes all the while.
    let blocks = (12 * MIB / BLOCK) as u64;
    drop(volumes);
    let hosts = vec![(0, pair.volume_of(0)), (1, pair.volume_of(1))];
    let mut writer = Writer::across(hosts, 0, blocks);
    for (epoch, images) in &cuts[2..] {
        wait_for_progress(std::slice::from_ref(&writer), 30);
        for (number, image) in images.iter().enumerate() {
            assert_same(
                &image_of(&pair, number, *epoch),
                image,
                &format!("volume {number} at epoch {epoch}"),
            );
        }
    }
    // A checkpoint under load is kept as one point in time of both volumes as well.
    let name = |number| format!("cut-{number}");
    let epoch = checkpoint(&pair);
    (0..2).for_each(|number| show(&pair, &name(number), &volume_name(number), epoch));
    for _ in 0..5 {
        wait_for_progress(std::slice::from_ref(&writer), 30);
        checkpoint(&pair);
    }
    assert!(epochs(&pair.secondary).contains(&epoch), "it is held as long as it is shown");
    let first: Vec<Vec<u8>> = (0..2).map(|number| shown(&pair, &name(number)).read_all()).collect();
    wait_for_progress(std::slice::from_ref(&writer), 30);
    let again: Vec<Vec<u8>> = (0..2).map(|number| shown(&pair, &name(number)).read_all()).collect();
    assert!(first == again, "what is shown does not change");
    (0..2).for_each(|number| hide(&pair, &name(number)));
    wait_for_epochs(&pair, 4);
    assert_eq!(writer.stop(), "stopped");
}

#[test]
fn an_exported_checkpoint_under_load_is_one_point_in_time() {
    let pair = pair_with_history(Shape::simple(16), json!({"history_epochs": 8}));
    let regions = (16 << 8) / 4;
    let mut writers: Vec<Writer> =
        (0..4).map(|i| Writer::start(pair.volume(), i * regions, regions)).collect();
    let mut cuts = Vec::new();
    for _ in 0..5 {
        wait_for_progress(&writers, 30);
        let before = stamps::progress(&writers).acknowledged;
        let epoch = checkpoint(&pair);
        cuts.push((epoch, before, stamps::progress(&writers).issued));
    }
    for (epoch, before, after) in cuts.iter().rev() {
        stamps::assert_one_point_in_time(&writers, &image_of(&pair, 0, *epoch), before, after);
    }
    for writer in &mut writers {
        assert_eq!(writer.stop(), "stopped");
    }
}

#[test]
fn a_checkpoint_can_only_be_read_and_its_bdev_says_what_it_is() {
    let pair = pair_with_history(Shape::simple(8), json!({"history_epochs": 2}));
    let mut volume = pair.volume();
    overwrite(&mut volume, 1, 20);
    let image = volume.read_all();
    let epoch = checkpoint(&pair);
    show(&pair, "past", "v0", epoch);
    let mut past = shown(&pair, "past");
    let read_only = |c: common::nvme::Completion| (c.status_type, c.status_code) == (1, 0x82);
    assert!(read_only(past.try_write(0, &[1; 4096]).expect("an answer")));
    assert!(read_only(past.write_zeroes(0, 4096).expect("an answer")));
    assert!(past.flush().expect("an answer").is_success());
    let write_protected = |host: &mut Host| host.admin.identify(0x00, 1).expect("an answer").1[99] & 1 == 1;
    assert!(write_protected(&mut past) && !write_protected(&mut volume));
    assert!(past.compare(0, &image[..4096]).expect("an answer").is_success());
    assert_same(&past.read_all(), &image, "the checkpoint");
    let about = pair.secondary.rpc("bdev_get_bdevs", json!({"name": "past"}))[0].clone();
    assert_eq!(
        about["driver_specific"]["replication_epoch"],
        json!({"group": "g0", "volume": "v0", "epoch": epoch})
    );
    let listed = history(&pair.secondary);
    assert_eq!(listed["epochs"].as_array().and_then(|e| e.last()).expect("one")["bdevs"], json!(["past"]));
    // What does not exist is refused by name; what is in use stays.
    let try_create = |name: &str, volume: &str, epoch: u64| {
        let params = json!({"name": name, "group": GROUP, "volume": volume, "epoch": epoch});
        pair.secondary.try_rpc("bdev_replication_epoch_create", params).expect_err("it cannot be made")
    };
    assert_eq!(try_create("other", "v0", epoch + 50).code, -2);
    assert_eq!(try_create("other", "v1", epoch).code, -22);
    assert_eq!(try_create("past", "v0", epoch).code, -17);
    let delete = |name: &str| pair.secondary.try_rpc("bdev_replication_epoch_delete", json!({"name": name}));
    assert_eq!(delete("v0").expect_err("no checkpoint").code, -19);
    let params = json!({"group": GROUP});
    assert_eq!(
        pair.primary.try_rpc("replication_get_history", params.clone()).expect_err("a primary").code,
        -95
    );
    assert_eq!(pair.secondary.rpc("bdev_replication_epoch_delete", json!({"name": "past"})), json!(true));
    let gone = past.try_read(0, 4096).expect("an answer").expect_err("its namespace went with it");
    assert_eq!((gone.status_type, gone.status_code), (0, 0x0b));
    show(&pair, "past2", "v0", epoch);
    pair.secondary.rpc("replication_group_delete", params);
    assert!(
        pair.secondary.try_rpc("bdev_get_bdevs", json!({"name": "past2"})).is_err(),
        "it went with its group"
    );
}

#[test]
fn what_is_kept_stays_within_its_limits_and_costs_the_buffer_nothing() {
    let limits = json!({"history_epochs": 20, "history_limit_mb": 6, "buffer_limit_mb": 8});
    let pair = pair_with_history(Shape::simple(16), limits);
    let mut volume = pair.volume();
    let mut rewrite = |seed, mib: usize| volume.write(0, &noise(seed, mib * MIB));
    rewrite(0, 1);
    let first = checkpoint(&pair);
    show(&pair, "first", "v0", first);
    let mut reader = shown(&pair, "first");
    let image = reader.read_all();
    rewrite(1, 2);
    checkpoint(&pair);
    assert_same(&reader.read_all(), &image, "a checkpoint that is kept");
    // Two MiB each: the limit holds three of them. The exported one is given up with the others, and says so.
    for seed in 2..8 {
        rewrite(seed, 2);
        checkpoint(&pair);
    }
    wait_until("what is over the limit is given back", LIMIT, || {
        history(&pair.secondary)["used_bytes"].as_u64() <= Some(6 * MIB as u64)
    });
    let kept = epochs(&pair.secondary);
    assert!((2..=4).contains(&kept.len()) && !kept.contains(&first), "{kept:?}");
    assert_eq!(events(&pair.secondary, "replication_history_dropped"), 1);
    let failed = reader.try_read(0, 4096).expect("an answer").expect_err("it is gone");
    assert_eq!((failed.status_type, failed.status_code), (0, 0x0b), "invalid namespace");
    // The buffer's limit is as wide as ever: eight MiB fit, less what is kept in reserve.
    rewrite(9, 7);
    checkpoint(&pair);
    rewrite(10, 7);
    assert_eq!(events(&pair.secondary, "replication_buffer_overrun"), 0);
    // An epoch that is larger than the limit is not kept, and the last one stands.
    let last = checkpoint(&pair);
    wait_until("all but the last one is given up", LIMIT, || epochs(&pair.secondary) == [last]);
    assert_same(&image_of(&pair, 0, last), &pair.volume().read_all(), "the last checkpoint");
    // Fewer at run time, none, and some again.
    let set = |epochs: u32| {
        pair.secondary.rpc("replication_set_options", json!({"group": GROUP, "history_epochs": epochs}));
    };
    let small = |seed| {
        volume_write(&pair, seed);
        checkpoint(&pair)
    };
    let (a, b) = (small(20), small(21));
    wait_until("two more", LIMIT, || epochs(&pair.secondary) == [last, a, b]);
    set(1);
    assert_eq!(epochs(&pair.secondary), [a, b]);
    set(0);
    assert_eq!(epochs(&pair.secondary), [0u64; 0]);
    wait_until("all memory is given back", LIMIT, || history(&pair.secondary)["used_bytes"] == 0);
    small(22);
    assert_eq!(epochs(&pair.secondary), [0u64; 0]);
    set(5);
    let (c, d) = (epochs(&pair.secondary)[0], small(23));
    wait_until("it is on again", LIMIT, || epochs(&pair.secondary) == [c, d]);
    let saved = pair.secondary.rpc("framework_get_config", json!({"name": "replication"})).to_string();
    assert!(saved.contains("\"history_epochs\":5") && saved.contains("\"history_limit_mb\":6"), "{saved}");
}

fn volume_write(pair: &Pair, seed: u64) {
    pair.volume().write(64 * BLOCK as u64, &noise(seed, 10 * BLOCK));
}

fn roll_back(pair: &Pair, epoch: u64) -> Result<Value, common::rpc::RpcError> {
    pair.secondary.try_rpc("replication_rollback", json!({"group": GROUP, "epoch": epoch}))
}

/// Checkpoints with what they are, and writes after the last one.
fn cuts(pair: &Pair, volumes: &mut [Host], count: u64) -> Vec<(u64, Vec<Vec<u8>>)> {
    let mut cuts = Vec::new();
    for round in 0..count {
        volumes.iter_mut().for_each(|volume| overwrite(volume, round, 40));
        let images = volumes.iter_mut().map(Host::read_all).collect();
        cuts.push((checkpoint(pair), images));
    }
    volumes.iter_mut().for_each(|volume| overwrite(volume, 99, 40));
    cuts
}

#[test]
fn a_stopped_secondary_goes_back_to_a_checkpoint_exactly_and_comes_in_step_by_a_full_sync() {
    let disks = vec![Disk { mib: 12, block_size: 4096 }; 2];
    let shape = Shape { disks, primary_cores: "0-1", secondary_cores: "0-1", ..Shape::simple(0) };
    let pair = pair_with_history(shape, json!({"history_epochs": 5}));
    let mut volumes = [pair.volume_of(0), pair.volume_of(1)];
    let cuts = cuts(&pair, &mut volumes, 4);
    let refused = roll_back(&pair, cuts[1].0).expect_err("a session stands");
    assert_eq!(refused.code, -1, "{refused:?}");
    pair.secondary.rpc("replication_stop", json!({"group": GROUP}));
    pair.view_of(0).write(0, &noise(5, 64 * BLOCK));
    assert_eq!(roll_back(&pair, 9999).expect_err("no such epoch").code, -2);
    for (epoch, images) in [&cuts[2], &cuts[0]] {
        roll_back(&pair, *epoch).expect("the roll-back");
        for (number, image) in images.iter().enumerate() {
            assert_same(&pair.view_of(number).read_all(), image, "the view at once");
        }
        wait_for_state(&pair.secondary, "stopped");
        let now = group(&pair.secondary);
        assert_eq!(
            (&now["committed_epoch"], &now["buffer"]["undo_bytes"]),
            (&json!(epoch), &json!(0)),
            "{now}"
        );
        for (number, image) in images.iter().enumerate() {
            assert_same(&pair.view_of(number).read_all(), image, "the disk");
        }
        assert_eq!(epochs(&pair.secondary).last(), Some(epoch));
    }
    assert_eq!(events(&pair.secondary, "replication_rolled_back"), 2);
    assert_eq!(roll_back(&pair, cuts[3].0).expect_err("there is no way forward").code, -2);
    // The primary knows nothing of what this node lacks now.
    pair.secondary.rpc("replication_start", json!({"group": GROUP}));
    let changed = json!({"group": GROUP, "sync": "changed", "timeout_ms": 60000});
    pair.primary.rpc("replication_stop", json!({"group": GROUP}));
    assert!(pair.primary.try_rpc("replication_start", changed).is_err(), "nothing leads on from there");
    pair.primary.try_rpc("replication_stop", json!({"group": GROUP})).ok();
    pair.replicate("full");
    checkpoint(&pair);
    for (number, volume) in volumes.iter_mut().enumerate() {
        assert_same(&pair.view_of(number).read_all(), &volume.read_all(), "in step again");
    }
}

#[test]
fn after_the_loss_of_the_primary_an_older_checkpoint_can_be_promoted() {
    let mut pair = pair_with_history(Shape::simple(16), json!({"history_epochs": 5}));
    let cuts = cuts(&pair, &mut [pair.volume()], 4);
    pair.primary.kill();
    wait_for_state(&pair.secondary, "primary lost");
    let (epoch, images) = &cuts[1];
    roll_back(&pair, *epoch).expect("the roll-back");
    wait_for_state(&pair.secondary, "primary lost");
    let latest = json!({"group": GROUP, "keep": "latest"});
    assert_eq!(pair.secondary.try_rpc("replication_failover", latest).expect_err("it went back").code, -95);
    pair.failover("checkpoint");
    assert_same(&pair.survivor().read_all(), &images[0], "the volume");
    wait_for_state(&pair.secondary, "standalone");
    assert_same(&pair.survivor().read_all(), &images[0], "its disk");
}

#[test]
fn a_node_that_took_over_goes_back_whatever_its_hosts_have_written_but_not_under_their_feet() {
    for keep in ["latest", "checkpoint"] {
        let mut pair = pair_with_history(Shape::simple(16), json!({"history_epochs": 5}));
        let cuts = cuts(&pair, &mut [pair.volume()], 4);
        pair.primary.kill();
        wait_for_state(&pair.secondary, "primary lost");
        pair.failover(keep);
        overwrite(&mut pair.survivor(), 7, 200);
        wait_for_state(&pair.secondary, "standalone");
        overwrite(&mut pair.survivor(), 8, 200);
        // The past is there as before, whatever the hosts do now.
        for (epoch, images) in &cuts {
            assert_same(
                &image_of(&pair, 0, *epoch),
                &images[0],
                &format!("epoch {epoch} after the failover"),
            );
        }
        let before = pair.survivor().read_all();
        for (epoch, images) in [&cuts[3], &cuts[1]] {
            assert_eq!(roll_back(&pair, *epoch).expect_err("its hosts would not know").code, -1, "{keep}");
            if *epoch == cuts[3].0 {
                assert_same(&pair.survivor().read_all(), &before, "nothing has happened");
            }
            for nqn in [VOLUME_NQN, common::pair::VIEW_NQN] {
                pair.secondary.rpc("nvmf_delete_subsystem", json!({"nqn": nqn}));
            }
            roll_back(&pair, *epoch).expect("the roll-back");
            export_again(&pair);
            assert_same(&pair.survivor().read_all(), &images[0], &format!("{keep}: at once"));
            wait_for_state(&pair.secondary, "standalone");
            assert_same(&pair.survivor().read_all(), &images[0], &format!("{keep}: its disk"));
            overwrite(&mut pair.survivor(), 9, 100);
        }
        assert_eq!(events(&pair.secondary, "replication_history_lost"), 0);
    }
}

fn export_again(pair: &Pair) {
    for (nqn, view) in [(VOLUME_NQN, false), (common::pair::VIEW_NQN, true)] {
        export(&pair.secondary, "127.0.0.1", pair.secondary_port, nqn, "v0", 0x100, view);
    }
}
