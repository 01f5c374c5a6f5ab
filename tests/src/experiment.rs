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
        let mut file = Self::tiny();
        let model = file.0["model"].as_table_mut().expect("a section");
        *model = Table::new();
        file.0["train"].as_table_mut().expect("a section").remove("growth");
        let keys = [("family", Value::from("sngan")), ("resolution", 16.into()), ("latent_size", 8.into())];
        keys.into_iter()
            .chain([("width", 8.into())])
            .fold(file, |file, (key, value)| file.with(&format!("model.{key}"), value))
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
