//! Configuration files: SPDK's shape, read at the start of a node.
//!
//! ```json
//! {"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_malloc_create", "params": {}}]}]}
//! ```
//! Every call is made in order. The first one that fails ends the start, with an error that names the file, the
//! method and the parameter; nothing is left half configured and running.

use super::error::RpcError;
use super::node::Node;
use super::registry::Callable;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Longest file read: SPDK's own files of a thousand devices are below 1 MiB.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    subsystems: Vec<Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    subsystem: String,
    config: Option<Vec<Step>>,
}

/// One call, or a batch of them as `save_config --with-batches` writes it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Step {
    One(Call),
    Several(Vec<Call>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    method: String,
    params: Option<Value>,
}

/// Why a configuration file cannot be put into effect.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It is longer than any configuration.
    #[error("{file} has more than {MAX_FILE_BYTES} bytes; it cannot be a configuration file")]
    TooLong {
        /// The file.
        file: String,
    },
    /// It is not JSON, or not of this shape.
    #[error("{file} is no configuration file: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// Where and what.
        reason: String,
    },
    /// A call failed.
    #[error("{file}: subsystem '{subsystem}', call {number}, {method}: {error}")]
    Call {
        /// The file.
        file: String,
        /// The section.
        subsystem: String,
        /// The call in its section, from 1.
        number: usize,
        /// Its method.
        method: String,
        /// What it was answered; names the parameter.
        error: RpcError,
    },
}

/// Reads a file and makes its calls.
pub fn load(node: &Arc<Node>, path: &Path) -> Result<(), ConfigError> {
    let file = path.display().to_string();
    let read = |source| ConfigError::Read { file: path.display().to_string(), source };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE_BYTES {
        return Err(ConfigError::TooLong { file });
    }
    let text = std::fs::read(path).map_err(read)?;
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let parsed: File = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| ConfigError::Malformed { file: file.clone(), reason: error.to_string() })?;
    reader.end().map_err(|error| ConfigError::Malformed { file: file.clone(), reason: error.to_string() })?;
    for section in parsed.subsystems {
        let calls = section.config.unwrap_or_default().into_iter().flat_map(|step| match step {
            Step::One(call) => vec![call],
            Step::Several(calls) => calls,
        });
        for (index, call) in calls.enumerate() {
            make(node, &call.method, call.params).map_err(|error| ConfigError::Call {
                file: file.clone(),
                subsystem: section.subsystem.clone(),
                number: index + 1,
                method: call.method,
                error,
            })?;
        }
    }
    Ok(())
}

fn make(node: &Arc<Node>, method: &str, params: Option<Value>) -> Result<Value, RpcError> {
    let registry = node.registry();
    if registry.find(method).is_some_and(|found| found.callable == Callable::Startup) {
        return Err(RpcError::invalid_state("this method starts a node; it has no place in its file"));
    }
    registry.call_while_starting(node, method, params)
}
