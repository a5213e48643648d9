//! Two real nodes on loopback: processes of this very program, set up method by method as an operator would.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockstep::control::client::Client;
use serde_json::{Value, json};

/// The volume's subsystem: one name, served by both nodes.
pub const VOLUME_NQN: &str = "nqn.2026-01.io.lockstep:quickstart";
/// The secondary VM's own view, on the secondary alone.
pub const VIEW_NQN: &str = "nqn.2026-01.io.lockstep:quickstart-view";
pub const GROUP: &str = "g0";
pub const VOLUME: &str = "v0";
const BLOCK_SIZE: u64 = 4096;
/// How long a node may take to answer after its start.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long a full synchronisation may take.
const SYNC_DEADLINE: Duration = Duration::from_secs(120);
/// How long a node may take to end in order.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// One node's process.
pub struct Node {
    pub name: &'static str,
    pub socket: PathBuf,
    pub port: u16,
    pub log: PathBuf,
    child: Child,
}

impl Node {
    fn start(directory: &Path, name: &'static str, cores: &str, memory_mib: u64) -> Result<Node, String> {
        let socket = directory.join(format!("{name}.sock"));
        let log = directory.join(format!("{name}.log"));
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program's file: {e}"))?;
        let out = std::fs::File::create(&log).map_err(|e| format!("cannot make {}: {e}", log.display()))?;
        let child = Command::new(program)
            .args(["serve", "--cores", cores, "--memory", &memory_mib.to_string(), "--rpc-socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(|e| e.to_string())?)
            .stderr(out)
            .spawn()
            .map_err(|e| format!("cannot start the {name} node: {e}"))?;
        let mut node = Node { name, socket, port: free_port()?, log, child };
        let end = Instant::now() + START_DEADLINE;
        while node.call("framework_wait_init", json!({})).is_err() {
            if let Ok(Some(status)) = node.child.try_wait() {
                return Err(format!("the {name} node ended at once ({status}):\n{}", node.log_tail()));
            }
            if Instant::now() > end {
                return Err(format!("the {name} node does not answer:\n{}", node.log_tail()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(node)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Calls a method of the node.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, String> {
        let params = params.as_object().is_some_and(|p| !p.is_empty()).then_some(params);
        Client::connect(&self.socket)
            .and_then(|mut client| client.call(method, params))
            .map_err(|e| format!("{} node, {method}: {e}", self.name))
    }

    /// As a power cut would end it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends the node in order.
    pub fn end(&mut self) -> Result<(), String> {
        let pid = rustix::process::Pid::from_child(&self.child);
        if matches!(self.child.try_wait(), Ok(None)) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .map_err(|e| format!("cannot end the {} node: {e}", self.name))?;
        }
        let end = Instant::now() + END_DEADLINE;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(format!("the {} node ended with {status}:\n{}", self.name, self.log_tail()));
                }
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
                _ => return Err(format!("the {} node does not end", self.name)),
            }
        }
    }

    /// The end of the node's log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// The group as the node sees it.
    pub fn group(&self) -> Result<Value, String> {
        let groups = self.call("replication_get_groups", json!({"name": GROUP}))?;
        groups.get(0).cloned().ok_or_else(|| format!("the {} node has no group", self.name))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on at the moment.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| format!("no free port: {e}"))?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}

/// A primary and a secondary, in step.
pub struct Pair {
    pub primary: Node,
    pub secondary: Node,
}

impl Pair {
    /// Starts both, with RAM disks of `size_mib`, and brings them in step.
    pub fn start(directory: &Path, size_mib: u64) -> Result<Pair, String> {
        let cores = lockstep::env::CoreList::available();
        let core = |n: usize| cores.cores()[n % cores.cores().len()].to_string();
        // Data buffers for queues and link, and room for a disk buffer as large as the disk.
        let secondary = Node::start(directory, "secondary", &core(1), 256 + 3 * size_mib)?;
        let primary = Node::start(directory, "primary", &core(0), 256)?;
        let pair = Pair { primary, secondary };
        let link = free_port()?;
        let volumes = json!([{"name": VOLUME, "bdev": "Disk0"}]);
        let address = |port: u16| json!({"transport": "tcp", "address": "127.0.0.1", "port": port});
        for node in [&pair.secondary, &pair.primary] {
            let num_blocks = (size_mib << 20) / BLOCK_SIZE;
            node.call(
                "bdev_malloc_create",
                json!({"name": "Disk0", "num_blocks": num_blocks, "block_size": BLOCK_SIZE}),
            )?;
            node.call("nvmf_create_transport", json!({"trtype": "TCP"}))?;
        }
        pair.secondary.call(
            "replication_group_create",
            json!({"name": GROUP, "role": "secondary", "listen": address(link), "volumes": volumes,
                   "metadata": directory.join("secondary.meta"), "disk_buffer": true,
                   "buffer_limit_mb": 2 * size_mib, "granule_kb": 4}),
        )?;
        pair.primary.call(
            "replication_group_create",
            json!({"name": GROUP, "role": "primary", "ack": "applied", "peer": address(link), "volumes": volumes,
                   "metadata": directory.join("primary.meta"), "checkpoint_timeout_ms": 5000}),
        )?;
        pair.secondary.export(VOLUME_NQN, 0x100, false)?;
        pair.secondary.export(VIEW_NQN, 1, true)?;
        pair.primary.export(VOLUME_NQN, 1, false)?;
        pair.secondary.call("replication_start", json!({"group": GROUP, "sync": "full"}))?;
        pair.primary.call("replication_start", json!({"group": GROUP, "sync": "full"}))?;
        pair.wait_in_step()?;
        Ok(pair)
    }

    fn wait_in_step(&self) -> Result<(), String> {
        let end = Instant::now() + SYNC_DEADLINE;
        loop {
            let (p, s) = (self.primary.group()?, self.secondary.group()?);
            if p["state"] == "running" && s["state"] == "running" {
                return Ok(());
            }
            // Nothing brings these back without an operator.
            let given_up = p["state"] == "resync required" || s["state"] == "primary lost";
            if given_up || Instant::now() > end {
                return Err(format!("the pair did not get in step: primary {p:#}, secondary {s:#}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Node {
    fn export(&self, nqn: &str, first_cntlid: u16, secondary_view: bool) -> Result<(), String> {
        self.call(
            "nvmf_create_subsystem",
            json!({"nqn": nqn, "allow_any_host": true, "serial_number": "LOCKSTEP0001", "model_number": "Lockstep",
                   "min_cntlid": first_cntlid, "max_cntlid": first_cntlid + 0xfe, "ana_reporting": !secondary_view}),
        )?;
        self.call(
            "nvmf_subsystem_add_ns",
            json!({"nqn": nqn, "namespace": {"nsid": 1, "bdev_name": VOLUME, "secondary_view": secondary_view}}),
        )?;
        self.call(
            "nvmf_subsystem_add_listener",
            json!({"nqn": nqn, "listen_address":
                   {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": self.port.to_string()}}),
        )?;
        Ok(())
    }
}
