//! What holds of one family holds of every other: trained by several workers, stopped, resumed by others, struck, looked at.

use nix::sys::signal::Signal;
use std::path::Path;
use tests::experiment::{Experiment, NAME};
use tests::machine::Machine;
use tests::{images, processes};

/// The run by one worker, undisturbed, and the hash of its end.
fn undisturbed(experiment: &Experiment) -> (Machine, String) {
    let machine = with_images(experiment);
    let end = machine.launch(&["--workers", "1"]).succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    let hash = machine.state_hash(&machine.run().display().to_string());
    (machine, hash)
}

/// A machine with the images of every family.
fn with_images(experiment: &Experiment) -> Machine {
    let machine = Machine::new();
    images::domains(&machine.path("domains"), 24);
    images::pairs(&machine.path("pairs"), 40);
    machine.experiment(experiment);
    machine
}

/// The run, stopped by its people and resumed by other workers, ends in the same bits.
fn stopped_and_resumed(experiment: &Experiment, expected: &str) -> Machine {
    let machine = with_images(experiment);
    let mut run = machine.launch(&[]);
    run.wait_for_images(96);
    assert_eq!(machine.ask(&["stop", NAME]).code, 0);
    assert_eq!(run.end().reason(), "stopped");
    let end = machine.launch(&["--resume", "auto", "--workers", "3"]).succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    let url = machine.run().display().to_string();
    assert_eq!(machine.state_hash(&url), expected, "{}", end.story());
    assert_eq!(machine.verify(&url), machine.manifests().len());
    machine
}

/// The run, whose workers are killed one after the other, goes on by itself to the same bits.
fn struck(experiment: &Experiment, expected: &str) {
    let machine = with_images(experiment);
    let mut run = machine.launch(&["--workers", "2"]);
    let mut kills = 0;
    for images in [40, 200, 360] {
        run.wait_for_images(images);
        if let [one, _] = machine.workers()[..] {
            processes::signal(one, Signal::SIGKILL);
            kills += 1;
        }
    }
    let end = run.succeed();
    assert_eq!(end.reason(), "complete", "{}", end.story());
    assert!(kills > 0, "nobody was killed");
    let url = machine.run().display().to_string();
    assert_eq!(machine.state_hash(&url), expected, "{kills} kills: {}", end.story());
    let report = machine.ask(&["report", &url, "--json"]).json();
    assert_eq!(report["steps_missing"], 0, "{report}");
}

#[test]
fn an_sngan_stopped_and_resumed_by_other_workers_ends_in_the_same_bits_and_gives_images() {
    let (_, hash) = undisturbed(&Experiment::sngan());
    let machine = stopped_and_resumed(&Experiment::sngan(), &hash);

    // what its networks remember besides their parameters is in the checkpoint
    let url = machine.run().display().to_string();
    let shown = machine.show(&url).to_string();
    assert!(shown.contains("d.0.dense.u"), "{shown}");
    let grid = machine.path("grid.png");
    let sample = machine.ask(&["sample", &url, "--seeds", "0-8", "--out", &grid.display().to_string()]);
    assert_eq!(sample.code, 0, "{sample:?}");
    assert_eq!(image::image_dimensions(&grid).unwrap(), (48, 48));
}

#[test]
fn a_cyclegan_stopped_resumed_or_struck_ends_in_the_same_bits_and_translates() {
    let experiment = Experiment::cyclegan();
    let (undisturbed, hash) = undisturbed(&experiment);
    let machine = stopped_and_resumed(&experiment, &hash);
    struck(&experiment, &hash);

    // the pools are in the checkpoint; the data said how long a pass is
    let url = machine.run().display().to_string();
    let shown = machine.show(&url).to_string();
    assert!(shown.contains("pool.a.kept") && shown.contains("\"images\":20"), "{shown}");
    for grid in ["a2b000000.png", "b2a000000.png"] {
        // rows of a held-out image: real, translated, back, and left as it is
        let path = undisturbed.run().join("samples").join(grid);
        assert_eq!(image::image_dimensions(path).unwrap(), (4 * 16, 3 * 16));
    }
    translates(&machine, &url, &["a2b", "b2a"]);
    let sample = machine.ask(&["sample", &url, "--out", &machine.path("grid.png").display().to_string()]);
    assert_eq!((sample.code, sample.text().contains("makes images of images")), (2, true), "{sample:?}");
}

#[test]
fn a_pix2pix_stopped_resumed_or_struck_ends_in_the_same_bits_and_translates() {
    let experiment = Experiment::pix2pix();
    let (undisturbed, hash) = undisturbed(&experiment);
    let machine = stopped_and_resumed(&experiment, &hash);
    struck(&experiment, &hash);
    // real, made, true
    let path = undisturbed.run().join("samples/a2b000000.png");
    assert_eq!(image::image_dimensions(path).unwrap(), (3 * 32, 3 * 32));
    translates(&machine, &machine.run().display().to_string(), &["a2b"]);
}

/// Images of any size, transparent ones too; what cannot be read is named, and the others are made.
fn translates(machine: &Machine, url: &str, directions: &[&str]) {
    let path = |name: &str| machine.path(name).display().to_string();
    let transparent =
        image::RgbaImage::from_fn(37, 22, |x, y| image::Rgba([(6 * x) as u8, (9 * y) as u8, 50, (5 * x) as u8]));
    transparent.save(machine.path("transparent.png")).unwrap();
    machine.write("broken.png", b"no image");
    for direction in directions {
        let out = format!("made-{direction}");
        let inputs = [path("transparent.png"), path("broken.png"), path("images")];
        let all: Vec<&str> = ["translate", url]
            .into_iter()
            .chain(inputs.iter().map(String::as_str))
            .chain(["--direction", direction])
            .collect();
        let answer = machine.ask(&[&all[..], &["--out", &path(&out)]].concat());
        assert_eq!(answer.code, 4, "{answer:?}");
        assert!(answer.text().contains("broken.png"), "{answer:?}");
        let made = |name: &str| image::open(Path::new(&path(&out)).join(name)).unwrap();
        let picture = made("transparent.png");
        assert_eq!((picture.width(), picture.height()), (37, 22));
        let alpha: Vec<u8> = picture.to_rgba8().pixels().map(|pixel| pixel.0[3]).collect();
        assert_eq!(alpha, transparent.pixels().map(|pixel| pixel.0[3]).collect::<Vec<_>>());
        assert_eq!(made("023.png").to_rgb8().dimensions(), (16, 16));
        // nothing is overwritten
        let again =
            machine.ask(&["translate", url, &path("transparent.png"), "--direction", direction, "--out", &path(&out)]);
        assert_eq!(again.code, 2, "{again:?}");
    }
    let wrong =
        machine.ask(&["translate", url, &path("transparent.png"), "--direction", "c2d", "--out", &path("none")]);
    assert!(wrong.code == 2 && wrong.text().contains(directions[0]), "{wrong:?}");
}
