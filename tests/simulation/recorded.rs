//! What a record says of a node: what `group/home.rs` and `group/recorded.rs` do in production.

use lockstep::replication::Lineage;
use lockstep::replication::core::GroupRecord;
use lockstep::replication::metadata::{FileRole, Record, VolumeRecord};
use uuid::Uuid;

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
        past: record.past,
    }
}

/// What a node begins with that finds this in its file. Its configuration names the same role every time.
pub fn from_file(record: &Record) -> GroupRecord {
    let mut found = GroupRecord {
        generation: record.generation,
        committed: record.committed_epoch,
        newest: record.committed_epoch,
        inconsistent: !record.consistent,
        promoted: record.role == FileRole::Promoted && record.consistent,
        lineage: record.lineage,
        past: record.past,
        journaled: false,
    };
    if record.role != FileRole::Secondary {
        // A name that no peer has, as the product makes at random.
        let number = 1 << 63 | record.generation.0 << 32 | record.committed_epoch.0;
        found.lose_marks(Lineage(found.lineage.0 ^ number));
    }
    found
}
