//! What can happen to a cluster ([`Event`]) and what can be ordered in answer ([`Action`]).
//!
//! Both are plain values: no channel, no handle, nothing that only one process could hold.

use crate::journal::Entry;
use crate::reason::{Reason, Refusal};
use crate::verdict::Outcome;
use common::checkpoint::ManifestKey;
pub use common::exit::ExitStatus;
pub use common::ids::WorkerId;
use common::ids::{Generation, ImagesSeen, Rank};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// One stream of one worker. A worker that reconnects gets a new one; what still arrives on the old one is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Images seen at the checkpoint.
    pub images: ImagesSeen,
    /// Key of its manifest below the run.
    pub manifest: String,
}

impl Stored {
    /// The generation that wrote it, as its name says; 0 where that is no name of a checkpoint.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.manifest.parse().map(|key: ManifestKey| key.generation).unwrap_or_default()
    }
}

/// A wish of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Finish the step, write a checkpoint, end.
    Stop,
    /// Write a checkpoint and go on.
    Checkpoint,
    /// End at once; nothing more is written.
    Kill,
    /// Train with this many workers.
    Scale(u32),
}

/// Where a worker stands, as every sign of life says anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The generation it is in; with `ready` the last one it was in, 0 before its first.
    pub generation: Generation,
    /// It is prepared, in no generation, and waits for a place.
    pub ready: bool,
    /// It holds the state of the run.
    pub has_state: bool,
    /// With `ready`: why its last generation ended for it; empty if all left it together.
    pub trouble: String,
    /// With `ready`: its last generation ended because training diverged, on every rank alike.
    pub diverged: bool,
    /// With `ready`: the rank of its last generation that it could not reach any more.
    pub unreached: Option<Rank>,
    /// It was told to go, and wants no further place.
    pub leaving: bool,
    /// Images seen.
    pub images: ImagesSeen,
    /// Index of the step within its round.
    pub step: u32,
    /// Steps that it has taken in the generation it is in.
    pub steps: u32,
    /// What it is doing.
    pub activity: String,
    /// It has done its part of the step and waits for others.
    pub waiting: bool,
    /// How long its last step took.
    pub step_time: Duration,
    /// What its own work takes of a step, on average over the last ones, waiting for images included.
    pub busy: Duration,
    /// What waiting for images takes of that.
    pub data: Duration,
    /// What some bytes take to most other ranks and back; zero before that is known.
    pub way: Duration,
    /// Statistical groups of the minibatch that it holds.
    pub share: u32,
    /// With `ready` and a state: the generation that took the last step of it, or put the run there.
    pub line: Generation,
}

impl Standing {
    /// The line of the state that it holds, if it holds one: the later, the further is the run there.
    #[must_use]
    pub fn held(&self) -> Option<Generation> {
        self.has_state.then_some(self.line)
    }

    /// Whether it says only that the worker goes on with what it was at when it said `last`: nothing that has to be judged at once.
    #[must_use]
    pub fn goes_on_from(&self, last: &Self) -> bool {
        let news = |of: &Self| (of.generation, of.ready, of.held(), of.leaving, of.diverged, of.unreached);
        news(self) == news(last) && self.activity == last.activity && self.trouble == last.trouble
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The local worker that was ordered for a slot was started.
    Spawned {
        /// The slot.
        slot: u32,
        /// The name it was given.
        worker: WorkerId,
        /// Its process id.
        pid: u32,
    },
    /// The local worker that was ordered for a slot could not be started.
    NotSpawned {
        /// The slot.
        slot: u32,
        /// Why.
        error: String,
    },
    /// A worker opened a stream and passed admission (token, protocol, build).
    Joined {
        /// Who.
        worker: WorkerId,
        /// The new stream.
        session: SessionId,
        /// Where the other ranks reach it.
        peer: String,
        /// `cpu`, `cuda:0`, ...
        device: String,
        /// Machine it runs on.
        host: String,
    },
    /// A sign of life.
    Progress {
        /// Who.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// Where it stands.
        standing: Standing,
    },
    /// A checkpoint is committed. Rank 0 of the generation that wrote it says so, perhaps in a later one.
    Stored {
        /// Who.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// Generation that wrote it.
        generation: Generation,
        /// The checkpoint.
        stored: Stored,
    },
    /// The newest checkpoint in the store, after a pause of the coordinator in which workers may have stored what they held and left
    /// without a word to it.
    Found(Stored),
    /// A worker said that it leaves, and why. On every stream it says where it stands before it says farewell: exit
    /// code 0 means "finished" of one at work, and only "gone" of one that waits for a place.
    Left {
        /// Who.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// Its exit code, as `common::exit::Exit` numbers it.
        exit: u32,
        /// For a person.
        message: String,
        /// Images seen.
        images: ImagesSeen,
    },
    /// A stream ended.
    Disconnected {
        /// Whose.
        worker: WorkerId,
        /// Which.
        session: SessionId,
    },
    /// A local worker process is gone.
    ChildExited {
        /// Which.
        worker: WorkerId,
        /// How.
        status: ExitStatus,
        /// The last error that it wrote, or what else its last words were.
        last_error: Option<String>,
    },
    /// The operator wants something.
    Operator(Command),
    /// Time passed. Comes several times a second.
    Clock,
}

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Force {
    /// SIGTERM: it may still clean up.
    Term,
    /// SIGKILL.
    Kill,
}

/// A worker's place in a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Which formation.
    pub generation: Generation,
    /// Place of the receiver.
    pub rank: Rank,
    /// Peer addresses in rank order; their number is the world size.
    pub peers: Arc<[String]>,
    /// The checkpoint to start from where no rank holds the state.
    pub resume: Option<Stored>,
    /// Start from `resume` whoever holds what.
    pub rollback: bool,
    /// And draw other random numbers from here on than the run did before.
    pub redraw: bool,
}

/// One thing to do. The shell performs them in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write this down for a successor, before what follows is done.
    Record(Entry),
    /// Start a local worker for a slot.
    Spawn {
        /// The slot.
        slot: u32,
    },
    /// Tell a worker what to prepare for. May be said again while it prepares.
    Welcome {
        /// Whom.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
    },
    /// Give a worker its place. The same place may be sent again when the first message may have been lost.
    Assign {
        /// To whom.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// What.
        assignment: Assignment,
    },
    /// Ask a worker to finish.
    SendStop {
        /// Whom.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// The generation that is to finish, with a checkpoint; without one, the worker is to leave as soon as it is in
        /// none.
        generation: Option<Generation>,
        /// Why, as the worker logs it.
        reason: Reason,
    },
    /// Have a worker leave its generation at once and be ready for another.
    Abort {
        /// Whom.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// Which generation is over.
        generation: Generation,
        /// Why, as the worker logs it.
        reason: String,
    },
    /// Ask a worker to propose to its peers that they leave their generation together, between two steps.
    Regroup {
        /// Whom.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// Which generation.
        generation: Generation,
    },
    /// Ask a worker to propose a checkpoint to its peers.
    SendCheckpoint {
        /// Whom.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
    },
    /// Say no and end the stream.
    Refuse {
        /// Which stream.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
    /// End a local process.
    Kill {
        /// Whose.
        worker: WorkerId,
        /// How.
        force: Force,
    },
    /// Tell the operator of a decision.
    Report(Reason),
    /// The run is over: the last action ever.
    Finish(Outcome),
}
