//! The session across broken streams: reconnects with growing pauses, and decides when the worker is an orphan.

use crate::Order;
use crate::error::AgentError;
use crate::join::{self, Assignment, JoinInfo};
use crate::lookup::{Search, Seat};
use crate::session::{self, End};
use crate::shared::{self, Shared};
use common::config::resolved::RunConfig;
use common::ids::Generation;
use rpc::from_worker::Body;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Endpoint;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What the session was opened with, and from the assignment on the run's own patience.
pub(crate) struct Terms {
    pub endpoint: Endpoint,
    pub token: String,
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
    pub unconfirmed: VecDeque<(u64, Body)>,
    last_sequence: u64,
    /// The coordinator has answered the join.
    pub welcomed: bool,
    /// The last generation in which this worker was given a place.
    assigned: Generation,
    orders: mpsc::Sender<Order>,
    /// The highest number of a coordinator that was seen.
    epoch: u64,
    search: Search,
}

impl Link {
    pub(crate) fn new(
        terms: Terms,
        shared: Arc<Shared>,
        inbox: tokio::sync::mpsc::Receiver<Body>,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let (unconfirmed, assigned) = (VecDeque::new(), Generation(0));
        let (epoch, search) = (0, Search::of_this_process());
        Self { terms, shared, inbox, unconfirmed, last_sequence: 0, welcomed: false, assigned, orders, epoch, search }
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

    /// Whether a coordinator of this number is to be obeyed.
    pub(crate) fn heeds(&mut self, epoch: u64) -> bool {
        let latest = epoch >= self.epoch;
        self.epoch = self.epoch.max(epoch);
        latest
    }

    /// Goes to where a coordinator was found, unless it is one that has been replaced. Says whether that is another place.
    fn turn_to(&mut self, seat: &Seat) -> bool {
        match join::endpoint(&seat.address) {
            Ok(endpoint) if seat.epoch >= self.epoch && endpoint.uri() != self.terms.endpoint.uri() => {
                tracing::info!("looking for coordinator {} of this run at {}", seat.epoch, seat.address);
                self.terms.endpoint = endpoint;
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
        if assignment.generation > self.assigned && self.shared.place().ready {
            self.assigned = assignment.generation;
            self.shared.take_place(assignment.generation);
            self.order(Order::Assign(Box::new(assignment)));
        }
    }

    /// Numbers a message and keeps it until the coordinator confirms it.
    pub(crate) fn keep(&mut self, body: Body) -> u64 {
        self.last_sequence += 1;
        self.unconfirmed.push_back((self.last_sequence, body));
        self.last_sequence
    }

    pub(crate) fn confirm(&mut self, received: u64) {
        while self.unconfirmed.front().is_some_and(|(sequence, _)| *sequence <= received) {
            self.unconfirmed.pop_front();
        }
    }

    pub(crate) fn progress(&self) -> rpc::Progress {
        let progress = self.shared.progress();
        let place = self.shared.place();
        rpc::Progress {
            generation: place.generation.0,
            images: progress.images.0,
            phase: progress.phase,
            activity: progress.activity.name().into(),
            step_seconds: progress.step_seconds,
            ready: place.ready,
            has_state: place.has_state,
            trouble: place.trouble.clone(),
            waiting: self.shared.waiting().load(Ordering::Relaxed),
            leaving: place.leaving,
        }
    }

    /// Serves streams until the worker leaves, is refused, or is an orphan.
    pub(crate) async fn run(mut self) {
        let mut away_since = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let (why, alive) = match session::serve(&mut self).await {
                End::Left => return,
                // it knows already
                End::Refused(_) if self.has_left() => return,
                End::Refused(message) => return self.dismiss(message),
                End::Wrong(error) => return self.give_up(error),
                End::Broken { why, alive } => (why, alive),
            };
            if alive {
                (away_since, pause) = (Instant::now(), PAUSE_MIN);
                tracing::warn!("the connection to the coordinator broke ({why}); reconnecting");
            } else {
                tracing::debug!("no connection to the coordinator: {why}");
            }
            let away = away_since.elapsed();
            if !self.welcomed && away >= self.terms.patience {
                let address = self.terms.endpoint.uri().to_string();
                return self.give_up(AgentError::Unreachable { address, waited: away, why });
            }
            if self.welcomed && away >= self.terms.orphan_patience {
                tracing::warn!("no coordinator for {:.1} s: this worker is on its own", away.as_secs_f64());
                self.shared.raise(shared::ORPHANED);
                return self.order(Order::Orphaned);
            }
            // the last try comes when the patience ends, not after it
            let now = pause.min(self.limit().saturating_sub(away));
            let shared = Arc::clone(&self.shared);
            let found = self.search.pause(&shared.lookup, now, self.terms.patience / 2).await;
            let elsewhere = found.is_some_and(|seat| self.turn_to(&seat));
            // a coordinator that takes over waits a few patiences for its workers
            let longest = PAUSE_MAX.min(self.limit() / 4).min(self.terms.patience / 4).max(PAUSE_MIN / 4);
            pause = if elsewhere { PAUSE_MIN } else { (pause * 2).min(longest) };
        }
    }

    fn has_left(&self) -> bool {
        matches!(self.unconfirmed.back(), Some((_, Body::Leave(_))))
    }

    fn limit(&self) -> Duration {
        if self.welcomed { self.terms.orphan_patience } else { self.terms.patience }
    }

    fn dismiss(self, message: String) {
        tracing::debug!("the coordinator closed the session: {message}");
        self.shared.raise(shared::DISMISSED);
        let generation = self.shared.place().generation;
        self.shared.abort(generation);
        self.give_up(AgentError::Refused { message });
    }

    fn give_up(self, error: AgentError) {
        self.order(Order::Failed(error));
    }
}
