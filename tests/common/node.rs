//! One running `lockstep serve`.

use super::netns::Namespace;
use super::rpc::{Rpc, RpcError};
use serde_json::Value;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(20);
/// An orderly end flushes and closes; a node that needs longer than this hangs.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A TCP port of 127.0.0.1 that nobody uses at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port of 127.0.0.1");
    listener.local_addr().expect("a bound socket has an address").port()
}

pub struct NodeBuilder<'a> {
    name: &'a str,
    cores: &'a str,
    idle: &'a str,
    memory_mib: u32,
    config: Option<&'a Path>,
    namespace: Option<&'a Namespace>,
    arguments: Vec<String>,
}

impl<'a> NodeBuilder<'a> {
    pub fn cores(mut self, cores: &'a str) -> Self {
        self.cores = cores;
        self
    }

    pub fn idle(mut self, idle: &'a str) -> Self {
        self.idle = idle;
        self
    }

    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    pub fn config(mut self, config: &'a Path) -> Self {
        self.config = Some(config);
        self
    }

    pub fn namespace(mut self, namespace: &'a Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// One more argument of `lockstep serve`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the process and waits until it answers.
    pub fn start(self) -> Node {
        let dir = tempfile::Builder::new().prefix("lockstep-test-").tempdir().expect("a temporary folder");
        // A node told to wait for its start answers little; any other one has read its configuration by the answer.
        let waits = self.arguments.iter().any(|argument| argument == "--wait-for-rpc");
        let ready = if waits { "spdk_get_version" } else { "framework_wait_init" };
        let mut node = self.launch(dir);
        node.wait_until_it_answers(ready);
        node
    }

    /// Starts the process in `dir` without waiting for an answer, for tests of starts that fail.
    pub fn launch(self, dir: TempDir) -> Node {
        let socket = dir.path().join("rpc.sock");
        let log = dir.path().join(format!("{}.log", self.name));
        let mut command = match self.namespace {
            Some(namespace) => namespace.command("setpriv"),
            None => Command::new("setpriv"),
        };
        // A runner that is killed drops nothing: the kernel then ends the node.
        command.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_lockstep"), "serve", "--rpc-socket"]);
        command.arg(&socket).args(["--cores", self.cores, "--idle", self.idle]);
        command.args(["--memory", &self.memory_mib.to_string()]).args(&self.arguments);
        if let Some(config) = self.config {
            command.arg("--config").arg(config);
        }
        let output = File::create(&log).expect("a log file");
        let errors = output.try_clone().expect("a second handle of the log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("starting a node by setpriv of util-linux: {e}"));
        Node { name: self.name.to_owned(), child, socket, log, dir, ended: None }
    }
}

/// A node that runs until it is stopped, killed or dropped. When its test fails, the end of its log is printed.
pub struct Node {
    name: String,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    dir: TempDir,
    ended: Option<ExitStatus>,
}

impl Node {
    /// One reactor on core 0, adaptive idling, 256 MiB, no configuration.
    pub fn builder(name: &str) -> NodeBuilder<'_> {
        NodeBuilder {
            name,
            cores: "0",
            idle: "adaptive",
            memory_mib: 256,
            config: None,
            namespace: None,
            arguments: Vec::new(),
        }
    }

    pub fn start(name: &str) -> Node {
        Node::builder(name).start()
    }

    fn wait_until_it_answers(&mut self, ready: &str) {
        let end = Instant::now() + START_LIMIT;
        loop {
            if let Ok(mut rpc) = Rpc::connect(&self.socket)
                && rpc.call(ready, Value::Null).is_ok()
            {
                return;
            }
            if let Some(status) = self.child.try_wait().expect("the state of one's own child") {
                self.ended = Some(status);
                panic!("node {} ended at its start ({status}):\n{}", self.name, self.log());
            }
            assert!(Instant::now() < end, "node {} does not answer:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A folder of this node's own, removed with it: files for its disks go here.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// A connection of one's own to the node.
    pub fn connect(&self) -> Rpc {
        Rpc::connect(&self.socket).unwrap_or_else(|e| panic!("RPC socket of node {}: {e}", self.name))
    }

    /// A call that must succeed.
    pub fn rpc(&self, method: &str, params: Value) -> Value {
        let shown = params.to_string();
        self.try_rpc(method, params)
            .unwrap_or_else(|e| panic!("node {}: {method} {shown}: {} ({})", self.name, e.message, e.code))
    }

    pub fn try_rpc(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        self.connect().call(method, params)
    }

    /// Sends a signal by name (`STOP`, `CONT`, `TERM`) to this process alone.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -s {name} of node {}", self.name);
    }

    /// kill -9, as a host that loses power.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// SIGTERM, and the exit status; a panic when the node does not end in order in time.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_end(STOP_LIMIT)
    }

    pub fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the state of one's own child") {
                self.ended = Some(status);
                return status;
            }
            assert!(Instant::now() < end, "node {} does not end:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the state of one's own child");
        }
        self.ended.is_none()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(60);
            eprintln!(
                "--- log of node {} (last {} lines)\n{}",
                self.name,
                lines.len() - from,
                lines[from..].join("\n")
            );
        }
    }
}
