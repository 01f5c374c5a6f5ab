//! Where the coordinator is now, while it does not answer where it was: another one may have taken the run over.
//!
//! Two places are looked at, off the session's own thread: the file in which a coordinator on this machine says where it
//! listens, and whatever [`crate::Agent::look_up`] was given, which reads the run's store. The later epoch is right.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Environment variable that names the file in which the coordinator of this machine says where it listens.
pub const CONTROL: &str = "GANFLEET_CONTROL";
/// Largest such file that is read.
const CONTROL_BYTES_MAX: u64 = 64 << 10;

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Seat {
    /// Its number: a run's coordinators are counted, and the last one is obeyed.
    #[serde(default)]
    pub epoch: u64,
    /// `HOST:PORT`.
    pub address: String,
}

type Look = dyn Fn() -> Option<Seat> + Send + Sync;

/// How the store is looked at, once it is known.
#[derive(Default)]
pub(crate) struct Lookup(Mutex<Option<Arc<Look>>>);

impl Lookup {
    pub(crate) fn set(&self, look: impl Fn() -> Option<Seat> + Send + Sync + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(look));
    }

    fn get(&self) -> Option<Arc<Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lookup({})", if self.get().is_some() { "set" } else { "unset" })
    }
}

/// Looks now and then, never twice at a time.
#[derive(Debug, Default)]
pub(crate) struct Search {
    control: Option<PathBuf>,
    running: Option<JoinHandle<Option<Seat>>>,
    last: Option<Instant>,
}

impl Search {
    /// One that knows this process's environment.
    pub(crate) fn of_this_process() -> Self {
        Self { control: std::env::var_os(CONTROL).map(PathBuf::from), ..Self::default() }
    }

    /// Lets `pause` pass, or less if a look brings something; looks begin at least `distance` apart. What takes longer than
    /// the pause is heard at the next one.
    pub(crate) async fn pause(&mut self, lookup: &Lookup, pause: Duration, distance: Duration) -> Option<Seat> {
        let end = Instant::now() + pause;
        if self.running.is_none() && self.last.is_none_or(|last| last.elapsed() >= distance) {
            let (control, look) = (self.control.clone(), lookup.get());
            self.last = Some(Instant::now());
            self.running = Some(spawn_blocking(move || {
                let here = control.as_deref().and_then(in_file);
                let there = look.and_then(|look| look());
                // of two with one number, the one of this machine
                [there, here].into_iter().flatten().max_by_key(|seat| seat.epoch)
            }));
        }
        if let Some(running) = &mut self.running
            && let Ok(found) = timeout_at(end, running).await
        {
            self.running = None;
            // a look that panicked has found nothing
            if let Some(seat) = found.ok().flatten() {
                return Some(seat);
            }
        }
        sleep_until(end).await;
        None
    }
}

/// What a coordinator of this machine says of itself.
fn in_file(path: &Path) -> Option<Seat> {
    let size = std::fs::metadata(path).ok()?.len();
    let text = (size <= CONTROL_BYTES_MAX).then(|| std::fs::read_to_string(path).ok()).flatten()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_later_epoch_is_right_and_looks_keep_their_distance() {
        let file = std::env::temp_dir().join(format!("ganfleet-lookup-{}.json", std::process::id()));
        std::fs::write(&file, r#"{"address":"here:1","epoch":2,"pid":3}"#).unwrap();
        let mut search = Search { control: Some(file.clone()), ..Search::default() };
        let lookup = Lookup::default();
        let (pause, distance) = (Duration::from_secs(5), Duration::from_secs(3600));
        let seat = |epoch, address: &str| Some(Seat { epoch, address: address.into() });
        assert_eq!(search.pause(&lookup, pause, distance).await, seat(2, "here:1"));
        assert_eq!(search.pause(&lookup, Duration::from_millis(5), distance).await, None, "too soon");
        lookup.set(|| Some(Seat { epoch: 3, address: "there:1".into() }));
        assert_eq!(search.pause(&lookup, pause, Duration::ZERO).await, seat(3, "there:1"));
        lookup.set(|| None);
        assert_eq!(search.pause(&lookup, pause, Duration::ZERO).await, seat(2, "here:1"));
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(search.pause(&lookup, Duration::from_millis(5), Duration::ZERO).await, None);
        std::fs::remove_file(&file).unwrap();
    }
}
