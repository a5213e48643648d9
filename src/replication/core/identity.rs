//! Generation identities: which of two disks has what the other lacks, and whether both have gone on without each other.
//!
//! Each node keeps an [`Identity`] in its record: the name of what its disk holds, the name of what the peer's disk was equal
//! to when this node went on without it, and older names. Names are random and never used twice; [`decide`] compares those of
//! two nodes, and both come to the same verdict.
//!
//! Invariants. A node that acknowledges a write which the peer cannot have, or that takes over, has a name before that
//! which the peer has not ([`Identity::write_alone`], [`Identity::promote`]). While `base` names the peer's content, this node's marks hold for it: they
//! cover every block that differs. A target takes on its source's name only when everything is copied and durable, and
//! only after that its source forgets its `base`; so whichever of the two is cut off, the marks go on holding.

use super::super::{Lineage, NAMES_KEPT, Past};
use std::cmp::Ordering;

pub(super) const HISTORY: usize = NAMES_KEPT;

/// What a disk holds, by its name and those that led to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Names the content. 0: nothing that was ever in step with a peer, or nothing that is known any more.
    pub current: Lineage,
    /// Names the content that this node's marks are relative to: the peer's, when this node went on without it or began to
    /// copy to it. 0: the peer had `current`.
    pub base: Lineage,
    /// Older names, the newest first; 0 fills it up.
    pub history: [Lineage; HISTORY],
}

/// No name.
const NONE: Lineage = Lineage(0);

impl Identity {
    pub fn new(current: Lineage, past: Past) -> Identity {
        Identity { current, base: past.base, history: past.history }
    }

    pub fn past(&self) -> Past {
        Past { base: self.base, history: self.history }
    }

    pub fn is_new(&self) -> bool {
        self.current == NONE
    }

    fn retire(&mut self, name: Lineage) {
        if name != NONE && !self.history.contains(&name) {
            self.history.copy_within(..HISTORY - 1, 1);
            self.history[0] = name;
        }
    }

    /// A session begins for which the caller says that the disks are equal, or that everything is copied, and everything is
    /// marked: both nodes take on the same fresh name, the target first. A target to which everything is copied does so by
    /// [`Identity::begin_copy`], and is inconsistent: its name says only what its source's marks are relative to.
    pub fn pair(&mut self, fresh: Lineage) {
        self.end_target(fresh);
    }

    /// Everything is about to be copied here: what this node had is nothing any more, under whatever name.
    pub fn begin_copy(&mut self, fresh: Lineage) {
        *self = Identity { current: fresh, ..Identity::default() };
    }

    /// Everything of the source, which has this name, is here, durably.
    pub fn end_target(&mut self, name: Lineage) {
        let (current, base) = (self.current, self.base);
        self.retire(base);
        if current != name {
            self.retire(current);
        }
        (self.current, self.base) = (name, NONE);
    }

    /// The target has recorded that it has everything.
    pub fn end_source(&mut self) {
        self.retire(self.base);
        self.base = NONE;
    }

    /// Before the first write is acknowledged without the peer: a name that the peer has not. `offered`: the peer may have
    /// taken on `current` although `base` still stands, because it was told to and nobody heard whether it did; a node that
    /// has just begun does not know. False, and nothing changes: the peer cannot have `current`.
    pub fn write_alone(&mut self, offered: bool, fresh: Lineage) -> bool {
        let never_in_step = self.is_new() && self.history[0] == NONE;
        let needed = !never_in_step && (self.base == NONE || offered);
        if needed {
            self.part(fresh);
        }
        needed
    }

    /// This node takes over from the peer that has the content of this name.
    pub fn promote(&mut self, fresh: Lineage) {
        self.part(fresh);
    }

    fn part(&mut self, fresh: Lineage) {
        if self.base == NONE {
            self.base = self.current;
        } else {
            self.retire(self.current);
        }
        self.current = fresh;
    }

    /// The marks, which hold for `base`, hold as well for the name that the peer was offered after it: it has taken that on.
    pub fn rebase(&mut self, name: Lineage) {
        let base = self.base;
        self.retire(base);
        self.base = name;
    }

    /// What is here is not known any more by any name, although the names it came from are.
    pub fn disown(&mut self) {
        let current = self.current;
        self.retire(current);
        self.current = NONE;
    }

    /// What the peer lacks is not known any more, because the marks are gone: its next sync is a full one, whatever name it
    /// has. What is here is known as before.
    pub fn lose_marks(&mut self, fresh: Lineage) {
        if !self.is_new() {
            self.end_target(fresh);
        }
    }

    /// An operator gives up what this node did without its peer. What it had when they parted, and its marks since, is what it
    /// offers from now on; its record calls it inconsistent.
    pub fn give_up(&mut self) {
        let (current, base) = (self.current, self.base);
        (self.current, self.base) = (base, NONE);
        self.retire(current);
    }

    /// The name that the peer's content has if this node's marks hold for it.
    pub fn marks_hold_for(&self) -> Lineage {
        if self.base == NONE { self.current } else { self.base }
    }

    fn knew(&self, name: Lineage) -> bool {
        name != NONE && self.history.contains(&name)
    }

    fn shares_a_past_with(&self, other: &Identity) -> bool {
        let past = |of: &Identity| [of.base].into_iter().chain(of.history).filter(|&name| name != NONE);
        past(self).any(|name| name == other.base || other.knew(name))
    }
}

/// What decides about a node in a handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Standpoint {
    pub identity: Identity,
    /// False: a sync into it has not ended, or what a failover promised is not on its disk.
    pub consistent: bool,
    /// It serves the hosts, or is about to.
    pub primary: bool,
    /// It was the primary when it ended, and has not been in step with a peer since.
    pub crashed: bool,
}

/// Which of the two, as seen by the node that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    Me,
    Peer,
}

impl Who {
    pub fn other(self) -> Who {
        match self {
            Who::Me => Who::Peer,
            Who::Peer => Who::Me,
        }
    }
}

/// How the pair gets in step, or why it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Neither was ever in step with anybody: the caller says how they begin.
    BothNew,
    /// They have the same name, and nothing else tells them apart.
    InStep,
    /// The target gets what either has marked.
    Marked { source: Who },
    /// The target gets everything.
    Everything { source: Who },
    /// Both went on without each other.
    SplitBrain,
    /// They have never been a pair, as far as both remember.
    Unrelated,
    /// By their names it would have to be the source, and its content is inconsistent.
    Inconsistent(Who),
    /// They have the same name, and neither has a consistent content.
    NeitherConsistent,
}

impl Decision {
    /// As the peer sees it.
    pub fn mirrored(self) -> Decision {
        match self {
            Decision::Marked { source } => Decision::Marked { source: source.other() },
            Decision::Everything { source } => Decision::Everything { source: source.other() },
            Decision::Inconsistent(who) => Decision::Inconsistent(who.other()),
            same @ (Decision::BothNew
            | Decision::InStep
            | Decision::SplitBrain
            | Decision::Unrelated
            | Decision::NeitherConsistent) => same,
        }
    }
}

/// The table, from its first line to its last. Both nodes decide, each about the other, and come to the same.
pub fn decide(me: &Standpoint, peer: &Standpoint) -> Decision {
    let verdict = by_names(me, peer);
    let source = match verdict {
        Decision::Marked { source } | Decision::Everything { source } => source,
        _ => return verdict,
    };
    let consistent = if source == Who::Me { me.consistent } else { peer.consistent };
    if consistent { verdict } else { Decision::Inconsistent(source) }
}

fn by_names(me: &Standpoint, peer: &Standpoint) -> Decision {
    let (mine, theirs) = (&me.identity, &peer.identity);
    match (mine.is_new(), theirs.is_new()) {
        (true, true) => return Decision::BothNew,
        (true, false) => return Decision::Everything { source: Who::Peer },
        (false, true) => return Decision::Everything { source: Who::Me },
        (false, false) => {}
    }
    if mine.current == theirs.current {
        return of_one_name(me, peer);
    }
    match (mine.current == theirs.base, mine.base == theirs.current) {
        (true, false) => return Decision::Marked { source: Who::Peer },
        (false, true) => return Decision::Marked { source: Who::Me },
        (true, true) => return Decision::SplitBrain,
        (false, false) => {}
    }
    match (theirs.knew(mine.current), mine.knew(theirs.current)) {
        (true, false) => return Decision::Everything { source: Who::Peer },
        (false, true) => return Decision::Everything { source: Who::Me },
        (true, true) => return Decision::SplitBrain,
        (false, false) => {}
    }
    if mine.shares_a_past_with(theirs) { Decision::SplitBrain } else { Decision::Unrelated }
}

/// Of two with the same name: the one whose content may be ahead by writes that were under way. A sync into a node keeps the
/// name, so one that is inconsistent is the target; else the one that serves; else the one that served to its end.
fn of_one_name(me: &Standpoint, peer: &Standpoint) -> Decision {
    let rank = |of: &Standpoint| (of.consistent, of.primary, of.crashed);
    match rank(me).cmp(&rank(peer)) {
        Ordering::Greater => Decision::Marked { source: Who::Me },
        Ordering::Less => Decision::Marked { source: Who::Peer },
        Ordering::Equal if me.consistent => Decision::InStep,
        Ordering::Equal => Decision::NeitherConsistent,
    }
}

/// Makes names that nobody has used: numbers that look random, from a seed that is.
#[derive(Clone, Copy, Debug)]
pub struct Names(u64);

impl Names {
    pub fn new(seed: u64) -> Names {
        Names(seed)
    }

    /// SplitMix64, without the one number that is no name.
    pub fn fresh(&mut self) -> Lineage {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Lineage((z ^ (z >> 31)).max(1))
    }
}
