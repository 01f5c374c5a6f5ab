//! Stories of workers that cannot reach each other, while the coordinator hears all of them.

use crate::run::{CLOCK, PATIENCE, Run, policy};
use coordinator_core::{Phase, Policy, Reason, WorkerId};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Who was told to wait, and for how long.
fn waits(run: &Run, mark: usize) -> Vec<(WorkerId, Duration)> {
    let waits = |reason| match reason {
        Reason::Apart { worker, pause, .. } => Some((worker, pause)),
        _ => None,
    };
    run.reasons(mark).into_iter().filter_map(waits).collect()
}

#[test]
fn of_two_that_do_not_reach_each_other_one_waits_with_its_state_and_is_tried_again() {
    let mut run = Run::started(policy(3));
    run.pass(5 * SECOND);
    let (mark, first, second) = (run.log.len(), run.rank(1), run.rank(2));
    run.part(first, second);
    run.pass(CLOCK);
    assert!(run.trains_with(2));
    let said = waits(&run, mark);
    assert_eq!(said, [(run.id(second), 4 * PATIENCE)]);
    assert!(!run.reasons(mark).iter().any(|reason| matches!(reason, Reason::Lost { .. })));
    let generation = run.generation();
    run.pass(said[0].1 - 2 * CLOCK);
    assert_eq!(run.generation(), generation, "it is not tried again so soon");
    assert!(run.until(3 * SECOND, |run| run.trains_with(3)), "it is now");
    assert_eq!(waits(&run, mark).len(), 1);
}

#[test]
fn pauses_double_while_the_attempts_fail_and_start_anew_after_one_that_did_not() {
    let mut run = Run::started(policy(2));
    run.pass(5 * SECOND);
    let (mark, first, second) = (run.log.len(), run.rank(0), run.rank(1));
    run.part(first, second);
    for failed in 1..=3 {
        run.pass(CLOCK);
        assert_eq!(waits(&run, mark).len(), failed);
        assert!(run.until(400 * SECOND, |run| run.workers[second].is_in_a_generation()), "it is tried again");
        run.part(first, second);
    }
    run.pass(CLOCK);
    let pauses: Vec<_> = waits(&run, mark).into_iter().map(|(_, pause)| pause.as_secs() / PATIENCE.as_secs()).collect();
    assert_eq!(pauses, [4, 8, 16, 32]);
    assert!(run.until(400 * SECOND, |run| run.trains_with(2)));
    run.pass(5 * SECOND);
    let mark = run.log.len();
    run.part(first, second);
    run.pass(CLOCK);
    assert_eq!(waits(&run, mark)[0].1, 4 * PATIENCE);
}

#[test]
fn who_reaches_nobody_is_the_one_that_waits() {
    let mut run = Run::started(policy(4));
    run.pass(5 * SECOND);
    let mark = run.log.len();
    let ranks = [0, 1, 2, 3].map(|rank| run.rank(rank));
    // the first message ends the generation; the others had noticed by themselves
    for other in [0, 2, 3] {
        run.workers[ranks[other]].stubborn = true;
    }
    run.part(ranks[0], ranks[1]);
    run.part(ranks[1], ranks[3]);
    run.part(ranks[2], ranks[1]);
    run.part(ranks[3], ranks[1]);
    run.pass(CLOCK);
    assert_eq!(waits(&run, mark), [(run.id(ranks[1]), 4 * PATIENCE)]);
    assert!(run.trains_with(3));
}

#[test]
fn where_none_can_be_done_without_both_wait_and_try_again() {
    let mut run = Run::started(Policy { min_workers: 2, ..policy(2) });
    run.pass(5 * SECOND);
    let mark = run.log.len();
    run.part(run.rank(0), run.rank(1));
    run.pass(PATIENCE);
    assert_eq!((run.phase(), waits(&run, mark).len()), (Phase::Reconfiguring, 1));
    assert!(run.until(5 * PATIENCE, |run| run.trains_with(2)));
}
