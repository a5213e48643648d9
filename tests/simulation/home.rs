//! The group machines and what carries out their outputs: what `replication/group` does in production.

use super::node::*;
use super::recorded::{from_file, to_file};
use super::wire::Message;
use super::world::*;
use lockstep::replication::Generation;
use lockstep::replication::buffer::{DiskBuffer, Quota};
use lockstep::replication::core::*;
use lockstep::replication::metadata::{SLOT_BYTES, Slots, VolumeRecord};
use lockstep::replication::volume::Maps;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use uuid::Uuid;

impl World {
    /// The node starts, with what its file holds.
    pub fn boot(&mut self, node: usize) {
        self.nodes[node].boot += 1;
        let (slots, record) = match Slots::read(&self.nodes[node].file.bytes) {
            Ok(found) => found,
            Err((first, second)) => {
                let text = format!("{}: neither slot can be used: {first}; {second}", Self::name(node));
                return self.broke(&text);
            }
        };
        let fresh = GroupRecord { generation: Generation(1), ..GroupRecord::default() };
        let record = record.map_or(fresh, |record| from_file(&record));
        self.check_record(node, record);
        let reactors = self.reactors(node);
        let sizes = self.sizes();
        let shape = &self.plan.shape;
        let group = if node == A {
            let config = PrimaryGroupConfig {
                reactors: reactors as u16,
                checkpoint_timeout_ms: CHECKPOINT_MS,
                checkpoint_interval_ms: 0,
                begin_timeout_ms: CONNECT_MS,
                on_disk_failure: OnDiskFailure::Report,
            };
            Group::Primary(Box::new(PrimaryGroup::new(config, record, &sizes)))
        } else {
            let config = SecondaryGroupConfig {
                reactors: reactors as u16,
                buffer: shape.buffer,
                failover_timeout_ms: FAILOVER_MS,
            };
            Group::Secondary(Box::new(SecondaryGroup::new(config, record, &sizes)))
        };
        let volumes = self.volumes();
        let (ack, policy) = (shape.ack.into(), shape.policy.into());
        let quota = Arc::new(Quota::new(u64::from(shape.buffer_kib) << 10));
        self.nodes[node].memory = Some(Memory {
            group,
            slots,
            reactors: (0..reactors).map(|_| Reactor::new(volumes, reactors, ack, policy)).collect(),
            quota,
            pages: Rc::default(),
            serving: false,
            secondary_made: vec![false; reactors],
            session: 0,
            control: None,
            purpose: Purpose::Nothing,
            hello: None,
            lanes_left: 0,
            peer: None,
            wait: 500,
            drains: BTreeMap::new(),
            persisting: false,
            prepared: lockstep::replication::Epoch(0),
            fenced: false,
        });
        let boot = self.nodes[node].boot;
        self.happen(TICK, Happening::Tick { node, boot });
        self.happen(PEER_TIMEOUT / 4, Happening::Heartbeat { node, boot });
        if node == B && record.promoted {
            // It was promoted before the node ended: it goes on serving, and follows nobody.
            for reactor in 0..reactors {
                self.make_secondary(reactor, record.generation, record.committed);
                self.promote(reactor, Keep::Latest, record.generation, false);
            }
        }
    }

    /// Gives a reactor of B its machines, once.
    fn make_secondary(
        &mut self,
        reactor: usize,
        generation: Generation,
        committed: lockstep::replication::Epoch,
    ) {
        if std::mem::replace(&mut self.memory(B).secondary_made[reactor], true) {
            return;
        }
        let geometry = self.geometry(B, reactor);
        let buffer = self.plan.shape.buffer;
        let (block, granule) = (geometry.block_bytes, geometry.granule_blocks * geometry.block_bytes);
        for volume in 0..self.volumes() {
            let memory = self.memory(B);
            let bytes = geometry.blocks * u64::from(block);
            let made = DiskBuffer::new(granule, bytes, memory.pages.clone(), memory.quota.clone());
            let Ok(made) = made else { return self.broke("no disk buffer could be made") };
            let config = SecondaryConfig { geometry, buffer, journal: false, hung_ticks: HUNG_TICKS };
            let machine = SecondaryStripes::new(config, Maps::new(made, block), generation, committed);
            memory.reactors[reactor].machines[volume] = Machine::Secondary(Box::new(machine));
        }
    }

    pub fn with_group(
        &mut self,
        node: usize,
        primary: impl FnOnce(&mut PrimaryGroup, &mut Vec<GroupOutput>),
        secondary: impl FnOnce(&mut SecondaryGroup, &mut Vec<GroupOutput>),
    ) {
        let mut out = Vec::new();
        match &mut self.memory(node).group {
            Group::Primary(group) => primary(group, &mut out),
            Group::Secondary(group) => secondary(group, &mut out),
        }
        self.carry_out(node, out);
    }

    pub fn primary(&mut self, act: impl FnOnce(&mut PrimaryGroup, &mut Vec<GroupOutput>)) {
        self.with_group(A, act, |_, _| ());
    }

    pub fn secondary(&mut self, act: impl FnOnce(&mut SecondaryGroup, &mut Vec<GroupOutput>)) {
        self.with_group(B, |_, _| (), act);
    }

    pub fn carry_out(&mut self, node: usize, out: Vec<GroupOutput>) {
        for output in out {
            match output {
                GroupOutput::ToStripes(order) => self.give(node, &order),
                GroupOutput::Send(control) => {
                    let generation = self.memory(node).record().generation;
                    if let Some(conn) = self.memory(node).control {
                        self.tell(|| format!("{} says {control:?}", Self::name(node)));
                        self.send(node, conn, Message::Control(generation, control));
                    }
                }
                GroupOutput::Connect => self.dial_session(),
                GroupOutput::Disconnect => self.close_session(node),
                // The place of the automatic resync: until it is followed, the peer is only asked whether it took over.
                GroupOutput::Reconnect => self.probe_later(node),
                GroupOutput::Resize { volume, bytes } => {
                    let known = self.sizes().get(usize::from(volume)).map(|size| size.volume_bytes);
                    if known != Some(bytes) {
                        self.broke("a volume has another size, and nobody changed it");
                    }
                }
                GroupOutput::PersistRecord(record, _) => self.persist(node, record),
                GroupOutput::ArmTimer { armed, after_ms } => {
                    let boot = self.nodes[node].boot;
                    self.happen(u64::from(after_ms) * 1000, Happening::Timer { node, boot, armed });
                }
                GroupOutput::Reply { command, result } => self.command_reply(node, command, result),
                GroupOutput::Event(event) => self.group_event(node, event),
            }
        }
    }

    fn group_event(&mut self, node: usize, event: GroupEvent) {
        self.tell(|| format!("{}: {event:?}", Self::name(node)));
        match event {
            GroupEvent::Fenced => {
                self.reach.fenced += 1;
                self.memory(node).fenced = true;
            }
            GroupEvent::StartFailed(_) => self.probe_later(node),
            GroupEvent::SyncFinished if node == B => self.reach.syncs += 1,
            _ => {}
        }
    }

    /// Orders arrive at every reactor in the order in which they are given.
    pub fn give(&mut self, node: usize, order: &ToStripes) {
        for to in 0..self.reactors(node) {
            self.call(node, 0, to, Call::Order(order.clone()));
        }
    }

    /// What either node says of its volumes: none ever grows.
    pub fn sizes(&self) -> Vec<VolumeSize> {
        let bytes = self.plan.shape.blocks() * u64::from(self.plan.shape.block_bytes);
        vec![VolumeSize { volume_bytes: bytes, disk_bytes: bytes }; self.volumes()]
    }

    fn persist(&mut self, node: usize, record: GroupRecord) {
        let shape = &self.plan.shape;
        let volume = |number: u8| VolumeRecord {
            name: format!("v{number}"),
            uuid: Uuid::from_u128(100 + u128::from(number)),
            num_blocks: shape.blocks(),
            block_size: shape.block_bytes,
        };
        let volumes = (0..shape.volumes).map(volume).collect();
        let identity = (Uuid::from_u128(1), Uuid::from_u128(2 + node as u128));
        let record = to_file(record, identity, node == A, volumes);
        if std::mem::replace(&mut self.memory(node).persisting, true) {
            return self.broke("two records are being written at once");
        }
        let mut bytes = vec![0; SLOT_BYTES];
        let at = self.memory(node).slots.next(&record, &mut bytes);
        self.nodes[node].file.under_way = Some((at, bytes));
        if !self.nodes[node].file.hang {
            self.write_file(node);
        }
    }

    pub fn write_file(&mut self, node: usize) {
        let after = self.rng.between(20, 400) * if self.rng.chance(3) { 20 } else { 1 };
        let boot = self.nodes[node].boot;
        self.happen(after, Happening::File { node, boot });
    }

    pub fn file_done(&mut self, node: usize) {
        let file = &mut self.nodes[node].file;
        if file.hang {
            return;
        }
        let ok = file.errors == 0;
        file.errors = file.errors.saturating_sub(1);
        if ok {
            if let Some((at, bytes)) = file.under_way.take() {
                file.bytes[at as usize..at as usize + SLOT_BYTES].copy_from_slice(&bytes);
            }
        } else {
            file.tear(&mut self.rng);
            self.memory(node).slots.failed();
        }
        self.memory(node).persisting = false;
        self.with_group(node, |group, out| group.persisted(ok, out), |group, out| group.persisted(ok, out));
    }

    pub fn timer(&mut self, node: usize, armed: Armed) {
        let peer = self.peer(node);
        self.with_group(
            node,
            |group, out| group.timer(armed, peer, out),
            |group, out| group.timer(armed, out),
        );
    }

    /// Something arrived at a reactor, from another one or from itself.
    pub fn called(&mut self, node: usize, from: usize, here: usize, call: Call) {
        match call {
            Call::Order(order) => self.order(node, here, order),
            Call::Attach { lane, conn } => self.attach(node, here, lane, conn),
            Call::Frozen => self.primary(|group, out| group.frozen(out)),
            Call::Stamped(lasts) => self.primary(|group, out| group.stamped(lasts, out)),
            Call::Done(ok) => self.secondary(|group, out| group.done(ok, out)),
            Call::Prepared(epoch, result) => self.secondary(|group, out| group.prepared(epoch, result, out)),
            Call::Stripe(event) => self.stripe_event(node, from, event),
            Call::LaneClosed => self.session_lost(node, "a data connection ended"),
            Call::LaneUp(session) => self.lane_up(session),
            Call::LaneFailed(session) => {
                if self.memory(node).session == session {
                    self.session_lost(node, "a data connection failed");
                }
            }
            Call::Host(token) => self.host_arrived(token),
        }
    }

    fn stripe_event(&mut self, node: usize, reactor: usize, event: StripeEvent) {
        let volumes = self.volumes();
        let all = |counts: &mut BTreeMap<usize, usize>| {
            let count = counts.entry(reactor).or_default();
            *count += 1;
            let all = *count >= volumes;
            if all {
                counts.remove(&reactor);
            }
            all
        };
        match event {
            StripeEvent::CopyFinished => self.primary(|group, out| group.volume_copied(reactor, out)),
            StripeEvent::Drained => {
                if all(&mut self.memory(node).drains) {
                    self.secondary(|group, out| group.drained(out));
                }
            }
            event => {
                self.tell(|| format!("{} reactor {reactor}: {event:?}", Self::name(node)));
                self.with_group(
                    node,
                    |group, out| group.event(event, out),
                    |group, out| group.event(event, out),
                );
            }
        }
    }

    fn order(&mut self, node: usize, here: usize, order: ToStripes) {
        match order {
            ToStripes::LinkUp(session) => {
                (self.reactor(A, here).linked, self.reactor(A, here).lost) = (true, false);
                self.primaries(here, |machine, out| machine.link_up(session, out));
            }
            ToStripes::LinkDown => {
                self.detach_all(node, here);
                let reactor = self.reactor(node, here);
                reactor.preparing = None;
                reactor.lost |= reactor.linked;
                reactor.linked = false;
                if node == A {
                    self.primaries(here, |machine, out| machine.link_down(out));
                } else {
                    self.secondaries(here, |machine, _| machine.link_down());
                }
            }
            ToStripes::Freeze => {
                self.primaries(here, |machine, _| machine.freeze());
                self.call(A, here, 0, Call::Frozen);
            }
            ToStripes::Stamp { next, preserve } => {
                let last = |(lane, sequence)| Last {
                    primary_reactor: here as u16,
                    secondary_reactor: lane,
                    sequence,
                };
                let lasts = self.reactor(A, here).last_sent().into_iter().map(last).collect();
                self.primaries(here, |machine, out| machine.stamp(next, preserve, out));
                self.call(A, here, 0, Call::Stamped(lasts));
            }
            ToStripes::PeerRestarted => self.primaries(here, |machine, _| machine.peer_restarted()),
            ToStripes::GoAlone => self.primaries(here, |machine, out| machine.go_alone(out)),
            ToStripes::Thaw => self.primaries(here, |machine, out| machine.thaw(out)),
            ToStripes::StartCopy { only_dirty } => {
                self.primaries(here, |machine, out| machine.start_copy(only_dirty, out));
            }
            ToStripes::Fence => {
                (self.reactor(A, here).linked, self.reactor(A, here).fenced) = (false, true);
                self.primaries(here, |machine, out| machine.fence(out));
                self.detach_all(A, here);
            }
            // The place of verify, of growth, of a limited copy, of earlier checkpoints and of a detached disk: no event leads
            // here.
            ToStripes::Verify { .. }
            | ToStripes::Suspend
            | ToStripes::KeepDisk
            | ToStripes::Detach { .. }
            | ToStripes::Fill { .. }
            | ToStripes::AttachDisk { .. }
            | ToStripes::VerifyStop
            | ToStripes::SetCopies(_)
            | ToStripes::SetPatience(_)
            | ToStripes::History { .. }
            | ToStripes::HoldPast { .. }
            | ToStripes::RollBack { .. }
            | ToStripes::Extend { .. }
            | ToStripes::Resize { .. } => self.broke("an order that nobody asked for"),
            ToStripes::SetAck(ack) => {
                self.reactor(A, here).ack = ack;
                self.primaries(here, |machine, out| machine.set_ack(ack, out));
            }
            ToStripes::SetOnLinkLoss(policy) => {
                self.reactor(A, here).policy = policy;
                self.primaries(here, |machine, out| machine.set_on_link_loss(policy, out));
            }
            ToStripes::Begin { generation, base, volume_bytes, originals } => {
                self.make_secondary(here, generation, base);
                self.begin(here, base);
                let block = u64::from(self.plan.shape.block_bytes);
                for (volume, bytes) in volume_bytes.into_iter().enumerate() {
                    let blocks = bytes / block;
                    self.with_secondary(here, volume, |machine, _| {
                        machine.begin(generation, base, blocks, originals);
                    });
                }
                self.call(B, here, 0, Call::Done(true));
            }
            ToStripes::Prepare { epoch, lasts } => {
                let mine = lasts.into_iter().filter(|last| usize::from(last.secondary_reactor) == here);
                let lasts = mine.map(|last| (last.primary_reactor, last.sequence)).collect();
                self.prepare(here, epoch, lasts);
            }
            ToStripes::Settle { epoch } => self.secondaries(here, |machine, out| machine.settle(epoch, out)),
            ToStripes::Commit { epoch } => {
                self.commit(here, epoch);
                self.call(B, here, 0, Call::Done(true));
            }
            ToStripes::Abort => {
                self.reactor(B, here).preparing = None;
                self.secondaries(here, |machine, _| machine.abort());
            }
            ToStripes::LoseThrough(epoch) => {
                self.secondaries(here, |machine, out| machine.lose_through(epoch, out));
            }
            ToStripes::Hold { keep, generation } => {
                let committed = self.memory(B).record().committed;
                self.make_secondary(here, generation, committed);
                let mut ok = true;
                for machine in &mut self.reactor(B, here).machines {
                    if let Machine::Secondary(machine) = machine {
                        ok &= machine.hold_promise(keep);
                    }
                }
                self.call(B, here, 0, Call::Done(ok));
            }
            ToStripes::Release => self.secondaries(here, |machine, _| machine.release_promise()),
            ToStripes::Promote { keep, generation } => {
                let committed = self.memory(B).record().committed;
                self.make_secondary(here, generation, committed);
                let ok = self.promote(here, keep, generation, true);
                self.call(B, here, 0, Call::Done(ok));
            }
        }
    }

    fn promote(&mut self, here: usize, keep: Keep, generation: Generation, fresh: bool) -> bool {
        self.detach_all(B, here);
        self.reactor(B, here).preparing = None;
        let mut outputs = Vec::new();
        let mut ok = true;
        for volume in 0..self.volumes() {
            if let Machine::Secondary(machine) = &mut self.reactor(B, here).machines[volume] {
                let mut out = Vec::new();
                ok &= machine.promote(keep, generation, &mut out).is_ok();
                outputs.push((volume, out));
            }
        }
        if ok {
            self.promoted_at(here, keep, fresh);
        }
        for (volume, out) in outputs {
            self.carry_out_secondary(here, volume, out);
        }
        ok
    }
}
