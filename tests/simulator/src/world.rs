//! One schedule: virtual time, messages on their way, and what goes wrong.
//!
//! Everything that happens is an [`Item`] in one queue, in the order of time; nothing here reads a clock or a source of randomness
//! but the seed's.

use crate::chance::Chance;
use crate::coordinator::Coordinator;
use crate::history::{History, State};
use crate::invariants::{self, Broken};
use crate::plan::{Fault, Millis, Plan, Succession};
use crate::ranks::{Mesh, Said};
use crate::streams::{Down, Stream, Up};
use crate::succession::epoch;
use crate::worker::Worker;
use common::checkpoint::ManifestKey;
use common::ids::Generation;
use coordinator_core::{Command, Event, ExitStatus};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;

/// No schedule has so many.
const EVENTS_MAX: u64 = 2_000_000;

/// What came of one thing that happened.
pub(crate) type Step = Result<(), Broken>;

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// A coordinator looks at its clock.
    Clock(usize),
    /// A message arrives at its coordinator.
    Up(usize, Up),
    /// Its coordinator notices that a stream has ended.
    Ended(usize),
    /// A coordinator notices the end of a worker's process.
    Exited(usize, usize, ExitStatus),
    /// A message arrives at a worker.
    Down(usize, Down),
    /// Something else happens in a worker.
    Worker(usize, Timer),
    /// A process ends by a signal.
    Die(usize),
    Resume(usize),
    ResumeCoordinator(usize),
    /// A coordinator's process dies.
    Crash(usize),
    /// Another coordinator comes.
    Succeed(Succession),
    /// What goes wrong next.
    Strike(usize),
    /// Nothing goes wrong any more.
    Heal,
    /// A call with the other ranks fails for a worker.
    Trouble(usize),
    Operator(Command),
}

/// What happens in a worker besides messages from the coordinator.
#[derive(Clone, Debug)]
pub(crate) enum Timer {
    Boot,
    Open(u64),
    Beat(u64),
    /// It looks whether a stream has fallen silent.
    Silence(usize),
    /// A stream could not be opened, or is seen to be broken.
    Broken(usize),
    /// What its training thread was at is done.
    Work(u64),
    /// A call with the other ranks is through.
    Call(usize, Rc<[Said]>, Option<State>),
    MeshBroken(usize),
    /// For so long nothing has come from a peer.
    Unreached(usize, usize),
    /// Its share of a checkpoint was sent to the store.
    Share(u64),
    /// A manifest was sent to the store.
    Commit(u64),
    Farewell,
    /// It has been an orphan for so long that others would be too.
    Deserted,
    Unblock,
    Term,
    Unhang,
}

struct Entry {
    at: Millis,
    order: u64,
    item: Item,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything in one schedule.
pub(crate) struct World {
    pub plan: Plan,
    pub now: Millis,
    pub net: Chance,
    /// All that the run has had; the last one holds it.
    pub coordinators: Vec<Coordinator>,
    /// Others are on their way.
    pub awaited: u32,
    pub workers: Vec<Worker>,
    pub streams: Vec<Stream>,
    pub meshes: Vec<Mesh>,
    pub history: History,
    /// Manifests by key, the newest last, and the state that each holds.
    pub store: BTreeMap<ManifestKey, State>,
    pub store_fails: Millis,
    pub store_hangs: Millis,
    pub store_hidden: Millis,
    /// From, to, until.
    pub peers_cut: Vec<(usize, usize, Millis)>,
    /// When the run was last seen to get on.
    pub moved: Millis,
    pub healed: bool,
    /// When the operator first asked for a stop.
    pub stop_asked: Option<Millis>,
    pub story: Option<Vec<String>>,
    pub events: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
}

/// Adds a line to the story, if one is told.
macro_rules! tell {
    ($world:expr, $($what:tt)*) => {
        if let Some(story) = &mut $world.story {
            story.push(format!("{:>8.3} {}", $world.now as f64 / 1000.0, format_args!($($what)*)));
        }
    };
}
pub(crate) use tell;

impl World {
    pub(crate) fn new(plan: Plan, tells: bool) -> Self {
        let mut world = Self {
            now: 0,
            net: Chance::new(plan.seed ^ 0x000A_11CE),
            coordinators: vec![Coordinator::first(&plan)],
            awaited: 0,
            workers: Vec::new(),
            streams: Vec::new(),
            meshes: Vec::new(),
            history: History::default(),
            store: BTreeMap::new(),
            store_fails: 0,
            store_hangs: 0,
            store_hidden: 0,
            peers_cut: Vec::new(),
            moved: 0,
            healed: false,
            stop_asked: None,
            story: tells.then(Vec::new),
            events: 0,
            queue: BinaryHeap::new(),
            order: 0,
            plan,
        };
        tell!(world, "{:?}", world.plan.policy);
        world.push(0, Item::Clock(0));
        let elsewhere = world.plan.policy.workers - world.plan.policy.local;
        for _ in 0..elsewhere {
            let at = world.net.below(3000);
            world.arrive(at);
        }
        for index in 0..world.plan.faults.len() {
            world.push(world.plan.faults[index].0, Item::Strike(index));
        }
        world.push(world.plan.healed, Item::Heal);
        if let Some(after) = world.plan.stop_after {
            world.push(world.plan.healed + after, Item::Operator(Command::Stop));
        }
        world
    }

    pub(crate) fn push(&mut self, at: Millis, item: Item) {
        self.order += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), order: self.order, item }));
    }

    /// Lets the schedule run to its end.
    pub(crate) fn run(&mut self) -> Step {
        let patience = self.plan.policy.patience.as_millis() as Millis;
        let whole = |time: Duration| time.as_millis() as Millis;
        let last = self.plan.healed + whole(self.plan.policy.startup) * 4 + 400_000;
        // who is left when the run is over has this long to find out
        let leave = self.plan.orphan_patience + patience * 7 + 17_000 + self.plan.store * 4 + self.time_to_meet();
        let mut over: Option<Millis> = None;
        while let Some(Reverse(Entry { at, item, .. })) = self.queue.pop() {
            self.now = at;
            self.events += 1;
            self.handle(item)?;
            invariants::every_run_ends(self.events > EVENTS_MAX, || "it goes round in circles".to_owned())?;
            if self.is_over() {
                let since = *over.get_or_insert(self.now.max(self.plan.healed));
                let ended = self.coordinators.iter().all(|coordinator| !coordinator.alive);
                if ended && self.workers.iter().all(|worker| !worker.alive) {
                    return Ok(());
                }
                invariants::every_run_ends(self.now > since + leave, || {
                    let left: Vec<_> = self.workers.iter().filter(|w| w.alive).map(Worker::describe).collect();
                    format!("the run is over, and some live on: {left:?}")
                })?;
            } else {
                invariants::every_run_ends(self.now > last, || format!("{:?}", self.present().phase()))?;
            }
        }
        invariants::every_run_ends(true, || "nothing happens any more".to_owned())
    }

    fn handle(&mut self, item: Item) -> Step {
        let concerned = match item {
            Item::Clock(c) | Item::Exited(c, ..) => Some(c),
            Item::Up(stream, _) | Item::Ended(stream) => Some(self.streams[stream].coordinator),
            Item::Operator(_) => Some(self.last()),
            _ => None,
        };
        if let Some(c) = concerned {
            if self.coordinators[c].is_paused() {
                let again = |i: &Item| matches!(i, Item::Clock(_));
                if !again(&item) || !self.coordinators[c].deferred.iter().any(again) {
                    self.coordinators[c].deferred.push(item);
                }
                return Ok(());
            }
            if matches!(item, Item::Operator(_)) && !self.coordinators[c].alive && self.awaited > 0 {
                // nobody answers: the operator tries again
                self.push(self.now + 500, item);
                return Ok(());
            }
            let of_worker = matches!(item, Item::Up(..));
            if of_worker && self.is_doubtful(c) {
                self.coordinators[c].deferred.push(item);
                return Ok(());
            }
            if !self.takes_up(c, of_worker) {
                return Ok(());
            }
            self.catch_up(c)?;
        }
        match item {
            Item::Clock(c) => self.clock(c),
            Item::Up(stream, message) => self.arrives_up(stream, message),
            Item::Ended(stream) => self.stream_ended(stream),
            Item::Exited(c, w, status) => self.child_exited(c, w, status),
            Item::Operator(command) => {
                tell!(self, "operator: {command:?}");
                if command == Command::Stop {
                    self.stop_asked.get_or_insert(self.now);
                }
                self.feed(self.last(), Event::Operator(command))
            }
            Item::Crash(c) => {
                self.crash(c);
                Ok(())
            }
            Item::Succeed(succession) => self.take_over(succession),
            Item::Down(stream, _) if self.workers[self.streams[stream].worker].paused > 0 => {
                let w = self.streams[stream].worker;
                self.workers[w].deferred.push(item);
                Ok(())
            }
            Item::Down(stream, message) => self.arrives_down(stream, message),
            Item::Worker(w, _) if self.workers[w].paused > 0 => {
                self.workers[w].deferred.push(item);
                Ok(())
            }
            Item::Worker(w, timer) if self.workers[w].alive => self.timer(w, timer),
            Item::Worker(..) => Ok(()),
            Item::Die(w) => self.die(w, ExitStatus::Signal(9)),
            Item::Resume(w) => self.resume(w),
            Item::ResumeCoordinator(c) => self.resume_coordinator(c),
            Item::Strike(index) => self.strike(self.plan.faults[index].1),
            Item::Trouble(w) => self.trouble(w),
            Item::Heal => {
                tell!(self, "nothing goes wrong from now on");
                self.healed = true;
                self.moved = self.now;
                Ok(())
            }
        }
    }

    fn resume(&mut self, w: usize) -> Step {
        if !self.workers[w].alive || self.workers[w].paused == 0 || self.workers[w].paused > self.now {
            return Ok(());
        }
        tell!(self, "{} goes on", self.workers[w].id);
        self.workers[w].paused = 0;
        let deferred = std::mem::take(&mut self.workers[w].deferred);
        // what has arrived is read before silence is judged
        let (messages, others): (Vec<_>, Vec<_>) =
            deferred.into_iter().partition(|item| matches!(item, Item::Down(..)));
        for item in messages.into_iter().chain(others) {
            self.push(self.now, item);
        }
        Ok(())
    }

    fn resume_coordinator(&mut self, c: usize) -> Step {
        if !self.coordinators[c].is_paused() || self.coordinators[c].paused > self.now {
            return Ok(());
        }
        if let Some(until) = self.doubts(c) {
            tell!(self, "coordinator {} may have been replaced, and does not see it", epoch(c));
            self.coordinators[c].paused = until;
            self.push(until, Item::ResumeCoordinator(c));
            return Ok(());
        }
        tell!(self, "coordinator {} goes on", epoch(c));
        self.coordinators[c].paused = 0;
        let deferred = std::mem::take(&mut self.coordinators[c].deferred);
        let clock_first = self.net.happens(50);
        let (clocks, others): (Vec<_>, Vec<_>) = deferred.into_iter().partition(|item| matches!(item, Item::Clock(_)));
        let (first, second) = if clock_first { (clocks, others) } else { (others, clocks) };
        for item in first.into_iter().chain(second) {
            self.push(self.now, item);
        }
        Ok(())
    }

    fn living(&self, number: u64) -> Option<usize> {
        let living: Vec<usize> = (0..self.workers.len()).filter(|&w| self.workers[w].alive).collect();
        living.get(number as usize % living.len().max(1)).copied()
    }

    /// Until `until`, and some time more to recover from it, it is no wonder if the worker is given up.
    pub(crate) fn excuse(&mut self, w: usize, until: Millis) {
        let patience = self.plan.policy.patience.as_millis() as Millis;
        let until = until + patience * 2 + 3000 + self.plan.delay * 6;
        self.workers[w].excused = self.workers[w].excused.max(until);
    }

    fn strike(&mut self, fault: Fault) -> Step {
        if self.is_over() {
            return Ok(());
        }
        let (now, c) = (self.now, self.last());
        let healed = self.plan.healed;
        let until = |time: Millis| (now + time).min(healed);
        tell!(self, "fault: {fault:?}");
        match fault {
            Fault::Arrive => self.arrive(now),
            Fault::PauseCoordinator(time) => self.pause_coordinator(until(time)),
            Fault::JumpAhead(time) => self.coordinators[c].skew += time as i64,
            Fault::JumpBack(time) => self.coordinators[c].skew -= time as i64,
            Fault::CrashCoordinator => self.crash(c),
            Fault::Succession(succession) => self.succeed(succession),
            Fault::StoreFails(time) => {
                self.store_fails = until(time);
                self.excuse_who_looks(until(time));
            }
            Fault::HideStore(time) => self.store_hidden = until(time),
            Fault::StoreHangs(time) => {
                self.store_hangs = until(time);
                self.excuse_who_looks(until(time));
            }
            Fault::Operator(command) => self.push(now, Item::Operator(command)),
            Fault::CutCoordinator(time) => {
                self.coordinators[c].cut = self.coordinators[c].cut.max(until(time));
                (0..self.workers.len()).for_each(|w| self.excuse(w, until(time)));
            }
            Fault::PauseAll(time) => (0..self.workers.len()).for_each(|w| self.pause(w, until(time))),
            Fault::KillMost(number) => {
                let spared = self.living(number);
                for w in (0..self.workers.len()).filter(|w| Some(*w) != spared) {
                    self.die(w, ExitStatus::Signal(9))?;
                }
            }
            Fault::Kill(number)
            | Fault::GivesUp(number, _)
            | Fault::Pause(number, _)
            | Fault::Hang(number, _)
            | Fault::Trouble(number)
            | Fault::BreakStream(number)
            | Fault::CutUp(number, _)
            | Fault::CutDown(number, _)
            | Fault::CutPeers(number, ..)
            | Fault::Term(number) => {
                let Some(w) = self.living(number) else { return Ok(()) };
                tell!(self, "it is {}", self.workers[w].id);
                match fault {
                    Fault::Kill(_) => return self.die(w, ExitStatus::Signal(9)),
                    Fault::GivesUp(_, exit) if self.workers[w].paused == 0 => return self.give_up(w, exit),
                    Fault::Pause(_, time) => self.pause(w, until(time)),
                    Fault::Hang(_, time) => {
                        self.workers[w].hung = until(time);
                        self.excuse(w, until(time));
                        self.push(until(time), Item::Worker(w, Timer::Unhang));
                    }
                    Fault::Trouble(_) => return self.trouble(w),
                    Fault::BreakStream(_) => self.break_stream(w),
                    Fault::CutUp(_, time) => {
                        self.workers[w].cut_up = until(time);
                        self.excuse(w, until(time));
                    }
                    Fault::CutDown(_, time) => {
                        self.workers[w].cut_down = until(time);
                        self.excuse(w, until(time));
                    }
                    Fault::CutPeers(_, other, time) => {
                        let Some(other) = self.living(other) else { return Ok(()) };
                        self.peers_cut.push((w, other, until(time)));
                        self.watch_pair(w, other);
                    }
                    Fault::Term(_) => self.push(now, Item::Worker(w, Timer::Term)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(crate) fn pause_coordinator(&mut self, until: Millis) {
        let (now, c) = (self.now, self.last());
        self.coordinators[c].paused = self.coordinators[c].paused.max(until);
        // what troubled a worker before is seen only afterwards
        for worker in self.workers.iter_mut().filter(|worker| worker.excused > now) {
            worker.excused += until.saturating_sub(now);
        }
        self.push(until, Item::ResumeCoordinator(c));
    }

    fn trouble(&mut self, w: usize) -> Step {
        let worker = &self.workers[w];
        if worker.paused > 0 || worker.mesh.is_none() { Ok(()) } else { self.mesh_fails(w) }
    }

    fn pause(&mut self, w: usize, until: Millis) {
        if self.workers[w].alive {
            self.workers[w].paused = self.workers[w].paused.max(until);
            self.excuse(w, until);
            self.push(until, Item::Resume(w));
        }
    }

    /// A worker from elsewhere.
    fn arrive(&mut self, at: Millis) {
        let w = self.add_worker(None, self.present().seat);
        tell!(self, "{} comes from elsewhere", self.workers[w].id);
        self.push(at, Item::Worker(w, Timer::Boot));
    }

    /// The run was seen to get on.
    pub(crate) fn gets_on(&mut self) {
        self.moved = self.now;
    }

    pub(crate) fn is_latest(&self, generation: Generation) -> bool {
        generation >= self.history.generation
    }
}
