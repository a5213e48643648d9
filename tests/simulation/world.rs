//! One run: two nodes, the network, the hosts and the operator of a plan, in simulated time. Everything that happens
//! stands in one queue; nothing depends on anything but the plan.

use super::check::Broken;
use super::disk::{Cell, Disk, cell};
use super::node::*;
use super::oracle::{BASE, Oracle};
use super::plan::Plan;
use super::rng::Rng;
use super::wire::Network;
use lockstep::env::{Buf, SgList};
use lockstep::replication::core::{Armed, Geometry, Keep, Range};
use lockstep::replication::volume::Blocks;
use lockstep::replication::{Epoch, Generation};
use std::collections::{BTreeMap, BTreeSet};

pub const A: usize = 0;
pub const B: usize = 1;

/// The machines' step of time, in microseconds, and the deadlines of the shell: shorter than in production, in proportion
/// to disks and links.
pub const TICK: u64 = 5_000;
pub const HUNG_TICKS: u32 = 4;
pub const PEER_TIMEOUT: u64 = 30_000;
pub const CONNECT_MS: u32 = 60;
pub const ATTEMPT: u64 = 10_000;
pub const FAILOVER_MS: u32 = 50;
pub const CHECKPOINT_MS: u32 = 100;
/// What reactors and the network may add to a deadline.
pub const SLACK: u64 = 25_000;
/// How long a run goes on after its last event, when all is healed: longer than any pause before something is tried again.
pub const REST: u64 = 700_000;

pub enum Happening {
    Event(usize),
    Io { node: usize, boot: u32, volume: usize, io: u64 },
    File { node: usize, boot: u32 },
    Call { node: usize, boot: u32, to: usize, from: usize, call: Call },
    Wire { conn: usize, to: usize },
    Timer { node: usize, boot: u32, armed: Armed },
    Tick { node: usize, boot: u32 },
    Heartbeat { node: usize, boot: u32 },
    Acks { node: usize, boot: u32, reactor: usize },
    GoOn { node: usize, boot: u32, reactor: usize, lane: usize, conn: usize },
    Dial { boot: u32 },
    DialFailed { boot: u32, session: u64 },
    Due(u64),
    HealAll,
    End,
}

/// What a host asked for.
pub enum Asked {
    Read { into: Blocks, before: Vec<Cell>, commits: u64, promoted: bool },
    Write(usize),
    Compare { write: usize, expected: Vec<Cell> },
    Flush(u64),
}

/// A host's command at the machine of one stripe.
pub struct HostCommand {
    pub node: usize,
    pub reactor: usize,
    pub volume: u8,
    pub range: Range,
    pub asked: Asked,
    pub submit: u64,
    /// The newest epoch of which anything had been acknowledged.
    pub acked: Epoch,
    pub command: Option<lockstep::replication::core::Command<Blocks>>,
}

/// A flush goes to every reactor.
pub struct Flushing {
    pub left: usize,
    pub ok: bool,
    pub submit: u64,
    pub linked: bool,
    pub volume: u8,
}

/// A command of the operator.
pub struct Commanded {
    pub node: usize,
    pub boot: u32,
    pub text: String,
    pub what: Wanted,
    pub submit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Nothing,
    Start,
    Prepare,
    Checkpoint,
    Commit,
    Failover,
}

pub struct World {
    pub plan: Plan,
    pub rng: Rng,
    pub now: u64,
    pub order: u64,
    pub queue: BTreeMap<(u64, u64), Happening>,
    pub nodes: [Node; 2],
    pub network: Network,
    pub oracle: Oracle,
    pub hosts: BTreeMap<u64, HostCommand>,
    pub flushes: BTreeMap<u64, Flushing>,
    pub commands: BTreeMap<u64, Commanded>,
    pub next: u64,
    pub broken: Option<Broken>,
    pub story: Option<Vec<String>>,
    /// A digest of everything that happened.
    pub digest: u64,
    pub steps: u64,
    /// B's machines that are promoted, commits carried out, whether B's disk ever hung or failed since the session began.
    pub promoted: BTreeSet<usize>,
    pub commits: u64,
    pub pinned: bool,
    pub spoilt: bool,
    pub b_crashed: Option<bool>,
    pub committing: (Epoch, usize),
    /// The epoch with which B's session began.
    pub session_begins: Epoch,
    pub full_session: bool,
    /// The highest epoch in which anything acknowledged was launched.
    pub acked_epoch: Epoch,
    /// The newest epoch that a caller was told is closed.
    pub closed: Epoch,
    /// Sessions that B began.
    pub sessions: u64,
    /// The newest epoch that a caller was told is durable.
    pub told_committed: Epoch,
    /// Failovers that missed their deadline; the promotion may come yet.
    pub late_failovers: BTreeSet<u64>,
    /// The newest generation of either node that was told.
    pub generations: [Generation; 2],
    /// B's last failover, and how B last went down.
    pub kept: Keep,
    pub b_was_promoted: bool,
    pub b_power: bool,
    pub reach: Reach,
}

/// What a run came to: so that a simulator that tests nothing is noticed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Reach {
    pub acked: u64,
    pub commits: u64,
    pub promoted: u64,
    pub syncs: u64,
    pub fenced: u64,
    pub pins: u64,
    pub overruns: u64,
    pub crashes: u64,
    pub reads: u64,
    pub drained: u64,
}

impl Reach {
    pub fn add(&mut self, other: &Reach) {
        self.acked += other.acked;
        self.commits += other.commits;
        self.promoted += other.promoted;
        self.syncs += other.syncs;
        self.fenced += other.fenced;
        self.pins += other.pins;
        self.overruns += other.overruns;
        self.crashes += other.crashes;
        self.reads += other.reads;
        self.drained += other.drained;
    }
}

impl World {
    pub fn new(plan: &Plan, with_story: bool) -> World {
        let shape = plan.shape.clone();
        let mut rng = Rng::new(plan.seed ^ 0x5EED);
        let blocks = shape.blocks();
        let content = |write: u32| -> Vec<Vec<Cell>> {
            let volume = |volume: u8| (0..blocks).map(|lba| cell(write, volume, lba)).collect();
            (0..shape.volumes).map(volume).collect()
        };
        let a = content(BASE);
        // Disks that were never made equal hold anything.
        let b = if shape.equal { a.clone() } else { content(u32::MAX) };
        let node = |content: &Vec<Vec<Cell>>| Node {
            boot: 0,
            memory: None,
            disks: content.iter().cloned().map(Disk::new).collect(),
            file: File::new(),
        };
        let nodes = [node(&a), node(&b)];
        rng.next();
        World {
            plan: plan.clone(),
            rng,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            nodes,
            network: Network::default(),
            oracle: Oracle::new(a, b, shape.equal),
            hosts: BTreeMap::new(),
            flushes: BTreeMap::new(),
            commands: BTreeMap::new(),
            next: 1,
            broken: None,
            story: with_story.then(Vec::new),
            digest: 0,
            steps: 0,
            promoted: BTreeSet::new(),
            commits: 0,
            pinned: false,
            spoilt: false,
            b_crashed: None,
            committing: (Epoch(0), 0),
            session_begins: Epoch(0),
            full_session: false,
            acked_epoch: Epoch(0),
            closed: Epoch(0),
            sessions: 0,
            told_committed: Epoch(0),
            late_failovers: BTreeSet::new(),
            generations: [Generation(0); 2],
            kept: Keep::Latest,
            b_was_promoted: false,
            b_power: false,
            reach: Reach::default(),
        }
    }

    /// Runs to the end, or to the first thing that must not be.
    pub fn run(&mut self) {
        for at in 0..self.plan.events.len() {
            let time = u64::from(self.plan.events[at].at);
            self.happen_at(time, Happening::Event(at));
        }
        let end = self.plan.end() + 1_000;
        self.happen_at(end, Happening::HealAll);
        self.happen_at(end + REST, Happening::End);
        self.boot(A);
        self.boot(B);
        while self.broken.is_none()
            && let Some(((at, order), what)) = self.queue.pop_first()
        {
            self.now = at;
            self.steps += 1;
            if matches!(what, Happening::End) {
                self.check_end();
                break;
            }
            self.step(order, what);
        }
    }

    pub fn happen_at(&mut self, at: u64, what: Happening) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), what);
    }

    pub fn happen(&mut self, after: u64, what: Happening) {
        self.happen_at(self.now + after, what);
    }

    fn is_current(&self, node: usize, boot: u32) -> bool {
        self.nodes[node].boot == boot && self.nodes[node].memory.is_some()
    }

    fn step(&mut self, order: u64, what: Happening) {
        match what {
            Happening::Event(at) => self.event(self.plan.events[at].event),
            Happening::Io { node, boot, volume, io } => {
                if self.is_current(node, boot) {
                    self.io_step(node, volume, io);
                }
            }
            Happening::File { node, boot } => {
                if self.is_current(node, boot) {
                    self.file_done(node);
                }
            }
            Happening::Call { node, boot, to, from, call } => {
                if !self.is_current(node, boot) {
                    return;
                }
                let stalled = self.reactor(node, to).stalled_until;
                if stalled > self.now {
                    // All that comes to a stalled reactor waits, and keeps its order.
                    self.queue.insert((stalled, order), Happening::Call { node, boot, to, from, call });
                    return;
                }
                self.called(node, from, to, call);
            }
            Happening::Wire { conn, to } => self.deliver(conn, to),
            Happening::Timer { node, boot, armed } => {
                if self.is_current(node, boot) {
                    self.timer(node, armed);
                }
            }
            Happening::Tick { node, boot } => {
                if self.is_current(node, boot) {
                    self.tick(node);
                    self.happen(TICK, Happening::Tick { node, boot });
                }
            }
            Happening::Heartbeat { node, boot } => {
                if self.is_current(node, boot) {
                    self.heartbeat(node);
                }
            }
            Happening::Acks { node, boot, reactor } => {
                if self.is_current(node, boot) {
                    self.send_acks(node, reactor);
                }
            }
            Happening::GoOn { node, boot, reactor, lane, conn } => {
                if self.is_current(node, boot) {
                    self.writable(node, reactor, lane, conn);
                }
            }
            Happening::Dial { boot } => {
                if self.is_current(A, boot) {
                    self.dial_again();
                }
            }
            Happening::DialFailed { boot, session } => {
                if self.is_current(A, boot) && self.memory(A).session == session {
                    self.dial_failed(session);
                }
            }
            Happening::Due(command) => self.check_due(command),
            Happening::HealAll => self.heal_all(),
            Happening::End => {}
        }
    }

    pub fn memory(&mut self, node: usize) -> &mut Memory {
        self.nodes[node].memory.as_mut().expect("callers look whether the node is up")
    }

    pub fn reactor(&mut self, node: usize, reactor: usize) -> &mut Reactor {
        &mut self.memory(node).reactors[reactor]
    }

    pub fn reactors(&self, node: usize) -> usize {
        usize::from(self.plan.shape.reactors[node])
    }

    pub fn volumes(&self) -> usize {
        usize::from(self.plan.shape.volumes)
    }

    pub fn geometry(&self, node: usize, owner: usize) -> Geometry {
        Geometry {
            blocks: self.plan.shape.blocks(),
            block_bytes: self.plan.shape.block_bytes,
            granule_blocks: if node == A { 1 } else { self.plan.shape.granule_blocks },
            owners: self.reactors(node) as u16,
            owner: owner as u16,
        }
    }

    pub fn owner_of(&self, node: usize, lba: u64) -> usize {
        let owners = self.plan.shape.reactors[node].into();
        usize::from(Geometry::owner_of(lba, self.plan.shape.block_bytes, owners))
    }

    /// A message between the reactors of a node. From one to another they keep their order.
    pub fn call(&mut self, node: usize, from: usize, to: usize, call: Call) {
        // Orders are late more often: what a cut is made of must not depend on when they come.
        let late = if matches!(call, Call::Order(_)) { 15 } else { 4 };
        let delay = if self.rng.chance(late) { self.rng.between(6, 900) } else { self.rng.between(0, 6) };
        let now = self.now;
        let boot = self.nodes[node].boot;
        let reactor = self.reactor(node, to);
        let at = (now + delay).max(reactor.hops[from]).max(reactor.stalled_until);
        reactor.hops[from] = at;
        self.happen_at(at, Happening::Call { node, boot, to, from, call });
    }

    pub fn tell(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(story) = &mut self.story {
            story.push(format!("{:>9.3} ms  {}", now as f64 / 1000.0, text()));
        }
    }

    pub fn digest(&mut self, what: u64) {
        let mixed = self.digest.rotate_left(7) ^ what.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.now;
        self.digest = mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A payload with these cells, each at both ends of its block.
    pub fn payload(&self, cells: &[Cell]) -> Blocks {
        let size = self.plan.shape.block_bytes as usize;
        let mut bufs = SgList::new();
        if let Some(buf) = Buf::heap(cells.len() * size) {
            buf.with_mut(|bytes| {
                for (block, cell) in bytes.chunks_exact_mut(size).zip(cells) {
                    block[..8].copy_from_slice(&cell.to_le_bytes());
                    block[size - 8..].copy_from_slice(&cell.to_le_bytes());
                }
            });
            bufs.push(buf);
        }
        Blocks::new(bufs, self.plan.shape.block_bytes)
    }

    /// The cells of a payload; `None` when a block is torn.
    pub fn cells(&self, payload: &Blocks) -> Option<Vec<Cell>> {
        let size = self.plan.shape.block_bytes as usize;
        let mut cells = Vec::new();
        for buf in payload.bufs() {
            let whole = buf.with(|bytes| {
                bytes.chunks_exact(size).all(|block| {
                    cells.push(word(&block[..8]));
                    block[..8] == block[size - 8..]
                })
            });
            if !whole {
                return None;
            }
        }
        Some(cells)
    }

    pub fn name(node: usize) -> &'static str {
        if node == A { "A" } else { "B" }
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}
