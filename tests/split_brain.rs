//! Both nodes of a pair go on without each other: noticed in every order of events, told by both, and nothing is copied. And
//! what is no split brain is not called one.

mod common;

use common::load::*;
use common::node::Node;
use common::pair::{GROUP, Pair, group};
use common::stamps::BLOCK;
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::process::Command;

const SIZE_MIB: u64 = 16;

/// A pair in step, with a cable that can be cut, and the bytes that both have.
fn pair(primary: Value) -> (Pair, Vec<u8>) {
    let pair = Pair::nodes_with_a_cable(SIZE_MIB);
    let mut options = json!({"peer_timeout_ms": 1000});
    options.as_object_mut().expect("an object").extend(primary.as_object().expect("an object").clone());
    pair.create_groups(options, json!({"peer_timeout_ms": 1000}));
    pair.export_volume();
    pair.replicate("full");
    let content = noise(3, (SIZE_MIB as usize) << 20);
    let mut volume = pair.volume();
    for at in (0..content.len()).step_by(1 << 20) {
        volume.write(at as u64, &content[at..at + (1 << 20)]);
    }
    pair.checkpoint();
    (pair, content)
}

fn part(pair: &Pair) {
    pair.cable().cut();
    wait_for_state(&pair.primary, "resync required");
    wait_for_state(&pair.secondary, "primary lost");
}

fn events(node: &Node, kind: &str) -> usize {
    let all = node.rpc("notify_get_notifications", json!({"id": 0, "max": 1000}));
    all.as_array().expect("events").iter().filter(|event| event["type"] == kind).count()
}

fn write(host: &mut common::nvme::Host, content: &mut [u8], block: usize, seed: u64) {
    let bytes = noise(seed, BLOCK);
    host.write((block * BLOCK) as u64, &bytes);
    content[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(&bytes);
}

/// What `lockstep status` shows of a node.
fn status(node: &Node) -> String {
    let socket = node.socket().display().to_string();
    let shown = Command::new(env!("CARGO_BIN_EXE_lockstep")).args(["status", "--socket", &socket]).output();
    String::from_utf8_lossy(&shown.expect("lockstep status").stdout).into_owned()
}

/// Both say what both have, in the same words.
fn assert_told(pair: &Pair) {
    let (here, there) = (group(&pair.primary), group(&pair.secondary));
    for (seen, node) in [(&here, &pair.primary), (&there, &pair.secondary)] {
        assert_eq!(seen["state"], "split brain", "{seen}");
        assert!(seen["error"].as_str().is_some_and(|text| text.contains("split brain")), "{seen}");
        assert_eq!(events(node, "replication_split_brain"), 1, "{seen}");
        let status = status(node);
        assert!(status.contains("split brain"), "{status}");
    }
    assert_eq!(here["split_brain"]["this"], there["split_brain"]["peer"]);
    assert_eq!(here["split_brain"]["peer"], there["split_brain"]["this"]);
    assert_eq!(
        here["split_brain"]["this"]["base"], there["split_brain"]["this"]["base"],
        "what they last had in common"
    );
    assert_eq!(
        (&here["split_brain"]["this"]["generation"], &there["split_brain"]["this"]["generation"]),
        (&json!(1), &json!(2))
    );
}

#[test]
fn two_nodes_that_both_went_on_are_told_apart_and_neither_loses_anything() {
    for alone_first in [true, false] {
        let (pair, content) = pair(json!({}));
        let (mut on_first, mut on_second) = (content.clone(), content.clone());
        part(&pair);
        let mut old = pair.volume();
        if alone_first {
            write(&mut old, &mut on_first, 5, 11);
        }
        pair.failover("latest");
        let mut new = pair.survivor();
        write(&mut new, &mut on_second, 9, 12);
        if !alone_first {
            write(&mut old, &mut on_first, 5, 11);
        }
        pair.cable().mend();
        wait_for_state(&pair.primary, "split brain");
        wait_for_state(&pair.secondary, "split brain");
        assert_told(&pair);
        for (node, bytes) in [(&pair.primary, 64 << 10), (&pair.secondary, 64 << 10)] {
            assert_eq!(
                group(node)["split_brain"]["this"]["alone_bytes"],
                json!(bytes),
                "one block, in one unit of marks"
            );
        }
        // The older generation serves nobody any more; the newer goes on.
        assert!(!old.try_write(0, &noise(1, BLOCK)).is_ok_and(|end| end.is_success()), "it was replaced");
        write(&mut new, &mut on_second, 10, 13);
        assert_same(&on_second, &pair.survivor().read_all(), "what the second node has");
        let start = pair.primary.try_rpc("replication_start", json!({"group": GROUP, "sync": "full"}));
        assert!(start.is_err(), "nothing is copied over either");
    }
}

#[test]
fn a_primary_that_wrote_nothing_alone_is_replaced_and_nothing_more() {
    for policy in ["continue", "block"] {
        let (pair, content) = pair(json!({"on_link_loss": policy}));
        let mut on_second = content.clone();
        part(&pair);
        let blocked = (policy == "block").then(|| {
            let mut host = pair.volume();
            std::thread::spawn(move || host.try_write(0, &noise(5, BLOCK)).is_ok_and(|end| end.is_success()))
        });
        pair.failover("latest");
        write(&mut pair.survivor(), &mut on_second, 9, 12);
        pair.cable().mend();
        wait_for_state(&pair.primary, "fenced");
        if let Some(blocked) = blocked {
            assert!(!blocked.join().expect("the write"), "it was never acknowledged");
        }
        for node in [&pair.primary, &pair.secondary] {
            assert_eq!(events(node, "replication_split_brain"), 0);
            assert!(group(node)["split_brain"].is_null());
        }
        assert_eq!(group(&pair.secondary)["state"], "standalone");
        assert_same(&on_second, &pair.survivor().read_all(), "what the second node has");
    }
}

#[test]
fn an_old_primary_that_wakes_up_finds_out_at_its_first_word_with_its_peer() {
    let (pair, _) = pair(json!({}));
    let mut old = pair.volume();
    pair.primary.signal("STOP");
    wait_for_state(&pair.secondary, "primary lost");
    pair.failover("latest");
    pair.primary.signal("CONT");
    wait_for_state(&pair.primary, "fenced");
    assert!(!old.try_write(0, &noise(1, BLOCK)).is_ok_and(|end| end.is_success()), "it was replaced");
    wait_until("it tells", PATIENCE, || events(&pair.primary, "replication_fenced") == 1);
}
