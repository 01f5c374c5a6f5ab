//! Progressive GAN as data: its keys and its parameters (Karras et al., "Progressive Growing of GANs
//! for Improved Quality, Stability, and Variation", ICLR 2018).
//!
//! Everything here is a pure function of the configuration. How it grows is [`crate::growth`]; the networks are in the worker.

use super::{Init, ParameterSpec};
use crate::growth::Level;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What makes two ProGANs different networks. Stored with every checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Final side of the image in pixels: a power of two, 4 to 1024.
    pub resolution: u32,
    /// Length of the latent vector.
    pub latent_size: u32,
    /// Feature maps: the block that works at `r` has `min(fmap_base * 2 / r, fmap_max)` of them.
    pub fmap_base: u32,
    /// Most feature maps of any block.
    pub fmap_max: u32,
    /// Order of convolution and scaling.
    pub upscale: Upscale,
    /// Whether G's first layer has a bias for each position, and not only for each feature map.
    #[serde(default)]
    pub position_bias: bool,
    /// Samples that share one minibatch standard deviation; also the unit that is dealt to workers.
    pub minibatch_stddev_group: u32,
    /// Image on which the gradient penalty takes its norm.
    pub gp_norm: GpNorm,
    /// Weight of the gradient penalty (lambda).
    pub gp_weight: f64,
    /// Gradient norm that the penalty aims at.
    pub gp_target: f64,
    /// Weight of the squared score of real images.
    pub drift: f64,
}

/// Order of convolution and scaling. Networks trained one way give other outputs the other way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Upscale {
    /// One strided 4x4 convolution does both; the discriminator pools before bias and activation.
    Fused,
    /// Nearest-neighbour then 3x3 convolution; the discriminator pools after the activation.
    Unfused,
}

/// Image on which the gradient penalty takes its norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GpNorm {
    /// The image at the active resolution: what PyTorch implementations do.
    Active,
    /// The image at full resolution: what the authors' TensorFlow code does. `2^floor(lod)` times smaller.
    Full,
}

impl Architecture {
    /// log2 of the final resolution (R).
    #[must_use]
    pub fn resolution_log2(&self) -> u32 {
        self.resolution.ilog2()
    }

    /// Feature maps of the block that works at `resolution`: `nf(log2(resolution) - 1)` of the authors' code.
    #[must_use]
    pub fn channels(&self, resolution: u32) -> i64 {
        i64::from((self.fmap_base >> (resolution.ilog2() - 1)).min(self.fmap_max))
    }

    /// Resolutions from 4 up to the final one.
    pub fn resolutions(&self) -> impl Iterator<Item = u32> + use<> {
        (2..=self.resolution_log2()).map(|log2| 1 << log2)
    }

    /// Every parameter of G (`g.`), in the order in which they are drawn.
    #[must_use]
    pub fn generator(&self) -> Vec<ParameterSpec> {
        let mut list = Vec::new();
        for r in self.resolutions() {
            let c = self.channels(r);
            if r == 4 {
                let latent = i64::from(self.latent_size);
                list.push(weight("g.4.dense", &[c * 16, latent]));
                // the authors have one bias per channel, added after the reshape
                list.push(bias("g.4.dense", if self.position_bias { c * 16 } else { c }));
                push_layer(&mut list, "g.4.conv", &[c, c, 3, 3]);
            } else {
                push_layer(&mut list, &format!("g.{r}.conv0"), &[c, self.channels(r / 2), 3, 3]);
                push_layer(&mut list, &format!("g.{r}.conv1"), &[c, c, 3, 3]);
            }
            push_layer(&mut list, &format!("g.{r}.rgb"), &[3, c, 1, 1]);
        }
        list
    }

    /// Every parameter of D (`d.`), in the order in which they are drawn.
    #[must_use]
    pub fn discriminator(&self) -> Vec<ParameterSpec> {
        let mut list = Vec::new();
        for r in self.resolutions() {
            let c = self.channels(r);
            push_layer(&mut list, &format!("d.{r}.rgb"), &[c, 3, 1, 1]);
            if r == 4 {
                push_layer(&mut list, "d.4.conv", &[c, c + 1, 3, 3]);
                push_layer(&mut list, "d.4.dense0", &[c, c * 16]);
                push_layer(&mut list, "d.4.dense1", &[1, c]);
            } else {
                push_layer(&mut list, &format!("d.{r}.conv0"), &[c, c, 3, 3]);
                push_layer(&mut list, &format!("d.{r}.conv1"), &[self.channels(r / 2), c, 3, 3]);
            }
        }
        list
    }

    /// Whether the parameter `name` takes part at `level`: blocks up to the active resolution, the image layer (toRGB,
    /// fromRGB) of the active resolution, and during a fade that of the one below.
    #[must_use]
    pub fn takes_part(&self, name: &str, level: &Level) -> bool {
        let mut parts = name.split('.').skip(1);
        let Some(block) = parts.next().and_then(|b| b.parse::<u32>().ok()) else { return false };
        if parts.next() == Some("rgb") {
            block == level.resolution || (level.fading() && block * 2 == level.resolution)
        } else {
            block <= level.resolution
        }
    }
}

fn weight(layer: &str, shape: &[i64]) -> ParameterSpec {
    ParameterSpec { name: format!("{layer}.weight"), shape: shape.to_vec(), init: Init::Normal }
}

fn bias(layer: &str, channels: i64) -> ParameterSpec {
    ParameterSpec { name: format!("{layer}.bias"), shape: vec![channels], init: Init::Zero }
}

fn push_layer(list: &mut Vec<ParameterSpec>, layer: &str, shape: &[i64]) {
    list.push(weight(layer, shape));
    list.push(bias(layer, shape[0]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(resolution: u32) -> Architecture {
        Architecture {
            resolution,
            latent_size: 512,
            fmap_base: 8192,
            fmap_max: 512,
            upscale: Upscale::Fused,
            position_bias: false,
            minibatch_stddev_group: 4,
            gp_norm: GpNorm::Active,
            gp_weight: 10.0,
            gp_target: 1.0,
            drift: 0.001,
        }
    }

    /// gan.md 1.5, "Totals when only layers up to a top resolution exist".
    #[test]
    fn parameter_totals_equal_the_table_for_every_top_resolution() {
        let table = [
            (4, 6_556_163, 6_561_793),
            (8, 11_277_318, 11_283_457),
            (16, 15_998_473, 16_005_121),
            (32, 20_719_628, 20_726_785),
            (64, 22_490_383, 22_498_049),
            (128, 22_933_394, 22_941_313),
            (256, 23_044_309, 23_052_353),
            (512, 23_072_120, 23_080_225),
            (1024, 23_079_115, 23_087_249),
        ];
        let total = |list: Vec<ParameterSpec>| list.iter().map(ParameterSpec::numel).sum::<u64>();
        for (top, g, d) in table {
            assert_eq!(total(full(top).generator()), g, "G at {top}");
            assert_eq!(total(full(top).discriminator()), d, "D at {top}");
        }
    }

    #[test]
    fn image_layers_take_part_only_at_their_resolution_and_while_they_fade_out() {
        let a = full(32);
        let stable = Level { lod: 1.0, resolution: 16 };
        let fading = Level { lod: 1.5, resolution: 16 };
        for (name, when_stable, when_fading) in [
            ("g.16.rgb.weight", true, true),
            ("g.8.rgb.weight", false, true),
            ("g.4.rgb.bias", false, false),
            ("g.16.conv0.weight", true, true),
            ("d.32.conv1.weight", false, false),
            ("d.4.dense1.bias", true, true),
        ] {
            assert_eq!(a.takes_part(name, &stable), when_stable, "{name}");
            assert_eq!(a.takes_part(name, &fading), when_fading, "{name}");
        }
    }
}
