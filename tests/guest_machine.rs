//! The guest machinery itself: what the suites on the target rely on holds without it.

mod common;

use common::guest::Guest;
use common::netns::Namespace;

#[test]
fn a_guest_boots_in_a_namespace_and_runs_scripts_with_their_status_and_output() {
    let namespace = Namespace::new();
    namespace.add_address("10.90.0.1");
    let mut guest = Guest::builder().namespace(&namespace).boot();
    assert_eq!(guest.run("echo one; echo two"), "one\ntwo");
    assert_eq!(guest.try_run("echo last words; exit 42"), (42, "last words".to_owned()));
    guest.run("nvme version; modprobe ext4; cat /sys/module/nvme_core/parameters/multipath");
}

#[test]
fn a_guest_runs_the_hosts_fio() {
    let mut guest = Guest::builder().memory_mib(512).host_tree().boot();
    assert!(guest.run("fio --version").starts_with("fio-"));
}
