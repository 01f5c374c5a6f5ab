//! The gradient of one phase as one flat buffer, cut into buckets that are reduced while backward still runs.
//!
//! Every parameter's gradient slot is a view into the buffer, so nothing is copied. Buckets are launched in one fixed order
//! on every rank: a bucket waits for its turn even when its gradients are complete. The last bucket carries the flags by
//! which ranks agree on voluntary decisions without an extra message.

use crate::communicator::Launcher;
use crate::parameters::Parameters;
use native::{GradientHook, NativeError};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tch::{Device, Kind, Tensor, no_grad};
use worker_core::FLAGS;

/// A bucket is closed when it holds this many numbers (4 MiB): small enough to overlap, large enough to fill a link.
const BUCKET: usize = 1 << 20;

/// Gradient slots of the parameters that take part in one phase at one level.
pub struct Gradients {
    active: Vec<usize>,
    flat: Tensor,
    views: Vec<Tensor>,
    buckets: Vec<Range<usize>>,
    progress: Arc<Progress>,
    _hooks: Vec<GradientHook>,
}

/// Which buckets are complete, and whose turn it is.
struct Progress {
    /// Parameters of each bucket.
    sizes: Vec<usize>,
    /// Gradients still missing in each bucket; `usize::MAX / 2` and more while no reduction is wanted.
    missing: Vec<AtomicUsize>,
    turn: Mutex<Turn>,
}

struct Turn {
    next: usize,
    buckets: Vec<Tensor>,
    launcher: Option<Launcher>,
}

impl Progress {
    /// Gradient number `bucket` has one parameter more.
    fn complete_one(&self, bucket: usize) {
        if self.missing[bucket].fetch_sub(1, Ordering::AcqRel) == 1 {
            self.launch_ready();
        }
    }

    /// Launches every complete bucket whose turn it is.
    fn launch_ready(&self) {
        let mut turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while turn.next < self.missing.len() && self.missing[turn.next].load(Ordering::Acquire) == 0 {
            let next = turn.next;
            turn.next += 1;
            if let (Some(bucket), Some(launcher)) = (turn.buckets.get(next), &turn.launcher) {
                launcher.sum(bucket);
            }
        }
    }
}

const DISARMED: usize = usize::MAX / 2;

impl Gradients {
    /// Lays the slots of the parameters at `active`, in the order in which backward reaches them.
    ///
    /// # Errors
    /// When libtorch refuses, which would be a defect.
    pub fn new(parameters: &Parameters, active: Vec<usize>, device: Device) -> Result<Self, NativeError> {
        let tensors: Vec<&Tensor> = active.iter().map(|&i| &parameters.tensors()[i]).collect();
        let total: usize = tensors.iter().map(|t| t.numel()).sum();
        let flat = Tensor::zeros([(total + FLAGS) as i64], (Kind::Float, device));
        let (mut views, mut owners, mut buckets) = (Vec::new(), Vec::new(), Vec::new());
        let (mut offset, mut start) = (0, 0);
        for tensor in &tensors {
            views.push(flat.narrow(0, offset as i64, tensor.numel() as i64).view_as(tensor));
            offset += tensor.numel();
            owners.push(buckets.len());
            if offset - start >= BUCKET {
                buckets.push(start..offset);
                start = offset;
            }
        }
        if start < total || buckets.is_empty() {
            buckets.push(start..total);
        }
        if let Some(last) = buckets.last_mut() {
            last.end = total + FLAGS;
        }
        let sizes = (0..buckets.len()).map(|b| owners.iter().filter(|&&o| o == b).count()).collect::<Vec<_>>();
        let progress = Arc::new(Progress {
            missing: sizes.iter().map(|_| AtomicUsize::new(DISARMED)).collect(),
            sizes,
            turn: Mutex::new(Turn { next: 0, buckets: Vec::new(), launcher: None }),
        });
        let mut hooks = Vec::new();
        for (tensor, bucket) in tensors.iter().zip(owners) {
            let progress = Arc::clone(&progress);
            hooks.push(GradientHook::new(tensor, move || progress.complete_one(bucket))?);
        }
        Ok(Self { active, flat, views, buckets, progress, _hooks: hooks })
    }

    /// Empties the buffer, writes this rank's flags and makes the views the parameters' gradient slots.
    ///
    /// # Errors
    /// When libtorch refuses, which would be a defect.
    pub fn begin(&mut self, parameters: &Parameters, flags: [f32; FLAGS]) -> Result<(), NativeError> {
        self.disarm();
        no_grad(|| {
            let _zero = self.flat.zero_();
            if flags.iter().any(|&f| f != 0.0) {
                let mut tail = self.flag_view();
                tail.copy_(&Tensor::from_slice(&flags));
            }
        });
        for (&i, view) in self.active.iter().zip(&self.views) {
            native::set_gradient(&parameters.tensors()[i], Some(view))?;
        }
        Ok(())
    }

    /// From now on complete buckets are handed to `launcher`: call it before the phase's last backward, and only then.
    pub fn arm(&mut self, launcher: &Launcher) {
        let buckets = self.buckets.iter().map(|r| self.flat.narrow(0, r.start as i64, r.len() as i64)).collect();
        {
            let mut turn = self.progress.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *turn = Turn { next: 0, buckets, launcher: Some(launcher.clone()) };
        }
        for (missing, &size) in self.progress.missing.iter().zip(&self.progress.sizes) {
            missing.store(size, Ordering::Release);
        }
        self.progress.launch_ready(); // a bucket of flags alone is complete from the start
    }

    /// Hands over what no backward of this rank will complete: everything, on a rank without samples.
    pub fn launch_rest(&mut self) {
        for missing in &self.progress.missing {
            missing.store(0, Ordering::Release);
        }
        self.progress.launch_ready();
    }

    fn disarm(&self) {
        for missing in &self.progress.missing {
            missing.store(DISARMED, Ordering::Release);
        }
    }

    fn flag_view(&self) -> Tensor {
        let total = self.flat.numel() - FLAGS;
        self.flat.narrow(0, total as i64, FLAGS as i64)
    }

    /// The flags, summed over the ranks once the reduction is through. Waits for the device.
    #[must_use]
    pub fn flags(&self) -> [f32; FLAGS] {
        let mut flags = [0.0; FLAGS];
        self.flag_view().to_device(Device::Cpu).copy_data(&mut flags, FLAGS);
        flags
    }

    /// Sum of squares of the reduced gradient, one float on the device. Not finite where the gradient is not.
    pub fn squared_norm(&self) -> Tensor {
        let all = self.flat.narrow(0, 0, (self.flat.numel() - FLAGS) as i64);
        all.dot(&all)
    }

    /// Indices of the parameters, in the order of [`Gradients::views`].
    #[must_use]
    pub fn active(&self) -> &[usize] {
        &self.active
    }

    /// The gradients, each in its parameter's shape.
    pub fn views(&self) -> &[Tensor] {
        &self.views
    }

    /// The whole buffer, flags at the end.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }
}
