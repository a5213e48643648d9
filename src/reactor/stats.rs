//! What a reactor counts: written by its thread, read by the control thread, no lock.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Default)]
pub(super) struct Counters {
    pub(super) busy_ns: AtomicU64,
    pub(super) idle_ns: AtomicU64,
    pub(super) turns: AtomicU64,
    pub(super) sleeps: AtomicU64,
    pub(super) panics: AtomicU64,
}

/// Adds without an atomic read-modify-write: only the reactor's own thread writes.
#[inline]
pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

/// One reactor's counters; times in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReactorStats {
    pub core: usize,
    pub numa_node: usize,
    pub busy_ns: u64,
    pub idle_ns: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Times that it went to sleep in the ring.
    pub sleeps: u64,
    /// Callbacks that panicked and were caught: each is a defect to report.
    pub panics: u64,
}

/// One poller's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollerStats {
    pub name: String,
    pub run_count: u64,
    pub busy_count: u64,
    pub busy_ns: u64,
}
