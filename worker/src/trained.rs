//! The networks of a checkpoint, to be used: configuration, model, and as many of the weights as are asked for.

use crate::checkpoint::{RestoreError, snapshot};
use crate::failure::Failure;
use crate::models::{self, GanModel};
use crate::parameters::Parameters;
use common::checkpoint::Manifest;
use common::config::resolved::S3;
use common::config::{self, Base, Layers};
use common::families::elsewhere::AVERAGE;
use std::collections::BTreeMap;
use std::path::Path;
use storage::{Run, Store, resolve_run_url};
use tch::{Device, Kind, Tensor};
use tokio::runtime::Runtime;

/// A model as it is used.
pub struct Trained {
    /// The checkpoint that it comes from.
    pub manifest: Manifest,
    /// The model: what makes images holds the checkpoint's weights, averaged ones where there are any.
    pub model: Box<dyn GanModel>,
}

/// A checkpoint that was found and whose weights are not read yet.
pub struct Found {
    /// What it is.
    pub manifest: Manifest,
    run: Run,
    runtime: Runtime,
}

/// The networks of the run or checkpoint at `url`.
///
/// # Errors
/// The store or the checkpoint cannot be used.
pub fn open(url: &str, s3: &S3) -> Result<Trained, Failure> {
    let found = find(url, s3)?;
    let model = found.model();
    found.fill(shown(model.as_ref()))?;
    Ok(Trained { manifest: found.manifest, model })
}

/// The checkpoint at `url`; of a run, the newest good one.
///
/// # Errors
/// The store or the checkpoint cannot be used.
pub fn find(url: &str, s3: &S3) -> Result<Found, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { doing: "start a runtime".to_owned(), error })?;
    let (run, manifest) = runtime.block_on(manifest_at(url, s3))?;
    possible(&manifest)?;
    Ok(Found { manifest, run, runtime })
}

impl Found {
    /// Its model, to be used: freshly drawn.
    #[must_use]
    pub fn model(&self) -> Box<dyn GanModel> {
        models::build(&self.manifest.config.for_use(), Kind::Float, Device::Cpu)
    }

    /// Puts its tensors of these names into those that are given with them; the rest of its state is not read.
    ///
    /// # Errors
    /// One cannot be read, or it has none of that name and shape.
    pub fn fill(&self, wanted: Vec<(String, Tensor)>) -> Result<(), Failure> {
        self.runtime.block_on(fill(&self.run, &self.manifest, wanted))
    }
}

/// The weights of `model` that make images, by their names in a checkpoint.
fn shown(model: &dyn GanModel) -> Vec<(String, Tensor)> {
    match model.average() {
        Some((_, average)) => named(AVERAGE, average).collect(),
        None => named("", model.parameters(model.maker())).collect(),
    }
}

/// Everything that a checkpoint holds of the networks of `model`, by its name there: parameters, averages, and what is remembered
/// besides. They share memory with the model.
#[must_use]
pub fn tensors(model: &dyn GanModel) -> BTreeMap<String, Tensor> {
    let parameters = model.modules().iter().flat_map(|module| named("", model.parameters(module)));
    let average = model.average().into_iter().flat_map(|(_, average)| named(AVERAGE, average));
    let memory = model.memory().into_iter().flat_map(|memory| named("", memory));
    parameters.chain(average).chain(memory).collect()
}

fn named<'a>(prefix: &'a str, parameters: &'a Parameters) -> impl Iterator<Item = (String, Tensor)> + 'a {
    let pairs = parameters.specs().iter().zip(parameters.tensors());
    pairs.map(move |(spec, tensor)| (format!("{prefix}{}", spec.name), tensor.detach()))
}

async fn manifest_at(url: &str, s3: &S3) -> Result<(Run, Manifest), Failure> {
    let found = resolve_run_url(url)?;
    let run = Store::open_existing(&found.root, s3)?.run(&found.run)?;
    let manifest = match found.key {
        Some(key) => run.load(key).await?,
        None => run.newest_good(true).await?.manifest.ok_or_else(|| {
            Failure::Storage(storage::StorageError::NotFound { what: format!("a usable checkpoint in {}", run.url()) })
        })?,
    };
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

async fn fill(run: &Run, manifest: &Manifest, mut wanted: Vec<(String, Tensor)>) -> Result<(), Failure> {
    let key = manifest.key();
    for part in &manifest.parts {
        let here = |(name, _): &mut (String, Tensor)| part.tensors.iter().any(|tensor| tensor.name == *name);
        let tensors: Vec<(String, Tensor)> = wanted.extract_if(.., here).collect();
        if tensors.is_empty() {
            continue;
        }
        let bytes = run.get_blob(&part.blob).await?;
        let live = snapshot::LivePart { name: format!("{} of {key}", part.name), tensors };
        snapshot::restore_some(&live, &bytes).map_err(RestoreError::from)?;
    }
    if let Some((first, _)) = wanted.first() {
        let why = format!("lacks {} tensors of its networks, {first} among them", wanted.len());
        return Err(RestoreError::Content { key, why }.into());
    }
    Ok(())
}
