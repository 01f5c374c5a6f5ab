//! One worker process around `worker-core`: its life, its timers, and what its training thread is told. Its session is in `session`.

mod session;

use crate::history::State;
use crate::plan::Millis;
use crate::streams::{Counted, Up};
use crate::succession::Seat;
use crate::training::{Job, Storing};
use crate::world::{Item, Step, Timer, World, tell};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen, Rank};
use coordinator_core::{Assignment, ExitStatus, Standing, WorkerId};
use std::collections::VecDeque;
use std::time::Duration;
use worker_core::{Activity, Away, Effect, Epoch, Outbox, Place, Progress, Trouble, Wishes, desertion, heartbeat};

/// Until the run's own patience is known.
const PATIENCE: Millis = 10_000;
/// Longest time that a farewell may take.
const FAREWELL: Millis = 5000;

/// What a worker's training thread is told.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Assign(Assignment),
    Leave,
    Orphaned,
    /// The session is over, and the process ends with this code.
    Failed(Exit),
}

/// The state that a worker holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Held {
    pub state: State,
    /// The generation that brought it there.
    pub line: Generation,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Link {
    Off,
    Opening(usize),
    Up { stream: usize, heard: Millis, alive: bool, farewell: bool },
    Resting,
    Ended,
}

/// One worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub id: String,
    pub name: WorkerId,
    pub local: bool,
    /// The machine on which it runs, if that is a coordinator's.
    pub machine: u32,
    /// Who started it, if it is local.
    parent: usize,
    pub peer: String,
    pub alive: bool,
    /// Stopped until then.
    pub paused: Millis,
    /// Its training thread stands still until then.
    pub hung: Millis,
    pub cut_up: Millis,
    pub cut_down: Millis,
    /// Until then it is no wonder if it is given up.
    pub excused: Millis,
    pub deferred: Vec<Item>,
    /// Its loss was reported, since it last joined.
    pub lost: bool,
    // the session
    link: Link,
    place: Place,
    outbox: Outbox<Counted>,
    /// Not yet numbered.
    queued: VecDeque<Counted>,
    away: Away,
    /// Where it takes its coordinator to be, and the highest number of one that it has seen.
    seat: Seat,
    epoch: Epoch,
    /// The highest number whose bearer it has obeyed.
    highest: u64,
    /// When it last looked for another.
    pub looked: Millis,
    welcomed: bool,
    /// Of the timers that are valid.
    opening: u64,
    beating: u64,
    entered: Generation,
    pub orders: VecDeque<Order>,
    // training
    pub job: Job,
    pub work: u64,
    pub mesh: Option<(usize, usize)>,
    pub mesh_failed: bool,
    pub waiting: bool,
    /// When the last call with the other ranks ends for it.
    pub call_at: Millis,
    pub assignment: Option<Assignment>,
    pub held: Option<Held>,
    /// The state that it held when it ended and did not store it.
    pub lost_with_it: Option<State>,
    /// The rank that it did not reach in the generation that it is in.
    pub unreached: Option<Rank>,
    pub progress: Progress,
    pub wishes: Wishes,
    pub storing: Storing,
    /// When the step in work began.
    pub began: Millis,
    leaving: Option<Exit>,
}

impl Worker {
    /// The stream on which it speaks, or tries to.
    pub(crate) fn stream(&self) -> Option<usize> {
        match self.link {
            Link::Opening(stream) | Link::Up { stream, .. } => Some(stream),
            Link::Off | Link::Resting | Link::Ended => None,
        }
    }

    /// Whether it is on its way out.
    pub(crate) fn leaves(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether the coordinator was away for longer than it waits.
    pub(crate) fn is_orphan(&self) -> bool {
        self.place.commands().orphaned
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} {:?} {:?} {:?} {:?}", self.id, self.job, self.link, self.place, self.mesh)
    }

    fn standing(&self) -> Standing {
        let standing = self.place.standing(self.progress, self.waiting);
        Standing {
            generation: standing.generation,
            ready: standing.ready,
            has_state: standing.has_state,
            trouble: standing.trouble.why,
            diverged: standing.trouble.diverged,
            unreached: standing.trouble.unreached,
            leaving: standing.leaving,
            images: standing.progress.images,
            step: standing.progress.phase,
            activity: standing.progress.activity.name().to_owned(),
            waiting: standing.waiting,
            line: standing.progress.line,
            step_time: Duration::from_secs_f64(standing.progress.step_seconds),
            ..Standing::default()
        }
    }
}

impl World {
    pub(crate) fn add_worker(&mut self, slot: Option<u32>, seat: Seat) -> usize {
        let w = self.workers.len();
        let id = slot.map_or_else(|| format!("x{w}"), |slot| format!("w{slot}.{w}"));
        self.workers.push(Worker {
            name: WorkerId(id.clone()),
            id,
            local: slot.is_some(),
            machine: seat.machine,
            parent: self.last(),
            peer: format!("p{w}"),
            alive: true,
            paused: 0,
            hung: 0,
            cut_up: 0,
            cut_down: 0,
            excused: 0,
            deferred: Vec::new(),
            lost: false,
            link: Link::Off,
            place: Place::default(),
            outbox: Outbox::default(),
            queued: VecDeque::new(),
            away: Away::new(Duration::ZERO),
            seat,
            epoch: Epoch::default(),
            highest: 0,
            looked: 0,
            welcomed: false,
            opening: 0,
            beating: 0,
            entered: Generation(0),
            orders: VecDeque::new(),
            job: Job::Preparing,
            work: 0,
            mesh: None,
            mesh_failed: false,
            waiting: false,
            call_at: 0,
            assignment: None,
            held: None,
            lost_with_it: None,
            unreached: None,
            progress: Progress::default(),
            wishes: Wishes::default(),
            storing: Storing::default(),
            began: 0,
            leaving: None,
        });
        w
    }

    pub(crate) fn patience(&self, w: usize) -> Millis {
        if self.workers[w].welcomed { self.plan.policy.patience.as_millis() as Millis } else { PATIENCE }
    }

    pub(crate) fn timer(&mut self, w: usize, timer: Timer) -> Step {
        match timer {
            Timer::Boot => {
                self.workers[w].opening += 1;
                let at = self.now + self.net.between(20, self.plan.start);
                let opening = self.workers[w].opening;
                self.workers[w].away = Away::new(Duration::from_millis(at));
                self.push(at, Item::Worker(w, Timer::Open(opening)));
                Ok(())
            }
            Timer::Open(opening) if opening == self.workers[w].opening => self.open(w),
            Timer::Broken(stream) => self.broken(w, stream, false),
            Timer::Silence(stream) => self.look_for_silence(w, stream),
            Timer::Beat(beating) if beating == self.workers[w].beating => {
                self.stand(w);
                let beat = heartbeat(Duration::from_millis(self.patience(w)), self.plan.policy.workers as usize);
                let at = self.now + beat.as_millis() as Millis;
                self.push(at, Item::Worker(w, Timer::Beat(beating)));
                Ok(())
            }
            Timer::Farewell => self.exit(w),
            Timer::Deserted => {
                self.workers[w].place.desert();
                self.push_alone(w, Timer::Unblock);
                Ok(())
            }
            Timer::Unblock => self.unblock(w),
            Timer::Term => {
                let missed = self.workers[w].place.give_notice();
                tell!(self, "{} is told to go", self.workers[w].id);
                if !missed {
                    return self.die(w, ExitStatus::Code(Exit::Interrupted as i32));
                }
                self.stand(w);
                Ok(())
            }
            Timer::Open(_) | Timer::Beat(_) => Ok(()),
            timer => self.train(w, timer),
        }
    }

    fn push_alone(&mut self, w: usize, timer: Timer) {
        let at = self.now + desertion(Duration::from_millis(self.patience(w))).as_millis() as Millis;
        self.push(at, Item::Worker(w, timer));
    }

    /// Nobody else ends what blocks training; the last checkpoint takes the time that it takes.
    fn unblock(&mut self, w: usize) -> Step {
        self.push_alone(w, Timer::Unblock);
        let stores = self.workers[w].progress.activity == Activity::Checkpoint;
        if !stores && self.workers[w].place.give_up() == Effect::Abort { self.mesh_fails(w) } else { Ok(()) }
    }

    fn order(&mut self, w: usize, order: Order) -> Step {
        self.workers[w].orders.push_back(order);
        self.hear_orders(w)
    }

    /// Prepared, and in no generation.
    pub(crate) fn wait(&mut self, w: usize, trouble: &str) -> Step {
        let worker = &mut self.workers[w];
        let trouble = Trouble { why: trouble.to_owned(), unreached: worker.unreached.take(), ..Trouble::default() };
        worker.place.wait(worker.held.is_some(), trouble);
        self.workers[w].job = Job::Waiting;
        self.stand(w);
        self.hear_orders(w)
    }

    fn hear_orders(&mut self, w: usize) -> Step {
        while self.workers[w].alive && self.workers[w].job == Job::Waiting {
            let Some(order) = self.workers[w].orders.pop_front() else { return Ok(()) };
            match order {
                Order::Assign(assignment) => self.take_part(w, assignment)?,
                Order::Leave => self.leave(w, Exit::Ok)?,
                Order::Orphaned => self.store_alone(w)?,
                Order::Failed(exit) => self.leave(w, exit)?,
            }
        }
        let worker = &self.workers[w];
        // before there is a place to wait for, only a failure or a stop is heard
        let early = worker.alive && worker.job == Job::Preparing && !worker.welcomed;
        match worker.orders.front() {
            Some(Order::Failed(exit)) if early => {
                let exit = *exit;
                self.leave(w, exit)
            }
            Some(Order::Leave) if early => self.leave(w, Exit::Ok),
            _ => Ok(()),
        }
    }

    pub(crate) fn is_aborted(&self, w: usize) -> bool {
        self.workers[w].place.is_aborted()
    }

    pub(crate) fn generation(&self, w: usize) -> Generation {
        self.workers[w].place.generation()
    }

    pub(crate) fn commands(&mut self, w: usize) -> worker_core::Commands {
        self.workers[w].place.take_commands()
    }

    pub(crate) fn is_dismissed(&self, w: usize) -> bool {
        self.workers[w].place.commands().dismissed
    }

    /// Says farewell; the process ends when that is read, or soon.
    pub(crate) fn leave(&mut self, w: usize, exit: Exit) -> Step {
        tell!(self, "{} leaves with {exit:?}", self.workers[w].id);
        self.leave_ranks(w, false);
        let images = self.workers[w].progress.images.0;
        self.workers[w].job = Job::Leaving;
        self.workers[w].leaving = Some(exit);
        self.workers[w].work += 1;
        if self.workers[w].link == Link::Ended {
            return self.exit(w);
        }
        self.count(w, Counted::Leave { exit: exit as u32, images });
        let at = self.now + FAREWELL.min(self.patience(w));
        self.push(at, Item::Worker(w, Timer::Farewell));
        Ok(())
    }

    /// It says that it gives up.
    pub(crate) fn give_up(&mut self, w: usize, exit: u32) -> Step {
        let exit = Exit::from_code(exit as i32).unwrap_or(Exit::Internal);
        if self.workers[w].leaves() { Ok(()) } else { self.leave(w, exit) }
    }

    fn exit(&mut self, w: usize) -> Step {
        let code = self.workers[w].leaving.unwrap_or(Exit::Internal) as i32;
        self.die(w, ExitStatus::Code(code))
    }

    /// A process is gone, and with it all that it held.
    pub(crate) fn die(&mut self, w: usize, status: ExitStatus) -> Step {
        if !self.workers[w].alive {
            return Ok(());
        }
        tell!(self, "{} ends: {status}", self.workers[w].id);
        self.leave_ranks(w, false);
        let stream = self.workers[w].stream();
        let worker = &mut self.workers[w];
        let stored = [Exit::Ok, Exit::Orphaned].map(|exit| ExitStatus::Code(exit as i32)).contains(&status);
        worker.lost_with_it = worker.held.filter(|_| !stored).map(|held| held.state);
        (worker.alive, worker.paused, worker.link, worker.held) = (false, 0, Link::Ended, None);
        worker.deferred.clear();
        if let Some(stream) = stream {
            self.send_up(stream, Up::Fin);
        }
        for c in
            (0..self.coordinators.len()).filter(|&c| self.coordinators[c].children.contains(&w)).collect::<Vec<_>>()
        {
            // only its parent learns how it ended
            let status = if self.workers[w].parent == c { status } else { ExitStatus::Unknown };
            let at = self.now + self.net.between(1, 30);
            self.push(at, Item::Exited(c, w, status));
        }
        Ok(())
    }

    pub(crate) fn report(&mut self, w: usize, activity: Activity, step_seconds: f64) {
        let position = self.workers[w].held.map(|held| self.history.node(held.state).position).unwrap_or_default();
        self.workers[w].progress = Progress {
            images: ImagesSeen(position.images),
            phase: position.step,
            activity,
            step_seconds,
            line: self.workers[w].held.map(|held| held.line).unwrap_or_default(),
            ..Progress::default()
        };
    }
}
