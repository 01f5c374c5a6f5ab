//! What the coordinator knows of a run as a whole: the phase, the generation, and what it was asked for.
//!
//! Facts only, as in [`crate::state`]; nothing here decides.

use crate::event::{Force, SessionId, Stored, WorkerId};
use crate::reason::{Reason, Slowness};
use crate::state::{Loss, Member, Phase, Policy, Slot};
use crate::verdict::Outcome;
use common::ids::{Generation, ImagesSeen, Rank};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A longer gap between two events (the clock's alone come ten times a second), or one of a quarter of the patience, means that
/// the coordinator itself stood still (stopped, swapped out): not the workers' fault.
pub const PAUSE: Duration = Duration::from_millis(300);

/// So long nothing may happen to a coordinator that is well, however little patience it has.
const BREATH: Duration = Duration::from_millis(200);

/// What the workers were told to end for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// Everybody said that the work is done; their processes are going.
    Finished,
    /// The operator wants an end with a checkpoint.
    Stop,
    /// The operator wants an end before training began.
    Withdraw,
    /// It cannot go on.
    Failure(Reason),
    /// The operator wants an end at once.
    Kill,
}

/// How far an ending has got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drain {
    pub ending: Ending,
    pub since: Duration,
    /// What was last done to processes that would not go.
    pub forced: Option<Force>,
}

/// A wish to end with a checkpoint, until it is fulfilled: it outlives the generation that heard it first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stop {
    pub since: Duration,
    /// What to say at the end if it was not the operator who asked.
    pub verdict: Option<Reason>,
    /// Another coordinator heard it: farewells may have been said to that one.
    pub inherited: bool,
}

/// The generation at work, or the one that is over.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Formation {
    pub peers: Arc<[String]>,
    /// The checkpoint to start from where no rank holds the state: the same for all, whenever they ask.
    pub resume: Option<Stored>,
    pub rollback: bool,
    pub redraw: bool,
    /// When a step was last seen to be taken. Every step needs all ranks.
    pub progressed: Duration,
    /// When a rank was last seen to take a step or to turn to something else.
    pub moved: Duration,
    /// Steps that ranks were seen to take.
    pub steps: u32,
    /// The slowest of the last steps.
    pub step_time: Duration,
    /// The rank that keeps the others waiting, why, and since when.
    pub straggler: Option<(WorkerId, Slowness, Duration)>,
    /// Those of which it was said.
    pub named: Vec<(WorkerId, Slowness)>,
    /// When it was asked to regroup.
    pub regroup: Option<Duration>,
    /// When it was over.
    pub over: Option<Duration>,
    /// All left it together.
    pub voluntary: bool,
    /// It is known what to do about it that training diverged.
    pub diverged: bool,
    /// It is known who of its members could not reach each other.
    pub parted: bool,
}

/// Failures without progress in between.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Strikes {
    /// The furthest that the run ever was: only beyond it is progress, wherever the run starts from anew.
    pub at: ImagesSeen,
    pub count: u32,
    /// The run went back to a checkpoint for them.
    pub rolled_back: bool,
    /// The next generation is to go back.
    pub rollback: bool,
    /// And to draw other random numbers.
    pub redraw: bool,
    pub last: String,
}

/// A local process whose worker is no part of the run any more, until its end is noticed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Departing {
    pub since: Duration,
    pub killed: bool,
}

/// Time as the cluster counts it: the coordinator's own pauses are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pulse {
    last: Duration,
    skipped: Duration,
    /// When the last pause ended.
    paused: Option<Duration>,
}

impl Pulse {
    /// The time to count for `now`, which may even run backwards. Of a pause so little is counted that nobody who was
    /// heard just before it has spent his `patience`.
    pub(crate) fn advance(&mut self, now: Duration, patience: Duration) -> Duration {
        let (gap, counts) = (now.saturating_sub(self.last), PAUSE.min(patience / 4));
        if gap > counts.max(BREATH) {
            // of a second one, before anybody could be heard again, hardly anything is counted; but time goes on
            let again = self.paused.is_some_and(|at| self.last - self.skipped < at + patience);
            self.skipped += if again { gap - counts / 8 } else { gap - counts };
            self.paused = Some(self.last.max(now) - self.skipped);
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
    /// No generation up to this one may be formed any more.
    pub(crate) used: Generation,
    pub(crate) formation: Formation,
    pub(crate) members: BTreeMap<WorkerId, Member>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) departing: BTreeMap<WorkerId, Departing>,
    pub(crate) wanted: u32,
    pub(crate) strikes: Strikes,
    /// How often training diverged since there was a new checkpoint.
    pub(crate) divergences: u32,
    /// The last generation that went back to a checkpoint.
    pub(crate) went_back: Generation,
    /// The last generation that did not go on from what the one before had reached: what older ones store from then on is
    /// of a line that the run has left.
    pub(crate) forked: Generation,
    /// The line of the state that the generation at work started from.
    pub(crate) line: Generation,
    pub(crate) losses: VecDeque<Loss>,
    /// Something was recorded from which something may follow.
    pub(crate) unjudged: bool,
    pub(crate) images: ImagesSeen,
    pub(crate) checkpoint_wanted: bool,
    pub(crate) stop: Option<Stop>,
    pub(crate) drain: Option<Drain>,
    pub(crate) newest: Option<Stored>,
    /// The generation that wrote the newest checkpoint.
    pub(crate) newest_from: Generation,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) pulse: Pulse,
    /// When anybody was last heard.
    pub(crate) heard: Duration,
    /// Since when somebody is heard all the time.
    pub(crate) hears: Duration,
}

impl Cluster {
    /// A run that waits for its workers. `newest` is the checkpoint it starts from, `generation` the last one that an
    /// earlier part of the run used (0 if none): the next is larger.
    #[must_use]
    pub fn new(policy: Policy, generation: Generation, newest: Option<Stored>) -> Self {
        Self {
            phase: Phase::Gathering,
            generation,
            used: generation,
            formation: Formation::default(),
            members: BTreeMap::new(),
            slots: vec![Slot::default(); policy.local as usize],
            departing: BTreeMap::new(),
            wanted: policy.workers,
            strikes: Strikes::default(),
            divergences: 0,
            went_back: Generation(0),
            forked: Generation(0),
            line: Generation(0),
            losses: VecDeque::new(),
            unjudged: false,
            images: newest.as_ref().map(|stored| stored.images).unwrap_or_default(),
            checkpoint_wanted: false,
            stop: None,
            drain: None,
            newest_from: newest.as_ref().map(Stored::generation).unwrap_or_default(),
            newest,
            outcome: None,
            pulse: Pulse::default(),
            heard: Duration::ZERO,
            hears: Duration::ZERO,
            policy,
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

    /// Workers of the generation at work, or of the last one; 0 before the first.
    #[must_use]
    pub fn world(&self) -> u32 {
        self.formation.peers.len() as u32
    }

    /// Workers that are wanted.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.wanted
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

    /// Every worker that is part of the run or waits to be, by name.
    pub fn members(&self) -> impl Iterator<Item = (&WorkerId, &Member)> {
        self.members.iter()
    }

    /// The last workers that were lost, the latest last.
    pub fn losses(&self) -> impl DoubleEndedIterator<Item = &Loss> {
        self.losses.iter()
    }

    /// Images seen, or those at the checkpoint that the run starts from.
    #[must_use]
    pub fn images(&self) -> ImagesSeen {
        self.images
    }

    /// Whether `worker` speaks on its present stream, of the generation at work, as rank 0: only then do its ticks and
    /// checkpoints count.
    #[must_use]
    pub fn speaks_for_all(&self, worker: &WorkerId, session: SessionId, generation: Generation) -> bool {
        generation == self.generation
            && self.members.get(worker).is_some_and(|m| m.session() == Some(session) && m.rank == Some(Rank(0)))
    }

    /// Somebody gave a sign of life. After a while in which nobody did, everybody has time anew.
    pub(crate) fn hear(&mut self, now: Duration) {
        if now > self.heard + self.policy.patience / 2 {
            (self.hears, self.formation.moved) = (now, now);
        }
        self.heard = now;
    }

    /// Up to when the silence of a worker elsewhere counts: while nobody at all is heard, it may be the coordinator that is
    /// cut off. Its workers go on without it, and there is nobody with whom it could go on without them: so it waits, as
    /// long as it would for missing ones.
    pub(crate) fn listened(&self, now: Duration) -> Duration {
        if now <= self.heard + self.policy.startup { self.heard } else { now }
    }

    pub(crate) fn at_work(&self) -> impl Iterator<Item = (&WorkerId, &Member)> {
        self.members.iter().filter(|(_, member)| member.is_at_work())
    }

    /// Members of the generation at work that can be spoken to, in the order of their ranks.
    pub(crate) fn reachable(&self) -> Vec<(WorkerId, SessionId)> {
        let mut list: Vec<_> =
            self.at_work().filter_map(|(id, member)| Some((member.rank, id.clone(), member.session()?))).collect();
        list.sort();
        list.into_iter().map(|(_, id, session)| (id, session)).collect()
    }
}
