//! The other end of the socket, for the command line and the tests: one call at a time.

use super::jsonrpc::{FrameReader, MAX_REPLY_BYTES};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Where a node listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/tmp/lockstep.sock";

/// Longest wait for a reply: longer than any deadline a node gives itself.
const REPLY_TIMEOUT: Duration = Duration::from_secs(300);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "cannot connect to {path}: {source}; is a node running there? (`lockstep serve --rpc-socket {path}`)"
    )]
    Connect {
        /// The socket.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The connection failed in the middle.
    #[error("lost the connection to the node: {0}")]
    Io(#[from] io::Error),
    /// The reply is no JSON-RPC.
    #[error("the node's reply cannot be read: {0}")]
    Malformed(String),
    /// The node refused.
    #[error("{message} (code {code})")]
    Refused {
        /// JSON-RPC code or negative errno.
        code: i64,
        /// The node's text.
        message: String,
    },
}

/// A connection to a node.
pub struct Client {
    stream: UnixStream,
    frames: FrameReader,
    next_id: u64,
}

impl Client {
    /// Connects to the node that serves `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.display().to_string(), source })?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Client { stream, frames: FrameReader::new(MAX_REPLY_BYTES + 1), next_id: 0 })
    }

    /// Calls a method and waits for its result.
    pub fn call(&mut self, method: &str, params: Option<Value>) -> Result<Value, ClientError> {
        self.next_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "method": method, "id": self.next_id});
        if let (Some(params), Some(members)) = (params, request.as_object_mut()) {
            members.insert("params".to_string(), params);
        }
        self.stream.write_all(request.to_string().as_bytes())?;
        let mut reply = self.read_value()?;
        if let Some(error) = reply.get("error") {
            return Err(ClientError::Refused {
                code: error.get("code").and_then(Value::as_i64).unwrap_or_default(),
                message: error.get("message").and_then(Value::as_str).unwrap_or_default().to_string(),
            });
        }
        match reply.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(ClientError::Malformed("it has neither a result nor an error".to_string())),
        }
    }

    fn read_value(&mut self) -> Result<Value, ClientError> {
        let mut bytes = [0; 16 * 1024];
        loop {
            let frame =
                self.frames.next_frame().map_err(|error| ClientError::Malformed(error.to_string()))?;
            if let Some(frame) = frame {
                return serde_json::from_slice(&frame)
                    .map_err(|error| ClientError::Malformed(error.to_string()));
            }
            match self.stream.read(&mut bytes)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => self.frames.push(&bytes[..count]),
            }
        }
    }
}

/// Prints a line on standard output. Ends the process quietly once nobody reads it any more (`… | head -1`).
pub fn print_line(line: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout().lock(), "{line}") {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("cannot write to standard output: {error}");
        }
        std::process::exit(i32::from(error.kind() != io::ErrorKind::BrokenPipe));
    }
}

/// `println!` for command lines: see [`print_line`].
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::control::client::print_line(format_args!($($text)*)) };
}
