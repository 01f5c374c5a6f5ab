//! From layers to a [`RunConfig`], and every check that takes more than one value.
//!
//! All cross-checks of a configuration are here and nowhere else; single values are judged in [`super::convert`]. All problems are reported, not only the first; a value
//! that is wrong by itself takes part in no cross-check, so that one mistake gives one message.

use super::convert::Check;
use super::duration;
use super::error::{ConfigError, Origin, Problem};
use super::layers::{Layers, Leaves, gather};
use super::raw::{MetricKind, RawFile, Resolution};
use super::resolved::{Backend, Cluster, Determinism, Model, Precision, ReducePrecision, RunConfig, Train};
use crate::families::cyclegan;
use crate::families::progan::Architecture;
use crate::families::{Pairing, pix2pix};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// Most parameters of a run's networks: 16 GB in single precision, and four times that with moments and average.
const PARAMETERS_MAX: u64 = 4_000_000_000;

/// A configuration and where each of its values came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The run.
    pub config: RunConfig,
    /// Dotted key of the experiment file -> origin of its value.
    pub origins: BTreeMap<String, Origin>,
}

/// Settles every question about a run that starts with `workers_at_launch` workers (0 counts as 1).
///
/// # Errors
/// Everything that is wrong with any layer, at once.
pub fn resolve(layers: &Layers<'_>, workers_at_launch: u32) -> Result<Resolved, ConfigError> {
    let (leaves, problems) = gather(layers, workers_at_launch.max(1));
    let raw: RawFile = match serde_json::from_value(nest(&leaves)) {
        Ok(raw) => raw,
        Err(error) => {
            // the schema let a value through that its type refuses: a defect, told instead of hidden
            let message = format!("cannot be read: {error}");
            let problem = Problem { origin: None, key: String::new(), message, hint: None };
            return Err(ConfigError { problems: problems.into_iter().chain([problem]).collect() });
        }
    };
    let mut check = Check { layers, leaves: &leaves, problems };
    let config = check.run(raw);
    check.across(&config);
    let mut problems = check.problems;
    if problems.is_empty() {
        let origins = leaves.into_iter().map(|(key, valued)| (key, valued.origin)).collect();
        return Ok(Resolved { config, origins });
    }
    problems.sort_by_key(|problem| match problem.origin {
        Some(Origin::File { line, .. }) => (0, line),
        None => (1, 0),
        Some(_) => (2, 0),
    });
    Err(ConfigError { problems })
}

/// Dotted keys as nested objects.
fn nest(leaves: &Leaves) -> Json {
    let mut root = Map::new();
    for (key, valued) in leaves {
        insert(&mut root, key, valued.value.clone());
    }
    Json::Object(root)
}

fn insert(table: &mut Map<String, Json>, key: &str, value: Json) {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    // the schema makes a key a table or a value, never both
    if let Json::Object(inner) = table.entry(first).or_insert_with(|| Json::Object(Map::new())) {
        insert(inner, rest, value);
    }
}

/// What two or more values must agree on.
impl Check<'_> {
    fn across(&mut self, config: &RunConfig) {
        match &config.model {
            Model::ProGan(model) => {
                self.widths(model, &config.train);
                self.groups(model, &config.train);
            }
            Model::Sngan(_) => {}
            Model::CycleGan(model) => {
                self.judges(model);
                let most = model.d_layers.iter().max().copied().unwrap_or_default();
                self.patches((model.resolution, most), config);
                self.halvings(model);
            }
            Model::Pix2Pix(model) => {
                self.patches((model.resolution, model.d_layers), config);
                self.halves(model);
            }
        }
        self.crops(config);
        self.comparable(config);
        self.length(&config.train);
        if !config.model.grows() {
            self.no_growth(config.model.family());
        }
        self.size(config);
        self.idle(config);
        self.arithmetic(config);
        self.worlds(config);
        self.times(config);
    }

    fn widths(&mut self, model: &Architecture, train: &Train) {
        let start = train.growth.start_resolution;
        if self.sound(&["model.resolution", "train.growth.start_resolution"]) && start > model.resolution {
            let message = format!("{start} is above model.resolution, which is {}", model.resolution);
            self.wrong("train.growth.start_resolution", message, None);
        }
        if self.sound(&["model.resolution", "model.fmap_base"]) && model.fmap_base < model.resolution / 2 {
            let message = format!("{} leaves no feature map at {} pixels", model.fmap_base, model.resolution);
            self.wrong("model.fmap_base", message, Some(format!("at least {}", model.resolution / 2)));
        }
        for (key, kimg) in
            [("train.growth.stable_kimg", train.growth.stable_kimg), ("train.growth.fade_kimg", train.growth.fade_kimg)]
        {
            if self.sound(&[key]) && kimg > 0.0 && kimg < 0.001 {
                self.wrong(key, format!("{kimg} kimg is less than one image"), Some("0 means none".to_owned()));
            }
        }
    }

    /// Blocks mirror what they see at its edges, which takes more than one pixel.
    fn halvings(&mut self, model: &cyclegan::Architecture) {
        let least = 2 * model.multiple();
        if self.sound(&["model.resolution", "model.g_downs"]) && (8..least).contains(&model.resolution) {
            let (downs, resolution) = (model.g_downs, model.resolution);
            let message = format!("{downs} halvings leave one pixel of {resolution}");
            self.wrong("model.g_downs", message, Some(format!("fewer, or model.resolution = {least} or more")));
        }
    }

    fn judges(&mut self, model: &cyclegan::Architecture) {
        let count = model.d_layers.len();
        if self.sound(&["model.d_layers"]) && !(1..=cyclegan::MOST_JUDGES).contains(&count) {
            let message = format!("{count} discriminators a domain");
            self.wrong(
                "model.d_layers",
                message,
                Some(format!("one number, or a list of 1 to {}", cyclegan::MOST_JUDGES)),
            );
        }
    }

    /// A norm of one sample needs more than one pixel to norm.
    fn patches(&mut self, (resolution, d_layers): (u32, u32), config: &RunConfig) {
        let least = 1 << (d_layers + 2);
        if self.sound(&["model.resolution"]) && resolution < 8 {
            self.wrong(
                "model.resolution",
                format!("{resolution} pixels leave one pixel to norm"),
                Some("8 or more".to_owned()),
            );
        } else if self.sound(&["model.resolution", "model.d_layers"]) && resolution < least {
            let message = format!("{d_layers} layers leave nothing to judge at {resolution} pixels");
            self.wrong("model.d_layers", message, Some(format!("fewer layers, or model.resolution = {least} or more")));
        }
        if self.sound(&["train.d_repeats"]) && config.train.d_repeats != 1 {
            let family = config.model.family();
            let message = format!("networks of family \"{family}\" take one step of D for each step of G");
            self.wrong("train.d_repeats", message, Some("leave it out".to_owned()));
        }
    }

    fn halves(&mut self, model: &pix2pix::Architecture) {
        if self.sound(&["model.resolution", "model.g_downs"]) && model.resolution >> model.g_downs == 0 {
            let message = format!("{} pixels cannot be halved {} times", model.resolution, model.g_downs);
            self.wrong("model.g_downs", message, Some(format!("at most {}", model.resolution.ilog2())));
        }
    }

    /// Crops must fit into what they are cut from, and only some families cut any.
    fn crops(&mut self, config: &RunConfig) {
        const KEY: &str = "data.load_size";
        let Some(load) = config.data.load_size.filter(|_| self.sound(&[KEY, "model.resolution"])) else { return };
        let (family, resolution) = (config.model.family(), config.model.resolution());
        if config.model.pairing() == Pairing::One {
            let message = format!("images of family \"{family}\" are not cropped at random");
            self.wrong(KEY, message, Some("leave it out".to_owned()));
        } else if load < resolution {
            let message = format!("{load} is less than model.resolution, which is {resolution}");
            self.wrong(KEY, message, Some(format!("at least {resolution}; {} is usual", resolution * 286 / 256)));
        }
    }

    /// What is compared by sets of images made of nothing is not for those made of images, and the other way round.
    fn comparable(&mut self, config: &RunConfig) {
        const KINDS: &str = "metrics.kinds";
        let (metrics, pairing) = (&config.metrics, config.model.pairing());
        let misfits = [
            ("swd", metrics.swd && pairing != Pairing::One),
            ("cycle", metrics.cycle && pairing != Pairing::Unpaired),
            ("twins", metrics.twins && pairing == Pairing::One),
        ];
        let misfit = misfits.into_iter().find(|(_, misfit)| *misfit);
        if let Some((name, _)) = misfit.filter(|_| self.sound(&[KINDS])) {
            let message = format!("\"{name}\" is not for images of family \"{}\"", config.model.family());
            self.wrong(KINDS, message, Some("leave it out of the list".to_owned()));
        }
        let alien = metrics.judge.filter(|judge| !metrics.has(*judge) || *judge == MetricKind::Diversity);
        if alien.is_some() && self.sound(&[KINDS, "metrics.judge"]) {
            let hint = Some("\"auto\", or one of metrics.kinds that is a distance".to_owned());
            self.wrong("metrics.judge", "it is not computed, or says nothing of what is better".to_owned(), hint);
        }
        let stop = config.train.stop.evaluations > 0 && self.sound(&[KINDS, "metrics.judge", "metrics.every_kimg"]);
        if stop && (metrics.judge.is_none() || metrics.every_kimg == 0.0) {
            let message = "nothing is evaluated during training that could be judged".to_owned();
            let hint = Some("metrics.every_kimg above 0, and a distance in metrics.kinds".to_owned());
            self.wrong("train.stop.evaluations", message, hint);
        }
    }

    fn length(&mut self, train: &Train) {
        let keys = ["train.constant_epochs", "train.decay_epochs"];
        if train.epochs.is_some_and(|epochs| epochs.total() == 0) && self.sound(&keys) {
            let key = if self.leaves.contains_key(keys[0]) { keys[0] } else { keys[1] };
            self.wrong(key, "a run of no passes over the data".to_owned(), Some("at least 1".to_owned()));
        }
    }

    /// Widths that are each allowed may together ask for more memory than there is.
    fn size(&mut self, config: &RunConfig) {
        let model = &config.model;
        let widest = match model {
            Model::ProGan(_) => "model.fmap_max",
            Model::Sngan(_) => "model.width",
            Model::CycleGan(_) | Model::Pix2Pix(_) => "model.g_width",
        };
        let parameters = model.parameters();
        if self.sound(&["model"]) && parameters > PARAMETERS_MAX {
            let billions = |count: u64| format!("{:.1} billion", count as f64 / 1e9);
            let message = format!("networks of {} parameters", billions(parameters));
            self.wrong(widest, message, Some(format!("at most {} in all", billions(PARAMETERS_MAX))));
        }
        let remembered = model.remembered(config.train.minibatch_at(model.resolution()));
        if self.sound(&["model", "train.minibatch"]) && remembered > PARAMETERS_MAX {
            let message = format!("with the minibatch, image pools of {:.0} GB", remembered as f64 * 4.0 / 1e9);
            self.wrong("model.pool_size", message, Some("a smaller pool, minibatch or model.resolution".to_owned()));
        }
    }

    /// What is said and means nothing is a mistake.
    fn idle(&mut self, config: &RunConfig) {
        let said: Vec<String> = (self.leaves.iter())
            .filter(|(_, valued)| !matches!(valued.origin, Origin::Default | Origin::Checkpoint))
            .map(|(key, _)| key.clone())
            .collect();
        for key in said {
            if key.starts_with("train.ema_") && !config.model.averages() {
                let (message, help) = match &config.model {
                    Model::CycleGan(_) => {
                        ("the generators have no moving average".to_owned(), "with model.average = true they have")
                    }
                    other => {
                        (format!("networks of family \"{}\" keep no moving average", other.family()), "leave it out")
                    }
                };
                self.wrong(&key, message, Some(help.to_owned()));
            }
            if key == "train.epoch_images" && config.train.epochs.is_none() {
                let message = "the run's length is not in passes over the data".to_owned();
                self.wrong(&key, message, Some("train.constant_epochs and decay_epochs say it so".to_owned()));
            }
        }
    }

    /// What is said about growth, or asks for a schedule that grows, is a mistake where nothing does.
    fn no_growth(&mut self, family: &str) {
        let leaves = self.leaves;
        for (key, valued) in leaves.iter().filter(|(_, valued)| valued.origin != Origin::Default) {
            let scheduled = key == "train.schedule" && valued.value != "none";
            if !scheduled && !key.starts_with("train.growth.") {
                continue;
            }
            let message = format!("networks of family \"{family}\" do not grow");
            self.wrong(key, message, Some("leave it out, or choose a family that does".to_owned()));
        }
    }

    /// Minibatches must be dealt as whole statistical groups, and a worker must be able to hold one.
    fn groups(&mut self, model: &Architecture, train: &Train) {
        const GROUP: &str = "model.minibatch_stddev_group";
        if !self.sound(&["model.resolution", "train.growth.start_resolution", GROUP]) {
            return;
        }
        let mut told = Vec::new();
        for pixels in Resolution::ALL {
            if pixels > model.resolution || pixels < train.growth.start_resolution {
                continue;
            }
            let key = self.entry("train.minibatch", pixels);
            let minibatch = train.minibatch_at(pixels);
            let group = model.minibatch_stddev_group.min(minibatch);
            if !self.sound(&[&key]) || group == 0 {
                continue;
            }
            if !minibatch.is_multiple_of(group) && !told.contains(&key) {
                let message = format!("{minibatch} cannot be cut into groups of {group} ({GROUP})");
                let lower = minibatch / group * group;
                self.wrong(&key, message, Some(format!("{lower} or {} can", lower.saturating_add(group))));
                told.push(key);
            }
            let limit_key = self.entry("train.max_per_worker", pixels);
            let limit = train.max_per_worker.get(&pixels).copied().unwrap_or(u32::MAX);
            if self.sound(&[&limit_key]) && limit < group && !told.contains(&limit_key) {
                let message = format!("{limit} samples do not hold one group of {group} ({GROUP}) at {pixels} pixels");
                self.wrong(&limit_key, message, Some(format!("at least {group}, or smaller groups")));
                told.push(limit_key);
            }
        }
    }

    fn arithmetic(&mut self, config: &RunConfig) {
        let bitwise = config.train.determinism == Determinism::Bitwise;
        if !self.sound(&["train.determinism", "cluster.backend", "train.precision", "cluster.workers"]) {
            return;
        }
        if config.train.save_memory && !matches!(config.model, Model::CycleGan(_)) && self.sound(&["train.save_memory"])
        {
            let message = format!("networks of family \"{}\" have no such way", config.model.family());
            self.wrong(
                "train.save_memory",
                message,
                Some("train.max_per_worker takes fewer samples at once".to_owned()),
            );
        }
        if bitwise && config.cluster.backend == Backend::Nccl {
            let message = "\"bitwise\" needs CPU workers: NCCL sums in an order that depends on the world".to_owned();
            self.wrong("train.determinism", message, Some("cluster.backend = \"tcp\", or \"fast\"".to_owned()));
        }
        if bitwise && config.train.precision != Precision::Fp32 {
            let message = "\"bitwise\" is defined for single precision only".to_owned();
            self.wrong("train.determinism", message, Some("train.precision = \"fp32\", or \"fast\"".to_owned()));
        }
        if bitwise && config.train.reduce_precision != ReducePrecision::Fp32 && self.sound(&["train.reduce_precision"])
        {
            let message = "\"bitwise\" sums in single precision only".to_owned();
            let remedy = Some("train.reduce_precision = \"fp32\", or \"fast\"".to_owned());
            self.wrong("train.determinism", message, remedy);
        }
        if config.cluster.backend == Backend::Solo && config.cluster.workers > 1 {
            let message = format!("\"solo\" is one worker, but cluster.workers is {}", config.cluster.workers);
            self.wrong("cluster.backend", message, Some("\"auto\"".to_owned()));
        }
    }

    fn worlds(&mut self, config: &RunConfig) {
        let Cluster { workers, min_workers, max_workers, .. } = config.cluster;
        if !self.sound(&["cluster.workers", "cluster.min_workers", "cluster.max_workers"]) {
            return;
        }
        if workers > 0 && min_workers > workers {
            self.wrong("cluster.min_workers", format!("more than cluster.workers, which is {workers}"), None);
        }
        if max_workers > 0 && max_workers < workers.max(min_workers) {
            let (key, least) = if workers > min_workers { ("workers", workers) } else { ("min_workers", min_workers) };
            self.wrong("cluster.max_workers", format!("less than cluster.{key}, which is {least}"), None);
        }
    }

    fn times(&mut self, config: &RunConfig) {
        let cluster = &config.cluster;
        if self.sound(&["cluster.patience", "cluster.orphan_patience"])
            && cluster.orphan_patience_s < cluster.patience_s
        {
            let message = format!("shorter than cluster.patience, which is {}", duration::format(cluster.patience_s));
            self.wrong("cluster.orphan_patience", message, None);
        }
    }

    /// Whether nothing is wrong with any of `keys`.
    fn sound(&self, keys: &[&str]) -> bool {
        !self.problems.iter().any(|problem| keys.iter().any(|key| covers(&problem.key, key)))
    }

    /// Key of the entry that decides the value of `table` at `pixels`.
    fn entry(&self, table: &str, pixels: u32) -> String {
        let named = format!("{table}.{pixels}");
        if self.leaves.contains_key(&named) { named } else { format!("{table}.default") }
    }
}

/// Whether a problem with `problem` concerns the value of `key`: the key itself, or a section around it.
pub(super) fn covers(problem: &str, key: &str) -> bool {
    key.strip_prefix(problem).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
