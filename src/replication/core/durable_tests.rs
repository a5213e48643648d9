//! What a record says of the disk is true after a loss of power, too.

use super::super::{Epoch, Generation, Lineage};
use super::pair::Pair;
use super::pair_tests::{SEEDS, checkpoint, load, running};
use super::*;

fn failed_over(seed: u64) -> Pair {
    let mut pair = running(seed, AckMode::Applied, 1000);
    load(&mut pair, 10);
    checkpoint(&mut pair, 100);
    pair.settle();
    load(&mut pair, 15);
    pair.kill_primary();
    pair.with_secondary_group(|group, out| group.failover(1, Keep::Checkpoint, out));
    while !pair.replies.contains_key(&1) {
        pair.step();
    }
    pair
}

#[test]
fn what_was_rolled_back_is_durable_before_the_record_says_so() {
    let mut wrote = 0;
    for seed in 0..SEEDS {
        let mut pair = failed_over(seed);
        while pair.secondary_group.record().inconsistent {
            wrote += usize::from(pair.unflushed);
            assert!(pair.step(), "seed {seed}: it ends consistent");
        }
        assert!(!pair.unflushed, "seed {seed}");
    }
    assert!(wrote > 0, "there was something to roll back");
}

#[test]
fn a_record_of_the_end_that_cannot_be_written_is_written_later() {
    for seed in 0..SEEDS {
        let mut pair = failed_over(seed);
        pair.failing_records = 2;
        for _ in 0..2 {
            pair.settle();
            assert!(pair.secondary_group.record().inconsistent, "seed {seed}");
            pair.expire(Peer::Heard);
        }
        pair.settle();
        assert!(!pair.secondary_group.record().inconsistent, "seed {seed}");
    }
}

#[test]
fn what_a_hung_disk_has_not_taken_is_not_drained() {
    let mut hung = 0;
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 1000);
        load(&mut pair, 5);
        pair.hang = true;
        load(&mut pair, 10);
        pair.settle();
        checkpoint(&mut pair, 100);
        pair.settle();
        pair.kill_primary();
        pair.with_secondary_group(|group, out| group.failover(1, Keep::Checkpoint, out));
        pair.settle();
        if pair.is_hung() {
            hung += 1;
            assert_ne!(pair.secondary_group.state(), SecondaryState::Standalone, "seed {seed}");
        }
        pair.heal();
        pair.settle();
        assert_eq!(pair.secondary_group.state(), SecondaryState::Standalone, "seed {seed}");
        assert!(!pair.secondary_group.record().inconsistent && !pair.unflushed, "seed {seed}");
    }
    assert!(hung > 0, "some disks hung");
}

#[test]
fn a_checkpoint_has_what_was_written_before_the_session() {
    for seed in 0..SEEDS {
        let mut pair = Pair::new(seed, AckMode::Applied, 1000);
        load(&mut pair, 10);
        pair.settle();
        pair.with_primary_group(|group, out| group.start(1, SyncMode::None, 1000, out));
        while !pair.replies.contains_key(&1) {
            pair.step();
        }
        checkpoint(&mut pair, 2);
        while !pair.replies.contains_key(&2) {
            assert!(pair.step(), "seed {seed}: the checkpoint ends");
        }
        assert!(pair.replies[&2].is_ok(), "seed {seed}: {:?}", pair.replies[&2]);
        pair.settle();
        assert_eq!(pair.view(), Some(pair.primary_disk.0.clone()), "seed {seed}");
    }
}

#[test]
fn what_a_full_sync_copied_is_durable_before_the_record_says_so() {
    for seed in 0..SEEDS {
        let mut pair = Pair::new(seed, AckMode::Applied, 1000);
        pair.with_primary_group(|group, out| group.start(1, SyncMode::Full, 1000, out));
        let mut wrote = false;
        while !wrote || pair.secondary_group.record().inconsistent {
            wrote |= pair.unflushed;
            assert!(pair.step(), "seed {seed}: the sync ends");
        }
        assert!(!pair.unflushed, "seed {seed}");
    }
}

fn recorded(out: &[GroupOutput]) -> Vec<Lineage> {
    let lineage = |output: &GroupOutput| match output {
        GroupOutput::PersistRecord(record, _) => Some(record.lineage),
        _ => None,
    };
    out.iter().filter_map(lineage).collect()
}

#[test]
fn a_lineage_that_a_failed_flush_ended_does_not_come_back_with_a_restart() {
    let config = SecondaryGroupConfig { reactors: 1, buffer: true, failover_timeout_ms: 1000 };
    let record = GroupRecord { generation: Generation(1), lineage: Lineage(5), ..GroupRecord::default() };
    let size = VolumeSize { volume_bytes: 1 << 20, disk_bytes: 1 << 20 };
    let mut group = SecondaryGroup::new(config, record, &[size]);
    let mut out = Vec::new();
    group.connected(&[1 << 20]);
    let begin =
        |epoch, sync, lineage| Control::Begin { epoch: Epoch(epoch), sync, lineage: Lineage(lineage) };
    group.message(begin(1, SyncMode::Changed, 5), &mut out);
    assert_eq!(recorded(&out), [Lineage(5)]);
    // While that is being written: what is written says too much, and is written again when it can be.
    group.event(StripeEvent::FlushFailed, &mut out);
    out.clear();
    group.persisted(true, &mut out);
    assert_eq!((group.record().lineage, recorded(&out)), (Lineage(0), vec![]), "the reactors begin first");
    group.done(true, &mut out);
    assert_eq!(recorded(&out), [Lineage(0)]);
    out.clear();
    group.persisted(false, &mut out);
    assert_eq!(recorded(&out), [], "not at once, but");
    let armed = out.iter().find_map(|output| match output {
        GroupOutput::ArmTimer { armed, .. } => Some(*armed),
        _ => None,
    });
    group.timer(armed.expect("a time to try again"), &mut out);
    assert_eq!(recorded(&out), [Lineage(0)]);
    group.persisted(true, &mut out);
    out.clear();
    // A session that makes the disks equal begins another.
    group.message(begin(9, SyncMode::Full, 7), &mut out);
    group.persisted(true, &mut out);
    group.done(true, &mut out);
    assert_eq!((group.record().lineage, recorded(&out)), (Lineage(7), vec![Lineage(7)]));
}

#[test]
fn a_full_sync_has_not_ended_while_the_memory_holds_what_waits_behind_a_hung_write() {
    let mut waited = 0;
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 1000);
        pair.hang = true;
        load(&mut pair, 6);
        pair.run(40);
        pair.cut_link();
        pair.settle();
        pair.hang = false;
        pair.with_primary_group(|group, out| group.start(1, SyncMode::Full, 1000, out));
        pair.settle();
        let held: usize = pair.secondary.iter().map(|machine| machine.held()).sum();
        let ended = pair.secondary_group.state() == SecondaryState::Following;
        assert!(held == 0 || !ended, "seed {seed}: {held} writes are in memory alone");
        waited += usize::from(held > 0);
        pair.heal();
        pair.settle();
        assert_eq!(pair.secondary_group.state(), SecondaryState::Following, "seed {seed}");
        assert!(!pair.unflushed, "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    }
    assert!(waited > 0, "some syncs waited");
}
