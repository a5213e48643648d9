//! What happens in a run: the shape of the pair, and the events from outside in the order of their times. A plan is
//! plain data, so that it can be drawn from a seed, cut down, kept in a file and replayed. How long things take inside
//! is drawn from the plan's seed while it runs.

use lockstep::replication::core::{AckMode, Keep, OnLinkLoss};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ack {
    Local,
    Received,
    Applied,
}

impl From<Ack> for AckMode {
    fn from(ack: Ack) -> AckMode {
        match ack {
            Ack::Local => AckMode::Local,
            Ack::Received => AckMode::Received,
            Ack::Applied => AckMode::Applied,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    Continue,
    Block,
}

impl From<Policy> for OnLinkLoss {
    fn from(policy: Policy) -> OnLinkLoss {
        match policy {
            Policy::Continue => OnLinkLoss::Continue,
            Policy::Block => OnLinkLoss::Block,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Promise {
    Latest,
    Checkpoint,
    Overlay,
}

impl From<Promise> for Keep {
    fn from(promise: Promise) -> Keep {
        match promise {
            Promise::Latest => Keep::Latest,
            Promise::Checkpoint => Keep::Checkpoint,
            Promise::Overlay => Keep::Overlay,
        }
    }
}

/// One of the two nodes: `A` is configured as the primary, `B` as the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    A,
    B,
}

impl Who {
    pub fn at(self) -> usize {
        self as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostOp {
    Read,
    Write,
    Zeroes,
    Unmap,
    Flush,
    /// Compares with what the host last saw, or with something else.
    CompareAndWrite {
        wrong: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFault {
    /// Nothing is answered any more.
    Hang,
    /// One I/O in four is not answered.
    HangSome,
    /// So many writes or flushes fail.
    WriteErrors(u8),
    ReadErrors(u8),
    /// Everything takes so many times as long.
    Slow(u8),
    Heal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    Host {
        node: Who,
        volume: u8,
        op: HostOp,
        lba: u32,
        blocks: u16,
        fua: bool,
    },
    /// The operator's commands. `off` is added to the epoch that was prepared: a mistake unless it is 0.
    Start {
        full: bool,
    },
    StartSecondary,
    Stop(Who),
    Checkpoint {
        timeout_ms: u16,
    },
    Prepare {
        timeout_ms: u16,
    },
    Commit {
        off: i8,
    },
    Abort {
        off: i8,
    },
    Interval {
        ms: u16,
    },
    SetAck(Ack),
    SetPolicy(Policy),
    SetBufferLimit {
        kib: u32,
    },
    Failover(Promise),
    /// The machines.
    Crash {
        node: Who,
        power: bool,
    },
    Restart(Who),
    Stall {
        node: Who,
        reactor: u8,
        us: u32,
    },
    Disk {
        node: Who,
        volume: u8,
        fault: DiskFault,
    },
    Metadata {
        node: Who,
        fault: DiskFault,
    },
    /// The network. Parts of what is on the way arrive before a cut.
    Cut,
    Partition {
        a_to_b: bool,
        b_to_a: bool,
    },
    Slow {
        factor: u8,
    },
    HealLink,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    /// Microseconds from the beginning.
    pub at: u32,
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub volumes: u8,
    pub reactors: [u8; 2],
    pub block_bytes: u32,
    pub granule_blocks: u32,
    /// Whole stripes of a volume, and blocks beyond them.
    pub stripes: u8,
    pub tail: u32,
    pub buffer: bool,
    pub buffer_kib: u32,
    pub ack: Ack,
    pub policy: Policy,
    pub lag_kib: u32,
    /// Whether the disks are equal at the beginning.
    pub equal: bool,
}

impl Shape {
    pub fn blocks(&self) -> u64 {
        u64::from(self.stripes) * self.stripe_blocks() + u64::from(self.tail)
    }

    pub fn stripe_blocks(&self) -> u64 {
        lockstep::replication::core::STRIPE_BYTES / u64::from(self.block_bytes)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// From which the times inside the run are drawn.
    pub seed: u64,
    pub shape: Shape,
    pub events: Vec<Timed>,
}

impl Plan {
    /// When the last event happens.
    pub fn end(&self) -> u64 {
        self.events.iter().map(|timed| u64::from(timed.at)).max().unwrap_or(0)
    }
}
