//! The TCP transport: portals that accept, and connections that carry one queue each.
//!
//! One receive is in flight at most and one send: a receive brings many capsules into a staging buffer, or a
//! payload straight into its command's buffer; a send takes everything that was completed since the last one, headers
//! from one header buffer, payloads by reference. A 4 KiB in-capsule write is copied once, a read not at all.

mod connection;
mod portal;
mod receive;
mod send;

pub use connection::Connection;
pub use portal::Portal;
