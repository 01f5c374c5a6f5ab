//! `worker sample`: images from any checkpoint, one for each seed, as one PNG.

use crate::failure::Failure;
use crate::generate;
use crate::trained::{self, Trained};
use common::config::resolved::S3;
use common::ids::ImagesSeen;
use common::schedule::Stage;
use common::seed::{Purpose, Stream};
use data::save_grid;
use std::path::Path;
use tch::Tensor;

/// Most images of one call.
const MAX: usize = 4096;

/// Writes a grid of the images of `seeds` (`0-63`, `1,5,9`) from the checkpoint at `url` to `out`.
///
/// # Errors
/// The seeds, the store, the checkpoint or the file cannot be used.
pub fn sample(url: &str, seeds: &str, out: &Path, s3: &S3) -> Result<(), Failure> {
    let seeds = parse(seeds).map_err(Failure::Usage)?;
    let Trained { manifest, model } = trained::open(url, s3)?;
    let level = Stage::at(&manifest.config, ImagesSeen(manifest.cursor.cycle_images)).level;
    let sampler = model.role().sampler().ok_or_else(|| {
        let family = manifest.config.model.family();
        Failure::Usage(format!("{} is a \"{family}\", which makes images of images, not of seeds", manifest.run))
    })?;
    let size = sampler.latent_size();
    let count = seeds.len() as u32;
    let bytes = generate::images(sampler, &level, 0..count, |piece| {
        let mut values = vec![0.0f32; piece.len() * size as usize];
        for (row, index) in values.chunks_exact_mut(size as usize).zip(piece.clone()) {
            Stream::new(seeds[index as usize], Purpose::Sample, 0, 0).normals(row);
        }
        Tensor::from_slice(&values).view([piece.len() as i64, i64::from(size)])
    });
    let columns = (f64::from(count).sqrt().ceil() as u32).max(1);
    let png = save_grid(&bytes, level.resolution, columns, count.div_ceil(columns))?;
    std::fs::write(out, png)
        .map_err(|error| Failure::Usage(format!("cannot write --out {}: {error}", out.display())))?;
    eprintln!(
        "{} images of {} at {}, {} px, in {}",
        count,
        manifest.run,
        ImagesSeen(manifest.cursor.images),
        level.resolution,
        out.display()
    );
    Ok(())
}

/// `0-63`, `7`, `1,5,9-11` as seeds, in this order.
fn parse(text: &str) -> Result<Vec<u64>, String> {
    let wrong = || format!("--seeds {text}: expected numbers and ranges such as 0-63 or 1,5,9, at most {MAX} in all");
    let mut seeds = Vec::new();
    for piece in text.split(',') {
        let number = |s: &str| s.trim().parse::<u64>().map_err(|_| wrong());
        let (first, last) = match piece.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(piece)?, number(piece)?),
        };
        if last < first || last - first >= MAX as u64 {
            return Err(wrong());
        }
        seeds.extend(first..=last);
    }
    if seeds.len() > MAX { Err(wrong()) } else { Ok(seeds) }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn seeds() {
        assert_eq!(parse("0-3"), Ok(vec![0, 1, 2, 3]));
        assert_eq!(parse("7, 1-2"), Ok(vec![7, 1, 2]));
        for bad in ["", "x", "3-1", "0-99999999999", "1-", "-1", "0-4095,1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
