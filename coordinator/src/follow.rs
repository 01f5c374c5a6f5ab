//! Going on with a run whose workers are at work while its coordinator is dead: as they know it, where they look first.
//!
//! Nothing begins here: no data set is prepared, no checkpoint read, no worker started. What the store cannot say in time is
//! done without.

use crate::display::Display;
use crate::driver::{Keep, Plan, tell};
use crate::failure::Failure;
use crate::invite::{recipe, written};
use crate::journal::{Header, Journal};
use crate::launch::{
    BEAT_MAX, Options, Stage, close, drive, facts, fresh_name, hold, orphan_patience, policy, resume_command, suffering,
};
use crate::origin::Target;
use crate::records::Records;
use crate::render::News;
use crate::server;
use crate::state::Held;
use crate::takeover::{Found, Predecessor};
use common::config::resolved::RunConfig;
use common::exit::Exit;
use common::ids::Generation;
use coordinator_core::{Entry, Memory, Stored};
use std::net::SocketAddr;
use std::time::Duration;
use storage::Run;
use tokio::net::TcpListener;
use tokio::time::timeout;

/// For what a takeover would like to know of the store.
const STORE: Duration = Duration::from_secs(10);

/// A run that is at work, and whose coordinator is dead.
pub(crate) async fn take_over(
    predecessor: &Predecessor,
    found: &Found,
    target: &Target,
    held: &mut Held,
    stage: &mut Stage<'_>,
    attaches: bool,
) -> Result<Exit, Failure> {
    let Predecessor { config, token, local: was_local, .. } = predecessor;
    let (options, run) = (stage.options, &target.run);
    let unreadable = |error| Failure::new(Exit::Internal, format!("the configuration of {}: {error}", run.url()));
    let resolved: RunConfig = serde_json::from_str(config).map_err(unreadable)?;
    if !options.overrides.set.is_empty() {
        let text = "--set is left out: the run goes on as its workers know it. To change it, stop it and resume";
        stage.display.show(&News::Note(text.into()));
    }
    let memory = remembered(predecessor, run, options, stage.display).await;
    let workers = predecessor.workers.max(1);
    let local = options.local.or(*was_local).unwrap_or(if attaches { 0 } else { workers }).min(workers);
    let policy = policy(&resolved, (workers, local), options);
    let leased = !found.blind && matches!(timeout(STORE, run.probe()).await, Ok(Ok(f)) if f.create_only_honoured);
    if !leased {
        let text =
            "no lease in the store: a second coordinator on another machine would not be noticed. Start only one";
        stage.display.show(&News::Note(text.into()));
    }

    let entrance = &options.entrance;
    let deaf = |error| entrance.deaf(&error);
    let listener = listen(entrance.listen, predecessor.address).map_err(deaf)?;
    let address = listener.local_addr().map_err(deaf)?;
    // as the one before said it, where this one listens at its place
    let kept = held.predecessor().0.and_then(|control| control.advertise);
    let kept = kept.filter(|_| predecessor.address == Some(address));
    let advertise = entrance.advertise.as_ref().map(|_| entrance.public(address)).or(kept);
    let public = advertise.clone().unwrap_or_else(|| address.to_string());
    if address.ip().is_unspecified() && advertise.is_none() {
        let message = format!("--listen {address} is every address of this machine: name one with --advertise HOST");
        return Err(Failure::new(Exit::Usage, message));
    }
    let (tenure, epoch, nonce) = hold(run, leased, found.epoch, &public, policy.patience).await?;
    let mut records = Records::take_over(held.folder(), run.clone(), was_local.is_some()).await?;
    let (generation, world) = (memory.at_work().0, memory.members().len() as u32);
    let header = Header::new(&run.url(), (epoch, &nonce), (workers, local), config);
    let newest = memory.newest.clone();
    let journal = Journal::begin(held.folder(), header, memory);
    let announced = held.announce(&address.to_string(), &run.url(), epoch, token, stage.credentials, advertise);
    let announced = announced.and_then(|()| written(options.address_file.as_deref(), &public));
    let (name, url) = (run.name().to_owned(), run.url());
    let news = News::TakenOver { run: name, url, epoch, generation, workers: world, address: address.to_string() };
    tell(&mut records, stage.display, &news);
    if let Err(failure) = announced {
        let text = format!("`coordinator status` and its kin will not find this coordinator: {}", failure.message);
        tell(&mut records, stage.display, &News::Alarm(text));
    }
    let plan = Plan {
        facts: facts(run, &policy, epoch, true),
        config: config.clone(),
        model: resolved.model.clone(),
        beat: (policy.patience / 4).min(BEAT_MAX),
        orphan_patience: orphan_patience(&resolved),
        policy,
        generation: found.generation,
        resume: newest,
        recipe: suffering(
            recipe(
                stage.worker,
                address,
                (token, stage.credentials),
                &held.control_file(),
                children::gpus::visible(),
                &fresh_name()?,
            ),
            stage.chaos,
            workers,
        )?,
        resume_with: resume_command(run),
        token: token.clone(),
    };
    let ended = drive(plan, Keep { journal, tenure, run: run.clone() }, listener, held, &mut records, stage).await;
    close(records, ended, stage).await
}

/// What the predecessor knew, with what the store and the command line say beyond that.
async fn remembered(predecessor: &Predecessor, run: &Run, options: &Options, display: &mut Display) -> Memory {
    let mut memory = predecessor.memory.clone();
    let stored = async {
        let generation = run.next_generation().await?;
        Ok::<_, storage::StorageError>((generation, run.newest_good(false).await?.manifest))
    };
    match timeout(STORE, stored).await {
        Ok(Ok((generation, newest))) => {
            let newest = newest.map(|manifest| {
                let key = manifest.key();
                Stored { images: key.images, manifest: key.to_string() }
            });
            memory.add(&Entry::Begun { generation, went_back: Generation(0), newest });
        }
        Ok(Err(error)) => display.show(&News::Note(format!("the store was not asked for checkpoints: {error}"))),
        Err(_) => display.show(&News::Note("the store does not answer; the run goes on without it".into())),
    }
    let wanted = memory.wanted.unwrap_or(predecessor.workers);
    if let Some(workers) = options.overrides.workers.filter(|workers| *workers != wanted) {
        memory.add(&Entry::Wanted(workers));
    }
    memory
}

/// Listens where it is asked to, and if that is left open where the coordinator before did: workers look there first.
fn listen(asked: SocketAddr, before: Option<SocketAddr>) -> std::io::Result<TcpListener> {
    let Some(before) = before.filter(|_| asked == SocketAddr::from(([127, 0, 0, 1], 0))) else {
        return server::listen(asked);
    };
    match server::listen(before) {
        Ok(listener) => Ok(listener),
        Err(error) => {
            tracing::info!("{before} is taken ({error}): listening on another port");
            server::listen(SocketAddr::new(before.ip(), 0))
        }
    }
}
