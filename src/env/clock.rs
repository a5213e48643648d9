//! Monotonic time in nanoseconds since the process first asked.
//!
//! `u64` nanoseconds are what statistics, timers and the wire's latency fields count in; SPDK's "ticks" are these
//! nanoseconds, with a tick rate of 10^9.
//!
//! A reactor asks several times per I/O. Where the kernel itself trusts the processor's time stamp counter (its clock
//! source is `tsc`: invariant, and the same on all cores), so does this module, at a third of the cost of asking the
//! kernel; elsewhere it asks the kernel.

use std::sync::OnceLock;
use std::time::Instant;

/// Ticks per second of [`now`].
pub const TICK_RATE: u64 = 1_000_000_000;

enum Clock {
    /// `ns = (counter - base) * ns_per_tick / 2^32`.
    #[cfg(target_arch = "x86_64")]
    Counter {
        base: u64,
        ns_per_tick: u64,
    },
    Kernel(Instant),
}

/// Nanoseconds since the first call in this process. Any thread. Readings of one thread never fall; those of two
/// threads at the same moment may differ by some nanoseconds, so differences across threads saturate.
#[inline]
pub fn now() -> u64 {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    match CLOCK.get_or_init(Clock::choose) {
        #[cfg(target_arch = "x86_64")]
        Clock::Counter { base, ns_per_tick } => {
            let ticks = counter().saturating_sub(*base);
            ((u128::from(ticks) * u128::from(*ns_per_tick)) >> 32) as u64
        }
        // 2^64 ns are 584 years.
        Clock::Kernel(start) => start.elapsed().as_nanos() as u64,
    }
}

impl Clock {
    fn choose() -> Clock {
        #[cfg(target_arch = "x86_64")]
        if let Some(clock) = Clock::calibrated() {
            return clock;
        }
        Clock::Kernel(Instant::now())
    }

    /// Measures the counter's rate against the kernel's clock, over 5 ms: wrong by less than 1 in 10,000 however busy
    /// the machine is, because of several readings the one counts that was interrupted least.
    #[cfg(target_arch = "x86_64")]
    fn calibrated() -> Option<Clock> {
        const CALIBRATE_NS: u64 = 5_000_000;
        let source =
            std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        if source.ok()?.trim() != "tsc" {
            return None;
        }
        let start = Instant::now();
        let reading = || {
            let once = |_| {
                let before = counter();
                let ns = start.elapsed().as_nanos() as u64;
                (counter().saturating_sub(before), before, ns)
            };
            (0..16).map(once).min().map(|(_, ticks, ns)| (ticks, ns))
        };
        let (first_ticks, first_ns) = reading()?;
        while (start.elapsed().as_nanos() as u64) < CALIBRATE_NS {
            std::hint::spin_loop();
        }
        let (last_ticks, last_ns) = reading()?;
        let (ticks, ns) = (last_ticks.checked_sub(first_ticks)?, last_ns.checked_sub(first_ns)?);
        let ns_per_tick = u64::try_from((u128::from(ns) << 32).checked_div(u128::from(ticks))?).ok()?;
        Some(Clock::Counter { base: first_ticks, ns_per_tick })
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_passes_as_the_kernel_says_and_never_falls() {
        now();
        // The kernel's clock around ours and within: interruptions fall into both or only make the outer one longer.
        let outer = Instant::now();
        let begin = now();
        let inner = Instant::now();
        let mut last = begin;
        while inner.elapsed() < Duration::from_millis(50) {
            let next = now();
            assert!(next >= last);
            last = next;
        }
        let inner = inner.elapsed().as_nanos() as f64;
        let ours = (now() - begin) as f64;
        let outer = outer.elapsed().as_nanos() as f64;
        assert!(inner * 0.999 < ours && ours < outer * 1.001, "{inner} < {ours} < {outer}");
    }
}
