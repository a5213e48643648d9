//! Block devices that are slow, hang or fail on purpose.

use super::bdev_create::{CREATE_ERRORS, Delete, add, delete};
use super::bdev_tune::IoType;
use super::only;
use crate::bdev::Op;
use crate::bdev::delay::{self, Hang, Latencies, LatencyKind};
use crate::bdev::error_injection::{self, Failure, Injection};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::{choice, params};
use crate::control::registry::{Callable, Method};
use std::sync::Arc;
use uuid::Uuid;

params! {
    /// Parameters of `bdev_delay_create`.
    pub struct DelayCreate {
        /// Name of the new bdev.
        name: String,
        /// The bdev below, which it claims.
        base_bdev_name: String,
        /// Identifier. Default: a random one.
        uuid: Option<Uuid>,
        /// Time that 99 of 100 reads take longer, µs.
        avg_read_latency: u64,
        /// Time that 1 of 100 reads takes longer, µs, no less than the average.
        p99_read_latency: u64,
        /// Time that 99 of 100 writes take longer, µs.
        avg_write_latency: u64,
        /// Time that 1 of 100 writes takes longer, µs, no less than the average.
        p99_write_latency: u64,
    }
}

choice! {
    /// One of the four latencies.
    pub enum LatencyType {
        /// 99 of 100 reads.
        AvgRead = "avg_read",
        /// 1 of 100 reads.
        P99Read = "p99_read",
        /// 99 of 100 writes.
        AvgWrite = "avg_write",
        /// 1 of 100 writes.
        P99Write = "p99_write",
    }
}

params! {
    /// Parameters of `bdev_delay_update_latency`.
    pub struct UpdateLatency {
        /// A delay bdev.
        delay_bdev_name: String,
        /// Which latency.
        latency_type: LatencyType,
        /// The new one, µs.
        latency_us: u64,
    }
}

params! {
    /// Parameters of `bdev_delay_set_hang`.
    pub struct SetHang {
        /// A delay bdev.
        name: String,
        /// Whether what is described hangs from now on, or goes on.
        hang: bool,
        /// Only this kind of I/O. Default: all.
        io_type: Option<IoType>,
        /// Only I/O that touches the range beginning at this block; with `num_blocks`.
        lba: Option<u64>,
        /// Length of the range, blocks.
        num_blocks: Option<u64>,
    }
}

params! {
    /// Parameters of `bdev_error_create`.
    pub struct ErrorCreate {
        /// The bdev below, which it claims. The new bdev is called `EE_` and this name.
        base_name: String,
        /// Identifier. Default: a random one.
        uuid: Option<Uuid>,
    }
}

choice! {
    /// What an injected error applies to.
    pub enum InjectedIo {
        /// Forget all injections.
        Clear = "clear",
        /// Reads.
        Read = "read",
        /// Writes.
        Write = "write",
        /// Unmaps.
        Unmap = "unmap",
        /// Flushes.
        Flush = "flush",
        /// Everything but resets.
        All = "all",
    }
}

choice! {
    /// What goes wrong.
    pub enum InjectedError {
        /// The I/O fails.
        Failure = "failure",
        /// The I/O is kept until `bdev_error_resume_pending`.
        Pending = "pending",
        /// A byte of the data changes.
        CorruptData = "corrupt_data",
        /// The I/O finds no memory and is tried again.
        NoMemory = "nomem",
    }
}

params! {
    /// Parameters of `bdev_error_inject_error`.
    pub struct InjectError {
        /// An error bdev.
        name: String,
        /// Which I/O; `clear` forgets all injections.
        io_type: InjectedIo,
        /// What goes wrong with it: `failure` ends it with an error, `pending` keeps it until
        /// `bdev_error_resume_pending`, `corrupt_data` changes a byte, `nomem` makes it wait and try again.
        error_type: InjectedError,
        /// How many I/Os; 0 lifts the injection. Default: 1.
        num: Option<u32>,
        /// Only while at least so many I/Os are in flight on a reactor. Default: 0.
        queue_depth: Option<u32>,
        /// With `corrupt_data`: the byte's offset from the beginning of the I/O. Default: 0.
        corrupt_offset: Option<u64>,
        /// With `corrupt_data`: what the byte is combined with by XOR, 1 to 255.
        corrupt_value: Option<u8>,
        /// Left out: errors are not named by NVMe status.
        nvme_sct: Option<u32>,
        /// Left out.
        nvme_sc: Option<u32>,
        /// Only I/O that touches the range beginning at this block; with `num_blocks`. (Lockstep's own.)
        lba: Option<u64>,
        /// Length of the range, blocks. (Lockstep's own.)
        num_blocks: Option<u64>,
    }
}

/// Errors of the methods that change what such a bdev does.
const CHANGE_ERRORS: &[(i32, &str)] =
    &[(-19, "no bdev has this name"), (-95, "the bdev is not of this kind"), (-22, "too many rules")];

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("bdev_delay_create", Callable::Runtime, delay_create)
            .summary("Makes a bdev that is slower than the one below, for tests.")
            .result("The bdev's name.")
            .errors(CREATE_ERRORS)
            .example(
                r#"{"name": "Delay0", "base_bdev_name": "Passthru0", "avg_read_latency": 100, "p99_read_latency": 500,
                    "avg_write_latency": 200, "p99_write_latency": 900}"#,
            ),
        Method::new("bdev_delay_update_latency", Callable::Runtime, update_latency)
            .summary("Changes one of a delay bdev's latencies, for I/O from now on.")
            .errors(CHANGE_ERRORS)
            .example(r#"{"delay_bdev_name": "Delay0", "latency_type": "avg_write", "latency_us": 300}"#),
        Method::new("bdev_delay_set_hang", Callable::Runtime, set_hang)
            .summary(
                "Makes I/O on a delay bdev hang until it is let go on, as a dying disk does. Without `io_type` and \
                 range, `\"hang\": false` lets everything go on. (Lockstep's own.)",
            )
            .errors(CHANGE_ERRORS)
            .example(r#"{"name": "Delay0", "hang": true, "io_type": "write", "lba": 0, "num_blocks": 8}"#),
        Method::new("bdev_error_create", Callable::Runtime, error_create)
            .summary("Makes a bdev whose I/O can be made to fail, for tests.")
            .result("The bdev's name, `EE_` and the name of the one below.")
            .errors(CREATE_ERRORS)
            .example(r#"{"base_name": "File0"}"#),
        Method::new("bdev_error_inject_error", Callable::Runtime, inject_error)
            .summary("Lets I/O on an error bdev fail.")
            .errors(CHANGE_ERRORS)
            .example(r#"{"name": "EE_File0", "io_type": "read", "error_type": "failure", "num": 3}"#),
        Method::new("bdev_error_resume_pending", Callable::Runtime, resume_pending)
            .summary("Lets I/O go on that an error bdev has kept.")
            .errors(CHANGE_ERRORS)
            .example(r#"{"name": "EE_File0"}"#),
    ]
}

pub fn removals() -> Vec<Method> {
    vec![
        delete("bdev_error_delete", error_delete, r#"{"name": "EE_File0"}"#),
        delete("bdev_delay_delete", delay_delete, r#"{"name": "Delay0"}"#),
    ]
}

fn delay_create(node: &Arc<Node>, params: DelayCreate) -> Result<String, RpcError> {
    let base = node.bdevs().get(&params.base_bdev_name)?;
    let latencies = Latencies {
        avg_read_us: params.avg_read_latency,
        p99_read_us: params.p99_read_latency,
        avg_write_us: params.avg_write_latency,
        p99_write_us: params.p99_write_latency,
    };
    add(node, delay::create(&params.name, params.uuid.unwrap_or_else(Uuid::new_v4), &base, latencies)?)
}

fn update_latency(node: &Arc<Node>, params: UpdateLatency) -> Result<bool, RpcError> {
    let kind = match params.latency_type {
        LatencyType::AvgRead => LatencyKind::AvgRead,
        LatencyType::P99Read => LatencyKind::P99Read,
        LatencyType::AvgWrite => LatencyKind::AvgWrite,
        LatencyType::P99Write => LatencyKind::P99Write,
    };
    delay::update_latency(&*node.bdevs().get(&params.delay_bdev_name)?, kind, params.latency_us)?;
    Ok(true)
}

fn set_hang(node: &Arc<Node>, params: SetHang) -> Result<bool, RpcError> {
    let hang = Hang { op: params.io_type.map(IoType::op), range: range(params.lba, params.num_blocks)? };
    delay::set_hang(&*node.bdevs().get(&params.name)?, hang, params.hang)?;
    Ok(true)
}

fn range(lba: Option<u64>, num_blocks: Option<u64>) -> Result<Option<(u64, u64)>, RpcError> {
    match (lba, num_blocks) {
        (None, None) => Ok(None),
        (Some(lba), Some(count)) if count > 0 && lba.checked_add(count).is_some() => Ok(Some((lba, count))),
        _ => Err(RpcError::invalid_params(
            "'lba' and 'num_blocks' are given together, and name at least a block",
        )),
    }
}

fn error_create(node: &Arc<Node>, params: ErrorCreate) -> Result<String, RpcError> {
    let base = node.bdevs().get(&params.base_name)?;
    add(node, error_injection::create(params.uuid.unwrap_or_else(Uuid::new_v4), &base)?)
}

fn inject_error(node: &Arc<Node>, params: InjectError) -> Result<bool, RpcError> {
    only("nvme_sct", params.nvme_sct, &[])?;
    only("nvme_sc", params.nvme_sc, &[])?;
    let bdev = node.bdevs().get(&params.name)?;
    let op = match params.io_type {
        InjectedIo::Clear => {
            error_injection::clear(&bdev)?;
            return Ok(true);
        }
        InjectedIo::Read => Some(Op::Read),
        InjectedIo::Write => Some(Op::Write),
        InjectedIo::Unmap => Some(Op::Unmap),
        InjectedIo::Flush => Some(Op::Flush),
        InjectedIo::All => None,
    };
    let failure = match params.error_type {
        InjectedError::Failure => Failure::Failure,
        InjectedError::Pending => Failure::Pending,
        InjectedError::NoMemory => Failure::NoMemory,
        InjectedError::CorruptData => Failure::CorruptData {
            offset: params.corrupt_offset.unwrap_or(0),
            value: params.corrupt_value.unwrap_or(0),
        },
    };
    let injection = Injection {
        op,
        failure,
        count: params.num.unwrap_or(1),
        queue_depth: params.queue_depth.unwrap_or(0),
        range: range(params.lba, params.num_blocks)?,
    };
    error_injection::inject(&bdev, injection)?;
    Ok(true)
}

fn resume_pending(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    error_injection::release_pending(&*node.bdevs().get(&params.name)?)?;
    Ok(true)
}

fn delay_delete(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    params.run(node, "bdev_delay_create")
}

fn error_delete(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    params.run(node, "bdev_error_create")
}
