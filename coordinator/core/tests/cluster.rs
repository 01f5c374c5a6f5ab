//! Random histories of a cluster, and the stories that matter, on virtual time.

use common::exit::Exit;
use common::ids::{Generation, ImagesSeen, Rank};
use coordinator_core::invariants::History;
use coordinator_core::{
    Action, Cause, Cluster, Command, Event, ExitStatus, Force, Outcome, Phase, Policy, Reason, Refusal, SessionId,
    Stored, WorkerId, step,
};
use proptest::prelude::*;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(250);
const TOTAL: u64 = 1000;

fn policy(workers: u32) -> Policy {
    Policy {
        workers,
        total: ImagesSeen(TOTAL),
        startup: Duration::from_secs(120),
        patience: Duration::from_secs(10),
        stop: Duration::from_secs(60),
    }
}

/// A cluster, its clock and its history.
struct Run {
    cluster: Cluster,
    history: History,
    now: Duration,
    log: Vec<Action>,
}

impl Run {
    fn new(workers: u32) -> Self {
        let cluster = Cluster::new(policy(workers), Generation(0), None);
        Self { cluster, history: History::default(), now: Duration::ZERO, log: Vec::new() }
    }

    fn feed(&mut self, event: Event) -> Vec<Action> {
        let before = self.cluster.clone();
        let actions = step(&mut self.cluster, event.clone(), self.now);
        self.history.observe(&before, &event, &actions, &self.cluster).unwrap_or_else(|broken| {
            panic!("{broken}\nevent: {event:?}\nactions: {actions:?}\nbefore: {before:?}\nafter: {:?}", self.cluster)
        });
        self.log.extend(actions.iter().cloned());
        actions
    }

    /// Lets `time` pass, with ticks, until the end at most. `beating` workers give signs of life.
    fn pass(&mut self, time: Duration, beating: &[u32]) -> Vec<Action> {
        let mut actions = Vec::new();
        let until = self.now + time;
        while self.now < until && self.cluster.outcome().is_none() {
            self.now += TICK;
            for &worker in beating {
                actions.extend(self.feed(progress(worker, 0)));
            }
            actions.extend(self.feed(Event::Clock));
        }
        actions
    }

    fn outcome(&self) -> &Outcome {
        self.cluster.outcome().expect("the run is over")
    }

    /// Local workers 0..n, spawned and joined: the generation is at work.
    fn started(workers: u32) -> Self {
        let mut run = Self::new(workers);
        for worker in 0..workers {
            run.feed(spawned(worker));
        }
        for worker in (0..workers).rev() {
            run.feed(joined(worker, worker.into(), None));
        }
        assert_eq!(run.cluster.phase(), Phase::Running);
        run
    }

    fn exits(&mut self, worker: u32, status: ExitStatus) -> Vec<Action> {
        let mut actions = self.feed(Event::Disconnected { worker: id(worker), session: SessionId(worker.into()) });
        actions.extend(self.feed(Event::ChildExited { worker: id(worker), status, last_error: None }));
        actions
    }
}

fn id(worker: u32) -> WorkerId {
    WorkerId(format!("w{worker}"))
}

fn spawned(worker: u32) -> Event {
    Event::Spawned { worker: id(worker), pid: 100 + worker, rank_hint: worker }
}

fn joined(worker: u32, session: u64, generation: Option<u64>) -> Event {
    Event::Joined {
        worker: id(worker),
        session: SessionId(session),
        peer: format!("127.0.0.1:{}", 4000 + worker),
        device: "cpu".into(),
        host: "here".into(),
        generation: generation.map(Generation),
    }
}

fn progress(worker: u32, images: u64) -> Event {
    Event::Progress {
        worker: id(worker),
        session: SessionId(worker.into()),
        generation: Generation(1),
        images: ImagesSeen(images),
        activity: "train".into(),
    }
}

fn left(worker: u32, exit: Exit, message: &str, images: u64) -> Event {
    Event::Left {
        worker: id(worker),
        session: SessionId(worker.into()),
        exit: exit as u32,
        message: message.into(),
        images: ImagesSeen(images),
    }
}

fn kills(actions: &[Action]) -> Vec<(WorkerId, Force)> {
    let kill = |action: &Action| match action {
        Action::Kill { worker, force } => Some((worker.clone(), *force)),
        _ => None,
    };
    actions.iter().filter_map(kill).collect()
}

#[test]
fn ranks_follow_the_hints_and_peers_the_ranks() {
    let run = Run::started(3);
    let assigned: Vec<_> = run
        .log
        .iter()
        .filter_map(|action| match action {
            Action::Assign { worker, assignment, .. } => Some((worker.clone(), assignment.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(assigned.len(), 3);
    for (i, (worker, assignment)) in (0..).zip(assigned) {
        assert_eq!((worker, assignment.rank, assignment.generation), (id(i), Rank(i), Generation(1)));
        assert_eq!(*assignment.peers, ["127.0.0.1:4000", "127.0.0.1:4001", "127.0.0.1:4002"]);
    }
}

#[test]
fn a_run_that_completes_ends_well() {
    let mut run = Run::started(2);
    run.feed(progress(0, 500));
    run.feed(Event::Stored {
        worker: id(0),
        session: SessionId(0),
        generation: Generation(1),
        stored: Stored { images: ImagesSeen(TOTAL), manifest: "m".into() },
    });
    run.feed(left(1, Exit::Ok, "", TOTAL));
    run.pass(Duration::from_secs(60), &[0]); // rank 0 still evaluates
    assert_eq!(run.cluster.phase(), Phase::Running);
    run.feed(left(0, Exit::Ok, "", TOTAL));
    run.exits(0, ExitStatus::Code(0));
    run.exits(1, ExitStatus::Code(0));
    let outcome = run.outcome();
    assert_eq!((outcome.exit, &outcome.reason), (Exit::Ok, &Reason::Complete { images: ImagesSeen(TOTAL) }));
    assert_eq!(outcome.newest.as_ref().map(|stored| stored.manifest.as_str()), Some("m"));
}

#[test]
fn a_crash_after_the_work_is_done_is_reported_but_harms_nothing() {
    let mut run = Run::started(1);
    run.feed(left(0, Exit::Ok, "", TOTAL));
    run.exits(0, ExitStatus::Signal(11));
    assert_eq!(run.outcome().exit, Exit::Ok);
    let unclean = Reason::UncleanExit { worker: id(0), status: ExitStatus::Signal(11) };
    assert!(run.log.contains(&Action::Report(unclean)));
}

#[test]
fn a_killed_worker_ends_the_run_in_5_s_and_takes_the_blame_whoever_complains_first() {
    let mut run = Run::started(3);
    run.pass(Duration::from_secs(3), &[0, 1, 2]);
    let died = run.now;
    // a peer notices the broken ring first
    run.feed(left(0, Exit::WorkerLost, "peer 1 is gone", 10));
    run.exits(0, ExitStatus::Code(6));
    assert_eq!(run.cluster.phase(), Phase::Draining);
    run.exits(1, ExitStatus::Signal(9));
    let actions = run.pass(Duration::from_secs(10), &[2]); // worker 2 hangs in its collective
    assert_eq!(kills(&actions), [(id(2), Force::Term), (id(2), Force::Kill)]);
    assert!(run.now - died <= Duration::from_secs(5), "{:?}", run.now - died);
    let outcome = run.outcome();
    assert_eq!(outcome.exit, Exit::WorkerLost);
    let Reason::Lost { worker, rank, cause: Cause::Exited { status, .. } } = &outcome.reason else {
        panic!("{:?}", outcome.reason)
    };
    assert_eq!((worker, rank, status), (&id(1), &Some(Rank(1)), &ExitStatus::Signal(9)));
}

#[test]
fn an_exit_waits_for_the_farewell_that_explains_it() {
    let mut run = Run::started(1);
    run.feed(Event::ChildExited { worker: id(0), status: ExitStatus::Code(9), last_error: None });
    assert_eq!(run.cluster.phase(), Phase::Running);
    run.feed(left(0, Exit::Diverged, "the loss is not finite", 10));
    let outcome = run.outcome();
    assert_eq!(outcome.exit, Exit::Diverged);
    assert!(outcome.reason.to_string().contains("not finite"), "{}", outcome.reason);
}

#[test]
fn a_success_without_a_farewell_is_a_loss() {
    let mut run = Run::started(1);
    run.exits(0, ExitStatus::Code(0));
    assert_eq!(run.outcome().exit, Exit::WorkerLost);
}

#[test]
fn who_leaves_early_is_blamed_when_the_others_only_lost_a_peer() {
    let mut run = Run::started(2);
    run.feed(left(1, Exit::Ok, "", 10));
    run.feed(left(0, Exit::WorkerLost, "peer 1 is gone", 10));
    run.exits(1, ExitStatus::Code(0));
    run.exits(0, ExitStatus::Code(6));
    let expected =
        Reason::Lost { worker: id(1), rank: Some(Rank(1)), cause: Cause::LeftEarly { images: ImagesSeen(10) } };
    assert_eq!((run.outcome().exit, &run.outcome().reason), (Exit::WorkerLost, &expected));
}

#[test]
fn a_stop_ends_well_with_the_state_stored() {
    let mut run = Run::started(2);
    let actions = run.feed(Event::Operator(Command::Stop));
    assert_eq!(actions.iter().filter(|a| matches!(a, Action::SendStop { .. })).count(), 2);
    run.pass(Duration::from_secs(30), &[0, 1]); // a long upload
    assert_eq!(run.cluster.phase(), Phase::Draining);
    for worker in 0..2 {
        run.feed(left(worker, Exit::Ok, "", 40));
        run.exits(worker, ExitStatus::Code(0));
    }
    assert_eq!(run.outcome().exit, Exit::Ok);
    assert_eq!(run.outcome().reason, Reason::Stopped { images: ImagesSeen(40) });
}

#[test]
fn a_stop_that_takes_too_long_fails_and_names_who_did_not_end() {
    let mut run = Run::started(2);
    run.feed(Event::Operator(Command::Stop));
    run.feed(left(0, Exit::Ok, "", 40));
    run.exits(0, ExitStatus::Code(0));
    let actions = run.pass(Duration::from_secs(70), &[1]);
    assert_eq!(kills(&actions), [(id(1), Force::Term), (id(1), Force::Kill)]);
    let Reason::StopOverdue { workers, .. } = &run.outcome().reason else { panic!("{:?}", run.outcome()) };
    assert_eq!(workers, &["worker w1 (rank 1)"]);
    assert_eq!(run.outcome().exit, Exit::WorkerLost);
}

#[test]
fn a_stop_before_training_ends_well() {
    let mut run = Run::new(2);
    run.feed(spawned(0));
    run.feed(spawned(1));
    run.feed(joined(0, 0, None));
    run.feed(Event::Operator(Command::Stop));
    run.feed(left(0, Exit::Ok, "", 0));
    run.exits(0, ExitStatus::Code(0));
    let actions = run.pass(Duration::from_millis(750), &[]);
    assert_eq!(kills(&actions), [(id(1), Force::Term)]);
    run.exits(1, ExitStatus::Signal(15));
    assert_eq!((run.outcome().exit, &run.outcome().reason), (Exit::Ok, &Reason::Withdrawn));
}

#[test]
fn a_kill_forces_everybody_at_once() {
    let mut run = Run::started(2);
    run.feed(Event::Operator(Command::Stop));
    let actions = run.feed(Event::Operator(Command::Kill));
    assert_eq!(kills(&actions), [(id(0), Force::Kill), (id(1), Force::Kill)]);
    run.exits(0, ExitStatus::Signal(9));
    run.exits(1, ExitStatus::Signal(9));
    assert_eq!((run.outcome().exit, &run.outcome().reason), (Exit::Interrupted, &Reason::Killed));
}

#[test]
fn who_is_missing_at_the_end_of_gathering_is_named() {
    let mut run = Run::new(3);
    run.feed(spawned(0));
    run.feed(spawned(1));
    run.feed(joined(0, 0, None));
    let deadline = policy(3).startup;
    while run.now < deadline {
        run.pass(TICK, &[]);
        run.feed(Event::Progress {
            worker: id(0),
            session: SessionId(0),
            generation: Generation(0),
            images: ImagesSeen(0),
            activity: "join".into(),
        });
    }
    run.exits(0, ExitStatus::Code(0));
    run.exits(1, ExitStatus::Signal(15));
    let Reason::Missing { missing, .. } = &run.outcome().reason else { panic!("{:?}", run.outcome()) };
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing[0].contains("w1") && missing[0].contains("process 101"), "{missing:?}");
    assert!(missing[1].contains("1 that should join from elsewhere"), "{missing:?}");
}

#[test]
fn silence_is_a_loss_but_the_coordinator_s_own_pause_is_not() {
    let mut run = Run::started(2);
    run.pass(Duration::from_secs(5), &[0, 1]);
    run.now += Duration::from_secs(3600); // the coordinator was stopped
    run.feed(Event::Clock);
    run.pass(Duration::from_secs(5), &[0, 1]);
    assert_eq!(run.cluster.phase(), Phase::Running);
    run.pass(Duration::from_secs(20), &[0]);
    let Reason::Lost { worker, cause: Cause::Silent { .. }, .. } = &run.outcome().reason else {
        panic!("{:?}", run.outcome())
    };
    assert_eq!((worker, run.outcome().exit), (&id(1), Exit::WorkerLost));
}

#[test]
fn a_broken_stream_may_be_mended_in_time() {
    let mut run = Run::started(2);
    run.feed(Event::Disconnected { worker: id(1), session: SessionId(1) });
    run.pass(Duration::from_secs(1), &[0]);
    let actions = run.feed(joined(1, 77, Some(1)));
    assert_eq!(actions, [], "it has its place already");
    run.pass(Duration::from_secs(5), &[0]);
    assert_eq!(run.cluster.phase(), Phase::Running);
    // the assignment itself may have been lost
    run.feed(Event::Disconnected { worker: id(1), session: SessionId(77) });
    let actions = run.feed(joined(1, 78, None));
    assert!(matches!(&actions[..], [Action::Assign { assignment, .. }] if assignment.rank == Rank(1)), "{actions:?}");
}

#[test]
fn refusals_say_why() {
    let mut run = Run::started(2);
    let refusal = |actions: Vec<Action>| match actions.as_slice() {
        [Action::Refuse { refusal, .. }] => refusal.clone(),
        other => panic!("{other:?}"),
    };
    let generation = Generation(1);
    assert_eq!(refusal(run.feed(joined(7, 70, None))), Refusal::AlreadyStarted { generation });
    let stale = Refusal::StaleGeneration { theirs: Generation(9), ours: generation };
    assert_eq!(refusal(run.feed(joined(1, 71, Some(9)))), stale);
    assert_eq!(refusal(run.feed(joined(1, 72, Some(1)))), Refusal::Replaced { worker: id(1) });
    run.feed(left(0, Exit::Ok, "", TOTAL));
    assert_eq!(refusal(run.feed(joined(0, 73, Some(1)))), Refusal::AlreadyLeft { worker: id(0) });
    let mut full = Run::new(1);
    full.feed(spawned(0));
    assert_eq!(refusal(full.feed(joined(1, 1, None))), Refusal::Full { workers: 1 });
}

#[test]
fn one_worker_is_asked_for_a_checkpoint_and_none_before_there_is_state() {
    let mut run = Run::new(2);
    let actions = run.feed(Event::Operator(Command::Checkpoint));
    assert_eq!(actions, [Action::Report(Reason::NothingToStore)]);
    let mut run = Run::started(2);
    let actions = run.feed(Event::Operator(Command::Checkpoint));
    assert_eq!(actions, [Action::SendCheckpoint { worker: id(0), session: SessionId(0) }]);
}

fn any_status() -> impl Strategy<Value = ExitStatus> {
    prop_oneof![(0..12).prop_map(ExitStatus::Code), (1..20).prop_map(ExitStatus::Signal)]
}

/// Anything by anybody: three names for at most three places, a few streams, right and wrong generations.
fn any_event() -> impl Strategy<Value = Event> {
    let who = || 0u32..4;
    // mostly the stream of the same number, sometimes another
    let stream = || prop_oneof![4 => Just(None), 1 => (0u64..6).prop_map(Some)];
    let on = |worker: u32, stream: Option<u64>| SessionId(stream.unwrap_or(worker.into()));
    let generation = || prop_oneof![4 => Just(1u64), 1 => 0u64..4];
    prop_oneof![
        2 => who().prop_map(spawned),
        6 => (who(), stream(), prop::option::weighted(0.2, generation()))
            .prop_map(move |(w, s, g)| joined(w, on(w, s).0, g)),
        6 => (who(), stream(), generation(), 0..2 * TOTAL).prop_map(move |(w, s, g, images)| Event::Progress {
            worker: id(w),
            session: on(w, s),
            generation: Generation(g),
            images: ImagesSeen(images),
            activity: "train".into(),
        }),
        2 => (who(), stream(), generation(), 0..2 * TOTAL).prop_map(move |(w, s, g, images)| Event::Stored {
            worker: id(w),
            session: on(w, s),
            generation: Generation(g),
            stored: Stored { images: ImagesSeen(images), manifest: format!("m{images}") },
        }),
        2 => (who(), stream(), prop_oneof![3 => Just(0u32), 1 => 0u32..200], 0..2 * TOTAL).prop_map(
            move |(w, s, exit, images)| Event::Left {
                worker: id(w),
                session: on(w, s),
                exit,
                message: "m".into(),
                images: ImagesSeen(images),
            }
        ),
        2 => (who(), stream()).prop_map(move |(w, s)| Event::Disconnected { worker: id(w), session: on(w, s) }),
        1 => (who(), any_status())
            .prop_map(|(w, status)| Event::ChildExited { worker: id(w), status, last_error: None }),
        1 => prop_oneof![
            3 => Just(Command::Stop),
            3 => Just(Command::Checkpoint),
            1 => Just(Command::Kill)
        ].prop_map(Event::Operator),
        4 => Just(Event::Clock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, in whatever order: every invariant holds after every step, and once the world falls silent the
    /// run ends within the sum of its deadlines, even if no kill has any effect.
    #[test]
    fn every_history_keeps_the_invariants_and_ends(
        workers in 1u32..4,
        history in prop::collection::vec((any_event(), 0u64..3000), 0..60),
    ) {
        let mut run = Run::new(workers);
        for (event, pause_ms) in history {
            run.now += Duration::from_millis(pause_ms);
            run.feed(event);
        }
        let policy = policy(workers);
        run.pass(policy.startup + policy.patience + policy.stop + Duration::from_secs(30), &[]);
        prop_assert!(run.cluster.outcome().is_some(), "no end: {:?}", run.cluster);
        // and nothing but refusals afterwards
        run.feed(Event::Operator(Command::Kill));
        let refused = matches!(run.feed(joined(0, 99, None))[..], [Action::Refuse { .. }]);
        prop_assert!(refused);
    }

    /// A loss ends the run within 5 s of the process's death, however the others behave.
    #[test]
    fn a_death_ends_the_run_in_5_s(
        workers in 1u32..5,
        victim in 0u32..5,
        status in any_status(),
        others in prop::collection::vec((0u32..5, 0u8..3, 0u64..1500), 0..8),
    ) {
        let victim = victim % workers;
        let mut run = Run::started(workers);
        let died = run.now;
        run.exits(victim, status);
        for (other, what, pause_ms) in others {
            let other = other % workers;
            if other == victim {
                continue;
            }
            match what {
                0 => { run.feed(left(other, Exit::WorkerLost, "peer lost", 10)); }
                1 => { run.exits(other, ExitStatus::Code(6)); }
                _ => { run.pass(Duration::from_millis(pause_ms), &[other]); }
            }
        }
        run.pass(Duration::from_secs(10), &[]);
        prop_assert!(run.now - died <= Duration::from_secs(5), "{:?}", run.now - died);
        let named = matches!(&run.outcome().reason, Reason::Lost { worker, .. } if *worker == id(victim));
        prop_assert!(named || status == ExitStatus::Code(6), "{}", run.outcome().reason);
    }
}
