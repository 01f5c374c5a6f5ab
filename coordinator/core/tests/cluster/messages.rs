//! Stories of messages that are lost, late, doubled or out of order, and of streams that break.

use crate::look::is_abort;
use crate::run::{CLOCK, PATIENCE, Run, policy};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use coordinator_core::{Action, Cause, Command, Event, OnLoss, Phase, Policy, Refusal, SessionId, Standing, Stored};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn refusal(actions: &[Action]) -> Option<Refusal> {
    actions.iter().find_map(|action| match action {
        Action::Refuse { refusal, .. } => Some(refusal.clone()),
        _ => None,
    })
}

fn joined(run: &Run, index: usize, session: u64) -> Event {
    let (worker, peer) = (run.id(index), run.workers[index].peer.clone());
    Event::Joined { worker, session: SessionId(session), peer, device: "cpu".into(), host: "here".into() }
}

/// A worker whose place was formed while nothing reached it.
fn unassigned() -> (Run, usize) {
    let mut run = Run::new(policy(2));
    run.until(10 * SECOND, |run| run.workers.len() == 2 && run.workers.iter().all(|worker| worker.standing.ready));
    run.workers[1].deaf = true;
    run.until(10 * SECOND, |run| run.workers[0].is_in(Generation(1)));
    (run, 1)
}

#[test]
fn a_lost_place_is_told_again_and_it_is_the_same() {
    let (mut run, deaf) = unassigned();
    // what is committed meanwhile does not change what the generation starts from
    let (worker, session) = (run.id(0), run.workers[0].session.expect("it has joined"));
    let stored = Stored { images: ImagesSeen(7), manifest: "m7".into() };
    run.feed(Event::Stored { worker, session, generation: Generation(1), stored });
    run.workers[deaf].deaf = false;
    assert!(run.until(PATIENCE, |run| run.trains_with(2)), "{:?}", run.cluster);
    let places = run.assignments(0);
    assert_eq!(places.len(), 3);
    assert_eq!(places[1], places[2]);
    assert_eq!(places[1].1.resume, None);
}

#[test]
fn who_never_heard_of_its_place_does_not_hold_up_the_next_generation() {
    let (mut run, deaf) = unassigned();
    let mark = run.log.len();
    run.trouble(0, "a peer did not come");
    assert!(run.until(PATIENCE / 2, |run| run.generation() == 2), "{:?}", run.cluster);
    assert_eq!(run.assignments(mark).len(), 2);
    run.workers[deaf].deaf = false;
    assert!(run.until(PATIENCE, |run| run.trains_with(2)), "{:?}", run.cluster);
    assert_eq!(run.generation(), 2);
}

#[test]
fn a_lost_abort_is_told_again() {
    let mut run = Run::started(policy(3));
    let survivor = run.rank(1);
    run.workers[survivor].deaf = true;
    run.kill(run.rank(0));
    run.pass(Duration::ZERO);
    run.workers[survivor].deaf = false;
    assert!(run.until(CLOCK * 2, |run| run.generation() == 2 && run.cluster.world() == 2), "{:?}", run.cluster);
}

#[test]
fn a_lost_stop_is_told_again() {
    let mut run = Run::started(policy(2));
    run.workers.iter_mut().for_each(|worker| worker.deaf = true);
    run.operator(Command::Stop);
    run.workers.iter_mut().for_each(|worker| worker.deaf = false);
    assert_eq!(run.ends(PATIENCE * 2).exit, Exit::Ok);
}

#[test]
fn a_stop_waits_until_a_place_is_taken() {
    let (mut run, deaf) = unassigned();
    let mark = run.log.len();
    run.operator(Command::Stop);
    run.workers[deaf].deaf = false;
    let id = run.id(deaf);
    let outcome = run.ends(PATIENCE * 4).clone();
    let told = |action: &Action| matches!(action, Action::SendStop { worker, .. } if *worker == id);
    let place = |action: &Action| matches!(action, Action::Assign { worker, .. } if *worker == id);
    let (placed, told) = (run.orders(mark).position(place), run.orders(mark).position(told));
    assert!(placed.is_some() && placed < told, "else it would leave, and nothing would be stored");
    assert_eq!((outcome.exit, outcome.newest.map(|stored| stored.images)), (Exit::Ok, Some(run.stored)));
}

#[test]
fn what_was_said_long_ago_is_passed_over() {
    let mut run = Run::started(policy(2));
    let first = run.rank(0);
    let (worker, session) = (run.id(first), run.workers[first].session.expect("it has joined"));
    let mark = run.log.len();
    let (ready, early) = (true, "that it was ready for its first place arrives only now");
    let standing = Standing { ready, activity: early.into(), ..Standing::default() };
    run.feed(Event::Progress { worker: worker.clone(), session, standing });
    run.pass(SECOND);
    assert_eq!((run.log.len(), run.generation()), (mark, 1));
    // in the generation that it has left
    let standing = run.workers[first].standing.clone();
    run.workers[first].stubborn = true;
    run.trouble(first, "it says");
    run.pass(Duration::ZERO);
    run.feed(Event::Progress { worker, session, standing });
    assert!(run.until(SECOND, |run| run.trains_with(2) && run.generation() == 2), "{:?}", run.cluster);
    run.pass(SECOND);
    assert_eq!(run.generation(), 2);
}

#[test]
fn a_broken_stream_may_be_mended_in_time() {
    let mut run = Run::started(policy(2));
    run.disconnect(run.rank(1), SECOND);
    run.disconnect(run.rank(0), 5 * SECOND); // the generation gets on: it lives
    run.pass(10 * SECOND);
    assert_eq!((run.phase(), run.generation()), (Phase::Running, 1));
    assert_eq!(run.count(0, is_abort), 0);
    // if it does not get on, two seconds are all
    let hung = run.rank(1);
    run.workers[hung].hung = true;
    run.disconnect(hung, 10 * SECOND);
    assert!(run.until(3 * SECOND, |run| run.generation() == 2));
    assert!(matches!(run.cause(hung), Some(Cause::Disconnected { .. })));
}

#[test]
fn a_newer_stream_replaces_the_older_one() {
    let mut run = Run::started(policy(2));
    let (id, old) = (run.id(1), run.workers[1].session.expect("it has joined"));
    run.workers[1].session = Some(SessionId(77));
    let actions = run.feed(joined(&run, 1, 77));
    assert_eq!(refusal(&actions), Some(Refusal::Replaced { worker: id.clone() }));
    assert!(matches!(actions[1], Action::Welcome { session: SessionId(77), .. }), "{actions:?}");
    // nothing that is said on the older one counts
    let images = run.images();
    let standing = Standing { generation: Generation(1), images: ImagesSeen(99_999), ..Standing::default() };
    run.feed(Event::Progress { worker: id.clone(), session: old, standing });
    run.feed(Event::Left { worker: id.clone(), session: old, exit: 3, message: String::new(), images: ImagesSeen(1) });
    run.feed(Event::Disconnected { worker: id, session: old });
    assert_eq!(run.images(), images);
    run.pass(5 * SECOND);
    assert!(run.trains_with(2) && run.generation() == 1);
}

#[test]
fn who_has_left_or_was_killed_is_not_let_in_again() {
    let mut run = Run::started(policy(2));
    let (hung, id) = (run.rank(1), run.id(run.rank(1)));
    run.workers[hung].paused = true;
    assert!(run.until(10 * SECOND, |run| run.generation() == 2));
    let actions = run.feed(joined(&run, hung, 77));
    assert_eq!(refusal(&actions), Some(Refusal::AlreadyLeft { worker: id }));
    assert!(run.cluster.members().all(|(_, member)| member.slot.is_some()));
}

#[test]
fn who_joins_again_is_told_to_stop_once_it_has_said_where_it_stands() {
    let mut run = Run::started(policy(2));
    run.workers[1].hung = true;
    run.operator(Command::Stop);
    let actions = run.feed(joined(&run, 1, 77));
    let (worker, session) = (run.id(1), SessionId(77));
    assert_eq!(actions[1..], [Action::Welcome { worker: worker.clone(), session }]);
    // it may have got out meanwhile: then it has nothing to finish
    let standing = run.workers[1].standing.clone();
    let actions = run.feed(Event::Progress { worker, session, standing });
    assert!(matches!(actions[..], [Action::SendStop { session: SessionId(77), .. }]), "{actions:?}");
}

#[test]
fn late_and_doubled_messages_harm_nothing() {
    let mut run = Run::started(Policy { on_loss: OnLoss::Shrink, ..policy(3) });
    (run.net.delay, run.net.double, run.net.reorder) = (Duration::from_millis(300), 100, 50);
    for _ in 0..3 {
        run.kill(run.rank(0));
        assert!(run.until(20 * SECOND, |run| run.trains_with(3)), "{:?}", run.cluster);
        run.pass(SECOND);
    }
    run.operator(Command::Stop);
    assert_eq!(run.ends(10 * SECOND).exit, Exit::Ok);
}

#[test]
fn a_checkpoint_of_a_line_that_the_run_has_left_is_not_its_newest() {
    let mut run = Run::started(policy(1));
    // the whole first generation is lost, and its successor begins anew; then somebody says what the first one stored
    run.pass(SECOND);
    run.kill(0);
    assert!(run.until(10 * SECOND, |run| run.generation() > 1 && run.trains_with(1)), "{:?}", run.cluster);
    let (index, newest) = (run.rank(0), run.cluster.newest().cloned());
    let (worker, session) = (run.id(index), run.workers[index].session.expect("it has joined"));
    let mut store = |generation: u64, images: u64| {
        let stored = Stored { images: ImagesSeen(images), manifest: format!("m{images}") };
        let (worker, generation) = (worker.clone(), Generation(generation));
        run.feed(Event::Stored { worker, session, generation, stored });
        run.cluster.newest().cloned()
    };
    assert_eq!(store(1, 90_000), newest);
    assert_eq!(store(2, 7).map(|stored| stored.manifest), Some("m7".to_owned()));
}
