//! Connections over loopback between two reactors, and between a reactor and a socket that misbehaves.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::wire::HEADER_BYTES;
use super::*;
use crate::env::{Buf, CoreList, SgList, sg_len};
use crate::reactor::{self, Config, IdleMode, ReactorSet, Task, TimerHandler};
use crate::replication::{Epoch, Generation, Sequence};

const SOON: Duration = Duration::from_secs(10);

fn reactors(memory_bytes: usize) -> Arc<ReactorSet> {
    let config = Config { cores: CoreList::available().first(2), idle: IdleMode::Adaptive, memory_bytes };
    ReactorSet::start(&config).expect("reactors")
}

#[derive(Debug, PartialEq)]
enum Event {
    /// A message, the length of its payload and the payload's first byte, if all of its bytes are the same.
    Message(Message, usize, Option<u8>),
    Writable,
    Closed(CloseReason),
}

/// What a server's connection does beside reporting.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Report,
    /// Answers writes by acknowledgements, one message for all that came in one turn.
    Acknowledge,
    /// Sends until it is asked to hold back.
    Flood,
    /// Keeps payloads for a while.
    Hold,
    /// Closes for lack of anything within 50 ms.
    Impatient,
}

struct Server {
    mode: Mode,
    events: mpsc::Sender<Event>,
    connection: RefCell<Option<Rc<Connection>>>,
    applied: Cell<(u64, u64)>,
    scheduled: Cell<bool>,
    held: RefCell<Vec<SgList>>,
}

fn content(payload: &[Buf]) -> (usize, Option<u8>) {
    let bytes: Vec<u8> = payload.iter().flat_map(|buf| buf.with(<[u8]>::to_vec)).collect();
    let first = bytes.first().copied();
    (bytes.len(), first.filter(|first| bytes.iter().all(|byte| byte == first)))
}

impl LinkOwner for Rc<Server> {
    fn message(&self, _: &Rc<Connection>, header: Header, payload: SgList) {
        match (self.mode, header.message) {
            (Mode::Acknowledge, Message::Write(write)) => {
                let (first, count) = self.applied.get();
                assert_eq!(write.sequence.0, first + count, "in order");
                self.applied.set((first, count + 1));
                if !self.scheduled.replace(true) {
                    reactor::schedule(self.clone());
                }
            }
            (Mode::Hold, _) => {
                if self.held.borrow().is_empty() {
                    reactor::timer_after(Duration::from_millis(50), self.clone(), 0);
                }
                self.held.borrow_mut().push(payload.clone());
            }
            _ => {}
        }
        if self.mode != Mode::Acknowledge {
            let (len, byte) = content(&payload);
            let _ = self.events.send(Event::Message(header.message, len, byte));
        }
    }

    fn writable(&self, _: &Rc<Connection>) {
        let _ = self.events.send(Event::Writable);
    }

    fn closed(&self, _: &Rc<Connection>, reason: CloseReason) {
        self.connection.take();
        let _ = self.events.send(Event::Closed(reason));
    }
}

impl Task for Server {
    fn run(self: Rc<Self>) {
        self.scheduled.set(false);
        let (first, count) = self.applied.get();
        self.applied.set((first + count, 0));
        let acks =
            Acks { generation: Generation(1), epoch: Epoch(1), buffer_used: 0, buffer_limit: 0, entries: 1 };
        let entry =
            AckEntry { volume: 0, first: Sequence(first), count: count as u32, status: AckStatus::Applied };
        if let Some(connection) = &*self.connection.borrow() {
            connection.send_bytes(&Message::Acks(acks), &entry.encode()).expect("open");
        }
    }
}

impl TimerHandler for Server {
    fn timer_fired(self: Rc<Self>, _tag: u64) {
        self.held.borrow_mut().clear();
    }
}

/// Accepts data connections and starts each on the last reactor.
struct Door {
    mode: Mode,
    events: mpsc::Sender<Event>,
}

impl AcceptOwner for Door {
    fn incoming(&self, incoming: Incoming<'_>) {
        let FirstMessage::Data(hello) = incoming.first else {
            return incoming.refuse(RefusalCode::UnknownGroup, Generation(3), "no such group");
        };
        let peer = incoming.peer();
        let Some(socket) = incoming.accept() else { return };
        let (mode, events) = (self.mode, self.events.clone());
        reactor::spawn_call(reactor::count() - 1, move || serve(socket, peer, hello, mode, events));
    }
}

fn serve(socket: Arc<OwnedFd>, peer: SocketAddr, hello: DataHello, mode: Mode, events: mpsc::Sender<Event>) {
    let server = Rc::new(Server {
        mode,
        events,
        connection: RefCell::default(),
        applied: Cell::new((1, 0)),
        scheduled: Cell::new(false),
        held: RefCell::default(),
    });
    let connection = Connection::start(socket, peer, Rc::new(server.clone())).expect("started");
    connection.send(&Message::DataHelloReply(hello), SgList::new()).expect("room");
    if mode == Mode::Impatient {
        connection.set_deadline(Duration::from_millis(50), "patience");
    }
    if mode == Mode::Flood {
        let payload = Buf::heap(1 << 20).expect("heap");
        let mut sequence = Sequence(1);
        while connection.send(&write(sequence, 1 << 20), SgList::from_iter([payload.clone()]))
            == Ok(Room::Yes)
        {
            sequence = sequence.next();
        }
    }
    *server.connection.borrow_mut() = Some(connection);
}

struct Running {
    set: Arc<ReactorSet>,
    address: SocketAddr,
    events: mpsc::Receiver<Event>,
}

impl Running {
    fn start(mode: Mode, memory_bytes: usize) -> Running {
        let set = reactors(memory_bytes);
        let (sender, events) = mpsc::channel();
        let address = set.call(0, SOON, move || {
            let any = "127.0.0.1:0".parse().expect("an address");
            Listener::start(any, Rc::new(Door { mode, events: sender })).expect("listening").address()
        });
        Running { set, address: address.expect("called"), events }
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(SOON).expect("an event in time")
    }

    /// A socket whose other end is served.
    fn raw(&self) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).expect("connected");
        socket.set_read_timeout(Some(SOON)).expect("a deadline");
        socket.write_all(&data_hello().encode(0, None)).expect("sent");
        assert!(matches!(read_header(&mut socket).message, Message::DataHelloReply(_)));
        socket
    }
}

fn read_header(socket: &mut TcpStream) -> Header {
    let mut bytes = [0; HEADER_BYTES];
    socket.read_exact(&mut bytes).expect("a header");
    parse(&bytes).expect("a valid header")
}

fn data_hello() -> Message {
    Message::DataHello(DataHello {
        version: 1,
        primary_reactor: 0,
        secondary_reactor: 0,
        nonce: 5,
        generation: Generation(1),
        group: uuid::Uuid::nil(),
    })
}

fn write(sequence: Sequence, len: u32) -> Message {
    Message::Write(Write {
        generation: Generation(1),
        epoch: Epoch(1),
        sequence,
        volume: 0,
        offset: 4096 * sequence.0,
        len,
        fua: false,
        zeroes: false,
        sync_copy: false,
    })
}

fn write_bytes(sequence: u64, byte: u8, len: u32) -> Vec<u8> {
    let mut bytes = write(Sequence(sequence), len).encode(len, None).to_vec();
    bytes.resize(HEADER_BYTES + len as usize, byte);
    bytes
}

/// Sends writes, a number of them on the way at a time, and counts acknowledgements.
struct Client {
    depth: u64,
    total: u64,
    lens: &'static [u32],
    sent: Cell<u64>,
    acked: Cell<u64>,
    ack_messages: Cell<u64>,
    done: RefCell<Option<reactor::Reply<(u64, u64)>>>,
    attempt: RefCell<Option<Rc<Attempt>>>,
}

impl Client {
    fn fill(&self, connection: &Rc<Connection>) {
        while self.sent.get() < self.total && self.sent.get() - self.acked.get() < self.depth {
            let len = self.lens[(self.sent.get() % self.lens.len() as u64) as usize];
            let Some(payload) = reactor::alloc(len as usize) else { return };
            payload.fill(0, len as usize, self.sent.get() as u8);
            self.sent.set(self.sent.get() + 1);
            let message = write(Sequence(self.sent.get()), len);
            connection.send(&message, SgList::from_iter([payload])).expect("open");
        }
    }
}

/// The same as an owner.
struct ClientOwner(Rc<Client>);

impl ConnectOwner for ClientOwner {
    fn connected(&self, _tag: u64, outcome: Result<Arc<OwnedFd>, ConnectError>) {
        let owner = Rc::new(ClientOwner(self.0.clone()));
        let peer = "127.0.0.1:1".parse().expect("an address");
        let connection = Connection::start(outcome.expect("connected"), peer, owner).expect("started");
        connection.set_payload_checksums(true);
        connection.send(&data_hello(), SgList::new()).expect("open");
    }
}

impl LinkOwner for ClientOwner {
    fn message(&self, connection: &Rc<Connection>, header: Header, payload: SgList) {
        let client = &self.0;
        if matches!(header.message, Message::Acks(_)) {
            client.ack_messages.set(client.ack_messages.get() + 1);
            payload[0].with(|bytes| {
                for entry in AckEntry::parse_all(bytes).expect("whole") {
                    let entry = entry.expect("valid");
                    assert_eq!(entry.first.0, client.acked.get() + 1);
                    client.acked.set(client.acked.get() + u64::from(entry.count));
                }
            });
        }
        client.fill(connection);
        if client.acked.get() == client.total
            && let Some(reply) = client.done.borrow_mut().take()
        {
            reply.send((connection.sent_bytes(), client.ack_messages.get()));
            connection.close(CloseReason::Local);
        }
    }

    fn writable(&self, connection: &Rc<Connection>) {
        self.0.fill(connection);
    }

    fn closed(&self, _: &Rc<Connection>, reason: CloseReason) {
        assert_eq!(reason, CloseReason::Local);
        self.0.attempt.take();
    }
}

fn stream(depth: u64, total: u64, lens: &'static [u32]) -> (u64, u64) {
    let server = Running::start(Mode::Acknowledge, 64 << 20);
    let address = server.address;
    let outcome = server.set.ask(0, SOON, move |reply| {
        let client = Rc::new(Client {
            depth,
            total,
            lens,
            sent: Cell::new(0),
            acked: Cell::new(0),
            ack_messages: Cell::new(0),
            done: RefCell::new(Some(reply)),
            attempt: RefCell::default(),
        });
        let attempt = connect(address, SOON, Rc::new(ClientOwner(client.clone())), 0).expect("an attempt");
        *client.attempt.borrow_mut() = Some(attempt);
    });
    assert_eq!(server.next(), Event::Closed(CloseReason::PeerClosed));
    outcome.expect("all acknowledged")
}

#[test]
fn a_stream_of_small_writes_is_acknowledged_in_order_and_in_batches() {
    let (bytes, ack_messages) = stream(32, 20_000, &[4096]);
    assert_eq!(bytes, 64 + 20_000 * (64 + 4096));
    assert!(ack_messages < 20_000, "{ack_messages} acknowledgements for 20000 writes");
}

#[test]
fn writes_of_every_size_arrive_whole() {
    let (bytes, _) = stream(8, 400, &[512, 1 << 20, 4096, 128 << 10, 1024, 300 << 10, 512, 512]);
    let sizes: u64 = [512, 1 << 20, 4096, 128 << 10, 1024, 300 << 10, 512, 512].iter().sum();
    assert_eq!(bytes, 64 + 400 * 64 + 50 * sizes);
}

#[test]
fn a_message_that_comes_byte_by_byte_is_one_message() {
    let server = Running::start(Mode::Report, 64 << 20);
    let mut socket = server.raw();
    socket.set_nodelay(true).expect("no delay");
    for byte in write_bytes(1, 9, 512) {
        socket.write_all(&[byte]).expect("sent");
    }
    assert_eq!(server.next(), Event::Message(write(Sequence(1), 512), 512, Some(9)));
    let Message::Write(w) = write(Sequence(2), 1) else { panic!("a write") };
    let zeroes = Message::Write(Write { zeroes: true, len: 1 << 20, ..w });
    socket.write_all(&zeroes.encode(0, None)).expect("sent");
    assert_eq!(server.next(), Event::Message(zeroes, 0, None));
}

#[test]
fn a_connection_cut_in_the_middle_of_a_message_closes_once() {
    let server = Running::start(Mode::Report, 64 << 20);
    for cut in [1, 63, 64, 65, 4000] {
        let mut socket = server.raw();
        socket.write_all(&write_bytes(1, 9, 4096)[..cut]).expect("sent");
        drop(socket);
        assert_eq!(server.next(), Event::Closed(CloseReason::PeerClosed));
        assert_eq!(
            server.events.recv_timeout(Duration::from_millis(20)),
            Err(mpsc::RecvTimeoutError::Timeout)
        );
    }
}

/// Reads to the end and returns the refusal's code and text.
fn refusal(socket: &mut TcpStream) -> (RefusalCode, String) {
    let header = read_header(socket);
    let Message::Refusal { code, .. } = header.message else { panic!("a refusal: {header:?}") };
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("text, then the end");
    (code, text)
}

#[test]
fn garbage_is_refused_by_name_and_costs_nobody_else() {
    let server = Running::start(Mode::Report, 64 << 20);
    let mut good = server.raw();
    let mut bad = server.raw();
    bad.write_all(&[0x5a; 4096]).expect("sent");
    assert_eq!(refusal(&mut bad).0, RefusalCode::Checksum);
    drop(bad);
    assert_eq!(server.next(), Event::Closed(CloseReason::Wire(WireError::HeaderChecksum)));
    good.write_all(&write_bytes(1, 7, 512)).expect("sent");
    assert_eq!(server.next(), Event::Message(write(Sequence(1), 512), 512, Some(7)));
}

#[test]
fn a_payload_with_a_wrong_checksum_ends_the_connection() {
    let server = Running::start(Mode::Report, 64 << 20);
    let mut socket = server.raw();
    let mut bytes = write(Sequence(1), 512).encode(512, Some(1234)).to_vec();
    bytes.resize(HEADER_BYTES + 512, 1);
    socket.write_all(&bytes).expect("sent");
    assert_eq!(refusal(&mut socket).0, RefusalCode::Checksum);
    drop(socket);
    assert_eq!(server.next(), Event::Closed(CloseReason::Wire(WireError::PayloadChecksum)));
}

#[test]
fn a_stranger_is_told_what_was_expected() {
    let server = Running::start(Mode::Report, 64 << 20);
    let mut socket = TcpStream::connect(server.address).expect("connected");
    socket.write_all(&write_bytes(1, 1, 512)).expect("sent");
    assert_eq!(refusal(&mut socket), (RefusalCode::Unexpected, "the first message must be a hello".into()));

    let mut socket = TcpStream::connect(server.address).expect("connected");
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        reactors: 1,
        volumes: 0,
        generation: Generation(1),
        committed_epoch: Epoch(0),
        options: 0,
        nonce: 0,
    };
    let body = HelloBody {
        node: uuid::Uuid::nil(),
        group: uuid::Uuid::nil(),
        group_name: "g0".into(),
        role: LinkRole::Primary,
        granule_bytes: 4096,
        stripe_bytes: 1 << 22,
        lineage: crate::replication::Lineage(0),
        past: crate::replication::Past::default(),
        dirty_bytes: 0,
        volumes: Vec::new(),
    };
    let body = body.encode();
    socket.write_all(&Message::Hello(hello).encode(body.len() as u32, None)).expect("sent");
    socket.write_all(&body).expect("sent");
    assert_eq!(refusal(&mut socket), (RefusalCode::UnknownGroup, "no such group".into()));

    let mut socket = TcpStream::connect(server.address).expect("connected");
    let mut eager = data_hello().encode(0, None).to_vec();
    eager.extend(write_bytes(1, 1, 512));
    socket.write_all(&eager).expect("sent");
    assert_eq!(refusal(&mut socket).0, RefusalCode::Unexpected);
}

#[test]
fn a_peer_that_refuses_is_quoted() {
    let server = Running::start(Mode::Report, 64 << 20);
    let mut socket = server.raw();
    let refusal = Message::Refusal { code: RefusalCode::OldGeneration, generation: Generation(9) };
    socket.write_all(&refusal.encode(8, None)).expect("sent");
    socket.write_all(b"too\x07 old").expect("sent");
    let reason = CloseReason::Refused { code: RefusalCode::OldGeneration, text: "too old".into() };
    assert_eq!(server.next(), Event::Closed(reason));
}

#[test]
fn a_slow_reader_is_held_back_and_resumed() {
    let server = Running::start(Mode::Flood, 64 << 20);
    let mut socket = server.raw();
    assert_eq!(server.events.recv_timeout(Duration::from_millis(100)), Err(mpsc::RecvTimeoutError::Timeout));
    let mut received = 0;
    let mut buffer = vec![0; 1 << 20];
    while received < SEND_BYTES_HIGH {
        received += socket.read(&mut buffer).expect("data");
    }
    assert_eq!(server.next(), Event::Writable);
    drop(socket);
    assert!(matches!(server.next(), Event::Closed(_)));
}

#[test]
fn an_empty_pool_makes_the_connection_wait_and_not_fail() {
    let server = Running::start(Mode::Hold, 8 << 20);
    let mut socket = server.raw();
    for sequence in 1..=24 {
        socket.write_all(&write_bytes(sequence, sequence as u8, 1 << 20)).expect("sent");
    }
    for sequence in 1..=24 {
        let expected = Event::Message(write(Sequence(sequence), 1 << 20), 1 << 20, Some(sequence as u8));
        assert_eq!(server.next(), expected);
    }
}

#[test]
fn a_deadline_names_what_took_too_long() {
    let server = Running::start(Mode::Impatient, 64 << 20);
    let _socket = server.raw();
    assert_eq!(server.next(), Event::Closed(CloseReason::Deadline("patience")));
}

struct Dialled(RefCell<Option<reactor::Reply<Result<(), ConnectError>>>>);

impl ConnectOwner for Dialled {
    fn connected(&self, _tag: u64, outcome: Result<Arc<OwnedFd>, ConnectError>) {
        if let Some(reply) = self.0.borrow_mut().take() {
            reply.send(outcome.map(drop));
        }
    }
}

#[test]
fn connecting_to_nobody_is_an_error_that_names_the_address() {
    let set = reactors(64 << 20);
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let outcome = set.ask(0, SOON, move |reply| {
        connect(address, SOON, Rc::new(Dialled(RefCell::new(Some(reply)))), 0).expect("an attempt");
    });
    let refused = ConnectError::Io(address, rustix::io::Errno::CONNREFUSED);
    assert_eq!(outcome.expect("answered"), Err(refused));
}

#[test]
fn consecutive_small_messages_are_one_buffer() {
    let set = reactors(64 << 20);
    let (buffers, bytes) = set
        .call(0, SOON, || {
            let mut side = send::SendSide::default();
            for sequence in 1..=10 {
                let beat = Message::Bye { generation: Generation(1), epoch: Epoch(sequence) };
                side.push_bytes(&beat, &[], false).expect("room");
            }
            let list: SgList = side.take().expect("something").collect();
            (list.len(), sg_len(&list))
        })
        .expect("called");
    assert_eq!((buffers, bytes), (1, 640));
}
