//! The link between two nodes: one control connection, and one data connection for each pair of reactors.
//!
//! `wire` (layout), `message` (meaning of a header) and `body` (payloads of control messages) are the format, pure,
//! drawn byte by byte in `docs/link-protocol.md`.

mod body;
mod message;
pub mod wire;

pub use body::{AckEntry, HelloBody, LastSequence, VolumeIdentity, printable, refusal_text};
pub use message::{
    AckStatus, Acks, DataHello, Header, Heartbeat, Hello, LinkRole, Message, Ordered, Outcome, RefusalCode,
    WireError, Write, option, parse,
};
