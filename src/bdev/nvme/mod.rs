//! Our user-space NVMe/TCP host: queues that anybody may open, and controllers whose namespaces are bdevs.
//!
//! Layers, each usable without those above: [`QueuePair`] is one connection that carries any command (the load
//! generator and the tests of targets use it); the controller brings an admin queue up as Linux does, keeps it alive,
//! hears of events and reconnects; each reactor that uses a controller has one I/O queue, which the namespaces of the
//! controller share there; [`NvmeHost`] is the control thread's handle: attach, detach, list.
//!
//! Invariants: no allocation, lock or system call per command in steady state; a command ends exactly once; buffers
//! come back when neither the kernel nor the controller can still use them; a lost controller makes I/O wait, and
//! fails it only after the time that the operator gave.
//!
//! Which thread: [`NvmeHost`] any but a reactor; queues and controllers the reactor that opened them. One path per
//! controller: a multipath host is an initiator above this one.

mod bring_up;
mod command;
mod controller;
mod device;
mod error;
mod facts;
mod host;
mod io_command;
mod io_queue;
mod options;
mod queue;
mod receive;
mod send;
mod sg;
mod shared;

pub use command::{Command, Completed};
pub use error::QueueError;
pub use facts::{ControllerFacts, NamespaceFacts};
pub use host::{ControllerInfo, MAX_CONTROLLERS, NvmeHost};
pub use options::{ControllerOptions, default_hostnqn, hostid, resolve};
pub use queue::{FABRICS_IN_CAPSULE_BYTES, MAX_DEPTH, QueueOptions, QueueOwner, QueuePair};
pub use shared::Life;
