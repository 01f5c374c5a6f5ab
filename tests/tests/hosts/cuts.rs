//! Links that are pulled, cut and healed: who is silent is done without, who cannot be heard of commits nothing, and there
//! is one history.

use crate::scene::{BACK, BUSY, RUN_PATIENCE, STRUCK_AT, Scene, WORKERS, formed, generations, long, losses};
use std::time::Instant;

#[test]
fn a_host_that_falls_silent_is_done_without_and_comes_back_as_a_newcomer() {
    let Some(scene) = Scene::set(&long()) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    let cut = Instant::now();
    scene.hosts.unplug(1);
    let noticed = formed(&mut run, 2, cut);
    run.wait_for("tick");
    println!("silent host: {noticed:.2?} from the cut to the next generation, {:.2?} to the next tick", cut.elapsed());
    assert!(noticed <= RUN_PATIENCE + BUSY, "{noticed:?}");
    let healed = Instant::now();
    scene.hosts.plug(1);
    let back = formed(&mut run, WORKERS as u64, healed);
    println!("  {back:.2?} from the heal to a generation of all");
    assert!(back <= BACK, "{back:?}");
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!(losses(&end.seen).len(), 1, "{}", end.story());
}

/// How the names of checkpoints of generation 2 end.
const SECOND: &str = "-000002.json";

/// Coordinator and worker 1 here, workers 2 and 3 there.
#[test]
fn the_side_without_the_coordinator_commits_nothing_and_comes_back_after_it_was_evicted() {
    let Some(scene) = Scene::set(&long()) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    for here in [0, 1] {
        for there in [2, 3] {
            scene.hosts.cut(here, there);
        }
    }
    let cut = Instant::now();
    let noticed = formed(&mut run, 1, cut);
    println!("partition: {noticed:.2?} from the cut to the next generation");
    assert!(noticed <= RUN_PATIENCE + BUSY, "{noticed:?}");
    // what was under way at the cut is done with; a checkpoint of this side later, there is none of the other
    let before = scene.machine.manifests();
    run.wait_where("checkpoint of generation 2", |event| {
        event["manifest"].as_str().is_some_and(|manifest| manifest.ends_with(SECOND))
    });
    let during: Vec<_> = scene.machine.manifests().into_iter().filter(|one| !before.contains(one)).collect();
    assert!(during.iter().all(|one| one.to_string_lossy().ends_with(SECOND)), "{during:?}");
    let healed = Instant::now();
    scene.hosts.heal();
    let back = formed(&mut run, WORKERS as u64, healed);
    println!("  {back:.2?} from the heal to a generation of all");
    assert!(back <= BACK, "{back:?}");
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!(losses(&end.seen).len(), 2, "{}", end.story());
}

/// Coordinator and worker 1 here, workers 2 and 3 there, for good.
#[test]
fn the_side_without_the_coordinator_leaves_when_its_patience_ends() {
    let Some(scene) = Scene::set(&long().with("cluster.orphan_patience", "3s")) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    for here in [0, 1] {
        for there in [2, 3] {
            scene.hosts.cut(here, there);
        }
    }
    // 7: the coordinator vanished
    scene.ends_well(run, guests, &[0, 7]);
}

/// All workers reach each other, and nobody reaches the coordinator, for longer than its patience.
#[test]
fn a_coordinator_that_is_cut_off_costs_no_generation() {
    let Some(scene) = Scene::set(&long()) else { return };
    let (mut run, guests) = scene.launch();
    run.wait_for_images(STRUCK_AT);
    for worker in 1..=WORKERS {
        scene.hosts.cut(0, worker);
    }
    run.let_pass(RUN_PATIENCE * 3);
    let healed = Instant::now();
    scene.hosts.heal();
    let tick = run.wait_for("tick")["tick"]["images"].clone();
    println!(
        "coordinator alone: {:.2?} from the heal to the next tick it hears of, at {tick} images",
        healed.elapsed()
    );
    let end = scene.ends_well(run, guests, &[0]);
    assert_eq!(losses(&end.seen).len(), 0, "{}", end.story());
    assert_eq!(generations(&end.seen), 1, "{}", end.story());
}
