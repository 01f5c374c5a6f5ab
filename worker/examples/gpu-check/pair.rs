//! Two processes that sum on GPUs, until one is killed in the midst of it.
//!
//! On a machine with one GPU both take it, each with an `NCCL_HOSTID` of its own so that NCCL takes them for two machines: a way
//! to try correctness, not speed. Whether NCCL plays along is its affair; where it does not, that is said and nothing is shown.

use crate::{Failure, join};
use collective::{CollectiveError, Listener};
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use worker::communicator::Communicator;

const ROLE: &str = "GANFLEET_GPU_CHECK_RANK";

/// Numbers in a sum: a bucket of gradients.
const LENGTH: i64 = 1 << 20;

/// The loss of a process is known within this time.
const NEWS: Duration = Duration::from_secs(1);

/// The rank that this process plays, where it was started for that.
pub fn role() -> Option<usize> {
    std::env::var(ROLE).ok()?.parse().ok()
}

/// One rank: sums without end, and says how that ended.
pub fn member(rank: usize) -> Result<(), Failure> {
    let mut listener = Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    println!("address {}", listener.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let peers = line.split_whitespace().map(str::parse).collect::<Result<Vec<SocketAddr>, _>>()?;
    // CUDA_VISIBLE_DEVICES has left one GPU
    let ranks = match join(rank, 0, &mut listener, peers) {
        Ok(ranks) => ranks,
        Err(error) => {
            println!("refused {error}");
            return Ok(());
        }
    };
    let mut communicator = Communicator::of(ranks);
    let options = (Kind::Float, Device::Cuda(0));
    let mut sums = 0u32;
    let begun = Instant::now();
    let cause = loop {
        let buffer = Tensor::full([LENGTH], rank as f64 + 1.0, options);
        communicator.launcher().sum(&buffer);
        if let Err(cause) = communicator.wait() {
            break cause;
        }
        let off = (&buffer - 3.0).abs().max().double_value(&[]);
        if off != 0.0 {
            return Err(format!("the sum of 1 and 2 is off by {off}").into());
        }
        sums += 1;
        if sums == 50 {
            println!("summed {:.2}", begun.elapsed().as_secs_f64() * 1e3 / f64::from(sums));
        }
    };
    let ended = Instant::now();
    drop(communicator);
    let named = matches!(cause, CollectiveError::PeerLost { rank: 1, .. });
    println!("ended {named} {:.2} {cause}", ended.elapsed().as_secs_f64());
    Ok(())
}

struct Member {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Member {
    fn start(rank: usize, count: usize) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE, rank.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok().filter(|list| !list.is_empty());
        let all: Vec<String> = match &visible {
            Some(list) => list.split(',').map(str::to_owned).collect(),
            None => (0..count).map(|gpu| gpu.to_string()).collect(),
        };
        command.env("CUDA_VISIBLE_DEVICES", &all[rank % all.len()]);
        if count == 1 {
            command.env("NCCL_HOSTID", format!("ganfleet-{rank}"));
        }
        let mut child = command.spawn()?;
        let out = child.stdout.take().ok_or("no output of a process")?;
        Ok(Self { child, lines: BufReader::new(out).lines() })
    }

    /// The next line, after its first word, which has to be `word`.
    fn hear(&mut self, word: &str) -> Result<String, Failure> {
        let line = self.lines.next().ok_or("a process ended without a word")??;
        match line.split_once(' ') {
            Some((first, rest)) if first == word => Ok(rest.to_owned()),
            _ => Err(line.into()),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Starts the two, lets them sum, kills the second, and hears what the first makes of it.
pub fn check(count: usize) -> Result<(), Failure> {
    let mut pair = [Member::start(0, count)?, Member::start(1, count)?];
    let addresses = [pair[0].hear("address")?, pair[1].hear("address")?].join(" ");
    for member in &mut pair {
        let stdin = member.child.stdin.as_mut().ok_or("no input of a process")?;
        writeln!(stdin, "{addresses}")?;
    }
    let took = match pair[0].hear("summed") {
        Ok(took) => took,
        Err(error) if count == 1 && error.to_string().starts_with("refused") => {
            println!("skipped: two processes on one GPU, for {error}");
            return Ok(());
        }
        Err(error) => return Err(format!("two processes: {error}").into()),
    };
    println!("ok: two processes sum 4 MiB in {took} ms");
    let [first, second] = &mut pair;
    second.child.kill()?;
    let killed = Instant::now();
    let ended = first.hear("ended")?;
    let known = killed.elapsed();
    if !ended.starts_with("true ") {
        return Err(format!("the killed process was not named: {ended}").into());
    }
    // the time includes NCCL's own end, the first number that was told
    let ending = ended.split(' ').nth(1).and_then(|s| s.parse().ok()).map_or(Duration::ZERO, Duration::from_secs_f64);
    if known.saturating_sub(ending) > NEWS {
        return Err(format!("a killed process was known after {known:?} only").into());
    }
    println!("ok: a process killed within a sum is named after {:.2?}; NCCL let go in {ending:.2?}", known - ending);
    Ok(())
}
