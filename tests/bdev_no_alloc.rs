//! The block layer allocates nothing per I/O: counted by the allocator itself, on a reactor, after a warm-up.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep::bdev::uring::{self, Dialect, UringOptions};
use lockstep::bdev::{Bdev, BdevOptions, Channel, Io, IoOwner, Op, null, passthru, ram};
use lockstep::env::{Buf, CoreList};
use lockstep::reactor::{self, Config, IdleMode, ReactorSet, Reply};

struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: passes everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WARM_UP: u64 = 20_000;
const MEASURED: u64 = 100_000;
const DEPTH: u64 = 128;

/// What a run showed.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    allocations: u64,
    cpu: Duration,
}

/// The calling thread's CPU time: a reactor that spins is not charged for what others do on its core.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Keeps `DEPTH` reads in flight.
struct Load {
    channel: Rc<Channel>,
    buf: Buf,
    submitted: Cell<u64>,
    ended: Cell<u64>,
    total: u64,
    begin: Cell<Duration>,
    reply: RefCell<Option<Reply<Outcome>>>,
}

impl Load {
    fn submit(self: &Rc<Self>, mut io: Box<Io>) {
        let number = self.submitted.replace(self.submitted.get() + 1);
        (io.lba, io.num_blocks) = (number % 1000, 1);
        if io.data.is_empty() {
            io.data.push(self.buf.clone());
        }
        self.channel.submit(io, self.clone());
    }
}

impl IoOwner for Load {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        assert!(io.result.is_ok());
        let ended = self.ended.get() + 1;
        self.ended.set(ended);
        if ended == WARM_UP {
            WATCHED.set(true);
            self.begin.set(cpu_time());
        }
        if self.submitted.get() < self.total {
            self.submit(io);
        } else if ended == self.total {
            let cpu = cpu_time() - self.begin.get();
            WATCHED.set(false);
            let allocations = ALLOCATIONS.swap(0, Ordering::Relaxed);
            if let Some(reply) = self.reply.take() {
                reply.send(Outcome { allocations, cpu });
            }
        }
    }
}

fn options(name: &str) -> BdevOptions {
    let uuid = uuid::Uuid::new_v4();
    BdevOptions { name: name.to_string(), aliases: Vec::new(), uuid, block_size: 4096, num_blocks: 1000 }
}

fn run(set: &ReactorSet, bdev: Arc<Bdev>, count: u64) -> Outcome {
    let outcome = set.ask(0, Duration::from_secs(100), move |reply| {
        let load = Rc::new(Load {
            channel: bdev.channel().expect("channel"),
            buf: reactor::alloc(4096).expect("buffer"),
            submitted: Cell::new(0),
            ended: Cell::new(0),
            total: WARM_UP + count,
            begin: Cell::default(),
            reply: RefCell::new(Some(reply)),
        });
        (0..DEPTH).for_each(|_| load.submit(Io::new(Op::Read)));
    });
    outcome.expect("the load ended")
}

#[test]
fn no_io_allocates_anything_in_the_layer() {
    let cores = CoreList::available().first(1);
    let set =
        ReactorSet::start(&Config { cores, idle: IdleMode::Spin, memory_bytes: 64 << 20 }).expect("set");
    let measured = std::env::var("LOCKSTEP_BDEV_IOS").ok().and_then(|n| n.parse().ok()).unwrap_or(MEASURED);
    let limited = null::create(options("limited")).expect("null");
    // Above the limit I/Os wait: that does not allocate either.
    limited.set_outstanding_limit(16);
    let timed = null::create(options("timed")).expect("null");
    timed.enable_histogram(&Default::default()).expect("histogram");
    let base = null::create(options("base")).expect("null");
    let file = tempfile::NamedTempFile::new().expect("file");
    file.as_file().set_len(4096 * 1000).expect("length");
    let file = uring::create(UringOptions {
        name: "file".to_string(),
        aliases: Vec::new(),
        uuid: uuid::Uuid::new_v4(),
        filename: file.path().to_string_lossy().to_string(),
        block_size: Some(4096),
        read_only: false,
        dialect: Dialect::Uring,
    });
    let devices = [
        null::create(options("null")).expect("null"),
        ram::create(options("ram")).expect("ram"),
        limited,
        timed,
        file.expect("file"),
        passthru::create("passthru", uuid::Uuid::new_v4(), &base).expect("passthru"),
    ];
    for bdev in devices {
        let name = bdev.name().to_string();
        let outcome = run(&set, bdev, measured);
        println!("{name}: {:.1} ns of CPU per I/O", outcome.cpu.as_nanos() as f64 / measured as f64);
        assert_eq!(outcome.allocations, 0, "{name}: {outcome:?}");
    }
}
