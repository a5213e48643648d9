//! Stamped blocks: every block written names its address, its sequence and its writer, under a checksum, so that a
//! read tells whether it got what was acknowledged or was in flight.
//!
//! Each writer has blocks of its own and never two writes in flight on one block, so the sequence numbers of a block
//! only rise, and a read may give any from the last acknowledged when it began to the last issued when it ended.

use lockstep::env::Buf;

const MAGIC: [u8; 8] = *b"lockstp1";
/// Magic, address, sequence, writer, checksum of everything else in the block.
const STAMP_BYTES: usize = 40;

/// What a block is found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Neither a stamp nor, where nothing was written yet, anything else goes.
    NoStamp,
    Checksum,
    OtherAddress,
    OtherWriter,
    /// Older than what was acknowledged before the read began.
    Stale,
    /// Newer than anything issued.
    FromTheFuture,
}

/// What one writer knows of its blocks.
pub struct Ledger {
    writer: u64,
    first_lba: u64,
    block_size: usize,
    acknowledged: Vec<u64>,
    issued: Vec<u64>,
    busy: Vec<bool>,
    sequence: u64,
}

impl Ledger {
    pub fn new(writer: u64, first_lba: u64, blocks: u64, block_size: u32) -> Ledger {
        let blocks = blocks as usize;
        Ledger {
            writer,
            first_lba,
            block_size: block_size as usize,
            acknowledged: vec![0; blocks],
            issued: vec![0; blocks],
            busy: vec![false; blocks],
            sequence: 0,
        }
    }

    fn range(&self, lba: u64, blocks: u64) -> std::ops::Range<usize> {
        let at = (lba - self.first_lba) as usize;
        at..at + blocks as usize
    }

    /// Whether a write of the range must wait for another.
    pub fn is_busy(&self, lba: u64, blocks: u64) -> bool {
        self.busy[self.range(lba, blocks)].contains(&true)
    }

    /// Stamps the buffer for a write of the range, and takes the range.
    pub fn begin_write(&mut self, lba: u64, blocks: u64, buf: &Buf) {
        self.sequence += 1;
        let (sequence, writer, block_size) = (self.sequence, self.writer, self.block_size);
        for index in self.range(lba, blocks) {
            self.issued[index] = sequence;
            self.busy[index] = true;
        }
        buf.with_mut(|bytes| {
            for (n, block) in bytes.chunks_exact_mut(block_size).enumerate() {
                stamp(block, lba + n as u64, sequence, writer);
            }
        });
    }

    /// A write ended. A failed one leaves either content: its sequence stays possible.
    pub fn end_write(&mut self, lba: u64, blocks: u64, good: bool) {
        for index in self.range(lba, blocks) {
            self.busy[index] = false;
            if good {
                self.acknowledged[index] = self.issued[index];
            }
        }
    }

    /// What a read that begins now must at least find, by block.
    pub fn begin_read(&self, lba: u64, blocks: u64, floor: &mut Vec<u64>) {
        floor.clear();
        floor.extend_from_slice(&self.acknowledged[self.range(lba, blocks)]);
    }

    /// Checks what a read found; the first fault with its address.
    pub fn end_read(&self, lba: u64, floor: &[u64], buf: &Buf) -> Result<(), (u64, Fault)> {
        buf.with(|bytes| {
            for (n, block) in bytes.chunks_exact(self.block_size).enumerate() {
                let lba = lba + n as u64;
                let newest = self.issued[self.range(lba, 1).start];
                self.check(block, lba, floor[n], newest).map_err(|fault| (lba, fault))?;
            }
            Ok(())
        })
    }

    fn check(&self, block: &[u8], lba: u64, oldest: u64, newest: u64) -> Result<(), Fault> {
        if block[..8] != MAGIC {
            // Whatever was there before the first write is none of ours.
            return if oldest == 0 { Ok(()) } else { Err(Fault::NoStamp) };
        }
        let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap_or_default());
        let (address, sequence, writer, sum) = (word(8), word(16), word(24), word(32));
        if sum != u64::from(checksum(block)) {
            return Err(Fault::Checksum);
        }
        if oldest == 0 && (address, writer) != (lba, self.writer) {
            // Left by an earlier run.
            return Ok(());
        }
        if address != lba {
            return Err(Fault::OtherAddress);
        }
        if writer != self.writer {
            return Err(Fault::OtherWriter);
        }
        if sequence < oldest {
            return Err(Fault::Stale);
        }
        if sequence > newest {
            return Err(Fault::FromTheFuture);
        }
        Ok(())
    }
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..32]), &block[STAMP_BYTES..])
}

fn stamp(block: &mut [u8], lba: u64, sequence: u64, writer: u64) {
    block[..8].copy_from_slice(&MAGIC);
    block[8..16].copy_from_slice(&lba.to_le_bytes());
    block[16..24].copy_from_slice(&sequence.to_le_bytes());
    block[24..32].copy_from_slice(&writer.to_le_bytes());
    let mut word = lba.rotate_left(32) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ writer;
    for chunk in block[STAMP_BYTES..].chunks_exact_mut(8) {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let sum = u64::from(checksum(block));
    block[32..40].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_may_give_what_was_acknowledged_or_in_flight_and_nothing_else() {
        let mut ledger = Ledger::new(7, 100, 10, 512);
        let (old, new, torn) = (buf(), buf(), buf());
        let mut floor = Vec::new();
        ledger.begin_write(104, 2, &old);
        ledger.begin_read(104, 2, &mut floor);
        assert_eq!(ledger.end_read(104, &floor, &buf()), Ok(()), "nothing was acknowledged yet");
        ledger.end_write(104, 2, true);
        ledger.begin_read(104, 2, &mut floor);
        assert_eq!(ledger.end_read(104, &floor, &buf()), Err((104, Fault::NoStamp)));
        ledger.begin_write(104, 2, &new);
        assert!(ledger.is_busy(105, 1) && !ledger.is_busy(106, 1));
        assert_eq!(ledger.end_read(104, &floor, &old), Ok(()));
        assert_eq!(ledger.end_read(104, &floor, &new), Ok(()), "in flight");
        ledger.end_write(104, 2, true);
        ledger.begin_read(104, 2, &mut floor);
        assert_eq!(ledger.end_read(104, &floor, &old), Err((104, Fault::Stale)));
        torn.copy_from(0, &new, 0, 1024);
        torn.fill(900, 1, 0);
        assert_eq!(ledger.end_read(104, &floor, &torn), Err((105, Fault::Checksum)));
        torn.copy_from(0, &new, 512, 512);
        assert_eq!(ledger.end_read(104, &floor, &torn), Err((104, Fault::OtherAddress)));
    }

    fn buf() -> Buf {
        Buf::heap(1024).expect("heap")
    }
}
