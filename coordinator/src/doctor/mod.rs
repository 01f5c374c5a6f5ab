//! `coordinator doctor`: what would hinder a run on this machine, found before one begins, each with what to do about it.
//!
//! What is there is looked at here; what it means is judged in `judge.rs`, by functions that know no machine. Nothing is changed, but for
//! an object in the store and a file in each folder that are written and deleted again. With `--hosts` the machines that a run is to have
//! come, and what lies between them is looked at, too (`hosts.rs`). Refuses to mend anything.

mod hosts;
mod judge;
mod links;

use crate::admission::Token;
use crate::credentials;
use crate::display::{aside, line};
use crate::door::Door;
use crate::entrance::Entrance;
use crate::failure::Failure;
use crate::origin::{self, Overrides};
use crate::{invite, machine, server, state};
use clap::Args;
use common::config::resolved::RunConfig;
use common::exit::Exit;
use hosts::Terms;
use judge::{Disk, Worker};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};
use storage::{Patience, Store};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;
use trust::{Credentials, IDENTITY, Party, TrustError};

/// For a worker to say what it finds: it loads libtorch.
const WORKER: Duration = Duration::from_secs(60);
/// For the store to answer everything.
const STORE: Duration = Duration::from_secs(60);
/// For one of its answers: who waits for a finding wants it soon.
const BRIEF: Patience = Patience {
    budget: Duration::from_secs(10),
    attempt: Duration::from_secs(5),
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(2),
};

/// What to look at.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Experiment file (TOML): what it needs is looked at, too
    experiment: Option<PathBuf>,
    /// Override a value, as in --set checkpoint.url=s3://bucket/runs; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "experiment")]
    set: Vec<String>,
    /// Workers on this machine [default: as `launch`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    workers: Option<u32>,
    /// Where `launch` would have workers come, and where hosts come now.
    #[command(flatten)]
    entrance: Entrance,
    /// Wait for so many hosts, each with `worker doctor ADDRESS`, and look at what lies between them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    hosts: Option<u32>,
    /// They are waited for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600), requires = "hosts")]
    patience: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Good,
    /// A run will begin, and may be slower or shorter than it could be.
    Note,
    /// A run will not begin, or not end well.
    Bad,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, health: Health::Good, found: found.into(), remedy: None }
    }

    fn note(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, health: Health::Note, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, health: Health::Bad, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// What was found on the machine of this name, if it is not as it should be.
    fn of(mut self, name: &str) -> Option<Self> {
        self.found = format!("{name}: {}", self.found);
        (self.health != Health::Good).then_some(self)
    }

    fn text(&self) -> String {
        let mark = match self.health {
            Health::Good => "ok  ",
            Health::Note => "note",
            Health::Bad => "BAD ",
        };
        let remedy = self.remedy.as_ref().map(|remedy| format!("\n                      -> {remedy}"));
        // what another host says may hold anything
        let found = self.found.replace(char::is_control, " ");
        format!("{mark}  {:<14}  {found}{}", self.what, remedy.unwrap_or_default())
    }
}

/// Looks at this machine, and says what it finds.
///
/// # Errors
/// It cannot be said; what is found is no error, but the exit code of a wrong configuration where something is bad.
pub async fn doctor(args: &DoctorArgs) -> Result<Exit, Failure> {
    // whatever cannot be asked for is said before anything is looked at
    let round = args.hosts.map(|expected| Round::new(args, expected)).transpose()?;
    let findings = match round {
        None => look(args).await,
        Some(round) => round.look(args).await?,
    };
    if args.json {
        let text = serde_json::to_string_pretty(&findings);
        line(&text.map_err(|error| Failure::new(Exit::Internal, format!("the findings: {error}")))?);
    } else {
        findings.iter().for_each(|finding| line(&finding.text()));
    }
    let bad = findings.iter().filter(|finding| finding.health == Health::Bad).count();
    match bad {
        0 => Ok(Exit::Ok),
        _ => Err(Failure::new(Exit::Config, format!("{bad} of {} would hinder a run", findings.len()))),
    }
}

/// Hosts that are to come.
struct Round {
    expected: u32,
    token: Token,
    credentials: Option<Credentials>,
    listener: TcpListener,
    invitation: String,
}

impl Round {
    fn new(args: &DoctorArgs, expected: u32) -> Result<Self, Failure> {
        let entrance = &args.entrance;
        let credentials = entrance.proof(false)?;
        let token = match (invite::token()?, &credentials) {
            (Some(token), _) => token,
            (None, Some(credentials)) => Token::from_text(credentials.token()),
            (None, None) => {
                let message = "hosts need something to show: give them and this program the same token in GANFLEET_TOKEN (`openssl rand \
                               -hex 32` makes one), or credentials";
                return Err(Failure::new(Exit::Usage, message));
            }
        };
        if entrance.listen.ip().is_loopback() && entrance.advertise.is_none() && expected > 1 {
            let message = format!(
                "--listen {} is reached from this machine alone: name an address of it that the {expected} hosts reach",
                entrance.listen
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        if entrance.listen.ip().is_unspecified() && entrance.advertise.is_none() {
            let message = format!(
                "--listen {} is every address of this machine, and hosts must be told one: name it with --advertise HOST",
                entrance.listen
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        let listener = server::listen(entrance.listen).map_err(|error| entrance.deaf(&error))?;
        let address = listener.local_addr().map_err(|error| entrance.deaf(&error))?;
        let with = if credentials.is_some() { " --credentials FOLDER" } else { "" };
        let invitation = format!("`worker doctor {}{with}`", entrance.public(address));
        Ok(Self { expected, token, credentials, listener, invitation })
    }

    async fn look(self, args: &DoctorArgs) -> Result<Vec<Finding>, Failure> {
        let door = self.credentials.as_ref().map(Door::open).transpose()?;
        let config = experiment(args).and_then(Result::ok);
        let patience = Duration::from_secs(args.patience);
        let (expected, seconds) = (self.expected, args.patience);
        aside(&format!("waiting {seconds} s for {expected} hosts: run {} on each", self.invitation));
        let terms = Terms {
            expected: self.expected,
            patience,
            invitation: &self.invitation,
            gradients: config.map(|config| config.model.parameters() * config.train.reduce_precision.bytes() as u64),
        };
        // hosts come while this one is looked at; they are measured when it has no more to do
        hosts::examine((self.listener, door), self.token, &terms, look(args)).await
    }
}

/// The experiment that is asked about.
fn experiment(args: &DoctorArgs) -> Option<Result<RunConfig, Failure>> {
    args.experiment.as_ref().map(|file| {
        let overrides = Overrides { set: args.set.clone(), workers: args.workers };
        origin::resolved(file.clone(), &overrides)
    })
}

async fn look(args: &DoctorArgs) -> Vec<Finding> {
    let mut found = Vec::new();
    let config = match experiment(args) {
        Some(Ok(config)) => {
            let length = config.train.length();
            found.push(Finding::good("experiment", format!("{}: {}, {length}", config.name, config.model.family())));
            Some(config)
        }
        Some(Err(failure)) => {
            found.push(Finding::bad("experiment", failure.message, "mend the file: coordinator config check FILE"));
            None
        }
        None => None,
    };
    let config = config.as_ref();
    let gpus = children::gpus::visible();
    let configured = config.map_or(0, |config| config.cluster.workers);
    let workers = machine::workers(args.workers, configured, gpus.len() as u32, machine::cores());

    let worker = worker().await;
    found.extend(judge::worker(&worker, gpus.len()));
    found.extend(children::gpus::described(Path::new("/")).iter().map(judge::gpu));
    found.push(judge::cores(workers, gpus.len(), machine::cores()));
    found.push(judge::open_files(getrlimit(Resource::Nofile).maximum, workers));
    found.push(judge::processes(&proc_limits(), workers, machine::cores()));
    if let Some(available) = available_memory() {
        let needed = |config| common::config::plan(config, workers).memory().total();
        found.push(judge::memory(available, workers, config.filter(|_| gpus.is_empty()).map(needed)));
    }
    if !gpus.is_empty() {
        found.push(judge::shared_memory(free(Path::new("/dev/shm"))));
    }
    if let Ok(Worker { cache: Some(cache), .. }) = &worker {
        found.push(judge::folder("cache", cache, &disk(cache), "GANFLEET_CACHE"));
    }
    found.push(match state::home() {
        Ok(home) => judge::folder("state", &home, &disk(&home), "XDG_STATE_HOME"),
        Err(failure) => Finding::bad("state", failure.message, "set HOME or XDG_STATE_HOME"),
    });
    if args.hosts.is_none() {
        let entrance = &args.entrance;
        found.push(listening(entrance.listen, entrance.credentials.is_some() || entrance.insecure));
    }
    if let Some(folder) = &args.entrance.credentials {
        found.extend(Party::ALL.map(|party| trusted(folder, party)));
    }
    if let Some(config) = config {
        found.push(images(config));
        found.extend(store(config).await);
    }
    found
}

/// What a worker says of itself and of its libraries; else why it says nothing.
async fn worker() -> Result<Worker, String> {
    let program = machine::worker_binary().map_err(|failure| failure.message)?;
    let mut command = Command::new(&program);
    command.arg("doctor").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = match timeout(WORKER, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{}: {error}", program.display())),
        Err(_) => return Err(format!("{} says nothing within {} s", program.display(), WORKER.as_secs())),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned();
    match serde_json::from_slice(&output.stdout) {
        Ok(worker) if output.status.success() => Ok(worker),
        _ => Err(format!("{} ({}): {last}", program.display(), output.status)),
    }
}

/// The rows of `/proc/self/limits` that are about processes: the user's own, and the container's.
fn proc_limits() -> judge::Processes {
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    judge::Processes {
        user: getrlimit(Resource::Nproc).current,
        group: number(&format!("/sys/fs/cgroup{group}/pids.max")),
        taken: number(&format!("/sys/fs/cgroup{group}/pids.current")).unwrap_or(0),
    }
}

/// Bytes that may still be used, by the system's word and by the container's.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = kib.split_whitespace().next()?.parse::<u64>().ok()? * 1024;
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // what was read from disks is let go when it is needed
    let statistics = std::fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    let taken = number("memory.current").unwrap_or(0).saturating_sub(cached.unwrap_or(0));
    let container = number("memory.max").map(|max| max.saturating_sub(taken));
    Some(container.map_or(system, |container| container.min(system)))
}

/// Bytes that are free where `path` is or would be.
fn free(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let disk = rustix::fs::statvfs(existing).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether files can be made in a folder that is there or would be made, and the room for them.
fn disk(folder: &Path) -> Disk {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let attempt = existing.join(format!(".ganfleet-doctor-{}", std::process::id()));
    // never through somebody's link
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&attempt);
    let written = made.and_then(|mut file| {
        let written = file.write_all(b"may this be written?");
        std::fs::remove_file(&attempt).and(written)
    });
    Disk { free: free(folder), refusal: written.err().map(|error| error.to_string()) }
}

/// Whether `launch` could listen there.
fn listening(address: SocketAddr, trusted: bool) -> Finding {
    let remedy = "give --listen an address of this machine (`ip address` lists them) and a port that is free";
    match server::listen(address) {
        Err(error) => Finding::bad("address", format!("cannot listen on {address}: {error}"), remedy),
        Ok(_) if address.ip().is_loopback() || trusted => Finding::good("address", format!("can listen on {address}")),
        Ok(_) => Finding::note(
            "address",
            format!(
                "{address} is reached by others, and without credentials `launch` listens there only with --insecure"
            ),
            "coordinator credentials make FOLDER, and --credentials FOLDER",
        ),
    }
}

/// Whether a party's credentials can be used, and for how long.
fn trusted(folder: &Path, party: Party) -> Finding {
    let now = SystemTime::now();
    match Credentials::read(folder, party, now).and_then(|found| trust::validity_of(&found.folder().join(IDENTITY))) {
        Ok(validity) => judge::validity(party, validity.until.duration_since(now).unwrap_or_default()),
        Err(error) => {
            let remedy = match error {
                TrustError::Missing { .. } => "coordinator credentials make FOLDER",
                TrustError::Exposed { .. } => "chmod 600, and renew it if others may have read it",
                TrustError::Party { .. } => "give the folder around `coordinator` and `worker`",
                TrustError::NotYet { .. } => "set this machine's clock",
                TrustError::Expired { .. } | TrustError::Malformed { .. } => credentials::RENEW,
            };
            Finding::bad("credentials", error.to_string(), remedy)
        }
    }
}

/// Whether the training images are where the experiment says.
fn images(config: &RunConfig) -> Finding {
    let source = &config.data.source;
    if source.contains("://") {
        return Finding::good("images", format!("{source}: looked at when they are fetched"));
    }
    let remedy = "put them there, or name another place in data.source";
    match std::fs::read_dir(source) {
        Ok(mut entries) => match entries.next() {
            None => Finding::bad("images", format!("{source} is empty"), remedy),
            Some(_) => Finding::good("images", source.clone()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => match std::fs::File::open(source) {
            Ok(_) => Finding::good("images", source.clone()),
            Err(error) => Finding::bad("images", format!("{source}: {error}"), remedy),
        },
        Err(error) => Finding::bad("images", format!("{source}: {error}"), remedy),
    }
}

/// What the store lets a run do.
async fn store(config: &RunConfig) -> Vec<Finding> {
    let url = &config.checkpoint.url;
    let tried =
        async { Store::open(url, &config.checkpoint.s3)?.with_patience(BRIEF).run(&config.name)?.probe().await };
    let began = SystemTime::now();
    let mut found = match timeout(STORE, tried).await {
        Ok(Ok(findings)) => judge::store(url, &findings, began, SystemTime::now()),
        Ok(Err(error)) => {
            vec![Finding::bad("store", format!("{url}: {error}"), "see docs/operations.md, `Checkpoints`")]
        }
        Err(_) => {
            let message = format!("{url} does not answer within {} s", STORE.as_secs());
            vec![Finding::bad(
                "store",
                message,
                "is it the right checkpoint.url and endpoint, and may this machine reach it?",
            )]
        }
    };
    if let Some(folder) = url.strip_prefix("file://") {
        found.push(judge::folder("checkpoints", Path::new(folder), &disk(Path::new(folder)), "checkpoint.url"));
    }
    found
}
