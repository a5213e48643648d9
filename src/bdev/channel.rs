//! One reactor's handle on a device: validation, the outstanding limit and its queue, counting.
//!
//! Invariants: every I/O between `submit` and `io_done` has one entry in `flights`; entries at the device number at
//! most the limit (plus parts of emulated I/Os, plus those that the layer ended early and the device still holds);
//! waiting I/Os start in order, except that one held by a range lock lets others pass.
//!
//! What is rare (rate limits, histograms, range locks, resets) costs an I/O one test of a flag.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;

use super::device::{Bdev, DeviceChannel, LIMITED, TIMED};
use super::done::recent_ns;
use super::emulate::Emulation;
use super::error::{BdevError, IoError};
use super::flight::{Flight, IoId, Stage};
use super::histogram::ChannelHistogram;
use super::io::{Io, IoOwner, Op, OpSet};
use super::lifecycle::PendingReset;
use super::qos::Gate;
use super::ranges::LocalLock;
use super::stats::ChannelStats;
use crate::env::sg_len;

/// One reactor's handle on a device. Lives as long as somebody on the reactor holds it.
pub struct Channel {
    pub(super) bdev: Arc<Bdev>,
    pub(super) device: Rc<dyn DeviceChannel>,
    native: OpSet,
    block_size: u32,
    pub(super) flights: RefCell<Slab<Flight>>,
    pub(super) waiting: RefCell<VecDeque<Box<Io>>>,
    pub(super) at_device: Cell<u32>,
    generation: Cell<u32>,
    stats: Arc<ChannelStats>,
    histogram: RefCell<Option<ChannelHistogram>>,
    pub(super) gate: Gate,
    /// Whether `locks` or `resets` has anything: the one flag that each completion and start looks at.
    pub(super) special: Cell<bool>,
    pub(super) locks: RefCell<Vec<LocalLock>>,
    /// Writes that wait for a range lock to go.
    pub(super) held: RefCell<VecDeque<Box<Io>>>,
    pub(super) resets: RefCell<Vec<PendingReset>>,
    pub(super) emulations: RefCell<Vec<Rc<Emulation>>>,
    pub(super) lock_requests: RefCell<Vec<super::ranges::Request>>,
}

thread_local! {
    static CHANNELS: RefCell<HashMap<u64, Weak<Channel>>> = RefCell::new(HashMap::new());
}

/// The calling reactor's channel on the bdev of this serial number, if it has one.
pub(super) fn find(serial: u64) -> Option<Rc<Channel>> {
    CHANNELS.with(|c| c.borrow().get(&serial).and_then(Weak::upgrade))
}

/// The bdevs that the calling reactor has a channel on, each with how many hold the channel.
pub fn open_channels() -> Vec<(String, usize)> {
    CHANNELS.with(|channels| {
        let held = |weak: &Weak<Channel>| {
            // The one just made does not count.
            weak.upgrade().map(|channel| (channel.bdev.name().to_string(), Rc::strong_count(&channel) - 1))
        };
        channels.borrow().values().filter_map(held).collect()
    })
}

/// The calling reactor's channel on `bdev`, made when first asked for.
pub(super) fn get(bdev: &Arc<Bdev>) -> Result<Rc<Channel>, BdevError> {
    if let Some(channel) = find(bdev.serial()) {
        return Ok(channel);
    }
    let device = bdev.device().open_channel(bdev)?;
    let native = Op::ALL.into_iter().filter(|&op| bdev.device().supports(op)).collect();
    let locks = bdev.locks().active();
    let channel = Rc::new(Channel {
        bdev: bdev.clone(),
        device,
        native,
        block_size: bdev.block_size(),
        flights: RefCell::default(),
        waiting: RefCell::default(),
        at_device: Cell::new(0),
        generation: Cell::new(0),
        stats: Arc::default(),
        histogram: RefCell::default(),
        gate: Gate::default(),
        special: Cell::new(!locks.is_empty()),
        locks: RefCell::new(locks),
        held: RefCell::default(),
        resets: RefCell::default(),
        emulations: RefCell::default(),
        lock_requests: RefCell::default(),
    });
    bdev.add_stats(channel.stats.clone());
    CHANNELS.with(|c| {
        let mut channels = c.borrow_mut();
        channels.retain(|_, weak| weak.strong_count() > 0);
        channels.insert(bdev.serial(), Rc::downgrade(&channel));
    });
    Ok(channel)
}

impl Channel {
    pub fn bdev(&self) -> &Arc<Bdev> {
        &self.bdev
    }

    /// I/Os that have not ended.
    pub fn in_flight(&self) -> usize {
        self.flights.borrow().len()
    }

    /// Whether the device does `op` without the layer's help.
    pub(super) fn is_native(&self, op: Op) -> bool {
        self.native.contains(op)
    }

    /// Submits an I/O; `owner` gets it back with its tag. A malformed one ends with an error the same way.
    pub fn submit(self: &Rc<Channel>, mut io: Box<Io>, owner: Rc<dyn IoOwner>) -> IoId {
        let id = self.enter(&mut io, owner, false);
        match self.check(&io) {
            Err(error) => self.refuse(io, error),
            Ok(()) if self.must_wait(&io) => self.enqueue(io),
            Ok(()) => self.dispatch(io),
        }
        id
    }

    /// A reset never waits: it is what ends a queue that does not move.
    #[inline]
    fn must_wait(&self, io: &Io) -> bool {
        let busy = self.at_device.get() >= self.bdev.outstanding_limit()
            || !self.waiting.borrow().is_empty()
            || !self.admits(io);
        busy && io.op != Op::Reset
    }

    /// Submits a part of an emulated I/O: past the queue, the limits and the counters.
    pub(super) fn submit_part(self: &Rc<Channel>, mut io: Box<Io>, owner: Rc<dyn IoOwner>) -> IoId {
        let id = self.enter(&mut io, owner, true);
        if self.bdev.is_removed() {
            self.refuse(io, IoError::Removed);
        } else {
            self.at_device.set(self.at_device.get() + 1);
            self.device.clone().submit(io);
        }
        id
    }

    #[inline]
    fn enter(self: &Rc<Channel>, io: &mut Io, owner: Rc<dyn IoOwner>, internal: bool) -> IoId {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let index = self.flights.borrow_mut().insert(Flight {
            owner,
            tag: io.tag,
            lba: io.lba,
            num_blocks: io.num_blocks,
            start_ns: recent_ns(),
            generation,
            op: io.op,
            stage: Stage::AtDevice,
            internal,
        });
        io.id = IoId { index: index as u32, generation };
        io.channel = Some(self.clone());
        io.id
    }

    fn check(&self, io: &Io) -> Result<(), IoError> {
        if self.bdev.is_removed() {
            return Err(IoError::Removed);
        }
        if !io.op.has_range() {
            return Ok(());
        }
        if io.num_blocks == 0 {
            return Err(IoError::Invalid);
        }
        let end = io.lba.checked_add(io.num_blocks).ok_or(IoError::OutOfRange)?;
        if end > self.bdev.num_blocks() {
            return Err(IoError::OutOfRange);
        }
        let bytes = io.num_blocks * u64::from(self.block_size);
        if io.op.has_data() && sg_len(&io.data) as u64 != bytes {
            return Err(IoError::Invalid);
        }
        if io.op == Op::CompareAndWrite && sg_len(&io.compare) as u64 != bytes {
            return Err(IoError::Invalid);
        }
        Ok(())
    }

    /// Ends an I/O that never reaches the device.
    pub(super) fn refuse(&self, io: Box<Io>, error: IoError) {
        self.at_device.set(self.at_device.get() + 1);
        self.set_stage(io.id, Stage::AtDevice);
        io.complete(Err(error));
    }

    fn enqueue(self: &Rc<Channel>, io: Box<Io>) {
        self.set_stage(io.id, Stage::Waiting);
        self.waiting.borrow_mut().push_back(io);
        self.gate.arm(self);
    }

    pub(super) fn set_stage(&self, id: IoId, stage: Stage) {
        if let Some(flight) = self.flights.borrow_mut().get_mut(id.index as usize) {
            flight.stage = stage;
        }
    }

    /// Starts an I/O, unless it writes where a range lock is.
    pub(super) fn dispatch(self: &Rc<Channel>, io: Box<Io>) {
        if self.special.get() && self.is_locked(&io) {
            self.set_stage(io.id, Stage::Waiting);
            self.held.borrow_mut().push_back(io);
            return;
        }
        self.at_device.set(self.at_device.get() + 1);
        if io.op == Op::Reset {
            self.reset(io);
        } else if self.native.contains(io.op) {
            self.device.clone().submit(io);
        } else {
            Emulation::start(self, io);
        }
    }

    /// The device, or what stands in for it, gave an I/O back.
    pub(super) fn finish(self: &Rc<Channel>, mut io: Box<Io>, now_ns: u64) {
        self.at_device.set(self.at_device.get() - 1);
        let flight = self.flights.borrow_mut().try_remove(io.id.index as usize);
        if let Some(flight) = flight {
            debug_assert_eq!(flight.generation, io.id.generation);
            if self.special.get() {
                self.settle(&flight);
            }
            if flight.stage == Stage::Orphaned {
                io.recycle();
            } else {
                if !flight.internal {
                    self.count(&flight, now_ns, io.result.is_err());
                }
                io.tag = flight.tag;
                flight.owner.io_done(io);
            }
        }
        if !self.waiting.borrow().is_empty() {
            self.start_waiting();
        }
    }

    /// Starts what waits, in order, as far as the limits allow.
    pub(super) fn start_waiting(self: &Rc<Channel>) {
        while self.at_device.get() < self.bdev.outstanding_limit() {
            if self.waiting.borrow().front().is_some_and(|io| !self.admits(io)) {
                self.gate.arm(self);
                return;
            }
            let Some(io) = self.waiting.borrow_mut().pop_front() else { break };
            if self.bdev.is_removed() {
                self.refuse(io, IoError::Removed);
            } else {
                self.set_stage(io.id, Stage::AtDevice);
                self.dispatch(io);
            }
        }
        self.gate.passed(self);
    }

    fn count(&self, flight: &Flight, now_ns: u64, failed: bool) {
        let bytes = flight.num_blocks * u64::from(self.block_size);
        let latency_ns = now_ns.saturating_sub(flight.start_ns);
        self.stats.count(flight.op, bytes, latency_ns, failed);
        if self.bdev.flags() & TIMED != 0 && !failed {
            self.tally(flight.op, latency_ns);
        }
    }

    #[cold]
    fn tally(&self, op: Op, latency_ns: u64) {
        let mut mine = self.histogram.borrow_mut();
        if mine.as_ref().is_none_or(|h| !self.bdev.is_current(h)) {
            *mine = self.bdev.open_histogram();
        }
        if let Some(histogram) = &*mine {
            histogram.tally(op, latency_ns);
        }
    }

    /// Whether rate limits let the I/O start now; if so it was paid for.
    #[inline]
    fn admits(&self, io: &Io) -> bool {
        self.bdev.flags() & LIMITED == 0
            || self.gate.admits(&self.bdev, io.op, io.num_blocks * u64::from(self.block_size))
    }
}
