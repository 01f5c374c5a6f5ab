//! The widest step of the whole run, taken once on made-up images before the run is: memory that is too small shows on the first
//! minute of the first day, and not when the networks have grown.
//!
//! In a process of its own, so that whatever it takes is given back, and nothing of it can hurt the worker. Refuses to end a run for
//! what may pass: only a step that does not fit into a device that was free says that it never will.

use crate::communicator::Communicator;
use crate::environment;
use crate::failure::Failure;
use crate::models;
use crate::prepare;
use crate::trainer::{StepError, Trainer};
use collective::Solo;
use common::config::resolved::{Determinism, Precision, Rehearse, RunConfig};
use common::config::{Phase, Plan, plan};
use common::schedule::Position;
use native::DeviceMemory;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use worker_core::Flags;

/// A widest step that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often its end is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// A device of which so much is free is held by nobody else: a context and a display take the rest.
const FREE: f64 = 0.9;
/// Of what the step says on standard error so much is told.
const SAID_MAX: usize = 400;
/// How libtorch's allocators say that there is no more, on GPUs and in host memory.
const LACKING: [&str; 2] = ["out of memory", "can't allocate memory"];

/// What the step has to say, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    resolution: u32,
    /// Samples that were taken through the networks at once.
    samples: u32,
    /// The device before it and after it; `None` in host memory.
    before: Option<DeviceMemory>,
    after: Option<DeviceMemory>,
    /// What libtorch said where memory was too small.
    lacking: Option<String>,
}

/// What follows.
#[derive(Debug, PartialEq)]
enum Verdict {
    Fits(String),
    TooLarge(String),
    /// It says nothing about the run, and why.
    Untried(String),
}

/// A step under way in another process.
pub struct Rehearsal {
    child: Child,
    began: Instant,
    /// Is written when it fits, so that it is not tried again.
    remembered: Option<PathBuf>,
}

impl Rehearsal {
    /// Begins, if this run wants it on `device` and this machine has not seen it fit already. What hinders it is told, and hinders
    /// nothing else.
    #[must_use]
    pub fn begin(config: &RunConfig, device: Device) -> Option<Self> {
        let wanted = match config.cluster.rehearse {
            Rehearse::Gpu => device.is_cuda(),
            Rehearse::Always => true,
            Rehearse::Never => false,
        };
        let remembered =
            environment::cache_folder().map(|cache| cache.join("rehearsed").join(known_as(config, device)));
        if !wanted || remembered.as_ref().is_some_and(|path| path.exists()) {
            return None;
        }
        let begin = || -> std::io::Result<Child> {
            let mut child = Command::new(std::env::current_exe()?)
                .arg("rehearse")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let written = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(&serde_json::to_vec(config)?));
            // who has ended says why itself
            drop(written);
            Ok(child)
        };
        match begin() {
            Ok(child) => Some(Self { child, began: Instant::now(), remembered }),
            Err(error) => {
                tracing::warn!("the widest step was not tried beforehand: {error}");
                None
            }
        }
    }

    /// Waits for its end, at most five minutes from its beginning.
    ///
    /// # Errors
    /// [`Failure::Limit`] where the step does not fit into a device that has nothing else to hold.
    pub fn end(mut self) -> Result<(), Failure> {
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if self.began.elapsed() < PATIENCE => std::thread::sleep(LOOK),
                Ok(None) | Err(_) => break None,
            }
        };
        let verdict = match status {
            None => Verdict::Untried(format!("it was not through after {} s", PATIENCE.as_secs())),
            // both are short: what a pipe holds, which nobody has to empty meanwhile
            Some(status) => judge(status, &text(self.child.stdout.take()), &text(self.child.stderr.take())),
        };
        match verdict {
            Verdict::Fits(how) => {
                tracing::info!("{how}");
                if let Some(path) = &self.remembered {
                    let remembered =
                        path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, how));
                    // tried again next time
                    drop(remembered);
                }
                Ok(())
            }
            Verdict::TooLarge(why) => Err(Failure::Limit(why)),
            Verdict::Untried(why) => {
                tracing::warn!("whether the widest step fits into memory is not known: {why}");
                Ok(())
            }
        }
    }
}

impl Drop for Rehearsal {
    /// A child that is not waited for any more ends here.
    fn drop(&mut self) {
        let _over = self.child.kill();
        let _status = self.child.wait();
    }
}

/// All that the answer depends on, as a name.
fn known_as(config: &RunConfig, device: Device) -> String {
    let gpus: Vec<_> = children::gpus::described("/".as_ref()).into_iter().map(|gpu| gpu.model).collect();
    let chosen = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let facts = (&config.model, &config.train, config.cluster.workers, gpus, chosen, format!("{device:?}"));
    let facts = serde_json::to_string(&(facts, environment::LIBTORCH, env!("CARGO_PKG_VERSION"))).unwrap_or_default();
    blake3::hash(facts.as_bytes()).to_hex()[..32].to_owned()
}

fn text(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    let _as_far_as_it_goes = from.map(|from| from.take(1 << 20).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn judge(status: ExitStatus, report: &str, said: &str) -> Verdict {
    let Some(report) = report.lines().last().and_then(|line| serde_json::from_str::<Report>(line).ok()) else {
        let last: String = said.trim().chars().rev().take(SAID_MAX).collect::<Vec<_>>().into_iter().rev().collect();
        return Verdict::Untried(format!("trying it ended with {}: {last}", children::supervisor::ended(status)));
    };
    let step = format!("the widest step, {0}x{0} with {1} images at once,", report.resolution, report.samples);
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    match (report.lacking, report.before, report.after) {
        (None, _, Some(after)) => Verdict::Fits(format!(
            "{step} fits: it takes {} of the device's {}",
            gigabytes(after.taken),
            gigabytes(after.total)
        )),
        (None, ..) => Verdict::Fits(format!("{step} fits into this machine's memory")),
        (Some(lacking), Some(before), _) if (before.free as f64) < FREE * before.total as f64 => {
            Verdict::Untried(format!(
                "{step} does not fit beside what others hold of the device, {} of {}: {lacking}",
                gigabytes(before.total - before.free),
                gigabytes(before.total)
            ))
        }
        (Some(lacking), before, _) => {
            let place =
                before.map_or("this machine's memory".to_owned(), |at| format!("the device's {}", gigabytes(at.total)));
            Verdict::TooLarge(format!(
                "{step} does not fit into {place}: {lacking}. Make it smaller: train.max_per_worker.{} below {}, train.save_memory = true \
                 or train.precision = \"bf16\" where the family can, or more workers. (cluster.rehearse = \"never\" starts without trying.)",
                report.resolution, report.samples
            ))
        }
    }
}

/// `worker rehearse`: takes the widest step of the configuration on standard input, and reports on standard output.
///
/// # Errors
/// The configuration makes no sense, or the step fails for anything but memory.
pub fn from_stdin(device: Device) -> Result<(), Failure> {
    let config = prepare::config_from_stdin()?;
    let plan = plan(&config, config.cluster.workers);
    let Some(widest) = widest(&plan) else {
        return Err(Failure::Usage("a run of no length has no widest step".to_owned()));
    };
    let before = memory(device)?;
    let taken = catch_unwind(AssertUnwindSafe(|| rehearse(&config, widest, device)));
    let lacking = match taken {
        Ok(Ok(())) => None,
        Ok(Err(error)) if lacks(&error.to_string()) => Some(error.to_string()),
        Ok(Err(error)) => return Err(error.into()),
        Err(panic) => match message(panic.as_ref()) {
            Some(message) if lacks(&message) => Some(message),
            _ => std::panic::resume_unwind(panic),
        },
    };
    let after = if lacking.is_none() { memory(device)? } else { None };
    let report = Report { resolution: widest.resolution, samples: at_once(&config, widest), before, after, lacking };
    println!("{}", serde_json::to_string(&report).map_err(|error| Failure::Usage(error.to_string()))?);
    Ok(())
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

fn memory(device: Device) -> Result<Option<DeviceMemory>, Failure> {
    // the first tensor opens the device
    let _one = Tensor::zeros([1], (Kind::Float, device));
    Ok(DeviceMemory::of(device).map_err(StepError::from)?)
}

/// Whether libtorch says that memory is lacking.
#[must_use]
pub fn lacks(message: &str) -> bool {
    LACKING.iter().any(|lacking| message.contains(lacking))
}

/// What a panic was about; of an error of libtorch's, its own first line.
fn message(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())?;
    let text = text.split_once("Torch(\"").map_or(text, |(_, words)| words);
    // the line's end, as it stands or as `Debug` writes it
    Some(text.split(['\n', '\\']).next().unwrap_or_default().trim_end_matches("\")").to_owned())
}

/// Two rounds: in the first what optimizers remember is made, in the second all of it is there.
fn rehearse(config: &RunConfig, widest: &Phase, device: Device) -> Result<(), StepError> {
    native::allow_tf32(config.train.precision == Precision::Tf32)?;
    let mut config = config.clone();
    // one worker's share, as the whole of a run
    config.train.minibatch.insert(widest.resolution, at_once(&config, widest));
    let model = models::build(&config, Kind::Float, device);
    let phases: u32 = model.phases().iter().map(|phase| phase.repeats).sum();
    let mut trainer = Trainer::new(config, model, Communicator::new(Box::new(Solo::new(0))), device);
    let position = Position { images: widest.from_images, cycle_images: widest.from_images, round: 0, step: 0 };
    trainer.restore(position, 0, None, 0);
    for _ in 0..2 * phases {
        let next = trainer.upcoming(1).remove(0);
        let side = i64::from(next.stage.level.resolution);
        let domain = || Tensor::randint(256, [next.samples.len() as i64, 3, side, side], (Kind::Uint8, Device::Cpu));
        trainer.step(&[domain(), domain()], Flags::default())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn judged(before: Option<(u64, u64)>, lacking: Option<&str>) -> Verdict {
        let memory = |(free, total)| DeviceMemory { free, total, taken: 3_000_000_000 };
        let (before, lacking) = (before.map(memory), lacking.map(str::to_owned));
        let report = Report { resolution: 1024, samples: 3, before, after: before, lacking };
        judge(ExitStatus::from_raw(0), &serde_json::to_string(&report).unwrap(), "")
    }

    #[test]
    fn only_a_device_that_was_free_says_that_a_step_never_fits() {
        let gb = 1_000_000_000;
        let Verdict::Fits(how) = judged(Some((80 * gb, 80 * gb)), None) else { panic!("fits") };
        assert_eq!(
            how,
            "the widest step, 1024x1024 with 3 images at once, fits: it takes 3.0 GB of the device's 80.0 GB"
        );
        assert!(matches!(judged(None, None), Verdict::Fits(_)));
        let Verdict::TooLarge(why) = judged(Some((79 * gb, 80 * gb)), Some("CUDA out of memory.")) else {
            panic!("free")
        };
        assert!(
            why.contains("80.0 GB: CUDA out of memory.") && why.contains("train.max_per_worker.1024 below 3"),
            "{why}"
        );
        assert!(matches!(judged(None, Some("can't allocate memory")), Verdict::TooLarge(_)));
        let Verdict::Untried(why) = judged(Some((50 * gb, 80 * gb)), Some("CUDA out of memory.")) else {
            panic!("held")
        };
        assert!(why.contains("30.0 GB of 80.0 GB"), "{why}");
    }

    #[test]
    fn a_process_that_ends_without_a_word_says_nothing_about_the_step() {
        for (status, how) in [(9, "SIGKILL"), (101 << 8, "exit code 101")] {
            let Verdict::Untried(why) =
                judge(ExitStatus::from_raw(status), "half a li", "thread panicked\nlast words\n")
            else {
                panic!("{how}")
            };
            assert!(why.contains(how) && why.ends_with("last words"), "{why}");
        }
        assert!(matches!(judge(ExitStatus::from_raw(0), "", ""), Verdict::Untried(_)));
    }

    #[test]
    fn of_a_panic_libtorch_s_own_line_is_told() {
        let panic: Box<dyn Any + Send> = Box::new(format!(
            "called `Result::unwrap()` on an `Err` value: {:?}",
            tch::TchError::Torch(
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised from malloc".to_owned()
            )
        ));
        let message = message(panic.as_ref()).unwrap();
        assert_eq!(message, "CUDA out of memory. Tried to allocate 2.00 GiB.");
        assert!(lacks(&message) && !lacks("CUDA error: an illegal memory access"));
        assert_eq!(super::message(&3u8), None);
    }

    /// What is tried is what a worker of the run will do: its share, where the plan says that it is widest.
    #[test]
    fn a_worker_s_share_is_taken_at_the_widest_place() {
        let config = crate::trainer::tests::config("fast", "max_per_worker = 4");
        let plan = plan(&config, 2);
        let widest = widest(&plan).unwrap();
        assert_eq!((widest.resolution, widest.at_once), (16, 4));
        assert!(widest.fading);
        rehearse(&config, widest, Device::Cpu).unwrap();
    }
}
