//! The transport and its limits.

use super::super::only;
use super::{TRANSPORT_NAME, require_target, require_tcp};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Method};
use crate::target::nvmf::TransportOptions;
use rustix::io::Errno;
use serde_json::{Value, json};
use std::sync::Arc;

params! {
    /// Parameters of `nvmf_create_transport`.
    pub struct CreateTransport {
        /// `TCP`, in any case of letters.
        trtype: String,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Entries of an I/O queue, 2 to 1024. Default: 128.
        max_queue_depth: Option<u16>,
        /// I/O queues of a controller, 1 to 1024. Default: 127.
        max_io_qpairs_per_ctrlr: Option<u16>,
        /// Data that a command may carry with it, bytes, a multiple of 16 up to 16384. Default: 4096.
        in_capsule_data_size: Option<u32>,
        /// Largest transfer of a command, bytes, a power of two from 4096 to 1048576. Default: 131072.
        max_io_size: Option<u32>,
        /// Entries of an admin queue, 32 to 1024. Default: 128.
        max_aq_depth: Option<u16>,
        /// End a successful read by a flag of its last data PDU instead of a response. Default: `true`.
        c2h_success: Option<bool>,
        /// Left out: buffers are shared by all queues of a reactor.
        iobuf_small_cache_size: Option<u32>,
        /// Left out.
        iobuf_large_cache_size: Option<u32>,
        /// `false`.
        zcopy: Option<bool>,
        /// Left out: RDMA's.
        num_cqe: Option<u32>,
        /// Left out: RDMA's.
        max_srq_depth: Option<u32>,
        /// `false`: RDMA's.
        no_srq: Option<bool>,
        /// `false`: no protection information.
        dif_insert_or_strip: Option<bool>,
        /// 0.
        sock_priority: Option<u32>,
        /// Left out: RDMA's.
        acceptor_backlog: Option<u32>,
        /// Left out: an abort answers at once.
        abort_timeout_sec: Option<u32>,
        /// `false`: RDMA's.
        no_wr_batching: Option<bool>,
        /// Left out: control messages need no pool.
        control_msg_num: Option<u32>,
        /// `false`: VFIO-user's.
        disable_mappable_bar0: Option<bool>,
        /// `false`: VFIO-user's.
        disable_adaptive_irq: Option<bool>,
        /// `false`: VFIO-user's.
        disable_shadow_doorbells: Option<bool>,
        /// Left out: listeners are not polled by time.
        acceptor_poll_rate: Option<u32>,
        /// Left out.
        ack_timeout: Option<u32>,
        /// Left out: RDMA's.
        data_wr_pool_size: Option<u32>,
        /// `false`.
        disable_command_passthru: Option<bool>,
        /// Left out: keep-alive timeouts have a granularity of 10 s.
        kas: Option<u32>,
        /// Left out.
        min_kato: Option<u32>,
        /// An empty array: no command is masked.
        masked_oncs: Option<Vec<String>>,
        /// An empty array.
        masked_fuses: Option<Vec<String>>,
    }
}

params! {
    /// Parameters of `nvmf_get_transports`.
    pub struct GetTransports {
        /// Only this type. Default: every one.
        trtype: Option<String>,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

pub fn create() -> Method {
    Method::new("nvmf_create_transport", Callable::Runtime, create_transport)
        .summary("Makes the NVMe/TCP transport. There is one; subsystems share it.")
        .errors(&[
            (-32603, "the transport exists already"),
            (-95, "a parameter asks for something that this node does not do"),
        ])
        .example(r#"{"trtype": "TCP", "in_capsule_data_size": 8192}"#)
}

pub fn get() -> Method {
    Method::new("nvmf_get_transports", Callable::Runtime, get_transports)
        .summary("Shows the transports.")
        .result(
            "Array of `trtype`, `max_queue_depth`, `max_io_qpairs_per_ctrlr`, `in_capsule_data_size`, `max_io_size`, \
             `max_aq_depth`, `c2h_success`, and SPDK's other members with what stands for \"off\".",
        )
        .errors(&[(-19, "there is no transport of this type")])
}

fn create_transport(node: &Arc<Node>, params: CreateTransport) -> Result<bool, RpcError> {
    require_tcp(&params.trtype)?;
    require_target(&params.tgt_name)?;
    for (name, value) in [
        ("zcopy", params.zcopy),
        ("no_srq", params.no_srq),
        ("dif_insert_or_strip", params.dif_insert_or_strip),
        ("no_wr_batching", params.no_wr_batching),
        ("disable_mappable_bar0", params.disable_mappable_bar0),
        ("disable_adaptive_irq", params.disable_adaptive_irq),
        ("disable_shadow_doorbells", params.disable_shadow_doorbells),
        ("disable_command_passthru", params.disable_command_passthru),
    ] {
        only(name, value, &[false])?;
    }
    only("sock_priority", params.sock_priority, &[0])?;
    for (name, value) in [
        ("iobuf_small_cache_size", params.iobuf_small_cache_size),
        ("iobuf_large_cache_size", params.iobuf_large_cache_size),
        ("num_cqe", params.num_cqe),
        ("max_srq_depth", params.max_srq_depth),
        ("acceptor_backlog", params.acceptor_backlog),
        ("abort_timeout_sec", params.abort_timeout_sec),
        ("control_msg_num", params.control_msg_num),
        ("acceptor_poll_rate", params.acceptor_poll_rate),
        ("ack_timeout", params.ack_timeout),
        ("data_wr_pool_size", params.data_wr_pool_size),
        ("kas", params.kas),
        ("min_kato", params.min_kato),
    ] {
        only(name, value, &[])?;
    }
    for (name, masked) in [("masked_oncs", params.masked_oncs), ("masked_fuses", params.masked_fuses)] {
        only(name, masked.unwrap_or_default().into_iter().next(), &[])?;
    }
    let preset = TransportOptions::default();
    node.nvmf().create_transport(TransportOptions {
        max_queue_depth: params.max_queue_depth.unwrap_or(preset.max_queue_depth),
        max_admin_queue_depth: params.max_aq_depth.unwrap_or(preset.max_admin_queue_depth),
        max_io_queues_per_controller: params
            .max_io_qpairs_per_ctrlr
            .unwrap_or(preset.max_io_queues_per_controller),
        in_capsule_data_size: params.in_capsule_data_size.unwrap_or(preset.in_capsule_data_size),
        max_io_size: params.max_io_size.unwrap_or(preset.max_io_size),
        c2h_success: params.c2h_success.unwrap_or(preset.c2h_success),
        ..preset
    })?;
    Ok(true)
}

fn get_transports(node: &Arc<Node>, params: GetTransports) -> Result<Vec<Value>, RpcError> {
    require_target(&params.tgt_name)?;
    let transports: Vec<Value> = node.nvmf().transport().iter().map(show).collect();
    match params.trtype {
        Some(wanted) if transports.is_empty() || !wanted.eq_ignore_ascii_case(TRANSPORT_NAME) => {
            Err(RpcError::errno(Errno::NODEV, format!("there is no transport '{wanted}'")))
        }
        _ => Ok(transports),
    }
}

fn show(options: &TransportOptions) -> Value {
    let mut shown = configured(options);
    if let (Value::Object(members), Value::Object(off)) = (
        &mut shown,
        json!({
            "iobuf_small_cache_size": 0,
            "iobuf_large_cache_size": 0,
            "dif_insert_or_strip": false,
            "zcopy": false,
            "sock_priority": 0,
            "abort_timeout_sec": 0,
            "ack_timeout": 0,
            "data_wr_pool_size": 0,
            "disable_command_passthru": false,
            "kas": 100,
            "min_kato": 0,
        }),
    ) {
        members.extend(off);
    }
    shown
}

/// The parameters of `nvmf_create_transport` that make it again.
pub fn configured(options: &TransportOptions) -> Value {
    json!({
        "trtype": TRANSPORT_NAME,
        "max_queue_depth": options.max_queue_depth,
        "max_io_qpairs_per_ctrlr": options.max_io_queues_per_controller,
        "in_capsule_data_size": options.in_capsule_data_size,
        "max_io_size": options.max_io_size,
        "max_aq_depth": options.max_admin_queue_depth,
        "c2h_success": options.c2h_success,
    })
}
