//! Where a run begins: anew, or from one of its checkpoints, and with which configuration.
//!
//! A run's configuration is the one in its checkpoint. `--set` and the environment change it where that is safe, and are
//! named where they change the training; the experiment file of a run that exists is only compared.

use crate::config_cli::{self, Experiment, ExperimentArgs};
use crate::failure::Failure;
use crate::s3_args;
use common::checkpoint::{Dataset, Manifest, ManifestKey};
use common::config::resolved::RunConfig;
use common::config::{self, Base, Change, Effect, Layers, Resolved};
use common::exit::Exit;
use common::families;
use common::ids::{Generation, ImagesSeen};
use coordinator_core::Stored;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use storage::{Run, RunUrl, StorageError, Store};

/// Largest configuration that is read.
const CONFIG_BYTES: u64 = 1 << 20;

/// What `--resume` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// From the newest good checkpoint of the run, or from the beginning where it has none.
    Auto,
    /// From the beginning, even if the run has checkpoints.
    Never,
    /// From this run or checkpoint.
    Url(String),
}

impl FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            url => Self::Url(url.to_owned()),
        })
    }
}

/// A run that can begin.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its configuration.
    pub config: RunConfig,
    /// Where each of its values came from.
    pub origins: BTreeMap<String, config::Origin>,
    /// Where it is stored.
    pub run: Run,
    /// The checkpoint it starts from.
    pub resume: Option<Stored>,
    /// The images that the checkpoint was trained on, if it was on any.
    pub dataset: Option<Dataset>,
    /// The last generation of its earlier parts.
    pub generation: Generation,
    /// Whether its store honours create-only writes.
    pub create_only: bool,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl Origin {
    /// Its configuration as an experiment file, with where each value came from.
    #[must_use]
    pub fn to_toml(&self) -> String {
        Resolved { config: self.config.clone(), origins: self.origins.clone() }.to_toml()
    }
}

/// Which run a command line speaks of, before it is known whether it begins.
#[derive(Clone, Debug)]
pub struct Target {
    /// The run.
    pub run: Run,
    /// It is to go on where it is, if it is at work.
    pub goes_on: bool,
}

/// The run of an experiment file.
///
/// # Errors
/// The experiment is wrong, or the store's URL.
pub fn target_of_experiment(file: PathBuf, overrides: &Overrides, resume: Option<&Resume>) -> Result<Target, Failure> {
    let config = load(file, overrides)?.resolved.config;
    let run = Store::open(&config.checkpoint.url, &config.checkpoint.s3)?.run(&config.name)?;
    let goes_on = match resume {
        None | Some(Resume::Auto) => true,
        Some(Resume::Never) => false,
        Some(Resume::Url(url)) => storage::resolve_run_url(url)?.key.is_none(),
    };
    Ok(Target { run, goes_on })
}

/// The run or checkpoint of a URL.
///
/// # Errors
/// It is the URL of neither, or its store is not there.
pub fn target_of_url(url: &str, overrides: &Overrides) -> Result<Target, Failure> {
    let RunUrl { root, run, key } = storage::resolve_run_url(url)?;
    let run = Store::open_existing(&root, &s3_args::of_layers(&overrides.set)?)?.run(&run)?;
    Ok(Target { run, goes_on: key.is_none() })
}

/// The run that a coordinator of this machine has left at work, by its name; else by its URL.
///
/// # Errors
/// Nothing of that name was left, or it is no URL either.
pub fn target_of_run(text: &str, home: &Path, overrides: &Overrides) -> Result<Target, Failure> {
    if !common::checkpoint::is_run_name(text) {
        return target_of_url(text, overrides);
    }
    let Some(left) = crate::journal::read(&home.join(text)) else {
        let message = format!(
            "no coordinator of this machine has left a run called `{text}` at work. If it was on another machine, give the run's \
             URL, and its token in GANFLEET_TOKEN or its --credentials"
        );
        return Err(Failure::new(Exit::Network, message));
    };
    let wrong = |error| Failure::new(Exit::Internal, format!("the journal of `{text}`: {error}"));
    let config: RunConfig = serde_json::from_str(&left.header.config).map_err(wrong)?;
    let RunUrl { root, run, .. } = storage::resolve_run_url(&left.header.url)?;
    let run = Store::open_existing(&root, &config.checkpoint.s3)?.run(&run)?;
    Ok(Target { run, goes_on: true })
}

/// What the command line changes about a run.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--set`, in order.
    pub set: Vec<String>,
    /// `--workers`.
    pub workers: Option<u32>,
}

/// The beginning of `launch`.
///
/// # Errors
/// The experiment is wrong, the store cannot be used, or the run exists and `resume` does not say what to do with it.
pub async fn of_experiment(file: PathBuf, overrides: &Overrides, resume: Option<&Resume>) -> Result<Origin, Failure> {
    let experiment = load(file, overrides)?;
    let config = &experiment.resolved.config;
    let store = Store::open(&config.checkpoint.url, &config.checkpoint.s3)?;
    let run = store.run(&config.name)?;
    match resume {
        Some(Resume::Url(url)) => {
            let url = storage::resolve_run_url(url)?;
            let there = Store::open_existing(&url.root, &config.checkpoint.s3)?.run(&url.run)?;
            if there.url() != run.url() {
                let message = format!(
                    "{} is another run than {}, which the experiment describes. Go on with it where it is: coordinator \
                     resume {}",
                    there.url(),
                    run.url(),
                    there.url()
                );
                return Err(Failure::new(Exit::Config, message));
            }
            resumed(there, url.key, overrides, Some(config)).await
        }
        Some(Resume::Auto) if !run.manifests().await?.is_empty() => resumed(run, None, overrides, Some(config)).await,
        None if !run.manifests().await?.is_empty() => {
            let url = run.url();
            let message = format!(
                "the run {url} has checkpoints already. Go on with it: coordinator resume {url}; or give the new run \
                 another name; or begin it again beside the old checkpoints: --resume never"
            );
            Err(Failure::new(Exit::Config, message))
        }
        Some(Resume::Auto | Resume::Never) | None => {
            let (create_only, notes) = usable(&run).await?;
            let generation = last_generation(&run).await?;
            let Resolved { config, origins } = experiment.resolved;
            Ok(Origin { config, origins, run, resume: None, dataset: None, generation, create_only, notes })
        }
    }
}

/// The configuration of a run that is to begin with weights from elsewhere.
///
/// # Errors
/// The experiment is wrong, the store cannot be used, or the run has checkpoints already.
pub async fn of_import(file: PathBuf, overrides: &Overrides) -> Result<RunConfig, Failure> {
    let config = load(file, overrides)?.resolved.config;
    let run = Store::open(&config.checkpoint.url, &config.checkpoint.s3)?.run(&config.name)?;
    if !run.manifests().await?.is_empty() {
        let message = format!(
            "the run {} has checkpoints already, and weights come in before anything else: give the new run another name",
            run.url()
        );
        return Err(Failure::new(Exit::Config, message));
    }
    // one that was begun and has none yet would take the weights for its own, later or earlier than what it trains
    match run.get_file("config.json", CONFIG_BYTES).await {
        Err(StorageError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {
            let message = format!("the run {} was begun already: give the new run another name", run.url());
            return Err(Failure::new(Exit::Config, message));
        }
    }
    usable(&run).await?;
    Ok(config)
}

/// The beginning of `resume`.
///
/// # Errors
/// The URL names no run with a checkpoint that can be restored, or a change is not allowed.
pub async fn of_checkpoint(url: &str, overrides: &Overrides) -> Result<Origin, Failure> {
    let RunUrl { root, run, key } = storage::resolve_run_url(url)?;
    let run = Store::open_existing(&root, &s3_args::of_layers(&overrides.set)?)?.run(&run)?;
    resumed(run, key, overrides, None).await
}

/// What an experiment file asks for, with nothing looked at but the file.
///
/// # Errors
/// It is wrong.
pub fn resolved(file: PathBuf, overrides: &Overrides) -> Result<RunConfig, Failure> {
    Ok(load(file, overrides)?.resolved.config)
}

/// The experiment with the number of workers of this machine, where nothing else says how many.
///
/// # Errors
/// It is wrong.
pub fn load(file: PathBuf, overrides: &Overrides) -> Result<Experiment, Failure> {
    let mut set = overrides.set.clone();
    set.extend(overrides.workers.map(|workers| format!("cluster.workers={workers}")));
    let args = |workers| ExperimentArgs { file: file.clone(), set: set.clone(), workers };
    let experiment = config_cli::load(&args(None))?;
    if experiment.resolved.config.cluster.workers > 0 {
        return Ok(experiment);
    }
    Ok(config_cli::load(&args(Some(workers(overrides, &experiment.resolved.config))))?)
}

/// How many workers to start on this machine.
#[must_use]
pub fn workers(overrides: &Overrides, config: &RunConfig) -> u32 {
    let gpus = u32::try_from(children::gpus::visible().len()).unwrap_or(u32::MAX);
    crate::machine::workers(overrides.workers, config.cluster.workers, gpus, crate::machine::cores())
}

async fn resumed(
    run: Run,
    key: Option<ManifestKey>,
    overrides: &Overrides,
    file: Option<&RunConfig>,
) -> Result<Origin, Failure> {
    let (manifest, mut notes) = match key {
        Some(key) => (run.load(key).await?, Vec::new()),
        None => newest(&run).await?,
    };
    let mut set = overrides.set.clone();
    set.extend(overrides.workers.map(|workers| format!("cluster.workers={workers}")));
    // a run goes on where it was found, even if it was moved there
    set.push(format!("checkpoint.url={}", toml_text(run.store().url())));
    let (env, working_dir) = (config_cli::environment()?, config_cli::working_dir()?);
    let layers = Layers { base: Base::Run(&manifest.config), env: &env, set: &set, working_dir: &working_dir };
    let resolved = config::resolve(&layers, manifest.world).map_err(|error| Failure::new(Exit::Config, error))?;
    notes.extend(judge(&config::diff(&manifest.config, &resolved.config))?);
    if let Some(file) = file {
        notes.extend(differences(&resolved.config, file));
    }
    let (create_only, more) = usable(&run).await?;
    notes.extend(more);
    let generation = last_generation(&run).await?;
    let key = manifest.key();
    let resume = Some(Stored { images: key.images, manifest: key.to_string() });
    let Resolved { config, origins } = resolved;
    let dataset = Some(manifest.dataset).filter(Dataset::is_known);
    Ok(Origin { config, origins, run, resume, dataset, generation, create_only, notes })
}

/// A text as TOML writes it: JSON's escapes are TOML's too.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

async fn newest(run: &Run) -> Result<(Manifest, Vec<String>), Failure> {
    let found = run.newest_good(true).await?;
    let skipped: Vec<String> =
        found.skipped.iter().map(|skipped| format!("{} is passed over: {}", skipped.key, skipped.why)).collect();
    match found.manifest {
        Some(manifest) => Ok((manifest, skipped)),
        None if skipped.is_empty() => {
            Err(Failure::new(Exit::Storage, format!("the run {} has no checkpoint yet: launch it", run.url())))
        }
        None => {
            let all = skipped.join("\n  ");
            Err(Failure::new(Exit::Storage, format!("no checkpoint of {} can be restored:\n  {all}", run.url())))
        }
    }
}

/// Changes that matter, for the operator.
fn judge(changes: &[Change]) -> Result<Vec<String>, Failure> {
    let refused: Vec<String> =
        changes.iter().filter(|change| matches!(change.effect, Effect::Refused(_))).map(ToString::to_string).collect();
    if !refused.is_empty() {
        return Err(Failure::new(Exit::Config, format!("not for a run that exists: {}", refused.join("; "))));
    }
    let named = |change: &&Change| change.effect == Effect::ChangesDynamics;
    Ok(changes.iter().filter(named).map(|change| format!("from here on: {change}")).collect())
}

/// What the experiment file says otherwise than the run, and that the run is right.
fn differences(run: &RunConfig, file: &RunConfig) -> Vec<String> {
    let family = families::family(run.model.family());
    let aside = |change: &Change| match change.key.as_str() {
        "checkpoint.url" | "cluster.workers" => true,
        // what the data said
        "train.epoch_images" => file.train.epochs.is_some_and(|epochs| epochs.images == 0),
        // what the workers at launch said
        "train.minibatch.default" => family.is_some_and(|family| family.one_per_worker),
        _ => false,
    };
    let changes = config::diff(run, file).into_iter().filter(|change| !aside(change));
    let list: Vec<String> = changes
        .map(|change| {
            let text = |value: Option<String>| value.unwrap_or_else(|| "unset".into());
            format!("{} = {} (experiment file: {})", change.key, text(change.old), text(change.new))
        })
        .collect();
    if list.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the run goes on with the configuration in its checkpoint; use --set to change it: {}",
        list.join("; ")
    )]
}

/// Refuses a store that cannot keep checkpoints, before anything is spent; says what it does not honour.
async fn usable(run: &Run) -> Result<(bool, Vec<String>), Failure> {
    if run.url().starts_with("memory:") {
        let message = format!(
            "{} lies in the memory of one process, and workers are others: name a folder or a bucket",
            run.url()
        );
        return Err(Failure::new(Exit::Storage, message));
    }
    let findings = run.probe().await?;
    if !findings.usable() {
        return Err(Failure::new(Exit::Storage, format!("{} cannot keep checkpoints: it {findings}", run.url())));
    }
    let honoured = findings.create_only_honoured;
    Ok((honoured, if honoured { Vec::new() } else { vec![format!("the store {findings}")] }))
}

async fn last_generation(run: &Run) -> Result<Generation, Failure> {
    Ok(Generation(run.next_generation().await?.0 - 1))
}

/// Whether nothing is left to train.
#[must_use]
pub fn is_complete(origin: &Origin) -> bool {
    let total = ImagesSeen(origin.config.train.total_images());
    // a length that the data will say is not known yet
    total.0 > 0 && origin.resume.as_ref().is_some_and(|stored| stored.images >= total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, effect: Effect) -> Change {
        Change { key: key.into(), old: Some("1".into()), new: Some("2".into()), effect }
    }

    #[test]
    fn changes_are_refused_named_or_let_through() {
        let safe = change("train.total_kimg", Effect::Safe);
        let dynamics = change("train.optimizer.beta1", Effect::ChangesDynamics);
        assert_eq!(judge(std::slice::from_ref(&safe)).unwrap(), [] as [&str; 0]);
        let notes = judge(&[safe, dynamics]).unwrap();
        assert_eq!(notes, ["from here on: train.optimizer.beta1: 1 -> 2 (changes the training)"]);
        let failure = judge(&[change("seed", Effect::Refused("no"))]).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.message.contains("seed: 1 -> 2"), "{}", failure.message);
    }

    #[test]
    fn resume_is_auto_never_or_a_url() {
        let parse = |text: &str| text.parse::<Resume>().unwrap();
        assert_eq!(parse("auto"), Resume::Auto);
        assert_eq!(parse("never"), Resume::Never);
        assert_eq!(parse("s3://b/r"), Resume::Url("s3://b/r".into()));
    }
}
