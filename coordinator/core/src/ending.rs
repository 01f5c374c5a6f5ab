//! How a run is ended: who is told what, when force is used, and what is said of it at last.

use crate::cluster::{Cluster, Drain, Ending};
use crate::event::{Action, Force, WorkerId};
use crate::journal::Entry;
use crate::reason::Reason;
use crate::state::{Link, Member, Phase, Policy, Process};
use crate::verdict::{self, Fate, Outcome};
use common::exit::Exit;
use common::ids::Generation;
use std::time::Duration;

/// Times of an ending, counted from its start: SIGTERM, SIGKILL, and the end whatever remains.
struct Schedule {
    term: Duration,
    kill: Duration,
    end: Duration,
}

impl Cluster {
    /// Begins an ending, or turns one into another.
    pub(crate) fn drain(&mut self, ending: Ending, now: Duration, actions: &mut Vec<Action>) {
        if ending == Ending::Kill && self.drain.as_ref().is_some_and(|drain| drain.ending == Ending::Kill) {
            // asked for once more: nobody is waited for
            return self.conclude(&ending, actions);
        }
        if let Ending::Stop | Ending::Failure(_) = &ending {
            actions.push(Action::Report(ending.notice()));
        }
        if ending == Ending::Withdraw {
            actions.push(Action::Record(Entry::Stopping { verdict: None }));
        }
        let since = match (&ending, &self.stop) {
            (Ending::Stop, Some(stop)) => stop.since,
            _ => now,
        };
        self.phase = Phase::Draining;
        self.drain = Some(Drain { ending, since, forced: None });
    }

    /// Draining: turn to the ending that the facts call for, ask everybody to leave, press those that do not, conclude
    /// when all are gone.
    pub(crate) fn escort(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.turn(now, actions);
        let Some(mut drain) = self.drain.clone() else { return };
        let schedule = drain.ending.schedule(&self.policy);
        let spent = now.saturating_sub(drain.since);
        let left = self.members.values().all(Member::is_gone) && self.departing.is_empty();
        if left && drain.ending != Ending::Stop || spent >= schedule.end {
            return self.conclude(&drain.ending, actions);
        }
        self.ask_all(&drain.ending, now, actions);
        let force = match spent {
            spent if spent >= schedule.kill => Some(Force::Kill),
            spent if spent >= schedule.term => Some(Force::Term),
            _ => None,
        };
        if let Some(force) = force
            && drain.forced.is_none_or(|done| done < force)
        {
            drain.forced = Some(force);
            self.drain = Some(drain);
            let alive = self.members.iter().filter(|(_, member)| matches!(member.process, Process::Alive { .. }));
            let departing = self.departing.iter().filter(|(_, process)| !process.killed);
            let workers = alive.map(|(worker, _)| worker).chain(departing.map(|(worker, _)| worker));
            actions.extend(workers.map(|worker| Action::Kill { worker: worker.clone(), force }));
        }
    }

    fn ask_all(&mut self, ending: &Ending, now: Duration, actions: &mut Vec<Action>) {
        if *ending == Ending::Kill {
            return;
        }
        let (reason, patience, generation) = (ending.notice(), self.policy.patience, self.generation);
        for (worker, member) in &mut self.members {
            // who has not taken its place yet would leave at once, and the others could not store the state without it
            if *ending != Ending::Stop || !member.is_placed() || member.has_entered(generation) {
                ask(worker, member, generation, &reason, patience, now, actions);
            }
        }
    }

    fn conclude(&mut self, ending: &Ending, actions: &mut Vec<Action>) {
        let (images, verdict) = (self.images, self.stop.as_ref().and_then(|stop| stop.verdict.clone()));
        let reason = match ending {
            Ending::Finished | Ending::Stop if images >= self.policy.total => Reason::Complete { images },
            Ending::Finished | Ending::Stop => verdict.unwrap_or(Reason::Stopped { images }),
            Ending::Withdraw => Reason::Withdrawn,
            Ending::Kill => Reason::Killed,
            Ending::Failure(reason) => reason.clone(),
        };
        let outcome = Outcome { exit: verdict::exit(&reason), reason, images, newest: self.newest.clone() };
        self.phase = if outcome.exit == Exit::Ok { Phase::Done } else { Phase::Failed };
        self.outcome = Some(outcome.clone());
        self.drain = None;
        actions.push(Action::Record(Entry::Over(outcome.clone())));
        actions.push(Action::Finish(outcome));
    }

    /// A stop in which all have finished is complete. One in which a worker is lost is tried again by the others; one
    /// that takes too long has failed.
    fn turn(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Some(Drain { ending: Ending::Stop, since, .. }) = self.drain else { return };
        for (worker, fate) in self.fates(now) {
            match fate {
                Fate::Fine | Fate::Finished => {}
                Fate::Left => self.forget(&worker, now, actions),
                Fate::Lost(cause) => self.lose(&worker, cause, now, actions),
            }
        }
        let stopping = self.drain.as_ref().is_some_and(|drain| drain.ending == Ending::Stop);
        if !stopping || self.end_if_one_is_out(now, actions) {
            return;
        }
        if self.members.values().filter(|member| member.is_placed()).all(Member::has_finished) {
            return self.drain(Ending::Finished, now, actions);
        }
        if now >= since + self.policy.stop {
            let late = self.members.iter().filter(|(_, member)| !member.has_finished());
            let workers = late.map(|(worker, member)| crate::reason::name(worker, member.rank)).collect();
            let reason = Reason::StopOverdue { workers, waited: self.policy.stop };
            self.drain(Ending::Failure(reason), now, actions);
        }
    }
}

/// Asks a worker to leave: with the others if it is at work in `generation`, else by itself. Asks again if it is alive a
/// patience later.
pub(crate) fn ask(
    worker: &WorkerId,
    member: &mut Member,
    generation: Generation,
    reason: &Reason,
    patience: Duration,
    now: Duration,
    actions: &mut Vec<Action>,
) {
    let Some(session) = member.session() else { return };
    let due = match (member.asked, member.link) {
        (Some(asked), Link::Up { seen, .. }) => seen >= asked + patience,
        _ => true,
    };
    if due {
        member.asked = Some(now);
        let generation = member.has_entered(generation).then_some(generation);
        (member.may_finish, member.released) = (generation.is_some(), generation.is_none());
        actions.push(Action::SendStop { worker: worker.clone(), session, generation, reason: reason.clone() });
    }
}

impl Ending {
    /// What the workers and the operator are told.
    pub(crate) fn notice(&self) -> Reason {
        match self {
            Self::Failure(reason) => reason.clone(),
            Self::Kill => Reason::Killed,
            Self::Withdraw => Reason::Withdrawn,
            Self::Finished | Self::Stop => Reason::StopRequested,
        }
    }

    /// A failure must be over within 5 s, the first half second of which may be gone before it is judged.
    fn schedule(&self, policy: &Policy) -> Schedule {
        let millis = |term, kill, end| Schedule {
            term: Duration::from_millis(term),
            kill: Duration::from_millis(kill),
            end: Duration::from_millis(end),
        };
        match self {
            Self::Finished => millis(5_000, 8_000, 10_000),
            Self::Withdraw => millis(500, 2_000, 4_000),
            Self::Failure(_) => millis(1_000, 1_500, 2_500),
            Self::Kill => millis(0, 0, 2_000),
            // overdue stops turn into failures before any of these
            Self::Stop => Schedule { term: policy.stop, kill: policy.stop, end: policy.stop },
        }
    }
}
