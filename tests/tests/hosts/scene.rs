//! The stage of these tests: a coordinator on host 0, a worker on each of the hosts 1, 2 and 3, a folder that all share as
//! store, and what must hold at the end.

use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tests::experiment::Experiment;
use tests::finished::Finished;
use tests::hosts::{Hosts, address};
use tests::launched::{End, Launched};
use tests::machine::Machine;
use tests::{PATIENCE, until};

/// Workers, each on a host of its own.
pub const WORKERS: usize = 3;
/// `cluster.patience` of these runs.
pub const RUN_PATIENCE: Duration = Duration::from_secs(1);
/// A silent host costs the patience; what comes on top on a machine that is busy with other things.
pub const BUSY: Duration = Duration::from_secs(4);
/// A worker that comes back is at work again within this time, on a busy machine.
pub const BACK: Duration = Duration::from_secs(20);
/// Images at which a run is struck: it is well under way, and has stored a checkpoint.
pub const STRUCK_AT: u64 = 160;

const TOKEN: &str = "a token that the environment gives both sides";
const PORT: u16 = 4000;

/// The experiment: the tiny one, as long as a fault and its end need.
pub fn experiment() -> Experiment {
    Experiment::tiny()
        .with("train.total_kimg", 1.6)
        .with("checkpoint.every_kimg", 0.2)
        .with("cluster.patience", "1s")
        .with("cluster.orphan_patience", "60s")
}

/// The same, undisturbed, with two workers on this machine.
fn undisturbed() -> &'static Finished {
    static FINISHED: LazyLock<Finished> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hosts-finished");
        Finished::run(folder, &experiment())
    });
    &FINISHED
}

/// Hosts, and a machine whose folder they share.
pub struct Scene {
    // what runs on the hosts ends before the hosts do
    pub machine: Machine,
    pub hosts: Hosts,
    _alone: MutexGuard<'static, ()>,
}

/// A worker on a host.
pub struct Guest {
    pub host: usize,
    process: Child,
}

impl Scene {
    /// `None`, and told, where this machine cannot have hosts.
    pub fn set(experiment: &Experiment) -> Option<Self> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = Hosts::new(WORKERS + 1)?;
        let machine = Machine::new().with_env("GANFLEET_TOKEN", TOKEN);
        machine.experiment(experiment);
        Some(Self { machine, hosts, _alone: alone })
    }

    /// The coordinator's address.
    pub fn coordinator() -> String {
        format!("{}:{PORT}", address(0))
    }

    /// Starts the coordinator, and a worker on each host.
    pub fn launch(&self) -> (Launched<'_>, Vec<Guest>) {
        let listen = Self::coordinator();
        let workers = WORKERS.to_string();
        let arguments = ["--workers", &workers, "--local", "0", "--listen", &listen, "--insecure"];
        let mut run = self.machine.launch_on(&self.hosts, 0, &arguments);
        run.wait_for("launched");
        let guests = (1..=WORKERS).map(|host| self.join(host)).collect();
        (run, guests)
    }

    /// Starts a worker on `host`. What it says goes to `worker-<host>.log`.
    pub fn join(&self, host: usize) -> Guest {
        let mut command = self.hosts.on(host, &self.machine.worker(&["join", &Self::coordinator()]));
        let said = File::options().create(true).append(true).open(self.log(host)).unwrap();
        let process = command.stdout(said.try_clone().unwrap()).stderr(said).spawn().expect("the worker starts");
        Guest { host, process }
    }

    pub fn said(&self, host: usize) -> String {
        std::fs::read_to_string(self.log(host)).unwrap_or_default()
    }

    fn log(&self, host: usize) -> std::path::PathBuf {
        self.machine.path(&format!("worker-{host}.log"))
    }

    /// The run ends complete, in the bits of an undisturbed one, every step taken once; `codes` are those with which its
    /// workers may leave.
    pub fn ends_well(&self, run: Launched<'_>, guests: Vec<Guest>, codes: &[i32]) -> End {
        self.ends_like(undisturbed(), run, guests, codes)
    }

    /// The same, like another run.
    pub fn ends_like(&self, like: &Finished, run: Launched<'_>, guests: Vec<Guest>, codes: &[i32]) -> End {
        let end = run.end();
        let story = || {
            let said = (1..=WORKERS).map(|host| format!("\nhost {host}:\n{}", self.said(host)));
            format!("{}{}", end.story(), said.collect::<String>())
        };
        assert_eq!(end.code, 0, "{}", story());
        assert_eq!(end.reason(), "complete", "{}", story());
        for mut guest in guests {
            let code = until(PATIENCE, "the workers leave", || guest.process.try_wait().unwrap()).code();
            assert!(code.is_some_and(|code| codes.contains(&code)), "host {} left with {code:?}: {}", guest.host, story());
        }
        self.machine.assert_nothing_runs(Duration::from_secs(1));
        let url = self.machine.run().display().to_string();
        assert_eq!(self.machine.state_hash(&url), like.hash, "{}", story());
        self.machine.verify(&url);
        // one history: every tick once and in order, every step taken
        let ticks: Vec<u64> = end.events("tick").filter_map(|event| event["tick"]["images"].as_u64()).collect();
        assert!(ticks.is_sorted_by(|one, next| one < next), "{ticks:?}: {}", story());
        let report = self.machine.ask(&["report", &url, "--json"]).json();
        assert_eq!(report["steps_missing"], 0, "{report}: {}", story());
        println!("  {} s, {} generations, {} steps, {} taken again", seconds(&report), report["generations"], report["steps"], report["steps_taken_again"]);
        end
    }
}

fn seconds(report: &Value) -> String {
    report["seconds"].to_string()
}

/// Waits for the next generation of this many workers. Returns the time since `from`.
pub fn formed(run: &mut Launched<'_>, world: u64, from: Instant) -> Duration {
    run.wait_where(&format!("generation of {world}"), |event| {
        event["decision"]["reason"] == "formed" && event["decision"]["world"] == world
    });
    from.elapsed()
}

/// Workers that were lost, as the decisions tell.
pub fn losses(seen: &[Value]) -> Vec<&Value> {
    seen.iter().map(|event| &event["decision"]).filter(|decision| decision["reason"] == "lost").collect()
}

/// Generations that began.
pub fn generations(seen: &[Value]) -> usize {
    seen.iter().filter(|event| event["decision"]["reason"] == "formed").count()
}
