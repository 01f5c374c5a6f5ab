//! Layers of `shim/layers.cpp`: with the derivatives that the losses of convolutional GANs need, in the layout that is
//! fastest on the device. A derivative beyond what a function says is refused when it is asked for.

use crate::{NativeError, check, handle, sys};
use tch::Tensor;

/// How a convolution walks over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Pixels between two applications of the kernel.
    pub stride: i64,
    /// Zeros around the input.
    pub padding: i64,
    /// Whether it is the transpose of a convolution, which enlarges by `stride`; its weight is `[in, out, kh, kw]`.
    pub transposed: bool,
}

/// Convolution of `x` (`[n, in, h, w]`) with `weight` (`[out, in, kh, kw]`), plus `bias` (`[out]`), then leaky ReLU of `slope`
/// where one is given, which must be positive.
///
/// Differentiable; and the gradient of `x` is differentiable once more, with respect to what it came from and to `weight`.
///
/// # Errors
/// When libtorch refuses shapes, types or devices.
pub fn convolution(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    geometry: Geometry,
    slope: Option<f64>,
) -> Result<Tensor, NativeError> {
    let Geometry { stride, padding, transposed } = geometry;
    let (x, weight, bias) = (handle(x), handle(weight), handle(bias));
    made("convolution", |out| {
        // SAFETY: the three handles are live for the length of the call; `out` is written on success only.
        unsafe { sys::gfn_convolution(x, weight, bias, stride, padding, transposed, slope.unwrap_or(1.0), out) }
    })
}

/// `tensor` where positive, `slope * tensor` elsewhere, in place; tch's own has no slope. Differentiable any number of times.
///
/// # Errors
/// When `tensor` is not floating-point, or is a leaf that collects gradients.
pub fn leaky_relu(tensor: Tensor, slope: f64) -> Result<Tensor, NativeError> {
    // SAFETY: the handle is live for the length of the call.
    check("leaky_relu", unsafe { sys::gfn_leaky_relu(handle(&tensor), slope) })?;
    Ok(tensor)
}

/// Leaky ReLU of `tensor` (`[n, c, h, w]`, even sides), then the mean of each 2x2 pixels, in one pass over memory. Twice
/// differentiable.
///
/// # Errors
/// When `tensor` is not floating-point or has another shape.
pub fn leaky_downscale(tensor: &Tensor, slope: f64) -> Result<Tensor, NativeError> {
    let x = handle(tensor);
    // SAFETY: the handle is live for the length of the call; `out` is written on success only.
    made("leaky_downscale", |out| unsafe { sys::gfn_leaky_downscale(x, slope, out) })
}

/// `y / sqrt(mean_c(y^2) + epsilon)` with `y` the leaky ReLU of `tensor` (`[n, c, h, w]`), in one pass over memory.
/// Differentiable once.
///
/// # Errors
/// When `tensor` is not floating-point.
pub fn leaky_pixel_norm(tensor: &Tensor, slope: f64, epsilon: f64) -> Result<Tensor, NativeError> {
    let x = handle(tensor);
    // SAFETY: the handle is live for the length of the call; `out` is written on success only.
    made("leaky_pixel_norm", |out| unsafe { sys::gfn_leaky_pixel_norm(x, slope, epsilon, out) })
}

/// What is brought to mean 0 and variance 1 in a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum BlockNorm {
    /// Nothing.
    None = 0,
    /// Each map of each sample.
    Instance = 1,
    /// Each sample.
    Layer = 2,
}

/// `x + norm(conv2(reflect(relu(norm(conv1(reflect(x)))))))`: 3x3 convolutions over images reflected at their edges.
/// `layers` are weight and bias of both. Backward remembers `x` and the layers, and computes the rest once
/// more. Differentiable once.
///
/// # Errors
/// When libtorch refuses shapes, types or devices.
pub fn residual(x: &Tensor, layers: [&Tensor; 4], norm: BlockNorm) -> Result<Tensor, NativeError> {
    let (x, [w1, b1, w2, b2]) = (handle(x), layers.map(handle));
    // SAFETY: the five handles are live for the length of the call; `out` is written on success only.
    made("residual", |out| unsafe { sys::gfn_residual(x, w1, b1, w2, b2, norm as i64, out) })
}

/// The tensor that `make` writes into the place it is given.
fn made(operation: &'static str, make: impl FnOnce(*mut sys::Handle) -> i32) -> Result<Tensor, NativeError> {
    let mut out: sys::Handle = std::ptr::null_mut();
    check(operation, make(&raw mut out))?;
    // SAFETY: the shim made a new at::Tensor and gives it away.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}
