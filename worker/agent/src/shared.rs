//! What the training thread and the background thread share: latest values in atomics, no lock on the way of a step.
//!
//! What an order means for a worker's place is `worker_core`'s; here it is only shared.

use crate::lookup::Lookup;
use common::ids::{Generation, ImagesSeen};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use worker_core::{Activity, Commands, Effect, Place, Progress, Standing, Trouble, Word};

/// What ends a generation for this worker, from any thread.
type Abort = Arc<dyn Fn() + Send + Sync>;

/// A worker's place, and what ends the generation there.
#[derive(Default)]
struct Seat {
    place: Place,
    abort: Option<Abort>,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.place.fmt(f)
    }
}

/// The fields of a [`Progress`] are written one by one: a reader may see some of one step and some of the next,
/// which for a sign of life does not matter.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    images: AtomicU64,
    phase: AtomicU32,
    steps: AtomicU32,
    activity: AtomicU8,
    step_seconds: AtomicU64,
    busy_seconds: AtomicU64,
    data_seconds: AtomicU64,
    way_seconds: AtomicU64,
    share: AtomicU32,
    line: AtomicU64,
    /// Workers that the coordinator wants, when it last said so.
    pub(crate) wanted: AtomicU32,
    waiting: Arc<AtomicBool>,
    /// Whether there is a command: the usual answer is no, and then one read is all.
    commanded: AtomicBool,
    seat: Mutex<Seat>,
    /// Where else a coordinator may be.
    pub(crate) lookup: Lookup,
    /// Wakes the background thread, to say at once where the worker stands.
    pub(crate) changed: Notify,
}

impl Shared {
    pub(crate) fn set_progress(&self, progress: Progress) {
        self.images.store(progress.images.0, Ordering::Relaxed);
        self.phase.store(progress.phase, Ordering::Relaxed);
        self.steps.store(progress.steps, Ordering::Relaxed);
        self.activity.store(progress.activity as u8, Ordering::Relaxed);
        self.step_seconds.store(progress.step_seconds.to_bits(), Ordering::Relaxed);
        self.busy_seconds.store(progress.busy_seconds.to_bits(), Ordering::Relaxed);
        self.data_seconds.store(progress.data_seconds.to_bits(), Ordering::Relaxed);
        self.way_seconds.store(progress.way_seconds.to_bits(), Ordering::Relaxed);
        self.share.store(progress.share, Ordering::Relaxed);
        self.line.store(progress.line.0, Ordering::Relaxed);
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress {
            images: ImagesSeen(self.images.load(Ordering::Relaxed)),
            phase: self.phase.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            activity: Activity::from_u8(self.activity.load(Ordering::Relaxed)),
            step_seconds: f64::from_bits(self.step_seconds.load(Ordering::Relaxed)),
            busy_seconds: f64::from_bits(self.busy_seconds.load(Ordering::Relaxed)),
            data_seconds: f64::from_bits(self.data_seconds.load(Ordering::Relaxed)),
            way_seconds: f64::from_bits(self.way_seconds.load(Ordering::Relaxed)),
            share: self.share.load(Ordering::Relaxed),
            line: Generation(self.line.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn waiting(&self) -> &Arc<AtomicBool> {
        &self.waiting
    }

    fn seat(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the place, or changes it.
    pub(crate) fn with_place<T>(&self, look: impl FnOnce(&mut Place) -> T) -> T {
        self.change(|seat| look(&mut seat.place))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Seat) -> T) -> T {
        let mut seat = self.seat();
        let answer = change(&mut seat);
        self.commanded.store(!seat.place.commands().is_empty(), Ordering::Release);
        answer
    }

    pub(crate) fn standing(&self) -> Standing {
        self.with_place(|place| place.standing(self.progress(), self.waiting.load(Ordering::Relaxed)))
    }

    /// In no generation, and nothing to abort.
    pub(crate) fn wait(&self, has_state: bool, trouble: Trouble) {
        self.change(|seat| {
            seat.place.wait(has_state, trouble);
            seat.abort = None;
        });
    }

    /// Obeys what was said; what follows inside of this worker's place is done.
    pub(crate) fn obey(&self, word: Word) -> Effect {
        self.change(|seat| {
            let effect = seat.place.obey(word);
            self.perform(seat, &effect);
            effect
        })
    }

    /// The coordinator closed the session.
    pub(crate) fn dismiss(&self) {
        self.change(|seat| {
            let effect = seat.place.dismiss();
            self.perform(seat, &effect);
        });
    }

    /// Nobody else ends this worker's generation.
    pub(crate) fn give_up(&self) {
        self.change(|seat| {
            let effect = seat.place.give_up();
            self.perform(seat, &effect);
        });
    }

    fn perform(&self, seat: &mut Seat, effect: &Effect) {
        match (effect, &seat.abort) {
            (Effect::Enter, _) => {
                self.waiting.store(false, Ordering::Relaxed);
                seat.abort = None;
            }
            (Effect::Abort, Some(abort)) => abort(),
            (Effect::Abort | Effect::Leave { .. } | Effect::Nothing, _) => {}
        }
    }

    /// `abort` ends the generation that this worker is in, which may be over already.
    pub(crate) fn on_abort(&self, abort: Abort) {
        self.change(|seat| {
            if seat.place.is_aborted() {
                abort();
            }
            seat.abort = Some(abort);
        });
    }

    pub(crate) fn take_commands(&self) -> Commands {
        if !self.commanded.load(Ordering::Relaxed) {
            return Commands::default();
        }
        self.with_place(Place::take_commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_seen_by_the_other_thread_until_it_holds_no_more() {
        let shared = Shared::default();
        assert!(shared.take_commands().is_empty());
        shared.wait(false, Trouble::default());
        shared.obey(Word::Assign(Generation(3)));
        shared.obey(Word::Checkpoint);
        shared.obey(Word::Stop { generation: Some(Generation(3)), reason: "enough".into() });
        let first = Commands { stop: true, checkpoint_now: true, ..Commands::default() };
        assert_eq!(shared.take_commands(), first);
        assert_eq!(shared.take_commands(), Commands { checkpoint_now: false, ..first });
        shared.wait(true, Trouble::default());
        shared.obey(Word::Assign(Generation(4)));
        assert!(shared.take_commands().is_empty());
    }

    #[test]
    fn an_abort_that_comes_first_is_done_as_soon_as_there_is_something_to_abort() {
        let (shared, aborted) = (Shared::default(), Arc::new(AtomicBool::new(false)));
        shared.wait(false, Trouble::default());
        shared.obey(Word::Assign(Generation(1)));
        shared.obey(Word::Abort(Generation(1)));
        let done = Arc::clone(&aborted);
        shared.on_abort(Arc::new(move || done.store(true, Ordering::Relaxed)));
        assert!(aborted.load(Ordering::Relaxed));
    }

    #[test]
    fn progress_comes_back_as_it_was_set() {
        let shared = Shared::default();
        assert_eq!(shared.progress(), Progress::default());
        let progress = Progress {
            images: ImagesSeen(7),
            phase: 1,
            steps: 9,
            activity: Activity::Evaluate,
            step_seconds: 0.25,
            busy_seconds: 0.125,
            data_seconds: 0.0625,
            way_seconds: 0.03125,
            share: 3,
            line: Generation(2),
        };
        shared.set_progress(progress);
        assert_eq!(shared.progress(), progress);
    }
}
