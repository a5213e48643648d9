//! Rate limits and latency histograms of block devices.

use super::reactors::TICK_RATE_HZ;
use crate::bdev::{
    DEFAULT_GRANULARITY, DEFAULT_MAX_NS, DEFAULT_MIN_NS, Histogram, HistogramOptions, Op, QosLimits,
};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::{choice, params};
use crate::control::registry::{Callable, Method};
use serde_json::{Value, json};
use std::sync::Arc;

/// SPDK's least limit of I/Os: its rate limiter, and ours, works by the millisecond.
const MIN_IOS_PER_SEC: u64 = 1000;

params! {
    /// Parameters of `bdev_set_qos_limit`. Those left out stay as they are.
    pub struct SetQosLimit {
        /// Name, alias or UUID.
        name: String,
        /// Reads and writes per second, a multiple of 1000; 0 is unlimited.
        rw_ios_per_sec: Option<u64>,
        /// MiB per second, reads and writes; 0 is unlimited.
        rw_mbytes_per_sec: Option<u64>,
        /// MiB per second, reads; 0 is unlimited.
        r_mbytes_per_sec: Option<u64>,
        /// MiB per second, writes; 0 is unlimited.
        w_mbytes_per_sec: Option<u64>,
    }
}

choice! {
    /// Kinds of I/O that a histogram can count alone.
    pub enum IoType {
        /// Reads.
        Read = "read",
        /// Writes.
        Write = "write",
        /// Unmaps.
        Unmap = "unmap",
        /// Flushes.
        Flush = "flush",
        /// Resets.
        Reset = "reset",
        /// Writes of zeroes.
        WriteZeroes = "write_zeroes",
        /// Compares.
        Compare = "compare",
        /// Atomic compares and writes.
        CompareAndWrite = "compare_and_write",
    }
}

impl IoType {
    /// The layer's word for it.
    pub fn op(self) -> Op {
        match self {
            IoType::Read => Op::Read,
            IoType::Write => Op::Write,
            IoType::Unmap => Op::Unmap,
            IoType::Flush => Op::Flush,
            IoType::Reset => Op::Reset,
            IoType::WriteZeroes => Op::WriteZeroes,
            IoType::Compare => Op::Compare,
            IoType::CompareAndWrite => Op::CompareAndWrite,
        }
    }
}

params! {
    /// Parameters of `bdev_enable_histogram`.
    pub struct EnableHistogram {
        /// Name, alias or UUID.
        name: String,
        /// Whether to count; counters begin at zero.
        enable: bool,
        /// Count only this kind of I/O. Default: all.
        opc: Option<IoType>,
        /// Each doubling of the latency is cut into 2^granularity buckets. Default: 7.
        granularity: Option<u32>,
        /// Shorter latencies count in the first bucket, ns. Default: 1000.
        min_nsec: Option<u64>,
        /// Longer latencies count in the last bucket, ns. Default: 120000000000.
        max_nsec: Option<u64>,
    }
}

params! {
    /// Parameters of `bdev_get_histogram`.
    pub struct GetHistogram {
        /// Name, alias or UUID.
        name: String,
    }
}

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("bdev_set_qos_limit", Callable::Runtime, set_qos_limit)
            .summary("Limits how fast a bdev may be used, by all reactors together. I/O above it waits.")
            .errors(&[(-19, "no bdev has this name"), (-22, "no limit is given, or one that is not possible")])
            .example(r#"{"name": "Malloc0", "rw_ios_per_sec": 20000, "w_mbytes_per_sec": 100}"#),
        Method::new("bdev_enable_histogram", Callable::Runtime, enable_histogram)
            .summary("Counts the latencies of a bdev's I/O, or stops counting.")
            .errors(&[(-19, "no bdev has this name"), (-22, "the granularity or the range is not possible")])
            .example(
                r#"{"name": "Malloc0", "enable": true, "granularity": 1, "min_nsec": 100000, "max_nsec": 1000000000}"#,
            ),
        Method::new("bdev_get_histogram", Callable::Runtime, get_histogram)
            .summary("Reads the latencies counted since the histogram was enabled.")
            .result(
                "`histogram`: base64 of 64-bit little-endian counters, 2^`granularity` for each range from `min_range` \
                 to `max_range` (SPDK's layout: range 0 has buckets of width 1 tick, range n > 0 begins at \
                 2^(`granularity` + n - 1) and has buckets of 2^(n - 1) ticks); `granularity`, `min_range`, `max_range`, \
                 `tsc_rate` (ticks per second).",
            )
            .errors(&[(-19, "no bdev has this name"), (-14, "the histogram is not enabled")])
            .example(r#"{"name": "Malloc0"}"#),
    ]
}

/// The limits as SPDK shows them.
pub fn show_limits(limits: &QosLimits) -> Value {
    json!({
        "rw_ios_per_sec": limits.rw_ios_per_sec,
        "rw_mbytes_per_sec": limits.rw_mbytes_per_sec,
        "r_mbytes_per_sec": limits.r_mbytes_per_sec,
        "w_mbytes_per_sec": limits.w_mbytes_per_sec,
    })
}

fn set_qos_limit(node: &Arc<Node>, params: SetQosLimit) -> Result<bool, RpcError> {
    let bdev = node.bdevs().get(&params.name)?;
    let given =
        [params.rw_ios_per_sec, params.rw_mbytes_per_sec, params.r_mbytes_per_sec, params.w_mbytes_per_sec];
    if given.iter().all(Option::is_none) {
        return Err(RpcError::errno(rustix::io::Errno::INVAL, "give at least one limit"));
    }
    if params.rw_ios_per_sec.is_some_and(|limit| limit % MIN_IOS_PER_SEC != 0) {
        let text = format!("'rw_ios_per_sec' is a multiple of {MIN_IOS_PER_SEC}");
        return Err(RpcError::errno(rustix::io::Errno::INVAL, text));
    }
    let old = bdev.qos_limits();
    bdev.set_qos_limits(QosLimits {
        rw_ios_per_sec: params.rw_ios_per_sec.unwrap_or(old.rw_ios_per_sec),
        rw_mbytes_per_sec: params.rw_mbytes_per_sec.unwrap_or(old.rw_mbytes_per_sec),
        r_mbytes_per_sec: params.r_mbytes_per_sec.unwrap_or(old.r_mbytes_per_sec),
        w_mbytes_per_sec: params.w_mbytes_per_sec.unwrap_or(old.w_mbytes_per_sec),
    });
    Ok(true)
}

fn enable_histogram(node: &Arc<Node>, params: EnableHistogram) -> Result<bool, RpcError> {
    let bdev = node.bdevs().get(&params.name)?;
    if params.enable {
        bdev.enable_histogram(&HistogramOptions {
            granularity: params.granularity.unwrap_or(DEFAULT_GRANULARITY),
            min_ns: params.min_nsec.unwrap_or(DEFAULT_MIN_NS),
            max_ns: params.max_nsec.unwrap_or(DEFAULT_MAX_NS),
            op: params.opc.map(IoType::op),
        })?;
    } else {
        bdev.disable_histogram();
    }
    Ok(true)
}

fn get_histogram(node: &Arc<Node>, params: GetHistogram) -> Result<Value, RpcError> {
    let bdev = node.bdevs().get(&params.name)?;
    match bdev.histogram() {
        Some(histogram) => Ok(show_histogram(&histogram)),
        // SPDK's code for it.
        None => Err(RpcError::errno(
            rustix::io::Errno::FAULT,
            format!("bdev '{}' counts no latencies; call bdev_enable_histogram first", bdev.name()),
        )),
    }
}

fn show_histogram(histogram: &Histogram) -> Value {
    let bytes: Vec<u8> = histogram.buckets.iter().flat_map(|count| count.to_le_bytes()).collect();
    json!({
        "histogram": base64(&bytes),
        "granularity": histogram.granularity,
        "min_range": histogram.min_range,
        "max_range": histogram.max_range,
        "tsc_rate": TICK_RATE_HZ,
    })
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            group.iter().enumerate().fold(0u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for place in 0..4 {
            match place <= group.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648_section_10() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
