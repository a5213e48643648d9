//! What a caller is told when a request fails: a JSON-RPC code, and a text that says what to do.
//!
//! Codes are SPDK's: the reserved JSON-RPC range, -1 for a method called in the wrong state, and a raw
//! negative errno with its text for everything an operating system would have a number for.

use crate::bdev::BdevError;
use crate::reactor::CallError;
use rustix::io::Errno;
use serde_json::{Value, json};

/// JSON-RPC 2.0, section 5.1: the bytes are not JSON.
pub const PARSE_ERROR: i32 = -32700;
/// JSON-RPC 2.0, section 5.1: JSON, but not a request.
pub const INVALID_REQUEST: i32 = -32600;
/// JSON-RPC 2.0, section 5.1.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// JSON-RPC 2.0, section 5.1: a parameter is missing, unknown, or of the wrong type or value.
pub const INVALID_PARAMS: i32 = -32602;
/// JSON-RPC 2.0, section 5.1: a fault of ours.
pub const INTERNAL_ERROR: i32 = -32603;
/// SPDK's code for a method that the node's present state does not allow.
pub const INVALID_STATE: i32 = -1;

/// The `error` member of a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// One of the constants above, or a negative errno.
    pub code: i32,
    /// One sentence for the operator.
    pub message: String,
}

impl RpcError {
    /// An error with a code of the JSON-RPC range.
    pub fn new(code: i32, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into() }
    }

    /// A parameter is missing, unknown, or of the wrong type or value.
    pub fn invalid_params(message: impl Into<String>) -> RpcError {
        RpcError::new(INVALID_PARAMS, message)
    }

    /// The node's present state does not allow this method.
    pub fn invalid_state(message: impl Into<String>) -> RpcError {
        RpcError::new(INVALID_STATE, message)
    }

    /// A fault of ours, not of the caller.
    pub fn internal(message: impl Into<String>) -> RpcError {
        RpcError::new(INTERNAL_ERROR, message)
    }

    /// A negative errno; the message is the errno's own text, a colon, and `detail`.
    pub fn errno(errno: Errno, detail: impl std::fmt::Display) -> RpcError {
        RpcError { code: -errno.raw_os_error(), message: format!("{}: {detail}", errno_text(errno)) }
    }

    /// A raw errno with its text.
    fn from_raw(raw_errno: i32, detail: impl std::fmt::Display) -> RpcError {
        RpcError::errno(Errno::from_raw_os_error(raw_errno), detail)
    }

    /// The object that goes into a reply.
    pub fn to_json(&self) -> Value {
        json!({"code": self.code, "message": self.message})
    }
}

impl From<BdevError> for RpcError {
    fn from(error: BdevError) -> RpcError {
        RpcError::from_raw(error.errno(), error)
    }
}

impl From<CallError> for RpcError {
    fn from(error: CallError) -> RpcError {
        RpcError::errno(Errno::TIMEDOUT, error)
    }
}

/// The operating system's text for an errno, without the number that Rust appends.
fn errno_text(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_is_negative_and_begins_with_its_own_text() {
        let error = RpcError::from(BdevError::NotFound("M7".to_string()));
        assert_eq!(error.code, -19);
        assert!(error.message.starts_with("No such device: "), "{error}");
        assert!(error.message.contains("`M7`"), "{error}");
    }
}
