//! One reactor's I/O queue of a controller, shared by the controller's namespaces there.
//!
//! Invariants: an I/O is here until every command that carries a part of it has ended; it waits, in order, while the
//! controller is lost, and goes out again from its beginning when the controller is back: all operations but
//! compare-and-write may be repeated, and that one fails. Limits of one command split an I/O, never fail it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use smallvec::SmallVec;

use super::command::Completed;
use super::controller;
use super::error::QueueError;
use super::facts::{ControllerFacts, NamespaceFacts};
use super::io_command::{self, Part};
use super::options::{CONNECT_TIMEOUT, hostid};
use super::queue::{QueueOptions, QueueOwner, QueuePair};
use super::shared::{Life, Shared};
use crate::bdev::{BdevError, Io, IoError, IoId, Op};
use crate::nvme::{CompletionEntry, Status};
use crate::reactor::{self, TimerHandler};

/// A command that the controller asks to be sent again is, this often.
const RETRIES: u8 = 4;
/// When there is no memory for a command's own data, it is tried again after this.
const MEMORY_PAUSE: Duration = Duration::from_millis(1);
/// A target may hear of a new connection before the end of the one that had the same queue identifier, and refuse it:
/// it is asked again after a pause, for as long as a busy target may take to notice.
const IDENTIFIER_PAUSE: Duration = Duration::from_millis(10);
const IDENTIFIER_TRIES: u8 = 200;
const TIMER_PUMP: u64 = 0;
const TIMER_FOLLOW: u64 = 1;

struct Pending {
    io: Box<Io>,
    namespace: Rc<NamespaceFacts>,
    /// Blocks handed out to commands.
    issued: u64,
    outstanding: u32,
    /// One command carries all of it, with the I/O's own buffers.
    whole: bool,
    again: bool,
    retries: u8,
    error: Option<IoError>,
    /// For a reset: the connection that it ends.
    generation: u64,
    cids: SmallVec<[u16; 4]>,
}

struct State {
    queue: Option<Rc<QueuePair>>,
    /// The connection that `queue` belongs to.
    generation: u64,
    facts: ControllerFacts,
    life: Life,
    pending: Slab<Pending>,
    /// Those with something left to issue.
    ready: VecDeque<usize>,
}

pub(super) struct IoQueue {
    shared: Arc<Shared>,
    qid: u16,
    users: Cell<usize>,
    /// Refusals of the queue identifier since the last connection.
    refusals: Cell<u8>,
    state: RefCell<State>,
}

thread_local! {
    static QUEUES: RefCell<HashMap<u64, Weak<IoQueue>>> = RefCell::default();
}

/// The calling reactor's queue, one user more.
pub(super) fn get(shared: &Arc<Shared>) -> Result<Rc<IoQueue>, BdevError> {
    let known = QUEUES.with(|q| q.borrow().get(&shared.serial).and_then(Weak::upgrade));
    if let Some(queue) = known {
        queue.users.set(queue.users.get() + 1);
        queue.follow();
        return Ok(queue);
    }
    let qid = shared.take_qid().map_err(|granted| {
        let name = &shared.options.name;
        BdevError::Invalid(format!(
            "all {granted} I/O queues that controller `{name}` grants are in use; each reactor needs one: \
             attach it with a larger num_io_queues, or let its target grant more"
        ))
    })?;
    let queue = Rc::new(IoQueue {
        shared: shared.clone(),
        qid,
        users: Cell::new(1),
        refusals: Cell::new(0),
        state: RefCell::new(State {
            queue: None,
            generation: 0,
            facts: ControllerFacts::default(),
            life: Life::Connecting,
            pending: Slab::new(),
            ready: VecDeque::new(),
        }),
    });
    QUEUES.with(|q| {
        let mut queues = q.borrow_mut();
        queues.retain(|_, weak| weak.strong_count() > 0);
        queues.insert(shared.serial, Rc::downgrade(&queue));
    });
    queue.follow();
    Ok(queue)
}

/// The controller's state changed.
pub(super) fn life_changed(serial: u64) {
    if let Some(queue) = QUEUES.with(|q| q.borrow().get(&serial).and_then(Weak::upgrade)) {
        queue.follow();
    }
}

impl IoQueue {
    /// Does what the controller's state asks for.
    fn follow(self: &Rc<Self>) {
        let (life, generation) = {
            let inside = self.shared.inside();
            let mut state = self.state.borrow_mut();
            state.life = inside.life;
            if inside.life == Life::Live && state.queue.is_none() {
                state.facts = inside.facts.clone();
            }
            (inside.life, inside.generation)
        };
        let old = {
            let state = self.state.borrow();
            state.queue.clone().filter(|_| life != Life::Live || state.generation != generation)
        };
        if let Some(old) = old {
            old.close(QueueError::Closed);
        } else if life == Life::Live && self.state.borrow().queue.is_none() && self.users.get() > 0 {
            self.connect(generation);
        }
        self.pump();
    }

    fn connect(self: &Rc<Self>, generation: u64) {
        let o = &self.shared.options;
        let mut state = self.state.borrow_mut();
        let facts = &state.facts;
        let options = QueueOptions {
            address: o.address,
            subnqn: o.subnqn.clone(),
            hostnqn: o.hostnqn.clone(),
            hostid: hostid(&o.hostnqn),
            qid: self.qid,
            cntlid: facts.cntlid,
            depth: o.depth.min(facts.max_depth),
            kato_ms: 0,
            digests: o.digests,
            in_capsule_bytes: facts.in_capsule_bytes,
            connect_timeout: CONNECT_TIMEOUT,
            command_timeout: Some(o.command_timeout),
            fabrics_connect: true,
        };
        state.generation = generation;
        match QueuePair::open(options, self.clone()) {
            Ok(queue) => state.queue = Some(queue),
            Err(why) => self.report_lost(generation, why),
        }
    }

    /// Tells the controller's home that this connection is of no use any more.
    fn report_lost(&self, generation: u64, why: QueueError) {
        let serial = self.shared.serial;
        reactor::spawn_call(self.shared.home, move || controller::reset(serial, generation, &why));
    }

    /// One user less: the last one ends the connection.
    pub(super) fn release(self: &Rc<Self>) {
        self.users.set(self.users.get() - 1);
        let queue = self.state.borrow().queue.clone();
        if let Some(queue) = queue.filter(|_| self.users.get() == 0) {
            queue.close(QueueError::Closed);
        }
    }

    pub(super) fn submit(self: &Rc<Self>, io: Box<Io>, namespace: &Rc<NamespaceFacts>) {
        let reset = io.op == Op::Reset;
        {
            let mut state = self.state.borrow_mut();
            let generation = state.generation;
            let pending = Pending {
                io,
                namespace: namespace.clone(),
                issued: 0,
                outstanding: 0,
                whole: false,
                again: false,
                retries: 0,
                error: None,
                generation,
                cids: SmallVec::new(),
            };
            let index = state.pending.insert(pending);
            state.ready.push_back(index);
            if reset {
                self.report_lost(generation, QueueError::Controller("a reset was asked for"));
            }
        }
        self.pump();
    }

    /// Asks to end an I/O early.
    pub(super) fn abort(self: &Rc<Self>, id: IoId) {
        let mut state = self.state.borrow_mut();
        let Some((index, pending)) = state.pending.iter().find(|(_, p)| p.io.id() == id) else { return };
        if pending.outstanding > 0 {
            for &cid in &pending.cids {
                self.ask_abort(state.generation, cid);
            }
        } else if !matches!(pending.io.op, Op::Reset) {
            state.ready.retain(|&i| i != index);
            state.pending.remove(index).io.complete(Err(IoError::Aborted));
        }
    }

    fn ask_abort(&self, generation: u64, cid: u16) {
        let (serial, qid) = (self.shared.serial, self.qid);
        reactor::spawn_call(self.shared.home, move || controller::abort(serial, generation, qid, cid));
    }

    /// Issues what the queue takes.
    fn pump(self: &Rc<Self>) {
        let state = &mut *self.state.borrow_mut();
        while let Some(&index) = state.ready.front() {
            let lost = matches!(state.life, Life::Failing | Life::Gone);
            let Some(pending) = state.pending.get_mut(index) else { return };
            if lost {
                pending.error = Some(IoError::Disconnected);
            } else if pending.error.is_none() {
                let Some(queue) = state.queue.clone().filter(|q| q.room() >= 2) else { return };
                if pending.io.op == Op::Reset {
                    if pending.generation == state.generation {
                        return;
                    }
                } else if !self.issue(pending, index, &queue, &state.facts) {
                    return;
                } else if pending.issued < io_command::blocks(&pending.io) && pending.error.is_none() {
                    continue;
                }
            }
            state.ready.pop_front();
            if pending.outstanding == 0 {
                let Pending { io, error, .. } = state.pending.remove(index);
                io.complete(error.map_or(Ok(()), Err));
            }
        }
    }

    /// Sends the next command of an I/O. False if it must wait.
    fn issue(
        self: &Rc<Self>,
        p: &mut Pending,
        index: usize,
        queue: &Rc<QueuePair>,
        facts: &ControllerFacts,
    ) -> bool {
        let tag = (index as u64) << 1;
        let part = match io_command::next(&mut p.io, p.issued, &p.namespace, facts) {
            Ok(part) => part,
            Err(io_command::Problem::NoMemory) => {
                reactor::timer_after(MEMORY_PAUSE, self.clone(), TIMER_PUMP);
                return false;
            }
            Err(io_command::Problem::Fails(error)) => {
                p.error = Some(error);
                return true;
            }
        };
        let cids: SmallVec<[u16; 2]> = match part {
            Part::One { command, blocks, whole } => {
                p.issued += blocks;
                p.whole = whole;
                queue.submit(command, tag).into_iter().collect()
            }
            Part::Fused { compare, write, blocks } => {
                p.issued += blocks;
                p.whole = true;
                match queue.submit_fused(compare, write, (tag | 1, tag)) {
                    Some((first, second)) => SmallVec::from_slice(&[first, second]),
                    None => SmallVec::new(),
                }
            }
        };
        debug_assert!(!cids.is_empty(), "room was looked at before");
        p.outstanding += cids.len() as u32;
        p.cids.extend(cids);
        true
    }

    /// All commands of an I/O have ended: it ends, or begins again.
    fn settle(self: &Rc<Self>, state: &mut State, index: usize) {
        let Some(p) = state.pending.get_mut(index).filter(|p| p.outstanding == 0) else { return };
        if p.again && p.error.is_none() {
            (p.issued, p.again) = (0, false);
            if !state.ready.contains(&index) {
                state.ready.push_back(index);
            }
        } else if p.error.is_some() || p.issued >= io_command::blocks(&p.io) {
            state.ready.retain(|&i| i != index);
            let Pending { io, error, .. } = state.pending.remove(index);
            io.complete(error.map_or(Ok(()), Err));
        }
    }
}

impl QueueOwner for IoQueue {
    fn queue_ready(self: Rc<Self>, _queue: &Rc<QueuePair>, _connect: CompletionEntry) {
        self.refusals.set(0);
        self.pump();
    }

    fn command_done(self: Rc<Self>, _queue: &Rc<QueuePair>, done: Completed) {
        let index = (done.tag >> 1) as usize;
        let compare = done.tag & 1 != 0;
        {
            let mut state = self.state.borrow_mut();
            let life = state.life;
            let Some(p) = state.pending.get_mut(index) else { return };
            p.outstanding -= 1;
            let status = done.status();
            if let Some(entry) = done.entry {
                p.cids.retain(|c| *c != entry.cid.get());
            } else {
                p.cids.clear();
            }
            let retry = match done.entry {
                None => p.io.op != Op::CompareAndWrite && !matches!(life, Life::Failing | Life::Gone),
                Some(_) => io_command::is_worth_retrying(status) && p.retries < RETRIES,
            };
            if retry {
                p.retries += u8::from(done.entry.is_some());
                p.again = true;
            } else if !status.is_success() {
                // The half of a fused pair that was not at fault says only that the other one was.
                let other_failed = status.is(Status::ABORTED_FAILED_FUSED);
                if p.error.is_none() || !other_failed {
                    p.error = Some(io_command::error_of(done.entry.map(|e| e.status())));
                }
            } else if p.io.op == Op::Read && done.received as usize != crate::env::sg_len(&done.data) {
                // A success without its data would pass off what the buffers held before.
                p.error = Some(IoError::Device);
            }
            if p.whole && compare {
                p.io.compare = done.data;
            } else if p.whole && p.io.op.has_data() {
                p.io.data = done.data;
            }
            self.settle(&mut state, index);
            if state.ready.is_empty() {
                return;
            }
        }
        self.pump();
    }

    fn command_expired(self: Rc<Self>, queue: &Rc<QueuePair>, cid: u16, _tag: u64, times: u32) {
        let generation = self.state.borrow().generation;
        if times == 1 {
            tracing::warn!(
                "controller {}: a command takes too long; it is aborted",
                self.shared.options.name
            );
            self.ask_abort(generation, cid);
        } else {
            queue.close(QueueError::Deadline(self.shared.options.command_timeout * 2));
        }
    }

    fn queue_closed(self: Rc<Self>, _queue: &Rc<QueuePair>, why: QueueError) {
        let generation = {
            let mut state = self.state.borrow_mut();
            state.queue = None;
            state.generation
        };
        let ours = why == QueueError::Closed;
        let in_use =
            matches!(&why, QueueError::Refused { status, .. } if status.is(Status::INVALID_QUEUE_ID));
        if in_use && self.refusals.get() < IDENTIFIER_TRIES {
            self.refusals.set(self.refusals.get() + 1);
            reactor::timer_after(IDENTIFIER_PAUSE, self, TIMER_FOLLOW);
            return;
        }
        if !ours && self.users.get() > 0 {
            self.report_lost(generation, why);
        }
        let stale = {
            let inside = self.shared.inside();
            inside.life != Life::Live || inside.generation != generation
        };
        // A live connection that failed is followed when its home has closed it and tells everybody.
        if ours || stale {
            self.follow();
        }
    }
}

impl TimerHandler for IoQueue {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        if tag == TIMER_FOLLOW { self.follow() } else { self.pump() }
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        self.shared.give_qid(self.qid);
    }
}
