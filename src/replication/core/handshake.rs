//! Whether two nodes may replicate with each other: a pure function of what both say of themselves.
//!
//! Only identities and fencing are judged here. Which of the two has the newer data, and how they are brought in step
//! (the table of generation identities: current, bitmap, history), is decided after this and by another function;
//! until it exists a session begins with `full`, or with `none` on the caller's word.

use super::super::Generation;
use super::mutation::{Mutation, active};
use uuid::Uuid;

/// What a node says of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeClaim {
    pub uuid: Uuid,
    pub name: String,
    pub size_bytes: u64,
    /// Of the disk below.
    pub disk_bytes: u64,
    pub block_bytes: u32,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub group: Uuid,
    pub group_name: String,
    pub is_primary: bool,
    pub stripe_bytes: u64,
    pub generation: Generation,
    pub volumes: Vec<VolumeClaim>,
}

/// Why a peer is not talked to; the text names both values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("groups differ: `{0}` here, `{1}` there")]
    Group(String, String),
    #[error("both nodes have the role of the {0}")]
    Role(&'static str),
    #[error("stripes differ: {0} bytes here, {1} there: run the same release on both nodes")]
    Stripe(u64, u64),
    #[error("{0} volumes here, {1} there")]
    Count(usize, usize),
    #[error("volume {0}: `{1}` here, `{2}` there")]
    Volume(usize, String, String),
    #[error(
        "volume `{0}` has {1} bytes on the primary, and the secondary's disk below it only {2}: enlarge that disk"
    )]
    Size(String, u64, u64),
    #[error("volume `{0}` has blocks of {1} bytes here, {2} there")]
    BlockSize(String, u32, u32),
    #[error("this node is of generation {0}, the peer of generation {1}: it was replaced and is fenced")]
    OldGeneration(Generation, Generation),
}

/// Judges the peer. The generation comes first: a node that was replaced must learn that, whatever else differs.
pub fn judge(me: &Claim, peer: &Claim) -> Result<(), Mismatch> {
    if me.group != peer.group {
        return Err(Mismatch::Group(me.group_name.clone(), peer.group_name.clone()));
    }
    if peer.is_primary && peer.generation < me.generation && !active(Mutation::GenerationIgnored) {
        return Err(Mismatch::OldGeneration(me.generation, peer.generation));
    }
    if me.is_primary == peer.is_primary {
        return Err(Mismatch::Role(if me.is_primary { "primary" } else { "secondary" }));
    }
    if me.stripe_bytes != peer.stripe_bytes {
        return Err(Mismatch::Stripe(me.stripe_bytes, peer.stripe_bytes));
    }
    if me.volumes.len() != peer.volumes.len() {
        return Err(Mismatch::Count(me.volumes.len(), peer.volumes.len()));
    }
    for (number, (mine, theirs)) in me.volumes.iter().zip(&peer.volumes).enumerate() {
        let name = || mine.name.clone();
        if mine.uuid != theirs.uuid || mine.name != theirs.name {
            return Err(Mismatch::Volume(number, name(), theirs.name.clone()));
        }
        // The secondary takes on the primary's size when the session begins: all it needs is the room.
        let (primary, secondary) = if me.is_primary { (mine, theirs) } else { (theirs, mine) };
        if secondary.disk_bytes < primary.size_bytes {
            return Err(Mismatch::Size(name(), primary.size_bytes, secondary.disk_bytes));
        }
        if mine.block_bytes != theirs.block_bytes {
            return Err(Mismatch::BlockSize(name(), mine.block_bytes, theirs.block_bytes));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(is_primary: bool) -> Claim {
        let volume = VolumeClaim {
            uuid: Uuid::from_u128(2),
            name: "v0".to_string(),
            size_bytes: 1 << 30,
            disk_bytes: 1 << 30,
            block_bytes: 4096,
        };
        Claim {
            group: Uuid::from_u128(1),
            group_name: "g0".to_string(),
            is_primary,
            stripe_bytes: 4 << 20,
            generation: Generation(3),
            volumes: vec![volume],
        }
    }

    fn against(change: impl FnOnce(&mut Claim)) -> Result<(), Mismatch> {
        let mut primary = claim(true);
        change(&mut primary);
        judge(&claim(false), &primary)
    }

    #[test]
    fn every_difference_is_refused_by_its_name() {
        assert_eq!(against(|_| ()), Ok(()));
        assert!(matches!(against(|c| c.group = Uuid::nil()), Err(Mismatch::Group(..))));
        assert_eq!(against(|c| c.is_primary = false), Err(Mismatch::Role("secondary")));
        assert!(matches!(against(|c| c.stripe_bytes = 1), Err(Mismatch::Stripe(..))));
        assert_eq!(against(|c| c.volumes.clear()), Err(Mismatch::Count(1, 0)));
        assert!(matches!(against(|c| c.volumes[0].uuid = Uuid::nil()), Err(Mismatch::Volume(..))));
        assert!(matches!(against(|c| c.volumes[0].name.clear()), Err(Mismatch::Volume(..))));
        assert!(matches!(against(|c| c.volumes[0].size_bytes += 1), Err(Mismatch::Size(..))));
        assert!(matches!(against(|c| c.volumes[0].block_bytes = 512), Err(Mismatch::BlockSize(..))));
    }

    #[test]
    fn the_primarys_size_counts_and_the_secondary_needs_the_room() {
        let both = |change: &dyn Fn(&mut Claim, &mut Claim)| {
            let (mut primary, mut secondary) = (claim(true), claim(false));
            change(&mut primary, &mut secondary);
            let verdict = judge(&secondary, &primary);
            assert_eq!(judge(&primary, &secondary), verdict, "both come to the same end");
            verdict
        };
        assert_eq!(both(&|p, _| p.volumes[0].disk_bytes *= 2), Ok(()), "only this disk grew");
        assert_eq!(both(&|_, s| s.volumes[0].disk_bytes *= 2), Ok(()), "only that disk grew");
        // The link was lost between the two records of a growth.
        assert_eq!(both(&|_, s| s.volumes[0].size_bytes *= 2), Ok(()));
        // A successor grew, and what was the primary comes back as its follower.
        let grown = |p: &mut Claim| (p.volumes[0].size_bytes, p.volumes[0].disk_bytes) = (2 << 30, 2 << 30);
        assert_eq!(
            both(&|p, s| {
                grown(p);
                s.volumes[0].disk_bytes = 3 << 30;
            }),
            Ok(())
        );
        let small = Err(Mismatch::Size("v0".into(), 2 << 30, 1 << 30));
        assert_eq!(both(&|p, _| grown(p)), small);
        assert_eq!(
            both(&|_, s| s.volumes[0].disk_bytes = 1 << 29),
            Err(Mismatch::Size("v0".into(), 1 << 30, 1 << 29)),
            "a disk that shrank"
        );
    }

    #[test]
    fn an_old_primary_hears_that_it_is_fenced_and_a_newer_one_is_followed() {
        let old = Err(Mismatch::OldGeneration(Generation(3), Generation(2)));
        assert_eq!(against(|c| c.generation = Generation(2)), old);
        assert_eq!(against(|c| c.generation = Generation(4)), Ok(()));
        let mut promoted = claim(true);
        promoted.generation = Generation(4);
        assert!(matches!(judge(&promoted, &claim(true)), Err(Mismatch::OldGeneration(..))));
    }
}
