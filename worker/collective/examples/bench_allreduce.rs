//! Measures the sum of gradients between processes on loopback: `bench_allreduce [WORLD] [BYTES] [CALLS] [f32|bf16]`.
//!
//! Starts itself once per rank; prints the median and the fastest of the calls, as the slowest rank saw each, as one JSON line.

use collective::{Collective, Listener, Membership, Mesh};
use half::bf16;
use std::{
    env,
    error::Error,
    io::{BufRead, BufReader, Write, stdin},
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const ROLE: &str = "BENCH_ALLREDUCE_RANK";

fn main() -> Result<(), Box<dyn Error>> {
    let argument = |at: usize, default: usize| env::args().nth(at).map_or(Ok(default), |text| text.parse());
    let (world, bytes, calls) = (argument(1, 2)?, argument(2, 100_000_000)?, argument(3, 21)?.max(1));
    let halved = match env::args().nth(4).as_deref() {
        None | Some("f32") => false,
        Some("bf16") => true,
        Some(other) => return Err(format!("numbers are f32 or bf16, not {other}").into()),
    };
    match env::var(ROLE) {
        Ok(rank) => member(rank.parse()?, bytes, calls, halved),
        Err(_) => measure(world, bytes, calls, halved),
    }
}

fn measure(world: usize, bytes: usize, calls: usize, halved: bool) -> Result<(), Box<dyn Error>> {
    let program = env::current_exe()?;
    let start = |rank: usize| {
        Command::new(&program)
            .args([world, bytes, calls].map(|n| n.to_string()))
            .arg(if halved { "bf16" } else { "f32" })
            .env(ROLE, rank.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    };
    let mut children = (0..world).map(start).collect::<Result<Vec<_>, _>>()?;
    let mut lines = children
        .iter_mut()
        .filter_map(|child| child.stdout.take())
        .map(|out| BufReader::new(out).lines())
        .collect::<Vec<_>>();
    let addresses = lines.iter_mut().filter_map(Iterator::next).collect::<Result<Vec<_>, _>>()?.join(" ");
    for input in children.iter_mut().filter_map(|child| child.stdin.as_mut()) {
        writeln!(input, "{addresses}")?;
    }
    let mut slowest = vec![0f64; calls];
    for rank in &mut lines {
        for call in &mut slowest {
            *call = call.max(rank.next().ok_or("a rank ended early")??.parse()?);
        }
    }
    for child in &mut children {
        child.wait()?;
    }
    slowest.sort_by(f64::total_cmp);
    let (median, fastest) = (slowest[calls / 2] * 1e3, slowest[0] * 1e3);
    println!(
        r#"{{"world":{world},"bytes":{bytes},"calls":{calls},"median_ms":{median:.4},"fastest_ms":{fastest:.4}}}"#
    );
    Ok(())
}

fn member(rank: u32, bytes: usize, calls: usize, halved: bool) -> Result<(), Box<dyn Error>> {
    let mut listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    println!("{}", listener.address());
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    let peers = line.split_whitespace().map(str::parse).collect::<Result<Vec<SocketAddr>, _>>()?;
    let membership = Membership { generation: 1, rank, peers, secret: [0; 32] };
    let mut group = Mesh::connect(&mut listener, membership, Duration::from_secs(10))?;
    let mut single = vec![0f32; if halved { 0 } else { bytes / size_of::<f32>() }];
    let mut short = vec![bf16::ZERO; if halved { bytes / size_of::<bf16>() } else { 0 }];
    for call in 0..calls + 3 {
        group.barrier()?;
        let begun = Instant::now();
        match halved {
            false => group.all_reduce_sum_f32(&mut single)?,
            true => group.all_reduce_sum_bf16(&mut short)?,
        }
        if call >= 3 {
            println!("{}", begun.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
