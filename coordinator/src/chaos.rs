//! `launch --chaos plan.toml`: the faults that a coordinator does to its own workers, on purpose ([`common::chaos`]).
//!
//! When which worker is struck is a function of the plan, of time and of images seen; the same plan gives the same choices. Refuses
//! to take the last worker at work, unless the plan names its rank.

use crate::failure::Failure;
use common::chaos::{Deed, Fault, Plan};
use common::exit::Exit;
use common::ids::ImagesSeen;
use coordinator_core::WorkerId;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::Duration;

/// Reads a plan.
///
/// # Errors
/// The file cannot be read, or is no plan.
pub fn read(path: &Path) -> Result<Plan, Failure> {
    let wrong = |why: String| Failure::new(Exit::Config, format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let plan: Plan = toml::from_str(&text).map_err(|error| wrong(format!("no plan of faults: {error}")))?;
    plan.check().map_err(wrong)?;
    Ok(plan)
}

/// A plan at work.
#[derive(Debug, Default)]
pub struct Chaos {
    plan: Plan,
    /// How often each fault has struck.
    struck: Vec<u64>,
    /// Workers that are to go on, and when.
    stopped: Vec<(Duration, WorkerId)>,
}

impl Chaos {
    /// The coordinator's part of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let plan = plan.of_coordinator();
        Self { struck: vec![0; plan.fault.len()], plan, stopped: Vec::new() }
    }

    /// What is to be done now, `time` after training began, at so many images: to whom of those at work on this machine, in the
    /// order of their ranks.
    pub fn due(&mut self, time: Duration, images: ImagesSeen, ranks: &[(u32, WorkerId)]) -> Vec<(WorkerId, Signal)> {
        let mut signals = Vec::new();
        self.stopped.retain(|(until, worker)| {
            let over = time >= *until;
            if over {
                signals.push((worker.clone(), Signal::SIGCONT));
            }
            !over
        });
        for (number, (fault, struck)) in (0..).zip(self.plan.fault.iter().zip(&mut self.struck)) {
            if !is_due(fault, *struck, time, images) {
                continue;
            }
            let Some(worker) = whom(&self.plan, fault, number, *struck, ranks) else { continue };
            *struck += 1;
            let signal = match fault.deed {
                Deed::Stop => Signal::SIGSTOP,
                Deed::Leave => Signal::SIGTERM,
                _ => Signal::SIGKILL,
            };
            if let (Deed::Stop, Some(seconds)) = (fault.deed, fault.lasts) {
                self.stopped.push((time + Duration::from_secs_f64(seconds), worker.clone()));
            }
            signals.push((worker, signal));
        }
        signals
    }
}

fn is_due(fault: &Fault, struck: u64, time: Duration, images: ImagesSeen) -> bool {
    let seconds = time.as_secs_f64();
    match (fault.images, fault.after_s, fault.every_s) {
        (Some(at), ..) => struck == 0 && images.0 >= at,
        (_, Some(after), _) => struck == 0 && seconds >= after,
        (.., Some(every)) => seconds >= every * (struck + 1) as f64,
        _ => false,
    }
}

fn whom(plan: &Plan, fault: &Fault, number: u64, struck: u64, ranks: &[(u32, WorkerId)]) -> Option<WorkerId> {
    let count = u32::try_from(ranks.len()).unwrap_or(u32::MAX);
    let rank = match fault.rank {
        Some(rank) => ranks.iter().find(|(theirs, _)| *theirs == rank),
        None if count > 1 => ranks.get(plan.draw(number, struck, count) as usize),
        None => None,
    };
    rank.map(|(_, worker)| worker.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        std::fs::write(&path, text).unwrap();
        read(&path).unwrap()
    }

    fn ranks(count: u32) -> Vec<(u32, WorkerId)> {
        (0..count).map(|rank| (rank, WorkerId(format!("w{rank}")))).collect()
    }

    #[test]
    fn faults_come_when_the_plan_says_and_a_stopped_worker_goes_on() {
        let plan = plan(
            "seed = 3\n[[fault]]\ndo = \"kill\"\nevery_s = 10\n[[fault]]\ndo = \"stop\"\nrank = 1\nimages = 500\nfor = 2.5\n\
             [[fault]]\ndo = \"leave\"\nrank = 0\nafter_s = 31\n[[fault]]\ndo = \"kill\"\nstep = 3\nrank = 0\n",
        );
        let run = || {
            let mut chaos = Chaos::new(&plan);
            let mut log = Vec::new();
            for second in 0..40 {
                let done = chaos.due(Duration::from_secs(second), ImagesSeen(second * 100), &ranks(4));
                log.extend(done.into_iter().map(|(worker, signal)| (second, worker.0, signal)));
            }
            log
        };
        let log = run();
        let when = |signal| log.iter().filter(|(_, _, s)| *s == signal).map(|(at, ..)| *at).collect::<Vec<_>>();
        assert_eq!(when(Signal::SIGKILL), [10, 20, 30]);
        assert_eq!((when(Signal::SIGSTOP), when(Signal::SIGCONT)), (vec![5], vec![8]));
        assert_eq!(when(Signal::SIGTERM), [31]);
        assert_eq!(run(), log, "the same plan strikes the same workers");
        // the last one is spared
        let mut chaos = Chaos::new(&plan);
        assert!(chaos.due(Duration::from_secs(10), ImagesSeen(0), &ranks(1)).is_empty());
    }

    #[test]
    fn what_is_no_plan_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        for (text, why) in [
            ("[[fault]]\ndo = \"explode\"\nstep = 1\n", "explode"),
            ("[[fault]]\ndo = \"kill\"\n", "fault 1: say when"),
            ("[[fault]]\ndo = \"kill\"\nstep = 1\nwhom = 2\n", "whom"),
            ("fault = 1", "fault"),
        ] {
            std::fs::write(&path, text).unwrap();
            let failure = read(&path).unwrap_err();
            assert_eq!(failure.exit, Exit::Config);
            assert!(failure.message.contains(why), "{}", failure.message);
        }
        assert!(read(&folder.path().join("none")).is_err());
    }
}
