//! The ledger: which generation took which steps over which samples, and where every second of the run went.
//!
//! A [`Span`] is a stretch of steps that one generation took one after the other. Spans are cut at the same steps on every rank
//! (the ends of ticks and of generations), and told again by whoever speaks for the run next, so that none is lost with a rank; a
//! [`Ledger`] counts each step once. Refuses to measure: seconds come from the workers.

use crate::ids::Generation;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Ends of ticks for which a rank remembers its spans: rank 0 may have told nobody of them, because it died or because nobody
/// heard it for as long as it waited for that. Beyond them spans are put together, so that none is missing. Some tens of kilobytes.
const TICKS_KEPT: usize = 256;

/// Where the run stands: how much of it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// Optimizer steps since the run began, those of all networks together.
    pub steps: u64,
    /// Images seen.
    pub images: u64,
}

/// What a second was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Steps that count.
    Compute,
    /// Waiting for the gradients of others, in steps that count.
    Communication,
    /// Waiting for training images.
    Data,
    /// Samples and quality metrics.
    Evaluation,
    /// Training stood still for a checkpoint.
    Checkpoint,
    /// From a fault to its discovery: ranks waited for one that was lost.
    Detection,
    /// From its discovery to the next step: meeting, agreeing on the state, handing it over.
    Reforming,
    /// Work on a step that had to be taken again.
    Redone,
}

impl Class {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Compute,
        Self::Communication,
        Self::Data,
        Self::Evaluation,
        Self::Checkpoint,
        Self::Detection,
        Self::Reforming,
        Self::Redone,
    ];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Communication => "communication wait",
            Self::Data => "data wait",
            Self::Evaluation => "samples and metrics",
            Self::Checkpoint => "checkpoint stall",
            Self::Detection => "detection",
            Self::Reforming => "re-forming",
            Self::Redone => "redone",
        }
    }

    /// Whether it brings the run on; the rest is the price of checkpoints and faults.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Compute | Self::Communication | Self::Data | Self::Evaluation)
    }
}

/// Seconds of each class.
pub type Spent = BTreeMap<Class, f64>;

/// Adds up.
pub fn add(to: &mut Spent, more: &Spent) {
    for (class, seconds) in more {
        *to.entry(*class).or_default() += seconds;
    }
}

/// Steps that one generation took, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Who took them.
    pub generation: Generation,
    /// Workers of that generation.
    pub world: u32,
    /// Where the run stood before.
    pub from: Mark,
    /// Where it stands after them: the samples in between were shown.
    pub to: Mark,
    /// Where the time went since the span before: the first of a generation begins with what the change cost.
    pub spent: Spent,
}

impl Span {
    /// What of it comes after `mark`, which lies in it: so much of its seconds as of its steps.
    fn after(&self, mark: Mark) -> Self {
        let share = (self.to.steps - mark.steps) as f64 / (self.to.steps - self.from.steps).max(1) as f64;
        let spent = self.spent.iter().map(|(class, seconds)| (*class, seconds * share)).collect();
        Self { from: mark, spent, ..self.clone() }
    }
}

/// What a rank remembers of the ledger: goes from rank to rank with the state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    spans: Vec<Kept>,
    /// What the change of generations cost that is not in a span yet.
    lost: Spent,
    open: Option<Span>,
}

/// A span that is remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    span: Span,
    /// Ends of ticks in it.
    ticks: usize,
    /// Its rank has told it in this generation.
    told: bool,
}

impl Kept {
    /// Whether the next one goes on where this one ends.
    fn leads_to(&self, next: &Self) -> bool {
        self.span.generation == next.span.generation && self.span.to == next.span.from
    }

    fn steps(&self) -> u64 {
        self.span.to.steps - self.span.from.steps
    }
}

impl Tally {
    /// What the last generation's end cost, until a span takes it up.
    pub fn lose(&mut self, class: Class, seconds: f64) {
        *self.lost.entry(class).or_default() += seconds;
    }

    /// A generation begins its work at `mark`. Who speaks for it tells all that is remembered: the one before may not have.
    pub fn begin(&mut self, generation: Generation, world: u32, mark: Mark) {
        self.spans.iter_mut().for_each(|kept| kept.told = false);
        let spent = std::mem::take(&mut self.lost);
        self.open = Some(Span { generation, world, from: mark, to: mark, spent });
    }

    /// Closes the present span at `mark`; another one begins there. At the end of a `tick` older ones are put together.
    pub fn close(&mut self, mark: Mark, spent: &Spent, tick: bool) {
        let Some(mut span) = self.open.take() else { return };
        self.open = Some(Span { from: mark, to: mark, spent: Spent::new(), ..span });
        span.to = mark;
        add(&mut span.spent, spent);
        self.spans.push(Kept { span, ticks: usize::from(tick), told: false });
        while self.spans.iter().filter(|kept| kept.ticks > 0).count() > TICKS_KEPT {
            self.condense();
        }
    }

    /// One span fewer: the two shortest neighbours become one, or, of nothing but generations that took no steps together, the
    /// oldest is forgotten.
    fn condense(&mut self) {
        let pairs = self.spans.windows(2).enumerate().filter(|(_, pair)| pair[0].leads_to(&pair[1]));
        match pairs.min_by_key(|(_, pair)| pair[0].steps() + pair[1].steps()).map(|(place, _)| place) {
            Some(place) => {
                let later = self.spans.remove(place + 1);
                let kept = &mut self.spans[place];
                kept.span.to = later.span.to;
                add(&mut kept.span.spent, &later.span.spent);
                (kept.ticks, kept.told) = (kept.ticks + later.ticks, kept.told && later.told);
            }
            None => drop(self.spans.remove(0)),
        }
    }

    /// Tells what was not told in this generation, oldest first, as long as `say` takes it.
    pub fn tell(&mut self, mut say: impl FnMut(&Span) -> bool) {
        for kept in self.spans.iter_mut().filter(|kept| !kept.told) {
            kept.told = say(&kept.span);
            if !kept.told {
                break;
            }
        }
    }

    /// All that is remembered, oldest first.
    pub fn spans(&self) -> impl DoubleEndedIterator<Item = &Span> {
        self.spans.iter().map(|kept| &kept.span)
    }
}

/// One line of `ledger.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Seconds since 1970-01-01 UTC when it was written, by the coordinator's clock: for people.
    pub at: f64,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What the ledger records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// A generation began.
    Formed {
        /// Which.
        generation: Generation,
        /// Its workers, in the order of their ranks.
        workers: Vec<String>,
    },
    /// A generation was over.
    Broken {
        /// Which.
        generation: Generation,
        /// Why.
        why: String,
    },
    /// Steps were taken.
    Span(Span),
}

/// The sum of a ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Where the run stands.
    pub reached: Mark,
    /// Steps that were taken twice: the earlier time does not count.
    pub again: u64,
    /// Steps of which nothing is known: between the spans of a run there must be none.
    pub missing: u64,
    /// Seconds of each class.
    pub spent: Spent,
    /// What each change of generations cost, in seconds, by the generation that began.
    pub changes: BTreeMap<Generation, Spent>,
    generations: BTreeSet<Generation>,
    begun: bool,
}

impl Ledger {
    /// Takes a span into account, unless it is known; returns whether it was news.
    ///
    /// A later generation that begins further back takes the steps in between again: the run's history goes on from there.
    pub fn take(&mut self, span: &Span) -> bool {
        let last = self.generations.last().copied().unwrap_or_default();
        if self.begun && (span.generation < last || (span.generation == last && span.to <= self.reached)) {
            // an older generation's are told before those of a later one
            return false;
        }
        if self.begun && span.generation == last && span.from < self.reached {
            // spans that nobody heard of in time were put together with one that is known
            return self.take(&span.after(self.reached));
        }
        if self.begun {
            self.again += self.reached.steps.saturating_sub(span.from.steps);
            self.missing += span.from.steps.saturating_sub(self.reached.steps);
        }
        if !self.generations.contains(&span.generation) {
            let faults = [Class::Detection, Class::Reforming, Class::Redone];
            let cost = span.spent.iter().filter(|(class, _)| faults.contains(class));
            self.changes.insert(span.generation, cost.map(|(class, seconds)| (*class, *seconds)).collect());
        }
        self.generations.insert(span.generation);
        (self.reached, self.begun) = (span.to, true);
        add(&mut self.spent, &span.spent);
        true
    }

    /// Generations that took steps.
    #[must_use]
    pub fn generations(&self) -> usize {
        self.generations.len()
    }

    /// The last generation that took steps.
    #[must_use]
    pub fn last(&self) -> Option<Generation> {
        self.generations.last().copied()
    }

    /// Seconds in all.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.spent.values().sum()
    }

    /// Share of the time that brought the run on; `None` before there is any.
    #[must_use]
    pub fn goodput(&self) -> Option<f64> {
        let good: f64 = self.spent.iter().filter(|(class, _)| class.is_good()).map(|(_, seconds)| seconds).sum();
        let all = self.seconds();
        (all > 0.0).then(|| good / all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(steps: u64) -> Mark {
        Mark { steps, images: steps * 8 }
    }

    fn span(generation: u64, from: u64, to: u64) -> Span {
        let spent = [(Class::Compute, (to - from) as f64), (Class::Redone, 1.0)].into();
        Span { generation: Generation(generation), world: 2, from: mark(from), to: mark(to), spent }
    }

    #[test]
    fn every_step_counts_once_however_often_it_is_told() {
        let mut ledger = Ledger::default();
        let told = [span(1, 0, 5), span(1, 0, 5), span(1, 5, 9), span(1, 0, 5), span(1, 5, 9), span(2, 9, 12)];
        let news: Vec<bool> = told.iter().map(|span| ledger.take(span)).collect();
        assert_eq!(news, [true, false, true, false, false, true]);
        assert_eq!((ledger.reached, ledger.again, ledger.missing), (mark(12), 0, 0));
        assert_eq!(ledger.spent[&Class::Compute], 12.0);
        assert_eq!((ledger.generations(), ledger.goodput()), (2, Some(12.0 / 15.0)));
    }

    #[test]
    fn a_later_generation_may_begin_further_back_and_a_gap_is_seen() {
        let mut ledger = Ledger::default();
        // rank 0 told of a step that ended on it alone
        assert!(ledger.take(&span(1, 0, 6)));
        assert!(!ledger.take(&span(1, 0, 5)), "the others remember it without that step");
        assert!(ledger.take(&span(2, 5, 8)));
        assert_eq!((ledger.reached, ledger.again, ledger.missing), (mark(8), 1, 0));
        assert!(ledger.take(&span(3, 10, 11)));
        assert_eq!((ledger.again, ledger.missing), (1, 2));
        // a way back, and then somebody else who tells all that it remembers
        assert!(ledger.take(&span(4, 2, 4)));
        let known = [span(2, 5, 8), span(3, 10, 11), span(4, 2, 4)];
        assert!(known.iter().all(|span| !ledger.take(span)));
        assert!(ledger.take(&span(4, 4, 6)));
        assert_eq!((ledger.reached, ledger.again, ledger.missing), (mark(6), 10, 2));
        // a resume begins anywhere
        let mut resumed = Ledger::default();
        assert!(resumed.take(&span(4, 100, 101)));
        assert_eq!((resumed.again, resumed.missing), (0, 0));
    }

    #[test]
    fn a_rank_remembers_enough_to_tell_what_rank_0_did_not() {
        let mut tally = Tally::default();
        tally.begin(Generation(1), 2, mark(0));
        let many = TICKS_KEPT as u64;
        for step in 1..=many + 2 {
            tally.close(mark(step), &Spent::new(), true);
        }
        tally.close(mark(many + 3), &[(Class::Compute, 2.0)].into(), false);
        tally.lose(Class::Detection, 0.5);
        tally.begin(Generation(2), 1, mark(many + 3));
        tally.close(mark(many + 5), &Spent::new(), false);
        let marks: Vec<_> = tally.spans().map(|span| (span.from.steps, span.to.steps)).collect();
        assert_eq!(
            (&marks[..3], marks.len()),
            (&[(0, 2), (2, 4), (4, 5)][..], TICKS_KEPT + 2),
            "older ones are put together"
        );
        assert_eq!(marks[TICKS_KEPT - 1..], [(many + 1, many + 2), (many + 2, many + 3), (many + 3, many + 5)]);
        assert_eq!(tally.spans().last().unwrap().spent[&Class::Detection], 0.5);
        let mut ledger = Ledger::default();
        assert_eq!(tally.spans().filter(|span| ledger.take(span)).count(), marks.len());
        assert_eq!(ledger.changes[&Generation(2)], [(Class::Detection, 0.5)].into());
    }

    /// Nobody hears a rank for longer than it remembers every tick, in the middle of a generation.
    #[test]
    fn a_rank_that_is_not_heard_for_long_tells_every_step_in_the_end() {
        let (mut tally, mut ledger) = (Tally::default(), Ledger::default());
        tally.begin(Generation(1), 2, mark(0));
        let ticks = 5 * TICKS_KEPT as u64;
        for tick in 1..=ticks {
            tally.close(mark(3 * tick), &[(Class::Compute, 1.0)].into(), true);
            // heard at first, then not for long
            let heard = tick < 100 || tick == ticks;
            tally.tell(|span| {
                if heard {
                    ledger.take(span);
                }
                heard
            });
        }
        assert_eq!((ledger.reached, ledger.again, ledger.missing), (mark(3 * ticks), 0, 0));
        assert!((ledger.seconds() - ticks as f64).abs() < 1.0, "{}", ledger.seconds());
        assert!(tally.spans().count() <= TICKS_KEPT);
        let mut again = ledger.clone();
        assert!(tally.spans().all(|span| !again.take(span)), "all of it is known");
        // generations without steps are no reason to remember for ever
        for generation in 2..=2 * TICKS_KEPT as u64 {
            tally.begin(Generation(generation), 2, mark(3 * ticks));
            tally.close(mark(3 * ticks), &Spent::new(), true);
        }
        assert!(tally.spans().count() <= TICKS_KEPT);
    }

    #[test]
    fn lines_survive_a_round_trip() {
        let formed = Entry::Formed { generation: Generation(2), workers: vec!["a".into()] };
        for entry in [formed, Entry::Span(span(2, 1, 3))] {
            let line = Line { at: 12.5, entry };
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
    }
}
