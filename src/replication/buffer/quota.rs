//! How much memory the disk buffers of a group may take, together, on all reactors.
//!
//! Counted is memory as it is taken: chunks of pages, and payloads that are pinned. The last sixteenth is reserved for
//! originals: the secondary's own writers meet back-pressure before the primary's writes do.

use std::sync::atomic::{AtomicU64, Ordering};

/// Part of the limit that the overlay leaves to undo.
const RESERVED_PART: u64 = 16;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The secondary's own writes.
    Overlay,
    /// Originals, and payloads that stand in for a disk that hangs.
    Undo,
    /// Originals that lead back from the last checkpoint to earlier ones; they have a quota of their own.
    History,
}

/// Shared by the buffers of a group. Any thread.
pub struct Quota {
    limit: AtomicU64,
    used: AtomicU64,
}

impl Quota {
    pub fn new(limit_bytes: u64) -> Quota {
        Quota { limit: AtomicU64::new(limit_bytes), used: AtomicU64::new(0) }
    }

    pub fn limit_bytes(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// A limit below what is used stops growth; it takes nothing away.
    pub fn set_limit_bytes(&self, limit_bytes: u64) {
        self.limit.store(limit_bytes, Ordering::Relaxed);
    }

    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What is used beside `bytes` of it: 0 to 100 percent, and above when the limit was lowered.
    pub fn percent_without(&self, bytes: u64) -> u64 {
        let used = self.used_bytes().saturating_sub(bytes);
        u64::try_from(u128::from(used) * 100 / u128::from(self.limit_bytes().max(1))).unwrap_or(u64::MAX)
    }

    pub fn take(&self, claim: Claim, bytes: u64) -> bool {
        let limit = self.limit_bytes();
        let allowed = match claim {
            Claim::Overlay => limit - limit / RESERVED_PART,
            Claim::Undo => limit,
            // The oldest epoch is given up meanwhile.
            Claim::History => limit.saturating_add(limit / 2),
        };
        let add = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= allowed);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Counts what was taken already, from elsewhere: beyond the limit as well.
    pub fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more given back than taken");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlay_stops_before_undo_does() {
        let quota = Quota::new(1600);
        assert!(quota.take(Claim::Overlay, 1500));
        assert!(!quota.take(Claim::Overlay, 1));
        assert!(quota.take(Claim::Undo, 100));
        assert!(!quota.take(Claim::Undo, 1));
        assert_eq!(quota.percent_without(0), 100);
        quota.give_back(1600);
        assert_eq!(quota.used_bytes(), 0);
    }

    #[test]
    fn a_lowered_limit_stops_growth() {
        let quota = Quota::new(1000);
        assert!(quota.take(Claim::Undo, 800));
        quota.set_limit_bytes(400);
        assert!(!quota.take(Claim::Undo, 1));
        assert_eq!(quota.percent_without(0), 200);
    }
}
