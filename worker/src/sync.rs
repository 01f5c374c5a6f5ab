//! One state for all ranks of a generation: they find out who holds the latest, and it goes from there to those who do not.
//!
//! Everything is agreed over the mesh, rank by rank alike; nobody outside is asked. What is sent is hashed on both sides. A
//! rank that should hold the same state and does not is told so, and repaired. Refuses to read checkpoints.

use crate::checkpoint;
use crate::checkpoint::snapshot::{self, LivePart};
use crate::failure::Failure;
use crate::ranks::Ranks;
use crate::trainer::{StepError, Trainer};
use bytemuck::{cast_slice, cast_slice_mut};
use collective::{CollectiveError, Part};
use common::checkpoint::{Manifest, TrainerCursor};
use common::ledger::Tally;
use common::schedule::StateVersion;
use native::HostF32;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::mpsc::{SyncSender, sync_channel};
use tch::{Kind, Tensor, no_grad};
use worker_core::Agreement;
use xxhash_rust::xxh3::Xxh3;

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
    let Some(agreement) = worker_core::agree(&versions) else { return Ok(None) };
    let Agreement { latest, source, behind } = &agreement;
    let source = *source;
    let rank = ranks.mesh().rank();
    let word = if rank == source { to_bytes(&mine) } else { Vec::new() };
    let words = ranks.together(|mesh| mesh.all_gather_bytes(&word))?;
    let carried: Option<Carried> = from_bytes(&words[source as usize], source)?;
    let carried = carried.ok_or_else(|| unreadable(source, "it has nothing to say of its state".to_owned()))?;
    if !behind.is_empty() {
        if rank == source {
            tracing::info!("rank {source} brings ranks {behind:?} to {latest:?}");
        }
        share(ranks, trainer, &agreement)?;
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

/// Brings every tensor of the source to the ranks that are behind. Those who hold the same state compare, and are repaired
/// where it is not the same.
fn share(ranks: &mut Ranks, trainer: &mut Trainer, agreement: &Agreement) -> Result<(), Failure> {
    let (rank, source, behind) = (ranks.mesh().rank(), agreement.source, &agreement.behind);
    let parts = snapshot::live(trainer);
    // who holds the same state keeps it if the source is lost meanwhile
    if behind.contains(&rank) {
        trainer.set_line(None);
    }
    let odd = hand_over(ranks, &parts, source, &vec![behind.clone(); parts.len()])?;
    all_received(odd.iter().flatten().filter(|rank| behind.contains(rank)))?;
    if odd.iter().all(Vec::is_empty) {
        return Ok(());
    }
    let mine = parts.iter().zip(&odd).filter(|(_, odd)| odd.contains(&rank)).map(|(part, _)| part.name.as_str());
    let mine: Vec<&str> = mine.collect();
    if !mine.is_empty() {
        tracing::warn!("this rank held another state than rank {source} in {}; it is repaired", mine.join(", "));
        trainer.set_line(None);
    }
    all_received(hand_over(ranks, &parts, source, &odd)?.iter().flatten())
}

fn all_received<'a>(mut odd: impl Iterator<Item = &'a u32>) -> Result<(), Failure> {
    let other = |rank: &u32| unreadable(*rank, "it received another state than was sent".to_owned());
    odd.next().map_or(Ok(()), |rank| Err(other(rank).into()))
}

/// Parts that may wait to be hashed: of what lies on a GPU each is a copy.
const UNHASHED: usize = 2;

/// Brings each of `parts` from rank `source` to the ranks that `to` names for it. Every rank hashes every part, in a thread
/// beside the transfer; for each part, the ranks that then have another hash than the source.
fn hand_over(ranks: &mut Ranks, parts: &[LivePart], source: u32, to: &[Vec<u32>]) -> Result<Vec<Vec<u32>>, Failure> {
    let mine = std::thread::scope(|scope| {
        let (hasher, parts_here) = sync_channel(UNHASHED);
        let hashing = scope.spawn(move || parts_here.iter().map(|part: Vec<HostF32>| hash(&part)).collect());
        for (part, to) in parts.iter().zip(to) {
            pass(ranks, part, source, to, &hasher)?;
        }
        drop(hasher);
        let hashes: Vec<u128> = hashing.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok::<_, Failure>(hashes)
    })?;
    let told = ranks.together(|mesh| mesh.all_gather_bytes(&to_bytes(&mine)))?;
    let told = told.iter().zip(0..).map(|(bytes, rank)| from_bytes(bytes, rank));
    let told = told.collect::<Result<Vec<Vec<u128>>, _>>()?;
    let right = &told[source as usize];
    let odd = |part: usize| (0..).zip(&told).filter(move |(_, theirs)| theirs.get(part) != right.get(part));
    Ok((0..parts.len()).map(|part| odd(part).map(|(rank, _)| rank).collect()).collect())
}

/// One part on its way, straight between the memories of the models where they are the host's.
fn pass(
    ranks: &mut Ranks,
    part: &LivePart,
    source: u32,
    to: &[u32],
    hasher: &SyncSender<Vec<HostF32>>,
) -> Result<(), Failure> {
    let (rank, host) = (ranks.mesh().rank(), snapshot::host(part));
    let takes = to.contains(&rank);
    // a thread that has ended is heard of by who joins it
    let hash = |host: &[Tensor]| lend(host).map(|lent| drop(hasher.send(lent)));
    if !takes {
        hash(&host)?;
    }
    if !to.is_empty() {
        let mut lent = lend(&host)?;
        ranks.together(|mesh| match rank {
            _ if takes => {
                let mut room: Vec<&mut [u8]> =
                    lent.iter_mut().map(|tensor| cast_slice_mut(tensor.as_mut_slice())).collect();
                mesh.broadcast(Part::Takes(&mut room), source, to)
            }
            _ if rank == source => {
                let given: Vec<&[u8]> = lent.iter().map(|tensor| cast_slice(tensor.as_slice())).collect();
                mesh.broadcast(Part::Gives(&given), source, to)
            }
            _ => mesh.broadcast(Part::Hears(part.bytes() as usize), source, to),
        })?;
    }
    if takes {
        hash(&host)?;
        snapshot::take(part, &host);
    }
    Ok(())
}

fn lend(host: &[Tensor]) -> Result<Vec<HostF32>, Failure> {
    Ok(host.iter().map(HostF32::new).collect::<Result<_, _>>().map_err(StepError::from)?)
}

/// Finds accidents on the way from one memory to another. It need not withstand intent: whoever is a rank may send what it
/// likes, with its hash. It keeps pace with memory, which BLAKE3 does not.
fn hash(part: &[HostF32]) -> u128 {
    let mut hasher = Xxh3::new();
    part.iter().for_each(|tensor| hasher.update(cast_slice(tensor.as_slice())));
    hasher.digest128()
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
    use super::*;
    use crate::trainer::tests::{config, state, take, trainer};
    use collective::{Collective, Faulty, Listener, Membership, Mesh, Solo};
    use common::ids::Generation;
    use std::net::SocketAddr;
    use std::time::Duration;

    /// What `play` makes of each rank of a new generation, given its rank and its connection to the others.
    fn meet<T: Send>(world: u32, play: impl Fn(u32, Faulty<collective::Tcp>) -> T + Sync) -> Vec<T> {
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let listeners: Vec<Listener> = (0..world).map(|_| Listener::bind(any).unwrap()).collect();
        let peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..world)
                .zip(listeners)
                .map(|(rank, mut listener)| {
                    let (peers, play) = (peers.clone(), &play);
                    scope.spawn(move || {
                        let membership = Membership { generation: 2, rank, peers, secret: [7; 32] };
                        let tcp = Mesh::connect(&mut listener, membership, Duration::from_secs(20)).unwrap();
                        play(rank, Faulty::new(tcp))
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn ranks(collective: impl Collective + 'static) -> Ranks {
        Ranks::new(Box::new(collective), None, Duration::from_secs(20))
    }

    /// A trainer that took `steps` alone, in generation 1, and what belongs to its state.
    fn trained(steps: usize) -> (Trainer, Carried) {
        let mut trainer = trainer(&config("fast", ""), Box::new(Solo::new(1)));
        take(&mut trainer, steps);
        let position = trainer.position();
        let cursor = TrainerCursor {
            images: position.images,
            cycle_images: position.cycle_images,
            repeat: position.round,
            phase: position.step,
            steps: trainer.mark().steps,
            last_knee: trainer.knee(),
            ..TrainerCursor::default()
        };
        (trainer, Carried { cursor, done: 0, parent: None, tally: Tally::default() })
    }

    #[test]
    fn a_newcomer_and_one_that_is_behind_get_the_state_of_those_who_hold_the_latest() {
        let right = state(&trained(3).0);
        let found = meet(4, |rank, collective| {
            // rank 0 comes anew, rank 2 has missed a step
            let (mut trainer, carried) = trained([0, 3, 2, 3][rank as usize]);
            let mine = (rank > 0).then_some(&carried);
            let agreed = agree(&mut ranks(collective), &mut trainer, mine).unwrap().unwrap();
            (state(&trainer), trainer.version(), agreed.cursor.steps)
        });
        let version = trained(3).0.version();
        assert!(found.iter().all(|found| *found == (right.clone(), version, 3)), "{found:?}");
    }

    #[test]
    fn one_that_holds_other_bits_of_the_same_state_is_repaired() {
        let right = state(&trained(2).0);
        let found = meet(3, |rank, collective| {
            let (mut trainer, carried) = trained(2);
            if rank == 1 {
                let part = &snapshot::live(&trainer)[1];
                let _other = no_grad(|| part.tensors[0].1.shallow_clone().g_add_scalar_(1e-6));
            }
            agree(&mut ranks(collective), &mut trainer, (rank < 2).then_some(&carried)).unwrap();
            (state(&trainer), trainer.version().is_some())
        });
        assert!(found.iter().all(|found| *found == (right.clone(), true)), "{found:?}");
    }

    #[test]
    fn where_the_source_is_lost_midway_holders_keep_their_state_and_who_was_being_filled_has_none() {
        let right = state(&trained(2).0);
        let found = meet(3, |rank, collective| {
            let (mut trainer, carried) = trained(if rank == 2 { 0 } else { 2 });
            // after the two gathers and two of the parts
            let collective = if rank == 0 { collective.fail_at(4) } else { collective };
            let outcome = agree(&mut ranks(collective), &mut trainer, (rank < 2).then_some(&carried)).map(drop);
            (outcome.is_err(), trainer.version().map(|version| version.line), state(&trainer) == right)
        });
        assert_eq!(found[..2], [(true, Some(Generation(1)), true); 2]);
        assert_eq!(found[2], (true, None, false));
    }

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
