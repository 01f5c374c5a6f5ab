//! A worker's training thread, as `worker` runs it: it meets the other ranks, agrees with them on the state, takes steps, stores, and
//! leaves or waits. What it trains is only counted.

use crate::history::{BEGINNING, State};
use crate::invariants;
use crate::plan::Millis;
use crate::ranks::{Said, Saved};
use crate::streams::Counted;
use crate::worker::Held;
use crate::world::{Item, Step, Timer, World, tell};
use common::checkpoint::ManifestKey;
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use common::schedule::StateVersion;
use coordinator_core::{Assignment, Stored};
use std::rc::Rc;
use std::sync::Arc;
use worker_core::{Activity, After, Agreed, Agreement, Ending, FLAGS, Flags, after, agree};

/// What a training thread is at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Job {
    Preparing,
    Waiting,
    Meeting,
    Versions,
    Word {
        line: Generation,
        state: State,
        source: u32,
        shared: bool,
    },
    Share {
        line: Generation,
        state: State,
        saved: Option<Saved>,
    },
    Restoring(State),
    Compute(Flags),
    Reduce,
    Conclude(Agreed),
    Finish(Ending, Stage),
    /// It stores its state as a world of its own.
    Alone,
    Leaving,
}

/// How far the last checkpoint of a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stage {
    /// Waits for a commit under way before anything else.
    Before {
        again: bool,
    },
    /// Waits for its own share.
    Share {
        again: bool,
    },
    Conclude {
        again: bool,
    },
    Commit {
        again: bool,
    },
    Held,
    Barrier,
}

/// The checkpoints of a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Storing {
    parent: Option<Saved>,
    candidate: Option<Saved>,
    in_flight: Option<InFlight>,
    committing: Option<Committing>,
    last: Option<u64>,
    complete: Option<u64>,
    stored_at: Option<u64>,
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    number: u64,
    state: State,
    images: u64,
    whole: bool,
    /// Whether it is stored, once that is known.
    share: Option<bool>,
}

#[derive(Clone, Debug)]
struct Committing {
    number: u64,
    key: ManifestKey,
    state: State,
    generation: Generation,
    images: u64,
    done: Option<bool>,
}

impl Storing {
    fn turn_to(&mut self, parent: Option<Saved>) {
        self.last = parent.map(|saved| saved.images);
        self.complete = parent.filter(|saved| saved.whole).map(|saved| saved.images);
        self.stored_at = self.complete;
        self.parent = parent;
        (self.candidate, self.in_flight) = (None, None);
    }

    fn is_due(&self, images: u64, every: u64) -> bool {
        self.in_flight.is_none() && every > 0 && images / every > self.last.unwrap_or(0) / every
    }
}

impl World {
    fn work_for(&mut self, w: usize, time: Millis) {
        self.workers[w].work += 1;
        let work = self.workers[w].work;
        self.push(self.now + time, Item::Worker(w, Timer::Work(work)));
    }

    /// Every rank must be there within this time.
    pub(crate) fn time_to_meet(&self) -> Millis {
        self.peer_silence() + self.plan.policy.patience.as_millis() as Millis
    }

    pub(crate) fn prepare(&mut self, w: usize) {
        self.workers[w].progress.activity = Activity::Data;
        let time = self.net.between(10, self.plan.start);
        self.work_for(w, time);
    }

    pub(crate) fn train(&mut self, w: usize, timer: Timer) -> Step {
        match timer {
            Timer::Work(work) if work == self.workers[w].work => self.work_is_done(w),
            Timer::Call(mesh, all, state) if self.workers[w].mesh.is_some_and(|(mine, _)| mine == mesh) => {
                self.workers[w].waiting = false;
                self.call_is_through(w, &all, state)
            }
            Timer::MeshBroken(mesh) if self.workers[w].mesh.is_some_and(|(mine, _)| mine == mesh) => self.mesh_fails(w),
            Timer::Unreached(mesh, peer) => self.unreached(w, mesh, peer),
            Timer::Share(number) => {
                let fails = self.now < self.store_fails;
                if let Some(flight) = self.workers[w].storing.in_flight.as_mut().filter(|f| f.number == number) {
                    flight.share = Some(!fails);
                }
                match self.workers[w].job {
                    Job::Finish(ending, Stage::Share { again }) => self.finish(w, ending, Stage::Share { again }),
                    Job::Alone => self.commit_alone(w),
                    _ => Ok(()),
                }
            }
            Timer::Commit(number) => self.commit_ends(w, number),
            Timer::Unhang if matches!(self.workers[w].job, Job::Compute(_)) && self.workers[w].hung <= self.now => {
                self.workers[w].hung = 0;
                self.work_for(w, 1);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn work_is_done(&mut self, w: usize) -> Step {
        match self.workers[w].job {
            Job::Preparing => {
                self.workers[w].progress.activity = Activity::Join;
                self.wait(w, "")
            }
            Job::Meeting => {
                self.workers[w].unreached = self.missing(w);
                self.lose_generation(w, "not all ranks came")
            }
            Job::Restoring(_) if self.now < self.store_hangs => {
                let rest = self.store_hangs - self.now;
                self.excuse(w, self.store_hangs);
                self.work_for(w, rest + 1);
                Ok(())
            }
            Job::Restoring(_) if self.now < self.store_fails => self.leave(w, Exit::Storage),
            Job::Restoring(state) => {
                let generation = self.generation(w);
                let position = self.history.node(state).position;
                let saved = Saved { images: position.images, whole: position.step == 0 };
                self.start(w, Held { state, line: generation }, Some(saved))
            }
            Job::Compute(_) if self.workers[w].hung > self.now => Ok(()),
            Job::Compute(flags) => {
                let Some(held) = self.workers[w].held else { return Ok(()) };
                let images = self.history.node(held.state).position.images;
                if self.plan.poison.is_some_and(|poison| images >= poison) {
                    return self.lose_generation(w, "the step fails");
                }
                self.workers[w].job = Job::Reduce;
                let samples = self.my_samples(w, held.state);
                self.say_to_ranks(w, Said::Step { state: held.state, flags, samples })
            }
            _ => Ok(()),
        }
    }

    /// The generation is over, wherever this rank is in it.
    pub(crate) fn mesh_fails(&mut self, w: usize) -> Step {
        self.workers[w].mesh_failed = true;
        let blocked = match self.workers[w].job {
            Job::Meeting => true,
            Job::Compute(_) => self.workers[w].hung == 0,
            _ => self.workers[w].waiting,
        };
        if blocked { self.lose_generation(w, "a peer is gone") } else { Ok(()) }
    }

    /// A rank is out of its generation against its will.
    pub(crate) fn lose_generation(&mut self, w: usize, why: &str) -> Step {
        self.ends(w, Err(Exit::WorkerLost), why)
    }

    fn ends(&mut self, w: usize, ended: Result<Ending, Exit>, why: &str) -> Step {
        self.leave_ranks(w, ended.is_ok());
        self.workers[w].work += 1;
        let dismissed = ended.is_err() && self.is_dismissed(w);
        match after(ended, dismissed) {
            After::Wait => {
                let generation = self.generation(w);
                tell!(self, "{} is out of {generation}: {why}", self.workers[w].id);
                self.report(w, Activity::Join, 0.0);
                self.wait(w, why)
            }
            After::Leave(exit) => self.leave(w, exit),
        }
    }

    pub(crate) fn take_part(&mut self, w: usize, assignment: Assignment) -> Step {
        let (generation, rank, peers) = (assignment.generation, assignment.rank.0, Arc::clone(&assignment.peers));
        self.report(w, Activity::Form, 0.0);
        self.workers[w].job = Job::Meeting;
        self.workers[w].mesh_failed = self.is_aborted(w);
        self.workers[w].assignment = Some(assignment);
        self.workers[w].unreached = None;
        self.work_for(w, self.time_to_meet());
        self.meet(w, generation, &peers, rank)
    }

    fn call_is_through(&mut self, w: usize, all: &Rc<[Said]>, state: Option<State>) -> Step {
        match self.workers[w].job {
            Job::Meeting => {
                self.workers[w].work += 1;
                self.report(w, Activity::Restore, 0.0);
                self.workers[w].job = Job::Versions;
                if self.workers[w].assignment.as_ref().is_some_and(|assignment| assignment.rollback) {
                    return self.begin(w);
                }
                let version = self.workers[w]
                    .held
                    .map(|held| (StateVersion::new(held.line, self.history.node(held.state).position), held.state));
                self.say_to_ranks(w, Said::Version(version))
            }
            Job::Versions => {
                let versions: Vec<_> =
                    all.iter().map(|said| if let Said::Version(version) = said { *version } else { None }).collect();
                let told: Vec<_> = versions.iter().map(|version| version.map(|(version, _)| version)).collect();
                let Some(Agreement { latest, source, behind }) = agree(&told) else { return self.begin(w) };
                let Some((_, state)) = versions[source as usize] else { return self.begin(w) };
                let Some((mesh, rank)) = self.workers[w].mesh else { return Ok(()) };
                self.meshes[mesh].held = versions.iter().flatten().map(|(_, state)| *state).collect();
                let (shared, filled) = (!behind.is_empty(), behind.contains(&(rank as u32)));
                // who is not filled goes on from what it has
                let mine = self.workers[w].held.map_or(BEGINNING, |held| held.state);
                let state = if filled || rank as u32 == source { state } else { mine };
                if filled {
                    self.workers[w].held = None;
                }
                self.workers[w].job = Job::Word { line: latest.line, state, source, shared };
                let mine = self.workers[w].storing.parent;
                self.say_to_ranks(w, Said::Word(if rank as u32 == source { mine } else { None }))
            }
            Job::Word { line, state, source, shared } => {
                let saved = if let Said::Word(saved) = all[source as usize] { saved } else { None };
                if shared {
                    self.workers[w].job = Job::Share { line, state, saved };
                    return self.say_to_ranks(w, Said::Share);
                }
                self.start(w, Held { state, line }, saved)
            }
            Job::Share { line, state, saved } => self.start(w, Held { state, line }, saved),
            Job::Reduce => self.step_is_taken(w, all, state),
            Job::Conclude(agreed) => {
                self.conclude(w, all);
                self.rest_of_step(w, agreed)
            }
            Job::Finish(ending, Stage::Conclude { again }) => {
                self.conclude(w, all);
                self.finish(w, ending, Stage::Commit { again })
            }
            Job::Finish(ending, Stage::Held) => {
                let complete = self.workers[w].storing.complete == Some(self.images(w));
                if all.iter().any(|said| *said != Said::Held(true)) || !complete {
                    return self.ends(w, Err(Exit::Storage), "the last state is not stored");
                }
                self.workers[w].job = Job::Finish(ending, Stage::Barrier);
                self.say_to_ranks(w, Said::Barrier)
            }
            Job::Finish(ending, Stage::Barrier) => self.ends(w, Ok(ending), ""),
            _ => Ok(()),
        }
    }

    /// From the checkpoint, or the beginning.
    fn begin(&mut self, w: usize) -> Step {
        self.workers[w].held = None;
        let generation = self.generation(w);
        let resume = self.workers[w].assignment.as_ref().and_then(|assignment| assignment.resume.clone());
        match resume.and_then(|stored| self.stored(&stored)) {
            None => self.start(w, Held { state: BEGINNING, line: generation }, None),
            Some(state) => {
                self.workers[w].job = Job::Restoring(state);
                let time = self.net.between(self.plan.store, self.plan.store * 2);
                self.work_for(w, time);
                Ok(())
            }
        }
    }

    /// All ranks have one state, and training begins.
    fn start(&mut self, w: usize, held: Held, saved: Option<Saved>) -> Step {
        let Some((index, _)) = self.workers[w].mesh else { return Ok(()) };
        self.workers[w].held = Some(held);
        self.workers[w].storing.turn_to(saved);
        self.workers[w].wishes = worker_core::Wishes::default();
        let (generation, first) = (self.meshes[index].generation, self.meshes[index].start);
        match first {
            Some(first) => invariants::one_state_after_recovery(generation, first, held.state)?,
            None => {
                self.meshes[index].start = Some(held.state);
                if self.is_latest(generation) {
                    let rollback = self.workers[w].assignment.as_ref().is_some_and(|assignment| assignment.rollback);
                    let mine = std::mem::take(&mut self.meshes[index].held);
                    let newest = self.newest_state();
                    let told = self.workers[w].assignment.as_ref().and_then(|assignment| assignment.resume.as_ref());
                    let told = told.and_then(|told| self.stored(told));
                    invariants::no_stored_step_is_taken_again(generation, told, held.state, &self.history)?;
                    invariants::one_history(generation, held.state, &mine, newest, &self.history)?;
                    if !rollback {
                        invariants::no_step_is_taken_twice(generation, &mine, held.state, &self.history)?;
                    }
                    self.history.generation = generation;
                    self.history.head = held.state;
                    self.gets_on();
                }
                tell!(self, "{generation} starts from state {} ({:?})", held.state, self.history.node(held.state));
            }
        }
        self.next_step(w)
    }

    fn images(&self, w: usize) -> u64 {
        self.workers[w].held.map_or(0, |held| self.history.node(held.state).position.images)
    }

    fn next_step(&mut self, w: usize) -> Step {
        let Some(held) = self.workers[w].held else { return Ok(()) };
        let position = self.history.node(held.state).position;
        if position.begins_cycle() && position.images >= self.plan.policy.total.0 {
            return self.finish(w, Ending::Complete, Stage::Before { again: false });
        }
        let commands = self.commands(w);
        if commands.dismissed {
            return self.lose_generation(w, "dismissed");
        }
        if let Some((mesh, _)) = self.workers[w].mesh {
            let mesh = &self.meshes[mesh];
            let asked = (!commands.regroup || mesh.asked_regroup) && (!commands.stop || mesh.asked_stop);
            invariants::wishes_are_of_this_generation(&self.workers[w].id, asked)?;
        }
        let worker = &mut self.workers[w];
        let flight = worker.storing.in_flight;
        let stored = flight.is_some_and(|flight| flight.share.is_some());
        let flags = worker.wishes.flags(commands, flight.is_some(), stored);
        (worker.job, worker.began) = (Job::Compute(flags), self.now);
        let time = self.net.between(self.plan.step, self.plan.step * 2);
        self.work_for(w, time);
        Ok(())
    }

    fn step_is_taken(&mut self, w: usize, all: &Rc<[Said]>, state: Option<State>) -> Step {
        let (Some(state), Some(before)) = (state, self.workers[w].held) else { return Ok(()) };
        let generation = self.generation(w);
        if generation == self.history.generation {
            invariants::a_step_follows_the_one_before(generation, before.state, state, &self.history)?;
            self.history.head = state;
            self.gets_on();
            if let (true, Some(asked)) = (self.healed && self.present().alive, self.stop_asked) {
                let patience = self.plan.policy.patience.as_millis() as Millis;
                let since = self.now - asked.max(self.plan.healed);
                invariants::a_stop_is_obeyed(since, patience * 5 + 5000)?;
            }
        }
        self.workers[w].held = Some(Held { state, line: generation });
        let mut sum = [0.0f32; FLAGS];
        for said in all.iter() {
            if let Said::Step { flags, .. } = said {
                sum.iter_mut().zip(flags.to_wire()).for_each(|(sum, flag)| *sum += flag);
            }
        }
        let agreed = Agreed::from_wire(sum);
        let storing = &mut self.workers[w].storing;
        if agreed.committed > 0
            && let Some(saved) = storing.candidate.take()
        {
            storing.parent = Some(saved);
        }
        if agreed.is_stored(all.len() as u32)
            && let Some(flight) = storing.in_flight
        {
            self.workers[w].job = Job::Conclude(agreed);
            return self.say_to_ranks(w, Said::Conclude(flight.share == Some(true)));
        }
        self.rest_of_step(w, agreed)
    }

    fn rest_of_step(&mut self, w: usize, agreed: Agreed) -> Step {
        if self.workers[w].storing.committing.as_ref().is_some_and(|c| c.done.is_some()) && self.take_commit(w) {
            self.workers[w].wishes.has_committed();
        }
        let Some(held) = self.workers[w].held else { return Ok(()) };
        let position = self.history.node(held.state).position;
        let worker = &mut self.workers[w];
        let due = worker.storing.is_due(position.images, self.plan.checkpoint_images);
        let in_flight = worker.storing.in_flight.is_some();
        if worker.wishes.begins(agreed, position.step == 0, in_flight, due) {
            self.begin_checkpoint(w);
        }
        let seconds = (self.now - self.workers[w].began) as f64 / 1000.0;
        self.report(w, Activity::Train, seconds);
        let world = self.workers[w].mesh.map_or(1, |(index, _)| self.meshes[index].there.len() as u32);
        match agreed.ending(world) {
            None => self.next_step(w),
            Some(Ending::Regroup) => self.ends(w, Ok(Ending::Regroup), ""),
            Some(ending) => {
                let alike = ending != Ending::Orphaned || self.workers[w].is_orphan();
                invariants::orphans_end_a_run_only_together(&self.workers[w].id, alike)?;
                self.finish(w, ending, Stage::Before { again: false })
            }
        }
    }

    fn begin_checkpoint(&mut self, w: usize) {
        let Some(Held { state, .. }) = self.workers[w].held else { return };
        let position = self.history.node(state).position;
        let (images, whole) = (position.images, position.step == 0);
        let storing = &mut self.workers[w].storing;
        storing.number += 1;
        let number = storing.number;
        storing.last = Some(images);
        storing.in_flight = Some(InFlight { number, state, images, whole, share: None });
        let at = self.stored_at();
        self.push(at, Item::Worker(w, Timer::Share(number)));
    }

    fn stored_at(&mut self) -> Millis {
        let time = self.net.between(self.plan.store, self.plan.store * 2);
        (self.now + time).max(self.store_hangs)
    }

    /// All ranks have said whether their shares are stored; rank 0 commits.
    fn conclude(&mut self, w: usize, all: &Rc<[Said]>) {
        let Some(flight) = self.workers[w].storing.in_flight.take() else { return };
        if all.iter().any(|said| *said != Said::Conclude(true)) {
            return;
        }
        let saved = Saved { images: flight.images, whole: flight.whole };
        self.workers[w].storing.complete = Some(flight.images);
        self.workers[w].storing.candidate = Some(saved);
        if self.workers[w].mesh.is_some_and(|(_, rank)| rank == 0) {
            let generation = self.generation(w);
            self.commit(w, flight, generation);
        }
    }

    fn commit(&mut self, w: usize, flight: InFlight, generation: Generation) {
        let InFlight { number, state, images, .. } = flight;
        let key = ManifestKey::new(ImagesSeen(images), generation);
        self.workers[w].storing.committing = Some(Committing { number, key, state, generation, images, done: None });
        let at = self.stored_at();
        self.push(at, Item::Worker(w, Timer::Commit(number)));
    }

    fn commit_ends(&mut self, w: usize, number: u64) -> Step {
        let fails = self.now < self.store_fails;
        let Some(committing) = self.workers[w].storing.committing.as_mut().filter(|c| c.number == number) else {
            return Ok(());
        };
        // create-only: whoever was first has it
        let free = !self.store.contains_key(&committing.key);
        committing.done = Some(!fails && free);
        if !fails && free {
            self.store.insert(committing.key, committing.state);
            tell!(self, "checkpoint {} is committed", committing.key);
        }
        match self.workers[w].job {
            Job::Finish(ending, stage @ (Stage::Before { .. } | Stage::Commit { .. })) => self.finish(w, ending, stage),
            Job::Alone => {
                // another one of its generation may have stored the same
                let safe = !free || self.take_commit(w);
                self.leave(w, if safe { Exit::Orphaned } else { Exit::Storage })
            }
            _ => Ok(()),
        }
    }

    /// A commit has ended; whether it held. The coordinator is told.
    fn take_commit(&mut self, w: usize) -> bool {
        let Some(committing) = self.workers[w].storing.committing.take() else { return false };
        let held = committing.done == Some(true);
        if held {
            self.workers[w].storing.stored_at = Some(committing.images);
            let stored = Stored { images: ImagesSeen(committing.images), manifest: committing.key.to_string() };
            self.count(w, Counted::Stored { generation: committing.generation, stored });
        } else {
            self.workers[w].storing.candidate = None;
        }
        held
    }

    /// Ends the run's storing, as far as it gets without waiting.
    fn finish(&mut self, w: usize, ending: Ending, mut stage: Stage) -> Step {
        if !matches!(self.workers[w].job, Job::Finish(..)) {
            self.report(w, Activity::Checkpoint, 0.0);
        }
        // an upload is waited for whatever becomes of the generation
        let stored = (self.now + self.plan.store * 2).max(self.store_hangs);
        self.excuse(w, stored);
        loop {
            self.workers[w].job = Job::Finish(ending, stage);
            let storing = &self.workers[w].storing;
            let committing = storing.committing.as_ref().map(|committing| committing.done.is_some());
            stage = match stage {
                Stage::Before { again } => match committing {
                    Some(false) => return Ok(()),
                    Some(true) => {
                        self.take_commit(w);
                        Stage::Share { again }
                    }
                    None => Stage::Share { again },
                },
                Stage::Share { again } => match storing.in_flight {
                    None => Stage::Commit { again },
                    Some(InFlight { share: None, .. }) => return Ok(()),
                    Some(InFlight { share: Some(stored), .. }) => {
                        self.workers[w].job = Job::Finish(ending, Stage::Conclude { again });
                        return self.say_to_ranks(w, Said::Conclude(stored));
                    }
                },
                Stage::Commit { again } => match committing {
                    Some(false) => return Ok(()),
                    _ => {
                        if committing == Some(true) {
                            self.take_commit(w);
                        }
                        if !again && self.workers[w].storing.complete != Some(self.images(w)) {
                            self.begin_checkpoint(w);
                            Stage::Share { again: true }
                        } else {
                            Stage::Held
                        }
                    }
                },
                Stage::Held => {
                    let storing = &self.workers[w].storing;
                    let first = self.workers[w].mesh.is_some_and(|(_, rank)| rank == 0);
                    let held = !first || storing.stored_at == Some(self.images(w));
                    return self.say_to_ranks(w, Said::Held(held));
                }
                Stage::Conclude { .. } | Stage::Barrier => return Ok(()),
            };
        }
    }

    /// Nobody is there to form another generation: what this worker holds is stored.
    pub(crate) fn store_alone(&mut self, w: usize) -> Step {
        if self.workers[w].held.is_none() {
            return self.leave(w, Exit::Orphaned);
        }
        self.report(w, Activity::Checkpoint, 0.0);
        self.workers[w].job = Job::Alone;
        let parent = self.workers[w].storing.parent;
        self.workers[w].storing.turn_to(parent);
        if self.workers[w].storing.complete == Some(self.images(w)) {
            return self.leave(w, Exit::Orphaned);
        }
        self.begin_checkpoint(w);
        Ok(())
    }

    fn commit_alone(&mut self, w: usize) -> Step {
        let generation = self.generation(w);
        match self.workers[w].storing.in_flight.take() {
            Some(flight) if flight.share == Some(true) => {
                self.commit(w, flight, generation);
                Ok(())
            }
            _ => self.leave(w, Exit::Storage),
        }
    }
}
