//! `launch`, `resume` and `attach`: from a command line to the end of a run.
//!
//! Workers that are still at work without a coordinator are taken over. Else everything that can be known to fail is found
//! out first: configuration, store, data, address. Only then do workers start.

use crate::admission::{Token, hex, random_bytes};
use crate::chaos::{self, Chaos};
use crate::display::{Display, Style};
use crate::door::Door;
use crate::driver::{Drive, Driver, Keep, Plan, tell};
use crate::entrance::Entrance;
use crate::failure::Failure;
use crate::follow::take_over;
use crate::invite::{inherited, invitation, places, recipe, token, written};
use crate::journal::{Header, Journal};
use crate::origin::{self, Origin, Overrides, Resume};
use crate::prepare::{Prepared, prepare};
use crate::records::Records;
use crate::render::News;
use crate::server::{self, Beats};
use crate::state::{self, Held};
use crate::takeover::{self, Found};
use crate::tenure::{self, Proof, Tenure};
use crate::view::Facts;
use crate::{machine, signals};
use children::outputs;
use children::supervisor::{Recipe, Supervisor};
use common::config::resolved::{Backend, RunConfig};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use coordinator_core::{Entry, Memory, OnLoss, Outcome, Policy, Reason};
use std::path::{Path, PathBuf};
use std::time::Duration;
use storage::{Content, Lease, Patience, Run};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use trust::Credentials;

/// Version that a worker must have.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
/// From the start until every worker must have joined.
const STARTUP: Duration = Duration::from_secs(120);
/// The same where people or schedulers bring some of them.
const STARTUP_ELSEWHERE: Duration = Duration::from_secs(600);
/// Most workers where the experiment does not say: each pair of ranks holds two connections.
const WORKERS_MAX: u32 = 256;
/// Longest time between two signs of life of the coordinator.
pub(crate) const BEAT_MAX: Duration = Duration::from_secs(1);
/// After a kill, time for the last copy of log and metrics.
const HURRY: Duration = Duration::from_secs(1);
/// Longest patience that is taken at its word; more would overflow a clock.
const PATIENCE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// For one request about who holds the run: a pulse that comes late is as good as none.
const CONTROL: Patience = Patience {
    budget: Duration::from_secs(20),
    attempt: Duration::from_secs(10),
    first_pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(5),
};

/// What to begin with.
#[derive(Clone, Debug)]
pub enum Begin {
    /// An experiment file.
    Experiment {
        /// The file.
        file: PathBuf,
        /// What to do if the run exists.
        resume: Option<Resume>,
    },
    /// A run or a checkpoint.
    Checkpoint {
        /// Its URL.
        url: String,
    },
    /// A run at work whose coordinator is dead.
    Attach {
        /// Its name, if its last coordinator was on this machine; else its URL.
        run: String,
    },
}

/// How to run it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Changes to the configuration.
    pub overrides: Overrides,
    /// How many of the workers to start on this machine; `None` is all.
    pub local: Option<u32>,
    /// Where workers and operators come.
    pub entrance: Entrance,
    /// File that tells where it is reached.
    pub address_file: Option<PathBuf>,
    /// Time for the last checkpoint after a stop.
    pub stop_deadline: Duration,
    /// Plan of faults on purpose.
    pub chaos: Option<PathBuf>,
    /// How to show it.
    pub style: Style,
}

/// Runs a training to its end and returns the exit code.
///
/// # Errors
/// It did not begin.
pub async fn launch(begin: Begin, options: &Options) -> Result<Exit, Failure> {
    let mut display = Display::new(options.style);
    let ended = begin_at(begin, options, &mut display).await;
    if let Err(Failure { exit, message }) = &ended {
        display.show(&News::Failed { exit: *exit, text: message.clone() });
    }
    ended
}

async fn begin_at(begin: Begin, options: &Options, display: &mut Display) -> Result<Exit, Failure> {
    let attaches = matches!(begin, Begin::Attach { .. });
    // who attaches starts no workers unless it is said
    let starts = options.local.map_or(!attaches, |local| local > 0);
    let credentials = options.entrance.proof(starts)?;
    let mut interrupts = signals::catch().map_err(|error| Failure::new(Exit::Internal, error))?;
    let chaos = options.chaos.as_deref().map(chaos::read).transpose()?.unwrap_or_default();
    let (worker, token) = (machine::worker_binary()?, token()?);
    let of_credentials = || credentials.as_ref().map(|credentials| Token::from_text(credentials.token()));
    let token = token.or_else(of_credentials);
    let target = match &begin {
        Begin::Experiment { file, resume } => {
            origin::target_of_experiment(file.clone(), &options.overrides, resume.as_ref())?
        }
        Begin::Checkpoint { url } => origin::target_of_url(url, &options.overrides)?,
        Begin::Attach { run } => origin::target_of_run(run, &state::home()?, &options.overrides)?,
    };
    let refusal = if attaches { Exit::Network } else { Exit::Config };
    let mut held = Held::take(&state::home()?, target.run.name())
        .map_err(|failure| if attaches { Failure { exit: refusal, ..failure } } else { failure })?;
    let run = control(&target.run)?;
    let proof = Proof { token: token.as_ref(), credentials: credentials.as_ref() };
    let found = tokio::select! {
        found = takeover::find(&held, &run, proof, refusal, display) => found?,
        Some(()) = interrupts.recv() => return Ok(withdrawn(display, None)),
    };
    let credentials = match (credentials, &found.predecessor) {
        // of another machine's coordinator nothing is known here
        (given, Some(predecessor)) if predecessor.local.is_some() => inherited(given, &held)?,
        (given, _) => given,
    };
    let credentials = credentials.as_ref();
    let mut stage =
        Stage { worker: &worker, options, credentials, chaos: &chaos, display, interrupts: &mut interrupts };
    match (&found.predecessor, attaches, target.goes_on) {
        (Some(predecessor), _, true) => take_over(predecessor, &found, &target, &mut held, &mut stage, attaches).await,
        (Some(_), _, false) => {
            let name = target.run.name();
            let message = format!(
                "workers of the run {} are still at work, without a coordinator. Take them over: coordinator attach {name}; \
                 then end the run, if that is what you want: coordinator stop {name}",
                target.run.url()
            );
            Err(Failure::new(Exit::Config, message))
        }
        (None, true, _) => {
            let message = match token {
                None if found.generation > Generation(0) => {
                    " Workers elsewhere: give their token in GANFLEET_TOKEN, or --credentials."
                }
                _ => "",
            };
            let (url, name) = (target.run.url(), target.run.name());
            let message = format!(
                "nobody is at work on the run {name}.{message} To go on from its newest checkpoint: coordinator resume {url}"
            );
            Err(Failure::new(Exit::Network, message))
        }
        (None, false, _) => {
            let token = match token {
                Some(token) => token,
                None => Token::fresh().map_err(no_randomness)?,
            };
            begin_anew(begin, &found, token, &mut held, &mut stage).await
        }
    }
}

/// What every beginning needs.
pub(crate) struct Stage<'a> {
    pub worker: &'a Path,
    pub options: &'a Options,
    /// What it proves itself with; none where nothing is encrypted.
    pub credentials: Option<&'a Credentials>,
    /// Faults on purpose.
    pub chaos: &'a common::chaos::Plan,
    pub display: &'a mut Display,
    pub interrupts: &'a mut mpsc::Receiver<()>,
}

/// A run that begins, or goes on from a checkpoint.
async fn begin_anew(
    begin: Begin,
    found: &Found,
    token: Token,
    held: &mut Held,
    stage: &mut Stage<'_>,
) -> Result<Exit, Failure> {
    let overrides = &stage.options.overrides;
    let origin = async {
        match begin {
            Begin::Experiment { file, resume } => origin::of_experiment(file, overrides, resume.as_ref()).await,
            Begin::Checkpoint { url } | Begin::Attach { run: url } => origin::of_checkpoint(&url, overrides).await,
        }
    };
    let mut origin = tokio::select! {
        origin = origin => origin?,
        Some(()) = stage.interrupts.recv() => return Ok(withdrawn(stage.display, None)),
    };
    origin.generation = origin.generation.max(found.generation);
    let workers = origin::workers(overrides, &origin.config);
    places(stage.options.local.unwrap_or(workers), workers, stage.options)?;
    machine::may_serve(workers)?;
    for note in &origin.notes {
        stage.display.show(&News::Note(note.clone()));
    }
    // nobody needs what a dead coordinator has left
    held.keep(false);
    outputs::clean(held.folder());
    if origin::is_complete(&origin) {
        let outcome = outcome(&origin, Reason::Complete { images: resume_images(&origin).unwrap_or_default() });
        stage.display.show(&News::Ended { outcome, last_lines: Vec::new(), advice: None });
        return Ok(Exit::Ok);
    }
    let mut records = Records::open(held.folder(), origin.run.clone(), resume_images(&origin)).await?;
    let ended = begin_and_drive(&mut origin, found, &token, held, &mut records, stage).await;
    close(records, ended, stage).await
}

/// How the work on a run ended here.
pub(crate) enum End {
    /// It is over.
    Exit(Exit),
    /// Another coordinator goes on with it.
    Replaced(Lease),
}

/// Ends the records of a run.
pub(crate) async fn close(
    mut records: Records,
    ended: Result<End, Failure>,
    stage: &mut Stage<'_>,
) -> Result<Exit, Failure> {
    let ended = match ended {
        Ok(End::Replaced(lease)) => {
            records.abandon();
            return Err(tenure::replaced(&lease));
        }
        Ok(End::Exit(exit)) => Ok(exit),
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &ended {
        records.log("c", &failure.message);
    }
    let hurry = matches!(ended, Ok(Exit::Interrupted));
    tokio::select! {
        () = records.finish() => {}
        Some(()) = stage.interrupts.recv() => tracing::warn!("interrupted before the log was copied into the store"),
        () = sleep(HURRY), if hurry => {}
    }
    ended
}

async fn begin_and_drive(
    origin: &mut Origin,
    found: &Found,
    token: &Token,
    held: &mut Held,
    records: &mut Records,
    stage: &mut Stage<'_>,
) -> Result<End, Failure> {
    let (options, worker) = (stage.options, stage.worker);
    let config = to_json(&origin.config)?;
    let Some(prepared) = prepare(worker, &config, records, stage.display, stage.interrupts).await? else {
        return Ok(End::Exit(withdrawn(stage.display, Some(origin))));
    };
    same_images(origin, &prepared)?;
    if origin.config.train.know_epoch(prepared.epoch) {
        origin.origins.remove("train.epoch_images");
    }
    let config = to_json(&origin.config)?;
    let config_files =
        [("config.toml", origin.to_toml(), Content::Toml), ("config.json", config.clone(), Content::Json)];
    for (name, text, content) in config_files {
        origin.run.put_file(name, text.into(), content).await?;
    }
    let entrance = &options.entrance;
    let deaf = |error| entrance.deaf(&error);
    let listener = server::listen(entrance.listen).map_err(deaf)?;
    let address = listener.local_addr().map_err(deaf)?;
    let workers = origin::workers(&options.overrides, &origin.config);
    let local = options.local.unwrap_or(workers);
    let policy = policy(&origin.config, (workers, local), options);
    let leased = origin.create_only && !found.blind;
    let public = entrance.public(address);
    let (tenure, epoch, nonce) = hold(&origin.run, leased, found.epoch, &public, policy.patience).await?;
    let advertise = entrance.advertise.as_ref().map(|_| public.clone());
    held.announce(&address.to_string(), &origin.run.url(), epoch, token, stage.credentials, advertise)?;
    written(options.address_file.as_deref(), &public)?;

    let begun = Entry::Begun { generation: origin.generation, went_back: Generation(0), newest: origin.resume.clone() };
    let header = Header::new(&origin.run.url(), (epoch, &nonce), (workers, local), &config);
    let journal = Journal::begin(held.folder(), header, Memory::of(&[begun]));
    let launched = News::Launched {
        run: origin.config.name.clone(),
        url: origin.run.url(),
        workers,
        address: address.to_string(),
        resume: origin.resume.clone(),
    };
    tell(records, stage.display, &launched);
    if local < workers {
        let text = format!(
            "waiting up to {} minutes for {} of {workers} workers from elsewhere: {}",
            STARTUP_ELSEWHERE.as_secs() / 60,
            workers - local,
            invitation(&public, stage.credentials, held)
        );
        tell(records, stage.display, &News::Note(text));
    }
    let plan = Plan {
        facts: facts(&origin.run, &policy, epoch, false),
        config,
        model: origin.config.model.clone(),
        beat: (policy.patience / 4).min(BEAT_MAX),
        orphan_patience: orphan_patience(&origin.config),
        policy,
        // a generation after the newest checkpoint may have left nothing but its steps
        generation: origin.generation.max(records.ledger().last().unwrap_or_default()),
        resume: origin.resume.clone(),
        recipe: suffering(
            recipe(
                worker,
                address,
                (token, stage.credentials),
                &held.control_file(),
                children::gpus::visible(),
                &fresh_name()?,
            ),
            stage.chaos,
            workers,
        )?,
        resume_with: resume_command(&origin.run),
        token: token.clone(),
    };
    drive(plan, Keep { journal, tenure, run: origin.run.clone() }, listener, held, records, stage).await
}

/// The same run, asked with little patience.
fn control(run: &Run) -> Result<Run, Failure> {
    Ok(run.store().clone().with_patience(CONTROL).run(run.name())?)
}

/// Takes the run's lease, where the store can keep one.
pub(crate) async fn hold(
    run: &Run,
    leased: bool,
    last: u64,
    address: &str,
    patience: Duration,
) -> Result<(Tenure, u64, String), Failure> {
    if !leased {
        return Ok((Tenure::none(), last + 1, String::new()));
    }
    let run = control(run)?;
    let lease = tenure::take(&run, last, address, tenure::pulse(patience)).await?;
    let (epoch, nonce) = (lease.epoch, lease.nonce.clone());
    Ok((Tenure::keep(run, lease), epoch, nonce))
}

/// Drives a run to its end, or until another coordinator takes it over.
pub(crate) async fn drive(
    plan: Plan,
    keep: Keep,
    listener: TcpListener,
    held: &mut Held,
    records: &mut Records,
    stage: &mut Stage<'_>,
) -> Result<End, Failure> {
    let (inputs, receiver) = mpsc::channel(1024);
    let beats = Beats::default();
    let door = stage.credentials.map(Door::open).transpose()?;
    let serving = tokio::spawn(server::serve((listener, door), plan.token.clone(), BUILD, inputs, beats.clone()));
    let (supervisor, children) = Supervisor::new(held.folder());
    let driver = Driver::new(plan, keep, supervisor, records, stage.display).with(Chaos::new(stage.chaos));
    let driven = driver.run(receiver, beats, children, stage.interrupts).await;
    serving.abort();
    // workers that are another's from now on still write into files there
    held.keep(matches!(driven, Ok(Drive::Replaced(_))));
    match driven {
        Ok(Drive::Over(outcome)) => Ok(End::Exit(outcome.exit)),
        Ok(Drive::Replaced(lease)) => Ok(End::Replaced(lease)),
        Err(error) => {
            let message = format!("the worker {} cannot be started: {error}", stage.worker.display());
            Err(Failure::new(Exit::Internal, message))
        }
    }
}

pub(crate) fn policy(config: &RunConfig, (workers, local): (u32, u32), options: &Options) -> Policy {
    let cluster = &config.cluster;
    Policy {
        workers,
        min_workers: cluster.min_workers,
        max_workers: match (cluster.backend, cluster.max_workers) {
            (Backend::Solo, _) => 1,
            (_, 0) => WORKERS_MAX,
            (_, most) => most,
        },
        local,
        on_loss: match cluster.on_loss {
            common::config::resolved::OnLoss::Shrink => OnLoss::Shrink,
            common::config::resolved::OnLoss::Wait => OnLoss::Wait,
        },
        failures: cluster.failures,
        total: ImagesSeen(config.train.total_images()),
        startup: if local < workers { STARTUP_ELSEWHERE } else { STARTUP },
        patience: Duration::try_from_secs_f64(cluster.patience_s).unwrap_or(PATIENCE_MAX).min(PATIENCE_MAX),
        stop: options.stop_deadline,
    }
}

/// How long workers wait for a coordinator.
pub(crate) fn orphan_patience(config: &RunConfig) -> Duration {
    Duration::try_from_secs_f64(config.cluster.orphan_patience_s).unwrap_or(PATIENCE_MAX).min(PATIENCE_MAX)
}

pub(crate) fn facts(run: &Run, policy: &Policy, epoch: u64, taken_over: bool) -> Facts {
    Facts { run: run.name().to_owned(), url: run.url(), total_images: policy.total.0, epoch, taken_over }
}

/// The recipe of workers that do to themselves what the plan says.
pub(crate) fn suffering(mut recipe: Recipe, chaos: &common::chaos::Plan, workers: u32) -> Result<Recipe, Failure> {
    if !chaos.fault.is_empty() {
        recipe.environment.push((common::chaos::VARIABLE.to_owned(), to_json(&chaos.of_workers(workers))?));
    }
    Ok(recipe)
}

/// What all workers that this coordinator starts have in their names.
pub(crate) fn fresh_name() -> Result<String, Failure> {
    Ok(hex(&random_bytes().map_err(no_randomness)?[..2]))
}

fn no_randomness(error: std::io::Error) -> Failure {
    Failure::new(Exit::Internal, format!("no random numbers: {error}"))
}

fn same_images(origin: &Origin, prepared: &Prepared) -> Result<(), Failure> {
    match &origin.dataset {
        Some(trained) if trained.fingerprint != prepared.fingerprint => {
            let message = format!(
                "the images in {} are not those that the run was trained on ({} images, fingerprint {}; now {} images, \
                 fingerprint {}). Put them back, or launch a new run",
                origin.config.data.source, trained.images, trained.fingerprint, prepared.images, prepared.fingerprint
            );
            Err(Failure::new(Exit::Data, message))
        }
        _ => Ok(()),
    }
}

/// An end on request before there was anything to store.
fn withdrawn(display: &mut Display, origin: Option<&Origin>) -> Exit {
    let outcome = match origin {
        Some(origin) => outcome(origin, Reason::Withdrawn),
        None => Outcome { exit: Exit::Ok, reason: Reason::Withdrawn, images: ImagesSeen(0), newest: None },
    };
    let advice = origin.filter(|origin| origin.resume.is_some()).map(|origin| resume_command(&origin.run));
    display.show(&News::Ended { outcome, last_lines: Vec::new(), advice });
    Exit::Ok
}

fn outcome(origin: &Origin, reason: Reason) -> Outcome {
    let images = resume_images(origin).unwrap_or_default();
    Outcome { exit: Exit::Ok, reason, images, newest: origin.resume.clone() }
}

fn resume_images(origin: &Origin) -> Option<ImagesSeen> {
    origin.resume.as_ref().map(|stored| stored.images)
}

pub(crate) fn resume_command(run: &Run) -> String {
    format!("coordinator resume {}", run.url())
}

fn to_json(config: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(config).map_err(|error| Failure::new(Exit::Internal, format!("the configuration: {error}")))
}
