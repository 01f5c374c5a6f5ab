//! From a source to an open pyramid: once per machine, whoever asks first; everybody else waits and reuses.

use crate::build::build;
use crate::cache::{Cache, Record};
use crate::index::{Digest, FORMAT};
use crate::source::Listing;
use crate::{DataError, Pyramid, Skipped, View};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a builder may go without finishing one image before those who wait give up. The largest image takes seconds;
/// writing a large level back to a slow disk takes longer.
const STALL: Duration = Duration::from_secs(600);

/// Which images, prepared how, kept where.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Folder (read recursively) or ZIP archive.
    pub source: PathBuf,
    /// Of its files only those in a folder of this name, wherever that lies.
    pub within: Option<String>,
    /// What of each image is kept.
    pub view: View,
    /// Side of the top level in pixels: [`crate::MIN_RESOLUTION`] to [`crate::MAX_RESOLUTION`], a power of two, for a pyramid; to
    /// [`crate::MAX_SIDE`] otherwise.
    pub resolution: u32,
    /// Colour under transparent pixels, RGB.
    pub background: [u8; 3],
    /// Root folder of prepared pyramids; may be shared by processes of one machine.
    pub cache: PathBuf,
    /// Share of unusable images, 0 to 1, above which none is used.
    pub max_bad_share: f64,
}

/// How far a preparation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process is preparing the same images.
    Waiting {
        /// Files it has looked at.
        done: u64,
        /// Files there are; 0 when not yet known.
        total: u64,
    },
    /// This process is.
    Preparing {
        /// Files looked at.
        done: u64,
        /// Files there are.
        total: u64,
    },
}

/// A pyramid and what to tell the user about it.
#[derive(Debug)]
pub struct Prepared {
    /// The images.
    pub pyramid: Pyramid,
    /// Files that were left out, by name.
    pub skipped: Vec<Skipped>,
    /// Images smaller than the resolution, which were enlarged.
    pub enlarged: usize,
    /// Whether nothing had to be read because it was prepared before.
    pub reused: bool,
}

/// Prepares the pyramid of `request`, or opens the one that was prepared before. `progress` is called from
/// several threads, so counts may arrive out of order.
///
/// # Errors
/// [`DataError`]: an unusable source, too many unusable images, a disk that refuses, a builder elsewhere that hangs.
pub fn prepare(request: &Request, progress: &(dyn Fn(Progress) + Sync)) -> Result<Prepared, DataError> {
    request.view.check(request.resolution)?;
    if !(0.0..=1.0).contains(&request.max_bad_share) {
        return Err(DataError::BadShare(request.max_bad_share));
    }
    let listing = Listing::of(&request.source, request.within.as_deref())?;
    let place = request.within.as_ref().map_or_else(|| request.source.clone(), |folder| request.source.join(folder));
    if listing.candidates.is_empty() {
        return Err(DataError::NoImages { path: place, skipped: listing.skipped });
    }
    let cache = Cache::open(&request.cache)?;
    let key = key(&listing, request);
    let recall = || cache.recall(&key).map(|(record, pyramid)| accept(&place, request, record, pyramid, true));
    if let Some(found) = recall() {
        return found;
    }
    let lock = cache.lock(&key, STALL, &|done, total| progress(Progress::Waiting { done, total }))?;
    if let Some(found) = recall() {
        return found;
    }
    let scratch = cache.scratch(&key)?;
    let made = build(&listing, request, &scratch, &lock, progress).and_then(|built| {
        judge(&place, built.index.images.len(), &built.skipped, request.max_bad_share)?;
        let record =
            Record { fingerprint: built.index.fingerprint.clone(), skipped: built.skipped, enlarged: built.enlarged };
        let pyramid = cache.publish(&key, &built.index, &record)?;
        accept(&place, request, record, pyramid, false)
    });
    if made.is_err() {
        cache.discard(&key);
    }
    made
}

fn accept(
    place: &Path,
    request: &Request,
    record: Record,
    pyramid: Pyramid,
    reused: bool,
) -> Result<Prepared, DataError> {
    let Record { skipped, enlarged, .. } = record;
    judge(place, pyramid.len(), &skipped, request.max_bad_share)?;
    Ok(Prepared { pyramid, skipped, enlarged, reused })
}

/// Are there images, and not too many unusable ones beside them?
fn judge(source: &Path, good: usize, skipped: &[Skipped], allowed: f64) -> Result<(), DataError> {
    let path = || source.to_owned();
    if good == 0 {
        return Err(DataError::NoImages { path: path(), skipped: skipped.to_vec() });
    }
    let bad = skipped.iter().filter(|one| one.why.is_bad()).count();
    let total = good + bad;
    if bad as f64 > allowed * total as f64 {
        return Err(DataError::TooManyBad { path: path(), bad, total, allowed, skipped: skipped.to_vec() });
    }
    Ok(())
}

/// What a launch can know without reading the images: equal keys lead to equal pyramids.
fn key(listing: &Listing, request: &Request) -> Digest {
    let mut key = listing.stamp.clone();
    key.number(u64::from(FORMAT));
    key.number(u64::from(request.resolution));
    request.background.iter().for_each(|&part| key.number(u64::from(part)));
    if let Some(folder) = &request.within {
        key.text(folder);
    }
    if !request.view.is_pyramid() {
        key.text(request.view.name());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Why;

    #[test]
    fn the_allowed_share_is_allowed_and_no_more() {
        let bad = |n: usize| vec![Skipped { name: "x.png".into(), why: Why::Empty }; n];
        let judged = |good, skipped: &[Skipped], allowed| judge(Path::new("faces"), good, skipped, allowed);
        assert!(judged(9, &bad(1), 0.1).is_ok());
        assert!(matches!(judged(9, &bad(2), 0.1), Err(DataError::TooManyBad { bad: 2, total: 11, .. })));
        assert!(judged(9, &[], 0.0).is_ok());
        assert!(matches!(judged(9, &bad(1), 0.0), Err(DataError::TooManyBad { .. })));
        assert!(matches!(judged(0, &bad(3), 1.0), Err(DataError::NoImages { .. })));
        let loops = [Skipped { name: "link".into(), why: Why::LinkedTwice }];
        assert!(judged(1, &loops, 0.0).is_ok(), "a link is no bad image");
    }
}
