//! The Laplacian pyramid: what an image holds at each scale. Pure, on planes of floats.
//!
//! `down` filters by the 5x5 binomial and keeps even rows and columns; `up` spreads values over a grid twice as large and
//! filters by four times the same. Edges are mirrored without repeating the edge. A level is what `up(down(image))` loses;
//! the lowest is the remaining low-pass image itself, so `up` from level to level, summed, gives the image back.

/// The binomial filter along one axis; its sum is 16.
const BINOMIAL: [f32; 5] = [1.0, 4.0, 6.0, 4.0, 1.0];
/// Side of the lowest level, pixels.
const LOWEST: u32 = 16;

/// Levels of an image of side `resolution`, highest first: down to 16, or the image alone below that.
pub fn levels(resolution: u32) -> impl Iterator<Item = u32> {
    let lowest = LOWEST.min(resolution).max(1);
    std::iter::successors(Some(resolution), |side| Some(side / 2)).take_while(move |&side| side >= lowest)
}

/// The level of side `level` of an image (planes of side `side`).
pub(crate) fn level(mut image: Vec<f32>, mut side: usize, level: usize) -> Vec<f32> {
    let lowest = (LOWEST as usize).min(side);
    while side > level {
        image = down(&image, side);
        side /= 2;
    }
    if side > lowest {
        let rest = up(&down(&image, side), side / 2);
        image.iter_mut().zip(&rest).for_each(|(x, rest)| *x -= rest);
    }
    image
}

/// Half the side.
fn down(planes: &[f32], side: usize) -> Vec<f32> {
    let half = side / 2;
    let mut out = Vec::with_capacity(planes.len() / 4);
    let mut rows = vec![0.0; half * side];
    for plane in planes.chunks_exact(side * side) {
        for (y, row) in rows.chunks_exact_mut(side).enumerate() {
            row.fill(0.0);
            for (tap, weight) in BINOMIAL.into_iter().enumerate() {
                let source = &plane[mirror(2 * y + tap, side) * side..][..side];
                row.iter_mut().zip(source).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        for row in rows.chunks_exact(side) {
            out.extend((0..half).map(|x| {
                let taps = BINOMIAL.into_iter().enumerate();
                taps.map(|(tap, weight)| weight * row[mirror(2 * x + tap, side)]).sum::<f32>() / 256.0
            }));
        }
    }
    out
}

/// Twice the side. Of the five taps only those count that meet a value, never a spread zero.
fn up(planes: &[f32], side: usize) -> Vec<f32> {
    let double = 2 * side;
    let mut out = Vec::with_capacity(planes.len() * 4);
    let mut rows = vec![0.0; double * side];
    let meets = |at: usize| {
        let taps = BINOMIAL.into_iter().enumerate();
        taps.filter(move |(tap, _)| (at + tap).is_multiple_of(2))
            .map(move |(tap, weight)| (mirror(at + tap, double) / 2, weight))
    };
    for plane in planes.chunks_exact(side * side) {
        for (y, row) in rows.chunks_exact_mut(side).enumerate() {
            row.fill(0.0);
            for (source, weight) in meets(y) {
                row.iter_mut().zip(&plane[source * side..][..side]).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        for row in rows.chunks_exact(side) {
            out.extend((0..double).map(|x| meets(x).map(|(source, weight)| weight * row[source]).sum::<f32>() / 64.0));
        }
    }
    out
}

/// The place that position `at - 2` of a line of `side` values has after mirroring at both ends.
fn mirror(at: usize, side: usize) -> usize {
    let at = at.abs_diff(2);
    if at < side { at } else { 2 * (side - 1) - at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_go_down_to_16() {
        assert_eq!(levels(1024).collect::<Vec<_>>(), [1024, 512, 256, 128, 64, 32, 16]);
        assert_eq!(levels(16).collect::<Vec<_>>(), [16]);
        assert_eq!(levels(8).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn edges_are_mirrored_without_repeating_the_edge() {
        let places: Vec<_> = (0..9).map(|at| mirror(at, 5)).collect();
        assert_eq!(places, [2, 1, 0, 1, 2, 3, 4, 3, 2]);
    }

    /// By the definition: all 25 taps of the two-dimensional filter.
    fn filtered(plane: &[f32], side: usize, x: usize, y: usize) -> f32 {
        let taps = (0..5).flat_map(|j| (0..5).map(move |i| (i, j)));
        taps.map(|(i, j)| {
            let weight = BINOMIAL[i] * BINOMIAL[j] / 256.0;
            weight * plane[mirror(y + j, side) * side + mirror(x + i, side)]
        })
        .sum()
    }

    fn plane() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec((0u8..=255).prop_map(f32::from), 64)
    }

    proptest! {
        #[test]
        fn down_is_the_filter_at_even_places(plane in plane()) {
            for (n, got) in down(&plane, 8).into_iter().enumerate() {
                prop_assert!((got - filtered(&plane, 8, n % 4 * 2, n / 4 * 2)).abs() < 1e-4);
            }
        }

        #[test]
        fn up_is_four_times_the_filter_of_the_spread_values(plane in plane()) {
            let mut spread = vec![0.0; 256];
            for (n, &value) in plane.iter().enumerate() {
                spread[n / 8 * 32 + n % 8 * 2] = value;
            }
            for (n, got) in up(&plane, 8).into_iter().enumerate() {
                prop_assert!((got - 4.0 * filtered(&spread, 16, n % 16, n / 16)).abs() < 1e-4);
            }
        }

        #[test]
        fn levels_summed_upwards_give_the_image_back(image in proptest::collection::vec((0u8..=255).prop_map(f32::from), 64 * 64)) {
            let mut sum = level(image.clone(), 64, 16);
            for side in [32, 64] {
                let detail = level(image.clone(), 64, side);
                sum = up(&sum, side / 2).into_iter().zip(detail).map(|(low, high)| low + high).collect();
            }
            for (got, expected) in sum.into_iter().zip(image) {
                prop_assert!((got - expected).abs() < 1e-4, "{got} {expected}");
            }
        }

        #[test]
        fn a_constant_has_no_detail(value: u8) {
            let image = vec![f32::from(value); 3 * 32 * 32];
            prop_assert!(level(image.clone(), 32, 32).iter().all(|&x| x == 0.0));
            prop_assert!(level(image, 32, 16).iter().all(|&x| x == f32::from(value)));
        }
    }
}
