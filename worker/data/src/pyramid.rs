//! A prepared pyramid on disk: one file of raw CHW bytes per level (`r02.u8` for 4x4, ... `r10.u8` for 1024x1024), images
//! back to back in the order of `index.json`. Images that are kept at one side have one level (`s286.u8`).
//!
//! Reading is one positioned read, from any number of threads at once. Opening checks the index against its fingerprint
//! and every file against its size; it does not read the pixels.

use crate::DataError;
use crate::index::Index;
use crate::levels::{View, image_bytes};
use std::fs::{self, File};
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Name of the index within a pyramid's folder.
pub(crate) const INDEX: &str = "index.json";

/// Name of a level's file within a pyramid's folder.
pub(crate) fn level_file(view: View, side: u32) -> String {
    if view.is_pyramid() { format!("r{:02}.u8", side.ilog2()) } else { format!("s{side}.u8") }
}

/// An open pyramid.
#[derive(Debug)]
pub struct Pyramid {
    folder: PathBuf,
    index: Index,
    count: NonZeroU32,
    /// Sides of the levels, and their files.
    sides: Vec<u32>,
    levels: Vec<File>,
}

impl Pyramid {
    /// Opens the pyramid in `folder`.
    ///
    /// # Errors
    /// [`DataError::Io`] when it cannot be read, [`DataError::Damaged`] when it is not what its index says.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let damaged = |why: String| DataError::Damaged { path: folder.to_owned(), why };
        let path = folder.join(INDEX);
        let text = fs::read(&path).map_err(DataError::io("read", &path))?;
        let index = Index::parse(&text).map_err(damaged)?;
        let count = u32::try_from(index.images.len())
            .ok()
            .and_then(NonZeroU32::new)
            .ok_or_else(|| damaged("index.json names no images".into()))?;
        let mut levels = Vec::new();
        let sides = index.view.sides(index.resolution);
        for &resolution in &sides {
            let name = level_file(index.view, resolution);
            let path = folder.join(&name);
            let file = File::open(&path).map_err(DataError::io("open", &path))?;
            let size = file.metadata().map_err(DataError::io("open", &path))?.len();
            let expected = u64::from(count.get()) * image_bytes(resolution) as u64;
            if size != expected {
                return Err(damaged(format!("{name} has {size} bytes, expected {expected}")));
            }
            levels.push(file);
        }
        Ok(Self { folder: folder.to_owned(), index, count, sides, levels })
    }

    /// Images in the pyramid; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a pyramid without images cannot be opened")]
    pub fn len(&self) -> usize {
        self.index.images.len()
    }

    /// Images in the pyramid, as [`crate::Order`] takes it.
    #[must_use]
    pub fn count(&self) -> NonZeroU32 {
        self.count
    }

    /// Hash of the images' names and files and of how they were prepared: equal on every machine that prepared the same.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.index.fingerprint
    }

    /// Side of the top level in pixels.
    #[must_use]
    pub fn resolution(&self) -> u32 {
        self.index.resolution
    }

    /// Whether there are smaller levels too, down to 4x4.
    #[must_use]
    pub fn is_pyramid(&self) -> bool {
        self.index.view.is_pyramid()
    }

    /// Name of the file that an image came from, relative to its folder or archive.
    #[must_use]
    pub fn name(&self, index: usize) -> Option<&str> {
        self.index.images.get(index).map(|image| image.name.as_str())
    }

    /// Reads image `index` at `resolution` into `out`, CHW.
    ///
    /// # Errors
    /// [`DataError::NoSuchLevel`], [`DataError::NoSuchImage`], [`DataError::BufferSize`] (`out` must hold
    /// [`crate::image_bytes`]), [`DataError::Io`].
    pub fn read(&self, resolution: u32, index: usize, out: &mut [u8]) -> Result<(), DataError> {
        let no_such_level = DataError::NoSuchLevel { asked: resolution, top: self.resolution() };
        let level = self.sides.iter().position(|&side| side == resolution).ok_or(no_such_level)?;
        if index >= self.len() {
            return Err(DataError::NoSuchImage { index, count: self.len() });
        }
        let size = image_bytes(resolution);
        if out.len() != size {
            return Err(DataError::BufferSize { expected: size, got: out.len() });
        }
        self.levels[level]
            .read_exact_at(out, index as u64 * size as u64)
            .map_err(|error| DataError::io("read", &self.folder.join(level_file(self.index.view, resolution)))(error))
    }

    /// Reads images `indices` at `resolution` into `out`, NCHW.
    ///
    /// # Errors
    /// As [`Pyramid::read`]; what `out` holds is then undefined.
    pub fn read_batch(&self, resolution: u32, indices: &[u32], out: &mut [u8]) -> Result<(), DataError> {
        let expected = indices.len().saturating_mul(image_bytes(resolution.min(self.resolution())));
        if out.len() != expected {
            return Err(DataError::BufferSize { expected, got: out.len() });
        }
        if indices.is_empty() {
            return Ok(());
        }
        for (&index, image) in indices.iter().zip(out.chunks_exact_mut(expected / indices.len())) {
            self.read(resolution, index as usize, image)?;
        }
        Ok(())
    }
}
