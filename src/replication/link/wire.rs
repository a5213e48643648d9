//! The layout of link messages: little endian, 64 bytes of header, then the payload.
//!
//! Every header has the same frame: type, version, flags and payload length in front, checksums of payload and header
//! at the end, and 48 bytes in between that the type defines. One size for all of them lets a receiver find the next
//! message in its staging buffer without knowing the type. Structures here are bytes and nothing else; `message` gives
//! them meaning and bounds.

use crate::replication::NAMES_KEPT;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the format. A change of any layout raises it; the frame itself, `Refusal` and the first 12 bytes of the
/// hello bodies stay as they are for ever, so that two versions can tell each other what is wrong.
pub const VERSION: u8 = 5;

/// Opens the body of every hello: "LOCKSTEP" as the bytes stand on the wire.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LOCKSTEP");

pub const HEADER_BYTES: usize = 64;
pub const BODY_BYTES: usize = 48;

/// One write, or one read, carries at most this much data: an NVMe command here moves at most 1 MiB.
pub const WRITE_BYTES_MAX: u32 = 1 << 20;
/// One write of zeroes covers at most this much: 65536 blocks of 4 KiB, what an NVMe Write Zeroes can name.
pub const ZEROES_BYTES_MAX: u32 = 256 << 20;
/// Entries of one Acks: a batch of a loop's completions; more go into the next message.
pub const ACK_ENTRIES_MAX: u16 = 256;
/// Payload of a Verify: a digest of 256 bits.
pub const DIGEST_BYTES: u32 = 32;
/// Text of a refusal: two lines for an operator.
pub const TEXT_BYTES_MAX: u32 = 512;
/// Volumes of a group.
pub const VOLUMES_MAX: u16 = 128;
/// Name of a group or volume, bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 63;
/// Reactors of a node, so also the data connections of one reactor.
pub const REACTORS_MAX: u16 = 256;
/// Sequences of a Prepare, one a data connection: 64 reactors with 128, 128 KiB.
pub const LANES_MAX: u16 = 8192;

/// Message types. Numbers are never used again.
pub mod kind {
    pub const HELLO: u8 = 0x01;
    pub const HELLO_REPLY: u8 = 0x02;
    pub const DATA_HELLO: u8 = 0x03;
    pub const DATA_HELLO_REPLY: u8 = 0x04;
    pub const REFUSAL: u8 = 0x05;
    pub const BYE: u8 = 0x06;
    pub const HEARTBEAT: u8 = 0x07;
    pub const HEARTBEAT_REPLY: u8 = 0x08;
    pub const WRITE: u8 = 0x10;
    pub const FLUSH: u8 = 0x11;
    pub const ACKS: u8 = 0x12;
    pub const VERIFY: u8 = 0x13;
    pub const READ: u8 = 0x14;
    pub const READ_DATA: u8 = 0x15;
    pub const PREPARE: u8 = 0x20;
    pub const PREPARED: u8 = 0x21;
    pub const COMMIT: u8 = 0x22;
    pub const COMMITTED: u8 = 0x23;
    pub const ABORT: u8 = 0x24;
    pub const ABORTED: u8 = 0x25;
    pub const BEGIN: u8 = 0x30;
    pub const SYNC_END: u8 = 0x31;
    pub const RESIZE: u8 = 0x32;
    pub const EXTEND: u8 = 0x33;
    pub const DISK_SIZE: u8 = 0x34;
    pub const BEHIND: u8 = 0x35;
}

/// Bits of [`RawHeader::flags`].
pub mod flag {
    /// `payload_crc` holds the CRC32C of the payload.
    pub const PAYLOAD_CRC: u16 = 1 << 0;
    /// Write: durable before it is acknowledged as applied.
    pub const FUA: u16 = 1 << 1;
    /// Write: zeroes over the whole length, no payload.
    pub const ZEROES: u16 = 1 << 2;
    /// Write: sent while a full synchronisation runs, so that its original is not worth keeping.
    pub const SYNC_COPY: u16 = 1 << 3;
    pub const ALL: u16 = PAYLOAD_CRC | FUA | ZEROES | SYNC_COPY;
}

/// The frame of every message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    pub kind: u8,
    pub version: u8,
    pub flags: U16,
    /// Bytes of payload after the header.
    pub payload_len: U32,
    /// By type.
    pub body: [u8; BODY_BYTES],
    /// CRC32C of the payload, if flagged.
    pub payload_crc: U32,
    /// CRC32C of the 60 bytes before it.
    pub header_crc: U32,
}

/// Body of Write, Verify, Read and ReadData.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawWrite {
    pub generation: U64,
    pub epoch: U64,
    pub sequence: U64,
    /// Byte offset in the volume.
    pub offset: U64,
    pub len: U32,
    pub volume: U16,
    pub reserved: [u8; 10],
}

/// Body of Flush, and of Resize, Extend and DiskSize, where `value` is the size in bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawOrdered {
    pub generation: U64,
    pub epoch: U64,
    pub sequence: U64,
    pub value: U64,
    pub volume: U16,
    pub reserved: [u8; 14],
}

/// Body of Acks; the payload is `entries` × [`RawAckEntry`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawAcks {
    pub generation: U64,
    pub epoch: U64,
    /// Fill of the secondary's disk buffer.
    pub buffer_used: U64,
    pub buffer_limit: U64,
    pub entries: U16,
    pub reserved: [u8; 14],
}

/// Payload entry of Acks: `count` messages from sequence `first` on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawAckEntry {
    pub first: U64,
    pub count: U32,
    pub status: U16,
    pub volume: U16,
}

/// Body of Begin, Prepare, Prepared, Commit, Committed, Abort, Aborted, SyncEnd, Behind, Bye.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawCheckpoint {
    pub generation: U64,
    pub epoch: U64,
    /// Prepare: milliseconds that the primary will wait.
    pub timeout_ms: U32,
    /// Prepared, Committed, Aborted: the outcome. Begin: how the disks are made equal.
    pub code: U16,
    /// Prepare: sequences in the payload.
    pub entries: U16,
    /// Begin: what the disks have in common from now on. SyncEnd: the name of what the secondary then has.
    pub lineage: U64,
    pub reserved: [u8; 16],
}

/// Payload entry of Prepare: the last sequence of the epoch on one data connection.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawLastSequence {
    pub primary_reactor: U16,
    pub secondary_reactor: U16,
    pub reserved: U32,
    pub sequence: U64,
}

/// Body of Heartbeat and HeartbeatReply; the reply brings `number` and `sent_ns` back.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeartbeat {
    pub generation: U64,
    pub epoch: U64,
    pub number: U64,
    pub sent_ns: U64,
    pub reserved: [u8; 16],
}

/// Body of Refusal; the payload is text.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawRefusal {
    pub code: U16,
    pub reserved: [u8; 6],
    pub generation: U64,
    pub reserved2: [u8; 32],
}

/// Body of Hello and HelloReply; the payload is one [`RawGroup`] and `volumes` × [`RawVolume`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHello {
    pub magic: U64,
    /// Oldest and newest version that the sender speaks; the reply names one twice.
    pub version_min: U16,
    pub version_max: U16,
    pub reactors: U16,
    pub volumes: U16,
    pub generation: U64,
    pub committed_epoch: U64,
    pub options: U64,
    /// In the reply: names the session in the hellos of its data connections.
    pub nonce: U64,
}

/// Body of DataHello and DataHelloReply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDataHello {
    pub magic: U64,
    pub version: U16,
    pub primary_reactor: U16,
    pub secondary_reactor: U16,
    pub reserved: U16,
    pub nonce: U64,
    pub generation: U64,
    pub group: [u8; 16],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawGroup {
    pub node: [u8; 16],
    pub group: [u8; 16],
    pub role: u8,
    pub name_len: u8,
    pub reserved: [u8; 2],
    pub granule_bytes: U32,
    pub stripe_bytes: U64,
    pub name: [u8; NAME_BYTES_MAX + 1],
    pub lineage: U64,
    /// The name that the node's marks are relative to, then older ones.
    pub base: U64,
    pub history: [U64; NAMES_KEPT],
    /// An upper bound of what it wrote and the peer lacks.
    pub dirty_bytes: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawVolume {
    pub volume: [u8; 16],
    pub size_bytes: U64,
    pub block_bytes: U32,
    pub name_len: u8,
    pub reserved: [u8; 3],
    /// Of the disk below the volume, which may be larger than the volume.
    pub disk_bytes: U64,
    pub name: [u8; NAME_BYTES_MAX + 1],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<RawHeader>() == HEADER_BYTES);
    assert!(offset_of!(RawHeader, flags) == 2 && offset_of!(RawHeader, payload_len) == 4);
    assert!(offset_of!(RawHeader, body) == 8);
    assert!(offset_of!(RawHeader, payload_crc) == 56 && offset_of!(RawHeader, header_crc) == 60);
    assert!(size_of::<RawWrite>() == BODY_BYTES);
    assert!(offset_of!(RawWrite, offset) == 24 && offset_of!(RawWrite, len) == 32);
    assert!(offset_of!(RawWrite, volume) == 36);
    assert!(size_of::<RawOrdered>() == BODY_BYTES && offset_of!(RawOrdered, volume) == 32);
    assert!(size_of::<RawAcks>() == BODY_BYTES && offset_of!(RawAcks, entries) == 32);
    assert!(size_of::<RawAckEntry>() == 16);
    assert!(size_of::<RawCheckpoint>() == BODY_BYTES && offset_of!(RawCheckpoint, lineage) == 24);
    assert!(size_of::<RawLastSequence>() == 16);
    assert!(size_of::<RawHeartbeat>() == BODY_BYTES && size_of::<RawRefusal>() == BODY_BYTES);
    assert!(size_of::<RawHello>() == BODY_BYTES && offset_of!(RawHello, generation) == 16);
    assert!(size_of::<RawDataHello>() == BODY_BYTES && offset_of!(RawDataHello, group) == 32);
    assert!(size_of::<RawGroup>() == 200 && offset_of!(RawGroup, name) == 48);
    assert!(offset_of!(RawGroup, lineage) == 112 && offset_of!(RawGroup, dirty_bytes) == 192);
    assert!(size_of::<RawVolume>() == 104 && offset_of!(RawVolume, disk_bytes) == 32);
    assert!(offset_of!(RawVolume, name) == 40);
};

/// Longest payload of a control message: a hello with all its volumes, or a Prepare with all its lanes.
pub const CONTROL_BYTES_MAX: u32 = {
    let hello = size_of::<RawGroup>() + VOLUMES_MAX as usize * size_of::<RawVolume>();
    let prepare = LANES_MAX as usize * size_of::<RawLastSequence>();
    (if hello > prepare { hello } else { prepare }) as u32
};
