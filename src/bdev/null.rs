//! A device without a medium: writes vanish, reads give whatever the buffer held. For measuring the layers above.

use std::rc::Rc;
use std::sync::Arc;

use super::device::{Bdev, BdevOptions, Device, DeviceChannel};
use super::error::{BdevError, IoError};
use super::io::{Io, Op};

struct Null {
    config: serde_json::Value,
}

struct NullChannel;

/// Makes a null device.
pub fn create(options: BdevOptions) -> Result<Arc<Bdev>, BdevError> {
    let config = serde_json::json!({
        "name": options.name, "num_blocks": options.num_blocks, "block_size": options.block_size,
        "uuid": options.uuid.to_string(),
    });
    Bdev::new(options, Box::new(Null { config }))
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
        Some(("bdev_null_create", self.config.clone()))
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
