//! Stories of coordinators that die, and of those that take over: what they know, what they must not do.

use crate::look::{is_abort, is_spawn, is_stop};
use crate::losses::one_at_work_and_one_spare;
use crate::run::{CLOCK, PATIENCE, Run, STEP, policy};
use common::checkpoint::ManifestKey;
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use coordinator_core::{
    Action, Cause, Command, Entry, Event, ExitStatus, Memory, Phase, Policy, Reason, SessionId, Standing, Stored,
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// Workers of which the first `local` are started here.
fn partly_local(workers: u32, local: u32) -> Run {
    let mut run = Run::new(Policy { local, ..policy(workers) });
    for _ in local..workers {
        run.arrive();
    }
    assert!(run.until(LONG, |run| run.trains_with(workers) && run.images() > 3), "{:?}", run.cluster);
    run
}

/// The coordinator dies, and another one takes over after `away`.
fn replaced(run: &mut Run, away: Duration) {
    run.kill_coordinator();
    run.pass(away);
    run.take_over(false);
}

fn is_formed(entry: &Entry) -> bool {
    matches!(entry, Entry::Formed { .. })
}

fn is_disturbance(action: &Action) -> bool {
    let quiet = matches!(
        action,
        Action::Welcome { .. } | Action::Record(Entry::Stored(_)) | Action::Report(Reason::NothingToStore)
    );
    !quiet
}

#[test]
fn a_takeover_costs_no_step_and_orders_nothing() {
    for away in [Duration::ZERO, SECOND, 60 * SECOND] {
        let mut run = partly_local(3, 2);
        let (mark, before) = (run.log.len(), run.images());
        replaced(&mut run, away);
        assert_eq!((run.phase(), run.generation()), (Phase::Running, 1));
        let taken = run.now;
        run.pass(10 * SECOND);
        assert_eq!(run.orders(mark).filter(|action| is_disturbance(action)).collect::<Vec<_>>(), [] as [&Action; 0]);
        assert!(run.trains_with(3) && run.generation() == 1);
        let due = ((run.now - taken + away).as_millis() / STEP.as_millis()) as u64;
        assert!(run.images() >= before + due - 10, "{} images after {before}, {due} were due", run.images());
    }
}

#[test]
fn wishes_reach_the_workers_that_were_taken_over() {
    let mut run = partly_local(3, 3);
    replaced(&mut run, SECOND);
    run.pass(2 * SECOND);
    run.operator(Command::Checkpoint);
    assert!(run.until(5 * SECOND, |run| run.cluster.newest().is_some()));
    run.operator(Command::Scale(2));
    assert!(run.until(LONG, |run| run.trains_with(2)));
    replaced(&mut run, SECOND);
    assert_eq!((run.cluster.wanted(), run.cluster.newest().is_some()), (2, true), "what was wanted is remembered");
    run.pass(5 * SECOND);
    assert!(run.trains_with(2));
    run.operator(Command::Stop);
    assert_eq!(run.ends(LONG).exit, Exit::Ok);
}

#[test]
fn who_is_still_on_its_way_is_alive_while_the_generation_gets_on() {
    let mut run = partly_local(3, 0);
    let (mark, lonely) = (run.log.len(), run.rank(2));
    run.workers[lonely].deaf = true; // its messages to and from the coordinator are lost; its peers are not
    replaced(&mut run, SECOND);
    run.pass(policy(3).takeover() * 4);
    assert!(run.trains_with(3) && run.count(mark, is_abort) == 0, "{:?}", run.cluster);
    // it comes at last
    run.workers[lonely].deaf = false;
    run.pass(5 * SECOND);
    assert!(run.trains_with(3) && run.generation() == 1);
}

#[test]
fn one_that_died_meanwhile_is_lost_at_once_if_it_ran_here() {
    let mut run = partly_local(3, 3);
    run.kill_coordinator();
    let victim = run.rank(1);
    run.kill(victim);
    run.pass(SECOND);
    let mark = run.log.len();
    run.take_over(false);
    let taken = run.now;
    assert!(run.until(LONG, |run| run.generation() >= 2));
    assert!(run.now - taken < 2 * SECOND, "{:?}", run.now - taken);
    assert!(matches!(run.cause(victim), Some(Cause::Exited { .. })));
    assert!(run.until(LONG, |run| run.trains_with(3)));
    assert_eq!(run.count(mark, is_spawn), 1, "only the dead one is replaced");
}

#[test]
fn one_that_died_meanwhile_elsewhere_is_lost_after_its_time() {
    let mut run = partly_local(3, 0);
    run.kill_coordinator();
    let victim = run.rank(1);
    run.kill(victim);
    run.pass(SECOND);
    run.take_over(false);
    let taken = run.now;
    assert!(run.until(LONG, |run| run.trains_with(2)));
    let waited = run.now - taken;
    assert!(waited >= policy(3).takeover() && waited < policy(3).takeover() + 2 * SECOND, "{waited:?}");
    assert!(matches!(run.cause(victim), Some(Cause::Disconnected { .. })));
    assert_eq!(run.generation(), 3, "one number is left out");
}

#[test]
fn the_first_to_report_a_loss_waits_for_those_that_are_still_looking() {
    let mut run = partly_local(4, 0);
    run.kill_coordinator();
    run.kill(3);
    for index in 0..3 {
        run.trouble(index, "a peer is gone");
    }
    run.take_over(false);
    assert!(run.until(LONG, |run| run.trains_with(3)));
    assert_eq!(run.generation(), 3, "all three are in the first one that is formed");
}

#[test]
fn when_all_are_gone_the_run_goes_on_from_its_checkpoint() {
    let mut run = partly_local(2, 2);
    run.operator(Command::Checkpoint);
    assert!(run.until(5 * SECOND, |run| run.cluster.newest().is_some()));
    let stored = run.stored;
    run.kill_coordinator();
    (0..2).for_each(|index| run.kill(index));
    run.pass(SECOND);
    let mark = run.log.len();
    run.take_over(false);
    assert!(run.until(LONG, |run| run.trains_with(2)));
    assert_eq!(run.count(mark, is_spawn), 2);
    let (_, first) = run.assignments(mark).remove(0);
    assert_eq!(first.resume.map(|from| from.images), Some(stored));
}

#[test]
fn a_stop_in_work_is_finished_by_the_successor() {
    let mut run = partly_local(3, 2);
    // nobody hears it before the coordinator dies
    (0..3).for_each(|index| run.workers[index].deaf = true);
    run.operator(Command::Stop);
    run.pass(CLOCK);
    run.kill_coordinator();
    (0..3).for_each(|index| run.workers[index].deaf = false);
    run.pass(SECOND);
    let mark = run.log.len();
    run.take_over(false);
    let outcome = run.ends(LONG).clone();
    assert!(matches!(outcome.reason, Reason::Stopped { .. }), "{outcome:?}");
    assert!(run.count(mark, is_stop) >= 3 && run.count(mark, is_spawn) == 0);
    assert_eq!(outcome.newest.map(|stored| stored.images), Some(run.stored));
    assert!(matches!(run.journal.last(), Some(Entry::Over(_))));
}

#[test]
fn a_withdrawal_in_work_is_finished_by_the_successor() {
    let mut run = Run::new(policy(2));
    run.pass(2 * CLOCK);
    run.operator(Command::Stop);
    replaced(&mut run, CLOCK);
    assert_eq!(run.ends(LONG).reason, Reason::Withdrawn);
}

#[test]
fn two_takeovers_in_a_row_are_like_one() {
    let mut run = partly_local(3, 2);
    let mark = run.log.len();
    for away in [CLOCK, Duration::ZERO, 3 * SECOND] {
        replaced(&mut run, away);
        run.pass(300 * Duration::from_millis(1)); // some are back, others not yet
    }
    run.pass(10 * SECOND);
    assert!(run.trains_with(3) && run.generation() == 1, "{:?}", run.cluster);
    assert!(!run.orders(mark).any(is_disturbance));
    // and the third one can do what any can
    let victim = run.rank(0);
    run.kill(victim);
    assert!(run.until(LONG, |run| run.trains_with(3) && run.generation() > 1));
}

#[test]
fn a_place_that_was_written_down_and_not_heard_is_given_again() {
    let mut run = partly_local(3, 0);
    let mark = run.log.len();
    (0..2).for_each(|index| run.workers[index].deaf = true);
    run.kill(2);
    run.disconnect(2, Duration::ZERO);
    (0..2).for_each(|index| run.trouble(index, "a peer is gone"));
    assert!(run.until(LONG, |run| run.generation() == 2), "{:?}", run.cluster);
    let formed = run.journal.iter().filter(|entry| is_formed(entry)).count();
    run.kill_coordinator();
    (0..2).for_each(|index| run.workers[index].deaf = false);
    run.take_over(false);
    assert!(run.until(LONG, |run| run.trains_with(2)));
    assert_eq!((run.generation(), formed), (2, 2), "nothing new was formed");
    let given: Vec<_> = run.assignments(mark);
    assert!(given.len() >= 4 && given.iter().all(|(_, assignment)| assignment.generation == Generation(2)));
}

#[test]
fn a_torn_journal_costs_a_step_and_no_number_is_used_twice() {
    for local in [0, 3] {
        let mut run = partly_local(3, local);
        let victim = run.rank(0);
        run.kill(victim);
        if local == 0 {
            run.arrive();
        }
        assert!(run.until(LONG, |run| run.trains_with(3)), "{:?}", run.cluster);
        let (last, images) = (run.generation(), run.images());
        run.kill_coordinator();
        // what followed the first generation is torn off
        let first = run.journal.iter().position(is_formed).expect("one was formed");
        run.journal.truncate(first + 1);
        run.take_over(false);
        assert_eq!(run.generation(), 1);
        let mark = run.log.len();
        assert!(run.until(LONG, |run| run.generation() > last && run.images() > images), "{:?}", run.cluster);
        let given = run.assignments(mark);
        assert!(given.iter().all(|(_, a)| a.generation.0 > last || a.generation.0 == 1), "{given:?}");
        assert!(run.until(LONG, |run| run.trains_with(3)), "{:?}", run.cluster);
        assert!(run.images() > images, "the state was kept");
    }
}

/// They say so to a successor that does not know of that generation, and could not tell them to leave it in time.
#[test]
fn who_finishes_in_a_generation_that_was_torn_off_has_finished() {
    let mut run = partly_local(2, 0);
    run.trouble(0, "a peer is lost");
    assert!(run.until(LONG, |run| run.generation() == 2 && run.trains_with(2)), "{:?}", run.cluster);
    run.kill_coordinator();
    let first = run.journal.iter().position(is_formed).expect("one was formed");
    run.journal.truncate(first + 1);
    run.take_over(false);
    assert_eq!(run.generation(), 1);
    let images = policy(2).total;
    for index in 0..2 {
        let (worker, session) = (run.id(index), SessionId(1000 + index as u64));
        let (peer, device, host) = (run.workers[index].peer.clone(), "cpu".to_owned(), "here".to_owned());
        let standing = Standing { generation: Generation(2), has_state: true, images, ..Standing::default() };
        let stored = Stored { images, manifest: ManifestKey::new(images, Generation(2)).to_string() };
        run.feed(Event::Joined { worker: worker.clone(), session, peer, device, host });
        run.feed(Event::Progress { worker: worker.clone(), session, standing });
        if index == 0 {
            run.feed(Event::Stored { worker: worker.clone(), session, generation: Generation(2), stored });
        }
        run.feed(Event::Left { worker, session, exit: 0, message: "complete".into(), images });
    }
    run.until(LONG, |run| run.cluster.is_over());
    let outcome = run.cluster.outcome().expect("it is over");
    assert_eq!((outcome.exit, &outcome.reason), (Exit::Ok, &Reason::Complete { images }));
}

/// A coordinator was stopped for so long that its workers stored what they held, and left.
#[test]
fn what_is_found_in_the_store_after_a_pause_is_where_the_next_ones_start() {
    let mut run = Run::started(policy(1));
    let images = ImagesSeen(run.images() + 500);
    let found = Stored { images, manifest: ManifestKey::new(images, Generation(1)).to_string() };
    let mark = run.log.len();
    run.feed(Event::Found(found.clone()));
    run.kill(0);
    assert!(run.until(LONG, |run| run.generation() == 2), "{:?}", run.cluster);
    assert_eq!(run.assignments(mark)[0].1.resume, Some(found));
}

/// One of the same generation had stored its last step, and left; the others had not come so far.
#[test]
fn what_a_generation_has_stored_comes_before_what_its_members_hold_if_it_is_further() {
    let mut run = Run::started(policy(1));
    let images = ImagesSeen(run.images() + 500);
    let found = Stored { images, manifest: ManifestKey::new(images, Generation(1)).to_string() };
    let mark = run.log.len();
    run.feed(Event::Found(found.clone()));
    run.trouble(0, "a call failed");
    assert!(run.until(LONG, |run| run.generation() == 2), "{:?}", run.cluster);
    let (_, given) = &run.assignments(mark)[0];
    assert_eq!((given.rollback, &given.resume), (true, &Some(found)));
}

/// The run is failing, which is written down when it has.
#[test]
fn a_stop_that_is_asked_for_while_a_run_fails_holds_for_the_successor_too() {
    let mut run = Run::started(Policy { failures: 1, ..policy(1) });
    run.workers[0].lingers = true;
    run.leave(0, 3, "the file is wrong");
    assert!(run.until(SECOND, |run| run.phase() == Phase::Draining), "{:?}", run.cluster);
    run.operator(Command::Stop);
    run.kill_coordinator();
    run.take_over(false);
    let mark = run.log.len();
    run.exit(0, ExitStatus::Code(3));
    assert!(run.until(LONG, |run| run.cluster.is_over()), "{:?}", run.cluster);
    assert_eq!(run.count(mark, is_spawn), 0);
}

/// Of its generation, which is over for long, it has had no time to hear.
#[test]
fn who_is_the_last_to_find_the_successor_is_not_taken_for_stuck() {
    let mut run = partly_local(2, 0);
    run.workers.iter_mut().for_each(|worker| worker.mute = true);
    run.kill_coordinator();
    run.take_over(false);
    let joins = |run: &mut Run, index: usize| {
        let (worker, session, peer) = (run.id(index), SessionId(1000 + index as u64), run.workers[index].peer.clone());
        run.feed(Event::Joined { worker, session, peer, device: "cpu".into(), host: "here".into() });
    };
    let is_out = |run: &mut Run, index: usize| {
        let standing = Standing {
            generation: Generation(1),
            ready: true,
            has_state: true,
            trouble: "a peer is gone".into(),
            ..run.workers[index].standing.clone()
        };
        run.feed(Event::Progress { worker: run.id(index), session: SessionId(1000 + index as u64), standing });
    };
    joins(&mut run, 0);
    is_out(&mut run, 0);
    assert_eq!(run.phase(), Phase::Reconfiguring);
    run.pass(PATIENCE / 2);
    is_out(&mut run, 0);
    run.pass(PATIENCE * 3 / 4);
    is_out(&mut run, 0);
    joins(&mut run, 1);
    run.pass(CLOCK * 2);
    assert_eq!((run.cause(1), run.phase()), (None, Phase::Reconfiguring));
    is_out(&mut run, 1);
    assert_eq!(run.cluster.world(), 2);
    assert!(run.generation() > 1);
}

#[test]
fn a_journal_that_is_lost_whole_costs_a_step_too() {
    let mut run = partly_local(3, 0);
    let images = run.images();
    run.kill_coordinator();
    run.journal.clear();
    run.take_over(false);
    assert_eq!(run.phase(), Phase::Gathering);
    assert!(run.until(LONG, |run| run.trains_with(3) && run.images() > images), "{:?}", run.cluster);
    assert_eq!(run.generation(), 2);
}

#[test]
fn failures_before_a_takeover_count() {
    let mut run = Run::new(Policy { failures: 2, ..policy(2) });
    assert!(run.until(LONG, |run| run.images() > 3));
    run.operator(Command::Checkpoint);
    assert!(run.until(5 * SECOND, |run| run.cluster.newest().is_some()));
    let at = ImagesSeen(run.images());
    run.kill(0);
    assert!(run.until(LONG, |run| run.generation() == 2), "{:?}", run.cluster);
    let Some(Entry::Formed { setbacks, .. }) = run.journal.iter().rev().find(|entry| is_formed(entry)) else {
        panic!("{:?}", run.journal)
    };
    assert_eq!(setbacks.count, 1);
    assert!(setbacks.at >= at, "{setbacks:?}, at least {at} were seen");
}

#[test]
fn a_successor_knows_that_a_spare_holds_less_than_what_is_stored() {
    let (mut run, at_work, spare) = one_at_work_and_one_spare();
    run.operator(Command::Checkpoint);
    run.pass(SECOND);
    let stored = run.cluster.newest().cloned();
    assert!(stored.as_ref().is_some_and(|stored| stored.generation() == Generation(2)), "{stored:?}");
    run.kill_coordinator();
    run.kill(at_work);
    let mark = run.log.len();
    run.take_over(false);
    assert!(run.until(LONG, |run| run.generation() > 2), "{:?}", run.cluster);
    let (worker, assignment) = run.assignments(mark).remove(0);
    assert_eq!((worker, assignment.rollback, assignment.resume), (run.id(spare), true, stored));
}

#[test]
fn a_successor_takes_no_checkpoint_of_a_line_that_was_left() {
    let mut run = Run::started(policy(1));
    // the whole first generation is lost, and its successor begins anew; then somebody says what the first one stored
    run.pass(SECOND);
    run.kill(0);
    assert!(run.until(LONG, |run| run.generation() > 1 && run.trains_with(1)), "{:?}", run.cluster);
    replaced(&mut run, SECOND);
    run.pass(2 * SECOND);
    let (index, newest) = (run.rank(0), run.cluster.newest().cloned());
    let (worker, session) = (run.id(index), run.workers[index].session.expect("it has joined"));
    let manifest = ManifestKey::new(ImagesSeen(90_000), Generation(1)).to_string();
    let stored = Stored { images: ImagesSeen(90_000), manifest };
    run.feed(Event::Stored { worker, session, generation: Generation(1), stored: stored.clone() });
    assert_eq!(run.cluster.newest(), newest.as_ref());
    // nor if it finds it in the store
    let mut memory = Memory::of(&run.journal);
    memory.add(&Entry::Begun { generation: Generation(2), went_back: Generation(0), newest: Some(stored) });
    assert_eq!(memory.newest, newest);
}

#[test]
fn from_elsewhere_workers_are_nobody_s_children() {
    let mut run = partly_local(2, 2);
    run.kill_coordinator();
    run.pass(SECOND);
    let mark = run.log.len();
    run.take_over(true);
    run.pass(10 * SECOND);
    assert!(run.trains_with(2) && run.generation() == 1, "{:?}", run.cluster);
    run.operator(Command::Stop);
    assert!(matches!(run.ends(LONG).reason, Reason::Stopped { .. }));
    assert_eq!(run.count(mark, |action| matches!(action, Action::Kill { .. })), 0);
}

#[test]
fn a_worker_that_nobody_wrote_down_is_taken_in() {
    let mut run = partly_local(2, 0);
    run.kill_coordinator();
    let late = run.arrive();
    run.pass(PATIENCE);
    run.take_over(false);
    run.operator(Command::Scale(3));
    assert!(run.until(LONG, |run| run.trains_with(3)), "{:?}", run.cluster);
    assert!(run.workers[late].met);
}
