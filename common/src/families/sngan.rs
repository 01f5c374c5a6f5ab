//! The fully connected SNGAN as data: its keys, its defaults and its parameters (Miyato et al., "Spectral Normalization for
//! Generative Adversarial Networks", ICLR 2018).
//!
//! Small enough to learn the engine from: no growth, no groups, one loss. The networks are in the worker.

use super::{Init, ParameterSpec};
use serde::{Deserialize, Serialize};

/// What an experiment file of this family need not say: a layer above the built-in defaults.
pub const DEFAULTS: &str = include_str!("sngan.toml");

/// Hidden layers of either network.
const HIDDEN: u32 = 3;

/// What makes two fully connected SNGANs different networks. Stored with every checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Side of the image in pixels.
    pub resolution: u32,
    /// Length of the latent vector.
    pub latent_size: u32,
    /// Features of the narrowest hidden layer; towards the image each has twice as many.
    pub width: u32,
}

impl Architecture {
    /// Features of every layer of G, latent and image included. D has the same hidden layers the other way round.
    fn features(&self) -> Vec<i64> {
        let hidden = (0..HIDDEN).map(|i| i64::from(self.width) << i);
        let image = 3 * i64::from(self.resolution).pow(2);
        std::iter::once(i64::from(self.latent_size)).chain(hidden).chain([image]).collect()
    }

    /// Every parameter of G (`g.0` to `g.3`), in the order in which they are drawn.
    #[must_use]
    pub fn generator(&self) -> Vec<ParameterSpec> {
        let features = self.features();
        features.windows(2).enumerate().flat_map(|(i, pair)| dense("g", i, pair[0], pair[1])).collect()
    }

    /// Every parameter of D (`d.0` to `d.3`), in the order in which they are drawn.
    #[must_use]
    pub fn discriminator(&self) -> Vec<ParameterSpec> {
        let widths = self.score_features();
        widths.windows(2).enumerate().flat_map(|(i, pair)| dense("d", i, pair[0], pair[1])).collect()
    }

    /// What the power iteration of D's spectral norms remembers: one direction for each layer (algorithm 1).
    #[must_use]
    pub fn directions(&self) -> Vec<ParameterSpec> {
        let widths = self.score_features().into_iter().skip(1).enumerate();
        widths
            .map(|(i, out)| ParameterSpec { name: format!("d.{i}.dense.u"), shape: vec![out], init: Init::Direction })
            .collect()
    }

    /// Image, hidden layers, score.
    fn score_features(&self) -> Vec<i64> {
        let mut widths: Vec<i64> = self.features().into_iter().skip(1).rev().collect();
        widths.push(1);
        widths
    }
}

/// Weight and bias as PyTorch's `Linear` starts them, the seed of most code of this family.
fn dense(network: &str, layer: usize, inputs: i64, outputs: i64) -> [ParameterSpec; 2] {
    let init = Init::Uniform(1.0 / (inputs as f32).sqrt());
    [("weight", vec![outputs, inputs]), ("bias", vec![outputs])].map(|(kind, shape)| ParameterSpec {
        name: format!("{network}.{layer}.dense.{kind}"),
        shape,
        init,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture() -> Architecture {
        Architecture { resolution: 32, latent_size: 100, width: 256 }
    }

    /// gan.md 6.
    #[test]
    fn parameter_totals() {
        let total = |list: Vec<ParameterSpec>| list.iter().map(ParameterSpec::numel).sum::<u64>();
        assert_eq!(total(architecture().generator()), 3_831_552);
        assert_eq!(total(architecture().discriminator()), 3_803_137);
    }

    #[test]
    fn every_layer_of_d_has_one_direction_as_long_as_its_output() {
        let (layers, directions) = (architecture().discriminator(), architecture().directions());
        let outputs: Vec<i64> = layers.iter().step_by(2).map(|weight| weight.shape[0]).collect();
        assert_eq!(outputs, [1024, 512, 256, 1]);
        assert_eq!(directions.iter().map(|d| d.shape[0]).collect::<Vec<_>>(), outputs);
        for (weight, direction) in layers.iter().step_by(2).zip(directions) {
            assert_eq!(weight.name.strip_suffix("weight"), direction.name.strip_suffix('u'));
        }
    }
}
