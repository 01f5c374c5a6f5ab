//! The distance as a whole, on sets whose answer is known.

use common::seed::{Purpose, Stream};
use metrics::{ImageSource, ReadError, Subset, Swd, SwdError, swd};
use std::collections::BTreeMap;

const COUNT: usize = 48;

/// Images from a function of index, channel, x and y.
struct Made<F> {
    count: usize,
    side: usize,
    pixel: F,
}

impl<F: Fn(usize, usize, usize, usize) -> u8 + Sync> ImageSource for Made<F> {
    fn len(&self) -> usize {
        self.count
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), ReadError> {
        let area = self.side * self.side;
        for (n, x) in out.iter_mut().enumerate() {
            *x = (self.pixel)(index, n / area, n % self.side, n % area / self.side);
        }
        Ok(())
    }
}

/// Smooth discs at random places in random colours.
fn discs(side: usize, seed: u64) -> impl ImageSource {
    let draws: Vec<[f32; 6]> = (0..2 * COUNT as u64)
        .map(|index| {
            let mut stream = Stream::new(seed, Purpose::Metric, 0, index);
            std::array::from_fn(|_| stream.uniform())
        })
        .collect();
    let pixel = move |index: usize, channel: usize, x: usize, y: usize| {
        let [cx, cy, radius, colours @ ..] = draws[index];
        let place = |at: usize, centre: f32| at as f32 / side as f32 - centre;
        let far = (place(x, cx).powi(2) + place(y, cy).powi(2)).sqrt() / (0.2 + 0.3 * radius);
        (255.0 * colours[channel] / (1.0 + far.powi(4))) as u8
    };
    Made { count: 2 * COUNT, side, pixel }
}

/// Independent noise.
fn noise(side: usize) -> impl ImageSource {
    let bytes: Vec<u8> = {
        let mut stream = Stream::new(77, Purpose::Metric, 0, 0);
        (0..COUNT * 3 * side * side).map(|_| (stream.uniform() * 256.0) as u8).collect()
    };
    Made { count: COUNT, side, pixel: move |i, c, x, y| bytes[((i * 3 + c) * side + y) * side + x] }
}

fn light(images: usize) -> Swd {
    Swd { patches_per_image: 32, directions: 64, ..Swd::new(images, 5) }
}

fn levels(real: &dyn ImageSource, fake: &dyn ImageSource, resolution: u32) -> BTreeMap<u32, f64> {
    light(COUNT).levels(real, fake, resolution).unwrap()
}

/// Checklist item 24.
#[test]
fn itself_0_other_half_floor_noise_large() {
    let whole = discs(32, 1);
    let half = |odd: usize| Subset { source: &whole, indices: (0..COUNT).map(|i| 2 * i + odd).collect() };
    let (even, odd) = (half(0), half(1));
    let itself = levels(&even, &even, 32);
    let floor = levels(&even, &odd, 32);
    let far = levels(&even, &noise(32), 32);
    assert_eq!(itself.keys().copied().collect::<Vec<_>>(), [16, 32]);
    for level in [16, 32] {
        assert_eq!(itself[&level], 0.0);
        assert!(floor[&level] > 0.0, "{floor:?}");
        assert!(far[&level] > 3.0 * floor[&level], "at {level}: floor {floor:?}, noise {far:?}");
    }
}

#[test]
fn the_order_of_the_images_hardly_matters() {
    let (whole, other) = (discs(32, 1), noise(32));
    let reversed = Subset { source: &other, indices: (0..COUNT).rev().collect() };
    let (one, two) = (levels(&whole, &other, 32), levels(&whole, &reversed, 32));
    for level in [16, 32] {
        assert!((one[&level] / two[&level] - 1.0).abs() < 0.05, "{one:?} {two:?}");
    }
}

#[test]
fn the_same_question_has_the_same_answer_on_any_number_of_threads() {
    let (a, b) = (discs(16, 1), discs(16, 2));
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| levels(&a, &b, 16))
    };
    assert_eq!(on(1), on(3));
    let other_seed = Swd { seed: 6, ..light(COUNT) }.levels(&a, &b, 16).unwrap();
    assert_ne!(other_seed, on(1));
    assert!((other_seed[&16] / on(1)[&16] - 1.0).abs() < 0.3);
}

#[test]
fn small_resolutions_have_one_level() {
    for resolution in [4, 8] {
        let (a, b) = (discs(resolution as usize, 1), discs(resolution as usize, 2));
        let levels = levels(&a, &b, resolution);
        assert_eq!(levels.keys().copied().collect::<Vec<_>>(), [resolution]);
        assert!(levels[&resolution] > 0.0);
    }
}

/// A generator that collapsed to one colour is as far away as normalised data is wide, and no NaN.
#[test]
fn a_collapsed_generator_has_a_finite_distance() {
    let grey = Made { count: COUNT, side: 16, pixel: |_, _, _, _| 128 };
    let distance = levels(&discs(16, 1), &grey, 16)[&16];
    assert!(distance.is_finite() && distance > 300.0, "{distance}");
}

#[test]
fn wrong_questions_are_refused() {
    let whole = discs(16, 1);
    let refused = |count, resolution| swd(&whole, &whole, resolution, count, 0).unwrap_err();
    assert!(matches!(refused(2 * COUNT + 1, 16), SwdError::TooFew { wanted: 97, have: 96 }));
    assert!(matches!(refused(0, 16), SwdError::Nothing("images")));
    assert!(matches!(refused(1, 12), SwdError::Resolution(12)));
    assert!(matches!(refused(1, 2), SwdError::Resolution(2)));
    let beyond = Subset { source: &whole, indices: vec![0] };
    assert!(beyond.read(1, &mut []).is_err());
    struct Broken;
    impl ImageSource for Broken {
        fn len(&self) -> usize {
            1
        }
        fn read(&self, _: usize, _: &mut [u8]) -> Result<(), ReadError> {
            Err("disk on fire".into())
        }
    }
    let error = swd(&Broken, &whole, 16, 1, 0).unwrap_err();
    assert!(matches!(error, SwdError::Read { index: 0, .. }) && error.to_string().contains("disk on fire"));
}
