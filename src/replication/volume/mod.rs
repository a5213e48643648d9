//! The data path of replicated volumes: what carries out the state machines' outputs on the reactors.
//!
//! * [`device`]: a volume as a bdev. Commands are cut at the borders of stripes; each *piece* travels to the reactor
//!   that owns its stripe and back (`piece`).
//! * [`owner`]: one volume's stripes on one reactor: the machine of the node's role, the disk below, the host's pieces.
//!   `primary` and `secondary` carry out the outputs of either machine.
//! * [`shard`]: one group's share of one reactor: the owners of its volumes, and the *lanes* (data connections) that
//!   they share. The group's home reactor talks to shards by messages; shards never wait for it.
//!
//! Everything here lives on its reactor; nothing locks, and in steady state nothing allocates per I/O.

mod device;
mod lanes;
mod maps;
mod owner;
mod payload;
mod piece;
mod primary;
mod secondary;
mod shard;
#[cfg(test)]
mod tests;

pub use device::{VolumeShared, create, create_past};
pub use maps::Maps;
pub use payload::Blocks;
pub use shard::{Quotas, Shard, ShardError, ShardEvent, ShardUsage, shard_of};
