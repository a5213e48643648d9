//! What an operator may choose, with SPDK's names and defaults, and the limits that are checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::error::TargetError;
use crate::nvme::fabrics::CNTLID_MAX;

/// Largest data transfer of a command: what one contiguous pool buffer holds.
pub const MAX_IO_SIZE_LIMIT: u32 = 1 << 20;
/// In-capsule data that a fabrics or admin command may carry on any queue (Linux sends 8 KiB there).
pub const ADMIN_IN_CAPSULE: u32 = 8192;
/// Deepest queue: a queue's bookkeeping stays within a few hundred kilobytes.
pub const MAX_QUEUE_DEPTH: u16 = 1024;
/// Deepest in-capsule data: must fit a receive buffer several times.
pub const MAX_IN_CAPSULE: u32 = 16384;
/// Highest NSID a subsystem may be given: identify lists and per-queue tables stay small.
pub const MAX_NSID: u32 = 1024;
/// Subsystems of a node, listeners and hosts of a subsystem, referrals: bounds against a control plane run wild.
pub const MAX_SUBSYSTEMS: usize = 1024;
pub const MAX_LISTENERS: usize = 64;
pub const MAX_HOSTS: usize = 4096;
pub const MAX_REFERRALS: usize = 256;

/// The TCP transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// Entries of an I/O queue.
    pub max_queue_depth: u16,
    /// Entries of an admin queue.
    pub max_admin_queue_depth: u16,
    pub max_io_queues_per_controller: u16,
    pub in_capsule_data_size: u32,
    /// Largest data transfer, bytes; a power of two times 4 KiB.
    pub max_io_size: u32,
    /// Complete successful reads by the SUCCESS flag of their last data PDU instead of a response capsule.
    pub c2h_success: bool,
    /// Connections of the node; more are closed at once.
    pub max_connections: u32,
    /// A connection whose queue is not connected by then is closed.
    pub connect_deadline: Duration,
    /// A disabled or shut down controller whose host does not come back is removed after this (at least 2 minutes
    /// by Base 3.3.2.2).
    pub association_timeout: Duration,
}

impl Default for TransportOptions {
    fn default() -> TransportOptions {
        TransportOptions {
            max_queue_depth: 128,
            max_admin_queue_depth: 128,
            max_io_queues_per_controller: 127,
            in_capsule_data_size: 4096,
            max_io_size: 128 << 10,
            c2h_success: true,
            max_connections: 4096,
            connect_deadline: Duration::from_secs(10),
            association_timeout: Duration::from_secs(120),
        }
    }
}

impl TransportOptions {
    pub(super) fn validate(&self) -> Result<(), TargetError> {
        let depth = 2..=MAX_QUEUE_DEPTH;
        let bad = |what: &'static str| Err(TargetError::BadOption(what));
        if !depth.contains(&self.max_queue_depth) || !depth.contains(&self.max_admin_queue_depth) {
            return bad("a queue has 2 to 1024 entries");
        }
        if self.max_admin_queue_depth < 32 {
            return bad("an admin queue has at least 32 entries (max_aq_depth)");
        }
        if self.max_io_queues_per_controller == 0 || self.max_io_queues_per_controller > 1024 {
            return bad("a controller has 1 to 1024 I/O queues");
        }
        if self.in_capsule_data_size > MAX_IN_CAPSULE || !self.in_capsule_data_size.is_multiple_of(16) {
            return bad("in_capsule_data_size is a multiple of 16, at most 16384");
        }
        let pages = self.max_io_size / 4096;
        if pages == 0 || !self.max_io_size.is_power_of_two() || self.max_io_size > MAX_IO_SIZE_LIMIT {
            return bad("max_io_size is a power of two from 4096 to 1048576");
        }
        if self.max_connections == 0 {
            return bad("max_connections is at least 1");
        }
        Ok(())
    }
}

/// A new subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemOptions {
    pub nqn: String,
    /// At most 20 printable ASCII characters.
    pub serial_number: String,
    /// At most 40 printable ASCII characters.
    pub model_number: String,
    pub allow_any_host: bool,
    /// Report asymmetric access even when no namespace follows a replication role.
    pub ana_reporting: bool,
    /// Controller identifiers this node may give out; two nodes that serve one NQN need separate ranges.
    pub min_cntlid: u16,
    pub max_cntlid: u16,
    /// Highest NSID, 1 to 1024.
    pub max_namespaces: u32,
}

impl SubsystemOptions {
    pub fn new(nqn: &str) -> SubsystemOptions {
        SubsystemOptions {
            nqn: nqn.to_string(),
            serial_number: "00000000000000000000".to_string(),
            model_number: "Lockstep replicated volume".to_string(),
            allow_any_host: false,
            ana_reporting: false,
            min_cntlid: 1,
            max_cntlid: CNTLID_MAX,
            max_namespaces: 32,
        }
    }

    pub(super) fn validate(&self) -> Result<(), TargetError> {
        crate::nvme::nqn::validate(&self.nqn)?;
        let printable =
            |text: &str, max: usize| text.len() <= max && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if !printable(&self.serial_number, 20) {
            return Err(TargetError::BadOption("a serial number has at most 20 printable ASCII characters"));
        }
        if self.model_number.is_empty() || !printable(&self.model_number, 40) {
            return Err(TargetError::BadOption("a model number has 1 to 40 printable ASCII characters"));
        }
        if self.min_cntlid == 0 || self.min_cntlid > self.max_cntlid || self.max_cntlid > CNTLID_MAX {
            return Err(TargetError::BadOption("controller identifiers lie between 1 and 65519, min <= max"));
        }
        if self.max_namespaces == 0 || self.max_namespaces > MAX_NSID {
            return Err(TargetError::BadOption("a subsystem has 1 to 1024 namespaces"));
        }
        Ok(())
    }
}

/// A new namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceOptions {
    pub bdev_name: String,
    /// `None`: the lowest free one.
    pub nsid: Option<u32>,
    /// `None`: the bdev's UUID (and no EUI64). Two nodes that serve one volume give the same identifiers.
    pub nguid: Option<[u8; 16]>,
    pub eui64: Option<[u8; 8]>,
    pub uuid: Option<uuid::Uuid>,
    /// `None`: the NSID, so that every namespace has a group of its own.
    pub anagrpid: Option<u32>,
    /// Whether the bdev's access state (its replication role) decides the ANA state. False exports a secondary's own
    /// view as an ordinary disk.
    pub follows_access: bool,
}

impl NamespaceOptions {
    pub fn new(bdev_name: &str) -> NamespaceOptions {
        NamespaceOptions {
            bdev_name: bdev_name.to_string(),
            nsid: None,
            nguid: None,
            eui64: None,
            uuid: None,
            anagrpid: None,
            follows_access: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressFamily {
    Ipv4,
    Ipv6,
}

impl AddressFamily {
    /// SPDK's spelling.
    pub fn name(self) -> &'static str {
        match self {
            AddressFamily::Ipv4 => "IPv4",
            AddressFamily::Ipv6 => "IPv6",
        }
    }
}

/// Where a subsystem listens: TCP transport, address and port as SPDK writes them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenAddress {
    pub adrfam: AddressFamily,
    pub traddr: String,
    pub trsvcid: String,
}

impl ListenAddress {
    /// Parses a numeric address and a port; port 0 lets the system choose one.
    pub fn new(traddr: &str, trsvcid: &str) -> Result<ListenAddress, TargetError> {
        let bad = || TargetError::BadAddress(format!("{traddr}:{trsvcid}"));
        let ip: IpAddr = traddr.parse().map_err(|_| bad())?;
        let port: u16 = trsvcid.parse().map_err(|_| bad())?;
        Ok(Self::of(SocketAddr::new(ip, port)))
    }

    pub fn of(address: SocketAddr) -> ListenAddress {
        ListenAddress {
            adrfam: if address.is_ipv4() { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 },
            traddr: address.ip().to_string(),
            trsvcid: address.port().to_string(),
        }
    }

    pub fn socket_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.traddr.parse().ok()?, self.trsvcid.parse().ok()?))
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.adrfam {
            AddressFamily::Ipv4 => write!(f, "{}:{}", self.traddr, self.trsvcid),
            AddressFamily::Ipv6 => write!(f, "[{}]:{}", self.traddr, self.trsvcid),
        }
    }
}

/// Another discovery service that ours points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referral {
    pub address: ListenAddress,
    pub secure_channel: bool,
    /// The NQN of the discovery subsystem there, or of a subsystem.
    pub subnqn: String,
}
