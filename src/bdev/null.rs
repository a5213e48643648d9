//! A device without a medium: writes vanish, reads give whatever the buffer held. For measuring the layers above.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::device::{Bdev, BdevOptions, Device, DeviceChannel};
use super::error::{BdevError, IoError};
use super::io::{Io, Op};

struct Null {
    config: serde_json::Value,
    num_blocks: AtomicU64,
}

struct NullChannel;

/// Makes a null device.
pub fn create(options: BdevOptions) -> Result<Arc<Bdev>, BdevError> {
    let config = serde_json::json!({
        "name": options.name, "block_size": options.block_size, "uuid": options.uuid.to_string(),
    });
    let num_blocks = AtomicU64::new(options.num_blocks);
    Bdev::new(options, Box::new(Null { config, num_blocks }))
}

/// Gives a null device another size, which its configuration then has too.
pub fn resize(bdev: &Bdev, num_blocks: u64) -> Result<(), BdevError> {
    bdev.resize(num_blocks)?;
    if let Some(null) = bdev.device_as::<Null>() {
        null.num_blocks.store(num_blocks, Ordering::Relaxed);
    }
    Ok(())
}

impl Device for Null {
    fn product_name(&self) -> &'static str {
        "Null disk"
    }

    fn supports(&self, op: Op) -> bool {
        !matches!(op, Op::Compare | Op::CompareAndWrite)
    }

    fn open_channel(&self, _bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        Ok(Rc::new(NullChannel))
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        let mut config = self.config.clone();
        config["num_blocks"] = self.num_blocks.load(Ordering::Relaxed).into();
        Some(("bdev_null_create", config))
    }
}

impl DeviceChannel for NullChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        let result = match io.op {
            Op::Compare | Op::CompareAndWrite => Err(IoError::Unsupported),
            _ => Ok(()),
        };
        io.complete(result);
    }
}
