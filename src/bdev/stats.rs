//! Counters per channel and operation: written by the channel's reactor, read by the control thread, no lock.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::io::Op;

/// Operations that are counted apart, in SPDK's order.
const KINDS: usize = 4;

fn kind(op: Op) -> Option<usize> {
    match op {
        Op::Read | Op::Compare => Some(0),
        Op::Write | Op::WriteZeroes | Op::CompareAndWrite => Some(1),
        Op::Unmap => Some(2),
        Op::Flush => Some(3),
        Op::Reset => None,
    }
}

#[derive(Default)]
struct Counters {
    ops: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    latency_ns: AtomicU64,
    min_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// One channel's counters.
#[derive(Default)]
pub struct ChannelStats {
    kinds: [Counters; KINDS],
    reset: AtomicBool,
}

/// One kind of operation; times in ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpStats {
    pub ops: u64,
    pub bytes: u64,
    pub errors: u64,
    pub latency_ns: u64,
    /// 0 when nothing was counted.
    pub min_ns: u64,
    pub max_ns: u64,
}

/// A device's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    pub read: OpStats,
    pub write: OpStats,
    pub unmap: OpStats,
    pub flush: OpStats,
}

impl ChannelStats {
    /// Counts one ended I/O. Only the channel's reactor.
    #[inline]
    pub(super) fn count(&self, op: Op, bytes: u64, latency_ns: u64, failed: bool) {
        let Some(kind) = kind(op) else { return };
        if self.reset.load(Ordering::Relaxed) {
            self.reset.store(false, Ordering::Relaxed);
            for c in &self.kinds {
                for counter in [&c.ops, &c.bytes, &c.errors, &c.latency_ns, &c.min_ns, &c.max_ns] {
                    counter.store(0, Ordering::Relaxed);
                }
            }
        }
        let c = &self.kinds[kind];
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let put = |a: &AtomicU64, v: u64| a.store(v, Ordering::Relaxed);
        if failed {
            put(&c.errors, get(&c.errors) + 1);
            return;
        }
        put(&c.ops, get(&c.ops) + 1);
        put(&c.bytes, get(&c.bytes) + bytes);
        put(&c.latency_ns, get(&c.latency_ns) + latency_ns);
        if get(&c.min_ns) == 0 || latency_ns < get(&c.min_ns) {
            put(&c.min_ns, latency_ns.max(1));
        }
        if latency_ns > get(&c.max_ns) {
            put(&c.max_ns, latency_ns);
        }
    }

    /// Asks the channel's reactor to begin anew; until its next I/O the old values are hidden.
    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> IoStats {
        if self.reset.load(Ordering::Relaxed) {
            return IoStats::default();
        }
        let one = |k: usize| {
            let c = &self.kinds[k];
            let get = |a: &AtomicU64| a.load(Ordering::Relaxed);
            OpStats {
                ops: get(&c.ops),
                bytes: get(&c.bytes),
                errors: get(&c.errors),
                latency_ns: get(&c.latency_ns),
                min_ns: get(&c.min_ns),
                max_ns: get(&c.max_ns),
            }
        };
        IoStats { read: one(0), write: one(1), unmap: one(2), flush: one(3) }
    }
}

impl OpStats {
    fn plus(&self, other: &OpStats) -> OpStats {
        let min_ns = match (self.min_ns, other.min_ns) {
            (0, m) | (m, 0) => m,
            (a, b) => a.min(b),
        };
        OpStats {
            ops: self.ops + other.ops,
            bytes: self.bytes + other.bytes,
            errors: self.errors + other.errors,
            latency_ns: self.latency_ns + other.latency_ns,
            min_ns,
            max_ns: self.max_ns.max(other.max_ns),
        }
    }
}

impl IoStats {
    pub(super) fn plus(&self, other: &IoStats) -> IoStats {
        IoStats {
            read: self.read.plus(&other.read),
            write: self.write.plus(&other.write),
            unmap: self.unmap.plus(&other.unmap),
            flush: self.flush.plus(&other.flush),
        }
    }
}
