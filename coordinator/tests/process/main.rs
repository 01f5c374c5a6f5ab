//! The coordinator binary with fake workers: every end that a run can take, and that nothing outlives it.

mod takeover;

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const COORDINATOR: &str = env!("CARGO_BIN_EXE_coordinator");

fn fake_worker() -> PathBuf {
    Path::new(COORDINATOR).parent().unwrap().join("examples/fake_worker")
}

/// A machine of its own: a folder with an experiment, a store and a state folder.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(machine.path("images")).unwrap();
        std::fs::write(machine.path("toy.toml"), TOY).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn url(&self) -> String {
        format!("file://{}", self.path("runs/toy").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(COORDINATOR);
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("GANFLEET_WORKER", fake_worker())
            .env("XDG_STATE_HOME", self.path("state"))
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null());
        command
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A run of two workers that would take minutes, with more arguments and environment.
    fn launch(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Run<'_> {
        let mut all = vec!["launch", "toy.toml", "--workers", "2", "--json"];
        all.extend(arguments);
        Run::start(self, self.command(&all).envs(environment.iter().copied()))
    }

    fn checkpoints(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.path("runs/toy/manifests"));
        let mut names: Vec<String> =
            names.map_or(Vec::new(), |all| all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect());
        names.sort();
        names
    }
}

const TOY: &str = r#"
name = "toy"
[model]
resolution = 4
[data]
source = "images"
[train]
total_kimg = 1000
[cluster]
patience = "1s"
orphan_patience = "2s"
[checkpoint]
url = "runs"
"#;

/// A coordinator at work.
struct Run<'a> {
    machine: &'a Machine,
    child: Child,
    events: Receiver<Value>,
    seen: Vec<Value>,
}

/// How it ended.
struct End {
    status: ExitStatus,
    stderr: String,
    seen: Vec<Value>,
    took: Duration,
}

impl<'a> Run<'a> {
    fn start(machine: &'a Machine, command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Self { machine, child, events, seen: Vec::new() }
    }

    fn wait_for(&mut self, event: &str) -> Value {
        self.wait_where(event, |value| value["event"] == event)
    }

    fn wait_where(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(value) => {
                    self.seen.push(value.clone());
                    if is_it(&value) {
                        return value;
                    }
                }
                Err(error) => {
                    let _ = self.child.kill();
                    let mut stderr = String::new();
                    let _ = self.child.stderr.take().unwrap().read_to_string(&mut stderr);
                    panic!("no {what} ({error}) in {:#?}\n{stderr}", self.seen);
                }
            }
        }
    }

    /// Waits until training goes on, and returns the workers' process ids in rank order.
    fn at_work(&mut self) -> Vec<i32> {
        self.wait_for("tick");
        let answer = self.machine.ask(&["status", "toy", "--json"]);
        assert!(answer.status.success(), "{answer:?}");
        let status: Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(status["phase"], "running");
        let workers = status["workers"].as_array().unwrap();
        workers.iter().map(|worker| i32::try_from(worker["pid"].as_i64().unwrap()).unwrap()).collect()
    }

    /// Waits until the coordinator decided so.
    fn decides(&mut self, reason: &str) -> Value {
        let is_it = |event: &Value| event["decision"]["reason"] == reason;
        self.wait_where(reason, is_it)["decision"].clone()
    }

    /// Waits until a generation of so many workers is formed.
    fn forms(&mut self, world: u32) -> Value {
        let is_it = |event: &Value| event["decision"]["reason"] == "formed" && event["decision"]["world"] == world;
        self.wait_where(&format!("a world of {world}"), is_it)["decision"].clone()
    }

    fn signal(&self, signal: &str) {
        kill(signal, i32::try_from(self.child.id()).unwrap());
    }

    fn end(mut self) -> End {
        let began = Instant::now();
        let mut stderr = self.child.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > LONG {
                let _ = self.child.kill();
                panic!("no end: {:#?}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = began.elapsed();
        self.seen.extend(self.events.iter());
        End { status, stderr: reader.join().unwrap(), seen: self.seen, took }
    }
}

impl End {
    fn ended(&self) -> &Value {
        let ended = self.seen.iter().find(|event| event["event"] == "ended");
        ended.unwrap_or_else(|| panic!("{:#?}\n{}", self.seen, self.stderr))
    }

    fn text(&self) -> &str {
        self.ended()["text"].as_str().unwrap()
    }
}

fn kill(signal: &str, pid: i32) {
    let status = Command::new("/bin/sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

fn is_alive(pid: i32) -> bool {
    // a zombie waits only for whoever started it
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn assert_gone(pids: &[i32], within: Duration) {
    let deadline = Instant::now() + within;
    while pids.iter().any(|pid| is_alive(*pid)) {
        assert!(Instant::now() < deadline, "{pids:?} live on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_run_completes_and_leaves_its_records() {
    let machine = Machine::new();
    let mut run = machine.launch(&["--set", "train.total_kimg=1"], &[]);
    assert_eq!(run.wait_for("prepared")["images"], 3);
    assert_eq!(run.wait_for("launched")["workers"], 2);
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    assert_eq!(end.ended()["outcome"]["reason"]["reason"], "complete");
    assert_eq!(end.ended()["resume_with"], Value::Null);
    assert_eq!(machine.checkpoints(), ["000000001000-000001.json"]);
    let read = |name: &str| std::fs::read_to_string(machine.path("runs/toy").join(name)).unwrap();
    assert_eq!(read("metrics.jsonl").lines().count(), 10);
    let log = read("log.txt");
    assert!(log.contains("[0] INFO rank 0 of 2 is at work") && log.contains("[1] INFO rank 1 of 2"), "{log}");
    assert!(log.contains("[c] the run is complete at 1.0 kimg"), "{log}");
    assert!(read("config.toml").contains("total_kimg = 1 "), "{}", read("config.toml"));
    serde_json::from_str::<common::config::resolved::RunConfig>(&read("config.json")).unwrap();
    // nothing is left to do, and nothing to find
    let again = machine.ask(&["resume", &machine.url(), "--plain"]);
    assert_eq!(again.status.code(), Some(0));
    assert!(text(&again.stdout).contains("complete"), "{again:?}");
    let status = machine.ask(&["status", "toy"]);
    assert_eq!(status.status.code(), Some(8));
    assert!(text(&status.stderr).contains("no coordinator"), "{status:?}");
}

#[test]
fn an_interrupt_stores_the_state_and_a_resume_goes_on_from_it() {
    let machine = Machine::new();
    let mut run = machine.launch(&[], &[]);
    let workers = run.at_work();
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    assert_eq!(end.ended()["outcome"]["reason"]["reason"], "stopped");
    let resume_with = format!("coordinator resume {}", machine.url());
    assert_eq!(end.ended()["resume_with"], resume_with);
    assert_gone(&workers, Duration::ZERO);
    let [checkpoint] = &machine.checkpoints()[..] else { panic!("{:?}", machine.checkpoints()) };
    let images: u64 = checkpoint[..12].parse().unwrap();

    // the run exists now
    let again = machine.ask(&["launch", "toy.toml", "--plain"]);
    assert_eq!(again.status.code(), Some(3));
    assert!(text(&again.stderr).contains(&resume_with), "{again:?}");
    // and goes on where it was
    let total = format!("train.total_kimg={}", (images as f64 + 400.0) / 1000.0);
    let run = machine.launch(&["--resume", "auto", "--set", &total], &[]);
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    let launched = end.seen.iter().find(|event| event["event"] == "launched").unwrap();
    assert_eq!(launched["resume"], format!("manifests/{checkpoint}"));
    let last = machine.checkpoints().pop().unwrap();
    assert!(last.ends_with("-000002.json") && last[..12].parse::<u64>().unwrap() >= images + 400, "{last}");
    let metrics = std::fs::read_to_string(machine.path("runs/toy/metrics.jsonl")).unwrap();
    let ticks: Vec<u64> =
        metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["images"].as_u64().unwrap()).collect();
    assert!(ticks.is_sorted_by(|a, b| a < b), "{ticks:?}");
    // a seed belongs to a run for good
    let other = machine.ask(&["resume", &machine.url(), "--set", "seed=2", "--plain"]);
    assert_eq!(other.status.code(), Some(3));
    assert!(text(&other.stderr).contains("seed: 1 -> 2"), "{other:?}");
}

#[test]
fn a_second_interrupt_ends_everything_at_once() {
    let machine = Machine::new();
    let mut run = machine.launch(&[], &[("FAKE_DO", "deaf")]);
    let workers = run.at_work();
    run.signal("TERM");
    run.wait_for("decision");
    // schedulers repeat theirs, and that says nothing new
    run.signal("TERM");
    run.signal("HUP");
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(130), "{}", end.stderr);
    assert!(end.took < Duration::from_secs(5), "{:?}", end.took);
    assert_gone(&workers, Duration::ZERO);
}

#[test]
fn a_worker_that_ignores_the_stop_is_killed_at_its_deadline() {
    let machine = Machine::new();
    let mut run = machine.launch(&["--stop-deadline", "1"], &[("FAKE_DO", "deaf"), ("FAKE_RANK", "1")]);
    let workers = run.at_work();
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(6), "{}", end.stderr);
    assert_eq!(end.ended()["outcome"]["reason"]["reason"], "stop_overdue");
    assert!(end.text().contains("rank 1") && !end.text().contains("rank 0"), "{}", end.text());
    assert_gone(&workers, Duration::ZERO);
    assert_eq!(machine.checkpoints().len(), 1, "rank 0 has stored the state");
}

#[test]
fn a_killed_worker_costs_one_generation_and_is_replaced() {
    let machine = Machine::new();
    let mut run = machine.launch(&[], &[]);
    let workers = run.at_work();
    kill("KILL", workers[1]);
    let lost = run.decides("lost");
    // the other one may have told of it first, and gone on without it: then it has no rank any more
    assert_eq!(lost["cause"]["status"]["signal"], 9, "{lost}");
    run.forms(2);
    let after = run.at_work();
    assert_eq!((after.len(), after[0]), (2, workers[0]));
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    assert_eq!(end.ended()["outcome"]["reason"]["reason"], "stopped");
    assert_gone(&[workers, after].concat(), Duration::ZERO);
    let [checkpoint] = &machine.checkpoints()[..] else { panic!("{:?}", machine.checkpoints()) };
    assert!(checkpoint.ends_with("-000003.json"), "{checkpoint}");
}

#[test]
fn a_frozen_worker_is_replaced_too() {
    let machine = Machine::new();
    let mut run = machine.launch(&[], &[]);
    let workers = run.at_work();
    kill("STOP", workers[0]);
    let lost = run.decides("lost");
    assert_eq!((&lost["rank"], &lost["cause"]["cause"]), (&0.into(), &"silent".into()), "{lost}");
    run.forms(2);
    assert_gone(&workers[..1], Duration::from_secs(5));
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
}

#[test]
fn a_worker_that_is_told_to_go_leaves_between_two_steps() {
    let machine = Machine::new();
    let mut run = machine.launch(&["--set", "cluster.failures=1"], &[]);
    let workers = run.at_work();
    kill("TERM", workers[0]);
    let broken = run.decides("broken");
    assert!(broken.to_string().contains("all left it together"), "{broken}");
    run.forms(1);
    run.forms(2);
    assert_gone(&workers[..1], Duration::from_secs(5));
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
}

#[test]
fn a_run_that_loses_its_workers_again_and_again_ends_with_the_last_one_s_words() {
    let end = |what: &str| {
        let machine = Machine::new();
        let needed = ["--set", "cluster.min_workers=2"];
        let end = machine.launch(&needed, &[("FAKE_DO", what), ("FAKE_RANK", "1"), ("FAKE_AT", "40")]).end();
        assert!(what == "diverge" || machine.checkpoints().len() == 1, "the state is stored: {}", end.stderr);
        end
    };
    let panic = end("panic");
    assert_eq!(panic.status.code(), Some(6), "{}", panic.stderr);
    assert!(panic.text().contains("exit code 101") && panic.text().contains("out of luck"), "{}", panic.text());
    let lines = panic.ended()["last_lines"].to_string();
    assert!(lines.contains("rank 1 of 2 is at work") && lines.contains("panicked at"), "{lines}");
    let crash = end("crash");
    assert_eq!((crash.status.code(), crash.text().contains("SIGABRT")), (Some(6), true), "{}", crash.text());
    let vanish = end("vanish");
    assert_eq!((vanish.status.code(), vanish.text().contains("exit code 0")), (Some(6), true), "{}", vanish.text());
    // what would happen again anywhere ends the run at once
    let diverge = end("diverge");
    assert_eq!(diverge.status.code(), Some(9), "{}", diverge.stderr);
    assert!(diverge.text().contains("the loss is not finite"), "{}", diverge.text());
}

#[test]
fn workers_outlive_a_killed_coordinator_by_their_patience_only_and_store_their_state() {
    let machine = Machine::new();
    let mut run = machine.launch(&[], &[]);
    let workers = run.at_work();
    run.signal("KILL");
    let end = run.end();
    assert_eq!(end.status.signal(), Some(9));
    assert!(workers.iter().all(|worker| is_alive(*worker)), "they are patient first");
    assert_gone(&workers, LONG);
    assert_eq!(machine.checkpoints().len(), 1);
    // what it left is known to be stale, and the run can go on
    let status = machine.ask(&["status", "toy"]);
    assert_eq!(status.status.code(), Some(8));
    assert!(text(&status.stderr).contains("ended without a farewell"), "{status:?}");
    let url = machine.url();
    let mut run = Run::start(&machine, &mut machine.command(&["resume", &url, "--workers", "2", "--json"]));
    let workers = run.at_work();
    let stop = machine.ask(&["stop", "toy"]);
    assert!(stop.status.success() && text(&stop.stdout).contains("draining"), "{stop:?}");
    assert_eq!(run.end().status.code(), Some(0));
    assert_gone(&workers, Duration::ZERO);
}

#[test]
fn an_interrupt_before_training_ends_the_run_well() {
    let machine = Machine::new();
    let mut run = machine.launch(&[], &[]);
    run.wait_for("launched");
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    let reason = &end.ended()["outcome"]["reason"]["reason"];
    assert!(reason == "withdrawn" || reason == "stopped", "{reason}");
}

#[test]
fn strangers_and_other_builds_are_refused() {
    let machine = Machine::new();
    let mut run = machine.launch(&[], &[]);
    let workers = run.at_work();
    let launched = run.seen.iter().find(|event| event["event"] == "launched").unwrap();
    let address = launched["address"].as_str().unwrap();
    let token = std::fs::read_to_string(machine.path("state/ganfleet/toy/token")).unwrap();
    let join = |environment: &[(&str, &str)]| {
        Command::new(fake_worker()).args(["join", address]).envs(environment.iter().copied()).output().unwrap()
    };
    for (environment, why) in [
        (vec![("GANFLEET_TOKEN", "wrong")], "the token is wrong"),
        (vec![("GANFLEET_TOKEN", &*token), ("FAKE_DO", "alien")], "version 0.0.0-alien"),
    ] {
        let refused = join(&environment);
        assert_eq!(refused.status.code(), Some(8), "{refused:?}");
        assert!(text(&refused.stderr).contains(why), "{refused:?}");
    }
    // who is welcome but not needed waits
    let mut spare = Command::new(fake_worker()).args(["join", address]).env("GANFLEET_TOKEN", &token).spawn().unwrap();
    let deadline = Instant::now() + LONG;
    loop {
        let status = machine.ask(&["status", "toy", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        if status["workers"].as_array().unwrap().len() == 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
    // the run does not care
    assert!(workers.iter().all(|worker| is_alive(*worker)));
    for pid in workers.iter().copied().chain([i32::try_from(run.child.id()).unwrap()]) {
        let arguments = text(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap());
        assert!(!arguments.contains(&token), "no secret in an argument list: {arguments}");
    }
    // one coordinator for each run of a machine
    let second = machine.ask(&["launch", "toy.toml", "--plain"]);
    assert_eq!(second.status.code(), Some(3), "{second:?}");
    assert!(text(&second.stderr).contains("coordinator stop toy"), "{second:?}");
    run.signal("INT");
    let end = run.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    assert!(!format!("{:?}{}", end.seen, end.stderr).contains(&token), "no secret in the output");
    assert_eq!(spare.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_work_ends_before_a_worker_starts() {
    let machine = Machine::new();
    let fails = |arguments: &[&str], environment: &[(&str, &str)], exit: i32, why: &str| {
        let run = machine.command(arguments).envs(environment.iter().copied()).output().unwrap();
        let said = text(&run.stderr);
        assert_eq!(run.status.code(), Some(exit), "{arguments:?}: {said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
        assert!(!text(&run.stdout).contains("launched"), "{run:?}");
    };
    fails(&["launch"], &[], 2, "Usage");
    fails(&["launch", "nowhere.toml"], &[], 3, "nowhere.toml");
    fails(&["launch", "toy.toml", "--set", "modle=1"], &[], 3, "model");
    fails(&["launch", "toy.toml"], &[("GANFLEET_WORKER", "/nowhere/worker")], 3, "/nowhere/worker");
    fails(&["launch", "toy.toml", "--plain"], &[("FAKE_PREPARE", "fail")], 4, "3 of 3 files cannot be read");
    fails(&["launch", "toy.toml", "--set", "checkpoint.url=/dev/null/x"], &[], 5, "/dev/null/x");
    fails(&["launch", "toy.toml", "--listen", "0.0.0.0:0"], &[], 2, "--insecure");
    fails(&["resume", "runs/nothing"], &[], 5, "nothing");
    fails(&["resume", "ftp://a/b"], &[], 5, "ftp");
    fails(&["status", "nothing"], &[], 8, "no coordinator");
    // a script learns it too
    let end = machine.launch(&[], &[("FAKE_PREPARE", "fail")]).end();
    let failed = end.seen.last().unwrap();
    assert_eq!((&failed["event"], &failed["exit"]), (&"failed".into(), &4.into()));
}

#[test]
fn sample_and_translate_become_the_worker() {
    let machine = Machine::new();
    let sample = machine.ask(&["sample", "runs/toy", "--seeds", "1-4", "--out", "grid.png"]);
    assert_eq!((sample.status.code(), text(&sample.stdout).as_str()), (Some(42), "sample runs/toy 1-4 grid.png\n"));
    let translate = machine.ask(&["translate", "runs/toy", "a.png", "more", "--direction", "b2a", "--out", "made"]);
    let expected = "translate runs/toy [\"a.png\", \"more\"] b2a made\n";
    assert_eq!((translate.status.code(), text(&translate.stdout).as_str()), (Some(43), expected));
}
