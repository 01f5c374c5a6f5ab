//! The named schedules: growth, minibatch and learning-rate tables of the authors of Progressive GAN.
//!
//! A preset is chosen once, by the workers at launch, and is then part of the run: it never follows the world's size.

use super::raw::{
    PerResolution, Rate, RawFile, RawGrowth, RawModel, RawOptimizer, RawProGan, RawTrain, Resolution, Samples,
    Schedule, TickKimg,
};
use super::resolved::Precision;

/// A column of the authors' table: what they used for this many GPUs.
struct Column {
    workers: u32,
    minibatch: [u32; 9],
    elsewhere: u32,
    learning_rate: &'static [(u32, f64)],
}

/// Minibatches are for 4, 8, 16, 32, 64, 128, 256, 512 and 1024 pixels.
const V2: [Column; 4] = [
    Column {
        workers: 1,
        minibatch: [128, 128, 128, 64, 32, 16, 8, 4, 4],
        elsewhere: 4,
        learning_rate: &[(1024, 0.0015)],
    },
    Column {
        workers: 2,
        minibatch: [256, 256, 128, 64, 32, 16, 8, 8, 8],
        elsewhere: 8,
        learning_rate: &[(512, 0.0015), (1024, 0.002)],
    },
    Column {
        workers: 4,
        minibatch: [512, 256, 128, 64, 32, 16, 16, 16, 16],
        elsewhere: 16,
        learning_rate: &[(256, 0.0015), (512, 0.002), (1024, 0.003)],
    },
    Column {
        workers: 8,
        minibatch: [512, 256, 128, 64, 32, 32, 32, 32, 32],
        elsewhere: 32,
        learning_rate: &[(128, 0.0015), (256, 0.002), (512, 0.003), (1024, 0.003)],
    },
];

/// Samples that fit one GPU of the authors' time at once.
const FIT_FP32: [(u32, u32); 3] = [(256, 16), (512, 8), (1024, 4)];
const FIT_BF16: [(u32, u32); 2] = [(512, 16), (1024, 8)];

/// Length of a tick in kimg, for 4 to 1024 pixels.
const TICKS: [u32; 9] = [160, 140, 120, 100, 80, 60, 40, 20, 10];

/// What `schedule` says for `workers` at launch: the table with the most workers that are not more. `None` where no
/// preset is meant.
pub(super) fn of(schedule: Schedule, precision: Precision, workers: u32) -> Option<RawFile> {
    let train = match schedule {
        Schedule::None => return None,
        Schedule::ProganV1 => RawTrain {
            total_kimg: Some(19_000.0),
            growth: Some(growth(800.0)),
            minibatch: Some(samples(Some(16), &[(256, 14), (512, 6), (1024, 3)])),
            optimizer: Some(optimizer(&[])),
            ..common(precision)
        },
        Schedule::ProganV2 => {
            let column = V2.iter().rev().find(|column| column.workers <= workers).unwrap_or(&V2[0]);
            let minibatch: Vec<_> = Resolution::ALL.into_iter().zip(column.minibatch).collect();
            RawTrain {
                total_kimg: Some(12_000.0),
                growth: Some(growth(600.0)),
                minibatch: Some(samples(Some(column.elsewhere), &minibatch)),
                optimizer: Some(optimizer(column.learning_rate)),
                ..common(precision)
            }
        }
    };
    let group = if schedule == Schedule::ProganV1 { 16 } else { 4 };
    let model = RawModel::ProGan(RawProGan { minibatch_stddev_group: Some(group), ..RawProGan::default() });
    Some(RawFile { model: Some(model), train: Some(train), ..RawFile::default() })
}

/// What both presets share.
fn common(precision: Precision) -> RawTrain {
    let fit: &[_] = if precision == Precision::Bf16 { &FIT_BF16 } else { &FIT_FP32 };
    let ticks = Resolution::ALL.into_iter().zip(TICKS.map(|kimg| TickKimg(f64::from(kimg))));
    RawTrain {
        minibatch_repeats: Some(4),
        d_repeats: Some(1),
        ema_decay: Some(0.999),
        max_per_worker: Some(samples(None, fit)),
        tick_kimg: Some(PerResolution::new(None, ticks)),
        ..RawTrain::default()
    }
}

fn growth(kimg: f64) -> RawGrowth {
    RawGrowth { start_resolution: Some(Resolution(4)), stable_kimg: Some(kimg), fade_kimg: Some(kimg) }
}

fn optimizer(learning_rate: &[(u32, f64)]) -> RawOptimizer {
    let by_resolution = learning_rate.iter().map(|&(pixels, rate)| (pixels, Rate(rate)));
    RawOptimizer {
        beta1: Some(0.0),
        beta2: Some(0.99),
        epsilon: Some(1e-8),
        learning_rate: Some(PerResolution::new(Some(Rate(0.001)), by_resolution)),
        reset_for_new_lod: Some(true),
        ..RawOptimizer::default()
    }
}

fn samples(default: Option<u32>, entries: &[(u32, u32)]) -> PerResolution<Samples> {
    PerResolution::new(default.map(Samples), entries.iter().map(|&(pixels, count)| (pixels, Samples(count))))
}
