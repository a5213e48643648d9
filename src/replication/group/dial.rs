//! The primary's way to a session: the control connection, the handshake, then one data connection for each pair of
//! reactors. After a loss: the same again, with growing pauses. Where that cannot be: knocking at the peer's door now and
//! then, to hear whether this node was replaced.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use super::HOME;
use super::claim;
use super::home::{ControlOwner, Home, Machine, home_of};
use super::options::RoleOptions;
use crate::env::SgList;
use crate::reactor::{self, TimerHandler};
use crate::replication::core::{Greeting, GroupError, PrimaryState};
use crate::replication::link::wire::VERSION;
use crate::replication::link::{
    Attempt, Backoff, CloseReason, ConnectError, ConnectOwner, Connection, DataHello, HANDSHAKE_DEADLINE,
    Header, Hello, HelloBody, LinkOwner, Message, RefusalCode, connect, option,
};
use crate::replication::volume::shard_of;
use crate::replication::{Lineage, Past};

/// How long one attempt to connect takes at most; between two of them the wait doubles up to some seconds.
const ATTEMPT: Duration = Duration::from_secs(2);

/// What the primary is dialling for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Purpose {
    #[default]
    Nothing,
    Session,
    /// To hear whether the peer has a newer generation.
    Probe,
}

/// The state of dialling, a part of the group's home.
#[derive(Default)]
pub(super) struct Dial {
    purpose: Cell<Purpose>,
    attempt: RefCell<Option<Rc<Attempt>>>,
    backoff: RefCell<Backoff>,
    /// Names the wait that counts.
    waits: Cell<u64>,
    hello: RefCell<Option<(Hello, HelloBody)>>,
    /// Data connections that have not passed their handshake.
    lanes_left: Cell<u32>,
    peer: Cell<Option<Greeting>>,
}

impl Dial {
    /// Begins a pause, in the place of any that runs; returns its name.
    fn pause(&self) -> u64 {
        let name = self.waits.get().wrapping_add(1) | 1;
        self.waits.set(name);
        name
    }

    fn is_pausing(&self) -> bool {
        self.waits.get() & 1 == 1
    }

    /// Whether this is the end of the pause that runs.
    fn end_pause(&self, name: u64) -> bool {
        let current = self.waits.get() == name;
        if current {
            self.waits.set(name.wrapping_add(1));
        }
        current
    }

    /// Whether a hello was sent and not answered.
    pub fn is_waiting(&self) -> bool {
        self.hello.borrow().is_some()
    }

    /// The disks are in step: the next loss is the first one again.
    pub fn settled(&self) {
        self.backoff.borrow_mut().reset();
    }

    pub fn cancel(&self) {
        if let Some(attempt) = self.attempt.take() {
            attempt.cancel();
        }
    }
}

/// One attempt at the control connection, or the wait before it.
struct Attempting {
    home: Weak<Home>,
    session: u64,
}

impl Home {
    fn address(&self) -> Option<SocketAddr> {
        match &self.fixed.role {
            RoleOptions::Primary(options) => Some(options.peer),
            RoleOptions::Secondary(_) => None,
        }
    }

    fn primary_state(&self) -> Option<PrimaryState> {
        match &*self.machine.borrow() {
            Machine::Primary(group) => Some(group.state()),
            Machine::Secondary(_) => None,
        }
    }

    /// Begins to make a session.
    pub fn dial_session(&self) {
        self.close_session();
        self.dial.purpose.set(Purpose::Session);
        self.dial.backoff.borrow_mut().reset();
        self.dial_now();
    }

    fn dial_now(&self) {
        let Some(address) = self.address() else { return };
        let session = claim::nonce();
        self.session.set(session);
        let owner = Rc::new(Attempting { home: self.this(), session });
        match connect(address, ATTEMPT, owner, 0) {
            Ok(attempt) => {
                self.dial.attempt.replace(Some(attempt));
            }
            Err(error) => self.session_lost(&error.to_string()),
        }
    }

    /// The peer was lost: makes a session again after a while.
    pub fn reconnect_later(&self) {
        self.dial.purpose.set(Purpose::Session);
        self.wait_and_dial();
    }

    fn wants_peer(&self) -> bool {
        matches!(&*self.machine.borrow(), Machine::Primary(group) if group.wants_peer())
    }

    /// A session failed: while one is wanted, tries again after a while.
    pub fn redial_later(&self) {
        if self.wants_peer() {
            if !self.dial.is_pausing() {
                self.reconnect_later();
            }
        } else if self.dial.purpose.get() == Purpose::Probe {
            self.probe_later();
        }
    }

    /// There will be no session without an operator: knock now and then.
    pub fn probe_later(&self) {
        if self.primary_state() == Some(PrimaryState::ResyncRequired) {
            self.dial.purpose.set(Purpose::Probe);
            self.wait_and_dial();
        }
    }

    fn wait_and_dial(&self) {
        let wait = self.dial.backoff.borrow_mut().wait();
        let waiting = Rc::new(Attempting { home: self.this(), session: 0 });
        reactor::timer_after(wait, waiting, self.dial.pause());
    }

    fn reached(&self, socket: Arc<OwnedFd>, session: u64) {
        let Some(address) = self.address() else { return };
        let owner = Rc::new(ControlOwner { home: self.this(), session });
        let connection = match Connection::start(socket, address, owner) {
            Ok(connection) => connection,
            Err(reason) => return self.session_lost(&reason.to_string()),
        };
        connection.set_deadline(HANDSHAKE_DEADLINE, "the handshake");
        let hello = self.own_hello(true, session);
        let _ = connection.send_bytes(&Message::Hello(hello.0), &hello.1.encode());
        self.dial.hello.replace(Some(hello));
        self.control.replace(Some(connection));
    }

    /// The secondary answered the hello.
    pub fn hello_reply(&self, connection: &Rc<Connection>, hello: Hello, payload: &SgList) {
        connection.clear_deadline();
        let body = payload.first().and_then(|bytes| bytes.with(HelloBody::parse).ok());
        let (Some(mine), Some(body)) = (self.dial.hello.take(), body) else {
            return self.session_lost("the peer's hello is malformed");
        };
        let split = self.is_split_brain(&mine, (&hello, &body));
        if hello.generation > mine.0.generation && body.role == mine.1.role {
            return self.primary(|group, out| group.fenced(out));
        }
        if split {
            self.close_session();
            self.primary(|group, out| group.refused(GroupError::SplitBrain, out));
            return self.redial_later();
        }
        if let Err((code, text)) = claim::check(&mine, (&hello, &body)) {
            connection.refuse(code, mine.0.generation, &text);
            return self.refused(code, &text);
        }
        if self.dial.purpose.get() != Purpose::Session {
            // It still waits for its primary: nothing happened to this node's role.
            self.close_session();
            return self.probe_later();
        }
        self.peer_sizes.replace(claim::sizes(&body));
        self.dial_lanes(hello, body.lineage, body.past);
    }

    fn dial_lanes(&self, hello: Hello, lineage: Lineage, past: Past) {
        let Some(address) = self.address() else { return };
        let (serial, session, lanes) = (self.fixed.serial, self.session.get(), hello.reactors);
        self.dial.lanes_left.set(u32::from(self.fixed.reactors) * u32::from(lanes));
        self.dial.peer.set(Some(Greeting {
            newest: hello.committed_epoch,
            generation: hello.generation,
            lanes,
            lineage,
            past,
            consistent: hello.options & option::INCONSISTENT == 0,
            restarted: hello.options & option::RESTARTED != 0,
            session,
        }));
        for from in 0..self.fixed.reactors {
            let (group, generation) = (self.fixed.uuid, self.record().generation);
            reactor::spawn_call(usize::from(from), move || {
                for to in 0..lanes {
                    let hello = DataHello {
                        version: u16::from(VERSION),
                        primary_reactor: from,
                        secondary_reactor: to,
                        nonce: session,
                        generation,
                        group,
                    };
                    let lane = Rc::new(LaneDial { serial, session, address, hello });
                    if let Err(error) = connect(address, ATTEMPT, lane, 0) {
                        lane_failed(serial, session, error.to_string());
                    }
                }
            });
        }
    }

    fn lane_up(&self, session: u64) {
        if self.session.get() != session {
            return;
        }
        self.dial.lanes_left.set(self.dial.lanes_left.get().saturating_sub(1));
        if self.dial.lanes_left.get() == 0 {
            let Some(greeting) = self.dial.peer.take() else { return };
            let sizes = self.peer_sizes.borrow().clone();
            self.primary(|group, out| group.connected(&greeting, &sizes, out));
        }
    }

    /// The peer said why it does not talk to this node.
    pub fn refused(&self, code: RefusalCode, text: &str) {
        let why = format!("the peer refuses this node ({code:?}): {text}");
        match code {
            RefusalCode::OldGeneration => {
                self.error.replace(Some(why));
                if self.fixed.is_primary() {
                    self.primary(|group, out| group.fenced(out));
                } else {
                    self.session_lost("the primary refused this node");
                }
            }
            RefusalCode::Version
            | RefusalCode::GroupIdentity
            | RefusalCode::VolumeIdentity
            | RefusalCode::VolumeSize
            | RefusalCode::BlockSize
            | RefusalCode::Options
            | RefusalCode::Role
            | RefusalCode::UnknownGroup
            | RefusalCode::SplitBrain => {
                self.error.replace(Some(why));
                self.close_session();
                self.primary(|group, out| group.refused(GroupError::Refused, out));
                self.secondary(|group, out| group.disconnected(out));
                self.redial_later();
            }
            _ => self.session_lost(&why),
        }
    }
}

impl ConnectOwner for Attempting {
    fn connected(&self, _tag: u64, outcome: Result<Arc<OwnedFd>, ConnectError>) {
        let Some(home) = self.home.upgrade().filter(|home| home.session.get() == self.session) else {
            return;
        };
        home.dial.attempt.take();
        match outcome {
            Ok(socket) => {
                let session = self.session;
                home.count_dirty(move |home| {
                    if home.session.get() == session {
                        home.reached(socket, session);
                    }
                });
            }
            Err(error) => home.session_lost(&error.to_string()),
        }
    }
}

impl TimerHandler for Attempting {
    /// The wait before the next attempt is over.
    fn timer_fired(self: Rc<Self>, tag: u64) {
        let Some(home) = self.home.upgrade().filter(|home| home.dial.end_pause(tag)) else { return };
        let wanted = match home.dial.purpose.get() {
            Purpose::Nothing => false,
            Purpose::Session => home.wants_peer(),
            Purpose::Probe => home.primary_state() == Some(PrimaryState::ResyncRequired),
        };
        if wanted && home.session.get() == 0 && home_of(home.fixed.serial).is_some() {
            home.dial_now();
        }
    }
}

fn lane_failed(serial: u64, session: u64, why: String) {
    reactor::spawn_call(HOME, move || {
        if let Some(home) = home_of(serial).filter(|home| home.session.get() == session) {
            home.session_lost(&why);
        }
    });
}

/// One data connection until its handshake is done, on the reactor where it is to live.
struct LaneDial {
    serial: u64,
    session: u64,
    address: SocketAddr,
    hello: DataHello,
}

impl ConnectOwner for LaneDial {
    fn connected(&self, _tag: u64, outcome: Result<Arc<OwnedFd>, ConnectError>) {
        let started = outcome.map_err(|error| error.to_string()).and_then(|socket| {
            let lane = LaneDial { hello: self.hello, ..*self };
            Connection::start(socket, self.address, Rc::new(lane)).map_err(|reason| reason.to_string())
        });
        match started {
            Ok(connection) => {
                connection.set_deadline(HANDSHAKE_DEADLINE, "the handshake of a data connection");
                let _ = connection.send_bytes(&Message::DataHello(self.hello), &[]);
            }
            Err(why) => lane_failed(self.serial, self.session, why),
        }
    }
}

impl LinkOwner for LaneDial {
    fn message(&self, connection: &Rc<Connection>, header: Header, _payload: SgList) {
        let agreed = matches!(header.message, Message::DataHelloReply(reply) if reply.nonce == self.session);
        let socket = if agreed { connection.detach() } else { None };
        let (Some(socket), Some(shard)) = (socket, shard_of(self.serial)) else {
            connection.close(CloseReason::Local);
            return lane_failed(
                self.serial,
                self.session,
                "a data connection's handshake failed".to_string(),
            );
        };
        let lane = self.hello.secondary_reactor;
        match Connection::start(socket, self.address, shard.lane_owner(lane)) {
            Ok(connection) => {
                shard.attach(lane, connection);
                let (serial, session) = (self.serial, self.session);
                reactor::spawn_call(HOME, move || {
                    if let Some(home) = home_of(serial) {
                        home.lane_up(session);
                    }
                });
            }
            Err(reason) => lane_failed(self.serial, self.session, reason.to_string()),
        }
    }

    fn writable(&self, _connection: &Rc<Connection>) {}

    fn closed(&self, _connection: &Rc<Connection>, reason: CloseReason) {
        lane_failed(self.serial, self.session, format!("a data connection failed: {reason}"));
    }
}
