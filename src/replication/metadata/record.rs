//! The bytes of a slot.

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::{Epoch, Generation, Lineage, NAMES_KEPT, Past};

/// One slot: a multiple of every block size in use, so that a torn write never touches the other slot.
pub const SLOT_BYTES: usize = 16 << 10;
/// "LSTPMETA" as the bytes stand in the file.
const MAGIC: u64 = u64::from_le_bytes(*b"LSTPMETA");
/// A change of the layout raises it; a newer version than this is refused.
const VERSION: u32 = 2;
/// Versions of which every field stands where it stands in this one; what they do not have is zero there.
const READABLE: std::ops::RangeInclusive<u32> = 1..=VERSION;
/// Volumes that fit a slot.
pub const VOLUMES_MAX: usize = 128;
const NAME_BYTES: usize = 64;
const CRC_AT: usize = SLOT_BYTES - 4;
/// Zeroes in a record without a journal, and in one of a program that knows none.
const JOURNAL_AT: usize = CRC_AT - 16;
/// Behind the last volume; zero in a record of version 1.
const LINEAGE_AT: usize = 12416;
/// Behind the name of the content come the name that marks are relative to, and the older ones.
const NAMES_END: usize = LINEAGE_AT + (2 + NAMES_KEPT) * 8;

/// The role that the node had when it wrote the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    Primary,
    Secondary,
    /// A secondary that took over.
    Promoted,
}

/// One volume of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    pub name: String,
    pub uuid: Uuid,
    pub num_blocks: u64,
    pub block_size: u32,
}

/// What a group must not forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub group: Uuid,
    /// The node that wrote it, among the two of the group.
    pub node: Uuid,
    pub role: FileRole,
    /// The disk holds a state that was promised; false while a full synchronisation runs into it, and while a
    /// failover's flush has not ended.
    pub consistent: bool,
    pub generation: Generation,
    pub committed_epoch: Epoch,
    /// The journal that leads back to that epoch, if one does.
    pub journal: Option<Uuid>,
    /// What the disks have in common with the peer's; a secondary's alone counts after a restart.
    pub lineage: Lineage,
    /// The names that led to it.
    pub past: Past,
    pub volumes: Vec<VolumeRecord>,
}

/// Why a slot does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("nothing was ever written there")]
    Empty,
    #[error("it is not Lockstep's metadata")]
    Magic,
    #[error(
        "it is of format version {0}, and this program knows versions up to {VERSION}; use the program that wrote it"
    )]
    Version(u32),
    #[error("its checksum is wrong: the write of it was torn, or bits have rotted")]
    Checksum,
    #[error("a field holds a value that no version writes")]
    Field,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U32,
    role: u8,
    consistent: u8,
    volumes: U16,
    sequence: U64,
    generation: U64,
    committed_epoch: U64,
    group: [u8; 16],
    node: [u8; 16],
}
const HEADER_BYTES: usize = 72;
const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawVolume {
    uuid: [u8; 16],
    num_blocks: U64,
    block_size: U32,
    name_len: U32,
    name: [u8; NAME_BYTES],
}
const VOLUME_BYTES: usize = 96;
const _: () = assert!(size_of::<RawVolume>() == VOLUME_BYTES);
const _: () = assert!(HEADER_BYTES + VOLUMES_MAX * VOLUME_BYTES <= LINEAGE_AT && NAMES_END <= JOURNAL_AT);

impl Record {
    /// Whether the record fits a slot.
    pub fn check(&self) -> Result<(), RecordError> {
        let fits =
            self.volumes.len() <= VOLUMES_MAX && self.volumes.iter().all(|v| v.name.len() <= NAME_BYTES);
        if fits { Ok(()) } else { Err(RecordError::Field) }
    }

    /// Writes the slot; `bytes` is [`SLOT_BYTES`] long and the record was checked.
    pub fn encode(&self, sequence: u64, bytes: &mut [u8]) {
        bytes.fill(0);
        let header = RawHeader {
            magic: U64::new(MAGIC),
            version: U32::new(VERSION),
            role: match self.role {
                FileRole::Primary => 1,
                FileRole::Secondary => 2,
                FileRole::Promoted => 3,
            },
            consistent: self.consistent.into(),
            volumes: U16::new(self.volumes.len() as u16),
            sequence: U64::new(sequence),
            generation: U64::new(self.generation.0),
            committed_epoch: U64::new(self.committed_epoch.0),
            group: self.group.into_bytes(),
            node: self.node.into_bytes(),
        };
        bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        for (volume, place) in
            self.volumes.iter().zip(bytes[HEADER_BYTES..CRC_AT].chunks_exact_mut(VOLUME_BYTES))
        {
            let mut raw = RawVolume {
                uuid: volume.uuid.into_bytes(),
                num_blocks: U64::new(volume.num_blocks),
                block_size: U32::new(volume.block_size),
                name_len: U32::new(volume.name.len() as u32),
                name: [0; NAME_BYTES],
            };
            raw.name[..volume.name.len()].copy_from_slice(volume.name.as_bytes());
            place.copy_from_slice(raw.as_bytes());
        }
        let names = [self.lineage, self.past.base].into_iter().chain(self.past.history);
        for (name, place) in names.zip(bytes[LINEAGE_AT..NAMES_END].chunks_exact_mut(8)) {
            place.copy_from_slice(&name.0.to_le_bytes());
        }
        bytes[JOURNAL_AT..CRC_AT].copy_from_slice(self.journal.unwrap_or_default().as_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a slot: its sequence and the record.
    pub fn decode(bytes: &[u8]) -> Result<(u64, Record), RecordError> {
        if bytes.len() < SLOT_BYTES || bytes[..SLOT_BYTES].iter().all(|&b| b == 0) {
            return Err(RecordError::Empty);
        }
        let bytes = &bytes[..SLOT_BYTES];
        let (header, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| RecordError::Field)?;
        if header.magic.get() != MAGIC {
            return Err(RecordError::Magic);
        }
        if crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes() != bytes[CRC_AT..] {
            return Err(RecordError::Checksum);
        }
        if !READABLE.contains(&header.version.get()) {
            return Err(RecordError::Version(header.version.get()));
        }
        let role = match header.role {
            1 => FileRole::Primary,
            2 => FileRole::Secondary,
            3 => FileRole::Promoted,
            _ => return Err(RecordError::Field),
        };
        let count = usize::from(header.volumes.get());
        if count > VOLUMES_MAX || header.consistent > 1 {
            return Err(RecordError::Field);
        }
        let volumes = bytes[HEADER_BYTES..]
            .chunks_exact(VOLUME_BYTES)
            .take(count)
            .map(|chunk| {
                let raw = RawVolume::ref_from_bytes(chunk).map_err(|_| RecordError::Field)?;
                let name = raw.name.get(..raw.name_len.get() as usize).ok_or(RecordError::Field)?;
                Ok(VolumeRecord {
                    name: std::str::from_utf8(name).map_err(|_| RecordError::Field)?.to_string(),
                    uuid: Uuid::from_bytes(raw.uuid),
                    num_blocks: raw.num_blocks.get(),
                    block_size: raw.block_size.get(),
                })
            })
            .collect::<Result<Vec<_>, RecordError>>()?;
        let mut names = [Lineage(0); 2 + NAMES_KEPT];
        for (name, bytes) in names.iter_mut().zip(bytes[LINEAGE_AT..NAMES_END].chunks_exact(8)) {
            *name = Lineage(U64::ref_from_bytes(bytes).map_or(0, |name| name.get()));
        }
        let record = Record {
            group: Uuid::from_bytes(header.group),
            node: Uuid::from_bytes(header.node),
            role,
            consistent: header.consistent == 1,
            generation: Generation(header.generation.get()),
            committed_epoch: Epoch(header.committed_epoch.get()),
            lineage: names[0],
            past: Past { base: names[1], history: std::array::from_fn(|at| names[2 + at]) },
            journal: Uuid::from_slice(&bytes[JOURNAL_AT..CRC_AT]).ok().filter(|journal| !journal.is_nil()),
            volumes,
        };
        Ok((header.sequence.get(), record))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn sample(epoch: u64) -> Record {
        Record {
            group: Uuid::from_u128(7),
            node: Uuid::from_u128(8),
            role: FileRole::Secondary,
            consistent: true,
            generation: Generation(3),
            committed_epoch: Epoch(epoch),
            journal: Some(Uuid::from_u128(10)),
            lineage: Lineage(0x0123_4567_89ab_cdef),
            past: Past { base: Lineage(11), history: std::array::from_fn(|at| Lineage(20 + at as u64)) },
            volumes: vec![VolumeRecord {
                name: "v0".to_string(),
                uuid: Uuid::from_u128(9),
                num_blocks: 1 << 30,
                block_size: 4096,
            }],
        }
    }

    fn slot(record: &Record, sequence: u64) -> Vec<u8> {
        let mut bytes = vec![0xff; SLOT_BYTES];
        record.encode(sequence, &mut bytes);
        bytes
    }

    #[test]
    fn a_record_reads_back_as_written() {
        for role in [FileRole::Primary, FileRole::Secondary, FileRole::Promoted] {
            let record = Record { role, ..sample(5) };
            assert_eq!(Record::decode(&slot(&record, 77)), Ok((77, record.clone())));
            let without = Record { journal: None, ..record };
            assert_eq!(Record::decode(&slot(&without, 77)), Ok((77, without)));
        }
        assert_eq!(Record::decode(&[0; SLOT_BYTES]), Err(RecordError::Empty));
    }

    /// A slot as the programs of an earlier version wrote it.
    fn of_version(version: u32, record: &Record) -> Vec<u8> {
        let mut bytes = slot(record, 77);
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[LINEAGE_AT..NAMES_END].fill(0);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_record_of_version_1_is_taken_over_and_knows_of_no_lineage() {
        let known = Record { lineage: Lineage(0), past: Past::default(), ..sample(5) };
        assert_eq!(Record::decode(&of_version(1, &sample(5))), Ok((77, known)));
        assert_eq!(Record::decode(&of_version(0, &sample(5))), Err(RecordError::Version(0)));
        assert_eq!(Record::decode(&of_version(3, &sample(5))), Err(RecordError::Version(3)));
    }

    #[test]
    fn an_unknown_version_is_refused_by_its_number() {
        let mut bytes = slot(&sample(5), 1);
        bytes[8] = 9;
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Record::decode(&bytes), Err(RecordError::Version(9)));
    }

    #[test]
    fn a_record_that_fits_no_slot_is_refused() {
        let mut record = sample(1);
        record.volumes[0].name = "n".repeat(NAME_BYTES + 1);
        assert_eq!(record.check(), Err(RecordError::Field));
        record.volumes = vec![sample(1).volumes[0].clone(); VOLUMES_MAX];
        assert_eq!(record.check(), Ok(()));
        assert_eq!(Record::decode(&slot(&record, 1)), Ok((1, record)));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_detected(byte in 0..SLOT_BYTES, bit in 0..8) {
            let mut bytes = slot(&sample(5), 77);
            bytes[byte] ^= 1u8 << bit;
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn a_torn_write_is_detected(cut in 1..SLOT_BYTES) {
            let (old, new) = (slot(&sample(5), 77), slot(&sample(6), 79));
            let torn = [&new[..cut], &old[cut..]].concat();
            // Torn behind the last difference it is whole; anywhere else it counts for nothing.
            prop_assert!(torn == new || torn == old || Record::decode(&torn).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2 * SLOT_BYTES)) {
            let _ = Record::decode(&bytes);
        }
    }
}
