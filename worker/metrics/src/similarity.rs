//! Structural similarity: SSIM (Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004) and
//! MS-SSIM (Wang, Simoncelli & Bovik 2003), of two images of bytes.
//!
//! Gaussian window of 11x11, sigma 1.5, both shrunk together where the image is smaller; only windows that lie within the image;
//! k1 0.01, k2 0.03, range 255; the mean over channels. Between scales the mean of 2x2 pixels (gan.md 13.2).

/// Side of the window, and its spread.
const WINDOW: usize = 11;
const SIGMA: f32 = 1.5;
const C1: f32 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f32 = (0.03 * 255.0) * (0.03 * 255.0);
/// Weight of each scale, the finest first.
const SCALES: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/// Similarity of two images `[channels, side, side]`: 1 is equal.
///
/// # Panics
/// When they differ in size, or are no squares of `side`: a defect of the caller.
#[must_use]
pub fn ssim(one: &[u8], other: &[u8], side: usize) -> f64 {
    let (one, other) = (planes(one, side), planes(other, side));
    assert_eq!(one.len(), other.len(), "images of equal size are compared");
    let sum: f64 = one.iter().zip(&other).map(|(a, b)| compare(a, b, side).0).sum();
    sum / one.len() as f64
}

/// Similarity over five scales, or as many as leave a pixel: 1 is equal. What is negative counts as 0.
///
/// # Panics
/// As [`ssim`].
#[must_use]
pub fn ms_ssim(one: &[u8], other: &[u8], side: usize) -> f64 {
    let (mut one, mut other) = (planes(one, side), planes(other, side));
    assert_eq!(one.len(), other.len(), "images of equal size are compared");
    let scales = SCALES.len().min(side.max(1).ilog2() as usize + 1);
    let all: f64 = SCALES[..scales].iter().sum();
    let (mut side, mut product) = (side, 1.0);
    for (scale, weight) in SCALES[..scales].iter().enumerate() {
        let both: Vec<(f64, f64)> = one.iter().zip(&other).map(|(a, b)| compare(a, b, side)).collect();
        let mean = |of: fn(&(f64, f64)) -> f64| both.iter().map(of).sum::<f64>() / both.len() as f64;
        let score = if scale + 1 == scales { mean(|both| both.0) } else { mean(|both| both.1) };
        product *= score.max(0.0).powf(weight / all);
        if scale + 1 < scales {
            one.iter_mut().chain(&mut other).for_each(|plane| *plane = halved(plane, side));
            side /= 2;
        }
    }
    product
}

fn planes(image: &[u8], side: usize) -> Vec<Vec<f32>> {
    assert!(
        side > 0 && !image.is_empty() && image.len().is_multiple_of(side * side),
        "an image is planes of {side}x{side}"
    );
    image.chunks_exact(side * side).map(|plane| plane.iter().map(|byte| f32::from(*byte)).collect()).collect()
}

/// Mean of 2x2 pixels; an odd last row or column is left out.
fn halved(plane: &[f32], side: usize) -> Vec<f32> {
    let half = side / 2;
    let at = |y: usize, x: usize| plane[y * side + x];
    let mean = |y: usize, x: usize| (at(y, x) + at(y, x + 1) + at(y + 1, x) + at(y + 1, x + 1)) / 4.0;
    (0..half * half).map(|i| mean(2 * (i / half), 2 * (i % half))).collect()
}

/// Mean over all windows of the whole similarity, and of its contrast and structure alone.
fn compare(one: &[f32], other: &[f32], side: usize) -> (f64, f64) {
    let kernel = window(side);
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<f32>>();
    let blur = |plane: &[f32]| blurred(plane, side, &kernel);
    let (mean_a, mean_b) = (blur(one), blur(other));
    let (aa, bb, ab) = (blur(&product(one, one)), blur(&product(other, other)), blur(&product(one, other)));
    let (mut whole, mut structure) = (0.0f64, 0.0f64);
    for i in 0..mean_a.len() {
        let (a, b) = (mean_a[i], mean_b[i]);
        // rounding may leave a variance below 0
        let (var_a, var_b) = ((aa[i] - a * a).max(0.0), (bb[i] - b * b).max(0.0));
        let cs = (2.0 * (ab[i] - a * b) + C2) / (var_a + var_b + C2);
        let light = (2.0 * a * b + C1) / (a * a + b * b + C1);
        structure += f64::from(cs);
        whole += f64::from(light * cs);
    }
    let count = mean_a.len() as f64;
    (whole / count, structure / count)
}

/// One side of the window for images of `side`.
fn window(side: usize) -> Vec<f32> {
    let size = WINDOW.min(side);
    let sigma = SIGMA * size as f32 / WINDOW as f32;
    let middle = (size as f32 - 1.0) / 2.0;
    let weights: Vec<f32> = (0..size).map(|i| (-0.5 * ((i as f32 - middle) / sigma).powi(2)).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// `plane` seen through the window, where it fits: rows, then columns.
fn blurred(plane: &[f32], side: usize, kernel: &[f32]) -> Vec<f32> {
    let out = side + 1 - kernel.len();
    let mut rows = vec![0.0f32; side * out];
    for (row, to) in plane.chunks_exact(side).zip(rows.chunks_exact_mut(out)) {
        for (i, weight) in kernel.iter().enumerate() {
            to.iter_mut().zip(&row[i..]).for_each(|(to, from)| *to += weight * from);
        }
    }
    let mut whole = vec![0.0f32; out * out];
    for (y, to) in whole.chunks_exact_mut(out).enumerate() {
        for (i, weight) in kernel.iter().enumerate() {
            let from = &rows[(y + i) * out..(y + i + 1) * out];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += weight * from);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::seed::{Purpose, Stream};

    fn noise(seed: u64, side: usize) -> Vec<u8> {
        let mut stream = Stream::new(seed, Purpose::Metric, 0, 0);
        (0..3 * side * side).map(|_| stream.below(256) as u8).collect()
    }

    /// A soft pattern: something that has structure on every scale.
    fn waves(side: usize, phase: f32) -> Vec<u8> {
        let at = |i: usize| {
            let (y, x) = ((i % (side * side)) / side, i % side);
            let wave = (x as f32 * 0.3 + phase).sin() + (y as f32 * 0.17 + phase).cos();
            (127.0 + 60.0 * wave) as u8
        };
        (0..3 * side * side).map(at).collect()
    }

    /// gan.md 19, item 26.
    #[test]
    fn an_image_is_itself() {
        for side in [4, 8, 11, 16, 64, 100] {
            let image = noise(1, side);
            assert!((ssim(&image, &image, side) - 1.0).abs() < 1e-5, "{side}");
            assert!((ms_ssim(&image, &image, side) - 1.0).abs() < 1e-5, "{side}");
        }
    }

    #[test]
    fn likeness_falls_with_the_distance() {
        let side = 64;
        let image = waves(side, 0.0);
        let near: Vec<u8> = image.iter().map(|byte| byte.saturating_add(5)).collect();
        let far = waves(side, 1.5);
        let [near, far, none] =
            [&near, &far, &noise(2, side)].map(|other| (ssim(&image, other, side), ms_ssim(&image, other, side)));
        assert!(near.0 > 0.95 && near.1 > 0.95, "{near:?}");
        assert!(far.0 < near.0 && far.1 < near.1, "{far:?}");
        assert!(none.0 < 0.1 && none.1 < 0.1, "{none:?}");
        assert!(ssim(&image, &image.iter().map(|byte| 255 - byte).collect::<Vec<_>>(), side) < 0.0);
    }

    /// One constant image against another: no contrast, so only the light differs; by hand from the formula.
    #[test]
    fn constant_images_differ_in_light_alone() {
        let (one, other) = (vec![100u8; 3 * 16 * 16], vec![50u8; 3 * 16 * 16]);
        let light = f64::from((2.0 * 100.0 * 50.0 + C1) / (100.0f32.powi(2) + 50.0f32.powi(2) + C1));
        assert!((ssim(&one, &other, 16) - light).abs() < 1e-3, "{}", ssim(&one, &other, 16));
    }

    #[test]
    fn the_window_fits_and_sums_to_one() {
        for side in 1..14 {
            let window = window(side);
            assert_eq!(window.len(), side.min(11));
            assert!((window.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert_eq!(blurred(&vec![3.0; side * side], side, &window).len(), (side + 1 - window.len()).pow(2));
        }
    }
}
