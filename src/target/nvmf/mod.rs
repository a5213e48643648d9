//! The NVMe over Fabrics target: subsystems, controllers, queues, and their TCP transport.
//!
//! Two halves. The *control side* ([`Target`]) is called from threads that may block; it keeps what was configured
//! in a model behind a lock and publishes immutable [`view::View`]s of it to the reactors. The *data side* runs on
//! the reactors: a [`group::Group`] each, its connections, their queues and, with an admin queue, its controller.
//!
//! Invariants:
//! * the data path takes no lock: a reactor looks at the last view it was sent, and at atomics of the bdev; the one
//!   shared table, a subsystem's [`directory::Directory`] of controllers, is locked for moments at Connect,
//!   disconnect and for listings;
//! * a queue lives on one reactor for its life, a controller on the reactor of its admin queue;
//! * a command answers exactly once, or its connection ends; a buffer stays with a command until the device and the
//!   socket are done with it, whatever became of the host;
//! * nothing a host sends can panic: it costs a command, or a connection after a TermReq, never more.

mod abort;
mod admin;
mod connect;
mod controller;
mod directory;
mod discovery;
mod error;
mod features;
mod fused;
mod group;
mod identify;
mod info;
mod io;
mod log_pages;
mod model;
mod options;
mod queue;
mod slot;
mod target;
mod tcp;
mod view;

pub use crate::nvme::log::AnaState;
pub use error::TargetError;
pub use info::{ControllerInfo, GroupStats, ListenerInfo, NamespaceInfo, QueueInfo, SubsystemInfo};
pub use options::{
    AddressFamily, ListenAddress, NamespaceOptions, Referral, SubsystemOptions, TransportOptions,
};
pub use target::Target;
