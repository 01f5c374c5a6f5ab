//! Finding the checkpoint to go on from.

use crate::error::StorageError;
use crate::run::Run;
use crate::verify::Verifier;
use common::checkpoint::{MAX_MANIFEST_BYTES, Manifest, ManifestKey};
use common::ids::Generation;

/// The newest checkpoint that can be restored, and the newer ones that cannot.
#[derive(Clone, Debug, PartialEq)]
pub struct Newest {
    /// `None` where no checkpoint can be restored.
    pub manifest: Option<Manifest>,
    /// Newer ones that were passed over, newest first.
    pub skipped: Vec<Skipped>,
}

/// A checkpoint that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Which.
    pub key: ManifestKey,
    /// What is wrong with it.
    pub why: String,
}

impl Run {
    /// Names of its checkpoints, newest first. Other objects beside them are passed over.
    ///
    /// # Errors
    /// [`StorageError`] when the store cannot be listed.
    pub async fn manifests(&self) -> Result<Vec<ManifestKey>, StorageError> {
        let folder = ManifestKey::FOLDER;
        let listed = self.store.list(&self.path(folder.trim_end_matches('/'))).await?;
        let names = listed.iter().filter_map(|meta| meta.location.filename());
        let mut keys: Vec<ManifestKey> = names.filter_map(|name| format!("{folder}{name}").parse().ok()).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        Ok(keys)
    }

    /// A generation that no checkpoint of this run has yet: where a resumed run goes on counting.
    ///
    /// # Errors
    /// [`StorageError`] when the store cannot be listed.
    pub async fn next_generation(&self) -> Result<Generation, StorageError> {
        let newest = self.manifests().await?.into_iter().map(|key| key.generation.0).max();
        Ok(Generation(newest.map_or(1, |generation| generation.saturating_add(1))))
    }

    /// Reads one manifest and checks it, also against its name.
    ///
    /// # Errors
    /// [`StorageError`]; [`StorageError::is_damage`] tells whether another checkpoint may do.
    pub async fn load(&self, key: ManifestKey) -> Result<Manifest, StorageError> {
        let path = self.path(&key.to_string());
        let bytes = self.store.get(&path, MAX_MANIFEST_BYTES as u64).await?;
        let manifest = Manifest::from_json(&bytes).map_err(|source| StorageError::Manifest { key, source })?;
        if manifest.key() != key {
            let (expected, found) = (key.to_string(), manifest.key().to_string());
            return Err(StorageError::Corrupt { what: self.store.name_of(&path), expected, found });
        }
        Ok(manifest)
    }

    /// The newest checkpoint whose parts are all there with the right size; `deep`: all read and hashed.
    ///
    /// # Errors
    /// The store's trouble, or a manifest of another format. Neither is passed over: going on from an older checkpoint
    /// because the network is down, or the program too old, would throw work away.
    pub async fn newest_good(&self, deep: bool) -> Result<Newest, StorageError> {
        let mut skipped = Vec::new();
        let mut verifier = Verifier::new(self.clone());
        for key in self.manifests().await? {
            let why = match self.load(key).await {
                Ok(manifest) => {
                    let damage: Vec<String> = if deep {
                        verifier.check(&manifest).await?.iter().map(ToString::to_string).collect()
                    } else {
                        self.missing_parts(&manifest).await?
                    };
                    if damage.is_empty() {
                        return Ok(Newest { manifest: Some(manifest), skipped });
                    }
                    damage.join("; ")
                }
                Err(error) if error.is_damage() => error.to_string(),
                Err(error) => return Err(error),
            };
            tracing::warn!(%key, %why, "checkpoint passed over");
            skipped.push(Skipped { key, why });
        }
        Ok(Newest { manifest: None, skipped })
    }
}
