//! Listeners and their ANA states.

use super::super::{only, patiently};
use super::{Address, require_target};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::{choice, params};
use crate::control::registry::{Callable, Method};
use crate::nvme::log::AnaState;
use crate::target::nvmf::TargetError;
use std::io::ErrorKind;
use std::sync::Arc;

choice! {
    /// States that can be set.
    pub enum AnaWord {
        /// Use this path.
        Optimized = "optimized",
        /// Use it if there is no better one.
        NonOptimized = "non_optimized",
        /// Do not use it.
        Inaccessible = "inaccessible",
    }
}

impl AnaWord {
    fn state(self) -> AnaState {
        match self {
            AnaWord::Optimized => AnaState::Optimized,
            AnaWord::NonOptimized => AnaState::NonOptimized,
            AnaWord::Inaccessible => AnaState::Inaccessible,
        }
    }
}

params! {
    /// Parameters of `nvmf_subsystem_add_listener`.
    pub struct AddListener {
        /// Name of the subsystem; the discovery subsystem's to make that one known by its own name.
        nqn: String,
        /// Where to listen.
        listen_address: Address,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
        /// State of every ANA group on this listener. Default: `optimized`.
        ana_state: Option<AnaWord>,
        /// `false`: connections are not encrypted.
        secure_channel: Option<bool>,
        /// Left out.
        sock_impl: Option<String>,
        /// -1: any NUMA node.
        numa_id: Option<i32>,
    }
}

params! {
    /// Parameters of `nvmf_subsystem_remove_listener`.
    pub struct RemoveListener {
        /// Name of the subsystem.
        nqn: String,
        /// Where it listens.
        listen_address: Address,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    /// Parameters of `nvmf_subsystem_listener_set_ana_state`.
    pub struct SetAnaState {
        /// Name of the subsystem.
        nqn: String,
        /// Where it listens.
        listen_address: Address,
        /// The state to report. A group with a namespace that its role makes inaccessible stays so.
        ana_state: AnaWord,
        /// Only this group. Default: every group of the subsystem.
        anagrpid: Option<u32>,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("nvmf_subsystem_add_listener", Callable::Runtime, add)
            .summary("Lets hosts connect to a subsystem at an address. Several subsystems may share one.")
            .errors(&[(-95, "a parameter asks for something that this node does not do")])
            .example(
                r#"{"nqn": "nqn.2026-01.io.example:disks",
                    "listen_address": {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"}}"#,
            ),
        Method::new("nvmf_subsystem_listener_set_ana_state", Callable::Runtime, set_ana_state)
            .summary("Changes how good a path over this listener is. Connected hosts are told.")
            .example(
                r#"{"nqn": "nqn.2026-01.io.example:disks", "ana_state": "non_optimized", "anagrpid": 1,
                    "listen_address": {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"}}"#,
            ),
    ]
}

pub fn removals() -> Vec<Method> {
    vec![
        Method::new("nvmf_subsystem_remove_listener", Callable::Runtime, remove)
            .summary("Stops listening, and closes the subsystem's connections that came in there.")
            .example(
                r#"{"nqn": "nqn.2026-01.io.example:disks",
                    "listen_address": {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"}}"#,
            ),
    ]
}

fn add(node: &Arc<Node>, params: AddListener) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    only("secure_channel", params.secure_channel, &[false])?;
    only("sock_impl", params.sock_impl, &[])?;
    only("numa_id", params.numa_id, &[-1])?;
    let wanted = params.listen_address.parse()?;
    let in_use = |error: &TargetError| matches!(error, TargetError::Listen { error, .. } if error.kind() == ErrorKind::AddrInUse);
    let address = patiently(node, in_use, || node.nvmf().add_listener(&params.nqn, &wanted))?;
    if let Some(word) = params.ana_state
        && let Err(error) = node.nvmf().listener_set_ana_state(&params.nqn, &address, word.state(), None)
    {
        // Both or neither: what could not be set right must not stay open.
        node.nvmf().remove_listener(&params.nqn, &address)?;
        return Err(error.into());
    }
    Ok(true)
}

fn set_ana_state(node: &Arc<Node>, params: SetAnaState) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    let address = params.listen_address.parse()?;
    node.nvmf().listener_set_ana_state(&params.nqn, &address, params.ana_state.state(), params.anagrpid)?;
    Ok(true)
}

fn remove(node: &Arc<Node>, params: RemoveListener) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    node.nvmf().remove_listener(&params.nqn, &params.listen_address.parse()?)?;
    Ok(true)
}
