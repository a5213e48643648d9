//! How to reach a controller and what to do when it does not answer: SPDK's parameters, with their units.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::OnceLock;
use std::time::Duration;

use crate::bdev::BdevError;
use crate::nvme::nqn;
use crate::nvme::tcp::Digests;

/// What Linux waits for an answer to an I/O command.
pub const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// SPDK's and Linux's usual keep-alive timeout is 5 to 10 s.
pub const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Linux gives a controller up after 600 s.
pub const DEFAULT_LOSS_TIMEOUT: Duration = Duration::from_secs(600);
/// The back-off between attempts to reconnect ends at this.
pub const DEFAULT_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// TCP connect to answered Connect; also an admin command's.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands in flight per I/O queue.
pub const DEFAULT_DEPTH: u16 = 128;

/// Parameters of a controller.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Namespaces become the bdevs `<name>n<nsid>`.
    pub name: String,
    pub address: SocketAddr,
    pub subnqn: String,
    pub hostnqn: String,
    pub digests: Digests,
    /// I/O queues to ask for; each reactor that uses the controller takes one. 0: as many as there are reactors.
    pub num_io_queues: u16,
    pub depth: u16,
    pub keep_alive: Duration,
    /// How long a lost controller is tried again before it is given up and its bdevs go; `None`: for ever. Zero: not
    /// at all.
    pub loss_timeout: Option<Duration>,
    /// The longest time between two attempts.
    pub reconnect_delay: Duration,
    /// How long I/O waits for a lost controller before it fails while attempts go on; `None`: as long as the
    /// attempts go on.
    pub fast_io_fail: Option<Duration>,
    pub command_timeout: Duration,
}

impl ControllerOptions {
    pub fn new(name: &str, address: SocketAddr, subnqn: &str) -> ControllerOptions {
        ControllerOptions {
            name: name.to_string(),
            address,
            subnqn: subnqn.to_string(),
            hostnqn: default_hostnqn().to_string(),
            digests: Digests::default(),
            num_io_queues: 0,
            depth: DEFAULT_DEPTH,
            keep_alive: DEFAULT_KEEP_ALIVE,
            loss_timeout: Some(DEFAULT_LOSS_TIMEOUT),
            reconnect_delay: DEFAULT_RECONNECT_DELAY,
            fast_io_fail: None,
            command_timeout: DEFAULT_COMMAND_TIMEOUT,
        }
    }

    pub(super) fn check(&self) -> Result<(), BdevError> {
        for name in [&self.subnqn, &self.hostnqn] {
            nqn::validate(name).map_err(|e| BdevError::Invalid(format!("`{name}`: {e}")))?;
        }
        let loss = self.loss_timeout.unwrap_or(Duration::MAX);
        if self.fast_io_fail.is_some_and(|f| f > loss) {
            let text = "fast_io_fail_timeout_sec must not be above ctrlr_loss_timeout_sec";
            return Err(BdevError::Invalid(text.to_string()));
        }
        Ok(())
    }
}

/// The address of a target given as SPDK's `traddr` and `trsvcid`.
pub fn resolve(traddr: &str, trsvcid: &str) -> Result<SocketAddr, BdevError> {
    let wrong = |reason: String| BdevError::Invalid(format!("`{traddr}:{trsvcid}` is no address: {reason}"));
    let port: u16 = trsvcid.parse().map_err(|_| wrong("the port is not a number up to 65535".to_string()))?;
    let mut found = (traddr, port).to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".to_string()))
}

/// This process's host NQN.
pub fn default_hostnqn() -> &'static str {
    static NQN: OnceLock<String> = OnceLock::new();
    NQN.get_or_init(|| format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid::Uuid::new_v4()))
}

/// The host identifier that goes with a host NQN: its UUID if it has one, else always the same for the same name, as
/// controllers demand that the two stay together.
pub fn hostid(hostnqn: &str) -> [u8; 16] {
    let named = hostnqn.rsplit("uuid:").next().and_then(|u| uuid::Uuid::try_parse(u).ok());
    if let Some(uuid) = named {
        return *uuid.as_bytes();
    }
    let half = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, hostnqn).hash(&mut hasher);
        hasher.finish().to_le_bytes()
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&half(1));
    id[8..].copy_from_slice(&half(2));
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_identifier_follows_its_name() {
        let uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
        let id = hostid(&format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"));
        assert_eq!(uuid::Uuid::from_bytes(id).to_string(), uuid);
        assert_eq!(hostid("nqn.2026-11.io.lockstep:a"), hostid("nqn.2026-11.io.lockstep:a"));
        assert_ne!(hostid("nqn.2026-11.io.lockstep:a"), hostid("nqn.2026-11.io.lockstep:b"));
    }

    #[test]
    fn an_address_without_sense_is_refused_with_its_reason() {
        assert_eq!(resolve("127.0.0.1", "4420").map(|a| a.port()), Ok(4420));
        let error = resolve("127.0.0.1", "99999").expect_err("port").to_string();
        assert!(error.contains("127.0.0.1:99999") && error.contains("65535"), "{error}");
    }
}
