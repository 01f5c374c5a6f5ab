//! A CPU tensor as the slice that it is, for the code that sends it over a wire.

use crate::NativeError;
use half::bf16;
use std::marker::PhantomData;
use tch::{Device, Kind, Tensor};

/// What a tensor of the host may hold here. (tch's own table has `Half` for bfloat16.)
pub trait Number: Copy {
    /// libtorch's name of it.
    const KIND: Kind;
}

impl Number for f32 {
    const KIND: Kind = Kind::Float;
}

impl Number for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// Single precision.
pub type HostF32 = Host<f32>;

/// bfloat16.
pub type HostBf16 = Host<bf16>;

/// A contiguous tensor of `T` in host memory, lent as a slice.
///
/// It shares the tensor's memory. Whoever made it promises what every in-place operation of libtorch asks for too: that
/// no kernel reads or writes the tensor while the slice is in use.
#[derive(Debug)]
pub struct Host<T> {
    tensor: Tensor,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Number> Host<T> {
    /// Wraps `tensor` without a copy.
    ///
    /// # Errors
    /// When it is of another kind, not contiguous or not in host memory.
    pub fn new(tensor: &Tensor) -> Result<Self, NativeError> {
        if tensor.kind() != T::KIND || tensor.device() != Device::Cpu || !tensor.is_contiguous() {
            return Err(NativeError {
                operation: "host slice",
                message: format!("needs a contiguous CPU tensor of {:?}, got {tensor:?}", T::KIND),
            });
        }
        Ok(Self { len: tensor.numel(), tensor: tensor.shallow_clone(), of: PhantomData })
    }

    /// Its elements.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: contiguous CPU memory of `len` elements of this kind, kept alive by `tensor`; aliasing as the type's promise says.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<T>(), self.len) }
    }

    /// Its elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as in as_slice; `&mut self` makes this the only slice from this wrapper.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<T>(), self.len) }
    }
}
