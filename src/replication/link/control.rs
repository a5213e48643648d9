//! What the group machines of two nodes say to each other, on the wire and back.

use super::body::LastSequence;
use super::message::{Header, Message, Ordered, Outcome, WireError};
use crate::env::Buf;
use crate::replication::core::{Control, Ended, Last};
use crate::replication::{Epoch, Generation, Sequence};

fn outcome(ended: Ended) -> Outcome {
    match ended {
        Ended::Ok => Outcome::Ok,
        Ended::Timeout => Outcome::Timeout,
        Ended::WrongEpoch => Outcome::WrongEpoch,
        Ended::Disk => Outcome::DiskError,
        Ended::Metadata => Outcome::MetadataError,
        Ended::Unrecoverable => Outcome::Unrecoverable,
        Ended::NotRunning => Outcome::NotRunning,
    }
}

fn ended(outcome: Outcome) -> Ended {
    match outcome {
        Outcome::Ok => Ended::Ok,
        Outcome::Timeout => Ended::Timeout,
        Outcome::WrongEpoch => Ended::WrongEpoch,
        Outcome::DiskError => Ended::Disk,
        Outcome::MetadataError => Ended::Metadata,
        Outcome::Unrecoverable => Ended::Unrecoverable,
        Outcome::NotRunning => Ended::NotRunning,
    }
}

/// The size of something of a volume; it has no place among the writes.
fn size(generation: Generation, volume: u16, bytes: u64) -> Ordered {
    Ordered { generation, epoch: Epoch(0), sequence: Sequence(0), volume, value: bytes }
}

/// A control message and its payload, for [`super::Connection::send_bytes`].
pub fn encode_control(generation: Generation, control: &Control) -> (Message, Vec<u8>) {
    let message = match *control {
        Control::Begin { epoch, sync, lineage } => Message::Begin { generation, epoch, sync, lineage },
        Control::Behind { epoch } => Message::Behind { generation, epoch },
        Control::SyncEnd { epoch, lineage } => Message::SyncEnd { generation, epoch, lineage },
        Control::Prepare { epoch, timeout_ms, ref lasts } => {
            let last = |last: &Last| LastSequence {
                primary_reactor: last.primary_reactor,
                secondary_reactor: last.secondary_reactor,
                sequence: last.sequence,
            };
            let payload = LastSequence::encode_all(&lasts.iter().map(last).collect::<Vec<_>>());
            return (Message::Prepare { generation, epoch, timeout_ms, lanes: lasts.len() as u16 }, payload);
        }
        Control::Prepared { epoch, ended } => {
            Message::Prepared { generation, epoch, outcome: outcome(ended) }
        }
        Control::Commit { epoch } => Message::Commit { generation, epoch },
        Control::Committed { epoch, ended } => {
            Message::Committed { generation, epoch, outcome: outcome(ended) }
        }
        Control::Abort { epoch } => Message::Abort { generation, epoch },
        Control::Aborted { epoch, ended } => Message::Aborted { generation, epoch, outcome: outcome(ended) },
        Control::Extend { volume, bytes } => Message::Extend(size(generation, volume, bytes)),
        Control::Resize { volume, bytes } => Message::Resize(size(generation, volume, bytes)),
        Control::DiskSize { volume, bytes } => Message::DiskSize(size(generation, volume, bytes)),
    };
    (message, Vec::new())
}

/// What a message of the control connection says to the group machine. `None`: it is none of its business.
pub fn parse_control(header: &Header, payload: &[Buf]) -> Result<Option<(Generation, Control)>, WireError> {
    Ok(Some(match header.message {
        Message::Begin { generation, epoch, sync, lineage } => {
            (generation, Control::Begin { epoch, sync, lineage })
        }
        Message::Behind { generation, epoch } => (generation, Control::Behind { epoch }),
        Message::SyncEnd { generation, epoch, lineage } => (generation, Control::SyncEnd { epoch, lineage }),
        Message::Prepare { generation, epoch, timeout_ms, .. } => {
            let list = payload.first().map_or(Ok(Vec::new()), |bytes| bytes.with(LastSequence::parse_all))?;
            let last = |last: LastSequence| Last {
                primary_reactor: last.primary_reactor,
                secondary_reactor: last.secondary_reactor,
                sequence: last.sequence,
            };
            let lasts = list.into_iter().map(last).collect();
            (generation, Control::Prepare { epoch, timeout_ms, lasts })
        }
        Message::Prepared { generation, epoch, outcome } => {
            (generation, Control::Prepared { epoch, ended: ended(outcome) })
        }
        Message::Commit { generation, epoch } => (generation, Control::Commit { epoch }),
        Message::Committed { generation, epoch, outcome } => {
            (generation, Control::Committed { epoch, ended: ended(outcome) })
        }
        Message::Abort { generation, epoch } => (generation, Control::Abort { epoch }),
        Message::Aborted { generation, epoch, outcome } => {
            (generation, Control::Aborted { epoch, ended: ended(outcome) })
        }
        Message::Extend(Ordered { generation, volume, value, .. }) => {
            (generation, Control::Extend { volume, bytes: value })
        }
        Message::Resize(Ordered { generation, volume, value, .. }) => {
            (generation, Control::Resize { volume, bytes: value })
        }
        Message::DiskSize(Ordered { generation, volume, value, .. }) => {
            (generation, Control::DiskSize { volume, bytes: value })
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::Lineage;
    use crate::replication::core::SyncMode;
    use crate::replication::link::parse;

    #[test]
    fn every_control_message_survives_the_wire() {
        let epoch = Epoch(7);
        let last =
            |n| Last { primary_reactor: n, secondary_reactor: 1, sequence: Sequence(u64::from(n) * 9) };
        let mut all = vec![
            Control::Begin { epoch, sync: SyncMode::Full, lineage: Lineage(1) },
            Control::Begin { epoch, sync: SyncMode::None, lineage: Lineage(2) },
            Control::Begin { epoch, sync: SyncMode::Changed, lineage: Lineage(u64::MAX) },
            Control::Behind { epoch },
            Control::SyncEnd { epoch, lineage: Lineage(3) },
            Control::Prepare { epoch, timeout_ms: 500, lasts: (0..3).map(last).collect() },
            Control::Prepare { epoch, timeout_ms: 500, lasts: Vec::new() },
            Control::Commit { epoch },
            Control::Abort { epoch },
            Control::Extend { volume: 1, bytes: 1 << 40 },
            Control::Resize { volume: 2, bytes: 1 << 41 },
            Control::DiskSize { volume: 63, bytes: u64::MAX },
        ];
        for &outcome in Outcome::ALL {
            let ended = ended(outcome);
            all.push(Control::Prepared { epoch, ended });
            all.push(Control::Committed { epoch, ended });
            all.push(Control::Aborted { epoch, ended });
        }
        for control in all {
            let (message, payload) = encode_control(Generation(3), &control);
            let header = parse(&message.encode(payload.len() as u32, None)).expect("valid");
            let bufs: Vec<Buf> = Buf::heap(payload.len()).into_iter().collect();
            bufs.iter().for_each(|buf| buf.write_at(0, &payload));
            assert_eq!(parse_control(&header, &bufs), Ok(Some((Generation(3), control))));
        }
    }
}
