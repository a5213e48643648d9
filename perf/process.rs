//! Programs under measurement, started by a shell line, each in a process group of its own.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{Failure, cpu};

/// How long a program may take to end when asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A running shell line. Dropping it ends its whole group.
pub struct Program {
    child: Child,
    line: String,
}

impl Program {
    pub fn start(line: &str) -> Result<Program, Failure> {
        let mut command = Command::new("sh");
        command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(|e| format!("sh -c '{line}': {e}"))?;
        Ok(Program { child, line: line.to_string() })
    }

    /// The processes that the line has started and that still run.
    pub fn pids(&self) -> Vec<u32> {
        cpu::group(self.child.id())
    }

    /// Fails once the line itself has ended: a target that could not start.
    pub fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait()? {
            Some(status) => Err(format!("`{}` ended: {status}", self.line).into()),
            None => Ok(()),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            let _ = self.child.try_wait();
            if self.pids().is_empty() {
                break;
            }
            if Instant::now() > deadline {
                self.signal(Signal::KILL);
            }
            std::thread::sleep(PAUSE);
        }
        let _ = self.child.wait();
    }
}
