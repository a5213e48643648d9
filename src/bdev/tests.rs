//! The layer on real reactors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::testing::*;
use super::*;

const BLOCK: usize = 512;

fn stuck(name: &str, aborts: bool) -> (Arc<Bdev>, Arc<Mutex<Vec<u64>>>) {
    let started = Arc::new(Mutex::new(Vec::new()));
    let device = Stuck { started: started.clone(), aborts };
    (Bdev::new(options(name, 1000, 512), Box::new(device)).expect("stuck"), started)
}

fn reads(count: u64) -> Vec<Req> {
    (0..count).map(|lba| Req::read(lba, 1, BLOCK)).collect()
}

#[test]
fn a_ram_disk_gives_back_what_was_written_and_zeroes_elsewhere() {
    let set = reactors(1);
    let disk = ram("R", 100);
    let script = vec![
        Req { piece: 512, ..Req::write(10, 4, BLOCK, 7) },
        Req { piece: 1024, ..Req::read(9, 6, BLOCK) },
        Req::new(Op::WriteZeroes, 11, 1),
        Req::new(Op::Unmap, 12, 1),
        Req::read(10, 4, BLOCK),
    ];
    let got = run(&set, 0, &disk, script);
    assert!(got.iter().all(|o| o.result.is_ok()));
    let sevens = |blocks: &[u8]| blocks.iter().map(|&b| [b * 7; BLOCK]).collect::<Vec<_>>().concat();
    assert_eq!(got[1].data, sevens(&[0, 1, 1, 1, 1, 0]));
    assert_eq!(got[4].data, sevens(&[1, 0, 0, 1]));
}

#[test]
fn malformed_ios_end_with_an_error_and_reach_no_device() {
    let set = reactors(1);
    let (disk, started) = stuck("S", false);
    let bad =
        |op, lba, num_blocks, bytes: usize| Req { data: vec![0; bytes], ..Req::new(op, lba, num_blocks) };
    let script = vec![
        bad(Op::Read, 0, 0, 0),
        bad(Op::Read, 0, 2, 512),
        bad(Op::Write, 999, 2, 1024),
        bad(Op::Write, u64::MAX, 2, 1024),
        bad(Op::Unmap, 1000, 1, 0),
        bad(Op::CompareAndWrite, 0, 1, 512),
    ];
    let results: Vec<_> = run(&set, 0, &disk, script).into_iter().map(|o| o.result).collect();
    use IoError::{Invalid, OutOfRange};
    assert_eq!(
        results,
        [Invalid, Invalid, OutOfRange, OutOfRange, OutOfRange, Invalid].map(Err::<(), _>).to_vec()
    );
    assert!(started.lock().expect("started").is_empty());
}

#[test]
fn above_the_limit_ios_wait_in_order_and_none_fails() {
    let set = reactors(1);
    let (disk, started) = stuck("S", false);
    disk.set_outstanding_limit(3);
    let running = start(&set, 0, &disk, reads(10));
    assert_eq!(*started.lock().expect("started"), [0, 1, 2]);
    let mut freed = 0;
    while freed < 10 {
        freed += unstick(&set, 0, 2);
        let at_device = started.lock().expect("started").len() - freed;
        assert!(at_device <= 3);
    }
    let order: Vec<_> = running.rest().into_iter().map(|o| (o.index, o.result)).collect();
    assert_eq!(order, (0..10).map(|n| (n, Ok(()))).collect::<Vec<_>>());
    assert_eq!(*started.lock().expect("started"), (0..10).collect::<Vec<_>>());
}

#[test]
fn an_abort_ends_a_waiting_io_at_once_and_asks_the_device_for_one_that_it_has() {
    let set = reactors(1);
    let (disk, started) = stuck("S", true);
    disk.set_outstanding_limit(1);
    let mut running = start(&set, 0, &disk, reads(3));
    let ids = running.ids.clone();
    let on = disk.clone();
    let outcomes = set.call(0, SOON, move || {
        let channel = on.channel().expect("channel");
        [channel.abort(ids[1]), channel.abort(ids[0]), channel.abort(ids[1])]
    });
    // The second abort of the waiting one comes before its owner heard of its end.
    let outcomes = outcomes.expect("abort");
    assert_eq!(outcomes[..2], [AbortOutcome::Aborted, AbortOutcome::Asked]);
    let ended = [running.one(), running.one()].map(|o| (o.index, o.result));
    assert_eq!(ended, [(1, Err(IoError::Aborted)), (0, Err(IoError::Aborted))]);
    while unstick(&set, 0, 1) == 0 {}
    assert_eq!(running.one().result, Ok(()));
    assert_eq!(*started.lock().expect("started"), [0, 2]);
    let (on, ids) = (disk.clone(), running.ids.clone());
    let late = set.call(0, SOON, move || on.channel().expect("channel").abort(ids[0]));
    assert_eq!(late, Ok(AbortOutcome::NotFound));
}

#[test]
fn a_reset_ends_everything_before_it_and_then_itself() {
    let set = reactors(1);
    let (disk, started) = stuck("S", true);
    disk.set_outstanding_limit(2);
    let mut script = reads(5);
    script.push(Req::new(Op::Reset, 0, 0));
    let ended: Vec<_> = start(&set, 0, &disk, script).rest();
    assert!(ended[..5].iter().all(|o| o.result == Err(IoError::Aborted)), "{ended:?}");
    assert_eq!((ended[5].index, ended[5].result), (5, Ok(())));
    assert_eq!(*started.lock().expect("started"), [0, 1]);
}

#[test]
fn removal_ends_the_ios_of_a_hung_device_and_disturbs_no_other() {
    let set = reactors(2);
    let registry = Registry::new();
    let (disk, _) = stuck("S", false);
    let other = ram("R", 100);
    registry.add(disk.clone()).expect("add");
    registry.add(other.clone()).expect("add");
    disk.set_outstanding_limit(4);
    let running: Vec<_> = (0..2).map(|reactor| start(&set, reactor, &disk, reads(8))).collect();
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    disk.watch(move |event| {
        count.fetch_add((event == BdevEvent::Removed) as usize, Ordering::Relaxed);
    });
    registry.remove("S", &set).expect("remove");
    for running in running {
        assert!(running.rest().iter().all(|o| o.result == Err(IoError::Removed)));
    }
    assert_eq!(heard.load(Ordering::Relaxed), 1);
    assert!(matches!(registry.get("S"), Err(BdevError::NotFound(_))));
    assert!(matches!(set.call(0, SOON, move || disk.channel().map(|_| ())), Ok(Err(BdevError::Removed(_)))));
    assert_eq!(run_one(&set, 0, &other, Req::read(0, 1, BLOCK)).result, Ok(()));
    // The device comes back to life: nobody hears of its I/Os again.
    assert_eq!(unstick(&set, 0, 100) + unstick(&set, 1, 100), 8);
    assert_eq!(set.stats().iter().map(|s| s.panics).sum::<u64>(), 0);
}

#[test]
fn removal_under_load_ends_every_io_once() {
    let set = reactors(2);
    let registry = Registry::new();
    let disk = ram("R", 100);
    registry.add(disk.clone()).expect("add");
    let script: Vec<_> = (0..5000).map(|n| Req::write(n % 100, 1, BLOCK, 1)).collect();
    let running: Vec<_> = (0..2).map(|reactor| start(&set, reactor, &disk, script.clone())).collect();
    registry.remove("R", &set).expect("remove");
    for running in running {
        let ended = running.rest();
        assert_eq!(ended.len(), 5000);
        assert!(ended.iter().all(|o| matches!(o.result, Ok(()) | Err(IoError::Removed))));
    }
}

#[test]
fn a_claimed_bdev_is_not_removed_and_not_claimed_twice() {
    let set = reactors(1);
    let registry = Registry::new();
    registry.add(ram("R", 100)).expect("add");
    let disk = registry.get("R").expect("get");
    disk.claim("the test").expect("claim");
    assert!(matches!(disk.claim("another"), Err(BdevError::Claimed { .. })));
    assert!(matches!(registry.remove("R", &set), Err(BdevError::Claimed { .. })));
    disk.release();
    registry.remove("R", &set).expect("remove");
}

#[test]
fn names_aliases_and_uuids_are_unique() {
    let registry = Registry::new();
    let mut first = options("A", 10, 512);
    first.aliases = vec!["B".to_string()];
    registry.add(null::create(first.clone()).expect("null")).expect("add");
    assert!(matches!(registry.add(ram("B", 10)), Err(BdevError::Exists(name)) if name == "B"));
    let twin = BdevOptions { name: "C".to_string(), aliases: Vec::new(), ..first.clone() };
    assert!(matches!(registry.add(null::create(twin).expect("null")), Err(BdevError::Exists(_))));
    assert_eq!(registry.get(&first.uuid.to_string()).expect("by uuid").name(), "A");
    assert!(matches!(null::create(options("a b", 10, 512)), Err(BdevError::BadName(_))));
    assert!(matches!(null::create(options("D", 0, 512)), Err(BdevError::Invalid(_))));
    assert!(matches!(null::create(options("D", 10, 520)), Err(BdevError::Invalid(_))));
}

#[test]
fn statistics_count_operations_bytes_errors_and_times() {
    let set = reactors(2);
    let disk = ram("R", 100);
    for reactor in 0..set.count() {
        run(&set, reactor, &disk, vec![Req::write(0, 8, BLOCK, 1), Req::read(0, 2, BLOCK), Req::flush()]);
    }
    run_one(&set, 0, &disk, Req { data: vec![9; 512], ..Req::new(Op::Compare, 0, 1) });
    let reactors = set.count() as u64;
    let stats = disk.stats();
    assert_eq!((stats.write.ops, stats.write.bytes), (reactors, reactors * 4096));
    assert_eq!((stats.read.ops, stats.read.bytes, stats.read.errors), (reactors, reactors * 1024, 1));
    assert_eq!(stats.flush.ops, reactors);
    assert!(stats.write.min_ns > 0 && stats.write.min_ns <= stats.write.max_ns);
    assert!(stats.write.latency_ns >= stats.write.max_ns);
    disk.reset_stats();
    assert_eq!(disk.stats(), IoStats::default());
    run_one(&set, 0, &disk, Req::read(0, 1, BLOCK));
    assert_eq!((disk.stats().read.ops, disk.stats().write.ops), (1, 0));
}

#[test]
fn a_histogram_counts_each_io_once() {
    let set = reactors(1);
    let disk = ram("R", 100);
    assert_eq!(disk.histogram(), None);
    disk.enable_histogram(&HistogramOptions::default()).expect("enable");
    run(&set, 0, &disk, reads(50));
    let total = |h: Option<Histogram>| h.map(|h| h.buckets.iter().sum::<u64>());
    assert_eq!(total(disk.histogram()), Some(50));
    let writes_only = HistogramOptions { op: Some(Op::Write), ..HistogramOptions::default() };
    disk.enable_histogram(&writes_only).expect("enable");
    run(&set, 0, &disk, reads(50));
    run_one(&set, 0, &disk, Req::write(0, 1, BLOCK, 1));
    assert_eq!(total(disk.histogram()), Some(1));
    disk.disable_histogram();
    run(&set, 0, &disk, reads(5));
    assert_eq!(disk.histogram(), None);
}

#[test]
fn a_null_device_that_was_resized_is_made_again_with_its_new_size() {
    let disk = null::create(options("Null0", 100, 512)).expect("null");
    null::resize(&disk, 200).expect("larger");
    let (method, params) = disk.device().config().expect("it can be made again");
    assert_eq!((method, disk.num_blocks()), ("bdev_null_create", 200));
    assert_eq!(params["num_blocks"], 200);
    assert!(null::resize(&disk, 0).is_err() && null::resize(&disk, u64::MAX).is_err());
    assert_eq!(disk.device().config().expect("unchanged").1["num_blocks"], 200);
}

#[test]
fn a_resize_moves_the_end_and_tells_whoever_watches() {
    let set = reactors(1);
    let disk = null::create(options("N", 100, 512)).expect("null");
    let sizes = Arc::new(AtomicUsize::new(0));
    let count = sizes.clone();
    let watch = disk.watch(move |event| {
        count.fetch_add((event == BdevEvent::Resized) as usize, Ordering::Relaxed);
    });
    assert_eq!(run_one(&set, 0, &disk, Req::read(100, 1, BLOCK)).result, Err(IoError::OutOfRange));
    disk.resize(200).expect("resize");
    disk.resize(200).expect("the same size again");
    assert_eq!(run_one(&set, 0, &disk, Req::read(100, 1, BLOCK)).result, Ok(()));
    assert_eq!(sizes.load(Ordering::Relaxed), 1);
    disk.unwatch(watch);
    disk.resize(100).expect("resize");
    assert_eq!(sizes.load(Ordering::Relaxed), 1);
    assert!(disk.resize(0).is_err());
}

#[test]
fn compare_and_write_writes_only_over_what_was_expected() {
    let set = reactors(1);
    let disk = ram("R", 100);
    let caw = |expect: u8, write: u8| Req {
        compare: vec![expect; 1024],
        data: vec![write; 1024],
        ..Req::new(Op::CompareAndWrite, 4, 2)
    };
    assert_eq!(run_one(&set, 0, &disk, caw(0, 5)).result, Ok(()));
    assert_eq!(run_one(&set, 0, &disk, caw(0, 6)).result, Err(IoError::Miscompare));
    assert_eq!(run_one(&set, 0, &disk, Req::read(4, 2, BLOCK)).data, vec![5; 1024]);
}

/// Each reactor counts in the same block by compare-and-write, as VM hosts' heartbeats do: a lost update shows.
#[test]
fn compare_and_write_loses_no_update_between_reactors() {
    let set = reactors(2);
    let disk = ram("R", 100);
    const EACH: u64 = 60;
    let count = |reactor: usize| {
        let mut known = vec![0u8; BLOCK];
        let mut done = 0;
        while done < EACH {
            let value = u64::from_le_bytes(known[..8].try_into().expect("8 bytes")) + 1;
            let mut next = known.clone();
            next[..8].copy_from_slice(&value.to_le_bytes());
            let req = Req { compare: known.clone(), data: next, ..Req::new(Op::CompareAndWrite, 7, 1) };
            match run_one(&set, reactor, &disk, req).result {
                Ok(()) => done += 1,
                Err(error) => assert_eq!(error, IoError::Miscompare),
            }
            known = run_one(&set, reactor, &disk, Req::read(7, 1, BLOCK)).data;
        }
    };
    std::thread::scope(|scope| {
        (0..set.count()).for_each(|reactor| {
            scope.spawn(move || count(reactor));
        });
    });
    let value = run_one(&set, 0, &disk, Req::read(7, 1, BLOCK)).data;
    assert_eq!(u64::from_le_bytes(value[..8].try_into().expect("8 bytes")), EACH * set.count() as u64);
}

#[test]
fn a_compare_and_write_waits_for_older_writes_and_holds_newer_ones_back() {
    let set = reactors(1);
    let (disk, started) = stuck("S", false);
    let caw = Req { compare: vec![0; 512], data: vec![1; 512], ..Req::new(Op::CompareAndWrite, 5, 1) };
    let running = start(&set, 0, &disk, vec![Req::write(5, 1, BLOCK, 0), caw]);
    // The lock is announced by a message: let it arrive.
    set.call(0, SOON, || ()).expect("call");
    set.call(0, SOON, || ()).expect("call");
    let newer = start(
        &set,
        0,
        &disk,
        vec![Req::write(5, 1, BLOCK, 2), Req::read(5, 1, BLOCK), Req::write(6, 1, BLOCK, 2)],
    );
    assert_eq!(
        *started.lock().expect("started"),
        [5, 5, 6],
        "the older write, the read, the write beside the lock"
    );
    while started.lock().expect("started").len() < 6 {
        unstick(&set, 0, 1);
    }
    while unstick(&set, 0, 1) > 0 {}
    let mut ended = running.rest();
    ended.sort_by_key(|o| o.index);
    assert!(ended.iter().all(|o| o.result.is_ok()), "{ended:?}");
    assert!(newer.rest().iter().all(|o| o.result.is_ok()));
}

#[test]
fn a_compare_and_write_waits_for_older_writes_of_other_reactors() {
    let set = reactors(2);
    let (disk, started) = stuck("S", false);
    let other = set.count() - 1;
    let older = start(&set, other, &disk, vec![Req::write(4, 4, BLOCK, 0)]);
    let caw = Req { compare: vec![0; 512], data: vec![1; 512], ..Req::new(Op::CompareAndWrite, 5, 1) };
    let mut running = start(&set, 0, &disk, vec![caw]);
    assert_eq!(running.next_within(Duration::from_millis(50)), None);
    assert_eq!(*started.lock().expect("started"), [4], "the comparison has not begun");
    let newer = start(&set, other, &disk, vec![Req::write(5, 1, BLOCK, 2)]);
    assert_eq!(unstick(&set, other, 1), 1);
    assert_eq!(older.rest()[0].result, Ok(()));
    let begin = Instant::now();
    while started.lock().expect("started").len() < 2 && begin.elapsed() < SOON {}
    // The comparison reads zeroes here, the write follows.
    while running.next_within(Duration::from_millis(5)).is_none() && begin.elapsed() < SOON {
        unstick(&set, 0, 1);
    }
    let begin = Instant::now();
    while started.lock().expect("started").len() < 4 && begin.elapsed() < SOON {}
    assert_eq!(unstick(&set, other, 1), 1, "the newer write went on after the lock");
    assert_eq!(newer.rest()[0].result, Ok(()));
}

fn emulated() -> Vec<Req> {
    let caw = Req { compare: vec![0; 512], data: vec![1; 512], ..Req::new(Op::CompareAndWrite, 5, 1) };
    let compare = Req { data: vec![0; 512], ..Req::new(Op::Compare, 7, 1) };
    vec![caw, compare, Req::new(Op::WriteZeroes, 9, 3)]
}

#[test]
fn removal_ends_emulated_ios_of_a_hung_device() {
    let set = reactors(2);
    let registry = Registry::new();
    let (disk, started) = stuck("S", false);
    registry.add(disk.clone()).expect("add");
    let running = start(&set, 0, &disk, emulated());
    let begin = Instant::now();
    while started.lock().expect("started").len() < 3 && begin.elapsed() < SOON {}
    // One more that waits for the first one's lock, and a reset that waits for all.
    let more = start(&set, 0, &disk, vec![Req::write(5, 1, BLOCK, 2), Req::new(Op::Reset, 0, 0)]);
    registry.remove("S", &set).expect("remove");
    assert!(running.rest().iter().all(|o| o.result == Err(IoError::Removed)));
    let more = more.rest();
    assert!(more.iter().all(|o| matches!(o.result, Err(IoError::Removed | IoError::Aborted))), "{more:?}");
    assert_eq!(unstick(&set, 0, 100), 3);
    assert_eq!(unstick(&set, 0, 100), 0, "emulations do not go on");
    assert_eq!(set.stats().iter().map(|s| s.panics).sum::<u64>(), 0);
}

#[test]
fn an_abort_ends_an_emulated_io_when_the_device_lets_go_of_its_part() {
    let set = reactors(1);
    let (disk, started) = stuck("S", true);
    let running = start(&set, 0, &disk, emulated());
    let begin = Instant::now();
    while started.lock().expect("started").len() < 3 && begin.elapsed() < SOON {}
    let (ids, on) = (running.ids.clone(), disk.clone());
    let asked = set.call(0, SOON, move || {
        let channel = on.channel().expect("channel");
        ids.iter().all(|id| channel.abort(*id) == AbortOutcome::Asked)
    });
    assert_eq!(asked, Ok(true));
    assert!(running.rest().iter().all(|o| o.result == Err(IoError::Aborted)));
    // The lock went with the compare-and-write.
    let write = start(&set, 0, &disk, vec![Req::write(5, 1, BLOCK, 1)]);
    while unstick(&set, 0, 1) == 0 {}
    assert_eq!(write.rest()[0].result, Ok(()));
}

#[test]
fn a_device_without_zeroes_compare_or_unmap_gets_them_from_the_layer() {
    let set = reactors(1);
    let plain = Bdev::new(options("P", 10_000, 512), Box::new(ReadWriteOnly::default())).expect("plain");
    let big = 5000;
    run_one(&set, 0, &plain, Req::write(0, big, BLOCK, 3));
    let compare =
        |lba, byte| Req { data: vec![byte; 600 * BLOCK], piece: 1024, ..Req::new(Op::Compare, lba, 600) };
    let got = run(&set, 0, &plain, vec![compare(0, 3), compare(0, 4), compare(4500, 3)]);
    use IoError::Miscompare;
    assert_eq!(got.iter().map(|o| o.result).collect::<Vec<_>>(), [Ok(()), Err(Miscompare), Err(Miscompare)]);
    for op in [Op::WriteZeroes, Op::Unmap] {
        run_one(&set, 0, &plain, Req::write(0, big, BLOCK, 3));
        assert_eq!(run_one(&set, 0, &plain, Req::new(op, 1, big - 2)).result, Ok(()));
        let data = run_one(&set, 0, &plain, Req::read(0, big, BLOCK)).data;
        let end = data.len() - BLOCK;
        assert!(data[BLOCK..end].iter().all(|&b| b == 0) && data[0] == 3 && data[end] == 3);
    }
    assert_eq!(run(&set, 0, &plain, vec![Req::flush(), Req::new(Op::Reset, 0, 0)])[1].result, Ok(()));
}

#[test]
fn a_rate_limit_makes_ios_wait_and_shares_the_rate_between_reactors() {
    let set = reactors(2);
    let disk = null::create(options("N", 10_000, 512)).expect("null");
    disk.set_qos_limits(QosLimits { rw_ios_per_sec: 2000, ..QosLimits::default() });
    let begin = Instant::now();
    let mut running: Vec<_> = (0..set.count()).map(|r| start(&set, r, &disk, reads(300))).collect();
    assert!(running.remove(0).rest().iter().all(|o| o.result.is_ok()));
    for mut other in running {
        let meanwhile = (0..300).take_while(|_| other.next_within(Duration::ZERO).is_some()).count();
        assert!(meanwhile > 60, "{meanwhile} of 300 while the first reactor had all of its own");
        assert!(other.rest().iter().all(|o| o.result.is_ok()));
    }
    let total = 300 * set.count() as u32;
    let expected = Duration::from_secs(1) * total / 2000;
    let took = begin.elapsed();
    assert!(took > expected * 8 / 10, "{took:?} for {expected:?}");
    assert!(took < expected * 20, "{took:?} for {expected:?}");
    disk.set_qos_limits(QosLimits::default());
    let begin = Instant::now();
    run(&set, 0, &disk, reads(5000));
    assert!(begin.elapsed() < SOON);
}

#[test]
fn a_byte_limit_concerns_its_direction_only() {
    let set = reactors(1);
    let disk = null::create(options("N", 100_000, 4096)).expect("null");
    disk.set_qos_limits(QosLimits { w_mbytes_per_sec: 4, ..QosLimits::default() });
    let begin = Instant::now();
    run(&set, 0, &disk, (0..256).map(|n| Req::read(n, 16, 4096)).collect());
    let reading = begin.elapsed();
    run(&set, 0, &disk, (0..16).map(|n| Req::write(n, 16, 4096, 1)).collect());
    let writing = begin.elapsed() - reading;
    assert!(writing > Duration::from_millis(150), "1 MiB at 4 MiB/s took {writing:?}");
    assert!(reading < SOON, "{reading:?}");
}

#[test]
fn aborts_reach_ios_that_wait_for_tokens() {
    let set = reactors(1);
    let disk = null::create(options("N", 100, 512)).expect("null");
    disk.set_qos_limits(QosLimits { rw_ios_per_sec: 1, ..QosLimits::default() });
    let mut running = start(&set, 0, &disk, reads(10));
    let ids = running.ids.clone();
    let on = disk.clone();
    set.call(0, SOON, move || {
        ids.iter().for_each(|id| {
            on.channel().expect("channel").abort(*id);
        })
    })
    .expect("abort");
    let aborted = (0..10).filter(|_| running.one().result == Err(IoError::Aborted)).count();
    assert!(aborted >= 8);
}

#[test]
fn a_stacked_bdev_unmaps_by_itself_only_if_its_base_does() {
    let set = reactors(1);
    let plain = Bdev::new(options("P", 100, 512), Box::new(ReadWriteOnly::default())).expect("plain");
    let over_plain = passthru::create("Q", uuid::Uuid::new_v4(), &plain).expect("passthru");
    let over_ram = passthru::create("S", uuid::Uuid::new_v4(), &ram("R", 100)).expect("passthru");
    assert!(over_ram.device().supports(Op::Unmap) && !over_plain.device().supports(Op::Unmap));
    run_one(&set, 0, &over_plain, Req::write(0, 10, BLOCK, 1));
    assert_eq!(run_one(&set, 0, &over_plain, Req::new(Op::Unmap, 0, 10)).result, Ok(()));
    assert_eq!(run_one(&set, 0, &over_plain, Req::read(0, 10, BLOCK)).data, vec![0; 10 * BLOCK]);
}

#[test]
fn a_stacked_bdev_passes_ios_follows_its_base_and_goes_with_it() {
    let set = reactors(2);
    let registry = Registry::new();
    let base = null::create(options("N", 100, 512)).expect("null");
    registry.add(base.clone()).expect("add");
    let middle = passthru::create("P", uuid::Uuid::new_v4(), &base).expect("passthru");
    registry.add(middle.clone()).expect("add");
    let top = passthru::create("Q", uuid::Uuid::new_v4(), &middle).expect("passthru");
    registry.add(top.clone()).expect("add");
    assert!(passthru::create("X", uuid::Uuid::new_v4(), &base).is_err());
    let never_added = passthru::create("Y", uuid::Uuid::new_v4(), &top).expect("passthru");
    drop(never_added);
    assert_eq!(top.claimant(), None);
    assert!(registry.remove("N", &set).is_err());
    base.resize(300).expect("resize");
    assert_eq!(top.num_blocks(), 300);
    assert_eq!(run_one(&set, 1, &top, Req::write(299, 1, BLOCK, 0)).result, Ok(()));
    assert_eq!((base.stats().write.ops, top.stats().write.ops), (1, 1));
    let running = start(&set, 0, &top, reads(200));
    registry.pull_out(&base, &set).expect("pull out");
    assert!(running.rest().iter().all(|o| matches!(o.result, Ok(()) | Err(IoError::Removed))));
    assert!(registry.all().is_empty());
    assert_eq!(base.claimant(), None);
}
