//! Draws a plan from a seed. Each plan has a theme, so that deep states are reached: where everything fails all the
//! time, nothing comes far.

use super::plan::*;
use super::rng::Rng;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Theme {
    Calm,
    Links,
    Hangs,
    Errors,
    Crashes,
    SmallBuffer,
    Syncs,
    Mistakes,
    Everything,
}

const THEMES: [Theme; 9] = [
    Theme::Calm,
    Theme::Links,
    Theme::Hangs,
    Theme::Errors,
    Theme::Crashes,
    Theme::SmallBuffer,
    Theme::Syncs,
    Theme::Mistakes,
    Theme::Everything,
];

pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed);
    let theme = *rng.pick(&THEMES);
    let shape = shape(&mut rng, theme);
    let mut drawing = Drawing { rng, theme, events: Vec::new(), hot: Vec::new(), shape: shape.clone() };
    drawing.draw();
    let mut events = drawing.events;
    events.sort_by_key(|timed| timed.at);
    Plan { seed, shape, events }
}

fn shape(rng: &mut Rng, theme: Theme) -> Shape {
    let block_bytes = if rng.chance(25) { 512 } else { 4096 };
    let small = theme == Theme::SmallBuffer;
    let reactors = [*rng.pick(&[1, 1, 2, 2, 3]), *rng.pick(&[1, 1, 2, 2, 3])];
    Shape {
        volumes: *rng.pick(&[1, 1, 2, 3]),
        reactors,
        block_bytes,
        granule_blocks: *rng.pick(if block_bytes == 512 { &[1, 2, 8] } else { &[1, 2, 4] }),
        stripes: if reactors == [1, 1] { 0 } else { rng.between(0, 2) as u8 },
        tail: rng.between(40, 200) as u32,
        buffer: !rng.chance(4),
        buffer_kib: if small { rng.between(64, 400) as u32 } else { 64 << 10 },
        ack: *rng.pick(&[Ack::Applied, Ack::Applied, Ack::Received, Ack::Local]),
        policy: *rng.pick(&[Policy::Continue, Policy::Continue, Policy::Block]),
        lag_kib: if rng.chance(30) { rng.between(8, 64) as u32 } else { 4096 },
        equal: !(theme == Theme::Syncs || rng.chance(10)),
    }
}

struct Drawing {
    rng: Rng,
    theme: Theme,
    events: Vec<Timed>,
    hot: Vec<u32>,
    shape: Shape,
}

impl Drawing {
    fn push(&mut self, at: u64, event: Event) {
        self.events.push(Timed { at: at as u32, event });
    }

    fn draw(&mut self) {
        let blocks = self.shape.blocks() as u32;
        let stripe = self.shape.stripe_blocks() as u32;
        let mut borders = vec![0, blocks.saturating_sub(12)];
        borders.extend((1..=u32::from(self.shape.stripes)).map(|n| n * stripe - 6));
        let count = self.rng.between(1, 3);
        self.hot = (0..count).map(|_| *self.rng.pick(&borders)).collect();
        let span = self.rng.between(40, 250) * 1000;
        let full = !self.shape.equal || self.rng.chance(5);
        let early = self.rng.chance(15);
        if early {
            self.push(100, Event::Start { full });
            self.hosts(Who::A, 100, 4_000, 6);
        }
        self.push(if early { 60_000 } else { 200 }, Event::Start { full });
        let count = self.rng.between(10, 120);
        self.hosts(Who::A, 3_000, span, count);
        let own = self.rng.below(30);
        self.hosts(Who::B, 3_000, span, own);
        self.checkpoints(span);
        self.changes(span);
        let faults = match self.theme {
            Theme::Calm => 0,
            Theme::Everything => self.rng.between(2, 8),
            _ => self.rng.between(1, 4),
        };
        for _ in 0..faults {
            self.fault(span);
        }
        if self.theme == Theme::Mistakes {
            self.mistakes(span);
        }
        if self.rng.chance(70) {
            self.failover(span);
        }
    }

    fn place(&mut self) -> (u8, u32, u16) {
        let volume = self.rng.below(u64::from(self.shape.volumes)) as u8;
        let near = *self.rng.pick(&self.hot);
        let blocks = self.shape.blocks() as u32;
        let lba = (near + self.rng.below(16) as u32).min(blocks - 1);
        let most = *self.rng.pick(&[1, 2, 4, 12]);
        let count = (self.rng.between(1, most) as u32).min(blocks - lba);
        (volume, lba, count as u16)
    }

    fn hosts(&mut self, node: Who, from: u64, span: u64, count: u64) {
        // Some hosts send in bursts, so that writes overlap while they are under way.
        let bursts = self.rng.chance(50);
        let mut at = self.rng.between(from, from + span);
        for _ in 0..count {
            if !bursts || self.rng.chance(15) {
                at = self.rng.between(from, from + span);
            } else {
                at += self.rng.below(120);
            }
            let (volume, lba, blocks) = self.place();
            let op = match self.rng.below(100) {
                0..50 => HostOp::Write,
                50..58 => HostOp::Zeroes,
                58..62 => HostOp::Unmap,
                62..72 => HostOp::Flush,
                72..80 => HostOp::CompareAndWrite { wrong: self.rng.chance(25) },
                _ => HostOp::Read,
            };
            let fua = self.rng.chance(10);
            self.push(at, Event::Host { node, volume, op, lba, blocks, fua });
        }
    }

    fn checkpoints(&mut self, span: u64) {
        if self.rng.chance(15) {
            let ms = self.rng.between(5, 40) as u16;
            self.push(4_000, Event::Interval { ms });
        }
        for _ in 0..self.rng.between(0, 6) {
            let at = self.rng.between(3_000, span);
            let timeout_ms = *self.rng.pick(&[100, 100, 20, 4]);
            if self.rng.chance(30) {
                // A reactor that stops in the middle of a cut, while hosts write.
                let (stall, us) = (at + self.rng.between(2, 60), self.rng.between(300, 3_000) as u32);
                let reactor = self.rng.below(3) as u8;
                self.push(stall, Event::Stall { node: Who::A, reactor, us });
                let count = self.rng.between(2, 10);
                self.hosts(Who::A, at, 1_500, count);
            }
            if self.rng.chance(60) {
                self.push(at, Event::Checkpoint { timeout_ms });
                continue;
            }
            self.push(at, Event::Prepare { timeout_ms });
            let after = at + self.rng.between(0, 20_000);
            let end = if self.rng.chance(65) { Event::Commit { off: 0 } } else { Event::Abort { off: 0 } };
            self.push(after, end);
        }
    }

    fn changes(&mut self, span: u64) {
        if self.rng.chance(30) {
            let at = self.rng.between(0, span);
            let ack = *self.rng.pick(&[Ack::Applied, Ack::Received, Ack::Local]);
            self.push(at, Event::SetAck(ack));
        }
        if self.rng.chance(15) {
            let at = self.rng.between(0, span);
            let policy = *self.rng.pick(&[Policy::Continue, Policy::Block]);
            self.push(at, Event::SetPolicy(policy));
        }
        if self.theme == Theme::SmallBuffer && self.rng.chance(50) {
            let at = self.rng.between(0, span);
            let kib = self.rng.between(32, 600) as u32;
            self.push(at, Event::SetBufferLimit { kib });
        }
    }

    fn node(&mut self) -> Who {
        *self.rng.pick(&[Who::A, Who::B, Who::B])
    }

    fn fault(&mut self, span: u64) {
        let at = self.rng.between(500, span);
        let theme = match self.theme {
            Theme::Everything => *self.rng.pick(&[Theme::Links, Theme::Hangs, Theme::Errors, Theme::Crashes]),
            Theme::SmallBuffer => *self.rng.pick(&[Theme::Calm, Theme::Hangs, Theme::Links]),
            Theme::Syncs => *self.rng.pick(&[Theme::Links, Theme::Crashes, Theme::Hangs]),
            theme => theme,
        };
        let again = at + self.rng.between(500, 60_000);
        match theme {
            Theme::Links => self.link(at, again),
            Theme::Hangs | Theme::Errors => self.disk(theme, at, again),
            Theme::Crashes => self.crash(at, again),
            _ => {}
        }
        if self.rng.chance(20) {
            let (node, reactor) = (self.node(), self.rng.below(3) as u8);
            let us = self.rng.between(100, 8_000) as u32;
            self.push(at, Event::Stall { node, reactor, us });
        }
    }

    fn link(&mut self, at: u64, again: u64) {
        match self.rng.below(5) {
            0 | 1 => self.push(at, Event::Cut),
            2 => {
                let (a_to_b, b_to_a) = *self.rng.pick(&[(true, true), (true, false), (false, true)]);
                self.push(at, Event::Partition { a_to_b, b_to_a });
                self.push(again, Event::HealLink);
            }
            3 => {
                let factor = self.rng.between(3, 60) as u8;
                self.push(at, Event::Slow { factor });
                self.push(again, Event::HealLink);
                return;
            }
            _ => {
                self.push(at, Event::Cut);
                self.push(at + self.rng.clone().below(3_000), Event::Cut);
            }
        }
        self.start_again(again + 40_000);
    }

    fn start_again(&mut self, at: u64) {
        if self.rng.chance(75) {
            let full = self.rng.chance(75);
            let at = at + self.rng.below(20_000);
            self.push(at, Event::Start { full });
            let count = self.rng.below(25);
            self.hosts(Who::A, at, 30_000, count);
            if self.rng.chance(60) {
                let after = at + self.rng.below(25_000);
                self.push(after, Event::Checkpoint { timeout_ms: 100 });
            }
            if self.rng.chance(20) {
                let after = at + self.rng.below(10_000);
                self.push(after, Event::Cut);
            }
        }
    }

    fn disk(&mut self, theme: Theme, at: u64, again: u64) {
        let node = self.node();
        let volume = self.rng.below(u64::from(self.shape.volumes)) as u8;
        let few = self.rng.between(1, 3) as u8;
        let fault = match theme {
            Theme::Hangs => *self.rng.pick(&[DiskFault::Hang, DiskFault::HangSome, DiskFault::Slow(40)]),
            _ => *self.rng.pick(&[DiskFault::WriteErrors(few), DiskFault::ReadErrors(few)]),
        };
        if self.rng.chance(25) {
            self.push(at, Event::Metadata { node, fault });
            self.push(again, Event::Metadata { node, fault: DiskFault::Heal });
        } else {
            self.push(at, Event::Disk { node, volume, fault });
            if theme == Theme::Hangs && self.rng.chance(30) {
                self.push(at + 50, Event::Disk { node, volume, fault: DiskFault::WriteErrors(few) });
            }
            if self.rng.chance(70) {
                self.push(again, Event::Disk { node, volume, fault: DiskFault::Heal });
            }
        }
    }

    fn crash(&mut self, at: u64, again: u64) {
        let (node, power) = (self.node(), self.rng.chance(50));
        self.push(at, Event::Crash { node, power });
        if self.rng.chance(85) {
            self.push(again, Event::Restart(node));
            self.start_again(again + 1_000);
        }
    }

    fn mistakes(&mut self, span: u64) {
        for _ in 0..self.rng.between(2, 8) {
            let at = self.rng.between(0, span);
            let promise = *self.rng.pick(&[Promise::Latest, Promise::Checkpoint, Promise::Overlay]);
            let event = match self.rng.below(9) {
                0 => Event::Commit { off: self.rng.below(3) as i8 - 1 },
                1 => Event::Abort { off: self.rng.below(3) as i8 - 1 },
                2 => Event::Start { full: self.rng.chance(50) },
                3 => Event::StartSecondary,
                4 => Event::Stop(Who::A),
                5 => Event::Stop(Who::B),
                6 => Event::Checkpoint { timeout_ms: 1 },
                7 => Event::Prepare { timeout_ms: 50 },
                _ => Event::Failover(promise),
            };
            self.push(at, event);
        }
    }

    /// What goes wrong in the moment of a failover.
    fn around_failover(&mut self, at: u64, over: u64) {
        if self.theme == Theme::SmallBuffer && self.rng.chance(50) {
            // Some reactors hear of it late, with originals still on their way into a full buffer.
            let count = self.rng.between(5, 20);
            self.hosts(Who::A, over.saturating_sub(300), 300, count);
            let (full, kib) = (over + self.rng.below(300), 32);
            self.push(full, Event::SetBufferLimit { kib });
            for reactor in 0..self.shape.reactors[1] {
                if self.rng.chance(60) {
                    let (stall, us) = (at.saturating_sub(self.rng.below(400)), self.rng.between(200, 4_000));
                    self.push(stall, Event::Stall { node: Who::B, reactor, us: us as u32 });
                }
            }
        }
        if matches!(self.theme, Theme::Hangs | Theme::Everything) && self.rng.chance(35) {
            // Memory holds what the disk has not taken, and is lost.
            let fault = *self.rng.pick(&[DiskFault::Hang, DiskFault::HangSome]);
            for volume in 0..self.shape.volumes {
                self.push(at.saturating_sub(3_000), Event::Disk { node: Who::B, volume, fault });
            }
            let count = self.rng.between(2, 8);
            self.hosts(Who::A, at.saturating_sub(2_500), 2_400, count);
            let down = over + self.rng.between(500, 60_000);
            let power = self.rng.chance(50);
            self.push(down, Event::Crash { node: Who::B, power });
            self.push(down + 2_000, Event::Restart(Who::B));
        }
        if matches!(self.theme, Theme::Errors | Theme::Everything) && self.rng.chance(40) {
            let (after, errors) = (over + self.rng.below(3_000), self.rng.between(1, 3) as u8);
            self.push(after, Event::Metadata { node: Who::B, fault: DiskFault::WriteErrors(errors) });
        }
    }

    fn failover(&mut self, span: u64) {
        let mut at = self.rng.between(span / 2, span + 5_000);
        if self.rng.chance(20) {
            // Both nodes are lost, one after the other: what is left is what was flushed.
            let count = self.rng.between(4, 12);
            self.hosts(Who::A, at, 400, count);
            for volume in 0..self.shape.volumes {
                let flush =
                    Event::Host { node: Who::A, volume, op: HostOp::Flush, lba: 0, blocks: 1, fua: false };
                self.push(at + 500 + self.rng.clone().below(600), flush);
            }
            let down = at + 1_000 + self.rng.below(3_000);
            self.push(down, Event::Crash { node: Who::B, power: self.rng.clone().chance(80) });
            self.push(down + 2_000, Event::Restart(Who::B));
            self.push(down + 3_000, Event::Crash { node: Who::A, power: true });
            self.push(down + 4_000, Event::Failover(Promise::Latest));
            at = down + 4_000;
        }
        match self.rng.below(10) {
            0..5 => self.push(at, Event::Crash { node: Who::A, power: self.rng.clone().chance(50) }),
            5..7 => self.push(at, Event::Partition { a_to_b: true, b_to_a: true }),
            7 => self.push(at, Event::Cut),
            _ => {}
        }
        let over = at + self.rng.below(4_000);
        let promise = *self.rng.pick(&[Promise::Latest, Promise::Checkpoint, Promise::Overlay]);
        self.push(over, Event::Failover(promise));
        self.around_failover(at, over);
        if self.rng.chance(15) {
            self.push(over + self.rng.clone().below(2_000), Event::Failover(promise));
        }
        let count = self.rng.below(40);
        self.hosts(Who::B, over + 300, 20_000, count);
        if self.rng.chance(35) {
            // The new primary loses power or dies, sometimes in the middle of its drain.
            let (down, power) = (over + self.rng.below(9_000), self.rng.chance(70));
            self.push(down, Event::Crash { node: Who::B, power });
            self.push(down + 3_000, Event::Restart(Who::B));
            self.hosts(Who::B, down + 4_000, 6_000, 10);
        }
        if self.rng.chance(40) {
            let back = over + self.rng.between(1_000, 30_000);
            self.push(back, Event::HealLink);
            self.push(back + 100, Event::Restart(Who::A));
            self.push(back + 1_000, Event::Start { full: self.rng.clone().chance(50) });
            self.hosts(Who::A, back, 40_000, 12);
        }
    }
}
