//! The metadata file's two slots, and what a record says of a node: what `metadata/store.rs`, `group/home.rs` and
//! `group/recorded.rs` do in production, with the product's encoding of records.

use lockstep::replication::Lineage;
use lockstep::replication::core::GroupRecord;
use lockstep::replication::metadata::{FileRole, Record, RecordError, SLOT_BYTES, VolumeRecord};
use uuid::Uuid;

/// The place of a file's newest record in the sequence of all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slots {
    sequence: u64,
}

impl Slots {
    /// The record that counts, of the two slots' bytes; an error names what is wrong with either slot.
    pub fn read(bytes: &[u8]) -> Result<(Slots, Option<Record>), (RecordError, RecordError)> {
        let (first, second) = bytes.split_at(SLOT_BYTES);
        let newest = match (Record::decode(first), Record::decode(second)) {
            (Err(RecordError::Empty), Err(RecordError::Empty)) => None,
            (Err(first), Err(second)) => return Err((first, second)),
            (Ok(record), Err(_)) | (Err(_), Ok(record)) => Some(record),
            (Ok(a), Ok(b)) => Some(if a.0 > b.0 { a } else { b }),
        };
        let (sequence, record) = newest.map_or((0, None), |(sequence, record)| (sequence, Some(record)));
        Ok((Slots { sequence }, record))
    }

    /// Puts the next record into `bytes`, a slot long, and says at which byte of the file it goes.
    pub fn next(&mut self, record: &Record, bytes: &mut [u8]) -> u64 {
        self.sequence += 1;
        record.encode(self.sequence, bytes);
        self.sequence % 2 * SLOT_BYTES as u64
    }
}

/// As the record stands in the file of a node, whose group and node `identity` names.
pub fn to_file(
    record: GroupRecord,
    identity: (Uuid, Uuid),
    is_primary: bool,
    volumes: Vec<VolumeRecord>,
) -> Record {
    let promoted = if record.promoted { FileRole::Promoted } else { FileRole::Secondary };
    Record {
        group: identity.0,
        node: identity.1,
        role: if is_primary { FileRole::Primary } else { promoted },
        consistent: !record.inconsistent,
        generation: record.generation,
        committed_epoch: record.committed,
        volumes,
        journal: None,
        lineage: record.lineage,
    }
}

/// What a node begins with that finds this in its file. Its configuration names the same role every time.
pub fn from_file(record: &Record) -> GroupRecord {
    GroupRecord {
        generation: record.generation,
        committed: record.committed_epoch,
        newest: record.committed_epoch,
        inconsistent: !record.consistent,
        promoted: record.role == FileRole::Promoted && record.consistent,
        lineage: if record.role == FileRole::Secondary { record.lineage } else { Lineage(0) },
        journaled: false,
    }
}
