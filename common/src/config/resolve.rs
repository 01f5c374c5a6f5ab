//! From layers to a [`RunConfig`], and every check that takes more than one value.
//!
//! All cross-checks of a configuration are here and nowhere else; single values are judged in [`super::convert`]. All problems are reported, not only the first; a value
//! that is wrong by itself takes part in no cross-check, so that one mistake gives one message.

use super::convert::Check;
use super::duration;
use super::error::{ConfigError, Origin, Problem};
use super::layers::{Layers, Leaves, gather};
use super::raw::{RawFile, Resolution};
use super::resolved::{Backend, Cluster, Determinism, Model, Precision, RunConfig, Train};
use crate::families::progan::Architecture;
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
        }
        if !config.model.grows() {
            self.no_growth(config.model.family());
        }
        self.size(&config.model);
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

    /// Widths that are each allowed may together ask for more memory than there is.
    fn size(&mut self, model: &Model) {
        let widest = match model {
            Model::ProGan(_) => "model.fmap_max",
            Model::Sngan(_) => "model.width",
        };
        let parameters = model.parameters();
        if self.sound(&["model"]) && parameters > PARAMETERS_MAX {
            let billions = |count: u64| format!("{:.1} billion", count as f64 / 1e9);
            let message = format!("networks of {} parameters", billions(parameters));
            self.wrong(widest, message, Some(format!("at most {} in all", billions(PARAMETERS_MAX))));
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
        if bitwise && config.cluster.backend == Backend::Nccl {
            let message = "\"bitwise\" needs CPU workers: NCCL sums in an order that depends on the world".to_owned();
            self.wrong("train.determinism", message, Some("cluster.backend = \"tcp\", or \"fast\"".to_owned()));
        }
        if bitwise && config.train.precision != Precision::Fp32 {
            let message = "\"bitwise\" is defined for single precision only".to_owned();
            self.wrong("train.determinism", message, Some("train.precision = \"fp32\", or \"fast\"".to_owned()));
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
