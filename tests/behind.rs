//! A link that becomes too slow for the load: with `on_congestion: behind` hosts go on, the secondary keeps its last checkpoint
//! and refuses what it cannot promise, and catches up by itself when the link is quick again.

mod common;

use common::load::*;
use common::pair::{GROUP, Pair, group};
use common::stamps::{self, Writer};
use common::wait_until;
use serde_json::{Value, json};

const SIZE_MIB: u64 = 16;
const BLOCKS: u64 = SIZE_MIB << 8;
/// Far less than what eight hosts write, one write after the other, within the time that they are to wait.
const SLOW_KILOBIT: u32 = 256;
const PATIENCE_MS: u32 = 500;

/// A pair under load with a checkpoint, whose view is returned.
fn pair_under_load() -> (Pair, Vec<Writer>, Vec<u8>) {
    let pair = Pair::nodes_with_a_cable(SIZE_MIB);
    pair.create_groups(json!({"on_congestion": "behind", "congestion_ms": PATIENCE_MS}), json!({}));
    pair.export_volume();
    pair.replicate("full");
    let writers = writers(&pair, BLOCKS, 8);
    wait_for_progress(&writers, 50);
    pair.checkpoint();
    let image = pair.view().read_all();
    wait_for_progress(&writers, 20);
    (pair, writers, image)
}

fn fall_behind(pair: &Pair) {
    pair.cable().slow_down(SLOW_KILOBIT);
    wait_until("the secondary is left behind", PATIENCE, || group(&pair.primary)["state"] == "behind");
}

fn events(pair: &Pair, kind: &str) -> usize {
    let all = pair.primary.rpc("notify_get_notifications", json!({"id": 0, "max": 1000}));
    all.as_array().expect("a list").iter().filter(|event| event["type"] == kind).count()
}

/// While it is behind, and while it is being made equal.
fn assert_refuses_latest(pair: &Pair) {
    let params = json!({"group": GROUP, "keep": "latest"});
    let error =
        pair.secondary.try_rpc("replication_failover", params).expect_err("acknowledged writes are missing");
    let known = ["secondary is behind", "inconsistent"].iter().any(|text| error.message.contains(text));
    assert!(error.code == -95 && known, "{error:?}");
}

#[test]
fn hosts_go_on_while_the_link_is_too_slow_and_the_pair_finds_together_when_it_is_not() {
    let (pair, mut writers, image) = pair_under_load();
    fall_behind(&pair);
    assert!(group(&pair.primary)["error"].as_str().is_some_and(|text| text.contains("left behind")));
    wait_for_progress(&writers, 300);
    assert_refuses_latest(&pair);
    assert_same(&pair.view().read_all(), &image, "the view while the secondary is behind");
    assert!(pair.primary.try_rpc("replication_do_checkpoint", json!({"group": GROUP})).is_err());
    // It is tried again, in vain, and hosts go on after that as well.
    wait_until("it fell behind once more", PATIENCE, || events(&pair, "replication_behind") > 1);
    wait_for_progress(&writers, 100);
    assert_refuses_latest(&pair);
    assert_same(&pair.view().read_all(), &image, "the view after an attempt in vain");
    assert_eq!(events(&pair, "replication_link_lost"), 0, "no link was lost");
    pair.cable().speed_up();
    pair.wait_until_in_step();
    wait_for_progress(&writers, 50);
    assert!(group(&pair.primary)["error"].is_null(), "{}", group(&pair.primary));
    stop(&mut writers);
    pair.checkpoint();
    let volume = pair.volume().read_all();
    assert_same(&volume, &pair.view().read_all(), "the view after the checkpoint");
    let end = stamps::progress(&writers);
    stamps::assert_one_point_in_time(&writers, &volume, &end.acknowledged, &end.issued);
}

#[test]
fn a_primary_that_dies_while_its_secondary_is_behind_leaves_the_last_checkpoint() {
    let (mut pair, mut writers, image) = pair_under_load();
    fall_behind(&pair);
    wait_for_progress(&writers, 100);
    pair.primary.kill();
    wait_for_end(&mut writers);
    assert_refuses_latest(&pair);
    pair.failover("checkpoint");
    assert_same(&pair.survivor().read_all(), &image, "the volume after the failover");
    wait_for_state(&pair.secondary, "standalone");
    assert_same(&pair.survivor().read_all(), &image, "the volume on its disk");
}

#[test]
fn without_the_option_hosts_wait_and_with_it_turned_on_those_that_wait_go_on() {
    let (pair, mut writers, _) = pair_under_load();
    let set = |options: Value| {
        let mut params = json!({"group": GROUP});
        params.as_object_mut().expect("members").extend(options.as_object().expect("members").clone());
        pair.primary.try_rpc("replication_set_options", params)
    };
    set(json!({"on_congestion": "wait"})).expect("hosts wait");
    pair.cable().slow_down(SLOW_KILOBIT);
    wait_for_progress(&writers, 2);
    assert_eq!((events(&pair, "replication_behind"), &group(&pair.primary)["state"]), (0, &json!("running")));
    let error = set(json!({"on_congestion": "behind", "on_link_loss": "block"})).expect_err("both at once");
    assert!(error.code == -22 && error.message.contains("choose one"), "{error:?}");
    assert_eq!(set(json!({"congestion_ms": 500})).expect_err("it needs the other").code, -32602);
    assert_eq!(
        set(json!({"on_congestion": "behind", "congestion_ms": 1})).expect_err("too soon").code,
        -32602
    );
    set(json!({"on_congestion": "behind", "congestion_ms": PATIENCE_MS})).expect("they do not wait");
    wait_until("the secondary is left behind", PATIENCE, || events(&pair, "replication_behind") > 0);
    wait_for_progress(&writers, 100);
    pair.cable().speed_up();
    pair.wait_until_in_step();
    stop(&mut writers);
}
