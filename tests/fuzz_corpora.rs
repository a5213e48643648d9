//! Every input that the fuzzers' corpora hold, replayed: what once was found stays found.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::path::Path;

fn replay(name: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut count = 0;
    for entry in entries {
        let path = entry.expect("a folder that can be listed").path();
        let input = std::fs::read(&path).expect("a file that can be read");
        if std::panic::catch_unwind(|| check(&input)).is_err() {
            panic!("fuzz input {} fails", path.display());
        }
        count += 1;
    }
    assert!(count >= 5, "only {count} inputs in {}", folder.display());
}

#[test]
fn nvme_tcp_corpus() {
    replay("nvme_tcp", checks::nvme_tcp);
}

#[test]
fn link_corpus() {
    replay("link", checks::link);
}

#[test]
fn jsonrpc_corpus() {
    replay("jsonrpc", checks::jsonrpc);
}
