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

pub use bdev_nvme::configured as configured_controller;
pub use nvmf::dump as dump_nvmf;
pub use replication::{Sync, dump as dump_replication};

use super::error::RpcError;
use super::registry::Family;
use rustix::io::Errno;

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
