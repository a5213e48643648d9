//! The bytes of a journal: its header, and the batches in its areas.

use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::replication::Epoch;

/// Everything begins at a multiple of this: what disks write without tearing at best, and a multiple of every block size.
pub const BLOCK_BYTES: usize = 4096;
/// Largest batch: what the pools give in one piece, and enough for a disk's full rate.
pub const BATCH_BYTES: usize = 1 << 20;
/// The header and its copy come first.
pub const AREAS_AT: u64 = 2 * BLOCK_BYTES as u64;

/// "LSTPJRNL" and "LSTPUNDO" as the bytes stand in the file.
const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"LSTPJRNL");
const BATCH_MAGIC: u64 = u64::from_le_bytes(*b"LSTPUNDO");
/// A change of the layout raises it; another version is refused.
const VERSION: u32 = 1;
const CRC_AT: usize = BLOCK_BYTES - 4;
const HEAD_BYTES: usize = 64;
const RECORD_BYTES: usize = 32;
/// Records that the head of a batch has room for.
pub const RECORDS_MAX: usize = (CRC_AT - HEAD_BYTES) / RECORD_BYTES;

/// Why a journal's header does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("nothing was ever written there")]
    Empty,
    #[error("it is not a journal of Lockstep")]
    Foreign,
    #[error("it is of format version {0}, and this program knows version {VERSION}")]
    Version(u32),
    #[error("its checksum is wrong")]
    Checksum,
}

/// What a journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub group: Uuid,
    /// Names this journal in the group's record.
    pub journal: Uuid,
    /// Rises whenever everything in the areas is forgotten at once.
    pub formatted: u64,
    /// One for each reactor, one behind the other.
    pub areas: u32,
    pub area_bytes: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    version: U32,
    areas: U32,
    formatted: U64,
    area_bytes: U64,
    group: [u8; 16],
    journal: [u8; 16],
}
const _: () = assert!(size_of::<RawHeader>() == 64);

impl Header {
    /// `bytes` is one block.
    pub fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        let raw = RawHeader {
            magic: U64::new(HEADER_MAGIC),
            version: U32::new(VERSION),
            areas: U32::new(self.areas),
            formatted: U64::new(self.formatted),
            area_bytes: U64::new(self.area_bytes),
            group: self.group.into_bytes(),
            journal: self.journal.into_bytes(),
        };
        bytes[..64].copy_from_slice(raw.as_bytes());
        seal(bytes);
    }

    pub fn decode(bytes: &[u8]) -> Result<Header, FormatError> {
        let bytes = bytes.get(..BLOCK_BYTES).ok_or(FormatError::Empty)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(FormatError::Empty);
        }
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| FormatError::Foreign)?;
        if raw.magic.get() != HEADER_MAGIC {
            return Err(FormatError::Foreign);
        }
        if !is_sealed(bytes) {
            return Err(FormatError::Checksum);
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version(raw.version.get()));
        }
        Ok(Header {
            group: Uuid::from_bytes(raw.group),
            journal: Uuid::from_bytes(raw.journal),
            formatted: raw.formatted.get(),
            areas: raw.areas.get(),
            area_bytes: raw.area_bytes.get(),
        })
    }

    pub fn area_at(&self, area: u32) -> u64 {
        AREAS_AT + u64::from(area) * self.area_bytes
    }
}

fn seal(block: &mut [u8]) {
    let crc = crc32c::crc32c(&block[..CRC_AT]);
    block[CRC_AT..BLOCK_BYTES].copy_from_slice(&crc.to_le_bytes());
}

fn is_sealed(block: &[u8]) -> bool {
    crc32c::crc32c(&block[..CRC_AT]).to_le_bytes() == block[CRC_AT..BLOCK_BYTES]
}

/// Which ring of which journal a batch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    pub journal: Uuid,
    pub formatted: u64,
    pub area: u16,
}

/// What the head of a batch says of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub ring: Ring,
    pub sequence: u64,
    /// The oldest batch that is still needed.
    pub oldest: u64,
    /// Originals of epochs through this one are not all here.
    pub lost_through: Epoch,
    /// All of the batch, the head included.
    pub blocks: u32,
    pub records: u16,
}

/// What a run of bytes of a volume contained when its epoch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub epoch: Epoch,
    pub volume: u16,
    pub offset: u64,
    pub bytes: u32,
    /// CRC32C of the content. `None`: all zeroes, which take no room.
    pub crc: Option<u32>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: U64,
    journal: [u8; 16],
    formatted: U64,
    sequence: U64,
    oldest: U64,
    lost_through: U64,
    blocks: U32,
    records: U16,
    area: U16,
}
const _: () = assert!(size_of::<RawHead>() == HEAD_BYTES);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    epoch: U64,
    offset: U64,
    bytes: U32,
    volume: U16,
    zeroes: U16,
    crc: U32,
    unused: U32,
}
const _: () = assert!(size_of::<RawRecord>() == RECORD_BYTES);

impl Record {
    /// Room that the content takes in a batch.
    pub fn room(&self) -> usize {
        if self.crc.is_some() { (self.bytes as usize).next_multiple_of(BLOCK_BYTES) } else { 0 }
    }

    /// Puts the record at its place in the head.
    pub fn encode(&self, head: &mut [u8], index: usize) {
        let raw = RawRecord {
            epoch: U64::new(self.epoch.0),
            offset: U64::new(self.offset),
            bytes: U32::new(self.bytes),
            volume: U16::new(self.volume),
            zeroes: U16::new(self.crc.is_none().into()),
            crc: U32::new(self.crc.unwrap_or(0)),
            unused: U32::new(0),
        };
        let at = HEAD_BYTES + index * RECORD_BYTES;
        head[at..at + RECORD_BYTES].copy_from_slice(raw.as_bytes());
    }
}

impl Head {
    /// Completes a head whose records are in it.
    pub fn encode(&self, head: &mut [u8]) {
        let raw = RawHead {
            magic: U64::new(BATCH_MAGIC),
            journal: self.ring.journal.into_bytes(),
            formatted: U64::new(self.ring.formatted),
            sequence: U64::new(self.sequence),
            oldest: U64::new(self.oldest),
            lost_through: U64::new(self.lost_through.0),
            blocks: U32::new(self.blocks),
            records: U16::new(self.records),
            area: U16::new(self.ring.area),
        };
        head[..HEAD_BYTES].copy_from_slice(raw.as_bytes());
        head[HEAD_BYTES + usize::from(self.records) * RECORD_BYTES..CRC_AT].fill(0);
        seal(head);
    }

    /// The head that a block is, if it is one, and of this ring.
    pub fn decode(block: &[u8], ring: &Ring) -> Option<Head> {
        let block = block.get(..BLOCK_BYTES)?;
        let (raw, _) = RawHead::ref_from_prefix(block).ok()?;
        let theirs = Ring {
            journal: Uuid::from_bytes(raw.journal),
            formatted: raw.formatted.get(),
            area: raw.area.get(),
        };
        if raw.magic.get() != BATCH_MAGIC || theirs != *ring || !is_sealed(block) {
            return None;
        }
        let head = Head {
            ring: theirs,
            sequence: raw.sequence.get(),
            oldest: raw.oldest.get(),
            lost_through: Epoch(raw.lost_through.get()),
            blocks: raw.blocks.get(),
            records: raw.records.get(),
        };
        let fits = usize::from(head.records) <= RECORDS_MAX
            && (1..=BATCH_BYTES / BLOCK_BYTES).contains(&(head.blocks as usize))
            && (1..=head.sequence).contains(&head.oldest);
        fits.then_some(head)
    }

    pub fn bytes(&self) -> usize {
        self.blocks as usize * BLOCK_BYTES
    }

    /// The records of a batch with where their contents stand in it; `None` when it is not whole.
    pub fn records(&self, batch: &[u8]) -> Option<Vec<(Record, usize)>> {
        let batch = batch.get(..self.bytes())?;
        let mut at = BLOCK_BYTES;
        let mut records = Vec::with_capacity(self.records.into());
        for raw in batch[HEAD_BYTES..CRC_AT].chunks_exact(RECORD_BYTES).take(self.records.into()) {
            let raw = RawRecord::ref_from_bytes(raw).ok()?;
            let record = Record {
                epoch: Epoch(raw.epoch.get()),
                volume: raw.volume.get(),
                offset: raw.offset.get(),
                bytes: raw.bytes.get(),
                crc: (raw.zeroes.get() == 0).then(|| raw.crc.get()),
            };
            if let Some(crc) = record.crc {
                let content = batch.get(at..at + record.bytes as usize)?;
                if crc32c::crc32c(content) != crc {
                    return None;
                }
            }
            records.push((record, at));
            at += record.room();
        }
        (at <= batch.len()).then_some(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            group: Uuid::from_u128(1),
            journal: Uuid::from_u128(2),
            formatted: 3,
            areas: 4,
            area_bytes: 8 << 20,
        }
    }

    const RING: Ring = Ring { journal: Uuid::from_u128(2), formatted: 3, area: 1 };

    fn batch(contents: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0xEE; BLOCK_BYTES];
        for (index, (epoch, content)) in contents.iter().enumerate() {
            let zero = content.iter().all(|&byte| byte == 0);
            let record = Record {
                epoch: Epoch(*epoch),
                volume: 7,
                offset: *epoch * 512,
                bytes: content.len() as u32,
                crc: (!zero).then(|| crc32c::crc32c(content)),
            };
            record.encode(&mut bytes, index);
            if !zero {
                bytes.extend_from_slice(content);
                bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            }
        }
        let head = Head {
            ring: RING,
            sequence: 9,
            oldest: 5,
            lost_through: Epoch(2),
            blocks: (bytes.len() / BLOCK_BYTES) as u32,
            records: contents.len() as u16,
        };
        head.encode(&mut bytes[..BLOCK_BYTES]);
        bytes
    }

    #[test]
    fn a_header_reads_back_as_written_and_says_what_is_wrong_with_another() {
        let mut block = vec![0xff; BLOCK_BYTES];
        header().encode(&mut block);
        assert_eq!(Header::decode(&block), Ok(header()));
        assert_eq!(Header::decode(&[0; BLOCK_BYTES]), Err(FormatError::Empty));
        assert_eq!(Header::decode(&[1; BLOCK_BYTES]), Err(FormatError::Foreign));
        block[8] = 9;
        assert_eq!(Header::decode(&block), Err(FormatError::Checksum));
        seal(&mut block);
        assert_eq!(Header::decode(&block), Err(FormatError::Version(9)));
    }

    proptest! {
        #[test]
        fn a_batch_reads_back_as_written(
            contents in prop::collection::vec((1u64..9, (1usize..20, any::<u8>()).prop_map(|(n, b)| vec![b; n * 512])), 0..9),
        ) {
            let bytes = batch(&contents);
            let head = Head::decode(&bytes, &RING).expect("a head");
            prop_assert_eq!((head.sequence, head.oldest, head.lost_through), (9, 5, Epoch(2)));
            prop_assert_eq!(head.bytes(), bytes.len());
            let records = head.records(&bytes).expect("whole");
            let back: Vec<(u64, Vec<u8>)> = records
                .iter()
                .map(|(record, at)| {
                    let content = match record.crc {
                        Some(_) => bytes[*at..*at + record.bytes as usize].to_vec(),
                        None => vec![0; record.bytes as usize],
                    };
                    (record.epoch.0, content)
                })
                .collect();
            prop_assert_eq!(back, contents);
            for other in [
                Ring { journal: Uuid::nil(), ..RING },
                Ring { formatted: 2, ..RING },
                Ring { area: 0, ..RING },
            ] {
                prop_assert_eq!(Head::decode(&bytes, &other), None);
            }
        }

        #[test]
        fn every_flipped_bit_of_what_counts_is_detected(byte in 0..3 * BLOCK_BYTES, bit in 0..8) {
            let mut bytes = batch(&[(1, vec![3; 8192])]);
            bytes[byte] ^= 1u8 << bit;
            let whole = Head::decode(&bytes, &RING).and_then(|head| head.records(&bytes));
            prop_assert!(whole.is_none());
        }

        #[test]
        fn a_torn_batch_is_detected(cut in 0usize..3) {
            let bytes = batch(&[(1, vec![3; 4096]), (2, vec![4; 4096])]);
            let torn = [&bytes[..cut * BLOCK_BYTES], &vec![0; (3 - cut) * BLOCK_BYTES][..]].concat();
            let whole = Head::decode(&torn, &RING).and_then(|head| head.records(&torn));
            prop_assert!(whole.is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), BLOCK_BYTES)) {
            let _ = Header::decode(&bytes);
            let head = Head { ring: RING, sequence: 1, oldest: 1, lost_through: Epoch(0), blocks: 1, records: 120 };
            bytes[..8].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
            let raw = bytes.clone();
            head.encode(&mut bytes);
            bytes[HEAD_BYTES..CRC_AT].copy_from_slice(&raw[HEAD_BYTES..CRC_AT]);
            seal(&mut bytes);
            let _ = Head::decode(&bytes, &RING).map(|head| head.records(&bytes));
        }
    }
}
