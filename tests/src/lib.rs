//! Tools for end-to-end tests: the real binaries, run as real processes in a folder of their own, watched through what a
//! user sees: exit codes, JSON events, files, and `/proc`.
//!
//! Nothing here links the coordinator or the worker, and nothing waits without a deadline: a wait is for an event or a
//! condition, and says what it waited for when the time is up. These are tools for tests, so trouble is a panic.

pub mod binaries;
pub mod experiment;
pub mod finished;
pub mod hosts;
pub mod images;
pub mod launched;
pub mod machine;
pub mod moments;
pub mod processes;
pub mod python;
pub mod relay;
pub mod s3;
pub mod slurm;
pub mod sources;

use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for anything that must come. Only a hang uses it up.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at a condition that nobody announces.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until `look` finds something, and returns it; `None` when `within` has passed.
pub fn try_until<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(LOOK);
    }
}

/// The same for what must come.
///
/// # Panics
/// When `within` has passed; `what` says what was waited for.
pub fn until<T>(within: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
    try_until(within, look).unwrap_or_else(|| panic!("{what}: not within {within:?}"))
}

/// The repository's root.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the repository's root")
}
