//! Worker processes of this machine: started in groups of their own, read line by line, watched to their end, and ended by
//! force on order. Also those that another coordinator had started.
//!
//! It never decides when: that is its owner's. A signal from the terminal reaches the owner only, because every
//! worker leads its own process group. What a worker writes goes into a file, from which it is read: so nothing is lost
//! while no coordinator lives, and a successor reads on where the last one stopped.

use crate::lines::Level;
use crate::outputs::{Files, LastWords, marked, read, read_file};
use common::exit::ExitStatus;
use common::ids::WorkerId;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// After the end of a process, how long its pipes are still read: a grandchild may hold them open.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Between two looks at a process that cannot be waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Environment variable with a worker's name: by it a process is recognised.
const WORKER_ID: &str = "GANFLEET_WORKER_ID";

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Name for the run; of a recipe for many, what all their names have in common.
    pub worker: WorkerId,
    /// GPUs of this machine, as `CUDA_VISIBLE_DEVICES` names them.
    pub gpus: Vec<String>,
    /// The worker binary.
    pub program: PathBuf,
    /// Its arguments. Never a secret: they are public on a machine.
    pub arguments: Vec<String>,
    /// Its environment, on top of the owner's.
    pub environment: Vec<(String, String)>,
    /// Whether its standard input stays open while the owner lives, so that its end is the owner's.
    pub leash: bool,
}

impl Recipe {
    /// The recipe for the worker that is the `number`th to be started, for place `slot` on this machine. Where there are GPUs,
    /// each place has its own, in turn if there are more places than GPUs.
    #[must_use]
    pub fn for_place(&self, slot: u32, number: u32) -> Self {
        let mut recipe = self.clone();
        recipe.worker = WorkerId(format!("w{slot}-{}{number}", self.worker));
        recipe.environment.push((WORKER_ID.to_owned(), recipe.worker.to_string()));
        recipe.environment.push(("GANFLEET_RANK_HINT".to_owned(), slot.to_string()));
        if !self.gpus.is_empty() {
            let gpu = self.gpus[slot as usize % self.gpus.len()].clone();
            recipe.environment.push(("CUDA_VISIBLE_DEVICES".to_owned(), gpu));
        }
        recipe
    }
}

/// What a worker process did.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildEvent {
    /// It wrote a line.
    Line {
        /// Whose.
        worker: WorkerId,
        /// How much it matters.
        level: Level,
        /// Without control characters.
        line: String,
        /// Where it ends in the worker's file; say so to [`Supervisor::kept`] once it is kept elsewhere.
        end: u64,
    },
    /// It is gone.
    Exited {
        /// Which.
        worker: WorkerId,
        /// How.
        status: ExitStatus,
        /// Its last error, or its last line that no logger wrote.
        last_error: Option<String>,
    },
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    /// Open while this process lives.
    _leash: Option<ChildStdin>,
    /// Another coordinator had started it: its number may be another's as soon as it ends.
    adopted: bool,
    /// How far its lines are kept.
    mark: Option<File>,
}

/// The processes that were started or adopted and are not known to be gone.
#[derive(Debug)]
pub struct Supervisor {
    folder: PathBuf,
    alive: BTreeMap<WorkerId, Process>,
    events: mpsc::Sender<ChildEvent>,
}

impl Supervisor {
    /// A supervisor without processes, and where their events come out. What workers write lies in `folder` meanwhile.
    #[must_use]
    pub fn new(folder: &Path) -> (Self, mpsc::Receiver<ChildEvent>) {
        let (events, receiver) = mpsc::channel(1024);
        (Self { folder: folder.to_owned(), alive: BTreeMap::new(), events }, receiver)
    }

    /// Starts a worker and returns its process id.
    ///
    /// # Errors
    /// The binary cannot be started.
    pub fn spawn(&mut self, recipe: &Recipe) -> std::io::Result<u32> {
        let files = Files::of(&self.folder, &recipe.worker);
        let file = files.create().and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = match file {
            Ok((a, b)) => (Stdio::from(a), Stdio::from(b)),
            Err(error) => {
                tracing::warn!("what worker {} writes will not outlive this coordinator: {error}", recipe.worker);
                (Stdio::piped(), Stdio::piped())
            }
        };
        let mut child = Command::new(&recipe.program)
            .args(&recipe.arguments)
            .envs(recipe.environment.iter().map(|(key, value)| (key, value)))
            .stdin(if recipe.leash { Stdio::piped() } else { Stdio::null() })
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()?;
        let gone = || std::io::Error::other("the process was gone at once");
        let pid = child.id().ok_or_else(gone)?;
        let pid_of_group = Pid::from_raw(pid.cast_signed());
        let process =
            Process { pid: pid_of_group, _leash: child.stdin.take(), adopted: false, mark: files.mark().ok() };
        self.alive.insert(recipe.worker.clone(), process);
        let (ended, has_ended) = watch::channel(false);
        let mut readers = JoinSet::new();
        let (worker, events) = (&recipe.worker, &self.events);
        match (child.stdout.take(), child.stderr.take()) {
            (None, None) => _ = readers.spawn(read_file(files.text, 0, has_ended, worker.clone(), events.clone())),
            (stdout, stderr) => {
                readers.spawn(read(stdout, worker.clone(), events.clone()));
                readers.spawn(read(stderr, worker.clone(), events.clone()));
            }
        }
        tokio::spawn(watch_child(child, readers, ended, worker.clone(), events.clone()));
        Ok(pid)
    }

    /// Watches a worker that another coordinator of this machine has started, and reads what it wrote since. One that is gone
    /// already is told of at once.
    pub fn adopt(&mut self, worker: &WorkerId, pid: u32) {
        let files = Files::of(&self.folder, worker);
        let mark = files.mark().ok();
        let begin = mark.as_ref().map_or(0, marked);
        let pid = Pid::from_raw(pid.cast_signed());
        self.alive.insert(worker.clone(), Process { pid, _leash: None, adopted: true, mark });
        let (ended, has_ended) = watch::channel(false);
        let mut readers = JoinSet::new();
        readers.spawn(read_file(files.text, begin, has_ended, worker.clone(), self.events.clone()));
        let (worker, events) = (worker.clone(), self.events.clone());
        tokio::spawn(async move {
            until_gone(&worker, pid).await;
            report_end(readers, &ended, worker, ExitStatus::Unknown, events).await;
        });
    }

    /// The lines of a worker are kept elsewhere up to `end`: a successor reads on from there.
    pub fn kept(&self, worker: &WorkerId, end: u64) {
        if let Some(Process { mark: Some(mark), .. }) = self.alive.get(worker)
            && let Err(error) = mark.write_all_at(format!("{end:020}").as_bytes(), 0)
        {
            tracing::debug!("where the lines of worker {worker} end could not be marked: {error}");
        }
    }

    /// Sends a signal to a worker and to what it started; one that is gone hears nothing.
    pub fn signal(&self, worker: &WorkerId, signal: Signal) {
        let Some(process) = self.alive.get(worker) else { return };
        if process.adopted && !is_worker(worker, process.pid) {
            return;
        }
        let group = process.pid;
        tracing::debug!("{signal} to worker {worker}, process group {group}");
        if let Err(error) = killpg(group, signal) {
            tracing::debug!("{signal} to worker {worker} had no effect: {error}");
        }
    }

    /// Takes note that a worker is gone: its process id may be used by another from now on, and all that it wrote was read.
    pub fn forget(&mut self, worker: &WorkerId) {
        if self.alive.remove(worker).is_some() {
            Files::of(&self.folder, worker).remove();
        }
    }

    /// Lets everybody live: they are another coordinator's from now on.
    pub fn release(&mut self) {
        self.alive.clear();
    }

    /// Kills whatever is left. For the way out of an error.
    pub fn kill_all(&mut self) {
        for worker in self.alive.keys() {
            self.signal(worker, Signal::SIGKILL);
        }
        self.alive.clear();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Whether `pid` is the process of this worker, and not another's that got its number since.
#[must_use]
pub fn is_worker(worker: &WorkerId, pid: Pid) -> bool {
    // a process that has ended has no environment
    let variable = format!("{WORKER_ID}={worker}");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
}

/// Returns when a process that is nobody's child here has ended.
async fn until_gone(worker: &WorkerId, pid: Pid) {
    let handle = rustix::process::Pid::from_raw(pid.as_raw()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // opened before the look: if this is the worker, then so is what was opened
    if !is_worker(worker, pid) {
        return;
    }
    if let Some(handle) = handle {
        let (gone, is_gone) = oneshot::channel::<()>();
        let wait = move || {
            // readable once the process has ended; an error leaves the rest to the looks below
            while poll(&mut [PollFd::new(&handle, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
            drop(gone);
        };
        if std::thread::Builder::new().name("watch".into()).spawn(wait).is_ok() {
            // the other end is only ever dropped
            let _ = is_gone.await;
        }
    }
    while is_worker(worker, pid) {
        sleep(LOOK).await;
    }
}

/// How a child that was waited for ended.
#[must_use]
pub fn ended(status: std::process::ExitStatus) -> ExitStatus {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, signal) => ExitStatus::Signal(signal.unwrap_or_default()),
    }
}

/// Waits for a child and reports its end.
async fn watch_child(
    mut child: Child,
    readers: JoinSet<LastWords>,
    over: watch::Sender<bool>,
    worker: WorkerId,
    events: mpsc::Sender<ChildEvent>,
) {
    let status = match child.wait().await {
        Ok(status) => ended(status),
        Err(error) => {
            tracing::warn!("the end of worker {worker} could not be learned: {error}");
            ExitStatus::Code(1)
        }
    };
    report_end(readers, &over, worker, status, events).await;
}

async fn report_end(
    mut readers: JoinSet<LastWords>,
    ended: &watch::Sender<bool>,
    worker: WorkerId,
    status: ExitStatus,
    events: mpsc::Sender<ChildEvent>,
) {
    ended.send_replace(true);
    let mut last = LastWords::default();
    let collect = async {
        while let Some(said) = readers.join_next().await {
            last.merge(said.unwrap_or_default());
        }
    };
    if timeout(LAST_WORDS, collect).await.is_err() {
        tracing::debug!("something that worker {worker} started still holds its output");
    }
    let last_error = last.error.or(last.line);
    // the driver may have ended meanwhile
    let _ = events.send(ChildEvent::Exited { worker, status, last_error }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Recipe {
        Recipe {
            worker: WorkerId("w0".into()),
            gpus: Vec::new(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("GREETING".into(), "hello".into())],
            leash: false,
        }
    }

    async fn run(script: &str, act: impl FnOnce(&Supervisor)) -> (Vec<(Level, String)>, ExitStatus, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let (mut supervisor, mut events) = Supervisor::new(folder.path());
        supervisor.spawn(&shell(script)).unwrap();
        let mut act = Some(act);
        let mut lines = Vec::new();
        loop {
            match timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap() {
                ChildEvent::Line { level, line, .. } => {
                    lines.push((level, line));
                    if let Some(act) = act.take() {
                        act(&supervisor);
                    }
                }
                ChildEvent::Exited { status, last_error, .. } => return (lines, status, last_error),
            }
        }
    }

    #[tokio::test]
    async fn lines_code_and_last_error_are_reported() {
        let script = "echo $GREETING; echo 'ERROR worker: out of luck' >&2; echo 'INFO bye' >&2; exit 9";
        let (mut lines, status, last_error) = run(script, |_| {}).await;
        lines.sort();
        let expected = [
            (Level::Info, "INFO bye".to_owned()),
            (Level::Info, "hello".to_owned()),
            (Level::Error, "ERROR worker: out of luck".to_owned()),
        ];
        assert_eq!(lines, expected);
        assert_eq!((status, last_error.as_deref()), (ExitStatus::Code(9), Some("worker: out of luck")));
    }

    #[tokio::test]
    async fn a_panic_is_told_with_its_message() {
        let script = "printf \"thread 'main' panicked at x.rs:1:\\nno way\\nnote: more\\n\" >&2; exit 101";
        let (_, _, last_error) = run(script, |_| {}).await;
        assert_eq!(last_error.as_deref(), Some("thread 'main' panicked at x.rs:1: no way"));
    }

    #[tokio::test]
    async fn a_kill_reaches_what_the_worker_started_too() {
        let script = "sleep 1000 & echo $!; wait";
        let (lines, status, _) =
            run(script, |supervisor| supervisor.signal(&WorkerId("w0".into()), Signal::SIGTERM)).await;
        assert_eq!(status, ExitStatus::Signal(15));
        let sleeper = format!("/proc/{}/stat", lines[0].1);
        let ended = || std::fs::read_to_string(&sleeper).map_or(true, |stat| stat.contains(") Z "));
        for _ in 0..2000 {
            if ended() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{sleeper} lives on");
    }

    #[tokio::test]
    async fn on_a_leash_a_child_sees_the_end_of_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (mut supervisor, mut events) = Supervisor::new(folder.path());
        let recipe = Recipe { leash: true, ..shell("echo here; cat; echo alone; exit 4") };
        supervisor.spawn(&recipe).unwrap();
        let mut seen = Vec::new();
        loop {
            match timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap() {
                ChildEvent::Line { line, .. } => {
                    seen.push(line);
                    // the owner is gone, as far as its children can tell
                    supervisor.release();
                }
                ChildEvent::Exited { status, .. } => {
                    assert_eq!(status, ExitStatus::Code(4));
                    break;
                }
            }
        }
        assert_eq!(seen, ["here", "alone"]);
    }

    #[tokio::test]
    async fn a_successor_reads_on_and_sees_the_end_of_what_it_adopts() {
        let folder = tempfile::tempdir().unwrap();
        let worker = WorkerId("w0".into());
        let script = "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two; echo 'ERROR worker: three' >&2";
        let mut recipe = shell(&format!("cd {}; {script}", folder.path().display()));
        recipe.environment.push((WORKER_ID.into(), "w0".into()));
        let (mut first, mut events) = Supervisor::new(folder.path());
        let pid = first.spawn(&recipe).unwrap();
        let Some(ChildEvent::Line { line, end, .. }) = timeout(Duration::from_secs(20), events.recv()).await.unwrap()
        else {
            panic!("no line")
        };
        first.kept(&worker, end);
        assert_eq!((line.as_str(), end), ("one", 4));
        first.release();
        drop(first);

        let (mut second, mut events) = Supervisor::new(folder.path());
        second.adopt(&worker, pid);
        assert!(is_worker(&worker, Pid::from_raw(pid.cast_signed())));
        assert!(!is_worker(&WorkerId("w".into()), Pid::from_raw(pid.cast_signed())));
        std::fs::write(folder.path().join("go"), "").unwrap();
        let mut lines = Vec::new();
        loop {
            match timeout(Duration::from_secs(20), events.recv()).await.unwrap().unwrap() {
                ChildEvent::Line { line, .. } => lines.push(line),
                ChildEvent::Exited { status, last_error, .. } => {
                    assert_eq!((status, last_error.as_deref()), (ExitStatus::Unknown, Some("worker: three")));
                    break;
                }
            }
        }
        assert_eq!(lines, ["two", "ERROR worker: three"]);
        // a number that is another's now is not killed
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        second.adopt(&WorkerId("w7".into()), other.id());
        second.signal(&WorkerId("w7".into()), Signal::SIGKILL);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
