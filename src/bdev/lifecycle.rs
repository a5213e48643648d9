//! Early ends: abort, reset, removal.
//!
//! Invariants: an I/O that never reached the device ends at once. One at the device ends when the device lets go of
//! it, because a write that is still under way there could land after a later one; only the removal of the whole
//! bdev ends it before, and then the device keeps box and buffers until it returns them.

use std::rc::Rc;

use super::channel::{self, Channel};
use super::error::IoError;
use super::flight::{Flight, IoId, Stage};
use super::io::{Io, Op};

/// What became of an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortOutcome {
    /// It had not reached the device, and ends with [`IoError::Aborted`].
    Aborted,
    /// The device was asked; the I/O ends, one way or the other, when the device lets go of it.
    Asked,
    /// It has ended already.
    NotFound,
}

/// A reset that waits for what was at the device before it.
pub(super) struct PendingReset {
    io: Box<Io>,
    before: usize,
}

/// Ends what the calling reactor has in flight on a removed device.
pub(super) fn end_removed(serial: u64) {
    if let Some(channel) = channel::find(serial) {
        channel.end_all(IoError::Removed);
    }
}

impl Channel {
    /// Asks to end one I/O early.
    pub fn abort(self: &Rc<Channel>, id: IoId) -> AbortOutcome {
        let stage = self.flights.borrow().get(id.index as usize).map(|f| (f.generation, f.stage));
        match stage {
            Some((generation, Stage::Waiting)) if generation == id.generation => {
                let found = [&self.waiting, &self.held].into_iter().find_map(|queue| {
                    let mut queue = queue.borrow_mut();
                    let at = queue.iter().position(|io| io.id == id)?;
                    queue.remove(at)
                });
                let Some(io) = found else { return AbortOutcome::NotFound };
                self.refuse(io, IoError::Aborted);
                AbortOutcome::Aborted
            }
            Some((generation, Stage::AtDevice)) if generation == id.generation => {
                self.abort_at_device(id);
                AbortOutcome::Asked
            }
            _ => AbortOutcome::NotFound,
        }
    }

    fn abort_at_device(&self, id: IoId) {
        let emulation = self.emulations.borrow().iter().find(|e| e.parent_id() == id).cloned();
        match emulation {
            Some(emulation) => emulation.abort(),
            None => self.device.abort(id),
        }
    }

    fn end_waiting(&self, error: IoError) {
        for queue in [&self.waiting, &self.held] {
            let waiting = std::mem::take(&mut *queue.borrow_mut());
            for io in waiting {
                self.refuse(io, error);
            }
        }
    }

    /// Ends everything before it on this channel, then resets the device if it knows how.
    pub(super) fn reset(self: &Rc<Channel>, io: Box<Io>) {
        self.end_waiting(IoError::Aborted);
        let before: Vec<IoId> = self
            .flights
            .borrow()
            .iter()
            .map(|(index, f)| (IoId { index: index as u32, generation: f.generation }, f))
            .filter(|(id, f)| *id != io.id && f.stage == Stage::AtDevice && !f.internal)
            .map(|(id, _)| id)
            .collect();
        if before.is_empty() {
            self.reset_now(io);
            return;
        }
        self.resets.borrow_mut().push(PendingReset { io, before: before.len() });
        self.special.set(true);
        before.into_iter().for_each(|id| self.abort_at_device(id));
    }

    fn reset_now(self: &Rc<Channel>, io: Box<Io>) {
        if self.is_native(Op::Reset) {
            self.device.clone().submit(io);
        } else {
            io.complete(Ok(()));
        }
    }

    /// Tells locks and resets that an I/O left the device.
    pub(super) fn settle(self: &Rc<Channel>, flight: &Flight) {
        if flight.internal {
            return;
        }
        self.drained(flight);
        let mut ready = Vec::new();
        self.resets.borrow_mut().retain_mut(|reset| {
            if is_older(flight.generation, reset.io.id.generation) {
                reset.before -= 1;
            }
            if reset.before == 0 {
                ready.push(std::mem::replace(&mut reset.io, Io::new(Op::Reset)));
            }
            reset.before > 0
        });
        self.note_special();
        ready.into_iter().for_each(|io| self.reset_now(io));
    }

    pub(super) fn note_special(&self) {
        self.special.set(!self.resets.borrow().is_empty() || !self.locks.borrow().is_empty());
    }

    /// Ends everything in flight with `error`, whatever the device does: it keeps boxes and buffers until it
    /// returns them.
    fn end_all(self: &Rc<Channel>, error: IoError) {
        self.end_waiting(error);
        for reset in std::mem::take(&mut *self.resets.borrow_mut()) {
            reset.io.complete(Err(error));
        }
        let mut ended = Vec::new();
        for (index, flight) in self.flights.borrow_mut().iter_mut() {
            // Parts of emulated I/Os end with the device: their emulation goes on until then.
            if flight.stage == Stage::AtDevice && !flight.internal {
                flight.stage = Stage::Orphaned;
                let mut io = flight.stand_in();
                io.result = Err(error);
                ended.push((
                    IoId { index: index as u32, generation: flight.generation },
                    flight.owner.clone(),
                    io,
                ));
            }
        }
        for (id, owner, io) in ended {
            self.abort_at_device(id);
            owner.io_done(io);
        }
    }
}

/// Whether generation `a` came before `b`, across the wrap.
fn is_older(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) as i32 > 0
}
