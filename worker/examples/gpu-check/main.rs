//! `gpu-check`: what can be tried only where there is a GPU. `scripts/gpu-check` calls it; so can you:
//!
//! ```text
//! cargo run -p worker --example gpu-check
//! ```
//!
//! 1. Gradients of every family beside those on the CPU.
//! 2. How long training stands still for a checkpoint.
//! 3. What the GPU says of its memory, how libtorch says that there is not enough, and a widest step.
//! 4. The contract of collectives, kept by NCCL with as many ranks as there are GPUs, each rank a thread.
//! 5. The life of a group of one: met, summed, aborted, met again, each timed.
//! 6. A sum waits for what was queued before it, and what is queued after it waits for the sum.
//! 7. Two processes sum, and one of them is killed in the midst of it.
//!
//! The last line is a JSON object with what was measured. It refuses to take a mock for NCCL: without a GPU it says "skipped" and has shown
//! nothing. `--rehearse` does what it can on the CPU, to see that the check itself works; it shows nothing about GPUs.

mod life;
mod pair;
mod parity;
mod staged;
mod stall;

use collective::{Collective, Listener, Membership, Mesh, contract};
use native::DeviceMemory;
use native::cuda::{self, Cuda};
use serde_json::{Map, Value, json};
use staged::Staged;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use worker::communicator::Communicator;
use worker::ranks::Ranks;
use worker::{environment, gpus, rehearse};

/// Anything that ends a check; it is printed and nothing branches on it.
type Failure = Box<dyn Error + Send + Sync>;

/// A run that grows to where a step is widest.
const WIDEST: &str = "[model]\nfamily = \"progan\"\nresolution = 32\nfmap_max = 16\n\
     [train.growth]\nstable_kimg = 0.5\nfade_kimg = 0.5\n";

/// Long enough for any machine; never waited for where things work.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let cuda = cuda::load(&environment::library_folders());
    let rehearsed = std::env::args().any(|argument| argument == "--rehearse");
    match &cuda {
        // beside other tests, idle threads of libtorch's spin
        _ if rehearsed => tch::set_num_threads(1),
        Cuda::Loaded(_) if tch::Cuda::is_available() => {}
        Cuda::NoDriver | Cuda::Loaded(_) => {
            println!("skipped: no GPU");
            return ExitCode::SUCCESS;
        }
        Cuda::NoLibrary | Cuda::Failed(_) => {
            eprintln!("gpu-check: libtorch's CUDA half is missing or would not load ({cuda:?}): scripts/setup --cuda");
            return ExitCode::FAILURE;
        }
    }
    let outcome = match pair::role() {
        Some(rank) => pair::member(rank),
        None => check(rehearsed),
    };
    if let Err(error) = outcome {
        eprintln!("gpu-check: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn check(rehearsed: bool) -> Result<(), Failure> {
    let mut report = Map::new();
    let (device, parts, numbers) = if rehearsed { (Device::Cpu, 4, 1 << 10) } else { (Device::Cuda(0), 64, 1 << 20) };
    timed("gradients as on the CPU", || {
        let found = parity::check(device)?;
        report.insert("gradients_apart".to_owned(), found.into_iter().collect());
        Ok(())
    })?;
    timed("a checkpoint's stall", || {
        let stall = stall::measure(device, parts, numbers)?;
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
        let found = json!({
            "bytes": stall.bytes, "first_ms": ms(stall.first), "later_ms": ms(stall.later), "not_pinned_ms": ms(stall.pageable),
        });
        report.insert("stall".to_owned(), found);
        Ok(())
    })?;
    timed("a widest step", || {
        let config = parity::config(WIDEST)?;
        let found: Value = serde_json::from_str(&rehearse::widest_step(&config, 2, device)?)?;
        if !found["lacking"].is_null() || found["after"].is_null() != rehearsed {
            return Err(found.to_string().into());
        }
        report.insert("widest_step".to_owned(), found);
        Ok(())
    })?;
    if rehearsed {
        println!("skipped: what needs a GPU");
    } else {
        timed("the GPU's memory", || {
            report.insert("memory".to_owned(), memory(device)?);
            Ok(())
        })?;
        of_nccl(&mut report)?;
    }
    println!("{}", Value::Object(report));
    Ok(())
}

fn of_nccl(report: &mut Map<String, Value>) -> Result<(), Failure> {
    let count = usize::try_from(tch::Cuda::device_count())?;
    timed("the contract, one rank", || {
        contract::suite(1, &|| staged(1));
        Ok(())
    })?;
    if count > 1 {
        timed("the contract, a rank on each GPU", || {
            contract::suite(count, &|| staged(count));
            Ok(())
        })?;
    } else {
        println!("skipped: the contract with several ranks needs several GPUs");
    }
    timed("the life of a group of one", || {
        report.insert("life_of_a_group".to_owned(), life::measure()?);
        Ok(())
    })?;
    timed("sums in the order of what is queued", || sums_wait_for_what_is_queued(count.min(2)))?;
    pair::check(count)
}

/// What [`worker::rehearse`] builds on: numbers that make sense, and words by which a lack of memory is known.
fn memory(device: Device) -> Result<Value, Failure> {
    let here = || DeviceMemory::of(device)?.ok_or_else(|| Failure::from("a GPU has memory of its own"));
    let taken = Tensor::zeros([64 << 20], (Kind::Uint8, device));
    let with = here()?;
    drop(taken);
    if with.held < 64 << 20 || with.free >= with.total {
        return Err(format!("with 64 MiB taken it says {with:?}").into());
    }
    match Tensor::f_zeros([with.total as i64], (Kind::Uint8, device)) {
        Err(error) if rehearse::lacks(&error.to_string()) => {}
        other => return Err(format!("all of its memory at once: {other:?}").into()),
    }
    Ok(json!({ "free": with.free, "total": with.total }))
}

fn timed(what: &str, check: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let begun = Instant::now();
    check().map_err(|error| format!("{what}: {error}"))?;
    println!("ok: {what} ({:.1} s)", begun.elapsed().as_secs_f64());
    Ok(())
}

/// A formed group, rank r on GPU r. A world of one is a group of NCCL's here too.
fn staged(world: usize) -> contract::Group {
    let member = |ranks: Ranks, rank| Box::new(Staged::new(ranks, Device::Cuda(rank))) as Box<dyn Collective>;
    form(world).into_iter().zip(0..).map(|(ranks, rank)| member(ranks, rank)).collect()
}

fn form(world: usize) -> Vec<Ranks> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut listeners: Vec<_> = (0..world).map(|_| Listener::bind(any).expect("loopback has free ports")).collect();
    let peers: Vec<_> = listeners.iter().map(Listener::address).collect();
    std::thread::scope(|scope| {
        let join = |(rank, listener): (usize, &mut Listener)| join(rank, rank, listener, peers.clone());
        let ranks: Vec<_> = listeners.iter_mut().enumerate().map(|one| scope.spawn(move || join(one))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank panicked").expect("the ranks meet")).collect()
    })
}

/// Meets the other ranks, on GPU number `gpu`.
fn join(rank: usize, gpu: usize, listener: &mut Listener, peers: Vec<SocketAddr>) -> Result<Ranks, Failure> {
    // on loopback, among processes of one user: nothing here is worth a secret
    let membership = Membership { generation: 1, rank: u32::try_from(rank)?, peers, secret: [0; 32] };
    let mesh = Mesh::connect(listener, membership, PATIENCE)?;
    Ok(gpus::meet_on_gpu(Box::new(mesh), gpu, &environment::library_folders(), PATIENCE)?)
}

/// Each rank queues long work whose result is summed, and uses the sum at once: both orders show in the numbers.
fn sums_wait_for_what_is_queued(world: usize) -> Result<(), Failure> {
    const SIDE: i64 = 2048;
    const TIMES: i32 = 40;
    std::thread::scope(|scope| {
        let play = |(ranks, gpu): (Ranks, usize)| {
            let mut communicator = Communicator::of(ranks);
            let options = (Kind::Float, Device::Cuda(gpu));
            for round in 1..=5 {
                // a matrix of 1/SIDE times one of ones is one of ones: the value survives, if nobody reads too early
                let mean = Tensor::full([SIDE, SIDE], 1.0 / SIDE as f64, options);
                let buffer = Tensor::zeros([SIDE, SIDE], options);
                let mut value = Tensor::full([SIDE, SIDE], f64::from(round), options);
                for _ in 0..TIMES {
                    value = mean.matmul(&value);
                }
                buffer.shallow_clone().copy_(&value);
                communicator.launcher().sum(&buffer);
                communicator.wait()?;
                let expected = f64::from(round) * world as f64;
                let off = (&buffer - expected).abs().max().double_value(&[]);
                if off > 1e-2 {
                    return Err(Failure::from(format!("a sum that should be {expected} is off by {off}")));
                }
            }
            Ok(())
        };
        let ranks: Vec<_> = form(world).into_iter().zip(0..).map(|one| scope.spawn(move || play(one))).collect();
        ranks.into_iter().try_for_each(|rank| rank.join().map_err(|_| "a rank panicked")?)
    })
}
