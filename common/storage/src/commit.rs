//! The commit: one small create-only put that makes a checkpoint visible, and what to believe afterwards.
//!
//! A store's answer to that put cannot be taken at its word. "Already exists" may mean that our own put succeeded and its
//! acknowledgement was lost; a time-out may mean either; "created" from a store that ignores create-only writes says
//! nothing about who wrote before or after. So the manifest carries a nonce, and after every answer it is read back: ours
//! is there - we won; somebody else's - we lost; nothing - the same bytes are put again. A manifest is one object that is
//! written whole and names its blobs by digest, so even where two writers both believe that they won, what is visible is
//! one complete checkpoint, never a mixture.

use crate::error::StorageError;
use crate::retry::{Class, Tries, classify, failure};
use crate::run::Run;
use bytes::Bytes;
use common::checkpoint::{BlobRef, MAX_MANIFEST_BYTES, Manifest, ManifestError, ManifestKey};
use futures::{StreamExt, TryStreamExt};

/// Requests for the size of a blob at once.
const HEADS_AT_ONCE: usize = 16;

/// A checkpoint that is visible, and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its name.
    pub key: ManifestKey,
    /// Puts that were needed.
    pub tries: u32,
}

/// Why a checkpoint is not ours, or not known to be visible.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another writer has committed this name. Its checkpoint is complete; this one is not visible.
    #[error("{key} was committed by '{winner}': another writer is at work in this run. This worker must stop writing")]
    Lost {
        /// The name.
        key: ManifestKey,
        /// The other writer's id.
        winner: String,
    },
    /// A part is not in the store as the manifest says. Nothing was committed.
    #[error("{key} was not committed: {}", damage.join("; "))]
    Incomplete {
        /// The name.
        key: ManifestKey,
        /// Each part that is missing or of another size.
        damage: Vec<String>,
    },
    /// The manifest could not be read back by anybody. Nothing was committed.
    #[error("the checkpoint was not committed: {0}")]
    Invalid(#[from] ManifestError),
    /// The store failed. Whether the checkpoint is visible is unknown; it is complete if it is.
    #[error("whether {key} was committed is unknown: {source}")]
    Unknown {
        /// The name.
        key: ManifestKey,
        /// The trouble.
        #[source]
        source: StorageError,
    },
    /// The store failed before anything was committed.
    #[error("the checkpoint was not committed: {0}")]
    Storage(#[from] StorageError),
}

impl Run {
    /// Makes a checkpoint visible, after checking that every part is there.
    ///
    /// Its blobs must have been stored by [`Run::put_blob`], by whichever process; `nonce` must come from
    /// [`crate::fresh_nonce`] and never be used again. One rank commits, the others only store blobs.
    ///
    /// # Errors
    /// [`CommitError`], which says what is visible.
    pub async fn commit(&self, manifest: &Manifest) -> Result<Committed, CommitError> {
        if manifest.run != self.name() {
            let why = format!("it belongs to the run '{}', not '{}'", manifest.run, self.name());
            return Err(ManifestError::Invalid(why).into());
        }
        let key = manifest.key();
        let bytes = Bytes::from(manifest.to_json()?);
        let damage = self.missing_parts(manifest).await?;
        if !damage.is_empty() {
            return Err(CommitError::Incomplete { key, damage });
        }
        let path = self.path(&key.to_string());
        let what = self.store.name_of(&path);
        let mut tries = Tries::new(&self.store.patience, bytes.len() as u64);
        loop {
            let answer = tries.attempt(self.store.create_once(&path, bytes.clone(), "application/json")).await;
            if let Err(error) = &answer {
                let class = classify(error);
                match class {
                    Class::Exists | Class::Again => tracing::debug!(%key, %error, "the commit's answer is in doubt"),
                    // The bucket is missing, we may not write, or the disk is full. Reading back would not tell more.
                    Class::Missing | Class::Denied | Class::Never => return Err(failure(class, &what, error).into()),
                }
            }
            match self.store.get(&path, MAX_MANIFEST_BYTES as u64).await {
                Ok(found) if found == bytes => return Ok(Committed { key, tries: tries.made() }),
                Ok(found) => return Err(self.lost(manifest, &found)),
                Err(StorageError::NotFound { .. }) => {}
                Err(source) => return Err(CommitError::Unknown { key, source }),
            }
            if !tries.pause().await {
                return Err(CommitError::Unknown { key, source: tries.exhausted(&what) });
            }
        }
    }

    /// What it means that other bytes than ours are there.
    fn lost(&self, ours: &Manifest, found: &[u8]) -> CommitError {
        let key = ours.key();
        match Manifest::from_json(found) {
            Ok(theirs) if theirs.nonce == ours.nonce => {
                // Ours, but not as it was sent: the store or the wire altered it.
                let expected = "the manifest that was written".into();
                let found = "another document with its nonce".into();
                StorageError::Corrupt { what: key.to_string(), expected, found }.into()
            }
            Ok(theirs) => CommitError::Lost { key, winner: theirs.writer },
            Err(source) => StorageError::Manifest { key, source }.into(),
        }
    }

    /// Each part whose blob is missing or has another size, in words. Asks for sizes only.
    pub(crate) async fn missing_parts(&self, manifest: &Manifest) -> Result<Vec<String>, StorageError> {
        let checks = futures::stream::iter(manifest.blobs()).map(|blob| async move {
            let fault = self.blob_fault(blob).await?;
            Ok::<_, StorageError>((blob, fault))
        });
        let mut checks = checks.buffered(HEADS_AT_ONCE);
        let mut damage = Vec::new();
        while let Some((blob, fault)) = checks.try_next().await? {
            let Some(fault) = fault else { continue };
            let parts = manifest.parts.iter().filter(|part| part.blob.hash == blob.hash);
            damage.extend(parts.map(|part| format!("part '{}': {fault}", part.name)));
        }
        Ok(damage)
    }

    async fn blob_fault(&self, blob: BlobRef) -> Result<Option<String>, StorageError> {
        let path = self.blob_path(blob.hash);
        match self.store.head(&path).await {
            Ok(meta) if meta.size == blob.bytes => Ok(None),
            Ok(meta) => {
                Ok(Some(format!("{} has {} bytes instead of {}", self.store.name_of(&path), meta.size, blob.bytes)))
            }
            Err(StorageError::NotFound { .. }) => Ok(Some(format!("{} is missing", self.store.name_of(&path)))),
            Err(error) => Err(error),
        }
    }
}
