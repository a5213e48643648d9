//! A peer that is too slow is left behind: hosts go on, its last checkpoint stands, nothing is forgotten, and it catches up.

use super::pair::Pair;
use super::pair_tests::{SEEDS, checkpoint, load, running};
use super::*;

const PATIENCE: u32 = 4;

/// A pair with a checkpoint whose link became so slow that its hosts were not waited for; everything at rest.
fn left_behind(seed: u64, ack: AckMode) -> Pair {
    let mut pair = running(seed, ack, 1000);
    pair.patience = Some(PATIENCE);
    load(&mut pair, 10);
    checkpoint(&mut pair, 100);
    load(&mut pair, 5);
    pair.settle();
    pair.slow = true;
    load(&mut pair, 12);
    overload(&mut pair);
    pair.settle();
    assert_eq!(pair.primary_group.state(), PrimaryState::Behind, "seed {seed}");
    pair
}

/// Too much for the peer's lag, in whatever mode.
fn overload(pair: &mut Pair) {
    (0..40).for_each(|number| {
        pair.write(number % 16, 1, 1 + number as u8);
    });
}

fn mode(seed: u64) -> AckMode {
    [AckMode::Applied, AckMode::Received, AckMode::Local][(seed % 3) as usize]
}

#[test]
fn hosts_of_a_slow_peer_go_on_and_the_peer_keeps_its_last_checkpoint() {
    for seed in 0..SEEDS {
        let mut pair = left_behind(seed, mode(seed));
        assert!(pair.is_idle(), "seed {seed}: every write was answered");
        assert!(pair.events.contains(&GroupEvent::Behind) && !pair.events.contains(&GroupEvent::LinkLost));
        assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
        load(&mut pair, 10);
        pair.settle();
        assert!(pair.is_idle() && pair.unmarked_differences().is_empty(), "seed {seed}");
        checkpoint(&mut pair, 101);
        assert_eq!(pair.replies.remove(&101), Some(Err(GroupError::WrongState("behind"))));
        assert_eq!(pair.secondary_group.state_name(), "behind");
        let committed = pair.content_at(pair.secondary_group.record().committed);
        assert_eq!(pair.view().as_ref(), Some(&committed), "seed {seed}");
        // It has what the primary acknowledged only up to some point.
        pair.kill_primary();
        pair.with_secondary_group(|group, out| group.failover(1, Keep::Latest, out));
        assert_eq!(pair.replies.remove(&1), Some(Err(GroupError::Behind)), "seed {seed}");
        pair.with_secondary_group(|group, out| group.failover(2, Keep::Checkpoint, out));
        pair.settle();
        assert!(pair.replies[&2].is_ok(), "seed {seed}");
        assert_eq!(pair.secondary_disk.0, committed, "seed {seed}");
    }
}

#[test]
fn a_peer_that_is_quick_again_catches_up_by_itself() {
    for seed in 0..SEEDS {
        let mut pair = left_behind(seed, mode(seed));
        load(&mut pair, 10);
        // Too early: it falls behind once more, in the middle of its copies.
        if seed.is_multiple_of(2) {
            pair.expire(Peer::Heard);
            pair.mend_link();
            pair.settle();
            assert_eq!(pair.primary_group.state(), PrimaryState::Syncing, "seed {seed}");
            overload(&mut pair);
            (0..4).for_each(|_| pair.settle());
            assert_eq!(pair.primary_group.state(), PrimaryState::Behind, "seed {seed}");
            assert!(pair.is_idle() && pair.unmarked_differences().is_empty(), "seed {seed}");
        }
        pair.slow = false;
        pair.expire(Peer::Heard);
        assert_eq!(pair.primary_group.state(), PrimaryState::ResyncRequired, "seed {seed}");
        pair.mend_link();
        load(&mut pair, 10);
        pair.settle();
        assert_eq!(pair.primary_group.state(), PrimaryState::Running, "seed {seed} {:?}", pair.events);
        assert!(pair.is_idle() && pair.marked() == 0, "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        assert_eq!(pair.secondary_group.state_name(), "running");
        checkpoint(&mut pair, 101);
        pair.settle();
        assert!(pair.replies[&101].is_ok(), "seed {seed}");
        pair.with_secondary_group(|group, out| group.failover(1, Keep::Latest, out));
        pair.settle();
        assert!(pair.replies[&1].is_ok(), "seed {seed}");
    }
}

#[test]
fn nothing_is_acknowledged_alone_before_the_peer_knows_or_is_lost() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied, 1000);
        pair.patience = Some(PATIENCE);
        pair.slow = true;
        load(&mut pair, 10);
        let mut told = false;
        for _ in 0..40 {
            let steps = pair.rng.below(20);
            pair.run(steps);
            pair.tick();
            told |= pair.secondary_group.state_name() == "behind";
            let alone = pair.primary_group.state() == PrimaryState::Behind;
            assert!(told || !alone, "seed {seed}");
        }
        assert!(told, "seed {seed}");
    }
    // One that does not even answer that is lost.
    let mut pair = running(1, AckMode::Applied, 1000);
    let mut out = Vec::new();
    pair.primary_group.event(StripeEvent::Congested, &mut out);
    pair.primary_group.event(StripeEvent::Congested, &mut out);
    let [GroupOutput::ArmTimer { armed, .. }, GroupOutput::Send(Control::Behind { .. })] = out[..] else {
        panic!("{out:?}")
    };
    assert_eq!(pair.primary_group.state(), PrimaryState::Running);
    pair.with_primary_group(|group, out| group.timer(armed, Peer::Silent, out));
    assert_eq!(pair.primary_group.state(), PrimaryState::ResyncRequired);
    assert!(pair.events.contains(&GroupEvent::LinkLost));
}

#[test]
fn the_pauses_grow_while_it_falls_behind_again_and_begin_anew_when_it_has_kept_up() {
    let mut pair = running(1, AckMode::Applied, 1000);
    let pause = |pair: &mut Pair| {
        let mut out = Vec::new();
        pair.primary_group.event(StripeEvent::Congested, &mut out);
        pair.primary_group.message(Control::Behind { epoch: super::super::Epoch(1) }, &mut out);
        let mut pauses = out.iter().filter_map(|output| match output {
            GroupOutput::ArmTimer { armed, after_ms } if armed.timer == Timer::Behind => {
                Some((*armed, *after_ms))
            }
            _ => None,
        });
        let last = pauses.next_back().expect("a pause");
        pair.cut_link();
        last
    };
    let again = |pair: &mut Pair, armed| {
        pair.with_primary_group(|group, out| group.timer(armed, Peer::Heard, out));
        pair.mend_link();
        pair.settle();
        assert_eq!(pair.primary_group.state(), PrimaryState::Running);
    };
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let (armed, after_ms) = pause(&mut pair);
        pauses.push(after_ms);
        again(&mut pair, armed);
    }
    assert_eq!(pauses, [2000, 4000, 8000, 16000, 32000, 64000, 128000, 128000, 128000]);
    // It kept up for a while.
    pair.expire(Peer::Heard);
    assert_eq!(pause(&mut pair).1, 2000);
}
