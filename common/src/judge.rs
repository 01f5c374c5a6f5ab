//! Whether a run still gets better, by the metric that judges it. Refuses to measure: it is told values.

use crate::config::raw::MetricKind;
use crate::metrics::{Quality, names};
use serde::{Deserialize, Serialize};

/// What the judging metric has said so far: part of a run's state, the same on every rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Judgement {
    /// What can be compared: metric, network, images, resolution. Empty before the first evaluation.
    pub basis: String,
    /// Images seen at the last evaluation; 0 before the first one.
    pub at: u64,
    /// Its value: smaller is better.
    pub value: f64,
    /// Images seen at the best one.
    pub best_at: u64,
    /// Its value.
    pub best: f64,
    /// What another must be better than, to count as better.
    pub mark: f64,
    /// Evaluations since one that counted.
    pub since: u32,
}

/// The value by which `kind` judges what was evaluated together, the mean over what was judged, smaller is better; and its basis. `None`
/// where none of `qualities` says it, or it is not finite.
#[must_use]
pub fn value(kind: MetricKind, qualities: &[Quality]) -> Option<(f64, String)> {
    let name = match kind {
        MetricKind::Swd => names::SWD,
        MetricKind::Kid => names::KID,
        MetricKind::Frechet => names::FRECHET,
        MetricKind::Cycle => names::CYCLE,
        MetricKind::Twins => names::TWIN_L1,
        MetricKind::Diversity => return None,
    };
    let told: Vec<&Quality> = qualities.iter().filter(|quality| quality.metric == name).collect();
    let first = told.first()?;
    let mean = told.iter().map(|quality| quality.mean()).sum::<f64>() / told.len() as f64;
    let sides: Vec<String> = first.levels.keys().map(|side| format!("{side} px")).collect();
    let of = [name.to_owned(), first.features.clone(), format!("{} images", first.count), sides.join(" ")];
    let basis: Vec<String> = of.into_iter().filter(|part| !part.is_empty()).collect();
    mean.is_finite().then(|| (mean, basis.join(", ")))
}

impl Judgement {
    /// Takes in the `value` at `images`; whether it is the best so far. It counts as better where it is so by `min_gain`, a share of
    /// the last one that counted: small steps count once they have come to as much. What was said on another `basis` counts no more.
    pub fn hear(&mut self, basis: &str, images: u64, value: f64, min_gain: f64) -> bool {
        let first = self.basis != basis;
        basis.clone_into(&mut self.basis);
        let best = first || value < self.best;
        // the kernel distance is negative at its best
        let counts = first || value < self.mark - self.mark.abs() * min_gain;
        self.since = if counts { 0 } else { self.since.saturating_add(1) };
        if counts {
            self.mark = value;
        }
        (self.at, self.value) = (images, value);
        if best {
            (self.best_at, self.best) = (images, value);
        }
        best
    }

    /// Whether `evaluations` in a row were no better; 0 never are.
    #[must_use]
    pub fn stands_still(&self, evaluations: u32) -> bool {
        evaluations > 0 && self.since >= evaluations
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const KID: &str = "kid, net, 9 images, 64 px";

    fn quality(metric: &str, levels: &[(u32, f64)]) -> Quality {
        Quality { metric: metric.to_owned(), levels: levels.iter().copied().collect(), ..Quality::default() }
    }

    #[test]
    fn the_mean_over_levels_and_directions_judges() {
        let told = [
            quality(names::KID, &[(64, 0.1)]),
            quality(names::KID, &[(64, 0.3)]),
            quality(names::SWD, &[(32, 4.0), (16, 8.0)]),
        ];
        assert!((value(MetricKind::Kid, &told).unwrap().0 - 0.2).abs() < 1e-12);
        assert_eq!(value(MetricKind::Swd, &told), Some((6.0, "swd, 0 images, 16 px 32 px".to_owned())));
        assert_eq!(value(MetricKind::Cycle, &told), None);
        assert_eq!(value(MetricKind::Swd, &[quality(names::SWD, &[(4, f64::NAN)])]), None);
        assert_eq!(quality(names::SWD, &[]).levels, BTreeMap::new());
    }

    #[test]
    fn a_run_stands_still_when_nothing_is_better_by_enough() {
        let mut judgement = Judgement::default();
        let heard: Vec<bool> =
            [1.0, 0.5, 0.499, 0.6, 0.49].iter().zip(1..).map(|(v, at)| judgement.hear(KID, at, *v, 0.05)).collect();
        assert_eq!(heard, [true, true, true, false, true]);
        assert_eq!((judgement.best_at, judgement.best, judgement.since), (5, 0.49, 3));
        assert!(judgement.stands_still(3) && !judgement.stands_still(4) && !judgement.stands_still(0));
        judgement.hear(KID, 6, 0.47, 0.05);
        assert_eq!((judgement.since, judgement.mark), (0, 0.47));
    }

    #[test]
    fn the_kernel_distance_may_be_negative() {
        let mut judgement = Judgement::default();
        judgement.hear(KID, 1, -0.001, 0.1);
        assert!(!judgement.hear(KID, 2, 0.0, 0.1) && judgement.hear(KID, 3, -0.002, 0.1));
        assert_eq!((judgement.best_at, judgement.since), (3, 0));
    }

    #[test]
    fn another_metric_or_resolution_begins_anew() {
        let mut judgement = Judgement::default();
        judgement.hear(KID, 1, 0.1, 0.0);
        assert!(judgement.hear("kid, net, 9 images, 128 px", 2, 9.0, 0.0));
        assert_eq!((judgement.best, judgement.best_at, judgement.since), (9.0, 2, 0));
    }
}
