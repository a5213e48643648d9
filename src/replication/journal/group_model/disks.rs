//! The disks of the model, and what a loss of power leaves of them.

use std::collections::BTreeMap;

use super::BLOCKS;
use crate::replication::core::model::Bytes;
use crate::replication::core::{Data, Range};
use crate::replication::journal::format::BLOCK_BYTES;
use crate::replication::journal::replay::{Disks, Medium, Undone};

#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit.max(1) as u64) as usize
    }
}

/// A disk of one byte a block, with a cache of which a loss of power keeps anything or nothing.
#[derive(Clone)]
pub struct Disk {
    pub cached: Vec<u8>,
    pub durable: Vec<u8>,
    /// What was written to each block since the last flush.
    unflushed: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    pub fn new(content: Vec<u8>) -> Disk {
        Disk { cached: content.clone(), durable: content, unflushed: BTreeMap::new() }
    }

    pub fn read(&self, range: Range) -> Bytes {
        Bytes::new(self.cached[range.lba as usize..range.end() as usize].to_vec())
    }

    pub fn write(&mut self, range: Range, data: &Data<Bytes>) {
        apply(&mut self.cached, range, data);
        for lba in range.lba..range.end() {
            self.unflushed.entry(lba).or_default().push(self.cached[lba as usize]);
        }
    }

    pub fn flush(&mut self) {
        self.unflushed.clear();
        self.durable.clone_from(&self.cached);
    }

    pub fn lose_power(&mut self, rng: &mut Rng) {
        for (lba, versions) in std::mem::take(&mut self.unflushed) {
            if let Some(&byte) = versions.get(rng.below(versions.len() + 1)) {
                self.durable[lba as usize] = byte;
            }
        }
        self.cached.clone_from(&self.durable);
    }
}

pub fn apply(content: &mut [u8], range: Range, data: &Data<Bytes>) {
    let into = &mut content[range.lba as usize..range.end() as usize];
    match data {
        Data::Bytes(bytes) => into.copy_from_slice(&bytes.to_vec()),
        Data::Zeroes => into.fill(0),
    }
}

/// What a loss of power leaves of the secondary.
#[derive(Clone)]
pub struct Durable {
    pub journal: Vec<u8>,
    pub disks: Vec<Disk>,
}

impl Medium for Durable {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let at = at as usize;
        into.copy_from_slice(self.journal.get(at..at + into.len()).ok_or("behind the end")?);
        Ok(())
    }
}

/// The disks alone: a roll-back reads the journal while it writes them.
pub struct Array(pub Vec<Disk>);

impl Disks for Array {
    fn size_bytes(&self, volume: u16) -> Option<u64> {
        self.0.get(usize::from(volume)).map(|_| BLOCKS * BLOCK_BYTES as u64)
    }

    fn write(&mut self, originals: Vec<Undone>) -> Result<(), String> {
        for original in originals {
            let content = original.content.unwrap_or_else(|| vec![0; original.bytes as usize]);
            let lba = original.offset / BLOCK_BYTES as u64;
            let disk = &mut self.0[usize::from(original.volume)];
            for (number, block) in content.chunks(BLOCK_BYTES).enumerate() {
                assert!(block.iter().all(|byte| *byte == block[0]), "an original is whole");
                let data = Data::Bytes(Bytes::new(vec![block[0]]));
                disk.write(Range::new(lba + number as u64, 1), &data);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.0.iter_mut().for_each(Disk::flush);
        Ok(())
    }
}
