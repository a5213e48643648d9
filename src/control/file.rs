//! Configuration files: SPDK's shape, read at the start of a node.
//!
//! ```json
//! {"subsystems": [{"subsystem": "bdev", "config": [{"method": "bdev_malloc_create", "params": {}}]}]}
//! ```
//! Every call's method and parameters are checked before the first one is made; then they are made in order, and the
//! first one that fails ends the start, with an error that names the file, the method and the parameter.

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
    let calls: Vec<Numbered> = parsed.subsystems.into_iter().flat_map(Section::numbered).collect();
    let failed = |call: &Numbered, error| ConfigError::Call {
        file: file.clone(),
        subsystem: call.subsystem.clone(),
        number: call.number,
        method: call.method.clone(),
        error,
    };
    for call in &calls {
        check(node, call).map_err(|error| failed(call, error))?;
    }
    for call in &calls {
        node.registry()
            .call_while_starting(node, &call.method, call.params.clone())
            .map_err(|error| failed(call, error))?;
    }
    Ok(())
}

/// Finds what can be found wrong with a call before anything is made.
fn check(node: &Node, call: &Numbered) -> Result<(), RpcError> {
    let method = node.registry().expect(&call.method)?;
    if method.callable == Callable::Startup {
        return Err(RpcError::invalid_state("this method starts a node; it has no place in its file"));
    }
    method.check(call.params.clone())
}

/// A call and where it stands.
struct Numbered {
    subsystem: String,
    number: usize,
    method: String,
    params: Option<Value>,
}

impl Section {
    fn numbered(self) -> impl Iterator<Item = Numbered> {
        let calls = self.config.unwrap_or_default().into_iter().flat_map(|step| match step {
            Step::One(call) => vec![call],
            Step::Several(calls) => calls,
        });
        calls.enumerate().map(move |(index, call)| Numbered {
            subsystem: self.subsystem.clone(),
            number: index + 1,
            method: call.method,
            params: call.params,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::node::tests::waiting_node;

    fn load_text(text: &str) -> (Arc<Node>, Result<(), String>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.json");
        std::fs::write(&path, text).unwrap();
        let node = waiting_node();
        let outcome = load(&node, &path).map_err(|error| error.to_string());
        (node, outcome)
    }

    fn refusal(text: &str) -> String {
        let (node, outcome) = load_text(text);
        assert!(node.bdevs().all().is_empty(), "half configured");
        outcome.unwrap_err()
    }

    const MALLOC: &str =
        r#"{"method": "bdev_malloc_create", "params": {"name": "M0", "num_blocks": 64, "block_size": 512}}"#;

    #[test]
    fn calls_and_batches_are_made_in_order() {
        let (node, outcome) = load_text(&format!(
            r#"{{"subsystems": [{{"subsystem": "nothing", "config": null}},
                {{"subsystem": "bdev", "config": [{MALLOC}, [{{"method": "bdev_malloc_delete", "params": {{"name": "M0"}}}}, {MALLOC}]]}}]}}"#
        ));
        outcome.unwrap();
        assert_eq!(node.bdevs().all().len(), 1);
    }

    #[test]
    fn an_error_names_file_method_and_parameter_before_anything_is_made() {
        let config = |call: &str| {
            format!(r#"{{"subsystems": [{{"subsystem": "bdev", "config": [{MALLOC}, {call}]}}]}}"#)
        };
        let typed = refusal(&config(r#"{"method": "bdev_null_create", "params": {"name": 5}}"#));
        for word in ["node.json", "call 2", "bdev_null_create", "'name'"] {
            assert!(typed.contains(word), "{typed}");
        }
        assert!(refusal(&config(r#"{"method": "bdev_magic_create"}"#)).contains("bdev_magic_create"));
        assert!(refusal(&config(r#"{"method": "framework_start_init"}"#)).contains("no place"));
    }

    #[test]
    fn a_call_that_fails_ends_the_start() {
        let (_, outcome) = load_text(&format!(
            r#"{{"subsystems": [{{"subsystem": "bdev", "config": [{MALLOC}, {MALLOC}]}}]}}"#
        ));
        assert!(outcome.unwrap_err().contains("M0"));
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_place() {
        for text in ["", "{", "[]", r#"{"subsystems": 5}"#, r#"{"subsystems": [{"config": []}]}"#, "{} {}"] {
            assert!(refusal(text).contains("no configuration file"), "{text}");
        }
        let deep = refusal(&"[".repeat(100_000));
        assert!(deep.contains("no configuration file"), "{deep}");
        let missing = load(&waiting_node(), Path::new("/nonexistent/node.json")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/node.json"));
    }
}
