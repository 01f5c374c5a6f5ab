//! A worker's session with its coordinator: streams that open, break and fall silent, what is said on them, and which orders it
//! hears. As `agent` does it.

use super::{Link, Order, PATIENCE};
use crate::invariants;
use crate::plan::Millis;
use crate::streams::{Counted, Down, Up};
use crate::succession::epoch;
use crate::world::{Item, Step, Timer, World, tell};
use common::exit::Exit;
use std::time::Duration;
use worker_core::{Effect, Retry, Word};

impl World {
    pub(super) fn open(&mut self, w: usize) -> Step {
        let seat = self.workers[w].seat;
        let listens = self.coordinators.iter().rposition(|c| c.alive && c.seat == seat);
        let stream = self.new_stream(w, listens.unwrap_or_default());
        self.workers[w].link = Link::Opening(stream);
        if listens.is_some() {
            self.send_up(stream, Up::Join);
            let at = self.now + self.patience(w);
            self.push(at, Item::Worker(w, Timer::Silence(stream)));
        } else {
            let at = self.now + 2;
            self.push(at, Item::Worker(w, Timer::Broken(stream)));
        }
        Ok(())
    }

    pub(super) fn look_for_silence(&mut self, w: usize, stream: usize) -> Step {
        let patience = self.patience(w);
        match self.workers[w].link {
            Link::Opening(opening) if opening == stream => self.broken(w, stream, false),
            Link::Up { stream: up, heard, .. } if up == stream => {
                if self.now >= heard + patience {
                    return self.broken(w, stream, false);
                }
                self.push(heard + patience, Item::Worker(w, Timer::Silence(stream)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A stream could not be opened, broke or fell silent. `closed`: by the coordinator.
    pub(super) fn broken(&mut self, w: usize, stream: usize, closed: bool) -> Step {
        let patience = Duration::from_millis(self.patience(w));
        let worker = &mut self.workers[w];
        if worker.stream() != Some(stream) {
            return Ok(());
        }
        let alive = matches!(worker.link, Link::Up { alive: true, .. });
        worker.link = Link::Resting;
        worker.beating += 1;
        let limit = if worker.welcomed { self.plan.orphan_patience } else { PATIENCE };
        let retry = worker.away.broken(alive, patience, Duration::from_millis(limit), Duration::from_millis(self.now));
        if !closed {
            self.send_up(stream, Up::Fin);
        }
        let worker = &mut self.workers[w];
        match retry {
            Retry::After(pause) => {
                worker.opening += 1;
                let (mut at, opening) = (self.now + pause.as_millis() as Millis, worker.opening);
                if let Some((epoch, seat)) = self.look(w) {
                    at = at.min(self.now + self.net.between(1, 30));
                    let worker = &mut self.workers[w];
                    if worker.epoch.is_latest(epoch) && worker.seat != seat {
                        worker.seat = seat;
                        worker.away.hurry();
                    }
                }
                self.push(at, Item::Worker(w, Timer::Open(opening)));
                Ok(())
            }
            Retry::TooLong(_) if worker.welcomed => {
                tell!(self, "{} is an orphan", self.workers[w].id);
                self.workers[w].place.orphan();
                self.push_alone(w, Timer::Deserted);
                self.order(w, Order::Orphaned)?;
                self.link_ends(w)
            }
            Retry::TooLong(_) => {
                self.order(w, Order::Failed(Exit::Network))?;
                self.link_ends(w)
            }
        }
    }

    pub(super) fn link_ends(&mut self, w: usize) -> Step {
        self.workers[w].link = Link::Ended;
        self.workers[w].beating += 1;
        if self.workers[w].leaves() { self.exit(w) } else { Ok(()) }
    }

    pub(crate) fn arrives_down(&mut self, stream: usize, message: Down) -> Step {
        let w = self.streams[stream].worker;
        if self.streams[stream].cut || !self.workers[w].alive || self.workers[w].stream() != Some(stream) {
            return Ok(());
        }
        match (self.workers[w].link, message) {
            (Link::Opening(_), Down::Opened) => self.opened(w, stream),
            (Link::Opening(_), _) => self.broken(w, stream, true),
            (Link::Up { farewell: true, .. }, Down::Fin) => self.link_ends(w),
            (Link::Up { farewell: true, .. }, _) => Ok(()),
            (Link::Up { .. }, Down::Fin) => self.broken(w, stream, true),
            (Link::Up { .. }, Down::Beat(_, epoch) | Down::Welcome(epoch)) if !self.workers[w].epoch.heed(epoch) => {
                self.broken(w, stream, false)
            }
            (Link::Up { .. }, message) => {
                let epochs = (epoch(self.streams[stream].coordinator), self.workers[w].highest);
                invariants::no_earlier_coordinator_is_obeyed(&self.workers[w].id, epochs.0, epochs.1)?;
                self.workers[w].highest = epochs.0.max(epochs.1);
                self.workers[w].link = Link::Up { stream, heard: self.now, alive: true, farewell: false };
                self.obey(w, message)
            }
            (Link::Off | Link::Resting | Link::Ended, _) => Ok(()),
        }
    }

    fn opened(&mut self, w: usize, stream: usize) -> Step {
        self.workers[w].link = Link::Up { stream, heard: self.now, alive: false, farewell: false };
        let at = self.now + self.patience(w);
        self.push(at, Item::Worker(w, Timer::Silence(stream)));
        let again: Vec<_> = self.workers[w].outbox.unconfirmed().cloned().collect();
        for (sequence, body) in again {
            self.say(w, sequence, body);
        }
        self.flush(w);
        self.workers[w].beating += 1;
        let beating = self.workers[w].beating;
        self.push(self.now, Item::Worker(w, Timer::Beat(beating)));
        Ok(())
    }

    /// Says something that counts. What a farewell means follows from where the worker stands, so that is said first.
    fn say(&mut self, w: usize, sequence: u64, body: Counted) {
        let Link::Up { stream, heard, alive, farewell: false } = self.workers[w].link else { return };
        let leaves = matches!(body, Counted::Leave { .. });
        if leaves {
            self.stand(w);
        }
        self.send_up(stream, Up::Counted(sequence, body));
        if leaves {
            self.send_up(stream, Up::Fin);
            self.workers[w].link = Link::Up { stream, heard, alive, farewell: true };
        }
    }

    fn flush(&mut self, w: usize) {
        while matches!(self.workers[w].link, Link::Up { farewell: false, .. }) {
            let Some(body) = self.workers[w].queued.pop_front() else { return };
            let sequence = self.workers[w].outbox.keep(body.clone());
            self.say(w, sequence, body);
        }
    }

    /// Says where a worker stands.
    pub(crate) fn stand(&mut self, w: usize) {
        if let Link::Up { stream, farewell: false, .. } = self.workers[w].link {
            let standing = self.workers[w].standing();
            self.send_up(stream, Up::Progress(standing));
        }
    }

    pub(crate) fn count(&mut self, w: usize, body: Counted) {
        self.workers[w].queued.push_back(body);
        self.flush(w);
    }

    fn obey(&mut self, w: usize, message: Down) -> Step {
        let word = match message {
            Down::Beat(received, _) => {
                self.workers[w].outbox.confirm(received);
                return Ok(());
            }
            Down::Welcome(_) => {
                if !std::mem::replace(&mut self.workers[w].welcomed, true) {
                    self.workers[w].beating += 1;
                    let beating = self.workers[w].beating;
                    self.push(self.now, Item::Worker(w, Timer::Beat(beating)));
                    // from now on the run's own patience holds
                    if let Some(stream) = self.workers[w].stream() {
                        let at = self.now + self.patience(w);
                        self.push(at, Item::Worker(w, Timer::Silence(stream)));
                    }
                    self.prepare(w);
                }
                return Ok(());
            }
            Down::Refused => return self.dismiss(w),
            Down::Evicted => return self.evict(w),
            Down::Assign(assignment) => {
                let generation = assignment.generation;
                if self.workers[w].place.obey(Word::Assign(generation)) == Effect::Enter {
                    let before = std::mem::replace(&mut self.workers[w].entered, generation);
                    invariants::nothing_older_is_obeyed(&self.workers[w].id, generation, before)?;
                    self.workers[w].waiting = false;
                    return self.order(w, Order::Assign(assignment));
                }
                return Ok(());
            }
            Down::Stop(generation) => Word::Stop { generation, reason: String::new() },
            Down::Abort(generation) => Word::Abort(generation),
            Down::Regroup(generation) => Word::Regroup(generation),
            Down::Checkpoint => Word::Checkpoint,
            Down::Opened | Down::Fin => return Ok(()),
        };
        self.note_wish(w, &word);
        let over = if let Word::Abort(generation) = word { Some(generation) } else { None };
        match self.workers[w].place.obey(word) {
            Effect::Abort => {
                let (id, present) = (&self.workers[w].id, self.generation(w));
                invariants::only_the_present_generation_is_left(id, over.unwrap_or_default(), present)?;
                self.mesh_fails(w)
            }
            Effect::Leave { .. } => self.order(w, Order::Leave),
            Effect::Enter | Effect::Nothing => Ok(()),
        }
    }

    /// What a generation was really asked for.
    fn note_wish(&mut self, w: usize, word: &Word) {
        let Some((mesh, _)) = self.workers[w].mesh else { return };
        let mesh = &mut self.meshes[mesh];
        match word {
            Word::Regroup(generation) if *generation == mesh.generation => mesh.asked_regroup = true,
            Word::Stop { generation: Some(generation), .. } if *generation == mesh.generation => mesh.asked_stop = true,
            _ => {}
        }
    }

    fn dismiss(&mut self, w: usize) -> Step {
        let worker = &mut self.workers[w];
        if matches!(worker.outbox.newest(), Some(Counted::Leave { .. })) {
            return self.link_ends(w);
        }
        tell!(self, "{} is dismissed", self.workers[w].id);
        let worker = &mut self.workers[w];
        worker.link = Link::Ended;
        worker.beating += 1;
        if worker.place.dismiss() == Effect::Abort {
            self.mesh_fails(w)?;
        }
        self.order(w, Order::Failed(Exit::Network))
    }

    /// The run goes on without it for now.
    fn evict(&mut self, w: usize) -> Step {
        let worker = &mut self.workers[w];
        if matches!(worker.outbox.newest(), Some(Counted::Leave { .. })) {
            return self.link_ends(w);
        }
        tell!(self, "{} is evicted", self.workers[w].id);
        if self.workers[w].place.give_up() == Effect::Abort {
            self.mesh_fails(w)?;
        }
        self.workers[w].stream().map_or(Ok(()), |stream| self.broken(w, stream, false))
    }
}
