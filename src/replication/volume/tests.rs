//! Two nodes in one process: real reactors, real sockets, RAM disks; the group is played by the test.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::bdev::testing::{Outcome, Req, SOON, options, reactors, run, run_one, start};
use crate::bdev::{Bdev, IoError, Op, ram};
use crate::reactor::ReactorSet;
use crate::replication::buffer::Quota;
use crate::replication::core::{AckMode, Keep, OnLinkLoss, Originals, STRIPE_BYTES, Session, StripeEvent};
use crate::replication::link::Connection;
use crate::replication::{Epoch, Generation, Sequence};

const BLOCK: usize = 4096;
/// Three stripes, so that two reactors share them.
const BLOCKS: u64 = 3 * STRIPE_BYTES / BLOCK as u64;
/// The disks have more: two stripes, the last one not a whole one.
const DISK_BLOCKS: u64 = BLOCKS + 2 * STRIPE_BYTES / BLOCK as u64 - 77;
const GROUP: u64 = 1;

struct TestNode {
    reactors: Arc<ReactorSet>,
    base: Arc<Bdev>,
    volume: Arc<Bdev>,
    events: Arc<Mutex<Vec<ShardEvent>>>,
}

impl TestNode {
    fn new(count: usize, buffer_bytes: u64, primary: bool) -> TestNode {
        let reactors = reactors(count);
        let base = ram::create(options("Disk0", DISK_BLOCKS, BLOCK as u32)).expect("disk");
        let shared = VolumeShared::new("v0", "g0", base.clone(), BLOCKS, reactors.count() as u16, 4096);
        let volume = create(shared.clone(), uuid::Uuid::new_v4()).expect("volume");
        let quota = || Arc::new(Quota::new(buffer_bytes));
        let quotas = Quotas { buffer: quota(), history: quota() };
        let events: Arc<Mutex<Vec<ShardEvent>>> = Arc::default();
        let told = events.clone();
        let make = move || {
            let told = told.clone();
            let listener = Arc::new(move |_, event| told.lock().expect("events").push(event));
            let shard = Shard::create(GROUP, std::slice::from_ref(&shared), listener).expect("shard");
            if primary {
                shard.become_primary(
                    AckMode::Applied,
                    OnLinkLoss::Continue,
                    crate::replication::core::OnDiskFailure::Report,
                );
            } else {
                let hung = Duration::from_secs(5);
                shard
                    .become_secondary(true, None, &quotas, hung, Generation(1), Epoch(0))
                    .expect("secondary");
                shard.begin(Generation(1), Epoch(0), &[BLOCKS * BLOCK as u64], Originals::Anew);
            }
        };
        reactors.call_all(SOON, make).expect("shards");
        TestNode { reactors, base, volume, events }
    }

    fn on_all<T: Send + 'static>(&self, f: impl Fn(&Shard) -> T + Clone + Send + 'static) -> Vec<T> {
        let f = move || f(&shard_of(GROUP).expect("shard"));
        self.reactors.call_all(SOON, f).expect("call")
    }

    fn attach(&self, reactor: usize, lane: u16, socket: TcpStream) {
        let peer = socket.peer_addr().expect("peer");
        let socket: Arc<OwnedFd> = Arc::new(socket.into());
        let attach = move || {
            let shard = shard_of(GROUP).expect("shard");
            let connection = Connection::start(socket, peer, shard.lane_owner(lane)).expect("connection");
            shard.attach(lane, connection);
        };
        self.reactors.call(reactor, SOON, attach).expect("attach");
    }

    fn image(&self, bdev: &Arc<Bdev>) -> Vec<u8> {
        // Of a disk as much as the volume has.
        let blocks = self.volume.num_blocks();
        let reads =
            (0..blocks).step_by(256).map(|lba| Req::read(lba, 256.min(blocks - lba), BLOCK)).collect();
        let outcomes = run(&self.reactors, 0, bdev, reads);
        assert!(outcomes.iter().all(|o| o.result.is_ok()), "reading the image");
        outcomes.into_iter().flat_map(|o| o.data).collect()
    }
}

struct TestPair {
    primary: TestNode,
    secondary: TestNode,
    epoch: Epoch,
}

impl TestPair {
    fn new(primary_reactors: usize, secondary_reactors: usize) -> TestPair {
        let pair = TestPair {
            primary: TestNode::new(primary_reactors, 0, true),
            secondary: TestNode::new(secondary_reactors, 32 << 20, false),
            epoch: Epoch(1),
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        for p in 0..pair.primary.reactors.count() {
            for s in 0..pair.secondary.reactors.count() {
                let out = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
                let (accepted, _) = listener.accept().expect("accept");
                pair.secondary.attach(s, p as u16, accepted);
                pair.primary.attach(p, s as u16, out);
            }
        }
        let lanes = pair.secondary.reactors.count() as u16;
        let session = Session { lanes, generation: Generation(1), epoch: Epoch(1), preserve: true };
        pair.primary.on_all(move |shard| shard.link_up(session));
        pair
    }

    fn write(&self, reactor: usize, req: Req) -> Outcome {
        run_one(&self.primary.reactors, reactor % self.primary.reactors.count(), &self.primary.volume, req)
    }

    fn view(&self, req: Req) -> Outcome {
        let reactor = req.lba as usize % self.secondary.reactors.count();
        run_one(&self.secondary.reactors, reactor, &self.secondary.volume, req)
    }

    /// Prepares and commits the open epoch.
    fn checkpoint(&mut self) {
        let (epoch, next) = (self.epoch, self.epoch.next());
        self.primary.on_all(Shard::freeze);
        let lasts = self.primary.on_all(move |shard| shard.stamp(next, true));
        for s in 0..self.secondary.reactors.count() {
            let mine: Vec<(u16, Sequence)> = lasts
                .iter()
                .enumerate()
                .filter_map(|(p, lanes)| {
                    lanes.iter().find(|(lane, _)| usize::from(*lane) == s).map(|(_, last)| (p as u16, *last))
                })
                .collect();
            let prepared = self.secondary.reactors.ask(s, SOON, move |reply| {
                let shard = shard_of(GROUP).expect("shard");
                shard.prepare(epoch, mine, Box::new(move |result| reply.send(result)));
            });
            assert!(matches!(prepared, Ok(Ok(_))), "{prepared:?}");
        }
        self.secondary.on_all(move |shard| shard.commit(epoch));
        self.epoch = next;
    }

    fn promote(&self, keep: Keep) {
        let results = self.secondary.on_all(move |shard| shard.promote(keep, Generation(2)));
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    fn wait_until_drained(&self) {
        let end = Instant::now() + SOON;
        loop {
            let usage = self.secondary.on_all(Shard::usage);
            if usage.iter().all(|u| u.undo_bytes + u.overlay_bytes == 0) {
                return;
            }
            assert!(Instant::now() < end, "not drained: {usage:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn assert_same(&self, what: &str) {
        let (view, disk) =
            (self.secondary.image(&self.secondary.volume), self.primary.image(&self.primary.base));
        let differing = view.chunks(BLOCK).zip(disk.chunks(BLOCK)).position(|(v, d)| v != d);
        assert_eq!(differing, None, "{what}: first differing block");
    }
}

#[test]
fn a_write_is_on_both_disks_when_it_is_acknowledged() {
    let pair = TestPair::new(1, 1);
    assert_eq!(pair.write(0, Req::write(5, 3, BLOCK, 0x22)).result, Ok(()));
    for node in [&pair.primary, &pair.secondary] {
        let read = run_one(&node.reactors, 0, &node.base, Req::read(5, 3, BLOCK));
        assert_eq!(read.data, vec![0x22; 3 * BLOCK]);
    }
    // The secondary's view is still the last checkpoint: zeroes.
    assert_eq!(pair.view(Req::read(5, 3, BLOCK)).data, vec![0; 3 * BLOCK]);
}

#[test]
fn a_checkpoint_moves_the_view_and_drops_the_secondarys_own_writes() {
    let mut pair = TestPair::new(1, 1);
    pair.write(0, Req::write(0, 64, BLOCK, 1));
    assert_eq!(pair.view(Req::write(10, 1, BLOCK, 9)).result, Ok(()));
    assert_eq!(pair.view(Req::read(10, 1, BLOCK)).data, vec![9; BLOCK]);
    pair.checkpoint();
    pair.assert_same("after the checkpoint");
    pair.write(0, Req::write(0, 8, BLOCK, 2));
    assert_eq!(pair.view(Req::read(0, 8, BLOCK)).data, vec![1; 8 * BLOCK]);
}

#[test]
fn a_volume_grows_on_every_reactor_of_both_nodes() {
    let mut pair = TestPair::new(2, 2);
    let old = pair.write(0, Req::write(BLOCKS - 1, 1, BLOCK, 4));
    assert_eq!(old.result, Ok(()));
    let behind = Req::write(BLOCKS, DISK_BLOCKS - BLOCKS, BLOCK, 0x6E);
    assert_eq!(run_one(&pair.primary.reactors, 0, &pair.primary.base, behind).result, Ok(()));
    let bytes = DISK_BLOCKS * BLOCK as u64;
    assert_eq!(pair.secondary.on_all(move |shard| shard.extend(0, bytes)), [true, true]);
    pair.primary.on_all(move |shard| shard.extend(0, bytes));
    let end = Instant::now() + SOON;
    let copied =
        |event: &&ShardEvent| matches!(event, ShardEvent::Stripe { event: StripeEvent::Extended, volume: 0 });
    while pair.primary.events.lock().expect("events").iter().filter(copied).count() < 2 {
        assert!(Instant::now() < end, "not copied");
        std::thread::sleep(Duration::from_millis(5));
    }
    for node in [&pair.secondary, &pair.primary] {
        node.on_all(move |shard| shard.resize(0, bytes));
        node.volume.resize(DISK_BLOCKS).expect("larger");
    }
    let new = pair.view(Req::read(DISK_BLOCKS - 256, 256, BLOCK));
    assert_eq!((new.result, new.data), (Ok(()), vec![0x6E; 256 * BLOCK]), "as it was when the volume grew");
    for lba in [BLOCKS - 2, BLOCKS + STRIPE_BYTES / BLOCK as u64 - 2, DISK_BLOCKS - 4] {
        assert_eq!(pair.write(lba as usize, Req::write(lba, 4, BLOCK, 0x6F)).result, Ok(()));
    }
    assert_eq!(
        pair.view(Req::read(DISK_BLOCKS - 4, 4, BLOCK)).data,
        vec![0x6E; 4 * BLOCK],
        "until it commits"
    );
    pair.checkpoint();
    pair.assert_same("after the checkpoint");
    pair.write(1, Req::write(DISK_BLOCKS - 40, 40, BLOCK, 0x70));
    let expected = pair.secondary.image(&pair.secondary.volume);
    pair.promote(Keep::Checkpoint);
    pair.wait_until_drained();
    assert!(pair.secondary.image(&pair.secondary.base) == expected, "the roll-back reaches the new end");
}

#[test]
fn commands_across_stripes_and_reactors_arrive_whole() {
    let mut pair = TestPair::new(2, 1);
    let edge = STRIPE_BYTES / BLOCK as u64;
    for reactor in 0..2 {
        let byte = 0x30 + reactor as u8;
        assert_eq!(pair.write(reactor, Req::write(edge - 4, 8, BLOCK, byte)).result, Ok(()));
        let read =
            run_one(&pair.primary.reactors, 1 - reactor, &pair.primary.volume, Req::read(edge - 4, 8, BLOCK));
        assert_eq!(read.data, vec![byte; 8 * BLOCK]);
    }
    assert_eq!(pair.write(0, Req::new(Op::WriteZeroes, edge - 2, 4)).result, Ok(()));
    assert_eq!(pair.write(1, Req::new(Op::Unmap, 2 * edge - 1, 2)).result, Ok(()));
    assert_eq!(pair.write(1, Req::flush()).result, Ok(()));
    pair.checkpoint();
    pair.assert_same("after zeroes over borders");
}

#[test]
fn a_compare_and_write_is_decided_once_and_forwarded_as_a_write() {
    let mut pair = TestPair::new(1, 2);
    let caw = |expected: u8, new: u8| Req {
        data: vec![new; BLOCK],
        compare: vec![expected; BLOCK],
        ..Req::new(Op::CompareAndWrite, 7, 1)
    };
    assert_eq!(pair.write(0, caw(1, 2)).result, Err(IoError::Miscompare));
    assert_eq!(pair.write(0, caw(0, 2)).result, Ok(()));
    assert_eq!(pair.write(0, caw(2, 3)).result, Ok(()));
    assert_eq!(pair.view(caw(0, 8)).result, Ok(()));
    assert_eq!(pair.view(caw(0, 9)).result, Err(IoError::Miscompare));
    pair.checkpoint();
    pair.assert_same("after compare-and-write");
    assert_eq!(pair.view(Req::read(7, 1, BLOCK)).data, vec![3; BLOCK]);
}

/// A pair with a checkpoint, writes after it on both sides, and what each promise means then.
fn before_a_failover() -> (TestPair, Vec<u8>, Vec<u8>, Vec<u8>) {
    let mut pair = TestPair::new(1, 2);
    pair.write(0, Req::write(0, 200, BLOCK, 0x11));
    pair.checkpoint();
    let checkpoint = pair.primary.image(&pair.primary.base);
    pair.write(0, Req::write(50, 100, BLOCK, 0x22));
    pair.view(Req::write(100, 20, BLOCK, 0x33));
    let latest = pair.primary.image(&pair.primary.base);
    let mut overlay = checkpoint.clone();
    overlay[100 * BLOCK..120 * BLOCK].fill(0x33);
    (pair, latest, checkpoint, overlay)
}

#[test]
fn a_failover_gives_exactly_what_was_promised() {
    for keep in [Keep::Latest, Keep::Checkpoint, Keep::Overlay] {
        let (pair, latest, checkpoint, overlay) = before_a_failover();
        pair.promote(keep);
        let mut expected = match keep {
            Keep::Latest => latest,
            Keep::Checkpoint => checkpoint,
            Keep::Overlay => overlay,
        };
        assert!(pair.secondary.image(&pair.secondary.volume) == expected, "{keep:?}: the view at once");
        // It takes writes while the buffer drains.
        assert_eq!(pair.view(Req::write(110, 1, BLOCK, 0x44)).result, Ok(()));
        expected[110 * BLOCK..111 * BLOCK].fill(0x44);
        pair.wait_until_drained();
        assert!(pair.secondary.image(&pair.secondary.volume) == expected, "{keep:?}: after the drain");
        assert!(pair.secondary.image(&pair.secondary.base) == expected, "{keep:?}: the disk itself");
    }
}

#[test]
fn the_loss_of_the_link_ends_no_write_and_marks_what_the_peer_lacks() {
    let pair = TestPair::new(1, 1);
    pair.write(0, Req::write(0, 1, BLOCK, 1));
    pair.secondary.on_all(Shard::link_down);
    let end = Instant::now() + SOON;
    while pair.primary.events.lock().expect("events").is_empty() {
        assert!(Instant::now() < end, "the primary did not hear of the loss");
        std::thread::sleep(Duration::from_millis(2));
    }
    // Sent into the void, until the group says that the link is down.
    let mut waiting =
        start(&pair.primary.reactors, 0, &pair.primary.volume, vec![Req::write(1, 1, BLOCK, 2)]);
    assert_eq!(waiting.next_within(Duration::from_millis(50)), None);
    pair.primary.on_all(Shard::link_down);
    // … and then that the record has a name for what this node does alone.
    pair.primary.on_all(Shard::go_alone);
    assert_eq!(waiting.one().result, Ok(()));
    assert!(pair.primary.on_all(Shard::usage).iter().map(|u| u.dirty_bytes).sum::<u64>() > 0);
}

#[test]
fn a_stopped_volume_refuses_io() {
    let pair = TestPair::new(1, 1);
    pair.primary.on_all(Shard::stop);
    for req in [Req::write(0, 1, BLOCK, 1), Req::read(0, 1, BLOCK), Req::flush()] {
        assert_eq!(pair.write(0, req).result, Err(IoError::Inaccessible));
    }
}
