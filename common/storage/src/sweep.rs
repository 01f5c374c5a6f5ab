//! Deleting what nobody needs: superseded checkpoints first, then blobs that no checkpoint names.
//!
//! Only the one writer of a run may sweep, and never while it saves a checkpoint. A blob younger than the grace period is
//! left alone, so one that another process has just stored survives. When anything about what is kept cannot be known, no
//! blob is deleted: a sweep that did too little is repaired by the next one.

use crate::error::StorageError;
use crate::run::{Run, blocking};
use common::checkpoint::{
    BlobEntry, Candidate, Decision, DeleteReason, Digest, Manifest, ManifestKey, Policy, Verdict, retain, sweepable,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Each checkpoint's fate, newest first.
    pub decisions: Vec<Decision>,
    /// Blobs that were deleted.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why no blob was looked at, if so.
    pub held_back: Option<String>,
}

impl Run {
    /// Applies `policy`. `pinned`: checkpoints in use (resumed from, or the parent whose blobs a save shares).
    ///
    /// `now` is this machine's clock; where the store's clock is behind it, the store's counts.
    ///
    /// # Errors
    /// [`StorageError`] of the first request that failed; what was deleted until then stays deleted, and the run is sound.
    pub async fn sweep(
        &self,
        policy: &Policy,
        pinned: &BTreeSet<ManifestKey>,
        now: SystemTime,
    ) -> Result<Swept, StorageError> {
        let keys = self.manifests().await?;
        let loaded = self.load_all(&keys).await?;
        let blobs = self.list_blobs(now).await?;
        let sizes: HashMap<Digest, u64> = blobs.iter().map(|blob| (blob.hash, blob.bytes)).collect();
        let restorable = |key: &ManifestKey| {
            let manifest = loaded.get(key).and_then(Option::as_ref);
            manifest.is_some_and(|m| m.parts.iter().all(|part| sizes.get(&part.blob.hash) == Some(&part.blob.bytes)))
        };
        let judgement = |key: &ManifestKey| {
            loaded.get(key).and_then(Option::as_ref).map(|m| m.cursor.judgement.clone()).unwrap_or_default()
        };
        let candidate =
            |key: &ManifestKey| Candidate { key: *key, restorable: restorable(key), judgement: judgement(key) };
        let candidates: Vec<Candidate> = keys.iter().map(candidate).collect();
        let mut swept = Swept { decisions: retain(&candidates, policy, pinned), ..Swept::default() };

        for decision in &swept.decisions {
            if let Verdict::Delete(reason) = decision.verdict {
                let damaged = reason == DeleteReason::Damaged;
                tracing::info!(key = %decision.key, damaged, "checkpoint deleted");
                self.store.delete(&self.path(&decision.key.to_string())).await?;
            }
        }
        let kept = swept.decisions.iter().filter(|d| matches!(d.verdict, Verdict::Keep(_))).map(|d| d.key);
        let mut manifests: Vec<&Manifest> = Vec::new();
        for key in kept {
            match loaded.get(&key).and_then(Option::as_ref) {
                Some(manifest) => manifests.push(manifest),
                None => {
                    swept.held_back = Some(format!("{key} cannot be read, so what it names is not known"));
                    return Ok(swept);
                }
            }
        }
        for blob in sweepable(&blobs, manifests, policy.grace) {
            self.store.delete(&self.blob_path(blob.hash)).await?;
            swept.blobs += 1;
            swept.bytes += blob.bytes;
        }
        self.sweep_unfinished(policy.grace, now).await?;
        Ok(swept)
    }

    /// Each manifest, or `None` for one that cannot be used. Trouble of the store is an error.
    async fn load_all(&self, keys: &[ManifestKey]) -> Result<BTreeMap<ManifestKey, Option<Manifest>>, StorageError> {
        let mut loaded = BTreeMap::new();
        for &key in keys {
            let manifest = match self.load(key).await {
                Ok(manifest) => Some(manifest),
                Err(error) if error.is_damage() => None,
                Err(error) => return Err(error),
            };
            loaded.insert(key, manifest);
        }
        Ok(loaded)
    }

    async fn list_blobs(&self, now: SystemTime) -> Result<Vec<BlobEntry>, StorageError> {
        let listed = self.store.list(&self.path("blobs")).await?;
        // Ages by one clock: the newest object stands for the store's "now" where that is earlier than ours.
        let newest = listed.iter().map(|meta| SystemTime::from(meta.last_modified)).max().unwrap_or(now);
        let now = now.min(newest);
        let entry = |meta: &object_store::ObjectMeta| {
            let hash = meta.location.filename()?.strip_suffix(".safetensors")?.parse().ok()?;
            let age = now.duration_since(meta.last_modified.into()).unwrap_or(Duration::ZERO);
            Some(BlobEntry { hash, bytes: meta.size, age })
        };
        Ok(listed.iter().filter_map(entry).collect())
    }

    /// A killed process leaves the files it was writing (`name#1`) in a local store, hidden from its listings. Unfinished
    /// uploads to a bucket cannot be seen from here: the bucket's life-cycle rule ends them.
    async fn sweep_unfinished(&self, grace: Duration, now: SystemTime) -> Result<(), StorageError> {
        let Some(root) = self.store.folder() else { return Ok(()) };
        let folders: Vec<PathBuf> =
            ["blobs", "manifests"].iter().map(|name| root.join(self.name()).join(name)).collect();
        blocking(move || {
            for entry in folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
                let unfinished = entry
                    .file_name()
                    .to_string_lossy()
                    .rsplit_once('#')
                    .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()));
                let old = entry
                    .metadata()
                    .and_then(|m| m.modified())
                    .is_ok_and(|written| now.duration_since(written).is_ok_and(|age| age > grace));
                if unfinished && old && std::fs::remove_file(entry.path()).is_ok() {
                    tracing::info!(file = %entry.path().display(), "unfinished file of a dead writer deleted");
                }
            }
        })
        .await
    }
}
