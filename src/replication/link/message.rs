//! The meaning of a header: parsing with bounds on everything, and the reverse.
//!
//! What comes out of [`parse`] is safe to act on as far as a header alone can tell: lengths are within the limits of
//! `wire`, payload lengths agree with what the message says, codes are known. Whether a volume exists or a generation
//! is current is for its receiver to decide.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::wire::*;
use crate::replication::core::SyncMode;
use crate::replication::{Epoch, Generation, Lineage, Sequence};

/// What is wrong with a header. After any of these the stream cannot be trusted: refuse and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a link message of {0} bytes is shorter than its header of 64")]
    Truncated(usize),
    #[error(
        "the peer speaks link protocol version {0}, this node speaks {VERSION}: run the same release on both nodes"
    )]
    Version(u8),
    #[error(
        "a link header with a wrong checksum: the peer is no Lockstep node, or the network corrupts data"
    )]
    HeaderChecksum,
    #[error("a hello without the magic: the peer is no Lockstep node")]
    Magic,
    #[error("a link message of unknown type {0:#04x}")]
    Kind(u8),
    #[error("link message {kind:#04x} with flags {flags:#06x} that it may not have")]
    Flags { kind: u8, flags: u16 },
    #[error("link message {kind:#04x} with a length of {len}, which is outside its limits")]
    Length { kind: u8, len: u64 },
    #[error("link message {kind:#04x} with the unknown code {code}")]
    Code { kind: u8, code: u16 },
    #[error("a payload with a wrong checksum: the network corrupts data")]
    PayloadChecksum,
    #[error("the payload of link message {kind:#04x} is malformed: {what}")]
    Payload { kind: u8, what: &'static str },
}

/// An enum with a fixed 16-bit code for each value.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)* }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            pub fn code(self) -> u16 {
                self as u16
            }

            pub fn from_code(code: u16) -> Option<$name> {
                match code {
                    $($code => Some($name::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Why a peer is not talked to. The text that comes with it names the values that disagree.
    RefusalCode {
        /// Another version of the link protocol.
        Version = 1,
        /// Not understood: no Lockstep node, or a defect.
        Malformed = 2,
        /// A checksum did not match.
        Checksum = 3,
        /// This node has no such group.
        UnknownGroup = 4,
        /// The group has the name, but another identity.
        GroupIdentity = 5,
        /// The lists of volumes differ.
        VolumeIdentity = 6,
        VolumeSize = 7,
        BlockSize = 8,
        /// Granule, stripe or other options differ.
        Options = 9,
        /// The peer was fenced: this node went on without it.
        OldGeneration = 10,
        /// Both nodes have the same role.
        Role = 11,
        /// The group has a peer already.
        AlreadyConnected = 12,
        /// A data connection of a session that this node does not know (any more).
        UnknownSession = 13,
        /// A data connection for a reactor that does not exist.
        Reactor = 14,
        /// The handshake took too long.
        Timeout = 15,
        /// The node or group is stopping, or not started.
        NotRunning = 16,
        /// Too many lanes.
        TooMany = 17,
        /// A message that this state of the protocol does not allow.
        Unexpected = 18,
        /// Both nodes went on without each other.
        SplitBrain = 19,
    }
}

codes! {
    /// How a step of a checkpoint ended on the secondary.
    Outcome {
        Ok = 0,
        /// Not within the deadline.
        Timeout = 1,
        /// Not the epoch that is open, or not prepared.
        WrongEpoch = 2,
        /// A disk of the group failed.
        DiskError = 3,
        /// Originals of this epoch could not be preserved: it cannot be rolled back.
        Unrecoverable = 4,
        /// The record that makes a commit durable could not be written.
        MetadataError = 5,
        /// The group has another state: stopping, promoted, synchronising.
        NotRunning = 6,
    }
}

codes! {
    /// What became of forwarded messages on the secondary.
    AckStatus {
        /// On the secondary's disk.
        Applied = 0,
        /// In the secondary's memory, and with them everything of the connection before them.
        Received = 1,
        WriteError = 2,
        /// The original could not be read, so the write was not applied.
        PreserveError = 3,
        BufferFull = 4,
        OutOfRange = 5,
        /// The write is pinned in memory because the disk hangs.
        Pinned = 6,
        /// The message carries a generation older than the secondary's.
        OldGeneration = 7,
        /// The secondary stopped applying after an earlier error.
        Broken = 8,
        /// The secondary's disk has another content than what was sent to be compared.
        Differs = 9,
        /// The secondary's disk failed the read of what was to be compared.
        Unreadable = 10,
        /// The secondary's disk did not answer the read of what was to be compared in time.
        HungRead = 11,
    }
}

codes! {
    /// Role of the sender of a hello.
    LinkRole {
        Primary = 1,
        Secondary = 2,
    }
}

/// Bits of `Hello::options`.
pub mod option {
    /// Payloads carry checksums. On if either side asks.
    pub const PAYLOAD_CRC: u64 = 1 << 0;
    /// The secondary keeps a disk buffer.
    pub const DISK_BUFFER: u64 = 1 << 1;
    /// The secondary was restarted since it last followed: its memory is gone.
    pub const RESTARTED: u64 = 1 << 2;
    /// A copy into the node has not ended.
    pub const INCONSISTENT: u64 = 1 << 3;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version_min: u16,
    pub version_max: u16,
    pub reactors: u16,
    pub volumes: u16,
    pub generation: Generation,
    pub committed_epoch: Epoch,
    pub options: u64,
    pub nonce: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHello {
    pub version: u16,
    pub primary_reactor: u16,
    pub secondary_reactor: u16,
    pub nonce: u64,
    pub generation: Generation,
    pub group: uuid::Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub generation: Generation,
    pub epoch: Epoch,
    pub sequence: Sequence,
    pub volume: u16,
    /// Bytes.
    pub offset: u64,
    pub len: u32,
    pub fua: bool,
    pub zeroes: bool,
    pub sync_copy: bool,
}

/// A range at its place in the stream of writes: to be compared, with a digest as the payload; to be read; or what was
/// read of it, with the sequence of the Read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub generation: Generation,
    pub epoch: Epoch,
    pub sequence: Sequence,
    pub volume: u16,
    /// Bytes.
    pub offset: u64,
    pub len: u32,
}

/// A flush, which has a place in the stream of writes, or the size of something of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordered {
    pub generation: Generation,
    pub epoch: Epoch,
    pub sequence: Sequence,
    pub volume: u16,
    /// A size in bytes. Flush: 0.
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acks {
    pub generation: Generation,
    /// The epoch that the secondary is in.
    pub epoch: Epoch,
    pub buffer_used: u64,
    pub buffer_limit: u64,
    pub entries: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub generation: Generation,
    pub epoch: Epoch,
    pub number: u64,
    pub sent_ns: u64,
}

/// One message without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Hello(Hello),
    HelloReply(Hello),
    DataHello(DataHello),
    DataHelloReply(DataHello),
    Refusal { code: RefusalCode, generation: Generation },
    Bye { generation: Generation, epoch: Epoch },
    Heartbeat(Heartbeat),
    HeartbeatReply(Heartbeat),
    Write(Write),
    Flush(Ordered),
    Verify(Span),
    Read(Span),
    ReadData(Span),
    Resize(Ordered),
    Extend(Ordered),
    DiskSize(Ordered),
    Acks(Acks),
    Prepare { generation: Generation, epoch: Epoch, timeout_ms: u32, lanes: u16 },
    Prepared { generation: Generation, epoch: Epoch, outcome: Outcome },
    Commit { generation: Generation, epoch: Epoch },
    Committed { generation: Generation, epoch: Epoch, outcome: Outcome },
    Abort { generation: Generation, epoch: Epoch },
    Aborted { generation: Generation, epoch: Epoch, outcome: Outcome },
    Begin { generation: Generation, epoch: Epoch, sync: SyncMode, lineage: Lineage },
    Behind { generation: Generation, epoch: Epoch },
    SyncEnd { generation: Generation, epoch: Epoch, lineage: Lineage },
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub message: Message,
    pub payload_len: u32,
    pub payload_crc: Option<u32>,
}

impl Message {
    pub fn kind(&self) -> u8 {
        match self {
            Message::Hello(_) => kind::HELLO,
            Message::HelloReply(_) => kind::HELLO_REPLY,
            Message::DataHello(_) => kind::DATA_HELLO,
            Message::DataHelloReply(_) => kind::DATA_HELLO_REPLY,
            Message::Refusal { .. } => kind::REFUSAL,
            Message::Bye { .. } => kind::BYE,
            Message::Heartbeat(_) => kind::HEARTBEAT,
            Message::HeartbeatReply(_) => kind::HEARTBEAT_REPLY,
            Message::Write(_) => kind::WRITE,
            Message::Flush(_) => kind::FLUSH,
            Message::Verify(_) => kind::VERIFY,
            Message::Read(_) => kind::READ,
            Message::ReadData(_) => kind::READ_DATA,
            Message::Resize(_) => kind::RESIZE,
            Message::Extend(_) => kind::EXTEND,
            Message::DiskSize(_) => kind::DISK_SIZE,
            Message::Acks(_) => kind::ACKS,
            Message::Prepare { .. } => kind::PREPARE,
            Message::Prepared { .. } => kind::PREPARED,
            Message::Commit { .. } => kind::COMMIT,
            Message::Committed { .. } => kind::COMMITTED,
            Message::Abort { .. } => kind::ABORT,
            Message::Aborted { .. } => kind::ABORTED,
            Message::Begin { .. } => kind::BEGIN,
            Message::SyncEnd { .. } => kind::SYNC_END,
            Message::Behind { .. } => kind::BEHIND,
        }
    }

    fn flags(&self) -> u16 {
        match self {
            Message::Write(w) => {
                (if w.fua { flag::FUA } else { 0 })
                    | (if w.zeroes { flag::ZEROES } else { 0 })
                    | (if w.sync_copy { flag::SYNC_COPY } else { 0 })
            }
            _ => 0,
        }
    }

    /// The message's 64 bytes. `payload_len` must be what the message needs: see [`Header::check`].
    pub fn encode(&self, payload_len: u32, payload_crc: Option<u32>) -> [u8; HEADER_BYTES] {
        let crc_flag = if payload_crc.is_some() { flag::PAYLOAD_CRC } else { 0 };
        let mut raw = RawHeader {
            kind: self.kind(),
            version: VERSION,
            flags: U16::new(self.flags() | crc_flag),
            payload_len: U32::new(payload_len),
            body: self.body(),
            payload_crc: U32::new(payload_crc.unwrap_or(0)),
            header_crc: U32::new(0),
        };
        raw.header_crc = U32::new(header_crc(&raw));
        zerocopy::transmute!(raw)
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        match *self {
            Message::Hello(h) | Message::HelloReply(h) => zerocopy::transmute!(RawHello {
                magic: U64::new(MAGIC),
                version_min: U16::new(h.version_min),
                version_max: U16::new(h.version_max),
                reactors: U16::new(h.reactors),
                volumes: U16::new(h.volumes),
                generation: U64::new(h.generation.0),
                committed_epoch: U64::new(h.committed_epoch.0),
                options: U64::new(h.options),
                nonce: U64::new(h.nonce),
            }),
            Message::DataHello(h) | Message::DataHelloReply(h) => zerocopy::transmute!(RawDataHello {
                magic: U64::new(MAGIC),
                version: U16::new(h.version),
                primary_reactor: U16::new(h.primary_reactor),
                secondary_reactor: U16::new(h.secondary_reactor),
                reserved: U16::new(0),
                nonce: U64::new(h.nonce),
                generation: U64::new(h.generation.0),
                group: h.group.into_bytes(),
            }),
            Message::Refusal { code, generation } => zerocopy::transmute!(RawRefusal {
                code: U16::new(code.code()),
                reserved: [0; 6],
                generation: U64::new(generation.0),
                reserved2: [0; 32],
            }),
            Message::Heartbeat(h) | Message::HeartbeatReply(h) => zerocopy::transmute!(RawHeartbeat {
                generation: U64::new(h.generation.0),
                epoch: U64::new(h.epoch.0),
                number: U64::new(h.number),
                sent_ns: U64::new(h.sent_ns),
                reserved: [0; 16],
            }),
            Message::Write(w) => zerocopy::transmute!(RawWrite {
                generation: U64::new(w.generation.0),
                epoch: U64::new(w.epoch.0),
                sequence: U64::new(w.sequence.0),
                offset: U64::new(w.offset),
                len: U32::new(w.len),
                volume: U16::new(w.volume),
                reserved: [0; 10],
            }),
            Message::Verify(v) | Message::Read(v) | Message::ReadData(v) => zerocopy::transmute!(RawWrite {
                generation: U64::new(v.generation.0),
                epoch: U64::new(v.epoch.0),
                sequence: U64::new(v.sequence.0),
                offset: U64::new(v.offset),
                len: U32::new(v.len),
                volume: U16::new(v.volume),
                reserved: [0; 10],
            }),
            Message::Flush(o) | Message::Resize(o) | Message::Extend(o) | Message::DiskSize(o) => {
                zerocopy::transmute!(RawOrdered {
                    generation: U64::new(o.generation.0),
                    epoch: U64::new(o.epoch.0),
                    sequence: U64::new(o.sequence.0),
                    value: U64::new(o.value),
                    volume: U16::new(o.volume),
                    reserved: [0; 14],
                })
            }
            Message::Acks(a) => zerocopy::transmute!(RawAcks {
                generation: U64::new(a.generation.0),
                epoch: U64::new(a.epoch.0),
                buffer_used: U64::new(a.buffer_used),
                buffer_limit: U64::new(a.buffer_limit),
                entries: U16::new(a.entries),
                reserved: [0; 14],
            }),
            Message::Prepare { generation, epoch, timeout_ms, lanes } => {
                let mut raw = checkpoint(generation, epoch, 0);
                raw.timeout_ms = U32::new(timeout_ms);
                raw.entries = U16::new(lanes);
                zerocopy::transmute!(raw)
            }
            Message::Prepared { generation, epoch, outcome }
            | Message::Committed { generation, epoch, outcome }
            | Message::Aborted { generation, epoch, outcome } => {
                zerocopy::transmute!(checkpoint(generation, epoch, outcome.code()))
            }
            Message::Commit { generation, epoch }
            | Message::Abort { generation, epoch }
            | Message::Behind { generation, epoch }
            | Message::Bye { generation, epoch } => zerocopy::transmute!(checkpoint(generation, epoch, 0)),
            Message::SyncEnd { generation, epoch, lineage } => {
                let lineage = U64::new(lineage.0);
                zerocopy::transmute!(RawCheckpoint { lineage, ..checkpoint(generation, epoch, 0) })
            }
            Message::Begin { generation, epoch, sync, lineage } => {
                let code = match sync {
                    SyncMode::None => 0,
                    SyncMode::Full => 1,
                    SyncMode::Changed => 2,
                    SyncMode::Resumed => 3,
                };
                let lineage = U64::new(lineage.0);
                zerocopy::transmute!(RawCheckpoint { lineage, ..checkpoint(generation, epoch, code) })
            }
        }
    }
}

fn checkpoint(generation: Generation, epoch: Epoch, code: u16) -> RawCheckpoint {
    RawCheckpoint {
        generation: U64::new(generation.0),
        epoch: U64::new(epoch.0),
        timeout_ms: U32::new(0),
        code: U16::new(code),
        entries: U16::new(0),
        lineage: U64::new(0),
        reserved: [0; 16],
    }
}

fn header_crc(raw: &RawHeader) -> u32 {
    crc32c::crc32c(&raw.as_bytes()[..HEADER_BYTES - 4])
}

fn read<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8; BODY_BYTES]) -> &T {
    const { assert!(size_of::<T>() == BODY_BYTES) };
    zerocopy::transmute_ref!(body)
}

/// Reads the header at the beginning of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Header, WireError> {
    let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| WireError::Truncated(bytes.len()))?;
    if raw.header_crc.get() != header_crc(raw) {
        return Err(WireError::HeaderChecksum);
    }
    // The frame and refusals are the same in every version.
    if raw.version != VERSION && raw.kind != kind::REFUSAL {
        return Err(WireError::Version(raw.version));
    }
    let flags = raw.flags.get();
    let message = message(raw)?;
    let payload_len = raw.payload_len.get();
    let allowed = if raw.kind == kind::WRITE { flag::ALL } else { flag::PAYLOAD_CRC };
    let crc = flags & flag::PAYLOAD_CRC != 0;
    if flags & !allowed != 0 || (crc && payload_len == 0) {
        return Err(WireError::Flags { kind: raw.kind, flags });
    }
    let header = Header { message, payload_len, payload_crc: crc.then(|| raw.payload_crc.get()) };
    header.check()?;
    Ok(header)
}

fn message(raw: &RawHeader) -> Result<Message, WireError> {
    let kind = raw.kind;
    let outcome = |code: u16| Outcome::from_code(code).ok_or(WireError::Code { kind, code });
    let step = || {
        let b: &RawCheckpoint = read(&raw.body);
        (Generation(b.generation.get()), Epoch(b.epoch.get()), b)
    };
    Ok(match kind {
        kind::HELLO | kind::HELLO_REPLY => {
            let b: &RawHello = read(&raw.body);
            if b.magic.get() != MAGIC {
                return Err(WireError::Magic);
            }
            let hello = Hello {
                version_min: b.version_min.get(),
                version_max: b.version_max.get(),
                reactors: b.reactors.get(),
                volumes: b.volumes.get(),
                generation: Generation(b.generation.get()),
                committed_epoch: Epoch(b.committed_epoch.get()),
                options: b.options.get(),
                nonce: b.nonce.get(),
            };
            if kind == kind::HELLO { Message::Hello(hello) } else { Message::HelloReply(hello) }
        }
        kind::DATA_HELLO | kind::DATA_HELLO_REPLY => {
            let b: &RawDataHello = read(&raw.body);
            if b.magic.get() != MAGIC {
                return Err(WireError::Magic);
            }
            let hello = DataHello {
                version: b.version.get(),
                primary_reactor: b.primary_reactor.get(),
                secondary_reactor: b.secondary_reactor.get(),
                nonce: b.nonce.get(),
                generation: Generation(b.generation.get()),
                group: uuid::Uuid::from_bytes(b.group),
            };
            if kind == kind::DATA_HELLO { Message::DataHello(hello) } else { Message::DataHelloReply(hello) }
        }
        kind::REFUSAL => {
            let b: &RawRefusal = read(&raw.body);
            let code = b.code.get();
            let code = RefusalCode::from_code(code).ok_or(WireError::Code { kind, code })?;
            Message::Refusal { code, generation: Generation(b.generation.get()) }
        }
        kind::HEARTBEAT | kind::HEARTBEAT_REPLY => {
            let b: &RawHeartbeat = read(&raw.body);
            let beat = Heartbeat {
                generation: Generation(b.generation.get()),
                epoch: Epoch(b.epoch.get()),
                number: b.number.get(),
                sent_ns: b.sent_ns.get(),
            };
            if kind == kind::HEARTBEAT { Message::Heartbeat(beat) } else { Message::HeartbeatReply(beat) }
        }
        kind::WRITE => {
            let b: &RawWrite = read(&raw.body);
            let flags = raw.flags.get();
            Message::Write(Write {
                generation: Generation(b.generation.get()),
                epoch: Epoch(b.epoch.get()),
                sequence: Sequence(b.sequence.get()),
                volume: b.volume.get(),
                offset: b.offset.get(),
                len: b.len.get(),
                fua: flags & flag::FUA != 0,
                zeroes: flags & flag::ZEROES != 0,
                sync_copy: flags & flag::SYNC_COPY != 0,
            })
        }
        kind::VERIFY | kind::READ | kind::READ_DATA => {
            let b: &RawWrite = read(&raw.body);
            let span = Span {
                generation: Generation(b.generation.get()),
                epoch: Epoch(b.epoch.get()),
                sequence: Sequence(b.sequence.get()),
                volume: b.volume.get(),
                offset: b.offset.get(),
                len: b.len.get(),
            };
            match kind {
                kind::VERIFY => Message::Verify(span),
                kind::READ => Message::Read(span),
                _ => Message::ReadData(span),
            }
        }
        kind::FLUSH | kind::RESIZE | kind::EXTEND | kind::DISK_SIZE => {
            let b: &RawOrdered = read(&raw.body);
            let ordered = Ordered {
                generation: Generation(b.generation.get()),
                epoch: Epoch(b.epoch.get()),
                sequence: Sequence(b.sequence.get()),
                volume: b.volume.get(),
                value: b.value.get(),
            };
            match kind {
                kind::FLUSH => Message::Flush(ordered),
                kind::RESIZE => Message::Resize(ordered),
                kind::EXTEND => Message::Extend(ordered),
                _ => Message::DiskSize(ordered),
            }
        }
        kind::ACKS => {
            let b: &RawAcks = read(&raw.body);
            Message::Acks(Acks {
                generation: Generation(b.generation.get()),
                epoch: Epoch(b.epoch.get()),
                buffer_used: b.buffer_used.get(),
                buffer_limit: b.buffer_limit.get(),
                entries: b.entries.get(),
            })
        }
        kind::PREPARE => {
            let (generation, epoch, b) = step();
            let (timeout_ms, lanes) = (b.timeout_ms.get(), b.entries.get());
            Message::Prepare { generation, epoch, timeout_ms, lanes }
        }
        kind::PREPARED | kind::COMMITTED | kind::ABORTED => {
            let (generation, epoch, b) = step();
            let outcome = outcome(b.code.get())?;
            match kind {
                kind::PREPARED => Message::Prepared { generation, epoch, outcome },
                kind::COMMITTED => Message::Committed { generation, epoch, outcome },
                _ => Message::Aborted { generation, epoch, outcome },
            }
        }
        kind::COMMIT | kind::ABORT | kind::BEHIND | kind::SYNC_END | kind::BYE => {
            let (generation, epoch, b) = step();
            match kind {
                kind::COMMIT => Message::Commit { generation, epoch },
                kind::ABORT => Message::Abort { generation, epoch },
                kind::BEHIND => Message::Behind { generation, epoch },
                kind::SYNC_END => Message::SyncEnd { generation, epoch, lineage: Lineage(b.lineage.get()) },
                _ => Message::Bye { generation, epoch },
            }
        }
        kind::BEGIN => {
            let (generation, epoch, b) = step();
            let sync = match b.code.get() {
                0 => SyncMode::None,
                1 => SyncMode::Full,
                2 => SyncMode::Changed,
                3 => SyncMode::Resumed,
                code => return Err(WireError::Code { kind, code }),
            };
            Message::Begin { generation, epoch, sync, lineage: Lineage(b.lineage.get()) }
        }
        other => return Err(WireError::Kind(other)),
    })
}

impl Header {
    /// Checks the lengths against each other and their limits.
    pub fn check(&self) -> Result<(), WireError> {
        let kind = self.message.kind();
        let wrong = |len: u64| Err(WireError::Length { kind, len });
        let payload = self.payload_len;
        let expected = match &self.message {
            Message::Write(w) => {
                let limit = if w.zeroes { ZEROES_BYTES_MAX } else { WRITE_BYTES_MAX };
                if w.len == 0 || w.len > limit || w.offset.checked_add(u64::from(w.len)).is_none() {
                    return wrong(u64::from(w.len));
                }
                if w.zeroes { 0 } else { w.len }
            }
            Message::Verify(span) | Message::Read(span) | Message::ReadData(span) => {
                let over = span.offset.checked_add(u64::from(span.len)).is_none();
                if span.len == 0 || span.len > WRITE_BYTES_MAX || over {
                    return wrong(u64::from(span.len));
                }
                match &self.message {
                    Message::Verify(_) => DIGEST_BYTES,
                    Message::ReadData(_) => span.len,
                    _ => 0,
                }
            }
            Message::Acks(a) if a.entries > ACK_ENTRIES_MAX => return wrong(u64::from(a.entries)),
            Message::Acks(a) => u32::from(a.entries) * size_of::<RawAckEntry>() as u32,
            Message::Prepare { lanes, .. } if *lanes > LANES_MAX => {
                return wrong(u64::from(*lanes));
            }
            Message::Prepare { lanes, .. } => u32::from(*lanes) * size_of::<RawLastSequence>() as u32,
            Message::Hello(h) | Message::HelloReply(h) => {
                if h.volumes > VOLUMES_MAX || h.reactors == 0 || h.reactors > REACTORS_MAX {
                    return wrong(u64::from(h.volumes.max(h.reactors)));
                }
                (size_of::<RawGroup>() + usize::from(h.volumes) * size_of::<RawVolume>()) as u32
            }
            Message::DataHello(h) | Message::DataHelloReply(h) => {
                let highest = h.primary_reactor.max(h.secondary_reactor);
                if highest >= REACTORS_MAX {
                    return wrong(u64::from(highest));
                }
                0
            }
            Message::Refusal { .. } if payload > TEXT_BYTES_MAX => return wrong(u64::from(payload)),
            Message::Refusal { .. } => payload,
            _ => 0,
        };
        if payload == expected { Ok(()) } else { wrong(u64::from(payload)) }
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
