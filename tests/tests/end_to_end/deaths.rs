//! What nobody planned, at random moments: workers killed, frozen and told to go, the coordinator killed, Ctrl-C once and
//! twice. The run goes on by itself or is resumed, to the same last bit as if nothing had happened; nothing is left running,
//! no checkpoint is damaged, and the exit code is the documented one.

use crate::finished::finished;
use nix::sys::signal::Signal;
use std::time::Duration;
use tests::experiment::{Experiment, NAME};
use tests::launched::{End, Launched};
use tests::machine::Machine;
use tests::moments::{Moments, trials};
use tests::{PATIENCE, processes, until};

/// `cluster.orphan_patience` of these runs.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(1);
/// For a last step and its checkpoint, on a busy machine.
const LAST_STEP: Duration = Duration::from_secs(10);
/// A worker that has no place in a run yet waits this long for a coordinator that fell silent, whatever the run says.
const BEFORE_A_PLACE: Duration = Duration::from_secs(10);

/// One trial: a run brought to a random moment, struck by `strike`, and what must hold afterwards.
fn trial(kind: &str, number: u64, strike: impl FnOnce(Launched<'_>, &Machine, &str)) {
    trial_of(&impatient(), kind, number, strike);
}

fn impatient() -> Experiment {
    Experiment::tiny().with("cluster.patience", "1s").with("cluster.orphan_patience", "1s")
}

/// The same of another experiment. Returns how the run ended at last.
fn trial_of(
    experiment: &Experiment,
    kind: &str,
    number: u64,
    strike: impl FnOnce(Launched<'_>, &Machine, &str),
) -> End {
    let machine = Machine::new();
    machine.experiment(experiment);
    let mut moments = Moments::new(kind, number);
    let mut run = machine.launch(&[]);
    let moment = moments.reach(&mut run);
    strike(run, &machine, &format!("trial {number} of {kind}, {moment}"));

    let url = machine.run().display().to_string();
    if !machine.manifests().is_empty() {
        assert_eq!(machine.verify(&url), machine.manifests().len(), "{kind}, {moment}");
    }
    let workers = (1 + moments.below(3)).to_string();
    let end = machine.launch(&["--resume", "auto", "--workers", &workers]).succeed();
    assert_eq!(end.reason(), "complete", "{kind}, {moment}: {}", end.story());
    assert_eq!(machine.state_hash(&url), finished().hash, "{kind}, {moment}, resumed with {workers}: {}", end.story());
    machine.verify(&url);
    end
}

/// Strikes one of the two workers, and lets the run go on to its end by itself. Returns what it decided.
fn strike_a_worker(mut run: Launched<'_>, machine: &Machine, what: &str, which: u64, signal: Signal) -> Vec<String> {
    let workers = || Some(machine.workers()).filter(|workers| workers.len() == 2);
    let workers = until(PATIENCE, "two workers", workers);
    run.let_pass(Duration::ZERO);
    processes::signal(workers[which as usize % 2], signal);
    let end = run.end();
    assert_eq!(end.code, 0, "{what}: {}", end.story());
    assert_eq!(end.reason(), "complete", "{what}: {}", end.story());
    machine.assert_nothing_runs(Duration::from_secs(1));
    end.events("decision").map(|event| event["decision"].to_string()).collect()
}

#[test]
fn a_killed_worker_costs_no_step() {
    for number in 0..trials() {
        trial("killed worker", number, |run, machine, what| {
            let decided = strike_a_worker(run, machine, what, number, Signal::SIGKILL);
            // a moment may be so late that the work was done
            let told = decided.iter().any(|d| d.contains(r#""cause":"exited""#) && d.contains(r#""signal":9"#));
            assert!(told || decided.iter().any(|d| d.contains("unclean_exit")), "{what}: {decided:?}");
        });
    }
}

#[test]
fn a_frozen_worker_costs_no_step() {
    for number in 0..trials() {
        trial("frozen worker", number, |mut run, machine, what| {
            // one that never joined is waited for two minutes: its disk may be slow
            let formed = |event: &serde_json::Value| event["decision"]["reason"] == "formed";
            if !run.seen().iter().any(formed) {
                run.wait_where("generation", formed);
            }
            strike_a_worker(run, machine, what, number, Signal::SIGSTOP);
        });
    }
}

#[test]
fn a_worker_that_is_told_to_go_hands_over_and_costs_no_step() {
    for number in 0..trials() {
        trial("preempted worker", number, |run, machine, what| {
            let decided = strike_a_worker(run, machine, what, number, Signal::SIGTERM);
            // one that was only just started dies of it, before it has a place
            let died = |d: &String| d.contains(r#""signal""#) && !d.contains(r#""rank":null"#);
            assert!(!decided.iter().any(died), "{what}: {decided:?}");
        });
    }
}

/// Kills one worker after the other, but never the last one that holds the state.
#[test]
fn a_run_that_loses_worker_after_worker_takes_every_step_once_and_ends_in_the_same_bits() {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    let mut moments = Moments::new("many kills", 0);
    let total = finished().machine.newest_images().unwrap();
    let mut run = machine.launch(&["--workers", "3"]);
    let mut struck: Option<i64> = None;
    let mut kills = 0;
    for images in (32..total).step_by(64) {
        run.wait_for_images(images);
        run.let_pass(Duration::from_millis(moments.below(60)));
        let status = machine.ask(&["status", NAME, "--json"]);
        // it may be over
        let Some(status) = (status.code == 0).then(|| status.json()) else { break };
        let ranks = status["workers"].as_array().unwrap().iter().filter(|worker| !worker["rank"].is_null());
        let pids: Vec<i64> = ranks.filter_map(|worker| worker["pid"].as_i64()).collect();
        // one of two who are dead already is not another one: nobody would be left who holds the state
        if status["phase"] == "running" && pids.len() > 1 && !struck.is_some_and(|pid| pids.contains(&pid)) {
            let pid = pids[moments.below(pids.len() as u64) as usize];
            processes::signal(pid as i32, Signal::SIGKILL);
            struck = Some(pid);
            kills += 1;
        }
    }
    let end = run.succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert!(kills >= 3, "{kills} kills");
    let url = machine.run().display().to_string();
    assert_eq!(machine.state_hash(&url), finished().hash, "{kills} kills: {}", end.story());
    machine.verify(&url);
    // every step and sample once, and all of the time accounted for
    let told = end.events("goodput").next().unwrap_or_else(|| panic!("no goodput: {}", end.story()));
    let report = machine.ask(&["report", &url, "--json"]).json();
    assert_eq!(report, *told);
    assert_eq!(report["steps_missing"], 0, "{report}");
    // rank 0 may have told of a step that ended on it alone, just before it died
    assert!(report["steps_taken_again"].as_u64() <= Some(1), "{report}");
    let undisturbed = machine.ask(&["report", &finished().machine.run().display().to_string(), "--json"]).json();
    for same in ["steps", "images"] {
        assert_eq!(report[same], undisturbed[same], "{report} {undisturbed}");
    }
    assert!(report["generations"].as_u64() > Some(kills), "{report}");
    println!("{kills} kills: {}", machine.ask(&["report", &url]).stdout);
}

#[test]
fn a_killed_coordinator_is_replaced_and_costs_no_step() {
    processes::adopt_orphans();
    let patient = impatient().with("cluster.orphan_patience", "30s");
    let mut taken_over = 0;
    for number in 0..trials() {
        let end = trial_of(&patient, "replaced coordinator", number, |run, _, what| {
            run.signal(Signal::SIGKILL);
            assert_eq!(run.end().code, -9, "{what}");
        });
        taken_over += end.events("taken_over").count();
        let goodput = end.events("goodput").next().cloned().unwrap_or_default();
        assert_eq!(goodput["steps_missing"], 0, "{}", end.story());
    }
    assert!(taken_over > 0, "no trial struck while workers were at work");
}

#[test]
fn workers_of_a_killed_coordinator_store_their_state_and_leave_with_code_7() {
    processes::adopt_orphans();
    let mut orphans = 0;
    // a fast machine ends the run within a second
    let soon = Experiment::tiny().with("cluster.patience", "0.4s").with("cluster.orphan_patience", "0.4s");
    for number in 0..trials() {
        trial_of(&soon, "killed coordinator", number, |run, machine, what| {
            let begun = run.has_begun();
            run.signal(Signal::SIGKILL);
            let workers = machine.workers();
            let end = run.end();
            assert_eq!(end.code, -9, "{what}");
            let patience = if begun { ORPHAN_PATIENCE } else { BEFORE_A_PLACE } + LAST_STEP;
            machine.assert_nothing_runs(patience);
            // orphans train on until their patience ends: on a fast machine that may be the run's end
            let complete = machine.newest_images() == finished().machine.newest_images();
            for worker in workers {
                let code = processes::end_of_orphan(worker, Duration::from_secs(5));
                let documented: &[i32] = match (begun, complete) {
                    // without a place in the run there is nothing to store: nobody answered, that is all
                    (false, _) => &[7, 8],
                    (true, false) => &[7],
                    (true, true) => &[0, 7],
                };
                assert!(documented.contains(&code), "{what}: worker {worker} left with {code}: {}", log(machine));
                orphans += u32::from(code == 7);
            }
            assert!(!begun || !machine.manifests().is_empty(), "{what}: nothing is stored: {}", log(machine));
        });
    }
    assert!(orphans > 0, "no trial struck early enough for its workers to become orphans");
}

#[test]
fn an_interrupt_stores_the_state_and_ends_with_code_0() {
    for number in 0..trials() {
        trial("interrupt", number, |run, machine, what| {
            let begun = run.has_begun();
            run.interrupt();
            let end = run.end();
            assert_eq!(end.code, 0, "{what}: {}", end.story());
            machine.assert_nothing_runs(Duration::from_secs(1));
            match end.reason() {
                "stopped" => {
                    let advice = end.ended()["resume_with"].as_str().unwrap_or_default();
                    assert!(advice.starts_with("coordinator resume file://"), "{what}: {}", end.story());
                    let newest = end.ended()["outcome"]["newest"]["manifest"].as_str().unwrap_or_default();
                    assert!(machine.run().join(newest).is_file(), "{what}: {}", end.story());
                }
                "withdrawn" => assert!(!begun && machine.manifests().is_empty(), "{what}: {}", end.story()),
                other => panic!("{what}: {other}: {}", end.story()),
            }
        });
    }
}

/// SIGINT and SIGTERM at once: two of one kind that come together are one to the system.
#[test]
fn a_second_interrupt_ends_everything_at_once_with_code_130() {
    for number in 0..trials() {
        trial("two interrupts", number, |run, machine, what| {
            let begun = run.has_begun();
            run.interrupt();
            run.signal(Signal::SIGTERM);
            let end = run.end();
            machine.assert_nothing_runs(Duration::from_secs(1));
            assert!(end.took <= Duration::from_secs(5), "{what}: it took {:?}: {}", end.took, end.story());
            match (end.code, end.reason()) {
                (130, "killed") => {}
                // the first alone ended it: there was nothing yet to wait for
                (0, "withdrawn") => assert!(!begun, "{what}: {}", end.story()),
                _ => panic!("{what}: {}", end.story()),
            }
        });
    }
}

fn log(machine: &Machine) -> String {
    std::fs::read_to_string(machine.run().join("log.txt")).unwrap_or_default()
}
