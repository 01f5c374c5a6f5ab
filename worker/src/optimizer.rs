//! Adam with its moments in plain sight, one for each module: they are part of a checkpoint, and are reset as the networks grow.
//!
//! Decides nothing on the host: whether a step is skipped is a number on the device.

use crate::parameters::Parameters;
use common::config::resolved::Adam;
use common::schedule::Stage;
use native::{AdamConstants, NativeError};
use tch::{Device, Kind, Tensor, no_grad};

/// First and second moments of one module's parameters, and the number of steps they have seen since the last reset.
#[derive(Debug)]
pub struct Optimizer {
    constants: Adam,
    /// What the learning rate is multiplied by.
    rate: f64,
    first: Parameters,
    second: Parameters,
    /// One float on the device: one count for all parameters, as in the authors' code.
    steps: Tensor,
}

impl Optimizer {
    /// Fresh, for the `parameters` of `module`.
    #[must_use]
    pub fn new(constants: Adam, module: &str, parameters: &Parameters, device: Device) -> Self {
        Self {
            rate: constants.rate_of(module),
            constants,
            first: parameters.zeros_like(),
            second: parameters.zeros_like(),
            steps: Tensor::zeros([1], (Kind::Float, device)),
        }
    }

    /// Forgets all moments and steps (gan.md 1.8: whenever floor or ceil of lod changes).
    pub fn reset(&mut self) {
        no_grad(|| {
            for moment in self.first.tensors().iter().chain(self.second.tensors()) {
                let _zero = moment.shallow_clone().zero_();
            }
            let _zero = self.steps.zero_();
        });
    }

    /// Moves the parameters at `active` against `grads` (same order). Where `found_inf` holds 1, nothing changes.
    ///
    /// # Errors
    /// When libtorch refuses, which would be a defect.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        active: &[usize],
        grads: &[Tensor],
        found_inf: &Tensor,
        stage: &Stage,
    ) -> Result<(), NativeError> {
        let pick = |p: &Parameters| active.iter().map(|&i| p.tensors()[i].shallow_clone()).collect::<Vec<_>>();
        no_grad(|| {
            let taken: Tensor = 1.0 - found_inf;
            let _counted = self.steps.g_add_(&taken);
        });
        let adam = AdamConstants {
            learning_rate: stage.learning_rate * self.rate,
            beta1: self.constants.beta1,
            beta2: self.constants.beta2,
            epsilon: self.constants.epsilon,
        };
        let (first, second) = (pick(&self.first), pick(&self.second));
        native::fused_adam(&pick(parameters), grads, &first, &second, &self.steps, found_inf, adam)
    }

    /// First moments, by name.
    #[must_use]
    pub fn first(&self) -> &Parameters {
        &self.first
    }

    /// Second moments, by name.
    #[must_use]
    pub fn second(&self) -> &Parameters {
        &self.second
    }

    /// Steps since the last reset. Waits for the device.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.double_value(&[0]) as u64
    }

    /// Takes the count of a checkpoint.
    pub fn set_steps(&mut self, steps: u64) {
        no_grad(|| {
            let _same = self.steps.fill_(steps as f64);
        });
    }
}
