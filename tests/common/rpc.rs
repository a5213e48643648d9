//! A JSON-RPC client that sends what SPDK's own client sends: objects without a delimiter over a UNIX socket.

use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than any method's own deadline: only a node that hangs exceeds it.
const REPLY_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcError {
    pub code: i64,
    pub message: String,
}

pub struct Rpc {
    stream: UnixStream,
    received: Vec<u8>,
    next_id: u64,
}

impl Rpc {
    pub fn connect(socket: &Path) -> io::Result<Rpc> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        stream.set_write_timeout(Some(REPLY_LIMIT))?;
        Ok(Rpc { stream, received: Vec::new(), next_id: 1 })
    }

    /// One call. A transport failure (no answer, not JSON, wrong id) is a panic: no test expects one here.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, RpcError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "id": id, "method": method});
        if !params.is_null() {
            request["params"] = params;
        }
        self.send(request.to_string().as_bytes()).unwrap_or_else(|e| panic!("sending {method}: {e}"));
        let mut reply = self.receive().unwrap_or_else(|e| panic!("reply to {method}: {e}"));
        assert_eq!(reply["id"], json!(id), "reply to another request: {reply}");
        match reply.get_mut("error") {
            Some(error) => Err(RpcError {
                code: error["code"].as_i64().unwrap_or_else(|| panic!("error without a code: {error}")),
                message: error["message"].as_str().unwrap_or_default().to_owned(),
            }),
            None => Ok(reply["result"].take()),
        }
    }

    /// Bytes as they are, for tests of what is not a request.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next JSON value; `UnexpectedEof` when the node closed the connection.
    pub fn receive(&mut self) -> io::Result<Value> {
        let mut chunk = [0u8; 4096];
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.received).into_iter::<Value>();
            match values.next() {
                Some(Ok(value)) => {
                    let used = values.byte_offset();
                    self.received.drain(..used);
                    return Ok(value);
                }
                Some(Err(e)) if !e.is_eof() => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
                _ => {}
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.received.extend_from_slice(&chunk[..n]),
            }
        }
    }
}
