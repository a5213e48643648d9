//! The machine: cores, NUMA nodes, hugepage memory, data buffers, clock.
//!
//! The lowest room: it knows nothing of reactors, devices or protocols and may be called from any thread unless
//! an item says otherwise. `unsafe` is at home here and in `reactor/ring.rs`, nowhere above.

pub mod arena;
pub mod buf;
pub mod clock;
pub mod cores;
pub mod mapping;
pub mod pool;

pub use arena::{Arena, ArenaStats, CHUNK_BYTES};
pub use buf::{Buf, SgList, sg_len};
pub use cores::CoreList;
pub use mapping::{Mapping, PageKind};
pub use pool::{Pool, PoolStats};
