//! Random moments of a run at which a test strikes: drawn from a seed, so that a failure can be had again.

use crate::launched::Launched;
use std::time::Duration;

/// Trials of each kind: 3, or 20 when `GANFLEET_LONG=1`.
#[must_use]
pub fn trials() -> u64 {
    if std::env::var("GANFLEET_LONG").as_deref() == Ok("1") { 20 } else { 3 }
}

/// Moments of the tiny run, and other choices.
#[derive(Clone, Debug)]
pub struct Moments(u64);

impl Moments {
    /// The moments of trial number `trial` of the kind called `kind`. `GANFLEET_SEED` gives others.
    ///
    /// # Panics
    /// When `GANFLEET_SEED` is no number.
    #[must_use]
    pub fn new(kind: &str, trial: u64) -> Self {
        let seed: u64 =
            std::env::var("GANFLEET_SEED").map_or(1, |text| text.parse().expect("GANFLEET_SEED is a number"));
        let of_kind = kind.bytes().fold(seed, |hash, byte| hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        Self(of_kind.wrapping_mul(1000).wrapping_add(trial))
    }

    /// A number below `n`, by SplitMix64.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// Lets `run` go on to a random moment: now and then one of its start, else some milliseconds after a tick that is
    /// far enough from its end. Says which.
    pub fn reach(&mut self, run: &mut Launched<'_>) -> String {
        const TICKS: u64 = 36;
        const TICK_IMAGES: u64 = 16;
        let place = match self.below(TICKS + 4) {
            0 => "the start".to_owned(),
            1 => run.wait_for("prepared").to_string(),
            2 => run.wait_for("launched").to_string(),
            3 => run.wait_where("generation", |event| event["decision"]["reason"] == "formed").to_string(),
            tick => {
                let images = (tick - 3) * TICK_IMAGES;
                run.wait_for_images(images);
                format!("{images} images")
            }
        };
        let more = Duration::from_millis(self.below(40));
        run.let_pass(more);
        format!("{more:?} after {place}")
    }
}
