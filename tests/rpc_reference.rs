//! `docs/rpc.md` is held against a real node: it lists exactly the methods that the node answers, with their
//! parameters, and each example is run and answered in the shape that the page shows.
//!
//! `LOCKSTEP_UPDATE_REFERENCE=1 cargo test --test rpc_reference` writes the page anew.

mod common;

use common::node::{Node, free_port};
use common::nvme::Host;
use common::pair::export;
use lockstep::control::families;
use lockstep::control::registry::{Callable, Family, Method};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

const INTRODUCTION: &str = "\
# RPC reference

A node serves JSON-RPC 2.0 on a UNIX socket (`--rpc-socket`, default `/var/tmp/lockstep.sock`), framed as SPDK frames
it: JSON values one after another, without a delimiter. `lockstep rpc METHOD [JSON]` calls a method; so does SPDK's own
client (`pip install spdk`, `spdk-rpc -s SOCKET METHOD …`) for every method that SPDK has too, and any other program that
can write to a socket. Configuration files hold the same calls; `conf/README.md` describes them.

* A request: `{\"jsonrpc\": \"2.0\", \"method\": …, \"params\": {…}, \"id\": …}`. `jsonrpc` and `params` may be left out; `id` is a
  string, a number or null. A request without `id` is not answered. Arrays of up to 4096 requests are answered by one array.
* Limits: 256 KiB a request, 64 levels of nesting, 32 MiB a reply, 64 connections. A client that breaks the framing gets one
  error and loses its connection, and nobody else's.
* Parameters are named members of an object. One that a method does not know, or of another type, is refused.

Errors that any method can answer with:

| code | meaning |
| --- | --- |
| -32700 | the bytes are not JSON |
| -32600 | JSON, but not a request, or a request over a limit |
| -32601 | there is no such method |
| -32602 | a parameter is missing, unknown, or of the wrong type or value; the message names it |
| -32603 | a fault of the node's own; its log says more |
| -1 | the node's state does not allow the method now (see *When* of each method), or the thing is in use |
| -110 | a reactor, a disk or a peer did not answer by the deadline; the message names what |

Other negative codes are those of the operating system (`errno`), each with its text; every method lists its own.

This page is generated from the source and checked against a running node by `tests/rpc_reference.rs`.
";

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/rpc.md")
}

/// The page, with each method's example answered by what `responses` holds.
fn render(families: &[Family], responses: &BTreeMap<String, String>) -> String {
    let mut text = INTRODUCTION.to_string();
    let mut seen = BTreeSet::new();
    for family in families {
        write!(text, "\n## {}\n", family.title).unwrap();
        if !family.about.is_empty() {
            write!(text, "\n{}\n", family.about).unwrap();
        }
        for method in &family.methods {
            assert!(seen.insert(method.name), "{} is declared twice", method.name);
            assert!(!method.summary.is_empty(), "{} has no summary", method.name);
            render_method(&mut text, method, responses.get(method.name).map_or("", String::as_str));
        }
    }
    text
}

fn render_method(text: &mut String, method: &Method, response: &str) {
    write!(text, "\n### {}\n\n{}\n", method.name, method.summary).unwrap();
    match method.callable {
        Callable::Always => text.push_str("\nWhen: at any time.\n"),
        Callable::Startup => text.push_str("\nWhen: before the node serves.\n"),
        Callable::Runtime => {}
    }
    if !method.aliases.is_empty() {
        write!(text, "\nAlso called: `{}`.\n", method.aliases.join("`, `")).unwrap();
    }
    let fields = method.fields();
    if fields.is_empty() {
        text.push_str("\nNo parameters.\n");
    } else {
        text.push_str("\n| parameter | type | required | meaning |\n| --- | --- | --- | --- |\n");
        for field in fields {
            assert!(!field.doc.is_empty(), "{}: '{}' is not described", method.name, field.name);
            let required = if field.required { "yes" } else { "no" };
            writeln!(text, "| `{}` | {} | {required} | {} |", field.name, field.kind, field.doc).unwrap();
        }
    }
    write!(text, "\nResult: {}\n", sentence(method.result)).unwrap();
    if !method.errors.is_empty() {
        text.push_str("\nErrors:\n");
        for (code, cause) in method.errors {
            writeln!(text, "* {code}: {}", sentence(cause)).unwrap();
        }
    }
    let mut request = json!({"method": method.name});
    if !method.example.is_empty() {
        request["params"] = example(method);
    }
    write!(text, "\n```json\n{request}\n```\n```json\n{response}\n```\n").unwrap();
}

fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.to_string() } else { format!("{text}.") }
}

fn example(method: &Method) -> Value {
    serde_json::from_str(method.example)
        .unwrap_or_else(|error| panic!("the example of {} is not JSON: {error}", method.name))
}

/// The answers that the page shows: in each method's section, the second block of JSON.
fn responses_in(page: &str) -> BTreeMap<String, String> {
    page.split("\n### ")
        .skip(1)
        .filter_map(|section| {
            let (name, rest) = section.split_once('\n')?;
            let response = rest.split("```json\n").nth(2)?.split("\n```").next()?;
            Some((name.to_string(), response.to_string()))
        })
        .collect()
}

/// Where two answers differ in shape: members, types, elements of arrays. Values may differ.
fn difference(path: &str, shown: &Value, given: &Value) -> Option<String> {
    match (shown, given) {
        (Value::Object(shown), Value::Object(given)) => {
            let names: BTreeSet<&String> = shown.keys().chain(given.keys()).collect();
            names.into_iter().find_map(|name| match (shown.get(name), given.get(name)) {
                (Some(shown), Some(given)) => difference(&format!("{path}.{name}"), shown, given),
                (Some(_), None) => Some(format!("the node does not answer {path}.{name}")),
                _ => Some(format!("the page does not show {path}.{name}")),
            })
        }
        (Value::Array(shown), Value::Array(given)) => match (shown.first(), given.first()) {
            (Some(shown), Some(given)) => difference(&format!("{path}[0]"), shown, given),
            (None, None) => None,
            _ => Some(format!("{path} is empty on one side: {shown:?}, {given:?}")),
        },
        (Value::Null, _) | (_, Value::Null) => None,
        _ if std::mem::discriminant(shown) == std::mem::discriminant(given) => None,
        _ => Some(format!("{path}: {shown} is shown, {given} is answered")),
    }
}

/// A node on which the examples run, with what they speak of: ports and files of the page stand for free ones.
struct Stage {
    node: Node,
    /// The other node of the replication groups: g0's secondary, and the primary of the others.
    partner: Node,
    substitutes: Vec<(String, String)>,
    link_port: u16,
    /// Of the checkpoint prepared last, where an example speaks of one.
    epoch: Cell<u64>,
}

impl Stage {
    fn new() -> Stage {
        let node = Node::builder("reference").argument("--wait-for-rpc").start();
        let partner = Node::builder("partner").start();
        let link_port = free_port();
        let substitutes = vec![
            ("4420".to_string(), free_port().to_string()),
            ("4500".to_string(), link_port.to_string()),
            ("/var/lib/lockstep".to_string(), node.dir().display().to_string()),
        ];
        for file in ["disk0.img", "disk1.img"] {
            let created = std::fs::File::create(node.dir().join(file));
            created.and_then(|file| file.set_len(16 << 20)).expect("a sparse file");
        }
        Stage { node, partner, substitutes, link_port, epoch: Cell::new(0) }
    }

    fn to_stage(&self, text: &str) -> String {
        self.substitutes.iter().fold(text.to_string(), |text, (page, stage)| text.replace(page, stage))
    }

    fn to_page(&self, text: &str) -> String {
        self.substitutes.iter().fold(text.to_string(), |text, (page, stage)| text.replace(stage, page))
    }

    /// What an example needs that no example before it made.
    fn prepare_for(&self, method: &str) {
        let prepare = || {
            let answer = self.node.rpc("replication_prepare_checkpoint", json!({"group": "g0"}));
            self.epoch.set(answer["epoch"].as_u64().expect("an epoch"));
        };
        match method {
            "replication_start" => {
                self.disk(&self.partner, "Disk0");
                self.secondary(&self.partner, "g0", "v0", "Disk0", self.link_port);
            }
            "replication_set_options" => wait_running(&self.node, "g0"),
            "replication_commit_checkpoint" => prepare(),
            "replication_failover" => self.be_secondary_of("g1", "v1", "Disk1"),
            "replication_get_history" => {
                self.be_secondary_of("g2", "v2", "Disk2");
                self.node.rpc("replication_set_options", json!({"group": "g2", "history_epochs": 8}));
                for _ in 0..2 {
                    let answer = self.partner.rpc("replication_do_checkpoint", json!({"group": "g2"}));
                    self.epoch.set(answer["epoch"].as_u64().expect("an epoch"));
                }
            }
            "replication_rollback" => {
                self.node.rpc("replication_stop", json!({"group": "g2"}));
            }
            "replication_disk_attach" => self.lose_the_disk_of_g3(),
            _ => {}
        }
    }

    fn disk(&self, node: &Node, name: &str) {
        node.rpc("bdev_malloc_create", json!({"name": name, "num_blocks": 16384, "block_size": 512}));
    }

    fn secondary(&self, node: &Node, group: &str, volume: &str, disk: &str, port: u16) {
        node.rpc(
            "replication_group_create",
            json!({"name": group, "role": "secondary", "volumes": [{"name": volume, "bdev": disk}],
                   "metadata": node.dir().join(group).display().to_string(),
                   "listen": {"transport": "tcp", "address": "127.0.0.1", "port": port}}),
        );
        node.rpc("replication_start", json!({"group": group}));
    }

    fn be_secondary_of(&self, group: &str, volume: &str, disk: &str) {
        let port = free_port();
        self.disk(&self.node, disk);
        self.disk(&self.partner, disk);
        self.secondary(&self.node, group, volume, disk, port);
        self.partner.rpc(
            "replication_group_create",
            json!({"name": group, "role": "primary", "volumes": [{"name": volume, "bdev": disk}],
                   "metadata": self.partner.dir().join(group).display().to_string(),
                   "peer": {"transport": "tcp", "address": "127.0.0.1", "port": port}}),
        );
        self.partner.rpc("replication_start", json!({"group": group}));
        wait_running(&self.node, group);
        wait_running(&self.partner, group);
    }

    fn lose_the_disk_of_g3(&self) {
        let (link, port, nqn) = (free_port(), free_port(), "nqn.2026-01.io.lockstep.test:g3");
        self.disk(&self.partner, "Disk4");
        self.secondary(&self.partner, "g3", "v3", "Disk4", link);
        self.disk(&self.node, "Disk4");
        self.disk(&self.node, "Disk5");
        self.node.rpc("bdev_error_create", json!({"base_name": "Disk4"}));
        self.node.rpc(
            "replication_group_create",
            json!({"name": "g3", "role": "primary", "volumes": [{"name": "v3", "bdev": "EE_Disk4"}],
                   "metadata": self.node.dir().join("g3").display().to_string(), "on_disk_failure": "detach",
                   "peer": {"transport": "tcp", "address": "127.0.0.1", "port": link}}),
        );
        self.node.rpc("replication_start", json!({"group": "g3"}));
        wait_running(&self.node, "g3");
        export(&self.node, "127.0.0.1", port, nqn, "v3", 1, false);
        self.node.rpc(
            "bdev_error_inject_error",
            json!({"name": "EE_Disk4", "io_type": "write", "error_type": "failure", "num": 1}),
        );
        Host::connect(port, nqn).write(0, &[7; 4096]);
        self.node.rpc("nvmf_delete_subsystem", json!({"nqn": nqn}));
    }

    fn run(&self, method: &Method) -> Value {
        self.prepare_for(method.name);
        let mut params = if method.example.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&self.to_stage(method.example)).expect("JSON")
        };
        if let Some(epoch) = params.get_mut("epoch") {
            *epoch = self.epoch.get().into();
        }
        let answer = self.node.rpc(method.name, params);
        if method.name == "replication_prepare_checkpoint" {
            self.epoch.set(answer["epoch"].as_u64().expect("an epoch"));
        }
        serde_json::from_str(&self.to_page(&answer.to_string())).expect("JSON")
    }
}

fn wait_running(node: &Node, group: &str) {
    common::wait_until("the group is in step", Duration::from_secs(30), || {
        node.rpc("replication_get_groups", json!({"name": group}))[0]["state"] == "running"
    });
}

/// Runs every example; the one that ends the node comes last.
fn run_examples(families: &[Family]) -> BTreeMap<String, Value> {
    let stage = Stage::new();
    let methods = || families.iter().flat_map(|family| &family.methods);
    let mut answers = BTreeMap::new();
    for method in methods().filter(|method| method.name != "spdk_kill_instance") {
        answers.insert(method.name.to_string(), stage.run(method));
    }
    let listed = stage.node.rpc("rpc_get_methods", json!({"include_aliases": true}));
    let expected: BTreeSet<&str> = methods()
        .flat_map(|method| std::iter::once(method.name).chain(method.aliases.iter().copied()))
        .collect();
    let listed: BTreeSet<&str> = listed.as_array().expect("array").iter().filter_map(Value::as_str).collect();
    assert_eq!(listed, expected);
    for method in methods().filter(|method| method.name == "spdk_kill_instance") {
        answers.insert(method.name.to_string(), stage.run(method));
    }
    answers
}

#[test]
fn the_reference_is_what_a_running_node_answers() {
    let families = families();
    let answers = run_examples(&families);
    if std::env::var_os("LOCKSTEP_UPDATE_REFERENCE").is_some() {
        let responses = answers.iter().map(|(name, answer)| (name.clone(), format!("{answer:#}"))).collect();
        std::fs::write(page(), render(&families, &responses)).expect("docs/rpc.md can be written");
    }
    let text = std::fs::read_to_string(page()).expect("docs/rpc.md");
    let shown = responses_in(&text);
    assert!(
        text == render(&families, &shown),
        "docs/rpc.md is not what the source says; write it anew with LOCKSTEP_UPDATE_REFERENCE=1"
    );
    for (name, answer) in &answers {
        let shown = serde_json::from_str(&shown[name])
            .unwrap_or_else(|error| panic!("{name}: the answer shown is not JSON: {error}"));
        if let Some(difference) = difference(name, &shown, answer) {
            panic!("docs/rpc.md: {difference}");
        }
    }
}
