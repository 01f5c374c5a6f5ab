//! The one decision function: record what happened, then judge what follows from all that is known.
//!
//! Recording changes facts of single workers; judging changes the phase. Nothing else does either.

use crate::event::{Action, Assignment, Command, Event, Force, SessionId, WorkerId};
use crate::invariants;
use crate::reason::{Reason, Refusal};
use crate::state::{Cluster, Drain, Ending, Farewell, Link, Member, Phase, Process};
use crate::verdict::{self, Fate};
use common::ids::{Generation, Rank};
use std::sync::Arc;
use std::time::Duration;

/// Takes one event at `now` (time since the cluster was made; the coordinator's own pauses are recognised and left out)
/// and returns what is to be done, in order. [`Action::Finish`] is returned exactly once; after it only refusals follow.
pub fn step(cluster: &mut Cluster, event: Event, now: Duration) -> Vec<Action> {
    let now = cluster.pulse.advance(now);
    let mut actions = Vec::new();
    match (cluster.is_over(), event) {
        (false, event) => {
            cluster.record(event, now, &mut actions);
            cluster.judge(now, &mut actions);
        }
        (true, Event::Joined { session, .. }) => actions.push(Action::Refuse { session, refusal: Refusal::Ending }),
        (true, _) => {}
    }
    debug_assert_eq!(invariants::check(cluster), Ok(()));
    actions
}

/// Times of an ending, counted from its start: SIGTERM, SIGKILL, and the end whatever remains.
struct Schedule {
    term: Duration,
    kill: Duration,
    end: Duration,
}

impl Cluster {
    fn record(&mut self, event: Event, now: Duration, actions: &mut Vec<Action>) {
        match event {
            Event::Clock => {}
            Event::Spawned { worker, pid, rank_hint } => {
                if self.phase == Phase::Gathering && self.members.len() < self.policy.workers as usize {
                    self.members.entry(worker).or_insert_with(|| Member::new(Process::Alive { pid }, Some(rank_hint)));
                }
            }
            Event::Joined { worker, session, peer, device, host, generation } => {
                match self.admit(&worker, session, generation, actions) {
                    Ok(()) => {
                        let member =
                            self.members.entry(worker).or_insert_with(|| Member::new(Process::Elsewhere, None));
                        member.link = Link::Up { session, seen: now };
                        (member.device, member.host) = (device, host);
                        if member.rank.is_none() {
                            member.peer = peer;
                        }
                    }
                    Err(refusal) => actions.push(Action::Refuse { session, refusal }),
                }
            }
            Event::Progress { worker, session, generation, images, activity } => {
                let ours = self.generation_at_work();
                if let Some(member) = self.on_session(&worker, session, now) {
                    if ours == Some(generation) {
                        member.images = member.images.max(images);
                    }
                    if ours.unwrap_or_default() == generation {
                        member.activity = activity;
                    }
                }
            }
            Event::Stored { worker, session, generation, stored } => {
                if self.speaks_for_all(&worker, session, generation) {
                    self.on_session(&worker, session, now);
                    let newer = self.newest.as_ref().is_none_or(|newest| stored.images >= newest.images);
                    if newer {
                        self.newest = Some(stored);
                    }
                }
            }
            Event::Left { worker, session, exit, message, images } => {
                if let Some(member) = self.on_session(&worker, session, now) {
                    if member.rank.is_some() {
                        member.images = member.images.max(images);
                    }
                    member.farewell = Some(Farewell { at: now, exit, message });
                }
            }
            Event::Disconnected { worker, session } => {
                if let Some(member) = self.members.get_mut(&worker)
                    && matches!(member.link, Link::Up { session: up, .. } if up == session)
                {
                    member.link = Link::Down { since: now };
                }
            }
            Event::ChildExited { worker, status, last_error } => {
                if let Some(member) = self.members.get_mut(&worker)
                    && matches!(member.process, Process::Alive { .. })
                {
                    member.process = Process::Gone { at: now, status, last_error };
                    let forced = self.drain.as_ref().is_some_and(|drain| drain.forced.is_some());
                    if member.has_finished() && status != crate::event::ExitStatus::Code(0) && !forced {
                        actions.push(Action::Report(Reason::UncleanExit { worker, status }));
                    }
                }
            }
            Event::Operator(command) => self.obey(command, now, actions),
        }
    }

    /// Whether a worker may speak on a new stream. Takes the old stream of the same worker down, and tells a worker that
    /// may have missed it what it must know.
    fn admit(
        &mut self,
        worker: &WorkerId,
        session: SessionId,
        theirs: Option<Generation>,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let Some(member) = self.members.get(worker) else {
            let workers = self.policy.workers;
            return match self.phase {
                Phase::Running => Err(Refusal::AlreadyStarted { generation: self.generation }),
                Phase::Draining | Phase::Done | Phase::Failed => Err(Refusal::Ending),
                Phase::Gathering if self.members.len() >= workers as usize => Err(Refusal::Full { workers }),
                Phase::Gathering => self.fits(theirs),
            };
        };
        if member.farewell.is_some() || matches!(member.process, Process::Gone { .. }) {
            return Err(Refusal::AlreadyLeft { worker: worker.clone() });
        }
        self.fits(theirs)?;
        if let Link::Up { session: old, .. } = member.link
            && old != session
        {
            actions.push(Action::Refuse { session: old, refusal: Refusal::Replaced { worker: worker.clone() } });
        }
        if self.phase == Phase::Running && theirs.is_none() {
            actions.extend(self.assignment_of(worker, session));
        }
        if let Some(drain) = &self.drain {
            actions.push(Action::SendStop { worker: worker.clone(), session, reason: drain.ending.notice() });
        }
        Ok(())
    }

    fn fits(&self, theirs: Option<Generation>) -> Result<(), Refusal> {
        match theirs {
            Some(theirs) if self.generation_at_work() != Some(theirs) => {
                Err(Refusal::StaleGeneration { theirs, ours: self.generation })
            }
            _ => Ok(()),
        }
    }

    /// The generation that was formed by this coordinator, if any.
    fn generation_at_work(&self) -> Option<Generation> {
        self.members.values().any(|member| member.rank.is_some()).then_some(self.generation)
    }

    /// The worker, seen alive, if it speaks on its present stream and has not left.
    fn on_session(&mut self, worker: &WorkerId, session: SessionId, now: Duration) -> Option<&mut Member> {
        let member = self.members.get_mut(worker).filter(|member| member.session() == Some(session))?;
        member.link = Link::Up { session, seen: now };
        Some(member)
    }

    fn obey(&mut self, command: Command, now: Duration, actions: &mut Vec<Action>) {
        match (command, self.phase) {
            (Command::Kill, _) => self.drain(Ending::Kill, now, actions),
            (Command::Stop, Phase::Gathering) => self.drain(Ending::Withdraw, now, actions),
            (Command::Stop, Phase::Running) => {
                self.stop_requested = true;
                self.drain(Ending::Stop, now, actions);
            }
            (Command::Stop, Phase::Draining | Phase::Done | Phase::Failed) => {}
            // one proposer is enough: two could be obeyed one after the other
            (Command::Checkpoint, Phase::Running) => {
                let mut members: Vec<_> = self.members.iter().collect();
                members.sort_by_key(|(_, member)| member.rank);
                let proposer = members.into_iter().find_map(|(worker, member)| Some((worker, member.session()?)));
                match proposer {
                    Some((worker, session)) => {
                        actions.push(Action::SendCheckpoint { worker: worker.clone(), session });
                    }
                    None => actions.push(Action::Report(Reason::NothingToStore)),
                }
            }
            (Command::Checkpoint, _) => actions.push(Action::Report(Reason::NothingToStore)),
        }
    }

    fn judge(&mut self, now: Duration, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Gathering => self.gather(now, actions),
            Phase::Running => self.watch(now, actions),
            Phase::Draining | Phase::Done | Phase::Failed => {}
        }
        if self.phase == Phase::Draining {
            self.escort(now, actions);
        }
    }

    /// Gathering: forget who went, form the generation when all are here, give up when it takes too long.
    fn gather(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let fates: Vec<_> =
            self.members.iter().map(|(worker, member)| (worker.clone(), verdict::fate(self, member, now))).collect();
        for (worker, fate) in fates {
            let Some(member) = self.members.get_mut(&worker) else { continue };
            match (&member.process, fate) {
                (_, Fate::Fine) => {}
                // no harm done yet: its place is free again
                (Process::Elsewhere, Fate::Lost { .. } | Fate::Finished) => {
                    self.members.remove(&worker);
                }
                (Process::Alive { .. }, Fate::Lost { .. }) if member.farewell.is_none() => member.link = Link::Awaited,
                (_, Fate::Lost { cause, .. }) => {
                    let reason = Reason::Lost { worker, rank: None, cause };
                    return self.drain(Ending::Failure(reason), now, actions);
                }
                (_, Fate::Finished) => {
                    let cause = crate::reason::Cause::LeftEarly { images: member.images };
                    let reason = Reason::Lost { worker, rank: None, cause };
                    return self.drain(Ending::Failure(reason), now, actions);
                }
            }
        }
        let ready = self.members.values().filter(|member| member.session().is_some()).count();
        if ready == self.policy.workers as usize && self.members.values().all(|member| !member.is_gone()) {
            self.form(actions);
        } else if now >= self.policy.startup {
            let reason = Reason::Missing { missing: self.missing(), waited: now };
            self.drain(Ending::Failure(reason), now, actions);
        }
    }

    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.session().is_none())
            .map(|(worker, member)| match member.process {
                Process::Alive { pid } => format!("worker {worker} (process {pid} runs, but has not joined)"),
                _ => format!("worker {worker}"),
            })
            .collect();
        let unknown = self.policy.workers as usize - self.members.len();
        if unknown > 0 {
            missing.push(format!("{unknown} that should join from elsewhere"));
        }
        missing
    }

    fn form(&mut self, actions: &mut Vec<Action>) {
        self.generation = Generation(self.generation.0 + 1);
        let mut order: Vec<_> = self.members.iter_mut().collect();
        order.sort_by_key(|(worker, member)| (member.rank_hint.unwrap_or(u32::MAX), (*worker).clone()));
        for (rank, (_, member)) in (0..).zip(order) {
            member.rank = Some(Rank(rank));
        }
        self.phase = Phase::Running;
        let world = self.policy.workers;
        actions.push(Action::Report(Reason::Formed { generation: self.generation, world }));
        for (worker, member) in &self.members {
            if let Some(session) = member.session() {
                actions.extend(self.assignment_of(worker, session));
            }
        }
    }

    fn assignment_of(&self, worker: &WorkerId, session: SessionId) -> Option<Action> {
        let rank = self.members.get(worker)?.rank?;
        let mut ranked: Vec<_> = self.members.values().filter_map(|m| Some((m.rank?, &m.peer))).collect();
        ranked.sort();
        let peers: Arc<[String]> = ranked.into_iter().map(|(_, peer)| peer.clone()).collect();
        let assignment = Assignment { generation: self.generation, rank, peers };
        Some(Action::Assign { worker: worker.clone(), session, assignment })
    }

    /// Running: a lost worker ends the generation; when all have finished, so does the run.
    fn watch(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if let Some((reason, _)) = verdict::worst(self, now, None) {
            self.drain(Ending::Failure(reason), now, actions);
        } else if self.members.values().all(Member::has_finished) {
            self.drain(Ending::Finished, now, actions);
        }
    }

    /// Begins an ending, or turns one into another, and tells the workers.
    fn drain(&mut self, ending: Ending, now: Duration, actions: &mut Vec<Action>) {
        let told = self.drain.is_some();
        if !matches!(ending, Ending::Finished | Ending::Kill) && !told {
            for (worker, member) in &self.members {
                if let Some(session) = member.session() {
                    actions.push(Action::SendStop { worker: worker.clone(), session, reason: ending.notice() });
                }
            }
        }
        match &ending {
            Ending::Stop | Ending::Failure(_) => actions.push(Action::Report(ending.notice())),
            Ending::Finished | Ending::Withdraw | Ending::Kill => {}
        }
        self.phase = Phase::Draining;
        self.drain = Some(Drain { ending, since: now, forced: None });
    }

    /// Draining: turn to the ending that the facts call for, press those that do not go, conclude when all are gone.
    fn escort(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.turn(now, actions);
        let Some(mut drain) = self.drain.clone() else { return };
        let schedule = drain.ending.schedule(&self.policy);
        let spent = now.saturating_sub(drain.since);
        let all_gone = drain.ending != Ending::Stop && self.members.values().all(Member::is_gone);
        if all_gone || spent >= schedule.end {
            let outcome = verdict::outcome(self, &drain.ending, now, drain.forced.map(|(at, _)| at));
            let wished = outcome.exit == common::exit::Exit::Ok;
            self.phase = if wished { Phase::Done } else { Phase::Failed };
            self.outcome = Some(outcome.clone());
            self.drain = None;
            actions.push(Action::Finish(outcome));
            return;
        }
        let force = match spent {
            spent if spent >= schedule.kill => Some(Force::Kill),
            spent if spent >= schedule.term => Some(Force::Term),
            _ => None,
        };
        if let Some(force) = force
            && drain.forced.is_none_or(|(_, done)| done < force)
        {
            let first = drain.forced.map_or(now, |(at, _)| at);
            drain.forced = Some((first, force));
            self.drain = Some(drain);
            let alive = self.members.iter().filter(|(_, member)| matches!(member.process, Process::Alive { .. }));
            actions.extend(alive.map(|(worker, _)| Action::Kill { worker: worker.clone(), force }));
        }
    }

    /// A stop in which all have finished is complete; one in which a worker is lost, or that takes too long, has failed.
    fn turn(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Some(Drain { ending: Ending::Stop, since, .. }) = self.drain else { return };
        if self.members.values().all(Member::has_finished) {
            self.drain(Ending::Finished, now, actions);
        } else if let Some((reason, _)) = verdict::worst(self, now, None) {
            self.drain(Ending::Failure(reason), now, actions);
        } else if now >= since + self.policy.stop {
            let late = self.members.iter().filter(|(_, member)| !member.has_finished());
            let workers = late.map(|(worker, member)| crate::reason::name(worker, member.rank)).collect();
            let reason = Reason::StopOverdue { workers, waited: self.policy.stop };
            self.drain(Ending::Failure(reason), now, actions);
        }
    }
}

impl Ending {
    /// What the workers and the operator are told.
    fn notice(&self) -> Reason {
        match self {
            Self::Failure(reason) => reason.clone(),
            Self::Kill => Reason::Killed,
            Self::Withdraw => Reason::Withdrawn,
            Self::Finished | Self::Stop => Reason::StopRequested,
        }
    }

    /// A failure must be over within 5 s, the first half second of which may be gone before it is judged.
    fn schedule(&self, policy: &crate::state::Policy) -> Schedule {
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
