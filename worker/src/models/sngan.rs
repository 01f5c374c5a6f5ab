//! The fully connected SNGAN (Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018): nets,
//! losses, phases, in this order. Sizes, names and defaults are `common::families::sngan`.
//!
//! D's weights are divided by their largest singular value, which a power iteration follows from step to step. A loss takes
//! one iteration from the direction that is remembered and forgets it; [`GanModel::before_update`] takes the same one for good, once for each step
//! of D. So a loss changes no state, and every rank remembers the same.

use super::blocks::leaky;
use super::{Batch, Draw, GanModel, Loss, Phase, Role, Sampler, Whole, mean};
use crate::parameters::Parameters;
use common::families::sngan::Architecture;
use common::growth::Level;
use common::schedule::Stage;
use common::seed::Purpose;
use tch::{Device, Kind, Tensor, no_grad};

/// Keeps a length of zero from dividing.
const EPSILON: f64 = 1e-12;

/// Weight and bias of one layer, sharing memory with the parameters.
#[derive(Debug)]
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

/// The layers `network.0`, `network.1`, … of `parameters`.
fn layers(parameters: &Parameters, network: &str) -> Vec<Dense> {
    let tensor = |layer: usize, kind: &str| parameters.get(&format!("{network}.{layer}.dense.{kind}")).shallow_clone();
    (0..parameters.len() / 2)
        .map(|layer| Dense { weight: tensor(layer, "weight"), bias: tensor(layer, "bias") })
        .collect()
}

/// Latent to image: dense layers with ReLU between them and tanh at the end. Works on whichever weights it was made from.
#[derive(Debug)]
struct Generator {
    layers: Vec<Dense>,
    side: i64,
}

impl Generator {
    fn new(a: &Architecture, parameters: &Parameters) -> Self {
        Self { layers: layers(parameters, "g"), side: i64::from(a.resolution) }
    }

    /// `[n, latent] -> [n, 3, r, r]` in [-1, 1].
    fn forward(&self, latents: &Tensor) -> Tensor {
        let mut x = latents.shallow_clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = if i > 0 { x.relu() } else { x };
            x = x.linear(&layer.weight, Some(&layer.bias));
        }
        x.tanh().view([-1, 3, self.side, self.side])
    }
}

/// Image to score: dense layers of spectral norm one, leaky ReLU (slope 0.2) between them.
#[derive(Debug)]
struct Discriminator {
    layers: Vec<Dense>,
    /// Each layer's left singular vector as far as the power iteration has come.
    directions: Vec<Tensor>,
}

impl Discriminator {
    /// `[n, 3, r, r] -> [n]`.
    fn score(&self, images: &Tensor) -> Tensor {
        let mut x = images.flatten(1, -1);
        for (i, (layer, u)) in self.layers.iter().zip(&self.directions).enumerate() {
            x = if i > 0 { leaky(x) } else { x };
            let (u, v) = no_grad(|| iterate(&layer.weight, u));
            // u and v are constants to the gradient, sigma is not (section 2.1, equation 12)
            let sigma = u.dot(&layer.weight.mv(&v));
            x = x.linear(&(&layer.weight / sigma), Some(&layer.bias));
        }
        x.view([-1])
    }

    /// Takes the power iteration one step further, for good.
    fn remember(&self) {
        no_grad(|| {
            for (layer, u) in self.layers.iter().zip(&self.directions) {
                let (next, _) = iterate(&layer.weight, u);
                u.shallow_clone().copy_(&next);
            }
        });
    }
}

/// One step of the power iteration (algorithm 1): from `u` to the next `u`, and the `v` between them.
fn iterate(weight: &Tensor, u: &Tensor) -> (Tensor, Tensor) {
    let unit = |x: Tensor| {
        let length = x.norm().clamp_min(EPSILON);
        x / length
    };
    let v = unit(weight.tr().mv(u));
    (unit(weight.mv(&v)), v)
}

/// Both networks, the average of G, what the power iteration remembers, and their phases.
pub struct Sngan {
    architecture: Architecture,
    phases: Vec<Phase>,
    g: Parameters,
    d: Parameters,
    average: Parameters,
    directions: Parameters,
    generator: Generator,
    averaged: Generator,
    discriminator: Discriminator,
}

impl Sngan {
    /// Draws both networks from the run's seed.
    #[must_use]
    pub fn new(architecture: Architecture, d_repeats: u32, seed: u64, kind: Kind, device: Device) -> Self {
        let specs = [architecture.generator(), architecture.discriminator(), architecture.directions()];
        let mut first = 0;
        let [g, d, directions] = specs.map(|specs| {
            let count = specs.len() as u64;
            let drawn = Parameters::draw(specs, seed, first, kind, device);
            first += count;
            drawn
        });
        let average = g.copy();
        Self {
            phases: vec![
                Phase {
                    name: "d",
                    module: "d",
                    repeats: d_repeats,
                    reads_images: true,
                    counts_images: true,
                    averages: true,
                },
                Phase {
                    name: "g",
                    module: "g",
                    repeats: 1,
                    reads_images: false,
                    counts_images: false,
                    averages: false,
                },
            ],
            generator: Generator::new(&architecture, &g),
            averaged: Generator::new(&architecture, &average),
            discriminator: Discriminator {
                layers: layers(&d, "d"),
                directions: directions.tensors().iter().map(Tensor::shallow_clone).collect(),
            },
            architecture,
            g,
            d,
            average,
            directions,
        }
    }

    fn fakes(&self, purpose: Purpose, batch: &Batch, draw: &Draw) -> Tensor {
        self.generator.forward(&draw.normals(purpose, &batch.samples, self.architecture.latent_size))
    }

    /// Binary cross-entropy with logits: `softplus(-D(x)) + softplus(D(G(z)))`.
    fn discriminator_loss(&self, batch: &Batch, draw: &Draw) -> Loss {
        let bytes = batch.real.first().expect("the phase of D reads images");
        let real = bytes.to_kind(draw.kind) / 127.5 - 1.0;
        let fake = no_grad(|| self.fakes(Purpose::LatentD, batch, draw));
        let scores = self.discriminator.score(&Tensor::cat(&[&real, &fake], 0));
        let (of_real, of_fake) = (scores.narrow(0, 0, batch.len()), scores.narrow(0, batch.len(), batch.len()));
        let objective = mean(&((-&of_real).softplus() + of_fake.softplus()), batch);
        let statistics = vec![
            ("loss/d", objective.detach()),
            ("score/real", mean(&of_real.detach(), batch)),
            ("score/fake", mean(&of_fake.detach(), batch)),
        ];
        Loss { objective, statistics, handed: None }
    }

    /// The same with the real label, which does not saturate: `softplus(-D(G(z)))`.
    fn generator_loss(&self, batch: &Batch, draw: &Draw) -> Loss {
        let scores = self.discriminator.score(&self.fakes(Purpose::LatentG, batch, draw));
        let objective = mean(&(-scores).softplus(), batch);
        let statistics = vec![("loss/g", objective.detach())];
        Loss { objective, statistics, handed: None }
    }
}

impl GanModel for Sngan {
    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn modules(&self) -> &[&'static str] {
        &["d", "g"]
    }

    fn parameters(&self, module: &str) -> &Parameters {
        match module {
            "d" => &self.d,
            "g" => &self.g,
            other => panic!("SNGAN has no module {other}"),
        }
    }

    fn average(&self) -> Option<(&'static str, &Parameters)> {
        Some(("g", &self.average))
    }

    fn memory(&self) -> Option<&Parameters> {
        Some(&self.directions)
    }

    fn active(&self, module: &str, _level: &Level) -> Vec<usize> {
        // backward reaches the last layer first
        (0..self.parameters(module).len()).rev().collect()
    }

    fn loss(&self, phase: &Phase, _stage: &Stage, batch: &Batch, draw: &Draw) -> Loss {
        match phase.name {
            "d" => self.discriminator_loss(batch, draw),
            _ => self.generator_loss(batch, draw),
        }
    }

    fn before_update(&self, phase: &Phase, _whole: &Whole<'_>) {
        if phase.module == "d" {
            self.discriminator.remember();
        }
    }

    fn role(&self) -> Role<'_> {
        Role::Sampler(self)
    }
}

impl Sampler for Sngan {
    fn sample(&self, latents: &Tensor, _level: &Level) -> Tensor {
        no_grad(|| self.averaged.forward(latents))
    }

    fn latent_size(&self) -> u32 {
        self.architecture.latent_size
    }
}

#[cfg(test)]
mod tests;
