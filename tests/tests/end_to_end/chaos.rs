//! Faults on purpose, at exact steps, by `launch --chaos`: what each is found out by, and that the run ends in the bits of an
//! undisturbed one.

use crate::finished::finished;
use serde_json::Value;
use tests::experiment::Experiment;
use tests::launched::End;
use tests::machine::Machine;

/// A run of three workers that suffers `faults`, to its end, and what `coordinator report` says of it.
fn suffer(machine: &Machine, faults: &str) -> (End, Value) {
    suffer_in(machine, Experiment::tiny(), faults)
}

fn suffer_in(machine: &Machine, experiment: Experiment, faults: &str) -> (End, Value) {
    machine.experiment(&experiment.with("cluster.patience", "1s"));
    std::fs::write(machine.path("plan.toml"), faults).unwrap();
    let plan = machine.path("plan.toml").display().to_string();
    let end = machine.launch(&["--workers", "3", "--chaos", &plan]).succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    let url = machine.run().display().to_string();
    machine.verify(&url);
    let report = machine.ask(&["report", &url, "--json"]).json();
    assert_eq!(report["steps_missing"], 0, "{report}");
    println!("{faults}{}", machine.ask(&["report", &url]).stdout);
    (end, report)
}

fn hash(machine: &Machine) -> String {
    machine.state_hash(&machine.run().display().to_string())
}

fn decided(end: &End, reason: &str) -> Vec<Value> {
    let decisions = end.events("decision").map(|event| event["decision"].clone());
    decisions.filter(|decision| decision["reason"] == reason).collect()
}

#[test]
fn a_worker_killed_at_any_point_of_a_step_costs_that_step_only() {
    for (point, rank) in [("forward", 0), ("reduce", 1), ("update", 2), ("update", 0)] {
        let machine = Machine::new();
        let plan = format!("[[fault]]\ndo = \"kill\"\nstep = 61\nat = \"{point}\"\nrank = {rank}\n");
        let (end, report) = suffer(&machine, &plan);
        let lost = decided(&end, "lost");
        assert_eq!(lost.len(), 1, "{point}, rank {rank}: {}", end.story());
        assert_eq!((&lost[0]["rank"], &lost[0]["cause"]["status"]["signal"]), (&rank.into(), &9.into()), "{lost:?}");
        assert_eq!(report["steps_taken_again"], 0, "{point}, rank {rank}: {report}");
        assert_eq!(hash(&machine), finished().hash, "{point}, rank {rank}: {}", end.story());
    }
}

#[test]
fn a_rank_that_hangs_is_found_and_replaced_and_one_that_is_slow_is_not() {
    let machine = Machine::new();
    let plan = "[[fault]]\ndo = \"slow\"\nstep = 50\nrank = 1\nfor = 0.9\n\
                [[fault]]\ndo = \"hang\"\nstep = 90\nat = \"reduce\"\nrank = 2\n";
    let (end, _) = suffer(&machine, plan);
    let lost = decided(&end, "lost");
    assert_eq!(lost.len(), 1, "{}", end.story());
    assert_eq!((&lost[0]["rank"], &lost[0]["cause"]["cause"]), (&2.into(), &"hung".into()), "{lost:?}");
    // signs of life tell how many steps there were, however quick
    let seconds = lost[0]["cause"]["for_"]["secs"].as_u64();
    assert!(seconds.is_some_and(|seconds| seconds < 10), "{lost:?}");
    assert_eq!(hash(&machine), finished().hash, "{}", end.story());
}

#[test]
fn a_rank_that_is_stopped_is_found_by_its_silence_and_one_that_goes_on_soon_is_kept() {
    let machine = Machine::new();
    let plan = "[[fault]]\ndo = \"stop\"\nstep = 50\nrank = 0\nfor = 0.2\n\
                [[fault]]\ndo = \"stop\"\nstep = 90\nrank = 1\n";
    let (end, _) = suffer(&machine, plan);
    let lost = decided(&end, "lost");
    assert_eq!(lost.len(), 1, "{}", end.story());
    assert_eq!((&lost[0]["rank"], &lost[0]["cause"]["cause"]), (&1.into(), &"silent".into()), "{lost:?}");
    assert_eq!(hash(&machine), finished().hash, "{}", end.story());
}

#[test]
fn cut_connections_cost_a_step_and_no_worker() {
    let machine = Machine::new();
    let (end, report) = suffer(&machine, "[[fault]]\ndo = \"cut\"\nstep = 70\nat = \"reduce\"\nrank = 1\n");
    assert_eq!((decided(&end, "lost").len(), decided(&end, "formed").len()), (0, 2), "{}", end.story());
    assert_eq!((&report["generations"], &report["steps_taken_again"]), (&2.into(), &0.into()), "{report}");
    assert_eq!(hash(&machine), finished().hash, "{}", end.story());
}

#[test]
fn a_store_that_is_away_delays_checkpoints_and_no_step() {
    let machine = Machine::new();
    let away = |rank: u32| format!("[[fault]]\ndo = \"store\"\nstep = 60\nrank = {rank}\nfor = 1.5\n");
    // long enough for it to be stored, and told, while training goes on
    let longer = Experiment::tiny().with("train.total_kimg", 3.2).with("checkpoint.every_kimg", 0.1);
    let (end, report) = suffer_in(&machine, longer, &(away(0) + &away(1) + &away(2)));
    assert_eq!((decided(&end, "lost").len(), decided(&end, "formed").len()), (0, 1), "{}", end.story());
    let told = end.events("checkpoint").filter_map(|event| event["manifest"].as_str()).count();
    assert_eq!(told, machine.manifests().len(), "each is told: {}", end.story());
    let longest = end.events("checkpoint").filter_map(|event| event["seconds"].as_f64()).fold(0.0, f64::max);
    assert!(longest > 0.3, "{longest}: {}", end.story());
    assert_eq!(report["steps_taken_again"], 0, "{report}");
}

#[test]
fn a_worker_with_a_wrong_bit_is_named_and_repaired() {
    let machine = Machine::new();
    let (end, _) = suffer(&machine, "[[fault]]\ndo = \"flip\"\nstep = 77\nrank = 2\n");
    let told =
        end.events("log").any(|event| event["line"].to_string().contains("ranks [2] hold another state than rank 0"));
    assert!(told, "{}", end.story());
    assert_eq!((decided(&end, "lost").len(), decided(&end, "formed").len()), (0, 2), "{}", end.story());
    assert_eq!(hash(&machine), finished().hash, "{}", end.story());
}

#[test]
fn gradients_that_are_no_numbers_are_skipped_by_all_and_too_many_send_the_run_back() {
    let machine = Machine::new();
    let (end, _) = suffer(&machine, "[[fault]]\ndo = \"nan\"\nstep = 60\nat = \"reduce\"\nrank = 1\nfor = 3\n");
    let skipped = |end: &End| end.events("tick").last().unwrap()["tick"]["skipped_updates"].as_u64();
    assert_eq!((skipped(&end), decided(&end, "formed").len()), (Some(3), 1), "{}", end.story());
    assert_ne!(hash(&machine), finished().hash);

    let machine = Machine::new();
    let (end, report) = suffer(&machine, "[[fault]]\ndo = \"nan\"\nstep = 60\nat = \"reduce\"\nrank = 1\nfor = 40\n");
    let back = decided(&end, "redraw");
    assert_eq!((back.len(), decided(&end, "lost").len()), (1, 0), "{}", end.story());
    assert!(back[0]["to"].as_u64() > Some(0) && back[0]["to"].as_u64() < back[0]["images"].as_u64(), "{back:?}");
    assert_eq!(skipped(&end), Some(0), "what was skipped is not part of the run any more: {}", end.story());
    assert!(report["steps_taken_again"].as_u64() > Some(16), "{report}");
    let cursor = machine.show(&machine.run().display().to_string())["manifest"]["cursor"].clone();
    assert_eq!(cursor["draw"], 2, "{cursor}");
}

#[test]
fn a_plan_that_makes_no_sense_is_refused_before_anything_is_spent() {
    let machine = Machine::new();
    machine.experiment(&Experiment::tiny());
    std::fs::write(machine.path("plan.toml"), "[[fault]]\ndo = \"flip\"\nevery_s = 2\n").unwrap();
    let plan = machine.path("plan.toml").display().to_string();
    let answer = machine.ask(&["launch", "toy.toml", "--chaos", &plan]);
    assert_eq!(answer.code, 3, "{}", answer.text());
    assert!(
        answer.text().contains("fault 1: only kill, stop and leave can be done without a step"),
        "{}",
        answer.text()
    );
    assert!(!machine.run().exists());
}
