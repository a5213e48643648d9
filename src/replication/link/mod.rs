//! The link between two nodes: one control connection, and one data connection for each pair of reactors.
//!
//! `wire` (layout), `message` (meaning of a header) and `body` (payloads of control messages) are the format, pure,
//! drawn byte by byte in `docs/link-protocol.md`. `connection` carries messages over one TCP connection on one reactor
//! (`send` and `receive` are its halves), `connector` and `listener` make connections, `control` translates for the
//! group machines.

mod body;
mod connection;
mod connector;
mod control;
mod listener;
mod message;
mod receive;
mod send;
#[cfg(test)]
mod tests;
pub mod wire;

pub use body::{AckEntry, HelloBody, LastSequence, VolumeIdentity, printable, refusal_text};
pub use connection::{CloseReason, Connection, LinkOwner};
pub use connector::{Attempt, Backoff, ConnectError, ConnectOwner, connect};
pub use control::{encode_control, parse_control};
pub use listener::{AcceptOwner, FirstMessage, HANDSHAKE_DEADLINE, Incoming, ListenError, Listener};
pub use message::{
    AckStatus, Acks, DataHello, Header, Heartbeat, Hello, LinkRole, Message, Ordered, Outcome, RefusalCode,
    Span, WireError, Write, option, parse,
};
pub use send::{Room, SEND_BYTES_HIGH, SEND_ENTRIES_HIGH, SEND_HARD_FACTOR, SendError};
