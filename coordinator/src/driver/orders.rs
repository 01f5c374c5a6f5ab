//! What the core orders, done: messages to workers, processes, entries of the journal and the ledger, news for people.

use super::{Driver, tell};
use crate::render::News;
use crate::tenure::Bequest;
use crate::wire::{self, Places};
use common::ledger;
use coordinator_core::{Action, Assignment, Entry, Event, Force, Reason, SessionId, WorkerId, judge, record};
use nix::sys::signal::Signal;
use rpc::to_worker;
use std::collections::VecDeque;
use tokio::time::Instant;

impl Driver<'_> {
    pub(super) fn feed(&mut self, event: Event) {
        self.note(event);
        self.judge();
    }

    /// Takes note of an event: what follows from it is judged later in this turn.
    pub(super) fn note(&mut self, event: Event) {
        let actions = record(&mut self.cluster, event, self.started.elapsed());
        self.perform_all(actions);
    }

    pub(super) fn judge(&mut self) {
        let mut actions = judge(&mut self.cluster, self.started.elapsed());
        while self.perform_all(actions) {
            actions = judge(&mut self.cluster, self.started.elapsed());
        }
    }

    /// Says whether something came of it that is to be judged.
    fn perform_all(&mut self, actions: Vec<Action>) -> bool {
        let mut actions = VecDeque::from(actions);
        let mut came = false;
        while let Some(action) = actions.pop_front() {
            if let Some(event) = self.perform(action) {
                came = true;
                actions.extend(record(&mut self.cluster, event, self.started.elapsed()));
            }
        }
        came
    }

    /// Starts a worker for a place on this machine.
    fn spawn(&mut self, slot: u32) -> Event {
        self.spawned += 1;
        let recipe = self.plan.recipe.for_place(slot, self.spawned);
        match self.supervisor.spawn(&recipe) {
            Ok(pid) => {
                self.tails.insert(recipe.worker.clone(), VecDeque::new());
                Event::Spawned { slot, worker: recipe.worker, pid }
            }
            Err(error) => Event::NotSpawned { slot, error: error.to_string() },
        }
    }

    /// Does what the core orders; what comes of it at once is an event.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Record(entry) => self.record(&entry),
            Action::Spawn { slot } => return Some(self.spawn(slot)),
            Action::Welcome { session, .. } => {
                let config = self.plan.config.clone();
                let epoch = self.plan.facts.epoch;
                self.send(
                    session,
                    to_worker::Body::Welcome(rpc::Welcome { config, epoch, workers: self.cluster.wanted() }),
                );
            }
            Action::Assign { worker, session, assignment } => self.assign(&worker, session, &assignment),
            Action::Abort { session, generation, reason, .. } => {
                self.send(session, to_worker::Body::Abort(rpc::Abort { generation: generation.0, reason }));
            }
            Action::Regroup { session, generation, .. } => {
                self.send(session, to_worker::Body::Regroup(rpc::Regroup { generation: generation.0 }));
            }
            Action::SendStop { session, generation, reason, .. } => {
                let generation = generation.unwrap_or_default().0;
                self.send(session, to_worker::Body::Stop(rpc::Stop { reason: reason.to_string(), generation }));
            }
            Action::SendCheckpoint { session, .. } => {
                self.send(session, to_worker::Body::Checkpoint(rpc::Checkpoint {}));
            }
            Action::Refuse { session, refusal } => {
                if let Some((worker, _)) = self.sessions.get(&session) {
                    let text = format!("worker {worker} is refused: {refusal}");
                    self.records.log("c", &text);
                    tracing::info!("{text}");
                }
                self.send(session, to_worker::Body::Refused(wire::refused(&refusal)));
                self.sessions.remove(&session);
            }
            Action::Kill { worker, force } => {
                let signal = match force {
                    Force::Term => Signal::SIGTERM,
                    Force::Kill => Signal::SIGKILL,
                };
                self.supervisor.signal(&worker, signal);
            }
            Action::Report(reason) => self.report(reason),
            // taken from the cluster by `finish`
            Action::Finish(_) => {}
        }
        None
    }

    fn assign(&mut self, worker: &WorkerId, session: SessionId, assignment: &Assignment) {
        tracing::debug!("worker {worker} gets rank {} in {}", assignment.rank, assignment.generation);
        let known = self.places.as_ref().and_then(|places| places.assign(assignment));
        let assign = known.or_else(|| {
            let places = Places::of(&self.plan.token, &self.plan.facts.url, assignment);
            self.places.insert(places).assign(assignment)
        });
        if let Some(assign) = assign {
            self.send(session, to_worker::Body::Assign(assign));
        }
    }

    /// Sends a message; a worker that does not read loses its stream and has to come back.
    pub(super) fn send(&mut self, session: SessionId, body: to_worker::Body) {
        let clogged = self.sessions.get(&session).is_some_and(|(_, outbox)| outbox.send(body).is_err());
        if clogged {
            self.sessions.remove(&session);
        }
    }

    fn report(&mut self, reason: Reason) {
        match &reason {
            Reason::Formed { generation, .. } => {
                self.trains_since.get_or_insert_with(Instant::now);
                let mut ranks: Vec<_> = self.cluster.members().filter_map(|(id, m)| Some((m.rank?, id))).collect();
                ranks.sort();
                let workers = ranks.into_iter().map(|(_, id)| id.to_string()).collect();
                self.records.entry(ledger::Entry::Formed { generation: *generation, workers });
            }
            Reason::Broken { generation, why } => {
                self.records.entry(ledger::Entry::Broken { generation: *generation, why: why.clone() });
            }
            _ => {}
        }
        self.show(News::Decision(reason));
    }

    pub(super) fn show(&mut self, news: News) {
        tell(self.records, self.display, &news);
    }

    /// What a successor on another machine has to know.
    pub(super) fn bequeath(&self) {
        let journal = &self.keep.journal;
        let entries = journal.memory().entries().into_iter().filter_map(Entry::from_elsewhere).collect();
        self.keep.tenure.bequeath(Bequest { workers: journal.header().workers, entries });
    }

    fn record(&mut self, entry: &Entry) {
        self.keep.journal.record(entry);
        self.watch_disk();
        if entry.must_last() || matches!(entry, Entry::Stored(_)) {
            self.bequeath();
        }
    }

    /// Tells people when the journal cannot be written, and when it can again.
    pub(super) fn watch_disk(&mut self) {
        let alarm = self.keep.journal.alarm().map(|why| {
            let path = "the journal in the run's state folder";
            format!(
                "no persistence: {path} cannot be written ({why}). The run goes on; if this coordinator dies, it ends"
            )
        });
        if alarm == self.reported.alarm {
            return;
        }
        self.reported.alarm.clone_from(&alarm);
        self.show(match alarm {
            Some(alarm) => News::Alarm(alarm),
            None => News::Note("the journal is written again".into()),
        });
    }
}
