//! The words that all machines share: addresses, payloads, messages of the data path, statuses and events.

use super::super::{Epoch, Generation};

/// The unit in which a volume is dealt out to reactors. Large enough that nearly no I/O crosses a border (the largest
/// transfer is 1 MiB) and that sequential work stays on one reactor for a while, small enough that a few hot
/// gigabytes spread evenly.
pub const STRIPE_BYTES: u64 = 4 << 20;

/// One bit of the dirty map: DRBD's 4 KiB would cost 16 times the memory, and a resync reads in larger pieces anyway.
pub const DIRTY_BYTES: u64 = 64 << 10;

/// One data connection, named by the peer's reactor at its other end: messages arrive in the order in which they were
/// sent. The volumes of a reactor share it.
pub type Lane = u16;

/// A command of a host as the shell names it; returned untouched in the reply.
pub type Token = u64;

/// A run of blocks of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    pub lba: u64,
    pub blocks: u32,
}

impl Range {
    pub fn new(lba: u64, blocks: u32) -> Range {
        Range { lba, blocks }
    }

    pub fn end(self) -> u64 {
        self.lba + u64::from(self.blocks)
    }

    pub fn overlaps(self, other: Range) -> bool {
        self.lba < other.end() && other.lba < self.end()
    }

    /// The blocks that both have, if any.
    pub fn intersection(self, other: Range) -> Option<Range> {
        let lba = self.lba.max(other.lba);
        let end = self.end().min(other.end());
        (lba < end).then(|| Range::new(lba, (end - lba) as u32))
    }
}

/// How a volume is measured and dealt out; the same for all machines of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub blocks: u64,
    pub block_bytes: u32,
    /// Blocks in a granule, the unit of the disk buffer.
    pub granule_blocks: u32,
    /// Reactors of this node among which the stripes are dealt out, and which of them this machine is.
    pub owners: u16,
    pub owner: u16,
}

impl Geometry {
    pub fn stripe_blocks(&self) -> u64 {
        STRIPE_BYTES / u64::from(self.block_bytes)
    }

    pub fn stripe_of(&self, lba: u64) -> u64 {
        lba / self.stripe_blocks()
    }

    /// The reactor that owns the stripe, among `owners`.
    pub fn owner_of(lba: u64, block_bytes: u32, owners: u16) -> u16 {
        ((lba / (STRIPE_BYTES / u64::from(block_bytes))) % u64::from(owners.max(1))) as u16
    }

    pub fn granule_of(&self, lba: u64) -> u64 {
        lba / u64::from(self.granule_blocks)
    }

    /// The blocks of a granule; the last one of a volume may be short.
    pub fn granule_range(&self, granule: u64) -> Range {
        let lba = granule * u64::from(self.granule_blocks);
        let end = (lba + u64::from(self.granule_blocks)).min(self.blocks);
        Range::new(lba, end.saturating_sub(lba) as u32)
    }

    /// The first granule of a range and the one after its last.
    pub fn granules(&self, range: Range) -> std::ops::Range<u64> {
        self.granule_of(range.lba)..range.end().div_ceil(u64::from(self.granule_blocks))
    }

    /// The range grown to whole granules.
    pub fn aligned(&self, range: Range) -> Range {
        let granules = self.granules(range);
        let lba = granules.start * u64::from(self.granule_blocks);
        let end = (granules.end * u64::from(self.granule_blocks)).min(self.blocks);
        Range::new(lba, (end - lba) as u32)
    }
}

/// What is written, in units of blocks. Cloning shares; the content is stable while it is shared.
pub trait Payload: Clone {
    fn slice(&self, from: u32, blocks: u32) -> Self;
    fn copy_from(&mut self, at: u32, source: &Self, from: u32, blocks: u32);
    fn zero(&mut self, at: u32, blocks: u32);
    fn equals(&self, other: &Self) -> bool;
    fn is_zero(&self) -> bool;
    fn digest(&self) -> Digest;
}

/// A cryptographic hash of a content: whoever has the same digest has the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; Digest::BYTES]);

impl Digest {
    pub const BYTES: usize = 32;
}

/// How the secondary's disk compares with a digest of the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Equal,
    Differs,
    /// The secondary's disk failed the read.
    Unreadable,
    /// The secondary's disk did not answer in time.
    Hung,
}

/// Why a verify ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyFault {
    #[error("this node's disk failed a read; look at the disk, then verify again")]
    UnreadableHere,
    #[error("the secondary's disk failed a read; look at the disk, then verify again")]
    UnreadableThere,
    #[error("hung disk: this node's disk did not answer a read in time; verify again when it answers")]
    HungHere,
    #[error("hung disk: the secondary's disk did not answer a read in time; verify again when it answers")]
    HungThere,
    #[error("the link to the peer was lost; verify again when the volumes are in step")]
    LinkLost,
    #[error("a newer generation took over: this node is fenced")]
    Fenced,
}

/// The content of a write: bytes, or zeroes that need no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data<P> {
    Bytes(P),
    Zeroes,
}

impl<P: Payload> Data<P> {
    /// Puts a part of the content into a buffer.
    pub fn copy_to(&self, from: u32, into: &mut P, at: u32, blocks: u32) {
        match self {
            Data::Bytes(bytes) => into.copy_from(at, bytes, from, blocks),
            Data::Zeroes => into.zero(at, blocks),
        }
    }

    pub fn slice(&self, from: u32, blocks: u32) -> Data<P> {
        match self {
            Data::Bytes(bytes) => Data::Bytes(bytes.slice(from, blocks)),
            Data::Zeroes => Data::Zeroes,
        }
    }
}

/// When the primary acknowledges a write to its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckMode {
    /// On the local disk and in the send queue, while that is not too long.
    Local,
    /// On the local disk and in the memory of the secondary.
    Received,
    /// On both disks.
    Applied,
}

/// What a primary does with writes while its peer is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLinkLoss {
    /// Goes on alone and remembers what the peer lacks.
    Continue,
    /// Keeps writes waiting until the peer is back or an operator decides.
    Block,
}

/// What a primary does when its own disk fails something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDiskFailure {
    /// The host has the error.
    Report,
    /// Goes on through the peer, if that has everything.
    Detach,
}

/// How a host's command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the disk under the volume failed the command")]
    Disk,
    #[error("this node's disk is detached, and the peer, which has the data, is not there")]
    NoDisk,
    #[error("the compared data differ")]
    Miscompare,
    #[error("a newer generation took over; this node no longer acknowledges writes")]
    Fenced,
    #[error("the secondary's view is lost until the next checkpoint, because its originals were not kept")]
    ViewLost,
    #[error("the range lies outside of the volume or of what this reactor owns")]
    OutOfRange,
    #[error("the volume is a follower that keeps no buffer; it has no view of its own")]
    NoView,
    #[error("the group was stopped")]
    Stopped,
    #[error("the checkpoint is not kept any more; replication_get_history lists those that are")]
    Dropped,
}

/// Something a host asks of a volume.
#[derive(Clone, Debug)]
pub enum Command<P> {
    Read {
        range: Range,
        into: P,
    },
    Write {
        range: Range,
        data: Data<P>,
        fua: bool,
    },
    Flush,
    /// `scratch` is as large as the others; the old content is read into it.
    CompareAndWrite {
        range: Range,
        compare: P,
        data: P,
        scratch: P,
        fua: bool,
    },
}

/// One message of a lane from the primary.
#[derive(Clone, Debug)]
pub struct Forward<P> {
    pub epoch: Epoch,
    pub generation: Generation,
    pub body: ForwardBody<P>,
}

#[derive(Clone, Debug)]
pub enum ForwardBody<P> {
    Write {
        range: Range,
        data: Data<P>,
        fua: bool,
        /// False while a full sync runs: the secondary's originals are not worth keeping then.
        preserve: bool,
    },
    /// Everything that came before it on the lane is to be durable.
    Flush,
    /// What the primary's disk has in the range after all writes that came before on the lane, to be compared with the
    /// secondary's disk at the same point.
    Verify { range: Range, digest: Digest },
    /// The content of the secondary's disk after all writes that came before on the lane is to be sent back.
    Read { range: Range },
}

/// How a request to the journal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journaled {
    Durable,
    /// There is no room before the next commit.
    Full,
    /// The journal's disk failed the write.
    Failed,
}

/// What a loss of power would leave of what was prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All of it is on the disk.
    Durable,
    /// Some of it is in memory, or in the disk's; or there is no journal, and nobody asks.
    Volatile,
}

/// Why the secondary could not do what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    #[error("the secondary's disk failed a write")]
    DiskWrite,
    #[error(
        "the secondary could not preserve the original: its disk failed the read, or its journal the write"
    )]
    CopyBeforeWrite,
    #[error("the secondary's disk hangs and its buffer has no room to hold the write")]
    HungDisk,
    #[error("the message carries a generation older than the secondary's")]
    OldGeneration,
    #[error("the message is out of order or outside of the volume")]
    Protocol,
    #[error("the secondary stopped applying after an earlier error")]
    Broken,
}

/// What this node's disk failed, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskFailure {
    #[error(
        "this node's disk failed a write: its host has the error, the block is marked, and what either disk has of it may \
         differ. Make the disk work, then stop and start the replication; or fail over to the secondary"
    )]
    Write,
    #[error(
        "this node's disk failed a flush: its host has the error, and what the disk acknowledged before may be gone. Fail \
         over to the secondary, or compare the disks with replication_verify_start"
    )]
    Flush,
    #[error(
        "this node's disk failed a read: its host has the error. Make the disk work, or fail over to the secondary"
    )]
    Read,
    #[error(
        "this node's disk does not answer: a write or flush has been there for too long, and its host waits. Make the disk work, \
         or fail over to the secondary"
    )]
    Hung,
    /// Of a secondary.
    #[error(
        "{0}; nothing is applied until the next session: make the disk work, the primary tries again by itself"
    )]
    Follower(PeerRefusal),
}

impl DiskFailure {
    /// What it was that failed.
    pub fn what(self) -> &'static str {
        match self {
            DiskFailure::Write | DiskFailure::Follower(_) => "a write",
            DiskFailure::Flush => "a flush",
            DiskFailure::Read => "a read",
            DiskFailure::Hung => "to answer",
        }
    }
}

/// What a stripe machine has to tell beside its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripeEvent {
    /// A write waits to be acknowledged, or launched, without the peer: [`ToStripes::GoAlone`](super::group::ToStripes)
    /// is the answer.
    WantsAlone,
    /// The local disk failed something. What the disks may differ in is dirty, unless the group is to decide whether it
    /// goes on without the disk: then the command waits for that.
    DiskFailed(DiskFailure),
    /// Nothing is launched here, and the peer has everything that ever was; or it has not.
    Suspended { has_all: bool },
    /// Everything this machine owns is on the replacement of the disk, durably.
    Filled,
    /// The peer could not read what is to be on the replacement.
    FillFailed,
    /// The peer failed a write: the range is dirty and the peer no longer follows.
    PeerFailed(PeerRefusal),
    /// The peer's disk failed a flush: what it acknowledged before may be gone, and nobody knows what of it.
    PeerFlushFailed,
    /// The secondary's disk failed the flush of a checkpoint: the same, as the secondary sees it.
    FlushFailed,
    /// A host's command has been waiting for the peer for too long.
    Congested,
    /// A write of the secondary's disk missed its deadline and is held in memory.
    HungDisk(Range),
    /// A hung disk answered: everything that was held in memory is on it.
    DiskHealed,
    /// The disk buffer is this full, in percent.
    BufferWatermark(u8),
    /// No room for an original: roll-back to epochs before this one is lost.
    BufferOverrun(Epoch),
    /// The fullest part of the journal is this full, in percent.
    JournalWatermark(u8),
    /// The journal has no room for an original: a loss of power before this epoch's commit leaves no way back.
    JournalOverrun(Epoch),
    /// The journal failed a write: nothing is applied any more.
    JournalFailed,
    /// No room for an original, or it could not be read: checkpoints before this epoch cannot be shown any more.
    HistoryLost(Epoch),
    /// Room for what leads back to earlier checkpoints is short.
    HistoryShort,
    /// A write of the buffer's content to the disk failed; it is retried.
    DrainFailed(Range),
    /// Everything that the buffer held after a failover is on the disk.
    Drained,
    /// Reading the source of a full sync failed.
    CopyFailed(Range),
    /// Everything this machine owns was copied and acknowledged.
    CopyFinished,
    /// What this machine owns behind the volume's present end was copied and acknowledged.
    Extended,
    /// The disks differ here, and the range is marked. `round` names the verify that found it.
    Differs { round: u32, range: Range },
    /// Everything this machine owns was compared.
    VerifyFinished { round: u32 },
    /// The verify cannot go on here.
    VerifyFailed { round: u32, fault: VerifyFault },
}
