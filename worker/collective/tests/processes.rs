//! What becomes of a generation when one of its processes is killed or stopped: real processes, real signals.
//!
//! Without the standard harness: the program is either a test run (`processes [FILTER]`), or, where a test starts it with its
//! role in the environment, one rank.

use collective::{Collective, CollectiveError, How, Listener, Membership, Mesh, contract};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env,
    io::{BufRead, BufReader, Lines, Write, stdin},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const ROLE: &str = "COLLECTIVE_TEST_DEADLINE_MS";

fn main() {
    if let Ok(deadline) = env::var(ROLE) {
        return member(deadline.parse().expect("milliseconds"));
    }
    let filter = env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let tests: [(&str, fn()); 3] = [
        (
            "a_killed_process_is_named_by_every_other_rank_at_once",
            a_killed_process_is_named_by_every_other_rank_at_once,
        ),
        ("an_abort_reaches_every_rank_while_one_is_stopped", an_abort_reaches_every_rank_while_one_is_stopped),
        (
            "a_stopped_process_is_named_at_the_deadline_and_learns_that_it_was_given_up_on",
            a_stopped_process_is_named_at_the_deadline_and_learns_that_it_was_given_up_on,
        ),
    ];
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        test(); // panics where it fails
        println!("test {name} ... ok");
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// One rank: sums without end until a call fails, then says how and when. A line on its input aborts.
fn member(deadline: u64) {
    let mut listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    println!("address {}", listener.address());
    let mut line = String::new();
    stdin().read_line(&mut line).unwrap();
    let (rank, peers) = line.trim().split_once(' ').unwrap();
    let peers = peers.split(' ').map(|peer| peer.parse().unwrap()).collect::<Vec<SocketAddr>>();
    let membership = Membership { generation: 1, rank: rank.parse().unwrap(), peers, secret: [3; 32] };
    let mut group = Mesh::connect(&mut listener, membership, Duration::from_secs(20)).unwrap();
    group.set_deadline(Duration::from_millis(deadline));
    let aborter = group.aborter();
    thread::spawn(move || {
        // Nothing but a whole line aborts: the end of the input is the end of the test.
        if stdin().read_line(&mut String::new()).is_ok_and(|bytes| bytes > 0) {
            aborter.abort();
        }
    });
    let mut numbers = vec![1.0; 250_000];
    let mut first = true;
    let cause = loop {
        if let Err(cause) = group.all_reduce_sum_f32(&mut numbers) {
            break cause;
        }
        if std::mem::take(&mut first) {
            println!("summing");
        }
    };
    let at = now().as_micros();
    let (kind, rank) = match cause {
        CollectiveError::PeerLost { rank, how } => (format!("{how:?}"), rank),
        CollectiveError::TimedOut { waiting_for, .. } => ("TimedOut".to_owned(), waiting_for),
        CollectiveError::Aborted => ("SelfAborted".to_owned(), 0),
        other => panic!("{other}"),
    };
    println!("ended {kind} {rank} {at}");
}

struct Process {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(deadline: Duration) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .env(ROLE, deadline.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    /// What follows `word` in the next line that the member writes.
    fn says(&mut self, word: &str) -> String {
        let said = self.output.next().and_then(Result::ok);
        let said = said.unwrap_or_else(|| panic!("the member ended before it said {word}"));
        said.strip_prefix(word).unwrap_or_else(|| panic!("{said:?} is not {word}")).trim().to_owned()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it says that it ended: what, concerning whom, and when.
    fn end(&mut self) -> (String, u32, Duration) {
        let said = self.says("ended");
        let [kind, rank, at] = said.split(' ').collect::<Vec<_>>().try_into().unwrap();
        (kind.to_owned(), rank.parse().unwrap(), Duration::from_micros(at.parse().unwrap()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Four processes that are summing.
fn four(deadline: Duration) -> Vec<Process> {
    let mut ranks = (0..4).map(|_| Process::start(deadline)).collect::<Vec<_>>();
    let addresses = ranks.iter_mut().map(|rank| rank.says("address")).collect::<Vec<_>>().join(" ");
    for (rank, process) in ranks.iter_mut().enumerate() {
        process.tell(&format!("{rank} {addresses}"));
    }
    for process in &mut ranks {
        process.says("summing");
    }
    ranks
}

const LONG: Duration = Duration::from_secs(60);

fn described(how: How) -> String {
    format!("{how:?}")
}

fn a_killed_process_is_named_by_every_other_rank_at_once() {
    contract::in_time(|| {
        let mut ranks = four(LONG);
        let mut killed = ranks.remove(2);
        let begun = now();
        killed.child.kill().unwrap();
        let ends = ranks.iter_mut().map(Process::end).collect::<Vec<_>>();
        assert!(ends.iter().all(|(kind, rank, _)| *kind == described(How::Closed) && *rank == 2), "{ends:?}");
        ends.iter().map(|(.., at)| at.saturating_sub(begun)).max().unwrap()
    });
}

fn an_abort_reaches_every_rank_while_one_is_stopped() {
    contract::in_time(|| {
        let mut ranks = four(LONG);
        ranks[2].signal(Signal::STOP);
        let begun = now();
        ranks[0].tell("abort");
        let ends = [0, 1, 3].map(|rank| ranks[rank].end());
        assert_eq!(ends[0].0, "SelfAborted");
        for (kind, rank, _) in &ends[1..] {
            assert_eq!((kind, *rank), (&described(How::Aborted), 0));
        }
        ranks[2].signal(Signal::CONT);
        let (kind, rank, _) = ranks[2].end();
        assert_eq!((kind, rank), (described(How::Aborted), 0), "the stopped one learns it when it wakes");
        ends.iter().map(|(.., at)| at.saturating_sub(begun)).max().unwrap()
    });
}

fn a_stopped_process_is_named_at_the_deadline_and_learns_that_it_was_given_up_on() {
    let deadline = Duration::from_secs(1);
    let mut ranks = four(deadline);
    ranks[2].signal(Signal::STOP);
    let begun = now();
    for (kind, rank, at) in [0, 1, 3].map(|rank| ranks[rank].end()) {
        assert!(kind == "TimedOut" || kind == described(How::Silent), "{kind}");
        assert_eq!(rank, 2, "who waits for whom is followed to its end");
        let took = at.saturating_sub(begun);
        assert!(took < 10 * deadline, "a deadline of {deadline:?} took {took:?}");
    }
    ranks[2].signal(Signal::CONT);
    assert_eq!(ranks[2].end().0, described(How::GaveUp));
}
