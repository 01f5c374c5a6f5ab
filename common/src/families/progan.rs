//! Progressive GAN as data: its keys, its parameters and its growth schedule (Karras et al., "Progressive Growing of GANs
//! for Improved Quality, Stability, and Variation", ICLR 2018).
//!
//! Everything here is a pure function of the configuration and of images seen. The networks are in the worker.

use super::{Init, ParameterSpec};
use crate::ids::ImagesSeen;
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
                // one bias per channel, not per position: it is added after the reshape
                list.push(bias("g.4.dense", c));
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

/// When the networks grow, in thousands of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Growth {
    /// Resolution of the first phase.
    pub start_resolution: u32,
    /// Length of a stable phase (`lod_training_kimg`).
    pub stable_kimg: f64,
    /// Length of a fade (`lod_transition_kimg`).
    pub fade_kimg: f64,
}

/// Where the growth stands: a pure function of images seen at the *cycle start*.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Level of detail: 0 is full resolution, each whole number halves it; fractions while fading.
    pub lod: f64,
    /// Active resolution in pixels, `2^(R - floor(lod))`: the new one from the first moment of its fade.
    pub resolution: u32,
}

impl Level {
    /// Share of the new resolution, 0 at the start of its fade-in, 1 in a stable phase: `1 - frac(lod)`.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        1.0 - self.lod.fract()
    }

    /// Whether the image layer of the resolution below still takes part.
    #[must_use]
    pub fn fading(&self) -> bool {
        self.lod.fract() > 0.0
    }

    /// `(floor, ceil)` of lod: the optimizer is reset when either changes.
    #[must_use]
    pub fn knee(&self) -> (u32, u32) {
        (self.lod.floor() as u32, self.lod.ceil() as u32)
    }
}

impl Growth {
    /// The level at `images` for a network whose final resolution is `resolution` (gan.md 1.6):
    /// `lod = max(0, R - log2(start) - phase - max(p - stable, 0) / fade)`.
    #[must_use]
    pub fn level(&self, resolution: u32, images: ImagesSeen) -> Level {
        let top = resolution.ilog2();
        let start = f64::from(top - self.start_resolution.ilog2().min(top));
        let duration = self.stable_kimg + self.fade_kimg;
        let lod = if duration > 0.0 {
            let phase = (images.kimg() / duration).floor();
            let into = images.kimg() - phase * duration;
            let faded = if self.fade_kimg > 0.0 { (into - self.stable_kimg).max(0.0) / self.fade_kimg } else { 0.0 };
            (start - phase - faded).max(0.0)
        } else {
            0.0
        };
        Level { lod, resolution: 1 << (top - lod.floor() as u32) }
    }
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
            minibatch_stddev_group: 4,
            gp_norm: GpNorm::Active,
            gp_weight: 10.0,
            gp_target: 1.0,
            drift: 0.001,
        }
    }

    fn paper() -> Growth {
        Growth { start_resolution: 4, stable_kimg: 600.0, fade_kimg: 600.0 }
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

    /// gan.md 19, item 4.
    #[test]
    fn lod_at_every_knee() {
        let at = |resolution, kimg: u64| paper().level(resolution, ImagesSeen(kimg * 1000));
        for (kimg, lod, resolution) in [
            (0, 8.0, 4),
            (600, 8.0, 4),
            (900, 7.5, 8),
            (1200, 7.0, 8),
            (1800, 7.0, 8),
            (9000, 1.0, 512),
            (9300, 0.5, 1024),
            (9600, 0.0, 1024),
            (20_000, 0.0, 1024),
        ] {
            let level = at(1024, kimg);
            assert_eq!((level.lod, level.resolution), (lod, resolution), "at {kimg} kimg");
        }
        assert!(at(64, 4799).lod > 0.0);
        assert_eq!(at(64, 4800).lod, 0.0);
    }

    #[test]
    fn the_new_resolution_is_active_from_the_first_image_of_its_fade() {
        let level = paper().level(1024, ImagesSeen(600_001));
        assert_eq!(level.resolution, 8);
        assert!(level.alpha() > 0.0 && level.alpha() < 1e-5);
    }

    /// gan.md 19, item 12: the first step, and two knees for every resolution above the first.
    #[test]
    fn resets_happen_17_times_for_1024_and_9_times_for_64() {
        for (top, expected) in [(1024, 17), (64, 9), (4, 1)] {
            let mut last = None;
            let mut resets = 0;
            for kimg in 0..12_000 {
                let knee = Some(paper().level(top, ImagesSeen(kimg * 1000)).knee());
                resets += usize::from(knee != last);
                last = knee;
            }
            assert_eq!(resets, expected, "final {top}");
        }
    }

    #[test]
    fn without_phases_the_network_starts_at_full_size() {
        let growth = Growth { start_resolution: 1024, stable_kimg: 0.0, fade_kimg: 0.0 };
        assert_eq!(growth.level(1024, ImagesSeen(0)), Level { lod: 0.0, resolution: 1024 });
    }

    #[test]
    fn a_fade_without_length_is_a_step() {
        let growth = Growth { start_resolution: 4, stable_kimg: 1.0, fade_kimg: 0.0 };
        assert_eq!(growth.level(16, ImagesSeen(999)).resolution, 4);
        assert_eq!(growth.level(16, ImagesSeen(1000)), Level { lod: 1.0, resolution: 8 });
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

    proptest::proptest! {
        #[test]
        fn lod_never_rises_and_resolution_never_falls(
            stable in 0.0f64..50.0, fade in 0.0f64..50.0, start in 2u32..6, top in 2u32..11, images in 0u64..400_000, more in 0u64..50_000,
        ) {
            let growth = Growth { start_resolution: 1 << start.min(top), stable_kimg: stable, fade_kimg: fade };
            let a = growth.level(1 << top, ImagesSeen(images));
            let b = growth.level(1 << top, ImagesSeen(images + more));
            proptest::prop_assert!(b.lod <= a.lod + 1e-9);
            proptest::prop_assert!(b.resolution >= a.resolution && b.resolution <= 1 << top);
            proptest::prop_assert!((0.0..=1.0).contains(&a.alpha()));
        }
    }
}
