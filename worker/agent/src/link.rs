//! The session across broken streams: reconnects with growing pauses, and decides when the worker is an orphan.

use crate::Order;
use crate::error::AgentError;
use crate::join::{self, Assignment, JoinInfo, Reach};
use crate::lookup::{Search, Seat};
use crate::session::{self, End};
use crate::shared::Shared;
use common::config::resolved::RunConfig;
use rpc::from_worker::Body;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::time::Instant;
use worker_core::{Away, Effect, Epoch, Outbox, Retry, Word};

/// What the session was opened with, and from the assignment on the run's own patience.
pub(crate) struct Terms {
    pub reach: Reach,
    pub info: JoinInfo,
    pub patience: Duration,
    pub orphan_patience: Duration,
}

/// The background thread's half of an [`crate::Agent`].
pub(crate) struct Link {
    pub terms: Terms,
    pub shared: Arc<Shared>,
    pub inbox: tokio::sync::mpsc::Receiver<Body>,
    /// Taken from the inbox, but not yet known to have arrived: sent again on the next stream.
    pub outbox: Outbox<Body>,
    /// The coordinator has answered the join.
    pub welcomed: bool,
    /// Workers of the last generation that this one had a place in.
    pub world: usize,
    orders: mpsc::Sender<Order>,
    pub epoch: Epoch,
    search: Search,
}

impl Link {
    pub(crate) fn new(
        terms: Terms,
        shared: Arc<Shared>,
        inbox: tokio::sync::mpsc::Receiver<Body>,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let (epoch, search) = (Epoch::default(), Search::of_this_process());
        Self { terms, shared, inbox, outbox: Outbox::default(), welcomed: false, world: 1, orders, epoch, search }
    }

    /// Hands an order to the training thread, which hears it when it next waits for one.
    pub(crate) fn order(&self, order: Order) {
        // the training thread may be gone already: then the inbox is closed, and that ends the session
        let _gone = self.orders.send(order);
    }

    pub(crate) fn welcome(&mut self, config: RunConfig) {
        if !self.welcomed {
            self.welcomed = true;
            self.terms.patience = join::patience(&config);
            self.terms.orphan_patience = join::orphan_patience(&config);
            self.order(Order::Welcome(Box::new(config)));
        }
    }

    /// Goes to where a coordinator was found, unless it is one that has been replaced. Says whether that is another place.
    fn turn_to(&mut self, seat: &Seat) -> bool {
        let here = join::authority(&self.terms.reach.address).ok();
        match join::authority(&seat.address) {
            Ok(there) if self.epoch.is_latest(seat.epoch) && Some(there) != here => {
                tracing::info!("looking for coordinator {} of this run at {}", seat.epoch, seat.address);
                self.terms.reach.address = seat.address.clone();
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!("coordinator {} is at no address: {error}", seat.epoch);
                false
            }
        }
    }

    /// Takes a place in a later generation than any before; the same one may come again.
    pub(crate) fn accept(&mut self, assignment: Assignment) {
        if self.shared.obey(Word::Assign(assignment.generation)) == Effect::Enter {
            self.world = assignment.peers.len();
            self.order(Order::Assign(Box::new(assignment)));
        }
    }

    pub(crate) fn progress(&self) -> rpc::Progress {
        let standing = self.shared.standing();
        rpc::Progress {
            generation: standing.generation.0,
            images: standing.progress.images.0,
            phase: standing.progress.phase,
            activity: standing.progress.activity.name().into(),
            steps: standing.progress.steps,
            step_seconds: standing.progress.step_seconds,
            busy_seconds: standing.progress.busy_seconds,
            data_seconds: standing.progress.data_seconds,
            way_seconds: standing.progress.way_seconds,
            share: standing.progress.share,
            ready: standing.ready,
            has_state: standing.has_state,
            trouble: standing.trouble.why,
            waiting: standing.waiting,
            diverged: standing.trouble.diverged,
            unreached: standing.trouble.unreached.map(|rank| rank.0),
            leaving: standing.leaving,
            line: standing.progress.line.0,
        }
    }

    /// Serves streams until the worker leaves, is refused, or is an orphan.
    pub(crate) async fn run(mut self) {
        let began = Instant::now();
        let mut away = Away::new(Duration::ZERO);
        loop {
            let (why, alive) = match session::serve(&mut self).await {
                End::Left => return,
                // it knows already
                End::Refused(_) | End::Evicted(_) if self.has_left() => return,
                End::Refused(message) => return self.dismiss(message),
                End::Evicted(message) => {
                    self.shared.give_up();
                    (message, true)
                }
                End::Wrong(error) => return self.give_up(error),
                End::Broken { why, alive } => (why, alive),
            };
            if alive {
                tracing::warn!("the connection to the coordinator broke ({why}); reconnecting");
            } else {
                tracing::debug!("no connection to the coordinator: {why}");
            }
            match away.broken(alive, self.terms.patience, self.limit(), began.elapsed()) {
                Retry::After(pause) => {
                    let shared = Arc::clone(&self.shared);
                    let found = self.search.pause(&shared.lookup, pause, self.terms.patience / 2).await;
                    if found.is_some_and(|seat| self.turn_to(&seat)) {
                        away.hurry();
                    }
                }
                Retry::TooLong(waited) if self.welcomed => {
                    tracing::warn!(
                        "no coordinator for {:.1} s ({why}): this worker is on its own",
                        waited.as_secs_f64()
                    );
                    return self.be_alone().await;
                }
                Retry::TooLong(waited) => {
                    let address = self.terms.reach.address.clone();
                    return self.give_up(AgentError::Unreachable { address, waited, why });
                }
            }
        }
    }

    /// Nobody is spoken to any more. Training is told, and, where it does not end by itself, ended.
    async fn be_alone(mut self) {
        self.shared.with_place(worker_core::Place::orphan);
        self.order(Order::Orphaned);
        let time = worker_core::desertion(self.terms.patience);
        if self.is_left_within(time).await {
            return;
        }
        self.shared.with_place(worker_core::Place::desert);
        while !self.is_left_within(time).await {
            // the last checkpoint takes the time that it takes
            if self.shared.progress().activity != worker_core::Activity::Checkpoint {
                self.shared.give_up();
            }
        }
    }

    /// Whether the worker lets go of its session within this time. What it says meanwhile has nobody to hear it.
    async fn is_left_within(&mut self, time: Duration) -> bool {
        let left = async { while self.inbox.recv().await.is_some() {} };
        tokio::time::timeout(time, left).await.is_ok()
    }

    fn has_left(&self) -> bool {
        matches!(self.outbox.newest(), Some(Body::Leave(_)))
    }

    fn limit(&self) -> Duration {
        if self.welcomed { self.terms.orphan_patience } else { self.terms.patience }
    }

    fn dismiss(self, message: String) {
        tracing::debug!("the coordinator closed the session: {message}");
        self.shared.dismiss();
        self.give_up(AgentError::Refused { message });
    }

    fn give_up(self, error: AgentError) {
        self.order(Order::Failed(error));
    }
}
