//! A pair through faults at random: killed and stopped nodes, cut links, failovers in all three ways, and several of these
//! together, under load. After each one the content is judged, then the pair is brought in step again and compared.
//!
//! `LOCKSTEP_FAULTS` is how many there are (24 if it is not set), `LOCKSTEP_FAULT_SEED` repeats a run as far as processes
//! and disks allow.

mod common;

use common::load::*;
use common::netns::{Cable, Namespace};
use common::node::Node;
use common::nvme::Host;
use common::pair::{VIEW_NQN, VOLUME_NQN, export, group};
use common::stamps::{self, BLOCK, Progress, Writer};
use common::{noise, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const SIZE_MIB: u64 = 16;
/// The writers have the first part of the volume, the secondary's VM writes behind them, the rest stays as it was.
const WRITTEN_BLOCKS: u64 = 4 << 8;
const VIEW_AT: usize = 8 << 20;
const REST_AT: usize = 9 << 20;
const GROUP: &str = "g0";
const PORT: u16 = 4420;
const LINK_PORT: u16 = 4500;

/// Numbers that one seed determines.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A pause of up to `most_ms`.
    fn pause(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most_ms)));
    }
}

/// A host of a storage node: its network and its disk outlive the process.
struct Machine {
    name: &'static str,
    core: &'static str,
    node: Node,
    folder: tempfile::TempDir,
    /// Where hosts reach it, and where its peer does.
    address: String,
    on_the_cable: &'static str,
    namespace: Namespace,
}

impl Machine {
    fn new(name: &'static str, core: &'static str, on_the_cable: &'static str) -> Machine {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = fs::File::create(folder.path().join("disk")).expect("a disk");
        disk.set_len(SIZE_MIB << 20).expect("its size");
        let namespace = Namespace::new();
        let address = namespace.reach();
        let node = Machine::boot(name, core, &namespace);
        let machine = Machine { name, core, node, folder, address, on_the_cable, namespace };
        machine.equip();
        machine
    }

    fn boot(name: &str, core: &str, namespace: &Namespace) -> Node {
        Node::builder(name).cores(core).memory_mib(256).namespace(namespace).start()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn equip(&self) {
        let disk = json!({"name": "Disk0", "filename": self.path("disk"), "block_size": BLOCK});
        wait_until("the disk is free", PATIENCE, || {
            self.node.try_rpc("bdev_uring_create", disk.clone()).is_ok()
        });
        self.node.rpc("bdev_error_create", json!({"base_name": "Disk0"}));
        self.node.rpc("nvmf_create_transport", json!({"trtype": "TCP"}));
    }

    /// The next `count` commands of this type end so on this node's disk, or do not.
    fn spoil(&self, io_type: &str, how: &str, count: u64) {
        let params = json!({"name": "EE_Disk0", "io_type": io_type, "error_type": how, "num": count});
        self.node.rpc("bdev_error_inject_error", params);
    }

    /// The disk is whole again, and answers what it has not answered.
    fn heal(&self) {
        self.spoil("clear", "failure", 1);
        self.node.rpc("bdev_error_resume_pending", json!({"name": "EE_Disk0"}));
    }

    /// The process after its death, without a group.
    fn restart(&mut self) {
        self.node.kill();
        self.node = Machine::boot(self.name, self.core, &self.namespace);
        self.equip();
    }

    fn create_group(&self, extra: Value) {
        let mut params = json!({"name": GROUP, "volumes": [{"name": "v0", "bdev": "EE_Disk0"}],
                                "metadata": self.path("meta"), "peer_timeout_ms": 1000});
        for (name, value) in extra.as_object().expect("members") {
            params[name] = value.clone();
        }
        self.node.rpc("replication_group_create", params);
        // Both nodes show one subsystem, so their controllers have different numbers.
        let first = if self.name == "first" { 1 } else { 0x100 };
        export(&self.node, &self.address, PORT, VOLUME_NQN, "v0", first, false);
    }

    fn become_primary(&self, peer: &str) {
        let peer = json!({"transport": "tcp", "address": peer, "port": LINK_PORT});
        self.create_group(
            json!({"role": "primary", "peer": peer, "ack": "applied", "checkpoint_interval_ms": 0}),
        );
    }

    fn become_secondary(&self) {
        let listen = json!({"transport": "tcp", "address": self.on_the_cable, "port": LINK_PORT});
        self.create_group(json!({"role": "secondary", "listen": listen, "buffer_limit_mb": 64}));
        export(&self.node, &self.address, PORT, VIEW_NQN, "v0", 1, true);
    }

    /// Lets go of the group, not of its disk and record.
    fn leave(&self, nqns: &[&str]) {
        for nqn in nqns {
            self.node.rpc("nvmf_delete_subsystem", json!({"nqn": nqn}));
        }
        self.node.rpc("replication_group_delete", json!({"group": GROUP}));
    }

    fn volume(&self) -> Host {
        Host::connect_to(&self.address, PORT, VOLUME_NQN)
    }

    fn view(&self) -> Host {
        Host::connect_to(&self.address, PORT, VIEW_NQN)
    }
}

/// What happens to the pair.
#[derive(Clone, Copy, Debug)]
enum Fault {
    LinkCut,
    /// … again, in the middle of the copy that follows.
    CopyCut,
    /// … and the copy's source is gone for good.
    CopyCutAndReplaced,
    SecondarysDiskHangs,
    SecondarysDiskFails,
    SecondaryStopped,
    SecondaryKilled,
    PrimaryStopped,
    /// … and started again as the primary.
    PrimaryKilled,
    BothKilled,
    /// The secondary takes over.
    PrimaryReplaced(Keep),
    /// The same after the primary went on alone for a while.
    PrimaryCutOffAndReplaced(Keep),
    /// It comes back when somebody else has its role.
    PrimaryAsleepAndReplaced,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Keep {
    Latest,
    Checkpoint,
    Overlay,
}

impl Keep {
    fn word(self) -> &'static str {
        match self {
            Keep::Latest => "latest",
            Keep::Checkpoint => "checkpoint",
            Keep::Overlay => "overlay",
        }
    }

    fn choose(random: &mut Random) -> Keep {
        [Keep::Latest, Keep::Checkpoint, Keep::Overlay][random.below(3) as usize]
    }
}

impl Fault {
    fn choose(random: &mut Random) -> Fault {
        let keep = Keep::choose(random);
        let all = [
            Fault::LinkCut,
            Fault::CopyCut,
            Fault::CopyCutAndReplaced,
            Fault::SecondarysDiskHangs,
            Fault::SecondarysDiskFails,
            Fault::SecondaryStopped,
            Fault::SecondaryKilled,
            Fault::PrimaryStopped,
            Fault::PrimaryKilled,
            Fault::BothKilled,
            Fault::PrimaryReplaced(keep),
            Fault::PrimaryCutOffAndReplaced(keep),
            Fault::PrimaryAsleepAndReplaced,
        ];
        all[random.below(all.len() as u64) as usize]
    }
}

struct Rig {
    cable: Cable,
    primary: Machine,
    secondary: Machine,
    /// What no round touches.
    rest: Vec<u8>,
    random: Random,
}

/// One round's load and what is known of its last checkpoint.
struct Round {
    writers: Vec<Writer>,
    /// Acknowledged before the checkpoint was asked for, and issued when it was committed.
    cut: (Vec<usize>, Vec<usize>),
    /// What the secondary's VM wrote since.
    own: Vec<u8>,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let (primary, secondary) =
            (Machine::new("first", "0", Cable::FIRST), Machine::new("second", "1", Cable::SECOND));
        let cable = Cable::plug(&primary.namespace, &secondary.namespace);
        let rest = noise(seed, ((SIZE_MIB as usize) << 20) - REST_AT);
        let rig = Rig { cable, primary, secondary, rest, random: Random(seed | 1) };
        rig.secondary.become_secondary();
        rig.primary.become_primary(rig.secondary.on_the_cable);
        rig.replicate("full");
        rig.primary.volume().write(REST_AT as u64, &rig.rest);
        rig
    }

    fn replicate(&self, sync: &str) {
        self.primary.node.rpc("replication_start", json!({"group": GROUP, "sync": sync}));
        self.wait_until_in_step();
    }

    fn wait_until_in_step(&self) {
        wait_for_state(&self.primary.node, "running");
        wait_for_state(&self.secondary.node, "running");
    }

    fn set(&self, machine: &Machine, option: Value) {
        let mut params = option;
        params["group"] = json!(GROUP);
        machine.node.rpc("replication_set_options", params);
    }

    /// Commits a checkpoint: again, if an earlier fault is noticed only now.
    fn checkpoint(&self) {
        let params = json!({"group": GROUP, "timeout_ms": 20000});
        wait_until("a checkpoint is committed", PATIENCE, || {
            self.wait_until_in_step();
            self.primary.node.try_rpc("replication_do_checkpoint", params.clone()).is_ok()
        });
    }

    /// Load on a pair in step, and a checkpoint in the middle of it.
    fn begin(&mut self) -> Round {
        let mut volume = self.primary.volume();
        volume.write_zeroes(0, REST_AT).expect("an answer");
        self.checkpoint();
        let each = WRITTEN_BLOCKS / 4;
        let writers: Vec<Writer> =
            (0..4).map(|i| Writer::start(self.primary.volume(), i * each, each)).collect();
        wait_for_progress(&writers, 1 + self.random.below(40) as usize);
        let earliest = stamps::progress(&writers).acknowledged;
        self.checkpoint();
        let latest = stamps::progress(&writers).issued;
        let own = noise(self.random.next(), self.random.below(20) as usize * BLOCK);
        if !own.is_empty() {
            self.secondary.view().write(VIEW_AT as u64, &own);
        }
        wait_for_progress(&writers, 1 + self.random.below(40) as usize);
        Round { writers, cut: (earliest, latest), own }
    }

    /// The volume has this round's writes from `earliest` to `latest`, and what no round touches.
    fn judge(&self, image: &[u8], round: &Round, earliest: &[usize], latest: &[usize]) {
        stamps::assert_one_point_in_time(&round.writers, image, earliest, latest);
        assert_same(&image[REST_AT..], &self.rest, "what nobody wrote to");
    }

    /// The load goes on to its end, the pair comes in step by itself, and nothing is missing on either node.
    fn end_in_step(&self, mut round: Round) {
        self.wait_until_in_step();
        wait_for_progress(&round.writers, 5);
        stop(&mut round.writers);
        let Progress { acknowledged, issued } = stamps::progress(&round.writers);
        let image = self.primary.volume().read_all();
        self.judge(&image, &round, &acknowledged, &issued);
        self.compare(&image);
    }

    /// The primary is back, alone: everything that was acknowledged is there.
    fn end_restarted(&mut self, mut round: Round) {
        wait_for_end(&mut round.writers);
        let Progress { acknowledged, issued } = stamps::progress(&round.writers);
        self.primary.become_primary(self.secondary.on_the_cable);
        self.replicate("full");
        let image = self.primary.volume().read_all();
        self.judge(&image, &round, &acknowledged, &issued);
        self.compare(&image);
    }

    /// Both nodes have the same, as the secondary's VM sees it after a checkpoint.
    fn compare(&self, image: &[u8]) {
        self.checkpoint();
        assert_same(image, &self.secondary.view().read_all(), "the view after the checkpoint");
    }

    /// The secondary takes over; its content is what `keep` promises. Then the nodes change their roles.
    fn end_replaced(&mut self, mut round: Round, keep: Keep, known: Progress) {
        let params = json!({"group": GROUP, "keep": keep.word()});
        self.secondary.node.rpc("replication_failover", params);
        let first = self.secondary.volume().read_all();
        wait_for_end(&mut round.writers);
        let latest = stamps::progress(&round.writers).issued;
        match keep {
            Keep::Latest => self.judge(&first, &round, &known.acknowledged, &latest),
            _ => self.judge(&first, &round, &round.cut.0, &round.cut.1),
        }
        let own = &first[VIEW_AT..VIEW_AT + round.own.len()];
        if keep == Keep::Overlay {
            assert_same(own, &round.own, "what the secondary's VM wrote");
        } else {
            assert!(own.iter().all(|byte| *byte == 0), "what the secondary's VM wrote is there");
        }
        wait_for_state(&self.secondary.node, "standalone");
        let drained = self.secondary.volume().read_all();
        assert_same(&first, &drained, "the volume once the buffer is on the disk");
        self.exchange();
        self.replicate("full");
        assert_same(&drained, &self.primary.volume().read_all(), "the volume of the new primary");
        self.compare(&drained);
    }

    /// The survivor goes on as the primary, and the other node begins anew as its secondary.
    fn exchange(&mut self) {
        self.primary.restart();
        fs::remove_file(self.primary.path("meta")).expect("the record of the old primary");
        self.secondary.leave(&[VOLUME_NQN, VIEW_NQN]);
        std::mem::swap(&mut self.primary, &mut self.secondary);
        self.secondary.become_secondary();
        self.primary.become_primary(self.secondary.on_the_cable);
    }

    fn suffer(&mut self, fault: Fault) {
        let round = self.begin();
        let known = || stamps::progress(&round.writers);
        match fault {
            Fault::LinkCut => {
                self.cable.cut();
                self.random.pause(2500);
                self.cable.mend();
                self.end_in_step(round);
            }
            Fault::CopyCut => {
                self.cut_in_the_middle_of_a_copy(&round);
                self.cable.mend();
                self.set(&self.primary, json!({"resync_rate_mb": 0}));
                self.end_in_step(round);
            }
            Fault::CopyCutAndReplaced => {
                self.cut_in_the_middle_of_a_copy(&round);
                self.primary.node.kill();
                self.cable.mend();
                // Its disk is a part of two states: what it can promise is the last checkpoint, and its own view.
                let keep = [Keep::Checkpoint, Keep::Overlay][self.random.below(2) as usize];
                let known = known();
                self.end_replaced(round, keep, known);
            }
            Fault::SecondarysDiskHangs => {
                self.secondary.spoil("write", "pending", 1 + self.random.below(4));
                self.random.pause(2500);
                self.checkpoint();
                self.secondary.heal();
                self.end_in_step(round);
            }
            Fault::SecondarysDiskFails => {
                self.secondary.spoil("write", "failure", 1);
                wait_for_state(&self.primary.node, "resync required");
                self.secondary.heal();
                self.resume();
                self.end_in_step(round);
            }
            Fault::SecondaryStopped => {
                self.secondary.node.signal("STOP");
                self.random.pause(2500);
                self.secondary.node.signal("CONT");
                self.end_in_step(round);
            }
            Fault::SecondaryKilled => {
                self.secondary.node.kill();
                self.random.pause(1500);
                self.secondary.restart();
                self.secondary.become_secondary();
                self.resume();
                self.end_in_step(round);
            }
            Fault::PrimaryStopped => {
                self.primary.node.signal("STOP");
                self.random.pause(2500);
                self.primary.node.signal("CONT");
                self.end_in_step(round);
            }
            Fault::PrimaryKilled => {
                self.primary.node.kill();
                self.random.pause(1500);
                self.primary.restart();
                self.end_restarted(round);
            }
            Fault::BothKilled => {
                self.primary.node.kill();
                self.random.pause(50);
                self.secondary.restart();
                self.secondary.become_secondary();
                self.primary.restart();
                self.end_restarted(round);
            }
            Fault::PrimaryReplaced(keep) => {
                self.primary.node.kill();
                let known = known();
                self.random.pause(1500);
                self.end_replaced(round, keep, known);
            }
            Fault::PrimaryCutOffAndReplaced(keep) => {
                // What it acknowledges alone is lost with it.
                let known = known();
                self.cable.cut();
                self.random.pause(2500);
                self.primary.node.kill();
                self.cable.mend();
                self.end_replaced(round, keep, known);
            }
            Fault::PrimaryAsleepAndReplaced => {
                self.set(&self.primary, json!({"on_link_loss": "block"}));
                self.primary.node.signal("STOP");
                let asleep = known();
                self.random.pause(1500);
                self.secondary.node.rpc("replication_failover", json!({"group": GROUP, "keep": "latest"}));
                self.primary.node.signal("CONT");
                wait_for_state(&self.primary.node, "fenced");
                self.end_fenced(round, asleep);
            }
        }
    }

    /// The link is lost, then found again, and lost when a part of what was written is copied.
    fn cut_in_the_middle_of_a_copy(&mut self, round: &Round) {
        self.set(&self.primary, json!({"resync_rate_mb": 1}));
        self.cable.cut();
        wait_for_state(&self.primary.node, "resync required");
        wait_for_progress(&round.writers, 20);
        self.cable.mend();
        wait_for_state(&self.primary.node, "syncing");
        self.random.pause(800);
        self.cable.cut();
    }

    /// After a restart of the secondary the primary is told what to do, if it does not do it by itself.
    fn resume(&self) {
        let state = || group(&self.primary.node)["state"].clone();
        let needs_full = || {
            let error = group(&self.primary.node)["error"].clone();
            error.as_str().is_some_and(|error| error.contains("start with sync `full`"))
        };
        wait_until("the primary has found its peer", PATIENCE, || state() == "running" || needs_full());
        if needs_full() {
            self.primary.node.rpc("replication_start", json!({"group": GROUP, "sync": "full"}));
        }
    }

    /// The old primary is awake: what it acknowledged, then or before, the new one has.
    fn end_fenced(&mut self, mut round: Round, asleep: Progress) {
        wait_for_end(&mut round.writers);
        let Progress { acknowledged, issued } = stamps::progress(&round.writers);
        assert!(
            acknowledged.iter().zip(&asleep.issued).all(|(now, then)| now <= then),
            "it goes on: {acknowledged:?}"
        );
        wait_for_state(&self.secondary.node, "standalone");
        let image = self.secondary.volume().read_all();
        self.judge(&image, &round, &acknowledged, &issued);
        self.exchange();
        self.replicate("full");
        self.compare(&image);
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{value}`")))
}

#[test]
fn a_pair_survives_faults_at_random() {
    let seed = from_environment("LOCKSTEP_FAULT_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let count = from_environment("LOCKSTEP_FAULTS").unwrap_or(24);
    println!("LOCKSTEP_FAULT_SEED={seed} LOCKSTEP_FAULTS={count}");
    let mut rig = Rig::new(seed);
    for round in 1..=count {
        let fault = Fault::choose(&mut rig.random);
        println!("{round}: {fault:?}");
        rig.suffer(fault);
    }
    println!("{count} faults");
}
