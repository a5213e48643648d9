//! What was configured: the control side's records, and the view that is made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::directory::Directory;
use super::info::{ListenerInfo, NamespaceInfo, SubsystemInfo};
use super::options::{ListenAddress, NamespaceOptions, Referral, SubsystemOptions, TransportOptions};
use super::view::{ListenerView, NamespaceView, SubsystemView, View};
use crate::bdev::WatchId;
use crate::nvme::log::AnaState;
use crate::nvme::nqn::DISCOVERY_NQN;

#[derive(Default)]
pub struct Model {
    pub transport: Option<TransportOptions>,
    pub subsystems: Vec<Subsystem>,
    pub referrals: Vec<Referral>,
    pub discovery_listeners: Vec<Listener>,
    pub portals: Vec<Portal>,
    pub genctr: u64,
    pub sequence: u64,
    next_id: u64,
}

pub struct Subsystem {
    pub id: u64,
    pub options: SubsystemOptions,
    pub hosts: BTreeSet<String>,
    pub namespaces: BTreeMap<u32, Namespace>,
    pub listeners: Vec<Listener>,
    pub directory: Arc<Directory>,
}

pub struct Namespace {
    pub view: Arc<NamespaceView>,
    pub options: NamespaceOptions,
    pub watch: WatchId,
}

pub struct Listener {
    pub portal: u64,
    pub address: ListenAddress,
    pub ana_states: BTreeMap<u32, AnaState>,
}

/// A listening socket, shared by the subsystems that listen there.
pub struct Portal {
    pub id: u64,
    pub address: ListenAddress,
    /// The reactor that accepts.
    pub reactor: usize,
}

impl Model {
    /// A number that was never given out before.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn subsystem(&self, nqn: &str) -> Option<&Subsystem> {
        self.subsystems.iter().find(|s| s.options.nqn == nqn)
    }

    pub fn subsystem_mut(&mut self, nqn: &str) -> Option<&mut Subsystem> {
        self.subsystems.iter_mut().find(|s| s.options.nqn == nqn)
    }

    /// Whether any listener uses a portal.
    pub fn portal_in_use(&self, portal: u64) -> bool {
        let all = self.subsystems.iter().flat_map(|s| &s.listeners).chain(&self.discovery_listeners);
        all.into_iter().any(|l| l.portal == portal)
    }

    /// The picture of all this for the reactors.
    pub fn view(&mut self) -> View {
        self.sequence += 1;
        View {
            sequence: self.sequence,
            transport: self.transport.clone().unwrap_or_default(),
            subsystems: self.subsystems.iter().map(|s| Arc::new(s.view())).collect(),
            genctr: self.genctr,
            referrals: self.referrals.clone(),
            discovery_listeners: self.discovery_listeners.iter().map(|l| l.address.clone()).collect(),
        }
    }

    /// The discovery subsystem first, as SPDK lists it.
    pub fn infos(&self) -> Vec<SubsystemInfo> {
        let mut options = SubsystemOptions::new(DISCOVERY_NQN);
        options.allow_any_host = true;
        let discovery = SubsystemInfo {
            options,
            is_discovery: true,
            hosts: Vec::new(),
            listeners: self.discovery_listeners.iter().map(|l| l.address.clone()).collect(),
            namespaces: Vec::new(),
        };
        std::iter::once(discovery).chain(self.subsystems.iter().map(Subsystem::info)).collect()
    }
}

impl Subsystem {
    fn view(&self) -> SubsystemView {
        let follows =
            self.namespaces.values().any(|n| n.view.follows_access && n.view.bdev.device().has_roles());
        SubsystemView {
            id: self.id,
            nqn: self.options.nqn.clone(),
            serial_number: self.options.serial_number.clone(),
            model_number: self.options.model_number.clone(),
            max_nsid: self.options.max_namespaces,
            ana_reporting: self.options.ana_reporting || follows,
            allow_any_host: self.options.allow_any_host,
            hosts: self.hosts.clone(),
            namespaces: self.namespaces.iter().map(|(&id, n)| (id, n.view.clone())).collect(),
            listeners: self
                .listeners
                .iter()
                .map(|l| ListenerView {
                    portal: l.portal,
                    address: l.address.clone(),
                    ana_states: l.ana_states.clone(),
                })
                .collect(),
            directory: self.directory.clone(),
        }
    }

    fn info(&self) -> SubsystemInfo {
        let namespace = |(&nsid, n): (&u32, &Namespace)| NamespaceInfo {
            nsid,
            bdev_name: n.view.bdev.name().to_string(),
            ids: n.view.ids,
            anagrpid: n.view.anagrpid,
            options: n.options.clone(),
        };
        SubsystemInfo {
            options: self.options.clone(),
            is_discovery: false,
            hosts: self.hosts.iter().cloned().collect(),
            listeners: self.listeners.iter().map(|l| l.address.clone()).collect(),
            namespaces: self.namespaces.iter().map(namespace).collect(),
        }
    }

    pub fn listener_infos(&self) -> Vec<ListenerInfo> {
        let info = |l: &Listener| ListenerInfo {
            address: l.address.clone(),
            ana_states: l.ana_states.iter().map(|(&g, &s)| (g, s)).collect(),
        };
        self.listeners.iter().map(info).collect()
    }
}
