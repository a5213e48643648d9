//! Checkpoints under load: how long a commit takes, and how long writers stall around it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use lockstep::control::client::{Client, DEFAULT_SOCKET};
use lockstep::nvme::tcp::Digests;
use serde_json::{Value, json};

use crate::Failure;
use crate::options::{LoadArgs, MachineArgs, Size, Target};
use crate::report;
use crate::runner::{Machine, Running};

/// Writes that end this much after a commit still count as stalled by it.
const AFTER: Duration = Duration::from_millis(10);
/// How often the fill is looked at.
const PAUSE: Duration = Duration::from_micros(200);

#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// The primary's namespace, to be loaded; several are loaded together
    #[arg(required = true)]
    targets: Vec<Target>,
    /// The primary's JSON-RPC socket
    #[arg(long, default_value = DEFAULT_SOCKET)]
    rpc_socket: PathBuf,
    #[arg(long)]
    group: String,
    /// Checkpoints to measure
    #[arg(long, default_value_t = 50)]
    checkpoints: usize,
    /// Milliseconds of load between two checkpoints, at least
    #[arg(long, default_value_t = 100)]
    interval: u64,
    /// Bytes written between two checkpoints, at least: what the secondary's buffer holds at the commit
    #[arg(long, default_value = "0")]
    fill: Size,
    /// Deadline of one checkpoint, ms
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Write the results as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Writes acknowledged so far, and a way to hear early that the load is over.
fn wait_for_fill(running: &Running, fill: u64, at_least: Duration) {
    let (since, before) = (Instant::now(), running.written());
    while since.elapsed() < at_least || running.written() - before < fill {
        if running.is_over() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

pub fn run(args: &CheckpointArgs) -> Result<(), Failure> {
    let mut load = args.load.load()?;
    // The checkpoints end the load, not the time.
    load.time = Duration::from_secs(3600);
    load.warm_up = Duration::ZERO;
    let warm_up = args.load.load()?.warm_up;
    let machine = Machine::start(&args.machine)?;
    let mut client = Client::connect(&args.rpc_socket)?;
    let device =
        |(number, target)| machine.target(&format!("primary{number}x"), target, Digests::default(), &load);
    let devices = args.targets.iter().enumerate().map(device).collect::<Result<Vec<_>, _>>()?;
    let running = machine.begin(&devices, &load)?;
    std::thread::sleep(warm_up);
    let mut whole = histogram()?;
    let mut node = histogram()?;
    let mut failures = Vec::new();
    // Four windows a round: load alone, the checkpoint, load alone, as much time without a checkpoint.
    for _ in 0..args.checkpoints {
        wait_for_fill(&running, args.fill.0, Duration::from_millis(args.interval));
        if running.is_over() {
            break;
        }
        running.next_window();
        let before = Instant::now();
        let answer = client.call(
            "replication_do_checkpoint",
            Some(json!({ "group": args.group, "timeout_ms": args.timeout })),
        );
        let took = before.elapsed();
        std::thread::sleep(AFTER);
        running.next_window();
        match answer {
            Ok(result) => {
                whole.saturating_record(took.as_nanos() as u64);
                let us = result.get("duration_us").and_then(Value::as_u64).unwrap_or_default();
                node.saturating_record(us.saturating_mul(1000).max(1));
            }
            Err(error) => failures.push(error.to_string()),
        }
        // The same length of time without a checkpoint, to compare with.
        std::thread::sleep(AFTER);
        running.next_window();
        std::thread::sleep(AFTER + took);
        running.next_window();
    }
    running.stop();
    let results = running.wait()?;
    machine.release(&devices)?;
    let mut stall = histogram()?;
    let mut control = histogram()?;
    for (number, &ns) in results.windows.iter().enumerate().filter(|(_, ns)| **ns > 0) {
        match number % 4 {
            1 => stall.saturating_record(ns),
            3 => control.saturating_record(ns),
            _ => {}
        }
    }
    let iops = (results.reads.len() + results.writes.len()) as f64 / (results.measured_ns as f64 / 1e9);
    let out = json!({
        "checkpoints": whole.len(),
        "failures": failures,
        "iops": iops,
        "commit_as_the_caller_sees_it": report::latency(&whole),
        "commit_as_the_node_reports_it": report::latency(&node),
        "longest_write_around_a_checkpoint": report::latency(&stall),
        "longest_write_in_as_much_time_without_one": report::latency(&control),
        "write_latency": report::latency(&results.writes),
    });
    let show = |name: &str, h: &Histogram<u64>| {
        let us = |q: f64| h.value_at_quantile(q) as f64 / 1e3;
        lockstep::say!(
            "{name:<44} us: p50 {:.0}  p90 {:.0}  p99 {:.0}  max {:.0}",
            us(0.5),
            us(0.9),
            us(0.99),
            us(1.0)
        );
    };
    lockstep::say!("{} checkpoints, {} failed, {iops:.0} IOPS meanwhile", whole.len(), failures.len());
    show("commit, as the caller sees it", &whole);
    show("commit, as the node reports it", &node);
    show("longest write around each checkpoint", &stall);
    show("longest write in as much time without one", &control);
    if let Some(path) = &args.json {
        report::write(path, &format!("{out:#}\n"))?;
    }
    match failures.first() {
        Some(first) => Err(format!("{} checkpoints failed; the first: {first}", failures.len()).into()),
        None => Ok(()),
    }
}

/// Up to one minute, three digits.
fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}
