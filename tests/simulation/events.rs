//! What happens from outside: the operator's commands, and what breaks.
//!
//! Not in the repertoire yet: the resync by itself after a lost link, a secondary that restarts from its journal, verify,
//! resizing, a roll-back to an older epoch, attaching a new peer. Each becomes an [`Event`] of the plan, is
//! carried out here, and its promise is added to `check.rs`.

use super::node::Group;
use super::oracle::Register;
use super::plan::{DiskFault, Event, Who};
use super::world::*;
use lockstep::replication::Epoch;
use lockstep::replication::core::*;

impl World {
    pub fn event(&mut self, event: Event) {
        if !matches!(event, Event::Host { .. }) {
            self.tell(|| format!("-- {event:?}"));
        }
        match event {
            Event::Host { node, volume, op, lba, blocks, fua } => {
                let blocks = u64::from(blocks).min(self.plan.shape.blocks() - u64::from(lba)) as u32;
                self.host(node.at(), volume, op, Range::new(lba.into(), blocks), fua);
            }
            Event::Start { full } => self.start(full),
            Event::StartSecondary => self.on(B, "start", 1_000, Wanted::Nothing, |group, command, out| {
                if let Group::Secondary(group) = group {
                    group.start(command, out);
                }
            }),
            Event::Stop(node) => {
                self.on(node.at(), "stop", 1_000, Wanted::Nothing, |group, command, out| match group {
                    Group::Primary(group) => group.stop(command, out),
                    Group::Secondary(group) => group.stop(command, out),
                })
            }
            Event::Checkpoint { timeout_ms } => {
                let due = u64::from(timeout_ms) * 1000;
                self.at_a("checkpoint", due, Wanted::Checkpoint, move |group, command, out| {
                    group.do_checkpoint(command, Some(timeout_ms.into()), out);
                });
            }
            Event::Prepare { timeout_ms } => {
                let due = u64::from(timeout_ms) * 1000;
                self.at_a("prepare", due, Wanted::Prepare, move |group, command, out| {
                    group.prepare(command, Some(timeout_ms.into()), out);
                });
            }
            Event::Commit { off } => {
                let epoch = self.prepared(off);
                self.at_a(
                    "commit",
                    u64::from(CHECKPOINT_MS) * 1000,
                    Wanted::Commit,
                    move |group, command, out| {
                        group.commit(command, epoch, out);
                    },
                );
            }
            Event::Abort { off } => {
                let epoch = self.prepared(off);
                self.at_a(
                    "abort",
                    u64::from(CHECKPOINT_MS) * 1000,
                    Wanted::Nothing,
                    move |group, command, out| {
                        group.abort(command, epoch, out);
                    },
                );
            }
            Event::Failover(promise) => {
                let keep = promise.into();
                let due = u64::from(FAILOVER_MS) * 1000;
                self.on(B, "failover", due, Wanted::Failover, move |group, command, out| {
                    if let Group::Secondary(group) = group {
                        group.failover(command, keep, out);
                    }
                });
            }
            Event::Interval { ms } => self.option(move |group, out| group.set_interval(ms.into(), out)),
            Event::SetAck(ack) => {
                self.option(move |_, out| out.push(GroupOutput::ToStripes(ToStripes::SetAck(ack.into()))));
            }
            Event::SetPolicy(policy) => self.option(move |_, out| {
                out.push(GroupOutput::ToStripes(ToStripes::SetOnLinkLoss(policy.into())));
            }),
            Event::SetBufferLimit { kib } => {
                if self.nodes[B].memory.is_some() {
                    self.memory(B).quota.set_limit_bytes(u64::from(kib) << 10);
                }
            }
            Event::Crash { node, power } => self.crash(node.at(), power),
            Event::Restart(node) => {
                if self.nodes[node.at()].memory.is_none() {
                    self.boot(node.at());
                }
            }
            Event::Stall { node, reactor, us } => {
                let (node, reactor) = (node.at(), usize::from(reactor));
                if self.nodes[node].memory.is_some() && reactor < self.reactors(node) {
                    self.reactor(node, reactor).stalled_until = self.now + u64::from(us);
                }
            }
            Event::Disk { node, volume, fault } => self.disk_fault(node, volume.into(), fault),
            Event::Metadata { node, fault } => self.file_fault(node.at(), fault),
            Event::Cut => self.cut(),
            Event::Partition { a_to_b, b_to_a } => self.network.blocked = [b_to_a, a_to_b],
            Event::Slow { factor } => self.network.factor = factor.into(),
            Event::HealLink => self.heal_link(),
        }
    }

    fn prepared(&mut self, off: i8) -> Epoch {
        let epoch = self.nodes[A].memory.as_ref().map_or(0, |memory| memory.prepared.0);
        Epoch(epoch.saturating_add_signed(off.into()))
    }

    fn option(&mut self, act: impl FnOnce(&mut PrimaryGroup, &mut Vec<GroupOutput>)) {
        if self.nodes[A].memory.is_some() {
            self.primary(act);
        }
    }

    fn at_a(
        &mut self,
        text: &str,
        due: u64,
        what: Wanted,
        act: impl FnOnce(&mut PrimaryGroup, u64, &mut Vec<GroupOutput>),
    ) {
        self.on(A, text, due, what, |group, command, out| {
            if let Group::Primary(group) = group {
                act(group, command, out);
            }
        });
    }

    /// Gives a command to a node's group; it is to be answered within `due`.
    fn on(
        &mut self,
        node: usize,
        text: &str,
        due: u64,
        what: Wanted,
        act: impl FnOnce(&mut Group, u64, &mut Vec<GroupOutput>),
    ) {
        if self.nodes[node].memory.is_none() {
            return;
        }
        let command = self.number();
        let (boot, submit) = (self.nodes[node].boot, self.oracle.now());
        let text = text.to_string();
        self.commands.insert(command, Commanded { node, boot, text, what, submit });
        self.happen(due + SLACK, Happening::Due(command));
        let mut out = Vec::new();
        act(&mut self.memory(node).group, command, &mut out);
        self.carry_out(node, out);
    }

    fn start(&mut self, full: bool) {
        if self.nodes[A].memory.is_none() {
            return;
        }
        if !std::mem::replace(&mut self.memory(A).serving, true) {
            for reactor in 0..self.reactors(A) {
                for volume in 0..self.volumes() {
                    let config = PrimaryConfig {
                        geometry: self.geometry(A, reactor),
                        ack: self.reactor(A, reactor).ack,
                        on_link_loss: self.reactor(A, reactor).policy,
                        on_disk_failure: OnDiskFailure::Report,
                        lag_limit_bytes: u64::from(self.plan.shape.lag_kib) << 10,
                    };
                    let machine = super::node::Machine::Primary(Box::new(PrimaryStripes::new(config)));
                    self.reactor(A, reactor).machines[volume] = machine;
                }
            }
        }
        // An operator who knows that the disks are not equal asks for a full sync, whatever the plan says; `mistake`
        // would be to claim that they are.
        let full = full || !self.oracle.covered;
        let sync = if full { SyncMode::Full } else { SyncMode::None };
        let due = u64::from(CONNECT_MS) * 1000;
        self.at_a("start", due, Wanted::Start, move |group, command, out| {
            group.start(command, sync, CONNECT_MS, out)
        });
    }

    fn crash(&mut self, node: usize, power: bool) {
        if self.nodes[node].memory.is_none() {
            return;
        }
        self.reach.crashes += 1;
        self.hang_up(node, power);
        self.nodes[node].memory = None;
        self.nodes[node].boot += 1;
        for disk in &mut self.nodes[node].disks {
            disk.crash(power, &mut self.rng);
        }
        self.nodes[node].file.tear(&mut self.rng);
        (self.nodes[node].file.hang, self.nodes[node].file.errors) = (false, 0);
        let gone = |command: &HostCommand| command.node == node;
        let now = self.oracle.now();
        for command in self.hosts.values().filter(|command| gone(command)) {
            if let Asked::Write(write) | Asked::Compare { write, .. } = command.asked {
                self.oracle.writes[write].end = Some(now);
            }
        }
        self.hosts.retain(|_, command| !gone(command));
        self.commands.retain(|_, command| command.node != node);
        self.oracle.covered = false;
        if node == A {
            // What B commits of the session yet is compared with nothing: A counts its epochs from elsewhere.
            self.oracle.tracked = false;
            self.full_session = false;
            self.check_survival(A, power);
            let content = self.nodes[A].disks.iter().map(|disk| disk.now.clone()).collect::<Vec<_>>();
            if power {
                self.oracle.host = Register::new(content.clone());
            }
            self.oracle.later = Some(Register::new(content));
            // Numbers that were never committed may come again after a restart.
            (self.acked_epoch, self.closed) = (Epoch(0), Epoch(0));
            for write in self.oracle.writes.iter_mut().filter(|write| write.node == A) {
                write.gone = true;
            }
        } else {
            self.b_went_down(power);
        }
    }

    fn disk_fault(&mut self, node: Who, volume: usize, fault: DiskFault) {
        let node = node.at();
        if volume >= self.volumes() || self.nodes[node].memory.is_none() {
            return;
        }
        let faults = &mut self.nodes[node].disks[volume].faults;
        match fault {
            DiskFault::Hang => faults.hang = true,
            DiskFault::HangSome => faults.hang_some = true,
            DiskFault::WriteErrors(count) => faults.write_errors = count,
            DiskFault::ReadErrors(count) => faults.read_errors = count,
            DiskFault::Slow(factor) => faults.slow = factor,
            DiskFault::Heal => self.heal_disk(node, volume),
        }
    }

    fn heal_disk(&mut self, node: usize, volume: usize) {
        for io in self.nodes[node].disks[volume].heal() {
            self.go_on_io(node, volume, io);
        }
    }

    fn file_fault(&mut self, node: usize, fault: DiskFault) {
        let file = &mut self.nodes[node].file;
        match fault {
            DiskFault::Hang | DiskFault::HangSome | DiskFault::Slow(_) => file.hang = true,
            DiskFault::WriteErrors(count) | DiskFault::ReadErrors(count) => file.errors = count,
            DiskFault::Heal => {
                file.errors = 0;
                if std::mem::take(&mut file.hang)
                    && file.under_way.is_some()
                    && self.nodes[node].memory.is_some()
                {
                    self.write_file(node);
                }
            }
        }
    }

    /// After the last event everything heals, and what can go on is to come to its end.
    pub fn heal_all(&mut self) {
        self.tell(|| "-- everything heals".to_string());
        self.heal_link();
        for node in [A, B] {
            for volume in 0..self.volumes() {
                self.heal_disk(node, volume);
            }
            self.file_fault(node, DiskFault::Heal);
        }
    }
}
