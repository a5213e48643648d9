//! SPDK's own client, as it comes from PyPI, drives a node: it builds a target method by method, saves it, loads it into
//! another node, and gets the same configuration again.

mod common;

use common::node::{Node, free_port};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn client() -> PathBuf {
    let path = std::env::var_os("LOCKSTEP_SPDK_RPC").map(PathBuf::from);
    let path = path.expect("LOCKSTEP_SPDK_RPC names SPDK's client; tests/run installs it and sets this");
    assert!(path.exists(), "{} is missing; tests/run installs it", path.display());
    path
}

/// Runs `spdk-rpc ARGUMENTS` against `socket` with `input` on its standard input; its output.
fn spdk_rpc(socket: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(client())
        .args(["-t", "30", "-s"])
        .arg(socket)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("SPDK's client starts");
    child.stdin.take().expect("a piped input").write_all(input.as_bytes()).expect("a client that reads");
    let output = child.wait_with_output().expect("the client ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(text + &String::from_utf8_lossy(&output.stderr)),
    }
}

#[track_caller]
fn run(node: &Node, arguments: &[&str]) -> String {
    spdk_rpc(node.socket(), arguments, "").unwrap_or_else(|e| panic!("spdk-rpc {}: {e}", arguments.join(" ")))
}

#[track_caller]
fn saved(node: &Node) -> Value {
    serde_json::from_str(&run(node, &["save_config"])).expect("save_config prints JSON")
}

const NQN: &str = "nqn.2026-01.io.lockstep:spdk";

#[test]
fn spdks_client_builds_saves_and_loads_a_target() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("disk");
    std::fs::File::create(&file).and_then(|f| f.set_len(16 << 20)).expect("a sparse file");
    let file = file.display().to_string();
    let port = free_port().to_string();
    let node = Node::start("built");
    for line in [
        "bdev_malloc_create -b Malloc0 16 512",
        "bdev_malloc_create -b Malloc1 16 4096",
        "bdev_null_create Null0 64 512",
        &format!("bdev_uring_create {file} File0 512"),
        "bdev_passthru_create -b Malloc1 -p Pass0",
        "bdev_delay_create -b Null0 -d Delay0 -r 10 -t 20 -w 30 -n 40",
        "nvmf_create_transport -t TCP -c 8192",
        &format!("nvmf_create_subsystem {NQN} -s LOCKSTEP0001 -d Lockstep -r"),
        &format!("nvmf_subsystem_add_ns {NQN} Malloc0 -n 3"),
        &format!("nvmf_subsystem_add_ns {NQN} Pass0"),
        &format!(
            "nvmf_subsystem_add_host {NQN} nqn.2014-08.org.nvmexpress:uuid:6c6f636b-7374-6570-0000-000000000001"
        ),
        &format!("nvmf_subsystem_add_listener {NQN} -t tcp -a 127.0.0.1 -s {port}"),
        &format!("nvmf_create_subsystem {NQN}2 -a"),
        &format!("nvmf_subsystem_add_ns {NQN}2 File0"),
        &format!("nvmf_subsystem_add_listener {NQN}2 -t tcp -a 127.0.0.1 -s {port}"),
        "nvmf_discovery_add_referral -t tcp -a 127.0.0.1 -s 4499",
    ] {
        run(&node, &line.split(' ').collect::<Vec<_>>());
    }
    let bdevs: Value = serde_json::from_str(&run(&node, &["bdev_get_bdevs"])).expect("JSON");
    assert_eq!(bdevs.as_array().map(Vec::len), Some(6), "{bdevs}");
    let subsystems: Value = serde_json::from_str(&run(&node, &["nvmf_get_subsystems"])).expect("JSON");
    assert!(subsystems.to_string().contains(NQN), "{subsystems}");
    let refused = spdk_rpc(node.socket(), &["bdev_malloc_delete", "Nobody"], "").expect_err("no such bdev");
    assert!(refused.contains("No such device") || refused.contains("Nobody"), "{refused}");

    let first = saved(&node);
    drop(node); // The port is needed again.
    let loaded = Node::start("loaded");
    let text = first.to_string();
    spdk_rpc(loaded.socket(), &["load_config"], &text).unwrap_or_else(|e| panic!("load_config: {e}\n{text}"));
    assert_eq!(saved(&loaded), first, "what was loaded is what was saved");
    drop(loaded);

    // The same file is a configuration to start with.
    let config = dir.path().join("node.json");
    std::fs::write(&config, &text).expect("a file that takes it");
    let started = Node::builder("started").config(&config).start();
    assert_eq!(saved(&started), first, "what was started from is what was saved");
}

#[test]
fn spdks_client_reads_what_a_node_says_of_itself() {
    let node = Node::start("node");
    run(&node, &["bdev_malloc_create", "-b", "Malloc0", "16", "512"]);
    for method in [
        "spdk_get_version",
        "rpc_get_methods",
        "framework_get_subsystems",
        "framework_get_reactors",
        "thread_get_stats",
        "thread_get_pollers",
        "thread_get_io_channels",
        "log_get_level",
        "log_get_flags",
        "notify_get_types",
        "notify_get_notifications",
        "iobuf_get_stats",
        "bdev_get_bdevs",
        "bdev_get_iostat",
        "nvmf_get_transports",
        "nvmf_get_subsystems",
        "nvmf_get_stats",
        "nvmf_discovery_get_referrals",
    ] {
        let text = run(&node, &[method]);
        let parsed: Result<Value, _> = serde_json::from_str(&text);
        assert!(parsed.is_ok() || !text.trim().is_empty(), "{method}: {text}");
    }
}
