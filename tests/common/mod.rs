//! What the end-to-end suites share: real processes seen from outside.
//!
//! [`node::Node`] is one running `lockstep serve`, [`rpc::Rpc`] speaks to it, [`nvme::Host`] is a plain NVMe/TCP
//! initiator written from the specification alone (no code of the target), [`guest::Guest`] is a Linux kernel as the
//! initiator, [`netns::Namespace`] a network of one's own. Everything started here ends with the value that stands for
//! it, by process id, also when the test panics or the runner is killed.
//!
//! Nothing here skips: what a machine lacks is a panic that names it. `tests/run` installs what is needed.
#![allow(dead_code)] // every suite is a crate of its own and uses its own part

pub mod export;
pub mod guest;
pub mod load;
pub mod netns;
pub mod node;
pub mod nvme;
pub mod pair;
pub mod rpc;
pub mod stamps;

use std::time::{Duration, Instant};

/// Asks `condition` until it holds; a panic that names `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "waited {limit:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that look random and that `seed` alone determines.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The block that holds the first difference of two images, for a message that a person can act on.
pub fn first_difference(left: &[u8], right: &[u8], block_size: usize) -> Option<usize> {
    if left.len() != right.len() {
        return Some(left.len().min(right.len()) / block_size);
    }
    left.chunks(block_size).zip(right.chunks(block_size)).position(|(l, r)| l != r)
}
