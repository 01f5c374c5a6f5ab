//! `coordinator doctor --hosts`: hosts that are well, and ways between them that are not, each found with what to do about it.

use crate::scene::{SECRETS, Scene, WORKERS, short};
use serde_json::Value;
use std::fs::File;
use std::process::{Child, Stdio};
use tests::hosts::address;
use tests::{PATIENCE, until};

/// What lies between hosts, as the doctor on host 0 finds it: its exit code, all findings, and how each host left.
fn examined(scene: &Scene, expected: usize, come: &[(usize, &str)]) -> (Option<i32>, Vec<Value>, Vec<Option<i32>>) {
    let (count, at) = (expected.to_string(), Scene::coordinator());
    let mut command = scene.machine.command(&["doctor", "toy.toml", "--json", "--patience", "10"]);
    command.args(["--hosts", &count, "--listen", &at, "--credentials", SECRETS]);
    let errors = File::create(scene.machine.path("doctor.log")).unwrap();
    let mut doctor = scene.hosts.on(0, &command).stdout(Stdio::piped()).stderr(errors).spawn().expect("it starts");
    let start = |&(host, folder): &(usize, &str)| {
        let command = scene.machine.worker(&["doctor", &at, "--credentials", folder]);
        let said = File::create(scene.machine.path(&format!("worker-{host}.log"))).unwrap();
        scene.hosts.on(host, &command).stdout(said.try_clone().unwrap()).stderr(said).spawn().expect("it starts")
    };
    let mut hosts: Vec<Child> = come.iter().map(start).collect();
    let code = until(PATIENCE, "the doctor is done", || doctor.try_wait().unwrap()).code();
    let output = doctor.wait_with_output().unwrap();
    let mut leave = |host: &mut Child| until(PATIENCE, "a host leaves", || host.try_wait().unwrap()).code();
    let left = hosts.iter_mut().map(&mut leave).collect();
    let log = std::fs::read_to_string(scene.machine.path("doctor.log")).unwrap();
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {log}"));
    for finding in found.iter().skip_while(|finding| finding["what"] != "hosts") {
        println!("{} {}: {}", finding["health"], finding["what"], finding["found"]);
    }
    (code, found, left)
}

/// Findings of one kind that are not good, with their remedies.
fn unwell(found: &[Value], what: &str) -> Vec<String> {
    let unwell = found.iter().filter(|finding| finding["what"] == what && finding["health"] != "good");
    unwell.map(|finding| format!("{} -> {}", finding["found"], finding["remedy"])).collect()
}

fn all(folder: &str) -> Vec<(usize, &str)> {
    (1..=WORKERS).map(|host| (host, folder)).collect()
}

const WORKER: &str = "secrets/worker";

#[test]
fn hosts_that_are_well_are_said_to_be() {
    let Some(scene) = Scene::trusted(&short(), 0) else { return };
    let (code, found, left) = examined(&scene, WORKERS, &all(WORKER));
    assert_eq!((code, left), (Some(0), vec![Some(0); WORKERS]), "{found:#?}");
    for what in ["hosts", "clock", "links", "sum"] {
        let of = found.iter().rfind(|finding| finding["what"] == what).unwrap_or_else(|| panic!("{what}: {found:#?}"));
        assert_eq!(of["health"], "good", "{of}");
    }
    let links = found.iter().find(|finding| finding["what"] == "links").unwrap()["found"].to_string();
    assert!(links.contains("3 ways") && links.contains("bit/s"), "{links}");
    assert!(scene.machine.manifests().is_empty(), "nothing has begun");
}

#[test]
fn a_way_that_is_cut_or_slow_and_a_host_that_nobody_reaches_or_may_call_are_found() {
    let Some(scene) = Scene::trusted(&short(), 0) else { return };
    scene.hosts.cut(1, 2);
    let (code, found, left) = examined(&scene, WORKERS, &all(WORKER));
    let cut = unwell(&found, "link");
    assert_eq!((code, cut.len(), left), (Some(3), 1, vec![Some(0); WORKERS]), "{found:#?}");
    for says in [address(1).to_string(), address(2).to_string(), "firewall".to_owned()] {
        assert!(cut[0].contains(&says), "{cut:?}");
    }

    scene.hosts.cut(2, 3);
    let (code, found, _) = examined(&scene, WORKERS, &all(WORKER));
    let apart = unwell(&found, "link");
    assert_eq!((code, apart.len()), (Some(3), 1), "one line for a host that nobody reaches: {found:#?}");
    assert!(apart[0].contains(&format!("{}:", address(2))), "{apart:?}");

    scene.hosts.heal();
    // by name the last, which calls all others in their first meetings
    scene.hosts.shield(3);
    let (code, found, _) = examined(&scene, WORKERS, &all(WORKER));
    let uncalled = unwell(&found, "link");
    assert_eq!((code, uncalled.len()), (Some(3), 1), "{found:#?}");
    assert!(uncalled[0].contains(&format!("{}:", address(3))), "{uncalled:?}");

    scene.hosts.heal();
    scene.hosts.slow(3, 20);
    let (code, found, _) = examined(&scene, WORKERS, &all(WORKER));
    // what is slow is no reason not to begin
    let slow = unwell(&found, "link");
    assert_eq!((code, slow.len()), (Some(0), 1), "{found:#?}");
    assert!(slow[0].contains("all ways of") && slow[0].contains(&address(3).to_string()), "{slow:?}");
    assert!(slow[0].contains("Mbit/s at most") && slow[0].contains("ethtool"), "{slow:?}");
}

#[test]
fn hosts_that_do_not_come_or_are_not_trusted_are_missed_and_told_why() {
    let Some(scene) = Scene::trusted(&short(), 0) else { return };
    let another = scene.machine.ask(&["credentials", "make", "another"]);
    assert_eq!(another.code, 0, "{another:?}");
    let (code, found, left) = examined(&scene, WORKERS, &[(1, WORKER), (2, WORKER), (3, "another/worker")]);
    let missed = unwell(&found, "hosts");
    assert_eq!((code, missed.len(), left), (Some(3), 1, vec![Some(0), Some(0), Some(8)]), "{found:#?}");
    assert!(
        missed[0].contains("2 of 3 came within 10 s") && missed[0].contains("worker doctor 10.77.0.1"),
        "{missed:?}"
    );
    assert!(scene.said(3).contains("one authority"), "{}", scene.said(3));
    let refused = unwell(&found, "refused");
    assert!(refused.len() == 1 && refused[0].contains("10.77.0.4:") && refused[0].contains("authority"), "{refused:?}");
}
