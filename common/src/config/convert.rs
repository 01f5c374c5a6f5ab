//! From a typed file to a [`RunConfig`], section by section: paths, colours and lengths of time read, tables cut to the
//! run's resolutions.
//!
//! Judges one value at a time. Where one is missing or wrong it reports that and goes on with a placeholder, so that all
//! problems are found in one go; [`super::resolve`] throws the placeholders away with the error.

use super::error::{Origin, Problem, printable};
use super::layers::{Base, Layers, Leaves};
use super::raw::{
    At, Auto, CountOrAuto, ImagesOrAuto, JudgeKind, LayersOfEach, MetricKind, PerResolution, RawCheckpoint, RawCluster,
    RawCycleGan, RawData, RawFile, RawGrowth, RawMetrics, RawModel, RawOptimizer, RawPix2Pix, RawProGan, RawS3,
    RawSamples, RawStop, RawTrain, Resolution,
};
use super::resolve::covers;
use super::resolved::{
    Adam, Backend, Checkpoint, Cluster, Data, Determinism, Ema, Epochs, Grid, Metrics, Model, OnLoss, Precision,
    ReducePrecision, Rehearse, RunConfig, S3, Samples, Stop, Train,
};
use super::{duration, paths};
use crate::families::progan::{Architecture, GpNorm, Upscale};
use crate::families::{Pairing, cyclegan, pix2pix, sngan};
use crate::growth::Growth;
use std::collections::BTreeMap;
use std::path::Path;

/// Shortest and longest time of training that a run may be given, in seconds.
const BUDGET_S: std::ops::RangeInclusive<f64> = 1.0..=31_536_000.0;

/// A conversion under way and what it has found wrong.
pub(super) struct Check<'a> {
    pub layers: &'a Layers<'a>,
    pub leaves: &'a Leaves,
    pub problems: Vec<Problem>,
}

impl Check<'_> {
    pub fn run(&mut self, raw: RawFile) -> RunConfig {
        let name = self.need("name", raw.name, String::new());
        self.name(&name);
        let model = self.model(raw.model);
        let train = self.train(raw.train.unwrap_or_default(), &model);
        let data = self.data(raw.data.unwrap_or_default(), &model);
        RunConfig {
            name,
            seed: self.need("seed", raw.seed, 0),
            model,
            data,
            train,
            cluster: self.cluster(raw.cluster.unwrap_or_default()),
            checkpoint: self.checkpoint(raw.checkpoint.unwrap_or_default()),
            metrics: self.metrics(raw.metrics.unwrap_or_default()),
            samples: self.samples(raw.samples.unwrap_or_default()),
        }
    }

    fn model(&mut self, raw: Option<RawModel>) -> Model {
        match raw.unwrap_or(RawModel::ProGan(RawProGan::default())) {
            RawModel::ProGan(raw) => Model::ProGan(self.progan(&raw)),
            RawModel::Sngan(raw) => Model::Sngan(sngan::Architecture {
                resolution: self.need("model.resolution", raw.resolution, Resolution(4)).0,
                latent_size: self.need("model.latent_size", raw.latent_size, 1),
                width: self.need("model.width", raw.width, 1),
            }),
            RawModel::CycleGan(raw) => Model::CycleGan(self.cyclegan(&raw)),
            RawModel::Pix2Pix(raw) => Model::Pix2Pix(self.pix2pix(&raw)),
        }
    }

    fn pix2pix(&mut self, raw: &RawPix2Pix) -> pix2pix::Architecture {
        pix2pix::Architecture {
            resolution: self.need("model.resolution", raw.resolution, Resolution(256)).0,
            g_width: self.need("model.g_width", raw.g_width, 1),
            g_downs: self.need("model.g_downs", raw.g_downs, 5),
            dropout: self.need("model.dropout", raw.dropout, false),
            d_width: self.need("model.d_width", raw.d_width, 1),
            d_layers: self.need("model.d_layers", raw.d_layers, 1),
            gan_loss: self.need("model.gan_loss", raw.gan_loss, cyclegan::GanLoss::Vanilla),
            lambda_l1: self.need("model.lambda_l1", raw.lambda_l1, 0.0),
            direction: self.need("model.direction", raw.direction, pix2pix::Direction::A2b),
        }
    }

    fn cyclegan(&mut self, raw: &RawCycleGan) -> cyclegan::Architecture {
        cyclegan::Architecture {
            resolution: self.need("model.resolution", raw.resolution, Resolution(256)).0,
            g_width: self.need("model.g_width", raw.g_width, 1),
            g_blocks: self.need("model.g_blocks", raw.g_blocks, 1),
            g_downs: self.need("model.g_downs", raw.g_downs, cyclegan::AUTHORS_DOWNS),
            d_width: self.need("model.d_width", raw.d_width, 1),
            d_layers: match self.need("model.d_layers", raw.d_layers.clone(), LayersOfEach::One(1)) {
                LayersOfEach::One(layers) => vec![layers],
                LayersOfEach::Each(layers) => layers,
            },
            gan_loss: self.need("model.gan_loss", raw.gan_loss, cyclegan::GanLoss::Lsgan),
            lambda_a: self.need("model.lambda_a", raw.lambda_a, 0.0),
            lambda_b: self.need("model.lambda_b", raw.lambda_b, 0.0),
            lambda_identity: self.need("model.lambda_identity", raw.lambda_identity, 0.0),
            pool_size: self.need("model.pool_size", raw.pool_size, 0),
            g_norm: self.need("model.g_norm", raw.g_norm, cyclegan::Norm::Instance),
            upscale: self.need("model.upscale", raw.upscale, cyclegan::Upscale::Transposed),
            residual: self.need("model.residual", raw.residual, false),
            skips: self.need("model.skips", raw.skips, false),
            average: self.need("model.average", raw.average, false),
            augment: self.need("model.augment", raw.augment, 0.0),
        }
    }

    fn progan(&mut self, raw: &RawProGan) -> Architecture {
        Architecture {
            resolution: self.need("model.resolution", raw.resolution, Resolution(4)).0,
            latent_size: self.need("model.latent_size", raw.latent_size, 1),
            fmap_base: self.need("model.fmap_base", raw.fmap_base, 8192),
            fmap_max: self.need("model.fmap_max", raw.fmap_max, 1),
            upscale: self.need("model.upscale", raw.upscale, Upscale::Fused),
            position_bias: self.need("model.position_bias", raw.position_bias, false),
            minibatch_stddev_group: self.need("model.minibatch_stddev_group", raw.minibatch_stddev_group, 1),
            gp_norm: self.need("model.gp_norm", raw.gp_norm, GpNorm::Active),
            gp_weight: self.need("model.gp_weight", raw.gp_weight, 0.0),
            gp_target: self.need("model.gp_target", raw.gp_target, 1.0),
            drift: self.need("model.drift", raw.drift, 0.0),
        }
    }

    fn data(&mut self, raw: RawData, model: &Model) -> Data {
        let source = self.need("data.source", raw.source, "/".to_owned());
        let background = self.need("data.background", raw.background, String::new());
        let cache = self.need("data.cache", raw.cache, "auto".to_owned());
        Data {
            source: self.settle("data.source", paths::source(&source, self.folder("data.source"))).unwrap_or_default(),
            mirror: self.need("data.mirror", raw.mirror, false),
            background: self.settle("data.background", colour(&background)).unwrap_or_default(),
            cache: match cache.as_str() {
                "auto" => None,
                path => self.settle("data.cache", paths::absolute(path, self.folder("data.cache"))),
            },
            max_bad_share: self.need("data.max_bad_share", raw.max_bad_share, 0.0),
            load_size: match model.pairing() {
                Pairing::One => raw.load_size,
                Pairing::Unpaired | Pairing::Paired => Some(self.need("data.load_size", raw.load_size, 4096)),
            },
        }
    }

    fn train(&mut self, raw: RawTrain, model: &Model) -> Train {
        let resolution = model.resolution();
        let (minibatch, minibatch_base) = self.table("train.minibatch", raw.minibatch, resolution, |s| s.0);
        let (tick_kimg, tick_kimg_base) = self.table("train.tick_kimg", raw.tick_kimg, resolution, |t| t.0);
        let epochs = (raw.constant_epochs.is_some() || raw.decay_epochs.is_some()).then(|| Epochs {
            constant: raw.constant_epochs.unwrap_or_default(),
            decay: raw.decay_epochs.unwrap_or_default(),
            images: match raw.epoch_images {
                Some(ImagesOrAuto::Images(images)) => images,
                _ => 0,
            },
        });
        Train {
            total_kimg: if epochs.is_some() { 0.0 } else { self.need("train.total_kimg", raw.total_kimg, 1.0) },
            epochs,
            precision: self.need("train.precision", raw.precision, Precision::Fp32),
            reduce_precision: self.need("train.reduce_precision", raw.reduce_precision, ReducePrecision::Fp32),
            determinism: self.need("train.determinism", raw.determinism, Determinism::Fast),
            save_memory: self.need("train.save_memory", raw.save_memory, false),
            threads: self.count("train.threads", raw.threads),
            growth: match model.grows() {
                true => self.growth(&raw.growth.unwrap_or_default()),
                false => Growth::none(resolution),
            },
            minibatch,
            minibatch_base,
            max_per_worker: limits(raw.max_per_worker, resolution),
            minibatch_repeats: self.need("train.minibatch_repeats", raw.minibatch_repeats, 1),
            d_repeats: self.need("train.d_repeats", raw.d_repeats, 1),
            optimizer: self.optimizer(raw.optimizer.unwrap_or_default(), resolution),
            ema: match (raw.ema_decay, raw.ema_half_life_kimg) {
                _ if !model.averages() => Ema::Decay(0.0),
                (Some(decay), _) => Ema::Decay(decay),
                (None, half_life) => Ema::HalfLifeKimg(self.need("train.ema_half_life_kimg", half_life, 1.0)),
            },
            tick_kimg,
            tick_kimg_base,
            stop: self.stop(raw.stop.unwrap_or_default()),
        }
    }

    fn stop(&mut self, raw: RawStop) -> Stop {
        const BUDGET: &str = "train.stop.budget";
        Stop {
            evaluations: self.need("train.stop.evaluations", raw.evaluations, 0),
            min_gain: self.need("train.stop.min_gain", raw.min_gain, 0.0),
            budget_s: raw.budget.map(|text| self.duration(BUDGET, Some(text), BUDGET_S)),
        }
    }

    fn growth(&mut self, raw: &RawGrowth) -> Growth {
        Growth {
            start_resolution: self.need("train.growth.start_resolution", raw.start_resolution, Resolution(4)).0,
            stable_kimg: self.need("train.growth.stable_kimg", raw.stable_kimg, 0.0),
            fade_kimg: self.need("train.growth.fade_kimg", raw.fade_kimg, 0.0),
        }
    }

    fn optimizer(&mut self, raw: RawOptimizer, resolution: u32) -> Adam {
        let (learning_rate_by_resolution, learning_rate) =
            self.table("train.optimizer.learning_rate", raw.learning_rate, resolution, |rate| rate.0);
        Adam {
            beta1: self.need("train.optimizer.beta1", raw.beta1, 0.0),
            beta2: self.need("train.optimizer.beta2", raw.beta2, 0.0),
            epsilon: self.need("train.optimizer.epsilon", raw.epsilon, 1.0),
            learning_rate,
            learning_rate_by_resolution,
            reset_for_new_lod: self.need("train.optimizer.reset_for_new_lod", raw.reset_for_new_lod, true),
            d_rate: self.need("train.optimizer.d_rate", raw.d_rate, 1.0),
        }
    }

    fn cluster(&mut self, raw: RawCluster) -> Cluster {
        Cluster {
            backend: self.need("cluster.backend", raw.backend, Backend::Auto),
            workers: self.count("cluster.workers", raw.workers),
            min_workers: self.need("cluster.min_workers", raw.min_workers, 1),
            max_workers: self.count("cluster.max_workers", raw.max_workers),
            on_loss: self.need("cluster.on_loss", raw.on_loss, OnLoss::Shrink),
            rehearse: self.need("cluster.rehearse", raw.rehearse, Rehearse::Gpu),
            failures: self.need("cluster.failures", raw.failures, 3),
            patience_s: self.duration("cluster.patience", raw.patience, 0.1..=3600.0),
            orphan_patience_s: self.duration("cluster.orphan_patience", raw.orphan_patience, 0.1..=30.0 * 86400.0),
        }
    }

    fn checkpoint(&mut self, raw: RawCheckpoint) -> Checkpoint {
        let url = self.need("checkpoint.url", raw.url, "/".to_owned());
        Checkpoint {
            url: self.settle("checkpoint.url", paths::store(&url, self.folder("checkpoint.url"))).unwrap_or_default(),
            every_kimg: self.need("checkpoint.every_kimg", raw.every_kimg, 1.0),
            keep_last: self.need("checkpoint.keep_last", raw.keep_last, 1),
            keep_every_kimg: self.need("checkpoint.keep_every_kimg", raw.keep_every_kimg, 0.0),
            keep_best: self.need("checkpoint.keep_best", raw.keep_best, 0),
            s3: self.s3(raw.s3.unwrap_or_default()),
        }
    }

    fn s3(&mut self, raw: RawS3) -> S3 {
        let allow_http = self.need("checkpoint.s3.allow_http", raw.allow_http, false);
        S3 {
            endpoint: raw
                .endpoint
                .and_then(|text| self.settle("checkpoint.s3.endpoint", paths::endpoint(&text, allow_http))),
            region: raw.region.and_then(|text| {
                let sound = !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_graphic());
                let expected = "expected the name of a region, such as \"eu-central-1\"".to_owned();
                self.settle("checkpoint.s3.region", if sound { Ok(text) } else { Err(expected) })
            }),
            path_style: self.need("checkpoint.s3.path_style", raw.path_style, false),
            ca: raw.ca.and_then(|text| {
                self.settle("checkpoint.s3.ca", paths::absolute(&text, self.folder("checkpoint.s3.ca")))
            }),
            allow_http,
        }
    }

    fn metrics(&mut self, raw: RawMetrics) -> Metrics {
        let kinds = self.need("metrics.kinds", raw.kinds, Vec::new());
        let features = self.need("metrics.features", raw.features, "auto".to_owned());
        let has = |kind| kinds.contains(&kind);
        let metrics = Metrics {
            every_kimg: self.need("metrics.every_kimg", raw.every_kimg, 0.0),
            swd: has(MetricKind::Swd),
            kid: has(MetricKind::Kid),
            frechet: has(MetricKind::Frechet),
            cycle: has(MetricKind::Cycle),
            twins: has(MetricKind::Twins),
            diversity: has(MetricKind::Diversity),
            images: self.need("metrics.images", raw.images, 2),
            features: match features.as_str() {
                "auto" => None,
                path => self.settle("metrics.features", paths::absolute(path, self.folder("metrics.features"))),
            },
            judge: None,
        };
        let judge = match self.need("metrics.judge", raw.judge, JudgeKind::Word(Auto::Auto)) {
            JudgeKind::Kind(kind) => Some(kind),
            JudgeKind::Word(Auto::Auto) => metrics.fittest(),
        };
        Metrics { judge, ..metrics }
    }

    fn samples(&mut self, raw: RawSamples) -> Samples {
        Samples {
            every_kimg: self.need("samples.every_kimg", raw.every_kimg, 0.0),
            grid: self.need("samples.grid", raw.grid, Grid::Hd),
        }
    }
}

/// Single values that a bound in the schema cannot judge.
impl Check<'_> {
    /// The value, or a placeholder and a problem.
    fn need<T>(&mut self, key: &str, value: Option<T>, placeholder: T) -> T {
        value.unwrap_or_else(|| {
            // said and wrong is reported already
            if !self.problems.iter().any(|problem| covers(&problem.key, key)) && !self.unreadable() {
                let hint = Some(format!("add {}", example(key)));
                self.problems.push(Problem { origin: None, key: key.to_owned(), message: "missing".to_owned(), hint });
            }
            placeholder
        })
    }

    /// The value of `result`, or a problem with `key`.
    fn settle<T>(&mut self, key: &str, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(message) => {
                if self.leaves.contains_key(key) {
                    self.wrong(key, message, None);
                }
                None
            }
        }
    }

    fn name(&mut self, name: &str) {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        if self.leaves.contains_key("name")
            && (name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(allowed))
        {
            let better: String =
                name.to_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).take(64).collect();
            let better = better.trim_start_matches('.');
            let hint = (!better.is_empty()).then(|| format!("for example \"{better}\""));
            let message = format!(
                "expected 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", not starting with a dot, found \"{}\"",
                printable(name)
            );
            self.wrong("name", message, hint);
        }
    }

    fn duration(&mut self, key: &str, raw: Option<String>, bounds: std::ops::RangeInclusive<f64>) -> f64 {
        let text = self.need(key, raw, String::new());
        let [low, high] = [*bounds.start(), *bounds.end()].map(duration::format);
        let parsed = match duration::parse(&text) {
            Some(seconds) if bounds.contains(&seconds) => Ok(seconds),
            Some(_) => Err(format!("expected {low} to {high}, found \"{}\"", printable(&text))),
            None => Err(format!("expected {}, found \"{}\"", duration::EXPECTED, printable(&text))),
        };
        self.settle(key, parsed).unwrap_or(*bounds.start())
    }

    fn count(&mut self, key: &str, raw: Option<CountOrAuto>) -> u32 {
        match raw {
            Some(CountOrAuto::Count(count)) => count,
            Some(CountOrAuto::Word(_)) => 0,
            None => self.need(key, None, 0),
        }
    }

    /// Entries at or below `resolution`, and the value of all others.
    fn table<T: Copy, V>(
        &mut self,
        key: &str,
        raw: Option<PerResolution<T>>,
        resolution: u32,
        value: fn(T) -> V,
    ) -> (BTreeMap<u32, V>, V)
    where
        V: Default,
    {
        let raw = raw.map(|table| table.0).unwrap_or_default();
        let base = raw.get(&At::Default).map(|base| value(*base));
        let base = self.need(&format!("{key}.default"), base, V::default());
        let entry = |(at, entry): (&At, &T)| match at {
            At::Pixels(pixels) if *pixels <= resolution => Some((*pixels, value(*entry))),
            _ => None,
        };
        (raw.iter().filter_map(entry).collect(), base)
    }

    pub fn wrong(&mut self, key: &str, message: String, hint: Option<String>) {
        let origin = self.leaves.get(key).map(|valued| valued.origin.clone());
        self.problems.push(Problem { origin, key: key.to_owned(), message, hint });
    }

    /// Folder at which a relative path in `key` starts.
    fn folder(&self, key: &str) -> &Path {
        match (self.leaves.get(key).map(|valued| &valued.origin), self.layers.base) {
            (Some(Origin::File { .. }), Base::File { folder, .. }) => folder,
            _ => self.layers.working_dir,
        }
    }

    /// Whether the file could not be read as TOML, so that nothing in it counts as missing.
    fn unreadable(&self) -> bool {
        self.problems.iter().any(|problem| problem.key.is_empty())
    }
}

/// Every resolution's limit, where there is one.
fn limits(raw: Option<PerResolution<super::raw::Samples>>, resolution: u32) -> BTreeMap<u32, u32> {
    let raw = raw.map(|table| table.0).unwrap_or_default();
    let all = Resolution::ALL.into_iter().filter(|pixels| *pixels <= resolution);
    all.filter_map(|pixels| Some((pixels, raw.get(&At::Pixels(pixels)).or(raw.get(&At::Default))?.0))).collect()
}

/// How a missing key is written.
fn example(key: &str) -> String {
    match key {
        "name" => "name = \"my-run\" at the top of the file".to_owned(),
        "data.source" => "source = \"path/to/images\" under [data]".to_owned(),
        key => match key.rsplit_once('.') {
            Some((section, name)) => format!("{name} = … under [{section}]"),
            None => format!("{key} = …"),
        },
    }
}

/// RGB of a colour's name or `#rrggbb`.
fn colour(text: &str) -> Result<[u8; 3], String> {
    let hex = |digits: &str| {
        let value = u32::from_str_radix(digits, 16).ok()?;
        let [_, red, green, blue] = value.to_be_bytes();
        Some([red, green, blue])
    };
    let six =
        text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.chars().all(|c| c.is_ascii_hexdigit()));
    match (text, six.and_then(hex)) {
        ("white", _) => Ok([255; 3]),
        ("black", _) => Ok([0; 3]),
        ("gray", _) => Ok([128; 3]),
        (_, Some(colour)) => Ok(colour),
        _ => Err(format!("expected \"white\", \"black\", \"gray\" or \"#rrggbb\", found \"{}\"", printable(text))),
    }
}
