//! What can go wrong with a device, and with one I/O.

/// How one I/O failed. The front-ends map these to NVMe status and SCSI sense, each in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    #[error("the device reported an error")]
    Device,
    #[error("the range is beyond the end of the device")]
    OutOfRange,
    #[error("the request is malformed")]
    Invalid,
    #[error("the device does not support this operation")]
    Unsupported,
    #[error("the data differs from what was expected")]
    Miscompare,
    #[error("the I/O was aborted")]
    Aborted,
    #[error("the device was removed")]
    Removed,
    #[error("the medium is full")]
    NoSpace,
    #[error("the medium is write-protected")]
    WriteProtected,
    #[error("this path may not be used in the node's present role")]
    Inaccessible,
    #[error("a deadline passed before the device answered")]
    TimedOut,
    #[error("the connection to the device was lost")]
    Disconnected,
}

impl IoError {
    /// The error of a failed system call on a file or block device.
    pub fn from_errno(errno: rustix::io::Errno) -> IoError {
        use rustix::io::Errno;
        match errno {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => IoError::NoSpace,
            Errno::ROFS | Errno::PERM | Errno::ACCESS | Errno::BADF => IoError::WriteProtected,
            Errno::OPNOTSUPP => IoError::Unsupported,
            Errno::CANCELED => IoError::Aborted,
            Errno::NODEV | Errno::NXIO => IoError::Removed,
            Errno::TIMEDOUT => IoError::TimedOut,
            _ => IoError::Device,
        }
    }
}

/// Why a device can't be made, opened, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BdevError {
    #[error("no bdev is named `{0}`; bdev_get_bdevs lists those that exist")]
    NotFound(String),
    #[error("a bdev named `{0}` exists already; choose another name or delete it first")]
    Exists(String),
    #[error("bdev `{name}` is claimed by {claimant}; delete or stop that first")]
    Claimed { name: String, claimant: String },
    #[error("`{0}` is not a bdev name: 1 to 255 printable characters without blanks are")]
    BadName(String),
    #[error("{0}")]
    Invalid(String),
    #[error("bdev `{0}` is being removed")]
    Removed(String),
    #[error("not enough memory for {bytes} bytes ({reason}); free some, or reserve more huge pages")]
    NoMemory { bytes: u64, reason: String },
    #[error("{what}: {reason}")]
    System { what: String, reason: String, errno: i32 },
    #[error("bdev `{name}` cannot do this: {reason}")]
    Unsupported { name: String, reason: String },
    #[error(transparent)]
    Reactor(#[from] crate::reactor::CallError),
}

impl BdevError {
    /// A failed system call, with what was tried.
    pub fn system(what: impl Into<String>, error: std::io::Error) -> BdevError {
        BdevError::System {
            what: what.into(),
            errno: error.raw_os_error().unwrap_or(5),
            reason: error.to_string(),
        }
    }

    /// The errno that SPDK's dialect answers with, positive.
    pub fn errno(&self) -> i32 {
        use rustix::io::Errno;
        match self {
            BdevError::NotFound(_) | BdevError::Removed(_) => Errno::NODEV.raw_os_error(),
            BdevError::Exists(_) => Errno::EXIST.raw_os_error(),
            BdevError::Claimed { .. } => Errno::PERM.raw_os_error(),
            BdevError::BadName(_) | BdevError::Invalid(_) => Errno::INVAL.raw_os_error(),
            BdevError::NoMemory { .. } => Errno::NOMEM.raw_os_error(),
            BdevError::System { errno, .. } => *errno,
            BdevError::Unsupported { .. } => Errno::OPNOTSUPP.raw_os_error(),
            BdevError::Reactor(_) => Errno::TIMEDOUT.raw_os_error(),
        }
    }
}
