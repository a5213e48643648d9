//! Runs a load: reactors, devices, one worker a queue, results.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep::bdev::nvme::{self, ControllerFacts, ControllerOptions, NvmeHost, QueueOptions};
use lockstep::bdev::{Bdev, Registry};
use lockstep::env::CoreList;
use lockstep::nvme::tcp::Digests;
use lockstep::reactor::{Config, ReactorSet, Reply};

use crate::Failure;
use crate::backend::{self, Backend};
use crate::cpu::{Meter, Share};
use crate::options::{Load, MachineArgs, Target};
use crate::worker::{Plan, Results, Shared, Worker};

/// A run may take this much longer than its time before it counts as hung.
const GRACE: Duration = Duration::from_secs(60);
/// The longest wait for a queue of the load generator.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The load generator's own reactors and devices.
pub struct Machine {
    pub reactors: Arc<ReactorSet>,
    pub registry: Arc<Registry>,
    pub host: NvmeHost,
}

/// What a worker's queue leads to.
#[derive(Clone)]
enum Way {
    Bdev(Arc<Bdev>),
    Nvme(Box<QueueOptions>, u32),
}

/// Something to load.
pub struct Device {
    block_size: u32,
    num_blocks: u64,
    ways: Vec<Way>,
    /// To be detached when the run is over.
    controller: Option<String>,
}

/// A load in progress.
pub struct Running {
    workers: Vec<JoinHandle<Result<Results, Failure>>>,
    shared: Arc<Shared>,
    load: Load,
}

/// A finished run.
pub struct Outcome {
    pub results: Results,
    pub cpu: Vec<Share>,
}

impl Machine {
    pub fn start(args: &MachineArgs) -> Result<Machine, Failure> {
        let cores = args.cores.clone().unwrap_or_else(|| CoreList::available().first(1));
        let config = Config { cores, idle: args.idle, memory_bytes: args.memory << 20 };
        let reactors = ReactorSet::start(&config)?;
        let registry = Registry::new();
        let host = NvmeHost::new(registry.clone(), reactors.clone())?;
        Ok(Machine { reactors, registry, host })
    }

    fn queues(&self, load: &Load) -> usize {
        self.reactors.count() * load.queues
    }

    /// A bdev of this process.
    pub fn bdev(&self, bdev: &Arc<Bdev>, load: &Load) -> Device {
        Device {
            block_size: bdev.block_size(),
            num_blocks: bdev.num_blocks(),
            ways: vec![Way::Bdev(bdev.clone()); self.queues(load)],
            controller: None,
        }
    }

    /// A namespace of a target, with bare queues.
    pub fn target(
        &self,
        name: &str,
        target: &Target,
        digests: Digests,
        load: &Load,
    ) -> Result<Device, Failure> {
        let count = u16::try_from(self.queues(load)).map_err(|_| "more than 65535 queues")?;
        let depth = u16::try_from(load.depth).map_err(|_| "a depth above 65535")?;
        let (bdev, facts, options) = self.attach(name, target, digests, count, depth)?;
        let nsid = bdev.name().rsplit_once('n').and_then(|(_, n)| n.parse().ok()).unwrap_or(1);
        if facts.max_depth < depth {
            let most = facts.max_depth;
            return Err(format!("the target's queues hold {most} commands; use --queues for more").into());
        }
        let way = |qid: u16| {
            let options = QueueOptions {
                address: options.address,
                subnqn: options.subnqn.clone(),
                hostnqn: options.hostnqn.clone(),
                hostid: nvme::hostid(&options.hostnqn),
                qid,
                cntlid: facts.cntlid,
                depth,
                kato_ms: 0,
                digests,
                in_capsule_bytes: facts.in_capsule_bytes,
                connect_timeout: CONNECT_TIMEOUT,
                command_timeout: None,
                fabrics_connect: true,
            };
            Way::Nvme(Box::new(options), nsid)
        };
        Ok(Device {
            block_size: bdev.block_size(),
            num_blocks: bdev.num_blocks(),
            ways: (1..=count).map(way).collect(),
            controller: Some(name.to_string()),
        })
    }

    /// Attaches a target's controller and finds the namespace that was named, or the first.
    pub fn attach(
        &self,
        name: &str,
        target: &Target,
        digests: Digests,
        queues: u16,
        depth: u16,
    ) -> Result<(Arc<Bdev>, ControllerFacts, ControllerOptions), Failure> {
        let address = nvme::resolve(&target.address, &target.port)?;
        let mut options = ControllerOptions::new(name, address, &target.nqn);
        (options.digests, options.num_io_queues, options.depth) = (digests, queues, depth);
        let names = self.host.attach(options.clone())?;
        let wanted = target.nsid.map(|nsid| format!("{name}n{nsid}"));
        let found = names.iter().find(|n| wanted.as_ref().is_none_or(|w| *n == w));
        let found = found.ok_or_else(|| format!("{} has no such namespace; it has {names:?}", target.nqn))?;
        let infos = self.host.controllers();
        let info = infos.iter().find(|c| c.options.name == name).ok_or("the controller is gone again")?;
        Ok((self.registry.get(found)?, info.facts.clone(), options))
    }

    /// Starts the load on all devices at once.
    pub fn begin(&self, devices: &[Device], load: &Load) -> Result<Running, Failure> {
        let shared = Arc::new(Shared::default());
        let total: usize = devices.iter().map(|d| d.ways.len()).sum();
        // Stamps of earlier runs must look foreign.
        let run = uuid::Uuid::new_v4().as_u64_pair().0 << 16;
        let mut workers = Vec::new();
        for device in devices {
            let block = u64::from(device.block_size);
            if !load.size_bytes.is_multiple_of(block) {
                return Err(format!("the I/O size is no multiple of the block size {block}").into());
            }
            let bytes = load.range_bytes.unwrap_or(u64::MAX).min(device.num_blocks * block);
            let units = bytes / load.size_bytes;
            // Writers that verify, and sequential ones, have a range each; random ones share all.
            let split = load.verify || !load.pattern.random;
            let share = if split { units / device.ways.len() as u64 } else { units };
            if share == 0 {
                return Err("the device, or --range, is too small for this many queues".into());
            }
            for (n, way) in device.ways.iter().enumerate() {
                let first_unit = if split { n as u64 * share } else { 0 };
                let plan = Plan {
                    load: load.clone(),
                    block_size: device.block_size,
                    first_lba: first_unit * load.size_bytes / block,
                    units: share,
                    writer: run | workers.len() as u64,
                    rate: load.rate.map(|r| r / total as f64),
                    shared: shared.clone(),
                };
                let (reactors, way, to) = (self.reactors.clone(), way.clone(), n % self.reactors.count());
                let deadline = load.warm_up + load.time + GRACE;
                workers.push(std::thread::spawn(move || {
                    reactors.ask(to, deadline, move |reply| begin(plan, way, reply)).map_err(Failure::from)
                }));
            }
        }
        Ok(Running { workers, shared, load: load.clone() })
    }

    /// Runs a load from beginning to end.
    pub fn run(&self, devices: &[Device], load: &Load, cpu_of: &[u32]) -> Result<Outcome, Failure> {
        let running = self.begin(devices, load)?;
        std::thread::sleep(load.warm_up);
        let meter = Meter::start(cpu_of)?;
        if load.count.is_none() {
            std::thread::sleep(load.time);
        }
        let cpu = if load.count.is_none() { meter.stop()? } else { Vec::new() };
        let results = running.wait()?;
        let cpu = if load.count.is_some() { meter.stop()? } else { cpu };
        Ok(Outcome { results, cpu })
    }

    /// Ends the connections of a run's devices.
    pub fn release(&self, devices: &[Device]) -> Result<(), Failure> {
        for name in devices.iter().filter_map(|d| d.controller.as_ref()) {
            self.host.detach(name)?;
        }
        Ok(())
    }
}

impl Running {
    /// Waits for the end; a queue that was lost is an error.
    pub fn wait(self) -> Result<Results, Failure> {
        let mut sum = Results::new();
        for worker in self.workers {
            let results = worker.join().map_err(|_| "a worker failed")??;
            sum.merge(&results);
        }
        if sum.measured_ns == 0 {
            sum.measured_ns = self.load.time.as_nanos() as u64;
        }
        match sum.closed.take() {
            Some(why) => Err(format!("a queue of the load ended: {why}").into()),
            None => Ok(sum),
        }
    }

    /// Ends the load early.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Bytes of acknowledged writes so far.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Closes the present window of time and opens the next.
    pub fn next_window(&self) {
        self.shared.window.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a worker has ended already.
    pub fn is_over(&self) -> bool {
        self.shared.ended.load(Ordering::Relaxed) > 0
    }
}

/// Starts one worker. On its reactor.
fn begin(plan: Plan, way: Way, reply: Reply<Results>) {
    let needs_start = matches!(way, Way::Bdev(_));
    let Some(worker) = Worker::new(plan, reply) else {
        // The reply is gone with the worker: the asker hears that the call failed.
        tracing::error!("no memory for the I/O buffers of the load: give more with --memory");
        return;
    };
    let client: Rc<dyn backend::Client> = worker.clone();
    match way {
        Way::Bdev(bdev) => match bdev.channel() {
            Ok(channel) => worker.set_backend(Backend::Bdev(backend::Bdev::new(channel, client.clone()))),
            Err(error) => return worker.fail(error.to_string()),
        },
        Way::Nvme(options, nsid) => match backend::Nvme::open(*options, nsid, client.clone()) {
            Ok(queue) => worker.set_backend(Backend::Nvme(queue)),
            Err(error) => return worker.fail(error.to_string()),
        },
    }
    if needs_start {
        client.ready();
    }
}
