//! The secondary's way to a session: judges hellos, takes data connections to the reactors that they are for.

use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use super::claim;
use super::home::{ControlOwner, Home, Machine};
use super::split_brain;
use crate::reactor;
use crate::replication::link::{
    AcceptOwner, Connection, DataHello, FirstMessage, Hello, HelloBody, Incoming, ListenError, Listener,
    Message, RefusalCode,
};
use crate::replication::volume::shard_of;

struct Door {
    home: Weak<Home>,
}

impl Home {
    /// Opens the door for a primary.
    pub fn listen(&self, address: SocketAddr) -> Result<(), ListenError> {
        let listener = Listener::start(address, Rc::new(Door { home: self.this() }))?;
        tracing::info!("group `{}` waits for its primary on {}", self.fixed.name, listener.address());
        self.listener.replace(Some(listener));
        Ok(())
    }

    fn control_came(&self, incoming: Incoming<'_>, hello: Hello, body: &HelloBody) {
        let record = self.record();
        let refuse =
            |incoming: Incoming<'_>, code, text: &str| incoming.refuse(code, record.generation, text);
        let mine = self.own_hello(record.promoted, hello.nonce);
        if split_brain::is_between(&mine, (&hello, body)) {
            return self.part_from(incoming, hello, body.clone());
        }
        self.split_brain.take();
        if let Err((code, text)) = claim::check(&mine, (&hello, body)) {
            return refuse(incoming, code, &text);
        }
        let accepts = match &*self.machine.borrow() {
            Machine::Secondary(group) => group.accepts(),
            Machine::Primary(_) => false,
        };
        if !accepts {
            return refuse(
                incoming,
                RefusalCode::NotRunning,
                "the group is stopped, promoted, or has a primary",
            );
        }
        if self.session.get() != 0 {
            return refuse(incoming, RefusalCode::AlreadyConnected, "another session is not over yet");
        }
        let peer = incoming.peer();
        let Some(socket) = incoming.accept() else { return };
        self.session.set(hello.nonce.max(1));
        self.peer_sizes.replace(claim::sizes(body));
        let owner = Rc::new(ControlOwner { home: self.this(), session: self.session.get() });
        match Connection::start(socket, peer, owner) {
            Ok(connection) => {
                let _ = connection.send_bytes(&Message::HelloReply(mine.0), &mine.1.encode());
                self.control.replace(Some(connection));
            }
            Err(reason) => self.session_lost(&reason.to_string()),
        }
    }

    fn data_came(&self, incoming: Incoming<'_>, hello: DataHello) {
        let generation = self.record().generation;
        if hello.group != self.fixed.uuid || hello.nonce != self.session.get() || hello.nonce == 0 {
            let text = "a data connection of a session that is not this one";
            return incoming.refuse(RefusalCode::UnknownSession, generation, text);
        }
        if hello.secondary_reactor >= self.fixed.reactors {
            return incoming.refuse(RefusalCode::Reactor, generation, "this node has fewer reactors");
        }
        let peer = incoming.peer();
        let Some(socket) = incoming.accept() else { return };
        let serial = self.fixed.serial;
        reactor::spawn_call(usize::from(hello.secondary_reactor), move || {
            let Some(shard) = shard_of(serial) else { return };
            let lane = hello.primary_reactor;
            match Connection::start(socket, peer, shard.lane_owner(lane)) {
                Ok(connection) => {
                    shard.attach(lane, connection.clone());
                    let _ = connection.send_bytes(&Message::DataHelloReply(hello), &[]);
                }
                Err(reason) => tracing::warn!("a data connection from {peer}: {reason}"),
            }
        });
    }
}

impl AcceptOwner for Door {
    fn incoming(&self, incoming: Incoming<'_>) {
        let Some(home) = self.home.upgrade() else { return };
        match incoming.first.clone() {
            FirstMessage::Control(hello, body) => home.control_came(incoming, hello, &body),
            FirstMessage::Data(hello) => home.data_came(incoming, hello),
        }
    }
}
