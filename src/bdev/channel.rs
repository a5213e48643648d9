//! One reactor's handle on a device: validation, the outstanding limit and its queue, counting, abort, removal.
//!
//! Invariants: every I/O between `submit` and `io_done` has one entry in `flights`; entries at the device number at
//! most the limit (plus those that the layer ended early and the device still holds); waiting I/Os start in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;

use super::device::{Bdev, DeviceChannel};
use super::error::{BdevError, IoError};
use super::io::{Io, IoOwner, Op};
use super::stats::ChannelStats;
use crate::env::{clock, sg_len};
use crate::reactor::{self, Task};

/// Names an I/O on its channel; never reused within a channel's first 2^32 I/Os.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IoId {
    index: u32,
    generation: u32,
}

impl IoId {
    pub(super) const NONE: IoId = IoId { index: u32::MAX, generation: 0 };
}

/// What became of an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortOutcome {
    /// It had not reached the device, and ends with [`IoError::Aborted`].
    Aborted,
    /// The device was asked; the I/O ends one way or the other.
    Asked,
    /// It has ended already.
    NotFound,
}

enum Stage {
    Waiting,
    AtDevice,
    /// The layer ended it early; the device still has the box and the buffers.
    Orphaned,
}

struct Flight {
    owner: Rc<dyn IoOwner>,
    tag: u64,
    generation: u32,
    op: Op,
    lba: u64,
    num_blocks: u64,
    start_ns: u64,
    stage: Stage,
}

/// One reactor's handle on a device. Lives as long as somebody on the reactor holds it.
pub struct Channel {
    bdev: Arc<Bdev>,
    device: Rc<dyn DeviceChannel>,
    flights: RefCell<Slab<Flight>>,
    waiting: RefCell<VecDeque<Box<Io>>>,
    at_device: Cell<u32>,
    generation: Cell<u32>,
    stats: Arc<ChannelStats>,
}

struct Done {
    queue: RefCell<VecDeque<Box<Io>>>,
    scheduled: Cell<bool>,
}

thread_local! {
    static CHANNELS: RefCell<HashMap<u64, Weak<Channel>>> = RefCell::new(HashMap::new());
    static DONE: Rc<Done> = Rc::new(Done { queue: RefCell::default(), scheduled: Cell::new(false) });
}

/// The calling reactor's channel on `bdev`.
pub(super) fn get(bdev: &Arc<Bdev>) -> Result<Rc<Channel>, BdevError> {
    if let Some(channel) = CHANNELS.with(|c| c.borrow().get(&bdev.serial()).and_then(Weak::upgrade)) {
        return Ok(channel);
    }
    let device = bdev.device().open_channel(bdev)?;
    let channel = Rc::new(Channel {
        bdev: bdev.clone(),
        device,
        flights: RefCell::default(),
        waiting: RefCell::default(),
        at_device: Cell::new(0),
        generation: Cell::new(0),
        stats: Arc::default(),
    });
    bdev.add_stats(channel.stats.clone());
    CHANNELS.with(|c| {
        let mut channels = c.borrow_mut();
        channels.retain(|_, weak| weak.strong_count() > 0);
        channels.insert(bdev.serial(), Rc::downgrade(&channel));
    });
    Ok(channel)
}

/// Ends what the calling reactor has in flight on a removed device.
pub(super) fn end_removed(serial: u64) {
    if let Some(channel) = CHANNELS.with(|c| c.borrow().get(&serial).and_then(Weak::upgrade)) {
        channel.end_all(IoError::Removed);
    }
}

/// Takes an I/O back from its device: the owner hears of it in this or the next turn.
pub(super) fn completed(io: Box<Io>) {
    DONE.with(|done| {
        done.queue.borrow_mut().push_back(io);
        if !done.scheduled.replace(true) {
            reactor::schedule(done.clone());
        }
    });
}

impl Task for Done {
    fn run(self: Rc<Self>) {
        self.scheduled.set(false);
        // What completes meanwhile waits for the next round, so that rings and messages get their turn.
        let count = self.queue.borrow().len();
        for _ in 0..count {
            let Some(mut io) = self.queue.borrow_mut().pop_front() else { break };
            match io.channel.take() {
                Some(channel) => channel.finish(io),
                None => io.recycle(),
            }
        }
    }
}

impl Channel {
    pub fn bdev(&self) -> &Arc<Bdev> {
        &self.bdev
    }

    /// I/Os that have not ended.
    pub fn in_flight(&self) -> usize {
        self.flights.borrow().len()
    }

    /// Submits an I/O; `owner` gets it back with `tag` in it. A malformed one ends with an error the same way.
    pub fn submit(self: &Rc<Channel>, mut io: Box<Io>, owner: Rc<dyn IoOwner>) -> IoId {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let flight = Flight {
            owner,
            tag: io.tag,
            generation,
            op: io.op,
            lba: io.lba,
            num_blocks: io.num_blocks,
            start_ns: clock::now(),
            stage: Stage::AtDevice,
        };
        let verdict = self.check(&io);
        let busy = self.at_device.get() >= self.bdev.outstanding_limit() || !self.waiting.borrow().is_empty();
        let id = {
            let mut flights = self.flights.borrow_mut();
            let entry = flights.vacant_entry();
            let id = IoId { index: entry.key() as u32, generation };
            let entry = entry.insert(flight);
            if busy && verdict.is_ok() {
                entry.stage = Stage::Waiting;
            }
            id
        };
        io.id = id;
        io.channel = Some(self.clone());
        match verdict {
            Err(error) => {
                self.at_device.set(self.at_device.get() + 1);
                io.complete(Err(error));
            }
            Ok(()) if busy => self.waiting.borrow_mut().push_back(io),
            Ok(()) => self.start(io),
        }
        id
    }

    fn start(self: &Rc<Channel>, io: Box<Io>) {
        self.at_device.set(self.at_device.get() + 1);
        self.device.clone().submit(io);
    }

    fn check(&self, io: &Io) -> Result<(), IoError> {
        if self.bdev.is_removed() {
            return Err(IoError::Removed);
        }
        if !io.op.has_range() {
            return Ok(());
        }
        let end = io.lba.checked_add(io.num_blocks).ok_or(IoError::OutOfRange)?;
        if io.num_blocks == 0 {
            return Err(IoError::Invalid);
        }
        if end > self.bdev.num_blocks() {
            return Err(IoError::OutOfRange);
        }
        let bytes = io.num_blocks * u64::from(self.bdev.block_size());
        if io.op.has_data() && sg_len(&io.data) as u64 != bytes {
            return Err(IoError::Invalid);
        }
        if io.op == Op::CompareAndWrite && sg_len(&io.compare) as u64 != bytes {
            return Err(IoError::Invalid);
        }
        if !self.bdev.device().supports(io.op) {
            return Err(IoError::Unsupported);
        }
        Ok(())
    }

    fn finish(self: &Rc<Channel>, mut io: Box<Io>) {
        self.at_device.set(self.at_device.get() - 1);
        let id = io.id;
        let flight = self.flights.borrow_mut().try_remove(id.index as usize);
        if let Some(flight) = flight {
            debug_assert_eq!(flight.generation, id.generation);
            if matches!(flight.stage, Stage::Orphaned) {
                io.recycle();
            } else {
                self.count(&flight, io.result.is_err());
                io.tag = flight.tag;
                flight.owner.io_done(io);
            }
        }
        while self.at_device.get() < self.bdev.outstanding_limit() {
            let Some(mut io) = self.waiting.borrow_mut().pop_front() else { break };
            if let Some(flight) = self.flights.borrow_mut().get_mut(io.id.index as usize) {
                flight.stage = Stage::AtDevice;
            }
            if self.bdev.is_removed() {
                self.at_device.set(self.at_device.get() + 1);
                io.result = Err(IoError::Removed);
                completed(io);
            } else {
                self.start(io);
            }
        }
    }

    fn count(&self, flight: &Flight, failed: bool) {
        let bytes = flight.num_blocks * u64::from(self.bdev.block_size());
        self.stats.count(flight.op, bytes, clock::now().saturating_sub(flight.start_ns), failed);
    }

    /// Asks to end one I/O early.
    pub fn abort(self: &Rc<Channel>, id: IoId) -> AbortOutcome {
        let waiting = match self.flights.borrow().get(id.index as usize) {
            Some(f) if f.generation == id.generation => match f.stage {
                Stage::Waiting => true,
                Stage::AtDevice => false,
                Stage::Orphaned => return AbortOutcome::NotFound,
            },
            _ => return AbortOutcome::NotFound,
        };
        if !waiting {
            self.device.abort(id);
            return AbortOutcome::Asked;
        }
        let mut queue = self.waiting.borrow_mut();
        let Some(io) = queue.iter().position(|io| io.id == id).and_then(|at| queue.remove(at)) else {
            return AbortOutcome::NotFound;
        };
        self.at_device.set(self.at_device.get() + 1);
        io.complete(Err(IoError::Aborted));
        AbortOutcome::Aborted
    }

    /// Ends everything in flight with `error`, whatever the device does: it keeps boxes and buffers until it
    /// returns them.
    fn end_all(self: &Rc<Channel>, error: IoError) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for io in waiting {
            self.at_device.set(self.at_device.get() + 1);
            io.complete(Err(error));
        }
        let mut ended = Vec::new();
        for (index, flight) in self.flights.borrow_mut().iter_mut() {
            if let Stage::AtDevice = flight.stage {
                flight.stage = Stage::Orphaned;
                let mut io = Io::new(flight.op);
                (io.lba, io.num_blocks, io.tag) = (flight.lba, flight.num_blocks, flight.tag);
                io.result = Err(error);
                ended.push((
                    IoId { index: index as u32, generation: flight.generation },
                    flight.owner.clone(),
                    io,
                ));
            }
        }
        for (id, owner, io) in ended {
            self.device.abort(id);
            owner.io_done(io);
        }
    }
}
