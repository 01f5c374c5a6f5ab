//! The policy, and what is known of each worker: its connection, its process and where it stands.
//!
//! Facts only. What follows from them is judged in [`mod@crate::step`]; nothing here decides.

use crate::apart::Apart;
use crate::event::{ExitStatus, SessionId, Standing, WorkerId};
use crate::reason::Cause;
use common::ids::{Generation, ImagesSeen, Rank};
use serde::Serialize;
use std::time::Duration;

/// What to do while fewer workers are there than are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLoss {
    /// Go on at once with those that are there, and take others in when they come.
    #[default]
    Shrink,
    /// Wait until as many are there as are wanted.
    Wait,
}

/// How patient the cluster is, and how many it needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Workers that are wanted.
    pub workers: u32,
    /// Fewer than this many do not train.
    pub min_workers: u32,
    /// More than this many never do; one that only hands the state over, for a step or two, comes on top.
    pub max_workers: u32,
    /// How many of the wanted ones this coordinator starts, and starts again when they die.
    pub local: u32,
    /// Whether too few are enough.
    pub on_loss: OnLoss,
    /// Failures in a row at one place, without progress in between, before the run goes back to a checkpoint; after as
    /// many again it ends.
    pub failures: u32,
    /// Images at which the run is complete.
    pub total: ImagesSeen,
    /// How long enough workers may be missing, at the start and after a loss.
    pub startup: Duration,
    /// Without a sign of life for this long, a worker is lost.
    pub patience: Duration,
    /// From a stop until every worker must have left: time for the last checkpoint.
    pub stop: Duration,
}

impl Policy {
    /// How long a broken connection may stay broken while nothing else shows that the worker lives.
    #[must_use]
    pub fn reconnect(&self) -> Duration {
        self.patience.min(Duration::from_secs(2))
    }

    /// How long a coordinator that takes a run over waits for each member of the generation at work, while nothing else
    /// shows that it lives: a worker that is away looks for its coordinator at least once in a patience, and one look may
    /// take another.
    #[must_use]
    pub fn takeover(&self) -> Duration {
        self.patience.saturating_mul(3)
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Workers are starting and joining.
    Gathering,
    /// A generation is at work.
    Running,
    /// A generation is over, its survivors keep the state, and the next one is being formed.
    Reconfiguring,
    /// Workers were told to end; their processes are going.
    Draining,
    /// Over, as wished.
    Done,
    /// Over, otherwise; the verdict is in [`crate::Cluster::outcome`].
    Failed,
}

/// Connection of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// It has not joined this coordinator yet.
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

/// What is known of one worker. It is forgotten when it is gone and cannot come back.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The place on this machine that it was started for.
    pub slot: Option<u32>,
    /// Rank in the generation at work, or in the one that is over.
    pub rank: Option<Rank>,
    /// Rank in the last generation that it had a place in: by that people know it.
    pub(crate) former: Option<Rank>,
    /// It has a rank, and has left that generation: it only waits for the next.
    pub out: bool,
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
    /// Where it stands, as it said last.
    pub standing: Standing,
    /// When it began to wait for a place.
    pub ready_since: Duration,
    /// When its present stream was opened.
    pub(crate) came: Duration,
    /// Whether it said on its present stream where it stands.
    pub(crate) heard: bool,
    /// When it became known.
    pub(crate) since: Duration,
    /// When it got its first place.
    pub(crate) placed_at: Option<Duration>,
    /// When it was last told what to prepare for, or its place.
    pub(crate) told: Duration,
    /// Images at what it held when it was given its place.
    pub(crate) origin: ImagesSeen,
    /// It could not reach another member, and waits.
    pub(crate) apart: Option<Apart>,
    /// When it was last asked to leave, on its present stream.
    pub(crate) asked: Option<Duration>,
    /// It was asked to leave while it had no place: it gets none any more.
    pub(crate) released: bool,
    /// Since when it says that it is in a generation that goes on without it.
    pub(crate) strayed: Option<Duration>,
    /// It was asked to finish the generation at work: leaving is no loss.
    pub(crate) may_finish: bool,
    /// Its farewell.
    pub farewell: Option<Farewell>,
}

impl Member {
    pub(crate) fn new(process: Process, slot: Option<u32>, now: Duration) -> Self {
        Self {
            slot,
            rank: None,
            former: None,
            out: false,
            peer: String::new(),
            device: String::new(),
            host: String::new(),
            link: Link::Awaited,
            process,
            standing: Standing::default(),
            ready_since: now,
            came: now,
            heard: false,
            since: now,
            placed_at: None,
            told: now,
            origin: ImagesSeen(0),
            apart: None,
            asked: None,
            released: false,
            strayed: None,
            may_finish: false,
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

    /// Whether it has a place in the generation at work, or in the one that is over.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.rank.is_some()
    }

    /// Whether it said that its work is done.
    #[must_use]
    pub fn has_finished(&self) -> bool {
        self.farewell.as_ref().is_some_and(|farewell| farewell.exit == 0)
    }

    /// Whether it belongs to the generation at work and has not left it.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        self.rank.is_some() && !self.out && self.farewell.is_none()
    }

    /// Whether it is connected and waits for a place.
    pub(crate) fn is_free(&self) -> bool {
        let free = (self.rank.is_none() || self.out) && !matches!(self.process, Process::Gone { .. });
        self.session().is_some() && self.standing.ready && free
    }

    /// Whether a place could be given to it now.
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        self.is_free() && self.stays()
    }

    /// Whether it is at work in `generation`, as it said itself since it last joined.
    pub(crate) fn has_entered(&self, generation: Generation) -> bool {
        self.is_at_work() && self.heard && self.standing.generation == generation && !self.standing.ready
    }

    /// Whether it is there, or on its way, for as long as the run goes on.
    pub(crate) fn stays(&self) -> bool {
        self.farewell.is_none() && !self.standing.leaving && !self.released
    }
}

/// A place on this machine for which the coordinator starts workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slot {
    /// A start was ordered, or has succeeded.
    pub taken: bool,
    /// Deaths in a row of workers that were hardly at work yet.
    pub deaths: u32,
    /// No start before this.
    pub not_before: Duration,
    /// No start any more.
    pub closed: bool,
}

/// A worker that was lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Who.
    pub worker: WorkerId,
    /// Its rank.
    pub rank: Option<Rank>,
    /// Why.
    pub cause: Cause,
    /// When.
    pub at: Duration,
}
