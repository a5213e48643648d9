//! The reactor's loop, and the set of reactors of a node.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::idle::{AtomicIdleMode, IdleMode};
use super::message::{self, CallError, Inbox, Outbox, Parcel, Reply};
use super::ring::{Lane, Reaped, Ring};
use super::stats::{Counters, PollerStats, ReactorStats, add};
use super::timer::{TimerHandler, TimerId, Wheel};
use crate::env::pool::PoolCounters;
use crate::env::{Arena, Buf, CoreList, Pool, PoolStats, clock, cores};

/// How long the reactors may take to end what is in flight when the node stops.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// A sleeping reactor looks around at least this often, whatever its timers say.
const LONGEST_SLEEP_NS: u64 = 1_000_000_000;
/// Parcels taken in one turn: more than a burst of any one sender, few enough that rings and timers get their turn.
const PARCELS_PER_TURN: usize = 1024;

/// How to run a node's reactors.
#[derive(Debug, Clone)]
pub struct Config {
    pub cores: CoreList,
    pub idle: IdleMode,
    /// Limit of data-buffer memory, bytes.
    pub memory_bytes: usize,
}

/// Work that runs once per call of [`schedule`], in the reactor's next turn.
pub trait Task {
    fn run(self: Rc<Self>);
}

/// Work that is looked at in every turn. A reactor with pollers that never find work still sleeps; a poller must
/// therefore get its work through timers, rings or messages unless the idle mode is `spin`.
pub trait Poller {
    /// True if there was something to do.
    fn poll(&self) -> bool;
}

struct PollerEntry {
    id: u64,
    poller: Rc<dyn Poller>,
    counters: Arc<PollerCounters>,
}

struct PollerCounters {
    id: u64,
    name: String,
    run_count: AtomicU64,
    busy_count: AtomicU64,
    busy_ns: AtomicU64,
}

/// Removes its poller when dropped.
pub struct PollerGuard(u64);

impl Drop for PollerGuard {
    fn drop(&mut self) {
        try_local(|l| l.gone_pollers.borrow_mut().push(self.0));
    }
}

/// What other threads see of one reactor.
struct Shared {
    core: usize,
    counters: Counters,
    pool: Arc<PoolCounters>,
    pollers: Mutex<Vec<Arc<PollerCounters>>>,
}

struct SetShared {
    inboxes: Vec<Inbox>,
    idle: AtomicIdleMode,
    stop: AtomicBool,
    arena: &'static Arena,
    /// Whether each reactor has its core to itself, as far as this process can tell.
    alone: bool,
}

/// The calling reactor's own state.
pub(super) struct Local {
    index: usize,
    pub(super) ring: RefCell<Ring>,
    pub(super) polled: RefCell<Option<Ring>>,
    pub(super) arena: &'static Arena,
    pub(super) closed_files: RefCell<Vec<(Lane, u32)>>,
    wheel: RefCell<Wheel>,
    outbox: RefCell<Outbox>,
    tasks: RefCell<VecDeque<Rc<dyn Task>>>,
    pollers: RefCell<Vec<PollerEntry>>,
    new_pollers: RefCell<Vec<PollerEntry>>,
    gone_pollers: RefCell<Vec<u64>>,
    next_poller: Cell<u64>,
    pool: Pool,
    stay_awake: Cell<bool>,
    set: Arc<SetShared>,
    shared: Arc<Shared>,
}

thread_local! {
    static LOCAL: OnceCell<Local> = const { OnceCell::new() };
    /// The clock at the beginning of the turn; apart, because it is read for each I/O.
    static NOW: Cell<u64> = const { Cell::new(0) };
}

pub(super) fn with_local<R>(f: impl FnOnce(&Local) -> R) -> R {
    LOCAL.with(|l| match l.get() {
        Some(local) => f(local),
        None => panic!("called outside a reactor thread"),
    })
}

/// As `with_local`, where the thread may be ending or no reactor.
pub(super) fn try_local(f: impl FnOnce(&Local)) {
    let _ = LOCAL.try_with(|l| l.get().map(f));
}

/// Whether the calling thread is a reactor.
pub fn in_reactor() -> bool {
    LOCAL.try_with(|l| l.get().is_some()).unwrap_or(false)
}

/// Index of the calling reactor in its set, 0-based.
pub fn core_index() -> usize {
    with_local(|l| l.index)
}

/// How many reactors the calling reactor's set has.
pub fn count() -> usize {
    with_local(|l| l.set.inboxes.len())
}

/// The clock at the beginning of this turn, ns ([`clock::now`] without asking the machine).
#[inline]
pub fn now() -> u64 {
    NOW.get()
}

/// A data buffer from the calling reactor's pool; `None` at the memory limit or for lengths of 0 or above 2 MiB.
pub fn alloc(len: usize) -> Option<Buf> {
    with_local(|l| l.pool.alloc(len))
}

/// Limit of the set's data-buffer memory, bytes.
pub fn memory_limit() -> usize {
    with_local(|l| l.arena.limit_bytes())
}

/// Runs `task` soon: in this turn, or, from within a long chain of tasks, in the next.
pub fn schedule(task: Rc<dyn Task>) {
    with_local(|l| l.tasks.borrow_mut().push_back(task));
}

/// Sends a parcel to reactor `to` of the same set (also to oneself). Never waits, never loses it.
pub fn send(to: usize, parcel: Box<dyn Parcel>) {
    with_local(|l| l.outbox.borrow_mut().send(&l.set.inboxes, to, parcel));
}

/// Runs a closure on reactor `to`: for control work, it allocates.
pub fn spawn_call(to: usize, f: impl FnOnce() + Send + 'static) {
    send(to, message::parcel(f));
}

/// Runs a closure on every reactor of the set, the calling one included.
pub fn send_to_all(f: impl Fn() + Send + Sync + 'static) {
    let f = Arc::new(f);
    for to in 0..count() {
        let f = f.clone();
        spawn_call(to, move || f());
    }
}

/// Calls `handler` after `delay` (rounded up to whole milliseconds).
pub fn timer_after(delay: Duration, handler: Rc<dyn TimerHandler>, tag: u64) -> TimerId {
    let delay = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    with_local(|l| l.wheel.borrow_mut().arm(clock::now().saturating_add(delay), handler, tag))
}

/// True if the timer was still armed.
pub fn timer_cancel(id: TimerId) -> bool {
    with_local(|l| l.wheel.borrow_mut().cancel(id))
}

/// Polls `poller` in every turn until the guard drops.
pub fn add_poller(name: &str, poller: Rc<dyn Poller>) -> PollerGuard {
    with_local(|l| {
        let id = l.next_poller.replace(l.next_poller.get() + 1);
        let counters = Arc::new(PollerCounters {
            id,
            name: name.to_string(),
            run_count: AtomicU64::new(0),
            busy_count: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
        });
        lock(&l.shared.pollers).push(counters.clone());
        l.new_pollers.borrow_mut().push(PollerEntry { id, poller, counters });
        PollerGuard(id)
    })
}

/// Keeps the reactor from sleeping after this turn: for work that no ring, timer or message announces.
pub fn sleep_hint(stay_awake: bool) {
    with_local(|l| l.stay_awake.set(stay_awake));
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Local {
    fn run(&self) {
        let mut reaped: Vec<Reaped> = Vec::with_capacity(256);
        let mut fired: Vec<(Rc<dyn TimerHandler>, u64)> = Vec::new();
        let Some(wake_buffer) = Buf::heap(8) else { return };
        self.ring.borrow_mut().arm_wake(self.set.inboxes[self.index].event.as_raw_fd(), &wake_buffer);
        let mut idle_since: Option<u64> = None;
        let mut stamp = clock::now();
        while !self.set.stop.load(Ordering::Relaxed) {
            NOW.set(stamp);
            let outcome = catch_unwind(AssertUnwindSafe(|| self.turn(&mut reaped, &mut fired, &wake_buffer)));
            let busy = outcome.unwrap_or_else(|_| {
                add(&self.shared.counters.panics, 1);
                tracing::error!("a callback on reactor {} panicked; the reactor goes on", self.index);
                true
            });
            let after = clock::now();
            let counters = &self.shared.counters;
            add(if busy { &counters.busy_ns } else { &counters.idle_ns }, after.saturating_sub(stamp));
            add(&counters.turns, 1);
            stamp = after;
            if busy {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert(after);
            let spun_enough = match self.set.idle.load().spin_ns(self.set.alone) {
                Some(limit) => after - since >= limit,
                None => false,
            };
            let waits_elsewhere = self.stay_awake.take() || !self.outbox.borrow().is_empty();
            if spun_enough
                && !waits_elsewhere
                && self.polled.borrow().as_ref().is_none_or(|r| r.in_flight() == 0)
            {
                self.sleep(after);
                let woke = clock::now();
                add(&counters.idle_ns, woke.saturating_sub(stamp));
                add(&counters.sleeps, 1);
                stamp = woke;
                idle_since = None;
            } else {
                std::hint::spin_loop();
            }
        }
        self.shut_down(&mut reaped);
        // The wake read may still be pending in the kernel.
        std::mem::forget(wake_buffer);
    }

    /// One turn; true if anything was done.
    fn turn(
        &self,
        reaped: &mut Vec<Reaped>,
        fired: &mut Vec<(Rc<dyn TimerHandler>, u64)>,
        wake_buffer: &Buf,
    ) -> bool {
        let mut busy = false;
        let inbox = &self.set.inboxes[self.index];
        let woken = self.ring.borrow_mut().reap(reaped);
        if woken {
            inbox.awake();
            self.ring.borrow_mut().arm_wake(inbox.event.as_raw_fd(), wake_buffer);
        }
        if let Some(ring) = &mut *self.polled.borrow_mut()
            && ring.in_flight() > 0
        {
            ring.turn(Some(0));
            ring.reap(reaped);
        }
        busy |= !reaped.is_empty();
        for Reaped { owner, tag, done } in reaped.drain(..) {
            owner.ring_done(tag, done);
        }
        for _ in 0..PARCELS_PER_TURN {
            let Some(parcel) = inbox.pop() else { break };
            busy = true;
            parcel.deliver();
        }
        busy |= self.outbox.borrow_mut().retry(&self.set.inboxes);
        if self.wheel.borrow().is_due(NOW.get()) {
            self.wheel.borrow_mut().advance(NOW.get(), fired);
            busy |= !fired.is_empty();
            for (handler, tag) in fired.drain(..) {
                handler.timer_fired(tag);
            }
        }
        busy |= self.poll();
        // Tasks scheduled by tasks run in the same turn, up to a bound: completions chain through several layers.
        for _ in 0..64 {
            let count = self.tasks.borrow().len();
            if count == 0 {
                break;
            }
            busy = true;
            for _ in 0..count {
                let Some(task) = self.tasks.borrow_mut().pop_front() else { break };
                task.run();
            }
        }
        while let Some((lane, slot)) = self.closed_files.borrow_mut().pop() {
            match (lane, &mut *self.polled.borrow_mut()) {
                (Lane::Interrupt, _) => self.ring.borrow_mut().release_file(slot),
                (Lane::Polled, Some(ring)) => ring.release_file(slot),
                (Lane::Polled, None) => {}
            }
        }
        busy | self.ring.borrow_mut().turn(Some(0))
    }

    fn poll(&self) -> bool {
        let mut pollers = self.pollers.borrow_mut();
        pollers.append(&mut self.new_pollers.borrow_mut());
        let gone = std::mem::take(&mut *self.gone_pollers.borrow_mut());
        if !gone.is_empty() {
            pollers.retain(|p| !gone.contains(&p.id));
            lock(&self.shared.pollers).retain(|p| !gone.contains(&p.id));
        }
        let mut busy = false;
        for entry in pollers.iter() {
            let before = clock::now();
            add(&entry.counters.run_count, 1);
            if entry.poller.poll() {
                busy = true;
                add(&entry.counters.busy_count, 1);
                add(&entry.counters.busy_ns, clock::now().saturating_sub(before));
            }
        }
        busy
    }

    fn sleep(&self, now: u64) {
        let inbox = &self.set.inboxes[self.index];
        if !inbox.prepare_sleep() {
            return;
        }
        let due = self.wheel.borrow().next_ns().unwrap_or(u64::MAX);
        let wait = due.saturating_sub(now).clamp(1, LONGEST_SLEEP_NS);
        if due > now && !self.set.stop.load(Ordering::Relaxed) {
            self.ring.borrow_mut().turn(Some(wait));
        }
        inbox.awake();
    }

    /// Ends what is in flight. Buffers that the kernel does not give back in time are leaked, never reused.
    fn shut_down(&self, reaped: &mut Vec<Reaped>) {
        let deadline = Instant::now() + STOP_DEADLINE;
        let polled = self.polled.take().map(RefCell::new);
        for ring in [Some(&self.ring), polled.as_ref()].into_iter().flatten() {
            ring.borrow_mut().cancel_all();
            while ring.borrow().in_flight() > 0 && Instant::now() < deadline {
                ring.borrow_mut().turn(Some(10_000_000));
                ring.borrow_mut().reap(reaped);
                reaped.clear();
            }
            ring.borrow_mut().leak_in_flight();
        }
    }
}

/// A node's reactors. Dropping it stops them.
pub struct ReactorSet {
    set: Arc<SetShared>,
    shared: Vec<Arc<Shared>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Why the reactors can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Core(#[from] cores::CoreError),
    #[error(
        "cannot make a reactor's io_uring: {0}; Linux 5.19 or later with io_uring allowed is needed (kernel.io_uring_disabled = 0)"
    )]
    Ring(std::io::Error),
    #[error("cannot start reactor: {0}")]
    Thread(#[from] std::io::Error),
}

impl ReactorSet {
    /// Starts one pinned thread per core.
    pub fn start(config: &Config) -> Result<Arc<ReactorSet>, StartError> {
        config.cores.check_available()?;
        let list = config.cores.cores().to_vec();
        let inboxes = list.iter().map(|_| Inbox::new()).collect::<Result<Vec<_>, _>>()?;
        let arena = Arena::leak(config.memory_bytes);
        let set = Arc::new(SetShared {
            inboxes,
            idle: AtomicIdleMode::new(config.idle),
            stop: AtomicBool::new(false),
            arena,
            alone: CoreList::available().cores().len() > 2 * list.len(),
        });
        let mut this = ReactorSet { set: set.clone(), shared: Vec::new(), threads: Mutex::new(Vec::new()) };
        for (index, core) in list.into_iter().enumerate() {
            let set = set.clone();
            let (started, wait) = mpsc::sync_channel(1);
            let thread = std::thread::Builder::new().name(format!("reactor-{core}")).spawn(move || {
                if !cores::pin_to(core) {
                    tracing::warn!("reactor {index} could not be pinned to core {core}; it runs unpinned");
                }
                let ring = match Ring::new(arena, Lane::Interrupt) {
                    Ok(ring) => ring,
                    Err(error) => {
                        let _ = started.send(Err(StartError::Ring(error)));
                        return;
                    }
                };
                let pool = Pool::new(arena);
                let shared = Arc::new(Shared {
                    core,
                    counters: Counters::default(),
                    pool: pool.counters(),
                    pollers: Mutex::new(Vec::new()),
                });
                let local = Local {
                    index,
                    ring: RefCell::new(ring),
                    polled: RefCell::new(None),
                    arena,
                    closed_files: RefCell::default(),
                    wheel: RefCell::new(Wheel::new(clock::now())),
                    outbox: RefCell::default(),
                    tasks: RefCell::default(),
                    pollers: RefCell::default(),
                    new_pollers: RefCell::default(),
                    gone_pollers: RefCell::default(),
                    next_poller: Cell::new(1),
                    pool,
                    stay_awake: Cell::new(false),
                    set,
                    shared: shared.clone(),
                };
                LOCAL.with(|l| {
                    let _ = l.set(local);
                });
                let _ = started.send(Ok(shared));
                LOCAL.with(|l| l.get().map(Local::run));
            })?;
            lock(&this.threads).push(thread);
            let shared = wait.recv().map_err(|_| std::io::Error::other("the thread ended at once"))??;
            this.shared.push(shared);
        }
        Ok(Arc::new(this))
    }

    /// How many reactors there are.
    pub fn count(&self) -> usize {
        self.shared.len()
    }

    pub fn arena(&self) -> &'static Arena {
        self.set.arena
    }

    pub fn idle_mode(&self) -> IdleMode {
        self.set.idle.load()
    }

    /// Switches idling at run time.
    pub fn set_idle_mode(&self, mode: IdleMode) {
        self.set.idle.store(mode);
        self.set.inboxes.iter().for_each(Inbox::wake);
    }

    /// Puts a parcel into a reactor's queue from a thread that may wait; at most `deadline`.
    pub fn post(&self, to: usize, parcel: Box<dyn Parcel>, deadline: Duration) -> Result<(), CallError> {
        let end = Instant::now() + deadline;
        let mut parcel = parcel;
        loop {
            if self.set.stop.load(Ordering::Relaxed) {
                return Err(CallError::Stopped);
            }
            match self.set.inboxes[to].push(parcel) {
                Ok(()) => return Ok(()),
                Err(back) => parcel = back,
            }
            if Instant::now() >= end {
                return Err(CallError::Full(deadline));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Runs a closure on reactor `to` and waits for the value that it gives to its [`Reply`], then or later, at most
    /// `deadline`. Not from a reactor: reactors never wait.
    pub fn ask<T: Send + 'static>(
        &self,
        to: usize,
        deadline: Duration,
        f: impl FnOnce(Reply<T>) + Send + 'static,
    ) -> Result<T, CallError> {
        debug_assert!(!in_reactor(), "a reactor must not wait");
        let (sender, receiver) = mpsc::sync_channel(1);
        self.post(to, message::parcel(move || f(Reply(sender))), deadline)?;
        receiver.recv_timeout(deadline).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => CallError::Deadline(deadline),
            mpsc::RecvTimeoutError::Disconnected => CallError::Unanswered,
        })
    }

    /// Runs a closure on reactor `to` and waits for its value.
    pub fn call<T: Send + 'static>(
        &self,
        to: usize,
        deadline: Duration,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        self.ask(to, deadline, move |reply| reply.send(f()))
    }

    /// Runs a closure on every reactor, one after the other, and collects the values.
    pub fn call_all<T: Send + 'static>(
        &self,
        deadline: Duration,
        f: impl Fn() -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, CallError> {
        (0..self.count()).map(|to| self.call(to, deadline, f.clone())).collect()
    }

    pub fn stats(&self) -> Vec<ReactorStats> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.shared
            .iter()
            .map(|s| ReactorStats {
                core: s.core,
                numa_node: cores::numa_node_of(s.core),
                busy_ns: load(&s.counters.busy_ns),
                idle_ns: load(&s.counters.idle_ns),
                turns: load(&s.counters.turns),
                sleeps: load(&s.counters.sleeps),
                panics: load(&s.counters.panics),
            })
            .collect()
    }

    /// Pollers of each reactor.
    pub fn poller_stats(&self) -> Vec<Vec<PollerStats>> {
        let one = |p: &Arc<PollerCounters>| PollerStats {
            name: p.name.clone(),
            run_count: p.run_count.load(Ordering::Relaxed),
            busy_count: p.busy_count.load(Ordering::Relaxed),
            busy_ns: p.busy_ns.load(Ordering::Relaxed),
        };
        self.shared.iter().map(|s| lock(&s.pollers).iter().map(one).collect()).collect()
    }

    pub fn pool_stats(&self) -> Vec<PoolStats> {
        self.shared.iter().map(|s| s.pool.snapshot()).collect()
    }

    /// Stops the reactors and waits for their threads. What they hold is dropped.
    pub fn stop(&self) {
        self.set.stop.store(true, Ordering::Relaxed);
        for thread in lock(&self.threads).drain(..) {
            self.set.inboxes.iter().for_each(Inbox::wake);
            let _ = thread.join();
        }
    }
}

impl Drop for ReactorSet {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::ring;
    use crate::reactor::{Done, RingFile, RingOwner};

    fn reactors(count: usize) -> Arc<ReactorSet> {
        let config = Config {
            cores: CoreList::available().first(count),
            idle: IdleMode::Adaptive,
            memory_bytes: 64 << 20,
        };
        ReactorSet::start(&config).expect("reactors")
    }
    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn calls_run_on_their_reactor_and_give_back_values() {
        let set = reactors(2);
        let indices = set.call_all(SOON, core_index).expect("call");
        assert_eq!(indices, (0..set.count()).collect::<Vec<_>>());
    }

    struct Pinger(RefCell<Option<Reply<u64>>>);
    impl TimerHandler for Pinger {
        fn timer_fired(self: Rc<Self>, tag: u64) {
            if let Some(reply) = self.0.borrow_mut().take() {
                reply.send(tag);
            }
        }
    }

    #[test]
    fn a_timer_wakes_a_sleeping_reactor() {
        let set = reactors(1);
        let start = Instant::now();
        let tag = set.ask(0, SOON, |reply| {
            timer_after(Duration::from_millis(30), Rc::new(Pinger(RefCell::new(Some(reply)))), 7);
        });
        assert_eq!(tag, Ok(7));
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn a_panic_in_a_callback_costs_only_that_callback() {
        let set = reactors(1);
        let lost = set.call(0, SOON, || -> u32 { panic!("deliberate") });
        assert_eq!(lost, Err(CallError::Unanswered));
        assert_eq!(set.call(0, SOON, || 5), Ok(5));
        assert_eq!(set.stats()[0].panics, 1);
    }

    #[test]
    fn an_idle_adaptive_reactor_sleeps() {
        let set = reactors(1);
        std::thread::sleep(Duration::from_millis(200));
        let before = set.stats()[0];
        std::thread::sleep(Duration::from_millis(500));
        let after = set.stats()[0];
        assert!(after.sleeps - before.sleeps < 20, "{before:?} {after:?}");
        assert!(after.turns - before.turns < 10_000, "{before:?} {after:?}");
    }

    type Received = (u32, Vec<u8>);
    struct Echo {
        reply: RefCell<Option<Reply<Received>>>,
        buf: Buf,
    }
    impl RingOwner for Echo {
        fn ring_done(self: Rc<Self>, tag: u64, done: Done) {
            assert!(done.result.is_ok(), "{done:?}");
            if tag == 1 {
                let n = done.result.unwrap_or(0);
                if let Some(reply) = self.reply.borrow_mut().take() {
                    reply.send((n, self.buf.with(|b| b[..n as usize].to_vec())));
                }
            }
        }
    }

    #[test]
    fn sockets_send_vectors_and_receive_exact_lengths() {
        let set = reactors(1);
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("pair");
        let got = set.ask(0, SOON, move |reply| {
            let (a, b): (std::os::fd::OwnedFd, std::os::fd::OwnedFd) = (a.into(), b.into());
            let a = RingFile::new(Arc::new(a), Lane::Interrupt);
            let b = RingFile::new(Arc::new(b), Lane::Interrupt);
            let part = alloc(4096).expect("pool");
            part.write_at(0, b"hello world");
            let buf = alloc(11).expect("pool");
            let owner = Rc::new(Echo { reply: RefCell::new(Some(reply)), buf: buf.clone() });
            ring::recv(&b, buf, true, owner.clone(), 1);
            ring::send(&a, [part.slice(0, 5), part.slice(5, 6)].into_iter(), owner, 0);
        });
        assert_eq!(got, Ok((11, b"hello world".to_vec())));
    }

    #[test]
    fn idling_switches_at_run_time() {
        let set = reactors(1);
        set.set_idle_mode(IdleMode::Spin);
        std::thread::sleep(Duration::from_millis(50));
        let before = set.stats()[0].turns;
        std::thread::sleep(Duration::from_millis(50));
        assert!(set.stats()[0].turns - before > 1000);
        set.set_idle_mode(IdleMode::Interrupt);
        assert_eq!(set.call(0, SOON, || 1), Ok(1));
    }
}
