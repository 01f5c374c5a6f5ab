//! The widest step of a run, taken as the first of its workers, of which nobody else is there.

use super::PATIENCE;
use super::verdict::{Report, first_line, lacks};
use crate::communicator::Communicator;
use crate::environment;
use crate::failure::Failure;
use crate::models;
use crate::prepare;
use crate::ranks::{Alone, DeviceSums, Ranks};
use crate::trainer::{StepError, Trainer};
use collective::{Aborter, Collective, CollectiveError, Part, Solo, Traffic, TreeSum};
use common::config::resolved::{Determinism, Model, Precision, RunConfig};
use common::config::{Phase, Plan, plan};
use common::schedule::Position;
use half::bf16;
use native::DeviceMemory;
use nix::sys::{prctl::set_pdeathsig, signal::Signal};
use nix::unistd::getppid;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use worker_core::Flags;

/// `worker rehearse`: takes the widest step of the configuration on standard input, as the first of `workers`, and reports on standard
/// output. Ends with the process `of`, if one is named.
///
/// # Errors
/// The configuration makes no sense, or the step fails for anything but memory.
pub fn from_stdin(workers: Option<u32>, of: Option<i32>, device: Device) -> Result<(), Failure> {
    if let Some(worker) = of {
        // without the worker that began it it has no business, and where memory is short it is the one to go
        let _or_later = set_pdeathsig(Signal::SIGKILL);
        let _or_as_it_comes = std::fs::write("/proc/self/oom_score_adj", "1000");
        if getppid().as_raw() != worker {
            return Err(Failure::Usage(format!("worker process {worker} is gone")));
        }
    }
    let config = prepare::config_from_stdin()?;
    let workers = workers.unwrap_or(config.cluster.workers);
    tch::set_num_threads(if device.is_cuda() { 1 } else { environment::threads(&config, &[], 0) as i32 });
    println!("{}", widest_step(&config, workers.max(1), device)?);
    Ok(())
}

/// Takes the widest step of a run of `config` here, as the first of `workers`: what came of it, as JSON.
///
/// # Errors
/// The step fails for anything but memory.
pub fn widest_step(config: &RunConfig, workers: u32, device: Device) -> Result<String, Failure> {
    let plan = plan(config, workers);
    let Some(widest) = widest(&plan) else {
        return Err(Failure::Usage("a run of no length has no widest step".to_owned()));
    };
    let before = memory(device)?;
    let lacking = match catch_unwind(AssertUnwindSafe(|| rehearse(config, widest, workers, device))) {
        Ok(Ok(_)) => None,
        Ok(Err(error)) if lacks(&error.to_string()) => Some(first_line(&error.to_string()).to_owned()),
        Ok(Err(error)) => return Err(error.into()),
        Err(panic) => match message(panic.as_ref()) {
            Some(message) if lacks(&message) => Some(message),
            _ => std::panic::resume_unwind(panic),
        },
    };
    let report = Report {
        resolution: widest.resolution,
        samples: at_once(config, widest),
        before,
        after: memory(device)?,
        remedies: if lacking.is_some() { remedies(config, widest) } else { Vec::new() },
        lacking,
    };
    serde_json::to_string(&report).map_err(|error| Failure::Usage(error.to_string()))
}

/// The phase in which a worker needs most; of two alike, the one that blends two resolutions.
fn widest(plan: &Plan) -> Option<&Phase> {
    plan.phases.iter().max_by_key(|phase| (phase.memory.total(), phase.fading))
}

/// Samples that go through the networks at once there: bit-exact runs take group by group.
fn at_once(config: &RunConfig, widest: &Phase) -> u32 {
    match config.train.determinism {
        Determinism::Fast => widest.at_once,
        Determinism::Bitwise => widest.at_once.min(config.model.group()),
    }
}

/// What this run could do about it.
fn remedies(config: &RunConfig, widest: &Phase) -> Vec<String> {
    let (samples, train) = (at_once(config, widest), &config.train);
    let translates = matches!(config.model, Model::CycleGan(_) | Model::Pix2Pix(_));
    let mut list = Vec::new();
    if samples > config.model.group() {
        list.push(format!("train.max_per_worker.{} below {samples}", widest.resolution));
    }
    if matches!(config.model, Model::CycleGan(_)) && !train.save_memory {
        list.push("train.save_memory = true".to_owned());
    }
    if translates && train.precision != Precision::Bf16 {
        list.push("train.precision = \"bf16\"".to_owned());
    }
    list.push("narrower networks or a lower model.resolution".to_owned());
    list
}

fn memory(device: Device) -> Result<Option<DeviceMemory>, Failure> {
    // the first tensor opens the device
    let _one = Tensor::zeros([1], (Kind::Float, device));
    Ok(DeviceMemory::of(device).map_err(StepError::from)?)
}

/// What a panic was about.
fn message(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())?;
    Some(first_line(text).to_owned())
}

/// Two rounds, as the first of `workers`: in the first the buffers of gradients are laid, in the second all that stays is there. Where
/// that was.
fn rehearse(config: &RunConfig, widest: &Phase, workers: u32, device: Device) -> Result<Trainer, StepError> {
    native::allow_tf32(config.train.precision == Precision::Tf32)?;
    let model = models::build(config, Kind::Float, device);
    let steps: u32 = model.phases().iter().map(|phase| phase.repeats).sum();
    let sums = device.is_cuda().then(|| Box::new(Alone) as Box<dyn DeviceSums>);
    let first = FirstOf { workers, alone: Solo::new(0) };
    let communicator = Communicator::of(Ranks::new(Box::new(first), sums, PATIENCE));
    let mut trainer = Trainer::new(config.clone(), model, communicator, device);
    let position = Position { images: widest.from_images, cycle_images: widest.from_images, round: 0, step: 0 };
    trainer.restore(position, 0, None, 0);
    for _ in 0..2 * steps {
        let next = trainer.upcoming(1).remove(0);
        let side = i64::from(next.stage.level.resolution);
        let domain = || Tensor::randint(256, [next.samples.len() as i64, 3, side, side], (Kind::Uint8, Device::Cpu));
        // families of one domain pass over the second
        let real = if next.reads_images { vec![domain(), domain()] } else { Vec::new() };
        trainer.step(&real, Flags::default())?;
    }
    Ok(trainer)
}

/// Rank 0 of a world of which nobody else is there: all that the others would add is nothing.
struct FirstOf {
    workers: u32,
    alone: Solo,
}

impl Collective for FirstOf {
    fn rank(&self) -> u32 {
        0
    }

    fn world(&self) -> u32 {
        self.workers
    }

    fn generation(&self) -> u64 {
        self.alone.generation()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.alone.set_deadline(deadline);
    }

    fn all_reduce_sum_f32(&mut self, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        self.alone.all_reduce_sum_f32(numbers)
    }

    fn all_reduce_sum_bf16(&mut self, numbers: &mut [bf16]) -> Result<(), CollectiveError> {
        self.alone.all_reduce_sum_bf16(numbers)
    }

    fn all_reduce_sum_f64(&mut self, numbers: &mut [f64]) -> Result<(), CollectiveError> {
        self.alone.all_reduce_sum_f64(numbers)
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![mine.to_vec(); self.workers as usize])
    }

    fn broadcast(&mut self, part: Part<'_, '_>, root: u32, to: &[u32]) -> Result<(), CollectiveError> {
        self.alone.broadcast(part, root, to)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.alone.barrier()
    }

    fn echo(&mut self, bytes: usize) -> Result<Vec<Duration>, CollectiveError> {
        self.alone.echo(bytes)
    }

    fn tree_sum_f32(&mut self, _mine: &TreeSum, out: &mut [f32]) -> Result<(), CollectiveError> {
        out.fill(0.0);
        Ok(())
    }

    fn check(&mut self) -> Result<(), CollectiveError> {
        self.alone.check()
    }

    fn aborter(&self) -> Aborter {
        self.alone.aborter()
    }

    fn traffic(&self) -> Traffic {
        self.alone.traffic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_if_it_is_a_text() {
        let told = |panic: Box<dyn Any + Send>| message(panic.as_ref());
        assert_eq!((told(Box::new("one\ntwo")), told(Box::new(3u8))), (Some("one".to_owned()), None));
    }

    /// What is tried is what a worker of the run will do: its share, where the plan says that it is widest.
    #[test]
    fn a_worker_s_share_is_taken_at_the_widest_place() {
        for determinism in ["fast", "bitwise"] {
            let config = crate::trainer::tests::config(determinism, "max_per_worker = 4");
            let plan = plan(&config, 2);
            let widest = widest(&plan).unwrap();
            assert_eq!((widest.resolution, widest.at_once, at_once(&config, widest)), (16, 4, 4));
            let mut trainer = rehearse(&config, widest, 2, Device::Cpu).unwrap();
            let stage = *trainer.stage();
            assert!(stage.level.resolution == 16 && stage.level.fading() && widest.fading);
            assert_eq!((stage.minibatch, trainer.communicator().world(), trainer.share()), (8, 2, 1), "groups of 4");
            assert!(trainer.mark().steps >= 4);
        }
    }

    #[test]
    fn only_what_can_be_done_is_advised() {
        let config = crate::trainer::tests::config("fast", "max_per_worker = 4");
        let plan = plan(&config, 2);
        assert_eq!(remedies(&config, widest(&plan).unwrap()), ["narrower networks or a lower model.resolution"]);
    }
}
