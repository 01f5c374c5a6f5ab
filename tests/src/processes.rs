//! Processes as the system shows them: who of a test's machine is running, how one ended, and signals to one.
//!
//! Every process that a test starts carries the machine's mark in its environment, and hands it on to whatever it starts.
//! So they are found also when whoever started them is dead.

use crate::until;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::sync::Once;
use std::time::Duration;

/// Environment variable that carries the mark.
pub const MARK: &str = "GANFLEET_TEST_MACHINE";

/// A process that is running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Program and arguments.
    pub command: String,
}

impl Process {
    /// Whether it is a worker that trains, or is about to.
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.command.contains("worker join ")
    }
}

/// Everything that runs with `mark`. A process that has ended and waits for its parent does not run.
///
/// # Panics
/// When the system has no `/proc`.
#[must_use]
pub fn marked(mark: &str) -> Vec<Process> {
    let wanted = format!("{MARK}={mark}");
    let entries = std::fs::read_dir("/proc").expect("the system has /proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let process = |pid: i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let ours = environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes());
        let arguments = ours.then(|| std::fs::read(format!("/proc/{pid}/cmdline")))?.ok()?;
        Some(Process { pid, command: String::from_utf8_lossy(&arguments).replace('\0', " ") })
    };
    pids.filter_map(process).collect()
}

/// Sends a signal to a process that the test has started, itself or through another.
///
/// # Panics
/// When the system refuses. That the process is gone is no refusal.
pub fn signal(pid: i32, signal: Signal) {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("{signal} to process {pid}: {error}"),
    }
}

/// Makes this process the parent of those whose own parent dies, so that it learns how they end.
///
/// # Panics
/// When the system refuses.
pub fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| prctl::set_child_subreaper(true).expect("Linux lets a process adopt orphans"));
}

/// How an orphan ended, after [`adopt_orphans`]: its exit code, or the number of the signal below 0.
///
/// # Panics
/// When it does not end `within` this time.
#[must_use]
pub fn end_of_orphan(pid: i32, within: Duration) -> i32 {
    until(within, &format!("the end of process {pid}"), || {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(-(signal as i32)),
            // its own parent may have died a moment ago, and it is not handed over yet
            Ok(_) | Err(Errno::ECHILD | Errno::EINTR) => None,
            Err(error) => panic!("the end of process {pid} cannot be learned: {error}"),
        }
    })
}
