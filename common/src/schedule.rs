//! What a run does at a given number of images, and in which order: pure functions of the configuration.
//!
//! The schedule stands still during one *cycle* (gan.md 1.8: `minibatch_repeats` rounds, each of them every phase in
//! turn), so a [`Stage`] is asked for at the images of the cycle's start. Nothing here knows ranks or world sizes.

use crate::config::resolved::RunConfig;
use crate::growth::Level;
use crate::ids::{Generation, ImagesSeen};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What holds during one cycle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Resolution and fade.
    pub level: Level,
    /// Global minibatch.
    pub minibatch: u32,
    /// Samples of one statistical group: dealt to workers whole, `minibatch` is a multiple of it.
    pub group: u32,
    /// Most samples that one worker takes through the networks at once; a multiple of `group`.
    pub micro_batch: u32,
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the moving average for each step that updates it.
    pub ema_decay: f64,
    /// Images in a tick.
    pub tick_images: u64,
}

impl Stage {
    /// The stage of the cycle that begins at `images`.
    #[must_use]
    pub fn at(config: &RunConfig, images: ImagesSeen) -> Self {
        let train = &config.train;
        let level = train.growth.level(config.model.resolution(), images);
        let minibatch = train.minibatch_at(level.resolution);
        let group = config.model.group().min(minibatch);
        let most = train.max_per_worker.get(&level.resolution).copied().unwrap_or(u32::MAX);
        Self {
            level,
            minibatch,
            group,
            micro_batch: (most / group).max(1).saturating_mul(group).min(minibatch),
            learning_rate: train.learning_rate_at(level.resolution) * train.rate_at(images),
            ema_decay: train.ema.decay(minibatch),
            tick_images: train.tick_images_at(level.resolution),
        }
    }

    /// Statistical groups in the global minibatch.
    #[must_use]
    pub fn groups(&self) -> u32 {
        self.minibatch / self.group
    }

    /// Positions in the global minibatch of the samples of `groups`.
    #[must_use]
    pub fn samples(&self, groups: &Range<u32>) -> Range<u32> {
        groups.start * self.group..groups.end * self.group
    }

    /// `groups` cut into pieces that one worker takes through the networks at once.
    pub fn micro_batches(&self, groups: &Range<u32>) -> impl Iterator<Item = Range<u32>> + use<> {
        let (step, end) = (self.micro_batch / self.group, groups.end);
        groups.clone().step_by(step.max(1) as usize).map(move |start| start..(start + step.max(1)).min(end))
    }
}

/// Where a run stands within its cycles: enough to know the next phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Images seen.
    pub images: u64,
    /// Images seen when the present cycle began.
    pub cycle_images: u64,
    /// Round within the cycle.
    pub round: u32,
    /// Step within the round: position in the list of phases, each as often as it repeats.
    pub step: u32,
}

impl Position {
    /// Where the run stands after the present step: `shown` images more, in a round of `steps`, `rounds` to a cycle.
    #[must_use]
    pub fn advance(self, shown: u32, steps: u32, rounds: u32) -> Self {
        let images = self.images + u64::from(shown);
        if self.step + 1 < steps {
            Self { images, step: self.step + 1, ..self }
        } else if self.round + 1 < rounds {
            Self { images, round: self.round + 1, step: 0, ..self }
        } else {
            Self { images, cycle_images: images, round: 0, step: 0 }
        }
    }

    /// Whether a cycle begins here.
    #[must_use]
    pub fn begins_cycle(self) -> bool {
        self.round == 0 && self.step == 0
    }
}

/// Which of two states of one run is the later one: the greater.
///
/// The line counts first. Ranks that leave a generation are at most one step apart, on one line; one that missed a generation
/// may have got further on a line that the others have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StateVersion {
    /// The generation that took the last step, or put the run where it stands.
    pub line: Generation,
    /// Images seen when the present cycle began.
    pub cycle_images: u64,
    /// Round within the cycle.
    pub round: u32,
    /// Step within the round.
    pub step: u32,
}

impl StateVersion {
    /// The version of the state at `position`, to which `line` brought it.
    #[must_use]
    pub fn new(line: Generation, position: Position) -> Self {
        Self { line, cycle_images: position.cycle_images, round: position.round, step: position.step }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_makes_a_later_version_and_a_later_line_any() {
        let mut at = Position::default();
        let mut last = StateVersion::new(Generation(3), at);
        for _ in 0..12 {
            at = at.advance(if at.step == 0 { 8 } else { 0 }, 2, 2);
            let next = StateVersion::new(Generation(3), at);
            assert!(next > last && StateVersion::new(Generation(4), Position::default()) > next);
            last = next;
        }
    }

    fn stage(minibatch: u32, group: u32, micro_batch: u32) -> Stage {
        Stage {
            level: Level { lod: 0.0, resolution: 4 },
            minibatch,
            group,
            micro_batch,
            learning_rate: 0.001,
            ema_decay: 0.999,
            tick_images: 1000,
        }
    }

    proptest::proptest! {
        #[test]
        fn micro_batches_cover_a_share_in_whole_groups(groups in 1u32..200, group in 1u32..17, cut in 0u32..200, micro in 1u32..9) {
            let stage = stage(groups * group, group, micro.min(groups) * group);
            for share in [0..cut.min(groups), cut.min(groups)..groups] {
                let pieces: Vec<_> = stage.micro_batches(&share).collect();
                let covered: Vec<u32> = pieces.iter().cloned().flatten().collect();
                proptest::prop_assert_eq!(covered, share.collect::<Vec<_>>());
                proptest::prop_assert!(pieces.iter().all(|p| p.len() as u32 * group <= stage.micro_batch));
            }
        }
    }

    #[test]
    fn a_cycle_is_its_rounds_of_phases_and_starts_anew_where_it_ends() {
        let mut at = Position::default();
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push((at.round, at.step, at.cycle_images));
            at = at.advance(if at.step == 0 { 8 } else { 0 }, 2, 2);
        }
        assert_eq!(order, [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 16), (0, 1, 16)]);
        assert_eq!(at.images, 24);
    }
}
