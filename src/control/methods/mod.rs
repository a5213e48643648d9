//! The methods, one file a family.

mod framework;
mod log;
mod notify;
mod reactors;

use super::registry::Family;

/// Every family, in the order of the RPC reference.
pub fn families() -> Vec<Family> {
    vec![framework::family(), log::family(), notify::family(), reactors::family()]
}
