//! What the training thread and the background thread share: latest values in atomics, no lock on the way of a step.

use crate::lookup::Lookup;
use common::ids::{Generation, ImagesSeen};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What a worker is doing. Each has a time budget of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Waiting for its place.
    #[default]
    Join = 0,
    /// Opening the data set.
    Data = 1,
    /// Reading a checkpoint.
    Restore = 2,
    /// Training.
    Train = 3,
    /// Computing a quality metric.
    Evaluate = 4,
    /// Waiting for a checkpoint to be stored.
    Checkpoint = 5,
    /// Meeting the other ranks of a generation.
    Form = 6,
}

impl Activity {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Data => "data",
            Self::Restore => "restore",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Checkpoint => "checkpoint",
            Self::Form => "form",
        }
    }

    fn from_u8(value: u8) -> Self {
        [Self::Join, Self::Data, Self::Restore, Self::Train, Self::Evaluate, Self::Checkpoint, Self::Form]
            .into_iter()
            .find(|activity| *activity as u8 == value)
            .unwrap_or_default()
    }
}

/// Where training is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Images seen.
    pub images: ImagesSeen,
    /// Index of the step in work within its round.
    pub phase: u32,
    /// What the worker is doing.
    pub activity: Activity,
    /// Seconds that the last step took.
    pub step_seconds: f64,
}

/// What the coordinator wants, or its absence demands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// Finish the step that all ranks agree on, checkpoint, leave with exit code 0.
    pub stop: bool,
    /// Propose a checkpoint to the other ranks. Returned once per request.
    pub checkpoint_now: bool,
    /// Propose to the other ranks to leave this generation together, for another.
    pub regroup: bool,
    /// The coordinator has been away for `orphan_patience`: checkpoint and leave with exit code 7.
    pub orphaned: bool,
    /// The coordinator closed the session: this worker is no part of the run any more. Leave without a checkpoint.
    pub dismissed: bool,
}

impl Commands {
    /// Whether there is nothing to do but to train.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

pub(crate) const STOP: u8 = 1;
pub(crate) const CHECKPOINT: u8 = 2;
pub(crate) const ORPHANED: u8 = 4;
pub(crate) const DISMISSED: u8 = 8;
pub(crate) const REGROUP: u8 = 16;

/// What ends a generation for this worker, from any thread.
pub(crate) type Abort = Arc<dyn Fn() + Send + Sync>;

/// Where a worker stands between and within generations.
#[derive(Default)]
pub(crate) struct Place {
    /// The generation that it is in, or with `ready` the last one.
    pub generation: Generation,
    pub ready: bool,
    pub has_state: bool,
    pub trouble: String,
    pub leaving: bool,
    pub abort: Option<Abort>,
    /// The generation was aborted, perhaps before there was anything to abort.
    pub aborted: bool,
}

impl Place {
    /// Whether the worker is in a generation.
    pub fn is_taken(&self) -> bool {
        self.generation.0 > 0 && !self.ready
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Place {{ {}, ready: {} }}", self.generation, self.ready)
    }
}

/// The four fields of a [`Progress`] are written one by one: a reader may see some of one step and some of the next,
/// which for a sign of life does not matter.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    images: AtomicU64,
    phase: AtomicU32,
    activity: AtomicU8,
    step_seconds: AtomicU64,
    waiting: Arc<AtomicBool>,
    commands: AtomicU8,
    stop_reason: Mutex<String>,
    place: Mutex<Place>,
    /// Where else a coordinator may be.
    pub(crate) lookup: Lookup,
    /// Wakes the background thread, to say at once where the worker stands.
    pub(crate) changed: Notify,
}

impl Shared {
    pub(crate) fn set_progress(&self, progress: Progress) {
        self.images.store(progress.images.0, Ordering::Relaxed);
        self.phase.store(progress.phase, Ordering::Relaxed);
        self.activity.store(progress.activity as u8, Ordering::Relaxed);
        self.step_seconds.store(progress.step_seconds.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress {
            images: ImagesSeen(self.images.load(Ordering::Relaxed)),
            phase: self.phase.load(Ordering::Relaxed),
            activity: Activity::from_u8(self.activity.load(Ordering::Relaxed)),
            step_seconds: f64::from_bits(self.step_seconds.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn waiting(&self) -> &Arc<AtomicBool> {
        &self.waiting
    }

    pub(crate) fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place was given: what was said of earlier generations holds no more.
    pub(crate) fn take_place(&self, generation: Generation) {
        self.commands.fetch_and(!(REGROUP | STOP), Ordering::AcqRel);
        self.waiting.store(false, Ordering::Relaxed);
        let mut place = self.place();
        (place.generation, place.ready, place.aborted, place.abort) = (generation, false, false, None);
        place.trouble.clear();
    }

    /// Ends `generation` for this worker, if it is in it.
    pub(crate) fn abort(&self, generation: Generation) {
        let mut place = self.place();
        if place.generation == generation && !place.ready {
            place.aborted = true;
            if let Some(abort) = &place.abort {
                abort();
            }
        }
    }

    pub(crate) fn raise(&self, command: u8) {
        self.commands.fetch_or(command, Ordering::Release);
    }

    /// `generation` is to finish, if this worker is in it.
    pub(crate) fn stop(&self, generation: Generation, reason: String) {
        let place = self.place();
        if place.generation != generation || place.ready {
            return;
        }
        *self.stop_reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        self.raise(STOP);
    }

    pub(crate) fn stop_reason(&self) -> String {
        self.stop_reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn take_commands(&self) -> Commands {
        // the usual answer is "nothing": then one read is all
        if self.commands.load(Ordering::Relaxed) == 0 {
            return Commands::default();
        }
        let raised = self.commands.fetch_and(!CHECKPOINT, Ordering::Acquire);
        Commands {
            stop: raised & STOP != 0,
            checkpoint_now: raised & CHECKPOINT != 0,
            regroup: raised & REGROUP != 0,
            orphaned: raised & ORPHANED != 0,
            dismissed: raised & DISMISSED != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_asked_for_once_and_a_stop_stays() {
        let shared = Shared::default();
        assert!(shared.take_commands().is_empty());
        shared.raise(CHECKPOINT);
        shared.take_place(Generation(3));
        shared.stop(Generation(2), "long over".into());
        assert!(!shared.take_commands().stop);
        shared.raise(CHECKPOINT);
        shared.stop(Generation(3), "enough".into());
        let first = Commands { stop: true, checkpoint_now: true, ..Commands::default() };
        assert_eq!(shared.take_commands(), first);
        assert_eq!(shared.take_commands(), Commands { checkpoint_now: false, ..first });
        assert_eq!(shared.stop_reason(), "enough");
    }

    #[test]
    fn progress_comes_back_as_it_was_set() {
        let shared = Shared::default();
        assert_eq!(shared.progress(), Progress::default());
        let progress = Progress { images: ImagesSeen(7), phase: 1, activity: Activity::Evaluate, step_seconds: 0.25 };
        shared.set_progress(progress);
        assert_eq!(shared.progress(), progress);
    }
}
