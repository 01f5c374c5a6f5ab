//! Who belongs to the run: losses, and one generation after another.
//!
//! A generation ends at the first loss. Its survivors keep the state in memory, say that they are out, and form the
//! next one as soon as all of them have: nobody waits for a clock unless somebody is silent.

use crate::cluster::{Cluster, Ending, Formation, Stop};
use crate::event::{Action, Assignment, SessionId, Stored, WorkerId};
use crate::journal::Entry;
use crate::reason::{Cause, Reason, Refusal, name};
use crate::state::{Link, Loss, Member, OnLoss, Phase, Process};
use crate::step::UNSTEADY;
use crate::verdict::{Fate, fate, is_fatal};
use common::ids::{Generation, Rank};
use std::sync::Arc;
use std::time::Duration;

/// One who evaluates, and is heard, has this long to leave a generation that is over: its state is worth the wait.
const EVALUATES: Duration = Duration::from_secs(300);
/// Longest time for which the preparation of training images is waited for.
const PREPARATION: Duration = Duration::from_secs(24 * 3600);

/// Losses that are remembered.
const LOSSES_KEPT: usize = 64;

impl Cluster {
    /// Takes everybody who is lost out of the run.
    pub(crate) fn bury(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (worker, fate) in self.fates(now) {
            match fate {
                Fate::Fine | Fate::Finished => {}
                Fate::Left => self.forget(&worker, now, actions),
                Fate::Lost(cause) => self.lose(&worker, cause, now, actions),
            }
            if self.phase == Phase::Draining {
                return;
            }
        }
    }

    /// The fates of those who are not simply fine.
    pub(crate) fn fates(&self, now: Duration) -> Vec<(WorkerId, Fate)> {
        let finishing = self.is_finishing();
        let judged = self.members.iter().map(|(worker, member)| (worker, fate(self, finishing, member, now)));
        judged.filter(|(_, fate)| *fate != Fate::Fine).map(|(worker, fate)| (worker.clone(), fate)).collect()
    }

    /// A worker is lost: ends its process and its stream, and what follows for the others.
    pub(crate) fn lose(&mut self, worker: &WorkerId, cause: Cause, now: Duration, actions: &mut Vec<Action>) {
        let Some(member) = self.members.remove(worker) else { return };
        self.depart(worker, &member, now, actions);
        if let Some(session) = member.session() {
            let refusal = Refusal::Evicted { worker: worker.clone(), cause: cause.clone() };
            actions.push(Action::Refuse { session, refusal });
        }
        let rank = member.rank.or(member.former);
        let reason = Reason::Lost { worker: worker.clone(), rank, cause: cause.clone() };
        self.remember(Loss { worker: worker.clone(), rank, cause: cause.clone(), at: now });
        // what would happen again wherever it runs ends the run: always before there is a generation, later only if the
        // worker was part of one
        if is_fatal(&cause) && (member.is_placed() || self.phase == Phase::Gathering) {
            return self.drain(Ending::Failure(reason), now, actions);
        }
        actions.push(Action::Report(reason));
        if let Some(slot) = member.slot {
            let worked = member.placed_at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
            self.slot_died(slot, worked, &cause, now, actions);
        }
        if member.is_placed() {
            let why = format!("{} {cause}", name(worker, member.rank));
            if self.phase == Phase::Reconfiguring && !member.out {
                // so far only its peers had said what they saw of it
                self.strikes.last.clone_from(&why);
            }
            self.end_generation(why, false, now, actions);
        }
    }

    /// A worker has left in good order.
    pub(crate) fn forget(&mut self, worker: &WorkerId, now: Duration, actions: &mut Vec<Action>) {
        let Some(member) = self.members.remove(worker) else { return };
        self.depart(worker, &member, now, actions);
        let (rank, cause) = (member.rank, Cause::Released);
        actions.push(Action::Report(Reason::Lost { worker: worker.clone(), rank, cause: cause.clone() }));
        if let Some(place) = member.slot.and_then(|slot| self.slots.get_mut(slot as usize)) {
            place.taken = false;
        }
        if member.is_placed() {
            let why = format!("{} {cause}", name(worker, rank));
            if !member.out {
                self.remember(Loss { worker: worker.clone(), rank, cause, at: now });
            }
            self.end_generation(why, false, now, actions);
        }
    }

    fn remember(&mut self, loss: Loss) {
        self.losses.push_back(loss);
        // of each worker as many as make it an unsteady one
        if self.losses.len() > LOSSES_KEPT.max(self.members.len() * UNSTEADY) {
            self.losses.pop_front();
        }
    }

    /// Everybody to whom a place could be given: first who had one, in the order of ranks, then who waits longest.
    fn eligible(&self, now: Duration) -> Vec<WorkerId> {
        let may = |member: &Member| member.is_eligible() && !self.is_behind(member) && !member.is_apart(now);
        let mut list: Vec<_> = self.members.iter().filter(|(_, member)| may(member)).collect();
        list.sort_by_key(|(worker, member)| {
            (
                member.rank.map_or(u32::MAX, |r| r.0),
                member.slot.unwrap_or(u32::MAX),
                member.ready_since,
                (*worker).clone(),
            )
        });
        list.into_iter().map(|(worker, _)| worker.clone()).collect()
    }

    /// The furthest of those that were told to go and hold the state, if nobody of `eligible` holds it, or only one of an earlier
    /// line: it hands over to them.
    fn hands_over(&self, eligible: &[WorkerId], now: Duration) -> Option<WorkerId> {
        let staying = eligible.iter().filter_map(|worker| self.members.get(worker));
        let held = staying.filter_map(|member| member.standing.held()).max();
        let later = |member: &Member| held.is_none_or(|held| member.standing.line > held);
        let may = |member: &Member| member.is_free() && !member.released && !member.is_apart(now);
        let goes = |member: &Member| member.standing.leaving && may(member);
        (self.members.iter())
            .filter(|(_, member)| goes(member) && member.standing.has_state && !self.is_behind(member))
            .filter(|(_, member)| later(member))
            .max_by_key(|(_, member)| (member.standing.line, member.standing.images, member.standing.step))
            .map(|(worker, _)| worker.clone())
    }

    /// Gathering: when all are there, or time is over and enough are, the first generation begins.
    pub(crate) fn gather(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let eligible = self.eligible(now);
        let (count, wanted) = (eligible.len() as u32, self.wanted.max(1));
        let late = now >= self.policy.startup;
        if count >= wanted || late && count >= self.policy.min_workers.max(1) && self.policy.on_loss == OnLoss::Shrink {
            self.form(eligible, now, actions);
        } else if late && !self.is_preparing(now) || self.hopeless() {
            let reason = match self.losses.back() {
                Some(Loss { worker, rank, cause, .. }) if !late => {
                    Reason::Lost { worker: worker.clone(), rank: *rank, cause: cause.clone() }
                }
                _ => Reason::Missing { missing: self.missing(wanted), waited: now },
            };
            self.drain(Ending::Failure(reason), now, actions);
        } else {
            self.release(now, actions);
        }
    }

    /// Whether somebody still prepares the training images, which takes as long as they are many.
    fn is_preparing(&self, now: Duration) -> bool {
        let prepares = |member: &Member| member.session().is_some() && member.standing.activity == "data";
        now < PREPARATION && self.members.values().any(prepares)
    }

    fn missing(&self, wanted: u32) -> Vec<String> {
        let waits = |member: &Member| member.is_eligible();
        let mut missing: Vec<String> = (self.members.iter().filter(|(_, member)| !waits(member)))
            .map(|(worker, member)| match (&member.process, member.session()) {
                (_, Some(_)) => format!("worker {worker} ({})", member.standing.activity),
                (Process::Alive { pid }, None) => format!("worker {worker} (process {pid} runs, but has not joined)"),
                _ => format!("worker {worker}"),
            })
            .collect();
        let unknown = (wanted as usize).saturating_sub(self.members.len());
        if unknown > 0 {
            missing.push(format!("{unknown} that should join from elsewhere"));
        }
        missing
    }

    /// Gives places to the first of `eligible`, as many as are wanted, and to who hands the state over to them.
    fn form(&mut self, mut eligible: Vec<WorkerId>, now: Duration, actions: &mut Vec<Action>) {
        eligible.truncate(self.wanted.max(1) as usize);
        eligible.extend(self.hands_over(&eligible, now));
        let mut rollback = std::mem::take(&mut self.strikes.rollback);
        let mut redraw = std::mem::take(&mut self.strikes.redraw);
        let (over, mut latest) = (self.generation, self.generation.max(self.used));
        for member in self.members.values_mut() {
            let standing = &member.standing;
            latest = latest.max(standing.generation);
            // it has not gone back with the others, so that none of them took a step: all do it again
            let unmoved = standing.held().is_some_and(|line| line < over);
            let again = self.formation.rollback && member.is_placed() && unmoved;
            rollback |= again;
            redraw |= again && self.formation.redraw;
            (member.rank, member.out) = (None, false);
        }
        self.generation = Generation(latest.0 + 1);
        self.used = self.generation;
        let held: Vec<Generation> = (eligible.iter().filter_map(|worker| self.members.get(worker)))
            .filter_map(|member| member.standing.held())
            .collect();
        let latest = held.into_iter().max();
        // all that is held is older than what a later generation has stored, or one of the same before it left; within a round images
        // grow with the first step, and are stored after the last
        let further = |stored: &Stored| {
            let holds = |m: &&Member| {
                let (at, whole) = (m.standing.images, m.standing.step == 0);
                m.standing.held() == latest && (at > stored.images || at == stored.images && whole)
            };
            !eligible.iter().filter_map(|worker| self.members.get(worker)).any(|member| holds(&member))
        };
        rollback |= latest.is_some_and(|line| line < self.newest_from);
        rollback |= latest == Some(self.newest_from) && self.newest.as_ref().is_some_and(further);
        // who was in it knows whether a step was taken: that takes all
        let is_witness = |worker: &WorkerId| self.members.get(worker).is_some_and(|m| m.standing.generation == over);
        let witnessed = eligible.iter().any(is_witness);
        if rollback || !self.goes_on(over, latest, witnessed) {
            self.forked = self.generation;
        }
        self.line = latest.filter(|_| !rollback).unwrap_or(self.generation);
        let mut peers = Vec::new();
        for (rank, worker) in (0..).zip(&eligible) {
            if let Some(member) = self.members.get_mut(worker) {
                (member.rank, member.former) = (Some(Rank(rank)), Some(Rank(rank)));
                (member.told, member.asked, member.may_finish) = (now, None, false);
                member.placed_at.get_or_insert(now);
                member.origin = member.standing.images;
                peers.push(member.peer.clone());
            }
        }
        let (peers, resume) = (Arc::from(peers), self.newest.clone());
        // the most advanced of those that hold the state hands it to the others
        let from = resume.as_ref().map(|stored| stored.images).unwrap_or_default();
        let held = (eligible.iter().filter_map(|worker| self.members.get(worker)))
            .filter(|member| member.standing.has_state)
            .map(|member| member.standing.images);
        self.images = held.max().filter(|_| !rollback).unwrap_or(from);
        if rollback {
            self.went_back = self.generation;
        }
        self.formation =
            Formation { peers, resume, rollback, redraw, progressed: now, moved: now, ..Formation::default() };
        self.phase = Phase::Running;
        actions.push(Action::Record(self.formed(&eligible)));
        actions.push(Action::Report(Reason::Formed { generation: self.generation, world: self.world() }));
        for worker in &eligible {
            if let Some(session) = self.members.get(worker).and_then(Member::session) {
                actions.extend(self.assignment_of(worker, session));
            }
        }
    }

    /// Whether a generation that starts from a state of line `latest` goes on from what the one before, `over`, had reached: it took
    /// the last step of that state, or none, as one says who was in it.
    fn goes_on(&self, over: Generation, latest: Option<Generation>, witnessed: bool) -> bool {
        let took_none = witnessed && self.formation.steps == 0;
        latest.is_some_and(|line| line >= over || line == self.line && took_none)
    }

    pub(crate) fn assignment_of(&self, worker: &WorkerId, session: SessionId) -> Option<Action> {
        let rank = self.members.get(worker)?.rank?;
        let Formation { peers, resume, rollback, redraw, .. } = &self.formation;
        let assignment = Assignment {
            generation: self.generation,
            rank,
            peers: Arc::clone(peers),
            resume: resume.clone(),
            rollback: *rollback,
            redraw: *redraw,
        };
        Some(Action::Assign { worker: worker.clone(), session, assignment })
    }

    /// The generation at work is over. Whoever is still in it is told, unless all left it together: then nobody is.
    pub(crate) fn end_generation(&mut self, why: String, voluntary: bool, now: Duration, actions: &mut Vec<Action>) {
        let stopping = matches!(&self.drain, Some(drain) if drain.ending == Ending::Stop);
        if self.phase != Phase::Running && !stopping {
            return;
        }
        (self.formation.over, self.formation.voluntary) = (Some(now), voluntary);
        (self.phase, self.drain) = (Phase::Reconfiguring, None);
        if !voluntary {
            self.strikes.count += 1;
            self.strikes.last.clone_from(&why);
        }
        actions.push(Action::Report(Reason::Broken { generation: self.generation, why: why.clone() }));
        // by agreement all come out by themselves
        let still_in = if voluntary { Vec::new() } else { self.reachable() };
        for (worker, session) in still_in {
            actions.push(Action::Abort { worker, session, generation: self.generation, reason: why.clone() });
        }
        for member in self.members.values_mut().filter(|member| member.is_placed()) {
            member.asked = None;
        }
    }

    /// Reconfiguring: when everybody who is alive has left the old generation, the next one begins.
    pub(crate) fn reform(&mut self, now: Duration, actions: &mut Vec<Action>) {
        // some had ended in good order already: then the state is stored, and the others only came too late to hear it
        if self.is_finishing() {
            return self.drain(Ending::Finished, now, actions);
        }
        let waited = now.saturating_sub(self.formation.over.unwrap_or(now));
        if self.expects_members() {
            return;
        }
        if !self.all_are_out(waited, now, actions) {
            return;
        }
        self.part(now, actions);
        let eligible = self.eligible(now);
        let (staying, going) =
            (eligible.iter().filter(|worker| self.holds_state(worker)), self.hands_over(&eligible, now));
        let holders: Vec<_> = staying.cloned().chain(going.clone()).collect();
        // one who is only out of reach may hold the state that nobody else does, or be the cause of it all
        let unknown = self.at_work().next().is_some() && waited < self.policy.patience;
        if unknown && (holders.is_empty() || self.is_struck()) {
            return;
        }
        self.judge_divergence(now, actions);
        if self.phase != Phase::Reconfiguring {
            return;
        }
        if self.stop.is_none() {
            self.count_strikes(!holders.is_empty(), now, actions);
        }
        let (count, wanted) = (eligible.len() as u32, self.wanted.max(1));
        let enough = match self.policy.on_loss {
            // who is told to go, and all that is left, does not wait for others
            _ if count == 0 && going.is_some() => true,
            OnLoss::Shrink => count >= self.policy.min_workers.max(1),
            OnLoss::Wait => count >= wanted,
        };
        if self.stop.is_none() && self.phase == Phase::Reconfiguring {
            if enough {
                return self.form(eligible, now, actions);
            } else if waited < self.policy.startup && !self.hopeless() {
                return;
            }
            let reason = match self.losses.back() {
                Some(Loss { worker, rank, cause, .. }) if self.hopeless() => {
                    Reason::Lost { worker: worker.clone(), rank: *rank, cause: cause.clone() }
                }
                _ => Reason::Missing { missing: self.missing(wanted), waited },
            };
            self.give_up(reason, !holders.is_empty(), now, actions);
        }
        if let (Some(stop), Phase::Reconfiguring) = (&self.stop, self.phase) {
            let (failures, most) = (self.strikes.count, self.policy.failures.max(1));
            let last = self.strikes.last.clone();
            if !holders.is_empty() && failures < most {
                // whoever is left stores the state, however few they are
                return self.form(holders, now, actions);
            }
            // the last ones went without a word that this coordinator heard; what they held is safe all the same
            if stop.inherited
                && holders.is_empty()
                && self.newest.as_ref().is_some_and(|newest| newest.images >= self.images)
            {
                return self.drain(Ending::Finished, now, actions);
            }
            let reason = stop.verdict.clone().unwrap_or_else(|| match self.losses.back() {
                _ if failures >= most => Reason::CrashLoop { failures, images: self.images, last },
                Some(Loss { worker, rank, cause, .. }) => {
                    Reason::Lost { worker: worker.clone(), rank: *rank, cause: cause.clone() }
                }
                None => Reason::NothingToStore,
            });
            self.drain(Ending::Failure(reason), now, actions);
        }
    }

    /// Whether everybody who can be spoken to has left the generation that is over. Who does not in time is lost.
    fn all_are_out(&mut self, waited: Duration, now: Duration, actions: &mut Vec<Action>) -> bool {
        let patience = self.policy.patience;
        let is_in = |member: &Member| matches!(member.link, Link::Up { .. });
        // nobody leaves within a step, or within what an evaluation computes between two exchanges
        let busy = |member: &Member| match member.standing.activity.as_str() {
            "evaluate" => EVALUATES,
            _ => self.formation.step_time * 5,
        };
        // who came back a moment ago has hardly heard of it
        let came = |member: &Member| waited < patience * 2 && now < member.came + patience;
        let has_time = |member: &Member| waited < patience.max(busy(member)) || came(member);
        if self.at_work().any(|(_, member)| is_in(member) && has_time(member)) {
            return false;
        }
        let outstanding: Vec<_> =
            self.at_work().filter(|(_, member)| is_in(member)).map(|(worker, _)| worker.clone()).collect();
        for worker in outstanding {
            self.lose(&worker, Cause::Stuck { for_: waited }, now, actions);
        }
        self.phase == Phase::Reconfiguring
    }

    /// If training diverged: back to the newest checkpoint, with other random numbers; but not again and again. What the
    /// workers hold is not worth storing.
    fn judge_divergence(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let said = |member: &Member| member.is_placed() && member.out && member.standing.diverged;
        if self.formation.diverged || !self.members.values().any(said) {
            return;
        }
        self.formation.diverged = true;
        self.divergences += 1;
        // it is no failure of a worker
        self.strikes.count = self.strikes.count.saturating_sub(1);
        let (images, times) = (self.images, self.divergences);
        match &self.newest {
            Some(newest) if times <= self.policy.failures.max(1) && self.stop.is_none() => {
                actions.push(Action::Report(Reason::Redraw { images, to: newest.images }));
                (self.strikes.rollback, self.strikes.redraw) = (true, true);
            }
            _ => self.drain(Ending::Failure(Reason::Diverged { images, times }), now, actions),
        }
    }

    /// Whether the run has failed too often at one place.
    fn is_struck(&self) -> bool {
        self.strikes.count >= self.policy.failures.max(1)
    }

    fn holds_state(&self, worker: &WorkerId) -> bool {
        self.members.get(worker).is_some_and(|member| member.standing.has_state)
    }

    /// Whether the run fails again and again at one place. The first time it goes back to its newest checkpoint.
    fn count_strikes(&mut self, held: bool, now: Duration, actions: &mut Vec<Action>) {
        let (images, failures) = (self.images, self.strikes.count);
        if !self.is_struck() {
            return;
        }
        if self.strikes.rolled_back || self.newest.is_none() {
            let last = self.strikes.last.clone();
            return self.give_up(Reason::CrashLoop { failures, images, last }, held, now, actions);
        }
        actions.push(Action::Report(Reason::Rollback { failures, images }));
        (self.strikes.rolled_back, self.strikes.rollback, self.strikes.count) = (true, true, 0);
    }

    /// The run cannot go on: if somebody holds its state, that is stored first.
    fn give_up(&mut self, reason: Reason, held: bool, now: Duration, actions: &mut Vec<Action>) {
        if !held {
            return self.drain(Ending::Failure(reason), now, actions);
        }
        actions.push(Action::Report(reason.clone()));
        self.want_stop(Some(reason), now, actions);
    }

    /// From now on the run is to end with a checkpoint, for which it gets as many attempts as for any step.
    pub(crate) fn want_stop(&mut self, verdict: Option<Reason>, now: Duration, actions: &mut Vec<Action>) {
        if self.stop.is_none() {
            actions.push(Action::Record(Entry::Stopping { verdict: verdict.clone() }));
            self.stop = Some(Stop { since: now, verdict, inherited: false });
            (self.strikes.count, self.strikes.rollback) = (0, false);
        }
    }
}
