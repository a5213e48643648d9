//! A bdev that answers late, or not at all until it is released: SPDK's delay bdev, with hangs.
//!
//! Latency is added after the base has answered; one I/O in a hundred takes the 99th-percentile latency. A hang
//! keeps I/Os before they reach the base, ignores aborts as a disk that hangs does, and lets the I/Os go on when it
//! is lifted, so that late writes happen as they would; only when the bdev is removed are they dropped.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use uuid::Uuid;

use super::device::{Bdev, Device, DeviceChannel};
use super::error::{BdevError, IoError};
use super::flight::{IoId, Range};
use super::io::{Io, IoOwner, Op};
use super::stacked::{self, Below};
use crate::env::clock;
use crate::reactor::{self, Poller, PollerGuard, TimerHandler};

/// I/Os that hang look this often whether they may go on.
const LOOK: Duration = Duration::from_millis(5);
/// Below this an I/O is waited for awake: timers tick in milliseconds.
const AWAKE_NS: u64 = 2_000_000;
/// More rules than any test writes; a bound against a script that forgets to lift them.
const MAX_HANGS: usize = 256;

/// Latencies to add, µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latencies {
    pub avg_read_us: u64,
    pub p99_read_us: u64,
    pub avg_write_us: u64,
    pub p99_write_us: u64,
}

/// One of the four, as `bdev_delay_update_latency` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum LatencyKind {
    AvgRead = 0,
    P99Read = 1,
    AvgWrite = 2,
    P99Write = 3,
}

/// What hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hang {
    /// `None` is every operation but reset.
    pub op: Option<Op>,
    /// First block and number of blocks; `None` is everywhere. I/Os without a range fit no range.
    pub range: Option<(u64, u64)>,
}

impl Hang {
    fn fits(&self, io: &Io) -> bool {
        let op = match self.op {
            Some(op) => op == io.op,
            None => io.op != Op::Reset,
        };
        op && self.range.is_none_or(|(lba, num_blocks)| {
            io.op.has_range() && Range { lba, num_blocks }.overlaps(io.lba, io.num_blocks)
        })
    }
}

#[derive(Default)]
struct Shared {
    latency_us: [AtomicU64; 4],
    hangs: Mutex<Vec<Hang>>,
    /// How many hangs there are: without any, an I/O takes no lock.
    hanging: AtomicU64,
}

impl Shared {
    fn hangs(&self) -> MutexGuard<'_, Vec<Hang>> {
        self.hangs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hangs_on(&self, io: &Io) -> bool {
        self.hanging.load(Ordering::Acquire) > 0 && self.hangs().iter().any(|h| h.fits(io))
    }
}

struct Delay {
    base: Arc<Bdev>,
    name: String,
    uuid: Uuid,
    shared: Arc<Shared>,
}

/// Makes `name` over `base`, which it claims.
pub fn create(
    name: &str,
    uuid: Uuid,
    base: &Arc<Bdev>,
    latencies: Latencies,
) -> Result<Arc<Bdev>, BdevError> {
    let Latencies { avg_read_us, p99_read_us, avg_write_us, p99_write_us } = latencies;
    if p99_read_us < avg_read_us || p99_write_us < avg_write_us {
        let text = "a p99 latency below the average is impossible; give at least the average".to_string();
        return Err(BdevError::Invalid(text));
    }
    let latency_us = [avg_read_us, p99_read_us, avg_write_us, p99_write_us].map(AtomicU64::new);
    let shared = Arc::new(Shared { latency_us, ..Shared::default() });
    let device = Delay { base: base.clone(), name: name.to_string(), uuid, shared };
    stacked::create(name, uuid, base, "delay", Box::new(device))
}

fn device_of(bdev: &Bdev) -> Result<&Delay, BdevError> {
    bdev.device_as().ok_or_else(|| BdevError::Unsupported {
        name: bdev.name().to_string(),
        reason: "it is no delay bdev; make one with bdev_delay_create".to_string(),
    })
}

/// Changes a latency for I/Os that reach the base from now on.
pub fn update_latency(bdev: &Bdev, kind: LatencyKind, latency_us: u64) -> Result<(), BdevError> {
    device_of(bdev)?.shared.latency_us[kind as usize].store(latency_us, Ordering::Relaxed);
    Ok(())
}

/// Makes I/Os hang from now on, or lifts a hang: the one of this operation and range, or, for
/// `Hang { op: None, range: None }`, all.
pub fn set_hang(bdev: &Bdev, hang: Hang, hanging: bool) -> Result<(), BdevError> {
    let shared = &device_of(bdev)?.shared;
    let mut hangs = shared.hangs();
    let lift_all = !hanging && hang == Hang { op: None, range: None };
    hangs.retain(|h| *h != hang && !lift_all);
    if hanging {
        if hangs.len() >= MAX_HANGS {
            let text = format!("`{}` has {MAX_HANGS} hangs already; lift some first", bdev.name());
            return Err(BdevError::Invalid(text));
        }
        hangs.push(hang);
    }
    shared.hanging.store(hangs.len() as u64, Ordering::Release);
    Ok(())
}

impl Device for Delay {
    fn product_name(&self) -> &'static str {
        "delay"
    }

    fn supports(&self, op: Op) -> bool {
        stacked::supports(&self.base, op)
    }

    fn open_channel(&self, bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        let channel = Rc::new(DelayChannel {
            below: Below::open(&self.base)?,
            bdev: Arc::downgrade(bdev),
            shared: self.shared.clone(),
            hung: RefCell::default(),
            late: RefCell::default(),
            due: RefCell::default(),
            waked_at: Cell::new(0),
            dice: Cell::new(bdev.serial() | 1),
            poller: RefCell::default(),
        });
        let poller = Rc::new(Clock(Rc::downgrade(&channel)));
        *channel.poller.borrow_mut() = Some(reactor::add_poller(&format!("delay `{}`", self.name), poller));
        Ok(channel)
    }

    fn driver_specific(&self) -> serde_json::Value {
        let mut delay = self.parameters();
        if let Some(fields) = delay.as_object_mut() {
            fields.remove("uuid");
        }
        serde_json::json!({ "delay": delay })
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        Some(("bdev_delay_create", self.parameters()))
    }

    fn survives_restart(&self) -> bool {
        self.base.device().survives_restart()
    }

    fn has_write_cache(&self) -> bool {
        self.base.device().has_write_cache()
    }
}

impl Delay {
    fn parameters(&self) -> serde_json::Value {
        let us = |kind: LatencyKind| self.shared.latency_us[kind as usize].load(Ordering::Relaxed);
        serde_json::json!({
            "name": self.name, "base_bdev_name": self.base.name(), "uuid": self.uuid.to_string(),
            "avg_read_latency": us(LatencyKind::AvgRead), "p99_read_latency": us(LatencyKind::P99Read),
            "avg_write_latency": us(LatencyKind::AvgWrite), "p99_write_latency": us(LatencyKind::P99Write),
        })
    }
}

struct DelayChannel {
    below: Below,
    bdev: std::sync::Weak<Bdev>,
    shared: Arc<Shared>,
    #[allow(clippy::vec_box, reason = "a device is handed boxes")]
    hung: RefCell<Vec<Box<Io>>>,
    /// Answered by the base, and when each is due.
    late: RefCell<Slab<Box<Io>>>,
    due: RefCell<BinaryHeap<Reverse<(u64, usize)>>>,
    /// When a timer wakes the reactor for the next.
    waked_at: Cell<u64>,
    dice: Cell<u64>,
    poller: RefCell<Option<PollerGuard>>,
}

/// Timer tags.
const HUNG: u64 = 0;
const WAKE: u64 = 1;

impl DelayChannel {
    /// One in a hundred takes long (xorshift).
    fn latency_ns(&self, op: Op) -> u64 {
        let mut dice = self.dice.get();
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        self.dice.set(dice);
        let slow = dice.is_multiple_of(100);
        let kind = match (op, slow) {
            (Op::Reset, _) => return 0,
            (Op::Read | Op::Compare, false) => LatencyKind::AvgRead,
            (Op::Read | Op::Compare, true) => LatencyKind::P99Read,
            (_, false) => LatencyKind::AvgWrite,
            (_, true) => LatencyKind::P99Write,
        };
        self.shared.latency_us[kind as usize].load(Ordering::Relaxed).saturating_mul(1000)
    }

    fn poll(self: &Rc<Self>) -> bool {
        if self.due.borrow().is_empty() {
            return false;
        }
        let now = clock::now();
        let mut busy = false;
        loop {
            let next = self.due.borrow().peek().map(|Reverse(next)| *next);
            let Some((due, index)) = next else { return busy };
            if due > now {
                self.wait_for(due, now);
                return busy;
            }
            self.due.borrow_mut().pop();
            if let Some(io) = self.late.borrow_mut().try_remove(index) {
                let result = io.result;
                io.complete(result);
                busy = true;
            }
        }
    }

    fn wait_for(self: &Rc<Self>, due: u64, now: u64) {
        let ahead = due - now;
        if ahead < AWAKE_NS {
            reactor::sleep_hint(true);
        } else if self.waked_at.get() <= now || self.waked_at.get() > due {
            let wait = ahead - AWAKE_NS / 2;
            self.waked_at.set(now + wait);
            reactor::timer_after(Duration::from_nanos(wait), self.clone(), WAKE);
        }
    }
}

struct Clock(Weak<DelayChannel>);

impl Poller for Clock {
    fn poll(&self) -> bool {
        self.0.upgrade().is_some_and(|channel| channel.poll())
    }
}

impl DeviceChannel for DelayChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        if !self.shared.hangs_on(&io) {
            return self.below.forward(io, self.clone());
        }
        if self.hung.borrow().is_empty() {
            reactor::timer_after(LOOK, self.clone(), HUNG);
        }
        self.hung.borrow_mut().push(io);
    }

    fn abort(&self, id: IoId) {
        if self.below.abort(id) {
            return;
        }
        let removed = self.bdev.upgrade().is_none_or(|b| b.is_removed());
        // The base has done it: there is nothing to undo, only no reason to wait any longer.
        let index = self.late.borrow().iter().find(|(_, io)| io.id() == id).map(|(index, _)| index);
        if let Some(index) = index {
            self.due.borrow_mut().retain(|Reverse((_, i))| *i != index);
            let io = self.late.borrow_mut().remove(index);
            let result = io.result;
            io.complete(result);
        }
        if removed {
            let mut hung = self.hung.borrow_mut();
            let found = hung.iter().position(|io| io.id() == id).map(|at| hung.remove(at));
            found.into_iter().for_each(|io| io.complete(Err(IoError::Aborted)));
        }
    }
}

impl IoOwner for DelayChannel {
    fn io_done(self: Rc<Self>, child: Box<Io>) {
        let Some(io) = self.below.back(child) else { return };
        let latency = self.latency_ns(io.op);
        if latency == 0 {
            let result = io.result;
            return io.complete(result);
        }
        let due = clock::now().saturating_add(latency);
        let index = self.late.borrow_mut().insert(io);
        self.due.borrow_mut().push(Reverse((due, index)));
    }
}

impl TimerHandler for DelayChannel {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        if tag == WAKE {
            // The poller runs in this very turn.
            return;
        }
        let hung = std::mem::take(&mut *self.hung.borrow_mut());
        for io in hung {
            if self.shared.hangs_on(&io) {
                self.hung.borrow_mut().push(io);
            } else {
                self.below.forward(io, self.clone());
            }
        }
        if !self.hung.borrow().is_empty() {
            reactor::timer_after(LOOK, self.clone(), HUNG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::Registry;
    use crate::bdev::testing::*;
    use std::time::Instant;

    const BLOCK: usize = 512;
    const EVERYTHING: Hang = Hang { op: None, range: None };

    fn delay(latencies: Latencies) -> Arc<Bdev> {
        let base = ram("R", 1000);
        create("D", Uuid::new_v4(), &base, latencies).expect("delay")
    }

    #[test]
    fn reads_and_writes_take_their_own_latencies() {
        let set = reactors(1);
        let disk = delay(Latencies { avg_write_us: 30_000, p99_write_us: 30_000, ..Latencies::default() });
        let time = |req| {
            let begin = Instant::now();
            assert_eq!(run_one(&set, 0, &disk, req).result, Ok(()));
            begin.elapsed()
        };
        assert!(time(Req::write(0, 1, BLOCK, 1)) >= Duration::from_millis(30));
        assert!(time(Req::flush()) >= Duration::from_millis(30));
        update_latency(&disk, LatencyKind::AvgRead, 200).expect("update");
        update_latency(&disk, LatencyKind::P99Read, 200).expect("update");
        let read = (0..20).map(|_| time(Req::read(0, 1, BLOCK))).min().expect("some");
        assert!(read >= Duration::from_micros(200), "{read:?}");
        assert!(read < Duration::from_millis(25), "{read:?}");
        let impossible = Latencies { avg_read_us: 2, p99_read_us: 1, ..Latencies::default() };
        assert!(create("E", Uuid::new_v4(), &ram("S", 10), impossible).is_err());
    }

    #[test]
    fn a_late_io_that_is_aborted_ends_at_once() {
        let set = reactors(1);
        let disk =
            delay(Latencies { avg_read_us: 60_000_000, p99_read_us: 60_000_000, ..Latencies::default() });
        let mut running = start(&set, 0, &disk, vec![Req::read(0, 1, BLOCK)]);
        assert_eq!(running.next_within(Duration::from_millis(30)), None);
        let (id, on) = (running.ids[0], disk.clone());
        set.call(0, SOON, move || on.channel().expect("channel").abort(id)).expect("abort");
        assert_eq!(running.one().result, Ok(()));
    }

    #[test]
    fn what_hangs_is_chosen_by_operation_and_range_and_goes_on_when_released() {
        let set = reactors(1);
        let disk = delay(Latencies::default());
        let writes_here = Hang { op: Some(Op::Write), range: Some((10, 10)) };
        set_hang(&disk, writes_here, true).expect("hang");
        let mut hung = start(&set, 0, &disk, vec![Req::write(15, 1, BLOCK, 7)]);
        let free =
            [Req::write(9, 1, BLOCK, 1), Req::read(15, 1, BLOCK), Req::write(20, 1, BLOCK, 1), Req::flush()];
        assert!(run(&set, 0, &disk, free.to_vec()).iter().all(|o| o.result.is_ok()));
        let (id, on) = (hung.ids[0], disk.clone());
        set.call(0, SOON, move || on.channel().expect("channel").abort(id)).expect("abort");
        assert_eq!(hung.next_within(Duration::from_millis(30)), None, "a disk that hangs ignores aborts");
        set_hang(&disk, writes_here, false).expect("release");
        assert_eq!(hung.one().result, Ok(()));
        assert_eq!(run_one(&set, 0, &disk, Req::read(15, 1, BLOCK)).data, [7; BLOCK]);
    }

    #[test]
    fn a_hung_disk_is_removed_at_once_and_its_writes_never_happen() {
        let set = reactors(2);
        let registry = Registry::new();
        let base = ram("R", 1000);
        let disk = create("D", Uuid::new_v4(), &base, Latencies::default()).expect("delay");
        registry.add(base.clone()).expect("add");
        registry.add(disk.clone()).expect("add");
        set_hang(&disk, EVERYTHING, true).expect("hang");
        let running: Vec<_> = (0..2)
            .map(|r| start(&set, r, &disk, (0..50).map(|n| Req::write(n, 1, BLOCK, 1)).collect()))
            .collect();
        let begin = Instant::now();
        registry.remove("D", &set).expect("remove");
        assert!(begin.elapsed() < Duration::from_secs(2));
        for running in running {
            assert!(running.rest().iter().all(|o| o.result == Err(IoError::Removed)));
        }
        assert!(set_hang(&base, EVERYTHING, true).is_err(), "no delay bdev");
        assert_eq!(base.claimant(), None);
        assert_eq!(run_one(&set, 0, &base, Req::read(0, 50, BLOCK)).data, vec![0; 50 * BLOCK]);
    }
}
