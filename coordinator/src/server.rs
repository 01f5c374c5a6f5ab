//! The gRPC server: turns streams and questions into [`Input`]s for the driver, and nothing more.
//!
//! It admits or refuses a join ([`crate::admission`]) and bounds what it reads; what a message means is not its business. A sign of
//! life without news, as the core calls it, waits until the driver looks for such.

use crate::admission::{self, Token};
use crate::door::{self, Door, Refusals};
use crate::wire;
use coordinator_core::{Command, SessionId, Standing, WorkerId};
use rpc::control_server::{Control, ControlServer};
use rpc::from_worker::Body;
use rpc::operate_request::Command as Question;
use rpc::{FromWorker, OperateReply, OperateRequest, ToWorker, to_worker};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Longest message in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Streams of which the join is read at one time: the others wait.
const STRANGERS_MAX: usize = 64;
/// Time that a stranger has for its join.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time that the driver has for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Connections that the kernel keeps until they are taken: of a thousand workers that come together none is sent away, to come again a
/// second later.
const BACKLOG: u32 = 4096;
/// Messages that may wait for one worker's socket.
const OUTBOX: usize = 64;

/// The sending end of a worker's stream. Dropping it ends the stream in both directions.
#[derive(Debug)]
pub struct Outbox {
    messages: mpsc::Sender<Result<ToWorker, Status>>,
    /// Its drop ends the reader.
    _open: oneshot::Sender<()>,
}

impl Outbox {
    /// Queues a message.
    ///
    /// # Errors
    /// The worker does not read: the stream is worthless, drop it.
    pub fn send(&self, body: to_worker::Body) -> Result<(), Clogged> {
        self.messages.try_send(Ok(ToWorker { body: Some(body) })).map_err(|_| Clogged)
    }
}

/// A worker does not read what it is sent.
#[derive(Debug, thiserror::Error)]
#[error("the worker does not read its messages")]
pub struct Clogged;

/// What reaches the driver from the network.
#[derive(Debug)]
pub enum Input {
    /// An admitted worker opened a stream.
    Joined {
        /// The stream.
        session: SessionId,
        /// What it says of itself.
        join: rpc::Join,
        /// How to answer.
        outbox: Outbox,
    },
    /// A worker said where it stands.
    Stands {
        /// Who.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// Where.
        standing: Standing,
    },
    /// A worker said something else.
    Said {
        /// Who.
        worker: WorkerId,
        /// On which stream.
        session: SessionId,
        /// Number of the message, 0 if it has none.
        sequence: u64,
        /// The message.
        body: Body,
    },
    /// A stream ended.
    Ended {
        /// Whose.
        worker: WorkerId,
        /// Which.
        session: SessionId,
    },
    /// An operator asks; the answer is the status after the command was obeyed.
    Asked {
        /// What to do first.
        command: Option<Command>,
        /// Where the status goes.
        reply: oneshot::Sender<String>,
    },
}

/// Signs of life that say nothing new, the last of each worker: nobody is woken for them, for with a thousand workers there are
/// thousands in a second.
#[derive(Clone, Debug, Default)]
pub struct Beats(Arc<Mutex<BTreeMap<SessionId, (WorkerId, Standing)>>>);

impl Beats {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<SessionId, (WorkerId, Standing)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, session: SessionId, worker: &WorkerId, standing: Standing) {
        self.kept().insert(session, (worker.clone(), standing));
    }

    /// That of one stream, of which something else is said next.
    fn take_of(&self, session: SessionId) -> Option<Standing> {
        self.kept().remove(&session).map(|(_, standing)| standing)
    }

    /// Whether none came since they were taken last.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept().is_empty()
    }

    /// All that came since they were taken last.
    #[must_use]
    pub fn take(&self) -> BTreeMap<SessionId, (WorkerId, Standing)> {
        std::mem::take(&mut *self.kept())
    }
}

struct Server {
    beats: Beats,
    token: Token,
    build: &'static str,
    inputs: mpsc::Sender<Input>,
    sessions: AtomicU64,
    strangers: Arc<Semaphore>,
    refusals: Arc<Refusals>,
}

/// Listens on `address`.
///
/// # Errors
/// The system's.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // a successor may come while connections of its predecessor still fade away
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves on a listener, through its door if it has one, until the task is aborted or dropped with its runtime.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    (listener, door): (TcpListener, Option<Door>),
    token: Token,
    build: &'static str,
    inputs: mpsc::Sender<Input>,
    beats: Beats,
) -> Result<(), tonic::transport::Error> {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let refusals = Arc::new(Refusals::default());
    let (sessions, told) = (AtomicU64::new(1), Arc::clone(&refusals));
    let server = Server { beats, token, build, inputs, sessions, strangers, refusals };
    let service = ControlServer::new(server)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let router = tonic::transport::Server::builder().concurrency_limit_per_connection(32).add_service(service);
    door::serve(router, listener, door, told).await
}

#[tonic::async_trait]
impl Control for Server {
    type SessionStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn session(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::SessionStream>, Status> {
        let from = request.remote_addr();
        let stranger = timeout(HANDSHAKE, self.strangers.clone().acquire_owned()).await.ok().and_then(Result::ok);
        let full = || Status::resource_exhausted("too many strangers at the door; try again");
        let stranger = stranger.ok_or_else(full)?;
        let mut incoming = request.into_inner();
        let join = match timeout(HANDSHAKE, incoming.message()).await {
            Ok(Ok(Some(FromWorker { body: Some(Body::Join(join)), .. }))) => join,
            Ok(_) => return Err(Status::invalid_argument("the first message of a session is the join")),
            Err(_) => return Err(Status::deadline_exceeded("no join came")),
        };
        drop(stranger);
        let (messages, outgoing) = mpsc::channel(OUTBOX);
        let (open, closed) = oneshot::channel();
        let outbox = Outbox { messages, _open: open };
        if let Err(refusal) = admission::admit(&join, &self.token, self.build) {
            self.refusals.tell(from, &refusal.to_string());
            // the queue is empty: there is room; the stream ends when the outbox is dropped here
            let message = refusal.to_string();
            let _ = outbox.send(to_worker::Body::Refused(rpc::Refused { message, again: false }));
            return Ok(Response::new(ReceiverStream::new(outgoing)));
        }
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let worker = WorkerId(join.worker_id.clone());
        let ending = Status::unavailable("the run is over");
        self.inputs.send(Input::Joined { session, join, outbox }).await.map_err(|_| ending)?;
        let reader = Reader { worker, session, inputs: self.inputs.clone(), beats: self.beats.clone(), said: None };
        tokio::spawn(reader.read(incoming, closed));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn operate(&self, request: Request<OperateRequest>) -> Result<Response<OperateReply>, Status> {
        let from = request.remote_addr();
        let request = request.into_inner();
        if !self.token.matches(&request.token) {
            self.refusals.tell(from, "it asks with a wrong token");
            return Err(Status::unauthenticated("the token is wrong"));
        }
        let command = match request.command {
            None => return Err(Status::invalid_argument("no command")),
            Some(Question::Status(_)) => None,
            Some(Question::Stop(_)) => Some(Command::Stop),
            Some(Question::Checkpoint(_)) => Some(Command::Checkpoint),
            Some(Question::Scale(scale)) => Some(Command::Scale(scale.workers)),
        };
        let (reply, answer) = oneshot::channel();
        let over = || Status::unavailable("the run is over");
        self.inputs.send(Input::Asked { command, reply }).await.map_err(|_| over())?;
        match timeout(ANSWER, answer).await {
            Ok(Ok(status)) => Ok(Response::new(OperateReply { status })),
            Ok(Err(_)) => Err(over()),
            Err(_) => Err(Status::deadline_exceeded("the coordinator is busy; try again")),
        }
    }
}

/// What an admitted worker says, on its way to the driver.
struct Reader {
    worker: WorkerId,
    session: SessionId,
    inputs: mpsc::Sender<Input>,
    beats: Beats,
    /// Where the worker stood when that was news.
    said: Option<Standing>,
}

impl Reader {
    /// Reads a stream to its end, or until the driver closes it.
    async fn read(mut self, mut incoming: Streaming<FromWorker>, mut closed: oneshot::Receiver<()>) {
        loop {
            let message = tokio::select! {
                _ = &mut closed => break,
                message = incoming.message() => message,
            };
            match message {
                Ok(Some(FromWorker { body: Some(Body::Join(_)), .. })) => {
                    tracing::warn!("worker {} joined twice on one stream; it is closed", self.worker);
                    break;
                }
                Ok(Some(FromWorker { body: Some(body), sequence })) => {
                    if !self.pass_on(sequence, body).await {
                        return;
                    }
                }
                Ok(Some(FromWorker { body: None, .. })) => {}
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!("the stream of worker {} broke: {}", self.worker, status.message());
                    break;
                }
            }
        }
        // the driver may have ended meanwhile
        if self.say_kept().await {
            let _ = self.inputs.send(Input::Ended { worker: self.worker, session: self.session }).await;
        }
    }

    /// Whether the driver is there to hear it.
    async fn pass_on(&mut self, sequence: u64, body: Body) -> bool {
        if let Body::Progress(progress) = body {
            let standing = wire::standing(&progress);
            if self.said.as_ref().is_some_and(|last| standing.goes_on_from(last)) {
                self.beats.keep(self.session, &self.worker, standing);
                return true;
            }
            self.beats.take_of(self.session);
            self.said = Some(standing.clone());
            return self.stand(standing).await;
        }
        // what precedes it is heard before
        let (worker, session) = (self.worker.clone(), self.session);
        self.say_kept().await && self.inputs.send(Input::Said { worker, session, sequence, body }).await.is_ok()
    }

    async fn say_kept(&self) -> bool {
        match self.beats.take_of(self.session) {
            Some(standing) => self.stand(standing).await,
            None => true,
        }
    }

    async fn stand(&self, standing: Standing) -> bool {
        let (worker, session) = (self.worker.clone(), self.session);
        self.inputs.send(Input::Stands { worker, session, standing }).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has come to the driver: images of signs of life, and numbers of everything else.
    fn heard(inputs: &mut mpsc::Receiver<Input>) -> Vec<u64> {
        std::iter::from_fn(|| inputs.try_recv().ok())
            .map(|input| match input {
                Input::Stands { standing, .. } => standing.images.0,
                Input::Said { sequence, .. } => sequence,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[tokio::test]
    async fn signs_of_life_without_news_wait_and_whatever_else_is_said_is_preceded_by_the_last() {
        let (inputs, mut driver) = mpsc::channel(8);
        let beats = Beats::default();
        let (worker, session) = (WorkerId("w".into()), SessionId(1));
        let mut reader = Reader { worker, session, inputs, beats: beats.clone(), said: None };
        let says = |images, ready| Body::Progress(rpc::Progress { images, ready, ..rpc::Progress::default() });
        for images in [101, 102, 103] {
            assert!(reader.pass_on(0, says(images, false)).await);
        }
        assert_eq!(heard(&mut driver), [101]);
        assert!(reader.pass_on(5, Body::Leave(rpc::Leave::default())).await);
        assert_eq!(heard(&mut driver), [103, 5]);
        assert!(beats.take().is_empty());
        // news take the place of what was kept
        assert!(reader.pass_on(0, says(104, false)).await && reader.pass_on(0, says(105, true)).await);
        assert_eq!((heard(&mut driver), beats.take().len()), (vec![105], 0));
        assert!(reader.pass_on(0, says(106, true)).await);
        assert_eq!((heard(&mut driver), beats.take().len()), (vec![], 1));
    }
}
