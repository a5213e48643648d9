//! The control plane: everything an operator or an orchestrator says to a node.
//!
//! JSON-RPC 2.0 over a UNIX socket with SPDK's framing, method names, parameters and error codes, so that SPDK's
//! own client drives a node. A client is served by a thread of its own (`server`), which reads requests
//! (`jsonrpc`), finds the method (`registry`), reads its parameters (`params`) and calls its handler
//! (`methods/`). Handlers may block: they ask reactors by message and wait with a deadline; no reactor ever
//! waits for this room. What a handler changes it records (`saved`), so that the configuration can be dumped and
//! loaded again (`file`). This is the top of the house: nothing below may depend on it.

pub mod client;
pub mod error;
pub mod events;
pub mod file;
mod flush;
pub mod jsonrpc;
pub mod logging;
mod methods;
pub mod node;
pub mod params;
pub mod registry;
pub mod saved;
pub mod serve;
pub mod server;
pub mod status;

pub use methods::families;
