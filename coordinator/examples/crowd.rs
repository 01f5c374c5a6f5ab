//! Many workers without processes of their own: one coordinator, a thousand streams over real sockets, and how long it takes.
//!
//! `crowd [WORKERS] [SECONDS]` starts the coordinator beside it, lets so many workers join, breaks one of them again and again,
//! and prints one JSON object. It trains nothing and sums nothing: what is measured is the control plane alone.

use rpc::control_client::ControlClient;
use rpc::from_worker::Body;
use rpc::{FromWorker, ToWorker, to_worker};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const TOKEN: &str = "a token for a crowd on one machine only";
const PATIENCE: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(120);
/// The first pause of a worker that finds no coordinator.
const RETRY: Duration = Duration::from_millis(50);
const STEP: Duration = Duration::from_millis(100);
/// Membership changes that are measured.
const CHANGES: usize = 20;

/// Streams that ended although their worker lives.
static BROKEN: AtomicU64 = AtomicU64::new(0);

/// What a worker tells the main task.
enum Told {
    Welcomed,
    Placed { generation: u64, at: Instant },
}

fn main() {
    let number =
        |index, default: u64| std::env::args().nth(index).map_or(default, |text| text.parse().expect("a number"));
    let (workers, seconds) = (number(1, 1000), number(2, 10));
    let folder = std::env::temp_dir().join(format!("crowd-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("images")).expect("a temporary folder");
    let mut coordinator = Running(launch(&folder, workers));
    let address = address(&mut coordinator.0);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let report = runtime.block_on(measure(&address, workers, Duration::from_secs(seconds), coordinator.0.id()));
    drop(coordinator);
    let _left = std::fs::remove_dir_all(&folder);
    println!("{report}");
}

/// The coordinator, which ends with what measures it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // it has nobody to wait for
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn launch(folder: &Path, workers: u64) -> Child {
    let text = format!(
        "name = \"crowd\"\n[model]\nresolution = 4\n[data]\nsource = \"images\"\n[train]\ntotal_kimg = 1000000\n[cluster]\n\
         patience = \"{}s\"\nmax_workers = {workers}\n[checkpoint]\nurl = \"runs\"\n",
        PATIENCE.as_secs()
    );
    std::fs::write(folder.join("crowd.toml"), text).expect("a file");
    let examples: PathBuf = std::env::current_exe().expect("this program").parent().expect("a folder").into();
    let program = examples.parent().expect("a folder").join("coordinator");
    Command::new(program)
        .args(["launch", "crowd.toml", "--local", "0", "--json", "--workers", &workers.to_string()])
        .current_dir(folder)
        .env("GANFLEET_WORKER", examples.join("fake_worker"))
        .env("GANFLEET_TOKEN", TOKEN)
        .env("XDG_STATE_HOME", folder.join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the coordinator starts")
}

/// Where it listens; the rest of what it says is read and dropped.
fn address(coordinator: &mut Child) -> String {
    let mut lines = BufReader::new(coordinator.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let found = lines.find_map(|line| {
        let event: Value = serde_json::from_str(&line).ok()?;
        (event["event"] == "launched").then(|| event["address"].as_str().unwrap_or_default().to_owned())
    });
    std::thread::spawn(move || lines.for_each(drop));
    found.expect("the coordinator listens")
}

async fn measure(address: &str, workers: u64, time: Duration, coordinator: u32) -> Value {
    let images = Arc::new(AtomicU64::new(0));
    let (told, mut hears) = mpsc::channel(1 << 16);
    let began = Instant::now();
    let spawn = |number| {
        let (hurt, hurts) = mpsc::channel(1);
        (tokio::spawn(work(address.to_owned(), number, images.clone(), told.clone(), hurts, workers as usize)), hurt)
    };
    let mut crowd: Vec<(JoinHandle<()>, mpsc::Sender<()>)> = (0..workers).map(spawn).collect();
    let mut welcomed = Duration::ZERO;
    let mut count = 0;
    while count < workers {
        if let Some(Told::Welcomed) = timeout(LONG, hears.recv()).await.expect("all are welcomed") {
            (count, welcomed) = (count + 1, began.elapsed());
        }
    }
    let placed = all_placed(&mut hears, workers, 0).await;
    let joined = placed.iter().max().map_or(Duration::ZERO, |at| *at - began);
    // the generation gets on
    let steps = images.clone();
    let train = tokio::spawn(async move {
        let mut step = interval(STEP);
        loop {
            step.tick().await;
            steps.fetch_add(1, Ordering::Relaxed);
        }
    });
    sleep(Duration::from_secs(1)).await;
    let (before, since) = (processor_seconds(coordinator), Instant::now());
    sleep(time).await;
    let share = (processor_seconds(coordinator) - before) / since.elapsed().as_secs_f64();

    let mut changes: Vec<f64> = Vec::new();
    let mut generation = 1;
    for number in 0..CHANGES as u64 {
        let victim = (number * 37 % workers) as usize;
        let lost = Instant::now();
        crowd[victim].0.abort();
        // one of its peers sees it and says so; all others learn it from the coordinator
        let _seen = crowd[(victim + 1) % workers as usize].1.send(()).await;
        let placed = all_placed(&mut hears, workers - 1, generation).await;
        changes.extend(placed.iter().map(|at| (*at - lost).as_secs_f64() * 1e3));
        // another one takes its place
        crowd[victim] = spawn(workers + number);
        all_placed(&mut hears, workers, generation + 1).await;
        generation += 2;
    }
    train.abort();
    changes.sort_by(f64::total_cmp);
    let at = |share: f64| changes[((changes.len() - 1) as f64 * share) as usize];
    json!({
        "workers": workers,
        "all_welcomed_s": welcomed.as_secs_f64(),
        "all_placed_s": joined.as_secs_f64(),
        "coordinator_share_of_a_core": share,
        "changes": CHANGES,
        "streams_broken": BROKEN.load(Ordering::Relaxed),
        "change_known_to_a_worker_ms": {"p50": at(0.5), "p99": at(0.99), "most": at(1.0)},
    })
}

/// When each of `workers` had its place in one and the same generation after `after`.
async fn all_placed(hears: &mut mpsc::Receiver<Told>, workers: u64, after: u64) -> Vec<Instant> {
    let (mut last, mut placed) = (after, Vec::new());
    while (placed.len() as u64) < workers {
        if let Some(Told::Placed { generation, at }) = timeout(LONG, hears.recv()).await.expect("all are placed") {
            if generation > last {
                (last, placed) = (generation, Vec::new());
            }
            if generation == last && generation > after {
                placed.push(at);
            }
        }
    }
    placed
}

/// What a worker of the crowd says of itself.
#[derive(Default)]
struct Standing {
    generation: u64,
    prepared: bool,
    ready: bool,
    trouble: &'static str,
}

impl Standing {
    fn leave(&mut self, trouble: &'static str) {
        (self.ready, self.trouble) = (true, trouble);
    }

    fn is_in(&self, generation: u64) -> bool {
        !self.ready && self.generation == generation
    }

    fn message(&self, images: u64) -> FromWorker {
        let progress = rpc::Progress {
            generation: self.generation,
            images,
            activity: if self.ready { "join" } else { "train" }.into(),
            ready: self.ready,
            has_state: self.generation > 0,
            line: self.generation,
            trouble: if self.ready { self.trouble.to_owned() } else { String::new() },
            step_seconds: STEP.as_secs_f64(),
            ..rpc::Progress::default()
        };
        FromWorker { body: Some(Body::Progress(progress)), sequence: 0 }
    }
}

/// One worker: joins, is ready, takes places, leaves them when told, comes back when its stream ends.
async fn work(
    address: String,
    number: u64,
    images: Arc<AtomicU64>,
    told: mpsc::Sender<Told>,
    mut hurts: mpsc::Receiver<()>,
    world: usize,
) {
    let join = rpc::Join {
        protocol: rpc::PROTOCOL,
        token: TOKEN.into(),
        build: env!("CARGO_PKG_VERSION").into(),
        worker_id: format!("c{number}"),
        pid: 1,
        host: "crowd".into(),
        peer_address: format!("10.{}.{}.{}:4000", number / 65536, number / 256 % 256, number % 256),
        device: "cpu".into(),
    };
    let mut standing = Standing::default();
    // as workers do in a generation of so many
    let mut beat = interval(agent::heartbeat(PATIENCE, world));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stream = enter(&address, &join).await;
    loop {
        let (_, incoming) = &mut stream;
        let say = tokio::select! {
            message = incoming.message() => match message.ok().flatten().and_then(|message| message.body) {
                Some(to_worker::Body::Welcome(_)) => {
                    if !std::mem::replace(&mut standing.prepared, true) {
                        let _heard = told.send(Told::Welcomed).await;
                        standing.ready = true;
                    }
                    true
                }
                Some(to_worker::Body::Assign(assign)) if standing.ready && assign.generation > standing.generation => {
                    (standing.generation, standing.ready) = (assign.generation, false);
                    let placed = Told::Placed { generation: assign.generation, at: Instant::now() };
                    let _heard = told.send(placed).await;
                    true
                }
                Some(to_worker::Body::Abort(abort)) if standing.is_in(abort.generation) => {
                    standing.leave("aborted");
                    true
                }
                // in a mesh all would agree on it; here the one that is asked leaves, and the others are told to
                Some(to_worker::Body::Regroup(regroup)) if standing.is_in(regroup.generation) => {
                    standing.leave("regroup");
                    true
                }
                Some(to_worker::Body::Refused(refused)) => {
                    eprintln!("{}: {}", join.worker_id, refused.message);
                    standing.leave("refused");
                    false
                }
                Some(_) => false,
                None => {
                    BROKEN.fetch_add(1, Ordering::Relaxed);
                    stream = enter(&address, &join).await;
                    true
                }
            },
            Some(()) = hurts.recv() => {
                standing.leave("a peer is lost");
                true
            }
            _ = beat.tick() => true,
        };
        if say {
            // a stream that takes nothing more has ended, which is seen above
            let _taken = stream.0.send(standing.message(images.load(Ordering::Relaxed))).await;
        }
    }
}

/// A stream to the coordinator. At its door there is room for so many at once: the others try again, as workers do.
async fn enter(address: &str, join: &rpc::Join) -> (mpsc::Sender<FromWorker>, Streaming<ToWorker>) {
    loop {
        let (sender, receiver) = mpsc::channel(64);
        let _kept = sender.send(FromWorker { body: Some(Body::Join(join.clone())), sequence: 0 }).await;
        let session = async {
            let mut client = ControlClient::connect(format!("http://{address}")).await.ok()?;
            client.session(ReceiverStream::new(receiver)).await.ok()
        };
        match session.await {
            Some(stream) => return (sender, stream.into_inner()),
            None => sleep(RETRY).await,
        }
    }
}

/// Processor time of a process so far.
fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok()).sum();
    // USER_HZ, which Linux shows to processes whatever it counts itself
    ticks / 100.0
}
