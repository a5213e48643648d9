//! What the target has and does, in SPDK's shapes.

use super::discovery::TargetOnly;
use super::namespace::show_hexadecimal;
use super::subsystem::Subsystem;
use super::{TRANSPORT_NAME, is_discovery, require_target, show_address};
use crate::control::error::RpcError;
use crate::control::methods::reactors::TICK_RATE_HZ;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Method};
use crate::nvme::log::AnaState;
use crate::target::nvmf::{NamespaceInfo, SubsystemInfo, TargetError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

params! {
    /// Parameters of `nvmf_get_subsystems`.
    pub struct GetSubsystems {
        /// Only this subsystem. Default: all of them.
        nqn: Option<String>,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

pub fn methods() -> Vec<Method> {
    let example = r#"{"nqn": "nqn.2026-01.io.example:disks"}"#;
    vec![
        Method::new("nvmf_get_subsystems", Callable::Runtime, get_subsystems)
            .summary("Shows subsystems, the discovery subsystem first.")
            .result(
                "Array of `nqn`, `subtype`, `listen_addresses`, `allow_any_host`, `hosts`, and for all but discovery \
                 `serial_number`, `model_number`, `max_namespaces`, `min_cntlid`, `max_cntlid`, `ana_reporting`, \
                 `namespaces` (`nsid`, `bdev_name`, `nguid`, `eui64`, `uuid`, `anagrpid`, `secondary_view`).",
            )
            .example(example),
        Method::new("nvmf_subsystem_get_listeners", Callable::Runtime, get_listeners)
            .summary("Shows a subsystem's listeners and the ANA states that were set on them.")
            .result("Array of `address`, `ana_states` (`ana_group`, `ana_state`).")
            .example(example),
        Method::new("nvmf_subsystem_get_controllers", Callable::Runtime, get_controllers)
            .summary("Shows a subsystem's controllers, one per connected host.")
            .result("Array of `cntlid`, `cntrltype`, `hostnqn`, `hostid`, `num_io_qpairs`, `listen_address`, `enabled`.")
            .example(example),
        Method::new("nvmf_subsystem_get_qpairs", Callable::Runtime, get_qpairs)
            .summary("Shows a subsystem's connected queues, admin queues with them.")
            .result(
                "Array of `cntlid`, `qid`, `state`, `thread` (its reactor), `sqsize` (0-based), `hostnqn`, \
                 `listen_address`, `peer_address`.",
            )
            .example(example),
        Method::new("nvmf_get_stats", Callable::Runtime, get_stats)
            .summary("Counts connections and commands of each reactor.")
            .result(
                "`tick_rate`, `poll_groups`: array of `name`, `admin_qpairs`, `io_qpairs` (since the start), \
                 `current_admin_qpairs`, `current_io_qpairs`, `pending_bdev_io` (commands that wait for a buffer), \
                 `completed_nvme_io`, `transports`.",
            ),
    ]
}

fn get_subsystems(node: &Arc<Node>, params: GetSubsystems) -> Result<Vec<Value>, RpcError> {
    require_target(&params.tgt_name)?;
    let all = node.nvmf().subsystems();
    match params.nqn {
        None => Ok(all.iter().map(show_subsystem).collect()),
        Some(nqn) => match all.iter().find(|subsystem| subsystem.options.nqn == nqn) {
            Some(subsystem) => Ok(vec![show_subsystem(subsystem)]),
            None => Err(TargetError::NoSubsystem(nqn).into()),
        },
    }
}

fn show_subsystem(subsystem: &SubsystemInfo) -> Value {
    let options = &subsystem.options;
    let mut shown = json!({
        "nqn": options.nqn,
        "subtype": if subsystem.is_discovery { "Discovery" } else { "NVMe" },
        "listen_addresses": subsystem.listeners.iter().map(show_address).collect::<Vec<_>>(),
        "allow_any_host": options.allow_any_host,
        "hosts": subsystem.hosts.iter().map(|nqn| json!({"nqn": nqn})).collect::<Vec<_>>(),
    });
    if !subsystem.is_discovery {
        shown["serial_number"] = json!(options.serial_number);
        shown["model_number"] = json!(options.model_number);
        shown["max_namespaces"] = json!(options.max_namespaces);
        shown["min_cntlid"] = json!(options.min_cntlid);
        shown["max_cntlid"] = json!(options.max_cntlid);
        shown["ana_reporting"] = json!(options.ana_reporting);
        shown["namespaces"] = subsystem.namespaces.iter().map(show_namespace).collect();
    }
    shown
}

fn show_namespace(namespace: &NamespaceInfo) -> Value {
    let mut shown = json!({
        "nsid": namespace.nsid,
        "bdev_name": namespace.bdev_name,
        // SPDK's older name for it, which its tools still read.
        "name": namespace.bdev_name,
        "uuid": Uuid::from_bytes(namespace.ids.uuid),
        "anagrpid": namespace.anagrpid,
        "secondary_view": !namespace.options.follows_access,
    });
    for (name, bytes) in [("nguid", &namespace.ids.nguid[..]), ("eui64", &namespace.ids.eui64[..])] {
        if bytes.iter().any(|byte| *byte != 0) {
            shown[name] = json!(show_hexadecimal(bytes));
        }
    }
    shown
}

/// SPDK's word for a state.
pub fn ana_word(state: AnaState) -> &'static str {
    match state {
        AnaState::Optimized => "optimized",
        AnaState::NonOptimized => "non_optimized",
        AnaState::Inaccessible => "inaccessible",
        AnaState::PersistentLoss => "persistent_loss",
        AnaState::Change => "change",
    }
}

fn get_listeners(node: &Arc<Node>, params: Subsystem) -> Result<Vec<Value>, RpcError> {
    require_target(&params.tgt_name)?;
    let listeners = node.nvmf().listeners(&params.nqn)?;
    let groups: Vec<u32> = node
        .nvmf()
        .subsystems()
        .iter()
        .filter(|subsystem| subsystem.options.nqn == params.nqn)
        .flat_map(|subsystem| subsystem.namespaces.iter().map(|namespace| namespace.anagrpid))
        .collect();
    let shown = listeners.iter().map(|listener| {
        // Groups that have namespaces, and groups that were set: SPDK lists every possible one.
        let mut states: BTreeMap<u32, AnaState> =
            groups.iter().map(|group| (*group, AnaState::Optimized)).collect();
        states.extend(listener.ana_states.iter().copied());
        let states: Vec<Value> = states
            .iter()
            .map(|(group, state)| json!({"ana_group": group, "ana_state": ana_word(*state)}))
            .collect();
        json!({"address": show_address(&listener.address), "ana_states": states})
    });
    Ok(shown.collect())
}

fn get_controllers(node: &Arc<Node>, params: Subsystem) -> Result<Vec<Value>, RpcError> {
    require_target(&params.tgt_name)?;
    let kind = if is_discovery(&params.nqn) { "discovery" } else { "io" };
    let controllers = node.nvmf().controllers(&params.nqn)?;
    let shown = controllers.iter().map(|controller| {
        json!({
            "cntlid": controller.cntlid,
            "cntrltype": kind,
            "hostnqn": controller.hostnqn,
            "hostid": Uuid::from_bytes(controller.hostid),
            "num_io_qpairs": controller.num_io_queues,
            "listen_address": show_address(&controller.listener),
            "enabled": controller.enabled,
        })
    });
    Ok(shown.collect())
}

fn get_qpairs(node: &Arc<Node>, params: Subsystem) -> Result<Vec<Value>, RpcError> {
    require_target(&params.tgt_name)?;
    let stats = node.reactors().stats();
    let queues = node.nvmf().queues(&params.nqn)?;
    let shown = queues.iter().map(|queue| {
        json!({
            "cntlid": queue.cntlid,
            "qid": queue.qid,
            "state": "enabled",
            "thread": stats.get(queue.reactor).map(|reactor| format!("reactor_{}", reactor.core)),
            "sqsize": queue.sqsize,
            "hostnqn": queue.hostnqn,
            "listen_address": show_address(&queue.listener),
            "peer_address": show_address(&queue.peer),
        })
    });
    Ok(shown.collect())
}

fn get_stats(node: &Arc<Node>, params: TargetOnly) -> Result<Value, RpcError> {
    require_target(&params.tgt_name)?;
    let groups: Vec<Value> = node
        .nvmf()
        .stats()?
        .iter()
        .map(|group| {
            json!({
                "name": format!("reactor_{}", group.core),
                "admin_qpairs": group.admin_qpairs,
                "io_qpairs": group.io_qpairs,
                "current_admin_qpairs": group.current_admin_qpairs,
                "current_io_qpairs": group.current_io_qpairs,
                "pending_bdev_io": group.pending_bdev_io,
                "completed_nvme_io": group.completed_nvme_io,
                "transports": [{"trtype": TRANSPORT_NAME}],
            })
        })
        .collect();
    Ok(json!({"tick_rate": TICK_RATE_HZ, "poll_groups": groups}))
}
