//! How a connection to an NVMe/TCP controller fails.

use std::net::SocketAddr;
use std::time::Duration;

use crate::nvme::Status;
use crate::nvme::tcp::PduError;

/// Why a queue could not be opened, or why it ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    #[error("cannot connect to {address}: {reason}; check that a target listens there")]
    Connect { address: SocketAddr, reason: String },
    #[error("no answer from the target within {0:?}; check the address, or raise the timeout")]
    Deadline(Duration),
    #[error("the target closed the connection")]
    EndOfStream,
    #[error("the connection failed: {0}")]
    Socket(String),
    #[error("the target broke the NVMe/TCP protocol: {0}")]
    Protocol(#[from] PduError),
    #[error("the target ended the connection: fatal error status {fes}, information {fei:#x}")]
    Terminated { fes: u16, fei: u32 },
    #[error("the target's connection parameters are not usable: {0}")]
    Parameters(&'static str),
    #[error("the target refused {what}: {status}")]
    Refused { what: &'static str, status: Status },
    #[error("{0}")]
    Controller(&'static str),
    #[error("no memory for the queue's buffers; give the node more with --memory")]
    NoMemory,
    #[error("the queue was closed by this host")]
    Closed,
}

impl QueueError {
    /// The errno that SPDK's dialect answers with, positive.
    pub fn errno(&self) -> i32 {
        use rustix::io::Errno;
        match self {
            QueueError::Connect { .. } => Errno::CONNREFUSED,
            QueueError::Deadline(_) => Errno::TIMEDOUT,
            QueueError::NoMemory => Errno::NOMEM,
            QueueError::Refused { .. } | QueueError::Parameters(_) => Errno::INVAL,
            _ => Errno::IO,
        }
        .raw_os_error()
    }

    /// Whether trying again may help: a refusal that says "do not retry" will come again.
    pub fn is_worth_retrying(&self) -> bool {
        !matches!(self, QueueError::Refused { status, .. } if status.is_dnr())
    }
}
