//! A run's schedule laid out before it starts: phase by phase, what is trained how, and where workers idle.
//!
//! A pure function of the configuration; knows nothing of speed.

use super::resolved::RunConfig;
use crate::growth::Level;
use crate::ids::ImagesSeen;
use crate::memory::{self, Need, amount};
use serde::Serialize;
use std::fmt;

/// The schedule of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the run.
    pub name: String,
    /// Workers that share each minibatch.
    pub workers: u32,
    /// Final side of the images in pixels.
    pub resolution: u32,
    /// Phases in the order in which they are trained.
    pub phases: Vec<Phase>,
    /// Discriminator steps of the whole run.
    pub d_steps: u64,
    /// Generator steps of the whole run.
    pub g_steps: u64,
    /// Images shown when the run ends: the end of the cycle in which its length is reached.
    pub images: u64,
    /// Its length in words. Where it follows from data that are not known yet, the rest is that of one image.
    pub length: String,
    /// Whether it does.
    pub open: bool,
    /// Passes over the data in which the learning rate falls to 0.
    pub decays: u32,
}

/// A stretch of training in which nothing but the fade's progress changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Active resolution in pixels.
    pub resolution: u32,
    /// Whether this resolution is being faded in.
    pub fading: bool,
    /// Images shown before the phase.
    pub from_images: u64,
    /// Images shown after it.
    pub to_images: u64,
    /// Global minibatch.
    pub minibatch: u32,
    /// Statistical groups of the minibatch: the units that are dealt to workers.
    pub groups: u32,
    /// Learning rate of generator and discriminator, before any decay.
    pub learning_rate: f64,
    /// Discriminator steps.
    pub d_steps: u64,
    /// Fewest samples of a step that a worker holds.
    pub least_per_worker: u32,
    /// Most samples of a step that a worker holds.
    pub most_per_worker: u32,
    /// Most samples that a worker takes through the networks at once.
    pub at_once: u32,
    /// Passes through the networks that the worker with most samples needs for one step.
    pub passes: u32,
    /// Workers without any sample.
    pub idle_workers: u32,
    /// Bytes that a worker needs, estimated.
    pub memory: Need,
}

/// The schedule of `config` when `workers` share it (0 counts as 1).
#[must_use]
pub fn plan(config: &RunConfig, workers: u32) -> Plan {
    let (resolution, train) = (config.model.resolution(), &config.train);
    let workers = workers.max(1);
    let total = train.total_images().max(1);
    let level = |images: u64| train.growth.level(resolution, ImagesSeen(images));
    let (mut phases, mut d_steps, mut g_steps, mut images) = (Vec::new(), 0, 0, 0);
    while images < total {
        let here = level(images);
        let end = next_knee(level, images, total);
        let minibatch = train.minibatch_at(here.resolution).max(1);
        // the schedule stands still within a cycle, so a phase is whole cycles and may end a little late
        let g_per_cycle = u64::from(train.minibatch_repeats.max(1));
        let d_per_cycle = g_per_cycle * u64::from(train.d_repeats.max(1));
        let cycles = (end - images).div_ceil(d_per_cycle * u64::from(minibatch));
        let from = images;
        images += cycles * d_per_cycle * u64::from(minibatch);
        let group = config.model.group().clamp(1, minibatch);
        let groups = minibatch.div_ceil(group);
        let most = groups.div_ceil(workers);
        let at_once = train.max_per_worker.get(&here.resolution).map_or(most, |limit| limit / group).clamp(1, most);
        phases.push(Phase {
            resolution: here.resolution,
            fading: here.fading(),
            from_images: from,
            to_images: images,
            minibatch,
            groups,
            learning_rate: train.learning_rate_at(here.resolution),
            d_steps: cycles * d_per_cycle,
            least_per_worker: groups / workers * group,
            most_per_worker: most * group,
            at_once: at_once * group,
            passes: most.div_ceil(at_once),
            idle_workers: workers.saturating_sub(groups),
            memory: memory::need(config, here.resolution, at_once * group),
        });
        d_steps += cycles * d_per_cycle;
        g_steps += cycles * g_per_cycle;
    }
    let (length, open) = (train.length(), train.total_images() == 0);
    let decays = train.epochs.map_or(0, |epochs| epochs.decay);
    Plan { name: config.name.clone(), workers, resolution, phases, d_steps, g_steps, images, length, open, decays }
}

/// Images at which the knee of `level` first differs from the one at `from`, or `total`. Its knees only fall, so halving
/// finds it.
fn next_knee(level: impl Fn(u64) -> Level, from: u64, total: u64) -> u64 {
    let knee = level(from).knee();
    let (mut same, mut other) = (from, total);
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        if level(middle).knee() == knee { same = middle } else { other = middle }
    }
    other
}

impl Plan {
    /// Most workers that some phase leaves without a sample.
    #[must_use]
    pub fn most_idle(&self) -> u32 {
        self.phases.iter().map(|phase| phase.idle_workers).max().unwrap_or(0)
    }

    /// What a worker needs at most, estimated.
    #[must_use]
    pub fn memory(&self) -> Need {
        self.phases.iter().map(|phase| phase.memory).max_by_key(|need| need.total()).unwrap_or_default()
    }

    /// Whether the run ever trains at its full resolution.
    #[must_use]
    pub fn reaches_full_resolution(&self) -> bool {
        self.phases.last().is_some_and(|phase| phase.resolution == self.resolution)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.workers == 1 { "" } else { "s" };
        writeln!(f, "{} on {} worker{plural}", self.name, self.workers)?;
        writeln!(
            f,
            "{:>5} {:<6} {:>19} {:>9} {:>6} {:>7} {:>8} {:>10} {:>6} {:>5}",
            "res", "", "kimg", "minibatch", "groups", "lr", "D steps", "per worker", "passes", "idle"
        )?;
        for phase in &self.phases {
            let kind = if phase.fading { "fade" } else { "stable" };
            let kimg =
                format!("{:.1} - {:.1}", ImagesSeen(phase.from_images).kimg(), ImagesSeen(phase.to_images).kimg());
            let share = match (phase.least_per_worker, phase.most_per_worker) {
                (least, most) if least == most => most.to_string(),
                (least, most) => format!("{least}-{most}"),
            };
            writeln!(
                f,
                "{:>5} {kind:<6} {kimg:>19} {:>9} {:>6} {:>7} {:>8} {share:>10} {:>6} {:>5}",
                phase.resolution,
                phase.minibatch,
                phase.groups,
                phase.learning_rate,
                phase.d_steps,
                phase.passes,
                phase.idle_workers
            )?;
        }
        if self.open {
            writeln!(f, "{}: how many images that is, the data will say (train.epoch_images)", self.length)?;
        } else {
            writeln!(f, "{} D steps, {} G steps, {}", self.d_steps, self.g_steps, ImagesSeen(self.images))?;
        }
        let Need { state, step } = self.memory();
        writeln!(
            f,
            "a worker's networks need about {}: {} that stay, {} for a step",
            amount(state + step),
            amount(state),
            amount(step)
        )?;
        if self.decays > 0 {
            writeln!(f, "the learning rate falls to 0 over the last {} passes", self.decays)?;
        }
        if self.most_idle() > 0 {
            writeln!(
                f,
                "up to {} of {} workers idle: a minibatch is dealt in whole groups, and has fewer than there are workers",
                self.most_idle(),
                self.workers
            )?;
        }
        if !self.reaches_full_resolution() {
            writeln!(f, "the run ends before it reaches {} pixels", self.resolution)?;
        }
        Ok(())
    }
}
