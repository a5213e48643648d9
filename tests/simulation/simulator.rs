//! The deterministic simulator of a replicated pair: the production state machines, disk buffer and metadata code on
//! simulated disks, links and clocks. docs/testing.md tells how to use it.
//!
//! A seed draws a *plan* (`generate`, `plan`): hosts, an operator, faults. A *world* carries it out (`world`), in which
//! `stripes`, `home`, `session` and `hosts` do what the product does around its machines, `disk`, `wire` and `node` are
//! what they run on, and `events` is what happens from outside. The `oracle` knows what may be where, `check` compares.

mod check;
mod corpus;
mod disk;
mod events;
mod generate;
mod home;
mod hosts;
mod node;
mod oracle;
mod plan;
mod recorded;
mod rng;
mod run;
mod session;
mod shrink;
mod soak;
mod stripes;
#[cfg(test)]
mod tests;
mod wire;
mod world;

use clap::{Parser, Subcommand};
use lockstep::replication::core::mutation::{self, ALL, Mutation};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the replication of two simulated nodes, with everything that can go wrong.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Makes this mistake of the list in replication/core/mutation.rs.
    #[arg(long, global = true)]
    mutation: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs fresh seeds until the time is over, or one fails.
    Soak {
        #[arg(long, default_value_t = 1)]
        minutes: u64,
        /// The first seed; without it, one of the clock.
        #[arg(long)]
        from: Option<u64>,
        #[arg(long, default_value_t = 1)]
        threads: u64,
    },
    /// Tells the story of one run: of a seed, or of a file that `shrink` wrote.
    Replay { what: String },
    /// Cuts a failing seed down to what it needs, and writes it to a file.
    Shrink {
        seed: u64,
        /// One line on what went wrong.
        #[arg(long)]
        what: String,
        #[arg(long)]
        into: PathBuf,
    },
}

fn mutation_of(name: &str) -> Option<Mutation> {
    ALL.iter().copied().find(|mutation| format!("{mutation:?}") == name)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mutation = match arguments.mutation.as_deref().map(|name| (name, mutation_of(name))) {
        Some((name, None)) => {
            eprintln!("no mutation is named `{name}`; there are {ALL:?}");
            return ExitCode::FAILURE;
        }
        Some((_, mutation)) => mutation,
        None => None,
    };
    mutation::set(mutation);
    let good = match arguments.command {
        Command::Soak { minutes, from, threads } => soak::soak(minutes, from, threads, mutation),
        Command::Replay { what } => corpus::replay(&what),
        Command::Shrink { seed, what, into } => corpus::shrink_into(seed, what, mutation, &into),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
