//! Exports bdevs over NVMe/TCP in SPDK's dialect, as every suite needs it.

use super::node::Node;
use serde_json::{Value, json};

/// Where the nodes of one namespace listen: an address of the namespace's own, because a guest reaches it under the
/// same name as discovery tells it. (127.0.0.1 would be the guest itself.)
pub const ADDRESS: &str = "10.90.0.1";

pub fn create_transport(node: &Node) {
    node.rpc("nvmf_create_transport", json!({"trtype": "TCP"}));
}

/// A subsystem open to every host, with one namespace on `bdev`.
pub struct Subsystem<'a> {
    pub nqn: &'a str,
    pub bdev: &'a str,
    /// Two nodes that export one volume take controller ids from separate ranges.
    pub controller_ids: (u16, u16),
    /// The same on both nodes that export one volume.
    pub uuid: Option<&'a str>,
}

impl<'a> Subsystem<'a> {
    pub fn new(nqn: &'a str, bdev: &'a str) -> Subsystem<'a> {
        Subsystem { nqn, bdev, controller_ids: (1, 0xffef), uuid: None }
    }

    pub fn create(&self, node: &Node) {
        node.rpc(
            "nvmf_create_subsystem",
            json!({
                "nqn": self.nqn, "allow_any_host": true, "serial_number": "LOCKSTEP0001", "model_number": "Lockstep",
                "ana_reporting": true, "min_cntlid": self.controller_ids.0, "max_cntlid": self.controller_ids.1,
            }),
        );
        let mut namespace = json!({"bdev_name": self.bdev});
        if let Some(uuid) = self.uuid {
            namespace["uuid"] = json!(uuid);
            namespace["nguid"] = json!(uuid.replace('-', ""));
        }
        node.rpc("nvmf_subsystem_add_ns", json!({"nqn": self.nqn, "namespace": namespace}));
    }

    pub fn listen(&self, node: &Node, address: &str, port: u16) {
        node.rpc("nvmf_subsystem_add_listener", self.listener(address, port));
    }

    pub fn listener(&self, address: &str, port: u16) -> Value {
        json!({
            "nqn": self.nqn,
            "listen_address": {"trtype": "TCP", "adrfam": "IPv4", "traddr": address, "trsvcid": port.to_string()},
        })
    }

    pub fn set_ana_state(&self, node: &Node, address: &str, port: u16, state: &str) {
        let mut params = self.listener(address, port);
        params["ana_state"] = json!(state);
        node.rpc("nvmf_subsystem_listener_set_ana_state", params);
    }
}
