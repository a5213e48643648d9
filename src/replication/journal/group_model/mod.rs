//! Two nodes with a group of many volumes: the group's and the stripes' machines, the journal's rings, a record, disks with
//! caches. Everything that happens is one step, drawn from a seed, so that a node can be stopped between any two.

mod disks;
mod steps;

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use super::area::{Area, Request};
use super::format::{BATCH_BYTES, BLOCK_BYTES, Header, Ring};
use crate::env::{Buf, SgList};
use crate::replication::core::model::{Bytes, Maps};
use crate::replication::core::*;
use crate::replication::{Epoch, Generation, Sequence};

use disks::apply;
pub use disks::{Array, Disk, Durable, Rng};

pub const VOLUMES: usize = 64;
const REACTORS: usize = 2;
/// Few blocks make a stripe this way. In the journal they are smaller.
const DISK_BLOCK_BYTES: u64 = DIRTY_BYTES;
const STRIPE_BLOCKS: u64 = STRIPE_BYTES / DISK_BLOCK_BYTES;
/// A few blocks at the beginning of two stripes, one of each reactor, are written; what lies between only has to be there.
const BUSY_BLOCKS: u64 = 4;
const BLOCKS: u64 = STRIPE_BLOCKS + BUSY_BLOCKS;
pub const HEADER: Header = Header {
    group: Uuid::from_u128(1),
    journal: Uuid::from_u128(2),
    formatted: 1,
    areas: REACTORS as u32,
    area_bytes: 256 * BLOCK_BYTES as u64,
};

/// What is wrong with the protocol, so that the checks can be shown to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Each volume has a record of its own, one written after the other.
    RecordPerVolume,
    /// The secondary gives the originals of an epoch up when it is prepared.
    DropOnPrepare,
    /// What the record says is told, and the record is written another time.
    ToldBeforeDurable,
    /// The last volume does not hear of the commit.
    ForgottenVolume,
    /// The disks are not flushed for what is prepared.
    NoFlush,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Of writes: on a disk, on a data connection, in the journal.
    Load,
    /// Of the checkpoint: a message, an order, a reactor's report, a record.
    Checkpoint,
}

struct Volume {
    primary: Vec<PrimaryStripes<Bytes>>,
    secondary: Vec<SecondaryStripes<Bytes, Maps>>,
    primary_disk: Disk,
    secondary_disk: Disk,
    base: Vec<u8>,
    /// What the primary launched.
    log: Vec<(Epoch, Range, Data<Bytes>)>,
}

enum What {
    Write(Data<Bytes>),
    Flush,
    Preserve,
}

struct DiskIo {
    primary: bool,
    volume: usize,
    reactor: usize,
    op: OpId,
    range: Range,
    what: What,
    /// The disk has done it; it has not told yet.
    content: Option<Bytes>,
}

/// Something that can happen next. Those of a queue stand for whatever is at its front then.
enum Event {
    Disk(Box<DiskIo>),
    Data(usize),
    Report(usize),
    Answer(usize),
    Order {
        primary: bool,
        reactor: usize,
    },
    Control {
        to_primary: bool,
    },
    Frozen,
    Stamped,
    Prepared,
    /// The secondary's.
    Record,
    Recorded {
        primary: bool,
    },
    Journal(usize),
    Journaled(usize),
}

#[derive(Default)]
struct Link {
    out: Outgoing<(usize, OpId)>,
    incoming: Incoming<Answer>,
    data: VecDeque<(Sequence, usize, Forward<Bytes>)>,
    answers: VecDeque<(Sequence, Vec<Run<Answer>>)>,
    reporting: bool,
}

struct Reactor {
    area: Area<(usize, OpId)>,
    buffer: Buf,
    /// A batch on its way, and where it goes.
    batch: Option<(u64, Vec<u8>)>,
    orders: [VecDeque<ToStripes>; 2],
    preparing: Option<(Epoch, Vec<Last>)>,
    left: usize,
    standing: Result<Standing, PeerRefusal>,
    copies: usize,
    drains: usize,
}

pub struct World {
    pub fault: Fault,
    pub rng: Rng,
    journaled: bool,
    volumes: Vec<Volume>,
    reactors: Vec<Reactor>,
    primary: PrimaryGroup,
    pub secondary: SecondaryGroup,
    links: Vec<Link>,
    events: Vec<Event>,
    to_primary: VecDeque<Control>,
    to_secondary: VecDeque<Control>,
    reports: VecDeque<Vec<Last>>,
    prepared: VecDeque<(Epoch, Result<Standing, PeerRefusal>)>,
    writing: VecDeque<GroupRecord>,
    journal: Vec<u8>,
    /// What a restart of the secondary finds, for each volume: the same for all, unless something is wrong.
    pub records: Vec<GroupRecord>,
    connected: bool,
    primary_is_gone: bool,
    pub replies: BTreeMap<u64, Result<Success, GroupError>>,
    tokens: Token,
    /// Commands of hosts, with the newest epoch that had been acknowledged when they came.
    in_flight: BTreeMap<Token, Epoch>,
    epochs: BTreeMap<Token, Epoch>,
    newest_acknowledged: Epoch,
}

impl World {
    pub fn new(seed: u64, fault: Fault, journal: bool) -> World {
        let bytes = BLOCKS * DISK_BLOCK_BYTES;
        let sizes = vec![VolumeSize { volume_bytes: bytes, disk_bytes: bytes }; VOLUMES];
        let record = GroupRecord { generation: Generation(1), ..GroupRecord::default() };
        let primary = PrimaryGroupConfig {
            reactors: REACTORS as u16,
            checkpoint_timeout_ms: 1000,
            checkpoint_interval_ms: 0,
            begin_timeout_ms: 1000,
            on_disk_failure: OnDiskFailure::Report,
        };
        let secondary =
            SecondaryGroupConfig { reactors: REACTORS as u16, buffer: true, failover_timeout_ms: 1000 };
        let reactor = |area| Reactor {
            area: Area::new(
                Ring { journal: HEADER.journal, formatted: 1, area: area as u16 },
                HEADER.area_bytes,
            ),
            buffer: Buf::heap(BATCH_BYTES).expect("heap"),
            batch: None,
            orders: Default::default(),
            preparing: None,
            left: 0,
            standing: Ok(Standing::Durable),
            copies: 0,
            drains: 0,
        };
        World {
            fault,
            rng: Rng::new(seed),
            journaled: journal,
            volumes: (0..VOLUMES).map(|number| Volume::new(number, journal)).collect(),
            reactors: (0..REACTORS).map(reactor).collect(),
            primary: PrimaryGroup::new(primary, record, &sizes),
            secondary: SecondaryGroup::new(secondary, record, &sizes),
            links: (0..REACTORS * REACTORS).map(|_| Link::default()).collect(),
            events: Vec::new(),
            to_primary: VecDeque::new(),
            to_secondary: VecDeque::new(),
            reports: VecDeque::new(),
            prepared: VecDeque::new(),
            writing: VecDeque::new(),
            journal: vec![0; HEADER.area_at(HEADER.areas) as usize],
            records: vec![record; VOLUMES],
            connected: false,
            primary_is_gone: false,
            replies: BTreeMap::new(),
            tokens: 0,
            in_flight: BTreeMap::new(),
            epochs: BTreeMap::new(),
            newest_acknowledged: Epoch(0),
        }
    }

    // ---- commands

    pub fn start(&mut self) {
        self.with_primary_group(|group, out| group.start(1, SyncMode::None, 1000, out));
    }

    pub fn checkpoint(&mut self, command: u64) {
        self.with_primary_group(|group, out| group.do_checkpoint(command, None, out));
    }

    pub fn failover(&mut self, command: u64) {
        self.with_secondary_group(|group, out| group.failover(command, Keep::Checkpoint, out));
    }

    pub fn write(&mut self, volume: usize, byte: u8) {
        let reactor = self.rng.below(REACTORS);
        let blocks = 1 + self.rng.below(2);
        let at = self.rng.below(BUSY_BLOCKS as usize + 1 - blocks) as u64;
        let range = Range::new(reactor as u64 * STRIPE_BLOCKS + at, blocks as u32);
        let data = Data::Bytes(Bytes::new(vec![byte; blocks]));
        self.tokens += 1;
        let token = self.tokens;
        self.in_flight.insert(token, self.newest_acknowledged);
        let command = Command::Write { range, data, fua: false };
        self.with_primary(volume, reactor, |machine, out| machine.submit(token, command, out));
    }

    // ---- machines, and what they put out

    fn with_primary(
        &mut self,
        volume: usize,
        reactor: usize,
        act: impl FnOnce(&mut PrimaryStripes<Bytes>, &mut Vec<PrimaryOutput<Bytes>>),
    ) {
        let mut out = Vec::new();
        act(&mut self.volumes[volume].primary[reactor], &mut out);
        out.into_iter().for_each(|output| self.primary_output(volume, reactor, output));
    }

    fn with_secondary(
        &mut self,
        volume: usize,
        reactor: usize,
        act: impl FnOnce(&mut SecondaryStripes<Bytes, Maps>, &mut Vec<SecondaryOutput<Bytes>>),
    ) {
        let mut out = Vec::new();
        act(&mut self.volumes[volume].secondary[reactor], &mut out);
        out.into_iter().for_each(|output| self.secondary_output(volume, reactor, output));
    }

    fn with_primary_group(&mut self, act: impl FnOnce(&mut PrimaryGroup, &mut Vec<GroupOutput>)) {
        if self.primary_is_gone {
            return;
        }
        let mut out = Vec::new();
        act(&mut self.primary, &mut out);
        out.into_iter().for_each(|output| self.group_output(true, output));
    }

    fn with_secondary_group(&mut self, act: impl FnOnce(&mut SecondaryGroup, &mut Vec<GroupOutput>)) {
        let mut out = Vec::new();
        act(&mut self.secondary, &mut out);
        out.into_iter().for_each(|output| self.group_output(false, output));
    }

    fn io(&mut self, primary: bool, volume: usize, reactor: usize, op: OpId, range: Range, what: What) {
        let io = DiskIo { primary, volume, reactor, op, range, what, content: None };
        self.events.push(Event::Disk(Box::new(io)));
    }

    fn primary_output(&mut self, volume: usize, reactor: usize, output: PrimaryOutput<Bytes>) {
        match output {
            PrimaryOutput::SubmitWrite { op, range, data, .. } => {
                let machine = &self.volumes[volume].primary[reactor];
                let (epoch, token) = (machine.epoch(), machine.token_of(op));
                self.epochs.insert(token, epoch);
                self.volumes[volume].log.push((epoch, range, data.clone()));
                self.io(true, volume, reactor, op, range, What::Write(data));
            }
            PrimaryOutput::Send { op, lane, forward, .. } if self.connected => {
                let token = self.volumes[volume].primary[reactor].token_of(op);
                if let Some(&before) = self.in_flight.get(&token) {
                    assert!(forward.epoch >= before, "a write is cut off from what it depends on");
                }
                let at = reactor * REACTORS + usize::from(lane);
                let sequence = self.links[at].out.send((volume, op));
                self.links[at].data.push_back((sequence, volume, forward));
                self.events.push(Event::Data(at));
            }
            PrimaryOutput::Reply { token, result } => {
                assert!(self.in_flight.remove(&token).is_some() && result.is_ok(), "{result:?}");
                let epoch = self.epochs.remove(&token).unwrap_or_default();
                self.newest_acknowledged = self.newest_acknowledged.max(epoch);
            }
            PrimaryOutput::Event(StripeEvent::CopyFinished) => {
                self.reactors[reactor].copies += 1;
                if self.reactors[reactor].copies == VOLUMES {
                    self.with_primary_group(|group, out| group.copied(out));
                }
            }
            PrimaryOutput::Send { .. } | PrimaryOutput::Event(_) => {}
            other => panic!("nobody asks for {other:?}"),
        }
    }

    fn secondary_output(&mut self, volume: usize, reactor: usize, output: SecondaryOutput<Bytes>) {
        match output {
            SecondaryOutput::PreserveRead { op, range } => {
                self.io(false, volume, reactor, op, range, What::Preserve);
            }
            SecondaryOutput::SubmitWrite { op, range, data, .. } => {
                self.io(false, volume, reactor, op, range, What::Write(data));
            }
            SecondaryOutput::SubmitFlush { op } => {
                self.io(false, volume, reactor, op, Range::new(0, 0), What::Flush);
            }
            SecondaryOutput::Journal { op, epoch, range, content, lost_through } => {
                let content = content.map_or_else(SgList::new, |bytes| blocks_of(&bytes));
                self.reactors[reactor].area.request(Request {
                    token: (volume, op),
                    volume: volume as u16,
                    epoch,
                    offset: range.lba * BLOCK_BYTES as u64,
                    content,
                    lost_through,
                });
                self.events.push(Event::Journal(reactor));
            }
            SecondaryOutput::Answer { lane, sequence, answer } => {
                let at = usize::from(lane) * REACTORS + reactor;
                self.links[at].incoming.end(sequence, answer);
                self.report_soon(at);
            }
            SecondaryOutput::Prepared { epoch, result } => self.machine_prepared(reactor, epoch, result),
            SecondaryOutput::Event(StripeEvent::Drained) => {
                self.reactors[reactor].drains += 1;
                if self.reactors[reactor].drains == VOLUMES {
                    self.with_secondary_group(|group, out| group.drained(out));
                }
            }
            SecondaryOutput::Event(event) => panic!("nothing goes wrong here: {event:?}"),
            other => panic!("nobody asks for {other:?}"),
        }
    }

    fn machine_prepared(&mut self, reactor: usize, epoch: Epoch, result: Result<Standing, PeerRefusal>) {
        let share = &mut self.reactors[reactor];
        if share.standing == Ok(Standing::Durable) {
            share.standing = result;
        }
        share.left = share.left.saturating_sub(1);
        if share.left == 0 {
            self.prepared.push_back((epoch, share.standing));
            self.events.push(Event::Prepared);
            if self.fault == Fault::DropOnPrepare {
                self.commit(reactor, epoch);
            }
        }
    }

    fn group_output(&mut self, primary: bool, output: GroupOutput) {
        match output {
            GroupOutput::ToStripes(order) => {
                for reactor in 0..REACTORS {
                    self.reactors[reactor].orders[usize::from(primary)].push_back(order.clone());
                    self.events.push(Event::Order { primary, reactor });
                }
            }
            GroupOutput::Send(message) if self.connected => {
                if primary { &mut self.to_secondary } else { &mut self.to_primary }.push_back(message);
                self.events.push(Event::Control { to_primary: !primary });
            }
            GroupOutput::Connect => self.connect(),
            GroupOutput::Disconnect => self.lose_link(),
            GroupOutput::PersistRecord(..) if primary => self.events.push(Event::Recorded { primary }),
            GroupOutput::PersistRecord(..) if self.is_told_early() => {
                self.events.push(Event::Recorded { primary });
            }
            GroupOutput::PersistRecord(record, _) => {
                let parts = if self.fault == Fault::RecordPerVolume { VOLUMES } else { 1 };
                self.writing.extend(std::iter::repeat_n(record, parts));
                self.events.push(Event::Record);
            }
            GroupOutput::Reply { command, result } => {
                self.replies.insert(command, result);
            }
            GroupOutput::Send(_)
            | GroupOutput::Reconnect
            | GroupOutput::Resize { .. }
            | GroupOutput::ArmTimer { .. }
            | GroupOutput::Event(_) => {}
        }
    }

    fn is_told_early(&self) -> bool {
        // The first checkpoint is not what is looked at.
        self.fault == Fault::ToldBeforeDurable && self.records[0].committed > Epoch(0)
    }

    fn connect(&mut self) {
        self.connected = true;
        let bytes = BLOCKS * DISK_BLOCK_BYTES;
        self.secondary.connected(&[bytes; VOLUMES]);
        let record = self.secondary.record();
        let greeting = Greeting {
            newest: record.newest,
            generation: record.generation,
            lanes: REACTORS as u16,
            lineage: record.lineage,
            past: record.past,
            consistent: !record.inconsistent,
            session: 1,
            restarted: false,
        };
        let sizes: Vec<VolumeSize> = self.secondary.sizes().collect();
        self.with_primary_group(|group, out| group.connected(&greeting, &sizes, out));
    }

    // ---- losses

    /// The connections break; what was on the way is gone.
    fn lose_link(&mut self) {
        if !std::mem::take(&mut self.connected) {
            return;
        }
        self.to_primary.clear();
        self.to_secondary.clear();
        self.prepared.clear();
        self.reactors.iter_mut().for_each(|reactor| reactor.preparing = None);
        for link in &mut self.links {
            link.data.clear();
            link.answers.clear();
        }
        self.with_primary_group(|group, out| group.disconnected(out));
        self.with_secondary_group(|group, out| group.disconnected(out));
    }

    /// The primary is gone. What it had sent arrives, or does not.
    pub fn lose_primary(&mut self, arrives: bool) {
        self.primary_is_gone = true;
        self.events.retain(|event| !event.is_of_primary());
        while arrives && self.events.iter().any(Event::is_on_its_way) {
            let at = self.events.iter().position(Event::is_on_its_way).expect("there is one");
            let event = self.events.remove(at);
            self.happen(event);
        }
        self.lose_link();
    }

    /// What a loss of power at this moment may leave of the secondary: of what is under way, anything.
    pub fn after_a_power_loss(&self, rng: &mut Rng) -> Durable {
        let mut journal = self.journal.clone();
        for (area, reactor) in self.reactors.iter().enumerate() {
            let Some((at, bytes)) = &reactor.batch else { continue };
            let start = (HEADER.area_at(area as u32) + at) as usize;
            for (number, sector) in bytes.chunks(512).enumerate().filter(|_| rng.below(2) == 0) {
                journal[start + number * 512..][..sector.len()].copy_from_slice(sector);
            }
        }
        let mut disks: Vec<Disk> = self.volumes.iter().map(|volume| volume.secondary_disk.clone()).collect();
        for event in &self.events {
            if let Event::Disk(io) = event
                && let DiskIo { primary: false, content: None, what: What::Write(data), .. } = &**io
                && rng.below(2) == 0
            {
                disks[io.volume].write(io.range, data);
            }
        }
        disks.iter_mut().for_each(|disk| disk.lose_power(rng));
        Durable { journal, disks }
    }

    // ---- what there is to see

    /// What a volume had at the cut of the epoch.
    pub fn content_at(&self, volume: usize, epoch: Epoch) -> Vec<u8> {
        let volume = &self.volumes[volume];
        let mut content = volume.base.clone();
        for (_, range, data) in volume.log.iter().filter(|entry| entry.0 <= epoch) {
            apply(&mut content, *range, data);
        }
        content
    }

    /// What is on the secondary's disk of a volume.
    pub fn disk_of(&self, volume: usize) -> &[u8] {
        &self.volumes[volume].secondary_disk.cached
    }

    pub fn is_journaled(&self) -> bool {
        self.journaled
    }

    pub fn hosts_wait(&self) -> bool {
        !self.in_flight.is_empty()
    }
}

impl Event {
    fn is_of_primary(&self) -> bool {
        match self {
            Event::Disk(io) => io.primary,
            Event::Answer(_) | Event::Frozen | Event::Stamped => true,
            Event::Order { primary, .. } | Event::Recorded { primary } => *primary,
            Event::Control { to_primary } => *to_primary,
            _ => false,
        }
    }

    fn is_of_load(&self) -> bool {
        use Event::*;
        matches!(self, Disk(_) | Data(_) | Report(_) | Answer(_) | Journal(_) | Journaled(_))
    }

    /// From the primary.
    fn is_on_its_way(&self) -> bool {
        matches!(self, Event::Data(_) | Event::Control { to_primary: false })
    }
}

impl Volume {
    fn new(number: usize, journal: bool) -> Volume {
        let geometry = |owner: usize| Geometry {
            blocks: BLOCKS,
            block_bytes: DISK_BLOCK_BYTES as u32,
            granule_blocks: 1,
            owners: REACTORS as u16,
            owner: owner as u16,
        };
        let base: Vec<u8> = (0..BLOCKS).map(|lba| 0x80 | (lba as u8 ^ number as u8) & 0x7F).collect();
        let primary = |owner| {
            PrimaryStripes::new(PrimaryConfig {
                geometry: geometry(owner),
                ack: AckMode::Applied,
                on_link_loss: OnLinkLoss::Continue,
                on_disk_failure: OnDiskFailure::Report,
                lag_limit_bytes: LAG_BYTES,
            })
        };
        let secondary = |owner| {
            let config = SecondaryConfig { geometry: geometry(owner), buffer: true, journal, hung_ticks: 3 };
            SecondaryStripes::new(config, Maps::new(geometry(owner), 1000), Generation(1), Epoch(0))
        };
        Volume {
            primary: (0..REACTORS).map(primary).collect(),
            secondary: (0..REACTORS).map(secondary).collect(),
            primary_disk: Disk::new(base.clone()),
            secondary_disk: Disk::new(base.clone()),
            base,
            log: Vec::new(),
        }
    }
}

/// Whole blocks of the bytes that stand for them.
fn blocks_of(bytes: &Bytes) -> SgList {
    let block = |byte| {
        let buf = Buf::heap(BLOCK_BYTES).expect("heap");
        buf.write_at(0, &[byte; BLOCK_BYTES]);
        buf
    };
    bytes.to_vec().into_iter().map(block).collect()
}
