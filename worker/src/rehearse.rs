//! The widest step of the whole run, taken once on made-up images before a worker asks for a place: memory that is too small shows at the
//! beginning, and not when the networks have grown.
//!
//! In a process of its own, which ends with the worker and gives back whatever it took. Refuses to end a run for what may pass: on a GPU
//! only a step that does not fit although nobody else uses it says that it never will.

use crate::communicator::Communicator;
use crate::environment;
use crate::failure::Failure;
use crate::models;
use crate::node::LEASH;
use crate::prepare;
use crate::ranks::{Alone, DeviceSums, Ranks};
use crate::trainer::{StepError, Trainer};
use children::lines::{Level, level, message as said_in};
use collective::{Aborter, Collective, CollectiveError, Part, Solo, Traffic, TreeSum};
use common::config::resolved::{Determinism, Model, Precision, Rehearse, RunConfig};
use common::config::{Phase, Plan, plan};
use common::schedule::Position;
use half::bf16;
use native::DeviceMemory;
use nix::sys::{prctl::set_pdeathsig, signal::Signal};
use nix::unistd::getppid;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use worker_core::Flags;

/// A widest step that takes longer is not waited for: a coordinator waits twice as long for one who takes a lost one's place.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often its end is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// What contexts and displays take of a GPU, which are nobody else's work.
const SMALL: u64 = 1 << 30;
/// A step that takes more than this part of a GPU leaves little.
const MUCH: f64 = 0.9;
/// After a kill its end is waited for so long: a process may be stuck in a driver.
const KILLED: Duration = Duration::from_secs(5);
/// So often it is tried on a machine where it did not live to say anything.
const TRIES: u32 = 2;
/// Of what the step says so much is read, and so much told.
const READ_MAX: u64 = 1 << 20;
const TOLD_MAX: usize = 300;
/// How libtorch's allocators say that there is no more: a GPU's, and the host's.
const LACKING_ON_GPU: &str = "CUDA out of memory";
const LACKING_ON_HOST: &str = "can't allocate memory";
/// What is the worker's alone: its secrets, and by what others know it.
const NOT_INHERITED: [&str; 4] = ["GANFLEET_TOKEN", "GANFLEET_CREDENTIALS", "GANFLEET_WORKER_ID", LEASH];

/// What the step has to say, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    resolution: u32,
    /// Samples that were taken through the networks at once.
    samples: u32,
    /// The device before it and behind it; `None` in host memory.
    before: Option<DeviceMemory>,
    after: Option<DeviceMemory>,
    /// What libtorch said where memory was too small.
    lacking: Option<String>,
    /// What would make the step smaller.
    remedies: Vec<String>,
}

/// What follows.
#[derive(Debug, PartialEq)]
enum Verdict {
    Fits(String),
    /// So little is left that other things may not fit.
    Tight(String),
    /// It takes too long to be known.
    Slow(String),
    TooLarge(String),
    /// It says nothing about the run, and why.
    Untried(String),
}

/// What a machine remembers of a step, so that it is not tried again.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Memory {
    /// It was begun, for this time, and nothing is known of its end.
    Begun(u32),
    Fits(String),
    /// It is not known to fit well, and would not be known better next time.
    Warned(String),
}

/// A step under way in another process.
pub struct Rehearsal {
    verdict: JoinHandle<Verdict>,
    remembered: Option<PathBuf>,
}

impl Rehearsal {
    /// Begins, if the run wants it on `device` and this machine has not seen it fit already, as one of `workers`. What hinders it is
    /// told, and hinders nothing else.
    #[must_use]
    pub fn begin(config: &RunConfig, workers: u32, device: Device) -> Option<Self> {
        let wanted = match config.cluster.rehearse {
            Rehearse::Gpu => device.is_cuda(),
            Rehearse::Always => true,
            Rehearse::Never => false,
        };
        let remembered = wanted.then(|| remembered_at(config, workers, device)).flatten();
        let known = remembered.as_ref().and_then(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok());
        let tried = match (wanted, known) {
            (false, _) | (true, Some(Memory::Fits(_))) => return None,
            (true, Some(Memory::Warned(why))) => {
                tracing::warn!("{why}");
                return None;
            }
            (true, Some(Memory::Begun(TRIES..))) => {
                tracing::warn!("the widest step is not tried: {TRIES} times nothing was heard of it again");
                return None;
            }
            (true, Some(Memory::Begun(times))) => times,
            (true, None) => 0,
        };
        remember(remembered.as_ref(), &Memory::Begun(tried + 1));
        let config = serde_json::to_vec(config).ok()?;
        // the thread that starts it has to live as long: with it the step ends
        let verdict = std::thread::spawn(move || match taken(config, workers) {
            Ok(Some(output)) => judge(device, output.status, &text(&output.stdout), &text(&output.stderr)),
            Ok(None) => Verdict::Slow(format!(
                "whether the widest step fits into memory is not known: it takes more than {} s",
                PATIENCE.as_secs()
            )),
            Err(error) => Verdict::Untried(format!("it could not be begun: {error}")),
        });
        Some(Self { verdict, remembered })
    }

    /// Waits for its end, at most a minute from its beginning.
    ///
    /// # Errors
    /// [`Failure::Limit`] where the step does not fit into a device that nobody else uses.
    pub fn end(self) -> Result<(), Failure> {
        let Self { verdict, remembered } = self;
        let verdict = verdict.join().unwrap_or_else(|_| Verdict::Untried("its watcher is gone".to_owned()));
        match verdict {
            Verdict::Fits(how) => {
                tracing::info!("{how}");
                remember(remembered.as_ref(), &Memory::Fits(how));
                Ok(())
            }
            Verdict::Tight(why) | Verdict::Slow(why) => {
                tracing::warn!("{why}");
                remember(remembered.as_ref(), &Memory::Warned(why));
                Ok(())
            }
            Verdict::TooLarge(why) => {
                forget(remembered.as_ref());
                Err(Failure::Limit(why))
            }
            Verdict::Untried(why) => {
                forget(remembered.as_ref());
                tracing::warn!("whether the widest step fits into memory is not known: {why}");
                Ok(())
            }
        }
    }
}

/// It is to be tried again.
fn forget(path: Option<&PathBuf>) {
    let _or_tried_less = path.map(std::fs::remove_file);
}

/// Writes what is known; where that cannot be, it is tried again next time.
fn remember(path: Option<&PathBuf>, what: &Memory) {
    let Some(path) = path else { return };
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let _or_tried_again = folder.and_then(|()| std::fs::write(path, serde_json::to_vec(what)?));
}

/// Where a step is remembered: under what the answer depends on, as far as it can be known without it.
fn remembered_at(config: &RunConfig, workers: u32, device: Device) -> Option<PathBuf> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let gpus = children::gpus::described("/".as_ref()).into_iter().map(|gpu| (gpu.model, gpu.bus)).collect::<Vec<_>>();
    let machine = (read("/proc/sys/kernel/hostname"), gpus, read("/proc/driver/nvidia/version"), format!("{device:?}"));
    let chosen =
        ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LIBTORCH_CUDA", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"]
            .map(|name| std::env::var(name).ok());
    let program = std::env::current_exe().and_then(std::fs::metadata).and_then(|program| program.modified()).ok()?;
    let facts = (machine, chosen, program, environment::LIBTORCH, &config.model, &config.train, workers);
    let name = blake3::hash(&serde_json::to_vec(&facts).ok()?).to_hex()[..32].to_owned();
    Some(environment::cache_folder()?.join("rehearsed").join(name))
}

/// Has another process take the step; `None` if it was not through in time.
fn taken(config: Vec<u8>, workers: u32) -> std::io::Result<Option<Output>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["rehearse", "--workers", &workers.to_string(), "--of", &std::process::id().to_string()]);
    NOT_INHERITED.iter().for_each(|name| _ = command.env_remove(name));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let began = Instant::now();
    let readers = (reader(child.stdout.take()), reader(child.stderr.take()));
    let input = child.stdin.take();
    // who has ended already says why itself
    std::thread::spawn(move || input.map(|mut input| input.write_all(&config)));
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if began.elapsed() < PATIENCE => std::thread::sleep(LOOK),
            None => {
                child.kill()?;
                while child.try_wait()?.is_none() && began.elapsed() < PATIENCE + KILLED {
                    std::thread::sleep(LOOK);
                }
                return Ok(None);
            }
        }
    };
    let [stdout, stderr] = [readers.0, readers.1].map(|reader| reader.join().unwrap_or_default());
    Ok(Some(Output { status, stdout, stderr }))
}

/// Reads to the end, so that who writes never waits; keeps the first of it.
fn reader(from: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _as_far_as_it_goes = from.by_ref().take(READ_MAX).read_to_end(&mut bytes);
            let _rest = std::io::copy(&mut from, &mut std::io::sink());
        }
        bytes
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn judge(device: Device, status: ExitStatus, report: &str, said: &str) -> Verdict {
    let Some(report) = report.lines().last().and_then(|line| serde_json::from_str::<Report>(line).ok()) else {
        let lines: Vec<&str> = said.lines().collect();
        let error = lines.iter().rposition(|line| level(line) == Level::Error).or(lines.len().checked_sub(1));
        let mut last = error.map(|at| said_in(lines[at])).unwrap_or_default();
        // what a panic was about stands on the next line
        if let Some(about) = error.filter(|_| last.contains("panicked at")).and_then(|at| lines.get(at + 1)) {
            last = said_in(about);
        }
        let last: String = last.chars().take(TOLD_MAX).collect();
        return Verdict::Untried(format!("trying it ended with {}: {last}", children::supervisor::ended(status)));
    };
    let step = format!("the widest step, {0}x{0} with {1} images at once,", report.resolution, report.samples);
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    if device.is_cuda() && report.before.is_none() {
        return Verdict::Untried("the GPU is not there for another process".to_owned());
    }
    let Some(lacking) = report.lacking else {
        return match report.after {
            None => Verdict::Fits(format!("{step} fits into this machine's memory")),
            Some(after) => {
                let fits =
                    format!("{step} fits: it takes {} of the GPU's {}", gigabytes(after.most), gigabytes(after.total));
                match after.most as f64 > MUCH * after.total as f64 {
                    true => Verdict::Tight(format!("{fits}, and what sums and scores need comes on top")),
                    false => Verdict::Fits(fits),
                }
            }
        };
    };
    if device.is_cuda() && !lacking.contains(LACKING_ON_GPU) {
        return Verdict::Untried(format!("{step} finds too little of the host's memory: {lacking}"));
    }
    let others = [&report.before, &report.after].into_iter().flatten().map(|memory| (memory.others(), memory.total));
    if let Some((others, total)) = others.max().filter(|(others, _)| *others > SMALL) {
        let (others, total) = (gigabytes(others), gigabytes(total));
        return Verdict::Untried(format!(
            "{step} does not fit beside what others hold of the GPU, {others} of {total}: {lacking}"
        ));
    }
    let place =
        report.before.map_or("this machine's memory".to_owned(), |at| format!("the GPU's {}", gigabytes(at.total)));
    let remedies = report.remedies.join(", or ");
    Verdict::TooLarge(format!(
        "{step} does not fit into {place}: {lacking}. What makes it smaller: {remedies}. (cluster.rehearse = \"never\" begins without \
         trying.)"
    ))
}

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
        Ok(Err(error)) if lacks(&error.to_string()) => message(&error.to_string()),
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

/// Whether libtorch says that memory is lacking.
#[must_use]
pub fn lacks(message: &str) -> bool {
    [LACKING_ON_GPU, LACKING_ON_HOST].iter().any(|lacking| message.contains(lacking))
}

/// What a panic was about; of an error of libtorch's, its own first line.
fn message(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())?;
    let text = text.split_once("Torch(\"").map_or(text, |(_, words)| words);
    // the line's end, as it stands or as `Debug` writes it
    Some(text.split(['\n', '\\']).next().unwrap_or_default().trim_end_matches("\")").to_owned())
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
    use std::os::unix::process::ExitStatusExt;

    const GB: u64 = 1_000_000_000;

    fn judged(before: Option<(u64, u64)>, after: Option<(u64, u64)>, lacking: Option<&str>) -> Verdict {
        let memory = |(free, held)| DeviceMemory { free, total: 80 * GB, held, most: held };
        let (before, after, lacking) = (before.map(memory), after.map(memory), lacking.map(str::to_owned));
        let remedies = vec!["this".to_owned(), "that".to_owned()];
        let report = Report { resolution: 1024, samples: 3, before, after, lacking, remedies };
        let device = if before.is_some() { Device::Cuda(0) } else { Device::Cpu };
        judge(device, ExitStatus::from_raw(0), &serde_json::to_string(&report).unwrap(), "")
    }

    #[test]
    fn what_fits_is_told_with_what_is_left() {
        let Verdict::Fits(how) = judged(Some((79 * GB, 0)), Some((76 * GB, 3 * GB)), None) else { panic!("fits") };
        assert_eq!(how, "the widest step, 1024x1024 with 3 images at once, fits: it takes 3.0 GB of the GPU's 80.0 GB");
        assert!(matches!(judged(Some((79 * GB, 0)), Some((0, 79 * GB)), None), Verdict::Tight(_)));
        assert!(matches!(judged(None, None, None), Verdict::Fits(_)));
    }

    #[test]
    fn only_a_device_that_nobody_else_uses_says_that_a_step_never_fits() {
        let lacking = Some("CUDA out of memory.");
        let Verdict::TooLarge(why) = judged(Some((79 * GB, 0)), Some((10 * GB, 69 * GB)), lacking) else {
            panic!("free")
        };
        assert!(why.contains("80.0 GB: CUDA out of memory.") && why.contains("smaller: this, or that."), "{why}");
        let Verdict::Untried(why) = judged(Some((50 * GB, 0)), Some((10 * GB, 69 * GB)), lacking) else {
            panic!("held")
        };
        assert!(why.contains("30.0 GB of 80.0 GB"), "{why}");
        // a context and a display
        assert!(matches!(judged(Some((79 * GB + GB / 2, 0)), Some((GB / 2, 79 * GB)), lacking), Verdict::TooLarge(_)));
        // somebody came meanwhile
        assert!(matches!(judged(Some((79 * GB, 0)), Some((0, 40 * GB)), lacking), Verdict::Untried(_)));
        // it was the host's memory
        assert!(matches!(
            judged(Some((79 * GB, 0)), Some((79 * GB, 0)), Some("can't allocate memory")),
            Verdict::Untried(_)
        ));
        assert!(matches!(judged(None, None, Some("can't allocate memory")), Verdict::TooLarge(_)));
    }

    #[test]
    fn a_process_that_ends_without_a_word_says_nothing_about_the_step() {
        let told = "2026-01-01T00:00:00Z ERROR the disk is on fire\nnote: a backtrace\n   1: frame\n";
        let panicked =
            "thread 'main' (7) panicked at src/x.rs:1:1:\nthe disk is on fire\nstack backtrace:\n   1: frame\n";
        for (status, how, said) in [(9, "SIGKILL", told), (101 << 8, "exit code 101", panicked)] {
            let verdict = judge(Device::Cpu, ExitStatus::from_raw(status), "half a li", said);
            let Verdict::Untried(why) = verdict else { panic!("{how}") };
            assert!(why.contains(how) && why.ends_with("the disk is on fire"), "{why}");
        }
        assert!(matches!(judge(Device::Cpu, ExitStatus::from_raw(0), "", ""), Verdict::Untried(_)));
        // a step that was taken on the host says nothing about a GPU
        let report =
            Report { resolution: 8, samples: 1, before: None, after: None, lacking: None, remedies: Vec::new() };
        let report = serde_json::to_string(&report).unwrap();
        assert!(matches!(judge(Device::Cuda(0), ExitStatus::from_raw(0), &report, ""), Verdict::Untried(_)));
    }

    #[test]
    fn of_a_panic_libtorch_s_own_line_is_told() {
        let error = "CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised from malloc".to_owned();
        let unwrapped = format!("called `Result::unwrap()` on an `Err` value: {:?}", tch::TchError::Torch(error));
        let panic: Box<dyn Any + Send> = Box::new(unwrapped);
        let message = message(panic.as_ref()).unwrap();
        assert_eq!(message, "CUDA out of memory. Tried to allocate 2.00 GiB.");
        assert!(lacks(&message) && !lacks("CUDA error: an illegal memory access"));
        assert_eq!(super::message(&3u8), None);
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
    fn a_run_that_differs_is_tried_again() {
        let config = crate::trainer::tests::config("fast", "");
        let known = |config: &RunConfig, workers, device| remembered_at(config, workers, device).unwrap();
        let here = known(&config, 2, Device::Cpu);
        assert_eq!(here, known(&config, 2, Device::Cpu));
        let other = crate::trainer::tests::config("fast", "max_per_worker = 4");
        let others =
            [known(&config, 3, Device::Cpu), known(&config, 2, Device::Cuda(0)), known(&other, 2, Device::Cpu)];
        assert!(others.iter().all(|other| *other != here));
    }

    #[test]
    fn only_what_can_be_done_is_advised() {
        let config = crate::trainer::tests::config("fast", "max_per_worker = 4");
        let plan = plan(&config, 2);
        assert_eq!(remedies(&config, widest(&plan).unwrap()), ["narrower networks or a lower model.resolution"]);
    }
}
