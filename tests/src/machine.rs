//! A machine of its own for a test: a folder with experiment, images, store, state and cache, and the processes that are
//! started in it. They see nothing of the developer's environment.

use crate::experiment::{Experiment, NAME};
use crate::hosts::Hosts;
use crate::launched::Launched;
use crate::processes::{self, Process};
use crate::{PATIENCE, binaries, images, try_until, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A machine. What still runs in it is killed when it goes.
#[derive(Debug)]
pub struct Machine {
    folder: PathBuf,
    /// Deletes the folder, unless it is to stay.
    _temporary: Option<tempfile::TempDir>,
    mark: String,
    environment: Vec<(String, String)>,
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; below 0 the signal that ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// Standard output as JSON.
    ///
    /// # Panics
    /// When the command failed or printed something else.
    #[must_use]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Both outputs.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Machine {
    /// A machine in a temporary folder, with 24 images of 16 pixels in `images`.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let machine = Self::at(temporary.path().to_owned(), Some(temporary));
        images::folder(&machine.path("images"), 24, 16);
        machine
    }

    /// A machine in `folder`, which is emptied first and stays, for what several tests share.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn kept(folder: PathBuf) -> Self {
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("what an earlier test left can be removed");
        }
        std::fs::create_dir_all(&folder).expect("a folder");
        let machine = Self::at(folder, None);
        images::folder(&machine.path("images"), 24, 16);
        machine
    }

    fn at(folder: PathBuf, temporary: Option<tempfile::TempDir>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Self { folder, _temporary: temporary, mark, environment: Vec::new() }
    }

    /// The same with one more environment variable for all its processes.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A path in its folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The tiny run's folder in the default store.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.path("runs").join(NAME)
    }

    /// Writes a file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Writes `experiment` as `toy.toml`.
    pub fn experiment(&self, experiment: &Experiment) {
        self.write("toy.toml", experiment.text());
    }

    /// The coordinator with `arguments`, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.program(binaries::coordinator(), arguments)
    }

    /// A worker with `arguments`, not started yet: one that nobody launched.
    pub fn worker(&self, arguments: &[&str]) -> Command {
        self.program(&binaries::coordinator().with_file_name("worker"), arguments)
    }

    fn program(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env("HOME", self.path("home"))
            .env("PATH", "/usr/bin:/bin")
            // also where there are GPUs: what is tested here runs on CPUs
            .env("CUDA_VISIBLE_DEVICES", "")
            .env("RUST_BACKTRACE", "1")
            .env(processes::MARK, &self.mark)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the coordinator with `arguments` to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    pub fn ask(&self, arguments: &[&str]) -> Answer {
        let mut child = Watched::start(&mut self.command(arguments));
        let stdout = child.stdout();
        let code = child.end(PATIENCE);
        Answer { code, stdout: stdout.join().expect("a reader"), stderr: child.stderr() }
    }

    /// Runs another program, `line[0]`, to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    pub fn run_tool(&self, line: &[&str]) -> Answer {
        let mut command = self.program(Path::new(line[0]), &line[1..]);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        // one that goes on in the background may keep what it was given
        let output = tempfile::NamedTempFile::new_in(&self.folder).expect("a file");
        let errors = tempfile::NamedTempFile::new_in(&self.folder).expect("a file");
        command.stdout(output.reopen().expect("a file")).stderr(errors.reopen().expect("a file"));
        let code = Watched::start(&mut command).end(PATIENCE);
        let text = |file: &Path| std::fs::read_to_string(file).unwrap_or_default();
        Answer { code, stdout: text(output.path()), stderr: text(errors.path()) }
    }

    /// Starts `coordinator launch toy.toml --json` with more arguments.
    pub fn launch(&self, arguments: &[&str]) -> Launched<'_> {
        Launched::start(self, &mut self.command(&[&["launch", "toy.toml", "--json"], arguments].concat()))
    }

    /// The same on one of `hosts`.
    pub fn launch_on(&self, hosts: &Hosts, host: usize, arguments: &[&str]) -> Launched<'_> {
        let command = self.command(&[&["launch", "toy.toml", "--json"], arguments].concat());
        Launched::start(self, &mut hosts.on(host, &command))
    }

    /// Starts `coordinator resume <url> --json` with more arguments.
    pub fn resume(&self, url: &str, arguments: &[&str]) -> Launched<'_> {
        Launched::start(self, &mut self.command(&[&["resume", url, "--json"], arguments].concat()))
    }

    /// What runs in it now.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes::marked(&self.mark)
    }

    /// The workers that run now.
    #[must_use]
    pub fn workers(&self) -> Vec<i32> {
        self.processes().iter().filter(|process| process.is_worker()).map(|process| process.pid).collect()
    }

    /// Waits until nothing runs in it.
    ///
    /// # Panics
    /// When something does after `within`.
    pub fn assert_nothing_runs(&self, within: Duration) {
        let nobody = try_until(within, || self.processes().is_empty().then_some(()));
        assert!(nobody.is_some(), "after {within:?} these still run: {:#?}", self.processes());
    }

    /// Checkpoints of the tiny run, oldest first, as files.
    ///
    /// # Panics
    /// When the store's folder holds something odd.
    #[must_use]
    pub fn manifests(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.run().join("manifests")) else { return Vec::new() };
        let paths = entries.map(|entry| entry.expect("an entry").path());
        // a put that was killed may leave its unfinished file under another name
        let mut all: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
        all.sort();
        all
    }

    /// Images seen at the newest checkpoint of the tiny run, as its manifest's name says; none without a checkpoint.
    #[must_use]
    pub fn newest_images(&self) -> Option<u64> {
        let newest = self.manifests().pop()?;
        newest.file_name()?.to_str()?.split('-').next()?.parse().ok()
    }

    /// `coordinator checkpoints show URL --json`.
    ///
    /// # Panics
    /// When there is no such checkpoint.
    #[must_use]
    pub fn show(&self, url: &str) -> Value {
        self.ask(&["checkpoints", "show", url, "--json"]).json()
    }

    /// The state hash of the newest checkpoint of the run at `url`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn state_hash(&self, url: &str) -> String {
        self.show(url)["state_hash"].as_str().expect("a checkpoint has a state hash").to_owned()
    }

    /// Checks that every checkpoint of the run at `url` is whole, and returns how many there are.
    ///
    /// # Panics
    /// When one is damaged.
    pub fn verify(&self, url: &str) -> usize {
        let answer = self.ask(&["checkpoints", "verify", url, "--json"]);
        assert_eq!(answer.code, 0, "{answer:?}");
        let checkpoints = answer.json()["checkpoints"].as_array().cloned().unwrap_or_default();
        assert!(checkpoints.iter().all(|one| one["sound"] == true), "{checkpoints:#?}");
        checkpoints.len()
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for process in self.processes() {
            processes::signal(process.pid, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            return;
        }
        until(PATIENCE, "the end of what was killed", || self.processes().is_empty().then_some(()));
    }
}

/// A child process whose standard error is read and whose end is waited for by threads.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) pid: i32,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    ended: Receiver<ExitStatus>,
}

impl Watched {
    pub(crate) fn start(command: &mut Command) -> Self {
        // a process group of its own, as a shell gives it: an interrupt from the terminal goes to the whole group
        std::os::unix::process::CommandExt::process_group(command, 0);
        let mut child: Child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = i32::try_from(child.id()).expect("process ids are positive");
        let stdout = child.stdout.take();
        let stderr = child.stderr.take().map(text_of);
        let (sender, ended) = channel();
        std::thread::spawn(move || {
            if let Ok(status) = child.wait() {
                // the test may have gone
                let _ = sender.send(status);
            }
        });
        Self { pid, stdout, stderr, ended }
    }

    /// Standard output as lines to read.
    pub(crate) fn take_stdout(&mut self) -> std::process::ChildStdout {
        self.stdout.take().expect("the output is taken once")
    }

    fn stdout(&mut self) -> JoinHandle<String> {
        text_of(self.take_stdout())
    }

    /// Waits for the end. Returns the exit code, or the signal below 0.
    pub(crate) fn end(&self, within: Duration) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.ended.recv_timeout(within).unwrap_or_else(|_| {
            processes::signal(self.pid, Signal::SIGKILL);
            panic!("process {} does not end within {within:?}", self.pid)
        });
        status.code().unwrap_or_else(|| -status.signal().unwrap_or_default())
    }

    /// Standard error, to its end.
    pub(crate) fn stderr(&mut self) -> String {
        self.stderr.take().map(|reader| reader.join().expect("a reader")).unwrap_or_default()
    }
}

fn text_of(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // what came until it broke is what there is
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Copies a folder with all that is in it.
///
/// # Panics
/// When something cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file is copied");
        }
    }
}
