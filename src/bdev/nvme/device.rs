//! A namespace as a bdev.

use std::rc::Rc;
use std::sync::Arc;

use super::facts::NamespaceFacts;
use super::io_command;
use super::io_queue::{self, IoQueue};
use super::shared::Shared;
use crate::bdev::{Bdev, BdevError, BdevOptions, Device, DeviceChannel, Io, IoId, Op};

struct Namespace {
    shared: Arc<Shared>,
    facts: NamespaceFacts,
}

struct NamespaceChannel {
    queue: Rc<IoQueue>,
    facts: Rc<NamespaceFacts>,
}

/// Makes the bdev of a namespace.
pub(super) fn create(
    shared: &Arc<Shared>,
    facts: &NamespaceFacts,
    uuid: uuid::Uuid,
) -> Result<Arc<Bdev>, BdevError> {
    let options = BdevOptions {
        name: format!("{}n{}", shared.options.name, facts.nsid),
        aliases: Vec::new(),
        uuid,
        block_size: facts.block_size,
        num_blocks: facts.num_blocks,
    };
    let bdev = Bdev::new(options, Box::new(Namespace { shared: shared.clone(), facts: facts.clone() }))?;
    bdev.set_access(facts.access);
    Ok(bdev)
}

impl Device for Namespace {
    fn product_name(&self) -> &'static str {
        "NVMe disk"
    }

    fn supports(&self, op: Op) -> bool {
        io_command::supports(op, &self.shared.inside().facts, &self.facts)
    }

    fn open_channel(&self, _bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        let queue = io_queue::get(&self.shared)?;
        Ok(Rc::new(NamespaceChannel { queue, facts: Rc::new(self.facts.clone()) }))
    }

    fn driver_specific(&self) -> serde_json::Value {
        let o = &self.shared.options;
        let inside = self.shared.inside();
        let version = inside.facts.version;
        serde_json::json!({ "nvme": [{
            "trid": {
                "trtype": "TCP",
                "adrfam": if o.address.is_ipv4() { "IPv4" } else { "IPv6" },
                "traddr": o.address.ip().to_string(),
                "trsvcid": o.address.port().to_string(),
                "subnqn": o.subnqn,
            },
            "ctrlr_data": {
                "cntlid": inside.facts.cntlid,
                "model_number": inside.facts.model,
                "serial_number": inside.facts.serial,
                "firmware_revision": inside.facts.firmware,
                "subnqn": o.subnqn,
            },
            "vs": { "nvme_version": format!("{}.{}", version >> 16, version >> 8 & 0xff) },
            "ns_data": { "id": self.facts.nsid, "can_share": true },
        }]})
    }

    /// The controller makes its namespaces.
    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }

    fn has_write_cache(&self) -> bool {
        self.shared.inside().facts.write_cache
    }
}

impl DeviceChannel for NamespaceChannel {
    fn submit(self: Rc<Self>, io: Box<Io>) {
        self.queue.submit(io, &self.facts);
    }

    fn abort(&self, id: IoId) {
        self.queue.abort(id);
    }
}

impl Drop for NamespaceChannel {
    fn drop(&mut self) {
        self.queue.release();
    }
}
