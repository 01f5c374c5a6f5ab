//! Ten thousand schedules, one for each seed: nothing that must hold is broken in any of them.

use std::io::Write as _;
use std::thread;
use std::time::Instant;

const SEEDS: u64 = 10_000;

#[test]
fn nothing_breaks_in_ten_thousand_schedules() {
    let began = Instant::now();
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64).min(SEEDS);
    let search = |first: u64| {
        (first..SEEDS).step_by(threads as usize).find_map(|seed| simulator::run(seed, false).broken.map(|b| (seed, b)))
    };
    let broken = thread::scope(|scope| {
        let searches: Vec<_> = (0..threads).map(|first| scope.spawn(move || search(first))).collect();
        searches.into_iter().filter_map(|search| search.join().expect("a search ends")).min_by_key(|(seed, _)| *seed)
    });
    if let Some((seed, broken)) = broken {
        let story = simulator::run(seed, true).story.join("\n");
        let replay = simulator::replay(seed);
        panic!("{story}\nseed {seed} breaks \"{}\": {}\n{replay}", broken.invariant, broken.found);
    }
    let seconds = began.elapsed().as_secs_f64();
    // past the capture of tests: it is of interest when nothing fails
    let _shown = writeln!(std::io::stderr(), "{SEEDS} schedules, {:.0} a second", SEEDS as f64 / seconds);
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 0..50 {
        let (one, two) = (simulator::run(seed, true), simulator::run(seed, true));
        assert_eq!((one.events, one.story), (two.events, two.story), "seed {seed}");
        assert_eq!(one.events, simulator::run(seed, false).events, "telling changes nothing: seed {seed}");
    }
}

#[test]
fn schedules_are_of_many_kinds() {
    let mut ends: Vec<String> = Vec::new();
    let (mut generations, mut longest, mut replaced) = (0, 0, 0);
    for seed in 0..400 {
        let report = simulator::run(seed, false);
        generations += report.generations;
        longest = longest.max(report.generations);
        replaced += report.coordinators - 1;
        ends.push(report.ended);
    }
    assert!(generations > 500 && longest > 8, "{generations} generations, {longest} in one");
    assert!(replaced > 80, "{replaced} coordinators were replaced");
    for kind in ["the run is complete", "stopped at", "still missing", "failures in a row", "killed at once", "Running"]
    {
        assert!(ends.iter().any(|end| end.contains(kind)), "no schedule ends with \"{kind}\"");
    }
}
