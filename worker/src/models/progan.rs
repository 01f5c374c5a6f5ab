//! Progressive GAN (Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation", ICLR 2018):
//! nets, losses, phases, in this order. Sizes and names are `common::families::progan`, the growth schedule
//! is `common::growth`.
//!
//! Both networks work at the active resolution; the authors' code exchanges full-size images instead, which differs only
//! in the norm of the gradient penalty (`model.gp_norm`).

use super::blocks::{
    Equalized, Layer, RECTIFIER, downscale, leaky, leaky_downscale, leaky_pixel_norm, minibatch_deviation, pixel_norm,
    upscale,
};
use super::{Batch, Draw, GanModel, Loss, Phase, Role, Sampler, mean};
use crate::parameters::Parameters;
use common::families::progan::{Architecture, GpNorm, Upscale};
use common::growth::Level;
use common::schedule::Stage;
use common::seed::Purpose;
use tch::{Device, Kind, Tensor, no_grad};

/// Latent to image. Works on whichever weights it was made from: trained or averaged.
#[derive(Debug)]
struct Generator {
    dense: Equalized,
    conv: Equalized,
    /// 8x8 and up.
    blocks: Vec<(Equalized, Equalized)>,
    /// toRGB of 4x4 and up.
    to_rgb: Vec<Equalized>,
    fused: bool,
}

impl Generator {
    fn new(a: &Architecture, p: &Parameters) -> Self {
        let layer = |r: u32, name: &str, gain| Equalized::new(p, &format!("g.{r}.{name}"), gain);
        Self {
            dense: layer(4, "dense", RECTIFIER / 4.0),
            conv: layer(4, "conv", RECTIFIER),
            blocks: (a.resolutions().skip(1))
                .map(|r| (layer(r, "conv0", RECTIFIER), layer(r, "conv1", RECTIFIER)))
                .collect(),
            to_rgb: a.resolutions().map(|r| layer(r, "rgb", 1.0)).collect(),
            fused: a.upscale == Upscale::Fused,
        }
    }

    /// `[n, latent] -> [n, 3, r, r]` at the level's resolution. No tanh: the range is learned.
    fn forward(&self, latents: &Tensor, level: &Level) -> Tensor {
        let top = level.resolution.ilog2() as usize - 2;
        let mut x = leaky_pixel_norm(&self.dense.scaled().dense_to_4x4(&pixel_norm(latents)));
        x = leaky_pixel_norm(&self.conv.scaled().conv(&x));
        let mut below = None;
        for (i, (conv0, conv1)) in self.blocks[..top].iter().enumerate() {
            let conv0 = conv0.scaled();
            let up = if self.fused { conv0.upscaling_conv(&x) } else { conv0.conv(&upscale(&x)) };
            let out = leaky_pixel_norm(&conv1.scaled().conv(&leaky_pixel_norm(&up)));
            if i + 1 == top {
                below = Some(x);
            }
            x = out;
        }
        let image = self.to_rgb[top].scaled().conv(&x);
        match below {
            Some(below) if level.fading() => {
                let old = upscale(&self.to_rgb[top - 1].scaled().conv(&below));
                image * level.alpha() + old * (1.0 - level.alpha())
            }
            _ => image,
        }
    }
}

/// Image to score.
#[derive(Debug)]
struct Discriminator {
    /// fromRGB of 4x4 and up.
    from_rgb: Vec<Equalized>,
    /// 8x8 and up.
    blocks: Vec<(Equalized, Equalized)>,
    conv: Equalized,
    dense0: Equalized,
    dense1: Equalized,
    fused: bool,
}

impl Discriminator {
    fn new(a: &Architecture, p: &Parameters) -> Self {
        let layer = |r: u32, name: &str, gain| Equalized::new(p, &format!("d.{r}.{name}"), gain);
        Self {
            from_rgb: a.resolutions().map(|r| layer(r, "rgb", RECTIFIER)).collect(),
            blocks: (a.resolutions().skip(1))
                .map(|r| (layer(r, "conv0", RECTIFIER), layer(r, "conv1", RECTIFIER)))
                .collect(),
            conv: layer(4, "conv", RECTIFIER),
            dense0: layer(4, "dense0", RECTIFIER),
            dense1: layer(4, "dense1", 1.0),
            fused: a.upscale == Upscale::Fused,
        }
    }

    /// The layers that take part at `level`, scaled once for all passes of one loss.
    fn at(&self, level: &Level) -> Scorer {
        let top = level.resolution.ilog2() as usize - 2;
        Scorer {
            from_rgb: self.from_rgb[top].scaled(),
            from_rgb_below: level.fading().then(|| self.from_rgb[top - 1].scaled()),
            blocks: self.blocks[..top].iter().map(|(conv0, conv1)| (conv0.scaled(), conv1.scaled())).collect(),
            conv: self.conv.scaled(),
            dense0: self.dense0.scaled(),
            dense1: self.dense1.scaled(),
            fused: self.fused,
            alpha: level.alpha(),
        }
    }
}

/// The discriminator at one level.
struct Scorer {
    from_rgb: Layer,
    from_rgb_below: Option<Layer>,
    blocks: Vec<(Layer, Layer)>,
    conv: Layer,
    dense0: Layer,
    dense1: Layer,
    fused: bool,
    alpha: f64,
}

impl Scorer {
    /// `[n, 3, r, r] -> [n]`, `n` a multiple of `group`.
    fn score(&self, images: &Tensor, group: u32) -> Tensor {
        let mut x = self.from_rgb.leaky_conv(images);
        let mut old = self.from_rgb_below.as_ref().map(|layer| layer.leaky_conv(&downscale(images)));
        for (conv0, conv1) in self.blocks.iter().rev() {
            x = conv0.leaky_conv(&x);
            x = if self.fused { conv1.leaky_downscaling_conv(&x) } else { leaky_downscale(&conv1.conv(&x)) };
            if let Some(old) = old.take() {
                x = x * self.alpha + old * (1.0 - self.alpha);
            }
        }
        x = self.conv.leaky_conv(&minibatch_deviation(&x, i64::from(group)));
        self.dense1.dense(&leaky(self.dense0.dense(&x.flatten(1, -1)))).view([-1])
    }
}

/// Both networks, the average of G, and their phases.
pub struct ProGan {
    architecture: Architecture,
    phases: Vec<Phase>,
    g: Parameters,
    d: Parameters,
    average: Parameters,
    generator: Generator,
    averaged: Generator,
    discriminator: Discriminator,
}

impl ProGan {
    /// Draws both networks from the run's seed.
    #[must_use]
    pub fn new(architecture: Architecture, d_repeats: u32, seed: u64, kind: Kind, device: Device) -> Self {
        let specs = architecture.generator();
        let first_of_d = specs.len() as u64;
        let g = Parameters::draw(specs, seed, 0, kind, device);
        let d = Parameters::draw(architecture.discriminator(), seed, first_of_d, kind, device);
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
            discriminator: Discriminator::new(&architecture, &d),
            architecture,
            g,
            d,
            average,
        }
    }

    /// Bytes as the network's range [-1, 1], faded like the images of G: `alpha * x + (1 - alpha) * up(down(x))`.
    fn reals(&self, bytes: &Tensor, level: &Level) -> Tensor {
        let x = bytes.to_kind(self.d.tensors()[0].kind()) / 127.5 - 1.0;
        if level.fading() { &x * level.alpha() + upscale(&downscale(&x)) * (1.0 - level.alpha()) } else { x }
    }

    /// WGAN-GP with drift (Gulrajani et al. 2017; PGGAN appendix A.1):
    /// `D(fake) - D(real) + gp_weight / target^2 * (|grad D(mix)| - target)^2 + drift * D(real)^2`.
    fn discriminator_loss(&self, stage: &Stage, batch: &Batch, draw: &Draw) -> Loss {
        let (a, level) = (&self.architecture, &stage.level);
        let bytes = batch.real.first().expect("the phase of D reads images");
        let real = self.reals(bytes, level);
        let latents = draw.normals(Purpose::LatentD, &batch.samples, a.latent_size);
        let fake = no_grad(|| self.generator.forward(&latents, level));
        let u = draw.uniforms(Purpose::PenaltyMix, &batch.samples).view([-1, 1, 1, 1]);
        let mix = (&real + u * (&fake - &real)).set_requires_grad(true);

        // reals and fakes in one pass: statistical groups are consecutive samples, so neither sees the other
        let d = self.discriminator.at(level);
        let scores = d.score(&Tensor::cat(&[&real, &fake], 0), stage.group);
        let (of_real, of_fake) = (scores.narrow(0, 0, batch.len()), scores.narrow(0, batch.len(), batch.len()));
        let of_mix = d.score(&mix, stage.group);
        let slope = Tensor::run_backward(&[of_mix.sum(of_mix.kind())], &[&mix], true, true);
        let active = slope[0].flatten(1, -1).norm_scalaropt_dim(2, &[1i64][..], false);
        let norm = match a.gp_norm {
            GpNorm::Active => active,
            GpNorm::Full => active / 2f64.powf(level.lod.floor()),
        };
        let penalty = (&norm - a.gp_target).square() * (a.gp_weight / a.gp_target.powi(2));
        let drift = of_real.square() * a.drift;

        let mean = |of_each: &Tensor| mean(of_each, batch);
        let objective = mean(&(&of_fake - &of_real + &penalty + drift));
        let statistics = vec![
            ("loss/d", objective.detach()),
            ("score/real", mean(&of_real.detach())),
            ("score/fake", mean(&of_fake.detach())),
            ("score/mix", mean(&of_mix.detach())),
            ("gradient_norm/mix", mean(&norm.detach())),
            ("penalty/d", mean(&penalty.detach())),
        ];
        Loss { objective, statistics, handed: None }
    }

    /// `-D(G(z))`.
    fn generator_loss(&self, stage: &Stage, batch: &Batch, draw: &Draw) -> Loss {
        let latents = draw.normals(Purpose::LatentG, &batch.samples, self.architecture.latent_size);
        let fake = self.generator.forward(&latents, &stage.level);
        let scores = self.discriminator.at(&stage.level).score(&fake, stage.group);
        let objective = -mean(&scores, batch);
        let statistics = vec![("loss/g", objective.detach())];
        Loss { objective, statistics, handed: None }
    }
}

impl GanModel for ProGan {
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
            other => panic!("ProGAN has no module {other}"),
        }
    }

    fn average(&self) -> Option<(&'static str, &Parameters)> {
        Some(("g", &self.average))
    }

    fn active(&self, module: &str, level: &Level) -> Vec<usize> {
        let specs = self.parameters(module).specs().iter().enumerate();
        let mut active: Vec<usize> =
            specs.filter(|(_, spec)| self.architecture.takes_part(&spec.name, level)).map(|(i, _)| i).collect();
        // D ends at 4x4 and G at the active resolution; backward goes the other way
        if module == "g" {
            active.reverse();
        }
        active
    }

    fn loss(&self, phase: &Phase, stage: &Stage, batch: &Batch, draw: &Draw) -> Loss {
        match phase.name {
            "d" => self.discriminator_loss(stage, batch, draw),
            _ => self.generator_loss(stage, batch, draw),
        }
    }

    fn role(&self) -> Role<'_> {
        Role::Sampler(self)
    }
}

impl Sampler for ProGan {
    fn sample(&self, latents: &Tensor, level: &Level) -> Tensor {
        no_grad(|| self.averaged.forward(latents, level))
    }

    fn latent_size(&self) -> u32 {
        self.architecture.latent_size
    }
}

#[cfg(test)]
mod tests;
