//! A Linux kernel as the initiator: what an administrator does with a target, done by Linux and its own tools.

mod common;

use common::export::{ADDRESS, Subsystem, create_transport};
use common::guest::Guest;
use common::netns::Namespace;
use common::node::Node;
use common::wait_until;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const NQN: &str = "nqn.2026-01.io.lockstep:linux";
const PORT: u16 = 4420;

fn network() -> Namespace {
    let namespace = Namespace::new();
    namespace.add_address(ADDRESS);
    namespace
}

fn node_with_ram_disk(namespace: &Namespace, mib: u64, block_size: u64) -> Node {
    // Two reactors: the queues of one controller live on both.
    let node = Node::builder("target").cores("0-1").memory_mib(384).namespace(namespace).start();
    node.rpc(
        "bdev_malloc_create",
        json!({"name": "Disk0", "num_blocks": mib * 1024 * 1024 / block_size, "block_size": block_size}),
    );
    create_transport(&node);
    let subsystem = Subsystem::new(NQN, "Disk0");
    subsystem.create(&node);
    subsystem.listen(&node, ADDRESS, PORT);
    node
}

/// What the guest does with a disk that an administrator would: a file system, files, all of it read back from the
/// medium, and a check.
const FILE_SYSTEM: &str = r#"
mkfs.ext4 -q -F "$disk" || fail mkfs
mount -t ext4 "$disk" /mnt || fail mount
dd if=/dev/urandom of=/tmp/pattern bs=64k count=128 2>/dev/null
mkdir /mnt/many
n=0
while [ $n -lt 100 ]; do echo "file $n" >/mnt/many/$n; n=$((n + 1)); done
cp /tmp/pattern /mnt/large
want=$(sha256sum </tmp/pattern)
umount /mnt || fail umount
drop_caches
e2fsck -fn "$disk" >/tmp/fsck 2>&1 || fail "fsck: $(cat /tmp/fsck)"
mount -t ext4 -o ro "$disk" /mnt || fail "second mount"
[ "$(sha256sum </mnt/large)" = "$want" ] || fail "the large file differs"
n=0
while [ $n -lt 100 ]; do [ "$(cat /mnt/many/$n)" = "file $n" ] || fail "file $n differs"; n=$((n + 1)); done
umount /mnt
"#;

#[test]
fn linux_makes_a_file_system_over_several_queues_with_every_choice_of_digests() {
    let network = network();
    let _node = node_with_ram_disk(&network, 64, 512);
    let mut guest = Guest::builder().cpus(2).namespace(&network).boot();
    for digests in ["", "--hdr-digest", "--data-digest", "--hdr-digest --data-digest"] {
        guest.run(&format!(
            r#"
            ADDRESS={ADDRESS} connect {PORT} {NQN} --nr-io-queues=2 {digests}
            disk=/dev/nvme0n1
            wait_for 10 test -b $disk
            dmesg | grep -q 'creating 2 I/O queues' || fail 'two I/O queues'
            {FILE_SYSTEM}
            nvme disconnect -n {NQN} || fail disconnect
            wait_for 10 test ! -e $disk
            dmesg -c | grep -E 'I/O error|digest|timeout' && fail 'the kernel complains'
            true
            "#
        ));
    }
}

#[test]
fn linux_tools_read_controller_namespace_and_logs() {
    let network = network();
    let _node = node_with_ram_disk(&network, 64, 4096);
    let mut guest = Guest::builder().namespace(&network).boot();
    guest.run(&format!("ADDRESS={ADDRESS} connect {PORT} {NQN}; wait_for 10 test -b /dev/nvme0n1"));
    let list = guest.run("nvme list");
    assert!(
        list.contains("/dev/nvme0n1") && list.contains("Lockstep") && list.contains("LOCKSTEP0001"),
        "{list}"
    );
    let controller = guest.run("nvme id-ctrl /dev/nvme0");
    for (field, value) in [("subnqn", NQN), ("mn", "Lockstep"), ("sn", "LOCKSTEP0001")] {
        let line = controller.lines().find(|l| l.split(':').next().is_some_and(|f| f.trim() == field));
        assert!(line.is_some_and(|l| l.contains(value)), "{field} of\n{controller}");
    }
    let namespace = guest.run("nvme id-ns /dev/nvme0n1");
    assert!(namespace.contains("nsze    : 0x4000") && namespace.contains("lbads:12"), "{namespace}");
    for (what, command) in [
        ("SMART", "nvme smart-log /dev/nvme0"),
        ("errors", "nvme error-log /dev/nvme0"),
        ("firmware", "nvme fw-log /dev/nvme0"),
        ("effects", "nvme effects-log /dev/nvme0"),
        ("ANA", "nvme ana-log /dev/nvme0"),
        ("changed namespaces", "nvme changed-ns-list-log /dev/nvme0"),
        ("supported pages", "nvme supported-log-pages /dev/nvme0"),
        ("descriptors", "nvme ns-descs /dev/nvme0n1"),
        ("namespaces", "nvme list-ns /dev/nvme0"),
        ("number of queues", "nvme get-feature /dev/nvme0 -f 7"),
        ("keep-alive timer", "nvme get-feature /dev/nvme0 -f 0xf"),
        ("reset", "nvme reset /dev/nvme0"),
    ] {
        let (status, output) = guest.try_run(command);
        assert_eq!(status, 0, "{what}: {command}\n{output}");
    }
    guest.run(
        "wait_for 10 grep -q live /sys/class/nvme/nvme0/state; dd if=/dev/nvme0n1 of=/dev/null bs=1M count=4",
    );
}

#[test]
fn fio_verifies_what_it_wrote_at_random() {
    let network = network();
    let _node = node_with_ram_disk(&network, 64, 512);
    let mut guest = Guest::builder().cpus(2).memory_mib(512).host_tree().namespace(&network).boot();
    for digests in ["", "--hdr-digest --data-digest"] {
        guest.run(&format!(
            r#"
            ADDRESS={ADDRESS} connect {PORT} {NQN} --nr-io-queues=2 {digests}
            wait_for 10 test -b /dev/nvme0n1
            fio --name=verify --filename=/dev/nvme0n1 --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite \
                --bsrange=512-128k --blockalign=512 --size=48m --io_size=24m --verify=crc32c --verify_fatal=1 \
                --verify_dump=0 --do_verify=1 --output-format=terse >/tmp/fio 2>&1 || fail "fio: $(cat /tmp/fio)"
            nvme disconnect -n {NQN} || fail disconnect
            "#
        ));
    }
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_their_neighbours_stay() {
    let network = network();
    let _node = node_with_ram_disk(&network, 64, 512);
    let mut guest = Guest::builder().namespace(&network).boot();
    guest.run(&format!(
        r#"
        ADDRESS={ADDRESS} connect {PORT} {NQN}
        disk=/dev/nvme0n1
        wait_for 10 test -b $disk
        dd if=/dev/urandom of=/tmp/pattern bs=1M count=8 2>/dev/null
        dd if=/tmp/pattern of=$disk bs=1M oflag=direct 2>/dev/null || fail write
        blkdiscard -o 1048576 -l 2097152 $disk || fail blkdiscard
        nvme write-zeroes $disk -s 8192 -c 2047 || fail write-zeroes
        nvme dsm $disk -d -s 12288 -b 2048 || fail dsm
        nvme flush $disk || fail flush
        expect() {{ # MiB STATE
            dd if=$disk of=/tmp/is bs=1M skip=$1 count=1 iflag=direct 2>/dev/null || fail "read $1"
            case $2 in
            zero) [ "$(tr -d '\0' </tmp/is | wc -c)" = 0 ] || fail "MiB $1 is not zero" ;;
            same) dd if=/tmp/pattern bs=1M skip=$1 count=1 2>/dev/null | cmp -s - /tmp/is || fail "MiB $1 changed" ;;
            esac
        }}
        expect 0 same; expect 1 zero; expect 2 zero; expect 3 same; expect 4 zero; expect 5 same; expect 6 zero; expect 7 same
        dd if=/tmp/pattern of=/tmp/first bs=4k count=1 2>/dev/null
        nvme compare $disk -s 0 -c 7 -z 4096 -d /tmp/first || fail "compare of equal data"
        nvme compare $disk -s 2048 -c 7 -z 4096 -d /tmp/first && fail "compare of different data"
        mkfs.ext4 -q -F $disk && mount -t ext4 -o discard $disk /mnt || fail mount
        cp /tmp/pattern /mnt/file && sync && rm /mnt/file && sync && fstrim /mnt || fail fstrim
        umount /mnt && e2fsck -fn $disk >/dev/null 2>&1 || fail fsck
        "#
    ));
}

fn node_with_file_disk(namespace: &Namespace, file: &Path) -> Node {
    let node = Node::builder("target").namespace(namespace).start();
    node.rpc("bdev_uring_create", json!({"name": "Disk0", "filename": file, "block_size": 512}));
    create_transport(&node);
    let subsystem =
        Subsystem { uuid: Some("6c6f636b-7374-6570-6669-6c6500000001"), ..Subsystem::new(NQN, "Disk0") };
    subsystem.create(&node);
    subsystem.listen(&node, ADDRESS, PORT);
    node
}

#[test]
fn linux_reconnects_after_the_target_was_restarted_and_goes_on_with_the_same_disk() {
    let network = network();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("disk");
    std::fs::File::create(&file).and_then(|f| f.set_len(64 << 20)).expect("a sparse file");
    let mut node = node_with_file_disk(&network, &file);
    let mut guest = Guest::builder().namespace(&network).boot();
    guest.run(&format!(
        r#"
        ADDRESS={ADDRESS} connect {PORT} {NQN} --reconnect-delay=1 --ctrl-loss-tmo=60
        wait_for 10 test -b /dev/nvme0n1
        mkfs.ext4 -q -F /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt || fail mkfs
        echo before >/mnt/before; sync
        "#
    ));
    for kill in [false, true] {
        // Files are written while the node goes away and comes back: they wait, and none fails.
        guest.start(
            "n=0; while [ $n -lt 60 ]; do echo $n >/mnt/$n && sync /mnt/$n || fail $n; sleep 0.1; n=$((n + 1)); done",
        );
        std::thread::sleep(Duration::from_secs(1));
        if kill {
            node.kill();
        } else {
            assert!(node.stop().success(), "an orderly end:\n{}", node.log());
        }
        std::thread::sleep(Duration::from_secs(1));
        node = node_with_file_disk(&network, &file);
        guest.finish(Duration::from_secs(90));
    }
    guest.run(
        r#"
        umount /mnt || fail umount
        e2fsck -fn /dev/nvme0n1 >/tmp/fsck 2>&1 || fail "fsck: $(cat /tmp/fsck)"
        mount -t ext4 -o ro /dev/nvme0n1 /mnt
        [ "$(cat /mnt/before)" = before ] && [ "$(cat /mnt/59)" = 59 ] || fail 'a file is gone'
        [ "$(io_errors)" = 0 ] || fail 'the kernel reports I/O errors'
        "#,
    );
}

#[test]
fn discovery_names_every_subsystem_and_connect_all_connects_them() {
    let network = network();
    let node = node_with_ram_disk(&network, 16, 512);
    node.rpc("bdev_malloc_create", json!({"name": "Disk1", "num_blocks": 32768, "block_size": 512}));
    let second = Subsystem::new("nqn.2026-01.io.lockstep:second", "Disk1");
    second.create(&node);
    second.listen(&node, ADDRESS, PORT);
    let mut guest = Guest::builder().namespace(&network).boot();
    let log = guest.run(&format!("nvme discover -t tcp -a {ADDRESS} -s {PORT}"));
    assert!(log.contains(NQN) && log.contains(second.nqn) && log.contains(ADDRESS), "{log}");
    guest.run(&format!(
        "nvme connect-all -t tcp -a {ADDRESS} -s {PORT} || fail connect-all
        both() {{ [ $(ls /dev/nvme*n1 | wc -l) = 2 ]; }}
        wait_for 10 both
        nvme disconnect-all || fail disconnect-all"
    ));
    node.rpc("nvmf_delete_subsystem", json!({"nqn": second.nqn}));
    let log = guest.run(&format!("nvme discover -t tcp -a {ADDRESS} -s {PORT}"));
    assert!(log.contains(NQN) && !log.contains(second.nqn), "{log}");
}

#[test]
fn multipath_follows_ana_states_and_survives_the_loss_of_a_path() {
    let network = network();
    let node = node_with_ram_disk(&network, 64, 512);
    let subsystem = Subsystem::new(NQN, "Disk0");
    subsystem.listen(&node, ADDRESS, PORT + 1);
    subsystem.set_ana_state(&node, ADDRESS, PORT + 1, "inaccessible");
    let mut guest = Guest::builder().memory_mib(512).host_tree().namespace(&network).boot();
    guest.run(&format!(
        r#"
        export ADDRESS={ADDRESS}
        connect {PORT} {NQN} --reconnect-delay=1 --ctrl-loss-tmo=30
        connect {second} {NQN} --reconnect-delay=1 --ctrl-loss-tmo=30
        wait_for 10 test -b /dev/nvme0n1
        [ $(ls /sys/class/nvme-subsystem/nvme-subsys0/ | grep -cE '^nvme[0-9]+$') = 2 ] || fail 'two paths of one subsystem'
        wait_for 10 grep -q optimized /sys/class/nvme/nvme0/nvme0c0n1/ana_state
        wait_for 10 grep -q inaccessible /sys/class/nvme/nvme1/nvme0c1n1/ana_state
        "#,
        second = PORT + 1
    ));
    guest.start(
        r#"fio --name=paths --filename=/dev/nvme0n1 --direct=1 --ioengine=libaio --iodepth=4 --rw=randwrite --bs=4k \
            --size=32m --time_based --runtime=12 --verify=crc32c --verify_fatal=1 --verify_dump=0 --do_verify=0 \
            --output-format=terse >/tmp/fio 2>&1 || fail "fio: $(cat /tmp/fio)""#,
    );
    std::thread::sleep(Duration::from_secs(4));
    // The role moves: first as at a failover, then the first path is taken away altogether.
    subsystem.set_ana_state(&node, ADDRESS, PORT, "inaccessible");
    subsystem.set_ana_state(&node, ADDRESS, PORT + 1, "optimized");
    std::thread::sleep(Duration::from_secs(3));
    node.rpc("nvmf_subsystem_remove_listener", subsystem.listener(ADDRESS, PORT));
    guest.finish(Duration::from_secs(60));
    guest.run(
        r#"
        grep -q '^optimized' /sys/class/nvme/nvme1/nvme0c1n1/ana_state || fail 'the second path is optimized'
        [ "$(io_errors)" = 0 ] || fail 'the kernel reports I/O errors'
        "#,
    );
}

fn controllers(node: &Node) -> usize {
    let list = node.rpc("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    list.as_array().map_or(0, Vec::len)
}

#[test]
fn a_host_that_falls_silent_is_dropped_after_its_keep_alive_timeout_and_may_return() {
    let network = network();
    let node = node_with_ram_disk(&network, 64, 512);
    let mut guest = Guest::builder().namespace(&network).boot();
    guest.run(&format!(
        r#"
        ADDRESS={ADDRESS} connect {PORT} {NQN} --keep-alive-tmo=4 --reconnect-delay=1 --ctrl-loss-tmo=60
        wait_for 10 test -b /dev/nvme0n1
        dd if=/dev/urandom of=/tmp/pattern bs=64k count=16 2>/dev/null
        dd if=/tmp/pattern of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null || fail write
        "#
    ));
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(controllers(&node), 1, "an idle host keeps itself alive");
    guest.signal("STOP");
    wait_until("the silent host is dropped", Duration::from_secs(15), || controllers(&node) == 0);
    guest.signal("CONT");
    wait_until("the host is back", Duration::from_secs(30), || controllers(&node) == 1);
    guest.run(
        r#"
        wait_for 20 grep -q live /sys/class/nvme/nvme0/state
        dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/pattern || fail 'the data differs'
        "#,
    );
}

#[test]
fn a_host_that_vanishes_in_the_middle_of_its_io_leaves_nothing_behind() {
    let network = network();
    let node = node_with_ram_disk(&network, 64, 512);
    for _ in 0..2 {
        let mut guest = Guest::builder().namespace(&network).boot();
        guest.run(&format!("ADDRESS={ADDRESS} connect {PORT} {NQN}; wait_for 10 test -b /dev/nvme0n1"));
        guest.start("dd if=/dev/zero of=/dev/nvme0n1 bs=1M oflag=direct");
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(controllers(&node), 1);
        drop(guest);
        wait_until("its controller is gone", Duration::from_secs(10), || controllers(&node) == 0);
    }
}
