//! How a session comes and goes: what `replication/group/dial.rs`, `accept.rs` and `home.rs` do in production.

use super::node::*;
use super::wire::{Conn, Hello, Message, No, Pipe, Use};
use super::world::*;
use lockstep::replication::Generation;
use lockstep::replication::core::*;
use uuid::Uuid;

impl World {
    fn hello(&mut self, node: usize, nonce: u64) -> Hello {
        let shape = self.plan.shape.clone();
        let record = self.memory(node).record();
        let volume = |number: u8| VolumeClaim {
            uuid: Uuid::from_u128(100 + u128::from(number)),
            name: format!("v{number}"),
            size_bytes: shape.blocks() * u64::from(shape.block_bytes),
            disk_bytes: shape.blocks() * u64::from(shape.block_bytes),
            block_bytes: shape.block_bytes,
        };
        let claim = Claim {
            group: Uuid::from_u128(1),
            group_name: "g".to_string(),
            is_primary: node == A || record.promoted,
            stripe_bytes: STRIPE_BYTES,
            generation: record.generation,
            volumes: (0..shape.volumes).map(volume).collect(),
        };
        let newest = record.newest.max(record.committed);
        let restarted = match &self.memory(node).group {
            Group::Secondary(group) => group.is_restarted(),
            Group::Primary(_) => false,
        };
        let reactors = self.reactors(node) as u16;
        let (lineage, past, consistent) = (record.lineage, record.past, !record.inconsistent);
        Hello { claim, nonce, newest, reactors, lineage, past, consistent, restarted }
    }

    /// A new connection from A to B; `None` when it cannot be made now.
    fn connect(&mut self, used: Use, session: u64) -> Option<usize> {
        if self.network.is_split() || self.nodes[B].memory.is_none() {
            return None;
        }
        self.network.conns.push(Conn {
            used,
            session,
            open: [true; 2],
            boots: [self.nodes[A].boot, self.nodes[B].boot],
            towards: [Pipe::default(), Pipe::default()],
            heard: [self.now; 2],
            ready: [false; 2],
        });
        Some(self.network.conns.len() - 1)
    }

    pub fn send(&mut self, node: usize, conn: usize, message: Message) {
        if self.network.conns[conn].open[node] {
            self.put(1 - node, conn, message);
        }
    }

    fn put(&mut self, to: usize, conn: usize, message: Message) {
        let at = self.now + self.network.latency(&mut self.rng);
        let pipe = &mut self.network.conns[conn].towards[to];
        let at = at.max(pipe.last);
        pipe.last = at;
        pipe.queue.push_back(message);
        self.happen_at(at, Happening::Wire { conn, to });
    }

    /// Ends the connection from this side: what was sent arrives before.
    pub fn close(&mut self, node: usize, conn: usize) {
        if std::mem::replace(&mut self.network.conns[conn].open[node], false) {
            self.put(1 - node, conn, Message::Closed);
        }
    }

    /// The network breaks the connections: of what is on the way, some arrives.
    pub fn cut(&mut self) {
        for conn in 0..self.network.conns.len() {
            for to in [A, B] {
                let end = &mut self.network.conns[conn];
                let queue = &mut end.towards[to].queue;
                if end.open[to] && !matches!(queue.back(), Some(Message::Closed)) {
                    queue.truncate(self.rng.below(queue.len() as u64 + 1) as usize);
                    self.put(to, conn, Message::Closed);
                }
            }
        }
    }

    /// The node's ends go away. Without a loss of power its kernel tells the peer.
    pub fn hang_up(&mut self, node: usize, power: bool) {
        for conn in 0..self.network.conns.len() {
            if !self.network.conns[conn].open[node] {
                continue;
            }
            let queue = &mut self.network.conns[conn].towards[1 - node].queue;
            let kept = self.rng.below(queue.len() as u64 + 1) as usize;
            queue.truncate(kept);
            if power {
                self.network.conns[conn].open[node] = false;
            } else {
                self.close(node, conn);
            }
        }
    }

    /// Goes on with what a partition held up.
    pub fn heal_link(&mut self) {
        self.network.blocked = [false; 2];
        self.network.factor = 1;
        for conn in 0..self.network.conns.len() {
            for to in [A, B] {
                for _ in 0..self.network.conns[conn].towards[to].queue.len() {
                    self.happen(20, Happening::Wire { conn, to });
                }
            }
        }
    }

    pub fn deliver(&mut self, conn: usize, to: usize) {
        if self.network.blocked[to] {
            return;
        }
        let Some(message) = self.network.conns[conn].towards[to].queue.pop_front() else { return };
        self.look_for_room(conn);
        let end = &mut self.network.conns[conn];
        let alive = self.nodes[to].memory.is_some() && self.nodes[to].boot == end.boots[to];
        if !alive || !end.open[to] {
            return;
        }
        end.heard[to] = self.now;
        let (used, session) = (end.used, end.session);
        self.digest((conn as u64) << 8 | to as u64);
        if matches!(message, Message::Closed) {
            self.network.conns[conn].open[to] = false;
            return self.closed(to, conn);
        }
        match used {
            Use::Control => self.control_message(to, conn, session, message),
            Use::Lane { .. } => self.lane_message(to, conn, session, message),
        }
    }

    fn closed(&mut self, node: usize, conn: usize) {
        let (used, session, ready) = {
            let conn = &self.network.conns[conn];
            (conn.used, conn.session, conn.ready[node])
        };
        match used {
            Use::Control if self.memory(node).control == Some(conn) => {
                self.session_lost(node, "the control connection ended");
            }
            Use::Control => {}
            Use::Lane { .. } if ready => self.call(node, used.reactor(node), 0, Call::LaneClosed),
            Use::Lane { .. } if node == A => self.call(A, used.reactor(A), 0, Call::LaneFailed(session)),
            Use::Lane { .. } => {}
        }
    }

    fn control_message(&mut self, node: usize, conn: usize, session: u64, message: Message) {
        if let Message::Hello(hello) = message {
            return self.control_came(conn, *hello);
        }
        if self.memory(node).control != Some(conn) || self.memory(node).session != session {
            return;
        }
        match message {
            Message::Heartbeat => self.send(node, conn, Message::HeartbeatReply),
            Message::HelloReply(hello) => self.hello_reply(conn, *hello),
            Message::Refusal(no) => self.refused(node, no),
            Message::Control(generation, control) => self.control(node, conn, generation, control),
            _ => {}
        }
    }

    fn control(&mut self, node: usize, conn: usize, generation: Generation, control: Control) {
        if generation < self.memory(node).record().generation {
            self.send(node, conn, Message::Refusal(No::OldGeneration));
            return self.session_lost(node, "the peer is of an older generation");
        }
        let begins = matches!(control, Control::Begin { .. });
        let again = control.clone();
        let bytes: Vec<u64> = self.sizes().iter().map(|size| size.volume_bytes).collect();
        self.with_group(
            node,
            |group, out| group.message(control, out),
            |group, out| {
                if begins {
                    group.adopt_generation(generation);
                    group.connected(&bytes);
                }
                group.message(again, out);
            },
        );
    }

    fn lane_message(&mut self, node: usize, conn: usize, session: u64, message: Message) {
        let used = self.network.conns[conn].used;
        let (reactor, lane) = (used.reactor(node), used.lane(node));
        let known = match message {
            Message::DataHello { nonce } => {
                self.data_came(conn, reactor, lane, nonce);
                true
            }
            Message::DataHelloReply { nonce } => {
                if nonce == session {
                    self.reactor(A, reactor).attach(lane, conn);
                    self.network.conns[conn].ready[A] = true;
                    self.call(A, reactor, 0, Call::LaneUp(session));
                }
                true
            }
            Message::Refusal(_) => {
                self.call(node, reactor, 0, Call::LaneFailed(session));
                true
            }
            Message::Forward { volume, sequence, forward } => {
                self.arrived(reactor, lane, volume, sequence, forward)
            }
            Message::Acks { received, runs } => self.acked(reactor, lane, received, runs),
            _ => true,
        };
        if !known {
            self.broke("a lane lost its order, or its machine");
        }
    }

    fn control_came(&mut self, conn: usize, hello: Hello) {
        let mine = self.hello(B, hello.nonce);
        let accepts = match &self.memory(B).group {
            Group::Secondary(group) => group.accepts(),
            Group::Primary(_) => false,
        };
        let no = match judge(&mine.claim, &hello.claim) {
            Err(Mismatch::OldGeneration(..)) => Some(No::OldGeneration),
            Err(_) => Some(No::Forever),
            Ok(()) if !accepts || self.memory(B).session != 0 => Some(No::NotNow),
            Ok(()) => None,
        };
        if let Some(no) = no {
            self.tell(|| format!("B refuses A: {no:?}"));
            self.send(B, conn, Message::Refusal(no));
            return self.close(B, conn);
        }
        self.memory(B).session = hello.nonce;
        self.memory(B).control = Some(conn);
        self.send(B, conn, Message::HelloReply(Box::new(mine)));
    }

    fn data_came(&mut self, conn: usize, reactor: usize, lane: usize, nonce: u64) {
        if nonce != self.memory(B).session || nonce == 0 {
            self.send(B, conn, Message::Refusal(No::NotNow));
            return self.close(B, conn);
        }
        self.call(B, 0, reactor, Call::Attach { lane, conn });
    }

    pub fn attach(&mut self, node: usize, reactor: usize, lane: usize, conn: usize) {
        if !self.network.conns[conn].open[node] {
            return;
        }
        self.reactor(node, reactor).attach(lane, conn);
        self.network.conns[conn].ready[node] = true;
        let nonce = self.network.conns[conn].session;
        self.send(node, conn, Message::DataHelloReply { nonce });
    }

    fn hello_reply(&mut self, conn: usize, hello: Hello) {
        let Some(mine) = self.memory(A).hello.take() else {
            return self.session_lost(A, "a hello that was not asked for");
        };
        let newer = hello.claim.generation > mine.claim.generation;
        if newer && hello.claim.is_primary == mine.claim.is_primary {
            return self.primary(|group, out| group.fenced(out));
        }
        match judge(&mine.claim, &hello.claim) {
            Err(Mismatch::OldGeneration(..)) => {
                self.send(A, conn, Message::Refusal(No::OldGeneration));
                return self.refused(A, No::OldGeneration);
            }
            Err(_) => {
                self.send(A, conn, Message::Refusal(No::Forever));
                return self.refused(A, No::Forever);
            }
            Ok(()) => {}
        }
        self.memory(A).wait = 500;
        if self.memory(A).purpose != Purpose::Session {
            // It still waits for its primary: nothing happened to this node's role.
            self.close_session(A);
            return self.probe_later(A);
        }
        self.dial_lanes(hello);
    }

    fn dial_lanes(&mut self, hello: Hello) {
        let (session, reactors) = (self.memory(A).session, self.reactors(A) as u16);
        self.memory(A).lanes_left = u32::from(reactors) * u32::from(hello.reactors);
        let lanes = hello.reactors;
        self.memory(A).peer = Some(hello);
        for from in 0..reactors {
            for to in 0..lanes {
                match self.connect(Use::Lane { from, to }, session) {
                    Some(conn) => self.send(A, conn, Message::DataHello { nonce: session }),
                    None => self.call(A, usize::from(from), 0, Call::LaneFailed(session)),
                }
            }
        }
    }

    pub fn lane_up(&mut self, session: u64) {
        let memory = self.memory(A);
        if memory.session != session {
            return;
        }
        memory.lanes_left = memory.lanes_left.saturating_sub(1);
        if memory.lanes_left == 0
            && let Some(peer) = &memory.peer
        {
            let greeting = Greeting {
                newest: peer.newest,
                generation: peer.claim.generation,
                lanes: peer.reactors,
                lineage: peer.lineage,
                past: peer.past,
                consistent: peer.consistent,
                restarted: peer.restarted,
                session,
            };
            let sizes = self.sizes();
            self.primary(|group, out| group.connected(&greeting, &sizes, out));
        }
    }

    fn refused(&mut self, node: usize, no: No) {
        match no {
            No::OldGeneration if node == A => {
                self.tell(|| "A hears that it was replaced".to_string());
                self.primary(|group, out| group.fenced(out));
            }
            No::OldGeneration => self.session_lost(B, "the primary refused this node"),
            No::Forever => {
                self.close_session(node);
                self.with_group(
                    node,
                    |group, out| group.refused(GroupError::Refused, out),
                    |group, out| group.disconnected(out),
                );
            }
            No::NotNow => self.session_lost(node, "the peer refuses this node now"),
        }
    }

    pub fn dial_session(&mut self) {
        self.close_session(A);
        self.memory(A).purpose = Purpose::Session;
        self.memory(A).wait = 500;
        self.dial_now();
    }

    fn dial_now(&mut self) {
        let session = self.number();
        self.memory(A).session = session;
        match self.connect(Use::Control, session) {
            Some(conn) => {
                let hello = self.hello(A, session);
                self.memory(A).hello = Some(hello.clone());
                self.memory(A).control = Some(conn);
                self.send(A, conn, Message::Hello(Box::new(hello)));
            }
            None => {
                let after = if self.network.is_split() { ATTEMPT } else { 100 };
                let boot = self.nodes[A].boot;
                self.happen(after, Happening::DialFailed { boot, session });
            }
        }
    }

    pub fn dial_failed(&mut self, session: u64) {
        if self.memory(A).session == session {
            self.session_lost(A, "the peer cannot be reached");
        }
    }

    /// The wait before the next attempt is over.
    pub fn dial_again(&mut self) {
        let wanted = match self.memory(A).purpose {
            Purpose::Nothing => false,
            Purpose::Session => self.memory(A).primary_state() == Some(PrimaryState::Connecting),
            Purpose::Probe => self.memory(A).primary_state() == Some(PrimaryState::ResyncRequired),
        };
        if wanted && self.memory(A).session == 0 {
            self.dial_now();
        }
    }

    fn wait_and_dial(&mut self) {
        let wait = self.memory(A).wait;
        self.memory(A).wait = (wait * 2).min(8_000);
        let boot = self.nodes[A].boot;
        self.happen(wait, Happening::Dial { boot });
    }

    fn redial_later(&mut self, node: usize) {
        if node == B {
            return;
        }
        if self.memory(A).primary_state() == Some(PrimaryState::Connecting) {
            self.memory(A).purpose = Purpose::Session;
            self.wait_and_dial();
        } else if self.memory(A).purpose == Purpose::Probe {
            self.probe_later(A);
        }
    }

    pub fn probe_later(&mut self, node: usize) {
        if node == A && self.memory(A).primary_state() == Some(PrimaryState::ResyncRequired) {
            self.memory(A).purpose = Purpose::Probe;
            self.wait_and_dial();
        }
    }

    pub fn close_session(&mut self, node: usize) {
        if std::mem::replace(&mut self.memory(node).session, 0) == 0 {
            return;
        }
        if let Some(conn) = self.memory(node).control.take() {
            self.close(node, conn);
        }
        self.give(node, &ToStripes::LinkDown);
    }

    pub fn session_lost(&mut self, node: usize, why: &str) {
        if self.memory(node).session == 0 {
            return;
        }
        self.tell(|| format!("{} loses its session: {why}", Self::name(node)));
        self.close_session(node);
        self.with_group(node, |group, out| group.disconnected(out), |group, out| group.disconnected(out));
        self.redial_later(node);
    }

    fn silence(&mut self, node: usize) -> Option<u64> {
        let conn = self.memory(node).control?;
        Some(self.now - self.network.conns[conn].heard[node])
    }

    pub fn peer(&mut self, node: usize) -> Peer {
        match self.silence(node) {
            Some(silence) if silence < PEER_TIMEOUT / 2 => Peer::Heard,
            _ => Peer::Silent,
        }
    }

    pub fn heartbeat(&mut self, node: usize) {
        let boot = self.nodes[node].boot;
        self.happen(PEER_TIMEOUT / 4, Happening::Heartbeat { node, boot });
        if self.silence(node).is_some_and(|silence| silence > PEER_TIMEOUT) {
            return self.session_lost(node, "nothing was heard of the peer");
        }
        if node == A
            && self.memory(A).hello.is_none()
            && let Some(conn) = self.memory(A).control
        {
            self.send(A, conn, Message::Heartbeat);
        }
    }
}
