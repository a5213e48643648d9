//! One NVMe queue: from a command whose capsule arrived to its completion. Knows nothing of the transport.
//!
//! The transport asks [`Queue::plan`] which data a command needs, brings the data (or a buffer for it), calls
//! [`Queue::run`], and sends what appears in `ready`. What the queue wants done outside of it (timers, messages) it
//! leaves in `actions`. Everything happens on the connection's reactor.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::controller::Controller;
use super::directory::{ConnectionId, ControllerShared};
use super::options::TransportOptions;
use super::slot::{Slots, Stage};
use super::view::{NamespaceView, SubsystemView, View, worse};
use crate::bdev::{Channel, IoOwner};
use crate::nvme::fabrics::{ConnectCommand, ConnectData};
use crate::nvme::log::AnaState;
use crate::nvme::{AdminOpcode, FabricsType, Status, SubmissionEntry};

/// Slots before Connect: the Connect command itself, and one that a hasty host sends behind it.
const UNCONNECTED_SLOTS: u16 = 2;

/// What a queue is.
pub enum Role {
    /// Before Connect.
    Unconnected,
    Admin(Box<Controller>),
    Io(Arc<ControllerShared>),
}

/// What the queue asks its connection to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Count the keep-alive time from now; zero stops it.
    KeepAlive(Duration),
    /// End the controller's I/O queues, and come back by `Queue::poll_reset`.
    EndIoQueues,
    /// Give the host this long to come back to its disabled controller.
    AwaitHost(Duration),
    /// The host is back.
    StopAwaiting,
    /// Look for command `cid` on another connection; the Abort command waits in `slot`.
    AbortElsewhere { connection: ConnectionId, cid: u16, slot: u16 },
}

/// Which data a command moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It ends with this at once.
    Reject(Status),
    Nothing,
    FromHost(u32),
    ToHost(u32),
}

/// A namespace as this queue uses it.
pub struct QueueNamespace {
    pub view: Arc<NamespaceView>,
    pub channel: Rc<Channel>,
    /// What is configured for the queue's listener; the bdev's own access comes on top.
    pub configured: AnaState,
    pub block_shift: u32,
}

impl QueueNamespace {
    pub fn state(&self) -> AnaState {
        worse(self.configured, self.view.access_state())
    }
}

/// The first half of a fused pair that waits for its second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedFirst {
    None,
    Waiting(u16),
    /// It has failed by itself: its second fails with it.
    Failed,
}

pub struct Queue {
    pub id: ConnectionId,
    pub portal: u64,
    pub peer: std::net::SocketAddr,
    pub local: std::net::SocketAddr,
    pub view: Arc<View>,
    pub role: Role,
    pub qid: u16,
    /// Entries; the submission queue head counts modulo this.
    pub sq_entries: u16,
    pub sq_head: u16,
    pub flow_control: bool,
    pub slots: Slots,
    /// Completed commands in the order in which they answer.
    pub ready: VecDeque<u16>,
    pub actions: Vec<Action>,
    pub fused: FusedFirst,
    pub subsystem: Option<Arc<SubsystemView>>,
    /// By NSID minus one.
    pub namespaces: Vec<Option<QueueNamespace>>,
    /// I/Os at bdevs.
    pub in_flight: u32,
    /// Commands completed since the connection began.
    pub completed: u64,
    pub discovery: Arc<super::directory::Directory>,
}

/// What a queue is made of.
pub struct QueueOrigin {
    pub id: ConnectionId,
    pub portal: u64,
    pub peer: std::net::SocketAddr,
    pub local: std::net::SocketAddr,
    pub view: Arc<View>,
    pub discovery: Arc<super::directory::Directory>,
}

impl Queue {
    pub fn new(origin: QueueOrigin) -> Queue {
        Queue {
            id: origin.id,
            portal: origin.portal,
            peer: origin.peer,
            local: origin.local,
            view: origin.view,
            role: Role::Unconnected,
            qid: 0,
            sq_entries: UNCONNECTED_SLOTS,
            sq_head: 0,
            flow_control: true,
            slots: Slots::new(UNCONNECTED_SLOTS),
            ready: VecDeque::new(),
            actions: Vec::new(),
            fused: FusedFirst::None,
            subsystem: None,
            namespaces: Vec::new(),
            in_flight: 0,
            completed: 0,
            discovery: origin.discovery,
        }
    }

    pub fn transport(&self) -> &TransportOptions {
        &self.view.transport
    }

    /// Which data `entry` moves, or why it is refused before any data moves.
    pub fn plan(&self, entry: &SubmissionEntry) -> Need {
        let fabrics = entry.opcode == AdminOpcode::FABRICS;
        match &self.role {
            Role::Unconnected => match FabricsType::from_wire(entry.fctype()) {
                Some(FabricsType::Connect) if fabrics => {
                    let length = entry.sgl.length.get() as usize;
                    if length < size_of::<ConnectData>() {
                        return Need::Reject(Status::DATA_SGL_LENGTH_INVALID.dnr());
                    }
                    Need::FromHost(size_of::<ConnectData>() as u32)
                }
                _ => Need::Reject(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            },
            Role::Admin(controller) if fabrics => controller.plan_fabrics(entry),
            Role::Admin(controller) => controller.plan_admin(entry, self.transport().max_io_size),
            Role::Io(_) if fabrics => Need::Reject(Status::INVALID_OPCODE.dnr()),
            Role::Io(_) => self.plan_io(entry),
        }
    }

    /// Runs a command whose data, if any, is in its slot.
    pub fn run(&mut self, slot: u16, owner: &Rc<dyn IoOwner>) {
        if let Some(status) = self.slots[slot].doomed {
            return self.complete(slot, status);
        }
        match &self.role {
            Role::Unconnected => self.run_connect(slot),
            Role::Admin(_) => self.run_admin(slot),
            Role::Io(_) => self.run_io(slot, owner),
        }
    }

    fn run_connect(&mut self, slot: u16) {
        let command = ConnectCommand::from_entry(&self.slots[slot].entry);
        let data = self.slots[slot].data.take();
        let data = data.and_then(|buf| {
            buf.with(|bytes| {
                <ConnectData as zerocopy::FromBytes>::read_from_prefix(bytes).ok().map(|(d, _)| d)
            })
        });
        match data {
            Some(data) => self.connect(slot, &command, &data),
            None => self.complete(slot, Status::DATA_SGL_LENGTH_INVALID.dnr()),
        }
    }

    /// Completes a command.
    pub fn complete(&mut self, slot: u16, status: Status) {
        self.complete_with(slot, status, 0);
    }

    /// Completes a command with a value in dwords 0 and 1.
    pub fn complete_with(&mut self, slot: u16, status: Status, value: u64) {
        debug_assert!(!matches!(self.slots[slot].stage, Stage::Free | Stage::Answered));
        if self.slots[slot].partner.is_some() || self.fused == FusedFirst::Waiting(slot) {
            self.unfuse(slot);
        }
        self.sq_head = (self.sq_head + 1) % self.sq_entries;
        let sqhd = if self.flow_control { self.sq_head } else { 0xffff };
        let s = &mut self.slots[slot];
        s.completion = crate::nvme::CompletionEntry::new(s.cid(), status);
        s.completion.set_value(value);
        s.completion.sqhd = sqhd.into();
        if !status.is_success() && s.to_host {
            // Nothing of a failed command's data goes out.
            s.data = None;
        }
        s.stage = Stage::Answered;
        self.completed += 1;
        self.ready.push_back(slot);
        if !status.is_success() {
            let (qid, entry) = (self.qid, self.slots[slot].entry);
            tracing::debug!(qid, opcode = entry.opcode, %status, "command failed");
            if let Role::Admin(controller) = &mut self.role {
                controller.note_error(qid, &entry, status);
            }
        }
    }

    /// The namespace of that NSID, if this queue has it.
    pub fn namespace(&self, nsid: u32) -> Option<&QueueNamespace> {
        self.namespaces.get((nsid as usize).wrapping_sub(1))?.as_ref()
    }

    /// Takes over a new view: the namespaces this queue serves, and what its controller has to tell its host. False:
    /// the queue's subsystem, listener or host is not allowed any more, and the connection has to end.
    #[must_use]
    pub fn apply(&mut self, view: Arc<View>) -> bool {
        let genctr_changed = self.view.genctr != view.genctr;
        self.view = view.clone();
        let (shared, is_admin) = match &self.role {
            Role::Unconnected => return true,
            Role::Admin(controller) => (controller.shared.clone(), true),
            Role::Io(shared) => (shared.clone(), false),
        };
        let Some(id) = shared.subsystem else {
            if genctr_changed && let Role::Admin(controller) = &mut self.role {
                controller.discovery_changed();
            }
            self.answer_events();
            return true;
        };
        let Some(subsystem) = view.subsystem_by_id(id) else { return false };
        if subsystem.listener(shared.portal).is_none() || !subsystem.allows_host(&shared.host.nqn) {
            return false;
        }
        self.subsystem = Some(subsystem.clone());
        if is_admin {
            self.refresh();
        } else {
            self.build_namespaces();
        }
        true
    }

    /// Looks again at what changes by itself (sizes, access states) and tells the host.
    pub fn refresh(&mut self) {
        let Some(subsystem) = self.subsystem.clone() else { return };
        if let Role::Admin(controller) = &mut self.role {
            controller.compare(&subsystem);
        }
        self.answer_events();
    }

    /// The table of namespaces for the data path. A bdev whose channel cannot be opened has no namespace here until
    /// the next change.
    pub fn build_namespaces(&mut self) {
        self.namespaces.clear();
        let Some(subsystem) = self.subsystem.clone() else { return };
        let Some(listener) = subsystem.listener(self.portal) else { return };
        let highest = subsystem.namespaces.keys().next_back().copied().unwrap_or(0);
        self.namespaces.resize_with(highest as usize, || None);
        for (&nsid, view) in &subsystem.namespaces {
            match view.bdev.channel() {
                Ok(channel) => {
                    self.namespaces[nsid as usize - 1] = Some(QueueNamespace {
                        view: view.clone(),
                        channel,
                        configured: listener.group_state(view.anagrpid),
                        block_shift: view.bdev.block_size().trailing_zeros(),
                    });
                }
                Err(error) => tracing::error!(nsid, nqn = subsystem.nqn, "namespace unusable: {error}"),
            }
        }
    }
}
