//! `coordinator doctor` on a machine that is well, and on ones that are sick in one way each: it is found, with what to do about it.

use crate::bad_inputs::with_few_files;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use tests::binaries;
use tests::experiment::Experiment;
use tests::machine::{Answer, Machine};

/// What is wrong with a machine, by the findings.
fn bad(answer: &Answer) -> Vec<(String, String, String)> {
    let findings: Value = serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let all = findings.as_array().expect("a list");
    let bad = all.iter().filter(|finding| finding["health"] == "bad");
    bad.map(|finding| (text(finding, "what"), text(finding, "found"), text(finding, "remedy"))).collect()
}

/// Looks at a machine that is sick in one way: that is found, and nothing else.
fn assert_found(sickness: &str, answer: &Answer, what: &str, says: &str, remedy: &str) {
    let found = bad(answer);
    assert_eq!(answer.code, 3, "{sickness}: {answer:?}");
    assert!(matches!(&found[..], [(name, ..)] if name == what), "{sickness}: {found:#?}");
    let (_, found, advice) = &found[0];
    println!("{sickness}: {what}: {found} -> {advice}");
    assert!(found.contains(says) && advice.contains(remedy), "{sickness}: {found} -> {advice}");
}

const DOCTOR: [&str; 3] = ["doctor", "toy.toml", "--json"];

fn machine() -> Machine {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    machine
}

#[test]
fn a_machine_that_is_well_is_said_to_be() {
    let machine = machine();
    let answer = machine.ask(&DOCTOR);
    assert_eq!((answer.code, bad(&answer)), (0, Vec::new()), "{answer:?}");
    let said = machine.ask(&["doctor", "toy.toml"]);
    println!("{}", said.stdout);
    for what in [
        "experiment",
        "worker",
        "GPUs",
        "open files",
        "memory",
        "cache",
        "state",
        "address",
        "images",
        "store",
        "clock",
    ] {
        assert!(said.stdout.lines().any(|line| line.contains(what)), "{what}: {}", said.stdout);
    }
    assert!(!machine.run().join("config.json").exists() && machine.manifests().is_empty(), "nothing has begun");
    machine.assert_nothing_runs(std::time::Duration::from_secs(2));
}

/// A program in the worker's place.
fn worker(machine: &Machine, text: &str) -> String {
    machine.write("another-worker", format!("#!/bin/sh\n{text}\n"));
    let path = machine.path("another-worker");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn programs_that_do_not_fit_are_found() {
    let with = |text: &str| {
        let machine = machine();
        let path = worker(&machine, text);
        machine.with_env("GANFLEET_WORKER", &path).ask(&DOCTOR)
    };
    assert_found(
        "no worker",
        &machine().with_env("GANFLEET_WORKER", "/nowhere/worker").ask(&DOCTOR),
        "worker",
        "/nowhere/worker",
        "GANFLEET_WORKER",
    );
    let linker = "echo 'libtorch_cpu.so: cannot open shared object file' >&2; exit 127";
    assert_found("no libtorch", &with(linker), "worker", "libtorch_cpu.so", "scripts/setup");
    let real = binaries::coordinator().with_file_name("worker").display().to_string();
    let older = format!("{real} \"$@\" | sed 's/\"build\":\"[^\"]*\"/\"build\":\"0.0.1\"/'");
    assert_found("another version", &with(&older), "worker", "0.0.1", "came with this coordinator");
}

#[test]
fn limits_that_are_too_low_are_found() {
    let machine = machine();
    let many =
        machine.command(&["doctor", "toy.toml", "--json", "--workers", "200", "--set", "cluster.max_workers=200"]);
    let answer = with_few_files(&machine, 1000, &many);
    let found = bad(&answer);
    let files = found.iter().find(|(what, ..)| what == "open files").unwrap_or_else(|| panic!("{found:?}"));
    assert!(files.1.contains("may open 1000") && files.2.contains("ulimit -Hn"), "{files:?}");
    // and so many workers are too much for the memory of any machine that tests run on
    let huge = ["doctor", "toy.toml", "--json", "--workers", "4000", "--set", "cluster.max_workers=4000"];
    let found = bad(&machine.ask(&huge));
    let memory = found.iter().find(|(what, ..)| what == "memory").unwrap_or_else(|| panic!("{found:?}"));
    println!("{memory:?}");
    assert!(memory.1.contains("4000 workers") && memory.2.contains("--workers"), "{memory:?}");
}

#[test]
fn places_that_cannot_be_written_are_found() {
    let sick = machine();
    sick.write("occupied", "a file where a folder should be");
    let path = sick.path("occupied").join("below").display().to_string();
    let sick = sick.with_env("GANFLEET_CACHE", &path);
    assert_found("a cache that cannot be made", &sick.ask(&DOCTOR), "cache", "occupied", "GANFLEET_CACHE");

    let sick = machine();
    sick.write("occupied", "a file where a folder should be");
    let path = sick.path("occupied").join("below").display().to_string();
    let sick = sick.with_env("XDG_STATE_HOME", &path);
    assert_found("no place for the state of runs", &sick.ask(&DOCTOR), "state", "occupied", "XDG_STATE_HOME");
}

/// Needs root, for a disk of its own.
#[test]
fn a_full_disk_is_found() {
    let sick = machine();
    let disk = sick.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !mount(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&disk)) {
        assert!(std::env::var("GANFLEET_NO_SKIP").as_deref() != Ok("1"), "needs root, to mount a small disk");
        println!("skipped: needs root, to mount a small disk");
        return;
    }
    let path = disk.display().to_string();
    let answer = sick.with_env("GANFLEET_CACHE", &path).ask(&DOCTOR);
    assert!(mount(Command::new("umount").arg(&disk)), "the disk is let go of");
    assert_found("a disk with 1 MB", &answer, "cache", "0.00 GB free", "GANFLEET_CACHE");
}

#[test]
fn what_the_experiment_names_and_is_not_there_is_found() {
    let sick = machine();
    sick.experiment(&Experiment::tiny().with("model.resolution", 24));
    assert_found(
        "a wrong experiment",
        &sick.ask(&DOCTOR),
        "experiment",
        "model.resolution",
        "coordinator config check",
    );

    let sick = machine();
    sick.experiment(&Experiment::tiny().with("data.source", "elsewhere"));
    assert_found("no images", &sick.ask(&DOCTOR), "images", "elsewhere", "data.source");
    std::fs::create_dir(sick.path("elsewhere")).unwrap();
    assert_found("an empty folder of images", &sick.ask(&DOCTOR), "images", "is empty", "data.source");

    let sick = machine();
    sick.experiment(
        &Experiment::tiny()
            .with("checkpoint.url", "s3://bucket/runs")
            .with("checkpoint.s3.endpoint", "https://127.0.0.1:9"),
    );
    let keyed = sick.with_env("AWS_ACCESS_KEY_ID", "key").with_env("AWS_SECRET_ACCESS_KEY", "secret");
    assert_found("a store that does not answer", &keyed.ask(&DOCTOR), "store", "s3://bucket", "");
}

#[test]
fn an_address_and_credentials_that_cannot_be_used_are_found() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let sick = machine();
    assert_found(
        "a port that is taken",
        &sick.ask(&[&DOCTOR[..], &["--listen", &taken]].concat()),
        "address",
        &taken,
        "a port that is free",
    );

    let made = sick.ask(&["credentials", "make", "secrets"]);
    assert_eq!(made.code, 0, "{made:?}");
    let well = sick.ask(&[&DOCTOR[..], &["--credentials", "secrets"]].concat());
    assert_eq!((well.code, bad(&well)), (0, Vec::new()), "{well:?}");
    let secret = sick.path("secrets/worker/identity.pem");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let answer = sick.ask(&[&DOCTOR[..], &["--credentials", "secrets"]].concat());
    assert_found("a secret that others can read", &answer, "credentials", "chmod 600", "");
}
