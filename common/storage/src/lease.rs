//! Who coordinates a run: numbered create-only objects in its root, `control/<epoch>.json`, each the lease of one coordinator.
//!
//! The highest number holds the run, and nothing ever lowers it: whoever sees a higher one than its own has been replaced.
//! A number is taken as a checkpoint is committed: created, then read back, whatever the store answered. Beside its lease
//! a holder renews one more object, its pulse: a sign of life, with what a successor on another machine has to know. Ages are
//! nobody's business here: clocks of two machines need not agree. Whoever wants to know whether a holder lives watches its
//! pulse with its own clock.

use crate::error::StorageError;
use crate::retry::{Class, Tries, classify, failure};
use crate::run::Run;
use bytes::Bytes;
use object_store::path::Path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const FOLDER: &str = "control";
/// Largest lease or pulse.
const BYTES_MAX: u64 = 4 << 20;

/// What a coordinator says of itself when it takes a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number.
    pub epoch: u64,
    /// From [`crate::fresh_nonce`]: tells two that took the same number apart.
    pub nonce: String,
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Where it listens.
    pub address: String,
    /// Seconds since 1970-01-01 UTC by its clock: for people.
    pub started: u64,
    /// Milliseconds from one pulse to the next.
    pub pulse_ms: u64,
}

/// A holder's sign of life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pulse {
    /// As in its lease.
    pub epoch: u64,
    /// As in its lease.
    pub nonce: String,
    /// Grows with each.
    pub count: u64,
    /// The run is over, or was given back: nobody holds it.
    pub over: bool,
    /// What a successor has to know; the holder's business.
    pub state: serde_json::Value,
}

/// Why a number was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else has it.
    #[error("another coordinator, epoch {} on {}, was faster", .0.epoch, .0.host)]
    Taken(Box<Lease>),
    /// The store failed. Whether the number is taken is unknown.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Run {
    fn lease_path(&self, epoch: u64) -> Path {
        self.path(&format!("{FOLDER}/{epoch:06}.json"))
    }

    fn pulse_path(&self, epoch: u64) -> Path {
        self.path(&format!("{FOLDER}/{epoch:06}-pulse.json"))
    }

    /// The lease with the highest number: who coordinates this run, or did last.
    ///
    /// # Errors
    /// [`StorageError`]; a lease that cannot be read is [`StorageError::Corrupt`], for it must not be passed over.
    pub async fn lease(&self) -> Result<Option<Lease>, StorageError> {
        let listed = self.store.list(&self.path(FOLDER)).await?;
        let number = |name: &str| name.strip_suffix(".json")?.parse::<u64>().ok();
        let highest = listed.iter().filter_map(|meta| number(meta.location.filename()?)).max();
        match highest {
            Some(epoch) => self.small(&self.lease_path(epoch)).await,
            None => Ok(None),
        }
    }

    /// Takes the number of `lease`, which must be higher than any that is taken.
    ///
    /// # Errors
    /// [`LeaseError`], which says who has it.
    pub async fn claim(&self, lease: &Lease) -> Result<(), LeaseError> {
        let path = self.lease_path(lease.epoch);
        let what = self.store.name_of(&path);
        let bytes = json(&what, lease)?;
        let mut tries = Tries::new(&self.store.patience, bytes.len() as u64);
        loop {
            let answer = tries.attempt(self.store.create_once(&path, bytes.clone(), "application/json")).await;
            if let Err(error) = &answer {
                match classify(error) {
                    Class::Exists | Class::Again => tracing::debug!(%what, %error, "the claim's answer is in doubt"),
                    class => return Err(failure(class, &what, error).into()),
                }
            }
            match self.small::<Lease>(&path).await? {
                Some(found) if found == *lease => return Ok(()),
                Some(found) => return Err(LeaseError::Taken(Box::new(found))),
                None => {}
            }
            if !tries.pause().await {
                return Err(tries.exhausted(&what).into());
            }
        }
    }

    /// The last sign of life of the coordinator with this number.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn pulse(&self, epoch: u64) -> Result<Option<Pulse>, StorageError> {
        self.small(&self.pulse_path(epoch)).await
    }

    /// Gives a sign of life. Only the holder of its number does.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn give_pulse(&self, pulse: &Pulse) -> Result<(), StorageError> {
        let path = self.pulse_path(pulse.epoch);
        let bytes = json(&self.store.name_of(&path), pulse)?;
        self.store.put(&path, bytes, "application/json").await
    }

    async fn small<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, StorageError> {
        let bytes = match self.store.get(path, BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(StorageError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| StorageError::Corrupt {
            what: self.store.name_of(path),
            expected: "a coordinator's lease or pulse".into(),
            found: error.to_string(),
        })
    }
}

fn json(what: &str, value: &impl Serialize) -> Result<Bytes, StorageError> {
    let refused = |detail: String| StorageError::Refused { what: what.to_owned(), detail };
    let bytes = serde_json::to_vec(value).map_err(|error| refused(error.to_string()))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(StorageError::TooLarge { what: what.to_owned(), bytes: bytes.len() as u64, limit: BYTES_MAX });
    }
    Ok(bytes.into())
}
