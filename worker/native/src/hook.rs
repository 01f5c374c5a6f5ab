//! A callback after a parameter's gradient is accumulated: the signal that starts the reduction of a bucket.
//!
//! The hook hangs on the tensor itself (libtorch keeps gradient accumulators only weakly), fires in every `backward`
//! that accumulates into it, never for gradients that are merely returned (the inner gradient of a penalty).

use crate::{NativeError, check, handle, sys};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::Tensor;

type Callback = Box<dyn Fn() + Send + Sync>;

/// Keeps the callback on the tensor until dropped.
#[derive(Debug)]
pub struct GradientHook {
    tensor: Tensor,
}

impl GradientHook {
    /// Calls `callback` on the autograd thread after every accumulation into `tensor`'s gradient. Replaces an older hook.
    ///
    /// A panic inside the callback ends the process: an unwound hook would leave the other ranks waiting for a bucket
    /// that never comes.
    ///
    /// # Errors
    /// When `tensor` cannot carry a hook.
    pub fn new(tensor: &Tensor, callback: impl Fn() + Send + Sync + 'static) -> Result<Self, NativeError> {
        let context: Box<Callback> = Box::new(Box::new(callback));
        // SAFETY: `context` is given to the shim, which hands it to `call` while the hook lives and to `release` exactly
        // once, also when installing it fails.
        let status = unsafe { sys::gfn_hook_gradient(handle(tensor), call, release, Box::into_raw(context).cast()) };
        check("hook_gradient", status)?;
        Ok(Self { tensor: tensor.shallow_clone() })
    }
}

impl Drop for GradientHook {
    fn drop(&mut self) {
        // SAFETY: the handle is live; removing a hook that is already gone does nothing. A failure leaves the hook in
        // place, which is harmless: it then dies with the tensor.
        unsafe { sys::gfn_unhook_gradient(handle(&self.tensor)) };
    }
}

extern "C" fn call(context: *mut c_void) {
    // SAFETY: `context` is the box that `new` leaked and `release` has not yet freed; the callback is Sync.
    let callback = unsafe { &*context.cast::<Callback>() };
    if catch_unwind(AssertUnwindSafe(callback)).is_err() {
        std::process::abort();
    }
}

extern "C" fn release(context: *mut c_void) {
    // SAFETY: called exactly once, by the destructor of the shim's hook.
    drop(unsafe { Box::from_raw(context.cast::<Callback>()) });
}
