//! The table line by line, and that both nodes come to the same.

use super::super::Lineage;
use super::identity::*;
use proptest::prelude::*;

fn identity(current: u64, base: u64, history: &[u64]) -> Identity {
    let mut identity = Identity { current: Lineage(current), base: Lineage(base), ..Identity::default() };
    for (place, &name) in identity.history.iter_mut().zip(history) {
        *place = Lineage(name);
    }
    identity
}

fn at(identity: Identity) -> Standpoint {
    Standpoint { identity, consistent: true, primary: false, crashed: false }
}

fn serving(identity: Identity) -> Standpoint {
    Standpoint { primary: true, ..at(identity) }
}

fn both(me: Standpoint, peer: Standpoint) -> Decision {
    let verdict = decide(&me, &peer);
    assert_eq!(decide(&peer, &me), verdict.mirrored(), "{me:?} {peer:?}");
    verdict
}

#[test]
fn the_table_says_who_copies_what_to_whom() {
    use Decision::*;
    let verdict = |me: (u64, u64, &[u64]), peer: (u64, u64, &[u64])| {
        both(at(identity(me.0, me.1, me.2)), at(identity(peer.0, peer.1, peer.2)))
    };
    assert_eq!(verdict((0, 0, &[]), (0, 0, &[])), BothNew);
    assert_eq!(verdict((0, 0, &[3]), (3, 0, &[])), Everything { source: Who::Peer });
    assert_eq!(verdict((3, 2, &[1]), (0, 0, &[])), Everything { source: Who::Me });
    assert_eq!(verdict((3, 0, &[]), (3, 0, &[])), InStep);
    assert_eq!(verdict((3, 0, &[]), (4, 3, &[])), Marked { source: Who::Peer }, "it went on without me");
    assert_eq!(verdict((4, 3, &[]), (3, 2, &[])), Marked { source: Who::Me });
    assert_eq!(verdict((3, 0, &[]), (5, 4, &[3])), Everything { source: Who::Peer }, "it met another since");
    assert_eq!(verdict((4, 3, &[]), (5, 3, &[])), SplitBrain);
    assert_eq!(verdict((4, 3, &[]), (6, 5, &[3])), SplitBrain);
    assert_eq!(verdict((4, 0, &[3]), (5, 0, &[3])), SplitBrain);
    assert_eq!(verdict((4, 5, &[]), (5, 4, &[])), SplitBrain, "each says that the other has what it had");
    assert_eq!(verdict((4, 0, &[5]), (5, 0, &[4])), SplitBrain);
    assert_eq!(verdict((4, 3, &[2, 1]), (7, 6, &[5])), Unrelated);
    assert_eq!(verdict((4, 0, &[]), (7, 0, &[])), Unrelated, "zeroes are no names");
}

#[test]
fn of_one_name_the_one_that_serves_or_served_may_be_ahead() {
    let same = identity(3, 0, &[]);
    let crashed = |of: Standpoint| Standpoint { crashed: true, ..of };
    let partial = |of: Standpoint| Standpoint { consistent: false, ..of };
    let from_me = Decision::Marked { source: Who::Me };
    assert_eq!(both(serving(same), at(same)), from_me);
    assert_eq!(both(serving(same), crashed(at(same))), from_me, "its marks come to me");
    assert_eq!(both(crashed(serving(same)), at(same)), from_me);
    assert_eq!(both(crashed(at(same)), at(same)), from_me);
    assert_eq!(both(crashed(serving(same)), serving(same)), from_me);
    assert_eq!(both(at(same), partial(at(same))), from_me);
    assert_eq!(both(partial(at(same)), partial(at(same))), Decision::NeitherConsistent);
}

#[test]
fn what_is_inconsistent_is_never_copied_from() {
    let torn = |identity| Standpoint { consistent: false, ..at(identity) };
    let (old, new) = (identity(3, 0, &[]), identity(4, 3, &[]));
    assert_eq!(both(torn(old), at(new)), Decision::Marked { source: Who::Peer });
    assert_eq!(both(at(old), torn(new)), Decision::Inconsistent(Who::Peer));
    assert_eq!(both(at(identity(0, 0, &[])), torn(new)), Decision::Inconsistent(Who::Peer));
    assert_eq!(both(torn(identity(0, 0, &[])), at(new)), Decision::Everything { source: Who::Peer });
}

#[test]
fn a_name_is_changed_once_and_only_if_the_peer_may_have_it() {
    let mut new = identity(0, 0, &[]);
    assert!(!new.write_alone(true, Lineage(9)), "nobody has what was never in step");
    let mut alone = identity(3, 0, &[1]);
    assert!(alone.write_alone(false, Lineage(4)));
    assert_eq!(alone, identity(4, 3, &[1]));
    assert!(!alone.write_alone(false, Lineage(5)), "the peer has 3");
    assert!(alone.write_alone(true, Lineage(5)), "or it was told that it has 4");
    assert_eq!(
        (alone, alone.marks_hold_for()),
        (identity(5, 3, &[4, 1]), Lineage(3)),
        "the marks hold for 3 still"
    );
}

#[test]
fn both_have_the_same_identity_when_a_copy_has_ended() {
    for (mut source, mut target, full) in [
        (identity(4, 3, &[1]), identity(3, 0, &[1]), false),
        (identity(4, 3, &[1]), identity(7, 6, &[5]), true),
        (identity(0, 0, &[]), identity(0, 0, &[]), true),
    ] {
        if full {
            source.begin_full_source([Lineage(20), Lineage(21)]);
        }
        target.begin_target(source.marks_hold_for());
        let under_way = Standpoint { consistent: false, ..at(target) };
        let goes_on = Decision::Marked { source: Who::Me };
        assert_eq!(both(serving(source), under_way), goes_on, "wherever it is cut off");
        target.end_target(&source);
        assert_eq!(both(serving(source), at(target)), goes_on, "whoever has recorded it");
        source.end_source();
        assert_eq!((source, source.base), (target, Lineage(0)));
    }
}

#[test]
fn a_peer_that_is_not_known_any_more_gets_everything_and_one_that_knows_nothing_as_well() {
    let from_me = Decision::Everything { source: Who::Me };
    let mut primary = identity(3, 0, &[]);
    primary.forget_peer(Lineage(4));
    assert_eq!(both(serving(primary), at(identity(3, 0, &[]))), from_me);
    let mut secondary = identity(3, 0, &[]);
    secondary.disown();
    assert_eq!(both(serving(identity(3, 0, &[])), at(secondary)), from_me);
    secondary.promote(Lineage(5));
    assert_eq!(both(serving(secondary), at(identity(3, 0, &[]))), from_me, "it came from there");
    let mut new = identity(0, 0, &[]);
    new.forget_peer(Lineage(9));
    assert_eq!(new, identity(0, 0, &[]));
}

#[test]
fn the_oldest_names_go_first() {
    let mut long = identity(1, 0, &[]);
    for name in 2..=20 {
        long.write_alone(true, Lineage(name));
    }
    assert_eq!(long, identity(20, 1, &[19, 18, 17, 16, 15, 14, 13, 12]));
}

#[test]
fn the_loser_of_a_split_brain_gets_the_marks_of_both_if_they_are_relative_to_one_content() {
    assert_eq!(resolve(&identity(4, 3, &[]), &identity(5, 3, &[])), Resolution::Marked);
    assert_eq!(resolve(&identity(4, 3, &[]), &identity(6, 5, &[3])), Resolution::Everything);
    assert_eq!(resolve(&identity(0, 0, &[]), &identity(0, 0, &[])), Resolution::Everything);
}

fn any_standpoint() -> impl Strategy<Value = Standpoint> {
    let names = proptest::collection::vec(0..6u64, HISTORY);
    (0..6u64, 0..6u64, names, any::<[bool; 3]>()).prop_map(|(current, base, history, flags)| Standpoint {
        identity: identity(current, base, &history),
        consistent: flags[0],
        primary: flags[1],
        crashed: flags[2],
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]
    #[test]
    fn both_nodes_come_to_the_same_verdict_whatever_they_say(a in any_standpoint(), b in any_standpoint()) {
        prop_assert_eq!(decide(&a, &b), decide(&b, &a).mirrored());
    }

    #[test]
    fn no_name_is_in_the_history_twice(mut a in any_standpoint(), offered in any::<bool>()) {
        a.identity.history = Default::default();
        for fresh in 10..20 {
            a.identity.write_alone(offered, Lineage(fresh));
            a.identity.end_source();
            a.identity.begin_full_source([Lineage(fresh + 100), Lineage(fresh + 200)]);
        }
        let names: Vec<u64> = a.identity.history.iter().map(|name| name.0).filter(|&name| name != 0).collect();
        let different: std::collections::HashSet<u64> = names.iter().copied().collect();
        prop_assert_eq!(names.len(), different.len());
    }
}
