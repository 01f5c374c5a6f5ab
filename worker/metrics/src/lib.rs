//! Quality metrics on images: the sliced Wasserstein distance of the Progressive GAN paper (Karras et al. 2018) between sets, and
//! structural similarity of two.
//!
//! Pure computation on bytes: no tensors, no disk, no clock. Every draw comes from [`common::seed`], so the same images and
//! seed give the same numbers again. A number says nothing without its floor, the same distance between two sets of real
//! images: [`Subset`] cuts a source into the halves to take it from.

mod laplacian;
mod patches;
mod similarity;
mod sliced;
mod source;

pub use laplacian::levels;
pub use similarity::{ms_ssim, ssim};
pub use source::{ImageSource, ReadError, Subset};

use std::collections::BTreeMap;

/// Why no distance came out.
#[derive(Debug, thiserror::Error)]
pub enum SwdError {
    /// A set is smaller than the number of images to compare.
    #[error("{wanted} images a side are to be compared, one side has {have}")]
    TooFew {
        /// Images to compare.
        wanted: usize,
        /// Images there are.
        have: usize,
    },
    /// No images, patches or directions.
    #[error("nothing to compare: {0} is 0")]
    Nothing(&'static str),
    /// A resolution that has no pyramid.
    #[error("resolution {0} is not a power of two from 4 up")]
    Resolution(u32),
    /// An image could not be read.
    #[error("image {index} cannot be read: {error}")]
    Read {
        /// Its index in its source.
        index: usize,
        /// What the source said.
        #[source]
        error: ReadError,
    },
}

/// The sliced Wasserstein distance, with the reference's numbers as [`Swd::new`].
///
/// Memory: one level at a time, `2 * images * patches_per_image * 147 * 4` bytes of descriptors (2.5 GB at 16 384 images) and
/// at most 0.5 GB beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swd {
    /// Images on each side. The reference takes 16 384, or all there are.
    pub images: usize,
    /// Patches of each image on each level.
    pub patches_per_image: usize,
    /// Random directions that descriptors are projected on.
    pub directions: usize,
    /// Seed of patches and directions.
    pub seed: u64,
}

impl Swd {
    /// `images` a side, 128 patches an image, 512 directions (4 repeats of 128).
    #[must_use]
    pub fn new(images: usize, seed: u64) -> Self {
        Self { images, patches_per_image: 128, directions: 512, seed }
    }

    /// Distance per level, times 1000, between the first `images` of two sources of `resolution` pixels a side: from
    /// `resolution` down to 16, or at `resolution` alone below 16.
    ///
    /// # Errors
    /// [`SwdError`]: too few images, a resolution without a pyramid, an unreadable image.
    pub fn levels(
        &self,
        real: &dyn ImageSource,
        fake: &dyn ImageSource,
        resolution: u32,
    ) -> Result<BTreeMap<u32, f64>, SwdError> {
        if resolution < 4 || !resolution.is_power_of_two() {
            return Err(SwdError::Resolution(resolution));
        }
        let amounts =
            [("images", self.images), ("patches_per_image", self.patches_per_image), ("directions", self.directions)];
        if let Some((name, _)) = amounts.into_iter().find(|(_, amount)| *amount == 0) {
            return Err(SwdError::Nothing(name));
        }
        let have = real.len().min(fake.len());
        if have < self.images {
            return Err(SwdError::TooFew { wanted: self.images, have });
        }
        levels(resolution).map(|level| Ok((level, self.level(real, fake, resolution, level)?))).collect()
    }

    fn level(
        &self,
        real: &dyn ImageSource,
        fake: &dyn ImageSource,
        resolution: u32,
        level: u32,
    ) -> Result<f64, SwdError> {
        let real = patches::descriptors(self, real, resolution, level)?;
        let fake = patches::descriptors(self, fake, resolution, level)?;
        let directions = sliced::directions(self.seed, level, self.directions, real.size);
        Ok(1000.0 * sliced::distance(&real.values, &fake.values, real.size, &directions))
    }
}

/// [`Swd::levels`] of the first `count` images of both sources, by the reference's numbers. With two disjoint sets of real
/// images it is the floor.
///
/// # Errors
/// As [`Swd::levels`].
pub fn swd(
    real: &dyn ImageSource,
    fake: &dyn ImageSource,
    resolution: u32,
    count: usize,
    seed: u64,
) -> Result<BTreeMap<u32, f64>, SwdError> {
    Swd::new(count, seed).levels(real, fake, resolution)
}
