//! Referrals: other discovery services that ours names.

use super::super::only;
use super::{Address, require_target, show_address};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Method};
use crate::nvme::nqn::DISCOVERY_NQN;
use crate::target::nvmf::Referral;
use serde_json::{Value, json};
use std::sync::Arc;

params! {
    /// Parameters of `nvmf_discovery_add_referral`.
    pub struct AddReferral {
        /// Where the other service listens.
        address: Address,
        /// Its name. Default: the discovery subsystem's.
        subnqn: Option<String>,
        /// Tell hosts that the other service needs an encrypted connection. Default: `false`.
        secure_channel: Option<bool>,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
        /// Left out.
        allow_any_host: Option<bool>,
    }
}

params! {
    /// Parameters of `nvmf_discovery_remove_referral`.
    pub struct RemoveReferral {
        /// Where the other service listens.
        address: Address,
        /// Its name. Default: the discovery subsystem's.
        subnqn: Option<String>,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    /// Only the target's name.
    pub struct TargetOnly {
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("nvmf_discovery_add_referral", Callable::Runtime, add)
            .summary("Names another discovery service in the discovery log.")
            .example(r#"{"address": {"trtype": "TCP", "traddr": "192.0.2.7", "trsvcid": "8009"}}"#),
        Method::new("nvmf_discovery_get_referrals", Callable::Runtime, get)
            .summary("Lists the referrals.")
            .result("Array of `address`, `secure_channel`, `subnqn`."),
    ]
}

pub fn removals() -> Vec<Method> {
    vec![
        Method::new("nvmf_discovery_remove_referral", Callable::Runtime, remove)
            .summary("Names another discovery service no more.")
            .example(r#"{"address": {"trtype": "TCP", "traddr": "192.0.2.7", "trsvcid": "8009"}}"#),
    ]
}

fn add(node: &Arc<Node>, params: AddReferral) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    only("allow_any_host", params.allow_any_host, &[])?;
    node.nvmf().add_referral(Referral {
        address: params.address.parse()?,
        secure_channel: params.secure_channel.unwrap_or(false),
        subnqn: params.subnqn.unwrap_or_else(|| DISCOVERY_NQN.to_string()),
    })?;
    Ok(true)
}

fn remove(node: &Arc<Node>, params: RemoveReferral) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    let subnqn = params.subnqn.as_deref().unwrap_or(DISCOVERY_NQN);
    node.nvmf().remove_referral(&params.address.parse()?, subnqn)?;
    Ok(true)
}

fn get(node: &Arc<Node>, params: TargetOnly) -> Result<Vec<Value>, RpcError> {
    require_target(&params.tgt_name)?;
    Ok(node.nvmf().referrals().iter().map(configured).collect())
}

/// The parameters of `nvmf_discovery_add_referral` that make it again.
pub fn configured(referral: &Referral) -> Value {
    json!({
        "address": show_address(&referral.address),
        "secure_channel": referral.secure_channel,
        "subnqn": referral.subnqn,
    })
}
