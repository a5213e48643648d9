//! A subsystem's controllers, shared by all reactors: who gave out which controller identifier, and which queues a
//! controller has.
//!
//! Locked for moments, at Connect, disconnect, reset and for listings: never per command.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::info::{ControllerInfo, QueueInfo};
use super::options::ListenAddress;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names a connection: the reactor and its key there. Keys are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    pub reactor: usize,
    pub key: u64,
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub nqn: String,
    pub id: [u8; 16],
}

/// One connected queue.
#[derive(Clone, Debug)]
pub struct QueueEntry {
    pub connection: ConnectionId,
    pub sqsize: u16,
    pub peer: SocketAddr,
}

/// The part of a controller that other reactors need.
pub struct ControllerShared {
    pub cntlid: u16,
    /// Of the subsystem it belongs to; `None` for discovery controllers.
    pub subsystem: Option<u64>,
    pub host: Host,
    pub portal: u64,
    pub listener: ListenAddress,
    pub max_io_queues: u16,
    state: Mutex<ControllerState>,
}

struct ControllerState {
    /// CC.EN, as far as I/O queues are concerned.
    enabled: bool,
    dead: bool,
    queues: BTreeMap<u16, QueueEntry>,
}

/// Why a queue cannot join a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// Not enabled, or being taken down.
    NotReady,
    /// The queue identifier is out of range or in use.
    BadQueueId,
}

impl ControllerShared {
    /// Adds an I/O queue.
    pub fn join(&self, qid: u16, entry: QueueEntry) -> Result<(), JoinError> {
        let mut state = lock(&self.state);
        if state.dead || !state.enabled {
            return Err(JoinError::NotReady);
        }
        if qid == 0 || qid > self.max_io_queues || state.queues.contains_key(&qid) {
            return Err(JoinError::BadQueueId);
        }
        state.queues.insert(qid, entry);
        Ok(())
    }

    /// Takes a queue out when its connection has ended.
    pub fn leave(&self, qid: u16, connection: ConnectionId) {
        let mut state = lock(&self.state);
        if state.queues.get(&qid).is_some_and(|q| q.connection == connection) {
            state.queues.remove(&qid);
        }
    }

    pub fn set_enabled(&self, enabled: bool) {
        lock(&self.state).enabled = enabled;
    }

    /// No queue can join any more.
    pub fn kill(&self) {
        lock(&self.state).dead = true;
    }

    /// Connections of the I/O queues.
    pub fn io_connections(&self) -> Vec<ConnectionId> {
        lock(&self.state).queues.iter().filter(|(qid, _)| **qid != 0).map(|(_, q)| q.connection).collect()
    }

    pub fn io_connection(&self, qid: u16) -> Option<ConnectionId> {
        lock(&self.state).queues.get(&qid).map(|q| q.connection)
    }

    pub fn has_io_queues(&self) -> bool {
        lock(&self.state).queues.keys().any(|&qid| qid != 0)
    }
}

/// All controllers of one subsystem.
pub struct Directory {
    min_cntlid: u16,
    max_cntlid: u16,
    table: Mutex<Table>,
}

struct Table {
    next: u16,
    controllers: BTreeMap<u16, Arc<ControllerShared>>,
}

/// What a new controller is made of.
pub struct NewController {
    pub subsystem: Option<u64>,
    pub host: Host,
    pub portal: u64,
    pub listener: ListenAddress,
    pub max_io_queues: u16,
    pub admin: QueueEntry,
}

impl Directory {
    pub fn new(min_cntlid: u16, max_cntlid: u16) -> Arc<Directory> {
        let table = Table { next: min_cntlid, controllers: BTreeMap::new() };
        Arc::new(Directory { min_cntlid, max_cntlid, table: Mutex::new(table) })
    }

    /// Makes a controller with a free identifier, round robin so that a stale one is not met soon; `None` when all
    /// are in use.
    pub fn create(&self, new: NewController) -> Option<Arc<ControllerShared>> {
        let mut table = lock(&self.table);
        let span = u32::from(self.max_cntlid - self.min_cntlid) + 1;
        let start = u32::from(table.next - self.min_cntlid);
        let cntlid = (0..span)
            .map(|i| self.min_cntlid + ((start + i) % span) as u16)
            .find(|id| !table.controllers.contains_key(id))?;
        table.next = if cntlid == self.max_cntlid { self.min_cntlid } else { cntlid + 1 };
        let controller = Arc::new(ControllerShared {
            cntlid,
            subsystem: new.subsystem,
            host: new.host,
            portal: new.portal,
            listener: new.listener,
            max_io_queues: new.max_io_queues,
            state: Mutex::new(ControllerState {
                enabled: false,
                dead: false,
                queues: BTreeMap::from([(0, new.admin)]),
            }),
        });
        table.controllers.insert(cntlid, controller.clone());
        Some(controller)
    }

    pub fn get(&self, cntlid: u16) -> Option<Arc<ControllerShared>> {
        lock(&self.table).controllers.get(&cntlid).cloned()
    }

    /// Frees a controller's identifier.
    pub fn remove(&self, controller: &Arc<ControllerShared>) {
        let mut table = lock(&self.table);
        if table.controllers.get(&controller.cntlid).is_some_and(|c| Arc::ptr_eq(c, controller)) {
            table.controllers.remove(&controller.cntlid);
        }
    }

    pub fn controllers(&self) -> Vec<ControllerInfo> {
        let table = lock(&self.table);
        let info = |c: &Arc<ControllerShared>| {
            let state = lock(&c.state);
            ControllerInfo {
                cntlid: c.cntlid,
                hostnqn: c.host.nqn.clone(),
                hostid: c.host.id,
                num_io_queues: state.queues.keys().filter(|&&qid| qid != 0).count(),
                listener: c.listener.clone(),
                enabled: state.enabled,
            }
        };
        table.controllers.values().map(info).collect()
    }

    pub fn queues(&self) -> Vec<QueueInfo> {
        let table = lock(&self.table);
        let mut list = Vec::new();
        for c in table.controllers.values() {
            for (&qid, q) in &lock(&c.state).queues {
                list.push(QueueInfo {
                    cntlid: c.cntlid,
                    qid,
                    sqsize: q.sqsize,
                    reactor: q.connection.reactor,
                    hostnqn: c.host.nqn.clone(),
                    listener: c.listener.clone(),
                    peer: ListenAddress::of(q.peer),
                });
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> NewController {
        let address: SocketAddr = ([127, 0, 0, 1], 4420).into();
        let connection = ConnectionId { reactor: 0, key: 1 };
        NewController {
            subsystem: Some(1),
            host: Host { nqn: "nqn.2014-08.org.nvmexpress:a".into(), id: [1; 16] },
            portal: 1,
            listener: ListenAddress::of(address),
            max_io_queues: 2,
            admin: QueueEntry { connection, sqsize: 31, peer: address },
        }
    }

    #[test]
    fn identifiers_are_given_round_robin_within_the_range_until_none_is_left() {
        let directory = Directory::new(10, 12);
        let first = directory.create(new()).expect("10");
        let second = directory.create(new()).expect("11");
        assert_eq!((first.cntlid, second.cntlid), (10, 11));
        directory.remove(&first);
        assert_eq!(directory.create(new()).expect("12").cntlid, 12);
        assert_eq!(directory.create(new()).expect("10 again").cntlid, 10);
        assert!(directory.create(new()).is_none());
    }

    #[test]
    fn queues_join_only_an_enabled_controller_and_each_identifier_once() {
        let directory = Directory::new(1, 10);
        let c = directory.create(new()).expect("controller");
        let entry = new().admin;
        assert_eq!(c.join(1, entry.clone()), Err(JoinError::NotReady));
        c.set_enabled(true);
        assert_eq!(c.join(1, entry.clone()), Ok(()));
        assert_eq!(c.join(1, entry.clone()), Err(JoinError::BadQueueId));
        assert_eq!(c.join(3, entry.clone()), Err(JoinError::BadQueueId));
        assert_eq!(c.join(0, entry.clone()), Err(JoinError::BadQueueId));
        assert!(c.has_io_queues());
        c.leave(1, entry.connection);
        assert!(!c.has_io_queues());
        c.kill();
        assert_eq!(c.join(1, entry), Err(JoinError::NotReady));
    }
}
