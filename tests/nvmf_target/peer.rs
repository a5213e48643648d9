//! A host that says exactly what a test wants, byte for byte: a blocking socket and the wire structures.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use lockstep::bdev::delay::{self, Latencies};
use lockstep::bdev::{Bdev, BdevOptions, Registry, ram};
use lockstep::env::CoreList;
use lockstep::nvme::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData, PropertyCommand};
use lockstep::nvme::property::{self, Cc};
use lockstep::nvme::tcp::*;
use lockstep::nvme::{CompletionEntry, SglDescriptor, Status, SubmissionEntry, tcp};
use lockstep::reactor::{Config, IdleMode, ReactorSet};
use lockstep::target::nvmf::{ListenAddress, NamespaceOptions, SubsystemOptions, Target, TransportOptions};
use zerocopy::{FromBytes, IntoBytes};

pub const NQN: &str = "nqn.2026-11.io.lockstep:test";
pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
pub const BLOCKS: u64 = 4096;
pub const NONE: Digests = Digests { header: false, data: false };
pub const BOTH: Digests = Digests { header: true, data: true };

/// A target with one subsystem that exports one RAM disk of 4096 blocks of 512 bytes.
pub struct Fixture {
    pub reactors: Arc<ReactorSet>,
    pub bdevs: Arc<Registry>,
    pub target: Arc<Target>,
    pub address: ListenAddress,
}

impl Fixture {
    pub fn new() -> Fixture {
        Self::with(TransportOptions::default(), 64 << 20)
    }

    pub fn with(options: TransportOptions, memory_bytes: usize) -> Fixture {
        let config = Config { cores: CoreList::available().first(2), idle: IdleMode::Adaptive, memory_bytes };
        let reactors = ReactorSet::start(&config).expect("reactors");
        let bdevs = Registry::new();
        let target = Target::new(reactors.clone(), bdevs.clone()).expect("target");
        target.create_transport(options).expect("transport");
        let mut fixture = Fixture {
            reactors,
            bdevs,
            target,
            address: ListenAddress::new("127.0.0.1", "0").expect("address"),
        };
        fixture.add_disk("Disk0");
        let mut subsystem = SubsystemOptions::new(NQN);
        subsystem.allow_any_host = true;
        subsystem.ana_reporting = true;
        fixture.target.create_subsystem(subsystem).expect("subsystem");
        assert_eq!(fixture.target.add_ns(NQN, NamespaceOptions::new("Disk0")).expect("namespace"), 1);
        fixture.address = fixture.target.add_listener(NQN, &fixture.address).expect("listener");
        fixture
    }

    pub fn add_disk(&self, name: &str) {
        let options = BdevOptions {
            name: name.to_string(),
            aliases: Vec::new(),
            uuid: uuid::Uuid::new_v4(),
            block_size: 512,
            num_blocks: BLOCKS,
        };
        self.bdevs.add(ram::create(options).expect("ram disk")).expect("new name");
    }

    /// Exports a disk that takes its time, as namespace 2.
    pub fn add_slow_disk(&self, latency_us: u64) -> Arc<Bdev> {
        self.add_disk("Base");
        let base = self.bdevs.get("Base").expect("base");
        let latencies = Latencies {
            avg_read_us: latency_us,
            p99_read_us: latency_us,
            avg_write_us: latency_us,
            p99_write_us: latency_us,
        };
        let slow = delay::create("Slow", uuid::Uuid::new_v4(), &base, latencies).expect("delay bdev");
        self.bdevs.add(slow.clone()).expect("new name");
        assert_eq!(self.target.add_ns(NQN, NamespaceOptions::new("Slow")).expect("namespace"), 2);
        slow
    }

    /// A connection that has not said anything.
    pub fn socket(&self) -> TcpStream {
        let address = self.address.socket_address().expect("address");
        let socket = TcpStream::connect(address).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        socket.set_nodelay(true).expect("nodelay");
        socket
    }

    /// A connection after ICReq and ICResp.
    pub fn peer(&self, digests: Digests) -> Peer {
        let mut peer = Peer { socket: self.socket(), digests: NONE, next_cid: 0 };
        peer.send(IcReq::new(digests, 0, 0).as_bytes());
        let resp = peer.receive();
        assert_eq!(resp.frame.kind, PduType::IcResp);
        let resp = IcResp::read_from_bytes(&resp.header).expect("length");
        assert_eq!(Digests::from_dgst(resp.dgst), digests);
        peer.digests = digests;
        peer
    }

    /// An enabled controller's admin queue.
    pub fn admin(&self, digests: Digests, kato_ms: u32) -> (Peer, u16) {
        let mut peer = self.peer(digests);
        let completion = peer.connect(0, CNTLID_DYNAMIC, NQN, kato_ms);
        assert!(completion.status().is_success(), "{}", completion.status());
        let cntlid = completion.dw0.get() as u16;
        peer.set_property(property::CC, Cc::ENABLE.0.into());
        assert_eq!(peer.get_property(property::CSTS, false) & 1, 1);
        (peer, cntlid)
    }

    /// An admin queue and one I/O queue of its controller.
    pub fn io(&self, digests: Digests) -> (Peer, Peer) {
        let (admin, cntlid) = self.admin(digests, 0);
        let mut io = self.peer(digests);
        let completion = io.connect(1, cntlid, NQN, 0);
        assert!(completion.status().is_success(), "{}", completion.status());
        (admin, io)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let ended = self.target.shut_down(Duration::from_secs(5));
        let panics: u64 = self.reactors.stats().iter().map(|s| s.panics).sum();
        if !std::thread::panicking() {
            assert!(ended.expect("shut down"), "connections are left over");
            assert_eq!(panics, 0, "something panicked on a reactor");
        }
    }
}

/// What arrived.
pub struct Pdu {
    pub frame: Frame,
    pub header: Vec<u8>,
    pub data: Vec<u8>,
}

pub struct Peer {
    pub socket: TcpStream,
    pub digests: Digests,
    next_cid: u16,
}

impl Peer {
    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("send");
    }

    /// A PDU as bytes, with the digests agreed on.
    pub fn encode(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        if self.digests.header {
            bytes.extend(header_digest(header));
        }
        bytes.extend_from_slice(data);
        if self.digests.data && !data.is_empty() {
            bytes.extend(data_digest_append(0, data).to_le_bytes());
        }
        bytes
    }

    fn rules(&self) -> Rules {
        Rules {
            direction: Direction::ControllerToHost,
            digests: self.digests,
            data_alignment: 4,
            max_in_capsule: 0,
            max_data: 1 << 20,
        }
    }

    /// The next PDU; panics when the connection ends instead.
    pub fn receive(&mut self) -> Pdu {
        self.try_receive().expect("the connection ended")
    }

    /// The next PDU, or `None` at the end of the stream.
    pub fn try_receive(&mut self) -> Option<Pdu> {
        let mut bytes = vec![0; 8];
        match self.socket.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came in time"),
            Err(_) => return None,
        }
        let common = CommonHeader::read_from_bytes(&bytes).expect("length");
        let plen = common.plen.get() as usize;
        bytes.resize(plen, 0);
        self.socket.read_exact(&mut bytes[8..]).ok()?;
        let (frame, _) = tcp::parse(&bytes, &self.rules()).expect("a correct PDU").expect("all of it");
        let header = bytes[..frame.hlen].to_vec();
        let data = bytes[frame.data_offset..frame.data_offset + frame.data_len].to_vec();
        if frame.data_digest {
            let sent = &bytes[frame.data_offset + frame.data_len..];
            assert_eq!(sent, data_digest_append(0, &data).to_le_bytes(), "data digest");
        }
        Some(Pdu { frame, header, data })
    }

    /// The TermReq that has to come now, and the end of the connection after it.
    pub fn expect_term_req(&mut self) -> (u16, u32) {
        loop {
            let pdu = self.receive();
            if pdu.frame.kind != PduType::C2hTermReq {
                continue;
            }
            let term = TermReq::read_from_bytes(&pdu.header).expect("length");
            assert!(self.try_receive().is_none(), "the connection goes on after a TermReq");
            return (term.fes.get(), term.fei.get());
        }
    }

    pub fn cid(&mut self) -> u16 {
        self.next_cid = (self.next_cid + 1) % 1000;
        self.next_cid
    }

    /// Sends a command without data in its capsule.
    pub fn submit(&mut self, entry: SubmissionEntry) -> u16 {
        let pdu = CapsuleCmd::new(entry, 0, self.digests);
        let bytes = self.encode(pdu.as_bytes(), &[]);
        self.send(&bytes);
        entry.cid.get()
    }

    /// Sends a command with data in its capsule.
    pub fn submit_with(&mut self, mut entry: SubmissionEntry, data: &[u8]) -> u16 {
        entry.sgl = SglDescriptor::in_capsule(data.len() as u32);
        let pdu = CapsuleCmd::new(entry, data.len(), self.digests);
        let bytes = self.encode(pdu.as_bytes(), data);
        self.send(&bytes);
        entry.cid.get()
    }

    pub fn send_data(&mut self, cid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) {
        let pdu = DataPdu::h2c(cid, ttag, offset, data.len() as u32, last, self.digests);
        let bytes = self.encode(pdu.as_bytes(), data);
        self.send(&bytes);
    }

    /// The next completion; data that comes before it is added to `data`.
    pub fn completion(&mut self, data: &mut Vec<u8>) -> CompletionEntry {
        loop {
            let pdu = self.receive();
            match pdu.frame.kind {
                PduType::CapsuleResp => {
                    return CapsuleResp::read_from_bytes(&pdu.header).expect("length").entry;
                }
                PduType::C2hData => {
                    let header = DataPdu::read_from_bytes(&pdu.header).expect("length");
                    assert_eq!(header.datao.get() as usize, data.len());
                    data.extend_from_slice(&pdu.data);
                    if pdu.frame.flags & FLAG_SUCCESS != 0 {
                        return CompletionEntry::new(header.cccid.get(), Status::SUCCESS);
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The R2T that has to come now.
    pub fn r2t(&mut self) -> R2t {
        let pdu = self.receive();
        assert_eq!(pdu.frame.kind, PduType::R2t);
        R2t::read_from_bytes(&pdu.header).expect("length")
    }

    /// Runs a command without data to the controller.
    pub fn run(&mut self, entry: SubmissionEntry) -> (CompletionEntry, Vec<u8>) {
        let cid = self.submit(entry);
        let mut data = Vec::new();
        let completion = self.completion(&mut data);
        assert_eq!(completion.cid.get(), cid);
        (completion, data)
    }

    pub fn connect(&mut self, qid: u16, cntlid: u16, nqn: &str, kato_ms: u32) -> CompletionEntry {
        self.connect_with(
            ConnectCommand::new(0, qid, 31, kato_ms),
            ConnectData::new([7; 16], cntlid, nqn, HOST),
        )
    }

    pub fn connect_with(&mut self, command: ConnectCommand, data: ConnectData) -> CompletionEntry {
        let mut command = command;
        command.cid = self.cid().into();
        self.submit_with(command.to_entry(), data.as_bytes());
        self.completion(&mut Vec::new())
    }

    pub fn set_property(&mut self, offset: u32, value: u64) {
        let cid = self.cid();
        let (completion, _) = self.run(PropertyCommand::set(cid, offset, false, value).to_entry());
        assert!(completion.status().is_success(), "{}", completion.status());
    }

    /// Sets a property and does not look what becomes of it.
    pub fn set_property_blindly(&mut self, offset: u32, value: u64) {
        let cid = self.cid();
        self.submit(PropertyCommand::set(cid, offset, false, value).to_entry());
    }

    pub fn get_property(&mut self, offset: u32, eight: bool) -> u64 {
        let cid = self.cid();
        let (completion, _) = self.run(PropertyCommand::get(cid, offset, eight).to_entry());
        assert!(completion.status().is_success(), "{}", completion.status());
        completion.value()
    }

    /// A command of this queue with a transport SGL of `len` bytes, for namespace `nsid`.
    pub fn entry(&mut self, opcode: u8, nsid: u32, len: u32) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(opcode, self.cid());
        entry.nsid = nsid.into();
        entry.sgl = SglDescriptor::transport(len);
        entry
    }

    /// A read or write of blocks of 512 bytes.
    pub fn range(&mut self, opcode: u8, lba: u64, blocks: u32) -> SubmissionEntry {
        let mut entry = self.entry(opcode, 1, blocks * 512);
        entry.set_slba(lba);
        entry.set_num_blocks(blocks);
        entry
    }

    /// Writes by R2T.
    pub fn write_by_r2t(&mut self, lba: u64, data: &[u8]) -> CompletionEntry {
        let entry = self.range(1, lba, (data.len() / 512) as u32);
        let cid = self.submit(entry);
        let r2t = self.r2t();
        assert_eq!((r2t.cccid.get(), r2t.r2to.get(), r2t.r2tl.get() as usize), (cid, 0, data.len()));
        self.send_data(cid, r2t.ttag.get(), 0, data, true);
        self.completion(&mut Vec::new())
    }

    /// The status of a write that must be refused before its data is asked for.
    pub fn write_refused(&mut self) -> Status {
        let entry = self.range(1, 0, 8);
        self.run(entry).0.status()
    }

    pub fn read(&mut self, lba: u64, blocks: u32) -> (CompletionEntry, Vec<u8>) {
        let entry = self.range(2, lba, blocks);
        self.run(entry)
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512 + seed) as u8).collect()
}
