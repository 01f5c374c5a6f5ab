//! CycleGAN (Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", ICCV 2017): nets,
//! losses, phases, in this order. Sizes, names and defaults are `common::families::cyclegan`.
//!
//! Both generators take one step together, then all discriminators, which are shown images made before that step: some new, some
//! from a pool of older ones (Shrivastava et al. 2017). What they will be shown is settled between loss and update, from everybody's
//! images in the order of the global minibatch, and remembered: the same on every rank, in every checkpoint.
//!
//! Norms know one sample only, where there are any, so passes of several images through one network are made as one.

use super::augment::augmented;
use super::blocks::{Conv, Norm, l1, range, reflect, single};
use super::patchgan::Panel;
use super::{Batch, Draw, GanModel, Loss, Phase, Role, Translator, Whole, mean};
use crate::parameters::Parameters;
use common::families::cyclegan::{self as family, Architecture, DIRECTIONS, DOMAINS, Upscale};
use common::growth::Level;
use common::schedule::Stage;
use common::seed::{Purpose, Stream};
use tch::{Device, Kind, Tensor, no_grad};

/// White and black are this far from where they could not be changed any more.
const NEARLY: f64 = 0.97;

/// An image of one domain to an image of the other (section 7.2; gan.md 2.1).
#[derive(Debug)]
struct Generator {
    first: Conv,
    down: Vec<Conv>,
    blocks: Vec<[Conv; 2]>,
    up: Vec<Conv>,
    last: Conv,
    norm: Norm,
    upscale: Upscale,
    /// What it makes is added to its input.
    residual: bool,
    /// What layers have before they halve is added to what those have that double.
    skips: bool,
    /// What blocks remember of an image for backward is computed once more there.
    sparing: bool,
}

impl Generator {
    fn new(a: &Architecture, p: &Parameters, direction: &str, sparing: bool) -> Self {
        let conv = |place: u32, rest: &str| Conv::new(p, &format!("g.{direction}{place}{rest}"));
        let places = a.places();
        Self {
            first: conv(places.first, ""),
            down: places.down.into_iter().map(|place| conv(place, "")).collect(),
            blocks: (places.blocks).map(|place| [1, 5].map(|i| conv(place, &format!(".conv_block.{i}")))).collect(),
            up: places.up.into_iter().map(|place| conv(place, "")).collect(),
            last: conv(places.last, ""),
            norm: match a.g_norm {
                family::Norm::Instance => Norm::Plain,
                family::Norm::Layer => Norm::Layer,
                family::Norm::None => Norm::None,
            },
            upscale: a.upscale,
            residual: a.residual,
            skips: a.skips,
            sparing,
        }
    }

    /// `[n, 3, h, w] -> [n, 3, h, w]` in [-1, 1]; sides are multiples of [`Architecture::multiple`].
    fn forward(&self, images: &Tensor) -> Tensor {
        let norm = |x: Tensor| self.norm.apply(x);
        let mut x = norm(self.first.apply(&reflect(images, 3), 1, 0)).relu_();
        let mut before = Vec::new();
        for conv in &self.down {
            before.extend(self.skips.then(|| x.shallow_clone()));
            x = norm(conv.apply(&x, 2, 1)).relu_();
        }
        for [one, other] in &self.blocks {
            if self.sparing {
                x = one.residual(other, &x, self.norm.of_blocks());
                continue;
            }
            let inner = norm(one.apply(&reflect(&x, 1), 1, 0)).relu_();
            // not in place: a rectifier's derivative is that of what it gave
            x = &x + norm(other.apply(&reflect(&inner, 1), 1, 0));
        }
        for conv in &self.up {
            let doubled = match self.upscale {
                Upscale::Transposed => conv.transposed(&x),
                Upscale::Nearest => conv.upscaling(&x),
            };
            x = norm(doubled).relu_();
            if let Some(before) = before.pop() {
                // not in place, as in the blocks
                x = &x + before;
            }
        }
        let made = self.last.apply(&reflect(&x, 3), 1, 0);
        let made = match self.residual {
            true => made + (images * NEARLY).atanh(),
            false => made,
        };
        single(made.tanh())
    }
}

/// The networks, the average of those that make images, the pools, and their phases.
pub struct CycleGan {
    architecture: Architecture,
    phases: [Phase; 2],
    g: Parameters,
    d: Parameters,
    pools: Parameters,
    average: Option<Parameters>,
    /// A to B, B to A.
    generators: [Generator; 2],
    /// The same with averaged weights, where they are kept.
    averaged: Option<[Generator; 2]>,
    /// Of A, of B.
    judges: [Panel; 2],
    sparing: bool,
}

impl CycleGan {
    /// Draws the networks from the run's seed; `minibatch` is the global one. Where `sparing`, G's loss goes backward in two parts, and
    /// blocks compute once more what they need then.
    #[must_use]
    pub fn new(
        architecture: Architecture,
        minibatch: u32,
        sparing: bool,
        seed: u64,
        kind: Kind,
        device: Device,
    ) -> Self {
        let (generators, discriminators) = (architecture.generators(), architecture.discriminators());
        let first_of_d = generators.len() as u64;
        let g = Parameters::draw(generators, seed, 0, kind, device);
        let d = Parameters::draw(discriminators, seed, first_of_d, kind, device);
        let pools = Parameters::draw(architecture.pools(minibatch), seed, 0, kind, device);
        let average = architecture.average.then(|| g.copy());
        let generators =
            |of: &Parameters| DIRECTIONS.map(|direction| Generator::new(&architecture, of, direction, sparing));
        let phase = |name, counts_images, averages| Phase {
            name,
            module: name,
            repeats: 1,
            reads_images: true,
            counts_images,
            averages,
        };
        Self {
            // the images of a step count once: with the last phase that is shown them
            phases: [phase("g", false, architecture.average), phase("d", true, false)],
            generators: generators(&g),
            averaged: average.as_ref().map(generators),
            sparing,
            judges: DOMAINS.map(|domain| Panel::new(&architecture.judges(domain), &d, architecture.gan_loss)),
            architecture,
            g,
            d,
            pools,
            average,
        }
    }

    /// `GAN(a2b) + GAN(b2a) + lambda_a |rec_a - a| + lambda_b |rec_b - b| + lambda_identity (lambda_b |a2b(b) - b| + lambda_a |b2a(a) - a|)`
    /// (equations 3 and 5.2; gan.md 2.3).
    fn generator_loss(&self, batch: &Batch, draw: &Draw) -> Loss {
        let a = &self.architecture;
        let [real_a, real_b] = reals(batch, draw);
        let [a2b, b2a] = &self.generators;
        let [judge_a, judge_b] = &self.judges;
        let n = batch.len();
        let part = |x: &Tensor, i: i64| x.narrow(0, i * n, n);
        let identity = a.lambda_identity > 0.0;

        // what goes through one network goes at once: a2b sees A and B; b2a sees B, what a2b made, and A
        let from_a = a2b.forward(&if identity { Tensor::cat(&[&real_a, &real_b], 0) } else { real_a.shallow_clone() });
        let fake_b = part(&from_a, 0);
        let mut to_a = vec![real_b.shallow_clone(), fake_b.shallow_clone()];
        to_a.extend(identity.then(|| real_a.shallow_clone()));
        let from_b = b2a.forward(&Tensor::cat(&to_a, 0));
        let (fake_a, back_a) = (part(&from_b, 0), part(&from_b, 1));
        let back_b = a2b.forward(&fake_a);

        let mean = |of_each: &Tensor| mean(of_each, batch);
        let [seen_a, seen_b] =
            [(&fake_a, Seen::ByG(0)), (&fake_b, Seen::ByG(1))].map(|(fake, by)| self.seen(fake, by, batch, draw));
        let gan_a2b = mean(&judge_b.from_real(&seen_b));
        let gan_b2a = mean(&judge_a.from_real(&seen_a));
        let (cycle_a, cycle_b) = (mean(&l1(&back_a, &real_a)), mean(&l1(&back_b, &real_b)));
        let mut objective = &gan_a2b + &gan_b2a + &cycle_a * a.lambda_a + &cycle_b * a.lambda_b;
        let mut statistics = vec![
            ("loss/g_a2b", gan_a2b.detach()),
            ("loss/g_b2a", gan_b2a.detach()),
            ("l1/cycle_a", cycle_a.detach()),
            ("l1/cycle_b", cycle_b.detach()),
        ];
        if identity {
            let (same_b, same_a) = (mean(&l1(&part(&from_a, 1), &real_b)), mean(&l1(&part(&from_b, 2), &real_a)));
            objective += (&same_b * a.lambda_b + &same_a * a.lambda_a) * a.lambda_identity;
            statistics.extend([("l1/identity_a", same_a.detach()), ("l1/identity_b", same_b.detach())]);
        }
        statistics.push(("loss/g", objective.detach()));
        let made = [&fake_a, &fake_b].map(|fake| fake.detach().flatten(1, -1));
        Loss { objective, statistics, handed: Some(Tensor::cat(&made, 1)) }
    }

    /// The part of G's loss that begins in one domain: there, back, and what is in the other domain already.
    fn one_way(&self, batch: &Batch, draw: &Draw) -> Loss {
        let a = &self.architecture;
        let way = batch.part as usize;
        let [real_a, real_b] = reals(batch, draw);
        let (from, to) = if way == 0 { (real_a, real_b) } else { (real_b, real_a) };
        let (there, back, judge) = (&self.generators[way], &self.generators[1 - way], &self.judges[1 - way]);
        let [here, other] = if way == 0 { [a.lambda_a, a.lambda_b] } else { [a.lambda_b, a.lambda_a] };
        let names = [["loss/g_a2b", "l1/cycle_a", "l1/identity_b"], ["loss/g_b2a", "l1/cycle_b", "l1/identity_a"]][way];
        let n = batch.len();
        let identity = a.lambda_identity > 0.0;
        let made = there.forward(&if identity { Tensor::cat(&[&from, &to], 0) } else { from.shallow_clone() });
        let fake = made.narrow(0, 0, n);
        let mean = |of_each: &Tensor| mean(of_each, batch);
        let gan = mean(&judge.from_real(&self.seen(&fake, Seen::ByG(1 - way), batch, draw)));
        let cycle = mean(&l1(&back.forward(&fake), &from));
        let mut objective = &gan + &cycle * here;
        let mut statistics = vec![(names[0], gan.detach()), (names[1], cycle.detach())];
        if identity {
            let same = mean(&l1(&made.narrow(0, n, n), &to));
            objective += &same * (other * a.lambda_identity);
            statistics.push((names[2], same.detach()));
        }
        statistics.push(("loss/g", objective.detach()));
        let fake = fake.detach().flatten(1, -1);
        let none = fake.zeros_like();
        let handed = if way == 0 { [&none, &fake] } else { [&fake, &none] };
        Loss { objective, statistics, handed: Some(Tensor::cat(&handed, 1)) }
    }

    /// Half of what each is wrong about real images and about those that it is shown, for both (gan.md 2.3).
    fn discriminator_loss(&self, batch: &Batch, draw: &Draw) -> Loss {
        let names = [("loss/d_a", "score/real_a", "score/fake_a"), ("loss/d_b", "score/real_b", "score/fake_b")];
        let (mut losses, mut statistics) = (Vec::new(), Vec::new());
        for (domain, real) in reals(batch, draw).iter().enumerate() {
            let shown = self.shown(domain).narrow(0, i64::from(batch.samples.start), batch.len());
            let real = self.seen(real, Seen::Real(domain), batch, draw);
            let shown = self.seen(&shown, Seen::Made(domain), batch, draw);
            let errors = self.judges[domain].errors(&real, &shown, (domain, DOMAINS.len()), batch, draw);
            let [loss, of_real, of_fake] = errors.map(|errors| mean(&errors, batch));
            let (name, on_real, on_fake) = names[domain];
            statistics.extend([(name, loss.detach()), (on_real, of_real), (on_fake, of_fake)]);
            losses.push(loss);
        }
        let objective = &losses[0] + &losses[1];
        statistics.push(("loss/d", objective.detach()));
        Loss { objective, statistics, handed: None }
    }

    /// `images` as a discriminator sees them.
    fn seen(&self, images: &Tensor, seen: Seen, batch: &Batch, draw: &Draw) -> Tensor {
        augmented(images, self.architecture.augment, seen.number(), batch, draw)
    }

    /// The images of `domain` that D is shown in its next step, in the order of the global minibatch.
    fn shown(&self, domain: usize) -> &Tensor {
        self.pools.get(&format!("pool.{}.shown", DOMAINS[domain]))
    }

    /// Takes the images `made`, `[minibatch, 2 * 3 * r * r]`, through the pools (gan.md 2.5): while a pool has room an image is
    /// kept and shown; later, by a coin, it is shown or takes the place of an older one, which is shown instead.
    fn remember(&self, made: &Tensor, draw: &Draw) {
        let side = i64::from(self.architecture.resolution);
        let size = u64::from(self.architecture.pool_size);
        let minibatch = made.size()[0];
        // a step that overflowed is skipped, and no NaN of it may stay
        let made = made.nan_to_num(0.0, 1.0, -1.0).view([minibatch, 2, 3, side, side]);
        for sample in 0..minibatch {
            let before = draw.step + sample as u64;
            let mut stream = Stream::new(draw.seed, Purpose::Pool, draw.step, sample as u64);
            for (domain, name) in DOMAINS.iter().enumerate() {
                let (older, which) = (stream.coin(), stream.below(size.max(1)));
                let new = made.get(sample).get(domain as i64);
                let kept = self.pools.get(&format!("pool.{name}.kept"));
                let shown = self.shown(domain).get(sample);
                let set = |place: Tensor, image: &Tensor| place.shallow_clone().copy_(image);
                if size > 0 && before < size {
                    set(kept.get(before as i64), &new);
                    set(shown, &new);
                } else if size > 0 && older {
                    set(shown, &kept.get(which as i64));
                    set(kept.get(which as i64), &new);
                } else {
                    set(shown, &new);
                }
            }
        }
    }
}

/// Which images of which domain a discriminator sees: those that G is judged by, or those that D learns from.
#[derive(Clone, Copy)]
enum Seen {
    ByG(usize),
    Real(usize),
    Made(usize),
}

impl Seen {
    /// Of its stream of random numbers.
    fn number(self) -> u64 {
        let (kind, domain) = match self {
            Self::ByG(domain) => (0, domain),
            Self::Real(domain) => (1, domain),
            Self::Made(domain) => (2, domain),
        };
        (kind * DOMAINS.len() + domain) as u64
    }
}

/// Both domains' real images in the networks' range.
fn reals(batch: &Batch, draw: &Draw) -> [Tensor; 2] {
    [0, 1].map(|domain: usize| {
        let bytes = batch.real.get(domain).expect("both phases read images of two domains");
        range(bytes, draw.kind)
    })
}

impl GanModel for CycleGan {
    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn modules(&self) -> &[&'static str] {
        &["g", "d"]
    }

    fn parameters(&self, module: &str) -> &Parameters {
        match module {
            "g" => &self.g,
            "d" => &self.d,
            other => panic!("CycleGAN has no module {other}"),
        }
    }

    fn average(&self) -> Option<(&'static str, &Parameters)> {
        self.average.as_ref().map(|average| ("g", average))
    }

    fn memory(&self) -> Option<&Parameters> {
        Some(&self.pools)
    }

    fn active(&self, module: &str, _level: &Level) -> Vec<usize> {
        // backward reaches the second network, and the last layer, first
        (0..self.parameters(module).len()).rev().collect()
    }

    fn loss(&self, phase: &Phase, _stage: &Stage, batch: &Batch, draw: &Draw) -> Loss {
        match phase.name {
            "g" if self.sparing => self.one_way(batch, draw),
            "g" => self.generator_loss(batch, draw),
            _ => self.discriminator_loss(batch, draw),
        }
    }

    fn parts(&self, phase: &Phase) -> u32 {
        if phase.name == "g" && self.sparing { 2 } else { 1 }
    }

    fn handed(&self, phase: &Phase) -> usize {
        if phase.name == "g" { 2 * 3 * (self.architecture.resolution as usize).pow(2) } else { 0 }
    }

    fn before_update(&self, phase: &Phase, whole: &Whole<'_>) {
        if phase.name == "g" {
            no_grad(|| self.remember(&whole.handed, whole.draw));
        }
    }

    fn role(&self) -> Role<'_> {
        Role::Translator(self)
    }
}

impl Translator for CycleGan {
    fn directions(&self) -> &[&'static str] {
        &DIRECTIONS
    }

    fn source(&self, direction: usize) -> usize {
        direction
    }

    fn translate(&self, direction: usize, images: &Tensor) -> Tensor {
        let generators = self.averaged.as_ref().unwrap_or(&self.generators);
        no_grad(|| generators[direction].forward(images))
    }

    fn multiple(&self) -> u32 {
        self.architecture.multiple()
    }
}

#[cfg(test)]
mod tests;
