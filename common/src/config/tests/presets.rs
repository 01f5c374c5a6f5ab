//! The authors' schedules, column by column, and how long each takes.

use super::*;
use crate::config::resolved::{Ema, Model, Train};

const RESOLUTIONS: [u32; 9] = [4, 8, 16, 32, 64, 128, 256, 512, 1024];

fn preset(name: &str, more: &str, workers: u32) -> RunConfig {
    let text = format!("{SMALL}[train]\nschedule = \"{name}\"\n{more}");
    for_workers(&text, &[], &[], workers).unwrap_or_else(|error| panic!("{error}")).config
}

fn minibatches(train: &Train) -> [u32; 9] {
    RESOLUTIONS.map(|pixels| train.minibatch_at(pixels))
}

/// gan.md 1.9 and 19, item 5.
#[test]
fn minibatch_and_learning_rate_by_resolution_for_1_2_4_and_8_workers() {
    let table = [
        (1, [128, 128, 128, 64, 32, 16, 8, 4, 4], [1.0, 1.0, 1.0, 1.0, 1.5]),
        (2, [256, 256, 128, 64, 32, 16, 8, 8, 8], [1.0, 1.0, 1.0, 1.5, 2.0]),
        (4, [512, 256, 128, 64, 32, 16, 16, 16, 16], [1.0, 1.0, 1.5, 2.0, 3.0]),
        (8, [512, 256, 128, 64, 32, 32, 32, 32, 32], [1.0, 1.5, 2.0, 3.0, 3.0]),
    ];
    for (workers, minibatch, rates) in table {
        let train = preset("progan-v2", "", workers).train;
        assert_eq!(minibatches(&train), minibatch, "{workers} workers");
        for pixels in [4, 8, 16, 32] {
            assert_eq!(train.learning_rate_at(pixels), 0.001, "{workers} workers at {pixels}");
        }
        let found = [64, 128, 256, 512, 1024].map(|pixels| train.learning_rate_at(pixels));
        assert_eq!(found, rates.map(|thousandths| thousandths / 1000.0), "{workers} workers");
    }
}

#[test]
fn between_the_columns_the_lower_one_holds() {
    for (workers, column) in [(0, 1), (3, 2), (5, 4), (7, 4), (9, 8), (1000, 8)] {
        assert_eq!(preset("progan-v2", "", workers), preset("progan-v2", "", column), "{workers} workers");
    }
}

#[test]
fn what_the_second_preset_says_beside_its_tables() {
    let run = preset("progan-v2", "", 8);
    let Model::ProGan(model) = &run.model else { panic!() };
    assert_eq!((run.train.total_kimg, run.train.minibatch_base, model.minibatch_stddev_group), (12_000.0, 32, 4));
    assert_eq!((run.train.growth.stable_kimg, run.train.growth.fade_kimg), (600.0, 600.0));
    assert_eq!((run.train.ema, run.train.minibatch_repeats, run.train.d_repeats), (Ema::Decay(0.999), 4, 1));
    assert_eq!(run.train.max_per_worker.into_iter().collect::<Vec<_>>(), [(256, 16), (512, 8), (1024, 4)]);
    let half = preset("progan-v2", "precision = \"bf16\"", 8).train.max_per_worker;
    assert_eq!((half[&512], half[&1024]), (16, 8));
}

#[test]
fn the_first_preset() {
    for workers in [1, 8] {
        let run = preset("progan-v1", "", workers);
        let Model::ProGan(model) = &run.model else { panic!() };
        assert_eq!((run.train.total_kimg, model.minibatch_stddev_group), (19_000.0, 16));
        assert_eq!((run.train.growth.stable_kimg, run.train.growth.fade_kimg), (800.0, 800.0));
        assert_eq!(minibatches(&run.train), [16, 16, 16, 16, 16, 16, 14, 6, 3]);
        assert_eq!(RESOLUTIONS.map(|pixels| run.train.learning_rate_at(pixels)), [0.001; 9]);
        assert_eq!(run.train.ema, Ema::Decay(0.999));
    }
}

/// gan.md 19, item 5: the count is exact but for the cycles of 4 that a phase may begin late, once per resolution.
#[test]
fn discriminator_steps_of_a_whole_run() {
    for (workers, steps) in [(1, 1_354_688_u64), (2, 822_656), (4, 483_984), (8, 277_734)] {
        let plan = plan(&preset("progan-v2", "", workers), workers);
        assert!(plan.d_steps.abs_diff(steps) <= 4 * 9, "{workers} workers: {} steps", plan.d_steps);
        assert_eq!((plan.d_steps, plan.d_steps % 4), (plan.g_steps, 0));
        assert_eq!((plan.phases.len(), plan.most_idle(), plan.reaches_full_resolution()), (17, 0, true));
    }
    let plan = plan(&preset("progan-v2", "", 8), 8);
    let of = |pixels| plan.phases.iter().filter(|p| p.resolution == pixels).map(|p| p.d_steps).sum::<u64>();
    let reference = [1172, 4688, 9375, 18_750, 37_500, 37_500, 37_500, 37_500, 93_750];
    for (pixels, steps) in RESOLUTIONS.into_iter().zip(reference) {
        assert!(of(pixels).abs_diff(steps) <= 4, "{} steps at {pixels}", of(pixels));
    }
}

/// The plan takes whole phases at once; walking cycle by cycle, as training does, must end at the same counts.
#[test]
fn the_plan_agrees_with_a_walk_through_every_cycle() {
    for (set, workers) in [
        (vec![], 2),
        (vec!["train.d_repeats=3", "train.minibatch_repeats=5"], 1),
        (vec!["train.growth.fade_kimg=0"], 3),
    ] {
        let text = format!(
            "{SMALL}[model]\nresolution = 64\n[train]\nschedule = \"progan-v2\"\ntotal_kimg = 700\n[train.growth]\nstable_kimg = 50.7\nfade_kimg = 30.3"
        );
        let run = for_workers(&text, &[], &set, workers).unwrap().config;
        let (mut images, mut d_steps) = (0, 0);
        while images < run.train.total_images() {
            let level = run.train.growth.level(64, crate::ids::ImagesSeen(images));
            let steps = u64::from(run.train.minibatch_repeats * run.train.d_repeats);
            images += steps * u64::from(run.train.minibatch_at(level.resolution));
            d_steps += steps;
        }
        let plan = plan(&run, workers);
        assert_eq!((plan.images, plan.d_steps), (images, d_steps), "{set:?}");
    }
}

#[test]
fn the_plan_says_where_workers_idle_and_who_accumulates() {
    let plan = plan(&preset("progan-v2", "", 2), 3);
    let last = plan.phases.last().unwrap();
    assert_eq!((last.resolution, last.minibatch, last.groups, last.idle_workers), (1024, 8, 2, 1));
    assert_eq!((last.least_per_worker, last.most_per_worker, last.passes), (0, 4, 1));
    let first = &plan.phases[0];
    assert_eq!((first.minibatch, first.groups, first.idle_workers), (256, 64, 0));
    assert_eq!((first.least_per_worker, first.most_per_worker), (84, 88));
    assert!(plan.to_string().contains("up to 1 of 3 workers idle"), "{plan}");

    // 32 samples of 1024 pixels on one worker that holds 4 at once
    let alone = super::plan(&preset("progan-v2", "", 8), 1);
    assert_eq!((alone.phases[16].most_per_worker, alone.phases[16].passes), (32, 8));
}

#[test]
fn a_plan_of_the_longest_run_takes_no_time() {
    let text = format!("{SMALL}[train]\ntotal_kimg = 1000000000\nminibatch = 1\n[model]\nminibatch_stddev_group = 1");
    let plan = plan(&config(&text), 4096);
    assert_eq!((plan.images, plan.phases.len(), plan.most_idle()), (1_000_000_000_000, 17, 4095));
    assert!(!super::plan(&config(&format!("{SMALL}[train]\ntotal_kimg = 1\n")), 1).reaches_full_resolution());
}
