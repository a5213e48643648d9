//! Ways to get an I/O done: a bdev's channel, or a bare NVMe/TCP queue.

use std::cell::RefCell;
use std::rc::Rc;

use lockstep::bdev::nvme::{Command, Completed, QueueError, QueueOptions, QueueOwner, QueuePair};
use lockstep::bdev::{Channel, Io, IoOwner, Op};
use lockstep::env::{Buf, SgList};
use lockstep::nvme::command::IO_FUA;
use lockstep::nvme::{CompletionEntry, IoOpcode, SubmissionEntry};

use crate::generator::Kind;

/// One I/O of a worker.
pub struct Request {
    pub kind: Kind,
    pub lba: u64,
    pub blocks: u64,
    pub fua: bool,
    pub tag: u64,
}

/// Hears of a backend.
pub trait Client {
    fn ready(self: Rc<Self>);
    /// `data` is the request's buffer, unless a device that is gone kept it.
    fn done(self: Rc<Self>, tag: u64, good: bool, data: Option<Buf>, why: &dyn Fn() -> String);
    /// The last call; I/Os have ended before.
    fn closed(self: Rc<Self>, why: String);
}

/// Not a trait: a call through one would pass requests in memory, which shows on a null device.
pub enum Backend {
    Bdev(Bdev),
    Nvme(Rc<Nvme>),
}

impl Backend {
    /// Begins an I/O; `Client::done` follows, never inside this call. Not before `Client::ready`.
    #[inline]
    pub fn submit(&self, request: Request, data: Buf) {
        match self {
            Backend::Bdev(bdev) => bdev.submit(request, data),
            Backend::Nvme(nvme) => nvme.submit(request, data),
        }
    }

    /// Ends the connection, if it is one: `Client::closed` follows then.
    pub fn close(&self) -> bool {
        match self {
            Backend::Bdev(_) => false,
            Backend::Nvme(nvme) => nvme.close(),
        }
    }
}

/// Through the block layer.
pub struct Bdev {
    channel: Rc<Channel>,
    relay: Rc<BdevRelay>,
}

struct BdevRelay {
    client: Rc<dyn Client>,
}

impl Bdev {
    pub fn new(channel: Rc<Channel>, client: Rc<dyn Client>) -> Bdev {
        Bdev { channel, relay: Rc::new(BdevRelay { client }) }
    }

    #[inline]
    fn submit(&self, request: Request, data: Buf) {
        let mut io = Io::new(if request.kind == Kind::Read { Op::Read } else { Op::Write });
        (io.lba, io.num_blocks, io.tag) = (request.lba, request.blocks, request.tag);
        io.fua = request.fua && request.kind == Kind::Write;
        io.data.push(data);
        self.channel.submit(io, self.relay.clone());
    }
}

impl IoOwner for BdevRelay {
    fn io_done(self: Rc<Self>, mut io: Box<Io>) {
        let (tag, result, data) = (io.tag, io.result, io.data.pop());
        io.recycle();
        let why = || result.err().map_or_else(String::new, |e| e.to_string());
        self.client.clone().done(tag, result.is_ok(), data, &why);
    }
}

/// Through one NVMe/TCP queue.
pub struct Nvme {
    queue: RefCell<Option<Rc<QueuePair>>>,
    client: Rc<dyn Client>,
    nsid: u32,
}

impl Nvme {
    pub fn open(options: QueueOptions, nsid: u32, client: Rc<dyn Client>) -> Result<Rc<Nvme>, QueueError> {
        let this = Rc::new(Nvme { queue: RefCell::default(), client, nsid });
        *this.queue.borrow_mut() = Some(QueuePair::open(options, this.clone())?);
        Ok(this)
    }

    fn submit(&self, request: Request, data: Buf) {
        let opcode = if request.kind == Kind::Read { IoOpcode::Read } else { IoOpcode::Write };
        let mut entry = SubmissionEntry::new(opcode as u8, 0);
        entry.nsid = self.nsid.into();
        entry.set_slba(request.lba);
        if request.fua && request.kind == Kind::Write {
            entry.cdw12 = IO_FUA.into();
        }
        entry.set_num_blocks(request.blocks as u32);
        if let Some(queue) = &*self.queue.borrow() {
            queue.submit(Command::new(entry, SgList::from_iter([data])), request.tag);
        }
    }

    fn close(&self) -> bool {
        let queue = self.queue.borrow().clone();
        queue.inspect(|q| q.close(QueueError::Closed)).is_some()
    }
}

impl QueueOwner for Nvme {
    fn queue_ready(self: Rc<Self>, _queue: &Rc<QueuePair>, _connect: CompletionEntry) {
        self.client.clone().ready();
    }

    fn command_done(self: Rc<Self>, _queue: &Rc<QueuePair>, mut done: Completed) {
        let (status, data) = (done.status(), done.data.pop());
        self.client.clone().done(done.tag, status.is_success(), data, &|| status.to_string());
    }

    fn queue_closed(self: Rc<Self>, _queue: &Rc<QueuePair>, why: QueueError) {
        self.queue.take();
        self.client.clone().closed(why.to_string());
    }
}
