//! Data buffers as the state machines' payload: counted in blocks, shared, never copied without need.

use smallvec::SmallVec;

use crate::env::{Buf, SgList, sg_len};
use crate::replication::core::{Digest, Payload};

/// A run of blocks in memory.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    bufs: SgList,
    block_bytes: u32,
}

impl Blocks {
    pub fn new(bufs: SgList, block_bytes: u32) -> Blocks {
        Blocks { bufs, block_bytes }
    }

    pub fn bufs(&self) -> &[Buf] {
        &self.bufs
    }

    pub fn into_bufs(self) -> SgList {
        self.bufs
    }

    pub fn bytes(&self, blocks: u32) -> usize {
        blocks as usize * self.block_bytes as usize
    }
}

/// `len` bytes of a list from `from` on.
pub fn slice(bufs: &[Buf], from: usize, len: usize) -> SgList {
    let mut parts = SgList::new();
    pieces(bufs, from, len, |buf, at, len, _| parts.push(buf.slice(at, len)));
    parts
}

/// Calls `f(buffer, offset in it, length, bytes before it)` for every piece of a part of a list.
fn pieces(bufs: &[Buf], from: usize, len: usize, mut f: impl FnMut(&Buf, usize, usize, usize)) {
    let (mut skip, mut done) = (from, 0);
    for buf in bufs {
        if done == len {
            return;
        }
        if skip >= buf.len() {
            skip -= buf.len();
            continue;
        }
        let part = (buf.len() - skip).min(len - done);
        f(buf, skip, part, done);
        done += part;
        skip = 0;
    }
    debug_assert_eq!(done, len, "the list is as long as its owner says");
}

impl Payload for Blocks {
    fn slice(&self, from: u32, blocks: u32) -> Blocks {
        Blocks {
            bufs: slice(&self.bufs, self.bytes(from), self.bytes(blocks)),
            block_bytes: self.block_bytes,
        }
    }

    fn copy_from(&mut self, at: u32, source: &Blocks, from: u32, blocks: u32) {
        let (at, from, len) = (self.bytes(at), self.bytes(from), self.bytes(blocks));
        let source = slice(&source.bufs, from, len);
        let mut sources: SmallVec<[(&Buf, usize, usize); 4]> = SmallVec::new();
        let mut before = 0;
        for buf in &source {
            sources.push((buf, before, buf.len()));
            before += buf.len();
        }
        pieces(&self.bufs, at, len, |target, target_at, part, done| {
            for &(buf, start, buf_len) in &sources {
                let (low, high) = (start.max(done), (start + buf_len).min(done + part));
                if low < high {
                    target.copy_from(target_at + (low - done), buf, low - start, high - low);
                }
            }
        });
    }

    fn zero(&mut self, at: u32, blocks: u32) {
        pieces(&self.bufs, self.bytes(at), self.bytes(blocks), |buf, at, len, _| buf.fill(at, len, 0));
    }

    fn equals(&self, other: &Blocks) -> bool {
        if sg_len(&self.bufs) != sg_len(&other.bufs) {
            return false;
        }
        let mut equal = true;
        pieces(&self.bufs, 0, sg_len(&self.bufs), |buf, at, len, done| {
            let theirs = slice(&other.bufs, done, len);
            let mut from = at;
            for their in &theirs {
                equal &= buf.with(|mine| their.with(|their| mine[from..from + their.len()] == *their));
                from += their.len();
            }
        });
        equal
    }

    fn is_zero(&self) -> bool {
        self.bufs.iter().all(Buf::is_zero)
    }

    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for buf in &self.bufs {
            buf.with(|bytes| hasher.update(bytes));
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(bytes: &[u8], lengths: &[usize]) -> Blocks {
        let mut bufs = SgList::new();
        let mut at = 0;
        for &len in lengths.iter().cycle() {
            if at == bytes.len() {
                break;
            }
            let len = len.clamp(1, bytes.len() - at);
            let buf = Buf::heap(len).expect("heap");
            buf.write_at(0, &bytes[at..at + len]);
            bufs.push(buf);
            at += len;
        }
        Blocks::new(bufs, 4)
    }

    fn flat(blocks: &Blocks) -> Vec<u8> {
        blocks.bufs.iter().flat_map(|b| b.with(<[u8]>::to_vec)).collect()
    }

    proptest! {
        #[test]
        fn copies_slices_and_comparisons_do_not_depend_on_where_buffers_end(
            a in prop::collection::vec(any::<u8>(), 64),
            b in prop::collection::vec(any::<u8>(), 64),
            cuts in prop::collection::vec(1usize..20, 1..6),
            other_cuts in prop::collection::vec(1usize..20, 1..6),
            (at, from, len) in (0u32..8, 0u32..8, 0u32..8),
        ) {
            let mut target = cut(&a, &cuts);
            let source = cut(&b, &other_cuts);
            prop_assert!(source.equals(&cut(&b, &cuts)));
            prop_assert_eq!(source.equals(&target), a == b);
            prop_assert_eq!(source.digest(), cut(&b, &cuts).digest());
            prop_assert_eq!(source.digest() == target.digest(), a == b);
            prop_assert_eq!(source.is_zero(), b.iter().all(|&byte| byte == 0));
            prop_assert!(cut(&[0; 64], &cuts).is_zero());
            target.copy_from(at, &source, from, len);
            let mut expected = a.clone();
            expected[at as usize * 4..(at + len) as usize * 4]
                .copy_from_slice(&b[from as usize * 4..(from + len) as usize * 4]);
            prop_assert_eq!(flat(&target), expected.clone());
            prop_assert_eq!(flat(&target.slice(at, len)), &expected[at as usize * 4..(at + len) as usize * 4]);
            target.zero(at, len);
            expected[at as usize * 4..(at + len) as usize * 4].fill(0);
            prop_assert_eq!(flat(&target), expected);
        }
    }
}
