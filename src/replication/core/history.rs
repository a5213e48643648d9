//! Which earlier checkpoints a secondary can still show, and what it gives up first.
//!
//! Invariants. The epochs are committed ones, rising; what leads back from one to the one before is kept as a whole or not
//! at all, so only the oldest is ever given up. The last committed epoch is among them and costs nothing: its originals
//! are those of the open epoch. An epoch that is exported is given up by the limit of bytes only, never by the count.

use super::super::Epoch;
use std::collections::{BTreeMap, VecDeque};

/// A checkpoint that can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptEpoch {
    pub epoch: Epoch,
    /// What leads back to it from the next one; giving it up frees so much.
    pub bytes: u64,
    /// Users that it is exported to.
    pub exports: u32,
}

#[derive(Debug, Default)]
pub(super) struct History {
    /// Epochs before the last one; 0: no history.
    epochs: u32,
    limit_bytes: u64,
    kept: VecDeque<(Epoch, u64)>,
    exports: BTreeMap<Epoch, u32>,
    /// What the commit that is being carried out moves here.
    moving: u64,
}

impl History {
    pub fn is_on(&self) -> bool {
        self.epochs > 0
    }

    /// The layers through this epoch are of no use; `None`: there is no history at all.
    pub fn from(&self, committed: Epoch) -> Option<Epoch> {
        self.is_on().then(|| self.kept.front().map_or(committed, |oldest| oldest.0))
    }

    /// `committed` is the last checkpoint, if it can be shown. What is over the limits is given up.
    pub fn set_limits(&mut self, epochs: u32, limit_bytes: u64, committed: Option<Epoch>) -> Option<Epoch> {
        (self.epochs, self.limit_bytes) = (epochs, limit_bytes);
        match committed {
            _ if epochs == 0 => self.kept.clear(),
            Some(epoch) if self.kept.is_empty() => self.kept.push_back((epoch, 0)),
            _ => {}
        }
        self.trim()
    }

    /// A reactor keeps so much more for the commit that is being carried out.
    pub fn moved(&mut self, bytes: u64) {
        self.moving += bytes;
    }

    /// Every reactor has carried out the commit. The newest exported epoch that was given up for it, if any.
    pub fn committed(&mut self, epoch: Epoch) -> Option<Epoch> {
        let moved = std::mem::take(&mut self.moving);
        if !self.is_on() {
            return None;
        }
        // What was committed while there was no history leads nowhere.
        if let Some((_, bytes)) = self.kept.back_mut() {
            *bytes += moved;
        }
        self.kept.push_back((epoch, 0));
        self.trim()
    }

    /// After a failover what the disks are ahead of the last checkpoint leads back to it.
    pub fn settle(&mut self) -> Option<Epoch> {
        let moved = std::mem::take(&mut self.moving);
        if let Some((_, bytes)) = self.kept.back_mut() {
            *bytes += moved;
        }
        self.trim()
    }

    fn trim(&mut self) -> Option<Epoch> {
        let over = |kept: &VecDeque<(Epoch, u64)>, epochs: u32| kept.len() > epochs as usize + 1;
        let mut lost = None;
        while self.kept.len() > 1 && self.bytes() > self.limit_bytes {
            lost = self.give_up_oldest().or(lost);
        }
        while over(&self.kept, self.epochs) && !self.is_oldest_exported() {
            self.kept.pop_front();
        }
        lost
    }

    fn is_oldest_exported(&self) -> bool {
        self.kept.front().is_some_and(|(oldest, _)| self.exports.contains_key(oldest))
    }

    /// Gives up the oldest epoch to make room; which it was if it is exported.
    pub fn give_up_oldest(&mut self) -> Option<Epoch> {
        let exported = self.is_oldest_exported();
        let (oldest, _) = self.kept.pop_front()?;
        exported.then_some(oldest)
    }

    /// Nothing leads back beyond this epoch. Whether that changes anything, and the newest exported epoch among it.
    pub fn lose_before(&mut self, epoch: Epoch) -> (bool, Option<Epoch>) {
        let (mut changed, mut lost) = (false, None);
        while self.kept.front().is_some_and(|(oldest, _)| *oldest < epoch) {
            changed = true;
            lost = self.give_up_oldest().or(lost);
        }
        (changed, lost)
    }

    /// This epoch is the last one again.
    pub fn roll_back_to(&mut self, epoch: Epoch) {
        while self.kept.back().is_some_and(|(newest, _)| *newest > epoch) {
            self.kept.pop_back();
        }
        if let Some((_, bytes)) = self.kept.back_mut() {
            *bytes = 0;
        }
    }

    pub fn contains(&self, epoch: Epoch) -> bool {
        self.kept.iter().any(|(kept, _)| *kept == epoch)
    }

    pub fn bytes(&self) -> u64 {
        self.kept.iter().map(|(_, bytes)| bytes).sum()
    }

    pub fn export(&mut self, epoch: Epoch) -> bool {
        let known = self.contains(epoch);
        if known {
            *self.exports.entry(epoch).or_default() += 1;
        }
        known
    }

    /// One user less. What only it held is given up now.
    pub fn end_export(&mut self, epoch: Epoch) {
        if let Some(count) = self.exports.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                self.exports.remove(&epoch);
            }
        }
        self.trim();
    }

    /// Oldest first.
    pub fn list(&self) -> Vec<KeptEpoch> {
        let exports = |epoch| self.exports.get(&epoch).copied().unwrap_or(0);
        self.kept.iter().map(|&(epoch, bytes)| KeptEpoch { epoch, bytes, exports: exports(epoch) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(history: &History) -> Vec<(u64, u64)> {
        history.list().iter().map(|kept| (kept.epoch.0, kept.bytes)).collect()
    }

    fn commit(history: &mut History, epoch: u64, bytes: u64) -> Option<Epoch> {
        history.moved(bytes / 2);
        history.moved(bytes - bytes / 2);
        history.committed(Epoch(epoch))
    }

    #[test]
    fn the_last_checkpoint_and_as_many_before_it_as_the_limits_allow_are_kept() {
        let mut history = History::default();
        assert_eq!((commit(&mut history, 1, 100), history.list().len()), (None, 0), "off");
        assert_eq!(history.from(Epoch(1)), None);
        history.set_limits(3, 1000, Some(Epoch(1)));
        for (epoch, bytes) in [(2, 10), (4, 20), (5, 30), (6, 40)] {
            assert_eq!(commit(&mut history, epoch, bytes), None);
        }
        assert_eq!(epochs(&history), [(2, 20), (4, 30), (5, 40), (6, 0)], "the oldest went by the count");
        assert_eq!(history.from(Epoch(6)), Some(Epoch(2)));
        commit(&mut history, 7, 950);
        assert_eq!(epochs(&history), [(5, 40), (6, 950), (7, 0)], "and by the bytes");
        commit(&mut history, 8, 2000);
        assert_eq!(epochs(&history), [(8, 0)], "an epoch that is larger than the limit is not kept");
        history.set_limits(0, 1000, Some(Epoch(8)));
        assert_eq!((epochs(&history), history.from(Epoch(8))), (vec![], None));
    }

    #[test]
    fn an_exported_epoch_stays_beyond_the_count_and_goes_by_the_bytes() {
        let mut history = History::default();
        history.set_limits(1, 1000, Some(Epoch(1)));
        assert!(history.export(Epoch(1)) && !history.export(Epoch(2)));
        for epoch in 2..=9 {
            assert_eq!(commit(&mut history, epoch, 100), None);
        }
        assert_eq!(history.list().len(), 9);
        assert_eq!(commit(&mut history, 10, 300), Some(Epoch(1)), "the one that is told of");
        assert_eq!(epochs(&history), [(9, 300), (10, 0)], "no export holds the others");
        assert!(history.export(Epoch(9)));
        commit(&mut history, 11, 1);
        assert_eq!(history.list().len(), 3);
        history.end_export(Epoch(9));
        assert_eq!(epochs(&history), [(10, 1), (11, 0)]);
    }

    #[test]
    fn a_roll_back_and_a_loss_cut_at_their_ends() {
        let mut history = History::default();
        history.set_limits(8, 1000, Some(Epoch(1)));
        (2..=6).for_each(|epoch| {
            commit(&mut history, epoch, 10);
        });
        history.roll_back_to(Epoch(4));
        assert_eq!(epochs(&history), [(1, 10), (2, 10), (3, 10), (4, 0)]);
        assert_eq!(history.lose_before(Epoch(3)), (true, None));
        assert_eq!(epochs(&history), [(3, 10), (4, 0)]);
        assert_eq!(history.lose_before(Epoch(3)), (false, None));
        assert_eq!(history.lose_before(Epoch(u64::MAX)), (true, None));
        assert_eq!(history.from(Epoch(4)), Some(Epoch(4)));
    }
}
