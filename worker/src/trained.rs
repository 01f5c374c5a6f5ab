//! The networks of a checkpoint, to be used: configuration, model, and the weights that people are shown.

use crate::checkpoint::{RestoreError, snapshot};
use crate::failure::Failure;
use crate::models::{self, GanModel};
use common::checkpoint::Manifest;
use common::config::resolved::S3;
use common::config::{self, Base, Layers};
use std::path::Path;
use storage::{Run, Store, resolve_run_url};
use tch::{Device, Kind, Tensor};

/// A model as it is used.
pub struct Trained {
    /// The checkpoint that it comes from.
    pub manifest: Manifest,
    /// The model: what makes images holds the checkpoint's weights, averaged ones where there are any.
    pub model: Box<dyn GanModel>,
}

/// The networks of the run or checkpoint at `url`.
///
/// # Errors
/// The store or the checkpoint cannot be used.
pub fn open(url: &str, s3: &S3) -> Result<Trained, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { doing: "start a runtime".to_owned(), error })?;
    let (run, manifest) = runtime.block_on(find(url, s3))?;
    let model = models::build(&manifest.config.for_use(), Kind::Float, Device::Cpu);
    runtime.block_on(fill(&run, &manifest, model.as_ref()))?;
    Ok(Trained { manifest, model })
}

async fn find(url: &str, s3: &S3) -> Result<(Run, Manifest), Failure> {
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

/// Puts the weights of `manifest` that make images into `model`; the rest of the state is not read.
async fn fill(run: &Run, manifest: &Manifest, model: &dyn GanModel) -> Result<(), Failure> {
    let key = manifest.key();
    let (prefix, used) = match model.average() {
        Some((_, average)) => ("average.", average),
        None => ("", model.parameters(model.maker())),
    };
    let mut missing = used.len();
    for part in &manifest.parts {
        let wanted: Vec<(String, Tensor)> = (used.specs().iter().zip(used.tensors()))
            .map(|(spec, tensor)| (format!("{prefix}{}", spec.name), tensor.detach()))
            .filter(|(name, _)| part.tensors.iter().any(|t| t.name == *name))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        missing -= wanted.len().min(missing);
        let bytes = run.get_blob(&part.blob).await?;
        let live = snapshot::LivePart { name: format!("{} of {key}", part.name), tensors: wanted };
        snapshot::restore_some(&live, &bytes).map_err(RestoreError::from)?;
    }
    if missing > 0 {
        let why = format!("lacks {missing} tensors of the networks that make images");
        return Err(RestoreError::Content { key, why }.into());
    }
    Ok(())
}
