//! Identify Controller (Base 5.17.2.1) and the lists around it.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::nqn::NQN_FIELD;

/// Every Identify data structure has this size.
pub const IDENTIFY_LEN: usize = 4096;

/// CNS values (Base 5.17.1, figure 273).
pub mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    pub const CSI_NAMESPACE: u8 = 0x05;
    pub const CSI_CONTROLLER: u8 = 0x06;
    pub const CSI_ACTIVE_NAMESPACES: u8 = 0x07;
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// I/O command set identifier of the NVM command set (dword 11 bits 31:24).
pub const CSI_NVM: u8 = 0;

/// Identify Controller, CNS 01h (Base 5.17.2.1, figure 275; NVM 4.1.5.2).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    pub vid: U16,
    pub ssvid: U16,
    pub sn: [u8; 20],
    pub mn: [u8; 40],
    pub fr: [u8; 8],
    pub rab: u8,
    pub ieee: [u8; 3],
    /// See `CMIC_*`.
    pub cmic: u8,
    /// Maximum data transfer is `2^(12 + mdts)` bytes; 0 = no limit.
    pub mdts: u8,
    pub cntlid: U16,
    pub ver: U32,
    pub rtd3r: U32,
    pub rtd3e: U32,
    /// Optional events, bits as in the asynchronous event configuration (`feature::AEC_*`).
    pub oaes: U32,
    /// See `CTRATT_*`.
    pub ctratt: U32,
    pub rrls: U16,
    pub reserved102: [u8; 9],
    /// 1 = I/O controller, 2 = discovery controller.
    pub cntrltype: u8,
    pub fguid: [u8; 16],
    pub crdt: [U16; 3],
    pub reserved134: [u8; 119],
    pub nvmsr: u8,
    pub vwci: u8,
    pub mec: u8,
    pub oacs: U16,
    /// Abort command limit, 0's based.
    pub acl: u8,
    /// Asynchronous event request limit, 0's based.
    pub aerl: u8,
    /// Firmware: bit 0 slot 1 is read-only, bits 3:1 number of slots.
    pub frmw: u8,
    /// See `LPA_*`.
    pub lpa: u8,
    /// Error log page entries, 0's based.
    pub elpe: u8,
    pub npss: u8,
    pub avscc: u8,
    pub apsta: u8,
    pub wctemp: U16,
    pub cctemp: U16,
    pub mtfa: U16,
    pub hmpre: U32,
    pub hmmin: U32,
    pub tnvmcap: [u8; 16],
    pub unvmcap: [u8; 16],
    pub rpmbs: U32,
    pub edstt: U16,
    pub dsto: u8,
    pub fwug: u8,
    /// Keep alive granularity, units of 100 ms.
    pub kas: U16,
    pub hctma: U16,
    pub mntmt: U16,
    pub mxtmt: U16,
    pub sanicap: U32,
    pub hmminds: U32,
    pub hmmaxd: U16,
    pub nsetidmax: U16,
    pub endgidmax: U16,
    /// ANA transition time, seconds.
    pub anatt: u8,
    /// See `ANACAP_*`.
    pub anacap: u8,
    pub anagrpmax: U32,
    pub nanagrpid: U32,
    pub pels: U32,
    pub domain_id: U16,
    pub reserved358: [u8; 10],
    pub megcap: [u8; 16],
    pub reserved384: [u8; 128],
    /// Required (3:0) and maximum (7:4) submission entry size, log2.
    pub sqes: u8,
    pub cqes: u8,
    pub maxcmd: U16,
    /// Greatest NSID.
    pub nn: U32,
    /// See `ONCS_*`.
    pub oncs: U16,
    /// Bit 0: fused compare and write.
    pub fuses: U16,
    pub fna: u8,
    /// Bit 0: a volatile write cache is present; bits 2:1: flush with NSID all.
    pub vwc: u8,
    pub awun: U16,
    pub awupf: U16,
    pub nvscc: u8,
    pub nwpc: u8,
    /// Atomic compare and write unit, 0's based blocks.
    pub acwu: U16,
    /// Copy descriptor formats.
    pub ocfs: U16,
    /// See `SGLS_*`.
    pub sgls: U32,
    pub mnan: U32,
    pub maxdna: [u8; 16],
    pub maxcna: U32,
    pub reserved564: [u8; 204],
    pub subnqn: [u8; NQN_FIELD],
    pub reserved1024: [u8; 768],
    /// I/O command capsule size, units of 16 bytes.
    pub ioccsz: U32,
    /// I/O response capsule size, units of 16 bytes.
    pub iorcsz: U32,
    /// In-capsule data offset, units of 16 bytes.
    pub icdoff: U16,
    /// Bit 0: static controller model.
    pub fcatt: u8,
    pub msdbd: u8,
    pub ofcs: U16,
    /// Discovery controller type.
    pub dctype: u8,
    pub reserved1807: [u8; 241],
    pub psd: [PowerState; 32],
    pub vendor: [u8; 1024],
}
assert_layout!(
    IdentifyController, IDENTIFY_LEN,
    sn @ 4, mn @ 24, fr @ 64, cmic @ 76, mdts @ 77, cntlid @ 78, oaes @ 92, ctratt @ 96, cntrltype @ 111,
    nvmsr @ 253, oacs @ 256, lpa @ 261, tnvmcap @ 280, rpmbs @ 312, kas @ 320, anatt @ 342, anacap @ 343,
    anagrpmax @ 344, nanagrpid @ 348, sqes @ 512, nn @ 516, oncs @ 520, fuses @ 522, vwc @ 525, acwu @ 532,
    sgls @ 536, mnan @ 540, subnqn @ 768, ioccsz @ 1792, icdoff @ 1800, msdbd @ 1803, dctype @ 1806, psd @ 2048,
    vendor @ 3072,
);

/// Power state descriptor (Base 5.17.2.1, figure 276); we report one, with its maximum power only.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PowerState {
    pub max_power: U16,
    pub reserved2: [u8; 30],
}
assert_layout!(PowerState, 32);

pub const CMIC_MULTIPLE_PORTS: u8 = 1 << 0;
pub const CMIC_MULTIPLE_CONTROLLERS: u8 = 1 << 1;
pub const CMIC_ANA: u8 = 1 << 3;

pub const CTRATT_HOST_ID_128: u32 = 1 << 0;
/// Traffic based keep alive: any command counts as a sign of life.
pub const CTRATT_TRAFFIC_KEEP_ALIVE: u32 = 1 << 6;

pub const LPA_SMART_PER_NAMESPACE: u8 = 1 << 0;
pub const LPA_COMMAND_EFFECTS: u8 = 1 << 1;
/// Get Log Page takes 32-bit lengths and an offset.
pub const LPA_EXTENDED_DATA: u8 = 1 << 2;
/// The logs of supported pages, features and NVMe-MI commands (LIDs 00h, 12h, 13h) exist.
pub const LPA_SUPPORTED_PAGES: u8 = 1 << 5;

pub const ANACAP_OPTIMIZED: u8 = 1 << 0;
pub const ANACAP_NON_OPTIMIZED: u8 = 1 << 1;
pub const ANACAP_INACCESSIBLE: u8 = 1 << 2;
pub const ANACAP_PERSISTENT_LOSS: u8 = 1 << 3;
pub const ANACAP_CHANGE: u8 = 1 << 4;
/// A namespace stays in its group while it is attached.
pub const ANACAP_GROUP_FIXED: u8 = 1 << 6;

pub const ONCS_COMPARE: u16 = 1 << 0;
pub const ONCS_DSM: u16 = 1 << 2;
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
pub const ONCS_SAVE_SELECT: u16 = 1 << 4;
pub const ONCS_RESERVATIONS: u16 = 1 << 5;
pub const ONCS_COPY: u16 = 1 << 8;

pub const FUSES_COMPARE_AND_WRITE: u16 = 1;

pub const VWC_PRESENT: u8 = 1;
/// Flush accepts NSID all.
pub const VWC_FLUSH_ALL: u8 = 3 << 1;
/// Flush refuses NSID all.
pub const VWC_FLUSH_ALL_UNSUPPORTED: u8 = 2 << 1;

/// SGLs supported, byte granular; in-capsule offsets; transport data blocks.
pub const SGLS_SUPPORTED: u32 = 1 << 0;
pub const SGLS_OFFSET: u32 = 1 << 20;
pub const SGLS_TRANSPORT: u32 = 1 << 21;

pub const CNTRLTYPE_IO: u8 = 1;
pub const CNTRLTYPE_DISCOVERY: u8 = 2;

/// NVM command set's Identify Controller, CNS 06h (NVM 4.1.5.4).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify, Write Zeroes, Write Uncorrectable, DSM size limits; 0 = no limit.
    pub vsl: u8,
    /// Write Zeroes: at most `2^(12 + wzsl)` bytes.
    pub wzsl: u8,
    pub wusl: u8,
    pub dmrl: u8,
    pub dmrsl: U32,
    pub dmsl: [u8; 8],
    pub reserved16: [u8; 4080],
}
assert_layout!(IdentifyControllerNvm, IDENTIFY_LEN, wzsl @ 1, dmrl @ 3, dmrsl @ 4, dmsl @ 8);

/// Active namespace ID list, CNS 02h and 07h (Base 5.17.2.2): ascending, 0-terminated.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceList {
    pub nsids: [U32; 1024],
}
assert_layout!(NamespaceList, IDENTIFY_LEN);
