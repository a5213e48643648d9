//! What this machine has not: a real NVMe disk with queues for polling, and pages of 1 GiB. A Linux guest has both,
//! emulated, and runs the host's binaries.

mod common;

use common::guest::Guest;

const DISK_MIB: u64 = 256;
const IOS: u64 = 3000;

/// Where the host has them.
const BINARIES: &str =
    concat!("PERF=", env!("CARGO_BIN_EXE_lockstep-perf"), " NODE=", env!("CARGO_BIN_EXE_lockstep"));

/// Shell functions: binaries of the host in its tree, and a node that has come up.
const LIBRARY: &str = r#"
# The guest's own /tmp lies over the host's in /host; the host's binaries may lie below that one.
mkdir -p /pristine /host/tmp/bin
mount --bind /host /pristine
touch /host/tmp/bin/perf /host/tmp/bin/node
mount --bind /pristine$PERF /host/tmp/bin/perf
mount --bind /pristine$NODE /host/tmp/bin/node
perf() { chroot /host /tmp/bin/perf "$@"; }
rpc() { chroot /host /tmp/bin/node rpc --socket /run/node.sock "$@"; }
serve() {
    chroot /host /tmp/bin/node serve --cores 0 --rpc-socket /run/node.sock "$@" > /run/node.log 2>&1 &
    node=$!
    for i in $(seq 300); do rpc rpc_get_methods > /dev/null 2>&1 && return; sleep 0.1; done
    cat /run/node.log
    return 1
}
end_node() { kill $node; wait $node; }
interrupts() { awk '/nvme0q[1-9]/ { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) sum += $i } END { print sum + 0 }' /proc/interrupts; }
"#;

fn script(text: &str) -> String {
    format!("{BINARIES}\n{LIBRARY}\nset -e\n{text}")
}

fn disk() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file for the disk");
    file.as_file().set_len(DISK_MIB << 20).expect("its length");
    file
}

/// Loads a disk in a guest whose driver has so many queues for polling; the interrupts of its I/O queues meanwhile.
fn interrupts_of_a_verified_load(poll_queues: u32) -> u64 {
    let disk = disk();
    let mut guest = Guest::builder().memory_mib(1024).host_tree().nvme_disk(disk.path()).boot();
    let polled = poll_queues > 0;
    let output = guest.run(&script(&format!(
        r#"
        modprobe nvme poll_queues={poll_queues}
        wait_for 20 test -b /dev/nvme0n1
        serve --memory 64
        rpc bdev_uring_create '{{"name":"Disk0","filename":"/dev/nvme0n1"}}'
        rpc bdev_get_bdevs '{{"name":"Disk0"}}' | grep -q '"polled": {polled}'
        end_node
        before=$(interrupts)
        perf bdev uring:/dev/nvme0n1 --rw randrw --depth 16 --count {IOS} --time 100 --warm-up 0 --verify --memory 64
        echo interrupts: $(($(interrupts) - before))
        "#
    )));
    assert!(output.contains(" blocks read and checked, 0 faults"), "{output}");
    let found =
        output.lines().find_map(|l| l.strip_prefix("interrupts: ")).and_then(|n| n.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no number of interrupts in:\n{output}"))
}

#[test]
fn a_disk_with_polled_queues_is_polled_and_one_without_is_not() {
    let (polled, not_polled) = (interrupts_of_a_verified_load(1), interrupts_of_a_verified_load(0));
    // One for each I/O at most; some stand for several.
    assert!(polled < IOS / 100 && not_polled > IOS / 20, "{polled} and {not_polled} of {IOS}");
}

#[test]
fn a_ram_disk_of_one_gib_lies_on_one_page_where_the_machine_has_such_pages() {
    let mut guest =
        Guest::builder().memory_mib(2560).kernel_options("hugepagesz=1G hugepages=1").host_tree().boot();
    guest.run(&script(
        r#"
        free=/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages
        [ "$(cat $free)" = 1 ]
        serve --memory 64
        rpc bdev_malloc_create '{"name":"Ram0","num_blocks":262144,"block_size":4096}'
        # Pages are taken when they are touched; reserved ones are no longer to be had by others.
        reserved=$(cat ${free%free_hugepages}resv_hugepages)
        [ "$(cat $free)" = 0 ] || [ "$reserved" = 1 ]
        rpc bdev_malloc_delete '{"name":"Ram0"}'
        end_node
        [ "$(cat $free)" = 1 ]
        perf bdev ram:1g --rw randrw --bs 64k --depth 8 --count 500 --time 60 --warm-up 0 --verify --memory 64
        "#,
    ));
}
