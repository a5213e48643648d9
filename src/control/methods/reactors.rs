//! The reactors and their memory, as SPDK shows its reactors, threads and buffers.
//!
//! SPDK runs light threads on reactors; here a reactor is all there is, so each shows as one thread.

use crate::bdev::open_channels;
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::NoParams;
use crate::control::registry::{Callable, Family, Method};
use crate::reactor::{IdleMode, PollerStats, ReactorStats};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Unit of every `busy`, `idle` and `ticks`: nanoseconds.
pub const TICK_RATE_HZ: u64 = 1_000_000_000;
/// How long a reactor may take to answer: it never blocks, so this is long.
const REACTOR_DEADLINE: Duration = Duration::from_secs(2);

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "Reactors",
        about: "A reactor is a pinned thread that polls; SPDK's \"threads\" are the same reactors here. Times are \
                in ticks of `tick_rate` per second.",
        methods: vec![
            Method::new("framework_get_reactors", Callable::Runtime, get_reactors)
                .summary("Shows each reactor: its core, how busy it is, how it idles.")
                .result(
                    "`tick_rate`, `pid`, `reactors`: array of `lcore`, `numa_id`, `tid`, `busy`, `idle` (ticks), \
                     `in_interrupt`, `idle_mode`, `turns`, `sleeps`, `panics`, `irq`, `sys`, `usr` (of the core, from \
                     `/proc/stat`), `lw_threads`.",
                ),
            Method::new("thread_get_stats", Callable::Runtime, get_threads)
                .summary("Shows how busy each reactor is.")
                .result(
                    "`tick_rate`, `threads`: array of `name`, `id`, `cpumask`, `busy`, `idle` (ticks), \
                     `active_pollers_count`, `timed_pollers_count`, `paused_pollers_count`.",
                ),
            Method::new("thread_get_pollers", Callable::Runtime, get_pollers)
                .summary("Shows each reactor's pollers.")
                .result(
                    "`tick_rate`, `threads`: array of `name`, `id`, `active_pollers` (array of `name`, `id`, `state`, \
                     `run_count`, `busy_count`, `busy` in ticks), `timed_pollers`, `paused_pollers`.",
                ),
            Method::new("thread_get_io_channels", Callable::Runtime, get_io_channels)
                .summary("Shows the bdevs that each reactor has open.")
                .result("`tick_rate`, `threads`: array of `name`, `io_channels` (array of `name`, `ref`)."),
            Method::new("iobuf_get_stats", Callable::Runtime, get_buffers)
                .summary("Shows the memory for data buffers.")
                .result(
                    "Array of `module`: one `reactor_CORE` each with `chunks` held, `chunk_bytes` and `exhausted` \
                     (allocations that found no memory and waited), and `arena` with `limit_bytes`, `mapped_bytes`, \
                     `taken_bytes`, `page_bytes`.",
                ),
        ],
    }
}

fn thread_name(stats: &ReactorStats) -> String {
    format!("reactor_{}", stats.core)
}

/// SPDK writes a set of cores as hexadecimal digits without prefix.
fn cpumask(core: usize) -> String {
    format!("{:x}{}", 1u8 << (core % 4), "0".repeat(core / 4))
}

fn get_reactors(node: &Arc<Node>, _: NoParams) -> Result<Value, RpcError> {
    let mode = node.reactors().idle_mode();
    let tids =
        node.reactors().call_all(REACTOR_DEADLINE, || rustix::thread::gettid().as_raw_nonzero().get())?;
    let reactors: Vec<Value> = node
        .reactors()
        .stats()
        .iter()
        .zip(tids)
        .enumerate()
        .map(|(index, (stats, tid))| {
            let core_times = CoreTimes::read(stats.core);
            json!({
                "lcore": stats.core,
                "numa_id": stats.numa_node,
                "tid": tid,
                "busy": stats.busy_ns,
                "idle": stats.idle_ns,
                "in_interrupt": mode == IdleMode::Interrupt,
                "idle_mode": mode,
                "turns": stats.turns,
                "sleeps": stats.sleeps,
                "panics": stats.panics,
                "irq": core_times.irq,
                "sys": core_times.sys,
                "usr": core_times.usr,
                "lw_threads": [{
                    "name": thread_name(stats),
                    "id": index + 1,
                    "cpumask": cpumask(stats.core),
                    "elapsed": stats.busy_ns + stats.idle_ns,
                }],
            })
        })
        .collect();
    Ok(json!({"tick_rate": TICK_RATE_HZ, "pid": std::process::id(), "reactors": reactors}))
}

fn get_threads(node: &Arc<Node>, _: NoParams) -> Result<Value, RpcError> {
    let threads = each_thread(node, |stats, pollers| {
        json!({
            "cpumask": cpumask(stats.core),
            "busy": stats.busy_ns,
            "idle": stats.idle_ns,
            "active_pollers_count": pollers.len(),
            "timed_pollers_count": 0,
            "paused_pollers_count": 0,
        })
    });
    Ok(json!({"tick_rate": TICK_RATE_HZ, "threads": threads}))
}

fn get_pollers(node: &Arc<Node>, _: NoParams) -> Result<Value, RpcError> {
    let threads = each_thread(node, |_, pollers| {
        let active: Vec<Value> = pollers
            .iter()
            .enumerate()
            .map(|(index, poller)| {
                json!({
                    "name": poller.name,
                    "id": index + 1,
                    "state": "waiting",
                    "run_count": poller.run_count,
                    "busy_count": poller.busy_count,
                    "busy": poller.busy_ns,
                })
            })
            .collect();
        json!({"active_pollers": active, "timed_pollers": [], "paused_pollers": []})
    });
    Ok(json!({"tick_rate": TICK_RATE_HZ, "threads": threads}))
}

fn get_io_channels(node: &Arc<Node>, _: NoParams) -> Result<Value, RpcError> {
    let open = node.reactors().call_all(REACTOR_DEADLINE, open_channels)?;
    let threads: Vec<Value> = node
        .reactors()
        .stats()
        .iter()
        .zip(open)
        .map(|(stats, channels)| {
            let channels: Vec<Value> =
                channels.iter().map(|(name, holders)| json!({"name": name, "ref": holders})).collect();
            json!({"name": thread_name(stats), "io_channels": channels})
        })
        .collect();
    Ok(json!({"tick_rate": TICK_RATE_HZ, "threads": threads}))
}

/// One object per reactor: its name, its id, and the members that `more` adds.
fn each_thread(node: &Arc<Node>, more: impl Fn(&ReactorStats, &[PollerStats]) -> Value) -> Vec<Value> {
    let (stats, pollers) = (node.reactors().stats(), node.reactors().poller_stats());
    stats
        .iter()
        .zip(&pollers)
        .enumerate()
        .map(|(index, (stats, pollers))| {
            let mut thread = json!({"name": thread_name(stats), "id": index + 1});
            if let (Value::Object(members), Value::Object(added)) = (&mut thread, more(stats, pollers)) {
                members.extend(added);
            }
            thread
        })
        .collect()
}

fn get_buffers(node: &Arc<Node>, _: NoParams) -> Result<Vec<Value>, RpcError> {
    let (stats, pools) = (node.reactors().stats(), node.reactors().pool_stats());
    let mut modules: Vec<Value> = stats
        .iter()
        .zip(pools)
        .map(|(stats, pool)| {
            json!({
                "module": thread_name(stats),
                "chunks": pool.chunks,
                "chunk_bytes": 2u64 << 20,
                "exhausted": pool.exhausted,
            })
        })
        .collect();
    let arena = node.reactors().arena().stats();
    modules.push(json!({
        "module": "arena",
        "limit_bytes": arena.limit_bytes,
        "mapped_bytes": arena.mapped_bytes,
        "taken_bytes": arena.taken_bytes,
        "page_bytes": arena.page_kind.map(|kind| kind.bytes()),
    }));
    Ok(modules)
}

/// What the kernel counts for a core, in its own ticks; zero where it does not say.
#[derive(Default)]
struct CoreTimes {
    usr: u64,
    sys: u64,
    irq: u64,
}

impl CoreTimes {
    fn read(core: usize) -> CoreTimes {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        CoreTimes::parse(&text, core).unwrap_or_default()
    }

    /// `proc_stat(5)`: `cpuN user nice system idle iowait irq softirq …`.
    fn parse(text: &str, core: usize) -> Option<CoreTimes> {
        let prefix = format!("cpu{core} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix))?;
        let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        Some(CoreTimes { usr: *fields.first()?, sys: *fields.get(2)?, irq: *fields.get(5)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_mask_is_hexadecimal_without_prefix() {
        assert_eq!([cpumask(0), cpumask(3), cpumask(4), cpumask(9)], ["1", "8", "10", "200"]);
    }

    #[test]
    fn core_times_come_from_the_line_of_that_core() {
        let text = "cpu  1 1 1 1 1 1 1\ncpu1 10 0 20 99 0 3 4 0\ncpu11 5 0 6 7 0 8 9\n";
        let times = CoreTimes::parse(text, 1).unwrap();
        assert_eq!((times.usr, times.sys, times.irq), (10, 20, 3));
        assert!(CoreTimes::parse(text, 2).is_none());
    }
}
