//! Online verify under random schedules and load: it finds what differs, exactly, and nothing else.

use super::super::{Epoch, Generation, Sequence};
use super::model::{Bytes, Maps, bytes};
use super::pair::{BLOCKS, Pair, geometry};
use super::pair_tests::{SEEDS, checkpoint, load, running_with_blocks};
use super::*;
use std::collections::BTreeSet;

fn running(seed: u64) -> Pair {
    let ack = [AckMode::Applied, AckMode::Received, AckMode::Local][(seed % 3) as usize];
    running_with_blocks(seed, ack, 1000, BLOCKS)
}

fn verify(pair: &mut Pair, command: u64, repair: bool) {
    pair.stripe_events.clear();
    pair.with_primary_group(|group, out| group.verify_start(command, 1 << 30, repair, out));
    assert_eq!(pair.replies.remove(&command), Some(Ok(Success::Done)));
}

/// Blocks that were told to differ.
fn told(pair: &Pair) -> BTreeSet<u64> {
    let ranges = pair.stripe_events.iter().filter_map(|event| match event {
        StripeEvent::Differs { range, .. } => Some(*range),
        _ => None,
    });
    ranges.flat_map(|range| range.lba..range.end()).collect()
}

fn state(pair: &Pair) -> VerifyState {
    pair.primary_group.verify_state()
}

#[test]
fn nodes_in_step_never_seem_to_differ_whatever_hosts_and_checkpoints_do_meanwhile() {
    for seed in 0..SEEDS * 4 {
        let mut pair = running(seed);
        load(&mut pair, 10);
        verify(&mut pair, 10, false);
        for round in 0..3 {
            load(&mut pair, 10);
            if seed % 2 == 0 {
                checkpoint(&mut pair, 100 + round);
            }
            let own = pair.rng.below(12) as u64;
            pair.own_write(own, 2, 0xA7);
        }
        pair.settle();
        assert_eq!(state(&pair), VerifyState::Finished, "seed {seed}");
        assert_eq!(pair.mismatches, 0, "seed {seed}");
        assert_eq!(pair.primary.iter().map(|machine| machine.verified_blocks()).sum::<u64>(), BLOCKS);
        assert!(pair.is_idle(), "seed {seed}: every write was answered");
    }
}

#[test]
fn what_rotted_is_found_exactly_under_load_and_marked() {
    for seed in 0..SEEDS {
        let mut pair = running(seed);
        // The load leaves these alone.
        let rotten: BTreeSet<u64> =
            (0..1 + seed % 5).map(|_| [24, 90][pair.rng.below(2)] + pair.rng.below(38) as u64).collect();
        load(&mut pair, 10);
        rotten.iter().for_each(|&lba| pair.rot(lba));
        verify(&mut pair, 10, false);
        load(&mut pair, 30);
        pair.settle();
        assert_eq!(state(&pair), VerifyState::Finished, "seed {seed}");
        assert_eq!(told(&pair), rotten, "seed {seed}");
        assert!(pair.unmarked_differences().is_empty(), "seed {seed}");
        assert_ne!(pair.primary_disk, pair.secondary_disk, "seed {seed}: nobody was told to repair it");
    }
}

#[test]
fn a_repair_makes_the_disks_equal_wherever_they_rotted_and_the_next_checkpoint_has_it() {
    let mut found = 0;
    for seed in 0..SEEDS {
        let mut pair = running(seed);
        load(&mut pair, 10);
        for _ in 0..6 {
            let lba = pair.rng.below(BLOCKS as usize) as u64;
            pair.rot(lba);
            load(&mut pair, 2);
        }
        verify(&mut pair, 10, true);
        load(&mut pair, 30);
        checkpoint(&mut pair, 100);
        pair.settle();
        found += told(&pair).len();
        assert_eq!(state(&pair), VerifyState::Finished, "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        assert_eq!(pair.primary.iter().map(|machine| machine.dirty().bytes()).sum::<u64>(), 0, "seed {seed}");
        checkpoint(&mut pair, 101);
        pair.settle();
        assert!(pair.replies[&101].is_ok(), "seed {seed}");
        let expected = pair.content_at(pair.secondary_group.record().committed);
        assert_eq!(pair.view(), Some(expected), "seed {seed}");
        let before = pair.mismatches;
        verify(&mut pair, 11, true);
        load(&mut pair, 10);
        pair.settle();
        assert_eq!((state(&pair), pair.mismatches), (VerifyState::Finished, before), "seed {seed}");
    }
    assert!(found > SEEDS as usize, "few of them were overwritten before they were found");
}

#[test]
fn a_lost_link_a_stop_and_a_failover_end_it_and_say_so() {
    for seed in 0..SEEDS {
        let mut pair = running(seed);
        load(&mut pair, 5);
        verify(&mut pair, 10, true);
        let steps = pair.rng.below(60);
        pair.run(steps);
        let was_active = state(&pair).is_active();
        let expected = match seed % 3 {
            0 => {
                pair.cut_link();
                VerifyState::Failed(VerifyFault::LinkLost)
            }
            1 => {
                pair.with_primary_group(|group, out| group.stop(20, out));
                VerifyState::Stopped
            }
            _ => {
                pair.with_primary_group(|group, out| group.verify_stop(20, out));
                VerifyState::Stopped
            }
        };
        if was_active {
            assert_eq!(state(&pair), expected, "seed {seed}");
            assert!(pair.events.contains(&GroupEvent::VerifyEnded(expected)), "seed {seed}");
        }
        load(&mut pair, 10);
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}: no range stays held");
        assert!(pair.primary.iter().all(|machine| !machine.is_verifying()), "seed {seed}");
        let untouched = Range::new(24, 38);
        assert!(
            !pair.primary[0].dirty().is_dirty(untouched),
            "seed {seed}: what was compared is not lacking"
        );
        if seed % 3 == 0 {
            pair.with_secondary_group(|group, out| group.failover(30, Keep::Latest, out));
            pair.settle();
            assert!(pair.replies[&30].is_ok(), "seed {seed}");
            assert_eq!(pair.secondary_group.state(), SecondaryState::Standalone, "seed {seed}");
        }
    }
}

#[test]
fn it_begins_only_in_step_and_once() {
    let mut pair = Pair::new(1, AckMode::Applied, 1000);
    let start = |pair: &mut Pair, command| {
        pair.with_primary_group(|group, out| group.verify_start(command, 1, false, out));
        pair.replies.remove(&command).expect("a reply at once")
    };
    assert_eq!(start(&mut pair, 1), Err(GroupError::WrongState("stopped")));
    pair.with_primary_group(|group, out| group.verify_stop(2, out));
    assert_eq!(pair.replies.remove(&2), Some(Err(GroupError::NotVerifying)));
    let mut pair = running(1);
    assert_eq!(start(&mut pair, 3), Ok(Success::Done));
    assert_eq!(start(&mut pair, 4), Err(GroupError::Verifying));
    pair.settle();
    assert_eq!(start(&mut pair, 5), Ok(Success::Done));
}

#[test]
fn a_hung_disk_of_the_secondary_ends_it_and_holds_up_no_write() {
    let mut failed = 0;
    for seed in 0..SEEDS {
        let mut pair = running(seed);
        load(&mut pair, 5);
        pair.hang = true;
        verify(&mut pair, 10, false);
        load(&mut pair, 15);
        pair.settle();
        assert!(pair.is_idle(), "seed {seed}: writes are acknowledged all the same");
        match state(&pair) {
            VerifyState::Failed(fault) => {
                assert_eq!(fault, VerifyFault::HungThere, "seed {seed}");
                failed += 1;
            }
            state => assert_eq!(state, VerifyState::Finished, "seed {seed}: nothing hung that it looked at"),
        }
        pair.heal();
        pair.settle();
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        assert_eq!(pair.mismatches, 0, "seed {seed}");
        verify(&mut pair, 11, false);
        pair.settle();
        assert_eq!(state(&pair), VerifyState::Finished, "seed {seed}");
    }
    assert!(failed > SEEDS / 2, "the disks were meant to hang: {failed}");
}

/// A primary's machine alone, whose peer is there.
fn primary() -> PrimaryStripes<Bytes> {
    let geometry = Geometry { owners: 1, ..geometry(4, 0) };
    let mut machine = PrimaryStripes::new(PrimaryConfig {
        geometry,
        ack: AckMode::Applied,
        on_disk_failure: OnDiskFailure::Report,
        on_link_loss: OnLinkLoss::Continue,
        lag_limit_bytes: LAG_BYTES,
    });
    let session = Session { lanes: 1, generation: Generation(1), epoch: Epoch(1), preserve: true };
    machine.link_up(session, &mut Vec::new());
    machine
}

fn reads(out: &[PrimaryOutput<Bytes>]) -> Vec<OpId> {
    let read = |output: &PrimaryOutput<Bytes>| match output {
        PrimaryOutput::VerifyRead { op, .. } => Some(*op),
        _ => None,
    };
    out.iter().filter_map(read).collect()
}

fn fault(out: &[PrimaryOutput<Bytes>]) -> Option<VerifyFault> {
    out.iter().find_map(|output| match output {
        PrimaryOutput::Event(StripeEvent::VerifyFailed { fault, .. }) => Some(*fault),
        _ => None,
    })
}

#[test]
fn whichever_disk_does_not_answer_is_named_and_hosts_get_their_range_back() {
    let write = |machine: &mut PrimaryStripes<Bytes>, out: &mut Vec<_>| {
        let data = Data::Bytes(bytes(1, 1));
        machine.submit(7, Command::Write { range: Range::new(0, 1), data, fua: false }, out);
    };
    let submitted = |out: &[_]| out.iter().any(|output| matches!(output, PrimaryOutput::SubmitWrite { .. }));
    for answered_here in [false, true] {
        let (mut machine, mut out) = (primary(), Vec::new());
        machine.start_verify(1, 3, &mut out);
        machine.verify_tick(1 << 20, &mut out);
        let ops = reads(&out);
        assert_eq!(ops.len(), 2, "two ranges of two blocks");
        if answered_here {
            ops.iter().for_each(|&op| machine.verify_read(op, Some(&bytes(0, 2)), &mut out));
        }
        write(&mut machine, &mut out);
        assert_eq!(
            submitted(&out),
            answered_here,
            "a write waits for the read in its range, not for the peer"
        );
        (0..2).for_each(|_| machine.verify_tick(1 << 20, &mut out));
        assert_eq!(fault(&out), None);
        machine.verify_tick(1 << 20, &mut out);
        let expected = if answered_here { VerifyFault::HungThere } else { VerifyFault::HungHere };
        assert_eq!(fault(&out), Some(expected));
        assert!(submitted(&out), "a write waits no longer for a disk that hangs");
        out.clear();
        for &op in &ops {
            match answered_here {
                true => assert!(machine.compared(op, Verdict::Differs, &mut out)),
                false => machine.verify_read(op, Some(&bytes(0, 2)), &mut out),
            }
        }
        assert!(out.is_empty(), "what comes late is nobody's");
        assert_eq!(machine.dirty().bytes(), 0);
    }
}

#[test]
fn a_disk_that_fails_a_read_ends_it_and_is_named() {
    let (mut machine, mut out) = (primary(), Vec::new());
    machine.start_verify(1, 3, &mut out);
    machine.verify_tick(1 << 20, &mut out);
    machine.verify_read(reads(&out)[0], None, &mut out);
    assert_eq!(fault(&out), Some(VerifyFault::UnreadableHere));

    let (mut machine, mut out) = (primary(), Vec::new());
    machine.start_verify(1, 3, &mut out);
    machine.verify_tick(1 << 20, &mut out);
    let op = reads(&out)[0];
    machine.verify_read(op, Some(&bytes(0, 2)), &mut out);
    assert!(machine.compared(op, Verdict::Unreadable, &mut out));
    assert_eq!(fault(&out), Some(VerifyFault::UnreadableThere));
    assert_eq!(machine.dirty().bytes(), 0, "what could not be compared is not said to differ");
}

#[test]
fn only_what_was_sent_to_be_compared_may_be_answered_so() {
    let (mut machine, mut out) = (primary(), Vec::new());
    let data = Data::Bytes(bytes(1, 1));
    machine.submit(7, Command::Write { range: Range::new(0, 1), data, fua: false }, &mut out);
    let op = out.iter().find_map(|output| match output {
        PrimaryOutput::Send { op, .. } => Some(*op),
        _ => None,
    });
    assert!(!machine.compared(op.expect("it was sent"), Verdict::Differs, &mut out));
}

#[test]
fn the_rate_is_kept_on_average() {
    let geometry = Geometry { owners: 1, ..geometry(4096, 0) };
    let mut machine = primary();
    machine.resize(geometry.blocks);
    let mut out = Vec::new();
    machine.start_verify(1, 1000, &mut out);
    let per_tick = 3 * DIRTY_BYTES / 2;
    for tick in 1..=100 {
        machine.verify_tick(per_tick, &mut out);
        while let [op, ..] = reads(&out)[..] {
            out.clear();
            machine.verify_read(op, Some(&bytes(0, 2)), &mut out);
            assert!(machine.compared(op, Verdict::Equal, &mut out));
            let more = reads(&out);
            out.clear();
            out.extend(more.into_iter().map(|op| PrimaryOutput::VerifyRead { op, range: Range::new(0, 2) }));
        }
        let done = machine.verified_blocks() * DIRTY_BYTES;
        assert!(done <= tick * per_tick + u64::from(verify::VERIFY_BYTES), "tick {tick}: {done}");
        assert!(done + u64::from(verify::VERIFY_BYTES) >= tick * per_tick, "tick {tick}: {done}");
    }
}

#[test]
fn the_secondary_names_what_its_disk_could_not_read() {
    let geometry = Geometry { owners: 1, ..geometry(4, 0) };
    let config = SecondaryConfig { geometry, buffer: true, journal: false, hung_ticks: 3 };
    let mut machine: SecondaryStripes<Bytes, Maps> =
        SecondaryStripes::new(config, Maps::new(geometry, 100), Generation(1), Epoch(0));
    let mut out = Vec::new();
    let compare =
        |machine: &mut SecondaryStripes<Bytes, Maps>, out: &mut Vec<_>, number, content: Option<u8>| {
            let body = ForwardBody::Verify { range: Range::new(0, 2), digest: bytes(3, 2).digest() };
            let forward = Forward { epoch: Epoch(1), generation: Generation(1), body };
            machine.forwarded(0, Sequence(number), forward, out);
            let Some(SecondaryOutput::VerifyRead { op, .. }) = out.pop() else { panic!("it reads") };
            let content = content.map(|byte| bytes(byte, 2));
            machine.verify_read(op, content.as_ref(), out);
            match out.pop() {
                Some(SecondaryOutput::Answer { answer: Answer::Compared(verdict), .. }) => verdict,
                other => panic!("{other:?}"),
            }
        };
    assert_eq!(compare(&mut machine, &mut out, 1, Some(3)), Verdict::Equal);
    assert_eq!(compare(&mut machine, &mut out, 2, Some(4)), Verdict::Differs);
    assert_eq!(compare(&mut machine, &mut out, 3, None), Verdict::Unreadable);
    assert_eq!(machine.in_flight(), 0);
}

#[test]
fn a_repair_waits_for_a_growing_volume_and_the_new_end_is_in_step_as_well() {
    for seed in 0..SEEDS {
        let mut pair = running(seed);
        load(&mut pair, 5);
        for lba in [20, 30, 100] {
            pair.rot(lba);
        }
        verify(&mut pair, 10, true);
        let steps = pair.rng.below(120);
        pair.run(steps);
        pair.grow_disk(true, BLOCKS + 40, 0x11);
        pair.grow_disk(false, BLOCKS + 40, 0x22);
        load(&mut pair, 15);
        pair.settle();
        assert_eq!(state(&pair), VerifyState::Finished, "seed {seed}");
        assert_eq!(told(&pair), BTreeSet::from([20, 30, 100]), "seed {seed}");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        assert_eq!(pair.primary_sizes.volume, BLOCKS + 40, "seed {seed}");
    }
}
