//! A run's configuration once every question is settled: presets expanded, the launch's worker count applied, every
//! cross-check passed. This is what travels to workers and into checkpoints; it never changes with the world size.
//!
//! Built only by [`super::resolve`]; a value of these types that came from there cannot be invalid.

use crate::families::{self, ParameterSpec, progan, sngan};
use crate::growth::Growth;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run: the folder under `checkpoint.url`. `[a-z0-9._-]`, at most 64.
    pub name: String,
    /// Seed of every draw.
    pub seed: u64,
    /// Networks and losses.
    pub model: Model,
    /// Training images.
    pub data: Data,
    /// Schedule, optimizer and arithmetic.
    pub train: Train,
    /// Workers.
    pub cluster: Cluster,
    /// Where and how often state is kept.
    pub checkpoint: Checkpoint,
    /// Quality metrics.
    pub metrics: Metrics,
    /// Sample grids.
    pub samples: Samples,
}

/// Family and its architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "lowercase")]
pub enum Model {
    /// Progressive GAN.
    ProGan(progan::Architecture),
    /// Fully connected SNGAN.
    Sngan(sngan::Architecture),
}

impl Model {
    /// Its name in an experiment file.
    #[must_use]
    pub fn family(&self) -> &'static str {
        match self {
            Self::ProGan(_) => "progan",
            Self::Sngan(_) => "sngan",
        }
    }

    /// Parameters of all its networks.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let specs = match self {
            Self::ProGan(a) => [a.generator(), a.discriminator()],
            Self::Sngan(a) => [a.generator(), a.discriminator()],
        };
        specs.iter().flatten().map(ParameterSpec::numel).sum()
    }

    /// Most samples of one statistical group: what a loss looks at together, and is dealt to workers whole.
    #[must_use]
    pub fn group(&self) -> u32 {
        match self {
            Self::ProGan(a) => a.minibatch_stddev_group,
            Self::Sngan(_) => 1,
        }
    }

    /// Whether its resolution grows during training.
    #[must_use]
    pub fn grows(&self) -> bool {
        families::family(self.family()).is_some_and(|family| family.grows)
    }

    /// Side of the images in pixels.
    #[must_use]
    pub fn resolution(&self) -> u32 {
        match self {
            Self::ProGan(a) => a.resolution,
            Self::Sngan(a) => a.resolution,
        }
    }
}

/// Training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Folder (read recursively) or ZIP archive; relative paths were made absolute against the experiment file's folder.
    pub source: String,
    /// Flip each image left to right with probability one half.
    pub mirror: bool,
    /// Colour under transparent pixels, RGB.
    pub background: [u8; 3],
    /// Folder of the prepared pyramid; `None` is the user's cache folder.
    pub cache: Option<String>,
    /// Share of unreadable files, 0 to 1, above which the run refuses to start.
    pub max_bad_share: f64,
}

/// Schedule, optimizer and arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Length of the run in thousands of images.
    pub total_kimg: f64,
    /// Arithmetic of the networks.
    pub precision: Precision,
    /// How far results may depend on the number of workers.
    pub determinism: Determinism,
    /// Threads per worker on a CPU; 0 = cores divided by the workers of this machine.
    pub threads: u32,
    /// When the networks grow.
    pub growth: Growth,
    /// Global minibatch per resolution; `minibatch_base` elsewhere.
    pub minibatch: BTreeMap<u32, u32>,
    /// Global minibatch of resolutions not named in `minibatch`.
    pub minibatch_base: u32,
    /// Most samples that one worker takes through the networks at once, per resolution; beyond it accumulates.
    pub max_per_worker: BTreeMap<u32, u32>,
    /// Minibatches during which the schedule stands still (one cycle).
    pub minibatch_repeats: u32,
    /// D steps for each G step.
    pub d_repeats: u32,
    /// Adam.
    pub optimizer: Adam,
    /// Moving average of G.
    pub ema: Ema,
    /// Length of a tick in kimg per resolution; `tick_kimg_base` elsewhere.
    pub tick_kimg: BTreeMap<u32, f64>,
    /// Length of a tick at resolutions not named in `tick_kimg`.
    pub tick_kimg_base: f64,
}

impl Train {
    /// Global minibatch at `resolution`.
    #[must_use]
    pub fn minibatch_at(&self, resolution: u32) -> u32 {
        self.minibatch.get(&resolution).copied().unwrap_or(self.minibatch_base)
    }

    /// Learning rate at `resolution`, the same for G and D.
    #[must_use]
    pub fn learning_rate_at(&self, resolution: u32) -> f64 {
        self.optimizer.learning_rate_by_resolution.get(&resolution).copied().unwrap_or(self.optimizer.learning_rate)
    }

    /// Images in a tick at `resolution`.
    #[must_use]
    pub fn tick_images_at(&self, resolution: u32) -> u64 {
        let kimg = self.tick_kimg.get(&resolution).copied().unwrap_or(self.tick_kimg_base);
        ((kimg * 1000.0).round() as u64).max(1)
    }

    /// Length of the run in images.
    #[must_use]
    pub fn total_images(&self) -> u64 {
        (self.total_kimg * 1000.0).round() as u64
    }
}

/// Arithmetic of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single precision.
    Fp32,
    /// Single precision with TF32 matrix units where a GPU has them.
    Tf32,
    /// bfloat16 activations; weights, losses, penalties and statistics in single precision.
    Bf16,
}

/// How far results may depend on the number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Determinism {
    /// Equal worlds give equal results; other worlds differ by rounding.
    Fast,
    /// Every world gives the same bits (CPU only, slower): gradients per group, summed on one fixed tree.
    Bitwise,
}

/// Adam (Kingma & Ba 2015), for every phase alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Learning rate of resolutions not named below.
    pub learning_rate: f64,
    /// Learning rate per resolution.
    pub learning_rate_by_resolution: BTreeMap<u32, f64>,
    /// Zero moments and step whenever floor or ceil of lod changes.
    pub reset_for_new_lod: bool,
}

/// Moving average of G's weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ema {
    /// This decay once per D step, whatever the minibatch (the authors' ProGAN code).
    Decay(f64),
    /// `0.5^(minibatch / (1000 * half_life))`: the same average at any minibatch.
    HalfLifeKimg(f64),
}

impl Ema {
    /// Decay of one step at `minibatch`.
    #[must_use]
    pub fn decay(self, minibatch: u32) -> f64 {
        match self {
            Self::Decay(decay) => decay,
            Self::HalfLifeKimg(kimg) => 0.5f64.powf(f64::from(minibatch) / (kimg * 1000.0)),
        }
    }
}

/// Workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Transport of the collectives.
    pub backend: Backend,
    /// Workers of the run; 0 = every GPU, else one per CPU core.
    pub workers: u32,
    /// With fewer workers than this the run waits.
    #[serde(default = "one")]
    pub min_workers: u32,
    /// More workers than this are never taken in; 0 = 256.
    #[serde(default)]
    pub max_workers: u32,
    /// What to do while fewer workers are there than are wanted.
    #[serde(default)]
    pub on_loss: OnLoss,
    /// Failures in a row without progress in between, before the run goes back to a checkpoint; after as many again it ends.
    #[serde(default = "three")]
    pub failures: u32,
    /// Seconds without a sign of life after which a peer counts as lost.
    pub patience_s: f64,
    /// Seconds that workers wait for a vanished coordinator before they checkpoint and leave.
    pub orphan_patience_s: f64,
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

/// What to do while fewer workers are there than are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// Go on at once with those that are there, and take others in when they come.
    #[default]
    Shrink,
    /// Wait until as many are there as are wanted.
    Wait,
}

/// Transport of the collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// NCCL when every worker has a GPU, `tcp` for several CPU workers, `solo` for one.
    Auto,
    /// NVIDIA's library, one GPU per worker.
    Nccl,
    /// Our ring over TCP, for CPU workers.
    Tcp,
    /// One worker, no transport.
    Solo,
}

/// Where and how often state is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Root of runs: `file://`, `s3://`, `gs://`, `az://` or `memory://`.
    pub url: String,
    /// Distance between checkpoints in kimg.
    pub every_kimg: f64,
    /// Newest checkpoints that are kept.
    pub keep_last: u32,
    /// Keep every checkpoint at a multiple of this many kimg too; 0 = none.
    pub keep_every_kimg: f64,
    /// How an S3-compatible store is reached. Never holds a secret.
    pub s3: S3,
}

/// How an S3-compatible store is reached. Credentials come from the environment, never from here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3 {
    /// Endpoint of a store that is not AWS.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: bool,
    /// PEM file with a certificate authority to trust besides the usual ones.
    pub ca: Option<String>,
    /// Allow `http://` endpoints.
    pub allow_http: bool,
}

/// Quality metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Distance between evaluations in kimg; 0 = only the untrained network and the end.
    pub every_kimg: f64,
    /// Sliced Wasserstein distance on or off.
    pub swd: bool,
    /// Images on each side of a comparison, at most; never more than the data set holds.
    pub images: u32,
}

/// Sample grids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    /// Distance between grids in kimg; 0 = every tick.
    pub every_kimg: f64,
    /// Size of a grid.
    pub grid: Grid,
}

/// Size of a sample grid (gan.md 1.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Grid {
    /// As many images as fill 1920x1080, 3x2 at least, 32x32 at most.
    #[serde(rename = "1080p")]
    Hd,
    /// As many images as fill 3840x2160, 7x4 at least, 32x32 at most.
    #[serde(rename = "4k")]
    Uhd,
}

impl Grid {
    /// Columns and rows for images of `resolution` pixels.
    #[must_use]
    pub fn shape(self, resolution: u32) -> (u32, u32) {
        match self {
            Self::Hd => ((1920 / resolution).clamp(3, 32), (1080 / resolution).clamp(2, 32)),
            Self::Uhd => ((3840 / resolution).clamp(7, 32), (2160 / resolution).clamp(4, 32)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// gan.md 19, item 14.
    #[test]
    fn grid_sizes() {
        for (resolution, shape) in [(1024, (3, 2)), (256, (7, 4)), (128, (15, 8)), (64, (30, 16)), (32, (32, 32))] {
            assert_eq!(Grid::Hd.shape(resolution), shape);
        }
        assert_eq!(Grid::Uhd.shape(1024), (7, 4));
    }

    #[test]
    fn half_life_is_independent_of_the_minibatch() {
        let ema = Ema::HalfLifeKimg(10.0);
        let after_10_kimg = |minibatch: u32| ema.decay(minibatch).powf(10_000.0 / f64::from(minibatch));
        assert!((after_10_kimg(8) - 0.5).abs() < 1e-9 && (after_10_kimg(512) - 0.5).abs() < 1e-9);
    }
}
