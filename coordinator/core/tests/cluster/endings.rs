//! Stories of ends: complete, on request, by failure, at once; and what is said of them.

use crate::look::is_stop;
use crate::run::{CLOCK, PATIENCE, Run, STEP, policy};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use coordinator_core::{
    Action, Cause, Command, Entry, Event, ExitStatus, Force, Phase, Policy, Reason, Refusal, SessionId, Stored,
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn short(workers: u32) -> Policy {
    Policy { total: ImagesSeen(20), ..policy(workers) }
}

fn kills(run: &Run, mark: usize) -> Vec<(usize, Force)> {
    let kill = |action: &Action| match action {
        Action::Kill { worker, force } => run.find(worker).map(|index| (index, *force)),
        _ => None,
    };
    run.orders(mark).filter_map(kill).collect()
}

fn is_storing(run: &Run) -> bool {
    run.workers.iter().any(|worker| worker.left)
}

#[test]
fn a_run_that_completes_ends_well() {
    let mut run = Run::started(short(2));
    let outcome = run.ends(10 * SECOND).clone();
    assert_eq!((outcome.exit, outcome.reason), (Exit::Ok, Reason::Complete { images: ImagesSeen(20) }));
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(ImagesSeen(20)));
    assert_eq!((run.phase(), run.count(0, |action| matches!(action, Action::Kill { .. }))), (Phase::Done, 0));
}

/// It was asked to leave, and was given a place before its farewell arrived; all images are shown, so that others that leave have
/// done their work.
#[test]
fn who_leaves_before_it_enters_its_last_generation_is_not_waited_for() {
    let stored = Stored { images: ImagesSeen(20), manifest: "m20".into() };
    let mut run = Run::with(short(2), Some(stored));
    run.until(10 * SECOND, |run| run.workers.len() == 2 && run.workers.iter().all(|worker| worker.standing.ready));
    run.workers[1].deaf = true;
    assert!(run.until(10 * SECOND, |run| run.workers[0].is_in(Generation(1))), "{:?}", run.cluster);
    run.leave(1, 0, "asked to leave");
    let outcome = run.ends(10 * SECOND).clone();
    assert_eq!((outcome.exit, outcome.reason), (Exit::Ok, Reason::Complete { images: ImagesSeen(20) }));
    assert!(matches!(run.cause(1), Some(Cause::LeftEarly { .. })));
}

#[test]
fn after_the_end_there_are_only_refusals() {
    let mut run = Run::started(short(1));
    run.ends(10 * SECOND);
    let mark = run.log.len();
    let worker = run.id(0);
    for command in [Command::Stop, Command::Checkpoint, Command::Scale(3), Command::Kill] {
        run.operator(command);
    }
    run.feed(Event::ChildExited { worker: worker.clone(), status: ExitStatus::Code(1), last_error: None });
    run.feed(Event::Disconnected { worker, session: SessionId(1) });
    run.pass(100 * SECOND);
    assert_eq!(run.log.len(), mark);
    run.arrive();
    run.pass(SECOND);
    assert!(matches!(run.log[mark..], [(_, Action::Refuse { refusal: Refusal::Ending, .. })]));
}

#[test]
fn rank_0_may_evaluate_long_after_the_others_have_finished() {
    let mut run = Run::started(policy(2));
    run.workers[1].standing.images = ImagesSeen(run.images());
    let images = policy(2).total;
    (run.workers[0].hung, run.workers[0].standing.activity) = (true, "evaluate".into());
    run.workers[1].standing.images = images;
    run.leave(1, 0, "done");
    run.pass(60 * SECOND);
    assert_eq!(run.phase(), Phase::Running);
    run.workers[0].standing.images = images;
    run.leave(0, 0, "done");
    assert_eq!(run.ends(SECOND).reason, Reason::Complete { images });
}

#[test]
fn a_crash_after_the_work_is_done_is_reported_but_harms_nothing() {
    let mut run = Run::started(short(1));
    run.until(10 * SECOND, is_storing);
    run.exit(0, ExitStatus::Signal(11));
    assert_eq!(run.ends(SECOND).exit, Exit::Ok);
    let (worker, status) = (run.id(0), ExitStatus::Signal(11));
    assert!(run.reasons(0).contains(&Reason::UncleanExit { worker, status }));
}

#[test]
fn if_some_have_finished_the_loss_of_another_changes_nothing() {
    let mut run = Run::started(policy(3));
    let images = policy(3).total;
    run.workers[2].hung = true;
    for done in [0, 1] {
        run.workers[done].standing.images = images;
        run.leave(done, 0, "done");
    }
    run.store(0, images);
    run.pass(SECOND);
    run.kill(2);
    let outcome = run.ends(SECOND);
    assert_eq!((outcome.exit, &outcome.reason), (Exit::Ok, &Reason::Complete { images }));
    assert_eq!(run.generation(), 1);
}

#[test]
fn a_stop_ends_well_with_the_state_stored() {
    let mut run = Run::started(policy(2));
    let mark = run.log.len();
    run.operator(Command::Stop);
    assert_eq!((run.phase(), run.count(mark, is_stop)), (Phase::Draining, 2));
    let outcome = run.ends(SECOND).clone();
    assert_eq!((outcome.exit, &outcome.reason), (Exit::Ok, &Reason::Stopped { images: outcome.images }));
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(outcome.images));
}

#[test]
fn a_stop_while_reconfiguring_is_heard_by_the_next_generation() {
    let mut run = Run::started(policy(3));
    let (slow, mark) = (run.rank(2), run.log.len());
    run.workers[slow].paused = true;
    run.kill(run.rank(0));
    run.pass(STEP);
    assert_eq!(run.phase(), Phase::Reconfiguring);
    run.operator(Command::Stop);
    assert_eq!((run.phase(), run.count(mark, is_stop)), (Phase::Reconfiguring, 0));
    run.workers[slow].paused = false;
    let outcome = run.ends(2 * SECOND).clone();
    assert_eq!((outcome.exit, run.generation(), run.cluster.world()), (Exit::Ok, 2, 2));
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(outcome.images));
}

#[test]
fn a_loss_during_a_stop_lets_the_survivors_form_once_more_and_finish() {
    let mut run = Run::started(policy(3));
    let victim = run.rank(1);
    run.workers[victim].hung = true; // before anybody could store anything
    run.operator(Command::Stop);
    run.pass(SECOND);
    let mark = run.log.len();
    run.kill(victim);
    let outcome = run.ends(2 * SECOND).clone();
    assert_eq!((outcome.exit, run.generation(), run.cluster.world()), (Exit::Ok, 2, 2));
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(outcome.images));
    assert_eq!(run.count(mark, crate::look::is_spawn), 0);
}

#[test]
fn who_leaves_on_a_stop_that_came_too_late_has_not_finished() {
    let mut run = Run::started(policy(1));
    run.workers[0].stop = false;
    run.trouble(0, "out of memory");
    // the stop crosses the worker's word that it is out
    run.operator(Command::Stop);
    let outcome = run.ends(10 * SECOND).clone();
    let stored = outcome.newest.as_ref().map(|stored| stored.images);
    assert!(stored == Some(outcome.images) || outcome.exit == Exit::WorkerLost, "{outcome:?}");
}

#[test]
fn a_stop_that_takes_too_long_fails_and_names_who_did_not_end() {
    let mut run = Run::started(policy(2));
    run.workers[1].hung = true;
    run.workers[1].standing.activity = "checkpoint".into();
    run.operator(Command::Stop);
    let mark = run.log.len();
    run.pass(policy(2).stop - CLOCK);
    assert_eq!(run.phase(), Phase::Draining);
    let outcome = run.ends(5 * SECOND).clone();
    let Reason::StopOverdue { workers, .. } = &outcome.reason else { panic!("{outcome:?}") };
    assert_eq!((outcome.exit, workers.len()), (Exit::WorkerLost, 2));
    assert_eq!(kills(&run, mark), [(0, Force::Term), (1, Force::Term)]);
}

#[test]
fn a_stop_before_training_ends_well() {
    let mut run = Run::new(policy(2));
    run.pass(CLOCK);
    run.workers[1].paused = true; // does not even join
    run.pass(SECOND * 2);
    run.operator(Command::Stop);
    let outcome = run.ends(5 * SECOND);
    assert_eq!((outcome.exit, &outcome.reason), (Exit::Ok, &Reason::Withdrawn));
    assert_eq!(kills(&run, 0), [(1, Force::Term), (1, Force::Kill)]);
}

#[test]
fn a_kill_forces_everybody_at_once_and_a_second_one_waits_for_nobody() {
    let mut run = Run::started(policy(2));
    let mark = run.log.len();
    run.operator(Command::Stop);
    run.operator(Command::Kill);
    assert_eq!(kills(&run, mark), [(0, Force::Kill), (1, Force::Kill)]);
    assert!(run.cluster.outcome().is_none());
    let actions = run.operator(Command::Kill);
    let [Action::Record(Entry::Over(written)), Action::Finish(outcome)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((written, outcome.exit), (outcome, Exit::Interrupted));
    let mut run = Run::started(policy(2));
    run.operator(Command::Kill);
    assert_eq!(run.ends(SECOND).reason, Reason::Killed);
}

#[test]
fn who_is_missing_at_the_end_of_gathering_is_named() {
    let mut run = Run::new(Policy { local: 2, min_workers: 3, ..policy(3) });
    run.pass(CLOCK);
    run.workers[1].paused = true;
    let outcome = run.ends(policy(3).startup + 5 * SECOND).clone();
    let Reason::Missing { missing, .. } = &outcome.reason else { panic!("{outcome:?}") };
    assert_eq!((outcome.exit, missing.len()), (Exit::WorkerLost, 2));
    assert!(missing[0].contains(&run.id(1).0) && missing[0].contains("process 101"), "{missing:?}");
    assert!(missing[1].contains("1 that should join from elsewhere"), "{missing:?}");
}

#[test]
fn what_would_fail_everywhere_ends_the_run_while_it_gathers() {
    for exit in [Exit::Config, Exit::Data, Exit::Storage, Exit::Diverged] {
        let mut run = Run::new(policy(2));
        run.until(5 * SECOND, |run| run.workers.len() == 2 && run.workers[0].session.is_some());
        run.leave(0, exit as u32, "cannot be used");
        let outcome = run.ends(5 * SECOND);
        assert_eq!(outcome.exit, exit);
        assert!(outcome.reason.to_string().contains("cannot be used"), "{}", outcome.reason);
    }
}

#[test]
fn what_would_fail_everywhere_ends_the_run_if_a_member_says_so_and_closes_the_place_of_a_newcomer() {
    let mut run = Run::started(policy(2));
    run.kill(run.rank(1));
    run.until(5 * SECOND, |run| run.workers.len() == 3 && run.workers[2].session.is_some());
    run.leave(2, Exit::Config as u32, "no such device");
    run.pass(20 * SECOND);
    assert!(run.trains_with(1) && run.generation() == 2 && run.workers.len() == 3, "{:?}", run.cluster);
    let closed = |reason: &Reason| matches!(reason, Reason::SlotGivenUp { slot: 1, .. });
    assert_eq!(run.reasons(0).iter().filter(|reason| closed(reason)).count(), 1);
    run.leave(run.rank(0), Exit::Diverged as u32, "the loss is not finite");
    let outcome = run.ends(5 * SECOND);
    assert_eq!(outcome.exit, Exit::Diverged);
    assert!(outcome.reason.to_string().contains("not finite"), "{}", outcome.reason);
}

#[test]
fn an_exit_waits_for_the_farewell_that_explains_it() {
    let mut run = Run::started(policy(1));
    let worker = run.id(0);
    run.feed(Event::ChildExited { worker: worker.clone(), status: ExitStatus::Code(9), last_error: None });
    assert_eq!(run.phase(), Phase::Running);
    let (session, images) = (run.workers[0].session.expect("it has joined"), ImagesSeen(10));
    run.workers[0].alive = false;
    run.feed(Event::Left { worker, session, exit: 9, message: "the loss is not finite".into(), images });
    let outcome = run.ends(SECOND);
    assert!(matches!(&outcome.reason, Reason::Lost { cause: Cause::Left { exit: 9, .. }, .. }), "{outcome:?}");
}

#[test]
fn who_leaves_early_or_without_a_word_is_lost() {
    let mut run = Run::started(policy(3));
    let (early, wordless) = (run.rank(0), run.rank(1));
    run.leave(early, 0, "");
    run.exit(wordless, ExitStatus::Code(0));
    assert!(run.until(PATIENCE, |run| run.generation() > 1), "{:?}", run.cluster);
    assert!(matches!(run.cause(early), Some(Cause::LeftEarly { .. })));
    assert!(matches!(run.cause(wordless), Some(Cause::Exited { status: ExitStatus::Code(0), .. })));
}

#[test]
fn one_worker_is_asked_for_a_checkpoint_and_none_before_there_is_state() {
    let mut run = Run::new(policy(2));
    assert!(run.operator(Command::Checkpoint).contains(&Action::Report(Reason::NothingToStore)));
    let mut run = Run::started(policy(2));
    let mark = run.log.len();
    run.operator(Command::Checkpoint);
    assert_eq!(run.count(mark, |action| matches!(action, Action::SendCheckpoint { .. })), 1);
    run.pass(SECOND);
    assert!(run.cluster.newest().is_some_and(|newest| newest.images == run.stored));
    assert!(run.trains_with(2));
}
