//! What every [`Collective`] has to keep, as functions that any backend's tests can call. They panic where it is not kept.
//!
//! Refuses to know backends: a group is formed by the caller, and one thread plays each rank.

use crate::{Collective, CollectiveError, ECHO_BYTES_MAX, How, Part, TreeSum, deal};
use half::bf16;
use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// All members of one generation, in rank order.
pub type Group = Vec<Box<dyn Collective>>;

/// An abort, or a death, is known everywhere within this time.
pub const NEWS: Duration = Duration::from_millis(100);

/// Tries at a time limit, of which one has to keep it: the machine that tests may be busy with something else.
const TRIES: usize = 5;

/// Lengths that meet every path: nothing, fewer numbers than ranks, the direct exchange, the ring with uneven segments.
const LENGTHS: [usize; 6] = [0, 1, 3, 1000, 20_011, 1_000_003];

/// Everything, for a world of `world`; `form` forms a fresh group each time.
pub fn suite(world: usize, form: &dyn Fn() -> Group) {
    members_know_their_place(world, &mut form());
    sums_are_exact(&mut form());
    sums_have_the_same_bits_on_every_rank(&mut form());
    gathers_keep_lengths_and_order(&mut form());
    broadcasts_bring_the_roots_bytes_to_whom_they_are_meant_for(&mut form());
    nobody_leaves_a_barrier_before_all_have_come(&mut form());
    echoes_come_from_everybody(&mut form());
    tree_sums_have_the_bits_of_one_rank(&mut form());
    misuse_is_refused_and_forgiven(&mut form());
    an_abort_ends_every_rank_at_once(form);
    an_abort_is_heard_without_a_call(form);
    a_deadline_names_the_rank_that_did_not_come(form);
    a_rank_that_leaves_is_named(form);
}

/// Also from who comes late, which is not taken for a long way.
fn echoes_come_from_everybody(group: &mut Group) {
    const LATE: Duration = Duration::from_millis(200);
    let world = group.len();
    let near = |times: &[Vec<Duration>]| times.iter().flatten().all(|time| *time < LATE);
    for tried in 1..=TRIES {
        let times = together(group, |member| {
            if member.rank() == 0 {
                thread::sleep(LATE);
            }
            member.echo(ECHO_BYTES_MAX).expect("echo")
        });
        for (rank, times) in times.iter().enumerate() {
            let far: Vec<bool> = times.iter().map(|time| !time.is_zero()).collect();
            assert_eq!(far, (0..world).map(|peer| peer != rank).collect::<Vec<_>>(), "rank {rank}: {times:?}");
        }
        if near(&times) {
            return;
        }
        assert!(tried < TRIES, "{times:?}");
    }
}

/// Runs one thread per rank and returns what they return, in rank order.
pub fn together<R: Send>(group: &mut Group, play: impl Fn(&mut dyn Collective) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let ranks = group.iter_mut().map(|member| scope.spawn(|| play(member.as_mut()))).collect::<Vec<_>>();
        ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect()
    })
}

fn members_know_their_place(world: usize, group: &mut Group) {
    assert_eq!(group.len(), world);
    for (rank, member) in group.iter().enumerate() {
        assert_eq!((member.rank() as usize, member.world() as usize), (rank, world));
        assert_eq!(member.generation(), group[0].generation());
    }
}

fn sums_are_exact(group: &mut Group) {
    let world = group.len() as u64;
    let ranks = world * (world - 1) / 2;
    for len in LENGTHS {
        together(group, |member| {
            let rank = u64::from(member.rank());
            let mut single = (0..len).map(|i| (i as u64 % 1000 + rank) as f32).collect::<Vec<_>>();
            member.all_reduce_sum_f32(&mut single).expect("sum of f32");
            let small = |i: usize| (i % 8) as f32;
            let mut short = (0..len).map(|i| bf16::from_f32(small(i) + rank as f32)).collect::<Vec<_>>();
            member.all_reduce_sum_bf16(&mut short).expect("sum of bf16");
            let mut double = (0..len).map(|i| (i as u64 + rank) as f64).collect::<Vec<_>>();
            member.all_reduce_sum_f64(&mut double).expect("sum of f64");
            for i in 0..len {
                assert_eq!(single[i], (world * (i as u64 % 1000) + ranks) as f32, "number {i} of {len}");
                assert_eq!(short[i].to_f32(), world as f32 * small(i) + ranks as f32, "number {i} of {len}");
                assert_eq!(double[i], (world * i as u64 + ranks) as f64, "number {i} of {len}");
            }
        });
    }
    if world > 1 {
        assert!(group.iter().all(|member| member.traffic().bytes > 12_000_000 && member.traffic().seconds > 0.0));
    }
}

/// Numbers of very different sizes, so that the order of additions shows in the bits.
fn rough(rank: u32, i: usize) -> f32 {
    let x = (i as u32 ^ (rank << 20)).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519);
    (x as f32 / u32::MAX as f32 - 0.5) * 10f32.powi((x % 7) as i32)
}

fn sums_have_the_same_bits_on_every_rank(group: &mut Group) {
    let world = group.len() as u32;
    for len in [17, 20_011] {
        let sums = together(group, |member| {
            let mut numbers = (0..len).map(|i| rough(member.rank(), i)).collect::<Vec<_>>();
            member.all_reduce_sum_f32(&mut numbers).expect("sum");
            let mut short = (0..len).map(|i| bf16::from_f32(rough(member.rank(), i))).collect::<Vec<_>>();
            member.all_reduce_sum_bf16(&mut short).expect("sum of bf16");
            (numbers, short)
        });
        for i in 0..len {
            let (single, short) = (sums[0].0[i], sums[0].1[i]);
            assert!(sums.iter().all(|sum| sum.0[i].to_bits() == single.to_bits()), "number {i} of {len}");
            assert!(sums.iter().all(|sum| sum.1[i].to_bits() == short.to_bits()), "number {i} of {len}");
            let parts = (0..world).map(|rank| f64::from(rough(rank, i))).collect::<Vec<_>>();
            let exact = parts.iter().sum::<f64>();
            assert!((f64::from(single) - exact).abs() < 1.0, "{single} for {exact}");
            // each number and each partial sum is rounded to 8 bits
            let largest = parts.iter().map(|part| part.abs()).sum::<f64>();
            let rounded = largest * f64::from(world) / 256.0;
            assert!((f64::from(short) - exact).abs() <= rounded, "{short} for {exact}");
        }
    }
}

fn gathers_keep_lengths_and_order(group: &mut Group) {
    for unit in [0, 1, 40_001] {
        let content = |rank: usize| (0..rank * unit).map(|i| (i * 31 + rank) as u8).collect::<Vec<_>>();
        let expected = (0..group.len()).map(content).collect::<Vec<_>>();
        let gathered =
            together(group, |member| member.all_gather_bytes(&content(member.rank() as usize)).expect("gather"));
        assert!(gathered.iter().all(|all| *all == expected));
    }
}

fn broadcasts_bring_the_roots_bytes_to_whom_they_are_meant_for(group: &mut Group) {
    let world = group.len() as u32;
    let content = |rank: u32, len: usize| (0..len).map(|i| (i as u32 * 7 + rank) as u8).collect::<Vec<_>>();
    let all = (0..world).flat_map(|root| (0..1u32 << world).map(move |chosen| (root, chosen)));
    for (root, chosen) in all.filter(|(root, chosen)| chosen >> root & 1 == 0) {
        let to = (0..world).filter(|rank| chosen >> rank & 1 == 1).collect::<Vec<_>>();
        // the long one meets what is said now and then to those who get nothing
        let long = if (root, &to[..]) == (0, &[1]) { 5 << 20 } else { 100_003 };
        for len in [0, 1, long] {
            together(group, |member| {
                let rank = member.rank();
                let mut bytes = content(rank, len);
                // every rank cuts them elsewhere
                let cut = len / (2 + rank as usize);
                if rank == root {
                    let (first, rest) = bytes.split_at(cut);
                    member.broadcast(Part::Gives(&[first, &[], rest]), root, &to).expect("given");
                } else if to.contains(&rank) {
                    let (first, rest) = bytes.split_at_mut(cut);
                    member.broadcast(Part::Takes(&mut [first, &mut [], rest]), root, &to).expect("taken");
                } else {
                    member.broadcast(Part::Hears(len), root, &to).expect("heard of");
                }
                let whose = if to.contains(&rank) { root } else { rank };
                assert!(bytes == content(whose, len), "rank {rank}, {len} bytes from {root} to {to:?}");
            });
        }
    }
}

fn nobody_leaves_a_barrier_before_all_have_come(group: &mut Group) {
    let (world, come) = (group.len(), AtomicUsize::new(0));
    together(group, |member| {
        for round in 1..=20 {
            come.fetch_add(1, Ordering::SeqCst);
            member.barrier().expect("barrier");
            let come = come.load(Ordering::SeqCst);
            assert!(come >= round * world, "{come} had come in round {round} of {world}");
        }
    });
}

fn tree_sums_have_the_bits_of_one_rank(group: &mut Group) {
    let world = group.len();
    for (groups, width) in [(0, 5), (1, 5), (2, 3), (5, 1), (13, 1000), (16, 0), (3, 200_003)] {
        let gradient = |group: usize| (0..width).map(|i| rough(group as u32, i)).collect::<Vec<_>>();
        let add = |run: std::ops::Range<usize>| {
            let mut sum = TreeSum::new(groups, run.clone(), width).expect("a run of groups");
            run.for_each(|group| sum.push(&gradient(group)).expect("a gradient in turn"));
            sum
        };
        let alone = add(0..groups);
        let expected = alone.rows().expect("complete").next().map_or(vec![0.0; width], |(_, row)| row.to_vec());
        let lopsided = (0..world).map(|rank| {
            if rank == world / 2 {
                0..groups
            } else if rank < world / 2 {
                0..0
            } else {
                groups..groups
            }
        });
        for runs in [deal(groups, world), lopsided.collect()] {
            together(group, |member| {
                let mut out = vec![f32::NAN; width];
                member.tree_sum_f32(&add(runs[member.rank() as usize].clone()), &mut out).expect("tree sum");
                assert!(
                    out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{groups} groups as {runs:?}"
                );
            });
        }
    }
}

fn misuse_is_refused_and_forgiven(group: &mut Group) {
    let world = group.len() as u32;
    together(group, |member| {
        let refused = |outcome: Result<(), CollectiveError>| {
            assert!(matches!(outcome, Err(CollectiveError::Misuse(_))), "{outcome:?}");
        };
        let me = member.rank();
        refused(member.broadcast(Part::Hears(1), world, &[]));
        refused(member.broadcast(Part::Gives(&[&[1]]), me, &[world]));
        refused(member.broadcast(Part::Gives(&[&[1]]), me, &[me]));
        refused(member.broadcast(Part::Hears(1), me, &[]));
        refused(member.broadcast(Part::Takes(&mut [&mut [1]]), me, &[]));
        refused(member.all_gather_bytes(&vec![0; crate::GATHER_BYTES_MAX + 1]).map(drop));
        refused(member.echo(ECHO_BYTES_MAX + 1).map(drop));
        let incomplete = TreeSum::new(2, 0..2, 1).expect("a run of groups");
        refused(member.tree_sum_f32(&incomplete, &mut [0.0]));
        let other_width = TreeSum::new(0, 0..0, 1).expect("a run of groups");
        refused(member.tree_sum_f32(&other_width, &mut [0.0, 0.0]));
        member.barrier().expect("the communicator lives on");
    });
}

/// What a call that was to fail has come to, and when.
type Ended = (CollectiveError, Instant);

/// Lets every rank but the last, which does not come, block in a sum; then lets `act` happen, with the last rank in its hands.
/// Returns when `act` began, and how each of the blocked calls ended. `all_ended` is closed once they have.
fn blocked(
    mut group: Group,
    all_ended: Option<mpsc::Sender<()>>,
    act: impl FnOnce(Option<Box<dyn Collective>>),
) -> (Instant, Vec<Ended>) {
    let last = group.pop();
    let (entering, entered) = mpsc::channel();
    thread::scope(|scope| {
        let spawn = |mut member: Box<dyn Collective>| {
            let (entering, all_ended) = (entering.clone(), all_ended.clone());
            scope.spawn(move || {
                let task = fs::read_link("/proc/thread-self").expect("the thread's own entry");
                entering.send(task).expect("the test waits for it");
                let cause = member.all_reduce_sum_f32(&mut vec![1.0; 100_000]).expect_err("a rank did not come");
                let ended = Instant::now();
                let again = member.barrier().expect_err("it is dead");
                assert!(ended.elapsed() < Duration::from_secs(1), "a dead communicator answered late");
                assert_eq!(again.to_string(), cause.to_string(), "the first cause stays");
                drop(all_ended);
                (cause, ended)
            })
        };
        let ranks = group.into_iter().map(spawn).collect::<Vec<_>>();
        for _ in &ranks {
            let task = entered.recv().expect("every rank enters");
            let stat = std::path::Path::new("/proc").join(task).join("stat");
            let until = Instant::now() + Duration::from_secs(10);
            while !fs::read_to_string(&stat).expect("the thread's state").contains(") S ") {
                assert!(Instant::now() < until, "the rank does not block");
                thread::yield_now();
            }
        }
        drop(all_ended);
        let begun = Instant::now();
        act(last);
        (begun, ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect())
    })
}

/// Whether one of a few tries keeps [`NEWS`]; `attempt` returns how long the slowest rank took.
pub fn in_time(mut attempt: impl FnMut() -> Duration) {
    let mut took = Vec::new();
    while took.len() < TRIES && took.last().is_none_or(|last| *last >= NEWS) {
        took.push(attempt());
    }
    println!("news took {took:?}");
    assert!(took.last().is_some_and(|last| *last < NEWS), "none within {NEWS:?}");
}

fn slowest(begun: Instant, ended: &[Ended]) -> Duration {
    ended.iter().map(|(_, at)| at.duration_since(begun)).max().unwrap_or_default()
}

fn an_abort_ends_every_rank_at_once(form: &dyn Fn() -> Group) {
    let world = form().len();
    for aborting in 0..world {
        in_time(|| {
            let group = form();
            let aborter = group[aborting].aborter();
            let (begun, ended) = blocked(group, None, |last| {
                aborter.abort();
                aborter.abort(); // does nothing
                if let Some(mut last) = last {
                    let cause = last.barrier().expect_err("aborted while it computed");
                    assert_aborted(&cause, aborting, world - 1);
                }
            });
            for (rank, (cause, _)) in ended.iter().enumerate() {
                assert_aborted(cause, aborting, rank);
            }
            slowest(begun, &ended)
        });
    }
}

fn an_abort_is_heard_without_a_call(form: &dyn Fn() -> Group) {
    in_time(|| {
        let mut group = form();
        group.iter_mut().for_each(|member| member.check().expect("nothing has happened yet"));
        let begun = Instant::now();
        group[0].aborter().abort();
        for (rank, member) in group.iter_mut().enumerate() {
            let cause = loop {
                match member.check() {
                    Err(cause) => break cause,
                    Ok(()) => assert!(begun.elapsed() < Duration::from_secs(10), "rank {rank} hears nothing"),
                }
            };
            assert_aborted(&cause, 0, rank);
            assert_eq!(member.barrier().expect_err("it is over").to_string(), cause.to_string());
        }
        begun.elapsed()
    });
}

fn assert_aborted(cause: &CollectiveError, aborting: usize, rank: usize) {
    match cause {
        CollectiveError::Aborted => assert_eq!(rank, aborting),
        CollectiveError::PeerLost { rank: lost, how: How::Aborted } => assert_eq!(*lost as usize, aborting),
        other => panic!("rank {rank} saw {other}"),
    }
}

fn a_deadline_names_the_rank_that_did_not_come(form: &dyn Fn() -> Group) {
    let deadline = Duration::from_millis(200);
    let mut group = form();
    let absent = group.len() as u32 - 1;
    group.iter_mut().for_each(|member| member.set_deadline(deadline));
    let (given_up, all_given_up) = mpsc::channel::<()>();
    let (begun, ended) = blocked(group, Some(given_up), |last| {
        // The absent rank computes until the others have given it up, and learns that from its next call.
        let _ = all_given_up.recv();
        if let Some(mut last) = last.filter(|last| last.world() > 1) {
            let cause = last.barrier().expect_err("given up on");
            assert!(matches!(cause, CollectiveError::PeerLost { how: How::GaveUp, .. }), "{cause}");
        }
    });
    for (cause, at) in ended {
        match cause {
            CollectiveError::TimedOut { after, waiting_for } => assert_eq!((after, waiting_for), (deadline, absent)),
            CollectiveError::PeerLost { rank, how: How::Silent } => assert_eq!(rank, absent),
            other => panic!("{other}"),
        }
        let took = at.duration_since(begun);
        assert!(took < 10 * deadline, "a deadline of {deadline:?} took {took:?}");
    }
}

fn a_rank_that_leaves_is_named(form: &dyn Fn() -> Group) {
    in_time(|| {
        let group = form();
        let leaving = group.len() as u32 - 1;
        let (begun, ended) = blocked(group, None, drop);
        for (cause, _) in &ended {
            let CollectiveError::PeerLost { rank, how: How::Left } = cause else { panic!("{cause}") };
            assert_eq!(*rank, leaving);
        }
        slowest(begun, &ended)
    });
}
