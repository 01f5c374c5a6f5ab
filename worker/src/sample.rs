//! `worker sample`: images from any checkpoint, one for each seed, as one PNG.

use crate::checkpoint::{RestoreError, snapshot};
use crate::failure::Failure;
use crate::generate;
use crate::models;
use common::checkpoint::{Manifest, ManifestKey};
use common::config::resolved::S3;
use common::config::{self, Base, Layers};
use common::ids::ImagesSeen;
use common::schedule::Stage;
use common::seed::{Purpose, Stream};
use data::save_grid;
use std::path::Path;
use storage::{Run, Store, resolve_run_url};
use tch::{Device, Kind, Tensor};

/// Most images of one call.
const MAX: usize = 4096;

/// Writes a grid of the images of `seeds` (`0-63`, `1,5,9`) from the checkpoint at `url` to `out`.
///
/// # Errors
/// The seeds, the store, the checkpoint or the file cannot be used.
pub fn sample(url: &str, seeds: &str, out: &Path, s3: &S3) -> Result<(), Failure> {
    let seeds = parse(seeds).map_err(Failure::Usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { doing: "start a runtime".to_owned(), error })?;
    let (run, manifest) = runtime.block_on(open(url, s3))?;
    let model = models::build(&manifest.config, Kind::Float, Device::Cpu);
    runtime.block_on(average(&run, &manifest, model.as_ref()))?;
    let level = Stage::at(&manifest.config, ImagesSeen(manifest.cursor.cycle_images)).level;
    let size = model.latent_size();
    let count = seeds.len() as u32;
    let bytes = generate::images(model.as_ref(), &level, 0..count, |piece| {
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

async fn open(url: &str, s3: &S3) -> Result<(Run, Manifest), Failure> {
    let found = resolve_run_url(url)?;
    let run = Store::open_existing(&found.root, s3)?.run(&found.run)?;
    let manifest = match found.key {
        Some(key) => run.load(key).await?,
        None => run.newest_good(true).await?.manifest.ok_or_else(|| {
            Failure::Storage(storage::StorageError::NotFound { what: format!("a usable checkpoint in {}", run.url()) })
        })?,
    };
    possible(&manifest)?;
    Ok((run, manifest))
}

/// A manifest comes from outside: a configuration that no experiment file could have given is refused before anything is
/// computed from it.
fn possible(manifest: &Manifest) -> Result<(), RestoreError> {
    let layers = Layers { base: Base::Run(&manifest.config), env: &[], set: &[], working_dir: Path::new("/") };
    match config::resolve(&layers, manifest.world) {
        Ok(_) => Ok(()),
        Err(error) => {
            let why = format!("holds a configuration that no run can have: {error}");
            Err(RestoreError::Content { key: manifest.key(), why })
        }
    }
}

/// Puts the averaged weights of `manifest` into `model`; the rest of the state is not read.
async fn average(run: &Run, manifest: &Manifest, model: &dyn models::GanModel) -> Result<(), Failure> {
    let key: ManifestKey = manifest.key();
    let (_, average) = model.average();
    for part in &manifest.parts {
        let wanted: Vec<(String, Tensor)> = (average.specs().iter().zip(average.tensors()))
            .map(|(spec, tensor)| (format!("average.{}", spec.name), tensor.detach()))
            .filter(|(name, _)| part.tensors.iter().any(|t| t.name == *name))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let bytes = run.get_blob(&part.blob).await?;
        let live = snapshot::LivePart { name: format!("{} of {key}", part.name), tensors: wanted };
        snapshot::restore_some(&live, &bytes).map_err(RestoreError::from)?;
    }
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
