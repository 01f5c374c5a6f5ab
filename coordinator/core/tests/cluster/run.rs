//! A cluster, the model of its workers, and the messages between them, on virtual time.

use crate::model::{Answer, Net, Together, Worker, step_together};
use common::checkpoint::ManifestKey;
use common::ids::{Generation, ImagesSeen};
use coordinator_core::invariants::History;
use coordinator_core::{
    Action, Cluster, Entry, Event, ExitStatus, Force, Memory, OnLoss, Policy, SessionId, Stored, WorkerId, judge,
    record,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub const CLOCK: Duration = Duration::from_millis(250);
pub const BEAT: Duration = Duration::from_millis(250);
pub const STEP: Duration = Duration::from_millis(100);
/// From the start of a process until it joins, and from its welcome until it is ready.
pub const START: Duration = Duration::from_millis(500);
pub const PATIENCE: Duration = Duration::from_secs(2);
pub const TOTAL: u64 = 100_000;

/// As many workers as `workers`, all local, of which one is enough.
pub fn policy(workers: u32) -> Policy {
    Policy {
        workers,
        min_workers: 1,
        max_workers: 8,
        local: workers,
        on_loss: OnLoss::Shrink,
        failures: 3,
        total: ImagesSeen(TOTAL),
        startup: Duration::from_secs(30),
        patience: PATIENCE,
        stop: Duration::from_secs(20),
    }
}

#[derive(Clone, Debug)]
enum Item {
    Clock,
    Step,
    Beat(usize),
    Join(usize),
    Prepared(usize),
    Exit(usize, ExitStatus),
    ToCore(Event),
    ToWorker(usize, Action),
}

pub struct Run {
    pub cluster: Cluster,
    pub history: History,
    pub now: Duration,
    /// Everything that was ordered, and when.
    pub log: Vec<(Duration, Action)>,
    pub workers: Vec<Worker>,
    pub net: Net,
    /// Slots in which nothing can be started.
    pub broken_slots: BTreeSet<u32>,
    /// Slots whose workers die as soon as they run, with this code.
    pub dying_slots: BTreeMap<u32, ExitStatus>,
    /// A rank that lost a peer notices it by itself, of 100 per step.
    pub notice: u64,
    /// Images of the newest checkpoint that was really written.
    pub stored: ImagesSeen,
    /// The newest checkpoint in the store.
    newest: Option<Stored>,
    policy: Policy,
    total: ImagesSeen,
    idle: bool,
    queue: BTreeMap<(Duration, u64), Item>,
    order: u64,
    sessions: u64,
    /// The coordinator stands still until then.
    stopped_until: Duration,
    /// What coordinators wrote down.
    pub journal: Vec<Entry>,
    /// When the present coordinator began.
    since: Duration,
    /// There is no coordinator.
    pub headless: bool,
}

impl Run {
    pub fn new(policy: Policy) -> Self {
        Self::with(policy, None)
    }

    pub fn with(policy: Policy, newest: Option<Stored>) -> Self {
        let stored = newest.as_ref().map(|stored| stored.images).unwrap_or_default();
        let total = policy.total;
        let begun = Entry::Begun { generation: Generation(0), went_back: Generation(0), newest: newest.clone() };
        let mut run = Self {
            cluster: Cluster::new(policy.clone(), Generation(0), newest.clone()),
            policy,
            history: History::default(),
            now: Duration::ZERO,
            log: Vec::new(),
            workers: Vec::new(),
            net: Net::default(),
            broken_slots: BTreeSet::new(),
            dying_slots: BTreeMap::new(),
            notice: 0,
            stored,
            newest,
            total,
            idle: false,
            queue: BTreeMap::new(),
            order: 0,
            sessions: 0,
            stopped_until: Duration::ZERO,
            journal: vec![begun],
            since: Duration::ZERO,
            headless: false,
        };
        run.schedule(Duration::ZERO, Item::Clock);
        run.schedule(STEP, Item::Step);
        run
    }

    /// What is ordered has no effect.
    pub fn without_workers(policy: Policy) -> Self {
        Self { idle: true, ..Self::new(policy) }
    }

    /// The first generation is at work.
    pub fn started(policy: Policy) -> Self {
        let mut run = Self::new(policy);
        assert!(run.until(Duration::from_secs(10), |run| run.images() > 3), "{:?}", run.cluster);
        run
    }

    fn schedule(&mut self, after: Duration, item: Item) {
        self.order += 1;
        self.queue.insert((self.now + after, self.order), item);
    }

    /// Hands one event to the cluster, checks what always holds, and performs what is ordered.
    pub fn feed(&mut self, event: Event) -> Vec<Action> {
        let before = self.cluster.clone();
        if self.headless {
            return Vec::new();
        }
        let mut actions = record(&mut self.cluster, event.clone(), self.now - self.since);
        if event == Event::Clock || !self.net.happens(self.net.together) {
            actions.extend(judge(&mut self.cluster, self.now - self.since));
        }
        self.history.observe(&before, &event, &actions, &self.cluster).unwrap_or_else(|broken| {
            panic!("{broken}\nevent: {event:?}\nactions: {actions:?}\nbefore: {before:?}\nafter: {:?}", self.cluster)
        });
        for action in &actions {
            if let Action::Record(entry) = action {
                self.journal.push(entry.clone());
            }
            self.log.push((self.now, action.clone()));
            if !self.idle {
                self.perform(action);
            }
        }
        actions
    }

    fn perform(&mut self, action: &Action) {
        let (worker, session) = match action {
            Action::Spawn { slot } => return self.spawn(*slot),
            Action::Kill { worker, force } => {
                let status = ExitStatus::Signal(if *force == Force::Kill { 9 } else { 15 });
                let Some(index) = self.find(worker) else { return };
                if *force == Force::Kill || !self.workers[index].paused {
                    self.schedule(Duration::from_millis(20), Item::Exit(index, status));
                }
                return;
            }
            Action::Refuse { session, .. } => {
                let Some(index) = self.workers.iter().position(|worker| worker.session == Some(*session)) else {
                    return;
                };
                (index, *session)
            }
            Action::Welcome { worker, session }
            | Action::Assign { worker, session, .. }
            | Action::SendStop { worker, session, .. }
            | Action::Abort { worker, session, .. }
            | Action::Regroup { worker, session, .. }
            | Action::SendCheckpoint { worker, session } => {
                let Some(index) = self.find(worker) else { return };
                (index, *session)
            }
            Action::Record(_) | Action::Report(_) | Action::Finish(_) => return,
        };
        if self.workers[worker].session != Some(session) || self.workers[worker].deaf {
            return;
        }
        // the first and the last message of a stream: without them it would have no end, and a new one would begin
        let sure = matches!(action, Action::Welcome { .. } | Action::Refuse { .. });
        self.send(sure, Item::ToWorker(worker, action.clone()));
    }

    fn send(&mut self, sure: bool, item: Item) {
        if !sure && self.net.happens(self.net.loss) {
            return;
        }
        let doubled = !sure && self.net.happens(self.net.double);
        // in order, unless this one is to overtake
        let mut delay = self.net.delay;
        if !sure && self.net.happens(self.net.reorder) {
            delay = self.net.time();
        }
        if doubled {
            let later = delay + self.net.time();
            self.schedule(later, item.clone());
        }
        self.schedule(delay, item);
    }

    fn spawn(&mut self, slot: u32) {
        if self.broken_slots.contains(&slot) {
            self.schedule(Duration::ZERO, Item::ToCore(Event::NotSpawned { slot, error: "no such file".into() }));
            return;
        }
        let number = self.workers.len();
        let id = WorkerId(format!("w{slot}.{number}"));
        self.feed(Event::Spawned { slot, worker: id.clone(), pid: 100 + number as u32 });
        let index = self.add(id, true);
        if let Some(status) = self.dying_slots.get(&slot) {
            self.schedule(Duration::from_millis(50), Item::Exit(index, *status));
        }
    }

    fn add(&mut self, id: WorkerId, local: bool) -> usize {
        let index = self.workers.len();
        self.workers.push(Worker::new(id, local, format!("10.0.0.{index}:4000")));
        self.schedule(START, Item::Join(index));
        index
    }

    /// A worker starts elsewhere.
    pub fn arrive(&mut self) -> usize {
        let id = WorkerId(format!("x{}", self.workers.len()));
        self.add(id, false)
    }

    /// The coordinator stands still; what reaches it waits.
    pub fn stop_coordinator(&mut self, time: Duration) {
        self.stopped_until = self.stopped_until.max(self.now + time);
    }

    /// The coordinator is gone from one moment to the next; workers look for another one.
    pub fn kill_coordinator(&mut self) {
        self.headless = true;
        self.queue.retain(|_, item| !matches!(item, Item::ToCore(_)));
        for index in 0..self.workers.len() {
            if self.workers[index].session.take().is_some() {
                let soon = Duration::from_millis(100 + self.net.draw(400));
                self.schedule(soon, Item::Join(index));
            }
        }
    }

    /// Another coordinator begins with what is written down; on this machine, unless `elsewhere`.
    pub fn take_over(&mut self, elsewhere: bool) {
        if elsewhere {
            self.journal = self.journal.drain(..).filter_map(Entry::from_elsewhere).collect();
        }
        if self.stored > ImagesSeen(0) {
            // the store is asked, too
            let newest = self.newest.clone();
            self.journal.push(Entry::Begun { generation: Generation(0), went_back: Generation(0), newest });
        }
        self.journal = Memory::of(&self.journal).taken_over().entries();
        let policy = self.policy.clone();
        self.cluster = Cluster::recovered(policy, &self.journal);
        self.history.taken_over(&self.cluster);
        (self.headless, self.since) = (false, self.now);
        for (worker, ..) in Memory::of(&self.journal).processes {
            let dead = self.find(&worker).is_none_or(|index| !self.workers[index].alive);
            if dead {
                let exited = Event::ChildExited { worker, status: ExitStatus::Unknown, last_error: None };
                self.schedule(Duration::ZERO, Item::ToCore(exited));
            }
        }
    }

    /// A worker's stream breaks; it comes back after `away`.
    pub fn disconnect(&mut self, index: usize, away: Duration) {
        if let Some(session) = self.workers[index].session.take() {
            let worker = self.workers[index].id.clone();
            self.send(false, Item::ToCore(Event::Disconnected { worker, session }));
        }
        self.schedule(away, Item::Join(index));
    }

    /// A worker process ends.
    pub fn exit(&mut self, index: usize, status: ExitStatus) {
        let worker = &mut self.workers[index];
        if !std::mem::replace(&mut worker.alive, false) {
            return;
        }
        let (id, local, session) = (worker.id.clone(), worker.local, worker.session.take());
        if let Some(session) = session {
            self.send(false, Item::ToCore(Event::Disconnected { worker: id.clone(), session }));
        }
        if local {
            let exited = Event::ChildExited { worker: id, status, last_error: None };
            if !self.headless {
                self.send(true, Item::ToCore(exited));
            }
        }
    }

    /// A worker says farewell, then its process ends.
    pub fn leave(&mut self, index: usize, exit: u32, message: &str) {
        if self.workers[index].left {
            return;
        }
        // where it stands is said first: what precedes a farewell on its stream has arrived if that has
        self.tell(index, true);
        self.workers[index].left = true;
        let worker = &self.workers[index];
        if let (Some(session), false) = (worker.session, worker.mute) {
            let (id, message, images) = (worker.id.clone(), message.to_owned(), worker.standing.images);
            self.send(true, Item::ToCore(Event::Left { worker: id, session, exit, message, images }));
        }
        if !self.workers[index].lingers {
            let soon = Duration::from_millis(100) + self.net.delay;
            self.schedule(soon, Item::Exit(index, ExitStatus::Code(exit as i32)));
        }
    }

    /// A worker is told to go: it does so when the coordinator agrees.
    pub fn terminate(&mut self, index: usize) {
        self.workers[index].standing.leaving = true;
        self.say(index);
    }

    /// A worker's generation fails for it.
    pub fn trouble(&mut self, index: usize, trouble: &str) {
        if self.workers[index].is_in_a_generation() {
            self.workers[index].get_out(trouble);
            self.say(index);
        }
    }

    /// The generation of two workers ends because the first does not reach the second.
    pub fn part(&mut self, index: usize, other: usize) {
        let of = |worker: &Worker| worker.assignment.as_ref().map(|assignment| assignment.rank);
        if self.workers[index].is_in_a_generation() {
            let rank = of(&self.workers[other]);
            self.workers[index].get_out("a rank is silent");
            self.workers[index].standing.unreached = rank;
            self.say(index);
        }
    }

    /// A worker says where it stands.
    pub fn say(&mut self, index: usize) {
        self.tell(index, false);
    }

    fn tell(&mut self, index: usize, sure: bool) {
        let worker = &self.workers[index];
        let Some(session) = worker.session else { return };
        if worker.alive && !worker.left && !worker.paused && !worker.mute {
            let (id, standing) = (worker.id.clone(), worker.standing.clone());
            self.send(sure, Item::ToCore(Event::Progress { worker: id, session, standing }));
        }
    }

    fn join(&mut self, index: usize) {
        let worker = &self.workers[index];
        if !worker.alive || worker.left || worker.session.is_some() {
            return;
        }
        if worker.paused || worker.mute || worker.deaf || self.headless {
            return self.schedule(CLOCK, Item::Join(index));
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let (id, peer) = (worker.id.clone(), worker.peer.clone());
        self.workers[index].session = Some(session);
        let joined = Event::Joined { worker: id, session, peer, device: "cpu".into(), host: "here".into() };
        self.send(true, Item::ToCore(joined));
        if !self.workers[index].beats {
            self.schedule(Duration::ZERO, Item::Beat(index));
        }
    }

    fn handle(&mut self, item: Item) {
        match item {
            Item::Clock => {
                self.schedule(CLOCK, Item::Clock);
                self.feed(Event::Clock);
            }
            Item::ToCore(event) => drop(self.feed(event)),
            Item::Step => {
                self.schedule(STEP, Item::Step);
                self.take_steps();
            }
            Item::Beat(index) => {
                self.workers[index].beats = self.workers[index].session.is_some();
                if self.workers[index].beats {
                    self.say(index);
                    self.schedule(BEAT, Item::Beat(index));
                }
            }
            Item::Join(index) => self.join(index),
            Item::Prepared(index) => {
                let standing = &mut self.workers[index].standing;
                if standing.generation == Generation(0) && !standing.ready {
                    (standing.ready, standing.activity) = (true, "join".into());
                    self.say(index);
                }
            }
            Item::Exit(index, status) => self.exit(index, status),
            Item::ToWorker(index, action) => self.hear(index, &action),
        }
    }

    fn hear(&mut self, index: usize, action: &Action) {
        if !self.workers[index].alive || self.workers[index].left {
            return;
        }
        if self.workers[index].paused {
            return self.schedule(CLOCK, Item::ToWorker(index, action.clone()));
        }
        match self.workers[index].obey(action) {
            Answer::Nothing => {}
            Answer::Changed if self.workers[index].standing.ready => self.say(index),
            Answer::Changed => self.say(index),
            Answer::Prepare => self.schedule(START, Item::Prepared(index)),
            Answer::Leave => self.leave(index, 0, "asked to leave"),
            Answer::GiveUp if self.is_about(action, index) => self.exit(index, ExitStatus::Code(8)),
            Answer::ComeBack if self.is_about(action, index) => {
                self.workers[index].session = None;
                self.schedule(Duration::from_millis(50), Item::Join(index));
            }
            Answer::GiveUp | Answer::ComeBack => {}
        }
    }

    /// Whether a refusal ends the present stream of a worker.
    fn is_about(&self, action: &Action, index: usize) -> bool {
        matches!(action, Action::Refuse { session, .. } if self.workers[index].session == Some(*session))
    }

    fn take_steps(&mut self) {
        let total = self.total;
        let generations: BTreeSet<Generation> = (self.workers.iter())
            .filter(|worker| worker.is_in_a_generation())
            .map(|worker| worker.standing.generation)
            .collect();
        for generation in generations {
            let mut ranks: Vec<(usize, &mut Worker)> =
                self.workers.iter_mut().enumerate().filter(|(_, worker)| worker.is_in(generation)).collect();
            ranks.sort_by_key(|(_, worker)| worker.assignment.as_ref().map(|assignment| assignment.rank));
            let indices: Vec<usize> = ranks.iter().map(|(index, _)| *index).collect();
            let mut workers: Vec<&mut Worker> = ranks.into_iter().map(|(_, worker)| worker).collect();
            match step_together(&mut workers, total) {
                Together::Waited => self.notice(&indices),
                Together::Stepped => {}
                Together::Stored(images) => self.store(indices[0], images),
                Together::Finished(images) => {
                    self.store(indices[0], images);
                    for index in indices {
                        self.leave(index, 0, "done");
                    }
                }
                Together::Regrouped => indices.into_iter().for_each(|index| self.say(index)),
            }
        }
    }

    /// Ranks that have met and miss a peer may find out by themselves.
    fn notice(&mut self, indices: &[usize]) {
        for &index in indices {
            let worker = &self.workers[index];
            let short = worker.assignment.as_ref().is_some_and(|a| a.peers.len() > indices.len());
            let free = worker.met && !worker.paused && !worker.hung && !worker.stubborn;
            if short && free && self.net.happens(self.notice) {
                self.trouble(index, "a peer is gone");
            }
        }
    }

    pub fn store(&mut self, index: usize, images: ImagesSeen) {
        let worker = &self.workers[index];
        let generation = worker.standing.generation;
        let stored = Stored { images, manifest: ManifestKey::new(images, generation).to_string() };
        if images >= self.stored {
            (self.stored, self.newest) = (images, Some(stored.clone()));
        }
        let Some(session) = worker.session else { return };
        let event = Event::Stored { worker: worker.id.clone(), session, generation, stored };
        self.send(false, Item::ToCore(event));
    }

    /// Lets `time` pass, or less if `done` comes true; says whether it did.
    pub fn until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + time;
        while !done(self) {
            let Some((&(at, order), item)) = self.queue.first_key_value() else { break };
            if at > end {
                break;
            }
            let item = item.clone();
            self.queue.remove(&(at, order));
            self.now = self.now.max(at);
            if self.now < self.stopped_until && matches!(item, Item::Clock | Item::ToCore(_)) {
                self.queue.insert((self.stopped_until, order), item);
                continue;
            }
            self.handle(item);
        }
        if !done(self) {
            self.now = end;
        }
        done(self)
    }
}
