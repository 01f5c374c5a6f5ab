//! What a run leaves: grids, metrics, log, configuration, checkpoints; and images made from them afterwards.

use crate::finished::{Finished, finished};
use common::config::resolved::RunConfig;
use common::metrics::Event;
use image::ImageReader;
use std::path::Path;
use tests::experiment::NAME;
use tests::machine::Machine;

/// Width and height of a PNG, which must be one to its last pixel.
fn size(png: &Path) -> (u32, u32) {
    let reader = ImageReader::open(png).unwrap_or_else(|error| panic!("{}: {error}", png.display()));
    let image =
        reader.with_guessed_format().unwrap().decode().unwrap_or_else(|error| panic!("{}: {error}", png.display()));
    (image.width(), image.height())
}

#[test]
fn metrics_are_lines_of_events_among_them_the_distance_with_its_floor() {
    let text = std::fs::read_to_string(finished().machine.run().join("metrics.jsonl")).unwrap();
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let events: Vec<Event> = text.lines().map(parse).collect();
    let ticks: Vec<_> =
        events.iter().filter_map(|e| if let Event::Tick(tick) = e { Some(tick) } else { None }).collect();
    assert_eq!(ticks.len(), 44, "one for every 16 images");
    assert!(ticks.windows(2).all(|pair| pair[1].images == pair[0].images + 16 && pair[1].lod <= pair[0].lod));
    let [first, last] = [ticks[0], ticks[43]];
    assert_eq!((first.resolution, first.lod, last.resolution, last.lod, last.images), (4, 2.0, 16, 0.0, 704));
    for tick in ticks {
        assert_eq!((tick.minibatch, tick.world, tick.generation, tick.total_images), (8, 2, 1, 700));
        assert!(tick.stats.values().all(|value| value.is_finite()) && tick.sec_per_kimg > 0.0 && tick.memory_mib > 1.0);
        for name in ["loss/d", "loss/g", "score/real", "score/fake", "gradient_norm/d", "gradient_norm/g"] {
            assert!(tick.stats.contains_key(name), "no {name} in {:?}", tick.stats);
        }
    }
    let measured: Vec<_> =
        events.iter().filter_map(|e| if let Event::Quality(quality) = e { Some(quality) } else { None }).collect();
    let what: Vec<_> = measured.iter().map(|quality| (quality.images, quality.metric.as_str())).collect();
    assert_eq!(what, [(0, "swd"), (0, "ms_ssim"), (704, "swd"), (704, "ms_ssim")], "before and after");
    for quality in &measured {
        assert_eq!(quality.count, 16);
        for values in [&quality.levels, &quality.floor] {
            assert_eq!(values.keys().copied().collect::<Vec<_>>(), [16]);
            assert!(values[&16].is_finite() && values[&16] > 0.0, "{quality:?}");
        }
    }
    // what scripts saw is what is kept
    let end = &finished().end;
    assert_eq!((end.events("tick").count(), end.events("quality").count()), (44, 4), "{}", end.story());
}

#[test]
fn grids_log_and_configuration_are_there() {
    let run = finished().machine.run();
    // 32 by 32 cells at most; as many reals as there are images
    for grid in ["reals.png", "fakes000000.png"] {
        let (width, height) = size(&run.join("samples").join(grid));
        assert!(width % 16 == 0 && height % 16 == 0 && width >= 7 * 16 && height >= 4 * 16, "{grid}: {width}x{height}");
    }
    let log = std::fs::read_to_string(run.join("log.txt")).unwrap();
    for part in ["[0] ", "[1] ", "[c] ", "rank 0 of 2", "rank 1 of 2", "the run is complete"] {
        assert!(log.contains(part), "no {part:?} in:\n{log}");
    }
    let json = std::fs::read_to_string(run.join("config.json")).unwrap();
    let config: RunConfig = serde_json::from_str(&json).unwrap();
    assert_eq!((config.name.as_str(), config.seed, config.model.resolution()), (NAME, 7, 16));
    // the resolved file is an experiment file too, and describes the same run
    let machine = Machine::new();
    let toml = run.join("config.toml").display().to_string();
    let again = machine.ask(&["config", "show", &toml, "--json"]).json();
    assert_eq!(again["config"], serde_json::from_str::<serde_json::Value>(&json).unwrap());
}

#[test]
fn checkpoints_are_listed_newest_first_and_whole() {
    let Finished { machine, .. } = finished();
    let url = finished().url();
    let list = machine.ask(&["checkpoints", "ls", &url, "--json"]).json();
    let images = list["checkpoints"].as_array().unwrap().iter().map(|one| one["images"].as_u64().unwrap());
    assert_eq!(images.collect::<Vec<_>>(), [704, 600, 504, 400, 304, 200, 104]);
    assert_eq!(machine.verify(&url), 7);
    let table = machine.ask(&["checkpoints", "ls", &url]);
    assert_eq!((table.code, table.stdout.lines().count()), (0, 8), "{table:?}");
    let show = machine.ask(&["checkpoints", "show", &url]);
    assert!(show.code == 0 && show.stdout.contains(&finished().hash), "{show:?}");
}

#[test]
fn samples_from_a_checkpoint_are_pictures_of_its_size_and_the_same_each_time() {
    let Finished { machine, .. } = finished();
    let url = finished().url();
    let early = machine.manifests()[1].display().to_string();
    for (url, seeds, out, expected) in [
        (&url, "0-63", "grid.png", (8 * 16, 8 * 16)),
        (&url, "0-63", "again.png", (8 * 16, 8 * 16)),
        (&url, "7", "one.png", (16, 16)),
        (&url, "1,5,9-11", "five.png", (3 * 16, 2 * 16)),
        (&early, "0-3", "early.png", (2 * 8, 2 * 8)),
    ] {
        let answer = machine.ask(&["sample", url, "--seeds", seeds, "--out", out]);
        assert_eq!(answer.code, 0, "{answer:?}");
        assert_eq!(size(&machine.path(out)), expected, "{seeds} of {url}");
    }
    let bytes = |name: &str| std::fs::read(machine.path(name)).unwrap();
    assert_eq!(bytes("grid.png"), bytes("again.png"));
}
