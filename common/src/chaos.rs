//! Faults on purpose: what `launch --chaos plan.toml` does to a run, so that a user sees it survive on his own machines.
//!
//! A plan is pure data, the same for every run with its seed. Faults that name a `step` are struck by the worker itself, exactly
//! there; the others by the coordinator, at a time or at a number of images. Refuses to strike anything by itself.

use crate::seed::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// Environment variable in which workers are told what to do to themselves: a [`Plan`] as JSON.
pub const VARIABLE: &str = "GANFLEET_CHAOS";

/// What is to go wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Of what is drawn: which worker is struck.
    #[serde(default)]
    pub seed: u64,
    /// In the order of the file.
    #[serde(default)]
    pub fault: Vec<Fault>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What is done.
    #[serde(rename = "do")]
    pub deed: Deed,
    /// To whom; a worker drawn by lot if it is not said.
    #[serde(default)]
    pub rank: Option<u32>,
    /// The first time the run takes this optimizer step.
    #[serde(default)]
    pub step: Option<u64>,
    /// Where in that step.
    #[serde(default)]
    pub at: Point,
    /// Once, when so many images were seen.
    #[serde(default)]
    pub images: Option<u64>,
    /// Once, so many seconds after training began.
    #[serde(default)]
    pub after_s: Option<f64>,
    /// Again and again, every so many seconds.
    #[serde(default)]
    pub every_s: Option<f64>,
    /// How long a `stop` or a `slow` lasts: seconds; for ever if it is not said. Of a `nan`: for how many steps.
    #[serde(default, rename = "for")]
    pub lasts: Option<f64>,
}

/// What is done to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT when the time is over.
    Stop,
    /// SIGTERM: it is told to go.
    Leave,
    /// It does not go on, but says that it lives.
    Hang,
    /// It waits so many seconds, once.
    Slow,
    /// It breaks its connections to the other ranks.
    Cut,
    /// Its gradient is not a number.
    Nan,
    /// One bit of its weights is another one.
    Flip,
    /// Its store refuses everything for so many seconds.
    Store,
}

/// Where in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Before it begins.
    #[default]
    Forward,
    /// When its own gradient is complete, and that of all is not.
    Reduce,
    /// When that of all is complete, before the parameters move.
    Update,
}

impl Fault {
    fn is_struck_by_the_worker(&self) -> bool {
        self.step.is_some()
    }

    fn check(&self) -> Result<(), String> {
        let when = [self.step.is_some(), self.images.is_some(), self.after_s.is_some(), self.every_s.is_some()];
        if when.iter().filter(|said| **said).count() != 1 {
            return Err("say when: exactly one of step, images, after_s, every_s".to_owned());
        }
        let outside = matches!(self.deed, Deed::Kill | Deed::Stop | Deed::Leave);
        if !outside && self.step.is_none() {
            return Err("only kill, stop and leave can be done without a step".to_owned());
        }
        if self.at != Point::Forward && self.step.is_none() {
            return Err("`at` is a place in a step: say which step".to_owned());
        }
        let times = [self.after_s, self.every_s, self.lasts];
        if times.iter().flatten().any(|time| !(time.is_finite() && *time > 0.0 && *time < 1e9)) {
            return Err("a time is a number of seconds above 0".to_owned());
        }
        if matches!(self.deed, Deed::Slow | Deed::Nan | Deed::Store) && self.lasts.is_none() {
            return Err("say for how long: `for`".to_owned());
        }
        Ok(())
    }
}

impl Plan {
    /// Whether the plan can be carried out.
    ///
    /// # Errors
    /// What is wrong, with the number of the fault.
    pub fn check(&self) -> Result<(), String> {
        for (number, fault) in (1..).zip(&self.fault) {
            fault.check().map_err(|why| format!("fault {number}: {why}"))?;
        }
        Ok(())
    }

    /// The part that workers carry out. A rank that is drawn by lot is drawn here, below `workers`.
    #[must_use]
    pub fn of_workers(&self, workers: u32) -> Self {
        let drawn = (0..).zip(&self.fault).filter(|(_, fault)| fault.is_struck_by_the_worker());
        let fault = drawn.map(|(number, fault)| Fault {
            rank: Some(fault.rank.unwrap_or_else(|| self.draw(number, 0, workers))),
            ..fault.clone()
        });
        Self { seed: self.seed, fault: fault.collect() }
    }

    /// The part that the coordinator carries out.
    #[must_use]
    pub fn of_coordinator(&self) -> Self {
        let fault = self.fault.iter().filter(|fault| !fault.is_struck_by_the_worker()).cloned().collect();
        Self { seed: self.seed, fault }
    }

    /// A number below `bound`, for the `time`th time of fault `number`.
    #[must_use]
    pub fn draw(&self, number: u64, time: u64, bound: u32) -> u32 {
        Stream::new(self.seed, Purpose::Fault, number, time).below(u64::from(bound.max(1))) as u32
    }
}

/// The faults of one worker, as it meets them.
#[derive(Clone, Debug, Default)]
pub struct Injector {
    /// With how often each has struck; what is done with does not come back.
    faults: Vec<(Fault, u64, bool)>,
    rank: u32,
    /// The step with which its generation began, unless that is the run's first.
    began: Option<u64>,
}

impl Injector {
    /// Of a plan for workers.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self { faults: plan.fault.iter().map(|fault| (fault.clone(), 0, false)).collect(), ..Self::default() }
    }

    /// Whether something of this kind is ever done.
    #[must_use]
    pub fn does(&self, deed: Deed) -> bool {
        self.faults.iter().any(|(fault, ..)| fault.deed == deed)
    }

    /// A generation begins, in which this worker has `rank`, with the step after `steps`.
    pub fn begin(&mut self, rank: u32, steps: u64) {
        (self.rank, self.began) = (rank, (steps > 0).then_some(steps));
        for (_, struck, done) in &mut self.faults {
            *done |= *struck > 0;
        }
    }

    /// What is to be done now, at a point of the step after `steps`. A fault strikes once: a step that is taken again, by whomever,
    /// was struck before.
    pub fn strike(&mut self, at: Point, steps: u64) -> Option<(Deed, Option<f64>)> {
        if self.faults.is_empty() {
            return None;
        }
        let (rank, again) = (self.rank, self.began == Some(steps));
        let due = |fault: &Fault, done: bool| {
            let Some(step) = fault.step else { return false };
            let now = if fault.deed == Deed::Nan { steps >= step } else { steps == step && !again };
            !done && now && fault.at == at && fault.rank == Some(rank)
        };
        let found = self.faults.iter_mut().find(|(fault, _, done)| due(fault, *done));
        let (fault, struck, done) = found?;
        *struck += 1;
        *done = fault.deed != Deed::Nan || *struck >= fault.lasts.unwrap_or(1.0) as u64;
        Some((fault.deed, fault.lasts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(deed: Deed, step: u64) -> Fault {
        let (rank, at, lasts) = (Some(1), Point::Reduce, None);
        Fault { deed, rank, step: Some(step), at, images: None, after_s: None, every_s: None, lasts }
    }

    #[test]
    fn a_plan_says_when_and_whom() {
        let good = Plan { seed: 1, fault: vec![fault(Deed::Kill, 3)] };
        assert_eq!(good.check(), Ok(()));
        let why = |change: fn(&mut Fault)| {
            let mut plan = good.clone();
            change(&mut plan.fault[0]);
            plan.check().unwrap_err()
        };
        assert!(why(|f| f.step = None).contains("fault 1: say when"));
        assert!(why(|f| f.images = Some(1)).contains("exactly one"));
        assert!(why(|f| (f.deed, f.step, f.every_s) = (Deed::Flip, None, Some(1.0))).contains("without a step"));
        assert!(why(|f| (f.step, f.every_s) = (None, Some(1.0))).contains("`at`"));
        assert!(why(|f| f.lasts = Some(-1.0)).contains("above 0"));
        assert!(why(|f| f.deed = Deed::Nan).contains("`for`"));
        assert!(why(|f| f.deed = Deed::Store).contains("`for`"));
        let outside = Fault { step: None, at: Point::Forward, every_s: Some(2.0), ..fault(Deed::Stop, 0) };
        let both = Plan { seed: 9, fault: vec![outside, Fault { rank: None, ..fault(Deed::Kill, 5) }] };
        assert_eq!((both.of_workers(4).fault.len(), both.of_coordinator().fault.len()), (1, 1));
        assert!(both.of_workers(4).fault[0].rank < Some(4));
        assert_eq!(both.of_workers(4), both.of_workers(4));
        let drawn: Vec<u32> = (0..20).map(|time| both.draw(0, time, 3)).collect();
        assert!((0..3).all(|rank| drawn.contains(&rank)), "{drawn:?}");
    }

    #[test]
    fn a_fault_strikes_once_and_only_whom_and_where_it_is_meant_to() {
        let mut injector = Injector::new(&Plan { seed: 0, fault: vec![fault(Deed::Kill, 7)] });
        injector.begin(0, 0);
        assert!(injector.does(Deed::Kill) && !injector.does(Deed::Store));
        assert_eq!(injector.strike(Point::Reduce, 7), None, "another rank");
        injector.begin(1, 7);
        assert_eq!(
            injector.strike(Point::Reduce, 7),
            None,
            "whoever had this rank was struck: the step is taken again"
        );
        injector.begin(1, 3);
        assert_eq!(injector.strike(Point::Forward, 7), None);
        assert_eq!(injector.strike(Point::Reduce, 6), None);
        assert_eq!(injector.strike(Point::Reduce, 7), Some((Deed::Kill, None)));
        assert_eq!(injector.strike(Point::Reduce, 7), None);
    }

    #[test]
    fn a_gradient_that_is_no_number_lasts_for_some_steps_and_does_not_come_back() {
        let nan = Fault { lasts: Some(3.0), ..fault(Deed::Nan, 4) };
        let mut injector = Injector::new(&Plan { seed: 0, fault: vec![nan] });
        injector.begin(1, 0);
        let struck: Vec<u64> = (0..10).filter(|step| injector.strike(Point::Reduce, *step).is_some()).collect();
        assert_eq!(struck, [4, 5, 6]);
        injector.begin(1, 2);
        assert!((0..10).all(|step| injector.strike(Point::Reduce, step).is_none()));
    }
}
