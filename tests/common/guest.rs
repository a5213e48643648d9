//! A Linux kernel as the initiator: a small QEMU machine whose second serial line is a shell for the test.

use super::netns::Namespace;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Emulated and beside other load a boot takes ten seconds; only a guest that hangs needs longer than this.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

fn tool(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest").join(name);
    let output = Command::new(&path).stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(output.status.success(), "{} failed", path.display());
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub struct GuestBuilder<'a> {
    memory_mib: u32,
    cpus: u32,
    host_tree: bool,
    namespace: Option<&'a Namespace>,
    nvme_disk: Option<&'a Path>,
    kernel_options: &'a str,
}

impl<'a> GuestBuilder<'a> {
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// The host's root, read-only at /host: `fio` in a script then runs the host's.
    pub fn host_tree(mut self) -> Self {
        self.host_tree = true;
        self
    }

    pub fn namespace(mut self, namespace: &'a Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// An emulated NVMe disk over this file; its driver is the script's to load.
    pub fn nvme_disk(mut self, file: &'a Path) -> Self {
        self.nvme_disk = Some(file);
        self
    }

    /// Further options for the kernel.
    pub fn kernel_options(mut self, options: &'a str) -> Self {
        self.kernel_options = options;
        self
    }

    pub fn boot(self) -> Guest {
        let image = PathBuf::from(tool("image"));
        let accelerator = tool("accel");
        let dir = tempfile::Builder::new().prefix("lockstep-guest-").tempdir().expect("a temporary folder");
        let console = dir.path().join("console");
        let errors = std::fs::File::create(dir.path().join("qemu.log")).expect("a log file");
        let mut command = match self.namespace {
            Some(namespace) => namespace.command("setpriv"),
            None => Command::new("setpriv"),
        };
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ]);
        command.args(["-accel", &accelerator, "-cpu", "max", "-machine", "q35"]);
        command.args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        command.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
        command.args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]);
        let mut options = String::from(
            "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on nvme_core.multipath=Y",
        );
        options.push(' ');
        options.push_str(self.kernel_options);
        if let Some(file) = self.nvme_disk {
            let drive = format!("if=none,id=d0,format=raw,cache=unsafe,file={}", file.display());
            command.args(["-drive", &drive, "-device", "nvme,serial=disk0,drive=d0,max_ioqpairs=4"]);
        }
        if self.host_tree {
            command.args([
                "-virtfs",
                "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            ]);
            options.push_str(" lockstep.share");
        }
        command.arg("-kernel").arg(image.join("vmlinux")).arg("-initrd").arg(image.join("initrd.cpio"));
        command.args(["-append", &options]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("starting QEMU: {e}"));
        let input = child.stdin.take().expect("a piped input");
        let output = child.stdout.take().expect("a piped output");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut guest = Guest { child, input, lines, console, dir, recent: VecDeque::new() };
        guest.lines_until("@@ready", Instant::now() + BOOT_LIMIT);
        guest
    }
}

/// A running guest. A script runs in a shell that knows `tests/guest/lib.sh`.
pub struct Guest {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
    dir: TempDir,
    recent: VecDeque<String>,
}

impl Guest {
    /// One CPU, 384 MiB, user-mode network: 10.0.2.2 is the loopback of the namespace the guest runs in.
    pub fn builder<'a>() -> GuestBuilder<'a> {
        GuestBuilder {
            memory_mib: 384,
            cpus: 1,
            host_tree: false,
            namespace: None,
            nvme_disk: None,
            kernel_options: "",
        }
    }

    /// Runs a script that must succeed; its output.
    pub fn run(&mut self, script: &str) -> String {
        self.start(script);
        self.finish(SCRIPT_LIMIT)
    }

    /// Runs a script; its exit status and output.
    pub fn try_run(&mut self, script: &str) -> (i32, String) {
        self.start(script);
        self.wait(SCRIPT_LIMIT)
    }

    /// Starts a script and returns, so that the test can act meanwhile.
    pub fn start(&mut self, script: &str) {
        let sent = self.input.write_all(format!("{}\n@@run\n", script.trim_end()).as_bytes());
        sent.and_then(|()| self.input.flush()).unwrap_or_else(|e| panic!("the guest takes no script: {e}"));
    }

    /// The output of the started script, which must succeed.
    pub fn finish(&mut self, limit: Duration) -> String {
        let (status, output) = self.wait(limit);
        assert_eq!(status, 0, "a script in the guest failed:\n{output}");
        output
    }

    pub fn wait(&mut self, limit: Duration) -> (i32, String) {
        let mut lines = self.lines_until("@@status ", Instant::now() + limit);
        let status = lines.pop().and_then(|l| l.strip_prefix("@@status ").and_then(|n| n.parse().ok()));
        (status.expect("a status line carries a number"), lines.join("\n").trim_end().to_owned())
    }

    /// Sends a signal by name to the machine: `STOP` makes it fall silent without a word to its peers.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -s {name} of the guest");
    }

    fn lines_until(&mut self, prefix: &str, end: Instant) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.recent.push_back(line.clone());
                    if self.recent.len() > 60 {
                        self.recent.pop_front();
                    }
                    let last = line.starts_with(prefix);
                    seen.push(line);
                    if last {
                        return seen;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the guest is silent; it said:\n{}", seen.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the guest ended; it said:\n{}", seen.join("\n"))
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let console =
                String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned();
            let qemu = std::fs::read_to_string(self.dir.path().join("qemu.log")).unwrap_or_default();
            let lines: Vec<&str> = console.lines().collect();
            eprintln!("--- the guest's last lines\n{}", self.recent.make_contiguous().join("\n"));
            eprintln!("--- its console\n{}\n{qemu}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
