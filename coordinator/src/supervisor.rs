//! Worker processes of this machine: started in groups of their own, read line by line, reaped, and ended by force on order.
//!
//! It never decides when: that is the cluster's. A signal from the terminal reaches the coordinator only, because every
//! worker leads its own process group; should the coordinator itself be killed, the workers notice by their broken streams.

use crate::lines::{Level, Splitter, level, message, written_level};
use coordinator_core::{ExitStatus, Force, WorkerId};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// After the end of a process, how long its pipes are still read: a grandchild may hold them open.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Name for the run; of a recipe for many, what all their names have in common.
    pub worker: WorkerId,
    /// GPUs of this machine.
    pub gpus: Vec<u32>,
    /// The worker binary.
    pub program: PathBuf,
    /// Its arguments. Never a secret: they are public on a machine.
    pub arguments: Vec<String>,
    /// Its environment, on top of the coordinator's.
    pub environment: Vec<(String, String)>,
}

impl Recipe {
    /// The recipe for the worker that is the `number`th to be started, for place `slot` on this machine. Where there are GPUs,
    /// each place has its own, in turn if there are more places than GPUs.
    #[must_use]
    pub fn for_place(&self, slot: u32, number: u32) -> Self {
        let mut recipe = self.clone();
        recipe.worker = WorkerId(format!("w{slot}-{}{number}", self.worker));
        recipe.environment.push(("GANFLEET_WORKER_ID".to_owned(), recipe.worker.to_string()));
        recipe.environment.push(("GANFLEET_RANK_HINT".to_owned(), slot.to_string()));
        if !self.gpus.is_empty() {
            let gpu = self.gpus[slot as usize % self.gpus.len()];
            recipe.environment.push(("CUDA_VISIBLE_DEVICES".to_owned(), gpu.to_string()));
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

/// The processes that were started and are not known to be gone.
#[derive(Debug)]
pub struct Supervisor {
    alive: BTreeMap<WorkerId, Pid>,
    events: mpsc::Sender<ChildEvent>,
}

impl Supervisor {
    /// A supervisor without processes, and where their events come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<ChildEvent>) {
        let (events, receiver) = mpsc::channel(1024);
        (Self { alive: BTreeMap::new(), events }, receiver)
    }

    /// Starts a worker and returns its process id.
    ///
    /// # Errors
    /// The binary cannot be started.
    pub fn spawn(&mut self, recipe: &Recipe) -> std::io::Result<u32> {
        let mut child = Command::new(&recipe.program)
            .args(&recipe.arguments)
            .envs(recipe.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let gone = || std::io::Error::other("the process was gone at once");
        let pid = child.id().ok_or_else(gone)?;
        self.alive.insert(recipe.worker.clone(), Pid::from_raw(pid.cast_signed()));
        let outputs = (child.stdout.take(), child.stderr.take());
        tokio::spawn(watch(child, outputs.0, outputs.1, recipe.worker.clone(), self.events.clone()));
        Ok(pid)
    }

    /// Sends a signal to a worker and whatever it started.
    pub fn kill(&self, worker: &WorkerId, force: Force) {
        let signal = match force {
            Force::Term => Signal::SIGTERM,
            Force::Kill => Signal::SIGKILL,
        };
        self.signal(worker, signal);
    }

    /// Sends a signal to a worker and to what it started; one that is gone hears nothing.
    pub fn signal(&self, worker: &WorkerId, signal: Signal) {
        let Some(&group) = self.alive.get(worker) else { return };
        tracing::debug!("{signal} to worker {worker}, process group {group}");
        if let Err(error) = killpg(group, signal) {
            tracing::debug!("{signal} to worker {worker} had no effect: {error}");
        }
    }

    /// Takes note that a worker is gone: its process id may be used by another from now on.
    pub fn forget(&mut self, worker: &WorkerId) {
        self.alive.remove(worker);
    }

    /// Kills whatever is left. For the way out of an error.
    pub fn kill_all(&mut self) {
        for worker in std::mem::take(&mut self.alive).into_keys().collect::<Vec<_>>() {
            self.kill(&worker, Force::Kill);
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Reads a process to its end and reports it.
async fn watch(
    mut child: Child,
    stdout: Option<impl AsyncRead + Unpin + Send + 'static>,
    stderr: Option<impl AsyncRead + Unpin + Send + 'static>,
    worker: WorkerId,
    events: mpsc::Sender<ChildEvent>,
) {
    let mut readers = tokio::task::JoinSet::new();
    if let Some(stdout) = stdout {
        readers.spawn(read(stdout, worker.clone(), events.clone()));
    }
    if let Some(stderr) = stderr {
        readers.spawn(read(stderr, worker.clone(), events.clone()));
    }
    let status = match child.wait().await {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, signal) => ExitStatus::Signal(signal.unwrap_or_default()),
        },
        Err(error) => {
            tracing::warn!("the end of worker {worker} could not be learned: {error}");
            ExitStatus::Code(1)
        }
    };
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

/// What a stream ended with.
#[derive(Debug, Default)]
struct LastWords {
    error: Option<String>,
    line: Option<String>,
}

impl LastWords {
    fn merge(&mut self, other: Self) {
        self.error = other.error.or(self.error.take());
        self.line = other.line.or(self.line.take());
    }
}

async fn read(mut stream: impl AsyncRead + Unpin, worker: WorkerId, events: mpsc::Sender<ChildEvent>) -> LastWords {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; 8 << 10];
    let mut last = LastWords::default();
    // a panic names its place first and its message on the next line
    let mut panics = VecDeque::new();
    loop {
        let (lines, ended) = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => (splitter.finish().into_iter().collect(), true),
            Ok(count) => (splitter.push(&buffer[..count]), false),
        };
        for line in lines {
            let level = level(&line);
            if let Some(place) = panics.pop_front() {
                last.error = Some(format!("{place} {}", message(&line)));
            } else if line.contains("panicked at") {
                panics.push_back(line.clone());
                last.error = Some(line.clone());
            } else if level == Level::Error {
                last.error = Some(message(&line));
            }
            if written_level(&line).is_none() {
                last.line = Some(line.clone());
            }
            if events.send(ChildEvent::Line { worker: worker.clone(), level, line }).await.is_err() {
                return last;
            }
        }
        if ended {
            return last;
        }
    }
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
        }
    }

    async fn run(script: &str, act: impl FnOnce(&Supervisor)) -> (Vec<(Level, String)>, ExitStatus, Option<String>) {
        let (mut supervisor, mut events) = Supervisor::new();
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
        let (lines, status, _) = run(script, |supervisor| supervisor.kill(&WorkerId("w0".into()), Force::Term)).await;
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
}
