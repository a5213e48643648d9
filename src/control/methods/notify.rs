//! The history of events.

use crate::control::error::RpcError;
use crate::control::events::{self, Event};
use crate::control::node::Node;
use crate::control::params::{NoParams, params};
use crate::control::registry::{Callable, Family, Method};
use std::sync::Arc;

params! {
    /// Parameters of `notify_get_notifications`.
    pub struct GetNotifications {
        /// First event wanted. Default: 0, the oldest that is kept.
        id: Option<u64>,
        /// Most events to return. Default: no limit.
        max: Option<usize>,
    }
}

/// The methods of this file.
pub fn family() -> Family {
    Family {
        title: "Events",
        about: "A node keeps its last 1024 events. Ask again with the last `id` plus 1 to go on; a gap in the ids \
                says that events were missed.",
        methods: vec![
            Method::new("notify_get_types", Callable::Runtime, get_types)
                .summary("Lists the types of events.")
                .result("Array of names."),
            Method::new("notify_get_notifications", Callable::Runtime, get_notifications)
                .summary("Reads events.")
                .result("Array of `type`, `ctx` (what it is about) and `id`.")
                .example(r#"{"id": 0, "max": 1}"#),
        ],
    }
}

fn get_types(_: &Arc<Node>, _: NoParams) -> Result<&'static [&'static str], RpcError> {
    Ok(events::TYPES)
}

fn get_notifications(node: &Arc<Node>, params: GetNotifications) -> Result<Vec<Event>, RpcError> {
    Ok(node.events().since(params.id.unwrap_or(0), params.max.unwrap_or(usize::MAX)))
}
