//! Pairs of every shape under load: several volumes in one group, several reactors on each side, no disk buffer and one
//! that is too small. After every checkpoint and failover the volumes are one point in time, together.

mod common;

use common::load::*;
use common::nvme::Host;
use common::pair::{Disk, GROUP, Pair, Shape, group};
use common::stamps::{self, BLOCK, Progress, Writer};
use common::{noise, wait_until};
use serde_json::json;

const KEEPS: [&str; 3] = ["latest", "checkpoint", "overlay"];

fn images(count: usize, of: impl Fn(usize) -> Host) -> Vec<Vec<u8>> {
    (0..count).map(|number| of(number).read_all()).collect()
}

fn assert_one_point(
    writers: &[Writer],
    images: &[Vec<u8>],
    earliest: &[usize],
    latest: &[usize],
) -> Vec<usize> {
    let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    stamps::assert_images_of_one_point_in_time(writers, &images, earliest, latest)
}

/// Checkpoints under load, each of which is one point in time of all volumes; the views after the last one.
fn checkpoints(pair: &Pair, writers: &[Writer], volumes: usize, rounds: usize) -> Vec<Vec<u8>> {
    let mut last = vec![0; writers.len()];
    let mut views = Vec::new();
    for _ in 0..rounds {
        wait_for_progress(writers, 20);
        let before = acknowledged(writers);
        pair.checkpoint();
        let after = stamps::progress(writers).issued;
        views = images(volumes, |number| pair.view_of(number));
        let cut = assert_one_point(writers, &views, &before, &after);
        assert!(cut.iter().zip(&last).all(|(now, then)| now >= then), "back from {last:?} to {cut:?}");
        last = cut;
    }
    views
}

/// The primary dies under load; with each promise the volumes become what was promised, all of them.
fn fail_over(pair: &mut Pair, writers: &mut [Writer], keep: &str, mut views: Vec<Vec<u8>>) {
    if keep == "overlay" {
        for (number, image) in views.iter_mut().enumerate() {
            let mut view = pair.view_of(number);
            for i in 0..64u64 {
                let at = (i * 7919 % (image.len() / BLOCK) as u64) as usize * BLOCK;
                let bytes = noise(i + 100 * number as u64, BLOCK);
                view.write(at as u64, &bytes);
                image[at..at + BLOCK].copy_from_slice(&bytes);
            }
        }
    }
    wait_for_progress(writers, 20);
    pair.primary.kill();
    wait_for_end(writers);
    pair.failover(keep);
    let Progress { acknowledged, issued } = stamps::progress(writers);
    let promised = |survived: &[Vec<u8>]| match keep {
        "latest" => {
            assert_one_point(writers, survived, &acknowledged, &issued);
        }
        _ => {
            for (number, (is, promised)) in survived.iter().zip(&views).enumerate() {
                assert_same(is, promised, &format!("volume {number} after the failover with {keep}"));
            }
        }
    };
    promised(&images(views.len(), |number| pair.survivor_of(number)));
    wait_for_state(&pair.secondary, "standalone");
    promised(&images(views.len(), |number| pair.survivor_of(number)));
}

#[test]
fn the_volumes_of_a_group_are_cut_together_and_fail_over_together() {
    for keep in KEEPS {
        let disks = [(8, 4096), (4, 512), (12, 512), (5, 4096)];
        let disks: Vec<Disk> = disks.iter().map(|&(mib, block_size)| Disk { mib, block_size }).collect();
        let mut pair = Pair::of(Shape { disks, ..Shape::simple(0) });
        pair.create_groups(json!({}), json!({}));
        pair.export_volume();
        pair.replicate("full");
        // Two that write to one volume after the other, each write after the one before was acknowledged; one on each.
        let all = || (0..4).map(|number| (number, pair.volume_of(number))).collect();
        let mut writers: Vec<Writer> = (0..2).map(|i| Writer::across(all(), i * 256, 256)).collect();
        writers.extend((0..4).map(|number| Writer::across(vec![(number, pair.volume_of(number))], 512, 512)));
        let views = checkpoints(&pair, &writers, 4, 4);
        fail_over(&mut pair, &mut writers, keep, views);
    }
}

#[test]
fn any_number_of_reactors_on_either_side_keeps_every_promise() {
    for (primary_cores, secondary_cores) in [("0-1", "0-1"), ("0-1", "0"), ("0", "0-1")] {
        for keep in KEEPS {
            let shape = Shape { primary_cores, secondary_cores, ..Shape::simple(24) };
            let mut pair = Pair::of(shape);
            pair.create_groups(json!({}), json!({}));
            pair.export_volume();
            pair.replicate("full");
            // Six stripes, so that every reactor has some, and queues on every reactor.
            let mut writers = writers(&pair, 24 << 8, 6);
            let views = checkpoints(&pair, &writers, 1, 3);
            fail_over(&mut pair, &mut writers, keep, views);
        }
    }
}

fn set_ack(pair: &Pair, ack: &str) {
    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "ack": ack}));
}

#[test]
fn the_mode_changes_under_load_with_many_volumes_and_reactors() {
    let disks = vec![Disk { mib: 8, block_size: 512 }; 3];
    let pair = Pair::of(Shape { disks, primary_cores: "0-1", secondary_cores: "0-1", ..Shape::simple(0) });
    pair.create_groups(json!({"ack": "local"}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    let mut writers: Vec<Writer> = (0..6)
        .map(|i| Writer::across(vec![(i % 3, pair.volume_of(i % 3))], (i / 3) as u64 * 1024, 1024))
        .collect();
    for ack in ["applied", "received", "local", "received", "applied", "local"] {
        set_ack(&pair, ack);
        checkpoints(&pair, &writers, 3, 1);
    }
    stop(&mut writers);
    pair.checkpoint();
    let volumes = images(3, |number| pair.volume_of(number));
    let views = images(3, |number| pair.view_of(number));
    for (volume, view) in volumes.iter().zip(&views) {
        assert_same(volume, view, "the view after the last checkpoint");
    }
}

const SIZE_MIB: u64 = 16;
const BLOCKS: u64 = SIZE_MIB << 8;

#[test]
fn without_a_disk_buffer_only_the_latest_state_can_be_promised_and_is_kept() {
    let mut pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({}), json!({"disk_buffer": false}));
    pair.export_volume();
    pair.replicate("full");
    let mut writers = writers(&pair, BLOCKS, 4);
    wait_for_progress(&writers, 100);
    pair.checkpoint();
    wait_for_progress(&writers, 100);
    let refused = pair.view().try_read(0, BLOCK).expect("an answer");
    assert!(refused.is_err(), "there is no view without a buffer");
    let seen = group(&pair.secondary);
    assert_eq!((&seen["state"], &seen["buffer"]["undo_bytes"]), (&json!("running"), &json!(0)), "{seen}");
    pair.primary.kill();
    wait_for_end(&mut writers);
    for keep in ["checkpoint", "overlay"] {
        let error = pair.secondary.try_rpc("replication_failover", json!({"group": GROUP, "keep": keep}));
        let error = error.expect_err("a promise that cannot be kept");
        assert!(error.message.contains("no disk buffer"), "{error:?}");
    }
    pair.failover("latest");
    let end = stamps::progress(&writers);
    let survived = pair.survivor().read_all();
    stamps::assert_one_point_in_time(&writers, &survived, &end.acknowledged, &end.issued);
}

fn events(pair: &Pair, kind: &str) -> usize {
    let all = pair.secondary.rpc("notify_get_notifications", json!({}));
    all.as_array().expect("a list").iter().filter(|event| event["type"] == kind).count()
}

fn buffer_bytes(pair: &Pair) -> u64 {
    let buffer = &group(&pair.secondary)["buffer"];
    let of = |member: &str| buffer[member].as_u64().expect("a number of bytes");
    assert!(of("undo_bytes") + of("overlay_bytes") <= of("limit_bytes"), "{buffer}");
    of("undo_bytes") + of("overlay_bytes")
}

/// A pair whose buffer holds a quarter of the volume; no block of the volume is empty.
fn pair_with_a_small_buffer() -> Pair {
    let pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({}), json!({"buffer_limit_mb": SIZE_MIB / 4}));
    pair.export_volume();
    pair.replicate("full");
    pair.volume().write(0, &noise(1, (SIZE_MIB << 20) as usize));
    // Filling the volume was too much for the buffer already.
    pair.checkpoint();
    pair
}

#[test]
fn a_buffer_that_fills_says_so_in_time_and_a_checkpoint_empties_it() {
    let pair = pair_with_a_small_buffer();
    let overruns = events(&pair, "replication_buffer_overrun");
    let mut volume = pair.volume();
    for round in 0..3u64 {
        let marks = events(&pair, "replication_buffer_watermark");
        // As a caller does that checkpoints on the event: without one the buffer would overrun in every round.
        let mut block = 0;
        while events(&pair, "replication_buffer_watermark") == marks {
            volume.write(block * BLOCK as u64, &noise(round << 20 | block, 16 * BLOCK));
            block += 16;
            assert!(block < BLOCKS / 4, "the buffer should be full");
        }
        // Memory is taken in large pieces, which a buffer as small as this one feels.
        assert!(buffer_bytes(&pair) > SIZE_MIB << 16, "a quarter of the buffer at least");
        pair.checkpoint();
        assert_eq!(buffer_bytes(&pair), 0, "a checkpoint empties the buffer");
        assert_same(&volume.read_all(), &pair.view().read_all(), "the view after the checkpoint");
    }
    assert_eq!(events(&pair, "replication_buffer_overrun"), overruns, "nothing was given up");
}

#[test]
fn a_buffer_that_overruns_costs_the_way_back_until_the_next_checkpoint_and_nothing_else() {
    let pair = pair_with_a_small_buffer();
    let overruns = events(&pair, "replication_buffer_overrun");
    let mut volume = pair.volume();
    volume.write(0, &noise(2, (SIZE_MIB << 20) as usize));
    wait_until("the buffer overruns", PATIENCE, || events(&pair, "replication_buffer_overrun") > overruns);
    assert!(pair.view().try_read(0, BLOCK).expect("an answer").is_err(), "the view is lost");
    let error = pair.secondary.try_rpc("replication_failover", json!({"group": GROUP, "keep": "checkpoint"}));
    let error = error.expect_err("a promise that cannot be kept");
    assert!(error.message.contains("only `latest`"), "{error:?}");
    assert_eq!(group(&pair.primary)["state"], "running");
    pair.checkpoint();
    assert_same(&volume.read_all(), &pair.view().read_all(), "the view after the checkpoint");
    pair.failover("checkpoint");
    assert_same(&volume.read_all(), &pair.survivor().read_all(), "the volume after the failover");
}

#[test]
fn the_secondarys_own_writes_wait_for_room_in_the_buffer_and_checkpoints_make_it() {
    let pair = pair_with_a_small_buffer();
    let mut view = pair.view();
    // Twice what the buffer holds.
    let own = std::thread::spawn(move || {
        for block in 0..BLOCKS / 2 {
            view.write(block * BLOCK as u64, &noise(3, BLOCK));
        }
    });
    let mut checkpoints = 0;
    wait_until("the secondary's writer is done", PATIENCE, || {
        let full = buffer_bytes(&pair) > (SIZE_MIB << 18) * 7 / 8;
        if full {
            // The primary's writes go on meanwhile.
            pair.volume().write(0, &noise(4, 16 * BLOCK));
            assert!(!own.is_finished(), "it wrote more than there is room for");
            pair.checkpoint();
            checkpoints += 1;
        }
        own.is_finished()
    });
    own.join().expect("no write of the secondary failed");
    assert!(checkpoints >= 2, "{checkpoints}");
    pair.checkpoint();
    assert_same(&pair.volume().read_all(), &pair.view().read_all(), "the view after the checkpoint");
}

#[test]
fn heavy_load_on_both_sides_of_a_small_buffer_with_checkpoints_comes_to_no_deadlock() {
    let mut pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({"checkpoint_interval_ms": 100}), json!({"buffer_limit_mb": 2}));
    pair.export_volume();
    pair.replicate("full");
    let mut writers = writers(&pair, BLOCKS, 6);
    let mut view = pair.view();
    for i in 0..400u64 {
        // Refused while there is no view; anything but an answer is a panic here.
        let _ = view.try_write((i * 131 % BLOCKS) * BLOCK as u64, &noise(i, BLOCK)).expect("an answer");
    }
    wait_for_progress(&writers, 100);
    assert_eq!(group(&pair.primary)["state"], "running");
    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "checkpoint_interval_ms": 0}));
    wait_until("a checkpoint of ours", PATIENCE, || {
        pair.primary.try_rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 5000})).is_ok()
    });
    pair.primary.kill();
    wait_for_end(&mut writers);
    pair.failover("latest");
    let end = stamps::progress(&writers);
    let survived = pair.survivor().read_all();
    stamps::assert_one_point_in_time(&writers, &survived, &end.acknowledged, &end.issued);
}
