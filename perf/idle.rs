//! What processes that have nothing to do cost.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::Failure;
use crate::cpu::Meter;
use crate::process::Program;

#[derive(Debug, Args)]
pub struct IdleArgs {
    /// Processes to watch
    #[arg(long, value_delimiter = ',', required_unless_present = "start")]
    pid: Vec<u32>,
    /// Shell line that starts the program to watch
    #[arg(long)]
    start: Option<String>,
    /// Seconds until a started program counts as idle
    #[arg(long, default_value_t = 3.0)]
    settle: f64,
    /// Seconds to watch
    #[arg(long, default_value_t = 10.0)]
    time: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &IdleArgs) -> Result<(), Failure> {
    let mut program = args.start.as_deref().map(Program::start).transpose()?;
    let mut pids = args.pid.clone();
    if let Some(program) = &mut program {
        std::thread::sleep(Duration::try_from_secs_f64(args.settle)?);
        program.check()?;
        pids.extend(program.pids());
    }
    let meter = Meter::start(&pids)?;
    std::thread::sleep(Duration::try_from_secs_f64(args.time)?);
    let shares = meter.stop()?;
    if args.json {
        lockstep::say!("{:#}", json!(shares));
    } else {
        for share in &shares {
            lockstep::say!("process {}: {:.2} % of a core", share.pid, share.percent);
        }
    }
    Ok(())
}
