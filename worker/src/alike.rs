//! What all ranks must have alike before they train together: the store, the images and, for bit-exact runs, the arithmetic.
//!
//! Workers of one machine do; workers that came from others may not, and would train on other images, or store what nobody
//! finds, without a word. Every rank tells every other what it has, so all refuse in the same words. Mends nothing.

use crate::failure::Failure;
use crate::ranks::Ranks;
use collective::CollectiveError;
use common::checkpoint::Dataset;
use common::config::resolved::{Determinism, RunConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use storage::{Run, StorageError};

/// The configuration that the coordinator has put into the run, and the most that is read of it.
const CONFIG: &str = "config.json";
const CONFIG_BYTES: u64 = 1 << 20;

/// What one rank has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Holding {
    dataset: Dataset,
    features: String,
    facts: BTreeMap<String, String>,
}

/// Makes sure that this worker's store is the one in which the coordinator keeps the run.
///
/// # Errors
/// It holds no run of this name, or another one.
pub async fn same_store(run: &Run, config: &RunConfig) -> Result<(), Failure> {
    let other = |what: &str| {
        Failure::OtherStore(format!(
            "{} {what}: this worker sees another store than the coordinator. All need one, such as s3:// or a folder that all \
             hosts share",
            run.url()
        ))
    };
    let bytes = match run.get_file(CONFIG, CONFIG_BYTES).await {
        Err(StorageError::NotFound { .. }) => return Err(other("holds no such run")),
        other => other?,
    };
    match serde_json::from_slice::<RunConfig>(&bytes) {
        Ok(found) if found == *config => Ok(()),
        _ => Err(other("holds another run of this name")),
    }
}

/// Waits until all ranks have their images, and compares what they have.
///
/// # Errors
/// On every rank alike where one differs from rank 0; and where a rank is lost.
pub fn agree(
    ranks: &mut Ranks,
    config: &RunConfig,
    dataset: &Dataset,
    features: &str,
    facts: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let mine = Holding { dataset: dataset.clone(), features: features.to_owned(), facts: facts.clone() };
    let told = ranks.together(|mesh| mesh.all_gather_bytes(&serde_json::to_vec(&mine).unwrap_or_default()))?;
    let heard = (0..).zip(&told).map(|(rank, bytes)| {
        let other = |error| format!("what it has cannot be read ({error}); is it of another version?");
        serde_json::from_slice(bytes).map_err(|error| CollectiveError::Protocol { rank, what: other(error) })
    });
    judge(&heard.collect::<Result<Vec<Holding>, _>>()?, config.train.determinism)
}

/// Refuses a world in which a rank has something else than rank 0.
fn judge(all: &[Holding], determinism: Determinism) -> Result<(), Failure> {
    let Some(first) = all.first() else { return Ok(()) };
    for (rank, other) in all.iter().enumerate() {
        let (ours, theirs) = (&first.dataset, &other.dataset);
        if ours.fingerprint != theirs.fingerprint {
            return Err(Failure::OtherImages(format!(
                "rank {rank} has other training images than rank 0 ({} images, fingerprint {}; rank 0: {} images, {}): give every \
                 host the same",
                theirs.images, theirs.fingerprint, ours.images, ours.fingerprint
            )));
        }
        if first.features != other.features {
            return Err(Failure::Unsupported(format!(
                "rank {rank} compares features of the network \"{}\", rank 0 those of \"{}\": give every host the same metrics.features",
                other.features, first.features
            )));
        }
        let differing = first.facts.iter().find(|(name, value)| other.facts.get(*name) != Some(value));
        if let (Determinism::Bitwise, Some((name, value))) = (determinism, differing) {
            let theirs = other.facts.get(name).map_or("unknown", String::as_str);
            return Err(Failure::Unsupported(format!(
                "train.determinism = \"bitwise\" needs the same arithmetic everywhere, but {name} is {value} on rank 0 and {theirs} \
                 on rank {rank}: use like machines (and say train.threads), or \"fast\""
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(fingerprint: &str, threads: u32) -> Holding {
        let facts =
            BTreeMap::from([("isa".to_owned(), "avx2".to_owned()), ("threads".to_owned(), threads.to_string())]);
        Holding { dataset: Dataset { fingerprint: fingerprint.to_owned(), images: 3 }, features: String::new(), facts }
    }

    #[test]
    fn other_images_are_refused_always_and_other_arithmetic_where_bits_count() {
        use Determinism::{Bitwise, Fast};
        let alike = [holding("a", 2), holding("a", 2), holding("a", 2)];
        assert!(judge(&alike, Bitwise).is_ok() && judge(&[], Bitwise).is_ok());
        let images = judge(&[holding("a", 2), holding("a", 2), holding("b", 2)], Fast).unwrap_err();
        assert_eq!(images.exit(), common::exit::Exit::Data);
        assert!(images.to_string().contains("rank 2 has other training images"), "{images}");
        let other = Holding { features: "net 1234".to_owned(), ..holding("a", 2) };
        let features = judge(&[holding("a", 2), other], Fast).unwrap_err();
        assert!(features.to_string().contains("rank 1 compares features of the network \"net 1234\""), "{features}");
        let mixed = [holding("a", 2), holding("a", 4)];
        assert!(judge(&mixed, Fast).is_ok());
        let threads = judge(&mixed, Bitwise).unwrap_err();
        assert!(threads.to_string().contains("threads is 2 on rank 0 and 4 on rank 1"), "{threads}");
    }
}
