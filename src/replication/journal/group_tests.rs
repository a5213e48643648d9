//! A checkpoint of many volumes, with either node lost at every single step of it: all of them have it, or none.

use super::group_model::{Array, Fault, HEADER, Rng, Step, VOLUMES, World};
use super::replay::RollBack;
use crate::replication::Epoch;
use crate::replication::core::{GroupError, SecondaryGroup, SecondaryGroupConfig, SecondaryState, Success};

const CHECKPOINT: u64 = 3;
const FAILOVER: u64 = 4;
/// The epoch before the one whose commit is interrupted.
const BEFORE: Epoch = Epoch(1);
const COMMITTED: Epoch = Epoch(2);

/// A pair with one checkpoint behind it, in every volume something to be committed and some of it under way, and the next
/// checkpoint asked for.
fn world(seed: u64, fault: Fault, journal: bool) -> World {
    let mut world = World::new(seed, fault, journal);
    world.start();
    world.settle();
    world.checkpoint(2);
    world.settle();
    assert_eq!(world.replies.get(&2), Some(&Ok(Success::Epoch(BEFORE))));
    // Each on its own: what overlaps would wait, and the load is to be there at once.
    (0..VOLUMES).for_each(|volume| world.write(volume, 1 + volume as u8 % 30));
    for _ in 0..VOLUMES * 4 {
        world.step();
    }
    (0..VOLUMES / 4).for_each(|volume| world.write(volume, 0x20 + volume as u8 % 30));
    world.checkpoint(CHECKPOINT);
    world
}

/// Steps after the checkpoint was told of, with load of the next epoch.
const AFTERWARDS: usize = 100;

/// One step, with load of the next epoch beside it.
fn step(world: &mut World, number: usize) -> Option<Step> {
    if number % 20 == 5 {
        world.write(number / 20 % VOLUMES, 0x60 + (number % 30) as u8);
    }
    world.step()
}

/// What was told to whoever waits for guests' output to be released must stand.
fn promised(world: &World) -> Option<Epoch> {
    match world.replies.get(&CHECKPOINT) {
        Some(Ok(Success::Epoch(epoch))) => Some(*epoch),
        _ => None,
    }
}

/// The primary is gone, and the secondary becomes its last checkpoint.
fn lose_primary(mut world: World, arrives: bool) -> Result<Epoch, String> {
    let promised = promised(&world);
    world.lose_primary(arrives);
    world.failover(FAILOVER);
    world.settle();
    match world.replies.get(&FAILOVER) {
        Some(Ok(_)) => {}
        other => return Err(format!("the failover ended with {other:?}")),
    }
    assert_eq!(world.secondary.state(), SecondaryState::Standalone);
    let committed = world.secondary.record().committed;
    check(&world, promised, committed, |volume| world.disk_of(volume))
}

/// The secondary, or all there is, loses power.
fn lose_power(world: &World, rng: &mut Rng) -> Result<Epoch, String> {
    let mut durable = world.after_a_power_loss(rng);
    let config = SecondaryGroupConfig { reactors: 2, buffer: true, failover_timeout_ms: 1000 };
    let sizes: Vec<_> = world.secondary.sizes().collect();
    let record = world.records[0];
    let restarted = SecondaryGroup::new(config, record, &sizes);
    if !world.is_journaled() {
        // Nothing leads back, and it says so.
        let mut restarted = restarted;
        let mut out = Vec::new();
        restarted.failover(FAILOVER, crate::replication::core::Keep::Checkpoint, &mut out);
        let refused = format!("{out:?}").contains(&format!("{:?}", GroupError::ViewLost));
        if !refused {
            return Err("a node without a journal promises what only its memory had".to_string());
        }
        return match promised(world) {
            Some(epoch) if record.committed < epoch => {
                Err(format!("epoch {epoch} was told and is not there"))
            }
            _ => Ok(record.committed),
        };
    }
    if restarted.rolled_back_to() != Some(record.committed) {
        return Err("the record names no way back".to_string());
    }
    let mut disks: Vec<Vec<u8>> = vec![Vec::new(); VOLUMES];
    let mut epochs: Vec<Epoch> = world.records.iter().map(|record| record.committed).collect();
    epochs.dedup();
    for epoch in epochs {
        let mut array = Array(durable.disks.clone());
        let back = RollBack::find(&mut durable, &HEADER, epoch).map_err(|error| error.to_string())?;
        back.check(&array).map_err(|error| error.to_string())?;
        back.carry_out(&mut durable, &mut array).map_err(|error| error.to_string())?;
        for volume in (0..VOLUMES).filter(|&volume| world.records[volume].committed == epoch) {
            disks[volume].clone_from(&array.0[volume].durable);
        }
    }
    check(world, promised(world), record.committed, |volume| &disks[volume])
}

/// Every volume is at one epoch, which is the one that the record names and not older than what was told.
fn check<'a>(
    world: &World,
    promised: Option<Epoch>,
    committed: Epoch,
    content: impl Fn(usize) -> &'a [u8],
) -> Result<Epoch, String> {
    if committed != BEFORE && committed != COMMITTED {
        return Err(format!("the record names epoch {committed}"));
    }
    if promised.is_some_and(|epoch| epoch > committed) {
        return Err(format!("epoch {COMMITTED} was told, and the record names {committed}"));
    }
    for volume in 0..VOLUMES {
        let [before, after] = [BEFORE, COMMITTED].map(|epoch| world.content_at(volume, epoch));
        assert_ne!(before, after, "there is something to tell them by");
        let expected = if committed == BEFORE { &before } else { &after };
        if content(volume) != expected {
            let other = if content(volume) == before { "the one before" } else { "another content" };
            return Err(format!("volume {volume} has not epoch {committed}, but {other}"));
        }
    }
    Ok(committed)
}

/// How many crashes ended at the epoch before, and at the one that was being committed.
#[derive(Debug, Default)]
struct Seen {
    before: usize,
    after: usize,
}

impl Seen {
    fn count(&mut self, epoch: Epoch) {
        if epoch == BEFORE { self.before += 1 } else { self.after += 1 }
    }
}

/// Loses the secondary's power after each step of a checkpoint; what the steps were.
fn lose_power_everywhere(
    seed: u64,
    fault: Fault,
    journal: bool,
    seen: &mut Seen,
) -> Result<Vec<Step>, String> {
    let mut world = world(seed, fault, journal);
    let mut rng = Rng::new(seed + 1);
    let mut steps = Vec::new();
    let mut left = AFTERWARDS;
    while left > 0 {
        let number = steps.len();
        let at = |error| format!("seed {seed}, power lost after step {number}: {error}");
        seen.count(lose_power(&world, &mut rng).map_err(at)?);
        steps.extend(step(&mut world, number));
        left -= usize::from(promised(&world).is_some());
    }
    assert_eq!(promised(&world), Some(COMMITTED), "seed {seed}");
    world.settle();
    assert!(!world.hosts_wait(), "seed {seed}: every write was answered");
    Ok(steps)
}

/// Loses the primary after the step, with what it had sent or without.
fn lose_primary_after(seed: u64, fault: Fault, journal: bool, last: usize) -> Result<Epoch, String> {
    let mut world = world(seed, fault, journal);
    (0..last).for_each(|number| {
        step(&mut world, number);
    });
    let arrives = last.is_multiple_of(2);
    lose_primary(world, arrives).map_err(|error| {
        format!("seed {seed}, primary lost after step {last} (what it sent arrives: {arrives}): {error}")
    })
}

fn everywhere(journal: bool) {
    let (mut power, mut primary) = (Seen::default(), Seen::default());
    let seed = 1 + u64::from(journal);
    let steps = lose_power_everywhere(seed, Fault::None, journal, &mut power).expect("all or nothing");
    assert!(power.before > 100 && power.after >= AFTERWARDS, "{power:?}");
    // Before and after everything that belongs to the checkpoint, and now and then at what belongs to the load.
    let is_of_checkpoint = |number: usize| steps.get(number) == Some(&Step::Checkpoint);
    for last in 0..=steps.len() {
        if is_of_checkpoint(last) || is_of_checkpoint(last.wrapping_sub(1)) || last.is_multiple_of(16) {
            primary.count(lose_primary_after(seed, Fault::None, journal, last).expect("all or nothing"));
        }
    }
    assert!(primary.before > 50 && primary.after > 10, "{primary:?}");
    println!("{} steps; power lost: {power:?}; primary lost: {primary:?}", steps.len());
}

#[test]
fn a_checkpoint_of_64_volumes_is_all_or_nothing_at_every_step() {
    everywhere(false);
}

#[test]
fn a_checkpoint_of_64_volumes_with_a_journal_is_all_or_nothing_at_every_step() {
    everywhere(true);
}

#[test]
fn other_orders_of_the_steps_make_no_difference_to_a_loss_of_power() {
    for seed in 10..12 {
        let mut seen = Seen::default();
        lose_power_everywhere(seed, Fault::None, true, &mut seen).expect("all or nothing");
    }
}

#[test]
fn what_would_make_a_mix_of_epochs_is_found() {
    for (fault, journal) in [
        (Fault::RecordPerVolume, true),
        (Fault::ToldBeforeDurable, true),
        (Fault::NoFlush, true),
        (Fault::DropOnPrepare, false),
        (Fault::DropOnPrepare, true),
        (Fault::ForgottenVolume, false),
    ] {
        let by_power = matches!(fault, Fault::RecordPerVolume | Fault::ToldBeforeDurable | Fault::NoFlush);
        let found = match by_power {
            true => lose_power_everywhere(1, fault, journal, &mut Seen::default()).map(|_| ()),
            false => {
                (0..120).try_for_each(|tenth| lose_primary_after(1, fault, journal, tenth * 10).map(|_| ()))
            }
        };
        let error = found.expect_err(&format!("{fault:?} goes unnoticed"));
        println!("{fault:?}: {error}");
    }
}
