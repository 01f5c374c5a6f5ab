//! The only crate with `unsafe`: what tch does not wrap of libtorch, and NCCL, behind safe owner types.
//!
//! Three floors: `shim/` (C++ exceptions stop there), `sys` (declarations), and the safe functions here.
//! It knows nothing of training, of GANs, of networks or of files.

pub mod cuda;
mod device;
mod hook;
mod host;
mod layers;
pub mod nccl;
mod sys;

pub use device::{DeviceBuffer, DeviceMemory};
pub use hook::GradientHook;
pub use host::{HostBf16, HostF32};
pub use layers::{BlockNorm, Geometry, convolution, leaky_downscale, leaky_pixel_norm, leaky_relu, residual};

use std::ffi::CStr;
use std::marker::PhantomData;
use tch::{Device, Tensor};

/// An operation of libtorch failed.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {operation}: {message}")]
pub struct NativeError {
    /// The operation.
    pub operation: &'static str,
    /// libtorch's own message, first line.
    pub message: String,
}

fn check(operation: &'static str, status: i32) -> Result<(), NativeError> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: gfn_error returns a NUL-terminated string of this thread that lives until the next failing call here.
    let message = unsafe { CStr::from_ptr(sys::gfn_error()) }.to_string_lossy();
    Err(NativeError { operation, message: message.lines().next().unwrap_or_default().to_owned() })
}

fn handles(tensors: &[Tensor]) -> Vec<sys::Handle> {
    tensors.iter().map(handle).collect()
}

fn handle(tensor: &Tensor) -> sys::Handle {
    tensor.as_ptr().cast_mut().cast()
}

/// Constants of Adam (Kingma & Ba 2015, algorithm 1).
#[derive(Clone, Copy, Debug)]
pub struct AdamConstants {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// One Adam step of all `params` at once, in place. The four lists pair up by position and share shapes and device.
///
/// `step` (one float) is the number of this step, from 1. Where `found_inf` (one float, same device) holds 1, nothing changes:
/// the decision stays on the device.
///
/// # Errors
/// When libtorch refuses shapes, types or devices.
pub fn fused_adam(
    params: &[Tensor],
    grads: &[Tensor],
    first: &[Tensor],
    second: &[Tensor],
    step: &Tensor,
    found_inf: &Tensor,
    adam: AdamConstants,
) -> Result<(), NativeError> {
    assert!(params.len() == grads.len() && params.len() == first.len() && params.len() == second.len());
    if params.is_empty() {
        return Ok(());
    }
    let (p, g, m, v) = (handles(params), handles(grads), handles(first), handles(second));
    // SAFETY: every handle is a live at::Tensor borrowed for the length of the call, and the lists have equal lengths.
    let status = unsafe {
        sys::gfn_fused_adam(
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            p.len(),
            handle(step),
            handle(found_inf),
            adam.learning_rate,
            adam.beta1,
            adam.beta2,
            adam.epsilon,
        )
    };
    check("fused_adam", status)
}

/// `averages[i] += weight * (values[i] - averages[i])`, all at once, in place.
///
/// # Errors
/// When libtorch refuses shapes, types or devices.
pub fn foreach_lerp(averages: &[Tensor], values: &[Tensor], weight: f64) -> Result<(), NativeError> {
    assert_eq!(averages.len(), values.len());
    if averages.is_empty() {
        return Ok(());
    }
    let (a, v) = (handles(averages), handles(values));
    // SAFETY: as in fused_adam.
    let status = unsafe { sys::gfn_foreach_lerp(a.as_ptr(), v.as_ptr(), a.len(), weight) };
    check("foreach_lerp", status)
}

/// Makes `grad` (same shape, usually a view into a flat buffer) the place into which `tensor`'s gradient is accumulated.
///
/// # Errors
/// When shape, type or device differ.
pub fn set_gradient(tensor: &Tensor, grad: Option<&Tensor>) -> Result<(), NativeError> {
    // SAFETY: both handles are live for the length of the call; a null grad is allowed.
    let status = unsafe { sys::gfn_set_grad(handle(tensor), grad.map_or(std::ptr::null_mut(), handle)) };
    check("set_gradient", status)
}

/// Lets this process keep the memory of activations from one step to the next, instead of giving it back to the system
/// and having it zeroed anew. Call it first in `main`.
///
/// # Errors
/// When the C library refuses; training is then slower, nothing else.
pub fn keep_memory() -> Result<(), NativeError> {
    // SAFETY: sets three parameters of the allocator; no memory is touched.
    if unsafe { sys::gfn_keep_memory() } == 0 {
        Ok(())
    } else {
        Err(NativeError { operation: "keep_memory", message: "the allocator refuses".to_owned() })
    }
}

/// Ends this process at once: what libtorch has laid out while it was loaded is left to the system, for taking it down takes as
/// long again as half of the loading. What was to be written must have been.
pub fn end(status: u8) -> ! {
    // SAFETY: touches no memory; no other thread outlives the call.
    unsafe { sys::gfn_end(i32::from(status)) }
}

/// Whether single precision on a GPU may use its TF32 units (10 bits of mantissa), in convolutions and matrix products alike.
///
/// # Errors
/// When libtorch refuses.
pub fn allow_tf32(allowed: bool) -> Result<(), NativeError> {
    // SAFETY: sets two switches of libtorch's context.
    check("allow_tf32", unsafe { sys::gfn_tf32(allowed) })
}

/// What holds: for convolutions, and for products of matrices.
///
/// # Errors
/// When libtorch refuses.
pub fn tf32_allowed() -> Result<(bool, bool), NativeError> {
    let mut allowed = 0;
    // SAFETY: writes one integer that lives through the call.
    check("tf32_allowed", unsafe { sys::gfn_tf32_allowed(&raw mut allowed) })?;
    Ok((allowed & 1 != 0, allowed & 2 != 0))
}

/// Convolutions and products of matrices in bfloat16, of this thread, until it is dropped; what needs more precision is computed in
/// single precision. `tch::autocast` knows neither bfloat16 nor the CPU.
#[derive(Debug)]
pub struct Autocast {
    gpu: bool,
    /// It belongs to its thread.
    _here: PhantomData<*const ()>,
}

impl Autocast {
    /// On `device`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn begin(device: Device) -> Result<Self, NativeError> {
        let gpu = device.is_cuda();
        // SAFETY: sets switches of libtorch that belong to this thread.
        check("autocast", unsafe { sys::gfn_autocast(gpu, true) })?;
        Ok(Self { gpu, _here: PhantomData })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: as above; it was begun on this thread.
        drop(check("autocast", unsafe { sys::gfn_autocast(self.gpu, false) }));
    }
}

#[cfg(test)]
mod tests;
