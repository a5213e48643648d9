//! What an operator's request to the target can fail with, and what to do about it.

use super::options::ListenAddress;
use crate::bdev::BdevError;
use crate::nvme::nqn::NqnError;
use crate::reactor::CallError;

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("there is no TCP transport; create it first (nvmf_create_transport)")]
    NoTransport,
    #[error("the TCP transport exists already")]
    TransportExists,
    #[error("subsystem '{0}' does not exist")]
    NoSubsystem(String),
    #[error("subsystem '{0}' exists already")]
    SubsystemExists(String),
    #[error("'{0}' is not a subsystem name: {1}")]
    BadNqn(String, NqnError),
    #[error("namespace {nsid} does not exist in '{nqn}'")]
    NoNamespace { nqn: String, nsid: u32 },
    #[error("namespace {0} is in use; choose another nsid, or none for the lowest free one")]
    NamespaceExists(u32),
    #[error("subsystem '{0}' has no free nsid left; create it with a larger max_namespaces")]
    NoFreeNsid(String),
    #[error("nsid {nsid} is not between 1 and {max}, the subsystem's max_namespaces")]
    BadNsid { nsid: u32, max: u32 },
    #[error("bdev '{bdev}' is in use by {claimant}; export what that makes of it instead")]
    BdevClaimed { bdev: String, claimant: String },
    #[error("{0} is not a listener of '{1}'")]
    NoListener(ListenAddress, String),
    #[error("'{1}' listens on {0} already")]
    ListenerExists(ListenAddress, String),
    #[error("'{0}' is not a numeric IP address and port")]
    BadAddress(String),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: ListenAddress, error: std::io::Error },
    #[error("host '{0}' is on the list already")]
    HostExists(String),
    #[error("host '{0}' is not on the list")]
    NoHost(String),
    #[error("the referral exists already")]
    ReferralExists,
    #[error("there is no such referral")]
    NoReferral,
    #[error("ANA group {group} is not between 1 and {max}")]
    BadAnaGroup { group: u32, max: u32 },
    #[error("'{0}' does not report asymmetric access; create it with ana_reporting")]
    NoAnaReporting(String),
    #[error("a listener's ANA state is optimized, non_optimized or inaccessible")]
    BadAnaState,
    #[error("{0}")]
    BadOption(&'static str),
    #[error("there are {limit} {what} already, which is the limit")]
    Limit { what: &'static str, limit: usize },
    #[error(transparent)]
    Nqn(#[from] NqnError),
    #[error(transparent)]
    Bdev(#[from] BdevError),
    #[error(transparent)]
    Reactor(#[from] CallError),
}

impl TargetError {
    /// The errno, positive, that stands for it in SPDK's dialect.
    pub fn errno(&self) -> i32 {
        use rustix::io::Errno;
        let errno = match self {
            Self::NoTransport | Self::NoSubsystem(_) | Self::NoNamespace { .. } => Errno::NODEV,
            Self::NoListener(..) | Self::NoHost(_) | Self::NoReferral => Errno::NOENT,
            Self::TransportExists | Self::SubsystemExists(_) | Self::NamespaceExists(_) => Errno::EXIST,
            Self::ListenerExists(..) | Self::HostExists(_) | Self::ReferralExists => Errno::EXIST,
            Self::BdevClaimed { .. } => Errno::PERM,
            Self::NoFreeNsid(_) | Self::Limit { .. } => Errno::NOSPC,
            Self::Listen { error, .. } => return error.raw_os_error().unwrap_or(5),
            Self::Bdev(error) => return error.errno(),
            Self::Reactor(_) => Errno::TIMEDOUT,
            _ => Errno::INVAL,
        };
        errno.raw_os_error()
    }
}
