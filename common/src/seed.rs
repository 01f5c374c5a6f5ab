//! Randomness per *global sample index*: a run is a function of its seed, whatever the number of workers.
//!
//! Every draw comes from a ChaCha8 stream whose key is (run seed, purpose, step) and whose stream number is the sample's
//! position in the global minibatch. No generator has state to save: a resumed or resized run asks the same question and
//! gets the same answer. Which bits come out is fixed by tests; changing them changes every run.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// What a draw is for. The numbers are part of the format of a run and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial value of a parameter; step = index of the parameter, sample = 0.
    Init = 1,
    /// Order of the images of one pass; step = number of the pass.
    Shuffle = 2,
    /// Latents of the fakes that D is trained on.
    LatentD = 3,
    /// Latents that G is trained on.
    LatentG = 4,
    /// Mixing factor between real and fake in the gradient penalty.
    PenaltyMix = 5,
    /// Mirror flip of a real image.
    Mirror = 6,
    /// Latents of sample grids: fixed for the run.
    Sample = 7,
    /// Latents of images made for a metric.
    Evaluate = 8,
    /// Patches and projections of a metric.
    Metric = 9,
    /// Faults on purpose; step = number of the fault, sample = how often it struck.
    Fault = 10,
    /// Another seed for what follows after training diverged; step = number of the draw.
    Redraw = 11,
    /// Which image of the second domain is shown beside one of the first.
    Unpaired = 12,
    /// Where an image is cropped.
    Crop = 13,
    /// Whether D is shown a made image or an older one, and which.
    Pool = 14,
    /// Which activations are dropped.
    Dropout = 15,
    /// How what D is shown is moved and resized.
    Augment = 16,
}

/// The seed of all draws of training after its `draw`th new start: `seed` itself at first.
#[must_use]
pub fn redrawn(seed: u64, draw: u64) -> u64 {
    if draw == 0 { seed } else { Stream::new(seed, Purpose::Redraw, draw, 0).0.next_u64() }
}

/// The stream of one sample at one step.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// `step` counts whatever `purpose` says (usually images seen); `sample` is the index in the global minibatch.
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose, step: u64, sample: u64) -> Self {
        let mut key = [0u8; 32];
        key[0..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
        key[16..24].copy_from_slice(&step.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(sample);
        Self(rng)
    }

    /// The part numbered `part` of this stream, from its beginning: parts do not meet before 2^32 draws.
    #[must_use]
    pub fn of(mut self, part: u64) -> Self {
        self.0.set_word_pos(u128::from(part) << 32);
        self
    }

    /// Fills `out` with draws from N(0, 1).
    pub fn normals(&mut self, out: &mut [f32]) {
        for x in out {
            let value: f64 = StandardNormal.sample(&mut self.0);
            *x = value as f32;
        }
    }

    /// Uniform in [0, 1), with 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// A fair coin.
    pub fn coin(&mut self) -> bool {
        self.0.next_u32() >> 31 == 1
    }

    /// Uniform in `0..n` without bias (Lemire's multiply-and-reject). `n` must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a draw needs at least one choice");
        loop {
            let wide = u128::from(self.0.next_u64()) * u128::from(n);
            if (wide as u64) >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }
}

/// The order of `count` images in pass number `pass`: a Fisher-Yates shuffle, one global permutation per pass.
#[must_use]
pub fn permutation(seed: u64, pass: u64, count: usize) -> Vec<u32> {
    let mut stream = Stream::new(seed, Purpose::Shuffle, pass, 0);
    let mut order: Vec<u32> = (0..count as u32).collect();
    for i in (1..count).rev() {
        order.swap(i, stream.below(i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_the_key_and_repeat() {
        let draw = |seed, purpose, step, sample| {
            let mut out = [0.0f32; 4];
            Stream::new(seed, purpose, step, sample).normals(&mut out);
            out
        };
        let base = draw(1, Purpose::LatentD, 7, 3);
        assert_eq!(base, draw(1, Purpose::LatentD, 7, 3));
        assert_ne!(base, draw(2, Purpose::LatentD, 7, 3));
        assert_ne!(base, draw(1, Purpose::LatentG, 7, 3));
        assert_ne!(base, draw(1, Purpose::LatentD, 8, 3));
        assert_ne!(base, draw(1, Purpose::LatentD, 7, 4));
    }

    #[test]
    fn the_bits_are_fixed() {
        let mut out = [0.0f32; 3];
        Stream::new(1, Purpose::LatentD, 0, 0).normals(&mut out);
        assert_eq!(out.map(f32::to_bits), PINNED, "{out:?} {:?}", out.map(f32::to_bits));
    }
    const PINNED: [u32; 3] = [1_003_342_272, 3_217_898_743, 1_054_923_289];

    #[test]
    fn normals_have_mean_0_and_variance_1() {
        let mut out = vec![0.0f32; 200_000];
        Stream::new(5, Purpose::Init, 0, 0).normals(&mut out);
        let mean = out.iter().map(|&x| f64::from(x)).sum::<f64>() / out.len() as f64;
        let var = out.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / out.len() as f64;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "{mean} {var}");
    }

    proptest::proptest! {
        #[test]
        fn a_permutation_holds_every_index_once(seed: u64, pass in 0u64..1000, count in 0usize..500) {
            let mut order = permutation(seed, pass, count);
            order.sort_unstable();
            proptest::prop_assert!(order.iter().enumerate().all(|(i, &x)| i as u32 == x));
        }

        #[test]
        fn below_stays_below(seed: u64, n in 1u64..u64::MAX) {
            proptest::prop_assert!(Stream::new(seed, Purpose::Metric, 0, 0).below(n) < n);
        }
    }
}
