//! The load: random 4 KiB writes at a fixed depth through one bdev, every write stamped and remembered; and the
//! reader that takes an image of a volume.
//!
//! The history is behind a mutex that only this reactor takes for long, and others for moments: a load may wait.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep::bdev::{Bdev, Channel, Io, IoOwner, Op};
use lockstep::env::{Buf, clock};
use lockstep::reactor::{self, ReactorSet, Reply};

use super::history::{History, Image};
use super::stamp::{self, BLOCK_BYTES};

/// Writes in flight.
const DEPTH: usize = 32;
/// Bytes of one read of an image.
const READ_BYTES: usize = 128 << 10;
const READS: usize = 8;
/// How long an image may take.
const IMAGE_DEADLINE: Duration = Duration::from_secs(60);

/// What the load tells.
#[derive(Default, Clone)]
pub struct Progress {
    pub acked: u64,
    /// Errors that writes ended with.
    pub errors: Vec<String>,
    /// Longest time from submission to acknowledgement, ns.
    pub slowest_ns: u64,
    pub running: bool,
}

/// A running load.
pub struct Load {
    progress: Arc<Mutex<Progress>>,
    stop: Arc<Mutex<bool>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Writer {
    channel: Rc<Channel>,
    history: Arc<Mutex<History>>,
    progress: Arc<Mutex<Progress>>,
    stop: Arc<Mutex<bool>>,
    blocks: usize,
    blocks_per_unit: u64,
    busy: RefCell<Vec<bool>>,
    started: RefCell<Vec<u64>>,
    bufs: Vec<Buf>,
    in_flight: Cell<usize>,
    random: Cell<u64>,
}

fn next_random(state: &Cell<u64>) -> u64 {
    let mut x = state.get();
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    state.set(x);
    x
}

impl Writer {
    fn issue(self: &Rc<Writer>, slot: usize) {
        let block = loop {
            let block = (next_random(&self.random) % self.blocks as u64) as usize;
            if !std::mem::replace(&mut self.busy.borrow_mut()[block], true) {
                break block;
            }
        };
        let version = lock(&self.history).submit(block);
        stamp::write(&self.bufs[slot], block as u64, version);
        self.started.borrow_mut()[slot] = clock::now();
        let mut io = Io::new(Op::Write);
        io.lba = block as u64 * self.blocks_per_unit;
        io.num_blocks = self.blocks_per_unit;
        io.data.push(self.bufs[slot].clone());
        io.tag = (block as u64) << 16 | slot as u64;
        self.in_flight.set(self.in_flight.get() + 1);
        self.channel.submit(io, self.clone());
    }
}

impl IoOwner for Writer {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        let (block, slot) = ((io.tag >> 16) as usize, (io.tag & 0xffff) as usize);
        self.in_flight.set(self.in_flight.get() - 1);
        let took = clock::now().saturating_sub(self.started.borrow()[slot]);
        let failed = match io.result {
            Ok(()) => {
                lock(&self.history).ack(block);
                self.busy.borrow_mut()[block] = false;
                let mut progress = lock(&self.progress);
                progress.acked += 1;
                progress.slowest_ns = progress.slowest_ns.max(took);
                false
            }
            // The block stays busy: whether the write happened is unknown, so no other one may follow it.
            Err(error) => {
                let mut progress = lock(&self.progress);
                if progress.errors.len() < 8 {
                    progress.errors.push(format!("write of block {block}: {error}"));
                }
                true
            }
        };
        io.recycle();
        if !failed && !*lock(&self.stop) {
            self.issue(slot);
        } else if self.in_flight.get() == 0 {
            lock(&self.progress).running = false;
        }
    }
}

impl Load {
    /// Starts the load on reactor 0.
    pub fn start(
        reactors: &ReactorSet,
        bdev: &Arc<Bdev>,
        history: Arc<Mutex<History>>,
    ) -> Result<Load, String> {
        let load = Load {
            progress: Arc::new(Mutex::new(Progress { running: true, ..Progress::default() })),
            stop: Arc::default(),
        };
        let (progress, stop, bdev) = (load.progress.clone(), load.stop.clone(), bdev.clone());
        let begin = move || -> Result<(), String> {
            let channel = bdev.channel().map_err(|e| e.to_string())?;
            let bufs: Option<Vec<Buf>> = (0..DEPTH).map(|_| reactor::alloc(BLOCK_BYTES)).collect();
            let blocks = bdev.size_bytes() as usize / BLOCK_BYTES;
            let writer = Rc::new(Writer {
                channel,
                history,
                progress,
                stop,
                blocks,
                blocks_per_unit: BLOCK_BYTES as u64 / u64::from(bdev.block_size()),
                busy: RefCell::new(vec![false; blocks]),
                started: RefCell::new(vec![0; DEPTH]),
                bufs: bufs.ok_or("no buffer memory")?,
                in_flight: Cell::new(0),
                random: Cell::new(clock::now() | 1),
            });
            (0..DEPTH).for_each(|slot| writer.issue(slot));
            Ok(())
        };
        reactors.call(0, Duration::from_secs(5), begin).map_err(|e| e.to_string())??;
        Ok(load)
    }

    pub fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Asks the load to end; it does when what is in flight has ended.
    pub fn stop(&self) {
        *lock(&self.stop) = true;
    }

    /// Waits until the load has ended.
    pub fn wait(&self, deadline: Duration) -> Result<Progress, String> {
        let end = std::time::Instant::now() + deadline;
        while self.progress().running {
            if std::time::Instant::now() >= end {
                return Err(format!("writes are still in flight {deadline:?} after the end of the load"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(self.progress())
    }
}

struct Reader {
    channel: Rc<Channel>,
    block_size: u64,
    size: usize,
    next: Cell<usize>,
    left: Cell<usize>,
    image: RefCell<Image>,
    reply: RefCell<Option<Reply<Result<Image, String>>>>,
}

impl Reader {
    fn issue(self: &Rc<Reader>, buf: Buf) {
        let at = self.next.get();
        if at >= self.size {
            return;
        }
        let len = READ_BYTES.min(self.size - at);
        self.next.set(at + len);
        let mut io = Io::new(Op::Read);
        io.lba = at as u64 / self.block_size;
        io.num_blocks = len as u64 / self.block_size;
        io.data.push(buf.slice(0, len));
        io.tag = at as u64;
        self.channel.submit(io, self.clone());
    }

    fn finish(&self, result: Result<Image, String>) {
        if let Some(reply) = self.reply.borrow_mut().take() {
            reply.send(result);
        }
    }
}

impl IoOwner for Reader {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        if let Err(error) = io.result {
            self.finish(Err(format!("read at byte {}: {error}", io.tag)));
            return;
        }
        let (first, buf) = (io.tag as usize / BLOCK_BYTES, io.data[0].clone());
        let verdict = buf.with(|bytes| {
            bytes.chunks_exact(BLOCK_BYTES).enumerate().try_for_each(|(n, block)| {
                self.image.borrow_mut()[first + n] = stamp::read(block, (first + n) as u64)?;
                Ok::<(), String>(())
            })
        });
        if let Err(error) = verdict {
            self.finish(Err(error));
            return;
        }
        self.left.set(self.left.get() - buf.len());
        io.recycle();
        if self.left.get() == 0 {
            self.finish(Ok(self.image.take()));
        } else {
            // The last read of an image may have been shorter than its buffer.
            if buf.len() == READ_BYTES {
                self.issue(buf);
            }
        }
    }
}

/// Reads the whole of `bdev` and tells the version of every block; an unstamped or torn block is an error.
pub fn take_image(reactors: &ReactorSet, bdev: &Arc<Bdev>) -> Result<Image, String> {
    let bdev = bdev.clone();
    let begin = move |reply: Reply<Result<Image, String>>| {
        let size = bdev.size_bytes() as usize;
        let bufs: Option<Vec<Buf>> = (0..READS).map(|_| reactor::alloc(READ_BYTES)).collect();
        match (bdev.channel(), bufs) {
            (Ok(channel), Some(bufs)) => {
                let reader = Rc::new(Reader {
                    channel,
                    block_size: bdev.block_size().into(),
                    size,
                    next: Cell::new(0),
                    left: Cell::new(size),
                    image: RefCell::new(vec![0; size / BLOCK_BYTES]),
                    reply: RefCell::new(Some(reply)),
                });
                bufs.into_iter().for_each(|buf| reader.issue(buf));
            }
            (Err(error), _) => reply.send(Err(error.to_string())),
            (_, None) => reply.send(Err("no buffer memory".to_string())),
        }
    };
    reactors.ask(0, IMAGE_DEADLINE, begin).map_err(|e| e.to_string())?
}

/// Writes one stamped block, for the secondary VM's own writes.
pub fn write_blocks(reactors: &ReactorSet, bdev: &Arc<Bdev>, writes: Vec<(u64, u64)>) -> Result<(), String> {
    struct One {
        channel: Rc<Channel>,
        per_unit: u64,
        buf: Buf,
        left: RefCell<Vec<(u64, u64)>>,
        reply: RefCell<Option<Reply<Result<(), String>>>>,
    }
    impl One {
        fn next(self: &Rc<One>, result: Result<(), String>) {
            let write = self.left.borrow_mut().pop();
            match (result, write) {
                (Ok(()), Some((block, version))) => {
                    stamp::write(&self.buf, block, version);
                    let mut io = Io::new(Op::Write);
                    (io.lba, io.num_blocks) = (block * self.per_unit, self.per_unit);
                    io.data.push(self.buf.clone());
                    self.channel.submit(io, self.clone());
                }
                (result, _) => {
                    if let Some(reply) = self.reply.borrow_mut().take() {
                        reply.send(result);
                    }
                }
            }
        }
    }
    impl IoOwner for One {
        fn io_done(self: Rc<Self>, io: Box<Io>) {
            let result = io.result.map_err(|e| e.to_string());
            io.recycle();
            self.next(result);
        }
    }
    let bdev = bdev.clone();
    let begin = move |reply: Reply<Result<(), String>>| match (bdev.channel(), reactor::alloc(BLOCK_BYTES)) {
        (Ok(channel), Some(buf)) => {
            let per_unit = BLOCK_BYTES as u64 / u64::from(bdev.block_size());
            let reply = RefCell::new(Some(reply));
            Rc::new(One { channel, per_unit, buf, left: RefCell::new(writes), reply }).next(Ok(()));
        }
        (Err(error), _) => reply.send(Err(error.to_string())),
        (_, None) => reply.send(Err("no buffer memory".to_string())),
    };
    reactors.ask(0, IMAGE_DEADLINE, begin).map_err(|e| e.to_string())?
}
