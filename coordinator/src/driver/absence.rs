//! What a coordinator does when it was stopped, or nobody could reach it: workers may obey another one by then, and what it would take
//! for deaths may be departures.

use super::Driver;
use coordinator_core::{Event, PAUSE, Stored};
use std::time::Duration;
use storage::Lease;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Longest look for the newest checkpoint after a long pause.
const CATCH_UP: Duration = Duration::from_secs(20);

impl Driver<'_> {
    /// Before each turn; `hears` says whether a worker is heard in it. After a pause it waits for the store to say who rules: returns
    /// the lease of whoever has taken the run over. An interrupt (this turn's too, if `interrupted`) ends the wait.
    pub(super) async fn come_back(
        &mut self,
        hears: bool,
        interrupted: bool,
        signals: &mut mpsc::Receiver<()>,
    ) -> Option<Lease> {
        let stopped = self.turned.elapsed();
        // whom nobody could reach was as good as stopped
        let paused = if hears { stopped.max(self.heard.elapsed()) } else { stopped };
        if stopped > PAUSE || paused >= self.keep.tenure.silence() {
            let longest = if interrupted { Duration::ZERO } else { self.doubts(paused) };
            let lease = tokio::select! {
                lease = self.keep.tenure.look(paused, longest) => lease,
                // the operator knows better
                Some(()) = signals.recv() => {
                    self.signal();
                    None
                }
            };
            if lease.is_some() {
                return lease;
            }
            if paused >= self.plan.orphan_patience / 2 {
                self.catch_up().await;
            }
        }
        self.turned = Instant::now();
        if hears {
            self.heard = self.turned;
        }
        None
    }

    /// How long to wait for the store after a pause in which another coordinator may have taken the run over: workers that hear nobody
    /// count from before it.
    fn doubts(&self, paused: Duration) -> Duration {
        let (orphan, patience) = (self.plan.orphan_patience, self.plan.policy.patience);
        (orphan / 2).min(orphan.saturating_sub(paused + patience * 4))
    }

    /// After a pause in which workers may have given this coordinator up: what they stored before they left is what others start from.
    async fn catch_up(&mut self) {
        match timeout(CATCH_UP, self.keep.run.newest_good(false)).await {
            Ok(Ok(newest)) => {
                if let Some(key) = newest.manifest.map(|manifest| manifest.key()) {
                    self.note(Event::Found(Stored { images: key.images, manifest: key.to_string() }));
                }
            }
            Ok(Err(error)) => {
                tracing::warn!("what was stored during a pause of this coordinator is not known: {error}")
            }
            Err(_) => tracing::warn!("what was stored during a pause of this coordinator is not known: no answer"),
        }
    }
}
