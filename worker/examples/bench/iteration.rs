//! Times of one iteration: a step of every phase, from images in memory to updated weights.

use crate::{Failure, Options, settle, trainer};
use common::schedule::Position;
use serde_json::json;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use worker::communicator::Communicator;
use worker::environment::peak_memory_mib;
use worker::trainer::{Flags, Trainer};

/// What one iteration took.
#[derive(Clone)]
struct Sample {
    whole: Duration,
    /// Each step of it.
    steps: Vec<Duration>,
    /// Time that this rank waited for its peers after its own gradients were complete.
    reduce_wait: Duration,
}

/// Measures the iteration at `res` and prints one line, on rank 0.
pub fn measure(options: &Options, res: u32, communicator: Communicator) -> Result<(), Failure> {
    let mut trainer = trainer(&options.config(res)?, options.device(), communicator);
    let images = options.images();
    trainer.restore(Position { images, cycle_images: images, ..Position::default() }, 0, None, 0);
    let level = trainer.stage().level;
    if level.resolution != res || (level.alpha() - options.alpha).abs() > 1e-6 {
        return Err(format!("no run is at {res} px with alpha {}", options.alpha).into());
    }
    let share = trainer.upcoming(1)[0].samples.len() as i64;
    let pixels = Tensor::rand([share, 3, i64::from(res), i64::from(res)], (Kind::Float, Device::Cpu)) * 255.0;
    let pixels = pixels.to_kind(Kind::Uint8);
    // families of one domain pass over the second
    let pixels = pixels.to_device(options.device());
    let real = [pixels.shallow_clone(), pixels];
    let phases: Vec<&str> = (trainer.model().phases().iter())
        .flat_map(|phase| std::iter::repeat_n(phase.name, phase.repeats as usize))
        .collect();

    for _ in 0..options.warmup {
        iterate(&mut trainer, &real, phases.len())?;
    }
    let processor = processor_ms();
    let mut samples = Vec::new();
    for _ in 0..options.iters {
        samples.push(iterate(&mut trainer, &real, phases.len())?);
    }
    let processor = (processor_ms() - processor) / f64::from(options.iters);
    let skipped = trainer.skipped_updates();
    let losses = trainer.take_statistics()?;
    if skipped > 0 || losses.values().any(|v| !v.is_finite()) {
        return Err(format!("training at {res} px is not finite: {losses:?}, {skipped} updates skipped").into());
    }
    if trainer.communicator().rank() == 0 {
        let whole = median(&samples, |s| s.whole);
        let mut line = json!({
            "res": res, "batch": options.batch, "world": options.world, "threads": options.threads,
            "ms_per_iter": rounded(whole * 1e3), "img_per_s": rounded(f64::from(options.batch) / whole),
            "reduce_wait_ms": rounded(median(&samples, |s| s.reduce_wait) * 1e3),
            "cpu_ms_per_iter": rounded(processor),
            "peak_memory_mib": peak_memory_mib().round(),
            "losses": losses,
        });
        // a GPU is still at work when the step has been asked for
        for (place, name) in phases.iter().enumerate().filter(|_| trainer.device() == Device::Cpu) {
            line[format!("{name}_ms")] = json!(rounded(median(&samples, |s| s.steps[place]) * 1e3));
        }
        println!("{line}");
    }
    // nobody leaves while another still measures
    Ok(trainer.communicator().barrier()?)
}

fn iterate(trainer: &mut Trainer, real: &[Tensor], count: usize) -> Result<Sample, Failure> {
    trainer.communicator().barrier()?;
    trainer.communicator().take_waited();
    settle(trainer.device());
    let began = Instant::now();
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        let before = began.elapsed();
        // phases that read no images pass over them
        trainer.step(real, Flags::default())?;
        steps.push(began.elapsed() - before);
    }
    settle(trainer.device());
    Ok(Sample { whole: began.elapsed(), steps, reduce_wait: trainer.communicator().take_waited() })
}

/// The middle one, seconds.
fn median(samples: &[Sample], of: impl Fn(&Sample) -> Duration) -> f64 {
    let mut times: Vec<Duration> = samples.iter().map(of).collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Processor time of this process so far, all threads, in ms; steps of 10 ms. 0 where the system does not say.
fn processor_ms() -> f64 {
    const TICK_MS: f64 = 10.0; // of /proc/self/stat on every Linux
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    // fields 14 and 15 of proc(5), the first after the name being field 3
    fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() * TICK_MS
}
