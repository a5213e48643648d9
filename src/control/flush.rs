//! Flushing every device at a node's end.

use super::node::Node;
use crate::bdev::{Bdev, BdevError, Io, IoError, IoOwner, Op};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The reactor that flushes: any one would do, a flush covers what every channel wrote.
const FLUSHING_REACTOR: usize = 0;

/// What is not flushed yet, by name, and why not.
type Pending = Arc<Mutex<BTreeMap<String, String>>>;

struct Flush {
    name: String,
    pending: Pending,
    done: std::sync::mpsc::Sender<()>,
}

impl Flush {
    fn end(&self, outcome: Result<(), String>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => pending.remove(&self.name),
            Err(reason) => pending.insert(self.name.clone(), reason),
        };
        // The one who waits gives up at its deadline.
        let _ = self.done.send(());
    }
}

impl IoOwner for Flush {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        self.end(match io.result {
            // A volume that the node does not serve in its role: the disk below is flushed by itself.
            Err(IoError::Inaccessible) => Ok(()),
            result => result.map_err(|error| error.to_string()),
        });
        io.recycle();
    }
}

/// Flushes every device, all at once, within `deadline`. Returns those that are not flushed, each with the reason.
pub fn flush_all(node: &Node, deadline: Duration) -> BTreeMap<String, String> {
    let end = std::time::Instant::now() + deadline;
    let bdevs = node.bdevs().all();
    let names = bdevs.iter().map(|bdev| (bdev.name().to_string(), "it does not answer".to_string()));
    let pending: Pending = Arc::new(Mutex::new(names.collect()));
    let (done, ended) = std::sync::mpsc::channel();
    let count = bdevs.len();
    let shared = pending.clone();
    let started = node.reactors().call(FLUSHING_REACTOR, deadline, move || {
        for bdev in &bdevs {
            let flush =
                Rc::new(Flush { name: bdev.name().to_string(), pending: shared.clone(), done: done.clone() });
            if let Err(error) = submit(bdev, flush.clone()) {
                flush.end(Err(error.to_string()));
            }
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no reactor flushes");
    }
    for _ in 0..count {
        if ended.recv_timeout(end.saturating_duration_since(std::time::Instant::now())).is_err() {
            break;
        }
    }
    pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn submit(bdev: &Arc<Bdev>, owner: Rc<Flush>) -> Result<(), BdevError> {
    let channel = bdev.channel()?;
    channel.submit(Io::new(Op::Flush), owner);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::{BdevOptions, Device, DeviceChannel, ram};
    use crate::control::node::tests::waiting_node;
    use uuid::Uuid;

    fn options(name: &str) -> BdevOptions {
        BdevOptions {
            name: name.to_string(),
            aliases: Vec::new(),
            uuid: Uuid::new_v4(),
            block_size: 512,
            num_blocks: 64,
        }
    }

    /// A device that never answers.
    struct Hung;

    impl Device for Hung {
        fn product_name(&self) -> &'static str {
            "hung"
        }
        fn supports(&self, _: Op) -> bool {
            true
        }
        fn open_channel(&self, _: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
            Ok(Rc::new(Hung))
        }
        fn config(&self) -> Option<(&'static str, serde_json::Value)> {
            None
        }
        fn has_write_cache(&self) -> bool {
            true
        }
    }

    impl DeviceChannel for Hung {
        fn submit(self: Rc<Self>, io: Box<Io>) {
            // The device never returns it.
            std::mem::forget(io);
        }
    }

    #[test]
    fn every_device_is_flushed_and_one_that_hangs_is_named_at_the_deadline() {
        let node = waiting_node();
        node.bdevs().add(ram::create(options("a")).unwrap()).unwrap();
        node.bdevs().add(ram::create(options("b")).unwrap()).unwrap();
        assert!(flush_all(&node, Duration::from_secs(5)).is_empty());
        node.bdevs().add(Bdev::new(options("c"), Box::new(Hung)).unwrap()).unwrap();
        let left = flush_all(&node, Duration::from_millis(50));
        assert_eq!(left.keys().collect::<Vec<_>>(), ["c"]);
    }
}
