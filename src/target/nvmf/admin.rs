//! Admin commands: which data each needs, and who runs it.

use super::controller::{ASYNC_EVENT_LIMIT, Controller};
use super::features;
use super::queue::{Need, Queue};
use crate::env::clock;
use crate::nvme::identify::IDENTIFY_LEN;
use crate::nvme::log::LogRequest;
use crate::nvme::{AdminOpcode, Fuse, Status, SubmissionEntry};

impl Controller {
    /// Which data an admin command (not a fabrics one) needs.
    pub fn plan_admin(&self, entry: &SubmissionEntry, max_io_size: u32) -> Need {
        if entry.fuse() != Fuse::None {
            return Need::Reject(Status::INVALID_FIELD.dnr());
        }
        let Some(opcode) = AdminOpcode::from_wire(entry.opcode) else {
            return Need::Reject(Status::INVALID_OPCODE.dnr());
        };
        if !self.is_enabled() {
            return Need::Reject(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let to_host = |len: u64| match u64::from(entry.sgl.length.get()) >= len {
            true => Need::ToHost(len as u32),
            false => Need::Reject(Status::DATA_SGL_LENGTH_INVALID.dnr()),
        };
        match opcode {
            AdminOpcode::Identify => to_host(IDENTIFY_LEN as u64),
            AdminOpcode::GetLogPage => match LogRequest::from_entry(entry).length_bytes {
                len if len > u64::from(max_io_size) => Need::Reject(Status::INVALID_FIELD.dnr()),
                len => to_host(len),
            },
            AdminOpcode::GetFeatures => features::plan_get(entry),
            AdminOpcode::SetFeatures => features::plan_set(entry),
            AdminOpcode::KeepAlive | AdminOpcode::AsyncEventRequest => Need::Nothing,
            AdminOpcode::Abort if !self.is_discovery() => Need::Nothing,
            // Queues are made by Connect over Fabrics (Base 3.3.2.2).
            _ => Need::Reject(Status::INVALID_OPCODE.dnr()),
        }
    }
}

impl Queue {
    pub fn run_admin(&mut self, slot: u16) {
        match AdminOpcode::from_wire(self.slots[slot].entry.opcode) {
            Some(AdminOpcode::Fabrics) => self.run_property(slot, clock::now()),
            Some(AdminOpcode::Identify) => self.identify(slot),
            Some(AdminOpcode::GetLogPage) => self.get_log_page(slot),
            Some(AdminOpcode::GetFeatures) => self.get_features(slot),
            Some(AdminOpcode::SetFeatures) => self.set_features(slot),
            Some(AdminOpcode::Abort) => self.run_abort(slot),
            // Every command on the admin queue counts as a sign of life; this one is nothing else.
            Some(AdminOpcode::KeepAlive) => self.complete(slot, Status::SUCCESS),
            Some(AdminOpcode::AsyncEventRequest) => self.rest_event_request(slot),
            _ => self.complete(slot, Status::INVALID_OPCODE.dnr()),
        }
    }

    fn rest_event_request(&mut self, slot: u16) {
        let Some(controller) = self.controller() else { return };
        if controller.event_requests.len() >= ASYNC_EVENT_LIMIT {
            return self.complete(slot, Status::AER_LIMIT_EXCEEDED.dnr());
        }
        controller.event_requests.push(slot);
        self.answer_events();
    }
}
