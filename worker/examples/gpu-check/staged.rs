//! NCCL as a collective on host memory: numbers go to the GPU, are summed there, and come back. For the contract, which knows
//! no devices; nobody should train with it.

use collective::{Aborter, Collective, CollectiveError, Part, Traffic, TreeSum};
use half::bf16;
use native::DeviceBuffer;
use std::time::Duration;
use tch::{Device, Kind, Tensor};
use worker::ranks::Ranks;

pub struct Staged {
    ranks: Ranks,
    device: Device,
    bytes: u64,
}

impl Staged {
    /// For the ranks of a group on GPUs.
    pub fn new(ranks: Ranks, device: Device) -> Self {
        Self { ranks, device, bytes: 0 }
    }

    /// Of each number so many bytes travel.
    fn sum(&mut self, numbers: &mut [f32], kind: Kind, bytes: usize) -> Result<(), CollectiveError> {
        let there = Tensor::from_slice(numbers).to_device(self.device).to_kind(kind);
        let buffer = DeviceBuffer::new(&there).map_err(|error| CollectiveError::Device(error.to_string()))?;
        self.ranks.launch(buffer)?;
        self.ranks.finish()?;
        there.to_device(Device::Cpu).to_kind(Kind::Float).copy_data(numbers, numbers.len());
        // what a ring sends; NCCL does not say
        let world = u64::from(self.world());
        self.bytes += 2 * (world - 1) * (numbers.len() * bytes) as u64 / world;
        Ok(())
    }
}

impl Collective for Staged {
    fn rank(&self) -> u32 {
        self.ranks.mesh().rank()
    }

    fn world(&self) -> u32 {
        self.ranks.mesh().world()
    }

    fn generation(&self) -> u64 {
        self.ranks.mesh().generation()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.ranks.set_deadline(deadline);
    }

    fn all_reduce_sum_f32(&mut self, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        self.sum(numbers, Kind::Float, size_of::<f32>())
    }

    fn all_reduce_sum_bf16(&mut self, numbers: &mut [bf16]) -> Result<(), CollectiveError> {
        let mut single: Vec<f32> = numbers.iter().map(|number| number.to_f32()).collect();
        self.sum(&mut single, Kind::BFloat16, size_of::<bf16>())?;
        numbers.iter_mut().zip(single).for_each(|(number, sum)| *number = bf16::from_f32(sum));
        Ok(())
    }

    fn all_reduce_sum_f64(&mut self, numbers: &mut [f64]) -> Result<(), CollectiveError> {
        self.ranks.together(|mesh| mesh.all_reduce_sum_f64(numbers))
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.ranks.together(|mesh| mesh.all_gather_bytes(mine))
    }

    fn broadcast(&mut self, part: Part<'_, '_>, root: u32, to: &[u32]) -> Result<(), CollectiveError> {
        self.ranks.together(|mesh| mesh.broadcast(part, root, to))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.ranks.together(|mesh| mesh.barrier())
    }

    fn echo(&mut self, bytes: usize) -> Result<Vec<Duration>, CollectiveError> {
        self.ranks.together(|mesh| mesh.echo(bytes))
    }

    fn tree_sum_f32(&mut self, mine: &TreeSum, out: &mut [f32]) -> Result<(), CollectiveError> {
        self.ranks.together(|mesh| mesh.tree_sum_f32(mine, out))
    }

    fn check(&mut self) -> Result<(), CollectiveError> {
        self.ranks.together(|mesh| mesh.check())
    }

    fn aborter(&self) -> Aborter {
        self.ranks.mesh().aborter()
    }

    fn traffic(&self) -> Traffic {
        let mesh = self.ranks.mesh().traffic();
        Traffic { bytes: mesh.bytes + self.bytes, ..mesh }
    }
}
