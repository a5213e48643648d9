//! Log pages (Base 5.16.1) and the fields of Get Log Page.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{SubmissionEntry, assert_layout};

pub const SUPPORTED_PAGES: u8 = 0x00;
pub const ERROR: u8 = 0x01;
pub const SMART: u8 = 0x02;
pub const FIRMWARE: u8 = 0x03;
pub const CHANGED_NAMESPACES: u8 = 0x04;
pub const COMMAND_EFFECTS: u8 = 0x05;
pub const ANA: u8 = 0x0c;
pub const FEATURE_EFFECTS: u8 = 0x12;
pub const MI_COMMAND_EFFECTS: u8 = 0x13;
pub const DISCOVERY: u8 = 0x70;
pub const RESERVATION: u8 = 0x80;

/// Get Log Page's parameters (Base 5.16, dwords 10 to 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRequest {
    pub page: u8,
    /// Log specific parameter.
    pub lsp: u8,
    /// Retain asynchronous event: reading does not rearm the event.
    pub retain_event: bool,
    pub length_bytes: u64,
    pub offset_bytes: u64,
    /// OT: the offset is an index, which we do not support.
    pub offset_is_index: bool,
}

impl LogRequest {
    pub fn from_entry(e: &SubmissionEntry) -> LogRequest {
        let (d10, d11, d14) = (e.cdw10.get(), e.cdw11.get(), e.cdw14.get());
        let dwords = u64::from(d10 >> 16) | u64::from(d11 & 0xffff) << 16;
        LogRequest {
            page: d10 as u8,
            lsp: (d10 >> 8) as u8 & 0x7f,
            retain_event: d10 & 1 << 15 != 0,
            length_bytes: (dwords + 1) * 4,
            offset_bytes: u64::from(e.cdw13.get()) << 32 | u64::from(e.cdw12.get()),
            offset_is_index: d14 & 1 << 23 != 0,
        }
    }

    /// Fills dwords 10 to 13; the length is rounded up to whole dwords.
    pub fn write(&self, e: &mut SubmissionEntry) {
        let dwords = self.length_bytes.div_ceil(4).saturating_sub(1) as u32;
        let rae = u32::from(self.retain_event) << 15;
        e.cdw10 = (u32::from(self.page) | u32::from(self.lsp) << 8 | rae | (dwords & 0xffff) << 16).into();
        e.cdw11 = (dwords >> 16).into();
        e.cdw12 = (self.offset_bytes as u32).into();
        e.cdw13 = ((self.offset_bytes >> 32) as u32).into();
    }
}

/// Supported log pages: one descriptor a page, bit 0 = supported (Base 5.16.1.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SupportedPages {
    pub lids: [U32; 256],
}
assert_layout!(SupportedPages, 1024);

/// Feature identifiers supported and effects: one descriptor a feature, bit 0 = supported, bit 21 = it belongs to the
/// controller (Base 5.16.1.18).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FeatureEffects {
    pub fids: [U32; 256],
}
assert_layout!(FeatureEffects, 1024);
pub const FEATURE_SUPPORTED: u32 = 1;
pub const FEATURE_OF_CONTROLLER: u32 = 1 << 21;

/// Length of the log of NVMe-MI commands (Base 5.16.1.19); all zeroes: none is supported.
pub const MI_COMMAND_EFFECTS_LEN: usize = 4096;

/// Error information entry (Base 5.16.1.2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorEntry {
    /// 0 = unused entry.
    pub error_count: U64,
    pub sqid: U16,
    pub cid: U16,
    pub status: U16,
    pub error_location: U16,
    pub lba: U64,
    pub nsid: U32,
    pub vendor: u8,
    pub trtype: u8,
    pub reserved30: [u8; 2],
    pub command_specific: U64,
    pub transport_specific: U16,
    pub reserved42: [u8; 22],
}
assert_layout!(ErrorEntry, 64, status @ 12, lba @ 16, nsid @ 24, trtype @ 29, command_specific @ 32);

/// SMART / health information (Base 5.16.1.3).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    pub critical_warning: u8,
    /// Kelvin.
    pub temperature: U16,
    pub available_spare: u8,
    pub available_spare_threshold: u8,
    pub percentage_used: u8,
    pub endurance_group_critical_warning: u8,
    pub reserved7: [u8; 25],
    /// Units of 1000 times 512 bytes, rounded up.
    pub data_units_read: U128,
    pub data_units_written: U128,
    pub host_read_commands: U128,
    pub host_write_commands: U128,
    /// Minutes.
    pub controller_busy_time: U128,
    pub power_cycles: U128,
    pub power_on_hours: U128,
    pub unsafe_shutdowns: U128,
    pub media_errors: U128,
    pub error_log_entries: U128,
    pub warning_temp_time: U32,
    pub critical_temp_time: U32,
    pub temp_sensors: [U16; 8],
    pub reserved216: [u8; 296],
}
assert_layout!(SmartLog, 512, temperature @ 1, data_units_read @ 32, error_log_entries @ 176, temp_sensors @ 200);

/// Firmware slot information (Base 5.16.1.4).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareLog {
    /// Bits 2:0: the active slot.
    pub afi: u8,
    pub reserved1: [u8; 7],
    pub revisions: [[u8; 8]; 7],
    pub reserved64: [u8; 448],
}
assert_layout!(FirmwareLog, 512, revisions @ 8);

/// Changed namespace list (Base 5.16.1.5): like an active namespace list; first entry `NSID_ALL` = too many.
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

/// Commands supported and effects (Base 5.16.1.6).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EffectsLog {
    pub admin: [U32; 256],
    pub io: [U32; 256],
    pub reserved2048: [u8; 2048],
}
assert_layout!(EffectsLog, 4096, io @ 1024);
/// The command is supported; it changes the content of blocks.
pub const EFFECT_SUPPORTED: u32 = 1;
pub const EFFECT_BLOCK_CONTENT: u32 = 1 << 1;

/// Asymmetric namespace access log (Base 5.16.1.13): header, then one descriptor and its NSIDs a group.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaHeader {
    pub change_count: U64,
    pub num_groups: U16,
    pub reserved10: [u8; 6],
}
assert_layout!(AnaHeader, 16, num_groups @ 8);

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaGroup {
    pub group_id: U32,
    pub num_nsids: U32,
    pub change_count: U64,
    /// Bits 3:0: an `AnaState`.
    pub state: u8,
    pub reserved17: [u8; 15],
}
assert_layout!(AnaGroup, 32, change_count @ 8, state @ 16);

/// LSP bit 0 of the ANA log: groups only, without their NSIDs.
pub const ANA_LSP_GROUPS_ONLY: u8 = 1;

/// Asymmetric namespace access state (Base 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AnaState {
    Optimized = 0x1,
    NonOptimized = 0x2,
    Inaccessible = 0x3,
    PersistentLoss = 0x4,
    Change = 0xf,
}

impl AnaState {
    pub fn from_wire(state: u8) -> Option<AnaState> {
        Some(match state & 0xf {
            0x1 => Self::Optimized,
            0x2 => Self::NonOptimized,
            0x3 => Self::Inaccessible,
            0x4 => Self::PersistentLoss,
            0xf => Self::Change,
            _ => return None,
        })
    }

    /// May I/O commands run in this state?
    pub fn serves_io(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

/// Reservation notification (Base 5.16.1.24): an empty page (type 0) when nothing is pending.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationLog {
    pub page_count: U64,
    pub page_type: u8,
    pub available_pages: u8,
    pub reserved10: [u8; 2],
    pub nsid: U32,
    pub reserved16: [u8; 48],
}
assert_layout!(ReservationLog, 64, page_type @ 8, nsid @ 12);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::AdminOpcode;

    #[test]
    fn a_log_request_survives_its_command() {
        let request = LogRequest {
            page: DISCOVERY,
            lsp: 5,
            retain_event: true,
            length_bytes: 4 * 70000,
            offset_bytes: 0x1_0000_0400,
            offset_is_index: false,
        };
        let mut entry = SubmissionEntry::new(AdminOpcode::GetLogPage as u8, 1);
        request.write(&mut entry);
        assert_eq!(LogRequest::from_entry(&entry), request);
    }

    #[test]
    fn only_optimized_and_non_optimized_groups_serve_io() {
        let serving: Vec<u8> =
            (0..16).filter(|&s| AnaState::from_wire(s).is_some_and(AnaState::serves_io)).collect();
        assert_eq!(serving, [1, 2]);
    }
}
