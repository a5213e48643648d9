//! What is wrong with a group, for `replication_get_error`: a text for each kind of fault, until that kind has healed.
//!
//! Invariants. A fault of one kind hides none of another. What a disk or a record failed stands before what came of it,
//! a lost link: that is where an operator has to look.

/// The kinds, the one to be looked at first in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A disk of this node, or the peer's, failed something. Until the volumes are in step, or what was held is on the
    /// disk.
    Disk,
    /// The group's record could not be written. Until one was.
    Record,
    /// Originals were given up, or the secondary could not commit. Until a checkpoint commits.
    Checkpoint,
}

const KINDS: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Faults([Option<String>; KINDS]);

impl Faults {
    /// What an operator is told, with what else is wrong, most of all with the link.
    pub fn with(&self, other: Option<String>) -> Option<String> {
        joined(self.0.iter().cloned().chain([other]))
    }

    /// False if that is known already: it is not told again.
    pub fn set(&mut self, kind: Fault, text: &str) -> bool {
        let place = &mut self.0[kind as usize];
        let news = place.as_deref() != Some(text);
        *place = Some(text.to_string());
        news
    }

    pub fn clear(&mut self, kind: Fault) {
        self.0[kind as usize] = None;
    }

    /// The volumes are in step, or this node serves them alone: nothing of before counts.
    pub fn clear_all(&mut self) {
        *self = Faults::default();
    }
}

/// All that is wrong, in one text.
pub(super) fn joined(texts: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let all: Vec<String> = texts.into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_stands_before_what_came_of_it_and_each_heals_by_itself() {
        let mut faults = Faults::default();
        let link = || Some("the link is lost".to_string());
        assert_eq!((faults.with(None), faults.with(link())), (None, link()));
        assert!(faults.set(Fault::Record, "no record"));
        assert!(faults.set(Fault::Disk, "the disk failed"));
        assert!(!faults.set(Fault::Disk, "the disk failed"), "it is told once");
        assert_eq!(faults.with(link()).as_deref(), Some("the disk failed; no record; the link is lost"));
        faults.clear(Fault::Disk);
        assert_eq!(faults.with(None).as_deref(), Some("no record"));
        assert!(faults.set(Fault::Disk, "the disk failed"), "it failed again");
        faults.clear_all();
        assert_eq!(faults.with(None), None);
    }
}
