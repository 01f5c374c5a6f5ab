//! Runs schedules: `--seeds FROM..TO`, or one with `--seed N`, `--story` to read what happened in it.
//!
//! Ends at the first that fails, with its story and exit code 1.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let (mut from, mut to, mut story) = (0, 1000, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = if argument == "--story" { None } else { arguments.next() };
        let range = value.as_deref().and_then(|value| {
            let (first, last) = value.split_once("..").unwrap_or((value, ""));
            let first: u64 = first.parse().ok()?;
            let last = if last.is_empty() { first + 1 } else { last.parse().ok()? };
            Some((first, last))
        });
        match (argument.as_str(), range) {
            ("--story", _) => story = true,
            ("--seed" | "--seeds", Some(range)) => (from, to) = range,
            _ => {
                eprintln!("usage: simulate [--seeds FROM..TO | --seed N] [--story]");
                return ExitCode::from(2);
            }
        }
    }
    let (began, mut events) = (Instant::now(), 0);
    for seed in from..to {
        let mut report = simulator::run(seed, story);
        events += report.events;
        if report.broken.is_some() && !story {
            report = simulator::run(seed, true);
        }
        if story || report.broken.is_some() {
            report.story.iter().for_each(|line| println!("{line}"));
            println!("seed {seed}: {} generations; {}", report.generations, report.ended);
        }
        if let Some(broken) = report.broken {
            println!("seed {seed} breaks \"{}\": {}\n{}", broken.invariant, broken.found, simulator::replay(seed));
            return ExitCode::FAILURE;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let rate = (to - from) as f64 / seconds;
    println!("{} schedules in {seconds:.1} s: {rate:.0} a second, {events} events; nothing broke", to - from);
    ExitCode::SUCCESS
}
