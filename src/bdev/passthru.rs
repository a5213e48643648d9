//! A bdev that passes everything to another: SPDK's passthru, the smallest stacked device.

use std::rc::Rc;
use std::sync::Arc;

use uuid::Uuid;

use super::device::{Bdev, Device, DeviceChannel};
use super::error::BdevError;
use super::flight::IoId;
use super::io::{Io, IoOwner, Op};
use super::stacked::{self, Below};

struct Passthru {
    base: Arc<Bdev>,
    config: serde_json::Value,
}

struct PassthruChannel {
    below: Below,
}

/// Makes `name` over `base`, which it claims.
pub fn create(name: &str, uuid: Uuid, base: &Arc<Bdev>) -> Result<Arc<Bdev>, BdevError> {
    let config = serde_json::json!({ "base_bdev_name": base.name(), "name": name, "uuid": uuid.to_string() });
    let device = Passthru { base: base.clone(), config };
    stacked::create(name, uuid, base, "passthru", Box::new(device))
}

impl Device for Passthru {
    fn product_name(&self) -> &'static str {
        "passthru"
    }

    fn supports(&self, op: Op) -> bool {
        stacked::supports(&self.base, op)
    }

    fn open_channel(&self, _bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        Ok(Rc::new(PassthruChannel { below: Below::open(&self.base)? }))
    }

    fn driver_specific(&self) -> serde_json::Value {
        serde_json::json!({ "passthru": { "name": self.config["name"], "base_bdev_name": self.base.name() } })
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        Some(("bdev_passthru_create", self.config.clone()))
    }

    fn survives_restart(&self) -> bool {
        self.base.device().survives_restart()
    }

    fn has_write_cache(&self) -> bool {
        self.base.device().has_write_cache()
    }
}

impl DeviceChannel for PassthruChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        self.below.forward(io, self.clone());
    }

    fn abort(&self, id: IoId) {
        self.below.abort(id);
    }
}

impl IoOwner for PassthruChannel {
    fn io_done(self: Rc<Self>, child: Box<Io>) {
        if let Some(io) = self.below.back(child) {
            let result = io.result;
            io.complete(result);
        }
    }
}
