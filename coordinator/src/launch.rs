//! `launch` and `resume`: from a command line to the end of a run.
//!
//! Everything that can be known to fail is found out first: configuration, store, data, address. Only then do workers start.

use crate::admission::{Token, hex, random_bytes};
use crate::chaos::{self, Chaos};
use crate::display::{Display, Style};
use crate::driver::{Driver, Plan, tell};
use crate::failure::Failure;
use crate::origin::{self, Origin, Overrides, Resume};
use crate::prepare::{Prepared, prepare};
use crate::records::Records;
use crate::render::News;
use crate::state::{self, Held};
use crate::supervisor::{Recipe, Supervisor};
use crate::view::Facts;
use crate::{machine, server, signals};
use common::exit::Exit;
use common::ids::ImagesSeen;
use coordinator_core::{OnLoss, Outcome, Policy, Reason, WorkerId};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use storage::Content;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Version that a worker must have.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
/// From the start until every worker must have joined.
const STARTUP: Duration = Duration::from_secs(120);
/// The same where people or schedulers bring some of them.
const STARTUP_ELSEWHERE: Duration = Duration::from_secs(600);
/// Environment variable with the run's join token, and the shortest that is taken from it.
const TOKEN: &str = "GANFLEET_TOKEN";
const TOKEN_LENGTH: usize = 32;
/// Most workers where the experiment does not say: each pair of ranks holds two connections.
const WORKERS_MAX: u32 = 256;
/// Longest time between two signs of life of the coordinator.
const BEAT_MAX: Duration = Duration::from_secs(1);
/// After a kill, time for the last copy of log and metrics.
const HURRY: Duration = Duration::from_secs(1);
/// Longest patience that is taken at its word; more would overflow a clock.
const PATIENCE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

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
}

/// How to run it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Changes to the configuration.
    pub overrides: Overrides,
    /// How many of the workers to start on this machine; `None` is all.
    pub local: Option<u32>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Allow listening beyond this machine without encryption.
    pub insecure: bool,
    /// Time for the last checkpoint after a stop.
    pub stop_deadline: Duration,
    /// Plan of faults on purpose.
    pub chaos: Option<PathBuf>,
    /// How to show it.
    pub style: Style,
}

/// What a run needs of this machine before anything is read or written.
struct Means {
    /// The worker program.
    worker: PathBuf,
    /// What proves that a worker or an operator belongs here.
    token: Token,
    /// Faults on purpose.
    chaos: common::chaos::Plan,
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
    if !options.listen.ip().is_loopback() && !options.insecure {
        let message = format!(
            "listening on {} lets others on the network try, and what travels is not encrypted: add --insecure if that \
             network is trusted",
            options.listen
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut interrupts = signals::catch().map_err(|error| Failure::new(Exit::Internal, error))?;
    let chaos = options.chaos.as_deref().map(chaos::read).transpose()?.unwrap_or_default();
    let means = Means { worker: machine::worker_binary()?, token: token()?, chaos };
    let origin = async {
        match begin {
            Begin::Experiment { file, resume } => {
                origin::of_experiment(file, &options.overrides, resume.as_ref()).await
            }
            Begin::Checkpoint { url } => origin::of_checkpoint(&url, &options.overrides).await,
        }
    };
    let origin = tokio::select! {
        origin = origin => origin?,
        Some(()) = interrupts.recv() => return Ok(withdrawn(display, None)),
    };
    let workers = origin::workers(&options.overrides, &origin.config);
    places(options.local.unwrap_or(workers), workers, options.listen)?;
    for note in &origin.notes {
        display.show(&News::Note(note.clone()));
    }
    if origin::is_complete(&origin) {
        let outcome = outcome(&origin, Reason::Complete { images: resume_images(&origin).unwrap_or_default() });
        display.show(&News::Ended { outcome, last_lines: Vec::new(), advice: None });
        return Ok(Exit::Ok);
    }
    let held = Held::take(&state::home()?, &origin.config.name)?;
    let mut records = Records::open(held.folder(), origin.run.clone(), resume_images(&origin)).await?;
    let ended = begin_and_drive(&origin, &means, &held, options, &mut records, display, &mut interrupts).await;
    if let Err(failure) = &ended {
        records.log("c", &failure.message);
    }
    let hurry = matches!(ended, Ok(Exit::Interrupted));
    tokio::select! {
        () = records.finish() => {}
        Some(()) = interrupts.recv() => tracing::warn!("interrupted before the log was copied into the store"),
        () = sleep(HURRY), if hurry => {}
    }
    ended
}

async fn begin_and_drive(
    origin: &Origin,
    Means { worker, token, chaos }: &Means,
    held: &Held,
    options: &Options,
    records: &mut Records,
    display: &mut Display,
    interrupts: &mut mpsc::Receiver<()>,
) -> Result<Exit, Failure> {
    let config = to_json(&origin.config)?;
    let Some(prepared) = prepare(worker, &config, records, display, interrupts).await? else {
        return Ok(withdrawn(display, Some(origin)));
    };
    same_images(origin, &prepared)?;
    let config_files =
        [("config.toml", origin.config_toml.clone(), Content::Toml), ("config.json", config.clone(), Content::Json)];
    for (name, text, content) in config_files {
        origin.run.put_file(name, text.into(), content).await?;
    }
    let deaf = |error| Failure::new(Exit::Network, format!("cannot listen on {}: {error}", options.listen));
    let listener = TcpListener::bind(options.listen).await.map_err(deaf)?;
    let address = listener.local_addr().map_err(deaf)?;
    held.announce(&address.to_string(), &origin.run.url(), token)?;

    let nonce = hex(&random_bytes().map_err(no_randomness)?[..2]);
    let workers = origin::workers(&options.overrides, &origin.config);
    let local = options.local.unwrap_or(workers);
    let mut recipe = recipe(worker, address, token, machine::gpus(), &nonce);
    if !chaos.fault.is_empty() {
        recipe.environment.push((common::chaos::VARIABLE.to_owned(), to_json(&chaos.of_workers(workers))?));
    }
    let mut plan = plan(origin, options, config, (workers, local), recipe);
    // a generation after the newest checkpoint may have left nothing but its steps
    plan.generation = plan.generation.max(records.ledger().last().unwrap_or_default());
    let launched = News::Launched {
        run: origin.config.name.clone(),
        url: origin.run.url(),
        workers,
        address: address.to_string(),
        resume: origin.resume.clone(),
    };
    tell(records, display, &launched);
    if local < workers {
        let text = format!(
            "waiting up to {} minutes for {} of {workers} workers from elsewhere: `worker join {address}` with the run's \
             token in {TOKEN} (it is in {})",
            STARTUP_ELSEWHERE.as_secs() / 60,
            workers - local,
            held.token_file().display()
        );
        tell(records, display, &News::Note(text));
    }
    let (inputs, receiver) = mpsc::channel(1024);
    let serving = tokio::spawn(server::serve(listener, token.clone(), BUILD, inputs));
    let (supervisor, children) = Supervisor::new();
    let driver = Driver::new(plan, supervisor, records, display).with(Chaos::new(chaos));
    let driven = driver.run(receiver, children, interrupts).await;
    serving.abort();
    let outcome = driven.map_err(|error| {
        Failure::new(Exit::Internal, format!("the worker {} cannot be started: {error}", worker.display()))
    })?;
    Ok(outcome.exit)
}

fn plan(origin: &Origin, options: &Options, config: String, (workers, local): (u32, u32), recipe: Recipe) -> Plan {
    let cluster = &origin.config.cluster;
    let total = ImagesSeen(origin.config.train.total_images());
    let patience =
        Duration::try_from_secs_f64(origin.config.cluster.patience_s).unwrap_or(PATIENCE_MAX).min(PATIENCE_MAX);
    Plan {
        facts: Facts { run: origin.config.name.clone(), url: origin.run.url(), total_images: total.0 },
        config,
        policy: Policy {
            workers,
            min_workers: cluster.min_workers,
            max_workers: if cluster.max_workers == 0 { WORKERS_MAX } else { cluster.max_workers },
            local,
            on_loss: match cluster.on_loss {
                common::config::resolved::OnLoss::Shrink => OnLoss::Shrink,
                common::config::resolved::OnLoss::Wait => OnLoss::Wait,
            },
            failures: cluster.failures,
            total,
            startup: if local < workers { STARTUP_ELSEWHERE } else { STARTUP },
            patience,
            stop: options.stop_deadline,
        },
        beat: (patience / 4).min(BEAT_MAX),
        generation: origin.generation,
        resume: origin.resume.clone(),
        recipe,
        resume_with: resume_command(origin),
    }
}

/// Whether workers from elsewhere have a place, and an address to go to.
fn places(local: u32, workers: u32, listen: SocketAddr) -> Result<(), Failure> {
    if local > workers {
        let message = format!("--local {local} is more than the {workers} workers of the run: raise --workers too");
        return Err(Failure::new(Exit::Usage, message));
    }
    if local < workers && listen.ip().is_unspecified() {
        let message = format!(
            "--listen {listen} is every address of this machine, and workers from elsewhere must be told one: name the one by \
             which they reach it"
        );
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(())
}

/// The token that the environment gives this run, for workers who must know it beforehand; else one that nobody can guess.
fn token() -> Result<Token, Failure> {
    let wrong = |what: String| Err(Failure::new(Exit::Config, format!("{TOKEN} {what}, or unset it")));
    match std::env::var(TOKEN).map(|text| Token::from_text(&text)) {
        Ok(token) if token.expose().len() >= TOKEN_LENGTH => Ok(token),
        Ok(short) => wrong(format!("holds {} characters: give {TOKEN_LENGTH} or more", short.expose().len())),
        Err(std::env::VarError::NotUnicode(_)) => wrong("is not UTF-8 text: give letters and digits".to_owned()),
        Err(std::env::VarError::NotPresent) => Token::fresh().map_err(no_randomness),
    }
}

fn no_randomness(error: std::io::Error) -> Failure {
    Failure::new(Exit::Internal, format!("no random numbers: {error}"))
}

/// How workers of this run are started on this machine.
fn recipe(worker: &Path, address: SocketAddr, token: &Token, gpus: Vec<u32>, nonce: &str) -> Recipe {
    Recipe {
        worker: WorkerId(format!("{nonce}-")),
        gpus,
        program: worker.to_owned(),
        arguments: vec!["join".to_owned(), address.to_string()],
        environment: vec![(TOKEN.to_owned(), token.expose().to_owned())],
    }
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
    let advice = origin.filter(|origin| origin.resume.is_some()).map(resume_command);
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

fn resume_command(origin: &Origin) -> String {
    format!("coordinator resume {}", origin.run.url())
}

fn to_json(config: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(config).map_err(|error| Failure::new(Exit::Internal, format!("the configuration: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_gets_its_own_name_and_gpu_and_no_secret_in_its_arguments() {
        let token = Token::from_text("secret");
        let address = "127.0.0.1:4000".parse().unwrap();
        let recipe = recipe(Path::new("/bin/worker"), address, &token, vec![4, 6], "ab12");
        let variable = |recipe: &Recipe, name: &str| {
            recipe.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap()
        };
        let recipes: Vec<_> =
            [(0, 1), (1, 2), (2, 3), (1, 4)].map(|(slot, number)| recipe.for_place(slot, number)).into();
        let all = |name: &str| recipes.iter().map(|recipe| variable(recipe, name)).collect::<Vec<_>>();
        assert_eq!(all("CUDA_VISIBLE_DEVICES"), ["4", "6", "4", "6"]);
        assert_eq!(all("GANFLEET_WORKER_ID"), ["w0-ab12-1", "w1-ab12-2", "w2-ab12-3", "w1-ab12-4"]);
        for recipe in recipes {
            assert_eq!(recipe.arguments, ["join", "127.0.0.1:4000"]);
            assert_eq!(variable(&recipe, "GANFLEET_WORKER_ID"), recipe.worker.to_string());
            assert_eq!(variable(&recipe, "GANFLEET_TOKEN"), "secret");
        }
    }
}
