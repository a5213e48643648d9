//! `lockstep quickstart`: a pair on loopback with RAM disks, on a machine with nothing prepared.
//!
//! Part of the program, not of the library: it uses the nodes as any user would, by starting processes, calling
//! JSON-RPC and attaching volumes over NVMe/TCP.

mod history;
mod load;
mod once;
mod pair;
mod stamp;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep::bdev::{Bdev, BdevError, Registry, nvme};
use lockstep::env::CoreList;
use lockstep::reactor::{Config, IdleMode, ReactorSet};

use pair::{Pair, VIEW_NQN, VOLUME_NQN};

/// Size of the RAM disks unless told otherwise: small enough for any machine, large enough for a file system.
pub const DEFAULT_SIZE_MIB: u64 = 64;
/// Memory of the load's and verification's buffers.
const BUFFER_BYTES: usize = 64 << 20;
/// How often the live view is drawn anew.
const REFRESH: Duration = Duration::from_secs(1);

/// Runs the quickstart; `Err` is what the user reads.
pub fn run(once: bool, size_mib: u64) -> Result<(), String> {
    // Before anything starts: a signal that arrives now must not leave nodes behind.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone()).map_err(|e| format!("signals: {e}"))?;
    }
    let directory = Directory::new()?;
    if once { run_once(&directory, size_mib) } else { run_live(&directory, size_mib, &interrupted) }
}

fn run_once(directory: &Directory, size_mib: u64) -> Result<(), String> {
    let cores = CoreList::available().first(1);
    let config = Config { cores, idle: IdleMode::Adaptive, memory_bytes: BUFFER_BYTES };
    let reactors = ReactorSet::start(&config).map_err(|e| e.to_string())?;
    let registry = Registry::new();
    let nvme =
        nvme::NvmeHost::new(registry.clone(), reactors.clone()).map_err(|e| format!("NVMe host: {e}"))?;
    let host = Host { registry, nvme, reactors };
    let outcome = once::run(&host, &directory.0, size_mib);
    host.nvme.stop();
    outcome
}

fn run_live(directory: &Directory, size_mib: u64, interrupted: &AtomicBool) -> Result<(), String> {
    let mut pair = Pair::start(&directory.0, size_mib)?;
    let (p, s) = (pair.primary.port, pair.secondary.port);
    let (ps, ss) = (pair.primary.socket.display().to_string(), pair.secondary.socket.display().to_string());
    println!("A pair of nodes keeps a volume of {size_mib} MiB in step (RAM disks: gone when this ends).\n");
    println!("Attach it, with both paths (Linux, as root, native NVMe multipath):");
    println!("  modprobe nvme-tcp");
    println!("  nvme connect -t tcp -a 127.0.0.1 -s {p} -n {VOLUME_NQN}");
    println!("  nvme connect -t tcp -a 127.0.0.1 -s {s} -n {VOLUME_NQN}");
    println!("The secondary VM's own view:");
    println!("  nvme connect -t tcp -a 127.0.0.1 -s {s} -n {VIEW_NQN}");
    println!("Checkpoint:");
    println!("  lockstep rpc --socket {ps} replication_do_checkpoint '{{\"group\":\"g0\"}}'");
    println!("Lose the primary, and go on with the secondary:");
    println!("  kill -9 {}", pair.primary.pid());
    println!("  lockstep rpc --socket {ss} replication_failover '{{\"group\":\"g0\",\"keep\":\"latest\"}}'");
    println!("\nCtrl-C ends both nodes.\n");
    while !interrupted.load(Ordering::Relaxed) {
        let line = |node: &pair::Node| match node.group() {
            Ok(g) => format!(
                "{} {}, epoch {}, lag {} bytes, buffer {} bytes",
                node.name,
                g["state"].as_str().unwrap_or("?"),
                g["epoch"],
                g["lag_bytes"],
                g["buffer"]["undo_bytes"].as_u64().unwrap_or(0)
                    + g["buffer"]["overlay_bytes"].as_u64().unwrap_or(0),
            ),
            Err(_) => format!("{} is gone", node.name),
        };
        println!("{} | {}", line(&pair.primary), line(&pair.secondary));
        let end = std::time::Instant::now() + REFRESH;
        while std::time::Instant::now() < end && !interrupted.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    println!("ending both nodes");
    // A node that the user killed on purpose does not end in order, and that is not a failure.
    for node in [&mut pair.primary, &mut pair.secondary] {
        if let Err(error) = node.end() {
            println!("note: {error}");
        }
    }
    Ok(())
}

/// This process as an initiator.
struct Host {
    registry: Arc<Registry>,
    nvme: nvme::NvmeHost,
    reactors: Arc<ReactorSet>,
}

/// The first namespace of a subsystem, as a bdev of this process.
struct Attached {
    name: String,
    bdev: Arc<Bdev>,
}

impl Host {
    fn attach(&self, name: &str, nqn: &str, port: u16) -> Result<Attached, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut options = nvme::ControllerOptions::new(name, address, nqn);
        // A node that is killed is gone: what is in flight is to end.
        options.loss_timeout = Some(Duration::ZERO);
        let names = self.nvme.attach(options).map_err(|e| format!("cannot attach {nqn}: {e}"))?;
        let first = names.first().ok_or_else(|| format!("{nqn} has no namespace"))?;
        let bdev = self.registry.get(first).map_err(|e| e.to_string())?;
        Ok(Attached { name: name.to_string(), bdev })
    }

    fn detach(&self, attached: Attached) -> Result<(), String> {
        match self.nvme.detach(&attached.name) {
            // Given up already, because its node was killed.
            Ok(()) | Err(BdevError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A directory of this run, removed at its end.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new() -> Result<Directory, String> {
        let path = std::env::temp_dir().join(format!("lockstep-quickstart-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
