//! `worker import`: weights that others have trained become the first checkpoint of a run, from which it is used or trained on.
//!
//! Names, shapes and factors are `common::families::elsewhere`, which file holds which network is `given`. What is taken in fits
//! exactly or not at all. Optimizers begin anew: no file has their state.

mod given;

use crate::checkpoint::{Checkpoints, Identity};
use crate::communicator::Communicator;
use crate::failure::Failure;
use crate::models::{self, GanModel};
use crate::trained::tensors;
use crate::trainer::Trainer;
use crate::weights::{WeightsError, back};
use collective::Solo;
use common::checkpoint::{Dataset, ManifestKey, TrainerCursor};
use common::config::resolved::{Model, RunConfig};
use common::families::elsewhere::{self, AVERAGE, Counterpart, Network, networks, plain};
use common::ids::{Generation, ImagesSeen};
use given::Given;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use storage::{Run, Store};
use tch::{Device, Kind, Tensor, no_grad};
use tokio::runtime::Runtime;

/// Who wrote the checkpoint, as its manifest says, and the formation of workers: none.
const WRITER: &str = "import";
const NOBODY: Generation = Generation(0);

/// Names in a message; more are counted.
const NAMED: usize = 3;

/// What was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Resolution at which the networks work.
    pub resolution: u32,
    /// Names of the networks that came, each with its file.
    pub from: Vec<(&'static str, String)>,
    /// Names of those that keep what the run's seed drew.
    pub drawn: Vec<&'static str>,
}

/// Commits the first checkpoint of the run that `config` (JSON) describes: its networks as the seed draws them, with the weights of
/// the file or folder `from` put in. `network` says which one a file holds, where neither its name nor its content does.
///
/// # Errors
/// The files cannot be read or do not fit, or the store refuses.
pub fn import(config: &str, from: &Path, network: Option<&str>) -> Result<(), Failure> {
    let config: RunConfig = serde_json::from_str(config)
        .map_err(|error| Failure::Usage(format!("--config is not what coordinator import gives: {error}")))?;
    let model = models::build(&config, Kind::Float, Device::Cpu);
    let alone = Communicator::new(Box::new(Solo::new(NOBODY.0)));
    let mut trainer = Trainer::new(config.clone(), model, alone, Device::Cpu);
    let taken = put(&config.model, from, network, trainer.model())?;
    let images = begins(&config, taken.resolution)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = Arc::new(runtime.map_err(|error| Failure::Io { doing: "start a runtime".to_owned(), error })?);
    let run = {
        let _inside = runtime.enter();
        Store::open(&config.checkpoint.url, &config.checkpoint.s3)?.run(&config.name)?
    };
    let key = commit(&runtime, &run, &mut trainer, images)?;
    tell(&config, &taken, &run, key);
    Ok(())
}

/// Puts the weights of the file or folder `from` into `model`, whose networks are `of`. Where only one of a generator and its average is
/// given, it stands for both.
///
/// # Errors
/// The files cannot be read or do not fit; then nothing is changed.
pub fn put(of: &Model, from: &Path, network: Option<&str>, model: &dyn GanModel) -> Result<Taken, Failure> {
    let given = given::given(of, from, network)?;
    let resolution = resolution(of, &given)?;
    let known = networks(of, resolution);
    let mut found = BTreeMap::new();
    for one in &given {
        let network = known.iter().find(|network| network.name == one.network);
        let network = network.ok_or_else(|| Failure::Usage(format!("there is no network {}", one.network)))?;
        built_alike(of, one)?;
        found.extend(fitting(network, one)?);
    }
    let live = tensors(model);
    let twin = |name: &str| match name.strip_prefix(AVERAGE) {
        Some(trained) => trained.to_owned(),
        None => format!("{AVERAGE}{name}"),
    };
    no_grad(|| {
        for (name, tensor) in &live {
            if let Some(taken) = found.get(name).or_else(|| found.get(&twin(name))) {
                tensor.shallow_clone().copy_(taken);
            }
        }
        let came = known.iter().filter(|network| given.iter().any(|one| one.network == network.name));
        for tensor in came.flat_map(|network| &network.alone).filter_map(|name| live.get(name)) {
            let _zero = tensor.shallow_clone().zero_();
        }
    });
    let filled = |network: &&Network| {
        network.tensors.iter().any(|tensor| found.contains_key(&tensor.ours) || found.contains_key(&twin(&tensor.ours)))
    };
    let drawn = known.iter().filter(|network| !filled(network)).map(|network| network.name).collect();
    let from = given.into_iter().map(|one| (one.network, one.file.display().to_string())).collect();
    Ok(Taken { resolution, from, drawn })
}

/// The resolution at which all that was given works.
fn resolution(of: &Model, given: &[Given]) -> Result<u32, Failure> {
    let mut all = BTreeSet::new();
    for one in given {
        let names = one.tensors.keys().map(String::as_str);
        let resolution = elsewhere::resolution(of, names).ok_or_else(|| {
            unfit(one, format!("no layer that makes or takes images is in it, as a \"{}\" has one", of.family()))
        })?;
        if resolution > of.resolution() {
            let top = of.resolution();
            return Err(unfit(
                one,
                format!("it works at {resolution} px, and the run ends at {top} px: set model.resolution"),
            ));
        }
        all.insert(resolution);
    }
    match all.iter().collect::<Vec<_>>()[..] {
        [one] => Ok(*one),
        _ => Err(Failure::Usage(format!(
            "--from gives networks that have grown to {all:?} px: give those of one checkpoint"
        ))),
    }
}

/// A `.pth` of CycleGAN's holds generators of the authors' code: names and shapes do not tell whether those of `of` compute the same.
fn built_alike(of: &Model, given: &Given) -> Result<(), Failure> {
    let Model::CycleGan(a) = of else { return Ok(()) };
    let own = a.own_generators();
    let theirs = given.file.extension().is_some_and(|ending| ending == "pth") && given.network.contains("G_");
    match theirs && !own.is_empty() {
        true => Err(unfit(
            given,
            format!(
                "the run's generators are others than the authors', whose a .pth holds: leave out {}",
                own.join(", ")
            ),
        )),
        false => Ok(()),
    }
}

fn unfit(given: &Given, why: String) -> Failure {
    Failure::Weights(WeightsError::Unfit { path: given.file.clone(), why: format!("{}: {why}", given.network) })
}

/// The tensors of `given` as ours, by their names in a checkpoint. They must be exactly those of `network`.
fn fitting(network: &Network, given: &Given) -> Result<Vec<(String, Tensor)>, Failure> {
    let expected: BTreeMap<String, &Counterpart> =
        network.tensors.iter().map(|tensor| (plain(&tensor.theirs), tensor)).collect();
    let missing: Vec<String> = expected.keys().filter(|name| !given.tensors.contains_key(*name)).cloned().collect();
    let surplus: Vec<String> = given.tensors.keys().filter(|name| !expected.contains_key(*name)).cloned().collect();
    let shapes = expected.iter().filter_map(|(name, expected)| {
        let size = given.tensors.get(name)?.size();
        (size != expected.shape).then(|| format!("{name} is {size:?}, not {:?}", expected.shape))
    });
    let shapes: Vec<String> = shapes.collect();
    let wrong: Vec<String> = [("lacks", missing), ("has besides", surplus), ("has other shapes:", shapes)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} {}", few(&names)))
        .collect();
    if !wrong.is_empty() {
        let why = format!(
            "the file {}. Is model.* of the experiment what these weights were trained with?",
            wrong.join("; ")
        );
        return Err(unfit(given, why));
    }
    let mut ours = Vec::with_capacity(expected.len());
    for (name, counterpart) in expected {
        let Some(theirs) = given.tensors.get(&name) else { continue };
        if theirs.isfinite().all().int64_value(&[]) == 0 {
            return Err(unfit(given, format!("{name} holds numbers that are not finite")));
        }
        let tensor = back(counterpart.change, theirs).map_err(|why| unfit(given, format!("{name} {why}")))?;
        ours.push((counterpart.ours.clone(), tensor));
    }
    Ok(ours)
}

/// The first of `names`, and how many more there are.
fn few(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let first = names[..names.len() - more].join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

/// Images at which networks that work at `resolution` stand in the run's schedule.
fn begins(config: &RunConfig, resolution: u32) -> Result<u64, Failure> {
    let begins = config.train.growth.first_at(config.model.resolution(), resolution);
    begins.map(|images| images.0).ok_or_else(|| {
        Failure::Usage(format!(
            "--from gives networks of {resolution} px, at which the run never stands still: see `coordinator config plan`, and \
             train.growth or model.resolution"
        ))
    })
}

/// Stores the state of `trainer`, of which only the weights count, as the run's first checkpoint.
fn commit(runtime: &Arc<Runtime>, run: &Run, trainer: &mut Trainer, images: u64) -> Result<ManifestKey, Failure> {
    let identity = Identity {
        generation: NOBODY,
        writer: WRITER.to_owned(),
        // nothing was trained on any image yet, nor computed by any machine
        dataset: Dataset::default(),
        environment: BTreeMap::new(),
    };
    let modules = trainer.model().modules().iter();
    let optimizer_steps = modules.map(|module| ((*module).to_owned(), 0)).collect();
    let cursor = TrainerCursor {
        images,
        cycle_images: images,
        tick_start_images: images,
        optimizer_steps,
        ..TrainerCursor::default()
    };
    Checkpoints::new(Arc::clone(runtime), run.clone(), identity, None).finish(trainer, cursor)?;
    Ok(ManifestKey::new(ImagesSeen(images), NOBODY))
}

fn tell(config: &RunConfig, taken: &Taken, run: &Run, key: ManifestKey) {
    for (network, file) in &taken.from {
        eprintln!("{network} from {file}");
    }
    if !taken.drawn.is_empty() {
        eprintln!("note: nothing was given for {}: as the seed draws them", taken.drawn.join(", "));
    }
    let total = config.train.total_images();
    if total > 0 && key.images.0 >= total {
        eprintln!("note: the run's schedule ends before {}: to train on, set train.total_kimg", key.images);
    }
    eprintln!("{}/{key} holds them, {} px; train on: coordinator resume {}", run.url(), taken.resolution, run.url());
}

#[cfg(test)]
mod tests;
