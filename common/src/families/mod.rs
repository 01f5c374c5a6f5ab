//! One file per GAN family: its keys in an experiment file, its parameters' names and shapes, its defaults.
//!
//! The other half of a family, its networks and losses, is `worker/src/models/<family>.rs`.

pub mod cyclegan;
pub mod elsewhere;
pub mod patchgan;
pub mod pix2pix;
pub mod progan;
pub mod sngan;

use serde::{Deserialize, Serialize};

/// One named parameter of a network, before any tensor exists: enough to count, to share out and to check a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// `module.block.layer.weight`; the first two parts name the checkpoint part it travels in.
    pub name: String,
    /// Dimensions in PyTorch's order (`[out, in, kh, kw]`, `[out, in]`, `[out]`).
    pub shape: Vec<i64>,
    /// How it starts.
    pub init: Init,
}

impl ParameterSpec {
    /// Number of elements.
    #[must_use]
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

/// Initial value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Init {
    /// N(0, 1), scaled at run time (equalized learning rate).
    Normal,
    /// All zero.
    Zero,
    /// N(mean, deviation^2).
    Gaussian {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        deviation: f32,
    },
    /// U(-bound, bound).
    Uniform(f32),
    /// A random direction: N(0, 1), scaled to length 1.
    Direction,
}

/// A family as an experiment file knows it.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Value of `model.family`.
    pub name: &'static str,
    /// Whether its resolution grows during training.
    pub grows: bool,
    /// Whether its minibatch is one sample for each worker at launch, where nothing is said.
    pub one_per_worker: bool,
    /// How its training images belong together.
    pub pairing: Pairing,
    /// What it puts in place of the built-in defaults, as an experiment file; `None` where those are its own.
    pub defaults: Option<&'static str>,
}

/// How a family's training images belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// They are one set: all that the source holds, as centre squares.
    One,
    /// They are of two domains, in folders `trainA` and `trainB`, and never meet twice in the same way: whole, cropped at random.
    Unpaired,
    /// They are of two domains, the left and right halves of the images in the folder `train`: whole, cropped at random, both alike.
    Paired,
}

/// Every family.
pub const FAMILIES: [Family; 4] = [
    Family { name: "progan", grows: true, one_per_worker: false, pairing: Pairing::One, defaults: None },
    Family {
        name: "sngan",
        grows: false,
        one_per_worker: false,
        pairing: Pairing::One,
        defaults: Some(sngan::DEFAULTS),
    },
    Family {
        name: "cyclegan",
        grows: false,
        one_per_worker: true,
        pairing: Pairing::Unpaired,
        defaults: Some(cyclegan::DEFAULTS),
    },
    Family {
        name: "pix2pix",
        grows: false,
        one_per_worker: true,
        pairing: Pairing::Paired,
        defaults: Some(pix2pix::DEFAULTS),
    },
];

/// The family of that name.
#[must_use]
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}
