//! A regular file or block device behind the reactor's io_uring: SPDK's uring bdev, and its aio bdev by another name.
//!
//! Invariants: one bdev has a file at a time, on the whole machine (flock; a block device is opened exclusively);
//! unmapped and zeroed ranges read as zeroes; data goes past the page cache wherever the file system allows it.

mod medium;
mod transfer;

use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use uuid::Uuid;

use self::medium::Medium;
use self::transfer::UringChannel;
use super::device::{Bdev, BdevOptions, Device, DeviceChannel};
use super::error::BdevError;
use super::io::Op;

/// Which of SPDK's two names the device goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Uring,
    Aio,
}

/// What to make.
#[derive(Debug, Clone)]
pub struct UringOptions {
    pub name: String,
    pub aliases: Vec<String>,
    pub uuid: Uuid,
    /// An existing regular file or block device.
    pub filename: String,
    /// 512 or 4096; `None` takes the smallest that the medium can do directly.
    pub block_size: Option<u32>,
    pub read_only: bool,
    pub dialect: Dialect,
}

struct Uring {
    medium: Arc<Medium>,
    dialect: Dialect,
    config: serde_json::Value,
}

/// Opens a file or block device as a bdev. From the control thread: it may block.
pub fn create(options: UringOptions) -> Result<Arc<Bdev>, BdevError> {
    let medium = Medium::open(&options.filename, options.block_size, options.read_only)?;
    let mut config = serde_json::json!({
        "name": options.name, "filename": options.filename, "block_size": medium.block_size,
        "uuid": options.uuid.to_string(),
    });
    if options.dialect == Dialect::Aio {
        config["readonly"] = options.read_only.into();
    }
    let bdev_options = BdevOptions {
        name: options.name,
        aliases: options.aliases,
        uuid: options.uuid,
        block_size: medium.block_size,
        num_blocks: medium.num_blocks()?,
    };
    let device = Uring { medium: Arc::new(medium), dialect: options.dialect, config };
    Bdev::new(bdev_options, Box::new(device))
}

impl Device for Uring {
    fn product_name(&self) -> &'static str {
        match self.dialect {
            Dialect::Uring => "URING bdev",
            Dialect::Aio => "AIO disk",
        }
    }

    fn supports(&self, op: Op) -> bool {
        !matches!(op, Op::Compare | Op::CompareAndWrite | Op::Reset)
    }

    fn open_channel(&self, _bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        Ok(Rc::new(UringChannel::new(self.medium.clone())))
    }

    fn driver_specific(&self) -> serde_json::Value {
        let key = if self.dialect == Dialect::Aio { "aio" } else { "uring" };
        serde_json::json!({ key: {
            "filename": self.medium.filename, "block_size_override": true, "readonly": self.medium.read_only,
            "direct": self.medium.direct, "polled": self.medium.pollable,
        } })
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        let method = match self.dialect {
            Dialect::Uring => "bdev_uring_create",
            Dialect::Aio => "bdev_aio_create",
        };
        Some((method, self.config.clone()))
    }

    fn measure(&self) -> Result<Option<u64>, BdevError> {
        self.medium.num_blocks().map(Some)
    }

    fn removed(&self) {
        // Whoever opens the file next need not wait until the last connection has noticed the removal.
        if let Err(error) = rustix::fs::flock(&self.medium.file, FlockOperation::Unlock) {
            tracing::warn!("`{}` could not be unlocked: {error}", self.medium.filename);
        }
    }

    fn survives_restart(&self) -> bool {
        true
    }

    fn has_write_cache(&self) -> bool {
        !self.medium.read_only
    }
}

#[cfg(test)]
mod tests;
