//! Block devices on top of others.

use super::bdev_create::{CREATE_ERRORS, Delete, add, delete};
use crate::bdev::passthru;
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Method};
use std::sync::Arc;
use uuid::Uuid;

params! {
    /// Parameters of `bdev_passthru_create`.
    pub struct PassthruCreate {
        /// Name of the new bdev.
        name: String,
        /// The bdev below, which it claims.
        base_bdev_name: String,
        /// Identifier. Default: a random one.
        uuid: Option<Uuid>,
    }
}

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("bdev_passthru_create", Callable::Runtime, passthru_create)
            .summary("Makes a bdev that passes everything to another one.")
            .result("The bdev's name.")
            .errors(CREATE_ERRORS)
            .example(r#"{"name": "Passthru0", "base_bdev_name": "Null0"}"#),
    ]
}

pub fn removals() -> Vec<Method> {
    vec![delete("bdev_passthru_delete", passthru_delete, r#"{"name": "Passthru0"}"#)]
}

fn passthru_create(node: &Arc<Node>, params: PassthruCreate) -> Result<String, RpcError> {
    let base = node.bdevs().get(&params.base_bdev_name)?;
    add(node, passthru::create(&params.name, params.uuid.unwrap_or_else(Uuid::new_v4), &base)?)
}

fn passthru_delete(node: &Arc<Node>, params: Delete) -> Result<bool, RpcError> {
    params.run(node, "bdev_passthru_create")
}
