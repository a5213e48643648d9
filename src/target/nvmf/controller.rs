//! A controller: its properties, its events, what its host was told. Lives on its admin queue's reactor.
//!
//! Invariants: at most [`ASYNC_EVENT_LIMIT`] event requests rest here; an event that was reported stays silent until
//! the host reads its log page; CSTS.RDY falls only after every I/O queue has ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::directory::{ControllerShared, Directory};
use super::features::Features;
use super::options::TransportOptions;
use super::queue::{Action, Need, Queue, Role};
use super::view::SubsystemView;
use crate::nvme::event::AsyncEvent;
use crate::nvme::fabrics::PropertyCommand;
use crate::nvme::log::{AnaState, CHANGED_NAMESPACES_MAX, ErrorEntry};
use crate::nvme::property::{self, Cap, Cc, Csts, Shutdown};
use crate::nvme::{FabricsType, NSID_ALL, Status, SubmissionEntry, feature};

/// Asynchronous event requests that may rest at a controller.
pub const ASYNC_EVENT_LIMIT: usize = 4;
/// CAP.TO, 500 ms units: how long a reset may take. Commands in flight have to end first.
const READY_TIMEOUT_UNITS: u8 = 20;
/// Half of CAP.TO: then the controller reports a fatal status, before the host gives up by itself.
const RESET_DEADLINE: Duration = Duration::from_secs(5);
/// Granularity of the keep-alive timer, units of 100 ms (KAS).
pub const KEEP_ALIVE_UNITS: u16 = 10;
/// A discovery controller without keep-alive goes when its host was silent for this long.
const DISCOVERY_SILENCE: Duration = Duration::from_secs(120);
/// Entries of the error log (ELPE plus one).
pub const ERROR_LOG_ENTRIES: usize = 128;

/// What a host was told about a namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KnownNamespace {
    bdev: u64,
    num_blocks: u64,
    anagrpid: u32,
}

/// An ANA group as the host last could read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownGroup {
    pub state: AnaState,
    pub change_count: u64,
}

struct Reset {
    shutdown: bool,
    deadline_ns: u64,
}

pub struct Controller {
    pub shared: Arc<ControllerShared>,
    directory: Arc<Directory>,
    cap: Cap,
    cc: Cc,
    csts: Csts,
    reset: Option<Reset>,
    association_timeout: Duration,
    pub features: Features,
    /// Slots of the event requests that rest here.
    pub event_requests: SmallVec<[u16; ASYNC_EVENT_LIMIT]>,
    pending_events: SmallVec<[AsyncEvent; 4]>,
    /// Reported, its log page not read since.
    silent_events: SmallVec<[AsyncEvent; 4]>,
    namespaces: BTreeMap<u32, KnownNamespace>,
    changed: BTreeSet<u32>,
    groups: BTreeMap<u32, KnownGroup>,
    pub ana_change_count: u64,
    pub errors: VecDeque<ErrorEntry>,
    pub error_count: u64,
    pub started_ns: u64,
}

impl Controller {
    pub fn new(
        shared: Arc<ControllerShared>,
        directory: Arc<Directory>,
        transport: &TransportOptions,
        kato_ms: u32,
    ) -> Controller {
        let queues = shared.max_io_queues;
        Controller {
            shared,
            directory,
            cap: Cap::fabrics(transport.max_queue_depth, READY_TIMEOUT_UNITS),
            cc: Cc::default(),
            csts: Csts::default(),
            reset: None,
            association_timeout: transport.association_timeout,
            features: Features::new(queues, kato_ms),
            event_requests: SmallVec::new(),
            pending_events: SmallVec::new(),
            silent_events: SmallVec::new(),
            namespaces: BTreeMap::new(),
            changed: BTreeSet::new(),
            groups: BTreeMap::new(),
            ana_change_count: 0,
            errors: VecDeque::new(),
            error_count: 0,
            started_ns: crate::env::clock::now(),
        }
    }

    pub fn is_discovery(&self) -> bool {
        self.shared.subsystem.is_none()
    }

    pub fn is_enabled(&self) -> bool {
        self.cc.en()
    }

    /// The time without a sign of life after which the controller goes; zero: never.
    pub fn keep_alive(&self) -> Duration {
        let ms = u64::from(self.features.keep_alive_ms);
        if ms == 0 {
            return if self.is_discovery() { DISCOVERY_SILENCE } else { Duration::ZERO };
        }
        let unit = u64::from(KEEP_ALIVE_UNITS) * 100;
        Duration::from_millis(ms.div_ceil(unit) * unit)
    }

    /// The connection is gone: nobody may join, the identifier is free again.
    pub fn destroy(&self) {
        self.shared.kill();
        self.directory.remove(&self.shared);
    }

    pub fn plan_fabrics(&self, entry: &SubmissionEntry) -> Need {
        match FabricsType::from_wire(entry.fctype()) {
            Some(FabricsType::PropertyGet | FabricsType::PropertySet) => Need::Nothing,
            Some(FabricsType::Connect) => Need::Reject(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            _ => Need::Reject(Status::INVALID_OPCODE.dnr()),
        }
    }

    fn property(&self, command: &PropertyCommand) -> Result<u64, Status> {
        let bad = Status::CONNECT_INVALID_PARAMETERS.dnr();
        let size = command.size_bytes().ok_or(bad)?;
        match (command.offset.get(), size) {
            (property::CAP, 8) => Ok(self.cap.0),
            (property::CAP, 4) => Ok(self.cap.0 & 0xffff_ffff),
            (o, 4) if o == property::CAP + 4 => Ok(self.cap.0 >> 32),
            (property::VS, 4) => Ok(property::VERSION_1_4.into()),
            (property::CC, 4) => Ok(self.cc.0.into()),
            (property::CSTS, 4) => Ok(self.csts.0.into()),
            (property::NSSR, 4) => Ok(0),
            (property::CRTO, 4) => Ok(READY_TIMEOUT_UNITS.into()),
            _ => Err(bad),
        }
    }

    /// Writes CC (Base 3.1.3.5). Returns what the connection has to do.
    fn set_cc(&mut self, new: Cc, now_ns: u64) -> Result<SmallVec<[Action; 3]>, Status> {
        let bad = Status::CONNECT_INVALID_PARAMETERS.dnr();
        if new.mps() != 0
            || new.ams() != 0
            || !matches!(new.css(), 0 | 6 | 7)
            || new.shn() == Shutdown::Reserved
        {
            return Err(bad);
        }
        let old = self.cc;
        let mut actions = SmallVec::new();
        self.cc = new;
        if !old.en() && new.en() {
            self.csts.set_rdy(true);
            self.csts.set_shutdown_complete(false);
            self.reset = None;
            actions.push(Action::StopAwaiting);
            actions.push(Action::KeepAlive(self.keep_alive()));
        }
        if old.en() && !new.en() {
            self.begin_reset(false, now_ns, &mut actions);
        } else if old.shn() == Shutdown::None && new.shn() != Shutdown::None {
            self.begin_reset(true, now_ns, &mut actions);
            // From here on the host need not keep the controller alive (Base 3.9).
            actions.push(Action::KeepAlive(Duration::ZERO));
        }
        // I/O queues have entries of 64 and 16 bytes, or cannot be connected.
        let io = self.cc.en() && self.cc.iosqes() == 6 && self.cc.iocqes() == 4 && self.reset.is_none();
        self.shared.set_enabled(io);
        Ok(actions)
    }

    fn begin_reset(&mut self, shutdown: bool, now_ns: u64, actions: &mut SmallVec<[Action; 3]>) {
        self.reset = Some(Reset { shutdown, deadline_ns: now_ns + RESET_DEADLINE.as_nanos() as u64 });
        actions.push(Action::EndIoQueues);
    }

    /// Finishes a reset or shutdown once all I/O queues are gone. True: look again soon.
    fn poll_reset(&mut self, now_ns: u64) -> bool {
        let Some(reset) = &self.reset else { return false };
        if self.shared.has_io_queues() {
            if now_ns < reset.deadline_ns {
                return true;
            }
            tracing::error!(cntlid = self.shared.cntlid, "commands hang in a reset: controller fatal status");
            self.csts.set_cfs();
        }
        if reset.shutdown {
            self.csts.set_shutdown_complete(true);
        } else {
            self.csts.set_rdy(false);
            self.csts.set_shutdown_complete(false);
            self.pending_events.clear();
            self.silent_events.clear();
            self.features = Features::new(self.shared.max_io_queues, self.features.keep_alive_ms);
        }
        self.reset = None;
        false
    }

    /// Takes a subsystem's state as known to the host: it will read it after connecting.
    pub fn learn(&mut self, subsystem: &SubsystemView) {
        self.namespaces = Self::namespaces_of(subsystem);
        self.groups = subsystem
            .group_states(self.shared.portal)
            .into_iter()
            .map(|(id, state)| (id, KnownGroup { state, change_count: 0 }))
            .collect();
    }

    fn namespaces_of(subsystem: &SubsystemView) -> BTreeMap<u32, KnownNamespace> {
        let known = |ns: &super::view::NamespaceView| KnownNamespace {
            bdev: ns.bdev.serial(),
            num_blocks: ns.bdev.num_blocks(),
            anagrpid: ns.anagrpid,
        };
        subsystem.namespaces.iter().map(|(&nsid, ns)| (nsid, known(ns))).collect()
    }

    /// Finds what changed since the host was last told, and raises the events for it.
    pub fn compare(&mut self, subsystem: &SubsystemView) {
        let namespaces = Self::namespaces_of(subsystem);
        let mut changed = false;
        for nsid in self.namespaces.keys().chain(namespaces.keys()) {
            if self.namespaces.get(nsid) != namespaces.get(nsid)
                && self.changed.len() <= CHANGED_NAMESPACES_MAX
            {
                changed |= true;
                self.changed.insert(*nsid);
            }
        }
        self.namespaces = namespaces;
        if changed {
            self.raise(AsyncEvent::NAMESPACE_CHANGED, feature::AEC_NAMESPACE);
        }
        let mut ana_changed = false;
        let states = subsystem.group_states(self.shared.portal);
        self.groups.retain(|id, _| states.contains_key(id));
        for (id, state) in states {
            let next = self.ana_change_count + 1;
            match self.groups.get_mut(&id) {
                Some(group) if group.state != state => {
                    *group = KnownGroup { state, change_count: next };
                    ana_changed = true;
                }
                Some(_) => {}
                None => {
                    self.groups.insert(id, KnownGroup { state, change_count: next });
                }
            }
        }
        if ana_changed {
            self.ana_change_count += 1;
            if subsystem.ana_reporting {
                self.raise(AsyncEvent::ANA_CHANGED, feature::AEC_ANA);
            }
        }
    }

    pub fn groups(&self) -> &BTreeMap<u32, KnownGroup> {
        &self.groups
    }

    pub fn discovery_changed(&mut self) {
        self.raise(AsyncEvent::DISCOVERY_CHANGED, feature::AEC_DISCOVERY);
    }

    fn raise(&mut self, event: AsyncEvent, enable_bit: u32) {
        if self.features.async_events & enable_bit == 0
            || self.pending_events.contains(&event)
            || self.silent_events.contains(&event)
        {
            return;
        }
        self.pending_events.push(event);
    }

    /// The host read a log page: its event may be reported again.
    pub fn log_read(&mut self, page: u8) {
        self.silent_events.retain(|e| e.log_page() != page);
    }

    /// The changed namespaces, and forgets them. `None`: too many to list.
    pub fn take_changed(&mut self) -> Option<Vec<u32>> {
        let changed = std::mem::take(&mut self.changed);
        (changed.len() <= CHANGED_NAMESPACES_MAX).then(|| changed.into_iter().collect())
    }

    /// An event to report and the request to report it with, if there are both.
    fn next_event(&mut self) -> Option<(u16, AsyncEvent)> {
        if self.event_requests.is_empty() || self.pending_events.is_empty() {
            return None;
        }
        let event = self.pending_events.remove(0);
        self.silent_events.push(event);
        Some((self.event_requests.remove(0), event))
    }

    /// Notes a failed command in the error log.
    pub fn note_error(&mut self, qid: u16, entry: &SubmissionEntry, status: Status) {
        self.error_count += 1;
        let mut error = ErrorEntry {
            error_count: self.error_count.into(),
            sqid: qid.into(),
            cid: entry.cid,
            status: status.to_wire().into(),
            // No particular byte of the command.
            error_location: 0xffff.into(),
            nsid: entry.nsid,
            trtype: crate::nvme::discovery::TRTYPE_TCP,
            ..Default::default()
        };
        if entry.nsid.get() == NSID_ALL {
            error.nsid = 0.into();
        }
        self.errors.push_front(error);
        self.errors.truncate(ERROR_LOG_ENTRIES);
    }
}

impl Queue {
    pub fn controller(&mut self) -> Option<&mut Controller> {
        match &mut self.role {
            Role::Admin(controller) => Some(controller),
            _ => None,
        }
    }

    /// Reports pending events as far as requests for them rest here.
    pub fn answer_events(&mut self) {
        while let Some((slot, event)) = self.controller().and_then(Controller::next_event) {
            self.complete_with(slot, Status::SUCCESS, event.0.into());
        }
    }

    /// Looks whether a reset or shutdown can finish. True: call again soon.
    pub fn poll_reset(&mut self, now_ns: u64) -> bool {
        let Some(controller) = self.controller() else { return false };
        let had = controller.reset.is_some();
        let again = controller.poll_reset(now_ns);
        if had && !again {
            let (wait, disabled) = (controller.association_timeout, !controller.cc.en());
            let requests =
                if disabled { std::mem::take(&mut controller.event_requests) } else { SmallVec::new() };
            for slot in requests {
                self.complete(slot, Status::ABORTED_SQ_DELETION);
            }
            self.actions.push(Action::AwaitHost(wait));
        }
        again
    }

    pub fn run_property(&mut self, slot: u16, now_ns: u64) {
        let entry = self.slots[slot].entry;
        let command = PropertyCommand::from_entry(&entry);
        let Some(controller) = self.controller() else { return };
        if entry.fctype() == FabricsType::PropertyGet as u8 {
            let outcome = controller.property(&command);
            return match outcome {
                Ok(value) => self.complete_with(slot, Status::SUCCESS, value),
                Err(status) => self.complete(slot, status),
            };
        }
        let bad = Status::CONNECT_INVALID_PARAMETERS.dnr();
        let outcome = match (command.offset.get(), command.size_bytes()) {
            (property::CC, Some(4)) => controller.set_cc(Cc(command.value.get() as u32), now_ns),
            // No subsystem reset: the write is accepted and does nothing (CAP.NSSRS is 0).
            (property::NSSR, Some(4)) => Ok(SmallVec::new()),
            _ => Err(bad),
        };
        match outcome {
            Ok(actions) => {
                self.actions.extend(actions);
                self.complete(slot, Status::SUCCESS);
            }
            Err(status) => self.complete(slot, status),
        }
    }
}
