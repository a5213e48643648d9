//! The `bdev` and `nvme` subcommands.

use std::sync::Arc;

use clap::Args;
use lockstep::bdev::uring::{self, Dialect, UringOptions};
use lockstep::bdev::{Bdev, BdevOptions, null, ram};
use lockstep::nvme::tcp::Digests;

use crate::Failure;
use crate::options::{LoadArgs, MachineArgs, OutputArgs, Size, Target};
use crate::report;
use crate::runner::Machine;

#[derive(Debug, Args)]
pub struct BdevArgs {
    /// null:SIZE, ram:SIZE, uring:FILE (a file or block device), or nvme:ADDRESS:PORT/NQN[/NSID]
    device: String,
    /// Block size of devices made here
    #[arg(long, default_value_t = 512)]
    block_size: u32,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Args)]
pub struct NvmeArgs {
    /// ADDRESS:PORT/NQN[/NSID]; several are loaded at once
    #[arg(required = true)]
    targets: Vec<Target>,
    /// Header digests
    #[arg(long)]
    hdgst: bool,
    /// Data digests
    #[arg(long)]
    ddgst: bool,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn make(machine: &Machine, args: &BdevArgs, depth: usize) -> Result<Arc<Bdev>, Failure> {
    let (kind, rest) =
        args.device.split_once(':').ok_or("a device is null:SIZE, ram:SIZE, uring:FILE or nvme:TARGET")?;
    if kind == "nvme" {
        let queues = u16::try_from(machine.reactors.count())?;
        let target: Target = rest.parse()?;
        return Ok(machine.attach("perf", &target, Digests::default(), queues, u16::try_from(depth)?)?.0);
    }
    if kind == "uring" {
        let options = UringOptions {
            name: kind.to_string(),
            aliases: Vec::new(),
            uuid: uuid::Uuid::new_v4(),
            filename: rest.to_string(),
            block_size: Some(args.block_size),
            read_only: false,
            dialect: Dialect::Uring,
        };
        return Ok(uring::create(options)?);
    }
    let size: Size = rest.parse()?;
    let options = BdevOptions {
        name: kind.to_string(),
        aliases: Vec::new(),
        uuid: uuid::Uuid::new_v4(),
        block_size: args.block_size,
        num_blocks: size.0 / u64::from(args.block_size.max(1)),
    };
    match kind {
        "null" => Ok(null::create(options)?),
        "ram" => Ok(ram::create(options)?),
        other => Err(format!("`{other}` is no device: null, ram, uring and nvme are").into()),
    }
}

pub fn bdev(args: &BdevArgs) -> Result<(), Failure> {
    let load = args.load.load()?;
    let machine = Machine::start(&args.machine)?;
    let bdev = make(&machine, args, load.depth)?;
    let devices = [machine.bdev(&bdev, &load)];
    let outcome = machine.run(&devices, &load, &args.output.cpu_of)?;
    machine.host.stop();
    report::publish(&load, &outcome, &args.output)
}

pub fn nvme(args: &NvmeArgs) -> Result<(), Failure> {
    let load = args.load.load()?;
    let machine = Machine::start(&args.machine)?;
    let digests = Digests { header: args.hdgst, data: args.ddgst };
    let mut devices = Vec::new();
    for (n, target) in args.targets.iter().enumerate() {
        devices.push(machine.target(&format!("t{n}"), target, digests, &load)?);
    }
    let outcome = machine.run(&devices, &load, &args.output.cpu_of)?;
    machine.release(&devices)?;
    report::publish(&load, &outcome, &args.output)
}
