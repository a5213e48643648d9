//! The reference model. It knows what hosts asked and what they were told, what the primary launched, and what arrived
//! at the secondary; from that follows what every block may contain, at either node, at any time. It knows nothing of
//! how the product does it.

use super::disk::{Cell, cell};
use lockstep::replication::Epoch;
use lockstep::replication::core::Range;
use std::collections::BTreeMap;

/// Content that nobody promised anything about.
pub const WILD: Cell = Cell::MAX;
/// The write that stands for the content at the beginning.
pub const BASE: u32 = 1;

/// A host's write, at either node. Times count what happens, from 1.
pub struct Write {
    pub node: usize,
    pub volume: u8,
    pub range: Range,
    pub zeroes: bool,
    pub fua: bool,
    pub submit: u64,
    pub end: Option<u64>,
    pub ok: bool,
    /// The epoch in which the primary launched it.
    pub launched: Option<Epoch>,
    /// Launched over a link that stood.
    pub linked: bool,
    /// In which session that was.
    pub session: u64,
    /// The primary crashed since: its epochs may be counted from elsewhere now.
    pub gone: bool,
    /// Acknowledged in a mode that promises it to be at the peer; so that it survives there also a crash, or a loss
    /// of power; and a loss of power here.
    pub promised: bool,
    pub kept: bool,
    pub durable_there: bool,
    pub durable: bool,
}

pub struct Register {
    pub base: Vec<Vec<Cell>>,
    pub writes: BTreeMap<(u8, u64), Vec<usize>>,
}

impl Register {
    pub fn new(base: Vec<Vec<Cell>>) -> Register {
        Register { base, writes: BTreeMap::new() }
    }

    pub fn add(&mut self, volume: u8, range: Range, index: usize) {
        for lba in range.lba..range.end() {
            self.writes.entry((volume, lba)).or_default().push(index);
        }
    }
}

pub struct Oracle {
    pub clock: u64,
    pub writes: Vec<Write>,
    /// The volumes as hosts of A know them, since A's last start.
    pub host: Register,
    /// Everything that A launched since the disks were last made equal.
    pub log: Register,
    /// The same, since A's last start, if there was another one since.
    pub later: Option<Register>,
    /// B: everything that arrived; what of it is committed; the rest, by volume, in the order of arrival.
    pub arrived: Vec<Vec<Cell>>,
    pub committed: Vec<Vec<Cell>>,
    pub pending: Vec<Vec<(Epoch, Range, Vec<Cell>)>>,
    /// What B's own hosts wrote since the last commit.
    pub own: BTreeMap<(u8, u64), Cell>,
    /// The volumes as hosts of B know them once it is promoted.
    pub served: Register,
    /// Whether this session's commits are to equal the primary; whether A knows everything that B lacks.
    pub tracked: bool,
    pub covered: bool,
}

impl Oracle {
    pub fn new(a: Vec<Vec<Cell>>, b: Vec<Vec<Cell>>, equal: bool) -> Oracle {
        Oracle {
            clock: 1,
            writes: Vec::new(),
            host: Register::new(a.clone()),
            log: Register::new(a),
            later: None,
            pending: b.iter().map(|_| Vec::new()).collect(),
            arrived: b.clone(),
            committed: b,
            own: BTreeMap::new(),
            served: Register::new(Vec::new()),
            tracked: false,
            covered: equal,
        }
    }

    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn write(&mut self, node: usize, volume: u8, range: Range, zeroes: bool, fua: bool) -> usize {
        let submit = self.now();
        self.writes.push(Write {
            node,
            volume,
            range,
            zeroes,
            fua,
            submit,
            end: None,
            ok: false,
            launched: None,
            linked: false,
            session: 0,
            gone: false,
            promised: false,
            kept: false,
            durable_there: false,
            durable: false,
        });
        self.writes.len() - 1
    }

    /// What a write puts into a block.
    pub fn value(&self, index: usize, lba: u64) -> Cell {
        let write = &self.writes[index];
        if write.zeroes { 0 } else { cell(index as u32 + BASE + 1, write.volume, lba) }
    }

    /// What a block may contain, for an observer who began to look at `from`: of all writes, those that no later one has
    /// overwritten for certain. `counts` says which ended writes are certain to be there.
    pub fn allowed(
        &self,
        register: &Register,
        volume: u8,
        lba: u64,
        from: u64,
        counts: impl Fn(&Write) -> bool,
    ) -> Vec<Cell> {
        let base = register.base[usize::from(volume)][lba as usize];
        let Some(indices) = register.writes.get(&(volume, lba)) else { return vec![base] };
        let certain = |write: &&Write| write.ok && counts(write) && write.end.is_some_and(|end| end <= from);
        let writes = indices.iter().map(|&index| &self.writes[index]);
        let newest = writes.filter(certain).map(|write| write.submit).max().unwrap_or(0);
        let mut cells = Vec::with_capacity(2);
        if newest == 0 {
            cells.push(base);
        }
        for &index in indices {
            if self.writes[index].end.is_none_or(|end| end >= newest) {
                cells.push(self.value(index, lba));
            }
        }
        cells
    }

    /// What a block may contain at the cut of an epoch.
    pub fn at_cut(&self, volume: u8, lba: u64, epoch: Epoch) -> Vec<Cell> {
        let mut cells = vec![self.log.base[usize::from(volume)][lba as usize]];
        for &index in self.log.writes.get(&(volume, lba)).into_iter().flatten() {
            let write = &self.writes[index];
            if write.launched.is_none_or(|launched| launched > epoch) {
                continue;
            }
            if write.end.is_some() && write.ok {
                cells.clear();
            }
            cells.push(self.value(index, lba));
        }
        cells
    }

    /// What B's own hosts are to see in a block.
    pub fn view(&self, volume: u8, lba: u64) -> Cell {
        let own = self.own.get(&(volume, lba));
        own.copied().unwrap_or(self.committed[usize::from(volume)][lba as usize])
    }

    /// A forwarded write arrived and was not refused.
    pub fn forwarded(&mut self, volume: u8, epoch: Epoch, range: Range, cells: Vec<Cell>) {
        let into = &mut self.arrived[usize::from(volume)];
        into[range.lba as usize..range.end() as usize].copy_from_slice(&cells);
        self.pending[usize::from(volume)].push((epoch, range, cells));
    }

    /// What the disk did with a range is unknown.
    pub fn spoil(&mut self, volume: u8, range: Range) {
        let volume = usize::from(volume);
        let blocks = range.lba as usize..range.end() as usize;
        self.arrived[volume][blocks.clone()].fill(WILD);
        self.committed[volume][blocks].fill(WILD);
    }

    /// The machines of one of B's reactors moved to a commit.
    pub fn commit(&mut self, epoch: Epoch, owned: impl Fn(u64) -> bool) {
        for (volume, pending) in self.pending.iter_mut().enumerate() {
            let committed = &mut self.committed[volume];
            pending.retain(|(of, range, cells)| {
                let over = *of <= epoch && owned(range.lba);
                if over {
                    for (at, &cell) in cells.iter().enumerate() {
                        let place = &mut committed[range.lba as usize + at];
                        *place = if *place == WILD { WILD } else { cell };
                    }
                }
                !over
            });
        }
        self.own.retain(|&(_, lba), _| !owned(lba));
    }

    /// A session begins at the machines of one of B's reactors: what arrived is what it begins with.
    pub fn begin(&mut self, owned: impl Fn(u64) -> bool) {
        for volume in 0..self.arrived.len() {
            for (lba, &cell) in self.arrived[volume].iter().enumerate() {
                if owned(lba as u64) {
                    self.committed[volume][lba] = cell;
                }
            }
            self.pending[volume].retain(|(_, range, _)| !owned(range.lba));
        }
        self.own.retain(|&(_, lba), _| !owned(lba));
    }
}
