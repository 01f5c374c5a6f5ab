//! Whose fault an end was, and the exit code it earns.
//!
//! When one worker dies its peers fail within milliseconds, and their complaints often arrive first. So the causes are
//! ranked: who crashed or named an error of its own comes before who fell silent, and both before who only lost a peer.

use crate::event::{Stored, WorkerId};
use crate::reason::{Cause, Reason};
use crate::state::{Cluster, Ending, Link, Member, Process, SETTLE};
use common::exit::Exit;
use common::ids::ImagesSeen;
use serde::Serialize;
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Exit code of the coordinator, as `common::exit::Exit` numbers it.
    #[serde(serialize_with = "as_code")]
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

/// What the facts say about one worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fate {
    /// At work, or on its way.
    Fine,
    /// Its work is done.
    Finished,
    /// It is lost.
    Lost { cause: Cause, at: Duration },
}

/// Judges one worker by the facts at `now`.
pub(crate) fn fate(cluster: &Cluster, member: &Member, now: Duration) -> Fate {
    if let Some(farewell) = &member.farewell {
        if farewell.exit == 0 {
            return Fate::Finished;
        }
        let cause = Cause::Left { exit: farewell.exit, message: farewell.message.clone() };
        return Fate::Lost { cause, at: farewell.at };
    }
    if let Process::Gone { at, status, last_error } = &member.process {
        // until its stream has ended, its farewell may still be on the way
        let settled = !matches!(member.link, Link::Up { .. }) || now >= *at + SETTLE;
        if settled {
            let cause = Cause::Exited { status: *status, last_error: last_error.clone() };
            return Fate::Lost { cause, at: *at };
        }
        return Fate::Fine;
    }
    match member.link {
        Link::Up { seen, .. } if now > seen + cluster.policy.patience => {
            Fate::Lost { cause: Cause::Silent { for_: now - seen }, at: seen }
        }
        Link::Down { since } if now > since + cluster.policy.reconnect() => {
            Fate::Lost { cause: Cause::Disconnected { for_: now - since }, at: since }
        }
        _ => Fate::Fine,
    }
}

/// How strongly a cause speaks for being the first of its kind, not a consequence of another worker's.
fn weight(cause: &Cause) -> u8 {
    const PEER_LOST: i64 = Exit::WorkerLost as i64;
    let code = match cause {
        Cause::Left { exit, .. } => i64::from(*exit),
        Cause::Exited { status: crate::event::ExitStatus::Code(code), .. } => i64::from(*code),
        Cause::Exited { .. } => return 3,
        Cause::Silent { .. } | Cause::Disconnected { .. } => return 2,
        Cause::LeftEarly { .. } => return 1,
    };
    if code == PEER_LOST { 0 } else { 3 }
}

/// The most telling loss at `now`: the weightiest cause, among equals the earliest. Ends that this side forced, at or
/// after `forced_at`, tell nothing.
pub(crate) fn worst(cluster: &Cluster, now: Duration, forced_at: Option<Duration>) -> Option<(Reason, u8)> {
    let unforced = |at: Duration| forced_at.is_none_or(|forced_at| at < forced_at);
    let lost = cluster.members.iter().filter_map(|(worker, member)| match fate(cluster, member, now) {
        Fate::Lost { cause, at } if unforced(at) => Some((worker, member, cause, at)),
        _ => None,
    });
    let (worker, member, cause, _) = lost.min_by_key(|(.., cause, at)| (u8::MAX - weight(cause), *at))?;
    let weight = weight(&cause);
    Some((Reason::Lost { worker: worker.clone(), rank: member.rank, cause }, weight))
}

/// A worker that left with success although the run was not complete and nobody had asked it to.
fn left_early(cluster: &Cluster) -> Option<(Reason, u8)> {
    if cluster.stop_requested {
        return None;
    }
    let early = |(worker, member): (&WorkerId, &Member)| {
        let farewell = member.farewell.as_ref()?;
        let early = farewell.exit == 0 && member.images < cluster.policy.total;
        early.then(|| (farewell.at, worker.clone(), member.rank, member.images))
    };
    let (_, worker, rank, images) = cluster.members.iter().filter_map(early).min_by_key(|(at, ..)| *at)?;
    let cause = Cause::LeftEarly { images };
    let weight = weight(&cause);
    Some((Reason::Lost { worker, rank, cause }, weight))
}

/// The verdict when everybody is gone, or time is over. `first` is the first sign of trouble.
fn blame(cluster: &Cluster, first: &Reason, now: Duration, forced_at: Option<Duration>) -> Reason {
    let Reason::Lost { cause, .. } = first else { return first.clone() };
    let mut best = (first.clone(), weight(cause));
    for candidate in [worst(cluster, now, forced_at), left_early(cluster)].into_iter().flatten() {
        if candidate.1 > best.1 {
            best = candidate;
        }
    }
    best.0
}

/// The outcome of an ending.
pub(crate) fn outcome(cluster: &Cluster, ending: &Ending, now: Duration, forced_at: Option<Duration>) -> Outcome {
    let images = cluster.images();
    let reason = match ending {
        Ending::Finished | Ending::Stop if images >= cluster.policy.total => Reason::Complete { images },
        Ending::Finished | Ending::Stop => Reason::Stopped { images },
        Ending::Withdraw => Reason::Withdrawn,
        Ending::Kill => Reason::Killed,
        Ending::Failure(first) => blame(cluster, first, now, forced_at),
    };
    Outcome { exit: exit(&reason), reason, images, newest: cluster.newest.clone() }
}

/// The exit code that a reason earns: a worker's own code where trying again would not help, else "worker lost".
fn exit(reason: &Reason) -> Exit {
    let code = match reason {
        Reason::Lost { cause: Cause::Left { exit, .. }, .. } => i32::try_from(*exit).ok(),
        Reason::Lost { cause: Cause::Exited { status: crate::event::ExitStatus::Code(code), .. }, .. } => Some(*code),
        Reason::Lost { .. } | Reason::Missing { .. } | Reason::StopOverdue { .. } => None,
        Reason::Killed => return Exit::Interrupted,
        _ => return Exit::Ok,
    };
    match code.and_then(Exit::from_code) {
        Some(exit @ (Exit::Config | Exit::Data | Exit::Storage | Exit::Network | Exit::Diverged)) => exit,
        _ => Exit::WorkerLost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ExitStatus;

    fn lost(cause: Cause) -> Reason {
        Reason::Lost { worker: WorkerId("w".into()), rank: None, cause }
    }

    #[test]
    fn a_worker_s_own_code_is_passed_on_only_where_a_retry_would_not_help() {
        let left = |exit| exit_of(lost(Cause::Left { exit, message: String::new() }));
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8, 9, 130, 77].map(left), {
            use Exit::{Config, Data, Diverged, Network, Storage, WorkerLost as Lost};
            [Lost, Lost, Config, Data, Storage, Lost, Lost, Network, Diverged, Lost, Lost]
        });
        let exited = |status| exit_of(lost(Cause::Exited { status, last_error: None }));
        assert_eq!(exited(ExitStatus::Code(4)), Exit::Data);
        assert_eq!(exited(ExitStatus::Code(0)), Exit::WorkerLost);
        assert_eq!(exited(ExitStatus::Signal(4)), Exit::WorkerLost);
        assert_eq!(exit_of(Reason::Killed), Exit::Interrupted);
        assert_eq!(exit_of(Reason::Withdrawn), Exit::Ok);
    }

    fn exit_of(reason: Reason) -> Exit {
        exit(&reason)
    }

    #[test]
    fn sigkill_speaks_of_memory() {
        let cause = Cause::Exited { status: ExitStatus::Signal(9), last_error: Some("out of luck".into()) };
        let text = lost(cause).to_string();
        assert!(text.contains("SIGKILL") && text.contains("memory") && text.contains("out of luck"), "{text}");
    }
}
