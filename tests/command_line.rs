//! The command line as an operator meets it: exit codes, words, ready configurations.

mod common;

use common::node::{Node, free_port};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn lockstep(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep")).args(arguments).output().expect("the program starts")
}

fn socket_of(node: &Node) -> &str {
    node.socket().to_str().expect("a path of ordinary characters")
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn rpc_prints_a_result_and_fails_with_the_error_on_standard_error() {
    let node = Node::start("node");
    let good = lockstep(&["rpc", "--socket", socket_of(&node), "log_set_level", r#"{"level": "WARNING"}"#]);
    assert_eq!((good.status.code(), words(&good.stdout).trim()), (Some(0), "true"));
    for (method, params, word) in [
        ("bdev_get_bdevs", r#"{"name": "nobody"}"#, "nobody"),
        ("no_such_method", "{}", "no_such_method"),
        ("log_set_level", r#"{"level": 5}"#, "level"),
        ("log_set_level", "{level}", "JSON"),
    ] {
        let bad = lockstep(&["rpc", "--socket", socket_of(&node), method, params]);
        assert_eq!(bad.status.code(), Some(1), "{method} {params}");
        assert!(bad.stdout.is_empty() && words(&bad.stderr).contains(word), "{}", words(&bad.stderr));
    }
    let nobody = lockstep(&["rpc", "--socket", "/nonexistent/rpc.sock", "rpc_get_methods"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(words(&nobody.stderr).contains("/nonexistent/rpc.sock"));
}

#[test]
fn status_shows_every_node_asked_for_and_fails_if_one_is_down() {
    let node = Node::start("node");
    node.rpc("bdev_malloc_create", json!({"name": "Disk0", "num_blocks": 2048, "block_size": 512}));
    let shown = lockstep(&["status", "--socket", socket_of(&node)]);
    assert!(shown.status.success(), "{}", words(&shown.stderr));
    for word in ["Lockstep v", "Disk0", "1 MiB", "adaptive"] {
        assert!(words(&shown.stdout).contains(word), "{word} is missing:\n{}", words(&shown.stdout));
    }
    let both =
        lockstep(&["status", "--json", "--socket", socket_of(&node), "--socket", "/nonexistent/rpc.sock"]);
    assert_eq!(both.status.code(), Some(1));
    let nodes: Value = serde_json::from_slice(&both.stdout).expect("JSON");
    assert_eq!(nodes[0]["bdevs"][0]["name"], "Disk0");
    assert!(nodes[1]["error"].is_string(), "{nodes}");
}

#[test]
fn output_that_nobody_reads_any_more_ends_a_command_quietly() {
    let node = Node::start("node");
    for arguments in [&["rpc", "rpc_get_methods"][..], &["status"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command.arg(arguments[0]).args(["--socket", socket_of(&node)]).args(&arguments[1..]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("its end");
        assert_eq!((ended.status.code(), words(&ended.stderr)), (Some(0), String::new()), "{arguments:?}");
    }
}

#[test]
fn a_configuration_that_cannot_be_put_into_effect_ends_the_start_and_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("broken.json");
    for (text, expected) in [
        ("{", "broken.json"),
        (
            r#"{"subsystems": [{"subsystem": "bdev", "config": [
                {"method": "bdev_malloc_create", "params": {"name": "M", "num_blocks": "many", "block_size": 512}}]}]}"#,
            "'num_blocks'",
        ),
        (
            r#"{"subsystems": [{"subsystem": "bdev", "config": [
                {"method": "bdev_malloc_create", "params": {"name": "M", "num_blocks": 8, "block_size": 513}}]}]}"#,
            "bdev_malloc_create",
        ),
    ] {
        std::fs::write(&config, text).expect("a file");
        let node_dir = tempfile::tempdir().expect("a folder");
        let mut node = Node::builder("broken").config(&config).launch(node_dir);
        let status = node.wait_for_end(Duration::from_secs(20));
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(node.log().contains(expected), "{}", node.log());
    }
}

#[test]
fn a_node_told_to_wait_starts_when_it_is_told_to() {
    let node = Node::builder("waiting").argument("--wait-for-rpc").start();
    assert_eq!(node.try_rpc("bdev_get_bdevs", Value::Null).expect_err("too early").code, -1);
    let current = node.rpc("rpc_get_methods", json!({"current": true}));
    assert!(current.as_array().expect("a list").contains(&json!("framework_start_init")), "{current}");
    node.rpc("framework_start_init", Value::Null);
    assert_eq!(node.rpc("bdev_get_bdevs", Value::Null), json!([]));
    assert_eq!(node.try_rpc("framework_start_init", Value::Null).expect_err("too late").code, -1);
}

#[test]
fn signals_end_a_node_in_order() {
    for signal in ["TERM", "INT", "HUP", "USR1"] {
        let mut node = Node::start("node");
        node.rpc("bdev_malloc_create", json!({"num_blocks": 2048, "block_size": 512}));
        let _idle = node.connect();
        node.signal(signal);
        let status = node.wait_for_end(Duration::from_secs(10));
        assert!(status.success(), "{signal}: {status}\n{}", node.log());
        assert!(!node.socket().exists(), "{signal}: the socket is left behind");
    }
}

/// A ready configuration with its files, sockets and ports replaced by ones of this test's own.
fn adapted(name: &str, dir: &Path, ports: &[(&str, u16)]) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name);
    let mut text = std::fs::read_to_string(&shipped).unwrap_or_else(|e| panic!("{}: {e}", shipped.display()));
    text = text.replace("/var/lib/lockstep", &dir.display().to_string());
    for (shipped, free) in ports {
        assert!(text.contains(shipped), "{name} does not use port {shipped}");
        text = text.replace(shipped, &free.to_string());
    }
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

fn sparse(path: PathBuf) {
    File::create(path).and_then(|file| file.set_len(16 << 20)).expect("a sparse file");
}

#[test]
fn the_single_node_configuration_starts_and_dumps_what_starts_again() {
    let dir = tempfile::tempdir().expect("a folder");
    sparse(dir.path().join("disk0.img"));
    let config = adapted("single-node.json", dir.path(), &[("4420", free_port())]);
    let mut node = Node::builder("single").config(&config).start();
    let dumped = dump(&node);
    assert!(node.stop().success());
    let again = dir.path().join("dumped.json");
    std::fs::write(&again, dumped.to_string()).expect("a file");
    assert_eq!(dump(&Node::builder("again").config(&again).start()), dumped);
}

/// The whole configuration, as SPDK's `save_config` puts it together.
fn dump(node: &Node) -> Value {
    let subsystems = node.rpc("framework_get_subsystems", Value::Null);
    let parts: Vec<Value> = subsystems
        .as_array()
        .expect("a list")
        .iter()
        .map(|part| {
            let name = &part["subsystem"];
            json!({"subsystem": name, "config": node.rpc("framework_get_config", json!({"name": name}))})
        })
        .collect();
    json!({"subsystems": parts})
}

#[test]
fn the_pair_of_configurations_starts_and_gets_in_step() {
    let dir = tempfile::tempdir().expect("a folder");
    sparse(dir.path().join("primary.img"));
    sparse(dir.path().join("secondary.img"));
    let link = free_port();
    let secondary = adapted("secondary.json", dir.path(), &[("4421", free_port()), ("4500", link)]);
    let primary = adapted("primary.json", dir.path(), &[("4420", free_port()), ("4500", link)]);
    let secondary = Node::builder("secondary").cores("1").config(&secondary).start();
    let primary = Node::builder("primary").config(&primary).start();
    for node in [&primary, &secondary] {
        common::wait_until("the pair is in step", Duration::from_secs(30), || {
            node.rpc("replication_get_groups", json!({"name": "g0"}))[0]["state"] == "running"
        });
    }
    let shown = lockstep(&["status", "--socket", socket_of(&primary), "--socket", socket_of(&secondary)]);
    assert!(shown.status.success() && words(&shown.stdout).contains("running"), "{}", words(&shown.stdout));
}
