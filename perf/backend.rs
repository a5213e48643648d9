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
    pub data: Buf,
    pub tag: u64,
}

/// Hears of a backend.
pub trait Client {
    fn ready(self: Rc<Self>);
    fn done(self: Rc<Self>, tag: u64, good: bool, why: &dyn Fn() -> String);
    /// The last call; I/Os have ended before.
    fn closed(self: Rc<Self>, why: String);
}

pub trait Backend {
    /// Begins an I/O; `Client::done` follows, never inside this call. Not before `Client::ready`.
    fn submit(&self, request: Request);
    /// Ends the connection, if it is one: `Client::closed` follows then.
    fn close(&self) -> bool;
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
}

impl Backend for Bdev {
    fn submit(&self, request: Request) {
        let mut io = Io::new(if request.kind == Kind::Read { Op::Read } else { Op::Write });
        (io.lba, io.num_blocks, io.tag) = (request.lba, request.blocks, request.tag);
        io.fua = request.fua && request.kind == Kind::Write;
        io.data.push(request.data);
        self.channel.submit(io, self.relay.clone());
    }

    fn close(&self) -> bool {
        false
    }
}

impl IoOwner for BdevRelay {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        let why = || io.result.err().map_or_else(String::new, |e| e.to_string());
        self.client.clone().done(io.tag, io.result.is_ok(), &why);
        io.recycle();
    }
}

/// Through one NVMe/TCP queue.
pub struct Nvme {
    queue: RefCell<Option<Rc<QueuePair>>>,
    client: Rc<dyn Client>,
    nsid: u32,
}

impl Nvme {
    pub fn open(
        options: QueueOptions,
        nsid: u32,
        client: Rc<dyn Client>,
    ) -> Result<Rc<dyn Backend>, QueueError> {
        let this = Rc::new(Nvme { queue: RefCell::default(), client, nsid });
        *this.queue.borrow_mut() = Some(QueuePair::open(options, this.clone())?);
        Ok(Rc::new(Handle(this)))
    }
}

struct Handle(Rc<Nvme>);

impl Backend for Handle {
    fn submit(&self, request: Request) {
        let opcode = if request.kind == Kind::Read { IoOpcode::Read } else { IoOpcode::Write };
        let mut entry = SubmissionEntry::new(opcode as u8, 0);
        entry.nsid = self.0.nsid.into();
        entry.set_slba(request.lba);
        if request.fua && request.kind == Kind::Write {
            entry.cdw12 = IO_FUA.into();
        }
        entry.set_num_blocks(request.blocks as u32);
        if let Some(queue) = &*self.0.queue.borrow() {
            queue.submit(Command::new(entry, SgList::from_iter([request.data])), request.tag);
        }
    }

    fn close(&self) -> bool {
        let queue = self.0.queue.borrow().clone();
        queue.inspect(|q| q.close(QueueError::Closed)).is_some()
    }
}

impl QueueOwner for Nvme {
    fn queue_ready(self: Rc<Self>, _queue: &Rc<QueuePair>, _connect: CompletionEntry) {
        self.client.clone().ready();
    }

    fn command_done(self: Rc<Self>, _queue: &Rc<QueuePair>, done: Completed) {
        let why = || done.status().to_string();
        self.client.clone().done(done.tag, done.status().is_success(), &why);
    }

    fn queue_closed(self: Rc<Self>, _queue: &Rc<QueuePair>, why: QueueError) {
        self.queue.take();
        self.client.clone().closed(why.to_string());
    }
}
