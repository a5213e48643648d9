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
pub(super) fn hello(fixed: &Fixed, record: GroupRecord, is_primary: bool, nonce: u64) -> (Hello, HelloBody) {
    let body = HelloBody {
        node: fixed.node,
        group: fixed.uuid,
        group_name: fixed.name.clone(),
        role: if is_primary { LinkRole::Primary } else { LinkRole::Secondary },
        granule_bytes: fixed.granule_bytes,
        stripe_bytes: STRIPE_BYTES,
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
        options: if fixed.buffer { option::DISK_BUFFER } else { 0 },
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
