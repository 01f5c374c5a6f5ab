//! Reads every candidate, in parallel and in order, and writes the level files of a pyramid.
//!
//! Memory is bounded: one batch of pyramids, one decoded image of at most [`LIGHT_BYTES`] per thread, and heavier images
//! one at a time after the rest of their batch.

use crate::cache::Lock;
use crate::decode::{self, Square};
use crate::index::{Index, Source};
use crate::levels::image_bytes;
use crate::pyramid::{INDEX, level_file};
use crate::source::{Candidate, Listing, Reader};
use crate::{DataError, Progress, Request, Skipped, Why, error};
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Decoded size up to which an image is taken by any thread at once.
const LIGHT_BYTES: u64 = 48 << 20;
/// Candidates per thread in one batch.
const BATCH_PER_THREAD: usize = 4;

/// What a build leaves besides the files.
pub(crate) struct Built {
    pub index: Index,
    pub skipped: Vec<Skipped>,
    /// Images whose shorter side was below the resolution.
    pub enlarged: usize,
}

/// Fate of one candidate.
enum Outcome {
    Made(Made),
    Skip(Why),
    /// To be read again and decoded alone.
    Heavy,
}

struct Made {
    blake3: String,
    /// All levels, smallest first.
    levels: Vec<u8>,
    enlarged: bool,
}

/// Writes the pyramid of `listing` into the empty folder `into`. Whether too many files were bad is for the caller to judge;
/// without a single good one no index is written.
pub(crate) fn build(
    listing: &Listing,
    request: &Request,
    into: &Path,
    lock: &Lock,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Built, DataError> {
    let mut levels = Levels::create(into, request)?;
    let mut images = Vec::new();
    let mut skipped = listing.skipped.clone();
    let mut enlarged = 0;

    let total = listing.candidates.len() as u64;
    let done = AtomicU64::new(0);
    let tick = || {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        lock.beat(done, total);
        progress(Progress::Preparing { done, total });
    };

    for batch in listing.candidates.chunks(rayon::current_num_threads() * BATCH_PER_THREAD) {
        let outcomes: Vec<Outcome> = batch
            .par_iter()
            .map_init(
                || listing.reader(),
                |reader, candidate| {
                    let outcome = make(reader, candidate, request, LIGHT_BYTES);
                    if !matches!(outcome, Outcome::Heavy) {
                        tick();
                    }
                    outcome
                },
            )
            .collect();
        for (candidate, mut outcome) in batch.iter().zip(outcomes) {
            if let Outcome::Heavy = outcome {
                outcome = make(&mut listing.reader(), candidate, request, decode::MAX_DECODED_BYTES);
                tick();
            }
            match outcome {
                Outcome::Made(made) => {
                    levels.append(&made.levels)?;
                    images.push(Source { name: candidate.name.clone(), blake3: made.blake3 });
                    enlarged += usize::from(made.enlarged);
                }
                Outcome::Skip(why) => skipped.push(Skipped { name: error::clean(&candidate.name), why }),
                Outcome::Heavy => {
                    let why = Why::TooLarge(format!("more than {} MiB decoded", decode::MAX_DECODED_BYTES >> 20));
                    skipped.push(Skipped { name: error::clean(&candidate.name), why });
                }
            }
        }
    }
    skipped.sort_by(|a, b| a.name.cmp(&b.name));
    levels.finish(|| lock.beat(total, total))?;
    let index = Index::new(request.resolution, request.background, request.view, images);
    if !index.images.is_empty() {
        write_index(&index, into)?;
    }
    Ok(Built { index, skipped, enlarged })
}

/// Reads and decodes one candidate, unless it takes more than `at_most` bytes decoded.
fn make(reader: &mut Reader, candidate: &Candidate, request: &Request, at_most: u64) -> Outcome {
    let bytes = match reader.read(candidate) {
        Ok(bytes) => bytes,
        Err(why) => return Outcome::Skip(why),
    };
    match decode::square(&bytes, request.view, request.resolution, request.background, at_most) {
        Ok(Some(Square { pixels, enlarged })) => Outcome::Made(Made {
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            levels: request.view.levels(&pixels, request.resolution),
            enlarged,
        }),
        Ok(None) => Outcome::Heavy,
        Err(why) => Outcome::Skip(why),
    }
}

/// The level files while they grow.
struct Levels(Vec<(PathBuf, usize, BufWriter<File>)>);

impl Levels {
    fn create(folder: &Path, request: &Request) -> Result<Self, DataError> {
        let create = |resolution| {
            let path = folder.join(level_file(request.view, resolution));
            let file = File::create_new(&path).map_err(DataError::io("create", &path))?;
            Ok((path, image_bytes(resolution), BufWriter::new(file)))
        };
        request.view.sides(request.resolution).into_iter().map(create).collect::<Result<_, _>>().map(Self)
    }

    fn append(&mut self, mut image: &[u8]) -> Result<(), DataError> {
        for (path, size, file) in &mut self.0 {
            let (level, rest) = image.split_at(*size);
            file.write_all(level).map_err(DataError::io("write", path))?;
            image = rest;
        }
        Ok(())
    }

    /// Everything on the disk itself: a pyramid that survives a power cut is whole.
    fn finish(self, alive: impl Fn()) -> Result<(), DataError> {
        for (path, _, file) in self.0 {
            let file = file.into_inner().map_err(|e| DataError::io("write", &path)(e.into_error()))?;
            file.sync_all().map_err(DataError::io("write", &path))?;
            alive();
        }
        Ok(())
    }
}

fn write_index(index: &Index, folder: &Path) -> Result<(), DataError> {
    let path = folder.join(INDEX);
    let text = serde_json::to_vec(index).map_err(|e| DataError::io("write", &path)(e.into()))?;
    let mut file = File::create_new(&path).map_err(DataError::io("create", &path))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(DataError::io("write", &path))
}
