//! Immutable pictures of the configuration, as the reactors see it.
//!
//! The control side builds a new one at every change and sends it to every reactor; a reactor compares it with the
//! one before and tells its controllers what changed. What changes by itself (a bdev's size and access state) is not
//! in it: those are atomics of the bdev.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::directory::Directory;
use super::options::{ListenAddress, Referral, TransportOptions};
use crate::bdev::{Access, Bdev};
use crate::nvme::identify_ns::NamespaceIds;
use crate::nvme::log::AnaState;

/// Everything.
pub struct View {
    /// Rises with every change; a reactor ignores an older view.
    pub sequence: u64,
    pub transport: TransportOptions,
    pub subsystems: Vec<Arc<SubsystemView>>,
    /// Generation counter of the discovery log.
    pub genctr: u64,
    pub referrals: Vec<Referral>,
    /// Listeners added to the discovery subsystem by name (it can be reached on every other one too).
    pub discovery_listeners: Vec<ListenAddress>,
}

pub struct SubsystemView {
    /// Unique in the process, never reused.
    pub id: u64,
    pub nqn: String,
    pub serial_number: String,
    pub model_number: String,
    pub max_nsid: u32,
    pub ana_reporting: bool,
    pub allow_any_host: bool,
    pub hosts: BTreeSet<String>,
    pub namespaces: BTreeMap<u32, Arc<NamespaceView>>,
    pub listeners: Vec<ListenerView>,
    pub directory: Arc<Directory>,
}

pub struct NamespaceView {
    pub nsid: u32,
    pub bdev: Arc<Bdev>,
    pub ids: NamespaceIds,
    pub anagrpid: u32,
    pub follows_access: bool,
}

#[derive(Clone)]
pub struct ListenerView {
    /// The portal that serves it, unique in the process.
    pub portal: u64,
    pub address: ListenAddress,
    /// Groups that are not optimized by configuration.
    pub ana_states: BTreeMap<u32, AnaState>,
}

impl NamespaceView {
    /// The state that the bdev's role demands.
    pub fn access_state(&self) -> AnaState {
        match self.bdev.access() {
            _ if !self.follows_access => AnaState::Optimized,
            Access::Optimized => AnaState::Optimized,
            Access::Inaccessible => AnaState::Inaccessible,
            Access::Change => AnaState::Change,
        }
    }
}

impl ListenerView {
    pub fn group_state(&self, group: u32) -> AnaState {
        self.ana_states.get(&group).copied().unwrap_or(AnaState::Optimized)
    }
}

/// The stronger restriction of two.
pub fn worse(a: AnaState, b: AnaState) -> AnaState {
    let rank = |s| match s {
        AnaState::Optimized => 0,
        AnaState::NonOptimized => 1,
        AnaState::Change => 2,
        AnaState::Inaccessible => 3,
        AnaState::PersistentLoss => 4,
    };
    if rank(a) >= rank(b) { a } else { b }
}

impl SubsystemView {
    pub fn allows_host(&self, hostnqn: &str) -> bool {
        self.allow_any_host || self.hosts.contains(hostnqn)
    }

    pub fn listener(&self, portal: u64) -> Option<&ListenerView> {
        self.listeners.iter().find(|l| l.portal == portal)
    }

    /// State of every ANA group that has namespaces, at `portal`: what was configured, or worse if a member's role
    /// demands it.
    pub fn group_states(&self, portal: u64) -> BTreeMap<u32, AnaState> {
        let listener = self.listener(portal);
        let mut states = BTreeMap::new();
        for ns in self.namespaces.values() {
            let configured = listener.map_or(AnaState::Optimized, |l| l.group_state(ns.anagrpid));
            let state = states.entry(ns.anagrpid).or_insert(configured);
            *state = worse(*state, ns.access_state());
        }
        states
    }
}

impl View {
    pub fn subsystem(&self, nqn: &str) -> Option<&Arc<SubsystemView>> {
        self.subsystems.iter().find(|s| s.nqn == nqn)
    }

    pub fn subsystem_by_id(&self, id: u64) -> Option<&Arc<SubsystemView>> {
        self.subsystems.iter().find(|s| s.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stronger_restriction_wins() {
        assert_eq!(worse(AnaState::Optimized, AnaState::NonOptimized), AnaState::NonOptimized);
        assert_eq!(worse(AnaState::Inaccessible, AnaState::Change), AnaState::Inaccessible);
        assert_eq!(worse(AnaState::Optimized, AnaState::Change), AnaState::Change);
    }
}
