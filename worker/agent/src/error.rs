//! Why a worker has no place in a run.

use common::exit::Exit;
use std::time::Duration;
use trust::TrustError;

/// Why [`crate::Agent::connect`] did not get a place.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The address cannot be one.
    #[error("`{address}` is not the address of a coordinator ({why}); expected HOST:PORT, http:// or https://")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers.
    #[error("no coordinator answers at {address} for {:.1} s: {why}", .waited.as_secs_f64())]
    Unreachable {
        /// Where.
        address: String,
        /// How long it was tried.
        waited: Duration,
        /// The last failure.
        why: String,
    },
    /// It has answered, and does no more.
    #[error("the coordinator at {address} is gone: {why}")]
    Gone {
        /// Where.
        address: String,
        /// How that was noticed.
        why: String,
    },
    /// This worker has no credentials that can be used.
    #[error(transparent)]
    Credentials(#[from] TrustError),
    /// One side does not trust the other.
    #[error("no trust between this worker and the coordinator at {address}: {why}")]
    Untrusted {
        /// Where.
        address: String,
        /// What to do, and what failed.
        why: String,
    },
    /// The coordinator said no.
    #[error("the coordinator refused this worker: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The run was stopped before it began.
    #[error("the run was stopped before this worker got its place: {reason}")]
    Stopped {
        /// The coordinator's words.
        reason: String,
    },
    /// The coordinator sent something that cannot be.
    #[error("the coordinator sent an assignment that makes no sense: {why}")]
    Assignment {
        /// What is wrong.
        why: String,
    },
    /// The background thread or its runtime could not be started.
    #[error("the background thread of the session could not be started: {0}")]
    Thread(#[source] std::io::Error),
    /// The background thread ended without a word: a defect.
    #[error("the session ended without a word")]
    Ended,
}

impl AgentError {
    /// Exit code that the worker should leave with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Address { .. } => Exit::Usage,
            // with new ones, or at another time, it may come again
            Self::Credentials(TrustError::Expired { .. } | TrustError::NotYet { .. }) => Exit::Network,
            Self::Credentials(_) => Exit::Config,
            Self::Unreachable { .. } | Self::Gone { .. } | Self::Untrusted { .. } | Self::Refused { .. } => {
                Exit::Network
            }
            Self::Stopped { .. } => Exit::Ok,
            Self::Assignment { .. } | Self::Thread(_) | Self::Ended => Exit::Internal,
        }
    }
}
