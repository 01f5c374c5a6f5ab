//! A run's configuration once every question is settled: presets expanded, the launch's worker count applied, every
//! cross-check passed. This is what travels to workers and into checkpoints; it never changes with the world size.
//!
//! Built only by [`super::resolve`]; a value of these types that came from there cannot be invalid.

use super::raw::MetricKind;
use crate::families::{self, Family, Pairing, ParameterSpec, cyclegan, pix2pix, progan, sngan};
use crate::growth::Growth;
use crate::ids::ImagesSeen;
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
    /// CycleGAN.
    CycleGan(cyclegan::Architecture),
    /// pix2pix.
    Pix2Pix(pix2pix::Architecture),
}

impl RunConfig {
    /// The same networks, to be used and not to be trained: nothing is remembered for training.
    #[must_use]
    pub fn for_use(&self) -> Self {
        let mut config = self.clone();
        if let Model::CycleGan(architecture) = &mut config.model {
            architecture.pool_size = 0;
        }
        config.train.save_memory = false;
        config.train.minibatch.clear();
        config.train.minibatch_base = 1;
        config
    }
}

impl Model {
    /// Its name in an experiment file.
    #[must_use]
    pub fn family(&self) -> &'static str {
        match self {
            Self::ProGan(_) => "progan",
            Self::Sngan(_) => "sngan",
            Self::CycleGan(_) => "cyclegan",
            Self::Pix2Pix(_) => "pix2pix",
        }
    }

    /// Parameters of all its networks.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.specs().iter().flatten().map(ParameterSpec::numel).sum()
    }

    /// Parameters whose moving average it keeps.
    #[must_use]
    pub fn averaged(&self) -> u64 {
        let [made_by, _] = self.specs();
        if self.averages() { made_by.iter().map(ParameterSpec::numel).sum() } else { 0 }
    }

    /// Those that make images, and those that judge them.
    fn specs(&self) -> [Vec<ParameterSpec>; 2] {
        match self {
            Self::ProGan(a) => [a.generator(), a.discriminator()],
            Self::Sngan(a) => [a.generator(), a.discriminator()],
            Self::CycleGan(a) => [a.generators(), a.discriminators()],
            Self::Pix2Pix(a) => [a.generator(), a.discriminator()],
        }
    }

    /// Numbers that its networks remember besides their parameters, with a global minibatch of so many samples.
    #[must_use]
    pub fn remembered(&self, minibatch: u32) -> u64 {
        let specs = match self {
            Self::ProGan(_) | Self::Pix2Pix(_) => Vec::new(),
            Self::Sngan(a) => a.directions(),
            Self::CycleGan(a) => a.pools(minibatch),
        };
        specs.iter().map(ParameterSpec::numel).sum()
    }

    /// Most samples of one statistical group: what a loss looks at together, and is dealt to workers whole.
    #[must_use]
    pub fn group(&self) -> u32 {
        match self {
            Self::ProGan(a) => a.minibatch_stddev_group,
            Self::Sngan(_) | Self::CycleGan(_) | Self::Pix2Pix(_) => 1,
        }
    }

    /// Whether its resolution grows during training.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.of().is_some_and(|family| family.grows)
    }

    /// Whether it keeps a moving average of its generator.
    #[must_use]
    pub fn averages(&self) -> bool {
        match self {
            Self::ProGan(_) | Self::Sngan(_) => true,
            Self::CycleGan(a) => a.average,
            Self::Pix2Pix(_) => false,
        }
    }

    /// How its training images belong together.
    #[must_use]
    pub fn pairing(&self) -> Pairing {
        self.of().map_or(Pairing::One, |family| family.pairing)
    }

    fn of(&self) -> Option<&'static Family> {
        families::family(self.family())
    }

    /// Side of the images in pixels.
    #[must_use]
    pub fn resolution(&self) -> u32 {
        match self {
            Self::ProGan(a) => a.resolution,
            Self::Sngan(a) => a.resolution,
            Self::CycleGan(a) => a.resolution,
            Self::Pix2Pix(a) => a.resolution,
        }
    }
}

/// Training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Folder (read recursively) or ZIP archive, as an absolute path or the address of an object store's.
    pub source: String,
    /// Flip each image left to right with probability one half.
    pub mirror: bool,
    /// Colour under transparent pixels, RGB.
    pub background: [u8; 3],
    /// Folder of the prepared pyramid; `None` is the user's cache folder.
    pub cache: Option<String>,
    /// Share of unreadable files, 0 to 1, above which the run refuses to start.
    pub max_bad_share: f64,
    /// Side to which images are squeezed before they are cropped, in pixels, where the family crops them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_size: Option<u32>,
}

/// Schedule, optimizer and arithmetic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Length of the run in thousands of images; 0 where `epochs` say it.
    pub total_kimg: f64,
    /// Length of the run in passes over the data, where it is said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<Epochs>,
    /// Arithmetic of the networks.
    pub precision: Precision,
    /// Form in which gradients travel between workers.
    #[serde(default)]
    pub reduce_precision: ReducePrecision,
    /// How far results may depend on the number of workers.
    pub determinism: Determinism,
    /// Whether less memory is worth more time.
    #[serde(default)]
    pub save_memory: bool,
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
    /// Moving average of G; without meaning where there is none.
    pub ema: Ema,
    /// Length of a tick in kimg per resolution; `tick_kimg_base` elsewhere.
    pub tick_kimg: BTreeMap<u32, f64>,
    /// Length of a tick at resolutions not named in `tick_kimg`.
    pub tick_kimg_base: f64,
    /// When to end before the full length.
    #[serde(default)]
    pub stop: Stop,
}

/// When a run ends before its full length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Evaluations in a row without a better one after which it ends; 0 = never.
    pub evaluations: u32,
    /// Share of the best value by which another must be better to count.
    pub min_gain: f64,
    /// Seconds of training after which it ends.
    pub budget_s: Option<f64>,
}

impl Train {
    /// Global minibatch at `resolution`.
    #[must_use]
    pub fn minibatch_at(&self, resolution: u32) -> u32 {
        self.minibatch.get(&resolution).copied().unwrap_or(self.minibatch_base)
    }

    /// Learning rate at `resolution`.
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

    /// Length of the run in images; 0 while it follows from data that are not known yet.
    #[must_use]
    pub fn total_images(&self) -> u64 {
        match self.epochs {
            Some(epochs) => epochs.total().saturating_mul(epochs.images),
            None => (self.total_kimg * 1000.0).round() as u64,
        }
    }

    /// Length of the run in words.
    #[must_use]
    pub fn length(&self) -> String {
        match self.epochs {
            Some(epochs) if epochs.images == 0 => format!("{} passes over the data", epochs.total()),
            Some(epochs) => format!("{} kimg ({} passes)", ImagesSeen(self.total_images()).kimg(), epochs.total()),
            None => format!("{} kimg", self.total_kimg),
        }
    }

    /// What the learning rate is multiplied by at `images`.
    #[must_use]
    pub fn rate_at(&self, images: ImagesSeen) -> f64 {
        self.epochs.map_or(1.0, |epochs| epochs.rate_at(images))
    }

    /// What the data say: so many `images` are one pass over them. Whether that was asked for.
    pub fn know_epoch(&mut self, images: u64) -> bool {
        let unknown = self.epochs.as_mut().filter(|epochs| epochs.images == 0);
        unknown.map(|epochs| epochs.images = images).is_some()
    }
}

/// Length of a run in passes over the data, and its learning rate with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epochs {
    /// Passes at the full learning rate.
    pub constant: u32,
    /// Passes over which it falls to 0.
    pub decay: u32,
    /// Images of one pass; 0 until the data are prepared.
    pub images: u64,
}

impl Epochs {
    /// All passes.
    #[must_use]
    pub fn total(&self) -> u64 {
        u64::from(self.constant) + u64::from(self.decay)
    }

    /// `1 - max(0, e + 1 - constant) / (decay + 1)` in pass `e`, counted from 1: the authors' schedule, whose last pass trains at 0
    /// (gan.md 2.7). Without decay always 1.
    #[must_use]
    pub fn rate_at(&self, images: ImagesSeen) -> f64 {
        let Some(passed) = images.0.checked_div(self.images).filter(|_| self.decay > 0) else { return 1.0 };
        let past = (passed + 2).saturating_sub(u64::from(self.constant));
        (1.0 - past as f64 / (f64::from(self.decay) + 1.0)).max(0.0)
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

/// Form in which gradients travel between workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReducePrecision {
    /// IEEE single precision.
    #[default]
    Fp32,
    /// bfloat16: half the bytes, and each share and each partial sum is rounded to 8 bits.
    Bf16,
}

impl ReducePrecision {
    /// Bytes of a number on its way.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
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
    /// Learning rate of the discriminator, as a multiple of the generator's.
    #[serde(default = "same")]
    pub d_rate: f64,
}

fn same() -> f64 {
    1.0
}

impl Adam {
    /// What the learning rate is multiplied by for `module`.
    #[must_use]
    pub fn rate_of(&self, module: &str) -> f64 {
        if module == "d" { self.d_rate } else { 1.0 }
    }
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
    /// Where workers try the widest step before they ask for a place.
    #[serde(default)]
    pub rehearse: Rehearse,
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

/// Where workers try the widest step of a run before they ask for a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rehearse {
    /// On GPUs, whose memory has a hard end.
    #[default]
    Gpu,
    /// On CPUs, too, where it takes as long as a step does there.
    Always,
    /// Nowhere.
    Never,
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
    /// Checkpoints that are kept because the judging metric was best there.
    #[serde(default)]
    pub keep_best: u32,
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Distance between evaluations in kimg; 0 = only the untrained network and the end.
    pub every_kimg: f64,
    /// Sliced Wasserstein distance on or off.
    pub swd: bool,
    /// Kernel distance of features on or off.
    #[serde(default)]
    pub kid: bool,
    /// Frechet distance of features on or off.
    #[serde(default)]
    pub frechet: bool,
    /// Distance after the way there and back on or off.
    #[serde(default)]
    pub cycle: bool,
    /// Distance to the true image on or off.
    #[serde(default)]
    pub twins: bool,
    /// Likeness of made images among themselves on or off.
    #[serde(default)]
    pub diversity: bool,
    /// Images on each side of a comparison, at most; never more than the data set holds.
    pub images: u32,
    /// TorchScript file of the network whose features are compared; `None` is EfficientNet-Lite0 from the cache.
    #[serde(default)]
    pub features: Option<String>,
    /// Metric that says which state is best; `None` where there is none.
    #[serde(default)]
    pub judge: Option<MetricKind>,
}

impl Metrics {
    /// In the order in which they are fit to judge.
    const KINDS: [MetricKind; 6] = [
        MetricKind::Kid,
        MetricKind::Frechet,
        MetricKind::Swd,
        MetricKind::Twins,
        MetricKind::Cycle,
        MetricKind::Diversity,
    ];

    /// Whether `kind` is computed.
    #[must_use]
    pub fn has(&self, kind: MetricKind) -> bool {
        match kind {
            MetricKind::Swd => self.swd,
            MetricKind::Kid => self.kid,
            MetricKind::Frechet => self.frechet,
            MetricKind::Cycle => self.cycle,
            MetricKind::Twins => self.twins,
            MetricKind::Diversity => self.diversity,
        }
    }

    /// What is computed, in the order in which it is fit to judge.
    #[must_use]
    pub fn kinds(&self) -> Vec<MetricKind> {
        Self::KINDS.into_iter().filter(|kind| self.has(*kind)).collect()
    }

    /// The metric that judges where the experiment file names none.
    #[must_use]
    pub fn fittest(&self) -> Option<MetricKind> {
        self.kinds().into_iter().find(|kind| *kind != MetricKind::Diversity)
    }

    /// Whether features are compared.
    #[must_use]
    pub fn compares_features(&self) -> bool {
        self.kid || self.frechet
    }
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

    /// gan.md 2.7.
    #[test]
    fn the_learning_rate_falls_pass_by_pass() {
        let epochs = Epochs { constant: 100, decay: 100, images: 10 };
        let rate = |pass: u64, within: u64| epochs.rate_at(ImagesSeen((pass - 1) * 10 + within));
        for (pass, expected) in
            [(1, 1.0), (99, 1.0), (100, 100.0 / 101.0), (150, 50.0 / 101.0), (199, 1.0 / 101.0), (200, 0.0), (201, 0.0)]
        {
            assert!((rate(pass, 0) - expected).abs() < 1e-12, "pass {pass}");
            assert_eq!(rate(pass, 0), rate(pass, 9), "pass {pass}");
        }
        assert_eq!(Epochs { decay: 0, ..epochs }.rate_at(ImagesSeen(5000)), 1.0);
        assert_eq!(Epochs { images: 0, ..epochs }.rate_at(ImagesSeen(5000)), 1.0);
    }

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
