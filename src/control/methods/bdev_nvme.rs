//! Namespaces of other targets as bdevs.

use super::only;
use crate::bdev::nvme::{ControllerInfo, ControllerOptions, resolve};
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::{choice, params};
use crate::control::registry::{Callable, Family, Method};
use crate::nvme::tcp::Digests;
use rustix::io::Errno;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// SPDK's way to say that a lost controller is tried for ever.
const FOR_EVER: i64 = -1;
/// The only transport type.
const TRANSPORT: &str = "TCP";

choice! {
    /// SPDK's ways to use several paths.
    pub enum Multipath {
        /// One path a controller.
        Disable = "disable",
    }
}

params! {
    /// Parameters of `bdev_nvme_attach_controller`.
    pub struct AttachController {
        /// Name. Its namespaces become the bdevs `<name>n<nsid>`.
        name: String,
        /// `TCP`, in any case of letters.
        trtype: String,
        /// Address or host name of the target.
        traddr: String,
        /// Port. Default: 4420.
        trsvcid: Option<String>,
        /// `IPv4` or `IPv6`; what `traddr` is decides.
        adrfam: Option<String>,
        /// Name of the subsystem.
        subnqn: String,
        /// This host's name. Default: one that the node makes up at its start.
        hostnqn: Option<String>,
        /// Checksums on headers. Default: `false`.
        hdgst: Option<bool>,
        /// Checksums on data. Default: `false`.
        ddgst: Option<bool>,
        /// I/O queues to ask for. Default (or 0): one for each reactor.
        num_io_queues: Option<u16>,
        /// How long a lost controller is tried again before its bdevs go, s; -1: for ever, 0: not at all.
        /// Default: 600.
        ctrlr_loss_timeout_sec: Option<i64>,
        /// Longest time between two attempts, s. Default: 2.
        reconnect_delay_sec: Option<u64>,
        /// How long I/O waits for a lost controller before it fails, s; 0: as long as the attempts go on. Default: 0.
        fast_io_fail_timeout_sec: Option<u64>,
        /// Default: `disable`, the only one there is: a multipath host is above this one.
        multipath: Option<Multipath>,
        /// Left out: any address of this machine.
        hostaddr: Option<String>,
        /// Left out: any port.
        hostsvcid: Option<String>,
        /// Left out.
        priority: Option<String>,
        /// `false`: no protection information.
        prchk_reftag: Option<bool>,
        /// `false`.
        prchk_guard: Option<bool>,
        /// Left out: 5 s.
        fabrics_connect_timeout_us: Option<u64>,
        /// Left out: connections are not encrypted.
        psk: Option<String>,
        /// Left out.
        max_bdevs: Option<u32>,
        /// Left out: no authentication.
        dhchap_key: Option<String>,
        /// Left out.
        dhchap_ctrlr_key: Option<String>,
        /// `false`.
        allow_unrecognized_csi: Option<bool>,
        /// Left out.
        multipath_opts: Option<Map<String, Value>>,
        /// `false`.
        disable_sq_flow_control: Option<bool>,
    }
}

params! {
    /// Parameters of `bdev_nvme_detach_controller`.
    pub struct DetachController {
        /// The controller.
        name: String,
        /// With the other members of an address: detach only if this is its path.
        trtype: Option<String>,
        /// Address of the path.
        traddr: Option<String>,
        /// Port of the path.
        trsvcid: Option<String>,
        /// Left to `traddr`.
        adrfam: Option<String>,
        /// Name of the subsystem.
        subnqn: Option<String>,
        /// Left out.
        hostaddr: Option<String>,
        /// Left out.
        hostsvcid: Option<String>,
    }
}

params! {
    /// Parameters of `bdev_nvme_get_controllers`.
    pub struct GetControllers {
        /// Only this controller. Default: all of them.
        name: Option<String>,
    }
}

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "NVMe/TCP host",
        about: "A node can use the namespaces of another target, as it uses its own disks.",
        methods: vec![
        Method::new("bdev_nvme_attach_controller", Callable::Runtime, attach)
            .summary(
                "Connects to an NVMe/TCP target and makes its namespaces bdevs. A lost connection is made again, \
                 while I/O waits.",
            )
            .result("Array of the bdevs' names.")
            .errors(&[
                (-17, "a controller or bdev of this name exists"),
                (-111, "nobody listens at the address"),
                (-22, "the target refuses, or a parameter is not possible"),
                (-95, "a parameter asks for something that this node does not do"),
            ])
            .example(
                r#"{"name": "Nvme0", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "4420",
                    "subnqn": "nqn.2026-01.io.example:disks"}"#,
            ),
        Method::new("bdev_nvme_get_controllers", Callable::Runtime, get_controllers)
            .summary("Shows the controllers that this node is connected to.")
            .result(
                "Array of `name` and `ctrlrs`: `state`, `trid` (`trtype`, `adrfam`, `traddr`, `trsvcid`, `subnqn`), \
                 `cntlid`, `host` (`nqn`), `model_number`, `serial_number`, `reconnects`, `bdevs`.",
            )
            .errors(&[(-19, "no controller has this name")])
            .example(r#"{"name": "Nvme0"}"#),
        Method::new("bdev_nvme_detach_controller", Callable::Runtime, detach)
            .summary("Deletes a controller's bdevs and ends the connection.")
            .errors(&[(-19, "no controller has this name, or not by this path"), (-1, "one of its bdevs is in use")])
            .example(r#"{"name": "Nvme0"}"#),
        ],
    }
}

fn attach(node: &Arc<Node>, params: AttachController) -> Result<Vec<String>, RpcError> {
    if !params.trtype.eq_ignore_ascii_case(TRANSPORT) {
        return Err(RpcError::invalid_params(format!(
            "'trtype': there is no '{}', only {TRANSPORT}",
            params.trtype
        )));
    }
    for (name, value) in [
        ("hostaddr", &params.hostaddr),
        ("hostsvcid", &params.hostsvcid),
        ("priority", &params.priority),
        ("psk", &params.psk),
        ("dhchap_key", &params.dhchap_key),
        ("dhchap_ctrlr_key", &params.dhchap_ctrlr_key),
    ] {
        only(name, value.as_ref(), &[])?;
    }
    for (name, value) in [
        ("prchk_reftag", params.prchk_reftag),
        ("prchk_guard", params.prchk_guard),
        ("allow_unrecognized_csi", params.allow_unrecognized_csi),
        ("disable_sq_flow_control", params.disable_sq_flow_control),
    ] {
        only(name, value, &[false])?;
    }
    only("fabrics_connect_timeout_us", params.fabrics_connect_timeout_us, &[])?;
    only("max_bdevs", params.max_bdevs, &[])?;
    only("multipath_opts", params.multipath_opts.map(Value::Object), &[])?;
    only("multipath", params.multipath.map(|Multipath::Disable| "disable"), &["disable"])?;

    let address = resolve(&params.traddr, params.trsvcid.as_deref().unwrap_or("4420"))?;
    if params.adrfam.is_some_and(|family| !family.eq_ignore_ascii_case(family_of(&address))) {
        return Err(RpcError::invalid_params(format!(
            "'adrfam': {address} is an {} address",
            family_of(&address)
        )));
    }
    let preset = ControllerOptions::new(&params.name, address, &params.subnqn);
    let options = ControllerOptions {
        hostnqn: params.hostnqn.unwrap_or(preset.hostnqn),
        digests: Digests { header: params.hdgst.unwrap_or(false), data: params.ddgst.unwrap_or(false) },
        num_io_queues: params.num_io_queues.unwrap_or(preset.num_io_queues),
        loss_timeout: match params.ctrlr_loss_timeout_sec {
            None => preset.loss_timeout,
            Some(FOR_EVER) => None,
            Some(seconds) => Some(Duration::from_secs(u64::try_from(seconds).map_err(|_| {
                RpcError::invalid_params("'ctrlr_loss_timeout_sec' is -1 or a number of seconds")
            })?)),
        },
        reconnect_delay: params.reconnect_delay_sec.map_or(preset.reconnect_delay, Duration::from_secs),
        fast_io_fail: params
            .fast_io_fail_timeout_sec
            .filter(|seconds| *seconds != 0)
            .map(Duration::from_secs),
        name: preset.name,
        address: preset.address,
        subnqn: preset.subnqn,
        depth: preset.depth,
        keep_alive: preset.keep_alive,
        command_timeout: preset.command_timeout,
    };
    Ok(node.nvme_host().attach(options)?)
}

fn family_of(address: &std::net::SocketAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn find(node: &Node, name: &str) -> Result<ControllerInfo, RpcError> {
    let found = node.nvme_host().controllers().into_iter().find(|controller| controller.options.name == name);
    found.ok_or_else(|| RpcError::errno(Errno::NODEV, format!("there is no NVMe controller '{name}'")))
}

fn detach(node: &Arc<Node>, params: DetachController) -> Result<bool, RpcError> {
    only("hostaddr", params.hostaddr, &[])?;
    only("hostsvcid", params.hostsvcid, &[])?;
    let options = find(node, &params.name)?.options;
    let differs = |given: &Option<String>, value: &str| {
        given.as_ref().is_some_and(|given| !given.eq_ignore_ascii_case(value))
    };
    if differs(&params.trtype, TRANSPORT)
        || differs(&params.traddr, &options.address.ip().to_string())
        || differs(&params.trsvcid, &options.address.port().to_string())
        || differs(&params.adrfam, family_of(&options.address))
        || differs(&params.subnqn, &options.subnqn)
    {
        return Err(RpcError::errno(
            Errno::NODEV,
            format!("controller '{}' is reached at {}, {}", params.name, options.address, options.subnqn),
        ));
    }
    node.nvme_host().detach(&params.name)?;
    Ok(true)
}

fn get_controllers(node: &Arc<Node>, params: GetControllers) -> Result<Vec<Value>, RpcError> {
    let controllers = match params.name {
        Some(name) => vec![find(node, &name)?],
        None => node.nvme_host().controllers(),
    };
    Ok(controllers.iter().map(show).collect())
}

fn show(controller: &ControllerInfo) -> Value {
    let options = &controller.options;
    json!({
        "name": options.name,
        "ctrlrs": [{
            "state": controller.life.as_str(),
            "trid": {
                "trtype": TRANSPORT,
                "adrfam": family_of(&options.address),
                "traddr": options.address.ip(),
                "trsvcid": options.address.port().to_string(),
                "subnqn": options.subnqn,
            },
            "cntlid": controller.facts.cntlid,
            "host": {"nqn": options.hostnqn},
            "model_number": controller.facts.model,
            "serial_number": controller.facts.serial,
            "reconnects": controller.reconnects,
            "bdevs": controller.bdevs,
        }],
    })
}

/// The parameters of `bdev_nvme_attach_controller` that attach it again.
pub fn configured(controller: &ControllerInfo) -> Value {
    let options = &controller.options;
    json!({
        "name": options.name,
        "trtype": TRANSPORT,
        "adrfam": family_of(&options.address),
        "traddr": options.address.ip(),
        "trsvcid": options.address.port().to_string(),
        "subnqn": options.subnqn,
        "hostnqn": options.hostnqn,
        "hdgst": options.digests.header,
        "ddgst": options.digests.data,
        "num_io_queues": options.num_io_queues,
        "ctrlr_loss_timeout_sec": options.loss_timeout.map_or(json!(FOR_EVER), |limit| json!(limit.as_secs())),
        "reconnect_delay_sec": options.reconnect_delay.as_secs(),
        "fast_io_fail_timeout_sec": options.fast_io_fail.map_or(0, |limit| limit.as_secs()),
    })
}
