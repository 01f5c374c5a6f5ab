//! Random histories: well-behaved workers in a bad world, and events that make no sense at all.

use crate::model::Net;
use crate::run::{PATIENCE, Run, policy};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen, Rank};
use coordinator_core::{
    Action, Command, Entry, Event, ExitStatus, OnLoss, Policy, Reason, SessionId, Standing, Stored, WorkerId,
};
use proptest::prelude::*;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// What may go wrong. The number chooses one of those that live.
#[derive(Clone, Debug)]
enum Fault {
    Dies(usize, ExitStatus),
    GivesUp(usize, u32),
    /// Stands still, or goes on again.
    Pauses(usize),
    Hangs(usize),
    HearsNothing(usize),
    IsNotHeard(usize),
    /// Does not come out of a generation.
    Sticks(usize),
    LosesItsStream(usize, u64),
    IsToldToGo(usize),
    LosesItsGeneration(usize),
    Arrives,
    CoordinatorStops(u64),
    /// Another one takes over after this time, perhaps without the last entry.
    CoordinatorDies(u64, bool),
    Orders(Command),
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let who = || 0usize..8;
    prop_oneof![
        6 => (who(), 0i32..2).prop_map(|(w, s)| {
            Fault::Dies(w, if s == 0 { ExitStatus::Signal(9) } else { ExitStatus::Code(1) })
        }),
        1 => (who(), prop::sample::select(vec![1, 6, 7, 8])).prop_map(|(w, exit)| Fault::GivesUp(w, exit)),
        4 => who().prop_map(Fault::Pauses),
        2 => who().prop_map(Fault::Hangs),
        2 => who().prop_map(Fault::HearsNothing),
        2 => who().prop_map(Fault::IsNotHeard),
        1 => who().prop_map(Fault::Sticks),
        4 => (who(), 0u64..6000).prop_map(|(w, away)| Fault::LosesItsStream(w, away)),
        2 => who().prop_map(Fault::IsToldToGo),
        3 => who().prop_map(Fault::LosesItsGeneration),
        2 => Just(Fault::Arrives),
        2 => (0u64..20_000).prop_map(Fault::CoordinatorStops),
        3 => (0u64..8000, any::<bool>()).prop_map(|(away, torn)| Fault::CoordinatorDies(away, torn)),
        2 => (0u32..6).prop_map(|workers| Fault::Orders(Command::Scale(workers))),
        2 => Just(Fault::Orders(Command::Checkpoint)),
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (1u32..5, 1u32..4, any::<bool>(), 0u32..5).prop_map(|(workers, least, wait, failures)| Policy {
        min_workers: least.min(workers),
        on_loss: if wait { OnLoss::Wait } else { OnLoss::Shrink },
        failures: failures * 3,
        ..policy(workers)
    })
}

/// Not all of them.
fn some_of_many() -> impl Strategy<Value = (u32, Vec<u32>)> {
    (2u32..6).prop_flat_map(|workers| {
        let some = prop::sample::subsequence((0..workers).collect::<Vec<_>>(), 1..workers as usize);
        (Just(workers), some)
    })
}

fn any_net() -> impl Strategy<Value = (Net, u64)> {
    (any::<u64>(), 0u64..30, 0u64..30, 0u64..30, 0u64..90, 0u64..400, 0u64..40).prop_map(
        |(seed, loss, double, reorder, together, delay, notice)| {
            let delay = Duration::from_millis(delay);
            (Net { loss, double, reorder, together, delay, seed }, notice)
        },
    )
}

fn any_history() -> impl Strategy<Value = Vec<(Fault, u64)>> {
    prop::collection::vec((any_fault(), 0u64..3000), 0..30)
}

impl Run {
    fn strike(&mut self, fault: Fault) {
        let living: Vec<usize> =
            (0..self.workers.len()).filter(|&index| self.workers[index].alive && !self.workers[index].left).collect();
        let pick = |number: usize| living.get(number % living.len().max(1)).copied();
        let (Fault::Dies(number, _)
        | Fault::GivesUp(number, _)
        | Fault::Pauses(number)
        | Fault::Hangs(number)
        | Fault::HearsNothing(number)
        | Fault::IsNotHeard(number)
        | Fault::Sticks(number)
        | Fault::LosesItsStream(number, _)
        | Fault::IsToldToGo(number)
        | Fault::LosesItsGeneration(number)) = fault
        else {
            return match fault {
                Fault::Arrives => drop(self.arrive()),
                Fault::CoordinatorStops(ms) => self.stop_coordinator(Duration::from_millis(ms)),
                Fault::CoordinatorDies(away, torn) => {
                    self.kill_coordinator();
                    self.pass(Duration::from_millis(away));
                    // what was ordered for the operator is not torn off here: nobody would wait for it any more
                    let loses = |entry: &Entry| {
                        !matches!(entry, Entry::Begun { .. } | Entry::Stopping { .. } | Entry::Wanted(_))
                    };
                    if torn && self.journal.len() > 1 && self.journal.last().is_some_and(loses) {
                        self.journal.pop();
                    }
                    self.take_over(false);
                }
                Fault::Orders(command) => drop(self.operator(command)),
                _ => {}
            };
        };
        let Some(index) = pick(number) else { return };
        let worker = &mut self.workers[index];
        if worker.paused && !matches!(fault, Fault::Dies(..) | Fault::Pauses(_) | Fault::LosesItsStream(..)) {
            return; // it does nothing by itself
        }
        match fault {
            Fault::Pauses(_) => worker.paused = !worker.paused,
            Fault::Hangs(_) => worker.hung = !worker.hung,
            Fault::HearsNothing(_) => worker.deaf = !worker.deaf,
            Fault::IsNotHeard(_) => worker.mute = !worker.mute,
            Fault::Sticks(_) => worker.stubborn = !worker.stubborn,
            Fault::Dies(_, status) => self.exit(index, status),
            Fault::GivesUp(_, exit) => self.leave(index, exit, "something is wrong"),
            Fault::LosesItsStream(_, away) => self.disconnect(index, Duration::from_millis(away)),
            Fault::IsToldToGo(_) => self.terminate(index),
            _ => self.trouble(index, "a peer does not answer"),
        }
    }

    fn suffer(&mut self, (net, notice): (Net, u64), history: Vec<(Fault, u64)>) {
        (self.net, self.notice) = (net, notice);
        for (fault, pause) in history {
            self.pass(Duration::from_millis(pause));
            if self.cluster.is_over() {
                return;
            }
            self.strike(fault);
        }
    }

    /// From now on nothing goes wrong.
    fn heal(&mut self) {
        (self.net.loss, self.net.double, self.net.reorder) = (0, 0, 0);
        for worker in &mut self.workers {
            (worker.paused, worker.hung, worker.deaf, worker.mute, worker.stubborn) =
                (false, false, false, false, false);
        }
    }

    /// Whether the state is stored where the outcome says so.
    fn is_true_to_its_word(&self) -> bool {
        let Some(outcome) = self.cluster.outcome() else { return false };
        match outcome.reason {
            Reason::Complete { images } | Reason::Stopped { images } => self.stored >= images,
            _ => true,
        }
    }

    fn given_up(&self) -> bool {
        self.reasons(0).iter().any(|reason| matches!(reason, Reason::SlotGivenUp { .. }))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happened: once nothing goes wrong any more, the run trains with all that are wanted, stops when it is
    /// asked to, and its state is stored then. Or it has ended for a reason before.
    #[test]
    fn a_run_recovers_from_any_history(policy in any_policy(), net in any_net(), history in any_history()) {
        let wait = policy.startup + PATIENCE * 5 + 60 * SECOND;
        let (stop, all_local) = (policy.stop, policy.local == policy.workers);
        let mut run = Run::new(policy);
        run.suffer(net, history);
        run.heal();
        let whole = |run: &Run| run.trains_with(run.cluster.wanted());
        if all_local && !run.given_up() {
            let recovered = run.until(wait, |run| whole(run) || run.cluster.is_over() || run.given_up());
            prop_assert!(recovered, "{:?}\n{:?}", run.cluster, run.workers);
        }
        // some place was given up: then fewer train, or the run ends
        let trains = |run: &Run| run.cluster.world() > 0 && run.trains_with(run.cluster.world());
        prop_assert!(run.until(wait, |run| trains(run) || run.cluster.is_over()), "{:?}", run.cluster);
        if !run.cluster.is_over() {
            run.operator(Command::Stop);
            let ended = run.until(stop + PATIENCE * 3 + 10 * SECOND, |run| run.cluster.is_over());
            prop_assert!(ended, "{:?}", run.cluster);
        }
        prop_assert!(run.is_true_to_its_word(), "{:?} {:?}", run.cluster.outcome(), run.stored);
    }

    /// A short run in a bad world ends by itself, and never claims what it did not store.
    #[test]
    fn a_run_ends_by_itself(policy in any_policy(), net in any_net(), history in any_history()) {
        let wait = policy.startup * 2 + PATIENCE * 10 + 120 * SECOND;
        let mut run = Run::new(Policy { total: ImagesSeen(100), ..policy });
        run.suffer(net, history);
        run.heal();
        prop_assert!(run.until(wait, |run| run.cluster.is_over()), "{:?}\n{:?}", run.cluster, run.workers);
        prop_assert!(run.is_true_to_its_word(), "{:?} {:?}", run.cluster.outcome(), run.stored);
    }

    /// A stop asked for at any moment of any history ends the run in bounded time.
    #[test]
    fn a_stop_always_ends(
        policy in any_policy(),
        net in any_net(),
        before in any_history(),
        after in any_history(),
        kill in any::<bool>(),
    ) {
        let bound = policy.stop + policy.startup + PATIENCE * 5 + 10 * SECOND;
        let mut run = Run::new(policy);
        run.suffer(net.clone(), before);
        let (mark, since) = (run.log.len(), run.now);
        run.operator(Command::Stop);
        run.suffer(net, after);
        // nobody heals: what hangs goes on hanging
        let pauses = 30 * 20 * SECOND;
        prop_assert!(run.until(bound + pauses, |run| run.cluster.is_over()), "{:?}", run.cluster);
        prop_assert!(run.is_true_to_its_word(), "{:?} {:?}", run.cluster.outcome(), run.stored);
        prop_assert_eq!(run.count(mark, |action| matches!(action, Action::Spawn { .. })), 0, "after {:?}", since);
        if kill {
            run.operator(Command::Kill);
        }
    }

    /// However many are killed at once, the survivors form the next generation at that very moment.
    #[test]
    fn a_loss_costs_no_wait((workers, dead) in some_of_many()) {
        let mut run = Run::started(policy(workers));
        let victims: Vec<usize> = dead.into_iter().map(|rank| run.rank(rank)).collect();
        let images = run.images();
        victims.iter().for_each(|&victim| run.kill(victim));
        run.pass(Duration::ZERO);
        prop_assert_eq!(run.cluster.world(), workers - victims.len() as u32);
        prop_assert!(run.generation() >= 2 && run.images() >= images);
        prop_assert!(run.until(3 * SECOND, |run| run.trains_with(workers)), "{:?}", run.cluster);
    }
}

fn any_status() -> impl Strategy<Value = ExitStatus> {
    prop_oneof![(0..12).prop_map(ExitStatus::Code), (1..20).prop_map(ExitStatus::Signal)]
}

fn any_standing() -> impl Strategy<Value = Standing> {
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.1), any::<bool>(), any::<bool>());
    (0u64..5, flags, 0u64..300, 0u32..3, 0u64..500).prop_map(
        |(generation, (ready, has_state, leaving, waiting, trouble), images, step, millis)| Standing {
            generation: Generation(generation),
            ready,
            has_state,
            trouble: if trouble { "trouble".into() } else { String::new() },
            leaving,
            diverged: trouble && step == 1,
            unreached: (trouble && step == 2).then_some(Rank((images % 4) as u32)),
            busy: Duration::from_millis(millis / 2),
            data: Duration::from_millis(millis / 4),
            way: Duration::from_millis(millis / 3),
            share: step,
            line: Generation(generation.saturating_sub(u64::from(step))),
            images: ImagesSeen(images),
            step,
            steps: step * 4,
            activity: "train".into(),
            waiting,
            step_time: Duration::from_millis(millis),
        },
    )
}

/// Anything by anybody: a few names, streams and places, right and wrong generations.
fn any_event() -> impl Strategy<Value = Event> {
    let who = || (0u32..5).prop_map(|worker| WorkerId(format!("w{worker}")));
    let stream = || (0u64..6).prop_map(SessionId);
    let images = || (0u64..300).prop_map(ImagesSeen);
    let command = prop_oneof![
        2 => Just(Command::Stop),
        3 => Just(Command::Checkpoint),
        3 => (0u32..6).prop_map(Command::Scale),
        1 => Just(Command::Kill),
    ];
    prop_oneof![
        3 => (0u32..5, who(), 100u32..200).prop_map(|(slot, worker, pid)| Event::Spawned { slot, worker, pid }),
        1 => (0u32..5).prop_map(|slot| Event::NotSpawned { slot, error: "no".into() }),
        6 => (who(), stream()).prop_map(|(worker, session)| {
            let peer = format!("{worker}:1");
            Event::Joined { worker, session, peer, device: "cpu".into(), host: "here".into() }
        }),
        12 => (who(), stream(), any_standing())
            .prop_map(|(worker, session, standing)| Event::Progress { worker, session, standing }),
        2 => (who(), stream(), 0u64..4, images()).prop_map(|(worker, session, generation, images)| {
            let stored = Stored { images, manifest: format!("m{images}") };
            Event::Stored { worker, session, generation: Generation(generation), stored }
        }),
        2 => (who(), stream(), prop_oneof![3 => Just(0u32), 1 => 0u32..200], images()).prop_map(
            |(worker, session, exit, images)| Event::Left { worker, session, exit, message: "m".into(), images }
        ),
        2 => (who(), stream()).prop_map(|(worker, session)| Event::Disconnected { worker, session }),
        1 => (who(), any_status())
            .prop_map(|(worker, status)| Event::ChildExited { worker, status, last_error: None }),
        1 => command.prop_map(Event::Operator),
        4 => Just(Event::Clock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is said by whomever: every invariant holds after every step, and once the world falls silent the run
    /// ends, even if nothing that is ordered has any effect.
    #[test]
    fn nonsense_keeps_the_invariants_and_ends(
        policy in any_policy(),
        local in 0u32..4,
        history in prop::collection::vec((any_event(), 0u64..1500), 0..80),
        takeovers in prop::collection::vec(0u32..80, 0..3),
    ) {
        let end = policy.startup * 3 + policy.patience * 3 + policy.stop + 30 * SECOND;
        let total = ImagesSeen(250);
        let mut run = Run::without_workers(Policy { local: local.min(policy.workers), total, ..policy });
        for (number, (event, pause)) in (0..).zip(history) {
            run.pass(Duration::from_millis(pause));
            run.feed(event);
            if takeovers.contains(&number) && !run.cluster.is_over() {
                run.kill_coordinator();
                run.take_over(number % 2 == 0);
            }
        }
        prop_assert!(run.until(end, |run| run.cluster.is_over()), "no end: {:?}", run.cluster);
        // and nothing but refusals afterwards, which the history checks
        run.operator(Command::Kill);
        let over = run.cluster.outcome().map(|outcome| outcome.exit);
        prop_assert!(over.is_some_and(|exit| exit != Exit::Internal));
    }
}
