//! Experiment files of runs that take seconds: narrow networks, 16 pixels, and a schedule that crosses stable phases,
//! fades and the knees between them.
//!
//! | images    | phase          |
//! |-----------|----------------|
//! | 0 - 150   | 4 px stable    |
//! | 150 - 300 | fade to 8 px   |
//! | 300 - 450 | 8 px stable    |
//! | 450 - 600 | fade to 16 px  |
//! | 600 - 700 | 16 px stable   |

use toml_edit::{DocumentMut, Item, Table, Value};

/// Name of the tiny run, and of its folder.
pub const NAME: &str = "toy";

/// An experiment file in the making.
#[derive(Clone, Debug)]
pub struct Experiment(DocumentMut);

impl Experiment {
    /// The tiny run, bitwise, with two workers on one thread each.
    ///
    /// # Panics
    /// Never: the text is fixed.
    #[must_use]
    pub fn tiny() -> Self {
        Self(TINY.parse().expect("the tiny experiment is TOML"))
    }

    /// A run of another family, as long and as small: one resolution, samples dealt one by one.
    ///
    /// # Panics
    /// Never: the text is fixed.
    #[must_use]
    pub fn sngan() -> Self {
        Self::of("sngan", &[("resolution", 16), ("latent_size", 8), ("width", 8)])
    }

    /// A run of two domains, in the folder `domains`: 35 passes over 20 images, the learning rate falling in the last 15.
    ///
    /// # Panics
    /// Never: the text is fixed.
    #[must_use]
    pub fn cyclegan() -> Self {
        let narrow =
            [("resolution", 16), ("g_width", 4), ("g_blocks", 1), ("d_width", 4), ("d_layers", 1), ("pool_size", 9)];
        Self::of("cyclegan", &narrow)
            .without("train.total_kimg")
            .with("train.constant_epochs", 20)
            .with("train.decay_epochs", 15)
            .with("data.source", "domains")
            .with("data.load_size", 18)
    }

    /// A run on pairs, in the folder `pairs`, as long.
    ///
    /// # Panics
    /// Never: the text is fixed.
    #[must_use]
    pub fn pix2pix() -> Self {
        Self::of("pix2pix", &[("resolution", 32), ("g_width", 2), ("g_downs", 5), ("d_width", 2), ("d_layers", 1)])
            .with("data.source", "pairs")
            .with("data.load_size", 36)
    }

    /// The tiny run with networks of another family, at one resolution.
    fn of(family: &str, keys: &[(&str, i64)]) -> Self {
        let mut file = Self::tiny().without("train.growth").without("metrics.images");
        file.0["model"] = Item::Table(Table::new());
        let file = file.with("model.family", family);
        keys.iter().fold(file, |file, (key, value)| file.with(&format!("model.{key}"), *value))
    }

    /// The same without `key`.
    ///
    /// # Panics
    /// When there is no such section.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        let (section, name) = key.rsplit_once('.').expect("a key lies in a section");
        self.0[section].as_table_mut().expect("a section").remove(name);
        self
    }

    /// The same with `key` (`train.total_kimg`) set to `value`.
    ///
    /// # Panics
    /// When `key` leads through a value.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let mut table = self.0.as_table_mut();
        let mut sections: Vec<&str> = key.split('.').collect();
        let name = sections.pop().expect("a key has a name");
        for section in sections {
            let item = table.entry(section).or_insert_with(|| Item::Table(Table::new()));
            table = item.as_table_mut().expect("a section");
        }
        table.insert(name, Item::Value(value.into()));
        self
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.to_string()
    }
}

const TINY: &str = r#"
name = "toy"
seed = 7

[model]
resolution = 16
latent_size = 8
fmap_base = 64
fmap_max = 8

[data]
source = "images"
cache = "cache"

[train]
total_kimg = 0.7
determinism = "bitwise"
threads = 1
minibatch_repeats = 2
tick_kimg = 0.016

[train.growth]
stable_kimg = 0.15
fade_kimg = 0.15

[train.minibatch]
default = 8

[cluster]
workers = 2
patience = "5s"
orphan_patience = "5s"

[checkpoint]
url = "runs"
every_kimg = 0.1
keep_last = 100

[metrics]
every_kimg = 0
images = 16

[samples]
every_kimg = 1000
"#;
