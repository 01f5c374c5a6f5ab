//! Buffers in device memory, and the order in which the device works on them.
//!
//! Work on a device is queued, not done, when a call returns. A [`Mark`] is a point in a queue; a [`Stream`] is a queue of
//! our own that can be told to wait for one. Nothing here waits: a mark is asked whether it was passed.

use crate::{NativeError, check, handle, sys};
use std::ffi::c_void;
use tch::{Device, Kind, Tensor};

/// A contiguous tensor of floats or bfloat16, together with the point in its device's queue at which its values are there.
///
/// It shares the tensor's memory. Whoever made it promises that nothing reads or writes the tensor before its sum is done.
#[derive(Debug)]
pub struct DeviceBuffer {
    tensor: Tensor,
    ready: Option<Mark>,
}

impl DeviceBuffer {
    /// Wraps `tensor` without a copy. Its values are what they will be when the device has done everything that this thread
    /// has queued on it so far. In host memory, where nothing is queued, they are there.
    ///
    /// # Errors
    /// When it is of another kind or not contiguous, or the device refuses to mark the point.
    pub fn new(tensor: &Tensor) -> Result<Self, NativeError> {
        if !matches!(tensor.kind(), Kind::Float | Kind::BFloat16) || !tensor.is_contiguous() {
            let message = format!("needs a contiguous tensor of floats or bfloat16, got {tensor:?}");
            return Err(NativeError { operation: "device buffer", message });
        }
        let ready = if tensor.device() == Device::Cpu { None } else { Some(Mark::here(tensor)?) };
        Ok(Self { tensor: tensor.shallow_clone(), ready })
    }

    /// The tensor itself.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// What has to be passed before the values are there.
    pub(crate) fn ready(&self) -> Option<&Mark> {
        self.ready.as_ref()
    }
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceMemory {
    /// What nobody holds.
    pub free: u64,
    /// All of it.
    pub total: u64,
    /// What libtorch holds of it for this process's tensors.
    pub held: u64,
    /// The most that it has held.
    pub most: u64,
}

impl DeviceMemory {
    /// What is held by anybody else, and by this process's context.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.total.saturating_sub(self.free).saturating_sub(self.held)
    }

    /// As it is now; `None` for the host's memory.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn of(device: Device) -> Result<Option<Self>, NativeError> {
        let Device::Cuda(index) = device else { return Ok(None) };
        let mut memory = Self { free: 0, total: 0, held: 0, most: 0 };
        // SAFETY: the four numbers outlive the call.
        check("ask for a device's memory", unsafe {
            sys::gfn_device_memory(
                index as i64,
                &mut memory.free,
                &mut memory.total,
                &mut memory.held,
                &mut memory.most,
            )
        })?;
        Ok(Some(memory))
    }
}

/// A point in a device's queue of work.
#[derive(Debug)]
pub(crate) struct Mark(sys::Handle);

// SAFETY: an event of libtorch's belongs to no thread; it may be used by any, one at a time, which ownership sees to.
unsafe impl Send for Mark {}

impl Mark {
    /// Behind everything that this thread has queued on the device of `tensor`.
    fn here(tensor: &Tensor) -> Result<Self, NativeError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the tensor is live for the call; on success `out` is an event that is now ours.
        check("mark the queue", unsafe { sys::gfn_event_here(handle(tensor), &mut out) })?;
        Ok(Self(out))
    }

    /// Whether the device is beyond it. Also says of earlier work on the device that it failed.
    pub(crate) fn passed(&self) -> Result<bool, NativeError> {
        let mut passed = false;
        // SAFETY: the event is live, and `passed` outlives the call.
        check("look at the queue", unsafe { sys::gfn_event_passed(self.0, &mut passed) })?;
        Ok(passed)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { sys::gfn_event_free(self.0) };
    }
}

/// A queue of a GPU's, beside the one in which libtorch works.
#[derive(Debug)]
pub(crate) struct Stream(sys::Handle);

// SAFETY: as for Mark; the stream itself belongs to libtorch's pool and is never closed.
unsafe impl Send for Stream {}

impl Stream {
    /// On GPU number `index`, which becomes the calling thread's current one.
    pub(crate) fn new(index: usize) -> Result<Self, NativeError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: on success `out` is a description of a stream that is now ours.
        check("open a stream", unsafe { sys::gfn_stream_new(index as i64, &mut out) })?;
        Ok(Self(out))
    }

    /// The driver's handle.
    pub(crate) fn native(&self) -> Result<*mut c_void, NativeError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the description is live; `out` outlives the call.
        check("name a stream", unsafe { sys::gfn_stream_native(self.0, &mut out) })?;
        Ok(out)
    }

    /// What is queued from now on finds the values of `buffer`, and its memory stays until that is done.
    pub(crate) fn take(&self, buffer: &DeviceBuffer) -> Result<(), NativeError> {
        if let Some(mark) = buffer.ready() {
            // SAFETY: stream and event are live for the call.
            check("order two queues", unsafe { sys::gfn_stream_wait(self.0, mark.0) })?;
        }
        // SAFETY: stream and tensor are live for the call.
        check("keep memory", unsafe { sys::gfn_stream_keep(self.0, handle(&buffer.tensor)) })
    }

    /// A mark behind everything that was queued so far.
    pub(crate) fn mark(&self) -> Result<Mark, NativeError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the description is live; on success `out` is an event that is now ours.
        check("mark a stream", unsafe { sys::gfn_event_on(self.0, &mut out) })?;
        Ok(Mark(out))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once; the pool keeps the stream itself.
        unsafe { sys::gfn_stream_free(self.0) };
    }
}
