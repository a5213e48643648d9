//! Rate limits of a bdev, shared by its channels without a lock.
//!
//! A limit is a bucket of tokens that fills with time; an I/O may start while the bucket is not empty, and may leave
//! it in debt, so that one larger than a millisecond's worth starts at all. I/Os that may not start wait in their
//! channel's queue, which looks again every millisecond. While several channels wait, each takes at most its part of
//! what comes in per millisecond, so that the first to wake does not starve the others.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::channel::Channel;
use super::device::Bdev;
use super::done::recent_ns;
use super::io::Op;
use crate::reactor::{self, TimerHandler};

/// Waiting channels look again after this long: the wheel's tick.
const SLOT: Duration = Duration::from_millis(1);
const SLOT_NS: u64 = 1_000_000;
/// A bucket holds at most what comes in during this many slots: enough to make up for a late timer, too little for
/// a burst to be felt.
const BURST_SLOTS: i64 = 5;
/// Tokens are thousandths, so that a limit of one a second still fills by one token a slot.
const SCALE: u64 = 1000;
const MIB: u64 = 1 << 20;

/// SPDK's rate limits; 0 is unlimited. Megabytes are MiB, as SPDK's are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct QosLimits {
    pub rw_ios_per_sec: u64,
    pub rw_mbytes_per_sec: u64,
    pub r_mbytes_per_sec: u64,
    pub w_mbytes_per_sec: u64,
}

const BUCKETS: usize = 4;

#[derive(Default)]
struct Bucket {
    /// Tokens a slot; 0 is unlimited.
    per_slot: AtomicU64,
    tokens: AtomicI64,
}

/// A bdev's buckets.
#[derive(Default)]
pub(super) struct Qos {
    buckets: [Bucket; BUCKETS],
    /// The slot up to which the buckets were filled.
    filled: AtomicU64,
    /// Channels with I/Os that wait for tokens.
    contenders: AtomicU32,
}

impl Qos {
    pub(super) fn set(&self, limits: QosLimits) {
        let rates = [
            limits.rw_ios_per_sec,
            limits.rw_mbytes_per_sec.saturating_mul(MIB),
            limits.r_mbytes_per_sec.saturating_mul(MIB),
            limits.w_mbytes_per_sec.saturating_mul(MIB),
        ];
        for (bucket, rate) in self.buckets.iter().zip(rates) {
            // `rate` a second in thousandths is `rate` a millisecond.
            bucket.per_slot.store(rate.min(i64::MAX as u64 / 1024), Ordering::Relaxed);
            bucket.tokens.store(rate.min(i64::MAX as u64 / 1024) as i64, Ordering::Relaxed);
        }
    }

    fn fill(&self, slot: u64) {
        let filled = self.filled.load(Ordering::Relaxed);
        if slot <= filled
            || self.filled.compare_exchange(filled, slot, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let slots = (slot - filled).min(BURST_SLOTS as u64) as i64;
        for bucket in &self.buckets {
            let per_slot = bucket.per_slot.load(Ordering::Relaxed) as i64;
            let tokens = bucket.tokens.load(Ordering::Relaxed);
            // What others take between the two lines stays taken: only the increment is added.
            let more = (per_slot * slots).min(per_slot * BURST_SLOTS - tokens).max(0);
            bucket.tokens.fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// What an I/O takes from each bucket.
fn cost(op: Op, bytes: u64) -> [u64; BUCKETS] {
    let bytes = bytes.saturating_mul(SCALE);
    match op {
        Op::Read | Op::Compare => [SCALE, bytes, bytes, 0],
        Op::Write | Op::CompareAndWrite => [SCALE, bytes, 0, bytes],
        Op::Flush | Op::WriteZeroes | Op::Unmap | Op::Reset => [0; BUCKETS],
    }
}

/// One channel's part in the limits.
#[derive(Default)]
pub(super) struct Gate {
    /// The first of the queue waits for tokens.
    blocked: Cell<bool>,
    /// A timer looks after the queue, and the channel counts among the contenders.
    armed: Cell<bool>,
    slot: Cell<u64>,
    /// Taken in this slot, with what was taken too much in slots before.
    taken: [Cell<i64>; BUCKETS],
}

impl Gate {
    /// Takes tokens for an I/O, or says that it must wait.
    #[cold]
    pub(super) fn admits(&self, bdev: &Bdev, op: Op, bytes: u64) -> bool {
        let qos = bdev.qos();
        let slot = recent_ns() / SLOT_NS;
        qos.fill(slot);
        let contenders = i64::from(qos.contenders.load(Ordering::Relaxed).max(1));
        let cost = cost(op, bytes);
        let passed = slot.saturating_sub(self.slot.replace(slot)).min(1024) as i64;
        let mut admitted = true;
        for (index, bucket) in qos.buckets.iter().enumerate() {
            let per_slot = bucket.per_slot.load(Ordering::Relaxed) as i64;
            let share = (per_slot / contenders).max(1);
            let taken = &self.taken[index];
            taken.set(taken.get().saturating_sub(share.saturating_mul(passed)).max(0));
            if per_slot > 0 && cost[index] > 0 {
                let fair = contenders == 1 || taken.get() < share;
                admitted &= fair && bucket.tokens.load(Ordering::Relaxed) > 0;
            }
        }
        self.blocked.set(!admitted);
        if admitted {
            for (index, bucket) in qos.buckets.iter().enumerate() {
                if bucket.per_slot.load(Ordering::Relaxed) > 0 && cost[index] > 0 {
                    bucket.tokens.fetch_sub(cost[index] as i64, Ordering::Relaxed);
                    // Debts towards the other channels are bounded by what the bucket's own debt makes them wait.
                    let limit =
                        bucket.per_slot.load(Ordering::Relaxed) as i64 * BURST_SLOTS + cost[index] as i64;
                    let taken = &self.taken[index];
                    taken.set(taken.get().saturating_add(cost[index] as i64).min(limit));
                }
            }
        }
        admitted
    }

    /// Sees to it that a queue that waits for tokens is looked at again.
    pub(super) fn arm(&self, channel: &Rc<Channel>) {
        if self.blocked.get() && !self.armed.replace(true) {
            channel.bdev.qos().contenders.fetch_add(1, Ordering::Relaxed);
            reactor::timer_after(SLOT, channel.clone(), 0);
        }
    }

    /// The queue moves, or is empty.
    pub(super) fn passed(&self, channel: &Channel) {
        self.blocked.set(false);
        if self.armed.get() && channel.waiting.borrow().is_empty() {
            self.armed.set(false);
            channel.bdev.qos().contenders.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl TimerHandler for Channel {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        self.start_waiting();
        if self.gate.armed.get() {
            reactor::timer_after(SLOT, self.clone(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_with_time_and_holds_a_bounded_burst() {
        let qos = Qos::default();
        qos.set(QosLimits { rw_ios_per_sec: 1000, ..QosLimits::default() });
        qos.buckets[0].tokens.store(-500, Ordering::Relaxed);
        qos.filled.store(10, Ordering::Relaxed);
        qos.fill(11);
        assert_eq!(qos.buckets[0].tokens.load(Ordering::Relaxed), 500);
        qos.fill(11);
        assert_eq!(qos.buckets[0].tokens.load(Ordering::Relaxed), 500);
        qos.fill(1_000_000);
        assert_eq!(qos.buckets[0].tokens.load(Ordering::Relaxed), 5000);
        assert_eq!(qos.buckets[1].tokens.load(Ordering::Relaxed), 0);
    }
}
