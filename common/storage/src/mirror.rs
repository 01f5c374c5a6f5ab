//! Objects of a store as files of this machine: training images that lie in a bucket.
//!
//! A listing names its mirror: the same objects are fetched once, others lie elsewhere, and a mirror never changes. It appears whole or
//! not at all. Where several processes want the same, one fetches, and the others wait for as long as it gets on.

use crate::error::StorageError;
use crate::retry::persist;
use crate::run::{blocking, fresh_nonce};
use crate::store::Store;
use common::checkpoint::Digest;
use futures::{StreamExt, TryStreamExt};
use object_store::{GetOptions, ObjectMeta, ObjectStore};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Objects that are fetched at a time.
const FETCHES: usize = 8;
/// Bytes that are asked for at once: an archive may be larger than memory.
const PIECE: u64 = 16 << 20;
/// Another process that fetches the same is waited for as long as it fetches something within this time.
const STALL: Duration = Duration::from_secs(60);
/// What nobody has written to for so long belongs to nobody.
const DEAD: Duration = Duration::from_secs(3600);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(300);

impl Store {
    /// The objects below the folder `prefix` whose names end in one of `endings` (lower-case, without the dot), as files below the folder
    /// that is returned, which lies in `cache`. Where `prefix` is the name of one object, that file. `progress` hears how many of how
    /// many are there.
    ///
    /// # Errors
    /// [`StorageError`] of the first object that could not be fetched, or of the cache.
    pub async fn mirror(
        &self,
        prefix: &str,
        endings: &[&str],
        cache: &Path,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<PathBuf, StorageError> {
        let root = self.below(prefix)?;
        let wanted = |meta: &ObjectMeta| {
            let ending = meta.location.extension().unwrap_or_default().to_lowercase();
            endings.contains(&ending.as_str())
        };
        let mut objects: Vec<ObjectMeta> = self.list(&root).await?.into_iter().filter(wanted).collect();
        let single = objects.is_empty();
        if single {
            objects.push(self.head(&root).await?);
        }
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        let name = digest(self.url(), &objects).to_string();
        let whole = cache.join(&name);
        let file = |folder: &Path, meta: &ObjectMeta| {
            let below = meta.location.as_ref().strip_prefix(root.as_ref()).unwrap_or_default().trim_start_matches('/');
            let below = if below.is_empty() { meta.location.filename().unwrap_or("object") } else { below };
            below.split('/').fold(folder.to_owned(), |path, part| path.join(part))
        };
        let answer = if single { file(&whole, &objects[0]) } else { whole.clone() };
        if whole.is_dir() {
            return Ok(answer);
        }
        let alone = Alone::wait(cache, &name, &whole).await?;
        if whole.is_dir() {
            return Ok(answer);
        }
        let part = cache.join(format!("{name}.{}", fresh_nonce()?));
        let (done, total) = (AtomicU64::new(0), objects.len() as u64);
        progress(0, total);
        let fetched = futures::stream::iter(&objects)
            .map(|meta| {
                let (to, done) = (file(&part, meta), &done);
                async move {
                    self.fetch(meta, &to).await?;
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                    Ok::<_, StorageError>(())
                }
            })
            .buffer_unordered(FETCHES)
            .try_collect::<()>()
            .await;
        let all: Vec<(PathBuf, u64)> = objects.iter().map(|meta| (file(&part, meta), meta.size)).collect();
        let (from, to) = (part.clone(), whole.clone());
        let laid = match fetched {
            Ok(()) => blocking(move || publish(&from, &to, &all)).await?,
            Err(error) => {
                drop(blocking(move || std::fs::remove_dir_all(from)).await);
                return Err(error);
            }
        };
        laid.map_err(|error| unwritable(&whole, &error))?;
        drop(alone);
        Ok(answer)
    }

    /// One object as the file `to`.
    async fn fetch(&self, meta: &ObjectMeta, to: &Path) -> Result<(), StorageError> {
        let path = to.to_owned();
        let open = move || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            OpenOptions::new().write(true).create_new(true).open(&path)
        };
        let mut file = blocking(open).await?.map_err(|error| unwritable(to, &error))?;
        let what = self.name_of(&meta.location);
        let mut at = 0;
        while at < meta.size {
            let range = at..(at + PIECE).min(meta.size);
            let bytes = range.end - range.start;
            // of an object that is written anew meanwhile there is no second half
            let part = || async {
                let options = GetOptions {
                    range: Some(range.clone().into()),
                    if_match: meta.e_tag.clone(),
                    ..GetOptions::default()
                };
                self.inner.get_opts(&meta.location, options).await?.bytes().await
            };
            let piece = persist(&self.patience, &what, bytes, part).await?;
            if piece.len() as u64 != bytes {
                let (expected, found) = (format!("{bytes} bytes"), format!("{} bytes", piece.len()));
                return Err(StorageError::Corrupt { what, expected, found });
            }
            let written: Result<File, std::io::Error> = blocking(move || file.write_all(&piece).map(|()| file)).await?;
            file = written.map_err(|error| unwritable(to, &error))?;
            at = range.end;
        }
        blocking(move || file.sync_all()).await?.map_err(|error| unwritable(to, &error))
    }
}

/// The right to fetch a listing, among the processes of this machine.
struct Alone(#[expect(dead_code, reason = "held, not read")] Option<File>);

impl Alone {
    /// Waits until nobody else fetches it, or whoever does gets on no more.
    async fn wait(cache: &Path, name: &str, whole: &Path) -> Result<Self, StorageError> {
        let path = cache.join(format!("{name}.lock"));
        let (folder, lock) = (cache.to_owned(), path.clone());
        let open = move || {
            std::fs::create_dir_all(folder)?;
            OpenOptions::new().create(true).truncate(false).write(true).open(lock)
        };
        let file = blocking(open).await?.map_err(|error| unwritable(&path, &error))?;
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(std::fs::TryLockError::Error(error)) => return Err(unwritable(&path, &error)),
                Err(std::fs::TryLockError::WouldBlock) if whole.is_dir() => return Ok(Self(None)),
                Err(std::fs::TryLockError::WouldBlock) => {}
            }
            tokio::time::sleep(LOOK).await;
            let (folder, prefix) = (cache.to_owned(), format!("{name}."));
            let now = blocking(move || bytes_below(&folder, &prefix)).await?;
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > STALL {
                return Ok(Self(None));
            }
        }
        let (folder, prefix) = (cache.to_owned(), format!("{name}."));
        // what others left when they died: whoever is at work writes now and then
        let dead = |folder: &PathBuf| newest(folder).is_some_and(|at| at.elapsed().is_ok_and(|age| age > DEAD));
        blocking(move || {
            for folder in parts(&folder, &prefix).into_iter().filter(dead) {
                drop(std::fs::remove_dir_all(folder));
            }
        })
        .await?;
        Ok(Self(Some(file)))
    }
}

/// Folders in the making.
fn parts(cache: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Calls `f` for every file and folder below `folder`.
fn walk(folder: &Path, mut f: impl FnMut(&std::fs::Metadata)) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            f(&meta);
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
}

/// When anything in `folder` was written last.
fn newest(folder: &Path) -> Option<SystemTime> {
    let mut newest = folder.metadata().and_then(|meta| meta.modified()).ok();
    walk(folder, |meta| newest = newest.max(meta.modified().ok()));
    newest
}

/// Bytes in the folders in the making.
fn bytes_below(cache: &Path, prefix: &str) -> u64 {
    let mut bytes = 0;
    for folder in parts(cache, prefix) {
        walk(&folder, |meta| bytes += if meta.is_dir() { 0 } else { meta.len() });
    }
    bytes
}

/// Gives the folder `part` its name, once all its files are there.
fn publish(part: &Path, whole: &Path, files: &[(PathBuf, u64)]) -> std::io::Result<()> {
    for (file, bytes) in files {
        let found = file.metadata()?.len();
        if found != *bytes {
            return Err(std::io::Error::other(format!("{} has {found} bytes of {bytes}", file.display())));
        }
    }
    File::open(part)?.sync_all()?;
    match std::fs::rename(part, whole) {
        // another process was quicker, with the same
        Err(_) if whole.is_dir() => std::fs::remove_dir_all(part),
        done => done,
    }
}

/// Name of the mirror of `objects`: another one for other names, sizes or versions.
fn digest(url: &str, objects: &[ObjectMeta]) -> Digest {
    let mut text = format!("{url}\n");
    for meta in objects {
        let version = meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339());
        text.push_str(&format!("{}\n{}\n{version}\n", meta.location, meta.size));
    }
    Digest::of(text.as_bytes())
}

fn unwritable(path: &Path, error: &std::io::Error) -> StorageError {
    StorageError::Unwritable { file: path.display().to_string(), detail: error.to_string() }
}
