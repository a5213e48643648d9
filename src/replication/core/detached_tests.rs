//! The pair whose primary loses its disk, under random schedules: nobody notices but the operator, nothing is lost, and
//! nothing stale is ever served, neither by this node nor by what a restart of it would find.

use super::super::{Epoch, Generation};
use super::model::{Bytes, filled};
use super::pair::Pair;
use super::pair_tests::{SEEDS, checkpoint, running};
use super::*;

const PATIENCE: u32 = 5;

/// Reads and writes of every kind, where they collide.
fn busy(pair: &mut Pair, commands: usize) {
    for _ in 0..commands {
        let lba = if pair.rng.below(2) == 0 { pair.rng.below(12) } else { 64 + pair.rng.below(12) } as u64;
        let blocks = 1 + pair.rng.below(4) as u32;
        match pair.rng.below(12) {
            0 => {
                let reactor = pair.rng.below(2);
                pair.flush(reactor);
            }
            1..=4 => {
                let reactor = pair.rng.below(2);
                pair.read(reactor, lba, blocks);
            }
            5 => {
                let old = pair.rng.below(127) as u8;
                pair.compare_and_write(lba, old, 0x7F);
            }
            _ => {
                let byte = pair.rng.below(127) as u8;
                pair.write(lba, blocks, byte);
            }
        }
        let steps = pair.rng.below(12);
        pair.run(steps);
        assert_durable(pair);
    }
}

/// What a crash of the primary at this moment would come back to: a disk that has everything, or a record that says it has
/// not.
fn assert_durable(pair: &Pair) {
    if !pair.durable_record.inconsistent {
        assert_eq!(pair.has_all_acknowledged(&pair.primary_disk.0), Ok(()), "a stale disk would be served");
    }
}

fn disk(pair: &Pair) -> DiskState {
    pair.primary_group.disk_states()[0]
}

const DETACHED: DiskState = DiskState::Detached { replacement: false };

fn detached(seed: u64) -> Pair {
    let ack = [AckMode::Applied, AckMode::Received, AckMode::Local][(seed % 3) as usize];
    let mut pair = running(seed, ack, 1000);
    busy(&mut pair, 15);
    pair.primary_fails = true;
    busy(&mut pair, 15);
    pair.read(0, 0, 1);
    pair.settle();
    assert!(pair.is_idle(), "seed {seed}: every command was answered");
    assert_eq!(disk(&pair), DETACHED, "seed {seed}");
    pair
}

fn no_host_noticed(pair: &Pair, seed: u64) {
    let errors: Vec<_> = pair.refused.values().filter(|&&refusal| refusal != Refusal::Miscompare).collect();
    assert!(errors.is_empty(), "seed {seed}: {errors:?}");
}

fn assert_failover_has_all(pair: &mut Pair, seed: u64) {
    pair.kill_primary();
    pair.with_secondary_group(|group, out| group.failover(900, Keep::Latest, out));
    pair.settle();
    assert_eq!(pair.replies.get(&900), Some(&Ok(Success::Generation(Generation(2)))), "seed {seed}");
    let view = pair.view().expect("a promoted node has a view");
    assert_eq!(pair.has_all_acknowledged(&view), Ok(()), "seed {seed}");
}

#[test]
fn a_disk_that_fails_under_load_is_noticed_by_no_host_and_a_failover_has_everything() {
    for seed in 0..SEEDS {
        let mut pair = detached(seed);
        busy(&mut pair, 15);
        checkpoint(&mut pair, 100);
        busy(&mut pair, 10);
        pair.settle();
        no_host_noticed(&pair, seed);
        assert!(pair.replies[&100].is_ok(), "seed {seed}: {:?}", pair.replies);
        let committed = pair.secondary_group.record().committed;
        let expected = pair.content_at(committed);
        assert_eq!(pair.view(), Some(expected), "seed {seed}: checkpoints go on");
        assert!(pair.durable_record.inconsistent);
        busy(&mut pair, 5);
        assert_failover_has_all(&mut pair, seed);
    }
}

#[test]
fn a_replacement_is_filled_under_load_and_both_disks_are_equal() {
    for seed in 0..SEEDS {
        let mut pair = detached(seed);
        pair.replace_disk(1);
        assert_eq!(pair.replies.remove(&1), Some(Ok(Success::Done)), "seed {seed}");
        busy(&mut pair, 25);
        pair.settle();
        assert_eq!(disk(&pair), DiskState::Attached, "seed {seed}");
        assert!(!pair.durable_record.inconsistent, "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        busy(&mut pair, 10);
        pair.settle();
        no_host_noticed(&pair, seed);
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        assert_durable(&pair);
        // It is a pair as before: a lost link costs nothing.
        pair.cut_link();
        busy(&mut pair, 10);
        pair.settle();
        assert!(pair.is_idle() && pair.unmarked_differences().is_empty(), "seed {seed}");
    }
}

#[test]
fn a_replacement_that_fails_costs_nobody_anything_and_another_one_may_come() {
    for seed in 0..SEEDS / 2 {
        let mut pair = detached(seed);
        pair.replace_disk(1);
        let steps = pair.rng.below(120);
        pair.run(steps);
        pair.primary_fails = true;
        busy(&mut pair, 15);
        pair.read(1, 0, 1);
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}");
        no_host_noticed(&pair, seed);
        if disk(&pair) == DiskState::Attached {
            continue;
        }
        assert_eq!(disk(&pair), DETACHED, "seed {seed}");
        assert!(pair.durable_record.inconsistent, "seed {seed}");
        pair.replace_disk(2);
        busy(&mut pair, 15);
        pair.settle();
        assert_eq!(disk(&pair), DiskState::Attached, "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    }
}

#[test]
fn without_disk_and_link_hosts_have_an_error_and_with_the_same_peer_they_go_on() {
    for seed in 0..SEEDS {
        let mut pair = detached(seed);
        busy(&mut pair, 6);
        if seed % 3 == 0 {
            // In the middle of being replaced: that begins again by itself.
            pair.replace_disk(1);
            busy(&mut pair, 4);
        }
        let filled = disk(&pair) == DiskState::Attached;
        pair.cut_link();
        busy(&mut pair, 6);
        pair.settle();
        // Half of them find the peer again before anybody's patience ends.
        let patient = seed % 2 == 0;
        if !patient && !filled && disk(&pair) != DiskState::Attached {
            let waiting = !pair.is_idle();
            let before = pair.refused.len();
            for _ in 0..=PATIENCE {
                pair.disk_tick(PATIENCE);
            }
            assert!(pair.is_idle(), "seed {seed}: nobody waits for ever");
            assert!(!waiting || pair.refused.len() > before, "seed {seed}: and nobody is told a lie");
            assert!(pair.refused.values().any(|&refusal| refusal == Refusal::NoDisk) || !waiting);
        }
        pair.mend_link();
        busy(&mut pair, 10);
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}");
        if patient {
            no_host_noticed(&pair, seed);
        }
        assert_eq!(pair.primary_group.state(), PrimaryState::Running, "seed {seed} {:?}", pair.events);
        assert_eq!(pair.secondary_group.state(), SecondaryState::Following, "seed {seed}");
        checkpoint(&mut pair, 101);
        pair.settle();
        assert!(pair.replies[&101].is_ok(), "seed {seed}: {:?}", pair.replies);
        if seed % 3 == 0 {
            assert_eq!(disk(&pair), DiskState::Attached, "seed {seed}");
            assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        }
        assert_failover_has_all(&mut pair, seed);
    }
}

#[test]
fn a_disk_that_fails_while_the_peer_is_away_or_behind_is_not_detached() {
    let mut detached = 0;
    for seed in 0..SEEDS {
        let ack = [AckMode::Applied, AckMode::Local][(seed % 2) as usize];
        let mut pair = running(seed, ack, 1000);
        busy(&mut pair, 10);
        // The two failures come close together, in either order.
        if seed % 4 < 2 {
            pair.cut_link();
            let steps = pair.rng.below(30);
            pair.run(steps);
            pair.primary_fails = true;
        } else {
            pair.primary_fails = true;
            busy(&mut pair, 2);
            let steps = pair.rng.below(30);
            pair.run(steps);
            pair.cut_link();
        }
        busy(&mut pair, 6);
        pair.settle();
        for _ in 0..=PATIENCE {
            pair.disk_tick(PATIENCE);
        }
        assert!(pair.is_idle(), "seed {seed}: every command was answered");
        if disk(&pair) == DETACHED {
            detached += 1;
            assert!(pair.durable_record.inconsistent, "seed {seed}");
            assert_failover_has_all(&mut pair, seed);
        } else {
            assert_eq!(disk(&pair), DiskState::Attached, "seed {seed}");
            assert!(!pair.refused.is_empty(), "seed {seed}: hosts have the error");
            assert_durable(&pair);
            assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
        }
    }
    assert!((1..SEEDS / 2).contains(&detached), "both were meant to be met: {detached}");
}

/// What a weaker mode acknowledged the peer may not have yet: the disk is not given up before it has.
#[test]
fn what_was_acknowledged_early_and_is_still_on_its_way_keeps_the_disk() {
    for arrives in [true, false] {
        let geometry = Geometry { blocks: 64, block_bytes: 4096, granule_blocks: 1, owners: 1, owner: 0 };
        let mut machine = PrimaryStripes::new(PrimaryConfig {
            geometry,
            ack: AckMode::Local,
            on_link_loss: OnLinkLoss::Continue,
            on_disk_failure: OnDiskFailure::Detach,
            lag_limit_bytes: LAG_BYTES,
        });
        let mut out: Vec<PrimaryOutput<Bytes>> = Vec::new();
        let session = Session { lanes: 1, generation: Generation(1), epoch: Epoch(1), preserve: true };
        machine.link_up(session, &mut out);
        let command = Command::Write { range: Range::new(3, 1), data: filled(1, 1), fua: false };
        machine.submit(7, command, &mut out);
        let op = out.iter().find_map(|output| match output {
            PrimaryOutput::Send { op, .. } => Some(*op),
            _ => None,
        });
        let op = op.expect("it is sent");
        machine.local_done(op, true, &mut out);
        assert!(
            out.iter().any(|o| matches!(o, PrimaryOutput::Reply { token: 7, result: Ok(()) })),
            "{out:?}"
        );
        let told = |out: &[PrimaryOutput<Bytes>]| {
            out.iter().find_map(|output| match output {
                PrimaryOutput::Event(StripeEvent::Suspended { has_all }) => Some(*has_all),
                _ => None,
            })
        };
        machine.suspend(&mut out);
        assert_eq!(told(&out), None, "the peer may lack it");
        if arrives {
            machine.applied(op, &mut out);
        } else {
            machine.link_down(&mut out);
        }
        assert_eq!(told(&out), Some(arrives));
    }
}

#[test]
fn a_record_that_cannot_be_written_keeps_the_disk_and_the_hosts_have_the_error() {
    for seed in 0..SEEDS / 2 {
        let mut pair = running(seed, AckMode::Applied, 1000);
        busy(&mut pair, 10);
        pair.settle();
        pair.failing_primary_records = 1;
        pair.primary_fails = true;
        pair.write(1, 2, 7);
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}");
        assert_eq!(disk(&pair), DiskState::Attached, "seed {seed}");
        assert!(pair.refused.values().any(|&refusal| refusal == Refusal::Disk), "seed {seed}");
        assert!(!pair.durable_record.inconsistent, "seed {seed}");
        assert_durable(&pair);
        // What the disks differ in since is marked: the peer is not in step any more.
        let token = pair.write(1, 2, 8);
        pair.settle();
        assert_eq!(disk(&pair), DiskState::Attached, "seed {seed}");
        assert_eq!(pair.refused.get(&token), Some(&Refusal::Disk), "seed {seed}");
        assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
    }
}

#[test]
fn what_a_disk_never_ends_is_given_up_with_it() {
    for seed in 0..SEEDS / 2 {
        let mut pair = running(seed, AckMode::Applied, 1000);
        busy(&mut pair, 10);
        pair.primary_hangs = true;
        busy(&mut pair, 8);
        pair.primary_fails = true;
        pair.read(0, 0, 1);
        pair.settle();
        assert_eq!(disk(&pair), DETACHED, "seed {seed}");
        assert!(pair.is_idle(), "seed {seed}: a hung write waits for nobody");
        no_host_noticed(&pair, seed);
        pair.replace_disk(1);
        busy(&mut pair, 5);
        // The old disk gives back what it held, to nobody.
        pair.heal_primary();
        busy(&mut pair, 10);
        pair.settle();
        assert_eq!(disk(&pair), DiskState::Attached, "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    }
}

#[test]
fn a_disk_that_only_hangs_has_failed_after_a_while() {
    let mut hung = 0;
    for seed in 0..SEEDS / 2 {
        let mut pair = running(seed, AckMode::Applied, 1000);
        busy(&mut pair, 10);
        pair.primary_hangs = true;
        busy(&mut pair, 12);
        pair.settle();
        if pair.is_idle() {
            continue;
        }
        hung += 1;
        for _ in 0..=PATIENCE {
            pair.disk_tick(PATIENCE);
        }
        pair.settle();
        assert_eq!(disk(&pair), DETACHED, "seed {seed}");
        assert!(pair.is_idle(), "seed {seed}: nobody waits for it");
        busy(&mut pair, 10);
        pair.settle();
        no_host_noticed(&pair, seed);
        pair.heal_primary();
        busy(&mut pair, 5);
        assert_failover_has_all(&mut pair, seed);
    }
    assert!(hung > SEEDS / 4, "it was meant to hang: {hung}");
}

#[test]
fn a_peer_that_was_restarted_is_not_trusted_with_what_only_it_had() {
    let mut pair = detached(7);
    pair.restart_secondary();
    pair.mend_link();
    pair.settle();
    assert!(
        pair.events.contains(&GroupEvent::StartFailed(GroupError::Stranded)),
        "{:?}: it may have lost something",
        pair.events
    );
    let token = pair.write(1, 1, 9);
    for _ in 0..=PATIENCE {
        pair.disk_tick(PATIENCE);
    }
    assert_eq!(pair.refused.get(&token), Some(&Refusal::NoDisk));
    pair.with_primary_group(|group, out| group.start(5, SyncMode::Full, 1000, out));
    assert_eq!(pair.replies.get(&5), Some(&Err(GroupError::Detached)), "there is nothing to copy");
    assert!(pair.secondary_group.record().committed >= Epoch(0));
}
