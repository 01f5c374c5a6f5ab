//! `coordinator doctor --hosts N`: the machines that a run is to have come as its workers would, say what they find and what time it is, and
//! meet two by two and then all at once, as ranks do.
//!
//! Asks and carries; what answers mean is `links.rs`'s. Nothing waits without a deadline: whoever does not come, or falls silent, is a
//! finding. Refuses those that a run would refuse.

use super::links::{self, Link, Measured, Offset};
use super::{Finding, judge::Worker};
use crate::admission::{self, Token};
use crate::display::aside;
use crate::door::{self, Door, Refusals};
use crate::failure::Failure;
use crate::launch::BUILD;
use common::exit::Exit;
use rpc::examination_server::{Examination, ExaminationServer};
use rpc::from_host::Body;
use rpc::{FromHost, ToHost, to_host};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Time that a stranger has for its arrival, and how many may take it at one time.
const HANDSHAKE: Duration = Duration::from_secs(10);
const STRANGERS_MAX: usize = 64;
/// Questions for the time; the one that took the shortest way counts.
const QUESTIONS: usize = 8;
/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// For a meeting of two, in which a way slower than 6 Mbit/s is as good as none, and of all.
const OF_TWO: Duration = Duration::from_secs(60);
const OF_ALL: Duration = Duration::from_secs(300);
/// And then to hear of it.
const WORD: Duration = Duration::from_secs(10);
/// Bytes that two sum, and all where nothing is said of a run.
const BYTES: u64 = 8 << 20;
/// Where it only matters that they meet.
const FEW_BYTES: u64 = 1 << 10;
/// Longest word of a host about what went wrong.
const TROUBLE_MAX: usize = 300;
/// Sums of a meeting, of which the quickest counts.
const SUMS: u32 = 4;
/// A host whose machine answers nothing for so long is gone.
const GONE: Duration = Duration::from_secs(10);
/// Longest message in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages that may wait, each way.
const WINDOW: usize = 16;

/// What is looked at.
pub struct Terms<'a> {
    /// How many hosts.
    pub expected: u32,
    /// They are waited for so long.
    pub patience: Duration,
    /// How they come.
    pub invitation: &'a str,
    /// What a step of a run sums, in bytes.
    pub gradients: Option<u64>,
}

/// A host that has come.
struct Host {
    name: String,
    address: String,
    worker: Result<Worker, String>,
    questions: mpsc::Sender<Result<ToHost, Status>>,
    answers: mpsc::Receiver<Body>,
}

impl Host {
    /// It was one too many.
    fn refuse(&self) {
        let message = "all hosts that were waited for have come, or it is too late".to_owned();
        // nothing was asked yet: there is room; the stream ends with the host
        let _ = self.questions.try_send(Ok(refused(message)));
    }

    async fn ask(&self, question: to_host::Body) -> bool {
        self.questions.send_timeout(Ok(ToHost { body: Some(question) }), ANSWER).await.is_ok()
    }

    /// How far its clock is from ours.
    async fn offset(&mut self) -> Option<Offset> {
        let mut best: Option<Offset> = None;
        for _ in 0..QUESTIONS {
            let (asked, began) = (SystemTime::now(), Instant::now());
            if !self.ask(to_host::Body::Time(rpc::TimeQuestion {})).await {
                break;
            }
            let Ok(Some(Body::Time(told))) = timeout(ANSWER, self.answers.recv()).await else { break };
            let half = began.elapsed().as_secs_f64() / 2.0;
            let ours = asked.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()) + half;
            if best.is_none_or(|(_, doubt)| half < doubt) {
                best = Some((told.unix_seconds - ours, half));
            }
        }
        best
    }

    /// What came of a meeting; that it says nothing is trouble too.
    async fn measured(&mut self, meeting: u64, until: tokio::time::Instant) -> Result<(f64, f64), String> {
        loop {
            match timeout_at(until, self.answers.recv()).await {
                Ok(Some(Body::Measured(told))) if told.meeting == meeting => {
                    return match told.trouble.is_empty() {
                        true => Ok((told.way_seconds, told.sum_seconds)),
                        false => Err(told.trouble.chars().take(TROUBLE_MAX).collect()),
                    };
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err("it has left".to_owned()),
                Err(_) => return Err("it says nothing".to_owned()),
            }
        }
    }
}

/// Waits for hosts at a listener, through its door if it has one, and looks at them; after what is found `here` meanwhile.
///
/// # Errors
/// The server ends: what is found among hosts is no error.
pub async fn examine(
    (listener, door): (TcpListener, Option<Door>),
    token: Token,
    terms: &Terms<'_>,
    here: impl Future<Output = Vec<Finding>>,
) -> Result<Vec<Finding>, Failure> {
    let (arrivals, mut coming) = mpsc::channel(WINDOW);
    let refusals = Arc::new(Refusals::default());
    let (told, asked) = (Arc::clone(&refusals), Arc::clone(&refusals));
    let server = Server { token, arrivals, strangers: Arc::new(Semaphore::new(STRANGERS_MAX)), refusals };
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(GONE / 2))
        .http2_keepalive_timeout(Some(GONE / 2))
        .add_service(ExaminationServer::new(server).max_decoding_message_size(MESSAGE_BYTES_MAX));
    let serving = tokio::spawn(door::serve(router, listener, door, told));
    let looking = async {
        let (mut hosts, mut found) = tokio::join!(gather(&mut coming, terms), here);
        // whoever comes too late is let go at once
        coming.close();
        while let Some(late) = coming.recv().await {
            late.refuse();
        }
        found.extend(asked.so_far().map(|(count, latest)| links::refused(count, &latest)));
        found.extend(look(&mut hosts, terms).await);
        dismiss(hosts).await;
        found
    };
    tokio::pin!(serving);
    tokio::select! {
        found = looking => {
            serving.abort();
            Ok(found)
        }
        ended = &mut serving => {
            let why = ended.map_or_else(|error| error.to_string(), |served| served.err().map_or_else(String::new, |e| e.to_string()));
            Err(Failure::new(Exit::Network, format!("nobody can be served any more: {why}")))
        }
    }
}

/// Those who come in time, in the order of their names.
async fn gather(coming: &mut mpsc::Receiver<Host>, terms: &Terms<'_>) -> Vec<Host> {
    let until = tokio::time::Instant::now() + terms.patience;
    let mut hosts: Vec<Host> = Vec::new();
    while hosts.len() < terms.expected as usize {
        let Ok(Some(host)) = timeout_at(until, coming.recv()).await else { break };
        // one that was started again comes again
        hosts.retain(|host| !host.questions.is_closed());
        aside(&format!("{} is here at {}", host.name, host.address));
        hosts.push(host);
    }
    hosts.sort_by(|one, other| (&one.name, &one.address).cmp(&(&other.name, &other.address)));
    let named: Vec<_> = hosts.iter().map(|host| (host.name.clone(), host.address.clone())).collect();
    for (host, name) in hosts.iter_mut().zip(links::names(&named)) {
        host.name = name;
    }
    hosts
}

async fn look(hosts: &mut [Host], terms: &Terms<'_>) -> Vec<Finding> {
    let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    let addresses: Vec<String> = hosts.iter().map(|host| host.address.clone()).collect();
    let mut found = vec![links::arrivals(&names, terms.expected, terms.patience, terms.invitation)];
    found.extend(hosts.iter().flat_map(|host| links::host(&host.name, &host.worker)));
    found.extend(links::alike(&names, &hosts.iter().map(|host| host.worker.as_ref().ok()).collect::<Vec<_>>()));
    let mut offsets = Vec::new();
    for host in &mut *hosts {
        offsets.push(host.offset().await);
    }
    found.extend(links::clocks(&names, &offsets));
    let mut number = 0;
    let mut ways = Vec::new();
    for round in links::rounds(hosts.len()) {
        number += 1;
        let groups: Vec<Vec<usize>> = round.iter().map(|(one, other)| vec![*one, *other]).collect();
        let mut measured = meet(hosts, &groups, (number, BYTES, OF_TWO)).await;
        // a rank calls those before it: the other way round it is the other host that is called
        number += 1;
        let sound: Vec<usize> = (0..groups.len()).filter(|pair| measured[*pair].is_ok()).collect();
        let turned: Vec<Vec<usize>> = sound.iter().map(|pair| groups[*pair].iter().rev().copied().collect()).collect();
        for (pair, back) in sound.into_iter().zip(meet(hosts, &turned, (number, FEW_BYTES, OF_TWO)).await) {
            if let Err(why) = back {
                measured[pair] = Err(why);
            }
        }
        ways.extend(round.into_iter().zip(measured).map(|(ends, measured)| Link { ends, measured }));
    }
    found.extend(links::links(&names, &addresses, &ways));
    if hosts.len() > 1 && ways.iter().all(|way| way.measured.is_ok()) {
        let all: Vec<usize> = (0..hosts.len()).collect();
        let bytes = terms.gradients.unwrap_or(BYTES);
        let of = if terms.gradients.is_some() { "gradients of both networks" } else { "a sum" };
        for measured in meet(hosts, &[all], (number + 1, bytes, OF_ALL)).await {
            found.push(links::sum(hosts.len(), &measured, of));
        }
    }
    found
}

/// Lets hosts go, and waits until they have gone.
async fn dismiss(hosts: Vec<Host>) {
    let left: Vec<_> = hosts.into_iter().map(|host| host.answers).collect();
    let gone = async {
        for mut answers in left {
            while answers.recv().await.is_some() {}
        }
    };
    // who does not go is left behind
    let _ = timeout(ANSWER, gone).await;
}

/// Lets groups meet, all at the same time; what each has measured, the slowest of its members.
async fn meet(
    hosts: &mut [Host],
    groups: &[Vec<usize>],
    (number, bytes, time): (u64, u64, Duration),
) -> Vec<Result<Measured, String>> {
    let until = tokio::time::Instant::now() + time + WORD;
    let mut found = Vec::new();
    for group in groups {
        let peers = group.iter().map(|host| hosts[*host].address.clone()).collect();
        let roster = rpc::Roster { peers }.seal();
        let Ok(secret) = admission::random_bytes() else {
            found.push(Err("this system has no random numbers".to_owned()));
            continue;
        };
        let mut told = Ok(());
        for (rank, host) in (0..).zip(group) {
            let meeting = rpc::Meeting {
                number,
                rank,
                roster: roster.clone(),
                secret: secret.to_vec(),
                bytes,
                sums: SUMS,
                seconds: time.as_secs_f64(),
            };
            if !hosts[*host].ask(to_host::Body::Meeting(meeting)).await {
                told = Err(format!("{} takes no questions", hosts[*host].name));
            }
        }
        found.push(told);
    }
    let mut measured = Vec::new();
    for (group, told) in groups.iter().zip(found) {
        let (mut way, mut sum, mut trouble) = (0.0f64, 0.0f64, told.err());
        for host in group {
            let host = &mut hosts[*host];
            match host.measured(number, until).await {
                Ok((its_way, its_sum)) => (way, sum) = (way.max(its_way), sum.max(its_sum)),
                Err(why) => trouble = trouble.or_else(|| Some(format!("{}: {why}", host.name))),
            }
        }
        let seconds = |seconds| Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
        measured.push(match trouble {
            Some(trouble) => Err(trouble),
            None => seconds(way).and_then(|way| Ok(Measured { way, bytes, sum: seconds(sum)? })),
        });
    }
    measured
}

fn refused(message: String) -> ToHost {
    ToHost { body: Some(to_host::Body::Refused(rpc::Refused { message, again: false })) }
}

struct Server {
    token: Token,
    arrivals: mpsc::Sender<Host>,
    strangers: Arc<Semaphore>,
    refusals: Arc<Refusals>,
}

#[tonic::async_trait]
impl Examination for Server {
    type ExamineStream = ReceiverStream<Result<ToHost, Status>>;

    async fn examine(&self, request: Request<Streaming<FromHost>>) -> Result<Response<Self::ExamineStream>, Status> {
        let from = request.remote_addr();
        let stranger = timeout(HANDSHAKE, self.strangers.clone().acquire_owned()).await.ok().and_then(Result::ok);
        let _stranger =
            stranger.ok_or_else(|| Status::resource_exhausted("too many strangers at the door; try again"))?;
        let mut incoming = request.into_inner();
        let (join, findings) = match timeout(HANDSHAKE, incoming.message()).await {
            Ok(Ok(Some(FromHost { body: Some(Body::Arrival(rpc::Arrival { join: Some(join), findings })) }))) => {
                (join, findings)
            }
            Ok(_) => return Err(Status::invalid_argument("the first message of a host is its arrival")),
            Err(_) => return Err(Status::deadline_exceeded("nobody arrived")),
        };
        let (questions, outgoing) = mpsc::channel(WINDOW);
        if let Err(refusal) = admission::admit(&join, &self.token, BUILD) {
            self.refusals.tell(from, &refusal.to_string());
            // the queue is empty: there is room; the stream ends when the sender is dropped
            let _ = questions.try_send(Ok(refused(refusal.to_string())));
            return Ok(Response::new(ReceiverStream::new(outgoing)));
        }
        let (said, answers) = mpsc::channel(WINDOW);
        let worker = serde_json::from_str(&findings).map_err(|error| format!("what it says of itself: {error}"));
        let host = Host { name: join.host, address: join.peer_address, worker, questions, answers };
        if let Err(mpsc::error::SendError(late)) = self.arrivals.send(host).await {
            late.refuse();
            return Ok(Response::new(ReceiverStream::new(outgoing)));
        }
        tokio::spawn(async move {
            while let Ok(Some(FromHost { body: Some(body) })) = incoming.message().await {
                if said.send(body).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;
    use crate::server;
    use rpc::examination_client::ExaminationClient;

    const TOKEN: &str = "what hosts of this test show";

    /// A host that says what it is told to say: `wrong` is what its clock is wrong by; it measures unless it is `mute`.
    async fn host(at: String, name: &str, token: &str, wrong: f64, mute: bool) -> Option<String> {
        let (say, said) = mpsc::channel(WINDOW);
        let join = rpc::Join {
            protocol: rpc::PROTOCOL,
            token: token.to_owned(),
            build: BUILD.to_owned(),
            worker_id: name.to_owned(),
            pid: 1,
            host: name.to_owned(),
            peer_address: format!("10.0.0.{}:4000", name.len()),
            device: "host".to_owned(),
        };
        let findings = r#"{"build":"0","libtorch":"2","isa":"avx2","cuda":"no driver","devices":0,"gpus":0,"nccl":null,"nccl_trouble":"","nccl_environment":[],"cache":null}"#;
        let arrival = rpc::Arrival { join: Some(join), findings: findings.replace("\"0\"", &format!("\"{BUILD}\"")) };
        let words = |body| FromHost { body: Some(body) };
        say.send(words(Body::Arrival(arrival))).await.unwrap();
        let mut client = ExaminationClient::connect(format!("http://{at}")).await.unwrap();
        let mut asked = client.examine(ReceiverStream::new(said)).await.unwrap().into_inner();
        while let Ok(Some(ToHost { body: Some(body) })) = asked.message().await {
            let answer = match body {
                to_host::Body::Refused(refused) => return Some(refused.message),
                to_host::Body::Time(_) => {
                    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                    Body::Time(rpc::Time { unix_seconds: now.as_secs_f64() + wrong })
                }
                to_host::Body::Meeting(_) if mute => return None,
                to_host::Body::Meeting(meeting) => Body::Measured(rpc::Measured {
                    meeting: meeting.number,
                    way_seconds: 0.001,
                    sum_seconds: 0.01,
                    ..rpc::Measured::default()
                }),
            };
            say.send(words(answer)).await.unwrap();
        }
        None
    }

    async fn examined(expected: u32, patience: Duration) -> (String, tokio::task::JoinHandle<Vec<Finding>>) {
        let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let looking = tokio::spawn(async move {
            let terms = Terms { expected, patience, invitation: "`worker doctor`", gradients: None };
            examine((listener, None), Token::from_text(TOKEN), &terms, async { Vec::new() }).await.unwrap()
        });
        (at, looking)
    }

    fn unwell(found: &[Finding]) -> Vec<(&'static str, Health)> {
        found.iter().filter(|one| one.health != Health::Good).map(|one| (one.what, one.health)).collect()
    }

    #[tokio::test]
    async fn a_clock_that_is_wrong_is_found_by_how_much() {
        let (at, looking) = examined(3, Duration::from_secs(20)).await;
        let hosts = [("a", 0.0), ("bb", 5.0), ("ccc", -90.0)].map(|(name, wrong)| {
            let at = at.clone();
            tokio::spawn(async move { host(at, name, TOKEN, wrong, false).await })
        });
        let found = looking.await.unwrap();
        assert_eq!(unwell(&found), [("clock", Health::Note), ("clock", Health::Bad)], "{found:?}");
        let clocks: Vec<_> = found.iter().filter(|one| one.what == "clock").map(|one| one.found.clone()).collect();
        assert!(
            clocks[0].starts_with("bb is 5.0 s ahead") && clocks[1].starts_with("ccc is 90.0 s behind"),
            "{clocks:?}"
        );
        // 8 MiB within 10 ms
        let links = found.iter().find(|one| one.what == "links").unwrap();
        assert!(links.found.starts_with("3 ways: 6.7 Gbit/s"), "{}", links.found);
        for host in hosts {
            assert_eq!(host.await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn who_leaves_in_the_middle_is_found_and_nobody_waits_for_it() {
        let (at, looking) = examined(3, Duration::from_secs(20)).await;
        for (name, mute) in [("a", false), ("bb", true), ("ccc", false)] {
            let at = at.clone();
            tokio::spawn(async move { host(at, name, TOKEN, 0.0, mute).await });
        }
        let found = timeout(Duration::from_secs(20), looking).await.expect("soon").unwrap();
        assert_eq!(unwell(&found), [("link", Health::Bad)], "{found:?}");
        let link = found.iter().find(|one| one.what == "link").unwrap();
        assert!(link.found.contains("no other host meets bb") && link.found.contains("left"), "{}", link.found);
    }

    #[tokio::test]
    async fn a_wrong_token_is_refused_and_whoever_is_missing_is_waited_for_no_longer_than_is_said() {
        let (at, looking) = examined(2, Duration::from_secs(2)).await;
        let refused = host(at.clone(), "a", "a guess", 0.0, false).await.unwrap();
        assert!(refused.contains("the token is wrong"), "{refused}");
        tokio::spawn(async move { host(at, "bb", TOKEN, 0.0, false).await });
        let found = timeout(Duration::from_secs(20), looking).await.expect("soon").unwrap();
        assert_eq!(unwell(&found), [("refused", Health::Note), ("hosts", Health::Bad)], "{found:?}");
        let told = |what: &str| found.iter().find(|one| one.what == what).unwrap().found.clone();
        assert_eq!(told("hosts"), "1 of 2 came within 2 s: bb");
        let refused = told("refused");
        assert!(
            refused.starts_with("once ") && refused.contains("127.0.0.1:") && refused.contains("the token is wrong"),
            "{refused}"
        );
    }
}
