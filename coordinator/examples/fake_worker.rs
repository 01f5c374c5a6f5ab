//! A worker without tensors, for the tests of the coordinator: it joins, meets the others, counts images with them, reports,
//! checkpoints and leaves as a real one does, and misbehaves as the environment says.
//!
//! `FAKE_DO=crash|panic|vanish|diverge|deaf|alien` with `FAKE_RANK` (the rank that does it) and `FAKE_AT` (images);
//! `FAKE_PREPARE=fail`. It trains nothing: every 2 ms are 4 images.

use agent::{Activity, Agent, Assignment, JoinInfo, Next, Notice, Progress, Reach, Seat, Stored, Trouble};
use collective::{Collective, CollectiveError, Listener, Membership, Mesh, Solo};
use common::checkpoint::{Dataset, FORMAT, Manifest, TrainerCursor};
use common::config::resolved::RunConfig;
use common::exit::Exit;
use common::ids::{ImagesSeen, Rank};
use common::metrics::{Event, Tick};
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
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
        ["sample", "--s3", _, "--seeds", seeds, "--out", out, url] => {
            println!("sample {url} {seeds} {out}");
            ExitCode::from(42)
        }
        ["translate", "--s3", _, "--direction", direction, "--out", out, "--", url, inputs @ ..] => {
            println!("translate {url} {inputs:?} {direction} {out}");
            ExitCode::from(43)
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
    println!(r#"{{"images":3,"epoch":3,"fingerprint":"{FINGERPRINT}","skipped":0,"reused":false}}"#);
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
    let build = if misdeed.what == "alien" { "0.0.0-alien" } else { env!("CARGO_PKG_VERSION") };
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let info = JoinInfo::of_this_process(build, &listener.address().to_string(), "cpu");
    let reach = Reach {
        address: address.to_owned(),
        token: variable("GANFLEET_TOKEN").unwrap_or_default(),
        credentials: variable("GANFLEET_CREDENTIALS").map(Into::into),
    };
    let failed = |error: agent::AgentError| {
        say(&format!("ERROR join: {error}"));
        error.exit().into()
    };
    let (agent, config) = match Agent::connect(reach, info, Duration::from_secs(5)) {
        Ok(joined) => joined,
        Err(error) => return failed(error),
    };
    heed_sigterm(agent.notice(), misdeed.what == "deaf");
    let run = run_of(&config);
    agent.look_up(move || {
        let lease = now(run.lease()).ok()??;
        Some(Seat { epoch: lease.epoch, address: lease.address })
    });
    let mut worker = Fake { agent: &agent, config, misdeed, listener, state: None };
    let mut trouble = Trouble::default();
    loop {
        let assignment = match agent.wait(worker.state.is_some(), &trouble) {
            Ok(Next::Place(assignment)) => assignment,
            Ok(Next::Leave { reason }) => {
                agent.leave(Exit::Ok, &reason);
                return ExitCode::SUCCESS;
            }
            Ok(Next::Orphaned) => {
                agent.leave(Exit::Orphaned, "alone");
                return Exit::Orphaned.into();
            }
            Err(error) => return failed(error),
        };
        match worker.take_part(&assignment) {
            Ok(Work::Regroup) => trouble = Trouble::default(),
            Ok(Work::Left(exit, message)) => {
                agent.leave(exit, &message);
                return exit.into();
            }
            Ok(Work::Gone(exit)) => return exit.into(),
            Err(_) if agent.commands().dismissed => return Exit::WorkerLost.into(),
            Err(error) => trouble = Trouble { why: error.to_string(), ..Trouble::default() },
        }
    }
}

/// How a generation ended for this worker, if it was not lost.
enum Work {
    /// All left it together.
    Regroup,
    Left(Exit, String),
    Gone(Exit),
}

struct Fake<'a> {
    agent: &'a Agent,
    config: RunConfig,
    misdeed: Misdeed,
    listener: Listener,
    /// Images seen: all there is to its state.
    state: Option<u64>,
}

impl Fake<'_> {
    fn take_part(&mut self, assignment: &Assignment) -> Result<Work, CollectiveError> {
        let rank = assignment.rank;
        let mut mesh = self.meet(assignment)?;
        say(&format!("INFO rank {rank} of {} is at work", assignment.peers.len()));
        let mine = self.state.filter(|_| !assignment.rollback);
        let held = mesh.all_gather_bytes(&mine.map_or(Vec::new(), |images| images.to_le_bytes().to_vec()))?;
        let latest = held.iter().filter_map(|bytes| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?))).max();
        let mut images = latest.unwrap_or_else(|| assignment.resume.as_deref().map_or(0, images_of));
        let total = self.config.train.total_images();
        let (mut tick, mut wish) = (images, false);
        while images < total {
            let commands = self.agent.commands();
            if commands.dismissed {
                return Ok(Work::Gone(Exit::WorkerLost));
            }
            if self.misdeed.is_due(rank, images) {
                match self.misdeed.what.as_str() {
                    "crash" => std::process::abort(),
                    "panic" => panic!("out of luck"),
                    "vanish" => return Ok(Work::Gone(Exit::Ok)),
                    "diverge" => return Ok(Work::Left(Exit::Diverged, "the loss is not finite".into())),
                    _ => {}
                }
            }
            std::thread::sleep(STEP);
            wish |= commands.checkpoint_now;
            let mut flags = [commands.stop, commands.orphaned, std::mem::take(&mut wish), commands.regroup]
                .map(|flag| f32::from(u8::from(flag)));
            self.agent.waiting().store(true, Ordering::Relaxed);
            mesh.all_reduce_sum_f32(&mut flags)?;
            self.agent.waiting().store(false, Ordering::Relaxed);
            images += IMAGES_PER_STEP;
            self.state = Some(images);
            let activity = Activity::Train;
            let step_seconds = STEP.as_secs_f64();
            let (images_seen, line) = (ImagesSeen(images), assignment.generation);
            self.agent.progress(Progress { images: images_seen, activity, step_seconds, line, ..Progress::default() });
            if rank == Rank(0) && images - tick >= IMAGES_PER_TICK {
                tick = images;
                self.agent.tick(tick_json(images, total));
            }
            let orphaned = flags[1] == mesh.world() as f32;
            let [stop, _, store, regroup] = flags.map(|flag| flag > 0.0);
            if store && rank == Rank(0) {
                self.checkpoint(assignment, images);
            }
            if stop || orphaned {
                if rank == Rank(0) {
                    self.checkpoint(assignment, images);
                }
                mesh.barrier()?;
                if self.misdeed.what == "deaf" && self.misdeed.is_due(rank, images) {
                    std::thread::sleep(Duration::from_secs(3600));
                }
                return Ok(Work::Left(if stop { Exit::Ok } else { Exit::Orphaned }, "as told".into()));
            }
            if regroup {
                return Ok(Work::Regroup);
            }
        }
        if rank == Rank(0) {
            self.checkpoint(assignment, images);
        }
        mesh.barrier()?;
        Ok(Work::Left(Exit::Ok, "complete".into()))
    }

    fn meet(&mut self, assignment: &Assignment) -> Result<Box<dyn Collective>, CollectiveError> {
        let generation = assignment.generation.0;
        let mut mesh: Box<dyn Collective> = if assignment.peers.len() == 1 {
            Box::new(Solo::new(generation))
        } else {
            let peers = assignment.peers.iter().map(|peer| peer.parse().expect("an address")).collect();
            let membership = Membership { generation, rank: assignment.rank.0, peers, secret: assignment.secret };
            let mesh = Mesh::new(membership)?;
            let aborter = mesh.aborter();
            self.agent.on_abort(move || aborter.abort());
            Box::new(mesh.form(&mut self.listener, Duration::from_secs(20))?)
        };
        let aborter = mesh.aborter();
        self.agent.on_abort(move || aborter.abort());
        mesh.set_deadline(Duration::from_secs(60));
        Ok(mesh)
    }

    /// Commits a checkpoint without parts.
    fn checkpoint(&self, assignment: &Assignment, images: u64) {
        let config = &self.config;
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
        let committed = now(run_of(config).commit(&manifest)).expect("a commit");
        let manifest = committed.key.to_string();
        let (generation, images) = (assignment.generation, ImagesSeen(images));
        self.agent.stored(Stored { generation, images, manifest, bytes: 0, stall_seconds: 0.0, seconds: 0.0 });
    }
}

fn run_of(config: &RunConfig) -> storage::Run {
    let store = storage::Store::open(&config.checkpoint.url, &config.checkpoint.s3).expect("a store");
    store.run(&config.name).expect("a run")
}

fn now<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn tick_json(images: u64, total_images: u64) -> String {
    let tick = Tick { images, total_images, resolution: 4, alpha: 1.0, img_per_sec: 2000.0, ..Tick::default() };
    serde_json::to_string(&Event::Tick(tick)).expect("a tick is JSON")
}

fn images_of(manifest: &str) -> u64 {
    manifest.parse::<common::checkpoint::ManifestKey>().expect("the name of a checkpoint").images.0
}

/// Being told to go is passed on, or has no effect.
fn heed_sigterm(notice: Notice, deaf: bool) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let kind = tokio::signal::unix::SignalKind::terminate();
            let mut signals = tokio::signal::unix::signal(kind).expect("a handler");
            while signals.recv().await.is_some() {
                if !deaf && !notice.give() {
                    std::process::exit(Exit::Interrupted as i32);
                }
            }
        });
    });
}
