//! The block layer: one interface over every device, and the devices behind it.
//!
//! A [`Bdev`] is the shared, `Send + Sync` description of a block device; a [`Channel`] is one reactor's private
//! handle on it, through which that reactor submits [`Io`]s. The layer validates, limits, queues, counts and times;
//! a device only moves data. What the neighbours above are promised:
//!
//! * a submitter never fails for want of a slot: above the outstanding limit its I/O waits in order;
//! * every submitted I/O ends exactly once, through its [`IoOwner`], from the reactor's loop and never inside
//!   `submit`; also when its device is removed while it hangs: then it ends with an error and the device keeps the
//!   buffers until it returns them;
//! * what a device can't do is made of what it can; compare-and-write is atomic against every write on any reactor;
//! * the layer itself takes no lock, allocates nothing and makes no system call per I/O.
//!
//! Which thread: `Bdev` and [`Registry`] any; `Channel`, `Io` and devices' channels the reactor they belong to.

mod channel;
pub mod delay;
mod device;
mod done;
mod emulate;
mod error;
pub mod error_injection;
mod flight;
mod histogram;
mod io;
mod lifecycle;
#[cfg(test)]
mod model_tests;
pub mod null;
pub mod nvme;
pub mod passthru;
mod qos;
pub mod ram;
mod ranges;
mod registry;
mod stacked;
mod stats;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod uring;

pub use channel::{Channel, open_channels};
pub use device::{Access, Bdev, BdevEvent, BdevOptions, Device, DeviceChannel, WatchId};
pub use error::{BdevError, IoError};
pub use flight::IoId;
pub use histogram::{DEFAULT_GRANULARITY, DEFAULT_MAX_NS, DEFAULT_MIN_NS, Histogram, HistogramOptions};
pub use io::{Io, IoOwner, Op};
pub use lifecycle::AbortOutcome;
pub use qos::QosLimits;
pub use registry::{Registry, RegistryEvent};
pub use stats::{ChannelStats, IoStats, OpStats};
