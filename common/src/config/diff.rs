//! What a change of configuration does to a run that exists: nothing, another training, or something impossible.

use super::layers::leaves_of;
use super::raw::RawFile;
use super::render::toml;
use super::resolved::{Determinism, Model, RunConfig};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// One value that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Dotted key.
    pub key: String,
    /// Value before, as TOML; `None` where there was none.
    pub old: Option<String>,
    /// Value now, as TOML; `None` where there is none.
    pub new: Option<String>,
    /// What the change does.
    pub effect: Effect,
}

/// What a change does to a run that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The same training: what differs is when it ends, what it reports, and where and how it runs.
    Safe,
    /// Allowed, but from here on another training than the one that was begun. To be named to the user.
    ChangesDynamics,
    /// Would make it another run; the reason is for the user.
    Refused(&'static str),
}

/// Every value that differs between `old`, the configuration of a run, and `new`, in the order of their keys.
#[must_use]
pub fn diff(old: &RunConfig, new: &RunConfig) -> Vec<Change> {
    let bitwise = old.train.determinism == Determinism::Bitwise || new.train.determinism == Determinism::Bitwise;
    let pooled = matches!(old.model, Model::CycleGan(_));
    let (old, new) = (leaves_of(&RawFile::from(old)), leaves_of(&RawFile::from(new)));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changed = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
    let change = |key: &String| Change {
        key: key.clone(),
        old: old.get(key).map(toml),
        new: new.get(key).map(toml),
        effect: if pooled && key.starts_with("train.minibatch.") { POOLED } else { effect(key, bitwise) },
    };
    changed.map(change).collect()
}

/// Why a family's minibatch stays.
const POOLED: Effect =
    Effect::Refused("the checkpoint holds what each sample of the minibatch is shown next; launch a new run instead");

fn effect(key: &str, bitwise: bool) -> Effect {
    match key {
        "data.load_size" => Effect::Refused(
            "the images that the run was trained on were prepared at this side; launch a new run instead",
        ),
        "name" => Effect::Refused("it is where the run's checkpoints lie; launch a new run instead"),
        "seed" => {
            Effect::Refused("the order of the images and every draw so far follow from it; launch a new run instead")
        }
        // sums are then cut in other places, which a bitwise run promises not to do
        "train.threads" | "train.save_memory" if bitwise => Effect::ChangesDynamics,
        "train.total_kimg" | "train.threads" | "train.save_memory" | "data.cache" | "data.max_bad_share" => {
            Effect::Safe
        }
        _ => match key.split_once('.').map_or(key, |(section, _)| section) {
            "model" => {
                Effect::Refused("the weights in the checkpoint belong to other networks; launch a new run instead")
            }
            "cluster" | "checkpoint" | "metrics" | "samples" => Effect::Safe,
            _ if ["train.max_per_worker.", "train.tick_kimg.", "train.stop."]
                .iter()
                .any(|safe| key.starts_with(safe)) =>
            {
                Effect::Safe
            }
            // the cautious answer for what is not named above: data and training
            _ => Effect::ChangesDynamics,
        },
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unset = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".to_owned());
        write!(f, "{}: {} -> {}", self.key, or_unset(&self.old), or_unset(&self.new))?;
        match self.effect {
            Effect::Safe => Ok(()),
            Effect::ChangesDynamics => f.write_str(" (changes the training)"),
            Effect::Refused(reason) => write!(f, " (refused: {reason})"),
        }
    }
}
