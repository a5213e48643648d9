//! A whole pair of nodes made of the machines, two reactors each, with disks, a link, metadata and timers that finish
//! in an order drawn from a seed. What the machines promise is checked against a log of what the primary launched.

use super::super::{Epoch, Generation, Lineage, Sequence};
use super::model::{Bytes, Disk, Maps, bytes};
use super::*;
use std::collections::{BTreeMap, VecDeque};

pub const BLOCKS: u64 = 128;
const REACTORS: usize = 2;
/// A few writes: acknowledgements wait for the peer's lag in many schedules.
const LAG_LIMIT_BYTES: u64 = 4 * DIRTY_BYTES;
type Secondary = SecondaryStripes<Bytes, Maps>;

pub struct Rng(u64);

impl Rng {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit.max(1) as u64) as usize
    }
}

pub const BLOCK_BYTES: u64 = DIRTY_BYTES;

/// One block is one bit of the dirty map and 64 blocks are a stripe, so that everything has borders close by.
pub fn geometry(blocks: u64, owner: usize) -> Geometry {
    Geometry {
        blocks,
        block_bytes: DIRTY_BYTES as u32,
        granule_blocks: 2,
        owners: REACTORS as u16,
        owner: owner as u16,
    }
}

fn byte_of(entry: &Logged, lba: u64) -> u8 {
    match &entry.data {
        Data::Bytes(bytes) => bytes.to_vec()[(lba - entry.range.lba) as usize],
        Data::Zeroes => 0,
    }
}

enum What {
    Write(Data<Bytes>),
    Flush,
    Compare,
    Copy,
    Preserve,
    View(Bytes),
    Base,
    Verify,
    /// A host's read, by its owner.
    HostRead(Bytes),
    /// A host's read, straight from the disk.
    Direct(Token, Bytes),
}

struct DiskIo {
    reactor: usize,
    op: OpId,
    range: Range,
    what: What,
    /// What the disk returned or took; the completion comes later.
    executed: Option<Bytes>,
    hung: bool,
    /// Which of the primary's disks, one after the other, it went to.
    disk: u32,
    failed: bool,
}

/// A node's sizes in blocks, apart from its disk.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// What its hosts see.
    pub volume: u64,
    pub recorded: u64,
    /// What is recorded when the write under way ends.
    pending: u64,
}

/// A write as the primary launched it.
struct Logged {
    epoch: Epoch,
    range: Range,
    data: Data<Bytes>,
    token: Token,
    acknowledged: bool,
    /// The moment of that, by the count of replies.
    acknowledged_at: u64,
}

#[derive(Default)]
struct Link {
    out: Outgoing<OpId>,
    incoming: Incoming<Answer>,
    data: VecDeque<(Sequence, Forward<Bytes>)>,
    answers: VecDeque<(Sequence, Vec<Run<Answer>>)>,
    read_data: VecDeque<(Sequence, Range, Bytes)>,
}

/// A host's read under way.
struct Reading {
    range: Range,
    into: Bytes,
    since: u64,
}

pub struct Pair {
    pub rng: Rng,
    pub primary: Vec<PrimaryStripes<Bytes>>,
    pub secondary: Vec<Secondary>,
    pub primary_group: PrimaryGroup,
    pub secondary_group: SecondaryGroup,
    links: Vec<Link>,
    pub primary_disk: Disk,
    pub secondary_disk: Disk,
    /// What a loss of power leaves of it.
    secondary_durable: Disk,
    pub primary_sizes: Sizes,
    pub secondary_sizes: Sizes,
    /// The volume's size in the last handshake.
    agreed_bytes: u64,
    sessions: u64,
    /// Blocks that copies read at the primary.
    pub copied: u64,
    primary_io: Vec<DiskIo>,
    secondary_io: Vec<DiskIo>,
    to_primary: VecDeque<Control>,
    to_secondary: VecDeque<Control>,
    orders_primary: Vec<VecDeque<ToStripes>>,
    orders_secondary: Vec<VecDeque<ToStripes>>,
    reports_primary: VecDeque<Vec<Last>>,
    frozen: usize,
    preparing: Vec<Option<(Epoch, Vec<Last>)>>,
    prepared: VecDeque<(Epoch, Result<Standing, PeerRefusal>)>,
    persists: VecDeque<bool>,
    /// So many of the secondary's next records cannot be written.
    pub failing_records: u32,
    /// The same of the primary's.
    pub failing_primary_records: u32,
    /// Every I/O of the primary's disk fails.
    pub primary_fails: bool,
    /// Some writes to it never end.
    pub primary_hangs: bool,
    /// How often it was replaced.
    disk_round: u32,
    pending_records: VecDeque<GroupRecord>,
    /// The primary's record as a restart would find it.
    pub durable_record: GroupRecord,
    reading: BTreeMap<Token, Reading>,
    /// Commands of hosts at the primary that failed, and why.
    pub refused: BTreeMap<Token, Refusal>,
    moments: u64,
    /// The secondary's disk took something since its last flush.
    pub unflushed: bool,
    timers: VecDeque<(bool, Armed)>,
    pub connected: bool,
    pub replies: BTreeMap<u64, Result<Success, GroupError>>,
    pub events: Vec<GroupEvent>,
    pub stripe_events: Vec<StripeEvent>,
    log: Vec<Logged>,
    base: Vec<u8>,
    tokens: Token,
    in_flight: BTreeMap<Token, Epoch>,
    newest_acknowledged: Epoch,
    pub own_replies: BTreeMap<Token, Result<(), Refusal>>,
    own_content: BTreeMap<u64, u8>,
    pub hang: bool,
    dead: bool,
    /// Comparisons that the secondary answered with a difference.
    pub mismatches: usize,
    /// Blocks that were sent as zeroes, without content.
    pub zeroes: u64,
    /// What the primary sends to the secondary's disks stays on the way.
    pub slow: bool,
    /// Ticks that hosts may wait for the peer.
    pub patience: Option<u32>,
}

impl Pair {
    pub fn new(seed: u64, ack: AckMode, limit: usize) -> Pair {
        Pair::with_blocks(seed, ack, limit, BLOCKS)
    }

    /// A volume of so many blocks, on disks that have no more.
    pub fn with_blocks(seed: u64, ack: AckMode, limit: usize, blocks: u64) -> Pair {
        let volume = VolumeSize { volume_bytes: blocks * BLOCK_BYTES, disk_bytes: blocks * BLOCK_BYTES };
        let record = GroupRecord { generation: Generation(1), ..GroupRecord::default() };
        let primary_group = PrimaryGroup::new(
            PrimaryGroupConfig {
                reactors: REACTORS as u16,
                checkpoint_timeout_ms: 1000,
                checkpoint_interval_ms: 0,
                begin_timeout_ms: 1000,
                on_disk_failure: OnDiskFailure::Detach,
            },
            record,
            &[volume],
        );
        let secondary_config =
            SecondaryGroupConfig { reactors: REACTORS as u16, buffer: true, failover_timeout_ms: 1000 };
        let machine = |owner| {
            let geometry = geometry(blocks, owner);
            let config = SecondaryConfig { geometry, buffer: true, journal: false, hung_ticks: 3 };
            SecondaryStripes::new(config, Maps::new(geometry, limit), Generation(1), Epoch(0))
        };
        let primary = |owner| {
            PrimaryStripes::new(PrimaryConfig {
                geometry: geometry(blocks, owner),
                ack,
                on_link_loss: OnLinkLoss::Continue,
                on_disk_failure: OnDiskFailure::Detach,
                lag_limit_bytes: LAG_LIMIT_BYTES,
            })
        };
        let base: Vec<u8> = (0..blocks).map(|lba| lba as u8 | 0x80).collect();
        let sizes = Sizes { volume: blocks, recorded: blocks, pending: blocks };
        Pair {
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            primary: (0..REACTORS).map(primary).collect(),
            secondary: (0..REACTORS).map(machine).collect(),
            primary_group,
            secondary_group: SecondaryGroup::new(secondary_config, record, &[volume]),
            links: (0..REACTORS * REACTORS).map(|_| Link::default()).collect(),
            primary_disk: Disk(base.clone()),
            secondary_disk: Disk(base.clone()),
            secondary_durable: Disk(base.clone()),
            primary_sizes: sizes,
            secondary_sizes: sizes,
            agreed_bytes: 0,
            sessions: 0,
            copied: 0,
            primary_io: Vec::new(),
            secondary_io: Vec::new(),
            to_primary: VecDeque::new(),
            to_secondary: VecDeque::new(),
            orders_primary: vec![VecDeque::new(); REACTORS],
            orders_secondary: vec![VecDeque::new(); REACTORS],
            reports_primary: VecDeque::new(),
            frozen: 0,
            preparing: vec![None; REACTORS],
            prepared: VecDeque::new(),
            persists: VecDeque::new(),
            failing_records: 0,
            failing_primary_records: 0,
            primary_fails: false,
            primary_hangs: false,
            disk_round: 0,
            pending_records: VecDeque::new(),
            durable_record: record,
            reading: BTreeMap::new(),
            refused: BTreeMap::new(),
            moments: 0,
            unflushed: false,
            timers: VecDeque::new(),
            connected: false,
            replies: BTreeMap::new(),
            events: Vec::new(),
            stripe_events: Vec::new(),
            log: Vec::new(),
            base,
            tokens: 1000,
            in_flight: BTreeMap::new(),
            newest_acknowledged: Epoch(0),
            own_replies: BTreeMap::new(),
            own_content: BTreeMap::new(),
            hang: false,
            dead: false,
            mismatches: 0,
            zeroes: 0,
            slow: false,
            patience: None,
        }
    }

    fn owner(lba: u64) -> usize {
        usize::from(Geometry::owner_of(lba, DIRTY_BYTES as u32, REACTORS as u16))
    }

    /// A host's write at the primary.
    pub fn write(&mut self, lba: u64, blocks: u32, byte: u8) -> Token {
        self.tokens += 1;
        let token = self.tokens;
        let data = if byte == 0 { Data::Zeroes } else { Data::Bytes(bytes(byte, blocks)) };
        self.in_flight.insert(token, self.newest_acknowledged);
        let command = Command::Write { range: Range::new(lba, blocks), data, fua: false };
        self.with_primary(Self::owner(lba), |machine, out| machine.submit(token, command, out));
        token
    }

    pub fn flush(&mut self, reactor: usize) {
        self.tokens += 1;
        let token = self.tokens;
        self.in_flight.insert(token, self.newest_acknowledged);
        self.with_primary(reactor, |machine, out| machine.submit(token, Command::Flush, out));
    }

    fn with_primary(
        &mut self,
        reactor: usize,
        act: impl FnOnce(&mut PrimaryStripes<Bytes>, &mut Vec<PrimaryOutput<Bytes>>),
    ) {
        let mut out = Vec::new();
        act(&mut self.primary[reactor], &mut out);
        for output in out {
            self.primary_output(reactor, output);
        }
    }

    fn with_secondary(
        &mut self,
        reactor: usize,
        act: impl FnOnce(&mut Secondary, &mut Vec<SecondaryOutput<Bytes>>),
    ) {
        let mut out = Vec::new();
        act(&mut self.secondary[reactor], &mut out);
        for output in out {
            self.secondary_output(reactor, output);
        }
    }

    pub fn with_primary_group(&mut self, act: impl FnOnce(&mut PrimaryGroup, &mut Vec<GroupOutput>)) {
        let mut out = Vec::new();
        act(&mut self.primary_group, &mut out);
        for output in out {
            self.group_output(true, output);
        }
    }

    pub fn with_secondary_group(&mut self, act: impl FnOnce(&mut SecondaryGroup, &mut Vec<GroupOutput>)) {
        let mut out = Vec::new();
        act(&mut self.secondary_group, &mut out);
        for output in out {
            self.group_output(false, output);
        }
    }

    fn io(&mut self, primary: bool, reactor: usize, op: OpId, range: Range, what: What) {
        let writes = matches!(what, What::Write(_) | What::Flush);
        let hangs = if primary { self.primary_hangs && writes } else { self.hang };
        let hung = hangs && self.rng.below(4) == 0;
        let io =
            DiskIo { reactor, op, range, what, executed: None, hung, disk: self.disk_round, failed: false };
        if primary { self.primary_io.push(io) } else { self.secondary_io.push(io) }
    }

    fn primary_output(&mut self, reactor: usize, output: PrimaryOutput<Bytes>) {
        if self.dead {
            return;
        }
        match output {
            PrimaryOutput::CompareRead { op, range, .. } => self.io(true, reactor, op, range, What::Compare),
            PrimaryOutput::CopyRead { op, range } => {
                self.copied += u64::from(range.blocks);
                self.io(true, reactor, op, range, What::Copy);
            }
            PrimaryOutput::VerifyRead { op, range } => self.io(true, reactor, op, range, What::Verify),
            PrimaryOutput::SubmitWrite { op, range, data, .. } => {
                self.launched(reactor, op, range, &data);
                self.io(true, reactor, op, range, What::Write(data));
            }
            PrimaryOutput::SubmitFlush { op } => self.io(true, reactor, op, Range::new(0, 0), What::Flush),
            PrimaryOutput::Send { op, lane, forward, .. } => {
                if !self.connected {
                    return;
                }
                if let ForwardBody::Write { range, data, .. } = &forward.body {
                    self.launched(reactor, op, *range, data);
                }
                if let Some(&before) = self.in_flight.get(&self.primary[reactor].token_of(op)) {
                    assert!(forward.epoch >= before, "a write is cut off from what it depends on");
                }
                if let ForwardBody::Write { range, data: Data::Zeroes, .. } = &forward.body {
                    self.zeroes += u64::from(range.blocks);
                }
                let link = &mut self.links[reactor * REACTORS + usize::from(lane)];
                let sequence = link.out.send(op);
                link.data.push_back((sequence, forward));
            }
            PrimaryOutput::HostRead { op, range, into } => {
                self.io(true, reactor, op, range, What::HostRead(into));
            }
            PrimaryOutput::Reply { token, result } => self.replied(token, result),
            PrimaryOutput::Event(StripeEvent::DiskFailed(failure)) => {
                self.with_primary_group(|group, out| group.disk_failed(0, failure, out));
            }
            PrimaryOutput::Event(StripeEvent::Filled) => {
                self.with_primary_group(|group, out| group.filled(0, out));
            }
            PrimaryOutput::Event(StripeEvent::FillFailed) => {
                self.with_primary_group(|group, out| group.replacement_failed(0, None, out));
            }
            PrimaryOutput::Event(StripeEvent::CopyFinished) => {
                self.with_primary_group(|group, out| group.copied(out));
            }
            PrimaryOutput::Event(StripeEvent::Extended) => {
                self.with_primary_group(|group, out| group.extended(0, out));
            }
            PrimaryOutput::Event(event) => {
                self.stripe_events.push(event);
                self.with_primary_group(|group, out| group.event(event, out));
            }
        }
    }

    /// A host's write goes out, to the disk, to the peer, or both.
    fn launched(&mut self, reactor: usize, op: OpId, range: Range, data: &Data<Bytes>) {
        let epoch = self.primary[reactor].epoch();
        let token = self.primary[reactor].token_of(op);
        if token != 0 && !self.log.iter().any(|entry| entry.token == token) {
            let data = data.clone();
            self.log.push(Logged { epoch, range, data, token, acknowledged: false, acknowledged_at: 0 });
        }
    }

    fn replied(&mut self, token: Token, result: Result<(), Refusal>) {
        assert!(self.in_flight.remove(&token).is_some(), "one reply for every command");
        self.moments += 1;
        let reading = self.reading.remove(&token);
        match (result, reading) {
            (Err(refusal), _) => {
                self.refused.insert(token, refusal);
            }
            (Ok(()), None) => self.acknowledged(token),
            (Ok(()), Some(reading)) => self.check_read(&reading),
        }
    }

    /// A read returns the last acknowledged or an in-flight write.
    fn check_read(&self, reading: &Reading) {
        for (at, &found) in reading.into.to_vec().iter().enumerate() {
            let lba = reading.range.lba + at as u64;
            let mut allowed = vec![self.base[lba as usize]];
            for entry in self.log.iter().filter(|entry| entry.range.overlaps(Range::new(lba, 1))) {
                if entry.acknowledged && entry.acknowledged_at <= reading.since {
                    allowed.clear();
                }
                allowed.push(byte_of(entry, lba));
            }
            assert!(allowed.contains(&found), "block {lba} reads {found:#x}, allowed {allowed:x?}");
        }
    }

    /// A host's read that arrives at this reactor.
    pub fn read(&mut self, reactor: usize, lba: u64, blocks: u32) {
        self.tokens += 1;
        let (token, range, into) = (self.tokens, Range::new(lba, blocks), bytes(0xEE, blocks));
        self.reading.insert(token, Reading { range, into: into.clone(), since: self.moments });
        self.in_flight.insert(token, self.newest_acknowledged);
        if self.primary[reactor].reads_disk() {
            self.io(true, reactor, OpId(0), range, What::Direct(token, into));
        } else {
            self.ask_owner(token, range, into);
        }
    }

    fn ask_owner(&mut self, token: Token, range: Range, into: Bytes) {
        let command = Command::Read { range, into };
        self.with_primary(Self::owner(range.lba), |machine, out| machine.submit(token, command, out));
    }

    /// Writes `byte` if the block has `old` still.
    pub fn compare_and_write(&mut self, lba: u64, old: u8, byte: u8) -> Token {
        self.tokens += 1;
        let (token, range) = (self.tokens, Range::new(lba, 1));
        self.in_flight.insert(token, self.newest_acknowledged);
        let (compare, data, scratch) = (bytes(old, 1), bytes(byte, 1), bytes(0, 1));
        let command = Command::CompareAndWrite { range, compare, data, scratch, fua: false };
        self.with_primary(Self::owner(lba), |machine, out| machine.submit(token, command, out));
        token
    }

    /// Another disk is put below the primary's volume, with what nobody wants.
    pub fn replace_disk(&mut self, command: u64) {
        self.disk_round += 1;
        (self.primary_fails, self.primary_hangs) = (false, false);
        self.primary_disk.0.fill(0xDD);
        self.with_primary_group(|group, out| group.disk_attach(command, 0, out));
    }

    /// Time passes at the primary, for what waits for a peer.
    pub fn disk_tick(&mut self, patience: u32) {
        for reactor in 0..REACTORS {
            self.with_primary(reactor, |machine, out| machine.disk_tick(patience, patience, out));
        }
    }

    fn acknowledged(&mut self, token: Token) {
        let now = self.moments;
        for entry in &mut self.log {
            if entry.token == token {
                entry.acknowledged = true;
                entry.acknowledged_at = now;
                self.newest_acknowledged = self.newest_acknowledged.max(entry.epoch);
            }
        }
    }

    fn secondary_output(&mut self, reactor: usize, output: SecondaryOutput<Bytes>) {
        match output {
            SecondaryOutput::PreserveRead { op, range } => self.io(false, reactor, op, range, What::Preserve),
            SecondaryOutput::Journal { .. } => panic!("there is no journal"),
            SecondaryOutput::ViewRead { op, range, into } => {
                self.io(false, reactor, op, range, What::View(into));
            }
            SecondaryOutput::BaseRead { op, range } => self.io(false, reactor, op, range, What::Base),
            SecondaryOutput::VerifyRead { op, range } => self.io(false, reactor, op, range, What::Verify),
            SecondaryOutput::SubmitWrite { op, range, data, .. } => {
                let clash = self
                    .secondary_io
                    .iter()
                    .any(|io| io.range.overlaps(range) && matches!(io.what, What::Write(_) | What::Preserve));
                assert!(!clash, "two writes, or a write and its copy-before-write, at once");
                self.io(false, reactor, op, range, What::Write(data));
            }
            SecondaryOutput::SubmitFlush { op } => self.io(false, reactor, op, Range::new(0, 0), What::Flush),
            SecondaryOutput::Answer { lane, sequence, answer } => {
                self.links[usize::from(lane) * REACTORS + reactor].incoming.end(sequence, answer);
            }
            SecondaryOutput::ReadData { .. } if !self.connected => {}
            SecondaryOutput::ReadData { lane, sequence, range, content } => {
                let link = &mut self.links[usize::from(lane) * REACTORS + reactor];
                link.read_data.push_back((sequence, range, content));
            }
            SecondaryOutput::Reply { token, result } => {
                assert!(self.own_replies.insert(token, result).is_none(), "one reply for every command");
            }
            SecondaryOutput::Prepared { epoch, result } => self.prepared.push_back((epoch, result)),
            SecondaryOutput::Event(StripeEvent::Drained) => {
                self.with_secondary_group(|group, out| group.drained(out));
            }
            SecondaryOutput::Event(event) => {
                self.stripe_events.push(event);
                self.with_secondary_group(|group, out| group.event(event, out));
            }
        }
    }

    fn group_output(&mut self, primary: bool, output: GroupOutput) {
        match output {
            GroupOutput::ToStripes(order) => {
                let queues = if primary { &mut self.orders_primary } else { &mut self.orders_secondary };
                queues.iter_mut().for_each(|queue| queue.push_back(order.clone()));
            }
            GroupOutput::Send(message) if self.connected => {
                if primary { &mut self.to_secondary } else { &mut self.to_primary }.push_back(message);
            }
            GroupOutput::Send(_) => {}
            GroupOutput::Connect => self.connect(),
            // The test mends the link.
            GroupOutput::Reconnect => {}
            GroupOutput::Disconnect => self.cut_link(),
            GroupOutput::PersistRecord(record, bytes) => {
                if primary {
                    self.pending_records.push_back(record);
                }
                self.sizes(primary).pending = bytes[0] / BLOCK_BYTES;
                self.persists.push_back(primary);
            }
            GroupOutput::Resize { bytes, .. } => self.resized(primary, bytes / BLOCK_BYTES),
            GroupOutput::ArmTimer { armed, .. } => self.timers.push_back((primary, armed)),
            GroupOutput::Reply { command, result } => {
                assert!(self.replies.insert(command, result).is_none(), "one reply for every command");
            }
            GroupOutput::Event(event) => self.events.push(event),
        }
    }

    fn sizes(&mut self, primary: bool) -> &mut Sizes {
        if primary { &mut self.primary_sizes } else { &mut self.secondary_sizes }
    }

    /// The hosts of a node are told of a new size.
    fn resized(&mut self, primary: bool, blocks: u64) {
        let recorded = self.sizes(primary).recorded;
        assert_eq!(recorded, blocks, "what hosts are told is recorded");
        if primary && blocks > self.primary_sizes.volume {
            assert!(self.secondary_sizes.volume >= blocks, "the secondary took it on before");
            let new = self.primary_sizes.volume as usize..blocks as usize;
            assert_eq!(self.primary_disk.0[new.clone()], self.base[new], "nobody wrote there before");
        }
        self.sizes(primary).volume = blocks;
    }

    /// The disks' sizes, and what is in their new parts.
    pub fn grow_disk(&mut self, primary: bool, blocks: u64, byte: u8) {
        let disk = if primary { &mut self.primary_disk } else { &mut self.secondary_disk };
        let from = disk.0.len() as u64;
        disk.0.extend((from..blocks).map(|lba| byte ^ lba as u8));
        let bytes = blocks * BLOCK_BYTES;
        if primary {
            self.base = [&self.base[..from as usize], &self.primary_disk.0[from as usize..]].concat();
            self.with_primary_group(|group, out| group.disk_resized(0, bytes, out));
        } else {
            self.with_secondary_group(|group, out| group.disk_resized(0, bytes, out));
        }
    }

    fn connect(&mut self) {
        if !self.secondary_group.accepts() {
            return;
        }
        let disk_of = |disk: &Disk| disk.0.len() as u64 * BLOCK_BYTES;
        let sizes = |sizes: &Sizes, disk: &Disk| VolumeSize {
            volume_bytes: sizes.volume * BLOCK_BYTES,
            disk_bytes: disk_of(disk),
        };
        let here = sizes(&self.primary_sizes, &self.primary_disk);
        let there = sizes(&self.secondary_sizes, &self.secondary_disk);
        assert!(there.disk_bytes >= here.volume_bytes, "the handshake never refuses a legal pair");
        // Connections reach a reactor behind the orders that it was given before.
        for reactor in 0..REACTORS {
            while !self.orders_primary[reactor].is_empty() {
                self.order_primary(reactor);
            }
            while !self.orders_secondary[reactor].is_empty() {
                self.order_secondary(reactor);
            }
        }
        self.links.iter_mut().for_each(|link| *link = Link::default());
        self.connected = true;
        self.agreed_bytes = here.volume_bytes;
        self.secondary_group.connected(&[here.volume_bytes]);
        let record = self.secondary_group.record();
        self.sessions += 1;
        let greeting = Greeting {
            newest: record.newest,
            generation: record.generation,
            lanes: REACTORS as u16,
            lineage: record.lineage,
            past: self.secondary_group.record().past,
            consistent: !self.secondary_group.record().inconsistent,
            restarted: self.secondary_group.is_restarted(),
            session: self.sessions,
        };
        self.with_primary_group(|group, out| group.connected(&greeting, &[there], out));
    }

    /// The way to the peer is free again: who seeks it finds it.
    pub fn mend_link(&mut self) {
        if self.primary_group.wants_peer() && !self.connected {
            self.connect();
        }
    }

    /// What is marked as differing, in blocks.
    pub fn marked(&self) -> u64 {
        self.primary.iter().map(|machine| machine.dirty().bytes() / BLOCK_BYTES).sum()
    }

    pub fn allow_copy(&mut self, blocks: Option<u64>) {
        for reactor in 0..REACTORS {
            let bytes = blocks.map(|blocks| blocks * BLOCK_BYTES);
            self.with_primary(reactor, |machine, out| machine.allow_copy(bytes, out));
        }
    }

    /// The connections break; what was on the way is gone.
    pub fn cut_link(&mut self) {
        if !std::mem::take(&mut self.connected) {
            return;
        }
        self.to_primary.clear();
        self.to_secondary.clear();
        self.preparing.iter_mut().for_each(|preparing| *preparing = None);
        self.prepared.clear();
        for link in &mut self.links {
            link.data.clear();
            link.answers.clear();
            link.read_data.clear();
        }
        self.with_primary_group(|group, out| group.disconnected(out));
        self.with_secondary_group(|group, out| group.disconnected(out));
    }

    /// The secondary's group comes back with what its record holds.
    pub fn restart_secondary_group(&mut self) {
        let config =
            SecondaryGroupConfig { reactors: REACTORS as u16, buffer: true, failover_timeout_ms: 1000 };
        let sizes: Vec<VolumeSize> = self.secondary_group.sizes().collect();
        let record = GroupRecord { lineage: Lineage(0), ..self.secondary_group.record() };
        self.secondary_group = SecondaryGroup::new(config, record, &sizes);
    }

    /// The secondary node loses power and comes back: its memory is gone, and any part of what its disk had not flushed.
    pub fn restart_secondary(&mut self) {
        self.cut_link();
        self.secondary_io.clear();
        self.persists.retain(|&primary| primary);
        self.orders_secondary.iter_mut().for_each(VecDeque::clear);
        for lba in 0..self.secondary_disk.0.len() {
            if self.rng.below(2) == 0 {
                self.secondary_disk.0[lba] = self.secondary_durable.0[lba];
            }
        }
        let record = self.secondary_group.record();
        let sizes: Vec<VolumeSize> = self.secondary_group.sizes().collect();
        let config =
            SecondaryGroupConfig { reactors: REACTORS as u16, buffer: true, failover_timeout_ms: 1000 };
        self.secondary_group = SecondaryGroup::new(config, record, &sizes);
        for owner in 0..REACTORS {
            let geometry = geometry(self.secondary_sizes.volume, owner);
            let config = SecondaryConfig { geometry, buffer: true, journal: false, hung_ticks: 3 };
            let maps = Maps::new(geometry, 1000);
            self.secondary[owner] = SecondaryStripes::new(config, maps, record.generation, record.committed);
        }
        self.own_content.clear();
    }

    /// The primary node dies: nothing of it goes on.
    pub fn kill_primary(&mut self) {
        self.dead = true;
        self.cut_link();
        self.primary_io.clear();
        self.orders_primary.iter_mut().for_each(VecDeque::clear);
    }

    fn order_primary(&mut self, reactor: usize) {
        let Some(order) = self.orders_primary[reactor].pop_front() else { return };
        match order {
            ToStripes::LinkUp(session) => {
                self.with_primary(reactor, |machine, out| machine.link_up(session, out));
            }
            ToStripes::LinkDown => self.with_primary(reactor, |machine, out| machine.link_down(out)),
            ToStripes::Freeze => {
                self.primary[reactor].freeze();
                self.frozen += 1;
            }
            ToStripes::Stamp { next, preserve } => {
                let lasts = (0..REACTORS).map(|lane| Last {
                    primary_reactor: reactor as u16,
                    secondary_reactor: lane as u16,
                    sequence: self.links[reactor * REACTORS + lane].out.last(),
                });
                self.reports_primary.push_back(lasts.collect());
                self.with_primary(reactor, |machine, out| machine.stamp(next, preserve, out));
            }
            ToStripes::Thaw => self.with_primary(reactor, |machine, out| machine.thaw(out)),
            ToStripes::GoAlone => self.with_primary(reactor, |machine, out| machine.go_alone(out)),
            ToStripes::StartCopy { only_dirty } => {
                self.with_primary(reactor, |machine, out| machine.start_copy(only_dirty, out));
            }
            ToStripes::Suspend => self.with_primary(reactor, |machine, out| machine.suspend(out)),
            ToStripes::KeepDisk => self.with_primary(reactor, |machine, out| machine.keep_disk(out)),
            ToStripes::Detach { .. } => self.with_primary(reactor, |machine, out| machine.detach(true, out)),
            ToStripes::Fill { .. } => self.with_primary(reactor, |machine, out| machine.fill(out)),
            ToStripes::AttachDisk { leans, .. } => {
                self.with_primary(reactor, |machine, out| machine.attach(true, leans, out));
            }
            ToStripes::PeerRestarted => self.primary[reactor].peer_restarted(),
            ToStripes::Fence => self.with_primary(reactor, |machine, out| machine.fence(out)),
            ToStripes::Verify { round, .. } => {
                self.with_primary(reactor, |machine, out| machine.start_verify(round, u32::MAX, out));
            }
            ToStripes::VerifyStop => self.with_primary(reactor, |machine, out| machine.cancel_verify(out)),
            ToStripes::Extend { bytes, .. } => {
                self.with_primary(reactor, |machine, out| machine.extend(bytes / BLOCK_BYTES, out));
            }
            ToStripes::Resize { bytes, .. } => self.primary[reactor].resize(bytes / BLOCK_BYTES),
            _ => {}
        }
    }

    fn order_secondary(&mut self, reactor: usize) {
        let Some(order) = self.orders_secondary[reactor].pop_front() else { return };
        let mut ok = None;
        match order {
            ToStripes::LinkDown => self.secondary[reactor].link_down(),
            ToStripes::Begin { generation, base, volume_bytes, originals } => {
                assert_eq!(volume_bytes, [self.agreed_bytes], "the primary's size counts");
                self.secondary[reactor].begin(generation, base, volume_bytes[0] / BLOCK_BYTES, originals);
                if originals != Originals::Kept {
                    self.own_content.retain(|&lba, _| Self::owner(lba) != reactor);
                }
                ok = Some(true);
            }
            ToStripes::Prepare { epoch, lasts } => self.preparing[reactor] = Some((epoch, lasts)),
            ToStripes::Settle { epoch } if self.preparing[reactor].is_none() => {
                self.with_secondary(reactor, |machine, out| machine.settle(epoch, out));
            }
            ToStripes::Commit { epoch } => {
                self.with_secondary(reactor, |machine, out| machine.commit(epoch, out));
                self.own_content.retain(|&lba, _| Self::owner(lba) != reactor);
                self.secondary_group.moved(self.secondary[reactor].take_moved_bytes());
                ok = Some(true);
            }
            ToStripes::History { from } => self.secondary[reactor].set_history(from),
            ToStripes::HoldPast { epoch } => ok = Some(self.secondary[reactor].hold_past(epoch)),
            ToStripes::RollBack { epoch } => {
                let mut result = Ok(());
                self.with_secondary(reactor, |machine, out| result = machine.roll_back_to(epoch, out));
                ok = Some(result.is_ok());
            }
            ToStripes::Extend { bytes, .. } => {
                ok = Some(self.secondary[reactor].extend(bytes / BLOCK_BYTES).is_ok());
            }
            ToStripes::Resize { bytes, .. } => {
                self.secondary[reactor].resize(bytes / BLOCK_BYTES);
                ok = Some(true);
            }
            ToStripes::Abort => self.secondary[reactor].abort(),
            ToStripes::LoseThrough(epoch) => {
                self.with_secondary(reactor, |machine, out| machine.lose_through(epoch, out));
            }
            ToStripes::Hold { keep, .. } => ok = Some(self.secondary[reactor].hold_promise(keep)),
            ToStripes::Release => self.secondary[reactor].release_promise(),
            ToStripes::Promote { keep, generation } => {
                let mut result = Ok(());
                self.with_secondary(reactor, |machine, out| result = machine.promote(keep, generation, out));
                self.secondary_group.moved(self.secondary[reactor].take_moved_bytes());
                ok = Some(result.is_ok());
            }
            _ => {}
        }
        if let Some(ok) = ok {
            self.with_secondary_group(|group, out| group.done(ok, out));
        }
    }

    /// The disk takes or gives the data, or the completion arrives.
    fn disk(&mut self, primary: bool, at: usize) {
        let (ios, disk) = if primary {
            (&mut self.primary_io, &mut self.primary_disk)
        } else {
            (&mut self.secondary_io, &mut self.secondary_disk)
        };
        let io = &mut ios[at];
        if io.executed.is_none() {
            io.executed = Some(disk.read(io.range));
            if primary && (self.primary_fails || io.disk != self.disk_round) {
                io.failed = true;
                if let (What::Write(Data::Bytes(data)), true) = (&io.what, io.disk == self.disk_round) {
                    // A part of it may be there all the same.
                    let torn = Data::Bytes(data.slice(0, 1));
                    disk.write(Range::new(io.range.lba, 1), &torn);
                }
                return;
            }
            match &io.what {
                What::Write(data) => {
                    disk.write(io.range, data);
                    self.unflushed |= !primary;
                }
                What::Flush if !primary => {
                    self.unflushed = false;
                    self.secondary_durable.clone_from(disk);
                }
                _ => {}
            }
            return;
        }
        let DiskIo { reactor, op, range, what, executed, failed, .. } = ios.swap_remove(at);
        if failed {
            return self.failed_here(reactor, op, range, what);
        }
        let content = executed.unwrap_or(bytes(0, 0));
        match (primary, what) {
            (true, What::Write(_) | What::Flush) => {
                self.with_primary(reactor, |machine, out| machine.local_done(op, true, out));
            }
            (true, What::HostRead(into)) => {
                into.put(0, &content.to_vec());
                self.with_primary(reactor, |machine, out| machine.host_read(op, true, out));
            }
            (true, What::Direct(token, into)) => {
                into.put(0, &content.to_vec());
                self.replied(token, Ok(()));
            }
            (true, What::Compare) => {
                self.with_primary(reactor, |machine, out| machine.compare_read(op, Some(&content), out));
            }
            (true, What::Verify) => {
                self.with_primary(reactor, |machine, out| machine.verify_read(op, Some(&content), out));
            }
            (false, What::Verify) => {
                self.with_secondary(reactor, |machine, out| machine.verify_read(op, Some(&content), out));
            }
            (true, _) => self.with_primary(reactor, |machine, out| machine.copy_read(op, Some(content), out)),
            (false, What::Write(_)) => {
                self.with_secondary(reactor, |machine, out| machine.write_done(op, true, out));
            }
            (false, What::Flush) => {
                self.with_secondary(reactor, |machine, out| machine.flush_done(op, true, out));
            }
            (false, What::Preserve) => {
                self.with_secondary(reactor, |machine, out| {
                    machine.preserve_read(op, range, Some(&content), out);
                });
            }
            (false, What::Base) => {
                self.with_secondary(reactor, |machine, out| machine.base_read(op, range, Some(content), out));
            }
            (false, What::View(into)) => {
                into.put(0, &content.to_vec());
                self.with_secondary(reactor, |machine, out| machine.view_read(op, range, true, None, out));
            }
            (false, What::Compare | What::Copy | What::HostRead(_) | What::Direct(..)) => {}
        }
    }

    /// The primary's disk failed something.
    fn failed_here(&mut self, reactor: usize, op: OpId, range: Range, what: What) {
        match what {
            What::Direct(token, into) => self.ask_owner(token, range, into),
            What::Compare => self.with_primary(reactor, |machine, out| machine.compare_read(op, None, out)),
            What::Copy => self.with_primary(reactor, |machine, out| machine.copy_read(op, None, out)),
            What::Verify => self.with_primary(reactor, |machine, out| machine.verify_read(op, None, out)),
            What::HostRead(_) => {
                self.with_primary(reactor, |machine, out| machine.host_read(op, false, out));
            }
            _ => self.with_primary(reactor, |machine, out| machine.local_done(op, false, out)),
        }
    }

    fn link_read_data(&mut self, at: usize) {
        let Some((sequence, range, content)) = self.links[at].read_data.pop_front() else { return };
        let mut asked = None;
        let known = self.links[at].out.ended(sequence, 1, |answered| {
            if let Answered::Ended(op) = answered {
                asked = Some(op);
            }
        });
        let op = asked.filter(|_| known).expect("what was asked for");
        assert_eq!(content.to_vec().len(), range.blocks as usize);
        let mut sensible = false;
        self.with_primary(at / REACTORS, |machine, out| sensible = machine.read_data(op, content, out));
        assert!(sensible, "the primary waits for it");
    }

    fn link_data(&mut self, at: usize) {
        let Some((sequence, forward)) = self.links[at].data.pop_front() else { return };
        let (from, to) = (at / REACTORS, at % REACTORS);
        assert!(self.links[at].incoming.arrive(sequence));
        self.with_secondary(to, |machine, out| machine.forwarded(from as Lane, sequence, forward, out));
    }

    fn link_report(&mut self, at: usize) {
        let link = &mut self.links[at];
        let mut runs = Vec::new();
        let received = link.incoming.report(4, |run| runs.push(run));
        link.answers.push_back((received, runs));
    }

    fn link_answer(&mut self, at: usize) {
        let Some((received, runs)) = self.links[at].answers.pop_front() else { return };
        let reactor = at / REACTORS;
        let mut answers = Vec::new();
        assert!(self.links[at].out.received_through(received, |answer| answers.push((answer, None))));
        for run in runs {
            let ended = Some(run.status);
            assert!(self.links[at].out.ended(run.first, run.count, |answer| answers.push((answer, ended))));
        }
        for (answer, ended) in answers {
            self.mismatches += usize::from(ended == Some(Answer::Compared(Verdict::Differs)));
            self.with_primary(reactor, |machine, out| match (answer, ended) {
                (Answered::Received(op), _) => machine.received(op, out),
                (Answered::Ended(_), Some(Answer::Failed(refusal))) => {
                    machine.peer_refused(Range::new(0, 0), refusal, out);
                }
                (Answered::Ended(op), Some(Answer::Compared(verdict))) => {
                    assert!(machine.compared(op, verdict, out), "it was sent to be compared");
                }
                (Answered::Ended(op), _) => machine.applied(op, out),
            });
        }
    }

    /// One thing happens; `false` when nothing can (but time).
    pub fn step(&mut self) -> bool {
        let mut choices: Vec<(u8, usize)> = Vec::new();
        let all =
            |choices: &mut Vec<(u8, usize)>, kind, count| (0..count).for_each(|at| choices.push((kind, at)));
        (0..self.primary_io.len())
            .filter(|&at| !self.primary_io[at].hung)
            .for_each(|at| choices.push((0, at)));
        (0..self.secondary_io.len())
            .filter(|&at| !self.secondary_io[at].hung)
            .for_each(|at| choices.push((1, at)));
        for at in 0..self.links.len() {
            let link = &self.links[at];
            if !link.data.is_empty() && !self.slow {
                choices.extend([(2, at); 2]);
            }
            if link.incoming.has_news() && self.connected {
                choices.push((3, at));
            }
            if !link.answers.is_empty() {
                choices.push((4, at));
            }
            if !link.read_data.is_empty() {
                choices.push((15, at));
            }
        }
        for at in 0..REACTORS {
            if !self.orders_primary[at].is_empty() {
                choices.push((5, at));
            }
            if !self.orders_secondary[at].is_empty() {
                choices.push((6, at));
            }
            if self.primary[at].wants_to_verify() && !self.dead {
                choices.push((14, at));
            }
            if let Some((_, lasts)) = &self.preparing[at]
                && lasts.iter().all(|last| {
                    let link = usize::from(last.primary_reactor) * REACTORS + at;
                    usize::from(last.secondary_reactor) != at
                        || self.links[link].incoming.arrived() >= last.sequence
                })
            {
                choices.push((7, at));
            }
        }
        all(&mut choices, 8, self.to_primary.len().min(1));
        all(&mut choices, 9, self.to_secondary.len().min(1));
        all(&mut choices, 10, self.frozen.min(1));
        all(&mut choices, 11, self.reports_primary.len().min(1));
        all(&mut choices, 12, self.prepared.len().min(1));
        all(&mut choices, 13, self.persists.len().min(1));
        if choices.is_empty() {
            return false;
        }
        let (kind, at) = choices[self.rng.below(choices.len())];
        match kind {
            0 => self.disk(true, at),
            1 => self.disk(false, at),
            2 => self.link_data(at),
            3 => self.link_report(at),
            4 => self.link_answer(at),
            15 => self.link_read_data(at),
            5 => self.order_primary(at),
            6 => self.order_secondary(at),
            7 => {
                if let Some((epoch, _)) = self.preparing[at].take() {
                    self.with_secondary(at, |machine, out| machine.prepare(epoch, out));
                }
            }
            8 => {
                if let Some(message) = self.to_primary.pop_front() {
                    self.with_primary_group(|group, out| group.message(message, out));
                }
            }
            9 => {
                if let Some(message) = self.to_secondary.pop_front() {
                    self.with_secondary_group(|group, out| group.message(message, out));
                }
            }
            10 => {
                self.frozen -= 1;
                self.with_primary_group(|group, out| group.frozen(out));
            }
            11 => {
                if let Some(lasts) = self.reports_primary.pop_front() {
                    self.with_primary_group(|group, out| group.stamped(lasts, out));
                }
            }
            14 => self.with_primary(at, |machine, out| machine.verify_tick(BLOCK_BYTES, out)),
            12 => {
                if let Some((epoch, result)) = self.prepared.pop_front() {
                    self.with_secondary_group(|group, out| group.prepared(epoch, result, out));
                }
            }
            _ => {
                let Some(primary) = self.persists.pop_front() else { return true };
                if !primary && self.failing_records > 0 {
                    self.failing_records -= 1;
                    self.with_secondary_group(|group, out| group.persisted(false, out));
                    return true;
                }
                let record = if primary { self.pending_records.pop_front() } else { None };
                if primary && self.failing_primary_records > 0 {
                    self.failing_primary_records -= 1;
                    self.with_primary_group(|group, out| group.persisted(false, out));
                    return true;
                }
                self.durable_record = record.unwrap_or(self.durable_record);
                let sizes = self.sizes(primary);
                sizes.recorded = sizes.pending;
                if primary {
                    self.with_primary_group(|group, out| group.persisted(true, out));
                } else {
                    self.with_secondary_group(|group, out| group.persisted(true, out));
                }
            }
        }
        true
    }

    pub fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.step() {
                break;
            }
        }
    }

    /// Until nothing moves, time passing so that hung I/O is pinned.
    pub fn settle(&mut self) {
        for _ in 0..8 {
            let mut budget = 200_000;
            while self.step() {
                budget -= 1;
                assert!(budget > 0, "it never comes to rest");
            }
            self.tick();
        }
        while self.step() {}
    }

    pub fn tick(&mut self) {
        for reactor in 0..REACTORS {
            self.with_secondary(reactor, |machine, out| machine.tick(out));
            if let Some(patience) = self.patience.filter(|_| !self.dead) {
                self.with_primary(reactor, |machine, out| machine.watch_peer(patience, out));
            }
        }
    }

    /// Every armed timer goes off; the machines ignore those that were cancelled.
    pub fn expire(&mut self, peer: Peer) {
        for (primary, armed) in std::mem::take(&mut self.timers) {
            if primary {
                self.with_primary_group(|group, out| group.timer(armed, peer, out));
            } else {
                self.with_secondary_group(|group, out| group.timer(armed, out));
            }
        }
    }

    /// Whether the secondary's disk holds a write.
    pub fn is_hung(&self) -> bool {
        self.secondary_io.iter().any(|io| io.hung && matches!(io.what, What::Write(_)))
    }

    /// The primary's disks give back what they held.
    pub fn heal_primary(&mut self) {
        self.primary_hangs = false;
        self.primary_io.iter_mut().for_each(|io| io.hung = false);
    }

    /// Disks give back what they held.
    pub fn heal(&mut self) {
        self.hang = false;
        self.secondary_io.iter_mut().for_each(|io| io.hung = false);
    }

    /// The secondary VM writes.
    pub fn own_write(&mut self, lba: u64, blocks: u32, byte: u8) -> Token {
        self.tokens += 1;
        let token = self.tokens;
        let command = Command::Write {
            range: Range::new(lba, blocks),
            data: Data::Bytes(bytes(byte, blocks)),
            fua: false,
        };
        self.with_secondary(Self::owner(lba), |machine, out| machine.submit(token, command, out));
        token
    }

    pub fn note_own(&mut self, lba: u64, blocks: u32, byte: u8) {
        (lba..lba + u64::from(blocks)).for_each(|lba| {
            self.own_content.insert(lba, byte);
        });
    }

    /// The whole volume as the secondary's hosts see it, once everything has come to rest; `None` where it has no view.
    pub fn view(&mut self) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        let end = self.secondary_sizes.volume;
        for lba in (0..end).step_by(64) {
            self.tokens += 1;
            let blocks = (end - lba).min(64) as u32;
            let (token, reactor, range) = (self.tokens, Self::owner(lba), Range::new(lba, blocks));
            let buffer = bytes(0, blocks);
            let into = buffer.clone();
            self.with_secondary(reactor, |machine, out| {
                machine.submit(token, Command::Read { range, into }, out);
            });
            let mut budget = 10_000;
            while !self.own_replies.contains_key(&token) && budget > 0 {
                if !self.step() {
                    break;
                }
                budget -= 1;
            }
            self.own_replies.remove(&token)?.ok()?;
            content.extend(buffer.to_vec());
        }
        Some(content)
    }

    /// The whole volume as it was at the end of an epoch; `None` where that is not kept.
    pub fn past(&mut self, epoch: Epoch) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        let end = self.secondary_sizes.volume;
        for lba in (0..end).step_by(64) {
            self.tokens += 1;
            let blocks = (end - lba).min(64) as u32;
            let (token, reactor, range) = (self.tokens, Self::owner(lba), Range::new(lba, blocks));
            let into = bytes(0, blocks);
            let buffer = into.clone();
            self.with_secondary(reactor, |machine, out| machine.read_past(token, epoch, range, into, out));
            while !self.own_replies.contains_key(&token) && self.step() {}
            self.own_replies.remove(&token)?.ok()?;
            content.extend(buffer.to_vec());
        }
        Some(content)
    }

    /// What the primary had launched through the epoch, as far as the secondary's volume goes.
    pub fn content_at(&self, epoch: Epoch) -> Vec<u8> {
        let mut disk = Disk(self.base.clone());
        let end = self.secondary_sizes.volume as usize;
        for entry in self.log.iter().filter(|entry| entry.epoch <= epoch) {
            disk.write(entry.range, &entry.data);
        }
        disk.0.truncate(end);
        disk.0
    }

    pub fn content_with_own(&self, epoch: Epoch) -> Vec<u8> {
        let mut content = self.content_at(epoch);
        for (&lba, &byte) in &self.own_content {
            content[lba as usize] = byte;
        }
        content
    }

    /// Whether the content has every acknowledged write, and nothing that was never written or is older.
    pub fn has_all_acknowledged(&self, content: &[u8]) -> Result<(), String> {
        for lba in 0..self.primary_sizes.volume {
            let mut allowed = vec![self.base[lba as usize]];
            for entry in self.log.iter().filter(|entry| entry.range.overlaps(Range::new(lba, 1))) {
                let byte = byte_of(entry, lba);
                if entry.acknowledged {
                    allowed.clear();
                }
                allowed.push(byte);
            }
            if !allowed.contains(&content[lba as usize]) {
                return Err(format!("block {lba} is {:#x}, allowed {allowed:x?}", content[lba as usize]));
            }
        }
        Ok(())
    }

    /// The secondary's disk changes a block by itself.
    pub fn rot(&mut self, lba: u64) {
        self.secondary_disk.0[lba as usize] ^= 0x55;
    }

    /// Blocks behind the volume's end that are marked.
    pub fn marked_behind(&self) -> Vec<u64> {
        let end = self.primary_disk.0.len() as u64;
        let marked = |&lba: &u64| self.primary[Self::owner(lba)].dirty().is_dirty(Range::new(lba, 1));
        (self.primary_sizes.volume..end).filter(marked).collect()
    }

    /// Blocks in which the disks differ and that nobody marked.
    pub fn unmarked_differences(&self) -> Vec<u64> {
        (0..self.primary_sizes.volume)
            .filter(|&lba| {
                let range = Range::new(lba, 1);
                self.primary_disk.read(range) != self.secondary_disk.read(range)
                    && !self.primary[Self::owner(lba)].dirty().is_dirty(range)
            })
            .collect()
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }
}
