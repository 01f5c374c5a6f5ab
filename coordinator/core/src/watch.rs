//! The generation at work: whether it has ended, whether a rank hangs, and what it is asked for.

use crate::cluster::{Cluster, Ending};
use crate::event::{Action, WorkerId};
use crate::reason::{Cause, Reason, name};
use crate::state::{Link, Member, Phase};
use std::time::Duration;

/// Newcomers that are ready are waited for this long before the others stop for them: they often come together.
const TOGETHER: Duration = Duration::from_millis(100);
/// Steps of each rank after which a generation is known well enough to say that one takes too long.
const STEPS_KNOWN: u32 = 8;
/// After so many it is known well enough to lose one that has fallen silent too: its signs of life do not wait for a step.
const STEPS_HEARD: u32 = 2;
/// Before that, this long without progress is no reason for a verdict.
const WARM_UP: Duration = Duration::from_secs(30);
/// Shortest time without progress that makes a rank for which the others wait a lost one.
pub(crate) const HANG_MIN: Duration = Duration::from_secs(2);

impl Cluster {
    /// Running: one who is out ends the generation; when all have finished, so does the run; newcomers are taken in.
    pub(crate) fn watch(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let mut placed = self.members.values().filter(|member| member.is_placed()).peekable();
        if placed.peek().is_some() && placed.all(Member::has_finished) {
            return self.drain(Ending::Finished, now, actions);
        }
        if self.end_if_one_is_out(now, actions) {
            return;
        }
        self.find_hung(now, actions);
        if self.phase != Phase::Running {
            return;
        }
        if let (None, Some(reason)) = (&self.stop, self.all_leave(now)) {
            actions.push(Action::Report(reason.clone()));
            self.want_stop(Some(reason), now, actions);
        }
        if self.stop.is_some() {
            return self.drain(Ending::Stop, now, actions);
        }
        self.find_straggler(now, actions);
        self.pass_on_wishes(now, actions);
        self.release(now, actions);
    }

    /// Who has left the generation at work ends it for all. It was by agreement if nothing troubled that worker.
    pub(crate) fn end_if_one_is_out(&mut self, now: Duration, actions: &mut Vec<Action>) -> bool {
        let Some((worker, member)) = self.members.iter().find(|(_, member)| member.out) else { return false };
        let (who, trouble) = (name(worker, member.rank), member.standing.trouble.clone());
        if trouble.is_empty() {
            self.end_generation("all left it together".to_owned(), true, now, actions);
        } else {
            self.end_generation(format!("{who}: {trouble}"), false, now, actions);
        }
        true
    }

    /// Whether some have said that the work is done.
    pub(crate) fn is_finishing(&self) -> bool {
        self.members.values().any(|member| member.is_placed() && member.has_finished())
    }

    /// The reason to end if everybody was told to go and nobody is there to take over.
    fn all_leave(&self, now: Duration) -> Option<Reason> {
        let (worker, member) = self.at_work().next()?;
        let all = self.at_work().all(|(_, member)| member.standing.leaving);
        let nobody = all && self.newcomers(now) == 0 && self.images < self.policy.total;
        nobody.then(|| Reason::Lost { worker: worker.clone(), rank: member.rank, cause: Cause::Released })
    }

    fn newcomers(&self, now: Duration) -> u32 {
        let comes = |m: &Member| !m.is_placed() && m.is_eligible() && !self.is_behind(m) && !m.is_apart(now);
        let waits = |m: &&Member| comes(m) && now >= m.ready_since + TOGETHER;
        self.members.values().filter(waits).count() as u32
    }

    fn pass_on_wishes(&mut self, now: Duration, actions: &mut Vec<Action>) {
        // one proposer is enough: two could be obeyed one after the other
        let generation = self.generation;
        let entered = |worker: &WorkerId| self.members.get(worker).is_some_and(|member| member.has_entered(generation));
        let proposer = self.reachable().into_iter().find(|(worker, _)| entered(worker));
        let Some((worker, session)) = proposer else { return };
        if std::mem::take(&mut self.checkpoint_wanted) {
            actions.push(Action::SendCheckpoint { worker: worker.clone(), session });
        }
        let asked = self.formation.regroup;
        let again = asked.is_none_or(|asked| now >= asked + self.policy.patience / 2);
        if let (true, Some(wanted)) = (again, self.better_world(now)) {
            if asked.is_none() {
                actions.push(Action::Report(Reason::Regroup { workers: self.world(), wanted }));
            }
            self.formation.regroup = Some(now);
            actions.push(Action::Regroup { worker, session, generation });
        }
    }

    /// The size of a generation for which the one at work should stop, if there is one.
    fn better_world(&self, now: Duration) -> Option<u32> {
        if self.is_finishing() || self.images >= self.policy.total {
            return None;
        }
        let (world, wanted) = (self.world(), self.wanted.max(1));
        let leaving = self.at_work().filter(|(_, member)| member.standing.leaving).count() as u32;
        let possible = (world - leaving.min(world) + self.newcomers(now)).min(wanted);
        (possible > world || leaving > 0 && possible > 0 || world > wanted).then_some(possible)
    }

    /// A rank for which the others wait is lost: soon if it says nothing either, later if it says that it is alive.
    fn find_hung(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let (formation, patience) = (&self.formation, self.policy.patience);
        let (stood, steps) = (now.saturating_sub(formation.moved), formation.step_time * 5);
        // short steps are taken faster than they are told
        let taken = |steps: u32| self.at_work().all(|(_, member)| member.standing.steps >= steps);
        let known = |steps: u32| formation.steps >= steps.saturating_mul(self.world()) || taken(steps);
        let limit = steps.max(HANG_MIN).max(patience).max(if known(STEPS_KNOWN) { Duration::ZERO } else { WARM_UP });
        let trains = |member: &Member| member.has_entered(self.generation) && member.standing.activity == "train";
        if stood < patience / 2 || !self.at_work().all(|(_, member)| trains(member)) {
            return;
        }
        // who is heard and waits bears witness
        let falls_silent = |member: &Member| matches!(member.link, Link::Up { seen, .. } if now >= seen + patience / 2);
        let heard = |member: &Member| matches!(member.link, Link::Up { .. }) && !falls_silent(member);
        if !self.at_work().any(|(_, member)| member.standing.waiting && heard(member)) {
            return;
        }
        // one whose last word was that it waits may be the one for whom all others do, if they all do
        let all_wait = self.at_work().all(|(_, member)| member.standing.waiting || falls_silent(member));
        let silent = known(STEPS_HEARD) && stood >= steps;
        let is_missed = |member: &Member| if all_wait { falls_silent(member) } else { !member.standing.waiting };
        let judged = self.at_work().filter(|(_, member)| is_missed(member));
        let judged = judged.filter_map(|(worker, member)| {
            let cause = match member.link {
                Link::Up { seen, .. } if falls_silent(member) => silent.then(|| Cause::Silent { for_: now - seen })?,
                Link::Up { .. } if stood >= limit => {
                    Cause::Hung { for_: stood, activity: member.standing.activity.clone() }
                }
                // one that is out of reach is judged by that
                _ => return None,
            };
            Some((worker.clone(), cause))
        });
        let lost: Vec<(WorkerId, Cause)> = judged.collect();
        for (worker, cause) in lost {
            self.lose(&worker, cause, now, actions);
        }
    }
}
