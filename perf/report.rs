//! Results as a table, as JSON, as a picture.

use std::fs;
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::Failure;
use crate::options::{Load, OutputArgs};
use crate::plot;
use crate::runner::Outcome;
use crate::worker::{Results, STEP_NS};

const PERCENTILES: [(&str, f64); 6] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9), ("p99_99", 99.99), ("max", 100.0)];

/// The figures that comparisons use.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub iops: f64,
    pub mib_per_second: f64,
    pub mean_us: f64,
    pub p99_us: f64,
    /// CPU seconds of the watched processes per GiB moved.
    pub cpu_per_gib: f64,
}

fn all(results: &Results) -> Histogram<u64> {
    let mut sum = results.reads.clone();
    let _ = sum.add(&results.writes);
    sum
}

fn seconds(results: &Results) -> f64 {
    (results.measured_ns as f64 / 1e9).max(1e-9)
}

pub fn figures(outcome: &Outcome) -> Figures {
    let r = &outcome.results;
    let (both, bytes) = (all(r), (r.read_bytes + r.write_bytes) as f64);
    let cpu: f64 = outcome.cpu.iter().map(|s| s.cpu_seconds).sum();
    Figures {
        iops: both.len() as f64 / seconds(r),
        mib_per_second: bytes / f64::from(1 << 20) / seconds(r),
        mean_us: both.mean() / 1e3,
        p99_us: both.value_at_quantile(0.99) as f64 / 1e3,
        cpu_per_gib: if bytes > 0.0 { cpu / (bytes / f64::from(1 << 30)) } else { 0.0 },
    }
}

pub fn latency(h: &Histogram<u64>) -> Value {
    let mut map = serde_json::Map::new();
    map.insert("count".to_string(), json!(h.len()));
    map.insert("mean_us".to_string(), json!(h.mean() / 1e3));
    map.insert("min_us".to_string(), json!(if h.is_empty() { 0.0 } else { h.min() as f64 / 1e3 }));
    for (name, percentile) in PERCENTILES {
        map.insert(format!("{name}_us"), json!(h.value_at_percentile(percentile) as f64 / 1e3));
    }
    Value::Object(map)
}

pub fn json(load: &Load, outcome: &Outcome) -> Value {
    let r = &outcome.results;
    let f = figures(outcome);
    let steps: Vec<Value> =
        r.steps.iter().map(|(ios, longest)| json!([ios, *longest as f64 / 1e3])).collect();
    json!({
        "load": {
            "random": load.pattern.random, "read_percent": load.pattern.read_percent,
            "size_bytes": load.size_bytes, "depth": load.depth, "queues_per_core": load.queues,
        },
        "seconds": seconds(r),
        "iops": f.iops,
        "mib_per_second": f.mib_per_second,
        "read_bytes": r.read_bytes,
        "write_bytes": r.write_bytes,
        "read_latency": latency(&r.reads),
        "write_latency": latency(&r.writes),
        "errors": r.errors,
        "messages": r.messages,
        "verify": {
            "checked_blocks": r.checked_blocks,
            "faults": r.faults.iter().map(|(k, v)| (format!("{k:?}"), json!(v))).collect::<serde_json::Map<_, _>>(),
        },
        "cpu": outcome.cpu,
        "cpu_seconds_per_gib": f.cpu_per_gib,
        "steps": { "ms": STEP_NS / 1_000_000, "ios_and_longest_us": steps },
    })
}

fn line(name: &str, h: &Histogram<u64>, results: &Results) {
    if h.is_empty() {
        return;
    }
    let us = |p: f64| h.value_at_percentile(p) as f64 / 1e3;
    lockstep::say!(
        "{name:<6} {:>11.0} IOPS   us: mean {:.1}  p50 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
        h.len() as f64 / seconds(results),
        h.mean() / 1e3,
        us(50.0),
        us(99.0),
        us(99.9),
        us(100.0)
    );
}

/// Shows and stores a run. An I/O error or a verify fault is a failure of the run.
pub fn publish(load: &Load, outcome: &Outcome, output: &OutputArgs) -> Result<(), Failure> {
    let r = &outcome.results;
    let to_stdout = output.json.as_deref() == Some(Path::new("-"));
    if !to_stdout {
        let f = figures(outcome);
        line("read", &r.reads, r);
        line("write", &r.writes, r);
        lockstep::say!("total  {:>11.0} IOPS   {:.1} MiB/s", f.iops, f.mib_per_second);
        for share in &outcome.cpu {
            lockstep::say!(
                "process {}: {:.2} CPU s, {:.1} % of a core",
                share.pid,
                share.cpu_seconds,
                share.percent
            );
        }
        if !outcome.cpu.is_empty() {
            lockstep::say!("CPU of these processes: {:.3} s/GiB", f.cpu_per_gib);
        }
        if load.verify {
            let faults: u64 = r.faults.values().sum();
            lockstep::say!("verify: {} blocks read and checked, {faults} faults", r.checked_blocks);
        }
    }
    match &output.json {
        Some(_) if to_stdout => lockstep::say!("{:#}", json(load, outcome)),
        Some(path) => write(path, &format!("{:#}\n", json(load, outcome)))?,
        None => {}
    }
    if let Some(path) = &output.plot {
        write(path, &plot::draw(&all(r), &r.steps))?;
    }
    if r.errors > 0 || !r.faults.is_empty() {
        let faults: u64 = r.faults.values().sum();
        return Err(
            format!("{} I/Os failed, {faults} verify faults: {}", r.errors, r.messages.join("; ")).into()
        );
    }
    Ok(())
}

pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()).into())
}

/// The median; 0 of nothing.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_stands_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }
}
