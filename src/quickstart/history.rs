//! What was written when, and whether an image of the volume can be the volume at one point in time.
//!
//! The clock is the load's own: it moves at every submission and every acknowledgement, so that "before" is exact.
//! A block has at most one write in flight, so its versions have one order.

use super::stamp::Version;

/// The load's logical time.
pub type Instant = u64;

#[derive(Debug, Clone, Copy)]
struct Write {
    /// Also the instant of its submission.
    version: Version,
    /// `Instant::MAX` while it is in flight, or if it never was acknowledged.
    acked: Instant,
}

/// Every write of a run, by block.
pub struct History {
    blocks: Vec<Vec<Write>>,
    clock: Instant,
}

/// An image: the version of every block.
pub type Image = Vec<Version>;

impl History {
    pub fn new(blocks: usize) -> History {
        History { blocks: vec![Vec::new(); blocks], clock: 0 }
    }

    /// Now.
    pub fn now(&self) -> Instant {
        self.clock
    }

    /// A write begins; gives its version.
    pub fn submit(&mut self, block: usize) -> Version {
        self.clock += 1;
        self.blocks[block].push(Write { version: self.clock, acked: Instant::MAX });
        self.clock
    }

    /// The last write of `block` was acknowledged.
    pub fn ack(&mut self, block: usize) {
        self.clock += 1;
        if let Some(write) = self.blocks[block].last_mut() {
            write.acked = self.clock;
        }
    }

    /// How many writes were acknowledged.
    pub fn acked(&self) -> usize {
        self.blocks.iter().flatten().filter(|w| w.acked != Instant::MAX).count()
    }

    /// Whether `image` is the volume at one point in time between `from` and `to`: it has every write acknowledged
    /// by `from`, none submitted after `to`, and with each write everything that was acknowledged before that write
    /// was submitted.
    pub fn check(&self, image: &Image, from: Instant, to: Instant) -> Result<(), String> {
        let newest = image.iter().copied().max().unwrap_or(0);
        if newest > to {
            return Err(format!("holds write {newest}, which began after the cut (at {to})"));
        }
        for (block, (&version, writes)) in image.iter().zip(&self.blocks).enumerate() {
            if version != 0 && !writes.iter().any(|w| w.version == version) {
                return Err(format!("block {block} holds write {version}, which was never made there"));
            }
            for missed in writes.iter().filter(|w| w.version > version) {
                if missed.acked <= from {
                    return Err(format!(
                        "block {block} holds write {version}, but {} was acknowledged before the cut",
                        missed.version
                    ));
                }
                if missed.acked < newest {
                    return Err(format!(
                        "not one point in time: block {block} lacks write {}, acknowledged before write {newest} began",
                        missed.version
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_judged_by_what_was_acknowledged_and_begun() {
        let mut h = History::new(2);
        let a = h.submit(0); // 1
        h.ack(0); // 2
        let cut = h.now();
        let b = h.submit(1); // 3
        assert_eq!(h.check(&vec![a, 0], cut, h.now()), Ok(()));
        assert_eq!(h.check(&vec![a, b], cut, h.now()), Ok(()));
        assert!(h.check(&vec![0, 0], cut, h.now()).unwrap_err().contains("acknowledged before the cut"));
        assert!(h.check(&vec![a, b], cut, cut).unwrap_err().contains("after the cut"));
        assert!(h.check(&vec![7, 0], 0, 9).unwrap_err().contains("never made"));
    }

    #[test]
    fn a_mixture_of_two_points_in_time_is_found() {
        let mut h = History::new(2);
        h.submit(0);
        h.ack(0);
        let later = h.submit(1);
        assert!(h.check(&vec![0, later], 0, h.now()).unwrap_err().contains("not one point in time"));
    }
}
