//! What is wrong with a training is said in time and by its name; of a training that is well nothing is said.

use std::collections::BTreeMap;
use tests::experiment::Experiment;
use tests::images;
use tests::launched::End;
use tests::machine::Machine;

/// Images between evaluations, and in a tick.
const EVERY: u64 = 200;
const TICK: u64 = 50;
/// What is wrong must be said by so many images, which are 400 steps of each network.
const IN_TIME: u64 = 800;

/// Two hands that draw the same things: a small CycleGAN, trained on one image of each at a time.
fn healthy() -> Experiment {
    Experiment::cyclegan()
        .without("train.constant_epochs")
        .without("train.decay_epochs")
        .with("train.total_kimg", 2.4)
        .with("train.minibatch.default", 2)
        .with("train.tick_kimg", TICK as f64 / 1000.0)
        .with("train.optimizer.learning_rate", 0.001)
        .with("train.determinism", "fast")
        .with("model.g_width", 8)
        .with("model.d_width", 8)
        .with("metrics.every_kimg", EVERY as f64 / 1000.0)
        .with("cluster.workers", 1)
        .with("seed", 3)
}

fn run(experiment: &Experiment, repeated: bool) -> End {
    let machine = Machine::new();
    images::two_hands(&machine.path("domains"), 18, repeated);
    machine.experiment(experiment);
    machine.launch(&[]).succeed()
}

/// What was said, and at which image first.
fn verdicts(end: &End) -> BTreeMap<String, u64> {
    let mut said = BTreeMap::new();
    for event in end.events("verdict") {
        let verdict = &event["verdict"];
        assert!(
            !verdict["evidence"].as_str().unwrap().is_empty() && !verdict["advice"].as_str().unwrap().is_empty(),
            "{verdict}"
        );
        said.entry(verdict["what"].as_str().unwrap().to_owned()).or_insert(verdict["images"].as_u64().unwrap());
    }
    said
}

fn assert_said(end: &End, what: &str) {
    let said = verdicts(end);
    assert!(
        said.get(what).is_some_and(|images| *images <= IN_TIME),
        "{what} was not said in time: {said:?}\n{}",
        end.story()
    );
}

#[test]
fn of_a_training_that_is_well_nothing_is_said() {
    let end = run(&healthy(), false);
    assert_eq!(verdicts(&end), BTreeMap::new(), "{}", end.story());
}

#[test]
fn a_learning_rate_a_hundred_times_too_large_is_said_to_swing() {
    assert_said(&run(&healthy().with("train.optimizer.learning_rate", 0.1), false), "oscillation");
}

#[test]
fn a_discriminator_that_is_frozen_is_said_not_to_learn() {
    assert_said(&run(&healthy().with("train.optimizer.d_rate", 0.0), false), "d_lost");
}

#[test]
fn translations_that_need_not_lead_back_are_said_to_have_lost_the_way() {
    let nothing_to_hold = healthy().with("model.lambda_a", 0.0).with("model.lambda_b", 0.0);
    assert_said(&run(&nothing_to_hold, false), "lost_way");
}

#[test]
fn one_image_over_and_over_is_said_to_be_so() {
    assert_said(&run(&healthy(), true), "one_image");
}

/// Evaluated every 100 images, of which nothing is kept but the newest and the best.
fn judged() -> Experiment {
    healthy()
        .with("metrics.every_kimg", 0.1)
        .with("checkpoint.every_kimg", 0.1)
        .with("checkpoint.keep_last", 1)
        .with("checkpoint.keep_best", 1)
        .with("cluster.workers", 2)
}

fn prepared(experiment: &Experiment) -> Machine {
    let machine = Machine::new();
    images::two_hands(&machine.path("domains"), 18, false);
    machine.experiment(experiment);
    machine
}

/// What the last verdict of this kind says.
fn said(end: &End, what: &str) -> String {
    let verdicts = end.events("verdict").map(|event| &event["verdict"]);
    let evidence =
        verdicts.filter(|verdict| verdict["what"] == what).filter_map(|verdict| verdict["evidence"].as_str());
    evidence.last().unwrap_or_else(|| panic!("no {what}: {}", end.story())).to_owned()
}

#[test]
fn a_run_that_gets_no_better_ends_with_its_best_state_kept_and_goes_on_when_it_is_resumed() {
    // nobody gets better by 99 % each time
    let machine = prepared(&judged().with("train.stop.evaluations", 3).with("train.stop.min_gain", 0.99));
    let end = machine.launch(&[]).succeed();
    assert_eq!(end.reason(), "stopped", "{}", end.story());
    assert!(said(&end, "stop").contains("3 evaluations in a row"), "{}", end.story());
    let url = machine.run().display().to_string();
    let judgement = |manifest: &std::path::Path| {
        let text = std::fs::read_to_string(manifest).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        manifest["cursor"]["judgement"].clone()
    };
    let manifests = machine.manifests();
    let newest = judgement(manifests.last().unwrap());
    // it trains on until it is told to stop
    assert!(newest["basis"] == "cycle_l1, 8 images, 16 px" && newest["since"].as_u64() >= Some(3), "{newest}");
    // of the best evaluation the first checkpoint after it, and the newest
    // the one before the newest is in use
    assert!(manifests.len() <= 3, "{manifests:?}");
    assert!(manifests.iter().any(|manifest| judgement(manifest)["at"] == newest["best_at"]), "{newest} {manifests:?}");
    assert_eq!(machine.verify(&url), manifests.len());

    let end = machine.resume(&url, &["--set", "train.stop.evaluations=0"]).succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert!(
        end.events("quality").all(|event| event["quality"]["images"].as_u64() > newest["at"].as_u64()),
        "{}",
        end.story()
    );
}

#[test]
fn a_run_whose_time_is_used_up_stores_its_state_and_ends() {
    let machine = prepared(&judged().with("train.total_kimg", 100).with("train.stop.budget", "2s"));
    let end = machine.launch(&[]).succeed();
    assert_eq!(end.reason(), "stopped", "{}", end.story());
    assert!(said(&end, "stop").contains("train.stop.budget"), "{}", end.story());
    assert!(!machine.manifests().is_empty());
}
