//! A secondary with a journal that loses power: kill -9 of nodes on disks of files. It goes back to its last checkpoint by
//! itself, byte for byte, or says that it cannot.

mod common;

use common::load::*;
use common::node::{Node, free_port};
use common::nvme::Host;
use common::pair::{VIEW_NQN, VOLUME_NQN, export, group};
use common::stamps::Writer;
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const SIZE_MIB: u64 = 16;
const BLOCK: usize = 4096;

/// Two nodes whose disks, records and journal outlive them.
struct Rig {
    folder: tempfile::TempDir,
    primary: Node,
    secondary: Node,
    link_port: u16,
    ports: [u16; 2],
    cores: &'static str,
}

impl Rig {
    fn new(cores: &'static str) -> Rig {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["primary", "secondary"] {
            let file = fs::File::create(folder.path().join(name)).expect("a disk");
            file.set_len(SIZE_MIB << 20).expect("its size");
        }
        let rig = Rig {
            folder,
            primary: Rig::node("primary", "0"),
            secondary: Rig::node("secondary", cores),
            link_port: free_port(),
            ports: [free_port(), free_port()],
            cores,
        };
        rig.equip(&rig.primary, "primary");
        rig.equip(&rig.secondary, "secondary");
        rig
    }

    fn node(name: &str, cores: &str) -> Node {
        Node::builder(name).cores(cores).memory_mib(256).start()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn equip(&self, node: &Node, name: &str) {
        let disk = json!({"name": "Disk0", "filename": self.path(name), "block_size": BLOCK});
        wait_until("the disk's file is free", PATIENCE, || {
            node.try_rpc("bdev_uring_create", disk.clone()).is_ok()
        });
        node.rpc("nvmf_create_transport", json!({"trtype": "TCP"}));
    }

    fn params(&self, role: &str) -> Value {
        json!({"name": "g0", "role": role, "volumes": [{"name": "v0", "bdev": "Disk0"}],
               "metadata": self.path(&format!("{role}.meta"))})
    }

    fn link(&self) -> Value {
        json!({"transport": "tcp", "address": "127.0.0.1", "port": self.link_port})
    }

    fn create_primary(&self) {
        let mut params = self.params("primary");
        params["peer"] = self.link();
        self.primary.rpc("replication_group_create", params);
        export(&self.primary, "127.0.0.1", self.ports[0], VOLUME_NQN, "v0", 1, false);
    }

    fn try_secondary(&self, extra: Value) -> Result<Value, common::rpc::RpcError> {
        let mut params = self.params("secondary");
        params["listen"] = self.link();
        params["buffer_limit_mb"] = json!(64);
        for (name, value) in extra.as_object().expect("members") {
            params[name] = value.clone();
        }
        self.secondary.try_rpc("replication_group_create", params)
    }

    fn journal(&self) -> Value {
        json!({"buffer_journal": self.path("journal")})
    }

    fn create_secondary(&self, extra: Value) {
        self.try_secondary(extra).expect("the group on the secondary");
        export(&self.secondary, "127.0.0.1", self.ports[1], VOLUME_NQN, "v0", 0x100, false);
        export(&self.secondary, "127.0.0.1", self.ports[1], VIEW_NQN, "v0", 1, true);
    }

    /// A pair in step.
    fn in_step(cores: &'static str, journal_mb: u64) -> Rig {
        let rig = Rig::new(cores);
        let mut journal = rig.journal();
        journal["buffer_journal_mb"] = json!(journal_mb);
        rig.create_secondary(journal);
        rig.create_primary();
        rig.primary.rpc("replication_start", json!({"group": "g0", "sync": "full"}));
        wait_for_state(&rig.primary, "running");
        wait_for_state(&rig.secondary, "running");
        rig
    }

    fn volume(&self) -> Host {
        Host::connect(self.ports[0], VOLUME_NQN)
    }

    fn view(&self) -> Vec<u8> {
        Host::connect(self.ports[1], VIEW_NQN).read_all()
    }

    fn checkpoint(&self) -> u64 {
        let done = self.primary.rpc("replication_do_checkpoint", json!({"group": "g0", "timeout_ms": 20000}));
        done["epoch"].as_u64().expect("an epoch")
    }

    /// Both nodes lose power; the secondary comes back, without its group.
    fn lose_power(&mut self) {
        self.primary.kill();
        self.secondary.kill();
        self.secondary = Rig::node("secondary", self.cores);
        self.equip(&self.secondary, "secondary");
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.path("secondary")).expect("the secondary's disk")
    }

    fn promote(&self, keep: &str) -> Result<Value, common::rpc::RpcError> {
        self.secondary.try_rpc("replication_failover", json!({"group": "g0", "keep": keep}))
    }

    fn error(&self) -> String {
        group(&self.secondary)["error"].as_str().unwrap_or_default().to_owned()
    }

    fn events(&self) -> String {
        self.secondary.rpc("notify_get_notifications", json!({"id": 0, "max": 1000})).to_string()
    }
}

fn roll_back_under_load(cores: &'static str) {
    let mut rig = Rig::in_step(cores, 64);
    let blocks = SIZE_MIB << 8;
    let mut writers: Vec<Writer> =
        (0..4).map(|number| Writer::start(rig.volume(), number * blocks / 4, blocks / 4)).collect();
    let mut epoch = 0;
    for _ in 0..3 {
        wait_for_progress(&writers, 150);
        epoch = rig.checkpoint();
    }
    wait_for_progress(&writers, 150);
    let checkpoint = rig.view();
    wait_for_progress(&writers, 50);
    let seen = group(&rig.secondary);
    assert!(seen["journal"]["used_bytes"].as_u64() > Some(0), "{seen}");
    rig.lose_power();
    wait_for_end(&mut writers);
    assert!(rig.disk() != checkpoint, "writes went in place after the checkpoint");

    rig.create_secondary(rig.journal());
    assert_same(&rig.disk(), &checkpoint, "the disk after the start");
    let seen = group(&rig.secondary);
    assert_eq!(seen["journal"]["rolled_back_to"], epoch, "{seen}");
    assert_eq!((&seen["state"], &seen["error"]), (&json!("waiting for the primary"), &Value::Null), "{seen}");
    assert!(rig.events().contains("replication_rolled_back"), "{}", rig.events());
    for keep in ["latest", "overlay"] {
        let error = rig.promote(keep).expect_err("that went with the power");
        assert!(error.code == -95 && error.message.contains("rolled back"), "{error:?}");
    }
    // The power goes once more before anybody decides.
    rig.lose_power();
    rig.create_secondary(rig.journal());
    rig.promote("checkpoint").expect("promoted");
    let mut survivor = Host::connect(rig.ports[1], VOLUME_NQN);
    assert_same(&survivor.read_all(), &checkpoint, "the volume after the failover");
    survivor.write(0, &noise(1, BLOCK));
    survivor.flush().expect("a flush");
    drop(survivor);
    // What was written since is not undone.
    rig.lose_power();
    rig.create_secondary(rig.journal());
    let mut expected = checkpoint;
    expected[..BLOCK].copy_from_slice(&noise(1, BLOCK));
    assert_same(&Host::connect(rig.ports[1], VOLUME_NQN).read_all(), &expected, "after another restart");
}

#[test]
fn a_secondary_that_loses_power_under_load_is_at_its_last_checkpoint_by_itself() {
    roll_back_under_load("1");
}

#[test]
fn so_is_one_of_several_reactors() {
    roll_back_under_load("0,1");
}

#[test]
fn a_disk_that_went_back_is_not_brought_in_step_by_what_the_primary_marked_before() {
    let mut rig = Rig::in_step("1", 64);
    let mut volume = rig.volume();
    volume.write(0, &noise(1, 1 << 20));
    rig.checkpoint();
    volume.write(0, &noise(2, 1 << 20));
    // To the primary it is all on the secondary's disk, past a loss of power.
    volume.flush().expect("a flush");
    // It goes back where its primary does not reach it, and comes to it without the journal that knows.
    let mut elsewhere = rig.journal();
    elsewhere["listen"] = json!({"transport": "tcp", "address": "127.0.0.1", "port": free_port()});
    for extra in [elsewhere, json!({})] {
        rig.secondary.kill();
        rig.secondary = Rig::node("secondary", rig.cores);
        rig.equip(&rig.secondary, "secondary");
        rig.create_secondary(extra);
    }
    wait_until("the primary has heard of it", PATIENCE, || {
        group(&rig.primary)["error"].as_str().is_some_and(|error| error.contains("sync `full`"))
    });
    rig.primary.rpc("replication_start", json!({"group": "g0", "sync": "full"}));
    wait_for_state(&rig.primary, "running");
    rig.checkpoint();
    assert_same(&rig.view(), &volume.read_all(), "the view");
}

/// Where the batches of a journal's only area are, by their sequence.
fn batches(journal: &[u8]) -> Vec<(u64, usize, usize)> {
    let number = |at: usize, bytes: usize| {
        journal[at..at + bytes].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let is_head = |at: &usize| journal[*at..].starts_with(b"LSTPUNDO");
    let describe = |at: usize| (number(at + 32, 8), at, number(at + 56, 4) as usize * BLOCK);
    let mut found: Vec<_> = (8192..journal.len()).step_by(BLOCK).filter(is_head).map(describe).collect();
    found.sort_unstable();
    found
}

/// A pair with some writes after its last checkpoint, and no power. The content of that checkpoint.
fn without_power() -> (Rig, Vec<u8>) {
    let mut rig = Rig::in_step("1", 16);
    let mut volume = rig.volume();
    volume.write(0, &noise(1, 1 << 20));
    rig.checkpoint();
    let checkpoint = rig.view();
    for number in 0..20 {
        volume.write(number * 40960, &noise(number, 3 * BLOCK));
    }
    drop(volume);
    rig.lose_power();
    assert!(rig.disk() != checkpoint);
    (rig, checkpoint)
}

#[test]
fn a_batch_that_was_cut_off_is_not_needed() {
    let (rig, checkpoint) = without_power();
    let journal = fs::read(rig.path("journal")).expect("the journal");
    let &(_, at, bytes) = batches(&journal).last().expect("a batch");
    // The next write had begun.
    let file = fs::File::options().write(true).open(rig.path("journal")).expect("the journal");
    file.write_all_at(&noise(5, 2 * BLOCK), (at + bytes) as u64).expect("garbage behind it");
    rig.create_secondary(rig.journal());
    assert_same(&rig.disk(), &checkpoint, "the disk after the start");
}

/// What a start says that cannot go back; the disk is as it was.
fn needs_sync(rig: &Rig, journal: Value, why: &str) {
    let before = rig.disk();
    rig.create_secondary(journal);
    assert_same(&rig.disk(), &before, "the disk");
    let error = rig.error();
    assert!(error.contains("need a sync") && error.contains(why), "{error}");
    assert!(rig.events().contains("replication_needs_sync"), "{}", rig.events());
    let refused = rig.promote("checkpoint").expect_err("nothing leads back");
    assert_eq!(refused.code, -95, "{refused:?}");
}

#[test]
fn damage_in_the_middle_is_reported_and_nothing_is_half_rolled_back() {
    let (rig, _) = without_power();
    let journal = fs::read(rig.path("journal")).expect("the journal");
    let found = batches(&journal);
    let &(sequence, at, _) = &found[found.len() - 3];
    let file = fs::File::options().write(true).open(rig.path("journal")).expect("the journal");
    file.write_all_at(&[journal[at + BLOCK + 9] ^ 1], (at + BLOCK + 9) as u64).expect("a flipped bit");
    needs_sync(&rig, rig.journal(), &format!("batch {sequence} of area 0 is needed and is not whole"));
}

#[test]
fn a_journal_that_is_not_there_or_not_the_one_leads_nowhere() {
    let (mut rig, _) = without_power();
    let kept = fs::read(rig.path("journal")).expect("the journal");
    fs::remove_file(rig.path("journal")).expect("it is gone");
    needs_sync(&rig, rig.journal(), "is not the journal that was in use");
    // Nor does the right one any more, once the node has run without it.
    rig.primary = Rig::node("primary", "0");
    rig.equip(&rig.primary, "primary");
    rig.create_primary();
    rig.primary.rpc("replication_start", json!({"group": "g0", "sync": "full"}));
    wait_for_state(&rig.secondary, "running");
    rig.checkpoint();
    rig.lose_power();
    fs::write(rig.path("journal"), kept).expect("it is back");
    needs_sync(&rig, rig.journal(), "is not the journal that was in use");
}

#[test]
fn a_secondary_without_a_journal_is_as_before() {
    let (mut rig, _) = without_power();
    let before = rig.disk();
    rig.create_secondary(json!({}));
    assert_same(&rig.disk(), &before, "the disk");
    assert!(group(&rig.secondary)["journal"].is_null());
    assert_eq!(rig.promote("checkpoint").expect_err("nothing leads back").code, -95);
    rig.promote("latest").expect("the disk as it is");
    rig.lose_power();
    // It took over: the journal of before has no say.
    rig.create_secondary(rig.journal());
    assert_same(&Host::connect(rig.ports[1], VOLUME_NQN).read_all(), &before, "the volume");
}

#[test]
fn unsuitable_journals_are_refused_by_name() {
    let rig = Rig::new("1");
    let refused = |extra: Value, code: i64, text: &str| {
        let error = rig.try_secondary(extra).expect_err(text);
        assert!(error.code == code && error.message.contains(text), "{error:?}, not {text}");
    };
    let file = |name: &str, bytes: &[u8], len: u64| {
        fs::write(rig.path(name), bytes).expect("a file");
        fs::File::options().write(true).open(rig.path(name)).and_then(|f| f.set_len(len)).expect("its size");
        json!({"buffer_journal": rig.path(name)})
    };
    refused(file("small", &[], 1 << 20), -22, "it needs at least 4202496");
    refused(file("foreign", b"my diary", 8 << 20), -22, "it is not a journal of Lockstep");
    assert!(fs::read(rig.path("foreign")).expect("it").starts_with(b"my diary"), "it is left alone");
    refused(json!({"buffer_journal": "/nonexistent/journal"}), -5, "/nonexistent/journal");
    refused(json!({"buffer_journal": "NoBdev"}), -19, "NoBdev");
    refused(json!({"buffer_journal": "Disk0"}), -1, "claimed");
    refused(json!({"buffer_journal": rig.path("new"), "disk_buffer": false}), -22, "disk_buffer");
    refused(json!({"buffer_journal": rig.path("new"), "buffer_journal_mb": 1}), -22, "needs at least");
    refused(json!({"buffer_journal_mb": 8}), -32602, "needs 'buffer_journal'");
    // A journal of another group.
    rig.secondary.rpc("bdev_malloc_create", json!({"name": "J", "num_blocks": 4096, "block_size": 4096}));
    rig.secondary.rpc("bdev_malloc_create", json!({"name": "D", "num_blocks": 4096, "block_size": 4096}));
    let other = json!({"name": "other", "buffer_journal": "J", "volumes": [{"name": "o0", "bdev": "D"}],
                       "metadata": rig.path("other.meta")});
    rig.try_secondary(other).expect("a group with a bdev as its journal");
    refused(json!({"buffer_journal": "J"}), -1, "claimed by replication group other");
    rig.secondary.rpc("replication_group_delete", json!({"group": "other"}));
    refused(json!({"buffer_journal": "J"}), -22, "belongs to another group");
    rig.create_secondary(rig.journal());
    assert!(group(&rig.secondary)["journal"]["size_bytes"].as_u64() > Some(60 << 20));
    assert_eq!(rig.error(), "", "a new group needs nothing");
}

/// All of the volume, with content that is not zeroes, which take no room.
fn overwrite(volume: &mut Host, seed: u64) {
    (0..SIZE_MIB).for_each(|number| volume.write(number << 20, &noise(seed + number, 1 << 20)));
}

#[test]
fn a_full_journal_costs_the_way_back_and_not_the_writes_until_the_next_checkpoint() {
    let mut rig = Rig::in_step("1", 5);
    let mut volume = rig.volume();
    overwrite(&mut volume, 1);
    rig.checkpoint();
    let first = volume.read_all();
    overwrite(&mut volume, 100);
    wait_until("the journal is full", PATIENCE, || rig.error().contains("the journal is full"));
    for event in ["replication_journal_watermark", "replication_journal_overrun"] {
        assert!(rig.events().contains(event), "{}", rig.events());
    }
    // The view is memory's: it stands.
    assert_same(&rig.view(), &first, "the view");
    // The next checkpoint makes it good.
    rig.checkpoint();
    let checkpoint = rig.view();
    volume.write(0, &noise(99, 1 << 20));
    let latest = volume.read_all();
    rig.lose_power();
    assert_same(&rig.disk(), &latest, "the disk without power");
    rig.create_secondary(rig.journal());
    assert_same(&rig.disk(), &checkpoint, "the disk after the start");
}

#[test]
fn a_power_loss_while_the_journal_is_full_is_said_to_need_a_sync() {
    let mut rig = Rig::in_step("1", 5);
    let mut volume = rig.volume();
    overwrite(&mut volume, 1);
    rig.checkpoint();
    overwrite(&mut volume, 100);
    wait_until("the journal is full", PATIENCE, || rig.error().contains("the journal is full"));
    rig.lose_power();
    needs_sync(&rig, rig.journal(), "not all originals were kept");
}
