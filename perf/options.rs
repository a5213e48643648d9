//! What a load is, as it is given on the command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use lockstep::env::CoreList;
use lockstep::reactor::IdleMode;

use crate::Failure;

/// A number of bytes: `4096`, `4k`, `1m`, `2g`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("`{text}` is no size such as 4096, 4k, 128k, 1g");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(wrong)
    }
}

/// Which addresses, and how many of the I/Os read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    pub random: bool,
    pub read_percent: u8,
}

impl FromStr for Pattern {
    type Err = String;
    /// fio's words, and `randrw:70` for 70 % reads.
    fn from_str(text: &str) -> Result<Pattern, String> {
        let wrong = || {
            format!(
                "`{text}` is no pattern: read, write, rw, randread, randwrite, randrw, or randrw:70 for 70 % reads"
            )
        };
        let (word, percent) = match text.split_once(':') {
            Some((word, percent)) => (word, Some(percent.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let random = word.starts_with("rand");
        let read_percent = match (word.trim_start_matches("rand"), percent) {
            ("read", None) => 100,
            ("write", None) => 0,
            ("rw", percent) => percent.unwrap_or(50),
            _ => return Err(wrong()),
        };
        if read_percent > 100 {
            return Err(wrong());
        }
        Ok(Pattern { random, read_percent })
    }
}

/// The load of one run.
#[derive(Debug, Clone)]
pub struct Load {
    pub pattern: Pattern,
    pub size_bytes: u64,
    pub depth: usize,
    /// Queues per core and device.
    pub queues: usize,
    pub time: Duration,
    pub warm_up: Duration,
    /// I/Os of one queue, after which it stops before the time is over.
    pub count: Option<u64>,
    /// I/Os per second of all queues together.
    pub rate: Option<f64>,
    pub verify: bool,
    pub fua: bool,
    /// Only so much of the device, from its beginning.
    pub range_bytes: Option<u64>,
    pub seed: u64,
}

#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// read, write, rw, randread, randwrite, randrw, or randrw:70 for 70 % reads
    #[arg(long, default_value = "randread")]
    pub rw: Pattern,
    /// Bytes of one I/O
    #[arg(long, default_value = "4k")]
    pub bs: Size,
    /// I/Os in flight on each queue
    #[arg(long, default_value_t = 32)]
    pub depth: usize,
    /// Queues (connections) on each core to each device
    #[arg(long, default_value_t = 1)]
    pub queues: usize,
    /// Seconds to measure
    #[arg(long, default_value_t = 5.0)]
    pub time: f64,
    /// Seconds of load before the measurement
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Stop a queue after so many I/Os
    #[arg(long)]
    pub count: Option<u64>,
    /// I/Os per second, all queues together
    #[arg(long)]
    pub rate: Option<f64>,
    /// Write stamped blocks (address, sequence, writer, checksum) and check what reads give
    #[arg(long)]
    pub verify: bool,
    /// Write with force unit access
    #[arg(long)]
    pub fua: bool,
    /// Use only so much of the device, from its beginning
    #[arg(long)]
    pub range: Option<Size>,
    /// Seed of addresses and of the mixture
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl LoadArgs {
    pub fn load(&self) -> Result<Load, Failure> {
        let seconds = |s: f64| Duration::try_from_secs_f64(s).map_err(|e| format!("{s} seconds: {e}"));
        if self.depth == 0 || self.queues == 0 || self.bs.0 == 0 {
            return Err("depth, queues and I/O size are at least 1".into());
        }
        Ok(Load {
            pattern: self.rw,
            size_bytes: self.bs.0,
            depth: self.depth,
            queues: self.queues,
            time: seconds(self.time)?,
            warm_up: seconds(self.warm_up)?,
            count: self.count,
            rate: self.rate,
            verify: self.verify,
            fua: self.fua,
            range_bytes: self.range.map(|r| r.0),
            seed: self.seed,
        })
    }
}

/// Where the load generator itself runs.
#[derive(Debug, Clone, Args)]
pub struct MachineArgs {
    /// Cores of the load generator, such as 1 or 0-3
    #[arg(long)]
    pub cores: Option<CoreList>,
    /// What it does when it waits: spin, adaptive, interrupt
    #[arg(long, default_value = "spin")]
    pub idle: IdleMode,
    /// MiB of data buffers
    #[arg(long, default_value_t = 512)]
    pub memory: usize,
}

/// Where results go.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// Processes whose CPU time is measured during the run
    #[arg(long, value_delimiter = ',')]
    pub cpu_of: Vec<u32>,
    /// Write the results as JSON ("-": to standard output instead of the table)
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Draw latency distribution and IOPS over time (SVG)
    #[arg(long)]
    pub plot: Option<PathBuf>,
}

/// One NVMe/TCP namespace: `ADDRESS:PORT/NQN[/NSID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub address: String,
    pub port: String,
    pub nqn: String,
    pub nsid: Option<u32>,
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Target, String> {
        let wrong = || format!("`{text}` is no target such as 127.0.0.1:4420/nqn.2016-06.io.spdk:cnode1");
        let (place, name) = text.split_once('/').ok_or_else(wrong)?;
        let (address, port) = place.rsplit_once(':').ok_or_else(wrong)?;
        let (nqn, nsid) = match name.rsplit_once('/') {
            Some((nqn, nsid)) => (nqn, Some(nsid.parse().map_err(|_| wrong())?)),
            None => (name, None),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']').to_string();
        Ok(Target { address, port: port.to_string(), nqn: nqn.to_string(), nsid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_patterns_and_targets_read_as_people_write_them() {
        assert_eq!("128k".parse(), Ok(Size(131072)));
        assert_eq!("3".parse(), Ok(Size(3)));
        assert!("k".parse::<Size>().is_err() && "4x".parse::<Size>().is_err());
        assert_eq!("randrw:70".parse(), Ok(Pattern { random: true, read_percent: 70 }));
        assert_eq!("write".parse(), Ok(Pattern { random: false, read_percent: 0 }));
        assert!("randread:5".parse::<Pattern>().is_err() && "rw:101".parse::<Pattern>().is_err());
        let target: Target = "[::1]:4420/nqn.2016-06.io.spdk:a/2".parse().expect("target");
        assert_eq!((target.address.as_str(), target.nsid), ("::1", Some(2)));
    }
}
