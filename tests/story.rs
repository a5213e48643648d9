//! The story that the project exists for: two nodes, a virtual machine's disk on them, checkpoints meanwhile, the
//! primary killed, and the secondary carrying on with exactly the promised state.

mod common;

use common::guest::Guest;
use common::nvme::Host;
use common::pair::{GROUP, Pair, VOLUME_NQN, group};
use common::stamps::{self, BLOCK, Writer};
use common::{first_difference, noise, wait_until};
use serde_json::json;
use std::time::Duration;

const SIZE_MIB: u64 = 64;

#[track_caller]
fn assert_same(left: &[u8], right: &[u8], what: &str) {
    if let Some(block) = first_difference(left, right, BLOCK) {
        panic!("{what}: the first difference is in block {block}");
    }
}

/// A guest with both paths to the volume: the primary's is optimized, the secondary's inaccessible.
fn guest_on_both_paths(pair: &Pair) -> Guest {
    let mut guest = Guest::builder().boot();
    guest.run(&format!(
        r#"
        connect {} {VOLUME_NQN} --reconnect-delay=1 --ctrl-loss-tmo=600
        connect {} {VOLUME_NQN} --reconnect-delay=1 --ctrl-loss-tmo=600
        wait_for 10 test -b /dev/nvme0n1
        [ $(ls /sys/class/nvme-subsystem/nvme-subsys0/ | grep -cE '^nvme[0-9]+$') = 2 ] || fail 'two paths of one subsystem'
        wait_for 10 grep -q '^optimized' /sys/class/nvme/nvme0/nvme0c0n1/ana_state
        wait_for 10 grep -q inaccessible /sys/class/nvme/nvme1/nvme0c1n1/ana_state
        "#,
        pair.primary_port, pair.secondary_port
    ));
    guest
}

#[test]
fn after_each_checkpoint_the_secondarys_view_is_the_primary_and_its_own_writes_are_gone() {
    let pair = Pair::start(SIZE_MIB);
    let mut guest = guest_on_both_paths(&pair);
    let (mut volume, mut view) = (pair.volume(), pair.view());
    guest.run("mkfs.ext4 -q -F /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt || fail mkfs");
    for round in 0..4u64 {
        // A frozen file system writes nothing: the primary's image now is the image at the cut.
        guest.run(&format!(
            r#"
            mkdir /mnt/{round}
            n=0; while [ $n -lt 40 ]; do echo "{round} $n" >/mnt/{round}/$n; n=$((n + 1)); done
            dd if=/dev/urandom of=/mnt/{round}/large bs=64k count=32 2>/dev/null
            sync; fsfreeze --freeze /mnt || fail freeze
            "#
        ));
        pair.checkpoint();
        let cut = volume.read_all();
        assert_same(&cut, &view.read_all(), "the secondary's view after a checkpoint");

        // The secondary VM writes blocks of its own and sees them; the primary does not.
        let mut own = cut.clone();
        for i in 0..24u64 {
            let block = (i * 977 + round * 131) % (SIZE_MIB << 8) - i % 2;
            let bytes = noise(round * 100 + i, BLOCK * (1 + (i as usize % 3)));
            let at = block as usize * BLOCK;
            let bytes = &bytes[..bytes.len().min(own.len() - at)];
            view.write(at as u64, bytes);
            own[at..at + bytes.len()].copy_from_slice(bytes);
        }
        assert_same(&own, &view.read_all(), "the secondary's view with its own writes");
        assert_same(&cut, &volume.read_all(), "the primary while the secondary writes");

        // The primary goes on; until the next checkpoint the view shows nothing of it.
        guest.run(&format!(
            "fsfreeze --unfreeze /mnt; dd if=/dev/urandom of=/mnt/{round}/more bs=64k count=16 2>/dev/null; rm /mnt/{round}/large; sync"
        ));
        assert_same(&own, &view.read_all(), "the secondary's view while the primary goes on");
    }
    guest.run("umount /mnt; sync");
    pair.checkpoint();
    assert_same(&volume.read_all(), &view.read_all(), "the secondary's view after the last checkpoint");
}

#[test]
fn a_checkpoint_under_load_is_one_point_in_time_and_isolates_the_view() {
    let pair = Pair::start(16);
    let mut view = pair.view();
    let regions = (16 << 8) / 4;
    let mut writers: Vec<Writer> =
        (0..4).map(|i| Writer::start(pair.volume(), i * regions, regions)).collect();
    let mut last = vec![0; writers.len()];
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(120));
        let before = stamps::progress(&writers).acknowledged;
        pair.checkpoint();
        let after = stamps::progress(&writers).issued;
        let image = view.read_all();
        let cut = stamps::assert_one_point_in_time(&writers, &image, &before, &after);
        assert!(
            cut.iter().zip(&last).all(|(now, then)| now >= then),
            "the view went back: {last:?} to {cut:?}"
        );
        assert_same(&image, &view.read_all(), "the view between two checkpoints");
        last = cut;
    }
    for writer in &mut writers {
        assert_eq!(writer.stop(), "stopped");
    }
    assert!(
        writers.iter().all(|w| w.acknowledged() > 100),
        "the load made too little progress to prove anything"
    );
}

#[test]
fn failover_with_latest_lets_the_same_guest_go_on_without_an_io_error() {
    let mut pair = Pair::start(SIZE_MIB);
    let mut guest = guest_on_both_paths(&pair);
    guest.run(
        r#"
        mkfs.ext4 -q -F /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt || fail mkfs
        (
            n=0
            while [ ! -e /tmp/stop ]; do
                echo "file $n" >/mnt/$n && sync /mnt/$n || { echo "file $n" >/tmp/failed; break; }
                echo $n >/tmp/acknowledged
                n=$((n + 1))
            done
            echo done >/tmp/done
        ) >/dev/null 2>&1 &
        wait_for 10 test -s /tmp/acknowledged
        "#,
    );
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        pair.checkpoint();
    }
    pair.primary.kill();
    let outcome = pair.failover("latest");
    assert!(outcome["generation"].as_u64().is_some_and(|g| g > 0), "{outcome}");
    guest.run(
        r#"
        wait_for 30 grep -q '^optimized' /sys/class/nvme/nvme1/nvme0c1n1/ana_state
        at=$(cat /tmp/acknowledged)
        progressed() { [ "$(cat /tmp/acknowledged)" -gt $((at + 10)) ]; }
        wait_for 30 progressed
        touch /tmp/stop
        wait_for 30 test -e /tmp/done
        [ ! -e /tmp/failed ] || fail "a write failed: $(cat /tmp/failed)"
        last=$(cat /tmp/acknowledged)
        umount /mnt || fail umount
        drop_caches
        e2fsck -fn /dev/nvme0n1 >/tmp/fsck 2>&1 || fail "fsck: $(cat /tmp/fsck)"
        mount -t ext4 /dev/nvme0n1 /mnt || fail mount
        n=0
        while [ $n -le $last ]; do [ "$(cat /mnt/$n)" = "file $n" ] || fail "file $n of $last is lost"; n=$((n + 1)); done
        umount /mnt
        [ "$(io_errors)" = 0 ] || fail 'the kernel reports I/O errors'
        "#,
    );
}

#[test]
fn failover_with_latest_keeps_every_acknowledged_write_under_load() {
    let mut pair = Pair::start(16);
    let regions = (16 << 8) / 4;
    let mut writers: Vec<Writer> =
        (0..4).map(|i| Writer::start(pair.volume(), i * regions, regions)).collect();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        pair.checkpoint();
    }
    std::thread::sleep(Duration::from_millis(150));
    pair.primary.kill();
    for writer in &mut writers {
        writer.wait(Duration::from_secs(10));
    }
    pair.failover("latest");
    let end = stamps::progress(&writers);
    stamps::assert_one_point_in_time(&writers, &pair.survivor().read_all(), &end.acknowledged, &end.issued);
}

#[test]
fn failover_with_checkpoint_gives_a_fresh_guest_exactly_the_last_checkpoint() {
    let mut pair = Pair::start(SIZE_MIB);
    let mut guest = guest_on_both_paths(&pair);
    guest.run(
        r#"
        mkfs.ext4 -q -F /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt || fail mkfs
        dd if=/dev/urandom of=/mnt/kept bs=64k count=64 2>/dev/null; sha256sum </mnt/kept >/mnt/sum
        echo early >/mnt/early; sync; fsfreeze --freeze /mnt || fail freeze
        "#,
    );
    pair.checkpoint();
    let cut = pair.volume().read_all();
    guest.run(
        r#"
        fsfreeze --unfreeze /mnt
        dd if=/dev/urandom of=/mnt/kept bs=64k count=64 2>/dev/null
        echo late >/mnt/late; rm /mnt/early; sync
        "#,
    );
    // The secondary VM's own writes are not part of the promise either.
    pair.view().write(0, &noise(1, 1 << 20));
    pair.primary.kill();
    drop(guest);
    pair.failover("checkpoint");
    assert_same(&cut, &pair.survivor().read_all(), "the volume after the failover");
    wait_until("the disk buffer is flushed", Duration::from_secs(60), || {
        group(&pair.secondary)["buffer"]["undo_bytes"] == 0
    });
    assert_same(&cut, &pair.survivor().read_all(), "the volume after the flush");

    let mut guest = Guest::builder().boot();
    guest.run(&format!(
        r#"
        connect {} {VOLUME_NQN}
        wait_for 10 test -b /dev/nvme0n1
        e2fsck -fp /dev/nvme0n1 >/tmp/fsck 2>&1 || [ $? = 1 ] || fail "fsck: $(cat /tmp/fsck)"
        mount -t ext4 /dev/nvme0n1 /mnt || fail mount
        [ "$(cat /mnt/early)" = early ] || fail 'a file of the checkpoint is gone'
        [ ! -e /mnt/late ] || fail 'a file from after the checkpoint is there'
        [ "$(sha256sum </mnt/kept)" = "$(cat /mnt/sum)" ] || fail 'a file is not as it was'
        umount /mnt
        "#,
        pair.secondary_port
    ));
}

#[test]
fn failover_with_overlay_gives_exactly_the_secondarys_own_view() {
    let mut pair = Pair::start(16);
    let regions = (16 << 8) / 4;
    let mut writers: Vec<Writer> =
        (0..4).map(|i| Writer::start(pair.volume(), i * regions, regions)).collect();
    std::thread::sleep(Duration::from_millis(300));
    pair.checkpoint();
    // The secondary VM runs while the primary is written, over blocks that the primary writes too.
    let mut view = pair.view();
    for i in 0..200u64 {
        view.write((i * 7919 % (16 << 8)) * BLOCK as u64, &noise(i, BLOCK));
    }
    let seen = view.read_all();
    std::thread::sleep(Duration::from_millis(200));
    pair.primary.kill();
    for writer in &mut writers {
        writer.wait(Duration::from_secs(10));
    }
    drop(view);
    pair.failover("overlay");
    let mut survivor: Host = pair.survivor();
    assert_same(&seen, &survivor.read_all(), "the volume after the failover");
    wait_until("the disk buffer is flushed", Duration::from_secs(60), || {
        let buffer = &group(&pair.secondary)["buffer"];
        buffer["undo_bytes"] == 0 && buffer["overlay_bytes"] == 0
    });
    assert_same(&seen, &survivor.read_all(), "the volume after the flush");
}

#[test]
fn an_old_primary_that_comes_back_changes_nothing_on_its_successor() {
    let pair = Pair::start(16);
    let mut volume = pair.volume();
    volume.write(0, &vec![0x11; 1 << 20]);
    pair.checkpoint();
    // The primary is only cut off, not dead: it does not know that it was replaced.
    pair.primary.signal("STOP");
    pair.failover("latest");
    let mut survivor = pair.survivor();
    survivor.write(0, &vec![0x22; 1 << 20]);
    pair.primary.signal("CONT");
    let _ = volume.try_write(0, &vec![0x33; 1 << 20]);
    let _ = pair.primary.try_rpc("replication_do_checkpoint", json!({"group": GROUP, "timeout_ms": 1000}));
    std::thread::sleep(Duration::from_millis(500));
    assert_same(&vec![0x22; 1 << 20], &survivor.read(0, 1 << 20), "the successor's volume");
    assert_eq!(group(&pair.secondary)["role"], "primary");
}
