//! What must hold: the invariants of `docs/replication.md`, by their numbers there.

use super::disk::{Cell, origin};
use super::hosts::Seen;
use super::node::*;
use super::oracle::{Register, WILD, Write};
use super::world::*;
use lockstep::replication::Epoch;
use lockstep::replication::core::*;
use std::collections::BTreeSet;

/// What must not be, and when it was.
#[derive(Clone, Debug)]
pub struct Broken {
    pub at: u64,
    pub what: String,
}

fn show(cells: &[Cell]) -> String {
    let name = |cell: &Cell| match *cell {
        0 => "zeroes".to_string(),
        WILD => "anything".to_string(),
        cell if cell >> 32 == 1 => "the beginning".to_string(),
        cell => format!("write {}", cell >> 32),
    };
    let names: Vec<String> = cells.iter().map(name).collect();
    names.join(" or ")
}

impl World {
    pub fn broke(&mut self, what: &str) {
        if self.broken.is_none() {
            self.broken = Some(Broken { at: self.now, what: what.to_string() });
            self.tell(|| format!("!! {what}"));
        }
    }

    fn broke_at(&mut self, rule: &str, volume: u8, lba: u64, found: Cell, allowed: &[Cell]) {
        let (found, allowed) = (show(&[found]), show(allowed));
        self.broke(&format!("{rule}: volume {volume} block {lba} holds {found}, to be {allowed}"));
    }

    fn blocks_of(&self, register: &Register, reactor: Option<usize>) -> BTreeSet<(u8, u64)> {
        let keys = register.writes.keys().copied();
        keys.filter(|&(_, lba)| reactor.is_none_or(|reactor| self.owner_of(B, lba) == reactor)).collect()
    }

    /// 1: a read returns the last acknowledged or an in-flight write.
    pub fn check_read(&mut self, seen: &Seen, cells: &[Cell]) {
        for (at, &found) in cells.iter().enumerate() {
            let lba = seen.range.lba + at as u64;
            if origin(found, seen.volume, lba).is_none() {
                return self.broke(&format!("1: a read of block {lba} returned content of another place"));
            }
            let mut allowed = self.may_hold(seen.node, seen.volume, lba, seen.submit);
            let promoted = self.promoted.contains(&self.owner_of(B, lba));
            if seen.node == B && !promoted {
                if self.commits > seen.commits + 1 {
                    continue;
                }
                allowed.push(seen.before[at]);
                let ended = |write: &Write| write.node == B && write.end.is_some_and(|end| end > seen.submit);
                let covers = |write: &Write| (write.range.lba..write.range.end()).contains(&lba);
                for index in 0..self.oracle.writes.len() {
                    let write = &self.oracle.writes[index];
                    if write.volume == seen.volume && ended(write) && covers(write) {
                        allowed.push(self.oracle.value(index, lba));
                    }
                }
            } else if seen.node == B && promoted != seen.promoted {
                continue;
            }
            if !allowed.contains(&WILD) && !allowed.contains(&found) {
                return self.broke_at("1: a read", seen.volume, lba, found, &allowed);
            }
        }
    }

    /// A compare-and-write is decided by what the blocks may hold.
    pub fn check_compare(
        &mut self,
        node: usize,
        volume: u8,
        range: Range,
        submit: u64,
        expected: &[Cell],
        result: Result<(), Refusal>,
    ) {
        if node == B {
            return;
        }
        let (mut possible, mut certain) = (true, true);
        for (at, cell) in expected.iter().enumerate() {
            let lba = range.lba + at as u64;
            let mut allowed = self.may_hold(node, volume, lba, submit);
            let own = |other: &Cell| self.oracle.writes.len() as u64 + 1 >= *other >> 32;
            allowed.retain(own);
            possible &= allowed.contains(cell);
            certain &= allowed.iter().all(|other| other == cell);
        }
        match result {
            Ok(()) if !possible => self.broke("1: a compare that could not match did"),
            Err(Refusal::Miscompare) if certain => self.broke("1: a compare that had to match did not"),
            _ => {}
        }
    }

    /// B's machines took a forwarded write.
    pub fn taken(&mut self, reactor: usize, volume: usize, epoch: Epoch, range: Range, cells: Vec<Cell>) {
        if self.promoted.contains(&reactor) {
            return self.broke("5: a promoted node took a write of its old primary");
        }
        self.oracle.forwarded(volume as u8, epoch, range, cells);
    }

    /// 2, at every step that may break it: the view of B's own hosts is the last commit and what they wrote since.
    pub fn check_view(&mut self, volume: usize, range: Range) {
        let Some(memory) = &self.nodes[B].memory else { return };
        let Some(first) = range.end().checked_sub(1) else { return };
        let reactor = self.owner_of(B, first);
        if self.promoted.contains(&reactor) {
            return;
        }
        let Machine::Secondary(machine) = &memory.reactors[reactor].machines[volume] else { return };
        if !machine.has_view() || !self.plan.shape.buffer || machine.held() > 0 {
            return;
        }
        let geometry = self.geometry(B, reactor);
        let mut wrong = None;
        for granule in geometry.granules(range) {
            let blocks = geometry.granule_range(granule);
            let held = machine.maps().view_content(granule);
            let cells = match &held {
                Some(Data::Bytes(payload)) => self.cells(payload),
                Some(Data::Zeroes) => Some(vec![0; blocks.blocks as usize]),
                None => {
                    Some(self.nodes[B].disks[volume].now[blocks.lba as usize..blocks.end() as usize].to_vec())
                }
            };
            for (at, lba) in (blocks.lba..blocks.end()).enumerate() {
                let found = cells.as_ref().map_or(WILD, |cells| cells[at]);
                let allowed = self.may_hold(B, volume as u8, lba, self.oracle.clock);
                if !allowed.contains(&WILD) && !allowed.contains(&found) {
                    wrong = Some((lba, found, allowed));
                }
            }
        }
        if let Some((lba, found, allowed)) = wrong {
            self.broke_at("2: the view of the secondary", volume as u8, lba, found, &allowed);
        }
    }

    fn check_views(&mut self, reactor: usize) {
        let keys = self.blocks_of(&self.oracle.log, Some(reactor));
        for (volume, lba) in keys {
            self.check_view(volume.into(), Range::new(lba, 1));
        }
    }

    /// A session begins at one of B's reactors.
    pub fn begin(&mut self, here: usize, base: Epoch) {
        if here == 0 {
            self.sessions += 1;
            let full = self.memory(B).record().inconsistent;
            self.full_session = full;
            (self.committing, self.session_begins) = ((base, 0), base.next());
            if full {
                self.oracle.covered = false;
                (self.pinned, self.spoilt, self.b_crashed) = (false, false, None);
                if let Some(later) = self.oracle.later.take() {
                    self.oracle.log = later;
                }
            }
            self.oracle.tracked = !full && self.oracle.covered;
        }
        let owners = self.plan.shape.clone();
        self.oracle.begin(|lba| owner(&owners, lba) == here);
    }

    /// The commit of an epoch reaches one of B's reactors.
    pub fn commit(&mut self, here: usize, epoch: Epoch) {
        let mut outputs = Vec::new();
        for volume in 0..self.volumes() {
            if let Machine::Secondary(machine) = &mut self.reactor(B, here).machines[volume] {
                let mut out = Vec::new();
                machine.commit(epoch, &mut out);
                outputs.push((volume, out));
            }
        }
        let shape = self.plan.shape.clone();
        self.oracle.commit(epoch, |lba| owner(&shape, lba) == here);
        self.commits += 1;
        for (volume, out) in outputs {
            self.carry_out_secondary(here, volume, out);
        }
        self.check_views(here);
        let done = if self.committing.0 == epoch { self.committing.1 + 1 } else { 1 };
        self.committing = (epoch, done);
        if done == self.reactors(B) {
            self.committed(epoch);
        }
    }

    /// 2: what is committed equals the primary at the cut, for every volume.
    fn committed(&mut self, epoch: Epoch) {
        self.reach.commits += 1;
        let synced = self.full_session && !self.memory(B).record().inconsistent;
        if synced {
            self.full_session = false;
            (self.oracle.tracked, self.oracle.covered) = (true, true);
        }
        self.tell(|| format!("B is at epoch {epoch}"));
        if !self.oracle.tracked || self.spoilt {
            return;
        }
        let all =
            (0..self.volumes() as u8).flat_map(|v| (0..self.plan.shape.blocks()).map(move |lba| (v, lba)));
        let keys: BTreeSet<(u8, u64)> =
            if synced { all.collect() } else { self.oracle.log.writes.keys().copied().collect() };
        for (volume, lba) in keys {
            let found = self.oracle.committed[usize::from(volume)][lba as usize];
            let allowed = self.oracle.at_cut(volume, lba, epoch);
            if found != WILD && !allowed.contains(&found) {
                return self.broke_at(&format!("2: the commit of {epoch}"), volume, lba, found, &allowed);
            }
        }
        let (pinned, begins) = (self.pinned, self.session_begins);
        for write in &mut self.oracle.writes {
            if write.node == A && write.launched.is_some_and(|launched| launched <= epoch) {
                write.promised |= write.ok;
                write.kept |= write.ok && !pinned;
                // The end of a sync flushes what it copied, once; later writes are as volatile as any.
                let copied = synced && write.launched.is_some_and(|launched| launched <= begins);
                write.durable_there |= write.ok && copied && !pinned;
            }
        }
    }

    /// 3: what a failover promised, at the moment when one of B's reactors carries it out.
    pub fn promoted_at(&mut self, here: usize, keep: Keep, fresh: bool) {
        if fresh && keep == Keep::Latest {
            self.check_latest(here);
        }
        if self.promoted.is_empty() {
            let blocks = self.plan.shape.blocks() as usize;
            if fresh || self.oracle.served.base.is_empty() {
                self.oracle.served = Register::new(vec![vec![WILD; blocks]; self.volumes()]);
            }
            self.kept = keep;
        }
        self.reach.promoted += u64::from(fresh);
        self.promoted.insert(here);
        if !fresh {
            return;
        }
        for volume in 0..self.volumes() as u8 {
            for lba in 0..self.plan.shape.blocks() {
                if self.owner_of(B, lba) == here {
                    let cell = match keep {
                        Keep::Latest => self.oracle.arrived[usize::from(volume)][lba as usize],
                        Keep::Checkpoint => self.oracle.committed[usize::from(volume)][lba as usize],
                        Keep::Overlay => self.oracle.view(volume, lba),
                    };
                    self.oracle.served.base[usize::from(volume)][lba as usize] = cell;
                }
            }
        }
        // What B's hosts have under way goes on in the new role.
        let mut under_way = Vec::new();
        for command in self.hosts.values().filter(|command| command.node == B) {
            if let Asked::Write(write) | Asked::Compare { write, .. } = command.asked
                && self.owner_of(B, command.range.lba) == here
            {
                under_way.push((command.volume, command.range, write));
            }
        }
        for (volume, range, write) in under_way {
            self.oracle.served.add(volume, range, write);
        }
    }

    /// 3 and 8: every write that was acknowledged as being at B is there, and nothing is older.
    fn check_latest(&mut self, here: usize) {
        let (crashed, spoilt, tracked) = (self.b_crashed, self.spoilt, self.oracle.tracked);
        let counts = |write: &Write| match crashed {
            None => write.promised && (!spoilt || write.kept),
            Some(false) => write.kept,
            Some(true) => write.durable_there,
        };
        for (volume, lba) in self.blocks_of(&self.oracle.log, Some(here)) {
            let found = self.oracle.arrived[usize::from(volume)][lba as usize];
            let allowed = self.oracle.allowed(&self.oracle.log, volume, lba, self.oracle.clock, counts);
            let base = self.oracle.log.base[usize::from(volume)][lba as usize];
            if found != WILD && !allowed.contains(&found) && (tracked || !allowed.contains(&base)) {
                return self.broke_at("3: a failover to the latest", volume, lba, found, &allowed);
            }
        }
    }

    /// 4: what hosts were told is durable survives.
    pub fn check_survival(&mut self, node: usize, power: bool) {
        let register = if node == A { &self.oracle.host } else { &self.oracle.served };
        let sure = |write: &Write| if power { write.durable } else { true };
        let mut wrong = None;
        for &(volume, lba) in register.writes.keys() {
            let found = self.nodes[node].disks[usize::from(volume)].now[lba as usize];
            let allowed = self.oracle.allowed(register, volume, lba, self.oracle.clock, sure);
            if !allowed.contains(&WILD) && !allowed.contains(&found) {
                wrong = Some((volume, lba, found, allowed));
            }
        }
        if let Some((volume, lba, found, allowed)) = wrong {
            let rule = format!("4: the disk of {} after a crash", Self::name(node));
            self.broke_at(&rule, volume, lba, found, &allowed);
        }
    }

    /// B ended: only its disks and its file are left.
    pub fn b_went_down(&mut self, power: bool) {
        let earlier = self.b_crashed.unwrap_or(false);
        self.b_crashed = Some(earlier || power);
        self.b_was_promoted = !self.promoted.is_empty();
        self.promoted.clear();
        self.b_power = power;
        for volume in 0..self.volumes() {
            let now = self.nodes[B].disks[volume].now.clone();
            self.oracle.arrived[volume] = now.clone();
            self.oracle.committed[volume] = now;
            self.oracle.pending[volume].clear();
        }
        self.oracle.own.clear();
    }

    /// What a node's file says when it starts.
    pub fn check_record(&mut self, node: usize, record: GroupRecord) {
        if record.generation < self.generations[node] {
            self.broke(&format!("4: the generation of {} fell", Self::name(node)));
        }
        if node == A {
            return;
        }
        if record.committed < self.told_committed && !record.inconsistent && !record.promoted {
            self.broke(&format!("4: epoch {} was confirmed and is forgotten", self.told_committed));
        }
        if !self.b_was_promoted || !record.promoted {
            return;
        }
        // It says that the disk is what was promised.
        let power = self.b_power;
        let sure = |write: &Write| if power { write.durable } else { true };
        let arrived = |write: &Write| if power { write.durable_there } else { write.kept };
        let mut wrong = None;
        let mut content = Vec::new();
        for volume in 0..self.volumes() as u8 {
            for lba in 0..self.plan.shape.blocks() {
                let found = self.nodes[B].disks[usize::from(volume)].now[lba as usize];
                let oracle = &self.oracle;
                let mut allowed = oracle.allowed(&oracle.served, volume, lba, oracle.clock, sure);
                let base = oracle.served.base[usize::from(volume)][lba as usize];
                if self.kept == Keep::Latest && allowed.contains(&base) {
                    // What arrived and was promised to nobody may be lost with the memory.
                    allowed.extend(oracle.allowed(&oracle.log, volume, lba, oracle.clock, arrived));
                    content.push((volume, lba, found));
                }
                if !allowed.contains(&WILD) && !allowed.contains(&found) {
                    wrong = Some((volume, lba, found, allowed));
                }
            }
        }
        if let Some((volume, lba, found, allowed)) = wrong {
            return self.broke_at("4: B serves again", volume, lba, found, &allowed);
        }
        for (volume, lba, found) in content {
            self.oracle.served.base[usize::from(volume)][lba as usize] = found;
        }
        if power {
            let content = self.nodes[B].disks.iter().map(|disk| disk.now.clone()).collect();
            self.oracle.served = Register::new(content);
        }
    }

    /// 6: blocks that differ between the nodes are marked or in flight.
    pub fn check_differences(&mut self) {
        let tracked = self.oracle.tracked && self.oracle.covered && !self.spoilt && self.promoted.is_empty();
        if !tracked || self.nodes[A].memory.is_none() || self.nodes[B].memory.is_none() {
            return;
        }
        let idle = |memory: &Memory| {
            memory.reactors.iter().flat_map(|reactor| &reactor.machines).all(|machine| match machine {
                Machine::Stopped => true,
                Machine::Primary(machine) => machine.in_flight() == 0,
                Machine::Secondary(machine) => machine.in_flight() == 0,
            })
        };
        if !self.nodes.iter().all(|node| node.memory.as_ref().is_some_and(idle)) {
            return;
        }
        if self.network.conns.iter().any(|conn| conn.towards.iter().any(|pipe| !pipe.queue.is_empty())) {
            return;
        }
        for (volume, lba) in self.blocks_of(&self.oracle.log, None) {
            let [a, b] = &self.nodes;
            let at = usize::from(volume);
            if a.disks[at].now[lba as usize] == b.disks[at].now[lba as usize] {
                continue;
            }
            let owner = self.owner_of(A, lba);
            let memory = a.memory.as_ref();
            if let Some(Machine::Primary(machine)) = memory.map(|memory| &memory.reactors[owner].machines[at])
                && !machine.dirty().is_dirty(Range::new(lba, 1))
            {
                return self.broke(&format!("6: volume {volume} block {lba} differs and is not marked"));
            }
        }
    }

    /// 7: every command ends by its deadline.
    pub fn check_due(&mut self, command: u64) {
        let Some(late) = self.commands.get(&command) else { return };
        if self.nodes[late.node].boot == late.boot {
            let text = format!("7: `{}` was not answered by its deadline", late.text);
            self.broke(&text);
        }
    }

    pub fn command_reply(&mut self, node: usize, command: u64, result: Result<Success, GroupError>) {
        if result.is_ok() && self.late_failovers.remove(&command) {
            // Its deadline was over, and it was said so; the record became durable after all.
            return self.failover_done();
        }
        let Some(commanded) = self.commands.remove(&command) else {
            return self.broke("a command of the operator was answered twice");
        };
        self.tell(|| format!("{}: `{}` ends: {result:?}", Self::name(node), commanded.text));
        self.digest(command << 1 | u64::from(result.is_ok()));
        match (commanded.what, result) {
            (Wanted::Prepare, Ok(Success::Epoch(epoch))) => {
                self.memory(A).prepared = epoch;
                self.cut_was(epoch, commanded.submit);
            }
            (Wanted::Checkpoint | Wanted::Commit, Ok(Success::Epoch(epoch))) => {
                if commanded.what == Wanted::Checkpoint {
                    self.cut_was(epoch, commanded.submit);
                }
                self.told_committed = self.told_committed.max(epoch);
                if self.nodes[B].memory.is_some() && self.memory(B).record().committed < epoch {
                    self.broke(&format!("epoch {epoch} was confirmed before it was durable at B"));
                }
            }
            (Wanted::Failover, Ok(_)) => self.failover_done(),
            (Wanted::Failover, Err(GroupError::Metadata)) => {
                self.late_failovers.insert(command);
            }
            _ => {}
        }
    }

    /// What was acknowledged before the checkpoint was asked for belongs to it.
    fn cut_was(&mut self, epoch: Epoch, asked: u64) {
        self.closed = self.closed.max(epoch);
        let late = |write: &Write| {
            write.node == A
                && !write.gone
                && write.ok
                && write.end.is_some_and(|end| end < asked)
                && write.launched.is_some_and(|launched| launched > epoch)
        };
        if self.oracle.writes.iter().any(late) {
            self.broke(&format!("2: epoch {epoch} lacks a write that was acknowledged before"));
        }
    }

    fn failover_done(&mut self) {
        let record = self.memory(B).record();
        if self.promoted.len() < self.reactors(B) {
            self.broke("3: a failover was confirmed before every reactor had carried it out");
        }
        let on_file = lockstep::replication::metadata::Slots::read(&self.nodes[B].file.bytes);
        let durable = on_file.ok().and_then(|(_, record)| record).map(|record| record.generation);
        if durable != Some(record.generation) || record.generation <= self.generations[B] {
            self.broke("5: a failover was confirmed before its generation was durable");
        }
        self.generations[B] = record.generation;
        if record.committed < self.told_committed && self.kept != Keep::Latest {
            self.broke(&format!("3: epoch {} was confirmed and is undone", self.told_committed));
        }
    }

    /// Everything is healed and had its time.
    pub fn check_end(&mut self) {
        self.check_differences();
        self.check_answered();
        self.check_served();
        self.check_fenced();
    }

    fn check_answered(&mut self) {
        let small = self.plan.shape.buffer_kib < 8 << 10
            || self
                .plan
                .events
                .iter()
                .any(|timed| matches!(timed.event, super::plan::Event::SetBufferLimit { .. }));
        let mut stuck = None;
        for command in self.hosts.values() {
            let Some(memory) = &self.nodes[command.node].memory else { continue };
            let reactor = &memory.reactors[command.reactor];
            let blocked = command.node == A && reactor.policy == OnLinkLoss::Block && reactor.lost;
            let no_room = command.node == B && small && !self.promoted.contains(&command.reactor);
            if !blocked && !no_room {
                stuck = Some((command.node, command.volume, command.range));
            }
        }
        if let Some((node, volume, range)) = stuck {
            let name = Self::name(node);
            self.broke(&format!("{name}, volume {volume}: a command on {range:?} is never answered"));
        }
    }

    /// A promoted node's disk is what it serves, and its record says so.
    fn check_served(&mut self) {
        if self.promoted.is_empty() || self.nodes[B].memory.is_none() {
            return;
        }
        if self.memory(B).secondary_state() != Some(SecondaryState::Standalone) {
            let state = self.memory(B).secondary_state();
            return self.broke(&format!("3: the drain never ends: {state:?}"));
        }
        if self.memory(B).record().inconsistent {
            return self.broke("4: the record of a drained node says that it is not");
        }
        for volume in 0..self.volumes() as u8 {
            for lba in 0..self.plan.shape.blocks() {
                let found = self.nodes[B].disks[usize::from(volume)].now[lba as usize];
                let allowed =
                    self.oracle.allowed(&self.oracle.served, volume, lba, self.oracle.clock, |_| true);
                if !allowed.contains(&WILD) && !allowed.contains(&found) {
                    return self.broke_at("3: the disk after the failover", volume, lba, found, &allowed);
                }
            }
        }
    }

    /// 5: the old primary has found out.
    fn check_fenced(&mut self) {
        if self.promoted.is_empty() || self.nodes[A].memory.is_none() || self.nodes[B].memory.is_none() {
            return;
        }
        let state = self.memory(A).primary_state();
        let unaware = [PrimaryState::Running, PrimaryState::Syncing, PrimaryState::ResyncRequired];
        if state.is_some_and(|state| unaware.contains(&state)) {
            self.broke(&format!("5: the old primary never learns that it was replaced: {state:?}"));
        }
    }
}

fn owner(shape: &super::plan::Shape, lba: u64) -> usize {
    usize::from(Geometry::owner_of(lba, shape.block_bytes, shape.reactors[B].into()))
}
