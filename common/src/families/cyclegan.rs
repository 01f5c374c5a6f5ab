//! CycleGAN as data: its keys, its defaults and its parameters (Zhu et al., "Unpaired Image-to-Image Translation using
//! Cycle-Consistent Adversarial Networks", ICCV 2017, and the authors' PyTorch code).
//!
//! `a2b` makes images of domain A into ones of B, `b2a` the other way; `a` and `b`, one network each or several, judge images of their domain. Numbers in
//! names are places in the authors' lists of layers, so that weights travel by renaming. The networks are in the worker.

use super::patchgan::{PatchGan, weight, weight_of, zero};
use super::{Init, ParameterSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What an experiment file of this family need not say: a layer above the built-in defaults.
pub const DEFAULTS: &str = include_str!("cyclegan.toml");

/// Directions: the generators, G_A and G_B of the paper's code.
pub const DIRECTIONS: [&str; 2] = ["a2b", "b2a"];
/// Domains: the discriminators. The authors call the one that judges B "D_A", for it stands against G_A.
pub const DOMAINS: [&str; 2] = ["a", "b"];
/// Layers of the authors' generators that halve the side.
pub const AUTHORS_DOWNS: u32 = 2;

/// Discriminators of a domain, at most.
pub const MOST_JUDGES: usize = 3;

/// What makes two CycleGANs different networks. Stored with every checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Side of the crops that are trained on, in pixels.
    pub resolution: u32,
    /// Feature maps of a generator's first layer (ngf).
    pub g_width: u32,
    /// Residual blocks of a generator.
    pub g_blocks: u32,
    /// Layers of a generator that halve the side before them, and double it after.
    #[serde(default = "authors_downs")]
    pub g_downs: u32,
    /// Feature maps of a discriminator's first layer (ndf).
    pub d_width: u32,
    /// The discriminators of a domain, each by its layers between the first and the last one: the more, the larger the patches that it
    /// judges; 0 judges pixels one by one.
    #[serde(with = "one_or_more")]
    pub d_layers: Vec<u32>,
    /// What a discriminator's scores are held against.
    pub gan_loss: GanLoss,
    /// Weight of A -> B -> A.
    pub lambda_a: f64,
    /// Weight of B -> A -> B.
    pub lambda_b: f64,
    /// Weight, relative to those, of leaving alone what is in the target domain already.
    pub lambda_identity: f64,
    /// Made images of each domain that are kept to be shown to D once more.
    pub pool_size: u32,
    /// What follows the convolutions of a generator.
    #[serde(default)]
    pub g_norm: Norm,
    /// How a generator's last layers double the side.
    #[serde(default)]
    pub upscale: Upscale,
    /// Whether a generator makes what is to be added to its input, and not the image itself.
    #[serde(default)]
    pub residual: bool,
    /// Whether what a generator has before it halves the side is added to what it has after it doubles it again.
    #[serde(default)]
    pub skips: bool,
    /// Whether a moving average of the generators is kept, which then makes the images that people see.
    #[serde(default)]
    pub average: bool,
    /// Chance with which an image is moved, and with which it is resized, before a discriminator sees it.
    #[serde(default)]
    pub augment: f64,
}

/// What a generator of the authors has, and one of which nothing is said.
fn authors_downs() -> u32 {
    AUTHORS_DOWNS
}

/// A number as the authors have it, or several: never none, and no more than [`MOST_JUDGES`].
mod one_or_more {
    use super::MOST_JUDGES;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(u32),
        More(Vec<u32>),
    }

    pub fn serialize<S: Serializer>(numbers: &[u32], to: S) -> Result<S::Ok, S::Error> {
        match numbers {
            [one] => one.serialize(to),
            more => more.serialize(to),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
        match OneOrMore::deserialize(from)? {
            OneOrMore::One(one) => Ok(vec![one]),
            OneOrMore::More(more) if (1..=MOST_JUDGES).contains(&more.len()) => Ok(more),
            OneOrMore::More(more) => Err(Error::custom(format!("{} discriminators a domain", more.len()))),
        }
    }
}

/// What follows the convolutions of a generator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Instance norm, as the authors do.
    #[default]
    Instance,
    /// Layer norm (Ba et al. 2016): all maps and pixels of an image together, nothing learned, so that how one map stands to another is kept. Kim et
    /// al. 2020 (U-GAT-IT) found that it changes more of an image than instance norm. Weights are drawn as where there is no norm.
    Layer,
    /// Nothing. Weights are drawn as wide as rectifiers need (He et al. 2015), narrower where a block ends and where the image is made.
    None,
}

/// How a generator doubles the side of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Upscale {
    /// A transposed convolution, as the authors do.
    #[default]
    Transposed,
    /// Each pixel four times, then a convolution: no pixel is touched by more weights than its neighbour, which leaves no chequered
    /// grain (Odena et al., "Deconvolution and Checkerboard Artifacts", 2016).
    Nearest,
}

/// What a discriminator's scores are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GanLoss {
    /// Squared distance from 1 or 0 (Mao et al. 2017).
    Lsgan,
    /// Binary cross-entropy with logits.
    Vanilla,
    /// The mean score, with a gradient penalty (Gulrajani et al. 2017).
    Wgangp,
}

impl Architecture {
    /// Every parameter of both generators, in the order in which they are drawn.
    #[must_use]
    pub fn generators(&self) -> Vec<ParameterSpec> {
        DIRECTIONS.iter().flat_map(|direction| self.generator(direction)).collect()
    }

    /// Every parameter of both domains' discriminators, in the order in which they are drawn.
    #[must_use]
    pub fn discriminators(&self) -> Vec<ParameterSpec> {
        let judges = DOMAINS.iter().flat_map(|domain| self.judges(domain));
        judges.flat_map(|(prefix, patches)| patches.parameters(&prefix)).collect()
    }

    /// Places of a generator's layers in the authors' list: a convolution is followed by its norm, which may do nothing, and its rectifier.
    #[must_use]
    pub fn places(&self) -> Places {
        let blocks = 4 + 3 * self.g_downs;
        let after = blocks + self.g_blocks;
        let threes = |first: u32| (0..self.g_downs).map(|i| first + 3 * i).collect();
        // before the last one the image is mirrored at its edges
        Places {
            first: 1,
            down: threes(4),
            blocks: blocks..after,
            up: threes(after),
            last: after + 3 * self.g_downs + 1,
        }
    }

    /// The keys by which generators are others than the authors' code builds.
    #[must_use]
    pub fn own_generators(&self) -> Vec<&'static str> {
        let keys = [
            ("model.g_downs", self.g_downs != AUTHORS_DOWNS),
            ("model.g_norm", self.g_norm != Norm::Instance),
            ("model.upscale", self.upscale != Upscale::Transposed),
            ("model.residual", self.residual),
            ("model.skips", self.skips),
        ];
        keys.into_iter().filter_map(|(key, own)| own.then_some(key)).collect()
    }

    /// The same of all networks.
    #[must_use]
    pub fn own(&self) -> Vec<&'static str> {
        let several = (self.d_layers.len() > 1).then_some("model.d_layers");
        self.own_generators().into_iter().chain(several).collect()
    }

    /// Pixels that become one on the way down: sides are multiples of it.
    #[must_use]
    pub fn multiple(&self) -> u32 {
        1 << self.g_downs
    }

    /// The parameters of one generator, `g.<direction><layer>.…` (gan.md 2.1).
    fn generator(&self, direction: &str) -> Vec<ParameterSpec> {
        let (w, places) = (i64::from(self.g_width), self.places());
        let named = |name: &str, shape: [i64; 4], out: i64, summed: i64, ends: bool| {
            let weight = match self.g_norm {
                Norm::Instance => weight(name, &shape),
                Norm::Layer | Norm::None => weight_of(name, &shape, wide(summed, ends)),
            };
            [weight, zero(&format!("{name}.bias"), out)]
        };
        let layer = |place: u32, shape: [i64; 4], out| {
            let summed = shape[1..].iter().product();
            named(&format!("g.{direction}{place}"), shape, out, summed, place == places.last)
        };
        let mut list = Vec::new();
        list.extend(layer(places.first, [w, 3, 7, 7], w));
        let mut width = w;
        for &place in &places.down {
            list.extend(layer(place, [2 * width, width, 3, 3], 2 * width));
            width *= 2;
        }
        for block in places.blocks.clone() {
            for conv in [1, 5] {
                let name = format!("g.{direction}{block}.conv_block.{conv}");
                list.extend(named(&name, [width, width, 3, 3], width, 9 * width, conv == 5));
            }
        }
        for &place in &places.up {
            let out = width / 2;
            let (shape, summed) = match self.upscale {
                // what comes in stands first; of the nine places of the kernel a pixel has two and a quarter, on average
                Upscale::Transposed => ([width, out, 3, 3], 9 * width / 4),
                Upscale::Nearest => ([out, width, 3, 3], 9 * width),
            };
            list.extend(named(&format!("g.{direction}{place}"), shape, out, summed, false));
            width = out;
        }
        list.extend(layer(places.last, [3, w, 7, 7], 3));
        list
    }

    /// The discriminators of `domain`, and what their parameters' names begin with: `d.<domain><layer>.…` are those of the first,
    /// `d.<domain>_2_<layer>.…` of the second.
    #[must_use]
    pub fn judges(&self, domain: &str) -> Vec<(String, PatchGan)> {
        let patches = |layers| PatchGan { inputs: 3, width: i64::from(self.d_width), layers, affine: false };
        let prefix = |i: usize| if i == 0 { format!("d.{domain}") } else { format!("d.{domain}_{}_", i + 1) };
        self.d_layers.iter().enumerate().map(|(i, layers)| (prefix(i), patches(*layers))).collect()
    }

    /// What is remembered besides the parameters, for a global minibatch of so many samples: for each domain the pool of made
    /// images, and those that D is shown in the step to come.
    #[must_use]
    pub fn pools(&self, minibatch: u32) -> Vec<ParameterSpec> {
        let side = i64::from(self.resolution);
        let images = |count: u32| vec![i64::from(count), 3, side, side];
        let spec = |name: String, count| ParameterSpec { name, shape: images(count), init: Init::Zero };
        DOMAINS
            .iter()
            .flat_map(|domain| {
                [spec(format!("pool.{domain}.kept"), self.pool_size), spec(format!("pool.{domain}.shown"), minibatch)]
            })
            .collect()
    }
}

/// Places of the layers of a generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The first convolution.
    pub first: u32,
    /// Those that halve the side.
    pub down: Vec<u32>,
    /// Residual blocks.
    pub blocks: Range<u32>,
    /// Those that double the side.
    pub up: Vec<u32>,
    /// The convolution that makes the image.
    pub last: u32,
}

/// Standard deviation of the weights of a layer that no norm follows, which sums so many numbers: such that what goes through keeps its
/// size (He et al. 2015), and a part of that where the layer `ends` a block, which is added to what came in, or makes the image.
fn wide(summed: i64, ends: bool) -> f32 {
    (2.0 / summed.max(1) as f32).sqrt() * if ends { 0.25 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture() -> Architecture {
        Architecture {
            resolution: 256,
            g_width: 64,
            g_blocks: 9,
            g_downs: 2,
            d_width: 64,
            d_layers: vec![3],
            gan_loss: GanLoss::Lsgan,
            lambda_a: 10.0,
            lambda_b: 10.0,
            lambda_identity: 0.5,
            pool_size: 50,
            g_norm: Norm::Instance,
            upscale: Upscale::Transposed,
            residual: false,
            skips: false,
            average: false,
            augment: 0.0,
        }
    }

    /// Checkpoints of one discriminator a domain hold a number, and those of before there were norms to choose say none.
    #[test]
    fn what_is_stored_is_read_again() {
        for d_layers in [vec![3], vec![1, 3]] {
            let a = Architecture { d_layers, g_norm: Norm::None, ..architecture() };
            let text = serde_json::to_string(&a).unwrap();
            assert_eq!(serde_json::from_str::<Architecture>(&text).unwrap(), a);
        }
        let mut older = serde_json::to_value(architecture()).unwrap();
        assert_eq!(older["d_layers"], 3);
        let none = serde_json::json!([]);
        let mut empty = older.clone();
        empty["d_layers"] = none;
        let error = serde_json::from_value::<Architecture>(empty).unwrap_err().to_string();
        assert!(error.contains("0 discriminators a domain"), "{error}");
        older.as_object_mut().unwrap().remove("g_norm");
        assert_eq!(serde_json::from_value::<Architecture>(older).unwrap(), architecture());
    }

    #[test]
    fn judges_have_names_of_their_own() {
        let a = Architecture { d_layers: vec![1, 3], ..architecture() };
        let names: Vec<String> = a.discriminators().into_iter().map(|spec| spec.name).collect();
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!((distinct.len(), names.len()), (names.len(), 2 * (2 * 4 + 2 * 5) - 4));
        assert!(names.contains(&"d.b_2_11.weight".to_owned()) && names.contains(&"d.a0.bias".to_owned()));
        assert_eq!((architecture().own(), a.own()), (vec![], vec!["model.d_layers"]));
        let bare = Architecture { g_norm: Norm::None, skips: true, ..a };
        assert_eq!(bare.own_generators(), ["model.g_norm", "model.skips"]);
    }

    /// He et al. 2015: with so wide weights what goes through a rectifier keeps its mean square.
    #[test]
    fn without_norms_weights_are_as_wide_as_rectifiers_need() {
        let a = Architecture { g_norm: Norm::None, ..architecture() };
        let deviation = |name: &str| match a.generator("a2b").iter().find(|spec| spec.name == name).unwrap().init {
            Init::Gaussian { mean: 0.0, deviation } => deviation,
            other => panic!("{name}: {other:?}"),
        };
        let close = |name: &str, expected: f32| assert!((deviation(name) - expected).abs() < 1e-6, "{name}");
        close("g.a2b1.weight", (2.0f32 / (3.0 * 49.0)).sqrt());
        close("g.a2b10.conv_block.1.weight", (2.0f32 / (256.0 * 9.0)).sqrt());
        close("g.a2b10.conv_block.5.weight", 0.25 * (2.0f32 / (256.0 * 9.0)).sqrt());
        close("g.a2b22.weight", (2.0f32 / (128.0 * 9.0 / 4.0)).sqrt());
        close("g.a2b26.weight", 0.25 * (2.0f32 / (64.0 * 49.0)).sqrt());
        let nearest = Architecture { upscale: Upscale::Nearest, ..a };
        let up = nearest.generator("b2a").into_iter().find(|spec| spec.name == "g.b2a22.weight").unwrap();
        assert_eq!(up.init, Init::Gaussian { mean: 0.0, deviation: (2.0f32 / (128.0 * 9.0)).sqrt() });
    }

    fn total(list: &[ParameterSpec]) -> u64 {
        list.iter().map(ParameterSpec::numel).sum()
    }

    /// gan.md 2.1 and 2.2.
    #[test]
    fn parameter_totals() {
        let nine = architecture();
        assert_eq!(total(&nine.generator("a2b")), 11_378_179);
        assert_eq!(total(&nine.generators()), 2 * 11_378_179);
        assert_eq!(total(&nine.discriminators()), 2 * 2_764_737);
        for upscale in [Upscale::Transposed, Upscale::Nearest] {
            let six = Architecture { g_blocks: 6, upscale, ..architecture() };
            assert_eq!(total(&six.generator("b2a")), 7_837_699);
        }
    }

    /// gan.md 2.8: the places in the authors' lists.
    #[test]
    fn layers_stand_where_the_authors_list_has_them() {
        let places = |blocks| {
            let a = Architecture { g_blocks: blocks, ..architecture() };
            let names = a.generator("a2b").into_iter().filter(|spec| spec.name.ends_with("weight"));
            names.map(|spec| spec.name["g.a2b".len()..].trim_end_matches(".weight").to_owned()).collect::<Vec<_>>()
        };
        let nine = places(9);
        assert_eq!(nine[..4], ["1", "4", "7", "10.conv_block.1"]);
        assert_eq!(nine[20..], ["18.conv_block.5", "19", "22", "26"]);
        assert_eq!(places(6)[15..], ["16", "19", "23"]);
        // with one layer less either way, all that follows moves up
        let shallow = Architecture { g_downs: 1, ..architecture() };
        let expected = Places { first: 1, down: vec![4], blocks: 7..16, up: vec![16], last: 20 };
        assert_eq!((shallow.places(), shallow.multiple()), (expected, 2));
        assert_eq!(shallow.generator("a2b").last().map(|spec| spec.name.clone()), Some("g.a2b20.bias".to_owned()));
    }
}
