//! What there is of block devices: lists, statistics.

use crate::bdev::{Bdev, IoStats, Op, OpStats};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::{choice, params};
use crate::control::registry::{Callable, Family, Method};
use crate::env::clock;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reactors::TICK_RATE_HZ;
use super::{bdev_tune, only};

/// How often a call that waits for a bdev looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Longest wait for a bdev to appear.
const MAX_WAIT_MS: u64 = 60_000;

params! {
    /// Parameters of `bdev_get_bdevs`.
    pub struct GetBdevs {
        /// Name, alias or UUID. Default: all bdevs.
        name: Option<String>,
        /// With `name`: how long to wait for it to appear, ms, 60000 at most. Default: 0.
        timeout: Option<u64>,
    }
}

choice! {
    /// What to forget of statistics.
    pub enum ResetMode {
        /// Everything.
        All = "all",
        /// Nothing.
        None = "none",
    }
}

params! {
    /// Parameters of `bdev_get_iostat`.
    pub struct GetIostat {
        /// Names, aliases or UUIDs. Default: all bdevs.
        names: Option<Vec<String>>,
        /// `false`: the channels of all reactors are added up.
        per_channel: Option<bool>,
        /// What to forget afterwards. Default: `none`.
        reset_mode: Option<ResetMode>,
    }
}

params! {
    /// Parameters of `bdev_reset_iostat`.
    pub struct ResetIostat {
        /// Name, alias or UUID. Default: all bdevs.
        name: Option<String>,
        /// What to forget. Default: `all`.
        mode: Option<ResetMode>,
    }
}

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "Block devices",
        about: "A bdev is found by its name, an alias or its UUID. Statistics are counted per reactor and added up; \
                latencies are in ticks of `tick_rate` per second.",
        methods: [listing_methods(), bdev_tune::methods()].into_iter().flatten().collect(),
    }
}

fn listing_methods() -> Vec<Method> {
    vec![
            Method::new("bdev_get_bdevs", Callable::Runtime, get_bdevs)
                .summary("Describes bdevs.")
                .result(
                    "Array of `name`, `aliases`, `product_name`, `block_size`, `num_blocks`, `uuid`, \
                     `assigned_rate_limits`, `claimed`, `claimed_by`, `access` (`optimized` or `inaccessible`, after \
                     the replication role), `zoned`, `supported_io_types`, `memory_domains`, `driver_specific`.",
                )
                .errors(&[(-19, "no bdev has this name, or none had it within `timeout`")])
                .example(r#"{"name": "Malloc0"}"#),
            Method::new("bdev_get_iostat", Callable::Runtime, get_iostat)
                .summary("Shows what bdevs have done.")
                .result(
                    "`tick_rate`, `ticks` (now), `bdevs`: array of `name`, `bytes_read`, `num_read_ops`, \
                     `bytes_written`, `num_write_ops`, `bytes_unmapped`, `num_unmap_ops`, `num_flush_ops`, \
                     `KIND_latency_ticks` with `max_` and `min_` for `read`, `write`, `unmap` and `flush`, `io_error`.",
                )
                .errors(&[(-19, "no bdev has this name")])
                .example(r#"{"names": ["Malloc0"]}"#),
            Method::new("bdev_reset_iostat", Callable::Runtime, reset_iostat)
                .summary("Begins to count anew, for every reader of these statistics.")
                .errors(&[(-19, "no bdev has this name")])
                .example(r#"{"name": "Malloc0", "mode": "all"}"#),
    ]
}

fn get_bdevs(node: &Arc<Node>, params: GetBdevs) -> Result<Vec<Value>, RpcError> {
    let Some(name) = params.name else {
        return Ok(node.bdevs().all().iter().map(|bdev| describe(bdev)).collect());
    };
    let wait_ms = params.timeout.unwrap_or(0);
    if wait_ms > MAX_WAIT_MS {
        return Err(RpcError::invalid_params(format!("'timeout' is {MAX_WAIT_MS} ms at most")));
    }
    let deadline = Instant::now() + Duration::from_millis(wait_ms);
    loop {
        match node.bdevs().get(&name) {
            Ok(bdev) => return Ok(vec![describe(&bdev)]),
            Err(error) if Instant::now() >= deadline || node.is_stopping() => return Err(error.into()),
            Err(_) => std::thread::sleep(LOOK_INTERVAL),
        }
    }
}

fn describe(bdev: &Bdev) -> Value {
    let claimant = bdev.claimant();
    let mut described = json!({
        "name": bdev.name(),
        "aliases": bdev.aliases(),
        "product_name": bdev.device().product_name(),
        "block_size": bdev.block_size(),
        "num_blocks": bdev.num_blocks(),
        "uuid": bdev.uuid(),
        "assigned_rate_limits": bdev_tune::show_limits(&bdev.qos_limits()),
        "claimed": claimant.is_some(),
        "access": bdev.access(),
        "zoned": false,
        "supported_io_types": io_types(bdev),
        "memory_domains": [],
        "driver_specific": bdev.device().driver_specific(),
    });
    if let (Some(claimant), Some(members)) = (claimant, described.as_object_mut()) {
        members.insert("claim_type".to_string(), json!("exclusive_write"));
        members.insert("claimed_by".to_string(), json!(claimant));
    }
    described
}

/// SPDK's whole list: what a bdev here never does is false. The layer makes up for compare, write-zeroes and
/// compare-and-write where a device lacks them.
fn io_types(bdev: &Bdev) -> Value {
    json!({
        "read": true,
        "write": true,
        "unmap": bdev.device().supports(Op::Unmap),
        "flush": true,
        "reset": true,
        "nvme_admin": false,
        "nvme_io": false,
        "nvme_io_md": false,
        "write_zeroes": true,
        "zcopy": false,
        "get_zone_info": false,
        "zone_management": false,
        "zone_append": false,
        "compare": true,
        "compare_and_write": true,
        "abort": true,
        "seek_hole": false,
        "seek_data": false,
        "copy": false,
        "nvme_iov_md": false,
    })
}

fn get_iostat(node: &Arc<Node>, params: GetIostat) -> Result<Value, RpcError> {
    only("per_channel", params.per_channel, &[false])?;
    let bdevs = match &params.names {
        Some(names) => names.iter().map(|name| node.bdevs().get(name)).collect::<Result<Vec<_>, _>>()?,
        None => node.bdevs().all(),
    };
    let mut reply = json!({"tick_rate": TICK_RATE_HZ, "ticks": clock::now()});
    reply["bdevs"] = bdevs.iter().map(|bdev| iostat("name", json!(bdev.name()), &bdev.stats())).collect();
    if params.reset_mode == Some(ResetMode::All) {
        bdevs.iter().for_each(|bdev| bdev.reset_stats());
    }
    Ok(reply)
}

fn iostat(key: &str, name: Value, stats: &IoStats) -> Value {
    let mut members = Map::new();
    members.insert(key.to_string(), name);
    let mut put = |name: String, value: u64| members.insert(name, json!(value));
    let kinds: [(&str, Option<&str>, &OpStats); 4] = [
        ("read", Some("bytes_read"), &stats.read),
        ("write", Some("bytes_written"), &stats.write),
        ("unmap", Some("bytes_unmapped"), &stats.unmap),
        ("flush", None, &stats.flush),
    ];
    for (kind, bytes, counted) in kinds {
        if let Some(bytes) = bytes {
            put(bytes.to_string(), counted.bytes);
        }
        put(format!("num_{kind}_ops"), counted.ops);
        put(format!("{kind}_latency_ticks"), counted.latency_ns);
        put(format!("max_{kind}_latency_ticks"), counted.max_ns);
        put(format!("min_{kind}_latency_ticks"), counted.min_ns);
    }
    // SPDK's shape has copies; a bdev here has none, and its clients add the members up.
    for absent in [
        "bytes_copied",
        "num_copy_ops",
        "copy_latency_ticks",
        "max_copy_latency_ticks",
        "min_copy_latency_ticks",
    ] {
        put(absent.to_string(), 0);
    }
    let failed: u64 = kinds.iter().map(|(_, _, counted)| counted.errors).sum();
    let errors = if failed == 0 { json!({}) } else { json!({"failed": failed}) };
    members.insert("io_error".to_string(), errors);
    Value::Object(members)
}

fn reset_iostat(node: &Arc<Node>, params: ResetIostat) -> Result<bool, RpcError> {
    let bdevs = match &params.name {
        Some(name) => vec![node.bdevs().get(name)?],
        None => node.bdevs().all(),
    };
    if params.mode != Some(ResetMode::None) {
        bdevs.iter().for_each(|bdev| bdev.reset_stats());
    }
    Ok(true)
}
