//! How far the made images are from the real ones: the sliced Wasserstein distance, with the floor that real images have
//! among themselves.

use crate::generate;
use crate::trainer::{StepError, Trainer};
use common::growth::Level;
use common::metrics::Quality;
use common::seed::{Purpose, Stream};
use data::Pyramid;
use metrics::{ImageSource, ReadError, Subset, SwdError, swd};
use std::collections::BTreeMap;

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// Another rank is gone.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The metric refuses.
    #[error(transparent)]
    Swd(#[from] SwdError),
}

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
        self.pyramid.read(self.resolution, index, out)?;
        if self.mirror.is_some_and(|seed| Stream::new(seed, Purpose::Metric, u64::MAX, index as u64).coin()) {
            out.chunks_exact_mut(self.resolution as usize).for_each(<[u8]>::reverse);
        }
        Ok(())
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

/// The two halves between which the floor is measured. Files whose names agree up to the first `-` show one subject (the
/// same person in other colours, say) and stay on one side, or the floor would be too low.
fn halves(pyramid: &Pyramid) -> (Vec<usize>, Vec<usize>) {
    let subject = |index: usize| {
        let name = pyramid.name(index).unwrap_or_default();
        name.rsplit('/').next().unwrap_or_default().split(['-', '.']).next().unwrap_or_default().to_owned()
    };
    let mut subjects: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for index in 0..pyramid.len() {
        subjects.entry(subject(index)).or_default().push(index);
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
pub fn sliced_wasserstein(
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
            let (one, other) = halves(pyramid);
            let half = one.len().min(other.len()).min(count as usize);
            let (a, b) = (Subset { source: &reals, indices: one }, Subset { source: &reals, indices: other });
            let floor = if half > 0 { swd(&a, &b, resolution, half, seed)? } else { BTreeMap::new() };
            floors.insert(resolution, floor.clone());
            floor
        }
    };
    let images = trainer.position().images;
    Ok(Some(Quality { images, metric: "swd".to_owned(), count, levels, floor }))
}
