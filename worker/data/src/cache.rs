//! The folder of prepared pyramids, shared by every process of a machine.
//!
//! ```text
//! pyramids/<fingerprint>/   whole pyramids: appear by one rename, never change
//! sources/<key>.json        which pyramid a source led to, and what was left out on the way
//! locks/<key>.lock          held while a pyramid is built; its content counts the builder's progress
//! building/<key>/           a pyramid in the making; whoever holds the lock may delete what it finds
//! ```
//! A lock is the kernel's (`flock`): it ends with its process, however that ends. Nothing waits on a holder that stands still.

use crate::index::{Digest, Index};
use crate::{DataError, Pyramid, Skipped};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Distance between two looks at a lock that another process holds.
const POLL: Duration = Duration::from_millis(50);
/// Times that publishing is tried when others publish or clear the same pyramid at the same moment.
const PUBLISH_TRIES: usize = 5;

/// The cache folder.
pub(crate) struct Cache(PathBuf);

/// What is remembered about a source.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub fingerprint: String,
    pub skipped: Vec<Skipped>,
    pub enlarged: usize,
}

impl Cache {
    pub(crate) fn open(root: &Path) -> Result<Self, DataError> {
        for folder in ["pyramids", "sources", "locks", "building"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(DataError::io("create the cache folder", &path))?;
        }
        Ok(Self(root.to_owned()))
    }

    /// The pyramid that this source led to before, if it is still whole. Anything else is as if it had never been.
    pub(crate) fn recall(&self, key: &Digest) -> Option<(Record, Pyramid)> {
        let text = fs::read(self.source(key)).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        // The fingerprint becomes a path: only a hash may.
        blake3::Hash::from_hex(&record.fingerprint).ok()?;
        let pyramid = Pyramid::open(&self.pyramid(&record.fingerprint)).ok()?;
        (pyramid.fingerprint() == record.fingerprint).then_some((record, pyramid))
    }

    /// Waits for the lock of `key` as long as its holder makes progress, `stall` at most without any. `waiting` hears of that
    /// progress.
    pub(crate) fn lock(&self, key: &Digest, stall: Duration, waiting: &dyn Fn(u64, u64)) -> Result<Lock, DataError> {
        let path = self.0.join("locks").join(format!("{}.lock", key.hex()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(DataError::io("open the lock", &path))?;
        let lock = Lock(file);
        let mut last = None;
        let mut moved = Instant::now();
        loop {
            match lock.0.try_lock() {
                Ok(()) => {
                    lock.beat(0, 0);
                    return Ok(lock);
                }
                Err(TryLockError::Error(error)) => return Err(DataError::io("lock", &path)(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let now = lock.progress();
            if now != last {
                (last, moved) = (now, Instant::now());
                if let Some((done, total)) = now {
                    waiting(done, total);
                }
            } else if moved.elapsed() >= stall {
                return Err(DataError::Stalled { lock: path, seconds: stall.as_secs() });
            }
            thread::sleep(POLL.min(stall));
        }
    }

    /// An empty folder to build in. Only for the holder of `key`'s lock: what a dead holder left there is deleted.
    pub(crate) fn scratch(&self, key: &Digest) -> Result<PathBuf, DataError> {
        let path = self.building(key);
        remove(&path)?;
        fs::create_dir(&path).map_err(DataError::io("create", &path))?;
        Ok(path)
    }

    /// Deletes what a failed build left. The next build does so too: a failure here needs no words.
    pub(crate) fn discard(&self, key: &Digest) {
        let _ = fs::remove_dir_all(self.building(key));
    }

    /// Makes the built pyramid visible and remembers that `key` led to it.
    pub(crate) fn publish(&self, key: &Digest, index: &Index, record: &Record) -> Result<Pyramid, DataError> {
        let pyramid = self.settle(key, &index.fingerprint)?;
        let path = self.source(key);
        let unfinished = self.building(key).with_extension("json");
        let text = serde_json::to_vec(record).map_err(|e| DataError::io("write", &path)(e.into()))?;
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(DataError::io("write", &path))?;
        Ok(pyramid)
    }

    /// Moves the built pyramid to its place, unless a whole one is there already: another source may have led to it.
    fn settle(&self, key: &Digest, fingerprint: &str) -> Result<Pyramid, DataError> {
        let (built, place) = (self.building(key), self.pyramid(fingerprint));
        let mut tries = 0;
        loop {
            tries += 1;
            match fs::rename(&built, &place) {
                Ok(()) => {
                    let parent = self.0.join("pyramids");
                    File::open(&parent)
                        .and_then(|folder| folder.sync_all())
                        .map_err(DataError::io("write", &parent))?;
                    return Pyramid::open(&place);
                }
                Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
                Err(e) => return Err(DataError::io("publish prepared images as", &place)(e)),
            }
            match Pyramid::open(&place) {
                Ok(pyramid) => {
                    self.discard(key);
                    return Ok(pyramid);
                }
                Err(damage) if tries == PUBLISH_TRIES => return Err(damage),
                Err(_) => {
                    let aside = built.with_extension("damaged");
                    remove(&aside)?;
                    // Not there any more: somebody else cleared it.
                    if fs::rename(&place, &aside).is_ok() {
                        remove(&aside)?;
                    }
                }
            }
        }
    }

    fn pyramid(&self, fingerprint: &str) -> PathBuf {
        self.0.join("pyramids").join(fingerprint)
    }

    fn source(&self, key: &Digest) -> PathBuf {
        self.0.join("sources").join(format!("{}.json", key.hex()))
    }

    fn building(&self, key: &Digest) -> PathBuf {
        self.0.join("building").join(key.hex())
    }
}

fn remove(folder: &Path) -> Result<(), DataError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(DataError::io("delete", folder)(e)),
        _ => Ok(()),
    }
}

/// A held lock; dropping it lets the next one in.
pub(crate) struct Lock(File);

impl Lock {
    /// Tells those who wait that there is progress. A beat that cannot be written is only a beat less.
    pub(crate) fn beat(&self, done: u64, total: u64) {
        let mut beat = [0; 16];
        beat[..8].copy_from_slice(&done.to_le_bytes());
        beat[8..].copy_from_slice(&total.to_le_bytes());
        let _ = self.0.write_all_at(&beat, 0);
    }

    fn progress(&self) -> Option<(u64, u64)> {
        let mut beat = [0; 16];
        self.0.read_exact_at(&mut beat, 0).ok()?;
        let [done, total] =
            [&beat[..8], &beat[8..]].map(|half| half.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)));
        Some((done, total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_holder_that_stands_still_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let key = Digest::new("key");
        let held = cache.lock(&key, Duration::ZERO, &|_, _| ()).unwrap();
        held.beat(3, 7);
        let heard = AtomicU64::new(0);
        let waiting = |done, total| heard.store(10 * done + total, Ordering::Relaxed);
        let refused = cache.lock(&key, Duration::from_millis(1), &waiting).err().unwrap();
        assert!(matches!(refused, DataError::Stalled { .. }), "{refused}");
        assert_eq!(heard.into_inner(), 37);
        drop(held);
        cache.lock(&key, Duration::ZERO, &|_, _| ()).unwrap();
    }

    #[test]
    fn a_record_cannot_lead_out_of_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let key = Digest::new("key");
        let record = Record { fingerprint: "../../elsewhere".into(), skipped: vec![], enlarged: 0 };
        fs::write(cache.source(&key), serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(cache.recall(&key).is_none());
    }
}
