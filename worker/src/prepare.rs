//! `worker prepare`: the training images of a run made ready, with progress as JSON lines for the coordinator to show.

use crate::environment;
use crate::evaluate::Features;
use crate::failure::Failure;
use crate::images::{Images, domains};
use common::config::resolved::RunConfig;
use common::families::Pairing;
use data::{DataError, Prepared, Progress, Pyramid, Request, Skipped, View, prepare};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use storage::Store;
use tch::Device;

/// Shortest time between two lines of progress.
const EVERY: Duration = Duration::from_millis(100);
/// How the names of images end.
const IMAGES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Largest configuration that is read.
const CONFIG_MAX: u64 = 1 << 20;

/// Reads a configuration from standard input and prepares its images; reports on standard output.
///
/// # Errors
/// The configuration or the images cannot be used.
pub fn from_stdin() -> Result<(), Failure> {
    let config = config_from_stdin()?;
    // what evaluations need is missed now, not after hours of training
    Features::of(&config.metrics, Device::Cpu)?;
    let last = Mutex::new(None::<Instant>);
    let prepared = images(&config, &|progress| {
        let (Progress::Waiting { done, total } | Progress::Preparing { done, total }) = progress;
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() >= EVERY) {
            *last = Some(Instant::now());
            say(&serde_json::json!({ "done": done, "total": total }));
        }
    })?;
    for skipped in &prepared.skipped {
        tracing::warn!("skipped {skipped}");
    }
    if prepared.enlarged > 0 {
        tracing::warn!("{} images are smaller than they are used and were enlarged", prepared.enlarged);
    }
    say(&serde_json::json!({
        "images": prepared.images.len(),
        "epoch": prepared.images.epoch(),
        "fingerprint": prepared.images.fingerprint(),
        "skipped": prepared.skipped.len(),
        "reused": prepared.reused,
    }));
    Ok(())
}

/// The resolved configuration on standard input.
///
/// # Errors
/// It cannot be read or makes no sense.
pub fn config_from_stdin() -> Result<RunConfig, Failure> {
    let mut text = String::new();
    let unread = |error| Failure::Io { doing: "read the configuration".to_owned(), error };
    std::io::stdin().take(CONFIG_MAX).read_to_string(&mut text).map_err(unread)?;
    serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("the configuration on standard input: {e}")))
}

/// The images of a run and what to tell the user about them.
pub struct Ready {
    /// The images.
    pub images: Images,
    /// Files that were left out, by name.
    pub skipped: Vec<Skipped>,
    /// Images smaller than they are used, which were enlarged.
    pub enlarged: usize,
    /// Whether nothing had to be read because all were prepared before.
    pub reused: bool,
}

/// The images of a run, prepared here or found ready.
///
/// # Errors
/// The images cannot be used.
pub fn images(config: &RunConfig, progress: &(dyn Fn(Progress) + Sync)) -> Result<Ready, Failure> {
    let cache = config.data.cache.clone().map_or_else(default_cache, |folder| Ok(PathBuf::from(folder)))?;
    let source = here(config, &cache, progress)?;
    let request = |view: View, within: Option<&str>, side: u32| Request {
        source: source.clone(),
        within: within.map(str::to_owned),
        view,
        resolution: side,
        background: config.data.background,
        cache: cache.clone(),
        max_bad_share: config.data.max_bad_share,
    };
    let resolution = config.model.resolution();
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    let (mut skipped, mut enlarged, mut reused) = (Vec::new(), 0, true);
    let pairing = config.model.pairing();
    let mut take = |made: Prepared, sets: &mut Vec<Pyramid>| -> Result<(), Failure> {
        reused &= made.reused;
        match sets.first() {
            // both halves are of the same files, which are told of once
            Some(first) if pairing == Pairing::Paired => same_files(first, &made.pyramid, &config.data.source)?,
            _ => {
                skipped.extend(made.skipped);
                enlarged += made.enlarged;
            }
        }
        sets.push(made.pyramid);
        Ok(())
    };
    for domain in domains(pairing) {
        let load = config.data.load_size.unwrap_or(resolution);
        take(prepare(&request(domain.view, domain.train, load), progress)?, &mut train)?;
        for folder in domain.held_out {
            // gan.md 2.6: what is not trained on is not cropped
            match prepare(&request(domain.view, Some(folder), resolution), progress) {
                Err(DataError::NoImages { skipped, .. }) if skipped.is_empty() => {}
                made => {
                    take(made?, &mut held_out)?;
                    break;
                }
            }
        }
    }
    Ok(Ready { images: Images::new(config, train, held_out), skipped, enlarged, reused })
}

/// The source as a path of this machine: what lies in an object store is fetched.
fn here(config: &RunConfig, cache: &Path, progress: &(dyn Fn(Progress) + Sync)) -> Result<PathBuf, Failure> {
    let url = &config.data.source;
    let Some((parent, name)) = url.rsplit_once('/').filter(|_| url.contains("://")) else {
        return Ok(PathBuf::from(url));
    };
    // a bucket's whole content has no parent within it
    let (parent, name) = if parent.ends_with('/') { (url.as_str(), "") } else { (parent, name) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { doing: "start a runtime".to_owned(), error })?;
    let store = {
        let _inside = runtime.enter();
        Store::open_existing(parent, &config.checkpoint.s3)?
    };
    let heard = |done, total| progress(Progress::Waiting { done, total });
    Ok(runtime.block_on(store.mirror(name, &IMAGES, &cache.join("fetched"), &heard))?)
}

/// Images of one number must belong together.
fn same_files(left: &Pyramid, right: &Pyramid, source: &str) -> Result<(), Failure> {
    let names = |set: &Pyramid| (0..set.len()).map(|i| set.name(i).map(str::to_owned)).collect::<Vec<_>>();
    match names(left) == names(right) {
        true => Ok(()),
        false => Err(Failure::Data(DataError::Source {
            path: PathBuf::from(source),
            why: "the left and right halves are not of the same files: they changed meanwhile; try again".to_owned(),
        })),
    }
}

fn default_cache() -> Result<PathBuf, Failure> {
    let root = environment::cache_folder();
    let root = root.ok_or_else(|| Failure::Usage("no cache folder is known: set data.cache or HOME".to_owned()))?;
    Ok(root.join("pyramids"))
}

fn say(line: &serde_json::Value) {
    // the coordinator may have gone; that is its business
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
