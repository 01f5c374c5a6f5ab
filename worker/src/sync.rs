//! One state for all ranks of a generation: they find out who holds the latest, and it goes from there to those who do not.
//!
//! Everything is agreed over the mesh, rank by rank alike; nobody outside is asked. What is sent is hashed on both sides. A
//! rank that should hold the same state and does not is told so, and repaired. Refuses to read checkpoints.

use crate::checkpoint::{self, snapshot};
use crate::failure::Failure;
use crate::ranks::Ranks;
use crate::trainer::Trainer;
use collective::CollectiveError;
use common::checkpoint::{Digest, Manifest, TrainerCursor};
use common::schedule::StateVersion;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};
use worker_core::Agreement;

/// What belongs to the state of a run besides its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Carried {
    /// Where training stands.
    pub cursor: TrainerCursor,
    /// Images up to which everything that was due is done.
    pub done: u64,
    /// The newest checkpoint.
    pub parent: Option<Manifest>,
}

/// Brings all ranks to the latest state that one of them holds, and returns what belongs to it; `None` where nobody holds any.
/// `mine` is this rank's, if its trainer holds a state.
///
/// # Errors
/// When a rank is lost. The trainer then holds no state if it was being filled.
pub fn agree(ranks: &mut Ranks, trainer: &mut Trainer, mine: Option<&Carried>) -> Result<Option<Carried>, Failure> {
    let version = mine.and(trainer.version());
    let told = ranks.together(|mesh| mesh.all_gather_bytes(&to_bytes(&version)))?;
    let versions = told.iter().zip(0..).map(|(bytes, rank)| from_bytes(bytes, rank));
    let versions = versions.collect::<Result<Vec<Option<StateVersion>>, _>>()?;
    let Some(Agreement { latest, source, behind }) = worker_core::agree(&versions) else { return Ok(None) };
    let rank = ranks.mesh().rank();
    let word = if rank == source { to_bytes(&mine) } else { Vec::new() };
    let words = ranks.together(|mesh| mesh.all_gather_bytes(&word))?;
    let carried: Option<Carried> = from_bytes(&words[source as usize], source)?;
    let carried = carried.ok_or_else(|| unreadable(source, "it has nothing to say of its state".to_owned()))?;
    if !behind.is_empty() {
        if rank == source {
            tracing::info!("rank {source} brings ranks {behind:?} to {latest:?}");
        }
        share(ranks, trainer, source, version == Some(latest))?;
    }
    checkpoint::put(trainer, &carried.cursor);
    trainer.set_line(Some(latest.line));
    Ok(Some(carried))
}

/// Sends every tensor of rank `source` to all others. A rank that `holds` the same state compares.
fn share(ranks: &mut Ranks, trainer: &mut Trainer, source: u32, holds: bool) -> Result<(), Failure> {
    let sends = ranks.mesh().rank() == source;
    // who holds the same state only compares, and keeps it if the source is lost meanwhile
    if !sends && !holds {
        trainer.set_line(None);
    }
    let (mut digests, mut differing) = (Vec::new(), Vec::new());
    for part in snapshot::live(trainer) {
        let mut bytes = if sends || holds { snapshot::bytes(&part) } else { vec![0; part.bytes() as usize] };
        let before = (holds && !sends).then(|| Digest::of(&bytes));
        ranks.together(|mesh| mesh.broadcast(&mut bytes, source))?;
        let digest = Digest::of(&bytes);
        digests.extend_from_slice(digest.as_ref());
        if before.is_some_and(|before| before != digest) {
            differing.push(part.name.clone());
        }
        if !sends && (!holds || before != Some(digest)) {
            trainer.set_line(None);
            fill(&part, &bytes);
        }
    }
    let mine = Digest::of(&digests).as_ref().to_vec();
    let all = ranks.together(|mesh| mesh.all_gather_bytes(&mine))?;
    if let Some((_, rank)) = all.iter().zip(0..).find(|(theirs, _)| **theirs != all[source as usize]) {
        return Err(unreadable(rank, "it received another state than was sent".to_owned()).into());
    }
    if !differing.is_empty() {
        tracing::warn!("this rank held another state than rank {source} in {}; it is repaired", differing.join(", "));
    }
    Ok(())
}

fn fill(part: &snapshot::LivePart, bytes: &[u8]) {
    let mut rest = bytes;
    no_grad(|| {
        for (_, tensor) in &part.tensors {
            let (mine, others) = rest.split_at(tensor.numel() * 4);
            tensor.shallow_clone().copy_(&Tensor::from_data_size(mine, &tensor.size(), Kind::Float));
            rest = others;
        }
    });
}

fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    // plain data: it has no value that JSON lacks
    serde_json::to_vec(value).unwrap_or_default()
}

fn from_bytes<T: for<'a> Deserialize<'a>>(bytes: &[u8], rank: u32) -> Result<T, CollectiveError> {
    serde_json::from_slice(bytes).map_err(|error| unreadable(rank, format!("what it says cannot be read: {error}")))
}

fn unreadable(rank: u32, what: String) -> CollectiveError {
    CollectiveError::Protocol { rank, what }
}
