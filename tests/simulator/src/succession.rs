//! One coordinator in the place of another: who holds the run, what a successor finds, and how the one before learns of it.
//!
//! What the shells `coordinator` (`journal`, `tenure`, `takeover`, `follow`) and `agent` (`lookup`) do. The coordinators of a run are
//! counted in the order in which they took it; the last one holds it.

use crate::coordinator::Coordinator;
use crate::history::State;
use crate::plan::{Fate, Millis, Succession};
use crate::streams::Down;
use crate::world::{Item, Step, World, tell};
use common::ids::Generation;
use coordinator_core::{Cluster, Command, Entry, ExitStatus, Memory, Stored};
use std::time::Duration;

/// Shortest and longest time between two signs of life of a coordinator in the store.
const PULSE: [Millis; 2] = [500, 30_000];
/// So many must fail to come before a holder counts as dead.
pub(crate) const MISSED: u64 = 4;

/// Where a coordinator listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seat {
    pub machine: u32,
    pub port: u32,
}

/// The number of a coordinator.
pub(crate) fn epoch(c: usize) -> u64 {
    c as u64 + 1
}

/// The process id of a worker.
pub(crate) fn pid(w: usize) -> u32 {
    100 + w as u32
}

impl World {
    /// The coordinator that took the run last.
    pub(crate) fn last(&self) -> usize {
        self.coordinators.len() - 1
    }

    pub(crate) fn present(&self) -> &Coordinator {
        &self.coordinators[self.last()]
    }

    /// Whether nobody coordinates the run any more, and nobody will.
    pub(crate) fn is_over(&self) -> bool {
        !self.present().alive && self.awaited == 0
    }

    /// Between two signs of life of a coordinator in the store.
    pub(crate) fn pulse(&self) -> Millis {
        (self.plan.policy.patience.as_millis() as Millis * 2).clamp(PULSE[0], PULSE[1])
    }

    pub(crate) fn is_replaced(&self, c: usize) -> bool {
        c < self.last()
    }

    /// When a coordinator that was replaced has seen it at the latest, unless it is stopped: it looks when it goes on.
    pub(crate) fn knows_by(&self, c: usize) -> Millis {
        let claimed = self.coordinators.get(c + 1).map_or(0, |next| next.born);
        claimed.max(self.unseen_until(c)) + self.pulse() + 500
    }

    /// Until when a coordinator cannot look into the store.
    pub(crate) fn unseen_until(&self, c: usize) -> Millis {
        let away = self.store_fails.max(self.store_hangs).max(self.store_hidden);
        away.max(self.coordinators[c].cut)
    }

    /// Whether a coordinator that has heard of nobody for long, and hears somebody now, has to wait for the store first.
    pub(crate) fn is_doubtful(&mut self, c: usize) -> bool {
        let mine = &self.coordinators[c];
        let quiet = mine.alive && self.now >= mine.heard + self.pulse() * (MISSED - 1);
        if !quiet || self.now >= self.unseen_until(c) {
            return false;
        }
        let Some(until) = self.doubts(c) else { return false };
        tell!(self, "coordinator {} may have been replaced while it heard nobody", epoch(c));
        self.coordinators[c].paused = until;
        self.push(until, Item::ResumeCoordinator(c));
        true
    }

    /// Until when a coordinator that was stopped for so long that it may have been replaced orders nothing, because it cannot see
    /// whether it was: at most for half as long as workers wait for one.
    pub(crate) fn doubts(&mut self, c: usize) -> Option<Millis> {
        // the last sign of life may have been a period before the pause
        let (watched, unseen) = (self.pulse() * (MISSED - 1), self.unseen_until(c));
        let mine = &mut self.coordinators[c];
        let longest = *mine.doubts.get_or_insert(self.now + self.plan.orphan_patience / 2);
        let until = unseen.min(longest);
        let away = self.now - mine.turned.min(mine.heard);
        if away >= watched && self.now < until {
            return Some(until);
        }
        mine.doubts = None;
        None
    }

    /// Something befalls the coordinator that holds the run, and another one comes for it.
    pub(crate) fn succeed(&mut self, succession: Succession) {
        let c = self.last();
        if !self.coordinators[c].alive || self.coordinators[c].is_paused() {
            return;
        }
        let (patience, watched) = (self.plan.policy.patience.as_millis() as Millis, self.pulse() * MISSED);
        // on another machine only the silence of several pulses says that a holder is dead
        let after = succession.after + if succession.elsewhere { watched } else { 0 };
        let until = self.now + after + succession.returns;
        self.awaited += 1;
        self.excuse_who_looks(self.store_fails.max(self.store_hangs));
        self.push(self.now + after, Item::Succeed(succession));
        // who is in trouble now is judged when somebody is there to judge
        let excused = self.now + after + patience * 3;
        for w in 0..self.workers.len() {
            if self.workers[w].excused > self.now {
                self.excuse(w, excused);
            }
        }
        self.coordinators[c].ended = self.now;
        match succession.fate {
            Fate::Dies(actions) => {
                self.coordinators[c].dies_after = Some(actions);
                self.push(self.now + after / 2, Item::Crash(c));
            }
            Fate::MachineDies => self.machine_dies(c),
            Fate::Pauses => self.pause_coordinator(until),
            Fate::IsCut => {
                self.coordinators[c].cut = until;
                (0..self.workers.len()).for_each(|w| self.excuse(w, until));
            }
        }
    }

    /// Without the store nobody finds a coordinator that is not where the one before was.
    pub(crate) fn excuse_who_looks(&mut self, until: Millis) {
        if self.awaited > 0 || self.last() > 0 {
            (0..self.workers.len()).for_each(|w| self.excuse(w, until));
        }
    }

    /// The process of a coordinator ends at once.
    pub(crate) fn crash(&mut self, c: usize) {
        if !std::mem::replace(&mut self.coordinators[c].alive, false) {
            return;
        }
        tell!(self, "coordinator {} dies", epoch(c));
        self.coordinators[c].ended = self.now;
        for stream in std::mem::take(&mut self.coordinators[c].sessions).into_values() {
            self.send_down(stream, Down::Fin);
        }
    }

    /// All processes of a machine end, and no connection is closed.
    fn machine_dies(&mut self, c: usize) {
        tell!(self, "the machine of coordinator {} dies", epoch(c));
        self.coordinators[c].alive = false;
        self.coordinators[c].sessions.clear();
        for w in std::mem::take(&mut self.coordinators[c].children) {
            self.push(self.now, Item::Die(w));
        }
    }

    /// It sees that it was replaced: it orders nothing more, and harms nobody.
    pub(crate) fn give_way(&mut self, c: usize) {
        tell!(self, "coordinator {} gives way", epoch(c));
        self.coordinators[c].alive = false;
        for stream in std::mem::take(&mut self.coordinators[c].sessions).into_values() {
            self.send_down(stream, Down::Fin);
        }
    }

    /// Another coordinator comes for the run, and takes it if the one before gives no sign of life.
    pub(crate) fn take_over(&mut self, succession: Succession) -> Step {
        let store = self.store_fails.max(self.store_hangs);
        if succession.elsewhere && self.now < store {
            // who holds the run cannot be seen, and it cannot be taken
            self.push(store + 1, Item::Succeed(succession));
            return Ok(());
        }
        self.awaited -= 1;
        let (before, c) = (self.last(), self.last() + 1);
        let holder = &self.coordinators[before];
        let silent = holder.paused.max(holder.cut) > self.now && succession.elsewhere;
        if holder.cluster.is_over() || holder.alive && !silent {
            return Ok(());
        }
        let Some(memory) = self.left_by(before, succession) else {
            tell!(self, "nobody is there to take over");
            return Ok(());
        };
        let holder = &self.coordinators[before];
        let machine = if succession.elsewhere { c as u32 } else { holder.seat.machine };
        let port = if succession.moves || succession.elsewhere { c as u32 } else { holder.seat.port };
        let mut policy = self.plan.policy.clone();
        if succession.elsewhere && succession.attaches {
            policy.local = 0;
        }
        let cluster = Cluster::recovered(policy, &memory.entries());
        let mut next = Coordinator::new(&self.plan, cluster, Seat { machine, port }, self.now);
        next.observed = holder.observed.clone();
        next.observed.taken_over(&next.cluster);
        next.journal = memory.entries().into_iter().map(|entry| (self.now, entry)).collect();
        tell!(self, "coordinator {} takes over {} on machine {machine}", epoch(c), memory.at_work());
        if memory.stopping.is_none() && self.stop_asked.take().is_some() {
            // that wish was lost, and the operator sees it
            self.push(self.now + 1000, Item::Operator(Command::Stop));
        }
        for (worker, ..) in &memory.processes {
            let Some(w) = self.find(worker) else { continue };
            next.children.insert(w);
            if !self.workers[w].alive {
                let at = self.now + self.net.between(1, 30);
                self.push(at, Item::Exited(c, w, ExitStatus::Unknown));
            }
        }
        self.coordinators.push(next);
        self.workers.iter_mut().for_each(|worker| worker.lost = false);
        self.gets_on();
        self.push(self.now, Item::Clock(c));
        Ok(())
    }

    /// What a successor goes on from: the journal on the same machine, else what had come into the store; and the checkpoints there.
    /// Nothing if nobody is left whom it could coordinate.
    fn left_by(&mut self, before: usize, succession: Succession) -> Option<Memory> {
        let written = |(_, entry): &(Millis, Entry)| entry.clone();
        let journal = &self.coordinators[before].journal;
        let memory = if succession.elsewhere {
            // what was written down last may not have got there
            let last = self.coordinators[before].ended.saturating_sub(succession.lag);
            let there = journal.iter().filter(|(at, _)| succession.lag == 0 || *at < last).map(written);
            Memory::of(&there.filter_map(Entry::from_elsewhere).collect::<Vec<_>>())
        } else {
            Memory::of(&journal.iter().map(written).collect::<Vec<_>>())
        };
        let mut memory = memory.taken_over();
        let lives = |worker| self.find(worker).is_some_and(|w| self.workers[w].alive);
        let far = memory.members().iter().any(|member| member.pid.is_none());
        if memory.over.is_some() || !far && !memory.processes.iter().any(|(worker, ..)| lives(worker)) {
            return None;
        }
        if self.now >= self.store_fails.max(self.store_hangs) {
            let newest = self.store.keys().next_back();
            let generation = Generation(newest.map_or(1, |key| key.generation.0 + 1));
            let newest = newest.map(|key| Stored { images: key.images, manifest: key.to_string() });
            memory.add(&Entry::Begun { generation, went_back: Generation(0), newest });
        }
        Some(memory)
    }

    /// The state in a checkpoint.
    pub(crate) fn stored(&self, stored: &Stored) -> Option<State> {
        self.store.get(&stored.manifest.parse().ok()?).copied()
    }

    /// The state in the newest checkpoint that the present coordinator knows of.
    pub(crate) fn newest_state(&self) -> Option<State> {
        self.stored(self.present().cluster.newest()?)
    }

    /// Where a worker that looks for its coordinator finds one, and its number: in the store, or on its own machine.
    pub(crate) fn look(&mut self, w: usize) -> Option<(u64, Seat)> {
        let distance = Duration::from_millis(self.patience(w)) / 2;
        let worker = &mut self.workers[w];
        if self.now < worker.looked + distance.as_millis() as Millis && worker.looked > 0 || self.now < self.store_hangs
        {
            return None;
        }
        worker.looked = self.now;
        let (local, machine) = (worker.local, worker.machine);
        let here = self.coordinators.iter().rposition(|c| local && c.seat.machine == machine);
        let there = (self.now >= self.store_fails.max(self.store_hidden)).then(|| self.last());
        let found = here.max(there)?;
        Some((epoch(found), self.coordinators[found].seat))
    }
}
