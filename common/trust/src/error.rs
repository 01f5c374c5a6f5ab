//! Why credentials are not used.

use crate::Party;
use std::path::PathBuf;

/// Why credentials are not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is no such file.
    #[error(
        "there are no credentials: {} is missing. Make them with `coordinator credentials make FOLDER`, and give a worker's machine the folder \
         `worker` in it",
        file.display()
    )]
    Missing {
        /// Which.
        file: PathBuf,
    },
    /// Others than its owner can read it.
    #[error("{} can be read by others (mode {mode:o}), and is a secret: chmod 600 {}", file.display(), file.display())]
    Exposed {
        /// Which.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is not what it should be.
    #[error("{}: {why}", file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is another party's.
    #[error("{} is no certificate of a {}: give the folder `{}` that `coordinator credentials make` has made", file.display(), wanted.name(), wanted.name())]
    Party {
        /// Which.
        file: PathBuf,
        /// Whose it should be.
        wanted: Party,
    },
    /// It was good until then.
    #[error("{} has expired, on {on}: renew it with `coordinator credentials renew FOLDER`, and give workers their new folder", file.display())]
    Expired {
        /// Which.
        file: PathBuf,
        /// When.
        on: String,
    },
    /// It will be good from then on.
    #[error("{} is good from {from} on: is the clock of this machine right?", file.display())]
    NotYet {
        /// Which.
        file: PathBuf,
        /// When.
        from: String,
    },
}
