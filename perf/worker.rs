//! One queue's load on a reactor: keeps its depth in flight, times and checks every I/O.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use lockstep::env::{Buf, clock};
use lockstep::reactor::{self, Reply, TimerHandler};

use crate::backend::{Backend, Client, Request};
use crate::generator::{Generator, Kind};
use crate::options::Load;
use crate::verify::{Fault, Ledger};

/// Latencies above this are counted as this.
const LONGEST_NS: u64 = 120_000_000_000;
/// How often a limited rate hands out I/Os, and how often a worker looks at the time.
const TICK: Duration = Duration::from_millis(1);
/// Attempts to find an address that no write is in flight on.
const ADDRESS_ATTEMPTS: usize = 64;
/// Messages kept of failed I/Os.
const MESSAGES: usize = 5;
/// Length of one step of the time series.
pub const STEP_NS: u64 = 100_000_000;

/// What the workers of a run and its main thread tell each other.
#[derive(Default)]
pub struct Shared {
    /// The main thread's wish.
    pub stop: AtomicBool,
    /// Bytes of acknowledged writes.
    pub written: AtomicU64,
    /// Number of the window of time that is open now: see `Results::windows`.
    pub window: AtomicU64,
    /// Workers that have ended.
    pub ended: AtomicUsize,
}

/// What to do, for one worker.
#[derive(Clone)]
pub struct Plan {
    pub load: Load,
    pub block_size: u32,
    pub first_lba: u64,
    pub units: u64,
    /// Unique to the worker and the run; the low 16 bits number the workers.
    pub writer: u64,
    /// This worker's share of the rate, I/Os per second.
    pub rate: Option<f64>,
    pub shared: Arc<Shared>,
}

/// What came of it.
pub struct Results {
    pub reads: Histogram<u64>,
    pub writes: Histogram<u64>,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub errors: u64,
    pub messages: Vec<String>,
    pub faults: BTreeMap<Fault, u64>,
    pub checked_blocks: u64,
    /// I/Os and the longest latency (ns) of each step of `STEP_NS`.
    pub steps: Vec<(u64, u64)>,
    /// The longest write (ns) that was in flight in each window.
    pub windows: Vec<u64>,
    pub measured_ns: u64,
    pub closed: Option<String>,
}

/// One I/O that is in flight, or was.
struct Slot {
    kind: Kind,
    lba: u64,
    start_ns: u64,
    window: u64,
    floor: Vec<u64>,
}

struct State {
    generator: Generator,
    slots: Vec<Slot>,
    /// The slots that are free, each with the buffer of its next I/O.
    idle: Vec<(usize, Buf)>,
    ledger: Option<Ledger>,
    results: Results,
    tokens: f64,
    refilled_ns: u64,
}

pub struct Worker {
    plan: Plan,
    backend: OnceCell<Backend>,
    state: RefCell<State>,
    in_flight: Cell<usize>,
    issued: Cell<u64>,
    begin_ns: Cell<u64>,
    measure_ns: Cell<u64>,
    end_ns: Cell<u64>,
    stopping: Cell<bool>,
    reply: RefCell<Option<Reply<Results>>>,
}

fn histogram() -> Histogram<u64> {
    // The bounds and digits are constants that the library accepts.
    Histogram::new_with_bounds(1, LONGEST_NS, 3).unwrap_or_else(|e| panic!("histogram: {e}"))
}

impl Results {
    pub fn new() -> Results {
        Results {
            reads: histogram(),
            writes: histogram(),
            read_bytes: 0,
            write_bytes: 0,
            errors: 0,
            messages: Vec::new(),
            faults: BTreeMap::new(),
            checked_blocks: 0,
            steps: Vec::new(),
            windows: Vec::new(),
            measured_ns: 0,
            closed: None,
        }
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: &Results) {
        // Both have the same bounds.
        let _ = self.reads.add(&other.reads);
        let _ = self.writes.add(&other.writes);
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.errors += other.errors;
        self.checked_blocks += other.checked_blocks;
        self.messages
            .extend(other.messages.iter().take(MESSAGES - self.messages.len().min(MESSAGES)).cloned());
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.steps.resize(self.steps.len().max(other.steps.len()), (0, 0));
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            *mine = (mine.0 + theirs.0, mine.1.max(theirs.1));
        }
        self.windows.resize(self.windows.len().max(other.windows.len()), 0);
        for (mine, theirs) in self.windows.iter_mut().zip(&other.windows) {
            *mine = (*mine).max(*theirs);
        }
        self.measured_ns = self.measured_ns.max(other.measured_ns);
        if self.closed.is_none() {
            self.closed.clone_from(&other.closed);
        }
    }
}

impl Worker {
    /// A worker without its backend; `None` if there is no memory for its buffers.
    pub fn new(plan: Plan, reply: Reply<Results>) -> Option<Rc<Worker>> {
        let load = &plan.load;
        let unit_blocks = load.size_bytes / u64::from(plan.block_size);
        let mut slots = Vec::with_capacity(load.depth);
        let mut idle = Vec::with_capacity(load.depth);
        for n in 0..load.depth {
            let buf = reactor::alloc(load.size_bytes as usize)?;
            buf.fill(0, buf.len(), n as u8 ^ 0x5a);
            slots.push(Slot { kind: Kind::Read, lba: 0, start_ns: 0, window: 0, floor: Vec::new() });
            idle.push((n, buf));
        }
        let seed = load.seed.wrapping_mul(1_000_003).wrapping_add(plan.writer & 0xffff);
        let ledger = load
            .verify
            .then(|| Ledger::new(plan.writer, plan.first_lba, plan.units * unit_blocks, plan.block_size));
        let state = State {
            generator: Generator::new(load.pattern, plan.first_lba, plan.units, unit_blocks, seed),
            idle,
            slots,
            ledger,
            results: Results::new(),
            tokens: 0.0,
            refilled_ns: 0,
        };
        Some(Rc::new(Worker {
            plan,
            backend: OnceCell::new(),
            state: RefCell::new(state),
            in_flight: Cell::new(0),
            issued: Cell::new(0),
            begin_ns: Cell::new(0),
            measure_ns: Cell::new(u64::MAX),
            end_ns: Cell::new(u64::MAX),
            stopping: Cell::new(false),
            reply: RefCell::new(Some(reply)),
        }))
    }

    pub fn set_backend(&self, backend: Backend) {
        let _ = self.backend.set(backend);
    }

    /// Reports a failure before the load began.
    pub fn fail(&self, why: String) {
        self.state.borrow_mut().results.closed = Some(why);
        self.report();
    }

    fn report(&self) {
        if let Some(reply) = self.reply.take() {
            let mut results = std::mem::replace(&mut self.state.borrow_mut().results, Results::new());
            let until = clock::now().min(self.end_ns.get());
            results.measured_ns = until.saturating_sub(self.measure_ns.get());
            self.plan.shared.ended.fetch_add(1, Ordering::Relaxed);
            reply.send(results);
        }
    }

    /// Begins as many I/Os as may be in flight.
    fn fill(&self) {
        while !self.stopping.get() {
            let slot = self.state.borrow_mut().idle.pop();
            let Some((index, data)) = slot else { return };
            if let Some(data) = self.issue(index, data, clock::now()) {
                return self.state.borrow_mut().idle.push((index, data));
            }
        }
    }

    /// Begins one I/O in a free slot; gives the buffer back if that is not possible now.
    fn issue(&self, index: usize, data: Buf, now: u64) -> Option<Buf> {
        let Some(backend) = self.backend.get() else { return Some(data) };
        if self.plan.load.count.is_some_and(|c| self.issued.get() >= c) {
            self.stopping.set(true);
        }
        if self.stopping.get() {
            return Some(data);
        }
        let state = &mut *self.state.borrow_mut();
        if self.plan.rate.is_some() {
            if state.tokens < 1.0 {
                return Some(data);
            }
            state.tokens -= 1.0;
        }
        let blocks = self.plan.load.size_bytes / u64::from(self.plan.block_size);
        let mut kind = state.generator.next_kind();
        let mut lba = state.generator.next_lba();
        let slot = &mut state.slots[index];
        if let Some(ledger) = &mut state.ledger {
            if kind == Kind::Write {
                let mut attempts = 0;
                while ledger.is_busy(lba, blocks) && attempts < ADDRESS_ATTEMPTS {
                    lba = state.generator.next_lba();
                    attempts += 1;
                }
                if ledger.is_busy(lba, blocks) {
                    kind = Kind::Read;
                }
            }
            match kind {
                Kind::Write => ledger.begin_write(lba, blocks, &data),
                Kind::Read => ledger.begin_read(lba, blocks, &mut slot.floor),
            }
        }
        (slot.kind, slot.lba, slot.start_ns) = (kind, lba, now);
        slot.window = self.plan.shared.window.load(Ordering::Relaxed);
        self.in_flight.set(self.in_flight.get() + 1);
        self.issued.set(self.issued.get() + 1);
        backend.submit(Request { kind, lba, blocks, fua: self.plan.load.fua, tag: index as u64 }, data);
        None
    }

    /// Begins no more I/Os, for a reason that the results tell.
    fn stop(&self, why: String) {
        if !self.stopping.replace(true) {
            self.state.borrow_mut().results.closed = Some(why);
        }
    }

    /// Ends the load once nothing is in flight any more.
    fn finish_if_idle(&self) {
        if self.stopping.get() && self.in_flight.get() == 0 {
            let closing = self.backend.get().is_some_and(|b| b.close());
            if !closing {
                self.report();
            }
        }
    }

    fn count(&self, index: usize, good: bool, data: &Buf, now: u64, why: &dyn Fn() -> String) {
        let state = &mut *self.state.borrow_mut();
        let slot = &mut state.slots[index];
        let blocks = self.plan.load.size_bytes / u64::from(self.plan.block_size);
        let results = &mut state.results;
        if let Some(ledger) = &mut state.ledger {
            match slot.kind {
                Kind::Write => ledger.end_write(slot.lba, blocks, good),
                Kind::Read if good => {
                    results.checked_blocks += blocks;
                    if let Err((lba, fault)) = ledger.end_read(slot.lba, &slot.floor, data) {
                        *results.faults.entry(fault).or_default() += 1;
                        if results.messages.len() < MESSAGES {
                            results.messages.push(format!("block {lba}: {fault:?}"));
                        }
                    }
                }
                Kind::Read => {}
            }
        }
        if !good {
            results.errors += 1;
            if results.messages.len() < MESSAGES {
                results.messages.push(why());
            }
            return;
        }
        let latency = (now - slot.start_ns).clamp(1, LONGEST_NS);
        if slot.kind == Kind::Write {
            let shared = &self.plan.shared;
            shared.written.fetch_add(self.plan.load.size_bytes, Ordering::Relaxed);
            let open = shared.window.load(Ordering::Relaxed) as usize;
            if results.windows.len() <= open {
                results.windows.resize(open + 1, 0);
            }
            for longest in &mut results.windows[slot.window as usize..=open] {
                *longest = (*longest).max(latency);
            }
        }
        if now < self.measure_ns.get() || now >= self.end_ns.get() {
            return;
        }
        let (histogram, bytes) = match slot.kind {
            Kind::Read => (&mut results.reads, &mut results.read_bytes),
            Kind::Write => (&mut results.writes, &mut results.write_bytes),
        };
        histogram.saturating_record(latency);
        *bytes += self.plan.load.size_bytes;
        let step = ((now - self.measure_ns.get()) / STEP_NS) as usize;
        if results.steps.len() <= step {
            results.steps.resize(step + 1, (0, 0));
        }
        let step = &mut results.steps[step];
        *step = (step.0 + 1, step.1.max(latency));
    }
}

impl Client for Worker {
    fn ready(self: Rc<Self>) {
        let now = clock::now();
        let load = &self.plan.load;
        self.begin_ns.set(now);
        self.measure_ns.set(now + load.warm_up.as_nanos() as u64);
        self.end_ns.set(self.measure_ns.get().saturating_add(load.time.as_nanos() as u64));
        self.state.borrow_mut().refilled_ns = now;
        reactor::timer_after(TICK, self.clone(), 0);
        self.fill();
    }

    fn done(self: Rc<Self>, tag: u64, good: bool, data: Option<Buf>, why: &dyn Fn() -> String) {
        // One reading for the end of this I/O and the beginning of the next, which follows at once.
        let now = clock::now();
        self.in_flight.set(self.in_flight.get() - 1);
        let index = tag as usize;
        match data.or_else(|| reactor::alloc(self.plan.load.size_bytes as usize)) {
            Some(data) => {
                self.count(index, good, &data, now, why);
                if let Some(data) = self.issue(index, data, now) {
                    self.state.borrow_mut().idle.push((index, data));
                }
            }
            None => self.stop(format!("no memory for a buffer after: {}", why())),
        }
        self.finish_if_idle();
    }

    fn closed(self: Rc<Self>, why: String) {
        self.stop(why);
        self.report();
    }
}

impl TimerHandler for Worker {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        if self.reply.borrow().is_none() {
            return;
        }
        let now = clock::now();
        if now >= self.end_ns.get() || self.plan.shared.stop.load(Ordering::Relaxed) {
            self.stopping.set(true);
            return self.finish_if_idle();
        }
        if let Some(rate) = self.plan.rate {
            let mut state = self.state.borrow_mut();
            let elapsed = (now - state.refilled_ns) as f64 / 1e9;
            state.refilled_ns = now;
            // What was not used up within a tenth of a second is lost: a stall must not be made good by a burst.
            state.tokens = (state.tokens + elapsed * rate).min((rate / 10.0).max(1.0));
        }
        self.fill();
        reactor::timer_after(TICK, self, 0);
    }
}
