//! CPU time of processes, from /proc.

use std::fs;
use std::time::Instant;

use crate::Failure;

/// CPU time in ns of a process and its threads, dead ones included.
pub fn process_ns(pid: u32) -> Result<u64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| format!("process {pid}: {e}"))?;
    // The name may hold anything; the fields begin behind its last bracket.
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, f)| f.split(' ').collect()).unwrap_or_default();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
        return Err(format!("process {pid}: its state cannot be read").into());
    };
    let per_second = rustix::param::clock_ticks_per_second();
    Ok((user + system) * 1_000_000_000 / per_second)
}

/// Processes of a process group.
pub fn group(pgid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let member = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        (fields.split(' ').nth(2)?.parse() == Ok(pgid)).then_some(pid)
    };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(member).collect()
}

/// Measures processes from one moment to another.
pub struct Meter {
    pids: Vec<u32>,
    before: Vec<u64>,
    since: Instant,
}

/// One process's share.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Share {
    pub pid: u32,
    pub cpu_seconds: f64,
    /// Of one core, in percent.
    pub percent: f64,
}

impl Meter {
    pub fn start(pids: &[u32]) -> Result<Meter, Failure> {
        let before = pids.iter().map(|&p| process_ns(p)).collect::<Result<_, _>>()?;
        Ok(Meter { pids: pids.to_vec(), before, since: Instant::now() })
    }

    pub fn stop(&self) -> Result<Vec<Share>, Failure> {
        let elapsed = self.since.elapsed().as_secs_f64();
        let each = self.pids.iter().zip(&self.before).map(|(&pid, &before)| {
            let cpu_seconds = process_ns(pid)?.saturating_sub(before) as f64 / 1e9;
            Ok(Share { pid, cpu_seconds, percent: 100.0 * cpu_seconds / elapsed })
        });
        each.collect()
    }
}
