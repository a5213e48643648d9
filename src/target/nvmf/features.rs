//! Get and Set Features (Base 5.15, 5.27).

use super::directory::Host;
use super::queue::{Action, Need, Queue};
use crate::nvme::feature::{self, HOST_BEHAVIOR_LEN, Select};
use crate::nvme::{Status, SubmissionEntry};

/// Composite temperature threshold after a reset: never reached (Base 5.27.1.3 leaves it to the vendor).
const TEMPERATURE_DEFAULT: u16 = 0xffff;

/// A controller's feature values.
pub struct Features {
    pub keep_alive_ms: u32,
    pub async_events: u32,
    io_queues: u16,
    arbitration: u32,
    power: u32,
    /// Over and under threshold of the composite temperature.
    temperature: [u16; 2],
    error_recovery: u32,
    write_cache: u32,
    write_atomicity: u32,
    host_behavior: Box<[u8; HOST_BEHAVIOR_LEN]>,
}

impl Features {
    pub fn new(io_queues: u16, keep_alive_ms: u32) -> Features {
        Features {
            keep_alive_ms,
            async_events: 0,
            io_queues,
            arbitration: 0,
            power: 0,
            temperature: [TEMPERATURE_DEFAULT, 0],
            error_recovery: 0,
            write_cache: feature::VWC_ENABLE,
            write_atomicity: 0,
            host_behavior: Box::new([0; HOST_BEHAVIOR_LEN]),
        }
    }

    /// The value of a feature that fits into dword 0.
    fn get(&self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let d11 = entry.cdw11.get();
        Ok(match entry.feature_id() {
            feature::ARBITRATION => self.arbitration,
            feature::POWER_MANAGEMENT => self.power,
            feature::TEMPERATURE_THRESHOLD => {
                // THSEL in bits 21:20, TMPSEL in bits 19:16; only the composite temperature exists.
                let (sensor, which) = (d11 >> 16 & 0xf, (d11 >> 20 & 3) as usize);
                match self.temperature.get(which) {
                    Some(&value) if sensor == 0 => value.into(),
                    _ => return Err(Status::INVALID_FIELD.dnr()),
                }
            }
            feature::ERROR_RECOVERY => self.error_recovery,
            feature::VOLATILE_WRITE_CACHE => self.write_cache,
            feature::NUMBER_OF_QUEUES => feature::number_of_queues(self.io_queues, self.io_queues),
            feature::INTERRUPT_COALESCING => 0,
            feature::INTERRUPT_VECTOR => d11 & 0xffff,
            feature::WRITE_ATOMICITY => self.write_atomicity,
            feature::ASYNC_EVENT_CONFIGURATION => self.async_events,
            feature::KEEP_ALIVE_TIMER => self.keep_alive_ms,
            _ => return Err(Status::INVALID_FIELD.dnr()),
        })
    }

    /// Sets a feature given in dword 11. `Ok(Some(_))` is the value to answer with.
    fn set(&mut self, entry: &SubmissionEntry) -> Result<u32, Status> {
        let d11 = entry.cdw11.get();
        match entry.feature_id() {
            feature::ARBITRATION => self.arbitration = d11,
            // There is one power state.
            feature::POWER_MANAGEMENT if d11 & 0x1f != 0 => return Err(Status::INVALID_FIELD.dnr()),
            feature::POWER_MANAGEMENT => self.power = d11,
            feature::TEMPERATURE_THRESHOLD => {
                let (sensor, which) = (d11 >> 16 & 0xf, (d11 >> 20 & 3) as usize);
                // TMPSEL Fh addresses every sensor there is.
                match self.temperature.get_mut(which) {
                    Some(value) if sensor == 0 || sensor == 0xf => *value = d11 as u16,
                    _ => return Err(Status::INVALID_FIELD.dnr()),
                }
            }
            // DULBE needs namespaces that report deallocated blocks as errors; ours read zeroes.
            feature::ERROR_RECOVERY if d11 & 1 << 16 != 0 => return Err(Status::INVALID_FIELD.dnr()),
            feature::ERROR_RECOVERY => self.error_recovery = d11,
            feature::VOLATILE_WRITE_CACHE => self.write_cache = d11 & feature::VWC_ENABLE,
            feature::WRITE_ATOMICITY => self.write_atomicity = d11,
            feature::ASYNC_EVENT_CONFIGURATION => self.async_events = d11,
            feature::INTERRUPT_COALESCING | feature::INTERRUPT_VECTOR => {
                return Err(Status::FEATURE_NOT_CHANGEABLE.dnr());
            }
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(0)
    }
}

/// Features of an I/O controller.
pub const SUPPORTED: [u8; 13] = [
    feature::ARBITRATION,
    feature::POWER_MANAGEMENT,
    feature::TEMPERATURE_THRESHOLD,
    feature::ERROR_RECOVERY,
    feature::VOLATILE_WRITE_CACHE,
    feature::NUMBER_OF_QUEUES,
    feature::INTERRUPT_COALESCING,
    feature::INTERRUPT_VECTOR,
    feature::WRITE_ATOMICITY,
    feature::ASYNC_EVENT_CONFIGURATION,
    feature::KEEP_ALIVE_TIMER,
    feature::HOST_BEHAVIOR,
    feature::HOST_IDENTIFIER,
];

/// Features that a discovery controller has.
fn of_discovery(id: u8) -> bool {
    matches!(id, feature::KEEP_ALIVE_TIMER | feature::ASYNC_EVENT_CONFIGURATION)
}

fn needs(entry: &SubmissionEntry, len: usize) -> Result<u32, Need> {
    match entry.sgl.length.get() as usize >= len {
        true => Ok(len as u32),
        false => Err(Need::Reject(Status::DATA_SGL_LENGTH_INVALID.dnr())),
    }
}

pub fn plan_get(entry: &SubmissionEntry) -> Need {
    let len = match entry.feature_id() {
        feature::HOST_BEHAVIOR => HOST_BEHAVIOR_LEN,
        feature::HOST_IDENTIFIER => 16,
        _ => return Need::Nothing,
    };
    needs(entry, len).map_or_else(|need| need, Need::ToHost)
}

pub fn plan_set(entry: &SubmissionEntry) -> Need {
    match entry.feature_id() {
        feature::HOST_BEHAVIOR => needs(entry, HOST_BEHAVIOR_LEN).map_or_else(|need| need, Need::FromHost),
        _ => Need::Nothing,
    }
}

impl Queue {
    pub fn get_features(&mut self, slot: u16) {
        let entry = self.slots[slot].entry;
        let data = self.slots[slot].data.clone();
        let Some(controller) = self.controller() else { return };
        let id = entry.feature_id();
        if entry.feature_select() != Select::Current || (controller.is_discovery() && !of_discovery(id)) {
            return self.complete(slot, Status::INVALID_FIELD.dnr());
        }
        let outcome = match (id, data) {
            (feature::HOST_BEHAVIOR, Some(buf)) => {
                buf.write_at(0, &controller.features.host_behavior[..]);
                Ok(0)
            }
            // Over Fabrics only the 16-byte identifier exists (Base 5.27.1.25).
            (feature::HOST_IDENTIFIER, _) if entry.cdw11.get() & feature::HOSTID_EXTENDED == 0 => {
                Err(Status::HOSTID_INCONSISTENT.dnr())
            }
            (feature::HOST_IDENTIFIER, Some(buf)) => {
                let Host { id, .. } = &controller.shared.host;
                buf.write_at(0, id);
                Ok(0)
            }
            _ => controller.features.get(&entry),
        };
        match outcome {
            Ok(value) => self.complete_with(slot, Status::SUCCESS, value.into()),
            Err(status) => self.complete(slot, status),
        }
    }

    pub fn set_features(&mut self, slot: u16) {
        let entry = self.slots[slot].entry;
        let data = self.slots[slot].data.clone();
        let Some(controller) = self.controller() else { return };
        let id = entry.feature_id();
        let outcome = match (id, data) {
            _ if entry.feature_save() => Err(Status::FEATURE_NOT_SAVEABLE.dnr()),
            _ if controller.is_discovery() && !of_discovery(id) => Err(Status::INVALID_FIELD.dnr()),
            (feature::NUMBER_OF_QUEUES, _) => {
                let d11 = entry.cdw11.get();
                if d11 & 0xffff == 0xffff || d11 >> 16 == 0xffff {
                    Err(Status::INVALID_FIELD.dnr())
                } else if controller.shared.has_io_queues() {
                    Err(Status::COMMAND_SEQUENCE_ERROR.dnr())
                } else {
                    // What there is, whatever was asked for: the host takes what it needs.
                    controller.features.get(&entry)
                }
            }
            (feature::KEEP_ALIVE_TIMER, _) => {
                controller.features.keep_alive_ms = entry.cdw11.get();
                let time = controller.keep_alive();
                self.actions.push(Action::KeepAlive(time));
                Ok(0)
            }
            // It was given at Connect.
            (feature::HOST_IDENTIFIER, _) => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            (feature::HOST_BEHAVIOR, Some(buf)) => {
                buf.read_at(0, &mut controller.features.host_behavior[..]);
                Ok(0)
            }
            _ => controller.features.set(&entry),
        };
        match outcome {
            Ok(value) => self.complete_with(slot, Status::SUCCESS, value.into()),
            Err(status) => self.complete(slot, status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::AdminOpcode;

    fn entry(id: u8, d11: u32) -> SubmissionEntry {
        let mut e = SubmissionEntry::new(AdminOpcode::SetFeatures as u8, 1);
        e.cdw10 = u32::from(id).into();
        e.cdw11 = d11.into();
        e
    }

    #[test]
    fn values_read_back_as_they_were_set() {
        let mut f = Features::new(4, 5000);
        for id in [feature::ARBITRATION, feature::ASYNC_EVENT_CONFIGURATION, feature::WRITE_ATOMICITY] {
            assert_eq!(f.set(&entry(id, 0x900)), Ok(0));
            assert_eq!(f.get(&entry(id, 0)), Ok(0x900));
        }
        assert_eq!(f.set(&entry(feature::TEMPERATURE_THRESHOLD, 1 << 20 | 300)), Ok(0));
        assert_eq!(f.get(&entry(feature::TEMPERATURE_THRESHOLD, 1 << 20)), Ok(300));
        assert_eq!(f.get(&entry(feature::NUMBER_OF_QUEUES, 0)), Ok(3 << 16 | 3));
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        let mut f = Features::new(4, 5000);
        assert_eq!(
            f.set(&entry(feature::INTERRUPT_COALESCING, 1)),
            Err(Status::FEATURE_NOT_CHANGEABLE.dnr())
        );
        assert_eq!(f.set(&entry(feature::POWER_MANAGEMENT, 1)), Err(Status::INVALID_FIELD.dnr()));
        assert_eq!(f.set(&entry(feature::TEMPERATURE_THRESHOLD, 3 << 20)), Err(Status::INVALID_FIELD.dnr()));
        assert_eq!(f.set(&entry(0xee, 1)), Err(Status::INVALID_FIELD.dnr()));
    }
}
