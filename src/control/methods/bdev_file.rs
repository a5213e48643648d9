//! Files and block devices as bdevs: SPDK's uring bdev, and its aio bdev, which is the same device here.

use super::bdev_create::{CREATE_ERRORS, Delete, Rescan, add, delete};
use super::{only, patiently};
use crate::bdev::BdevError;
use crate::bdev::uring::{self, Dialect, UringOptions};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Method};
use rustix::io::Errno;
use std::sync::Arc;
use uuid::Uuid;

params! {
    /// Parameters of `bdev_uring_create`.
    pub struct UringCreate {
        /// Name.
        name: String,
        /// An existing file or block device. Its size is the bdev's.
        filename: String,
        /// 512 or 4096 bytes. Default (or 0): the smallest that the medium can do directly.
        block_size: Option<u32>,
        /// Identifier. Default: a random one, so give one to keep it over restarts.
        uuid: Option<Uuid>,
    }
}

params! {
    /// Parameters of `bdev_aio_create`.
    pub struct AioCreate {
        /// Name.
        name: String,
        /// An existing file or block device. Its size is the bdev's.
        filename: String,
        /// 512 or 4096 bytes. Default (or 0): the smallest that the medium can do directly.
        block_size: Option<u32>,
        /// Identifier. Default: a random one.
        uuid: Option<Uuid>,
        /// Refuse writes. Default: `false`.
        readonly: Option<bool>,
        /// SPDK's client sends `false`; unmaps free space in the file either way, or write zeroes.
        fallocate: Option<bool>,
        /// `false`.
        nowait: Option<bool>,
    }
}

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("bdev_uring_create", Callable::Runtime, uring_create)
            .summary("Makes a bdev of a file or block device, which it locks against a second use.")
            .result("The bdev's name.")
            .errors(CREATE_ERRORS)
            .example(r#"{"name": "File0", "filename": "/var/lib/lockstep/disk0.img", "block_size": 4096}"#),
        Method::new("bdev_aio_create", Callable::Runtime, aio_create)
            .summary("As `bdev_uring_create`, with SPDK's older parameters. I/O goes by io_uring as well.")
            .result("The bdev's name.")
            .errors(CREATE_ERRORS)
            .example(
                r#"{"name": "File1", "filename": "/var/lib/lockstep/disk1.img", "block_size": 512, "readonly": true}"#,
            ),
        rescan("bdev_uring_rescan", uring_rescan, r#"{"name": "File0"}"#),
        rescan("bdev_aio_rescan", aio_rescan, r#"{"name": "File1"}"#),
    ]
}

fn rescan(
    name: &'static str,
    handler: fn(&Arc<Node>, Rescan) -> Result<bool, RpcError>,
    example: &'static str,
) -> Method {
    Method::new(name, Callable::Runtime, handler)
        .summary(
            "Looks again how large the file or block device is. Whoever uses the bdev sees its size; a replicated volume \
             over it follows when the disks on both nodes have grown, and never shrinks.",
        )
        .errors(&[
            (-19, "no bdev of this kind has this name"),
            (-22, "the medium has less than a block"),
            (-5, "the medium cannot be asked"),
        ])
        .example(example)
}

pub fn removals() -> Vec<Method> {
    vec![
        delete("bdev_uring_delete", uring_delete, r#"{"name": "File0"}"#),
        delete("bdev_aio_delete", aio_delete, r#"{"name": "File1"}"#),
    ]
}

fn uring_create(node: &Arc<Node>, params: UringCreate) -> Result<String, RpcError> {
    let options = UringOptions {
        name: params.name,
        aliases: Vec::new(),
        uuid: params.uuid.unwrap_or_else(Uuid::new_v4),
        filename: params.filename,
        block_size: params.block_size.filter(|size| *size != 0),
        read_only: false,
        dialect: Dialect::Uring,
    };
    open(node, options)
}

fn aio_create(node: &Arc<Node>, params: AioCreate) -> Result<String, RpcError> {
    only("nowait", params.nowait, &[false])?;
    if params.fallocate == Some(false) {
        tracing::debug!(name = params.name, "unmaps go to the file whether or not 'fallocate' is asked for");
    }
    let options = UringOptions {
        name: params.name,
        aliases: Vec::new(),
        uuid: params.uuid.unwrap_or_else(Uuid::new_v4),
        filename: params.filename,
        block_size: params.block_size.filter(|size| *size != 0),
        read_only: params.readonly.unwrap_or(false),
        dialect: Dialect::Aio,
    };
    open(node, options)
}

fn open(node: &Node, options: UringOptions) -> Result<String, RpcError> {
    let in_use = |error: &BdevError| error.errno() == Errno::BUSY.raw_os_error();
    add(node, patiently(node, in_use, || uring::create(options.clone()))?)
}

fn uring_rescan(node: &Arc<Node>, params: Rescan) -> Result<bool, RpcError> {
    params.run(node, "bdev_uring_create")
}

fn aio_rescan(node: &Arc<Node>, params: Rescan) -> Result<bool, RpcError> {
    params.run(node, "bdev_aio_create")
}

fn uring_delete(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    params.run(node, "bdev_uring_create")
}

fn aio_delete(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    params.run(node, "bdev_aio_create")
}
