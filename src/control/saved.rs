//! The configuration as the calls that would build it again, for `framework_get_config`.
//!
//! Dumped from what there is, in the order it was made, so that what a call needs stands before it. A bdev on
//! top of a replicated volume is listed with the replication groups: loaders go through subsystems in order.

use super::methods;
use super::node::Node;
use crate::bdev::QosLimits;
use serde_json::{Value, json};
use std::collections::HashSet;

/// A part of the configuration, in the order of dependence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subsystem {
    /// Block devices.
    Bdev,
    /// Replication groups.
    Replication,
    /// The NVMe-oF target.
    Nvmf,
}

impl Subsystem {
    /// All of them, dependencies first.
    pub const ALL: [Subsystem; 3] = [Subsystem::Bdev, Subsystem::Replication, Subsystem::Nvmf];

    /// Its name in a configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Subsystem::Bdev => "bdev",
            Subsystem::Replication => "replication",
            Subsystem::Nvmf => "nvmf",
        }
    }

    /// The subsystem of this name.
    pub fn by_name(name: &str) -> Option<Subsystem> {
        Subsystem::ALL.into_iter().find(|subsystem| subsystem.name() == name)
    }

    /// What must be configured before it.
    pub fn depends_on(self) -> &'static [&'static str] {
        match self {
            Subsystem::Bdev => &[],
            Subsystem::Replication => &["bdev"],
            Subsystem::Nvmf => &["bdev", "replication"],
        }
    }

    /// Its calls, in the shape of a configuration file.
    pub fn dump(self, node: &Node) -> Vec<Value> {
        let calls = match self {
            Subsystem::Bdev => {
                bdevs(node).into_iter().filter(|made| !made.late).map(|made| made.call).collect()
            }
            Subsystem::Replication => {
                let late = bdevs(node).into_iter().filter(|made| made.late).map(|made| made.call);
                methods::dump_replication(node).into_iter().chain(late).collect()
            }
            Subsystem::Nvmf => methods::dump_nvmf(node.nvmf()),
        };
        without_repeats(calls)
    }
}

/// A call in the shape of a configuration file, without members that are null.
pub fn call(method: &str, mut params: Value) -> Value {
    drop_nulls(&mut params);
    json!({"method": method, "params": params})
}

struct Made {
    call: Value,
    /// On top of something that is no bdev method's work.
    late: bool,
}

/// Members of a bdev method's parameters that name the bdev below.
const BASE_MEMBERS: [&str; 2] = ["base_bdev_name", "base_name"];

fn bdevs(node: &Node) -> Vec<Made> {
    let controllers = node.nvme_host().controllers();
    let attached = |name: &str| {
        let controller =
            controllers.iter().find(|controller| controller.bdevs.iter().any(|bdev| bdev == name))?;
        Some(("bdev_nvme_attach_controller", methods::configured_controller(controller)))
    };
    let mut late_names = HashSet::new();
    let mut made = Vec::new();
    for bdev in node.bdevs().all() {
        let Some((method, params)) = bdev.device().config().or_else(|| attached(bdev.name())) else {
            late_names.insert(bdev.name().to_string());
            continue;
        };
        let late = BASE_MEMBERS
            .iter()
            .filter_map(|member| params.get(member).and_then(Value::as_str))
            .any(|base| late_names.contains(base));
        if late {
            late_names.insert(bdev.name().to_string());
        }
        made.push(Made { call: call(method, params), late });
        let limits = bdev.qos_limits();
        if limits != QosLimits::default() {
            let mut params = json!(limits);
            params["name"] = json!(bdev.name());
            made.push(Made { call: call("bdev_set_qos_limit", params), late });
        }
    }
    // A controller whose namespaces are all gone is attached all the same.
    for controller in controllers.iter().filter(|controller| controller.bdevs.is_empty()) {
        let params = methods::configured_controller(controller);
        made.push(Made { call: call("bdev_nvme_attach_controller", params), late: false });
    }
    made
}

/// One call may make several things, each of which names it.
fn without_repeats(calls: Vec<Value>) -> Vec<Value> {
    let mut seen = HashSet::new();
    calls.into_iter().filter(|call| seen.insert(call.to_string())).collect()
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null());
        members.values_mut().for_each(drop_nulls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsystems_are_listed_after_what_they_depend_on() {
        for (index, subsystem) in Subsystem::ALL.into_iter().enumerate() {
            for name in subsystem.depends_on() {
                let before = Subsystem::ALL.iter().position(|other| other.name() == *name).unwrap();
                assert!(before < index);
            }
        }
    }

    #[test]
    fn members_that_are_null_are_left_out_of_a_call() {
        let dumped = call("m", json!({"a": 1, "b": null, "c": {"d": null}}));
        assert_eq!(dumped, json!({"method": "m", "params": {"a": 1, "c": {}}}));
    }

    #[test]
    fn a_call_that_made_several_bdevs_is_dumped_once() {
        let calls = vec![json!({"method": "a"}), json!({"method": "b"}), json!({"method": "a"})];
        assert_eq!(without_repeats(calls), [json!({"method": "a"}), json!({"method": "b"})]);
    }
}
