//! Stamped blocks: content that says which write of which block it is, so that an image can be judged byte for byte.

use lockstep::env::Buf;

/// Unit of the quickstart's load and of its verification.
pub const BLOCK_BYTES: usize = 4096;
const WORDS: usize = BLOCK_BYTES / 8;

/// The number of a write: unique in a run, rising with time. 0 is a block never written: zeroes.
pub type Version = u64;

/// What word `index` of a block holds: every word depends on all three, so a torn or misplaced block shows.
fn word(block: u64, version: Version, index: usize) -> u64 {
    match index {
        0 => version,
        1 => block,
        _ => (version ^ block.rotate_left(32) ^ (index as u64) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// Fills `buf`, of [`BLOCK_BYTES`].
pub fn write(buf: &Buf, block: u64, version: Version) {
    buf.with_mut(|bytes| {
        for (index, chunk) in bytes.chunks_exact_mut(8).enumerate().take(WORDS) {
            chunk.copy_from_slice(&word(block, version, index).to_le_bytes());
        }
    });
}

/// The version in `bytes`, or what is wrong with them.
pub fn read(bytes: &[u8], block: u64) -> Result<Version, String> {
    let at = |index: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    };
    let version = at(0);
    if version == 0 {
        return match bytes.iter().position(|&b| b != 0) {
            None => Ok(0),
            Some(byte) => Err(format!("block {block} is neither stamped nor zero (byte {byte})")),
        };
    }
    match (0..WORDS).find(|&i| at(i) != word(block, version, i)) {
        None => Ok(version),
        Some(i) => Err(format!("block {block} is torn: version {version} up to byte {}", i * 8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_and_a_torn_or_misplaced_one_is_named() {
        let buf = Buf::heap(BLOCK_BYTES).expect("heap");
        assert_eq!(buf.with(|b| read(b, 9)), Ok(0));
        write(&buf, 9, 77);
        assert_eq!(buf.with(|b| read(b, 9)), Ok(77));
        assert!(buf.with(|b| read(b, 8)).is_err());
        buf.write_at(2000, &[0xff]);
        assert!(buf.with(|b| read(b, 9)).unwrap_err().contains("torn"));
    }
}
