//! The shell around `coordinator-core`: messages into events, actions into messages and signals, as the real one does it.

use crate::invariants;
use crate::plan::{Millis, Plan};
use crate::streams::{Counted, Down, Up};
use crate::world::{Item, Step, Timer, World, tell};
use common::ids::Generation;
use coordinator_core::invariants::History as Observed;
use coordinator_core::{Action, Cluster, Event, ExitStatus, Force, Outcome, Phase, Reason, SessionId, WorkerId, step};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Between two looks at the clock.
const TICK: Millis = 100;

/// The coordinator's process.
pub(crate) struct Coordinator {
    pub cluster: Cluster,
    observed: Observed,
    sessions: BTreeMap<SessionId, usize>,
    next_session: u64,
    spawned: u32,
    last_beat: Millis,
    beat: Millis,
    /// Stopped until then.
    pub paused: Millis,
    pub deferred: Vec<Item>,
    /// What its clock is ahead of the true one.
    pub skew: i64,
    pub alive: bool,
}

impl Coordinator {
    pub(crate) fn new(plan: &Plan) -> Self {
        let beat = (plan.policy.patience.as_millis() as Millis / 4).min(500);
        Self {
            cluster: Cluster::new(plan.policy.clone(), Generation(0), None),
            observed: Observed::default(),
            sessions: BTreeMap::new(),
            next_session: 0,
            spawned: 0,
            last_beat: 0,
            beat,
            paused: 0,
            deferred: Vec::new(),
            skew: 0,
            alive: true,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.alive
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused > 0
    }

    pub(crate) fn phase(&self) -> Phase {
        self.cluster.phase()
    }
}

impl World {
    pub(crate) fn clock(&mut self) -> Step {
        if !self.coordinator.alive {
            return Ok(());
        }
        self.push(self.now + TICK, Item::Clock);
        self.feed(Event::Clock)?;
        if self.now >= self.coordinator.last_beat + self.coordinator.beat {
            self.coordinator.last_beat = self.now;
            for stream in self.coordinator.sessions.values().copied().collect::<Vec<_>>() {
                self.beat(stream);
            }
        }
        if self.healed && self.coordinator.alive {
            let policy = &self.plan.policy;
            let bound = policy.startup + policy.patience * 6 + Duration::from_secs(30);
            invariants::the_run_gets_on(self.now - self.moved, bound.as_millis() as Millis)?;
        }
        Ok(())
    }

    fn beat(&mut self, stream: usize) {
        let received = self.workers[self.streams[stream].worker].received;
        self.send_down(stream, Down::Beat(received));
    }

    pub(crate) fn joined(&mut self, stream: usize) -> Step {
        self.coordinator.next_session += 1;
        let session = SessionId(self.coordinator.next_session);
        self.streams[stream].session = Some(session);
        self.coordinator.sessions.insert(session, stream);
        self.workers[self.streams[stream].worker].lost = false;
        let worker = &self.workers[self.streams[stream].worker];
        let (id, peer) = (worker.name.clone(), worker.peer.clone());
        self.send_down(stream, Down::Opened);
        self.beat(stream);
        self.feed(Event::Joined { worker: id, session, peer, device: String::new(), host: String::new() })
    }

    pub(crate) fn said(&mut self, stream: usize, message: Up) -> Step {
        let w = self.streams[stream].worker;
        // its reader has ended
        let Some(session) = self.streams[stream].session.filter(|s| self.coordinator.sessions.contains_key(s)) else {
            return Ok(());
        };
        let worker = self.workers[w].name.clone();
        match message {
            Up::Progress(standing) => self.feed(Event::Progress { worker, session, standing }),
            Up::Counted(sequence, body) => {
                if sequence <= self.workers[w].received {
                    return Ok(());
                }
                self.workers[w].received = sequence;
                match body {
                    Counted::Stored { generation, stored } => {
                        let before = self.coordinator.cluster.newest().cloned();
                        self.feed(Event::Stored { worker, session, generation, stored })?;
                        let newest =
                            self.coordinator.cluster.newest().filter(|newest| Some(*newest) != before.as_ref());
                        let state = newest.and_then(|newest| self.store.get(&newest.manifest));
                        state.map_or(Ok(()), |state| {
                            invariants::a_checkpoint_is_of_the_one_history(*state, &self.history)
                        })
                    }
                    Counted::Leave { exit, images } => {
                        let images = common::ids::ImagesSeen(images);
                        self.feed(Event::Left { worker, session, exit, message: String::new(), images })
                    }
                }
            }
            Up::Join | Up::Fin => Ok(()),
        }
    }

    /// The reader of a stream came to its end.
    pub(crate) fn stream_ended(&mut self, stream: usize) -> Step {
        let Some(session) = self.streams[stream].session.filter(|_| self.coordinator.alive) else { return Ok(()) };
        let worker = self.workers[self.streams[stream].worker].name.clone();
        self.coordinator.sessions.remove(&session);
        self.feed(Event::Disconnected { worker, session })
    }

    pub(crate) fn child_exited(&mut self, w: usize, status: ExitStatus) -> Step {
        if !self.coordinator.alive {
            return Ok(());
        }
        let worker = self.workers[w].name.clone();
        self.feed(Event::ChildExited { worker, status, last_error: None })
    }

    /// Hands an event to the core, and does what it orders.
    pub(crate) fn feed(&mut self, event: Event) -> Step {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if !self.coordinator.alive {
                return Ok(());
            }
            let now = Duration::from_millis((self.now as i64 + self.coordinator.skew).max(0) as u64);
            let before = self.coordinator.cluster.clone();
            let actions = step(&mut self.coordinator.cluster, event.clone(), now);
            (self.coordinator.observed)
                .observe(&before, &event, &actions, &self.coordinator.cluster)
                .map_err(|invariant| invariants::Broken { invariant, found: format!("{event:?}: {actions:?}") })?;
            if before.phase() != self.coordinator.phase() {
                self.gets_on();
            }
            for action in actions {
                self.perform(action, &mut events)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) -> Step {
        let (session, message) = match action {
            Action::Spawn { slot } => {
                events.push_back(self.spawn(slot));
                return Ok(());
            }
            Action::Kill { worker, force } => {
                if let Some(w) = self.find(&worker) {
                    tell!(self, "{force:?} to {worker}");
                    let at = self.now + self.net.between(1, 20);
                    match force {
                        Force::Kill => self.push(at, Item::Die(w)),
                        Force::Term => self.push(at, Item::Worker(w, Timer::Term)),
                    }
                }
                return Ok(());
            }
            Action::Report(reason) => return self.judge_report(&reason),
            Action::Finish(outcome) => return self.conclude_run(&outcome),
            Action::Refuse { session, refusal } => {
                tell!(self, "refused: {refusal}");
                if let Some(stream) = self.coordinator.sessions.remove(&session) {
                    self.send_down(stream, Down::Refused);
                    self.send_down(stream, Down::Fin);
                    self.push(self.now, Item::Ended(stream));
                }
                return Ok(());
            }
            Action::Welcome { session, .. } => (session, Down::Welcome),
            Action::Assign { worker, session, assignment } => {
                tell!(self, "{worker} is to be rank {} of {}", assignment.rank, assignment.generation);
                (session, Down::Assign(assignment))
            }
            Action::SendStop { worker, session, generation, .. } => {
                tell!(self, "{worker} is to stop {generation:?}");
                (session, Down::Stop(generation))
            }
            Action::Abort { worker, session, generation, reason } => {
                tell!(self, "{worker} is to leave {generation}: {reason}");
                (session, Down::Abort(generation))
            }
            Action::Regroup { session, generation, .. } => (session, Down::Regroup(generation)),
            Action::SendCheckpoint { session, .. } => (session, Down::Checkpoint),
        };
        if let Some(stream) = self.coordinator.sessions.get(&session).copied() {
            self.send_down(stream, message);
        }
        Ok(())
    }

    fn judge_report(&mut self, reason: &Reason) -> Step {
        tell!(self, "coordinator: {reason}");
        if let (Reason::Formed { generation, .. }, Some((stumbles, time))) = (reason, self.plan.stumbles)
            && generation.0 == stumbles
            && self.now < self.plan.healed
        {
            let until = (self.now + time).min(self.plan.healed);
            self.pause_coordinator(until);
            let w = self.net.below(self.workers.len() as u64) as usize;
            let at = self.now + self.net.between(20, time / 2);
            self.push(at, Item::Trouble(w));
        }
        let Reason::Lost { worker, cause, .. } = reason else { return Ok(()) };
        let Some(w) = self.find(worker) else { return Ok(()) };
        // it may be told again when the run ends for it, even after it came back
        let back = self.coordinator.cluster.members().any(|(id, _)| id == worker);
        if back || std::mem::replace(&mut self.workers[w].lost, true) {
            return Ok(());
        }
        let worker = &self.workers[w];
        let excused = !worker.alive
            || worker.leaves()
            || worker.is_orphan()
            || self.now <= worker.excused
            || self.coordinator.cluster.is_over();
        invariants::nobody_is_evicted_without_a_cause(&worker.id, cause, excused)
    }

    fn spawn(&mut self, slot: u32) -> Event {
        if self.net.happens(self.plan.start_fails) {
            return Event::NotSpawned { slot, error: "no such file".to_owned() };
        }
        self.coordinator.spawned += 1;
        let w = self.add_worker(Some(slot));
        tell!(self, "{} is started for place {slot}", self.workers[w].id);
        self.push(self.now, Item::Worker(w, Timer::Boot));
        Event::Spawned { slot, worker: self.workers[w].name.clone(), pid: 100 + w as u32 }
    }

    pub(crate) fn find(&self, worker: &WorkerId) -> Option<usize> {
        // the newest is asked for most
        self.workers.iter().rposition(|w| w.name == *worker)
    }

    /// The run is over: whoever is still connected hears it, and children are reaped.
    fn conclude_run(&mut self, outcome: &Outcome) -> Step {
        tell!(self, "the run is over: {} (exit {:?})", outcome.reason, outcome.exit);
        self.coordinator.alive = false;
        let newest = outcome.newest.as_ref();
        let stored = newest.and_then(|newest| self.store.get(&newest.manifest)).copied();
        for stream in std::mem::take(&mut self.coordinator.sessions).into_values() {
            self.send_down(stream, Down::Refused);
            self.send_down(stream, Down::Fin);
        }
        for w in 0..self.workers.len() {
            if self.workers[w].local && self.workers[w].alive {
                self.push(self.now + 1, Item::Die(w));
            }
        }
        if let Some(state) = stored {
            invariants::a_checkpoint_is_of_the_one_history(state, &self.history)?;
        }
        // the last word of it may have been lost: what counts is what a resume would find
        let found = self.store.values().copied().max_by_key(|&state| {
            let node = self.history.node(state);
            (node.generation, node.depth)
        });
        invariants::an_end_is_stored(outcome, found, &self.history)
    }

    pub(crate) fn crash_coordinator(&mut self) {
        self.coordinator.alive = false;
        for stream in std::mem::take(&mut self.coordinator.sessions).into_values() {
            self.send_down(stream, Down::Fin);
        }
    }
}
