//! A group of 64 volumes whose nodes are killed around its checkpoints, at random instants under load: every volume is at
//! the same cut afterwards, which is the last checkpoint that was told, or the one that was being made.
//!
//! `LOCKSTEP_GROUPS_SEED` repeats a run as far as processes allow.

mod common;

use common::load::*;
use common::node::{Node, free_port};
use common::nvme::Host;
use common::pair::{GROUP, VIEW_NQN, VOLUME_NQN, group};
use common::stamps::{self, BLOCK, Writer};
use common::wait_until;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const VOLUMES: usize = 64;
const VOLUME_BYTES: u64 = 1 << 20;
/// Blocks of each volume that one writer has.
const REGION: u64 = 64;
const WRITERS: u64 = 2;
const ROUNDS: u64 = 8;

struct Rig {
    folder: tempfile::TempDir,
    primary: Node,
    secondary: Node,
    link_port: u16,
    ports: [u16; 2],
    journal: bool,
}

impl Rig {
    /// A pair in step, each node with a file below each volume.
    fn in_step(journal: bool) -> Rig {
        let node = |name: &str, core| Node::builder(name).cores(core).memory_mib(256).start();
        let rig = Rig {
            folder: tempfile::tempdir().expect("a folder"),
            primary: node("primary", "0"),
            secondary: node("secondary", "1"),
            link_port: free_port(),
            ports: [free_port(), free_port()],
            journal,
        };
        for name in ["primary", "secondary"] {
            for number in 0..VOLUMES {
                let file = fs::File::create(rig.disk(name, number)).expect("a disk");
                file.set_len(VOLUME_BYTES).expect("its size");
            }
        }
        rig.equip_secondary();
        rig.equip(&rig.primary, "primary", json!({"peer": rig.link(), "ack": "applied"}));
        rig.primary.rpc("replication_start", json!({"group": GROUP, "sync": "none"}));
        for node in [&rig.primary, &rig.secondary] {
            wait_for_state(node, "running");
        }
        rig
    }

    fn disk(&self, role: &str, number: usize) -> PathBuf {
        self.folder.path().join(format!("{role}-{number}"))
    }

    fn link(&self) -> Value {
        json!({"transport": "tcp", "address": "127.0.0.1", "port": self.link_port})
    }

    fn equip_secondary(&self) {
        let mut extra = json!({"listen": self.link(), "buffer_limit_mb": 128});
        if self.journal {
            extra["buffer_journal"] = json!(self.folder.path().join("journal"));
        }
        self.equip(&self.secondary, "secondary", extra);
    }

    /// The disks, the group, and one subsystem with a namespace for each volume; on the secondary one of views as well.
    fn equip(&self, node: &Node, role: &str, extra: Value) {
        for number in 0..VOLUMES {
            let file = self.disk(role, number);
            let disk = json!({"name": format!("Disk{number}"), "filename": file, "block_size": BLOCK});
            wait_until("the disk's file is free", PATIENCE, || {
                node.try_rpc("bdev_uring_create", disk.clone()).is_ok()
            });
        }
        let volume = |number| json!({"name": format!("v{number}"), "bdev": format!("Disk{number}")});
        let mut params = json!({"name": GROUP, "role": role, "metadata": self.folder.path().join(format!("{role}.meta")),
                                "volumes": (0..VOLUMES).map(volume).collect::<Vec<_>>()});
        params.as_object_mut().expect("members").extend(extra.as_object().expect("members").clone());
        node.rpc("replication_group_create", params);
        node.rpc("nvmf_create_transport", json!({"trtype": "TCP"}));
        let (port, first) = if role == "primary" { (self.ports[0], 1) } else { (self.ports[1], 0x1000) };
        let nqns = if role == "primary" { &[VOLUME_NQN][..] } else { &[VOLUME_NQN, VIEW_NQN] };
        for nqn in nqns {
            let view = *nqn == VIEW_NQN;
            node.rpc(
                "nvmf_create_subsystem",
                json!({"nqn": nqn, "allow_any_host": true, "serial_number": "LOCKSTEPTEST", "min_cntlid": first,
                       "max_cntlid": first + 0xfff, "max_namespaces": VOLUMES, "ana_reporting": !view}),
            );
            for number in 0..VOLUMES {
                let mut namespace = json!({"nsid": number + 1, "bdev_name": format!("v{number}")});
                if view {
                    namespace["secondary_view"] = json!(true);
                }
                node.rpc("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}));
            }
            let address = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string()});
            node.rpc("nvmf_subsystem_add_listener", json!({"nqn": nqn, "listen_address": address}));
        }
    }

    fn host(&self, node: usize, nqn: &str, number: usize) -> Host {
        let mut host = Host::connect(self.ports[node], nqn);
        host.namespace = number as u32 + 1;
        host
    }

    /// Each write goes to the volume after that of the write before, when that was acknowledged.
    fn writers(&self) -> Vec<Writer> {
        let hosts = || (0..VOLUMES).map(|number| (number, self.host(0, VOLUME_NQN, number))).collect();
        (0..WRITERS).map(|number| Writer::across(hosts(), number * REGION, REGION)).collect()
    }

    /// What all volumes of the secondary hold.
    fn images(&self, nqn: &str) -> Vec<Vec<u8>> {
        let mut host = self.host(1, nqn, 0);
        (0..VOLUMES)
            .map(|number| {
                host.namespace = number as u32 + 1;
                host.read_all()
            })
            .collect()
    }

    /// What the disks below the secondary's volumes hold.
    fn disks(&self) -> Vec<Vec<u8>> {
        (0..VOLUMES).map(|number| fs::read(self.disk("secondary", number)).expect("a disk")).collect()
    }

    /// The secondary's process comes back as after a loss of power.
    fn restart_secondary(&mut self) {
        self.secondary.kill();
        self.secondary = Node::builder("secondary").cores("1").memory_mib(256).start();
        self.equip_secondary();
    }
}

/// One checkpoint: its epoch, if it was told, and between what the cut lies.
#[derive(Clone, Debug)]
struct Cut {
    epoch: Option<u64>,
    earliest: Vec<usize>,
    latest: Option<Vec<usize>>,
}

/// Checkpoints one after the other until the primary is gone.
fn checkpoints(rig: &Rig, writers: &Arc<Vec<Writer>>) -> (Arc<Mutex<Vec<Cut>>>, JoinHandle<()>) {
    let cuts: Arc<Mutex<Vec<Cut>>> = Arc::default();
    let (seen, writers, mut rpc) = (cuts.clone(), writers.clone(), rig.primary.connect());
    let thread = std::thread::spawn(move || {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "replication_do_checkpoint",
                             "params": {"group": GROUP, "timeout_ms": 20000}});
        loop {
            let earliest = acknowledged(&writers);
            let cut = Cut { epoch: None, earliest, latest: None };
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(cut);
            let Ok(reply) = rpc.send(request.to_string().as_bytes()).and_then(|()| rpc.receive()) else {
                return;
            };
            let Some(epoch) = reply["result"]["epoch"].as_u64() else { return };
            let latest = stamps::progress(&writers).issued;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let last = seen.last_mut().expect("the one that was begun");
            (last.epoch, last.latest) = (Some(epoch), Some(latest));
        }
    });
    (cuts, thread)
}

/// All volumes are at one cut, and at the right one.
fn judge(writers: &[Writer], images: &[Vec<u8>], cuts: &[Cut], committed: u64) {
    let told = cuts.iter().rev().find(|cut| cut.epoch.is_some()).expect("a checkpoint that was told");
    let (earliest, latest) = match committed {
        epoch if told.epoch == Some(epoch) => (told.earliest.clone(), told.latest.clone()),
        epoch if told.epoch < Some(epoch) => (cuts.last().expect("a cut").earliest.clone(), None),
        epoch => panic!("epoch {epoch} is what is left, and {:?} was told", told.epoch),
    };
    let latest = latest.unwrap_or_else(|| stamps::progress(writers).issued);
    let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    stamps::assert_images_of_one_point_in_time(writers, &images, &earliest, &latest);
}

fn seed() -> u64 {
    let given = std::env::var("LOCKSTEP_GROUPS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("LOCKSTEP_GROUPS_SEED={seed}");
    seed
}

fn kill_around_checkpoints(journal: bool) {
    let mut random = seed();
    let mut untold = 0;
    for round in 0..ROUNDS {
        let mut rig = Rig::in_step(journal);
        let writers = Arc::new(rig.writers());
        wait_for_progress(&writers, 2 * VOLUMES);
        let (cuts, thread) = checkpoints(&rig, &writers);
        let told = || {
            cuts.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|c| c.epoch.is_some()).count()
        };
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let after = 3 + (random >> 16) as usize % 20;
        wait_until("checkpoints were made", PATIENCE, || told() >= after);
        std::thread::sleep(Duration::from_micros(random >> 24 & 0x7fff));
        rig.primary.kill();
        if journal {
            rig.restart_secondary();
        }
        thread.join().expect("the checkpoints ended with their node");
        let mut writers = Arc::into_inner(writers).expect("nobody else has them");
        wait_for_end(&mut writers);
        let cuts = cuts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let committed = group(&rig.secondary)["committed_epoch"].as_u64().expect("an epoch");
        untold += u32::from(cuts.iter().all(|cut| cut.epoch != Some(committed)));
        if journal {
            let seen = group(&rig.secondary);
            assert_eq!(seen["journal"]["rolled_back_to"], committed, "{seen}");
            judge(&writers, &rig.disks(), &cuts, committed);
        } else {
            judge(&writers, &rig.images(VIEW_NQN), &cuts, committed);
        }
        rig.secondary.rpc("replication_failover", json!({"group": GROUP, "keep": "checkpoint"}));
        judge(&writers, &rig.images(VOLUME_NQN), &cuts, committed);
        wait_for_state(&rig.secondary, "standalone");
        judge(&writers, &rig.images(VOLUME_NQN), &cuts, committed);
        println!("round {round}: killed after {} checkpoints, epoch {committed}", cuts.len());
    }
    println!("{untold} of {ROUNDS} rounds ended with a checkpoint that nobody had been told of");
}

#[test]
fn a_primary_killed_around_checkpoints_leaves_64_volumes_at_one_cut() {
    kill_around_checkpoints(false);
}

#[test]
fn two_nodes_killed_around_checkpoints_leave_64_volumes_at_one_cut_with_a_journal() {
    kill_around_checkpoints(true);
}
