//! The target as the calls that build it again.

use super::namespace::show_hexadecimal;
use super::show::ana_word;
use super::{discovery, show_address, transport};
use crate::control::saved::call;
use crate::nvme::log::AnaState;
use crate::target::nvmf::{ListenerInfo, NamespaceInfo, SubsystemInfo, Target};
use serde_json::{Value, json};

/// Transport, subsystems with what is in them, referrals.
pub fn dump(target: &Target) -> Vec<Value> {
    let mut calls = Vec::new();
    if let Some(options) = target.transport() {
        calls.push(call("nvmf_create_transport", transport::configured(&options)));
    }
    for subsystem in target.subsystems() {
        let nqn = subsystem.options.nqn.as_str();
        if !subsystem.is_discovery {
            dump_subsystem(&mut calls, &subsystem);
        }
        // A subsystem that went away meanwhile has nothing left to dump.
        for listener in target.listeners(nqn).unwrap_or_default() {
            dump_listener(&mut calls, nqn, subsystem.options.max_namespaces, &listener);
        }
    }
    for referral in target.referrals() {
        calls.push(call("nvmf_discovery_add_referral", discovery::configured(&referral)));
    }
    calls
}

fn dump_subsystem(calls: &mut Vec<Value>, subsystem: &SubsystemInfo) {
    let options = &subsystem.options;
    calls.push(call(
        "nvmf_create_subsystem",
        json!({
            "nqn": options.nqn,
            "serial_number": options.serial_number,
            "model_number": options.model_number,
            "allow_any_host": options.allow_any_host,
            "ana_reporting": options.ana_reporting,
            "min_cntlid": options.min_cntlid,
            "max_cntlid": options.max_cntlid,
            "max_namespaces": options.max_namespaces,
        }),
    ));
    for host in &subsystem.hosts {
        calls.push(call("nvmf_subsystem_add_host", json!({"nqn": options.nqn, "host": host})));
    }
    for namespace in &subsystem.namespaces {
        let params = json!({"nqn": options.nqn, "namespace": dump_namespace(namespace)});
        calls.push(call("nvmf_subsystem_add_ns", params));
    }
}

fn dump_namespace(namespace: &NamespaceInfo) -> Value {
    let asked = &namespace.options;
    json!({
        "bdev_name": namespace.bdev_name,
        "nsid": namespace.nsid,
        "nguid": asked.nguid.map(|bytes| show_hexadecimal(&bytes)),
        "eui64": asked.eui64.map(|bytes| show_hexadecimal(&bytes)),
        "uuid": asked.uuid,
        "anagrpid": namespace.anagrpid,
        "secondary_view": (!asked.follows_access).then_some(true),
    })
}

fn dump_listener(calls: &mut Vec<Value>, nqn: &str, groups: u32, listener: &ListenerInfo) {
    let address = show_address(&listener.address);
    let mut added = json!({"nqn": nqn, "listen_address": address});
    // Every group in one state is how `ana_state` of the listener itself is kept.
    let common = listener.ana_states.first().map(|(_, state)| *state);
    let uniform = listener.ana_states.len() == groups as usize
        && listener.ana_states.iter().all(|(_, state)| Some(*state) == common);
    if uniform && let Some(state) = common {
        added["ana_state"] = json!(ana_word(state));
    }
    calls.push(call("nvmf_subsystem_add_listener", added));
    if uniform {
        return;
    }
    for (group, state) in listener.ana_states.iter().filter(|(_, state)| *state != AnaState::Optimized) {
        calls.push(call(
            "nvmf_subsystem_listener_set_ana_state",
            json!({"nqn": nqn, "listen_address": address, "ana_state": ana_word(*state), "anagrpid": group}),
        ));
    }
}
