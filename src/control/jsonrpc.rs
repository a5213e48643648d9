//! JSON-RPC 2.0 as SPDK frames it: JSON values one after another on a stream, without any delimiter.
//!
//! Invariants:
//! * [`FrameReader`] looks at every byte once, however the peer cuts its writes, and holds at most one
//!   limit's worth of an unfinished value plus what one read delivered behind it.
//! * It finds where a value ends by its brackets alone; whether the value is JSON is for [`parse`] to say.
//!   After an error the stream has no safe point to go on from, so the caller ends the connection.
//! * Nothing in here panics on any input, and nesting is bounded before anything recurses.
//!
//! Pure: no I/O, any thread.

use super::error::{self, RpcError};
use serde_json::{Map, Value, json};

/// Longest request, SPDK's limit: a request names things, it does not carry data.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// Longest reply, SPDK's limit: a `bdev_get_bdevs` of ten thousand devices is about 10 MiB.
pub const MAX_REPLY_BYTES: usize = 32 * 1024 * 1024;
/// Deepest nesting of a value, SPDK's limit; serde_json recurses and gives up at 128.
pub const MAX_DEPTH: u32 = 64;
/// Most requests in one batch: a saved configuration fits, a million empty objects do not.
pub const MAX_BATCH: usize = 4096;

/// Why a stream cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A value must begin with a brace or a bracket.
    #[error("expected '{{' or '[' at the beginning of a request, found byte 0x{0:02x}")]
    NotAValue(u8),
    /// A value is longer than the reader's limit.
    #[error("a request may have {0} bytes at most")]
    TooLong(usize),
    /// Brackets nest deeper than [`MAX_DEPTH`].
    #[error("a request may nest {MAX_DEPTH} levels deep at most")]
    TooDeep,
}

impl FramingError {
    /// The error to answer with before the connection is closed.
    pub fn to_rpc(self) -> RpcError {
        let code = match self {
            FramingError::NotAValue(_) | FramingError::TooDeep => error::PARSE_ERROR,
            FramingError::TooLong(_) => error::INVALID_REQUEST,
        };
        RpcError::new(code, self.to_string())
    }
}

/// Cuts a byte stream into JSON objects and arrays.
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already looked at.
    scanned: usize,
    depth: u32,
    in_string: bool,
    after_backslash: bool,
    limit: usize,
}

impl FrameReader {
    /// A reader of values of `limit` bytes at most.
    pub fn new(limit: usize) -> FrameReader {
        FrameReader {
            buffer: Vec::new(),
            scanned: 0,
            depth: 0,
            in_string: false,
            after_backslash: false,
            limit,
        }
    }

    /// Takes what the peer sent.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the peer owes us the rest of a value.
    pub fn is_mid_value(&self) -> bool {
        self.depth > 0
    }

    /// The next whole value, or `None` until more bytes arrive.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        if self.depth == 0 && !self.skip_to_value()? {
            return Ok(None);
        }
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.scanned > self.limit {
                return Err(FramingError::TooLong(self.limit));
            }
            if self.in_string {
                match byte {
                    _ if self.after_backslash => self.after_backslash = false,
                    b'\\' => self.after_backslash = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(FramingError::TooDeep);
                    }
                }
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let rest = self.buffer.split_off(self.scanned);
                        let frame = std::mem::replace(&mut self.buffer, rest);
                        self.scanned = 0;
                        return Ok(Some(frame));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Drops white space between values; false if nothing else is there.
    fn skip_to_value(&mut self) -> Result<bool, FramingError> {
        let start = self
            .buffer
            .iter()
            .position(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
            .unwrap_or(self.buffer.len());
        self.buffer.drain(..start);
        match self.buffer.first() {
            None => Ok(false),
            Some(b'{' | b'[') => Ok(true),
            Some(&byte) => Err(FramingError::NotAValue(byte)),
        }
    }
}

/// One call. `id` is `None` for a notification, which is never answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// String, number or null.
    pub id: Option<Value>,
    /// The method's name or alias.
    pub method: String,
    /// `None` if left out or null.
    pub params: Option<Value>,
}

/// An element that is JSON but no request, with the id to answer under.
#[derive(Debug, Clone, PartialEq)]
pub struct NotARequest {
    /// Its id where one could be made out, else null.
    pub id: Value,
    /// What is wrong with it.
    pub error: RpcError,
}

/// What one value on the stream asks for.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// One object.
    Single(Result<Request, NotARequest>),
    /// An array of them, answered by one array.
    Batch(Vec<Result<Request, NotARequest>>),
}

/// Reads one value. An error means that the bytes are not JSON.
pub fn parse(frame: &[u8]) -> Result<Incoming, RpcError> {
    let value: Value = serde_json::from_slice(frame)
        .map_err(|error| RpcError::new(error::PARSE_ERROR, format!("Parse error: {error}")))?;
    let elements = match value {
        Value::Array(elements) => elements,
        other => return Ok(Incoming::Single(parse_request(other))),
    };
    if elements.is_empty() || elements.len() > MAX_BATCH {
        return Ok(Incoming::Single(Err(NotARequest {
            id: Value::Null,
            error: invalid(format!("a batch holds 1 to {MAX_BATCH} requests")),
        })));
    }
    Ok(Incoming::Batch(elements.into_iter().map(parse_request).collect()))
}

fn invalid(message: impl std::fmt::Display) -> RpcError {
    RpcError::new(error::INVALID_REQUEST, format!("Invalid request: {message}"))
}

fn parse_request(value: Value) -> Result<Request, NotARequest> {
    let Value::Object(mut members) = value else {
        return Err(NotARequest { id: Value::Null, error: invalid("a request is an object") });
    };
    let id = members.remove("id");
    let answer_id = match &id {
        Some(id @ (Value::String(_) | Value::Number(_))) => id.clone(),
        _ => Value::Null,
    };
    read_members(id, members).map_err(|error| NotARequest { id: answer_id, error })
}

fn read_members(id: Option<Value>, mut members: Map<String, Value>) -> Result<Request, RpcError> {
    if matches!(id, Some(Value::Bool(_) | Value::Array(_) | Value::Object(_))) {
        return Err(invalid("'id' is a string, a number or null"));
    }
    if let Some(version) = members.remove("jsonrpc")
        && version != "2.0"
    {
        return Err(invalid("'jsonrpc', where given, is \"2.0\""));
    }
    let method = match members.remove("method") {
        Some(Value::String(method)) => method,
        Some(_) => return Err(invalid("'method' is a string")),
        None => return Err(invalid("'method' is missing")),
    };
    let params = match members.remove("params") {
        None | Some(Value::Null) => None,
        Some(params @ (Value::Object(_) | Value::Array(_))) => Some(params),
        Some(_) => return Err(invalid("'params' is an object")),
    };
    if let Some(unknown) = members.keys().next() {
        return Err(invalid(format!("there is no member '{unknown}'")));
    }
    Ok(Request { id, method, params })
}

/// A whole reply to one request.
pub fn reply(id: &Value, outcome: Result<Value, RpcError>) -> Value {
    match outcome {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": error.to_json()}),
    }
}

/// A reply's bytes; one longer than [`MAX_REPLY_BYTES`] is replaced by an error that says so.
pub fn encode(reply_value: &Value) -> Vec<u8> {
    let mut bytes = reply_value.to_string().into_bytes();
    if bytes.len() > MAX_REPLY_BYTES {
        let id = reply_value.get("id").unwrap_or(&Value::Null);
        let error = RpcError::internal(format!(
            "the reply has {} bytes, more than {MAX_REPLY_BYTES}; ask for less",
            bytes.len()
        ));
        bytes = reply(id, Err(error)).to_string().into_bytes();
    }
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(chunks: &[&[u8]]) -> Result<Vec<String>, FramingError> {
        let mut reader = FrameReader::new(MAX_REQUEST_BYTES);
        let mut found = Vec::new();
        for chunk in chunks {
            reader.push(chunk);
            while let Some(frame) = reader.next_frame()? {
                found.push(String::from_utf8_lossy(&frame).into_owned());
            }
        }
        Ok(found)
    }

    #[test]
    fn values_without_delimiter_come_out_one_by_one() {
        let found = frames(&[br#"{"a":1}{"b":"}{"}[{"c":"\"]"}]"#]).unwrap();
        assert_eq!(found, [r#"{"a":1}"#, r#"{"b":"}{"}"#, r#"[{"c":"\"]"}]"#]);
    }

    #[test]
    fn half_a_value_waits_for_the_rest() {
        let mut reader = FrameReader::new(MAX_REQUEST_BYTES);
        reader.push(b" \n{\"method\":\"x");
        assert_eq!(reader.next_frame(), Ok(None));
        assert!(reader.is_mid_value());
        reader.push(b"\"}");
        assert!(reader.next_frame().unwrap().is_some());
        assert!(!reader.is_mid_value());
    }

    #[test]
    fn bytes_that_begin_no_value_are_refused() {
        assert_eq!(frames(&[b"GET / HTTP/1.1"]), Err(FramingError::NotAValue(b'G')));
        assert_eq!(frames(&[b"{}}"]), Err(FramingError::NotAValue(b'}')));
    }

    #[test]
    fn a_value_longer_than_the_limit_is_refused_before_it_ends() {
        let mut reader = FrameReader::new(16);
        reader.push(b"{\"a\":\"0123456789012345");
        assert_eq!(reader.next_frame(), Err(FramingError::TooLong(16)));
        let mut reader = FrameReader::new(16);
        reader.push(b"{\"a\":\"01234567\"}{}");
        assert!(reader.next_frame().unwrap().is_some());
        assert!(reader.next_frame().unwrap().is_some());
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        let deep = vec![b'['; MAX_REQUEST_BYTES];
        assert_eq!(frames(&[&deep]), Err(FramingError::TooDeep));
    }

    #[test]
    fn a_request_may_leave_out_everything_but_the_method() {
        let Incoming::Single(Ok(request)) = parse(br#"{"method":"m"}"#).unwrap() else {
            panic!("not a request");
        };
        assert_eq!(request, Request { id: None, method: "m".into(), params: None });
    }

    #[test]
    fn ids_of_every_allowed_kind_are_echoed_and_others_refused() {
        for id in ["7", "\"a\"", "null"] {
            let text = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{}},"id":{id}}}"#);
            let Incoming::Single(Ok(request)) = parse(text.as_bytes()).unwrap() else {
                panic!("{text} refused");
            };
            assert_eq!(request.id.unwrap().to_string(), id);
        }
        for id in ["true", "[]", "{}"] {
            let text = format!(r#"{{"method":"m","id":{id}}}"#);
            let Incoming::Single(Err(refused)) = parse(text.as_bytes()).unwrap() else {
                panic!("{text} accepted");
            };
            assert_eq!(refused.error.code, error::INVALID_REQUEST);
            assert_eq!(refused.id, Value::Null);
        }
    }

    #[test]
    fn what_is_no_request_is_named() {
        for (text, word) in [
            (r#"{"id":1}"#, "missing"),
            (r#"{"method":5,"id":1}"#, "string"),
            (r#"{"method":"m","params":5,"id":1}"#, "params"),
            (r#"{"method":"m","jsonrpc":"1.0","id":1}"#, "2.0"),
            (r#"{"method":"m","extra":0,"id":1}"#, "extra"),
        ] {
            let Incoming::Single(Err(refused)) = parse(text.as_bytes()).unwrap() else {
                panic!("{text} accepted");
            };
            assert_eq!(refused.id, 1);
            assert!(refused.error.message.contains(word), "{}", refused.error);
        }
        assert_eq!(parse(b"{\"a\"}").unwrap_err().code, error::PARSE_ERROR);
    }

    #[test]
    fn a_batch_answers_for_each_element_and_an_empty_one_is_refused() {
        let Incoming::Batch(elements) = parse(br#"[{"method":"m","id":1}, 5]"#).unwrap() else {
            panic!("not a batch");
        };
        assert!(elements[0].is_ok());
        assert!(elements[1].is_err());
        assert!(matches!(parse(b"[]").unwrap(), Incoming::Single(Err(_))));
    }

    #[test]
    fn a_reply_over_the_limit_becomes_an_error_under_the_same_id() {
        let big = reply(&json!(3), Ok(Value::String("x".repeat(MAX_REPLY_BYTES))));
        let sent: Value = serde_json::from_slice(&encode(&big)).unwrap();
        assert_eq!(sent["id"], 3);
        assert_eq!(sent["error"]["code"], error::INTERNAL_ERROR);
    }

    fn arbitrary_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\PC\"\\\\{}\\[\\]]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-z\"{\\\\]{0,6}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn framing_does_not_depend_on_how_the_stream_is_cut(
            values in prop::collection::vec(arbitrary_json(), 1..5),
            pretty in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let values: Vec<Value> = values.into_iter().map(|value| json!([value])).collect();
            let stream: String = values
                .iter()
                .map(|value| if pretty { format!("{value:#}") } else { value.to_string() })
                .collect();
            let bytes = stream.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let found: Vec<Value> = frames(&chunks)
                .unwrap()
                .iter()
                .map(|frame| serde_json::from_str(frame).unwrap())
                .collect();
            prop_assert_eq!(found, values);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..8),
        ) {
            let mut reader = FrameReader::new(128);
            'stream: for chunk in &chunks {
                reader.push(chunk);
                loop {
                    match reader.next_frame() {
                        Ok(Some(frame)) => drop(parse(&frame)),
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
        }
    }
}
