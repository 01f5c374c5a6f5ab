//! Named tensors of a network, in the order of their specification.
//!
//! tch's `VarStore` orders by name and hides how a value was drawn; here both are ours, since checkpoints, reductions and
//! bit-exact resumes depend on them.

use common::families::{Init, ParameterSpec};
use common::seed::{Purpose, Stream};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// The parameters of one module.
#[derive(Debug)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

impl Parameters {
    /// Draws every parameter from the run's seed. `first` is the number of the first one within the run, so that no two
    /// modules share a stream.
    #[must_use]
    pub fn draw(specs: Vec<ParameterSpec>, seed: u64, first: u64, kind: Kind, device: Device) -> Self {
        let tensors = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| match spec.init {
                Init::Zero => Tensor::zeros(&spec.shape, (kind, device)),
                init => {
                    let stream = Stream::new(seed, Purpose::Init, first + i as u64, 0);
                    let values = draw(init, stream, spec.numel() as usize);
                    Tensor::from_slice(&values).view(&spec.shape[..]).to_kind(kind).to_device(device)
                }
            })
            .collect();
        Self::from_parts(specs, tensors)
    }

    fn from_parts(specs: Vec<ParameterSpec>, tensors: Vec<Tensor>) -> Self {
        let index = specs.iter().enumerate().map(|(i, spec)| (spec.name.clone(), i)).collect();
        Self { specs, tensors, index }
    }

    /// A deep copy under the same names, without gradients.
    #[must_use]
    pub fn copy(&self) -> Self {
        let tensors = self.tensors.iter().map(|t| t.detach().copy()).collect();
        Self::from_parts(self.specs.clone(), tensors)
    }

    /// The same shapes, all zero: a place for moments.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        let tensors = self.tensors.iter().map(|t| t.detach().zeros_like()).collect();
        Self::from_parts(self.specs.clone(), tensors)
    }

    /// The tensor of that name.
    ///
    /// # Panics
    /// When the module has none: a defect of the network's code, not of any input.
    pub fn get(&self, name: &str) -> &Tensor {
        let index = self.index.get(name).unwrap_or_else(|| panic!("the network has no parameter {name}"));
        &self.tensors[*index]
    }

    /// What the parameters are, in order.
    #[must_use]
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// The tensors, in the same order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Number of parameters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Lets exactly the parameters at `active` collect gradients.
    pub fn require_gradients(&self, active: &[usize]) {
        let mut wanted = vec![false; self.tensors.len()];
        for &i in active {
            wanted[i] = true;
        }
        for (tensor, wanted) in self.tensors.iter().zip(wanted) {
            if tensor.requires_grad() != wanted {
                let _same = tensor.set_requires_grad(wanted);
            }
        }
    }
}

/// `count` initial values.
fn draw(init: Init, mut stream: Stream, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    match init {
        Init::Zero => {}
        Init::Normal => stream.normals(&mut values),
        Init::Gaussian { mean, deviation } => {
            stream.normals(&mut values);
            values.iter_mut().for_each(|value| *value = mean + *value * deviation);
        }
        Init::Uniform(bound) => values.iter_mut().for_each(|value| *value = (2.0 * stream.uniform() - 1.0) * bound),
        Init::Direction => {
            stream.normals(&mut values);
            let length = values.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            values.iter_mut().for_each(|value| *value /= length);
        }
    }
    values
}
