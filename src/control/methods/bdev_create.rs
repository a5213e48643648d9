//! Making and deleting block devices.

use crate::bdev::{Bdev, BdevError, BdevOptions, null, ram};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Family, Method};
use std::sync::Arc;
use uuid::Uuid;

use super::{bdev_fault, bdev_file, bdev_stack, only};

params! {
    /// Parameters of `bdev_malloc_create`.
    pub struct MallocCreate {
        /// Name. Default: `Malloc` and the lowest number that is free.
        name: Option<String>,
        /// Size in blocks.
        num_blocks: u64,
        /// Block size, bytes: 512 or 4096.
        block_size: u32,
        /// Identifier. Default: a random one.
        uuid: Option<Uuid>,
        /// As `block_size`, or 0.
        physical_block_size: Option<u32>,
        /// 0: I/Os are not split.
        optimal_io_boundary: Option<u32>,
        /// 0: no metadata.
        md_size: Option<u32>,
        /// `false`.
        md_interleave: Option<bool>,
        /// 0: no protection information.
        dif_type: Option<u32>,
        /// `false`.
        dif_is_head_of_md: Option<bool>,
        /// 0.
        dif_pi_format: Option<u32>,
        /// -1: any NUMA node.
        numa_id: Option<i32>,
    }
}

params! {
    /// Parameters of `bdev_null_create`.
    pub struct NullCreate {
        /// Name.
        name: String,
        /// Size in blocks.
        num_blocks: u64,
        /// Block size, bytes: 512 or 4096.
        block_size: u32,
        /// Identifier. Default: a random one.
        uuid: Option<Uuid>,
        /// As `block_size`, or 0.
        physical_block_size: Option<u32>,
        /// 0: no metadata.
        md_size: Option<u32>,
        /// 0: no protection information.
        dif_type: Option<u32>,
        /// `false`.
        dif_is_head_of_md: Option<bool>,
        /// 0.
        dif_pi_format: Option<u32>,
        /// 0.
        preferred_write_alignment: Option<u32>,
        /// 0.
        preferred_write_granularity: Option<u32>,
        /// 0.
        optimal_write_size: Option<u32>,
        /// 0.
        preferred_unmap_alignment: Option<u32>,
        /// 0.
        preferred_unmap_granularity: Option<u32>,
    }
}

params! {
    /// Parameters of every `bdev_*_delete`.
    pub struct Delete {
        /// Name, alias or UUID.
        name: String,
    }
}

params! {
    /// Parameters of `bdev_null_resize`.
    pub struct NullResize {
        /// Name, alias or UUID.
        name: String,
        /// New size, MiB; not less than the present one.
        new_size: u64,
    }
}

params! {
    /// Parameters of every `bdev_*_rescan`.
    pub struct Rescan {
        /// Name, alias or UUID.
        name: String,
    }
}

/// Errors of every method that makes a bdev.
pub const CREATE_ERRORS: &[(i32, &str)] = &[
    (-17, "a bdev of this name or identifier exists"),
    (-22, "the name, size or block size is not possible"),
    (-95, "a parameter asks for something that this node does not do"),
    (-12, "not enough memory"),
];
/// Errors of every method that deletes one.
const DELETE_ERRORS: &[(i32, &str)] =
    &[(-19, "no bdev of this kind has this name"), (-1, "the bdev is in use; the message names by what")];

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "Making and deleting block devices",
        about: "SPDK's parameters for what a bdev here does not do (metadata, protection information, alignment \
                hints) are accepted with the value that turns them off, as SPDK's client sends it, and refused \
                with any other.",
        methods: [memory_methods(), bdev_file::methods(), bdev_stack::methods(), bdev_fault::methods()]
            .into_iter()
            .flatten()
            .collect(),
    }
}

fn memory_methods() -> Vec<Method> {
    vec![
        Method::new("bdev_malloc_create", Callable::Runtime, malloc_create)
            .summary("Makes a RAM disk, zero at first.")
            .result("The bdev's name.")
            .errors(CREATE_ERRORS)
            .example(r#"{"name": "Malloc0", "num_blocks": 16384, "block_size": 512}"#),
        Method::new("bdev_null_create", Callable::Runtime, null_create)
            .summary("Makes a bdev without a medium: writes vanish, reads return anything. For measuring.")
            .result("The bdev's name.")
            .errors(CREATE_ERRORS)
            .example(r#"{"name": "Null0", "num_blocks": 262144, "block_size": 4096}"#),
        Method::new("bdev_null_resize", Callable::Runtime, null_resize)
            .summary("Makes a null bdev larger. Whoever uses it sees the new size.")
            .errors(&[
                (-19, "no bdev of this kind has this name"),
                (-22, "the new size is smaller than the present one, or not possible"),
            ])
            .example(r#"{"name": "Null0", "new_size": 2048}"#),
    ]
}

/// The deletions, apart so that the reference's examples can use what the creations made.
pub fn delete_family() -> Family {
    let mut methods = bdev_fault::removals();
    methods.extend(bdev_stack::removals());
    methods.extend(bdev_file::removals());
    methods.push(delete("bdev_malloc_delete", malloc_delete, r#"{"name": "Malloc0"}"#));
    methods.push(delete("bdev_null_delete", null_delete, r#"{"name": "Null0"}"#));
    Family { title: "Deleting block devices", about: "", methods }
}

/// A deletion as the reference shows it.
pub fn delete(
    name: &'static str,
    handler: fn(&Arc<Node>, Delete) -> Result<bool, RpcError>,
    example: &'static str,
) -> Method {
    Method::new(name, Callable::Runtime, handler)
        .summary("Deletes a bdev of this kind. I/O in flight on it ends with an error.")
        .errors(DELETE_ERRORS)
        .example(example)
}

fn options(name: String, uuid: Option<Uuid>, block_size: u32, num_blocks: u64) -> BdevOptions {
    let uuid = uuid.unwrap_or_else(Uuid::new_v4);
    BdevOptions { name, aliases: Vec::new(), uuid, block_size, num_blocks }
}

/// Makes a new bdev known; its name.
pub fn add(node: &Node, bdev: Arc<Bdev>) -> Result<String, RpcError> {
    let name = bdev.name().to_string();
    node.bdevs().add(bdev)?;
    Ok(name)
}

fn malloc_create(node: &Arc<Node>, params: MallocCreate) -> Result<String, RpcError> {
    only("physical_block_size", params.physical_block_size, &[0, params.block_size])?;
    only("optimal_io_boundary", params.optimal_io_boundary, &[0])?;
    only("md_size", params.md_size, &[0])?;
    only("md_interleave", params.md_interleave, &[false])?;
    only("dif_type", params.dif_type, &[0])?;
    only("dif_is_head_of_md", params.dif_is_head_of_md, &[false])?;
    only("dif_pi_format", params.dif_pi_format, &[0])?;
    only("numa_id", params.numa_id, &[-1])?;
    let name = match params.name {
        Some(name) => name,
        None => (0u32..)
            .map(|number| format!("Malloc{number}"))
            .find(|name| node.bdevs().get(name).is_err())
            .ok_or_else(|| RpcError::internal("every Malloc name is taken"))?,
    };
    // Memory is taken before the registry looks at the name: look first, a disk can be large.
    refuse_existing(node, &name)?;
    add(node, ram::create(options(name, params.uuid, params.block_size, params.num_blocks))?)
}

fn refuse_existing(node: &Node, name: &str) -> Result<(), RpcError> {
    match node.bdevs().get(name) {
        Ok(_) => Err(BdevError::Exists(name.to_string()).into()),
        Err(_) => Ok(()),
    }
}

fn null_create(node: &Arc<Node>, params: NullCreate) -> Result<String, RpcError> {
    only("physical_block_size", params.physical_block_size, &[0, params.block_size])?;
    only("md_size", params.md_size, &[0])?;
    only("dif_type", params.dif_type, &[0])?;
    only("dif_is_head_of_md", params.dif_is_head_of_md, &[false])?;
    only("dif_pi_format", params.dif_pi_format, &[0])?;
    only("preferred_write_alignment", params.preferred_write_alignment, &[0])?;
    only("preferred_write_granularity", params.preferred_write_granularity, &[0])?;
    only("optimal_write_size", params.optimal_write_size, &[0])?;
    only("preferred_unmap_alignment", params.preferred_unmap_alignment, &[0])?;
    only("preferred_unmap_granularity", params.preferred_unmap_granularity, &[0])?;
    add(node, null::create(options(params.name, params.uuid, params.block_size, params.num_blocks))?)
}

fn null_resize(node: &Arc<Node>, params: NullResize) -> Result<bool, RpcError> {
    let bdev = made_by(node, &params.name, "bdev_null_create")?;
    let name = bdev.name();
    let Some(bytes) = params.new_size.checked_mul(1 << 20) else {
        return Err(BdevError::Invalid(format!("`{name}` cannot have {} MiB", params.new_size)).into());
    };
    if bytes < bdev.size_bytes() {
        let text = format!("`{name}` has {} bytes: it can only become larger", bdev.size_bytes());
        return Err(BdevError::Invalid(text).into());
    }
    null::resize(&bdev, bytes / u64::from(bdev.block_size()))?;
    Ok(true)
}

/// The bdev of this name, if `create_method` made it.
fn made_by(node: &Node, name: &str, create_method: &str) -> Result<Arc<Bdev>, RpcError> {
    let bdev = node.bdevs().get(name)?;
    if bdev.device().config().is_none_or(|(method, _)| method != create_method) {
        return Err(RpcError::errno(
            rustix::io::Errno::NODEV,
            format!("`{name}` is a {}, which {create_method} does not make", bdev.device().product_name()),
        ));
    }
    Ok(bdev)
}

impl Rescan {
    /// Takes on the size that the medium of a bdev has now.
    pub fn run(&self, node: &Node, create_method: &str) -> Result<bool, RpcError> {
        made_by(node, &self.name, create_method)?.rescan()?;
        Ok(true)
    }
}

impl Delete {
    /// Deletes a bdev that `create_method` made.
    pub fn run(&self, node: &Node, create_method: &str) -> Result<bool, RpcError> {
        let bdev = made_by(node, &self.name, create_method)?;
        node.bdevs().remove(bdev.name(), node.reactors())?;
        Ok(true)
    }
}

fn malloc_delete(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    params.run(node, "bdev_malloc_create")
}

fn null_delete(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    params.run(node, "bdev_null_create")
}
