//! What the two group machines share: what they tell the stripe machines, the peer, the metadata file and the caller.

use super::super::{Epoch, Generation, Lineage, Past, Sequence};
use super::identity::{Identity, Standpoint};
use super::pace::CopyOptions;
use super::primary::Session;
use super::promoted::Keep;
use super::types::{AckMode, DiskFailure, OnLinkLoss, PeerRefusal};
use super::verify_group::VerifyState;

/// The durable record of a group: the only thing that decides after a crash. Generations and epochs in it never fall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupRecord {
    pub generation: Generation,
    pub committed: Epoch,
    /// No epoch through this one is ever begun again.
    pub newest: Epoch,
    /// A full sync into this node began and did not end: there is no consistent content here.
    pub inconsistent: bool,
    /// This node was promoted in `generation`.
    pub promoted: bool,
    /// What this node's disk is equal to but for what a dirty map of the same lineage says.
    pub lineage: Lineage,
    /// The names that led to it.
    pub past: Past,
    /// The journal leads back to `committed`: everything of that is on the disk, and what came after can be undone.
    pub journaled: bool,
}

impl GroupRecord {
    pub fn identity(&self) -> Identity {
        Identity::new(self.lineage, self.past)
    }

    pub fn set_identity(&mut self, identity: Identity) {
        (self.lineage, self.past) = (identity.current, identity.past());
    }

    /// Nobody knows any more what the disk has, only what it came from.
    pub fn disown(&mut self) {
        let mut identity = self.identity();
        identity.disown();
        self.set_identity(identity);
    }

    /// Nobody knows any more what the peer lacks.
    pub fn lose_marks(&mut self, fresh: Lineage) {
        let mut identity = self.identity();
        identity.lose_marks(fresh);
        self.set_identity(identity);
    }

    /// What decides about this node in a handshake.
    pub fn standpoint(&self, primary: bool) -> Standpoint {
        Standpoint { identity: self.identity(), consistent: !self.inconsistent, primary, crashed: false }
    }
}

/// How the disks of a new session are made equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    Full,
    /// The caller knows that they are.
    None,
    /// What the primary's map says is copied: it holds for a disk of the same lineage only.
    Changed,
    /// The peer has everything that was acknowledged, and this node may have no disk: the session goes on where the last one
    /// ended, with a peer that ran all the time. What was not acknowledged is sent again.
    Resumed,
}

impl SyncMode {
    /// Whether the disk that the peer has is what the session begins with.
    pub fn goes_on(self) -> bool {
        matches!(self, SyncMode::Changed | SyncMode::Resumed)
    }

    /// Whether the peer's disk is a part of two states until the copies have ended.
    pub fn copies(self) -> bool {
        matches!(self, SyncMode::Full | SyncMode::Changed)
    }
}

/// What a peer said of itself in the handshake of a session.
#[derive(Clone, Copy, Debug)]
pub struct Greeting {
    /// The newest epoch that it ever saw.
    pub newest: Epoch,
    pub generation: Generation,
    /// Its reactors.
    pub lanes: u16,
    pub lineage: Lineage,
    pub past: Past,
    /// False: a copy into it has not ended.
    pub consistent: bool,
    /// It was restarted since it last followed: its memory is gone, and what only its disk's cache had.
    pub restarted: bool,
    /// Names the session: a lineage that begins with it takes this name.
    pub session: u64,
}

/// What becomes of a secondary's buffer when a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Originals {
    /// The disk is what the view begins with; what an earlier session left is dropped.
    Anew,
    /// The same, and everything is copied, or found to be equal already, if only in the disk's cache.
    Copied,
    /// The last checkpoint stands, and so does what leads back to it.
    Kept,
    /// Nothing leads back to a state before the end of this epoch.
    Lost(Epoch),
}

/// How large a volume is, as the record has it, and how large the disk below it: at least as large, unless that shrank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSize {
    pub volume_bytes: u64,
    pub disk_bytes: u64,
}

/// The last message of an epoch on one data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    pub primary_reactor: u16,
    pub secondary_reactor: u16,
    pub sequence: Sequence,
}

/// How a step ended at the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Ok,
    Timeout,
    WrongEpoch,
    Disk,
    Metadata,
    /// The originals of this epoch were not kept.
    Unrecoverable,
    NotRunning,
}

/// A message of the control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// A session begins with this epoch, and `lineage` is what the disks have in common from now on. Comes back as the
    /// answer.
    Begin {
        epoch: Epoch,
        sync: SyncMode,
        lineage: Lineage,
    },
    /// The secondary is too slow, and lacks acknowledged writes from now on. Comes back as the answer.
    Behind {
        epoch: Epoch,
    },
    /// The commit of this epoch ends the full sync.
    SyncEnd {
        epoch: Epoch,
        /// The name of what the secondary then has.
        lineage: Lineage,
    },
    Prepare {
        epoch: Epoch,
        timeout_ms: u32,
        lasts: Vec<Last>,
    },
    Prepared {
        epoch: Epoch,
        ended: Ended,
    },
    Commit {
        epoch: Epoch,
    },
    Committed {
        epoch: Epoch,
        ended: Ended,
    },
    Abort {
        epoch: Epoch,
    },
    Aborted {
        epoch: Epoch,
        ended: Ended,
    },
    /// The primary is about to copy what lies behind the volume's end, up to here. Comes back as the answer when the
    /// secondary has made room; with another size when it cannot.
    Extend {
        volume: u16,
        bytes: u64,
    },
    /// Everything up to here is in step: the volume's size from now on. Comes back as the answer when the secondary's
    /// record says so; with another size when it cannot.
    Resize {
        volume: u16,
        bytes: u64,
    },
    /// The disk below the secondary's volume has this size.
    DiskSize {
        volume: u16,
        bytes: u64,
    },
}

/// To every reactor of the node, for every machine of the group there. Each is answered once by every reactor where
/// its answer is named.
#[derive(Clone, Debug, PartialEq)]
pub enum ToStripes {
    LinkUp(Session),
    LinkDown,
    /// Answered by `frozen`.
    Freeze,
    /// Answered by `stamped`.
    Stamp {
        next: Epoch,
        preserve: bool,
    },
    Thaw,
    /// Writes may be acknowledged without the peer: the record has a name for what this node does alone.
    GoAlone,
    StartCopy {
        only_dirty: bool,
    },
    /// Compares everything with the peer's disks, at most so many bytes a second over all reactors. Each machine tells by
    /// [`StripeEvent::VerifyFinished`](super::types::StripeEvent) that it has.
    Verify {
        round: u32,
        rate_bytes: u64,
    },
    VerifyStop,
    Fence,
    /// Launch nothing. Each machine tells by [`StripeEvent::Suspended`](super::types::StripeEvent).
    Suspend,
    /// The disks stay: what they failed fails, everything else goes on.
    KeepDisk,
    /// The volume has no disk here from now on.
    Detach {
        volume: u16,
    },
    /// Fill the replacement. Each machine of the volume tells by [`StripeEvent::Filled`](super::types::StripeEvent).
    Fill {
        volume: u16,
    },
    /// The replacement is the volume's disk. `leans` if another volume has none.
    AttachDisk {
        volume: u16,
        leans: bool,
    },
    /// The peer was restarted since it last followed: what it may have lost by that is marked.
    PeerRestarted,
    SetCopies(CopyOptions),
    /// How long hosts may wait for the peer before it is left behind, ms.
    SetPatience(Option<u32>),
    SetAck(AckMode),
    SetOnLinkLoss(OnLinkLoss),
    /// Answered by `done`.
    Begin {
        generation: Generation,
        base: Epoch,
        /// What the volumes have from now on, in their order.
        volume_bytes: Vec<u64>,
        originals: Originals,
    },
    /// Room for a volume of this size. Answered by `done` at a secondary; a primary copies what is new to its peer, and
    /// tells by [`StripeEvent::Extended`](super::types::StripeEvent) when that is done.
    Extend {
        volume: u16,
        bytes: u64,
    },
    /// The volume has this size. Answered by `done` at a secondary.
    Resize {
        volume: u16,
        bytes: u64,
    },
    /// Answered by `prepared`, when everything through `lasts` arrived and is accounted for.
    Prepare {
        epoch: Epoch,
        lasts: Vec<Last>,
    },
    Settle {
        epoch: Epoch,
    },
    /// Answered by `done`.
    Commit {
        epoch: Epoch,
    },
    Abort,
    LoseThrough(Epoch),
    /// A failover is about to become durable: from here on nothing gives up what it promises. Answered by `done`.
    Hold {
        keep: Keep,
        generation: Generation,
    },
    /// The failover did not come about.
    Release,
    /// What leads back to this epoch and to later ones is kept; `None`: nothing.
    History {
        from: Option<Epoch>,
    },
    /// The same before going back to an earlier epoch.
    HoldPast {
        epoch: Epoch,
    },
    /// Answered by `done`, and later by `drained`.
    RollBack {
        epoch: Epoch,
    },
    /// Answered by `done`, and later by `drained`.
    Promote {
        keep: Keep,
        generation: Generation,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The command that is under way has missed its deadline.
    Deadline,
    /// Half of the deadline: what the disk has not taken is pinned.
    Settle,
    /// Time for a checkpoint of the group's own.
    Interval,
    /// The peer should have taken on a volume's new size by now.
    Growth,
    /// Time for another attempt with a peer that was too slow, and what else there is to wait for with it.
    Behind,
    /// The record is to be written once more.
    Record,
}

/// Which of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Here,
    Peer,
}

/// Names one arming of a timer, so that a late one is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    pub timer: Timer,
    pub round: u64,
}

/// Whether the peer was heard of lately; tells a hung peer from a hung link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Heard,
    Silent,
}

/// What a command of the control plane ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    Done,
    Epoch(Epoch),
    Generation(Generation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("the group is {0}: the command does not apply")]
    WrongState(&'static str),
    #[error("another checkpoint is under way: wait for it, commit it or abort it")]
    Busy,
    #[error("volumes are being copied to the peer: try again when that has ended")]
    Copying,
    #[error("a verify is under way: wait for its end, or end it with replication_verify_stop")]
    Verifying,
    #[error("no verify is under way")]
    NotVerifying,
    #[error("epoch {0} is not the one that was prepared")]
    WrongEpoch(Epoch),
    #[error("hung peer: the secondary answers, but did not finish epoch {0} in time")]
    HungPeer(Epoch),
    #[error("hung link: nothing is heard of the peer; epoch {0} is aborted")]
    HungLink(Epoch),
    #[error("a reactor of this node did not stop for the cut of epoch {0} in time")]
    HungReactor(Epoch),
    #[error("a reactor of this node did not answer in time; nothing was changed: try again")]
    HungNode,
    #[error("hung disk: a disk of the secondary failed or did not take epoch {0} in time")]
    HungDisk(Epoch),
    #[error(
        "the secondary did not confirm the commit of epoch {0} in time; whether it is durable shows when the peer is back"
    )]
    OutcomeUnknown(Epoch),
    #[error("the link to the peer was lost")]
    LinkLost,
    #[error(
        "the secondary is behind: it lacks writes that the primary has acknowledged. Wait until the volumes are in step, or go on \
         from the last checkpoint"
    )]
    Behind,
    #[error(
        "the peer did not answer in time; this node goes on trying until replication_stop. Check the peer's address, that \
         it runs, and that the group exists there"
    )]
    NoPeer,
    #[error("the peer refuses this node for good")]
    Refused,
    #[error("a newer generation took over: this node is fenced")]
    Fenced,
    #[error("the record of the group could not be written: check the file system of its metadata file")]
    Metadata,
    #[error(
        "the secondary could not write the record of the group: check the file system of its metadata file. The last \
         checkpoint stands; make another one when that works"
    )]
    PeerMetadata,
    #[error("the originals of epoch {0} were not all kept, it cannot be committed")]
    Unrecoverable(Epoch),
    #[error("the volumes are inconsistent: a full sync into this node has not ended")]
    Inconsistent,
    #[error("the group keeps no disk buffer: only `latest` can be promised")]
    NoBuffer,
    #[error("the originals since the last checkpoint were not all kept: only `latest` can be promised")]
    ViewLost,
    #[error(
        "this node was rolled back to a checkpoint, which is all that can be promised: use keep `checkpoint`"
    )]
    RolledBack,
    #[error(
        "epoch {0} is not kept: replication_get_history lists those that are; history_epochs and history_limit_mb say how \
         many may be"
    )]
    NotKept(Epoch),
    #[error(
        "the group is {0}: only a secondary without a session can go back, after replication_stop, the loss of its primary or \
         a failover whose buffer is on the disk"
    )]
    NotStopped(&'static str),
    #[error("the group was stopped")]
    Stopped,
    #[error("the volume has a disk: a replacement is for one whose disk was detached")]
    HasDisk,
    #[error(
        "a volume has no disk on this node: the peer alone has its content. Attach a replacement with \
         replication_disk_attach first, or fail over to the peer"
    )]
    Detached,
    #[error(
        "a volume has no disk on this node, and the peer is not as it was left, so it may have lost what only it had: fail \
         over to the peer and make this node its secondary"
    )]
    Stranded,
    #[error(
        "the peer's volumes are smaller than this node's, so the disks are not equal: start with sync `full`"
    )]
    SmallerPeer,
    #[error(
        "what the peer's disk lacks is not known, because the peer, this node or the group began anew since they were in \
         step: start with sync `full`"
    )]
    UnknownPeer,
    #[error(
        "split brain: both nodes went on without each other. Look at `split_brain` of replication_get_groups on both, choose \
         whose changes are given up, and make the group anew: docs/replication.md, Names"
    )]
    SplitBrain,
    #[error(
        "the peer has what this node lacks: it went on without it. Make this node the secondary, or have the peer begin anew"
    )]
    PeerIsAhead,
    #[error("the peer keeps the size of {0} bytes: its disk or its disk buffer cannot take more")]
    PeerKeepsSize(u64),
    #[error("this node's disk could not be read behind the volume's present end")]
    Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    LinkLost,
    /// The peer is too slow: it is left behind until it can be made equal.
    Behind,
    SyncStarted,
    SyncFinished,
    SyncFailed,
    /// The peer will not do, whatever is tried: the attempts ended.
    StartFailed(GroupError),
    Committed(Epoch),
    CheckpointFailed(GroupError),
    /// The peer could not do what it was sent.
    PeerFailed(PeerRefusal),
    /// This node's disk failed something.
    DiskFailed(DiskFailure),
    /// The group goes on without the volume's disk.
    DiskDetached {
        volume: u16,
        failure: DiskFailure,
    },
    FillStarted {
        volume: u16,
    },
    /// The replacement failed, or else the peer's disk did.
    FillFailed {
        volume: u16,
        failure: Option<DiskFailure>,
    },
    DiskAttached {
        volume: u16,
    },
    /// The secondary could not make a commit durable.
    PeerRecordFailed,
    Fenced,
    BufferWatermark(u8),
    BufferOverrun(Epoch),
    JournalWatermark(u8),
    JournalOverrun(Epoch),
    JournalFailed,
    HungDisk,
    DiskHealed,
    DrainFailed,
    Drained,
    /// An exported epoch was given up: its readers hear so.
    HistoryDropped(Epoch),
    /// Epochs before this one cannot be shown any more, though the limits would allow it.
    HistoryLost(Epoch),
    /// The disks are at this epoch.
    RolledBack(Epoch),
    /// The disk below a volume is larger than the volume there, and not yet on the other node.
    DiskGrew {
        volume: u16,
        side: Side,
    },
    /// The disk below a volume is smaller than the volume.
    DiskTooSmall {
        volume: u16,
        side: Side,
    },
    /// The volume keeps its size until a disk's size changes again, or until the next session.
    GrowthFailed {
        volume: u16,
        error: GroupError,
    },
    GrowthHung {
        volume: u16,
    },
    VerifyStarted,
    VerifyEnded(VerifyState),
}

#[derive(Clone, Debug, PartialEq)]
pub enum GroupOutput {
    ToStripes(ToStripes),
    Send(Control),
    /// As [`GroupOutput::Connect`], after a pause that grows from one loss to the next until a session brought the disks
    /// in step.
    Reconnect,
    /// Open the connections to the peer, and open them again when they fail, until told otherwise.
    Connect,
    /// Close the connections and open none.
    Disconnect,
    /// The record, and the size of each volume in bytes. Comes back by `persisted`. There is never more than one under
    /// way.
    PersistRecord(GroupRecord, Vec<u64>),
    /// The volume has this size for its hosts from now on.
    Resize {
        volume: u16,
        bytes: u64,
    },
    ArmTimer {
        armed: Armed,
        after_ms: u32,
    },
    Reply {
        command: u64,
        result: Result<Success, GroupError>,
    },
    Event(GroupEvent),
}

/// Arms timers so that only the latest arming of each counts.
#[derive(Default)]
pub(super) struct Timers {
    rounds: [u64; 6],
}

impl Timers {
    pub fn arm(&mut self, timer: Timer, after_ms: u32, out: &mut Vec<GroupOutput>) {
        self.cancel(timer);
        let armed = Armed { timer, round: self.rounds[timer as usize] };
        out.push(GroupOutput::ArmTimer { armed, after_ms });
    }

    pub fn cancel(&mut self, timer: Timer) {
        self.rounds[timer as usize] += 1;
    }

    pub fn is_current(&self, armed: Armed) -> bool {
        self.rounds[armed.timer as usize] == armed.round
    }
}
