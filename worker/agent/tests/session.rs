//! The agent against a scripted coordinator on loopback: join, progress, commands, reconnection, orphanage, farewell.

use agent::{
    Activity, Agent, AgentError, Assignment, Commands, JoinInfo, Next, Progress, Reach, Seat, Stored, Trouble,
};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen, Rank};
use rpc::control_server::{Control, ControlServer};
use rpc::from_worker::Body;
use rpc::{FromWorker, OperateReply, OperateRequest, ToWorker, to_worker};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(8);
const LONG: Duration = Duration::from_secs(20);

/// One stream as the script sees it.
struct Stream {
    from: Streaming<FromWorker>,
    to: mpsc::Sender<Result<ToWorker, Status>>,
}

struct Script(mpsc::Sender<Stream>);

type Reply = Pin<Box<dyn tokio_stream::Stream<Item = Result<ToWorker, Status>> + Send>>;

#[tonic::async_trait]
impl Control for Script {
    type SessionStream = Reply;

    async fn session(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Reply>, Status> {
        let (to, outgoing) = mpsc::channel(16);
        let stream = Stream { from: request.into_inner(), to };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the script is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn operate(&self, _: Request<OperateRequest>) -> Result<Response<OperateReply>, Status> {
        Err(Status::unimplemented("not in this script"))
    }
}

/// A coordinator whose every word the test chooses.
struct Coordinator {
    runtime: Runtime,
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    server: tokio::task::JoinHandle<()>,
}

impl Coordinator {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(4);
        let service = ControlServer::new(Script(sender));
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = runtime.spawn(async { serving.await.unwrap() });
        Self { runtime, address, streams, server }
    }

    fn accept(&mut self) -> Stream {
        self.runtime.block_on(async { tokio::time::timeout(LONG, self.streams.recv()).await }).unwrap().unwrap()
    }

    fn say(&self, stream: &Stream, body: to_worker::Body) {
        self.runtime.block_on(stream.to.send(Ok(ToWorker { body: Some(body) }))).unwrap();
    }

    fn hear(&self, stream: &mut Stream) -> Body {
        let next = async { tokio::time::timeout(LONG, stream.from.next()).await };
        self.runtime.block_on(next).unwrap().unwrap().unwrap().body.unwrap()
    }

    /// The next message that `wanted` takes, past any others; the coordinator shows that it lives meanwhile.
    fn hear_until<T>(&self, stream: &mut Stream, wanted: impl Fn(Body) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        while Instant::now() < deadline {
            if let Some(found) = wanted(self.hear(stream)) {
                return found;
            }
            self.say(stream, to_worker::Body::Beat(rpc::Beat::default()));
        }
        panic!("it was never said");
    }
}

fn info() -> JoinInfo {
    JoinInfo { worker_id: "w1".into(), ..JoinInfo::of_this_process("1.2.3", "127.0.0.1:4001", "cpu") }
}

fn welcome(patience: Duration, orphan_patience: Duration) -> to_worker::Body {
    let mut config: serde_json::Value = serde_json::from_str(include_str!("run.json")).unwrap();
    config["cluster"]["patience_s"] = patience.as_secs_f64().into();
    config["cluster"]["orphan_patience_s"] = orphan_patience.as_secs_f64().into();
    to_worker::Body::Welcome(rpc::Welcome { config: config.to_string(), epoch: 0, workers: 3 })
}

fn assign(generation: u64) -> to_worker::Body {
    to_worker::Body::Assign(rpc::Assign {
        generation,
        rank: 1,
        roster: rpc::Roster { peers: vec!["127.0.0.1:4000".into(), "127.0.0.1:4001".into()] }.seal(),
        secret: vec![7; 32],
        resume: "manifests/000000000040-000002.json".into(),
        rollback: false,
        redraw: false,
    })
}

fn refused(message: &str) -> to_worker::Body {
    to_worker::Body::Refused(rpc::Refused { message: message.to_owned(), again: false })
}

/// An agent that waits on a thread of its own, and what it gets.
fn waiting(agent: Agent, has_state: bool, trouble: &'static str) -> std::thread::JoinHandle<(Agent, Next)> {
    std::thread::spawn(move || {
        let next = agent.wait(has_state, &Trouble { why: trouble.into(), ..Trouble::default() }).unwrap();
        (agent, next)
    })
}

fn place(next: Next) -> Box<Assignment> {
    match next {
        Next::Place(assignment) => assignment,
        other => panic!("{other:?}"),
    }
}

/// An agent with its place, and the coordinator's end of its stream.
fn joined(patience: Duration, orphan_patience: Duration) -> (Coordinator, Stream, Agent) {
    let mut coordinator = Coordinator::start();
    let address = coordinator.address.to_string();
    let worker = std::thread::spawn(move || Agent::connect(Reach::plain(&address, "t0k3n"), info(), PATIENCE));
    let mut stream = coordinator.accept();
    let Body::Join(join) = coordinator.hear(&mut stream) else { panic!("the first message is the join") };
    assert_eq!((join.protocol, join.token.as_str(), join.build.as_str()), (rpc::PROTOCOL, "t0k3n", "1.2.3"));
    assert_eq!((join.worker_id.as_str(), join.peer_address.as_str()), ("w1", "127.0.0.1:4001"));
    assert_eq!(join.pid, std::process::id());
    coordinator.say(&stream, welcome(patience, orphan_patience));
    let (agent, config) = worker.join().unwrap().unwrap();
    assert_eq!((config.cluster.orphan_patience_s, agent.wanted()), (orphan_patience.as_secs_f64(), 3));
    let worker = waiting(agent, false, "");
    coordinator.hear_until(&mut stream, |body| ready(body).then_some(()));
    coordinator.say(&stream, assign(3));
    let (agent, next) = worker.join().unwrap();
    let assignment = place(next);
    assert_eq!((assignment.generation, assignment.rank, assignment.peers.len()), (Generation(3), Rank(1), 2));
    assert_eq!(assignment.resume.as_deref(), Some("manifests/000000000040-000002.json"));
    assert!(!format!("{assignment:?}").contains("secret"), "no secret in a log: {assignment:?}");
    (coordinator, stream, agent)
}

fn ready(body: Body) -> bool {
    matches!(body, Body::Progress(progress) if progress.ready)
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn progress_is_the_heartbeat_and_carries_the_newest_value() {
    let (coordinator, mut stream, agent) = joined(PATIENCE, LONG);
    for images in [10, 20, 30] {
        let activity = Activity::Train;
        agent.progress(Progress {
            images: ImagesSeen(images),
            phase: 1,
            activity,
            step_seconds: 0.5,
            line: Generation(2),
            ..Progress::default()
        });
    }
    let newest = coordinator.hear_until(&mut stream, |body| match body {
        Body::Progress(progress) if progress.images == 30 => Some(progress),
        _ => None,
    });
    assert_eq!((newest.generation, newest.phase, newest.activity.as_str(), newest.line), (3, 1, "train", 2));
    let first = Instant::now();
    for _ in 0..2 {
        coordinator.hear_until(&mut stream, |body| matches!(body, Body::Progress(_)).then_some(()));
    }
    assert!(first.elapsed() < PATIENCE, "{:?}", first.elapsed());
}

#[test]
fn commands_arrive_and_a_farewell_comes_after_what_was_queued() {
    let (coordinator, mut stream, agent) = joined(PATIENCE, LONG);
    assert!(agent.commands().is_empty());
    coordinator.say(&stream, to_worker::Body::Checkpoint(rpc::Checkpoint {}));
    wait_for("the wish for a checkpoint", || agent.commands().checkpoint_now);
    assert!(!agent.commands().checkpoint_now, "it is returned once");
    coordinator.say(&stream, to_worker::Body::Stop(rpc::Stop { reason: "enough".into(), generation: 3 }));
    wait_for("the stop", || agent.commands() == Commands { stop: true, ..Commands::default() });
    assert_eq!(agent.stop_reason(), "enough");

    agent.progress(Progress { images: ImagesSeen(50), ..Progress::default() });
    agent.tick("{\"kind\":\"tick\"}".into());
    let (images, generation) = (ImagesSeen(50), Generation(2));
    agent.stored(Stored { generation, images, manifest: "m".into(), bytes: 5, stall_seconds: 0.1, seconds: 2.0 });
    let leaving = std::thread::spawn(move || agent.leave(Exit::Ok, "done"));
    coordinator.hear_until(&mut stream, |body| {
        match body {
            Body::Tick(tick) => assert_eq!((tick.generation, tick.event.as_str()), (3, "{\"kind\":\"tick\"}")),
            Body::Stored(stored) => assert_eq!((stored.generation, stored.images, stored.bytes), (2, 50, 5)),
            Body::Leave(leave) => {
                assert_eq!((leave.exit, leave.message.as_str(), leave.images), (0, "done", 50));
                return Some(());
            }
            _ => {}
        }
        None
    });
    let end = coordinator.runtime.block_on(async { tokio::time::timeout(LONG, stream.from.next()).await });
    assert!(end.unwrap().is_none(), "the farewell is the last message");
    drop(stream); // the coordinator's half ends too
    let read = Instant::now();
    leaving.join().unwrap();
    assert!(read.elapsed() < Duration::from_secs(5), "{:?}", read.elapsed());
}

#[test]
fn a_broken_stream_is_mended_and_nothing_queued_is_lost() {
    let (mut coordinator, stream, agent) = joined(PATIENCE, LONG);
    drop(stream);
    // whether the agent has noticed yet does not matter
    agent.tick("1".into());
    agent.tick("2".into());
    let mut stream = coordinator.accept();
    assert!(matches!(coordinator.hear(&mut stream), Body::Join(_)), "the first message is the join");
    let tick = |body| match body {
        Body::Tick(tick) => Some(tick.event),
        _ => None,
    };
    assert_eq!(coordinator.hear_until(&mut stream, tick), "1");
    assert_eq!(coordinator.hear_until(&mut stream, tick), "2");
    // the first is confirmed, the second is not: it comes again
    coordinator.say(&stream, to_worker::Body::Beat(rpc::Beat { received: 1, epoch: 0 }));
    coordinator.say(&stream, to_worker::Body::Checkpoint(rpc::Checkpoint {}));
    wait_for("what was said before the checkpoint is read", || agent.commands().checkpoint_now);
    drop(stream);
    let mut stream = coordinator.accept();
    assert_eq!(coordinator.hear_until(&mut stream, tick), "2");
    assert!(agent.commands().is_empty());
}

#[test]
fn a_farewell_that_may_be_lost_is_said_again() {
    let (mut coordinator, mut stream, agent) = joined(PATIENCE, LONG);
    let leaving = std::thread::spawn(move || agent.leave(Exit::Ok, "done"));
    let farewell = |body| matches!(body, Body::Leave(_)).then_some(());
    coordinator.hear_until(&mut stream, farewell);
    let broken = Err(Status::unavailable("the network broke"));
    coordinator.runtime.block_on(stream.to.send(broken)).unwrap();
    let mut stream = coordinator.accept();
    coordinator.hear_until(&mut stream, farewell);
    assert!(!leaving.is_finished());
    // who knows it already says so
    coordinator.say(&stream, refused("worker w1 has already left this run"));
    drop(stream);
    leaving.join().unwrap();
}

#[test]
fn a_silent_coordinator_is_left_for_a_new_stream() {
    let patience = Duration::from_secs(1);
    let (mut coordinator, stream, _agent) = joined(patience, LONG);
    let silent = Instant::now();
    let mut second = coordinator.accept(); // without a word on the first, which is still open
    assert!(silent.elapsed() >= patience / 2, "{:?}", silent.elapsed());
    assert!(matches!(coordinator.hear(&mut second), Body::Join(_)));
    drop(stream);
}

#[test]
fn an_orphan_is_told_so_after_its_patience() {
    let (coordinator, stream, agent) = joined(PATIENCE, Duration::from_millis(600));
    let gone = Instant::now();
    coordinator.server.abort();
    drop(stream);
    drop(coordinator);
    assert!(!agent.commands().orphaned);
    wait_for("orphaned", || agent.commands().orphaned);
    assert!(gone.elapsed() >= Duration::from_millis(600), "{:?}", gone.elapsed());
    let leaving = Instant::now();
    agent.leave(Exit::Orphaned, "alone");
    assert!(leaving.elapsed() < Duration::from_secs(1), "there is nobody to tell: {:?}", leaving.elapsed());
}

#[test]
fn a_dismissed_worker_does_not_come_back() {
    let (coordinator, stream, agent) = joined(PATIENCE, LONG);
    coordinator.say(&stream, refused("the run is ending"));
    wait_for("dismissed", || agent.commands().dismissed);
    assert!(!agent.commands().orphaned);
}

#[test]
fn an_evicted_worker_is_out_of_its_generation_and_comes_back() {
    let (mut coordinator, stream, agent) = joined(PATIENCE, LONG);
    let (sender, aborted) = std::sync::mpsc::channel();
    agent.on_abort(move || sender.send(()).unwrap());
    let message = "the run goes on without worker w1".into();
    coordinator.say(&stream, to_worker::Body::Refused(rpc::Refused { message, again: true }));
    aborted.recv_timeout(LONG).unwrap();
    let mut second = coordinator.accept();
    assert!(matches!(coordinator.hear(&mut second), Body::Join(_)));
    assert!(agent.commands().is_empty());
}

#[test]
fn a_generation_that_is_over_is_left_and_the_next_one_entered() {
    let (coordinator, mut stream, agent) = joined(PATIENCE, LONG);
    let (sender, aborted) = std::sync::mpsc::channel();
    agent.on_abort(move || sender.send(()).unwrap());
    coordinator.say(&stream, to_worker::Body::Abort(rpc::Abort { generation: 2, reason: "old".into() }));
    coordinator.say(&stream, to_worker::Body::Regroup(rpc::Regroup { generation: 2 }));
    coordinator.say(&stream, assign(4)); // it is not ready: not for this worker
    coordinator.say(&stream, to_worker::Body::Abort(rpc::Abort { generation: 3, reason: "over".into() }));
    aborted.recv_timeout(LONG).unwrap();
    assert!(aborted.try_recv().is_err() && agent.commands().is_empty(), "only its own generation concerns it");

    let worker = waiting(agent, true, "rank 0 was lost");
    let said = coordinator.hear_until(&mut stream, |body| match body {
        Body::Progress(progress) if progress.ready && progress.generation == 3 => Some(progress),
        _ => None,
    });
    assert_eq!((said.generation, said.has_state, said.trouble.as_str()), (3, true, "rank 0 was lost"));
    coordinator.say(&stream, assign(3)); // late: it has been there
    coordinator.say(&stream, assign(5));
    coordinator.say(&stream, assign(5));
    let (agent, next) = worker.join().unwrap();
    assert_eq!(place(next).generation, Generation(5));
    coordinator.say(&stream, to_worker::Body::Abort(rpc::Abort { generation: 5, reason: "at once".into() }));
    coordinator.say(&stream, to_worker::Body::Regroup(rpc::Regroup { generation: 5 }));
    wait_for("the wish to regroup", || agent.commands().regroup);
    let (sender, aborted) = std::sync::mpsc::channel();
    agent.on_abort(move || sender.send(()).unwrap());
    aborted.try_recv().expect("what was aborted before it could be is aborted now");

    let worker = waiting(agent, true, "");
    coordinator.hear_until(&mut stream, |body| ready(body).then_some(()));
    coordinator.say(&stream, to_worker::Body::Stop(rpc::Stop { reason: "no place".into(), generation: 0 }));
    assert!(matches!(worker.join().unwrap().1, Next::Leave { reason } if reason == "no place"));
}

#[test]
fn refusal_stop_and_silence_before_a_place_are_errors_of_their_own() {
    let answer = |body: to_worker::Body| {
        let mut coordinator = Coordinator::start();
        let address = coordinator.address.to_string();
        let worker = std::thread::spawn(move || Agent::connect(Reach::plain(&address, "x"), info(), PATIENCE));
        let stream = coordinator.accept();
        coordinator.say(&stream, body);
        worker.join().unwrap().unwrap_err()
    };
    let error = answer(refused("wrong token"));
    assert!(matches!(&error, AgentError::Refused { message } if message == "wrong token"), "{error}");
    assert_eq!(error.exit(), Exit::Network);
    let error = answer(to_worker::Body::Stop(rpc::Stop { reason: "never mind".into(), generation: 0 }));
    assert!(matches!(&error, AgentError::Stopped { reason } if reason == "never mind"), "{error}");
    assert_eq!(error.exit(), Exit::Ok);

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Agent::connect(Reach::plain(&nobody.to_string(), "x"), info(), Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, AgentError::Unreachable { .. }), "{error}");
    assert_eq!(error.exit(), Exit::Network);
    let error = Agent::connect(Reach::plain("nowhere", "x"), info(), PATIENCE).unwrap_err();
    assert!(matches!(error, AgentError::Address { .. }), "{error}");
}

fn beat(epoch: u64) -> to_worker::Body {
    to_worker::Body::Beat(rpc::Beat { received: 0, epoch })
}

#[test]
fn a_coordinator_that_was_replaced_is_not_obeyed() {
    let (mut coordinator, stream, agent) = joined(PATIENCE, LONG);
    coordinator.say(&stream, beat(2));
    coordinator.say(&stream, to_worker::Body::Checkpoint(rpc::Checkpoint {}));
    wait_for("the wish of the second coordinator", || agent.commands().checkpoint_now);
    drop(stream);
    // the first one is back, and does not know
    let first = coordinator.accept();
    coordinator.say(&first, beat(1));
    coordinator.say(&first, to_worker::Body::Stop(rpc::Stop { reason: "old".into(), generation: 3 }));
    let second = coordinator.accept();
    coordinator.say(&second, beat(2));
    coordinator.say(&second, to_worker::Body::Checkpoint(rpc::Checkpoint {}));
    wait_for("the second coordinator is obeyed", || agent.commands().checkpoint_now);
    assert!(agent.commands().is_empty(), "and the first was not");
}

#[test]
fn a_coordinator_that_has_taken_over_is_found_where_the_store_says() {
    let (coordinator, stream, agent) = joined(PATIENCE, LONG);
    let mut second = Coordinator::start();
    let seat = Seat { epoch: 2, address: second.address.to_string() };
    agent.look_up(move || Some(seat.clone()));
    agent.tick("1".into());
    coordinator.server.abort();
    drop(stream);
    drop(coordinator);
    let mut stream = second.accept();
    assert!(matches!(second.hear(&mut stream), Body::Join(_)));
    let tick = |body| match body {
        Body::Tick(tick) => Some(tick.event),
        _ => None,
    };
    assert_eq!(second.hear_until(&mut stream, tick), "1", "nothing is lost on the way");
    assert!(!agent.commands().orphaned);
}
