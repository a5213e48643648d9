//! One io_uring per reactor: sockets and files without a system call per operation.
//!
//! Invariants: the kernel only ever sees memory that an operation's slot keeps alive (buffers, addresses, iovecs,
//! the file), and the slot lives until its last completion was reaped; so a buffer that the kernel may still write
//! to is never reused, whatever its requester does. Completions reach their owner from the reactor's loop, never
//! inside a call that submits. This module is the only place above `env` with `unsafe`.
//!
//! A second ring, made when first asked for, polls devices that can be polled (`Lane::Polled`: O_DIRECT files on
//! NVMe with poll queues); it can only read and write.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;
use slab::Slab;
use socket2::SockAddr;

use super::run::with_local;
use crate::env::Buf;
use crate::env::arena::{Arena, MAX_REGIONS};

/// Submission entries: enough that a turn of the loop seldom needs a second system call.
const ENTRIES: u32 = 1024;
/// Completions outlive their turn only when callbacks submit more; the kernel keeps what does not fit.
const COMPLETIONS: u32 = 8192;
/// Files and sockets with a registered slot; the rest work by descriptor.
const FILE_SLOTS: u32 = 4096;
/// The kernel's IOV_MAX.
pub const MAX_IOVECS: usize = 1024;
/// `user_data` of operations that nobody waits for.
const NOBODY: u64 = u64::MAX;
/// `user_data` of the wake event.
const WAKE: u64 = u64::MAX - 1;
/// io_uring_enter flag.
const ENTER_GETEVENTS: u32 = 1;

/// Gets the completions of its operations.
pub trait RingOwner {
    fn ring_done(self: Rc<Self>, tag: u64, done: Done);
}

/// A completion.
#[derive(Debug)]
pub struct Done {
    /// What the system call would have returned.
    pub result: Result<u32, Errno>,
    /// The new socket of an accept.
    pub socket: Option<OwnedFd>,
    /// Whether more completions of the same operation follow (multishot).
    pub more: bool,
}

/// Names an operation in flight. Safe to keep after it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpId(u64);

/// Which ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Interrupt,
    Polled,
}

/// A file or socket known to the calling reactor's ring. Clones share it; it closes when the last clone, and the
/// last operation, is gone.
#[derive(Clone)]
pub struct RingFile(Rc<FileInner>);

struct FileInner {
    fd: Arc<OwnedFd>,
    slot: Option<u32>,
    polled_slot: Option<u32>,
}

impl RingFile {
    /// Registers `fd` with the calling reactor's ring.
    pub fn new(fd: Arc<OwnedFd>, lane: Lane) -> RingFile {
        let raw = fd.as_raw_fd();
        let slot = with_local(|l| l.ring.borrow_mut().register_file(raw));
        let polled_slot = match lane {
            Lane::Interrupt => None,
            Lane::Polled => with_polled(|ring| ring.register_file(raw)).flatten(),
        };
        RingFile(Rc::new(FileInner { fd, slot, polled_slot }))
    }

    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.0.fd
    }
}

impl Drop for FileInner {
    fn drop(&mut self) {
        // The ring may be borrowed now: slots are freed in the reactor's next turn.
        super::run::try_local(|l| {
            if let Some(slot) = self.slot {
                l.closed_files.borrow_mut().push((Lane::Interrupt, slot));
            }
            if let Some(slot) = self.polled_slot {
                l.closed_files.borrow_mut().push((Lane::Polled, slot));
            }
        });
    }
}

/// Everything of an operation that the kernel may look at.
#[allow(dead_code, reason = "kept alive for the kernel, not read by us")]
enum Keep {
    Nothing,
    One(Buf),
    Vector(Box<Vector>),
    Address(Box<SockAddr>),
}

/// An iovec list and the buffers behind it; recycled.
struct Vector {
    iovecs: Vec<libc_iovec>,
    bufs: Vec<Buf>,
    header: Option<Box<MsgHdr>>,
}

#[allow(non_camel_case_types, reason = "the C name of the structure that the kernel reads")]
type libc_iovec = io_uring_iovec::iovec;
type MsgHdr = io_uring_iovec::msghdr;

/// The C structures that io_uring's entries point at, as the kernel lays them out on 64-bit Linux.
mod io_uring_iovec {
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct iovec {
        pub base: *mut u8,
        pub len: usize,
    }

    #[repr(C)]
    pub struct msghdr {
        pub name: *mut u8,
        pub name_len: u32,
        pub iov: *mut iovec,
        pub iov_len: usize,
        pub control: *mut u8,
        pub control_len: usize,
        pub flags: i32,
    }
    const _: () = assert!(size_of::<iovec>() == 16 && size_of::<msghdr>() == 56);
}

struct Slot {
    owner: Rc<dyn RingOwner>,
    tag: u64,
    generation: u32,
    /// An accept: a result that is not an error is a new socket.
    accepts: bool,
    keep: Keep,
    /// Keeps the file open; `None` for operations without one.
    _file: Option<RingFile>,
}

pub(super) struct Ring {
    ring: IoUring,
    slots: Slab<Slot>,
    generation: u32,
    #[allow(clippy::vec_box, reason = "the boxes move into slots and back without copying or allocating")]
    free_vectors: Vec<Box<Vector>>,
    file_slots: Vec<u32>,
    /// Registration state of each arena region: unknown, registered, or refused.
    regions: Vec<Option<bool>>,
    arena: &'static Arena,
    reaped: Vec<(u64, i32, u32)>,
    /// Entries that found the submission queue full, with it submitted in order.
    overflow: VecDeque<squeue::Entry>,
    fixed_buffers: bool,
    kind: Lane,
}

pub(super) struct Reaped {
    pub(super) owner: Rc<dyn RingOwner>,
    pub(super) tag: u64,
    pub(super) done: Done,
}

impl Ring {
    pub(super) fn new(arena: &'static Arena, kind: Lane) -> std::io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_submit_all().setup_single_issuer();
        match kind {
            Lane::Interrupt => builder.setup_defer_taskrun().setup_taskrun_flag(),
            Lane::Polled => builder.setup_iopoll(),
        };
        // Kernels before 6.1 lack single-issuer and deferred task runs; everything else is the same there.
        let ring = builder.build(ENTRIES).or_else(|error| {
            if error.raw_os_error() != Some(Errno::INVAL.raw_os_error()) {
                return Err(error);
            }
            let mut plain = IoUring::builder();
            plain.setup_cqsize(COMPLETIONS);
            if kind == Lane::Polled {
                plain.setup_iopoll();
            }
            plain.build(ENTRIES)
        })?;
        // Without CAP_IPC_LOCK a low memlock limit refuses registered buffers: plain ones are used then.
        let fixed_buffers = ring.submitter().register_buffers_sparse(MAX_REGIONS as u32).is_ok();
        let file_slots = match ring.submitter().register_files_sparse(FILE_SLOTS) {
            Ok(()) => (0..FILE_SLOTS).rev().collect(),
            Err(_) => Vec::new(),
        };
        Ok(Ring {
            ring,
            slots: Slab::with_capacity(1024),
            generation: 0,
            free_vectors: Vec::new(),
            file_slots,
            regions: vec![None; MAX_REGIONS],
            arena,
            reaped: Vec::with_capacity(256),
            overflow: VecDeque::new(),
            fixed_buffers,
            kind,
        })
    }

    fn register_file(&mut self, raw: RawFd) -> Option<u32> {
        let slot = self.file_slots.pop()?;
        match self.ring.submitter().register_files_update(slot, &[raw]) {
            Ok(_) => Some(slot),
            Err(_) => {
                self.file_slots.push(slot);
                None
            }
        }
    }

    pub(super) fn release_file(&mut self, slot: u32) {
        let _ = self.ring.submitter().register_files_update(slot, &[-1]);
        self.file_slots.push(slot);
    }

    /// The registered-buffer index of a buffer's region, registering the region when first met.
    fn fixed_index(&mut self, buf: &Buf) -> Option<u16> {
        if !self.fixed_buffers {
            return None;
        }
        let region = buf.region()?;
        let known = &mut self.regions[region as usize];
        if known.is_none() {
            let (base, len) = self.arena.region(region)?;
            let iovec = io_uring_iovec::iovec { base, len };
            // SAFETY: `iovec` has the layout of the C structure, and the region stays mapped for ever.
            let registered = unsafe {
                let iovec = std::slice::from_raw_parts((&raw const iovec).cast(), 1);
                self.ring.submitter().register_buffers_update(region, iovec, None)
            };
            if let Err(error) = &registered {
                tracing::info!(
                    "data buffers stay unregistered with the ring ({error}); raise `ulimit -l` for less CPU"
                );
            }
            *known = Some(registered.is_ok());
        }
        (*known == Some(true)).then_some(region as u16)
    }

    fn insert(&mut self, owner: Rc<dyn RingOwner>, tag: u64, keep: Keep, file: Option<RingFile>) -> OpId {
        self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff;
        let generation = self.generation;
        let index = self.slots.insert(Slot { owner, tag, generation, accepts: false, keep, _file: file });
        OpId(index as u64 | u64::from(generation) << 32)
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.overflow.is_empty() {
            // SAFETY: everything that the entry points at is kept by its slot until the completion.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            let _ = self.ring.submit();
            // SAFETY: as above.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.overflow.push_back(entry);
    }

    fn vector(&mut self, bufs: impl Iterator<Item = Buf>) -> Box<Vector> {
        let mut vector = self
            .free_vectors
            .pop()
            .unwrap_or_else(|| Box::new(Vector { iovecs: Vec::new(), bufs: Vec::new(), header: None }));
        vector.bufs.extend(bufs.take(MAX_IOVECS));
        vector
            .iovecs
            .extend(vector.bufs.iter().map(|b| io_uring_iovec::iovec { base: b.as_ptr(), len: b.len() }));
        vector
    }

    /// Runs the kernel's side once: submits, lets deferred work happen, waits at most `wait_ns` for a completion
    /// (0: not at all). Returns whether there is anything to reap.
    pub(super) fn turn(&mut self, wait_ns: Option<u64>) -> bool {
        while let Some(entry) = self.overflow.pop_front() {
            // SAFETY: everything that the entry points at is kept by its slot until the completion.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.overflow.push_front(entry);
                break;
            }
        }
        let (queued, kernel_work) = {
            let submission = self.ring.submission();
            (submission.len(), submission.taskrun() || submission.cq_overflow())
        };
        let outcome = match wait_ns {
            Some(0) => {
                if queued > 0 || kernel_work || (self.kind == Lane::Polled && !self.slots.is_empty()) {
                    // SAFETY: no argument is passed.
                    unsafe { self.ring.submitter().enter::<()>(queued as u32, 0, ENTER_GETEVENTS, None) }
                } else {
                    Ok(0)
                }
            }
            Some(ns) => {
                let time = Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
            None => self.ring.submit_and_wait(1),
        };
        if let Err(error) = outcome {
            // Busy, interrupted, timed out: the next turn does it again.
            let expected =
                [Errno::TIME, Errno::INTR, Errno::BUSY, Errno::AGAIN].map(|e| Some(e.raw_os_error()));
            if !expected.contains(&error.raw_os_error()) {
                tracing::error!("io_uring: {error}");
            }
        }
        !self.ring.completion().is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Moves completions out of the ring. True if the wake event was among them.
    pub(super) fn reap(&mut self, into: &mut Vec<Reaped>) -> bool {
        self.reaped.extend(self.ring.completion().map(|e| (e.user_data(), e.result(), e.flags())));
        let mut woken = false;
        let mut list = std::mem::take(&mut self.reaped);
        for (user_data, result, flags) in list.drain(..) {
            match user_data {
                NOBODY => continue,
                WAKE => {
                    woken = true;
                    continue;
                }
                _ => {}
            }
            let index = (user_data & 0xffff_ffff) as usize;
            let more = cqueue::more(flags);
            let Some(slot) = self.slots.get(index) else { continue };
            let (owner, tag, accepts) = (slot.owner.clone(), slot.tag, slot.accepts);
            if !more {
                let slot = self.slots.remove(index);
                if let Keep::Vector(mut vector) = slot.keep {
                    vector.bufs.clear();
                    vector.iovecs.clear();
                    self.free_vectors.push(vector);
                }
            }
            let outcome = u32::try_from(result).map_err(|_| Errno::from_raw_os_error(-result));
            let socket = match outcome {
                // SAFETY: a successful accept gives a new descriptor that nobody else knows.
                Ok(fd) if accepts => Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
                _ => None,
            };
            into.push(Reaped { owner, tag, done: Done { result: outcome, socket, more } });
        }
        self.reaped = list;
        woken
    }

    /// Arms the wake event: one read into a buffer that lives as long as the reactor.
    pub(super) fn arm_wake(&mut self, event: RawFd, buffer: &Buf) {
        let entry = opcode::Read::new(Fd(event), buffer.as_ptr(), 8).build().user_data(WAKE);
        self.push(entry);
    }

    /// Asks the kernel to end everything in flight.
    pub(super) fn cancel_all(&mut self) {
        let keys: Vec<u64> =
            self.slots.iter().map(|(index, slot)| index as u64 | u64::from(slot.generation) << 32).collect();
        for key in keys {
            self.push(opcode::AsyncCancel::new(key).build().user_data(NOBODY));
        }
    }

    /// Forgets what the kernel did not give back, so that its memory is never reused.
    pub(super) fn leak_in_flight(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
    }
}

/// Builds an entry for a registered or plain file.
macro_rules! on_file {
    ($file:expr, $lane:expr, |$fd:ident| $op:expr) => {{
        let slot = if $lane == Lane::Polled { $file.0.polled_slot } else { $file.0.slot };
        match slot {
            Some(slot) => {
                let $fd = Fixed(slot);
                $op
            }
            None => {
                let $fd = Fd($file.0.fd.as_raw_fd());
                $op
            }
        }
    }};
}

fn with_ring<R>(lane: Lane, f: impl FnOnce(&mut Ring) -> R) -> R {
    match lane {
        Lane::Interrupt => with_local(|l| f(&mut l.ring.borrow_mut())),
        Lane::Polled => with_local(|l| match &mut *l.polled.borrow_mut() {
            Some(ring) => f(ring),
            None => f(&mut l.ring.borrow_mut()),
        }),
    }
}

fn with_polled<R>(f: impl FnOnce(&mut Ring) -> R) -> Option<R> {
    with_local(|l| {
        let mut polled: std::cell::RefMut<'_, Option<Ring>> = RefCell::borrow_mut(&l.polled);
        if polled.is_none() {
            match Ring::new(l.arena, Lane::Polled) {
                Ok(ring) => *polled = Some(ring),
                Err(error) => tracing::warn!("no polled io_uring ({error}): files are used without polling"),
            }
        }
        polled.as_mut().map(f)
    })
}

/// Accepts connections until cancelled: one completion each, with the new socket.
pub fn accept_many(file: &RingFile, owner: Rc<dyn RingOwner>, tag: u64) -> OpId {
    with_ring(Lane::Interrupt, |ring| {
        let id = ring.insert(owner, tag, Keep::Nothing, Some(file.clone()));
        if let Some(slot) = ring.slots.get_mut((id.0 & 0xffff_ffff) as usize) {
            slot.accepts = true;
        }
        let flags = rustix::net::SocketFlags::CLOEXEC.bits() as i32;
        let entry = on_file!(file, Lane::Interrupt, |fd| opcode::AcceptMulti::new(fd).flags(flags).build());
        ring.push(entry.user_data(id.0));
        id
    })
}

/// Connects a socket.
pub fn connect(file: &RingFile, address: SockAddr, owner: Rc<dyn RingOwner>, tag: u64) -> OpId {
    with_ring(Lane::Interrupt, |ring| {
        let address = Box::new(address);
        let (pointer, len) = (address.as_ptr(), address.len());
        let id = ring.insert(owner, tag, Keep::Address(address), Some(file.clone()));
        let entry =
            on_file!(file, Lane::Interrupt, |fd| opcode::Connect::new(fd, pointer.cast(), len).build());
        ring.push(entry.user_data(id.0));
        id
    })
}

/// Receives into `buf`: what is there (`all` = false), or exactly its length unless the stream ends.
pub fn recv(file: &RingFile, buf: Buf, all: bool, owner: Rc<dyn RingOwner>, tag: u64) -> OpId {
    with_ring(Lane::Interrupt, |ring| {
        let (pointer, len) = (buf.as_ptr(), buf.len() as u32);
        let id = ring.insert(owner, tag, Keep::One(buf), Some(file.clone()));
        let flags = if all { rustix::net::RecvFlags::WAITALL.bits() as i32 } else { 0 };
        let entry =
            on_file!(file, Lane::Interrupt, |fd| opcode::Recv::new(fd, pointer, len).flags(flags).build());
        ring.push(entry.user_data(id.0));
        id
    })
}

/// Receives into `bufs` in order: what is there (`all` = false), or exactly their bytes unless the stream ends. At
/// most [`MAX_IOVECS`] buffers.
pub fn recv_vectored(
    file: &RingFile,
    bufs: impl Iterator<Item = Buf>,
    all: bool,
    owner: Rc<dyn RingOwner>,
    tag: u64,
) -> OpId {
    let flags = if all { rustix::net::RecvFlags::WAITALL.bits() } else { 0 };
    with_ring(Lane::Interrupt, |ring| {
        let (vector, header) = message(ring, bufs);
        let id = ring.insert(owner, tag, Keep::Vector(vector), Some(file.clone()));
        let entry = on_file!(file, Lane::Interrupt, |fd| opcode::RecvMsg::new(fd, header.cast())
            .flags(flags)
            .build());
        ring.push(entry.user_data(id.0));
        id
    })
}

/// Sends all of `bufs` in order, in one operation. At most [`MAX_IOVECS`] buffers. Completes when everything went
/// out or the socket failed.
pub fn send(file: &RingFile, bufs: impl Iterator<Item = Buf>, owner: Rc<dyn RingOwner>, tag: u64) -> OpId {
    /// MSG_WAITALL (send everything or fail) and MSG_NOSIGNAL.
    const FLAGS: u32 = 0x100 | 0x4000;
    with_ring(Lane::Interrupt, |ring| {
        let (vector, header) = message(ring, bufs);
        let id = ring.insert(owner, tag, Keep::Vector(vector), Some(file.clone()));
        let entry = on_file!(file, Lane::Interrupt, |fd| opcode::SendMsg::new(fd, header.cast())
            .flags(FLAGS)
            .build());
        ring.push(entry.user_data(id.0));
        id
    })
}

fn message(ring: &mut Ring, bufs: impl Iterator<Item = Buf>) -> (Box<Vector>, *mut MsgHdr) {
    let mut vector = ring.vector(bufs);
    let new = MsgHdr {
        name: std::ptr::null_mut(),
        name_len: 0,
        iov: vector.iovecs.as_mut_ptr(),
        iov_len: vector.iovecs.len(),
        control: std::ptr::null_mut(),
        control_len: 0,
        flags: 0,
    };
    let header: *mut MsgHdr = match &mut vector.header {
        Some(header) => {
            **header = new;
            &mut **header
        }
        empty => &mut **empty.insert(Box::new(new)),
    };
    (vector, header)
}

/// Reads a file at `offset` into `bufs`; may read less.
pub fn read(
    lane: Lane,
    file: &RingFile,
    bufs: &[Buf],
    offset: u64,
    owner: Rc<dyn RingOwner>,
    tag: u64,
) -> OpId {
    transfer(lane, file, bufs, offset, owner, tag, Transfer::Read)
}

/// Writes `bufs` to a file at `offset`; may write less. `durable` is RWF_DSYNC.
pub fn write(
    lane: Lane,
    file: &RingFile,
    bufs: &[Buf],
    offset: u64,
    durable: bool,
    owner: Rc<dyn RingOwner>,
    tag: u64,
) -> OpId {
    transfer(lane, file, bufs, offset, owner, tag, Transfer::Write { durable })
}

enum Transfer {
    Read,
    Write { durable: bool },
}

fn transfer(
    lane: Lane,
    file: &RingFile,
    bufs: &[Buf],
    offset: u64,
    owner: Rc<dyn RingOwner>,
    tag: u64,
    what: Transfer,
) -> OpId {
    /// RWF_DSYNC.
    const DSYNC: i32 = 0x2;
    with_ring(lane, |ring| {
        let flags = if matches!(what, Transfer::Write { durable: true }) { DSYNC } else { 0 };
        let (entry, keep) = if let [buf] = bufs {
            let (pointer, len) = (buf.as_ptr(), buf.len() as u32);
            let entry = match (&what, ring.fixed_index(buf)) {
                (Transfer::Read, Some(index)) => {
                    on_file!(file, lane, |fd| opcode::ReadFixed::new(fd, pointer, len, index)
                        .offset(offset)
                        .build())
                }
                (Transfer::Read, None) => {
                    on_file!(file, lane, |fd| opcode::Read::new(fd, pointer, len).offset(offset).build())
                }
                (Transfer::Write { .. }, Some(index)) => on_file!(file, lane, |fd| {
                    opcode::WriteFixed::new(fd, pointer, len, index).offset(offset).rw_flags(flags).build()
                }),
                (Transfer::Write { .. }, None) => on_file!(file, lane, |fd| {
                    opcode::Write::new(fd, pointer, len).offset(offset).rw_flags(flags).build()
                }),
            };
            (entry, Keep::One(buf.clone()))
        } else {
            let vector = ring.vector(bufs.iter().cloned());
            let (pointer, len) = (vector.iovecs.as_ptr(), vector.iovecs.len() as u32);
            let entry = match what {
                Transfer::Read => {
                    on_file!(file, lane, |fd| opcode::Readv::new(fd, pointer.cast(), len)
                        .offset(offset)
                        .build())
                }
                Transfer::Write { .. } => on_file!(file, lane, |fd| {
                    opcode::Writev::new(fd, pointer.cast(), len).offset(offset).rw_flags(flags).build()
                }),
            };
            (entry, Keep::Vector(vector))
        };
        let id = ring.insert(owner, tag, keep, Some(file.clone()));
        ring.push(entry.user_data(id.0));
        id
    })
}

/// Makes a file's data durable (fdatasync).
pub fn sync_data(file: &RingFile, owner: Rc<dyn RingOwner>, tag: u64) -> OpId {
    with_ring(Lane::Interrupt, |ring| {
        let id = ring.insert(owner, tag, Keep::Nothing, Some(file.clone()));
        let flags = io_uring::types::FsyncFlags::DATASYNC;
        let entry = on_file!(file, Lane::Interrupt, |fd| opcode::Fsync::new(fd).flags(flags).build());
        ring.push(entry.user_data(id.0));
        id
    })
}

/// fallocate(2) with its mode bits.
pub fn fallocate(
    file: &RingFile,
    mode: i32,
    offset: u64,
    len: u64,
    owner: Rc<dyn RingOwner>,
    tag: u64,
) -> OpId {
    with_ring(Lane::Interrupt, |ring| {
        let id = ring.insert(owner, tag, Keep::Nothing, Some(file.clone()));
        let entry = on_file!(file, Lane::Interrupt, |fd| {
            opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
        });
        ring.push(entry.user_data(id.0));
        id
    })
}

/// Asks to end an operation early; its completion (often ECANCELED) still comes.
pub fn cancel(id: OpId) {
    with_ring(Lane::Interrupt, |ring| {
        let live = ring
            .slots
            .get((id.0 & 0xffff_ffff) as usize)
            .is_some_and(|s| u64::from(s.generation) == id.0 >> 32);
        if live {
            ring.push(opcode::AsyncCancel::new(id.0).build().user_data(NOBODY));
        }
    });
}
