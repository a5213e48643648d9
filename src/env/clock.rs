//! Monotonic time in nanoseconds since the process first asked.
//!
//! `u64` nanoseconds are what statistics, timers and the wire's latency fields count in; SPDK's "ticks" are these
//! nanoseconds, with a tick rate of 10^9.

use std::sync::OnceLock;
use std::time::Instant;

/// Ticks per second of [`now`].
pub const TICK_RATE: u64 = 1_000_000_000;

/// Nanoseconds since the first call in this process. Any thread.
#[inline]
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    // 2^64 ns are 584 years.
    start.elapsed().as_nanos() as u64
}
