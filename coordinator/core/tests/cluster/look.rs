//! Looks at a run: what it is like, what was ordered, and short ways to let time pass.

use crate::run::Run;
use common::ids::Rank;
use coordinator_core::{Action, Assignment, Cause, Command, Event, ExitStatus, Outcome, Phase, Reason, WorkerId};
use std::time::Duration;

impl Run {
    pub fn pass(&mut self, time: Duration) {
        self.until(time, |_| false);
    }

    /// Lets time pass until the run is over.
    pub fn ends(&mut self, time: Duration) -> &Outcome {
        assert!(self.until(time, |run| run.cluster.is_over()), "no end: {:?}", self.cluster);
        self.cluster.outcome().expect("the run is over")
    }

    pub fn operator(&mut self, command: Command) -> Vec<Action> {
        self.feed(Event::Operator(command))
    }

    pub fn phase(&self) -> Phase {
        self.cluster.phase()
    }

    pub fn images(&self) -> u64 {
        self.cluster.images().0
    }

    pub fn generation(&self) -> u64 {
        self.cluster.generation().0
    }

    /// Whether a generation of so many workers is at work and gets on.
    pub fn trains_with(&self, world: u32) -> bool {
        let trains = |worker: &crate::model::Worker| worker.is_in(self.cluster.generation()) && worker.met;
        let count = self.workers.iter().filter(|worker| trains(worker)).count();
        self.phase() == Phase::Running && self.cluster.world() == world && count == world as usize
    }

    pub fn find(&self, id: &WorkerId) -> Option<usize> {
        self.workers.iter().position(|worker| worker.id == *id)
    }

    /// The worker that holds a rank.
    pub fn rank(&self, rank: u32) -> usize {
        let mut members = self.cluster.members();
        let (id, _) = members.find(|(_, member)| member.rank == Some(Rank(rank))).expect("the rank is taken");
        self.find(id).expect("it is known")
    }

    pub fn id(&self, index: usize) -> WorkerId {
        self.workers[index].id.clone()
    }

    /// A signal ends a worker's process.
    pub fn kill(&mut self, index: usize) {
        self.exit(index, ExitStatus::Signal(9));
    }

    /// What was ordered after the first `mark` orders.
    pub fn orders(&self, mark: usize) -> impl Iterator<Item = &Action> {
        self.log[mark..].iter().map(|(_, action)| action)
    }

    /// When something was first ordered after the first `mark` orders.
    pub fn when(&self, mark: usize, is: impl Fn(&Action) -> bool) -> Option<Duration> {
        self.log[mark..].iter().find(|(_, action)| is(action)).map(|(at, _)| *at)
    }

    pub fn count(&self, mark: usize, is: impl Fn(&Action) -> bool) -> usize {
        self.orders(mark).filter(|action| is(action)).count()
    }

    pub fn assignments(&self, mark: usize) -> Vec<(WorkerId, Assignment)> {
        let assign = |action: &Action| match action {
            Action::Assign { worker, assignment, .. } => Some((worker.clone(), assignment.clone())),
            _ => None,
        };
        self.orders(mark).filter_map(assign).collect()
    }

    pub fn reasons(&self, mark: usize) -> Vec<Reason> {
        let report = |action: &Action| match action {
            Action::Report(reason) => Some(reason.clone()),
            _ => None,
        };
        self.orders(mark).filter_map(report).collect()
    }

    /// Why a worker was lost, if it was.
    pub fn cause(&self, index: usize) -> Option<Cause> {
        let id = &self.workers[index].id;
        self.cluster.losses().rev().find(|loss| loss.worker == *id).map(|loss| loss.cause.clone())
    }
}

pub fn is_spawn(action: &Action) -> bool {
    matches!(action, Action::Spawn { .. })
}

pub fn is_abort(action: &Action) -> bool {
    matches!(action, Action::Abort { .. })
}

pub fn is_regroup(action: &Action) -> bool {
    matches!(action, Action::Regroup { .. })
}

pub fn is_stop(action: &Action) -> bool {
    matches!(action, Action::SendStop { .. })
}
