//! The pair under random schedules: what replication promises, checked byte by byte.

use super::super::{Epoch, Generation};
use super::pair::{BLOCKS, Pair};
use super::*;

/// Schedules of each kind; a failing one is named by its seed.
pub const SEEDS: u64 = 400;

fn random_write(pair: &mut Pair) {
    let blocks = 1 + pair.rng.below(5) as u32;
    // A small part of the volume, around the border of its two stripes, so that writes collide.
    let lba = match pair.rng.below(2) {
        0 => pair.rng.below(16) as u64,
        _ => 64 + pair.rng.below(16) as u64,
    };
    let byte = pair.rng.below(127) as u8;
    pair.write(lba, blocks, byte);
}

pub fn running(seed: u64, ack: AckMode, limit: usize) -> Pair {
    running_with_blocks(seed, ack, limit, BLOCKS)
}

pub fn running_with_blocks(seed: u64, ack: AckMode, limit: usize, blocks: u64) -> Pair {
    let mut pair = Pair::with_blocks(seed, ack, limit, blocks);
    pair.with_primary_group(|group, out| group.start(1, SyncMode::None, 1000, out));
    pair.settle();
    assert_eq!(pair.replies.remove(&1), Some(Ok(Success::Done)));
    assert_eq!(pair.primary_group.state(), PrimaryState::Running);
    assert_eq!(pair.secondary_group.state(), SecondaryState::Following);
    pair
}

pub fn load(pair: &mut Pair, writes: usize) {
    for _ in 0..writes {
        match pair.rng.below(10) {
            0 => {
                let reactor = pair.rng.below(2);
                pair.flush(reactor);
            }
            _ => random_write(pair),
        }
        let steps = pair.rng.below(12);
        pair.run(steps);
    }
}

pub fn checkpoint(pair: &mut Pair, command: u64) {
    pair.with_primary_group(|group, out| group.do_checkpoint(command, None, out));
}

#[test]
fn after_every_commit_the_view_is_the_primary_at_the_cut() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 1000);
        for round in 0..4 {
            load(&mut pair, 12);
            checkpoint(&mut pair, 100 + round);
            load(&mut pair, 12);
            pair.settle();
            assert!(pair.replies[&(100 + round)].is_ok(), "seed {seed}: {:?}", pair.replies);
            let committed = pair.secondary_group.record().committed;
            assert_eq!(committed, pair.primary_group.record().committed);
            let expected = pair.content_at(committed);
            assert_eq!(pair.view(), Some(expected), "seed {seed} round {round}");
        }
        assert!(pair.is_idle(), "seed {seed}: every write was answered");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    }
}

#[test]
fn the_secondarys_own_writes_are_seen_by_it_alone_and_dropped_by_the_next_checkpoint() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Received, 1000);
        for round in 0..3 {
            load(&mut pair, 8);
            let (lba, byte) = (pair.rng.below(12) as u64, 0xA0 + round as u8);
            let token = pair.own_write(lba, 3, byte);
            load(&mut pair, 8);
            pair.settle();
            assert_eq!(pair.own_replies.remove(&token), Some(Ok(())));
            pair.note_own(lba, 3, byte);
            let expected = pair.content_with_own(pair.secondary_group.record().committed);
            assert_eq!(pair.view(), Some(expected), "seed {seed} round {round}");
            checkpoint(&mut pair, 100 + round);
            pair.settle();
            let expected = pair.content_at(pair.secondary_group.record().committed);
            assert_eq!(pair.view(), Some(expected), "seed {seed} round {round}");
        }
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    }
}

#[test]
fn an_aborted_epoch_is_never_committed_alone_and_its_number_is_burned() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 1000);
        let base = pair.secondary_group.record().committed;
        load(&mut pair, 8);
        pair.with_primary_group(|group, out| group.prepare(1, None, out));
        load(&mut pair, 8);
        pair.settle();
        let Some(Ok(Success::Epoch(epoch))) = pair.replies.remove(&1) else { panic!("seed {seed}") };
        pair.with_primary_group(|group, out| group.abort(2, epoch, out));
        load(&mut pair, 8);
        pair.settle();
        let expected = pair.content_at(base);
        assert_eq!(pair.view(), Some(expected), "seed {seed}");
        pair.with_primary_group(|group, out| group.commit(3, epoch, out));
        assert_eq!(pair.replies[&3], Err(GroupError::WrongEpoch(epoch)));
        checkpoint(&mut pair, 4);
        pair.settle();
        let committed = pair.secondary_group.record().committed;
        assert!(committed > epoch, "seed {seed}");
        let expected = pair.content_at(committed);
        assert_eq!(pair.view(), Some(expected), "seed {seed}");
    }
}

#[test]
fn a_failover_at_any_moment_keeps_what_was_promised() {
    for seed in 0..SEEDS * 3 {
        let keep = [Keep::Latest, Keep::Checkpoint, Keep::Overlay][(seed % 3) as usize];
        let ack = [AckMode::Applied, AckMode::Received][(seed % 2) as usize];
        let mut pair = running(seed, ack, 1000);
        load(&mut pair, 10);
        checkpoint(&mut pair, 100);
        load(&mut pair, 5);
        pair.settle();
        let token = pair.own_write(5, 3, 0xA5);
        pair.settle();
        assert_eq!(pair.own_replies.remove(&token), Some(Ok(())));
        pair.note_own(5, 3, 0xA5);
        load(&mut pair, 10);
        // The primary node is gone; what was on the way with it. Sometimes in the middle of a checkpoint.
        if seed % 5 == 0 {
            checkpoint(&mut pair, 101);
            let steps = pair.rng.below(60);
            pair.run(steps);
        }
        pair.kill_primary();
        let steps = pair.rng.below(20);
        pair.run(steps);
        pair.with_secondary_group(|group, out| group.failover(102, keep, out));
        let before = pair.secondary_group.record();
        let steps = pair.rng.below(30);
        pair.run(steps);
        pair.settle();
        assert_eq!(
            pair.replies.get(&102),
            Some(&Ok(Success::Generation(Generation(2)))),
            "seed {seed} {before:?}"
        );
        let committed = pair.secondary_group.record().committed;
        let view = pair.view().expect("a promoted node has a view");
        match keep {
            Keep::Latest => assert_eq!(pair.has_all_acknowledged(&view), Ok(()), "seed {seed}"),
            Keep::Checkpoint => assert_eq!(view, pair.content_at(committed), "seed {seed}"),
            Keep::Overlay => assert_eq!(view, pair.content_with_own(committed), "seed {seed}"),
        }
        assert_eq!(pair.secondary_group.state(), SecondaryState::Standalone, "seed {seed}");
        assert_eq!(view, pair.secondary_disk.0, "seed {seed}: what is served is on the disk in the end");
        assert!(!pair.secondary_group.record().inconsistent, "seed {seed}: and the record says so");
    }
}

#[test]
fn a_promoted_node_serves_writes_while_its_buffer_drains() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 1000);
        load(&mut pair, 25);
        pair.kill_primary();
        pair.with_secondary_group(|group, out| group.failover(1, Keep::Checkpoint, out));
        while !pair.replies.contains_key(&1) {
            pair.step();
        }
        let committed = pair.secondary_group.record().committed;
        let mut expected = pair.content_at(committed);
        for round in 0..6 {
            let (lba, blocks, byte) = (pair.rng.below(14) as u64, 1 + pair.rng.below(4) as u32, 0xC0 + round);
            let token = pair.own_write(lba, blocks, byte);
            while !pair.own_replies.contains_key(&token) {
                pair.step();
            }
            expected[lba as usize..lba as usize + blocks as usize].fill(byte);
            assert_eq!(pair.view().as_ref(), Some(&expected), "seed {seed} round {round}");
        }
        pair.settle();
        assert_eq!(pair.secondary_disk.0, expected, "seed {seed}");
    }
}

#[test]
fn a_node_that_restarts_promises_nothing_that_only_its_memory_held() {
    let mut pair = running(3, AckMode::Applied, 1000);
    load(&mut pair, 10);
    checkpoint(&mut pair, 100);
    load(&mut pair, 10);
    pair.settle();
    // As a follower: the disk is ahead of the checkpoint, and the originals are gone.
    pair.restart_secondary_group();
    pair.with_secondary_group(|group, out| group.failover(1, Keep::Checkpoint, out));
    assert_eq!(pair.replies.remove(&1), Some(Err(GroupError::ViewLost)));

    // In the middle of a drain: the disk is neither the one nor the other.
    let mut pair = running(4, AckMode::Applied, 1000);
    load(&mut pair, 30);
    pair.kill_primary();
    pair.with_secondary_group(|group, out| group.failover(1, Keep::Checkpoint, out));
    while !pair.replies.contains_key(&1) {
        pair.step();
    }
    assert_eq!(pair.secondary_group.state(), SecondaryState::Draining);
    pair.restart_secondary_group();
    assert_eq!(pair.secondary_group.state(), SecondaryState::Syncing);
    pair.with_secondary_group(|group, out| group.failover(2, Keep::Latest, out));
    assert_eq!(pair.replies.remove(&2), Some(Err(GroupError::Inconsistent)));
}

#[test]
fn a_disk_that_hangs_for_ever_holds_up_neither_a_checkpoint_nor_a_failover() {
    for seed in 0..SEEDS * 2 {
        let keep = [Keep::Latest, Keep::Checkpoint][(seed % 2) as usize];
        let mut pair = running(seed, AckMode::Applied, 1000);
        load(&mut pair, 5);
        pair.hang = true;
        load(&mut pair, 15);
        checkpoint(&mut pair, 100);
        pair.run(2000);
        pair.expire(Peer::Heard);
        load(&mut pair, 10);
        pair.settle();
        if pair.replies.get(&100).is_some_and(Result::is_ok) {
            assert!(pair.is_idle(), "seed {seed}: pinned writes are acknowledged");
        }
        assert!(pair.replies.contains_key(&100), "seed {seed}");
        checkpoint(&mut pair, 101);
        pair.settle();
        assert!(pair.replies[&101].is_ok(), "seed {seed} {:?}", pair.replies);
        let committed = pair.secondary_group.record().committed;
        if seed % 4 < 2 {
            pair.heal();
            pair.settle();
            let expected = pair.content_at(committed);
            assert_eq!(pair.view(), Some(expected), "seed {seed}");
            assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}: the disk healed");
            continue;
        }
        load(&mut pair, 10);
        pair.settle();
        pair.kill_primary();
        pair.with_secondary_group(|group, out| group.failover(102, keep, out));
        pair.run(2000);
        assert!(pair.replies.get(&102).is_some_and(Result::is_ok), "seed {seed}");
        pair.heal();
        pair.settle();
        let view = pair.view().expect("a view");
        match keep {
            Keep::Checkpoint => assert_eq!(view, pair.content_at(committed), "seed {seed}"),
            _ => assert_eq!(pair.has_all_acknowledged(&view), Ok(()), "seed {seed}"),
        }
        assert_eq!(view, pair.secondary_disk.0, "seed {seed}");
    }
}

#[test]
fn after_a_lost_link_every_difference_is_marked_and_a_full_sync_removes_it() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 1000);
        load(&mut pair, 15);
        pair.cut_link();
        load(&mut pair, 15);
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}: the primary goes on alone");
        assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
        assert_eq!(pair.primary_group.state(), PrimaryState::ResyncRequired);
        pair.with_primary_group(|group, out| group.start(1, SyncMode::Full, 1000, out));
        load(&mut pair, 15);
        pair.settle();
        assert_eq!(pair.replies.get(&1), Some(&Ok(Success::Done)), "seed {seed}");
        assert_eq!(pair.primary_group.state(), PrimaryState::Running, "seed {seed} {:?}", pair.events);
        assert_eq!(pair.secondary_group.state(), SecondaryState::Following, "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        assert_eq!(pair.primary[0].dirty().bytes() + pair.primary[1].dirty().bytes(), 0, "seed {seed}");
        let expected = pair.content_at(pair.secondary_group.record().committed);
        assert_eq!(pair.view(), Some(expected), "seed {seed}");
    }
}

#[test]
fn what_was_written_before_the_session_stood_is_copied_even_if_the_disks_were_equal() {
    for seed in 0..SEEDS {
        let mut pair = Pair::new(seed, AckMode::Applied, 1000);
        load(&mut pair, 5);
        pair.with_primary_group(|group, out| group.start(1, SyncMode::None, 1000, out));
        load(&mut pair, 15);
        pair.settle();
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        checkpoint(&mut pair, 2);
        pair.settle();
        assert_eq!(pair.view().as_ref(), Some(&pair.primary_disk.0), "seed {seed}");
    }
}

#[test]
fn an_interrupted_full_sync_leaves_an_inconsistent_node_that_refuses_promotion() {
    for seed in 0..SEEDS {
        let mut pair = Pair::new(seed, AckMode::Applied, 1000);
        pair.with_primary_group(|group, out| group.start(1, SyncMode::Full, 1000, out));
        let mut budget = 10_000;
        while pair.secondary_group.state() != SecondaryState::Syncing && budget > 0 {
            pair.step();
            budget -= 1;
        }
        let steps = pair.rng.below(20);
        pair.run(steps);
        pair.cut_link();
        pair.settle();
        for keep in [Keep::Latest, Keep::Checkpoint, Keep::Overlay] {
            pair.with_secondary_group(|group, out| group.failover(keep as u64 + 10, keep, out));
            assert_eq!(pair.replies[&(keep as u64 + 10)], Err(GroupError::Inconsistent), "seed {seed}");
        }
    }
}

#[test]
fn a_full_buffer_gives_up_the_roll_back_says_so_and_recovers_with_the_next_checkpoint() {
    let mut overruns = 0;
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 6);
        load(&mut pair, 30);
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}: the primary is not held up");
        let lost = pair.events.iter().any(|event| matches!(event, GroupEvent::BufferOverrun(_)));
        assert_eq!(lost, !pair.secondary_group.has_view(), "seed {seed}");
        if lost {
            overruns += 1;
            assert_eq!(pair.view(), None, "seed {seed}: no view is better than a wrong one");
            pair.with_secondary_group(|group, out| group.failover(9, Keep::Checkpoint, out));
            assert_eq!(pair.replies.remove(&9), Some(Err(GroupError::ViewLost)));
        }
        checkpoint(&mut pair, 100);
        pair.settle();
        assert!(pair.replies[&100].is_ok(), "seed {seed}");
        let expected = pair.content_at(pair.secondary_group.record().committed);
        assert_eq!(pair.view(), Some(expected), "seed {seed}");
    }
    assert!(overruns > SEEDS / 2, "the limit was meant to be met: {overruns}");
}

#[test]
fn a_peer_that_is_silent_costs_a_deadline_and_an_error_that_names_it() {
    for (peer, error) in
        [(Peer::Silent, GroupError::HungLink(Epoch(1))), (Peer::Heard, GroupError::HungPeer(Epoch(1)))]
    {
        let mut pair = running(7, AckMode::Received, 1000);
        pair.with_primary_group(|group, out| {
            group.do_checkpoint(100, None, out);
            // Nothing that was sent arrives.
            for _ in 0..2 {
                group.frozen(&mut Vec::new());
            }
            for _ in 0..2 {
                group.stamped(Vec::new(), &mut Vec::new());
            }
        });
        pair.expire(peer);
        assert_eq!(pair.replies.get(&100), Some(&Err(error)));
        assert_eq!(pair.primary_group.open_epoch(), Epoch(2), "its number is burned");
    }
}

#[test]
fn a_failover_for_which_the_buffer_runs_full_is_refused_before_anything_is_durable() {
    let (mut refused, mut done) = (0, 0);
    for seed in 0..SEEDS * 4 {
        let mut pair = running(seed, AckMode::Applied, 8);
        let generation = pair.secondary_group.record().generation;
        load(&mut pair, 12);
        let steps = pair.rng.below(60);
        pair.run(steps);
        pair.kill_primary();
        let committed = pair.secondary_group.record().committed;
        let keep = if seed % 2 == 0 { Keep::Checkpoint } else { Keep::Overlay };
        pair.with_secondary_group(|group, out| group.failover(9, keep, out));
        pair.settle();
        if pair.replies[&9].is_ok() {
            done += 1;
            assert_eq!(pair.secondary_group.state(), SecondaryState::Standalone, "seed {seed}");
            let expected = match keep {
                Keep::Overlay => pair.content_with_own(committed),
                _ => pair.content_at(committed),
            };
            assert_eq!(pair.secondary_disk.0, expected, "seed {seed}");
            continue;
        }
        refused += 1;
        let record = pair.secondary_group.record();
        assert!(!record.promoted && record.generation == generation, "seed {seed}: {record:?}");
        pair.with_secondary_group(|group, out| group.failover(10, Keep::Latest, out));
        pair.tick();
        pair.settle();
        assert!(pair.replies[&10].is_ok(), "seed {seed}: {:?}", pair.replies[&10]);
        assert_eq!(pair.secondary_group.state(), SecondaryState::Standalone, "seed {seed}");
    }
    assert!(refused > 0 && done > 0, "both happen: {refused} and {done}");
}
