//! The command line of a node and of its operator.

mod quickstart;

use clap::builder::TypedValueParser;
use clap::{Parser, Subcommand};
use lockstep::control::client::{Client, DEFAULT_SOCKET};
use lockstep::control::serve::{self, Options};
use lockstep::control::status::NodeStatus;
use lockstep::env::CoreList;
use lockstep::reactor::IdleMode;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Data-buffer memory of a node that is not told otherwise: enough for 256 KiB on each of 4096 commands.
const DEFAULT_MEMORY_MIB: usize = 1024;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT ends it in order.
    Serve {
        /// Configuration file in SPDK's shape; see conf/.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// UNIX socket for JSON-RPC.
        #[arg(long, value_name = "PATH", env = "LOCKSTEP_SOCKET", default_value = DEFAULT_SOCKET)]
        rpc_socket: PathBuf,
        /// Cores, one reactor each, such as `0-3,8` or `0xF` [default: the first core]
        #[arg(long, value_name = "LIST")]
        cores: Option<CoreList>,
        /// What a reactor without work does: `spin`, `adaptive` (spin a little, then sleep) or `interrupt`.
        #[arg(long, value_name = "MODE", default_value = "adaptive")]
        idle: IdleMode,
        /// Limit of the memory for data buffers, MiB; taken as it is needed.
        #[arg(long, value_name = "MiB", default_value_t = DEFAULT_MEMORY_MIB,
              value_parser = clap::value_parser!(u32).range(16..=1 << 24).map(mib))]
        memory: usize,
        /// Read the configuration only when `framework_start_init` is called.
        #[arg(long)]
        wait_for_rpc: bool,
    },
    /// Show running nodes: replication groups, epochs, lag, buffers, devices, errors.
    Status {
        /// UNIX socket of a node; may be given several times.
        #[arg(long, value_name = "PATH", env = "LOCKSTEP_SOCKET", default_value = DEFAULT_SOCKET)]
        socket: Vec<PathBuf>,
        /// Print everything as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a pair of nodes on loopback that keep a RAM disk in step; Ctrl-C ends it.
    Quickstart {
        /// Wait for nobody: load, checkpoints, failovers in each way, verified byte for byte, and a report.
        #[arg(long)]
        once: bool,
        /// Size of the volume, MiB.
        #[arg(long, value_name = "MiB", default_value_t = quickstart::DEFAULT_SIZE_MIB,
              value_parser = clap::value_parser!(u64).range(8..=1 << 14))]
        size: u64,
    },
    /// Call a method of a running node and print its result.
    Rpc {
        /// UNIX socket of the node.
        #[arg(long, value_name = "PATH", env = "LOCKSTEP_SOCKET", default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
        /// Method; `rpc_get_methods` lists them, docs/rpc.md describes them.
        method: String,
        /// Parameters, a JSON object.
        #[arg(value_name = "JSON")]
        params: Option<String>,
    },
}

fn mib(value: u32) -> usize {
    value as usize
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Serve { config, rpc_socket, cores, idle, memory, wait_for_rpc } => {
            let options =
                Options { config, socket: rpc_socket, cores, idle, memory_mib: memory, wait_for_rpc };
            Ok(serve::serve(&options)?)
        }
        Command::Status { socket, json } => status(&socket, json),
        Command::Quickstart { once, size } => Ok(quickstart::run(once, size)?),
        Command::Rpc { socket, method, params } => {
            let params = params
                .map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(|error| format!("the parameters are not JSON: {error}"))?;
            let result = Client::connect(&socket)?.call(&method, params)?;
            lockstep::say!("{result:#}");
            Ok(())
        }
    }
}

fn status(sockets: &[PathBuf], json: bool) -> Result<(), Box<dyn Error>> {
    let nodes: Vec<NodeStatus> = sockets.iter().map(|socket| NodeStatus::ask(socket)).collect();
    if json {
        lockstep::say!("{:#}", nodes.iter().map(NodeStatus::to_json).collect::<serde_json::Value>());
    } else {
        nodes.iter().for_each(|node| lockstep::say!("{}", node.to_text().trim_end()));
    }
    match nodes.iter().filter(|node| !node.is_up()).count() {
        0 => Ok(()),
        down => Err(format!("{down} of {} nodes did not answer", nodes.len()).into()),
    }
}
