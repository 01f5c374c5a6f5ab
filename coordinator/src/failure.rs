//! Why a command could not do what it was asked, and the exit code that says so to a script.

use common::exit::Exit;
use std::fmt::Display;

/// An end that was not wished: what a person reads, and what a script sees.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, where, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with its words.
    #[must_use]
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl From<storage::StorageError> for Failure {
    fn from(error: storage::StorageError) -> Self {
        Self::new(Exit::Storage, error)
    }
}

impl From<crate::config_cli::Failure> for Failure {
    fn from(failure: crate::config_cli::Failure) -> Self {
        Self::new(failure.exit(), failure)
    }
}
