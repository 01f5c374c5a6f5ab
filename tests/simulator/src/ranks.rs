//! The ranks of one generation: calls that end when all have made them, and fail when one is gone.
//!
//! A call in which the last rank died may have ended on some of the others, and fail on the rest: then those are one step ahead.

use crate::history::State;
use crate::invariants;
use crate::plan::Millis;
use crate::world::{Item, Step, Timer, World, tell};
use common::ids::{Generation, Rank};
use common::schedule::StateVersion;
use std::rc::Rc;
use std::sync::Arc;
use worker_core::Flags;

/// Nine unanswered questions, one each second.
const PEER_SILENCE: Millis = 10_000;

/// Numbers of samples, counted from the beginning of the run: from, to.
pub(crate) type Samples = (u64, u64);

/// What a rank says in a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Said {
    Hello,
    Version(Option<(StateVersion, State)>),
    /// What belongs to the state: the newest checkpoint.
    Word(Option<Saved>),
    Share,
    Step {
        state: State,
        flags: Flags,
        /// The samples that it has shown.
        samples: Samples,
    },
    /// Whether this rank's share of a checkpoint is stored.
    Conclude(bool),
    Held(bool),
    Barrier,
}

/// A checkpoint as ranks remember it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Saved {
    pub images: u64,
    /// It was stored between two rounds.
    pub whole: bool,
}

/// One generation's mesh.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub generation: Generation,
    pub peers: Arc<[String]>,
    /// Who is there, by rank.
    pub there: Vec<Option<usize>>,
    said: Vec<Option<Said>>,
    /// The state that it started from, once one rank has.
    pub start: Option<State>,
    /// What its ranks held when they met.
    pub held: Vec<State>,
    pub broken: bool,
    /// Somebody was told to regroup, or to stop.
    pub asked_regroup: bool,
    pub asked_stop: bool,
}

impl World {
    /// A worker comes to meet the others.
    pub(crate) fn meet(&mut self, w: usize, generation: Generation, peers: &Arc<[String]>, rank: u32) -> Step {
        let same = self.meshes.iter().rev().filter(|mesh| mesh.generation == generation);
        invariants::a_generation_is_one(generation, same.into_iter().all(|mesh| mesh.peers == *peers))?;
        let found = self.meshes.iter().rposition(|mesh| mesh.generation == generation && mesh.peers == *peers);
        let index = found.unwrap_or_else(|| {
            self.meshes.push(Mesh {
                generation,
                peers: Arc::clone(peers),
                there: vec![None; peers.len()],
                said: vec![None; peers.len()],
                start: None,
                held: Vec::new(),
                broken: false,
                asked_regroup: false,
                asked_stop: false,
            });
            self.meshes.len() - 1
        });
        let place = &mut self.meshes[index].there[rank as usize];
        invariants::a_rank_is_given_once(generation, rank, place.is_none())?;
        *place = Some(w);
        self.workers[w].mesh = Some((index, rank as usize));
        for other in self.meshes[index].there.clone().into_iter().flatten() {
            self.watch_pair(w, other);
        }
        self.say_to_ranks(w, Said::Hello)
    }

    /// How long the host of a peer may say nothing.
    pub(crate) fn peer_silence(&self) -> Millis {
        (self.plan.policy.patience.as_millis() as Millis).max(PEER_SILENCE)
    }

    fn are_cut(&self, one: usize, other: usize) -> bool {
        let concerns = |from, to| (from, to) == (one, other) || (to, from) == (one, other);
        self.peers_cut.iter().any(|&(from, to, until)| self.now < until && concerns(from, to))
    }

    /// Two ranks between which a direction is cut: one's words are not acknowledged, the other's questions are not answered.
    pub(crate) fn watch_pair(&mut self, one: usize, other: usize) {
        let mesh = |w: usize| self.workers[w].mesh.map(|(mesh, _)| mesh);
        let Some(mesh) = mesh(one).filter(|mine| Some(*mine) == mesh(other)) else { return };
        if self.are_cut(one, other) {
            let at = self.now + self.peer_silence();
            for (w, peer) in [(one, other), (other, one)] {
                self.push(at, Item::Worker(w, Timer::Unreached(mesh, peer)));
            }
        }
    }

    /// Nothing of a peer's host has come for too long.
    pub(crate) fn unreached(&mut self, w: usize, mesh: usize, peer: usize) -> Step {
        let rank = |w: usize| self.workers[w].mesh.and_then(|(mine, rank)| (mine == mesh).then_some(rank));
        let (Some(_), Some(theirs), true) = (rank(w), rank(peer), self.are_cut(w, peer)) else { return Ok(()) };
        tell!(self, "{} does not reach {}", self.workers[w].id, self.workers[peer].id);
        self.workers[w].unreached = Some(Rank(theirs as u32));
        self.mesh_fails(w)
    }

    /// The first rank that a worker has not met.
    pub(crate) fn missing(&self, w: usize) -> Option<Rank> {
        let (mesh, mine) = self.workers[w].mesh?;
        let met =
            |(rank, there): (usize, &Option<usize>)| rank == mine || there.is_some_and(|other| !self.are_cut(w, other));
        let missing = self.meshes[mesh].there.iter().enumerate().position(|(rank, there)| !met((rank, there)))?;
        Some(Rank(missing as u32))
    }

    /// A rank makes a call. It ends when all have.
    pub(crate) fn say_to_ranks(&mut self, w: usize, said: Said) -> Step {
        let Some((index, rank)) = self.workers[w].mesh else { return Ok(()) };
        self.workers[w].waiting = true;
        if self.workers[w].mesh_failed {
            return self.lose_generation(w, "a peer is gone");
        }
        let mesh = &mut self.meshes[index];
        mesh.said[rank] = Some(said);
        if mesh.said.iter().any(Option::is_none) {
            return Ok(());
        }
        let all: Rc<[Said]> = mesh.said.iter_mut().filter_map(Option::take).collect();
        let (generation, there) = (mesh.generation, mesh.there.clone());
        let alike = all.iter().all(|one| std::mem::discriminant(one) == std::mem::discriminant(&all[0]));
        invariants::ranks_stay_together(generation, alike)?;
        let mut state = None;
        if let Said::Step { state: parent, .. } = all[0] {
            let together = all.iter().all(|one| matches!(one, Said::Step { state, .. } if *state == parent));
            invariants::ranks_stay_together(generation, together)?;
            state = Some(self.take_step(generation, parent, &all)?);
        }
        for other in there.into_iter().flatten() {
            let at = self.between_ranks(w, other);
            self.workers[other].call_at = at;
            self.push(at, Item::Worker(other, Timer::Call(index, Rc::clone(&all), state)));
        }
        Ok(())
    }

    /// The samples of the next step that a rank deals to itself: from its own place, and its own state.
    pub(crate) fn my_samples(&self, w: usize, state: State) -> Samples {
        let position = self.history.node(state).position;
        let shows = if position.step == 0 { u64::from(self.plan.minibatch) } else { 0 };
        let (rank, world) = self.workers[w].assignment.as_ref().map_or((0, 1), |a| (a.rank.0, a.peers.len() as u32));
        let (rank, world) = (u64::from(rank), u64::from(world));
        // earlier ranks get more
        let first = |rank: u64| position.images + shows / world * rank + rank.min(shows % world);
        (first(rank), first(rank + 1))
    }

    fn take_step(&mut self, generation: Generation, parent: State, all: &[Said]) -> Result<State, invariants::Broken> {
        let before = self.history.node(parent).position;
        let shares =
            all.iter().filter_map(|said| if let Said::Step { samples, .. } = said { Some(*samples) } else { None });
        let mut shown: Vec<u64> = shares.flat_map(|(from, to)| from..to).collect();
        shown.sort_unstable();
        let shows = if before.step == 0 { self.plan.minibatch } else { 0 };
        invariants::no_sample_is_lost_or_repeated(generation, before.images, shows, &shown)?;
        let position = before.advance(shown.len() as u32, self.plan.phases, self.plan.rounds);
        Ok(self.history.step(parent, generation, position, &shown))
    }

    /// When something that one rank sends reaches another.
    fn between_ranks(&mut self, from: usize, to: usize) -> Millis {
        let soon = self.now + self.net.below(self.plan.delay.min(10) + 2);
        let cut = self.peers_cut.iter().filter(|(a, b, _)| (*a, *b) == (from, to) || from == to && *b == to);
        cut.map(|(_, _, until)| *until).max().map_or(soon, |until| until.max(soon))
    }

    /// A rank is gone from its mesh: the others notice. Who goes in good order has said all before: what a dead one said may be lost.
    pub(crate) fn leave_ranks(&mut self, w: usize, in_order: bool) {
        let Some((index, rank)) = self.workers[w].mesh.take() else { return };
        self.workers[w].waiting = false;
        let mesh = &mut self.meshes[index];
        mesh.there[rank] = None;
        mesh.said[rank] = None;
        mesh.broken = true;
        for other in mesh.there.clone().into_iter().flatten() {
            let first = if in_order { self.workers[other].call_at } else { 0 };
            let at = (self.between_ranks(w, other) + self.net.below(10)).max(first);
            self.push(at, Item::Worker(other, Timer::MeshBroken(index)));
        }
    }
}
