//! The controllers of a node, for the control thread: attach, detach, list; and the thread that follows their
//! namespaces.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::controller::{self, News};
use super::device;
use super::error::QueueError;
use super::facts::{ControllerFacts, NamespaceFacts};
use super::options::ControllerOptions;
use super::shared::{Life, Shared};
use crate::bdev::{Bdev, BdevError, Registry};
use crate::reactor::ReactorSet;

/// A whole bring-up: a dozen commands, each with its own deadline, and a controller that takes its time to get ready.
const ATTACH_DEADLINE: Duration = Duration::from_secs(30);
/// An orderly shutdown and the closing of the queues.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);
/// The most controllers of a node: a bound against a control plane that runs wild.
pub const MAX_CONTROLLERS: usize = 1024;
/// Longest name: it leaves room for `n<nsid>` in a bdev's name.
const MAX_NAME_BYTES: usize = 240;

struct Attached {
    shared: Arc<Shared>,
    bdevs: Vec<(NamespaceFacts, Arc<Bdev>)>,
}

struct Inner {
    registry: Arc<Registry>,
    reactors: Arc<ReactorSet>,
    attached: Mutex<Vec<Attached>>,
    next_home: AtomicUsize,
}

/// What there is to know of a controller.
#[derive(Debug, Clone)]
pub struct ControllerInfo {
    pub options: ControllerOptions,
    pub life: Life,
    pub facts: ControllerFacts,
    /// How often it was lost.
    pub reconnects: u64,
    pub bdevs: Vec<String>,
}

/// The controllers of a node. Any thread but a reactor.
pub struct NvmeHost {
    inner: Arc<Inner>,
    news: mpsc::Sender<News>,
}

impl NvmeHost {
    pub fn new(registry: Arc<Registry>, reactors: Arc<ReactorSet>) -> std::io::Result<NvmeHost> {
        let inner = Arc::new(Inner {
            registry,
            reactors,
            attached: Mutex::default(),
            next_home: AtomicUsize::new(0),
        });
        let (news, receiver) = mpsc::channel();
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new().name("nvme-news".to_string()).spawn(move || follow(&weak, &receiver))?;
        Ok(NvmeHost { inner, news })
    }

    /// Connects to a controller and makes its namespaces bdevs; gives their names.
    pub fn attach(&self, mut options: ControllerOptions) -> Result<Vec<String>, BdevError> {
        options.check()?;
        let name = options.name.clone();
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(BdevError::BadName(name));
        }
        let reactors = &self.inner.reactors;
        if options.num_io_queues == 0 {
            options.num_io_queues = u16::try_from(reactors.count()).unwrap_or(u16::MAX);
        }
        let address = options.address;
        let home = self.inner.next_home.fetch_add(1, Ordering::Relaxed) % reactors.count();
        let shared = Arc::new(Shared::new(options, home));
        {
            let mut attached = self.inner.attached();
            if attached.iter().any(|a| a.shared.options.name == name) {
                return Err(BdevError::Exists(name));
            }
            if attached.len() >= MAX_CONTROLLERS {
                return Err(BdevError::Invalid(format!("a node has at most {MAX_CONTROLLERS} controllers")));
            }
            // The name is taken from now on, and news finds its controller.
            attached.push(Attached { shared: shared.clone(), bdevs: Vec::new() });
        }
        let (for_home, news) = (shared.clone(), self.news.clone());
        let started =
            reactors.ask(home, ATTACH_DEADLINE, move |reply| controller::start(for_home, news, reply));
        let outcome = match started {
            Ok(Ok(namespaces)) => self.inner.update(shared.serial, &namespaces),
            Ok(Err(why)) => Err(attach_error(&name, address, &why)),
            Err(error) => Err(error.into()),
        };
        if outcome.is_err() {
            // What was made so far goes again; the attach's own error is what the caller must hear.
            let _ = self.detach(&name);
        }
        outcome
    }

    /// Removes a controller's bdevs, under load if need be, and ends the connection in order. Refused while a bdev is
    /// claimed.
    pub fn detach(&self, name: &str) -> Result<(), BdevError> {
        self.inner.detach(name)
    }

    /// Ends all connections in order: the node stops.
    pub fn stop(&self) {
        let attached = std::mem::take(&mut *self.inner.attached());
        for one in attached {
            self.inner.end(&one);
        }
    }

    /// All controllers, in the order in which they were attached.
    pub fn controllers(&self) -> Vec<ControllerInfo> {
        let attached = self.inner.attached();
        let info = |a: &Attached| {
            let inside = a.shared.inside();
            ControllerInfo {
                options: a.shared.options.clone(),
                life: inside.life,
                facts: inside.facts.clone(),
                reconnects: inside.reconnects,
                bdevs: a.bdevs.iter().map(|(_, b)| b.name().to_string()).collect(),
            }
        };
        attached.iter().map(info).collect()
    }
}

fn attach_error(name: &str, address: std::net::SocketAddr, why: &QueueError) -> BdevError {
    BdevError::System {
        what: format!("cannot attach controller `{name}` at {address}"),
        reason: why.to_string(),
        errno: why.errno(),
    }
}

/// Follows the namespaces of all controllers until the host is gone.
fn follow(inner: &Weak<Inner>, news: &mpsc::Receiver<News>) {
    while let Ok(one) = news.recv() {
        let Some(inner) = inner.upgrade() else { return };
        match one {
            News::Namespaces { serial, namespaces } => {
                if let Err(error) = inner.update(serial, &namespaces) {
                    tracing::error!("a changed namespace cannot be used: {error}");
                }
            }
            News::Lost { serial } => {
                let position = inner.attached().iter().position(|a| a.shared.serial == serial);
                if let Some(at) = position {
                    let lost = inner.attached().remove(at);
                    inner.pull_out(&lost.bdevs);
                }
            }
        }
    }
}

impl Inner {
    fn attached(&self) -> MutexGuard<'_, Vec<Attached>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the bdevs what the namespaces are; gives the names of all.
    fn update(&self, serial: u64, namespaces: &[NamespaceFacts]) -> Result<Vec<String>, BdevError> {
        let (shared, before) = match self.attached().iter_mut().find(|a| a.shared.serial == serial) {
            Some(one) => (one.shared.clone(), std::mem::take(&mut one.bdevs)),
            None => return Ok(Vec::new()),
        };
        let mut now = Vec::new();
        let mut gone = Vec::new();
        let mut problem = None;
        for (facts, bdev) in before {
            match namespaces.iter().find(|n| n.nsid == facts.nsid && is_same(&facts, n)) {
                Some(new) => {
                    if new.num_blocks != bdev.num_blocks() {
                        problem = bdev.resize(new.num_blocks).err().or(problem);
                    }
                    bdev.set_access(new.access);
                    now.push((new.clone(), bdev));
                }
                None => gone.push((facts, bdev)),
            }
        }
        self.pull_out(&gone);
        for new in namespaces {
            if now.iter().any(|(n, _)| n.nsid == new.nsid) {
                continue;
            }
            match self.make(&shared, new) {
                Ok(bdev) => now.push((new.clone(), bdev)),
                Err(error) => problem = Some(error),
            }
        }
        let names = now.iter().map(|(_, b)| b.name().to_string()).collect();
        match self.attached().iter_mut().find(|a| a.shared.serial == serial) {
            Some(one) => one.bdevs = now,
            None => self.pull_out(&now),
        }
        problem.map_or(Ok(names), Err)
    }

    fn make(&self, shared: &Arc<Shared>, facts: &NamespaceFacts) -> Result<Arc<Bdev>, BdevError> {
        // A namespace that this node exports itself, or has by another path, keeps its identifier for one of them.
        let uuid = facts.uuid.filter(|u| self.registry.get(&u.to_string()).is_err());
        let bdev = device::create(shared, facts, uuid.unwrap_or_else(uuid::Uuid::new_v4))?;
        self.registry.add(bdev.clone())?;
        Ok(bdev)
    }

    fn pull_out(&self, bdevs: &[(NamespaceFacts, Arc<Bdev>)]) {
        for (_, bdev) in bdevs {
            if let Err(error) = self.registry.pull_out(bdev, &self.reactors) {
                tracing::error!("bdev {}: {error}", bdev.name());
            }
        }
    }

    fn detach(&self, name: &str) -> Result<(), BdevError> {
        let one = {
            let mut attached = self.attached();
            let position = attached.iter().position(|a| a.shared.options.name == name);
            let at = position.ok_or_else(|| BdevError::NotFound(name.to_string()))?;
            let claimed = attached[at].bdevs.iter().find_map(|(_, b)| Some((b, b.claimant()?)));
            if let Some((bdev, claimant)) = claimed {
                return Err(BdevError::Claimed { name: bdev.name().to_string(), claimant });
            }
            attached.remove(at)
        };
        self.pull_out(&one.bdevs);
        self.end(&one);
        Ok(())
    }

    fn end(&self, one: &Attached) {
        let (serial, home) = (one.shared.serial, one.shared.home);
        let ended = self.reactors.ask(home, DETACH_DEADLINE, move |reply| controller::stop(serial, reply));
        if let Err(error) = ended {
            tracing::warn!("controller {} was not shut down in order: {error}", one.shared.options.name);
        }
    }
}

/// The same namespace as before, maybe with another size: another block size or identity is another one.
fn is_same(before: &NamespaceFacts, now: &NamespaceFacts) -> bool {
    before.block_size == now.block_size && before.uuid == now.uuid
}
