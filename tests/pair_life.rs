//! The life of a pair around its sessions: a peer that is not there yet, one that is away, and nodes that start again
//! with a saved configuration after a failover.

mod common;

use common::load::*;
use common::node::Node;
use common::pair::{DISK, GROUP, Pair, group, volume_name};
use common::stamps::{self, BLOCK};
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const SIZE_MIB: u64 = 16;
const BLOCKS: u64 = SIZE_MIB << 8;

#[test]
fn a_primary_started_first_goes_on_trying_and_comes_in_step_once_the_secondary_is_there() {
    let pair = Pair::nodes(SIZE_MIB);
    pair.create_primary(json!({}));
    let start = |timeout_ms: u32| {
        let params = json!({"group": GROUP, "sync": "full", "timeout_ms": timeout_ms});
        pair.primary.try_rpc("replication_start", params)
    };
    let error = start(300).expect_err("there is no peer");
    assert_eq!(error.code, -110, "{error:?}");
    assert!(error.message.contains("goes on trying") && error.message.contains("refused"), "{error:?}");
    let seen = group(&pair.primary);
    assert_eq!((&seen["state"], &seen["connected"]), (&json!("connecting"), &json!(false)), "{seen}");
    assert!(seen["error"].as_str().is_some_and(|text| text.contains("refused")), "{seen}");
    assert_eq!(start(300).expect_err("it is started already").code, -1);
    // Hosts are served meanwhile.
    common::pair::export(
        &pair.primary,
        "127.0.0.1",
        pair.primary_port,
        common::pair::VOLUME_NQN,
        "v0",
        1,
        false,
    );
    pair.volume().write(0, &noise(1, 1 << 20));

    pair.create_secondary(json!({}));
    wait_for_state(&pair.primary, "running");
    wait_for_state(&pair.secondary, "running");
    assert!(group(&pair.primary)["error"].is_null());
    common::pair::export(
        &pair.secondary,
        "127.0.0.1",
        pair.secondary_port,
        common::pair::VIEW_NQN,
        "v0",
        1,
        true,
    );
    assert_same(&pair.volume().read_all(), &pair.view().read_all(), "the view after the synchronisation");
}

/// Connections that were made to `door` since the last time; each is closed.
fn knocks(door: &TcpListener) -> usize {
    let mut count = 0;
    loop {
        match door.accept() {
            Ok(_) => count += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn stopping_or_deleting_a_group_ends_its_attempts_to_connect() {
    let pair = Pair::nodes(SIZE_MIB);
    let door = TcpListener::bind(("127.0.0.1", pair.link_port)).expect("the port of the link");
    door.set_nonblocking(true).expect("a listener that does not wait");
    pair.create_primary(json!({}));
    for end in ["replication_stop", "replication_group_delete"] {
        pair.primary.rpc("replication_start", json!({"group": GROUP, "timeout_ms": 0}));
        let mut seen = 0;
        wait_until("there were some attempts", PATIENCE, || {
            seen += knocks(&door);
            seen >= 3
        });
        pair.primary.rpc(end, json!({"group": GROUP}));
        if end == "replication_stop" {
            assert_eq!(group(&pair.primary)["state"], "stopped");
        }
        knocks(&door);
        // Twice the pause that would have followed.
        std::thread::sleep(Duration::from_millis(3000));
        assert_eq!(knocks(&door), 0, "it goes on after {end}");
    }
}

/// The whole configuration of a node, in the form of a file.
fn save_config(node: &Node, path: &Path) -> Value {
    let section = |name: &str| json!({"subsystem": name, "config": node.rpc("framework_get_config", json!({"name": name}))});
    let sections = ["bdev", "replication", "nvmf"].map(section);
    let config = json!({"subsystems": sections});
    std::fs::write(path, config.to_string()).expect("a configuration file");
    config
}

/// The parameters of a call of the replication section, if it is there.
fn saved(config: &Value, method: &str) -> Option<Value> {
    let calls = config["subsystems"][1]["config"].as_array().expect("calls");
    calls.iter().find(|call| call["method"] == method).map(|call| call["params"].clone())
}

fn restart<'a>(name: &'a str, core: &'a str, config: &'a Path) -> Node {
    Node::builder(name).cores(core).memory_mib(256 + 3 * SIZE_MIB as u32).config(config).start()
}

#[test]
fn a_primary_that_starts_from_its_configuration_does_not_depend_on_the_secondarys_being_there() {
    let mut pair = Pair::start(SIZE_MIB);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("primary.json");
    pair.primary.rpc("replication_set_options", json!({"group": GROUP, "peer_timeout_ms": 2000}));
    let config = save_config(&pair.primary, &path);
    let created = saved(&config, "replication_group_create").expect("the group");
    assert_eq!(created["peer_timeout_ms"], 2000, "{created}");
    // The metadata file stands in the folder of the node, which goes with it.
    let text = std::fs::read_to_string(&path).expect("the file");
    let meta = pair.primary.dir().join("group.meta").display().to_string();
    std::fs::copy(&meta, folder.path().join("group.meta")).expect("a copy");
    let kept = folder.path().join("group.meta").display().to_string();
    std::fs::write(&path, text.replace(&meta, &kept)).expect("the file");

    pair.secondary.signal("STOP");
    pair.primary.kill();
    pair.primary = restart("primary", "0", &path);
    wait_until("it tries", PATIENCE, || group(&pair.primary)["state"] == "connecting");
    assert_eq!(group(&pair.primary)["peer_timeout_ms"], 2000);
    pair.secondary.signal("CONT");
    wait_for_state(&pair.primary, "running");
    pair.volume().write(0, &noise(2, 1 << 20));
    pair.checkpoint();
    assert_same(&pair.volume().read_all(), &pair.view().read_all(), "the view after the checkpoint");
}

#[test]
fn the_time_after_which_a_peer_counts_as_lost_is_an_option_of_each_node() {
    let pair = Pair::nodes(SIZE_MIB);
    pair.create_groups(json!({"peer_timeout_ms": 60000}), json!({"peer_timeout_ms": 60000}));
    pair.export_volume();
    pair.replicate("full");
    let set = |node: &Node, ms: u32| {
        node.try_rpc("replication_set_options", json!({"group": GROUP, "peer_timeout_ms": ms}))
    };
    for ms in [0, 999, 60001] {
        for node in [&pair.primary, &pair.secondary] {
            let error = set(node, ms).expect_err("out of its limits");
            assert!(error.message.contains("1000 to 60000"), "{error:?}");
        }
    }
    let mut writers = writers(&pair, BLOCKS, 2);
    wait_for_progress(&writers, 50);
    // Longer than a peer may be away by default.
    for (stopped, other) in [(&pair.secondary, &pair.primary), (&pair.primary, &pair.secondary)] {
        stopped.signal("STOP");
        std::thread::sleep(Duration::from_millis(6500));
        assert_eq!(group(other)["state"], "running");
        stopped.signal("CONT");
        wait_for_progress(&writers, 50);
    }
    set(&pair.primary, 1000).expect("within the limits");
    assert_eq!(group(&pair.primary)["peer_timeout_ms"], 1000);
    let from = Instant::now();
    pair.secondary.signal("STOP");
    wait_for_state(&pair.primary, "resync required");
    assert!(from.elapsed() < Duration::from_secs(30), "that was the timeout from before");
    pair.secondary.signal("CONT");
    stop(&mut writers);
    pair.wait_until_in_step();
    set(&pair.secondary, 1000).expect("within the limits");
    pair.primary.signal("STOP");
    wait_for_state(&pair.secondary, "primary lost");
    assert!(from.elapsed() < Duration::from_secs(60), "that was the timeout from before");
    pair.primary.signal("CONT");
}

/// A pair whose secondary's disk and record outlive its process, in `folder`.
fn durable_pair(folder: &Path) -> Pair {
    let pair = Pair::nodes(SIZE_MIB);
    let file = folder.join("disk");
    std::fs::File::create(&file).and_then(|f| f.set_len(SIZE_MIB << 20)).expect("a file for a disk");
    pair.secondary.rpc("bdev_uring_create", json!({"name": "File0", "filename": file, "block_size": 4096}));
    let volumes = json!([{"name": volume_name(0), "bdev": "File0"}]);
    pair.create_groups(json!({}), json!({"volumes": volumes, "metadata": folder.join("meta")}));
    pair.export_volume();
    pair.replicate("full");
    pair
}

#[test]
fn a_node_that_took_over_serves_on_after_a_restart_whatever_configuration_it_finds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut pair = durable_pair(folder.path());
    let (before, after) = (folder.path().join("before.json"), folder.path().join("after.json"));
    let config = save_config(&pair.secondary, &before);
    assert!(saved(&config, "replication_start").is_some());
    assert!(saved(&config, "replication_group_create").expect("the group")["promoted_generation"].is_null());

    let mut writers = writers(&pair, BLOCKS, 2);
    wait_for_progress(&writers, 100);
    pair.checkpoint();
    pair.primary.signal("STOP");
    let generation = pair.failover("latest")["generation"].clone();
    wait_for_state(&pair.secondary, "standalone");
    let survived = pair.survivor().read_all();
    let end = stamps::progress(&writers);
    stamps::assert_one_point_in_time(&writers, &survived, &end.acknowledged, &end.issued);
    let config = save_config(&pair.secondary, &after);
    let created = saved(&config, "replication_group_create").expect("the group");
    assert_eq!(created["promoted_generation"], generation, "{created}");
    assert!(saved(&config, "replication_start").is_none(), "it waits for nobody");

    // With either configuration it is what its record says.
    let mut expected = survived;
    for (round, path) in [&after, &before].into_iter().enumerate() {
        pair.secondary.kill();
        pair.secondary = restart("secondary", "1", path);
        let seen = group(&pair.secondary);
        assert_eq!((&seen["role"], &seen["state"]), (&json!("primary"), &json!("standalone")), "{seen}");
        assert_eq!(seen["generation"], generation);
        assert_same(&expected, &pair.survivor().read_all(), "the volume after the restart");
        let bytes = noise(round as u64, BLOCK);
        pair.survivor().write(0, &bytes);
        expected[..BLOCK].copy_from_slice(&bytes);
        if round == 0 {
            // The old primary comes back, hears that it was replaced, and overwrites nothing.
            pair.primary.signal("CONT");
            // What it acknowledged alone before it heard is no secret: both say then that they went on without each other.
            wait_until("it hears that it was replaced", PATIENCE, || {
                ["fenced", "split brain"].iter().any(|state| group(&pair.primary)["state"] == *state)
            });
            wait_for_end(&mut writers);
            let again = pair.primary.try_rpc("replication_start", json!({"group": GROUP, "sync": "full"}));
            assert!(again.is_err());
        }
        let saved_again = save_config(&pair.secondary, &folder.path().join("again.json"));
        assert_eq!(saved(&saved_again, "replication_group_create"), Some(created.clone()));
    }
    assert_same(&expected, &pair.survivor().read_all(), "the volume in the end");

    // Without its record it would be a secondary that anybody may overwrite: it does not start.
    pair.secondary.kill();
    std::fs::rename(folder.path().join("meta"), folder.path().join("lost")).expect("the record");
    let place = tempfile::tempdir().expect("a folder");
    let mut node = Node::builder("lost").cores("1").config(&after).launch(place);
    assert!(!node.wait_for_end(PATIENCE).success());
    assert!(node.log().contains("promoted_generation"), "{}", node.log());
    // Nor is the one that was the primary made a secondary by the way.
    pair.primary.rpc("nvmf_delete_subsystem", json!({"nqn": common::pair::VOLUME_NQN}));
    pair.primary.rpc("replication_group_delete", json!({"group": GROUP}));
    let params = json!({"name": GROUP, "role": "secondary", "volumes": [{"name": volume_name(0), "bdev": DISK}],
                        "listen": {"transport": "tcp", "address": "127.0.0.1", "port": pair.link_port},
                        "metadata": pair.primary.dir().join("group.meta")});
    let error =
        pair.primary.try_rpc("replication_group_create", params.clone()).expect_err("it was the primary");
    assert!(error.message.contains("was the primary"), "{error:?}");
    // On purpose it is.
    std::fs::remove_file(pair.primary.dir().join("group.meta")).expect("the record");
    pair.primary.rpc("replication_group_create", params);
}
