//! Earlier checkpoints under random schedules: every one that is listed is shown byte for byte, and gone back to exactly.

use super::super::Epoch;
use super::pair::Pair;
use super::pair_tests::{checkpoint, load, running, running_with_blocks};
use super::*;
use std::sync::atomic::{AtomicU64, Ordering};

const EPOCHS: u32 = 4;
/// Commands of checkpoints have numbers of their own.
static NEXT: AtomicU64 = AtomicU64::new(10_000);
/// Each looks at the whole volume hundreds of times.
const SEEDS: u64 = super::pair_tests::SEEDS / 5;

fn with_history(seed: u64, ack: AckMode, epochs: u32) -> Pair {
    let mut pair = running(seed, ack, 1000);
    pair.with_secondary_group(|group, out| group.set_history(epochs, u64::MAX, out));
    pair.settle();
    pair
}

fn kept(pair: &Pair) -> Vec<Epoch> {
    pair.secondary_group.history().iter().map(|kept| kept.epoch).collect()
}

/// Every epoch that is listed is what the primary had at its cut, whatever is under way.
fn assert_shown(pair: &mut Pair, what: &str) {
    for epoch in kept(pair) {
        let expected = pair.content_at(epoch);
        let shown = pair.past(epoch);
        // A read may hang with the disk, or the epoch be given up meanwhile; then the list says so.
        if shown.is_some() || (!pair.hang && kept(pair).contains(&epoch)) {
            assert_eq!(shown.as_ref(), Some(&expected), "{what}: epoch {epoch}");
        }
    }
}

fn own_writes(pair: &mut Pair, count: usize) {
    for _ in 0..count {
        let (lba, byte) = (pair.rng.below(12) as u64, 0xA0 + pair.rng.below(16) as u8);
        let token = pair.own_write(lba, 3, byte);
        let steps = pair.rng.below(20);
        pair.run(steps);
        pair.own_replies.remove(&token);
    }
}

/// Checkpoints, aborts, own writes, a disk that hangs for a while; ends at rest with the disk healed.
fn history(pair: &mut Pair, rounds: u64, hangs: bool, what: &str) {
    for round in 0..rounds {
        pair.hang = hangs && round % 2 == 1;
        load(pair, 8);
        own_writes(pair, 1);
        let command = NEXT.fetch_add(4, Ordering::Relaxed);
        match pair.rng.below(5) {
            0 => {
                pair.with_primary_group(|group, out| group.prepare(command, None, out));
                pair.settle();
                if let Some(&Ok(Success::Epoch(epoch))) = pair.replies.get(&command) {
                    pair.with_primary_group(|group, out| group.abort(command + 1, epoch, out));
                }
            }
            _ => checkpoint(pair, command),
        }
        load(pair, 4);
        assert_shown(pair, &format!("{what} round {round}, on its way"));
        if pair.hang {
            pair.run(2000);
            pair.expire(Peer::Heard);
            pair.settle();
            // Those that hang do so on; what is read from now on does not.
            pair.hang = false;
            assert_shown(pair, &format!("{what} round {round}, hanging"));
            checkpoint(pair, command + 2);
            pair.settle();
            assert_shown(pair, &format!("{what} round {round}, held over a commit"));
            // What was held over the commit of its epoch goes to the disk now.
            pair.heal();
        }
        pair.settle();
        assert_shown(pair, &format!("{what} round {round}"));
    }
}

#[test]
fn every_kept_checkpoint_is_shown_as_the_primary_was_at_its_cut() {
    let mut most = 0;
    for seed in 0..SEEDS {
        let ack = [AckMode::Applied, AckMode::Received][(seed % 2) as usize];
        let mut pair = with_history(seed, ack, EPOCHS);
        history(&mut pair, 8, seed % 3 == 0, &format!("seed {seed}"));
        let kept = kept(&pair);
        assert_eq!(kept.last(), Some(&pair.secondary_group.record().committed), "seed {seed}");
        assert!(kept.len() <= EPOCHS as usize + 1, "seed {seed}");
        assert!(!pair.events.iter().any(|e| matches!(e, GroupEvent::HistoryLost(_))), "seed {seed}");
        most = most.max(kept.len());
        let expected = pair.content_at(pair.secondary_group.record().committed);
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        checkpoint(&mut pair, 5000);
        pair.settle();
        assert_ne!(pair.view(), None);
        drop(expected);
    }
    assert_eq!(most, EPOCHS as usize + 1);
}

#[test]
fn what_is_kept_of_earlier_checkpoints_survives_a_lost_link_and_ends_with_a_full_sync() {
    for seed in 0..SEEDS {
        let mut pair = with_history(seed, AckMode::Applied, EPOCHS);
        history(&mut pair, 4, false, &format!("seed {seed}"));
        load(&mut pair, 5);
        pair.cut_link();
        load(&mut pair, 10);
        let before = kept(&pair);
        assert_shown(&mut pair, &format!("seed {seed}, without a link"));
        if seed % 4 == 0 {
            pair.with_primary_group(|group, out| group.start(1, SyncMode::Full, 1000, out));
        }
        pair.mend_link();
        load(&mut pair, 8);
        assert_shown(&mut pair, &format!("seed {seed}, copying"));
        pair.settle();
        assert_eq!(pair.secondary_group.state(), SecondaryState::Following, "seed {seed}");
        assert_shown(&mut pair, &format!("seed {seed}, in step"));
        let after = kept(&pair);
        match seed % 4 {
            0 => assert_eq!(after.len(), 1, "seed {seed}: nothing leads back over a full sync"),
            _ => assert!(
                before[before.len() - 1] == after[after.len() - 2],
                "seed {seed}: {before:?} {after:?}"
            ),
        }
        history(&mut pair, 3, false, &format!("seed {seed}, after"));
    }
}

#[test]
fn a_volume_that_grows_has_its_new_end_in_every_kept_checkpoint() {
    for seed in 0..SEEDS {
        let mut pair = running_with_blocks(seed, AckMode::Applied, 1000, 101);
        pair.with_secondary_group(|group, out| group.set_history(EPOCHS, u64::MAX, out));
        checkpoint(&mut pair, 9);
        pair.settle();
        history(&mut pair, 3, false, &format!("seed {seed}"));
        (0..3).for_each(|byte| {
            pair.write(98, 3, byte + 1);
        });
        checkpoint(&mut pair, 10);
        pair.write(99, 2, 77);
        pair.settle();
        pair.grow_disk(true, 127, 0x33);
        pair.grow_disk(false, 127, 0x55);
        load(&mut pair, 5);
        pair.settle();
        assert_eq!(pair.secondary_sizes.volume, 127, "seed {seed}");
        pair.write(99, 8, 78);
        pair.settle();
        assert!(kept(&pair).len() > 1);
        assert_shown(&mut pair, &format!("seed {seed}"));
    }
}

fn roll_back(pair: &mut Pair, command: u64, epoch: Epoch) -> Option<Result<Success, GroupError>> {
    pair.with_secondary_group(|group, out| group.roll_back(command, epoch, out));
    let mut budget = 10_000;
    while !pair.replies.contains_key(&command) && budget > 0 && pair.step() {
        budget -= 1;
    }
    pair.replies.remove(&command)
}

#[test]
fn a_secondary_without_a_session_goes_back_to_any_kept_checkpoint_exactly() {
    let mut refused = 0;
    for seed in 0..SEEDS * 2 {
        let what = format!("seed {seed}");
        let mut pair = with_history(seed, AckMode::Applied, EPOCHS);
        history(&mut pair, 6, seed % 3 == 0, &what);
        pair.hang = seed % 3 == 1;
        load(&mut pair, 8);
        let first = kept(&pair)[0];
        assert!(matches!(roll_back(&mut pair, 1, first), Some(Err(GroupError::NotStopped(_)))), "{what}");
        match seed % 2 {
            0 => pair.with_secondary_group(|group, out| group.stop(2, out)),
            _ => pair.kill_primary(),
        }
        pair.kill_primary();
        own_writes(&mut pair, 2);
        let state = pair.secondary_group.state();
        assert_eq!(
            roll_back(&mut pair, 3, Epoch(9999)),
            Some(Err(GroupError::NotKept(Epoch(9999)))),
            "{what}"
        );
        let all = kept(&pair);
        let epoch = all[pair.rng.below(all.len())];
        let expected = pair.content_at(epoch);
        assert_eq!(roll_back(&mut pair, 4, epoch), Some(Ok(Success::Epoch(epoch))), "{what}");
        assert!(pair.secondary_group.record().inconsistent || pair.secondary_disk.0 == expected, "{what}");
        // Nobody writes before everything is back, and whoever looks sees the epoch.
        let token = pair.own_write(3, 4, 0xEE);
        match pair.own_replies.remove(&token) {
            Some(reply) => assert_eq!(reply, Err(Refusal::Stopped), "{what}"),
            None => continue,
        }
        refused += 1;
        let shown = pair.view();
        assert!(shown.as_ref() == Some(&expected) || pair.hang && shown.is_none(), "{what}: at once");
        pair.run(pair.secondary_disk.0.len() / 16);
        assert_shown(&mut pair, &what);
        pair.heal();
        pair.settle();
        assert_eq!(pair.secondary_disk.0, expected, "{what}: on the disk in the end");
        let record = pair.secondary_group.record();
        assert_eq!((record.committed, record.inconsistent), (epoch, false), "{what}");
        assert!(!record.lineage.is_shared_with(record.lineage), "{what}: nobody knows what it lacks");
        assert_eq!(pair.secondary_group.state(), state, "{what}");
        assert_eq!(kept(&pair).last(), Some(&epoch), "{what}");
        assert!(!pair.unflushed, "{what}: durable before the record says so");
        // And further back, if there is more.
        let further = kept(&pair)[0];
        assert_eq!(roll_back(&mut pair, 5, further), Some(Ok(Success::Epoch(further))), "{what}");
        pair.settle();
        assert_eq!(pair.secondary_disk.0, pair.content_at(further), "{what}");
        if state == SecondaryState::PrimaryLost {
            pair.with_secondary_group(|group, out| group.failover(6, Keep::Latest, out));
            assert_eq!(pair.replies.remove(&6), Some(Err(GroupError::RolledBack)), "{what}");
            pair.with_secondary_group(|group, out| group.failover(7, Keep::Checkpoint, out));
            pair.settle();
            assert!(pair.replies[&7].is_ok(), "{what}");
            let expected = pair.content_at(further);
            assert_eq!(pair.view(), Some(expected), "{what}");
        }
    }
    assert!(refused > SEEDS, "the writes were meant to come meanwhile: {refused}");
}

#[test]
fn a_node_that_took_over_shows_and_goes_back_to_checkpoints_whatever_its_hosts_wrote() {
    let mut lost = 0;
    for seed in 0..SEEDS * 2 {
        let what = format!("seed {seed}");
        let keep = [Keep::Latest, Keep::Checkpoint][(seed % 2) as usize];
        let mut pair = with_history(seed, AckMode::Applied, EPOCHS);
        if seed % 5 == 0 {
            // Little room: some of it is given up meanwhile.
            let limit = 1 + pair.rng.below(12);
            pair.secondary.iter_mut().for_each(|machine| machine.maps_mut().history_limit = limit);
        }
        history(&mut pair, 5, seed % 3 == 0, &what);
        load(&mut pair, 8);
        pair.kill_primary();
        pair.with_secondary_group(|group, out| group.failover(1, keep, out));
        while !pair.replies.contains_key(&1) {
            pair.step();
        }
        for round in 0..3 {
            own_writes(&mut pair, 4);
            assert_shown(&mut pair, &format!("{what}, drains and writes"));
            pair.settle();
            assert_eq!(pair.secondary_group.state(), SecondaryState::Standalone, "{what}");
            assert_shown(&mut pair, &format!("{what}, writes"));
            // Some writes are on their way.
            own_writes(&mut pair, 2);
            let Some(&epoch) = kept(&pair).get(pair.rng.below(3)).or(kept(&pair).first()) else {
                lost += 1;
                break;
            };
            let expected = pair.content_at(epoch);
            let outcome = roll_back(&mut pair, 10 + round, epoch);
            if !kept(&pair).contains(&epoch) {
                assert_eq!(outcome, Some(Err(GroupError::NotKept(epoch))), "{what}");
                lost += 1;
                break;
            }
            assert_eq!(outcome, Some(Ok(Success::Epoch(epoch))), "{what}");
            assert_eq!(pair.view().as_ref(), Some(&expected), "{what}: at once");
            if round == 1 {
                pair.settle();
                assert_eq!(pair.secondary_disk.0, expected, "{what}");
                assert!(!pair.secondary_group.record().inconsistent, "{what}");
            }
        }
    }
    assert!(
        lost > 10 && lost <= SEEDS * 2 / 5,
        "the small limits were meant to be met, and only those: {lost}"
    );
}

#[test]
fn a_failover_to_what_the_secondarys_own_vm_wrote_ends_the_history() {
    let mut pair = with_history(1, AckMode::Applied, EPOCHS);
    history(&mut pair, 4, false, "overlay");
    pair.kill_primary();
    pair.with_secondary_group(|group, out| group.failover(1, Keep::Overlay, out));
    pair.settle();
    assert_eq!(kept(&pair), []);
    assert!(pair.events.contains(&GroupEvent::HistoryLost(Epoch(u64::MAX))));
}

#[test]
fn an_original_that_finds_no_room_costs_the_earlier_checkpoints_and_never_the_last() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let mut pair = with_history(seed, AckMode::Applied, EPOCHS);
        history(&mut pair, 4, false, &format!("seed {seed}"));
        // What leads back is counted apart: the buffer is as empty as it is without.
        pair.secondary.iter_mut().for_each(|machine| machine.maps_mut().limit = 60);
        let full = |pair: &Pair| pair.secondary.iter().any(|machine| machine.maps().fullness() > 0);
        load(&mut pair, 40);
        pair.settle();
        assert!(full(&pair), "seed {seed}");
        checkpoint(&mut pair, 10);
        pair.settle();
        assert!(!full(&pair) && kept(&pair).len() > 1, "seed {seed}");
        // A write that is held over the commit of its epoch, with its original still to be read, finds no room then.
        pair.secondary.iter_mut().for_each(|machine| machine.maps_mut().history_limit = 0);
        history(&mut pair, 4, true, &format!("seed {seed}, no room"));
        let committed = pair.secondary_group.record().committed;
        assert_eq!(kept(&pair).last(), Some(&committed), "seed {seed}");
        let expected = pair.content_at(committed);
        pair.cut_link();
        pair.settle();
        assert_eq!(pair.past(committed), Some(expected), "seed {seed}");
        assert!(
            !pair.events.iter().any(|event| matches!(event, GroupEvent::BufferOverrun(_))),
            "seed {seed}"
        );
        lost += u64::from(pair.events.iter().any(|event| matches!(event, GroupEvent::HistoryLost(_))));
    }
    assert!(lost > 0, "that was meant to happen");
}

#[test]
fn a_record_that_cannot_be_written_leaves_everything_as_it_was() {
    let mut pair = with_history(3, AckMode::Applied, EPOCHS);
    history(&mut pair, 4, false, "record");
    load(&mut pair, 5);
    pair.kill_primary();
    pair.settle();
    let (before, disk, record) = (kept(&pair), pair.secondary_disk.clone(), pair.secondary_group.record());
    pair.failing_records = 1;
    assert_eq!(roll_back(&mut pair, 1, before[0]), Some(Err(GroupError::Metadata)));
    pair.settle();
    assert_eq!((kept(&pair), &pair.secondary_disk), (before.clone(), &disk));
    assert_eq!(pair.secondary_group.record(), record);
    assert_eq!(pair.secondary_group.state(), SecondaryState::PrimaryLost);
    // The last one cannot be written: it is tried again, and the record says inconsistent until then.
    pair.with_secondary_group(|group, out| group.roll_back(2, before[0], out));
    while !pair.replies.contains_key(&2) {
        pair.step();
    }
    pair.failing_records = 1;
    pair.settle();
    assert!(pair.secondary_group.record().inconsistent);
    assert_eq!(pair.secondary_group.state(), SecondaryState::RollingBack);
    pair.with_secondary_group(|group, out| group.failover(3, Keep::Checkpoint, out));
    assert!(matches!(pair.replies.remove(&3), Some(Err(GroupError::WrongState(_)))));
    pair.expire(Peer::Heard);
    pair.settle();
    assert!(!pair.secondary_group.record().inconsistent);
    assert_eq!(pair.secondary_group.state(), SecondaryState::PrimaryLost);
    assert!(pair.events.contains(&GroupEvent::RolledBack(before[0])));
}

#[test]
fn a_history_that_is_switched_on_begins_with_what_is_still_known() {
    for seed in 0..SEEDS {
        let what = format!("seed {seed}");
        let mut pair = running(seed, AckMode::Applied, 1000);
        pair.with_secondary_group(|group, out| group.set_history(EPOCHS, u64::MAX, out));
        assert!(kept(&pair).len() <= 1, "{what}");
        history(&mut pair, 3, false, &what);
        // A follower has its last checkpoint, and no more.
        pair.with_secondary_group(|group, out| group.set_history(0, u64::MAX, out));
        load(&mut pair, 6);
        assert_eq!(kept(&pair), [], "{what}");
        pair.with_secondary_group(|group, out| group.set_history(EPOCHS, u64::MAX, out));
        pair.settle();
        assert_eq!(kept(&pair), [pair.secondary_group.record().committed], "{what}");
        history(&mut pair, 2, false, &what);
        // A node that took over has nothing: its hosts may have overwritten anything.
        pair.kill_primary();
        let keep = [Keep::Latest, Keep::Checkpoint][(seed % 2) as usize];
        pair.with_secondary_group(|group, out| group.failover(1, keep, out));
        pair.settle();
        assert!(!kept(&pair).is_empty(), "{what}");
        pair.with_secondary_group(|group, out| group.set_history(0, u64::MAX, out));
        pair.settle();
        own_writes(&mut pair, 5);
        pair.with_secondary_group(|group, out| group.set_history(EPOCHS, u64::MAX, out));
        pair.settle();
        assert_eq!(kept(&pair), [], "{what}");
        let committed = pair.secondary_group.record().committed;
        assert_eq!(pair.past(committed), None, "{what}");
        assert_eq!(roll_back(&mut pair, 2, committed), Some(Err(GroupError::NotKept(committed))), "{what}");
    }
    // Nor has one that was restarted: no machine has anything.
    let mut pair = running(1, AckMode::Applied, 1000);
    history(&mut pair, 2, false, "restart");
    pair.restart_secondary_group();
    pair.with_secondary_group(|group, out| group.set_history(EPOCHS, u64::MAX, out));
    assert_eq!(kept(&pair), []);
}
