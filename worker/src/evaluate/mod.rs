//! How good what the networks make is, measured by all ranks together: on images kept from training, where there are any.
//!
//! Images go in pairs: what is measured of a pair fits a few numbers (features, likeness), and only they travel. A number says
//! nothing without what it is held against, so each comes with its floor (real images among themselves) and, of translations, with
//! what doing nothing would give. Rank 0 computes, and its word counts: what follows from it is decided alike everywhere.

mod distance;
mod features;
mod lite0;
mod sliced;

pub use features::{Features, FeaturesError};

use crate::generate;
use crate::images::Images;
use crate::models::{Role, Sampler, Translator};
use crate::pictures::{looked_at_by_all, range};
use crate::trainer::{StepError, Trainer};
use common::families::Pairing;
use common::growth::Level;
use common::metrics::{Quality, names};
use common::seed::{Purpose, Stream, permutation};
use data::{DataError, Pyramid, image_bytes};
use metrics::{SwdError, ms_ssim, ssim};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Pairs that a rank makes between two exchanges: then it hears that the generation is over.
const AT_ONCE: u32 = 4;
/// Pairs that are looked at for how alike images are, at most.
const DIVERSITY_PAIRS: u32 = 128;

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// Another rank is gone.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The metric refuses.
    #[error(transparent)]
    Swd(#[from] SwdError),
    /// What rank 0 says cannot be read: a defect, or another version.
    #[error("rank 0 says of its evaluation what cannot be read: {0}")]
    Word(#[from] serde_json::Error),
}

/// Why one image could not be measured.
#[derive(Debug, thiserror::Error)]
enum Unmeasured {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{0}")]
    Features(String),
}

/// What evaluating takes, and what was measured of the real images: that stays.
pub struct Evaluator {
    images: Arc<Images>,
    features: Option<Features>,
    /// Of the sliced Wasserstein distance, by resolution.
    floors: BTreeMap<u32, BTreeMap<u32, f64>>,
    /// By domain, resolution, and the number of images out of which they were chosen.
    reals: HashMap<(usize, u32, u32), Rc<Measured>>,
    /// No image has a twin, which was said.
    alone: bool,
}

/// What was measured of a set of images.
#[derive(Debug)]
struct Measured {
    /// `[n, d]`, in the order of the images; no columns where features are not compared.
    features: Tensor,
    /// Of each image, what there is to say of it.
    each: Vec<Vec<f32>>,
    /// Of each pair, likewise; the first is how alike the two are.
    pairs: Vec<Vec<f32>>,
    /// Of real images, two halves that share no subject.
    halves: (Vec<usize>, Vec<usize>),
}

/// What is said of a translated image, and where it stands.
const CHANGE: usize = 0;
const LIKENESS: usize = 1;
const CYCLE: usize = 2;
const TWIN_L1: usize = 3;
const TWIN_SSIM: usize = 4;
const INPUT_L1: usize = 5;
const INPUT_SSIM: usize = 6;
/// From an image of the other domain that shows something else.
const ACROSS: usize = 7;
const SAID: usize = 8;

/// What is said of a pair, and where it stands.
const ALIKE: usize = 0;
const APART: usize = 1;

impl Evaluator {
    /// An evaluator of a run over `images`.
    #[must_use]
    pub fn new(images: Arc<Images>, features: Option<Features>) -> Self {
        Self { images, features, floors: BTreeMap::new(), reals: HashMap::new(), alone: false }
    }

    /// The network whose features are compared; empty where none is.
    #[must_use]
    pub fn features(&self) -> &str {
        self.features.as_ref().map_or("", Features::name)
    }

    /// What the networks are worth at `level`. Every rank calls it at the same step, and every rank gets the same answer.
    ///
    /// # Errors
    /// When a rank is lost, or rank 0 cannot compute what is asked for.
    pub fn evaluate(&mut self, trainer: &mut Trainer, level: Level) -> Result<Vec<Quality>, EvaluateError> {
        let directions = match trainer.model().role() {
            Role::Sampler(_) => 0,
            Role::Translator(translator) => translator.directions().len(),
        };
        let mut found = Vec::new();
        if trainer.config().metrics.swd {
            found.extend(sliced::wasserstein(trainer, self.images.first(), level, &mut self.floors)?);
        }
        if directions == 0 {
            found.extend(self.samples(trainer, level)?);
        }
        for direction in 0..directions {
            found.extend(self.translations(trainer, direction)?);
        }
        let images = trainer.position().images;
        for quality in &mut found {
            quality.images = images;
            for levels in [&mut quality.levels, &mut quality.floor, &mut quality.untouched] {
                levels.retain(|_, value| value.is_finite());
            }
        }
        found.retain(|quality| !quality.levels.is_empty());
        let word = if trainer.communicator().rank() == 0 { serde_json::to_vec(&found)? } else { Vec::new() };
        let words = trainer.communicator().gather(word).map_err(StepError::from)?;
        Ok(serde_json::from_slice(words.first().map(Vec::as_slice).unwrap_or_default())?)
    }

    /// Images made of nothing beside real ones.
    fn samples(&mut self, trainer: &mut Trainer, level: Level) -> Result<Vec<Quality>, EvaluateError> {
        let metrics = &trainer.config().metrics;
        if !metrics.compares_features() && !metrics.diversity {
            return Ok(Vec::new());
        }
        let all = self.images.len() as u32;
        let count = metrics.images.min(all);
        let pairs = if metrics.compares_features() { count / 2 } else { (count / 2).min(DIVERSITY_PAIRS) };
        let (seed, device, resolution) = (trainer.config().seed, trainer.device(), level.resolution);
        let real = self.reals(trainer, (0, resolution, all), pairs)?;
        let features = self.features.as_ref();
        let made = measure(trainer, features, pairs, (0, 1), |trainer, index| {
            let Some(sampler) = trainer.model().role().sampler() else { return Ok((Vec::new(), Vec::new())) };
            Ok((sample(sampler, seed, index, &level, device), Vec::new()))
        })?;
        Ok(self.compared(trainer, &made, &real, None, resolution, ""))
    }

    /// Images made of others: of each, what can be said of it alone, and of all, how they stand beside real ones.
    fn translations(&mut self, trainer: &mut Trainer, direction: usize) -> Result<Vec<Quality>, EvaluateError> {
        let metrics = trainer.config().metrics.clone();
        let Role::Translator(translator) = trainer.model().role() else { return Ok(Vec::new()) };
        let (name, source, both) =
            (translator.directions()[direction], translator.source(direction), translator.directions().len() == 2);
        if metrics.kinds().is_empty() {
            return Ok(Vec::new());
        }
        let resolution = trainer.config().model.resolution();
        let all = looked_at_by_all(trainer, &self.images)?;
        let pairs = all.min(metrics.images) / 2;
        let target = 1 - source;
        let twins = if metrics.twins { self.twins(trainer, source, all)? } else { Vec::new() };
        let real = self.reals(trainer, (target, resolution, all), pairs)?;
        let input = self.reals(trainer, (source, resolution, all), pairs)?;
        let chosen = chosen(trainer.config().seed, all, pairs);
        let (images, device) = (Arc::clone(&self.images), trainer.device());
        let features = self.features.as_ref();
        let made = measure(trainer, features, pairs, (SAID, 1), |trainer, index| {
            let Role::Translator(translator) = trainer.model().role() else { return Ok((Vec::new(), Vec::new())) };
            let (shown, another) = (chosen[index as usize], chosen[((index + pairs) % (2 * pairs)) as usize]);
            let bytes = images.look(source, shown, resolution)?;
            let twin = twins.get(shown as usize).copied().flatten();
            let twin = twin.map(|twin| images.look(target, twin, resolution)).transpose()?;
            let there_and_back = both && metrics.cycle;
            let (made, mut said) =
                translated(translator, (direction, there_and_back), &bytes, twin.as_deref(), (resolution, device));
            said[ACROSS] = l1(&bytes, &images.look(target, another, resolution)?);
            Ok((made, said))
        })?;
        if trainer.communicator().rank() != 0 {
            return Ok(Vec::new());
        }
        let mut found = self.compared(trainer, &made, &real, Some(&input), resolution, name);
        let said = |metric: &str, at: usize, untouched: Option<f64>| {
            let value = mean(made.each.iter().map(|said| said[at]))?;
            let (metric, of, count) = (metric.to_owned(), name.to_owned(), 2 * pairs);
            let one = |value: f64| BTreeMap::from([(resolution, value)]);
            let untouched = untouched.map(one).unwrap_or_default();
            Some(Quality { metric, of, count, levels: one(value), untouched, ..Quality::default() })
        };
        let input_said = |at: usize| mean(made.each.iter().map(|said| said[at]));
        found.extend(said(names::CHANGE, CHANGE, input_said(ACROSS)));
        found.extend(said(names::LIKENESS, LIKENESS, None));
        found.extend(said(names::CYCLE, CYCLE, mean(input.pairs.iter().map(|said| said[APART]))));
        found.extend(said(names::TWIN_L1, TWIN_L1, input_said(INPUT_L1)));
        found.extend(said(names::TWIN_SSIM, TWIN_SSIM, input_said(INPUT_SSIM)));
        Ok(found)
    }

    /// How a set stands beside real images. `input` is what it was made of.
    fn compared(
        &self,
        trainer: &mut Trainer,
        made: &Measured,
        real: &Measured,
        input: Option<&Measured>,
        resolution: u32,
        of: &str,
    ) -> Vec<Quality> {
        if trainer.communicator().rank() != 0 {
            return Vec::new();
        }
        let metrics = &trainer.config().metrics;
        let one = |value: Option<f64>| value.map(|value| BTreeMap::from([(resolution, value)])).unwrap_or_default();
        let count = made.each.len() as u32;
        let mut found = Vec::new();
        let name = self.features.as_ref().map_or("", Features::name);
        type Distance = fn(&Tensor, &Tensor) -> Option<f64>;
        let distances: [(bool, &str, Distance); 2] =
            [(metrics.kid, names::KID, distance::kid), (metrics.frechet, names::FRECHET, distance::frechet)];
        for (_, metric, distance) in distances.into_iter().filter(|(wanted, ..)| *wanted) {
            let [one_half, other] = halves(real);
            found.push(Quality {
                metric: metric.to_owned(),
                of: of.to_owned(),
                features: name.to_owned(),
                count,
                levels: one(distance(&finite(&made.features), &finite(&real.features))),
                // of fewer images it is larger by itself, and halves are fewer
                floor: if metric == names::FRECHET { BTreeMap::new() } else { one(distance(&one_half, &other)) },
                untouched: one(input.and_then(|input| distance(&finite(&input.features), &finite(&real.features)))),
                ..Quality::default()
            });
        }
        if metrics.diversity {
            let alike = |set: &Measured| mean(set.pairs.iter().map(|said| said[ALIKE]));
            found.push(Quality {
                metric: names::DIVERSITY.to_owned(),
                of: of.to_owned(),
                count,
                levels: one(alike(made)),
                floor: one(alike(real)),
                ..Quality::default()
            });
        }
        found
    }

    /// What was measured of real images of a domain, at a resolution, out of so many; measured again where one rank does not have it.
    fn reals(
        &mut self,
        trainer: &mut Trainer,
        of: (usize, u32, u32),
        pairs: u32,
    ) -> Result<Rc<Measured>, EvaluateError> {
        let (domain, resolution, all_there) = of;
        let known = self.reals.get(&of).filter(|known| known.pairs.len() == pairs as usize).cloned();
        let all = trainer.communicator().gather(vec![u8::from(known.is_some())]).map_err(StepError::from)?;
        if let Some(known) = known.filter(|_| all.iter().all(|has| has[..] == [1])) {
            return Ok(known);
        }
        let (images, seed) = (Arc::clone(&self.images), trainer.config().seed);
        let one = trainer.config().model.pairing() == Pairing::One;
        let mirror = trainer.config().data.mirror;
        let chosen = chosen(seed, all_there, pairs);
        let mut measured = measure(trainer, self.features.as_ref(), pairs, (0, 2), |_, index| {
            let mut bytes = vec![0; image_bytes(resolution)];
            let index = chosen[index as usize];
            match one {
                true => trained_on(images.first(), index as usize, resolution, mirror.then_some(seed), &mut bytes)?,
                false => bytes = images.look(domain, index, resolution)?,
            }
            Ok((bytes, Vec::new()))
        })?;
        let shown = if one { self.images.first() } else { self.images.shown(domain) };
        measured.halves = sliced::halves(chosen.iter().map(|index| shown.name(*index as usize).unwrap_or_default()));
        let measured = Rc::new(measured);
        self.reals.insert(of, Rc::clone(&measured));
        Ok(measured)
    }

    /// For each of the first `count` images of `source` that of the other domain that shows the same: the other half, or the one of
    /// the same name. The same on every rank.
    fn twins(&mut self, trainer: &mut Trainer, source: usize, count: u32) -> Result<Vec<Option<u32>>, EvaluateError> {
        let word = match (trainer.config().model.pairing(), trainer.communicator().rank()) {
            (_, 1..) => Vec::new(),
            (Pairing::Unpaired, _) => serde_json::to_vec(&self.images.twins(source, count))?,
            _ => serde_json::to_vec(&(0..count).map(Some).collect::<Vec<_>>())?,
        };
        let words = trainer.communicator().gather(word).map_err(StepError::from)?;
        let twins: Vec<Option<u32>> = serde_json::from_slice(words.first().map(Vec::as_slice).unwrap_or_default())?;
        if twins.iter().all(Option::is_none)
            && !std::mem::replace(&mut self.alone, true)
            && trainer.communicator().rank() == 0
        {
            tracing::warn!("metrics.kinds has \"twins\", and no image of one domain has the name of one of the other");
        }
        Ok(twins)
    }
}

/// Which `2 * pairs` of `all` images are looked at: not the first ones by name, which may show one thing.
fn chosen(seed: u64, all: u32, pairs: u32) -> Vec<u32> {
    let mut order = permutation(seed, u64::MAX, all as usize);
    order.truncate(2 * pairs as usize);
    order
}

/// `2 * pairs` images, a pair being one of the first half and the one that stands in its place in the second; each is made by one rank.
/// `make` gives the bytes of an image, and `said` numbers about it; of a pair, `of_pair` numbers are told.
fn measure(
    trainer: &mut Trainer,
    features: Option<&Features>,
    pairs: u32,
    (said, of_pair): (usize, usize),
    mut make: impl FnMut(&Trainer, u32) -> Result<(Vec<u8>, Vec<f32>), Unmeasured>,
) -> Result<Measured, EvaluateError> {
    let width = features.map_or(0, Features::width);
    let row = 2 * (width + said) + of_pair;
    let mut trouble = None;
    let bytes = generate::together(trainer, (4 * row, AT_ONCE), pairs, |trainer, mine| {
        let mut rows: Vec<f32> = Vec::with_capacity(mine.len() * row);
        for pair in mine {
            let measured = one_pair(trainer, features, (pair, pair + pairs), &mut make).map(|mut numbers| {
                numbers.truncate(row);
                numbers
            });
            let start = rows.len();
            match measured {
                Ok(numbers) => rows.extend(numbers),
                Err(error) => trouble = Some(error),
            }
            rows.resize(start + row, f32::NAN);
        }
        rows.iter().flat_map(|number| number.to_le_bytes()).collect()
    })?;
    if let Some(error) = trouble {
        tracing::warn!("an image is left out of the evaluation: {error}");
    }
    let number = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
    let rows: Vec<Vec<f32>> =
        bytes.chunks_exact(4 * row).map(|row| row.chunks_exact(4).map(number).collect()).collect();
    let half = |which: usize, from: usize, len: usize| {
        let start = which * (width + said) + from;
        rows.iter().map(move |row| row[start..start + len].to_vec())
    };
    let features: Vec<f32> = (0..2).flat_map(|which| half(which, 0, width)).flatten().collect();
    let features = Tensor::from_slice(&features).view([2 * i64::from(pairs), width as i64]);
    Ok(Measured {
        features,
        each: (0..2).flat_map(|which| half(which, width, said)).collect(),
        pairs: rows.iter().map(|row| row[row.len() - of_pair..].to_vec()).collect(),
        halves: Default::default(),
    })
}

/// Features and what is said of both images, then of the pair.
fn one_pair(
    trainer: &Trainer,
    features: Option<&Features>,
    (one, other): (u32, u32),
    make: &mut impl FnMut(&Trainer, u32) -> Result<(Vec<u8>, Vec<f32>), Unmeasured>,
) -> Result<Vec<f32>, Unmeasured> {
    let (a, b) = (make(trainer, one)?, make(trainer, other)?);
    let side = ((a.0.len() / 3) as f64).sqrt() as usize;
    let taken = features.map(|features| {
        let both = Tensor::from_slice(&[a.0.as_slice(), &b.0].concat()).view([2, 3, side as i64, side as i64]);
        let taken = features.take(&both).map_err(Unmeasured::Features)?;
        let (found, width) = (taken.size(), features.width() as i64);
        match found[..] == [2, width] {
            true => Ok(taken),
            false => Err(Unmeasured::Features(format!(
                "of two images of {side} px the network makes {found:?}, expected [2, {width}]"
            ))),
        }
    });
    let taken =
        taken.transpose()?.map(|taken| Vec::<Vec<f32>>::try_from(taken).unwrap_or_default()).unwrap_or_default();
    let of = |which: usize| taken.get(which).cloned().unwrap_or_default();
    let alike = if one < DIVERSITY_PAIRS { ms_ssim(&a.0, &b.0, side) as f32 } else { f32::NAN };
    let apart = l1(&a.0, &b.0);
    Ok([of(0), a.1, of(1), b.1, vec![alike, apart]].concat())
}

/// One image made of nothing.
fn sample(sampler: &dyn Sampler, seed: u64, index: u32, level: &Level, device: Device) -> Vec<u8> {
    let size = sampler.latent_size();
    generate::images(sampler, level, index..index + 1, |piece| {
        generate::latents(seed, Purpose::Evaluate, piece, size, device)
    })
}

/// One image that is trained on, turned as training turns it: each by its own coin.
fn trained_on(
    set: &Pyramid,
    index: usize,
    resolution: u32,
    mirror: Option<u64>,
    out: &mut [u8],
) -> Result<(), DataError> {
    set.read(resolution, index, out)?;
    if mirror.is_some_and(|seed| Stream::new(seed, Purpose::Metric, u64::MAX, index as u64).coin()) {
        out.chunks_exact_mut(resolution as usize).for_each(<[u8]>::reverse);
    }
    Ok(())
}

/// One image taken in `direction`: its bytes, and what is said of it.
fn translated(
    translator: &dyn Translator,
    (direction, there_and_back): (usize, bool),
    bytes: &[u8],
    twin: Option<&[u8]>,
    (resolution, device): (u32, Device),
) -> (Vec<u8>, Vec<f32>) {
    let image = range(bytes, resolution, device);
    let made = translator.translate(direction, &image);
    let difference = |other: &Tensor| ((&image - other).abs().mean(Kind::Float).double_value(&[]) / 2.0) as f32;
    let mut said = vec![f32::NAN; SAID];
    said[CHANGE] = difference(&made);
    said[LIKENESS] = correlation(&image, &made);
    if there_and_back {
        said[CYCLE] = difference(&translator.translate(1 - direction, &made));
    }
    let made = generate::to_bytes(&made);
    if let Some(twin) = twin {
        let side = resolution as usize;
        said[TWIN_L1] = l1(&made, twin);
        said[TWIN_SSIM] = ssim(&made, twin, side) as f32;
        said[INPUT_L1] = l1(bytes, twin);
        said[INPUT_SSIM] = ssim(bytes, twin, side) as f32;
    }
    (made, said)
}

/// Of brightness, pixel by pixel; nothing of an image that has but one.
fn correlation(one: &Tensor, other: &Tensor) -> f32 {
    let centred = |image: &Tensor| {
        let grey = image.mean_dim(&[1i64][..], false, None::<Kind>);
        &grey - grey.mean(Kind::Float)
    };
    let (a, b) = (centred(one), centred(other));
    let sum = |t: Tensor| t.sum(Kind::Float).double_value(&[]);
    let size = (sum(a.square()) * sum(b.square())).sqrt();
    if size > 1e-6 { (sum(a * b) / size) as f32 } else { f32::NAN }
}

/// Mean absolute difference of bytes, as values from 0 to 1.
fn l1(one: &[u8], other: &[u8]) -> f32 {
    let sum: u64 = one.iter().zip(other).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    (sum as f64 / (255.0 * one.len().max(1) as f64)) as f32
}

/// The mean of those that are numbers.
fn mean(values: impl Iterator<Item = f32>) -> Option<f64> {
    let values: Vec<f64> = values.filter(|value| value.is_finite()).map(f64::from).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The rows that are numbers throughout.
fn finite(features: &Tensor) -> Tensor {
    let sound = features.isfinite().all_dim(1, false);
    features.index_select(0, &sound.nonzero().view([-1]))
}

/// Features of the two halves between which the floor is measured.
fn halves(real: &Measured) -> [Tensor; 2] {
    let (one, other) = &real.halves;
    let of = |half: &[usize]| {
        let indices: Vec<i64> = half.iter().map(|index| *index as i64).collect();
        finite(&real.features.index_select(0, &Tensor::from_slice(&indices)))
    };
    let least = one.len().min(other.len());
    [of(&one[..least]), of(&other[..least])]
}

#[cfg(test)]
mod tests;
