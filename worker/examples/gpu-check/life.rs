//! The life of a group of one GPU: met, summed, aborted in the midst of a sum, and met again.

use crate::{Failure, form};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use worker::communicator::Communicator;

/// Lives, of which the first loads what NCCL loads once.
const LIVES: usize = 5;
/// An aborted sum ends within this time, whatever was under way.
const NEWS: Duration = Duration::from_secs(2);

/// Milliseconds of each part of each life.
pub fn measure() -> Result<Value, Failure> {
    let options = (Kind::Float, Device::Cuda(0));
    let mut lives = Vec::new();
    for _ in 0..LIVES {
        let began = Instant::now();
        let ranks = form(1).pop().ok_or("no rank")?;
        let mut communicator = Communicator::of(ranks);
        let met = began.elapsed();
        let buffer = Tensor::ones([1 << 20], options);
        let began = Instant::now();
        communicator.launcher().sum(&buffer);
        communicator.wait()?;
        let summed = began.elapsed();
        if buffer.sum(Kind::Float).double_value(&[]) != f64::from(1 << 20) {
            return Err("the sum over one rank is not what it was".into());
        }
        communicator.launcher().sum(&buffer);
        let began = Instant::now();
        communicator.aborter().abort();
        let _ended = communicator.wait();
        let known = began.elapsed();
        if communicator.barrier().is_ok() {
            return Err("a group that was aborted still meets".into());
        }
        drop(communicator);
        let gone = began.elapsed();
        if known > NEWS {
            return Err(format!("an aborted sum ended after {known:?} only").into());
        }
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
        lives.push(json!({"met_ms": ms(met), "summed_ms": ms(summed), "aborted_ms": ms(known), "gone_ms": ms(gone)}));
    }
    Ok(Value::Array(lives))
}
