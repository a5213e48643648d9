//! Carries an area out on its reactor. Requests that come while a batch is being written, or in one turn of the reactor,
//! share the next batch: one durable write for all of them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::area::{Area, Request};
use super::format::{BATCH_BYTES, Ring};
use super::store::Journal;
use crate::bdev::{BdevError, Channel, Io, IoOwner, Op};
use crate::env::Buf;
use crate::reactor::{self, Task};
use crate::replication::Epoch;
use crate::replication::core::{Journaled, OpId};

/// Whose write waits: the volume's number and the operation of its machine.
pub type Token = (u16, OpId);

/// Percent of an area in use at which events ask for a checkpoint: early enough for one at leisure, and urgent.
const WATERMARKS: [u8; 2] = [75, 90];

/// Hears how requests end, on the writer's reactor, never from within a call.
pub trait User {
    fn journaled(&self, token: Token, outcome: Journaled);

    /// The area is this full.
    fn journal_watermark(&self, percent: u8);
}

pub struct Writer {
    area: RefCell<Area<Token>>,
    /// Where the area begins, in bytes of the device.
    start: u64,
    channel: Rc<Channel>,
    block_size: u64,
    buffer: Buf,
    user: Weak<dyn User>,
    scheduled: Cell<bool>,
    ended: RefCell<Vec<(Token, Journaled)>>,
    watermark: Cell<u8>,
}

impl Writer {
    /// The calling reactor's writer, with an area of its own.
    pub fn new(journal: &Journal, user: Weak<dyn User>) -> Result<Rc<Writer>, BdevError> {
        let header = journal.header();
        let area = reactor::core_index() as u32;
        let ring = Ring { journal: header.journal, formatted: header.formatted, area: area as u16 };
        let no_memory = || BdevError::Invalid("no buffer memory for the journal".to_string());
        let buffer = reactor::alloc(BATCH_BYTES).or_else(|| Buf::heap(BATCH_BYTES)).ok_or_else(no_memory)?;
        Ok(Rc::new(Writer {
            area: RefCell::new(Area::new(ring, header.area_bytes)),
            start: header.area_at(area),
            channel: journal.bdev().channel()?,
            block_size: journal.bdev().block_size().into(),
            buffer,
            user,
            scheduled: Cell::new(false),
            ended: RefCell::default(),
            watermark: Cell::new(0),
        }))
    }

    pub fn request(self: &Rc<Writer>, request: Request<Token>) {
        self.area.borrow_mut().request(request);
        self.schedule();
    }

    /// Nothing leads back beyond this epoch any more.
    pub fn committed(&self, epoch: Epoch) {
        self.area.borrow_mut().committed(epoch);
        self.watermark.set(0);
    }

    pub fn used_bytes(&self) -> u64 {
        self.area.borrow().used_bytes()
    }

    fn schedule(self: &Rc<Writer>) {
        if self.area.borrow().has_work() && !self.scheduled.replace(true) {
            reactor::schedule(self.clone());
        }
    }

    fn write_next(self: &Rc<Writer>) {
        let next = {
            let mut ended = self.ended.borrow_mut();
            let mut end = |token, outcome| ended.push((token, outcome));
            self.area.borrow_mut().next(&self.buffer, &mut end)
        };
        if let Some((at, len)) = next {
            let mut io = Io::new(Op::Write);
            io.lba = (self.start + at) / self.block_size;
            io.num_blocks = len as u64 / self.block_size;
            io.data.push(self.buffer.slice(0, len));
            io.fua = true;
            self.channel.submit(io, self.clone());
        }
    }

    /// Tells what ended, with nothing borrowed: whoever hears it may ask for more.
    fn tell(&self) {
        let Some(user) = self.user.upgrade() else { return };
        let mut ended = self.ended.take();
        for (token, outcome) in ended.drain(..) {
            user.journaled(token, outcome);
        }
        // Nothing ends from within `journaled`, so nobody else needed the list meanwhile.
        self.ended.replace(ended);
        let percent = self.area.borrow().needed_percent();
        for mark in WATERMARKS {
            if percent >= u64::from(mark) && self.watermark.get() < mark {
                self.watermark.set(mark);
                user.journal_watermark(mark);
            }
        }
    }
}

impl Task for Writer {
    fn run(self: Rc<Self>) {
        self.scheduled.set(false);
        self.write_next();
        self.tell();
    }
}

impl IoOwner for Writer {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        if let Err(error) = io.result {
            tracing::error!("journal `{}`: a write failed: {error}", self.channel.bdev().name());
        }
        let ok = io.result.is_ok();
        io.recycle();
        {
            let mut ended = self.ended.borrow_mut();
            self.area.borrow_mut().written(ok, |token, outcome| ended.push((token, outcome)));
        }
        self.tell();
        self.schedule();
    }
}
