//! `worker join`: from an address to a trained model. Connects, prepares, and takes part in one generation after another.
//!
//! Whatever does not need the other ranks is done before a place is asked for, so that a newcomer costs those at work nothing
//! but the meeting. A generation that is lost leaves this worker with its state, ready for the next one.

use crate::address;
use crate::chaos::Ordeal;
use crate::checkpoint::{self, Checkpoints, FinishError, Identity};
use crate::communicator::Communicator;
use crate::evaluate::{Evaluator, Features};
use crate::failure::Failure;
use crate::gpus;
use crate::images::Images;
use crate::input::Input;
use crate::models;
use crate::node::LEASH;
use crate::outputs::Outputs;
use crate::ranks::Ranks;
use crate::rehearse::Rehearsal;
use crate::run::{self, Parts};
use crate::sync::{self, Carried};
use crate::trainer::{StepError, Trainer};
use crate::{alike, environment, limits, prepare};
use agent::{Activity, Agent, Assignment, JoinInfo, Next, Notice, Progress, Reach, Seat, Trouble};
use collective::{Collective, Listener, Membership, Mesh, Solo};
use common::checkpoint::{Dataset, ManifestKey, TrainerCursor};
use common::config::resolved::{Backend, Determinism, Model, Precision, RunConfig};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use common::ledger::Class;
use native::cuda::Cuda;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage::Store;
use tch::{Device, Kind};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use worker_core::{After, Ending, after};

/// Until the run's own patience is known.
const PATIENCE: Duration = Duration::from_secs(4);
/// GPUs of all ranks must be one group within this time.
const MEET: Duration = Duration::from_secs(60);
/// A peer's host is asked for a sign every second: nine questions without an answer are not a bad network's.
const SILENCE_MIN: Duration = Duration::from_secs(10);
/// A collective in which nothing moves for so long is given up. A lost rank is noticed at once, by its connections; a hung
/// one by its coordinator, sooner.
const COLLECTIVE: Duration = Duration::from_secs(600);

/// Longest look into the store for another coordinator.
const LOOKUP: Duration = Duration::from_secs(10);

/// Runs one worker to its end and returns its exit code. Other workers reach it where it listens, or where it is said that they do.
///
/// # Errors
/// [`Failure`]; where a session exists the coordinator was told.
pub fn join(
    reach: Reach,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    cuda: &Cuda,
) -> Result<Exit, Failure> {
    limits::prepare()?;
    let (listener, peer) = address::listener(&reach.address, listen, advertise)?;
    let device = device(cuda);
    let name = match device {
        Device::Cuda(i) => format!("cuda:{i}"),
        _ => "cpu".to_owned(),
    };
    let info = JoinInfo::of_this_process(env!("CARGO_PKG_VERSION"), &peer.to_string(), &name);
    let writer = info.worker_id.clone();
    let (agent, config) = Agent::connect(reach, info, PATIENCE)?;
    heed_notice(agent.notice())?;
    if std::env::var_os(LEASH).is_some() {
        heed_leash(agent.notice())?;
    }
    let ended = Worker::prepare(&agent, config, listener, writer, device).and_then(|worker| worker.serve(&agent));
    match ended {
        Ok((exit, message)) => {
            agent.leave(exit, &message);
            Ok(exit)
        }
        Err(failure) => {
            agent.leave(failure.exit(), &failure.to_string());
            Err(failure)
        }
    }
}

/// A worker that is prepared: what it keeps from one generation to the next.
struct Worker {
    config: RunConfig,
    listener: Listener,
    device: Device,
    runtime: Arc<Runtime>,
    run: storage::Run,
    images: Arc<Images>,
    evaluator: Evaluator,
    dataset: Dataset,
    input: Input,
    trainer: Trainer,
    /// What this worker suffers on purpose, from the beginning of its training on.
    ordeal: Ordeal,
    /// The trainer is as it was built.
    fresh: bool,
    checkpoints: Checkpoints,
    /// What belongs to the state that the trainer holds, if it holds one.
    carried: Option<Carried>,
    /// Up to when the time is accounted for, since this worker took part in a generation.
    left: Option<Instant>,
}

impl Worker {
    fn prepare(
        agent: &Agent,
        config: RunConfig,
        listener: Listener,
        writer: String,
        device: Device,
    ) -> Result<Self, Failure> {
        supported(&config, device)?;
        // others of this machine prepare at the same time, and idle threads of libtorch's spin
        tch::set_num_threads(1);
        native::allow_tf32(config.train.precision == Precision::Tf32).map_err(StepError::from)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = Arc::new(runtime.map_err(|error| Failure::Io { doing: "start a runtime".to_owned(), error })?);
        let ordeal = Ordeal::ordered();
        let store = {
            let _inside = runtime.enter();
            ordeal.of_store(Store::open(&config.checkpoint.url, &config.checkpoint.s3)?)
        };
        let run = store.run(&config.name)?;
        runtime.block_on(alike::same_store(&run, &config))?;
        agent.look_up(coordinator_of(&runtime, &run));
        agent.progress(Progress { activity: Activity::Data, ..Progress::default() });
        // beside each other: one takes a GPU, the other cores and disks
        let rehearsal = Rehearsal::begin(&config, agent.wanted(), device);
        let images = Arc::new(prepare::images(&config, &|_| ())?.images);
        rehearsal.map_or(Ok(()), Rehearsal::end)?;
        let features = Features::of(&config.metrics, device)?;
        let dataset = Dataset { fingerprint: images.fingerprint(), images: images.len() as u64 };
        let identity =
            Identity { generation: Generation(0), writer, dataset: dataset.clone(), environment: BTreeMap::new() };
        Ok(Self {
            input: Input::new(Arc::clone(&images)),
            evaluator: Evaluator::new(Arc::clone(&images), features),
            checkpoints: Checkpoints::new(Arc::clone(&runtime), run.clone(), identity, None),
            trainer: build(&config, device).with_ordeal(ordeal.clone()),
            ordeal,
            fresh: true,
            carried: None,
            left: None,
            config,
            listener,
            device,
            runtime,
            run,
            images,
            dataset,
        })
    }

    /// Takes part in generations until there is nothing more to do; the exit code and what to say.
    fn serve(mut self, agent: &Agent) -> Result<(Exit, String), Failure> {
        let mut trouble = Trouble::default();
        loop {
            self.doing(agent, Activity::Join);
            match agent.wait(self.carried.is_some(), &trouble)? {
                Next::Leave { reason } => return Ok((Exit::Ok, format!("not needed any more: {reason}"))),
                Next::Orphaned => return self.store_alone(agent),
                Next::Place(assignment) => {
                    let ended = self.take_part(agent, &assignment);
                    let dismissed = ended.is_err() && agent.commands().dismissed;
                    match (after(ended.as_ref().copied().map_err(Failure::exit), dismissed), ended) {
                        (After::Wait, Ok(_)) => trouble = Trouble::default(),
                        (After::Wait, Err(failure)) => {
                            let (generation, rank) = (assignment.generation, assignment.rank.0);
                            tracing::info!("{generation} is over for rank {rank}: {failure}");
                            trouble = failure.trouble();
                        }
                        (After::Leave(_), Err(failure)) => return Err(failure),
                        (After::Leave(_), Ok(Ending::Orphaned)) => return Ok(orphaned()),
                        (After::Leave(exit), Ok(Ending::Stopped)) => {
                            return Ok((exit, format!("stopped: {}", agent.stop_reason())));
                        }
                        (After::Leave(exit), Ok(_)) => return Ok((exit, "complete".to_owned())),
                    }
                }
            }
        }
    }

    /// Says what this worker is at, and how far the state is that it holds.
    fn doing(&self, agent: &Agent, activity: Activity) {
        let position = self.trainer.position();
        let (images, phase) = match self.fresh {
            true => Default::default(),
            false => (ImagesSeen(position.images), position.step),
        };
        let line = self.trainer.version().map(|version| version.line).unwrap_or_default();
        agent.progress(Progress { images, phase, activity, line, ..Progress::default() });
    }

    /// One generation, from the meeting of its ranks to its end. Whatever ends it, the trainer keeps its state.
    fn take_part(&mut self, agent: &Agent, assignment: &Assignment) -> Result<Ending, Failure> {
        let began = Instant::now();
        let rank = assignment.rank.0;
        let peers = address::all(&assignment.peers)?;
        let threads = environment::threads(&self.config, &peers, rank);
        tch::set_num_threads(threads as i32);
        let environment = environment::facts(threads, self.device);
        self.doing(agent, Activity::Form);
        let mut ranks = self.connect(agent, assignment, peers)?;
        ranks.set_deadline(COLLECTIVE);
        alike::agree(&mut ranks, &self.config, &self.dataset, self.evaluator.features(), &environment)?;
        self.doing(agent, Activity::Restore);
        self.account();
        let carried = match assignment.rollback {
            true => None,
            false => {
                let mine = self.carried.take();
                let agreed = sync::agree(&mut ranks, &mut self.trainer, mine.as_ref());
                // a rank that was not being filled still has what it had
                self.carried = mine.filter(|_| self.trainer.version().is_some());
                agreed?
            }
        };
        let mut carried = match carried {
            Some(carried) => carried,
            None => self.begin(assignment, &environment)?,
        };
        if let Some(left) = self.left.take() {
            carried.tally.lose(Class::Reforming, left.elapsed().as_secs_f64());
        }
        self.fresh = false;
        self.trainer.turn_to(Communicator::of(ranks).telling(agent.waiting()));
        self.checkpoints.turn_to(assignment.generation, carried.parent.clone());
        self.checkpoints.set_environment(environment);
        tracing::info!(
            "generation {}, rank {rank} of {}: {} images, {threads} threads, from {}, formed in {:.0} ms",
            assignment.generation,
            assignment.peers.len(),
            self.images.len(),
            ImagesSeen(self.trainer.position().images),
            began.elapsed().as_secs_f64() * 1e3,
        );
        let mut parts = Parts {
            agent,
            input: &mut self.input,
            checkpoints: &mut self.checkpoints,
            outputs: Outputs::new(Arc::clone(&self.runtime), self.run.clone(), rank == 0),
            images: Arc::clone(&self.images),
            evaluator: &mut self.evaluator,
        };
        let (ending, carried) = run::train(&mut self.trainer, &mut parts, Some(carried));
        (self.carried, self.left) = (Some(carried), Some(Instant::now()));
        ending
    }

    /// Time goes by between generations.
    fn account(&mut self) {
        let now = Instant::now();
        if let (Some(carried), Some(left)) = (&mut self.carried, self.left) {
            carried.tally.lose(Class::Reforming, (now - left).as_secs_f64());
        }
        // also for a newcomer: the meeting costs the others as much
        self.left = Some(now);
    }

    /// The state that nobody holds: from a checkpoint, or the beginning.
    fn begin(&mut self, assignment: &Assignment, environment: &BTreeMap<String, String>) -> Result<Carried, Failure> {
        let tally = self.carried.take().map(|carried| carried.tally).unwrap_or_default();
        self.trainer.set_line(None);
        let carried = match &assignment.resume {
            None => {
                if !self.fresh {
                    self.trainer = build(&self.config, self.device).with_ordeal(self.ordeal.clone());
                }
                Carried { cursor: TrainerCursor::default(), done: 0, parent: None, tally }
            }
            Some(key) => {
                self.fresh = false;
                let key: ManifestKey = key.parse().map_err(|e| Failure::Usage(format!("checkpoint {key}: {e}")))?;
                let manifest = self.runtime.block_on(checkpoint::restore(&self.run, key, &mut self.trainer))?;
                if assignment.rank.0 == 0 {
                    tell_differences(&manifest, &self.dataset, environment);
                }
                let (done, mut cursor) = (manifest.cursor.cycle_images, manifest.cursor.clone());
                // whoever goes on with a run that stood still wants to see more of it
                cursor.judgement.since = 0;
                Carried { cursor, done, parent: Some(manifest), tally }
            }
        };
        if assignment.redraw {
            self.trainer.set_draw(assignment.generation.0);
        }
        self.trainer.set_line(Some(assignment.generation));
        Ok(carried)
    }

    fn connect(&mut self, agent: &Agent, assignment: &Assignment, peers: Vec<SocketAddr>) -> Result<Ranks, Failure> {
        let generation = assignment.generation.0;
        let mut mesh: Box<dyn Collective> = if peers.len() == 1 {
            let solo = Solo::new(generation);
            let aborter = solo.aborter();
            agent.on_abort(move || aborter.abort());
            Box::new(solo)
        } else {
            limits::ranks(peers.len())?;
            // with "solo" too: one that was told to go hands the state over to its successor
            let membership = Membership { generation, rank: assignment.rank.0, peers, secret: assignment.secret };
            // a coordinator that hears nothing of a member loses it in less time than its peers do
            let patience = Duration::try_from_secs_f64(self.config.cluster.patience_s).unwrap_or(MEET);
            let silence = patience.max(SILENCE_MIN);
            let mesh = Mesh::new(membership)?.patient(silence);
            let (aborter, generation, rank) = (mesh.aborter(), assignment.generation, assignment.rank.0);
            agent.on_abort(move || {
                tracing::info!("{generation} is over for rank {rank}: the coordinator says so");
                aborter.abort();
            });
            Box::new(mesh.form(&mut self.listener, silence.saturating_add(patience))?)
        };
        mesh.set_deadline(MEET);
        gpus::meet(mesh, self.device, &environment::library_folders(), MEET)
    }

    /// Nobody is there to form another generation: what this worker holds is stored, as a world of its own. Others may do the same
    /// with the same state, which is as good.
    fn store_alone(mut self, agent: &Agent) -> Result<(Exit, String), Failure> {
        let Some(carried) = self.carried.take() else { return Ok(orphaned()) };
        self.doing(agent, Activity::Checkpoint);
        // that of the generation that was left: where a coordinator is, a later number is another one's
        let generation = self.checkpoints.generation();
        let key = ManifestKey::new(ImagesSeen(carried.cursor.images), generation);
        self.trainer.turn_to(Communicator::new(Box::new(Solo::new(generation.0))));
        self.checkpoints.turn_to(generation, carried.parent);
        match self.checkpoints.finish(&mut self.trainer, carried.cursor) {
            Err(FinishError::NotStored { .. }) if self.runtime.block_on(self.run.load(key)).is_ok() => {}
            finished => drop(finished?),
        }
        Ok(orphaned())
    }
}

/// Where the run's store says that its coordinator listens: another one may have taken the run over.
fn coordinator_of(runtime: &Arc<Runtime>, run: &storage::Run) -> impl Fn() -> Option<Seat> + Send + Sync + use<> {
    let (runtime, run) = (Arc::clone(runtime), run.clone());
    move || {
        let lease = runtime.block_on(async { tokio::time::timeout(LOOKUP, run.lease()).await });
        match lease {
            Ok(Ok(Some(lease))) => Some(Seat { epoch: lease.epoch, address: lease.address }),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => {
                tracing::debug!("the store does not say where the coordinator is: {error}");
                None
            }
            Err(_) => None,
        }
    }
}

/// SIGTERM is what clusters send before they take a machine away: the others are told, and go on without this worker.
fn heed_notice(notice: Notice) -> Result<(), Failure> {
    let failed = |error| Failure::Io { doing: "listen for SIGTERM".to_owned(), error };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let mut signals = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate()).map_err(failed)?
    };
    let listen = move || {
        runtime.block_on(async {
            while signals.recv().await.is_some() {
                if !notice.give() {
                    tracing::info!("told to go before this worker was prepared");
                    std::process::exit(Exit::Interrupted as i32);
                }
                tracing::info!("told to go: leaving as soon as the others can do without this worker");
            }
        });
    };
    std::thread::Builder::new().name("notice".into()).spawn(listen).map_err(failed)?;
    Ok(())
}

/// The end of standard input is the end of the node that started this worker: it leaves as if it had been told to.
fn heed_leash(notice: Notice) -> Result<(), Failure> {
    let failed = |error| Failure::Io { doing: "watch standard input".to_owned(), error };
    let watch = move || {
        // nobody writes there
        let _end = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::info!("the node that started this worker is gone: leaving as soon as the others can do without it");
        if !notice.give() {
            std::process::exit(Exit::Interrupted as i32);
        }
    };
    std::thread::Builder::new().name("leash".into()).spawn(watch).map_err(failed)?;
    Ok(())
}

fn orphaned() -> (Exit, String) {
    (Exit::Orphaned, "the coordinator vanished; the state is stored".to_owned())
}

fn build(config: &RunConfig, device: Device) -> Trainer {
    let model = models::build(config, Kind::Float, device);
    Trainer::new(config.clone(), model, Communicator::new(Box::new(Solo::new(0))), device)
}

/// What this build and machine cannot do is said before anybody waits.
fn supported(config: &RunConfig, device: Device) -> Result<(), Failure> {
    let no = |what: &str| Err(Failure::Unsupported(what.to_owned()));
    match (config.train.precision, device) {
        // their layers are ours, and know single precision only
        (Precision::Bf16, _) if !matches!(config.model, Model::CycleGan(_) | Model::Pix2Pix(_)) => {
            let family = config.model.family();
            return no(&format!(
                "train.precision = \"bf16\" is not built yet for \"{family}\"; use \"fp32\" or \"tf32\""
            ));
        }
        (Precision::Tf32, Device::Cpu) => return no("train.precision = \"tf32\" needs a GPU; use \"fp32\""),
        _ => {}
    }
    const FOR_CPUS: &str = "to train on CPUs here, set CUDA_VISIBLE_DEVICES= (empty)";
    match (config.cluster.backend, config.train.determinism, device) {
        (Backend::Nccl, _, Device::Cpu) => {
            no("cluster.backend = \"nccl\" needs a GPU on every worker; use \"auto\" or \"tcp\"")
        }
        (Backend::Tcp, _, Device::Cuda(_)) => no(&format!(
            "cluster.backend = \"tcp\" sums in host memory, and this worker has a GPU: use \"auto\" or \"nccl\"; {FOR_CPUS}"
        )),
        (_, Determinism::Bitwise, Device::Cuda(_)) => no(&format!(
            "train.determinism = \"bitwise\" needs CPU workers, for GPUs add in an order of their own: use \"fast\"; {FOR_CPUS}"
        )),
        _ => Ok(()),
    }
}

/// The device of this process: its first visible GPU, else the CPU.
pub fn device(cuda: &Cuda) -> Device {
    match cuda {
        Cuda::Loaded(_) if tch::Cuda::is_available() => Device::Cuda(0),
        Cuda::Loaded(path) => {
            tracing::warn!("{} is loaded but finds no usable GPU; training on the CPU", path.display());
            Device::Cpu
        }
        Cuda::NoDriver => Device::Cpu,
        Cuda::NoLibrary => {
            tracing::warn!(
                "this machine has an NVIDIA driver, but libtorch's CUDA half is missing: scripts/setup --cuda"
            );
            Device::Cpu
        }
        Cuda::Failed(why) => {
            tracing::warn!("libtorch's CUDA half would not load ({why}); training on the CPU");
            Device::Cpu
        }
    }
}

fn tell_differences(
    manifest: &common::checkpoint::Manifest,
    dataset: &Dataset,
    environment: &std::collections::BTreeMap<String, String>,
) {
    if manifest.dataset.is_known() && manifest.dataset.fingerprint != dataset.fingerprint {
        tracing::warn!(
            "the training images differ from those of the checkpoint ({} images then, {} now): what follows is another run",
            manifest.dataset.images,
            dataset.images
        );
    }
    if manifest.config.train.determinism == Determinism::Bitwise {
        for (fact, then) in &manifest.environment {
            let now = environment.get(fact).map_or("unknown", String::as_str);
            if now != then {
                tracing::warn!("{fact} was {then} and is {now}: the bits may differ from an undisturbed run");
            }
        }
    }
}
