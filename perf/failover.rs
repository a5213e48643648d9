//! Failovers: time until the volume is writable, by what the buffer holds and by what is kept, and the longest write
//! while the flush goes on.
//!
//! Each round starts a fresh pair by a shell line, fills the buffer through the primary (after a checkpoint), kills
//! nothing, and asks the secondary to take over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use lockstep::control::client::Client;
use lockstep::nvme::tcp::Digests;
use serde_json::{Value, json};

use crate::Failure;
use crate::options::{LoadArgs, MachineArgs, Pattern, Size, Target};
use crate::process::Program;
use crate::report::{self, median};
use crate::runner::Machine;

/// The longest start of a pair, its first synchronisation included.
const START_DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Shell line that starts both nodes, creates and starts the group; it goes on until it is ended
    #[arg(long)]
    start: String,
    #[arg(long)]
    group: String,
    /// The primary's export
    #[arg(long)]
    primary: Target,
    #[arg(long)]
    primary_socket: PathBuf,
    /// The secondary's export of the volume
    #[arg(long)]
    secondary: Target,
    #[arg(long)]
    secondary_socket: PathBuf,
    /// What is kept: latest, checkpoint, overlay
    #[arg(long, value_delimiter = ',', default_value = "latest,checkpoint,overlay")]
    keep: Vec<String>,
    /// Bytes written at random between the last checkpoint and the failover
    #[arg(long, value_delimiter = ',', default_value = "0,256m")]
    fill: Vec<Size>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The load afterwards
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Write the results as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

struct Once {
    call_us: f64,
    writable_us: f64,
    longest_write_us: f64,
}

/// Waits until the group runs on both sides.
fn wait_until_running(args: &FailoverArgs, program: &mut Program) -> Result<(Client, Client), Failure> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        program.check()?;
        let state = |path: &PathBuf| -> Result<(Client, bool), Failure> {
            let mut client = Client::connect(path)?;
            let groups = client.call("replication_get_groups", Some(json!({ "name": args.group })))?;
            let state = groups.pointer("/0/state").and_then(Value::as_str) == Some("running");
            Ok((client, state))
        };
        let both = (state(&args.primary_socket), state(&args.secondary_socket));
        if let (Ok((primary, true)), Ok((secondary, true))) = both {
            return Ok((primary, secondary));
        }
        if Instant::now() > deadline {
            return Err(format!("group {} does not get to run on both nodes", args.group).into());
        }
        std::thread::sleep(PAUSE);
    }
}

fn once(machine: &Machine, args: &FailoverArgs, keep: &str, fill: u64) -> Result<Once, Failure> {
    let mut program = Program::start(&args.start)?;
    let (mut primary, mut secondary) = wait_until_running(args, &mut program)?;
    let after = args.load.load()?;
    primary.call("replication_do_checkpoint", Some(json!({ "group": args.group })))?;
    if fill > 0 {
        let mut load = after.clone();
        load.pattern = Pattern { random: true, read_percent: 0 };
        load.size_bytes = 4096;
        load.warm_up = Duration::ZERO;
        let queues = (machine.reactors.count() * load.queues) as u64;
        load.count = Some(fill.div_ceil(4096 * queues));
        load.time = Duration::from_secs(600);
        let devices = [machine.target("primary", &args.primary, Digests::default(), &load)?];
        let outcome = machine.run(&devices, &load, &[])?;
        machine.release(&devices)?;
        if outcome.results.errors > 0 {
            return Err(format!("filling the buffer: {:?}", outcome.results.messages).into());
        }
    }
    let before = Instant::now();
    let answer =
        secondary.call("replication_failover", Some(json!({ "group": args.group, "keep": keep })))?;
    let call_us = before.elapsed().as_secs_f64() * 1e6;
    let writable_us = answer.get("writable_after_us").and_then(Value::as_f64).unwrap_or(call_us);
    let devices = [machine.target("secondary", &args.secondary, Digests::default(), &after)?];
    let outcome = machine.run(&devices, &after, &[])?;
    machine.release(&devices)?;
    if outcome.results.errors > 0 {
        return Err(format!("writing after the failover: {:?}", outcome.results.messages).into());
    }
    Ok(Once { call_us, writable_us, longest_write_us: outcome.results.writes.max() as f64 / 1e3 })
}

pub fn run(args: &FailoverArgs) -> Result<(), Failure> {
    let machine = Machine::start(&args.machine)?;
    let mut rows = Vec::new();
    lockstep::say!(
        "{:<12} {:>12} {:>18} {:>14} {:>18}",
        "keep",
        "filled MiB",
        "to writable us",
        "call us",
        "longest write us"
    );
    for keep in &args.keep {
        for fill in &args.fill {
            let rounds = (0..args.rounds)
                .map(|_| once(&machine, args, keep, fill.0))
                .collect::<Result<Vec<Once>, Failure>>()?;
            let middle = |value: fn(&Once) -> f64| median(&mut rounds.iter().map(value).collect::<Vec<_>>());
            let longest = rounds.iter().map(|o| o.longest_write_us).fold(0.0, f64::max);
            let (writable, call) = (middle(|o| o.writable_us), middle(|o| o.call_us));
            lockstep::say!("{keep:<12} {:>12} {writable:>18.0} {call:>14.0} {longest:>18.0}", fill.0 >> 20);
            rows.push(json!({
                "keep": keep, "fill_bytes": fill.0, "rounds": rounds.len(), "median_writable_us": writable,
                "median_call_us": call, "longest_write_us": longest,
            }));
        }
    }
    match &args.json {
        Some(path) => report::write(path, &format!("{:#}\n", json!(rows))),
        None => Ok(()),
    }
}
