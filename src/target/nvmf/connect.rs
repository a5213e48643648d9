//! The Connect command (Base 6.3): a connection becomes a queue of a controller, or is told why not.

use std::sync::Arc;

use super::controller::Controller;
use super::directory::{Host, JoinError, NewController, QueueEntry};
use super::options::ListenAddress;
use super::queue::{Action, Queue, Role};
use super::view::SubsystemView;
use crate::nvme::fabrics::{
    CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, ConnectCommand, ConnectData, connect_invalid,
};
use crate::nvme::nqn::{DISCOVERY_NQN, NQN_MAX_LEN};
use crate::nvme::{Status, get_nul_terminated};

/// Offsets that "invalid parameters" points at.
mod at {
    pub const COMMAND_QID: u16 = 42;
    pub const COMMAND_SQSIZE: u16 = 44;
    pub const DATA_CNTLID: u16 = 16;
    pub const DATA_SUBNQN: u16 = 256;
    pub const DATA_HOSTNQN: u16 = 512;
}

/// A refusal: the status, and dword 0 with the place of the wrong parameter.
struct Refusal(Status, u32);

impl Refusal {
    fn status(status: Status) -> Refusal {
        Refusal(status.dnr(), 0)
    }

    fn in_command(offset: u16) -> Refusal {
        Refusal(Status::CONNECT_INVALID_PARAMETERS.dnr(), connect_invalid(false, offset))
    }

    fn in_data(offset: u16) -> Refusal {
        Refusal(Status::CONNECT_INVALID_PARAMETERS.dnr(), connect_invalid(true, offset))
    }
}

impl Queue {
    /// Runs a Connect command.
    pub fn connect(&mut self, slot: u16, command: &ConnectCommand, data: &ConnectData) {
        match self.try_connect(command, data) {
            Ok(cntlid) => {
                self.complete_with(slot, Status::SUCCESS, u64::from(cntlid));
            }
            Err(Refusal(status, place)) => {
                tracing::info!(peer = %self.peer, %status, place, "connect refused");
                self.complete_with(slot, status, u64::from(place));
            }
        }
    }

    fn try_connect(&mut self, command: &ConnectCommand, data: &ConnectData) -> Result<u16, Refusal> {
        let subnqn = get_nul_terminated(&data.subnqn).ok_or(Refusal::in_data(at::DATA_SUBNQN))?;
        // Any text is a host's name, also none at all (SPDK's tools send none): the list of allowed hosts decides.
        let hostnqn = get_nul_terminated(&data.hostnqn)
            .filter(|n| n.len() <= NQN_MAX_LEN && !n.chars().any(char::is_control))
            .ok_or(Refusal::in_data(at::DATA_HOSTNQN))?;
        if command.recfmt.get() != 0 {
            return Err(Refusal::status(Status::CONNECT_INCOMPATIBLE_FORMAT));
        }
        let subsystem = match subnqn {
            DISCOVERY_NQN => None,
            _ => Some(self.view.subsystem(subnqn).ok_or(Refusal::in_data(at::DATA_SUBNQN))?.clone()),
        };
        if let Some(subsystem) = &subsystem
            && (!subsystem.allows_host(hostnqn) || subsystem.listener(self.portal).is_none())
        {
            return Err(Refusal::status(Status::CONNECT_INVALID_HOST));
        }
        let (qid, sqsize) = (command.qid.get(), command.sqsize.get());
        let options = self.transport();
        let deepest = if qid == 0 { options.max_admin_queue_depth } else { options.max_queue_depth };
        if sqsize == 0 || sqsize >= deepest {
            return Err(Refusal::in_command(at::COMMAND_SQSIZE));
        }
        let host = Host { nqn: hostnqn.to_string(), id: data.hostid };
        let entry = QueueEntry { connection: self.id, sqsize, peer: self.peer };
        let cntlid = match qid {
            0 => self.connect_admin(command, data, subsystem, host, entry)?,
            _ => self.connect_io(qid, data.cntlid.get(), subsystem, host, entry)?,
        };
        self.qid = qid;
        self.sq_entries = sqsize + 1;
        self.sq_head = 0;
        self.flow_control = command.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL == 0;
        // One more than the host may have out: the answer to its last command may still be in our send.
        self.slots.grow(self.sq_entries + 1);
        Ok(cntlid)
    }

    fn connect_admin(
        &mut self,
        command: &ConnectCommand,
        data: &ConnectData,
        subsystem: Option<Arc<SubsystemView>>,
        host: Host,
        admin: QueueEntry,
    ) -> Result<u16, Refusal> {
        if data.cntlid.get() != CNTLID_DYNAMIC {
            return Err(Refusal::in_data(at::DATA_CNTLID));
        }
        let listener = subsystem.as_ref().and_then(|s| s.listener(self.portal));
        let new = NewController {
            subsystem: subsystem.as_ref().map(|s| s.id),
            host,
            portal: self.portal,
            listener: listener.map_or_else(|| ListenAddress::of(self.local), |l| l.address.clone()),
            max_io_queues: match subsystem {
                Some(_) => self.transport().max_io_queues_per_controller,
                None => 0,
            },
            admin,
        };
        let directory = subsystem.as_ref().map_or(&self.discovery, |s| &s.directory);
        let shared = directory.create(new).ok_or(Refusal(Status::CONNECT_CONTROLLER_BUSY, 0))?;
        let cntlid = shared.cntlid;
        let mut controller =
            Controller::new(shared, directory.clone(), self.transport(), command.kato_ms.get());
        self.actions.push(Action::KeepAlive(controller.keep_alive()));
        if let Some(subsystem) = &subsystem {
            controller.learn(subsystem);
        }
        self.subsystem = subsystem;
        self.role = Role::Admin(Box::new(controller));
        Ok(cntlid)
    }

    fn connect_io(
        &mut self,
        qid: u16,
        cntlid: u16,
        subsystem: Option<Arc<SubsystemView>>,
        host: Host,
        entry: QueueEntry,
    ) -> Result<u16, Refusal> {
        // A discovery controller has no I/O queues.
        let subsystem = subsystem.ok_or(Refusal::in_command(at::COMMAND_QID))?;
        let shared = subsystem.directory.get(cntlid).ok_or(Refusal::in_data(at::DATA_CNTLID))?;
        if shared.host != host || shared.portal != self.portal {
            return Err(Refusal::status(Status::CONNECT_INVALID_HOST));
        }
        shared.join(qid, entry).map_err(|error| match error {
            JoinError::NotReady => Refusal::in_command(at::COMMAND_QID),
            JoinError::BadQueueId => Refusal::status(Status::INVALID_QUEUE_ID),
        })?;
        self.subsystem = Some(subsystem);
        self.role = Role::Io(shared);
        self.build_namespaces();
        Ok(cntlid)
    }
}
