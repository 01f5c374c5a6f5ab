//! The widest step of the whole run, taken once on made-up images before a worker asks for a place: memory that is too small shows at the
//! beginning, and not when the networks have grown.
//!
//! In a process of its own, which ends with the worker and gives back whatever it took. Refuses to end a run for what may pass: on a GPU
//! only a step that does not fit although nobody else uses it says that it never will.
//!
//! - `verdict`: what follows from what it says, as a pure function.
//! - `step`: the step itself, in the other process.

mod step;
mod verdict;

pub use step::{from_stdin, widest_step};
pub use verdict::lacks;

use crate::environment;
use crate::failure::Failure;
use crate::node::LEASH;
use common::config::resolved::{Rehearse, RunConfig};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tch::Device;
use verdict::{Verdict, judge};

/// A widest step that takes longer is not waited for: a coordinator waits twice as long for one who takes a lost one's place.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of what the step says so much is read.
const READ_MAX: u64 = 1 << 20;
/// How often its end is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// After a kill its end is waited for so long: a process may be stuck in a driver.
const KILLED: Duration = Duration::from_secs(5);
/// So often it is tried on a machine where it did not live to say anything.
const TRIES: u32 = 2;
/// What is the worker's alone: its secrets, and by what others know it.
const NOT_INHERITED: [&str; 4] = ["GANFLEET_TOKEN", "GANFLEET_CREDENTIALS", "GANFLEET_WORKER_ID", LEASH];

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
        let config =
            serde_json::to_vec(config).inspect_err(|error| tracing::warn!("the widest step is not tried: {error}"));
        let config = config.ok()?;
        remember(remembered.as_ref(), &Memory::Begun(tried + 1));
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
