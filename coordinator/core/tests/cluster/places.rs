//! Stories of places and of failures that come again: crash loops, growing and shrinking on request, workers told to
//! go.

use crate::look::{is_regroup, is_spawn, is_stop};
use crate::model::DIVERGED;
use crate::run::{CLOCK, Run, policy};
use common::exit::Exit;
use common::ids::ImagesSeen;
use coordinator_core::{Action, Cause, Command, ExitStatus, Force, Policy, Reason, Stored};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn spawns(run: &Run, slot: u32) -> Vec<Duration> {
    let spawn = |action: &Action| *action == Action::Spawn { slot };
    run.log.iter().filter(|(_, action)| spawn(action)).map(|(at, _)| *at).collect()
}

#[test]
fn a_place_whose_workers_die_is_filled_ever_more_slowly_and_given_up() {
    let mut run = Run::started(policy(2));
    run.pass(10 * SECOND);
    let since = run.now;
    run.dying_slots.insert(1, ExitStatus::Signal(11));
    run.kill(run.rank(1));
    run.pass(60 * SECOND);
    let times: Vec<_> = spawns(&run, 1).into_iter().filter(|at| *at >= since).collect();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!((times.len(), times[0]), (5, since), "{times:?}");
    assert!(pauses.windows(2).all(|pair| pair[1] > pair[0]) && pauses[3] >= 2 * SECOND, "{pauses:?}");
    let given_up = |reason: &Reason| matches!(reason, Reason::SlotGivenUp { slot: 1, deaths: 5, .. });
    assert_eq!(run.reasons(0).iter().filter(|reason| given_up(reason)).count(), 1);
    assert!(run.trains_with(1) && run.generation() == 2, "the others are not disturbed");
}

#[test]
fn a_run_whose_workers_all_die_at_the_start_ends_with_the_cause() {
    let mut run = Run::new(policy(1));
    run.dying_slots.insert(0, ExitStatus::Signal(4));
    let outcome = run.ends(10 * SECOND).clone();
    assert_eq!(outcome.exit, Exit::WorkerLost);
    assert!(outcome.reason.to_string().contains("SIGILL"), "{}", outcome.reason);
    let mut run = Run::new(policy(1));
    run.broken_slots.insert(0);
    let outcome = run.ends(10 * SECOND).clone();
    assert_eq!(outcome.exit, Exit::WorkerLost);
    assert!(run.reasons(0).iter().any(|reason| reason.to_string().contains("no such file")));
}

#[test]
fn a_worker_that_does_not_join_in_time_is_replaced() {
    let mut run = Run::started(policy(2));
    run.kill(run.rank(1));
    run.pass(CLOCK);
    run.workers[2].paused = true;
    assert!(run.until(policy(2).startup + 5 * SECOND, |run| run.trains_with(2)), "{:?}", run.cluster);
    assert!(matches!(run.cause(2), Some(Cause::Silent { .. })));
}

/// A run that has a checkpoint, and breaks at the same images again and again.
fn crash(run: &mut Run, times: u32) {
    for _ in 0..times {
        let generation = run.generation();
        run.trouble(run.rank(0), "the sum is not what it should be");
        assert!(run.until(5 * SECOND, |run| run.generation() != generation || run.cluster.is_over()));
        // nobody takes a step before it breaks again
        run.workers.iter_mut().for_each(|worker| worker.hung = true);
        run.until(SECOND, |run| run.workers.iter().all(|worker| worker.is_in(run.cluster.generation())));
        run.pass(CLOCK);
    }
}

#[test]
fn failures_at_one_place_go_back_to_a_checkpoint_once_then_end_the_run_with_its_state_stored() {
    let mut run = Run::started(policy(2));
    run.operator(Command::Checkpoint);
    run.pass(2 * SECOND);
    let (stored, failures) = (run.stored, policy(2).failures);
    let mark = run.log.len();
    crash(&mut run, failures - 1);
    assert!(run.assignments(mark).iter().all(|(_, place)| !place.rollback));
    let images = run.images();
    crash(&mut run, 1);
    assert!(run.reasons(mark).contains(&Reason::Rollback { failures, images: ImagesSeen(images) }));
    assert_eq!(run.images(), stored.0);
    let back = run.generation();
    // it meets, and fails before it is where it was
    run.workers.iter_mut().for_each(|worker| worker.hung = false);
    assert!(run.until(SECOND, |run| run.trains_with(2)));
    crash(&mut run, failures - 1);
    let rolled: Vec<_> = (run.assignments(mark).into_iter())
        .filter(|(_, place)| place.rollback)
        .map(|(_, place)| (place.generation.0, place.resume.map(|stored| stored.images)))
        .collect();
    assert_eq!(rolled, [(back, Some(stored)), (back, Some(stored))], "exactly one generation goes back");
    crash(&mut run, 1);
    run.workers.iter_mut().for_each(|worker| worker.hung = false);
    let outcome = run.ends(10 * SECOND).clone();
    let Reason::CrashLoop { failures: count, last, .. } = &outcome.reason else { panic!("{outcome:?}") };
    assert_eq!((outcome.exit, *count), (Exit::WorkerLost, failures));
    assert!(last.contains("the sum is not what it should be"), "{last}");
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(outcome.images), "stored before the end");
}

#[test]
fn progress_forgives_failures() {
    let mut run = Run::started(policy(2));
    let mark = run.log.len();
    for _ in 0..10 {
        crash(&mut run, policy(2).failures - 1);
        run.workers.iter_mut().for_each(|worker| worker.hung = false);
        run.pass(SECOND);
    }
    assert!(run.trains_with(2));
    assert!(run.assignments(mark).iter().all(|(_, place)| !place.rollback));
}

#[test]
fn without_a_checkpoint_there_is_nothing_to_go_back_to() {
    let mut run = Run::started(policy(2));
    crash(&mut run, policy(2).failures);
    run.workers.iter_mut().for_each(|worker| worker.hung = false);
    let outcome = run.ends(10 * SECOND);
    assert!(matches!(outcome.reason, Reason::CrashLoop { .. }), "{outcome:?}");
    assert_eq!(outcome.newest.as_ref().map(|stored| stored.images), Some(outcome.images));
}

#[test]
fn a_stop_that_fails_again_and_again_ends_too() {
    let mut run = Run::started(policy(2));
    run.workers.iter_mut().for_each(|worker| worker.hung = true);
    run.operator(Command::Stop);
    run.pass(CLOCK);
    crash(&mut run, policy(2).failures);
    let outcome = run.ends(10 * SECOND);
    assert!(matches!(outcome.reason, Reason::CrashLoop { .. }), "{outcome:?}");
}

#[test]
fn training_that_diverges_goes_back_and_draws_anew_and_ends_if_that_does_not_help() {
    let mut run = Run::started(policy(2));
    run.operator(Command::Checkpoint);
    run.pass(2 * SECOND);
    let (mark, stored) = (run.log.len(), run.stored);
    run.trouble(run.rank(0), DIVERGED);
    run.trouble(run.rank(1), DIVERGED);
    assert!(run.until(SECOND, |run| run.trains_with(2)), "{:?}", run.cluster);
    let places = run.assignments(mark);
    assert!(places.iter().all(|(_, place)| place.rollback && place.redraw && place.resume.is_some()), "{places:?}");
    assert!(run.reasons(mark).iter().any(|reason| matches!(reason, Reason::Redraw { to, .. } if *to == stored)));
    assert!(run.images() < stored.0 + 10 && run.cluster.losses().count() == 0);
    // a loss does not make it draw anew once more
    run.pass(SECOND);
    let mark = run.log.len();
    run.trouble(run.rank(0), "a peer does not answer");
    assert!(run.until(SECOND, |run| run.trains_with(2)), "{:?}", run.cluster);
    assert!(run.assignments(mark).iter().all(|(_, place)| !place.rollback && !place.redraw));
    // a checkpoint since is a new start
    run.operator(Command::Checkpoint);
    run.pass(2 * SECOND);
    let stored = run.stored;
    for _ in 0..policy(2).failures {
        run.trouble(run.rank(0), DIVERGED);
        run.trouble(run.rank(1), DIVERGED);
        assert!(run.until(SECOND, |run| run.trains_with(2)), "{:?}", run.cluster);
        run.pass(SECOND);
    }
    run.trouble(run.rank(0), DIVERGED);
    let outcome = run.ends(10 * SECOND).clone();
    assert_eq!((outcome.exit, outcome.newest.map(|newest| newest.images)), (Exit::Diverged, Some(stored)));
    assert!(outcome.reason.to_string().contains("4 times in a row"), "{}", outcome.reason);
    // without a checkpoint there is nothing to go back to
    let mut run = Run::started(policy(2));
    run.trouble(run.rank(1), DIVERGED);
    assert_eq!(run.ends(10 * SECOND).exit, Exit::Diverged);
}

#[test]
fn who_missed_the_way_back_gets_no_place_with_what_it_holds() {
    let newest = Stored { images: ImagesSeen(5), manifest: "m5".into() };
    let mut run = Run::with(Policy { local: 2, ..policy(3) }, Some(newest));
    let absent = run.arrive();
    assert!(run.until(10 * SECOND, |run| run.trains_with(3)));
    run.pass(SECOND);
    let images = run.images();
    run.workers[absent].deaf = true;
    run.workers[absent].paused = true;
    run.disconnect(absent, 20 * SECOND);
    assert!(run.until(5 * SECOND, |run| run.generation() == 2), "{:?}", run.cluster);
    run.workers.iter_mut().for_each(|worker| worker.hung = true);
    run.pass(CLOCK);
    crash(&mut run, policy(3).failures);
    assert_eq!(run.images(), 5);
    run.workers.iter_mut().for_each(|worker| worker.hung = false);
    (run.workers[absent].deaf, run.workers[absent].paused) = (false, false);
    run.until(5 * SECOND, |run| run.images() > 8);
    let back = run.generation();
    run.disconnect(absent, Duration::ZERO);
    run.until(5 * SECOND, |run| run.workers[absent].left);
    assert!(run.workers[absent].left && run.workers[absent].standing.images >= ImagesSeen(images));
    assert_eq!(run.generation(), back);
}

#[test]
fn the_number_of_workers_follows_the_operator() {
    let mut run = Run::started(policy(2));
    let mark = run.log.len();
    run.operator(Command::Scale(4));
    assert_eq!(run.count(mark, is_spawn), 2);
    assert!(run.until(5 * SECOND, |run| run.trains_with(4)), "{:?}", run.cluster);
    assert_eq!(run.generation(), 2, "both newcomers are taken in together");
    let mark = run.log.len();
    run.operator(Command::Scale(1));
    assert!(run.until(5 * SECOND, |run| run.trains_with(1)), "{:?}", run.cluster);
    run.pass(10 * SECOND);
    assert_eq!(run.cluster.members().count(), 1, "the others are let go");
    assert_eq!((run.count(mark, is_stop), run.count(mark, is_spawn)), (3, 0));
    assert_eq!((run.generation(), run.cluster.losses().count()), (3, 0));
    // within the bounds of the policy
    run.operator(Command::Scale(99));
    assert_eq!(run.cluster.wanted(), policy(2).max_workers);
    assert!(run.until(10 * SECOND, |run| run.trains_with(8)), "{:?}", run.cluster);
    run.operator(Command::Scale(0));
    assert_eq!(run.cluster.wanted(), policy(2).min_workers);
}

#[test]
fn workers_from_elsewhere_beyond_the_number_wait_and_take_over_at_once() {
    let mut run = Run::started(policy(2));
    run.arrive();
    run.pass(5 * SECOND);
    assert!(run.trains_with(2) && run.generation() == 1);
    let (now, mark) = (run.now, run.log.len());
    run.kill(run.rank(1));
    run.pass(Duration::ZERO);
    assert_eq!(run.assignments(mark).len(), 2, "{:?}", run.cluster);
    assert!(run.log[mark..].iter().all(|(at, _)| *at == now));
    run.pass(10 * SECOND);
    assert!(run.trains_with(2) && run.generation() == 2, "{:?}", run.cluster);
    assert_eq!(run.cluster.members().count(), 2);
}

#[test]
fn a_worker_told_to_go_is_let_out_between_two_steps() {
    let mut run = Run::started(policy(3));
    let (mark, going) = (run.log.len(), run.rank(1));
    run.terminate(going);
    assert!(run.until(SECOND, |run| run.trains_with(2)), "{:?}", run.cluster);
    assert!(run.count(mark, is_regroup) > 0);
    assert!(run.assignments(mark).iter().all(|(worker, _)| *worker != run.id(going)));
    let broken = run.reasons(mark).into_iter().find(|reason| matches!(reason, Reason::Broken { .. }));
    assert!(broken.expect("one is over").to_string().contains("together"));
    assert_eq!(run.count(mark, |action| matches!(action, Action::Kill { .. } | Action::Abort { .. })), 0);
    // its place is filled again, and no failure is counted
    assert!(run.until(5 * SECOND, |run| run.trains_with(3)), "{:?}", run.cluster);
    assert_eq!((run.generation(), run.cluster.losses().count()), (3, 0));
}

#[test]
fn a_process_that_does_not_end_after_its_farewell_is_killed() {
    let mut run = Run::started(policy(2));
    let (mark, going) = (run.log.len(), run.rank(1));
    run.workers[going].lingers = true;
    run.terminate(going);
    run.pass(4 * SECOND);
    let kill = Action::Kill { worker: run.id(going), force: Force::Kill };
    assert!(run.trains_with(2) && run.orders(mark).all(|action| *action != kill));
    run.pass(3 * SECOND);
    assert_eq!(run.count(mark, |action| *action == kill), 1);
    assert!(!run.workers[going].alive);
}

#[test]
fn if_all_are_told_to_go_the_state_is_stored_first() {
    let mut run = Run::started(policy(2));
    run.terminate(0);
    run.terminate(1);
    let outcome = run.ends(10 * SECOND).clone();
    assert!(matches!(&outcome.reason, Reason::Lost { cause: Cause::Released, .. }), "{outcome:?}");
    assert_eq!(outcome.exit, Exit::WorkerLost);
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(outcome.images));
}

#[test]
fn the_last_one_hands_the_state_to_a_newcomer() {
    let mut run = Run::new(Policy { local: 0, ..policy(1) });
    let going = run.arrive();
    run.until(5 * SECOND, |run| run.trains_with(1));
    let next = run.arrive();
    run.pass(3 * SECOND);
    let (mark, images) = (run.log.len(), run.images());
    run.terminate(going);
    assert!(run.until(2 * SECOND, |run| run.trains_with(1) && run.rank(0) == next), "{:?}", run.cluster);
    assert_eq!((run.count(mark, is_regroup), run.generation(), run.stored.0), (2, 3, 0));
    assert!(run.images() > images && run.workers[going].left, "{:?}", run.cluster);
}

#[test]
fn the_last_one_that_holds_the_state_is_kept_until_it_is_stored_though_it_was_told_to_go() {
    let mut run = Run::started(policy(2));
    let (going, dying) = (run.rank(0), run.rank(1));
    let images = run.images();
    run.terminate(going);
    run.kill(dying);
    let outcome = run.ends(20 * SECOND).clone();
    assert!(matches!(&outcome.reason, Reason::Lost { .. }), "{outcome:?}");
    assert!(outcome.newest.is_some_and(|stored| stored.images.0 >= images && stored.images == outcome.images));
}
