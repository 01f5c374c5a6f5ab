//! The shell around `coordinator-core`: messages into events, actions into messages and signals, as the real one does it.

use crate::invariants;
use crate::plan::{Millis, Plan};
use crate::streams::{Counted, Down, Stream, Up};
use crate::succession::{MISSED, Seat, epoch, pid};
use crate::world::{Item, Step, Timer, World, tell};
use common::ids::Generation;
use coordinator_core::invariants::History as Observed;
use coordinator_core::{
    Action, Cluster, Entry, Event, ExitStatus, Force, Outcome, PAUSE, Phase, Reason, SessionId, Stored, WorkerId, step,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Between two looks at the clock.
const TICK: Millis = 100;

/// A coordinator's process.
pub(crate) struct Coordinator {
    pub cluster: Cluster,
    pub observed: Observed,
    pub sessions: BTreeMap<SessionId, usize>,
    next_session: u64,
    /// Highest number of each worker that it has read.
    received: BTreeMap<usize, u64>,
    /// Where it listens, and on which machine.
    pub seat: Seat,
    /// When it began.
    pub born: Millis,
    /// What it has written down, and when.
    pub journal: Vec<(Millis, Entry)>,
    /// Processes of its machine that it watches.
    pub children: BTreeSet<usize>,
    last_beat: Millis,
    beat: Millis,
    /// When it last took anything up, and when it last looked who holds the run.
    pub turned: Millis,
    /// Stopped for so long that it may have been replaced: until when it waits for the store.
    pub doubts: Option<Millis>,
    /// When a worker was last heard.
    pub heard: Millis,
    /// Stopped for so long that its workers may have stored what they held, and left.
    pub catches_up: bool,
    looked: Millis,
    /// Stopped until then.
    pub paused: Millis,
    pub deferred: Vec<Item>,
    /// Nobody reaches it, and it reaches nobody, until then.
    pub cut: Millis,
    /// What its clock is ahead of the true one.
    pub skew: i64,
    pub alive: bool,
    /// Since when another may follow it: it is dead, stopped or cut off.
    pub ended: Millis,
    /// It is struck: it dies after so many more actions.
    pub dies_after: Option<u64>,
}

impl Coordinator {
    pub(crate) fn new(plan: &Plan, cluster: Cluster, seat: Seat, born: Millis) -> Self {
        let beat = (plan.policy.patience.as_millis() as Millis / 4).min(500);
        Self {
            cluster,
            observed: Observed::default(),
            sessions: BTreeMap::new(),
            next_session: 0,
            received: BTreeMap::new(),
            seat,
            born,
            journal: Vec::new(),
            children: BTreeSet::new(),
            last_beat: born,
            beat,
            turned: born,
            doubts: None,
            heard: born,
            catches_up: false,
            looked: born,
            paused: 0,
            deferred: Vec::new(),
            cut: 0,
            skew: 0,
            alive: true,
            ended: 0,
            dies_after: None,
        }
    }

    /// The first of a run.
    pub(crate) fn first(plan: &Plan) -> Self {
        Self::new(plan, Cluster::new(plan.policy.clone(), Generation(0), None), Seat::default(), 0)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused > 0
    }

    pub(crate) fn phase(&self) -> Phase {
        self.cluster.phase()
    }
}

impl World {
    /// Whether a coordinator may take something up now: none that is dead, and none that finds that it was replaced. It looks after
    /// every pause of its own, and as often as it says to the store that it lives.
    pub(crate) fn takes_up(&mut self, c: usize, of_worker: bool) -> bool {
        if !self.coordinators[c].alive {
            return false;
        }
        let pulse = self.pulse();
        let mine = &mut self.coordinators[c];
        let stopped = self.now - mine.turned;
        // whom nobody could reach was as good as stopped
        let away = if of_worker { stopped.max(self.now - mine.heard) } else { stopped };
        let paused = stopped > PAUSE.as_millis() as Millis || away >= pulse * (MISSED - 1);
        if of_worker {
            mine.heard = self.now;
        }
        mine.catches_up |= away >= self.plan.orphan_patience / 2;
        mine.turned = self.now;
        if paused || self.now >= mine.looked + pulse {
            mine.looked = self.now;
            let sees = self.now >= self.unseen_until(c);
            if sees && self.is_replaced(c) {
                self.give_way(c);
                return false;
            }
        }
        true
    }

    /// Looks for what was stored during a long pause.
    pub(crate) fn catch_up(&mut self, c: usize) -> Step {
        if !std::mem::take(&mut self.coordinators[c].catches_up) || self.now < self.unseen_until(c) {
            return Ok(());
        }
        let Some(key) = self.store.keys().next_back() else { return Ok(()) };
        let stored = Stored { images: key.images, manifest: key.to_string() };
        self.feed(c, Event::Found(stored))
    }

    pub(crate) fn clock(&mut self, c: usize) -> Step {
        self.push(self.now + TICK, Item::Clock(c));
        self.feed(c, Event::Clock)?;
        let mine = &mut self.coordinators[c];
        if self.now >= mine.last_beat + mine.beat {
            mine.last_beat = self.now;
            for stream in mine.sessions.values().copied().collect::<Vec<_>>() {
                self.beat(stream);
            }
        }
        if self.healed && c == self.last() && self.coordinators[c].alive {
            let policy = &self.plan.policy;
            let bound = policy.startup + policy.patience * 6 + Duration::from_secs(30);
            invariants::the_run_gets_on(self.now - self.moved, bound.as_millis() as Millis)?;
        }
        Ok(())
    }

    fn beat(&mut self, stream: usize) {
        let Stream { worker, coordinator, .. } = self.streams[stream];
        let received = self.coordinators[coordinator].received.get(&worker).copied().unwrap_or_default();
        self.send_down(stream, Down::Beat(received, epoch(coordinator)));
    }

    pub(crate) fn joined(&mut self, stream: usize) -> Step {
        let Stream { worker: w, coordinator: c, .. } = self.streams[stream];
        let mine = &mut self.coordinators[c];
        mine.next_session += 1;
        let session = SessionId(mine.next_session);
        mine.sessions.insert(session, stream);
        self.streams[stream].session = Some(session);
        self.workers[w].lost = false;
        let worker = &self.workers[w];
        let (id, peer) = (worker.name.clone(), worker.peer.clone());
        self.send_down(stream, Down::Opened);
        self.beat(stream);
        self.feed(c, Event::Joined { worker: id, session, peer, device: String::new(), host: String::new() })
    }

    pub(crate) fn said(&mut self, stream: usize, message: Up) -> Step {
        let Stream { worker: w, coordinator: c, session, .. } = self.streams[stream];
        // its reader has ended
        let Some(session) = session.filter(|s| self.coordinators[c].sessions.contains_key(s)) else {
            return Ok(());
        };
        let worker = self.workers[w].name.clone();
        match message {
            Up::Progress(standing) => self.feed(c, Event::Progress { worker, session, standing }),
            Up::Counted(sequence, body) => {
                let received = self.coordinators[c].received.entry(w).or_default();
                if sequence <= *received {
                    return Ok(());
                }
                *received = sequence;
                match body {
                    Counted::Stored { generation, stored } => {
                        let before = self.coordinators[c].cluster.newest().cloned();
                        self.feed(c, Event::Stored { worker, session, generation, stored })?;
                        let newest =
                            self.coordinators[c].cluster.newest().filter(|newest| Some(*newest) != before.as_ref());
                        let state = newest.and_then(|newest| self.stored(newest));
                        state.map_or(Ok(()), |state| {
                            invariants::a_checkpoint_is_of_the_one_history(state, &self.history)
                        })
                    }
                    Counted::Leave { exit, images } => {
                        let images = common::ids::ImagesSeen(images);
                        self.feed(c, Event::Left { worker, session, exit, message: String::new(), images })
                    }
                }
            }
            Up::Join | Up::Fin => Ok(()),
        }
    }

    /// The reader of a stream came to its end.
    pub(crate) fn stream_ended(&mut self, stream: usize) -> Step {
        let Stream { worker, coordinator: c, session, .. } = self.streams[stream];
        let Some(session) = session else { return Ok(()) };
        let worker = self.workers[worker].name.clone();
        self.coordinators[c].sessions.remove(&session);
        self.feed(c, Event::Disconnected { worker, session })
    }

    pub(crate) fn child_exited(&mut self, c: usize, w: usize, status: ExitStatus) -> Step {
        let worker = self.workers[w].name.clone();
        self.coordinators[c].children.remove(&w);
        self.feed(c, Event::ChildExited { worker, status, last_error: None })
    }

    /// Hands an event to the core, and does what it orders.
    pub(crate) fn feed(&mut self, c: usize, event: Event) -> Step {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mine = &mut self.coordinators[c];
            if !mine.alive {
                return Ok(());
            }
            let now = Duration::from_millis(((self.now - mine.born) as i64 + mine.skew).max(0) as u64);
            let before = mine.cluster.clone();
            let observed = mine.dies_after.is_some().then(|| mine.observed.clone());
            let actions = step(&mut mine.cluster, event.clone(), now);
            (mine.observed)
                .observe(&before, &event, &actions, &mine.cluster)
                .map_err(|invariant| invariants::Broken { invariant, found: format!("{event:?}: {actions:?}") })?;
            if c == self.last() && before.phase() != self.coordinators[c].phase() {
                self.gets_on();
            }
            for action in actions {
                if self.dies_before(c, &action) {
                    // what it did not come to do was not done
                    self.coordinators[c].observed = observed.unwrap_or_default();
                    return Ok(());
                }
                self.perform(c, action, &mut events)?;
            }
        }
        Ok(())
    }

    /// A coordinator that is struck dies between two actions, or while it writes something down: then that may be lost.
    fn dies_before(&mut self, c: usize, action: &Action) -> bool {
        let Some(actions) = &mut self.coordinators[c].dies_after else { return false };
        if *actions > 0 {
            *actions -= 1;
            return false;
        }
        if let Action::Record(entry) = action
            && self.net.happens(50)
        {
            self.coordinators[c].journal.push((self.now, entry.clone()));
        }
        self.crash(c);
        true
    }

    fn perform(&mut self, c: usize, action: Action, events: &mut VecDeque<Event>) -> Step {
        if !matches!(action, Action::Record(_) | Action::Report(_)) && self.is_replaced(c) {
            let late = self.now > self.knows_by(c);
            invariants::who_was_replaced_gives_no_orders(epoch(c), late, &action)?;
        }
        let (session, message) = match action {
            Action::Spawn { slot } => {
                events.push_back(self.spawn(c, slot));
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
            Action::Report(reason) => return self.judge_report(c, &reason),
            Action::Record(entry) => {
                self.coordinators[c].journal.push((self.now, entry));
                return Ok(());
            }
            Action::Finish(outcome) => return self.conclude_run(c, &outcome),
            Action::Refuse { session, refusal } => {
                tell!(self, "refused: {refusal}");
                if let Some(stream) = self.coordinators[c].sessions.remove(&session) {
                    let no = if refusal.is_for_now() { Down::Evicted } else { Down::Refused };
                    self.send_down(stream, no);
                    self.send_down(stream, Down::Fin);
                    self.push(self.now, Item::Ended(stream));
                }
                return Ok(());
            }
            Action::Welcome { session, .. } => (session, Down::Welcome(epoch(c))),
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
        if let Some(stream) = self.coordinators[c].sessions.get(&session).copied() {
            self.send_down(stream, message);
        }
        Ok(())
    }

    fn judge_report(&mut self, c: usize, reason: &Reason) -> Step {
        tell!(self, "coordinator {}: {reason}", epoch(c));
        if c != self.last() {
            return Ok(());
        }
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
        let cluster = &self.coordinators[c].cluster;
        let (back, over) = (cluster.members().any(|(id, _)| id == worker), cluster.is_over());
        if back || std::mem::replace(&mut self.workers[w].lost, true) {
            return Ok(());
        }
        let worker = &self.workers[w];
        let excused = !worker.alive || worker.leaves() || worker.is_orphan() || self.now <= worker.excused || over;
        invariants::nobody_is_evicted_without_a_cause(&worker.id, cause, excused)
    }

    fn spawn(&mut self, c: usize, slot: u32) -> Event {
        if self.net.happens(self.plan.start_fails) {
            return Event::NotSpawned { slot, error: "no such file".to_owned() };
        }
        let w = self.add_worker(Some(slot), self.coordinators[c].seat);
        self.coordinators[c].children.insert(w);
        tell!(self, "{} is started for place {slot}", self.workers[w].id);
        self.push(self.now, Item::Worker(w, Timer::Boot));
        Event::Spawned { slot, worker: self.workers[w].name.clone(), pid: pid(w) }
    }

    pub(crate) fn find(&self, worker: &WorkerId) -> Option<usize> {
        // the newest is asked for most
        self.workers.iter().rposition(|w| w.name == *worker)
    }

    /// The run is over: whoever is still connected hears it, and children are reaped.
    fn conclude_run(&mut self, c: usize, outcome: &Outcome) -> Step {
        tell!(self, "the run is over: {} (exit {:?})", outcome.reason, outcome.exit);
        self.coordinators[c].alive = false;
        let stored = outcome.newest.as_ref().and_then(|newest| self.stored(newest));
        for stream in std::mem::take(&mut self.coordinators[c].sessions).into_values() {
            self.send_down(stream, Down::Refused);
            self.send_down(stream, Down::Fin);
        }
        for w in std::mem::take(&mut self.coordinators[c].children) {
            self.push(self.now + 1, Item::Die(w));
        }
        if let Some(state) = stored {
            invariants::a_checkpoint_is_of_the_one_history(state, &self.history)?;
        }
        // the last word of it may have been lost: what counts is what a resume would find
        let found = self.store.values().copied().max_by_key(|&state| {
            let node = self.history.node(state);
            (node.generation, node.depth)
        });
        // a successor cannot know what the last ones had reached that failed or were killed before it came
        let head = Some(self.history.head);
        if c > 0 && self.workers.iter().any(|worker| worker.lost_with_it == head) {
            return Ok(());
        }
        invariants::an_end_is_stored(outcome, found, &self.history)
    }
}
