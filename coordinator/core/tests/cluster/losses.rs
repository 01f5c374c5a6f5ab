//! Stories of generations: how one forms, what ends it, and who is in the next.

use crate::look::{is_abort, is_regroup, is_spawn};
use crate::run::{CLOCK, PATIENCE, Run, START, policy};
use common::checkpoint::ManifestKey;
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen, Rank};
use coordinator_core::{Action, Cause, Command, Event, ExitStatus, OnLoss, Phase, Policy, Reason, Stored};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_generation_forms_when_all_are_ready_and_ranks_follow_slots() {
    let mut run = Run::new(policy(3));
    run.pass(CLOCK);
    assert_eq!(run.count(0, is_spawn), 3);
    // the first one is the last to be ready
    run.workers[0].paused = true;
    run.pass(5 * SECOND);
    assert_eq!((run.phase(), run.generation()), (Phase::Gathering, 0));
    run.workers[0].paused = false;
    assert!(run.until(3 * SECOND, |run| run.trains_with(3)));
    let assigned = run.assignments(0);
    assert_eq!(assigned.len(), 3);
    for (i, (worker, assignment)) in (0..).zip(assigned) {
        assert_eq!((worker, assignment.rank), (run.id(i as usize), Rank(i)));
        assert_eq!((assignment.generation, assignment.rollback), (Generation(1), false));
        assert_eq!(*assignment.peers, ["10.0.0.0:4000", "10.0.0.1:4000", "10.0.0.2:4000"]);
    }
}

#[test]
fn after_the_startup_time_enough_are_enough_unless_all_are_wanted() {
    let startup = policy(3).startup;
    let late = |on_loss| {
        let mut run = Run::new(Policy { local: 2, min_workers: 2, on_loss, ..policy(3) });
        run.pass(startup - CLOCK);
        assert_eq!(run.phase(), Phase::Gathering);
        run.pass(5 * SECOND);
        run
    };
    assert!(late(OnLoss::Shrink).trains_with(2));
    let run = late(OnLoss::Wait);
    let outcome = run.cluster.outcome().expect("it is over");
    let Reason::Missing { missing, .. } = &outcome.reason else { panic!("{outcome:?}") };
    assert_eq!((outcome.exit, missing.len()), (Exit::WorkerLost, 1));
}

#[test]
fn a_killed_member_costs_the_others_no_wait_and_is_replaced() {
    let mut run = Run::started(policy(3));
    let (images, mark, victim) = (run.images(), run.log.len(), run.rank(1));
    let died = run.now;
    run.kill(victim);
    run.pass(Duration::ZERO);
    // the others are told, a new one is started, and the next generation formed: all before any time has passed
    assert_eq!(run.count(mark, is_abort), 2);
    assert_eq!(run.count(mark, is_spawn), 1);
    let next = run.assignments(mark);
    assert_eq!(next.len(), 2);
    assert!(next.iter().all(|(_, assignment)| assignment.generation == Generation(2) && assignment.peers.len() == 2));
    assert_eq!(run.when(mark, |action| matches!(action, Action::Assign { .. })), Some(died));
    assert!(matches!(run.cause(victim), Some(Cause::Exited { status: ExitStatus::Signal(9), .. })));
    assert!(run.until(SECOND, |run| run.images() > images), "the survivors go on");
    // the newcomer is taken in as soon as it is ready
    assert!(run.until(START * 2 + SECOND, |run| run.generation() == 3 && run.trains_with(3)));
    assert!(run.count(mark, is_regroup) > 0);
    assert!(run.reasons(mark).contains(&Reason::Regroup { workers: 2, wanted: 3 }));
    let before = run.images();
    run.pass(SECOND);
    assert!(run.images() > before && run.generation() == 3, "and nothing disturbs them any more");
}

#[test]
fn the_next_generation_waits_for_nobody_but_the_survivors() {
    let mut run = Run::started(policy(3));
    let (mark, victim, slow) = (run.log.len(), run.rank(0), run.rank(2));
    run.workers[slow].paused = true;
    run.kill(victim);
    run.pass(SECOND / 2);
    assert_eq!((run.phase(), run.generation()), (Phase::Reconfiguring, 1));
    run.workers[slow].paused = false;
    run.say(slow);
    run.until(CLOCK * 2, |run| run.generation() == 2);
    assert_eq!(run.assignments(mark).len(), 2, "{:?}", run.cluster);
}

#[test]
fn a_silent_member_is_only_lost_if_the_generation_does_not_get_on() {
    let mut run = Run::started(policy(2));
    let silent = run.rank(1);
    run.workers[silent].mute = true;
    run.pass(PATIENCE * 5);
    assert_eq!((run.phase(), run.generation()), (Phase::Running, 1), "every step needs it: it lives");
    run.workers[silent].paused = true;
    // the other one waits for it: half the patience is enough
    run.pass(PATIENCE / 2 - CLOCK);
    assert_eq!(run.generation(), 1);
    assert!(run.until(CLOCK * 3, |run| run.generation() == 2 && run.trains_with(1)), "{:?}", run.cluster);
    assert!(matches!(run.cause(silent), Some(Cause::Silent { for_ }) if for_ > PATIENCE * 5));
}

#[test]
fn one_that_falls_silent_is_lost_as_soon_if_its_last_word_was_that_it_waits() {
    let mut run = Run::started(policy(3));
    run.pass(PATIENCE * 5);
    let silent = run.rank(1);
    run.workers[silent].standing.waiting = true;
    run.say(silent);
    run.workers[silent].paused = true;
    run.pass(PATIENCE / 2 - CLOCK);
    assert_eq!(run.generation(), 1);
    assert!(run.until(CLOCK * 5, |run| run.generation() == 2 && run.trains_with(2)), "{:?}", run.cluster);
    assert!(matches!(run.cause(silent), Some(Cause::Silent { .. })));
}

#[test]
fn who_comes_back_in_an_old_generation_is_sent_out_and_taken_in_later() {
    let mut run = Run::new(Policy { local: 1, ..policy(2) });
    let stale = run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(2)));
    // its machine is cut off
    (run.workers[stale].paused, run.workers[stale].deaf) = (true, true);
    run.disconnect(stale, PATIENCE * 3);
    assert!(run.until(PATIENCE * 2, |run| run.trains_with(1)), "{:?}", run.cluster);
    assert!(matches!(run.cause(stale), Some(Cause::Disconnected { .. })));
    let mark = run.log.len();
    (run.workers[stale].paused, run.workers[stale].deaf) = (false, false);
    assert!(run.until(LONG, |run| run.trains_with(2)), "{:?}", run.cluster);
    let id = run.id(stale);
    let order = |is: fn(&Action) -> bool| run.when(mark, is).expect("it was ordered");
    let out = order(|action| matches!(action, Action::Abort { generation: Generation(1), .. }));
    let regroup = order(|action| matches!(action, Action::Regroup { generation: Generation(2), .. }));
    let taken_in = run.when(mark, |action| matches!(action, Action::Assign { worker, .. } if *worker == id));
    assert!(out < regroup && regroup < taken_in.expect("it has a place"));
    assert_eq!(run.generation(), 3);
}

#[test]
fn the_coordinator_s_own_pause_evicts_nobody() {
    let mut run = Run::started(policy(3));
    for pause in [SECOND, 10 * SECOND, 3600 * SECOND] {
        run.stop_coordinator(pause);
        run.pass(pause + SECOND);
    }
    assert_eq!((run.phase(), run.generation()), (Phase::Running, 1));
    assert_eq!(run.cluster.losses().count(), 0);
}

#[test]
fn a_short_pause_of_the_coordinator_is_none_of_the_workers_however_little_patience_it_has() {
    let patience = SECOND * 4 / 5;
    let mut run = Run::started(Policy { patience, ..policy(3) });
    run.workers.iter_mut().for_each(|worker| worker.paused = true);
    run.stop_coordinator(patience);
    run.pass(patience);
    run.workers.iter_mut().for_each(|worker| worker.paused = false);
    run.pass(SECOND);
    assert_eq!((run.phase(), run.generation()), (Phase::Running, 1), "{:?}", run.cluster);
}

#[test]
fn pauses_in_a_row_before_anybody_is_heard_are_none_of_the_workers_either() {
    let mut run = Run::started(policy(3));
    run.workers.iter_mut().for_each(|worker| worker.mute = true);
    for _ in 0..5 {
        run.stop_coordinator(10 * SECOND);
        run.pass(10 * SECOND + SECOND / 20);
    }
    run.workers.iter_mut().for_each(|worker| worker.mute = false);
    run.pass(SECOND);
    assert_eq!((run.phase(), run.generation()), (Phase::Running, 1), "{:?}", run.cluster);
}

#[test]
fn who_comes_back_from_a_line_that_was_left_starts_from_what_is_stored_since() {
    let mut run = Run::new(Policy { local: 0, ..policy(1) });
    let stale = run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(1)));
    (run.workers[stale].paused, run.workers[stale].deaf) = (true, true);
    run.disconnect(stale, PATIENCE * 3);
    let other = run.arrive();
    assert!(run.until(LONG, |run| run.generation() == 2 && run.trains_with(1)), "{:?}", run.cluster);
    run.operator(coordinator_core::Command::Checkpoint);
    run.pass(SECOND);
    let stored = run.cluster.newest().cloned();
    assert!(stored.is_some());
    (run.workers[stale].paused, run.workers[stale].deaf) = (false, false);
    assert!(run.until(LONG, |run| run.workers[stale].standing.ready), "{:?}", run.cluster);
    run.pass(SECOND);
    let mark = run.log.len();
    run.kill(other);
    assert!(run.until(LONG, |run| run.generation() == 3), "{:?}", run.cluster);
    let (worker, assignment) = run.assignments(mark).remove(0);
    assert_eq!((worker, assignment.rollback, assignment.resume), (run.id(stale), true, stored));
}

/// One is at work in the second generation, and one waits, with what the first one had reached.
pub fn one_at_work_and_one_spare() -> (Run, usize, usize) {
    let mut run = Run::new(Policy { local: 0, ..policy(2) });
    let (one, other) = (run.arrive(), run.arrive());
    assert!(run.until(LONG, |run| run.trains_with(2)));
    run.operator(coordinator_core::Command::Scale(1));
    assert!(run.until(LONG, |run| run.generation() == 2 && run.trains_with(1)), "{:?}", run.cluster);
    run.pass(5 * SECOND);
    let at_work = run.rank(0);
    (run, at_work, if at_work == one { other } else { one })
}

#[test]
fn who_is_told_to_go_hands_over_to_a_spare_that_holds_an_older_state() {
    let (mut run, at_work, spare) = one_at_work_and_one_spare();
    let (images, mark) = (run.images(), run.log.len());
    assert!(images > run.workers[spare].standing.images.0 && run.workers[spare].standing.has_state);
    run.terminate(at_work);
    assert!(run.until(LONG, |run| run.generation() == 3), "{:?}", run.cluster);
    let places: Vec<_> = run.assignments(mark).into_iter().map(|(worker, _)| worker).collect();
    assert!(places.contains(&run.id(at_work)) && places.contains(&run.id(spare)), "{places:?}");
    assert!(run.until(LONG, |run| run.trains_with(1)) && run.images() >= images, "{:?}", run.cluster);
}

#[test]
fn a_hand_over_may_make_a_world_larger_than_allowed_and_only_until_it_is_done() {
    let mut run = Run::new(Policy { local: 0, max_workers: 1, ..policy(1) });
    let first = run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(1)));
    run.arrive();
    run.pass(5 * SECOND);
    assert_eq!(run.generation(), 1, "the second one waits");
    let (images, mark, since) = (run.images(), run.log.len(), run.now);
    run.terminate(first);
    assert!(run.until(LONG, |run| run.generation() == 3 && run.trains_with(1)), "{:?}", run.cluster);
    assert!(run.now - since < SECOND && run.images() >= images, "{:?}", run.now - since);
    let worlds: Vec<_> = (run.assignments(mark).iter()).map(|(_, a)| (a.generation.0, a.peers.len())).collect();
    assert_eq!(worlds, [(2, 2), (2, 2), (3, 1)]);
    run.pass(5 * SECOND);
    assert_eq!(run.generation(), 3);
}

#[test]
fn a_spare_with_an_older_state_starts_from_what_is_stored_since() {
    let (mut run, at_work, spare) = one_at_work_and_one_spare();
    run.operator(coordinator_core::Command::Checkpoint);
    run.pass(SECOND);
    let (stored, mark) = (run.cluster.newest().cloned(), run.log.len());
    run.kill(at_work);
    assert!(run.until(LONG, |run| run.generation() == 3), "{:?}", run.cluster);
    let (worker, assignment) = run.assignments(mark).remove(0);
    assert_eq!((worker, assignment.rollback, assignment.resume), (run.id(spare), true, stored));
}

#[test]
fn one_that_was_placed_and_never_filled_is_no_holder_of_the_newer_state() {
    let (mut run, at_work, spare) = one_at_work_and_one_spare();
    run.operator(coordinator_core::Command::Checkpoint);
    run.pass(SECOND);
    let stored = run.cluster.newest().cloned();
    // it gets its place, and the other one dies before they have met
    run.workers[spare].hung = true;
    run.operator(coordinator_core::Command::Scale(2));
    assert!(run.until(LONG, |run| run.generation() == 3 && run.workers[spare].standing.generation.0 == 3));
    assert!(!run.workers[spare].met && run.workers[spare].standing.line == Generation(1));
    let mark = run.log.len();
    run.workers[spare].hung = false;
    run.kill(at_work);
    run.trouble(spare, "a peer is gone");
    assert!(run.until(LONG, |run| run.generation() == 4), "{:?}", run.cluster);
    let (worker, assignment) = run.assignments(mark).remove(0);
    assert_eq!((worker, assignment.rollback, assignment.resume), (run.id(spare), true, stored));
}

/// It was alone, and lost because nobody heard it: another one has gone on from before its first step.
#[test]
fn what_one_has_stored_of_whose_steps_nothing_was_heard_is_of_a_line_that_was_left() {
    let mut run = Run::new(Policy { local: 0, ..policy(2) });
    run.arrive();
    run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(2) && run.images() > 3), "{:?}", run.cluster);
    run.operator(Command::Scale(1));
    assert!(run.until(LONG, |run| run.generation() == 2), "{:?}", run.cluster);
    let alone = run.rank(0);
    run.workers[alone].mute = true;
    assert!(run.until(LONG, |run| run.generation() == 3), "{:?}", run.cluster);
    run.workers[alone].mute = false;
    run.pass(SECOND);
    let (worker, images) = (run.id(alone), ImagesSeen(run.images() + 50));
    let session = run.workers[alone].session.expect("it has come back");
    let stored = Stored { images, manifest: ManifestKey::new(images, Generation(2)).to_string() };
    run.feed(Event::Stored { worker, session, generation: Generation(2), stored });
    assert_eq!(run.cluster.newest(), None);
}

#[test]
fn what_was_stored_counts_still_after_a_generation_that_took_no_step() {
    let mut run = Run::started(policy(2));
    run.pass(SECOND);
    // the second one breaks before it has met
    for index in 0..2 {
        run.workers[index].hung = true;
        run.trouble(index, "a peer is gone");
    }
    let placed = |run: &Run| run.workers.iter().all(|worker| worker.is_in(Generation(2)));
    assert!(run.until(LONG, placed), "{:?}", run.cluster);
    (0..2).for_each(|index| run.trouble(index, "a peer is gone"));
    (0..2).for_each(|index| run.workers[index].hung = false);
    assert!(run.until(LONG, |run| run.generation() == 3 && run.trains_with(2)), "{:?}", run.cluster);
    // now it is heard what the first one had stored
    let worker = run.id(0);
    let (session, generation) = (run.workers[0].session.expect("it has joined"), Generation(1));
    let stored = Stored { images: ImagesSeen(2), manifest: ManifestKey::new(ImagesSeen(2), generation).to_string() };
    run.feed(Event::Stored { worker, session, generation, stored: stored.clone() });
    assert_eq!(run.cluster.newest(), Some(&stored));
}

#[test]
fn a_rank_for_which_the_others_wait_is_lost() {
    let mut run = Run::started(policy(3));
    run.pass(5 * SECOND); // a generation that is known
    let (mark, hung, since) = (run.log.len(), run.rank(1), run.now);
    run.workers[hung].hung = true;
    run.pass(PATIENCE - CLOCK * 2);
    assert_eq!(run.generation(), 1);
    assert!(run.until(SECOND, |run| run.generation() == 2), "{:?}", run.cluster);
    assert!(run.now - since >= PATIENCE);
    assert!(matches!(run.cause(hung), Some(Cause::Hung { for_, .. }) if for_ >= PATIENCE));
    let id = run.id(hung);
    assert_eq!(run.count(mark, |action| matches!(action, Action::Kill { worker, .. } if *worker == id)), 1);
}

/// Steps are taken faster than they are told: what counts is how many there were.
#[test]
fn a_rank_that_hangs_after_many_quick_steps_is_lost_as_soon_as_one_that_was_watched_for_long() {
    let lost_after = |steps: u32| {
        let mut run = Run::started(policy(3));
        let (hung, since) = (run.rank(1), run.now);
        run.workers.iter_mut().for_each(|worker| worker.standing.steps = steps);
        run.workers[hung].hung = true;
        assert!(run.until(LONG * 2, |run| run.generation() == 2), "{:?}", run.cluster);
        assert!(matches!(run.cause(hung), Some(Cause::Hung { .. })));
        run.now - since
    };
    let (known, unknown) = (lost_after(20), lost_after(1));
    assert!(known < PATIENCE + SECOND, "{known:?}");
    assert!(unknown >= 30 * SECOND, "its first steps may take long: {unknown:?}");
}

#[test]
fn a_slow_step_and_a_long_evaluation_are_no_hang() {
    let mut run = Run::started(policy(2));
    run.pass(5 * SECOND);
    // five steps of 2 s
    let slow = run.rank(1);
    run.workers.iter_mut().for_each(|worker| worker.standing.step_time = 2 * SECOND);
    run.pass(SECOND);
    run.workers[slow].hung = true;
    run.pass(9 * SECOND);
    assert_eq!(run.generation(), 1);
    run.workers[slow].hung = false;
    run.pass(SECOND);
    // rank 0 evaluates for a minute while the others wait in the next step, and begins that one 2 s later
    let busy = run.rank(0);
    run.workers[busy].hung = true;
    run.workers[busy].standing.activity = "evaluate".into();
    run.pass(60 * SECOND);
    run.workers[busy].standing.activity = "train".into();
    run.pass(2 * SECOND);
    run.workers[busy].hung = false;
    run.pass(SECOND);
    assert_eq!((run.phase(), run.generation()), (Phase::Running, 1));
    // and then it does hang
    run.workers[busy].hung = true;
    assert!(run.until(LONG, |run| run.generation() == 2));
}

#[test]
fn ranks_that_stand_at_different_steps_are_no_progress() {
    let mut run = Run::started(policy(2));
    run.pass(5 * SECOND);
    let (ahead, hung) = (run.rank(0), run.rank(1));
    run.workers[hung].hung = true;
    run.workers[ahead].standing.step = 1;
    assert!(run.until(PATIENCE + SECOND, |run| run.generation() == 2), "{:?}", run.cluster);
    assert!(matches!(run.cause(hung), Some(Cause::Hung { .. })));
}

#[test]
fn a_survivor_that_does_not_come_out_is_lost_after_patience() {
    let mut run = Run::started(policy(3));
    let (victim, stuck) = (run.rank(0), run.rank(1));
    run.workers[stuck].stubborn = true;
    run.kill(victim);
    run.pass(PATIENCE - CLOCK);
    assert_eq!((run.phase(), run.generation()), (Phase::Reconfiguring, 1));
    assert!(run.until(SECOND, |run| run.generation() == 2), "{:?}", run.cluster);
    assert!(matches!(run.cause(stuck), Some(Cause::Stuck { .. })));
}

/// An evaluation looks up from what it computes now and then only, and holds a state like any other.
#[test]
fn a_survivor_that_evaluates_is_given_the_time_to_come_out() {
    let mut run = Run::started(policy(3));
    let (victim, busy) = (run.rank(0), run.rank(1));
    run.workers[busy].stubborn = true;
    run.workers[busy].standing.activity = "evaluate".into();
    run.pass(CLOCK);
    run.kill(victim);
    run.pass(20 * PATIENCE);
    assert_eq!((run.phase(), run.generation()), (Phase::Reconfiguring, 1));
    run.workers[busy].stubborn = false;
    assert!(run.until(SECOND * 5, |run| run.generation() == 2 && run.trains_with(3)), "{:?}", run.cluster);
    assert!(run.cause(busy).is_none());
}

#[test]
fn who_is_out_of_reach_is_waited_for_only_if_nobody_else_holds_the_state() {
    let mut run = Run::started(policy(2));
    let (mark, images, survivor, victim) = (run.log.len(), run.images(), run.rank(0), run.rank(1));
    run.disconnect(survivor, PATIENCE * 3 / 4);
    run.kill(victim);
    run.pass(PATIENCE / 2 + CLOCK);
    assert!(run.workers[2].standing.ready, "the replacement could start from nothing");
    assert_eq!((run.phase(), run.assignments(mark).len()), (Phase::Reconfiguring, 0));
    assert!(run.until(SECOND, |run| run.generation() == 2 && run.trains_with(2)), "{:?}", run.cluster);
    assert!(run.images() >= images);
    // with a third one that holds it, nobody waits
    let mut run = Run::started(policy(3));
    run.disconnect(run.rank(0), PATIENCE * 3 / 4);
    run.kill(run.rank(1));
    run.pass(CLOCK);
    assert_eq!((run.generation(), run.cluster.world()), (2, 1));
}

#[test]
fn who_wants_all_waits_for_the_replacement() {
    let mut run = Run::started(Policy { on_loss: OnLoss::Wait, ..policy(2) });
    let (mark, images) = (run.log.len(), run.images());
    run.kill(run.rank(1));
    run.pass(SECOND / 2);
    assert_eq!((run.phase(), run.count(mark, is_spawn)), (Phase::Reconfiguring, 1));
    assert!(run.until(START * 3, |run| run.generation() == 2 && run.trains_with(2)), "{:?}", run.cluster);
    assert!(run.images() >= images, "the survivor held the state");
    assert_eq!(run.count(mark, is_regroup), 0);
}

#[test]
fn too_few_wait_then_store_what_they_hold_and_say_who_is_missing() {
    let mut run = Run::new(Policy { local: 1, min_workers: 2, ..policy(2) });
    let other = run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(2)));
    run.pass(SECOND);
    let (mark, startup) = (run.log.len(), policy(2).startup);
    run.kill(other);
    run.pass(startup - SECOND);
    assert_eq!((run.phase(), run.generation()), (Phase::Reconfiguring, 1));
    let outcome = run.ends(10 * SECOND).clone();
    let last = run.assignments(mark);
    assert_eq!(last.len(), 1, "a last generation of one, only to store");
    assert!(matches!(&outcome.reason, Reason::Missing { missing, .. } if missing.len() == 1), "{outcome:?}");
    assert_eq!(outcome.exit, Exit::WorkerLost);
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(outcome.images));
}

#[test]
fn a_second_worker_in_time_saves_a_run_of_too_few() {
    let mut run = Run::new(Policy { local: 1, min_workers: 2, ..policy(2) });
    let other = run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(2)));
    run.kill(other);
    run.pass(10 * SECOND);
    run.arrive();
    assert!(run.until(5 * SECOND, |run| run.trains_with(2)));
}

#[test]
fn if_all_die_the_newcomers_start_from_the_newest_checkpoint() {
    let mut run = Run::started(policy(2));
    run.operator(coordinator_core::Command::Checkpoint);
    run.pass(SECOND);
    let stored = run.stored;
    assert!(stored.0 > 0 && run.cluster.newest().is_some_and(|newest| newest.images == stored));
    let mark = run.log.len();
    run.kill(0);
    run.kill(1);
    assert!(run.until(5 * SECOND, |run| run.trains_with(2)), "{:?}", run.cluster);
    let (_, assignment) = &run.assignments(mark)[0];
    assert_eq!(assignment.resume.as_ref().map(|stored| stored.images), Some(stored));
    assert!(!assignment.rollback);
}

#[test]
fn a_rank_that_keeps_the_others_waiting_is_named_with_the_cause_and_kept() {
    let mut run = Run::started(policy(3));
    let mut share = [1, 1, 1];
    let work = |run: &mut Run, share: [u32; 3], millis: [u64; 3], data: u64| {
        for (rank, millis) in (0..).zip(millis) {
            let index = run.rank(rank);
            let standing = &mut run.workers[index].standing;
            (standing.busy, standing.data) =
                (Duration::from_millis(millis), Duration::from_millis(data.min(millis / 2)));
            standing.share = share[rank as usize];
        }
        run.pass(3 * SECOND);
    };
    let mark = run.log.len();
    work(&mut run, share, [80, 85, 90], 1);
    let named = |run: &Run| {
        let reasons = run.reasons(mark).into_iter();
        reasons
            .filter(|reason| matches!(reason, Reason::Straggler { .. }))
            .map(|reason| reason.to_string())
            .collect::<Vec<_>>()
    };
    assert!(named(&run).is_empty(), "{:?}", named(&run));
    work(&mut run, share, [80, 200, 90], 1);
    let [said] = &named(&run)[..] else { panic!("{:?}", named(&run)) };
    assert!(said.contains("rank 1") && said.contains("200 ms") && said.contains("90 ms"), "{said}");
    assert!(said.contains("computing"), "{said}");
    work(&mut run, share, [80, 200, 90], 1);
    assert_eq!(named(&run).len(), 1, "once is enough");
    work(&mut run, share, [200, 80, 90], 100);
    assert_eq!(named(&run).len(), 2);
    assert!(named(&run)[1].contains("rank 0") && named(&run)[1].contains("images"), "{:?}", named(&run));
    share = [2, 1, 0];
    work(&mut run, share, [160, 85, 1], 1);
    // what a step costs however small the share is
    share = [2, 2, 1];
    work(&mut run, share, [22, 22, 18], 1);
    assert_eq!(named(&run).len(), 2, "a larger share takes longer, and nobody waits for the smallest");
    let ways = |run: &mut Run, millis: [u64; 3], waits: bool| {
        for (rank, millis) in (0..).zip(millis) {
            let index = run.rank(rank);
            let standing = &mut run.workers[index].standing;
            standing.way = Duration::from_millis(millis);
            standing.step_time = standing.busy * if waits { 2 } else { 1 };
        }
        run.pass(5 * SECOND);
    };
    ways(&mut run, [1, 2, 60], false);
    ways(&mut run, [1, 2, 0], true);
    ways(&mut run, [1, 1, 5], true);
    assert_eq!(named(&run).len(), 2, "where it does not matter, is not known, or is as usual: {:?}", named(&run));
    ways(&mut run, [1, 2, 60], true);
    let [.., said] = &named(&run)[..] else { panic!() };
    assert!(
        said.contains("rank 2") && said.contains("60 ms, where 2 ms") && said.contains("network is slow"),
        "{said}"
    );
    assert_eq!(named(&run).len(), 3);
    assert!(run.trains_with(3) && run.generation() == 1, "nobody is evicted");
}

/// Workers elsewhere of which none is heard: it may be the coordinator that is cut off, and they go on without it.
#[test]
fn a_coordinator_that_is_cut_off_for_a_while_loses_nobody() {
    let mut run = Run::new(Policy { local: 0, ..policy(3) });
    let workers = [(); 3].map(|()| run.arrive());
    assert!(run.until(LONG, |run| run.trains_with(3) && run.images() > 3), "{:?}", run.cluster);
    let (mark, images) = (run.log.len(), run.images());
    let cut = |run: &mut Run, worker: usize, cut: bool| {
        (run.workers[worker].mute, run.workers[worker].deaf) = (cut, cut);
    };
    workers.iter().for_each(|&worker| cut(&mut run, worker, true));
    run.pass(PATIENCE * 4);
    assert_eq!((run.phase(), run.reasons(mark)), (Phase::Running, vec![]));
    // they are heard again one after the other
    for worker in workers {
        cut(&mut run, worker, false);
        run.pass(PATIENCE / 2);
    }
    run.pass(PATIENCE * 2);
    assert!(run.images() > images && run.trains_with(3) && run.generation() == 1, "{:?}", run.cluster);
    assert_eq!(run.reasons(mark), vec![]);
    // connections that broke are no other case
    workers.iter().for_each(|&worker| run.disconnect(worker, PATIENCE * 3));
    run.pass(PATIENCE * 5);
    assert!(run.trains_with(3) && run.generation() == 1, "{:?}", run.cluster);
    // who is silent alone is lost as soon as ever
    run.workers[workers[0]].paused = true;
    assert!(run.until(PATIENCE + SECOND, |run| run.trains_with(2)), "{:?}", run.cluster);
}

/// One whose stream never broke: it hears that it was lost, and that was for the time being.
#[test]
fn a_worker_elsewhere_that_stood_still_for_too_long_comes_back_with_its_state() {
    let mut run = Run::new(Policy { local: 1, ..policy(2) });
    let stopped = run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(2) && run.images() > 3), "{:?}", run.cluster);
    run.workers[stopped].paused = true;
    assert!(run.until(PATIENCE + SECOND, |run| run.trains_with(1)), "{:?}", run.cluster);
    run.pass(PATIENCE);
    let mark = run.log.len();
    run.workers[stopped].paused = false;
    assert!(run.until(LONG, |run| run.trains_with(2)), "{:?}", run.cluster);
    assert!(run.workers[stopped].alive && run.generation() == 3);
    assert_eq!(run.count(mark, |action| matches!(action, Action::Refuse { .. })), 0);
}

#[test]
fn a_worker_elsewhere_that_is_lost_again_and_again_is_not_taken_back() {
    let mut run = Run::new(Policy { local: 1, ..policy(2) });
    let sick = run.arrive();
    let lost = |run: &Run| run.cluster.losses().count();
    for times in 1..=5 {
        assert!(run.until(LONG, |run| run.trains_with(2)), "{times}: {:?}", run.cluster);
        run.pass(5 * SECOND); // a generation that is known
        run.workers[sick].hung = true;
        assert!(run.until(LONG, |run| lost(run) == times), "{times}: {:?}", run.cluster);
        run.workers[sick].hung = false;
    }
    run.pass(LONG);
    assert!(!run.workers[sick].alive && run.trains_with(1), "{:?}", run.cluster);
    let last = run.log.iter().rev().find_map(|(_, action)| match action {
        Action::Refuse { refusal, .. } => Some(refusal.to_string()),
        _ => None,
    });
    assert!(last.as_ref().is_some_and(|text| text.contains("was lost 5 times within 10 minutes")), "{last:?}");
}

#[test]
fn a_worker_elsewhere_that_stays_in_its_old_generation_for_good_is_refused_in_the_end() {
    let mut run = Run::new(Policy { local: 1, ..policy(2) });
    let sick = run.arrive();
    assert!(run.until(LONG, |run| run.trains_with(2)), "{:?}", run.cluster);
    run.pass(5 * SECOND); // a generation that is known
    (run.workers[sick].hung, run.workers[sick].stubborn) = (true, true);
    assert!(run.until(LONG, |run| run.trains_with(1)), "{:?}", run.cluster);
    assert!(matches!(run.cause(sick), Some(Cause::Hung { .. })));
    assert!(run.until(5 * LONG, |run| !run.workers[sick].alive), "{:?}", run.cluster);
    assert!(matches!(run.cause(sick), Some(Cause::Stuck { .. })));
    assert!(run.trains_with(1), "and the other was not disturbed");
}

/// Nobody waits for the clock where all that are left say at one time that they are out.
#[test]
fn a_generation_that_all_leave_at_once_is_followed_at_once() {
    let mut run = Run::started(policy(2));
    run.net.together = 100;
    let mark = run.log.len();
    run.trouble(0, "a peer is lost");
    run.trouble(1, "a peer is lost");
    run.pass(Duration::ZERO);
    assert_eq!(run.assignments(mark).len(), 0, "it is only recorded");
    run.net.together = 0;
    run.operator(Command::Scale(2));
    assert_eq!(run.assignments(mark).len(), 2);
}

#[test]
fn workers_elsewhere_of_which_none_is_ever_heard_again_end_the_run() {
    let mut run = Run::new(Policy { local: 0, ..policy(2) });
    let workers = [(); 2].map(|()| run.arrive());
    assert!(run.until(LONG, |run| run.trains_with(2)), "{:?}", run.cluster);
    workers.iter().for_each(|&worker| run.workers[worker].paused = true);
    run.pass(policy(2).startup * 2 + PATIENCE * 2);
    assert_eq!(run.cluster.outcome().map(|outcome| outcome.exit), Some(Exit::WorkerLost), "{:?}", run.cluster);
}

#[test]
fn a_farewell_that_is_lost_on_the_way_does_not_keep_the_run_from_its_end() {
    let mut run = Run::new(Policy { local: 0, total: ImagesSeen(40), ..policy(2) });
    let (cut, other) = (run.arrive(), run.arrive());
    assert!(run.until(LONG, |run| run.trains_with(2)));
    run.workers[cut].mute = true;
    let outcome = run.ends(LONG).clone();
    assert!(run.workers[other].left && run.now < PATIENCE * 20, "{outcome:?} at {:?}", run.now);
    assert!(matches!(outcome.reason, Reason::Complete { .. }), "{outcome:?}");
}
