//! Simulated connections between the two nodes: each a pair of pipes that keep order. Either end may end on its own;
//! what was sent before arrives before the end does, or part of it, or nothing while the network is partitioned.

use super::rng::Rng;
use lockstep::replication::core::{Answer, Claim, Control, Forward, Run};
use lockstep::replication::volume::Blocks;
use lockstep::replication::{Epoch, Generation, Lineage, Past, Sequence};
use std::collections::VecDeque;

/// Why a peer is not talked to, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum No {
    OldGeneration,
    Forever,
    NotNow,
}

#[derive(Clone, Debug)]
pub struct Hello {
    pub claim: Claim,
    pub nonce: u64,
    pub newest: Epoch,
    pub reactors: u16,
    pub lineage: Lineage,
    pub past: Past,
    pub consistent: bool,
    pub restarted: bool,
}

#[derive(Debug)]
pub enum Message {
    Hello(Box<Hello>),
    HelloReply(Box<Hello>),
    Refusal(No),
    DataHello { nonce: u64 },
    DataHelloReply { nonce: u64 },
    Control(Generation, Control),
    Heartbeat,
    HeartbeatReply,
    Forward { volume: u16, sequence: Sequence, forward: Forward<Blocks> },
    Acks { received: Sequence, runs: Vec<Run<(u16, Answer)>> },
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Control,
    /// From a reactor of A to a reactor of B.
    Lane {
        from: u16,
        to: u16,
    },
}

#[derive(Default)]
pub struct Pipe {
    pub queue: VecDeque<Message>,
    /// When the last message arrives.
    pub last: u64,
}

pub struct Conn {
    pub used: Use,
    /// The session that its maker made it for.
    pub session: u64,
    /// Whether the end at either node is open, and since which start of the node.
    pub open: [bool; 2],
    pub boots: [u32; 2],
    /// The pipe towards either node.
    pub towards: [Pipe; 2],
    pub heard: [u64; 2],
    /// Whether either end passed its handshake.
    pub ready: [bool; 2],
}

/// The network between the nodes.
#[derive(Default)]
pub struct Network {
    pub conns: Vec<Conn>,
    /// Nothing reaches this node.
    pub blocked: [bool; 2],
    pub factor: u64,
}

impl Network {
    pub fn latency(&self, rng: &mut Rng) -> u64 {
        let base = if rng.chance(95) { rng.between(5, 60) } else { rng.between(60, 600) };
        base * self.factor.max(1)
    }

    pub fn is_split(&self) -> bool {
        self.blocked[0] || self.blocked[1]
    }
}
