//! `lockstep quickstart`, the first thing a user sees: it needs nothing prepared, proves what it says, and leaves nothing
//! behind.

mod common;

use common::wait_until;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Starts the quickstart with a folder of its own for everything temporary.
fn quickstart(arguments: &[&str]) -> (Child, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--", env!("CARGO_BIN_EXE_lockstep"), "quickstart"])
        .args(arguments)
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    (child, dir)
}

/// Processes whose command line names `dir`: the nodes that a quickstart started.
fn nodes_of(dir: &TempDir) -> usize {
    let name = dir.path().display().to_string();
    let processes = std::fs::read_dir("/proc").expect("a mounted /proc").filter_map(Result::ok);
    let line = |p: std::fs::DirEntry| std::fs::read(p.path().join("cmdline")).unwrap_or_default();
    processes.map(line).filter(|line| String::from_utf8_lossy(line).contains(&name)).count()
}

#[track_caller]
fn assert_nothing_is_left(dir: &TempDir) {
    wait_until("no node is left", Duration::from_secs(5), || nodes_of(dir) == 0);
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("the folder").filter_map(Result::ok).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn once_proves_the_main_job_and_leaves_nothing_behind() {
    let (child, dir) = quickstart(&["--once"]);
    let output = child.wait_with_output().expect("it ends");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}:\n{report}", output.status);
    for promise in ["latest", "checkpoint", "overlay"] {
        assert!(report.contains(promise), "the report names '{promise}':\n{report}");
    }
    assert_nothing_is_left(&dir);
}

#[test]
fn it_shows_how_to_attach_the_volume_and_ends_everything_at_ctrl_c() {
    let (mut child, dir) = quickstart(&[]);
    let mut shown = BufReader::new(child.stdout.take().expect("a piped output")).lines();
    let command = shown.find(|line| line.as_ref().is_ok_and(|l| l.contains("nvme connect")));
    assert!(command.is_some(), "it prints the command to attach the volume");
    assert_eq!(nodes_of(&dir), 2, "two real processes");
    let status = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(status.is_ok_and(|s| s.success()));
    // Its output is read to the end, so that it never waits for a reader.
    shown.for_each(drop);
    let status = child.wait().expect("it ends");
    assert!(status.success(), "Ctrl-C is an ordinary end: {status}");
    assert_nothing_is_left(&dir);
}
