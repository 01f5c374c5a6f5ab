//! What the trainer knows of a GAN: named modules, phases, and a loss for each phase. One file per family.
//!
//! The trainer never says "generator": a family is its list of phases. Losses are sums over the samples given, divided by
//! the *global* minibatch, so that the sum over all workers is the loss of the whole minibatch, however it is dealt.

mod augment;
pub mod blocks;
pub mod cyclegan;
pub mod patchgan;
pub mod pix2pix;
pub mod progan;
pub mod sngan;

use crate::parameters::Parameters;
use common::config::resolved::{Model, RunConfig};
use common::growth::Level;
use common::schedule::Stage;
use common::seed::{Purpose, Stream};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// One kind of update: which module it trains and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Short name, also the name of its statistics: `d`, `g`.
    pub name: &'static str,
    /// Module whose parameters it updates.
    pub module: &'static str,
    /// Times in a row within one round.
    pub repeats: u32,
    /// Whether it is shown real images.
    pub reads_images: bool,
    /// Whether images seen grow by the minibatch with it. Until they do, phases read the same images.
    pub counts_images: bool,
    /// Whether the moving average is updated with it (before its own update takes effect elsewhere).
    pub averages: bool,
}

/// The samples of one call of [`GanModel::loss`]: a contiguous piece of the global minibatch.
#[derive(Debug)]
pub struct Batch {
    /// Real images of each domain, `[n, 3, r, r]`, bytes, mirrored already; none where the phase reads none.
    pub real: Vec<Tensor>,
    /// Positions of the samples in the global minibatch.
    pub samples: Range<u32>,
    /// Size of the global minibatch: what losses divide by.
    pub total: u32,
    /// Which of the loss's parts is meant.
    pub part: u32,
}

impl Batch {
    /// Number of samples.
    #[must_use]
    pub fn len(&self) -> i64 {
        self.samples.len() as i64
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// Random numbers of one step, drawn per global sample index: the same for every division of the minibatch.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Seed of the run.
    pub seed: u64,
    /// Images seen when the step began.
    pub step: u64,
    /// Kind of the tensors that are made.
    pub kind: Kind,
    /// Device of the tensors that are made.
    pub device: Device,
}

impl Draw {
    /// `[n, width]` draws from N(0, 1).
    pub fn normals(&self, purpose: Purpose, samples: &Range<u32>, width: u32) -> Tensor {
        let mut values = vec![0.0f32; samples.len() * width as usize];
        if width > 0 {
            for (row, sample) in values.chunks_exact_mut(width as usize).zip(samples.clone()) {
                Stream::new(self.seed, purpose, self.step, u64::from(sample)).normals(row);
            }
        }
        self.tensor(&values).view([samples.len() as i64, i64::from(width)])
    }

    /// `[n]` draws from U(0, 1).
    pub fn uniforms(&self, purpose: Purpose, samples: &Range<u32>) -> Tensor {
        let draw = |sample| Stream::new(self.seed, purpose, self.step, u64::from(sample)).uniform();
        self.tensor(&samples.clone().map(draw).collect::<Vec<f32>>())
    }

    fn tensor(&self, values: &[f32]) -> Tensor {
        Tensor::from_slice(values).to_kind(self.kind).to_device(self.device)
    }
}

/// What a phase minimises, and what it tells about itself.
#[derive(Debug)]
pub struct Loss {
    /// Scalar; its gradient is this piece's share of the global gradient.
    pub objective: Tensor,
    /// Scalars on the device, each this piece's share of a mean over the global minibatch.
    pub statistics: Vec<(&'static str, Tensor)>,
    /// `[n, k]`: numbers of each sample that every rank is to know before the update, as many as [`GanModel::handed`] says.
    pub handed: Option<Tensor>,
}

/// What every rank knows of a step when its losses are through, whichever samples it held.
#[derive(Debug)]
pub struct Whole<'a> {
    /// What holds during the step.
    pub stage: &'a Stage,
    /// Random numbers of the step.
    pub draw: &'a Draw,
    /// `[minibatch, k]`: what the losses handed over, in the order of the global minibatch. Empty where they hand over nothing.
    pub handed: Tensor,
}

/// This piece's share of a mean over the global minibatch.
fn mean(of_each: &Tensor, batch: &Batch) -> Tensor {
    of_each.sum(of_each.kind()) / f64::from(batch.total)
}

/// A GAN family.
pub trait GanModel {
    /// The phases of one round, in order.
    fn phases(&self) -> &[Phase];

    /// Names of the trained modules, in the order of the phases that train them.
    fn modules(&self) -> &[&'static str];

    /// The module that makes images.
    fn maker(&self) -> &'static str {
        "g"
    }

    /// The parameters of a module.
    ///
    /// # Panics
    /// When it has no such module.
    fn parameters(&self, module: &str) -> &Parameters;

    /// Name of the module that is averaged, and its average; `None` where none is.
    fn average(&self) -> Option<(&'static str, &Parameters)> {
        None
    }

    /// Indices of the parameters of `module` that take part at `level`, roughly in the order in which backward reaches
    /// them: the same on every rank.
    fn active(&self, module: &str, level: &Level) -> Vec<usize>;

    /// State that belongs to the networks but is no parameter: kept in checkpoints, changed by [`GanModel::before_update`] alone.
    fn memory(&self) -> Option<&Parameters> {
        None
    }

    /// Parts of the loss of `phase`, each of which goes backward by itself; their sum is the loss. What they hand over is added, and so
    /// are statistics of one name.
    fn parts(&self, _phase: &Phase) -> u32 {
        1
    }

    /// The loss of `phase` over `batch`. Changes no state.
    fn loss(&self, phase: &Phase, stage: &Stage, batch: &Batch, draw: &Draw) -> Loss;

    /// Numbers that the loss of `phase` hands over for each sample. They travel with the gradient.
    fn handed(&self, _phase: &Phase) -> usize {
        0
    }

    /// Called once in each step of `phase`, on every rank, between its loss and its update: what it does to
    /// [`GanModel::memory`] follows from the state and from `whole` alone.
    fn before_update(&self, _phase: &Phase, _whole: &Whole<'_>) {}

    /// What it is for.
    fn role(&self) -> Role<'_>;
}

/// What a trained model is for.
pub enum Role<'a> {
    /// It makes images of latents.
    Sampler(&'a dyn Sampler),
    /// It makes images of other images.
    Translator(&'a dyn Translator),
}

impl<'a> Role<'a> {
    /// The sampler, where it is one.
    #[must_use]
    pub fn sampler(self) -> Option<&'a dyn Sampler> {
        match self {
            Self::Sampler(sampler) => Some(sampler),
            Self::Translator(_) => None,
        }
    }
}

/// Latents become images.
pub trait Sampler {
    /// Images `[n, 3, r, r]` made by the averaged weights from latents `[n, latent]`, at the level's resolution.
    fn sample(&self, latents: &Tensor, level: &Level) -> Tensor;

    /// Length of a latent vector.
    fn latent_size(&self) -> u32;
}

/// Images of one domain become images of another.
pub trait Translator {
    /// Names of its directions; where there are two, each leads back from where the other leads.
    fn directions(&self) -> &[&'static str];

    /// The domain whose images `direction` takes.
    fn source(&self, direction: usize) -> usize;

    /// Images `[n, 3, h, w]` in [-1, 1], taken in direction number `direction`.
    fn translate(&self, direction: usize, images: &Tensor) -> Tensor;

    /// Sides of images must be multiples of this.
    fn multiple(&self) -> u32;
}

/// The model that `config` describes, freshly drawn from the run's seed.
#[must_use]
pub fn build(config: &RunConfig, kind: Kind, device: Device) -> Box<dyn GanModel> {
    let (d_repeats, seed) = (config.train.d_repeats, config.seed);
    match &config.model {
        Model::ProGan(a) => Box::new(progan::ProGan::new(a.clone(), d_repeats, seed, kind, device)),
        Model::Sngan(a) => Box::new(sngan::Sngan::new(a.clone(), d_repeats, seed, kind, device)),
        Model::CycleGan(a) => {
            let minibatch = config.train.minibatch_at(a.resolution);
            let sparing = config.train.save_memory;
            Box::new(cyclegan::CycleGan::new(a.clone(), minibatch, sparing, seed, kind, device))
        }
        Model::Pix2Pix(a) => Box::new(pix2pix::Pix2Pix::new(a.clone(), seed, kind, device)),
    }
}

/// What tests of families share.
#[cfg(test)]
mod testing {
    use super::{Batch, Purpose, Stream};
    use std::ops::Range;
    use tch::{Kind, Tensor};

    /// Samples of a minibatch of `total`, images of two domains: each depends on its place in the minibatch alone.
    pub fn two_domains(samples: Range<u32>, side: u32, total: u32) -> Batch {
        let of = |domain: u64| {
            let images = samples.clone().map(|sample| image(1000 * (domain + 1) + u64::from(sample), side));
            Tensor::stack(&images.collect::<Vec<_>>(), 0)
        };
        Batch { real: vec![of(0), of(1)], samples: samples.clone(), total, part: 0 }
    }

    /// Bytes `[3, side, side]` that depend on `number` alone: libtorch's own generator is one for all tests that run at a time.
    pub fn image(number: u64, side: u32) -> Tensor {
        let mut stream = Stream::new(number, Purpose::Sample, 0, 0);
        let bytes: Vec<u8> = (0..3 * side * side).map(|_| stream.below(256) as u8).collect();
        Tensor::from_data_size(&bytes, &[3, i64::from(side), i64::from(side)], Kind::Uint8)
    }
}
