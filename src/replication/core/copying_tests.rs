//! Copies that ask by checksum first: only what differs is sent, whatever interrupts them, and what was equal is durable.

use super::pair::{BLOCK_BYTES, BLOCKS, Pair};
use super::pair_tests::{SEEDS, load, running};
use super::*;

fn comparing(mut pair: Pair) -> Pair {
    pair.primary.iter_mut().for_each(|machine| machine.set_compares(true));
    pair
}

fn equal_blocks(pair: &Pair) -> u64 {
    pair.primary.iter().map(|machine| machine.equal_bytes() / BLOCK_BYTES).sum()
}

fn start(pair: &mut Pair, sync: SyncMode) {
    pair.with_primary_group(|group, out| group.start(1, sync, 1000, out));
}

fn assert_in_step(pair: &mut Pair, seed: u64) {
    assert_eq!(pair.primary_group.state(), PrimaryState::Running, "seed {seed} {:?}", pair.events);
    assert!(pair.is_idle() && pair.marked() == 0, "seed {seed}");
    assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    let expected = pair.content_at(pair.secondary_group.record().committed);
    assert_eq!(pair.view(), Some(expected), "seed {seed}");
}

#[test]
fn of_equal_disks_nothing_is_sent_and_what_was_found_equal_is_flushed_before_the_record_counts_on_it() {
    for seed in 0..SEEDS / 8 {
        let mut pair = comparing(Pair::new(seed, AckMode::Applied, 1000));
        // The disk has it in its cache alone.
        pair.unflushed = true;
        start(&mut pair, SyncMode::Full);
        pair.settle();
        assert_eq!((equal_blocks(&pair), pair.mismatches), (BLOCKS, 0), "seed {seed}");
        assert!(!pair.unflushed && !pair.secondary_group.record().inconsistent, "seed {seed}");
        assert_in_step(&mut pair, seed);
    }
}

#[test]
fn what_differs_is_found_and_sent_while_hosts_write() {
    let mut mismatches = 0;
    for seed in 0..SEEDS {
        let mut pair = comparing(Pair::new(seed, AckMode::Applied, 1000));
        for _ in 0..seed % 20 {
            let lba = pair.rng.below(BLOCKS as usize) as u64;
            pair.rot(lba);
        }
        start(&mut pair, SyncMode::Full);
        load(&mut pair, 15);
        pair.settle();
        assert_in_step(&mut pair, seed);
        mismatches += pair.mismatches;
    }
    assert!(mismatches > 1000, "{mismatches}");
}

#[test]
fn an_interrupted_comparison_leaves_marked_what_may_differ() {
    for seed in 0..SEEDS * 2 {
        let mut pair = comparing(running(seed, AckMode::Applied, 1000));
        load(&mut pair, 5);
        pair.cut_link();
        load(&mut pair, 20);
        pair.mend_link();
        for _ in 0..3 {
            // What is allowed is used up by comparing, so that what differs has to wait.
            for _ in 0..4 {
                let (blocks, steps) = (1 + pair.rng.below(4) as u64, pair.rng.below(60));
                pair.allow_copy(Some(blocks));
                pair.run(steps);
            }
            pair.cut_link();
            if seed.is_multiple_of(2) {
                pair.settle();
                assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
            }
            pair.mend_link();
        }
        pair.allow_copy(None);
        // A session that began in the middle of the one before may have been refused; the shell tries again.
        for _ in 0..2 {
            pair.settle();
            pair.mend_link();
        }
        pair.settle();
        assert_in_step(&mut pair, seed);
    }
}

#[test]
fn zeroes_are_sent_without_content() {
    let mut pair = Pair::new(1, AckMode::Applied, 1000);
    pair.rot(5);
    pair.write(0, 8, 0);
    pair.write(64, 8, 0);
    start(&mut pair, SyncMode::Full);
    pair.settle();
    assert_in_step(&mut pair, 1);
    assert!(pair.zeroes >= 16, "{}", pair.zeroes);
}
