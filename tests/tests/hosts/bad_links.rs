//! Links that are bad and do not break: one direction lost, delay, packets lost.

use crate::scene::{BUSY, STRUCK_AT, Scene, experiment, generations, losses};
use std::path::Path;
use std::time::Duration;
use tests::finished::Finished;

/// A cut in one direction that lasts: `deaf` hears nothing from `other`.
fn one_way(what: &str, deaf: usize, other: usize) {
    // what can never say farewell gives up sooner
    let Some(mut scene) = Scene::set(&experiment().with("cluster.orphan_patience", "3s")) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    scene.hosts.deafen(deaf, other);
    let end = scene.ends_well(run, guests, &[0, 7, 8]);
    println!("{what}: {} lost, {} generations", losses(&end.seen).len(), generations(&end.seen));
    assert!(losses(&end.seen).len() <= 1, "{}", end.story());
}

#[test]
fn a_worker_that_does_not_hear_another_costs_one_of_them_at_most() {
    one_way("worker 2 does not hear worker 1", 2, 1);
}

#[test]
fn a_coordinator_that_does_not_hear_a_worker_loses_that_one_at_most() {
    one_way("the coordinator does not hear worker 1", 0, 1);
}

#[test]
fn a_worker_that_does_not_hear_the_coordinator_is_lost_at_most_itself() {
    one_way("worker 1 does not hear the coordinator", 1, 0);
}

/// Every round trip takes 400 ms here, so the run is short.
#[test]
fn delay_and_loss_evict_nobody() {
    let short = experiment().with("train.total_kimg", 0.096).with("cluster.patience", "2s");
    let Some(mut scene) = Scene::set(&short) else { return };
    let like = Finished::run(Path::new(env!("CARGO_TARGET_TMPDIR")).join("hosts-short"), &short);
    scene.hosts.delay(Duration::from_millis(200));
    scene.hosts.lose(5);
    let (run, guests) = scene.launch();
    let end = scene.ends_like(&like, run, guests, &[0]);
    println!("200 ms and 5 % loss: {} lost, {} generations", losses(&end.seen).len(), generations(&end.seen));
    assert_eq!(losses(&end.seen).len(), 0, "{}", end.story());
    assert_eq!(generations(&end.seen), 1, "{}", end.story());
    let _ = BUSY;
}
