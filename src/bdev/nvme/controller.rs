//! A controller's admin queue: bring-up, events, keep-alive, loss and return. It lives on one reactor, its home.
//!
//! Invariants: `Shared` says what the I/O queues may do, and every change of it is told to all reactors after it was
//! made; at most one admin queue and one step of the bring-up at a time; a generation, once over, never comes back.
//! The bring-up is the sequence that Linux was traced to send.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender as Channel;
use std::time::Duration;

use super::bring_up::{self, Scan, Step};
use super::command::{Command, Completed};
use super::error::QueueError;
use super::facts::{ControllerFacts, NamespaceFacts};
use super::io_queue;
use super::options::{CONNECT_TIMEOUT, hostid};
use super::queue::{FABRICS_IN_CAPSULE_BYTES, QueueOptions, QueueOwner, QueuePair};
use super::shared::{Life, Shared};
use crate::env::SgList;
use crate::nvme::event::AsyncEvent;
use crate::nvme::fabrics::{CNTLID_DYNAMIC, PropertyCommand};
use crate::nvme::log;
use crate::nvme::property::{self, Cc, Csts};
use crate::nvme::{AdminOpcode, CompletionEntry, SubmissionEntry};
use crate::reactor::{self, Reply, TimerHandler, TimerId};

/// Linux's admin queue has 32 entries.
const ADMIN_DEPTH: u16 = 31;
/// Event requests kept at the controller.
const EVENT_REQUESTS: usize = 2;
/// The first pause before a lost controller is tried again; it doubles up to the option's limit.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How often CSTS is looked at while a controller gets ready or shuts down.
const STATUS_PAUSE: Duration = Duration::from_millis(5);
/// An orderly shutdown may take this long.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);

const TAG_STEP: u64 = 0;
const TAG_KEEP_ALIVE: u64 = 1;
const TAG_EVENT: u64 = 2;
const TAG_ABORT: u64 = 3;
const TAG_SHUTDOWN: u64 = 4;

const TIMER_RETRY: u64 = 0;
const TIMER_KEEP_ALIVE: u64 = 1;
const TIMER_STATUS: u64 = 2;
const TIMER_GIVE_UP: u64 = 3;
const TIMER_FAST_FAIL: u64 = 4;
const TIMER_SHUTDOWN: u64 = 5;

/// News for the thread that keeps the list of bdevs.
#[derive(Debug)]
pub(super) enum News {
    /// The namespaces that there are now, with sizes and access states.
    Namespaces { serial: u64, namespaces: Vec<NamespaceFacts> },
    /// Given up.
    Lost { serial: u64 },
}

/// The answer to a first attempt.
pub(super) type Started = Result<Vec<NamespaceFacts>, QueueError>;

pub(super) struct Controller {
    shared: Arc<Shared>,
    news: Channel<News>,
    admin: RefCell<Option<Rc<QueuePair>>>,
    scan: RefCell<Scan>,
    step: Cell<Step>,
    /// An event asks for another scan when this one is over.
    scan_again: Cell<bool>,
    keep_alive_pending: Cell<bool>,
    attempts: Cell<u32>,
    reply: RefCell<Option<Reply<Started>>>,
    shutdown: RefCell<Option<Reply<()>>>,
    timers: RefCell<[Option<TimerId>; 6]>,
}

thread_local! {
    static CONTROLLERS: RefCell<HashMap<u64, Rc<Controller>>> = RefCell::default();
}

fn find(serial: u64) -> Option<Rc<Controller>> {
    CONTROLLERS.with(|c| c.borrow().get(&serial).cloned())
}

/// Connects for the first time. On the home reactor.
pub(super) fn start(shared: Arc<Shared>, news: Channel<News>, reply: Reply<Started>) {
    let controller = Rc::new(Controller {
        shared: shared.clone(),
        news,
        admin: RefCell::default(),
        scan: RefCell::default(),
        step: Cell::new(Step::Idle),
        scan_again: Cell::new(false),
        keep_alive_pending: Cell::new(false),
        attempts: Cell::new(0),
        reply: RefCell::new(Some(reply)),
        shutdown: RefCell::default(),
        timers: RefCell::default(),
    });
    CONTROLLERS.with(|c| c.borrow_mut().insert(shared.serial, controller.clone()));
    controller.connect();
}

/// An I/O queue of `generation` was lost, or asks for a reset. On the home reactor.
pub(super) fn reset(serial: u64, generation: u64, why: &QueueError) {
    let Some(controller) = find(serial) else { return };
    let inside = controller.shared.inside();
    if inside.life == Life::Live && inside.generation == generation {
        drop(inside);
        controller.lost(why.clone());
    }
}

/// Asks the controller to abort a command. On the home reactor.
pub(super) fn abort(serial: u64, generation: u64, qid: u16, cid: u16) {
    let Some(controller) = find(serial) else { return };
    if controller.shared.inside().generation == generation {
        let mut entry = SubmissionEntry::new(AdminOpcode::Abort as u8, 0);
        entry.cdw10 = (u32::from(cid) << 16 | u32::from(qid)).into();
        // A full admin queue: the next deadline resets the controller, which ends the command as well.
        controller.send(entry, SgList::new(), TAG_ABORT);
    }
}

/// Shuts the controller down in order and forgets it. On the home reactor.
pub(super) fn stop(serial: u64, reply: Reply<()>) {
    let Some(controller) = find(serial) else { return reply.send(()) };
    controller.set_life(Life::Gone);
    *controller.shutdown.borrow_mut() = Some(reply);
    let cc = Cc::ENABLE.with_shn_normal();
    let entry = PropertyCommand::set(0, property::CC, false, u64::from(cc.0)).to_entry();
    if controller.send(entry, SgList::new(), TAG_SHUTDOWN) {
        controller.arm(TIMER_SHUTDOWN, SHUTDOWN_DEADLINE);
    } else {
        controller.end(QueueError::Closed);
    }
}

impl Controller {
    fn connect(self: &Rc<Self>) {
        let o = &self.shared.options;
        self.scan.take();
        self.step.set(Step::Idle);
        self.keep_alive_pending.set(false);
        let options = QueueOptions {
            address: o.address,
            subnqn: o.subnqn.clone(),
            hostnqn: o.hostnqn.clone(),
            hostid: hostid(&o.hostnqn),
            qid: 0,
            cntlid: CNTLID_DYNAMIC,
            depth: ADMIN_DEPTH,
            kato_ms: o.keep_alive.as_millis() as u32,
            digests: o.digests,
            in_capsule_bytes: FABRICS_IN_CAPSULE_BYTES,
            connect_timeout: CONNECT_TIMEOUT,
            command_timeout: Some(CONNECT_TIMEOUT),
            fabrics_connect: true,
        };
        match QueuePair::open(options, self.clone()) {
            Ok(queue) => *self.admin.borrow_mut() = Some(queue),
            Err(why) => self.attempt_failed(why),
        }
    }

    fn arm(self: &Rc<Self>, tag: u64, delay: Duration) {
        self.disarm(tag);
        let timer = reactor::timer_after(delay, self.clone(), tag);
        self.timers.borrow_mut()[tag as usize] = Some(timer);
    }

    fn disarm(&self, tag: u64) {
        if let Some(timer) = self.timers.borrow_mut()[tag as usize].take() {
            reactor::timer_cancel(timer);
        }
    }

    /// Sends an admin command; false if that is not possible now.
    fn send(&self, entry: SubmissionEntry, data: SgList, tag: u64) -> bool {
        match &*self.admin.borrow() {
            Some(queue) => queue.submit(Command::new(entry, data), tag).is_some(),
            None => false,
        }
    }

    /// Sets what the I/O queues may do, and tells them.
    fn set_life(&self, life: Life) {
        let serial = self.shared.serial;
        {
            let mut inside = self.shared.inside();
            if inside.life == Life::Gone {
                return;
            }
            if life == Life::Reconnecting {
                inside.generation += 1;
                inside.reconnects += 1;
            }
            inside.life = life;
        }
        reactor::send_to_all(move || io_queue::life_changed(serial));
    }

    /// Begins a step of the bring-up or of a scan.
    fn begin(self: &Rc<Self>, step: Step) {
        self.step.set(step);
        match step {
            Step::Idle => {}
            Step::WaitDisabled | Step::WaitReady => self.arm(TIMER_STATUS, STATUS_PAUSE),
            _ => self.send_step(step),
        }
    }

    fn send_step(self: &Rc<Self>, step: Step) {
        let Some((entry, data)) = bring_up::command(step, &self.scan.borrow(), &self.shared.options) else {
            return self.close(QueueError::NoMemory);
        };
        if !self.send(entry, data, TAG_STEP) {
            self.close(QueueError::Closed);
        }
    }

    fn step_done(self: &Rc<Self>, done: &Completed) {
        let step = self.step.get();
        let next = bring_up::finish(step, done, &mut self.scan.borrow_mut(), &self.shared.options);
        match next {
            Ok(Step::Idle) => self.scanned(),
            Ok(next) => self.begin(next),
            Err(why) => self.close(why),
        }
    }

    /// Everything is known: a first or another connection, or a scan after an event.
    fn scanned(self: &Rc<Self>) {
        self.step.set(Step::Idle);
        let scan = self.scan.borrow();
        let (facts, namespaces): (&ControllerFacts, _) = (&scan.facts, scan.namespaces.clone());
        if self.shared.inside().life != Life::Live {
            self.shared.inside().facts = facts.clone();
            self.shared.grant(scan.granted_queues);
            drop(scan);
            for _ in 0..EVENT_REQUESTS {
                self.request_event();
            }
            self.attempts.set(0);
            for tag in [TIMER_GIVE_UP, TIMER_FAST_FAIL, TIMER_RETRY] {
                self.disarm(tag);
            }
            self.arm(TIMER_KEEP_ALIVE, self.shared.options.keep_alive / 2);
            self.set_life(Life::Live);
        }
        if let Some(reply) = self.reply.take() {
            reply.send(Ok(namespaces));
        } else {
            // The receiver ends with the process.
            let _ = self.news.send(News::Namespaces { serial: self.shared.serial, namespaces });
        }
        if self.scan_again.replace(false) {
            self.begin(Step::ChangedLog);
        }
    }

    fn request_event(&self) {
        self.send(SubmissionEntry::new(AdminOpcode::AsyncEventRequest as u8, 0), SgList::new(), TAG_EVENT);
    }

    fn event(self: &Rc<Self>, entry: CompletionEntry) {
        if !entry.status().is_success() {
            // The controller takes fewer requests, or is going down: asking again would go round in circles.
            return;
        }
        let event = AsyncEvent::from_completion(entry.dw0.get());
        tracing::info!("controller {}: event {:#08x}", self.shared.options.name, event.0);
        self.request_event();
        if !matches!(event.log_page(), log::CHANGED_NAMESPACES | log::ANA) {
            return;
        }
        if self.step.get() == Step::Idle {
            self.begin(Step::ChangedLog);
        } else {
            self.scan_again.set(true);
        }
    }

    fn keep_alive(self: &Rc<Self>) {
        if self.shared.inside().life != Life::Live {
            return;
        }
        if self.keep_alive_pending.replace(true) {
            return self.close(QueueError::Deadline(self.shared.options.keep_alive));
        }
        let entry = SubmissionEntry::new(AdminOpcode::KeepAlive as u8, 0);
        if !self.send(entry, SgList::new(), TAG_KEEP_ALIVE) {
            return self.close(QueueError::Closed);
        }
        self.arm(TIMER_KEEP_ALIVE, self.shared.options.keep_alive / 2);
    }

    fn close(&self, why: QueueError) {
        let admin = self.admin.borrow().clone();
        if let Some(admin) = admin {
            admin.close(why);
        }
    }

    /// The connection is of no use any more: I/O queues close, attempts begin.
    fn lost(self: &Rc<Self>, why: QueueError) {
        let o = &self.shared.options;
        tracing::warn!("controller {} at {} is lost: {why}", o.name, o.address);
        self.disarm(TIMER_KEEP_ALIVE);
        self.set_life(Life::Reconnecting);
        if let Some(loss) = o.loss_timeout {
            self.arm(TIMER_GIVE_UP, loss);
        }
        if let Some(fast) = o.fast_io_fail {
            self.arm(TIMER_FAST_FAIL, fast);
        }
        if self.admin.borrow().is_some() {
            self.close(why);
        } else {
            self.retry_later();
        }
    }

    fn retry_later(self: &Rc<Self>) {
        let attempts = self.attempts.replace(self.attempts.get() + 1);
        let pause =
            FIRST_PAUSE.saturating_mul(1 << attempts.min(16)).min(self.shared.options.reconnect_delay);
        self.arm(TIMER_RETRY, pause.max(FIRST_PAUSE));
    }

    /// An attempt ended without success.
    fn attempt_failed(self: &Rc<Self>, why: QueueError) {
        if let Some(reply) = self.reply.take() {
            self.forget();
            return reply.send(Err(why));
        }
        if !why.is_worth_retrying() {
            tracing::error!("controller {} is given up: {why}", self.shared.options.name);
            return self.give_up();
        }
        tracing::info!("controller {}: {why}; it is tried again", self.shared.options.name);
        self.retry_later();
    }

    /// No more attempts: I/O fails, the bdevs go.
    fn give_up(self: &Rc<Self>) {
        let _ = self.news.send(News::Lost { serial: self.shared.serial });
        self.set_life(Life::Gone);
        if self.admin.borrow().is_some() {
            self.close(QueueError::Closed);
        } else {
            self.forget();
        }
    }

    fn forget(&self) {
        (TIMER_RETRY..=TIMER_SHUTDOWN).for_each(|tag| self.disarm(tag));
        CONTROLLERS.with(|c| c.borrow_mut().remove(&self.shared.serial));
    }

    /// The end after a stop.
    fn end(self: &Rc<Self>, why: QueueError) {
        if self.admin.borrow().is_some() {
            return self.close(why);
        }
        self.forget();
        if let Some(reply) = self.shutdown.take() {
            reply.send(());
        }
    }

    fn shutdown_done(self: &Rc<Self>, done: &Completed) {
        let complete = done.entry.is_none_or(|e| Csts(e.value() as u32).shutdown_complete());
        if complete || !done.status().is_success() {
            return self.end(QueueError::Closed);
        }
        self.arm(TIMER_STATUS, STATUS_PAUSE);
    }
}

impl QueueOwner for Controller {
    fn queue_ready(self: Rc<Self>, _queue: &Rc<QueuePair>, connect: CompletionEntry) {
        self.scan.borrow_mut().facts.cntlid = connect.dw0.get() as u16;
        self.begin(Step::ReadCap);
    }

    fn command_done(self: Rc<Self>, _queue: &Rc<QueuePair>, done: Completed) {
        let Some(entry) = done.entry else { return };
        match done.tag {
            TAG_STEP => self.step_done(&done),
            TAG_KEEP_ALIVE => self.keep_alive_pending.set(false),
            TAG_EVENT => self.event(entry),
            TAG_SHUTDOWN => self.shutdown_done(&done),
            _ => tracing::debug!("abort: {}", entry.status()),
        }
    }

    fn command_expired(self: Rc<Self>, queue: &Rc<QueuePair>, _cid: u16, tag: u64, _times: u32) {
        // Event requests wait for events.
        if tag != TAG_EVENT {
            queue.close(QueueError::Deadline(CONNECT_TIMEOUT));
        }
    }

    fn queue_closed(self: Rc<Self>, _queue: &Rc<QueuePair>, why: QueueError) {
        self.admin.take();
        self.step.set(Step::Idle);
        self.disarm(TIMER_STATUS);
        let life = self.shared.inside().life;
        match life {
            Life::Live => self.lost(why),
            Life::Connecting | Life::Failing => self.attempt_failed(why),
            Life::Reconnecting => self.attempt_failed(why),
            Life::Gone => self.end(why),
        }
    }
}

impl TimerHandler for Controller {
    fn timer_fired(self: Rc<Self>, tag: u64) {
        self.timers.borrow_mut()[tag as usize] = None;
        match tag {
            TIMER_RETRY => self.connect(),
            TIMER_KEEP_ALIVE => self.keep_alive(),
            TIMER_STATUS if self.shutdown.borrow().is_some() => {
                let entry = PropertyCommand::get(0, property::CSTS, false).to_entry();
                if !self.send(entry, SgList::new(), TAG_SHUTDOWN) {
                    self.end(QueueError::Closed);
                }
            }
            TIMER_STATUS => self.send_step(self.step.get()),
            TIMER_FAST_FAIL => {
                if self.shared.inside().life == Life::Reconnecting {
                    self.set_life(Life::Failing);
                }
            }
            TIMER_GIVE_UP => {
                tracing::error!("controller {} is given up", self.shared.options.name);
                self.give_up();
            }
            _ => self.end(QueueError::Deadline(SHUTDOWN_DEADLINE)),
        }
    }
}
