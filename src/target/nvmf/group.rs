//! One reactor's part of the target: its connections, its portals, the view it works by.
//!
//! Invariants: everything here is touched on its reactor only; a connection stays in the table until the socket, the
//! ring and the bdevs are done with it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hashbrown::HashMap;

use super::directory::Directory;
use super::info::GroupStats;
use super::options::ListenAddress;
use super::tcp::{Connection, Portal};
use super::view::View;
use crate::reactor::{self, TimerHandler};

/// How soon commands that found no free buffer try again.
const BUFFER_RETRY: Duration = Duration::from_micros(200);

/// What all groups share.
pub struct Shared {
    /// Controllers of the discovery subsystem.
    pub discovery: Arc<Directory>,
    /// Connections of the node.
    pub connections: AtomicU32,
}

thread_local! {
    static GROUP: RefCell<Option<Rc<Group>>> = const { RefCell::new(None) };
}

pub struct Group {
    pub shared: Arc<Shared>,
    view: RefCell<Arc<View>>,
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    portals: RefCell<HashMap<u64, Rc<Portal>>>,
    next_key: Cell<u64>,
    /// Who gets the next connection that comes in at a portal of this reactor.
    next_reactor: Cell<usize>,
    /// Connections with commands that wait for a buffer, in order.
    waiting: RefCell<VecDeque<Weak<Connection>>>,
    retry_armed: Cell<bool>,
    admin_queues: Cell<u64>,
    io_queues: Cell<u64>,
    current_admin: Cell<u64>,
    current_io: Cell<u64>,
    pub completed: Cell<u64>,
}

/// The calling reactor's group. None before `start`: messages may outlive a target in tests.
fn group() -> Option<Rc<Group>> {
    GROUP.with(|g| g.borrow().clone())
}

/// Makes the calling reactor's group.
pub fn start(view: Arc<View>, shared: Arc<Shared>) {
    let group = Group {
        shared,
        view: RefCell::new(view),
        connections: RefCell::default(),
        portals: RefCell::default(),
        next_key: Cell::new(1),
        next_reactor: Cell::new(reactor::core_index()),
        waiting: RefCell::default(),
        retry_armed: Cell::new(false),
        admin_queues: Cell::new(0),
        io_queues: Cell::new(0),
        current_admin: Cell::new(0),
        current_io: Cell::new(0),
        completed: Cell::new(0),
    };
    GROUP.with(|g| *g.borrow_mut() = Some(Rc::new(group)));
}

/// Takes over a new view and tells every connection.
pub fn apply(view: Arc<View>) {
    let Some(group) = group() else { return };
    if group.view.borrow().sequence >= view.sequence {
        return;
    }
    *group.view.borrow_mut() = view.clone();
    for connection in group.all() {
        connection.apply(view.clone());
    }
}

/// Sizes or access states of namespaces changed: controllers look and tell their hosts.
pub fn refresh() {
    let Some(group) = group() else { return };
    group.all().iter().for_each(Connection::refresh);
}

/// Begins to accept connections on a listening socket.
pub fn open_portal(id: u64, socket: OwnedFd, address: ListenAddress) {
    let Some(group) = group() else { return };
    let portal = Portal::open(id, socket, address);
    group.portals.borrow_mut().insert(id, portal);
}

pub fn close_portal(id: u64) {
    let Some(group) = group() else { return };
    let portal = group.portals.borrow_mut().remove(&id);
    if let Some(portal) = portal {
        portal.close();
    }
}

/// A connection came in at a portal of this reactor: it goes to the reactors in turn.
pub fn accepted(socket: OwnedFd, portal: u64) {
    let Some(group) = group() else { return };
    let to = (group.next_reactor.get() + 1) % reactor::count();
    group.next_reactor.set(to);
    if to == reactor::core_index() {
        adopt(socket, portal);
    } else {
        reactor::spawn_call(to, move || adopt(socket, portal));
    }
}

fn adopt(socket: OwnedFd, portal: u64) {
    let Some(group) = group() else { return };
    let limit = group.view.borrow().transport.max_connections;
    if group.shared.connections.fetch_add(1, Ordering::Relaxed) >= limit {
        group.shared.connections.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!("a connection was refused: there are {limit} already (max_connections)");
        return;
    }
    let key = group.next_key.get();
    group.next_key.set(key + 1);
    let view = group.view.borrow().clone();
    match Connection::open(&group, key, socket, portal, view) {
        Ok(connection) => {
            group.connections.borrow_mut().insert(key, connection);
        }
        Err(error) => {
            group.shared.connections.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("a connection was refused: {error}");
        }
    }
}

/// Ends one connection of this reactor, if it is still there.
pub fn disconnect(key: u64) {
    if let Some(connection) = find(key) {
        connection.close("its controller ended it");
    }
}

/// Aborts a command of one connection of this reactor.
pub fn abort(key: u64, cid: u16) -> bool {
    find(key).is_some_and(|connection| connection.abort(cid))
}

/// Brings the outcome of an abort back to the Abort command.
pub fn abort_answered(key: u64, slot: u16, aborted: bool) {
    if let Some(connection) = find(key) {
        connection.abort_answered(slot, aborted);
    }
}

fn find(key: u64) -> Option<Rc<Connection>> {
    group()?.connections.borrow().get(&key).cloned()
}

/// Lets every admin connection of this reactor, or every other one, answer what it has begun and then close.
pub fn drain_connections(admin: bool) {
    let Some(group) = group() else { return };
    group.all().iter().filter(|c| c.is_admin() == admin).for_each(Connection::drain);
}

/// Closes every connection of this reactor at once.
pub fn close_connections() {
    let Some(group) = group() else { return };
    group.all().iter().for_each(|c| c.close("the target shuts down"));
}

/// Admin connections, or all others.
pub fn connection_count(admin: bool) -> usize {
    group().map_or(0, |g| g.all().iter().filter(|c| c.is_admin() == admin).count())
}

pub fn stats() -> GroupStats {
    let Some(group) = group() else { return GroupStats::default() };
    GroupStats {
        core: reactor::core_index(),
        admin_qpairs: group.admin_queues.get(),
        io_qpairs: group.io_queues.get(),
        current_admin_qpairs: group.current_admin.get(),
        current_io_qpairs: group.current_io.get(),
        pending_bdev_io: group.all().iter().map(|c| c.commands_without_buffer() as u64).sum(),
        completed_nvme_io: group.completed.get(),
    }
}

fn add(cell: &Cell<u64>, n: i64) {
    cell.set(cell.get().saturating_add_signed(n));
}

impl Group {
    fn all(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    /// A queue was connected on this reactor.
    pub fn queue_connected(&self, admin: bool) {
        let (total, current) = match admin {
            true => (&self.admin_queues, &self.current_admin),
            false => (&self.io_queues, &self.current_io),
        };
        add(total, 1);
        add(current, 1);
    }

    /// A connection is done with; `queue` says what it was.
    pub fn remove(&self, key: u64, queue: Option<bool>) {
        self.connections.borrow_mut().remove(&key);
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        match queue {
            Some(true) => add(&self.current_admin, -1),
            Some(false) => add(&self.current_io, -1),
            None => {}
        }
    }

    /// Lets a connection try again for buffers soon, after those that wait already.
    pub fn wait_for_buffer(self: &Rc<Self>, connection: &Rc<Connection>) {
        self.waiting.borrow_mut().push_back(Rc::downgrade(connection));
        self.arm_retry();
    }

    /// Whether somebody waits for a buffer, so that newcomers must queue.
    pub fn buffers_are_short(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    fn arm_retry(self: &Rc<Self>) {
        if !self.retry_armed.replace(true) {
            reactor::timer_after(BUFFER_RETRY, self.clone(), 0);
        }
    }
}

impl TimerHandler for Group {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        self.retry_armed.set(false);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        let mut waiting = waiting.into_iter().filter_map(|w| w.upgrade());
        // In order, until one still finds no memory: it and those behind it keep their places.
        for connection in waiting.by_ref() {
            if !connection.retry_buffers() {
                self.waiting.borrow_mut().push_back(Rc::downgrade(&connection));
                break;
            }
        }
        self.waiting.borrow_mut().extend(waiting.map(|c| Rc::downgrade(&c)));
        if self.buffers_are_short() {
            self.arm_retry();
        }
    }
}
