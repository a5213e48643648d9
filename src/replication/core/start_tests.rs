//! How a primary's group gets its session: a peer that is late, one that is reached and does not begin, a change of mind.

use super::super::{Epoch, Generation, Lineage, Past};
use super::*;

type Out = Vec<GroupOutput>;

fn group() -> PrimaryGroup {
    let config = PrimaryGroupConfig {
        reactors: 1,
        checkpoint_timeout_ms: 1000,
        checkpoint_interval_ms: 0,
        on_disk_failure: OnDiskFailure::Report,
        begin_timeout_ms: 700,
    };
    PrimaryGroup::new(config, GroupRecord { generation: Generation(1), ..GroupRecord::default() }, &[])
}

fn start(group: &mut PrimaryGroup, wait_ms: u32) -> Out {
    let mut out = Vec::new();
    group.start(1, SyncMode::None, wait_ms, &mut out);
    out
}

fn connect(group: &mut PrimaryGroup) -> Out {
    let mut out = Vec::new();
    group.connected(&greeting(Lineage(0)), &[], &mut out);
    out
}

/// A peer as it greets in session 5.
fn greeting(lineage: Lineage) -> Greeting {
    Greeting {
        newest: Epoch(7),
        generation: Generation(1),
        lanes: 1,
        lineage,
        past: Past::default(),
        consistent: true,
        restarted: false,
        session: 5,
    }
}

fn begun(group: &mut PrimaryGroup, epoch: u64) -> Out {
    let mut out = Vec::new();
    let begin = Control::Begin { epoch: Epoch(epoch), sync: SyncMode::None, lineage: Lineage(5) };
    group.message(begin, &mut out);
    out
}

fn expire(group: &mut PrimaryGroup, armed: Armed) -> Out {
    let mut out = Vec::new();
    group.timer(armed, Peer::Silent, &mut out);
    out
}

fn armed(out: &Out) -> Option<(Armed, u32)> {
    out.iter().find_map(|output| match output {
        GroupOutput::ArmTimer { armed, after_ms } => Some((*armed, *after_ms)),
        _ => None,
    })
}

fn answers(out: &Out) -> Vec<Result<Success, GroupError>> {
    let answer = |output: &GroupOutput| match output {
        GroupOutput::Reply { result, .. } => Some(*result),
        _ => None,
    };
    out.iter().filter_map(answer).collect()
}

#[test]
fn a_start_that_waited_in_vain_says_so_and_the_attempts_go_on() {
    let mut group = group();
    let out = start(&mut group, 300);
    let (deadline, after) = armed(&out).expect("a deadline");
    assert_eq!((after, out.contains(&GroupOutput::Connect), answers(&out).len()), (300, true, 0));
    let out = expire(&mut group, deadline);
    assert_eq!(out, [GroupOutput::Reply { command: 1, result: Err(GroupError::NoPeer) }]);
    assert_eq!(group.state(), PrimaryState::Connecting);
    connect(&mut group);
    let out = begun(&mut group, 8);
    assert_eq!((group.state(), answers(&out).len()), (PrimaryState::Running, 0), "it was answered before");
}

#[test]
fn a_start_that_waits_for_nothing_is_answered_at_once() {
    let mut group = group();
    let out = start(&mut group, 0);
    assert_eq!((answers(&out), armed(&out)), (vec![Ok(Success::Done)], None));
    assert_eq!(group.state(), PrimaryState::Connecting);
}

#[test]
fn a_start_is_answered_when_the_peer_is_ready_and_not_when_it_is_reached() {
    let mut group = group();
    start(&mut group, 300);
    let out = connect(&mut group);
    assert!(answers(&out).is_empty());
    assert_eq!(armed(&out), None, "the deadline of the start covers this too");
    assert_eq!(answers(&begun(&mut group, 8)), [Ok(Success::Done)]);
}

#[test]
fn a_peer_that_was_reached_and_does_not_begin_is_tried_again_with_a_newer_epoch() {
    let mut group = group();
    start(&mut group, 0);
    let (deadline, after) = armed(&connect(&mut group)).expect("a deadline");
    assert_eq!(after, 700);
    assert_eq!(expire(&mut group, deadline), [GroupOutput::Connect]);
    assert_eq!(group.state(), PrimaryState::Connecting);
    connect(&mut group);
    assert!(begun(&mut group, 8).is_empty(), "an answer of the session before");
    begun(&mut group, 9);
    assert_eq!(group.state(), PrimaryState::Running);
    assert!(expire(&mut group, deadline).is_empty());
}

#[test]
fn a_start_that_fails_for_good_says_so_also_when_nobody_waits_for_it() {
    let mut group = group();
    start(&mut group, 0);
    let mut out = Vec::new();
    group.refused(GroupError::Refused, &mut out);
    assert!(out.contains(&GroupOutput::Event(GroupEvent::StartFailed(GroupError::Refused))), "{out:?}");
    assert_eq!(group.state(), PrimaryState::ResyncRequired);
}

#[test]
fn stopping_ends_the_attempts_and_answers_the_start() {
    let mut group = group();
    start(&mut group, 300);
    let mut out = Vec::new();
    group.stop(2, &mut out);
    assert_eq!(answers(&out), [Err(GroupError::Stopped), Ok(Success::Done)]);
    assert!(out.contains(&GroupOutput::Disconnect));
    assert_eq!(group.state(), PrimaryState::Stopped);
    assert!(connect(&mut group).is_empty(), "what was under way comes too late");
    assert!(!start(&mut group, 300).is_empty());
    assert_eq!(group.state(), PrimaryState::Connecting);
}

/// A group whose session was lost.
fn lost() -> PrimaryGroup {
    let mut group = group();
    start(&mut group, 0);
    connect(&mut group);
    begun(&mut group, 8);
    let mut out = Vec::new();
    group.disconnected(&mut out);
    assert_eq!(out.last(), Some(&GroupOutput::Reconnect));
    assert_eq!(group.state(), PrimaryState::ResyncRequired);
    group
}

#[test]
fn what_a_lost_peer_lacks_is_copied_only_to_a_disk_of_the_same_lineage() {
    let sync_of = |out: &Out| {
        out.iter().find_map(|output| match output {
            GroupOutput::Send(Control::Begin { sync, lineage, .. }) => Some((*sync, *lineage)),
            _ => None,
        })
    };
    let mut out = Vec::new();
    lost().connected(&greeting(Lineage(5)), &[], &mut out);
    assert_eq!(sync_of(&out), Some((SyncMode::Changed, Lineage(5))));
    // The peer restarted, or followed somebody else meanwhile.
    for lineage in [Lineage(0), Lineage(6)] {
        let mut group = lost();
        let mut out = Vec::new();
        group.connected(&greeting(lineage), &[], &mut out);
        assert!(
            out.contains(&GroupOutput::Event(GroupEvent::StartFailed(GroupError::UnknownPeer))),
            "{out:?}"
        );
        assert_eq!((sync_of(&out), group.wants_peer()), (None, false));
        assert_eq!(group.state(), PrimaryState::ResyncRequired);
    }
    // Neither has a lineage: they have nothing in common.
    let mut group = group();
    let mut out = Vec::new();
    group.start(1, SyncMode::Changed, 300, &mut out);
    assert_eq!(answers(&connect(&mut group)), [Err(GroupError::UnknownPeer)]);
}

#[test]
fn a_failed_flush_of_the_peer_ends_what_is_known_of_its_disk() {
    let mut group = group();
    start(&mut group, 0);
    connect(&mut group);
    begun(&mut group, 8);
    let mut out = Vec::new();
    group.event(StripeEvent::PeerFlushFailed, &mut out);
    group.event(StripeEvent::PeerFailed(PeerRefusal::DiskWrite), &mut out);
    group.connected(&greeting(Lineage(5)), &[], &mut out);
    assert!(out.contains(&GroupOutput::Event(GroupEvent::StartFailed(GroupError::UnknownPeer))), "{out:?}");
}

#[test]
fn a_lost_peer_that_does_not_begin_or_refuses_is_sought_on_with_pauses() {
    let mut group = lost();
    let mut out = Vec::new();
    group.connected(&greeting(Lineage(5)), &[], &mut out);
    let (deadline, _) = armed(&out).expect("a deadline");
    assert_eq!(expire(&mut group, deadline), [GroupOutput::Reconnect]);
    assert!(group.wants_peer() && group.state() == PrimaryState::ResyncRequired);
    group.connected(&greeting(Lineage(5)), &[], &mut out);
    group.refused(GroupError::Refused, &mut out);
    assert!(group.wants_peer() && group.state() == PrimaryState::ResyncRequired);
    group.refused(GroupError::Refused, &mut out);
    assert!(group.wants_peer());
    group.stop(2, &mut out);
    assert!(!group.wants_peer(), "until an operator ends it");
}

#[test]
fn a_peer_that_was_restarted_lacks_more_than_was_marked_and_the_machines_hear_of_it_first() {
    let mut group = lost();
    let mut out = Vec::new();
    group.connected(&Greeting { restarted: true, ..greeting(Lineage(5)) }, &[], &mut out);
    assert_eq!(out.first(), Some(&GroupOutput::ToStripes(ToStripes::PeerRestarted)));
    let begin = Control::Begin { epoch: Epoch(9), sync: SyncMode::Changed, lineage: Lineage(5) };
    assert!(out.contains(&GroupOutput::Send(begin)), "{out:?}");
}

#[test]
fn what_a_lost_session_had_copied_does_not_count_for_the_next() {
    let config = PrimaryGroupConfig {
        reactors: 1,
        checkpoint_timeout_ms: 1000,
        checkpoint_interval_ms: 0,
        on_disk_failure: OnDiskFailure::Report,
        begin_timeout_ms: 700,
    };
    let size = VolumeSize { volume_bytes: 1 << 20, disk_bytes: 1 << 20 };
    let record = GroupRecord { generation: Generation(1), ..GroupRecord::default() };
    let mut group = PrimaryGroup::new(config, record, &[size; 2]);
    let mut out = Vec::new();
    group.start(1, SyncMode::Full, 0, &mut out);
    group.connected(&greeting(Lineage(0)), &[size; 2], &mut out);
    begun(&mut group, 8);
    group.disconnected(&mut out);
    // It was on its way when the session was lost.
    group.volume_copied(0, &mut out);
    group.connected(&greeting(Lineage(5)), &[size; 2], &mut out);
    begun(&mut group, 9);
    out.clear();
    group.volume_copied(0, &mut out);
    assert_eq!((group.state(), &out), (PrimaryState::Syncing, &vec![]), "the other volume is not copied yet");
    group.volume_copied(0, &mut out);
    assert!(out.contains(&GroupOutput::ToStripes(ToStripes::Freeze)), "the end of the sync: {out:?}");
}

#[test]
fn a_session_that_the_secondary_cannot_begin_does_not_keep_the_next_one_out() {
    let begin = |epoch| Control::Begin { epoch: Epoch(epoch), sync: SyncMode::Full, lineage: Lineage(1) };
    for record_fails in [false, true] {
        let config = SecondaryGroupConfig { reactors: 1, buffer: true, failover_timeout_ms: 1000 };
        let mut group = SecondaryGroup::new(config, GroupRecord::default(), &[]);
        let mut out = Vec::new();
        group.connected(&[]);
        group.message(begin(1), &mut out);
        assert!(matches!(out[..], [GroupOutput::PersistRecord(..)]), "{out:?}");
        if record_fails {
            group.persisted(false, &mut out);
        } else {
            // The link is lost while the record is being written, and the primary comes again too early.
            group.disconnected(&mut out);
            assert!(group.accepts());
            group.connected(&[]);
            out.clear();
            group.message(begin(2), &mut out);
        }
        assert!(out.contains(&GroupOutput::Disconnect), "{out:?}");
        assert!(group.accepts(), "it may come again");
    }
}
