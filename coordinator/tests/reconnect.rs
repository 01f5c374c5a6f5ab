//! A worker behind a network that breaks: it comes back to its place, and nothing it reported is lost or counted twice.

use agent::{Agent, JoinInfo, Next, Reach, Stored, Trouble};
use children::supervisor::{Recipe, Supervisor};
use common::config::resolved::{RunConfig, S3};
use common::exit::Exit;
use common::ids::{Generation, ImagesSeen};
use common::metrics::{Event, Tick};
use coordinator::admission::Token;
use coordinator::display::{Display, Style};
use coordinator::driver::{Drive, Driver, Keep, Plan};
use coordinator::journal::{Header, Journal};
use coordinator::records::Records;
use coordinator::server::{self, Beats};
use coordinator::tenure::Tenure;
use coordinator::view::Facts;
use coordinator_core::{Memory, OnLoss, Outcome, Policy, Reason, WorkerId};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use storage::Run;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60);
const TICKS: u64 = 30;

/// A network between the worker and the coordinator; each message on the channel breaks every connection.
async fn relay(to: SocketAddr, mut breaks: mpsc::Receiver<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(()) = breaks.recv() => connections.abort_all(),
                accepted = listener.accept() => {
                    let (mut from, _) = accepted.unwrap();
                    connections.spawn(async move {
                        let mut to = TcpStream::connect(to).await.unwrap();
                        let _ = copy_bidirectional(&mut from, &mut to).await;
                    });
                }
            }
        }
    });
    address
}

fn config() -> RunConfig {
    let text = "name = \"toy\"\n[data]\nsource = \"images\"\n[train]\ntotal_kimg = 3\n[cluster]\npatience = \"5s\"\n";
    let folder = std::path::Path::new("/");
    let base = common::config::Base::File { path: "toy.toml", text, folder };
    let layers = common::config::Layers { base, env: &[], set: &[], working_dir: folder };
    common::config::resolve(&layers, 1).unwrap().config
}

/// What the worker does, on a thread of its own.
fn work(address: SocketAddr, breaks: &mpsc::Sender<()>) {
    let info = JoinInfo { worker_id: "far".into(), ..JoinInfo::of_this_process("1.0.0", "127.0.0.1:1", "cpu") };
    let (agent, _) = Agent::connect(Reach::plain(&address.to_string(), "secret"), info, LONG).unwrap();
    let Next::Place(assignment) = agent.wait(false, &Trouble::default()).unwrap() else { panic!("no place") };
    assert_eq!(assignment.generation, Generation(5));
    for number in 1..=TICKS {
        let tick = Tick { images: number * 100, ..Tick::default() };
        agent.tick(serde_json::to_string(&Event::Tick(tick)).unwrap());
        if number % 6 == 0 {
            breaks.blocking_send(()).unwrap();
        }
    }
    let images = ImagesSeen(TICKS * 100);
    let (generation, manifest) = (assignment.generation, "m".into());
    agent.stored(Stored { generation, images, manifest, bytes: 1, stall_seconds: 0.0, seconds: 0.0 });
    agent.progress(agent::Progress { images, ..agent::Progress::default() });
    agent.leave(Exit::Ok, "done");
}

async fn drive(folder: &Path, run: Run, records: &mut Records) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (breaks, breaker) = mpsc::channel(1);
    let address = relay(listener.local_addr().unwrap(), breaker).await;
    let (inputs, receiver) = mpsc::channel(1024);
    let beats = Beats::default();
    tokio::spawn(server::serve((listener, None), Token::from_text("secret"), "1.0.0", inputs, beats.clone()));
    let total = ImagesSeen(TICKS * 100);
    let plan = Plan {
        facts: Facts {
            run: "toy".into(),
            url: "memory://r/toy".into(),
            total_images: total.0,
            epoch: 1,
            taken_over: false,
        },
        config: serde_json::to_string(&config()).unwrap(),
        model: config().model,
        policy: Policy {
            workers: 1,
            min_workers: 1,
            max_workers: 1,
            local: 0,
            on_loss: OnLoss::Shrink,
            failures: 3,
            total,
            startup: LONG,
            patience: LONG,
            stop: LONG,
        },
        beat: Duration::from_millis(250),
        orphan_patience: LONG,
        generation: Generation(4),
        resume: None,
        recipe: Recipe {
            worker: WorkerId(String::new()),
            gpus: Vec::new(),
            program: "/nowhere".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            leash: false,
        },
        resume_with: String::new(),
        token: Token::from_text("secret"),
    };
    let worker = std::thread::spawn(move || work(address, &breaks));
    let (supervisor, children) = Supervisor::new(folder);
    let header = Header::new("memory://r/toy", (1, ""), (1, 0), &plan.config);
    let keep = Keep { journal: Journal::begin(folder, header, Memory::default()), tenure: Tenure::none(), run };
    let mut display = Display::new(Style::Plain);
    let (_interrupt, mut signals) = mpsc::channel(1);
    let driven =
        Driver::new(plan, keep, supervisor, records, &mut display).run(receiver, beats, children, &mut signals);
    let Drive::Over(outcome) = timeout(LONG, driven).await.unwrap().unwrap() else { panic!("replaced") };
    worker.join().unwrap();
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn every_report_counts_once_over_a_network_that_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let run = storage::Store::open("memory://reconnect", &S3::default()).unwrap().run("toy").unwrap();
    let mut records = Records::open(folder.path(), run.clone(), None).await.unwrap();
    let outcome = drive(folder.path(), run.clone(), &mut records).await;
    assert_eq!((outcome.exit, &outcome.reason), (Exit::Ok, &Reason::Complete { images: ImagesSeen(TICKS * 100) }));
    assert_eq!(outcome.newest.unwrap().manifest, "m");
    records.finish().await;
    let metrics = run.get_file("metrics.jsonl", 1 << 20).await.unwrap();
    let images: Vec<u64> = String::from_utf8(metrics.to_vec())
        .unwrap()
        .lines()
        .map(|line| match serde_json::from_str(line).unwrap() {
            Event::Tick(tick) => tick.images,
            other => panic!("{other:?} was reported"),
        })
        .collect();
    assert_eq!(images, (1..=TICKS).map(|number| number * 100).collect::<Vec<_>>());
}
