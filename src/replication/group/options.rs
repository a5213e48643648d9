//! What a group is made of, what it tells of itself, and how its commands fail.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::history::HistoryInfo;
use super::recorded::RecordRefusal;
use super::split_brain::SplitBrainInfo;
use super::verify::VerifyInfo;
use crate::bdev::BdevError;
use crate::reactor::CallError;
use crate::replication::core::{AckMode, GroupError, OnDiskFailure, OnLinkLoss};
use crate::replication::journal::{JournalError, JournalOptions, Unrecoverable};
use crate::replication::link::ListenError;
use crate::replication::metadata::MetadataError;
use crate::replication::{Epoch, Generation};

/// A peer that was not heard of for so long is gone, unless told otherwise: longer than any pause of a healthy node,
/// shorter than a guest's patience (30 s with Linux).
pub const PEER_TIMEOUT_MS: u32 = 5000;
/// Below this a node that is only busy counts as gone.
pub const PEER_TIMEOUT_MIN_MS: u32 = 1000;
/// Above this no guest is left to wait for it.
pub const PEER_TIMEOUT_MAX_MS: u32 = 60_000;
/// How long hosts wait for a slow peer that may be left behind, unless told otherwise: longer than it takes to notice a
/// disk that hangs, and shorter than a guest's patience.
pub const BEHIND_AFTER_MS: u32 = 3000;
/// Below this a peer that is only busy falls behind.
pub const BEHIND_AFTER_MIN_MS: u32 = 200;
/// How long a start waits for its peer, unless told otherwise.
pub const START_TIMEOUT_MS: u32 = 10_000;
/// How long a peer that was reached may take to be ready: one durable write, and a message to every reactor.
pub const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a failover may take: one durable write, and a message to every reactor.
pub const FAILOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// An I/O of the secondary's disk that takes longer is held in memory instead of waited for.
pub const HUNG_IO: Duration = Duration::from_millis(1000);
/// How long a verify waits for a disk: longer than a disk that heals its sectors takes, and than the link's deadline.
pub const VERIFY_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupRole {
    Primary,
    Secondary,
}

#[derive(Clone, Debug)]
pub struct VolumeOptions {
    pub name: String,
    /// The disk below.
    pub bdev: String,
}

#[derive(Clone, Debug)]
pub struct PrimaryOptions {
    pub peer: SocketAddr,
    pub ack: AckMode,
    pub on_link_loss: OnLinkLoss,
    pub checkpoint_timeout_ms: u32,
    /// 0: only on command.
    pub checkpoint_interval_ms: u32,
    /// What is copied in a second at most; 0: as much as goes.
    pub resync_rate_bytes: u64,
    /// What nine of ten writes of hosts are to take at most while copies are made; 0: copies take what they get.
    pub resync_latency_target_us: u32,
    /// What the peer has already is found by checksum, and not sent.
    pub resync_checksum: bool,
    /// How long hosts may wait for a slow peer before it is left behind; `None`: for ever.
    pub behind_after_ms: Option<u32>,
    /// Not a part of the configuration: a node that starts copies.
    pub resync_paused: bool,
    pub on_disk_failure: OnDiskFailure,
}

impl PrimaryOptions {
    /// Whether the options go together.
    pub fn check(&self) -> Result<(), ReplicationError> {
        match (self.behind_after_ms, self.on_link_loss) {
            (Some(_), OnLinkLoss::Block) => Err(ReplicationError::Invalid(
                "'on_congestion' `behind` goes on without the peer, 'on_link_loss' `block` never does: choose one".to_string(),
            )),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Debug)]
pub struct SecondaryOptions {
    pub listen: SocketAddr,
    pub disk_buffer: bool,
    pub buffer_limit_bytes: u64,
    pub granule_bytes: u32,
    /// Checkpoints that are kept before the last one; 0: none.
    pub history_epochs: u32,
    pub history_limit_bytes: u64,
    /// Where originals are kept durably.
    pub journal: Option<JournalOptions>,
}

#[derive(Clone, Debug)]
pub enum RoleOptions {
    Primary(PrimaryOptions),
    Secondary(SecondaryOptions),
}

#[derive(Clone, Debug)]
pub struct GroupOptions {
    pub name: String,
    pub volumes: Vec<VolumeOptions>,
    pub metadata: PathBuf,
    pub role: RoleOptions,
    pub peer_timeout_ms: u32,
    /// The generation in which this node took over: by the configuration when the group is made, of the group as it is
    /// when asked later. The record must be at least as new.
    pub promoted_generation: Option<Generation>,
}

/// What of a group may change while it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    pub ack: Option<AckMode>,
    pub on_link_loss: Option<OnLinkLoss>,
    pub checkpoint_timeout_ms: Option<u32>,
    pub checkpoint_interval_ms: Option<u32>,
    pub resync_rate_bytes: Option<u64>,
    pub resync_latency_target_us: Option<u32>,
    pub resync_checksum: Option<bool>,
    pub resync_paused: Option<bool>,
    /// `Some(None)`: hosts wait for ever.
    pub behind_after_ms: Option<Option<u32>>,
    pub buffer_limit_bytes: Option<u64>,
    pub history_epochs: Option<u32>,
    pub history_limit_bytes: Option<u64>,
    pub peer_timeout_ms: Option<u32>,
}

impl Changes {
    /// Whether any of it is about copies.
    pub(super) fn has_copies(&self) -> bool {
        self.resync_rate_bytes.is_some()
            || self.resync_latency_target_us.is_some()
            || self.resync_checksum.is_some()
            || self.resync_paused.is_some()
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct VolumeInfo {
    pub name: String,
    pub bdev: String,
    pub uuid: Uuid,
    pub num_blocks: u64,
    pub block_size: u32,
    /// Of the disk below.
    pub base_num_blocks: u64,
    /// A primary knows what the peer's disk has, from its first session on.
    pub peer_base_num_blocks: Option<u64>,
    /// Of a primary's: `attached`, `detached`, or `filling` a replacement of it.
    pub disk: &'static str,
    /// While a replacement is being filled.
    pub fill: Option<SyncInfo>,
    /// What to do for the volume to grow.
    pub notice: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct BufferInfo {
    pub undo_bytes: u64,
    pub overlay_bytes: u64,
    pub pinned_bytes: u64,
    pub limit_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct JournalInfo {
    /// The file or bdev.
    pub journal: String,
    pub size_bytes: u64,
    pub used_bytes: u64,
    /// The epoch to which it led the volumes back when the node started, until a session begins.
    pub rolled_back_to: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct SyncInfo {
    pub copied_bytes: u64,
    pub left_bytes: u64,
    pub total_bytes: u64,
    /// On the average since it began.
    pub bytes_per_second: u64,
    /// At that rate; not known before anything was copied, nor while it is paused.
    pub seconds_left: Option<u64>,
    /// What the peer had already, found by checksum.
    pub equal_bytes: u64,
    pub paused: bool,
}

impl SyncInfo {
    pub(super) fn new(
        total_bytes: u64,
        left_bytes: u64,
        equal_bytes: u64,
        paused: bool,
        since: Duration,
    ) -> SyncInfo {
        let copied_bytes = total_bytes.saturating_sub(left_bytes);
        let bytes_per_second = (copied_bytes as f64 / since.as_secs_f64().max(0.001)) as u64;
        let seconds_left = (bytes_per_second > 0 && !paused).then(|| left_bytes.div_ceil(bytes_per_second));
        SyncInfo {
            copied_bytes,
            left_bytes,
            total_bytes,
            bytes_per_second,
            seconds_left,
            equal_bytes,
            paused,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct GroupInfo {
    pub name: String,
    pub uuid: Uuid,
    pub role: GroupRole,
    pub state: &'static str,
    pub epoch: u64,
    pub committed_epoch: u64,
    pub generation: u64,
    pub ack: &'static str,
    pub on_link_loss: &'static str,
    pub peer_timeout_ms: u32,
    pub volumes: Vec<VolumeInfo>,
    pub peer: String,
    pub connected: bool,
    pub sent_bytes: u64,
    pub lag_bytes: u64,
    /// An upper bound of the bytes that the peer lacks.
    pub dirty_bytes: u64,
    pub buffer: BufferInfo,
    /// Of a secondary that keeps earlier checkpoints.
    pub history: Option<HistoryInfo>,
    /// Of a secondary that has one.
    pub journal: Option<JournalInfo>,
    /// While the disks are being made equal; a primary knows.
    pub sync: Option<SyncInfo>,
    /// The verify that runs, or else the last one since the group was made here.
    pub verify: Option<VerifyInfo>,
    /// While both nodes have gone on without each other, as they last met.
    pub split_brain: Option<SplitBrainInfo>,
    pub error: Option<String>,
}

/// Why a command of replication failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    #[error("no replication group is named `{0}`; replication_get_groups lists those that exist")]
    NotFound(String),
    #[error("a replication group named `{0}` exists already")]
    Exists(String),
    #[error("{0}")]
    Invalid(String),
    #[error("group `{0}` is a {1}: the command is for the other role")]
    Role(String, &'static str),
    #[error("the metadata file belongs to another group: {0}")]
    OtherGroup(String),
    #[error("the metadata file {0}: {1}")]
    Record(PathBuf, RecordRefusal),
    #[error("the group has no volume named `{0}`; replication_get_groups lists those that it has")]
    NoVolume(String),
    #[error(
        "the disk `{0}` failed, and has not given back what it was asked to write: give another one, or wait until it has"
    )]
    DiskBusy(String),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("{error}: {detail}")]
    Peer { error: GroupError, detail: String },
    #[error(transparent)]
    Bdev(#[from] BdevError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(
        "the volumes could not be rolled back to epoch {0}: {1}. Nothing was shown of them; make the disk work, then create \
         the group again"
    )]
    RollBack(Epoch, Unrecoverable),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Reactor(#[from] CallError),
}

pub(super) fn ack_name(ack: AckMode) -> &'static str {
    match ack {
        AckMode::Local => "local",
        AckMode::Received => "received",
        AckMode::Applied => "applied",
    }
}

pub(super) fn policy_name(policy: OnLinkLoss) -> &'static str {
    match policy {
        OnLinkLoss::Continue => "continue",
        OnLinkLoss::Block => "block",
    }
}

/// The identity that both nodes give a thing of the same name: FNV-1a of 128 bits, as a UUID of version 8.
pub(super) fn identity(parts: &[&str]) -> Uuid {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = BASIS;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    uuid::Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_by_what_is_left_and_the_rate_so_far() {
        let at = |left, ms| SyncInfo::new(1000, left, 0, false, Duration::from_millis(ms));
        let sync = at(600, 2000);
        assert_eq!((sync.copied_bytes, sync.bytes_per_second, sync.seconds_left), (400, 200, Some(3)));
        assert_eq!((at(1000, 2000).bytes_per_second, at(1000, 2000).seconds_left), (0, None));
        assert_eq!(at(0, 0).seconds_left, Some(0));
        let paused = SyncInfo::new(1000, 600, 0, true, Duration::from_millis(2000));
        assert_eq!(
            (paused.bytes_per_second, paused.seconds_left),
            (200, None),
            "nobody knows when it goes on"
        );
    }

    #[test]
    fn identities_depend_on_every_part_and_on_its_borders() {
        let one = identity(&["g0", "v0"]);
        assert_eq!(one, identity(&["g0", "v0"]));
        assert_ne!(one, identity(&["g0", "v1"]));
        assert_ne!(one, identity(&["g0v", "0"]));
        assert_eq!(one.get_version_num(), 8);
    }
}
