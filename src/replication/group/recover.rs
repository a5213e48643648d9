//! What a secondary with a journal does at its start, before it shows anything: it goes back to its last committed
//! checkpoint, or says why it cannot and needs a sync.
//!
//! Invariants. The record says that the disks are inconsistent before the first original goes back and until the last one
//! is durable, so that a roll-back that was cut off is done again and nothing half rolled back is ever promised. A journal
//! counts only if the record names it: one of another time does not know what was written since.

use std::sync::Arc;

use uuid::Uuid;

use super::options::*;
use crate::bdev::{Bdev, Registry};
use crate::reactor::ReactorSet;
use crate::replication::Epoch;
use crate::replication::core::Identity;
use crate::replication::journal::{Journal, Opened, Unrecoverable};
use crate::replication::metadata::{FileRole, Record, Store};

/// What became of the disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// There was nothing to go back to, or nothing that needed it.
    NotAsked,
    RolledBack {
        committed: Epoch,
        bytes: u64,
    },
    NeedsSync(String),
}

/// Opens the journal that the options name, goes back if the record says that it leads back, and makes it ready.
pub(super) fn recover(
    store: &mut Store,
    group: Uuid,
    options: &GroupOptions,
    bases: &[Arc<Bdev>],
    registry: &Registry,
    reactors: &ReactorSet,
) -> Result<Option<(Journal, Way)>, ReplicationError> {
    let RoleOptions::Secondary(SecondaryOptions { journal: Some(place), .. }) = &options.role else {
        return Ok(None);
    };
    let claimant = format!("replication group {}", options.name);
    let opened = Journal::open(place, group, &claimant, registry, reactors)?;
    let way = match store.record().cloned() {
        Some(record) if record.role == FileRole::Secondary => match record.journal {
            Some(named) if Some(named) == opened.uuid() => {
                lead_back(&opened, store, &record, bases, reactors)?
            }
            Some(_) => Way::NeedsSync(format!(
                "`{}` is not the journal that was in use at the last checkpoint",
                opened.place()
            )),
            // A sync that did not end says so by itself.
            None if !record.consistent => Way::NotAsked,
            None => Way::NeedsSync("there was no checkpoint to which the journal leads".to_string()),
        },
        _ => Way::NotAsked,
    };
    let leads_back = matches!(way, Way::RolledBack { .. });
    Ok(Some((opened.format(group, leads_back, reactors)?, way)))
}

fn lead_back(
    opened: &Opened,
    store: &mut Store,
    record: &Record,
    bases: &[Arc<Bdev>],
    reactors: &ReactorSet,
) -> Result<Way, ReplicationError> {
    let committed = record.committed_epoch;
    let back = match opened.find(committed, reactors, bases) {
        Ok(back) => back,
        Err(error @ (Unrecoverable::Read(_) | Unrecoverable::Disk(_))) => {
            return Err(ReplicationError::RollBack(committed, error));
        }
        Err(error) => return Ok(Way::NeedsSync(error.to_string())),
    };
    if back.torn() > 0 {
        tracing::info!(
            "journal `{}`: the last write of {} of its areas was cut off; nothing was written in place for it",
            opened.place(),
            back.torn()
        );
    }
    if !back.is_empty() || !record.consistent {
        // The peer knows what the disks lacked before they went back, and not what they lack then.
        let mut identity = Identity::new(record.lineage, record.past);
        identity.disown();
        let record = Record { lineage: identity.current, past: identity.past(), ..record.clone() };
        store.replace(Record { consistent: false, ..record.clone() })?;
        opened
            .roll_back(&back, reactors, bases)
            .map_err(|error| ReplicationError::RollBack(committed, error))?;
        store.replace(Record { consistent: true, ..record })?;
    }
    Ok(Way::RolledBack { committed, bytes: back.bytes() })
}
