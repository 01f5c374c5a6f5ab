//! The stage of these tests: a coordinator on host 0, a worker on each of the hosts 1, 2 and 3, a folder that all share as
//! store, and what must hold at the end.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Folder of the credentials, where there are any.
pub const SECRETS: &str = "secrets";

const TOKEN: &str = "a token that the environment gives both sides";
const PORT: u16 = 4000;

/// The experiment: the tiny one, with a longer end.
pub fn experiment(total_kimg: f64) -> Experiment {
    Experiment::tiny()
        .with("train.total_kimg", total_kimg)
        .with("checkpoint.every_kimg", 0.2)
        .with("cluster.patience", "1s")
        .with("cluster.orphan_patience", "60s")
}

/// As long as a fault, its end and what follows need, also where a step takes 5 ms.
pub fn long() -> Experiment {
    experiment(3.2)
}

/// As long as is needed where nobody has to come back.
pub fn short() -> Experiment {
    experiment(1.2)
}

/// The same, undisturbed, with two workers on this machine.
fn undisturbed(experiment: &Experiment) -> Arc<Finished> {
    type Runs = BTreeMap<String, Arc<Finished>>;
    static FINISHED: Mutex<Runs> = Mutex::new(Runs::new());
    let patient = experiment.clone().with("cluster.patience", "5s").with("cluster.orphan_patience", "60s");
    let mut finished = FINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hosts-finished-{}", finished.len()));
    Arc::clone(finished.entry(patient.text()).or_insert_with(|| Arc::new(Finished::run(folder, &patient))))
}

/// Hosts, and a machine whose folder they share.
pub struct Scene {
    // what runs on the hosts ends before the hosts do
    pub machine: Machine,
    pub hosts: Hosts,
    /// Everybody has credentials, and nothing is said in the clear.
    trusted: bool,
    /// State hash at the end of the same run, undisturbed.
    hash: String,
    _alone: MutexGuard<'static, ()>,
}

/// A worker on a host.
pub struct Guest {
    pub host: usize,
    process: Child,
}

impl Guest {
    /// Ends it by force.
    pub fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

impl Scene {
    /// `None`, and told, where this machine cannot have hosts.
    pub fn set(experiment: &Experiment) -> Option<Self> {
        Self::with_strangers(experiment, 0)
    }

    /// The same with more hosts, on which nothing runs yet: the first is number 4.
    pub fn with_strangers(experiment: &Experiment, strangers: usize) -> Option<Self> {
        Self::with(experiment, strangers, false)
    }

    /// The same, where coordinator and workers prove who they are with the credentials in `secrets`.
    pub fn trusted(experiment: &Experiment, strangers: usize) -> Option<Self> {
        let scene = Self::with(experiment, strangers, true)?;
        let made = scene.machine.ask(&["credentials", "make", SECRETS]);
        assert_eq!(made.code, 0, "{made:?}");
        Some(scene)
    }

    fn with(experiment: &Experiment, strangers: usize, trusted: bool) -> Option<Self> {
        static ONE: Mutex<()> = Mutex::new(());
        let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = Hosts::new(1 + WORKERS + strangers)?;
        let machine = match trusted {
            true => Machine::new(),
            false => Machine::new().with_env("GANFLEET_TOKEN", TOKEN),
        };
        machine.experiment(experiment);
        let hash = undisturbed(experiment).hash.clone();
        Some(Self { machine, hosts, trusted, hash, _alone: alone })
    }

    /// The coordinator's address.
    pub fn coordinator() -> String {
        format!("{}:{PORT}", address(0))
    }

    /// Starts the coordinator, and a worker on each host.
    pub fn launch(&self) -> (Launched<'_>, Vec<Guest>) {
        let listen = Self::coordinator();
        let workers = WORKERS.to_string();
        let arguments = ["--workers", &workers, "--local", "0", "--listen", &listen];
        let trust: &[&str] = if self.trusted { &["--credentials", SECRETS] } else { &["--insecure"] };
        let mut run = self.machine.launch_on(&self.hosts, 0, &[&arguments, trust].concat());
        run.wait_for("launched");
        let guests = (1..=WORKERS).map(|host| self.join(host)).collect();
        (run, guests)
    }

    /// Starts a worker on `host`. What it says goes to `worker-<host>.log`.
    pub fn join(&self, host: usize) -> Guest {
        let address = Self::coordinator();
        let trust: &[&str] = if self.trusted { &["--credentials", "secrets/worker"] } else { &[] };
        let mut command = self.hosts.on(host, &self.machine.worker(&[&["join", &*address], trust].concat()));
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
    pub fn ends_well(&self, mut run: Launched<'_>, guests: Vec<Guest>, codes: &[i32]) -> End {
        // with its story where it does not come; a fast run may have ended while the network was bad
        if !run.seen().iter().any(|event| event["event"] == "ended") {
            run.wait_for("ended");
        }
        let end = run.end();
        let story = || end.story();
        assert_eq!(end.code, 0, "{}", story());
        assert_eq!(end.reason(), "complete", "{}", story());
        for mut guest in guests {
            let code = until(PATIENCE, "the workers leave", || guest.process.try_wait().unwrap()).code();
            assert!(
                code.is_some_and(|code| codes.contains(&code)),
                "host {} left with {code:?}: {}",
                guest.host,
                story()
            );
        }
        self.machine.assert_nothing_runs(Duration::from_secs(1));
        let url = self.machine.run().display().to_string();
        assert_eq!(self.machine.state_hash(&url), self.hash, "{}", story());
        self.machine.verify(&url);
        // one history: every tick once and in order, every step taken
        let ticks: Vec<u64> = end.events("tick").filter_map(|event| event["tick"]["images"].as_u64()).collect();
        assert!(ticks.is_sorted_by(|one, next| one < next), "{ticks:?}: {}", story());
        let report = self.machine.ask(&["report", &url, "--json"]).json();
        assert_eq!(report["steps_missing"], 0, "{report}: {}", story());
        let seconds = report["seconds"].as_object().into_iter().flatten();
        let seconds = seconds.map(|(class, seconds)| format!("{class} {:.2} s", seconds.as_f64().unwrap_or_default()));
        println!("  {} generations, {}", report["generations"], seconds.collect::<Vec<_>>().join(", "));
        end
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in 1..=WORKERS {
                println!("host {host}:\n{}", self.said(host));
            }
        }
    }
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
