//! How ranks find out whether they can sum on their GPUs, and form the group that does.
//!
//! Every rank tells every other what it has, over the mesh, so all come to the same conclusion and the same words. Refuses a
//! world of GPUs and CPUs: where gradients are summed would be nobody's choice.

use crate::failure::Failure;
use crate::ranks::{Alone, DeviceSums, Ranks};
use collective::{Collective, CollectiveError};
use native::DeviceBuffer;
use native::nccl::{ID_BYTES, Library, Nccl, UniqueId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use tch::Device;

/// What a rank has, as it tells the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Introduction {
    /// It trains on a GPU.
    gpu: bool,
    /// Version of its NCCL.
    nccl: u32,
    /// Why it cannot sum on its GPU.
    trouble: Option<String>,
    /// The identity of the group to be formed, from rank 0.
    id: Option<Vec<u8>>,
}

impl Introduction {
    fn on_gpu(rank: u32, library: &mut Option<Library>, folders: &[PathBuf]) -> Self {
        let found = Library::load(folders).and_then(|found| {
            let id = (rank == 0).then(|| found.unique_id()).transpose()?;
            let told = Self { gpu: true, nccl: found.version(), trouble: None, id: id.map(|id| id.0.to_vec()) };
            *library = Some(found);
            Ok(told)
        });
        found.unwrap_or_else(|error| Self { gpu: true, trouble: Some(error.to_string()), ..Self::default() })
    }
}

/// Agrees with all ranks of `mesh` on where gradients are summed, and where that is on the GPUs, waits at most for `patience`
/// until all have joined. NCCL is looked for in `folders` too.
///
/// # Errors
/// [`Failure::Unsupported`], on every rank alike, for a mixed world or one with GPUs that cannot sum; and where a rank is lost.
pub fn meet(
    mut mesh: Box<dyn Collective>,
    device: Device,
    folders: &[PathBuf],
    patience: Duration,
) -> Result<Ranks, Failure> {
    match (device, mesh.world()) {
        (Device::Cuda(_), 1) => Ok(Ranks::new(mesh, Some(Box::new(Alone)), patience)),
        (Device::Cuda(gpu), _) => meet_on_gpu(mesh, gpu, folders, patience),
        // alone there is nobody to ask
        (_, 1) => Ok(Ranks::new(mesh, None, patience)),
        _ => introduce(mesh.as_mut(), &Introduction::default()).map(|_| Ranks::new(mesh, None, patience)),
    }
}

/// As [`meet`], for a rank on GPU number `gpu` of this process. Alone it is a group of NCCL's too, which only a check wants.
///
/// # Errors
/// As [`meet`].
pub fn meet_on_gpu(
    mut mesh: Box<dyn Collective>,
    gpu: usize,
    folders: &[PathBuf],
    patience: Duration,
) -> Result<Ranks, Failure> {
    let (rank, world) = (mesh.rank(), mesh.world());
    let mut library = None;
    let mine = Introduction::on_gpu(rank, &mut library, folders);
    let id = introduce(mesh.as_mut(), &mine)?;
    let (Some(id), Some(library)) = (id, library) else {
        return Err(Failure::Unsupported("rank 0 has not said which group of GPUs to join".to_owned()));
    };
    let joined = Nccl::join(&library, id, world, rank, gpu).map_err(|error| {
        mesh.aborter().abort(); // the others wait for this rank to join
        CollectiveError::Device(error.to_string())
    })?;
    let mut ranks = Ranks::new(mesh, Some(Box::new(Group(joined))), patience);
    ranks.finish()?;
    if rank == 0 {
        let found = library.found().display();
        tracing::info!("gradients are summed on the GPUs, by NCCL {} ({found})", version(library.version()));
    }
    Ok(ranks)
}

/// Tells this rank's introduction to all and hears theirs: the group to be joined, none among CPUs.
fn introduce(mesh: &mut dyn Collective, mine: &Introduction) -> Result<Option<UniqueId>, Failure> {
    let told = mesh.all_gather_bytes(&serde_json::to_vec(mine).unwrap_or_default())?;
    let heard = (0..).zip(&told).map(|(rank, bytes)| {
        serde_json::from_slice(bytes).map_err(|error| CollectiveError::Protocol {
            rank,
            what: format!("its introduction cannot be read ({error}); is it of another version?"),
        })
    });
    let all = heard.collect::<Result<Vec<Introduction>, _>>()?;
    agree(&all).map_err(Failure::Unsupported)
}

/// What follows for all from what each has.
fn agree(all: &[Introduction]) -> Result<Option<UniqueId>, String> {
    let which = |wanted: &dyn Fn(&Introduction) -> bool| {
        let ranks = (0..).zip(all).filter(|(_, one)| wanted(one)).map(|(rank, _): (u32, _)| rank.to_string());
        ranks.collect::<Vec<_>>().join(", ")
    };
    if all.iter().all(|one| !one.gpu) {
        return Ok(None);
    }
    if all.iter().any(|one| !one.gpu) {
        return Err(format!(
            "ranks {} train on GPUs and ranks {} on CPUs: give every worker a GPU, or set CUDA_VISIBLE_DEVICES= (empty) for all",
            which(&|one| one.gpu),
            which(&|one| !one.gpu),
        ));
    }
    if let Some((rank, trouble)) = (0..).zip(all).find_map(|(rank, one): (u32, _)| Some((rank, one.trouble.as_ref()?)))
    {
        return Err(format!("the GPUs cannot sum, for rank {rank} says: {trouble}"));
    }
    let (first, others) = (&all[0], which(&|one| one.nccl != all[0].nccl));
    if !others.is_empty() {
        return Err(format!(
            "NCCL is {} on rank 0 and another version on ranks {others}: versions do not mix; install the same everywhere",
            version(first.nccl),
        ));
    }
    let id = first.id.as_deref().and_then(|bytes| <[u8; ID_BYTES]>::try_from(bytes).ok());
    id.map(|id| Some(UniqueId(id))).ok_or_else(|| "rank 0 has not said which group of GPUs to join".to_owned())
}

/// As people write it: 22809 is 2.28.9.
fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

/// NCCL as what the ranks sum with.
struct Group(Nccl);

impl DeviceSums for Group {
    fn launch(&mut self, buffer: DeviceBuffer) {
        self.0.sum(buffer);
    }

    fn poll(&mut self) -> Result<usize, String> {
        self.0.poll().map_err(|error| error.to_string())
    }

    fn abort(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use collective::{Listener, Membership, Mesh};

    fn gpu(id: Option<u8>) -> Introduction {
        Introduction { gpu: true, nccl: 22_809, trouble: None, id: id.map(|byte| vec![byte; ID_BYTES]) }
    }

    #[test]
    fn a_world_of_one_kind_agrees() {
        assert_eq!(agree(&[Introduction::default(), Introduction::default()]), Ok(None));
        assert_eq!(agree(&[gpu(Some(7)), gpu(None), gpu(None)]), Ok(Some(UniqueId([7; ID_BYTES]))));
    }

    #[test]
    fn every_disagreement_names_the_ranks() {
        let refused = |all: &[Introduction]| agree(all).unwrap_err();
        let mixed = refused(&[gpu(Some(7)), Introduction::default(), gpu(None), Introduction::default()]);
        assert!(mixed.starts_with("ranks 0, 2 train on GPUs and ranks 1, 3 on CPUs: "), "{mixed}");
        let trouble = refused(&[gpu(Some(7)), Introduction { trouble: Some("no library".into()), ..gpu(None) }]);
        assert!(trouble.contains("rank 1 says: no library"), "{trouble}");
        let versions = refused(&[gpu(Some(7)), Introduction { nccl: 22_705, ..gpu(None) }]);
        assert!(versions.contains("2.28.9 on rank 0") && versions.contains("ranks 1"), "{versions}");
        assert!(refused(&[gpu(None), gpu(None)]).contains("rank 0"));
        let short = Introduction { id: Some(vec![1; 3]), ..gpu(None) };
        assert!(refused(&[short, gpu(None)]).contains("rank 0"));
    }

    #[test]
    fn a_mixed_world_is_refused_in_the_same_words_everywhere() {
        let mut listeners: Vec<_> = (0..2).map(|_| Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
        let peers: Vec<_> = listeners.iter().map(Listener::address).collect();
        let play = |rank: u32, listener: &mut Listener| {
            let membership = Membership { generation: 1, rank, peers: peers.clone(), secret: [7; 32] };
            let mut mesh = Mesh::connect(listener, membership, Duration::from_secs(20)).unwrap();
            if rank == 0 {
                introduce(&mut mesh, &gpu(Some(7))).unwrap_err().to_string()
            } else {
                meet(Box::new(mesh), Device::Cpu, &[], Duration::from_secs(20)).map(drop).unwrap_err().to_string()
            }
        };
        let play = &play;
        let words: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..).zip(&mut listeners).map(|(rank, l)| scope.spawn(move || play(rank, l))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(words[0].starts_with("ranks 0 train on GPUs and ranks 1 on CPUs"), "{words:?}");
        assert_eq!(words[0], words[1]);
    }
}
