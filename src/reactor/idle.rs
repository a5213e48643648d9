//! How a reactor idles.

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a reactor does when it finds nothing to do. Switchable at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum IdleMode {
    /// Never sleeps: lowest latency, a whole core.
    Spin = 0,
    /// Spins a little, then sleeps until work arrives.
    Adaptive = 1,
    /// Sleeps at once.
    Interrupt = 2,
}

impl IdleMode {
    /// How long to go on polling without work before sleeping, ns; `None` is for ever.
    pub(super) fn spin_ns(self, alone: bool) -> Option<u64> {
        match self {
            IdleMode::Spin => None,
            // A sleep and a wake cost about 5 µs, so spinning longer than a few of those never pays for the core;
            // where nodes share cores, spinning takes the core from the very process that would bring the work.
            IdleMode::Adaptive => Some(if alone { 20_000 } else { 2_000 }),
            IdleMode::Interrupt => Some(0),
        }
    }
}

impl FromStr for IdleMode {
    type Err = String;
    fn from_str(text: &str) -> Result<IdleMode, String> {
        match text {
            "spin" => Ok(IdleMode::Spin),
            "adaptive" => Ok(IdleMode::Adaptive),
            "interrupt" => Ok(IdleMode::Interrupt),
            other => Err(format!("idle mode `{other}` is not one of spin, adaptive, interrupt")),
        }
    }
}

impl std::fmt::Display for IdleMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            IdleMode::Spin => "spin",
            IdleMode::Adaptive => "adaptive",
            IdleMode::Interrupt => "interrupt",
        })
    }
}

/// An idle mode that the control thread may change under a running reactor.
pub(super) struct AtomicIdleMode(AtomicU8);

impl AtomicIdleMode {
    pub(super) fn new(mode: IdleMode) -> AtomicIdleMode {
        AtomicIdleMode(AtomicU8::new(mode as u8))
    }

    pub(super) fn load(&self) -> IdleMode {
        match self.0.load(Ordering::Relaxed) {
            0 => IdleMode::Spin,
            1 => IdleMode::Adaptive,
            _ => IdleMode::Interrupt,
        }
    }

    pub(super) fn store(&self, mode: IdleMode) {
        self.0.store(mode as u8, Ordering::Relaxed);
    }
}
