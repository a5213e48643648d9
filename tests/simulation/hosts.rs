//! The hosts: what they ask, cut into pieces as the volume does it, and what they are told.

use super::disk::{Cell, Kind};
use super::node::*;
use super::oracle::WILD;
use super::plan::HostOp;
use super::world::*;
use lockstep::replication::Epoch;
use lockstep::replication::core::*;
use lockstep::replication::volume::Blocks;

impl World {
    pub fn host(&mut self, node: usize, volume: u8, op: HostOp, range: Range, fua: bool) {
        let serves = match &self.nodes[node].memory {
            Some(memory) => node == B || memory.serving,
            None => false,
        };
        if !serves {
            return;
        }
        let from = self.rng.below(self.reactors(node) as u64) as usize;
        if op == HostOp::Flush {
            return self.host_flush(node, volume, from);
        }
        let stripe = self.plan.shape.stripe_blocks();
        let mut lba = range.lba;
        while lba < range.end() {
            let end = ((lba / stripe + 1) * stripe).min(range.end());
            let piece = Range::new(lba, (end - lba) as u32);
            self.piece(node, volume, op, piece, fua, from);
            if matches!(op, HostOp::CompareAndWrite { .. }) {
                // Atomic over two owners it could not be: the volume refuses it, so hosts do not ask.
                return;
            }
            lba = end;
        }
    }

    fn piece(&mut self, node: usize, volume: u8, op: HostOp, range: Range, fua: bool, from: usize) {
        let (asked, command) = match op {
            HostOp::Read => self.ask_read(volume, range),
            HostOp::Write | HostOp::Zeroes | HostOp::Unmap => {
                let zeroes = op != HostOp::Write;
                let index = self.new_write(node, volume, range, zeroes, fua);
                let data = if zeroes { Data::Zeroes } else { Data::Bytes(self.write_payload(index, range)) };
                (Asked::Write(index), Command::Write { range, data, fua })
            }
            HostOp::CompareAndWrite { wrong } => self.ask_compare(node, volume, range, fua, wrong),
            HostOp::Flush => return,
        };
        let owner = self.owner_of(node, range.lba);
        let to = if node == A && op == HostOp::Read { from } else { owner };
        let text = match &asked {
            Asked::Write(write) | Asked::Compare { write, .. } => format!(" as write {}", write + 2),
            _ => String::new(),
        };
        self.tell(|| {
            let (lba, end) = (range.lba, range.end());
            let fua = if fua { " FUA" } else { "" };
            format!("{}'s host: {op:?}{fua} volume {volume} blocks {lba}..{end}{text}", Self::name(node))
        });
        self.ask(node, to, from, volume, range, asked, Some(command));
    }

    #[allow(clippy::too_many_arguments, reason = "one command's parts, gathered here and nowhere else")]
    fn ask(
        &mut self,
        node: usize,
        reactor: usize,
        from: usize,
        volume: u8,
        range: Range,
        asked: Asked,
        command: Option<Command<Blocks>>,
    ) {
        let token = self.number();
        let submit = self.oracle.now();
        let acked = self.acked_epoch;
        let command = HostCommand { node, reactor, volume, range, asked, submit, acked, command };
        self.hosts.insert(token, command);
        self.call(node, from, reactor, Call::Host(token));
    }

    fn host_flush(&mut self, node: usize, volume: u8, from: usize) {
        let parent = self.number();
        let owners = self.reactors(node);
        let linked = node == A && (0..owners).all(|reactor| self.reactor(A, reactor).linked);
        let linked = linked && self.memory(node).primary_state() == Some(PrimaryState::Running);
        let submit = self.oracle.now();
        self.flushes.insert(parent, Flushing { left: owners, ok: true, submit, linked, volume });
        self.tell(|| format!("{}'s host: Flush volume {volume}", Self::name(node)));
        for reactor in 0..owners {
            let (asked, range) = (Asked::Flush(parent), Range::new(0, 0));
            self.ask(node, reactor, from, volume, range, asked, Some(Command::Flush));
        }
    }

    fn new_write(&mut self, node: usize, volume: u8, range: Range, zeroes: bool, fua: bool) -> usize {
        let index = self.oracle.write(node, volume, range, zeroes, fua);
        if node == A {
            self.oracle.host.add(volume, range, index);
        } else if self.promoted.contains(&self.owner_of(B, range.lba)) {
            self.oracle.served.add(volume, range, index);
        }
        index
    }

    fn write_payload(&self, index: usize, range: Range) -> Blocks {
        let cells: Vec<Cell> = (range.lba..range.end()).map(|lba| self.oracle.value(index, lba)).collect();
        self.payload(&cells)
    }

    fn ask_read(&mut self, volume: u8, range: Range) -> (Asked, Command<Blocks>) {
        let into = self.payload(&vec![WILD; range.blocks as usize]);
        let before = (range.lba..range.end()).map(|lba| self.oracle.view(volume, lba)).collect();
        let promoted = self.promoted.contains(&self.owner_of(B, range.lba));
        let commits = self.commits;
        let command = Command::Read { range, into: into.clone() };
        (Asked::Read { into, before, commits, promoted }, command)
    }

    fn ask_compare(
        &mut self,
        node: usize,
        volume: u8,
        range: Range,
        fua: bool,
        wrong: bool,
    ) -> (Asked, Command<Blocks>) {
        let now = self.oracle.clock;
        let mut expected: Vec<Cell> = Vec::new();
        for lba in range.lba..range.end() {
            let cells = self.may_hold(node, volume, lba, now);
            expected.push(*self.rng.pick(&cells));
        }
        if wrong {
            expected[0] = super::disk::cell(u32::MAX - 1, volume, range.lba);
        }
        let write = self.new_write(node, volume, range, false, fua);
        let data = self.write_payload(write, range);
        let (compare, scratch) = (self.payload(&expected), self.payload(&expected));
        let command = Command::CompareAndWrite { range, compare, data, scratch, fua };
        (Asked::Compare { write, expected }, command)
    }

    /// What a host of the node may find in a block that it began to look at then.
    pub fn may_hold(&self, node: usize, volume: u8, lba: u64, from: u64) -> Vec<Cell> {
        if node == A {
            return self.oracle.allowed(&self.oracle.host, volume, lba, from, |_| true);
        }
        if self.promoted.contains(&self.owner_of(B, lba)) {
            return self.oracle.allowed(&self.oracle.served, volume, lba, from, |_| true);
        }
        let mut cells = vec![self.oracle.view(volume, lba)];
        for command in self.hosts.values().filter(|c| c.node == B && c.volume == volume) {
            if let Asked::Write(write) | Asked::Compare { write, .. } = command.asked
                && (command.range.lba..command.range.end()).contains(&lba)
            {
                cells.push(self.oracle.value(write, lba));
            }
        }
        cells
    }

    /// A command reached its reactor.
    pub fn host_arrived(&mut self, token: u64) {
        let Some(command) = self.hosts.get_mut(&token) else { return };
        let (node, reactor, volume, range) = (command.node, command.reactor, command.volume, command.range);
        let read = matches!(command.asked, Asked::Read { .. });
        let Some(given) = command.command.take() else { return };
        let volume = usize::from(volume);
        let may_read = match &self.reactor(node, reactor).machines[volume] {
            Machine::Stopped => return self.host_reply(token, Err(Refusal::Stopped)),
            Machine::Primary(machine) => machine.may_read(),
            Machine::Secondary(_) => Ok(()),
        };
        if node == B {
            return self.with_secondary(reactor, volume, |machine, out| machine.submit(token, given, out));
        }
        match (read, may_read) {
            (true, Ok(())) => self.submit_io(A, reactor, volume, range, Kind::Read, Job::Read(token)),
            (true, Err(refusal)) => self.host_reply(token, Err(refusal)),
            (false, _) => {
                self.with_primary(reactor, volume, |machine, out| machine.submit(token, given, out))
            }
        }
    }

    /// A machine of A launched a write.
    pub fn launched(&mut self, reactor: usize, volume: usize, op: OpId, range: Range, cells: &[Cell]) {
        let Machine::Primary(machine) = &self.reactor(A, reactor).machines[volume] else { return };
        let (token, epoch) = (machine.token_of(op), machine.epoch());
        let linked = self.reactor(A, reactor).linked;
        let index = match self.hosts.get(&token).map(|command| &command.asked) {
            Some(Asked::Write(write) | Asked::Compare { write, .. }) => *write,
            _ => return self.broke("a write was launched that no host asked for"),
        };
        let wanted: Vec<Cell> = (range.lba..range.end()).map(|lba| self.oracle.value(index, lba)).collect();
        if self.oracle.writes[index].range != range || wanted != cells {
            return self.broke(&format!("write {} went to the disk with other content", index + 2));
        }
        if epoch <= self.closed && linked {
            self.broke(&format!("write {} joins epoch {epoch}, which was closed", index + 2));
        }
        let write = &mut self.oracle.writes[index];
        (write.launched, write.linked, write.session) = (Some(epoch), linked, self.sessions);
        self.oracle.log.add(volume as u8, range, index);
        if let Some(later) = &mut self.oracle.later {
            later.add(volume as u8, range, index);
        }
    }

    /// What a machine sends: never in an epoch older than what its host had seen acknowledged.
    pub fn check_forward(&mut self, reactor: usize, volume: usize, op: OpId, forward: &Forward<Blocks>) {
        let Machine::Primary(machine) = &self.reactor(A, reactor).machines[volume] else { return };
        let token = machine.token_of(op);
        if let Some(command) = self.hosts.get(&token)
            && forward.epoch < command.acked
        {
            let text = format!("a write of epoch {} depends on epoch {}", forward.epoch, command.acked);
            self.broke(&text);
        }
    }

    pub fn primary_has_read(&mut self, token: u64, cells: Option<Vec<Cell>>) {
        let Some(command) = self.hosts.get_mut(&token) else { return };
        if let (Asked::Read { into, .. }, Some(cells)) = (&mut command.asked, &cells) {
            let mut into = into.clone();
            let blocks = cells.len() as u32;
            into.copy_from(0, &self.payload(cells), 0, blocks);
        }
        self.host_reply(token, if cells.is_some() { Ok(()) } else { Err(Refusal::Disk) });
    }

    /// A host is told how its command ended.
    pub fn host_reply(&mut self, token: u64, result: Result<(), Refusal>) {
        let Some(command) = self.hosts.remove(&token) else {
            return self.broke("a command was answered twice");
        };
        self.digest(token << 1 | u64::from(result.is_ok()));
        self.reach.acked += u64::from(result.is_ok());
        let HostCommand { node, reactor, volume, range, asked, submit, .. } = command;
        match asked {
            Asked::Read { into, before, commits, promoted } => {
                if result.is_ok() {
                    self.reach.reads += 1;
                    match self.cells(&into) {
                        Some(cells) => {
                            let seen = Seen { node, volume, range, submit, before, commits, promoted };
                            self.check_read(&seen, &cells);
                        }
                        None => self.broke("a read returned a torn block"),
                    }
                }
            }
            Asked::Write(write) => self.write_ended(node, reactor, write, result),
            Asked::Compare { write, expected } => {
                self.check_compare(node, volume, range, submit, &expected, result);
                if result == Err(Refusal::Miscompare) {
                    self.forget_write(write);
                } else {
                    self.write_ended(node, reactor, write, result);
                }
            }
            Asked::Flush(parent) => self.flush_ended(node, parent, result.is_ok()),
        }
    }

    fn forget_write(&mut self, write: usize) {
        let (volume, range) = (self.oracle.writes[write].volume, self.oracle.writes[write].range);
        for register in [&mut self.oracle.host, &mut self.oracle.served] {
            for lba in range.lba..range.end() {
                if let Some(writes) = register.writes.get_mut(&(volume, lba)) {
                    writes.retain(|&other| other != write);
                }
            }
        }
    }

    fn write_ended(&mut self, node: usize, reactor: usize, index: usize, result: Result<(), Refusal>) {
        let now = self.oracle.now();
        let running = self.memory(node).primary_state() == Some(PrimaryState::Running);
        let here = self.reactor(node, reactor);
        let (linked, lost, fenced) = (here.linked, here.lost, here.fenced);
        let (ack, policy) = (here.ack, here.policy);
        let write = &mut self.oracle.writes[index];
        (write.end, write.ok) = (Some(now), result.is_ok());
        let (volume, range) = (write.volume, write.range);
        if result.is_err() {
            return self.tell(|| format!("write {} fails: {result:?}", index + 2));
        }
        write.durable |= write.fua;
        if node == A {
            if fenced {
                return self.broke("a fenced node acknowledged a write");
            }
            let blocked = lost && policy == OnLinkLoss::Block;
            if write.linked && (blocked || linked && running && ack != AckMode::Local) {
                write.promised = true;
                write.kept = (ack == AckMode::Applied || blocked) && !self.pinned;
                write.durable_there = write.kept && write.fua && !blocked;
            }
            self.acked_epoch = self.acked_epoch.max(write.launched.unwrap_or(Epoch(0)));
        } else if !self.promoted.contains(&reactor) {
            for lba in range.lba..range.end() {
                let cell = self.oracle.value(index, lba);
                self.oracle.own.insert((volume, lba), cell);
            }
            self.check_view(usize::from(volume), range);
        }
        self.tell(|| format!("write {} is acknowledged", index + 2));
    }

    fn flush_ended(&mut self, node: usize, parent: u64, ok: bool) {
        let Some(flushing) = self.flushes.get_mut(&parent) else { return };
        flushing.left -= 1;
        flushing.ok &= ok;
        if flushing.left > 0 {
            return;
        }
        let Some(Flushing { ok: true, submit, linked, volume, .. }) = self.flushes.remove(&parent) else {
            return;
        };
        self.tell(|| format!("{}'s flush of volume {volume} is acknowledged", Self::name(node)));
        let running = self.memory(node).primary_state() == Some(PrimaryState::Running);
        let reactors = self.reactors(node);
        let held = (0..reactors).all(|reactor| {
            let here = self.reactor(node, reactor);
            here.linked && here.ack == AckMode::Applied
        });
        let there = node == A && linked && running && held && !self.pinned;
        let follower = node == B && self.promoted.len() < reactors;
        for write in
            self.oracle.writes.iter_mut().filter(|write| write.node == node && write.volume == volume)
        {
            if !write.ok || write.end.is_none_or(|end| end > submit) || follower {
                continue;
            }
            write.durable = true;
            if there && write.linked && write.session == self.sessions {
                (write.promised, write.kept, write.durable_there) = (true, true, true);
            }
        }
    }
}

/// What a read found, and what it is to be compared with.
pub struct Seen {
    pub node: usize,
    pub volume: u8,
    pub range: Range,
    pub submit: u64,
    pub before: Vec<Cell>,
    pub commits: u64,
    pub promoted: bool,
}
