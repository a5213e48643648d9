//! The way back: completed I/Os of one reactor, handed to their owners from the reactor's loop, a batch at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::io::Io;
use crate::env::clock;
use crate::reactor::{self, Task};

struct Done {
    queue: RefCell<VecDeque<Box<Io>>>,
    scheduled: Cell<bool>,
}

thread_local! {
    static DONE: Rc<Done> = Rc::new(Done { queue: RefCell::default(), scheduled: Cell::new(false) });
    /// The clock at the newest batch.
    static STAMP_NS: Cell<u64> = const { Cell::new(0) };
}

/// The newest clock reading on this reactor. Reading the clock for each I/O would cost as much as the rest of the
/// layer; a turn's and a batch's beginning are exact to the microseconds that a turn takes.
#[inline]
pub(super) fn recent_ns() -> u64 {
    STAMP_NS.get().max(reactor::now())
}

/// Takes an I/O back from its device: the owner hears of it in this or the next turn.
#[inline]
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
        let now = clock::now();
        STAMP_NS.set(now);
        // What completes meanwhile waits for the next round, so that rings and messages get their turn.
        let count = self.queue.borrow().len();
        for _ in 0..count {
            let Some(mut io) = self.queue.borrow_mut().pop_front() else { break };
            match io.channel.take() {
                Some(channel) => channel.finish(io, now),
                None => io.recycle(),
            }
        }
    }
}
