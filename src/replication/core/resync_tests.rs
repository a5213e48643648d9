//! A lost link that comes back: what changed meanwhile is copied, nothing else, and what was promised stays promised.

use super::super::{Generation, Lineage};
use super::pair::Pair;
use super::pair_tests::{SEEDS, checkpoint, load, running};
use super::*;

/// A pair whose link was lost at any moment, with writes before, meanwhile and, if any, until it is back.
fn lost(seed: u64, ack: AckMode) -> Pair {
    let mut pair = running(seed, ack, 1000);
    load(&mut pair, 10);
    checkpoint(&mut pair, 100);
    load(&mut pair, 10);
    pair.cut_link();
    load(&mut pair, 10);
    if seed.is_multiple_of(2) {
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}: the primary goes on alone");
        assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
    }
    assert_eq!(pair.primary_group.state(), PrimaryState::ResyncRequired);
    pair
}

fn assert_in_step(pair: &mut Pair, seed: u64) {
    assert_eq!(pair.primary_group.state(), PrimaryState::Running, "seed {seed} {:?}", pair.events);
    assert_eq!(pair.secondary_group.state(), SecondaryState::Following, "seed {seed}");
    assert!(!pair.secondary_group.record().inconsistent, "seed {seed}");
    assert!(pair.is_idle(), "seed {seed}: every write was answered");
    assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    assert_eq!(pair.marked(), 0, "seed {seed}");
    let expected = pair.content_at(pair.secondary_group.record().committed);
    assert_eq!(pair.view(), Some(expected), "seed {seed}");
}

#[test]
fn a_link_that_comes_back_brings_the_pair_in_step_by_copying_what_changed() {
    for seed in 0..SEEDS {
        let mut pair = lost(seed, [AckMode::Applied, AckMode::Received, AckMode::Local][(seed % 3) as usize]);
        pair.settle();
        let (marked, copied) = (pair.marked(), pair.copied);
        pair.mend_link();
        if seed.is_multiple_of(3) {
            load(&mut pair, 10);
        }
        pair.settle();
        assert_in_step(&mut pair, seed);
        if !seed.is_multiple_of(3) {
            assert_eq!(pair.copied - copied, marked, "seed {seed}: that and nothing else");
        }
        // And the pair goes on as before.
        load(&mut pair, 10);
        checkpoint(&mut pair, 101);
        pair.settle();
        assert!(pair.replies[&101].is_ok(), "seed {seed}");
        assert_in_step(&mut pair, seed);
    }
}

#[test]
fn a_resync_that_is_interrupted_again_and_again_goes_on_with_what_is_left() {
    for seed in 0..SEEDS {
        let mut pair = lost(seed, AckMode::Applied);
        let full = seed.is_multiple_of(4);
        if full {
            pair.with_primary_group(|group, out| group.start(7, SyncMode::Full, 1000, out));
        }
        for _ in 0..5 {
            pair.mend_link();
            let steps = pair.rng.below(120);
            pair.run(steps);
            load(&mut pair, 3);
            pair.cut_link();
            load(&mut pair, 2);
        }
        // A session may begin while what the one before had read is still on its way.
        if seed.is_multiple_of(3) {
            pair.settle();
            assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
        }
        let (marked, copied) = (pair.marked(), pair.copied);
        // A secondary that is recording the session before refuses the first attempt.
        for _ in 0..2 {
            pair.mend_link();
            pair.settle();
        }
        assert_in_step(&mut pair, seed);
        if seed.is_multiple_of(3) && pair.primary_group.record().lineage == Lineage(1) {
            assert!(pair.copied - copied <= marked, "seed {seed}: only what was left");
        }
    }
}

#[test]
fn while_it_runs_the_last_checkpoint_stands_and_a_failover_keeps_it() {
    let mut syncing = 0;
    for seed in 0..SEEDS * 2 {
        let keep = [Keep::Checkpoint, Keep::Overlay][(seed % 2) as usize];
        let mut pair = lost(seed, AckMode::Applied);
        let committed = pair.secondary_group.record().committed;
        pair.settle();
        let token = pair.own_write(5, 3, 0xA5);
        pair.settle();
        assert_eq!(pair.own_replies.remove(&token), Some(Ok(())), "seed {seed}: the view goes on");
        pair.note_own(5, 3, 0xA5);
        pair.mend_link();
        let steps = pair.rng.below(200);
        pair.run(steps);
        if seed.is_multiple_of(3) {
            pair.cut_link();
            pair.mend_link();
            let steps = pair.rng.below(100);
            pair.run(steps);
        }
        if pair.secondary_group.state() != SecondaryState::Syncing
            || pair.secondary_group.record().committed != committed
        {
            continue;
        }
        syncing += 1;
        pair.kill_primary();
        if seed.is_multiple_of(5) {
            pair.settle();
            let now = pair.secondary_group.record().committed;
            let expected = if now == committed { pair.content_with_own(now) } else { pair.content_at(now) };
            assert_eq!(pair.view(), Some(expected), "seed {seed}: the view while it is interrupted");
            if now != committed {
                continue;
            }
        }
        pair.with_secondary_group(|group, out| group.failover(8, Keep::Latest, out));
        assert_eq!(
            pair.replies.remove(&8),
            Some(Err(GroupError::Inconsistent)),
            "seed {seed}: a part of both"
        );
        pair.with_secondary_group(|group, out| group.failover(9, keep, out));
        pair.settle();
        // A commit that was being recorded when the failover came is what it keeps then.
        let committed_now = pair.secondary_group.record().committed;
        assert_eq!(pair.replies.get(&9), Some(&Ok(Success::Generation(Generation(2)))), "seed {seed}");
        let expected = match keep {
            Keep::Overlay if committed_now == committed => pair.content_with_own(committed),
            _ => pair.content_at(committed_now),
        };
        assert_eq!(pair.view(), Some(expected.clone()), "seed {seed}");
        assert_eq!(pair.secondary_disk.0, expected, "seed {seed}");
    }
    assert!(syncing > SEEDS / 4, "most were meant to be caught in the middle: {syncing}");
}

#[test]
fn a_secondary_that_forgot_what_it_followed_is_not_brought_in_step_by_a_map() {
    for seed in 0..20 {
        let mut pair = lost(seed, AckMode::Applied);
        pair.settle();
        pair.restart_secondary_group();
        pair.mend_link();
        pair.settle();
        let failed = GroupEvent::StartFailed(GroupError::UnknownPeer);
        assert!(pair.events.contains(&failed), "seed {seed} {:?}", pair.events);
        assert!(!pair.primary_group.wants_peer());
        pair.with_primary_group(|group, out| group.start(7, SyncMode::Full, 1000, out));
        pair.settle();
        assert_in_step(&mut pair, seed);
    }
}

#[test]
fn a_resync_ends_by_stopping_and_goes_on_by_starting() {
    for seed in 0..SEEDS / 4 {
        let mut pair = lost(seed, AckMode::Applied);
        pair.settle();
        pair.allow_copy(Some(0));
        pair.mend_link();
        pair.settle();
        assert_eq!(pair.primary_group.state(), PrimaryState::Syncing, "seed {seed}");
        pair.with_primary_group(|group, out| group.stop(7, out));
        pair.settle();
        assert_eq!(pair.primary_group.state(), PrimaryState::Stopped);
        pair.mend_link();
        assert!(!pair.connected, "seed {seed}: it is stopped");
        assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
        pair.allow_copy(None);
        pair.with_primary_group(|group, out| group.start(8, SyncMode::Changed, 1000, out));
        pair.settle();
        assert_in_step(&mut pair, seed);
    }
}

#[test]
fn an_allowance_bounds_what_is_copied_until_the_next_one() {
    for seed in 0..SEEDS / 4 {
        let mut pair = lost(seed, AckMode::Applied);
        pair.settle();
        let marked = pair.marked();
        pair.allow_copy(Some(0));
        pair.mend_link();
        pair.settle();
        assert_eq!(pair.primary_group.state(), PrimaryState::Syncing, "seed {seed}");
        let mut ticks = 0;
        while pair.primary_group.state() == PrimaryState::Syncing {
            let copied = pair.copied;
            pair.allow_copy(Some(1));
            pair.settle();
            // A piece has four blocks at most, and is paid for later; there are two reactors.
            assert!(pair.copied - copied <= 8, "seed {seed}");
            ticks += 1;
            assert!(ticks < 1000, "seed {seed}");
        }
        assert!(ticks * 2 + 6 >= marked, "seed {seed}: {marked} blocks in {ticks} ticks");
        assert_in_step(&mut pair, seed);
    }
}

#[test]
fn a_buffer_that_is_full_during_a_resync_gives_up_the_roll_back_and_the_resync_ends_all_the_same() {
    let mut lost_view = 0;
    for seed in 0..SEEDS / 2 {
        let mut pair = running(seed, AckMode::Applied, 8);
        load(&mut pair, 3);
        checkpoint(&mut pair, 100);
        pair.settle();
        pair.cut_link();
        load(&mut pair, 40);
        pair.settle();
        pair.allow_copy(Some(0));
        pair.mend_link();
        pair.settle();
        for _ in 0..200 {
            pair.allow_copy(Some(1));
            pair.settle();
            if pair.primary_group.state() == PrimaryState::Syncing && !pair.secondary_group.has_view() {
                lost_view += 1;
                pair.with_secondary_group(|group, out| group.failover(9, Keep::Checkpoint, out));
                assert_eq!(pair.replies.remove(&9), Some(Err(GroupError::ViewLost)), "seed {seed}");
                break;
            }
        }
        pair.allow_copy(None);
        pair.settle();
        assert_in_step(&mut pair, seed);
    }
    assert!(lost_view > SEEDS / 8, "the limit was meant to be met: {lost_view}");
}

#[test]
fn a_secondary_that_loses_power_gets_what_its_disk_may_have_lost_and_no_more_than_those_stripes() {
    let mut less = 0;
    for seed in 0..SEEDS * 2 {
        let mut pair = lost(seed, [AckMode::Applied, AckMode::Received, AckMode::Local][(seed % 3) as usize]);
        // A session of its own before the loss, or in the middle of getting in step.
        if !seed.is_multiple_of(5) {
            pair.mend_link();
            let steps = pair.rng.below(300);
            pair.run(steps);
            load(&mut pair, 6);
        }
        if seed.is_multiple_of(7) {
            (0..2).for_each(|reactor| pair.flush(reactor));
            pair.settle();
        }
        pair.restart_secondary();
        load(&mut pair, 3);
        if seed.is_multiple_of(2) {
            pair.mend_link();
            let steps = pair.rng.below(40);
            pair.run(steps);
            pair.restart_secondary();
        }
        assert!(!pair.secondary_group.has_view(), "seed {seed}: the buffer is gone");
        let copied = pair.copied;
        pair.mend_link();
        pair.settle();
        assert_in_step(&mut pair, seed);
        less += u64::from(pair.copied - copied < pair.primary_sizes.volume);
    }
    assert!(less > SEEDS / 10, "flushes were meant to spare something: {less}");
}
