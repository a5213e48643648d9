//! Earlier checkpoints of a replication group: listing them, showing them as bdevs, going back to one.

use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Family, Method};
use crate::replication::Epoch;
use crate::replication::group::HistoryInfo;
use crate::target::nvmf::SubsystemInfo;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

params! {
    /// Parameters of `replication_get_history`.
    pub struct GetHistory {
        /// The group.
        group: String,
    }
}

params! {
    /// Parameters of `replication_rollback`.
    pub struct Rollback {
        /// The group.
        group: String,
        /// The epoch, as `replication_get_history` lists it.
        epoch: u64,
    }
}

params! {
    /// Parameters of `bdev_replication_epoch_create`.
    pub struct EpochCreate {
        /// Name of the new bdev.
        name: String,
        /// The group.
        group: String,
        /// The volume.
        volume: String,
        /// The epoch, as `replication_get_history` lists it.
        epoch: u64,
        /// Identifier. Default: a random one.
        uuid: Option<Uuid>,
    }
}

params! {
    /// Parameters of `bdev_replication_epoch_delete`.
    pub struct EpochDelete {
        /// Name of the bdev.
        name: String,
    }
}

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "Replication history",
        about: "A secondary with `history_epochs` keeps what leads back to as many committed checkpoints before the last one, \
                in memory, as far as `history_limit_mb` goes. Each can be read as a bdev of its own while everything goes on, \
                and be gone back to. These methods are Lockstep's own.",
        methods: vec![
            Method::new("replication_get_history", Callable::Runtime, get_history)
                .summary(
                    "Lists the checkpoints of a secondary that can be shown and gone back to, oldest first; the last is the \
                     last committed one. `bytes` is what keeping the checkpoint costs, and `committed_unix_ms` when it was \
                     committed here.",
                )
                .result(
                    "`history_epochs`, `limit_bytes`, `used_bytes`, `epochs` (`epoch`, `committed_unix_ms` or null, `bytes`, \
                     `bdevs`: those that show it).",
                )
                .errors(&[(-19, "no group has this name"), (-95, "the group is a primary")])
                .example(r#"{"group": "g2"}"#),
            Method::new("bdev_replication_epoch_create", Callable::Runtime, create)
                .summary(
                    "Makes a bdev that shows a volume as it was at the end of an epoch, whatever is written meanwhile. It cannot \
                     be written. While it exists its epoch is kept beyond `history_epochs`, and so are those after it, as far \
                     as `history_limit_mb` goes: then it is given up, with the event `replication_history_dropped`, and reads \
                     fail as those of a removed device.",
                )
                .result("The bdev's name.")
                .errors(&[
                    (-19, "no group has this name"),
                    (-95, "the group is a primary"),
                    (-2, "the epoch is not kept"),
                    (-17, "a bdev of this name exists"),
                    (-22, "the group has no such volume, or too many bdevs of checkpoints"),
                ])
                .example(r#"{"name": "v2-before", "group": "g2", "volume": "v2", "epoch": 4}"#),
            Method::new("bdev_replication_epoch_delete", Callable::Runtime, delete)
                .summary("Deletes a bdev that `bdev_replication_epoch_create` made, and lets its epoch go.")
                .errors(&[(-19, "no bdev of a checkpoint has this name"), (-1, "another bdev is on top of it")])
                .example(r#"{"name": "v2-before"}"#),
            Method::new("replication_rollback", Callable::Runtime, rollback)
                .summary(
                    "Makes all volumes of the group exactly what they were at the end of an epoch. For a secondary without a \
                     session: after `replication_stop` on it, when it has lost its primary, or when it took over and the disk \
                     buffer is on the disk; then no subsystem may have a volume as a namespace. When it returns the volumes \
                     can be read so, and written on a node that took over; originals go to the disks in the background, while the \
                     group is `rolling back` or, after a failover, `serving, draining the buffer`. The record says inconsistent \
                     meanwhile. A secondary needs the sync `full` after it, or a failover with `checkpoint`.",
                )
                .result("`epoch`, and `readable_after_us`: how long it took until the volumes could be read so.")
                .errors(&[
                    (-19, "no group has this name"),
                    (-95, "the group is a primary"),
                    (-2, "the epoch is not kept"),
                    (-1, "a session stands, or a volume is in use; the message tells"),
                    (-5, "the group's record could not be written"),
                ])
                .example(r#"{"group": "g2", "epoch": 4}"#),
        ],
    }
}

fn get_history(node: &Arc<Node>, params: GetHistory) -> Result<HistoryInfo, RpcError> {
    Ok(node.groups().history(&params.group)?)
}

fn rollback(node: &Arc<Node>, params: Rollback) -> Result<Value, RpcError> {
    let user = |bdev: &str| {
        let subsystems = node.nvmf().subsystems();
        let has = |subsystem: &&SubsystemInfo| subsystem.namespaces.iter().any(|n| n.bdev_name == bdev);
        subsystems.iter().find(has).map(|subsystem| format!("subsystem {}", subsystem.options.nqn))
    };
    let took = node.groups().roll_back(&params.group, Epoch(params.epoch), user)?;
    Ok(json!({"epoch": params.epoch, "readable_after_us": took.as_micros() as u64}))
}

fn create(node: &Arc<Node>, params: EpochCreate) -> Result<String, RpcError> {
    let uuid = params.uuid.unwrap_or_else(Uuid::new_v4);
    let epoch = Epoch(params.epoch);
    node.groups().export_epoch(&params.group, &params.volume, epoch, &params.name, uuid)?;
    Ok(params.name)
}

fn delete(node: &Arc<Node>, params: EpochDelete) -> Result<bool, RpcError> {
    node.groups().delete_export(&params.name)?;
    Ok(true)
}
