//! Which keys there are and what each accepts, derived from the types in [`super::raw`]: nothing is listed twice.
//!
//! Two views of one thing: the JSON schema for editors, and [`Node`], which a file is checked against.

use super::error::printable;
use super::raw::RawFile;
use super::tree::Tree;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use serde_json::{Map, Number, Value as Json};
use std::fmt;
use std::sync::OnceLock;

/// What may stand at one place of the file.
#[derive(Debug)]
pub(super) enum Node {
    /// A table with these keys.
    Section(Vec<(String, Node)>),
    /// A table whose keys depend on the value of one of them.
    Choice { tag: String, variants: Vec<(String, Vec<(String, Node)>)> },
    /// A plain value, or a table of such values under these keys.
    PerKey { keys: Vec<String>, each: Leaf },
    /// A plain value.
    Leaf(Leaf),
}

/// A plain value of one of these kinds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leaf(Vec<Kind>);

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Bool,
    Text,
    Words(Vec<String>),
    Whole { min: i64, max: i64 },
    Wholes(Vec<i64>),
    Number { min: f64, max: f64 },
    List(Leaf),
}

/// The whole file.
pub(super) fn root() -> &'static Node {
    static ROOT: OnceLock<Node> = OnceLock::new();
    ROOT.get_or_init(|| Node::of(&raw_schema()))
}

/// The JSON schema of an experiment file, for editors that complete and check TOML.
#[must_use]
pub fn json_schema() -> Json {
    raw_schema()
}

/// Every key of the file in dotted form, in the order of the file; entries per resolution as `….default` and `….4`.
#[must_use]
pub fn keys() -> Vec<String> {
    let mut keys = Vec::new();
    root().keys("", &mut keys);
    keys
}

fn raw_schema() -> Json {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.with_transform(OptionalNotNull).into_generator().into_root_schema_for::<RawFile>();
    schema.insert("title".to_owned(), "Ganfleet experiment".into());
    schema.to_value()
}

/// TOML has no null: a key is there or it is not.
#[derive(Clone)]
struct OptionalNotNull;

impl Transform for OptionalNotNull {
    fn transform(&mut self, schema: &mut schemars::Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        // every key may be left to a lower layer, or come from a higher one
        object.remove("required");
        object.remove("default");
        if object.get("format").and_then(Json::as_str).is_some_and(|f| f.starts_with("uint") || f == "double") {
            object.remove("format");
        }
        if let Some(Json::Array(types)) = object.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                object.insert("type".to_owned(), only);
            }
        }
        if let Some(Json::Array(values)) = object.get_mut("enum") {
            values.retain(|value| !value.is_null());
        }
        let Some(Json::Array(options)) = object.get_mut("anyOf") else { return };
        options.retain(|option| option.get("type").is_none_or(|kind| kind != "null"));
        if options.len() == 1
            && let Some(Json::Object(only)) = options.pop()
        {
            object.remove("anyOf");
            for (key, value) in only {
                // the field's own description says more than its type's
                object.entry(key).or_insert(value);
            }
        }
    }
}

impl Node {
    fn of(schema: &Json) -> Self {
        let options = options(schema);
        if let Some(variants) = variants(options) {
            return variants;
        }
        if let Some(table) = options.iter().find_map(properties)
            && let Some(each) = options.iter().find(|option| properties(option).is_none())
        {
            return Self::PerKey { keys: table.keys().cloned().collect(), each: Leaf::of(each) };
        }
        match properties(schema) {
            Some(properties) => Self::Section(section(properties)),
            None => Self::Leaf(Leaf::of(schema)),
        }
    }

    fn keys(&self, prefix: &str, out: &mut Vec<String>) {
        match self {
            Self::Leaf(_) => out.push(prefix.to_owned()),
            Self::PerKey { keys, .. } => out.extend(keys.iter().map(|key| join(prefix, key))),
            Self::Section(fields) => fields.iter().for_each(|(name, node)| node.keys(&join(prefix, name), out)),
            Self::Choice { tag, variants } => {
                out.push(join(prefix, tag));
                let known = out.len();
                for (name, node) in variants.iter().flat_map(|(_, fields)| fields) {
                    let key = join(prefix, name);
                    // families share names
                    if !out[known..].contains(&key) {
                        node.keys(&key, out);
                    }
                }
            }
        }
    }

    /// The node at a dotted path; of a [`Node::Choice`], the first variant that has the key.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let child = |fields: &'_ [(String, Self)]| fields.iter().position(|(name, _)| name == first);
        match self {
            Self::Section(fields) => fields.get(child(fields)?)?.1.at(rest),
            Self::Choice { variants, .. } => {
                let (fields, at) = variants.iter().find_map(|(_, fields)| Some((fields, child(fields)?)))?;
                fields.get(at)?.1.at(rest)
            }
            Self::PerKey { .. } | Self::Leaf(_) => None,
        }
    }
}

/// `prefix.name`, or `name` at the top.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn options(schema: &Json) -> &[Json] {
    let list = schema.get("anyOf").or_else(|| schema.get("oneOf"));
    list.and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

fn properties(schema: &Json) -> Option<&Map<String, Json>> {
    schema.get("properties")?.as_object()
}

fn section(properties: &Map<String, Json>) -> Vec<(String, Node)> {
    properties.iter().map(|(name, schema)| (name.clone(), Node::of(schema))).collect()
}

/// A choice, if every option is a table and all have a key that is constant in each.
fn variants(options: &[Json]) -> Option<Node> {
    let tag_of = |option: &Json| {
        let (name, schema) = properties(option)?.iter().find(|(_, schema)| schema.get("const").is_some())?;
        Some((name.clone(), schema.get("const")?.as_str()?.to_owned()))
    };
    let tag = tag_of(options.first()?)?.0;
    let mut variants = Vec::new();
    for option in options {
        let (_, value) = tag_of(option).filter(|(name, _)| *name == tag)?;
        let fields = section(properties(option)?);
        variants.push((value, fields.into_iter().filter(|(name, _)| *name != tag).collect()));
    }
    Some(Node::Choice { tag, variants })
}

impl Leaf {
    /// One of these words.
    pub fn words(words: Vec<String>) -> Self {
        Self(vec![Kind::Words(words)])
    }

    fn of(schema: &Json) -> Self {
        let mut kinds = Vec::new();
        for option in options(schema) {
            kinds.extend(Self::of(option).0);
        }
        kinds.extend(Kind::of(schema));
        // each word of an enumeration with descriptions is an option of its own
        let mut words = Vec::new();
        kinds.retain_mut(|kind| match kind {
            Kind::Words(more) => {
                words.append(more);
                false
            }
            _ => true,
        });
        if !words.is_empty() {
            kinds.insert(0, Kind::Words(words));
        }
        Self(kinds)
    }

    /// The value as JSON, or what is wrong with it.
    pub fn accept(&self, tree: &Tree) -> Result<Json, Mismatch> {
        self.0.iter().find_map(|kind| kind.accept(tree)).ok_or_else(|| Mismatch {
            expected: self.to_string(),
            found: describe(tree),
            nearest: self.nearest(tree),
        })
    }

    /// The word that was probably meant.
    fn nearest(&self, tree: &Tree) -> Option<String> {
        let Tree::Text(text) = tree else { return None };
        let words = self.0.iter().filter_map(|kind| if let Kind::Words(words) = kind { Some(words) } else { None });
        super::names::closest(text, words.flatten().map(String::as_str)).map(str::to_owned)
    }
}

/// A value of the wrong kind, in words.
#[derive(Debug, PartialEq)]
pub(super) struct Mismatch {
    pub expected: String,
    pub found: String,
    pub nearest: Option<String>,
}

impl Kind {
    fn of(schema: &Json) -> Option<Self> {
        let bound = |name: &str, otherwise: f64| schema.get(name).and_then(Json::as_f64).unwrap_or(otherwise);
        let whole = |name: &str, otherwise: i64| schema.get(name).and_then(Json::as_i64).unwrap_or(otherwise);
        if let Some(word) = schema.get("const").and_then(Json::as_str) {
            return Some(Self::Words(vec![word.to_owned()]));
        }
        let listed = schema.get("enum").and_then(Json::as_array);
        Some(match schema.get("type")?.as_str()? {
            "boolean" => Self::Bool,
            "integer" => match listed {
                Some(values) => Self::Wholes(values.iter().filter_map(Json::as_i64).collect()),
                None => Self::Whole { min: whole("minimum", 0), max: whole("maximum", i64::from(u32::MAX)) },
            },
            "number" => Self::Number { min: bound("minimum", f64::MIN), max: bound("maximum", f64::MAX) },
            "array" => Self::List(Leaf::of(schema.get("items")?)),
            "string" => match listed {
                Some(values) => Self::Words(values.iter().filter_map(Json::as_str).map(str::to_owned).collect()),
                None => Self::Text,
            },
            _ => return None,
        })
    }

    fn accept(&self, tree: &Tree) -> Option<Json> {
        match (self, tree) {
            (Self::Bool, Tree::Bool(value)) => Some(Json::Bool(*value)),
            (Self::Text, Tree::Text(text)) => Some(Json::from(text.as_str())),
            (Self::Words(words), Tree::Text(text)) => words.contains(text).then(|| Json::from(text.as_str())),
            (Self::Whole { min, max }, Tree::Whole(whole)) => (*min..=*max).contains(whole).then(|| Json::from(*whole)),
            (Self::Wholes(list), Tree::Whole(whole)) => list.contains(whole).then(|| Json::from(*whole)),
            (Self::Number { min, max }, Tree::Whole(_) | Tree::Number(_)) => {
                let number = if let Tree::Number(number) = tree { *number } else { tree.whole()? as f64 };
                // -0.0 would survive every comparison and print as a negative number
                let number = if number == 0.0 { 0.0 } else { number };
                (*min..=*max).contains(&number).then(|| Number::from_f64(number)).flatten().map(Json::Number)
            }
            (Self::List(each), Tree::List(items)) => {
                items.iter().map(|item| each.accept(item).ok()).collect::<Option<Vec<_>>>().map(Json::Array)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, kind) in self.0.iter().enumerate() {
            write!(f, "{}{kind}", if i > 0 { " or " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("true or false"),
            Self::Text => f.write_str("a text in quotes"),
            Self::Words(words) => f.write_str(&one_of(words.iter().map(|word| format!("\"{word}\"")))),
            Self::Whole { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Wholes(list) => f.write_str(&one_of(list.iter().map(i64::to_string))),
            Self::Number { min, max } => write!(f, "a number from {min} to {max}"),
            Self::List(each) => write!(f, "a list, each item {each}"),
        }
    }
}

fn one_of(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if let [only] = items.as_slice() { only.clone() } else { format!("one of {}", items.join(", ")) }
}

fn describe(tree: &Tree) -> String {
    match tree {
        Tree::Table(_) => "a table".to_owned(),
        Tree::List(items) => match items.iter().find(|item| matches!(item, Tree::Text(_) | Tree::Whole(_))) {
            Some(item) => format!("a list with {}", describe(item)),
            None => "a list".to_owned(),
        },
        Tree::Bool(value) => value.to_string(),
        Tree::Whole(whole) => whole.to_string(),
        Tree::Number(number) => format!("{number:?}"),
        Tree::Text(text) => format!("\"{}\"", printable(text)),
        Tree::Date => "a date".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_accepts_something() {
        fn check(node: &Node, path: &str) {
            match node {
                Node::Section(fields) => fields.iter().for_each(|(name, node)| check(node, &join(path, name))),
                Node::Choice { variants, .. } => {
                    variants.iter().flat_map(|(_, f)| f).for_each(|(name, node)| check(node, &join(path, name)));
                }
                Node::Leaf(leaf) | Node::PerKey { each: leaf, .. } => assert!(!leaf.0.is_empty(), "{path}: {leaf:?}"),
            }
        }
        assert!(matches!(root(), Node::Section(_)));
        check(root(), "");
    }

    #[test]
    fn the_kinds_are_those_of_the_types() {
        let leaf = |path: &[&str]| match root().at(path) {
            Some(Node::Leaf(leaf) | Node::PerKey { each: leaf, .. }) => leaf.to_string(),
            other => panic!("{path:?}: {other:?}"),
        };
        for (path, expected) in [
            ("name", "a text in quotes"),
            ("seed", "a whole number from 0 to 9223372036854775807"),
            ("model.resolution", "one of 4, 8, 16, 32, 64, 128, 256, 512, 1024"),
            ("model.upscale", "one of \"fused\", \"unfused\""),
            ("model.drift", "a number from 0 to 1000"),
            ("data.mirror", "true or false"),
            ("train.minibatch", "a whole number from 1 to 65536"),
            ("train.optimizer.learning_rate", "a number from 0.000000000001 to 10"),
            ("train.optimizer.kind", "\"adam\""),
            ("cluster.workers", "\"auto\" or a whole number from 1 to 4096"),
            (
                "metrics.kinds",
                "a list, each item one of \"swd\", \"kid\", \"frechet\", \"cycle\", \"twins\", \"diversity\"",
            ),
            ("samples.grid", "one of \"1080p\", \"4k\""),
        ] {
            assert_eq!(leaf(&path.split('.').collect::<Vec<_>>()), expected, "{path}");
        }
    }

    #[test]
    fn keys_come_in_the_order_of_the_file_and_once() {
        let keys = keys();
        assert_eq!(&keys[..4], ["name", "seed", "model.family", "model.resolution"]);
        assert!(keys.contains(&"train.minibatch.default".to_owned()) && keys.contains(&"checkpoint.s3.ca".to_owned()));
        let mut unique = keys.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), keys.len());
    }

    #[test]
    fn the_schema_for_editors_describes_every_key_and_knows_no_null() {
        fn check(schema: &Json, path: &str) {
            for (name, child) in properties(schema).into_iter().flatten() {
                let path = join(path, name);
                let tag = child.get("const").is_some();
                let entry = name == "default" || name.parse::<u32>().is_ok();
                assert!(tag || entry || child.get("description").is_some(), "{path} has no description");
                check(child, &path);
            }
            options(schema).iter().for_each(|option| check(option, path));
        }
        let schema = json_schema();
        check(&schema, "");
        let text = schema.to_string();
        assert!(!text.contains("null") && !text.contains("\"required\""), "{text}");
    }

    #[test]
    fn numbers_must_be_finite_and_within_bounds() {
        let leaf = Leaf(vec![Kind::Number { min: 0.0, max: 10.0 }]);
        assert_eq!(leaf.accept(&Tree::Whole(3)), Ok(Json::from(3.0)));
        assert_eq!(leaf.accept(&Tree::Number(-0.0)), Ok(Json::from(0.0)));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 10.1] {
            assert!(leaf.accept(&Tree::Number(bad)).is_err(), "{bad}");
        }
        let whole = Leaf(vec![Kind::Whole { min: 1, max: 4 }]);
        assert_eq!(whole.accept(&Tree::Number(2.0)).unwrap_err().found, "2.0");
    }

    #[test]
    fn tables_with_a_constant_key_are_a_choice() {
        let schema = serde_json::json!({ "oneOf": [
            { "properties": { "kind": { "const": "a" }, "x": { "type": "boolean" } } },
            { "properties": { "kind": { "const": "b" }, "y": { "type": "string" } } },
        ]});
        let Node::Choice { tag, variants } = Node::of(&schema) else { panic!() };
        assert_eq!(tag, "kind");
        assert_eq!(
            variants.iter().map(|(v, f)| (v.as_str(), f[0].0.as_str())).collect::<Vec<_>>(),
            [("a", "x"), ("b", "y")]
        );
    }
}
