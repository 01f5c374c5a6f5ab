//! Coordinators that die, and those that take over: no step is lost, no worker is started, and two never give orders.

use crate::{LONG, Machine, Run, assert_gone, is_alive, kill, text};
use serde_json::Value;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const PATIENT: [&str; 2] = ["--set", "cluster.orphan_patience=60s"];
const SECOND: Duration = Duration::from_secs(1);

impl Machine {
    /// A command of a machine that shares nothing with this one but the store.
    fn elsewhere(&self, arguments: &[&str], token: Option<&str>) -> Command {
        let mut command = self.command(arguments);
        command.env("XDG_STATE_HOME", self.path("elsewhere")).env_remove("GANFLEET_TOKEN");
        command.envs(token.map(|token| ("GANFLEET_TOKEN", token)));
        command
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.path("state/ganfleet/toy/token")).unwrap()
    }

    fn status(&self) -> Value {
        let answer = self.ask(&["status", "toy", "--json"]);
        serde_json::from_slice(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    /// Images of all ticks that were recorded.
    fn ticks(&self) -> Vec<u64> {
        let metrics = std::fs::read_to_string(self.path("runs/toy/metrics.jsonl")).unwrap();
        let images = |line: &str| serde_json::from_str::<Value>(line).unwrap()["images"].as_u64().unwrap();
        metrics.lines().map(images).collect()
    }
}

impl Run<'_> {
    fn dies(mut self) {
        self.signal("KILL");
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }

    /// Waits until both workers speak to this coordinator, and returns their process ids.
    fn has_both(&mut self) -> Vec<i32> {
        let deadline = Instant::now() + LONG;
        loop {
            let status = self.machine.status();
            let workers = status["workers"].as_array().unwrap();
            let here = workers.iter().filter(|worker| worker["state"] == "connected").count();
            if status["phase"] == "running" && status["world"] == 2 && here == 2 {
                return self.at_work();
            }
            assert!(Instant::now() < deadline, "{status:#}\n{:#?}", self.seen);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stops(self) {
        self.signal("INT");
        let end = self.end();
        assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
        assert_eq!(end.ended()["outcome"]["reason"]["reason"], "stopped");
    }
}

fn refused(output: &Output, exit: i32, why: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.contains(why), "{said}");
}

/// What its workers expect, a successor shows, though nobody says so again.
#[test]
fn a_successor_has_the_credentials_of_the_one_before() {
    let machine = Machine::new();
    let made = machine.ask(&["credentials", "make", "secrets"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let mut run = machine.launch(&[&PATIENT[..], &["--credentials", "secrets"]].concat(), &[]);
    let workers = run.at_work();
    run.dies();
    let mut run = machine.launch(&PATIENT, &[]);
    run.wait_for("taken_over");
    assert_eq!(run.has_both(), workers);
    run.dies();
    // nor does it serve in the clear where they cannot be used any more
    let kept = machine.path("secrets/coordinator/identity.pem");
    std::fs::rename(&kept, machine.path("hidden")).unwrap();
    refused(&machine.ask(&["attach", "toy", "--json"]), 3, "expect a coordinator with credentials");
    std::fs::rename(machine.path("hidden"), &kept).unwrap();
    let mut run = machine.launch(&PATIENT, &[]);
    run.wait_for("taken_over");
    assert_eq!(run.has_both(), workers);
    run.stops();
}

#[test]
fn a_killed_coordinator_costs_no_step_and_no_worker() {
    let machine = Machine::new();
    let mut run = machine.launch(&PATIENT, &[]);
    let workers = run.at_work();
    let mut epoch = 1;
    for away in [Duration::ZERO, SECOND] {
        let before = machine.status()["images"].as_u64().unwrap();
        run.dies();
        std::thread::sleep(away);
        run = machine.launch(&PATIENT, &[]);
        epoch += 1;
        let taken = run.wait_for("taken_over");
        assert_eq!((&taken["epoch"], &taken["generation"], &taken["workers"]), (&epoch.into(), &1.into(), &2.into()));
        assert_eq!(run.has_both(), workers);
        let status = machine.status();
        assert_eq!((&status["generation"], &status["epoch"]), (&1.into(), &epoch.into()), "{status}");
        assert_eq!((&status["taken_over"], &status["alarm"]), (&true.into(), &Value::Null), "{status}");
        let grown = status["images"].as_u64().unwrap() - before;
        assert!(grown as f64 > away.as_secs_f64() * 400.0, "{grown} images in {away:?} and more");
        assert!(run.seen.iter().all(|event| event["event"] != "decision"), "nothing is decided: {:#?}", run.seen);
    }
    run.stops();
    assert_gone(&workers, Duration::ZERO);
    let [checkpoint] = &machine.checkpoints()[..] else { panic!("{:?}", machine.checkpoints()) };
    assert!(checkpoint.ends_with("-000001.json"), "{checkpoint}");
    let ticks = machine.ticks();
    let each_once: Vec<u64> = (1..=ticks.len() as u64).map(|number| number * 100).collect();
    assert_eq!(ticks, each_once, "before, meanwhile and after, each once");
    let log = std::fs::read_to_string(machine.path("runs/toy/log.txt")).unwrap();
    for line in ["[0] INFO rank 0 of 2 is at work", "is taken over by coordinator 2", "is taken over by coordinator 3"]
    {
        assert_eq!(log.matches(line).count(), 1, "{line} in {log}");
    }
    // nothing else is left
    let left: Vec<String> = (std::fs::read_dir(machine.path("state/ganfleet/toy")).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["journal.jsonl", "lock", "metrics.jsonl", "ledger.jsonl", "log.txt"].contains(&name.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_successor_on_another_port_is_found_and_rules_as_any_does() {
    let machine = Machine::new();
    let mut run = machine.launch(&PATIENT, &[]);
    let workers = run.at_work();
    run.dies();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut run =
        Run::start(&machine, &mut machine.command(&["attach", "toy", "--json", "--listen", &port.to_string()]));
    assert_eq!(run.wait_for("taken_over")["address"], port.to_string());
    assert_eq!(run.has_both(), workers);
    // a worker that it has not started is replaced when it dies
    kill("KILL", workers[1]);
    // the other one may have told of it first, and gone on without it
    assert_eq!(run.decides("lost")["cause"]["cause"], "exited");
    run.forms(2);
    let after = run.at_work();
    assert_eq!(after[0], workers[0]);
    // one that hangs is killed
    kill("STOP", workers[0]);
    assert_eq!(run.decides("lost")["cause"]["cause"], "silent");
    run.forms(2);
    assert_gone(&workers, 5 * SECOND);
    run.stops();
    assert_gone(&after, Duration::ZERO);
}

#[test]
fn a_torn_journal_costs_no_worker() {
    let machine = Machine::new();
    let mut run = machine.launch(&PATIENT, &[]);
    let workers = run.at_work();
    run.dies();
    let path = machine.path("state/ganfleet/toy/journal.jsonl");
    let journal = std::fs::read_to_string(&path).unwrap();
    let formed = journal.find("{\"formed\"").unwrap();
    std::fs::write(&path, &journal[..formed + 40]).unwrap();
    let images = machine.checkpoints().len();
    let mut run = machine.launch(&PATIENT, &[]);
    let note = run.wait_for("note");
    assert!(note["text"].as_str().unwrap().contains("cannot be read"), "{note}");
    run.wait_for("taken_over");
    assert_eq!(run.forms(2)["generation"], 2);
    assert_eq!(run.has_both(), workers);
    run.stops();
    assert_eq!((images, machine.checkpoints().len()), (0, 1), "the state was kept in memory");
}

#[test]
fn while_one_coordinator_lives_there_is_no_second() {
    let machine = Machine::new();
    let mut run = machine.launch(&PATIENT, &[]);
    let workers = run.at_work();
    refused(&machine.ask(&["attach", "toy"]), 8, "coordinator status toy");
    let (url, token) = (machine.url(), machine.token());
    let output = |command: &mut Command| command.output().unwrap();
    // it answers who knows the token, and gives signs of life to others
    refused(&output(&mut machine.elsewhere(&["attach", &url], Some(&token))), 8, "is at work on");
    refused(&output(&mut machine.elsewhere(&["launch", "toy.toml"], None)), 3, "is at work on");
    assert_eq!(run.has_both(), workers);
    run.dies();
    // and its workers are not forgotten
    refused(&machine.ask(&["launch", "toy.toml", "--resume", "never"]), 3, "coordinator attach toy");
    let mut run = Run::start(&machine, &mut machine.command(&["resume", &url, "--workers", "2", "--json"]));
    run.wait_for("taken_over");
    assert_eq!(run.has_both(), workers);
    run.stops();
    refused(&machine.ask(&["attach", "toy"]), 8, "nobody is at work");
    refused(&machine.ask(&["attach", "nothing"]), 8, "no coordinator of this machine has left");
    refused(&machine.ask(&["attach", &url]), 8, &format!("coordinator resume {url}"));
}

#[test]
fn a_frozen_coordinator_is_replaced_from_elsewhere_and_ends_when_it_wakes() {
    let machine = Machine::new();
    let mut first = machine.launch(&PATIENT, &[]);
    let workers = first.at_work();
    let (url, token) = (machine.url(), machine.token());
    first.signal("STOP");
    let mut second = Run::start(&machine, &mut machine.elsewhere(&["attach", &url, "--json"], Some(&token)));
    let taken = second.wait_for("taken_over");
    assert_eq!((&taken["epoch"], &taken["generation"]), (&2.into(), &1.into()));
    for _ in 0..5 {
        second.wait_for("tick");
    }
    first.signal("CONT");
    let end = first.end();
    assert_eq!(end.status.code(), Some(8), "{}", end.stderr);
    assert!(end.stderr.contains("another coordinator, epoch 2"), "{}", end.stderr);
    // it harmed nobody, and they obey the second
    for _ in 0..20 {
        second.wait_for("tick");
    }
    assert!(workers.iter().all(|worker| is_alive(*worker)));
    let stop = machine.elsewhere(&["stop", "toy"], None).output().unwrap();
    assert!(stop.status.success(), "{stop:?}");
    let end = second.end();
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    assert!(end.seen.iter().all(|event| event["decision"]["reason"] != "formed"), "{:#?}", end.seen);
    assert_gone(&workers, 5 * SECOND);
    let [checkpoint] = &machine.checkpoints()[..] else { panic!("{:?}", machine.checkpoints()) };
    assert!(checkpoint.ends_with("-000001.json"), "{checkpoint}");
}

#[test]
fn a_journal_that_cannot_be_written_is_an_alarm_and_not_the_end() {
    let machine = Machine::new();
    std::fs::create_dir_all(machine.path("state/ganfleet/toy/journal.part")).unwrap();
    let mut run = machine.launch(&PATIENT, &[]);
    let alarm = run.wait_for("alarm");
    assert!(alarm["text"].as_str().unwrap().contains("no persistence"), "{alarm}");
    run.at_work();
    let status = machine.ask(&["status", "toy"]);
    assert!(text(&status.stdout).contains("warning: no persistence"), "{status:?}");
    // as soon as it can be written, it is: with what was missed
    std::fs::remove_dir(machine.path("state/ganfleet/toy/journal.part")).unwrap();
    assert!(machine.ask(&["checkpoint", "toy"]).status.success());
    run.wait_where("persistence", |event| event["text"] == "the journal is written again");
    let workers = run.at_work();
    run.dies();
    let mut run = machine.launch(&PATIENT, &[]);
    run.wait_for("taken_over");
    assert_eq!(run.has_both(), workers);
    run.stops();
}

#[test]
fn a_run_whose_workers_are_dead_too_goes_on_from_its_checkpoint() {
    let machine = Machine::new();
    let mut run = machine.launch(&PATIENT, &[]);
    let workers = run.at_work();
    assert!(machine.ask(&["checkpoint", "toy"]).status.success());
    let stored = run.wait_for("checkpoint")["manifest"].clone();
    run.dies();
    workers.iter().for_each(|worker| kill("KILL", *worker));
    assert_gone(&workers, SECOND);
    refused(&machine.ask(&["attach", "toy"]), 8, "coordinator resume");
    let mut run = machine.launch(&["--resume", "auto"], &[]);
    assert_eq!(run.wait_for("launched")["resume"], stored);
    let after = run.at_work();
    assert!(after.iter().all(|worker| !workers.contains(worker)));
    assert!(machine.status()["generation"].as_u64().unwrap() >= 2);
    run.stops();
}
