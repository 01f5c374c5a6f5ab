//! How a collective call can fail, in words that a trainer can branch on and a person can act on.
//!
//! Refuses to guess: a lost rank is named only when it, or a rank that saw it, said so.

use std::{fmt, io, sync::Arc, time::Duration};

/// Why a call did not complete. The communicator is dead after any of them but [`CollectiveError::Misuse`]: buffers that were
/// being written hold undefined values, and every later call returns the first error again, at once.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CollectiveError {
    /// A member of the generation is gone. The survivors form the next generation without it.
    #[error("rank {rank} was lost: {how}")]
    PeerLost {
        /// Who is gone: the origin of the loss where it is known, not merely the neighbour that noticed.
        rank: u32,
        /// What was seen of it.
        how: How,
    },
    /// For `after` not one byte moved. `waiting_for` is the rank at the end of the chain of ranks that wait for each other.
    #[error("no progress for {after:.1?}, waiting for rank {waiting_for}: it is stopped, hung, or its network is gone")]
    TimedOut {
        /// The deadline that passed.
        after: Duration,
        /// Who has to move for this rank to go on.
        waiting_for: u32,
    },
    /// This rank's own communicator was aborted.
    #[error("the communicator was aborted on this rank")]
    Aborted,
    /// The generation is over: this listener has formed it already, or has gone on to a later one.
    #[error("generation {generation} is over: this worker has gone on to generation {newest}")]
    Stale {
        /// The generation asked for.
        generation: u64,
        /// The newest one that was tried or formed here.
        newest: u64,
    },
    /// What a member sent cannot be part of this call: the ranks run different programs, or make their calls in different orders.
    #[error("rank {rank} does not follow the protocol: {what}")]
    Protocol {
        /// The rank whose bytes are meant.
        rank: u32,
        /// What was expected and what came.
        what: String,
    },
    /// The caller's arguments contradict each other; nothing was sent and the communicator lives on.
    #[error("wrong use of a collective: {0}")]
    Misuse(String),
    /// What the ranks do together on their GPUs has failed, for a reason that names no rank.
    #[error("the sums between the GPUs have failed: {0}")]
    Device(String),
    /// The operating system refused something that no peer is to blame for.
    #[error("cannot {doing}: {error}")]
    Io {
        /// What was being done, to fit "cannot ...".
        doing: String,
        /// What the system said.
        error: Arc<io::Error>,
    },
}

impl CollectiveError {
    /// For `map_err`: an error of the operating system with what was being done.
    pub(crate) fn io<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |error| Self::Io { doing, error: Arc::new(error.into()) }
    }
}

/// What was seen of a lost rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Its connections ended without a word: the process was killed or crashed, or the network cut it off.
    Closed,
    /// It aborted its communicator.
    Aborted,
    /// It left in good order (dropped its communicator) while others still had calls to make.
    Left,
    /// It did not move within the deadline: stopped, hung, or unreachable.
    Silent,
    /// It gave up waiting for this rank: this rank is the one that was silent.
    GaveUp,
    /// Nothing listens at its address: its process has ended.
    Refused,
    /// It failed for a reason of its own that does not concern its peers.
    Failed,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "its connections ended without a word; look for a crash or a kill in its log",
            Self::Aborted => "it aborted its communicator",
            Self::Left => "it left",
            Self::Silent => "it did not move within the deadline",
            Self::GaveUp => "it gave up waiting for this rank",
            Self::Refused => "nothing listens at its address any more",
            Self::Failed => "it failed; its own log says why",
        })
    }
}
