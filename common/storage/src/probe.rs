//! What this store honours, found out with scratch objects before it is trusted.

use crate::error::{StorageError, detail};
use crate::retry::{Class, classify};
use crate::run::{Run, fresh_nonce};
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::fmt;
use std::time::SystemTime;
use tokio::time::timeout;

/// What a store was found to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// A create-only write of an existing name is refused. Without it two writers of one checkpoint both believe that
    /// they won; what is visible is complete all the same.
    pub create_only_honoured: bool,
    /// What was written is read back at once, byte for byte.
    pub read_back: bool,
    /// A part of an object can be read.
    pub ranged_get: bool,
    /// What was written is in the next listing.
    pub listed: bool,
    /// What was deleted is gone at once.
    pub deleted: bool,
    /// When it was written, by the store's clock.
    pub written_at: Option<SystemTime>,
}

impl Findings {
    /// Whether checkpoints can be kept there at all.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.read_back && self.listed
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacks = [
            (
                self.create_only_honoured,
                "create-only writes (it overwrites: let only one coordinator write to this run)",
            ),
            (self.read_back, "reading back what was written"),
            (self.ranged_get, "reading a part of an object"),
            (self.listed, "listing what was written"),
            (self.deleted, "deleting"),
        ];
        let lacks: Vec<&str> = lacks.iter().filter(|(honoured, _)| !honoured).map(|(_, what)| *what).collect();
        if lacks.is_empty() {
            write!(f, "honours everything")
        } else {
            write!(f, "does not honour: {}", lacks.join("; "))
        }
    }
}

impl Run {
    /// Tries the store out with an object of its own, and deletes it.
    ///
    /// # Errors
    /// [`StorageError`] when the store cannot be reached or refuses to be written.
    pub async fn probe(&self) -> Result<Findings, StorageError> {
        let path = self.path(&format!("probe/{}", fresh_nonce()?));
        let findings = self.try_out(&path).await;
        let cleaned = self.store.delete(&path).await;
        let mut findings = findings?;
        cleaned?;
        findings.deleted = matches!(self.store.head(&path).await, Err(StorageError::NotFound { .. }));
        Ok(findings)
    }

    async fn try_out(&self, path: &Path) -> Result<Findings, StorageError> {
        const FIRST: &[u8] = b"first writer";
        const SECOND: &[u8] = b"second writer";
        let store = &self.store;
        let kind = "application/octet-stream";
        // A plain put first: its failures are told with advice, and after it the name exists for certain.
        store.put(path, Bytes::from_static(FIRST), kind).await?;
        let mut findings = Findings { read_back: store.get(path, 64).await? == FIRST, ..Findings::default() };
        // Asked once: a store without this answers with the whole object, which is an error like any other.
        let range = timeout(store.patience.attempt, store.inner.get_range(path, 6..12)).await;
        findings.ranged_get = matches!(range, Ok(Ok(bytes)) if bytes == FIRST[6..12]);
        let listed = store.list(&self.path("probe")).await?;
        let listed = listed.iter().find(|meta| &meta.location == path);
        (findings.listed, findings.written_at) = (listed.is_some(), listed.map(|meta| meta.last_modified.into()));
        findings.create_only_honoured = match store.create_once(path, Bytes::from_static(SECOND), kind).await {
            Ok(()) => false,
            Err(error) => match classify(&error) {
                Class::Exists => store.get(path, 64).await? == FIRST,
                Class::Never => false,
                class => {
                    tracing::debug!(?class, error = %detail(&error), "the second create-only write failed otherwise");
                    false
                }
            },
        };
        Ok(findings)
    }
}
