//! What each fuzz target checks of one input. The fuzzers run these on inputs that they evolve, and the ordinary
//! tests (`tests/fuzz_corpora.rs`) on every input of the corpora.
//!
//! To look for new inputs, with a nightly toolchain and `cargo install cargo-fuzz`:
//! `cargo +nightly fuzz run nvme_tcp -- -max_total_time=300` (or `link`, `jsonrpc`), in the project's folder.
#![allow(dead_code, reason = "each fuzz target is a program of its own and uses one of these")]

use lockstep::control;
use lockstep::control::jsonrpc::{self, FrameReader, Incoming, Request};
use lockstep::control::registry::Registry;
use lockstep::nvme::tcp::{self, Digests, Direction, Rules};
use lockstep::replication::link;
use std::sync::OnceLock;

/// The NVMe/TCP PDU parser, for every direction and digest setting. Whatever it accepts lies inside what it was given.
pub fn nvme_tcp(data: &[u8]) {
    let Some((&setting, data)) = data.split_first() else { return };
    let rules = Rules {
        direction: if setting & 1 == 0 { Direction::HostToController } else { Direction::ControllerToHost },
        digests: Digests::from_dgst(setting >> 1 & 3),
        max_in_capsule: 8192,
        max_data: 1 << 20,
        data_alignment: if setting & 8 == 0 { 1 } else { 4 },
    };
    if let Ok(Some((frame, _header))) = tcp::parse(data, &rules) {
        assert!(frame.header_end <= data.len());
        assert!(frame.hlen <= frame.header_end && frame.header_end <= frame.data_offset);
        assert!(frame.data_offset + frame.data_len <= frame.plen.max(frame.data_offset));
        assert!(frame.data_len <= 1 << 20);
    }
}

/// The link's message parser, as the bytes came and with version and checksum of the header made right, so that what
/// lies behind them is reached; and the parsers of control payloads.
pub fn link(data: &[u8]) {
    let _ = link::parse(data);
    let header = link::wire::HEADER_BYTES;
    if data.len() >= header {
        let mut sealed = data.to_vec();
        // Inputs that were found with an earlier version of the protocol go on to test this one.
        sealed[1] = link::wire::VERSION;
        let crc = crc32c::crc32c(&sealed[..header - 4]);
        sealed[header - 4..header].copy_from_slice(&crc.to_le_bytes());
        if let Ok(parsed) = link::parse(&sealed) {
            let again = parsed.message.encode(parsed.payload_len, parsed.payload_crc);
            assert_eq!(link::parse(&again), Ok(parsed), "what was read is written and read again the same");
        }
    }
    let _ = link::HelloBody::parse(data);
    let _ = link::AckEntry::parse_all(data).map(|entries| entries.count());
    let _ = link::LastSequence::parse_all(data);
    let _ = link::printable(data);
}

/// The JSON-RPC reader: the same frames, however the bytes are cut into pieces.
pub fn jsonrpc(data: &[u8]) {
    const LIMIT: usize = 4096;
    let whole = frames(&[data], LIMIT);
    let (first, second) = data.split_at(data.len() / 2);
    assert_eq!(whole, frames(&[first, second], LIMIT), "frames do not depend on how the bytes arrive");
    for frame in whole {
        match jsonrpc::parse(&frame) {
            Ok(Incoming::Single(Ok(request))) => check_params(request),
            Ok(Incoming::Batch(requests)) => requests.into_iter().flatten().for_each(check_params),
            Ok(Incoming::Single(Err(_))) | Err(_) => {}
        }
    }
}

/// Every method reads its parameters, whatever they are.
fn check_params(request: Request) {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    let registry = REGISTRY.get_or_init(|| Registry::new(control::families()));
    if let Some(method) = registry.find(&request.method) {
        // Refusing is as good as accepting; only a panic is a finding.
        let _ = method.check(request.params);
    }
}

fn frames(pieces: &[&[u8]], limit: usize) -> Vec<Vec<u8>> {
    let mut reader = FrameReader::new(limit);
    let mut frames = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
    }
    frames
}
