//! Layers that more than one family uses, or may: equalized layers, pixel norm, minibatch deviation, scaling by two; plain
//! convolutions, norms of one sample, reflection, and what losses take the mean of.
//!
//! Conventions: NCHW, weights `[out, in, kh, kw]` or `[out, in]`. Sources are sections of Karras et al., ICLR 2018 ("PGGAN").

use crate::parameters::Parameters;
use native::Geometry;
use tch::{Kind, Tensor};

/// Gain of a layer that feeds a rectifier (He et al. 2015).
pub const RECTIFIER: f64 = std::f64::consts::SQRT_2;

/// Slope of the leaky ReLU (PGGAN, table 2).
const SLOPE: f64 = 0.2;
/// Keeps a norm of zero from dividing.
const EPSILON: f64 = 1e-8;

/// Leaky ReLU with slope 0.2, in place.
pub fn leaky(x: Tensor) -> Tensor {
    native::leaky_relu(x, SLOPE).expect("activations are floating-point tensors that are no leaves")
}

/// Leaky ReLU, then the mean of 2x2 pixels: half the side, in one pass over memory.
pub fn leaky_downscale(x: &Tensor) -> Tensor {
    native::leaky_downscale(x, SLOPE).expect("activations are floating-point tensors of even side")
}

/// Leaky ReLU and pixel norm of G in one pass over memory. Differentiable once, which is all that a generator needs.
pub fn leaky_pixel_norm(x: &Tensor) -> Tensor {
    native::leaky_pixel_norm(x, SLOPE, EPSILON).expect("activations are floating-point tensors")
}

/// Each pixel's feature vector scaled to unit mean square (PGGAN 4.2): `x / sqrt(mean_c(x^2) + 1e-8)`.
pub fn pixel_norm(x: &Tensor) -> Tensor {
    x * ((x * x).mean_dim(&[1i64][..], true, None::<Kind>) + EPSILON).rsqrt()
}

/// Nearest neighbour, twice the side.
pub fn upscale(x: &Tensor) -> Tensor {
    let (_, _, h, w) = x.size4().expect("an image has four dimensions");
    x.upsample_nearest2d([h * 2, w * 2], None, None)
}

/// Mean of 2x2 pixels, half the side.
pub fn downscale(x: &Tensor) -> Tensor {
    x.avg_pool2d(2, 2, 0, false, true, None)
}

/// One more feature map with the mean standard deviation over each statistical group (PGGAN 3).
///
/// `x` is `[n, c, h, w]`, `n` a multiple of `group`. A group is `group` consecutive samples of the *global* minibatch, so
/// that the statistic does not depend on how many workers share it; the authors group by stride instead, which is the
/// same statistic over another, equally random, choice of samples. Population variance, `sqrt(var + 1e-8)`, mean over
/// c, h, w, one number for every sample of the group.
pub fn minibatch_deviation(x: &Tensor, group: i64) -> Tensor {
    let (n, c, h, w) = x.size4().expect("an activation has four dimensions");
    let grouped = x.reshape([n / group, group, c * h * w]);
    let centred = &grouped - grouped.mean_dim(&[1i64][..], true, None::<Kind>);
    let deviation = ((&centred * &centred).mean_dim(&[1i64][..], false, None::<Kind>) + EPSILON).sqrt();
    let map = deviation
        .mean_dim(&[1i64][..], false, None::<Kind>)
        .view([n / group, 1, 1, 1, 1])
        .expand([n / group, group, 1, h, w], false)
        .reshape([n, 1, h, w]);
    Tensor::cat(&[x, &map], 1)
}

/// Each feature map of each sample brought to mean 0 and variance 1 (Ulyanov et al. 2016): population variance, epsilon 1e-5, and
/// nothing learned.
pub fn instance_norm(x: &Tensor) -> Tensor {
    x.instance_norm(None::<Tensor>, None::<Tensor>, None::<Tensor>, None::<Tensor>, true, 0.0, 1e-5, false)
}

/// A norm that knows one sample only, with or without a learned scale and shift; or none.
#[derive(Debug)]
pub enum Norm {
    /// Leaves everything as it is.
    None,
    /// Instance norm, nothing learned.
    Plain,
    /// Layer norm, nothing learned.
    Layer,
    /// Instance norm with a learned scale and shift.
    Affine(Tensor, Tensor),
}

impl Norm {
    /// The scale and shift `name` of `parameters`: batch norm over a batch of one.
    #[must_use]
    pub fn affine(parameters: &Parameters, name: &str) -> Self {
        let tensor = |kind: &str| parameters.get(&format!("{name}.{kind}")).shallow_clone();
        Self::Affine(tensor("weight"), tensor("bias"))
    }

    /// This norm in a block that remembers its input alone.
    ///
    /// # Panics
    /// Where something is learned: no block has such norms.
    #[must_use]
    pub fn of_blocks(&self) -> native::BlockNorm {
        match self {
            Self::None => native::BlockNorm::None,
            Self::Plain => native::BlockNorm::Instance,
            Self::Layer => native::BlockNorm::Layer,
            Self::Affine(..) => unreachable!("residual blocks learn no scale"),
        }
    }

    /// `[n, c, h, w]`.
    pub fn apply(&self, x: Tensor) -> Tensor {
        let none = None::<&Tensor>;
        match self {
            Self::None => x,
            Self::Plain => instance_norm(&x),
            Self::Layer => x.group_norm(1, none, none, 1e-5, false),
            Self::Affine(weight, bias) => x.instance_norm(Some(weight), Some(bias), none, none, true, 0.0, 1e-5, false),
        }
    }
}

/// In single precision at least: losses are.
pub fn single(x: Tensor) -> Tensor {
    if x.kind() == Kind::BFloat16 { x.to_kind(Kind::Float) } else { x }
}

/// `by` more pixels on every side, mirrored at the edge.
pub fn reflect(x: &Tensor, by: i64) -> Tensor {
    x.reflection_pad2d([by; 4])
}

/// One number for each sample: its mean.
pub fn each(x: &Tensor) -> Tensor {
    x.flatten(1, -1).mean_dim(&[1i64][..], false, None::<Kind>)
}

/// Mean absolute difference, for each sample.
pub fn l1(one: &Tensor, other: &Tensor) -> Tensor {
    each(&(one - other).abs())
}

/// Bytes in the networks' range [-1, 1].
pub fn range(bytes: &Tensor, kind: Kind) -> Tensor {
    bytes.to_kind(kind) / 127.5 - 1.0
}

/// A convolution whose weight is used as it is.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    /// The layer `name` of `parameters`.
    #[must_use]
    pub fn new(parameters: &Parameters, name: &str) -> Self {
        let tensor = |kind: &str| parameters.get(&format!("{name}.{kind}")).shallow_clone();
        Self { weight: tensor("weight"), bias: tensor("bias") }
    }

    /// Convolution, zeros around the image.
    pub fn apply(&self, x: &Tensor, stride: i64, padding: i64) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), stride, padding, 1, 1)
    }

    /// `x + norm(other(reflect(relu(norm(self(reflect(x)))))))`, of which backward remembers `x` alone and computes the rest once
    /// more.
    pub fn residual(&self, other: &Self, x: &Tensor, norm: native::BlockNorm) -> Tensor {
        let made = native::residual(x, [&self.weight, &self.bias, &other.weight, &other.bias], norm);
        made.expect("a block's shapes follow from the architecture")
    }

    /// Nearest-neighbour upscaling and 3x3 convolution, in one.
    pub fn upscaling(&self, x: &Tensor) -> Tensor {
        x.conv_transpose2d(&upscaling_kernel(&self.weight), Some(&self.bias), 2, 1, 0, 1, 1)
    }

    /// Transposed convolution that doubles the side: stride 2, padding 1, output padding 1. Its weight is `[in, out, 3, 3]`.
    pub fn transposed(&self, x: &Tensor) -> Tensor {
        x.conv_transpose2d(&self.weight, Some(&self.bias), 2, 1, 1, 1, 1)
    }
}

/// A weight and a bias with the run-time constant of the equalized learning rate (PGGAN 4.1): the forward pass uses
/// `weight * gain / sqrt(fan_in)`; the bias is added unscaled.
#[derive(Debug)]
pub struct Equalized {
    weight: Tensor,
    bias: Tensor,
    scale: f64,
}

impl Equalized {
    /// The layer `name` of `parameters` with the given gain; fan-in is everything but the weight's first dimension.
    #[must_use]
    pub fn new(parameters: &Parameters, name: &str, gain: f64) -> Self {
        let weight = parameters.get(&format!("{name}.weight")).shallow_clone();
        let fan_in: i64 = weight.size()[1..].iter().product();
        let bias = parameters.get(&format!("{name}.bias")).shallow_clone();
        Self { weight, bias, scale: gain / (fan_in as f64).sqrt() }
    }

    /// The layer as it is used: scaled once, however often it is applied in one loss.
    #[must_use]
    pub fn scaled(&self) -> Layer {
        Layer { weight: &self.weight * self.scale, bias: self.bias.shallow_clone() }
    }
}

/// An equalized layer with its effective weight.
#[derive(Debug)]
pub struct Layer {
    weight: Tensor,
    bias: Tensor,
}

impl Layer {
    /// Convolution with as much padding as keeps the side.
    pub fn conv(&self, x: &Tensor) -> Tensor {
        self.convolve(x, &self.weight, self.keeping_side(), None)
    }

    /// The same and leaky ReLU.
    pub fn leaky_conv(&self, x: &Tensor) -> Tensor {
        self.convolve(x, &self.weight, self.keeping_side(), Some(SLOPE))
    }

    fn keeping_side(&self) -> Geometry {
        Geometry { stride: 1, padding: self.weight.size()[2] / 2, transposed: false }
    }

    fn convolve(&self, x: &Tensor, weight: &Tensor, geometry: Geometry, slope: Option<f64>) -> Tensor {
        let out = native::convolution(x, weight, &self.bias, geometry, slope);
        out.expect("a layer's shapes follow from the architecture, and images come in its sizes")
    }

    /// Dense layer.
    pub fn dense(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// Dense layer onto a 4x4 image: `[n, in] -> [n, c, 4, 4]`, one bias per channel, added after the reshape, or one per position.
    pub fn dense_to_4x4(&self, x: &Tensor) -> Tensor {
        let channels = self.bias.size()[0];
        if channels == self.weight.size()[0] {
            return self.dense(x).view([-1, channels / 16, 4, 4]);
        }
        x.linear(&self.weight, None::<Tensor>).view([-1, channels, 4, 4]) + self.bias.view([1, channels, 1, 1])
    }

    /// Nearest-neighbour upscaling and 3x3 convolution as one transposed 4x4 convolution: the same function.
    pub fn upscaling_conv(&self, x: &Tensor) -> Tensor {
        self.convolve(x, &upscaling_kernel(&self.weight), Geometry { stride: 2, padding: 1, transposed: true }, None)
    }

    /// 3x3 convolution and 2x2 mean as one strided 4x4 convolution, and leaky ReLU: conv, mean, bias, in this order.
    pub fn leaky_downscaling_conv(&self, x: &Tensor) -> Tensor {
        let kernel = spread(&self.weight) * 0.25;
        self.convolve(x, &kernel, Geometry { stride: 2, padding: 1, transposed: false }, Some(SLOPE))
    }
}

/// The kernel of the transposed 4x4 convolution with stride 2 that is nearest-neighbour upscaling and the 3x3 convolution of `weight`.
fn upscaling_kernel(weight: &Tensor) -> Tensor {
    // a transposed convolution flips its kernel, so it is turned round first
    spread(weight).flip([2, 3]).transpose(0, 1)
}

/// The 4x4 kernel of a 3x3 convolution over doubled pixels: the sum of its four shifts.
fn spread(weight: &Tensor) -> Tensor {
    let padded = weight.constant_pad_nd([1, 1, 1, 1]);
    let window = |y, x| padded.narrow(2, y, 4).narrow(3, x, 4);
    window(0, 0) + window(0, 1) + window(1, 0) + window(1, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn layer(out: i64, input: i64) -> Layer {
        tch::manual_seed(3);
        let options = (Kind::Double, Device::Cpu);
        Layer { weight: Tensor::randn([out, input, 3, 3], options), bias: Tensor::randn([out], options) }
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// gan.md 19, item 10.
    #[test]
    fn fused_scaling_is_scaling() {
        let layer = layer(5, 3);
        let x = Tensor::randn([2, 3, 8, 8], (Kind::Double, Device::Cpu));
        assert!(distance(&layer.upscaling_conv(&x), &layer.conv(&upscale(&x))) < 1e-12);
        let plain = Conv { weight: layer.weight.shallow_clone(), bias: layer.bias.shallow_clone() };
        assert!(distance(&plain.upscaling(&x), &plain.apply(&upscale(&x), 1, 1)) < 1e-12);
        let bias = layer.bias.view([1, -1, 1, 1]);
        let plain = leaky(downscale(&(layer.conv(&x) - &bias)) + &bias);
        assert!(distance(&layer.leaky_downscaling_conv(&x), &plain) < 1e-12);
    }

    /// gan.md 19, item 8.
    #[test]
    fn pixel_norm_gives_each_pixel_unit_rms() {
        let x = Tensor::randn([2, 16, 4, 4], (Kind::Double, Device::Cpu)) * 7.0;
        let rms = (pixel_norm(&x).square().mean_dim(&[1i64][..], false, None::<Kind>)).sqrt();
        assert!(distance(&rms, &rms.ones_like()) < 1e-6);
        let z = pixel_norm(&Tensor::randn([3, 512], (Kind::Double, Device::Cpu)));
        let norm = z.square().sum_dim_intlist(&[1i64][..], false, None::<Kind>).sqrt();
        assert!(distance(&norm, &(norm.ones_like() * 512f64.sqrt())) < 1e-6);
    }

    #[test]
    fn deviation_of_equal_images_is_the_root_of_epsilon() {
        let x = Tensor::ones([8, 3, 4, 4], (Kind::Double, Device::Cpu)) * 5.0;
        let map = minibatch_deviation(&x, 4).narrow(1, 3, 1);
        assert!(distance(&map, &(map.ones_like() * 1e-4)) < 1e-12);
    }

    /// gan.md 1.3: the authors' strided groups are ours after the permutation that makes them consecutive.
    #[test]
    fn consecutive_groups_are_strided_groups_permuted() {
        let (n, g) = (12i64, 4i64);
        let m = n / g;
        let x = Tensor::randn([n, 3, 4, 4], (Kind::Double, Device::Cpu));
        let strided = {
            let t = x.view([g, m, 3, 4, 4]);
            let c = &t - t.mean_dim(&[0i64][..], true, None::<Kind>);
            let d = ((&c * &c).mean_dim(&[0i64][..], false, None::<Kind>) + 1e-8).sqrt();
            d.mean_dim(&[1i64, 2, 3][..], false, None::<Kind>) // one number for each n mod M
        };
        let order: Vec<i64> = (0..m).flat_map(|k| (0..g).map(move |i| i * m + k)).collect();
        let ours = minibatch_deviation(&x.index_select(0, &Tensor::from_slice(&order)), g).narrow(1, 3, 1);
        for k in 0..m {
            assert!((ours.double_value(&[k * g, 0, 0, 0]) - strided.double_value(&[k])).abs() < 1e-12);
        }
    }
}
