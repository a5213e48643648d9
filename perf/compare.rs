//! Two targets by turns under the same loads: medians and ratios. Neither runs while the other is measured.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use lockstep::nvme::tcp::Digests;
use serde_json::json;

use crate::Failure;
use crate::options::{Load, LoadArgs, MachineArgs, Pattern, Size, Target};
use crate::process::Program;
use crate::report::{self, Figures, median};
use crate::runner::Machine;

/// How often a starting target is tried.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest start of a target.
const START_DEADLINE: Duration = Duration::from_secs(40);

/// One load of the list: `randread/4k/32`.
#[derive(Debug, Clone)]
struct Case {
    text: String,
    pattern: Pattern,
    size: Size,
    depth: usize,
}

impl FromStr for Case {
    type Err = String;
    fn from_str(text: &str) -> Result<Case, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [pattern, size, depth] = parts[..] else {
            return Err(format!("`{text}` is no load such as randread/4k/32"));
        };
        let depth = depth.parse().map_err(|_| format!("`{depth}` is no depth"))?;
        Ok(Case { text: text.to_string(), pattern: pattern.parse()?, size: size.parse()?, depth })
    }
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Shell line that starts the first target
    #[arg(long)]
    a_start: String,
    /// ADDRESS:PORT/NQN[/NSID] of the first target
    #[arg(long)]
    a: Target,
    #[arg(long)]
    b_start: String,
    #[arg(long)]
    b: Target,
    /// What the two are called in the table
    #[arg(long, num_args = 2, default_values = ["A", "B"])]
    names: Vec<String>,
    /// Rounds; each runs both, in turn the one and the other first
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Loads, each pattern/size/depth
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "randread/4k/1,randwrite/4k/1,randread/4k/32,randwrite/4k/32,randread/4k/127,\
                         randwrite/4k/127,randread/128k/8,randwrite/128k/8"
    )]
    loads: Vec<Case>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Write all figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

struct Side<'a> {
    name: &'a str,
    start: &'a str,
    target: &'a Target,
    /// Figures of each load, one a round.
    figures: Vec<Vec<Figures>>,
}

/// Attaches as soon as the target is up.
fn wait_for(machine: &Machine, program: &mut Program, target: &Target) -> Result<(), Failure> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        program.check()?;
        match machine.attach("probe", target, Digests::default(), 1, 1) {
            Ok(_) => return Ok(machine.host.detach("probe")?),
            // A target that has no namespace yet is attached all the same.
            Err(error) => {
                let _ = machine.host.detach("probe");
                if Instant::now() > deadline {
                    return Err(format!("the target does not come up: {error}").into());
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn round(machine: &Machine, side: &mut Side, cases: &[Case], base: &Load) -> Result<(), Failure> {
    let mut program = Program::start(side.start)?;
    wait_for(machine, &mut program, side.target)?;
    for (case, figures) in cases.iter().zip(&mut side.figures) {
        let load = Load { pattern: case.pattern, size_bytes: case.size.0, depth: case.depth, ..base.clone() };
        let devices = [machine.target("side", side.target, Digests::default(), &load)?];
        let outcome = machine.run(&devices, &load, &program.pids())?;
        machine.release(&devices)?;
        if outcome.results.errors > 0 {
            return Err(format!("{}: {}: {:?}", side.name, case.text, outcome.results.messages).into());
        }
        figures.push(report::figures(&outcome));
    }
    Ok(())
}

pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    let base = args.load.load()?;
    let machine = Machine::start(&args.machine)?;
    let side = |n: usize, start, target| Side {
        name: &args.names[n],
        start,
        target,
        figures: vec![Vec::new(); args.loads.len()],
    };
    let mut sides = [side(0, &args.a_start, &args.a), side(1, &args.b_start, &args.b)];
    for n in 0..args.rounds {
        for at in if n % 2 == 0 { [0, 1] } else { [1, 0] } {
            eprintln!("round {} of {}: {}", n + 1, args.rounds, sides[at].name);
            round(&machine, &mut sides[at], &args.loads, &base)?;
        }
    }
    let [a, b] = &sides;
    lockstep::say!(
        "{:<20} {:>11} {:>11} {:>6}   mean us {:>8} {:>8}   p99 us {:>8} {:>8}   CPU s/GiB {:>6} {:>6}",
        "median of IOPS",
        a.name,
        b.name,
        "ratio",
        a.name,
        b.name,
        a.name,
        b.name,
        a.name,
        b.name
    );
    let mut rows = Vec::new();
    for (n, case) in args.loads.iter().enumerate() {
        let middle = |side: &Side, value: fn(&Figures) -> f64| {
            median(&mut side.figures[n].iter().map(value).collect::<Vec<_>>())
        };
        let both = |value: fn(&Figures) -> f64| (middle(a, value), middle(b, value));
        let (iops, mean, p99) = (both(|f| f.iops), both(|f| f.mean_us), both(|f| f.p99_us));
        let cpu = both(|f| f.cpu_per_gib);
        lockstep::say!(
            "{:<20} {:>11.0} {:>11.0} {:>6.2}           {:>8.1} {:>8.1}          {:>8.1} {:>8.1}             \
             {:>6.3} {:>6.3}",
            case.text,
            iops.0,
            iops.1,
            iops.0 / iops.1.max(1.0),
            mean.0,
            mean.1,
            p99.0,
            p99.1,
            cpu.0,
            cpu.1
        );
        let all = |side: &Side| side.figures[n].iter().map(|f| f.iops).collect::<Vec<_>>();
        rows.push(json!({
            "load": case.text,
            "iops": { a.name: all(a), b.name: all(b) },
            "median_iops": { a.name: iops.0, b.name: iops.1 },
            "ratio": iops.0 / iops.1.max(1.0),
            "median_cpu_seconds_per_gib": { a.name: cpu.0, b.name: cpu.1 },
        }));
    }
    match &args.json {
        Some(path) => report::write(path, &format!("{:#}\n", json!(rows))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_named_by_pattern_size_and_depth() {
        let case: Case = "randrw:70/4k/32".parse().expect("case");
        assert_eq!((case.pattern.read_percent, case.size, case.depth), (70, Size(4096), 32));
        assert!("randread/4k".parse::<Case>().is_err());
    }
}
