//! Pinned poller threads, their messages, timers and rings.
//!
//! A reactor is one thread on one core. Everything that lives on it is `Rc` and `Cell`; reactors share nothing and
//! talk by bounded lock-free queues of [`Parcel`]s. Callbacks run from the reactor's loop, one at a time, never
//! inside the call that asked for them, so no borrow of the caller's is ever held when one runs. Nothing on a
//! reactor blocks; a callback that panics is caught and logged at the loop.
//!
//! The free functions of this room act on the calling reactor thread and panic anywhere else: that is a mistake in
//! the program, not something an operator or peer can cause.

mod idle;
mod message;
pub mod ring;
mod run;
mod stats;
mod timer;

pub use idle::IdleMode;
pub use message::{CallError, Parcel, Reply, parcel};
pub use ring::{Done, Lane, OpId, RingFile, RingOwner};
pub use run::{
    Config, Poller, PollerGuard, ReactorSet, StartError, Task, add_poller, alloc, core_index, count,
    in_reactor, memory_limit, now, schedule, send, send_to_all, sleep_hint, spawn_call, timer_after,
    timer_cancel,
};
pub use stats::{PollerStats, ReactorStats};
pub use timer::{TimerHandler, TimerId};
