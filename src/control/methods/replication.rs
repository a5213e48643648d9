//! Replication groups: what an orchestrator commands.
//!
//! Every call ends by its own deadline, with an error that names what did not answer; a call that waits holds up
//! nobody but its own client.

use super::patiently;
use crate::control::error::RpcError;
use crate::control::node::{Node, State};
use crate::control::params::{choice, params};
use crate::control::registry::{Callable, Family, Method};
use crate::control::saved::call;
use crate::replication::core::{AckMode, GroupError, Keep, OnDiskFailure, OnLinkLoss, SyncMode};
use crate::replication::group::{
    BEHIND_AFTER_MIN_MS, BEHIND_AFTER_MS, Changes, GroupInfo, GroupOptions, HISTORY_EPOCHS_MAX,
    PEER_TIMEOUT_MAX_MS, PEER_TIMEOUT_MIN_MS, PEER_TIMEOUT_MS, PrimaryOptions, ReplicationError, RoleOptions,
    START_TIMEOUT_MS, SecondaryOptions, VolumeOptions,
};
use crate::replication::journal::{JournalError, JournalOptions};
use crate::replication::metadata::MetadataError;
use crate::replication::{Epoch, Generation};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

/// The only transport of a link.
const TRANSPORT: &str = "tcp";
const MIB: u64 = 1 << 20;
const KIB: u32 = 1 << 10;
/// What SPDK's and QEMU's users call a pause that a guest does not notice.
const DEFAULT_CHECKPOINT_TIMEOUT_MS: u32 = 1000;
/// Longest wait that a caller may ask for: beyond it a connection that waits is only in the way.
const MAX_TIMEOUT_MS: u32 = 600_000;
/// A minute of random 4 KiB writes at 2000 a second.
const DEFAULT_BUFFER_LIMIT_MB: u64 = 512;
/// Most hosts write 4 KiB or more at once; coarser granules copy more than is written.
const DEFAULT_GRANULE_KB: u32 = 4;
/// A terabyte in three hours, for a tenth of one NVMe disk.
const DEFAULT_VERIFY_RATE_MB: u64 = 100;
/// More than any link carries.
const MAX_VERIFY_RATE_MB: u64 = 65_536;

choice! {
    /// A node's part in a group.
    pub enum Role {
        /// Serves hosts and forwards their writes.
        Primary = "primary",
        /// Follows.
        Secondary = "secondary",
    }
}

choice! {
    /// When a write is acknowledged to its host.
    pub enum Ack {
        /// On the local disk, and on its way.
        Local = "local",
        /// On the local disk, and in the secondary's memory.
        Received = "received",
        /// On both disks.
        Applied = "applied",
    }
}

impl Ack {
    fn mode(self) -> AckMode {
        match self {
            Ack::Local => AckMode::Local,
            Ack::Received => AckMode::Received,
            Ack::Applied => AckMode::Applied,
        }
    }
}

choice! {
    /// What a primary does with writes while its peer is away.
    pub enum LinkLoss {
        /// Goes on alone.
        Continue = "continue",
        /// Lets them wait.
        Block = "block",
    }
}

impl LinkLoss {
    fn policy(self) -> OnLinkLoss {
        match self {
            LinkLoss::Continue => OnLinkLoss::Continue,
            LinkLoss::Block => OnLinkLoss::Block,
        }
    }
}

choice! {
    /// What becomes of hosts that wait too long for a secondary that is too slow.
    pub enum Congestion {
        /// They wait.
        Wait = "wait",
        /// The secondary is left behind.
        Behind = "behind",
    }
}

choice! {
    /// What a primary does when its own disk fails something.
    pub enum DiskLoss {
        /// Its host has the error.
        Report = "report",
        /// Goes on through the peer.
        Detach = "detach",
    }
}

impl DiskLoss {
    fn policy(self) -> OnDiskFailure {
        match self {
            DiskLoss::Report => OnDiskFailure::Report,
            DiskLoss::Detach => OnDiskFailure::Detach,
        }
    }
}

choice! {
    /// How the disks become equal.
    pub enum Sync {
        /// The primary's is copied.
        Full = "full",
        /// They are.
        None = "none",
        /// What changed since they were is copied.
        Changed = "changed",
    }
}

impl Sync {
    fn mode(self) -> SyncMode {
        match self {
            Sync::Full => SyncMode::Full,
            Sync::None => SyncMode::None,
            Sync::Changed => SyncMode::Changed,
        }
    }
}

choice! {
    /// What a failover promises.
    pub enum KeepWord {
        /// Every write that reached this node.
        Latest = "latest",
        /// The last committed checkpoint.
        Checkpoint = "checkpoint",
        /// What this node's own VM saw and wrote.
        Overlay = "overlay",
    }
}

params! {
    /// An end of the link.
    pub struct Endpoint {
        /// `tcp`.
        transport: String,
        /// Numeric IP address.
        address: IpAddr,
        /// Port.
        port: u16,
    }
}

impl Endpoint {
    fn socket(&self, name: &str) -> Result<SocketAddr, RpcError> {
        match self.transport.eq_ignore_ascii_case(TRANSPORT) {
            true => Ok(SocketAddr::new(self.address, self.port)),
            false => Err(RpcError::invalid_params(format!(
                "'{name}.transport': there is no transport '{}', only {TRANSPORT}",
                self.transport
            ))),
        }
    }
}

params! {
    /// A volume of a group.
    pub struct Volume {
        /// Its name, the same on both nodes. The volume is a bdev of this name.
        name: String,
        /// The disk below, which the group claims.
        bdev: String,
    }
}

params! {
    /// Parameters of `replication_group_create`.
    pub struct GroupCreate {
        /// Name, the same on both nodes.
        name: String,
        /// This node's part.
        role: Role,
        /// The volumes that checkpoint together, in the same order on both nodes.
        volumes: Vec<Volume>,
        /// A file for the group's record: generation, epoch, role. It must survive a reboot.
        metadata: String,
        /// Primary: where the secondary listens.
        peer: Option<Endpoint>,
        /// Secondary: where to listen for the primary.
        listen: Option<Endpoint>,
        /// Primary: when a write is acknowledged to its host: `local` when it is on the local disk and on its way,
        /// `received` when the secondary has it in memory too, `applied` when it is on both disks. Default: `applied`.
        ack: Option<Ack>,
        /// Primary: whether writes go on or wait while the peer is away. Default: `continue`.
        on_link_loss: Option<LinkLoss>,
        /// Primary: what becomes of hosts that wait too long for a secondary, or a link, that is too slow: they `wait`, or the
        /// secondary is left `behind`, as after a lost link, and made equal again after a pause. Default: `wait`.
        on_congestion: Option<Congestion>,
        /// Primary: how long they wait before that, ms, 200 to 600000. Default: 3000.
        congestion_ms: Option<u32>,
        /// Primary: what a failed write, read or flush of its own disk comes to: `report`, an error for the host, or
        /// `detach`: if the peer has everything, the group goes on through the peer without an error, until
        /// `replication_disk_attach`. Default: `report`.
        on_disk_failure: Option<DiskLoss>,
        /// Primary: longest time for a checkpoint whose caller gives none, ms. Default: 1000.
        checkpoint_timeout_ms: Option<u32>,
        /// Primary: checkpoint by itself this often, ms; 0: only when told to. Default: 0.
        checkpoint_interval_ms: Option<u32>,
        /// Primary: copy this much in a second at most while the disks are made equal, MiB; 0: as much as goes.
        /// Default: 0.
        resync_rate_mb: Option<u64>,
        /// Primary: slow the copies down while more than one in ten writes of hosts take longer than this, us; 0: do not.
        /// They go on with 1 MiB a second for each reactor, whatever hosts do. Default: 0.
        resync_latency_target_us: Option<u32>,
        /// Primary: compare by checksum before anything is copied, and send only what the secondary has not. Both nodes
        /// read what is compared; it pays when most is equal, or the link is slow. Default: `false`.
        resync_checksum: Option<bool>,
        /// Secondary: keep what checkpoints need. Without it only `keep: latest` can be promised. Default: `true`.
        disk_buffer: Option<bool>,
        /// Secondary: most memory for the disk buffer, MiB. Default: 512.
        buffer_limit_mb: Option<u64>,
        /// Secondary: what is kept of a write is a multiple of this, KiB, a power of two up to 1024. Default: 4.
        granule_kb: Option<u32>,
        /// Secondary: keep this many committed checkpoints before the last one, 0 to 256, to look at them and to go back to
        /// them. Default: 0.
        history_epochs: Option<u32>,
        /// Secondary: most memory for checkpoints before the last one, MiB, beside the disk buffer's. The oldest is given up
        /// first. Default: `buffer_limit_mb`.
        history_limit_mb: Option<u64>,
        /// Secondary: a file (a path with a `/`; made if there is none) or a bdev that keeps originals durably, so that a
        /// secondary that loses power rolls back to its last checkpoint by itself. From 4 MiB for each reactor to 16 GiB.
        /// Default: none; then such a node needs a sync.
        buffer_journal: Option<String>,
        /// Secondary: size of the journal's file if it is made, MiB. Default: `buffer_limit_mb`.
        buffer_journal_mb: Option<u64>,
        /// A peer of which nothing was heard for so long counts as lost, ms, 1000 to 60000. Default: 5000.
        peer_timeout_ms: Option<u32>,
        /// Secondary: the generation in which this node took over, as a saved configuration tells it after a failover.
        /// The group is then made only if the metadata file confirms it, so that a node that lost the file does not
        /// become a secondary again, and be overwritten. Default: not known.
        promoted_generation: Option<u64>,
    }
}

params! {
    /// Only a group.
    pub struct Group {
        /// The group.
        group: String,
    }
}

params! {
    /// Parameters of `replication_start`.
    pub struct Start {
        /// The group.
        group: String,
        /// `full` copies the primary's volumes to the secondary while they are in use; `changed` copies what the secondary
        /// lacks, as after a lost link, which is possible if both nodes have run since they were in step; `none` is for
        /// disks that are known to be equal. The primary's word counts. Default: `full`.
        sync: Option<Sync>,
        /// Primary: how long to wait for the peer's answer, ms, 600000 at most; 0 is not at all. After that the call
        /// fails, and the attempts go on all the same. Default: 10000, and 0 while a configuration is being loaded.
        timeout_ms: Option<u32>,
    }
}

params! {
    /// Parameters of `replication_stop`.
    pub struct Stop {
        /// The group.
        group: String,
        /// On a secondary: take over with what its own VM saw, as `replication_failover` with `overlay`.
        /// Default: `false`.
        failover: Option<bool>,
    }
}

params! {
    /// Parameters of `replication_prepare_checkpoint` and `replication_do_checkpoint`.
    pub struct Checkpoint {
        /// The group.
        group: String,
        /// Longest time, ms, 600000 at most. Default: the group's.
        timeout_ms: Option<u32>,
    }
}

params! {
    /// Parameters of `replication_commit_checkpoint` and `replication_abort_checkpoint`.
    pub struct Prepared {
        /// The group.
        group: String,
        /// The epoch that `replication_prepare_checkpoint` returned.
        epoch: u64,
    }
}

params! {
    /// Parameters of `replication_disk_attach`.
    pub struct DiskAttach {
        /// The group.
        group: String,
        /// A volume of it whose disk was detached.
        volume: String,
        /// The disk that replaces it, with blocks of the same size and no fewer than the volume has. The group claims it,
        /// and gives the old one free. What it holds is overwritten.
        bdev: String,
    }
}

params! {
    /// Parameters of `replication_failover`.
    pub struct Failover {
        /// The group.
        group: String,
        /// What the volumes become: `latest`, every write that reached this node, for hosts that go on;
        /// `checkpoint`, exactly the last committed checkpoint, for a VM restored from it; `overlay`, exactly what this
        /// node's own VM saw and wrote, for a VM that ran meanwhile.
        keep: KeepWord,
    }
}

params! {
    /// Parameters of `replication_get_groups`.
    pub struct GetGroups {
        /// Only this group. Default: all of them.
        name: Option<String>,
    }
}

params! {
    /// Parameters of `replication_set_options`. Those left out stay as they are.
    pub struct SetOptions {
        /// The group.
        group: String,
        /// Primary: when a write is acknowledged to its host.
        ack: Option<Ack>,
        /// Primary: whether writes go on or wait while the peer is away.
        on_link_loss: Option<LinkLoss>,
        /// Primary: whether hosts wait for a secondary that is too slow, or it is left behind.
        on_congestion: Option<Congestion>,
        /// Primary: how long they wait before that, ms, 200 to 600000; with `on_congestion` `behind`. Default: 3000.
        congestion_ms: Option<u32>,
        /// Primary: longest time for a checkpoint whose caller gives none, ms.
        checkpoint_timeout_ms: Option<u32>,
        /// Primary: checkpoint by itself this often, ms; 0: only when told to.
        checkpoint_interval_ms: Option<u32>,
        /// Primary: copy this much in a second at most while the disks are made equal, MiB; 0: as much as goes. Holds for
        /// a copy that is under way as well.
        resync_rate_mb: Option<u64>,
        /// Primary: slow the copies down while more than one in ten writes of hosts take longer than this, us; 0: do not.
        resync_latency_target_us: Option<u32>,
        /// Primary: compare by checksum before anything is copied, and send only what the secondary has not.
        resync_checksum: Option<bool>,
        /// Secondary: most memory for the disk buffer, MiB.
        buffer_limit_mb: Option<u64>,
        /// Secondary: keep this many committed checkpoints before the last one, 0 to 256.
        history_epochs: Option<u32>,
        /// Secondary: most memory for checkpoints before the last one, MiB.
        history_limit_mb: Option<u64>,
        /// A peer of which nothing was heard for so long counts as lost, ms, 1000 to 60000.
        peer_timeout_ms: Option<u32>,
    }
}

params! {
    /// Parameters of `replication_verify_start`.
    pub struct VerifyStart {
        /// The group.
        group: String,
        /// Compare at most so much a second, MiB, 1 to 65536. Both nodes read that much of their disks. Default: 100.
        rate_mb: Option<u64>,
        /// Copy what differs from the primary to the secondary when everything was compared. Default: `false`.
        repair: Option<bool>,
    }
}

/// Errors of the commands to a group.
const GROUP_ERRORS: &[(i32, &str)] = &[
    (-19, "no group has this name"),
    (-95, "the command is for the other role"),
    (-1, "the group's state does not allow it now"),
];
/// Errors of the steps of a checkpoint.
const CHECKPOINT_ERRORS: &[(i32, &str)] = &[
    (-19, "no group has this name"),
    (-95, "the command is for the primary"),
    (-1, "the group's state does not allow it now, or another checkpoint is under way"),
    (
        -110,
        "the deadline passed; the message names what hung: peer, link, disk or reactor. The epoch goes on",
    ),
    (-107, "the link was lost; the epoch goes on"),
];

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "Replication",
        about: "A group of volumes is kept in step on two nodes. Make the group on both, start the secondary, then the \
                primary. A checkpoint is a point to which the secondary can return: prepare it, release what waited for \
                it when it is committed. A volume is a bdev of its own name on both nodes. These methods are \
                Lockstep's own.",
        methods: vec![
            Method::new("replication_group_create", Callable::Runtime, create)
                .summary("Makes a group and its volumes. Nothing is replicated before it is started. A new volume has its \
                     disk's size, on the secondary the primary's from the first session on; it grows by itself when the \
                     disks on both nodes have grown.")
                .errors(&[
                    (-17, "a group or bdev of this name exists"),
                    (-19, "no bdev has the name of a disk"),
                    (-1, "a disk is in use; the message names by what"),
                    (-22, "a parameter is not possible, or not with what the metadata file says; the message tells"),
                    (-98, "the address is in use"),
                    (-16, "the metadata file is in use"),
                    (-5, "the metadata file or the journal cannot be used, or the roll-back failed"),
                ])
                .example(
                    r#"{"name": "g0", "role": "primary", "volumes": [{"name": "v0", "bdev": "Malloc0"}],
                        "metadata": "/var/lib/lockstep/g0.meta", "ack": "applied", "checkpoint_timeout_ms": 1000,
                        "peer": {"transport": "tcp", "address": "127.0.0.1", "port": 4500}}"#,
                ),
            Method::new("replication_start", Callable::Runtime, start)
                .summary(
                    "Begins to replicate. On the primary it returns when the peer has answered; the copy goes on \
                     after that, its progress is in `replication_get_groups`. A peer that is not there yet is waited for: \
                     the group is `connecting`, with growing pauses of 5 s at most between attempts, until \
                     `replication_stop` or `replication_group_delete`, also after this call has failed with -110. After a \
                     lost link the session is made again in the same way, without being asked for, and what the \
                     secondary lacks is copied. On the \
                     secondary it returns at once; on one that took over it changes nothing.",
                )
                .errors(&[
                    (-19, "no group has this name"),
                    (-110, "the peer did not answer in time; the attempts go on"),
                    (-111, "the peer refuses; the message says why"),
                    (
                        -22,
                        "a disk is smaller than its volume; or `none` with volumes that are smaller on the peer; or \
                         `changed` when it is not known what the peer lacks",
                    ),
                    (-1, "the group is started already"),
                ])
                .example(r#"{"group": "g0", "sync": "full"}"#),
            Method::new("replication_get_groups", Callable::Runtime, get_groups)
                .summary("Shows groups.")
                .result(
                    "Array of `name`, `uuid`, `role`, `state`, `epoch`, `committed_epoch`, `generation`, `ack`, \
                     `on_link_loss`, `peer_timeout_ms`, `volumes` (`name`, `bdev`, `uuid`, `num_blocks`, `block_size`, \
                     `base_num_blocks` of the disk below and `peer_base_num_blocks` of the peer's or null, `disk`: \
                     `attached`, `detached` or `filling`, `fill`: how far a replacement is filled, as `sync`, or null, \
                     `notice`: what to do for the volume to grow, or null), `peer`, `connected`, \
                     `sent_bytes`, `lag_bytes`, `dirty_bytes` (what the peer lacks at most), `buffer` (`undo_bytes`, \
                     `overlay_bytes`, `pinned_bytes`, `limit_bytes`), `history` (as `replication_get_history` answers, or null), `journal` (of a secondary that has one: `journal`, \
                     `size_bytes`, `used_bytes`, `rolled_back_to`: the epoch to which it led the volumes back when the \
                     node started, until a session begins), `sync` (`copied_bytes`, `left_bytes`, \
                     `total_bytes`, `bytes_per_second`, `seconds_left`, `equal_bytes` that were found by checksum, \
                     `paused`; on the primary, while the disks are made equal), \
                     `verify` (of the last one, or null: `state`, which is `running`, `repairing`, `finished`, `stopped` \
                     or `failed`, `repair`, `checked_bytes`, `total_bytes`, `bytes_per_second` on average, `seconds_left` \
                     or null, `differing_bytes`, `differences`, the first 64 with `volume`, `offset` and `bytes`, \
                     `differences_complete`, `error`), `error`.",
                )
                .errors(&[(-19, "no group has this name")])
                .example(r#"{"name": "g0"}"#),
            Method::new("replication_set_options", Callable::Runtime, set_options)
                .summary("Changes what may change while a group runs.")
                .errors(GROUP_ERRORS)
                .example(r#"{"group": "g0", "ack": "received", "checkpoint_timeout_ms": 2000}"#),
            Method::new("replication_prepare_checkpoint", Callable::Runtime, prepare)
                .summary(
                    "Closes the present epoch and returns when the secondary has every write of it. Writes go on, into \
                     the next epoch.",
                )
                .result("`epoch`: to commit or abort.")
                .errors(CHECKPOINT_ERRORS)
                .example(r#"{"group": "g0", "timeout_ms": 1000}"#),
            Method::new("replication_abort_checkpoint", Callable::Runtime, abort)
                .summary("Gives a prepared checkpoint up: its epoch goes on.")
                .errors(CHECKPOINT_ERRORS)
                .example(r#"{"group": "g0", "epoch": 2}"#),
            Method::new("replication_commit_checkpoint", Callable::Runtime, commit)
                .summary("Makes a prepared checkpoint the one to return to, durably, and drops what the buffer held.")
                .errors(CHECKPOINT_ERRORS)
                .example(r#"{"group": "g0", "epoch": 3}"#),
            Method::new("replication_do_checkpoint", Callable::Runtime, do_checkpoint)
                .summary("Prepares and commits in one.")
                .result("`epoch`: the one committed; `duration_us`.")
                .errors(CHECKPOINT_ERRORS)
                .example(r#"{"group": "g0", "timeout_ms": 1000}"#),
            Method::new("replication_sync_pause", Callable::Runtime, sync_pause)
                .summary(
                    "Lets copies rest that make the disks equal, until `replication_sync_resume`: the one under way as well as \
                     those that begin meanwhile. Hosts' writes go on. What is left stays marked, whatever happens.",
                )
                .errors(&[(-19, "no group has this name"), (-95, "the command is for the primary")])
                .example(r#"{"group": "g0"}"#),
            Method::new("replication_sync_resume", Callable::Runtime, sync_resume)
                .summary("Lets copies go on.")
                .errors(&[(-19, "no group has this name"), (-95, "the command is for the primary")])
                .example(r#"{"group": "g0"}"#),
            Method::new("replication_verify_start", Callable::Runtime, verify_start)
                .summary(
                    "Begins to compare the disks of both nodes by checksum while hosts go on, and returns. Each range is                      compared at one point of the stream of writes, so load causes no false alarm. What differs is                      marked, reported by events and by `verify` in `replication_get_groups`, and copied from the primary                      if told to, or else when the next session begins. It ends by itself, by `replication_verify_stop`,                      with the session, or when a disk does not answer.",
                )
                .errors(&[
                    (-19, "no group has this name"),
                    (-95, "the command is for the primary"),
                    (-22, "`rate_mb` is out of its limits"),
                    (-1, "the nodes are not in step, volumes are being copied, or a verify is under way"),
                ])
                .example(r#"{"group": "g0", "rate_mb": 1, "repair": true}"#),
            Method::new("replication_verify_stop", Callable::Runtime, verify_stop)
                .summary(
                    "Ends a verify. What it has found stays marked and reported; if it was copying already, the copies go on.",
                )
                .errors(&[
                    (-19, "no group has this name"),
                    (-95, "the command is for the primary"),
                    (-1, "no verify is under way"),
                ])
                .example(r#"{"group": "g0"}"#),
            Method::new("replication_get_sent_bytes", Callable::Runtime, get_sent_bytes)
                .summary("Tells how much went over the link.")
                .result("`sent_bytes`.")
                .errors(&[(-19, "no group has this name")])
                .example(r#"{"group": "g0"}"#),
            Method::new("replication_get_error", Callable::Runtime, get_error)
                .summary("Tells what is wrong with a group.")
                .result("`error`: a text, or null.")
                .errors(&[(-19, "no group has this name")])
                .example(r#"{"group": "g0"}"#),
            Method::new("replication_failover", Callable::Runtime, failover)
                .summary(
                    "Makes a secondary the node that serves: the generation rises durably, older messages are refused, \
                     and the promised content is writable at once. What the buffer still holds goes to the disk in the \
                     background.",
                )
                .result("`generation`: the new one; `writable_after_us`.")
                .errors(&[
                    (-19, "no group has this name"),
                    (-95, "the node is the primary, or the group cannot promise this"),
                    (-1, "the group's state does not allow it now"),
                    (-5, "the record could not be written"),
                ])
                .example(r#"{"group": "g1", "keep": "latest"}"#),
            Method::new("replication_disk_attach", Callable::Runtime, disk_attach)
                .summary(
                    "Puts a replacement below a volume of the primary whose disk was detached, and fills it with what the \
                     peer has, at `resync_rate_mb`, while hosts go on. It returns when that has begun; its progress is in \
                     `replication_get_groups`. A lost link begins it again, by itself.",
                )
                .errors(&[
                    (-19, "no group, volume or bdev has this name"),
                    (-95, "the command is for the primary"),
                    (-1, "the bdev is in use; or the group's state does not allow it now"),
                    (-22, "the volume has a disk; or the bdev's blocks are of another size or too few"),
                    (-16, "the disk that failed has not given everything back, and is the one named"),
                ])
                .example(r#"{"group": "g3", "volume": "v3", "bdev": "Disk5"}"#),
            Method::new("replication_stop", Callable::Runtime, stop)
                .summary("Ends the session with the peer. The volumes stay.")
                .errors(GROUP_ERRORS)
                .example(r#"{"group": "g0"}"#),
            Method::new("replication_group_delete", Callable::Runtime, delete)
                .summary("Deletes a group: its volumes go away, its disks are free. The metadata file stays.")
                .errors(&[(-19, "no group has this name"), (-1, "a volume is in use")])
                .example(r#"{"group": "g0"}"#),
        ],
    }
}

impl From<ReplicationError> for RpcError {
    fn from(error: ReplicationError) -> RpcError {
        let errno = match &error {
            ReplicationError::NotFound(_) => Errno::NODEV,
            ReplicationError::Exists(_) | ReplicationError::OtherGroup(_) => Errno::EXIST,
            ReplicationError::Invalid(_) | ReplicationError::Record(..) => Errno::INVAL,
            ReplicationError::Role(..) => Errno::OPNOTSUPP,
            ReplicationError::Group(error) | ReplicationError::Peer { error, .. } => errno_of(*error),
            ReplicationError::Bdev(error) => Errno::from_raw_os_error(error.errno()),
            ReplicationError::Metadata(MetadataError::InUse(_)) => Errno::BUSY,
            ReplicationError::Metadata(_) | ReplicationError::RollBack(..) => Errno::IO,
            ReplicationError::Journal(JournalError::Bdev(error)) => Errno::from_raw_os_error(error.errno()),
            ReplicationError::Journal(JournalError::Io(..) | JournalError::File { .. }) => Errno::IO,
            ReplicationError::DiskBusy(_) => Errno::BUSY,
            ReplicationError::NoVolume(_) => Errno::NODEV,
            ReplicationError::Journal(_) => Errno::INVAL,
            ReplicationError::Listen(_) => Errno::ADDRINUSE,
            ReplicationError::Reactor(_) => Errno::TIMEDOUT,
        };
        RpcError::errno(errno, error)
    }
}

fn errno_of(error: GroupError) -> Errno {
    match error {
        GroupError::WrongState(_)
        | GroupError::Busy
        | GroupError::Copying
        | GroupError::Verifying
        | GroupError::NotVerifying
        | GroupError::Stopped
        | GroupError::NotStopped(_)
        | GroupError::Fenced => Errno::PERM,
        GroupError::NotKept(_) => Errno::NOENT,
        GroupError::WrongEpoch(_)
        | GroupError::SmallerPeer
        | GroupError::UnknownPeer
        | GroupError::SplitBrain
        | GroupError::PeerIsAhead
        | GroupError::PeerKeepsSize(_)
        | GroupError::HasDisk => Errno::INVAL,
        GroupError::HungPeer(_)
        | GroupError::HungLink(_)
        | GroupError::HungReactor(_)
        | GroupError::HungNode
        | GroupError::HungDisk(_)
        | GroupError::OutcomeUnknown(_)
        | GroupError::NoPeer => Errno::TIMEDOUT,
        GroupError::Detached | GroupError::Stranded => Errno::NODEV,
        GroupError::LinkLost => Errno::NOTCONN,
        GroupError::Refused => Errno::CONNREFUSED,
        GroupError::Metadata
        | GroupError::PeerMetadata
        | GroupError::Unrecoverable(_)
        | GroupError::Source => Errno::IO,
        GroupError::Inconsistent
        | GroupError::NoBuffer
        | GroupError::ViewLost
        | GroupError::RolledBack
        | GroupError::Behind => Errno::OPNOTSUPP,
    }
}

fn create(node: &Arc<Node>, params: GroupCreate) -> Result<bool, RpcError> {
    let peer_timeout_ms = peer_timeout(params.peer_timeout_ms.unwrap_or(PEER_TIMEOUT_MS))?;
    let role = match params.role {
        Role::Primary => primary(&params)?,
        Role::Secondary => secondary(&params)?,
    };
    let volumes =
        params.volumes.into_iter().map(|volume| VolumeOptions { name: volume.name, bdev: volume.bdev });
    let options = GroupOptions {
        name: params.name,
        volumes: volumes.collect(),
        metadata: PathBuf::from(params.metadata),
        role,
        peer_timeout_ms,
        promoted_generation: params.promoted_generation.map(Generation),
    };
    let in_use = |error: &ReplicationError| {
        // A group that ended just now gives its journal's file free when its last I/O has ended.
        let journal = matches!(error, ReplicationError::Journal(JournalError::Bdev(error))
            if error.errno() == Errno::BUSY.raw_os_error());
        let metadata = matches!(error, ReplicationError::Metadata(MetadataError::InUse(_)));
        journal || metadata || matches!(error, ReplicationError::Listen(_))
    };
    patiently(node, in_use, || node.groups().create(options.clone()))?;
    Ok(true)
}

fn primary(params: &GroupCreate) -> Result<RoleOptions, RpcError> {
    for (name, given) in [
        ("listen", params.listen.is_some()),
        ("disk_buffer", params.disk_buffer.is_some()),
        ("buffer_limit_mb", params.buffer_limit_mb.is_some()),
        ("granule_kb", params.granule_kb.is_some()),
        ("history_epochs", params.history_epochs.is_some()),
        ("history_limit_mb", params.history_limit_mb.is_some()),
        ("buffer_journal", params.buffer_journal.is_some()),
        ("buffer_journal_mb", params.buffer_journal_mb.is_some()),
        ("promoted_generation", params.promoted_generation.is_some()),
    ] {
        refuse_for("secondary", name, given)?;
    }
    let peer = params
        .peer
        .as_ref()
        .ok_or_else(|| RpcError::invalid_params("'peer' is missing: a primary needs it"))?;
    let options = PrimaryOptions {
        peer: peer.socket("peer")?,
        ack: params.ack.unwrap_or(Ack::Applied).mode(),
        on_link_loss: params.on_link_loss.unwrap_or(LinkLoss::Continue).policy(),
        on_disk_failure: params.on_disk_failure.unwrap_or(DiskLoss::Report).policy(),
        checkpoint_timeout_ms: timeout(
            "checkpoint_timeout_ms",
            params.checkpoint_timeout_ms.unwrap_or(DEFAULT_CHECKPOINT_TIMEOUT_MS),
        )?,
        checkpoint_interval_ms: params.checkpoint_interval_ms.unwrap_or(0),
        resync_rate_bytes: mebibytes("resync_rate_mb", params.resync_rate_mb.unwrap_or(0))?,
        resync_latency_target_us: params.resync_latency_target_us.unwrap_or(0),
        resync_checksum: params.resync_checksum.unwrap_or(false),
        behind_after_ms: behind_after(params.on_congestion, params.congestion_ms)?.flatten(),
        resync_paused: false,
    };
    options.check()?;
    Ok(RoleOptions::Primary(options))
}

fn secondary(params: &GroupCreate) -> Result<RoleOptions, RpcError> {
    for (name, given) in [
        ("peer", params.peer.is_some()),
        ("ack", params.ack.is_some()),
        ("on_link_loss", params.on_link_loss.is_some()),
        ("on_congestion", params.on_congestion.is_some()),
        ("congestion_ms", params.congestion_ms.is_some()),
        ("on_disk_failure", params.on_disk_failure.is_some()),
        ("checkpoint_timeout_ms", params.checkpoint_timeout_ms.is_some()),
        ("checkpoint_interval_ms", params.checkpoint_interval_ms.is_some()),
        ("resync_rate_mb", params.resync_rate_mb.is_some()),
        ("resync_latency_target_us", params.resync_latency_target_us.is_some()),
        ("resync_checksum", params.resync_checksum.is_some()),
    ] {
        refuse_for("primary", name, given)?;
    }
    let listen = params
        .listen
        .as_ref()
        .ok_or_else(|| RpcError::invalid_params("'listen' is missing: a secondary needs it"))?;
    let granule = params.granule_kb.unwrap_or(DEFAULT_GRANULE_KB);
    let limit_mb = params.buffer_limit_mb.unwrap_or(DEFAULT_BUFFER_LIMIT_MB);
    Ok(RoleOptions::Secondary(SecondaryOptions {
        listen: listen.socket("listen")?,
        disk_buffer: params.disk_buffer.unwrap_or(true),
        buffer_limit_bytes: mebibytes("buffer_limit_mb", limit_mb)?,
        history_epochs: history_epochs(params.history_epochs.unwrap_or(0))?,
        history_limit_bytes: mebibytes("history_limit_mb", params.history_limit_mb.unwrap_or(limit_mb))?,
        journal: journal(params, limit_mb)?,
        granule_bytes: granule
            .checked_mul(KIB)
            .ok_or_else(|| RpcError::invalid_params("'granule_kb' is a power of two up to 1024"))?,
    }))
}

fn history_epochs(epochs: u32) -> Result<u32, RpcError> {
    match epochs {
        0..=HISTORY_EPOCHS_MAX => Ok(epochs),
        _ => Err(RpcError::invalid_params(format!("'history_epochs' is 0 to {HISTORY_EPOCHS_MAX}"))),
    }
}

/// What the two options say of a peer that is too slow; `None`: nothing.
fn behind_after(on: Option<Congestion>, after_ms: Option<u32>) -> Result<Option<Option<u32>>, RpcError> {
    let limits = BEHIND_AFTER_MIN_MS..=MAX_TIMEOUT_MS;
    match (on, after_ms) {
        (Some(Congestion::Behind), None) => Ok(Some(Some(BEHIND_AFTER_MS))),
        (Some(Congestion::Behind), Some(after)) if limits.contains(&after) => Ok(Some(Some(after))),
        (Some(Congestion::Behind), Some(_)) => {
            Err(RpcError::invalid_params("'congestion_ms' is 200 to 600000"))
        }
        (_, Some(_)) => Err(RpcError::invalid_params("'congestion_ms' needs 'on_congestion' `behind`")),
        (Some(Congestion::Wait), None) => Ok(Some(None)),
        (None, None) => Ok(None),
    }
}

fn journal(params: &GroupCreate, limit_mb: u64) -> Result<Option<JournalOptions>, RpcError> {
    let size_mb = params.buffer_journal_mb;
    match &params.buffer_journal {
        None if size_mb.is_some() => {
            Err(RpcError::invalid_params("'buffer_journal_mb' needs 'buffer_journal'"))
        }
        None => Ok(None),
        Some(place) if place.is_empty() => {
            Err(RpcError::invalid_params("'buffer_journal' is empty: it is a file's path or a bdev's name"))
        }
        Some(place) => Ok(Some(JournalOptions {
            place: place.clone(),
            file_bytes: mebibytes("buffer_journal_mb", size_mb.unwrap_or(limit_mb))?,
        })),
    }
}

fn refuse_for(role: &str, name: &str, given: bool) -> Result<(), RpcError> {
    match given {
        true => Err(RpcError::invalid_params(format!("'{name}' is for a {role}"))),
        false => Ok(()),
    }
}

fn mebibytes(name: &str, value: u64) -> Result<u64, RpcError> {
    value
        .checked_mul(MIB)
        .ok_or_else(|| RpcError::invalid_params(format!("'{name}' is more than there can be")))
}

fn timeout(name: &str, value: u32) -> Result<u32, RpcError> {
    match value {
        1..=MAX_TIMEOUT_MS => Ok(value),
        _ => Err(RpcError::invalid_params(format!("'{name}' is 1 to {MAX_TIMEOUT_MS} ms"))),
    }
}

fn peer_timeout(value: u32) -> Result<u32, RpcError> {
    match value {
        PEER_TIMEOUT_MIN_MS..=PEER_TIMEOUT_MAX_MS => Ok(value),
        _ => Err(RpcError::invalid_params(format!(
            "'peer_timeout_ms' is {PEER_TIMEOUT_MIN_MS} to {PEER_TIMEOUT_MAX_MS} ms"
        ))),
    }
}

fn start(node: &Arc<Node>, params: Start) -> Result<bool, RpcError> {
    let sync = params.sync.unwrap_or(Sync::Full);
    // A node that starts must not depend on its peer's having started.
    let default = if node.state() == State::Startup { 0 } else { START_TIMEOUT_MS };
    let wait_ms = match params.timeout_ms.unwrap_or(default) {
        0 => 0,
        value => timeout("timeout_ms", value)?,
    };
    let outcome = node.groups().start(&params.group, sync.mode(), wait_ms);
    let goes_on = match &outcome {
        Ok(()) => true,
        Err(ReplicationError::Group(error) | ReplicationError::Peer { error, .. }) => {
            *error == GroupError::NoPeer
        }
        Err(_) => false,
    };
    if goes_on {
        node.started_groups().insert(params.group, sync);
    }
    outcome?;
    Ok(true)
}

fn stop(node: &Arc<Node>, params: Stop) -> Result<bool, RpcError> {
    node.groups().stop(&params.group, params.failover.unwrap_or(false))?;
    node.started_groups().remove(&params.group);
    Ok(true)
}

fn delete(node: &Arc<Node>, params: Group) -> Result<bool, RpcError> {
    node.groups().delete(&params.group)?;
    node.started_groups().remove(&params.group);
    Ok(true)
}

fn prepare(node: &Arc<Node>, params: Checkpoint) -> Result<Value, RpcError> {
    let limit = params.timeout_ms.map(|value| timeout("timeout_ms", value)).transpose()?;
    let epoch = node.groups().prepare_checkpoint(&params.group, limit)?;
    Ok(json!({"epoch": epoch.0}))
}

fn commit(node: &Arc<Node>, params: Prepared) -> Result<bool, RpcError> {
    node.groups().commit_checkpoint(&params.group, Epoch(params.epoch))?;
    Ok(true)
}

fn abort(node: &Arc<Node>, params: Prepared) -> Result<bool, RpcError> {
    node.groups().abort_checkpoint(&params.group, Epoch(params.epoch))?;
    Ok(true)
}

fn do_checkpoint(node: &Arc<Node>, params: Checkpoint) -> Result<Value, RpcError> {
    let limit = params.timeout_ms.map(|value| timeout("timeout_ms", value)).transpose()?;
    let (epoch, took) = node.groups().do_checkpoint(&params.group, limit)?;
    Ok(json!({"epoch": epoch.0, "duration_us": took.as_micros() as u64}))
}

fn verify_start(node: &Arc<Node>, params: VerifyStart) -> Result<bool, RpcError> {
    let rate_mb = params.rate_mb.unwrap_or(DEFAULT_VERIFY_RATE_MB);
    if !(1..=MAX_VERIFY_RATE_MB).contains(&rate_mb) {
        return Err(RpcError::errno(
            Errno::INVAL,
            format!("'rate_mb' is 1 to {MAX_VERIFY_RATE_MB} MiB a second"),
        ));
    }
    node.groups().verify_start(&params.group, rate_mb * MIB, params.repair.unwrap_or(false))?;
    Ok(true)
}

fn verify_stop(node: &Arc<Node>, params: Group) -> Result<bool, RpcError> {
    node.groups().verify_stop(&params.group)?;
    Ok(true)
}

fn sync_pause(node: &Arc<Node>, params: Group) -> Result<bool, RpcError> {
    set_paused(node, &params.group, true)
}

fn sync_resume(node: &Arc<Node>, params: Group) -> Result<bool, RpcError> {
    set_paused(node, &params.group, false)
}

fn set_paused(node: &Arc<Node>, group: &str, paused: bool) -> Result<bool, RpcError> {
    let changes = Changes { resync_paused: Some(paused), ..Changes::default() };
    node.groups().set_options(group, changes)?;
    Ok(true)
}

fn failover(node: &Arc<Node>, params: Failover) -> Result<Value, RpcError> {
    let keep = match params.keep {
        KeepWord::Latest => Keep::Latest,
        KeepWord::Checkpoint => Keep::Checkpoint,
        KeepWord::Overlay => Keep::Overlay,
    };
    let (generation, took) = node.groups().failover(&params.group, keep)?;
    Ok(json!({"generation": generation.0, "writable_after_us": took.as_micros() as u64}))
}

fn disk_attach(node: &Arc<Node>, params: DiskAttach) -> Result<bool, RpcError> {
    node.groups().disk_attach(&params.group, &params.volume, &params.bdev)?;
    Ok(true)
}

fn get_groups(node: &Arc<Node>, params: GetGroups) -> Result<Vec<GroupInfo>, RpcError> {
    Ok(node.groups().info(params.name.as_deref())?)
}

fn one(node: &Node, name: &str) -> Result<GroupInfo, RpcError> {
    let found = node.groups().info(Some(name))?.into_iter().next();
    found.ok_or_else(|| ReplicationError::NotFound(name.to_string()).into())
}

fn get_sent_bytes(node: &Arc<Node>, params: Group) -> Result<Value, RpcError> {
    Ok(json!({"sent_bytes": one(node, &params.group)?.sent_bytes}))
}

fn get_error(node: &Arc<Node>, params: Group) -> Result<Value, RpcError> {
    Ok(json!({"error": one(node, &params.group)?.error}))
}

fn set_options(node: &Arc<Node>, params: SetOptions) -> Result<bool, RpcError> {
    let changes = Changes {
        ack: params.ack.map(Ack::mode),
        on_link_loss: params.on_link_loss.map(LinkLoss::policy),
        checkpoint_timeout_ms: params
            .checkpoint_timeout_ms
            .map(|value| timeout("checkpoint_timeout_ms", value))
            .transpose()?,
        checkpoint_interval_ms: params.checkpoint_interval_ms,
        resync_rate_bytes: params
            .resync_rate_mb
            .map(|value| mebibytes("resync_rate_mb", value))
            .transpose()?,
        resync_latency_target_us: params.resync_latency_target_us,
        resync_checksum: params.resync_checksum,
        resync_paused: None,
        behind_after_ms: behind_after(params.on_congestion, params.congestion_ms)?,
        buffer_limit_bytes: params
            .buffer_limit_mb
            .map(|value| mebibytes("buffer_limit_mb", value))
            .transpose()?,
        history_epochs: params.history_epochs.map(history_epochs).transpose()?,
        history_limit_bytes: params
            .history_limit_mb
            .map(|value| mebibytes("history_limit_mb", value))
            .transpose()?,
        peer_timeout_ms: params.peer_timeout_ms.map(peer_timeout).transpose()?,
    };
    node.groups().set_options(&params.group, changes)?;
    Ok(true)
}

/// The groups as the calls that make and start them again.
pub fn dump(node: &Node) -> Vec<Value> {
    let started = node.started_groups();
    let mut calls = Vec::new();
    for options in node.groups().options() {
        calls.push(call("replication_group_create", configured(&options)));
        // One that took over waits for nobody.
        if let Some(sync) = started.get(&options.name).filter(|_| options.promoted_generation.is_none()) {
            calls.push(call("replication_start", json!({"group": options.name, "sync": sync})));
        }
    }
    calls
}

fn configured(options: &GroupOptions) -> Value {
    let endpoint = |address: &SocketAddr| json!({"transport": TRANSPORT, "address": address.ip(), "port": address.port()});
    let volumes: Vec<Value> =
        options.volumes.iter().map(|volume| json!({"name": volume.name, "bdev": volume.bdev})).collect();
    let mut params = json!({
        "name": options.name,
        "volumes": volumes,
        "metadata": options.metadata,
        "peer_timeout_ms": options.peer_timeout_ms,
        "promoted_generation": options.promoted_generation.map(|generation| generation.0),
    });
    let own = match &options.role {
        RoleOptions::Primary(primary) => json!({
            "role": Role::Primary,
            "peer": endpoint(&primary.peer),
            "ack": match primary.ack {
                AckMode::Local => Ack::Local,
                AckMode::Received => Ack::Received,
                AckMode::Applied => Ack::Applied,
            },
            "on_link_loss": match primary.on_link_loss {
                OnLinkLoss::Continue => LinkLoss::Continue,
                OnLinkLoss::Block => LinkLoss::Block,
            },
            "on_congestion": if primary.behind_after_ms.is_some() { Congestion::Behind } else { Congestion::Wait },
            "congestion_ms": primary.behind_after_ms,
            "on_disk_failure": match primary.on_disk_failure {
                OnDiskFailure::Report => DiskLoss::Report,
                OnDiskFailure::Detach => DiskLoss::Detach,
            },
            "checkpoint_timeout_ms": primary.checkpoint_timeout_ms,
            "checkpoint_interval_ms": primary.checkpoint_interval_ms,
            "resync_rate_mb": primary.resync_rate_bytes / MIB,
            "resync_latency_target_us": primary.resync_latency_target_us,
            "resync_checksum": primary.resync_checksum,
        }),
        RoleOptions::Secondary(secondary) => json!({
            "role": Role::Secondary,
            "listen": endpoint(&secondary.listen),
            "disk_buffer": secondary.disk_buffer,
            "buffer_limit_mb": secondary.buffer_limit_bytes / MIB,
            "granule_kb": secondary.granule_bytes / KIB,
            "history_epochs": secondary.history_epochs,
            "history_limit_mb": secondary.history_limit_bytes / MIB,
            "buffer_journal": secondary.journal.as_ref().map(|journal| &journal.place),
            "buffer_journal_mb": secondary.journal.as_ref().map(|journal| journal.file_bytes / MIB),
        }),
    };
    if let (Value::Object(members), Value::Object(own)) = (&mut params, own) {
        members.extend(own);
    }
    params
}
