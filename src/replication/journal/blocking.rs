//! Disks for threads that may wait: each call hands its I/Os to a reactor and returns when all of them ended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::replay::{Disks, Medium, Undone};
use crate::bdev::{Bdev, Io, IoError, IoOwner, Op};
use crate::env::Buf;
use crate::reactor::{self, ReactorSet, Reply};

/// A disk that takes longer hangs; the start fails then, and may be tried again.
const DEADLINE: Duration = Duration::from_secs(30);
/// Where the I/O is done.
const REACTOR: usize = 0;

/// One I/O, in bytes of the device.
struct Job {
    bdev: Arc<Bdev>,
    op: Op,
    at: u64,
    len: usize,
    content: Vec<u8>,
    durable: bool,
}

type Outcome = Result<Vec<Vec<u8>>, String>;

/// I/Os that end together.
struct Together {
    left: Cell<usize>,
    error: RefCell<Option<String>>,
    read: RefCell<Vec<Vec<u8>>>,
    reply: RefCell<Option<Reply<Outcome>>>,
}

impl Together {
    fn begin(jobs: Vec<Job>, reply: Reply<Outcome>) {
        let together = Rc::new(Together {
            left: Cell::new(jobs.len() + 1),
            error: RefCell::default(),
            read: RefCell::new(vec![Vec::new(); jobs.len()]),
            reply: RefCell::new(Some(reply)),
        });
        for (index, job) in jobs.into_iter().enumerate() {
            if let Err(error) = together.submit(index, &job) {
                together.ended(Err(error));
            }
        }
        together.ended(Ok(()));
    }

    fn submit(self: &Rc<Together>, index: usize, job: &Job) -> Result<(), String> {
        let channel = job.bdev.channel().map_err(|error| error.to_string())?;
        let block_size = u64::from(job.bdev.block_size());
        if !job.at.is_multiple_of(block_size) || !(job.len as u64).is_multiple_of(block_size) {
            return Err(format!("`{}`: {}", job.bdev.name(), IoError::Invalid));
        }
        let mut io = Io::new(job.op);
        if job.op.has_range() {
            (io.lba, io.num_blocks) = (job.at / block_size, job.len as u64 / block_size);
        }
        if job.op.has_data() {
            let buf = reactor::alloc(job.len).or_else(|| Buf::heap(job.len)).ok_or("no buffer memory")?;
            if job.op == Op::Write {
                buf.write_at(0, &job.content);
            }
            io.data.push(buf);
        }
        (io.fua, io.tag) = (job.durable, index as u64);
        channel.submit(io, self.clone());
        Ok(())
    }

    fn ended(&self, result: Result<(), String>) {
        if let Err(error) = result {
            self.error.borrow_mut().get_or_insert(error);
        }
        self.left.set(self.left.get() - 1);
        let reply = if self.left.get() == 0 { self.reply.take() } else { None };
        if let Some(reply) = reply {
            reply.send(self.error.take().map_or_else(|| Ok(self.read.take()), Err));
        }
    }
}

impl IoOwner for Together {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        if io.op == Op::Read && io.result.is_ok() {
            let bytes = io.data.iter().flat_map(|buf| buf.with(<[u8]>::to_vec)).collect();
            if let Some(place) = self.read.borrow_mut().get_mut(io.tag as usize) {
                *place = bytes;
            }
        }
        let result = io.result.map_err(|error| error.to_string());
        io.recycle();
        self.ended(result);
    }
}

fn carry_out(reactors: &ReactorSet, jobs: Vec<Job>) -> Outcome {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let name = jobs[0].bdev.name().to_string();
    let done = reactors.ask(REACTOR, DEADLINE, move |reply| Together::begin(jobs, reply));
    match done {
        Ok(outcome) => outcome.map_err(|error| format!("`{name}`: {error}")),
        Err(error) => Err(format!("`{name}`: {error}")),
    }
}

/// The journal's own device.
pub(super) struct Device<'a> {
    pub reactors: &'a ReactorSet,
    pub bdev: &'a Arc<Bdev>,
}

impl Device<'_> {
    pub fn write_durably(&self, at: u64, content: Vec<u8>) -> Result<(), String> {
        let bdev = self.bdev.clone();
        let job = Job { bdev, op: Op::Write, at, len: content.len(), content, durable: true };
        carry_out(self.reactors, vec![job]).map(|_| ())
    }
}

impl Medium for Device<'_> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let bdev = self.bdev.clone();
        let job = Job { bdev, op: Op::Read, at, len: into.len(), content: Vec::new(), durable: false };
        let read = carry_out(self.reactors, vec![job])?;
        match read.first() {
            Some(bytes) if bytes.len() == into.len() => into.copy_from_slice(bytes),
            _ => return Err(format!("`{}` read less than it was asked for", self.bdev.name())),
        }
        Ok(())
    }
}

/// The disks below a group's volumes, in the volumes' order.
pub struct Volumes<'a> {
    pub reactors: &'a ReactorSet,
    pub bdevs: &'a [Arc<Bdev>],
}

impl Disks for Volumes<'_> {
    fn size_bytes(&self, volume: u16) -> Option<u64> {
        self.bdevs.get(usize::from(volume)).map(|bdev| bdev.size_bytes())
    }

    fn write(&mut self, originals: Vec<Undone>) -> Result<(), String> {
        let job = |original: Undone| -> Result<Job, String> {
            let bdev = self.bdevs.get(usize::from(original.volume)).ok_or("there is no such volume")?;
            let op = if original.content.is_some() { Op::Write } else { Op::WriteZeroes };
            let content = original.content.unwrap_or_default();
            let (at, len) = (original.offset, original.bytes as usize);
            Ok(Job { bdev: bdev.clone(), op, at, len, content, durable: false })
        };
        let jobs = originals.into_iter().map(job).collect::<Result<Vec<_>, _>>()?;
        carry_out(self.reactors, jobs).map(|_| ())
    }

    fn flush(&mut self) -> Result<(), String> {
        let flush = |bdev: &Arc<Bdev>| Job {
            bdev: bdev.clone(),
            op: Op::Flush,
            at: 0,
            len: 0,
            content: Vec::new(),
            durable: false,
        };
        carry_out(self.reactors, self.bdevs.iter().map(flush).collect()).map(|_| ())
    }
}
