//! What a node is: by its durable record first, by its configuration second.
//!
//! Invariants. A node that took over serves on, whatever role its configuration names, and a saved configuration that
//! knows of a promotion makes no group without the record of it. A node that was the primary never becomes a follower
//! unasked: following, it would be overwritten; one that lost its disk as the primary never serves it again. One that follows
//! never becomes the primary by a change of its configuration: that is what a failover is for.

use std::sync::Arc;

use uuid::Uuid;

use super::claim;
use super::options::*;
use crate::bdev::Bdev;
use crate::replication::core::GroupRecord;
use crate::replication::metadata::{FileRole, Record, Store};
use crate::replication::{Generation, Lineage};

/// Why a group is not made of this record and this configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordRefusal {
    #[error(
        "by its record this node was the primary, of generation {0}; a secondary is overwritten by its primary. If that \
         is meant, remove the file and create the group again"
    )]
    WasPrimary(Generation),
    #[error(
        "by its record this node is the secondary, of generation {0}; to make it the primary create it as the secondary and \
         call replication_failover, or remove the file if both nodes begin anew"
    )]
    WasSecondary(Generation),
    #[error(
        "by its record this node took over in generation {0}, and ended before the promised content was on its disk: it \
         cannot be a primary. Create it as the secondary and copy the volumes to it"
    )]
    Inconsistent(Generation),
    #[error(
        "by its record this node was the primary, of generation {0}, when it lost its disk or was filling the replacement of \
         one: only its peer has what hosts wrote since. Fail over at the peer, then create the group here as its secondary"
    )]
    Detached(Generation),
    #[error(
        "the configuration was saved after this node had taken over in generation {0}, and the file does not say so: restore \
         the file; or, to begin anew with volumes that may be overwritten, take 'promoted_generation' out of the \
         configuration"
    )]
    PromotionUnknown(Generation),
}

/// What the metadata file says of this group, of this node, and of the volumes' sizes in blocks.
pub(super) fn read(
    store: &Store,
    group: Uuid,
    options: &GroupOptions,
    bases: &[Arc<Bdev>],
) -> Result<(GroupRecord, Uuid, Vec<u64>), ReplicationError> {
    let record = store.record();
    if let Some(record) = record {
        check_identity(store, record, group, options, bases)?;
    }
    let is_primary = matches!(options.role, RoleOptions::Primary(_));
    let decided = decide(record, is_primary, options.promoted_generation)
        .map_err(|refusal| ReplicationError::Record(store.path().to_path_buf(), refusal))?;
    let mut decided = decided;
    if !bases.iter().all(|base| base.device().survives_restart()) {
        // The file is still there, the disk's content may not be.
        decided.disown();
    }
    let (node, blocks) = match record {
        Some(record) => (record.node, record.volumes.iter().map(|volume| volume.num_blocks).collect()),
        None => {
            let node = Uuid::from_u64_pair(claim::nonce(), claim::nonce());
            (node, bases.iter().map(|base| base.num_blocks()).collect())
        }
    };
    Ok((decided, node, blocks))
}

fn check_identity(
    store: &Store,
    record: &Record,
    group: Uuid,
    options: &GroupOptions,
    bases: &[Arc<Bdev>],
) -> Result<(), ReplicationError> {
    let other = |text: String| Err(ReplicationError::OtherGroup(text));
    if record.group != group {
        return other(format!("{} is of group {}", store.path().display(), record.group));
    }
    if record.volumes.len() != options.volumes.len() {
        return other(format!("it has {} volumes", record.volumes.len()));
    }
    for ((known, volume), base) in record.volumes.iter().zip(&options.volumes).zip(bases) {
        if known.name != volume.name {
            return other(format!("its volume is `{}`, not `{}`", known.name, volume.name));
        }
        if known.block_size != base.block_size() {
            return other(format!("its volume `{}` had blocks of {} bytes", known.name, known.block_size));
        }
        if base.num_blocks() < known.num_blocks {
            let (has, needs) = (base.num_blocks(), known.num_blocks);
            return Err(ReplicationError::Invalid(format!(
                "volume `{}` has {needs} blocks, and `{}` only {has}: grow it to what it was, or give the right disk",
                known.name,
                base.name()
            )));
        }
    }
    Ok(())
}

/// The record a group begins with, by what the file says, the role of the configuration, and the promotion that the
/// configuration knows of.
fn decide(
    record: Option<&Record>,
    as_primary: bool,
    known_promotion: Option<Generation>,
) -> Result<GroupRecord, RecordRefusal> {
    use FileRole::{Primary, Promoted, Secondary};
    if let Some(known) = known_promotion {
        let confirmed = record.is_some_and(|record| {
            record.generation > known || record.generation == known && record.role != Secondary
        });
        if !confirmed {
            return Err(RecordRefusal::PromotionUnknown(known));
        }
    }
    let Some(record) = record else {
        return Ok(GroupRecord { generation: Generation(1), ..GroupRecord::default() });
    };
    let generation = record.generation;
    let promoted = match (as_primary, record.role, record.consistent) {
        (true, Secondary, _) => return Err(RecordRefusal::WasSecondary(generation)),
        (true, Promoted, false) => return Err(RecordRefusal::Inconsistent(generation)),
        (true, Primary, false) => return Err(RecordRefusal::Detached(generation)),
        (true, Primary | Promoted, true) => false,
        // What it has nobody needs: its disk is worth nothing.
        (false, Primary, false) => false,
        (false, Primary, true) => return Err(RecordRefusal::WasPrimary(generation)),
        (false, Promoted, consistent) => consistent,
        (false, Secondary, _) => false,
    };
    let mut decided = GroupRecord {
        generation,
        committed: record.committed_epoch,
        newest: record.committed_epoch,
        // One that was promoted and did not finish is an inconsistent follower now: there is nothing to serve.
        inconsistent: !record.consistent,
        promoted,
        lineage: record.lineage,
        past: record.past,
        // Only a journal that was looked at does.
        journaled: false,
    };
    // A primary's map is memory: what its peer lacks is not known after a restart. A secondary's disk is what it was, and
    // its primary knows what it may have lost.
    if as_primary || record.role != Secondary {
        decided.lose_marks(Lineage(claim::nonce()));
    }
    Ok(decided)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::Epoch;

    fn record(role: FileRole, consistent: bool) -> Record {
        Record {
            group: Uuid::from_u128(1),
            node: Uuid::from_u128(2),
            role,
            consistent,
            generation: Generation(5),
            committed_epoch: Epoch(40),
            journal: None,
            lineage: Lineage(77),
            past: crate::replication::Past::default(),
            volumes: Vec::new(),
        }
    }

    fn decided(role: FileRole, consistent: bool, as_primary: bool) -> Result<(bool, bool), RecordRefusal> {
        let decided = decide(Some(&record(role, consistent)), as_primary, None)?;
        assert_eq!(
            (decided.generation, decided.committed, decided.newest),
            (Generation(5), Epoch(40), Epoch(40))
        );
        Ok((decided.promoted, decided.inconsistent))
    }

    #[test]
    fn the_record_decides_what_a_node_is_before_its_configuration_does() {
        use FileRole::{Primary, Promoted, Secondary};
        let g = Generation(5);
        assert_eq!(decided(Primary, true, true), Ok((false, false)));
        assert_eq!(decided(Promoted, true, true), Ok((false, false)));
        assert_eq!(decided(Promoted, false, true), Err(RecordRefusal::Inconsistent(g)));
        assert_eq!(decided(Secondary, true, true), Err(RecordRefusal::WasSecondary(g)));
        assert_eq!(decided(Secondary, true, false), Ok((false, false)));
        assert_eq!(decided(Secondary, false, false), Ok((false, true)));
        assert_eq!(decided(Promoted, true, false), Ok((true, false)), "it serves on");
        assert_eq!(decided(Promoted, false, false), Ok((false, true)), "it has nothing to serve");
        assert_eq!(decided(Primary, true, false), Err(RecordRefusal::WasPrimary(g)));
        assert_eq!(decided(Primary, false, true), Err(RecordRefusal::Detached(g)), "its disk is stale");
        assert_eq!(decided(Primary, false, false), Ok((false, true)), "it may be overwritten");
        let fresh = GroupRecord { generation: Generation(1), ..GroupRecord::default() };
        assert_eq!((decide(None, true, None), decide(None, false, None)), (Ok(fresh), Ok(fresh)));
    }

    #[test]
    fn only_a_secondary_is_of_its_lineage_still_after_a_restart() {
        use FileRole::{Primary, Promoted, Secondary};
        let lineage =
            |role, as_primary| decide(Some(&record(role, true)), as_primary, None).map(|r| r.lineage);
        assert_eq!(lineage(Secondary, false), Ok(Lineage(77)));
        let of_none = |found: Result<Lineage, RecordRefusal>| {
            found.is_ok_and(|name| name != Lineage(0) && name != Lineage(77))
        };
        assert!(of_none(lineage(Primary, true)), "its map was memory");
        assert!(of_none(lineage(Promoted, true)));
        assert!(of_none(lineage(Promoted, false)), "hosts wrote to it since");
    }

    #[test]
    fn a_promotion_that_the_configuration_knows_must_be_in_the_record() {
        use FileRole::{Promoted, Secondary};
        let unknown = |generation| Err(RecordRefusal::PromotionUnknown(Generation(generation)));
        let with =
            |record: Option<&Record>, known| decide(record, false, Some(Generation(known))).map(|_| ());
        assert_eq!(with(None, 2), unknown(2));
        assert_eq!(with(Some(&record(Promoted, true)), 6), unknown(6));
        assert_eq!(with(Some(&record(Secondary, true)), 5), unknown(5));
        assert_eq!(with(Some(&record(Promoted, true)), 5), Ok(()));
        assert_eq!(with(Some(&record(Secondary, true)), 4), Ok(()), "what came later counts");
    }
}
