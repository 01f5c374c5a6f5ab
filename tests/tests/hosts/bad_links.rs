//! Links that are bad and do not break: one direction lost, delay, packets lost.

use crate::scene::{RUN_PATIENCE, STRUCK_AT, Scene, WORKERS, experiment, formed, generations, losses, short};
use std::time::{Duration, Instant};

/// A cut in one direction: `deaf` hears nothing from `other`, for ever or for so long. A worker gives up a coordinator
/// after `orphan_patience`.
fn one_way(what: &str, (deaf, other): (usize, usize), lasts: Option<Duration>, orphan_patience: &str) {
    let Some(scene) = Scene::set(&short().with("cluster.orphan_patience", orphan_patience)) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    scene.hosts.deafen(deaf, other);
    println!("{what}:");
    if let Some(lasts) = lasts {
        run.let_pass(lasts);
        scene.hosts.heal();
    }
    let end = scene.ends_well(run, guests, &[0, 7, 8]);
    println!("  {} lost, {} generations", losses(&end.seen).len(), generations(&end.seen));
    assert!(losses(&end.seen).len() <= 1, "{}", end.story());
}

#[test]
fn a_worker_that_does_not_hear_another_costs_one_of_them_at_most() {
    one_way("worker 2 does not hear worker 1", (2, 1), None, "60s");
}

#[test]
fn a_coordinator_that_does_not_hear_a_worker_loses_that_one_at_most() {
    one_way("the coordinator does not hear worker 1", (0, 1), Some(RUN_PATIENCE * 4), "60s");
}

#[test]
fn a_worker_that_does_not_hear_the_coordinator_is_lost_at_most_itself() {
    one_way("worker 1 does not hear the coordinator", (1, 0), Some(RUN_PATIENCE * 4), "60s");
}

#[test]
fn a_worker_that_becomes_an_orphan_alone_leaves_alone() {
    let Some(scene) = Scene::set(&experiment(6.4).with("cluster.orphan_patience", "2s")) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    scene.hosts.deafen(1, 0);
    let cut = Instant::now();
    let without = formed(&mut run, 2, cut);
    println!(
        "worker 1 does not hear the coordinator, and becomes an orphan: {without:.2?} to a generation of the others"
    );
    let end = scene.ends_well(run, guests, &[0, 7]);
    assert_eq!((losses(&end.seen).len(), generations(&end.seen)), (1, 2), "{}", end.story());
}

/// Every round trip takes 400 ms here, so the run is short. A packet that is lost twice is late by seconds: the patience is
/// that of a network on which that happens.
#[test]
fn delay_and_loss_evict_nobody() {
    let Some(scene) = Scene::set(&experiment(0.048).with("cluster.patience", "5s")) else { return };
    scene.hosts.delay(&[Duration::from_millis(100); WORKERS + 1]);
    scene.hosts.lose(5);
    let (run, guests) = scene.launch();
    println!("200 ms and 5 % loss:");
    let end = scene.ends_well(run, guests, &[0]);
    println!("  {} lost, {} generations", losses(&end.seen).len(), generations(&end.seen));
    assert_eq!(losses(&end.seen).len(), 0, "{}", end.story());
    assert_eq!(generations(&end.seen), 1, "{}", end.story());
}

/// It is not evicted: whether it is worth replacing is for a person to decide.
#[test]
fn a_worker_that_is_far_away_is_named() {
    let Some(scene) = Scene::set(&experiment(0.64).with("cluster.patience", "5s")) else { return };
    let far = |host| if host == 2 { Duration::from_millis(30) } else { Duration::ZERO };
    scene.hosts.delay(&std::array::from_fn::<_, { WORKERS + 1 }, _>(far));
    let (mut run, guests) = scene.launch();
    let named = run.wait_where("straggler", |event| event["decision"]["reason"] == "straggler")["decision"].clone();
    println!("a way that is 30 ms longer: {named}");
    assert_eq!(named["slowness"], "network", "{named}");
    let rank = named["rank"].as_u64().unwrap();
    let joined = format!("rank {rank} of 3");
    let hosts: Vec<usize> = (1..=WORKERS).filter(|&host| scene.said(host).contains(&joined)).collect();
    assert_eq!(hosts, [2], "{named}");
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!((losses(&end.seen).len(), generations(&end.seen)), (0, 1), "{}", end.story());
}
