//! `worker prepare`: the training images of a run made ready, with progress as JSON lines for the coordinator to show.

use crate::failure::Failure;
use common::config::resolved::RunConfig;
use data::{Prepared, Progress, Request, prepare};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Shortest time between two lines of progress.
const EVERY: Duration = Duration::from_millis(100);
/// Largest configuration that is read.
const CONFIG_MAX: u64 = 1 << 20;

/// Reads a configuration from standard input and prepares its images; reports on standard output.
///
/// # Errors
/// The configuration or the images cannot be used.
pub fn from_stdin() -> Result<(), Failure> {
    let mut text = String::new();
    let io = |doing: &str| {
        let doing = doing.to_owned();
        move |error| Failure::Io { doing, error }
    };
    std::io::stdin().take(CONFIG_MAX).read_to_string(&mut text).map_err(io("read the configuration"))?;
    let config: RunConfig =
        serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("the configuration on standard input: {e}")))?;
    let last = Mutex::new(None::<Instant>);
    let prepared = pyramid(&config, &|progress| {
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
        tracing::warn!("{} images are smaller than model.resolution and were enlarged", prepared.enlarged);
    }
    say(&serde_json::json!({
        "images": prepared.pyramid.len(),
        "fingerprint": prepared.pyramid.fingerprint(),
        "skipped": prepared.skipped.len(),
        "reused": prepared.reused,
    }));
    Ok(())
}

/// The pyramid of a run, prepared here or found ready.
///
/// # Errors
/// The images cannot be used.
pub fn pyramid(config: &RunConfig, progress: &(dyn Fn(Progress) + Sync)) -> Result<Prepared, Failure> {
    let cache = config.data.cache.clone().map_or_else(default_cache, |folder| Ok(PathBuf::from(folder)))?;
    let request = Request {
        source: PathBuf::from(&config.data.source),
        resolution: config.model.resolution(),
        background: config.data.background,
        cache,
        max_bad_share: config.data.max_bad_share,
    };
    Ok(prepare(&request, progress)?)
}

fn default_cache() -> Result<PathBuf, Failure> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let root = from("GANFLEET_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|p| p.join("ganfleet")))
        .or_else(|| from("HOME").map(|p| p.join(".cache/ganfleet")));
    let root = root.ok_or_else(|| Failure::Usage("no cache folder is known: set data.cache or HOME".to_owned()))?;
    Ok(root.join("pyramids"))
}

fn say(line: &serde_json::Value) {
    // the coordinator may have gone; that is its business
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
