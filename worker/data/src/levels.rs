//! The arithmetic of the pyramid, pure: each lower level is the 2x2 mean of the *unrounded* level above, rounded half to
//! even and clipped only when it becomes bytes.
//!
//! The top level is bytes already, so in `f32` every mean down from 1024 to 4 is exact (8 bits and two more per level: 24
//! at most). Nothing depends on the order of additions, the compiler or the machine.

use crate::DataError;
use serde::{Deserialize, Serialize};

/// Side of the smallest level in pixels.
pub const MIN_RESOLUTION: u32 = 4;
/// Side of the largest level in pixels.
pub const MAX_RESOLUTION: u32 = 1024;
/// Side of the largest image that is kept at one side only.
pub const MAX_SIDE: u32 = 4096;

/// Red, green, blue.
pub(crate) const CHANNELS: usize = 3;

/// Bytes of one RGB image of side `resolution`.
#[must_use]
pub fn image_bytes(resolution: u32) -> usize {
    CHANNELS * resolution as usize * resolution as usize
}

/// Sides of the levels of a pyramid up to `resolution`, smallest first: 4, 8, ... `resolution`.
pub fn resolutions(resolution: u32) -> impl DoubleEndedIterator<Item = u32> + Clone {
    (MIN_RESOLUTION.ilog2()..=resolution.max(1).ilog2()).map(|log2| 1 << log2)
}

/// What of an image is kept, and at which sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// Its centre square, at every level of a pyramid.
    #[default]
    Centre,
    /// All of it, squeezed into a square of one side.
    Whole,
    /// Its left half, likewise.
    Left,
    /// Its right half, likewise.
    Right,
}

impl View {
    /// Its name in a fingerprint.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Centre => "centre",
            Self::Whole => "whole",
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    /// Whether smaller levels are kept too.
    pub(crate) fn is_pyramid(&self) -> bool {
        *self == Self::Centre
    }

    /// Sides that are kept of an image of side `resolution`, smallest first.
    pub(crate) fn sides(self, resolution: u32) -> Vec<u32> {
        if self.is_pyramid() { resolutions(resolution).collect() } else { vec![resolution] }
    }

    /// Refuses a side that such a view cannot have.
    pub(crate) fn check(self, resolution: u32) -> Result<(), DataError> {
        let most = if self.is_pyramid() { MAX_RESOLUTION } else { MAX_SIDE };
        let fits = (MIN_RESOLUTION..=most).contains(&resolution);
        match fits && (resolution.is_power_of_two() || !self.is_pyramid()) {
            true => Ok(()),
            false if self.is_pyramid() => Err(DataError::Resolution(resolution)),
            false => Err(DataError::Side(resolution)),
        }
    }

    /// All sides of the image `pixels` (interleaved RGB rows, side `resolution`) as CHW bytes, smallest first, one after the other.
    pub(crate) fn levels(self, pixels: &[u8], resolution: u32) -> Vec<u8> {
        if self.is_pyramid() {
            return pyramid(pixels, resolution);
        }
        (0..CHANNELS).flat_map(|channel| pixels[channel..].iter().step_by(CHANNELS).copied()).collect()
    }
}

fn pyramid(pixels: &[u8], resolution: u32) -> Vec<u8> {
    let mut level = planes(pixels, resolution as usize);
    let mut levels: Vec<Vec<u8>> = Vec::new();
    for side in resolutions(resolution).rev() {
        if side != resolution {
            level = halve(&level, 2 * side as usize);
        }
        levels.push(level.iter().map(|&x| to_byte(x)).collect());
    }
    levels.reverse();
    levels.concat()
}

/// Interleaved rows -> planes, as floats.
fn planes(pixels: &[u8], side: usize) -> Vec<f32> {
    let mut planes = Vec::with_capacity(CHANNELS * side * side);
    for channel in 0..CHANNELS {
        planes.extend(pixels[channel..].iter().step_by(CHANNELS).map(|&x| f32::from(x)));
    }
    planes
}

/// 2x2 means of planes of side `side`.
fn halve(planes: &[f32], side: usize) -> Vec<f32> {
    let mut halved = Vec::with_capacity(planes.len() / 4);
    for rows in planes.chunks_exact(2 * side) {
        let (upper, lower) = rows.split_at(side);
        for (a, b) in upper.chunks_exact(2).zip(lower.chunks_exact(2)) {
            halved.push((a[0] + a[1] + b[0] + b[1]) * 0.25);
        }
    }
    halved
}

/// Rounded half to even, clipped.
fn to_byte(x: f32) -> u8 {
    x.round_ties_even().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One level out of the concatenation.
    fn level(pyramid: &[u8], resolution: u32) -> &[u8] {
        let start: usize = resolutions(resolution).take_while(|&r| r < resolution).map(image_bytes).sum();
        &pyramid[start..start + image_bytes(resolution)]
    }

    #[test]
    fn a_byte_is_rounded_half_to_even_and_clipped() {
        let cases = [(0.5, 0), (1.5, 2), (2.5, 2), (3.5, 4), (2.4999, 2), (254.5, 254), (255.7, 255), (-3.0, 0)];
        for (x, byte) in cases {
            assert_eq!(to_byte(x), byte, "{x}");
        }
    }

    #[test]
    fn levels_are_4_to_the_top() {
        assert_eq!(resolutions(32).collect::<Vec<_>>(), [4, 8, 16, 32]);
        assert_eq!(resolutions(4).collect::<Vec<_>>(), [4]);
        for bad in [0, 1, 2, 3, 5, 48, 2048] {
            assert!(View::Centre.check(bad).is_err(), "{bad}");
        }
        assert!(View::Centre.check(4).is_ok() && View::Centre.check(1024).is_ok());
    }

    #[test]
    fn what_is_squeezed_has_one_side_of_any_length() {
        assert_eq!(View::Whole.sides(286), [286]);
        assert!(View::Whole.check(286).is_ok() && View::Left.check(4096).is_ok());
        assert!(View::Whole.check(3).is_err() && View::Right.check(4097).is_err());
        assert_eq!(
            View::Whole.levels(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 2),
            [1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12]
        );
    }

    /// Red is `x + 8y` at 8x8, so the 2x2 mean at (i, j) is `2i + 16j + 4.5`: a tie everywhere, to the even neighbour.
    #[test]
    fn means_equal_hand_values() {
        let pixels: Vec<u8> = (0..64u8).flat_map(|red| [red, 0, 200]).collect();
        let pyramid = pyramid(&pixels, 8);
        assert_eq!(&level(&pyramid, 8)[..64], (0..64).collect::<Vec<u8>>());
        let low = level(&pyramid, 4);
        assert_eq!(&low[..4], [4, 6, 8, 10]);
        assert_eq!(&low[12..16], [52, 54, 56, 58]);
        assert!(low[16..32].iter().all(|&x| x == 0) && low[32..].iter().all(|&x| x == 200));
    }

    /// Quads of 1, 1, 1, 0 and 2, 2, 2, 2 ...: rounding each level first would give another byte than rounding once.
    #[test]
    fn a_level_is_the_mean_of_the_unrounded_level_above() {
        // 16x16 grey; every 2x2 block sums to 2, so the mean is 0.5 at 8x8 (byte 0), and 0.5 at 4x4 (byte 0);
        // one block in four sums to 4 (mean 1): 4x4 mean is (0.5 * 3 + 1) / 4 = 0.625 (byte 1), from rounded bytes 0.25.
        let mut pixels = Vec::new();
        for y in 0..16 {
            for x in 0..16 {
                let full = (x / 2) % 2 == 0 && (y / 2) % 2 == 0;
                let grey = u8::from(full || x % 2 == 0);
                pixels.extend([grey; 3]);
            }
        }
        let pyramid = pyramid(&pixels, 16);
        assert_eq!(&level(&pyramid, 8)[..4], [1, 0, 1, 0]);
        assert!(level(&pyramid, 4).iter().all(|&x| x == 1));
    }

    proptest! {
        #[test]
        fn a_constant_stays_itself_on_every_level(r: u8, g: u8, b: u8) {
            let pixels = [r, g, b].repeat(32 * 32);
            let pyramid = pyramid(&pixels, 32);
            for side in resolutions(32) {
                let area = (side * side) as usize;
                let level = level(&pyramid, side);
                for (plane, value) in [r, g, b].into_iter().enumerate() {
                    prop_assert!(level[plane * area..(plane + 1) * area].iter().all(|&x| x == value));
                }
            }
        }

        /// The byte of the 4x4 level is the exact mean of its 8x8 block, from integers, rounded once.
        #[test]
        fn the_lowest_level_is_the_mean_rounded_once(pixels in proptest::collection::vec(any::<u8>(), 3 * 32 * 32)) {
            let pyramid = pyramid(&pixels, 32);
            let low = level(&pyramid, 4);
            for channel in 0..3 {
                for (j, i) in (0..4).flat_map(|j| (0..4).map(move |i| (j, i))) {
                    let sum: u32 = (0..64).map(|k| (8 * j + k / 8, 8 * i + k % 8))
                        .map(|(y, x)| u32::from(pixels[3 * (32 * y + x) + channel])).sum();
                    let (quotient, rest) = (sum / 64, sum % 64);
                    let up = rest > 32 || (rest == 32 && quotient % 2 == 1);
                    prop_assert_eq!(u32::from(low[16 * channel + 4 * j + i]), quotient + u32::from(up));
                }
            }
        }
    }
}
