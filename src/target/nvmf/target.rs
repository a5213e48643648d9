//! The control side: what an operator does with the target. Any thread that may block; never a reactor.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::directory::Directory;
use super::error::TargetError;
use super::group;
use super::info::{ControllerInfo, GroupStats, ListenerInfo, QueueInfo, SubsystemInfo};
use super::model::{Listener, Model, Namespace, Portal, Subsystem};
use super::options::{
    ListenAddress, MAX_HOSTS, MAX_LISTENERS, MAX_REFERRALS, MAX_SUBSYSTEMS, NamespaceOptions, Referral,
    SubsystemOptions, TransportOptions,
};
use super::view::{NamespaceView, View};
use crate::bdev::{Bdev, BdevEvent, Registry};
use crate::nvme::fabrics::CNTLID_MAX;
use crate::nvme::identify_ns::NamespaceIds;
use crate::nvme::log::AnaState;
use crate::nvme::nqn::{self, DISCOVERY_NQN};
use crate::reactor::{self, ReactorSet, parcel};

/// How long a reactor may take to hear of a change: many times its longest turn.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted at a portal.
const LISTEN_BACKLOG: i32 = 1024;

/// A node's NVMe over Fabrics target.
pub struct Target {
    reactors: Arc<ReactorSet>,
    bdevs: Arc<Registry>,
    model: Mutex<Model>,
    shared: Arc<group::Shared>,
    /// For the bdevs' watchers.
    this: Weak<Target>,
}

/// The identity of a secondary's own view: its content differs from the volume's, so a host that sees both must not
/// take them for one disk. The same every time.
fn view_uuid(volume: uuid::Uuid) -> uuid::Uuid {
    let mut bytes = volume.into_bytes();
    bytes[15] ^= 0x5a;
    bytes[14] ^= 0xa5;
    uuid::Uuid::from_bytes(bytes)
}

impl Target {
    /// Makes the target and its group on every reactor. One target a reactor set.
    pub fn new(reactors: Arc<ReactorSet>, bdevs: Arc<Registry>) -> Result<Arc<Target>, TargetError> {
        let shared = Arc::new(group::Shared {
            discovery: Directory::new(1, CNTLID_MAX),
            connections: Default::default(),
        });
        let target = Arc::new_cyclic(|this| Target {
            reactors,
            bdevs,
            model: Mutex::default(),
            shared: shared.clone(),
            this: this.clone(),
        });
        let view = Arc::new(target.lock().view());
        target.reactors.call_all(CALL_DEADLINE, move || group::start(view.clone(), shared.clone()))?;
        Ok(target)
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the model's present picture to every reactor and waits until all know it. The model is not locked
    /// while waiting.
    fn publish(&self, view: View) -> Result<(), TargetError> {
        let view = Arc::new(view);
        self.reactors.call_all(CALL_DEADLINE, move || group::apply(view.clone()))?;
        Ok(())
    }

    /// Changes the model under its lock and publishes the result. An error leaves everything as it was.
    fn change<T>(&self, f: impl FnOnce(&mut Model) -> Result<T, TargetError>) -> Result<T, TargetError> {
        let (value, view) = {
            let mut model = self.lock();
            let value = f(&mut model)?;
            (value, model.view())
        };
        self.publish(view)?;
        Ok(value)
    }

    /// Makes the TCP transport. Listeners need it.
    pub fn create_transport(&self, options: TransportOptions) -> Result<(), TargetError> {
        options.validate()?;
        self.change(|model| match model.transport {
            Some(_) => Err(TargetError::TransportExists),
            None => {
                model.transport = Some(options);
                Ok(())
            }
        })
    }

    /// The TCP transport's options, once it was made.
    pub fn transport(&self) -> Option<TransportOptions> {
        self.lock().transport.clone()
    }

    pub fn create_subsystem(&self, options: SubsystemOptions) -> Result<(), TargetError> {
        options.validate()?;
        self.change(|model| {
            if options.nqn == DISCOVERY_NQN || model.subsystem(&options.nqn).is_some() {
                return Err(TargetError::SubsystemExists(options.nqn));
            }
            if model.subsystems.len() >= MAX_SUBSYSTEMS {
                return Err(TargetError::Limit { what: "subsystems", limit: MAX_SUBSYSTEMS });
            }
            let id = model.fresh_id();
            let directory = Directory::new(options.min_cntlid, options.max_cntlid);
            model.subsystems.push(Subsystem {
                id,
                options,
                hosts: Default::default(),
                namespaces: Default::default(),
                listeners: Vec::new(),
                directory,
            });
            Ok(())
        })
    }

    /// Removes a subsystem; its controllers are disconnected.
    pub fn delete_subsystem(&self, nqn: &str) -> Result<(), TargetError> {
        let gone = self.change(|model| {
            let at = model.subsystems.iter().position(|s| s.options.nqn == nqn);
            let gone = model.subsystems.remove(at.ok_or_else(|| TargetError::NoSubsystem(nqn.into()))?);
            if !gone.listeners.is_empty() {
                model.genctr += 1;
            }
            Ok(gone)
        })?;
        for ns in gone.namespaces.values() {
            ns.view.bdev.unwatch(ns.watch);
        }
        self.close_unused_portals()
    }

    /// The discovery subsystem and all others, as configured.
    pub fn subsystems(&self) -> Vec<SubsystemInfo> {
        self.lock().infos()
    }

    fn in_subsystem<T>(
        &self,
        nqn: &str,
        f: impl FnOnce(&mut Subsystem) -> Result<T, TargetError>,
    ) -> Result<T, TargetError> {
        self.change(|model| {
            f(model.subsystem_mut(nqn).ok_or_else(|| TargetError::NoSubsystem(nqn.into()))?)
        })
    }

    /// Exports a bdev; returns the NSID.
    pub fn add_ns(&self, nqn: &str, options: NamespaceOptions) -> Result<u32, TargetError> {
        let bdev = self.bdevs.get(&options.bdev_name)?;
        if let Some(claimant) = bdev.claimant() {
            return Err(TargetError::BdevClaimed { bdev: bdev.name().to_string(), claimant });
        }
        self.in_subsystem(nqn, |s| {
            let max = s.options.max_namespaces;
            let nsid = match options.nsid {
                Some(nsid) if nsid == 0 || nsid > max => return Err(TargetError::BadNsid { nsid, max }),
                Some(nsid) if s.namespaces.contains_key(&nsid) => {
                    return Err(TargetError::NamespaceExists(nsid));
                }
                Some(nsid) => nsid,
                None => (1..=max)
                    .find(|id| !s.namespaces.contains_key(id))
                    .ok_or_else(|| TargetError::NoFreeNsid(nqn.into()))?,
            };
            let anagrpid = options.anagrpid.unwrap_or(nsid);
            if anagrpid == 0 || anagrpid > max {
                return Err(TargetError::BadAnaGroup { group: anagrpid, max });
            }
            let is_view = !options.follows_access && bdev.device().has_roles();
            let uuid = options.uuid.unwrap_or(if is_view { view_uuid(bdev.uuid()) } else { bdev.uuid() });
            let ids = NamespaceIds {
                eui64: options.eui64.unwrap_or_default(),
                nguid: options.nguid.unwrap_or(uuid.into_bytes()),
                uuid: uuid.into_bytes(),
            };
            let view = Arc::new(NamespaceView {
                nsid,
                bdev: bdev.clone(),
                ids,
                anagrpid,
                follows_access: options.follows_access,
            });
            let watch = self.watch(&bdev);
            s.namespaces.insert(nsid, Namespace { view, options, watch });
            Ok(nsid)
        })
    }

    fn watch(&self, bdev: &Arc<Bdev>) -> crate::bdev::WatchId {
        let (this, serial) = (self.this.clone(), bdev.serial());
        bdev.watch(move |event| {
            let Some(target) = this.upgrade() else { return };
            match event {
                BdevEvent::Removed => target.bdev_removed(serial),
                BdevEvent::Resized | BdevEvent::AccessChanged(_) => target.refresh(),
            }
        })
    }

    /// Tells every reactor to look at its namespaces' sizes and access states again. Any thread; does not wait.
    fn refresh(&self) {
        if reactor::in_reactor() {
            reactor::send_to_all(group::refresh);
            return;
        }
        for to in 0..self.reactors.count() {
            if let Err(error) = self.reactors.post(to, parcel(group::refresh), CALL_DEADLINE) {
                tracing::warn!("reactor {to} was not told of a namespace's change: {error}");
            }
        }
    }

    /// A bdev is gone: so are its namespaces.
    fn bdev_removed(&self, serial: u64) {
        let view = {
            let mut model = self.lock();
            for s in &mut model.subsystems {
                s.namespaces.retain(|_, n| n.view.bdev.serial() != serial);
            }
            Arc::new(model.view())
        };
        if reactor::in_reactor() {
            reactor::send_to_all(move || group::apply(view.clone()));
            return;
        }
        for to in 0..self.reactors.count() {
            let view = view.clone();
            let parcel = parcel(move || group::apply(view));
            if let Err(error) = self.reactors.post(to, parcel, CALL_DEADLINE) {
                tracing::warn!("reactor {to} was not told of a removed bdev: {error}");
            }
        }
    }

    /// Takes a namespace away. When this returns no reactor starts I/O on it any more; what is in flight ends by
    /// itself.
    pub fn remove_ns(&self, nqn: &str, nsid: u32) -> Result<(), TargetError> {
        let gone = self.in_subsystem(nqn, |s| {
            s.namespaces.remove(&nsid).ok_or_else(|| TargetError::NoNamespace { nqn: nqn.into(), nsid })
        })?;
        gone.view.bdev.unwatch(gone.watch);
        Ok(())
    }

    /// Listens for a subsystem (or for the discovery subsystem, by its NQN); returns the address with its real port.
    pub fn add_listener(&self, nqn: &str, address: &ListenAddress) -> Result<ListenAddress, TargetError> {
        let mut opened = None;
        let added = {
            let mut model = self.lock();
            if model.transport.is_none() {
                return Err(TargetError::NoTransport);
            }
            let taken = match (nqn == DISCOVERY_NQN, model.subsystem(nqn)) {
                (true, _) => &model.discovery_listeners,
                (false, Some(s)) => &s.listeners,
                (false, None) => return Err(TargetError::NoSubsystem(nqn.into())),
            };
            if taken.iter().any(|l| l.address == *address) {
                return Err(TargetError::ListenerExists(address.clone(), nqn.into()));
            }
            if taken.len() >= MAX_LISTENERS {
                return Err(TargetError::Limit { what: "listeners of a subsystem", limit: MAX_LISTENERS });
            }
            let (portal, address) = match model.portals.iter().find(|p| p.address == *address) {
                Some(portal) => (portal.id, address.clone()),
                None => {
                    let (socket, address) = listen(address)?;
                    let id = model.fresh_id();
                    let reactor = model.portals.len() % self.reactors.count();
                    model.portals.push(Portal { id, address: address.clone(), reactor });
                    opened = Some((socket, id, reactor));
                    (id, address)
                }
            };
            let listener = Listener { portal, address: address.clone(), ana_states: Default::default() };
            model.genctr += 1;
            match model.subsystem_mut(nqn) {
                Some(s) => s.listeners.push(listener),
                None => model.discovery_listeners.push(listener),
            }
            let view = model.view();
            drop(model);
            self.publish(view).map(|()| address)
        };
        let address = added?;
        if let Some((socket, id, reactor)) = opened {
            // Only now does anybody come in: every reactor knows the listener.
            let local = address.clone();
            self.reactors.call(reactor, CALL_DEADLINE, move || group::open_portal(id, socket, local))?;
        }
        Ok(address)
    }

    /// Stops listening; the subsystem's connections that came in there are closed.
    pub fn remove_listener(&self, nqn: &str, address: &ListenAddress) -> Result<(), TargetError> {
        self.change(|model| {
            let listeners = match model.subsystems.iter_mut().find(|s| s.options.nqn == nqn) {
                Some(s) => &mut s.listeners,
                None if nqn == DISCOVERY_NQN => &mut model.discovery_listeners,
                None => return Err(TargetError::NoSubsystem(nqn.into())),
            };
            let at = listeners.iter().position(|l| l.address == *address);
            listeners.remove(at.ok_or_else(|| TargetError::NoListener(address.clone(), nqn.into()))?);
            model.genctr += 1;
            Ok(())
        })?;
        self.close_unused_portals()
    }

    fn close_unused_portals(&self) -> Result<(), TargetError> {
        let unused: Vec<Portal> = {
            let mut model = self.lock();
            let (used, unused) =
                std::mem::take(&mut model.portals).into_iter().partition(|p| model.portal_in_use(p.id));
            model.portals = used;
            unused
        };
        for portal in unused {
            self.reactors.call(portal.reactor, CALL_DEADLINE, move || group::close_portal(portal.id))?;
        }
        Ok(())
    }

    pub fn add_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        nqn::validate(host).map_err(|e| TargetError::BadNqn(host.to_string(), e))?;
        self.in_subsystem(nqn, |s| {
            if s.hosts.len() >= MAX_HOSTS {
                return Err(TargetError::Limit { what: "hosts of a subsystem", limit: MAX_HOSTS });
            }
            match s.hosts.insert(host.to_string()) {
                true => Ok(()),
                false => Err(TargetError::HostExists(host.to_string())),
            }
        })
    }

    /// Takes a host off the list; its connections are closed unless any host is allowed.
    pub fn remove_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        self.in_subsystem(nqn, |s| match s.hosts.remove(host) {
            true => Ok(()),
            false => Err(TargetError::NoHost(host.to_string())),
        })
    }

    pub fn allow_any_host(&self, nqn: &str, allow: bool) -> Result<(), TargetError> {
        self.in_subsystem(nqn, |s| {
            s.options.allow_any_host = allow;
            Ok(())
        })
    }

    /// Sets the state of one ANA group, or of all, on a listener. A group whose namespaces' roles demand less access
    /// keeps that.
    pub fn listener_set_ana_state(
        &self,
        nqn: &str,
        address: &ListenAddress,
        state: AnaState,
        group: Option<u32>,
    ) -> Result<(), TargetError> {
        if !matches!(state, AnaState::Optimized | AnaState::NonOptimized | AnaState::Inaccessible) {
            return Err(TargetError::BadAnaState);
        }
        self.in_subsystem(nqn, |s| {
            if !s.options.ana_reporting {
                return Err(TargetError::NoAnaReporting(nqn.into()));
            }
            let max = s.options.max_namespaces;
            let groups = match group {
                Some(g) if g == 0 || g > max => return Err(TargetError::BadAnaGroup { group: g, max }),
                Some(g) => g..=g,
                None => 1..=max,
            };
            let listener = s.listeners.iter_mut().find(|l| l.address == *address);
            let listener = listener.ok_or_else(|| TargetError::NoListener(address.clone(), nqn.into()))?;
            for group in groups {
                match state {
                    AnaState::Optimized => listener.ana_states.remove(&group),
                    state => listener.ana_states.insert(group, state),
                };
            }
            Ok(())
        })
    }

    pub fn add_referral(&self, referral: Referral) -> Result<(), TargetError> {
        nqn::validate(&referral.subnqn).map_err(|e| TargetError::BadNqn(referral.subnqn.clone(), e))?;
        self.change(|model| {
            let same = |r: &Referral| r.address == referral.address && r.subnqn == referral.subnqn;
            if model.referrals.iter().any(same) {
                return Err(TargetError::ReferralExists);
            }
            if model.referrals.len() >= MAX_REFERRALS {
                return Err(TargetError::Limit { what: "referrals", limit: MAX_REFERRALS });
            }
            model.referrals.push(referral);
            model.genctr += 1;
            Ok(())
        })
    }

    pub fn remove_referral(&self, address: &ListenAddress, subnqn: &str) -> Result<(), TargetError> {
        self.change(|model| {
            let at = model.referrals.iter().position(|r| r.address == *address && r.subnqn == subnqn);
            model.referrals.remove(at.ok_or(TargetError::NoReferral)?);
            model.genctr += 1;
            Ok(())
        })
    }

    pub fn referrals(&self) -> Vec<Referral> {
        self.lock().referrals.clone()
    }

    fn directory(&self, nqn: &str) -> Result<Arc<Directory>, TargetError> {
        if nqn == DISCOVERY_NQN {
            return Ok(self.shared.discovery.clone());
        }
        let model = self.lock();
        let subsystem = model.subsystem(nqn).ok_or_else(|| TargetError::NoSubsystem(nqn.into()))?;
        Ok(subsystem.directory.clone())
    }

    pub fn controllers(&self, nqn: &str) -> Result<Vec<ControllerInfo>, TargetError> {
        Ok(self.directory(nqn)?.controllers())
    }

    /// All connected queues of a subsystem, admin queues with them.
    pub fn queues(&self, nqn: &str) -> Result<Vec<QueueInfo>, TargetError> {
        Ok(self.directory(nqn)?.queues())
    }

    pub fn listeners(&self, nqn: &str) -> Result<Vec<ListenerInfo>, TargetError> {
        let model = self.lock();
        if nqn == DISCOVERY_NQN {
            let info = |l: &Listener| ListenerInfo { address: l.address.clone(), ana_states: Vec::new() };
            return Ok(model.discovery_listeners.iter().map(info).collect());
        }
        let subsystem = model.subsystem(nqn).ok_or_else(|| TargetError::NoSubsystem(nqn.into()))?;
        Ok(subsystem.listener_infos())
    }

    /// Counters of every reactor's group.
    pub fn stats(&self) -> Result<Vec<GroupStats>, TargetError> {
        Ok(self.reactors.call_all(CALL_DEADLINE, group::stats)?)
    }

    /// Ends the target in order: no new connections, no new commands; what is in flight ends and is answered, then
    /// the connections close. Those that do not end within `deadline` are cut off. True if all ended in time.
    pub fn shut_down(&self, deadline: Duration) -> Result<bool, TargetError> {
        let portals = std::mem::take(&mut self.lock().portals);
        for portal in portals {
            self.reactors.call(portal.reactor, CALL_DEADLINE, move || group::close_portal(portal.id))?;
        }
        let end = Instant::now() + deadline;
        // A controller takes its I/O queues with it, so these go first.
        let mut in_time = true;
        for admin in [false, true] {
            self.reactors.call_all(CALL_DEADLINE, move || group::drain_connections(admin))?;
            in_time &= self.wait_for_end(admin, end)?;
        }
        if !in_time {
            self.reactors.call_all(CALL_DEADLINE, group::close_connections)?;
        }
        Ok(in_time)
    }

    /// Waits until no admin connection, or no other one, is left. False: `end` came first.
    fn wait_for_end(&self, admin: bool, end: Instant) -> Result<bool, TargetError> {
        loop {
            let counts = self.reactors.call_all(CALL_DEADLINE, move || group::connection_count(admin))?;
            if counts.iter().sum::<usize>() == 0 {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A listening socket, and the address it really has.
fn listen(address: &ListenAddress) -> Result<(OwnedFd, ListenAddress), TargetError> {
    let wanted = address.socket_address().ok_or_else(|| TargetError::BadAddress(address.to_string()))?;
    let failed = |error| TargetError::Listen { address: address.clone(), error };
    let open = || {
        let domain = socket2::Domain::for_address(wanted);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if wanted.is_ipv6() {
            // An IPv6 wildcard leaves IPv4 to a listener of its own.
            socket.set_only_v6(true)?;
        }
        socket.bind(&wanted.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        let local = socket.local_addr()?.as_socket().unwrap_or(wanted);
        Ok((socket, local))
    };
    let (socket, local) = open().map_err(failed)?;
    Ok((socket.into(), ListenAddress::of(local)))
}
