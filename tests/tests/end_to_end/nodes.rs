//! `worker node`: all workers of one machine, for a coordinator elsewhere.

use crate::finished::finished;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::Duration;
use tests::experiment::Experiment;
use tests::launched::Launched;
use tests::machine::Machine;
use tests::processes;
use tests::{PATIENCE, until};

const TOKEN: &str = "a token that the environment gives both sides";

/// Starts a node with so many places.
fn node(machine: &Machine, address: &str, workers: &str, more: &[&str]) -> Child {
    let mut command = machine.worker(&[&["node", address, "--workers", workers], more].concat());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the node starts")
}

fn code(node: &mut Child) -> Option<i32> {
    until(PATIENCE, "the end of the node", || node.try_wait().unwrap()).code()
}

fn world(world: u64) -> impl Fn(&Value) -> bool {
    move |event: &Value| event["decision"]["reason"] == "formed" && event["decision"]["world"] == world
}

/// A run of which one worker is the coordinator's, and one a node's, well under way.
fn half_of_a_run(machine: &Machine) -> (Launched<'_>, Child) {
    machine.experiment(&Experiment::tiny());
    let mut run = machine.launch(&["--local", "1"]);
    let address = run.wait_for("launched")["address"].as_str().unwrap().to_owned();
    let node = node(machine, &address, "1", &[]);
    run.wait_for_images(64);
    (run, node)
}

/// A place is filled anew with every worker that dies, and the node ends with the run.
#[test]
fn a_node_starts_its_workers_anew_and_ends_with_the_run() {
    let machine = Machine::new().with_env("GANFLEET_TOKEN", TOKEN);
    machine.experiment(&Experiment::tiny().with("train.total_kimg", 3.2));
    let mut run = machine.launch(&["--local", "0"]);
    let address = run.wait_for("launched")["address"].as_str().unwrap().to_owned();
    let mut node = node(&machine, &address, "2", &[]);
    run.wait_for_images(64);
    let before = machine.workers();
    assert_eq!(before.len(), 2);
    processes::signal(before[0], Signal::SIGKILL);
    run.wait_where("a generation without it", world(1));
    run.wait_where("a generation with another one", world(2));
    let after = machine.workers();
    assert!(after.len() == 2 && after.contains(&before[1]) && !after.contains(&before[0]), "{before:?} {after:?}");
    let end = run.end();
    assert_eq!((end.code, end.reason()), (0, "complete"), "{}", end.story());
    assert_eq!(code(&mut node), Some(0));
    machine.assert_nothing_runs(Duration::from_secs(1));
}

/// What it is told its workers are told: they leave between two steps, and nobody takes a step again.
#[test]
fn a_node_that_is_told_to_leave_costs_no_step() {
    let machine = Machine::new().with_env("GANFLEET_TOKEN", TOKEN);
    let (run, mut node) = half_of_a_run(&machine);
    for _ in 0..3 {
        // a scheduler says it more than once
        processes::signal(node.id() as i32, Signal::SIGTERM);
    }
    assert_eq!(code(&mut node), Some(75));
    let end = run.succeed();
    let lost =
        |event: &&Value| event["decision"]["reason"] == "lost" && event["decision"]["cause"]["cause"] != "released";
    assert!(!end.seen.iter().any(|event| lost(&event)), "{}", end.story());
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert_eq!(machine.state_hash(&machine.run().display().to_string()), finished().hash);
}

/// Its workers hang on it: where it is killed they leave in good order, and hold no GPU for a run that goes on elsewhere.
#[test]
fn workers_of_a_node_that_is_killed_leave() {
    let machine = Machine::new().with_env("GANFLEET_TOKEN", TOKEN);
    let (mut run, mut node) = half_of_a_run(&machine);
    node.kill().unwrap();
    node.wait().unwrap();
    run.wait_where("a generation without its worker", world(1));
    let end = run.succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert_eq!(machine.state_hash(&machine.run().display().to_string()), finished().hash);
}

/// Without a coordinator it waits, and gives up when its patience is over; what no patience helps against it says at once.
#[test]
fn a_node_waits_for_its_coordinator_and_not_for_ever() {
    let machine = Machine::new().with_env("GANFLEET_TOKEN", TOKEN);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut waiting = node(&machine, &nobody, "2", &["--patience", "2"]);
    let mut wrong = node(&machine, &nobody, "1", &["--listen", "0.0.0.0"]);
    assert_eq!(code(&mut wrong), Some(2));
    assert_eq!(code(&mut waiting), Some(8));
    machine.assert_nothing_runs(Duration::from_secs(1));
}
