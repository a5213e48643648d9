//! Feature identifiers of Get/Set Features (Base 5.15, 5.27) and the layout of the values we use.

use super::SubmissionEntry;

pub const ARBITRATION: u8 = 0x01;
pub const POWER_MANAGEMENT: u8 = 0x02;
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
pub const ERROR_RECOVERY: u8 = 0x05;
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
pub const NUMBER_OF_QUEUES: u8 = 0x07;
pub const INTERRUPT_COALESCING: u8 = 0x08;
pub const INTERRUPT_VECTOR: u8 = 0x09;
pub const WRITE_ATOMICITY: u8 = 0x0a;
pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
pub const HOST_BEHAVIOR: u8 = 0x16;
pub const IO_COMMAND_SET_PROFILE: u8 = 0x19;
pub const HOST_IDENTIFIER: u8 = 0x81;
pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
pub const RESERVATION_PERSISTENCE: u8 = 0x83;

/// SEL of Get Features (Base 5.15, dword 10 bits 10:8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    Current,
    Default,
    Saved,
    Supported,
    Reserved,
}

impl SubmissionEntry {
    /// FID, dword 10 bits 7:0.
    pub fn feature_id(&self) -> u8 {
        self.cdw10.get() as u8
    }

    pub fn feature_select(&self) -> Select {
        match self.cdw10.get() >> 8 & 7 {
            0 => Select::Current,
            1 => Select::Default,
            2 => Select::Saved,
            3 => Select::Supported,
            _ => Select::Reserved,
        }
    }

    /// SV of Set Features, dword 10 bit 31.
    pub fn feature_save(&self) -> bool {
        self.cdw10.get() >> 31 != 0
    }
}

/// Number of queues: both counts are 0's based (Base 5.27.1.5).
pub fn number_of_queues(submission: u16, completion: u16) -> u32 {
    u32::from(completion.saturating_sub(1)) << 16 | u32::from(submission.saturating_sub(1))
}

/// Asynchronous event configuration bits (Base 5.27.1.8).
pub const AEC_SMART_MASK: u32 = 0xff;
pub const AEC_NAMESPACE: u32 = 1 << 8;
pub const AEC_FIRMWARE: u32 = 1 << 9;
pub const AEC_ANA: u32 = 1 << 11;
pub const AEC_DISCOVERY: u32 = 1 << 31;

/// Volatile write cache: WCE (Base 5.27.1.4).
pub const VWC_ENABLE: u32 = 1;

/// Host identifier: bit 0 of dword 11 asks for the 16-byte form, the only one Fabrics allows (Base 5.27.1.25).
pub const HOSTID_EXTENDED: u32 = 1;

/// Host behavior support: a buffer of this many bytes (Base 5.27.1.18).
pub const HOST_BEHAVIOR_LEN: usize = 512;
