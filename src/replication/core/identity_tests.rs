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
fn both_have_the_same_name_when_a_copy_has_ended() {
    let goes_on = Decision::Marked { source: Who::Me };
    let (mut source, mut target) = (identity(4, 3, &[1]), identity(3, 0, &[1]));
    assert_eq!(
        both(serving(source), Standpoint { consistent: false, ..at(target) }),
        goes_on,
        "cut off anywhere"
    );
    target.end_target(source.current);
    assert_eq!(both(serving(source), at(target)), goes_on, "whoever has recorded it");
    source.end_source();
    assert_eq!(source, target);
    assert_eq!(source, identity(4, 0, &[3, 1]));
    for (mut source, mut target) in
        [(identity(4, 3, &[1]), identity(7, 6, &[5])), (identity(0, 0, &[]), identity(0, 0, &[]))]
    {
        source.pair(Lineage(20));
        target.begin_copy(Lineage(20));
        assert_eq!(both(serving(source), Standpoint { consistent: false, ..at(target) }), goes_on);
        assert_eq!(
            (source.current, target.current, source.base, target.base),
            (Lineage(20), Lineage(20), Lineage(0), Lineage(0))
        );
    }
}

#[test]
fn one_that_knows_nothing_any_more_gets_everything() {
    let from_me = Decision::Everything { source: Who::Me };
    let mut secondary = identity(3, 0, &[]);
    secondary.disown();
    assert_eq!(both(serving(identity(3, 0, &[])), at(secondary)), from_me);
    let mut promoted = secondary;
    promoted.promote(Lineage(5));
    assert_eq!(both(serving(promoted), at(identity(3, 0, &[]))), from_me, "it came from there");
    let mut alone = secondary;
    assert!(alone.write_alone(true, Lineage(6)));
    assert_eq!(
        both(serving(alone), serving(identity(7, 3, &[]))),
        Decision::SplitBrain,
        "it went on, from there"
    );
}

#[test]
fn who_gives_up_is_what_it_was_when_they_parted_but_for_its_marks() {
    let (winner, mut loser) = (identity(4, 3, &[]), identity(5, 3, &[]));
    assert_eq!(both(serving(winner), serving(loser)), Decision::SplitBrain);
    loser.give_up();
    assert_eq!(loser, identity(3, 0, &[5]));
    let offered = Standpoint { consistent: false, ..at(loser) };
    assert_eq!(both(serving(winner), offered), Decision::Marked { source: Who::Me });
    let (winner, mut loser) = (identity(4, 0, &[3]), identity(5, 3, &[]));
    loser.give_up();
    let offered = Standpoint { consistent: false, ..at(loser) };
    assert_eq!(both(serving(winner), offered), Decision::Everything { source: Who::Me });
}

#[test]
fn names_differ() {
    let mut names = Names::new(7);
    let all: std::collections::HashSet<Lineage> = (0..1000).map(|_| names.fresh()).collect();
    assert_eq!(all.len(), 1000);
}

#[test]
fn the_oldest_names_go_first() {
    let mut long = identity(1, 0, &[]);
    for name in 2..=20 {
        long.write_alone(true, Lineage(name));
    }
    assert_eq!(long, identity(20, 1, &[19, 18, 17, 16, 15, 14, 13, 12]));
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
            a.identity.pair(Lineage(fresh + 100));
        }
        let names: Vec<u64> = a.identity.history.iter().map(|name| name.0).filter(|&name| name != 0).collect();
        let different: std::collections::HashSet<u64> = names.iter().copied().collect();
        prop_assert_eq!(names.len(), different.len());
    }
}
