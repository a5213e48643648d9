//! Data buffers: counted handles to slices of DMA-able memory.
//!
//! Invariants: memory under a `Buf` stays mapped and unreused until the last handle to its segment drops, wherever
//! that happens; it then goes back to the pool it came from. The contents are shared memory, as device memory is:
//! whoever writes a range makes sure that nobody else uses it meanwhile ("data is stable while shared").
//! Handles may move between threads.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use smallvec::SmallVec;

use super::pool;

/// A scatter-gather list. Two entries stay inline: nearly every I/O has one or two.
pub type SgList = SmallVec<[Buf; 2]>;

/// Total bytes of a list.
pub fn sg_len(list: &[Buf]) -> usize {
    list.iter().map(Buf::len).sum()
}

/// Alignment of heap buffers: enough for O_DIRECT on every block size.
const HEAP_ALIGN: usize = 4096;

/// Where a segment's memory goes back to.
pub(super) enum Home {
    /// A reactor's pool, by class.
    Pool { home: &'static pool::Home, class: u8 },
    /// The heap: freed with the segment.
    Heap(Layout),
}

/// The counted unit of memory behind one or more `Buf`s.
pub(super) struct Segment {
    pub(super) refs: AtomicU32,
    pub(super) base: NonNull<u8>,
    pub(super) size: u32,
    /// The arena region that the memory lies in, for registered I/O; `u32::MAX` for heap memory.
    pub(super) region: u32,
    pub(super) home: Home,
}

/// A counted handle to `len` bytes of a segment.
pub struct Buf {
    segment: NonNull<Segment>,
    /// Offset in the segment (high half) and length: one word, because two words travel in registers and three do not.
    range: u64,
}

fn range(offset: usize, len: usize) -> u64 {
    debug_assert!(u32::try_from(offset).is_ok() && u32::try_from(len).is_ok());
    (offset as u64) << 32 | len as u64
}

// SAFETY: the count is atomic, the memory is plain, and returning to a foreign pool goes through a lock-free queue.
unsafe impl Send for Buf {}

impl Buf {
    /// A zeroed buffer from the heap, for places without a pool (tests, the control thread, small tables).
    /// `None` when the heap is exhausted or `len` is 0 or above 4 GiB.
    pub fn heap(len: usize) -> Option<Buf> {
        let size = u32::try_from(len).ok().filter(|&l| l > 0)?;
        let layout = Layout::from_size_align(len, HEAP_ALIGN).ok()?;
        // SAFETY: the layout has a size other than 0.
        let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        let segment =
            Segment { refs: AtomicU32::new(1), base, size, region: u32::MAX, home: Home::Heap(layout) };
        Some(Buf { segment: NonNull::from(Box::leak(Box::new(segment))), range: range(0, len) })
    }

    /// The first handle to a free segment of a pool: the count goes from 0 to 1.
    pub(super) fn first(segment: NonNull<Segment>, len: usize) -> Buf {
        // SAFETY: pool segments live for the life of the process.
        let seg = unsafe { segment.as_ref() };
        debug_assert!(len <= seg.size as usize);
        seg.refs.store(1, Ordering::Relaxed);
        Buf { segment, range: range(0, len) }
    }

    fn seg(&self) -> &Segment {
        // SAFETY: the segment lives at least as long as any handle to it.
        unsafe { self.segment.as_ref() }
    }

    #[inline]
    fn offset(&self) -> usize {
        (self.range >> 32) as usize
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.range as u32 as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Address of the first byte, for system calls and devices. Valid while this handle lives.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: offset and len were checked against the segment when the handle was made.
        unsafe { self.seg().base.as_ptr().add(self.offset()) }
    }

    /// The arena region that the memory lies in, for registered I/O.
    pub fn region(&self) -> Option<u32> {
        Some(self.seg().region).filter(|&r| r != u32::MAX)
    }

    /// Another handle to `len` bytes at `offset`. Panics if the range is not inside: callers check lengths that
    /// come from outside before.
    pub fn slice(&self, offset: usize, len: usize) -> Buf {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()), "slice outside the buffer");
        let mut other = self.clone();
        other.range = range(other.offset() + offset, len);
        other
    }

    /// Shortens or moves this handle's own range, without touching the count.
    pub fn narrow(&mut self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()), "range outside the buffer");
        self.range = range(self.offset() + offset, len);
    }

    /// Whether this is the only handle to the segment, so that its owner may write anywhere in it.
    pub fn is_unique(&self) -> bool {
        self.seg().refs.load(Ordering::Acquire) == 1
    }

    /// Runs `f` on the bytes. Nobody may write the range meanwhile (the module's rule).
    pub fn with<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: the range is live; the module's rule keeps writers away while `f` runs.
        f(unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) })
    }

    /// Runs `f` on the bytes for writing. Nobody else may use the range meanwhile (the module's rule).
    pub fn with_mut<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        // SAFETY: the range is live; the module's rule makes the caller its only user while `f` runs.
        f(unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) })
    }

    /// Copies bytes at `offset` into `dst`.
    pub fn read_at(&self, offset: usize, dst: &mut [u8]) {
        self.with(|bytes| dst.copy_from_slice(&bytes[offset..offset + dst.len()]));
    }

    /// Copies `src` to `offset`.
    pub fn write_at(&self, offset: usize, src: &[u8]) {
        self.with_mut(|bytes| bytes[offset..offset + src.len()].copy_from_slice(src));
    }

    /// Copies `len` bytes of `src` at `src_offset` to `offset`; the ranges may share memory.
    pub fn copy_from(&self, offset: usize, src: &Buf, src_offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()), "copy outside the target");
        assert!(src_offset.checked_add(len).is_some_and(|end| end <= src.len()), "copy outside the source");
        // SAFETY: both ranges were just checked; `copy` allows overlap.
        unsafe { std::ptr::copy(src.as_ptr().add(src_offset), self.as_ptr().add(offset), len) }
    }

    /// Sets `len` bytes at `offset` to `byte`.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        self.with_mut(|bytes| bytes[offset..offset + len].fill(byte));
    }

    pub fn is_zero(&self) -> bool {
        self.with(|bytes| {
            // Bytes before and after the aligned middle are few; the middle compares a word at a time.
            // SAFETY: every bit pattern is a valid u128.
            let (head, middle, tail) = unsafe { bytes.align_to::<u128>() };
            head.iter().all(|&b| b == 0) && middle.iter().all(|&w| w == 0) && tail.iter().all(|&b| b == 0)
        })
    }

    /// Continues a CRC32C (`crc` = 0 to begin) over the bytes.
    pub fn crc32c(&self, crc: u32) -> u32 {
        self.with(|bytes| crc32c::crc32c_append(crc, bytes))
    }
}

impl Clone for Buf {
    fn clone(&self) -> Buf {
        self.seg().refs.fetch_add(1, Ordering::Relaxed);
        Buf { segment: self.segment, range: self.range }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // The only handle cannot be cloned by anyone else: no need for the costly way to count it down.
        if self.seg().refs.load(Ordering::Acquire) == 1 {
            self.seg().refs.store(0, Ordering::Relaxed);
        } else if self.seg().refs.fetch_sub(1, Ordering::Release) != 1 {
            return;
        } else {
            fence(Ordering::Acquire);
        }
        match self.seg().home {
            Home::Pool { home, class } => home.give_back(self.segment, class),
            Home::Heap(layout) => {
                let base = self.seg().base;
                // SAFETY: the count is 0, so this is the last handle; both were made in `Buf::heap`.
                unsafe {
                    std::alloc::dealloc(base.as_ptr(), layout);
                    drop(Box::from_raw(self.segment.as_ptr()));
                }
            }
        }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_memory_and_keep_it_alive() {
        let whole = Buf::heap(8192).expect("heap");
        let part = whole.slice(4096, 512);
        whole.write_at(4096, b"hello");
        drop(whole);
        let mut got = [0; 5];
        part.read_at(0, &mut got);
        assert_eq!(&got, b"hello");
        assert!(part.is_unique());
        assert!(!part.is_zero());
        part.fill(0, 512, 0);
        assert!(part.is_zero());
    }

    #[test]
    #[should_panic(expected = "slice outside")]
    fn a_slice_outside_its_buffer_is_refused() {
        Buf::heap(100).expect("heap").slice(90, 11);
    }
}
