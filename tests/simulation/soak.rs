//! Many seeds, on several threads; the first that fails is cut down and told.

use super::corpus;
use super::generate;
use super::run::run;
use super::shrink::shrink;
use super::world::Reach;
use lockstep::replication::core::mutation::{self, Mutation};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

pub struct Summary {
    pub seeds: u64,
    pub steps: u64,
    pub reach: Reach,
    pub failed: Option<u64>,
}

/// A first seed that no earlier run began with.
pub fn fresh() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64 * 1_000
}

/// Runs seeds from `from` on, until `until` says so for the number of seeds begun, or one fails.
pub fn run_seeds(
    from: u64,
    threads: u64,
    mutation: Option<Mutation>,
    until: impl Fn(u64) -> bool + Sync,
) -> Summary {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let over = AtomicBool::new(false);
    let work = || {
        mutation::set(mutation);
        let mut summary = Summary { seeds: 0, steps: 0, reach: Reach::default(), failed: None };
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if over.load(Ordering::Relaxed) || until(number) {
                return summary;
            }
            let outcome = run(&generate::plan(from + number), false);
            summary.seeds += 1;
            summary.steps += outcome.steps;
            summary.reach.add(&outcome.reach);
            if outcome.broken.is_some() {
                failed.fetch_min(from + number, Ordering::Relaxed);
                over.store(true, Ordering::Relaxed);
            }
        }
    };
    let mut all = Summary { seeds: 0, steps: 0, reach: Reach::default(), failed: None };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Ok(part) = worker.join() {
                all.seeds += part.seeds;
                all.steps += part.steps;
                all.reach.add(&part.reach);
            }
        }
    });
    let failed = failed.into_inner();
    all.failed = (failed != u64::MAX).then_some(failed);
    all
}

/// Cuts a failing seed down and tells its story, and how to keep it.
pub fn explain(seed: u64) {
    println!("seed {seed} fails; cutting it down");
    match shrink(&generate::plan(seed)) {
        Some(plan) => {
            corpus::story(&plan);
            println!("again: `replay {seed}`; to keep it: `shrink {seed} --what TEXT --into FILE`");
        }
        None => println!("seed {seed} does not fail again: the run depends on something beside its seed"),
    }
}

pub fn soak(minutes: u64, from: Option<u64>, threads: u64, mutation: Option<Mutation>) -> bool {
    std::panic::set_hook(Box::new(|_| ()));
    let from = from.unwrap_or_else(fresh);
    let (started, limit) = (Instant::now(), Duration::from_secs(minutes * 60));
    println!("seeds from {from}");
    let summary = run_seeds(from, threads, mutation, |_| started.elapsed() > limit);
    let seconds = started.elapsed().as_secs_f64();
    let Summary { seeds, steps, reach, failed } = summary;
    println!("{seeds} seeds, {steps} steps in {seconds:.0} s; {reach:?}");
    if let Some(seed) = failed {
        explain(seed);
    }
    failed.is_none()
}
