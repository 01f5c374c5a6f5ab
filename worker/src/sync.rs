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
use common::ledger::Tally;
use common::schedule::StateVersion;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// What was done, as far as it may not be recorded yet.
    pub tally: Tally,
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

/// The ranks whose state differs from that of most (of rank 0, where there is no majority): memory that lost a bit, a kernel
/// that is not what it should be. Every rank gets the same answer. Ranks on unlike machines may differ in the last bits, and are not
/// compared; unequal numbers of threads change nothing in an update.
///
/// # Errors
/// When a rank is lost.
pub fn odd_ones(trainer: &mut Trainer, environment: &BTreeMap<String, String>) -> Result<Vec<u32>, CollectiveError> {
    if trainer.communicator().world() == 1 {
        return Ok(Vec::new());
    }
    let alike: BTreeMap<&String, &String> = environment.iter().filter(|(name, _)| *name != "threads").collect();
    let mine = to_bytes(&(fingerprint(trainer), alike));
    let told = trainer.communicator().gather(mine)?;
    let told = told.iter().zip(0..).map(|(bytes, rank)| from_bytes(bytes, rank));
    let told = told.collect::<Result<Vec<((i64, i64), BTreeMap<String, String>)>, _>>()?;
    Ok(odd_among(&told))
}

fn odd_among<E: PartialEq>(told: &[((i64, i64), E)]) -> Vec<u32> {
    if told.iter().any(|(_, environment)| *environment != told[0].1) {
        return Vec::new();
    }
    let count = |state| told.iter().filter(|(theirs, _)| *theirs == state).count();
    let most = told.iter().map(|(state, _)| count(*state)).max().unwrap_or_default();
    let Some((right, _)) = told.iter().find(|(state, _)| count(*state) == most) else { return Vec::new() };
    (0..).zip(told).filter(|(_, (state, _))| state != right).map(|(rank, _)| rank).collect()
}

/// Two sums over the bits of the whole state, taken where it lies: another bit anywhere makes them others.
fn fingerprint(trainer: &Trainer) -> (i64, i64) {
    no_grad(|| {
        let mut sums = Tensor::zeros([2], (Kind::Int64, trainer.device()));
        for part in snapshot::live(trainer) {
            for (_, tensor) in &part.tensors {
                let bits = tensor.contiguous().view([-1]).view_dtype(Kind::Int).to_kind(Kind::Int64);
                let more = Tensor::stack(&[bits.sum(Kind::Int64), (&bits * &bits).sum(Kind::Int64)], 0);
                sums = sums * 31 + more;
            }
        }
        (sums.int64_value(&[0]), sums.int64_value(&[1]))
    })
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

#[cfg(test)]
mod tests {
    use super::odd_among;

    #[test]
    fn the_odd_ones_are_those_that_differ_from_most_or_from_rank_0() {
        let told = |states: &[i64]| states.iter().map(|state| ((*state, 0), "cpu")).collect::<Vec<_>>();
        assert_eq!(odd_among(&told(&[7, 7, 7])), [0; 0]);
        assert_eq!(odd_among(&told(&[7, 8, 8])), [0]);
        assert_eq!(odd_among(&told(&[7, 8])), [1]);
        assert_eq!(odd_among(&told(&[7, 8, 9, 8])), [0, 2]);
        let unlike = [((1, 0), "avx2"), ((2, 0), "avx512")];
        assert_eq!(odd_among(&unlike), [0; 0]);
    }
}
