//! The order in which journal and disk get what they get.

use super::super::{Epoch, Generation, Sequence};
use super::model::{Bytes, Maps, bytes, filled};
use super::*;

type Machine = SecondaryStripes<Bytes, Maps>;
type Out = Vec<SecondaryOutput<Bytes>>;

fn machine() -> Machine {
    let geometry = Geometry { blocks: 64, block_bytes: 4096, granule_blocks: 1, owners: 1, owner: 0 };
    let config = SecondaryConfig { geometry, buffer: true, journal: true, hung_ticks: 3 };
    let mut machine = SecondaryStripes::new(config, Maps::new(geometry, 1000), Generation(1), Epoch(0));
    machine.begin(Generation(1), Epoch(0), 64, Originals::Anew);
    machine
}

fn write(machine: &mut Machine, sequence: u64, epoch: u64, lba: u64, preserve: bool) -> Out {
    let mut out = Vec::new();
    let range = Range::new(lba, 1);
    let body = ForwardBody::Write { range, data: filled(7, 1), fua: false, preserve };
    let forward = Forward { epoch: Epoch(epoch), generation: Generation(1), body };
    machine.forwarded(0, Sequence(sequence), forward, &mut out);
    out
}

/// The operation of the only output of a kind.
macro_rules! op_of {
    ($out:expr, $kind:ident) => {{
        let out = &$out;
        let ops: Vec<OpId> = out
            .iter()
            .filter_map(|output| match output {
                SecondaryOutput::$kind { op, .. } => Some(*op),
                _ => None,
            })
            .collect();
        assert_eq!((ops.len(), out.len()), (1, 1), "{out:?}");
        ops[0]
    }};
}

fn preserve(machine: &mut Machine, op: OpId, lba: u64) -> Out {
    let mut out = Vec::new();
    machine.preserve_read(op, Range::new(lba, 1), Some(&bytes(lba as u8, 1)), &mut out);
    out
}

fn journaled(machine: &mut Machine, op: OpId, outcome: Journaled) -> Out {
    let mut out = Vec::new();
    machine.journaled(op, outcome, &mut out);
    out
}

fn prepare(machine: &mut Machine, epoch: u64) -> Out {
    let mut out = Vec::new();
    machine.prepare(Epoch(epoch), &mut out);
    out
}

fn done(machine: &mut Machine, op: OpId) -> Out {
    let mut out = Vec::new();
    machine.write_done(op, true, &mut out);
    out
}

/// A write that went all the way.
fn applied(machine: &mut Machine, sequence: u64, epoch: u64, lba: u64) {
    let op = op_of!(write(machine, sequence, epoch, lba, true), PreserveRead);
    let op = op_of!(preserve(machine, op, lba), Journal);
    let op = op_of!(journaled(machine, op, Journaled::Durable), SubmitWrite);
    op_answer(&done(machine, op));
}

fn op_answer(out: &Out) {
    assert!(matches!(out[..], [SecondaryOutput::Answer { answer: Answer::Applied, .. }]), "{out:?}");
}

#[test]
fn a_write_goes_in_place_only_when_its_original_is_durable() {
    let mut machine = machine();
    let op = op_of!(write(&mut machine, 1, 1, 5, true), PreserveRead);
    let out = preserve(&mut machine, op, 5);
    match &out[..] {
        [SecondaryOutput::Journal { epoch, range, content: Some(content), lost_through, .. }] => {
            assert_eq!((*epoch, *range, *lost_through), (Epoch(1), Range::new(5, 1), Epoch(0)));
            assert_eq!(content.to_vec(), [5]);
        }
        other => panic!("{other:?}"),
    }
    // What overlaps waits until then, and needs nothing of its own.
    assert!(write(&mut machine, 2, 1, 5, true).is_empty());
    let op = op_of!(journaled(&mut machine, op, Journaled::Durable), SubmitWrite);
    let out = done(&mut machine, op);
    assert!(
        matches!(out[..], [SecondaryOutput::Answer { .. }, SecondaryOutput::SubmitWrite { .. }]),
        "{out:?}"
    );
}

#[test]
fn without_room_it_is_durable_that_there_is_no_way_back_before_anything_goes_in_place() {
    let mut machine = machine();
    let op = op_of!(write(&mut machine, 1, 1, 5, true), PreserveRead);
    let op = op_of!(preserve(&mut machine, op, 5), Journal);
    let out = journaled(&mut machine, op, Journaled::Full);
    match &out[..] {
        [
            SecondaryOutput::Event(StripeEvent::JournalOverrun(Epoch(1))),
            SecondaryOutput::Journal { content: None, lost_through: Epoch(1), .. },
        ] => {}
        other => panic!("{other:?}"),
    }
    op_of!(journaled(&mut machine, op, Journaled::Durable), SubmitWrite);
    // It is said once for the epoch; the next one begins anew.
    let op = op_of!(write(&mut machine, 2, 1, 6, true), PreserveRead);
    op_of!(preserve(&mut machine, op, 6), SubmitWrite);
    let op = op_of!(write(&mut machine, 3, 2, 7, true), PreserveRead);
    op_of!(preserve(&mut machine, op, 7), Journal);
}

#[test]
fn a_sync_that_keeps_no_originals_says_so_before_it_writes() {
    let mut machine = machine();
    let out = write(&mut machine, 1, 1, 5, false);
    assert!(
        matches!(out[..], [SecondaryOutput::Journal { content: None, lost_through: Epoch(1), .. }]),
        "{out:?}"
    );
    let op = op_of!(out, Journal);
    op_of!(journaled(&mut machine, op, Journaled::Durable), SubmitWrite);
    op_of!(write(&mut machine, 2, 1, 6, false), SubmitWrite);
}

#[test]
fn a_journal_that_fails_ends_the_following_and_nothing_goes_in_place() {
    let mut machine = machine();
    let first = op_of!(write(&mut machine, 1, 1, 5, true), PreserveRead);
    let first = op_of!(preserve(&mut machine, first, 5), Journal);
    let second = op_of!(write(&mut machine, 2, 1, 6, true), PreserveRead);
    let out = journaled(&mut machine, first, Journaled::Failed);
    let refused = Answer::Failed(PeerRefusal::CopyBeforeWrite);
    match &out[..] {
        [SecondaryOutput::Event(StripeEvent::JournalFailed), SecondaryOutput::Answer { answer, .. }] => {
            assert_eq!(*answer, refused)
        }
        other => panic!("{other:?}"),
    }
    let out = preserve(&mut machine, second, 6);
    assert!(matches!(&out[..], [SecondaryOutput::Answer { answer, .. }] if *answer == refused), "{out:?}");
    assert_eq!(machine.broken(), Some(PeerRefusal::CopyBeforeWrite));
}

#[test]
fn what_was_held_while_the_journal_hung_goes_in_place_after_a_failover_and_not_before() {
    let mut machine = machine();
    let op = op_of!(write(&mut machine, 1, 1, 5, true), PreserveRead);
    let op = op_of!(preserve(&mut machine, op, 5), Journal);
    let mut out = Vec::new();
    (0..4).for_each(|_| machine.tick(&mut out));
    let pinned = |output: &SecondaryOutput<Bytes>| {
        matches!(output, SecondaryOutput::Answer { answer: Answer::Pinned, .. })
    };
    assert!(out.iter().any(pinned), "{out:?}");
    let out = journaled(&mut machine, op, Journaled::Failed);
    assert!(matches!(out[..], [SecondaryOutput::Event(StripeEvent::JournalFailed)]), "{out:?}");
    let mut out = Vec::new();
    machine.tick(&mut out);
    assert!(out.is_empty(), "{out:?}");
    assert_eq!(machine.promote(Keep::Latest, Generation(2), &mut out), Ok(()));
    machine.tick(&mut out);
    assert!(out.iter().any(|output| matches!(output, SecondaryOutput::SubmitWrite { .. })), "{out:?}");
}

#[test]
fn what_is_prepared_is_durable_only_when_it_was_flushed_and_nothing_is_held_in_memory() {
    let standing = |out: &Out| match out[..] {
        [SecondaryOutput::Prepared { result: Ok(standing), .. }] => standing,
        ref other => panic!("{other:?}"),
    };
    let mut machine = machine();
    applied(&mut machine, 1, 1, 5);
    let flush = op_of!(prepare(&mut machine, 1), SubmitFlush);
    let mut out = Vec::new();
    machine.flush_done(flush, true, &mut out);
    assert_eq!(standing(&out), Standing::Durable);
    machine.commit(Epoch(1), &mut Vec::new());
    // Nothing was written since: nothing to flush.
    assert_eq!(standing(&prepare(&mut machine, 2)), Standing::Durable);
    machine.commit(Epoch(2), &mut Vec::new());
    // A flush that hangs costs the standing, not the checkpoint.
    applied(&mut machine, 2, 3, 6);
    let flush = op_of!(prepare(&mut machine, 3), SubmitFlush);
    let mut out = Vec::new();
    machine.settle(Epoch(3), &mut out);
    assert_eq!(standing(&out), Standing::Volatile);
    out.clear();
    machine.flush_done(flush, true, &mut out);
    assert!(out.is_empty(), "{out:?}");
    machine.commit(Epoch(3), &mut out);
    op_of!(prepare(&mut machine, 4), SubmitFlush);
    machine.abort();
    // So does a write that is held in memory.
    let op = op_of!(write(&mut machine, 3, 5, 7, true), PreserveRead);
    let op = op_of!(preserve(&mut machine, op, 7), Journal);
    op_of!(journaled(&mut machine, op, Journaled::Durable), SubmitWrite);
    assert!(prepare(&mut machine, 5).is_empty());
    let mut out = Vec::new();
    machine.settle(Epoch(5), &mut out);
    let last = vec![out.pop().expect("outputs")];
    let prepared =
        last.into_iter().chain(out).find(|output| matches!(output, SecondaryOutput::Prepared { .. }));
    assert_eq!(standing(&prepared.into_iter().collect()), Standing::Volatile);
}

#[test]
fn a_flush_that_fails_fails_the_checkpoint_and_is_heard_of_even_if_nobody_waits() {
    let failed = |out: &Out| {
        matches!(out.first(), Some(SecondaryOutput::Event(StripeEvent::FlushFailed))).then_some(out.len())
    };
    for waits in [true, false] {
        let mut machine = machine();
        applied(&mut machine, 1, 1, 5);
        let flush = op_of!(prepare(&mut machine, 1), SubmitFlush);
        let mut out = Vec::new();
        if !waits {
            machine.settle(Epoch(1), &mut out);
            out.clear();
        }
        machine.flush_done(flush, false, &mut out);
        assert_eq!(failed(&out), Some(1 + usize::from(waits)), "{out:?}");
        assert_eq!(machine.broken(), Some(PeerRefusal::DiskWrite));
    }
}
