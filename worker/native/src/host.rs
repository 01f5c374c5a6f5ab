//! A CPU tensor as the slice that it is, for the code that sends it over a wire.

use crate::NativeError;
use tch::{Device, Kind, Tensor};

/// A contiguous float tensor in host memory, lent as a slice.
///
/// It shares the tensor's memory. Whoever made it promises what every in-place operation of libtorch asks for too: that
/// no kernel reads or writes the tensor while the slice is in use.
#[derive(Debug)]
pub struct HostF32 {
    tensor: Tensor,
    len: usize,
}

impl HostF32 {
    /// Wraps `tensor` without a copy.
    ///
    /// # Errors
    /// When it is not float, not contiguous or not in host memory.
    pub fn new(tensor: &Tensor) -> Result<Self, NativeError> {
        if tensor.kind() != Kind::Float || tensor.device() != Device::Cpu || !tensor.is_contiguous() {
            return Err(NativeError {
                operation: "host slice",
                message: format!("needs a contiguous float CPU tensor, got {tensor:?}"),
            });
        }
        Ok(Self { len: tensor.numel(), tensor: tensor.shallow_clone() })
    }

    /// Its elements.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: contiguous float CPU memory of `len` elements, kept alive by `tensor`; aliasing as the type's promise says.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<f32>(), self.len) }
    }

    /// Its elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as in as_slice; `&mut self` makes this the only slice from this wrapper.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<f32>(), self.len) }
    }
}
