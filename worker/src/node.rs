//! `worker node`: all workers of one machine. Starts one for each GPU, starts them anew when they fail, hands on what they write and what
//! it is told by signals.
//!
//! It decides nothing about training and needs no coordinator to live: its workers wait for one, and while none can be reached they
//! are started again for as long as patience lasts; once the run has ended for one of them, none is waited for any more. They hang on it
//! by their standard input: where it dies they leave in good order.

use crate::failure::Failure;
use children::gpus;
use children::supervisor::{ChildEvent, Recipe, Supervisor};
use common::exit::{Exit, ExitStatus};
use common::ids::WorkerId;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use worker_core::restarts::{Next, Restarts, of_all};

/// Set for workers that are to leave when their standard input ends.
pub const LEASH: &str = "GANFLEET_LEASH";
/// Longest time for what is left of workers that were killed.
const REAP: Duration = Duration::from_secs(5);

/// What a node is told.
#[derive(Clone, Debug)]
pub struct Node {
    /// The coordinator's address, HOST:PORT.
    pub address: String,
    /// Folder of the workers' credentials.
    pub credentials: Option<PathBuf>,
    /// Where the workers of other machines reach these.
    pub listen: Option<IpAddr>,
    /// How many; one for each GPU where nothing is said, else one.
    pub workers: Option<u32>,
    /// Without a worker that holds, a place is given up after this time.
    pub patience: Duration,
    /// After the signal to leave, workers are killed when this time is over.
    pub grace: Duration,
}

/// Runs a node to its end; the exit code is what somebody must see to, of all that its workers ended with; where it was told to leave, that
/// trying again makes sense.
///
/// # Errors
/// It could not begin.
pub fn node(node: &Node) -> Result<Exit, Failure> {
    let io = |doing: &'static str| move |error| Failure::Io { doing: doing.to_owned(), error };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("start a runtime"))?;
    let exit = runtime.block_on(async {
        let mut told = signals().map_err(io("listen for signals"))?;
        let folder = tempfile::tempdir().map_err(io("make a folder for what workers write"))?;
        let (supervisor, events) = Supervisor::new(folder.path());
        let recipe = recipe(node).map_err(io("find this program"))?;
        Ok(Places::new(node, recipe, supervisor).run(events, &mut told).await)
    });
    // a line that nobody waits for any more
    runtime.shutdown_background();
    exit
}

/// How its workers are started.
fn recipe(node: &Node) -> std::io::Result<Recipe> {
    let mut arguments = vec!["join".to_owned(), node.address.clone()];
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value]);
        }
    };
    option("--credentials", node.credentials.as_ref().map(|folder| folder.to_string_lossy().into_owned()));
    option("--listen", node.listen.map(|ip| ip.to_string()));
    Ok(Recipe {
        worker: WorkerId(format!("{}-{}-", agent::host(), std::process::id())),
        gpus: gpus::visible(),
        program: std::env::current_exe()?,
        arguments,
        environment: vec![(LEASH.to_owned(), "1".to_owned())],
        leash: true,
    })
}

/// One place of the node.
struct Place {
    restarts: Restarts,
    /// Since when its worker lives.
    started: Duration,
}

struct Places<'a> {
    node: &'a Node,
    recipe: Recipe,
    supervisor: Supervisor,
    began: Instant,
    spawned: u32,
    places: BTreeMap<u32, Place>,
    alive: BTreeMap<WorkerId, u32>,
    /// When which place gets another worker.
    due: BTreeMap<u32, Instant>,
    /// What places that stay empty ended with.
    ends: Vec<Exit>,
    /// It was told to end: nobody is started any more, and whoever lives then is killed.
    leaving: Option<Instant>,
}

impl<'a> Places<'a> {
    fn new(node: &'a Node, recipe: Recipe, supervisor: Supervisor) -> Self {
        let count = node.workers.unwrap_or_else(|| u32::try_from(recipe.gpus.len()).unwrap_or(u32::MAX).max(1));
        let place = || Place { restarts: Restarts::new(node.patience), started: Duration::ZERO };
        let now = Instant::now();
        Self {
            node,
            recipe,
            supervisor,
            began: now,
            spawned: 0,
            places: (0..count).map(|slot| (slot, place())).collect(),
            alive: BTreeMap::new(),
            due: (0..count).map(|slot| (slot, now)).collect(),
            ends: Vec::new(),
            leaving: None,
        }
    }

    async fn run(mut self, mut events: mpsc::Receiver<ChildEvent>, told: &mut mpsc::Receiver<()>) -> Exit {
        loop {
            self.start_who_is_due();
            if self.alive.is_empty() && self.due.is_empty() {
                return match (self.leaving, of_all(&self.ends)) {
                    // the run is not over: whoever told it may start it again
                    (Some(_), Exit::Ok | Exit::Interrupted | Exit::WorkerLost) => Exit::Again,
                    (_, exit) => exit,
                };
            }
            // with nothing due some worker lives, and its end is an event
            let far = Instant::now() + Duration::from_secs(3600);
            let next = self.due.values().chain(&self.leaving).min().copied().unwrap_or(far);
            tokio::select! {
                Some(event) = events.recv() => self.child(event),
                Some(()) = told.recv() => match self.leaving {
                    None => self.leave(),
                    Some(_) => return self.end(&mut events).await,
                },
                () = sleep_until(next.into()) => {
                    if self.leaving.is_some_and(|end| Instant::now() >= end) {
                        tracing::warn!("workers have not left within {} s and are killed", self.node.grace.as_secs());
                        return self.end(&mut events).await;
                    }
                }
            }
        }
    }

    fn start_who_is_due(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self.due.iter().filter(|(_, when)| **when <= now).map(|(slot, _)| *slot).collect();
        for slot in due {
            self.due.remove(&slot);
            self.spawned += 1;
            let recipe = self.recipe.for_place(slot, self.spawned);
            if let Some(place) = self.places.get_mut(&slot) {
                place.started = self.began.elapsed();
            }
            match self.supervisor.spawn(&recipe) {
                Ok(pid) => {
                    tracing::info!("place {slot}: worker {} is process {pid}", recipe.worker);
                    self.alive.insert(recipe.worker, slot);
                }
                Err(error) => {
                    tracing::error!("place {slot}: {} cannot be started: {error}", recipe.program.display());
                    self.empty(slot, ExitStatus::Code(Exit::Internal as i32));
                }
            }
        }
    }

    fn child(&mut self, event: ChildEvent) {
        match event {
            ChildEvent::Line { worker, line, end, .. } => {
                let slot = self.alive.get(&worker).copied().unwrap_or_default();
                // whoever read it may have gone
                let _ = writeln!(std::io::stdout(), "[{slot}] {line}");
                self.supervisor.kept(&worker, end);
            }
            ChildEvent::Exited { worker, status, .. } => {
                self.supervisor.forget(&worker);
                if let Some(slot) = self.alive.remove(&worker) {
                    self.empty(slot, status);
                }
            }
        }
    }

    /// The worker of a place is gone.
    fn empty(&mut self, slot: u32, status: ExitStatus) {
        let now = self.began.elapsed();
        let Some(place) = self.places.get_mut(&slot) else { return };
        let next = place.restarts.ended(status, place.started, now);
        match next {
            // the run has ended for others of this machine, and this one finds no coordinator
            Next::Again(_) if self.ends.contains(&Exit::Ok) && is_alone(status) => self.ends.push(Exit::Ok),
            Next::Again(pause) if self.leaving.is_none() => {
                tracing::warn!(
                    "place {slot}: its worker ended with {status}; another one starts in {} s",
                    pause.as_secs()
                );
                self.due.insert(slot, Instant::now() + pause);
            }
            // it was told to leave, and this is how it left
            Next::Again(_) => self.ends.push(Exit::WorkerLost),
            Next::Over(exit) => {
                tracing::info!("place {slot}: its worker ended with {status}; the place stays empty");
                self.ends.push(exit);
            }
        }
    }

    /// Tells the workers to leave.
    fn leave(&mut self) {
        tracing::info!("told to leave: {} workers have {} s", self.alive.len(), self.node.grace.as_secs());
        self.leaving = Some(Instant::now() + self.node.grace);
        self.due.clear();
        for worker in self.alive.keys() {
            self.supervisor.signal(worker, Signal::SIGTERM);
        }
    }

    /// Ends whatever lives, at once.
    async fn end(mut self, events: &mut mpsc::Receiver<ChildEvent>) -> Exit {
        for worker in self.alive.keys() {
            self.supervisor.signal(worker, Signal::SIGKILL);
        }
        let reap = async {
            while !self.alive.is_empty()
                && let Some(event) = events.recv().await
            {
                self.child(event);
            }
        };
        if timeout(REAP, reap).await.is_err() {
            tracing::error!("workers that were killed are still there: the system holds them, perhaps in a driver");
        }
        Exit::Interrupted
    }
}

/// Whether a worker ended because there is no coordinator.
fn is_alone(status: ExitStatus) -> bool {
    [Exit::Network, Exit::Orphaned].iter().any(|exit| status == ExitStatus::Code(*exit as i32))
}

/// Signals that tell it to leave, from now on.
fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(8);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            // schedulers repeat theirs; whoever presses Ctrl-C again means it
            while signals.recv().await.is_some() && sender.send(()).await.is_ok() && kind == SignalKind::interrupt() {}
            while signals.recv().await.is_some() {}
        });
    }
    Ok(receiver)
}
