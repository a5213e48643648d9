//! Incoming connections: accepts, waits for the first message within a deadline, and hands the socket on.
//!
//! A stranger can cost one half-open place for the handshake's deadline, and nothing else. What the hello says is for
//! the owner to judge: it takes the socket ([`Incoming::accept`]) to the reactor where the connection is to live, or
//! refuses.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::body::HelloBody;
use super::connection::{CloseReason, Connection, LinkOwner};
use super::message::{DataHello, Header, Hello, Message, RefusalCode};
use crate::env::SgList;
use crate::reactor::ring::{self, Done, Lane, RingFile, RingOwner};
use crate::reactor::{self, OpId, TimerHandler};
use crate::replication::Generation;

/// Connections that have not said hello yet: all data connections of 64 reactor pairs may come at once.
const HALF_OPEN_MAX: usize = 128;
/// The first message is 64 bytes and comes right after the connection; this is for slow networks.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 256;
/// When accepting fails (no descriptors left, usually), it is tried again after this time.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The first message of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstMessage {
    Control(Hello, HelloBody),
    Data(DataHello),
}

/// A connection that has said hello.
pub struct Incoming<'a> {
    pub first: FirstMessage,
    connection: &'a Rc<Connection>,
}

impl Incoming<'_> {
    pub fn peer(&self) -> SocketAddr {
        self.connection.peer()
    }

    /// Takes the socket, for [`Connection::start`] on the reactor where it is to live, this one or another. `None`: the
    /// peer sent more than its hello, and was refused for it.
    pub fn accept(self) -> Option<Arc<OwnedFd>> {
        let socket = self.connection.detach();
        if socket.is_none() {
            let text = "more came than a hello before it was answered";
            self.connection.refuse(RefusalCode::Unexpected, Generation(0), text);
        }
        socket
    }

    /// Tells the peer why not, and closes.
    pub fn refuse(self, code: RefusalCode, generation: Generation, text: &str) {
        tracing::warn!("link connection from {} refused: {text}", self.peer());
        self.connection.refuse(code, generation, text);
    }
}

/// Judges incoming connections.
pub trait AcceptOwner {
    fn incoming(&self, incoming: Incoming<'_>);
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {error}")]
    Bind { address: SocketAddr, error: std::io::Error },
}

pub struct Listener {
    file: RefCell<Option<RingFile>>,
    address: SocketAddr,
    owner: RefCell<Option<Rc<dyn AcceptOwner>>>,
    operation: Cell<Option<OpId>>,
    half_open: Cell<usize>,
}

const TAG_ACCEPT: u64 = 0;

fn bind(address: SocketAddr) -> std::io::Result<(OwnedFd, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((OwnedFd::from(socket), bound))
}

impl Listener {
    /// Listens on the calling reactor.
    pub fn start(address: SocketAddr, owner: Rc<dyn AcceptOwner>) -> Result<Rc<Listener>, ListenError> {
        let (socket, bound) = bind(address).map_err(|error| ListenError::Bind { address, error })?;
        let listener = Rc::new(Listener {
            file: RefCell::new(Some(RingFile::new(Arc::new(socket), Lane::Interrupt))),
            address: bound,
            owner: RefCell::new(Some(owner)),
            operation: Cell::new(None),
            half_open: Cell::new(0),
        });
        listener.arm();
        Ok(listener)
    }

    /// Where it listens; the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening. Connections that were handed on stay.
    pub fn stop(&self) {
        self.owner.take();
        self.file.take();
        if let Some(operation) = self.operation.take() {
            ring::cancel(operation);
        }
    }

    fn arm(self: &Rc<Self>) {
        if let Some(file) = &*self.file.borrow() {
            self.operation.set(Some(ring::accept_many(file, self.clone(), TAG_ACCEPT)));
        }
    }

    fn accepted(self: &Rc<Self>, socket: OwnedFd) {
        if self.owner.borrow().is_none() {
            return;
        }
        let peer = SockRef::from(&socket).peer_addr().ok().and_then(|address| address.as_socket());
        let Some(peer) = peer else { return };
        if self.half_open.get() >= HALF_OPEN_MAX {
            tracing::warn!("link connection from {peer} dropped: {HALF_OPEN_MAX} handshakes are under way");
            return;
        }
        let handshake = Rc::new(Handshake { listener: self.clone(), counted: Cell::new(true) });
        self.half_open.set(self.half_open.get() + 1);
        match Connection::start(Arc::new(socket), peer, handshake.clone()) {
            Ok(connection) => connection.set_deadline(HANDSHAKE_DEADLINE, "the handshake"),
            Err(error) => {
                handshake.uncount();
                tracing::warn!("link connection from {peer}: {error}");
            }
        }
    }
}

impl RingOwner for Listener {
    fn ring_done(self: Rc<Self>, _tag: u64, done: Done) {
        let failed = done.result.is_err();
        if let Some(socket) = done.socket {
            self.accepted(socket);
        }
        if done.more || self.file.borrow().is_none() {
            return;
        }
        self.operation.take();
        if failed {
            reactor::timer_after(ACCEPT_RETRY, self, TAG_ACCEPT);
        } else {
            self.arm();
        }
    }
}

impl TimerHandler for Listener {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        self.arm();
    }
}

/// Owner of a connection until its first message.
struct Handshake {
    listener: Rc<Listener>,
    counted: Cell<bool>,
}

impl Handshake {
    fn uncount(&self) {
        if self.counted.replace(false) {
            self.listener.half_open.set(self.listener.half_open.get() - 1);
        }
    }
}

impl LinkOwner for Handshake {
    fn message(&self, connection: &Rc<Connection>, header: Header, payload: SgList) {
        self.uncount();
        connection.clear_deadline();
        let owner = self.listener.owner.borrow().clone();
        let refuse = |code, text: &str| connection.refuse(code, Generation(0), text);
        let Some(owner) = owner else { return refuse(RefusalCode::NotRunning, "this node is stopping") };
        let first = match header.message {
            Message::Hello(hello) => {
                let body = payload.first().map(|payload| payload.with(HelloBody::parse));
                match body {
                    Some(Ok(body)) => FirstMessage::Control(hello, body),
                    Some(Err(error)) => return refuse(RefusalCode::Malformed, &error.to_string()),
                    None => return refuse(RefusalCode::Malformed, "a hello without its records"),
                }
            }
            Message::DataHello(hello) => FirstMessage::Data(hello),
            _ => return refuse(RefusalCode::Unexpected, "the first message must be a hello"),
        };
        owner.incoming(Incoming { first, connection });
    }

    fn writable(&self, _connection: &Rc<Connection>) {}

    fn closed(&self, connection: &Rc<Connection>, reason: CloseReason) {
        self.uncount();
        tracing::info!("link connection from {} ended before it began: {reason}", connection.peer());
    }
}
