//! The discriminator that judges patches, CycleGAN's and pix2pix's, what its scores are held against, and several of them heard alike.
//!
//! Its norms know one sample only: instance norm, or with a learned scale and shift, which is what batch norm is at the authors'
//! batch of one.

use super::blocks::{Norm, each, leaky, single};
use super::{Batch, Draw};
use crate::parameters::Parameters;
use common::families::cyclegan::GanLoss;
use common::families::patchgan::{Layer, PatchGan};
use common::seed::{Purpose, Stream};
use tch::Tensor;

/// Weight of the gradient penalty of `gan_loss = "wgangp"`.
const PENALTY: f64 = 10.0;

/// An image to a map of scores, one for each patch (gan.md 2.2).
#[derive(Debug)]
pub struct Judge {
    layers: Vec<(Tensor, Option<Tensor>, Norm, Layer)>,
    loss: GanLoss,
}

/// The judges of one domain, each of patches of its own size, heard alike.
#[derive(Debug)]
pub struct Panel(Vec<Judge>);

impl Panel {
    /// Judges by what their parameters' names begin with.
    #[must_use]
    pub fn new(of: &[(String, PatchGan)], parameters: &Parameters, loss: GanLoss) -> Self {
        Self(of.iter().map(|(prefix, patches)| Judge::new(patches, parameters, prefix, loss)).collect())
    }

    /// One after the other.
    #[cfg(test)]
    pub fn judges(&self) -> &[Judge] {
        &self.0
    }

    /// How far they are from taking `images` for real, for each sample: what G is to make less.
    pub fn from_real(&self, images: &Tensor) -> Tensor {
        let distance = |judge: &Judge| judge.distance(&judge.score(images), true);
        self.mean(self.0.iter().map(distance))
    }

    /// As [`Judge::errors`]; `number` tells apart the panels of one loss, which are `panels`.
    pub fn errors(
        &self,
        real: &Tensor,
        made: &Tensor,
        (number, panels): (usize, usize),
        batch: &Batch,
        draw: &Draw,
    ) -> [Tensor; 3] {
        let of_each: Vec<[Tensor; 3]> = self
            .0
            .iter()
            .enumerate()
            .map(|(i, judge)| judge.errors(real, made, number + i * panels, batch, draw))
            .collect();
        [0, 1, 2].map(|what| self.mean(of_each.iter().map(|of_one| of_one[what].shallow_clone())))
    }

    fn mean(&self, of_each: impl Iterator<Item = Tensor>) -> Tensor {
        let sum = of_each
            .reduce(|one, other| one + other)
            .expect("there is a judge: neither an experiment file nor a stored architecture may have none");
        if self.0.len() == 1 { sum } else { sum / self.0.len() as f64 }
    }
}

impl Judge {
    /// The discriminator `prefix` of `parameters`, whose scores are held against `loss`.
    #[must_use]
    pub fn new(of: &PatchGan, parameters: &Parameters, prefix: &str, loss: GanLoss) -> Self {
        let layer = |layer: Layer| {
            let name = format!("{prefix}{}", layer.place);
            let affine = of.affine && layer.normed;
            let bias = (!affine).then(|| parameters.get(&format!("{name}.bias")).shallow_clone());
            let norm = match affine {
                true => Norm::affine(parameters, &format!("{prefix}{}", layer.place + 1)),
                false => Norm::Plain,
            };
            (parameters.get(&format!("{name}.weight")).shallow_clone(), bias, norm, layer)
        };
        Self { layers: of.layers().into_iter().map(layer).collect(), loss }
    }

    /// `[n, c, h, w] -> [n, 1, ., .]`.
    pub fn score(&self, images: &Tensor) -> Tensor {
        let mut x = images.shallow_clone();
        let last = self.layers.len() - 1;
        for (i, (weight, bias, norm, layer)) in self.layers.iter().enumerate() {
            let padding = if layer.kernel > 1 { 1 } else { 0 };
            x = x.conv2d(weight, bias.as_ref(), layer.stride, padding, 1, 1);
            if layer.normed {
                x = norm.apply(x);
            }
            if i < last {
                x = leaky(x);
            }
        }
        single(x)
    }

    /// How far scores are from what they are to be, for each sample (gan.md 2.3).
    pub fn distance(&self, scores: &Tensor, real: bool) -> Tensor {
        each(&match (self.loss, real) {
            (GanLoss::Lsgan, true) => (scores - 1.0).square(),
            (GanLoss::Lsgan, false) => scores.square(),
            (GanLoss::Vanilla, true) => (-scores).softplus(),
            (GanLoss::Vanilla, false) => scores.softplus(),
            (GanLoss::Wgangp, true) => -scores,
            (GanLoss::Wgangp, false) => scores.shallow_clone(),
        })
    }

    /// Half of what it is wrong about real images and about made ones, for each sample, with the penalty where there is one; and the
    /// scores of both. `number` tells apart several judges of one loss.
    pub fn errors(&self, real: &Tensor, made: &Tensor, number: usize, batch: &Batch, draw: &Draw) -> [Tensor; 3] {
        let scores = self.score(&Tensor::cat(&[real, made], 0));
        let (of_real, of_made) = (scores.narrow(0, 0, batch.len()), scores.narrow(0, batch.len(), batch.len()));
        let mut errors = (self.distance(&of_real, true) + self.distance(&of_made, false)) * 0.5;
        if self.loss == GanLoss::Wgangp {
            errors += self.penalty(real, made, number, batch, draw);
        }
        [errors, each(&of_real.detach()), each(&of_made.detach())]
    }

    /// `PENALTY * (|grad D(mix)| - 1)^2` on images between real and made ones (Gulrajani et al. 2017), for each sample.
    fn penalty(&self, real: &Tensor, made: &Tensor, number: usize, batch: &Batch, draw: &Draw) -> Tensor {
        let share = |sample: u32| {
            let mut stream = Stream::new(draw.seed, Purpose::PenaltyMix, draw.step, u64::from(sample));
            (0..number).for_each(|_| _ = stream.uniform());
            stream.uniform()
        };
        let shares: Vec<f32> = batch.samples.clone().map(share).collect();
        let u = Tensor::from_slice(&shares).to_kind(draw.kind).to_device(draw.device).view([-1, 1, 1, 1]);
        let mix = (made + u * (real - made)).detach().set_requires_grad(true);
        let scores = self.score(&mix);
        let slope = Tensor::run_backward(&[scores.sum(scores.kind())], &[&mix], true, true);
        let norm = (slope[0].flatten(1, -1) + 1e-16).norm_scalaropt_dim(2, &[1i64][..], false);
        (norm - 1.0).square() * PENALTY
    }
}
