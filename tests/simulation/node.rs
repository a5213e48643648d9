//! A simulated node: what survives a crash, and what does not. What is in memory mirrors the rooms of the product that
//! carry out the machines' outputs (`replication/group`, `replication/volume`), with the machines themselves.

use super::disk::Disk;
use super::rng::Rng;
use super::wire::{Hello, Use};
use lockstep::env::Buf;
use lockstep::replication::buffer::{PageSource, Quota};
use lockstep::replication::core::*;
use lockstep::replication::metadata::{SLOT_BYTES, Slots};
use lockstep::replication::volume::{Blocks, Maps};
use lockstep::replication::{Epoch, Sequence};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

pub type PrimaryMachine = PrimaryStripes<Blocks>;
pub type SecondaryMachine = SecondaryStripes<Blocks, Maps>;

/// What an I/O of the disk below a machine is for.
pub enum Job {
    Write(OpId),
    Flush(OpId),
    Compare(OpId, Blocks),
    Copy(OpId),
    Preserve(OpId, Range),
    View(OpId, Range, Blocks),
    Base(OpId, Range),
    /// A host's read of a primary.
    Read(u64),
}

/// Whose job it is.
pub struct Owned {
    pub reactor: usize,
    pub job: Job,
}

pub enum Machine {
    Stopped,
    Primary(Box<PrimaryMachine>),
    Secondary(Box<SecondaryMachine>),
}

#[derive(Clone, Copy)]
pub struct Sender {
    pub volume: u16,
    pub op: OpId,
    pub range: Range,
}

pub struct LaneEnd {
    pub conn: usize,
    pub outgoing: Outgoing<Sender>,
    pub incoming: Incoming<(u16, Answer)>,
    /// What B took and has not answered.
    pub taken: BTreeMap<u64, Range>,
    pub full: bool,
}

pub struct Preparing {
    pub epoch: Epoch,
    pub lasts: Vec<(Lane, Sequence)>,
    pub asked: bool,
    pub left: usize,
    pub result: Result<Standing, PeerRefusal>,
}

/// One reactor: the machines of all volumes there, and the lanes that they share.
pub struct Reactor {
    pub machines: Vec<Machine>,
    pub lanes: Vec<Option<LaneEnd>>,
    pub preparing: Option<Preparing>,
    pub acks_scheduled: bool,
    /// When what was sent here last arrives, from each reactor.
    pub hops: Vec<u64>,
    pub stalled_until: u64,
    /// What the checker knows: the primary's link as its machines were told, and the mode.
    pub linked: bool,
    pub lost: bool,
    pub fenced: bool,
    pub ack: AckMode,
    pub policy: OnLinkLoss,
}

pub enum Group {
    Primary(Box<PrimaryGroup>),
    Secondary(Box<SecondaryGroup>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Purpose {
    #[default]
    Nothing,
    Session,
    Probe,
}

/// What the node holds in memory.
pub struct Memory {
    pub group: Group,
    pub slots: Slots,
    pub reactors: Vec<Reactor>,
    pub quota: Arc<Quota>,
    pub pages: Rc<Pages>,
    /// A primary's hosts are served from its first start on.
    pub serving: bool,
    pub secondary_made: Vec<bool>,
    pub session: u64,
    pub control: Option<usize>,
    pub purpose: Purpose,
    pub hello: Option<Hello>,
    pub lanes_left: u32,
    pub peer: Option<Hello>,
    pub wait: u64,
    pub drains: BTreeMap<usize, usize>,
    pub persisting: bool,
    /// The epoch of the last prepare that succeeded.
    pub prepared: Epoch,
    pub fenced: bool,
}

/// The metadata file: two slots, of which the one under way may be torn.
pub struct File {
    pub bytes: Vec<u8>,
    pub under_way: Option<(u64, Vec<u8>)>,
    pub hang: bool,
    pub errors: u8,
}

impl File {
    pub fn new() -> File {
        File { bytes: vec![0; 2 * SLOT_BYTES], under_way: None, hang: false, errors: 0 }
    }

    /// Some sectors of what is being written reach the file, and others do not.
    pub fn tear(&mut self, rng: &mut Rng) {
        const SECTOR: usize = 512;
        let Some((at, bytes)) = self.under_way.take() else { return };
        let in_order = rng.chance(50);
        let mut upto = rng.below((SLOT_BYTES / SECTOR) as u64 + 1) as usize;
        // The place of a first record that is torn: until that is followed it is there, or it is not.
        let other = SLOT_BYTES - at as usize;
        let in_order = if self.bytes[other..other + SLOT_BYTES].iter().all(|&byte| byte == 0) {
            upto = if upto.is_multiple_of(2) { 0 } else { SLOT_BYTES / SECTOR };
            true
        } else {
            in_order
        };
        for sector in 0..SLOT_BYTES / SECTOR {
            if if in_order { sector < upto } else { rng.chance(50) } {
                let (from, to) = (sector * SECTOR, (sector + 1) * SECTOR);
                self.bytes[at as usize + from..at as usize + to].copy_from_slice(&bytes[from..to]);
            }
        }
    }
}

pub struct Node {
    /// Counts the starts; what was under way before a crash finds another number.
    pub boot: u32,
    pub memory: Option<Memory>,
    pub disks: Vec<Disk<Owned>>,
    pub file: File,
}

/// Chunks of the disk buffer, kept for reuse and spoilt before.
#[derive(Default)]
pub struct Pages(RefCell<Vec<Buf>>);

impl PageSource for Pages {
    fn chunk(&self, len: usize) -> Option<Buf> {
        let mut free = self.0.borrow_mut();
        match free.iter().position(|buf| buf.len() == len) {
            Some(at) => Some(free.swap_remove(at)),
            None => Buf::heap(len),
        }
    }

    fn give_back(&self, chunk: Buf) {
        if chunk.is_unique() {
            chunk.fill(0, chunk.len(), 0xDB);
            self.0.borrow_mut().push(chunk);
        }
    }
}

impl Memory {
    pub fn record(&self) -> GroupRecord {
        match &self.group {
            Group::Primary(group) => group.record(),
            Group::Secondary(group) => group.record(),
        }
    }

    pub fn primary_state(&self) -> Option<PrimaryState> {
        match &self.group {
            Group::Primary(group) => Some(group.state()),
            Group::Secondary(_) => None,
        }
    }

    pub fn secondary_state(&self) -> Option<SecondaryState> {
        match &self.group {
            Group::Primary(_) => None,
            Group::Secondary(group) => Some(group.state()),
        }
    }
}

impl Reactor {
    pub fn new(volumes: usize, reactors: usize, ack: AckMode, policy: OnLinkLoss) -> Reactor {
        Reactor {
            machines: (0..volumes).map(|_| Machine::Stopped).collect(),
            lanes: Vec::new(),
            preparing: None,
            acks_scheduled: false,
            hops: vec![0; reactors],
            stalled_until: 0,
            linked: false,
            lost: false,
            fenced: false,
            ack,
            policy,
        }
    }

    pub fn attach(&mut self, lane: usize, conn: usize) {
        if self.lanes.len() <= lane {
            self.lanes.resize_with(lane + 1, || None);
        }
        self.lanes[lane] = Some(LaneEnd {
            conn,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            taken: BTreeMap::new(),
            full: false,
        });
    }

    pub fn last_sent(&self) -> Vec<(Lane, Sequence)> {
        let lanes = self.lanes.iter().enumerate();
        lanes.filter_map(|(at, lane)| Some((at as Lane, lane.as_ref()?.outgoing.last()))).collect()
    }

    pub fn have_arrived(&self, lasts: &[(Lane, Sequence)]) -> bool {
        lasts.iter().all(|&(lane, last)| {
            let end = self.lanes.get(usize::from(lane)).and_then(Option::as_ref);
            last == Sequence(0) || end.is_some_and(|end| end.incoming.arrived() >= last)
        })
    }
}

/// What travels between the reactors of a node.
pub enum Call {
    /// From home to a reactor.
    Order(ToStripes),
    Attach {
        lane: usize,
        conn: usize,
    },
    /// To home.
    Frozen,
    Stamped(Vec<Last>),
    Done(bool),
    Prepared(Epoch, Result<Standing, PeerRefusal>),
    Stripe(StripeEvent),
    LaneClosed,
    LaneUp(u64),
    LaneFailed(u64),
    /// A host's command on its way to the owner of the stripe.
    Host(u64),
}

impl Use {
    pub fn reactor(self, node: usize) -> usize {
        match self {
            Use::Control => 0,
            Use::Lane { from, to } => usize::from(if node == 0 { from } else { to }),
        }
    }

    /// How the node's reactor names the lane: by the peer's reactor.
    pub fn lane(self, node: usize) -> usize {
        match self {
            Use::Control => 0,
            Use::Lane { from, to } => usize::from(if node == 0 { to } else { from }),
        }
    }
}
