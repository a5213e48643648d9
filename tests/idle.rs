//! What a node costs while nobody wants anything of it.

mod common;

use common::export::{Subsystem, create_transport};
use common::node::{Node, free_port};
use common::nvme::Host;
use serde_json::json;
use std::time::Duration;

/// USER_HZ of every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that a process has used (proc(5): fields 14 and 15 of stat).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let after_name = stat.rsplit_once(')').expect("stat has the name in brackets").1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|f| f.parse::<u64>().expect("a count of ticks")).sum();
    ticks as f64 / TICKS_PER_SECOND
}

#[test]
fn an_idle_node_with_a_connected_host_uses_under_one_percent_of_a_core() {
    const NQN: &str = "nqn.2026-01.io.lockstep:idle";
    let node = Node::builder("idle").cores("0-1").idle("adaptive").start();
    let port = free_port();
    node.rpc("bdev_malloc_create", json!({"name": "Disk0", "num_blocks": 4096, "block_size": 4096}));
    create_transport(&node);
    let subsystem = Subsystem::new(NQN, "Disk0");
    subsystem.create(&node);
    subsystem.listen(&node, "127.0.0.1", port);
    let mut host = Host::connect(port, NQN);
    host.write(0, &[1; 4096]);
    std::thread::sleep(Duration::from_secs(1));
    let (before, seconds) = (cpu_seconds(node.pid()), 8.0);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let share = (cpu_seconds(node.pid()) - before) / seconds;
    assert!(share < 0.01, "an idle node used {:.2} % of a core", share * 100.0);
    assert_eq!(host.read(0, 4096), vec![1; 4096], "and it is still there");
}
