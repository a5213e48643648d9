//! A bdev that makes I/Os fail, corrupts their data, or keeps them: SPDK's error bdev, with ranges.
//!
//! Rules are looked at in the order in which they came; the first that fits an I/O and has a count left is spent on
//! it. Without rules an I/O pays for one atomic load; with rules, a lock: this device is for tests of others.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::device::{Bdev, Device, DeviceChannel};
use super::error::{BdevError, IoError};
use super::flight::{IoId, Range};
use super::io::{Io, IoOwner, Op};
use super::stacked::{self, Below};
use crate::env::Buf;
use crate::reactor::{self, TimerHandler};

/// SPDK's prefix of the names.
pub const PREFIX: &str = "EE_";
/// More rules than any test writes; a bound against a script that forgets to clear.
const MAX_RULES: usize = 256;
/// Kept I/Os look this often whether they were released.
const LOOK: Duration = Duration::from_millis(5);
/// How long an I/O that found "no memory" waits: the layer never fails for want of memory, it tries again.
const NO_MEMORY_WAIT: Duration = Duration::from_millis(1);

/// What happens to an I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Ends with [`IoError::Device`], nothing reaches the base.
    Failure,
    /// Is kept until [`release_pending`], an abort or a reset.
    Pending,
    /// One byte of the data is combined by XOR with `value`, at `offset` from the I/O's beginning: on its way to
    /// the base for a write, on the way back for a read.
    CorruptData { offset: u64, value: u8 },
    /// Is tried again a moment later, as an I/O that finds no memory is.
    NoMemory,
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injection {
    /// `None` is every operation but reset.
    pub op: Option<Op>,
    pub failure: Failure,
    /// I/Os to spend it on.
    pub count: u32,
    /// Only while at least so many I/Os of the channel are under way.
    pub queue_depth: u32,
    /// First block and number of blocks; `None` is everywhere. I/Os without a range fit no range.
    pub range: Option<(u64, u64)>,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Injection>>,
    /// I/Os that the rules can still be spent on.
    left: AtomicU64,
    releases: AtomicU64,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Vec<Injection>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Vec<Injection>)) {
        let mut rules = self.rules();
        change(&mut rules);
        rules.retain(|r| r.count > 0);
        self.left.store(rules.iter().map(|r| u64::from(r.count)).sum(), Ordering::Release);
    }

    fn spend(&self, io: &Io, in_flight: u32) -> Option<Failure> {
        let mut failure = None;
        self.update(|rules| {
            if let Some(rule) = rules.iter_mut().find(|r| r.fits(io) && in_flight >= r.queue_depth) {
                rule.count -= 1;
                failure = Some(rule.failure);
            }
        });
        failure
    }
}

impl Injection {
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

struct ErrorDevice {
    base: Arc<Bdev>,
    uuid: Uuid,
    shared: Arc<Shared>,
}

/// Makes `EE_<base>` over `base`, which it claims.
pub fn create(uuid: Uuid, base: &Arc<Bdev>) -> Result<Arc<Bdev>, BdevError> {
    let name = format!("{PREFIX}{}", base.name());
    let device = ErrorDevice { base: base.clone(), uuid, shared: Arc::default() };
    stacked::create(&name, uuid, base, "error", Box::new(device))
}

fn device_of(bdev: &Bdev) -> Result<&ErrorDevice, BdevError> {
    bdev.device_as().ok_or_else(|| BdevError::Unsupported {
        name: bdev.name().to_string(),
        reason: "it is no error bdev; make one with bdev_error_create".to_string(),
    })
}

/// Adds a rule. One without a range takes the place of earlier ones without a range for the same operation, as
/// SPDK's do.
pub fn inject(bdev: &Bdev, injection: Injection) -> Result<(), BdevError> {
    let device = device_of(bdev)?;
    if matches!(injection.failure, Failure::CorruptData { value: 0, .. }) {
        return Err(BdevError::Invalid("a corrupt_value of 0 changes nothing; give 1 to 255".to_string()));
    }
    let mut full = false;
    device.shared.update(|rules| {
        if injection.range.is_none() {
            rules.retain(|r| r.range.is_some() || (injection.op.is_some() && r.op != injection.op));
        }
        full = rules.len() >= MAX_RULES;
        if !full {
            rules.push(injection);
        }
    });
    if full {
        let text = format!("`{}` has {MAX_RULES} rules already; clear some first", bdev.name());
        return Err(BdevError::Invalid(text));
    }
    Ok(())
}

/// Forgets all rules; what is kept stays kept.
pub fn clear(bdev: &Bdev) -> Result<(), BdevError> {
    device_of(bdev)?.shared.update(Vec::clear);
    Ok(())
}

/// Sends everything that is kept on to the base.
pub fn release_pending(bdev: &Bdev) -> Result<(), BdevError> {
    device_of(bdev)?.shared.releases.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

impl Device for ErrorDevice {
    fn product_name(&self) -> &'static str {
        "Error Injection Disk"
    }

    fn supports(&self, op: Op) -> bool {
        stacked::supports(&self.base, op)
    }

    fn open_channel(&self, _bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        Ok(Rc::new(ErrorChannel {
            below: Below::open(&self.base)?,
            shared: self.shared.clone(),
            releases: Cell::new(self.shared.releases.load(Ordering::Acquire)),
            in_flight: Cell::new(0),
            kept: RefCell::default(),
            retrying: RefCell::default(),
            corrupted: RefCell::default(),
        }))
    }

    fn driver_specific(&self) -> serde_json::Value {
        serde_json::json!({ "error": { "base_bdev": self.base.name() } })
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        let params = serde_json::json!({ "base_name": self.base.name(), "uuid": self.uuid.to_string() });
        Some(("bdev_error_create", params))
    }

    fn survives_restart(&self) -> bool {
        self.base.device().survives_restart()
    }

    fn has_write_cache(&self) -> bool {
        self.base.device().has_write_cache()
    }
}

/// A byte to corrupt when the I/O comes back, or the caller's buffer to put back.
enum Corrupted {
    Read { id: IoId, offset: u64, value: u8 },
    Write { id: IoId, index: usize, original: Buf },
}

impl Corrupted {
    fn id(&self) -> IoId {
        match self {
            Corrupted::Read { id, .. } | Corrupted::Write { id, .. } => *id,
        }
    }
}

struct ErrorChannel {
    below: Below,
    shared: Arc<Shared>,
    /// Releases that this channel has followed.
    releases: Cell<u64>,
    in_flight: Cell<u32>,
    #[allow(clippy::vec_box, reason = "a device is handed boxes")]
    kept: RefCell<Vec<Box<Io>>>,
    #[allow(clippy::vec_box, reason = "a device is handed boxes")]
    retrying: RefCell<Vec<Box<Io>>>,
    corrupted: RefCell<Vec<Corrupted>>,
}

/// Timer tags.
const KEPT: u64 = 0;
const RETRY: u64 = 1;

impl ErrorChannel {
    fn forward(self: &Rc<Self>, io: Box<Io>) {
        self.below.forward(io, self.clone());
    }

    fn end(&self, io: Box<Io>, result: Result<(), IoError>) {
        self.in_flight.set(self.in_flight.get() - 1);
        io.complete(result);
    }

    fn keep(self: &Rc<Self>, io: Box<Io>) {
        if self.kept.borrow().is_empty() {
            self.releases.set(self.shared.releases.load(Ordering::Acquire));
            reactor::timer_after(LOOK, self.clone(), KEPT);
        }
        self.kept.borrow_mut().push(io);
    }

    fn corrupt(self: &Rc<Self>, mut io: Box<Io>, offset: u64, value: u8) {
        let id = io.id();
        match io.op {
            Op::Read => self.corrupted.borrow_mut().push(Corrupted::Read { id, offset, value }),
            Op::Write | Op::CompareAndWrite => {
                // The caller's bytes are not ours to change: the piece with the byte goes down as a copy.
                if let Some((index, at)) = find(&io.data, offset)
                    && let Some(copy) = Buf::heap(io.data[index].len())
                {
                    copy.copy_from(0, &io.data[index], 0, copy.len());
                    flip(&copy, at, value);
                    let original = std::mem::replace(&mut io.data[index], copy);
                    self.corrupted.borrow_mut().push(Corrupted::Write { id, index, original });
                }
            }
            _ => {}
        }
        self.forward(io);
    }

    fn restore(&self, io: &mut Io) {
        let mut corrupted = self.corrupted.borrow_mut();
        let Some(at) = corrupted.iter().position(|c| c.id() == io.id()) else { return };
        match corrupted.swap_remove(at) {
            Corrupted::Read { offset, value, .. } => {
                if let (Ok(()), Some((index, at))) = (io.result, find(&io.data, offset)) {
                    flip(&io.data[index], at, value);
                }
            }
            Corrupted::Write { index, original, .. } => {
                if let Some(place) = io.data.get_mut(index) {
                    *place = original;
                }
            }
        }
    }
}

/// The buffer with the byte at `offset`, and where in it.
fn find(bufs: &[Buf], offset: u64) -> Option<(usize, usize)> {
    let mut at = usize::try_from(offset).ok()?;
    for (index, buf) in bufs.iter().enumerate() {
        if at < buf.len() {
            return Some((index, at));
        }
        at -= buf.len();
    }
    None
}

fn flip(buf: &Buf, at: usize, value: u8) {
    buf.with_mut(|bytes| bytes[at] ^= value);
}

impl DeviceChannel for ErrorChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        let in_flight = self.in_flight.replace(self.in_flight.get() + 1);
        if self.shared.left.load(Ordering::Acquire) == 0 {
            return self.forward(io);
        }
        match self.shared.spend(&io, in_flight) {
            None => self.forward(io),
            Some(Failure::Failure) => self.end(io, Err(IoError::Device)),
            Some(Failure::Pending) => self.keep(io),
            Some(Failure::CorruptData { offset, value }) => self.corrupt(io, offset, value),
            Some(Failure::NoMemory) => {
                if self.retrying.borrow().is_empty() {
                    reactor::timer_after(NO_MEMORY_WAIT, self.clone(), RETRY);
                }
                self.retrying.borrow_mut().push(io);
            }
        }
    }

    fn abort(&self, id: IoId) {
        if self.below.abort(id) {
            return;
        }
        for queue in [&self.kept, &self.retrying] {
            let mut queue = queue.borrow_mut();
            let found = queue.iter().position(|io| io.id() == id).map(|at| queue.remove(at));
            found.into_iter().for_each(|io| self.end(io, Err(IoError::Aborted)));
        }
    }
}

impl IoOwner for ErrorChannel {
    fn io_done(self: Rc<Self>, child: Box<Io>) {
        if let Some(mut io) = self.below.back(child) {
            self.restore(&mut io);
            let result = io.result;
            self.end(io, result);
        }
    }
}

impl TimerHandler for ErrorChannel {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        if tag == RETRY {
            let retrying = std::mem::take(&mut *self.retrying.borrow_mut());
            retrying.into_iter().for_each(|io| self.forward(io));
        } else if self.shared.releases.load(Ordering::Acquire) != self.releases.get() {
            let kept = std::mem::take(&mut *self.kept.borrow_mut());
            kept.into_iter().for_each(|io| self.forward(io));
        } else if !self.kept.borrow().is_empty() {
            reactor::timer_after(LOOK, self.clone(), KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::testing::*;

    const BLOCK: usize = 512;

    fn rule(op: Option<Op>, failure: Failure, count: u32) -> Injection {
        Injection { op, failure, count, queue_depth: 0, range: None }
    }

    fn make() -> (Arc<crate::reactor::ReactorSet>, Arc<Bdev>) {
        let disk = create(Uuid::new_v4(), &ram("R", 100)).expect("error bdev");
        assert_eq!(disk.name(), "EE_R");
        (reactors(1), disk)
    }

    #[test]
    fn failures_are_counted_per_operation_and_range() {
        let (set, disk) = make();
        let read = |lba| run_one(&set, 0, &disk, Req::read(lba, 2, BLOCK)).result;
        assert_eq!(read(0), Ok(()));
        inject(&disk, rule(Some(Op::Read), Failure::Failure, 2)).expect("inject");
        assert_eq!(run_one(&set, 0, &disk, Req::write(0, 1, BLOCK, 1)).result, Ok(()));
        assert_eq!([read(0), read(0), read(0)], [Err(IoError::Device), Err(IoError::Device), Ok(())]);
        let here = Injection { range: Some((10, 5)), ..rule(None, Failure::Failure, 100) };
        inject(&disk, here).expect("inject");
        assert_eq!(
            [read(8), read(9), read(14), read(15)],
            [Ok(()), Err(IoError::Device), Err(IoError::Device), Ok(())]
        );
        assert_eq!(run_one(&set, 0, &disk, Req::flush()).result, Ok(()));
        clear(&disk).expect("clear");
        assert_eq!(read(10), Ok(()));
    }

    #[test]
    fn one_byte_is_corrupted_on_the_way_and_the_callers_data_is_left_alone() {
        let (set, disk) = make();
        let corrupt = Failure::CorruptData { offset: 600, value: 0x80 };
        inject(&disk, rule(Some(Op::Write), corrupt, 1)).expect("inject");
        let write = run_one(&set, 0, &disk, Req { piece: 512, ..Req::write(0, 2, BLOCK, 1) });
        assert_eq!(write.data, [1; 1024]);
        let read = || run_one(&set, 0, &disk, Req { piece: 512, ..Req::read(0, 2, BLOCK) }).data;
        let wrong = |data: Vec<u8>| {
            data.iter().enumerate().filter(|(_, b)| **b != 1).map(|(n, b)| (n, *b)).collect::<Vec<_>>()
        };
        assert_eq!(wrong(read()), [(600, 0x81)]);
        run_one(&set, 0, &disk, Req::write(0, 2, BLOCK, 1));
        inject(&disk, rule(Some(Op::Read), corrupt, 1)).expect("inject");
        assert_eq!(wrong(read()), [(600, 0x81)]);
        assert_eq!(wrong(read()), []);
        let nothing = rule(None, Failure::CorruptData { offset: 0, value: 0 }, 1);
        assert!(inject(&disk, nothing).is_err());
    }

    #[test]
    fn pending_ios_wait_for_release_abort_or_reset() {
        let (set, disk) = make();
        inject(&disk, rule(Some(Op::Write), Failure::Pending, 3)).expect("inject");
        let mut running = start(&set, 0, &disk, vec![Req::write(0, 1, BLOCK, 1), Req::write(1, 1, BLOCK, 1)]);
        assert_eq!(running.next_within(Duration::from_millis(50)), None);
        let (id, on) = (running.ids[0], disk.clone());
        set.call(0, SOON, move || on.channel().expect("channel").abort(id)).expect("abort");
        assert_eq!(running.one().result, Err(IoError::Aborted));
        release_pending(&disk).expect("release");
        assert_eq!(running.one().result, Ok(()));
        let kept = start(&set, 0, &disk, vec![Req::write(2, 1, BLOCK, 1)]);
        assert_eq!(run_one(&set, 0, &disk, Req::new(Op::Reset, 0, 0)).result, Ok(()));
        assert_eq!(kept.rest()[0].result, Err(IoError::Aborted));
        let data = run_one(&set, 0, &disk, Req::read(0, 3, BLOCK)).data;
        assert_eq!([data[0], data[512], data[1024]], [0, 1, 0]);
    }

    #[test]
    fn an_io_that_finds_no_memory_waits_and_a_queue_depth_is_respected() {
        let (set, disk) = make();
        inject(&disk, rule(Some(Op::Read), Failure::NoMemory, 1)).expect("inject");
        assert_eq!(run_one(&set, 0, &disk, Req::read(0, 1, BLOCK)).result, Ok(()));
        inject(&disk, Injection { queue_depth: 2, ..rule(Some(Op::Read), Failure::Failure, 10) })
            .expect("inject");
        let got = run(&set, 0, &disk, vec![Req::read(0, 1, BLOCK); 4]);
        let failed: Vec<_> = got.iter().map(|o| o.result.is_err()).collect();
        assert_eq!(failed, [false, false, true, true]);
    }

    #[test]
    fn only_an_error_bdev_takes_injections() {
        assert!(matches!(
            inject(&ram("R", 10), rule(None, Failure::Failure, 1)),
            Err(BdevError::Unsupported { .. })
        ));
    }
}
