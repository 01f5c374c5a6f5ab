//! How long training stands still for a checkpoint, where the state has to come from a GPU: into pinned memory, and what the way is worth
//! beside memory that is not.

use crate::Failure;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use worker::checkpoint::snapshot::{LivePart, copy};

/// Times that it is tried; the first makes the memory.
const TIMES: usize = 5;

/// What was measured.
pub struct Stall {
    /// Of the state.
    pub bytes: u64,
    /// The first time, and the middle one of the others.
    pub first: Duration,
    pub later: Duration,
    /// The same into memory that is not pinned, tensor by tensor.
    pub pageable: Duration,
}

/// Copies a state of `parts` parts of `numbers` numbers each.
pub fn measure(device: Device, parts: usize, numbers: i64) -> Result<Stall, Failure> {
    let part = |i: usize| LivePart {
        name: format!("part {i}"),
        tensors: vec![("weight".to_owned(), Tensor::full([numbers], i as f64, (Kind::Float, device)))],
    };
    let live: Vec<LivePart> = (0..parts).map(part).collect();
    let all: Vec<&LivePart> = live.iter().collect();
    let mut times = Vec::new();
    for _ in 0..TIMES {
        settle(device);
        let began = Instant::now();
        let copied = copy(&all);
        times.push(began.elapsed());
        // what was copied is what was there
        let (_, entry) = copied[parts - 1].encode()?;
        let expected = vec![(parts - 1) as f32; numbers as usize];
        if entry.tensors[0].hash != common::checkpoint::Digest::of(bytemuck::cast_slice(&expected)) {
            return Err("a copy differs from what was copied".into());
        }
    }
    settle(device);
    let began = Instant::now();
    let kept: Vec<Tensor> = live.iter().map(|part| part.tensors[0].1.to_device(Device::Cpu).copy()).collect();
    let pageable = began.elapsed();
    drop(kept);
    let first = times.remove(0);
    times.sort_unstable();
    Ok(Stall { bytes: live.iter().map(LivePart::bytes).sum(), first, later: times[times.len() / 2], pageable })
}

fn settle(device: Device) {
    if let Device::Cuda(gpu) = device {
        tch::Cuda::synchronize(gpu as i64);
    }
}
