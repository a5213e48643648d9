//! Payloads of control messages, and of acknowledgements.

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::message::{AckStatus, LinkRole, WireError};
use super::wire::{NAME_BYTES_MAX, RawAckEntry, RawGroup, RawLastSequence, RawVolume, TEXT_BYTES_MAX, kind};
use crate::replication::{Lineage, Past, Sequence};

/// Payload of Hello and HelloReply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloBody {
    pub node: Uuid,
    pub group: Uuid,
    pub group_name: String,
    pub role: LinkRole,
    pub granule_bytes: u32,
    pub stripe_bytes: u64,
    pub lineage: Lineage,
    pub past: Past,
    /// An upper bound of what it wrote and its peer lacks.
    pub dirty_bytes: u64,
    /// In the order that `volume` numbers of other messages count.
    pub volumes: Vec<VolumeIdentity>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeIdentity {
    pub uuid: Uuid,
    pub name: String,
    pub size_bytes: u64,
    /// Of the disk below.
    pub disk_bytes: u64,
    pub block_bytes: u32,
}

fn name(bytes: &[u8; NAME_BYTES_MAX + 1], len: u8) -> Result<String, WireError> {
    let wrong = WireError::Payload { kind: kind::HELLO, what: "a name that is too long or no UTF-8" };
    let bytes = bytes.get(..usize::from(len)).filter(|b| b.len() <= NAME_BYTES_MAX).ok_or(wrong)?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| wrong)
}

/// A name as it stands on the wire. Longer ones are cut; creating a group refuses them before.
fn name_field(name: &str) -> (u8, [u8; NAME_BYTES_MAX + 1]) {
    let end = (0..=name.len().min(NAME_BYTES_MAX)).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    let mut field = [0; NAME_BYTES_MAX + 1];
    field[..end].copy_from_slice(&name.as_bytes()[..end]);
    (end as u8, field)
}

impl HelloBody {
    pub fn parse(payload: &[u8]) -> Result<HelloBody, WireError> {
        let wrong = |what| WireError::Payload { kind: kind::HELLO, what };
        let (group, rest) =
            RawGroup::ref_from_prefix(payload).map_err(|_| wrong("shorter than its group record"))?;
        let records =
            <[RawVolume]>::ref_from_bytes(rest).map_err(|_| wrong("a volume record that is cut off"))?;
        let volumes = records.iter().map(|v| {
            Ok(VolumeIdentity {
                uuid: Uuid::from_bytes(v.volume),
                name: name(&v.name, v.name_len)?,
                size_bytes: v.size_bytes.get(),
                disk_bytes: v.disk_bytes.get(),
                block_bytes: v.block_bytes.get(),
            })
        });
        Ok(HelloBody {
            node: Uuid::from_bytes(group.node),
            group: Uuid::from_bytes(group.group),
            group_name: name(&group.name, group.name_len)?,
            role: LinkRole::from_code(u16::from(group.role)).ok_or(wrong("an unknown role"))?,
            granule_bytes: group.granule_bytes.get(),
            stripe_bytes: group.stripe_bytes.get(),
            lineage: Lineage(group.lineage.get()),
            past: Past {
                base: Lineage(group.base.get()),
                history: group.history.map(|name| Lineage(name.get())),
            },
            dirty_bytes: group.dirty_bytes.get(),
            volumes: volumes.collect::<Result<_, _>>()?,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let (name_len, name) = name_field(&self.group_name);
        let group = RawGroup {
            node: self.node.into_bytes(),
            group: self.group.into_bytes(),
            role: self.role.code() as u8,
            name_len,
            reserved: [0; 2],
            granule_bytes: U32::new(self.granule_bytes),
            stripe_bytes: U64::new(self.stripe_bytes),
            name,
            lineage: U64::new(self.lineage.0),
            base: U64::new(self.past.base.0),
            history: self.past.history.map(|name| U64::new(name.0)),
            dirty_bytes: U64::new(self.dirty_bytes),
        };
        let mut bytes = group.as_bytes().to_vec();
        for volume in &self.volumes {
            let (name_len, name) = name_field(&volume.name);
            let record = RawVolume {
                volume: volume.uuid.into_bytes(),
                size_bytes: U64::new(volume.size_bytes),
                block_bytes: U32::new(volume.block_bytes),
                name_len,
                reserved: [0; 3],
                disk_bytes: U64::new(volume.disk_bytes),
                name,
            };
            bytes.extend_from_slice(record.as_bytes());
        }
        bytes
    }
}

/// What became of `count` messages from `first` on, all of one volume unless they are only received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckEntry {
    pub volume: u16,
    pub first: Sequence,
    pub count: u32,
    pub status: AckStatus,
}

impl AckEntry {
    pub const BYTES: usize = size_of::<RawAckEntry>();

    pub fn encode(&self) -> [u8; AckEntry::BYTES] {
        zerocopy::transmute!(RawAckEntry {
            first: U64::new(self.first.0),
            count: U32::new(self.count),
            status: U16::new(self.status.code()),
            volume: U16::new(self.volume),
        })
    }

    /// The entries of an Acks payload, without a copy.
    pub fn parse_all(payload: &[u8]) -> Result<impl Iterator<Item = Result<AckEntry, WireError>>, WireError> {
        let what = "an entry that is cut off";
        let raw = <[RawAckEntry]>::ref_from_bytes(payload)
            .map_err(|_| WireError::Payload { kind: kind::ACKS, what })?;
        Ok(raw.iter().map(|entry| {
            let code = entry.status.get();
            let status = AckStatus::from_code(code).ok_or(WireError::Code { kind: kind::ACKS, code })?;
            let (first, count) = (Sequence(entry.first.get()), entry.count.get());
            if first.0.checked_add(u64::from(count)).is_none() {
                return Err(WireError::Length { kind: kind::ACKS, len: u64::from(count) });
            }
            Ok(AckEntry { volume: entry.volume.get(), first, count, status })
        }))
    }
}

/// The last sequence of an epoch on one data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSequence {
    pub primary_reactor: u16,
    pub secondary_reactor: u16,
    pub sequence: Sequence,
}

impl LastSequence {
    pub fn encode_all(list: &[LastSequence]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size_of_val(list));
        for last in list {
            let raw = RawLastSequence {
                primary_reactor: U16::new(last.primary_reactor),
                secondary_reactor: U16::new(last.secondary_reactor),
                reserved: U32::new(0),
                sequence: U64::new(last.sequence.0),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes
    }

    pub fn parse_all(payload: &[u8]) -> Result<Vec<LastSequence>, WireError> {
        let what = "an entry that is cut off";
        let raw = <[RawLastSequence]>::ref_from_bytes(payload)
            .map_err(|_| WireError::Payload { kind: kind::PREPARE, what })?;
        let entry = |last: &RawLastSequence| LastSequence {
            primary_reactor: last.primary_reactor.get(),
            secondary_reactor: last.secondary_reactor.get(),
            sequence: Sequence(last.sequence.get()),
        };
        Ok(raw.iter().map(entry).collect())
    }
}

/// The text of a refusal as it may be sent: cut to its limit at a character's edge.
pub fn refusal_text(text: &str) -> &[u8] {
    let limit = text.len().min(TEXT_BYTES_MAX as usize);
    let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text.as_bytes()[..end]
}

/// A peer's text, made printable: it goes into logs and replies.
pub fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect()
}
