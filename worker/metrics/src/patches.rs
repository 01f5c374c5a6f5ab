//! Descriptors: random patches of one pyramid level of every image, normalised per colour over the whole set.

use crate::{ImageSource, Swd, SwdError, laplacian};
use common::seed::{Purpose, Stream};
use rayon::prelude::*;

/// Side of a patch; a smaller image is one patch itself.
const SIDE: usize = 7;
/// Red, green, blue.
const CHANNELS: usize = 3;
/// Values per partial sum: fixed, so that sums do not depend on the number of threads.
const SUM_DESCRIPTORS: usize = 1024;
/// Standard deviation in grey levels below which a colour counts as constant and is only centred.
const FLAT: f64 = 1e-6;

/// Descriptors of one set on one level, one after the other.
pub(crate) struct Descriptors {
    pub values: Vec<f32>,
    /// Numbers in each: 3 x 7 x 7, channel by channel.
    pub size: usize,
}

/// Descriptors of the first images of `source` on the level of side `level`. Places depend on image index, level and seed
/// alone: a set compared with itself is compared patch by patch.
pub(crate) fn descriptors(
    swd: &Swd,
    source: &dyn ImageSource,
    resolution: u32,
    level: u32,
) -> Result<Descriptors, SwdError> {
    let (side, level_side) = (resolution as usize, level as usize);
    let patch = SIDE.min(level_side);
    let size = CHANNELS * patch * patch;
    let mut values = vec![0.0; swd.images * swd.patches_per_image * size];
    values.par_chunks_mut(swd.patches_per_image * size).enumerate().try_for_each_init(
        || vec![0; CHANNELS * side * side],
        |bytes, (index, out)| {
            source.read(index, bytes).map_err(|error| SwdError::Read { index, error })?;
            let image = bytes.iter().map(|&x| f32::from(x)).collect();
            let image = laplacian::level(image, side, level_side);
            let mut stream = Stream::new(swd.seed, Purpose::Metric, patch_step(level), index as u64);
            let fits = (level_side - patch + 1) as u64;
            for out in out.chunks_exact_mut(size) {
                let (x, y) = (stream.below(fits) as usize, stream.below(fits) as usize);
                for (out, plane) in out.chunks_exact_mut(patch * patch).zip(image.chunks_exact(level_side * level_side))
                {
                    for (row, out) in out.chunks_exact_mut(patch).enumerate() {
                        out.copy_from_slice(&plane[(y + row) * level_side + x..][..patch]);
                    }
                }
            }
            Ok(())
        },
    )?;
    normalise(&mut values, size);
    Ok(Descriptors { values, size })
}

/// The step of [`Purpose::Metric`] that draws patches of a level; directions take the odd ones.
fn patch_step(level: u32) -> u64 {
    2 * u64::from(level)
}

/// Mean 0 and variance 1 per colour over all descriptors.
fn normalise(values: &mut [f32], size: usize) {
    let area = size / CHANNELS;
    let partial: Vec<[[f64; 2]; CHANNELS]> = values
        .par_chunks(SUM_DESCRIPTORS * size)
        .map(|descriptors| {
            let mut sums = [[0.0; 2]; CHANNELS];
            for (n, plane) in descriptors.chunks_exact(area).enumerate() {
                let [sum, squares] = &mut sums[n % CHANNELS];
                for &x in plane {
                    *sum += f64::from(x);
                    *squares += f64::from(x) * f64::from(x);
                }
            }
            sums
        })
        .collect();
    let count = (values.len() / CHANNELS) as f64;
    let affine: [(f32, f32); CHANNELS] = std::array::from_fn(|channel| {
        let total = |moment: usize| partial.iter().map(|sums| sums[channel][moment]).sum::<f64>();
        let mean = total(0) / count;
        let deviation = (total(1) / count - mean * mean).max(0.0).sqrt();
        (mean as f32, if deviation < FLAT { 1.0 } else { (1.0 / deviation) as f32 })
    });
    values.par_chunks_mut(size).for_each(|descriptor| {
        for (plane, (mean, scale)) in descriptor.chunks_exact_mut(area).zip(affine) {
            plane.iter_mut().for_each(|x| *x = (*x - mean) * scale);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReadError;

    struct Ramp;

    impl ImageSource for Ramp {
        fn len(&self) -> usize {
            4
        }

        fn read(&self, index: usize, out: &mut [u8]) -> Result<(), ReadError> {
            out.iter_mut().enumerate().for_each(|(i, x)| *x = (i * (index + 1) % 251) as u8);
            Ok(())
        }
    }

    #[test]
    fn every_colour_has_mean_0_and_variance_1() {
        let swd = Swd { patches_per_image: 8, ..Swd::new(4, 1) };
        let Descriptors { values, size } = descriptors(&swd, &Ramp, 16, 16).unwrap();
        assert_eq!((size, values.len()), (147, 4 * 8 * 147));
        for channel in 0..3 {
            let of_colour =
                || values.chunks_exact(size).flat_map(|d| &d[49 * channel..49 * (channel + 1)]).map(|&x| f64::from(x));
            let n = of_colour().count() as f64;
            let mean = of_colour().sum::<f64>() / n;
            let variance = of_colour().map(|x| x * x).sum::<f64>() / n;
            assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
        }
    }

    #[test]
    fn a_constant_colour_is_centred_not_blown_up() {
        let mut values = [5.0, 1.0, 7.0, 5.0, 3.0, 7.0];
        normalise(&mut values, 3);
        assert_eq!(values, [0.0, -1.0, 0.0, 0.0, 1.0, 0.0]);
    }

    /// Below 16 pixels the image is its own level, and at 4 pixels its own patch.
    #[test]
    fn a_tiny_image_is_its_own_patch() {
        let swd = Swd { patches_per_image: 2, ..Swd::new(1, 1) };
        let Descriptors { values, size } = descriptors(&swd, &Ramp, 4, 4).unwrap();
        assert_eq!(size, 48);
        assert_eq!(values[..48], values[48..]);
        assert!(values[..16].is_sorted());
    }
}
