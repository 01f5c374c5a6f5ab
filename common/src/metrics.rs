//! What a run reports about itself: one [`Tick`] per tick, one [`Quality`] per evaluation. Lines of `metrics.jsonl`.
//!
//! A tick is a span of training (gan.md 1.11: 160 kimg at 4x4 down to 10 kimg at 1024x1024, or as configured) after which
//! the device is read once; between ticks nothing waits for the device.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// Progress and losses.
    Tick(Tick),
    /// A quality metric.
    Quality(Quality),
    /// Something that people should know.
    Verdict(Verdict),
}

impl Event {
    /// Real images shown to the discriminator since the run began.
    #[must_use]
    pub fn images(&self) -> u64 {
        match self {
            Self::Tick(tick) => tick.images,
            Self::Quality(quality) => quality.images,
            Self::Verdict(verdict) => verdict.images,
        }
    }
}

impl Event {
    /// Whether the run is to end because of it.
    #[must_use]
    pub fn ends(&self) -> bool {
        matches!(self, Self::Verdict(verdict) if verdict.what == STOP)
    }
}

/// A [`Verdict`] that ends the run: its coordinator has it stopped.
pub const STOP: &str = "stop";

/// What was found out about a run, in words for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Real images shown to the discriminator since the run began.
    pub images: u64,
    /// What it is: `collapse`, `oscillation`, ...; or [`STOP`].
    pub what: String,
    /// The numbers that say so.
    pub evidence: String,
    /// What to try; nothing where nothing is wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// State and averages at the end of a tick.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tick {
    /// Real images shown to the discriminator since the run began.
    pub images: u64,
    /// Images at which the run ends.
    pub total_images: u64,
    /// Level of detail: 0 is the full resolution, each whole number halves it.
    pub lod: f64,
    /// Active resolution in pixels.
    pub resolution: u32,
    /// Share of the new resolution in the image, 0 at the start of a fade, 1 in a stable phase.
    pub alpha: f64,
    /// Global minibatch.
    pub minibatch: u32,
    /// Workers in this generation.
    pub world: u32,
    /// Number of this generation.
    pub generation: u64,
    /// Seconds of wall clock since this generation began.
    pub seconds: f64,
    /// Seconds per 1000 images over this tick.
    pub sec_per_kimg: f64,
    /// Images per second over this tick.
    pub img_per_sec: f64,
    /// Peak resident memory of this worker, MiB.
    pub memory_mib: f64,
    /// Updates skipped because a reduced gradient was not finite, since the run began.
    pub skipped_updates: u64,
    /// Means over the tick of the statistics that the model names (`loss/d`, `score/real`, `gradient_norm/d`, ...). In JSON, which
    /// knows no other, those that are not finite are null.
    #[serde(deserialize_with = "null_is_nan")]
    pub stats: BTreeMap<String, f64>,
    /// Where the time of this tick went, seconds: `data`, `compute`, `reduce_wait`, `checkpoint`, `other`.
    pub spent: BTreeMap<String, f64>,
}

/// A metric: a value per level, with the floor that equal distributions would give.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Real images shown to the discriminator since the run began.
    pub images: u64,
    /// [`names`].
    pub metric: String,
    /// What is judged: a direction of a translator, as in `a2b`. Empty where there is but one thing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// Network whose features are compared, where any are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub features: String,
    /// Images compared on each side.
    pub count: u32,
    /// Resolution of the level -> value (for `swd`: x 1000).
    #[serde(deserialize_with = "by_resolution")]
    pub levels: BTreeMap<u32, f64>,
    /// The same for real against other real images.
    #[serde(deserialize_with = "by_resolution")]
    pub floor: BTreeMap<u32, f64>,
    /// The same for one who does nothing: of a translation, its input; of the way back, another image of the domain.
    #[serde(default, deserialize_with = "by_resolution", skip_serializing_if = "BTreeMap::is_empty")]
    pub untouched: BTreeMap<u32, f64>,
}

/// Names of metrics, as they are written.
pub mod names {
    /// Sliced Wasserstein distance.
    pub const SWD: &str = "swd";
    /// Kernel distance of features.
    pub const KID: &str = "kid";
    /// Frechet distance of features.
    pub const FRECHET: &str = "frechet";
    /// Mean absolute difference after the way there and back, of values from 0 to 1.
    pub const CYCLE: &str = "cycle_l1";
    /// Mean absolute difference from the true image, of values from 0 to 1.
    pub const TWIN_L1: &str = "twin_l1";
    /// Structural similarity to the true image: 1 is equal.
    pub const TWIN_SSIM: &str = "twin_ssim";
    /// MS-SSIM between made images: 1 is all alike.
    pub const DIVERSITY: &str = "ms_ssim";
    /// Mean absolute difference between a translation and its input, of values from 0 to 1.
    pub const CHANGE: &str = "change_l1";
    /// Correlation of brightness between a translation and its input: -1 is a negative.
    pub const LIKENESS: &str = "likeness";
}

impl Quality {
    /// Mean over its levels.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.levels.values().sum::<f64>() / self.levels.len().max(1) as f64
    }

    /// Whether more of it is better.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.metric == names::TWIN_SSIM
    }
}

fn null_is_nan<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let text = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    Ok(text.into_iter().map(|(key, value)| (key, value.unwrap_or(f64::NAN))).collect())
}

/// JSON's keys are text, and behind an internal tag serde no longer turns them into numbers by itself.
fn by_resolution<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<u32, f64>, D::Error> {
    let text = BTreeMap::<String, f64>::deserialize(from)?;
    text.into_iter().map(|(key, value)| Ok((key.parse().map_err(serde::de::Error::custom)?, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_round_trip() {
        let quality = Quality {
            images: 5000,
            metric: "swd".to_owned(),
            count: 4,
            levels: BTreeMap::from([(16, 1.5), (32, 2.0)]),
            floor: BTreeMap::from([(16, 0.5)]),
            ..Quality::default()
        };
        let of = Quality { of: "a2b".to_owned(), untouched: BTreeMap::from([(64, 0.25)]), ..quality.clone() };
        let verdict = Verdict { images: 1, what: "stop".to_owned(), evidence: "x".to_owned(), advice: String::new() };
        let events =
            [Event::Quality(quality), Event::Quality(of), Event::Tick(Tick::default()), Event::Verdict(verdict)];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_reaches_the_other_side() {
        let stats = BTreeMap::from([("loss/d".to_owned(), f64::INFINITY), ("loss/g".to_owned(), 0.5)]);
        let line = serde_json::to_string(&Event::Tick(Tick { stats, ..Tick::default() })).unwrap();
        let Event::Tick(tick) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        assert!(tick.stats["loss/d"].is_nan() && tick.stats["loss/g"] == 0.5, "{line}");
    }
}
