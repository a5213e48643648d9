//! The replication protocol as pure state machines: no I/O, no clock, no threads, no buffer type of its own. Inputs
//! (a command, a message, a completion, a timer) are methods; outputs are pushed into a vector of the caller, who
//! carries them out in order. The reactors drive this code in production, the simulator drives the same code with a
//! seeded schedule of crashes, delays, reorderings and partitions.
//!
//! Decisions that shape everything here:
//!
//! * A volume is cut into stripes ([`STRIPE_BYTES`]); each stripe has one owning reactor on each node. So there are
//!   two kinds of machine: *stripe machines*, one for every volume on every reactor ([`PrimaryStripes`],
//!   [`SecondaryStripes`]), which see every I/O of the stripes they own, and *group machines*, one a node
//!   ([`PrimaryGroup`], [`SecondaryGroup`]), which know epochs, checkpoints, the link, the generation and failover
//!   and see no I/O at all. They talk only through their inputs and outputs.
//! * Order is kept where it matters and nowhere else: writes that overlap are serialised at the primary by the range
//!   lock and at the secondary by arrival; a *lane* (one data connection) delivers in order.
//! * The cut of an epoch is consistent over all reactors because it is made in two steps: every stripe machine stops
//!   launching writes (freeze), and only when all have stopped each stamps its epoch and goes on. A write that was
//!   launched before any machine stopped belongs to the epoch; one that was launched after some machine went on
//!   finds every machine either frozen or already stamped, so it and everything that depends on it belong to the next.
//!   Acknowledgements need no freeze: only launched writes are acknowledged. No step of the cut waits for a disk.
//! * An aborted epoch's number is burned: its undo layer stays below the next one in the chain, and the next commit
//!   drops every layer up to its own epoch. So epochs are never merged or reused, and an abort costs nothing.
//! * A disk of the secondary that hangs costs a deadline, not the checkpoint: the write is *pinned*, its payload kept
//!   in memory as the content of the disk, its range fenced until the I/O returns. A pinned write counts as applied;
//!   the event says that `applied` is meanwhile only `received` for that range.
//! * What the buffer can no longer promise is said, never guessed: `lost_through` is the highest epoch of which writes
//!   went to the disk without their originals being kept (a full sync, a full buffer, no buffer at all). The view and
//!   roll-back exist only while the last committed epoch is at least that.
//! * The undo layers, the overlay and their memory are behind the small trait [`GranuleMaps`]; payloads behind [`Payload`].

mod alone;
mod behind;
mod copying;
mod detached;
mod detached_group;
mod dirty;
mod group;
mod group_history;
mod group_primary;
mod group_secondary;
mod growth;
mod growth_secondary;
mod handshake;
mod history;
mod identity;
mod journaling;
mod lane;
mod maps;
#[doc(hidden)]
pub mod mutation;
mod pace;
mod past;
mod peer_read;
mod pinning;
mod primary;
mod promoted;
mod range_lock;
mod secondary;
mod table;
mod types;
mod unsettled;
mod verify;
mod verify_group;
mod verify_secondary;
mod view;

#[cfg(test)]
mod behind_tests;
#[cfg(test)]
mod copying_tests;
#[cfg(test)]
mod detached_tests;
#[cfg(test)]
mod durable_tests;
#[cfg(test)]
mod growth_tests;
#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod identity_model;
#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod journaling_tests;
#[cfg(test)]
pub(super) mod model;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod pair_tests;
#[cfg(test)]
mod primary_tests;
#[cfg(test)]
mod resync_tests;
#[cfg(test)]
mod start_tests;
#[cfg(test)]
mod verify_tests;

pub use detached_group::DiskState;
pub use dirty::DirtyMap;
pub use group::*;
pub use group_primary::{PrimaryGroup, PrimaryGroupConfig, PrimaryState};
pub use group_secondary::{SecondaryGroup, SecondaryGroupConfig, SecondaryState};
pub use handshake::{Claim, Mismatch, VolumeClaim, judge};
pub use history::KeptEpoch;
pub use identity::{Decision, Identity, Names, Standpoint, Who, decide};
pub use lane::{Answered, Incoming, Outgoing, Run};
pub use maps::{BufferFull, GranuleMaps};
pub use pace::{CopyOptions, Pace};
pub use primary::{LAG_BYTES, PrimaryConfig, PrimaryOutput, PrimaryStripes, Session};
pub use promoted::Keep;
pub use range_lock::{LockId, RangeLock};
pub use secondary::{Answer, SecondaryConfig, SecondaryOutput, SecondaryStripes};
pub use table::OpId;
pub use types::*;
pub use verify_group::VerifyState;
