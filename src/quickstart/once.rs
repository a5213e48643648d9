//! `quickstart --once`: the whole promise on real processes, judged byte for byte, and a report.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep::bdev::Bdev;
use serde_json::json;

use super::history::{History, Image};
use super::load::{self, Load, lock};
use super::pair::{GROUP, Node, Pair, VIEW_NQN, VOLUME_NQN};
use super::stamp::BLOCK_BYTES;
use super::{Attached, Host};

/// Checkpoints under load in the first story, each verified.
const CHECKPOINTS: usize = 20;
/// Checkpoints in the other two.
const FEWER_CHECKPOINTS: usize = 3;
/// Load between two checkpoints.
const BETWEEN: Duration = Duration::from_millis(60);
/// Load before the primary is killed.
const BEFORE_KILL: Duration = Duration::from_millis(300);
/// Longest checkpoint accepted, ms: the group's own deadline.
const CHECKPOINT_TIMEOUT_MS: u64 = 5000;
const FLUSH_DEADLINE: Duration = Duration::from_secs(60);
/// The secondary VM's writes carry versions from here on, which the load never reaches.
const VIEW_VERSIONS: u64 = 1 << 60;
const VIEW_WRITES: u64 = 500;

/// Figures of a run.
#[derive(Default)]
struct Figures {
    writes: usize,
    seconds: f64,
    slowest_write_us: u64,
    checkpoints_us: Vec<u64>,
    blocks_compared: usize,
    failovers: Vec<(&'static str, u64)>,
}

/// Runs the three stories; `Err` names what did not hold.
pub fn run(host: &Host, directory: &Path, size_mib: u64) -> Result<(), String> {
    let mut figures = Figures::default();
    for (keep, checkpoints) in
        [("latest", CHECKPOINTS), ("checkpoint", FEWER_CHECKPOINTS), ("overlay", FEWER_CHECKPOINTS)]
    {
        let directory = directory.join(keep);
        std::fs::create_dir(&directory).map_err(|e| format!("cannot make {}: {e}", directory.display()))?;
        println!(
            "keep `{keep}`: two nodes, RAM disks of {size_mib} MiB, {checkpoints} checkpoints under load"
        );
        Story { host, keep, figures: &mut figures }
            .tell(&directory, size_mib, checkpoints)
            .map_err(|e| format!("failover with keep `{keep}`: {e}"))?;
    }
    report(&mut figures);
    Ok(())
}

struct Story<'a> {
    host: &'a Host,
    keep: &'static str,
    figures: &'a mut Figures,
}

impl Story<'_> {
    fn attach(&self, name: &str, node: &Node, nqn: &str) -> Result<Attached, String> {
        self.host.attach(&format!("{name}-{}", self.keep), nqn, node.port)
    }

    fn image(&mut self, bdev: &Arc<Bdev>) -> Result<Image, String> {
        let image = load::take_image(&self.host.reactors, bdev)
            .map_err(|e| format!("reading all of {}: {e}", bdev.name()))?;
        self.figures.blocks_compared += image.len();
        Ok(image)
    }

    fn tell(&mut self, directory: &Path, size_mib: u64, checkpoints: usize) -> Result<(), String> {
        let mut pair = Pair::start(directory, size_mib)?;
        let volume = self.attach("volume", &pair.primary, VOLUME_NQN)?;
        let view = self.attach("view", &pair.secondary, VIEW_NQN)?;
        let blocks = volume.bdev.size_bytes() as usize / BLOCK_BYTES;
        let history = Arc::new(Mutex::new(History::new(blocks)));
        let started = Instant::now();
        let load = Load::start(&self.host.reactors, &volume.bdev, history.clone())?;
        let mut at_checkpoint = vec![0; blocks];
        for number in 1..=checkpoints {
            std::thread::sleep(BETWEEN);
            at_checkpoint = self
                .checkpoint(&pair, &view.bdev, &history)
                .map_err(|e| format!("checkpoint {number}: {e}\n{}", pair.secondary.log_tail()))?;
        }
        let expected_view = self.secondary_vm_writes(&view.bdev, &at_checkpoint)?;
        std::thread::sleep(BEFORE_KILL);
        let acked_before = lock(&history).now();
        pair.primary.kill();
        load.stop();
        self.host.detach(volume)?;
        let progress = load.wait(Duration::from_secs(10))?;
        self.figures.seconds += started.elapsed().as_secs_f64();
        self.figures.writes += lock(&history).acked();
        self.figures.slowest_write_us = self.figures.slowest_write_us.max(progress.slowest_ns / 1000);
        if progress.acked == 0 {
            return Err(format!("no write was acknowledged: {:?}", progress.errors));
        }

        let result =
            pair.secondary.call("replication_failover", json!({"group": GROUP, "keep": self.keep}))?;
        self.figures.failovers.push((self.keep, result["writable_after_us"].as_u64().unwrap_or(0)));
        let survivor = self.attach("survivor", &pair.secondary, VOLUME_NQN)?;
        self.judge(&survivor.bdev, &history, acked_before, &at_checkpoint, &expected_view)?;
        // It is a primary now: it takes writes, and what the buffer held drains meanwhile without changing the view.
        let own = vec![(0, VIEW_VERSIONS * 2), (blocks as u64 - 1, VIEW_VERSIONS * 2 + 1)];
        load::write_blocks(&self.host.reactors, &survivor.bdev, own)
            .map_err(|e| format!("writes after the failover: {e}"))?;
        self.wait_for_flush(&pair.secondary)?;
        let image = self.image(&survivor.bdev)?;
        if image[0] != VIEW_VERSIONS * 2 || image[blocks - 1] != VIEW_VERSIONS * 2 + 1 {
            return Err("writes after the failover are not on the volume".to_string());
        }
        self.host.detach(survivor)?;
        self.host.detach(view)?;
        pair.secondary.end()
    }

    /// One checkpoint under load, and the secondary's view compared with the volume at the cut.
    fn checkpoint(
        &mut self,
        pair: &Pair,
        view: &Arc<Bdev>,
        history: &Arc<Mutex<History>>,
    ) -> Result<Image, String> {
        let from = lock(history).now();
        let result = pair.primary.call(
            "replication_do_checkpoint",
            json!({"group": GROUP, "timeout_ms": CHECKPOINT_TIMEOUT_MS}),
        )?;
        let to = lock(history).now();
        self.figures.checkpoints_us.push(result["duration_us"].as_u64().unwrap_or(0));
        let image = self.image(view)?;
        lock(history).check(&image, from, to)?;
        Ok(image)
    }

    /// The secondary VM writes blocks of its own into its view and reads them back; the primary's are not disturbed.
    fn secondary_vm_writes(&mut self, view: &Arc<Bdev>, at_checkpoint: &Image) -> Result<Image, String> {
        let blocks = at_checkpoint.len() as u64;
        let writes: Vec<(u64, u64)> =
            (0..VIEW_WRITES).map(|n| (n.wrapping_mul(7919) % blocks, VIEW_VERSIONS + n)).collect();
        let mut expected = at_checkpoint.clone();
        // Written from the last to the first.
        for &(block, version) in writes.iter().rev() {
            expected[block as usize] = version;
        }
        load::write_blocks(&self.host.reactors, view, writes)
            .map_err(|e| format!("the secondary VM's writes: {e}"))?;
        let image = self.image(view)?;
        differences(&image, &expected).map_err(|e| format!("the secondary VM's view: {e}"))?;
        Ok(expected)
    }

    fn judge(
        &mut self,
        survivor: &Arc<Bdev>,
        history: &Arc<Mutex<History>>,
        acked_before: u64,
        at_checkpoint: &Image,
        expected_view: &Image,
    ) -> Result<(), String> {
        let image = self.image(survivor)?;
        match self.keep {
            "latest" => {
                let history = lock(history);
                history.check(&image, history.now(), history.now())?;
                if image.iter().all(|&v| v <= acked_before / 2) {
                    return Err("nothing of the last half of the load is there".to_string());
                }
                Ok(())
            }
            "checkpoint" => differences(&image, at_checkpoint),
            _ => differences(&image, expected_view),
        }
    }

    fn wait_for_flush(&self, node: &Node) -> Result<(), String> {
        let end = Instant::now() + FLUSH_DEADLINE;
        loop {
            let group = node.group()?;
            let held = ["undo_bytes", "overlay_bytes"]
                .iter()
                .filter_map(|k| group["buffer"][k].as_u64())
                .sum::<u64>();
            if held == 0 {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("the disk buffer was not flushed within {FLUSH_DEADLINE:?}: {group:#}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn differences(image: &Image, expected: &Image) -> Result<(), String> {
    let wrong: Vec<usize> = (0..image.len()).filter(|&b| image[b] != expected[b]).collect();
    match wrong.first() {
        None => Ok(()),
        Some(&b) => Err(format!(
            "{} of {} blocks differ; block {b} holds write {} instead of {}",
            wrong.len(),
            image.len(),
            image[b],
            expected[b]
        )),
    }
}

fn report(figures: &mut Figures) {
    figures.checkpoints_us.sort_unstable();
    let checkpoints = &figures.checkpoints_us;
    let at = |share: usize| checkpoints.get((checkpoints.len() * share / 100).min(checkpoints.len() - 1));
    println!("\nAll of it held:");
    println!(
        "  {} writes of 4 KiB acknowledged by both disks, {:.0} a second; the slowest took {} µs",
        figures.writes,
        figures.writes as f64 / figures.seconds.max(0.001),
        figures.slowest_write_us
    );
    println!(
        "  {} checkpoints under load: median {} µs, slowest {} µs; after each the secondary's view was the volume at \
         the cut",
        checkpoints.len(),
        at(50).unwrap_or(&0),
        checkpoints.last().unwrap_or(&0)
    );
    println!("  {} blocks compared byte for byte", figures.blocks_compared);
    for (keep, us) in &figures.failovers {
        println!(
            "  primary killed under load, failover with keep `{keep}`: writable after {us} µs, content exact"
        );
    }
}
