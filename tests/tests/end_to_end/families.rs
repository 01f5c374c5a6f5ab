//! What holds of one family holds of every other: trained by several workers, stopped, resumed by others, looked at.

use tests::experiment::{Experiment, NAME};
use tests::machine::Machine;

#[test]
fn an_sngan_stopped_and_resumed_by_other_workers_ends_in_the_same_bits_and_gives_images() {
    let undisturbed = Machine::new();
    undisturbed.experiment(&Experiment::sngan());
    undisturbed.launch(&["--workers", "1"]).succeed();
    let hash = |machine: &Machine| machine.state_hash(&machine.run().display().to_string());

    let machine = Machine::new();
    machine.experiment(&Experiment::sngan());
    let mut run = machine.launch(&[]);
    run.wait_for_images(96);
    assert_eq!(machine.ask(&["stop", NAME]).code, 0);
    assert_eq!(run.end().reason(), "stopped");
    let end = machine.launch(&["--resume", "auto", "--workers", "3"]).succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert_eq!(hash(&machine), hash(&undisturbed));

    // what its networks remember besides their parameters is in the checkpoint
    let url = machine.run().display().to_string();
    let shown = machine.show(&url).to_string();
    assert!(shown.contains("d.0.dense.u"), "{shown}");
    assert_eq!(machine.verify(&url), machine.manifests().len());
    let grid = machine.path("grid.png");
    let sample = machine.ask(&["sample", &url, "--seeds", "0-8", "--out", &grid.display().to_string()]);
    assert_eq!(sample.code, 0, "{sample:?}");
    assert_eq!(image::image_dimensions(&grid).unwrap(), (48, 48));
}
