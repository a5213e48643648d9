use proptest::prelude::*;

use super::*;
use crate::replication::link::{AckEntry, HelloBody, LastSequence, VolumeIdentity};

fn code<T: Copy + std::fmt::Debug>(all: &'static [T]) -> impl Strategy<Value = T> {
    (0..all.len()).prop_map(move |at| all[at])
}

fn write() -> impl Strategy<Value = Message> {
    let place = (0..u64::MAX - u64::from(u32::MAX), 1..=WRITE_BYTES_MAX, any::<u16>());
    (any::<(u64, u64, u64)>(), place, any::<(bool, bool, bool)>()).prop_map(
        |((generation, epoch, sequence), (offset, len, volume), (fua, zeroes, sync_copy))| {
            Message::Write(Write {
                generation: Generation(generation),
                epoch: Epoch(epoch),
                sequence: Sequence(sequence),
                volume,
                offset,
                len,
                fua,
                zeroes,
                sync_copy,
            })
        },
    )
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<[u64; 4]>(), any::<[u16; 2]>(), 1..=REACTORS_MAX, 0..=VOLUMES_MAX).prop_map(
        |(n, v, reactors, volumes)| Hello {
            version_min: v[0],
            version_max: v[1],
            reactors,
            volumes,
            generation: Generation(n[0]),
            committed_epoch: Epoch(n[1]),
            options: n[2],
            nonce: n[3],
        },
    )
}

fn data_hello() -> impl Strategy<Value = DataHello> {
    (any::<[u64; 2]>(), any::<u16>(), 0..REACTORS_MAX, 0..REACTORS_MAX, any::<u128>()).prop_map(
        |(n, version, primary_reactor, secondary_reactor, group)| DataHello {
            version,
            primary_reactor,
            secondary_reactor,
            nonce: n[0],
            generation: Generation(n[1]),
            group: uuid::Uuid::from_u128(group),
        },
    )
}

/// Any valid message with the payload length that belongs to it.
fn message() -> impl Strategy<Value = (Message, u32)> {
    let ids = || any::<(u64, u64)>().prop_map(|(g, e)| (Generation(g), Epoch(e)));
    let ordered = || {
        any::<([u64; 4], u16)>().prop_map(|(n, volume)| Ordered {
            generation: Generation(n[0]),
            epoch: Epoch(n[1]),
            sequence: Sequence(n[2]),
            value: n[3],
            volume,
        })
    };
    let acks = (any::<[u64; 4]>(), 0..=ACK_ENTRIES_MAX).prop_map(|(n, entries)| Acks {
        generation: Generation(n[0]),
        epoch: Epoch(n[1]),
        buffer_used: n[2],
        buffer_limit: n[3],
        entries,
    });
    let beat = || {
        any::<[u64; 4]>().prop_map(|n| Heartbeat {
            generation: Generation(n[0]),
            epoch: Epoch(n[1]),
            number: n[2],
            sent_ns: n[3],
        })
    };
    let hello_len = |h: &Hello| 200 + u32::from(h.volumes) * 104;
    let step =
        (ids(), code(Outcome::ALL), 0..9u8).prop_map(|((generation, epoch), outcome, which)| match which {
            0 => Message::Prepared { generation, epoch, outcome },
            1 => Message::Commit { generation, epoch },
            2 => Message::Committed { generation, epoch, outcome },
            3 => Message::Abort { generation, epoch },
            4 => Message::Aborted { generation, epoch, outcome },
            5 => Message::Bye { generation, epoch },
            7 => Message::Behind { generation, epoch },
            6 => Message::SyncEnd { generation, epoch, lineage: crate::replication::Lineage(epoch.0) },
            _ => {
                let sync = [SyncMode::None, SyncMode::Full, SyncMode::Changed][(epoch.0 % 3) as usize];
                Message::Begin { generation, epoch, sync, lineage: Lineage(epoch.0.rotate_left(7)) }
            }
        });
    prop_oneof![
        write().prop_map(|m| match m {
            Message::Write(w) if !w.zeroes => (m, w.len),
            _ => (m, 0),
        }),
        hello().prop_map(move |h| (Message::Hello(h), hello_len(&h))),
        hello().prop_map(move |h| (Message::HelloReply(h), hello_len(&h))),
        data_hello().prop_map(|h| (Message::DataHello(h), 0)),
        data_hello().prop_map(|h| (Message::DataHelloReply(h), 0)),
        (code(RefusalCode::ALL), any::<u64>(), 0..=TEXT_BYTES_MAX)
            .prop_map(|(code, g, len)| (Message::Refusal { code, generation: Generation(g) }, len)),
        beat().prop_map(|b| (Message::Heartbeat(b), 0)),
        beat().prop_map(|b| (Message::HeartbeatReply(b), 0)),
        ordered().prop_map(|o| (Message::Flush(o), 0)),
        (write(), 0..3u8).prop_map(|(m, which)| match m {
            Message::Write(Write { generation, epoch, sequence, volume, offset, len, .. }) => {
                let span = Span { generation, epoch, sequence, volume, offset, len };
                match which {
                    0 => (Message::Verify(span), DIGEST_BYTES),
                    1 => (Message::Read(span), 0),
                    _ => (Message::ReadData(span), len),
                }
            }
            other => (other, 0),
        }),
        ordered().prop_map(|o| (Message::Resize(o), 0)),
        ordered().prop_map(|o| (Message::Extend(o), 0)),
        ordered().prop_map(|o| (Message::DiskSize(o), 0)),
        acks.prop_map(|a| (Message::Acks(a), u32::from(a.entries) * 16)),
        (ids(), any::<u32>(), 0..=LANES_MAX).prop_map(|((generation, epoch), timeout_ms, lanes)| {
            (Message::Prepare { generation, epoch, timeout_ms, lanes }, u32::from(lanes) * 16)
        }),
        step.prop_map(|m| (m, 0)),
    ]
}

/// Replaces the checksum, so that a test reaches what stands behind it.
fn seal(bytes: &mut [u8; HEADER_BYTES]) {
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #[test]
    fn what_is_encoded_is_parsed_again((message, payload_len) in message(), crc in any::<Option<u32>>()) {
        let payload_crc = crc.filter(|_| payload_len > 0);
        let bytes = message.encode(payload_len, payload_crc);
        prop_assert_eq!(parse(&bytes), Ok(Header { message, payload_len, payload_crc }));
    }

    #[test]
    fn a_changed_bit_is_noticed((message, payload_len) in message(), bit in 0..512usize) {
        let mut bytes = message.encode(payload_len, None);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(parse(&bytes), Err(WireError::HeaderChecksum));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&bytes).is_err());
        let _ = HelloBody::parse(&bytes);
        let _ = LastSequence::parse_all(&bytes);
        if let Ok(entries) = AckEntry::parse_all(&bytes) {
            entries.for_each(drop);
        }
    }

    #[test]
    fn bytes_with_a_right_checksum_are_bounded(mut bytes in prop::array::uniform32(any::<u8>()), kind in 0..0x40u8) {
        bytes[0] = kind;
        bytes[1] = VERSION;
        let mut header = [0; HEADER_BYTES];
        header[..32].copy_from_slice(&bytes);
        seal(&mut header);
        if let Ok(parsed) = parse(&header) {
            prop_assert!(parsed.payload_len <= WRITE_BYTES_MAX.max(CONTROL_BYTES_MAX));
            prop_assert_eq!(parsed.message.encode(parsed.payload_len, parsed.payload_crc)[0], kind);
        }
    }

    #[test]
    fn a_hello_body_survives_the_wire(names in prop::collection::vec("[a-zé]{0,20}", 0..8), n in any::<u64>()) {
        let volume = |name: &String| VolumeIdentity {
            uuid: uuid::Uuid::from_u64_pair(n, 1),
            name: name.clone(),
            size_bytes: n,
            disk_bytes: n ^ 1,
            block_bytes: 512,
        };
        let body = HelloBody {
            node: uuid::Uuid::from_u64_pair(n, n),
            group: uuid::Uuid::from_u64_pair(1, n),
            group_name: "g0".into(),
            role: LinkRole::Secondary,
            granule_bytes: 4096,
            stripe_bytes: 1 << 20,
            lineage: Lineage(n.rotate_left(9)),
            past: crate::replication::Past { base: crate::replication::Lineage(5), ..Default::default() },
            dirty_bytes: 1 << 33,
            volumes: names.iter().map(volume).collect(),
        };
        let bytes = body.encode();
        prop_assert_eq!(HelloBody::parse(&bytes), Ok(body));
        prop_assert!(HelloBody::parse(&bytes[..bytes.len() - 1]).is_err());
    }
}

#[test]
fn a_write_longer_than_the_limit_is_refused() {
    let long = Message::Write(Write {
        generation: Generation(1),
        epoch: Epoch(1),
        sequence: Sequence(1),
        volume: 0,
        offset: 0,
        len: WRITE_BYTES_MAX + 1,
        fua: false,
        zeroes: false,
        sync_copy: false,
    });
    let len = u64::from(WRITE_BYTES_MAX) + 1;
    let bytes = long.encode(WRITE_BYTES_MAX + 1, None);
    assert_eq!(parse(&bytes), Err(WireError::Length { kind: kind::WRITE, len }));
}

#[test]
fn another_version_is_named() {
    let mut bytes = Message::Bye { generation: Generation(1), epoch: Epoch(1) }.encode(0, None);
    bytes[1] = 9;
    seal(&mut bytes);
    assert_eq!(parse(&bytes), Err(WireError::Version(9)));
}

#[test]
fn a_refusal_is_understood_in_every_version() {
    let refusal = Message::Refusal { code: RefusalCode::Version, generation: Generation(7) };
    let mut bytes = refusal.encode(0, None);
    bytes[1] = 9;
    seal(&mut bytes);
    assert_eq!(parse(&bytes).map(|h| h.message), Ok(refusal));
}

#[test]
fn ack_entries_survive_the_wire() {
    let entries = [
        AckEntry { volume: 2, first: Sequence(7), count: 3, status: AckStatus::Applied },
        AckEntry { volume: 0, first: Sequence(11), count: 1, status: AckStatus::WriteError },
    ];
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.encode()).collect();
    let parsed: Vec<_> = AckEntry::parse_all(&bytes).expect("whole").map(|e| e.expect("valid")).collect();
    assert_eq!(parsed, entries);
}

#[test]
fn last_sequences_survive_the_wire() {
    let list = [LastSequence { primary_reactor: 1, secondary_reactor: 0, sequence: Sequence(99) }];
    assert_eq!(LastSequence::parse_all(&LastSequence::encode_all(&list)).expect("whole"), list);
}
