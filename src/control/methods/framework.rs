//! The node itself: its methods, version, life and configuration.

use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::{NoParams, choice, params};
use crate::control::registry::{Callable, Family, Method};
use crate::control::saved::Subsystem;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use std::sync::Arc;

params! {
    /// Parameters of `rpc_get_methods`.
    pub struct GetMethods {
        /// List only what may be called in the present state. Default: `false`.
        current: Option<bool>,
        /// List aliases too. Default: `false`.
        include_aliases: Option<bool>,
    }
}

choice! {
    /// Signals that may be asked for.
    pub enum SignalName {
        /// Orderly end.
        Int = "SIGINT",
        /// Orderly end.
        Term = "SIGTERM",
        /// Orderly end.
        Quit = "SIGQUIT",
        /// Orderly end.
        Hup = "SIGHUP",
        /// Immediate end, as a power cut would be.
        Kill = "SIGKILL",
        /// Orderly end, as SPDK's applications take it.
        Usr1 = "SIGUSR1",
    }
}

params! {
    /// Parameters of `spdk_kill_instance`.
    pub struct KillInstance {
        /// The signal to send. All but `SIGKILL` end the node in order.
        sig_name: SignalName,
    }
}

params! {
    /// Parameters of `framework_get_config`.
    pub struct GetConfig {
        /// A subsystem that `framework_get_subsystems` lists.
        name: String,
        /// SPDK's client sends it. No batch is needed to build this node again, so the dump has none either way.
        with_batches: Option<bool>,
    }
}

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "The node",
        about: "What a node is, what it can be asked, and its life from start to end.",
        methods: vec![
            Method::new("rpc_get_methods", Callable::Always, get_methods)
                .summary("Lists the methods.")
                .result("Array of names.")
                .example(r#"{"current": true}"#),
            Method::new("spdk_get_version", Callable::Always, get_version)
                .summary("Tells the version of this node.")
                .result("`version`: text; `fields`: `major`, `minor`, `patch`, `suffix`."),
            Method::new("framework_start_init", Callable::Startup, start_init).summary(
                "Lets a node that was started with `--wait-for-rpc` read its configuration file and begin to \
                 serve. Returns when it serves.",
            ),
            Method::new("framework_wait_init", Callable::Always, wait_init)
                .summary("Returns when the node serves, at once if it does already.")
                .errors(&[(-1, "the node ends before it has started")]),
            Method::new("framework_get_subsystems", Callable::Runtime, get_subsystems)
                .summary("Lists the parts of the configuration, dependencies first.")
                .result("Array of `subsystem` and `depends_on`."),
            Method::new("framework_get_config", Callable::Runtime, get_config)
                .summary(
                    "Dumps one part of the configuration as the calls that build it again. SPDK's `save_config` \
                     and `load_config` rest on it.",
                )
                .result("Array of `method` and `params`.")
                .example(r#"{"name": "bdev"}"#),
            Method::new("spdk_kill_instance", Callable::Always, kill_instance)
                .summary("Sends a signal to the node.")
                .example(r#"{"sig_name": "SIGTERM"}"#),
        ],
    }
}

fn get_methods(node: &Arc<Node>, params: GetMethods) -> Result<Vec<&'static str>, RpcError> {
    let state = params.current.unwrap_or(false).then(|| node.state());
    Ok(node.registry().names(state, params.include_aliases.unwrap_or(false)))
}

fn get_version(_: &Arc<Node>, _: NoParams) -> Result<Value, RpcError> {
    let field = |text: &str| text.parse::<u32>().unwrap_or_default();
    Ok(json!({
        "version": concat!("Lockstep v", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": field(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": field(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": field(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
        },
    }))
}

fn start_init(node: &Arc<Node>, _: NoParams) -> Result<bool, RpcError> {
    node.begin_start();
    node.wait_started().map(|()| true)
}

fn wait_init(node: &Arc<Node>, _: NoParams) -> Result<bool, RpcError> {
    node.wait_started().map(|()| true)
}

fn get_subsystems(_: &Arc<Node>, _: NoParams) -> Result<Value, RpcError> {
    let list = Subsystem::ALL
        .map(|subsystem| json!({"subsystem": subsystem.name(), "depends_on": subsystem.depends_on()}));
    Ok(json!(list))
}

fn get_config(node: &Arc<Node>, params: GetConfig) -> Result<Vec<Value>, RpcError> {
    let subsystem = Subsystem::by_name(&params.name)
        .ok_or_else(|| RpcError::invalid_params(format!("Subsystem '{}' not found", params.name)))?;
    if params.with_batches == Some(true) {
        tracing::debug!(name = params.name, "a dump with batches was asked for; there are none in it");
    }
    Ok(subsystem.dump(node))
}

fn kill_instance(_: &Arc<Node>, params: KillInstance) -> Result<bool, RpcError> {
    let signal = match params.sig_name {
        SignalName::Int => Signal::INT,
        SignalName::Term => Signal::TERM,
        SignalName::Quit => Signal::QUIT,
        SignalName::Hup => Signal::HUP,
        SignalName::Kill => Signal::KILL,
        SignalName::Usr1 => Signal::USR1,
    };
    kill_process(getpid(), signal)
        .map(|()| true)
        .map_err(|errno| RpcError::errno(errno, "the signal was not sent"))
}
