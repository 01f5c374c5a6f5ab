//! Declarations of what `shim/` exports. Nothing here is safe or clever.

use std::ffi::{c_char, c_void};

/// tch's handle, a pointer to `at::Tensor`; or a pointer to an event or a stream of libtorch's.
pub type Handle = *mut c_void;

unsafe extern "C" {
    pub fn gfn_error() -> *const c_char;
    pub fn gfn_fused_adam(
        params: *const Handle,
        grads: *const Handle,
        first: *const Handle,
        second: *const Handle,
        n: usize,
        step: Handle,
        found_inf: Handle,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
    ) -> i32;
    pub fn gfn_foreach_lerp(averages: *const Handle, values: *const Handle, n: usize, weight: f64) -> i32;
    pub fn gfn_set_grad(tensor: Handle, grad: Handle) -> i32;
    pub fn gfn_hook_gradient(
        tensor: Handle,
        call: extern "C" fn(*mut c_void),
        drop: extern "C" fn(*mut c_void),
        context: *mut c_void,
    ) -> i32;
    pub fn gfn_unhook_gradient(tensor: Handle) -> i32;
    pub fn gfn_leaky_relu(x: Handle, slope: f64) -> i32;
    pub fn gfn_convolution(
        x: Handle,
        weight: Handle,
        bias: Handle,
        stride: i64,
        padding: i64,
        transposed: bool,
        slope: f64,
        out: *mut Handle,
    ) -> i32;
    pub fn gfn_leaky_downscale(x: Handle, slope: f64, out: *mut Handle) -> i32;
    pub fn gfn_leaky_pixel_norm(x: Handle, slope: f64, epsilon: f64, out: *mut Handle) -> i32;
    pub fn gfn_residual(x: Handle, w1: Handle, b1: Handle, w2: Handle, b2: Handle, norm: i64, out: *mut Handle) -> i32;
    pub fn gfn_autocast(gpu: bool, on: bool) -> i32;
    pub fn gfn_keep_memory() -> i32;
    pub fn gfn_end(status: i32) -> !;
    pub fn gfn_tf32(allowed: bool) -> i32;
    pub fn gfn_tf32_allowed(allowed: *mut i32) -> i32;
    pub fn gfn_event_here(tensor: Handle, out: *mut Handle) -> i32;
    pub fn gfn_event_on(stream: Handle, out: *mut Handle) -> i32;
    pub fn gfn_event_passed(event: Handle, passed: *mut bool) -> i32;
    pub fn gfn_event_free(event: Handle);
    pub fn gfn_stream_new(index: i64, out: *mut Handle) -> i32;
    pub fn gfn_stream_native(stream: Handle, out: *mut *mut c_void) -> i32;
    pub fn gfn_stream_wait(stream: Handle, event: Handle) -> i32;
    pub fn gfn_stream_keep(stream: Handle, tensor: Handle) -> i32;
    pub fn gfn_stream_free(stream: Handle);
    pub fn gfn_device_memory(index: i64, free: *mut u64, total: *mut u64, held: *mut u64, most: *mut u64) -> i32;
}
