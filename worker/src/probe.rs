//! The greatest step of a run, tried on a GPU before anybody is waited for: what needs more memory than there is fails in the first minute,
//! and not on the day on which the images have grown so large.
//!
//! Tried with networks and images of its own, and with as much memory held as optimizer and average will take. Changes no state. Refuses to
//! say anything of host memory, which the system lends beyond what there is: the estimate is all that is known there.

use crate::failure::Failure;
use crate::models::{self, Batch, Draw};
use common::config::plan;
use common::config::resolved::{Precision, RunConfig};
use common::ids::ImagesSeen;
use common::schedule::Stage;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// Takes the step that needs most memory where as many workers as at launch share the minibatch.
///
/// # Errors
/// [`Failure::Unsupported`] where it cannot be taken: which one, libtorch's words, and what to do.
pub fn greatest_step(config: &RunConfig, device: Device) -> Result<(), Failure> {
    let plan = plan(config, config.cluster.workers);
    let Some(worst) = plan.phases.iter().max_by_key(|phase| phase.memory.total()) else { return Ok(()) };
    let stage = Stage::at(config, ImagesSeen(worst.from_images));
    attempt(|| take(config, &stage, worst.at_once, worst.memory.state, device)).map_err(|why| {
        let side = stage.level.resolution;
        Failure::Unsupported(format!(
            "a step at {side}x{side} with {} samples at once, the greatest of this run, cannot be taken on {device:?}: {why}. Let a worker take \
             fewer at once (train.max_per_worker.{side}), add workers, or make the networks narrower",
            worst.at_once
        ))
    })
}

/// Runs `step`, of which libtorch's refusals are panics; the words of one.
fn attempt(step: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    // the hook is one for all threads
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // what is told here need not be shouted, too
    let hook = take_hook();
    set_hook(Box::new(|_| ()));
    let ended = catch_unwind(AssertUnwindSafe(step));
    set_hook(hook);
    ended.unwrap_or_else(|panic| Err(words(panic.as_ref())))
}

/// The first line of what a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("libtorch refused without a word");
    // behind `called Result::unwrap() on an Err value: Torch("...`
    let text = text.rsplit_once("Torch(\"").map_or(text, |(_, rest)| rest);
    text.split("\\n").next().unwrap_or(text).lines().next().unwrap_or(text).trim_end_matches('.').to_owned()
}

fn take(config: &RunConfig, stage: &Stage, samples: u32, state: u64, device: Device) -> Result<(), String> {
    let model = models::build(config, Kind::Float, device);
    let drawn: u64 = model.modules().iter().flat_map(|module| model.parameters(module).tensors()).map(bytes).sum();
    let held = Tensor::empty([state.saturating_sub(drawn) as i64], (Kind::Uint8, device));
    let draw = Draw { seed: 0, step: 0, kind: Kind::Float, device };
    let side = i64::from(stage.level.resolution);
    let image = || Tensor::zeros([i64::from(samples), 3, side, side], (Kind::Uint8, device));
    for phase in model.phases() {
        for module in model.modules() {
            model.parameters(module).require_gradients(&[]);
        }
        model.parameters(phase.module).require_gradients(&model.active(phase.module, &stage.level));
        for part in 0..model.parts(phase) {
            let real = if phase.reads_images { vec![image(), image()] } else { Vec::new() };
            let batch = Batch { real, samples: 0..samples, total: stage.minibatch, part };
            let loss = {
                let wanted = config.train.precision == Precision::Bf16;
                let _halved = wanted.then(|| native::Autocast::begin(device)).transpose().map_err(|e| e.to_string())?;
                model.loss(phase, stage, &batch, &draw)
            };
            loss.objective.backward();
        }
    }
    if let Device::Cuda(gpu) = device {
        tch::Cuda::synchronize(gpu as i64);
    }
    drop(held);
    Ok(())
}

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::{Base, Layers, resolve};
    use std::path::Path;

    fn config(model: &str) -> RunConfig {
        let text = format!(
            "name = \"probe\"\n[model]\n{model}\n[data]\nsource = \"in memory\"\n[train]\ntotal_kimg = 12\n[train.minibatch]\ndefault = 4\n\
             [checkpoint]\nurl = \"memory://probe\"\n"
        );
        let folder = Path::new("/");
        let base = Base::File { path: "the test's own experiment", text: &text, folder };
        resolve(&Layers { base, env: &[], set: &[], working_dir: folder }, 1).unwrap().config
    }

    #[test]
    fn the_greatest_step_of_every_family_can_be_taken() {
        for model in [
            "family = \"progan\"\nresolution = 16\nlatent_size = 8\nfmap_base = 64\nfmap_max = 8\n\
             [train.growth]\nstart_resolution = 4\nstable_kimg = 1\nfade_kimg = 1",
            "family = \"cyclegan\"\nresolution = 32\ng_width = 4\nd_width = 4\ng_blocks = 1\n",
            "family = \"pix2pix\"\nresolution = 64\ng_width = 4\nd_width = 4\ng_downs = 6\n",
            "family = \"sngan\"\nresolution = 8\n",
        ] {
            greatest_step(&config(model), Device::Cpu).unwrap_or_else(|error| panic!("{model}: {error}"));
        }
    }

    #[test]
    fn where_it_cannot_be_taken_its_words_are_told_and_nobody_panics() {
        let torch = || -> Result<Tensor, tch::TchError> {
            Err(tch::TchError::Torch(
                "CUDA out of memory. Tried to allocate 96.00 GiB.\nException raised from malloc".into(),
            ))
        };
        let why = attempt(|| {
            let _never = torch().unwrap();
            Ok(())
        });
        assert_eq!(why.unwrap_err(), "CUDA out of memory. Tried to allocate 96.00 GiB");
        assert_eq!(attempt(|| Err("no bfloat16 here".to_owned())).unwrap_err(), "no bfloat16 here");
    }
}
