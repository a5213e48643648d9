//! A simulated disk. What stands in a block is a *cell*: which write put it there, and for which block, so that nothing
//! misplaced or torn goes unnoticed. A disk may do what real ones do: overlapping I/O in any order, a write that other I/O
//! finds half done, writes that are lost or kept one by one at a loss of power until a flush covered them.

use super::rng::Rng;
use std::collections::BTreeMap;

/// Write (32 bits), volume (8), block (24); 0 is zeroes.
pub type Cell = u64;

pub fn cell(write: u32, volume: u8, lba: u64) -> Cell {
    u64::from(write) << 32 | u64::from(volume) << 24 | lba
}

/// The write that content comes from; `None` when it is not content of this block.
pub fn origin(cell: Cell, volume: u8, lba: u64) -> Option<u32> {
    match cell {
        0 => Some(0),
        cell if cell & 0xFFFF_FFFF == u64::from(volume) << 24 | lba => Some((cell >> 32) as u32),
        _ => None,
    }
}

pub enum Kind {
    Read,
    Write { cells: Vec<Cell>, fua: bool },
    Flush { covers: Vec<(u64, u64, Cell)> },
}

pub struct DiskIo<J> {
    pub kind: Kind,
    pub lba: u64,
    pub blocks: u32,
    pub job: J,
    /// Blocks done so far; where the first step ends.
    done: u32,
    split: u32,
    executed: bool,
    pub hung: bool,
    fails: bool,
    read: Vec<Cell>,
}

#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub hang: bool,
    pub hang_some: bool,
    pub write_errors: u8,
    pub read_errors: u8,
    pub slow: u8,
}

struct Version {
    io: u64,
    cell: Cell,
    complete: bool,
}

/// What came of a step.
pub enum Step<J> {
    More,
    Done { job: J, result: Result<Vec<Cell>, ()> },
}

pub struct Disk<J> {
    /// What a read finds.
    pub now: Vec<Cell>,
    stable: Vec<Cell>,
    /// What a loss of power may take, oldest first.
    volatile: BTreeMap<u64, Vec<Version>>,
    pub ios: BTreeMap<u64, DiskIo<J>>,
    next: u64,
    pub faults: Faults,
}

impl<J> Disk<J> {
    pub fn new(content: Vec<Cell>) -> Disk<J> {
        Disk {
            stable: content.clone(),
            now: content,
            volatile: BTreeMap::new(),
            ios: BTreeMap::new(),
            next: 0,
            faults: Faults::default(),
        }
    }

    pub fn submit(&mut self, kind: Kind, lba: u64, blocks: u32, job: J, rng: &mut Rng) -> u64 {
        let id = self.next;
        self.next += 1;
        let kind = match kind {
            Kind::Flush { .. } => Kind::Flush { covers: self.completed() },
            kind => kind,
        };
        let errors = match kind {
            Kind::Read => &mut self.faults.read_errors,
            _ => &mut self.faults.write_errors,
        };
        let fails = *errors > 0;
        *errors = errors.saturating_sub(1);
        let hung = self.faults.hang || (self.faults.hang_some && rng.chance(25));
        let split =
            if blocks > 1 && rng.chance(30) { rng.between(1, u64::from(blocks) - 1) as u32 } else { 0 };
        let io =
            DiskIo { kind, lba, blocks, job, done: 0, split, executed: false, hung, fails, read: Vec::new() };
        self.ios.insert(id, io);
        id
    }

    /// What a flush that is submitted now makes durable.
    fn completed(&self) -> Vec<(u64, u64, Cell)> {
        let last = |versions: &Vec<Version>| {
            versions.iter().rev().find(|version| version.complete).map(|version| (version.io, version.cell))
        };
        self.volatile.iter().filter_map(|(&lba, v)| last(v).map(|(io, cell)| (lba, io, cell))).collect()
    }

    /// How long the next step of an I/O takes, in microseconds.
    pub fn latency(&self, rng: &mut Rng) -> u64 {
        let base = match rng.below(100) {
            0..70 => rng.between(3, 40),
            70..97 => rng.between(40, 200),
            _ => rng.between(200, 2_500),
        };
        base * u64::from(self.faults.slow.max(1))
    }

    /// The next step of an I/O: a part of it, the rest, its completion.
    pub fn step(&mut self, id: u64) -> Step<J> {
        let Some(mut io) = self.ios.remove(&id) else { return Step::More };
        if io.hung {
            self.ios.insert(id, io);
            return Step::More;
        }
        if io.executed {
            return self.complete(id, io);
        }
        let upto = if io.split > 0 && io.done == 0 { io.split } else { io.blocks };
        // A write that fails may have been done in part.
        if !io.fails || io.done == 0 && io.split > 0 {
            self.transfer(id, &mut io, upto);
        }
        io.done = upto;
        io.executed = upto == io.blocks;
        self.ios.insert(id, io);
        Step::More
    }

    fn transfer(&mut self, id: u64, io: &mut DiskIo<J>, upto: u32) {
        for at in io.done..upto {
            let lba = io.lba + u64::from(at);
            match &io.kind {
                Kind::Read => io.read.push(self.now[lba as usize]),
                Kind::Write { cells, .. } => {
                    let cell = cells[at as usize];
                    self.now[lba as usize] = cell;
                    let version = Version { io: id, cell, complete: false };
                    self.volatile.entry(lba).or_default().push(version);
                }
                Kind::Flush { .. } => {}
            }
        }
    }

    fn complete(&mut self, id: u64, io: DiskIo<J>) -> Step<J> {
        match &io.kind {
            Kind::Write { cells, fua } if !io.fails => {
                for (at, &cell) in cells.iter().enumerate() {
                    let lba = io.lba + at as u64;
                    if *fua {
                        self.harden(lba, id, cell);
                    } else if let Some(versions) = self.volatile.get_mut(&lba) {
                        versions.iter_mut().filter(|v| v.io == id).for_each(|v| v.complete = true);
                    }
                }
            }
            Kind::Flush { covers } if !io.fails => {
                for &(lba, io, cell) in covers {
                    self.harden(lba, io, cell);
                }
            }
            _ => {}
        }
        let result = if io.fails { Err(()) } else { Ok(io.read) };
        Step::Done { job: io.job, result }
    }

    /// The content that this I/O wrote is durable, and everything of the block before it is history.
    fn harden(&mut self, lba: u64, io: u64, cell: Cell) {
        let Some(versions) = self.volatile.get_mut(&lba) else { return };
        let Some(at) = versions.iter().position(|version| version.io == io) else { return };
        versions.drain(..=at);
        self.stable[lba as usize] = cell;
        if versions.is_empty() {
            self.volatile.remove(&lba);
        }
    }

    /// The node dies: the kernel or the disk may or may not finish what is under way.
    pub fn crash(&mut self, power: bool, rng: &mut Rng) {
        for (id, mut io) in std::mem::take(&mut self.ios) {
            if matches!(io.kind, Kind::Write { .. }) && !io.executed && rng.chance(50) {
                let upto = rng.between(u64::from(io.done), u64::from(io.blocks)) as u32;
                self.transfer(id, &mut io, upto);
            }
        }
        self.faults = Faults::default();
        if !power {
            // The disk has them; the next flush covers them.
            self.volatile.values_mut().flatten().for_each(|version| version.complete = true);
            return;
        }
        let lose_all = rng.chance(40);
        for (lba, versions) in std::mem::take(&mut self.volatile) {
            let kept = if lose_all { 0 } else { rng.between(0, versions.len() as u64) as usize };
            if kept > 0 {
                self.stable[lba as usize] = versions[kept - 1].cell;
            }
            self.now[lba as usize] = self.stable[lba as usize];
        }
    }

    /// Hung I/O is answered again; returns what goes on.
    pub fn heal(&mut self) -> Vec<u64> {
        self.faults = Faults::default();
        let hung: Vec<u64> = self.ios.iter().filter(|(_, io)| io.hung).map(|(&id, _)| id).collect();
        self.ios.values_mut().for_each(|io| io.hung = false);
        hung
    }
}
