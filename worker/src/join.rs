//! `worker join`: from an address to a trained model. Connects, gets its place, opens data and peers, restores, trains.
//!
//! The order matters: ranks meet first, so that one who is lost or cannot be reached is known at once; then each prepares its
//! images, however long that takes, and all compare what they have before anything is trained.

use crate::checkpoint::{self, Checkpoints, Identity};
use crate::communicator::Communicator;
use crate::failure::Failure;
use crate::gpus;
use crate::input::Input;
use crate::models;
use crate::outputs::Outputs;
use crate::ranks::Ranks;
use crate::run::{self, Ending, Parts};
use crate::trainer::{StepError, Trainer};
use crate::{alike, environment, prepare};
use agent::{Activity, Agent, Assignment, JoinInfo, Progress};
use collective::{Collective, Listener, Membership, Mesh, Solo};
use common::checkpoint::{Dataset, ManifestKey};
use common::config::resolved::{Backend, Determinism, Precision, RunConfig};
use common::exit::Exit;
use common::ids::ImagesSeen;
use native::cuda::Cuda;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use storage::Store;
use tch::{Device, Kind};

/// Until the run's own patience is known.
const PATIENCE: Duration = Duration::from_secs(10);
/// Every rank must be there within this time once places are given.
const CONNECT: Duration = Duration::from_secs(60);
/// A host that has never seen the training images may need this long to prepare them, while the others wait.
const PREPARE: Duration = Duration::from_secs(6 * 3600);
/// A collective in which nothing moves for so long is given up. A lost rank is noticed at once, by its connections; a hung
/// one by its coordinator, sooner.
const COLLECTIVE: Duration = Duration::from_secs(600);

/// Runs one worker to its end and returns its exit code.
///
/// # Errors
/// [`Failure`]; where a session exists the coordinator was told.
pub fn join(address: &str, token: &str, listen: Option<IpAddr>, cuda: &Cuda) -> Result<Exit, Failure> {
    let ip = listen.map_or_else(|| address_towards(address), Ok)?;
    let mut listener = Listener::bind(SocketAddr::new(ip, 0))?;
    let device = device(cuda);
    let name = match device {
        Device::Cuda(i) => format!("cuda:{i}"),
        _ => "cpu".to_owned(),
    };
    let info = JoinInfo::of_this_process(env!("CARGO_PKG_VERSION"), &listener.address().to_string(), &name);
    let writer = info.worker_id.clone();
    let (agent, assignment) = Agent::connect(address, token, info, PATIENCE)?;
    match work(&agent, &assignment, &mut listener, writer, device) {
        Ok(ending) => {
            let (exit, message) = match ending {
                Ending::Complete => (Exit::Ok, "complete".to_owned()),
                Ending::Stopped => (Exit::Ok, format!("stopped: {}", agent.stop_reason())),
                Ending::Orphaned => (Exit::Orphaned, "the coordinator vanished; the state is stored".to_owned()),
            };
            agent.leave(exit, &message);
            Ok(exit)
        }
        Err(failure) => {
            agent.leave(failure.exit(), &failure.to_string());
            Err(failure)
        }
    }
}

fn work(
    agent: &Agent,
    assignment: &Assignment,
    listener: &mut Listener,
    writer: String,
    device: Device,
) -> Result<Ending, Failure> {
    let config = &assignment.config;
    supported(config, device)?;
    let rank = assignment.rank.0;
    let peers = addresses(&assignment.peers)?;
    let threads = environment::threads(config, &peers, rank);
    tch::set_num_threads(threads as i32);
    native::allow_tf32(config.train.precision == Precision::Tf32).map_err(StepError::from)?;
    let doing = |activity| agent.progress(Progress { activity, ..Progress::default() });

    let mut ranks = connect(config, assignment, listener, peers, device)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = Arc::new(runtime.map_err(|error| Failure::Io { doing: "start a runtime".to_owned(), error })?);
    let store = {
        let _inside = runtime.enter();
        Store::open(&config.checkpoint.url, &config.checkpoint.s3)?
    };
    let run = store.run(&config.name)?;
    runtime.block_on(alike::same_store(&run, config))?;

    doing(Activity::Data);
    let pyramid = Arc::new(prepare::pyramid(config, &|_| ())?.pyramid);
    let environment = environment::facts(threads, device);
    let dataset = Dataset { fingerprint: pyramid.fingerprint().to_owned(), images: pyramid.len() as u64 };
    ranks.set_deadline(PREPARE);
    alike::agree(&mut ranks, config, &dataset, &environment)?;
    ranks.set_deadline(COLLECTIVE);
    let model = models::build(config, Kind::Float, device);
    let mut trainer = Trainer::new(config.clone(), model, Communicator::of(ranks), device);

    doing(Activity::Restore);
    let parent = match &assignment.resume {
        None => None,
        Some(key) => {
            let key: ManifestKey = key.parse().map_err(|e| Failure::Usage(format!("checkpoint {key}: {e}")))?;
            let manifest = runtime.block_on(checkpoint::restore(&run, key, &mut trainer))?;
            if rank == 0 {
                tell_differences(&manifest, &dataset, &environment);
            }
            Some(manifest)
        }
    };
    tracing::info!(
        "generation {}, rank {rank} of {}: {} images, {threads} threads, from {}",
        assignment.generation,
        assignment.peers.len(),
        pyramid.len(),
        ImagesSeen(trainer.position().images),
    );
    let outputs = Outputs::new(Arc::clone(&runtime), run.clone(), rank == 0);
    let identity = Identity { generation: assignment.generation, writer, dataset, environment };
    let cursor = parent.as_ref().map(|m| m.cursor.clone());
    let mut parts = Parts {
        agent,
        input: Input::new(Arc::clone(&pyramid), config.seed, config.data.mirror),
        checkpoints: Checkpoints::new(runtime, run, identity, parent),
        outputs,
        pyramid,
    };
    run::train(&mut trainer, &mut parts, cursor)
}

/// What this build and machine cannot do is said before anybody waits.
fn supported(config: &RunConfig, device: Device) -> Result<(), Failure> {
    let no = |what: &str| Err(Failure::Unsupported(what.to_owned()));
    match (config.train.precision, device) {
        (Precision::Bf16, _) => return no("train.precision = \"bf16\" is not built yet; use \"fp32\" or \"tf32\""),
        (Precision::Tf32, Device::Cpu) => return no("train.precision = \"tf32\" needs a GPU; use \"fp32\""),
        _ => {}
    }
    const FOR_CPUS: &str = "to train on CPUs here, set CUDA_VISIBLE_DEVICES= (empty)";
    match (config.cluster.backend, config.train.determinism, device) {
        (Backend::Nccl, _, Device::Cpu) => {
            no("cluster.backend = \"nccl\" needs a GPU on every worker; use \"auto\" or \"tcp\"")
        }
        (Backend::Tcp, _, Device::Cuda(_)) => no(&format!(
            "cluster.backend = \"tcp\" sums in host memory, and this worker has a GPU: use \"auto\" or \"nccl\"; {FOR_CPUS}"
        )),
        (_, Determinism::Bitwise, Device::Cuda(_)) => no(&format!(
            "train.determinism = \"bitwise\" needs CPU workers, for GPUs add in an order of their own: use \"fast\"; {FOR_CPUS}"
        )),
        _ => Ok(()),
    }
}

fn connect(
    config: &RunConfig,
    assignment: &Assignment,
    listener: &mut Listener,
    peers: Vec<SocketAddr>,
    device: Device,
) -> Result<Ranks, Failure> {
    let generation = assignment.generation.0;
    let mut mesh: Box<dyn Collective> = if peers.len() == 1 {
        Box::new(Solo::new(generation))
    } else if config.cluster.backend == Backend::Solo {
        return Err(Failure::Unsupported(format!("cluster.backend = \"solo\" is for one worker, not {}", peers.len())));
    } else {
        let membership = Membership { generation, rank: assignment.rank.0, peers, secret: assignment.secret };
        Box::new(Mesh::connect(listener, membership, CONNECT)?)
    };
    mesh.set_deadline(CONNECT);
    gpus::meet(mesh, device, &environment::library_folders(), CONNECT)
}

/// The device of this process: its first visible GPU, else the CPU.
fn device(cuda: &Cuda) -> Device {
    match cuda {
        Cuda::Loaded(_) if tch::Cuda::is_available() => Device::Cuda(0),
        Cuda::Loaded(path) => {
            tracing::warn!("{} is loaded but finds no usable GPU; training on the CPU", path.display());
            Device::Cpu
        }
        Cuda::NoDriver => Device::Cpu,
        Cuda::NoLibrary => {
            tracing::warn!(
                "this machine has an NVIDIA driver, but libtorch's CUDA half is missing: scripts/setup --cuda"
            );
            Device::Cpu
        }
        Cuda::Failed(why) => {
            tracing::warn!("libtorch's CUDA half would not load ({why}); training on the CPU");
            Device::Cpu
        }
    }
}

/// The address of this machine by which the coordinator at `address` is reached: where peers reach it too.
fn address_towards(address: &str) -> Result<IpAddr, Failure> {
    let authority = address.trim_start_matches("http://").trim_end_matches('/');
    let io = |error| Failure::Io { doing: format!("reach the coordinator at {authority}"), error };
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for candidate in authority.to_socket_addrs().map_err(io)? {
        match TcpStream::connect_timeout(&candidate, PATIENCE).and_then(|stream| stream.local_addr()) {
            Ok(local) => return Ok(local.ip()),
            Err(error) => last = error,
        }
    }
    Err(Failure::Unreachable { address: authority.to_owned(), error: last })
}

fn addresses(peers: &[String]) -> Result<Vec<SocketAddr>, Failure> {
    let parse = |peer: &String| peer.parse().map_err(|e| Failure::Usage(format!("peer address {peer}: {e}")));
    peers.iter().map(parse).collect()
}

fn tell_differences(
    manifest: &common::checkpoint::Manifest,
    dataset: &Dataset,
    environment: &std::collections::BTreeMap<String, String>,
) {
    if manifest.dataset.fingerprint != dataset.fingerprint {
        tracing::warn!(
            "the training images differ from those of the checkpoint ({} images then, {} now): what follows is another run",
            manifest.dataset.images,
            dataset.images
        );
    }
    if manifest.config.train.determinism == Determinism::Bitwise {
        for (fact, then) in &manifest.environment {
            let now = environment.get(fact).map_or("unknown", String::as_str);
            if now != then {
                tracing::warn!("{fact} was {then} and is {now}: the bits may differ from an undisturbed run");
            }
        }
    }
}
