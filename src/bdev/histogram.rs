//! Latency histograms in SPDK's layout (`include/spdk/histogram_data.h`), so that its tools decode them: ranges that
//! double, each cut into 2^granularity buckets of equal width. Values are ns.
//!
//! Written by each channel's reactor, read by the control thread, no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::BdevError;
use super::io::Op;

/// SPDK's SPDK_HISTOGRAM_GRANULARITY_DEFAULT.
pub const DEFAULT_GRANULARITY: u32 = 7;
/// SPDK's default of `min_nsec` in `bdev_enable_histogram`.
pub const DEFAULT_MIN_NS: u64 = 1_000;
/// SPDK's default of `max_nsec`.
pub const DEFAULT_MAX_NS: u64 = 120_000_000_000;
/// Finer buckets than these would take more memory per channel than they tell.
const MAX_GRANULARITY: u32 = 16;

/// What to count and how finely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramOptions {
    pub granularity: u32,
    pub min_ns: u64,
    pub max_ns: u64,
    /// Only this operation; `None` is all.
    pub op: Option<Op>,
}

impl Default for HistogramOptions {
    fn default() -> HistogramOptions {
        let (granularity, min_ns, max_ns) = (DEFAULT_GRANULARITY, DEFAULT_MIN_NS, DEFAULT_MAX_NS);
        HistogramOptions { granularity, min_ns, max_ns, op: None }
    }
}

/// A histogram's counters, added up over the channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    pub granularity: u32,
    pub min_range: u32,
    pub max_range: u32,
    /// `(max_range - min_range + 1) << granularity` counters.
    pub buckets: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    granularity: u32,
    min_range: u32,
    max_range: u32,
}

impl Layout {
    fn new(options: &HistogramOptions) -> Result<Layout, BdevError> {
        if !(1..=MAX_GRANULARITY).contains(&options.granularity) {
            let text = format!("granularity {} is not between 1 and {MAX_GRANULARITY}", options.granularity);
            return Err(BdevError::Invalid(text));
        }
        if options.min_ns >= options.max_ns {
            let text = format!("min_nsec {} is not below max_nsec {}", options.min_ns, options.max_ns);
            return Err(BdevError::Invalid(text));
        }
        let mut layout = Layout { granularity: options.granularity, min_range: 0, max_range: 0 };
        layout.min_range = layout.range(options.min_ns);
        layout.max_range = layout.range(options.max_ns - 1);
        Ok(layout)
    }

    fn buckets(&self) -> usize {
        ((self.max_range - self.min_range + 1) as usize) << self.granularity
    }

    fn range(&self, value: u64) -> u32 {
        (64 - self.granularity).saturating_sub(value.leading_zeros())
    }

    fn bucket(&self, value: u64) -> usize {
        let last = (1u64 << self.granularity) - 1;
        let range = self.range(value);
        let (range, index) = if range < self.min_range {
            (self.min_range, 0)
        } else if range > self.max_range {
            (self.max_range, last)
        } else {
            (range, value >> range.saturating_sub(1) & last)
        };
        (((range - self.min_range) as usize) << self.granularity) + index as usize
    }
}

/// One channel's counters. Only the channel's reactor writes them.
pub(super) struct ChannelHistogram {
    /// Which enabling they belong to.
    pub(super) epoch: u64,
    layout: Layout,
    op: Option<Op>,
    buckets: Arc<[AtomicU64]>,
}

impl ChannelHistogram {
    pub(super) fn tally(&self, op: Op, latency_ns: u64) {
        if self.op.is_none_or(|only| only == op) {
            let counter = &self.buckets[self.layout.bucket(latency_ns)];
            counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

/// A bdev's histogram: the counters of every channel that has ended an I/O since it was enabled.
pub(super) struct Histograms {
    pub(super) epoch: u64,
    layout: Layout,
    op: Option<Op>,
    channels: Vec<Arc<[AtomicU64]>>,
}

impl Histograms {
    pub(super) fn new(options: &HistogramOptions, epoch: u64) -> Result<Histograms, BdevError> {
        Ok(Histograms { epoch, layout: Layout::new(options)?, op: options.op, channels: Vec::new() })
    }

    pub(super) fn open(&mut self) -> ChannelHistogram {
        let buckets: Arc<[AtomicU64]> = (0..self.layout.buckets()).map(|_| AtomicU64::new(0)).collect();
        self.channels.push(buckets.clone());
        ChannelHistogram { epoch: self.epoch, layout: self.layout, op: self.op, buckets }
    }

    pub(super) fn snapshot(&self) -> Histogram {
        let Layout { granularity, min_range, max_range } = self.layout;
        let buckets = (0..self.layout.buckets())
            .map(|index| self.channels.iter().map(|c| c[index].load(Ordering::Relaxed)).sum())
            .collect();
        Histogram { granularity, min_range, max_range, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SPDK's __spdk_histogram_data_get_bucket_start: the upper border of a bucket.
    fn border(layout: &Layout, at: usize) -> u64 {
        let range = (at >> layout.granularity) as u32 + layout.min_range;
        let index = (at as u64 & ((1 << layout.granularity) - 1)) + 1;
        if range == 0 { index } else { (1u64 << (range + layout.granularity - 1)) + (index << (range - 1)) }
    }

    proptest! {
        #[test]
        fn a_value_lies_between_the_borders_that_spdk_computes(value in DEFAULT_MIN_NS..DEFAULT_MAX_NS) {
            let layout = Layout::new(&HistogramOptions::default()).expect("layout");
            let at = layout.bucket(value);
            prop_assert!(value < border(&layout, at));
            prop_assert!(at == 0 || value >= border(&layout, at - 1));
        }
    }

    #[test]
    fn values_beyond_the_ends_count_in_the_first_and_last_bucket() {
        let layout = Layout::new(&HistogramOptions::default()).expect("layout");
        assert_eq!(layout.bucket(0), 0);
        assert_eq!(layout.bucket(u64::MAX), layout.buckets() - 1);
        assert!(Layout::new(&HistogramOptions { min_ns: 5, max_ns: 5, ..Default::default() }).is_err());
    }
}
