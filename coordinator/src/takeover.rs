//! Finding a run whose workers are at work while its coordinator is dead, and what that one left.
//!
//! On this machine the lock of the run's state folder says that the last coordinator is dead, and the journal beside it what
//! it knew. On another machine the run's store says who holds it, and its pulse what that one knew. Nothing is ordered here.

use crate::admission::Token;
use crate::display::Display;
use crate::failure::Failure;
use crate::journal::{self, Left};
use crate::render::News;
use crate::state::Held;
use crate::tenure::{self, Bequest, Holder, Proof};
use children::supervisor::is_worker;
use common::exit::Exit;
use common::ids::Generation;
use coordinator_core::Memory;
use nix::unistd::Pid;
use std::net::SocketAddr;
use storage::Run;

/// Largest configuration that is read from a store.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// A coordinator that is dead while its workers may live.
#[derive(Clone, Debug)]
pub struct Predecessor {
    /// What it knew, as it concerns this machine.
    pub memory: Memory,
    /// JSON of the configuration, as workers have it.
    pub config: String,
    /// Workers that were wanted at the start.
    pub workers: u32,
    /// How many of them it started on this machine; `None`: it was on another.
    pub local: Option<u32>,
    /// What its workers prove themselves with.
    pub token: Token,
    /// Where it listened on this machine.
    pub address: Option<SocketAddr>,
}

/// What is found of a run before it begins.
#[derive(Clone, Debug)]
pub struct Found {
    /// The highest number that a coordinator of the run is known to have had.
    pub epoch: u64,
    /// The last generation that is known to have been used.
    pub generation: Generation,
    /// The store does not answer: nobody knows who else coordinates the run.
    pub blind: bool,
    /// The coordinator to follow, if there is one.
    pub predecessor: Option<Box<Predecessor>>,
}

/// Looks for a coordinator to follow. `held` says that none is at work on this machine; `proof` is what another one would be asked with. A
/// holder that is at work is an error with `exit`.
///
/// # Errors
/// Somebody holds the run, or the store does not say and nothing on this machine does either.
pub async fn find(
    held: &Held,
    run: &Run,
    proof: Proof<'_>,
    exit: Exit,
    display: &mut Display,
) -> Result<Found, Failure> {
    let left = journal::read(held.folder()).filter(|left| left.header.url == run.url());
    let ours = left.as_ref().map(|left| (left.header.epoch, left.header.nonce.as_str()));
    let leased = ours.filter(|(_, nonce)| !nonce.is_empty());
    let (holder, blind) = match tenure::holder(run, leased, proof, exit, display).await {
        Ok(holder) => (holder, false),
        Err(failure) if failure.exit == Exit::Storage && left.is_some() => {
            display.show(&News::Note(format!("{}; going on by what is known on this machine", failure.message)));
            (Holder::Ours(ours.map_or(0, |(epoch, _)| epoch)), true)
        }
        Err(failure) => return Err(failure),
    };
    let nothing = |epoch, generation| Found { epoch, generation, blind, predecessor: None };
    match (holder, left) {
        (Holder::Ours(epoch), Some(left)) => Ok(here(held, left, epoch, blind, display)),
        (Holder::Nobody(epoch), Some(left)) if left.header.nonce.is_empty() => {
            let epoch = epoch.max(left.header.epoch);
            Ok(here(held, left, epoch, blind, display))
        }
        (Holder::Dead(lease, left), _) => elsewhere(run, lease.epoch, left, proof.token, display).await,
        (Holder::Ours(epoch) | Holder::Nobody(epoch), _) => Ok(nothing(epoch, Generation(0))),
    }
}

/// The dead coordinator of this machine, if anybody may still follow it.
fn here(held: &Held, left: Left, epoch: u64, blind: bool, display: &mut Display) -> Found {
    if left.torn > 0 {
        let text = format!("the last {} bytes of the run's journal cannot be read and are left out", left.torn);
        display.show(&News::Note(text));
    }
    let memory = Memory::of(&left.entries).taken_over();
    let lives = |(worker, _, pid): &(_, u32, u32)| is_worker(worker, Pid::from_raw(pid.cast_signed()));
    let far = memory.members().iter().any(|member| member.pid.is_none());
    let at_work = memory.over.is_none() && (far || memory.processes.iter().any(lives));
    let (control, token) = held.predecessor();
    let generation = memory.generation;
    let predecessor = token.filter(|_| at_work).map(|token| {
        let (workers, local) = (left.header.workers, Some(left.header.local));
        let address = control.and_then(|control| control.address.parse().ok());
        Box::new(Predecessor { memory, config: left.header.config, workers, local, token, address })
    });
    Found { epoch, generation, blind, predecessor }
}

/// The dead coordinator of another machine, if its token is known.
async fn elsewhere(
    run: &Run,
    epoch: u64,
    left: Bequest,
    token: Option<&Token>,
    display: &mut Display,
) -> Result<Found, Failure> {
    let memory = Memory::of(&left.entries).taken_over();
    let mut found = Found { epoch, generation: memory.generation, blind: false, predecessor: None };
    if memory.over.is_some() || memory.members().is_empty() {
        return Ok(found);
    }
    let Some(token) = token else {
        let text = "workers of that coordinator may still be at work: with their token in GANFLEET_TOKEN they could be taken over";
        display.show(&News::Note(text.into()));
        return Ok(found);
    };
    let config = run.get_file("config.json", CONFIG_BYTES_MAX).await?;
    let config = String::from_utf8_lossy(&config).into_owned();
    let (workers, token) = (left.workers, token.clone());
    found.predecessor = Some(Box::new(Predecessor { memory, config, workers, local: None, token, address: None }));
    Ok(found)
}
