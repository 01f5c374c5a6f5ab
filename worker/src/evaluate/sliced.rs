//! How far the made images are from the real ones: the sliced Wasserstein distance, with the floor that real images have
//! among themselves.

use super::{EvaluateError, trained_on};
use crate::generate;
use crate::trainer::Trainer;
use common::growth::Level;
use common::metrics::{Quality, names};
use common::seed::Purpose;
use data::Pyramid;
use metrics::{ImageSource, ReadError, Subset, swd};
use std::collections::BTreeMap;

/// The training images at one resolution, mirrored as training mirrors them: each once, by its own coin.
struct Reals<'a> {
    pyramid: &'a Pyramid,
    resolution: u32,
    mirror: Option<u64>,
}

impl ImageSource for Reals<'_> {
    fn len(&self) -> usize {
        self.pyramid.len()
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), ReadError> {
        Ok(trained_on(self.pyramid, index, self.resolution, self.mirror, out)?)
    }
}

/// Images in memory.
struct Made<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl ImageSource for Made<'_> {
    fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), ReadError> {
        let image = self.bytes.chunks_exact(self.size).nth(index).ok_or("no such image")?;
        out.copy_from_slice(image);
        Ok(())
    }
}

/// The two halves of images of these `names` between which a floor is measured. Files whose names agree up to the first `-` show one
/// subject (the same person in other colours, say) and stay on one side, or the floor would be too low.
pub(super) fn halves<'a>(names: impl Iterator<Item = &'a str>) -> (Vec<usize>, Vec<usize>) {
    let subject =
        |name: &'a str| name.rsplit('/').next().unwrap_or_default().split(['-', '.']).next().unwrap_or_default();
    let mut subjects: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, name) in names.enumerate() {
        subjects.entry(subject(name)).or_default().push(index);
    }
    let mut sides = (Vec::new(), Vec::new());
    let mut groups: Vec<_> = subjects.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    for group in groups {
        let side = if sides.0.len() <= sides.1.len() { &mut sides.0 } else { &mut sides.1 };
        side.extend(group);
    }
    sides
}

/// The distance of images made at `level` to real ones of its resolution. Every rank calls it at the same step; rank 0
/// gets the answer.
///
/// # Errors
/// When a rank is lost or an image cannot be read.
pub fn wasserstein(
    trainer: &mut Trainer,
    pyramid: &Pyramid,
    level: Level,
    floors: &mut BTreeMap<u32, BTreeMap<u32, f64>>,
) -> Result<Option<Quality>, EvaluateError> {
    let config = trainer.config();
    let (seed, resolution) = (config.seed, level.resolution);
    let count = (config.metrics.images as usize).min(pyramid.len()) as u32;
    let mirror = config.data.mirror.then_some(seed);
    let made = generate::samples(trainer, Purpose::Evaluate, level, count)?;
    if trainer.communicator().rank() != 0 {
        return Ok(None);
    }
    let reals = Reals { pyramid, resolution, mirror };
    let fakes = Made { bytes: &made, size: 3 * resolution.pow(2) as usize };
    let levels = swd(&reals, &fakes, resolution, count as usize, seed)?;
    let floor = match floors.get(&resolution) {
        Some(known) => known.clone(),
        None => {
            let (one, other) = halves((0..pyramid.len()).map(|index| pyramid.name(index).unwrap_or_default()));
            let half = one.len().min(other.len()).min(count as usize);
            let (a, b) = (Subset { source: &reals, indices: one }, Subset { source: &reals, indices: other });
            let floor = if half > 0 { swd(&a, &b, resolution, half, seed)? } else { BTreeMap::new() };
            floors.insert(resolution, floor.clone());
            floor
        }
    };
    Ok(Some(Quality { metric: names::SWD.to_owned(), count, levels, floor, ..Quality::default() }))
}
