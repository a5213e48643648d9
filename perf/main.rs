//! `lockstep-perf`: load generator, comparisons, plots.
//!
//! It measures from outside what a user of the target would see, with the project's own NVMe/TCP host and block layer:
//! `bdev` loads a device in this process, `nvme` loads targets, `compare` runs two targets by turns, `checkpoint` and
//! `failover` time the replication calls under load, `idle` watches a process that has nothing to do.

mod backend;
mod checkpoint;
mod compare;
mod cpu;
mod failover;
mod generator;
mod idle;
mod load;
mod options;
mod plot;
mod process;
mod report;
mod runner;
mod verify;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Anything that ends a measurement, in words for the person who started it.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(
    name = "lockstep-perf",
    version,
    about = "Measures block devices, NVMe/TCP targets and replication"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads a block device of this process: null:SIZE, ram:SIZE, uring:FILE, or nvme:ADDRESS:PORT/NQN[/NSID]
    /// through the block layer
    Bdev(load::BdevArgs),
    /// Loads one or several NVMe/TCP targets, each given as ADDRESS:PORT/NQN[/NSID]
    Nvme(load::NvmeArgs),
    /// Starts two targets by turns and loads each of them the same way; prints medians and ratios
    Compare(compare::CompareArgs),
    /// Checkpoints a group at an interval under load: commit latency, and how long writers stall
    Checkpoint(checkpoint::CheckpointArgs),
    /// Fails a group over: time until writable, and the longest stall of a write afterwards
    Failover(failover::FailoverArgs),
    /// Measures the CPU share of processes that have nothing to do
    Idle(idle::IdleArgs),
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let outcome = match Arguments::parse().command {
        Command::Bdev(args) => load::bdev(&args),
        Command::Nvme(args) => load::nvme(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Checkpoint(args) => checkpoint::run(&args),
        Command::Failover(args) => failover::run(&args),
        Command::Idle(args) => idle::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep-perf: {error}");
            ExitCode::FAILURE
        }
    }
}
