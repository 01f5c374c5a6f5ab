//! The gradient of one phase as one flat buffer, cut into buckets that are reduced while backward still runs.
//!
//! Every parameter's gradient slot is a view into the buffer, so nothing is copied. Buckets are launched in one fixed order
//! on every rank: a bucket waits for its turn even when its gradients are complete. The last bucket carries the flags by
//! which ranks agree on voluntary decisions without an extra message. Before the first lies what losses hand over for each
//! sample: a rank fills the rows of its own samples, so that the sum is everybody's.
//!
//! Gradients may travel in bfloat16, half the bytes: rounded as a bucket is launched, and written back once all are through. Flags and
//! what is handed over never are.

use crate::communicator::Launcher;
use crate::parameters::Parameters;
use common::config::resolved::ReducePrecision;
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
    /// Samples of the global minibatch, and numbers that are handed over for each of them.
    handed: (usize, usize),
    flat: Tensor,
    views: Vec<Tensor>,
    buckets: Vec<Range<usize>>,
    /// Where gradients lie while they travel, those of all buckets but what is handed over and flags, if they do so in bfloat16.
    halved: Option<Tensor>,
    progress: Arc<Progress>,
    /// Buckets of the last reduction that went out while backward still ran.
    #[cfg(test)]
    early: usize,
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
    buckets: Vec<Bucket>,
    launcher: Option<Launcher>,
}

/// What is summed at once.
struct Bucket {
    values: Tensor,
    /// What goes to the others in place of the values.
    halved: Option<Tensor>,
}

impl Bucket {
    fn launch(&self, launcher: &Launcher) {
        let Some(halved) = &self.halved else { return launcher.sum(&self.values) };
        no_grad(|| halved.shallow_clone().copy_(&self.values));
        launcher.sum(halved);
    }
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
                bucket.launch(launcher);
            }
        }
    }
}

const DISARMED: usize = usize::MAX / 2;

impl Gradients {
    /// Lays the slots of the parameters at `active`, in the order in which backward reaches them, and before them the place of
    /// what losses hand over: so many samples, so many numbers for each. Gradients travel in `reduce`.
    ///
    /// # Errors
    /// When libtorch refuses, which would be a defect.
    pub fn new(
        parameters: &Parameters,
        active: Vec<usize>,
        handed: (usize, usize),
        reduce: ReducePrecision,
        device: Device,
    ) -> Result<Self, NativeError> {
        let tensors: Vec<&Tensor> = active.iter().map(|&i| &parameters.tensors()[i]).collect();
        let before = handed.0 * handed.1;
        let total: usize = before + tensors.iter().map(|t| t.numel()).sum::<usize>();
        let flat = Tensor::zeros([(total + FLAGS) as i64], (Kind::Float, device));
        let (mut views, mut owners) = (Vec::new(), Vec::new());
        // complete before any gradient is
        let mut buckets: Vec<_> =
            (0..before).step_by(BUCKET).map(|start| start..(start + BUCKET).min(before)).collect();
        let (mut offset, mut start) = (before, before);
        for tensor in &tensors {
            views.push(flat.narrow(0, offset as i64, tensor.numel() as i64).view_as(tensor));
            offset += tensor.numel();
            owners.push(buckets.len());
            if offset - start >= BUCKET {
                buckets.push(start..offset);
                start = offset;
            }
        }
        if start < total {
            buckets.push(start..total);
        }
        let halved = match (reduce, buckets.last_mut()) {
            (ReducePrecision::Fp32, Some(last)) => {
                last.end = total + FLAGS;
                None
            }
            (ReducePrecision::Fp32, None) => {
                buckets.push(total..total + FLAGS);
                None
            }
            (ReducePrecision::Bf16, _) => {
                buckets.push(total..total + FLAGS);
                Some(Tensor::zeros([(total - before) as i64], (Kind::BFloat16, device)))
            }
        };
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
        Ok(Self {
            active,
            handed,
            flat,
            views,
            buckets,
            halved,
            progress,
            #[cfg(test)]
            early: 0,
            _hooks: hooks,
        })
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
        let buckets = self.buckets.iter().map(|range| self.bucket(range)).collect();
        {
            let mut turn = self.progress.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *turn = Turn { next: 0, buckets, launcher: Some(launcher.clone()) };
        }
        for (missing, &size) in self.progress.missing.iter().zip(&self.progress.sizes) {
            missing.store(size, Ordering::Release);
        }
        self.progress.launch_ready(); // a bucket without gradients is complete from the start
    }

    fn bucket(&self, range: &Range<usize>) -> Bucket {
        let gradients = self.gradients();
        let within = |tensor: &Tensor, start: usize| tensor.narrow(0, start as i64, range.len() as i64);
        let short = self.halved.as_ref().filter(|_| gradients.start <= range.start && range.end <= gradients.end);
        Bucket {
            values: within(&self.flat, range.start),
            halved: short.map(|halved| within(halved, range.start - gradients.start)),
        }
    }

    /// Where gradients lie in the buffer.
    fn gradients(&self) -> Range<usize> {
        self.handed.0 * self.handed.1..self.flat.numel() - FLAGS
    }

    /// Writes back what has travelled: call it once the reduction is through, before anything reads a gradient.
    pub fn settle(&self) {
        let Some(halved) = &self.halved else { return };
        let gradients = self.gradients();
        let mut values = self.flat.narrow(0, gradients.start as i64, gradients.len() as i64);
        no_grad(|| values.copy_(halved));
    }

    /// Hands over what no backward of this rank will complete: everything, on a rank without samples.
    pub fn launch_rest(&mut self) {
        #[cfg(test)]
        {
            self.early = self.progress.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next;
        }
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
        let gradients = self.gradients();
        let all = self.flat.narrow(0, gradients.start as i64, gradients.len() as i64);
        all.dot(&all)
    }

    /// Adds `rows` to those of `samples`, where all ranks get them.
    pub fn hand_over(&self, samples: &Range<u32>, rows: &Tensor) {
        let mut place = self.handed().narrow(0, i64::from(samples.start), samples.len() as i64);
        // added to the zeros that lie there: a negative zero would not survive the sum with another rank's
        no_grad(|| {
            let _sum = place.g_add_(&rows.detach());
        });
    }

    /// `[minibatch, k]`: the rows of all samples once the reduction is through.
    pub fn handed(&self) -> Tensor {
        let (samples, each) = self.handed;
        self.flat.narrow(0, 0, (samples * each) as i64).view([samples as i64, each as i64])
    }

    /// Whether these are the slots of the parameters at `active`, with so much handed over, that travel in `reduce`.
    pub fn fits(&self, active: &[usize], handed: (usize, usize), reduce: ReducePrecision) -> bool {
        self.active == active && self.handed == handed && self.halved.is_some() == (reduce == ReducePrecision::Bf16)
    }

    /// Indices of the parameters, in the order of [`Gradients::views`].
    #[must_use]
    pub fn active(&self) -> &[usize] {
        &self.active
    }

    /// Buckets of the last reduction that went out while backward still ran.
    #[cfg(test)]
    pub fn early(&self) -> usize {
        self.early
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
