//! Which of a file's two slots counts, and which takes the next record. Pure: the simulator tears the same slots.

use super::super::core::mutation::{Mutation, active};
use super::record::{Record, RecordError, SLOT_BYTES};

/// The place of a file's newest record in the sequence of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    sequence: u64,
}

impl Slots {
    /// The record that counts, of the two slots' bytes; `None` when there never was one. An error names what is wrong with
    /// either slot.
    pub fn read(bytes: &[u8]) -> Result<(Slots, Option<Record>), (RecordError, RecordError)> {
        let (first, second) = bytes.split_at(SLOT_BYTES.min(bytes.len()));
        let newest = match (Record::decode(first), Record::decode(second)) {
            (Err(RecordError::Empty), Err(RecordError::Empty)) => None,
            // One slot of another version: the file belongs to a newer program, whatever the other slot says.
            (Err(first @ RecordError::Version(_)), other) => {
                return Err((first, other.err().unwrap_or(first)));
            }
            (other, Err(second @ RecordError::Version(_))) => {
                return Err((other.err().unwrap_or(second), second));
            }
            (Err(first), Err(second)) => return Err((first, second)),
            (Ok(record), Err(_)) | (Err(_), Ok(record)) => Some(record),
            (Ok(a), Ok(b)) => Some(if a.0 > b.0 { a } else { b }),
        };
        let (sequence, record) = newest.map_or((0, None), |(sequence, record)| (sequence, Some(record)));
        Ok((Slots { sequence }, record))
    }

    /// Puts the next record into `bytes`, a slot long, and says at which byte of the file it goes.
    pub fn next(&mut self, record: &Record, bytes: &mut [u8]) -> u64 {
        self.sequence += 1;
        record.encode(self.sequence, bytes);
        self.sequence % 2 * SLOT_BYTES as u64
    }

    /// The record was not written, or in part: the same slot takes the next one, for the other holds the last whole one.
    pub fn failed(&mut self) {
        if !active(Mutation::SlotLostWithFailure) {
            self.sequence = self.sequence.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::*;

    #[test]
    fn a_record_that_failed_never_costs_the_last_whole_one() {
        let mut file = vec![0; 2 * SLOT_BYTES];
        let (mut slots, none) = Slots::read(&file).expect("an empty file");
        assert_eq!(none, None);
        let mut bytes = vec![0; SLOT_BYTES];
        for epoch in 1..6 {
            let at = slots.next(&sample(epoch), &mut bytes) as usize;
            file[at..at + SLOT_BYTES].copy_from_slice(&bytes);
            for torn in [1, 700, SLOT_BYTES - 1] {
                let at = slots.next(&sample(90), &mut bytes) as usize;
                file[at..at + torn].copy_from_slice(&bytes[..torn]);
                slots.failed();
                let found = Slots::read(&file).map(|(_, record)| record);
                assert_eq!(found, Ok(Some(sample(epoch))), "{torn} bytes of the next one");
            }
        }
    }
}
