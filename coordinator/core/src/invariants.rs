//! What always holds, one named function per property.
//!
//! [`check`] looks at a state and runs after every step of a debug build. [`History`] looks at what a cluster was told
//! and what it ordered, over a whole run; the property tests and the simulator feed it.

use crate::cluster::Cluster;
use crate::event::{Action, Assignment, Event, WorkerId};
use crate::journal::Entry;
use crate::state::{Member, Phase, Process};
use common::exit::Exit;
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
    let properties: [(Broken, Property); 6] = [
        ("a rank has one holder, within the world", ranks_are_places),
        ("nobody has a rank before the first generation", ranks_fit_the_phase),
        ("a running generation is whole", a_running_generation_is_whole),
        ("an outcome is there exactly when the run is over, and fits the phase", outcome_fits_the_phase),
        ("an ending is under way exactly while draining", drain_fits_the_phase),
        ("a place on this machine has one worker", slots_have_one_worker),
    ];
    properties.into_iter().find(|(_, holds)| !holds(cluster)).map_or(Ok(()), |(name, _)| Err(name))
}

fn ranks_are_places(cluster: &Cluster) -> bool {
    let ranks: Vec<Rank> = cluster.members.values().filter_map(|member| member.rank).collect();
    let distinct: BTreeSet<Rank> = ranks.iter().copied().collect();
    distinct.len() == ranks.len() && distinct.iter().all(|rank| rank.0 < cluster.world())
}

fn ranks_fit_the_phase(cluster: &Cluster) -> bool {
    cluster.phase != Phase::Gathering || cluster.members.values().all(|member| member.rank.is_none())
}

fn a_running_generation_is_whole(cluster: &Cluster) -> bool {
    let placed = cluster.members.values().filter(|member| member.rank.is_some()).count() as u32;
    cluster.phase != Phase::Running || placed == cluster.world() && placed > 0
}

fn outcome_fits_the_phase(cluster: &Cluster) -> bool {
    let exit = cluster.outcome.as_ref().map(|outcome| outcome.exit);
    match cluster.phase {
        Phase::Done => exit == Some(Exit::Ok),
        Phase::Failed => exit.is_some_and(|exit| exit != Exit::Ok),
        Phase::Gathering | Phase::Running | Phase::Reconfiguring | Phase::Draining => exit.is_none(),
    }
}

fn drain_fits_the_phase(cluster: &Cluster) -> bool {
    cluster.drain.is_some() == (cluster.phase == Phase::Draining)
}

fn slots_have_one_worker(cluster: &Cluster) -> bool {
    let slots: Vec<u32> = cluster.members.values().filter_map(|member| member.slot).collect();
    slots.iter().collect::<BTreeSet<_>>().len() == slots.len()
}

/// What a cluster was seen to do.
#[derive(Clone, Debug, Default)]
pub struct History {
    places: BTreeMap<(Generation, Rank), WorkerId>,
    formed: BTreeMap<Generation, Assignment>,
    recorded: BTreeSet<Generation>,
    finished: u32,
    generation: Generation,
    images: ImagesSeen,
    stored: (Generation, ImagesSeen),
}

impl History {
    /// Another coordinator has taken the run over. It may know less than the one before; what was ordered stays ordered.
    pub fn taken_over(&mut self, by: &Cluster) {
        (self.generation, self.images) = (by.generation, by.images());
        self.stored = newest(by);
        // it was read
        self.recorded.insert(by.generation);
    }

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
            self.observe_action(action, before, after)?;
        }
        if (self.finished == 1) != after.outcome.is_some() {
            return Err("the end is announced exactly once");
        }
        let end = actions.iter().position(|action| matches!(action, Action::Finish(_)));
        if end.is_some_and(|end| end + 1 < actions.len()) {
            return Err("the end is the last action of its step");
        }
        if after.generation < self.generation {
            return Err("a generation never falls");
        }
        // who only hands the state over comes on top
        let placed = after.members.values().filter(|member| member.is_placed() && !member.standing.leaving).count();
        if after.generation > self.generation && placed as u32 > after.policy.max_workers {
            return Err("a generation is no larger than allowed");
        }
        self.generation = after.generation;
        let stored = newest(after);
        let goes_back = after.images() < self.images && !starts_from_what_is_held(before, after);
        if goes_back || stored < self.stored {
            return Err("progress goes back only to what a new generation holds, and checkpoints never do");
        }
        (self.images, self.stored) = (after.images(), stored);
        only_the_generation_at_work_is_heard(before, event, after)
    }

    fn observe_action(&mut self, action: &Action, before: &Cluster, after: &Cluster) -> Result<(), Broken> {
        match action {
            Action::Assign { worker, session, assignment } => {
                if !self.recorded.contains(&assignment.generation) {
                    return Err("a place is given only after its generation is written down");
                }
                let place = (assignment.generation, assignment.rank);
                let holder = self.places.entry(place).or_insert_with(|| worker.clone()).clone();
                let held = self.places.iter().filter(|((g, _), w)| *g == assignment.generation && *w == worker);
                if holder != *worker || held.count() != 1 {
                    return Err("a rank is given once per generation");
                }
                // one that is told again may be found lost in the same step
                let member = after.members.get(worker).or_else(|| before.members.get(worker));
                if assignment.generation != after.generation || member.and_then(Member::session) != Some(*session) {
                    return Err("places are given in the present generation, on the present stream");
                }
                let first = self.formed.entry(assignment.generation).or_insert_with(|| assignment.clone());
                if *first != (Assignment { rank: first.rank, ..assignment.clone() }) {
                    return Err("all ranks of a generation are told the same");
                }
                let fresh = assignment.generation > before.generation;
                let others_hold = |me: &Member| {
                    let holds = |m: &Member| {
                        let other = m.rank.is_some() && m.rank != me.rank;
                        other && m.standing.has_state && m.standing.line >= me.standing.line
                    };
                    after.members.values().any(holds)
                };
                let goes = |m: &Member| m.standing.leaving && (!m.standing.has_state || others_hold(m));
                if fresh && member.is_some_and(|member| goes(member) || !member.standing.ready) {
                    return Err("a place is given to who is ready for it, and stays or hands over");
                }
                let own = assignment.peers.get(assignment.rank.0 as usize);
                if own != member.map(|member| &member.peer) {
                    return Err("the peers are all members in rank order");
                }
            }
            Action::Kill { worker, .. } => {
                let alive = |c: &Cluster| {
                    let member = c.members.get(worker);
                    member.is_some_and(|m| matches!(m.process, Process::Alive { .. }))
                        || c.departing.contains_key(worker)
                };
                if !alive(before) && !alive(after) {
                    return Err("only processes that live are killed");
                }
            }
            Action::Spawn { slot } => {
                if !after.slots.get(*slot as usize).is_some_and(|slot| slot.taken && !slot.closed) {
                    return Err("a worker is started for an open place");
                }
                if after.members.values().any(|member| member.slot == Some(*slot)) {
                    return Err("a worker is started for an empty place");
                }
            }
            Action::Abort { generation, .. } if *generation == after.generation && after.phase == Phase::Running => {
                let at_work =
                    |cluster: &Cluster, worker: &WorkerId| cluster.members.get(worker).is_some_and(Member::is_at_work);
                let Action::Abort { worker, .. } = action else { return Ok(()) };
                if at_work(after, worker) {
                    return Err("nobody has to leave the generation at work");
                }
            }
            Action::Regroup { worker, generation, .. } => {
                let entered = |member: &Member| member.has_entered(*generation);
                if after.phase != Phase::Running || !after.members.get(worker).is_some_and(entered) {
                    return Err("only the generation at work is asked to regroup");
                }
            }
            Action::Record(Entry::Formed { generation, .. }) => _ = self.recorded.insert(*generation),
            Action::Finish(_) => self.finished += 1,
            Action::Record(_)
            | Action::Welcome { .. }
            | Action::Abort { .. }
            | Action::SendStop { .. }
            | Action::SendCheckpoint { .. }
            | Action::Refuse { .. }
            | Action::Report(_) => {}
        }
        Ok(())
    }
}

/// The generation that wrote the newest checkpoint, and images at it.
fn newest(cluster: &Cluster) -> (Generation, ImagesSeen) {
    (cluster.newest_from, cluster.newest.as_ref().map(|stored| stored.images).unwrap_or_default())
}

/// Whether a generation was formed that starts from the most advanced state that one of it holds: from the checkpoint
/// if nobody does, or if it is to go back.
fn starts_from_what_is_held(before: &Cluster, after: &Cluster) -> bool {
    let holders = after.members.values().filter(|member| member.is_placed() && member.standing.has_state);
    let held = holders.map(|member| member.standing.images).max().filter(|_| !after.formation.rollback);
    let stored = after.newest.as_ref().map(|stored| stored.images).unwrap_or_default();
    after.generation > before.generation && after.images == held.unwrap_or(stored)
}

/// What is said of another generation, or on a stream that was replaced, does not change progress.
fn only_the_generation_at_work_is_heard(before: &Cluster, event: &Event, after: &Cluster) -> Result<(), Broken> {
    let (worker, session, generation) = match event {
        Event::Progress { worker, session, standing } => (worker, *session, standing.generation),
        Event::Stored { worker, session, generation, .. } => (worker, *session, *generation),
        _ => return Ok(()),
    };
    let heard = before.members.get(worker).is_some_and(|m| m.session() == Some(session) && m.rank.is_some())
        && generation == before.generation;
    if heard || before.images() == after.images() || starts_from_what_is_held(before, after) {
        Ok(())
    } else {
        Err("nothing of an older generation is accepted")
    }
}
