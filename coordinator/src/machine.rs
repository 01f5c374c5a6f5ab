//! What this machine offers: its cores, open files, and the worker binary beside this one.

use crate::failure::Failure;
use common::exit::Exit;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::path::{Path, PathBuf};

/// Environment variable that names the worker binary.
pub const WORKER: &str = "GANFLEET_WORKER";

/// What this machine calls itself.
#[must_use]
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into())
}

/// Cores that this process may use.
#[must_use]
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// Workers to start: as asked for, else one for each GPU, else one for each core.
#[must_use]
pub fn workers(asked: Option<u32>, configured: u32, gpus: u32, cores: u32) -> u32 {
    match (asked, configured, gpus) {
        (Some(workers), ..) => workers,
        (None, workers @ 1.., _) => workers,
        (None, 0, gpus @ 1..) => gpus,
        (None, 0, 0) => cores.max(1),
    }
}

/// Files that a coordinator opens besides those for workers: journal, records, the store.
const FILES: u64 = 128;
/// Files for each worker: its stream, and for one of this machine its process and what it writes, with room for a successor.
const FILES_PER_WORKER: u64 = 6;

/// Takes as many open files as the system gives.
pub fn raise_open_files() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    // what it has is looked at when it is known how many it needs
    let _as_before = setrlimit(Resource::Nofile, files);
}

/// Files that a coordinator of so many workers opens.
#[must_use]
pub fn files_for(workers: u32) -> u64 {
    FILES + FILES_PER_WORKER * u64::from(workers)
}

/// Whether a coordinator of so many workers may open the files that it needs.
///
/// # Errors
/// It may not.
pub fn may_serve(workers: u32) -> Result<(), Failure> {
    let needed = files_for(workers);
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < needed => {
            let message = format!(
                "this process may open {files} files, and a coordinator of {workers} workers needs {needed}: raise `ulimit -n`"
            );
            Err(Failure::new(Exit::Config, message))
        }
        _ => Ok(()),
    }
}

/// The worker binary: where the environment says, else beside this binary.
///
/// # Errors
/// There is none.
pub fn worker_binary() -> Result<PathBuf, Failure> {
    let here = std::env::current_exe().ok();
    let beside = here.as_deref().and_then(Path::parent).map(|folder| folder.join("worker"));
    let path = match (std::env::var_os(WORKER), beside) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(path)) => path,
        (None, None) => PathBuf::from("worker"),
    };
    if path.is_file() {
        return Ok(path);
    }
    let message = format!(
        "there is no worker binary at {}. Build it (cargo build --release) or name it in {WORKER}",
        path.display()
    );
    Err(Failure::new(Exit::Config, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_workers() {
        assert_eq!(workers(Some(3), 2, 8, 4), 3);
        assert_eq!(workers(None, 2, 8, 4), 2);
        assert_eq!(workers(None, 0, 8, 4), 8);
        assert_eq!(workers(None, 0, 0, 4), 4);
        assert_eq!(workers(None, 0, 0, 0), 1);
    }
}
