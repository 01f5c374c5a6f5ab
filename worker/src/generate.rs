//! Images from the trained networks, made by all ranks together: for sample grids and for metrics.
//!
//! An image depends on its index and the run's seed alone, never on the rank that makes it.

use crate::models::Sampler;
use crate::trainer::{StepError, Trainer};
use common::growth::Level;
use common::seed::{Purpose, Stream};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Images taken through the network at once, so that memory stays bounded: this many pixels.
const PIXELS_AT_ONCE: u32 = 1 << 20;

/// Most bytes that one exchange between ranks carries.
const EXCHANGE: usize = 8 << 20;

/// The network's range [-1, 1] as bytes: `clip(round(x * 127.5 + 127.5), 0, 255)`.
#[must_use]
pub fn to_bytes(images: &Tensor) -> Vec<u8> {
    let scaled = (images * 127.5 + 127.5).round().clamp(0, 255).to_kind(Kind::Uint8).to_device(Device::Cpu);
    let mut bytes = vec![0u8; scaled.numel()];
    scaled.contiguous().copy_data_u8(&mut bytes, scaled.numel());
    bytes
}

/// The latents of images `indices`, one stream each.
pub fn latents(seed: u64, purpose: Purpose, indices: &Range<u32>, size: u32, device: Device) -> Tensor {
    let mut values = vec![0.0f32; indices.len() * size as usize];
    for (row, index) in values.chunks_exact_mut(size as usize).zip(indices.clone()) {
        Stream::new(seed, purpose, 0, u64::from(index)).normals(row);
    }
    Tensor::from_slice(&values).view([indices.len() as i64, i64::from(size)]).to_device(device)
}

/// Images `indices` at `level`, CHW bytes one after the other, from latents made by `latents`.
#[must_use]
pub fn images(
    sampler: &dyn Sampler,
    level: &Level,
    indices: Range<u32>,
    latents: impl Fn(&Range<u32>) -> Tensor,
) -> Vec<u8> {
    let step = (PIXELS_AT_ONCE / level.resolution.pow(2)).clamp(1, 256);
    let pieces = indices.clone().step_by(step as usize).map(|start| start..(start + step).min(indices.end));
    pieces.flat_map(|piece| to_bytes(&sampler.sample(&latents(&piece), level))).collect()
}

/// `count` samples at `level`, made by all ranks and known to all. Every rank calls it at the same step. Nothing of a model that
/// is no sampler.
///
/// # Errors
/// When a rank is lost.
pub fn samples(trainer: &mut Trainer, purpose: Purpose, level: Level, count: u32) -> Result<Vec<u8>, StepError> {
    let (seed, device) = (trainer.config().seed, trainer.device());
    together(trainer, (3 * level.resolution.pow(2) as usize, u32::MAX), count, |trainer, mine| {
        let sampler = trainer.model().role().sampler();
        sampler.map_or_else(Vec::new, |sampler| {
            let size = sampler.latent_size();
            images(sampler, &level, mine, |piece| latents(seed, purpose, piece, size, device))
        })
    })
}

/// `count` things of `each` bytes, made by all ranks and known to all: `make` is asked for a range of them, `at_once` at most. Every
/// rank calls it at the same step.
///
/// # Errors
/// When a rank is lost.
pub fn together(
    trainer: &mut Trainer,
    (each, at_once): (usize, u32),
    count: u32,
    mut make: impl FnMut(&Trainer, Range<u32>) -> Vec<u8>,
) -> Result<Vec<u8>, StepError> {
    let (rank, world) = (trainer.communicator().rank(), trainer.communicator().world());
    // each round, every rank makes the same number of them, and the round fits in one exchange
    let most = (EXCHANGE / each / world as usize).clamp(1, count.max(1).min(at_once) as usize) as u32;
    let mut all = Vec::with_capacity(count as usize * each);
    let mut start = 0;
    while start < count {
        let round = (most * world).min(count - start);
        let share = round.div_ceil(world);
        let mine = start + (share * rank).min(round)..start + (share * (rank + 1)).min(round);
        let made = make(trainer, mine);
        for bytes in trainer.communicator().gather(made)? {
            all.extend_from_slice(&bytes);
        }
        start += round;
    }
    Ok(all)
}
