//! A resolved configuration written as an experiment file again: what `config show` prints, and the form in which a
//! run's configuration takes `--set` on resume.
//!
//! What is written here resolves to the same configuration; it names every value and no preset.

use super::duration;
use super::error::Origin;
use super::layers::leaves_of;
use super::raw::{
    Auto, CountOrAuto, ImagesOrAuto, JudgeKind, LayersOfEach, OptimizerKind, PerResolution, Rate, RawCheckpoint,
    RawCluster, RawCycleGan, RawData, RawFile, RawGrowth, RawMetrics, RawModel, RawOptimizer, RawPix2Pix, RawProGan,
    RawS3, RawSamples, RawSngan, RawStop, RawTrain, Resolution, Samples, TickKimg,
};
use super::resolve::Resolved;
use super::resolved::{Adam, Ema, Metrics, Model, RunConfig, Train};
use super::schema;
use crate::families::progan::Architecture;
use crate::families::{cyclegan, pix2pix, sngan};
use crate::growth::Growth;
use serde_json::Value as Json;
use std::fmt::Write;

impl Resolved {
    /// The configuration as an experiment file in which each value's comment says where it came from.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let leaves = leaves_of(&RawFile::from(&self.config));
        let mut out = String::new();
        let mut open = "";
        let keys = schema::keys();
        let in_order = sections(&keys).into_iter().flat_map(|section| keys.iter().map(move |key| (section, key)));
        for (section, key) in in_order.filter(|(section, key)| split(key).0 == *section) {
            let Some(value) = leaves.get(key) else { continue };
            if section != open {
                open = section;
                let _ = write!(out, "\n[{section}]\n");
            }
            let line = format!("{} = {}", split(key).1, toml(value));
            match self.origin(key) {
                Some(origin) => _ = writeln!(out, "{line:<40} # {origin}"),
                None => _ = writeln!(out, "{line}"),
            }
        }
        out
    }

    /// Where the value of `key` came from; an entry of a table comes from its `default` unless it was named.
    #[must_use]
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins.get(key).or_else(|| self.origins.get(&schema::join(split(key).0, "default")))
    }
}

/// Section and name of a dotted key.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

/// Sections in the order of the file.
fn sections(keys: &[String]) -> Vec<&str> {
    let mut sections = Vec::new();
    for key in keys {
        let section = split(key).0;
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    sections
}

/// A value as TOML. JSON's texts, numbers, booleans and lists of them are TOML too, but for numbers without a fraction.
pub(super) fn toml(value: &Json) -> String {
    match value {
        Json::String(text) => toml_edit::Value::from(text.as_str()).to_string(),
        Json::Number(number) => match number.as_f64() {
            // 600 reads better than 600.0, and means the same wherever a number may have a fraction
            Some(whole) if !number.is_i64() && whole.fract() == 0.0 && whole.abs() < 1e15 => format!("{whole:.0}"),
            Some(fraction) if number.is_f64() => format!("{fraction:?}"),
            _ => number.to_string(),
        },
        Json::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

impl From<&RunConfig> for RawFile {
    fn from(run: &RunConfig) -> Self {
        let [red, green, blue] = run.data.background;
        let s3 = &run.checkpoint.s3;
        Self {
            name: Some(run.name.clone()),
            seed: Some(run.seed),
            model: Some(model(&run.model)),
            data: Some(RawData {
                source: Some(run.data.source.clone()),
                mirror: Some(run.data.mirror),
                background: Some(format!("#{red:02x}{green:02x}{blue:02x}")),
                cache: Some(run.data.cache.clone().unwrap_or_else(|| "auto".to_owned())),
                max_bad_share: Some(run.data.max_bad_share),
                load_size: run.data.load_size,
            }),
            train: Some(train(&run.train, &run.model)),
            cluster: Some(RawCluster {
                backend: Some(run.cluster.backend),
                workers: Some(count(run.cluster.workers)),
                min_workers: Some(run.cluster.min_workers),
                max_workers: Some(count(run.cluster.max_workers)),
                on_loss: Some(run.cluster.on_loss),
                rehearse: Some(run.cluster.rehearse),
                failures: Some(run.cluster.failures),
                patience: Some(duration::format(run.cluster.patience_s)),
                orphan_patience: Some(duration::format(run.cluster.orphan_patience_s)),
            }),
            checkpoint: Some(RawCheckpoint {
                url: Some(run.checkpoint.url.clone()),
                every_kimg: Some(run.checkpoint.every_kimg),
                keep_last: Some(run.checkpoint.keep_last),
                keep_every_kimg: Some(run.checkpoint.keep_every_kimg),
                keep_best: Some(run.checkpoint.keep_best),
                s3: Some(RawS3 {
                    endpoint: s3.endpoint.clone(),
                    region: s3.region.clone(),
                    path_style: Some(s3.path_style),
                    ca: s3.ca.clone(),
                    allow_http: Some(s3.allow_http),
                }),
            }),
            metrics: Some(RawMetrics {
                every_kimg: Some(run.metrics.every_kimg),
                kinds: Some(run.metrics.kinds()),
                images: Some(run.metrics.images),
                features: Some(run.metrics.features.clone().unwrap_or_else(|| "auto".to_owned())),
                judge: Some(judge(&run.metrics)),
            }),
            samples: Some(RawSamples { every_kimg: Some(run.samples.every_kimg), grid: Some(run.samples.grid) }),
        }
    }
}

fn model(model: &Model) -> RawModel {
    match model {
        Model::ProGan(architecture) => RawModel::ProGan(progan(architecture)),
        Model::Sngan(sngan::Architecture { resolution, latent_size, width }) => RawModel::Sngan(RawSngan {
            resolution: Some(Resolution(*resolution)),
            latent_size: Some(*latent_size),
            width: Some(*width),
        }),
        Model::CycleGan(architecture) => RawModel::CycleGan(cyclegan(architecture)),
        Model::Pix2Pix(architecture) => RawModel::Pix2Pix(pix2pix(architecture)),
    }
}

fn pix2pix(model: &pix2pix::Architecture) -> RawPix2Pix {
    RawPix2Pix {
        resolution: Some(Resolution(model.resolution)),
        g_width: Some(model.g_width),
        g_downs: Some(model.g_downs),
        dropout: Some(model.dropout),
        d_width: Some(model.d_width),
        d_layers: Some(model.d_layers),
        gan_loss: Some(model.gan_loss),
        lambda_l1: Some(model.lambda_l1),
        direction: Some(model.direction),
    }
}

fn cyclegan(model: &cyclegan::Architecture) -> RawCycleGan {
    RawCycleGan {
        resolution: Some(Resolution(model.resolution)),
        g_width: Some(model.g_width),
        g_blocks: Some(model.g_blocks),
        g_downs: Some(model.g_downs),
        d_width: Some(model.d_width),
        d_layers: Some(match &model.d_layers[..] {
            [one] => LayersOfEach::One(*one),
            each => LayersOfEach::Each(each.to_vec()),
        }),
        gan_loss: Some(model.gan_loss),
        lambda_a: Some(model.lambda_a),
        lambda_b: Some(model.lambda_b),
        lambda_identity: Some(model.lambda_identity),
        pool_size: Some(model.pool_size),
        g_norm: Some(model.g_norm),
        upscale: Some(model.upscale),
        residual: Some(model.residual),
        skips: Some(model.skips),
        average: Some(model.average),
        augment: Some(model.augment),
    }
}

fn progan(model: &Architecture) -> RawProGan {
    RawProGan {
        resolution: Some(Resolution(model.resolution)),
        latent_size: Some(model.latent_size),
        fmap_base: Some(model.fmap_base),
        fmap_max: Some(model.fmap_max),
        upscale: Some(model.upscale),
        position_bias: Some(model.position_bias),
        minibatch_stddev_group: Some(model.minibatch_stddev_group),
        gp_norm: Some(model.gp_norm),
        gp_weight: Some(model.gp_weight),
        gp_target: Some(model.gp_target),
        drift: Some(model.drift),
    }
}

fn train(train: &Train, model: &Model) -> RawTrain {
    let (ema_half_life_kimg, ema_decay) = match train.ema {
        _ if !model.averages() => (None, None),
        Ema::HalfLifeKimg(kimg) => (Some(kimg), None),
        Ema::Decay(decay) => (None, Some(decay)),
    };
    let Growth { start_resolution, stable_kimg, fade_kimg } = train.growth;
    RawTrain {
        total_kimg: train.epochs.is_none().then_some(train.total_kimg),
        constant_epochs: train.epochs.map(|epochs| epochs.constant),
        decay_epochs: train.epochs.map(|epochs| epochs.decay),
        epoch_images: train.epochs.map(|epochs| match epochs.images {
            0 => ImagesOrAuto::Word(Auto::Auto),
            images => ImagesOrAuto::Images(images),
        }),
        schedule: None,
        precision: Some(train.precision),
        reduce_precision: Some(train.reduce_precision),
        determinism: Some(train.determinism),
        save_memory: Some(train.save_memory),
        threads: Some(count(train.threads)),
        minibatch_repeats: Some(train.minibatch_repeats),
        d_repeats: Some(train.d_repeats),
        ema_half_life_kimg,
        ema_decay,
        max_per_worker: Some(PerResolution::new(None, train.max_per_worker.iter().map(|(&r, &n)| (r, Samples(n))))),
        tick_kimg: Some(PerResolution::new(
            Some(TickKimg(train.tick_kimg_base)),
            train.tick_kimg.iter().map(|(&r, &kimg)| (r, TickKimg(kimg))),
        )),
        growth: model.grows().then_some(RawGrowth {
            start_resolution: Some(Resolution(start_resolution)),
            stable_kimg: Some(stable_kimg),
            fade_kimg: Some(fade_kimg),
        }),
        minibatch: Some(PerResolution::new(
            Some(Samples(train.minibatch_base)),
            train.minibatch.iter().map(|(&r, &n)| (r, Samples(n))),
        )),
        optimizer: Some(optimizer(&train.optimizer)),
        stop: Some(RawStop {
            evaluations: Some(train.stop.evaluations),
            min_gain: Some(train.stop.min_gain),
            budget: train.stop.budget_s.map(duration::format),
        }),
    }
}

/// What is chosen by itself stays so: another list of kinds has another judge.
fn judge(metrics: &Metrics) -> JudgeKind {
    let named = metrics.judge.filter(|kind| Some(*kind) != metrics.fittest());
    named.map_or(JudgeKind::Word(Auto::Auto), JudgeKind::Kind)
}

fn optimizer(adam: &Adam) -> RawOptimizer {
    RawOptimizer {
        kind: Some(OptimizerKind::Adam),
        beta1: Some(adam.beta1),
        beta2: Some(adam.beta2),
        epsilon: Some(adam.epsilon),
        learning_rate: Some(PerResolution::new(
            Some(Rate(adam.learning_rate)),
            adam.learning_rate_by_resolution.iter().map(|(&r, &rate)| (r, Rate(rate))),
        )),
        reset_for_new_lod: Some(adam.reset_for_new_lod),
        d_rate: Some(adam.d_rate),
    }
}

fn count(count: u32) -> CountOrAuto {
    if count == 0 { CountOrAuto::Word(Auto::Auto) } else { CountOrAuto::Count(count) }
}
