//! The NVMe/TCP host against the project's own target, over real sockets: every operation, every change of the
//! target, and what a lost target does to I/O.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep::bdev::error_injection::{self, Failure, Injection};
use lockstep::bdev::nvme::{ControllerOptions, Life, NvmeHost};
use lockstep::bdev::{
    Access, Bdev, BdevError, BdevEvent, BdevOptions, Io, IoError, IoOwner, Op, Registry, ram,
};
use lockstep::env::{Buf, CoreList};
use lockstep::nvme::log::AnaState;
use lockstep::nvme::tcp::Digests;
use lockstep::reactor::{Config, IdleMode, ReactorSet, Reply};
use lockstep::target::nvmf::{ListenAddress, NamespaceOptions, SubsystemOptions, Target, TransportOptions};

const NQN: &str = "nqn.2026-11.io.lockstep:host-test";
const BLOCKS: u64 = 65536;
const SOON: Duration = Duration::from_secs(20);

fn reactors() -> Arc<ReactorSet> {
    let cores = CoreList::available().first(2);
    let config = Config { cores, idle: IdleMode::Adaptive, memory_bytes: 64 << 20 };
    ReactorSet::start(&config).expect("reactors")
}

/// A node that exports RAM disks.
struct TargetNode {
    target: Arc<Target>,
    bdevs: Arc<Registry>,
    reactors: Arc<ReactorSet>,
    listener: ListenAddress,
}

fn ram_disk(name: &str, blocks: u64, uuid: u128) -> Arc<Bdev> {
    let uuid = uuid::Uuid::from_u128(uuid);
    let options =
        BdevOptions { name: name.into(), aliases: vec![], uuid, block_size: 512, num_blocks: blocks };
    ram::create(options).expect("RAM disk")
}

impl TargetNode {
    fn start(disk: Arc<Bdev>, port: u16) -> TargetNode {
        let name = disk.name().to_string();
        let reactors = reactors();
        let bdevs = Registry::new();
        bdevs.add(disk).expect("bdev");
        let target = Target::new(reactors.clone(), bdevs.clone()).expect("target");
        target.create_transport(TransportOptions::default()).expect("transport");
        let mut options = SubsystemOptions::new(NQN);
        (options.allow_any_host, options.ana_reporting) = (true, true);
        target.create_subsystem(options).expect("subsystem");
        target.add_ns(NQN, NamespaceOptions::new(&name)).expect("namespace");
        let address = ListenAddress::new("127.0.0.1", &port.to_string()).expect("address");
        let deadline = Instant::now() + SOON;
        let listener = loop {
            match target.add_listener(NQN, &address) {
                Ok(listener) => break listener,
                // The port of a node that has just stopped.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        TargetNode { target, bdevs, reactors, listener }
    }

    fn address(&self) -> SocketAddr {
        self.listener.to_string().parse().expect("socket address")
    }

    fn stop(self) {
        self.target.shut_down(Duration::from_secs(2)).expect("shut down");
        self.reactors.stop();
    }
}

/// A node that attaches them.
struct HostNode {
    host: NvmeHost,
    bdevs: Arc<Registry>,
    reactors: Arc<ReactorSet>,
}

impl HostNode {
    fn start() -> HostNode {
        let reactors = reactors();
        let bdevs = Registry::new();
        let host = NvmeHost::new(bdevs.clone(), reactors.clone()).expect("host");
        HostNode { host, bdevs, reactors }
    }

    fn options(address: SocketAddr) -> ControllerOptions {
        let mut options = ControllerOptions::new("Nvme0", address, NQN);
        options.reconnect_delay = Duration::from_millis(200);
        options
    }

    fn attach(&self, address: SocketAddr) -> Arc<Bdev> {
        let names = self.host.attach(Self::options(address)).expect("attach");
        assert_eq!(names, ["Nvme0n1"]);
        self.bdevs.get("Nvme0n1").expect("bdev")
    }

    /// One I/O on a reactor, to its end.
    fn io(&self, core: usize, bdev: &Arc<Bdev>, request: Request) -> Result<Vec<u8>, IoError> {
        let bdev = bdev.clone();
        let ended = self.reactors.ask(core, SOON, move |reply| request.submit(&bdev, reply));
        ended.expect("the I/O ends")
    }

    fn write(&self, bdev: &Arc<Bdev>, lba: u64, data: &[u8]) -> Result<(), IoError> {
        self.io(0, bdev, Request::new(Op::Write, lba, data.len() as u64 / 512, data)).map(|_| ())
    }

    fn read(&self, bdev: &Arc<Bdev>, lba: u64, blocks: u64) -> Result<Vec<u8>, IoError> {
        self.io(1 % self.reactors.count(), bdev, Request::new(Op::Read, lba, blocks, &[]))
    }
}

#[derive(Clone)]
struct Request {
    op: Op,
    lba: u64,
    blocks: u64,
    data: Vec<u8>,
    compare: Vec<u8>,
}

/// What a read gives.
type Outcome = Result<Vec<u8>, IoError>;

struct Owner(RefCell<Option<Reply<Outcome>>>);

impl IoOwner for Owner {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        let data = io.data.iter().flat_map(|b| b.with(<[u8]>::to_vec)).collect();
        if let Some(reply) = self.0.take() {
            reply.send(io.result.map(|()| data));
        }
        io.recycle();
    }
}

/// Buffers of odd sizes, so that pieces cross them.
fn buffers(bytes: &[u8]) -> impl Iterator<Item = Buf> {
    bytes.chunks(12_800).map(|chunk| {
        let buf = Buf::heap(chunk.len()).expect("heap");
        buf.write_at(0, chunk);
        buf
    })
}

impl Request {
    fn new(op: Op, lba: u64, blocks: u64, data: &[u8]) -> Request {
        let data = if op == Op::Read { vec![0xee; blocks as usize * 512] } else { data.to_vec() };
        Request { op, lba, blocks, data, compare: Vec::new() }
    }

    fn submit(self, bdev: &Arc<Bdev>, reply: Reply<Outcome>) {
        let channel = bdev.channel().expect("channel");
        let mut io = Io::new(self.op);
        (io.lba, io.num_blocks) = (self.lba, self.blocks);
        io.data.extend(buffers(&self.data));
        io.compare.extend(buffers(&self.compare));
        channel.submit(io, Rc::new(Owner(RefCell::new(Some(reply)))));
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512 + seed) as u8).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn data_of_every_size_comes_back_with_every_choice_of_digests() {
    let node = TargetNode::start(ram_disk("Disk0", BLOCKS, 1), 0);
    let host = HostNode::start();
    for n in 0..4usize {
        let mut options = HostNode::options(node.address());
        options.digests = Digests { header: n & 1 != 0, data: n & 2 != 0 };
        host.host.attach(options).expect("attach");
        let bdev = host.bdevs.get("Nvme0n1").expect("bdev");
        assert_eq!((bdev.num_blocks(), bdev.block_size(), bdev.uuid().as_u128()), (BLOCKS, 512, 1));
        for (at, len) in [512, 4096, 8192, 8704, 65536, 131_072, 1 << 20, 3 << 20].into_iter().enumerate() {
            let (lba, data) = (at as u64 * 7001, pattern(len, n + at));
            assert_eq!(host.write(&bdev, lba, &data), Ok(()));
            let got = host.read(&bdev, lba, len as u64 / 512).expect("read");
            assert!(got == data, "{len} bytes, digests {n}");
        }
        host.host.detach("Nvme0").expect("detach");
        assert!(host.bdevs.get("Nvme0n1").is_err());
    }
    node.stop();
}

#[test]
fn every_operation_does_what_it_says() {
    let node = TargetNode::start(ram_disk("Disk0", BLOCKS, 2), 0);
    let host = HostNode::start();
    let bdev = host.attach(node.address());
    let (old, new) = (pattern(4096, 1), pattern(4096, 2));
    let run = |op, data: &[u8]| host.io(0, &bdev, Request::new(op, 64, 8, data)).map(|_| ());
    assert_eq!(host.write(&bdev, 64, &old), Ok(()));
    assert_eq!(run(Op::Flush, &[]), Ok(()));
    assert_eq!(run(Op::Compare, &old), Ok(()));
    assert_eq!(run(Op::Compare, &new), Err(IoError::Miscompare));
    let mut swap = Request::new(Op::CompareAndWrite, 64, 8, &new);
    swap.compare = new.clone();
    assert_eq!(host.io(0, &bdev, swap.clone()).map(|_| ()), Err(IoError::Miscompare));
    assert_eq!(host.read(&bdev, 64, 8), Ok(old.clone()));
    swap.compare = old;
    assert_eq!(host.io(0, &bdev, swap).map(|_| ()), Ok(()));
    assert_eq!(host.read(&bdev, 64, 8), Ok(new));
    for (op, n) in [(Op::WriteZeroes, 3), (Op::Unmap, 4)] {
        let data = pattern(512 * 300, n);
        assert_eq!(host.write(&bdev, 1000, &data), Ok(()));
        assert_eq!(host.io(0, &bdev, Request::new(op, 1100, 100, &[])).map(|_| ()), Ok(()));
        let got = host.read(&bdev, 1000, 300).expect("read");
        assert_eq!(got[..51_200], data[..51_200]);
        assert!(got[51_200..102_400].iter().all(|&b| b == 0), "{op:?}");
        assert_eq!(got[102_400..], data[102_400..]);
    }
    assert_eq!(host.read(&bdev, BLOCKS - 1, 2), Err(IoError::OutOfRange));
    assert_eq!(run(Op::Reset, &[]), Ok(()));
    assert_eq!(host.read(&bdev, 64, 8).map(|d| d.len()), Ok(4096));
    host.host.stop();
    node.stop();
}

#[test]
fn namespaces_come_go_and_change_their_access_as_the_target_says() {
    let node = TargetNode::start(ram_disk("Disk0", BLOCKS, 3), 0);
    let host = HostNode::start();
    let bdev = host.attach(node.address());
    node.bdevs.add(ram_disk("Disk1", 4096, 33)).expect("bdev");
    node.target.add_ns(NQN, NamespaceOptions::new("Disk1")).expect("namespace");
    eventually("a second bdev", || host.bdevs.get("Nvme0n2").is_ok_and(|b| b.num_blocks() == 4096));
    let set = |state| node.target.listener_set_ana_state(NQN, &node.listener, state, Some(1));
    set(AnaState::Inaccessible).expect("ANA state");
    eventually("the change of access", || bdev.access() == Access::Inaccessible);
    assert_eq!(host.read(&bdev, 0, 8), Err(IoError::Inaccessible));
    set(AnaState::Optimized).expect("ANA state");
    eventually("the change back", || bdev.access() == Access::Optimized);
    assert!(host.read(&bdev, 0, 8).is_ok());
    let (sender, events) = std::sync::mpsc::channel();
    let second = host.bdevs.get("Nvme0n2").expect("bdev");
    second.watch(move |event| {
        let _ = sender.send(event);
    });
    node.target.remove_ns(NQN, 2).expect("remove");
    eventually("the removal", || host.bdevs.get("Nvme0n2").is_err());
    assert_eq!(events.recv_timeout(SOON), Ok(BdevEvent::Removed));
    assert!(host.read(&bdev, 0, 8).is_ok(), "the other namespace is not disturbed");
    host.host.stop();
    node.stop();
}

#[test]
fn io_waits_for_a_target_that_comes_back_and_then_finds_what_it_wrote() {
    let disk = ram_disk("Disk0", BLOCKS, 4);
    let node = TargetNode::start(disk.clone(), 0);
    let (address, host) = (node.address(), HostNode::start());
    let bdev = host.attach(address);
    let data = pattern(65536, 9);
    assert_eq!(host.write(&bdev, 0, &data), Ok(()));
    node.stop();
    eventually("the loss", || host.host.controllers()[0].life == Life::Reconnecting);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| host.read(&bdev, 0, 128));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "the I/O waits");
        let node = TargetNode::start(disk, address.port());
        assert_eq!(waiting.join().expect("thread"), Ok(data));
        assert!(host.host.controllers()[0].reconnects >= 1);
        host.host.stop();
        node.stop();
    });
}

#[test]
fn a_target_that_stays_away_fails_io_in_the_time_given_and_takes_its_bdevs_along() {
    let node = TargetNode::start(ram_disk("Disk0", BLOCKS, 5), 0);
    let host = HostNode::start();
    let mut options = HostNode::options(node.address());
    options.fast_io_fail = Some(Duration::from_millis(400));
    options.loss_timeout = Some(Duration::from_millis(1500));
    host.host.attach(options).expect("attach");
    let bdev = host.bdevs.get("Nvme0n1").expect("bdev");
    assert!(host.read(&bdev, 0, 8).is_ok());
    node.stop();
    let since = Instant::now();
    assert_eq!(host.read(&bdev, 0, 8), Err(IoError::Disconnected));
    assert!(since.elapsed() < Duration::from_millis(1400), "fast_io_fail: {:?}", since.elapsed());
    eventually("the end of the bdev", || host.bdevs.get("Nvme0n1").is_err());
    assert!(host.host.controllers().is_empty());
}

#[test]
fn a_command_that_hangs_is_aborted_at_its_deadline_and_disturbs_no_other() {
    let disk = ram_disk("Base", BLOCKS, 7);
    let broken = error_injection::create(uuid::Uuid::from_u128(77), &disk).expect("error bdev");
    let hang = Injection {
        op: Some(Op::Write),
        failure: Failure::Pending,
        count: 1,
        queue_depth: 0,
        range: Some((64, 8)),
    };
    error_injection::inject(&broken, hang).expect("rule");
    let node = TargetNode::start(broken, 0);
    let host = HostNode::start();
    let mut options = HostNode::options(node.address());
    options.command_timeout = Duration::from_millis(300);
    host.host.attach(options).expect("attach");
    let bdev = host.bdevs.get("Nvme0n1").expect("bdev");
    let since = Instant::now();
    assert_eq!(host.write(&bdev, 64, &pattern(4096, 1)), Err(IoError::Aborted));
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(host.write(&bdev, 64, &pattern(4096, 1)), Ok(()));
    assert_eq!(host.host.controllers()[0].reconnects, 0);
    host.host.stop();
    node.stop();
}

#[test]
fn what_cannot_be_attached_says_why_and_leaves_nothing_behind() {
    let node = TargetNode::start(ram_disk("Disk0", BLOCKS, 6), 0);
    let host = HostNode::start();
    let attach = |change: &dyn Fn(&mut ControllerOptions)| {
        let mut options = HostNode::options(node.address());
        change(&mut options);
        host.host.attach(options)
    };
    let wrong = attach(&|o| o.subnqn = "nqn.2026-11.io.lockstep:nobody".to_string());
    assert!(matches!(wrong, Err(BdevError::System { .. })), "{wrong:?}");
    let closed = attach(&|o| o.address = "127.0.0.1:1".parse().expect("address"));
    assert!(closed.is_err_and(|e| e.to_string().contains("127.0.0.1:1")));
    assert!(matches!(attach(&|o| o.subnqn = "x".to_string()), Err(BdevError::Invalid(_))));
    assert!(host.host.controllers().is_empty());
    let bdev = host.attach(node.address());
    assert!(matches!(attach(&|_| ()), Err(BdevError::Exists(_))));
    bdev.claim("a test").expect("claim");
    assert!(matches!(host.host.detach("Nvme0"), Err(BdevError::Claimed { .. })));
    bdev.release();
    host.host.detach("Nvme0").expect("detach");
    assert!(matches!(host.host.detach("Nvme0"), Err(BdevError::NotFound(_))));
    node.stop();
}
