//! The worker's side of its session with the coordinator: join, places, heartbeat, progress, commands, farewell.
//!
//! The training thread never waits for the network. It writes its progress into atomics, reads commands from one atomic,
//! and hands ticks to a bounded queue; a background thread with a small runtime of its own does the rest, reconnects when
//! the stream breaks, ends a generation that is over even while training is blocked in it, and after `orphan_patience`
//! without a coordinator raises [`Commands::orphaned`]. This crate knows no tensors and takes no decision: what an order means for a
//! worker is `worker_core`'s, and here it is only carried.

mod error;
mod examination;
mod join;
mod link;
mod lookup;
mod session;
mod shared;

pub use error::AgentError;
pub use examination::{Examination, Meeting, Times};
pub use join::{Assignment, JoinInfo, Reach, host};
pub use lookup::{CONTROL, Seat};
pub use worker_core::{Activity, Commands, Progress, Trouble, heartbeat};

use common::config::resolved::RunConfig;
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use rpc::from_worker::Body;
use shared::Shared;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;

/// Messages that may wait for a coordinator that is away. A tick is a few hundred bytes and comes at most every few seconds.
const QUEUE: usize = 1024;

/// Longest message in bytes that is sent or accepted.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Longest time that a farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// A checkpoint that is committed, as [`Agent::stored`] announces it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The generation that wrote it: another may be at work when that is known.
    pub generation: Generation,
    /// Images seen at the checkpoint.
    pub images: ImagesSeen,
    /// Key of the manifest below the run.
    pub manifest: String,
    /// Bytes written; parts that were already there are not counted.
    pub bytes: u64,
    /// Seconds that training stood still.
    pub stall_seconds: f64,
    /// Seconds from the copy to the commit.
    pub seconds: f64,
}

/// What a worker that waits for it is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// What to prepare for: the first order of all.
    Welcome(Box<RunConfig>),
    Assign(Box<Assignment>),
    Stop {
        reason: String,
    },
    Orphaned,
    Failed(AgentError),
}

/// What comes after a wait for a place.
#[derive(Debug)]
pub enum Next {
    /// A place in a generation.
    Place(Box<Assignment>),
    /// The run ends, or goes on without this worker: leave.
    Leave {
        /// Why.
        reason: String,
    },
    /// Nobody has given a sign of life for `orphan_patience`: store what should not be lost, and leave.
    Orphaned,
}

/// Tells the coordinator that this worker was told to go (a signal, a preemption notice): it gets no further place, and is
/// asked to leave as soon as the others can do without it.
#[derive(Clone, Debug)]
pub struct Notice(Arc<Shared>);

impl Notice {
    /// Tells it, from any thread; once is enough. Returns whether anybody would miss this worker: before it is prepared for a
    /// place, nobody does.
    #[must_use]
    pub fn give(&self) -> bool {
        let missed = self.0.with_place(worker_core::Place::give_notice);
        self.0.changed.notify_one();
        missed
    }
}

/// A handle on the session. Dropping it without [`Agent::leave`] looks to the coordinator like a death.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    orders: mpsc::Receiver<Order>,
    outbox: Option<tokio::sync::mpsc::Sender<Body>>,
    ended: mpsc::Receiver<()>,
    patience: Duration,
}

impl Agent {
    /// Joins the run whose coordinator is at `reach`, and waits until it says what the run is.
    /// `patience` without a sign of life is an error; from then on the run's own `cluster.patience` and
    /// `cluster.orphan_patience` hold.
    ///
    /// # Errors
    /// The address is malformed, there are no sound credentials, nobody answers, one side does not trust the other or the coordinator
    /// refuses, or the run is stopped before it begins.
    pub fn connect(reach: Reach, info: JoinInfo, patience: Duration) -> Result<(Self, RunConfig), AgentError> {
        // what is wrong with it is said at once; it is read anew for each connection
        reach.endpoint()?;
        let shared = Arc::new(Shared::default());
        let (outbox, inbox) = tokio::sync::mpsc::channel(QUEUE);
        let (order_sender, orders) = mpsc::channel();
        let (ended_sender, ended) = mpsc::channel();
        let link = link::Link::new(
            link::Terms { reach, info, patience, orphan_patience: Duration::MAX },
            shared.clone(),
            inbox,
            order_sender,
        );
        let guard = OrphanIfPanicked(shared.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AgentError::Thread)?;
        std::thread::Builder::new()
            .name("agent".into())
            .spawn(move || {
                let _guard = guard;
                runtime.block_on(link.run());
                // the receiver may be gone: nobody waits for this thread
                let _ = ended_sender.send(());
                // nor does it wait for a store
                runtime.shutdown_background();
            })
            .map_err(AgentError::Thread)?;
        loop {
            // the link always answers, or drops its end
            match orders.recv().unwrap_or(Order::Failed(AgentError::Ended)) {
                Order::Welcome(config) => {
                    let patience = join::patience(&config);
                    return Ok((Self { shared, orders, outbox: Some(outbox), ended, patience }, *config));
                }
                Order::Stop { reason } => return Err(AgentError::Stopped { reason }),
                Order::Failed(error) => return Err(error),
                Order::Assign(_) | Order::Orphaned => {}
            }
        }
    }

    /// Says that this worker is prepared and in no generation, whether it holds the state, and what ended its last generation;
    /// then waits for what comes next, as long as the coordinator lives.
    ///
    /// # Errors
    /// The coordinator closed the session.
    pub fn wait(&self, has_state: bool, trouble: &Trouble) -> Result<Next, AgentError> {
        let why = truncated(&trouble.why, MESSAGE_BYTES_MAX / 16);
        self.shared.wait(has_state, Trouble { why, ..*trouble });
        self.shared.changed.notify_one();
        loop {
            return match self.orders.recv().unwrap_or(Order::Failed(AgentError::Ended)) {
                Order::Welcome(_) => continue,
                Order::Assign(assignment) => Ok(Next::Place(assignment)),
                Order::Stop { reason } => Ok(Next::Leave { reason }),
                Order::Orphaned => Ok(Next::Orphaned),
                Order::Failed(error) => Err(error),
            };
        }
    }

    /// `abort` ends the generation in which this worker has its place: it is called, from another thread, when the
    /// coordinator says that the generation is over, and must return at once.
    pub fn on_abort(&self, abort: impl Fn() + Send + Sync + 'static) {
        self.shared.on_abort(Arc::new(abort));
        self.shared.changed.notify_one();
    }

    /// For whoever waits for the other ranks: true while this rank has done its part of the step. The coordinator learns from
    /// it which rank hangs.
    #[must_use]
    pub fn waiting(&self) -> Arc<AtomicBool> {
        Arc::clone(self.shared.waiting())
    }

    /// `look` finds where the coordinator is now, if another one has taken the run over: it may block, and is called from a
    /// thread of its own, now and then, while nobody answers.
    pub fn look_up(&self, look: impl Fn() -> Option<Seat> + Send + Sync + 'static) {
        self.shared.lookup.set(look);
    }

    /// For whoever hears that this worker has to go.
    #[must_use]
    pub fn notice(&self) -> Notice {
        Notice(Arc::clone(&self.shared))
    }

    /// Notes where training is; costs a few atomic writes, call it every step. The background thread sends the newest
    /// value several times per patience.
    pub fn progress(&self, progress: Progress) {
        self.shared.set_progress(progress);
    }

    /// What the coordinator wants; costs one atomic read, call it every step. A wish for a checkpoint is returned once.
    #[must_use]
    pub fn commands(&self) -> Commands {
        self.shared.take_commands()
    }

    /// Workers that the coordinator wanted when it last welcomed this one; at least one.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.shared.wanted.load(Ordering::Relaxed).max(1)
    }

    /// Why the coordinator wants a stop, once [`Commands::stop`] is set.
    #[must_use]
    pub fn stop_reason(&self) -> String {
        self.shared.with_place(|place| place.stop_reason().to_owned())
    }

    /// Sends one [`common::metrics::Event`] as JSON. Rank 0 only. Kept while the coordinator is away, up to a bound.
    pub fn tick(&self, event_json: String) {
        let generation = self.shared.with_place(|place| place.generation().0);
        self.enqueue(Body::Tick(rpc::Tick { generation, event: event_json }));
    }

    /// Sends one [`common::ledger::Span`] as JSON. Rank 0 only. Kept while the coordinator is away, up to a bound: beyond it the
    /// answer is false, and the span is to be told later.
    #[must_use]
    pub fn ledger(&self, span: String) -> bool {
        self.enqueue(Body::Ledger(rpc::Ledger { span }))
    }

    /// Announces a committed checkpoint. Rank 0 only. Kept while the coordinator is away, up to a bound.
    pub fn stored(&self, stored: Stored) {
        self.enqueue(Body::Stored(rpc::Stored {
            generation: stored.generation.0,
            images: stored.images.0,
            manifest: stored.manifest,
            bytes: stored.bytes,
            stall_seconds: stored.stall_seconds,
            seconds: stored.seconds,
        }));
    }

    /// Says farewell and waits until the coordinator has read it, at most 5 s or the patience. What was queued goes first.
    pub fn leave(mut self, exit: Exit, message: &str) {
        let images = self.shared.progress().images.0;
        let message = truncated(message, MESSAGE_BYTES_MAX / 4);
        self.enqueue(Body::Leave(rpc::Leave { exit: exit as u32, message, images }));
        // closes the queue: the background thread ends once it is empty
        self.outbox = None;
        let deadline = FAREWELL.min(self.patience);
        if self.ended.recv_timeout(deadline).is_err() {
            tracing::warn!("the coordinator did not take the farewell within {:.1} s", deadline.as_secs_f64());
        }
    }

    /// Whether there was room.
    fn enqueue(&self, body: Body) -> bool {
        let Some(outbox) = &self.outbox else { return true };
        if let Body::Tick(tick) = &body
            && tick.event.len() > MESSAGE_BYTES_MAX / 2
        {
            tracing::warn!("a metric event of {} bytes is too long to be sent and is dropped", tick.event.len());
            return true;
        }
        match outbox.try_send(body) {
            // closed: the run is over for this worker, and `commands` says so
            Ok(()) | Err(TrySendError::Closed(_)) => true,
            Err(TrySendError::Full(Body::Ledger(_))) => false,
            Err(TrySendError::Full(_)) => {
                tracing::warn!("{QUEUE} messages wait for the coordinator already; one more is dropped");
                false
            }
        }
    }
}

/// Without the background thread nobody would notice that the coordinator is gone: should it ever panic, the worker is on
/// its own, and told so.
struct OrphanIfPanicked(Arc<Shared>);

impl Drop for OrphanIfPanicked {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.with_place(worker_core::Place::orphan);
        }
    }
}

fn truncated(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_background_thread_that_panics_leaves_an_orphan() {
        let shared = std::sync::Arc::new(super::Shared::default());
        let guard = super::OrphanIfPanicked(shared.clone());
        let thread = std::thread::spawn(move || {
            let _guard = guard;
            panic!("as the test wants");
        });
        assert!(thread.join().is_err());
        assert!(shared.take_commands().orphaned);
    }

    #[test]
    fn truncation_keeps_whole_characters() {
        assert_eq!(super::truncated("abc", 10), "abc");
        assert_eq!(super::truncated("aé", 2), "a");
        assert_eq!(super::truncated("", 0), "");
    }
}
