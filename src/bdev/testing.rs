//! For tests: runs I/Os on real reactors and collects what became of them; a device that ends nothing by itself.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::env::{Buf, CoreList, SgList};
use crate::reactor::{Config, IdleMode, ReactorSet};

/// Far longer than anything in a test takes.
pub const SOON: Duration = Duration::from_secs(10);

/// Reactors on the machine's first cores.
pub fn reactors(count: usize) -> Arc<ReactorSet> {
    let cores = CoreList::available().first(count);
    ReactorSet::start(&Config { cores, idle: IdleMode::Adaptive, memory_bytes: 64 << 20 }).expect("reactors")
}

/// Options of a test device.
pub fn options(name: &str, num_blocks: u64, block_size: u32) -> BdevOptions {
    let uuid = uuid::Uuid::new_v4();
    BdevOptions { name: name.to_string(), aliases: Vec::new(), uuid, block_size, num_blocks }
}

/// A RAM disk of 512-byte blocks.
pub fn ram(name: &str, num_blocks: u64) -> Arc<Bdev> {
    super::ram::create(options(name, num_blocks, 512)).expect("ram")
}

/// One I/O of a script, in plain bytes.
#[derive(Debug, Clone)]
pub struct Req {
    pub op: Op,
    pub lba: u64,
    pub num_blocks: u64,
    pub data: Vec<u8>,
    pub compare: Vec<u8>,
    pub fua: bool,
    /// Data goes in buffers of this size.
    pub piece: usize,
}

impl Req {
    pub fn new(op: Op, lba: u64, num_blocks: u64) -> Req {
        let (data, compare) = (Vec::new(), Vec::new());
        Req { op, lba, num_blocks, data, compare, fua: false, piece: 1 << 20 }
    }

    /// A read of blocks of `block_size`.
    pub fn read(lba: u64, num_blocks: u64, block_size: usize) -> Req {
        Req { data: vec![0; num_blocks as usize * block_size], ..Req::new(Op::Read, lba, num_blocks) }
    }

    /// A write of `num_blocks` blocks of `block_size` full of `byte`.
    pub fn write(lba: u64, num_blocks: u64, block_size: usize, byte: u8) -> Req {
        Req { data: vec![byte; num_blocks as usize * block_size], ..Req::new(Op::Write, lba, num_blocks) }
    }

    pub fn flush() -> Req {
        Req::new(Op::Flush, 0, 0)
    }

    fn list(&self, bytes: &[u8]) -> SgList {
        let one = |piece: &[u8]| {
            let buf = Buf::heap(piece.len()).expect("heap");
            buf.write_at(0, piece);
            buf
        };
        bytes.chunks(self.piece).map(one).collect()
    }

    fn to_io(&self) -> Box<Io> {
        let mut io = Io::new(self.op);
        (io.lba, io.num_blocks, io.fua) = (self.lba, self.num_blocks, self.fua);
        io.data = self.list(&self.data);
        io.compare = self.list(&self.compare);
        io
    }
}

/// What became of the I/O with this index in its script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub index: usize,
    pub result: Result<(), IoError>,
    pub data: Vec<u8>,
}

struct Collector {
    _channel: Rc<Channel>,
    sender: Sender<Outcome>,
}

impl IoOwner for Collector {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        let data = io.data.iter().flat_map(|b| b.with(<[u8]>::to_vec)).collect();
        let _ = self.sender.send(Outcome { index: io.tag as usize, result: io.result, data });
        io.recycle();
    }
}

/// A script under way.
pub struct Running {
    pub ids: Vec<IoId>,
    receiver: Receiver<Outcome>,
    left: usize,
}

/// Submits all of `script` at once on one reactor.
pub fn start(set: &ReactorSet, reactor: usize, bdev: &Arc<Bdev>, script: Vec<Req>) -> Running {
    let (sender, receiver) = mpsc::channel();
    let left = script.len();
    let bdev = bdev.clone();
    let ids = set
        .call(reactor, SOON, move || {
            let channel = bdev.channel().expect("channel");
            let collector = Rc::new(Collector { _channel: channel.clone(), sender });
            let submit = |(index, req): (usize, &Req)| {
                let mut io = req.to_io();
                io.tag = index as u64;
                channel.submit(io, collector.clone())
            };
            script.iter().enumerate().map(submit).collect::<Vec<_>>()
        })
        .expect("submit");
    Running { ids, receiver, left }
}

impl Running {
    /// The next I/O to end.
    pub fn one(&mut self) -> Outcome {
        self.left -= 1;
        self.receiver.recv_timeout(SOON).expect("an I/O did not end")
    }

    /// The next I/O to end, if one ends within `time`.
    pub fn next_within(&mut self, time: Duration) -> Option<Outcome> {
        let outcome = self.receiver.recv_timeout(time).ok()?;
        self.left -= 1;
        Some(outcome)
    }

    /// Everything that has not ended yet, in the order in which it ends.
    pub fn rest(mut self) -> Vec<Outcome> {
        (0..self.left).map(|_| self.one()).collect()
    }
}

/// Runs a script and gives the outcomes in the order of the script.
pub fn run(set: &ReactorSet, reactor: usize, bdev: &Arc<Bdev>, script: Vec<Req>) -> Vec<Outcome> {
    let mut outcomes = start(set, reactor, bdev, script).rest();
    outcomes.sort_by_key(|o| o.index);
    outcomes
}

/// Runs one I/O.
pub fn run_one(set: &ReactorSet, reactor: usize, bdev: &Arc<Bdev>, req: Req) -> Outcome {
    run(set, reactor, bdev, vec![req]).remove(0)
}

/// A device that keeps every I/O until it is told to end it.
#[derive(Default)]
pub struct Stuck {
    /// Started I/Os by first block, in order.
    pub started: Arc<Mutex<Vec<u64>>>,
    /// Whether it ends what it is asked to abort.
    pub aborts: bool,
}

thread_local! {
    #[allow(clippy::vec_box, reason = "a device is handed boxes")]
    static STUCK: RefCell<Vec<Box<Io>>> = const { RefCell::new(Vec::new()) };
}

struct StuckChannel {
    started: Arc<Mutex<Vec<u64>>>,
    aborts: bool,
}

impl Device for Stuck {
    fn product_name(&self) -> &'static str {
        "Stuck disk"
    }
    fn supports(&self, op: Op) -> bool {
        matches!(op, Op::Read | Op::Write | Op::Flush)
    }
    fn open_channel(&self, _bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        Ok(Rc::new(StuckChannel { started: self.started.clone(), aborts: self.aborts }))
    }
    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }
}

impl DeviceChannel for StuckChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        self.started.lock().expect("started").push(io.lba);
        STUCK.with(|s| s.borrow_mut().push(io));
    }
    fn abort(&self, id: IoId) {
        if self.aborts {
            let found = STUCK.with(|s| {
                let mut stuck = s.borrow_mut();
                stuck.iter().position(|io| io.id() == id).map(|at| stuck.remove(at))
            });
            found.into_iter().for_each(|io| io.complete(Err(IoError::Aborted)));
        }
    }
}

/// Ends the `count` oldest I/Os that the stuck devices of one reactor hold.
pub fn unstick(set: &ReactorSet, reactor: usize, count: usize) -> usize {
    set.call(reactor, SOON, move || {
        let freed: Vec<_> = STUCK.with(|s| {
            let mut stuck = s.borrow_mut();
            let count = count.min(stuck.len());
            stuck.drain(..count).collect()
        });
        let count = freed.len();
        freed.into_iter().for_each(|io: Box<Io>| io.complete(Ok(())));
        count
    })
    .expect("unstick")
}

/// A device that can read and write and nothing else.
#[derive(Default)]
pub struct ReadWriteOnly {
    bytes: Arc<Mutex<Vec<u8>>>,
}

struct ReadWriteOnlyChannel(Arc<Mutex<Vec<u8>>>);

impl Device for ReadWriteOnly {
    fn product_name(&self) -> &'static str {
        "Plain disk"
    }
    fn supports(&self, op: Op) -> bool {
        matches!(op, Op::Read | Op::Write)
    }
    fn open_channel(&self, bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        self.bytes.lock().expect("bytes").resize(bdev.size_bytes() as usize, 0);
        Ok(Rc::new(ReadWriteOnlyChannel(self.bytes.clone())))
    }
    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }
}

impl DeviceChannel for ReadWriteOnlyChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        let mut bytes = self.0.lock().expect("bytes");
        let mut at = io.lba as usize * 512;
        for buf in &io.data {
            let range = at..at + buf.len();
            match io.op {
                Op::Read => buf.write_at(0, &bytes[range]),
                Op::Write => buf.read_at(0, &mut bytes[range]),
                other => panic!("{other:?} reached a device that does not know it"),
            }
            at += buf.len();
        }
        drop(bytes);
        io.complete(Ok(()));
    }
}
