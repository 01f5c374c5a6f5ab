//! What the facts say about one worker, and how a run ended.

use crate::cluster::Cluster;
use crate::event::{ExitStatus, Stored};
use crate::reason::{Cause, Reason};
use crate::state::{Link, Member, Phase, Process};
use crate::watch::HANG_MIN;
use common::exit::Exit;
use common::ids::ImagesSeen;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Between the exit of a process that is still connected and the judgement on it: its farewell may be on its way.
pub const SETTLE: Duration = Duration::from_millis(500);

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit code of the coordinator, as `common::exit::Exit` numbers it.
    #[serde(serialize_with = "as_code", deserialize_with = "from_code")]
    pub exit: Exit,
    /// Why.
    pub reason: Reason,
    /// Images seen.
    pub images: ImagesSeen,
    /// Newest committed checkpoint: where a resume would start.
    pub newest: Option<Stored>,
}

fn as_code<S: serde::Serializer>(exit: &Exit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(*exit as u8)
}

fn from_code<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Exit, D::Error> {
    let code = u8::deserialize(deserializer)?;
    Exit::from_code(i32::from(code)).ok_or_else(|| serde::de::Error::custom(format!("{code} is no exit code of ours")))
}

/// What the facts say about one worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fate {
    /// At work, or on its way.
    Fine,
    /// Its work is done with the run's.
    Finished,
    /// It has left in good order while the run goes on.
    Left,
    /// It is lost.
    Lost(Cause),
}

/// Judges one worker by the facts at `now`; `finishing`: some have said that the work is done.
pub(crate) fn fate(cluster: &Cluster, finishing: bool, member: &Member, now: Duration) -> Fate {
    if let Some(farewell) = &member.farewell {
        let ends = member.may_finish || cluster.images >= cluster.policy.total;
        // perhaps in a later one than a successor has read of
        let was_there = member.standing.generation >= cluster.generation;
        return match farewell.exit {
            // who was out already, or had not come yet, had nothing to finish with the others
            0 if member.is_placed() && !member.out && was_there && ends => Fate::Finished,
            0 if !member.is_placed() || member.standing.leaving => Fate::Left,
            0 => Fate::Lost(Cause::LeftEarly { images: cluster.images }),
            exit => Fate::Lost(Cause::Left { exit, message: farewell.message.clone() }),
        };
    }
    if let Process::Gone { at, status, last_error } = &member.process {
        // a process that a signal ended had no time for a farewell; of another one it may still be on the way
        let settled =
            matches!(status, ExitStatus::Signal(_)) || !matches!(member.link, Link::Up { .. }) || now >= *at + SETTLE;
        if settled {
            return Fate::Lost(Cause::Exited { status: *status, last_error: last_error.clone() });
        }
        return Fate::Fine;
    }
    // told to leave its old generation with every sign of life, it does not: it would count as one that may come
    let limit = cluster.policy.patience.max(HANG_MIN).max(cluster.formation.step_time * 5);
    if let Some(since) = member.strayed.filter(|since| !member.is_placed() && now >= *since + limit) {
        return Fate::Lost(Cause::Stuck { for_: now - since });
    }
    let at_work = member.is_at_work() && cluster.phase != Phase::Reconfiguring;
    let (heard, hears) = match member.process {
        // who has finished is not heard any more, and for good
        Process::Elsewhere if at_work && !finishing => (cluster.listened(now), cluster.hears),
        _ => (now, Duration::ZERO),
    };
    // every step of a generation needs all its members: while it gets on, none of them is dead
    let lives = |since: Duration| if at_work { since.max(cluster.formation.progressed).max(hears) } else { since };
    match member.link {
        // it had its place from another coordinator, and looks for this one
        Link::Awaited if member.is_placed() => {
            let late = now > lives(member.since) + cluster.policy.takeover();
            if late { Fate::Lost(Cause::Disconnected { for_: now - member.since }) } else { Fate::Fine }
        }
        Link::Awaited if cluster.phase != Phase::Gathering && now > member.since + cluster.policy.startup => {
            Fate::Lost(Cause::Silent { for_: now - member.since })
        }
        Link::Up { seen, .. } if heard > lives(seen) + cluster.policy.patience => {
            Fate::Lost(Cause::Silent { for_: now - seen })
        }
        Link::Down { since } if heard > lives(since) + cluster.policy.reconnect() => {
            Fate::Lost(Cause::Disconnected { for_: now - since })
        }
        _ => Fate::Fine,
    }
}

/// Whether the same would happen on every worker, so that trying again does not help.
pub(crate) fn is_fatal(cause: &Cause) -> bool {
    let code = match cause {
        Cause::Left { exit, .. } => i32::try_from(*exit).ok(),
        Cause::Exited { status: ExitStatus::Code(code), .. } => Some(*code),
        _ => None,
    };
    let exit = code.and_then(Exit::from_code);
    exit.is_some_and(|exit| Exit::LASTING.contains(&exit))
}

/// The exit code that a reason earns: a worker's own code where trying again would not help, else "worker lost".
pub(crate) fn exit(reason: &Reason) -> Exit {
    let code = match reason {
        Reason::Lost { cause: Cause::Left { exit, .. }, .. } => i32::try_from(*exit).ok(),
        Reason::Lost { cause: Cause::Exited { status: ExitStatus::Code(code), .. }, .. } => Some(*code),
        Reason::Lost { .. } | Reason::Missing { .. } | Reason::StopOverdue { .. } | Reason::CrashLoop { .. } => None,
        Reason::Killed => return Exit::Interrupted,
        Reason::Diverged { .. } => return Exit::Diverged,
        _ => return Exit::Ok,
    };
    match code.and_then(Exit::from_code) {
        Some(exit @ (Exit::Config | Exit::Data | Exit::Storage | Exit::Network | Exit::Diverged)) => exit,
        _ => Exit::WorkerLost,
    }
}
