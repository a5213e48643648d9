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

use super::super::Lineage;
use std::cmp::Ordering;

/// Older names that a node remembers: as many times a pair can be parted, without a peer that was away all the while being
/// taken for another one.
pub const HISTORY: usize = 8;

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
    pub fn is_new(&self) -> bool {
        self.current == NONE
    }

    fn retire(&mut self, name: Lineage) {
        if name != NONE && !self.history.contains(&name) {
            self.history.copy_within(..HISTORY - 1, 1);
            self.history[0] = name;
        }
    }

    /// Both disks are equal, on the caller's word: both nodes take on the same fresh name.
    pub fn pair(&mut self, fresh: Lineage) {
        let (current, base) = (self.current, self.base);
        self.retire(base);
        self.retire(current);
        (self.current, self.base) = (fresh, NONE);
    }

    /// Everything is marked, and about to be copied to a peer with whatever content: `fresh` are two names.
    pub fn begin_full_source(&mut self, fresh: [Lineage; 2]) {
        self.retire(self.base);
        self.base = fresh[0];
        if self.is_new() {
            self.current = fresh[1];
        }
    }

    /// The source copies to this node what its marks say, which are relative to `base`, and cover what was marked here. The
    /// record calls the content inconsistent until [`Identity::end_target`].
    pub fn begin_target(&mut self, base: Lineage) {
        (self.current, self.base) = (base, NONE);
    }

    /// Everything of the source is here, durably.
    pub fn end_target(&mut self, source: &Identity) {
        *self = Identity { base: NONE, ..*source };
        self.retire(source.base);
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
        let needed = !self.is_new() && (self.base == NONE || offered);
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

    /// What is here is not known any more by any name, although the names it came from are.
    pub fn disown(&mut self) {
        let current = self.current;
        self.retire(current);
        self.current = NONE;
    }

    /// What the peer has is not known any more: its next sync is a full one.
    pub fn forget_peer(&mut self, fresh: Lineage) {
        if !self.is_new() {
            let (current, base) = (self.current, self.base);
            self.retire(base);
            self.retire(current);
            (self.current, self.base) = (fresh, NONE);
        }
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

/// How the loser of a split brain gets what the winner has, once an operator has named it: by the marks of both if they are
/// relative to the same content.
pub fn resolve(winner: &Identity, loser: &Identity) -> Resolution {
    let (mine, theirs) = (winner.marks_hold_for(), loser.marks_hold_for());
    if mine != NONE && mine == theirs { Resolution::Marked } else { Resolution::Everything }
}

/// What is copied to the loser of a split brain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Marked,
    Everything,
}
