//! One anonymous memory mapping, in huge pages where the machine has them.
//!
//! Invariants: the mapping lives until dropped; its contents are shared memory without locks, so whoever writes a
//! range makes sure that nobody else uses it. Any thread.

use std::ptr::NonNull;
use std::sync::Once;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::buf::Buf;

const GIB: usize = 1 << 30;
const TWO_MIB: usize = 2 << 20;

/// What pages back a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    Huge1Gib,
    Huge2Mib,
    Ordinary,
}

impl PageKind {
    pub fn bytes(self) -> usize {
        match self {
            PageKind::Huge1Gib => GIB,
            PageKind::Huge2Mib => TWO_MIB,
            PageKind::Ordinary => 4096,
        }
    }
}

/// A private region of memory; zeroed when made.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    kind: PageKind,
}

// SAFETY: the mapping is plain memory without thread affinity; the module's head says who may touch which range.
unsafe impl Send for Mapping {}
// SAFETY: as above; all access goes through raw copies, no references to the contents are handed out.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes (rounded up to whole pages): 1 GiB pages if `len` fills them, else 2 MiB pages, else
    /// ordinary pages with one warning for the life of the process. Huge pages are taken up front, so a later
    /// access can't fail for want of one.
    pub fn new(len: usize) -> std::io::Result<Mapping> {
        let len = len.max(1);
        if len > isize::MAX as usize - GIB {
            // No address space holds it, and rounding up to whole pages must not overflow.
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        if len.is_multiple_of(GIB)
            && let Ok(mapping) = Mapping::huge(len, PageKind::Huge1Gib)
        {
            return Ok(mapping);
        }
        let reason = match Mapping::huge(len, PageKind::Huge2Mib) {
            Ok(mapping) => return Ok(mapping),
            Err(error) => error,
        };
        static WARN: Once = Once::new();
        WARN.call_once(|| {
            tracing::warn!(
                "no huge pages to be had ({reason}): ordinary memory is used, everything works, slower. \
                 To reserve some: echo 1024 > /proc/sys/vm/nr_hugepages"
            );
        });
        let len = len.next_multiple_of(4096);
        // SAFETY: a new anonymous private mapping aliases nothing.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        Mapping::own(base, len, PageKind::Ordinary)
    }

    fn huge(len: usize, kind: PageKind) -> std::io::Result<Mapping> {
        let len = len.next_multiple_of(kind.bytes());
        let size = if kind == PageKind::Huge1Gib { MemfdFlags::HUGE_1GB } else { MemfdFlags::HUGE_2MB };
        let fd = memfd_create("lockstep", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | size)?;
        ftruncate(&fd, len as u64)?;
        // POPULATE takes the pages now: without it a process that finds the reserve empty dies by SIGBUS.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping of a file that nobody else has aliases nothing.
        let base =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags, &fd, 0) }?;
        Mapping::own(base, len, kind)
    }

    fn own(base: *mut core::ffi::c_void, len: usize, kind: PageKind) -> std::io::Result<Mapping> {
        let base =
            NonNull::new(base.cast()).ok_or_else(|| std::io::Error::other("mmap gave a null address"))?;
        Ok(Mapping { base, len, kind })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn page_kind(&self) -> PageKind {
        self.kind
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "range outside the mapping");
        // SAFETY: the range was just checked to lie in the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Copies `dst.len()` bytes at `offset` into `dst`.
    pub fn copy_to(&self, offset: usize, dst: &Buf) {
        let src = self.at(offset, dst.len());
        // SAFETY: both ranges are live and checked; `copy` allows overlap.
        unsafe { std::ptr::copy(src, dst.as_ptr(), dst.len()) }
    }

    /// Copies all of `src` to `offset`.
    pub fn copy_from(&self, offset: usize, src: &Buf) {
        let dst = self.at(offset, src.len());
        // SAFETY: both ranges are live and checked; `copy` allows overlap.
        unsafe { std::ptr::copy(src.as_ptr(), dst, src.len()) }
    }

    /// Sets `len` bytes at `offset` to zero.
    pub fn zero(&self, offset: usize, len: usize) {
        let dst = self.at(offset, len);
        // SAFETY: the range is live and checked.
        unsafe { std::ptr::write_bytes(dst, 0, len) }
    }

    /// Whether the bytes at `offset` equal `other`.
    pub fn equals(&self, offset: usize, other: &Buf) -> bool {
        let mine = self.at(offset, other.len());
        // SAFETY: the range is live and checked; the caller keeps writers away while the closure runs.
        other.with(|bytes| unsafe { std::slice::from_raw_parts(mine, bytes.len()) } == bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and nothing keeps a pointer past the owner's life.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
