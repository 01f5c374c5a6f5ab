//! Why: the causes, refusals and decisions of the cluster, each a value that code can branch on and a person can read.

use crate::event::{ExitStatus, WorkerId};
use common::ids::{Generation, ImagesSeen, Rank};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Why a worker counts as lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum Cause {
    /// Its process ended without a farewell.
    #[error("ended without a farewell: {status}{}", said(.last_error.as_deref()))]
    Exited {
        /// How.
        status: ExitStatus,
        /// Last error it wrote.
        last_error: Option<String>,
    },
    /// It announced a failure.
    #[error("gave up with exit code {exit}: {message}")]
    Left {
        /// Its exit code.
        exit: u32,
        /// Its explanation.
        message: String,
    },
    /// It left as if the run were over, while others went on.
    #[error("left early, at {images}")]
    LeftEarly {
        /// Where it stood.
        images: ImagesSeen,
    },
    /// It gave no sign of life.
    #[error("gave no sign of life for {:.1} s", .for_.as_secs_f64())]
    Silent {
        /// How long.
        for_: Duration,
    },
    /// It is alive, and the others wait for it.
    #[error("did not go on for {:.1} s while the others waited for it ({activity})", .for_.as_secs_f64())]
    Hung {
        /// How long.
        for_: Duration,
        /// What it says it is doing.
        activity: String,
    },
    /// It did not leave a generation that is over.
    #[error("did not leave its generation within {:.1} s", .for_.as_secs_f64())]
    Stuck {
        /// How long.
        for_: Duration,
    },
    /// It was told to go, and goes.
    #[error("leaves on request")]
    Released,
    /// It could not be started.
    #[error("could not be started: {error}")]
    NotStarted {
        /// The system's answer.
        error: String,
    },
    /// Its connection broke and it did not come back.
    #[error("lost its connection and did not come back within {:.1} s", .for_.as_secs_f64())]
    Disconnected {
        /// How long.
        for_: Duration,
    },
}

fn said(last_error: Option<&str>) -> String {
    last_error.map(|line| format!("; its last words: {line}")).unwrap_or_default()
}

/// Why a stream is closed from this side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "snake_case", tag = "refusal")]
pub enum Refusal {
    /// The worker had said farewell, or its process is known to be gone.
    #[error("worker {worker} has already left this run")]
    AlreadyLeft {
        /// Who.
        worker: WorkerId,
    },
    /// The same worker opened a newer stream.
    #[error("worker {worker} opened a newer connection; this one is closed")]
    Replaced {
        /// Who.
        worker: WorkerId,
    },
    /// The run goes on without it.
    #[error("the run goes on without worker {worker}: it {cause}")]
    Evicted {
        /// Who.
        worker: WorkerId,
        /// Why.
        cause: Cause,
    },
    /// It was taken back too often.
    #[error(
        "worker {worker} was lost {times} times within {:.0} minutes, and is not taken back: look into its log and its host, \
         then start another one", .within.as_secs_f64() / 60.0
    )]
    Unsteady {
        /// Who.
        worker: WorkerId,
        /// How often.
        times: usize,
        /// In how long.
        within: Duration,
    },
    /// The run is ending.
    #[error("the run is ending")]
    Ending,
}

impl Refusal {
    /// Whether the worker may come back: the run went on without it because it was not heard, or did not get on, and it may
    /// be well by now.
    #[must_use]
    pub fn is_for_now(&self) -> bool {
        let Self::Evicted { cause, .. } = self else { return false };
        matches!(cause, Cause::Silent { .. } | Cause::Hung { .. } | Cause::Stuck { .. } | Cause::Disconnected { .. })
    }
}

/// What makes a rank a straggler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slowness {
    /// Its own work.
    Computing,
    /// Reading training images.
    Images,
    /// The way to the other ranks.
    Network,
}

/// Why the cluster changed its phase or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Reason {
    /// Everybody is here.
    #[error("generation {generation} begins with {world} worker{}", if *.world == 1 { "" } else { "s" })]
    Formed {
        /// Its number.
        generation: Generation,
        /// Its size.
        world: u32,
    },
    /// The generation is over; the next one follows.
    #[error("generation {generation} is over: {why}")]
    Broken {
        /// Its number.
        generation: Generation,
        /// What ended it.
        why: String,
    },
    /// All leave their generation together, for a better one.
    #[error("{workers} workers regroup as {wanted}")]
    Regroup {
        /// How many there are.
        workers: u32,
        /// How many there could be.
        wanted: u32,
    },
    /// Two workers could not reach each other, and one of them waits.
    #[error(
        "{} and worker {other} do not reach each other: the first waits for {:.1} s before it is tried again; does a firewall \
         stand between their hosts, or is a link broken?",
        name(.worker, *.rank), .pause.as_secs_f64()
    )]
    Apart {
        /// Who waits.
        worker: WorkerId,
        /// Its rank.
        rank: Option<Rank>,
        /// Whom it did not reach.
        other: WorkerId,
        /// How long.
        pause: Duration,
    },
    /// The operator wants another number of workers.
    #[error("{workers} worker{} wanted from now on", if *.workers == 1 { "" } else { "s" })]
    Scaled {
        /// How many.
        workers: u32,
    },
    /// The run failed again and again without getting anywhere: it goes back to a checkpoint.
    #[error("{failures} failures in a row at {images}: back to the newest checkpoint")]
    Rollback {
        /// How often.
        failures: u32,
        /// Where.
        images: ImagesSeen,
    },
    /// Training diverged: it goes back to a checkpoint.
    #[error("training diverged at {images}: back to {to}, with other random numbers")]
    Redraw {
        /// Where.
        images: ImagesSeen,
        /// Images at the checkpoint.
        to: ImagesSeen,
    },
    /// Training diverges again and again, or there is no checkpoint to go back to.
    #[error(
        "training diverged at {images}{}: lower train.optimizer.learning_rate, or go on from an earlier checkpoint \
         (`coordinator checkpoints ls`)",
        if *.times > 1 { format!(", {times} times in a row") } else { String::new() }
    )]
    Diverged {
        /// Where.
        images: ImagesSeen,
        /// How often.
        times: u32,
    },
    /// The run fails again and again, also after going back, or has no checkpoint to go back to.
    #[error("{failures} failures in a row at {images}: giving up. The last one: {last}")]
    CrashLoop {
        /// How often.
        failures: u32,
        /// Where.
        images: ImagesSeen,
        /// What ended the last generation.
        last: String,
    },
    /// One rank keeps the others waiting. It is not evicted: that is for a person to decide.
    #[error(
        "{} keeps the others waiting: {} {:.0} ms, where {:.0} ms are usual; {}",
        name(.worker, *.rank),
        match .slowness {
            Slowness::Network => "some bytes to other ranks and back take",
            _ => "its work on a part of the minibatch takes",
        },
        .took.as_secs_f64() * 1e3,
        .usual.as_secs_f64() * 1e3,
        match .slowness {
            Slowness::Computing => "it is slow in computing",
            Slowness::Images => "it is slow in reading training images",
            Slowness::Network => "its network is slow",
        }
    )]
    Straggler {
        /// Who.
        worker: WorkerId,
        /// Its place.
        rank: Option<Rank>,
        /// What is slow.
        slowness: Slowness,
        /// What its share of a step takes there, by group, or the way to the others.
        took: Duration,
        /// What it takes elsewhere, by the median.
        usual: Duration,
    },
    /// A local worker that dies whenever it is started is not started any more.
    #[error("place {slot} is given up after {deaths} deaths in a row, the last one: {last}")]
    SlotGivenUp {
        /// Which.
        slot: u32,
        /// How many.
        deaths: u32,
        /// How it ended.
        last: String,
    },
    /// The operator asked.
    #[error("stop requested: the workers finish their step and write a checkpoint")]
    StopRequested,
    /// The operator asked while there is no state to store.
    #[error("no checkpoint: training has not begun or is ending")]
    NothingToStore,
    /// A worker is lost.
    #[error("{} {cause}", name(.worker, *.rank))]
    Lost {
        /// Who.
        worker: WorkerId,
        /// Its place, if it had one.
        rank: Option<Rank>,
        /// Why.
        cause: Cause,
    },
    /// Not everybody came in time.
    #[error("after {:.0} s still missing: {}", .waited.as_secs_f64(), .missing.join(", "))]
    Missing {
        /// A description of each.
        missing: Vec<String>,
        /// How long the others waited.
        waited: Duration,
    },
    /// Workers did not end in the time they were given.
    #[error(
        "after a stop, these did not end within {:.0} s and were killed: {}",
        .waited.as_secs_f64(),
        .workers.join(", ")
    )]
    StopOverdue {
        /// Who.
        workers: Vec<String>,
        /// How long.
        waited: Duration,
    },
    /// A process ended badly after its worker had said that all was done.
    #[error("worker {worker} had finished, then its process ended with {status}; the run is not affected")]
    UncleanExit {
        /// Whose.
        worker: WorkerId,
        /// How.
        status: ExitStatus,
    },
    /// Nothing is left to do.
    #[error("the run is complete at {images}")]
    Complete {
        /// Images seen.
        images: ImagesSeen,
    },
    /// Ended on request with its state stored.
    #[error("stopped at {images}")]
    Stopped {
        /// Images seen.
        images: ImagesSeen,
    },
    /// Ended on request before there was anything to store.
    #[error("stopped before training began")]
    Withdrawn,
    /// Ended on request at once.
    #[error("killed at once on request; checkpoints already committed are intact")]
    Killed,
}

/// How a person calls a worker.
#[must_use]
pub fn name(worker: &WorkerId, rank: Option<Rank>) -> String {
    match rank {
        Some(rank) => format!("worker {worker} (rank {rank})"),
        None => format!("worker {worker}"),
    }
}
