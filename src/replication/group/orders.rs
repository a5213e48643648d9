//! A group machine's orders to the shards of all reactors, and the shards' answers.

use super::HOME;
use super::home::{self, Fixed};
use super::options::VERIFY_PATIENCE;
use crate::reactor;
use crate::replication::core::{Last, ToStripes};
use crate::replication::volume::{Shard, shard_of};
use std::sync::Arc;

/// Sends an order to every reactor of the node. Orders arrive in the order in which they are given.
pub(super) fn give(fixed: &Arc<Fixed>, order: &ToStripes) {
    for to in 0..usize::from(fixed.reactors) {
        let (fixed, order) = (fixed.clone(), order.clone());
        reactor::spawn_call(to, move || {
            if let Some(shard) = shard_of(fixed.serial) {
                carry_out(&fixed, &shard, order);
            }
        });
    }
}

/// Tells the group machine something.
fn tell(serial: u64, f: impl FnOnce(&home::Home) + Send + 'static) {
    reactor::spawn_call(HOME, move || {
        if let Some(home) = home::home_of(serial) {
            f(&home);
        }
    });
}

fn carry_out(fixed: &Arc<Fixed>, shard: &Shard, order: ToStripes) {
    let serial = fixed.serial;
    let here = reactor::core_index() as u16;
    match order {
        ToStripes::LinkUp(session) => shard.link_up(session),
        ToStripes::LinkDown => shard.link_down(),
        ToStripes::Freeze => {
            shard.freeze();
            tell(serial, |home| home.primary(|group, out| group.frozen(out)));
        }
        ToStripes::Stamp { next, preserve } => {
            let last = |(lane, sequence)| Last { primary_reactor: here, secondary_reactor: lane, sequence };
            let lasts = shard.stamp(next, preserve).into_iter().map(last).collect();
            tell(serial, move |home| home.primary(|group, out| group.stamped(lasts, out)));
        }
        ToStripes::Thaw => shard.thaw(),
        ToStripes::GoAlone => shard.go_alone(),
        ToStripes::StartCopy { only_dirty } => shard.start_copy(only_dirty),
        ToStripes::Verify { round, rate_bytes } => {
            shard.start_verify(round, rate_bytes / u64::from(fixed.reactors.max(1)), VERIFY_PATIENCE);
        }
        ToStripes::VerifyStop => shard.cancel_verify(),
        ToStripes::Fence => shard.fence(),
        ToStripes::Suspend => shard.suspend(),
        ToStripes::KeepDisk => shard.keep_disk(),
        ToStripes::Detach { volume } => shard.detach_disk(volume),
        ToStripes::Fill { volume } => shard.fill(volume),
        ToStripes::AttachDisk { volume, leans } => shard.attach_disk(volume, leans),
        ToStripes::PeerRestarted => shard.peer_restarted(),
        ToStripes::SetPatience(patience_ms) => shard.set_patience(patience_ms),
        ToStripes::SetCopies(options) => shard.set_copies(options, fixed.reactors),
        ToStripes::SetAck(ack) => shard.set_ack(ack),
        ToStripes::SetOnLinkLoss(policy) => shard.set_on_link_loss(policy),
        ToStripes::Begin { generation, base, volume_bytes, originals } => {
            let made = fixed.become_secondary(shard, generation, base);
            shard.begin(generation, base, &volume_bytes, originals);
            tell(serial, move |home| home.secondary(|group, out| group.done(made, out)));
        }
        ToStripes::Prepare { epoch, lasts } => {
            let mine = lasts.into_iter().filter(|last| last.secondary_reactor == here);
            let lasts = mine.map(|last| (last.primary_reactor, last.sequence)).collect();
            let done = move |result| {
                tell(serial, move |home| home.secondary(|group, out| group.prepared(epoch, result, out)));
            };
            shard.prepare(epoch, lasts, Box::new(done));
        }
        ToStripes::Settle { epoch } => shard.settle(epoch),
        ToStripes::Commit { epoch } => {
            shard.commit(epoch);
            let moved = shard.take_moved_bytes();
            tell(serial, move |home| {
                home.secondary(|group, out| {
                    group.moved(moved);
                    group.done(true, out);
                });
            });
        }
        ToStripes::History { from } => shard.set_history(from),
        ToStripes::HoldPast { epoch } => {
            let held = shard.hold_past(epoch);
            tell(serial, move |home| home.secondary(|group, out| group.done(held, out)));
        }
        ToStripes::RollBack { epoch } => {
            let ok = shard.roll_back(epoch).is_ok();
            tell(serial, move |home| home.secondary(|group, out| group.done(ok, out)));
        }
        ToStripes::Extend { volume, bytes } => {
            let room = shard.extend(volume, bytes);
            tell(serial, move |home| home.secondary(|group, out| group.done(room, out)));
        }
        ToStripes::Resize { volume, bytes } => {
            shard.resize(volume, bytes);
            tell(serial, |home| home.secondary(|group, out| group.done(true, out)));
        }
        ToStripes::Abort => shard.abort(),
        ToStripes::LoseThrough(epoch) => shard.lose_through(epoch),
        ToStripes::Hold { keep, generation } => {
            let made = fixed.become_secondary(shard, generation, fixed.committed());
            let ok = made && shard.hold_promise(keep);
            tell(serial, move |home| home.secondary(|group, out| group.done(ok, out)));
        }
        ToStripes::Release => shard.release_promise(),
        ToStripes::Promote { keep, generation } => {
            let made = fixed.become_secondary(shard, generation, fixed.committed());
            let ok = made && shard.promote(keep, generation).is_ok();
            let moved = shard.take_moved_bytes();
            tell(serial, move |home| {
                home.secondary(|group, out| {
                    group.moved(moved);
                    group.done(ok, out);
                });
            });
        }
    }
}
