//! The log's level and flags.

use crate::control::error::RpcError;
use crate::control::logging::{FLAGS, Level};
use crate::control::node::Node;
use crate::control::params::{NoParams, params};
use crate::control::registry::{Callable, Family, Method};
use std::collections::BTreeMap;
use std::sync::Arc;

params! {
    /// Parameters of `log_set_level`.
    pub struct SetLevel {
        /// Least important level that is written.
        level: Level,
    }
}

params! {
    /// Parameters of `log_set_flag` and `log_clear_flag`.
    pub struct Flag {
        /// A flag that `log_get_flags` lists, or `all`.
        flag: String,
    }
}

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "The log",
        about: "The log goes to standard error. A flag is a part of the node; setting it shows everything that \
                this part says, whatever the level.",
        methods: vec![
            Method::new("log_set_level", Callable::Always, set_level)
                .summary("Changes the level of the log. A node starts with `NOTICE`.")
                .example(r#"{"level": "WARNING"}"#),
            Method::new("log_get_level", Callable::Always, get_level)
                .summary("Tells the level of the log.")
                .result("The level."),
            Method::new("log_set_flag", Callable::Always, set_flag)
                .summary("Shows everything one part of the node says.")
                .example(r#"{"flag": "bdev"}"#),
            Method::new("log_get_flags", Callable::Always, get_flags)
                .summary("Lists the flags.")
                .result("Object: flag → whether it is set."),
            Method::new("log_clear_flag", Callable::Always, clear_flag)
                .summary("Undoes `log_set_flag`.")
                .example(r#"{"flag": "all"}"#),
        ],
    }
}

fn set_level(node: &Arc<Node>, params: SetLevel) -> Result<bool, RpcError> {
    node.log().set_level(params.level);
    Ok(true)
}

fn get_level(node: &Arc<Node>, _: NoParams) -> Result<Level, RpcError> {
    Ok(node.log().level())
}

fn get_flags(node: &Arc<Node>, _: NoParams) -> Result<BTreeMap<&'static str, bool>, RpcError> {
    Ok(node.log().flags())
}

fn set_flag(node: &Arc<Node>, params: Flag) -> Result<bool, RpcError> {
    change_flag(node, &params.flag, true)
}

fn clear_flag(node: &Arc<Node>, params: Flag) -> Result<bool, RpcError> {
    change_flag(node, &params.flag, false)
}

fn change_flag(node: &Arc<Node>, flag: &str, on: bool) -> Result<bool, RpcError> {
    if node.log().set_flag(flag, on) {
        return Ok(true);
    }
    Err(RpcError::invalid_params(format!(
        "'flag': there is no log flag '{flag}', only all, {}",
        FLAGS.join(", ")
    )))
}
