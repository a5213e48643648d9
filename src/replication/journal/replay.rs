//! What a start finds in a journal, and the way back to the last committed checkpoint.
//!
//! Of the batches in a ring the newest whole one says which are needed. A batch behind it that is not whole was being
//! written when the power went: nothing was written in place for it. Any other that is needed and not there, or not whole,
//! is damage, and then nothing is touched.

use std::collections::BTreeMap;

use super::format::{BATCH_BYTES, BLOCK_BYTES, Head, Header, Record, Ring};
use crate::replication::Epoch;

/// The journal, as a start reads it.
pub trait Medium {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String>;
}

/// An original on its way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    pub volume: u16,
    /// In bytes of the volume.
    pub offset: u64,
    /// `None` are zeroes.
    pub content: Option<Vec<u8>>,
    pub bytes: u32,
}

/// The volumes' disks.
pub trait Disks {
    /// Size of a volume's disk; `None`: there is no such volume.
    fn size_bytes(&self, volume: u16) -> Option<u64>;

    /// Writes in any order; they do not overlap.
    fn write(&mut self, originals: Vec<Undone>) -> Result<(), String>;

    fn flush(&mut self) -> Result<(), String>;
}

/// Why a journal does not lead back. The disks are untouched unless one of them failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrecoverable {
    #[error("the journal is damaged: batch {sequence} of area {area} is needed and {what}")]
    Damaged { area: u32, sequence: u64, what: &'static str },
    #[error(
        "not all originals were kept: the buffer or the journal was full (up to epoch {0}); checkpoint more often, or \
         make them larger"
    )]
    Lost(Epoch),
    #[error(
        "the journal names a place that the volumes do not have: they are not the ones it was written for"
    )]
    Place,
    #[error("the journal cannot be read: {0}")]
    Read(String),
    #[error("the roll-back did not end: {0}")]
    Disk(String),
}

/// A batch that is needed.
struct Found {
    /// In bytes of the journal.
    at: u64,
    records: Vec<(Record, usize)>,
}

/// What a ring has.
#[derive(Default)]
struct Scan {
    whole: BTreeMap<u64, (Head, Found)>,
    /// Sequences of batches whose head is whole and whose content is not.
    broken: Vec<u64>,
}

/// A way back that was found whole.
pub struct RollBack {
    needed: Vec<(Record, u64)>,
    torn: u32,
}

/// Originals that are written together.
const TOGETHER: usize = 64;

impl RollBack {
    /// Looks whether the journal leads back to `committed`. Nothing is changed.
    pub fn find(
        journal: &mut impl Medium,
        header: &Header,
        committed: Epoch,
    ) -> Result<RollBack, Unrecoverable> {
        let mut back = RollBack { needed: Vec::new(), torn: 0 };
        for area in 0..header.areas {
            back.look(journal, header, area, committed)?;
        }
        // The newest first, so that the oldest original of a place is what stays; each epoch in the journal's order.
        back.needed.sort_by_key(|(record, at)| (std::cmp::Reverse(record.epoch), *at));
        Ok(back)
    }

    fn look(
        &mut self,
        journal: &mut impl Medium,
        header: &Header,
        area: u32,
        committed: Epoch,
    ) -> Result<(), Unrecoverable> {
        let mut scan = Scan::of(journal, header, area)?;
        let Some((newest, _)) = scan.whole.last_key_value().map(|(_, found)| found) else {
            self.torn += u32::from(!scan.broken.is_empty());
            return Ok(());
        };
        let damaged = |sequence, what| Unrecoverable::Damaged { area, sequence, what };
        let (last, lost_through) = (newest.sequence, newest.lost_through);
        for sequence in newest.oldest..=last {
            match scan.whole.remove(&sequence) {
                Some((_, found)) => {
                    let needed = found.records.iter().filter(|(record, _)| record.epoch > committed);
                    self.needed.extend(needed.map(|(record, at)| (*record, found.at + *at as u64)));
                }
                None if scan.broken.contains(&sequence) => return Err(damaged(sequence, "is not whole")),
                None => return Err(damaged(sequence, "is not there")),
            }
        }
        if let Some(&sequence) = scan.broken.iter().find(|&&sequence| sequence > last + 1) {
            return Err(damaged(sequence - 1, "is not there"));
        }
        self.torn += u32::from(scan.broken.contains(&(last + 1)));
        match lost_through > committed {
            true => Err(Unrecoverable::Lost(lost_through)),
            false => Ok(()),
        }
    }

    /// Areas whose newest batch was cut off.
    pub fn torn(&self) -> u32 {
        self.torn
    }

    /// Bytes that go back.
    pub fn bytes(&self) -> u64 {
        self.needed.iter().map(|(record, _)| u64::from(record.bytes)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.needed.is_empty()
    }

    /// Whether every record lies on the disks.
    pub fn check(&self, disks: &impl Disks) -> Result<(), Unrecoverable> {
        let fits = |record: &Record| {
            let end = record.offset.checked_add(record.bytes.into());
            disks.size_bytes(record.volume).is_some_and(|size| end.is_some_and(|end| end <= size))
        };
        match self.needed.iter().all(|(record, _)| fits(record)) {
            true => Ok(()),
            false => Err(Unrecoverable::Place),
        }
    }

    /// Puts the originals back, durably. May be repeated from its beginning without harm.
    pub fn carry_out(&self, journal: &mut impl Medium, disks: &mut impl Disks) -> Result<(), Unrecoverable> {
        let mut together: Vec<Undone> = Vec::new();
        let mut epoch = Epoch(0);
        for (record, at) in &self.needed {
            if together.len() == TOGETHER || record.epoch != epoch {
                disks.write(std::mem::take(&mut together)).map_err(Unrecoverable::Disk)?;
                epoch = record.epoch;
            }
            together.push(original(journal, record, *at)?);
        }
        disks.write(together).map_err(Unrecoverable::Disk)?;
        disks.flush().map_err(Unrecoverable::Disk)
    }
}

fn original(journal: &mut impl Medium, record: &Record, at: u64) -> Result<Undone, Unrecoverable> {
    let content = match record.crc {
        None => None,
        Some(crc) => {
            let mut content = vec![0; record.bytes as usize];
            // Media read whole blocks.
            let mut padded = vec![0; record.room()];
            journal.read(at, &mut padded).map_err(Unrecoverable::Read)?;
            content.copy_from_slice(&padded[..record.bytes as usize]);
            if crc32c::crc32c(&content) != crc {
                return Err(Unrecoverable::Disk("the journal reads differently the second time".to_string()));
            }
            Some(content)
        }
    };
    Ok(Undone { volume: record.volume, offset: record.offset, content, bytes: record.bytes })
}

impl Scan {
    /// Looks at every block of an area.
    fn of(journal: &mut impl Medium, header: &Header, area: u32) -> Result<Scan, Unrecoverable> {
        let ring = Ring { journal: header.journal, formatted: header.formatted, area: area as u16 };
        let start = header.area_at(area);
        let mut scan = Scan::default();
        let mut window = Window { from: 0, bytes: Vec::new() };
        let mut at = 0;
        while at + BLOCK_BYTES as u64 <= header.area_bytes {
            let mut left = window.get(journal, start, header.area_bytes, at, BLOCK_BYTES)?;
            let Some(head) = Head::decode(left, &ring) else {
                at += BLOCK_BYTES as u64;
                continue;
            };
            if at + head.bytes() as u64 <= header.area_bytes {
                left = window.get(journal, start, header.area_bytes, at, head.bytes())?;
            }
            match head.records(left) {
                Some(records) => {
                    scan.whole.insert(head.sequence, (head, Found { at: start + at, records }));
                    at += head.bytes() as u64;
                }
                None => {
                    scan.broken.push(head.sequence);
                    at += BLOCK_BYTES as u64;
                }
            }
        }
        Ok(scan)
    }
}

/// A part of an area in memory.
struct Window {
    from: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// What stands from `at` on, at least `len` bytes of it, which lie within the area.
    fn get(
        &mut self,
        journal: &mut impl Medium,
        start: u64,
        area_bytes: u64,
        at: u64,
        len: usize,
    ) -> Result<&[u8], Unrecoverable> {
        if at < self.from || at + len as u64 > self.from + self.bytes.len() as u64 {
            self.from = at;
            self.bytes.resize((area_bytes - at).min(BATCH_BYTES as u64) as usize, 0);
            journal.read(start + at, &mut self.bytes).map_err(Unrecoverable::Read)?;
        }
        Ok(&self.bytes[(at - self.from) as usize..])
    }
}
