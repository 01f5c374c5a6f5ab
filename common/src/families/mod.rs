//! One file per GAN family: its keys in an experiment file, its parameters' names and shapes, its schedule.
//!
//! The other half of a family, its networks and losses, is `worker/src/models/<family>.rs`.

pub mod progan;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Init {
    /// N(0, 1), scaled at run time (equalized learning rate).
    Normal,
    /// All zero.
    Zero,
}
