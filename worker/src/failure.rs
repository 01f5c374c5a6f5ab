//! How a worker can fail, each with its exit code: what the coordinator shows and a job script reads.

use crate::checkpoint::FinishError;
use crate::evaluate::{EvaluateError, FeaturesError};
use crate::input::InputError;
use crate::trainer::StepError;
use crate::weights::WeightsError;
use agent::Trouble;
use collective::{CollectiveError, How};
use common::exit::Exit;
use common::ids::{ImagesSeen, Rank};

/// Why a worker ends early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The session with the coordinator could not be had.
    #[error(transparent)]
    Agent(#[from] agent::AgentError),
    /// Nobody answers at the coordinator's address.
    #[error("no coordinator answers at {address}: {error}; is the run still alive, and is the address right?")]
    Unreachable {
        /// The address.
        address: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// Standard input, the command line or the configuration make no sense.
    #[error("{0}")]
    Usage(String),
    /// The training images cannot be used.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// Images that were to be made into others cannot be.
    #[error("{0} could not be translated")]
    UnusableImages(String),
    /// A file of weights cannot be used, or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// This worker's store is not the run's.
    #[error("{0}")]
    OtherStore(String),
    /// The ranks do not have the same training images.
    #[error("{0}")]
    OtherImages(String),
    /// The store refuses.
    #[error(transparent)]
    Storage(#[from] storage::StorageError),
    /// The checkpoint cannot be restored.
    #[error(transparent)]
    Restore(#[from] crate::checkpoint::RestoreError),
    /// The ranks could not be connected, or one was lost.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A step could not be taken.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Images could not be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A metric could not be computed.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// The network whose features are compared cannot be used.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The last state is not stored.
    #[error(transparent)]
    Finish(#[from] FinishError),
    /// Too many updates in a row that could not be applied.
    #[error(
        "the last updates, up to {0}, were all skipped because their gradients were not finite: training has diverged"
    )]
    Diverged(ImagesSeen),
    /// The coordinator does not count this worker any more.
    #[error("the coordinator ended this worker's session; its run goes on elsewhere or is over")]
    Dismissed,
    /// This machine or build cannot do what the run asks for.
    #[error("{0}")]
    Unsupported(String),
    /// The system does not let this process have what it needs.
    #[error("{0}")]
    Limit(String),
    /// A file or the runtime failed.
    #[error("cannot {doing}: {error}")]
    Io {
        /// What was attempted.
        doing: String,
        /// The system's answer.
        error: std::io::Error,
    },
}

impl Failure {
    /// What the coordinator is told where this ended a generation, and not the worker.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let unreached = match self.of_the_ranks() {
            Some(
                CollectiveError::PeerLost { rank, how: How::Silent | How::GaveUp }
                | CollectiveError::TimedOut { waiting_for: rank, .. },
            ) => Some(Rank(*rank)),
            _ => None,
        };
        Trouble { why: self.to_string(), diverged: matches!(self, Self::Diverged(_)), unreached }
    }

    /// What failed among the ranks.
    fn of_the_ranks(&self) -> Option<&CollectiveError> {
        match self {
            Self::Collective(cause)
            | Self::Step(StepError::Collective(cause))
            | Self::Finish(FinishError::Step(StepError::Collective(cause)))
            | Self::Evaluate(EvaluateError::Step(StepError::Collective(cause))) => Some(cause),
            _ => None,
        }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Agent(error) => error.exit(),
            Self::Unreachable { .. } => Exit::Network,
            Self::Usage(_) | Self::Weights(WeightsError::Exists { .. } | WeightsError::Io { .. }) => Exit::Usage,
            Self::Weights(_) | Self::Data(_) | Self::Input(_) | Self::OtherImages(_) | Self::UnusableImages(_) => {
                Exit::Data
            }
            Self::Storage(_) | Self::OtherStore(_) | Self::Restore(_) | Self::Finish(FinishError::NotStored { .. }) => {
                Exit::Storage
            }
            Self::Dismissed | Self::Collective(_) => Exit::WorkerLost,
            _ if self.of_the_ranks().is_some() => Exit::WorkerLost,
            Self::Diverged(_) => Exit::Diverged,
            Self::Unsupported(_) | Self::Limit(_) | Self::Features(_) => Exit::Config,
            Self::Step(_) | Self::Finish(_) | Self::Evaluate(_) | Self::Io { .. } => Exit::Internal,
        }
    }
}
