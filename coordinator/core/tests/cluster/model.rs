//! A model of workers that do what the protocol asks of them: they join, take places, step together, store, leave.
//!
//! What can go wrong with a worker is a flag on it that a test sets; what can go wrong on the way is in [`Net`].

use common::ids::{Generation, ImagesSeen};
use coordinator_core::{Action, Assignment, SessionId, Standing, WorkerId};
use std::time::Duration;

/// The trouble of one whose training diverged.
pub const DIVERGED: &str = "training diverged";

/// How messages fare. Calm by default.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// Lost, of 100.
    pub loss: u64,
    /// Doubled, of 100.
    pub double: u64,
    /// Overtake others, of 100.
    pub reorder: u64,
    /// Come together with what comes next, of 100.
    pub together: u64,
    /// Longest time on the way.
    pub delay: Duration,
    /// Of all that is drawn.
    pub seed: u64,
}

impl Net {
    /// Splitmix64: a number below `bound`.
    pub fn draw(&mut self, bound: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound.max(1)
    }

    pub fn happens(&mut self, percent: u64) -> bool {
        percent > 0 && self.draw(100) < percent
    }

    pub fn time(&mut self) -> Duration {
        Duration::from_millis(self.draw(self.delay.as_millis() as u64 + 1))
    }
}

/// What a worker does in answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Nothing,
    /// It stands elsewhere now, and says so at once.
    Changed,
    /// It begins to prepare.
    Prepare,
    /// It says farewell in good order.
    Leave,
    /// Its session was closed: it gives up.
    GiveUp,
    /// Its session was closed for now: it comes back.
    ComeBack,
}

/// One worker process.
#[derive(Clone, Debug)]
pub struct Worker {
    pub id: WorkerId,
    /// It was started by the coordinator, which hears of its end.
    pub local: bool,
    pub peer: String,
    pub alive: bool,
    /// It has said farewell.
    pub left: bool,
    /// It stands still: nothing is done, said or read.
    pub paused: bool,
    /// It does not do its part of the step, but says that it lives.
    pub hung: bool,
    /// Nothing reaches it.
    pub deaf: bool,
    /// Nothing that it says arrives.
    pub mute: bool,
    /// It does not hear of a generation's end, neither from the coordinator nor from its peers.
    pub stubborn: bool,
    /// Its process does not end by itself.
    pub lingers: bool,
    /// It gives signs of life.
    pub beats: bool,
    /// The stream that it speaks on.
    pub session: Option<SessionId>,
    pub standing: Standing,
    pub assignment: Option<Assignment>,
    /// It has met the others of its generation.
    pub met: bool,
    pub stop: bool,
    pub regroup: bool,
    pub checkpoint: bool,
}

impl Worker {
    pub fn new(id: WorkerId, local: bool, peer: String) -> Self {
        Self {
            id,
            local,
            peer,
            alive: true,
            left: false,
            paused: false,
            hung: false,
            deaf: false,
            mute: false,
            stubborn: false,
            lingers: false,
            beats: false,
            session: None,
            standing: Standing { activity: "data".into(), ..Standing::default() },
            assignment: None,
            met: false,
            stop: false,
            regroup: false,
            checkpoint: false,
        }
    }

    pub fn is_in_a_generation(&self) -> bool {
        self.alive && !self.left && self.standing.generation.0 > 0 && !self.standing.ready
    }

    pub fn is_in(&self, generation: Generation) -> bool {
        self.is_in_a_generation() && self.standing.generation == generation
    }

    /// Leaves its generation and waits for another.
    pub fn get_out(&mut self, trouble: &str) {
        self.standing.ready = true;
        self.standing.trouble = trouble.to_owned();
        self.standing.diverged = trouble == DIVERGED;
        self.standing.activity = "join".into();
        self.standing.waiting = false;
        self.met = false;
    }

    pub fn obey(&mut self, action: &Action) -> Answer {
        match action {
            Action::Welcome { .. } => Answer::Prepare,
            Action::Assign { assignment, .. } => {
                if !self.standing.ready || assignment.generation <= self.standing.generation {
                    return Answer::Nothing;
                }
                self.standing.generation = assignment.generation;
                (self.standing.ready, self.regroup) = (false, false);
                self.standing.trouble.clear();
                self.standing.unreached = None;
                self.standing.activity = "form".into();
                self.assignment = Some(assignment.clone());
                Answer::Changed
            }
            Action::Abort { generation, reason, .. } if self.is_in(*generation) && !self.stubborn => {
                self.get_out(reason);
                Answer::Changed
            }
            Action::Regroup { generation, .. } => {
                self.regroup |= self.is_in(*generation);
                Answer::Nothing
            }
            Action::SendStop { generation: Some(generation), .. } => {
                self.stop |= self.is_in(*generation);
                Answer::Nothing
            }
            Action::SendStop { generation: None, .. } if !self.is_in_a_generation() => Answer::Leave,
            Action::SendCheckpoint { .. } => {
                self.checkpoint = true;
                Answer::Nothing
            }
            Action::Refuse { refusal, .. } if refusal.is_for_now() => {
                if self.is_in_a_generation() && !self.stubborn {
                    self.get_out("the run goes on without this worker");
                }
                Answer::ComeBack
            }
            Action::Refuse { .. } => Answer::GiveUp,
            _ => Answer::Nothing,
        }
    }
}

/// What the ranks of a generation did together.
#[derive(Clone, Debug, PartialEq)]
pub enum Together {
    /// Not all are there.
    Waited,
    /// One step.
    Stepped,
    /// One step, and a checkpoint.
    Stored(ImagesSeen),
    /// The last step and checkpoint.
    Finished(ImagesSeen),
    /// All left for another generation.
    Regrouped,
}

/// Lets the ranks of one generation take a step, if all are there.
pub fn step_together(ranks: &mut [&mut Worker], total: ImagesSeen) -> Together {
    let Some(assignment) = ranks.first().and_then(|worker| worker.assignment.clone()) else { return Together::Waited };
    let able = |worker: &Worker| !worker.paused && !worker.hung;
    if ranks.len() < assignment.peers.len() || !ranks.iter().all(|worker| able(worker)) {
        for worker in ranks.iter_mut().filter(|worker| able(worker)) {
            worker.standing.waiting = worker.met;
        }
        return Together::Waited;
    }
    if !ranks.iter().all(|worker| worker.met) {
        let from = assignment.resume.as_ref().map(|stored| stored.images).unwrap_or_default();
        let held = ranks.iter().filter(|worker| worker.standing.has_state).map(|worker| worker.standing.images).max();
        let start = if assignment.rollback { from } else { held.unwrap_or(from) };
        let line = ranks.iter().filter_map(|worker| worker.standing.held()).max().filter(|_| !assignment.rollback);
        let line = line.unwrap_or(assignment.generation);
        for worker in ranks.iter_mut() {
            worker.met = true;
            worker.standing.activity = "train".into();
            (worker.standing.has_state, worker.standing.images, worker.standing.line) = (true, start, line);
        }
    }
    let images = ranks.iter().map(|worker| worker.standing.images).max().unwrap_or_default();
    // a run that is complete already is only stored
    let images = ImagesSeen((images.0 + 1).min(total.0));
    for worker in ranks.iter_mut() {
        (worker.standing.waiting, worker.standing.images) = (false, images);
        worker.standing.line = assignment.generation;
    }
    if images >= total || ranks.iter().any(|worker| worker.stop) {
        return Together::Finished(images);
    }
    if ranks.iter().any(|worker| worker.regroup) {
        for worker in ranks.iter_mut() {
            worker.get_out("");
        }
        return Together::Regrouped;
    }
    let wished = ranks.iter().any(|worker| worker.checkpoint);
    ranks.iter_mut().for_each(|worker| worker.checkpoint = false);
    if wished { Together::Stored(images) } else { Together::Stepped }
}
