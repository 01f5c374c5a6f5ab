//! `train.determinism`: bitwise runs end in the same bits whatever their workers and interruptions, fast runs when their
//! worlds are equal.

use crate::finished::finished;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;
use tests::experiment::{Experiment, NAME};
use tests::machine::{Machine, copy_folder};

/// A stop comes when it comes: if it falls outside the part of the schedule that is meant, the run is begun again.
const TRIES: u32 = 5;

/// How a run is asked to stop.
enum Ask {
    Signal,
    Command,
}

#[test]
fn worlds_of_1_3_and_4_end_in_the_bits_of_a_world_of_2() {
    for workers in ["1", "3", "4"] {
        let machine = Machine::new();
        machine.experiment(&Experiment::tiny());
        let end = machine.launch(&["--workers", workers]).succeed();
        assert_eq!(end.events("launched").next().unwrap()["workers"].to_string(), workers);
        assert_eq!(hash(&machine.run(), &machine), finished().hash, "{workers} workers");
    }
}

#[test]
fn a_run_stopped_in_a_stable_phase_ends_in_the_same_bits() {
    let stable = |lod: f64| lod == 1.0;
    let machine = stopped(&Experiment::tiny(), 304, stable, &Ask::Signal);
    assert_eq!(resumed(&machine, &["2", "3"]), [&*finished().hash; 2]);
}

#[test]
fn a_run_stopped_in_a_fade_ends_in_the_same_bits() {
    let fading = |lod: f64| lod > 0.0 && lod < 1.0;
    let machine = stopped(&Experiment::tiny(), 464, fading, &Ask::Command);
    assert_eq!(resumed(&machine, &["1", "2"]), [&*finished().hash; 2]);
}

/// The first cycle at or after 300 images is the first that does not fade: a run of 0.3 kimg stops before it, with the
/// optimizer just reset.
#[test]
fn a_run_stopped_at_a_knee_ends_in_the_same_bits() {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    machine.launch(&["--set", "train.total_kimg=0.3"]).succeed();
    let manifest = machine.show(&machine.run().display().to_string())["manifest"].clone();
    let cursor = &manifest["cursor"];
    let place = ["images", "cycle_images", "repeat", "phase"].map(|name| cursor[name].as_u64());
    assert_eq!(place, [304, 304, 0, 0].map(Some), "the next step begins a cycle");
    assert_eq!(cursor["last_knee"], serde_json::json!([1, 1]), "the last step of the fade reset the optimizer");
    assert_eq!(resumed(&machine, &["2", "4"]), [&*finished().hash; 2]);
}

#[test]
fn a_fast_run_stopped_and_resumed_in_the_same_world_ends_in_the_same_bits() {
    let fast = Experiment::tiny().with("train.determinism", "fast");
    let undisturbed = Machine::new();
    undisturbed.experiment(&fast);
    undisturbed.launch(&[]).succeed();
    let machine = stopped(&fast, 464, |lod| lod > 0.0 && lod < 1.0, &Ask::Signal);
    assert_eq!(resumed(&machine, &["2"]), [hash(&undisturbed.run(), &undisturbed)]);
}

/// A machine whose run was stopped after `images`, where `there` is true of its lod.
fn stopped(experiment: &Experiment, images: u64, there: impl Fn(f64) -> bool, ask: &Ask) -> Machine {
    let mut places = Vec::new();
    for _ in 0..TRIES {
        let machine = Machine::new();
        machine.experiment(experiment);
        let mut run = machine.launch(&[]);
        run.wait_for_images(images);
        match ask {
            Ask::Signal => run.signal(Signal::SIGTERM),
            Ask::Command => assert_eq!(machine.ask(&["stop", NAME]).code, 0),
        }
        let end = run.succeed();
        let list = machine.ask(&["checkpoints", "ls", &machine.run().display().to_string(), "--json"]).json();
        let newest = &list["checkpoints"][0];
        if end.reason() == "stopped" && newest["lod"].as_f64().is_some_and(&there) {
            assert!(newest["images"].as_u64() >= Some(images), "{newest}");
            return machine;
        }
        places.push(newest.clone());
    }
    panic!("no stop fell where it should: {places:#?}");
}

/// Hashes of the ends of copies of the machine's run, each resumed with one of `worlds`.
fn resumed(machine: &Machine, worlds: &[&str]) -> Vec<String> {
    let ends = worlds.iter().map(|workers| {
        let root = machine.path(&format!("resumed-with-{workers}"));
        copy_folder(&machine.path("runs"), &root);
        let run = root.join(NAME);
        let total = ["--workers", workers, "--set", "train.total_kimg=0.7"];
        let end = machine.resume(&run.display().to_string(), &total).succeed();
        assert_eq!(end.reason(), "complete", "{}", end.story());
        assert_ne!(end.events("launched").next().unwrap()["resume"], Value::Null, "{}", end.story());
        hash(&run, machine)
    });
    ends.collect()
}

fn hash(run: &Path, machine: &Machine) -> String {
    let hash = machine.state_hash(&run.display().to_string());
    println!("{}: {hash}", run.display());
    hash
}
