//! The stripe machines and what carries out their outputs: what `replication/volume` does in production.

use super::disk::{Kind, Step};
use super::node::*;
use super::wire::{Message, Use};
use super::world::*;
use lockstep::replication::core::*;
use lockstep::replication::volume::Blocks;
use lockstep::replication::{Epoch, Sequence};

/// Runs of acknowledgements in one message.
const ACK_RUNS: usize = 8;
/// Messages under way on a lane from which on it asks to hold back.
const LANE_FULL: usize = 24;

impl World {
    pub fn with_primary(
        &mut self,
        reactor: usize,
        volume: usize,
        act: impl FnOnce(&mut PrimaryMachine, &mut Vec<PrimaryOutput<Blocks>>),
    ) {
        let mut out = Vec::new();
        if let Machine::Primary(machine) = &mut self.reactor(A, reactor).machines[volume] {
            act(machine, &mut out);
        }
        for output in out {
            self.primary_output(reactor, volume, output);
        }
    }

    pub fn primaries(
        &mut self,
        reactor: usize,
        act: impl Fn(&mut PrimaryMachine, &mut Vec<PrimaryOutput<Blocks>>),
    ) {
        for volume in 0..self.volumes() {
            self.with_primary(reactor, volume, &act);
        }
    }

    pub fn with_secondary(
        &mut self,
        reactor: usize,
        volume: usize,
        act: impl FnOnce(&mut SecondaryMachine, &mut Vec<SecondaryOutput<Blocks>>),
    ) {
        let mut out = Vec::new();
        if let Machine::Secondary(machine) = &mut self.reactor(B, reactor).machines[volume] {
            act(machine, &mut out);
        }
        for output in out {
            self.secondary_output(reactor, volume, output);
        }
    }

    pub fn secondaries(
        &mut self,
        reactor: usize,
        act: impl Fn(&mut SecondaryMachine, &mut Vec<SecondaryOutput<Blocks>>),
    ) {
        for volume in 0..self.volumes() {
            self.with_secondary(reactor, volume, &act);
        }
    }

    /// The machine's content of a write, as cells.
    pub fn data_cells(&mut self, data: &Data<Blocks>, blocks: u32) -> Vec<u64> {
        match data {
            Data::Zeroes => vec![0; blocks as usize],
            Data::Bytes(payload) => match self.cells(payload) {
                Some(cells) if cells.len() == blocks as usize => cells,
                _ => {
                    self.broke("a payload is torn or has the wrong length");
                    vec![0; blocks as usize]
                }
            },
        }
    }

    pub fn submit_io(
        &mut self,
        node: usize,
        reactor: usize,
        volume: usize,
        range: Range,
        kind: Kind,
        job: Job,
    ) {
        let clash = match kind {
            Kind::Write { .. } => self.clashes(node, volume, range),
            _ => false,
        };
        if clash {
            let name = Self::name(node);
            self.broke(&format!("{name}, volume {volume}: two writes of {range:?} at the disk together"));
        }
        let owned = Owned { reactor, job };
        let rng = &mut self.rng;
        let io = self.nodes[node].disks[volume].submit(kind, range.lba, range.blocks, owned, rng);
        self.go_on_io(node, volume, io);
    }

    /// Whether a write meets another one, or the read that preserves what it overwrites.
    fn clashes(&self, node: usize, volume: usize, range: Range) -> bool {
        self.nodes[node].disks[volume].ios.values().any(|io| {
            let busy = matches!(io.kind, Kind::Write { .. }) || matches!(io.job.job, Job::Preserve(..));
            busy && Range::new(io.lba, io.blocks).overlaps(range)
        })
    }

    pub fn go_on_io(&mut self, node: usize, volume: usize, io: u64) {
        let disk = &self.nodes[node].disks[volume];
        if disk.ios.get(&io).is_some_and(|io| io.hung) {
            return;
        }
        let after = disk.latency(&mut self.rng);
        let boot = self.nodes[node].boot;
        self.happen(after, Happening::Io { node, boot, volume, io });
    }

    pub fn io_step(&mut self, node: usize, volume: usize, io: u64) {
        let before = self.nodes[node].disks[volume].ios.get(&io);
        let range = before.map(|io| (Range::new(io.lba, io.blocks), matches!(io.kind, Kind::Write { .. })));
        match self.nodes[node].disks[volume].step(io) {
            Step::More => self.go_on_io(node, volume, io),
            Step::Done { job, result } => self.io_done(node, volume, job, result),
        }
        if let Some((range, true)) = range
            && node == B
        {
            self.check_view(volume, range);
        }
    }

    fn io_done(&mut self, node: usize, volume: usize, owned: Owned, result: Result<Vec<u64>, ()>) {
        let (reactor, ok) = (owned.reactor, result.is_ok());
        self.digest((node as u64) << 32 | (volume as u64) << 8 | u64::from(ok));
        let content = result.ok().map(|cells| (self.payload(&cells), cells));
        match owned.job {
            Job::Write(op) | Job::Flush(op) if node == A => {
                self.with_primary(reactor, volume, |machine, out| machine.local_done(op, ok, out));
            }
            Job::Write(op) => {
                self.with_secondary(reactor, volume, |machine, out| machine.write_done(op, ok, out));
            }
            Job::Flush(op) => {
                self.with_secondary(reactor, volume, |machine, out| machine.flush_done(op, ok, out));
            }
            Job::Compare(op, mut into) => {
                if let Some((payload, cells)) = &content {
                    into.copy_from(0, payload, 0, cells.len() as u32);
                }
                let content = ok.then_some(&into);
                self.with_primary(reactor, volume, |machine, out| machine.compare_read(op, content, out));
            }
            Job::Copy(op) => {
                let content = content.map(|(payload, _)| payload);
                self.with_primary(reactor, volume, |machine, out| machine.copy_read(op, content, out));
            }
            Job::Preserve(op, range) => {
                let content = content.as_ref().map(|(payload, _)| payload);
                self.with_secondary(reactor, volume, |machine, out| {
                    machine.preserve_read(op, range, content, out);
                });
            }
            Job::View(op, range, mut into) => {
                if let Some((payload, cells)) = &content {
                    into.copy_from(0, payload, 0, cells.len() as u32);
                }
                self.with_secondary(reactor, volume, |machine, out| {
                    machine.view_read(op, range, ok, None, out);
                });
            }
            Job::Base(op, range) => {
                let content = content.map(|(payload, _)| payload);
                self.with_secondary(reactor, volume, |machine, out| {
                    machine.base_read(op, range, content, out);
                });
            }
            Job::Read(token) => self.primary_has_read(token, content.map(|(_, cells)| cells)),
        }
    }

    fn primary_output(&mut self, reactor: usize, volume: usize, output: PrimaryOutput<Blocks>) {
        match output {
            PrimaryOutput::CompareRead { op, range, into } => {
                self.submit_io(A, reactor, volume, range, Kind::Read, Job::Compare(op, into));
            }
            PrimaryOutput::CopyRead { op, range } => {
                self.submit_io(A, reactor, volume, range, Kind::Read, Job::Copy(op));
            }
            // The place of a verify, here and below.
            PrimaryOutput::HostRead { .. } => self.broke("a read of a primary whose disk was never detached"),
            PrimaryOutput::VerifyRead { .. } => self.broke("a verify that nobody asked for"),
            PrimaryOutput::SubmitWrite { op, range, data, fua } => {
                let cells = self.data_cells(&data, range.blocks);
                self.launched(reactor, volume, op, range, &cells);
                self.submit_io(A, reactor, volume, range, Kind::Write { cells, fua }, Job::Write(op));
            }
            PrimaryOutput::SubmitFlush { op } => {
                let kind = Kind::Flush { covers: Vec::new() };
                self.submit_io(A, reactor, volume, Range::new(0, 0), kind, Job::Flush(op));
            }
            PrimaryOutput::Send { op, lane, forward, .. } => self.forward(reactor, volume, op, lane, forward),
            PrimaryOutput::Reply { token, result } => self.host_reply(token, result),
            PrimaryOutput::Event(event) => self.call(A, reactor, 0, Call::Stripe(event)),
        }
    }

    fn secondary_output(&mut self, reactor: usize, volume: usize, output: SecondaryOutput<Blocks>) {
        let submit = |world: &mut World, range, kind, job| {
            world.submit_io(B, reactor, volume, range, kind, job);
        };
        match output {
            SecondaryOutput::PreserveRead { op, range } => {
                submit(self, range, Kind::Read, Job::Preserve(op, range));
            }
            SecondaryOutput::BaseRead { op, range } => submit(self, range, Kind::Read, Job::Base(op, range)),
            SecondaryOutput::ViewRead { op, range, into } => {
                submit(self, range, Kind::Read, Job::View(op, range, into));
            }
            SecondaryOutput::ReadData { .. } => self.broke("a read for a primary that has its disk"),
            SecondaryOutput::VerifyRead { .. } => self.broke("a verify that nobody asked for"),
            // The place of a journal.
            SecondaryOutput::Journal { .. } => self.broke("a write for a journal that there is not"),
            SecondaryOutput::SubmitWrite { op, range, data, fua } => {
                let cells = self.data_cells(&data, range.blocks);
                submit(self, range, Kind::Write { cells, fua }, Job::Write(op));
            }
            SecondaryOutput::SubmitFlush { op } => {
                submit(self, Range::new(0, 0), Kind::Flush { covers: Vec::new() }, Job::Flush(op));
            }
            SecondaryOutput::Answer { lane, sequence, answer } => {
                self.answer(reactor, volume, usize::from(lane), sequence, answer);
            }
            SecondaryOutput::Reply { token, result } => self.host_reply(token, result),
            SecondaryOutput::Prepared { epoch, result } => self.machine_prepared(reactor, epoch, result),
            SecondaryOutput::Event(event) => {
                match event {
                    StripeEvent::HungDisk(_) => self.pinned = true,
                    StripeEvent::BufferOverrun(_) => self.reach.overruns += 1,
                    StripeEvent::Drained => self.reach.drained += 1,
                    _ => {}
                }
                self.call(B, reactor, 0, Call::Stripe(event));
            }
        }
    }

    pub fn carry_out_secondary(&mut self, reactor: usize, volume: usize, out: Vec<SecondaryOutput<Blocks>>) {
        for output in out {
            self.secondary_output(reactor, volume, output);
        }
    }

    /// A machine of A sends to its peer.
    fn forward(&mut self, reactor: usize, volume: usize, op: OpId, lane: Lane, forward: Forward<Blocks>) {
        let range = match &forward.body {
            ForwardBody::Write { range, .. } => *range,
            ForwardBody::Flush | ForwardBody::Verify { .. } | ForwardBody::Read { .. } => Range::new(0, 0),
        };
        self.check_forward(reactor, volume, op, &forward);
        let end = self.reactor(A, reactor).lanes.get_mut(usize::from(lane)).and_then(Option::as_mut);
        let Some(end) = end else { return };
        let sender = Sender { volume: volume as u16, op, range };
        let sequence = end.outgoing.send(sender);
        let conn = end.conn;
        self.send(A, conn, Message::Forward { volume: volume as u16, sequence, forward });
        if self.network.conns[conn].towards[B].queue.len() >= LANE_FULL {
            let end = self.reactor(A, reactor).lanes[usize::from(lane)].as_mut();
            if end.is_some_and(|end| !std::mem::replace(&mut end.full, true)) {
                for machine in &mut self.reactor(A, reactor).machines {
                    if let Machine::Primary(machine) = machine {
                        machine.hold_back();
                    }
                }
            }
        }
    }

    /// The lane's connection has room again.
    pub fn writable(&mut self, node: usize, reactor: usize, lane: usize, conn: usize) {
        let lanes = &mut self.reactor(node, reactor).lanes;
        if let Some(end) = lanes.get_mut(lane).and_then(Option::as_mut)
            && end.conn == conn
        {
            end.full = false;
        }
        if !lanes.iter().flatten().any(|end| end.full) {
            self.primaries(reactor, |machine, out| machine.go_on(out));
        }
    }

    /// After a delivery: whether the lane that asked to hold back has room.
    pub fn look_for_room(&mut self, conn: usize) {
        let Use::Lane { .. } = self.network.conns[conn].used else { return };
        if self.network.conns[conn].towards[B].queue.len() != LANE_FULL / 2 || self.nodes[A].memory.is_none()
        {
            return;
        }
        let (reactor, lane) = {
            let used = self.network.conns[conn].used;
            (used.reactor(A), used.lane(A))
        };
        let boot = self.nodes[A].boot;
        self.happen(3, Happening::GoOn { node: A, boot, reactor, lane, conn });
    }

    /// A forwarded message arrived at B.
    pub fn arrived(
        &mut self,
        reactor: usize,
        lane: usize,
        volume: u16,
        sequence: Sequence,
        forward: Forward<Blocks>,
    ) -> bool {
        let lanes = &mut self.reactor(B, reactor).lanes;
        let Some(end) = lanes.get_mut(lane).and_then(Option::as_mut) else { return true };
        if !end.incoming.arrive(sequence) {
            return false;
        }
        let volume = usize::from(volume);
        let content = match &forward.body {
            ForwardBody::Write { range, data, .. } => {
                let cells = self.data_cells(data, range.blocks);
                Some((forward.epoch, *range, cells))
            }
            ForwardBody::Flush | ForwardBody::Verify { .. } | ForwardBody::Read { .. } => None,
        };
        // What the machine takes is content from here on; what it refuses at once is not.
        let mut out = Vec::new();
        if let Machine::Secondary(machine) = &mut self.reactor(B, reactor).machines[volume] {
            machine.forwarded(lane as Lane, sequence, forward, &mut out);
        } else {
            return false;
        }
        let refused = |output: &SecondaryOutput<Blocks>| matches!(output, SecondaryOutput::Answer { sequence: of, answer: Answer::Failed(_), .. } if *of == sequence);
        if let Some((epoch, range, cells)) = content
            && !out.iter().any(refused)
        {
            self.taken(reactor, volume, epoch, range, cells);
            if let Some(Some(end)) = self.reactor(B, reactor).lanes.get_mut(lane) {
                end.taken.insert(sequence.0, range);
            }
        }
        for output in out {
            self.secondary_output(reactor, volume, output);
        }
        self.schedule_acks(B, reactor);
        self.something_arrived(reactor);
        true
    }

    fn answer(&mut self, reactor: usize, volume: usize, lane: usize, sequence: Sequence, answer: Answer) {
        match answer {
            Answer::Pinned => {
                self.pinned = true;
                self.reach.pins += 1;
            }
            Answer::Failed(_) => self.spoilt = true,
            Answer::Applied | Answer::Compared(_) => {}
        }
        let lanes = &mut self.reactor(B, reactor).lanes;
        if let Some(end) = lanes.get_mut(lane).and_then(Option::as_mut) {
            end.incoming.end(sequence, (volume as u16, answer));
            let range = end.taken.remove(&sequence.0);
            if let (Answer::Failed(_), Some(range)) = (answer, range) {
                self.oracle.spoil(volume as u8, range);
            }
        }
        self.schedule_acks(B, reactor);
    }

    fn schedule_acks(&mut self, node: usize, reactor: usize) {
        if !std::mem::replace(&mut self.reactor(node, reactor).acks_scheduled, true) {
            let after = self.rng.between(0, 15);
            let boot = self.nodes[node].boot;
            self.happen(after, Happening::Acks { node, boot, reactor });
        }
    }

    pub fn send_acks(&mut self, node: usize, reactor: usize) {
        self.reactor(node, reactor).acks_scheduled = false;
        let mut messages = Vec::new();
        let mut more = false;
        for end in self.reactor(node, reactor).lanes.iter_mut().flatten() {
            if end.incoming.has_news() {
                let mut runs = Vec::new();
                let received = end.incoming.report(ACK_RUNS, |run| runs.push(run));
                more |= end.incoming.has_news();
                messages.push((end.conn, Message::Acks { received, runs }));
            }
        }
        for (conn, message) in messages {
            self.send(node, conn, message);
        }
        if more {
            self.schedule_acks(node, reactor);
        }
    }

    /// B acknowledged messages of A's.
    pub fn acked(
        &mut self,
        reactor: usize,
        lane: usize,
        received: Sequence,
        runs: Vec<Run<(u16, Answer)>>,
    ) -> bool {
        let lanes = &mut self.reactor(A, reactor).lanes;
        let Some(end) = lanes.get_mut(lane).and_then(Option::as_mut) else { return true };
        let mut changed = Vec::new();
        let applied = Answer::Applied;
        let mut known = end.outgoing.received_through(received, |answered| changed.push((answered, applied)));
        for run in runs {
            known &=
                end.outgoing.ended(run.first, run.count, |answered| changed.push((answered, run.status.1)));
        }
        for (answered, answer) in changed {
            let (Answered::Received(sender) | Answered::Ended(sender)) = answered;
            self.with_primary(reactor, usize::from(sender.volume), |machine, out| match (answered, answer) {
                (Answered::Received(_), _) => machine.received(sender.op, out),
                (_, Answer::Failed(refusal)) => machine.peer_refused(sender.range, refusal, out),
                (_, Answer::Pinned) => machine.pinned(sender.op, out),
                (_, Answer::Applied | Answer::Compared(_)) => machine.applied(sender.op, out),
            });
        }
        known
    }

    pub fn prepare(&mut self, reactor: usize, epoch: Epoch, lasts: Vec<(Lane, Sequence)>) {
        let left = self.volumes();
        let preparing = Preparing { epoch, lasts, asked: false, left, result: Ok(Standing::Durable) };
        self.reactor(B, reactor).preparing = Some(preparing);
        self.something_arrived(reactor);
    }

    fn something_arrived(&mut self, reactor: usize) {
        let here = self.reactor(B, reactor);
        let Some(preparing) = &here.preparing else { return };
        if preparing.asked || !here.have_arrived(&preparing.lasts) {
            return;
        }
        let epoch = preparing.epoch;
        if let Some(preparing) = &mut here.preparing {
            preparing.asked = true;
        }
        self.secondaries(reactor, |machine, out| machine.prepare(epoch, out));
    }

    fn machine_prepared(&mut self, reactor: usize, epoch: Epoch, result: Result<Standing, PeerRefusal>) {
        let here = self.reactor(B, reactor);
        let Some(preparing) = here.preparing.as_mut().filter(|preparing| preparing.epoch == epoch) else {
            return;
        };
        preparing.left = preparing.left.saturating_sub(1);
        if preparing.result == Ok(Standing::Durable) || preparing.result.is_ok() && result.is_err() {
            preparing.result = result;
        }
        if preparing.left == 0 {
            let result = preparing.result;
            here.preparing = None;
            self.call(B, reactor, 0, Call::Prepared(epoch, result));
        }
    }

    /// Closes the lanes of a reactor.
    pub fn detach_all(&mut self, node: usize, reactor: usize) {
        let lanes = std::mem::take(&mut self.reactor(node, reactor).lanes);
        for end in lanes.into_iter().flatten() {
            self.close(node, end.conn);
        }
    }

    pub fn tick(&mut self, node: usize) {
        if node != B {
            return;
        }
        for reactor in 0..self.reactors(B) {
            if self.reactor(B, reactor).stalled_until > self.now {
                continue;
            }
            for volume in 0..self.volumes() {
                self.with_secondary(reactor, volume, |machine, out| {
                    machine.maps_mut().recycle();
                    machine.tick(out);
                });
            }
        }
        self.check_differences();
    }
}
