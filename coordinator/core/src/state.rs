//! What the coordinator knows: the phase, and of each worker its connection, its process and its last words.
//!
//! Facts only. What follows from them is judged in [`mod@crate::step`]; nothing here decides.

use crate::event::{ExitStatus, Force, SessionId, Stored, WorkerId};
use crate::reason::Reason;
use crate::verdict::Outcome;
use common::ids::{Generation, ImagesSeen, Rank};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How patient the cluster is, and how many it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Workers that form the generation.
    pub workers: u32,
    /// Images at which the run is complete.
    pub total: ImagesSeen,
    /// From the start until every worker must have joined.
    pub startup: Duration,
    /// Without a sign of life for this long, a worker is lost.
    pub patience: Duration,
    /// From a stop until every worker must have left: time for the last checkpoint.
    pub stop: Duration,
}

impl Policy {
    /// How long a broken connection may stay broken. Local deaths are seen at once by the process's exit; this is for
    /// workers elsewhere, and short enough that a loss ends the run within 5 s.
    #[must_use]
    pub fn reconnect(&self) -> Duration {
        self.patience.min(Duration::from_secs(2))
    }
}

/// Between the exit of a process and the judgement on it: its last messages may still be on their way.
pub const SETTLE: Duration = Duration::from_millis(500);

/// A longer gap between two events means that the coordinator itself stood still (stopped, swapped out): not the workers' fault.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Workers are starting and joining.
    Gathering,
    /// A generation is at work.
    Running,
    /// Workers were told to end; their processes are going.
    Draining,
    /// Over, as wished.
    Done,
    /// Over, otherwise; the verdict is in [`Cluster::outcome`].
    Failed,
}

/// Connection of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// It has not joined yet.
    Awaited,
    /// It is connected.
    Up {
        /// On this stream.
        session: SessionId,
        /// Last sign of life.
        seen: Duration,
    },
    /// Its connection broke.
    Down {
        /// When.
        since: Duration,
    },
}

/// Process of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// On another machine, or started by somebody else.
    Elsewhere,
    /// Our child.
    Alive {
        /// Its process id.
        pid: u32,
    },
    /// Was our child.
    Gone {
        /// When its end was noticed.
        at: Duration,
        /// How it ended.
        status: ExitStatus,
        /// Last error it wrote.
        last_error: Option<String>,
    },
}

/// A worker's farewell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Farewell {
    /// When it came.
    pub at: Duration,
    /// Exit code.
    pub exit: u32,
    /// For a person.
    pub message: String,
}

/// What is known of one worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    /// Rank it should get if all goes as usual.
    pub rank_hint: Option<u32>,
    /// Rank in the generation at work.
    pub rank: Option<Rank>,
    /// Where the other ranks reach it.
    pub peer: String,
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// Machine it runs on.
    pub host: String,
    /// Its connection.
    pub link: Link,
    /// Its process.
    pub process: Process,
    /// Images seen, as it said last.
    pub images: ImagesSeen,
    /// What it is doing, as it said last.
    pub activity: String,
    /// Its farewell.
    pub farewell: Option<Farewell>,
}

impl Member {
    pub(crate) fn new(process: Process, rank_hint: Option<u32>) -> Self {
        Self {
            rank_hint,
            rank: None,
            peer: String::new(),
            device: String::new(),
            host: String::new(),
            link: Link::Awaited,
            process,
            images: ImagesSeen::default(),
            activity: String::new(),
            farewell: None,
        }
    }

    /// The stream on which it can be spoken to.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        match self.link {
            Link::Up { session, .. } if self.farewell.is_none() => Some(session),
            _ => None,
        }
    }

    /// Whether it cannot do anything any more: the process is gone, or, elsewhere, it left or is not connected.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self.process {
            Process::Alive { .. } => false,
            Process::Gone { .. } => true,
            Process::Elsewhere => self.session().is_none(),
        }
    }

    /// Whether it said that its work is done.
    #[must_use]
    pub fn has_finished(&self) -> bool {
        self.farewell.as_ref().is_some_and(|farewell| farewell.exit == 0)
    }
}

/// What the workers were told to end for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// Everybody said that the work is done; their processes are going.
    Finished,
    /// The operator wants an end with a checkpoint.
    Stop,
    /// The operator wants an end before training began.
    Withdraw,
    /// It cannot go on. The reason is the first sign of trouble; the verdict may find a better one.
    Failure(Reason),
    /// The operator wants an end at once.
    Kill,
}

/// How far an ending has got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drain {
    pub ending: Ending,
    pub since: Duration,
    /// When processes that would not go were first forced, and what was last done to them.
    pub forced: Option<(Duration, Force)>,
}

/// Time as the cluster counts it: the coordinator's own pauses are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pulse {
    last: Duration,
    skipped: Duration,
}

impl Pulse {
    /// The time to count for `now`, which may even run backwards.
    pub(crate) fn advance(&mut self, now: Duration) -> Duration {
        let gap = now.saturating_sub(self.last);
        if gap > PAUSE {
            self.skipped += gap - PAUSE;
        }
        self.last = self.last.max(now);
        self.last - self.skipped
    }
}

/// Everything the coordinator knows of one run's workers.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) policy: Policy,
    pub(crate) phase: Phase,
    pub(crate) generation: Generation,
    pub(crate) members: BTreeMap<WorkerId, Member>,
    pub(crate) drain: Option<Drain>,
    pub(crate) stop_requested: bool,
    pub(crate) newest: Option<Stored>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) pulse: Pulse,
}

impl Cluster {
    /// A run that waits for its workers. `newest` is the checkpoint it starts from, `generation` the last one that an
    /// earlier part of the run used (0 if none): the next is larger.
    #[must_use]
    pub fn new(policy: Policy, generation: Generation, newest: Option<Stored>) -> Self {
        Self {
            policy,
            phase: Phase::Gathering,
            generation,
            members: BTreeMap::new(),
            drain: None,
            stop_requested: false,
            newest,
            outcome: None,
            pulse: Pulse::default(),
        }
    }

    /// Where the run stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether nothing can happen any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// The generation at work, or the last one.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How it ended, once it did.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Newest committed checkpoint.
    #[must_use]
    pub fn newest(&self) -> Option<&Stored> {
        self.newest.as_ref()
    }

    /// Every worker that was ever part of the run, by name.
    pub fn members(&self) -> impl Iterator<Item = (&WorkerId, &Member)> {
        self.members.iter()
    }

    /// Images seen by the most advanced worker, or at the checkpoint that the run starts from.
    #[must_use]
    pub fn images(&self) -> ImagesSeen {
        let stored = self.newest.as_ref().map(|stored| stored.images).unwrap_or_default();
        self.members.values().map(|member| member.images).max().unwrap_or_default().max(stored)
    }

    /// Whether `worker` speaks on its present stream, of the generation at work, as rank 0: only then do its ticks and
    /// checkpoints count.
    #[must_use]
    pub fn speaks_for_all(&self, worker: &WorkerId, session: SessionId, generation: Generation) -> bool {
        generation == self.generation
            && self.members.get(worker).is_some_and(|m| m.session() == Some(session) && m.rank == Some(Rank(0)))
    }
}
