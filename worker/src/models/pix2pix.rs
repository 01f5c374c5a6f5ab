//! pix2pix (Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017): nets, losses, phases, in
//! this order. Sizes, names and defaults are `common::families::pix2pix`.
//!
//! D takes its step first, G second, both over the same pairs; what G drops is drawn for each sample and step, so that both see the
//! same made images. Norms know one sample only: the authors' batch norm at their batch of one, at any minibatch.

use super::blocks::{Norm, l1, leaky, range};
use super::patchgan::Judge;
use super::{Batch, Draw, GanModel, Loss, Phase, Role, Translator, mean};
use crate::parameters::Parameters;
use common::families::pix2pix::{Architecture, Direction};
use common::growth::Level;
use common::schedule::Stage;
use common::seed::{Purpose, Stream};
use tch::{Device, Kind, Tensor, no_grad};

/// Share of activations that is dropped where any is.
const DROPPED: f32 = 0.5;

/// An image to an image: down to one pixel and up again, what came down beside what goes up (gan.md 3).
#[derive(Debug)]
struct UNet {
    /// From the outermost.
    down: Vec<(Tensor, Option<Norm>)>,
    /// From the outermost, with whether it drops activations.
    up: Vec<(Tensor, Option<Norm>, bool)>,
    /// Of the last layer.
    bias: Tensor,
}

impl UNet {
    fn new(a: &Architecture, p: &Parameters) -> Self {
        let weight = |name: String| p.get(&format!("{name}.weight")).shallow_clone();
        let norm = |name: String| Norm::affine(p, &format!("{name}.norm"));
        let n = a.g_downs;
        Self {
            down: (1..=n)
                .map(|i| (weight(format!("g.down{i}")), (i > 1 && i < n).then(|| norm(format!("g.down{i}")))))
                .collect(),
            up: (1..=n)
                .map(|i| (weight(format!("g.up{i}")), (i > 1).then(|| norm(format!("g.up{i}"))), a.drops(i)))
                .collect(),
            bias: p.get("g.up1.bias").shallow_clone(),
        }
    }

    /// `[n, 3, h, w] -> [n, 3, h, w]` in [-1, 1]; `dropout` gives a mask for a shape, and for the layer it is for.
    fn forward(&self, images: &Tensor, dropout: &dyn Fn(&[i64], usize) -> Tensor) -> Tensor {
        let mut beside: Vec<Tensor> = Vec::with_capacity(self.down.len());
        for (weight, norm) in &self.down {
            let x = match beside.last_mut() {
                // in place: on the way up a rectifier makes both the same
                Some(above) => {
                    *above = leaky(above.shallow_clone());
                    above.conv2d(weight, None::<&Tensor>, 2, 1, 1, 1)
                }
                None => images.conv2d(weight, None::<&Tensor>, 2, 1, 1, 1),
            };
            beside.push(match norm {
                Some(norm) => norm.apply(x),
                None => x,
            });
        }
        let mut x: Option<Tensor> = None;
        for (i, (weight, norm, drops)) in self.up.iter().enumerate().rev() {
            let input = match x {
                Some(x) => Tensor::cat(&[&beside[i], &x], 1).relu(),
                None => beside[i].relu(),
            };
            let bias = if i == 0 { Some(&self.bias) } else { None };
            let mut made = input.conv_transpose2d(weight, bias, 2, 1, 0, 1, 1);
            if let Some(norm) = norm {
                made = norm.apply(made);
            }
            if *drops {
                made = &made * dropout(&made.size(), i);
            }
            x = Some(made);
        }
        x.expect("a network has layers").tanh()
    }
}

/// Masks of dropout, `[n, c, h, w]`: 0, or what makes up for it; for each sample from the stream that `stream` gives.
fn mask(shape: &[i64], layer: usize, stream: impl Fn(usize) -> Stream, kind: Kind, device: Device) -> Tensor {
    let each = shape[1..].iter().product::<i64>() as usize;
    let mut values = vec![0.0f32; shape[0] as usize * each];
    for (sample, row) in values.chunks_exact_mut(each).enumerate() {
        let mut stream = stream(sample).of(layer as u64);
        row.iter_mut().filter(|_| stream.uniform() >= DROPPED).for_each(|value| *value = 1.0 / (1.0 - DROPPED));
    }
    Tensor::from_slice(&values).view(shape).to_kind(kind).to_device(device)
}

/// Both networks and their phases.
pub struct Pix2Pix {
    architecture: Architecture,
    phases: [Phase; 2],
    g: Parameters,
    d: Parameters,
    generator: UNet,
    judge: Judge,
}

impl Pix2Pix {
    /// Draws both networks from the run's seed.
    #[must_use]
    pub fn new(architecture: Architecture, seed: u64, kind: Kind, device: Device) -> Self {
        let (of_g, of_d) = (architecture.generator(), architecture.discriminator());
        let first_of_d = of_g.len() as u64;
        let g = Parameters::draw(of_g, seed, 0, kind, device);
        let d = Parameters::draw(of_d, seed, first_of_d, kind, device);
        Self {
            phases: [
                // the images of a step count once: with the last phase that is shown them
                Phase { name: "d", module: "d", repeats: 1, reads_images: true, counts_images: false, averages: false },
                Phase { name: "g", module: "g", repeats: 1, reads_images: true, counts_images: true, averages: false },
            ],
            generator: UNet::new(&architecture, &g),
            judge: Judge::new(&architecture.patches(), &d, "d.", architecture.gan_loss),
            architecture,
            g,
            d,
        }
    }

    /// What is translated, and what it is to become.
    fn pair(&self, batch: &Batch, draw: &Draw) -> [Tensor; 2] {
        let [source, target] = match self.architecture.direction {
            Direction::A2b => [0, 1],
            Direction::B2a => [1, 0],
        };
        [source, target].map(|domain: usize| {
            let bytes = batch.real.get(domain).expect("both phases read pairs of images");
            range(bytes, draw.kind)
        })
    }

    fn make(&self, source: &Tensor, batch: &Batch, draw: &Draw) -> Tensor {
        let first = batch.samples.start;
        let stream = |i: usize| Stream::new(draw.seed, Purpose::Dropout, draw.step, u64::from(first) + i as u64);
        self.generator.forward(source, &|shape, layer| mask(shape, layer, stream, draw.kind, draw.device))
    }

    /// Half of what D is wrong about true and about made images, each beside what it was made of (gan.md 3).
    fn discriminator_loss(&self, batch: &Batch, draw: &Draw) -> Loss {
        let [source, target] = self.pair(batch, draw);
        let made = no_grad(|| self.make(&source, batch, draw));
        let beside = |image: &Tensor| Tensor::cat(&[&source, image], 1);
        let errors = self.judge.errors(&beside(&target), &beside(&made), 0, batch, draw);
        let [objective, of_real, of_fake] = errors.map(|errors| mean(&errors, batch));
        let statistics = vec![("loss/d", objective.detach()), ("score/real", of_real), ("score/fake", of_fake)];
        Loss { objective, statistics, handed: None }
    }

    /// `GAN + lambda_l1 |made - true|` (equation 4).
    fn generator_loss(&self, batch: &Batch, draw: &Draw) -> Loss {
        let [source, target] = self.pair(batch, draw);
        let made = self.make(&source, batch, draw);
        let scores = self.judge.score(&Tensor::cat(&[&source, &made], 1));
        let gan = mean(&self.judge.distance(&scores, true), batch);
        let l1 = mean(&l1(&made, &target), batch);
        let objective = &gan + &l1 * self.architecture.lambda_l1;
        let statistics = vec![("loss/g", objective.detach()), ("loss/g_gan", gan.detach()), ("l1/true", l1.detach())];
        Loss { objective, statistics, handed: None }
    }
}

impl GanModel for Pix2Pix {
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
            other => panic!("pix2pix has no module {other}"),
        }
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

    fn role(&self) -> Role<'_> {
        Role::Translator(self)
    }
}

impl Translator for Pix2Pix {
    fn directions(&self) -> &[&'static str] {
        match self.architecture.direction {
            Direction::A2b => &["a2b"],
            Direction::B2a => &["b2a"],
        }
    }

    fn source(&self, _direction: usize) -> usize {
        match self.architecture.direction {
            Direction::A2b => 0,
            Direction::B2a => 1,
        }
    }

    /// With dropout, as the authors do, but always the same.
    fn translate(&self, _direction: usize, images: &Tensor) -> Tensor {
        let stream = |_| Stream::new(0, Purpose::Dropout, u64::MAX, 0);
        let masks = |shape: &[i64], layer: usize| mask(shape, layer, stream, images.kind(), images.device());
        no_grad(|| self.generator.forward(images, &masks))
    }

    fn multiple(&self) -> u32 {
        1 << self.architecture.g_downs
    }
}

#[cfg(test)]
mod tests;
