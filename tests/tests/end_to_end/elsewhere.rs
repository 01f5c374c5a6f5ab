//! Workers that nobody launched: they come by `worker join`, as from another host.

use crate::finished::finished;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::Duration;
use tests::experiment::{Experiment, NAME};
use tests::machine::Machine;
use tests::processes;
use tests::{PATIENCE, until};

/// Starts `worker join` as a person would, with this token.
fn join(machine: &Machine, address: &str, token: &str) -> Child {
    let mut command = machine.worker(&["join", address]);
    command.env("GANFLEET_TOKEN", token).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the worker starts")
}

#[test]
fn a_worker_that_joins_from_elsewhere_trains_like_one_that_was_launched() {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    let mut run = machine.launch(&["--local", "1"]);
    let launched = run.wait_for("launched");
    let address = launched["address"].as_str().unwrap();
    let told = run.wait_for("note")["text"].to_string();
    assert!(told.contains("1 of 2 workers") && told.contains(&format!("worker join {address}")), "{told}");

    // who does not know the token is refused, and the place stays free
    let mut stranger = join(&machine, address, &"0".repeat(64));
    assert_eq!(stranger.wait().unwrap().code(), Some(8));
    let token = std::fs::read_to_string(machine.path("home/.local/state/ganfleet").join(NAME).join("token")).unwrap();
    let mut guest = join(&machine, address, token.trim());
    let end = run.succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert_eq!(guest.wait().unwrap().code(), Some(0));
    assert_eq!(machine.state_hash(&machine.run().display().to_string()), finished().hash);
}

/// Its connection never broke, and it hears all that was said to it meanwhile.
#[test]
fn a_worker_from_elsewhere_that_was_stopped_for_too_long_comes_back() {
    let token = "a token that the environment gives both sides";
    let machine = Machine::new().with_env("GANFLEET_TOKEN", token);
    let experiment = Experiment::tiny().with("cluster.patience", "1s").with("train.total_kimg", 3.2);
    machine.experiment(&experiment);
    let mut run = machine.launch(&["--local", "1"]);
    let address = run.wait_for("launched")["address"].as_str().unwrap().to_owned();
    let mut guest = join(&machine, &address, token);
    run.wait_for_images(64);
    let world = |world: u64| {
        move |event: &Value| event["decision"]["reason"] == "formed" && event["decision"]["world"] == world
    };
    processes::signal(guest.id() as i32, Signal::SIGSTOP);
    run.wait_where("a generation without it", world(1));
    processes::signal(guest.id() as i32, Signal::SIGCONT);
    run.wait_where("a generation with it", world(2));
    let end = run.end();
    assert_eq!((end.code, end.reason()), (0, "complete"), "{}", end.story());
    let code = until(PATIENCE, "the guest leaves", || guest.try_wait().unwrap());
    assert_eq!(code.code(), Some(0));
    machine.assert_nothing_runs(Duration::from_secs(1));
}

#[test]
fn a_worker_from_elsewhere_that_dies_is_replaced_by_one_that_comes() {
    let token = "a token that the environment gives both sides";
    let machine = Machine::new().with_env("GANFLEET_TOKEN", token);
    machine.experiment(&Experiment::tiny());
    let mut run = machine.launch(&["--local", "0"]);
    let address = run.wait_for("launched")["address"].as_str().unwrap().to_owned();
    let mut guests = [(), ()].map(|()| join(&machine, &address, token));
    run.wait_for_images(64);
    guests[0].kill().unwrap();
    guests[0].wait().unwrap();
    guests[0] = join(&machine, &address, token);
    let end = run.end();
    assert_eq!((end.code, end.reason()), (0, "complete"), "{}", end.story());
    for mut guest in guests {
        let code = until(PATIENCE, "the guests leave", || guest.try_wait().unwrap());
        assert_eq!(code.code(), Some(0));
    }
    machine.assert_nothing_runs(Duration::from_secs(1));
    assert_eq!(machine.state_hash(&machine.run().display().to_string()), finished().hash);
}
