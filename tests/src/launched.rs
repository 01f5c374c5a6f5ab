//! A coordinator at work on a run, seen through its JSON events.

use crate::machine::{Machine, Watched};
use crate::{PATIENCE, processes};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A coordinator at work.
#[derive(Debug)]
pub struct Launched<'a> {
    machine: &'a Machine,
    process: Watched,
    events: Receiver<Value>,
    seen: Vec<Value>,
}

/// How it ended.
#[derive(Debug)]
pub struct End {
    /// Exit code; below 0 the signal that ended it.
    pub code: i32,
    /// Every event.
    pub seen: Vec<Value>,
    /// Standard error.
    pub stderr: String,
    /// Time from the call of [`Launched::end`].
    pub took: Duration,
}

impl<'a> Launched<'a> {
    pub(crate) fn start(machine: &'a Machine, command: &mut Command) -> Self {
        let mut process = Watched::start(command);
        let stdout = BufReader::new(process.take_stdout());
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| Value::from(line));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self { machine, process, events, seen: Vec::new() }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Waits for an event of this kind.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for(&mut self, kind: &str) -> Value {
        self.wait_where(kind, |event| event["event"] == kind)
    }

    /// Waits for the end of a tick at or after `images`.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for_images(&mut self, images: u64) -> Value {
        let there = |event: &Value| event["event"] == "tick" && event["tick"]["images"].as_u64() >= Some(images);
        self.wait_where(&format!("a tick at {images} images"), there)
    }

    /// Waits for an event that `is_it`.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_where(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if is_it(&event) {
                        return event;
                    }
                }
                Err(error) => {
                    processes::signal(self.process.pid, Signal::SIGKILL);
                    panic!("no {what} ({error}) in:\n{}\n{}", told(&self.seen), self.process.stderr());
                }
            }
        }
    }

    /// Lets events come until `moment`.
    pub fn let_pass(&mut self, time: Duration) {
        let moment = Instant::now() + time;
        while let Ok(event) = self.events.recv_timeout(moment.saturating_duration_since(Instant::now())) {
            self.seen.push(event);
        }
    }

    /// Whether a generation of workers has begun, as far as the events seen say.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.seen.iter().any(|event| event["decision"]["reason"] == "formed")
    }

    /// Every event seen so far.
    #[must_use]
    pub fn seen(&self) -> &[Value] {
        &self.seen
    }

    /// A signal to the coordinator alone.
    pub fn signal(&self, signal: Signal) {
        processes::signal(self.process.pid, signal);
    }

    /// Ctrl-C: SIGINT to the process group, as a terminal sends it.
    pub fn interrupt(&self) {
        // a group that is gone needs no interrupt
        let _ = killpg(Pid::from_raw(self.process.pid), Signal::SIGINT);
    }

    /// Waits for its end and that of its output.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn end(mut self) -> End {
        let began = Instant::now();
        let code = self.process.end(PATIENCE);
        let took = began.elapsed();
        self.read_out();
        End { code, seen: std::mem::take(&mut self.seen), stderr: self.process.stderr(), took }
    }

    fn read_out(&mut self) {
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok(event) => self.seen.push(event),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("something still holds the coordinator's output"),
            }
        }
    }

    /// Waits for its end, which must be success, with nothing left running.
    ///
    /// # Panics
    /// When it is not.
    pub fn succeed(self) -> End {
        let machine = self.machine;
        let end = self.end();
        assert_eq!(end.code, 0, "{}", end.story());
        machine.assert_nothing_runs(Duration::from_secs(5));
        end
    }
}

impl End {
    /// The last event, which says how the run ended.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn ended(&self) -> &Value {
        self.seen.iter().find(|event| event["event"] == "ended").unwrap_or_else(|| panic!("no end in {}", self.story()))
    }

    /// Name of the reason for which the run ended: `complete`, `stopped`, `lost`, ...
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.ended()["outcome"]["reason"]["reason"].as_str().expect("an outcome has a reason")
    }

    /// Events of one kind.
    pub fn events<'e>(&'e self, kind: &'e str) -> impl Iterator<Item = &'e Value> {
        self.seen.iter().filter(move |event| event["event"] == kind)
    }

    /// All that it said, for the message of a failed test.
    #[must_use]
    pub fn story(&self) -> String {
        format!("exit code {} after:\n{}\n{}", self.code, told(&self.seen), self.stderr)
    }
}

/// Events as lines, without those that only say where the run stands.
fn told(events: &[Value]) -> String {
    let telling = events.iter().filter(|event| event["event"] != "progress" && event["event"] != "tick");
    telling.map(Value::to_string).collect::<Vec<_>>().join("\n")
}
