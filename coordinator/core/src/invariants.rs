//! What always holds, one named function per property.
//!
//! [`check`] looks at a state and runs after every step of a debug build. [`History`] looks at what a cluster was told
//! and what it ordered, over a whole run; the property tests and the simulator feed it.

use crate::event::{Action, Event, WorkerId};
use crate::state::{Cluster, Phase, Process};
use common::ids::{Generation, ImagesSeen, Rank};
use std::collections::{BTreeMap, BTreeSet};

/// The name of the property that does not hold.
pub type Broken = &'static str;

type Property = fn(&Cluster) -> bool;

/// Every property of a single state.
///
/// # Errors
/// The first that does not hold.
pub fn check(cluster: &Cluster) -> Result<(), Broken> {
    let properties: [(Broken, Property); 5] = [
        ("no more members than places", no_more_members_than_places),
        ("ranks are none, or exactly 0..world", ranks_are_none_or_all),
        ("nobody has a rank while gathering, everybody while running", ranks_fit_the_phase),
        ("an outcome is there exactly when the run is over, and fits the phase", outcome_fits_the_phase),
        ("an ending is under way exactly while draining", drain_fits_the_phase),
    ];
    properties.into_iter().find(|(_, holds)| !holds(cluster)).map_or(Ok(()), |(name, _)| Err(name))
}

fn no_more_members_than_places(cluster: &Cluster) -> bool {
    cluster.members.len() <= cluster.policy.workers as usize
}

fn ranks_are_none_or_all(cluster: &Cluster) -> bool {
    let ranks: BTreeSet<Rank> = cluster.members.values().filter_map(|member| member.rank).collect();
    let whole: BTreeSet<Rank> = (0..cluster.policy.workers).map(Rank).collect();
    ranks.is_empty() || (ranks == whole && cluster.members.len() == whole.len())
}

fn ranks_fit_the_phase(cluster: &Cluster) -> bool {
    match cluster.phase {
        Phase::Gathering => cluster.members.values().all(|member| member.rank.is_none()),
        Phase::Running => cluster.members.values().all(|member| member.rank.is_some()) && !cluster.members.is_empty(),
        Phase::Draining | Phase::Done | Phase::Failed => true,
    }
}

fn outcome_fits_the_phase(cluster: &Cluster) -> bool {
    let exit = cluster.outcome.as_ref().map(|outcome| outcome.exit);
    match cluster.phase {
        Phase::Done => exit == Some(common::exit::Exit::Ok),
        Phase::Failed => exit.is_some_and(|exit| exit != common::exit::Exit::Ok),
        Phase::Gathering | Phase::Running | Phase::Draining => exit.is_none(),
    }
}

fn drain_fits_the_phase(cluster: &Cluster) -> bool {
    cluster.drain.is_some() == (cluster.phase == Phase::Draining)
}

/// What a cluster was seen to do.
#[derive(Debug, Default)]
pub struct History {
    places: BTreeMap<(Generation, Rank), WorkerId>,
    finished: u32,
    generation: Generation,
    images: ImagesSeen,
    stored: ImagesSeen,
}

impl History {
    /// Takes note of one step. `before` is the state it started from.
    ///
    /// # Errors
    /// The first property that does not hold.
    pub fn observe(
        &mut self,
        before: &Cluster,
        event: &Event,
        actions: &[Action],
        after: &Cluster,
    ) -> Result<(), Broken> {
        check(after)?;
        let silent = actions.iter().all(|action| matches!(action, Action::Refuse { .. }));
        if self.finished > 0 && !silent {
            return Err("after the end there are only refusals");
        }
        for action in actions {
            self.observe_action(action, after)?;
        }
        if (self.finished == 1) != after.outcome.is_some() {
            return Err("the end is announced exactly once");
        }
        if let Some(Action::Finish(_)) = actions.iter().rev().nth(1) {
            return Err("the end is the last action of its step");
        }
        if after.generation < self.generation {
            return Err("a generation never falls");
        }
        self.generation = after.generation;
        let stored = after.newest.as_ref().map(|stored| stored.images).unwrap_or_default();
        if after.phase != Phase::Gathering && after.images() < self.images || stored < self.stored {
            return Err("progress and checkpoints never go back");
        }
        (self.images, self.stored) = (after.images(), stored);
        only_the_generation_at_work_is_heard(before, event, after)
    }

    fn observe_action(&mut self, action: &Action, after: &Cluster) -> Result<(), Broken> {
        match action {
            Action::Assign { worker, session, assignment } => {
                let place = (assignment.generation, assignment.rank);
                let holder = self.places.entry(place).or_insert_with(|| worker.clone()).clone();
                let held = self.places.iter().filter(|((g, _), w)| *g == assignment.generation && *w == worker);
                if holder != *worker || held.count() != 1 {
                    return Err("a rank is given once per generation");
                }
                let member = after.members.get(worker);
                if assignment.generation != after.generation || member.and_then(|m| m.session()) != Some(*session) {
                    return Err("places are given in the present generation, on the present stream");
                }
                let own = assignment.peers.get(assignment.rank.0 as usize);
                if assignment.peers.len() != after.members.len() || own != member.map(|member| &member.peer) {
                    return Err("the peers are all members in rank order");
                }
            }
            Action::Kill { worker, .. } => {
                let alive = after.members.get(worker).is_some_and(|m| matches!(m.process, Process::Alive { .. }));
                if !alive {
                    return Err("only processes that live are killed");
                }
            }
            Action::Finish(_) => self.finished += 1,
            Action::SendStop { .. } | Action::SendCheckpoint { .. } | Action::Refuse { .. } | Action::Report(_) => {}
        }
        Ok(())
    }
}

/// What is said of another generation, or on a stream that was replaced, changes neither progress nor checkpoints.
fn only_the_generation_at_work_is_heard(before: &Cluster, event: &Event, after: &Cluster) -> Result<(), Broken> {
    let (worker, session, generation) = match event {
        Event::Progress { worker, session, generation, .. } | Event::Stored { worker, session, generation, .. } => {
            (worker, *session, *generation)
        }
        _ => return Ok(()),
    };
    let heard = before.members.get(worker).is_some_and(|m| m.session() == Some(session) && m.rank.is_some())
        && generation == before.generation;
    let same = before.images() == after.images() && before.newest == after.newest;
    if heard || same { Ok(()) } else { Err("nothing of an older generation is accepted") }
}
