//! Volumes that grow, under random schedules: what replication promises holds before, meanwhile and after.

use super::pair::{BLOCK_BYTES, Pair};
use super::pair_tests::{SEEDS, checkpoint, load, running_with_blocks};
use super::*;

/// Within a stripe, and within a granule of two blocks.
const SMALL: u64 = 101;
/// In the middle of another stripe, and within a granule.
const LARGE: u64 = 203;

fn running(seed: u64, ack: AckMode) -> Pair {
    running_with_blocks(seed, ack, 1000, SMALL)
}

/// Both disks, in either order, at any distance from each other.
fn grow_disks(pair: &mut Pair, blocks: u64) {
    let first = pair.rng.below(2) == 0;
    pair.grow_disk(first, blocks, if first { 0x33 } else { 0x55 });
    load(pair, 2);
    pair.grow_disk(!first, blocks, if first { 0x55 } else { 0x33 });
}

/// Until both nodes serve the new size.
fn grown(pair: &mut Pair, blocks: u64, seed: u64) {
    let mut budget = 100_000;
    while pair.primary_sizes.volume != blocks && budget > 0 && pair.step() {
        budget -= 1;
    }
    for sizes in [pair.primary_sizes, pair.secondary_sizes] {
        assert_eq!((sizes.volume, sizes.recorded), (blocks, blocks), "seed {seed} {:?}", pair.events);
    }
}

/// Hosts use the new end as well, and the granule that the old end lay in.
fn write_at_the_end(pair: &mut Pair) {
    for _ in 0..6 {
        let end = pair.primary_sizes.volume;
        let blocks = 1 + pair.rng.below(4) as u32;
        let lba = match pair.rng.below(3) {
            // Not over the border of two stripes, which the shell cuts at.
            0 => SMALL - 3 + pair.rng.below(6) as u64,
            1 => 130 + pair.rng.below(16) as u64,
            _ => end - u64::from(blocks),
        };
        let byte = pair.rng.below(127) as u8;
        pair.write(lba, blocks, byte);
        let steps = pair.rng.below(12);
        pair.run(steps);
    }
}

#[test]
fn a_volume_grows_under_load_with_what_the_primarys_disk_has_and_goes_on_checkpointing() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, [AckMode::Applied, AckMode::Received][(seed % 2) as usize]);
        load(&mut pair, 6);
        // In some of them a checkpoint is open, prepared or on its way all the while.
        if seed % 3 == 0 {
            checkpoint(&mut pair, 100);
            let steps = pair.rng.below(40);
            pair.run(steps);
        }
        grow_disks(&mut pair, LARGE);
        load(&mut pair, 6);
        grown(&mut pair, LARGE, seed);
        write_at_the_end(&mut pair);
        pair.settle();
        assert!(seed % 3 != 0 || pair.replies[&100].is_ok(), "seed {seed}: {:?}", pair.replies);
        for round in 0..2 {
            let expected = pair.content_at(pair.secondary_group.record().committed);
            assert_eq!(expected.len() as u64, LARGE);
            assert_eq!(pair.view(), Some(expected), "seed {seed} round {round}");
            checkpoint(&mut pair, 101 + round);
            write_at_the_end(&mut pair);
            pair.settle();
            assert!(pair.replies[&(101 + round)].is_ok(), "seed {seed}: {:?}", pair.replies);
        }
        assert!(pair.is_idle(), "seed {seed}: every write was answered");
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        assert!(pair.unmarked_differences().is_empty());
    }
}

#[test]
fn what_the_buffer_held_of_the_last_granule_shows_its_new_end_too() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied);
        // Its original is kept, and the secondary VM has written it as well, before the volume goes on behind it.
        if seed % 2 == 0 {
            pair.write(SMALL - 1, 1, 7);
            load(&mut pair, 2);
        }
        let own = (seed % 3 != 0).then(|| pair.own_write(SMALL - 2, 2, 0xA1));
        grow_disks(&mut pair, LARGE);
        let steps = pair.rng.below(80);
        pair.run(steps);
        let late = (seed % 3 != 1).then(|| pair.own_write(SMALL - 1, 1, 0xA2));
        grown(&mut pair, LARGE, seed);
        pair.settle();
        for token in own.into_iter().chain(late) {
            assert_eq!(pair.own_replies.remove(&token), Some(Ok(())), "seed {seed}");
        }
        if own.is_some() {
            pair.note_own(SMALL - 2, 2, 0xA1);
        }
        if late.is_some() {
            pair.note_own(SMALL - 1, 1, 0xA2);
        }
        let expected = pair.content_with_own(pair.secondary_group.record().committed);
        assert_eq!(pair.view(), Some(expected), "seed {seed}");
        pair.kill_primary();
        let keep = [Keep::Checkpoint, Keep::Overlay][(seed % 2) as usize];
        pair.with_secondary_group(|group, out| group.failover(1, keep, out));
        pair.settle();
        let committed = pair.secondary_group.record().committed;
        let expected = match keep {
            Keep::Checkpoint => pair.content_at(committed),
            _ => pair.content_with_own(committed),
        };
        assert_eq!(pair.secondary_disk.0, expected, "seed {seed}");
    }
}

#[test]
fn a_failover_at_any_moment_of_a_growth_keeps_what_was_promised() {
    let mut sizes = [0; 2];
    for seed in 0..SEEDS * 3 {
        let keep = [Keep::Latest, Keep::Checkpoint, Keep::Overlay][(seed % 3) as usize];
        let mut pair = running(seed, AckMode::Applied);
        load(&mut pair, 5);
        checkpoint(&mut pair, 100);
        pair.settle();
        grow_disks(&mut pair, LARGE);
        load(&mut pair, 4);
        let steps = pair.rng.below(500);
        pair.run(steps);
        if pair.primary_sizes.volume == LARGE {
            write_at_the_end(&mut pair);
        }
        let announced = pair.primary_sizes.volume;
        pair.kill_primary();
        pair.with_secondary_group(|group, out| group.failover(101, keep, out));
        pair.settle();
        assert!(pair.replies[&101].is_ok(), "seed {seed}: {:?}", pair.replies);
        let now = pair.secondary_sizes;
        assert_eq!(now.volume, now.recorded, "seed {seed}");
        assert!(now.volume >= announced, "seed {seed}: never less than hosts have seen");
        sizes[usize::from(now.volume == LARGE)] += 1;
        let committed = pair.secondary_group.record().committed;
        let view = pair.view().expect("a promoted node has a view");
        match keep {
            Keep::Latest => assert_eq!(pair.has_all_acknowledged(&view), Ok(()), "seed {seed}"),
            Keep::Checkpoint => assert_eq!(view, pair.content_at(committed), "seed {seed}"),
            Keep::Overlay => assert_eq!(view, pair.content_with_own(committed), "seed {seed}"),
        }
        assert_eq!(view, pair.secondary_disk.0[..view.len()], "seed {seed}: and it is on the disk");
    }
    assert!(sizes.iter().all(|&count| count > SEEDS / 2), "both ends were meant to be met: {sizes:?}");
}

#[test]
fn a_link_lost_at_any_moment_of_a_growth_leaves_a_pair_that_finds_together_again() {
    let mut apart = 0;
    for seed in 0..SEEDS * 2 {
        let mut pair = running(seed, AckMode::Applied);
        load(&mut pair, 4);
        grow_disks(&mut pair, LARGE);
        let steps = pair.rng.below(400);
        pair.run(steps);
        pair.cut_link();
        let steps = pair.rng.below(20);
        pair.run(steps);
        load(&mut pair, 4);
        pair.settle();
        assert!(pair.is_idle() && pair.unmarked_differences().is_empty(), "seed {seed}");
        assert!(pair.marked_behind().is_empty(), "seed {seed}: all of it is lacking anyhow");
        let (here, there) = (pair.primary_sizes, pair.secondary_sizes);
        assert_eq!((here.volume, there.volume), (here.recorded, there.recorded), "seed {seed}");
        assert!(there.volume >= here.volume, "seed {seed}");
        apart += u64::from(there.volume > here.volume);
        let sync = [SyncMode::Full, SyncMode::None, SyncMode::Changed][(seed % 3) as usize];
        pair.with_primary_group(|group, out| group.start(7, sync, 1000, out));
        load(&mut pair, 4);
        pair.settle();
        assert_eq!(pair.replies.get(&7), Some(&Ok(Success::Done)), "seed {seed}");
        // And the growth goes on by itself.
        grown(&mut pair, LARGE, seed);
        write_at_the_end(&mut pair);
        checkpoint(&mut pair, 8);
        pair.settle();
        assert!(pair.replies[&8].is_ok(), "seed {seed}");
        if sync != SyncMode::None {
            assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
            let expected = pair.content_at(pair.secondary_group.record().committed);
            assert_eq!(pair.view(), Some(expected), "seed {seed}");
            assert_eq!(pair.primary[0].dirty().bytes() + pair.primary[1].dirty().bytes(), 0, "seed {seed}");
        }
    }
    assert!(apart > 5, "a link lost between the two records was meant to be met: {apart}");
}

#[test]
fn disks_that_grow_while_a_full_sync_runs_make_the_volume_grow_after_it() {
    for seed in 0..SEEDS {
        let mut pair = Pair::with_blocks(seed, AckMode::Applied, 1000, SMALL);
        pair.with_primary_group(|group, out| group.start(1, SyncMode::Full, 1000, out));
        let steps = pair.rng.below(60);
        pair.run(steps);
        grow_disks(&mut pair, LARGE);
        while pair.primary_group.state() != PrimaryState::Running && pair.step() {
            assert_eq!(pair.primary_sizes.volume, SMALL, "seed {seed}");
        }
        grown(&mut pair, LARGE, seed);
        pair.settle();
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    }
}

#[test]
fn what_the_beginning_of_a_session_left_to_copy_is_copied_before_the_volume_grows() {
    for seed in 0..SEEDS {
        let mut pair = Pair::with_blocks(seed, AckMode::Applied, 1000, SMALL);
        for lba in 0..SMALL {
            pair.write(lba, 1, 0x40 | lba as u8);
        }
        pair.settle();
        pair.with_primary_group(|group, out| group.start(1, SyncMode::None, 1000, out));
        while !pair.replies.contains_key(&1) && pair.step() {}
        let steps = pair.rng.below(40);
        pair.run(steps);
        grow_disks(&mut pair, LARGE);
        load(&mut pair, 10);
        grown(&mut pair, LARGE, seed);
        pair.settle();
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
    }
}

#[test]
fn a_volume_grows_again_and_to_the_smaller_of_both_disks() {
    for seed in 0..SEEDS / 4 {
        let mut pair = running(seed, AckMode::Applied);
        pair.grow_disk(true, 160, 0x11);
        pair.settle();
        assert_eq!((pair.primary_sizes.volume, pair.secondary_sizes.volume), (SMALL, SMALL), "one side only");
        assert!(pair.events.contains(&GroupEvent::DiskGrew { volume: 0, side: Side::Here }));
        pair.grow_disk(false, 133, 0x22);
        grown(&mut pair, 133, seed);
        pair.grow_disk(false, 300, 0x23);
        grown(&mut pair, 160, seed);
        pair.grow_disk(true, 300, 0x12);
        write_at_the_end(&mut pair);
        grown(&mut pair, 300, seed);
        checkpoint(&mut pair, 1);
        pair.settle();
        assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        let expected = pair.content_at(pair.secondary_group.record().committed);
        assert_eq!(pair.view(), Some(expected), "seed {seed}");
    }
}

#[test]
fn a_disk_that_hangs_while_the_volume_grows_shows_what_is_held_for_it() {
    for seed in 0..SEEDS {
        let mut pair = running(seed, AckMode::Applied);
        load(&mut pair, 3);
        pair.write(SMALL - 1, 1, 7);
        pair.settle();
        pair.hang = true;
        grow_disks(&mut pair, LARGE);
        pair.settle();
        grown(&mut pair, LARGE, seed);
        pair.hang = false;
        if seed % 2 == 0 {
            pair.heal();
            pair.settle();
            let expected = pair.content_at(pair.secondary_group.record().committed);
            assert_eq!(pair.view(), Some(expected), "seed {seed}");
            assert_eq!(pair.primary_disk, pair.secondary_disk, "seed {seed}");
        } else {
            pair.kill_primary();
            pair.with_secondary_group(|group, out| group.failover(1, Keep::Checkpoint, out));
            pair.run(2000);
            pair.heal();
            pair.settle();
            let expected = pair.content_at(pair.secondary_group.record().committed);
            assert_eq!(pair.secondary_disk.0, expected, "seed {seed}");
        }
    }
}

#[test]
fn what_was_read_of_the_last_granule_before_its_end_came_is_read_again() {
    use super::super::{Epoch, Generation, Sequence};
    use super::model::{Maps, bytes, filled};
    let geometry = Geometry { owners: 1, ..super::pair::geometry(SMALL, 0) };
    let config = SecondaryConfig { geometry, buffer: true, journal: false, hung_ticks: 3 };
    let mut machine = SecondaryStripes::new(config, Maps::new(geometry, 100), Generation(1), Epoch(0));
    machine.extend(LARGE).expect("room");
    let mut out = Vec::new();
    let write = Command::Write { range: Range::new(SMALL - 1, 1), data: filled(0xA1, 1), fua: false };
    machine.submit(1, write, &mut out);
    let Some(SecondaryOutput::BaseRead { op: own, range }) = out.pop() else { panic!("{out:?}") };
    assert_eq!(range, Range::new(SMALL - 1, 2));
    let end = Range::new(SMALL, 4);
    let body = ForwardBody::Write { range: end, data: filled(0x33, 4), fua: false, preserve: true };
    machine.forwarded(0, Sequence(1), Forward { epoch: Epoch(1), generation: Generation(1), body }, &mut out);
    let Some(SecondaryOutput::SubmitWrite { op, .. }) = out.pop() else { panic!("{out:?}") };
    machine.write_done(op, true, &mut out);
    out.clear();
    machine.base_read(own, range, Some(bytes(0xEE, 2)), &mut out);
    assert!(matches!(out[..], [SecondaryOutput::BaseRead { .. }]), "{out:?}");

    // Neither over the border, nor behind what was agreed, nor behind the end when nothing grows.
    for (range, limit) in [(Range::new(SMALL - 1, 2), LARGE), (Range::new(LARGE, 1), LARGE), (end, SMALL)] {
        machine.extend(limit).expect("room");
        let body = ForwardBody::Write { range, data: Data::Zeroes, fua: false, preserve: true };
        let forward = Forward { epoch: Epoch(1), generation: Generation(1), body };
        out.clear();
        machine.forwarded(0, Sequence(2), forward, &mut out);
        let refused = |output: &SecondaryOutput<_>| {
            matches!(output, SecondaryOutput::Answer { answer: Answer::Failed(PeerRefusal::Protocol), .. })
        };
        assert!(out.len() == 1 && refused(&out[0]), "{range:?}: {out:?}");
    }
}

#[test]
fn disks_that_shrink_leave_the_size_and_are_told_of() {
    let mut pair = running(1, AckMode::Applied);
    pair.with_primary_group(|group, out| group.disk_resized(0, 50 * BLOCK_BYTES, out));
    pair.with_secondary_group(|group, out| group.disk_resized(0, 40 * BLOCK_BYTES, out));
    pair.settle();
    assert_eq!((pair.primary_sizes.volume, pair.secondary_sizes.volume), (SMALL, SMALL));
    for side in [Side::Here, Side::Peer] {
        assert!(pair.events.contains(&GroupEvent::DiskTooSmall { volume: 0, side }), "{:?}", pair.events);
    }
}

#[test]
fn disks_said_to_be_equal_are_not_if_the_peers_volume_is_smaller() {
    let volume = VolumeSize { volume_bytes: 2 << 20, disk_bytes: 2 << 20 };
    let config = PrimaryGroupConfig {
        reactors: 1,
        checkpoint_timeout_ms: 1000,
        checkpoint_interval_ms: 0,
        on_disk_failure: OnDiskFailure::Report,
        begin_timeout_ms: 1000,
    };
    let peer = VolumeSize { volume_bytes: 1 << 20, ..volume };
    for (sync, refused) in [(SyncMode::None, true), (SyncMode::Full, false)] {
        let mut group = PrimaryGroup::new(config, GroupRecord::default(), &[volume]);
        let mut out = Vec::new();
        group.start(1, sync, 1000, &mut out);
        let greeting = Greeting {
            newest: super::super::Epoch(3),
            generation: super::super::Generation(1),
            lanes: 1,
            lineage: super::super::Lineage(0),
            past: Default::default(),
            consistent: true,
            restarted: false,
            session: 1,
        };
        group.connected(&greeting, &[peer], &mut out);
        let reply = GroupOutput::Reply { command: 1, result: Err(GroupError::SmallerPeer) };
        assert_eq!(out.contains(&reply), refused);
    }
}

#[test]
fn a_secondary_takes_no_size_that_it_cannot_have_and_lets_a_size_and_a_commit_wait_for_each_other() {
    let config = SecondaryGroupConfig { reactors: 1, buffer: true, failover_timeout_ms: 1000 };
    let volume = VolumeSize { volume_bytes: 10, disk_bytes: 20 };
    let mut group = SecondaryGroup::new(config, GroupRecord::default(), &[volume]);
    let mut out = Vec::new();
    let epoch = super::super::Epoch(1);
    group.connected(&[10]);
    let lineage = super::super::Lineage(1);
    group.message(Control::Begin { epoch, sync: SyncMode::None, lineage }, &mut out);
    group.persisted(true, &mut out);
    group.done(true, &mut out);
    assert!(out.contains(&GroupOutput::Send(Control::DiskSize { volume: 0, bytes: 20 })));
    for (volume, bytes, now) in [(0, 21, 10), (0, 9, 10), (1, 15, 0), (u16::MAX, 15, 0)] {
        for ask in [Control::Extend { volume, bytes }, Control::Resize { volume, bytes }] {
            out.clear();
            group.message(ask.clone(), &mut out);
            let answer = match ask {
                Control::Extend { .. } => Control::Extend { volume, bytes: now },
                _ => Control::Resize { volume, bytes: now },
            };
            assert_eq!(out, vec![GroupOutput::Send(answer)]);
        }
    }
    group.message(Control::Prepare { epoch, timeout_ms: 1000, lasts: Vec::new() }, &mut out);
    group.prepared(epoch, Ok(Standing::Volatile), &mut out);
    out.clear();
    // The commit comes while the size is being written, and another size while the commit is.
    group.message(Control::Resize { volume: 0, bytes: 15 }, &mut out);
    group.message(Control::Commit { epoch }, &mut out);
    group.message(Control::Resize { volume: 0, bytes: 16 }, &mut out);
    assert!(matches!(&out[..], [GroupOutput::PersistRecord(_, bytes)] if bytes == &[15]));
    group.persisted(true, &mut out);
    group.done(true, &mut out);
    let told = out.iter().filter(|output| matches!(output, GroupOutput::Resize { .. })).count();
    assert_eq!(told, 1);
    assert!(matches!(out.last(), Some(GroupOutput::PersistRecord(record, bytes))
        if record.committed == epoch && bytes == &[15]));
    group.persisted(true, &mut out);
    group.done(true, &mut out);
    assert!(out.contains(&GroupOutput::Send(Control::Committed { epoch, ended: Ended::Ok })));
    // The record cannot be written: the old size stays.
    group.persisted(false, &mut out);
    assert_eq!(out.last(), Some(&GroupOutput::Send(Control::Resize { volume: 0, bytes: 15 })));
    // A primary that floods is cut off.
    group.message(Control::Resize { volume: 0, bytes: 16 }, &mut out);
    out.clear();
    (0..17).for_each(|_| group.message(Control::Abort { epoch }, &mut out));
    assert_eq!(out, vec![GroupOutput::Disconnect]);
    // What waited is of a session that is over.
    group.disconnected(&mut out);
    out.clear();
    group.persisted(true, &mut out);
    group.done(true, &mut out);
    assert!(!out.iter().any(|output| matches!(output, GroupOutput::Send(_))), "{out:?}");
    assert!(out.contains(&GroupOutput::Resize { volume: 0, bytes: 16 }), "what is recorded is carried out");
}
