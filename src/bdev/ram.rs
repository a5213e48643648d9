//! A disk in memory: SPDK's malloc bdev.
//!
//! Invariants: the memory is zero at first; an I/O is copied in one go on its reactor, so two I/Os of one reactor
//! never interleave. I/Os of two reactors on the same blocks at once may interleave within them, as NVMe allows;
//! compare-and-write, which must not, is made by the layer under a range lock.

use std::rc::Rc;
use std::sync::Arc;

use super::device::{Bdev, BdevOptions, Device, DeviceChannel};
use super::error::{BdevError, IoError};
use super::io::{Io, Op};
use crate::env::{Buf, Mapping};

struct Ram {
    memory: Arc<Mapping>,
    config: serde_json::Value,
}

struct RamChannel {
    memory: Arc<Mapping>,
    block_size: usize,
}

/// Makes a RAM disk.
pub fn create(options: BdevOptions) -> Result<Arc<Bdev>, BdevError> {
    let bytes = options.num_blocks.saturating_mul(options.block_size.into());
    let no_memory = |reason: String| BdevError::NoMemory { bytes, reason };
    let len = usize::try_from(bytes).map_err(|e| no_memory(e.to_string()))?;
    let memory = Arc::new(Mapping::new(len).map_err(|e| no_memory(e.to_string()))?);
    let config = serde_json::json!({
        "name": options.name, "num_blocks": options.num_blocks, "block_size": options.block_size,
        "uuid": options.uuid.to_string(),
    });
    Bdev::new(options, Box::new(Ram { memory, config }))
}

impl Device for Ram {
    fn product_name(&self) -> &'static str {
        "Malloc disk"
    }

    fn supports(&self, op: Op) -> bool {
        op != Op::CompareAndWrite
    }

    fn open_channel(&self, bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        Ok(Rc::new(RamChannel { memory: self.memory.clone(), block_size: bdev.block_size() as usize }))
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        Some(("bdev_malloc_create", self.config.clone()))
    }
}

impl RamChannel {
    fn each(&self, offset: usize, bufs: &[Buf], mut f: impl FnMut(usize, &Buf)) {
        bufs.iter().fold(offset, |at, buf| {
            f(at, buf);
            at + buf.len()
        });
    }

    fn equals(&self, offset: usize, bufs: &[Buf]) -> bool {
        let mut equal = true;
        self.each(offset, bufs, |at, buf| equal &= self.memory.equals(at, buf));
        equal
    }
}

impl DeviceChannel for RamChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        let offset = io.lba as usize * self.block_size;
        let result = match io.op {
            Op::Read => {
                self.each(offset, &io.data, |at, buf| self.memory.copy_to(at, buf));
                Ok(())
            }
            Op::Write => {
                self.each(offset, &io.data, |at, buf| self.memory.copy_from(at, buf));
                Ok(())
            }
            Op::WriteZeroes | Op::Unmap => {
                self.memory.zero(offset, io.num_blocks as usize * self.block_size);
                Ok(())
            }
            Op::Compare if self.equals(offset, &io.data) => Ok(()),
            Op::Compare => Err(IoError::Miscompare),
            Op::CompareAndWrite => Err(IoError::Unsupported),
            Op::Flush | Op::Reset => Ok(()),
        };
        io.complete(result);
    }
}
