//! Get Log Page (Base 5.16): every page is built whole and the part that was asked for copied out.

use zerocopy::{FromZeros, IntoBytes};

use super::controller::Controller;
use super::discovery;
use super::queue::Queue;
use super::view::SubsystemView;
use crate::env::clock;
use crate::nvme::log::*;
use crate::nvme::{AdminOpcode, IoOpcode, NSID_ALL, Status};

/// Pages of a controller, and of a discovery controller.
const PAGES: [u8; 10] = [
    SUPPORTED_PAGES,
    ERROR,
    SMART,
    FIRMWARE,
    CHANGED_NAMESPACES,
    COMMAND_EFFECTS,
    ANA,
    FEATURE_EFFECTS,
    MI_COMMAND_EFFECTS,
    RESERVATION,
];
const DISCOVERY_PAGES: [u8; 1] = [DISCOVERY];
/// Composite temperature that we report, kelvin (20 °C): there is no thermometer, and 0 K alarms tools.
const TEMPERATURE_KELVIN: u16 = 293;
const NS_PER_HOUR: u64 = 3600 * 1_000_000_000;

fn supported_pages() -> Vec<u8> {
    let mut page = SupportedPages::new_zeroed();
    for lid in PAGES {
        page.lids[usize::from(lid)] = 1.into();
    }
    page.as_bytes().to_vec()
}

fn errors(c: &Controller) -> Vec<u8> {
    let mut page: Vec<u8> = c.errors.iter().flat_map(|e| e.as_bytes().to_vec()).collect();
    page.resize(super::controller::ERROR_LOG_ENTRIES * size_of::<ErrorEntry>(), 0);
    page
}

fn smart(c: &Controller, subsystem: &SubsystemView) -> Vec<u8> {
    let mut page = SmartLog::new_zeroed();
    page.temperature = TEMPERATURE_KELVIN.into();
    page.available_spare = 100;
    page.available_spare_threshold = 10;
    let (mut read, mut written, mut reads, mut writes, mut failed) = (0u128, 0u128, 0u128, 0u128, 0u128);
    for ns in subsystem.namespaces.values() {
        let stats = ns.bdev.stats();
        read += u128::from(stats.read.bytes);
        written += u128::from(stats.write.bytes);
        reads += u128::from(stats.read.ops);
        writes += u128::from(stats.write.ops);
        failed += u128::from(stats.read.errors + stats.write.errors);
    }
    page.data_units_read = read.div_ceil(512 * 1000).into();
    page.data_units_written = written.div_ceil(512 * 1000).into();
    page.host_read_commands = reads.into();
    page.host_write_commands = writes.into();
    page.media_errors = failed.into();
    page.power_on_hours = u128::from(clock::now().saturating_sub(c.started_ns) / NS_PER_HOUR).into();
    page.power_cycles = 1.into();
    page.error_log_entries = u128::from(c.error_count).into();
    page.as_bytes().to_vec()
}

fn firmware() -> Vec<u8> {
    let mut page = FirmwareLog::new_zeroed();
    page.afi = 1;
    page.revisions[0] = super::identify::firmware_revision();
    page.as_bytes().to_vec()
}

fn changed_namespaces(changed: Option<Vec<u32>>) -> Vec<u8> {
    let mut page: Vec<u8> = match changed {
        Some(list) => list.iter().flat_map(|nsid| nsid.to_le_bytes()).collect(),
        None => NSID_ALL.to_le_bytes().to_vec(),
    };
    page.resize(CHANGED_NAMESPACES_MAX * 4, 0);
    page
}

fn effects() -> Vec<u8> {
    let mut page = EffectsLog::new_zeroed();
    for opcode in [
        AdminOpcode::GetLogPage,
        AdminOpcode::Identify,
        AdminOpcode::Abort,
        AdminOpcode::SetFeatures,
        AdminOpcode::GetFeatures,
        AdminOpcode::AsyncEventRequest,
        AdminOpcode::KeepAlive,
    ] {
        page.admin[opcode as usize] = EFFECT_SUPPORTED.into();
    }
    for opcode in [IoOpcode::Flush, IoOpcode::Read, IoOpcode::Compare] {
        page.io[opcode as usize] = EFFECT_SUPPORTED.into();
    }
    for opcode in [IoOpcode::Write, IoOpcode::WriteZeroes, IoOpcode::DatasetManagement] {
        page.io[opcode as usize] = (EFFECT_SUPPORTED | EFFECT_BLOCK_CONTENT).into();
    }
    page.as_bytes().to_vec()
}

fn feature_effects() -> Vec<u8> {
    let mut page = FeatureEffects::new_zeroed();
    for fid in super::features::SUPPORTED {
        page.fids[usize::from(fid)] = (FEATURE_SUPPORTED | FEATURE_OF_CONTROLLER).into();
    }
    page.as_bytes().to_vec()
}

fn ana(c: &Controller, subsystem: &SubsystemView, groups_only: bool) -> Vec<u8> {
    let header = AnaHeader {
        change_count: c.ana_change_count.into(),
        num_groups: (c.groups().len() as u16).into(),
        ..Default::default()
    };
    let mut page = header.as_bytes().to_vec();
    for (&id, known) in c.groups() {
        let of_group = subsystem.namespaces.values().filter(|ns| ns.anagrpid == id);
        let members: Vec<u32> = of_group.map(|ns| ns.nsid).collect();
        let group = AnaGroup {
            group_id: id.into(),
            num_nsids: if groups_only { 0 } else { members.len() as u32 }.into(),
            change_count: known.change_count.into(),
            state: known.state as u8,
            ..Default::default()
        };
        page.extend_from_slice(group.as_bytes());
        if !groups_only {
            page.extend(members.iter().flat_map(|nsid| nsid.to_le_bytes()));
        }
    }
    page
}

impl Queue {
    pub fn get_log_page(&mut self, slot: u16) {
        let entry = self.slots[slot].entry;
        let request = LogRequest::from_entry(&entry);
        let outcome = self.log_page(&request, entry.nsid.get()).and_then(|page| {
            let offset = usize::try_from(request.offset_bytes).unwrap_or(usize::MAX);
            // Offsets are whole dwords inside the page (Base 5.16).
            if request.offset_is_index || !offset.is_multiple_of(4) || offset > page.len() {
                return Err(Status::INVALID_FIELD.dnr());
            }
            let buf = self.slots[slot].data.as_ref().ok_or(Status::INTERNAL_ERROR)?;
            let part = &page[offset..page.len().min(offset + buf.len())];
            buf.write_at(0, part);
            buf.fill(part.len(), buf.len() - part.len(), 0);
            Ok(())
        });
        if outcome.is_ok()
            && !request.retain_event
            && let Some(c) = self.controller()
        {
            c.log_read(request.page);
        }
        self.complete(slot, outcome.err().unwrap_or(Status::SUCCESS));
        self.answer_events();
    }

    fn log_page(&mut self, request: &LogRequest, nsid: u32) -> Result<Vec<u8>, Status> {
        let (view, local, portal) = (self.view.clone(), self.local, self.portal);
        let subsystem = self.subsystem.clone();
        let bad = Status::INVALID_LOG_PAGE.dnr();
        let Some(c) = self.controller() else { return Err(Status::INTERNAL_ERROR) };
        let Some(subsystem) = subsystem else {
            return match request.page {
                page if DISCOVERY_PAGES.contains(&page) => {
                    Ok(discovery::page(&view, &c.shared.host.nqn, portal, local))
                }
                _ => Err(bad),
            };
        };
        Ok(match request.page {
            SUPPORTED_PAGES => supported_pages(),
            ERROR => errors(c),
            // Not kept per namespace (LPA bit 0 is clear).
            SMART if nsid != 0 && nsid != NSID_ALL => return Err(Status::INVALID_FIELD.dnr()),
            SMART => smart(c, &subsystem),
            FIRMWARE => firmware(),
            CHANGED_NAMESPACES => changed_namespaces(c.take_changed()),
            COMMAND_EFFECTS => effects(),
            ANA if subsystem.ana_reporting => {
                // A role may have changed a moment ago: a host that asks because a command was refused must not be
                // told of the old one.
                c.compare(&subsystem);
                ana(c, &subsystem, request.lsp & ANA_LSP_GROUPS_ONLY != 0)
            }
            FEATURE_EFFECTS => feature_effects(),
            MI_COMMAND_EFFECTS => vec![0; MI_COMMAND_EFFECTS_LEN],
            // Nothing is ever pending: an empty page.
            RESERVATION => ReservationLog::new_zeroed().as_bytes().to_vec(),
            _ => return Err(bad),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_their_specified_lengths() {
        assert_eq!(supported_pages().len(), 1024);
        assert_eq!(firmware().len(), 512);
        assert_eq!(effects().len(), 4096);
        assert_eq!(feature_effects().len(), 1024);
        assert_eq!(changed_namespaces(Some(vec![3, 5])).len(), 4096);
        assert_eq!(changed_namespaces(None)[..8], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    }
}
