//! Both nodes went on without each other: noticed in every handshake, by both, told with what each has, and ended by an
//! operator who names the node that gives up.
//!
//! Invariant. Nothing is copied either way while this stands: whoever meets the other decides by its names first.

use std::rc::Rc;

use serde::Serialize;
use uuid::Uuid;

use super::claim;
use super::home::{Home, Machine};
use crate::env::SgList;
use crate::replication::core::{Decision, Identity, Standpoint, decide};
use crate::replication::link::{
    CloseReason, Connection, Header, Hello, HelloBody, Incoming, LinkOwner, LinkRole, Message, RefusalCode,
    option,
};

/// What one of the two nodes has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OneSide {
    pub node: Uuid,
    pub generation: u64,
    /// The name of what it has, and of what it had when it went on alone.
    pub current: String,
    pub base: String,
    /// An upper bound of what it wrote alone, and what is lost if it gives up.
    pub alone_bytes: u64,
}

/// Two nodes that went on without each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitBrainInfo {
    pub this: OneSide,
    pub peer: OneSide,
}

impl OneSide {
    fn of(hello: &Hello, body: &HelloBody) -> OneSide {
        OneSide {
            node: body.node,
            generation: hello.generation.0,
            current: format!("{:016x}", body.lineage.0),
            base: format!("{:016x}", body.past.base.0),
            alone_bytes: body.dirty_bytes,
        }
    }
}

impl std::fmt::Display for OneSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let OneSide { node, generation, current, base, alone_bytes } = self;
        write!(
            f,
            "node {node}, generation {generation}, {current} from {base}, at most {alone_bytes} bytes written alone"
        )
    }
}

fn standpoint(hello: &Hello, body: &HelloBody) -> Standpoint {
    Standpoint {
        identity: Identity::new(body.lineage, body.past),
        consistent: hello.options & option::INCONSISTENT == 0,
        primary: body.role == LinkRole::Primary,
        crashed: false,
    }
}

/// Takes a connection whose peer is told why there is no session, and closes it.
struct Farewell;

impl LinkOwner for Farewell {
    fn message(&self, connection: &Rc<Connection>, _header: Header, _payload: SgList) {
        connection.close(CloseReason::Local);
    }

    fn writable(&self, _connection: &Rc<Connection>) {}

    fn closed(&self, _connection: &Rc<Connection>, _reason: CloseReason) {}
}

/// Whether the two went on without each other.
pub(super) fn is_between(mine: &(Hello, HelloBody), theirs: (&Hello, &HelloBody)) -> bool {
    let (hello, body) = theirs;
    body.group == mine.1.group
        && decide(&standpoint(&mine.0, &mine.1), &standpoint(hello, body)) == Decision::SplitBrain
}

/// A caller that went on without this node, while this node counts what it has.
pub(super) struct Parting {
    connection: Rc<Connection>,
    hello: Hello,
    body: HelloBody,
}

impl std::fmt::Display for SplitBrainInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "split brain: both nodes went on without each other. This one: {}. The peer: {}. Nothing is copied before one \
             of them begins anew",
            self.this, self.peer
        )
    }
}

impl Home {
    /// Whether the peer of a handshake went on without this node, and this one without it; whoever hears it is told.
    pub(super) fn is_split_brain(&self, mine: &(Hello, HelloBody), theirs: (&Hello, &HelloBody)) -> bool {
        let split = is_between(mine, theirs);
        if split {
            let (this, peer) = (OneSide::of(&mine.0, &mine.1), OneSide::of(theirs.0, theirs.1));
            self.note_split_brain(SplitBrainInfo { this, peer });
        } else {
            self.split_brain.take();
        }
        split
    }

    fn note_split_brain(&self, info: SplitBrainInfo) {
        let text = info.to_string();
        let known = self.split_brain.replace(Some(info.clone()));
        let is_known = known.is_some_and(|known| {
            (known.peer.node, &known.peer.current, &known.this.current)
                == (info.peer.node, &info.peer.current, &info.this.current)
        });
        if !is_known {
            tracing::error!("group `{}`: {text}", self.fixed.name);
            self.fixed.tell("replication_split_brain", text);
        }
    }

    /// Takes the connection of a caller that went on without this node, to tell it what this node has.
    pub(super) fn part_from(&self, incoming: Incoming<'_>, hello: Hello, body: HelloBody) {
        let peer = incoming.peer();
        let Some(socket) = incoming.accept() else { return };
        match Connection::start(socket, peer, Rc::new(Farewell)) {
            Ok(connection) => {
                self.parting.replace(Some(Parting { connection, hello, body }));
                self.count_dirty(|home| home.part());
            }
            Err(reason) => tracing::warn!("a connection from {peer}: {reason}"),
        }
    }

    /// Tells it, so that it comes to the same decision, and ends the connection.
    fn part(&self) {
        let Some(Parting { connection, hello, body }) = self.parting.take() else { return };
        let promoted = self.record().promoted;
        let mine = self.own_hello(promoted, hello.nonce);
        self.is_split_brain(&mine, (&hello, &body));
        let _ = connection.send_bytes(&Message::HelloReply(mine.0), &mine.1.encode());
        connection.refuse(RefusalCode::SplitBrain, mine.0.generation, "split brain");
    }

    /// What this node says of itself in a handshake.
    pub(super) fn own_hello(&self, is_primary: bool, nonce: u64) -> (Hello, HelloBody) {
        let restarted = matches!(&*self.machine.borrow(), Machine::Secondary(group) if group.is_restarted());
        claim::hello(&self.fixed, self.record(), is_primary, restarted, self.dirty_bytes.get(), nonce)
    }
}
