//! Ranges of scatter-gather lists.

use crate::env::Buf;

/// The parts of `list` that make up `len` bytes at `offset`, as new handles.
pub(super) fn range(list: &[Buf], offset: usize, len: usize) -> impl Iterator<Item = Buf> + '_ {
    let (mut skip, mut left) = (offset, len);
    list.iter().filter_map(move |buf| {
        if left == 0 {
            return None;
        }
        if skip >= buf.len() {
            skip -= buf.len();
            return None;
        }
        let take = (buf.len() - skip).min(left);
        let part = buf.slice(skip, take);
        skip = 0;
        left -= take;
        Some(part)
    })
}

/// Copies `len` bytes of `from` at `from_offset` to `offset` of `list`.
pub(super) fn copy_in(list: &[Buf], offset: usize, from: &Buf, from_offset: usize, len: usize) {
    let (mut skip, mut done) = (offset, 0);
    for buf in list {
        if done == len {
            return;
        }
        if skip >= buf.len() {
            skip -= buf.len();
            continue;
        }
        let take = (buf.len() - skip).min(len - done);
        buf.copy_from(skip, from, from_offset + done, take);
        skip = 0;
        done += take;
    }
}

/// CRC32C of `len` bytes at `offset`.
pub(super) fn crc32c(list: &[Buf], offset: usize, len: usize) -> u32 {
    range(list, offset, len).fold(0, |crc, part| part.crc32c(crc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_buffers_and_stop_at_their_end() {
        let list: Vec<Buf> = [3usize, 4, 5].iter().map(|&n| Buf::heap(n).expect("heap")).collect();
        let source = Buf::heap(16).expect("heap");
        source.write_at(0, b"0123456789abcdef");
        copy_in(&list, 0, &source, 0, 12);
        let bytes: Vec<u8> = range(&list, 2, 7).flat_map(|b| b.with(<[u8]>::to_vec)).collect();
        assert_eq!(bytes, b"2345678");
        copy_in(&list, 6, &source, 10, 3);
        let bytes: Vec<u8> = range(&list, 0, 12).flat_map(|b| b.with(<[u8]>::to_vec)).collect();
        assert_eq!(bytes, b"012345abc9ab");
        assert_eq!(crc32c(&list, 1, 6), crc32c::crc32c(b"12345a"));
    }
}
