//! One I/O on its way through the layer.

use std::cell::RefCell;
use std::rc::Rc;

use super::channel::Channel;
use super::done;
use super::error::IoError;
use super::flight::IoId;
use crate::env::SgList;

/// What an I/O does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    Read,
    /// With `fua`: durable before it ends.
    Write,
    /// Everything that ended before is durable when this ends. Has no range.
    Flush,
    WriteZeroes,
    /// The range reads as zeroes afterwards, on every device of ours.
    Unmap,
    /// `data` is what the range is expected to hold; ends with [`IoError::Miscompare`] otherwise.
    Compare,
    /// Atomically: `compare` is expected, then `data` is written.
    CompareAndWrite,
    /// Ends everything in flight on the calling channel. Has no range.
    Reset,
}

impl Op {
    pub const ALL: [Op; 8] = [
        Op::Read,
        Op::Write,
        Op::Flush,
        Op::WriteZeroes,
        Op::Unmap,
        Op::Compare,
        Op::CompareAndWrite,
        Op::Reset,
    ];

    /// Whether the I/O names a range of blocks.
    pub fn has_range(self) -> bool {
        !matches!(self, Op::Flush | Op::Reset)
    }

    /// Whether `data` must hold the range's bytes.
    pub fn has_data(self) -> bool {
        matches!(self, Op::Read | Op::Write | Op::Compare | Op::CompareAndWrite)
    }

    /// Whether it changes the medium.
    pub fn modifies(self) -> bool {
        matches!(self, Op::Write | Op::WriteZeroes | Op::Unmap | Op::CompareAndWrite)
    }
}

/// A set of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct OpSet(u8);

impl OpSet {
    #[inline]
    pub(super) fn contains(self, op: Op) -> bool {
        self.0 & 1 << op as u8 != 0
    }
}

impl FromIterator<Op> for OpSet {
    fn from_iter<I: IntoIterator<Item = Op>>(ops: I) -> OpSet {
        OpSet(ops.into_iter().fold(0, |bits, op| bits | 1 << op as u8))
    }
}

/// Gets an I/O back when it ended. Called from the reactor's loop, never inside `submit`.
pub trait IoOwner {
    /// `io.result` tells the outcome. `io.data` still holds the buffers, except after the removal of a device that
    /// has not returned them: then the lists are empty.
    fn io_done(self: Rc<Self>, io: Box<Io>);
}

/// A request and its outcome. Boxes are recycled per thread: [`Io::new`] and [`Io::recycle`].
pub struct Io {
    pub op: Op,
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub num_blocks: u64,
    /// The bytes to write, to compare with, or the place to read into.
    pub data: SgList,
    /// What `CompareAndWrite` expects.
    pub compare: SgList,
    /// Force unit access: durable before it ends.
    pub fua: bool,
    /// For its owner.
    pub tag: u64,
    pub result: Result<(), IoError>,
    /// Scratch space of the device that has it.
    pub driver: [u64; 2],
    /// The layer's name of it; a device gets the same in `abort`.
    pub(super) id: IoId,
    pub(super) channel: Option<Rc<Channel>>,
}

/// Free boxes kept per thread: as many as the deepest queue a thread usually serves.
const KEPT: usize = 4096;

thread_local! {
    #[allow(clippy::vec_box, reason = "the boxes themselves are what is recycled")]
    static FREE: RefCell<Vec<Box<Io>>> = const { RefCell::new(Vec::new()) };
}

impl Io {
    /// An I/O without range and data.
    pub fn new(op: Op) -> Box<Io> {
        let free = FREE.with(|f| f.borrow_mut().pop());
        match free {
            Some(mut io) => {
                io.op = op;
                io
            }
            None => Box::new(Io {
                op,
                lba: 0,
                num_blocks: 0,
                data: SgList::new(),
                compare: SgList::new(),
                fua: false,
                tag: 0,
                result: Ok(()),
                driver: [0; 2],
                id: IoId::NONE,
                channel: None,
            }),
        }
    }

    /// Gives the box back for reuse; drops the buffers.
    pub fn recycle(mut self: Box<Io>) {
        self.data.clear();
        self.compare.clear();
        (self.lba, self.num_blocks, self.fua, self.tag) = (0, 0, false, 0);
        self.result = Ok(());
        self.driver = [0; 2];
        self.channel = None;
        FREE.with(|f| {
            let mut free = f.borrow_mut();
            if free.len() < KEPT {
                free.push(self);
            }
        });
    }

    /// The layer's name of this I/O on its channel.
    pub fn id(&self) -> IoId {
        self.id
    }

    /// Ends the I/O: the device's last word. The owner hears of it from the reactor's loop.
    pub fn complete(mut self: Box<Io>, result: Result<(), IoError>) {
        self.result = result;
        done::completed(self);
    }
}
