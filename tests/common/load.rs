//! Several writers on a pair, and waiting for what becomes of them and of the group.

use super::node::Node;
use super::pair::{Pair, group};
use super::stamps::{self, BLOCK, Writer};
use super::{first_difference, wait_until};
use std::time::Duration;

/// For states that a busy machine reaches late.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `count` writers that share the blocks of the first volume.
pub fn writers(pair: &Pair, blocks: u64, count: u64) -> Vec<Writer> {
    (0..count).map(|i| Writer::start(pair.volume(), i * (blocks / count), blocks / count)).collect()
}

#[track_caller]
pub fn stop(writers: &mut [Writer]) {
    for writer in writers {
        assert_eq!(writer.stop(), "stopped");
    }
}

/// The load ends by itself, because its node does not serve any more.
#[track_caller]
pub fn wait_for_end(writers: &mut [Writer]) {
    for writer in writers {
        assert_ne!(writer.wait(PATIENCE), "stopped", "the load goes on");
    }
}

pub fn acknowledged(writers: &[Writer]) -> Vec<usize> {
    stamps::progress(writers).acknowledged
}

pub fn wait_for_progress(writers: &[Writer], by: usize) {
    let from = acknowledged(writers);
    wait_until("every writer goes on", PATIENCE, || {
        acknowledged(writers).iter().zip(&from).all(|(now, then)| *now >= then + by)
    });
}

/// Waits until nothing is acknowledged any more; what was acknowledged at last.
pub fn wait_for_silence(writers: &[Writer]) -> Vec<usize> {
    // A node that goes on needs a hundredth of this for a write.
    let quiet = Duration::from_millis(1500);
    let mut last = acknowledged(writers);
    wait_until("no write is acknowledged any more", PATIENCE, || {
        std::thread::sleep(quiet);
        let now = acknowledged(writers);
        std::mem::replace(&mut last, now.clone()) == now
    });
    last
}

pub fn wait_for_state(node: &Node, state: &str) {
    wait_until(&format!("the group is '{state}'"), PATIENCE, || group(node)["state"] == state);
}

#[track_caller]
pub fn assert_same(left: &[u8], right: &[u8], what: &str) {
    if let Some(block) = first_difference(left, right, BLOCK) {
        panic!("{what}: the first difference is in block {block}");
    }
}
