//! The prepared images of a run: one set, or one for each domain; and which of them a step is shown.
//!
//! What is shown is a pure function of the run's seed and of the position in the stream of real images, whatever the number
//! of workers. Nothing here decodes an image or knows a network.

use common::config::resolved::RunConfig;
use common::families::Pairing;
use common::seed::{Purpose, Stream};
use data::{DataError, Order, Pyramid, View, image_bytes};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::ops::Range;

/// What one step shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Images seen when it begins.
    pub images: u64,
    /// Side of the images in pixels.
    pub resolution: u32,
    /// Positions in the global minibatch.
    pub samples: Range<u32>,
}

/// The images of a run.
#[derive(Debug)]
pub struct Images {
    seed: u64,
    mirror: bool,
    pairing: Pairing,
    /// Those that are trained on, a set for each domain; one set at least.
    train: Vec<Pyramid>,
    /// Those that are kept from training, likewise; none where the data have none.
    held_out: Vec<Pyramid>,
}

impl Images {
    /// Those of the run that `config` describes: a set for each domain.
    #[must_use]
    pub fn new(config: &RunConfig, train: Vec<Pyramid>, held_out: Vec<Pyramid>) -> Self {
        Self { seed: config.seed, mirror: config.data.mirror, pairing: config.model.pairing(), train, held_out }
    }

    /// The images of the first domain.
    #[must_use]
    pub fn first(&self) -> &Pyramid {
        &self.train[0]
    }

    /// A few images of each domain to look at: those kept from training, where there are any.
    fn to_look_at(&self) -> &[Pyramid] {
        if self.held_out.len() == self.train.len() { &self.held_out } else { &self.train }
    }

    /// Those of one domain.
    #[must_use]
    pub fn shown(&self, domain: usize) -> &Pyramid {
        &self.to_look_at()[domain]
    }

    /// For each of the first `count` images of `source` that are looked at, the one of the other domain whose file has the same name,
    /// where there is one among as many.
    #[must_use]
    pub fn twins(&self, source: usize, count: u32) -> Vec<Option<u32>> {
        let stem = |set: &Pyramid, index: u32| {
            let name = set.name(index as usize).unwrap_or_default();
            let file = name.rsplit('/').next().unwrap_or_default();
            file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_owned()
        };
        let (from, to) = (self.shown(source), self.shown(1 - source));
        let known: HashMap<String, u32> =
            (0..count.min(to.count().get())).map(|index| (stem(to, index), index)).collect();
        (0..count).map(|index| known.get(&stem(from, index)).copied()).collect()
    }

    /// How many images of each domain there are to look at.
    #[must_use]
    pub fn looked_at(&self) -> u32 {
        self.to_look_at().iter().map(|set| set.count().get()).min().unwrap_or_default()
    }

    /// One of them: the middle of it, CHW.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look(&self, domain: usize, index: u32, resolution: u32) -> Result<Vec<u8>, DataError> {
        let set = self.shown(domain);
        let (mut whole, mut out) = (vec![0; image_bytes(set.resolution())], vec![0; image_bytes(resolution)]);
        set.read(set.resolution(), index as usize, &mut whole)?;
        let corner = (set.resolution() - resolution) as usize / 2;
        cut(&whole, set.resolution() as usize, (corner, corner), resolution as usize, &mut out);
        Ok(out)
    }

    /// Images of one pass: as many as the largest domain has.
    #[must_use]
    pub fn epoch(&self) -> NonZeroU32 {
        self.train.iter().map(Pyramid::count).max().unwrap_or(NonZeroU32::MIN)
    }

    /// All images that are trained on; a pair is one.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.pairing {
            Pairing::Paired => self.first().len(),
            Pairing::One | Pairing::Unpaired => self.train.iter().map(Pyramid::len).sum(),
        }
    }

    /// Whether there are none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hash of the images that are trained on and of how they were prepared.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        match &self.train[..] {
            [one] => one.fingerprint().to_owned(),
            several => {
                let mut hasher = blake3::Hasher::new();
                for set in several {
                    hasher.update(set.fingerprint().as_bytes());
                }
                hasher.finalize().to_hex().to_string()
            }
        }
    }

    /// Their order in the stream of real images.
    #[must_use]
    pub fn order(&self) -> Order {
        Order::new(self.seed, self.epoch())
    }

    /// The images that a step shows, CHW bytes one after the other, for each domain.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self, order: &mut Order, request: &Request) -> Result<Vec<Vec<u8>>, DataError> {
        let size = image_bytes(request.resolution);
        let mut domains = vec![vec![0u8; request.samples.len() * size]; self.train.len()];
        let mut whole = Vec::new();
        for (place, sample) in request.samples.clone().enumerate() {
            let within = place * size..(place + 1) * size;
            let draw = |purpose| Stream::new(self.seed, purpose, request.images, u64::from(sample));
            let shown = order.index_at(request.images + u64::from(sample));
            let (mut mirror, mut crop) = (draw(Purpose::Mirror), draw(Purpose::Crop));
            for (domain, (set, out)) in self.train.iter().zip(&mut domains).enumerate() {
                let unpaired = self.pairing == Pairing::Unpaired && domain > 0;
                let index = match unpaired {
                    false => shown % set.count(),
                    true => draw(Purpose::Unpaired).below(u64::from(set.count().get())) as u32,
                };
                // both halves of a pair are turned and cropped alike
                if self.pairing == Pairing::Paired {
                    (mirror, crop) = (draw(Purpose::Mirror), draw(Purpose::Crop));
                }
                let out = &mut out[within.clone()];
                if set.resolution() > request.resolution && !set.is_pyramid() {
                    whole.resize(image_bytes(set.resolution()), 0);
                    set.read(set.resolution(), index as usize, &mut whole)?;
                    let room = u64::from(set.resolution() - request.resolution) + 1;
                    let (left, top) = (crop.below(room) as usize, crop.below(room) as usize);
                    cut(&whole, set.resolution() as usize, (left, top), request.resolution as usize, out);
                } else {
                    set.read(request.resolution, index as usize, out)?;
                }
                if self.mirror && mirror.coin() {
                    out.chunks_exact_mut(request.resolution as usize).for_each(<[u8]>::reverse);
                }
            }
        }
        Ok(domains)
    }
}

/// The square of side `side` whose upper left corner is at `(left, top)`, out of planes of side `from`.
fn cut(planes: &[u8], from: usize, (left, top): (usize, usize), side: usize, out: &mut [u8]) {
    for (plane, out) in planes.chunks_exact(from * from).zip(out.chunks_exact_mut(side * side)) {
        for (row, out) in plane.chunks_exact(from).skip(top).zip(out.chunks_exact_mut(side)) {
            out.copy_from_slice(&row[left..left + side]);
        }
    }
}

/// Where the images of one domain lie.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// What of each image is kept.
    pub view: View,
    /// Folder of those that are trained on; without one, the whole source.
    pub train: Option<&'static str>,
    /// Folders of those that are kept from training: the first that holds any.
    pub held_out: &'static [&'static str],
}

/// The domains of a source.
#[must_use]
pub fn domains(pairing: Pairing) -> Vec<Domain> {
    let domain = |view, train, held_out| Domain { view, train, held_out };
    match pairing {
        Pairing::One => vec![domain(View::Centre, None, &[])],
        Pairing::Unpaired => vec![
            domain(View::Whole, Some("trainA"), &["testA", "valA"]),
            domain(View::Whole, Some("trainB"), &["testB", "valB"]),
        ],
        Pairing::Paired => vec![
            domain(View::Left, Some("train"), &["test", "val"]),
            domain(View::Right, Some("train"), &["test", "val"]),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_is_cut_from_every_plane() {
        let planes: Vec<u8> = (0..32).collect();
        let mut out = vec![0; 8];
        cut(&planes, 4, (1, 2), 2, &mut out);
        assert_eq!(out, [9, 10, 13, 14, 25, 26, 29, 30]);
    }
}
