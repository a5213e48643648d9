//! What an operator hears of an online verify: where it is, and what it found.

use std::cell::RefCell;
use std::time::Duration;

use serde::Serialize;

use super::home::{Home, Machine};
use crate::env::clock;
use crate::replication::core::{Range, VerifyState};

/// Ranges that a report lists; what more differs is counted.
const RANGES_MAX: usize = 64;
/// Differences of which each has an event; the last event counts them all.
const EVENTS_MAX: u32 = 16;

/// A part of a volume in which the nodes' disks differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DifferenceInfo {
    pub volume: String,
    pub offset: u64,
    pub bytes: u64,
}

/// The verify that runs, or else the last one.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyInfo {
    pub state: &'static str,
    pub repair: bool,
    pub checked_bytes: u64,
    pub total_bytes: u64,
    /// On average.
    pub bytes_per_second: u64,
    /// While it compares, at the present average.
    pub seconds_left: Option<u64>,
    pub differing_bytes: u64,
    /// The first ones.
    pub differences: Vec<DifferenceInfo>,
    /// Whether that is all of them.
    pub differences_complete: bool,
    pub error: Option<String>,
}

/// Of a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    volume: u16,
    from: u64,
    to: u64,
}

/// What was found, in the order of the volumes, neighbours as one.
#[derive(Default)]
struct Findings {
    ranges: Vec<Found>,
    bytes: u64,
    left_out: bool,
}

impl Findings {
    fn add(&mut self, new: Found) {
        self.bytes += new.to - new.from;
        let at = self.ranges.partition_point(|known| (known.volume, known.from) < (new.volume, new.from));
        let touches =
            |known: &Found| known.volume == new.volume && known.to >= new.from && new.to >= known.from;
        let before = at.checked_sub(1).filter(|&before| touches(&self.ranges[before]));
        let after = (at < self.ranges.len() && touches(&self.ranges[at])).then_some(at);
        match (before, after) {
            (Some(before), Some(after)) => {
                self.ranges[before].to = self.ranges[after].to.max(new.to);
                self.ranges.remove(after);
            }
            (Some(before), None) => self.ranges[before].to = self.ranges[before].to.max(new.to),
            (None, Some(after)) => {
                let known = &mut self.ranges[after];
                (known.from, known.to) = (known.from.min(new.from), known.to.max(new.to));
            }
            (None, None) if self.ranges.len() < RANGES_MAX => self.ranges.insert(at, new),
            (None, None) => self.left_out = true,
        }
    }
}

#[derive(Default)]
struct Progress {
    round: u32,
    began_ns: u64,
    ended_ns: Option<u64>,
    findings: Findings,
    events: u32,
}

/// The report of a group's last verify, a part of its home.
#[derive(Default)]
pub(super) struct VerifyReport(RefCell<Progress>);

impl Home {
    fn verify_machine(&self) -> Option<(VerifyState, bool, u32)> {
        match &*self.machine.borrow() {
            Machine::Primary(group) => {
                Some((group.verify_state(), group.verify_repairs(), group.verify_round()))
            }
            Machine::Secondary(_) => None,
        }
    }

    /// A machine found a difference.
    pub(super) fn difference(&self, volume: u16, round: u32, range: Range) {
        let Some(bdev) = self.fixed.bdevs.get(usize::from(volume)) else { return };
        let block = u64::from(bdev.block_size());
        let found = Found { volume, from: range.lba * block, to: range.end() * block };
        let mut progress = self.verify.0.borrow_mut();
        if progress.round != round {
            return;
        }
        progress.findings.add(found);
        progress.events += 1;
        if progress.events <= EVENTS_MAX {
            let (name, bytes) = (bdev.name(), found.to - found.from);
            let text = format!("`{name}` differs from the peer's disk: {bytes} bytes from {}", found.from);
            tracing::warn!("group `{}`: {text}", self.fixed.name);
            self.fixed.tell("replication_verify_difference", text);
        }
    }

    pub(super) fn verify_started(&self) {
        let Some((_, repair, round)) = self.verify_machine() else { return };
        let progress = Progress { round, began_ns: clock::now(), ..Progress::default() };
        self.verify.0.replace(progress);
        let how = if repair { "compared, and made equal" } else { "compared" };
        self.fixed.tell("replication_verify_started", format!("the volumes are being {how}"));
    }

    pub(super) fn verify_ended(&self, how: VerifyState) {
        let bytes = {
            let mut progress = self.verify.0.borrow_mut();
            progress.ended_ns = Some(clock::now());
            progress.findings.bytes
        };
        let repaired = self.verify_machine().is_some_and(|(_, repair, _)| repair) && bytes > 0;
        let (kind, text) = match how {
            VerifyState::Finished if repaired => {
                ("replication_verify_finished", format!("{bytes} bytes differed and were copied to the peer"))
            }
            VerifyState::Finished if bytes > 0 => ("replication_verify_finished", differ(bytes)),
            VerifyState::Finished => {
                ("replication_verify_finished", "the nodes have the same content".to_string())
            }
            VerifyState::Failed(fault) => {
                ("replication_verify_failed", format!("{fault}; {bytes} bytes were found to differ"))
            }
            _ => ("replication_verify_stopped", format!("stopped; {bytes} bytes were found to differ")),
        };
        tracing::info!("group `{}`: verify: {text}", self.fixed.name);
        self.fixed.tell(kind, text);
    }

    /// What is known, but for the bytes that the reactors have compared, and how long that has taken.
    pub(super) fn verify_info(&self) -> Option<(VerifyInfo, Duration)> {
        let (state, repair, _) = self.verify_machine()?;
        if state == VerifyState::Never {
            return None;
        }
        let progress = self.verify.0.borrow();
        let name = |volume: u16| self.fixed.bdevs.get(usize::from(volume)).map_or("", |bdev| bdev.name());
        let shown = |found: &Found| DifferenceInfo {
            volume: name(found.volume).to_string(),
            offset: found.from,
            bytes: found.to - found.from,
        };
        let ended = progress.ended_ns.unwrap_or_else(clock::now);
        let info = VerifyInfo {
            state: state_name(state),
            repair,
            checked_bytes: 0,
            total_bytes: 0,
            bytes_per_second: 0,
            seconds_left: None,
            differing_bytes: progress.findings.bytes,
            differences: progress.findings.ranges.iter().map(shown).collect(),
            differences_complete: !progress.findings.left_out,
            error: match state {
                VerifyState::Failed(fault) => Some(fault.to_string()),
                _ => None,
            },
        };
        Some((info, Duration::from_nanos(ended.saturating_sub(progress.began_ns))))
    }
}

fn state_name(state: VerifyState) -> &'static str {
    match state {
        VerifyState::Never => "never",
        VerifyState::Running => "running",
        VerifyState::Repairing => "repairing",
        VerifyState::Finished => "finished",
        VerifyState::Stopped => "stopped",
        VerifyState::Failed(_) => "failed",
    }
}

fn differ(bytes: u64) -> String {
    format!(
        "the nodes differ in {bytes} bytes: see `verify` in replication_get_groups; replication_verify_start with \
         `repair` copies them from the primary"
    )
}

impl VerifyInfo {
    /// Adds what the reactors have compared since the verify began, so long ago.
    pub(super) fn with_progress(
        mut self,
        took: Duration,
        checked_bytes: u64,
        total_bytes: u64,
    ) -> VerifyInfo {
        let bytes_per_second = (checked_bytes as f64 / took.as_secs_f64().max(1e-3)) as u64;
        let left = total_bytes.saturating_sub(checked_bytes);
        (self.checked_bytes, self.total_bytes) = (checked_bytes, total_bytes);
        self.bytes_per_second = bytes_per_second;
        self.seconds_left =
            (self.state == "running" && bytes_per_second > 0).then(|| left.div_ceil(bytes_per_second));
        self
    }

    /// What is wrong by the last verify, if anything.
    pub(super) fn complaint(&self) -> Option<String> {
        let repaired = self.repair && self.state == "finished";
        (self.differing_bytes > 0 && !repaired).then(|| differ(self.differing_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(volume: u16, from: u64, to: u64) -> Found {
        Found { volume, from, to }
    }

    #[test]
    fn neighbours_become_one_in_any_order_and_the_rest_is_counted() {
        let mut findings = Findings::default();
        for (volume, from) in [(1, 8), (0, 4), (0, 12), (0, 8), (1, 0), (0, 0)] {
            findings.add(found(volume, from, from + 4));
        }
        assert_eq!(findings.ranges, [found(0, 0, 16), found(1, 0, 4), found(1, 8, 12)]);
        assert_eq!((findings.bytes, findings.left_out), (24, false));
        for at in 0..100 {
            findings.add(found(2, at * 8, at * 8 + 4));
        }
        assert_eq!((findings.ranges.len(), findings.bytes, findings.left_out), (RANGES_MAX, 424, true));
        findings.add(found(2, 4, 8));
        assert_eq!(findings.ranges.len(), RANGES_MAX - 1, "what joins two makes room");
    }

    #[test]
    fn progress_has_a_rate_and_an_end_in_sight_while_it_runs() {
        let info = |state| VerifyInfo {
            state,
            repair: false,
            checked_bytes: 0,
            total_bytes: 0,
            bytes_per_second: 0,
            seconds_left: None,
            differing_bytes: 4096,
            differences: Vec::new(),
            differences_complete: true,
            error: None,
        };
        let running = info("running").with_progress(Duration::from_secs(4), 400, 1000);
        assert_eq!((running.bytes_per_second, running.seconds_left), (100, Some(6)));
        let first = info("running").with_progress(Duration::ZERO, 0, 1000);
        assert_eq!((first.bytes_per_second, first.seconds_left), (0, None));
        let ended = info("finished").with_progress(Duration::from_secs(4), 1000, 1000);
        assert_eq!(ended.seconds_left, None);
        assert!(ended.complaint().is_some_and(|text| text.contains("4096 bytes")));
        assert_eq!(VerifyInfo { repair: true, ..ended }.complaint(), None);
    }
}
