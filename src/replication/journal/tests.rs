//! A ring, a disk and a record that lose power at any instant: what the journal leads back to is compared with a model.
//! The journal's write that is under way may be there in any part; the disk may have kept or lost any sector of what was
//! not flushed.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::area::{Area, Request};
use super::format::{BATCH_BYTES, BLOCK_BYTES, Head, Header, Ring};
use super::replay::{Disks, Medium, RollBack, Undone, Unrecoverable};
use crate::env::{Buf, SgList};
use crate::replication::Epoch;
use crate::replication::core::Journaled;

const GRANULES: usize = 24;
const SECTOR: usize = 512;
const HEADER: Header = Header {
    group: Uuid::from_u128(1),
    journal: Uuid::from_u128(2),
    formatted: 1,
    areas: 1,
    area_bytes: 24 * BLOCK_BYTES as u64,
};

struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit.max(1) as u64) as usize
    }
}

struct Bytes(Vec<u8>);

impl Medium for Bytes {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let at = at as usize;
        into.copy_from_slice(self.0.get(at..at + into.len()).ok_or("behind the end")?);
        Ok(())
    }
}

/// A disk of one volume with a cache that a loss of power takes away, or not, sector by sector.
struct Disk {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// What each sector was meant to have since the last flush.
    versions: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Originals that it takes before it fails.
    takes: Option<usize>,
}

impl Disk {
    fn put(&mut self, at: usize, content: &[u8]) {
        for (index, sector) in content.chunks(SECTOR).enumerate() {
            self.versions.entry(at / SECTOR + index).or_default().push(sector.to_vec());
        }
        self.cached[at..at + content.len()].copy_from_slice(content);
    }

    fn lose_power(&mut self, rng: &mut Rng) {
        for (sector, versions) in std::mem::take(&mut self.versions) {
            let kept = rng.below(versions.len() + 1);
            if let Some(version) = versions.get(kept) {
                self.durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(version);
            }
        }
        self.cached = self.durable.clone();
    }
}

impl Disks for Disk {
    fn size_bytes(&self, volume: u16) -> Option<u64> {
        (volume == 0).then_some(self.cached.len() as u64)
    }

    fn write(&mut self, originals: Vec<Undone>) -> Result<(), String> {
        for original in originals {
            if let Some(takes) = &mut self.takes {
                *takes = takes.checked_sub(1).ok_or("the power is gone")?;
            }
            let content = original.content.unwrap_or_else(|| vec![0; original.bytes as usize]);
            self.put(original.offset as usize, &content);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.durable = self.cached.clone();
        self.versions.clear();
        Ok(())
    }
}

/// A forwarded write.
struct Write {
    epoch: Epoch,
    granules: std::ops::Range<usize>,
    byte: u8,
    /// Requests that have not ended.
    left: usize,
    /// It waits for nothing but to be in place.
    secured: bool,
}

struct World {
    rng: Rng,
    journal: Bytes,
    area: Area<u64>,
    buffer: Buf,
    under_way: Option<(u64, Vec<u8>)>,
    disk: Disk,
    open: Epoch,
    preparing: Option<Epoch>,
    /// The record.
    committed: Epoch,
    kept: BTreeSet<(Epoch, usize)>,
    lost: Epoch,
    said: Epoch,
    writes: BTreeMap<u64, Write>,
    next: u64,
    /// Writes in place, in their order.
    log: Vec<(Epoch, std::ops::Range<usize>, u8)>,
    base: Vec<u8>,
    overruns: usize,
}

fn content(byte: u8, granules: usize) -> Vec<u8> {
    vec![byte; granules * BLOCK_BYTES]
}

impl World {
    fn new(seed: u64) -> World {
        let base: Vec<u8> = (0..GRANULES).flat_map(|granule| content(granule as u8 % 5, 1)).collect();
        let ring = Ring { journal: HEADER.journal, formatted: HEADER.formatted, area: 0 };
        World {
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            journal: Bytes(vec![0; 2 * BLOCK_BYTES + HEADER.area_bytes as usize]),
            area: Area::new(ring, HEADER.area_bytes),
            buffer: Buf::heap(BATCH_BYTES).expect("heap"),
            under_way: None,
            disk: Disk {
                cached: base.clone(),
                durable: base.clone(),
                versions: BTreeMap::new(),
                takes: None,
            },
            open: Epoch(1),
            preparing: None,
            committed: Epoch(0),
            kept: BTreeSet::new(),
            lost: Epoch(0),
            said: Epoch(0),
            writes: BTreeMap::new(),
            next: 0,
            log: Vec::new(),
            base,
            overruns: 0,
        }
    }

    fn begin_write(&mut self) {
        let first = self.rng.below(GRANULES);
        let granules = first..(first + 1 + self.rng.below(4)).min(GRANULES);
        let overlaps =
            |write: &Write| write.granules.start < granules.end && granules.start < write.granules.end;
        if self.writes.values().any(overlaps) {
            return;
        }
        let (token, epoch) = (self.next, self.open);
        self.next += 1;
        let byte = self.rng.below(6) as u8;
        let mut left = 0;
        let mut missing: Option<std::ops::Range<usize>> = None;
        for granule in granules.clone().chain([usize::MAX]) {
            let lacks = granule != usize::MAX && epoch > self.lost && self.kept.insert((epoch, granule));
            match (&mut missing, lacks) {
                (Some(run), true) => run.end = granule + 1,
                (None, true) => missing = Some(granule..granule + 1),
                (_, false) => {
                    if let Some(run) = missing.take() {
                        self.ask(token, epoch, &run);
                        left += 1;
                    }
                }
            }
        }
        self.writes.insert(token, Write { epoch, granules, byte, left, secured: false });
        if left == 0 {
            self.secure(token);
        }
    }

    fn ask(&mut self, token: u64, epoch: Epoch, run: &std::ops::Range<usize>) {
        let original = &self.disk.cached[run.start * BLOCK_BYTES..run.end * BLOCK_BYTES];
        // In two pieces whose border lies anywhere.
        let cut = 1 + self.rng.below(original.len() - 1);
        let piece = |bytes: &[u8]| {
            let buf = Buf::heap(bytes.len()).expect("heap");
            buf.write_at(0, bytes);
            buf
        };
        let content: SgList = [piece(&original[..cut]), piece(&original[cut..])].into_iter().collect();
        let offset = (run.start * BLOCK_BYTES) as u64;
        self.area.request(Request { token, volume: 0, epoch, offset, content, lost_through: self.lost });
    }

    /// As the stripe machine does it.
    fn secure(&mut self, token: u64) {
        let Some(write) = self.writes.get_mut(&token) else { return };
        if write.epoch > self.lost || write.epoch <= self.said {
            write.secured = true;
            return;
        }
        write.left = 1;
        let (epoch, lost_through) = (write.epoch, self.lost);
        self.area.request(Request {
            token,
            volume: 0,
            epoch,
            offset: 0,
            content: SgList::new(),
            lost_through,
        });
    }

    fn ended(&mut self, ended: Vec<(u64, Journaled)>, said: Epoch) {
        for (token, outcome) in ended {
            match outcome {
                Journaled::Durable => self.said = self.said.max(said),
                Journaled::Full => {
                    self.overruns += 1;
                    self.lost = self.lost.max(self.open);
                }
                Journaled::Failed => {
                    // The machine stops applying; here the same is asked for again.
                    self.lost = self.lost.max(self.open);
                }
            }
            let Some(write) = self.writes.get_mut(&token) else { continue };
            write.left -= 1;
            if write.left == 0 {
                self.secure(token);
            }
        }
    }

    fn journal_step(&mut self) {
        let mut ended = Vec::new();
        match self.under_way.take() {
            Some((at, bytes)) => {
                let ok = self.rng.below(30) > 0;
                if ok || self.rng.below(2) == 0 {
                    self.put_batch(at, &bytes);
                }
                let said = self.lost_in(&bytes);
                self.area.written(ok, |token, outcome| ended.push((token, outcome)));
                self.ended(ended, said);
            }
            None => {
                let said = self.said;
                let mut end = |token, outcome| ended.push((token, outcome));
                if let Some((at, len)) = self.area.next(&self.buffer, &mut end) {
                    self.under_way = Some((at, self.buffer.with(|bytes| bytes[..len].to_vec())));
                }
                self.ended(ended, said);
            }
        }
    }

    fn ring(&self) -> Ring {
        Ring { journal: HEADER.journal, formatted: HEADER.formatted, area: 0 }
    }

    fn lost_in(&self, batch: &[u8]) -> Epoch {
        Head::decode(batch, &self.ring()).expect("a head").lost_through
    }

    fn put_batch(&mut self, at: u64, bytes: &[u8]) {
        let at = (HEADER.area_at(0) + at) as usize;
        self.journal.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn apply_one(&mut self) {
        let secured: Vec<u64> =
            self.writes.iter().filter(|(_, write)| write.secured).map(|(&token, _)| token).collect();
        if secured.is_empty() {
            return;
        }
        let token = secured[self.rng.below(secured.len())];
        let Some(write) = self.writes.remove(&token) else { return };
        self.disk.put(write.granules.start * BLOCK_BYTES, &content(write.byte, write.granules.len()));
        self.log.push((write.epoch, write.granules, write.byte));
    }

    fn checkpoint_step(&mut self) {
        match self.preparing {
            None => {
                self.preparing = Some(self.open);
                self.open = self.open.next();
            }
            Some(epoch) if self.writes.values().all(|write| write.epoch > epoch) => {
                self.disk.flush().expect("a flush");
                self.committed = epoch;
                self.preparing = None;
                // The record is durable; the ring hears of it later, or never.
                if self.rng.below(4) > 0 {
                    self.area.committed(epoch);
                }
            }
            Some(_) if self.rng.below(8) == 0 => self.preparing = None,
            Some(_) => {}
        }
    }

    fn step(&mut self) {
        match self.rng.below(12) {
            0..4 => self.begin_write(),
            4..8 => self.journal_step(),
            8..11 => self.apply_one(),
            _ => self.checkpoint_step(),
        }
    }

    fn content_at(&self, committed: Epoch) -> Vec<u8> {
        let mut image = self.base.clone();
        for (_, granules, byte) in self.log.iter().filter(|(epoch, ..)| *epoch <= committed) {
            image[granules.start * BLOCK_BYTES..granules.end * BLOCK_BYTES].fill(*byte);
        }
        image
    }

    /// The power goes, with parts of what is under way done.
    fn lose_power(&mut self) {
        if let Some((at, bytes)) = self.under_way.take() {
            let start = (HEADER.area_at(0) + at) as usize;
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if self.rng.below(2) == 0 {
                    let place = start + index * SECTOR;
                    self.journal.0[place..place + SECTOR].copy_from_slice(sector);
                }
            }
        }
        for token in self.writes.iter().filter(|(_, w)| w.secured).map(|(&t, _)| t).collect::<Vec<_>>() {
            if self.rng.below(2) == 0 {
                let write = &self.writes[&token];
                let (at, data) =
                    (write.granules.start * BLOCK_BYTES, content(write.byte, write.granules.len()));
                self.disk.put(at, &data);
            }
        }
        self.disk.lose_power(&mut self.rng);
    }
}

/// What a run ended with.
#[derive(Default)]
struct Seen {
    rolled_back: usize,
    bytes: u64,
    lost: usize,
    torn: u32,
}

fn run(seed: u64, seen: &mut Seen) {
    let mut world = World::new(seed);
    let steps = 1 + world.rng.below(600);
    (0..steps).for_each(|_| world.step());
    world.lose_power();
    match RollBack::find(&mut world.journal, &HEADER, world.committed) {
        Ok(back) => {
            back.check(&world.disk).expect("places of the volume");
            if world.rng.below(3) == 0 {
                // The power goes again in the middle of it.
                world.disk.takes = Some(world.rng.below(40));
                let _ = back.carry_out(&mut world.journal, &mut world.disk);
                world.disk.takes = None;
                world.disk.lose_power(&mut world.rng);
            }
            back.carry_out(&mut world.journal, &mut world.disk).expect("rolled back");
            let expected = world.content_at(world.committed);
            assert!(
                world.disk.durable == expected,
                "seed {seed}: not the content of epoch {}",
                world.committed
            );
            seen.rolled_back += 1;
            seen.bytes += back.bytes();
            seen.torn += back.torn();
        }
        Err(Unrecoverable::Lost(through)) => {
            assert!(
                world.lost > world.committed && through > world.committed,
                "seed {seed}: nothing was lost"
            );
            seen.lost += 1;
        }
        Err(error) => panic!("seed {seed}: {error}"),
    }
}

#[test]
fn at_any_instant_a_loss_of_power_leaves_the_way_back_to_the_last_checkpoint_or_a_word_that_there_is_none() {
    let mut seen = Seen::default();
    (1..=3000).for_each(|seed| run(seed, &mut seen));
    assert!(
        seen.rolled_back > 1000 && seen.bytes > 10 << 20,
        "{} runs, {} bytes",
        seen.rolled_back,
        seen.bytes
    );
    assert!(seen.lost > 100 && seen.torn > 50, "{} lost, {} torn", seen.lost, seen.torn);
}

/// A ring with three batches of one epoch, whose places are returned.
fn three_batches() -> (Bytes, Vec<(u64, usize)>, Disk) {
    let mut world = World::new(1);
    world.base.fill(9);
    (world.disk.cached, world.disk.durable) = (world.base.clone(), world.base.clone());
    let mut places = Vec::new();
    for granule in 0..3 {
        world.ask(granule as u64, Epoch(1), &(granule..granule + 1));
        let (at, len) = world.area.next(&world.buffer, &mut |_, _| ()).expect("a batch");
        let bytes = world.buffer.with(|bytes| bytes[..len].to_vec());
        world.put_batch(at, &bytes);
        world.area.written(true, |_, outcome| assert_eq!(outcome, Journaled::Durable));
        places.push((HEADER.area_at(0) + at, len));
        world.disk.put(granule * BLOCK_BYTES, &content(3, 1));
    }
    (world.journal, places, world.disk)
}

#[test]
fn every_damage_before_the_newest_batch_is_reported_and_the_newest_may_be_cut_off() {
    for (number, needed) in [(0, true), (1, true), (2, false)] {
        let (journal, places, _) = three_batches();
        let (at, len) = places[number];
        for byte in (0..len).step_by(97) {
            let mut damaged = Bytes(journal.0.clone());
            damaged.0[at as usize + byte] ^= 0x10;
            let found = RollBack::find(&mut damaged, &HEADER, Epoch(0));
            match (needed, found) {
                (true, Err(Unrecoverable::Damaged { area: 0, sequence, .. })) => {
                    assert_eq!(sequence, number as u64 + 1);
                }
                (false, Ok(back)) => assert_eq!(back.bytes(), 2 * BLOCK_BYTES as u64),
                (_, other) => panic!("batch {number}, byte {byte}: {:?}", other.map(|back| back.bytes())),
            }
        }
    }
}

#[test]
fn what_is_committed_is_not_undone_and_places_that_are_not_there_are_refused() {
    let (mut journal, _, mut disk) = three_batches();
    let back = RollBack::find(&mut journal, &HEADER, Epoch(1)).expect("whole");
    assert!(back.is_empty());
    let back = RollBack::find(&mut journal, &HEADER, Epoch(0)).expect("whole");
    assert_eq!(back.carry_out(&mut journal, &mut disk), Ok(()));
    assert!(disk.durable.iter().all(|&byte| byte == 9));
    disk.cached.truncate(2 * BLOCK_BYTES);
    assert_eq!(back.check(&disk), Err(Unrecoverable::Place));
}

#[test]
fn a_journal_of_another_format_number_is_empty() {
    let (mut journal, _, _) = three_batches();
    let header = Header { formatted: 2, ..HEADER };
    assert!(RollBack::find(&mut journal, &header, Epoch(0)).expect("nothing there").is_empty());
}
