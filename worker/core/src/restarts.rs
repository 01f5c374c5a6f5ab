//! What a node does when one of its workers has ended: start another one, soon or later, or leave the place empty.
//!
//! What would happen again is not tried again. Whatever else ends a worker (a crash, memory, a coordinator that is away) may be over
//! soon: it is tried again, ever less often, until nothing has held for as long as patience lasts, or too many have ended within an hour.

use common::exit::{Exit, ExitStatus};
use std::collections::VecDeque;
use std::time::Duration;

/// Before the first new start, and the longest pause before any.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A worker that lived so long has worked: what ends it is not what ended those before it.
const HELD: Duration = Duration::from_secs(60);

/// So many ends within this time, and what ends them does not pass: each costs the others a meeting.
const ENDS: usize = 20;
const WITHIN: Duration = Duration::from_secs(3600);

/// What follows from the end of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one is started after this time.
    Again(Duration),
    /// The place stays empty; what this says of the run.
    Over(Exit),
}

/// One place of a node.
#[derive(Clone, Debug)]
pub struct Restarts {
    patience: Duration,
    /// Ends without anything that held before, and when the first of them began.
    failures: u32,
    since: Duration,
    /// When the last ones ended.
    ends: VecDeque<Duration>,
}

impl Restarts {
    /// A place of which nothing is known yet, given up after `patience` without a worker that held.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience, failures: 0, since: Duration::ZERO, ends: VecDeque::new() }
    }

    /// A worker that was started at `started` has ended at `now`.
    pub fn ended(&mut self, status: ExitStatus, started: Duration, now: Duration) -> Next {
        let exit = match status {
            ExitStatus::Code(code) => Exit::from_code(code).unwrap_or(Exit::Internal),
            ExitStatus::Signal(_) | ExitStatus::Unknown => Exit::WorkerLost,
        };
        match exit {
            // the run is over, or the place is not needed any more
            Exit::Ok | Exit::Interrupted | Exit::Again => return Next::Over(exit),
            _ if Exit::LASTING.contains(&exit) => return Next::Over(exit),
            _ => {}
        }
        if self.failures == 0 || now.saturating_sub(started) >= HELD {
            (self.failures, self.since) = (0, now);
        }
        self.failures += 1;
        let pause = PAUSE.saturating_mul(1 << (self.failures - 1).min(16)).min(PAUSE_MAX);
        self.ends.push_back(now);
        self.ends.retain(|end| now.saturating_sub(*end) <= WITHIN);
        match now.saturating_sub(self.since) > self.patience || self.ends.len() > ENDS {
            true => Next::Over(exit),
            false => Next::Again(pause),
        }
    }
}

/// What a node ends with when all its places are empty: the first trouble that a person has to see to, else the first of any.
#[must_use]
pub fn of_all(ends: &[Exit]) -> Exit {
    let acts = |exit: &&Exit| !matches!(exit, Exit::Ok | Exit::Interrupted | Exit::WorkerLost | Exit::Orphaned);
    let failed = |exit: &&Exit| **exit != Exit::Ok;
    ends.iter().find(acts).or_else(|| ends.iter().find(failed)).copied().unwrap_or(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_would_happen_again_is_not_tried_again() {
        for code in [0, 2, 3, 4, 5, 9, 130] {
            let next = Restarts::new(s(600)).ended(ExitStatus::Code(code), s(0), s(1));
            assert_eq!(next, Next::Over(Exit::from_code(code).unwrap()));
        }
    }

    #[test]
    fn anything_else_is_tried_again_ever_less_often_and_not_for_ever() {
        let mut place = Restarts::new(s(100));
        let (mut now, mut pauses) = (s(0), Vec::new());
        let exit = loop {
            match place.ended(ExitStatus::Code(8), now, now) {
                Next::Again(pause) => {
                    pauses.push(pause.as_secs());
                    now += pause;
                }
                Next::Over(exit) => break exit,
            }
        };
        assert_eq!((pauses, exit), (vec![1, 2, 4, 8, 16, 30, 30, 30], Exit::Network));
    }

    #[test]
    fn one_that_held_makes_a_new_beginning() {
        let mut place = Restarts::new(s(10));
        assert_eq!(place.ended(ExitStatus::Signal(9), s(0), s(5000)), Next::Again(s(1)));
        assert_eq!(place.ended(ExitStatus::Code(101), s(5001), s(5002)), Next::Again(s(2)));
        // long after those, it held for a minute: not the third failure
        assert_eq!(place.ended(ExitStatus::Signal(11), s(5004), s(9000)), Next::Again(s(1)));
        assert_eq!(place.ended(ExitStatus::Unknown, s(9001), s(9020)), Next::Over(Exit::WorkerLost));
    }

    /// Ones that prepare for longer than a minute, and die.
    #[test]
    fn too_many_within_an_hour_are_no_chance() {
        let after = |lifetime: u64| {
            let mut place = Restarts::new(s(600));
            let mut now = s(0);
            (0..1000).position(|_| {
                let started = now;
                now += s(lifetime);
                place.ended(ExitStatus::Signal(9), started, now) == Next::Over(Exit::WorkerLost)
            })
        };
        assert_eq!(after(90), Some(ENDS));
        assert_eq!(after(400), None);
    }

    #[test]
    fn a_node_says_what_somebody_must_see_to() {
        assert_eq!(of_all(&[]), Exit::Ok);
        assert_eq!(of_all(&[Exit::Ok, Exit::Ok]), Exit::Ok);
        assert_eq!(of_all(&[Exit::Ok, Exit::WorkerLost, Exit::Storage]), Exit::Storage);
        assert_eq!(of_all(&[Exit::Ok, Exit::WorkerLost]), Exit::WorkerLost);
    }
}
