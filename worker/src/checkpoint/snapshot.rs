//! The state of a run as named tensors in parts, copied out of the model's memory and put back into it.
//!
//! Training stands still for [`copy`] only. Encoding and hashing work on the copy, in another thread.
//!
//! Names: `g.16.conv0.weight` is a weight (`d.0.dense.u` what a network remembers besides), `average.<weight>` its moving average, `first.<weight>` and `second.<weight>` its
//! moments. A part holds one block (`g.16`) whole, so that blocks which have not grown yet keep their hash.

use crate::parameters::Parameters;
use crate::trainer::Trainer;
use bytes::Bytes;
use common::checkpoint::{BlobRef, Digest, Dtype, Part, TensorRef};
use native::HostF32;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as SafeDtype, TensorView, serialize};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Device, Kind, Tensor, no_grad};

/// A part whose bytes do not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The blob is not safetensors.
    #[error("part {part} is not a safetensors file: {why}")]
    Format {
        /// Name of the part.
        part: String,
        /// What the reader says.
        why: String,
    },
    /// A tensor is missing, superfluous or of another shape: the checkpoint is of another architecture.
    #[error("tensor {tensor} of part {part} {why}: the checkpoint belongs to another network")]
    Mismatch {
        /// Name of the part.
        part: String,
        /// Name of the tensor.
        tensor: String,
        /// What is wrong with it.
        why: String,
    },
}

/// One part of the state: tensors that share memory with the model.
pub struct LivePart {
    /// Name of the part: `g.16`.
    pub name: String,
    /// Name and tensor, in the order in which they are written.
    pub tensors: Vec<(String, Tensor)>,
}

impl LivePart {
    /// Size of its tensors in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, t)| t.numel() as u64 * 4).sum()
    }
}

/// One part, copied: nothing of it changes any more.
pub struct CopiedPart {
    name: String,
    tensors: Vec<(String, Vec<usize>, HostF32)>,
}

/// The whole state as parts, in order of name.
#[must_use]
pub fn live(trainer: &Trainer) -> Vec<LivePart> {
    let mut parts: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
    let mut add = |prefix: &str, parameters: &Parameters| {
        for (spec, tensor) in parameters.specs().iter().zip(parameters.tensors()) {
            let part = spec.name.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
            parts.entry(part).or_default().push((format!("{prefix}{}", spec.name), tensor.detach()));
        }
    };
    let model = trainer.model();
    for (module, optimizer) in model.modules().iter().zip(trainer.optimizers()) {
        add("", model.parameters(module));
        add("first.", optimizer.first());
        add("second.", optimizer.second());
    }
    if let Some((_, average)) = model.average() {
        add("average.", average);
    }
    if let Some(memory) = model.memory() {
        add("", memory);
    }
    parts.into_iter().map(|(name, tensors)| LivePart { name, tensors }).collect()
}

/// The tensors of `part` in host memory: they themselves where they lie there, else copies.
#[must_use]
pub fn host(part: &LivePart) -> Vec<Tensor> {
    part.tensors.iter().map(|(_, tensor)| tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous()).collect()
}

/// Puts what [`host`] gave for `part`, and somebody has changed, into `part`.
pub fn take(part: &LivePart, host: &[Tensor]) {
    no_grad(|| {
        for ((_, tensor), host) in part.tensors.iter().zip(host).filter(|((_, tensor), host)| !shares(tensor, host)) {
            tensor.shallow_clone().copy_(host);
        }
    });
}

/// Whether two tensors are one in memory.
fn shares(one: &Tensor, other: &Tensor) -> bool {
    one.device() == other.device() && one.data_ptr() == other.data_ptr()
}

/// Copies parts into host memory. This is the stall of a checkpoint.
///
/// What lies on a GPU is copied by the GPU itself, all of it one after the other, into memory that is pinned for that (libtorch keeps such memory
/// for the next time, and rounds each tensor's up to a power of two): it is waited for once.
#[must_use]
pub fn copy(parts: &[&LivePart]) -> Vec<CopiedPart> {
    let under_way = |tensor: &Tensor| tensor.to_dtype_layout((Kind::Float, Device::Cpu), true, true);
    let copies: Vec<Vec<Tensor>> =
        parts.iter().map(|part| part.tensors.iter().map(|(_, tensor)| under_way(tensor)).collect()).collect();
    let devices: BTreeSet<usize> = (parts.iter().flat_map(|part| &part.tensors))
        .filter_map(|(_, tensor)| if let Device::Cuda(gpu) = tensor.device() { Some(gpu) } else { None })
        .collect();
    for gpu in devices {
        tch::Cuda::synchronize(gpu as i64);
    }
    let copied = |(part, copies): (&&LivePart, Vec<Tensor>)| CopiedPart {
        name: part.name.clone(),
        tensors: (part.tensors.iter().zip(copies))
            .map(|((name, _), copy)| {
                let shape = copy.size().iter().map(|&d| d as usize).collect();
                let host = HostF32::new(&copy.contiguous()).expect("a copy is contiguous floats in host memory");
                (name.clone(), shape, host)
            })
            .collect(),
    };
    parts.iter().zip(copies).map(copied).collect()
}

impl CopiedPart {
    /// Its safetensors file and its entry in the manifest.
    ///
    /// # Errors
    /// When safetensors refuses, which would be a defect.
    pub fn encode(&self) -> Result<(Bytes, Part), safetensors::SafeTensorError> {
        let mut views = Vec::with_capacity(self.tensors.len());
        let mut refs = Vec::with_capacity(self.tensors.len());
        for (name, shape, host) in &self.tensors {
            let bytes: &[u8] = bytemuck::cast_slice(host.as_slice());
            views.push((name.as_str(), TensorView::new(SafeDtype::F32, shape.clone(), bytes)?));
            refs.push(TensorRef {
                name: name.clone(),
                dtype: Dtype::F32,
                shape: shape.iter().map(|&d| d as u64).collect(),
                hash: Digest::of(bytes),
            });
        }
        let file = Bytes::from(serialize(views, None)?);
        let blob = BlobRef { hash: Digest::of(&file), bytes: file.len() as u64 };
        Ok((file, Part { name: self.name.clone(), blob, tensors: refs }))
    }
}

/// Puts the tensors of the file `bytes` into `part`, which must be exactly those. Everything is checked before anything
/// is written.
///
/// # Errors
/// When the file is damaged or of another network.
pub fn restore(part: &LivePart, bytes: &[u8]) -> Result<(), RestoreError> {
    let file = read(part, bytes)?;
    if let Some(extra) = file.names().iter().find(|n| !part.tensors.iter().any(|(name, _)| name == *n)) {
        return Err(mismatch(part, extra, "is unknown".to_owned()));
    }
    fill(part, &file)
}

/// The same for some of the file's tensors; the others are passed over.
///
/// # Errors
/// When the file is damaged or of another network.
pub fn restore_some(part: &LivePart, bytes: &[u8]) -> Result<(), RestoreError> {
    fill(part, &read(part, bytes)?)
}

fn read<'a>(part: &LivePart, bytes: &'a [u8]) -> Result<SafeTensors<'a>, RestoreError> {
    SafeTensors::deserialize(bytes).map_err(|e| RestoreError::Format { part: part.name.clone(), why: e.to_string() })
}

fn mismatch(part: &LivePart, tensor: &str, why: String) -> RestoreError {
    RestoreError::Mismatch { part: part.name.clone(), tensor: tensor.to_owned(), why }
}

fn fill(part: &LivePart, file: &SafeTensors<'_>) -> Result<(), RestoreError> {
    let mut found = Vec::with_capacity(part.tensors.len());
    for (name, tensor) in &part.tensors {
        let view = file.tensor(name).map_err(|_| mismatch(part, name, "is missing".to_owned()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
        if view.dtype() != SafeDtype::F32 || shape != tensor.size() {
            let why = format!("is {:?} {shape:?}, expected F32 {:?}", view.dtype(), tensor.size());
            return Err(mismatch(part, name, why));
        }
        found.push((tensor, view.data(), shape));
    }
    no_grad(|| {
        for (tensor, data, shape) in found {
            tensor.shallow_clone().copy_(&Tensor::from_data_size(data, &shape, Kind::Float));
        }
    });
    Ok(())
}
