//! Values in layers, each with its origin: built-in default < the family's own < preset < file < environment < `--set`.
//!
//! Reads text and lists that the caller hands over; opens no file and asks no environment. Every value is checked here
//! against its own kind and bounds; what needs two values to judge waits for [`super::resolve`].

use super::error::{Origin, Problem, printable};
use super::names;
use super::preset;
use super::raw::{RawFile, Schedule};
use super::resolved::{Precision, RunConfig};
use super::schema::{self, Leaf, Mismatch, Node, join};
use super::tree::Tree;
use crate::families;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The built-in defaults: every key with its comment.
pub const DEFAULTS: &str = include_str!("default.toml");

/// Variables that begin so are keys: `GANFLEET__TRAIN__TOTAL_KIMG` is `train.total_kimg`.
pub const ENV_PREFIX: &str = "GANFLEET__";

/// The key that decides which keys there are in its section.
const FAMILY: [&str; 2] = ["model", "family"];

/// Pairs of keys of which a layer's one replaces the other of the layers below.
const EXCLUSIVE: [(&str, &str); 3] = [
    ("train.ema_decay", "train.ema_half_life_kimg"),
    ("train.total_kimg", "train.constant_epochs"),
    ("train.total_kimg", "train.decay_epochs"),
];

/// Everything that is said about one run.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    /// What the run starts from.
    pub base: Base<'a>,
    /// Environment variables; those without [`ENV_PREFIX`] are passed over.
    pub env: &'a [(String, String)],
    /// `key=value`, one for each `--set`; later ones win.
    pub set: &'a [String],
    /// Folder at which relative paths from environment, `--set` and defaults start. Absolute.
    pub working_dir: &'a Path,
}

/// What a run starts from.
#[derive(Clone, Copy, Debug)]
pub enum Base<'a> {
    /// An experiment file.
    File {
        /// Path to show in messages.
        path: &'a str,
        /// What it holds.
        text: &'a str,
        /// Folder at which relative paths in it start. Absolute.
        folder: &'a Path,
    },
    /// The configuration of a run that exists: every value is there, no default or preset applies.
    Run(&'a RunConfig),
}

/// A value as JSON and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Valued {
    pub value: Json,
    pub origin: Origin,
}

/// Dotted key -> value.
pub(super) type Leaves = BTreeMap<String, Valued>;

/// What one layer says.
#[derive(Clone, Debug, Default)]
struct Layer {
    leaves: Leaves,
    /// Per-resolution keys that this layer gives as one plain value.
    plain: BTreeSet<String>,
}

/// All layers on top of each other.
pub(super) fn gather(layers: &Layers<'_>, workers: u32) -> (Leaves, Vec<Problem>) {
    let mut problems = Vec::new();
    let trees = Trees::read(layers, &mut problems);
    let (bottom, origin) = match layers.base {
        // a test proves that the defaults parse; without them every key would be reported as missing
        Base::File { .. } => (Tree::parse(DEFAULTS).unwrap_or(Tree::Table(Vec::new())), Origin::Default),
        Base::Run(run) => (Tree::from(&json_of(&RawFile::from(run))), Origin::Checkpoint),
    };
    let family = trees.text(&FAMILY).or_else(|| Some(bottom.get(&FAMILY)?.text()?.to_owned()));
    let mut reader = Reader { family: family.unwrap_or_default(), problems };

    let family = families::family(&reader.family);
    let own = match layers.base {
        Base::File { .. } => family.and_then(|family| Tree::parse(family.defaults?).ok()),
        Base::Run(_) => None,
    };
    // keys of another family mean nothing to this one
    let bottom = if own.is_some() { bottom.without("model") } else { bottom };
    let mut lowest = Vec::new();
    for tree in std::iter::once(&bottom).chain(&own) {
        lowest.push(reader.layer(tree, &|_| origin.clone()));
    }
    let mut said = Vec::new();
    if let (Base::File { path, .. }, Some(tree)) = (layers.base, &trees.file) {
        said.push(reader.layer(tree, &|line| Origin::File { path: path.to_owned(), line }));
    }
    let mut env = Layer::default();
    for (name, tree) in &trees.env {
        let more = reader.layer(tree, &|_| Origin::Env { name: name.clone() });
        env.leaves.extend(more.leaves);
        env.plain.extend(more.plain);
    }
    said.push(env);
    said.extend(trees.set.iter().map(|tree| reader.layer(tree, &|_| Origin::Set)));

    let mut problems = reader.problems;
    exclusive_within(&said, &mut problems);
    let preset = match layers.base {
        // a schedule of growth for a family that does not grow is refused later, not applied
        Base::File { .. } if family.is_none_or(|family| family.grows) => preset_of(&said, workers),
        Base::File { .. } => None,
        Base::Run(_) => {
            no_schedule(&said, &mut problems);
            None
        }
    };
    // a family's own default for this launch
    let dealt = match (own.is_some(), family) {
        (true, Some(family)) if family.one_per_worker => Some(one_per_worker(family.name, workers)),
        _ => None,
    };
    let mut merged = Leaves::new();
    lowest.into_iter().chain(dealt).chain(preset).chain(said).for_each(|layer| merge(&mut merged, layer));
    (merged, problems)
}

/// The layers as trees, before they are checked.
struct Trees {
    file: Option<Tree>,
    env: Vec<(String, Tree)>,
    set: Vec<Tree>,
}

impl Trees {
    fn read(layers: &Layers<'_>, problems: &mut Vec<Problem>) -> Self {
        let file = if let Base::File { path, text, .. } = layers.base {
            Tree::parse(text)
                .map_err(|error| {
                    let origin = Some(Origin::File { path: path.to_owned(), line: error.line });
                    problems.push(Problem { origin, key: String::new(), message: error.message, hint: None });
                })
                .ok()
        } else {
            None
        };
        let mut env = Vec::new();
        for (name, text) in layers.env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let key = rest.to_lowercase();
            let path: Vec<&str> = key.split("__").collect();
            env.push((name.clone(), Tree::nested(&path, typed_by_key(&path, text))));
        }
        let mut set = Vec::new();
        for text in layers.set {
            let Some((key, value)) = text.split_once('=') else {
                problems.push(Problem {
                    origin: Some(Origin::Set),
                    key: text.clone(),
                    message: "no value".to_owned(),
                    hint: Some("write --set key=value, as in --set train.total_kimg=10".to_owned()),
                });
                continue;
            };
            let path: Vec<&str> = key.trim().split('.').collect();
            set.push(Tree::nested(&path, typed_by_key(&path, value)));
        }
        Self { file, env, set }
    }

    /// The text at `path` in the highest layer that has one.
    fn text(&self, path: &[&str]) -> Option<String> {
        let env = self.env.iter().map(|(_, tree)| tree);
        let trees = self.set.iter().rev().chain(env.rev()).chain(&self.file);
        trees.filter_map(|tree| tree.get(path)).find_map(Tree::text).map(str::to_owned)
    }
}

/// A value from outside a file: TOML, or plain text where the key takes a text (no quotes needed in a shell).
fn typed_by_key(path: &[&str], text: &str) -> Tree {
    let plain = Tree::Text(text.to_owned());
    let Some(tree) = Tree::parse_value(text) else { return plain };
    match schema::root().at(path) {
        Some(Node::Leaf(leaf)) if leaf.accept(&tree).is_err() && leaf.accept(&plain).is_ok() => plain,
        _ => tree,
    }
}

/// Walks trees along the schema.
struct Reader {
    family: String,
    problems: Vec<Problem>,
}

impl Reader {
    fn layer(&mut self, tree: &Tree, origin: &dyn Fn(usize) -> Origin) -> Layer {
        let mut layer = Layer::default();
        self.node(schema::root(), "", tree, &mut layer, 1, origin);
        layer
    }

    fn node(
        &mut self,
        node: &Node,
        key: &str,
        tree: &Tree,
        layer: &mut Layer,
        line: usize,
        origin: &dyn Fn(usize) -> Origin,
    ) {
        match node {
            Node::Leaf(leaf) => self.leaf(leaf, key, tree, layer, origin(line)),
            Node::Section(fields) => {
                let fields: Vec<_> = fields.iter().map(|(name, node)| (name.as_str(), node)).collect();
                self.section(&fields, key, tree, layer, line, origin);
            }
            Node::Choice { tag, variants } => {
                let words = Node::Leaf(Leaf::words(variants.iter().map(|(value, _)| value.clone()).collect()));
                let chosen = variants.iter().filter(|(value, _)| *value == self.family);
                let mut fields: Vec<_> =
                    chosen.flat_map(|(_, f)| f).map(|(name, node)| (name.as_str(), node)).collect();
                if fields.is_empty() {
                    // the family itself is wrong: say only that, and check the keys as if it were any
                    fields.extend(variants.iter().flat_map(|(_, f)| f).map(|(name, node)| (name.as_str(), node)));
                }
                fields.insert(0, (tag.as_str(), &words));
                self.section(&fields, key, tree, layer, line, origin);
            }
            Node::PerKey { keys, each } => {
                if let Tree::Table(_) = tree {
                    let each = Node::Leaf(each.clone());
                    let fields: Vec<_> = keys.iter().map(|name| (name.as_str(), &each)).collect();
                    self.section(&fields, key, tree, layer, line, origin);
                } else {
                    self.leaf(each, &join(key, "default"), tree, layer, origin(line));
                    layer.plain.insert(key.to_owned());
                }
            }
        }
    }

    fn section(
        &mut self,
        fields: &[(&str, &Node)],
        key: &str,
        tree: &Tree,
        layer: &mut Layer,
        line: usize,
        origin: &dyn Fn(usize) -> Origin,
    ) {
        let Tree::Table(entries) = tree else {
            let message = "expected a table of keys, found a single value".to_owned();
            let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
            let hint = Some(format!("keys of [{}]: {}", printable(key), names.join(", ")));
            return self.problems.push(Problem { origin: Some(origin(line)), key: key.to_owned(), message, hint });
        };
        for entry in entries {
            let line = entry.line.max(1);
            let here = join(key, &entry.key);
            match fields.iter().find(|(name, _)| *name == entry.key) {
                Some((_, node)) => self.node(node, &here, &entry.value, layer, line, origin),
                None => {
                    let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
                    let problem = self.unknown(key, &entry.key, &names);
                    self.problems.push(Problem { origin: Some(origin(line)), key: here, ..problem });
                }
            }
        }
    }

    fn unknown(&self, section: &str, name: &str, siblings: &[&str]) -> Problem {
        let here = join(section, name);
        let mut all = schema::keys();
        let of_another = all.iter().any(|key| *key == here || key.starts_with(&join(&here, "")));
        all.retain(|key| *key != here);
        let hint = Some(names::advice(section, name, siblings, all.iter().map(String::as_str)));
        let message = if of_another {
            format!("not a key of the family \"{}\"", printable(&self.family))
        } else {
            "unknown key".to_owned()
        };
        Problem { origin: None, key: String::new(), message, hint }
    }

    fn leaf(&mut self, leaf: &Leaf, key: &str, tree: &Tree, layer: &mut Layer, origin: Origin) {
        match leaf.accept(tree) {
            Ok(value) => {
                layer.leaves.insert(key.to_owned(), Valued { value, origin });
            }
            Err(Mismatch { expected, found, nearest }) => self.problems.push(Problem {
                origin: Some(origin),
                key: key.to_owned(),
                message: format!("expected {expected}, found {found}"),
                hint: nearest.map(|word| format!("did you mean \"{word}\"?")),
            }),
        }
    }
}

fn json_of(raw: &RawFile) -> Json {
    // texts and numbers under text keys always have a JSON form; null is an empty layer, which resolving reports
    serde_json::to_value(raw).unwrap_or(Json::Null)
}

fn flatten(key: &str, json: Json, leaves: &mut BTreeMap<String, Json>) {
    match json {
        // a key that is not given
        Json::Null => {}
        Json::Object(map) => map.into_iter().for_each(|(name, json)| flatten(&join(key, &name), json, leaves)),
        value => {
            leaves.insert(key.to_owned(), value);
        }
    }
}

/// Dotted key -> value of a typed file.
pub(super) fn leaves_of(raw: &RawFile) -> BTreeMap<String, Json> {
    let mut leaves = BTreeMap::new();
    flatten("", json_of(raw), &mut leaves);
    leaves
}

/// The layer of the preset that the highest layer names.
fn preset_of(said: &[Layer], workers: u32) -> Option<Layer> {
    let last = |key: &str| said.iter().rev().find_map(|layer| layer.leaves.get(key)).map(|valued| valued.value.clone());
    let schedule: Schedule = serde_json::from_value(last("train.schedule")?).ok()?;
    let precision = last("train.precision").and_then(|value| serde_json::from_value(value).ok());
    let preset = preset::of(schedule, precision.unwrap_or(Precision::Fp32), workers)?;
    let name = last("train.schedule")?.as_str()?.to_owned();
    let origin = Origin::Preset { name, workers };
    let valued = |(key, value)| (key, Valued { value, origin: origin.clone() });
    Some(Layer { leaves: leaves_of(&preset).into_iter().map(valued).collect(), plain: BTreeSet::new() })
}

/// A minibatch of one sample for each worker, fixed from then on.
fn one_per_worker(family: &str, workers: u32) -> Layer {
    let origin = Origin::Preset { name: family.to_owned(), workers };
    let leaves = Leaves::from([("train.minibatch.default".to_owned(), Valued { value: Json::from(workers), origin })]);
    Layer { leaves, plain: BTreeSet::new() }
}

fn no_schedule(said: &[Layer], problems: &mut Vec<Problem>) {
    for valued in said.iter().filter_map(|layer| layer.leaves.get("train.schedule")) {
        problems.push(Problem {
            origin: Some(valued.origin.clone()),
            key: "train.schedule".to_owned(),
            message: "the preset was applied when the run was created".to_owned(),
            hint: Some("change the values themselves, such as train.growth.stable_kimg or train.minibatch".to_owned()),
        });
    }
}

fn exclusive_within(said: &[Layer], problems: &mut Vec<Problem>) {
    for (layer, (one, other)) in said.iter().flat_map(|layer| EXCLUSIVE.map(|pair| (layer, pair))) {
        if let (Some(valued), Some(_)) = (layer.leaves.get(one), layer.leaves.get(other)) {
            problems.push(Problem {
                origin: Some(valued.origin.clone()),
                key: one.to_owned(),
                message: format!("cannot stand beside {other}: they are two ways to say one thing"),
                hint: Some("keep one of them".to_owned()),
            });
        }
    }
}

/// Puts `layer` on top of `merged`.
fn merge(merged: &mut Leaves, layer: Layer) {
    for key in &layer.plain {
        let table = join(key, "");
        merged.retain(|other, _| !other.starts_with(&table));
    }
    // a table with a default of its own leaves nothing of the tables that nobody typed
    for table in layer.leaves.keys().filter_map(|key| key.strip_suffix("default")) {
        let untyped = |valued: &Valued| matches!(valued.origin, Origin::Default | Origin::Preset { .. });
        merged.retain(|other, valued| !(other.starts_with(table) && untyped(valued)));
    }
    for (one, other) in EXCLUSIVE.into_iter().flat_map(|(one, other)| [(one, other), (other, one)]) {
        if layer.leaves.contains_key(one) {
            merged.remove(other);
        }
    }
    merged.extend(layer.leaves);
}
