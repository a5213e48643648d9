//! What devices on top of another bdev share: claiming it, and passing I/Os down and back up.
//!
//! Invariants: the claim lasts as long as the upper bdev is known; an I/O's buffers move down with it and come back
//! with its end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;
use uuid::Uuid;

use super::channel::Channel;
use super::device::{Bdev, BdevOptions, Device};
use super::error::BdevError;
use super::flight::IoId;
use super::io::{Io, IoOwner, Op};

/// Makes a bdev of `base`'s geometry over it. `module` is who claims the base.
pub(super) fn create(
    name: &str,
    uuid: Uuid,
    base: &Arc<Bdev>,
    module: &str,
    device: Box<dyn Device>,
) -> Result<Arc<Bdev>, BdevError> {
    let options = BdevOptions {
        name: name.to_string(),
        aliases: Vec::new(),
        uuid,
        block_size: base.block_size(),
        num_blocks: base.num_blocks(),
    };
    base.claim(&format!("{module} bdev `{name}`"))?;
    match Bdev::new(options, device) {
        Ok(top) => {
            top.put_over(base.clone());
            Ok(top)
        }
        Err(error) => {
            base.release();
            Err(error)
        }
    }
}

/// What a stacked device says of itself: front-ends offer deallocation only where it saves something.
pub(super) fn supports(base: &Bdev, op: Op) -> bool {
    op != Op::Unmap || base.device().supports(op)
}

struct Parent {
    io: Box<Io>,
    child: IoId,
}

/// The calling reactor's way to the base.
pub(super) struct Below {
    channel: Rc<Channel>,
    parents: RefCell<Slab<Parent>>,
}

impl Below {
    pub(super) fn open(base: &Arc<Bdev>) -> Result<Below, BdevError> {
        Ok(Below { channel: base.channel()?, parents: RefCell::default() })
    }

    /// Sends an I/O to the base; `owner` hears of the end and calls [`Below::back`].
    pub(super) fn forward(&self, mut io: Box<Io>, owner: Rc<dyn IoOwner>) {
        let mut child = Io::new(io.op);
        (child.lba, child.num_blocks, child.fua) = (io.lba, io.num_blocks, io.fua);
        std::mem::swap(&mut child.data, &mut io.data);
        std::mem::swap(&mut child.compare, &mut io.compare);
        let mut parents = self.parents.borrow_mut();
        let entry = parents.vacant_entry();
        child.tag = entry.key() as u64;
        let child = self.channel.submit(child, owner);
        entry.insert(Parent { io, child });
    }

    /// The I/O that a child belongs to, with the child's outcome in it.
    pub(super) fn back(&self, mut child: Box<Io>) -> Option<Box<Io>> {
        let parent = self.parents.borrow_mut().try_remove(child.tag as usize);
        let io = parent.map(|Parent { mut io, .. }| {
            std::mem::swap(&mut child.data, &mut io.data);
            std::mem::swap(&mut child.compare, &mut io.compare);
            io.result = child.result;
            io
        });
        child.recycle();
        io
    }

    /// Passes an abort on. False if the base does not have the I/O.
    pub(super) fn abort(&self, id: IoId) -> bool {
        let child = self.parents.borrow().iter().find(|(_, p)| p.io.id() == id).map(|(_, p)| p.child);
        if let Some(child) = child {
            self.channel.abort(child);
        }
        child.is_some()
    }
}
