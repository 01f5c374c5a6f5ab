//! pix2pix as data: its keys, its defaults and its parameters (Isola et al., "Image-to-Image Translation with Conditional
//! Adversarial Networks", CVPR 2017, and the authors' PyTorch code).
//!
//! G is a U-Net: `g.down1` is the outermost layer on the way down, `g.up1` the last on the way up; D judges an image together with
//! the one that it was made of. The networks are in the worker.

use super::ParameterSpec;
use super::cyclegan::GanLoss;
use super::patchgan::{PatchGan, norm, weight, zero};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an experiment file of this family need not say: a layer above the built-in defaults.
pub const DEFAULTS: &str = include_str!("pix2pix.toml");

/// Layers on the way down whose width is the widest (gan.md 3).
const WIDEST: i64 = 8;
/// The outermost layer of the way up that drops activations.
const DRY: u32 = 5;

/// What makes two pix2pix networks different. Stored with every checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// Side of the crops that are trained on, in pixels.
    pub resolution: u32,
    /// Feature maps of G's first layer (ngf).
    pub g_width: u32,
    /// Layers of G that halve the side: 8 see one pixel at 256.
    pub g_downs: u32,
    /// Whether some of G's inner activations are dropped, which is all the noise it gets.
    pub dropout: bool,
    /// Feature maps of D's first layer (ndf).
    pub d_width: u32,
    /// Layers between D's first and its last one; 0 judges pixels one by one.
    pub d_layers: u32,
    /// What D's scores are held against.
    pub gan_loss: GanLoss,
    /// Weight of the mean absolute difference from the true image.
    pub lambda_l1: f64,
    /// Which half becomes the other.
    pub direction: Direction,
}

/// Which half of a pair becomes the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The left half (A) becomes the right one (B).
    A2b,
    /// The right half becomes the left one.
    B2a,
}

impl Architecture {
    /// Feature maps that leave layer `i` of the way down, counted from 1.
    fn width(&self, i: u32) -> i64 {
        i64::from(self.g_width) * (1i64 << (i - 1).min(62)).min(WIDEST)
    }

    /// Every parameter of G, in the order in which they are drawn (gan.md 3). No bias stands before a norm.
    #[must_use]
    pub fn generator(&self) -> Vec<ParameterSpec> {
        let n = self.g_downs;
        let mut list = Vec::new();
        for i in 1..=n {
            let (name, inputs) = (format!("g.down{i}"), if i == 1 { 3 } else { self.width(i - 1) });
            list.push(weight(&name, &[self.width(i), inputs, 4, 4]));
            // outermost and innermost are not normed; the authors leave their biases out nevertheless
            if i > 1 && i < n {
                list.extend(norm(&format!("{name}.norm"), self.width(i)));
            }
        }
        for i in (1..=n).rev() {
            let name = format!("g.up{i}");
            // what comes from below and, but for the innermost, what came down beside it
            let inputs = if i == n { self.width(i) } else { 2 * self.width(i) };
            let outputs = if i == 1 { 3 } else { self.width(i - 1) };
            list.push(weight(&name, &[inputs, outputs, 4, 4]));
            match i {
                1 => list.push(zero(&format!("{name}.bias"), outputs)),
                _ => list.extend(norm(&format!("{name}.norm"), outputs)),
            }
        }
        list
    }

    /// Whether layer `i` of the way up, counted from 1, drops activations.
    #[must_use]
    pub fn drops(&self, i: u32) -> bool {
        self.dropout && (DRY..self.g_downs).contains(&i)
    }

    /// D; its parameters are `d.<layer>.…`.
    #[must_use]
    pub fn patches(&self) -> PatchGan {
        PatchGan { inputs: 6, width: i64::from(self.d_width), layers: self.d_layers, affine: true }
    }

    /// Every parameter of D, in the order in which they are drawn.
    #[must_use]
    pub fn discriminator(&self) -> Vec<ParameterSpec> {
        self.patches().parameters("d.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture(g_downs: u32) -> Architecture {
        Architecture {
            resolution: 256,
            g_width: 64,
            g_downs,
            dropout: true,
            d_width: 64,
            d_layers: 3,
            gan_loss: GanLoss::Vanilla,
            lambda_l1: 100.0,
            direction: Direction::A2b,
        }
    }

    /// gan.md 3.
    #[test]
    fn parameter_totals() {
        let total = |list: Vec<ParameterSpec>| list.iter().map(ParameterSpec::numel).sum::<u64>();
        assert_eq!(total(architecture(8).generator()), 54_413_955);
        assert_eq!(total(architecture(7).generator()), 41_828_995);
        assert_eq!(total(architecture(8).discriminator()), 2_768_705);
    }

    /// gan.md 3: `num_downs - 5` of the inner layers.
    #[test]
    fn three_layers_drop_activations_at_256() {
        let drops = |n: u32| (1..=n).filter(|i| architecture(n).drops(*i)).collect::<Vec<_>>();
        assert_eq!(drops(8), [5, 6, 7]);
        assert_eq!(drops(5), [0u32; 0]);
        assert!(!Architecture { dropout: false, ..architecture(8) }.drops(6));
    }
}
