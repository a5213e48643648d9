//! A primary and a secondary that keep one volume, `v0`, or several in step: two processes on loopback, or in networks
//! of their own with a cable between them.

use super::netns::{Cable, Namespace};
use super::node::{Node, free_port};
use super::nvme::Host;
use super::wait_until;
use serde_json::{Value, json};
use std::time::Duration;

/// The volume, by one name on both nodes.
pub const VOLUME_NQN: &str = "nqn.2026-01.io.lockstep.test:volume";
/// The secondary VM's own view, on the secondary alone.
pub const VIEW_NQN: &str = "nqn.2026-01.io.lockstep.test:view";
/// The disks below the volume, while no group has them.
pub const DISK_NQN: &str = "nqn.2026-01.io.lockstep.test:disk";
pub const GROUP: &str = "g0";
pub const VOLUME: &str = "v0";
pub const DISK: &str = "Disk0";
const IN_STEP_LIMIT: Duration = Duration::from_secs(60);

pub struct Pair {
    pub primary: Node,
    pub secondary: Node,
    pub primary_port: u16,
    pub secondary_port: u16,
    pub link_port: u16,
    primary_address: String,
    secondary_address: String,
    link_address: String,
    disks: Vec<Disk>,
    network: Option<Network>,
}

/// A disk of both nodes, below one volume.
#[derive(Clone, Copy)]
pub struct Disk {
    pub mib: u64,
    pub block_size: u32,
}

/// What the two nodes are made of.
#[derive(Clone)]
pub struct Shape {
    pub primary_cores: &'static str,
    pub secondary_cores: &'static str,
    pub disks: Vec<Disk>,
    /// Memory of each node, beside what its disks take.
    pub memory_mib: u32,
    /// A network for each node, and a cable between them that can be cut.
    pub cable: bool,
}

impl Shape {
    /// One disk of `size_mib`, one reactor each, on loopback.
    pub fn simple(size_mib: u64) -> Shape {
        Shape {
            primary_cores: "0",
            secondary_cores: "1",
            disks: vec![Disk { mib: size_mib, block_size: 4096 }],
            memory_mib: 256 + 2 * size_mib as u32,
            cable: false,
        }
    }
}

/// The name of a volume, of the disk below it, and of what exports it and its view, by the volume's number.
pub fn volume_name(number: usize) -> String {
    format!("v{number}")
}

pub fn disk_name(number: usize) -> String {
    format!("Disk{number}")
}

fn numbered(nqn: &str, number: usize) -> String {
    if number == 0 { nqn.to_owned() } else { format!("{nqn}{number}") }
}

/// A namespace for each node, and the only way between them. (The fields drop in this order.)
struct Network {
    cable: Cable,
    _primary: Namespace,
    _secondary: Namespace,
}

/// Exports `bdev` as the only namespace of `nqn`.
pub fn export(
    node: &Node,
    address: &str,
    port: u16,
    nqn: &str,
    bdev: &str,
    first_cntlid: u16,
    secondary_view: bool,
) {
    node.rpc(
        "nvmf_create_subsystem",
        json!({"nqn": nqn, "allow_any_host": true, "serial_number": "LOCKSTEPTEST", "min_cntlid": first_cntlid,
               "max_cntlid": first_cntlid + 0xff, "ana_reporting": !secondary_view}),
    );
    let mut namespace = json!({"nsid": 1, "bdev_name": bdev});
    if secondary_view {
        namespace["secondary_view"] = json!(true);
    }
    node.rpc("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": namespace}));
    node.rpc(
        "nvmf_subsystem_add_listener",
        json!({"nqn": nqn, "listen_address":
               {"trtype": "TCP", "adrfam": "IPv4", "traddr": address, "trsvcid": port.to_string()}}),
    );
}

impl Pair {
    /// Two nodes with a RAM disk of `size_mib` each, no group yet.
    pub fn nodes(size_mib: u64) -> Pair {
        Pair::of(Shape::simple(size_mib))
    }

    /// As [`Pair::nodes`], each in a network of its own; only a cable that can be cut leads from one to the other.
    pub fn nodes_with_a_cable(size_mib: u64) -> Pair {
        Pair::of(Shape { cable: true, ..Shape::simple(size_mib) })
    }

    /// Two nodes with the disks of `shape`, no group yet.
    pub fn of(shape: Shape) -> Pair {
        let disks_mib: u64 = shape.disks.iter().map(|disk| disk.mib).sum();
        let start = |name, cores, namespace: Option<&Namespace>| {
            let builder = Node::builder(name).cores(cores).memory_mib(shape.memory_mib + disks_mib as u32);
            match namespace {
                Some(namespace) => builder.namespace(namespace).start(),
                None => builder.start(),
            }
        };
        let (primary_cores, secondary_cores) = (shape.primary_cores, shape.secondary_cores);
        let pair = if shape.cable {
            let (primary, secondary) = (Namespace::new(), Namespace::new());
            Pair {
                secondary: start("secondary", secondary_cores, Some(&secondary)),
                primary: start("primary", primary_cores, Some(&primary)),
                primary_port: 4420,
                secondary_port: 4420,
                link_port: 4500,
                primary_address: primary.reach(),
                secondary_address: secondary.reach(),
                link_address: Cable::SECOND.to_owned(),
                disks: shape.disks,
                network: Some(Network {
                    cable: Cable::plug(&primary, &secondary),
                    _primary: primary,
                    _secondary: secondary,
                }),
            }
        } else {
            let loopback = || "127.0.0.1".to_owned();
            Pair {
                secondary: start("secondary", secondary_cores, None),
                primary: start("primary", primary_cores, None),
                primary_port: free_port(),
                secondary_port: free_port(),
                link_port: free_port(),
                primary_address: loopback(),
                secondary_address: loopback(),
                link_address: loopback(),
                disks: shape.disks,
                network: None,
            }
        };
        for node in [&pair.primary, &pair.secondary] {
            pair.equip(node);
        }
        pair
    }

    /// Gives a node its disks and its transport.
    fn equip(&self, node: &Node) {
        for (number, disk) in self.disks.iter().enumerate() {
            let num_blocks = (disk.mib << 20) / u64::from(disk.block_size);
            node.rpc(
                "bdev_malloc_create",
                json!({"name": disk_name(number), "num_blocks": num_blocks, "block_size": disk.block_size}),
            );
        }
        node.rpc("nvmf_create_transport", json!({"trtype": "TCP"}));
    }

    /// The cable of a pair made by [`Pair::nodes_with_a_cable`].
    pub fn cable(&self) -> &Cable {
        &self.network.as_ref().expect("a pair in networks of its own").cable
    }

    /// As [`Pair::nodes`], with the group, the exports, and both in step.
    pub fn start(size_mib: u64) -> Pair {
        let pair = Pair::nodes(size_mib);
        pair.create_groups(json!({}), json!({}));
        pair.export_volume();
        pair.replicate("full");
        pair
    }

    /// Fills the disk of both nodes with `byte`, before a group has them.
    pub fn format(&self, byte: u8) {
        for (node, address, port) in [
            (&self.primary, &self.primary_address, self.primary_port),
            (&self.secondary, &self.secondary_address, self.secondary_port),
        ] {
            export(node, address, port, DISK_NQN, DISK, 1, false);
            let mut host = Host::connect_to(address, port, DISK_NQN);
            let size = host.blocks as usize * host.block_size;
            host.write(0, &vec![byte; size]);
            drop(host);
            node.rpc("nvmf_delete_subsystem", json!({"nqn": DISK_NQN}));
        }
    }

    /// Creates the group on both nodes; the members of `primary` and `secondary` override its defaults.
    pub fn create_groups(&self, primary: Value, secondary: Value) {
        self.create_secondary(secondary);
        self.create_primary(primary);
    }

    fn link(&self) -> Value {
        json!({"transport": "tcp", "address": self.link_address, "port": self.link_port})
    }

    fn create_group(&self, node: &Node, mut params: Value, extra: Value) {
        let volume = |number| json!({"name": volume_name(number), "bdev": disk_name(number)});
        params["name"] = json!(GROUP);
        params["volumes"] = (0..self.disks.len()).map(volume).collect();
        params["metadata"] = json!(node.dir().join("group.meta"));
        if let (Some(params), Value::Object(extra)) = (params.as_object_mut(), extra) {
            params.extend(extra);
        }
        node.rpc("replication_group_create", params);
    }

    pub fn create_secondary(&self, extra: Value) {
        let params = json!({"role": "secondary", "listen": self.link(), "disk_buffer": true, "buffer_limit_mb": 256,
                            "granule_kb": 4});
        self.create_group(&self.secondary, params, extra);
    }

    pub fn create_primary(&self, extra: Value) {
        let params = json!({"role": "primary", "peer": self.link(), "ack": "applied", "checkpoint_timeout_ms": 5000,
                            "checkpoint_interval_ms": 0});
        self.create_group(&self.primary, params, extra);
    }

    /// The volumes on both nodes under one name, and the secondary VM's views under another.
    pub fn export_volume(&self) {
        let (primary, secondary) = (&self.primary_address, &self.secondary_address);
        for number in 0..self.disks.len() {
            let (name, nqn) = (volume_name(number), numbered(VOLUME_NQN, number));
            export(&self.primary, primary, self.primary_port, &nqn, &name, 1, false);
            export(&self.secondary, secondary, self.secondary_port, &nqn, &name, 0x100, false);
            let view = numbered(VIEW_NQN, number);
            export(&self.secondary, secondary, self.secondary_port, &view, &name, 1, true);
        }
    }

    /// Starts replication and waits until both say that they are in step.
    pub fn replicate(&self, sync: &str) {
        self.secondary.rpc("replication_start", json!({"group": GROUP, "sync": sync}));
        self.primary.rpc("replication_start", json!({"group": GROUP, "sync": sync}));
        self.wait_until_in_step();
    }

    /// Waits until both say that they are in step.
    pub fn wait_until_in_step(&self) {
        wait_until("both nodes are in step", IN_STEP_LIMIT, || {
            group(&self.primary)["state"] == "running" && group(&self.secondary)["state"] == "running"
        });
    }

    /// The volume through the primary.
    pub fn volume(&self) -> Host {
        self.volume_of(0)
    }

    /// The secondary VM's view.
    pub fn view(&self) -> Host {
        self.view_of(0)
    }

    /// The volume through the secondary, after its promotion.
    pub fn survivor(&self) -> Host {
        self.survivor_of(0)
    }

    pub fn volume_of(&self, number: usize) -> Host {
        Host::connect_to(&self.primary_address, self.primary_port, &numbered(VOLUME_NQN, number))
    }

    pub fn view_of(&self, number: usize) -> Host {
        Host::connect_to(&self.secondary_address, self.secondary_port, &numbered(VIEW_NQN, number))
    }

    pub fn survivor_of(&self, number: usize) -> Host {
        Host::connect_to(&self.secondary_address, self.secondary_port, &numbered(VOLUME_NQN, number))
    }

    pub fn checkpoint(&self) -> Value {
        self.primary.rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 5000}))
    }

    pub fn failover(&self, keep: &str) -> Value {
        self.secondary.rpc("replication_failover", json!({"group": GROUP, "keep": keep}))
    }
}

/// The group as `node` sees it.
pub fn group(node: &Node) -> Value {
    node.rpc("replication_get_groups", json!({"name": GROUP}))[0].clone()
}
