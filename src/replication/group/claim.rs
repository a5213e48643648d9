//! What a group says of itself in a hello, and what it makes of the peer's.

use uuid::Uuid;

use super::home::Fixed;
use crate::bdev::Bdev;
use crate::replication::core::{Claim, GroupRecord, Mismatch, STRIPE_BYTES, VolumeClaim, VolumeSize, judge};
use crate::replication::link::wire;
use crate::replication::link::{Hello, HelloBody, LinkRole, RefusalCode, VolumeIdentity, option};
use crate::replication::volume::VolumeShared;

const VERSION: u16 = wire::VERSION as u16;

/// The sizes that a peer's hello names.
pub(super) fn sizes(body: &HelloBody) -> Vec<VolumeSize> {
    let size = |volume: &VolumeIdentity| VolumeSize {
        volume_bytes: volume.size_bytes,
        disk_bytes: volume.disk_bytes,
    };
    body.volumes.iter().map(size).collect()
}

/// The hello of this node's group.
pub(super) fn hello(
    fixed: &Fixed,
    record: GroupRecord,
    is_primary: bool,
    restarted: bool,
    dirty_bytes: u64,
    nonce: u64,
) -> (Hello, HelloBody) {
    let body = HelloBody {
        node: fixed.node,
        group: fixed.uuid,
        group_name: fixed.name.clone(),
        role: if is_primary { LinkRole::Primary } else { LinkRole::Secondary },
        granule_bytes: fixed.granule_bytes,
        stripe_bytes: STRIPE_BYTES,
        lineage: record.lineage,
        past: record.past,
        dirty_bytes,
        volumes: fixed
            .bdevs
            .iter()
            .zip(&fixed.volumes)
            .map(|(bdev, below)| identity_of(bdev, below))
            .collect(),
    };
    let hello = Hello {
        version_min: VERSION,
        version_max: VERSION,
        reactors: fixed.reactors,
        volumes: body.volumes.len() as u16,
        generation: record.generation,
        // Epochs that were begun and never committed are not used again either.
        committed_epoch: record.newest.max(record.committed),
        options: if fixed.buffer { option::DISK_BUFFER } else { 0 }
            | if restarted { option::RESTARTED } else { 0 }
            | if record.inconsistent { option::INCONSISTENT } else { 0 },
        nonce,
    };
    (hello, body)
}

fn identity_of(bdev: &Bdev, below: &VolumeShared) -> VolumeIdentity {
    VolumeIdentity {
        uuid: bdev.uuid(),
        name: bdev.name().to_string(),
        size_bytes: bdev.size_bytes(),
        disk_bytes: below.disk_bytes(),
        block_bytes: bdev.block_size(),
    }
}

fn claim(hello: &Hello, body: &HelloBody) -> Claim {
    let volume = |volume: &VolumeIdentity| VolumeClaim {
        uuid: volume.uuid,
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        disk_bytes: volume.disk_bytes,
        block_bytes: volume.block_bytes,
    };
    Claim {
        group: body.group,
        group_name: body.group_name.clone(),
        is_primary: body.role == LinkRole::Primary,
        stripe_bytes: body.stripe_bytes,
        generation: hello.generation,
        volumes: body.volumes.iter().map(volume).collect(),
    }
}

/// Whether the peer may replicate with this node.
pub(super) fn check(
    mine: &(Hello, HelloBody),
    theirs: (&Hello, &HelloBody),
) -> Result<(), (RefusalCode, String)> {
    let (hello, body) = theirs;
    if hello.version_min > VERSION || hello.version_max < VERSION {
        let (oldest, newest) = (hello.version_min, hello.version_max);
        let text = format!("link protocol {oldest} to {newest} there, {VERSION} here");
        return Err((RefusalCode::Version, text));
    }
    judge(&claim(&mine.0, &mine.1), &claim(hello, body)).map_err(|mismatch| {
        let code = match mismatch {
            Mismatch::Group(..) => RefusalCode::GroupIdentity,
            Mismatch::Role(_) => RefusalCode::Role,
            Mismatch::Stripe(..) => RefusalCode::Options,
            Mismatch::Count(..) | Mismatch::Volume(..) => RefusalCode::VolumeIdentity,
            Mismatch::Size(..) => RefusalCode::VolumeSize,
            Mismatch::BlockSize(..) => RefusalCode::BlockSize,
            Mismatch::OldGeneration(..) => RefusalCode::OldGeneration,
        };
        (code, mismatch.to_string())
    })
}

/// Names one session; never 0.
pub(super) fn nonce() -> u64 {
    (Uuid::new_v4().as_u128() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::{Epoch, Generation};

    fn said(role: LinkRole) -> (Hello, HelloBody) {
        let volume = VolumeIdentity {
            uuid: Uuid::from_u128(3),
            name: "v0".to_string(),
            size_bytes: 1 << 30,
            disk_bytes: 1 << 30,
            block_bytes: 4096,
        };
        let body = HelloBody {
            node: Uuid::from_u128(1),
            group: Uuid::from_u128(2),
            group_name: "g0".to_string(),
            role,
            granule_bytes: 4096,
            stripe_bytes: STRIPE_BYTES,
            lineage: crate::replication::Lineage(7),
            past: crate::replication::Past::default(),
            dirty_bytes: 0,
            volumes: vec![volume],
        };
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            reactors: 2,
            volumes: 1,
            generation: Generation(4),
            committed_epoch: Epoch(9),
            options: 0,
            nonce: 5,
        };
        (hello, body)
    }

    /// What the secondary says to a primary whose hello was changed.
    fn refusal(change: impl FnOnce(&mut Hello, &mut HelloBody)) -> Option<RefusalCode> {
        let (mut hello, mut body) = said(LinkRole::Primary);
        change(&mut hello, &mut body);
        let refused = check(&said(LinkRole::Secondary), (&hello, &body)).err();
        refused.map(|(code, text)| {
            assert!(!text.is_empty());
            code
        })
    }

    #[test]
    fn each_difference_is_refused_by_the_code_that_tells_the_peer_what_to_do() {
        assert_eq!(refusal(|_, _| ()), None);
        assert_eq!(refusal(|hello, _| hello.version_min = VERSION + 1), Some(RefusalCode::Version));
        assert_eq!(refusal(|hello, _| hello.version_max = VERSION - 1), Some(RefusalCode::Version));
        assert_eq!(refusal(|hello, _| hello.version_max = VERSION + 5), None, "it speaks ours as well");
        assert_eq!(refusal(|_, body| body.group = Uuid::nil()), Some(RefusalCode::GroupIdentity));
        assert_eq!(refusal(|_, body| body.role = LinkRole::Secondary), Some(RefusalCode::Role));
        assert_eq!(refusal(|_, body| body.stripe_bytes *= 2), Some(RefusalCode::Options));
        assert_eq!(refusal(|_, body| body.volumes.clear()), Some(RefusalCode::VolumeIdentity));
        assert_eq!(refusal(|_, body| body.volumes[0].name.clear()), Some(RefusalCode::VolumeIdentity));
        assert_eq!(refusal(|_, body| body.volumes[0].size_bytes += 4096), Some(RefusalCode::VolumeSize));
        assert_eq!(refusal(|_, body| body.volumes[0].block_bytes = 512), Some(RefusalCode::BlockSize));
        assert_eq!(refusal(|hello, _| hello.generation = Generation(3)), Some(RefusalCode::OldGeneration));
        assert_eq!(refusal(|hello, _| hello.generation = Generation(5)), None, "the secondary follows");
    }

    #[test]
    fn granules_and_reactors_may_differ() {
        assert_eq!(refusal(|_, body| body.granule_bytes = 65536), None);
        assert_eq!(refusal(|hello, _| hello.reactors = 7), None);
    }

    #[test]
    fn a_session_is_never_named_zero() {
        assert!((0..1000).all(|_| nonce() != 0));
    }
}
