//! What happened, for `notify_get_notifications`: a bounded history of numbered events.
//!
//! Any thread may post; nothing waits. A reader that falls more than [`HISTORY`] events behind sees a gap in
//! the ids and so knows that it missed some.

use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Events kept; SPDK keeps 1024.
pub const HISTORY: usize = 1024;

/// Every type of event there is.
pub const TYPES: &[&str] = &[
    "bdev_register",
    "bdev_unregister",
    "replication_behind",
    "replication_buffer_overrun",
    "replication_buffer_watermark",
    "replication_checkpoint_failed",
    "replication_disk_attached",
    "replication_disk_detached",
    "replication_disk_failed",
    "replication_disk_grew",
    "replication_disk_healed",
    "replication_disk_too_small",
    "replication_drain_failed",
    "replication_drained",
    "replication_fenced",
    "replication_history_dropped",
    "replication_history_lost",
    "replication_hung_disk",
    "replication_journal_failed",
    "replication_journal_overrun",
    "replication_journal_watermark",
    "replication_link_lost",
    "replication_needs_sync",
    "replication_peer_failed",
    "replication_promoted",
    "replication_record_failed",
    "replication_resize_failed",
    "replication_resized",
    "replication_rolled_back",
    "replication_split_brain",
    "replication_start_failed",
    "replication_sync_failed",
    "replication_sync_finished",
    "replication_sync_started",
    "replication_verify_difference",
    "replication_verify_failed",
    "replication_verify_finished",
    "replication_verify_started",
    "replication_verify_stopped",
];

/// One event as it goes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// One of [`TYPES`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it is about: a name, or a short text.
    pub ctx: String,
    /// Rises by one with every event of this node.
    pub id: u64,
}

#[derive(Default)]
struct History {
    events: VecDeque<Event>,
    next_id: u64,
}

/// The history.
#[derive(Default)]
pub struct Events {
    history: Mutex<History>,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, History> {
        // A history is whole between any two statements that change it.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, dropping the oldest if the history is full.
    pub fn post(&self, kind: &'static str, ctx: impl Into<String>) {
        let mut history = self.lock();
        if history.events.len() == HISTORY {
            history.events.pop_front();
        }
        let id = history.next_id;
        history.next_id += 1;
        history.events.push_back(Event { kind, ctx: ctx.into(), id });
    }

    /// Events from `first_id` on, `max` of them at most.
    pub fn since(&self, first_id: u64, max: usize) -> Vec<Event> {
        self.lock().events.iter().filter(|event| event.id >= first_id).take(max).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_and_can_be_read_from_any_of_them() {
        let events = Events::default();
        for name in ["a", "b", "c"] {
            events.post("bdev_register", name);
        }
        let found: Vec<(u64, String)> =
            events.since(1, 10).into_iter().map(|event| (event.id, event.ctx)).collect();
        assert_eq!(found, [(1, "b".to_string()), (2, "c".to_string())]);
        assert_eq!(events.since(0, 1).len(), 1);
        assert!(events.since(3, 10).is_empty());
    }

    #[test]
    fn the_history_keeps_the_newest_events_only() {
        let events = Events::default();
        for number in 0..HISTORY + 5 {
            events.post("bdev_register", number.to_string());
        }
        let kept = events.since(0, usize::MAX);
        assert_eq!(kept.len(), HISTORY);
        assert_eq!(kept[0].id, 5);
    }
}
