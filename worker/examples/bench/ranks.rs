//! Several processes of this program on loopback, each a rank of one collective.
//!
//! The first process starts the ranks, collects their addresses from their first line of output and gives the list to
//! each; from then on they speak to each other only, and what rank 0 prints is the result. A rank that dies ends all.

use crate::{Failure, Options};
use collective::{Collective, Listener, Membership, Mesh};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use worker::communicator::Communicator;

/// Every rank is there within this time: they start together on one machine.
const CONNECT: Duration = Duration::from_secs(60);
/// Longer than any iteration that somebody would wait for.
const STALLED: Duration = Duration::from_secs(600);

/// A started rank; killed when dropped.
struct Rank {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        // either may say that it has ended already
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

impl Rank {
    fn start(rank: u32) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .args(["--rank", &rank.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or("a process started without its pipes")?;
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    /// Its next line, without the line's end.
    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err(format!("a rank ended early: {}", self.child.wait()?).into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

/// Starts the ranks and prints what rank 0 finds.
pub fn spawn(options: &Options) -> Result<(), Failure> {
    let mut ranks: Vec<Rank> = (0..options.world).map(Rank::start).collect::<Result<_, _>>()?;
    for _ in &options.res {
        let addresses: Vec<String> = ranks.iter_mut().map(Rank::line).collect::<Result<_, _>>()?;
        for rank in &mut ranks {
            writeln!(rank.input, "{}", addresses.join(","))?;
        }
        println!("{}", ranks[0].line()?);
    }
    for mut rank in ranks {
        let status = rank.child.wait()?;
        if !status.success() {
            return Err(format!("a rank ended with {status}").into());
        }
    }
    Ok(())
}

/// Where the others reach this rank.
pub fn listen() -> Result<Listener, Failure> {
    Ok(Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?)
}

/// Says this rank's address and learns everybody's, in rank order.
pub fn exchange(listener: &Listener) -> Result<Vec<SocketAddr>, Failure> {
    println!("{}", listener.address());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim().split(',').map(str::parse).collect::<Result<_, _>>()?)
}

/// Forms the collective.
pub fn connect(listener: &mut Listener, rank: u32, peers: Vec<SocketAddr>) -> Result<Communicator, Failure> {
    // on loopback, among processes of one user: nothing here is worth a secret
    let membership = Membership { generation: 1, rank, peers, secret: [0; 32] };
    let mut mesh = Mesh::connect(listener, membership, CONNECT)?;
    mesh.set_deadline(STALLED);
    Ok(Communicator::new(Box::new(mesh)))
}
