//! What the system lets this process have: open files and threads, looked at before anything is spent.
//!
//! Refuses to foretell memory: what a step needs is known when it has been taken, which [`crate::rehearse`] does.

use crate::failure::Failure;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::sync::mpsc::channel;
use std::thread::Builder;

/// Files besides the connections to other ranks: images, store, libraries, the session.
const FILES: u64 = 128;
/// Connections to another rank: two, and two of the last generation that are still closing.
const FILES_PER_RANK: u64 = 4;
/// Threads besides those that compute: session, communication, signals, storing, decoding.
const THREADS: usize = 16;
/// The threads that are tried out do nothing.
const STACK: usize = 64 << 10;

/// Takes as many open files as the system gives, and tries out whether the threads that training needs can be started: one that
/// fails later would end the process without a word for a person.
///
/// # Errors
/// Threads cannot be started.
pub fn prepare() -> Result<(), Failure> {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    // what it has is looked at when it is known how many it needs
    let _as_before = setrlimit(Resource::Nofile, files);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    threads(2 * cores + THREADS)
}

/// Tries out `count` threads at once.
fn threads(count: usize) -> Result<(), Failure> {
    let mut started = Vec::with_capacity(count);
    for number in 0..count {
        let (stop, stopped) = channel::<()>();
        let waits = move || stopped.recv().is_err();
        match Builder::new().stack_size(STACK).spawn(waits) {
            Ok(thread) => started.push((stop, thread)),
            Err(error) => {
                return Err(Failure::Limit(format!(
                    "this process cannot have the {count} threads that it needs, only {number} more ({error}): raise `ulimit -u`, \
                     or the container's limit of processes (pids.max)"
                )));
            }
        }
    }
    for (stop, thread) in started {
        drop(stop);
        // it does nothing that could panic
        let _ended = thread.join();
    }
    Ok(())
}

/// Whether the connections of a world of so many ranks fit.
///
/// # Errors
/// They do not.
pub fn ranks(world: usize) -> Result<(), Failure> {
    let needed = FILES + FILES_PER_RANK * world as u64;
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < needed => Err(Failure::Limit(format!(
            "this process may open {files} files, and a world of {world} needs {needed}: raise `ulimit -n`"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_tried_out() {
        assert!(threads(4).is_ok());
    }

    #[test]
    fn connections_are_counted_before_they_are_made() {
        assert!(ranks(2).is_ok());
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX / 8);
        let said = ranks(files as usize).map_err(|failure| failure.to_string());
        assert!(said.is_err_and(|said| said.contains("ulimit -n")));
    }
}
