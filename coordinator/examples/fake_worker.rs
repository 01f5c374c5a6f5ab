//! A worker without tensors, for the tests of the coordinator: it joins, counts images, reports, checkpoints and leaves as
//! a real one does, and misbehaves as the environment says.
//!
//! `FAKE_DO=crash|panic|vanish|diverge|deaf|alien` with `FAKE_RANK` (the rank that does it) and `FAKE_AT` (images);
//! `FAKE_PREPARE=fail`. It trains nothing: every 2 ms are 4 images.

use agent::{Activity, Agent, JoinInfo, Progress, Stored};
use common::checkpoint::{Dataset, FORMAT, Manifest, TrainerCursor};
use common::exit::Exit;
use common::ids::{ImagesSeen, Rank};
use common::metrics::{Event, Tick};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

const STEP: Duration = Duration::from_millis(2);
const IMAGES_PER_STEP: u64 = 4;
const IMAGES_PER_TICK: u64 = 100;
const FINGERPRINT: &str = "5eed";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["prepare"] => prepare(),
        ["join", address] => join(address),
        ["sample", url, "--seeds", seeds, "--s3", _, "--out", out] => {
            println!("sample {url} {seeds} {out}");
            ExitCode::from(42)
        }
        other => {
            say(&format!("ERROR unknown arguments {other:?}"));
            Exit::Usage.into()
        }
    }
}

/// Writes to standard error, which may be gone with the coordinator.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn prepare() -> ExitCode {
    let config: serde_json::Value = serde_json::from_reader(std::io::stdin()).expect("the configuration is JSON");
    assert!(config["name"].is_string(), "the configuration is on standard input");
    if variable("FAKE_PREPARE").as_deref() == Some("fail") {
        say("ERROR prepare: 3 of 3 files cannot be read");
        return Exit::Data.into();
    }
    for done in 0..=3 {
        println!(r#"{{"done":{done},"total":3}}"#);
    }
    println!(r#"{{"images":3,"fingerprint":"{FINGERPRINT}","skipped":0,"reused":false}}"#);
    ExitCode::SUCCESS
}

/// What to do wrong, on which rank, from how many images on.
struct Misdeed {
    what: String,
    rank: u32,
    at: u64,
}

impl Misdeed {
    fn from_environment() -> Self {
        let number = |name| variable(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let (rank, at) = (number("FAKE_RANK"), u64::from(number("FAKE_AT")));
        Self { what: variable("FAKE_DO").unwrap_or_default(), rank, at }
    }

    fn is_due(&self, rank: Rank, images: u64) -> bool {
        rank.0 == self.rank && images >= self.at
    }
}

fn join(address: &str) -> ExitCode {
    let misdeed = Misdeed::from_environment();
    if misdeed.what == "deaf" {
        survive_sigterm();
    }
    let build = if misdeed.what == "alien" { "0.0.0-alien" } else { env!("CARGO_PKG_VERSION") };
    let info = JoinInfo::of_this_process(build, "127.0.0.1:1", "cpu");
    let token = variable("GANFLEET_TOKEN").unwrap_or_default();
    let (agent, assignment) = match Agent::connect(address, &token, info, Duration::from_secs(5)) {
        Ok(joined) => joined,
        Err(error) => {
            say(&format!("ERROR join: {error}"));
            return error.exit().into();
        }
    };
    let rank = assignment.rank;
    say(&format!("INFO rank {rank} of {} is at work", assignment.peers.len()));
    let total = assignment.config.train.total_images();
    let start = assignment.resume.as_deref().map_or(0, images_of);
    let mut images = start;
    let mut tick = images;
    while images < total {
        std::thread::sleep(STEP);
        images += IMAGES_PER_STEP;
        let progress =
            Progress { images: ImagesSeen(images), phase: 0, activity: Activity::Train, step_seconds: 0.002 };
        agent.progress(progress);
        if rank == Rank(0) && images - tick >= IMAGES_PER_TICK {
            tick = images;
            agent.tick(tick_json(images, total));
        }
        let commands = agent.commands();
        if misdeed.is_due(rank, images) {
            match misdeed.what.as_str() {
                "crash" => std::process::abort(),
                "panic" => panic!("out of luck"),
                "vanish" => return ExitCode::SUCCESS,
                "diverge" => {
                    agent.leave(Exit::Diverged, "the loss is not finite");
                    return Exit::Diverged.into();
                }
                "deaf" => continue,
                _ => {}
            }
        }
        if commands.checkpoint_now && rank == Rank(0) {
            checkpoint(&agent, &assignment, images);
        }
        if commands.dismissed {
            return Exit::WorkerLost.into();
        }
        if commands.orphaned || commands.stop {
            if rank == Rank(0) {
                checkpoint(&agent, &assignment, images);
            }
            let exit = if commands.orphaned { Exit::Orphaned } else { Exit::Ok };
            agent.leave(exit, "as told");
            return exit.into();
        }
    }
    if rank == Rank(0) {
        checkpoint(&agent, &assignment, images);
    }
    agent.leave(Exit::Ok, "complete");
    ExitCode::SUCCESS
}

fn tick_json(images: u64, total_images: u64) -> String {
    let tick = Tick { images, total_images, resolution: 4, alpha: 1.0, img_per_sec: 2000.0, ..Tick::default() };
    serde_json::to_string(&Event::Tick(tick)).expect("a tick is JSON")
}

fn images_of(manifest: &str) -> u64 {
    manifest.parse::<common::checkpoint::ManifestKey>().expect("the name of a checkpoint").images.0
}

/// Commits a checkpoint without parts.
fn checkpoint(agent: &Agent, assignment: &agent::Assignment, images: u64) {
    let config = &assignment.config;
    let manifest = Manifest {
        format: FORMAT,
        run: config.name.clone(),
        generation: assignment.generation,
        writer: "fake".into(),
        nonce: storage::fresh_nonce().expect("random numbers"),
        parent: None,
        created: 0,
        program: "fake".into(),
        world: u32::try_from(assignment.peers.len()).expect("a small world"),
        config: config.clone(),
        cursor: TrainerCursor { images, ..TrainerCursor::default() },
        dataset: Dataset { fingerprint: FINGERPRINT.into(), images: 3 },
        environment: Default::default(),
        parts: Vec::new(),
    };
    let store = storage::Store::open(&config.checkpoint.url, &config.checkpoint.s3).expect("a store");
    let run = store.run(&config.name).expect("a run");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let committed = runtime.block_on(run.commit(&manifest)).expect("a commit");
    let manifest = committed.key.to_string();
    agent.stored(Stored { images: ImagesSeen(images), manifest, bytes: 0, stall_seconds: 0.0, seconds: 0.0 });
}

/// With a handler of its own, SIGTERM has no effect.
fn survive_sigterm() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let kind = tokio::signal::unix::SignalKind::terminate();
            let mut signals = tokio::signal::unix::signal(kind).expect("a handler");
            while signals.recv().await.is_some() {}
        });
    });
}
