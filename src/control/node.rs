//! The running node as the methods see it: its state, and what the families of methods work on.
//!
//! Shared by the threads that serve clients and the main thread; nothing here is touched by a reactor.

use super::error::RpcError;
use super::events::Events;
use super::logging::Log;
use super::methods::{self, Sync};
use super::registry::Registry;
use crate::bdev::nvme::NvmeHost;
use crate::bdev::{Registry as Bdevs, RegistryEvent};
use crate::reactor::ReactorSet;
use crate::replication::group::Groups;
use crate::target::nvmf::{Target, TargetError};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What methods are told apart by: see [`super::registry::Callable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not configured yet.
    Startup,
    /// Serving.
    Runtime,
}

/// The node's way through life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Waits for `framework_start_init`.
    Waiting,
    /// Reads its configuration.
    Starting,
    /// Serves.
    Running,
    /// Ends.
    Stopping,
}

/// One running node.
pub struct Node {
    registry: Registry,
    life: Mutex<Life>,
    changed: Condvar,
    events: Arc<Events>,
    log: Log,
    reactors: Arc<ReactorSet>,
    bdevs: Arc<Bdevs>,
    nvme_host: NvmeHost,
    groups: Groups,
    started_groups: Mutex<BTreeMap<String, Sync>>,
    nvmf: Arc<Target>,
}

/// Why a node cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The NVMe-oF target does not start.
    #[error(transparent)]
    Nvmf(#[from] TargetError),
    /// The thread that follows other targets' namespaces does not start.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Node {
    /// A node that has not started.
    pub fn new(log: Log, reactors: Arc<ReactorSet>) -> Result<Arc<Node>, NodeError> {
        let (events, bdevs) = (Arc::<Events>::default(), Bdevs::new());
        let history = events.clone();
        // The registry is new, so nobody else observes it.
        bdevs.observe(move |event, bdev| {
            let kind = match event {
                RegistryEvent::Added => "bdev_register",
                RegistryEvent::Removed => "bdev_unregister",
            };
            history.post(kind, bdev.name());
        });
        let nvme_host = NvmeHost::new(bdevs.clone(), reactors.clone())?;
        let history = events.clone();
        let groups =
            Groups::new(reactors.clone(), bdevs.clone(), move |kind, context| history.post(kind, context));
        let nvmf = Target::new(reactors.clone(), bdevs.clone())?;
        Ok(Arc::new(Node {
            registry: Registry::new(methods::families()),
            life: Mutex::new(Life::Waiting),
            changed: Condvar::new(),
            events,
            log,
            reactors,
            bdevs,
            nvme_host,
            groups,
            started_groups: Mutex::default(),
            nvmf,
        }))
    }

    /// Its methods.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Its history of events.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Its log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its reactors.
    pub fn reactors(&self) -> &Arc<ReactorSet> {
        &self.reactors
    }

    /// Its block devices.
    pub fn bdevs(&self) -> &Arc<Bdevs> {
        &self.bdevs
    }

    /// The targets that it uses.
    pub fn nvme_host(&self) -> &NvmeHost {
        &self.nvme_host
    }

    /// Its replication groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Those that were started and not stopped, and how their disks were made equal.
    pub fn started_groups(&self) -> MutexGuard<'_, BTreeMap<String, Sync>> {
        // Each change is one insertion or removal: whole whatever panicked.
        self.started_groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its NVMe-oF target.
    pub fn nvmf(&self) -> &Arc<Target> {
        &self.nvmf
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        // One word: whole whatever panicked.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, life: Life) {
        *self.lock() = life;
        self.changed.notify_all();
    }

    fn wait_while(&self, condition: impl Fn(Life) -> bool) -> Life {
        *self.changed.wait_while(self.lock(), |life| condition(*life)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Its state, as far as methods are concerned.
    pub fn state(&self) -> State {
        match *self.lock() {
            Life::Waiting | Life::Starting => State::Startup,
            Life::Running | Life::Stopping => State::Runtime,
        }
    }

    /// Lets the start begin: the command line does, or `framework_start_init` for a node told to wait.
    pub fn begin_start(&self) {
        let mut life = self.lock();
        if *life == Life::Waiting {
            *life = Life::Starting;
        }
        drop(life);
        self.changed.notify_all();
    }

    /// Waits until the start may begin; false if the node is told to end instead.
    pub fn wait_for_start(&self) -> bool {
        self.wait_while(|life| life == Life::Waiting) != Life::Stopping
    }

    /// The configuration is in effect: every method may be called.
    pub fn started(&self) {
        let mut life = self.lock();
        if *life == Life::Starting {
            *life = Life::Running;
        }
        drop(life);
        self.changed.notify_all();
    }

    /// The node ends: whoever waits for it to start is told so.
    pub fn stopping(&self) {
        self.set(Life::Stopping);
    }

    /// Whether the node is ending.
    pub fn is_stopping(&self) -> bool {
        *self.lock() == Life::Stopping
    }

    /// Waits until the node is told to end.
    pub fn wait_stopping(&self) {
        self.wait_while(|life| life != Life::Stopping);
    }

    /// Waits until every method may be called.
    pub fn wait_started(&self) -> Result<(), RpcError> {
        match self.wait_while(|life| matches!(life, Life::Waiting | Life::Starting)) {
            Life::Stopping => Err(RpcError::invalid_state("the node is ending")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::env::CoreList;
    use crate::reactor::{Config, IdleMode};

    /// A node with one reactor, waiting to be started.
    pub fn waiting_node() -> Arc<Node> {
        let reactors = ReactorSet::start(&Config {
            cores: CoreList::available().first(1),
            idle: IdleMode::Interrupt,
            memory_bytes: 64 << 20,
        });
        Node::new(Log::detached(), reactors.unwrap()).unwrap()
    }

    #[test]
    fn a_node_told_to_end_before_it_starts_never_counts_as_started() {
        let node = waiting_node();
        node.stopping();
        node.begin_start();
        node.started();
        assert!(node.is_stopping());
        assert!(!node.wait_for_start());
        assert_eq!(node.wait_started().unwrap_err().code, -1);
    }

    #[test]
    fn methods_are_told_the_state_they_are_called_in() {
        let node = waiting_node();
        assert_eq!(node.state(), State::Startup);
        node.begin_start();
        assert!(node.wait_for_start());
        assert_eq!(node.state(), State::Startup);
        node.started();
        assert_eq!(node.state(), State::Runtime);
        node.wait_started().unwrap();
    }
}
