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

    /// A cable from here into the namespace; the address at which what listens inside is reached. It stays when
    /// another cable is cut: tests watch through it.
    pub fn reach(&self) -> String {
        let number = COUNT.fetch_add(1, Ordering::Relaxed) % 60;
        let process = std::process::id();
        let (outside, subnet) = (format!("lk{process}n{number}"), format!("10.92.{}", process % 250));
        self.ip(&["link", "add", "watch", "type", "veth", "peer", "name", "outside"]);
        self.ip(&["link", "set", "outside", "netns", &process.to_string(), "name", &outside]);
        let (here, there) = (format!("{subnet}.{}", number * 4 + 1), format!("{subnet}.{}", number * 4 + 2));
        ip(&["addr", "add", &format!("{here}/30"), "dev", &outside]);
        ip(&["link", "set", &outside, "up"]);
        self.ip(&["addr", "add", &format!("{there}/30"), "dev", "watch"]);
        self.ip(&["link", "set", "watch", "up"]);
        there
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
pub struct Cable {
    first: String,
}

impl Cable {
    pub const FIRST: &'static str = "10.91.0.1";
    pub const SECOND: &'static str = "10.91.0.2";

    pub fn plug(first: &Namespace, second: &Namespace) -> Cable {
        first.ip(&["link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &second.name]);
        for (end, address) in [(first, Self::FIRST), (second, Self::SECOND)] {
            end.ip(&["addr", "add", &format!("{address}/24"), "dev", "cable"]);
            end.ip(&["link", "set", "cable", "up"]);
        }
        Cable { first: first.name.clone() }
    }

    /// Nothing passes any more, and neither side is told: no FIN, no RST, whatever was half sent stays so.
    pub fn cut(&self) {
        ip(&["-n", &self.first, "link", "set", "cable", "down"]);
    }

    /// From the first end so many kilobit a second pass from now on, until [`Cable::speed_up`].
    pub fn slow_down(&self, kilobit: u32) {
        let rate = format!("{kilobit}kbit");
        self.shape(&[
            "replace", "dev", "cable", "root", "tbf", "rate", &rate, "burst", "16kb", "latency", "2s",
        ]);
    }

    pub fn speed_up(&self) {
        self.shape(&["del", "dev", "cable", "root"]);
    }

    fn shape(&self, arguments: &[&str]) {
        let output = Command::new("tc").args(["-n", &self.first, "qdisc"]).args(arguments).output();
        let output = output.unwrap_or_else(|e| panic!("tc of iproute2: {e}"));
        assert!(output.status.success(), "tc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn mend(&self) {
        ip(&["-n", &self.first, "link", "set", "cable", "up"]);
    }
}
