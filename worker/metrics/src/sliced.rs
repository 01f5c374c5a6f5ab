//! The sliced Wasserstein distance of two equal numbers of points: the mean, over directions, of the distance in one
//! dimension, where sorting both sides pairs each point with its counterpart.
//!
//! A block of directions at a time is projected as one matrix product and then sorted, a thread per direction.

use common::seed::{Purpose, Stream};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

/// Projections held at once for each of the two sets, numbers: 256 MB.
const BLOCK_VALUES: usize = 1 << 26;
/// Directions in a block: enough to feed a matrix product, as few as memory asks for.
const BLOCK_DIRECTIONS: std::ops::RangeInclusive<usize> = 16..=128;
/// Points in one matrix product.
const CHUNK_POINTS: usize = 4096;

/// `count` unit vectors of `size` dimensions, uniform over the sphere.
pub(crate) fn directions(seed: u64, level: u32, count: usize, size: usize) -> Vec<f32> {
    let mut directions = vec![0.0; count * size];
    for (n, direction) in directions.chunks_exact_mut(size).enumerate() {
        // Odd steps: patches take the even ones.
        Stream::new(seed, Purpose::Metric, 2 * u64::from(level) + 1, n as u64).normals(direction);
        let length = direction.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        direction.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    directions
}

/// Mean distance of the points `a` and `b` (as many, each of `size` numbers) over `directions`.
pub(crate) fn distance(a: &[f32], b: &[f32], size: usize, directions: &[f32]) -> f64 {
    let points = a.len() / size;
    let block = (BLOCK_VALUES / points.max(1)).clamp(*BLOCK_DIRECTIONS.start(), *BLOCK_DIRECTIONS.end());
    let distances: Vec<f64> = directions
        .chunks(block * size)
        .flat_map(|block| {
            let (a, b) = (Projections::new(a, size, block), Projections::new(b, size, block));
            (0..block.len() / size)
                .into_par_iter()
                .map_init(<[Vec<u32>; 3]>::default, |[left, right, scratch], direction| {
                    a.sorted(direction, left, scratch);
                    b.sorted(direction, right, scratch);
                    let pairs = left.iter().zip(right.iter());
                    pairs.map(|(&x, &y)| f64::from((value(x) - value(y)).abs())).sum::<f64>() / points as f64
                })
                .collect::<Vec<f64>>()
        })
        .collect();
    distances.iter().sum::<f64>() / distances.len() as f64
}

/// Points times directions, chunk of points by chunk of points, within a chunk direction by direction.
struct Projections {
    values: Vec<f32>,
    directions: usize,
}

impl Projections {
    fn new(points: &[f32], size: usize, directions: &[f32]) -> Self {
        let count = directions.len() / size;
        let mut values = vec![0.0; points.len() / size * count];
        let chunks = values.par_chunks_mut(CHUNK_POINTS * count).zip(points.par_chunks(CHUNK_POINTS * size));
        chunks.for_each(|(out, points)| {
            let rows = points.len() / size;
            let view = "lengths are products of the dimensions";
            let directions = ArrayView2::from_shape((count, size), directions).expect(view);
            let points = ArrayView2::from_shape((rows, size), points).expect(view);
            let mut out = ArrayViewMut2::from_shape((count, rows), out).expect(view);
            general_mat_mul(1.0, &directions, &points.t(), 0.0, &mut out);
        });
        Self { values, directions: count }
    }

    /// The projections on one direction as [`key`]s, ascending.
    fn sorted(&self, direction: usize, keys: &mut Vec<u32>, scratch: &mut Vec<u32>) {
        keys.clear();
        for chunk in self.values.chunks(CHUNK_POINTS * self.directions) {
            let rows = chunk.len() / self.directions;
            keys.extend(chunk[direction * rows..][..rows].iter().map(|&x| key(x)));
        }
        sort(keys, scratch);
    }
}

/// A number that sorts as `x` does.
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The number of a [`key`].
fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// Radix sort, least significant digit first, three passes of 11 bits: several times faster than comparing, for the sets of
/// 10^5 to 10^6 numbers met here.
fn sort(keys: &mut Vec<u32>, scratch: &mut Vec<u32>) {
    const BITS: u32 = 11;
    scratch.clear();
    scratch.resize(keys.len(), 0);
    for pass in 0..3 {
        let digit = |key: u32| (key >> (pass * BITS)) as usize & ((1 << BITS) - 1);
        let mut starts = [0usize; 1 << BITS];
        keys.iter().for_each(|&key| starts[digit(key)] += 1);
        let mut sum = 0;
        for start in &mut starts {
            sum += std::mem::replace(start, sum);
        }
        for &key in keys.iter() {
            let place = &mut starts[digit(key)];
            scratch[*place] = key;
            *place += 1;
        }
        std::mem::swap(keys, scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn in_one_dimension_sorted_points_are_paired() {
        // {0, 2} and {1, 3}: 0-1 and 2-3.
        assert_eq!(distance(&[2.0, 0.0], &[3.0, 1.0], 1, &[1.0]), 1.0);
        // {-1, 0, 4} and {-3, 2, 2}: 2, 2, 2; the other way round the same.
        assert_eq!(distance(&[4.0, -1.0, 0.0], &[2.0, 2.0, -3.0], 1, &[1.0]), 2.0);
        assert_eq!(distance(&[4.0, -1.0, 0.0], &[2.0, 2.0, -3.0], 1, &[-1.0]), 2.0);
    }

    #[test]
    fn in_two_dimensions_directions_are_averaged() {
        // Shifted by (3, 4): along x 3, along y 4, along (0.6, 0.8) 5.
        let (a, b) = ([0.0, 0.0, 1.0, 7.0], [4.0, 11.0, 3.0, 4.0]);
        assert_eq!(distance(&a, &b, 2, &[1.0, 0.0]), 3.0);
        assert_eq!(distance(&a, &b, 2, &[1.0, 0.0, 0.0, 1.0]), 3.5);
        assert!((distance(&a, &b, 2, &[0.6, 0.8]) - 5.0).abs() < 1e-6);
    }

    #[test]
    fn directions_are_unit_vectors_of_their_own() {
        let vectors = directions(1, 32, 8, 147);
        for vector in vectors.chunks_exact(147) {
            assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
        assert_ne!(vectors[..147], vectors[147..294]);
        assert_eq!(vectors, directions(1, 32, 8, 147));
        assert_ne!(vectors, directions(1, 16, 8, 147));
        assert_ne!(vectors, directions(2, 32, 8, 147));
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_numbers(mut numbers in proptest::collection::vec(-1e6f32..1e6, 0..200)) {
            let mut keys: Vec<u32> = numbers.iter().map(|&x| key(x)).collect();
            sort(&mut keys, &mut Vec::new());
            numbers.sort_by(f32::total_cmp);
            prop_assert_eq!(keys.into_iter().map(value).collect::<Vec<_>>(), numbers);
        }

        /// More points than one chunk: the order of the points does not enter.
        #[test]
        fn points_in_another_order_are_the_same_set(by in 1usize..5000) {
            let points: Vec<f32> = (0..10_000).map(|i| ((i * 7919) % 1009) as f32).collect();
            let mut rotated = points.clone();
            rotated.rotate_left(2 * by);
            prop_assert!(distance(&points, &rotated, 2, &directions(3, 16, 4, 2)) < 1e-9);
        }
    }
}
