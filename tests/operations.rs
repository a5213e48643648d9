//! `docs/operations.md` as an operator follows it: its commands are taken from the page and run as they stand there, on a
//! pair made from the ready configurations, and what the page says of the outcome is looked at.

mod common;

use common::load::*;
use common::netns::{Cable, Namespace};
use common::node::Node;
use common::nvme::Host;
use common::pair::group;
use common::stamps::{self, Writer};
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VOLUME_NQN: &str = "nqn.2026-01.io.lockstep:volume";
const SIZE_MIB: u64 = 16;
const BLOCKS: u64 = SIZE_MIB << 8;

/// One block of commands, and where the page says that it runs.
struct Step {
    place: String,
    commands: String,
}

/// The steps of a chapter that were not run yet.
struct Chapter {
    name: String,
    steps: RefCell<Vec<Step>>,
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    fs::read_to_string(path).expect("the guide")
}

/// Every chapter with commands in it, in the page's order.
fn chapters() -> Vec<Chapter> {
    let mut chapters: Vec<Chapter> = Vec::new();
    let mut block: Option<String> = None;
    for line in page().lines() {
        if let Some(name) = line.strip_prefix("## ") {
            chapters.push(Chapter { name: name.to_owned(), steps: RefCell::default() });
        } else if line == "```" {
            let Some(text) = block.take() else {
                block = Some(String::new());
                continue;
            };
            let (first, commands) = text.split_once('\n').expect("a place and commands");
            let place = first.strip_prefix("# on ").unwrap_or_else(|| panic!("`{first}` names no place"));
            let chapter = chapters.last().expect("commands stand in a chapter");
            chapter.steps.borrow_mut().push(Step { place: place.to_owned(), commands: commands.to_owned() });
        } else if let Some(text) = &mut block {
            text.push_str(line);
            text.push('\n');
        }
    }
    assert!(block.is_none(), "a block has no end");
    chapters.retain(|chapter| !chapter.steps.borrow().is_empty());
    chapters
}

fn chapter(name: &str) -> Chapter {
    let mut found = chapters();
    let at = found.iter().position(|chapter| chapter.name == name);
    found.swap_remove(at.unwrap_or_else(|| panic!("the guide has no chapter `{name}` with commands")))
}

impl Chapter {
    /// Runs the next block where it says; its output.
    #[track_caller]
    fn step(&self, rig: &Rig) -> String {
        let step = {
            let mut steps = self.steps.borrow_mut();
            assert!(!steps.is_empty(), "`{}` has no further step", self.name);
            steps.remove(0)
        };
        match step.place.as_str() {
            "node one" => run(&rig.one, &step.commands),
            "node two" => run(&rig.two, &step.commands),
            "each node" => [&rig.one, &rig.two].map(|place| run(place, &step.commands)).concat(),
            other => panic!("`{other}` is no place"),
        }
    }

    /// Nothing was left out.
    #[track_caller]
    fn end(&self) {
        let left = self.steps.borrow().len();
        assert_eq!(left, 0, "steps of `{}` were not run", self.name);
    }
}

/// Runs commands as an operator on the machine would.
#[track_caller]
fn run(place: &Place, commands: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_lockstep"));
    let path = format!(
        "{}:{}",
        program.parent().expect("a folder").display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", commands])
        .env("PATH", path)
        .env("LOCKSTEP_SOCKET", place.node.socket())
        .env("NEW_DISK", place.path("new.img"))
        .current_dir(place.folder.path())
        .output()
        .expect("bash");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "on {}:\n{commands}\n{shown}{}",
        place.name,
        String::from_utf8_lossy(&output.stderr)
    );
    shown
}

/// A machine with its service.
struct Place {
    name: &'static str,
    core: &'static str,
    node: Node,
    /// What outlives the process: disk, record, configuration.
    folder: tempfile::TempDir,
    address: String,
    namespace: Namespace,
}

impl Place {
    fn new(
        name: &'static str,
        core: &'static str,
        config: &str,
        namespace: Namespace,
        change: impl FnOnce(&mut Value),
    ) -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        let address = namespace.reach();
        let mut config = configuration(config, folder.path(), &address, Cable::SECOND);
        change(&mut config);
        fs::write(folder.path().join("node.json"), config.to_string()).expect("a configuration");
        disk(&folder.path().join("disk.img"));
        let node = Place::boot(name, core, folder.path(), &namespace);
        Place { name, core, node, folder, address, namespace }
    }

    fn boot(name: &str, core: &str, folder: &Path, namespace: &Namespace) -> Node {
        let config = folder.join("node.json");
        Node::builder(name).cores(core).memory_mib(256).namespace(namespace).config(&config).start()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another ready configuration, from the next start on.
    fn configure(&self, config: &str, link: &str) {
        let config = configuration(config, self.folder.path(), &self.address, link);
        fs::write(self.path("node.json"), config.to_string()).expect("a configuration");
    }

    /// Loses power and boots again.
    fn restart(&mut self) {
        self.node.kill();
        self.node = Place::boot(self.name, self.core, self.folder.path(), &self.namespace);
    }

    fn volume(&self) -> Host {
        Host::connect_to(&self.address, 4420, VOLUME_NQN)
    }

    fn state(&self) -> Value {
        group(&self.node)["state"].clone()
    }
}

fn disk(path: &Path) {
    fs::File::create(path).and_then(|file| file.set_len(SIZE_MIB << 20)).expect("a disk");
}

/// A ready configuration with the paths and addresses of the test.
fn configuration(name: &str, folder: &Path, address: &str, link: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(format!("{name}.json"));
    let text = fs::read_to_string(path).expect("a ready configuration");
    let text = text
        .replace(&format!("/var/lib/lockstep/{name}.img"), &folder.join("disk.img").display().to_string())
        .replace(&format!("/var/lib/lockstep/{name}.meta"), &folder.join("group.meta").display().to_string())
        .replace(r#""traddr": "127.0.0.1""#, &format!(r#""traddr": "{address}""#))
        .replace(r#""address": "127.0.0.1""#, &format!(r#""address": "{link}""#))
        .replace(r#""trsvcid": "4421""#, r#""trsvcid": "4420""#)
        .replace(r#""metadata":"#, r#""peer_timeout_ms": 1000, "metadata":"#);
    assert!(!text.contains("/var/lib"), "{text}");
    serde_json::from_str(&text).expect("JSON")
}

struct Rig {
    cable: Cable,
    one: Place,
    two: Place,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(|_| ())
    }

    /// A pair whose first primary's configuration was changed.
    fn with(change: impl FnOnce(&mut Value)) -> Rig {
        let (first, second) = (Namespace::new(), Namespace::new());
        let cable = Cable::plug(&first, &second);
        let two = Place::new("two", "1", "secondary", second, |_| ());
        let one = Place::new("one", "0", "primary", first, change);
        let rig = Rig { cable, one, two };
        rig.wait_until_in_step();
        rig
    }

    fn wait_until_in_step(&self) {
        wait_until("both are running", PATIENCE, || {
            self.one.state() == "running" && self.two.state() == "running"
        });
    }

    /// The three steps of the guide by which the nodes change their roles.
    fn bring_node_one_back(&mut self) {
        self.one.node.kill();
        fs::remove_file(self.one.path("group.meta")).expect("the record");
        self.one.configure("secondary", Cable::FIRST);
        self.two.configure("primary", Cable::FIRST);
        self.one.restart();
        self.two.restart();
        self.wait_until_in_step();
    }

    /// Load on the volume of a node.
    fn load(&self, place: &Place) -> Vec<Writer> {
        place.volume().write_zeroes(0, (SIZE_MIB as usize) << 20).expect("an answer");
        let writers: Vec<Writer> =
            (0..2).map(|i| Writer::start(place.volume(), i * BLOCKS / 2, BLOCKS / 2)).collect();
        wait_for_progress(&writers, 20);
        writers
    }

    /// Ends the load: every write is there, and on both nodes, as a verify tells.
    fn judge(&self, primary: &Place, writers: &mut [Writer]) {
        stop(writers);
        let end = stamps::progress(writers);
        let image = primary.volume().read_all();
        stamps::assert_one_point_in_time(writers, &image, &end.acknowledged, &end.issued);
        primary.node.rpc("replication_verify_start", json!({"group": "g0"}));
        let verify = || group(&primary.node)["verify"].clone();
        wait_until("the disks are compared", PATIENCE, || verify()["state"] != "running");
        assert_eq!((&verify()["state"], &verify()["differing_bytes"]), (&json!("finished"), &json!(0)));
    }
}

#[test]
fn look() {
    let rig = Rig::new();
    let chapter = chapter("Look");
    let shown = chapter.step(&rig);
    assert_eq!(shown.matches("running").count(), 2, "{shown}");
    let shown = chapter.step(&rig);
    assert_eq!(shown.matches(r#""error": null"#).count(), 2, "{shown}");
    chapter.end();
}

#[test]
fn loss_of_the_secondary() {
    let mut rig = Rig::new();
    let chapter = chapter("Loss of the secondary");
    let mut writers = rig.load(&rig.one);
    rig.two.node.kill();
    wait_for_state(&rig.one.node, "resync required");
    wait_for_progress(&writers, 20);
    rig.two.restart();
    chapter.step(&rig);
    rig.wait_until_in_step();
    wait_for_progress(&writers, 20);
    rig.judge(&rig.one, &mut writers);
    chapter.end();
}

#[test]
fn loss_of_the_primary() {
    let chapter = chapter("Loss of the primary");
    for keep in ["latest", "checkpoint", "overlay"] {
        let mut rig = Rig::new();
        let mut writers = rig.load(&rig.one);
        let before = stamps::progress(&writers).acknowledged;
        rig.one.node.rpc("replication_do_checkpoint", json!({"group": "g0", "timeout_ms": 20000}));
        let committed = stamps::progress(&writers).issued;
        wait_for_progress(&writers, 20);
        rig.one.node.kill();
        wait_for_end(&mut writers);
        let end = stamps::progress(&writers);
        wait_for_state(&rig.two.node, "primary lost");
        let answer = chapter.step(&rig);
        assert!(answer.contains("generation"), "{answer}");
        let image = rig.two.volume().read_all();
        let (earliest, latest) =
            if keep == "latest" { (end.acknowledged, end.issued) } else { (before, committed) };
        stamps::assert_one_point_in_time(&writers, &image, &earliest, &latest);
        wait_for_state(&rig.two.node, "standalone");
        rig.two.volume().write(0, &noise(3, 4096));
    }
    chapter.end();
}

#[test]
fn the_old_primary_comes_back() {
    let mut rig = Rig::new();
    let chapter = chapter("The old primary comes back");
    let mut writers = rig.load(&rig.one);
    rig.one.node.kill();
    wait_for_end(&mut writers);
    wait_for_state(&rig.two.node, "primary lost");
    rig.two.node.rpc("replication_failover", json!({"group": "g0", "keep": "latest"}));
    wait_for_state(&rig.two.node, "standalone");
    let end = stamps::progress(&writers);
    let survived = rig.two.volume().read_all();
    stamps::assert_one_point_in_time(&writers, &survived, &end.acknowledged, &end.issued);
    rig.bring_node_one_back();
    chapter.step(&rig);
    assert_same(&survived, &rig.two.volume().read_all(), "the volume in the end");
    let mut writers = rig.load(&rig.two);
    rig.judge(&rig.two, &mut writers);
    chapter.end();
}

#[test]
fn split_brain() {
    let mut rig = Rig::new();
    let chapter = chapter("Split brain");
    let mut writers = rig.load(&rig.one);
    rig.cable.cut();
    wait_for_state(&rig.one.node, "resync required");
    wait_for_progress(&writers, 20);
    rig.two.node.rpc("replication_failover", json!({"group": "g0", "keep": "latest"}));
    rig.two.volume().write(0, &noise(3, 4096));
    rig.cable.mend();
    wait_for_end(&mut writers);
    for place in [&rig.one, &rig.two] {
        wait_for_state(&place.node, "split brain");
    }
    let shown = chapter.step(&rig);
    assert_eq!(shown.matches("split brain:").count(), 4, "{shown}");
    rig.two.volume().write(0, &noise(4, 4096));
    let kept = rig.two.volume().read_all();
    rig.bring_node_one_back();
    assert_same(&kept, &rig.two.volume().read_all(), "what node two had");
    let mut writers = rig.load(&rig.two);
    rig.judge(&rig.two, &mut writers);
    chapter.end();
}

#[test]
fn loss_of_the_link() {
    let rig = Rig::new();
    let chapter = chapter("Loss of the link");
    let mut writers = rig.load(&rig.one);
    rig.cable.cut();
    wait_for_state(&rig.one.node, "resync required");
    wait_for_state(&rig.two.node, "primary lost");
    wait_for_progress(&writers, 20);
    rig.cable.mend();
    rig.wait_until_in_step();
    rig.cable.cut();
    wait_for_state(&rig.one.node, "resync required");
    chapter.step(&rig);
    rig.cable.mend();
    wait_for_progress(&writers, 20);
    assert_eq!(rig.one.state(), "stopped");
    chapter.step(&rig);
    rig.wait_until_in_step();
    rig.judge(&rig.one, &mut writers);
    chapter.end();
}

#[test]
fn the_secondary_s_disk_is_replaced() {
    let mut rig = Rig::new();
    let chapter = chapter("The secondary's disk is replaced");
    rig.one.volume().write(0, &noise(1, 1 << 20));
    let mut writers = rig.load(&rig.one);
    rig.two.node.stop();
    disk(&rig.two.path("disk.img"));
    fs::remove_file(rig.two.path("group.meta")).expect("the record");
    rig.two.restart();
    wait_until("the primary says what to do", PATIENCE, || {
        group(&rig.one.node)["error"].as_str().is_some_and(|error| error.contains("full"))
    });
    chapter.step(&rig);
    chapter.step(&rig);
    rig.wait_until_in_step();
    rig.judge(&rig.one, &mut writers);
    chapter.end();
}

#[test]
fn the_primary_s_disk_fails() {
    let rig = Rig::with(|config| {
        let calls = &mut config["subsystems"];
        calls[0]["config"]
            .as_array_mut()
            .expect("calls")
            .push(json!({"method": "bdev_error_create", "params": {"base_name": "Disk0"}}));
        let params = &mut calls[1]["config"][0]["params"];
        params["volumes"][0]["bdev"] = json!("EE_Disk0");
        params["on_disk_failure"] = json!("detach");
    });
    let chapter = chapter("The primary's disk fails");
    let mut writers = rig.load(&rig.one);
    let broken = json!({"name": "EE_Disk0", "io_type": "all", "error_type": "failure", "num": 1_000_000});
    rig.one.node.rpc("bdev_error_inject_error", broken);
    wait_until("the disk is detached", PATIENCE, || !group(&rig.one.node)["error"].is_null());
    wait_for_progress(&writers, 20);
    chapter.step(&rig);
    disk(&rig.one.path("new.img"));
    chapter.step(&rig);
    wait_until("the disk is filled", PATIENCE, || group(&rig.one.node)["error"].is_null());
    chapter.step(&rig);
    wait_for_progress(&writers, 20);
    rig.judge(&rig.one, &mut writers);
    chapter.end();
}

/// A chapter without a test would be one that nobody tried.
#[test]
fn every_chapter_has_its_test() {
    let source = include_str!("operations.rs");
    for chapter in chapters() {
        let name = chapter.name.to_lowercase().replace([' ', '\''], "_");
        assert!(source.contains(&format!("fn {name}()")), "no test is named `{name}`");
    }
}
