//! Checkpoints from the worker's side: every rank stores its share behind training, rank 0 commits.
//!
//! 1. Due at the same images on every rank: each copies its share of the state (the stall) and goes on training.
//! 2. A thread encodes, hashes and uploads the share; the rank then raises its `stored` flag, which rides in gradients.
//! 3. When every rank has raised it, all exchange what they stored at the same step, and rank 0 commits the manifest.
//!
//! A share that cannot be stored costs this checkpoint, never the run. What a manifest is and how a commit holds is
//! `common::checkpoint` and `storage`.

mod restore;
pub mod snapshot;

pub use restore::{Error as RestoreError, put, restore};

use crate::communicator::Communicator;
use crate::trainer::{StepError, Trainer};
use common::checkpoint::{Dataset, FORMAT, Manifest, Part, Policy, TrainerCursor, deal};
use common::ids::{Generation, ImagesSeen};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use storage::Run;
use tokio::runtime::Runtime;

/// Age below which a blob that no manifest names is left alone: longer than any save takes.
const SWEEP_GRACE: Duration = Duration::from_secs(3600);

/// Parts of a share that are encoded and sent at a time: one fills the link while the next is hashed.
const UPLOADS: usize = 3;

/// What every manifest of this process says.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Number of the formation of workers.
    pub generation: Generation,
    /// This worker's id.
    pub writer: String,
    /// The training images.
    pub dataset: Dataset,
    /// What results in the last bit depend on.
    pub environment: BTreeMap<String, String>,
}

/// A checkpoint that is committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The generation that wrote it.
    pub generation: Generation,
    /// Images seen at it.
    pub images: ImagesSeen,
    /// Key of its manifest.
    pub key: String,
    /// Bytes that were sent, over all ranks.
    pub bytes: u64,
    /// Time that training stood still, on this rank.
    pub stall: Duration,
    /// Time from the copy to the commit.
    pub took: Duration,
}

/// What one rank tells the others of its share.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Share {
    parts: Vec<Part>,
    sent: u64,
    error: Option<String>,
}

struct InFlight {
    cursor: TrainerCursor,
    began: Instant,
    stall: Duration,
    answer: Receiver<Share>,
    share: Option<Share>,
}

type CommitAnswer = Result<Committed, String>;

/// The checkpoints of one generation, on one rank.
pub struct Checkpoints {
    runtime: Arc<Runtime>,
    run: Run,
    identity: Identity,
    /// The newest checkpoint that is committed as far as this rank knows; unchanged parts are not sent again.
    parent: Option<Arc<Manifest>>,
    /// The one that was stored last; becomes the parent when rank 0 says that it is committed.
    candidate: Option<Manifest>,
    in_flight: Option<InFlight>,
    committing: Option<Receiver<CommitAnswer>>,
    /// Images of the last checkpoint begun: the same on every rank.
    last: Option<u64>,
    /// Images of the last checkpoint whose every share is stored: the same on every rank.
    complete: Option<u64>,
    /// Images of the last checkpoint that rank 0 committed; known to rank 0.
    stored_at: Option<u64>,
}

impl Checkpoints {
    /// Checkpoints of `run`, going on from `parent`.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, run: Run, identity: Identity, parent: Option<Manifest>) -> Self {
        let last = parent.as_ref().map(|m| m.cursor.images);
        // one stored within a round is not the state that its images will name at the end of the round
        let complete = parent.as_ref().filter(|m| m.cursor.phase == 0).map(|m| m.cursor.images);
        let (parent, candidate, in_flight, committing) = (parent.map(Arc::new), None, None, None);
        Self { runtime, run, identity, parent, candidate, in_flight, committing, last, complete, stored_at: complete }
    }

    /// Goes on in another generation, from `parent`, on every rank alike. What was being stored is given up, and soon begun
    /// anew; a commit under way goes on, and is told when it is done.
    pub fn turn_to(&mut self, generation: Generation, parent: Option<Manifest>) {
        self.identity.generation = generation;
        self.last = parent.as_ref().map(|m| m.cursor.images);
        self.complete = parent.as_ref().filter(|m| m.cursor.phase == 0).map(|m| m.cursor.images);
        self.stored_at = self.complete;
        self.parent = parent.map(Arc::new);
        (self.candidate, self.in_flight) = (None, None);
    }

    /// The newest checkpoint that is known here to be committed.
    #[must_use]
    pub fn parent(&self) -> Option<&Manifest> {
        self.parent.as_deref()
    }

    /// What is true of this process from now on.
    pub fn set_environment(&mut self, environment: BTreeMap<String, String>) {
        self.identity.environment = environment;
    }

    /// What results in the last bit depend on, here.
    #[must_use]
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.identity.environment
    }

    /// Whether one is due at `images`: when a multiple of `every` images was passed since the last began. The same on
    /// every rank; put off while one is in flight.
    #[must_use]
    pub fn due(&self, images: u64, every: u64) -> bool {
        self.in_flight.is_none() && every > 0 && images / every > self.last.unwrap_or(0) / every
    }

    /// Whether one was begun at so many images, or later. The same on every rank.
    #[must_use]
    pub fn has_begun(&self, images: u64) -> bool {
        self.last.is_some_and(|last| last >= images)
    }

    /// The generation that writes them.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.identity.generation
    }

    /// Whether one is being stored.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Copies this rank's share and stores it behind training. Every rank calls it at the same step.
    pub fn begin(&mut self, trainer: &mut Trainer, cursor: TrainerCursor) {
        let began = Instant::now();
        let parts = snapshot::live(trainer);
        let sizes: Vec<(&str, u64)> = parts.iter().map(|p| (p.name.as_str(), p.bytes())).collect();
        let (rank, world) = (trainer.communicator().rank() as usize, trainer.communicator().world() as usize);
        let mine: Vec<_> = deal(&sizes, world)[rank].iter().map(|&i| &parts[i]).collect();
        let mine = snapshot::copy(&mine);
        let stall = began.elapsed();
        let (sender, answer) = channel();
        let (run, parent) = (self.run.clone(), self.parent.clone());
        self.runtime.spawn(async move {
            let parts = futures::stream::iter(mine).map(|part| store(&run, part, parent.as_deref()));
            let stored: Result<Vec<_>, _> = parts.buffered(UPLOADS).try_collect().await;
            let _trainer_gone = sender.send(stored.map_or_else(Share::failed, Share::of));
        });
        self.last = Some(cursor.images);
        self.in_flight = Some(InFlight { cursor, began, stall, answer, share: None });
    }

    /// Whether this rank has stored its share of the checkpoint in flight, well or badly. Rank 0 does not say so while the one before is
    /// being committed: they are committed one after the other, and each is told.
    pub fn stored(&mut self) -> bool {
        if self.committing.is_some() {
            return false;
        }
        let Some(flight) = &mut self.in_flight else { return false };
        if flight.share.is_none() {
            flight.share = match flight.answer.try_recv() {
                Ok(share) => Some(share),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(lost_thread()),
            };
        }
        flight.share.is_some()
    }

    /// Exchanges what was stored and lets rank 0 commit. Every rank calls it at the same step, when all have
    /// stored.
    ///
    /// # Errors
    /// When a rank is lost.
    pub fn conclude(&mut self, trainer: &mut Trainer) -> Result<(), StepError> {
        let Some(flight) = self.in_flight.take() else { return Ok(()) };
        let share = flight.share.unwrap_or_else(|| flight.answer.recv().unwrap_or_else(|_| lost_thread()));
        let mine = serde_json::to_vec(&share).unwrap_or_default();
        let communicator: &mut Communicator = trainer.communicator();
        let (rank, world) = (communicator.rank(), communicator.world());
        let shares: Vec<Share> = (communicator.gather(mine)?.iter())
            .map(|bytes| serde_json::from_slice(bytes).unwrap_or_else(|e| Share::failed(e.to_string())))
            .collect();
        if let Some((rank, error)) = shares.iter().enumerate().find_map(|(r, s)| Some((r, s.error.as_ref()?))) {
            tracing::warn!("checkpoint at {} given up: rank {rank}: {error}", ImagesSeen(flight.cursor.images));
            return Ok(());
        }
        self.complete = Some(flight.cursor.images);
        let bytes = shares.iter().map(|s| s.sent).sum();
        let mut parts: Vec<Part> = shares.into_iter().flat_map(|s| s.parts).collect();
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            format: FORMAT,
            run: self.run.name().to_owned(),
            generation: self.identity.generation,
            writer: self.identity.writer.clone(),
            nonce: String::new(),
            parent: self.parent.as_ref().map(|m| m.key()),
            created: 0,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            world,
            config: trainer.config().clone(),
            cursor: flight.cursor,
            dataset: self.identity.dataset.clone(),
            environment: self.identity.environment.clone(),
            parts,
        };
        if rank == 0 {
            self.commit(manifest.clone(), bytes, flight.began, flight.stall);
        }
        self.candidate = Some(manifest);
        Ok(())
    }

    fn commit(&mut self, mut manifest: Manifest, bytes: u64, began: Instant, stall: Duration) {
        let run = self.run.clone();
        let (sender, answer) = channel();
        self.runtime.spawn(async move {
            let attempt = async {
                manifest.nonce = storage::fresh_nonce().map_err(|e| e.to_string())?;
                manifest.created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let done = run.commit(&manifest).await.map_err(|e| e.to_string())?;
                let (generation, images) = (manifest.generation, ImagesSeen(manifest.cursor.images));
                Ok(Committed { generation, images, key: done.key.to_string(), bytes, stall, took: began.elapsed() })
            };
            let _trainer_gone = sender.send(attempt.await);
        });
        self.committing = Some(answer);
    }

    /// Rank 0 has said that the checkpoint stored last is committed. Every rank calls it at the same step.
    pub fn committed(&mut self) {
        if let Some(manifest) = self.candidate.take() {
            self.parent = Some(Arc::new(manifest));
        }
    }

    /// Rank 0: a commit that has ended since the last call. Never waits.
    pub fn poll(&mut self) -> Option<Committed> {
        let answer = match self.committing.as_ref()?.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Ok(answer) => answer,
            Err(TryRecvError::Disconnected) => Err(lost_thread().error.unwrap_or_default()),
        };
        self.committing = None;
        self.take(answer)
    }

    fn take(&mut self, answer: CommitAnswer) -> Option<Committed> {
        match answer {
            Ok(committed) => {
                self.stored_at = Some(committed.images.0);
                self.sweep();
                Some(committed)
            }
            Err(error) => {
                tracing::warn!("checkpoint not committed: {error}");
                self.candidate = None;
                None
            }
        }
    }

    /// Deletes, behind training, what the run's policy does not keep. Only rank 0 gets here. A save that begins meanwhile
    /// is safe: its blobs are younger than the grace, and it reuses only blobs of the checkpoints pinned here.
    fn sweep(&self) {
        let manifests = self.candidate.iter().chain(self.parent.as_deref());
        let pinned: BTreeSet<_> = manifests.map(Manifest::key).collect();
        let Some(checkpoint) = self.candidate.as_ref().map(|m| &m.config.checkpoint) else { return };
        let policy = Policy {
            keep_last: checkpoint.keep_last,
            keep_every_images: (checkpoint.keep_every_kimg * 1000.0).round() as u64,
            keep_best: checkpoint.keep_best,
            grace: SWEEP_GRACE,
        };
        let run = self.run.clone();
        self.runtime.spawn(async move {
            if let Err(error) = run.sweep(&policy, &pinned, SystemTime::now()).await {
                tracing::warn!("old checkpoints were not swept: {error}");
            }
        });
    }

    /// Ends the run's storing: waits for what is in flight, and stores `cursor` too where it is not stored yet. Every rank
    /// calls it at the same step. Rank 0 gets the last commit.
    ///
    /// # Errors
    /// When a rank is lost, or the last state could not be stored.
    pub fn finish(&mut self, trainer: &mut Trainer, cursor: TrainerCursor) -> Result<Option<Committed>, FinishError> {
        let images = cursor.images;
        let mut last = self.settle(trainer)?;
        if self.complete != Some(images) {
            self.begin(trainer, cursor);
            last = self.settle(trainer)?;
        }
        // rank 0 knows whether the commit held; the others learn it
        let held = trainer.communicator().rank() != 0 || self.stored_at == Some(images);
        let failures = trainer.communicator().sum_f64(vec![f64::from(u8::from(!held))]).map_err(StepError::from)?;
        if failures[0] > 0.0 || self.complete != Some(images) {
            return Err(FinishError::NotStored { images: ImagesSeen(images), url: self.run.url() });
        }
        Ok(last)
    }

    /// Waits for the checkpoint in flight and its commit.
    fn settle(&mut self, trainer: &mut Trainer) -> Result<Option<Committed>, StepError> {
        let before = self.committing.take().map(|answer| answer.recv());
        let mut last = before.and_then(|answer| self.take(answer.ok()?));
        self.conclude(trainer)?;
        if let Some(answer) = self.committing.take().and_then(|answer| answer.recv().ok()) {
            last = self.take(answer).or(last);
        }
        Ok(last)
    }
}

impl Share {
    fn of(parts: Vec<(Part, u64)>) -> Self {
        let sent = parts.iter().map(|(_, sent)| sent).sum();
        Self { parts: parts.into_iter().map(|(part, _)| part).collect(), sent, error: None }
    }

    fn failed(error: String) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

fn lost_thread() -> Share {
    Share::failed("the storing task ended without a word".to_owned())
}

/// Encodes, hashes and uploads one part; tells how many bytes were sent.
async fn store(run: &Run, part: snapshot::CopiedPart, parent: Option<&Manifest>) -> Result<(Part, u64), String> {
    let encoded = tokio::task::spawn_blocking(move || part.encode()).await.map_err(|e| e.to_string())?;
    let (bytes, part) = encoded.map_err(|e| e.to_string())?;
    let size = bytes.len() as u64;
    let stored = run.put_blob(bytes, parent).await.map_err(|e| e.to_string())?;
    Ok((part, if stored.sent { size } else { 0 }))
}

/// Why a run could not be ended in good order.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Another rank is gone.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The last state is not in the store.
    #[error("the state at {images} could not be stored at {url}; an earlier checkpoint is the newest one")]
    NotStored {
        /// Images seen.
        images: ImagesSeen,
        /// The run.
        url: String,
    },
}
