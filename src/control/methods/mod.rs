//! The methods, one file a family.

mod bdev_create;
mod bdev_fault;
mod bdev_file;
mod bdev_nvme;
mod bdev_stack;
mod bdev_tune;
mod bdevs;
mod framework;
mod log;
mod notify;
mod nvmf;
mod reactors;
mod replication;
mod replication_history;

pub use bdev_nvme::configured as configured_controller;
pub use nvmf::dump as dump_nvmf;
pub use replication::{Sync, dump as dump_replication};

use super::error::RpcError;
use super::node::Node;
use super::registry::Family;
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// Every family, in the order of the RPC reference.
pub fn families() -> Vec<Family> {
    vec![
        framework::family(),
        log::family(),
        reactors::family(),
        bdev_create::family(),
        bdevs::family(),
        nvmf::family(),
        bdev_nvme::family(),
        notify::family(),
        nvmf::delete_family(),
        replication::family(),
        replication_history::family(),
        bdev_create::delete_family(),
    ]
}

/// Refuses a value that asks for what no bdev here does.
fn only<T: PartialEq + std::fmt::Display>(
    name: &str,
    value: Option<T>,
    possible: &[T],
) -> Result<(), RpcError> {
    match value {
        Some(value) if !possible.contains(&value) => Err(RpcError::errno(
            Errno::OPNOTSUPP,
            format!("'{name}': {value} is not supported; leave it out"),
        )),
        _ => Ok(()),
    }
}

/// How long something may be in use before that counts: the kernel closes files and sockets of a node that has ended
/// only when its rings have gone, some milliseconds later, and whoever restarts it must not fail for that.
const IN_USE_PATIENCE: Duration = Duration::from_secs(2);
const IN_USE_RETRY: Duration = Duration::from_millis(20);

/// Tries again for a while what finds something in use.
fn patiently<T, E>(
    node: &Node,
    is_in_use: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + IN_USE_PATIENCE;
    loop {
        match attempt() {
            Err(error) if is_in_use(&error) && Instant::now() < deadline && !node.is_stopping() => {
                std::thread::sleep(IN_USE_RETRY);
            }
            outcome => return outcome,
        }
    }
}
