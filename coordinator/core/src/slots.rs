//! Places on this machine: which are filled, emptied and given up, and the processes that outlive their worker's part
//! in the run.

use crate::cluster::{Cluster, Departing};
use crate::ending::ask;
use crate::event::{Action, Force, WorkerId};
use crate::journal::Entry;
use crate::reason::{Cause, Reason};
use crate::state::{Member, Process, Slot};
use crate::verdict::is_fatal;
use std::cmp::Reverse;
use std::time::Duration;

/// A worker that was at work for less than this, or for a few steps only, died early.
const WORKED: Duration = Duration::from_secs(10);
/// Early deaths in a row after which a place on this machine is given up.
const SLOT_DEATHS: u32 = 5;
/// Pause before the third start in a row; doubled each time.
const SLOT_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause.
const SLOT_PAUSE_MAX: Duration = Duration::from_secs(30);
/// From a farewell until the process must have ended.
const DEPARTURE: Duration = Duration::from_secs(5);

impl Cluster {
    /// A worker of a place on this machine is gone; another one follows, sooner or later.
    pub(crate) fn slot_died(
        &mut self,
        slot: u32,
        worked: Duration,
        cause: &Cause,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        place.taken = false;
        let long = worked >= WORKED.max(self.formation.step_time * 5);
        place.deaths = if long { 0 } else { place.deaths + 1 };
        if place.deaths >= SLOT_DEATHS || is_fatal(cause) {
            place.closed = true;
            let (deaths, last) = (place.deaths, cause.to_string());
            actions.push(Action::Report(Reason::SlotGivenUp { slot, deaths, last }));
        } else if place.deaths > 1 {
            let pause = SLOT_PAUSE.saturating_mul(1 << (place.deaths - 2).min(16));
            place.not_before = now + pause.min(SLOT_PAUSE_MAX);
        }
    }

    /// Orders workers for the free places of this machine, as many as are wanted.
    pub(crate) fn fill_slots(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.stop.is_some() || self.is_finishing() {
            return;
        }
        let count = |is: fn(&Member) -> bool| self.members.values().filter(|member| is(member)).count() as u32;
        let others = count(|member| member.slot.is_none() && member.stays());
        let going = count(|member| member.slot.is_some() && !member.stays());
        let taken = self.slots.iter().filter(|place| place.taken).count() as u32;
        let there = others.max(self.elsewhere()) + taken.saturating_sub(going);
        let room = self.wanted.saturating_sub(there) as usize;
        let open = |place: &Slot| !place.taken && !place.closed && now >= place.not_before;
        for (slot, place) in (0..).zip(&mut self.slots).filter(|(_, place)| open(place)).take(room) {
            place.taken = true;
            actions.push(Action::Spawn { slot });
        }
    }

    /// Whether no worker is known that was started for a place.
    pub(crate) fn is_empty(&self, slot: u32) -> bool {
        self.members.values().all(|member| member.slot != Some(slot))
    }

    /// How many of the wanted workers others start.
    pub(crate) fn elsewhere(&self) -> u32 {
        self.policy.workers.saturating_sub(self.policy.local)
    }

    /// Whether too few are there and nobody will come: every place on this machine is given up, and none waits
    /// elsewhere.
    pub(crate) fn hopeless(&self) -> bool {
        let open = self.slots.iter().filter(|slot| !slot.closed).count() as u32;
        let others = self.members.values().filter(|member| member.slot.is_none()).count() as u32;
        open + self.elsewhere().max(others) < self.policy.min_workers.max(1)
    }

    /// The operator wants another number of workers.
    pub(crate) fn scale(&mut self, workers: u32, actions: &mut Vec<Action>) {
        let least = self.policy.min_workers.max(1);
        let workers = workers.clamp(least, self.policy.max_workers.max(least));
        if workers == self.wanted {
            return;
        }
        self.wanted = workers;
        let local = workers.saturating_sub(self.elsewhere()) as usize;
        if self.policy.local > 0 && local > self.slots.len() {
            self.slots.resize(local, Slot::default());
        }
        actions.push(Action::Record(Entry::Wanted(workers)));
        actions.push(Action::Report(Reason::Scaled { workers }));
    }

    /// Asks those to leave who wait for a place that they will not get: local ones beyond the number that is wanted, those
    /// that were told to go, and who was absent when the run went back and holds what it went back from.
    pub(crate) fn release(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let (wanted, patience, generation) = (self.wanted, self.policy.patience, self.generation);
        let there = self.members.values().filter(|member| member.stays()).count();
        let surplus = there.saturating_sub(wanted as usize);
        let waits = |member: &Member| !member.is_placed() && member.standing.ready && member.stays();
        let mut waiting: Vec<_> = (self.members.iter())
            .filter(|(_, member)| waits(member) && member.slot.is_some())
            .map(|(worker, member)| (Reverse(member.ready_since), worker.clone()))
            .collect();
        waiting.sort();
        let mut leave: Vec<WorkerId> = waiting.into_iter().take(surplus).map(|(_, worker)| worker).collect();
        let goes = |member: &Member| {
            member.released || self.is_behind(member) || !member.is_placed() && member.standing.leaving
        };
        leave.extend(self.members.iter().filter(|(_, member)| goes(member)).map(|(worker, _)| worker.clone()));
        for worker in leave {
            if let Some(member) = self.members.get_mut(&worker) {
                ask(&worker, member, generation, &Reason::Scaled { workers: wanted }, patience, now, actions);
            }
        }
    }

    /// Whether a worker that waits for a place holds a state from which the run has gone back.
    pub(crate) fn is_behind(&self, member: &Member) -> bool {
        let standing = &member.standing;
        !member.is_placed() && standing.ready && standing.held().is_some_and(|line| line < self.went_back)
    }

    /// The worker of a local process is no part of the run any more; its process still is this machine's.
    pub(crate) fn depart(&mut self, worker: &WorkerId, member: &Member, now: Duration, actions: &mut Vec<Action>) {
        if !matches!(member.process, Process::Alive { .. }) {
            return;
        }
        // who said farewell is on its way out already, and may have something left to write
        let killed = member.farewell.is_none();
        if killed {
            actions.push(Action::Kill { worker: worker.clone(), force: Force::Kill });
        }
        self.departing.insert(worker.clone(), Departing { since: now, killed });
    }

    /// Kills processes that did not end after their farewell.
    pub(crate) fn press_departing(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (worker, process) in &mut self.departing {
            if !process.killed && now >= process.since + DEPARTURE {
                process.killed = true;
                actions.push(Action::Kill { worker: worker.clone(), force: Force::Kill });
            }
        }
    }
}
