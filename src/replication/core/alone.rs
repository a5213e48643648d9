//! The primary's names: what a session may do with the peer by them, and that nothing is acknowledged without the peer under
//! a name that the peer may have.
//!
//! Invariant. Machines hold back what they would acknowledge alone until the record on the disk has a name for it.

use super::super::Lineage;
use super::group::*;
use super::group_primary::{Out, PrimaryGroup, PrimaryState};
use super::identity::{Decision, Who, decide};

/// How long after a failure the record is written again.
const RECORD_RETRY_MS: u32 = 500;

impl PrimaryGroup {
    /// Whether the session that was asked for may be, by what both nodes are. `whole`: the peer's volumes are as large.
    pub(super) fn judge(&self, peer: &Greeting, whole: bool, sync: SyncMode) -> Result<(), GroupError> {
        let me = self.record().standpoint(true);
        let decision = decide(&me, &peer.standpoint());
        let ahead = matches!(
            decision,
            Decision::Marked { source: Who::Peer } | Decision::Everything { source: Who::Peer }
        );
        match (sync, decision) {
            (_, Decision::SplitBrain) => Err(GroupError::SplitBrain),
            (SyncMode::Changed, Decision::Marked { source: Who::Me }) if whole => Ok(()),
            (SyncMode::Changed, Decision::Everything { source: Who::Me }) if whole && self.took_on(peer) => {
                Ok(())
            }
            (SyncMode::Changed, _) => Err(GroupError::UnknownPeer),
            // Who has no disk decides by other rules.
            (SyncMode::Resumed, _) => Err(GroupError::Stranded),
            // A node that is new to its peer copies over it because an operator says so, and for no other reason.
            _ if ahead && !me.identity.is_new() => Err(GroupError::PeerIsAhead),
            (SyncMode::None, _) if !whole => Err(GroupError::SmallerPeer),
            (SyncMode::Full | SyncMode::None, _) => Ok(()),
        }
    }

    /// Whether the peer has the name that it was offered, and of which nobody heard.
    fn took_on(&self, peer: &Greeting) -> bool {
        peer.consistent && peer.lineage.is_shared_with(self.in_doubt)
    }

    /// The session began with a peer of this name, which tells whether it took on the one that it was offered. Not before: a
    /// record that was being written in the handshake says something else afterwards.
    pub(super) fn learn_name(&mut self, name: Lineage) {
        self.offered_name = false;
        if self.peer_is_consistent && name.is_shared_with(self.in_doubt) {
            let mut identity = self.record().identity();
            identity.rebase(name);
            self.record_mut().set_identity(identity);
        } else if name == self.record().lineage && self.peer_is_consistent {
            self.end_base();
        }
        self.in_doubt = Lineage(0);
    }

    /// The peer has everything that this node's name stands for.
    pub(super) fn end_base(&mut self) {
        let mut identity = self.record().identity();
        identity.end_source();
        self.record_mut().set_identity(identity);
        self.offered_name = false;
    }

    /// A machine holds writes that would be acknowledged without the peer.
    pub(super) fn go_alone(&mut self, out: &mut Out) {
        if matches!(self.state(), PrimaryState::Running | PrimaryState::Syncing | PrimaryState::Fenced) {
            // The session has them, or nobody has them ever.
            return;
        }
        self.wants_alone = true;
        let fresh = self.fresh_name();
        let mut identity = self.record().identity();
        let before = identity;
        if identity.write_alone(self.offered_name, fresh) {
            // With a base it is not known whether the peer took this name on; without one it has it.
            self.in_doubt = if before.base == Lineage(0) { Lineage(0) } else { before.current };
            self.record_mut().set_identity(identity);
            self.offered_name = false;
            return self.persist(out);
        }
        self.may_go_alone(true, out);
    }

    /// The record was written, or could not be.
    pub(super) fn may_go_alone(&mut self, ok: bool, out: &mut Out) {
        if !self.wants_alone || self.persisting {
            return;
        }
        if self.durable == self.record().identity() {
            self.wants_alone = false;
            out.push(GroupOutput::ToStripes(ToStripes::GoAlone));
        } else if ok {
            self.persist(out);
        } else {
            self.timers.arm(Timer::Record, RECORD_RETRY_MS, out);
        }
    }
}

impl Greeting {
    fn standpoint(&self) -> super::identity::Standpoint {
        let identity = super::identity::Identity::new(self.lineage, self.past);
        super::identity::Standpoint { identity, consistent: self.consistent, primary: false, crashed: false }
    }
}
