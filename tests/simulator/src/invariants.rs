//! What must hold in every history, one named function per property.
//!
//! They look at what the simulated world did, never at how the code under test decides.

use crate::history::{BEGINNING, History, State};
use crate::plan::Millis;
use common::ids::Generation;
use coordinator_core::{Action, Cause, Outcome, Reason};

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its name.
    pub invariant: &'static str,
    /// What was seen instead.
    pub found: String,
}

/// A property holds, or is broken.
pub type Holds = Result<(), Broken>;

fn holds(invariant: &'static str, it_does: bool, found: impl FnOnce() -> String) -> Holds {
    if it_does { Ok(()) } else { Err(Broken { invariant, found: found() }) }
}

/// All ranks of a generation start from equal state.
pub fn one_state_after_recovery(generation: Generation, first: State, mine: State) -> Holds {
    holds("one state after every recovery", first == mine, || {
        format!("{generation} starts from state {first} on one rank and from {mine} on another")
    })
}

/// All ranks are in one state before each step, and do the same.
pub fn ranks_stay_together(generation: Generation, equal: bool) -> Holds {
    holds("ranks of a generation stay together", equal, || format!("ranks of {generation} are in different states"))
}

/// A generation goes on from the latest state of its ranks that is of the run's history: no step is taken twice while one of them
/// holds it.
pub fn no_step_is_taken_twice(generation: Generation, held: &[State], start: State, history: &History) -> Holds {
    let depth = |state: State| history.node(state).depth;
    let lost = held.iter().find(|&&state| history.is_before(state, history.head) && depth(state) > depth(start));
    holds("no step is taken twice", lost.is_none(), || {
        let steps = lost.map_or(0, |&state| depth(state));
        format!("{generation} starts after {} steps, and one of its ranks had taken {steps}", depth(start))
    })
}

/// No generation starts from before the checkpoint that it was told of: what is stored is not done again.
pub fn no_stored_step_is_taken_again(
    generation: Generation,
    stored: Option<State>,
    start: State,
    history: &History,
) -> Holds {
    let again = stored.is_some_and(|stored| stored != start && history.is_before(start, stored));
    holds("no stored step is taken again", !again, || {
        format!("{generation} starts from state {start}, and {stored:?} is stored")
    })
}

/// Whatever the latest generation starts from is of the history that the run had: two different ones are never both the run's. Only
/// if all who held it are lost, and nothing of it is stored, may the run go on from what another line has left.
pub fn one_history(
    generation: Generation,
    start: State,
    held: &[State],
    newest: Option<State>,
    history: &History,
) -> Holds {
    let is_lost = !held.iter().any(|&state| state != BEGINNING && history.on_one_line(state, history.head));
    let there = held.contains(&start) || newest == Some(start);
    let other = there && is_lost && newest.is_none_or(|stored| history.on_one_line(stored, start));
    holds("the run has one history", other || history.on_one_line(start, history.head), || {
        format!("{generation} starts from state {start}, and the run was at {}: neither led to the other", history.head)
    })
}

/// A step belongs to the state that its generation has reached.
pub fn a_step_follows_the_one_before(generation: Generation, parent: State, step: State, history: &History) -> Holds {
    let follows = history.head == parent || history.head == step;
    holds("a single generation is at work", follows, || {
        format!("{generation} goes from state {parent} to {step}, and the run is at {}", history.head)
    })
}

/// What the ranks of a generation have shown in a step, taken together, are the `shows` samples from `from` on, each once.
pub fn no_sample_is_lost_or_repeated(generation: Generation, from: u64, shows: u32, shown: &[u64]) -> Holds {
    let whole = shown.iter().copied().eq(from..from + u64::from(shows));
    holds("no sample is lost or repeated", whole, || {
        format!("{generation} shows {shown:?}, and {shows} from {from} on were to be shown")
    })
}

/// A worker enters only later generations than any before.
pub fn nothing_older_is_obeyed(worker: &str, entered: Generation, before: Generation) -> Holds {
    holds("nothing of an older generation is obeyed", entered > before, || {
        format!("{worker} enters {entered} after {before}")
    })
}

/// Who hears a coordinator does not end the run because others hear none.
pub fn orphans_end_a_run_only_together(worker: &str, alike: bool) -> Holds {
    holds("orphans end a run only together", alike, || format!("{worker} is none, and ends it as one"))
}

/// One worker at most has a rank.
pub fn a_rank_is_given_once(generation: Generation, rank: u32, free: bool) -> Holds {
    holds("a rank is given once", free, || format!("two workers are rank {rank} of {generation}"))
}

/// What a generation is asked for dies with it, or comes again: nobody regroups or stops who was not asked to.
pub fn wishes_are_of_this_generation(worker: &str, asked: bool) -> Holds {
    holds("wishes are of the generation at work", asked, || {
        format!("{worker} obeys what its generation was never told")
    })
}

/// The coordinator takes a checkpoint for the run's only if it holds a state of its one history.
pub fn a_checkpoint_is_of_the_one_history(state: State, history: &History) -> Holds {
    holds("a checkpoint holds a state of the run's one history", history.on_one_line(state, history.head), || {
        format!("state {state} is stored, and the run is at {}: neither led to the other", history.head)
    })
}

/// Nobody is lost for the coordinator's pause, or for one message: only who was silent, hung or out of reach itself.
pub fn nobody_is_evicted_without_a_cause(worker: &str, cause: &Cause, excused: bool) -> Holds {
    let by_time =
        matches!(cause, Cause::Silent { .. } | Cause::Disconnected { .. } | Cause::Hung { .. } | Cause::Stuck { .. });
    holds("nobody is evicted for another's fault", excused || !by_time, || format!("worker {worker} {cause}"))
}

/// Who is told that a generation is over leaves that one, and no other.
pub fn only_the_present_generation_is_left(worker: &str, told: Generation, present: Generation) -> Holds {
    holds("nothing of an older generation is obeyed", told == present, || {
        format!("{worker} leaves {present} because {told} is over")
    })
}

/// Who was replaced learns it soon, and from then on orders nothing.
pub fn who_was_replaced_gives_no_orders(epoch: u64, late: bool, order: &Action) -> Holds {
    holds("who was replaced gives no orders", !late, || format!("coordinator {epoch} still orders {order:?}"))
}

/// A worker that has obeyed a coordinator obeys no earlier one any more.
pub fn no_earlier_coordinator_is_obeyed(worker: &str, epoch: u64, before: u64) -> Holds {
    holds("no earlier coordinator is obeyed", epoch >= before, || {
        format!("{worker} obeys coordinator {epoch} after {before}")
    })
}

/// The places of a generation are given once: its number means one set of ranks.
pub fn a_generation_is_one(generation: Generation, one: bool) -> Holds {
    holds("a generation has one number, and a number one generation", one, || {
        format!("two different worlds meet as {generation}")
    })
}

/// After a stop, and once nothing goes wrong any more, no further steps are taken.
pub fn a_stop_is_obeyed(since: Millis, bound: Millis) -> Holds {
    holds("a stop is obeyed", since <= bound, || format!("a step {since} ms after it, of {bound}"))
}

/// While nothing goes wrong, the run gets on within a bound.
pub fn the_run_gets_on(stood: Millis, bound: Millis) -> Holds {
    holds("the run makes progress within a bound", stood <= bound, || {
        format!("nothing happened for {stood} ms, of {bound}")
    })
}

/// A run ends, and its workers with it.
pub fn every_run_ends(late: bool, what: impl FnOnce() -> String) -> Holds {
    holds("every run ends", !late, what)
}

/// What ended as wished has stored its last state.
pub fn an_end_is_stored(outcome: &Outcome, stored: Option<State>, history: &History) -> Holds {
    let wished = matches!(outcome.reason, Reason::Complete { .. } | Reason::Stopped { .. });
    holds("after a stop the newest checkpoint holds the last state", !wished || stored == Some(history.head), || {
        format!("{}, and stored is {stored:?} of head {}", outcome.reason, history.head)
    })
}
