//! From a checkpoint back into the model's memory: to the bit, or with a reason why not.

use super::snapshot::{self, LivePart};
use crate::trainer::Trainer;
use bytes::Bytes;
use common::checkpoint::{Manifest, ManifestKey, Part, TrainerCursor};
use common::schedule::Position;
use futures::{StreamExt, TryStreamExt};
use storage::{Run, StorageError};

/// Parts that are fetched and hashed at a time, while another one is put into the model.
const DOWNLOADS: usize = 3;

/// Why a checkpoint could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refuses, or what it holds is damaged.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It belongs to another network.
    #[error(transparent)]
    Part(#[from] snapshot::RestoreError),
    /// It lacks a part, or holds a position that no run can be in.
    #[error("checkpoint {key} {why}")]
    Content {
        /// Its name.
        key: ManifestKey,
        /// What is wrong.
        why: String,
    },
}

/// Puts the state of checkpoint `key` into `trainer` and returns its manifest. Every tensor is verified before it is written.
///
/// # Errors
/// When the store, the checkpoint or its network do not fit.
pub async fn restore(run: &Run, key: ManifestKey, trainer: &mut Trainer) -> Result<Manifest, Error> {
    let manifest = run.load(key).await?;
    let cursor = &manifest.cursor;
    let steps: u32 = trainer.model().phases().iter().map(|p| p.repeats).sum();
    if cursor.phase >= steps || cursor.repeat >= trainer.config().train.minibatch_repeats {
        let why = format!("stands at round {}, step {}, which this run has not", cursor.repeat, cursor.phase);
        return Err(Error::Content { key, why });
    }
    let live = snapshot::live(trainer);
    let part = |live: &LivePart| {
        let part = manifest.parts.iter().find(|part| part.name == live.name);
        part.ok_or_else(|| Error::Content { key, why: format!("has no part {}", live.name) })
    };
    let parts = live.iter().map(|live| Ok((live, part(live)?))).collect::<Result<Vec<_>, Error>>()?;
    let mut fetched = futures::stream::iter(parts).map(|(live, part)| fetch(run, live, part)).buffered(DOWNLOADS);
    while let Some((live, bytes)) = fetched.try_next().await? {
        snapshot::restore(live, &bytes)?;
    }
    drop(fetched);
    put(trainer, cursor);
    Ok(manifest)
}

async fn fetch<'a>(run: &Run, live: &'a LivePart, part: &Part) -> Result<(&'a LivePart, Bytes), Error> {
    Ok((live, run.get_blob(&part.blob).await?))
}

/// Puts `trainer`, whose tensors are filled already, where `cursor` stands.
pub fn put(trainer: &mut Trainer, cursor: &TrainerCursor) {
    let names: Vec<&str> = trainer.model().modules().to_vec();
    for (module, optimizer) in names.iter().zip(trainer.optimizers_mut()) {
        optimizer.set_steps(cursor.optimizer_steps.get(*module).copied().unwrap_or(0));
    }
    let position =
        Position { images: cursor.images, cycle_images: cursor.cycle_images, round: cursor.repeat, step: cursor.phase };
    trainer.set_draw(cursor.draw);
    trainer.restore(position, cursor.steps, cursor.last_knee, cursor.skipped_updates);
}
