//! One thing happens after another: what each of them does.

use super::*;

impl World {
    /// One thing happens; what kind, if anything can.
    pub fn step(&mut self) -> Option<Step> {
        if self.events.is_empty() {
            return None;
        }
        let at = self.rng.below(self.events.len());
        let event = self.events.swap_remove(at);
        let step = if event.is_of_load() { Step::Load } else { Step::Checkpoint };
        self.happen(event);
        Some(step)
    }

    pub fn settle(&mut self) {
        while self.step().is_some() {}
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Disk(io) => self.disk(io),
            Event::Data(at) => self.data(at),
            Event::Report(at) => self.report(at),
            Event::Answer(at) => self.answer(at),
            Event::Order { primary: true, reactor } => self.order_primary(reactor),
            Event::Order { primary: false, reactor } => self.order_secondary(reactor),
            Event::Control { to_primary: true } => {
                if let Some(message) = self.to_primary.pop_front() {
                    self.with_primary_group(|group, out| group.message(message, out));
                }
            }
            Event::Control { to_primary: false } => {
                if let Some(message) = self.to_secondary.pop_front() {
                    self.with_secondary_group(|group, out| group.message(message, out));
                }
            }
            Event::Frozen => self.with_primary_group(|group, out| group.frozen(out)),
            Event::Stamped => {
                if let Some(lasts) = self.reports.pop_front() {
                    self.with_primary_group(|group, out| group.stamped(lasts, out));
                }
            }
            Event::Prepared => {
                if let Some((epoch, result)) = self.prepared.pop_front() {
                    self.with_secondary_group(|group, out| group.prepared(epoch, result, out));
                }
            }
            Event::Record => self.record(),
            Event::Recorded { primary: true } => {
                self.with_primary_group(|group, out| group.persisted(true, out))
            }
            Event::Recorded { primary: false } => {
                self.with_secondary_group(|group, out| group.persisted(true, out));
            }
            Event::Journal(reactor) => self.journal_next(reactor),
            Event::Journaled(reactor) => self.journal_written(reactor),
        }
    }

    /// The record, or a volume's part of it where something is wrong, becomes durable.
    fn record(&mut self) {
        let Some(record) = self.writing.pop_front() else { return };
        match self.fault {
            Fault::RecordPerVolume => self.records[VOLUMES - 1 - self.writing.len() % VOLUMES] = record,
            _ => self.records.fill(record),
        }
        let next = if self.writing.is_empty() { Event::Recorded { primary: false } } else { Event::Record };
        self.events.push(next);
    }

    fn disk(&mut self, mut io: Box<DiskIo>) {
        let volume = &mut self.volumes[io.volume];
        let disk = if io.primary { &mut volume.primary_disk } else { &mut volume.secondary_disk };
        let Some(content) = io.content.take() else {
            let content = disk.read(io.range);
            match &io.what {
                What::Write(data) => disk.write(io.range, data),
                What::Flush if self.fault != Fault::NoFlush => disk.flush(),
                What::Flush | What::Preserve => {}
            }
            io.content = Some(content);
            return self.events.push(Event::Disk(io));
        };
        let DiskIo { primary, volume, reactor, op, range, what, .. } = *io;
        match (primary, what) {
            (true, _) => {
                self.with_primary(volume, reactor, |machine, out| machine.local_done(op, true, out));
            }
            (false, What::Write(_)) => {
                self.with_secondary(volume, reactor, |machine, out| machine.write_done(op, true, out));
            }
            (false, What::Flush) => {
                self.with_secondary(volume, reactor, |machine, out| machine.flush_done(op, true, out));
            }
            (false, What::Preserve) => self.with_secondary(volume, reactor, |machine, out| {
                machine.preserve_read(op, range, Some(&content), out);
            }),
        }
    }

    fn journal_next(&mut self, reactor: usize) {
        let share = &mut self.reactors[reactor];
        if share.batch.is_some() {
            return;
        }
        let mut ended = Vec::new();
        let next = share.area.next(&share.buffer, &mut |token, outcome| ended.push((token, outcome)));
        if let Some((at, len)) = next {
            share.batch = Some((at, share.buffer.with(|bytes| bytes[..len].to_vec())));
            self.events.push(Event::Journaled(reactor));
        }
        self.journal_ended(reactor, ended);
    }

    fn journal_written(&mut self, reactor: usize) {
        let share = &mut self.reactors[reactor];
        let Some((at, bytes)) = share.batch.take() else { return };
        let start = (HEADER.area_at(reactor as u32) + at) as usize;
        self.journal[start..start + bytes.len()].copy_from_slice(&bytes);
        let mut ended = Vec::new();
        share.area.written(true, |token, outcome| ended.push((token, outcome)));
        if share.area.has_work() {
            self.events.push(Event::Journal(reactor));
        }
        self.journal_ended(reactor, ended);
    }

    fn journal_ended(&mut self, reactor: usize, ended: Vec<((usize, OpId), Journaled)>) {
        for ((volume, op), outcome) in ended {
            self.with_secondary(volume, reactor, |machine, out| machine.journaled(op, outcome, out));
        }
    }

    pub(super) fn report_soon(&mut self, at: usize) {
        if self.connected && !std::mem::replace(&mut self.links[at].reporting, true) {
            self.events.push(Event::Report(at));
        }
    }

    fn data(&mut self, at: usize) {
        let Some((sequence, volume, forward)) = self.links[at].data.pop_front() else { return };
        assert!(self.links[at].incoming.arrive(sequence));
        let (from, to) = ((at / REACTORS) as Lane, at % REACTORS);
        self.with_secondary(volume, to, |machine, out| machine.forwarded(from, sequence, forward, out));
        self.report_soon(at);
        self.try_prepare(to);
    }

    fn report(&mut self, at: usize) {
        let link = &mut self.links[at];
        link.reporting = false;
        let mut runs = Vec::new();
        let received = link.incoming.report(8, |run| runs.push(run));
        link.answers.push_back((received, runs));
        let more = link.incoming.has_news();
        self.events.push(Event::Answer(at));
        if more {
            self.report_soon(at);
        }
    }

    fn answer(&mut self, at: usize) {
        let Some((received, runs)) = self.links[at].answers.pop_front() else { return };
        let reactor = at / REACTORS;
        let mut answers = Vec::new();
        assert!(self.links[at].out.received_through(received, |answer| answers.push(answer)));
        for run in runs {
            assert_eq!(run.status, Answer::Applied);
            assert!(self.links[at].out.ended(run.first, run.count, |answer| answers.push(answer)));
        }
        for answer in answers {
            match answer {
                Answered::Received((volume, op)) => {
                    self.with_primary(volume, reactor, |machine, out| machine.received(op, out));
                }
                Answered::Ended((volume, op)) => {
                    self.with_primary(volume, reactor, |machine, out| machine.applied(op, out));
                }
            }
        }
    }

    fn order_primary(&mut self, reactor: usize) {
        let Some(order) = self.reactors[reactor].orders[1].pop_front() else { return };
        let all = 0..VOLUMES;
        match order {
            ToStripes::LinkUp(session) => {
                all.for_each(|v| self.with_primary(v, reactor, |m, out| m.link_up(session, out)));
            }
            ToStripes::LinkDown => {
                all.for_each(|v| self.with_primary(v, reactor, |m, out| m.link_down(out)));
            }
            ToStripes::Freeze => {
                all.for_each(|v| self.volumes[v].primary[reactor].freeze());
                self.events.push(Event::Frozen);
            }
            ToStripes::Stamp { next, preserve } => {
                let lasts = (0..REACTORS).map(|lane| Last {
                    primary_reactor: reactor as u16,
                    secondary_reactor: lane as u16,
                    sequence: self.links[reactor * REACTORS + lane].out.last(),
                });
                self.reports.push_back(lasts.collect());
                self.events.push(Event::Stamped);
                all.for_each(|v| self.with_primary(v, reactor, |m, out| m.stamp(next, preserve, out)));
            }
            ToStripes::StartCopy { only_dirty } => {
                all.for_each(|v| self.with_primary(v, reactor, |m, out| m.start_copy(only_dirty, out)));
            }
            other => panic!("nobody orders {other:?}"),
        }
    }

    fn order_secondary(&mut self, reactor: usize) {
        let Some(order) = self.reactors[reactor].orders[0].pop_front() else { return };
        let mut ok = Some(true);
        match order {
            ToStripes::LinkDown => {
                (0..VOLUMES).for_each(|v| self.volumes[v].secondary[reactor].link_down());
                ok = None;
            }
            ToStripes::Begin { generation, base, originals, .. } => {
                self.reactors[reactor].area.committed(base);
                for volume in &mut self.volumes {
                    volume.secondary[reactor].begin(generation, base, BLOCKS, originals);
                }
            }
            ToStripes::Prepare { epoch, lasts } => {
                self.reactors[reactor].preparing = Some((epoch, lasts));
                self.try_prepare(reactor);
                ok = None;
            }
            ToStripes::Commit { epoch } => self.commit(reactor, epoch),
            ToStripes::Hold { keep, .. } => {
                let held = self.volumes.iter_mut().all(|volume| volume.secondary[reactor].hold_promise(keep));
                ok = Some(held);
            }
            ToStripes::Promote { keep, generation } => {
                for volume in 0..VOLUMES {
                    let mut result = Ok(());
                    self.with_secondary(volume, reactor, |machine, out| {
                        result = machine.promote(keep, generation, out);
                    });
                    ok = Some(ok == Some(true) && result.is_ok());
                }
            }
            other => panic!("nobody orders {other:?}"),
        }
        if let Some(ok) = ok {
            self.with_secondary_group(|group, out| group.done(ok, out));
        }
    }

    pub(super) fn commit(&mut self, reactor: usize, epoch: Epoch) {
        self.reactors[reactor].area.committed(epoch);
        let forgotten = usize::from(self.fault == Fault::ForgottenVolume && epoch.0 > 1);
        for volume in 0..VOLUMES - forgotten {
            self.with_secondary(volume, reactor, |machine, out| machine.commit(epoch, out));
        }
    }

    /// Asks the machines if everything that they are asked for has arrived.
    fn try_prepare(&mut self, reactor: usize) {
        let Some((epoch, lasts)) = &self.reactors[reactor].preparing else { return };
        let epoch = *epoch;
        let arrived = |last: &Last| {
            let at = usize::from(last.primary_reactor) * REACTORS + reactor;
            usize::from(last.secondary_reactor) != reactor
                || self.links[at].incoming.arrived() >= last.sequence
        };
        if !lasts.iter().all(arrived) {
            return;
        }
        let share = &mut self.reactors[reactor];
        (share.preparing, share.left, share.standing) = (None, VOLUMES, Ok(Standing::Durable));
        for volume in 0..VOLUMES {
            self.with_secondary(volume, reactor, |machine, out| machine.prepare(epoch, out));
        }
    }
}
