//! Groups: what an operator commands, and what carries out a group machine's outputs.
//!
//! * [`Groups`] is the list of a node's groups, for the control thread; [`GroupOptions`] and [`GroupInfo`] are what it
//!   takes and gives. Its calls wait, at most as long as the command's deadline.
//! * `home`: the group machine on the group's home reactor ([`HOME`]), with its timers, its durable record and its
//!   control connection. Orders go to the shards of all reactors (`orders`) as messages, and come back as messages.
//! * `recorded` decides what a node is by its durable record and its configuration; `recover` leads its disks back to the
//!   last checkpoint, if there is a journal.
//! * `disks` tells of disks that failed, and puts replacements below volumes.
//! * `faults` keeps what an operator is told to be wrong.
//! * `sizes` brings the sizes of disks and volumes to the machine and from it.
//! * `dial` is the primary's way to a session, `accept` the secondary's; both end in data connections that are given
//!   to the shards.

mod accept;
mod claim;
mod dial;
mod disks;
mod faults;
mod history;
mod home;
mod list;
mod options;
mod orders;
mod recorded;
mod recover;
mod sizes;
mod split_brain;
mod verify;

pub use history::{EpochInfo, HISTORY_EPOCHS_MAX, HistoryInfo};
pub use list::Groups;
pub use options::*;
pub use recorded::RecordRefusal;
pub use split_brain::{OneSide, SplitBrainInfo};

/// The reactor where groups live. They do little there: a few messages for each checkpoint.
const HOME: usize = 0;
