//! The devices of a node, by name.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use super::device::Bdev;
use super::error::BdevError;
use super::lifecycle::end_removed;
use crate::reactor::ReactorSet;

/// The most bdevs of a node: far beyond any use, a bound against a control plane that runs wild.
pub const MAX_BDEVS: usize = 16384;
/// How long each reactor may take to hear that a device is gone.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// What happens to the list of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryEvent {
    Added,
    Removed,
}

type Observer = Box<dyn Fn(RegistryEvent, &Bdev) + Send + Sync>;

/// Names to devices. Any thread; never on the data path.
#[derive(Default)]
pub struct Registry {
    bdevs: RwLock<Vec<Arc<Bdev>>>,
    observer: OnceLock<Observer>,
}

impl Registry {
    pub fn new() -> Arc<Registry> {
        Arc::default()
    }

    /// Calls `f` after every addition and removal, on the thread that made it; `f` must not block. There is one
    /// observer, the first that asks: false for a later one.
    pub fn observe(&self, f: impl Fn(RegistryEvent, &Bdev) + Send + Sync + 'static) -> bool {
        self.observer.set(Box::new(f)).is_ok()
    }

    fn tell(&self, event: RegistryEvent, bdev: &Bdev) {
        if let Some(observer) = self.observer.get() {
            observer(event, bdev);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Bdev>>> {
        self.bdevs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Bdev>>> {
        self.bdevs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a device known. Its name, aliases and UUID must be new; if they are not, it lets go of what it holds.
    pub fn add(&self, bdev: Arc<Bdev>) -> Result<(), BdevError> {
        match self.insert(&bdev) {
            Ok(()) => self.tell(RegistryEvent::Added, &bdev),
            Err(error) => {
                bdev.let_go();
                return Err(error);
            }
        }
        Ok(())
    }

    fn insert(&self, bdev: &Arc<Bdev>) -> Result<(), BdevError> {
        let mut bdevs = self.write();
        let uuid = bdev.uuid().to_string();
        let names: Vec<&str> = names_of(bdev).chain([uuid.as_str()]).collect();
        if let Some(taken) = names.iter().find(|n| bdevs.iter().any(|b| answers_to(b, n))) {
            return Err(BdevError::Exists(taken.to_string()));
        }
        if bdevs.len() >= MAX_BDEVS {
            return Err(BdevError::Invalid(format!("a node has at most {MAX_BDEVS} bdevs")));
        }
        bdevs.push(bdev.clone());
        Ok(())
    }

    /// By name, alias or UUID.
    pub fn get(&self, name: &str) -> Result<Arc<Bdev>, BdevError> {
        let found = self.read().iter().find(|b| answers_to(b, name)).cloned();
        found.ok_or_else(|| BdevError::NotFound(name.to_string()))
    }

    /// All, in the order in which they were made.
    pub fn all(&self) -> Vec<Arc<Bdev>> {
        self.read().clone()
    }

    /// Removes a device, also under load: new I/Os are refused, those in flight end with an error, whoever watches
    /// it hears of it. Refused while a claim is on it. From the control thread.
    pub fn remove(&self, name: &str, reactors: &ReactorSet) -> Result<(), BdevError> {
        let bdev = self.get(name)?;
        if let Some(claimant) = bdev.claimant() {
            return Err(BdevError::Claimed { name: bdev.name().to_string(), claimant });
        }
        self.pull_out(&bdev, reactors)
    }

    /// As [`Registry::remove`], whoever has claimed it: the device itself is gone. What is stacked on it goes first.
    pub fn pull_out(&self, bdev: &Arc<Bdev>, reactors: &ReactorSet) -> Result<(), BdevError> {
        let over = |b: &Arc<Bdev>| b.base().is_some_and(|base| base.serial() == bdev.serial());
        let above: Vec<Arc<Bdev>> = self.read().iter().filter(|b| over(b)).cloned().collect();
        above.iter().try_for_each(|top| self.pull_out(top, reactors))?;
        self.write().retain(|b| b.serial() != bdev.serial());
        bdev.mark_removed();
        self.tell(RegistryEvent::Removed, bdev);
        let serial = bdev.serial();
        let ended = reactors.call_all(REMOVE_DEADLINE, move || end_removed(serial));
        bdev.let_go();
        ended?;
        Ok(())
    }
}

fn names_of(bdev: &Bdev) -> impl Iterator<Item = &str> {
    std::iter::once(bdev.name()).chain(bdev.aliases().iter().map(String::as_str))
}

fn answers_to(bdev: &Bdev, name: &str) -> bool {
    names_of(bdev).any(|n| n == name) || uuid::Uuid::try_parse(name).is_ok_and(|u| u == bdev.uuid())
}
