//! The one decision function: record what happened, then judge what follows from all that is known.
//!
//! Recording changes facts of single workers; judging changes the phase. How a generation is formed, broken and watched
//! is in `membership`, how a run ends in `ending`.

use crate::cluster::{Cluster, Ending, Strikes};
use crate::event::{Action, Command, Event, ExitStatus, SessionId, Standing, Stored, WorkerId};
use crate::invariants;
use crate::journal::Entry;
use crate::reason::{Cause, Reason, Refusal};
use crate::state::{Farewell, Link, Loss, Member, Phase, Process};
use common::ids::{Generation, ImagesSeen};
use std::time::Duration;

/// Who was lost so many times is not taken back,
pub(crate) const UNSTEADY: usize = 5;
/// if it was within this time.
const UNSTEADY_WITHIN: Duration = Duration::from_secs(600);

/// Takes one event at `now` (time since the cluster was made; the coordinator's own pauses are recognised and left out)
/// and returns what is to be done, in order. [`Action::Finish`] is returned exactly once; after it only refusals
/// follow.
pub fn step(cluster: &mut Cluster, event: Event, now: Duration) -> Vec<Action> {
    let mut actions = record(cluster, event, now);
    actions.extend(judge(cluster, now));
    actions
}

/// The first half of a [`step()`]: takes note of an event, and returns what is to be answered whatever follows from it. Of many events
/// that come together, [`judge()`] is then asked once.
pub fn record(cluster: &mut Cluster, event: Event, now: Duration) -> Vec<Action> {
    let now = cluster.pulse.advance(now, cluster.policy.patience);
    let mut actions = Vec::new();
    match (cluster.is_over(), event) {
        (false, event) => {
            // with a thousand workers most events are beats; what follows from time is judged when the clock says so
            cluster.unjudged |= !cluster.is_mere_beat(&event);
            cluster.record(event, now, &mut actions);
        }
        (true, Event::Joined { session, .. }) => actions.push(Action::Refuse { session, refusal: Refusal::Ending }),
        (true, _) => {}
    }
    debug_assert_eq!(invariants::check(cluster), Ok(()));
    actions
}

/// The second half of a [`step()`]: returns what follows from all that was recorded.
pub fn judge(cluster: &mut Cluster, now: Duration) -> Vec<Action> {
    let now = cluster.pulse.advance(now, cluster.policy.patience);
    let mut actions = Vec::new();
    if std::mem::take(&mut cluster.unjudged) && !cluster.is_over() {
        cluster.judge(now, &mut actions);
    }
    debug_assert_eq!(invariants::check(cluster), Ok(()));
    actions
}

impl Cluster {
    fn record(&mut self, event: Event, now: Duration, actions: &mut Vec<Action>) {
        match event {
            Event::Clock => {}
            Event::Spawned { slot, worker, pid } => self.started(slot, worker, pid, now, actions),
            Event::NotSpawned { slot, error } => {
                if self.is_empty(slot) {
                    self.slot_died(slot, Duration::ZERO, &Cause::NotStarted { error }, now, actions);
                }
            }
            Event::Joined { worker, session, peer, device, host } => match self.admit(&worker, session, now, actions) {
                Ok(member) => {
                    (member.device, member.host) = (device, host);
                    if member.rank.is_none() {
                        member.peer = peer;
                    }
                    actions.push(Action::Welcome { worker, session });
                }
                Err(refusal) => actions.push(Action::Refuse { session, refusal }),
            },
            Event::Progress { worker, session, standing } => self.heard(&worker, session, standing, now, actions),
            Event::Stored { worker, session, generation, stored } => {
                if self.on_session(&worker, session, now).is_some() && generation >= self.forked {
                    self.committed(generation, stored, actions);
                }
            }
            Event::Found(stored) => {
                let generation = stored.generation();
                if generation >= self.forked && self.newest.as_ref() != Some(&stored) {
                    self.committed(generation, stored, actions);
                }
            }
            Event::Left { worker, session, exit, message, images } => {
                if let Some(member) = self.on_session(&worker, session, now) {
                    member.farewell = Some(Farewell { at: now, exit, message });
                    if member.is_placed() {
                        self.images = self.images.max(images);
                    }
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
                if self.departing.remove(&worker).is_some() {
                    actions.push(Action::Record(Entry::Ended { worker: worker.clone() }));
                }
                if let Some(member) = self.members.get_mut(&worker)
                    && matches!(member.process, Process::Alive { .. })
                {
                    actions.push(Action::Record(Entry::Ended { worker: worker.clone() }));
                    member.process = Process::Gone { at: now, status, last_error };
                    let forced = self.drain.as_ref().is_some_and(|drain| drain.forced.is_some());
                    let clean = matches!(status, ExitStatus::Code(0) | ExitStatus::Unknown);
                    if member.has_finished() && !clean && !forced {
                        actions.push(Action::Report(Reason::UncleanExit { worker, status }));
                    }
                }
            }
            Event::Operator(command) => self.obey(command, now, actions),
        }
    }

    /// Whether a sign of life says only that its worker goes on with what it was at.
    fn is_mere_beat(&self, event: &Event) -> bool {
        let Event::Progress { worker, session, standing } = event else { return false };
        self.members.get(worker).is_some_and(|member| {
            member.heard && member.session() == Some(*session) && standing.goes_on_from(&member.standing)
        })
    }

    /// A local worker was started. It is watched from now on, even if nobody waits for it any more.
    fn started(&mut self, slot: u32, worker: WorkerId, pid: u32, now: Duration, actions: &mut Vec<Action>) {
        actions.push(Action::Record(Entry::Started { slot, worker: worker.clone(), pid }));
        let free = self.is_empty(slot) && self.slots.get(slot as usize).is_some_and(|place| place.taken);
        let process = Process::Alive { pid };
        let member = self.members.entry(worker.clone()).or_insert_with(|| Member::new(process.clone(), None, now));
        if matches!(member.process, Process::Elsewhere) {
            // it was faster to join than its start to be announced
            member.process = process;
        }
        member.slot = member.slot.or(free.then_some(slot));
        let alive = matches!(member.process, Process::Alive { .. });
        if let Some(force) = self.drain.as_ref().and_then(|drain| drain.forced)
            && alive
        {
            actions.push(Action::Kill { worker, force });
        }
    }

    fn committed(&mut self, generation: Generation, stored: Stored, actions: &mut Vec<Action>) {
        if self.newest.as_ref().is_none_or(|newest| stored.images > newest.images) {
            self.divergences = 0;
        }
        // in the order in which a resume looks for them
        let later = |newest: &Stored| (generation, stored.images) >= (self.newest_from, newest.images);
        if self.newest.as_ref().is_none_or(later) {
            if self.newest.as_ref() != Some(&stored) {
                actions.push(Action::Record(Entry::Stored(stored.clone())));
            }
            (self.newest, self.newest_from) = (Some(stored), generation);
        }
    }

    /// The member that speaks on a new stream. Takes the old stream of the same worker down.
    fn admit(
        &mut self,
        worker: &WorkerId,
        session: SessionId,
        now: Duration,
        actions: &mut Vec<Action>,
    ) -> Result<&mut Member, Refusal> {
        let known = self.members.get(worker);
        let gone = known.is_some_and(|m| m.farewell.is_some() || matches!(m.process, Process::Gone { .. }));
        if gone || self.departing.contains_key(worker) {
            return Err(Refusal::AlreadyLeft { worker: worker.clone() });
        }
        if known.is_none() && self.drain.is_some() {
            return Err(Refusal::Ending);
        }
        let times = self.times_lost(worker, now);
        if known.is_none() && times >= UNSTEADY {
            return Err(Refusal::Unsteady { worker: worker.clone(), times, within: UNSTEADY_WITHIN });
        }
        if let Some(Link::Up { session: old, .. }) = known.map(|member| member.link)
            && old != session
        {
            actions.push(Action::Refuse { session: old, refusal: Refusal::Replaced { worker: worker.clone() } });
        }
        self.hear(now);
        let elsewhere = || Member::new(Process::Elsewhere, None, now);
        let member = self.members.entry(worker.clone()).or_insert_with(elsewhere);
        member.link = Link::Up { session, seen: now };
        // what was said on an older stream may not have been heard
        (member.came, member.heard, member.asked) = (now, false, None);
        Ok(member)
    }

    /// How often a worker was lost of late.
    fn times_lost(&self, worker: &WorkerId, now: Duration) -> usize {
        let late = |loss: &&Loss| loss.worker == *worker && now.saturating_sub(loss.at) <= UNSTEADY_WITHIN;
        self.losses.iter().filter(late).count()
    }

    /// The worker, seen alive, if it speaks on its present stream and has not left.
    pub(crate) fn on_session(&mut self, worker: &WorkerId, session: SessionId, now: Duration) -> Option<&mut Member> {
        self.members.get(worker).filter(|member| member.session() == Some(session))?;
        self.hear(now);
        let member = self.members.get_mut(worker)?;
        member.link = Link::Up { session, seen: now };
        Some(member)
    }

    /// Takes note of where a worker stands, and tells it what it seems to have missed.
    fn heard(
        &mut self,
        worker: &WorkerId,
        session: SessionId,
        standing: Standing,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let (ours, phase, resend) = (self.generation, self.phase, self.policy.patience / 4);
        let forming = phase == Phase::Running || self.drain.as_ref().is_some_and(|drain| drain.ending == Ending::Stop);
        let Some(member) = self.on_session(worker, session, now) else { return };
        let last = &member.standing;
        if (standing.generation, standing.ready) < (last.generation, last.ready) {
            // said long ago: a worker never goes back
            return;
        }
        let (theirs, ready) = (standing.generation, standing.ready);
        if ready && (last.generation, last.ready) != (theirs, true) {
            member.ready_since = now;
        }
        member.heard = true;
        let last = std::mem::replace(&mut member.standing, standing);
        let strays = !ready && theirs.0 > 0 && !member.is_placed();
        member.strayed = member.strayed.filter(|_| strays).or(strays.then_some(now));
        let abort = |reason: &str| {
            let (worker, reason) = (worker.clone(), reason.to_owned());
            Action::Abort { worker, session, generation: theirs, reason }
        };
        match (member.is_placed(), ready) {
            // an earlier coordinator placed it there, and this one does not know with whom
            (true, _) if theirs > ours => {
                member.out |= ready;
                let why = format!("worker {worker} is in {theirs}, of which nothing is written down");
                if !ready {
                    actions.push(abort(&why));
                }
                self.end_generation(why, false, now, actions);
            }
            (true, _) if theirs == ours => {
                member.out |= ready;
                self.got_on(worker, &last, now);
                let formation = &self.formation;
                let time = if formation.voluntary { self.policy.patience / 2 } else { Duration::ZERO };
                if !ready && formation.over.is_some_and(|over| now >= over + time) {
                    actions.push(abort("it is over"));
                }
            }
            // it seems not to have heard of its place
            (true, true) if !member.out && now >= member.told + resend => {
                member.out = phase == Phase::Reconfiguring;
                if forming {
                    member.told = now;
                    actions.extend(self.assignment_of(worker, session));
                }
            }
            (true, false) if theirs < ours => actions.push(abort("it is over")),
            // perhaps it does not know what to prepare for
            (false, false) if theirs.0 == 0 && now >= member.told + resend * 4 => {
                member.told = now;
                actions.push(Action::Welcome { worker: worker.clone(), session });
            }
            (false, false) if theirs.0 > 0 => actions.push(abort("it goes on without this worker")),
            _ => {}
        }
    }

    /// A member of the generation at work said where it stands: perhaps further than it was.
    fn got_on(&mut self, worker: &WorkerId, last: &Standing, now: Duration) {
        let Some(Member { standing, origin, .. }) = self.members.get(worker) else { return };
        let formation = &mut self.formation;
        if last.generation == standing.generation {
            // each rank is measured by itself: others may be a step ahead of it, or say so later
            if (last.images, last.step) != (standing.images, standing.step) {
                (formation.progressed, formation.moved) = (now, now);
                formation.steps = formation.steps.saturating_add(1);
                // the slowest one, forgotten slowly
                formation.step_time = standing.step_time.max(formation.step_time * 63 / 64);
            }
            if last.activity != standing.activity {
                formation.moved = now;
            }
        } else {
            formation.moved = now;
        }
        let images: ImagesSeen = standing.images;
        if formation.rollback && images == *origin {
            // it has not gone back yet
            return;
        }
        self.images = self.images.max(images);
        if images > self.strikes.at {
            // told after the generation broke: then that was the first failure since
            let count = if formation.over.is_some() { self.strikes.count.min(1) } else { 0 };
            let last = std::mem::take(&mut self.strikes.last);
            self.strikes = Strikes { at: images, count, last, ..Strikes::default() };
        }
    }

    fn obey(&mut self, command: Command, now: Duration, actions: &mut Vec<Action>) {
        match (command, self.phase) {
            (Command::Kill, _) => self.drain(Ending::Kill, now, actions),
            (Command::Stop, Phase::Gathering) => self.drain(Ending::Withdraw, now, actions),
            (Command::Stop, Phase::Running | Phase::Reconfiguring) => self.want_stop(None, now, actions),
            // it ends already; a successor that comes before it has must not begin anew
            (Command::Stop, Phase::Draining) if self.stop.is_none() => {
                actions.push(Action::Record(Entry::Stopping { verdict: None }));
            }
            (Command::Stop, Phase::Draining | Phase::Done | Phase::Failed) => {}
            (Command::Checkpoint, Phase::Running | Phase::Reconfiguring) => self.checkpoint_wanted = true,
            (Command::Checkpoint, _) => actions.push(Action::Report(Reason::NothingToStore)),
            (Command::Scale(workers), _) => self.scale(workers, actions),
        }
    }

    fn judge(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Gathering | Phase::Running | Phase::Reconfiguring) {
            self.bury(now, actions);
        }
        let before = self.phase;
        match self.phase {
            Phase::Gathering => self.gather(now, actions),
            Phase::Running => self.watch(now, actions),
            Phase::Reconfiguring => self.reform(now, actions),
            Phase::Draining | Phase::Done | Phase::Failed => {}
        }
        match self.phase {
            Phase::Gathering | Phase::Running | Phase::Reconfiguring => {
                self.press_departing(now, actions);
                self.fill_slots(now, actions);
            }
            Phase::Draining => self.escort(now, actions),
            Phase::Done | Phase::Failed => {}
        }
        // its end may be the last that was waited for
        if before != Phase::Reconfiguring && self.phase == Phase::Reconfiguring {
            self.reform(now, actions);
        }
    }
}
