//! What CI runs: fresh seeds, and the mutations.

use super::generate;
use super::run::run;
use super::shrink::shrink;
use super::soak::{explain, fresh, run_seeds};
use lockstep::replication::core::mutation::{self, ALL};
use std::time::Instant;

/// Fresh seeds of one run of the tests.
const SEEDS: u64 = 10_000;
/// Seeds within which every mutation is to be noticed: seconds each.
const NOTICED_WITHIN: u64 = 10_000;
/// Both cores of a small machine.
const THREADS: u64 = 2;

#[test]
fn fresh_seeds_keep_every_promise() {
    let (from, started) = (fresh(), Instant::now());
    let summary = run_seeds(from, THREADS, None, |number| number >= SEEDS);
    let seconds = started.elapsed().as_secs_f64();
    println!("{} fresh seeds from {from} on, {} steps in {seconds:.0} s", summary.seeds, summary.steps);
    println!("{:?}", summary.reach);
    if let Some(seed) = summary.failed {
        explain(seed);
        panic!("seed {seed} breaks a promise");
    }
    assert_eq!(summary.seeds, SEEDS);
    // A simulator that comes to nothing finds nothing.
    let reach = summary.reach;
    let reached = [reach.acked, reach.commits, reach.promoted, reach.syncs, reach.fenced, reach.pins];
    let more = [reach.overruns, reach.crashes, reach.reads, reach.drained];
    assert!(reached.iter().chain(&more).all(|&count| count > SEEDS / 100), "{reach:?}");
}

#[test]
fn a_seed_reproduces_its_run_exactly() {
    for seed in 1..200 {
        let plan = generate::plan(seed);
        let (once, again) = (run(&plan, false), run(&plan, true));
        assert_eq!((once.digest, once.steps), (again.digest, again.steps), "seed {seed}");
    }
}

#[test]
fn every_mutation_of_the_protocol_is_noticed() {
    std::panic::set_hook(Box::new(|_| ()));
    let mut missed = Vec::new();
    for &mutation in ALL {
        let summary = run_seeds(1, THREADS, Some(mutation), |number| number >= NOTICED_WITHIN);
        match summary.failed {
            // What fails without the mutation shows nothing about it.
            Some(seed) if run(&generate::plan(seed), false).broken.is_some() => {
                panic!("seed {seed} breaks a promise without a mutation")
            }
            Some(seed) => println!("{mutation:?}: noticed by seed {seed}, after {} seeds", summary.seeds),
            None => missed.push(mutation),
        }
    }
    let _ = std::panic::take_hook();
    assert!(ALL.len() >= 15 && missed.is_empty(), "not noticed within {NOTICED_WITHIN} seeds: {missed:?}");
}

#[test]
fn a_failing_plan_is_cut_down_and_still_fails() {
    mutation::set(Some(mutation::Mutation::SkipPreserve));
    let failing = (1..1_000).map(generate::plan).find(|plan| run(plan, false).broken.is_some());
    let plan = failing.expect("a seed that fails");
    let small = shrink(&plan).expect("it fails");
    let outcome = run(&small, true);
    mutation::set(None);
    assert!(outcome.broken.is_some() && !outcome.story.is_empty());
    assert!(small.events.len() <= 6, "{} of {} events are left", small.events.len(), plan.events.len());
}
