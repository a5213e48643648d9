//! The primary's rules, one by one.

use super::super::{Epoch, Generation};
use super::model::{Bytes, bytes, filled};
use super::*;

type Out = Vec<PrimaryOutput<Bytes>>;

struct Bench {
    machine: PrimaryStripes<Bytes>,
    out: Out,
}

impl Bench {
    fn new(ack: AckMode, on_link_loss: OnLinkLoss) -> Bench {
        Bench::with(ack, on_link_loss, 4096, LAG_BYTES)
    }

    fn with(ack: AckMode, on_link_loss: OnLinkLoss, block_bytes: u32, lag_limit_bytes: u64) -> Bench {
        let geometry = Geometry { blocks: 2048, block_bytes, granule_blocks: 1, owners: 1, owner: 0 };
        let mut bench = Bench {
            machine: PrimaryStripes::new(PrimaryConfig {
                geometry,
                ack,
                on_link_loss,
                on_disk_failure: OnDiskFailure::Report,
                lag_limit_bytes,
            }),
            out: Vec::new(),
        };
        bench.up(1, Epoch(1));
        bench
    }

    fn up(&mut self, lanes: u16, epoch: Epoch) {
        let session = Session { lanes, generation: Generation(1), epoch, preserve: true };
        self.machine.link_up(session, &mut self.out);
    }

    fn write(&mut self, token: Token, lba: u64, blocks: u32) {
        let command = Command::Write { range: Range::new(lba, blocks), data: filled(1, blocks), fua: false };
        self.machine.submit(token, command, &mut self.out);
    }

    fn submitted(&mut self) -> Vec<OpId> {
        self.out
            .iter()
            .filter_map(|output| match output {
                PrimaryOutput::SubmitWrite { op, .. } | PrimaryOutput::SubmitFlush { op } => Some(*op),
                _ => None,
            })
            .collect()
    }

    /// Lane and epoch of everything sent.
    fn sent(&self) -> Vec<(Lane, u64)> {
        self.out
            .iter()
            .filter_map(|output| match output {
                PrimaryOutput::Send { lane, forward, .. } => Some((*lane, forward.epoch.0)),
                _ => None,
            })
            .collect()
    }

    fn sent_op(&self, at: usize) -> OpId {
        let mut sends = self.out.iter().filter_map(|output| match output {
            PrimaryOutput::Send { op, .. } => Some(*op),
            _ => None,
        });
        sends.nth(at).expect("sent")
    }

    fn received(&mut self, at: usize) {
        let op = self.sent_op(at);
        self.machine.received(op, &mut self.out);
    }

    fn applied(&mut self, at: usize) {
        let op = self.sent_op(at);
        self.machine.applied(op, &mut self.out);
    }

    fn asks_to_go_alone(&self) -> usize {
        let asks = |out: &&PrimaryOutput<_>| matches!(out, PrimaryOutput::Event(StripeEvent::WantsAlone));
        self.out.iter().filter(asks).count()
    }

    fn replies(&self) -> Vec<(Token, Result<(), Refusal>)> {
        self.out
            .iter()
            .filter_map(|output| match output {
                PrimaryOutput::Reply { token, result } => Some((*token, *result)),
                _ => None,
            })
            .collect()
    }

    fn local(&mut self, op: OpId, ok: bool) {
        self.machine.local_done(op, ok, &mut self.out);
    }
}

#[test]
fn a_write_goes_to_both_sides_at_once_and_is_acknowledged_by_the_mode() {
    for (mode, after) in [(AckMode::Local, 1), (AckMode::Received, 2), (AckMode::Applied, 3)] {
        let mut bench = Bench::new(mode, OnLinkLoss::Continue);
        bench.write(7, 0, 4);
        let ops = bench.submitted();
        assert_eq!((ops.len(), bench.sent()), (1, vec![(0, 1)]));
        assert!(bench.replies().is_empty());
        bench.local(ops[0], true);
        assert_eq!(bench.replies().len(), usize::from(after == 1));
        bench.received(0);
        assert_eq!(bench.replies().len(), usize::from(after <= 2));
        bench.applied(0);
        assert_eq!(bench.replies(), [(7, Ok(()))]);
        assert_eq!(bench.machine.in_flight(), 0);
        assert_eq!(bench.machine.dirty().bytes(), 0);
    }
}

#[test]
fn the_local_disk_must_have_the_write_whatever_the_peer_says() {
    let mut bench = Bench::new(AckMode::Received, OnLinkLoss::Continue);
    bench.write(7, 0, 4);
    bench.applied(0);
    assert!(bench.replies().is_empty());
    let ops = bench.submitted();
    bench.local(ops[0], false);
    assert_eq!(bench.replies(), [(7, Err(Refusal::Disk))]);
    assert!(bench.machine.dirty().is_dirty(Range::new(0, 4)), "the disks differ now");
}

#[test]
fn overlapping_writes_reach_disk_and_peer_in_one_order() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.write(1, 0, 4);
    bench.write(2, 2, 4);
    bench.write(3, 100, 1);
    let ops = bench.submitted();
    assert_eq!((ops.len(), bench.sent().len()), (2, 2), "the second waits, the third does not");
    bench.local(ops[0], true);
    assert_eq!((bench.submitted().len(), bench.sent().len()), (3, 3));
}

#[test]
fn a_lost_link_marks_what_was_in_flight_and_goes_on() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.write(1, 0, 4);
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.machine.link_down(&mut bench.out);
    assert!(bench.replies().is_empty(), "not before this node has a name for what it does alone");
    assert_eq!(bench.asks_to_go_alone(), 1);
    bench.machine.go_alone(&mut bench.out);
    assert_eq!(bench.replies(), [(1, Ok(()))]);
    assert!(bench.machine.dirty().is_dirty(Range::new(0, 4)));
    bench.write(2, 500, 4);
    let ops = bench.submitted();
    bench.local(ops[1], true);
    assert_eq!(bench.replies().len(), 2);
    assert!(bench.machine.dirty().is_dirty(Range::new(500, 4)));
}

#[test]
fn a_lost_link_can_hold_writes_until_it_is_back() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Block);
    bench.write(1, 0, 4);
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.machine.link_down(&mut bench.out);
    bench.write(2, 500, 4);
    assert!(bench.replies().is_empty() && bench.submitted().len() == 1);
    bench.out.clear();
    bench.up(1, Epoch(5));
    assert_eq!(bench.sent(), [(0, 5), (0, 5)]);
    assert_eq!(bench.sent_op(0), ops[0], "what was lost goes first");
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.applied(0);
    bench.applied(1);
    assert_eq!(bench.replies(), [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn an_operator_can_release_what_a_lost_link_holds() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Block);
    bench.write(1, 0, 4);
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.machine.link_down(&mut bench.out);
    bench.write(2, 500, 4);
    assert_eq!(bench.asks_to_go_alone(), 0);
    bench.machine.set_on_link_loss(OnLinkLoss::Continue, &mut bench.out);
    assert_eq!((bench.asks_to_go_alone(), bench.replies().len()), (1, 0));
    bench.machine.go_alone(&mut bench.out);
    let ops = bench.submitted();
    bench.local(ops[1], true);
    assert_eq!(bench.replies(), [(1, Ok(())), (2, Ok(()))]);
    assert!(bench.machine.dirty().is_dirty(Range::new(500, 4)));
}

#[test]
fn a_weaker_mode_releases_what_is_in_flight() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.write(1, 0, 4);
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.machine.set_ack(AckMode::Local, &mut bench.out);
    assert_eq!(bench.replies(), [(1, Ok(()))]);
}

#[test]
fn a_lagging_peer_holds_acknowledgements_back_until_it_has_caught_up() {
    for mode in [AckMode::Local, AckMode::Received] {
        let mut bench = Bench::with(mode, OnLinkLoss::Continue, 4096, 4 * 4096);
        for token in 0..6 {
            bench.write(token, token * 8, 1);
            bench.received(token as usize);
            let op = bench.submitted()[token as usize];
            bench.local(op, true);
        }
        assert_eq!(bench.replies().len(), 4, "the last two would leave the peer too far behind");
        bench.applied(5);
        assert_eq!(bench.replies().len(), 5, "one that the peer has waits for nothing");
        bench.applied(0);
        assert_eq!(bench.replies().len(), 6);
        (1..5).for_each(|at| bench.applied(at));
        assert_eq!((bench.machine.in_flight(), bench.machine.lag_bytes()), (0, 0));
    }
}

#[test]
fn small_writes_lag_by_the_buffers_that_hold_them() {
    let mut bench = Bench::with(AckMode::Local, OnLinkLoss::Continue, 512, 2 * 4096);
    for token in 0..3 {
        bench.write(token, token * 8, 1);
        let op = bench.submitted()[token as usize];
        bench.local(op, true);
    }
    assert_eq!((bench.replies().len(), bench.machine.lag_bytes()), (2, 3 * 512));
}

#[test]
fn a_lost_link_releases_what_its_lag_held_back_as_the_policy_says() {
    for (policy, replies) in [(OnLinkLoss::Continue, 2), (OnLinkLoss::Block, 1)] {
        let mut bench = Bench::with(AckMode::Local, policy, 4096, 4096);
        for token in 0..2 {
            bench.write(token, token * 8, 1);
            let op = bench.submitted()[token as usize];
            bench.local(op, true);
        }
        assert_eq!(bench.replies().len(), 1);
        bench.machine.link_down(&mut bench.out);
        bench.machine.go_alone(&mut bench.out);
        assert_eq!(bench.replies().len(), replies);
        // Sent again in the next session, it is held back and released as before.
        bench.up(1, Epoch(2));
        if policy == OnLinkLoss::Block {
            let again = bench.sent().len() - 1;
            bench.applied(again);
        }
        assert_eq!((bench.replies().len(), bench.machine.in_flight()), (2, 0));
    }
}

#[test]
fn a_connection_that_is_full_holds_launches_back_also_over_a_cut() {
    let mut bench = Bench::new(AckMode::Local, OnLinkLoss::Continue);
    bench.machine.hold_back();
    bench.write(1, 0, 1);
    bench.machine.freeze();
    bench.machine.stamp(Epoch(2), true, &mut bench.out);
    assert!(bench.submitted().is_empty() && bench.sent().is_empty());
    bench.machine.go_on(&mut bench.out);
    assert_eq!(bench.sent(), [(0, 2)]);
    bench.machine.hold_back();
    bench.write(2, 8, 1);
    bench.machine.link_down(&mut bench.out);
    assert_eq!(bench.asks_to_go_alone(), 1);
    bench.machine.go_alone(&mut bench.out);
    assert_eq!(bench.submitted().len(), 2, "a connection that is gone holds nothing back");
}

#[test]
fn a_compare_that_differs_writes_nothing_anywhere() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    for (token, found) in [(1, 9), (2, 5)] {
        let range = Range::new(0, 2);
        let command = Command::CompareAndWrite {
            range,
            compare: bytes(5, 2),
            data: bytes(6, 2),
            scratch: bytes(0, 2),
            fua: false,
        };
        bench.machine.submit(token, command, &mut bench.out);
        let op = bench.out.iter().rev().find_map(|output| match output {
            PrimaryOutput::CompareRead { op, .. } => Some(*op),
            _ => None,
        });
        bench.machine.compare_read(op.expect("a read"), Some(&bytes(found, 2)), &mut bench.out);
    }
    assert_eq!(bench.replies(), [(1, Err(Refusal::Miscompare))]);
    assert_eq!((bench.submitted().len(), bench.sent().len()), (1, 1));
}

#[test]
fn a_frozen_machine_launches_nothing_and_a_cut_stamps_what_waits_with_the_next_epoch() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.write(1, 0, 4);
    bench.machine.freeze();
    bench.write(2, 100, 4);
    assert_eq!(bench.sent(), [(0, 1)]);
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.applied(0);
    assert_eq!(bench.replies(), [(1, Ok(()))], "a freeze holds no acknowledgement of what was launched");
    bench.machine.stamp(Epoch(2), true, &mut bench.out);
    assert_eq!(bench.sent(), [(0, 1), (0, 2)]);
}

#[test]
fn a_fenced_primary_acknowledges_nothing_any_more() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.write(1, 0, 4);
    bench.write(2, 0, 4);
    bench.machine.fence(&mut bench.out);
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.write(3, 0, 4);
    let fenced = Err(Refusal::Fenced);
    assert_eq!(bench.replies(), [(1, fenced), (2, fenced), (3, fenced)]);
    assert_eq!(bench.submitted().len(), 1, "and writes nothing that had not been launched");
    assert_eq!(bench.machine.may_read(), Err(Refusal::Fenced));
    assert_eq!(bench.machine.in_flight(), 0);
}

#[test]
fn a_flush_is_a_barrier_on_every_lane() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.machine.link_down(&mut bench.out);
    bench.up(2, Epoch(2));
    bench.machine.submit(1, Command::Flush, &mut bench.out);
    assert_eq!(bench.sent().len(), 2);
    let ops = bench.submitted();
    bench.local(ops[0], true);
    bench.applied(0);
    assert!(bench.replies().is_empty());
    bench.applied(1);
    assert_eq!(bench.replies(), [(1, Ok(()))]);
}

#[test]
fn a_full_sync_copies_everything_while_a_write_waits_only_for_its_own_range() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.machine.start_copy(false, &mut bench.out);
    bench.write(1, 0, 4);
    bench.write(2, 1500, 4);
    assert_eq!(bench.submitted().len(), 1, "the first eight pieces are being read, the rest is free");
    let (mut copied, mut finished) = (0, false);
    loop {
        let batch: Vec<_> = std::mem::take(&mut bench.out);
        if batch.is_empty() {
            break;
        }
        for output in batch {
            match output {
                PrimaryOutput::CopyRead { op, range } => {
                    copied += range.blocks;
                    bench.machine.copy_read(op, Some(bytes(3, range.blocks)), &mut bench.out);
                }
                PrimaryOutput::SubmitWrite { op, .. } => bench.local(op, true),
                PrimaryOutput::Send { op, .. } => bench.machine.applied(op, &mut bench.out),
                PrimaryOutput::Event(StripeEvent::CopyFinished) => finished = true,
                _ => {}
            }
        }
    }
    assert!(finished);
    assert_eq!((copied, bench.machine.in_flight()), (2048, 0));
}

#[test]
fn a_late_read_of_a_copy_that_the_link_ended_is_ignored_and_the_new_round_reads_again() {
    let mut bench = Bench::new(AckMode::Applied, OnLinkLoss::Continue);
    bench.machine.start_copy(false, &mut bench.out);
    let reads: Vec<OpId> = bench
        .out
        .iter()
        .filter_map(|output| match output {
            PrimaryOutput::CopyRead { op, .. } => Some(*op),
            _ => None,
        })
        .collect();
    bench.machine.copy_read(reads[0], Some(bytes(3, 64)), &mut bench.out);
    bench.machine.link_down(&mut bench.out);
    bench.up(1, Epoch(2));
    bench.machine.start_copy(false, &mut bench.out);
    let sent = bench.sent().len();
    bench.machine.copy_read(reads[1], Some(bytes(3, 64)), &mut bench.out);
    assert_eq!(bench.sent().len(), sent);
    let again = bench.out.iter().filter(
        |output| matches!(output, PrimaryOutput::CopyRead { range, .. } if *range == Range::new(64, 64)),
    );
    assert_eq!(again.count(), 2, "the new round reads it itself");
}
