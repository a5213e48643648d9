//! Subsystems and the hosts that may use them.

use super::super::only;
use super::require_target;
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Method};
use crate::target::nvmf::SubsystemOptions;
use std::sync::Arc;

params! {
    /// Parameters of `nvmf_create_subsystem`.
    pub struct CreateSubsystem {
        /// Name, `nqn.YYYY-MM.reverse.domain:name`.
        nqn: String,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
        /// At most 20 printable ASCII characters. Default: 20 zeroes.
        serial_number: Option<String>,
        /// At most 40 printable ASCII characters. Default: `Lockstep replicated volume`.
        model_number: Option<String>,
        /// Let every host connect. Default: `false`, only those added by `nvmf_subsystem_add_host`.
        allow_any_host: Option<bool>,
        /// Report ANA even where no namespace is replicated. Default: `false`.
        ana_reporting: Option<bool>,
        /// Lowest controller identifier. Two nodes that export one volume need ranges apart. Default: 1.
        min_cntlid: Option<u16>,
        /// Highest controller identifier. Default: 65519.
        max_cntlid: Option<u16>,
        /// Highest namespace identifier, 1 to 1024. Default (or 0): 32.
        max_namespaces: Option<u32>,
        /// 0: no limit of its own.
        dmrsl: Option<u32>,
        /// 0: no limit of its own.
        wzsl: Option<u32>,
        /// `false`.
        passthrough: Option<bool>,
        /// `false`: there is no subsystem reset.
        enable_nssr: Option<bool>,
        /// Left out.
        admin_label: Option<String>,
    }
}

params! {
    /// A subsystem.
    pub struct Subsystem {
        /// Name of the subsystem.
        nqn: String,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    /// Parameters of `nvmf_subsystem_add_host`.
    pub struct AddHost {
        /// Name of the subsystem.
        nqn: String,
        /// Name of the host.
        host: String,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Left out: connections are not encrypted.
        psk: Option<String>,
        /// Left out: hosts are not authenticated.
        dhchap_key: Option<String>,
        /// Left out.
        dhchap_ctrlr_key: Option<String>,
    }
}

params! {
    /// Parameters of `nvmf_subsystem_remove_host`.
    pub struct RemoveHost {
        /// Name of the subsystem.
        nqn: String,
        /// Name of the host.
        host: String,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Left out: the host's connections are closed at once.
        timeout_ms: Option<u32>,
    }
}

params! {
    /// Parameters of `nvmf_subsystem_allow_any_host`.
    pub struct AllowAnyHost {
        /// Name of the subsystem.
        nqn: String,
        /// Whether every host may connect, or only those added.
        allow_any_host: bool,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("nvmf_create_subsystem", Callable::Runtime, create)
            .summary("Makes a subsystem, without namespaces and listeners.")
            .errors(&[(-32603, "a subsystem of this name exists"), (-95, "a parameter asks for what is not done")])
            .example(
                r#"{"nqn": "nqn.2026-01.io.example:disks", "serial_number": "LS0001", "model_number": "Lockstep",
                    "ana_reporting": true, "max_namespaces": 4}"#,
            ),
        Method::new("nvmf_subsystem_add_host", Callable::Runtime, add_host)
            .summary("Lets a host connect.")
            .example(r#"{"nqn": "nqn.2026-01.io.example:disks", "host": "nqn.2026-01.io.example:host"}"#),
        Method::new("nvmf_subsystem_allow_any_host", Callable::Runtime, allow_any_host)
            .summary("Lets every host connect, or only those added.")
            .example(r#"{"nqn": "nqn.2026-01.io.example:disks", "allow_any_host": true}"#),
    ]
}

pub fn removals() -> Vec<Method> {
    vec![
        Method::new("nvmf_subsystem_remove_host", Callable::Runtime, remove_host)
            .summary("Lets a host connect no more. Its connections are closed unless every host is allowed.")
            .example(r#"{"nqn": "nqn.2026-01.io.example:disks", "host": "nqn.2026-01.io.example:host"}"#),
        Method::new("nvmf_delete_subsystem", Callable::Runtime, delete)
            .summary("Deletes a subsystem with all that is in it, and closes its connections.")
            .example(r#"{"nqn": "nqn.2026-01.io.example:disks"}"#),
    ]
}

fn create(node: &Arc<Node>, params: CreateSubsystem) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    only("dmrsl", params.dmrsl, &[0])?;
    only("wzsl", params.wzsl, &[0])?;
    only("passthrough", params.passthrough, &[false])?;
    only("enable_nssr", params.enable_nssr, &[false])?;
    only("admin_label", params.admin_label, &[])?;
    let preset = SubsystemOptions::new(&params.nqn);
    node.nvmf().create_subsystem(SubsystemOptions {
        serial_number: params.serial_number.unwrap_or(preset.serial_number),
        model_number: params.model_number.unwrap_or(preset.model_number),
        allow_any_host: params.allow_any_host.unwrap_or(preset.allow_any_host),
        ana_reporting: params.ana_reporting.unwrap_or(preset.ana_reporting),
        min_cntlid: params.min_cntlid.unwrap_or(preset.min_cntlid),
        max_cntlid: params.max_cntlid.unwrap_or(preset.max_cntlid),
        max_namespaces: params.max_namespaces.filter(|count| *count != 0).unwrap_or(preset.max_namespaces),
        nqn: preset.nqn,
    })?;
    Ok(true)
}

fn delete(node: &Arc<Node>, params: Subsystem) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    node.nvmf().delete_subsystem(&params.nqn)?;
    Ok(true)
}

fn add_host(node: &Arc<Node>, params: AddHost) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    only("psk", params.psk, &[])?;
    only("dhchap_key", params.dhchap_key, &[])?;
    only("dhchap_ctrlr_key", params.dhchap_ctrlr_key, &[])?;
    node.nvmf().add_host(&params.nqn, &params.host)?;
    Ok(true)
}

fn remove_host(node: &Arc<Node>, params: RemoveHost) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    only("timeout_ms", params.timeout_ms, &[])?;
    node.nvmf().remove_host(&params.nqn, &params.host)?;
    Ok(true)
}

fn allow_any_host(node: &Arc<Node>, params: AllowAnyHost) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    node.nvmf().allow_any_host(&params.nqn, params.allow_any_host)?;
    Ok(true)
}
