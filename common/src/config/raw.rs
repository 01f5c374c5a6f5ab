//! The experiment file as it is typed: one optional field per key, with its unit, its bounds and its description.
//!
//! This is the only list of keys. The JSON schema for editors, the names offered after a typing error, the checks of
//! single values and the defaults' completeness test all derive from it. What needs more than one value to judge is in
//! [`super::resolve`]; nothing here is checked against anything else.

use super::resolved::{Backend, Determinism, Grid, OnLoss, Precision, ReducePrecision, Rehearse};
use crate::families::cyclegan::{self, GanLoss};
use crate::families::pix2pix::Direction;
use crate::families::progan::{GpNorm, Upscale};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// One experiment file: one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawFile {
    /// Name of the run, also its folder under `checkpoint.url`: 1 to 64 of `a-z 0-9 . _ -`, not starting with a dot.
    /// Required.
    pub name: Option<String>,
    /// Seed of every random draw: the same file and seed give the same run.
    #[schemars(range(min = 0, max = 9_223_372_036_854_775_807u64))]
    pub seed: Option<u64>,
    /// Networks and losses; `family` decides which keys there are.
    pub model: Option<RawModel>,
    /// Training images.
    pub data: Option<RawData>,
    /// Schedule, optimizer and arithmetic.
    pub train: Option<RawTrain>,
    /// Workers and how long they wait for each other.
    pub cluster: Option<RawCluster>,
    /// Where and how often state is kept.
    pub checkpoint: Option<RawCheckpoint>,
    /// Quality metrics.
    pub metrics: Option<RawMetrics>,
    /// Sample grids.
    pub samples: Option<RawSamples>,
}

/// `[model]`: the family and its own keys; a key of another family is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "family", rename_all = "lowercase")]
pub enum RawModel {
    /// Progressive GAN.
    ProGan(RawProGan),
    /// Fully connected SNGAN.
    Sngan(RawSngan),
    /// CycleGAN.
    CycleGan(RawCycleGan),
    /// pix2pix.
    Pix2Pix(RawPix2Pix),
}

/// Keys of `family = "progan"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawProGan {
    /// Final side of the images in pixels.
    pub resolution: Option<Resolution>,
    /// Length of the latent vector.
    #[schemars(range(min = 1, max = 8192))]
    pub latent_size: Option<u32>,
    /// Width of the networks: the block at r pixels has min(fmap_base * 2 / r, fmap_max) feature maps.
    #[schemars(range(min = 2, max = 65536))]
    pub fmap_base: Option<u32>,
    /// Most feature maps of any block.
    #[schemars(range(min = 1, max = 4096))]
    pub fmap_max: Option<u32>,
    /// Order of convolution and scaling; the two are different networks.
    pub upscale: Option<Upscale>,
    /// Whether the generator's first layer has a bias for each position and not only for each feature map, as weights of
    /// pytorch_GAN_zoo have.
    pub position_bias: Option<bool>,
    /// Samples that share one minibatch standard deviation; also the unit that is dealt to workers.
    #[schemars(range(min = 1, max = 1024))]
    pub minibatch_stddev_group: Option<u32>,
    /// Image on which the gradient penalty takes its norm.
    pub gp_norm: Option<GpNorm>,
    /// Weight of the gradient penalty (lambda).
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub gp_weight: Option<f64>,
    /// Gradient norm that the penalty aims at.
    #[schemars(range(min = 0.000_001, max = 1_000_000.0))]
    pub gp_target: Option<f64>,
    /// Weight of the squared score of real images, which keeps scores from drifting.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub drift: Option<f64>,
}

/// Keys of `family = "sngan"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSngan {
    /// Side of the images in pixels.
    pub resolution: Option<Resolution>,
    /// Length of the latent vector.
    #[schemars(range(min = 1, max = 8192))]
    pub latent_size: Option<u32>,
    /// Features of the narrowest hidden layer; each towards the image is twice as wide.
    #[schemars(range(min = 1, max = 16384))]
    pub width: Option<u32>,
}

/// Keys of `family = "cyclegan"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCycleGan {
    /// Side of the crops that are trained on, in pixels.
    pub resolution: Option<Resolution>,
    /// Feature maps of a generator's first layer.
    #[schemars(range(min = 1, max = 1024))]
    pub g_width: Option<u32>,
    /// Residual blocks of a generator: 9 for 256 pixels and more, 6 for 128.
    #[schemars(range(min = 1, max = 64))]
    pub g_blocks: Option<u32>,
    /// Layers of a generator that halve the side before the blocks, and double it after: 2; for images of 64 pixels 1 keeps more of
    /// them.
    #[schemars(range(min = 0, max = 4))]
    pub g_downs: Option<u32>,
    /// Feature maps of a discriminator's first layer.
    #[schemars(range(min = 1, max = 1024))]
    pub d_width: Option<u32>,
    /// Layers between a discriminator's first and its last one: with 3 a score judges 70x70 pixels, with 1 16x16. 0 judges each pixel alone.
    /// `[1, 3]` are two discriminators a domain, whose losses are averaged.
    pub d_layers: Option<LayersOfEach>,
    /// What a discriminator's scores are held against.
    pub gan_loss: Option<GanLoss>,
    /// Weight of the cycle A -> B -> A.
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub lambda_a: Option<f64>,
    /// Weight of the cycle B -> A -> B.
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub lambda_b: Option<f64>,
    /// Weight, relative to those, of leaving alone what is in the target domain already; 0 leaves it out.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub lambda_identity: Option<f64>,
    /// Made images of each domain that are kept to be shown to D once more; 0 keeps none.
    #[schemars(range(min = 0, max = 10_000))]
    pub pool_size: Option<u32>,
    /// What follows the convolutions of a generator: `instance` (norm) as the authors do; `layer`, which norms all maps together, and `none` keep
    /// colours, and learn faster where images are few and small.
    pub g_norm: Option<cyclegan::Norm>,
    /// How a generator doubles the side: `transposed` as the authors do, or `nearest`, which leaves no chequered grain.
    pub upscale: Option<cyclegan::Upscale>,
    /// Whether a generator makes what is to be added to its input, and not the image itself: what need not change is then sharp from the
    /// first step.
    pub residual: Option<bool>,
    /// Whether what a generator has before it halves the side is added to what it has after it doubles it again: edges then need not pass
    /// through fewer pixels.
    pub skips: Option<bool>,
    /// Whether a moving average of the generators is kept. It then makes the images that people see, and those that are judged.
    pub average: Option<bool>,
    /// Chance with which an image is moved, and with which it is resized, before a discriminator sees it, real or made. 0 shows them as
    /// they are.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub augment: Option<f64>,
}

/// Keys of `family = "pix2pix"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawPix2Pix {
    /// Side of the crops that are trained on, in pixels.
    pub resolution: Option<Resolution>,
    /// Feature maps of G's first layer.
    #[schemars(range(min = 1, max = 1024))]
    pub g_width: Option<u32>,
    /// Layers of G that halve the side: 8 see one pixel at 256.
    #[schemars(range(min = 5, max = 10))]
    pub g_downs: Option<u32>,
    /// Whether some of G's inner activations are dropped, also when images are translated.
    pub dropout: Option<bool>,
    /// Feature maps of D's first layer.
    #[schemars(range(min = 1, max = 1024))]
    pub d_width: Option<u32>,
    /// Layers between D's first and its last one: with 3 a score judges 70x70 pixels. 0 judges each pixel alone.
    #[schemars(range(min = 0, max = 6))]
    pub d_layers: Option<u32>,
    /// What D's scores are held against.
    pub gan_loss: Option<GanLoss>,
    /// Weight of the mean absolute difference from the true image.
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub lambda_l1: Option<f64>,
    /// Which half of each image becomes the other.
    pub direction: Option<Direction>,
}

/// `[data]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawData {
    /// Folder (searched recursively) or ZIP archive of PNG, JPEG or WebP images of any size; or `s3://bucket/prefix`, `gs://`, `az://`. A
    /// relative path starts at the experiment file's folder. Required.
    pub source: Option<String>,
    /// Flip each image left to right with probability one half.
    pub mirror: Option<bool>,
    /// Colour under transparent pixels: `white`, `black`, `gray` or `#rrggbb`.
    pub background: Option<String>,
    /// Folder of the prepared image pyramid; `auto` is the user's cache folder.
    pub cache: Option<String>,
    /// Share of unreadable files, 0 to 1, above which the run refuses to start.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_bad_share: Option<f64>,
    /// Side to which images are squeezed before they are cropped, in pixels. Only for families that crop.
    #[schemars(range(min = 4, max = 4096))]
    pub load_size: Option<u32>,
}

/// `[train]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTrain {
    /// Length of the run in kimg (1000 real images shown to the discriminator).
    #[schemars(range(min = 0.001, max = 1_000_000_000.0))]
    pub total_kimg: Option<f64>,
    /// Length in passes over the data instead: those at the full learning rate, in place of `total_kimg`.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub constant_epochs: Option<u32>,
    /// And those over which the learning rate falls to 0.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub decay_epochs: Option<u32>,
    /// Images of one such pass; `auto` is what the data set holds, of two domains the larger one.
    pub epoch_images: Option<ImagesOrAuto>,
    /// Preset for everything below that this file does not say: growth, minibatch and learning-rate tables.
    /// Tables by worker count are chosen once, when the run is created.
    pub schedule: Option<Schedule>,
    /// Arithmetic of the networks.
    pub precision: Option<Precision>,
    /// Form in which gradients travel between workers.
    pub reduce_precision: Option<ReducePrecision>,
    /// How far results may depend on the number of workers.
    pub determinism: Option<Determinism>,
    /// Less memory for a third more time: parts of a loss go backward one after the other, and activations within blocks are computed
    /// once more there. For crops of 512 pixels and more. Only for families that can.
    pub save_memory: Option<bool>,
    /// Threads of a CPU worker; `auto` is the machine's cores divided by its workers.
    pub threads: Option<CountOrAuto>,
    /// Minibatches during which the schedule stands still (one cycle).
    #[schemars(range(min = 1, max = 1000))]
    pub minibatch_repeats: Option<u32>,
    /// Discriminator steps for each generator step.
    #[schemars(range(min = 1, max = 100))]
    pub d_repeats: Option<u32>,
    /// Moving average of the generator: its half-life in kimg. Replaces `ema_decay`.
    #[schemars(range(min = 0.000_001, max = 1_000_000.0))]
    pub ema_half_life_kimg: Option<f64>,
    /// Moving average of the generator: its decay per discriminator step, whatever the minibatch, as in the authors'
    /// code. Replaces `ema_half_life_kimg`.
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub ema_decay: Option<f64>,
    /// Most samples that one worker takes through the networks at once; beyond it accumulates gradients.
    pub max_per_worker: Option<PerResolution<Samples>>,
    /// Distance between two reports of losses and speed, in kimg.
    pub tick_kimg: Option<PerResolution<TickKimg>>,
    /// When the networks grow.
    pub growth: Option<RawGrowth>,
    /// Global minibatch: all workers together. Never follows the number of workers.
    pub minibatch: Option<PerResolution<Samples>>,
    /// Optimizer of generator and discriminator alike.
    pub optimizer: Option<RawOptimizer>,
    /// When to end before the full length.
    pub stop: Option<RawStop>,
}

/// `[train.stop]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawStop {
    /// Evaluations in a row that are no better than the best one before, after which the run ends; 0 never ends it so.
    #[schemars(range(min = 0, max = 100_000))]
    pub evaluations: Option<u32>,
    /// Share of the best value by which another must be better to count as better.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub min_gain: Option<f64>,
    /// Time of training after which the run stores its state and ends, that before a resume included: `90min`, `12h`.
    pub budget: Option<String>,
}

/// `[train.growth]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawGrowth {
    /// Resolution of the first phase in pixels.
    pub start_resolution: Option<Resolution>,
    /// Length of a stable phase in kimg.
    #[schemars(range(min = 0.0, max = 100_000_000.0))]
    pub stable_kimg: Option<f64>,
    /// Length of a fade from one resolution to the next in kimg.
    #[schemars(range(min = 0.0, max = 100_000_000.0))]
    pub fade_kimg: Option<f64>,
}

/// `[train.optimizer]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawOptimizer {
    /// Algorithm.
    pub kind: Option<OptimizerKind>,
    /// Decay of the first moment.
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub beta1: Option<f64>,
    /// Decay of the second moment.
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub beta2: Option<f64>,
    /// Added to the root of the second moment.
    #[schemars(range(min = 1e-30, max = 1.0))]
    pub epsilon: Option<f64>,
    /// Learning rate of generator and, but for `d_rate`, discriminator.
    pub learning_rate: Option<PerResolution<Rate>>,
    /// Forget moments and step count whenever a fade begins or ends.
    pub reset_for_new_lod: Option<bool>,
    /// Learning rate of the discriminator, as a multiple of `learning_rate`; 0 freezes it.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub d_rate: Option<f64>,
}

/// `[cluster]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCluster {
    /// Transport of the collectives.
    pub backend: Option<Backend>,
    /// Workers of the run; `auto` is every GPU, else one per CPU core.
    pub workers: Option<CountOrAuto>,
    /// With fewer workers than this the run waits.
    #[schemars(range(min = 1, max = 4096))]
    pub min_workers: Option<u32>,
    /// More workers than this are never taken in; `auto` is 256.
    pub max_workers: Option<CountOrAuto>,
    /// What to do while fewer workers are there than are wanted.
    pub on_loss: Option<OnLoss>,
    /// Where workers try the widest step of the run before they ask for a place.
    pub rehearse: Option<Rehearse>,
    /// Failures in a row without progress in between, before the run goes back to a checkpoint; after as many again it ends.
    #[schemars(range(min = 1, max = 1000))]
    pub failures: Option<u32>,
    /// How long a peer may give no sign of life before it counts as lost: `500ms`, `2s`, `1min`.
    pub patience: Option<String>,
    /// How long workers wait for a vanished coordinator before they checkpoint and leave: `30s`, `10min`, `2h`.
    pub orphan_patience: Option<String>,
}

/// `[checkpoint]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCheckpoint {
    /// Root of all runs: `s3://bucket/prefix`, `gs://`, `az://`, `file:///folder`, `memory://`, or a path. A relative
    /// path starts at the experiment file's folder.
    pub url: Option<String>,
    /// Distance between checkpoints in kimg.
    #[schemars(range(min = 0.001, max = 1_000_000_000.0))]
    pub every_kimg: Option<f64>,
    /// Newest checkpoints that are kept.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub keep_last: Option<u32>,
    /// Keep every checkpoint at a multiple of this many kimg too; 0 keeps none of them.
    #[schemars(range(min = 0.0, max = 1_000_000_000.0))]
    pub keep_every_kimg: Option<f64>,
    /// Checkpoints that are kept because `metrics.judge` was best there; 0 keeps none of them.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub keep_best: Option<u32>,
    /// How an S3-compatible store is reached. Credentials come from the environment, never from a file like this.
    pub s3: Option<RawS3>,
}

/// `[checkpoint.s3]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawS3 {
    /// Endpoint of a store that is not AWS, as in `https://storage.example.org:9000`.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Ask for `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: Option<bool>,
    /// PEM file with a certificate authority to trust besides the usual ones.
    pub ca: Option<String>,
    /// Allow an endpoint without TLS (`http://`).
    pub allow_http: Option<bool>,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawMetrics {
    /// Distance between evaluations in kimg; 0 evaluates the untrained network and the end only.
    #[schemars(range(min = 0.0, max = 1_000_000_000.0))]
    pub every_kimg: Option<f64>,
    /// Metrics to compute; an empty list computes none.
    pub kinds: Option<Vec<MetricKind>>,
    /// Images on each side of a comparison, at most; never more than the data set holds.
    #[schemars(range(min = 2, max = 1_000_000))]
    pub images: Option<u32>,
    /// Network whose features `kid` and `frechet` compare: `auto` is the EfficientNet-Lite0 that `scripts/fetch-features` lays in
    /// the cache, else a TorchScript file, which is run. A relative path starts at the experiment file's folder.
    pub features: Option<String>,
    /// Metric that says which state is best; `auto` is the first of `kid`, `frechet`, `swd`, `twins`, `cycle` in `kinds`.
    pub judge: Option<JudgeKind>,
}

/// `[samples]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSamples {
    /// Distance between grids in kimg; 0 makes one every tick.
    #[schemars(range(min = 0.0, max = 1_000_000_000.0))]
    pub every_kimg: Option<f64>,
    /// Size of a grid.
    pub grid: Option<Grid>,
}

/// A named set of growth, minibatch and learning-rate tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Schedule {
    /// No preset: the built-in defaults.
    #[serde(rename = "none")]
    None,
    /// The paper's single-GPU schedule: 800/800 kimg phases, 19000 kimg, minibatch-stddev groups of 16.
    #[serde(rename = "progan-v1")]
    ProganV1,
    /// The authors' CelebA-HQ presets for 1, 2, 4 and 8 GPUs: 600/600 kimg phases, 12000 kimg.
    #[serde(rename = "progan-v2")]
    ProganV2,
}

/// Optimizing algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam (Kingma & Ba 2015).
    Adam,
}

/// A quality metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MetricKind {
    /// Sliced Wasserstein distance, per resolution level.
    Swd,
    /// Kernel distance between features of made and real images (Binkowski et al. 2018).
    Kid,
    /// Frechet distance between them (Heusel et al. 2017).
    Frechet,
    /// How far an image is from itself after the way there and back.
    Cycle,
    /// How far a translation is from the true image, where the data hold it.
    Twins,
    /// How alike made images are among themselves.
    Diversity,
}

/// Which metric says what is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum JudgeKind {
    /// This one.
    Kind(MetricKind),
    /// The first that says it.
    Word(Auto),
}

/// A whole number from 1, or the word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CountOrAuto {
    /// This many.
    Count(#[schemars(range(min = 1, max = 4096))] u32),
    /// Found out where the run starts.
    Word(Auto),
}

/// The layers of one discriminator, or of each of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LayersOfEach {
    /// There is one.
    One(#[schemars(range(min = 0, max = 6))] u32),
    /// There are so many, three at most.
    Each(#[schemars(inner(range(min = 0, max = 6)))] Vec<u32>),
}

/// A number of images, or the word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ImagesOrAuto {
    /// This many.
    Images(#[schemars(range(min = 1, max = 4_294_967_295u64))] u64),
    /// Found out where the run starts.
    Word(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// Found out where the run starts.
    Auto,
}

/// Samples of a minibatch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Samples(#[schemars(range(min = 1, max = 65536))] pub u32);

/// Learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Rate(#[schemars(range(min = 1e-12, max = 10.0))] pub f64);

/// Length of a tick in kimg.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TickKimg(#[schemars(range(min = 0.001, max = 1_000_000.0))] pub f64);

/// Side of an image in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Resolution(pub u32);

impl Resolution {
    /// Every resolution an image pyramid can have, in pixels.
    pub const ALL: [u32; 9] = [4, 8, 16, 32, 64, 128, 256, 512, 1024];
}

impl JsonSchema for Resolution {
    fn schema_name() -> Cow<'static, str> {
        "Resolution".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "enum": Self::ALL })
    }
}

/// One value for every resolution: a plain value (the same everywhere), or a table with `default` and resolutions as
/// keys. A table without `default` changes only what it names; one with `default` drops the preset's other entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PerResolution<T>(pub BTreeMap<At, T>);

/// Key of a [`PerResolution`] table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum At {
    /// Wherever no resolution is named.
    Default,
    /// This resolution in pixels.
    Pixels(u32),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Pixels(pixels) => write!(f, "{pixels}"),
        }
    }
}

impl From<At> for String {
    fn from(at: At) -> Self {
        at.to_string()
    }
}

impl TryFrom<String> for At {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self::Default);
        }
        let known = Resolution::ALL.into_iter().find(|r| r.to_string() == text);
        known.map(Self::Pixels).ok_or_else(|| "expected `default` or a resolution".to_owned())
    }
}

impl<T> PerResolution<T> {
    /// A table from its default and its entries.
    pub fn new(default: Option<T>, entries: impl IntoIterator<Item = (u32, T)>) -> Self {
        let entries = entries.into_iter().map(|(pixels, value)| (At::Pixels(pixels), value));
        Self(default.map(|value| (At::Default, value)).into_iter().chain(entries).collect())
    }
}

impl<T: JsonSchema> JsonSchema for PerResolution<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("PerResolution_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let each = generator.subschema_for::<T>();
        let names = std::iter::once("default".to_owned()).chain(Resolution::ALL.map(|r| r.to_string()));
        let properties: serde_json::Map<_, _> = names.map(|name| (name, each.clone().to_value())).collect();
        json_schema!({
            "anyOf": [each, { "type": "object", "properties": properties, "additionalProperties": false }]
        })
    }
}
