//! The sole owner of the cluster: takes what has come in, has the core record and judge it, performs what it orders.
//!
//! Decisions are `coordinator_core`'s. What is here is translation: messages into events, actions into messages and signals,
//! both into news for the operator. Nothing here waits for a worker, a disk or a store while an input is due, but after an absence
//! (`absence`), in which it may have been replaced. What is ordered is done in `orders`.

mod absence;
mod orders;

use crate::admission::Token;
use crate::chaos::Chaos;
use crate::display::Display;
use crate::journal::Journal;
use crate::records::Records;
use crate::render::News;
use crate::server::{Beats, Input, Outbox};
use crate::tenure::Tenure;
use crate::view::{self, Facts, Reported};
use crate::wire::{Places, TEXT_MAX, cut};
use children::lines::{Level, message};
use children::supervisor::{ChildEvent, Recipe, Supervisor};
use common::config::resolved::Model;
use common::exit::Exit;
use common::health::Health;
use common::ids::{Generation, ImagesSeen};
use common::metrics;
use coordinator_core::{
    Cluster, Command, Event, Member, Outcome, Policy, Process, Reason, SessionId, Stored, WorkerId,
};
use rpc::from_worker::Body;
use rpc::to_worker;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use storage::{Lease, Run};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Between two looks for signs of life without news: a small part of any patience.
const LISTEN: Duration = Duration::from_millis(20);
const LISTEN_MIN: Duration = Duration::from_millis(2);
/// Of signs of life for the workers there are a thousand in a second at most.
const BEAT_EACH: Duration = Duration::from_millis(1);
/// Last lines of each worker that are shown when it is lost.
const TAIL: usize = 24;
/// Lost workers whose last lines are kept.
const TAILS: usize = 8;
/// After the end, for the last words to workers elsewhere.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// After the end, for giving the run back in its store.
const LAST_PULSE: Duration = Duration::from_secs(20);
/// The same after a second interrupt.
const LAST_PULSE_IN_A_HURRY: Duration = Duration::from_secs(1);

/// What is to be driven.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What does not change.
    pub facts: Facts,
    /// JSON of the configuration, as workers get it.
    pub config: String,
    /// Its networks: what their losses mean follows from them.
    pub model: Model,
    /// Patience and places.
    pub policy: Policy,
    /// Between two signs of life for the workers.
    pub beat: Duration,
    /// How long workers wait for a coordinator.
    pub orphan_patience: Duration,
    /// The last generation that the run had; the first one formed is larger.
    pub generation: Generation,
    /// Checkpoint to start from.
    pub resume: Option<Stored>,
    /// How local workers are started.
    pub recipe: Recipe,
    /// The command with which a run that is not complete goes on.
    pub resume_with: String,
    /// What the secrets of generations are made of.
    pub token: Token,
}

/// How the drive of a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Drive {
    /// The run is over.
    Over(Outcome),
    /// Another coordinator has taken it over; its workers live.
    Replaced(Lease),
}

/// What keeps a run for a successor, and from other coordinators.
#[derive(Debug)]
pub struct Keep {
    /// On this machine.
    pub journal: Journal,
    /// Against others.
    pub tenure: Tenure,
    /// In the store.
    pub run: Run,
}

/// One run at work.
pub struct Driver<'a> {
    plan: Plan,
    cluster: Cluster,
    sessions: BTreeMap<SessionId, (WorkerId, Outbox)>,
    /// The places that were given last.
    places: Option<Places>,
    /// Highest sequence of each worker that has arrived.
    received: BTreeMap<WorkerId, u64>,
    keep: Keep,
    /// The generation that was found at work.
    found: Option<Generation>,
    /// When the last input was taken.
    turned: Instant,
    /// When a worker was last heard.
    heard: Instant,
    supervisor: Supervisor,
    records: &'a mut Records,
    display: &'a mut Display,
    reported: Reported,
    tails: BTreeMap<WorkerId, VecDeque<String>>,
    started: Instant,
    last_beat: Instant,
    signals: u32,
    chaos: Chaos,
    /// When training began.
    trains_since: Option<Instant>,
    /// Local workers started so far.
    spawned: u32,
    health: Health,
}

impl<'a> Driver<'a> {
    /// A driver that has not started anything. A run that is taken over goes on from what the journal holds; any other
    /// begins as the plan says.
    #[must_use]
    pub fn new(
        plan: Plan,
        keep: Keep,
        mut supervisor: Supervisor,
        records: &'a mut Records,
        display: &'a mut Display,
    ) -> Self {
        let memory = keep.journal.memory();
        let cluster = match plan.facts.taken_over {
            true => Cluster::recovered(plan.policy.clone(), &memory.entries()),
            false => Cluster::new(plan.policy.clone(), plan.generation, plan.resume.clone()),
        };
        let mut tails = BTreeMap::new();
        for (worker, _, pid) in &memory.processes {
            supervisor.adopt(worker, *pid);
            tails.insert(worker.clone(), VecDeque::new());
        }
        let found = plan.facts.taken_over.then(|| cluster.generation());
        let now = Instant::now();
        Self {
            health: Health::new(&plan.model),
            plan,
            cluster,
            sessions: BTreeMap::new(),
            places: None,
            received: BTreeMap::new(),
            keep,
            found,
            turned: now,
            heard: now,
            supervisor,
            records,
            display,
            reported: Reported::default(),
            tails,
            started: now,
            last_beat: now,
            signals: 0,
            spawned: 0,
            chaos: Chaos::default(),
            trains_since: None,
        }
    }

    /// Strikes its own workers as the plan says.
    #[must_use]
    pub fn with(mut self, chaos: Chaos) -> Self {
        self.chaos = chaos;
        self
    }

    /// Starts the workers and drives the run to its end. `signals` delivers the operator's interrupts: the first asks for a
    /// stop, the second ends everything at once.
    ///
    /// # Errors
    /// A worker process cannot be started; those that were are killed.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        beats: Beats,
        mut children: mpsc::Receiver<ChildEvent>,
        signals: &mut mpsc::Receiver<()>,
    ) -> std::io::Result<Drive> {
        self.bequeath();
        self.watch_disk();
        self.feed(Event::Clock);
        let mut clock = interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listen = interval(LISTEN.min(self.plan.policy.patience / 32).max(LISTEN_MIN));
        listen.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.cluster.outcome().is_none() {
            let turn = tokio::select! {
                Some(input) = inputs.recv() => Turn::Input(Box::new(input)),
                Some(child) = children.recv() => Turn::Child(child),
                Some(()) = signals.recv() => Turn::Signal,
                _ = clock.tick() => Turn::Clock,
                _ = listen.tick() => Turn::Beats,
                lease = self.keep.tenure.replaced() => return Ok(self.give_way(lease)),
            };
            let hears = match &turn {
                // an operator is no worker
                Turn::Input(input) => !matches!(**input, Input::Asked { .. }),
                Turn::Beats => !beats.is_empty(),
                Turn::Child(_) | Turn::Signal | Turn::Clock => false,
            };
            if let Some(lease) = self.come_back(hears, matches!(turn, Turn::Signal), signals).await {
                return Ok(self.give_way(lease));
            }
            match turn {
                Turn::Input(input) => {
                    self.input(*input);
                    self.drain(&mut inputs);
                    self.judge();
                }
                Turn::Child(child) => self.child(child),
                Turn::Signal => self.signal(),
                Turn::Clock => self.clock(),
                Turn::Beats => {
                    // what was said before a beat was kept is heard before it, but for what comes just now: both say much the same
                    self.drain(&mut inputs);
                    for (session, (worker, standing)) in beats.take() {
                        self.note(Event::Progress { worker, session, standing });
                    }
                    self.judge();
                }
            }
        }
        self.finish(inputs).await
    }

    /// Another coordinator has taken the run over: nothing more is ordered, and nobody harmed.
    fn give_way(mut self, lease: Lease) -> Drive {
        self.supervisor.release();
        Drive::Replaced(lease)
    }

    /// Takes all that has arrived meanwhile: a thousand workers that say the same are judged once.
    fn drain(&mut self, inputs: &mut mpsc::Receiver<Input>) {
        for _ in 0..inputs.max_capacity() {
            match (self.cluster.outcome(), inputs.try_recv()) {
                (None, Ok(input)) => self.input(input),
                _ => break,
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Joined { session, join, outbox } => {
                let worker = WorkerId(join.worker_id);
                self.sessions.insert(session, (worker.clone(), outbox));
                self.beat(session);
                self.note(Event::Joined {
                    worker,
                    session,
                    peer: join.peer_address,
                    device: join.device,
                    host: join.host,
                });
            }
            Input::Stands { worker, session, standing } => self.note(Event::Progress { worker, session, standing }),
            Input::Said { worker, session, sequence, body } => {
                if sequence > 0 {
                    let received = self.received.entry(worker.clone()).or_default();
                    if sequence <= *received {
                        return;
                    }
                    *received = sequence;
                }
                self.said(worker, session, body);
            }
            Input::Ended { worker, session } => {
                self.sessions.remove(&session);
                self.note(Event::Disconnected { worker, session });
            }
            Input::Asked { command, reply } => {
                if let Some(command) = command {
                    self.feed(Event::Operator(command));
                }
                let status = view::status(&self.plan.facts, &self.cluster, &self.reported);
                // a status is plain data: it has no value that JSON lacks
                let text = serde_json::to_string(&status).unwrap_or_default();
                // who asked may have gone
                let _ = reply.send(text);
            }
        }
    }

    fn said(&mut self, worker: WorkerId, session: SessionId, body: Body) {
        match body {
            // the server lets neither through
            Body::Join(_) | Body::Progress(_) => {}
            Body::Tick(tick) => {
                if !self.cluster.speaks_for_all(&worker, session, Generation(tick.generation)) {
                    return;
                }
                let again = self.found == Some(Generation(tick.generation));
                match serde_json::from_str::<metrics::Event>(&tick.event) {
                    // the coordinator before had heard it, and could not say so any more
                    // but what is to be done is done, whoever heard it first
                    Ok(event) if again && !event.ends() && self.records.has(&event) => {}
                    Ok(event) => self.metric(event),
                    Err(error) => tracing::warn!("worker {worker} sent a metric that cannot be read: {error}"),
                }
            }
            Body::Stored(message) => {
                let generation = Generation(message.generation);
                let stored = Stored { images: ImagesSeen(message.images), manifest: cut(&message.manifest, 256) };
                if self.cluster.speaks_for_all(&worker, session, generation) {
                    let rpc::Stored { bytes, stall_seconds, seconds, .. } = message;
                    self.show(News::Checkpoint { stored: stored.clone(), bytes, stall_seconds, seconds });
                }
                self.note(Event::Stored { worker, session, generation, stored });
            }
            Body::Ledger(ledger) => match serde_json::from_str(&ledger.span) {
                Ok(span) => self.records.span(span),
                Err(error) => tracing::warn!("worker {worker} sent a line of the ledger that cannot be read: {error}"),
            },
            Body::Leave(leave) => {
                let (message, images) = (cut(&leave.message, TEXT_MAX), ImagesSeen(leave.images));
                self.note(Event::Left { worker, session, exit: leave.exit, message, images });
            }
        }
    }

    fn metric(&mut self, event: metrics::Event) {
        self.records.metric(&event);
        let verdicts = self.health.hear(&event);
        match event {
            metrics::Event::Tick(tick) => {
                self.reported.tick = Some(tick.clone());
                self.show(News::Tick(Box::new(tick)));
            }
            metrics::Event::Quality(quality) => {
                let name = format!("{} {}", quality.metric, quality.of).trim_end().to_owned();
                self.reported.quality.insert(name, quality.clone());
                self.show(News::Quality(quality));
            }
            metrics::Event::Verdict(verdict) => {
                let stops = verdict.what == metrics::STOP;
                self.reported.heard(&verdict);
                self.show(News::Verdict(verdict));
                if stops {
                    self.feed(Event::Operator(Command::Stop));
                }
            }
        }
        for verdict in verdicts {
            self.metric(metrics::Event::Verdict(verdict));
        }
    }

    fn child(&mut self, event: ChildEvent) {
        match event {
            ChildEvent::Line { worker, level, line, end } => {
                let rank = self.rank_of(&worker);
                self.records.log(rank, &line);
                self.supervisor.kept(&worker, end);
                if let Some(tail) = self.tails.get_mut(&worker) {
                    if tail.len() == TAIL {
                        tail.pop_front();
                    }
                    tail.push_back(cut(&message(&line), TEXT_MAX));
                }
                if level >= Level::Warn {
                    self.show(News::Log { rank, level, line: message(&line) });
                }
            }
            ChildEvent::Exited { worker, status, last_error } => {
                self.supervisor.forget(&worker);
                self.records.log("c", &format!("the process of worker {worker} ended: {status}"));
                let last_error = last_error.map(|line| cut(&line, TEXT_MAX));
                self.feed(Event::ChildExited { worker: worker.clone(), status, last_error });
                self.forget(&worker);
            }
        }
    }

    /// Of workers long gone only the last words of the latest are kept.
    fn forget(&mut self, worker: &WorkerId) {
        self.received.remove(worker);
        let known: Vec<WorkerId> = self.cluster.members().map(|(id, _)| id.clone()).collect();
        let lost: Vec<WorkerId> = self.cluster.losses().rev().take(TAILS).map(|loss| loss.worker.clone()).collect();
        self.tails.retain(|id, _| known.contains(id) || lost.contains(id));
    }

    fn signal(&mut self) {
        self.signals += 1;
        self.feed(Event::Operator(if self.signals == 1 { Command::Stop } else { Command::Kill }));
    }

    fn clock(&mut self) {
        self.feed(Event::Clock);
        self.strike();
        let all = BEAT_EACH.saturating_mul(u32::try_from(self.sessions.len()).unwrap_or(u32::MAX));
        if self.last_beat.elapsed() >= self.plan.beat.max(all.min(self.plan.policy.patience / 2)) {
            self.last_beat = Instant::now();
            for session in self.sessions.keys().copied().collect::<Vec<_>>() {
                self.beat(session);
            }
        }
        if self.display.wants_progress() {
            let status = view::status(&self.plan.facts, &self.cluster, &self.reported);
            self.display.show(&News::Progress(Box::new(status)));
        }
    }

    /// Faults on purpose.
    fn strike(&mut self) {
        let Some(since) = self.trains_since else { return };
        let local = |(id, member): (&WorkerId, &Member)| {
            let here = matches!(member.process, Process::Alive { .. });
            Some((member.rank.filter(|_| here)?.0, id.clone()))
        };
        let mut ranks: Vec<_> = self.cluster.members().filter_map(local).collect();
        ranks.sort();
        for (worker, signal) in self.chaos.due(since.elapsed(), self.cluster.images(), &ranks) {
            self.show(News::Note(format!("a fault on purpose: {signal} to worker {worker}")));
            self.supervisor.signal(&worker, signal);
        }
    }

    fn beat(&mut self, session: SessionId) {
        let Some((worker, _)) = self.sessions.get(&session) else { return };
        let received = self.received.get(worker).copied().unwrap_or_default();
        self.send(session, to_worker::Body::Beat(rpc::Beat { received, epoch: self.plan.facts.epoch }));
    }

    fn rank_of(&self, worker: &WorkerId) -> u32 {
        let member = self.cluster.members().find(|(id, _)| *id == worker).map(|(_, member)| member);
        member.and_then(|member| member.rank.map(|rank| rank.0).or(member.slot)).unwrap_or_default()
    }

    async fn finish(mut self, inputs: mpsc::Receiver<Input>) -> std::io::Result<Drive> {
        drop(inputs);
        let over = || std::io::Error::other("the run ended without an outcome");
        let outcome = self.cluster.outcome().cloned().ok_or_else(over)?;
        // who is still connected runs elsewhere
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            let message = "the run is over".into();
            self.send(session, to_worker::Body::Refused(rpc::Refused { message, again: false }));
        }
        if !self.sessions.is_empty() {
            self.sessions.clear();
            sleep(LAST_WORDS).await;
        }
        self.supervisor.kill_all();
        let worker = match &outcome.reason {
            Reason::Lost { worker, .. } => Some(worker),
            Reason::CrashLoop { .. } => self.cluster.losses().next_back().map(|loss| &loss.worker),
            _ => None,
        };
        let last_lines = worker.and_then(|worker| self.tails.remove(worker)).unwrap_or_default().into();
        let complete = matches!(outcome.reason, Reason::Complete { .. });
        let advice = (!complete && outcome.newest.is_some()).then(|| self.plan.resume_with.clone());
        if self.records.ledger().goodput().is_some() {
            self.show(News::Goodput(Box::new(self.records.ledger().clone())));
        }
        self.show(News::Ended { outcome: outcome.clone(), last_lines, advice });
        let time = if outcome.exit == Exit::Interrupted { LAST_PULSE_IN_A_HURRY } else { LAST_PULSE };
        if timeout(time, self.keep.tenure.end()).await.is_err() {
            tracing::warn!("the store was not told that this run has no coordinator any more");
        }
        Ok(Drive::Over(outcome))
    }
}

/// What happens in one turn of the loop.
enum Turn {
    Input(Box<Input>),
    Child(ChildEvent),
    Signal,
    Clock,
    Beats,
}

/// Shows news to the operator and writes them into the log.
pub fn tell(records: &mut Records, display: &mut Display, news: &News) {
    // a worker's lines are in the log already
    if !matches!(news, News::Log { .. })
        && let Some(text) = crate::render::plain(news)
    {
        for line in text.lines() {
            records.log("c", line);
        }
    }
    display.show(news);
}
