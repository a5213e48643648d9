//! The NVMe-oF target: transport, subsystems, namespaces, hosts, listeners, referrals.
//!
//! SPDK answers most of what can go wrong here with -32602, and what exists already with -32603; so do we, with
//! the target's own words.

mod discovery;
mod dump;
mod listener;
mod namespace;
mod show;
mod subsystem;
mod transport;

pub use dump::dump;

use crate::control::error::{self, RpcError};
use crate::control::params::params;
use crate::control::registry::Family;
use crate::nvme::nqn::DISCOVERY_NQN;
use crate::target::nvmf::{AddressFamily, ListenAddress, TargetError};
use serde_json::{Value, json};

/// SPDK's name of its only target, accepted wherever it has a `tgt_name`.
const TARGET_NAME: &str = "nvmf_tgt";
/// The only transport type, as SPDK spells it.
const TRANSPORT_NAME: &str = "TCP";

params! {
    /// An address to listen on, or of another discovery service.
    pub struct Address {
        /// `TCP`, in any case of letters.
        trtype: String,
        /// `IPv4` or `IPv6`. Default: what `traddr` is.
        adrfam: Option<String>,
        /// IP address, numeric.
        traddr: String,
        /// Port; 0 lets the system choose one.
        trsvcid: Option<String>,
    }
}

impl Address {
    fn parse(&self) -> Result<ListenAddress, RpcError> {
        require_tcp(&self.trtype)?;
        let port = self
            .trsvcid
            .as_deref()
            .ok_or_else(|| RpcError::invalid_params("'trsvcid' is missing: a TCP port"))?;
        let address = ListenAddress::new(&self.traddr, port)?;
        match &self.adrfam {
            Some(family) if !family.eq_ignore_ascii_case(address.adrfam.name()) => {
                Err(RpcError::invalid_params(format!(
                    "'adrfam': {} is an {} address, not {family}",
                    self.traddr,
                    address.adrfam.name()
                )))
            }
            _ => Ok(address),
        }
    }
}

fn require_tcp(trtype: &str) -> Result<(), RpcError> {
    if trtype.eq_ignore_ascii_case(TRANSPORT_NAME) {
        return Ok(());
    }
    Err(RpcError::invalid_params(format!(
        "'trtype': there is no transport '{trtype}', only {TRANSPORT_NAME}"
    )))
}

fn require_target(name: &Option<String>) -> Result<(), RpcError> {
    match name.as_deref() {
        None | Some(TARGET_NAME) => Ok(()),
        Some(other) => Err(RpcError::invalid_params(format!(
            "'tgt_name': there is no target '{other}', only {TARGET_NAME}; leave it out"
        ))),
    }
}

/// The address as SPDK writes it.
fn show_address(address: &ListenAddress) -> Value {
    json!({
        "trtype": TRANSPORT_NAME,
        "adrfam": match address.adrfam {
            AddressFamily::Ipv4 => "IPv4",
            AddressFamily::Ipv6 => "IPv6",
        },
        "traddr": address.traddr,
        "trsvcid": address.trsvcid,
    })
}

/// The discovery subsystem is always there and always open; it is no part of a configuration.
fn is_discovery(nqn: &str) -> bool {
    nqn == DISCOVERY_NQN
}

impl From<TargetError> for RpcError {
    fn from(target_error: TargetError) -> RpcError {
        let message = target_error.to_string();
        match target_error {
            TargetError::TransportExists | TargetError::SubsystemExists(_) => {
                RpcError::new(error::INTERNAL_ERROR, message)
            }
            TargetError::Reactor(late) => late.into(),
            _ => RpcError::invalid_params(message),
        }
    }
}

/// The methods, in an order in which the examples can run.
pub fn family() -> Family {
    let mut methods = vec![transport::create(), transport::get()];
    methods.extend(subsystem::methods());
    methods.extend(namespace::methods());
    methods.extend(listener::methods());
    methods.extend(show::methods());
    methods.extend(discovery::methods());
    Family {
        title: "NVMe-oF target",
        about: "Subsystems are exported over NVMe/TCP. Make the transport, a subsystem, its namespaces, then a \
                listener. A namespace on a replicated volume follows the volume's role: its ANA group is optimized on \
                the primary and inaccessible on the secondary.",
        methods,
    }
}

/// What undoes the configuration, apart so that the reference's examples can use it first.
pub fn delete_family() -> Family {
    let mut methods = listener::removals();
    methods.extend(namespace::removals());
    methods.extend(subsystem::removals());
    methods.extend(discovery::removals());
    Family { title: "Taking an NVMe-oF target apart", about: "", methods }
}
