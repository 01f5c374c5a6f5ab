//! One run in a store: its blobs and its files.

use crate::error::StorageError;
use crate::source::Source;
use crate::store::Store;
use bytes::Bytes;
use common::checkpoint::{BlobRef, Digest, Manifest, is_run_name};
use object_store::path::Path;

/// Largest blob. One part of a checkpoint is one blob, and is held in memory whole.
pub const MAX_BLOB_BYTES: u64 = 16 << 30;
/// How often damaged bytes are read again: nothing protects a GET on the wire but our own digest.
const READS: u32 = 3;

/// A run: a folder below the root. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Run {
    pub(crate) store: Store,
    name: String,
}

/// A blob that is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How a manifest names it.
    pub blob: BlobRef,
    /// Whether its bytes were sent; not where the parent checkpoint has it.
    pub sent: bool,
}

/// What a file of a run is, for stores that tell a browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// An image.
    Png,
    /// One JSON document.
    Json,
    /// One JSON document per line.
    JsonLines,
    /// Configuration.
    Toml,
    /// A log.
    Text,
}

impl Content {
    fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Json => "application/json",
            Self::JsonLines => "application/jsonl",
            Self::Toml => "application/toml",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

impl Store {
    /// The run of that name, which need not exist yet.
    ///
    /// # Errors
    /// [`StorageError::BadUrl`] when a run cannot be called so.
    pub fn run(&self, name: &str) -> Result<Run, StorageError> {
        if !is_run_name(name) {
            let why = "a run's name is [a-z0-9._-], at most 64, without a leading dot".into();
            return Err(StorageError::BadUrl { url: format!("{}/{}", self.url(), name.escape_debug()), why });
        }
        Ok(Run { store: self.clone(), name: name.to_owned() })
    }
}

impl Run {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL, which holds no secret.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/{}", self.store.url(), self.name)
    }

    /// The store that it is in.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn path(&self, relative: &str) -> Path {
        self.store.path(&format!("{}/{relative}", self.name))
    }

    pub(crate) fn blob_path(&self, hash: Digest) -> Path {
        self.path(&format!("blobs/{hash}.safetensors"))
    }

    /// Stores `bytes` under their digest. They are not sent where `parent` names them.
    ///
    /// `parent` must be a checkpoint that no sweep deletes meanwhile (a pinned one). A blob that merely happens to be in
    /// the store is sent again: it may be an orphan that is about to be swept.
    ///
    /// # Errors
    /// [`StorageError`]; nothing is visible of a blob that was not stored whole.
    pub async fn put_blob(&self, bytes: Bytes, parent: Option<&Manifest>) -> Result<Stored, StorageError> {
        let size = bytes.len() as u64;
        if size > MAX_BLOB_BYTES {
            let what = format!("a part for {}", self.url());
            return Err(StorageError::TooLarge { what, bytes: size, limit: MAX_BLOB_BYTES });
        }
        let blob = BlobRef { hash: self.digest(&bytes).await?, bytes: size };
        let known = parent.is_some_and(|manifest| manifest.parts.iter().any(|part| part.blob == blob));
        if !known {
            self.store.put(&self.blob_path(blob.hash), bytes, "application/octet-stream").await?;
        }
        Ok(Stored { blob, sent: !known })
    }

    /// Reads a blob and checks its size and digest.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] when it is not what the manifest names, [`StorageError::NotFound`], or the store's trouble.
    pub async fn get_blob(&self, blob: &BlobRef) -> Result<Bytes, StorageError> {
        let path = self.blob_path(blob.hash);
        let what = self.store.name_of(&path);
        if blob.bytes > MAX_BLOB_BYTES {
            return Err(StorageError::TooLarge { what, bytes: blob.bytes, limit: MAX_BLOB_BYTES });
        }
        let mut reads = 1;
        loop {
            let damage = match self.store.get(&path, blob.bytes).await {
                Ok(bytes) if bytes.len() as u64 != blob.bytes => StorageError::Corrupt {
                    what: what.clone(),
                    expected: format!("{} bytes", blob.bytes),
                    found: format!("{} bytes", bytes.len()),
                },
                Ok(bytes) => match self.digest(&bytes).await? {
                    found if found == blob.hash => return Ok(bytes),
                    found => StorageError::Corrupt {
                        what: what.clone(),
                        expected: format!("BLAKE3 {}", blob.hash),
                        found: found.to_string(),
                    },
                },
                Err(StorageError::TooLarge { bytes, .. }) => StorageError::Corrupt {
                    what: what.clone(),
                    expected: format!("{} bytes", blob.bytes),
                    found: format!("{bytes} bytes"),
                },
                Err(error @ StorageError::Corrupt { .. }) => error,
                Err(error) => return Err(error),
            };
            if reads == READS {
                return Err(damage);
            }
            tracing::warn!(%damage, reads, "read damaged bytes; reading again");
            reads += 1;
        }
    }

    /// Stores a file of the run, whatever was there: `samples/fakes000000.png`, `metrics.jsonl`, `log.txt`, `config.toml`.
    ///
    /// # Errors
    /// [`StorageError`], for a name that is not `[A-Za-z0-9/_.=-]` too.
    pub async fn put_file(&self, name: &str, bytes: Bytes, content: Content) -> Result<(), StorageError> {
        self.store.put(&self.file_path(name)?, bytes, content.media_type()).await
    }

    /// The same from a file of this machine, read while it is sent: little of it is ever in memory. What is appended
    /// meanwhile is left out.
    ///
    /// # Errors
    /// As [`Run::put_file`], and where the file cannot be read.
    pub async fn put_file_from(
        &self,
        name: &str,
        file: &std::path::Path,
        content: Content,
    ) -> Result<(), StorageError> {
        let (path, source) = (self.file_path(name)?, Source::open(file).await?);
        self.store.put(&path, source, content.media_type()).await
    }

    /// Reads a file of the run of at most `limit` bytes.
    ///
    /// # Errors
    /// [`StorageError`]; [`StorageError::NotFound`] where there is none.
    pub async fn get_file(&self, name: &str, limit: u64) -> Result<Bytes, StorageError> {
        self.store.get(&self.file_path(name)?, limit).await
    }

    fn file_path(&self, name: &str) -> Result<Path, StorageError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.=-".contains(c);
        let part = |p: &str| !p.is_empty() && !p.starts_with('.') && p.chars().all(plain);
        let ours = ["manifests/", "blobs/", "control/"].iter().any(|folder| name.starts_with(folder));
        if ours || name.len() > 512 || !name.split('/').all(part) {
            let why = "not the name of a file of a run".into();
            return Err(StorageError::BadUrl { url: format!("{}/{}", self.url(), name.escape_debug()), why });
        }
        Ok(self.path(name))
    }

    /// The digest of `bytes`, computed where it holds up no other task.
    async fn digest(&self, bytes: &Bytes) -> Result<Digest, StorageError> {
        let bytes = bytes.clone();
        blocking(move || Digest::of(&bytes)).await
    }
}

/// Runs `work` on a thread for such work.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StorageError::Refused {
        what: "a computation on this machine".into(),
        detail: error.to_string(),
    })
}

/// A number that no other writer draws, as 32 hexadecimal digits: the nonce of a commit, the name of a scratch object.
///
/// # Errors
/// [`StorageError::Refused`] when the operating system has no random numbers.
pub fn fresh_nonce() -> Result<String, StorageError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StorageError::Refused {
        what: "a random number from the operating system".into(),
        detail: error.to_string(),
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
