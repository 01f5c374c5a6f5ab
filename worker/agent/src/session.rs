//! One stream to the coordinator, from the join to its end.
//!
//! Says how it ended and leaves the consequences (reconnect, orphan, leave) to [`crate::link`].

use crate::Order;
use crate::error::AgentError;
use crate::join::{self, Assignment};
use crate::link::Link;
use crate::{MESSAGE_BYTES_MAX, QUEUE};
use common::ids::Generation;
use rpc::control_client::ControlClient;
use rpc::from_worker::Body;
use rpc::{FromWorker, ToWorker, to_worker};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use worker_core::{Effect, Word};

/// Messages that may wait for the socket.
const WINDOW: usize = 16;

/// How a stream ended.
pub(crate) enum End {
    /// The worker said farewell, or dropped its handle.
    Left,
    /// The coordinator closed the session on purpose.
    Refused(String),
    /// The run goes on without this worker for now.
    Evicted(String),
    /// What came cannot be obeyed.
    Wrong(AgentError),
    /// The connection could not be made, broke, or fell silent.
    Broken {
        why: String,
        /// Whether the coordinator gave a sign of life on this stream.
        alive: bool,
    },
}

/// Opens a stream and serves it to its end.
pub(crate) async fn serve(link: &mut Link) -> End {
    let patience = link.terms.patience;
    let broken = |why: String| End::Broken { why, alive: false };
    let (sender, receiver) = mpsc::channel(WINDOW);
    let (endpoint, token) = match link.terms.reach.endpoint() {
        Ok(reached) => reached,
        Err(error) if link.welcomed => return broken(error.to_string()),
        Err(error) => return End::Wrong(error),
    };
    let join = Body::Join(link.terms.info.message(&token));
    if sender.try_send(FromWorker { body: Some(join), sequence: 0 }).is_err() {
        return broken("the stream closed before the join".into());
    }
    let opening = async {
        let channel = endpoint.connect().await.map_err(|error| trust::causes(&error))?;
        let mut client = ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        client.session(ReceiverStream::new(receiver)).await.map_err(|status| trust::words(&status))
    };
    match timeout(patience, opening).await {
        Ok(Ok(response)) => converse(link, sender, response.into_inner()).await,
        Ok(Err(why)) => match trust::explain(&why) {
            // before there is anything to lose, this is said at once and not tried again
            Some(advice) if !link.welcomed => {
                let address = link.terms.reach.address.clone();
                End::Wrong(AgentError::Untrusted { address, why: format!("{advice} ({why})") })
            }
            Some(advice) => broken(format!("{advice} ({why})")),
            None => broken(why),
        },
        Err(_) => broken("no answer".into()),
    }
}

async fn converse(link: &mut Link, sender: mpsc::Sender<FromWorker>, mut incoming: Streaming<ToWorker>) -> End {
    let shared = Arc::clone(&link.shared);
    let mut patience = link.terms.patience;
    let mut world = link.world;
    let mut beat = heartbeat(patience, world);
    let mut silent_at = Instant::now() + patience;
    let mut alive = false;
    for (sequence, body) in link.outbox.unconfirmed().cloned().collect::<Vec<_>>() {
        match say(link, &sender, sequence, body, alive).await {
            Ok(false) => {}
            Ok(true) => {
                drop(sender);
                return farewell_read(incoming, patience).await;
            }
            Err(end) => return end,
        }
    }
    loop {
        tokio::select! {
            // what has arrived is read before silence is judged: this process may have been stopped itself
            biased;
            message = incoming.message() => match message {
                Ok(Some(message)) => {
                    alive = true;
                    if let Some(end) = obey(link, message) {
                        return end;
                    }
                    if (patience, world) != (link.terms.patience, link.world) {
                        (patience, world) = (link.terms.patience, link.world);
                        beat = heartbeat(patience, world);
                    }
                    silent_at = Instant::now() + patience;
                }
                Ok(None) => return End::Broken { why: "the coordinator closed the stream".into(), alive },
                Err(status) => return End::Broken { why: status.message().to_owned(), alive },
            },
            () = sleep_until(silent_at) => {
                let why = format!("no sign of life for {:.1} s", patience.as_secs_f64());
                return End::Broken { why, alive };
            }
            body = link.inbox.recv(), if link.outbox.len() < QUEUE => {
                let Some(body) = body else { return End::Left };
                let sequence = link.outbox.keep(body.clone());
                match say(link, &sender, sequence, body, alive).await {
                    Ok(false) => {}
                    Ok(true) => {
                        drop(sender);
                        return farewell_read(incoming, patience).await;
                    }
                    Err(end) => return end,
                }
            },
            () = shared.changed.notified() => {
                if let Err(end) = stand(link, &sender, alive).await {
                    return end;
                }
            }
            _ = beat.tick() => {
                if let Err(end) = stand(link, &sender, alive).await {
                    return end;
                }
            }
        }
    }
}

fn heartbeat(patience: Duration, world: usize) -> Interval {
    let mut beat = interval(worker_core::heartbeat(patience, world));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// Says something that counts; whether it was the farewell. What a farewell means follows from where the worker stands, so
/// that is said first.
async fn say(
    link: &Link,
    sender: &mpsc::Sender<FromWorker>,
    sequence: u64,
    body: Body,
    alive: bool,
) -> Result<bool, End> {
    let farewell = matches!(body, Body::Leave(_));
    if farewell {
        stand(link, sender, alive).await?;
    }
    send(link, sender, sequence, body, alive).await?;
    Ok(farewell)
}

/// Says where the worker stands: also the sign of life.
async fn stand(link: &Link, sender: &mpsc::Sender<FromWorker>, alive: bool) -> Result<(), End> {
    send(link, sender, 0, Body::Progress(link.progress()), alive).await
}

/// Hands a message to the socket. Whether it arrives, a later beat says.
async fn send(
    link: &Link,
    sender: &mpsc::Sender<FromWorker>,
    sequence: u64,
    body: Body,
    alive: bool,
) -> Result<(), End> {
    match timeout(link.terms.patience, sender.send(FromWorker { body: Some(body), sequence })).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Broken { why: "the coordinator takes no messages".into(), alive }),
    }
}

/// The coordinator ends its half of the stream once it has read ours. A stream that breaks instead may have lost the
/// farewell: it is said again on the next one.
async fn farewell_read(mut incoming: Streaming<ToWorker>, patience: Duration) -> End {
    let drained = async {
        loop {
            match incoming.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return End::Left,
                Err(status) => return End::Broken { why: status.message().to_owned(), alive: true },
            }
        }
    };
    let silent = |_| End::Broken { why: "the farewell was not confirmed".into(), alive: false };
    timeout(patience, drained).await.unwrap_or_else(silent)
}

fn obey(link: &mut Link, message: ToWorker) -> Option<End> {
    match message.body? {
        to_worker::Body::Beat(beat) if !link.epoch.heed(beat.epoch) => return Some(outdated(beat.epoch)),
        to_worker::Body::Welcome(welcome) if !link.epoch.heed(welcome.epoch) => return Some(outdated(welcome.epoch)),
        to_worker::Body::Beat(beat) => link.outbox.confirm(beat.received),
        to_worker::Body::Checkpoint(_) => hear(link, Word::Checkpoint),
        to_worker::Body::Refused(refused) if refused.again => return Some(End::Evicted(refused.message)),
        to_worker::Body::Refused(refused) => return Some(End::Refused(refused.message)),
        to_worker::Body::Stop(stop) => {
            let generation = (stop.generation > 0).then_some(Generation(stop.generation));
            hear(link, Word::Stop { generation, reason: stop.reason });
        }
        to_worker::Body::Welcome(welcome) => match join::config(&welcome) {
            Ok(config) => {
                link.shared.wanted.store(welcome.workers, Ordering::Relaxed);
                link.welcome(config);
            }
            Err(error) => return Some(End::Wrong(error)),
        },
        to_worker::Body::Assign(assign) => match Assignment::try_from(assign) {
            Ok(assignment) => link.accept(assignment),
            Err(error) => return Some(End::Wrong(error)),
        },
        to_worker::Body::Abort(abort) => hear(link, Word::Abort(Generation(abort.generation))),
        to_worker::Body::Regroup(regroup) => hear(link, Word::Regroup(Generation(regroup.generation))),
    }
    None
}

fn hear(link: &Link, word: Word) {
    if let Effect::Leave { reason } = link.shared.obey(word) {
        link.order(Order::Stop { reason });
    }
}

/// The coordinator does not know yet that another one has taken the run over.
fn outdated(epoch: u64) -> End {
    End::Broken { why: format!("coordinator {epoch} of this run has been replaced by a later one"), alive: false }
}
