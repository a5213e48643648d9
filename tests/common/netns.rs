//! Network namespaces: every suite that needs known addresses, or a cable to cut, brings its own network.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

fn ip(arguments: &[&str]) {
    let output =
        Command::new("ip").args(arguments).output().expect("iproute2 is installed (tests/run does it)");
    assert!(
        output.status.success(),
        "ip {}: {} (the end-to-end suites need root)",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// A namespace with its own loopback; removed on drop.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new() -> Namespace {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace { name: format!("lockstep-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name]);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// A further address of this namespace that a guest in it can reach as it is, unlike 127.0.0.1.
    pub fn add_address(&self, address: &str) {
        self.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }

    /// A command that will run inside; the process keeps the id of what is spawned.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// `ip` inside the namespace.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", self.name.as_str()], arguments].concat());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A cable between two namespaces: `10.91.0.1` at the first end, `10.91.0.2` at the second.
pub struct Cable<'a> {
    first: &'a Namespace,
}

impl<'a> Cable<'a> {
    pub const FIRST: &'static str = "10.91.0.1";
    pub const SECOND: &'static str = "10.91.0.2";

    pub fn plug(first: &'a Namespace, second: &Namespace) -> Cable<'a> {
        first.ip(&["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &second.name]);
        for (end, address) in [(first, Self::FIRST), (second, Self::SECOND)] {
            end.ip(&["addr", "add", &format!("{address}/24"), "dev", "cable"]);
            end.ip(&["link", "set", "cable", "up"]);
        }
        Cable { first }
    }

    /// Nothing passes any more, and neither side is told: no FIN, no RST, whatever was half sent stays so.
    pub fn cut(&self) {
        self.first.ip(&["link", "set", "cable", "down"]);
    }

    pub fn mend(&self) {
        self.first.ip(&["link", "set", "cable", "up"]);
    }
}
