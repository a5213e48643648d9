//! Every order in which two nodes can write, lose each other, crash, take over, come back and get in step, checked against
//! what the identities promise. The rules are the production ones ([`Identity`], [`decide`]); the model adds
//! disks of two blocks, marks, one write under way for each node, and a ghost: the set of acknowledged writes and promotions
//! from which a disk's content comes, which no node knows.
//!
//! Each rule has its opposite in [`Broken`]: the checker has to find what goes wrong without it.

use super::super::Lineage;
use super::identity::*;
use stateright::{Checker, HasDiscoveries, Model, Property};

const BLOCKS: usize = 1;
const NODES: [usize; 2] = [0, 1];

/// A rule that the model does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A write is acknowledged alone under the name that the peer has.
    LoneWriteWithoutName,
    /// A lost link is taken for a lone write.
    NameWithoutLoneWrite,
    PromotionWithoutName,
    /// Only the source's marks are copied.
    TargetsMarksForgotten,
    /// The target takes on the source's name when the copy begins.
    NameBeforeContent,
    /// A source that has told its target to end, and hears no more of it, believes that it did not.
    OfferForgotten,
    /// A restarted source believes the same.
    OfferForgottenByRestart,
    /// What the table calls a split brain is copied from the node with the newer generation.
    NewerGenerationWins,
    /// Marks are memory.
    MarksLostInCrash,
    /// A promotion of a node that has marks for an older content makes them relative to the newer one.
    BaseOverwritten,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flight {
    block: usize,
    id: u8,
    applied: bool,
    marked_before: bool,
}

/// The originals of what a copy overwrites. `past` is the ghost that goes with them; `given_up` is what hosts were told in
/// the presence of this node, which whoever goes back by a failover gives up knowingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kept {
    disk: [u8; BLOCKS],
    past: u32,
    given_up: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Node {
    // Durable.
    identity: Identity,
    generation: u8,
    primary: bool,
    consistent: bool,
    crashed: bool,
    disk: [u8; BLOCKS],
    marks: [bool; BLOCKS],
    /// Ghost: what its content comes from.
    past: u32,
    // Memory.
    up: bool,
    fenced: bool,
    /// It acknowledges writes without the peer.
    alone: bool,
    offered: bool,
    in_doubt: Lineage,
    flight: Option<Flight>,
    /// A way back to what this node had before the copy.
    kept: Option<Kept>,
}

impl Node {
    fn serves(&self) -> bool {
        self.up && self.primary && !self.fenced
    }

    fn standpoint(&self) -> Standpoint {
        Standpoint {
            identity: self.identity,
            consistent: self.consistent,
            primary: self.primary,
            crashed: self.crashed,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The source is ready: its record and marks are durable.
    Beginning {
        everything: bool,
    },
    /// The target is ready as well, under a name that is new to both.
    Begun {
        name: Lineage,
    },
    Copying,
    /// The target was told to end.
    Offered,
    /// It has.
    Recorded,
    InStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Session {
    source: usize,
    phase: Phase,
}

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    NotMirrored,
    MissedSplitBrain,
    FalseSplitBrain,
    TakenForStrangers,
    AcknowledgedOverwritten,
    DiffersInStep,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    nodes: [Node; 2],
    session: Option<Session>,
    names: u64,
    writes: u8,
    promotions: u8,
    crashes: u8,
    losses: u8,
    events: u8,
    resolved: bool,
    fault: Option<Fault>,
    split_brain_found: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Launch(usize, usize),
    Apply(usize),
    Acknowledge(usize),
    GoAlone(usize),
    LoseLink,
    Crash(usize),
    Restart { node: usize, as_secondary: bool },
    Promote(usize),
    Connect,
    GiveUp(usize),
    BeginTarget,
    BeginSource,
    Copy(usize),
    Offer,
    RecordTarget,
    RecordSource,
}

#[derive(Clone, Copy)]
struct Bounds {
    writes: u8,
    promotions: u8,
    crashes: u8,
    losses: u8,
}

struct Pair {
    broken: Broken,
    bounds: Bounds,
}

impl Pair {
    fn is(&self, broken: Broken) -> bool {
        self.broken == broken
    }
}

impl State {
    fn name(&mut self) -> Lineage {
        self.names += 1;
        Lineage(self.names)
    }

    fn went_on(&mut self, node: usize) {
        self.events += 1;
        self.happened(node, 8 + self.events);
    }

    /// Which numbers the names have makes no difference: states that differ in nothing else are one.
    fn rename(&mut self) {
        let mut known: Vec<Lineage> = Vec::new();
        for node in &mut self.nodes {
            let Identity { current, base, history } = &mut node.identity;
            rename([current, base].into_iter().chain(history).chain([&mut node.in_doubt]), &mut known);
        }
        if let Some(Session { phase: Phase::Begun { name }, .. }) = &mut self.session {
            rename([name], &mut known);
        }
        self.names = known.len() as u64;
    }

    /// A ghost of its own for each write and promotion.
    fn happened(&mut self, node: usize, what: u8) {
        self.nodes[node].past |= 1 << what;
    }

    fn is_source(&self, node: usize) -> bool {
        self.session.is_some_and(|session| session.source == node)
    }

    fn forwards(&self, node: usize) -> bool {
        let phase = self.session.filter(|session| session.source == node).map(|session| session.phase);
        phase.is_some_and(|phase| !matches!(phase, Phase::Beginning { .. } | Phase::Begun { .. }))
    }

    fn end_session(&mut self, pair: &Pair) {
        let Some(session) = self.session.take() else { return };
        let source = &mut self.nodes[session.source];
        if let Some(flight) = &mut source.flight {
            flight.applied = false;
        }
        if pair.is(Broken::OfferForgotten) {
            source.offered = false;
        }
        if pair.is(Broken::NameWithoutLoneWrite) && source.up {
            let fresh = self.name();
            let source = &mut self.nodes[session.source];
            source.identity.write_alone(source.offered, fresh);
        }
    }

    fn crash(&mut self, node: usize, pair: &Pair) {
        self.end_session(pair);
        self.crashes += 1;
        let it = &mut self.nodes[node];
        it.crashed |= it.serves();
        (it.up, it.alone, it.fenced, it.flight, it.kept) = (false, false, false, None, None);
        it.in_doubt = Lineage(0);
        if pair.is(Broken::MarksLostInCrash) {
            it.marks = [false; BLOCKS];
        }
    }

    fn restart(&mut self, node: usize, as_secondary: bool, pair: &Pair) {
        let it = &mut self.nodes[node];
        it.up = true;
        it.offered = !pair.is(Broken::OfferForgottenByRestart);
        if as_secondary {
            it.primary = false;
        }
    }

    fn promote(&mut self, node: usize, pair: &Pair) {
        self.end_session(pair);
        self.promotions += 1;
        let fresh = self.name();
        let it = &mut self.nodes[node];
        (it.primary, it.alone, it.offered, it.crashed) = (true, true, false, false);
        it.generation += 1;
        let mut given_up = 0;
        if let Some(kept) = it.kept.take() {
            (it.disk, it.past, it.consistent, it.marks) = (kept.disk, kept.past, true, [true; BLOCKS]);
            given_up = kept.given_up;
        }
        if pair.is(Broken::BaseOverwritten) {
            it.identity.base = Lineage(0);
        }
        if !pair.is(Broken::PromotionWithoutName) {
            it.identity.promote(fresh);
        }
        self.nodes[1 - node].past &= !given_up;
        self.went_on(node);
    }

    /// From here on the write that is under way may be acknowledged at any moment.
    fn go_alone(&mut self, node: usize, pair: &Pair) {
        let fresh = self.name();
        let it = &mut self.nodes[node];
        let before = it.identity.current;
        if !pair.is(Broken::LoneWriteWithoutName) && it.identity.write_alone(it.offered, fresh) {
            (it.offered, it.in_doubt) = (false, before);
        }
        it.alone = true;
        self.went_on(node);
    }

    /// The handshake: both nodes decide, and the ghost tells what is true.
    fn connect(&mut self, pair: &Pair) {
        let [a, b] = self.nodes.map(|node| node.standpoint());
        let verdict = decide(&a, &b);
        if verdict != decide(&b, &a).mirrored() {
            self.fault = Some(Fault::NotMirrored);
            return;
        }
        let [mine, theirs] = self.nodes.map(|node| node.past);
        let parted = mine & !theirs != 0 && theirs & !mine != 0;
        self.fault = match verdict {
            Decision::SplitBrain if !parted => Some(Fault::FalseSplitBrain),
            Decision::Unrelated if a.consistent && b.consistent => Some(Fault::TakenForStrangers),
            Decision::Unrelated => None,
            Decision::SplitBrain | Decision::Inconsistent(_) | Decision::NeitherConsistent => None,
            _ if parted => Some(Fault::MissedSplitBrain),
            _ => None,
        };
        self.split_brain_found |= verdict == Decision::SplitBrain;
        let [older, newer] =
            if self.nodes[0].generation < self.nodes[1].generation { [0, 1] } else { [1, 0] };
        let fenced = self.nodes[older].generation < self.nodes[newer].generation
            && self.nodes.iter().all(|node| node.primary);
        self.nodes[older].fenced |= fenced;
        let Some(primary) = NODES.into_iter().find(|&node| self.nodes[node].primary) else { return };
        if self.nodes.iter().all(|node| node.primary) || self.fault.is_some() {
            return;
        }
        let verdict = if primary == 0 { verdict } else { verdict.mirrored() };
        match verdict {
            Decision::BothNew => self.begin(primary, true, pair),
            Decision::Everything { source: Who::Me } => {
                let theirs = self.nodes[1 - primary];
                let name = theirs.identity.current;
                let took_on = theirs.consistent && name.0 != 0 && name == self.nodes[primary].in_doubt;
                self.begin(primary, !took_on, pair);
            }
            Decision::Marked { source: Who::Me } => self.begin(primary, false, pair),
            // Everything was to be copied to it, and the source has not heard that this had begun.
            Decision::Unrelated | Decision::Inconsistent(Who::Peer) => self.begin(primary, true, pair),
            Decision::SplitBrain if pair.is(Broken::NewerGenerationWins) && newer == primary => {
                self.begin(primary, false, pair);
            }
            _ => {}
        }
    }

    /// The source's half of the beginning: durable before the target hears of it.
    fn begin(&mut self, source: usize, everything: bool, pair: &Pair) {
        let theirs = self.nodes[1 - source];
        let it = &mut self.nodes[source];
        if everything {
            it.marks = [true; BLOCKS];
        } else {
            let took_on = theirs.identity.current == it.in_doubt;
            if took_on {
                it.identity.rebase(it.in_doubt);
            } else if theirs.identity.current == it.identity.current && theirs.consistent {
                it.identity.end_source();
            }
            if !pair.is(Broken::TargetsMarksForgotten) {
                it.marks = std::array::from_fn(|block| it.marks[block] | theirs.marks[block]);
            }
            // It says by its name that it did not take on the other.
            (it.offered, it.in_doubt) = (false, Lineage(0));
        }
        (it.alone, it.generation) = (false, it.generation.max(theirs.generation));
        self.session = Some(Session { source, phase: Phase::Beginning { everything } });
    }

    fn begin_target(&mut self, source: usize, everything: bool, pair: &Pair) {
        let target = 1 - source;
        if self.nodes[target].past & !self.nodes[source].past != 0 {
            self.fault = Some(Fault::AcknowledgedOverwritten);
        }
        let fresh = if everything { self.name() } else { Lineage(0) };
        let Node { identity: from, generation, .. } = self.nodes[source];
        let it = &mut self.nodes[target];
        let goes_back = it.consistent && !it.identity.is_new() && !everything;
        it.kept = goes_back.then_some(Kept { disk: it.disk, past: it.past, given_up: 0 });
        if everything {
            it.identity.begin_copy(fresh);
        } else if pair.is(Broken::NameBeforeContent) {
            it.identity.end_target(from.current);
        }
        (it.consistent, it.marks, it.crashed) = (false, [false; BLOCKS], false);
        it.generation = generation;
        self.set_phase(if everything { Phase::Begun { name: fresh } } else { Phase::Copying });
    }

    fn set_phase(&mut self, phase: Phase) {
        if let Some(session) = &mut self.session {
            session.phase = phase;
        }
    }

    fn record_target(&mut self, source: usize) {
        let from = self.nodes[source];
        let target = &mut self.nodes[1 - source];
        target.identity.end_target(from.identity.current);
        (target.consistent, target.past, target.kept) = (true, from.past, None);
        let under_way = |block| from.marks[block];
        if (0..BLOCKS).any(|block| from.disk[block] != target.disk[block] && !under_way(block)) {
            self.fault = Some(Fault::DiffersInStep);
        }
        self.set_phase(Phase::Recorded);
    }

    fn acknowledge(&mut self, node: usize) {
        let Some(flight) = self.nodes[node].flight.take() else { return };
        self.happened(node, flight.id);
        if flight.applied {
            // It is a part of what the target becomes, and while that is not consistent of nothing.
            let target = &mut self.nodes[1 - node];
            if let Some(kept) = &mut target.kept {
                kept.given_up |= 1 << flight.id;
            }
            if target.consistent {
                self.happened(1 - node, flight.id);
            }
            if !flight.marked_before {
                self.nodes[node].marks[flight.block] = false;
            }
        }
    }
}

fn rename<'a>(names: impl IntoIterator<Item = &'a mut Lineage>, known: &mut Vec<Lineage>) {
    for name in names.into_iter().filter(|name| name.0 != 0) {
        let at = known.iter().position(|it| it == name).unwrap_or_else(|| {
            known.push(*name);
            known.len() - 1
        });
        *name = Lineage(at as u64 + 1);
    }
}

impl Model for Pair {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node = |primary| Node { primary, up: true, consistent: true, generation: 1, ..Node::default() };
        vec![State {
            nodes: [node(true), node(false)],
            session: None,
            names: 0,
            writes: 0,
            promotions: 0,
            crashes: 0,
            losses: 0,
            events: 0,
            resolved: false,
            fault: None,
            split_brain_found: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.fault.is_some() {
            return;
        }
        let both_up = state.nodes.iter().all(|node| node.up);
        for node in NODES {
            let it = &state.nodes[node];
            match it.flight {
                None if it.serves() && state.writes < self.bounds.writes => {
                    actions.extend((0..BLOCKS).map(|block| Action::Launch(node, block)));
                }
                Some(flight) if it.up => {
                    if !flight.applied && state.forwards(node) {
                        actions.push(Action::Apply(node));
                    }
                    if flight.applied || (it.alone && it.serves()) {
                        actions.push(Action::Acknowledge(node));
                    }
                    if !it.alone && it.serves() && !state.is_source(node) {
                        actions.push(Action::GoAlone(node));
                    }
                }
                _ => {}
            }
            if it.up && state.crashes < self.bounds.crashes {
                actions.push(Action::Crash(node));
            }
            if !it.up {
                actions.push(Action::Restart { node, as_secondary: true });
                if it.primary {
                    actions.push(Action::Restart { node, as_secondary: false });
                }
            }
            // One that was never in step is nobody's successor.
            let may = (it.consistent || it.kept.is_some()) && !it.identity.is_new();
            if it.up && !it.primary && may && state.promotions < self.bounds.promotions {
                actions.push(Action::Promote(node));
            }
        }
        match state.session {
            None if both_up => {
                actions.push(Action::Connect);
                let verdict = decide(&state.nodes[0].standpoint(), &state.nodes[1].standpoint());
                if verdict == Decision::SplitBrain && !state.resolved {
                    let winners = NODES.into_iter().filter(|&node| state.nodes[node].serves());
                    actions.extend(winners.map(|node| Action::GiveUp(1 - node)));
                }
            }
            None => {}
            Some(session) => {
                if state.losses < self.bounds.losses {
                    actions.push(Action::LoseLink);
                }
                let source = &state.nodes[session.source];
                match session.phase {
                    Phase::Beginning { .. } => actions.push(Action::BeginTarget),
                    Phase::Begun { .. } => actions.push(Action::BeginSource),
                    Phase::Copying => {
                        let marked = (0..BLOCKS).filter(|&block| source.marks[block]);
                        actions.extend(marked.map(Action::Copy));
                        let writing = |block| source.flight.is_some_and(|flight| flight.block == block);
                        if (0..BLOCKS).all(|block| !source.marks[block] || writing(block)) {
                            actions.push(Action::Offer);
                        }
                    }
                    Phase::Offered => actions.push(Action::RecordTarget),
                    Phase::Recorded => actions.push(Action::RecordSource),
                    Phase::InStep => {}
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Launch(node, block) => {
                state.writes += 1;
                let id = state.writes;
                let it = &mut state.nodes[node];
                let marked_before = std::mem::replace(&mut it.marks[block], true);
                it.disk[block] = id;
                it.flight = Some(Flight { block, id, applied: false, marked_before });
            }
            Action::Apply(node) => {
                let flight = state.nodes[node].flight.as_mut()?;
                flight.applied = true;
                let (block, id) = (flight.block, flight.id);
                state.nodes[1 - node].disk[block] = id;
            }
            Action::Acknowledge(node) => state.acknowledge(node),
            Action::GoAlone(node) => state.go_alone(node, self),
            Action::LoseLink => {
                state.losses += 1;
                state.end_session(self);
            }
            Action::Crash(node) => state.crash(node, self),
            Action::Restart { node, as_secondary } => state.restart(node, as_secondary, self),
            Action::Promote(node) => state.promote(node, self),
            Action::Connect => state.connect(self),
            Action::GiveUp(loser) => {
                let winners = state.nodes[1 - loser].past;
                let it = &mut state.nodes[loser];
                it.identity.give_up();
                (it.primary, it.consistent, it.flight, it.alone) = (false, false, None, false);
                it.past &= winners;
                state.resolved = true;
            }
            Action::BeginTarget => {
                let Some(Session { source, phase: Phase::Beginning { everything } }) = state.session else {
                    return None;
                };
                state.begin_target(source, everything, self);
            }
            Action::BeginSource => {
                let Some(Session { source, phase: Phase::Begun { name } }) = state.session else {
                    return None;
                };
                let it = &mut state.nodes[source];
                it.identity.pair(name);
                it.offered = false;
                state.set_phase(Phase::Copying);
            }
            Action::Copy(block) => {
                let source = state.session?.source;
                state.nodes[1 - source].disk[block] = state.nodes[source].disk[block];
                let it = &mut state.nodes[source];
                it.marks[block] = it.flight.is_some_and(|flight| flight.block == block);
                if let Some(flight) = &mut it.flight
                    && flight.block == block
                {
                    flight.marked_before = false;
                }
            }
            Action::Offer => {
                let source = state.session?.source;
                state.nodes[source].offered = true;
                state.set_phase(Phase::Offered);
            }
            Action::RecordTarget => {
                let source = state.session?.source;
                state.record_target(source);
            }
            Action::RecordSource => {
                let source = state.session?.source;
                let it = &mut state.nodes[source];
                it.identity.end_source();
                (it.offered, it.crashed) = (false, false);
                state.set_phase(Phase::InStep);
            }
        }
        if state == *last {
            return None;
        }
        state.rename();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no fault", |_, state: &State| state.fault.is_none()),
            Property::sometimes("a split brain is found", |_, state: &State| state.split_brain_found),
            Property::sometimes("a split brain is resolved", |_, state: &State| {
                state.resolved && state.session.is_some_and(|session| session.phase == Phase::InStep)
            }),
            Property::sometimes("an old primary comes back as the target", |_, state: &State| {
                let in_step = state.session.is_some_and(|s| s.source == 1 && s.phase == Phase::InStep);
                in_step && !state.resolved && state.promotions > 0
            }),
        ]
    }
}

/// Runs the checker; the fault that it found, and how many states it saw.
fn check(broken: Broken, bounds: Bounds) -> (Option<Fault>, usize) {
    let checker = Pair { broken, bounds }.checker();
    let checker = match broken {
        Broken::Nothing => checker.threads(2).spawn_bfs().join(),
        // One thread finds the same fault in every run.
        _ => checker.threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join(),
    };
    let fault = checker.discovery("no fault").and_then(|path| {
        println!("{:?}", path.clone().into_actions());
        path.last_state().fault
    });
    if broken == Broken::Nothing && fault.is_none() {
        checker.assert_properties();
    }
    (fault, checker.unique_state_count())
}

#[test]
fn no_order_of_writes_losses_crashes_and_failovers_loses_or_merges_what_was_acknowledged() {
    for bounds in [
        Bounds { writes: 2, promotions: 1, crashes: 1, losses: 1 },
        Bounds { writes: 1, promotions: 2, crashes: 1, losses: 1 },
        Bounds { writes: 1, promotions: 1, crashes: 2, losses: 1 },
    ] {
        let began = std::time::Instant::now();
        let (fault, states) = check(Broken::Nothing, bounds);
        println!("identities: {states} states in {:?}", began.elapsed());
        assert_eq!(fault, None);
    }
}

#[test]
fn without_any_one_of_its_rules_the_checker_finds_what_goes_wrong() {
    use Broken::*;
    let bounds = Bounds { writes: 3, promotions: 2, crashes: 2, losses: 2 };
    for (broken, expected) in [
        (LoneWriteWithoutName, Fault::MissedSplitBrain),
        (NameWithoutLoneWrite, Fault::FalseSplitBrain),
        (PromotionWithoutName, Fault::MissedSplitBrain),
        (TargetsMarksForgotten, Fault::DiffersInStep),
        (NameBeforeContent, Fault::MissedSplitBrain),
        (OfferForgotten, Fault::MissedSplitBrain),
        (OfferForgottenByRestart, Fault::MissedSplitBrain),
        (NewerGenerationWins, Fault::AcknowledgedOverwritten),
        (MarksLostInCrash, Fault::DiffersInStep),
        (BaseOverwritten, Fault::TakenForStrangers),
    ] {
        let began = std::time::Instant::now();
        let (fault, states) = check(broken, bounds);
        println!("{broken:?}: {fault:?} after {states} states, {:?}", began.elapsed());
        assert_eq!(fault, Some(expected), "without {broken:?}");
    }
}
