//! Single objects: bounded, retried, deadlined reads and writes below one root.

use crate::error::StorageError;
use crate::location::Root;
use crate::open;
use crate::retry::{Class, Patience, Tries, classify, failure, persist};
use crate::source::Source;
use bytes::Bytes;
use common::config::resolved::S3;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};
use object_store::{
    Attribute, Attributes, Error, GetOptions, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload,
};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Most objects that a listing may return.
const MAX_LISTED: usize = 1 << 20;
/// For cleaning up after a failed upload.
const ABORT_DEADLINE: Duration = Duration::from_secs(5);

/// A root of runs. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<dyn ObjectStore>,
    base: Path,
    display: Arc<str>,
    folder: Option<Arc<PathBuf>>,
    pub(crate) patience: Patience,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.display).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the root at `url` for writing; a local folder is made where it is missing. Uses no network.
    ///
    /// # Errors
    /// [`StorageError::BadUrl`], [`StorageError::BadSetting`], [`StorageError::NoCredentials`], or a folder that cannot be made.
    pub fn open(url: &str, s3: &S3) -> Result<Self, StorageError> {
        Self::open_root(&Root::parse(url)?, s3, &open::environment(), true)
    }

    /// The same for reading: a local folder that does not exist is an error, and is not made.
    ///
    /// # Errors
    /// As [`Store::open`], and [`StorageError::NotFound`].
    pub fn open_existing(url: &str, s3: &S3) -> Result<Self, StorageError> {
        Self::open_root(&Root::parse(url)?, s3, &open::environment(), false)
    }

    /// [`Store::open`] with another environment than the process's, which a test must not change.
    ///
    /// # Errors
    /// As [`Store::open`].
    #[cfg(feature = "testing")]
    pub fn open_with(
        url: &str,
        s3: &S3,
        env: &std::collections::BTreeMap<String, String>,
    ) -> Result<Self, StorageError> {
        Self::open_root(&Root::parse(url)?, s3, env, true)
    }

    fn open_root(root: &Root, s3: &S3, env: &open::Environment, create: bool) -> Result<Self, StorageError> {
        let base = Path::parse(&root.prefix)
            .map_err(|e| StorageError::BadUrl { url: root.display.clone(), why: e.to_string() })?;
        Ok(Self {
            inner: open::client(root, s3, env, create)?,
            base,
            display: root.display.as_str().into(),
            folder: root.folder.clone().map(Arc::new),
            patience: Patience::default(),
        })
    }

    /// Gives it more or less time than [`Patience::default`].
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The same store, failing as `faults` says.
    #[must_use]
    pub fn with_faults(mut self, faults: &crate::faulty::Faults) -> Self {
        self.inner = faults.wrap(self.inner);
        self
    }

    /// Its URL, which holds no secret.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.display
    }

    /// Names of the folders below the root, sorted: the runs, where the root is one of runs.
    ///
    /// # Errors
    /// [`StorageError`] when the store cannot be listed.
    pub async fn runs(&self) -> Result<Vec<String>, StorageError> {
        let what = format!("the list of {}", self.display);
        let found = persist(&self.patience, &what, 0, || self.inner.list_with_delimiter(Some(&self.base))).await?;
        let mut names: Vec<String> =
            found.common_prefixes.iter().filter_map(|p| p.filename()).map(str::to_owned).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What lies at `relative`, a name that others have given: the root itself, where it is empty.
    pub(crate) fn below(&self, relative: &str) -> Result<Path, StorageError> {
        let base = self.base.as_ref();
        let whole = if base.is_empty() { relative.to_owned() } else { format!("{base}/{relative}") };
        let bad = |error: object_store::path::Error| StorageError::BadUrl {
            url: format!("{}/{relative}", self.display),
            why: error.to_string(),
        };
        Path::parse(whole.trim_end_matches('/')).map_err(bad)
    }

    /// The object `relative` to the root.
    pub(crate) fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.base.clone(), |path, part| path.join(part))
    }

    /// The folder on this machine, for a `file://` root.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref().map(PathBuf::as_path)
    }

    /// For messages.
    pub(crate) fn name_of(&self, path: &Path) -> String {
        let relative = path.as_ref().strip_prefix(self.base.as_ref()).unwrap_or(path.as_ref());
        format!("{}/{}", self.display, relative.trim_start_matches('/'))
    }

    /// Reads an object of at most `limit` bytes.
    pub(crate) async fn get(&self, path: &Path, limit: u64) -> Result<Bytes, StorageError> {
        let what = self.name_of(path);
        match persist(&self.patience, &what, limit, || self.read_once(path, limit)).await? {
            Read::Whole(bytes) => Ok(bytes),
            Read::TooLarge(bytes) => Err(StorageError::TooLarge { what, bytes, limit }),
            Read::Miscounted { expected, found } => Err(StorageError::Corrupt {
                what,
                expected: format!("{expected} bytes"),
                found: format!("{found} bytes"),
            }),
        }
    }

    /// One read. The store's word about the size is believed only up to `limit`, and checked against what comes.
    async fn read_once(&self, path: &Path, limit: u64) -> Result<Read, Error> {
        let result = self.inner.get_opts(path, GetOptions::default()).await?;
        let size = result.meta.size;
        if size > limit {
            return Ok(Read::TooLarge(size));
        }
        let bytes = if matches!(result.payload, GetResultPayload::File(..)) {
            result.bytes().await?
        } else {
            let no_memory = || Error::NotSupported { source: format!("no memory for {size} bytes").into() };
            let mut all = Vec::new();
            all.try_reserve_exact(usize::try_from(size).map_err(|_| no_memory())?).map_err(|_| no_memory())?;
            let mut stream = result.into_stream();
            while let Some(chunk) = stream.try_next().await? {
                if (all.len() + chunk.len()) as u64 > size {
                    return Ok(Read::Miscounted { expected: size, found: (all.len() + chunk.len()) as u64 });
                }
                all.extend_from_slice(&chunk);
            }
            Bytes::from(all)
        };
        let found = bytes.len() as u64;
        Ok(if found == size { Read::Whole(bytes) } else { Read::Miscounted { expected: size, found } })
    }

    /// Size and time of an object.
    pub(crate) async fn head(&self, path: &Path) -> Result<ObjectMeta, StorageError> {
        persist(&self.patience, &self.name_of(path), 0, || self.inner.head(path)).await
    }

    /// One create-only put, neither repeated nor judged: whoever commits does both.
    pub(crate) async fn create_once(&self, path: &Path, bytes: Bytes, kind: &'static str) -> Result<(), Error> {
        let options = PutOptions { mode: PutMode::Create, attributes: self.attributes(kind), ..PutOptions::default() };
        self.inner.put_opts(path, PutPayload::from_bytes(bytes), options).await.map(|_| ())
    }

    /// Writes an object, whatever was there; visible whole or not at all.
    pub(crate) async fn put(
        &self,
        path: &Path,
        source: impl Into<Source>,
        kind: &'static str,
    ) -> Result<(), StorageError> {
        let (what, source) = (self.name_of(path), source.into());
        if source.parts().len() <= 1 {
            let payload = source.read(0..source.bytes()).await.map_err(|error| failure(Class::Never, &what, &error))?;
            return persist(&self.patience, &what, source.bytes(), || {
                let options = PutOptions { attributes: self.attributes(kind), ..PutOptions::default() };
                self.inner.put_opts(path, payload.clone(), options)
            })
            .await
            .map(|_| ());
        }
        // A lost acknowledgement of the last request looks like "no such upload" on some stores. The bytes are the same
        // at every try, so once more from the start is right; but if that is missing again, it is the bucket.
        let mut tries = Tries::new(&self.patience, source.bytes());
        let mut missing = 0;
        loop {
            match tries.attempt(self.put_in_parts(path, &source, kind)).await {
                Ok(()) => return Ok(()),
                Err(error) => match classify(&error) {
                    Class::Missing if missing == 0 => missing += 1,
                    class @ (Class::Missing | Class::Never) => return Err(failure(class, &what, &error)),
                    // Some stores say 403 of an upload that they have completed: the same one more try.
                    Class::Denied if missing == 0 => missing += 1,
                    class @ Class::Denied => return Err(failure(class, &what, &error)),
                    Class::Again | Class::Exists => {}
                },
            }
            if !tries.pause().await {
                return Err(tries.exhausted(&what));
            }
        }
    }

    async fn put_in_parts(&self, path: &Path, source: &Source, kind: &'static str) -> Result<(), Error> {
        let policy = Arc::new(PartRetries(self.patience));
        let options = PutMultipartOptions { attributes: self.attributes(kind), ..PutMultipartOptions::default() };
        let mut upload = self.inner.put_multipart_opts(path, options.with_retry_policy(policy)).await?;
        let deadline = self.patience.attempt + Patience::transfer(source.bytes());
        let send = async {
            let mut sending = JoinSet::new();
            for range in source.parts() {
                if sending.len() == source.parts_at_once()
                    && let Some(sent) = sending.join_next().await
                {
                    sent??;
                }
                sending.spawn(upload.put_part(source.read(range).await?));
            }
            while let Some(sent) = sending.join_next().await {
                sent??;
            }
            upload.complete().await
        };
        // Shorter than the deadline of the try around it, so that a stalled upload is still told to end.
        let sent = match timeout(deadline.mul_f64(0.9), send).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => Error::Generic { store: "store", source: "the upload stalled".into() },
        };
        let _ = timeout(ABORT_DEADLINE, upload.abort()).await;
        Err(sent)
    }

    /// Deletes an object; one that is not there counts as deleted.
    pub(crate) async fn delete(&self, path: &Path) -> Result<(), StorageError> {
        match persist(&self.patience, &self.name_of(path), 0, || self.inner.delete(path)).await {
            Err(StorageError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Every object below the folder `prefix`.
    pub(crate) async fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, StorageError> {
        let what = format!("the list of {}", self.name_of(prefix));
        let found = persist(&self.patience, &what, 0, || {
            self.inner.list(Some(prefix)).take(MAX_LISTED + 1).try_collect::<Vec<_>>()
        })
        .await?;
        if found.len() > MAX_LISTED {
            return Err(StorageError::TooLarge { what, bytes: found.len() as u64, limit: MAX_LISTED as u64 });
        }
        Ok(found)
    }

    /// A content type, where the store keeps one.
    fn attributes(&self, kind: &'static str) -> Attributes {
        if self.folder.is_some() { Attributes::new() } else { Attributes::from_iter([(Attribute::ContentType, kind)]) }
    }
}

/// What one read brought.
enum Read {
    Whole(Bytes),
    /// Not read: this many bytes.
    TooLarge(u64),
    /// Not as many bytes as the store announced.
    Miscounted {
        expected: u64,
        found: u64,
    },
}

/// Repeats a single part, so that a hiccup does not send a whole object again.
#[derive(Debug)]
struct PartRetries(Patience);

#[async_trait::async_trait]
impl RetryPolicy for PartRetries {
    async fn retry(&self, context: RetryContext) -> bool {
        let worth_it = match context.failure {
            RetryFailure::Status(status) => status.is_server_error() || matches!(status.as_u16(), 200 | 408 | 429),
            RetryFailure::Transport(_) => true,
            _ => false,
        };
        if !worth_it || context.elapsed >= self.0.attempt {
            return false;
        }
        tokio::time::sleep(self.0.first_pause.saturating_mul(1 << context.attempt.min(6))).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_have_given_are_taken_as_they_are() {
        let store = Store::open("memory://names/root", &S3::default()).unwrap();
        for name in ["set~2[1]", "a b/c%d", "plain"] {
            assert_eq!(store.below(name).unwrap().as_ref(), format!("root/{name}"));
        }
        assert_eq!(store.below("").unwrap().as_ref(), "root");
        assert!(store.below("../up").is_err());
    }
}
